//! A plan: how a network is cut into stages, what a forward reads, when readers get new weights, and the bytes that all this
//! holds. Choosing one is the [`super::planner`]'s work, following one is the [`super::pipeline`]'s: replay follows the plans that
//! it finds in the decision log.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::footprint::StepBytes;
use super::profile::Profile;
use crate::ledger::Part;
use crate::limits::{ACCUMULATION_MAX, STAGES_MAX, STRIDE_MAX, WORKERS_MAX};
use crate::metrics::PlanFigures;
use crate::network::Network;

/// When the newest weights are handed to readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publication {
    /// At any step: a reader may still hold the last snapshot while the next one is made, so up to two more copies.
    #[default]
    Continuous,
    /// With no step in flight: one more copy. The trainer goes on when no reader holds an older one, so a slow reader makes it wait,
    /// and whatever is asked of it meanwhile.
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
    /// Older versions that steps in flight may still read.
    pub weight_versions: u64,
    /// Copies that only readers hold.
    pub snapshots: u64,
    /// Moments and momenta.
    pub optimiser: u64,
    /// Running means of gradient compensation.
    #[serde(default)]
    pub compensation: u64,
    /// Sums of gradients that wait for further steps.
    pub accumulators: u64,
    /// The steps in flight at their peak.
    pub steps: StepBytes,
    /// What the learner keeps, and what it takes for a moment.
    #[serde(default)]
    pub learner: u64,
    /// Records read from the log and not yet learned.
    pub queued_rows: u64,
    /// Everything too small to count.
    pub overhead: u64,
}

impl PlannedBytes {
    /// What the plan needs of a budget.
    pub fn total(&self) -> u64 {
        let held = self.weights + self.weight_versions + self.snapshots + self.optimiser + self.compensation + self.accumulators;
        held + self.steps.total() + self.learner + self.queued_rows + self.overhead
    }

    /// What it needs for one part of the ledger; the overhead is in none.
    pub fn part(&self, part: Part) -> u64 {
        match part {
            Part::Weights => self.weights,
            Part::WeightVersions => self.weight_versions,
            Part::Snapshots => self.snapshots,
            Part::Optimiser => self.optimiser,
            Part::Compensation => self.compensation,
            Part::Activations => self.steps.activations,
            Part::Gradients => self.accumulators + self.steps.gradients,
            Part::Workspace => self.steps.workspace,
            Part::Learner => self.learner,
            Part::QueuedRows => self.queued_rows,
        }
    }
}

/// Which version of a stage a step's forward reads. Other pipelines are other functions of the same plan and ordinal.
///
/// The two that go by groups have one worker and no omission, and a group is the steps that share an update, the same number at
/// every stage. They are there to be compared with (`mustela bench online`); the planner chooses among Ferret's plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// Ferret's a − N(P − j), for step a, stage j of P, and N workers. With one worker and an update for each step this is also what
    /// PipeDream's stashed weights come to (Narayanan et al., 2019).
    Ferret,
    /// DAPPLE's (Fan et al., 2021): what all groups before the step's own have made. The next group is let in when the pipeline is
    /// empty.
    Dapple,
    /// PipeDream-2BW's (Narayanan et al., 2021): the same, one group late, so that no step waits for the group before its own.
    TwoBuffered,
}

/// One stage: a run of layers, and what is given up there to save memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// The layers, from the input's side on.
    pub layers: Range<usize>,
    /// Recomputation (Ferret's T1): the first layers of the segments whose inputs alone are kept, and whose other activations are
    /// made again in backward. Empty: every activation is kept.
    pub recompute: Vec<usize>,
    /// Accumulation (T2): so many learned steps share one update, by the mean of their gradients.
    pub accumulation: u64,
    /// Omission (T3): of so many steps, one is learned by this stage and those below it. The last stage's is 1.
    pub stride: u64,
}

impl StagePlan {
    /// A stage that gives nothing up.
    pub fn whole(layers: Range<usize>) -> StagePlan {
        StagePlan { layers, recompute: Vec::new(), accumulation: 1, stride: 1 }
    }

    /// The runs of layers that are recomputed, one after the other; none where every activation is kept.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + '_ {
        self.recompute.iter().enumerate().map(|(index, &first)| {
            let end = self.recompute.get(index + 1).copied().unwrap_or(self.layers.end);
            first..end
        })
    }
}

