//! Pictures: from PNG, JPEG or WebP to the numbers that an encoder reads, under caps that hold before anything is allocated.

use std::io::Cursor;
use std::ops::RangeInclusive;

use candle_core::{Device, Tensor};
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, GenericImageView, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits, RgbImage};

use crate::limits::{PICTURE_BYTES_MAX, PICTURE_SIDE_MAX, PICTURE_SIDE_MIN};

/// Why bytes are no picture that is read.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Another format, or none.
    #[error("the bytes are no PNG, JPEG or WebP")]
    Format,
    /// Larger than is read.
    #[error("the picture has {width} x {height} pixels, {PICTURE_SIDE_MAX} on a side are the most")]
    TooLarge {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Nothing could be seen on it.
    #[error("the picture has {width} x {height} pixels, {PICTURE_SIDE_MIN} on a side are the least")]
    TooSmall {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Several pictures, of which nobody would know which one was looked at.
    #[error("the picture moves: a still one is read")]
    Animated,
    /// The decoder refused it.
    #[error("the picture cannot be decoded: {0}")]
    Corrupt(String),
}

/// A picture whose head was read, and is good.
pub struct Undecoded<'a> {
    bytes: &'a [u8],
    format: ImageFormat,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

impl<'a> Undecoded<'a> {
    /// Reads the head only, which costs next to nothing.
    ///
    /// # Errors
    /// The bytes are no picture that is read.
    pub fn new(bytes: &'a [u8]) -> Result<Undecoded<'a>, PictureError> {
        let format = image::guess_format(bytes).map_err(|_| PictureError::Format)?;
        let (width, height, animated) = match head(bytes, format) {
            Some(head) => head.map_err(corrupt)?,
            None => return Err(PictureError::Format),
        };
        match () {
            () if animated => Err(PictureError::Animated),
            () if width.max(height) > PICTURE_SIDE_MAX => Err(PictureError::TooLarge { width, height }),
            () if width.min(height) < PICTURE_SIDE_MIN => Err(PictureError::TooSmall { width, height }),
            () => Ok(Undecoded { bytes, format, width, height }),
        }
    }

    /// Decodes the picture; what is transparent lies over white.
    ///
    /// # Errors
    /// It is not whole.
    pub fn decode(&self) -> Result<RgbImage, PictureError> {
        if self.format == ImageFormat::Jpeg && !is_whole_jpeg(self.bytes) {
            return Err(PictureError::Corrupt("it is cut off, or its end is not marked".to_owned()));
        }
        let mut reader = ImageReader::with_format(Cursor::new(self.bytes), self.format);
        reader.limits(limits());
        Ok(flatten(reader.decode().map_err(corrupt)?))
    }
}

/// [`Undecoded::new`] and [`Undecoded::decode`] in one.
///
/// # Errors
/// The bytes are no picture of a format that is read, or it is too large, too small or not whole.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, PictureError> {
    Undecoded::new(bytes)?.decode()
}

/// Width, height, and whether it moves; none of a format that is not read.
fn head(bytes: &[u8], format: ImageFormat) -> Option<ImageResult<(u32, u32, bool)>> {
    let with = |decoder: &dyn ImageDecoder, animated| (decoder.dimensions().0, decoder.dimensions().1, animated);
    let bytes = Cursor::new(bytes);
    Some(match format {
        ImageFormat::Png => PngDecoder::with_limits(bytes, limits()).and_then(|decoder| Ok(with(&decoder, decoder.is_apng()?))),
        ImageFormat::WebP => WebPDecoder::new(bytes).map(|decoder| with(&decoder, decoder.has_animation())),
        ImageFormat::Jpeg => JpegDecoder::new(bytes).map(|decoder| with(&decoder, false)),
        _ => return None,
    })
}

/// Whether a JPEG has its end. Decoders make up what is missing, and the format has no checksum.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    // Markers are 0xFF and a number. Among the numbers of a scan 0xFF has a 0 behind it, or a restart.
    const END: u8 = 0xD9;
    const WITHOUT_SEGMENT: [RangeInclusive<u8>; 2] = [0..=1, 0xD0..=0xD8];
    let mut rest = bytes;
    loop {
        rest = match *rest {
            [0xFF, END, ..] => return true,
            // What comes before a marker may be filled up.
            [0xFF, 0xFF, ..] => &rest[1..],
            [0xFF, marker, ..] if WITHOUT_SEGMENT.iter().any(|range| range.contains(&marker)) => &rest[2..],
            [0xFF, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest.get(2 + length..).unwrap_or_default()
            }
            [_, ..] => &rest[1..],
            [] => return false,
        };
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(PICTURE_BYTES_MAX);
    limits
}

fn corrupt(error: image::ImageError) -> PictureError {
    PictureError::Corrupt(error.to_string())
}

fn flatten(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [red, green, blue, alpha] = rgba.get_pixel(x, y).0;
        let over = |value: u8| {
            let (value, alpha) = (u32::from(value), u32::from(alpha));
            ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        image::Rgb([over(red), over(green), over(blue)])
    })
}

