//! What a step costs in time: measured once for a network on this machine, kept in the decision of its plan, never measured in
//! replay. This is the only place of the trainer that reads the clock.
//!
//! The trial runs real steps over made-up rows, layer by layer on a compute thread, and holds no more than a model under its
//! smallest plan does: where that plan recomputes, the trial does too. A network of next to nothing tells what it costs to hand a
//! task over. How much threads slow each other down a real pipeline of this network tells,
//! where the budget has room for it ([`super::planner::Planner::measure`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use candle_core::Tensor;
use crossbeam::channel::bounded;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

use super::compensation::Tuner;
use super::executor::{Engine, Executor};
use super::input;
use super::pipeline::Pipeline;
use super::plan::{Plan, StagePlan};
use super::pool::Pool;
use super::schedule::Task;
use super::stage::{Counted, Kept, LayerState, Stage, StageGradients, Trail};
use super::work::Rule;
use crate::fold::{FoldError, Step};
use crate::learner::{Anchor, Learner, RowLayout, distil, importance};
use crate::ledger::{Ledger, Part};
use crate::network::loss::loss;
use crate::network::{Architecture, Loss, Network, deep_copy, random};
use crate::rows::{Block, Element, Rows, Target};

/// Runs of a trial, at least and at most, and the time in which more than the least are begun.
const RUNS: std::ops::RangeInclusive<usize> = 3..=41;
const TRIAL_SECONDS: f64 = 0.15;
/// A trial ends with the run that makes it take so long: somebody waits for the model to be made.
const SLOW_SECONDS: f64 = 1.0;
/// Runs that only warm up caches.
const WARM_RUNS: usize = 1;
/// Stretches of steps under a plan at least, and steps of each.
const STRETCHES: usize = 3;
const STRETCH_STEPS: u64 = 8;
/// Small enough to leave the trial's weights where they are.
const LEARNING_RATE: f64 = 1e-6;
/// Steps from which the cost of handing tasks over is taken, and the tasks of each.
const HANDOVER_STEPS: u64 = 400;
const HANDOVER_TASKS: u64 = 4;

/// Times of one layer in a step of as many rows as the plan allows, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerTimes {
    /// Of its forward.
    pub forward: u64,
    /// Of its backward.
    pub backward: u64,
    /// Of an update in place.
    pub update: u64,
    /// Of the copy that an update needs beside that while older versions are read.
    pub copy: u64,
}

/// What a step costs, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// Rows of the steps that were measured.
    pub step_rows: usize,
    /// From rows to tensors, and what a teacher makes of them.
    pub admission: u64,
    /// The loss and its gradient, and what a learner does where they are: comparing outputs with a teacher's, or choosing rows to
    /// replay by a look ahead.
    pub loss: u64,
    /// A step's share of consolidations, for which everything else stands still.
    pub consolidation: u64,
    /// Handing one task over.
    pub handover: u64,
    /// Compute threads that there were.
    pub threads: usize,
    /// How many times as long a step takes while all threads have one, in thousandths.
    pub slowdown_thousandths: u64,
    /// Of each layer.
    pub layers: Vec<LayerTimes>,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The network.
    pub network: Arc<Network>,
    /// How it is trained.
    pub rule: Rule,
    /// Rows of a step, those that are replayed among them.
    pub step_rows: usize,
    /// The recomputed segments of its smallest plan.
    pub recompute: Vec<usize>,
}

impl Trial {
    /// Measures every layer on one compute thread, and what it costs to hand a task over.
    ///
    /// # Errors
    /// A kernel failed.
    pub fn run(&self, pool: &Pool) -> Result<Profile, FoldError> {
        let (tell, told) = bounded(1);
        let trial = self.clone();
        pool.spawn(move || drop(tell.send(trial.measure())));
        let profile = told.recv().map_err(|_| FoldError::Panicked("a trial of the network".into()))??;
        Ok(Profile { threads: pool.threads(), handover: handover(pool)?, ..profile })
    }

