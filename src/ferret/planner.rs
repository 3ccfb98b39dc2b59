//! Choosing a plan: the best that fits a budget, or the one that a person wrote by hand, completed and reckoned.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::footprint::{Footprint, TENSOR_HEADER_BYTES, Walked};
use super::frontier::Frontier;
use super::plan::{Plan, PlannedBytes, Publication, Reads, Reckoned, StagePlan, may_begin_segment};
use super::pool::Pool;
use super::profile::{Profile, Trial};
use super::rate::{Objective, Rate};
use super::trainer::Recipe;
use super::work::Rule;
use crate::fold::{BelowMinimum, FoldError, PlanError};
use crate::learner::{Buffer, RowLayout};
use crate::limits::WORKERS_MAX;
use crate::network::Network;

/// What one model takes beside the storages that are counted one by one: names, channels, scores.
const OVERHEAD_BYTES: u64 = 32 << 10;
/// Headers of the tensors that a step in flight has at a layer: output, stash, gradients.
const STEP_TENSORS: u64 = 3;

/// Bytes of one number of an output.
const OUTPUT_BYTES: u64 = 4;
/// Copies of the outputs that comparing them with a teacher's takes at once.
const DISTILLATION: u64 = 6;

/// How much longer steps take while all threads have one, in thousandths, where nobody could measure it.
const SLOWDOWN: u64 = 1050;
/// Of the time that rows take to arrive, what steps may take: arrivals come in bursts.
const HEADROOM: f64 = 0.8;
/// A step that takes longer is not tried in pipelines: somebody waits for the model to be made.
const LONG_STEP_NANOSECONDS: u64 = 100_000_000;

/// What a planner must know of one model.
#[derive(Clone, Debug)]
pub struct Planner {
    /// What is trained.
    pub network: Arc<Network>,
    /// How.
    pub rule: Rule,
    /// How rows are laid out that a learner keeps.
    pub layout: RowLayout,
    /// Rows of a step that come, at most.
    pub step_rows: usize,
    /// Bytes of records that the driver holds at most.
    pub queued_bytes: u64,
    /// Compute threads that there are.
    pub threads: usize,
    /// Whether stages may leave steps out: for models under a skip policy alone.
    pub may_omit: bool,
    /// What counts in comparing plans.
    pub objective: Objective,
    footprint: Footprint,
}

/// What the plans of a network cost and bring.
#[derive(Clone, Debug)]
pub struct Prospects {
    /// What it is reckoned from.
    pub profile: Profile,
    /// The plans that no other beats.
    pub frontier: Frontier,
}

/// A plan as a person writes it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "expected a plan, an object with `stages`")]
pub struct Wish {
    /// The stages, from the input's side on.
    pub stages: Vec<StageWish>,
    /// See [`Plan::workers`].
    #[serde(default = "one")]
    pub workers: u64,
    /// See [`Plan::publication`].
    #[serde(default)]
    pub publication: Publication,
}

/// A stage as a person writes it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, expecting = "expected a stage, an object with `layers`")]
pub struct StageWish {
    /// See [`StagePlan::layers`].
    pub layers: Range<usize>,
    /// See [`StagePlan::recompute`].
    #[serde(default)]
    pub recompute: Recompute,
    /// See [`StagePlan::accumulation`].
    #[serde(default = "one")]
    pub accumulation: u64,
    /// See [`StagePlan::stride`].
    #[serde(default = "one")]
    pub stride: u64,
}

/// What of a stage is recomputed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged, expecting = "`recompute` is true, false, or a list of layers")]
pub enum Recompute {
    /// Nothing, or whatever saves the most bytes: the stage as a whole, or segment by segment.
    Whether(bool),
    /// The first layers of the segments.
    Segments(Vec<usize>),
}

impl Default for Recompute {
    fn default() -> Self {
        Recompute::Whether(false)
    }
}

fn one() -> u64 {
    1
}

impl Planner {
    /// A planner for a network that is trained like this.
    pub fn new(recipe: &Recipe) -> Planner {
        let Recipe { network, rule, layout, step_rows, queued_bytes, threads, may_omit, objective, .. } = recipe.clone();
        let fuses = rule.optimiser.fuses() && !rule.compensation.compensates() && rule.learner.anchoring().is_none();
        let footprint = Footprint::new(network.clone(), fuses, step_rows + rule.learner.replay_rows());
        Planner { network, rule, layout, step_rows, queued_bytes, threads, may_omit, objective, footprint }
    }

