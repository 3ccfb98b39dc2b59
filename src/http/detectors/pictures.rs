//! Pictures that are to be looked at: JSON with base64, `multipart/form-data`, or one picture as it is.
//!
//! One that is no picture is a fault of its own and not of the others; what cannot be told apart into pictures is refused whole.

use std::convert::Infallible;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use multer::Multipart;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::http::problem::Problem;
use crate::http::request;
use crate::json::Members;
use crate::limits::DETECT_PICTURES_MAX;
use crate::rows::{Block, Element, Rows};
use crate::stream::decode::Pictures;

/// What was sent, picture by picture, with what else was said of each.
pub(super) struct Sent {
    /// Those that are pictures.
    pub(super) rows: Rows,
    /// Of each that was sent: its place among `rows`, or what is wrong with it.
    pub(super) places: Vec<Result<usize, String>>,
}

/// A picture on its way.
#[derive(Clone, Copy)]
pub(super) enum Encoded<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl Sent {
    /// Decodes pictures to squares of this side.
    ///
    /// # Errors
    /// There are none, or too many.
    pub(super) fn decode<'a>(
        side: usize,
        pictures: impl ExactSizeIterator<Item = Result<Encoded<'a>, String>>,
    ) -> Result<Sent, Problem> {
        let count = pictures.len();
        if count == 0 || count > DETECT_PICTURES_MAX {
            let amount = if count == 0 { "no" } else { "too many" };
            let detail = format!("{amount} pictures: 1 to {DETECT_PICTURES_MAX} are looked at at once");
            return Err(Problem::unprocessable("invalid_pictures", detail));
        }
        let (mut decoder, mut features, mut places) = (Pictures::new(side), Vec::new(), Vec::with_capacity(count));
        let width = 3 * side * side;
        let mut good = 0;
        for picture in pictures {
            let appended = picture.and_then(|picture| match picture {
                Encoded::Text(text) => decoder.append_text(text, &mut features),
                Encoded::Bytes(bytes) => decoder.append(bytes, &mut features),
            });
            // A decoder that fails half way may have left something.
            features.truncate((good + usize::from(appended.is_ok())) * width);
            places.push(appended.map(|()| good));
            good = features.len() / width;
        }
        let block = Block { element: Element::U8, width, bytes: features.into() };
        Ok(Sent { rows: Rows { count: good, blocks: vec![block], ..Rows::default() }, places })
    }
}

/// A body whose format is known.
pub(super) enum Posted {
    /// A JSON document with `rows`.
    Document(Bytes),
    /// Pictures as they are.
    Pictures(Vec<Bytes>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    rows: Vec<Members>,
}

impl Posted {
    /// Takes a body apart by what its `Content-Type` says.
    ///
    /// # Errors
    /// It is of none of the formats, or no multipart body.
    pub(super) async fn new(headers: &HeaderMap, body: Bytes) -> Result<Posted, Problem> {
        match request::content_type(headers).unwrap_or_default().as_str() {
            "application/json" => Ok(Posted::Document(body)),
            "multipart/form-data" => Ok(Posted::Pictures(parts(headers, body).await?)),
            "image/png" | "image/jpeg" | "image/webp" => Ok(Posted::Pictures(vec![body])),
            other => {
                let detail = format!(
                    "pictures come as application/json, multipart/form-data, image/png, image/jpeg or image/webp, not as `{other}`"
                );
                Err(Problem::unsupported_media_type("unsupported_content_type", detail))
            }
        }
    }

    /// Decodes the pictures; in a document they are the members `field` of the rows.
    ///
    /// # Errors
    /// A document is not of that form, or there are too many.
    pub(super) fn decode(&self, field: &str, side: usize) -> Result<Sent, Problem> {
        match self {
            Posted::Document(body) => {
                let Document { rows } = request::read_json(body)?;
                Sent::decode(side, rows.iter().map(|Members(row)| text(row, field)))
            }
            Posted::Pictures(pictures) => Sent::decode(side, pictures.iter().map(|picture| Ok(Encoded::Bytes(picture)))),
        }
    }
}

/// The picture of a row.
pub(super) fn text<'a>(row: &'a Map<String, Value>, field: &str) -> Result<Encoded<'a>, String> {
    let text = row.get(field).and_then(Value::as_str);
    text.map(Encoded::Text).ok_or_else(|| format!("the row has no text `{field}`"))
}

/// The parts of a multipart body, whatever they are called.
async fn parts(headers: &HeaderMap, body: Bytes) -> Result<Vec<Bytes>, Problem> {
    let invalid = |error: multer::Error| Problem::bad_request("invalid_multipart", error.to_string());
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(content_type).map_err(invalid)?;
    // All of it is here: what is awaited below never waits.
    let mut multipart = Multipart::new(tokio_stream::once(Ok::<_, Infallible>(body)), boundary);
    let mut parts = Vec::new();
    while let Some(part) = multipart.next_field().await.map_err(invalid)? {
        // One more than is looked at, to be refused by its number.
        if parts.len() <= DETECT_PICTURES_MAX {
            parts.push(part.bytes().await.map_err(invalid)?);
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn png(side: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::new_rgb8(side, side).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn each_picture_has_its_own_fault() {
        let (good, mut cut) = (png(16), png(16));
        cut.truncate(60);
        let pictures = [Ok(Encoded::Bytes(&good)), Ok(Encoded::Bytes(&cut)), Err("none".to_owned()), Ok(Encoded::Bytes(&good))];
        let sent = Sent::decode(8, pictures.into_iter()).unwrap();
        assert_eq!((sent.rows.count, sent.rows.blocks[0].bytes.len()), (2, 2 * 3 * 64));
        let places: Vec<Option<usize>> = sent.places.iter().map(|place| place.as_ref().ok().copied()).collect();
        assert_eq!(places, [Some(0), None, None, Some(1)]);
        let none = std::iter::empty::<Result<Encoded<'_>, String>>();
        assert!(Sent::decode(8, Vec::from_iter(none).into_iter()).is_err());
        assert!(Sent::decode(8, vec![Encoded::Bytes(b""); DETECT_PICTURES_MAX + 1].into_iter().map(Ok)).is_err());
    }

    #[tokio::test]
    async fn multipart_bodies_are_told_apart() {
        let headers = |value: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
        let body = "--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"a.png\"\r\n\r\nfirst\r\n--x\r\n\
                    Content-Disposition: form-data; name=\"b\"\r\n\r\nsecond\r\n--x--\r\n";
        let good = headers("multipart/form-data; boundary=x");
        assert_eq!(parts(&good, body.into()).await.unwrap(), ["first", "second"]);
        assert!(parts(&good, body[..40].to_owned().into()).await.is_err());
        assert!(parts(&headers("multipart/form-data"), body.into()).await.is_err());
    }
}
