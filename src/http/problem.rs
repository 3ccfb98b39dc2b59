//! The one shape of every refusal: RFC 9457 `application/problem+json`.
//!
//! A program reads `code`, which is stable; a person reads `detail`; whoever posted rows reads `errors`. The member `error` holds
//! the detail again, because clients of the Open Inference Protocol read that one. `type` is `about:blank`, so `title` is the
//! status in words, as the RFC asks.

use std::collections::BTreeMap;

use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::limits::{ERRORS_LISTED_MAX, PROBLEM_TEXT_BYTES_MAX};

/// The media type of a problem.
pub const CONTENT_TYPE_PROBLEM: &str = "application/problem+json";

/// The code of a content coding that no door takes; its answer lists those that are taken (RFC 7694).
pub const UNSUPPORTED_ENCODING: &str = "unsupported_encoding";

/// Why a request was refused. Nothing of what was asked has happened.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Problem {
    /// The status of the answer.
    pub status: StatusCode,
    /// A stable word in snake case for programs; also the `reason` of `mustela_stream_refused_total`.
    pub code: &'static str,
    /// What is wrong with this request, for people.
    pub detail: String,
    /// What is wrong row by row, at most [`ERRORS_LISTED_MAX`] of it.
    pub errors: Vec<Fault>,
    /// When it is worth trying again, in seconds; sent as `Retry-After`.
    pub retry_after: Option<u32>,
    /// Further members, such as `minimum_bytes`.
    pub members: BTreeMap<&'static str, Value>,
}

/// What is wrong with one value of a post.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The row in the post, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    /// The name of the column or field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What was found and what was expected.
    pub reason: String,
}

impl Problem {
    /// A problem of any status; the constructors below are the ones that doors use.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        cut(&mut detail, PROBLEM_TEXT_BYTES_MAX);
        Self { status, code, detail, errors: Vec::new(), retry_after: None, members: BTreeMap::new() }
    }

    /// 400: not a request that this door can read, whatever it is about.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404: there is no such thing; `kind` is a word such as "stream".
    pub fn not_found(kind: &'static str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {kind} `{name}`"))
            .with("kind", kind)
            .with("name", name)
    }

    /// 404: no door has this path.
    pub fn no_route(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_such_route", format!("there is nothing at {path}"))
    }

    /// 405: the path has a door, but not for this method. The router adds `Allow`.
    pub fn method_not_allowed(method: &Method, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{path} does not take {method}"))
    }

    /// 409: the request contradicts what is there.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 413: the body, or what it decompresses to, is beyond a limit; the answer names the limit in `limit_bytes`.
    pub fn payload_too_large(code: &'static str, detail: impl Into<String>, limit_bytes: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, detail).with("limit_bytes", limit_bytes)
    }

    /// 415: a content type or coding that this door does not take.
    pub fn unsupported_media_type(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, detail)
    }

    /// 422: readable, but wrong.
    pub fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// 429: too much at once; worth trying again after `retry_after` seconds.
    pub fn too_many_requests(code: &'static str, detail: impl Into<String>, retry_after: u32) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail) }
    }

    /// 503: the process is ending and takes nothing on.
    pub fn draining() -> Self {
        let detail = "the service is shutting down and takes nothing on";
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail) }
    }

    /// 503: the request's time was up. What was asked may still happen; a key makes it safe to send again.
    pub fn deadline(seconds: u64) -> Self {
        let detail = format!("the request was not answered within {seconds} seconds; it may still have been carried out");
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "deadline", detail) }
    }

    /// 503: a part that the answer needs is not there now, such as a model that has failed. No waiting mends it.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
    }

    /// 503: the disk has failed. The process ends by it, and is there again when something has started it.
    pub fn storage(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::unavailable("storage", detail) }
    }

    /// 507: the disk that streams may take is full.
    pub fn insufficient_storage(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "insufficient_storage", detail)
    }

    /// 500: only for a panic that was caught; no input may lead here. What happened is in the process's messages.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the service failed on this request; its messages say how")
    }

    /// Adds a member. The standard ones keep their meaning: they cannot be set here.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.insert(name, value.into());
        self
    }

    /// Says what is wrong row by row. Those beyond the limit are only counted, in `errors_total`.
    #[must_use]
    pub fn with_errors(self, faults: impl IntoIterator<Item = Fault>) -> Self {
        let mut faults = faults.into_iter();
        let errors: Vec<Fault> = faults.by_ref().take(ERRORS_LISTED_MAX).collect();
        let total = errors.len() + faults.count();
        Self { errors, ..self }.with("errors_total", total)
    }

    /// The body of the answer.
    fn json(&self) -> Value {
        let mut body = serde_json::Map::new();
        body.extend(self.members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        // After the others, so that no member takes a standard one's place.
        body.insert("type".to_owned(), json!("about:blank"));
        body.insert("title".to_owned(), json!(self.status.canonical_reason()));
        body.insert("status".to_owned(), json!(self.status.as_u16()));
        body.insert("code".to_owned(), json!(self.code));
        body.insert("detail".to_owned(), json!(self.detail));
        body.insert("error".to_owned(), json!(self.detail));
        if !self.errors.is_empty() {
            body.insert("errors".to_owned(), json!(self.errors));
        }
        Value::Object(body)
    }
}