    /// Rows of a step that come.
    fn own_rows(&self) -> usize {
        self.step_rows - self.rule.learner.replay_rows()
    }

    /// Nanoseconds between the ends of two steps under a plan, each step as full as it may be, once the pipeline is full: the least and
    /// the median of several stretches. Consolidations are not among them.
    ///
    /// # Errors
    /// A kernel failed.
    pub fn period(&self, plan: &Plan, pool: &Pool) -> Result<(u64, u64), FoldError> {
        let (network, rule, learner) = (self.network.clone(), self.rule, self.rule.learner);
        let rows = made_up(&network, self.own_rows());
        let layout = RowLayout::of(&rows).ok_or_else(|| FoldError::Contract("rows without labels".into()))?;
        // Of the rows that are kept no more than a step draws: how many there are beside costs nothing.
        let plan = Plan { buffer_rows: learner.buffer_rows_min(), ..plan.clone() };
        let kept = made_up(&network, plan.buffer_rows as usize);
        let mut pipeline = Pipeline::new(network, rule, layout, LEARNING_RATE, plan.clone(), 0, Ledger::default())?;
        if let Some(buffer) = pipeline.memory.as_mut().and_then(|memory| memory.buffer.as_mut()) {
            buffer.insert(&kept)?;
        }
        let mut engine = Engine::new(pipeline, Executor::Threads(pool.clone()));
        if learner.every_rows().is_some() {
            engine.work(Pipeline::consolidate)?;
        }
        let count = STRETCH_STEPS.max(2 * plan.in_flight());
        steps(&mut engine, &rows, count)?;
        let (mut stretches, began) = (Vec::new(), Instant::now());
        while stretches.len() < STRETCHES || began.elapsed().as_secs_f64() < TRIAL_SECONDS {
            stretches.push(steps(&mut engine, &rows, count)? / count);
        }
        engine.drain(&mut Vec::new())?;
        Ok((stretches.iter().copied().min().unwrap_or_default(), median(stretches)))
    }

    /// Medians of several runs on this thread.
    fn measure(&self) -> Result<Profile, FoldError> {
        let ledger = Ledger::default();
        let mut bench = Bench::new(self, &ledger)?;
        let mut runs: Vec<Profile> = Vec::new();
        let mut began = Instant::now();
        for run in 0..WARM_RUNS + RUNS.end() {
            let measured = bench.step()?;
            let slow = began.elapsed().as_secs_f64() > SLOW_SECONDS;
            if run < WARM_RUNS && !slow {
                began = Instant::now();
                continue;
            }
            runs.push(measured);
            if slow || runs.len() >= *RUNS.start() && began.elapsed().as_secs_f64() > TRIAL_SECONDS {
                break;
            }
        }
        let of = |figure: &dyn Fn(&Profile) -> u64| median(runs.iter().map(figure).collect());
        let layers = (0..self.network.layers.len()).map(|layer| LayerTimes {
            forward: of(&|run| run.layers[layer].forward),
            backward: of(&|run| run.layers[layer].backward),
            update: of(&|run| run.layers[layer].update),
            copy: of(&|run| run.layers[layer].copy),
        });
        let (admission, loss, consolidation) = (of(&|run| run.admission), of(&|run| run.loss), of(&|run| run.consolidation));
        let layers = layers.collect();
        Ok(Profile { step_rows: self.step_rows, admission, loss, consolidation, layers, ..Profile::default() })
    }
}

impl Profile {
    /// Takes every part of a step to cost so many thousandths of what was measured.
    pub fn scale(&mut self, thousandths: u64) {
        for time in [&mut self.admission, &mut self.loss, &mut self.consolidation] {
            *time = time.saturating_mul(thousandths) / 1000;
        }
        for layer in &mut self.layers {
            for time in [&mut layer.forward, &mut layer.backward, &mut layer.update, &mut layer.copy] {
                *time = time.saturating_mul(thousandths) / 1000;
            }
        }
    }

