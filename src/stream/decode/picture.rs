//! A row's picture: from the text or the bytes that came to the numbers of a tensor, under caps for each picture and for the whole post.
//!
//! A few bytes can ask for many pixels, so what decoding costs is counted by what the heads say, before anything is decoded.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use crate::encoder::picture::{Undecoded, square};
use crate::limits::{PICTURE_ENCODED_BYTES_MAX, POST_PIXELS_MAX};
use crate::stream::schema::{Field, Schema};

/// The usual alphabet; padded or not.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// The pictures of one post.
pub struct Pictures {
    side: usize,
    /// What may still be decoded.
    pixels_left: u64,
}

impl Pictures {
    /// Squares of this side are made of them.
    pub fn new(side: usize) -> Pictures {
        Pictures { side, pixels_left: POST_PIXELS_MAX }
    }

    /// None where rows have no picture.
    pub(super) fn of(schema: &Schema) -> Option<Pictures> {
        match schema.fields.as_slice() {
            [Field::Image { side, .. }] => Some(Pictures::new(*side)),
            _ => None,
        }
    }

    /// Appends the picture that a text is, in base64 and perhaps as a data URL; says what is wrong with it otherwise.
    pub fn append_text(&mut self, text: &str, features: &mut Vec<u8>) -> Result<(), String> {
        if text.len() / 4 > PICTURE_ENCODED_BYTES_MAX / 3 {
            return Err(too_long(text.len() / 4 * 3));
        }
        let coded = match text.strip_prefix("data:").and_then(|url| url.split_once(',')) {
            Some((kind, coded)) if kind.starts_with("image/") && kind.ends_with(";base64") => coded,
            Some(_) => return Err("a data URL of a picture begins with `data:image/…;base64,`".to_owned()),
            None => text,
        };
        let bytes = BASE64.decode(coded).map_err(|error| format!("the text is no base64: {error}"))?;
        self.append(&bytes, features)
    }

    /// Appends the picture that these bytes are: all that is red, then green, then blue.
    pub fn append(&mut self, bytes: &[u8], features: &mut Vec<u8>) -> Result<(), String> {
        if bytes.is_empty() {
            return Err("there is no picture: it is empty".to_owned());
        }
        if bytes.len() > PICTURE_ENCODED_BYTES_MAX {
            return Err(too_long(bytes.len()));
        }
        // Pictures are anybody's: one over which a decoder panics is none.
        let read = catch_unwind(AssertUnwindSafe(|| self.decode(bytes, features)));
        read.unwrap_or_else(|_| Err("the picture cannot be decoded: its parts do not fit each other".to_owned()))
    }

    fn decode(&mut self, bytes: &[u8], features: &mut Vec<u8>) -> Result<(), String> {
        let picture = Undecoded::new(bytes).map_err(|error| error.to_string())?;
        let pixels = u64::from(picture.width) * u64::from(picture.height);
        let Some(left) = self.pixels_left.checked_sub(pixels) else {
            self.pixels_left = 0;
            return Err(format!(
                "up to this one the post has pictures of more than {POST_PIXELS_MAX} pixels: post fewer at once"
            ));
        };
        self.pixels_left = left;
        let picture = square(&picture.decode().map_err(|error| error.to_string())?, self.side);
        for channel in 0..3 {
            features.extend(picture.pixels().map(|pixel| pixel.0[channel]));
        }
        Ok(())
    }
}

fn too_long(bytes: usize) -> String {
    format!("the picture has {bytes} bytes, {PICTURE_ENCODED_BYTES_MAX} are the most")
}

#[cfg(test)]
mod tests;