/// Shortens a text that may have come from a client: what is refused must not cost more to answer than it did to send.
fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push('…');
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.json().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_PROBLEM));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == UNSUPPORTED_ENCODING {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, zstd, identity"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn answer(problem: Problem) -> (Response, Value) {
        let (head, body) = problem.into_response().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(head, axum::body::Body::empty()), serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn every_member_is_where_clients_look() {
        let fault = Fault { row: Some(3), column: Some("age".to_owned()), reason: "NaN is not a number".to_owned() };
        let problem = Problem::unprocessable("invalid_rows", "1 value is wrong").with_errors([fault]);
        let (response, body) = answer(problem).await;
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            body,
            json!({
                "type": "about:blank", "title": "Unprocessable Entity", "status": 422, "code": "invalid_rows",
                "detail": "1 value is wrong", "error": "1 value is wrong", "errors_total": 1,
                "errors": [{"row": 3, "column": "age", "reason": "NaN is not a number"}],
            })
        );
    }

    #[tokio::test]
    async fn waiting_and_encodings_are_also_headers() {
        let (response, body) = answer(Problem::too_many_requests("backpressure", "model `m` is behind", 7)).await;
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (429, &HeaderValue::from_static("7")));
        assert!(body.get("errors").is_none());
        let (response, _) = answer(Problem::storage("No space left on device")).await;
        assert_eq!((response.status().as_u16(), &response.headers()[RETRY_AFTER]), (503, &HeaderValue::from_static("1")));
        let (response, _) = answer(Problem::unavailable("model", "a gradient is not finite")).await;
        assert!(!response.headers().contains_key(RETRY_AFTER));
        let (response, _) = answer(Problem::unsupported_media_type(UNSUPPORTED_ENCODING, "br")).await;
        assert_eq!(response.headers()[ACCEPT_ENCODING], "gzip, zstd, identity");
    }

    #[tokio::test]
    async fn a_member_takes_no_standard_place() {
        let (_, body) = answer(Problem::not_found("stream", "s").with("status", 200).with("minimum_bytes", 5)).await;
        assert_eq!((&body["status"], &body["minimum_bytes"], &body["name"]), (&json!(404), &json!(5), &json!("s")));
    }

    #[test]
    fn a_text_is_told_up_to_the_limit() {
        let problem = Problem::bad_request("invalid_json", "ü".repeat(PROBLEM_TEXT_BYTES_MAX));
        assert_eq!(problem.detail.len(), PROBLEM_TEXT_BYTES_MAX + '…'.len_utf8());
        let exact = "x".repeat(PROBLEM_TEXT_BYTES_MAX);
        assert_eq!(Problem::bad_request("invalid_json", exact.clone()).detail, exact);
    }

    #[test]
    fn errors_are_listed_up_to_the_limit() {
        for count in [ERRORS_LISTED_MAX, ERRORS_LISTED_MAX + 1] {
            let faults = (0..count).map(|row| Fault { row: Some(row as u64), ..Fault::default() });
            let problem = Problem::unprocessable("invalid_rows", "wrong").with_errors(faults);
            assert_eq!((problem.errors.len(), &problem.members["errors_total"]), (ERRORS_LISTED_MAX, &json!(count)));
        }
    }
}