/// The largest square in the middle, at this side; a picture of that side is left as it is.
pub fn square(picture: &RgbImage, side: usize) -> RgbImage {
    let side = side as u32;
    if picture.dimensions() == (side, side) {
        return picture.clone();
    }
    let (width, height) = picture.dimensions();
    let shorter = width.min(height).max(1);
    let middle = picture.view((width - shorter.min(width)) / 2, (height - shorter.min(height)) / 2, shorter, shorter);
    imageops::resize(&*middle, side, side, FilterType::CatmullRom)
}

/// Pictures of one size as `[rows, 3, height, width]`, red first, of numbers from 0 to 255.
///
/// # Errors
/// They have not one size.
pub fn tensor(pictures: &[RgbImage]) -> candle_core::Result<Tensor> {
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let mut numbers = Vec::with_capacity(pictures.len() * 3 * (width * height) as usize);
    for picture in pictures {
        for channel in 0..3 {
            numbers.extend(picture.pixels().map(|pixel| f32::from(pixel.0[channel])));
        }
    }
    Tensor::from_vec(numbers, (pictures.len(), 3, height as usize, width as usize), &Device::Cpu)
}

/// Which channel comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Red.
    Rgb,
    /// Blue.
    Bgr,
}

/// What an encoder does with numbers from 0 to 255 first: `(x - mean) · scale` by channel, in its own order.
#[derive(Clone, Debug)]
pub(super) struct Preprocessing {
    pub(super) order: Order,
    /// In that order.
    pub(super) mean: [f32; 3],
    pub(super) scale: f64,
}

impl Preprocessing {
    pub(super) fn apply(&self, pictures: &Tensor) -> candle_core::Result<Tensor> {
        let mean = Tensor::new(&self.mean, &Device::Cpu)?.reshape((1, 3, 1, 1))?;
        self.reordered(pictures)?.broadcast_sub(&mean)?.affine(self.scale, 0.0)
    }

    /// The gradient by the pictures' numbers, from that by what [`Preprocessing::apply`] gave.
    pub(super) fn backward(&self, gradient: &Tensor) -> candle_core::Result<Tensor> {
        self.reordered(gradient)?.affine(self.scale, 0.0)
    }

    /// Turning the channels round twice is nothing, so that this is its own inverse.
    fn reordered(&self, pictures: &Tensor) -> candle_core::Result<Tensor> {
        match self.order {
            Order::Rgb => Ok(pictures.clone()),
            Order::Bgr => {
                let [red, green, blue] = [0, 1, 2].map(|channel| pictures.narrow(1, channel, 1));
                Tensor::cat(&[blue?, green?, red?], 1)
            }
        }
    }