    /// Measures what steps cost, within a budget, which is no smaller than the minimum.
    ///
    /// # Errors
    /// A kernel failed.
    pub fn measure(&self, pool: &Pool, budget_bytes: u64) -> Result<Profile, FoldError> {
        let minimum = self.minimum(0);
        let recompute = minimum.stages.into_iter().flat_map(|stage| stage.recompute).collect();
        let step_rows = self.learned_rows();
        let trial = Trial { network: self.network.clone(), rule: self.rule, step_rows, recompute };
        let profile = trial.run(pool)?;
        let slowdown_thousandths = if profile.threads > 1 { SLOWDOWN } else { 1000 };
        let mut profile = Profile { slowdown_thousandths, ..profile };
        if profile.threads == 1 || profile.step() > LONG_STEP_NANOSECONDS {
            return Ok(profile);
        }
        let thousandths =
            |profile: &Profile, plan: &Plan, measured: u64| (measured as f64 / self.rates(profile).of(plan).period * 1e3) as u64;
        let sequential = self.sequential(0, Publication::Continuous);
        // Pipelines are tried without them.
        let consolidation = std::mem::take(&mut profile.consolidation);
        if sequential.bytes.total() <= budget_bytes {
            // Medians of parts leave out what happens now and then.
            let (_, median) = trial.period(&sequential, pool)?;
            profile.scale(thousandths(&profile, &sequential, median));
        }
        let threads = profile.threads as u64;
        let spare = self.busy();
        if spare.bytes.total() <= budget_bytes {
            profile.slowdown_thousandths = 1000;
            // Whatever else needs the processors only makes it longer.
            let (least, _) = trial.period(&spare, pool)?;
            let slowdown = thousandths(&profile, &spare, least);
            profile.slowdown_thousandths = slowdown.clamp(1000, 1000 * threads);
        }
        Ok(Profile { consolidation, ..profile })
    }

    /// What the network and its steps take.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// One stage with two steps in flight for each thread: threads never wait for each other, and only slow each other down.
    fn busy(&self) -> Plan {
        let whole = vec![StagePlan::whole(0..self.network.layers.len())];
        self.plan(0, whole, (2 * self.threads as u64).min(WORKERS_MAX), Publication::Continuous)
    }

    /// The bytes with which all that can be measured is.
    pub fn trial_bytes(&self) -> u64 {
        self.busy().bytes.total()
    }

    /// A plan of these stages and workers, with its bytes reckoned; it need not be a good one, nor a valid one.
    pub fn plan(&self, start: u64, stages: Vec<StagePlan>, workers: u64, publication: Publication) -> Plan {
        let mut plan = Plan { start, publication, ..self.bare(stages, workers) };
        plan.bytes = self.bytes(&plan, &self.footprint.walk(&plan.stages));
        plan
    }

    /// A plan from step 0 on with all rows that the learner would like to keep, without its bytes.
    pub(super) fn bare(&self, stages: Vec<StagePlan>, workers: u64) -> Plan {
        let (buffer_rows, teaching_bytes) = (self.rule.learner.buffer_rows(), self.teaching_bytes());
        let threads = self.threads_of(workers, stages.len());
        Plan { threads, buffer_rows, teaching_bytes, ..Plan::bare(0, stages, workers, self.step_rows) }
    }

    /// The same plan with forwards that read by another rule.
    pub fn reading(&self, plan: Plan, reads: Reads) -> Plan {
        let mut plan = Plan { reads, ..plan };
        plan.bytes = self.bytes(&plan, &self.footprint.walk(&plan.stages));
        plan
    }

    /// Threads that a plan of so many workers and stages can use.
    pub(super) fn threads_of(&self, workers: u64, stages: usize) -> usize {
        self.threads.min(workers as usize * stages).max(1)
    }

    /// Rows that a step learns at most, those that are replayed among them.
    pub fn learned_rows(&self) -> usize {
        self.step_rows + self.rule.learner.replay_rows()
    }

    /// Whether every plan must have one stage: a learner that looks ahead goes through the whole network at once.
    pub fn is_whole(&self) -> bool {
        self.rule.learner.candidate_rows() > 0
    }

