//! What the detectors are held against: distance from benign states, disagreement about mutants, and what pixels alone tell.

use image::{RgbImage, imageops};
use nalgebra::{DMatrix, DVector};
use rand_chacha::ChaCha8Rng;

use super::pictures::{cropped, noisy};
use super::victim::Victim;
use crate::cli::Failure;
use crate::network::random;

/// The squared Mahalanobis distance from the mean of benign states (Lee et al., 2018, without classes).
pub(super) struct Mahalanobis {
    mean: DVector<f64>,
    /// The lower triangle whose product with its transpose is the covariance.
    root: DMatrix<f64>,
}

impl Mahalanobis {
    /// Of benign states; the covariance is shrunk towards its mean variance by `width / (rows + width)`.
    pub(super) fn fit(benign: &[Vec<f32>]) -> Option<Mahalanobis> {
        let (rows, width) = (benign.len(), benign.first()?.len());
        let mut centred = DMatrix::from_fn(width, rows, |at, row| f64::from(benign[row][at]));
        let mean = centred.column_mean();
        for mut column in centred.column_iter_mut() {
            column -= &mean;
        }
        let shrinkage = width as f64 / (rows + width) as f64;
        let covariance = &centred * centred.transpose() / rows as f64;
        let mean_variance = covariance.trace() / width as f64;
        let shrunk = covariance * (1.0 - shrinkage) + DMatrix::identity(width, width) * (shrinkage * mean_variance);
        Some(Mahalanobis { mean, root: shrunk.cholesky()?.unpack() })
    }

    pub(super) fn score(&self, state: &[f32]) -> f64 {
        let centred = DVector::from_iterator(state.len(), state.iter().map(|&value| f64::from(value))) - &self.mean;
        self.root.solve_lower_triangular(&centred).map_or(f64::INFINITY, |whitened| whitened.norm_squared())
    }
}

/// How many mutants are compared.
pub(super) const MUTANTS: usize = 8;

/// Mutants as JailGuard makes them of pictures (Zhang et al., 2023): crops, turns, blur and noise.
fn mutants(picture: &RgbImage, generator: &mut ChaCha8Rng) -> [RgbImage; MUTANTS] {
    let mut noise = |width: f32| noisy(picture, || (width * (2.0 * random::uniform(generator) - 1.0)).round() as i16);
    let (faint, strong) = (noise(8.0), noise(16.0));
    [
        cropped(picture, (0, 0)),
        cropped(picture, (2, 2)),
        turned(picture, 5.0),
        turned(picture, -5.0),
        imageops::blur(picture, 1.0),
        imageops::flip_horizontal(picture),
        faint,
        strong,
    ]
}

/// Turned around the middle by so many degrees; what comes in from outside is the nearest pixel of the edge.
fn turned(picture: &RgbImage, degrees: f32) -> RgbImage {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    let (width, height) = picture.dimensions();
    let middle = |size: u32| (size as f32 - 1.0) / 2.0;
    RgbImage::from_fn(width, height, |x, y| {
        let (right, down) = (x as f32 - middle(width), y as f32 - middle(height));
        let from_x = (cosine * right + sine * down + middle(width)).clamp(0.0, width as f32 - 1.0);
        let from_y = (cosine * down - sine * right + middle(height)).clamp(0.0, height as f32 - 1.0);
        imageops::interpolate_bilinear(picture, from_x, from_y).unwrap_or(*picture.get_pixel(x, y))
    })
}

/// The largest divergence (Jensen and Shannon's) between the network's answers to any two mutants of a picture.
pub(super) fn disagreement(victim: &dyn Victim, picture: &RgbImage, generator: &mut ChaCha8Rng) -> Result<f64, Failure> {
    let mut answers = Vec::with_capacity(MUTANTS);
    for mutant in mutants(picture, generator) {
        answers.push(victim.answer(&mutant)?);
    }
    let pairs = (0..MUTANTS).flat_map(|a| (a + 1..MUTANTS).map(move |b| (a, b)));
    Ok(pairs.map(|(a, b)| divergence(&answers[a], &answers[b])).fold(0.0, f64::max))
}

fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let part = |own: f32, other: f32| {
        let (own, middle) = (f64::from(own), (f64::from(own) + f64::from(other)) / 2.0);
        if own > 0.0 { own * (own / middle).ln() / 2.0 } else { 0.0 }
    };
    a.iter().zip(b).map(|(&a, &b)| part(a, b) + part(b, a)).sum()
}

/// What pixels alone tell of high frequencies: the mean square and the median magnitude of the discrete Laplacian.
///
/// Edges make the first large wherever a picture has some; the second is near 0 for drawings, whose planes are even.
pub(super) fn roughness(picture: &RgbImage) -> [f64; 2] {
    let (width, height) = picture.dimensions();
    let mut magnitudes = Vec::with_capacity(3 * (width * height) as usize);
    for y in 1..height.saturating_sub(1) {
        for x in 1..width.saturating_sub(1) {
            let at = |x: u32, y: u32| picture.get_pixel(x, y).0.map(i32::from);
            let [middle, left, right, up, down] = [at(x, y), at(x - 1, y), at(x + 1, y), at(x, y - 1), at(x, y + 1)];
            magnitudes.extend((0..3).map(|of| (4 * middle[of] - left[of] - right[of] - up[of] - down[of]).abs()));
        }
    }
    if magnitudes.is_empty() {
        return [0.0; 2];
    }
    let energy = magnitudes.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / magnitudes.len() as f64;
    let middle = magnitudes.len() / 2;
    let (_, median, _) = magnitudes.select_nth_unstable(middle);
    // Many are equal where all are small integers: the energy settles which comes first.
    [energy, f64::from(*median) + energy / (energy + 1.0) / 2.0]
}