/// How a network is trained from the step `start` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The ordinal of the first step under this plan.
    pub start: u64,
    /// The stages, from the input's side on.
    pub stages: Vec<StagePlan>,
    /// Workers N: steps that take turns in the pipeline.
    pub workers: u64,
    /// What forwards read.
    pub reads: Reads,
    /// Rows of a step, at most.
    pub step_rows: usize,
    /// When readers get new weights.
    pub publication: Publication,
    /// Rows that the learner keeps at most.
    #[serde(default)]
    pub buffer_rows: u64,
    /// What a forward beside the step's own takes for a moment, in bytes: a teacher's, or one of candidates.
    #[serde(default)]
    pub teaching_bytes: u64,
    /// Tasks that run at once, at most. No value depends on it, only bytes do.
    pub threads: usize,
    /// What it was reckoned to hold.
    pub bytes: PlannedBytes,
    /// What it was reckoned to bring, and from what; none for a plan that nobody compared with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reckoned: Option<Reckoned>,
}

/// What a plan was chosen for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reckoned {
    /// Between the ends of two steps while there are always more, in nanoseconds.
    pub step_nanoseconds: u64,
    /// What a step is worth when it is learned, of what it was worth when it arrived, in millionths.
    pub value_millionths: u64,
    /// What that was reckoned from.
    pub profile: Profile,
}

impl Plan {
    /// A plan of these stages and workers, with nothing reckoned yet.
    pub fn bare(start: u64, stages: Vec<StagePlan>, workers: u64, step_rows: usize) -> Plan {
        let (publication, bytes) = (Publication::Continuous, PlannedBytes::default());
        let (reads, buffer_rows, threads, reckoned) = (Reads::Ferret, 0, 1, None);
        Plan { start, stages, workers, reads, step_rows, publication, buffer_rows, teaching_bytes: 0, threads, bytes, reckoned }
    }

    /// The version of stage `stage` that the forward of step `ordinal` reads, exactly: the number of steps whose updates it
    /// holds. Ferret's rule names versions by their last step; so many steps held are one more. Before the plan's start it is the
    /// version that the plan began with.
    pub fn read(&self, ordinal: u64, stage: usize) -> u64 {
        match self.reads {
            Reads::Ferret => (ordinal + 1).saturating_sub(self.lag(stage)).max(self.start),
            Reads::Dapple => self.group_start(ordinal),
            Reads::TwoBuffered => self.group_start(ordinal).saturating_sub(self.group()).max(self.start),
        }
    }

    /// Steps of a group, for a plan that goes by groups.
    fn group(&self) -> u64 {
        self.stages.first().map_or(1, |stage| stage.accumulation)
    }

    /// The first step of the group that `ordinal` is in.
    fn group_start(&self, ordinal: u64) -> u64 {
        ordinal - (ordinal - self.start) % self.group()
    }

    /// Whether the next step may be let in, where so many were and so many of them have ended.
    pub fn admits(&self, admitted: u64, ended: u64) -> bool {
        let flushed = self.reads != Reads::Dapple || admitted == ended || self.group_start(admitted) < admitted;
        flushed && admitted - ended < self.in_flight()
    }

    /// Whether `stage` is updated with the step `ordinal`, which is the `learned`th of its open sum. A group ends with its last step,
    /// even where one of its steps was refused.
    pub fn updates_with(&self, ordinal: u64, stage: usize, learned: u64) -> bool {
        match self.reads {
            Reads::Ferret => learned == self.stages[stage].accumulation,
            Reads::Dapple | Reads::TwoBuffered => self.group_start(ordinal + 1) == ordinal + 1,
        }
    }

    /// How many steps may be between the start of their forward and the end of their update at `stage`: N(P − j). By Ferret's rule a
    /// forward misses the updates of all of them but itself, so its staleness is one less; by the others this is 1F1B's limit alone.
    pub fn lag(&self, stage: usize) -> u64 {
        self.workers * (self.stages.len() - stage) as u64
    }

    /// Steps in flight at most.
    pub fn in_flight(&self) -> u64 {
        self.lag(0)
    }

    /// The plan in a few numbers.
    pub fn figures(&self) -> PlanFigures {
        let stages = self.stages.len() as u64;
        let stale: u64 = (0..self.stages.len()).map(|stage| self.lag(stage) - 1).sum();
        PlanFigures {
            stages,
            workers: self.workers,
            in_flight_steps_max: self.in_flight(),
            staleness_steps: stale as f64 / stages.max(1) as f64,
        }
    }