    /// What a teacher's forward takes for a moment, or one of candidates.
    fn teaching_bytes(&self) -> u64 {
        match (self.rule.learner.teachers(), self.rule.learner.candidate_rows()) {
            (0, 0) => 0,
            (0, candidates) => self.footprint.predicted(candidates),
            _ => self.footprint.predicted(self.learned_rows()),
        }
    }

    /// What a buffer of so many rows takes.
    fn buffer_bytes(&self, rows: u64) -> u64 {
        Buffer::bytes(rows, (self.layout.width * self.layout.element.bytes()) as u64)
    }

    /// What the learner keeps under a plan, and takes for a moment beyond what the steps that are `walked` may hold meanwhile.
    fn learner_bytes(&self, plan: &Plan, walked: &Walked) -> u64 {
        let (learner, footprint, all) = (&self.rule.learner, &self.footprint, 0..self.network.layers.len());
        let parameters = footprint.parameters(all);
        let outputs = (self.learned_rows() * self.network.outputs) as u64 * OUTPUT_BYTES;
        let kept = self.buffer_bytes(plan.buffer_rows) + learner.teachers() * footprint.weights();
        // Beside what is kept, importance is found anew before it is added; no step is in flight then.
        let found = parameters + footprint.one_importance();
        let anchors = match learner.anchors() {
            0 => 0,
            anchors => anchors * parameters + found.saturating_sub(walked.steps(plan).total()),
        };
        // What the teacher makes of each step in flight, and what comparing it with the outputs takes. Its own forward comes while the
        // step has nothing but its rows, and one step is let in at a time.
        let taught = match learner.teachers() {
            0 => 0,
            teachers => {
                let forward = footprint.input_bytes_of(self.learned_rows()) + plan.teaching_bytes;
                teachers * outputs * (plan.in_flight() + DISTILLATION * plan.threads as u64)
                    + forward.saturating_sub(walked.newest(plan))
            }
        };
        let candidates = match (learner.candidate_rows(), plan.stages.first()) {
            (0, _) | (_, None) => 0,
            (rows, Some(stage)) => {
                // The candidates of each step in flight, and a look ahead on each thread, before the step's own forward.
                let ahead = footprint.ahead(stage, self.step_rows, rows).saturating_sub(walked.newest(plan));
                plan.in_flight() * footprint.input_bytes_of(rows) + plan.threads as u64 * ahead
            }
        };
        kept + anchors + taught + candidates
    }

    /// The rows that a learner may keep within a budget: as many as it would like, or half, a quarter and so on, so that they take no
    /// more than half of what the smallest plan leaves.
    fn buffer_rows(&self, budget_bytes: u64) -> u64 {
        let (most, least) = (self.rule.learner.buffer_rows(), self.rule.learner.buffer_rows_min());
        let free = budget_bytes.saturating_sub(self.minimum(0).bytes.total()) + self.buffer_bytes(least);
        let mut rows = most;
        while rows > least && self.buffer_bytes(rows) > (free / 2).max(self.buffer_bytes(least)) {
            rows = (rows / 2).max(least);
        }
        rows
    }

    /// A plan whose learner keeps so many rows.
    fn keeping(&self, plan: Plan, buffer_rows: u64) -> Plan {
        let mut plan = plan;
        plan.bytes.learner = plan.bytes.learner - self.buffer_bytes(plan.buffer_rows) + self.buffer_bytes(buffer_rows);
        Plan { buffer_rows, ..plan }
    }

    /// The bytes of a plan through whose stages a step was `walked`.
    pub(super) fn bytes(&self, plan: &Plan, walked: &Walked) -> PlannedBytes {
        let footprint = &self.footprint;
        let (weights, all) = (footprint.weights(), 0..self.network.layers.len());
        let copies = plan.publication.copies() as u64;
        let mut bytes = PlannedBytes {
            weights,
            // Every step in flight has the statistics of its own moment.
            weight_versions: plan.in_flight() * footprint.statistics(),
            snapshots: weights * copies,
            optimiser: footprint.parameters(all.clone()) * self.rule.optimiser.state_count() as u64,
            compensation: footprint.parameters(all) * self.rule.compensation.state_count() as u64,
            steps: walked.steps(plan),
            learner: self.learner_bytes(plan, walked),
            queued_rows: self.queued_bytes,
            ..PlannedBytes::default()
        };
        let mut headers = 0;
        for (number, stage) in plan.stages.iter().enumerate() {
            let parameters = footprint.parameters(stage.layers.clone());
            bytes.weight_versions += (plan.versions(number) - 1) * parameters;
            bytes.accumulators += if stage.accumulation > 1 { parameters } else { 0 };
            // A gradient for each parameter, and what a step has at each layer.
            let of_step = footprint.tensors(stage.layers.clone()) + STEP_TENSORS * stage.layers.len() as u64;
            headers += plan.lag(number) * of_step;
        }
        bytes.overhead = OVERHEAD_BYTES + headers * TENSOR_HEADER_BYTES;
        bytes
    }

