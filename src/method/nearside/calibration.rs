//! Where a detector's threshold comes from: the paper's midpoint of the classes, or benign states that were held out.
//!
//! Split conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002): with n benign scores that the direction has not learned from,
//! the threshold is the k-th smallest, k = ⌈(n + 1)(1 − α)⌉. A benign input like them is called adversarial with a chance of at most α,
//! whatever the scores' distribution. How often it really happens with the n that were drawn follows Beta(n + 1 − k, k), where
//! scores are distinct: its central 95 % are told with the threshold. With k > n there are too few.
//!
//! What is kept are states and not scores: a direction that has moved on scores them anew, so the threshold is always of the
//! direction that it is used with.

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF};
use statrs::function::beta::ln_beta;

use super::evaluation::Interval;
use super::probe::Probe;
use crate::network::tensor::{read, tensor};

/// Where the threshold comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", from = "Said")]
pub enum Mode {
    /// Half way between the mean scores of the classes: the paper's. It holds no rate of false alarms.
    #[default]
    Midpoint,
    /// Held-out benign states, for a rate of false alarms.
    Conformal {
        /// The most of benign inputs that may be called adversarial, between 0 and 1.
        target_fpr: f64,
    },
}

/// A mode as it is read: a variant without members would let pass a rate that is said beside it.
#[derive(Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    Midpoint {},
    Conformal { target_fpr: f64 },
}

impl From<Said> for Mode {
    fn from(said: Said) -> Self {
        match said {
            Said::Midpoint {} => Mode::Midpoint,
            Said::Conformal { target_fpr } => Mode::Conformal { target_fpr },
        }
    }
}

impl Mode {
    /// Whether a detector that keeps so many held-out rows can have it at all; the text says what is wrong.
    ///
    /// # Errors
    /// The rate is none, or needs more rows.
    pub fn validate(self, kept: usize) -> std::result::Result<(), String> {
        match self {
            Mode::Conformal { target_fpr } if !(target_fpr > 0.0 && target_fpr < 1.0) => {
                Err(format!("target_fpr is {target_fpr}, but must be between 0 and 1"))
            }
            _ if self.rows_needed() > kept => {
                Err(format!("this rate needs {} held-out rows, and this detector keeps {kept}", self.rows_needed()))
            }
            _ => Ok(()),
        }
    }

    /// How many held-out rows it needs.
    pub fn rows_needed(self) -> usize {
        match self {
            Mode::Midpoint => 0,
            // The least n with ⌈(n + 1)(1 − α)⌉ ≤ n, rounded as there. A rate may be as small as a number can be.
            Mode::Conformal { target_fpr } => (((1.0 - ROUNDED) / target_fpr).ceil() as usize).saturating_sub(1).max(1),
        }
    }
}

/// What a rate may have lost by being written down: 99 rows are enough for one in a hundred.
const ROUNDED: f64 = 1e-9;

/// ⌈(n + 1)(1 − α)⌉, and at least 1.
fn rank(rows: usize, target_fpr: f64) -> usize {
    ((rows as f64 + 1.0) * (1.0 - target_fpr) - ROUNDED).ceil().max(1.0) as usize
}

/// A score above which inputs are called adversarial.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Threshold {
    /// Where it comes from.
    #[serde(flatten)]
    pub mode: Mode,
    /// The threshold itself.
    pub score: f64,
    /// Held-out rows behind it; 0 for the midpoint.
    pub calibration_rows: usize,
    /// Where the rate of false alarms lies with 95 % confidence, for benign inputs like the held-out ones; none for the midpoint.
    pub fpr_interval: Option<Interval>,
}

impl Threshold {
    /// Half way between the mean scores of the classes.
    pub fn midpoint(probe: &Probe, means: &[Vec<f64>; 2]) -> Threshold {
        let of = |mean: &[f64]| probe.weights.iter().zip(mean).map(|(&weight, mean)| f64::from(weight) * mean).sum::<f64>();
        let score = (of(&means[0]) + of(&means[1])) / 2.0 + probe.bias;
        Threshold { mode: Mode::Midpoint, score, calibration_rows: 0, fpr_interval: None }
    }