    /// Of so many steps `stage` learns one: the least common multiple of the strides from it up.
    pub fn learns_every(&self, stage: usize) -> u64 {
        self.stages[stage..].iter().fold(1, |every, above| least_common_multiple(every, above.stride))
    }

    /// Versions of `stage` at once, the newest among them.
    pub fn versions(&self, stage: usize) -> u64 {
        let steps_of_update = self.learns_every(stage).saturating_mul(self.stages[stage].accumulation);
        match self.reads {
            Reads::Ferret => 1 + (self.lag(stage) - 1).div_ceil(steps_of_update),
            Reads::Dapple => 1,
            Reads::TwoBuffered => 2,
        }
    }

    /// The plan in a few words: `0-3* 4-7 a2 s2 / 2w drain` is two stages, the first one recomputed, the second one with two steps for
    /// an update and learning every other step, two workers, published at a drain.
    pub fn outline(&self) -> String {
        let stage = |stage: &StagePlan| {
            let mut text = format!("{}-{}", stage.layers.start, stage.layers.end - 1);
            if !stage.recompute.is_empty() {
                text += "*";
            }
            if stage.accumulation > 1 {
                text += &format!(" a{}", stage.accumulation);
            }
            if stage.stride > 1 {
                text += &format!(" s{}", stage.stride);
            }
            text
        };
        let stages: Vec<String> = self.stages.iter().map(stage).collect();
        let drained = if self.publication == Publication::AtDrain { " drain" } else { "" };
        let reads = match self.reads {
            Reads::Ferret => "",
            Reads::Dapple => " flushed",
            Reads::TwoBuffered => " two-buffered",
        };
        format!("{} / {}w{drained}{reads}", stages.join(" "), self.workers)
    }

    /// Whether the stages are a partition of the network's layers, and every number is in its range; the text says what is not.
    pub fn check(&self, network: &Network) -> Result<(), String> {
        let layers = network.layers.len();
        if self.stages.is_empty() || self.stages.len() > STAGES_MAX {
            return Err(format!("{} stages, allowed are 1 to {STAGES_MAX}", self.stages.len()));
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(format!("{} workers, allowed are 1 to {WORKERS_MAX}", self.workers));
        }
        let mut next = 0;
        for (number, stage) in self.stages.iter().enumerate() {
            let Range { start, end } = stage.layers;
            if start != next || end <= start || end > layers {
                return Err(format!(
                    "stage {number} has the layers from {start} to before {end}; it must begin at layer {next}, end after it, and \
                     the network's {layers} layers are numbered from 0"
                ));
            }
            next = end;
            check_stage(number, stage, network)?;
        }
        if next != layers {
            return Err(format!("the stages end before layer {next}, the network has {layers} layers"));
        }
        let (first, learning) = (&self.stages[0], network.first_learning_layer());
        if self.stages.len() > 1 && learning >= first.layers.end {
            return Err(format!("stage 0 would learn nothing: the first layer that learns is layer {learning}"));
        }
        match self.stages.last() {
            Some(last) if last.stride != 1 => Err("the last stage learns every step: its stride must be 1".into()),
            _ => self.check_groups(),
        }
    }

    /// Whether a plan that goes by groups has one worker, no omission, and groups of one size.
    fn check_groups(&self) -> Result<(), String> {
        let fits = |stage: &StagePlan| stage.stride == 1 && stage.accumulation == self.group();
        if self.reads != Reads::Ferret && (self.workers != 1 || !self.stages.iter().all(fits)) {
            return Err("a plan that goes by groups has one worker, omits nothing, and shares updates alike in all stages".into());
        }
        Ok(())
    }
}

fn check_stage(number: usize, stage: &StagePlan, network: &Network) -> Result<(), String> {
    let Range { start, end } = stage.layers;
    if !(1..=ACCUMULATION_MAX).contains(&stage.accumulation) || !(1..=STRIDE_MAX).contains(&stage.stride) {
        let (accumulation, stride) = (stage.accumulation, stage.stride);
        return Err(format!(
            "stage {number} has accumulation {accumulation} and stride {stride}, allowed are 1 to {ACCUMULATION_MAX} and 1 to {STRIDE_MAX}"
        ));
    }
    if stage.recompute.first().is_some_and(|&first| first != start) {
        return Err(format!("the first recomputed segment of stage {number} must begin with the stage, at layer {start}"));
    }
    for (index, &first) in stage.recompute.iter().enumerate() {
        if first >= end || (index > 0 && first <= stage.recompute[index - 1]) {
            return Err(format!("the recomputed segments of stage {number} must begin one after the other, before layer {end}"));
        }
        if !may_begin_segment(network, first) {
            let name = network.layers[first].name();
            return Err(format!(
                "no recomputed segment can begin at layer {first} ({name}): it works in the storage of its input"
            ));
        }
    }
    Ok(())
}