    /// What a state of the encoder `name` depends on, with its weights' `hash`.
    pub(super) fn fingerprint(&self, name: &str, hash: &str) -> String {
        blake3::hash(format!("{name} {hash} {self:?}").as_bytes()).to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(picture: &DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    #[test]
    fn what_is_transparent_lies_over_white() {
        let mut picture = image::RgbaImage::from_pixel(8, 8, image::Rgba([10, 20, 30, 255]));
        picture.put_pixel(1, 0, image::Rgba([0, 0, 0, 0]));
        let decoded = decode(&png(&picture.into())).unwrap();
        assert_eq!(decoded.into_raw()[..6], [10, 20, 30, 255, 255, 255]);
    }

    /// A chunk of a PNG.
    fn chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut sum = flate2::Crc::new();
        sum.update(name);
        sum.update(data);
        [&(data.len() as u32).to_be_bytes(), &name[..], data, &sum.sum().to_be_bytes()].concat()
    }

    #[test]
    fn pictures_beyond_the_caps_are_refused_by_their_head() {
        let bytes = png(&DynamicImage::new_rgb8(8, 8));
        assert!(decode(&bytes).is_ok());
        let of = |width: u32, height: u32| {
            let mut head = bytes[16..29].to_vec();
            head[..4].copy_from_slice(&width.to_be_bytes());
            head[4..8].copy_from_slice(&height.to_be_bytes());
            [&bytes[..8], &chunk(b"IHDR", &head), &bytes[33..]].concat()
        };
        assert_eq!(of(8, 8), bytes);
        assert!(Undecoded::new(&of(PICTURE_SIDE_MAX, PICTURE_SIDE_MAX)).is_ok());
        for (width, height) in [(PICTURE_SIDE_MAX + 1, 8), (8, 20_000), (1_000_000, 1_000_000)] {
            let refused = decode(&of(width, height)).unwrap_err();
            assert!(matches!(refused, PictureError::TooLarge { .. }), "{width} x {height}: {refused}");
        }
        let refused = decode(&png(&DynamicImage::new_rgb8(1, 1))).unwrap_err();
        assert!(matches!(refused, PictureError::TooSmall { width: 1, height: 1 }), "{refused}");
        for other in [&b"BM......"[..], b"GIF89a\x08\0\x08\0\0\0\0", b"", b"II*\0"] {
            assert!(matches!(decode(other), Err(PictureError::Format)));
        }
    }

    #[test]
    fn what_moves_or_is_not_whole_is_refused() {
        let bytes = png(&DynamicImage::new_rgb8(8, 8));
        let moving = [&bytes[..33], &chunk(b"acTL", &[0, 0, 0, 1, 0, 0, 0, 0]), &bytes[33..]].concat();
        assert!(matches!(decode(&moving), Err(PictureError::Animated)));
        // The feature bits of an extended WebP: the second is of those that move.
        let mut webp = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x07\0\0\x07\0\0".to_vec();
        webp.extend(b"ANIM\x06\0\0\0\0\0\0\0\0\0ANMF\0\0\0\0");
        assert!(decode(&webp).is_err());
        // Each checksum of a PNG, and each place where it may end.
        for at in (29..33).chain(bytes.len() - 16..bytes.len() - 12) {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(matches!(decode(&altered), Err(PictureError::Corrupt(_))), "byte {at}");
        }
        for end in 8..bytes.len() - 12 {
            assert!(decode(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_refused_wherever_it_ends() {
        let picture = RgbImage::from_fn(24, 24, |x, y| image::Rgb([(x * y) as u8, (40 * x) as u8, (97 * y) as u8]));
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
        assert!(decode(&bytes).is_ok());
        // An application's segment may hold a picture of its own, with its end.
        let nested = [&bytes[..2], &[0xFF, 0xE1, 0, 4, 0xFF, 0xD9], &bytes[2..]].concat();
        assert!(decode(&nested).is_ok());
        assert!(decode(&[&bytes[..], b"what follows"].concat()).is_ok());
        for whole in [&bytes, &nested] {
            for end in 3..whole.len() {
                assert!(matches!(decode(&whole[..end]), Err(PictureError::Corrupt(_) | PictureError::Format)), "{end} bytes");
            }
        }
    }

    #[test]
    fn the_middle_is_taken() {
        let wide = RgbImage::from_fn(30, 10, |x, _| image::Rgb([if (10..20).contains(&x) { 200 } else { 0 }; 3]));
        assert!(square(&wide, 10).pixels().all(|pixel| pixel.0 == [200; 3]));
        assert_eq!(square(&wide, 4).dimensions(), (4, 4));
        assert_eq!(tensor(&[square(&wide, 4)]).unwrap().dims(), [1, 3, 4, 4]);
    }

    #[test]
    fn the_gradient_goes_back_the_way_of_the_numbers() {
        let preprocessing = Preprocessing { order: Order::Bgr, mean: [1.0, 2.0, 3.0], scale: 0.5 };
        let pictures = Tensor::new(&[[[[10f32]], [[20.0]], [[30.0]]]], &Device::Cpu).unwrap();
        let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(preprocessing.apply(&pictures).unwrap()), [14.5, 9.0, 3.5]);
        assert_eq!(flat(preprocessing.backward(&pictures).unwrap()), [15.0, 10.0, 5.0]);
    }
}
