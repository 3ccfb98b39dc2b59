//! A plan: how a network is cut into stages, what a forward reads, when readers get new weights, and the bytes that all this
//! holds. Choosing one is planning, following one is not: replay follows the plans that it finds in the decision log.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::profile::{StepBytes, parameter_bytes, step_bytes, weight_bytes};
use crate::fold::BelowMinimum;
use crate::network::{Network, Optimiser};

/// What one model takes beside the storages that are counted one by one: names, channels, scores, the tensors' own headers.
const OVERHEAD_BYTES: u64 = 32 << 10;

/// When the newest weights are handed to readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publication {
    /// At any step: a reader may still hold the last snapshot while the next one is made, so up to two more copies.
    Continuous,
    /// With no step in flight, and the trainer goes on when no reader holds an older one: one more copy.
    AtDrain,
}

impl Publication {
    /// Copies of the weights that readers may hold beside the trainer's own.
    pub fn copies(self) -> usize {
        match self {
            Publication::Continuous => 2,
            Publication::AtDrain => 1,
        }
    }
}

/// The bytes that a plan holds at most, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBytes {
    /// The newest weights.
    pub weights: u64,
    /// Copies that only readers hold.
    pub snapshots: u64,
    /// Moments and momenta.
    pub optimiser: u64,
    /// One step at its peak.
    pub step: StepBytes,
    /// Records read from the log and not yet learned.
    pub queued_rows: u64,
    /// Everything too small to count.
    pub overhead: u64,
}

impl PlannedBytes {
    /// What the plan needs of a budget.
    pub fn total(&self) -> u64 {
        self.weights + self.snapshots + self.optimiser + self.step.total() + self.queued_rows + self.overhead
    }
}

/// Which version of a stage a step's forward reads. Other pipelines are other functions of the same plan and ordinal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// Ferret's a − N(P − j), for step a, stage j of P, and N workers.
    Ferret,
}

/// How a network is trained from the step `start` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The ordinal of the first step under this plan.
    pub start: u64,
    /// The layers of each stage, from the input's side on.
    pub stages: Vec<Range<usize>>,
    /// Workers N: steps that take turns in the pipeline.
    pub workers: u64,
    /// What forwards read.
    pub reads: Reads,
    /// Rows of a step, at most.
    pub step_rows: usize,
    /// When readers get new weights.
    pub publication: Publication,
    /// What it was reckoned to hold.
    pub bytes: PlannedBytes,
}

impl Plan {
    /// The version of stage `stage` that the forward of step `ordinal` reads, exactly: the number of steps whose updates it
    /// holds. Ferret's rule names versions by their last step; so many steps held are one more. Before the plan's start it is the
    /// version that the plan began with.
    pub fn read(&self, ordinal: u64, stage: usize) -> u64 {
        match self.reads {
            Reads::Ferret => {
                let lag = self.workers * (self.stages.len() - stage) as u64;
                (ordinal + 1).saturating_sub(lag).max(self.start)
            }
        }
    }
}

/// What a planner must know of one model.
pub struct Planner<'a> {
    /// What is trained.
    pub network: &'a Network,
    /// How.
    pub optimiser: &'a Optimiser,
    /// Rows of a step.
    pub step_rows: usize,
    /// Bytes of records that the driver holds at most.
    pub queued_bytes: u64,
}

impl Planner<'_> {
    fn with(&self, start: u64, publication: Publication) -> Plan {
        let weights = weight_bytes(self.network);
        let bytes = PlannedBytes {
            weights,
            snapshots: weights * publication.copies() as u64,
            optimiser: parameter_bytes(self.network) * self.optimiser.state_count() as u64,
            step: step_bytes(self.network, self.step_rows, self.optimiser.fuses()),
            queued_rows: self.queued_bytes,
            overhead: OVERHEAD_BYTES,
        };
        let stages = std::iter::once(0..self.network.layers.len()).collect();
        Plan { start, stages, workers: 1, reads: Reads::Ferret, step_rows: self.step_rows, publication, bytes }
    }

    /// The plan that needs the least memory.
    pub fn minimum(&self, start: u64) -> Plan {
        self.with(start, Publication::AtDrain)
    }

    /// The best plan within `budget_bytes`, from step `start` on.
    pub fn choose(&self, start: u64, budget_bytes: Option<u64>) -> Result<Plan, BelowMinimum> {
        let budget_bytes = budget_bytes.unwrap_or(u64::MAX);
        [Publication::Continuous, Publication::AtDrain]
            .into_iter()
            .map(|publication| self.with(start, publication))
            .find(|plan| plan.bytes.total() <= budget_bytes)
            .ok_or_else(|| BelowMinimum { budget_bytes, minimum_bytes: self.minimum(start).bytes.total() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(start: u64, stages: usize, workers: u64) -> Plan {
        let stages = (0..stages).map(|stage| stage..stage + 1).collect();
        let bytes = PlannedBytes::default();
        Plan { start, stages, workers, reads: Reads::Ferret, step_rows: 1, publication: Publication::AtDrain, bytes }
    }

    #[test]
    fn one_stage_and_one_worker_read_the_step_before() {
        let plan = plan(5, 1, 1);
        assert_eq!((5..9).map(|a| plan.read(a, 0)).collect::<Vec<_>>(), [5, 6, 7, 8]);
    }

    #[test]
    fn a_pipeline_reads_as_far_back_as_its_rule_says() {
        let plan = plan(10, 3, 2);
        // Lag 6 at stage 0, 4 at stage 1, 2 at the last.
        assert_eq!((0..3).map(|j| plan.read(20, j)).collect::<Vec<_>>(), [15, 17, 19]);
        assert_eq!((0..3).map(|j| plan.read(11, j)).collect::<Vec<_>>(), [10, 10, 10]);
    }
}
