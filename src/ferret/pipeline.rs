//! The pipeline of one network: its newest weights and the versions before them, the steps in flight, and what every task takes
//! from here and brings back.
//!
//! Nothing here runs a task. Whoever does ([`super::executor`]) asks what is ready, takes one task with all that it reads, runs it
//! wherever it likes, and brings its result back. Bookkeeping is all that happens in between, so one lock around it is enough.
//!
//! Each stage keeps the *window* of versions that a forward to come may ask for. It is a function of the plan and of the first step
//! that the stage is not past, so the window of a drained pipeline is part of its state, and a drain changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::compensation::Tuner;
use super::plan::Plan;
use super::profile::Observed;
use super::schedule::{Schedule, Task};
use super::snapshot::NetworkSnapshot;
use super::stage::{Accumulated, Counted, Kept, LayerState, LayerWeights, StageGradients, Trail};
use super::work::{Admitted, Candidates, Context, Done, Gave, Given, Goal, Rule, Work};
use crate::fold::{FoldError, Outcome, Score, Sequence, Step, Verdict};
use crate::learner::{Learner, Memory, RowLayout};
use crate::ledger::{Ledger, Part};
use crate::network::Network;

/// One version of a stage: the updates of so many steps are in it.
#[derive(Debug)]
pub(super) struct StageVersion {
    pub(super) number: u64,
    pub(super) layers: Vec<Arc<LayerWeights>>,
}

impl StageVersion {
    /// No step needs this version any more: whoever still holds it is a reader.
    fn retire(self) {
        for layer in self.layers.iter().filter(|layer| Arc::strong_count(layer) > 1) {
            layer.hold_for(Part::Snapshots);
        }
    }
}

/// What one stage is.
#[derive(Debug)]
pub(super) struct StageState {
    /// The newest state of its layers; empty while an update has it.
    pub(super) layers: Vec<LayerState>,
    /// Versions that a forward to come may ask for, oldest first. The newest is the last, but while an update in place has it.
    pub(super) window: VecDeque<StageVersion>,
    /// Gradients that wait for further steps.
    pub(super) accumulated: Option<Accumulated>,
}

impl StageState {
    /// Lets go of the versions that no step from `next` on reads.
    fn trim(&mut self, plan: &Plan, stage: usize, next: u64) {
        let read = plan.read(next, stage);
        while self.window.get(1).is_some_and(|younger| younger.number <= read) {
            self.window.pop_front().into_iter().for_each(StageVersion::retire);
        }
    }

    /// The version that a forward reads, which must be there.
    fn version(&self, read: u64) -> Result<Vec<Arc<LayerWeights>>, FoldError> {
        let version = self.window.iter().rev().find(|version| version.number <= read);
        let version = version.ok_or_else(|| FoldError::Contract(format!("the version {read} of a stage is gone")))?;
        Ok(version.layers.clone())
    }

    /// The versions from the one that a forward read on.
    fn trail(&self, read: u64) -> Trail {
        let older = self.window.iter().take_while(|version| version.number <= read).count();
        Trail::new(self.window.iter().skip(older.saturating_sub(1)).map(|version| version.layers.as_slice()))
    }

    pub(super) fn newest(&self) -> Vec<Arc<LayerWeights>> {
        self.layers.iter().map(|layer| layer.weights().clone()).collect()
    }
}

/// A step in flight, beside what the schedule knows of it.
struct Flight {
    last: Sequence,
    rows: u64,
    goal: Option<Goal>,
    candidates: Option<Candidates>,
    /// On its way up.
    activation: Option<Counted>,
    /// On its way down.
    gradient: Option<Counted>,
    /// Of the rows up to this step's own.
    statistics: Option<Arc<LayerWeights>>,
    /// By stage.
    kept: Vec<Option<Kept>>,
    gradients: Vec<Option<StageGradients>>,
    score: Score,
    refusal: Option<&'static str>,
    /// A stage's mean of several steps' gradients left the finite numbers, and was dropped with this step's.
    declined: bool,
}

/// A snapshot that is being made: every stage gives the version that it has when it is past the same step.
struct Capture {
    /// Steps that it holds.
    steps: u64,
    statistics: Option<Arc<LayerWeights>>,
    stages: Vec<Option<Vec<Arc<LayerWeights>>>>,
}

