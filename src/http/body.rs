//! The body of a request, under two caps: one on what is sent, one on what it decompresses to.
//!
//! A gigabyte of `Content-Length` is refused before a byte is read, a bomb when it has made one byte too many of itself, and a
//! flood of empty frames (cheap to send, dear to open) by their number. Memory is taken as bytes come, never as they are
//! announced. Decompressing runs beside the async threads, however short the body: 16 KiB of bomb are 100 ms of work.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::problem::{Problem, UNSUPPORTED_ENCODING};
use crate::config;
use crate::limits::{BODY_FRAMES_MAX, ZSTD_WINDOW_LOG_MAX};

/// How long a body that was refused beforehand is read.
const DISCARD: Duration = Duration::from_secs(1);
/// Decoded bytes between two looks at the cap.
const CHUNK_BYTES: usize = 64 << 10;

/// The two caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Of what is sent.
    pub encoded_bytes_max: usize,
    /// Of what it decompresses to.
    pub decoded_bytes_max: usize,
}

impl From<&config::Http> for BodyLimits {
    fn from(http: &config::Http) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Self { encoded_bytes_max: size(http.body_bytes_max), decoded_bytes_max: size(http.decoded_bytes_max) }
    }
}

/// How a body was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 1952, of one member or several.
    Gzip,
    /// RFC 8878, of one frame or several.
    Zstd,
}

/// Why compressed bytes were not decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More than the cap came out.
    #[error("the body decompresses to more than {limit_bytes} bytes")]
    TooLarge {
        /// The cap.
        limit_bytes: usize,
    },
    /// More than [`BODY_FRAMES_MAX`] members or frames.
    #[error("the {encoding} body has more than {BODY_FRAMES_MAX} members or frames")]
    TooManyFrames {
        /// Which encoding.
        encoding: &'static str,
    },
    /// The bytes end too early.
    #[error("the {encoding} body is truncated: its {of_bytes} bytes end within a member or frame")]
    Truncated {
        /// Which encoding.
        encoding: &'static str,
        /// How many there were.
        of_bytes: usize,
    },
    /// The bytes are not of that encoding.
    #[error("the {encoding} body is corrupt at byte {at_byte} of {of_bytes}: {reason}")]
    Corrupt {
        /// Which encoding.
        encoding: &'static str,
        /// How far the decoder came; it may have read a little ahead.
        at_byte: usize,
        /// How many there were.
        of_bytes: usize,
        /// What the decoder says.
        reason: String,
    },
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        let detail = error.to_string();
        match error {
            DecodeError::TooLarge { limit_bytes } => Problem::payload_too_large("decoded_too_large", detail, limit_bytes as u64),
            DecodeError::TooManyFrames { .. } => Problem::unprocessable("too_many_frames", detail),
            DecodeError::Truncated { .. } => Problem::unprocessable("truncated_body", detail),
            DecodeError::Corrupt { .. } => Problem::unprocessable("corrupt_body", detail),
        }
    }
}

impl Encoding {
    /// What `Content-Encoding` says; several codings on top of each other are refused, as no honest client needs them.
    ///
    /// # Errors
    /// 415 for any other coding, or more than one.
    pub fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut found = Self::Identity;
        for value in headers.get_all(CONTENT_ENCODING) {
            for word in String::from_utf8_lossy(value.as_bytes()).split(',').map(|word| word.trim().to_ascii_lowercase()) {
                let encoding = match word.as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(unsupported(format!("`Content-Encoding: {word}` is none of gzip, zstd, identity"))),
                };
                if found != Self::Identity {
                    return Err(unsupported("the body is encoded more than once: send one of gzip, zstd, identity".to_owned()));
                }
                found = encoding;
            }
        }
        Ok(found)
    }
}

/// Gives the body back where a request is admitted. Where it is refused the body is read all the same: a client that is still sending
/// would see its connection reset, and not the answer.
///
/// # Errors
/// The refusal.
pub async fn unless_refused<T>(admitted: Result<T, Problem>, body: Body, limits: BodyLimits) -> Result<(T, Body), Problem> {
    match admitted {
        Ok(admitted) => Ok((admitted, body)),
        Err(problem) => {
            discard(body, limits).await;
            Err(problem)
        }
    }
}

/// Reads a body up to its cap, for a moment at most, and forgets it.
async fn discard(mut body: Body, limits: BodyLimits) {
    let mut left = limits.encoded_bytes_max;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if bytes > left {
                return;
            }
            left -= bytes;
        }
    };
    // Whether it came to its end does not matter: it was only to let the client finish sending.
    tokio::time::timeout(DISCARD, reading).await.ok();
}