    /// One step after the other, with nothing given up.
    pub fn sequential(&self, start: u64, publication: Publication) -> Plan {
        self.plan(start, vec![StagePlan::whole(0..self.network.layers.len())], 1, publication)
    }

    /// The plan that needs the least memory: one step after the other, recomputed where that saves anything.
    pub fn minimum(&self, start: u64) -> Plan {
        self.keeping(Plan { start, ..self.smallest() }, self.rule.learner.buffer_rows_min())
    }

    /// The smallest plan that keeps all rows that the learner would like to.
    pub(super) fn smallest(&self) -> Plan {
        let layers = 0..self.network.layers.len();
        let stage = StagePlan { recompute: self.best_segments(layers.clone()), ..StagePlan::whole(layers) };
        self.plan(0, vec![stage], 1, Publication::AtDrain)
    }

    /// The best plan of a frontier within `budget_bytes`, from step `start` on, where rows arrive every `row_interval` (none: faster
    /// than they are learned).
    pub fn choose(
        &self,
        start: u64,
        budget_bytes: u64,
        row_interval: Option<Duration>,
        prospects: &Prospects,
    ) -> Result<Plan, BelowMinimum> {
        let Prospects { profile, frontier } = prospects;
        // The frontier's plans keep all rows that are asked for.
        let buffer_rows = self.buffer_rows(budget_bytes);
        let [kept, most] = [buffer_rows, self.rule.learner.buffer_rows()].map(|rows| self.buffer_bytes(rows));
        let minimum_bytes = || self.minimum(start).bytes.total();
        let interval = self.step_interval(row_interval);
        let point = frontier.best(budget_bytes.saturating_add(most - kept), interval);
        let point = point.ok_or_else(|| BelowMinimum { budget_bytes, minimum_bytes: minimum_bytes() })?;
        let plan = self.keeping(self.plan(start, point.stages.clone(), point.workers, point.publication), buffer_rows);
        Ok(Plan { reckoned: Some(reckoned(point.rate, profile)), ..plan })
    }

    /// What plans cost and bring by a profile.
    pub fn prospects(&self, profile: Profile) -> Prospects {
        Prospects { frontier: self.frontier(&profile), profile }
    }

    /// What a plan brings.
    pub fn reckon(&self, plan: &Plan, profile: &Profile) -> Reckoned {
        reckoned(self.rates(profile).of(plan), profile)
    }

    /// The frontier as doors and commands tell it, with the profile that it was reckoned from.
    pub fn describe(&self, prospects: &Prospects) -> Value {
        let points = prospects.frontier.points().into_iter().map(|point| {
            json!({
                "bytes": point.bytes,
                "rows_per_second": 1e9 / point.rate.period * self.step_rows as f64,
                "value": point.rate.value,
                "adaptation_rate": point.rate.per_second(None) * self.step_rows as f64,
                "workers": point.workers,
                "publication": point.publication,
                "stages": point.stages,
            })
        });
        json!({ "points": points.collect::<Vec<_>>(), "profile": prospects.profile, "step_rows": self.step_rows })
    }

    /// Between two steps where a plan keeps up with the rows that come, with something to spare, in nanoseconds.
    pub(super) fn step_interval(&self, row_interval: Option<Duration>) -> Option<f64> {
        row_interval.map(|interval| interval.as_nanos() as f64 * self.step_rows as f64 * HEADROOM)
    }

