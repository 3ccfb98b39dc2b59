//! Pictures: from PNG, JPEG or WebP to the numbers that an encoder reads, under caps that hold before anything is allocated.

use std::io::Cursor;

use candle_core::{Device, Result, Tensor};
use image::imageops::{self, FilterType};
use image::{DynamicImage, GenericImageView, ImageFormat, ImageReader, Limits, RgbImage};

use crate::limits::{PICTURE_BYTES_MAX, PICTURE_SIDE_MAX};

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
    /// The decoder refused it.
    #[error("the picture cannot be decoded: {0}")]
    Corrupt(String),
}

/// Decodes a picture; what is transparent lies over white.
///
/// # Errors
/// The bytes are no picture of a format that is read, or it is too large.
pub fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, PictureError> {
    let format = image::guess_format(bytes).map_err(|_| PictureError::Format)?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) {
        return Err(PictureError::Format);
    }
    let reader = || {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::default();
        limits.max_image_width = Some(PICTURE_SIDE_MAX);
        limits.max_image_height = Some(PICTURE_SIDE_MAX);
        limits.max_alloc = Some(PICTURE_BYTES_MAX);
        reader.limits(limits);
        reader
    };
    let corrupt = |error: image::ImageError| PictureError::Corrupt(error.to_string());
    // Its head first: a limit that is told as such is clearer than the decoder's own words.
    let (width, height) = reader().into_dimensions().map_err(corrupt)?;
    if width > PICTURE_SIDE_MAX || height > PICTURE_SIDE_MAX {
        return Err(PictureError::TooLarge { width, height });
    }
    Ok(flatten(&reader().decode().map_err(corrupt)?))
}

fn flatten(picture: &DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let rgba = picture.to_rgba8();
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
    imageops::resize(&middle.to_image(), side, side, FilterType::CatmullRom)
}

/// Pictures of one size as `[rows, 3, height, width]`, red first, of numbers from 0 to 255.
///
/// # Errors
/// They have not one size.
pub fn tensor(pictures: &[RgbImage]) -> Result<Tensor> {
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
    pub(super) fn apply(&self, pictures: &Tensor) -> Result<Tensor> {
        let mean = Tensor::new(&self.mean, &Device::Cpu)?.reshape((1, 3, 1, 1))?;
        self.reordered(pictures)?.broadcast_sub(&mean)?.affine(self.scale, 0.0)
    }

    /// The gradient by the pictures' numbers, from that by what [`Preprocessing::apply`] gave.
    pub(super) fn backward(&self, gradient: &Tensor) -> Result<Tensor> {
        self.reordered(gradient)?.affine(self.scale, 0.0)
    }

    /// Turning the channels round twice is nothing, so that this is its own inverse.
    fn reordered(&self, pictures: &Tensor) -> Result<Tensor> {
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
        let mut picture = image::RgbaImage::from_pixel(2, 1, image::Rgba([10, 20, 30, 255]));
        picture.put_pixel(1, 0, image::Rgba([0, 0, 0, 0]));
        let decoded = decode(&png(&picture.into())).unwrap();
        assert_eq!(decoded.into_raw(), [10, 20, 30, 255, 255, 255]);
    }

    #[test]
    fn pictures_beyond_the_cap_are_refused_by_their_head() {
        let mut bytes = png(&DynamicImage::new_rgb8(8, 8));
        assert!(decode(&bytes).is_ok());
        // The width in the head of a PNG; its checksum would be wrong, but is not looked at before.
        bytes[16..20].copy_from_slice(&(PICTURE_SIDE_MAX + 1).to_be_bytes());
        assert!(decode(&bytes).is_err());
        assert!(matches!(decode(b"BM......"), Err(PictureError::Format)));
        assert!(matches!(decode(b""), Err(PictureError::Format)));
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