    /// A whole step one task after the other, nothing handed over.
    pub fn step(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.forward + layer.backward + layer.update);
        self.admission + self.loss + self.consolidation + layers.sum::<u64>()
    }
}

/// What one trial works on.
struct Bench<'a> {
    network: &'a Network,
    rule: Rule,
    ledger: &'a Ledger,
    rows: Rows,
    /// Those of a look ahead: a step's own, and candidates.
    ahead: Option<[Rows; 2]>,
    /// Each layer as a stage of its own.
    plans: Vec<StagePlan>,
    /// The recomputed segments.
    whole: StagePlan,
    states: Vec<Vec<LayerState>>,
}

impl<'a> Bench<'a> {
    fn new(trial: &'a Trial, ledger: &'a Ledger) -> Result<Bench<'a>, FoldError> {
        let network = &*trial.network;
        let mut states = Vec::with_capacity(network.layers.len());
        for (weights, layer) in network.initial_weights(0)?.into_iter().zip(&network.layers) {
            let parameters = layer.parameters();
            let moments = parameters.iter().map(|parameter| trial.rule.optimiser.initial_moments(parameter));
            let moments = moments.collect::<candle_core::Result<_>>()?;
            let tuner = Tuner::zero(&trial.rule.compensation, &parameters, ledger)?;
            let mut state = LayerState::new(weights, moments, tuner, 0, ledger);
            if trial.rule.learner.anchors() > 0 && !parameters.is_empty() {
                let copies = || state.weights().tensors().iter().map(deep_copy).collect::<candle_core::Result<Vec<_>>>();
                state.anchor = Some(Anchor::new(copies()?, copies()?, ledger));
            }
            states.push(vec![state]);
        }
        let candidates = trial.rule.learner.candidate_rows();
        let layers = network.layers.len();
        Ok(Bench {
            network,
            rule: trial.rule,
            ledger,
            rows: made_up(network, trial.step_rows),
            ahead: (candidates > 0).then(|| [trial.own_rows(), candidates].map(|rows| made_up(network, rows))),
            plans: (0..layers).map(|layer| StagePlan::whole(layer..layer + 1)).collect(),
            whole: StagePlan { recompute: trial.recompute.clone(), ..StagePlan::whole(0..layers) },
            states,
        })
    }

    /// One step with the time of each of its parts.
    fn step(&mut self) -> Result<Profile, FoldError> {
        let layers = self.network.layers.len();
        let mut times = Profile { layers: vec![LayerTimes::default(); layers], ..Profile::default() };
        times.consolidation = self.consolidation()?;
        times.loss = self.look_ahead()?;
        let began = Instant::now();
        let targets = input::targets(&self.rows)?;
        let features = input::features(&self.rows, &self.network.input_shape)?;
        if self.network.observes() {
            let mut advanced = self.states[0][0].weights().tensors().to_vec();
            self.network.observe(&mut advanced, &features)?;
        }
        let mut at = Counted::new(features, Part::Activations, self.ledger);
        let taught = match self.rule.learner {
            Learner::Lwf { .. } => Some(self.network.predict(self.weights(), deep_copy(&at.tensor)?)?),
            _ => None,
        };
        times.admission = nanoseconds(began);
        let (mut inputs, mut kept) = (Vec::new(), Vec::with_capacity(layers));
        if self.whole.recompute.is_empty() {
            at = self.forward(0..layers, at, Some(&mut kept), &mut times)?;
        }
        for segment in self.whole.segments() {
            inputs.push(at.clone());
            at = self.forward(segment, at, None, &mut times)?;
        }
        let began = Instant::now();
        let evaluated = loss(self.network.loss, &at.tensor, &targets, None)?;
        if let (Some(taught), Learner::Lwf { weight, temperature, .. }) = (taught, self.rule.learner) {
            distil(self.network.loss, &at.tensor, &taught, (weight, temperature), &evaluated.gradient)?;
        }
        drop(at);
        let mut gradient = Some(Counted::new(evaluated.gradient, Part::Gradients, self.ledger));
        times.loss += nanoseconds(began);
        let mut gathered = Vec::with_capacity(layers);
        for (segment, input) in self.whole.segments().zip(inputs).collect::<Vec<_>>().into_iter().rev() {
            drop(self.forward(segment, input, Some(&mut kept), &mut times)?);
            gradient = self.backward(&mut kept, gradient, &mut gathered, &mut times)?;
        }
        self.backward(&mut kept, gradient, &mut gathered, &mut times)?;
        self.update(gathered, &mut times)?;
        Ok(times)
    }

    /// Each layer's weights.
    fn weights(&self) -> Vec<&[Tensor]> {
        self.states.iter().map(|state| state[0].weights().tensors()).collect()
    }

    /// What the step's share of consolidations takes: of one row's importance, times the rows that a step's own ones bring (MAS).
    fn consolidation(&self) -> Result<u64, FoldError> {
        let Learner::Mas { every_rows, sample_rows, .. } = self.rule.learner else { return Ok(0) };
        let features = input::features(&made_up(self.network, 1), &self.network.input_shape)?;
        let found = importance::none_yet(self.network)?;
        let began = Instant::now();
        importance::add(self.network, &self.weights(), features, 1.0, &found, self.ledger)?;
        let rows = sample_rows as f64 * self.rows.count as f64 / every_rows as f64;
        Ok((nanoseconds(began) as f64 * rows) as u64)
    }

    /// What choosing the rows to replay takes (MIR).
    fn look_ahead(&self) -> Result<u64, FoldError> {
        let Some([own, candidates]) = &self.ahead else { return Ok(0) };
        let versions: Vec<_> = self.states.iter().map(|state| state[0].weights().clone()).collect();
        let stage = Stage { network: self.network, plan: &self.whole, ledger: self.ledger };
        let began = Instant::now();
        stage.look_ahead(&versions, [own, candidates], self.rule.learner.replay_rows(), LEARNING_RATE)?;
        Ok(nanoseconds(began))
    }

    fn stage(&self, layer: usize) -> Stage<'_> {
        Stage { network: self.network, plan: &self.plans[layer], ledger: self.ledger }
    }

    /// Goes through layers; `kept` takes what their backwards need, where there will be any.
    fn forward(
        &self,
        layers: std::ops::Range<usize>,
        mut at: Counted,
        mut kept: Option<&mut Vec<(usize, Kept)>>,
        times: &mut Profile,
    ) -> Result<Counted, FoldError> {
        for layer in layers {
            let versions = vec![self.states[layer][0].weights().clone()];
            let began = Instant::now();
            let (output, left) = self.stage(layer).forward(versions, at, kept.is_some())?;
            // Where the layers are gone through twice, this keeps the second time.
            times.layers[layer].forward = nanoseconds(began);
            if let (Some(kept), Some(left)) = (&mut kept, left) {
                kept.push((layer, left));
            }
            at = output;
        }
        Ok(at)
    }

    fn backward(
        &self,
        kept: &mut Vec<(usize, Kept)>,
        mut gradient: Option<Counted>,
        gathered: &mut Vec<(usize, StageGradients)>,
        times: &mut Profile,
    ) -> Result<Option<Counted>, FoldError> {
        let lowest = self.network.first_learning_layer();
        while let Some((layer, left)) = kept.pop() {
            let Some(above) = gradient.take_if(|_| layer >= lowest) else { continue };
            let began = Instant::now();
            let (below, gradients) = self.stage(layer).backward(left, above, layer > lowest)?;
            gradients.are_finite()?;
            times.layers[layer].backward = nanoseconds(began);
            gradient = below;
            gathered.push((layer, gradients));
        }
        Ok(gradient)
    }

    fn update(&mut self, gathered: Vec<(usize, StageGradients)>, times: &mut Profile) -> Result<(), FoldError> {
        for (layer, gradients) in gathered {
            let stage = Stage { network: self.network, plan: &self.plans[layer], ledger: self.ledger };
            let how = self.rule.how(LEARNING_RATE, Part::Snapshots);
            let began = Instant::now();
            stage.update(&mut self.states[layer], gradients, Trail::default(), how)?;
            times.layers[layer].update = nanoseconds(began);
            let began = Instant::now();
            let state = &mut self.states[layer][0];
            let newest = state.weights().clone();
            let copies = newest.tensors().iter().map(deep_copy).collect::<candle_core::Result<Vec<_>>>()?;
            if !state.tuner.means.is_empty() {
                // Any numbers do for gradients, and no displacement takes as long as another.
                state.tuner.compensate(&self.rule.compensation, &copies, &[newest.clone(), newest])?;
            }
            drop(copies);
            times.layers[layer].copy = nanoseconds(began);
        }
        Ok(())
    }
}