/// A network, its optimiser, and where they stand in the stream.
pub struct Pipeline {
    pub(super) context: Arc<Context>,
    schedule: Schedule,
    pub(super) stages: Vec<StageState>,
    /// The newest statistics of a standardising layer, which advance at admission.
    pub(super) statistics: Option<Arc<LayerWeights>>,
    /// What the learner keeps; away while a step is admitted.
    pub(super) memory: Option<Box<Memory>>,
    flights: VecDeque<Flight>,
    /// The next step, not admitted yet.
    offered: Option<Step>,
    /// Ends of steps that nobody has been told of, in order.
    outcomes: Vec<Outcome>,
    capture: Option<Capture>,
    /// How long tasks took under the present plan.
    observed: Observed,
    pub(super) learning_rate: f64,
    /// Why it cannot go on.
    failure: Option<FoldError>,
}

impl Pipeline {
    /// A network with the initial weights of `seed`, at the start of `plan`.
    pub fn new(
        network: Arc<Network>,
        rule: Rule,
        layout: RowLayout,
        learning_rate: f64,
        plan: Plan,
        seed: u64,
        ledger: Ledger,
    ) -> Result<Pipeline, FoldError> {
        let mut weights = network.initial_weights(seed)?;
        let statistics = network.observes().then(|| Arc::new(LayerWeights::new(std::mem::take(&mut weights[0]), &ledger)));
        let layers = weights
            .into_iter()
            .zip(&network.layers)
            .map(|(weights, layer)| {
                let parameters = layer.parameters();
                let moments = parameters.iter().map(|parameter| rule.optimiser.initial_moments(parameter));
                let moments = moments.collect::<candle_core::Result<_>>()?;
                let tuner = Tuner::zero(&rule.compensation, &parameters, &ledger)?;
                Ok(LayerState::new(weights, moments, tuner, 0, &ledger))
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        let start = plan.start;
        let memory = match rule.learner {
            Learner::Vanilla {} => None,
            learner => Some(Box::new(Memory::new(learner, plan.buffer_rows, seed, layout, &ledger)?)),
        };
        let context = Arc::new(Context { network, rule, plan: Arc::new(plan), ledger });
        let stages = cut(&context.plan, layers);
        Ok(Pipeline::at_rest(context, start, stages, (statistics, memory), learning_rate))
    }

    /// A pipeline with nothing in flight, at step `next`.
    pub(super) fn at_rest(
        context: Arc<Context>,
        next: u64,
        stages: Vec<StageState>,
        (statistics, memory): (Option<Arc<LayerWeights>>, Option<Box<Memory>>),
        learning_rate: f64,
    ) -> Pipeline {
        let schedule = Schedule::new(context.plan.clone(), next);
        let observed = Observed::new(stages.len());
        Pipeline {
            context,
            schedule,
            stages,
            statistics,
            memory,
            flights: VecDeque::new(),
            offered: None,
            outcomes: Vec::new(),
            capture: None,
            observed,
            learning_rate,
            failure: None,
        }
    }

    /// The plan that is followed now.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.context.plan
    }

    /// What is trained.
    pub fn network(&self) -> &Arc<Network> {
        &self.context.network
    }

    /// The newest version of a stage, and of the statistics if it has them; none while an update has it.
    pub fn newest(&self, stage: usize) -> Option<Vec<Arc<LayerWeights>>> {
        let mut newest = self.stages[stage].newest();
        if let (0, Some(statistics), Some(first)) = (stage, &self.statistics, newest.first_mut()) {
            first.clone_from(statistics);
        }
        (!newest.is_empty()).then_some(newest)
    }

    /// Steps that were admitted; the next one's ordinal.
    pub fn ordinal(&self) -> u64 {
        self.schedule.admitted()
    }

    /// How long tasks took under the present plan.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The learning rate that holds.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Updates from now on go by another learning rate.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    /// Whether the next step can be offered.
    pub fn has_room(&self) -> bool {
        self.offered.is_none() && !self.schedule.is_admitting()
    }

    /// Gives it the next step; there must be room.
    pub fn offer(&mut self, step: Step) {
        assert!(self.has_room(), "steps are offered one at a time");
        self.offered = Some(step);
    }

    /// Whether nothing is in flight or waits to be.
    pub fn is_idle(&self) -> bool {
        self.schedule.is_idle() && self.offered.is_none()
    }

    /// Ends of steps since this was last asked, in order.
    pub fn take_outcomes(&mut self, outcomes: &mut Vec<Outcome>) {
        outcomes.append(&mut self.outcomes);
    }

    /// Whether it has failed: nothing in it may be used any more.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Notes that a task could not be done.
    pub fn fail(&mut self, error: FoldError) {
        self.failure.get_or_insert(error);
    }

    /// An error if it has failed: the first reason, however often it is asked for.
    pub fn check(&self) -> Result<(), FoldError> {
        match &self.failure {
            None => Ok(()),
            Some(FoldError::Panicked(message)) => Err(FoldError::Panicked(message.clone())),
            Some(error) => Err(FoldError::Unavailable(error.to_string())),
        }
    }

    /// The tasks that may start now, the one to be preferred first; none once it has failed.
    pub fn ready(&self) -> impl Iterator<Item = Task> + '_ {
        self.schedule.ready(self.offered.is_some()).filter(|_| !self.has_failed())
    }