/// Reads a whole body and decompresses it.
///
/// # Errors
/// 413 beyond a cap, 415 for an unknown coding, 400 if the client stops early, 422 if what it sent does not decompress.
pub async fn read(headers: &HeaderMap, body: Body, limits: BodyLimits) -> Result<Bytes, Problem> {
    let admitted = Encoding::of(headers).and_then(|encoding| {
        let length = announced(headers);
        if length.is_some_and(|length| length > limits.encoded_bytes_max as u64) {
            return Err(too_large(limits.encoded_bytes_max));
        }
        Ok((encoding, length))
    });
    let ((encoding, length), body) = unless_refused(admitted, body, limits).await?;
    let encoded = receive(length, body, limits).await?;
    let decode = move || decompress(encoding, encoded, limits.decoded_bytes_max);
    if encoding == Encoding::Identity {
        return Ok(decode()?);
    }
    match tokio::task::spawn_blocking(decode).await {
        Ok(decoded) => Ok(decoded?),
        // A decoder that panics has a fault of its own; the panic is in the messages already.
        Err(_) => Err(Problem::internal()),
    }
}

/// Decompresses `encoded` whole, or not at all.
///
/// # Errors
/// It would be more than `decoded_bytes_max` bytes, or is not of that encoding.
pub fn decompress(encoding: Encoding, encoded: Bytes, decoded_bytes_max: usize) -> Result<Bytes, DecodeError> {
    let mut output = Output { bytes: Vec::new(), bytes_max: decoded_bytes_max };
    match encoding {
        Encoding::Identity if encoded.len() > decoded_bytes_max => {
            return Err(DecodeError::TooLarge { limit_bytes: decoded_bytes_max });
        }
        Encoding::Identity => return Ok(encoded),
        Encoding::Gzip => gunzip(&encoded, &mut output)?,
        Encoding::Zstd => unzstd(&encoded, &mut output)?,
    }
    Ok(output.bytes.into())
}

/// Decoded bytes under their cap.
struct Output {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Output {
    fn push(&mut self, chunk: &[u8]) -> Result<(), DecodeError> {
        if chunk.len() > self.bytes_max - self.bytes.len() {
            return Err(DecodeError::TooLarge { limit_bytes: self.bytes_max });
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where it is bounded")]
fn gunzip(encoded: &[u8], output: &mut Output) -> Result<(), DecodeError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut rest = encoded;
    for _ in 0..BODY_FRAMES_MAX {
        let mut member = flate2::bufread::GzDecoder::new(rest);
        loop {
            match member.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => output.push(&chunk[..read])?,
                Err(error) => return Err(broken("gzip", encoded, encoded.len() - member.get_ref().len(), &error)),
            }
        }
        rest = member.into_inner();
        if rest.is_empty() {
            return Ok(());
        }
    }
    Err(DecodeError::TooManyFrames { encoding: "gzip" })
}

fn unzstd(encoded: &[u8], output: &mut Output) -> Result<(), DecodeError> {
    let fail = |at: usize, error: &io::Error| broken("zstd", encoded, at, error);
    let mut decoder = Decoder::new().map_err(|error| fail(0, &error))?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(|error| fail(0, &error))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    for frame in 0.. {
        if frame == BODY_FRAMES_MAX {
            return Err(DecodeError::TooManyFrames { encoding: "zstd" });
        }
        loop {
            let status = decoder.run_on_buffers(&encoded[at..], &mut chunk).map_err(|error| fail(at, &error))?;
            at += status.bytes_read;
            output.push(&chunk[..status.bytes_written])?;
            if status.remaining == 0 {
                break;
            }
            if status.bytes_read == 0 && status.bytes_written == 0 {
                return Err(DecodeError::Truncated { encoding: "zstd", of_bytes: encoded.len() });
            }
        }
        if at == encoded.len() {
            break;
        }
    }
    Ok(())
}

fn broken(encoding: &'static str, encoded: &[u8], at_byte: usize, error: &io::Error) -> DecodeError {
    let of_bytes = encoded.len();
    match error.kind() {
        io::ErrorKind::UnexpectedEof => DecodeError::Truncated { encoding, of_bytes },
        _ => DecodeError::Corrupt { encoding, at_byte, of_bytes, reason: error.to_string() },
    }
}

fn unsupported(detail: String) -> Problem {
    Problem::unsupported_media_type(UNSUPPORTED_ENCODING, detail)
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

fn too_large(bytes_max: usize) -> Problem {
    let detail = format!("the body is larger than {bytes_max} bytes");
    Problem::payload_too_large("body_too_large", detail, bytes_max as u64)
}

/// Collects what is sent, under the cap; a single chunk is handed on without a copy.
async fn receive(announced: Option<u64>, mut body: Body, limits: BodyLimits) -> Result<Bytes, Problem> {
    let bytes_max = limits.encoded_bytes_max;
    let incomplete = |held: usize| Problem::bad_request("incomplete_body", format!("the body ended early, after {held} bytes"));
    let mut first = Bytes::new();
    let mut held = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let total = first.len().max(held.len());
        // What is not data is trailers, which mean nothing here.
        let Ok(data) = frame.map_err(|_| incomplete(total))?.into_data() else { continue };
        if data.len() > bytes_max - total {
            discard(body, limits).await;
            return Err(too_large(bytes_max));
        }
        if total == 0 {
            first = data;
        } else {
            if held.is_empty() {
                held.extend_from_slice(&first);
            }
            held.extend_from_slice(&data);
        }
    }
    let whole = if held.is_empty() { first } else { held.freeze() };
    if announced.is_some_and(|length| length != whole.len() as u64) {
        return Err(incomplete(whole.len()));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests;
