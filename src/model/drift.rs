//! Whether what a model's stream asks of it has changed: ADWIN over the losses of its steps.
//!
//! [`Adwin`] (Bifet and Gavaldà, *Learning from Time-Changing Data with Adaptive Windowing*, SDM 2007) keeps the longest window of
//! newest values in which no two parts differ by more than chance allows, as an exponential histogram: of a window of n values it
//! holds about 5 log₂(n / 5) buckets. [`Drift`] gives it each step's mean loss, as the step's rows were predicted before they were
//! learned, and counts the cuts after which the loss is higher: a model that learns makes its own loss fall, and that is no drift.
//!
//! After a rise the window begins anew, so that one change is counted once. A rise of less than a tenth is not counted: with enough
//! steps chance allows hardly any, and a stream of pure noise shows some now and then.
//!
//! One row may have any loss (a regression's label of 1e15 has one of 1e30), and a window that held it would find every difference
//! small for ever. So losses come to the window as many at a time as lie between two looks, and are bounded by what the others
//! among them are: see `OUTLIERS`.
//!
//! It sees the losses in the order of the log and nothing else, and is part of what a checkpoint holds; so replay finds the same
//! drifts. It changes no weight.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::fold::Sequence;

/// Buckets of one size; one more, and the oldest two become one of the next size.
const ROW_BUCKETS: usize = 5;
/// Values between two looks for a change: with fewer, every look risks a false alarm for little that is new.
const LOOK_EVERY: u64 = 32;
/// Values that each of the two parts has at least.
const PART_VALUES: f64 = 5.0;
/// Values that there are at least before a look.
const LOOK_VALUES: f64 = 10.0;
/// Of the losses between two looks, how many may be as large as they like without being believed: each is taken for
/// [`BEYOND`] times the largest of the others at most. Where more of them are large, that is how the stream is, or a drift, and no
/// bound touches them. Two, because a bad row may come twice.
const OUTLIERS: usize = 2;
/// Large enough to leave losses alone that are merely spread (four times the third largest of 32 is rare), and small enough that a
/// window with two such values in it finds a threefold rise within a few looks, even where they come right before it.
const BEYOND: f64 = 4.0;
/// A loss that rises by less than this share of what it was is no drift, however sure the rise is.
const RISE: f64 = 0.1;

/// What is kept of a run of values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Bucket {
    values: f64,
    total: f64,
    /// The sum of squared deviations from the mean.
    deviation: f64,
    low: f64,
    high: f64,
}

impl Bucket {
    fn of(value: f64) -> Bucket {
        Bucket { values: 1.0, total: value, deviation: 0.0, low: value, high: value }
    }

    fn mean(&self) -> f64 {
        self.total / self.values
    }

    /// The two runs as one.
    fn with(&self, other: &Bucket) -> Bucket {
        let values = self.values + other.values;
        let apart = self.mean() - other.mean();
        Bucket {
            values,
            total: self.total + other.total,
            deviation: self.deviation + other.deviation + self.values * other.values * apart * apart / values,
            low: self.low.min(other.low),
            high: self.high.max(other.high),
        }
    }
}

/// How the mean of a window moved when it was cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// The mean of all of it.
    pub before: f64,
    /// The mean of what was left of it.
    pub after: f64,
}

/// A window over the newest values that forgets those before a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adwin {
    /// The probability at most, at each look, of seeing a change where there is none.
    delta: f64,
    /// Values so far, those that were forgotten too.
    seen: u64,
    /// Row i has buckets of 2^i values, the oldest first.
    rows: Vec<VecDeque<Bucket>>,
}

impl Adwin {
    /// An empty window; `delta` is between 0 and 1.
    pub fn new(delta: f64) -> Adwin {
        Adwin { delta, seen: 0, rows: Vec::new() }
    }

    /// Takes the next value, which is finite; how the mean moved, where older values were forgotten because of a change.
    pub fn push(&mut self, value: f64) -> Option<Shift> {
        self.insert(Bucket::of(value));
        self.seen += 1;
        if !self.seen.is_multiple_of(LOOK_EVERY) {
            return None;
        }
        let before = self.mean()?;
        let mut cut = false;
        while self.has_changed() {
            self.forget_oldest();
            cut = true;
        }
        self.mean().filter(|_| cut).map(|after| Shift { before, after })
    }

    /// The mean of the window; none while it is empty.
    pub fn mean(&self) -> Option<f64> {
        let (values, total) =
            self.oldest_first().fold((0.0, 0.0), |(values, total), bucket| (values + bucket.values, total + bucket.total));
        (values > 0.0).then(|| total / values)
    }

    /// Values in the window.
    pub fn width(&self) -> u64 {
        self.rows.iter().zip(0..).map(|(row, size)| (row.len() as u64) << size).sum()
    }