    /// Takes the task that is to be preferred, if one is ready.
    pub fn take_next(&mut self) -> Option<Work> {
        let task = self.ready().next()?;
        self.take(task).map_err(|error| self.fail(error)).ok()
    }

    /// Takes a task that is ready, with all that it reads.
    pub fn take(&mut self, task: Task) -> Result<Work, FoldError> {
        let given = match task {
            Task::Admit => {
                let step = self.offered.take().ok_or_else(lost)?;
                // With no step in flight only readers hold the statistics of the rows before.
                let superseded = if self.flights.is_empty() { Part::Snapshots } else { Part::WeightVersions };
                let (memory, ordinal) = (self.memory.take(), self.schedule.admitted());
                Given::Step { step, statistics: self.statistics.clone(), superseded, memory, ordinal }
            }
            Task::Forward { ordinal, stage } => {
                let mut versions = self.stages[stage].version(self.context.plan.read(ordinal, stage))?;
                let learns = self.schedule.learns(ordinal, stage);
                let is_last = stage + 1 == self.stages.len();
                let learning_rate = self.learning_rate;
                let flight = self.flight_mut(ordinal);
                if let Some(statistics) = flight.statistics.clone().filter(|_| stage == 0) {
                    versions[0] = statistics;
                }
                let input = flight.activation.take().ok_or_else(lost)?;
                let (goal, candidates) = if is_last { (flight.goal.take(), flight.candidates.take()) } else { (None, None) };
                Given::Forward { versions, input, goal, learns, candidates, learning_rate }
            }
            Task::Backward { ordinal, stage } => {
                let below = stage > 0 && self.schedule.learns(ordinal, stage - 1);
                let flight = self.flight_mut(ordinal);
                let kept = flight.kept[stage].take().ok_or_else(lost)?;
                Given::Backward { kept, gradient: flight.gradient.take().ok_or_else(lost)?, below }
            }
            Task::Update { ordinal, stage } => self.take_update(ordinal, stage)?,
        };
        self.schedule.start(task);
        Ok(Work { context: self.context.clone(), task, given })
    }

    fn take_update(&mut self, ordinal: u64, stage: usize) -> Result<Given, FoldError> {
        let gradients = self.flight_mut(ordinal).gradients[stage].take().ok_or_else(lost)?;
        let (plan, learning_rate) = (self.context.plan.clone(), self.learning_rate);
        let state = &mut self.stages[stage];
        let steps = state.accumulated.as_ref().map_or(0, |accumulated| accumulated.steps);
        let applies = plan.updates_with(ordinal, stage, steps + 1);
        let read = plan.read(ordinal, stage);
        let trail = if self.context.rule.compensation.compensates() { state.trail(read) } else { Trail::default() };
        let mut superseded = Part::WeightVersions;
        if applies {
            state.trim(&plan, stage, ordinal + 1);
            if plan.read(ordinal + 1, stage) > ordinal {
                // The next forward reads what this update makes, so nothing but a reader keeps it from working in place.
                state.window.clear();
                superseded = Part::Snapshots;
            }
        }
        let (layers, accumulated) = (std::mem::take(&mut state.layers), state.accumulated.take());
        Ok(Given::Update { layers, accumulated, gradients, trail, applies, learning_rate, superseded })
    }