    /// For this rate of false alarms, from benign scores that the direction has not learned from; none where they are too few.
    pub fn conformal(mut scores: Vec<f64>, target_fpr: f64) -> Option<Threshold> {
        let rows = scores.len();
        let rank = rank(rows, target_fpr);
        if rank > rows {
            return None;
        }
        let (_, score, _) = scores.select_nth_unstable_by(rank - 1, f64::total_cmp);
        let beta = Beta::new((rows + 1 - rank) as f64, rank as f64).ok()?;
        let fpr_interval = Some(Interval { low: beta.inverse_cdf(0.025), high: beta.inverse_cdf(0.975) });
        Some(Threshold { mode: Mode::Conformal { target_fpr }, score: *score, calibration_rows: rows, fpr_interval })
    }
}

/// Where the share of false alarms among `of` further benign inputs lies in 95 of 100 draws of both, where `rows` are held out: the
/// beta-binomial law of [`Threshold::conformal`]. None where the rows are too few.
pub fn achieved_rate(rows: usize, target_fpr: f64, of: u64) -> Option<Interval> {
    let rank = rank(rows, target_fpr);
    if rank > rows || of == 0 {
        return None;
    }
    let (a, b, n) = ((rows + 1 - rank) as f64, rank as f64, of as f64);
    let chance = |count: u64| {
        let hits = count as f64;
        (ln_beta(hits + a, n - hits + b) - ln_beta(a, b) - ln_beta(hits + 1.0, n - hits + 1.0) - (n + 1.0).ln()).exp()
    };
    let quantile = |share: f64| {
        let mut sum = 0.0;
        let reached = |count: &u64| {
            sum += chance(*count);
            sum >= share
        };
        (0..of).find(reached).unwrap_or(of) as f64 / n
    };
    Some(Interval { low: quantile(0.025), high: quantile(0.975) })
}

/// The newest benign states that are held out.
#[derive(Debug)]
pub(super) struct Kept {
    /// `[capacity, width]`
    states: Tensor,
    /// How many were ever kept; the newest take the places of the oldest.
    pub(super) seen: u64,
}

pub(super) const NAME: &str = "calibration";

impl Kept {
    pub(super) fn new(capacity: usize, width: usize) -> Result<Kept> {
        Ok(Kept { states: Tensor::zeros((capacity, width), DType::F32, &Device::Cpu)?, seen: 0 })
    }

    /// Bytes of the states; while one is added there are twice as many.
    pub(super) fn bytes(capacity: usize, width: usize) -> u64 {
        4 * capacity as u64 * width as u64
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.states
    }

    pub(super) fn restore(&mut self, seen: u64, states: Tensor) -> std::result::Result<(), String> {
        if states.shape() != self.states.shape() || states.dtype() != DType::F32 {
            return Err(format!("{NAME} is {:?}, expected {:?}", states.shape(), self.states.shape()));
        }
        (self.seen, self.states) = (seen, states);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.states.dims().first().copied().unwrap_or(0)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.capacity().min(self.seen as usize)
    }