/// What handing one task over costs: a step of a network of next to nothing, divided by its tasks.
fn handover(pool: &Pool) -> Result<u64, FoldError> {
    let network = Network::build(&Architecture::Linear { standardise: Some(false) }, &[1], 1, Loss::MeanSquaredError, false)
        .map_err(|error| FoldError::Contract(error.to_string()))?;
    let rows = made_up(&network, 1);
    let plan = Plan::bare(0, vec![StagePlan::whole(0..network.layers.len())], 1, 1);
    let layout = RowLayout { element: Element::F32, width: 1, classes: false };
    let pipeline = Pipeline::new(Arc::new(network), Rule::default(), layout, LEARNING_RATE, plan, 0, Ledger::default())?;
    let mut engine = Engine::new(pipeline, Executor::Threads(pool.clone()));
    steps(&mut engine, &rows, HANDOVER_STEPS / 4)?;
    let nanoseconds = steps(&mut engine, &rows, HANDOVER_STEPS)?;
    engine.drain(&mut Vec::new())?;
    Ok(nanoseconds / (HANDOVER_STEPS * HANDOVER_TASKS))
}

/// Gives a pipeline so many steps, as fast as it takes them, and tells how long that took.
fn steps(engine: &mut Engine, rows: &Rows, count: u64) -> Result<u64, FoldError> {
    let (began, mut outcomes) = (Instant::now(), Vec::new());
    for number in 0..count {
        engine.apply(Step::starting(1 + number, rows.clone()), &mut outcomes)?;
    }
    Ok(nanoseconds(began))
}

