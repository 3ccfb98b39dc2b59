//! Running statistics of hidden states by class: counts, means, and how states lie around the mean of their own class.
//!
//! Welford's recurrence (1962) row by row in f64, so that statistics do not depend on how rows were cut into steps. The covariance
//! within classes is pooled: each row is taken by its distance from its own class's mean.

use candle_core::{Result, Tensor};
use nalgebra::{DMatrix, DVector};

use super::probe::Probe;
use crate::network::tensor::{read, tensor};

/// How much of the covariance is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// Each feature's variance.
    Variances,
    /// All of it.
    Covariance,
}

/// Statistics of the two classes.
#[derive(Debug)]
pub(super) struct Moments {
    pub(super) counts: [u64; 2],
    width: usize,
    spread: Spread,
    /// `[2, width]`
    means: Tensor,
    /// Sums of squared deviations `[width]`, or of products of deviations `[width, width]`.
    scatter: Tensor,
}

pub(super) const NAMES: [&str; 2] = ["means", "scatter"];

/// The score of the mean of adversarial states; that of benign ones is its opposite.
const MEAN_SCORE: f64 = 2.0;

impl Moments {
    pub(super) fn new(width: usize, spread: Spread) -> Result<Moments> {
        let means = tensor(vec![0f64; 2 * width], &[2, width])?;
        let scatter = match spread {
            Spread::Variances => tensor(vec![0f64; width], &[width])?,
            Spread::Covariance => tensor(vec![0f64; width * width], &[width, width])?,
        };
        Ok(Moments { counts: [0; 2], width, spread, means, scatter })
    }

    /// Bytes of the tensors; while rows are taken in or a direction is found there are twice as many.
    pub(super) fn bytes(width: usize, spread: Spread) -> u64 {
        let width = width as u64;
        let scatter = if spread == Spread::Covariance { width * width } else { width };
        8 * (2 * width + scatter)
    }

    pub(super) fn tensors(&self) -> [&Tensor; 2] {
        [&self.means, &self.scatter]
    }

    /// Goes on from tensors that [`Moments::tensors`] lent; an error says which has another shape.
    pub(super) fn restore(&mut self, counts: [u64; 2], tensors: [Tensor; 2]) -> std::result::Result<(), String> {
        for ((name, like), tensor) in NAMES.iter().zip(self.tensors()).zip(&tensors) {
            if tensor.shape() != like.shape() || tensor.dtype() != like.dtype() {
                return Err(format!("{name} is {:?}, expected {:?}", tensor.shape(), like.shape()));
            }
        }
        let [means, scatter] = tensors;
        (self.counts, self.means, self.scatter) = (counts, means, scatter);
        Ok(())
    }

