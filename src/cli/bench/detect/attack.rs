//! White-box attacks within a box around a picture: one step (FGSM: Goodfellow et al., 2015) or several (PGD: Madry et al., 2018), and
//! ones that know the detector as well.
//!
//! What comes out was written as PNG and read again, so that whatever is said of it holds for a file that can be sent.

use std::io::Cursor;

use candle_core::{Device, Tensor};
use image::{ImageFormat, RgbImage};
use rand_chacha::ChaCha8Rng;

use super::victim::{Seen, Victim};
use crate::cli::Failure;
use crate::encoder::picture;
use crate::network::random;

/// Where an attack wants the network's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Anywhere but at this class.
    Away(usize),
    /// At this class.
    Toward(usize),
}

impl Goal {
    /// Whether an answer is what was wanted.
    pub(super) fn is_met(self, class: usize) -> bool {
        match self {
            Goal::Away(own) => class != own,
            Goal::Toward(target) => class == target,
        }
    }

    /// By the logits, the gradient of what is to grow: the cross-entropy of the own class, or less of that of the target.
    fn pull(self, seen: &Seen) -> Vec<f32> {
        let mut gradient = seen.probabilities();
        match self {
            Goal::Away(own) => gradient[own] -= 1.0,
            Goal::Toward(target) => {
                gradient.iter_mut().for_each(|probability| *probability = -*probability);
                gradient[target] += 1.0;
            }
        }
        gradient
    }
}

/// How a picture is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Method {
    /// The most that a number from 0 to 255 may be changed by.
    pub(super) epsilon: u8,
    /// One is FGSM: a step of all of `epsilon` from the picture itself.
    pub(super) steps: usize,
}

/// A detector that the attack knows: `score = weights · states + bias`, which is to stay below the threshold.
pub(super) struct Evasion {
    /// By block; none where it is not read.
    pub(super) weights: Vec<Option<Vec<f32>>>,
    pub(super) bias: f64,
    pub(super) threshold: f64,
    /// What a unit of score above the threshold counts beside the loss.
    pub(super) lambda: f32,
}

impl Evasion {
    fn score(&self, seen: &Seen) -> f64 {
        let products = |(weights, state): (&Vec<f32>, &Vec<f32>)| -> f64 {
            weights.iter().zip(state).map(|(&weight, &value)| f64::from(weight) * f64::from(value)).sum()
        };
        let read = self.weights.iter().zip(&seen.states).filter_map(|(weights, state)| Some((weights.as_ref()?, state)));
        read.map(products).sum::<f64>() + self.bias
    }

    /// By the states, the gradient of `−λ · max(0, score − threshold)`.
    fn pull(&self, seen: &Seen) -> Vec<Option<Vec<f32>>> {
        if self.score(seen) <= self.threshold {
            return vec![None; self.weights.len()];
        }
        let scaled = |weights: &Vec<f32>| weights.iter().map(|weight| -self.lambda * weight).collect();
        self.weights.iter().map(|weights| weights.as_ref().map(scaled)).collect()
    }
}

/// Changes a picture towards a goal, and past a detector if there is one; the same generator gives the same picture.
pub(super) fn craft(
    victim: &dyn Victim,
    picture: &RgbImage,
    goal: Goal,
    method: Method,
    evasion: Option<&Evasion>,
    generator: &mut ChaCha8Rng,
) -> Result<RgbImage, Failure> {
    let side = victim.side();
    let origin = picture::tensor(std::slice::from_ref(picture))?.flatten_all()?.to_vec1::<f32>()?;
    let epsilon = f32::from(method.epsilon);
    let step = if method.steps == 1 { epsilon } else { epsilon / 4.0 };
    let mut at = origin.clone();
    if method.steps > 1 {
        for value in &mut at {
            *value = (*value + epsilon * (2.0 * random::uniform(generator) - 1.0)).clamp(0.0, 255.0);
        }
    }
    let blocks = victim.blocks().len();
    for _ in 0..method.steps {
        let pixels = Tensor::from_slice(&at, (1, 3, side, side), &Device::Cpu)?;
        let pull = |seen: &Seen| (goal.pull(seen), evasion.map_or_else(|| vec![None; blocks], |evasion| evasion.pull(seen)));
        let slope = victim.slope(&pixels, &pull)?.flatten_all()?.to_vec1::<f32>()?;
        for ((value, &origin), &slope) in at.iter_mut().zip(&origin).zip(&slope) {
            // No slope, no step: the sign of 0 is not 1 here.
            let moved = if slope == 0.0 { *value } else { *value + step * slope.signum() };
            *value = moved.clamp(origin - epsilon, origin + epsilon).clamp(0.0, 255.0);
        }
    }
    stored(&from_planes(&at, side))
}

/// Numbers from 0 to 255, red's plane first, as the nearest bytes.
fn from_planes(planes: &[f32], side: usize) -> RgbImage {
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let at = y as usize * side + x as usize;
        image::Rgb([0, 1, 2].map(|channel| planes[channel * side * side + at].round() as u8))
    })
}

/// A picture as PNG.
pub(super) fn png(picture: &RgbImage) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
    Ok(bytes)
}

/// A picture, written as PNG and read again.
pub(super) fn stored(picture: &RgbImage) -> Result<RgbImage, Failure> {
    Ok(picture::decode(&png(picture)?)?)
}
