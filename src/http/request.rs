//! What a request says beside its body: its format, its idempotency key; and bodies that are one JSON document.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::body::{self, BodyLimits};
use super::problem::Problem;
use crate::json;
use crate::limits::{self, DOCUMENT_BYTES_MAX};
use crate::stream::decode::Format;

/// The format of posted rows, by `Content-Type`; its parameters do not matter.
///
/// # Errors
/// 415 for any other format, or none.
pub(super) fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let essence = content_type(headers).unwrap_or_default();
    Format::from_content_type(&essence).ok_or_else(|| {
        let known = Format::ALL.map(Format::content_type).join(", ");
        Problem::unsupported_media_type("unsupported_content_type", format!("rows come as one of {known}, not as `{essence}`"))
    })
}

/// The essence of the `Content-Type`, in lower case; none where there is none.
pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The `Idempotency-Key`, where there is one.
///
/// # Errors
/// 400 for a key that is empty, too long, or not visible ASCII, and for more than one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str() {
        Ok(key) if values.next().is_none() && !key.is_empty() && key.len() <= limits::IDEMPOTENCY_KEY_BYTES_MAX => {
            Ok(Some(key.to_owned()))
        }
        _ => {
            let most = limits::IDEMPOTENCY_KEY_BYTES_MAX;
            let detail = format!("Idempotency-Key has to be there once, as 1 to {most} visible ASCII characters");
            Err(Problem::bad_request("invalid_idempotency_key", detail))
        }
    }
}

/// Documents are small, whatever rows may be.
fn documents(limits: BodyLimits) -> BodyLimits {
    let most = |bytes: usize| bytes.min(DOCUMENT_BYTES_MAX);
    BodyLimits { encoded_bytes_max: most(limits.encoded_bytes_max), decoded_bytes_max: most(limits.decoded_bytes_max) }
}

/// A body that is one JSON document; said to be JSON or not said to be anything else.
///
/// # Errors
/// 415 for another content type, 400 for what is not JSON, 422 for JSON that is not what the door reads; and all of
/// [`body::read`].
pub(super) async fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body, limits: BodyLimits) -> Result<T, Problem> {
    is_json(headers)?;
    let bytes = body::read(headers, body, documents(limits)).await?;
    read_json(&bytes)
}

/// Whether a body is said to be JSON, or not said to be anything else.
///
/// # Errors
/// 415 where it is another.
pub(super) fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    match content_type(headers).filter(|essence| essence != "application/json") {
        Some(other) => {
            let detail = format!("this door reads application/json, not `{other}`");
            Err(Problem::unsupported_media_type("unsupported_content_type", detail))
        }
        None => Ok(()),
    }
}

/// A JSON document.
///
/// # Errors
/// 400 for what is not JSON, 422 for JSON that is not what the door reads.
pub(super) fn read_json<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Problem> {
    // It would be read as an object's members in their order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::unprocessable("invalid_body", "expected an object, and not a list"));
    }
    json::read(bytes).map_err(|(category, detail)| match category {
        Category::Data => Problem::unprocessable("invalid_body", detail),
        _ => Problem::bad_request("invalid_json", detail),
    })
}