    /// Takes states with their classes in, first to last.
    pub(super) fn take_in<'a>(&mut self, states: impl Iterator<Item = (&'a [f32], u32)>) -> Result<()> {
        let (mut means, mut scatter) = (read::<f64>(&self.means)?.to_vec(), read::<f64>(&self.scatter)?.to_vec());
        let width = self.width;
        let (mut before, mut after) = (vec![0.0; width], vec![0.0; width]);
        for (state, class) in states {
            let class = usize::from(class != super::BENIGN);
            self.counts[class] += 1;
            let count = self.counts[class] as f64;
            let mean = &mut means[class * width..(class + 1) * width];
            for (at, &value) in state.iter().enumerate() {
                before[at] = f64::from(value) - mean[at];
                mean[at] += before[at] / count;
                after[at] = f64::from(value) - mean[at];
            }
            match self.spread {
                Spread::Variances => {
                    for (sum, (before, after)) in scatter.iter_mut().zip(before.iter().zip(&after)) {
                        *sum += before * after;
                    }
                }
                Spread::Covariance => {
                    for (row, &before) in scatter.chunks_exact_mut(width).zip(&before) {
                        for (sum, after) in row.iter_mut().zip(&after) {
                            *sum += before * after;
                        }
                    }
                }
            }
        }
        self.means = tensor(means, &[2, width])?;
        self.scatter = tensor(scatter, self.scatter.dims())?;
        Ok(())
    }

    /// The means of benign and of adversarial states.
    pub(super) fn means(&self) -> Result<[Vec<f64>; 2]> {
        let means = read::<f64>(&self.means)?;
        Ok([means[..self.width].to_vec(), means[self.width..].to_vec()])
    }

    /// How far a state lies along a direction of length 1 from the mean of benign ones, by their standard deviation there as it would be if
    /// features were uncorrelated. Nothing is known of adversarial states, so this is no log of odds.
    pub(super) fn distance_along(&self, direction: &[f32]) -> Result<Probe> {
        let [benign, _] = self.means()?;
        let (scatter, freedom) = (read::<f64>(&self.scatter)?, self.counts[0].saturating_sub(1).max(1) as f64);
        let variance: f64 = direction.iter().zip(&*scatter).map(|(&unit, sum)| f64::from(unit).powi(2) * sum / freedom).sum();
        if variance <= 0.0 {
            return Ok(Probe::new(self.width));
        }
        let weights: Vec<f32> = direction.iter().map(|&unit| (f64::from(unit) / variance.sqrt()) as f32).collect();
        let bias = -weights.iter().zip(&benign).map(|(&weight, mean)| f64::from(weight) * mean).sum::<f64>();
        Ok(Probe { weights, bias })
    }

    /// The direction from benign to adversarial states: the difference d of the means where only variances are kept, Fisher's `Σ⁻¹ d` where
    /// there is a covariance. Σ is shrunk towards its mean variance by `width / (rows + width)`, so that it can be inverted from the second row of a
    /// class on.
    ///
    /// Scores are scaled so that the means have [`MEAN_SCORE`] and its opposite. Fisher's own scale would make them logs of odds, if states
    /// were normal and Σ were known: with fewer rows than features they come out in the hundreds, which no probability of 32 bits tells
    /// apart. A threshold does not depend on the scale.
    ///
    /// Until both classes have been seen there is nothing to tell, and every score is 0.
    pub(super) fn discriminant(&self) -> Result<Probe> {
        let [benign, adversarial] = self.means()?;
        let difference: Vec<f64> = adversarial.iter().zip(&benign).map(|(adversarial, benign)| adversarial - benign).collect();
        let direction = match self.spread {
            _ if self.counts.contains(&0) => None,
            Spread::Variances => Some(difference.clone()),
            Spread::Covariance => self.whitened(&difference)?,
        };
        let apart = |direction: &[f64]| direction.iter().zip(&difference).map(|(a, b)| a * b).sum::<f64>();
        let scaled = direction.map(|direction| (2.0 * MEAN_SCORE / apart(&direction), direction));
        let Some((scale, direction)) = scaled.filter(|(scale, _)| scale.is_finite()) else { return Ok(Probe::new(self.width)) };
        let weights: Vec<f32> = direction.iter().map(|&value| (value * scale) as f32).collect();
        let centre = benign.iter().zip(&adversarial).map(|(benign, adversarial)| (benign + adversarial) / 2.0);
        let bias = -weights.iter().zip(centre).map(|(&weight, centre)| f64::from(weight) * centre).sum::<f64>();
        Ok(Probe { weights, bias })
    }

    /// `Σ⁻¹ d`; none where Σ cannot be inverted, because nothing varies.
    fn whitened(&self, difference: &[f64]) -> Result<Option<Vec<f64>>> {
        let (width, rows) = (self.width, self.counts[0] + self.counts[1]);
        let scatter = read::<f64>(&self.scatter)?;
        let shrinkage = width as f64 / (rows as f64 + width as f64);
        // Σ up to a factor, which the scale of scores takes out again.
        let mean_variance = (0..width).map(|at| scatter[at * width + at]).sum::<f64>() / width as f64;
        let mut covariance = DMatrix::from_row_slice(width, width, &scatter) * (1.0 - shrinkage);
        for at in 0..width {
            covariance[(at, at)] += shrinkage * mean_variance;
        }
        Ok(covariance.cholesky().map(|factors| factors.solve(&DVector::from_column_slice(difference)).as_slice().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::RngCore;

    use super::*;
    use crate::network::random;

    /// A number that is nearly normal: mean 0, variance 1.
    fn normal(generator: &mut impl RngCore) -> f64 {
        (0..12).map(|_| f64::from(random::uniform(generator))).sum::<f64>() - 6.0
    }

    /// States around `±shift/2` by class, correlated by `mix`.
    fn planted(rows: usize, shift: &[f64], mix: impl Fn(&[f64]) -> Vec<f64>) -> Vec<(Vec<f32>, u32)> {
        let mut generator = random::stream(7, 0, "planted");
        let row = |index: usize| {
            let class = (index % 2) as u32;
            let noise: Vec<f64> = shift.iter().map(|_| normal(&mut generator)).collect();
            let side = f64::from(class) - 0.5;
            let state = mix(&noise).iter().zip(shift).map(|(noise, shift)| (noise + side * shift) as f32).collect();
            (state, class)
        };
        (0..rows).map(row).collect()
    }

    fn learned(rows: &[(Vec<f32>, u32)], spread: Spread) -> Moments {
        let mut moments = Moments::new(rows[0].0.len(), spread).unwrap();
        moments.take_in(rows.iter().map(|(state, class)| (state.as_slice(), *class))).unwrap();
        moments
    }

    fn cosine(a: &[f32], b: &[f64]) -> f64 {
        let dot = |a: &mut dyn Iterator<Item = (f64, f64)>| a.map(|(a, b)| a * b).sum::<f64>();
        let a: Vec<f64> = a.iter().map(|&value| f64::from(value)).collect();
        let norm = |v: &[f64]| dot(&mut v.iter().copied().zip(v.iter().copied())).sqrt();
        dot(&mut a.iter().copied().zip(b.iter().copied())) / norm(&a) / norm(b)
    }

    #[test]
    fn a_planted_direction_is_found() {
        let shift = [3.0, 0.0, -4.0, 0.0, 0.0];
        let rows = planted(20_000, &shift, <[f64]>::to_vec);
        for spread in [Spread::Variances, Spread::Covariance] {
            let probe = learned(&rows, spread).discriminant().unwrap();
            assert!(cosine(&probe.weights, &shift) > 0.999, "{spread:?}");
            let score = |side: f64| probe.score(&shift.map(|shift| (side * shift) as f32));
            assert!((score(0.5) - MEAN_SCORE).abs() < 0.05 && (score(-0.5) + MEAN_SCORE).abs() < 0.05, "{spread:?}");
        }
    }

    #[test]
    fn whitening_finds_what_correlation_hides() {
        // Both features have the same noise; the classes differ in the first. Their difference shows it, the first alone hardly.
        let mix = |noise: &[f64]| vec![5.0 * noise[0] + 0.3 * noise[1], 5.0 * noise[0]];
        let rows = planted(4000, &[1.0, 0.0], mix);
        let right = |spread: Spread| {
            let probe = learned(&rows, spread).discriminant().unwrap();
            rows.iter().filter(|(state, class)| (probe.score(state) > 0.0) == (*class == 1)).count() as f64 / rows.len() as f64
        };
        assert!(right(Spread::Variances) < 0.6, "{}", right(Spread::Variances));
        assert!(right(Spread::Covariance) > 0.9, "{}", right(Spread::Covariance));
    }

    #[test]
    fn steps_do_not_show_and_one_class_tells_nothing() {
        let rows = planted(9, &[1.0, 2.0], <[f64]>::to_vec);
        let at_once = learned(&rows, Spread::Covariance);
        let mut one_by_one = Moments::new(2, Spread::Covariance).unwrap();
        for (state, class) in &rows {
            one_by_one.take_in(std::iter::once((state.as_slice(), *class))).unwrap();
        }
        for (a, b) in at_once.tensors().iter().zip(one_by_one.tensors()) {
            assert_eq!(*read::<f64>(a).unwrap(), *read::<f64>(b).unwrap());
        }
        let benign: Vec<_> = rows.into_iter().filter(|(_, class)| *class == 0).collect();
        assert_eq!(learned(&benign, Spread::Covariance).discriminant().unwrap(), Probe::new(2));
        let same = [(vec![1.0f32, 1.0], 0), (vec![1.0, 1.0], 1)];
        for spread in [Spread::Variances, Spread::Covariance] {
            assert_eq!(learned(&same, spread).discriminant().unwrap(), Probe::new(2), "{spread:?}: nothing varies");
        }
    }
}