    /// Brings the result of a task back.
    pub fn complete(&mut self, done: Done) {
        let Done { task, gave, nanoseconds } = done;
        // With accumulation most updates only add to a sum: their times would tell little.
        if !matches!(task, Task::Update { stage, .. } if self.context.plan.stages[stage].accumulation > 1) {
            self.observed.note(task, nanoseconds);
        }
        match gave {
            Ok(gave) => {
                let refused = self.note(task, gave);
                self.schedule.finish(task, refused);
                self.settle();
            }
            Err(error) => self.fail(error),
        }
    }

    /// Puts what a task gave where the next one finds it; tells whether it refused the step.
    fn note(&mut self, task: Task, gave: Gave) -> bool {
        match (gave, task) {
            (Gave::Step { flight: Admitted { last, rows, input, goal, candidates }, statistics, memory }, _) => {
                self.memory = memory;
                self.statistics.clone_from(&statistics);
                let stages = self.stages.len();
                self.flights.push_back(Flight {
                    last,
                    rows,
                    goal: Some(goal),
                    candidates,
                    activation: Some(input),
                    gradient: None,
                    statistics,
                    kept: std::iter::repeat_with(|| None).take(stages).collect(),
                    gradients: std::iter::repeat_with(|| None).take(stages).collect(),
                    score: Score::default(),
                    refusal: None,
                    declined: false,
                });
            }
            (Gave::Forward { output, kept }, Task::Forward { ordinal, stage }) => {
                let flight = self.flight_mut(ordinal);
                (flight.activation, flight.kept[stage]) = (Some(output), kept);
            }
            (Gave::Loss { gradient, kept, score }, Task::Forward { ordinal, stage }) => {
                let flight = self.flight_mut(ordinal);
                (flight.gradient, flight.kept[stage], flight.score) = (Some(gradient), kept, score);
            }
            (Gave::Backward { gradient, gradients }, Task::Backward { ordinal, stage }) => {
                let flight = self.flight_mut(ordinal);
                (flight.gradient, flight.gradients[stage]) = (gradient, Some(gradients));
            }
            (Gave::Update { layers, accumulated, applied }, Task::Update { ordinal, stage }) => {
                let declined = accumulated.is_none() && !applied;
                let state = &mut self.stages[stage];
                (state.layers, state.accumulated) = (layers, accumulated);
                // Where it was to be updated in place, the newest is not in the window any more, changed or not.
                if applied || state.window.is_empty() {
                    state.window.push_back(StageVersion { number: ordinal + 1, layers: state.newest() });
                }
                self.flight_mut(ordinal).declined |= declined;
            }
            (Gave::Refused(reason), Task::Forward { ordinal, .. } | Task::Backward { ordinal, .. }) => {
                let flight = self.flight_mut(ordinal);
                flight.refusal = Some(reason);
                // Nobody below will ask for these.
                let below = match task {
                    Task::Backward { stage, .. } => stage,
                    _ => flight.kept.len(),
                };
                flight.kept[..below].fill_with(|| None);
                return true;
            }
            _ => self.fail(FoldError::Contract("a task gave what another one gives".into())),
        }
        false
    }

    /// Lets go of what no step needs any more, and tells of the steps that have ended.
    fn settle(&mut self) {
        for (number, state) in self.stages.iter_mut().enumerate() {
            let done = self.schedule.done(number);
            // A snapshot of an earlier plan has all of its parts already, whatever the stages are now.
            let capture = self.capture.as_mut().filter(|capture| capture.steps <= done);
            if let Some(part) = capture.and_then(|capture| capture.stages.get_mut(number)) {
                // Steps beyond that one were not learned here, or this would have been asked before.
                part.get_or_insert_with(|| state.newest());
            }
            state.trim(&self.context.plan, number, done);
        }
        if let Some(capture) = self.capture.as_mut().filter(|capture| capture.steps == self.schedule.admitted()) {
            capture.statistics.clone_from(&self.statistics);
        }
        while let Some((ordinal, (in_part, whole))) = self.schedule.end() {
            let Some(flight) = self.flights.pop_front() else { return };
            let Flight { last, rows, score, refusal, declined, statistics, .. } = flight;
            if let (Some(ended), Some(newest)) = (&statistics, &self.statistics)
                && !Arc::ptr_eq(ended, newest)
            {
                ended.hold_for(Part::Snapshots);
            }
            let (verdict, score) = match refusal {
                Some(reason) if !in_part => (Verdict::Quarantined(reason.into()), Score::default()),
                _ if whole && !declined => (Verdict::Learned, score),
                _ => (Verdict::LearnedInPart, score),
            };
            self.outcomes.push(Outcome { ordinal, last, rows, held_out: 0, verdict, score });
        }
    }