    fn insert(&mut self, bucket: Bucket) {
        let mut carried = Some(bucket);
        let mut size = 0;
        while let Some(bucket) = carried.take() {
            if self.rows.len() == size {
                self.rows.push(VecDeque::with_capacity(ROW_BUCKETS + 1));
            }
            let row = &mut self.rows[size];
            row.push_back(bucket);
            if row.len() > ROW_BUCKETS
                && let (Some(oldest), Some(next)) = (row.pop_front(), row.pop_front())
            {
                carried = Some(oldest.with(&next));
            }
            size += 1;
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(row) = self.rows.last_mut() {
            row.pop_front();
        }
        while self.rows.last().is_some_and(VecDeque::is_empty) {
            self.rows.pop();
        }
    }

    fn oldest_first(&self) -> impl Iterator<Item = &Bucket> {
        self.rows.iter().rev().flatten()
    }

    /// Made anew from the buckets at each look, so that no rounding adds up over the life of a model.
    fn whole(&self) -> Option<Bucket> {
        self.oldest_first().copied().reduce(|before, bucket| before.with(&bucket))
    }

    /// Whether the means before and after some bucket differ by more than chance allows.
    fn has_changed(&self) -> bool {
        let Some(whole) = self.whole().filter(|whole| whole.values > LOOK_VALUES) else { return false };
        let confidence = (2.0 * whole.values.ln() / self.delta).ln();
        let variance = whole.deviation / whole.values;
        // The paper's values are in 0 to 1. A loss has no such range, so the window's own stands for it: the test then gives the same
        // answer for a loss in another unit.
        let range = whole.high - whole.low;
        let (mut values, mut total) = (0.0, 0.0);
        self.oldest_first().any(|bucket| {
            values += bucket.values;
            total += bucket.total;
            let rest = whole.values - values;
            if values < PART_VALUES || rest < PART_VALUES {
                return false;
            }
            let parts = (values - PART_VALUES + 1.0).recip() + (rest - PART_VALUES + 1.0).recip();
            let chance = (2.0 * parts * variance * confidence).sqrt() + 2.0 / 3.0 * confidence * parts * range;
            (total / values - (whole.total - total) / rest).abs() > chance
        })
    }
}

/// The drifts of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    window: Adwin,
    /// Losses since the last look, which the window is given at the next.
    #[serde(default)]
    waiting: Vec<f64>,
    /// What the mean was before it rose by too little to be counted; many such rises are one that counts.
    #[serde(default)]
    level: Option<f64>,
    detected: u64,
    last_sequence: Option<Sequence>,
}

impl Drift {
    /// None yet; `delta` as in [`Adwin::new`].
    pub fn new(delta: f64) -> Drift {
        Drift { window: Adwin::new(delta), waiting: Vec::new(), level: None, detected: 0, last_sequence: None }
    }

    /// Takes the mean loss of the step that ends with row `last`; the rise, where one is noticed now.
    pub fn push(&mut self, loss: f64, last: Sequence) -> Option<Shift> {
        if !loss.is_finite() {
            return None;
        }
        self.waiting.push(loss);
        if !(self.window.seen + self.waiting.len() as u64).is_multiple_of(LOOK_EVERY) {
            return None;
        }
        let bound = bound(&self.waiting);
        let mut shift = None;
        for loss in std::mem::take(&mut self.waiting) {
            // The last of them is where the window looks.
            shift = self.window.push(loss.min(bound));
        }
        let rise = self.rise(shift?)?;
        // What is left of the window may hold values from before the change, which would be cut off bit by bit and counted each time.
        self.window = Adwin::new(self.window.delta);
        self.waiting.push(loss);
        self.detected += 1;
        self.last_sequence = Some(last);
        Some(rise)
    }

    /// How far the mean has risen with this shift and the small rises before it, if that is enough.
    fn rise(&mut self, Shift { before, after }: Shift) -> Option<Shift> {
        let level = self.level.take().map_or(before, |level| level.min(before));
        if after > before && after - level >= RISE * level.abs() {
            return Some(Shift { before: level, after });
        }
        self.level = (after > level).then_some(level);
        None
    }

    /// Drifts so far.
    pub fn detected(&self) -> u64 {
        self.detected
    }

    /// The last row of the step at which the newest was noticed.
    pub fn last_sequence(&self) -> Option<Sequence> {
        self.last_sequence
    }

    /// The mean loss of the steps since the newest change; none before the first step.
    pub fn mean_loss(&self) -> Option<f64> {
        let bound = bound(&self.waiting);
        let waiting: f64 = self.waiting.iter().map(|loss| loss.min(bound)).sum();
        let (held, of_window) = (self.window.width() as f64, self.window.mean().unwrap_or_default());
        let values = held + self.waiting.len() as f64;
        (values > 0.0).then(|| (held * of_window + waiting) / values)
    }
}

/// What each of these losses is taken for at most. None has a bound where there are no more than [`OUTLIERS`], or where the others
/// are all zero and so tell no scale.
fn bound(losses: &[f64]) -> f64 {
    let mut largest = losses.to_vec();
    largest.sort_unstable_by(|a, b| b.total_cmp(a));
    largest.get(OUTLIERS).filter(|&&scale| scale > 0.0).map_or(f64::INFINITY, |scale| BEYOND * scale)
}

/// For checkpoints from before drifts were looked for.
impl Default for Drift {
    fn default() -> Drift {
        Drift::new(0.002)
    }
}

#[cfg(test)]
mod tests;