    /// The plan that a person wrote, completed, from step `start` on; it must fit `budget_bytes`.
    pub fn complete(&self, start: u64, wish: &Wish, budget_bytes: u64) -> Result<Plan, PlanError> {
        if let Some(number) = wish.stages.iter().position(|stage| stage.stride > 1 && !self.may_omit) {
            return Err(PlanError::Refused(format!(
                "stage {number} would omit steps, and this model learns every row (overload policy `backpressure`)"
            )));
        }
        let stages = wish.stages.iter().map(|stage| StagePlan {
            layers: stage.layers.clone(),
            recompute: match &stage.recompute {
                Recompute::Segments(first) => first.clone(),
                Recompute::Whether(_) => Vec::new(),
            },
            accumulation: stage.accumulation,
            stride: stage.stride,
        });
        let bare = Plan::bare(start, stages.collect(), wish.workers, self.step_rows);
        bare.check(&self.network).map_err(PlanError::Refused)?;
        if self.is_whole() && bare.stages.len() > 1 {
            return Err(PlanError::Refused(
                "learner `mir` looks ahead through the whole network: its plans have one stage".into(),
            ));
        }
        let mut stages = bare.stages.clone();
        for (number, of_wish) in wish.stages.iter().enumerate() {
            if let Recompute::Whether(true) = of_wish.recompute {
                stages[number].recompute = self.recompute(&bare, number);
            }
        }
        let plan = self.keeping(self.plan(start, stages, wish.workers, wish.publication), self.buffer_rows(budget_bytes));
        plan.check(&self.network).map_err(PlanError::Refused)?;
        let planned_bytes = plan.bytes.total();
        if planned_bytes > budget_bytes {
            return Err(PlanError::OverBudget { planned_bytes, budget_bytes });
        }
        Ok(plan)
    }

    /// The recomputation of a run of layers that leaves the fewest bytes, in a network cut before and after it.
    pub(super) fn best_segments(&self, layers: Range<usize>) -> Vec<usize> {
        let around = [0..layers.start, layers.clone(), layers.end..self.network.layers.len()];
        let stages: Vec<StagePlan> = around.into_iter().filter(|layers| !layers.is_empty()).map(StagePlan::whole).collect();
        let number = usize::from(layers.start > 0);
        self.recompute(&Plan::bare(0, stages, 1, self.step_rows), number)
    }

    /// The recomputation of a stage that leaves the fewest bytes: as a whole, or in segments of about equal activations. Empty where
    /// nothing saves any.
    fn recompute(&self, plan: &Plan, number: usize) -> Vec<usize> {
        let layers = plan.stages[number].layers.clone();
        let outputs: Vec<u64> = layers.clone().map(|layer| self.footprint.output(layer)).collect();
        let all: u64 = outputs.iter().sum();
        let mut plan = plan.clone();
        let mut held = |recompute: Vec<usize>| {
            plan.stages[number].recompute = recompute;
            self.footprint.walk(&plan.stages).steps(&plan).total()
        };
        let mut best = (held(Vec::new()), Vec::new());
        for count in segment_counts(layers.len() as u64) {
            let Some(recompute) = self.segments(&layers, &outputs, all / count) else { break };
            let bytes = held(recompute.clone());
            if bytes < best.0 {
                best = (bytes, recompute);
            }
        }
        best.1
    }

    /// Segments of about `each` bytes of outputs; none if the stage cannot begin one.
    fn segments(&self, layers: &Range<usize>, outputs: &[u64], each: u64) -> Option<Vec<usize>> {
        if !may_begin_segment(&self.network, layers.start) {
            return None;
        }
        let (mut first, mut filled) = (vec![layers.start], 0);
        for (layer, output) in layers.clone().zip(outputs) {
            if filled >= each.max(1) && may_begin_segment(&self.network, layer) {
                first.push(layer);
                filled = 0;
            }
            filled += output;
        }
        Some(first)
    }
}

/// Numbers of segments that are tried: there may be hundreds of layers to begin one at, and next to the best number its neighbours
/// are about as good.
fn segment_counts(layers: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1), |count| Some(count + (count / 4).max(1))).take_while(move |&count| count <= layers)
}