/// Rows of uniform features and any labels, always the same ones.
pub fn made_up(network: &Network, count: usize) -> Rows {
    let mut generator = random::stream(1, 0, "made-up rows");
    let width: usize = network.input_shape.iter().product();
    let bytes: Bytes = (0..width * count).flat_map(|_| random::uniform(&mut generator).to_le_bytes()).collect();
    let target = match network.loss {
        Loss::SoftmaxCrossEntropy => {
            let classes = network.outputs.max(1) as u32;
            Target::Classes((0..count).map(|_| generator.next_u32() % classes).collect())
        }
        Loss::MeanSquaredError => Target::Values((0..count).map(|_| random::uniform(&mut generator)).collect()),
    };
    let block = Block { element: Element::F32, width, bytes };
    Rows { count, blocks: vec![block], target: Some(target), ..Rows::default() }
}

/// Newest times of each kind of task that are kept, and with fewer than which no median is told.
const OBSERVED: usize = 33;
const OBSERVED_LEAST: usize = 16;

/// How long the newest tasks under a plan took.
#[derive(Clone, Debug)]
pub struct Observed(Vec<[VecDeque<u64>; 3]>);

impl Observed {
    /// Of a plan of so many stages, under which none has run.
    pub fn new(stages: usize) -> Observed {
        Observed(std::iter::repeat_with(Default::default).take(stages).collect())
    }

    /// Notes what a task took.
    pub fn note(&mut self, task: Task, nanoseconds: u64) {
        let times = match task {
            Task::Admit => return,
            Task::Forward { stage, .. } => &mut self.0[stage][0],
            Task::Backward { stage, .. } => &mut self.0[stage][1],
            Task::Update { stage, .. } => &mut self.0[stage][2],
        };
        if times.len() == OBSERVED {
            times.pop_front();
        }
        times.push_back(nanoseconds);
    }

