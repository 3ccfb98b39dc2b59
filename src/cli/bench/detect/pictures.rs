//! Real pictures to begin with, and the harmless changes that an attack is held against.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{self, FilterType};
use image::{GenericImageView, RgbImage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::attack::stored;
use crate::cli::Failure;
use crate::encoder::picture;
use crate::network::random;

/// A picture that rows are made of.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) number: u64,
    pub(super) picture: RgbImage,
}

/// A record of a file of CIFAR pictures.
pub(super) struct Record {
    pub(super) is_test: bool,
    pub(super) label: u8,
    pub(super) picture: RgbImage,
}

/// Sources, divided by picture: what is learned from, what thresholds come from, what is reported.
pub(super) struct Split<'a> {
    pub(super) fit: &'a [Source],
    pub(super) calibration: &'a [Source],
    pub(super) test: &'a [Source],
}

impl Split<'_> {
    /// 40, 20 and 40 of a hundred, in the order that they come in.
    pub(super) fn of(sources: &[Source]) -> Split<'_> {
        let (fit, others) = sources.split_at(sources.len() * 2 / 5);
        let (calibration, test) = others.split_at(sources.len() / 5);
        Split { fit, calibration, test }
    }
}

/// So many pictures of all folders, drawn by a seed; the same number of each folder as far as it has them.
pub(super) fn read(folders: &[PathBuf], count: usize, seed: u64) -> Result<Vec<RgbImage>, Failure> {
    let mut of_folders = Vec::with_capacity(folders.len());
    for (number, folder) in folders.iter().enumerate() {
        let mut paths = Vec::new();
        walk(folder, &mut paths)?;
        paths.sort();
        shuffle(&mut paths, &mut random::stream(seed, number as u64, "files"));
        of_folders.push(paths);
    }
    // The smallest first: what it lacks, the others give.
    of_folders.sort_by_key(Vec::len);
    let (mut pictures, mut prints) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let folders = of_folders.len();
    for (number, paths) in of_folders.into_iter().enumerate() {
        let wanted = pictures.len() + (count - pictures.len()).div_ceil(folders - number);
        for path in paths {
            if pictures.len() == wanted {
                break;
            }
            // Collections hold files that no decoder takes; those are nobody's pictures.
            let Ok(picture) = picture::decode(&std::fs::read(&path)?) else { continue };
            // And variants of one drawing, which must not be on both sides of a division.
            let print = fingerprint(&picture);
            if prints.iter().all(|other: &u64| (other ^ print).count_ones() > ALIKE_BITS) {
                prints.push(print);
                pictures.push(picture);
            }
        }
    }
    shuffle(&mut pictures, &mut random::stream(seed, 0, "pictures"));
    Ok(pictures)
}

/// Of 64 bits, in how many fingerprints of pictures that look alike differ at most.
pub(super) const ALIKE_BITS: u32 = 6;

/// What stays when a picture is scaled or recoloured: on a grid of 9 by 8 grey values, where each is brighter than the next.
pub(super) fn fingerprint(picture: &RgbImage) -> u64 {
    let grey = imageops::resize(&imageops::grayscale(picture), 9, 8, FilterType::Triangle);
    let bits = grey.rows().flat_map(|row| {
        let row: Vec<u8> = row.map(|pixel| pixel.0[0]).collect();
        row.windows(2).map(|pair| pair[0] > pair[1]).collect::<Vec<bool>>()
    });
    bits.fold(0, |print, bit| print << 1 | u64::from(bit))
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() {
            walk(&path, into)?;
        } else if ["png", "jpg", "jpeg", "webp"].contains(&ending.as_str()) {
            into.push(path);
        }
    }
    Ok(())
}

/// The records of a file: a byte that is 1 for the test split, the label's byte, two of the length (the lower first), and a JPEG.
pub(super) fn records(path: &Path, of_training: usize, of_test: usize) -> Result<Vec<Record>, Failure> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (mut rest, mut missing, mut records) = (bytes.as_slice(), [of_training, of_test], Vec::new());
    while let [split, label, low, high, behind @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (jpeg, next) = behind.split_at_checked(length).ok_or("a record is cut off")?;
        let left = missing.get_mut(usize::from(*split)).ok_or("a record is of no split")?;
        if *left > 0 {
            *left -= 1;
            records.push(Record { is_test: *split == 1, label: *label, picture: picture::decode(jpeg)? });
        }
        if missing == [0, 0] {
            break;
        }
        rest = next;
    }
    Ok(records)
}

/// Pictures as a victim reads them, by the same route as everything else: square, at its side, written as PNG and read again.
pub(super) fn sources(pictures: &[RgbImage], side: usize, first: u64) -> Result<Vec<Source>, Failure> {
    let numbered = pictures.iter().zip(first..);
    numbered.map(|(picture, number)| Ok(Source { number, picture: stored(&picture::square(picture, side))? })).collect()
}

/// Fisher and Yates.
pub(super) fn shuffle<T>(items: &mut [T], generator: &mut impl RngCore) {
    for last in (1..items.len()).rev() {
        items.swap(last, (generator.next_u64() % (last as u64 + 1)) as usize);
    }
}

/// What happens to pictures that nobody means to attack with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Each number moves by up to so much, uniformly.
    UniformNoise(u8),
    /// Each number moves by so much, up or down.
    SignNoise(u8),
    /// JPEG of quality 75.
    Jpeg,
    /// Gaussian, of one pixel.
    Blur,
    /// The middle, nine tenths of the side, at the old size.
    Crop,
}

impl Change {
    pub(super) fn name(self) -> &'static str {
        match self {
            Change::UniformNoise(_) => "uniform noise",
            Change::SignNoise(_) => "sign noise",
            Change::Jpeg => "JPEG q75",
            Change::Blur => "blur",
            Change::Crop => "crop",
        }
    }

    pub(super) fn epsilon(self) -> Option<u8> {
        match self {
            Change::UniformNoise(epsilon) | Change::SignNoise(epsilon) => Some(epsilon),
            _ => None,
        }
    }

    pub(super) fn apply(self, picture: &RgbImage, generator: &mut ChaCha8Rng) -> Result<RgbImage, Failure> {
        let changed = match self {
            Change::UniformNoise(epsilon) => {
                noisy(picture, || (f32::from(epsilon) * (2.0 * random::uniform(generator) - 1.0)).round() as i16)
            }
            Change::SignNoise(epsilon) => {
                noisy(picture, || if generator.next_u32() & 1 == 0 { i16::from(epsilon) } else { -i16::from(epsilon) })
            }
            Change::Jpeg => {
                let mut bytes = Cursor::new(Vec::new());
                picture.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 75))?;
                picture::decode(bytes.get_ref())?
            }
            Change::Blur => imageops::blur(picture, 1.0),
            Change::Crop => cropped(picture, (1, 1)),
        };
        stored(&changed)
    }
}

/// Each number moved by what `by` says, and kept among bytes.
pub(super) fn noisy(picture: &RgbImage, mut by: impl FnMut() -> i16) -> RgbImage {
    let mut noisy = picture.clone();
    for value in noisy.iter_mut() {
        *value = (i16::from(*value) + by()).clamp(0, 255) as u8;
    }
    noisy
}

/// Nine tenths of the side, at the old size; `0`, `1` or `2` twentieths left out on the left and at the top.
pub(super) fn cropped(picture: &RgbImage, (left, top): (u32, u32)) -> RgbImage {
    let side = picture.width();
    let part = picture.view(left * side / 20, top * side / 20, side * 9 / 10, side * 9 / 10).to_image();
    imageops::resize(&part, side, side, FilterType::CatmullRom)
}
