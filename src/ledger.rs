//! The ledger: what each part of a model holds, in bytes, counted by guards that give the bytes back when they are dropped.
//!
//! A plan predicts these figures, the ledger counts them, the allocator sees them: three columns of one table that tests hold
//! to each other. The ledger counts at the moment that storage is taken, so its high-water mark is exact and not sampled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Part {
    /// The newest weights, and the statistics of standardising layers.
    Weights,
    /// Older versions of the weights that a step in flight may still read.
    WeightVersions,
    /// Versions of the weights held only for readers.
    Snapshots,
    /// Moments and momenta.
    Optimiser,
    /// Running means of gradient compensation.
    Compensation,
    /// Inputs, outputs and stashes of the steps in flight.
    Activations,
    /// Gradients, of weights and of activations, and accumulators.
    Gradients,
    /// Scratch of the kernels.
    Workspace,
    /// What a learner keeps: replay buffer, teacher, importance of weights.
    Learner,
    /// Records read from the log and not yet learned.
    QueuedRows,
}

impl Part {
    /// All parts, in the order of their numbers.
    pub const ALL: [Part; 10] = [
        Part::Weights,
        Part::WeightVersions,
        Part::Snapshots,
        Part::Optimiser,
        Part::Compensation,
        Part::Activations,
        Part::Gradients,
        Part::Workspace,
        Part::Learner,
        Part::QueuedRows,
    ];

    /// The part's name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Part::Weights => "weights",
            Part::WeightVersions => "weight_versions",
            Part::Snapshots => "snapshots",
            Part::Optimiser => "optimiser",
            Part::Compensation => "compensation",
            Part::Activations => "activations",
            Part::Gradients => "gradients",
            Part::Workspace => "workspace",
            Part::Learner => "learner",
            Part::QueuedRows => "queued_rows",
        }
    }
}

#[derive(Debug, Default)]
struct Accounts {
    parts: [AtomicU64; Part::ALL.len()],
    parts_high_water: [AtomicU64; Part::ALL.len()],
    total: AtomicU64,
    high_water: AtomicU64,
}

impl Accounts {
    fn grow(&self, part: Part, bytes: u64) {
        let used = self.parts[part as usize].fetch_add(bytes, Relaxed) + bytes;
        self.parts_high_water[part as usize].fetch_max(used, Relaxed);
    }
}

/// One model's ledger; clones share the same accounts.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Accounts>);

impl Ledger {
    /// Counts `bytes` for `part` until the guard is dropped.
    pub fn take(&self, part: Part, bytes: u64) -> Guard {
        self.0.grow(part, bytes);
        let total = self.0.total.fetch_add(bytes, Relaxed) + bytes;
        self.0.high_water.fetch_max(total, Relaxed);
        Guard { ledger: self.clone(), part: AtomicU8::new(part as u8), bytes }
    }

    /// Bytes held for `part`.
    pub fn used(&self, part: Part) -> u64 {
        self.0.parts[part as usize].load(Relaxed)
    }

    /// Bytes held in all.
    pub fn total(&self) -> u64 {
        self.0.total.load(Relaxed)
    }

    /// The most bytes held at once since the start or the last [`Ledger::reset_high_water`].
    pub fn high_water(&self) -> u64 {
        self.0.high_water.load(Relaxed)
    }

    /// The most bytes held for `part` at once since then; the parts need not have been at their most at one moment.
    pub fn part_high_water(&self, part: Part) -> u64 {
        self.0.parts_high_water[part as usize].load(Relaxed)
    }

    /// Starts a new measurement of the high-water marks from the present level, as after a change of the budget.
    pub fn reset_high_water(&self) {
        self.0.high_water.store(self.total(), Relaxed);
        for (most, now) in self.0.parts_high_water.iter().zip(&self.0.parts) {
            most.store(now.load(Relaxed), Relaxed);
        }
    }
}

/// Bytes counted in a [`Ledger`], given back when this is dropped.
#[derive(Debug)]
pub struct Guard {
    ledger: Ledger,
    part: AtomicU8,
    bytes: u64,
}

impl Guard {
    /// Counts the same bytes for another part from now on: weights that only readers still hold are snapshots.
    pub fn reclassify(&self, part: Part) {
        let before = self.part.swap(part as u8, Relaxed);
        self.ledger.0.parts[before as usize].fetch_sub(self.bytes, Relaxed);
        self.ledger.0.grow(part, self.bytes);
    }

    /// The bytes that this guard stands for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let part = self.part.load(Relaxed);
        self.ledger.0.parts[part as usize].fetch_sub(self.bytes, Relaxed);
        self.ledger.0.total.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_give_back_what_they_took() {
        let ledger = Ledger::default();
        let weights = ledger.take(Part::Weights, 100);
        let activations = ledger.take(Part::Activations, 50);
        assert_eq!((ledger.used(Part::Weights), ledger.used(Part::Activations), ledger.total()), (100, 50, 150));
        weights.reclassify(Part::Snapshots);
        assert_eq!((ledger.used(Part::Weights), ledger.used(Part::Snapshots), ledger.total()), (0, 100, 150));
        drop(weights);
        drop(activations);
        assert_eq!((ledger.used(Part::Snapshots), ledger.total(), ledger.high_water()), (0, 0, 150));
        ledger.reset_high_water();
        assert_eq!(ledger.high_water(), 0);
    }
}