    /// Of a stage's forwards, backwards and updates, once enough of each have run.
    pub fn medians(&self, stage: usize) -> Option<[u64; 3]> {
        let times = &self.0[stage];
        let enough = times.iter().all(|times| times.len() >= OBSERVED_LEAST);
        enough.then(|| [0, 1, 2].map(|task: usize| median(times[task].iter().copied().collect())))
    }
}

/// Does something, and tells how many nanoseconds it took.
pub fn timed<T>(what: impl FnOnce() -> T) -> (T, u64) {
    let began = Instant::now();
    let done = what();
    (done, nanoseconds(began))
}

fn nanoseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(architecture: &str, shape: &[usize], recompute: Vec<usize>) -> Trial {
        let architecture: Architecture = serde_json::from_str(architecture).unwrap();
        let network = Arc::new(Network::build(&architecture, shape, 10, Loss::SoftmaxCrossEntropy, false).unwrap());
        Trial { network, rule: Rule::default(), step_rows: 4, recompute }
    }

    #[test]
    fn every_layer_that_learns_is_measured_whether_recomputed_or_not() {
        let pool = Pool::new(2, 0).unwrap();
        for recompute in [vec![], vec![0, 3]] {
            let trial = trial(r#"{"architecture":"convnet"}"#, &[3, 32, 32], recompute);
            let profile = trial.run(&pool).unwrap();
            assert_eq!((profile.step_rows, profile.threads, profile.layers.len()), (4, 2, trial.network.layers.len()));
            assert!(profile.handover > 0, "{profile:?}");
            for (layer, times) in trial.network.layers.iter().zip(&profile.layers) {
                assert!(times.forward > 0 && times.backward > 0, "{}: {times:?}", layer.name());
                assert!(layer.parameters().is_empty() || times.update > 0, "{}: {times:?}", layer.name());
            }
        }
    }

    #[test]
    fn what_a_learner_does_beside_a_step_is_measured() {
        let pool = Pool::new(1, 0).unwrap();
        let measured = |learner: Learner| {
            let plain = trial(r#"{"architecture":"mlp","hidden":[256,256]}"#, &[256], vec![]);
            let rule = Rule { learner, ..Rule::default() };
            Trial { rule, step_rows: 16 + learner.replay_rows(), ..plain }.run(&pool).unwrap()
        };
        let er = measured(Learner::Er { buffer_rows: 100, replay_rows: 16 });
        let mir = measured(Learner::Mir { buffer_rows: 100, replay_rows: 16, candidate_rows: 48 });
        // Forward and backward of half the rows, and two forwards of one and a half times as many.
        assert!(mir.loss > er.loss + er.step() / 4, "{mir:?} {er:?}");
        let lwf = measured(Learner::Lwf { weight: 1.0, temperature: 2.0, every_rows: 1000 });
        let vanilla = measured(Learner::Vanilla {});
        let forward = |profile: &Profile| profile.layers.iter().map(|layer| layer.forward).sum::<u64>();
        assert!(lwf.admission > vanilla.admission + forward(&vanilla) / 4, "{lwf:?} {vanilla:?}");
        let mas = measured(Learner::Mas { weight: 0.01, every_rows: 1000, sample_rows: 64 });
        assert!(mas.consolidation > 0 && vanilla.consolidation == 0 && mas.step() > vanilla.step(), "{mas:?} {vanilla:?}");
    }

    #[test]
    fn statistics_need_no_backward() {
        let pool = Pool::new(1, 0).unwrap();
        let profile = trial(r#"{"architecture":"linear","standardise":true}"#, &[3], vec![]).run(&pool).unwrap();
        assert!(profile.layers[0].backward == 0 && profile.layers[1].backward > 0, "{profile:?}");
    }
}