    pub(super) fn push<'a>(&mut self, new: impl Iterator<Item = &'a [f32]>) -> Result<()> {
        let (capacity, shape) = (self.capacity(), self.states.dims().to_vec());
        let width = shape.get(1).copied().unwrap_or(0);
        let mut new = new.peekable();
        if new.peek().is_none() {
            return Ok(());
        }
        let mut states = read::<f32>(&self.states)?.to_vec();
        for state in new {
            let place = (self.seen % capacity.max(1) as u64) as usize;
            states[place * width..(place + 1) * width].copy_from_slice(state);
            self.seen += 1;
        }
        self.states = tensor(states, &shape)?;
        Ok(())
    }

    /// Those that are there, one after the other.
    pub(super) fn states(&self) -> Result<Vec<f32>> {
        let width = self.states.dims().get(1).copied().unwrap_or(0);
        Ok(read::<f32>(&self.states)?[..self.len() * width].to_vec())
    }

    pub(super) fn scores(&self, probe: &Probe) -> Result<Vec<f64>> {
        Ok(probe.scores(&read::<f32>(&self.states)?[..self.len() * probe.weights.len()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::random;

    #[test]
    fn a_rate_needs_so_many_rows() {
        for (target_fpr, needed) in [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999), (0.3, 3)] {
            let mode = Mode::Conformal { target_fpr };
            assert_eq!(mode.rows_needed(), needed, "{target_fpr}");
            let scores = |rows: usize| (0..rows).map(|row| row as f64).collect();
            assert!(Threshold::conformal(scores(needed - 1), target_fpr).is_none());
            assert_eq!(Threshold::conformal(scores(needed), target_fpr).unwrap().score, (needed - 1) as f64, "{target_fpr}");
        }
        for bad in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY, 1e-300, f64::MIN_POSITIVE] {
            assert!(Mode::Conformal { target_fpr: bad }.validate(1000).is_err(), "{bad}");
        }
        let nearly_all = Mode::Conformal { target_fpr: 1.0 - 1e-12 };
        assert_eq!((nearly_all.validate(1), nearly_all.rows_needed()), (Ok(()), 1));
        assert!(Threshold::conformal(vec![2.0], 1.0 - 1e-12).is_some());
        let hundredth = Mode::Conformal { target_fpr: 0.01 };
        assert!(hundredth.validate(98).is_err() && hundredth.validate(99).is_ok());
    }

    #[test]
    fn a_mode_is_read_with_its_members_and_no_others() {
        let read = |text: &str| serde_json::from_str::<Mode>(text);
        for mode in [Mode::Midpoint, Mode::Conformal { target_fpr: 0.25 }] {
            assert_eq!(read(&serde_json::to_string(&mode).unwrap()).unwrap(), mode);
        }
        for text in [r#"{"mode":"midpoint","target_fpr":0.01}"#, r#"{"mode":"conformal"}"#, r#"{"mode":"other"}"#, "{}"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    /// Over many draws the rate of false alarms is at most the target, and lies in the interval as often as that says.
    #[test]
    fn the_rate_is_held_and_lies_in_its_interval() {
        let (target, resamples, rows) = (0.05, 1000, 199);
        let (mut sum, mut inside) = (0.0, 0);
        for resample in 0..resamples {
            let mut generator = random::stream(3, resample, "conformal");
            // Uniform scores: the rate of false alarms is 1 − threshold.
            let scores = (0..rows).map(|_| f64::from(random::uniform(&mut generator))).collect();
            let threshold = Threshold::conformal(scores, target).unwrap();
            let rate = 1.0 - threshold.score;
            sum += rate;
            let interval = threshold.fpr_interval.unwrap();
            inside += u32::from(interval.contains(rate));
        }
        let mean = sum / resamples as f64;
        assert!((mean - target).abs() < 0.002, "{mean}");
        assert!((930..=970).contains(&inside), "{inside} of 1000");
    }

    #[test]
    fn what_further_rows_show_lies_where_it_should() {
        let (target, rows, of, resamples) = (0.05, 99, 200, 1000);
        let expected = achieved_rate(rows, target, of).unwrap();
        assert!(expected.contains(target) && expected.low < 0.02 && expected.high > 0.1, "{expected:?}");
        let inside = (0..resamples).filter(|&resample| {
            let mut generator = random::stream(4, resample, "achieved");
            let mut draw = |count: usize| (0..count).map(|_| f64::from(random::uniform(&mut generator))).collect::<Vec<f64>>();
            let (held_out, further) = (draw(rows), draw(of as usize));
            let threshold = Threshold::conformal(held_out, target).unwrap().score;
            let rate = further.iter().filter(|&&score| score > threshold).count() as f64 / of as f64;
            expected.contains(rate)
        });
        let inside = inside.count();
        assert!((940..=975).contains(&inside), "{inside} of 1000");
        assert!(achieved_rate(98, 0.01, 10).is_none() && achieved_rate(99, 0.01, 0).is_none());
    }

    #[test]
    fn the_newest_states_are_kept() {
        let mut kept = Kept::new(3, 1).unwrap();
        let probe = Probe { weights: vec![1.0], bias: 0.0 };
        kept.push([[1.0f32].as_slice(), &[2.0]].into_iter()).unwrap();
        assert_eq!((kept.len(), kept.scores(&probe).unwrap()), (2, vec![1.0, 2.0]));
        kept.push([[3.0f32].as_slice(), &[4.0]].into_iter()).unwrap();
        assert_eq!((kept.len(), kept.scores(&probe).unwrap()), (3, vec![4.0, 2.0, 3.0]));
    }

    #[test]
    fn the_midpoint_lies_between_the_means() {
        let probe = Probe { weights: vec![2.0, 0.0], bias: 1.0 };
        let threshold = Threshold::midpoint(&probe, &[vec![0.0, 5.0], vec![3.0, -5.0]]);
        assert_eq!((threshold.score, threshold.fpr_interval), (4.0, None));
    }
}