/// Whether a recomputed segment may begin at `layer`: one that overwrites its input would recompute from its own output.
pub(super) fn may_begin_segment(network: &Network, layer: usize) -> bool {
    network.layers[layer].cost(1).output > 0
}

pub(super) fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A plan of stages of one layer each.
    pub(crate) fn plan(start: u64, stages: usize, workers: u64) -> Plan {
        let stages = (0..stages).map(|stage| StagePlan::whole(stage..stage + 1)).collect();
        Plan { publication: Publication::AtDrain, ..Plan::bare(start, stages, workers, 1) }
    }

    /// The same for a plan that goes by groups of so many steps.
    pub(crate) fn grouped(start: u64, stages: usize, group: u64, reads: Reads) -> Plan {
        let mut plan = Plan { reads, ..plan(start, stages, 1) };
        plan.stages.iter_mut().for_each(|stage| stage.accumulation = group);
        plan
    }

    #[test]
    fn one_stage_and_one_worker_read_the_step_before() {
        let plan = plan(5, 1, 1);
        assert_eq!((5..9).map(|a| plan.read(a, 0)).collect::<Vec<_>>(), [5, 6, 7, 8]);
        assert_eq!(plan.versions(0), 1);
    }

    #[test]
    fn a_pipeline_reads_as_far_back_as_its_rule_says() {
        let plan = plan(10, 3, 2);
        // Lag 6 at stage 0, 4 at stage 1, 2 at the last.
        assert_eq!((0..3).map(|j| plan.read(20, j)).collect::<Vec<_>>(), [15, 17, 19]);
        assert_eq!((0..3).map(|j| plan.read(11, j)).collect::<Vec<_>>(), [10, 10, 10]);
        assert_eq!((0..3).map(|j| plan.versions(j)).collect::<Vec<_>>(), [6, 4, 2]);
    }

    #[test]
    fn the_staleness_is_the_papers() {
        for (stages, workers) in [(1, 1), (4, 1), (3, 2), (6, 4)] {
            let plan = plan(0, stages, workers);
            for stage in 0..stages {
                let staleness = 100 - plan.read(100, stage);
                assert_eq!(staleness, workers * (stages - stage) as u64 - 1);
                if workers == 1 {
                    // Section 4.1: τ = P − 1 − j for one worker.
                    assert_eq!(staleness, (stages - 1 - stage) as u64);
                }
            }
        }
    }

    #[test]
    fn a_flushed_pipeline_misses_nothing_and_a_two_buffered_one_the_group_before() {
        let (flushed, late) = (grouped(7, 3, 4, Reads::Dapple), grouped(7, 3, 4, Reads::TwoBuffered));
        for ordinal in 7..60 {
            let group = (ordinal - 7) / 4;
            for stage in 0..3 {
                assert_eq!(flushed.read(ordinal, stage), 7 + 4 * group);
                assert_eq!(late.read(ordinal, stage), 7 + 4 * group.saturating_sub(1), "its delay is one group in every stage");
            }
            assert_eq!(flushed.updates_with(ordinal, 1, 1), ordinal % 4 == 2);
        }
        assert_eq!((flushed.versions(0), late.versions(0), late.versions(2)), (1, 2, 2));
        assert!(flushed.admits(10, 8) && !flushed.admits(11, 10) && flushed.admits(11, 11), "groups begin at 7, 11, 15");
        assert!(late.admits(11, 10) && !late.admits(11, 8), "three stages hold three steps");
    }

    #[test]
    fn accumulation_and_omission_save_versions() {
        let mut plan = plan(0, 4, 1);
        plan.stages[0].accumulation = 3;
        plan.stages[1].stride = 4;
        plan.stages[2].stride = 2;
        assert_eq!((0..4).map(|stage| plan.learns_every(stage)).collect::<Vec<_>>(), [4, 4, 2, 1]);
        assert_eq!((0..4).map(|stage| plan.versions(stage)).collect::<Vec<_>>(), [2, 2, 2, 1]);
    }
}