    /// Begins a snapshot of the state after every step that was admitted or offered so far.
    pub fn begin_capture(&mut self) {
        let steps = self.schedule.admitted() + u64::from(!self.has_room());
        let stages = self.stages.iter().map(|_| None).collect();
        self.capture = Some(Capture { steps, statistics: None, stages });
        self.settle();
    }

    /// The snapshot that was begun, once every stage has given its part.
    pub fn take_capture(&mut self) -> Option<NetworkSnapshot> {
        let Capture { statistics, stages, .. } = self
            .capture
            .take_if(|capture| capture.stages.iter().all(Option::is_some) && capture.steps <= self.schedule.ended())?;
        let mut layers: Vec<_> = stages.into_iter().flatten().flatten().collect();
        if let Some(statistics) = statistics {
            layers[0] = statistics;
        }
        Some(NetworkSnapshot::new(self.context.network.clone(), layers))
    }

    /// Goes on under another plan from the present step on: open sums are applied by the mean of what they hold, older versions
    /// dropped. The pipeline is idle.
    pub fn follow(&mut self, plan: Plan) -> Result<(), FoldError> {
        self.check()?;
        if plan.start != self.ordinal() || !self.is_idle() {
            return Err(FoldError::Contract(format!("a plan from step {} at step {}", plan.start, self.ordinal())));
        }
        plan.check(&self.context.network).map_err(FoldError::Contract)?;
        let rule = self.context.rule;
        let how = rule.how(self.learning_rate, Part::Snapshots);
        let mut layers = Vec::with_capacity(self.context.network.layers.len());
        for (number, state) in std::mem::take(&mut self.stages).into_iter().enumerate() {
            let StageState { layers: mut of_stage, window, accumulated } = state;
            window.into_iter().rev().skip(1).for_each(StageVersion::retire);
            if let Some(accumulated) = accumulated
                && let Err(error) = self.context.stage(number).update_by_mean(&mut of_stage, accumulated, how)
            {
                self.failure = Some(error.into());
                return self.check();
            }
            layers.extend(of_stage);
        }
        self.stages = cut(&plan, layers);
        self.observed = Observed::new(self.stages.len());
        let (network, ledger) = (self.context.network.clone(), self.context.ledger.clone());
        self.resize_buffer(plan.buffer_rows)?;
        self.context = Arc::new(Context { network, rule, plan: Arc::new(plan), ledger });
        self.schedule = Schedule::new(self.context.plan.clone(), self.schedule.admitted());
        Ok(())
    }

    fn resize_buffer(&mut self, capacity: u64) -> Result<(), FoldError> {
        if let Some(buffer) = self.memory.as_mut().and_then(|memory| memory.buffer.as_mut())
            && buffer.capacity() != capacity
        {
            buffer.resize(capacity, &self.context.ledger)?;
        }
        Ok(())
    }

    fn flight_mut(&mut self, ordinal: u64) -> &mut Flight {
        &mut self.flights[(ordinal - self.schedule.ended()) as usize]
    }
}

/// Gives each stage its layers, and the newest version as the only one.
pub(super) fn cut(plan: &Plan, layers: Vec<LayerState>) -> Vec<StageState> {
    let mut layers = layers.into_iter();
    let of_stage = plan.stages.iter().map(|stage| {
        let mut state =
            StageState { layers: layers.by_ref().take(stage.layers.len()).collect(), window: VecDeque::new(), accumulated: None };
        state.window.push_back(StageVersion { number: plan.start, layers: state.newest() });
        state
    });
    of_stage.collect()
}

fn lost() -> FoldError {
    FoldError::Contract("a task's inputs are gone".into())
}