fn reckoned(rate: Rate, profile: &Profile) -> Reckoned {
    Reckoned { step_nanoseconds: rate.period as u64, value_millionths: (rate.value * 1e6) as u64, profile: profile.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Architecture, Loss};

    fn planner(architecture: &str, shape: &[usize]) -> Planner {
        let architecture: Architecture = serde_json::from_str(architecture).unwrap();
        let network = Arc::new(Network::build(&architecture, shape, 10, Loss::SoftmaxCrossEntropy, false).unwrap());
        Planner::new(&Recipe::new(network, 16, 2))
    }

    fn complete(planner: &Planner, wish: &str) -> Result<Plan, PlanError> {
        planner.complete(7, &serde_json::from_str(wish).unwrap(), u64::MAX)
    }

    #[test]
    fn a_wish_is_completed() {
        let planner = planner(r#"{"architecture":"convnet"}"#, &[3, 32, 32]);
        let plan =
            complete(&planner, r#"{"stages":[{"layers":{"start":0,"end":3}},{"layers":{"start":3,"end":8}}],"workers":2}"#);
        let plan = plan.unwrap();
        assert_eq!((plan.start, plan.in_flight(), plan.threads, plan.publication), (7, 4, 2, Publication::Continuous));
        assert!(plan.bytes.total() > planner.minimum(0).bytes.total());
    }

    #[test]
    fn a_wish_that_cannot_be_is_refused_with_the_reason() {
        let planner = planner(r#"{"architecture":"convnet"}"#, &[3, 32, 32]);
        for (wish, word) in [
            (r#"{"stages":[]}"#, "0 stages"),
            (r#"{"stages":[{"layers":{"start":0,"end":7}}]}"#, "end before layer 7"),
            (r#"{"stages":[{"layers":{"start":0,"end":9}}]}"#, "8 layers"),
            (r#"{"stages":[{"layers":{"start":0,"end":3}},{"layers":{"start":4,"end":8}}]}"#, "begin at layer 3"),
            (r#"{"stages":[{"layers":{"start":0,"end":0}},{"layers":{"start":0,"end":8}}]}"#, "end after it"),
            (r#"{"stages":[{"layers":{"start":0,"end":8}}],"workers":0}"#, "0 workers"),
            (r#"{"stages":[{"layers":{"start":0,"end":8},"accumulation":0}]}"#, "accumulation 0"),
            (r#"{"stages":[{"layers":{"start":0,"end":8},"stride":2}]}"#, "omit"),
            (r#"{"stages":[{"layers":{"start":0,"end":8},"recompute":[1]}]}"#, "begin with the stage"),
            (r#"{"stages":[{"layers":{"start":0,"end":8},"recompute":[0,1]}]}"#, "storage of its input"),
            (r#"{"stages":[{"layers":{"start":0,"end":8},"recompute":[0,3,3]}]}"#, "one after the other"),
            (r#"{"stages":[{"layers":{"start":0,"end":8},"recompute":[0,8]}]}"#, "before layer 8"),
        ] {
            let error = complete(&planner, wish).unwrap_err().to_string();
            assert!(error.contains(word), "{wish}: {error}");
        }
        let flat = self::planner(r#"{"architecture":"mlp","hidden":[5],"standardise":true}"#, &[4]);
        let wish = r#"{"stages":[{"layers":{"start":0,"end":1}},{"layers":{"start":1,"end":4}}]}"#;
        assert!(complete(&flat, wish).unwrap_err().to_string().contains("learn nothing"));
        let over = planner.complete(0, &serde_json::from_str(r#"{"stages":[{"layers":{"start":0,"end":8}}]}"#).unwrap(), 1000);
        assert!(matches!(over, Err(PlanError::OverBudget { budget_bytes: 1000, .. })));
    }

    #[test]
    fn segments_save_more_than_a_whole_stage() {
        let planner = planner(r#"{"architecture":"resnet18","width":8}"#, &[3, 32, 32]);
        let end = planner.network.layers.len();
        let bytes = |recompute: Vec<usize>| {
            let stage = StagePlan { recompute, ..StagePlan::whole(0..end) };
            planner.plan(0, vec![stage], 1, Publication::AtDrain).bytes.total()
        };
        let wish = format!(r#"{{"stages":[{{"layers":{{"start":0,"end":{end}}},"recompute":true}}]}}"#);
        let chosen = complete(&planner, &wish).unwrap();
        let segments = chosen.stages[0].recompute.clone();
        assert!(segments.len() > 1, "{segments:?}");
        assert!(bytes(segments.clone()) < bytes(vec![0]) && bytes(segments) < bytes(vec![]));
    }
}
