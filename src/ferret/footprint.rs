//! What steps in flight hold, known before anything is allocated: a walk of the layers' costs in the order of a real step.
//!
//! The walk keeps account of every storage as the step itself does, with the same rules of sharing (a layer in place hands its
//! input's storage on, a stash keeps an input alive, a factored gradient keeps its output gradient), so the peak that it finds
//! is the step's own peak and not a bound with a safety factor.
//!
//! From one step's walk follows what a whole pipeline holds at most ([`Walked::steps`]). At most N·P steps are in flight, and at
//! most lag(j) of them are *resident* at stage j, from the start of their forward there to the end of their update. So N steps
//! may have come as far as each level of the pipeline, or be anywhere below it. A step that is at stage t has one thing in hand (an
//! activation on its way up or a gradient on its way down) and, at every stage up to t that learns it, what its backward needs.
//! Beside that, N steps at most wait at each stage with gradients for their turn, and as many tasks as there are threads are in the
//! middle of their work. So the bytes are at most
//!
//! ```text
//! Σ N · in_hand(j)  +  Σ learned(j) · kept(j)  +  Σ (N − 1) · waiting(j)  +  threads · transient
//! ```
//!
//! where `in_hand(j)` and `kept(j)` are those of the fullest place up to stage j, `learned(j)` is the number of resident steps that the
//! stage learns, `waiting(j)` is what gradients take beyond that while an older step's update is due, and `transient` is the most
//! that any task takes beyond what its step is allowed already. A run that lets the pipeline fill comes within 5 %
//! (`tests/ledger.rs`).
//!
//! Fewer rows do not always take less scratch, because how the gemm packs its operands depends on their sizes in steps. So the
//! walk goes by the most scratch that a step of any number of rows takes.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{Plan, StagePlan};
use crate::network::{Cost, Network, Parameter};

/// Bytes of one element of every tensor that is trained.
const F32: u64 = 4;
/// Bytes of one element of a statistic.
const F64: u64 = 8;
/// What a candle tensor takes beside its elements: its shape, its layout, two reference counts and a lock.
pub const TENSOR_HEADER_BYTES: u64 = 272;

/// Bytes of steps, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepBytes {
    /// Inputs, outputs and stashes.
    pub activations: u64,
    /// Gradients of weights and of activations.
    pub gradients: u64,
    /// Scratch of the kernels that run then.
    pub workspace: u64,
}

impl StepBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.activations.saturating_add(self.gradients).saturating_add(self.workspace)
    }

    fn larger(self, other: StepBytes) -> StepBytes {
        if other.total() > self.total() { other } else { self }
    }

    fn add(&mut self, times: u64, other: StepBytes) {
        let sum = |bytes: u64, more: u64| bytes.saturating_add(times.saturating_mul(more));
        self.activations = sum(self.activations, other.activations);
        self.gradients = sum(self.gradients, other.gradients);
        self.workspace = sum(self.workspace, other.workspace);
    }

    /// What `self` has beyond `allowed`, in all; scratch is named as such, the rest counts as gradients.
    fn beyond(self, allowed: u64) -> StepBytes {
        let more = self.total().saturating_sub(allowed);
        let workspace = self.workspace.min(more);
        StepBytes { activations: 0, gradients: more - workspace, workspace }
    }
}

/// One buffer that the walk follows.
struct Storage {
    bytes: u64,
    holders: u32,
    gradient: bool,
}

#[derive(Default)]
struct Walk {
    storages: Vec<Storage>,
    now: StepBytes,
    peak: StepBytes,
}

impl Walk {
    fn allocate(&mut self, bytes: u64, gradient: bool) -> usize {
        self.storages.push(Storage { bytes, holders: 1, gradient });
        if gradient {
            self.now.gradients += bytes
        } else {
            self.now.activations += bytes
        }
        self.note(0);
        self.storages.len() - 1
    }

    fn hold(&mut self, storage: usize) -> usize {
        self.storages[storage].holders += 1;
        storage
    }

    fn release(&mut self, storage: usize) {
        let storage = &mut self.storages[storage];
        storage.holders -= 1;
        if storage.holders == 0 {
            if storage.gradient { self.now.gradients -= storage.bytes } else { self.now.activations -= storage.bytes }
        }
    }

    fn release_all(&mut self, storages: impl IntoIterator<Item = usize>) {
        for storage in storages {
            self.release(storage);
        }
    }

    /// Notes the moment at which a kernel uses `workspace` bytes beside all that is held.
    fn note(&mut self, workspace: u64) {
        let moment = StepBytes { workspace, ..self.now };
        self.peak = self.peak.larger(moment);
    }

    /// The most bytes since this was last asked, and a new measurement from the present level.
    fn take_peak(&mut self) -> StepBytes {
        std::mem::replace(&mut self.peak, self.now)
    }
}

/// What the stash of a layer holds on to.
struct Kept {
    input: Option<usize>,
    output: Option<usize>,
    stash: usize,
}

impl Kept {
    fn all(self) -> impl Iterator<Item = usize> {
        self.input.into_iter().chain(self.output).chain([self.stash])
    }
}

/// What a stage's forward leaves for its backward.
enum Left {
    /// Of each layer.
    Stashes(Vec<Kept>),
    /// The inputs of segments that backward recomputes.
    Inputs(Vec<usize>),
}

/// A step at one stage.
#[derive(Clone, Copy, Debug, Default)]
struct AtStage {
    /// What a resident step leaves here.
    kept: StepBytes,
    /// What it has in hand while it is not at the stage above: its output, or that output's gradient.
    in_hand: StepBytes,
    /// What it held before the forward, in the stages below.
    below: u64,
    /// The most that its forward, backward and update hold.
    peaks: [StepBytes; 3],
    /// What it holds between backward and update.
    waiting: StepBytes,
}

/// What one layer keeps, in bytes with the headers of its tensors.
#[derive(Clone, Copy, Debug, Default)]
struct LayerBytes {
    /// Parameters, which an optimiser keeps moments of.
    parameters: u64,
    /// Statistics of a standardising layer.
    statistics: u64,
    /// How many tensors those are.
    tensors: u64,
}

/// What a network and its steps take, reckoned once, so that thousands of plans can be compared.
#[derive(Clone, Debug)]
pub struct Footprint {
    network: Arc<Network>,
    fuses: bool,
    step_rows: usize,
    /// Of a step of `step_rows` rows, with the most scratch that a step of any number of rows takes.
    costs: Vec<Cost>,
    layers: Vec<LayerBytes>,
}

impl Footprint {
    /// `fuses` says that the optimiser takes factored gradients as they are ([`crate::network::Optimiser::fuses`]).
    pub fn new(network: Arc<Network>, fuses: bool, step_rows: usize) -> Footprint {
        let costs = network.layers.iter().map(|layer| {
            (1..step_rows).map(|rows| layer.cost(rows)).fold(layer.cost(step_rows), |cost, fewer| Cost {
                workspace_forward: cost.workspace_forward.max(fewer.workspace_forward),
                workspace_backward: cost.workspace_backward.max(fewer.workspace_backward),
                workspace_backward_alone: cost.workspace_backward_alone.max(fewer.workspace_backward_alone),
                workspace_update: cost.workspace_update.max(fewer.workspace_update),
                ..cost
            })
        });
        let bytes = |tensors: &[Parameter], element: u64| -> u64 {
            tensors.iter().map(|tensor| tensor.elements() as u64 * element + TENSOR_HEADER_BYTES).sum()
        };
        let layers = network.layers.iter().map(|layer| {
            let (parameters, statistics) = (layer.parameters(), layer.statistics());
            let tensors = (parameters.len() + statistics.len()) as u64;
            LayerBytes { parameters: bytes(&parameters, F32), statistics: bytes(&statistics, F64), tensors }
        });
        let (costs, layers) = (costs.collect(), layers.collect());
        Footprint { network, fuses, step_rows, costs, layers }
    }

    /// The tensors that some layers keep: parameters and statistics.
    pub fn tensors(&self, layers: Range<usize>) -> u64 {
        self.layers[layers].iter().map(|layer| layer.tensors).sum()
    }

    /// The bytes of all that the layers keep: parameters, and statistics of a standardising layer.
    pub fn weights(&self) -> u64 {
        self.layers.iter().map(|layer| layer.parameters + layer.statistics).sum()
    }

    /// The bytes of the parameters of some layers.
    pub fn parameters(&self, layers: Range<usize>) -> u64 {
        self.layers[layers].iter().map(|layer| layer.parameters).sum()
    }

    /// The bytes of the statistics of a standardising layer; every step in flight has its own.
    pub fn statistics(&self) -> u64 {
        self.layers.iter().map(|layer| layer.statistics).sum()
    }

    /// The bytes that a layer's output takes anew.
    pub fn output(&self, layer: usize) -> u64 {
        self.costs[layer].output
    }

    /// The most that a forward through the whole network holds whose stashes nobody wants, for `rows` rows, beside its input.
    pub fn predicted(&self, rows: usize) -> u64 {
        let costs: Vec<Cost> = self.network.layers.iter().map(|layer| layer.cost(rows)).collect();
        let mut steps = StepWalk { network: &self.network, costs: &costs, fuses: true, walk: Walk::default(), at: 0 };
        steps.at = steps.walk.allocate(0, false);
        (0..costs.len()).for_each(|layer| steps.predict_layer(layer));
        steps.walk.take_peak().total()
    }

    /// The most that a look ahead holds before the step's own forward (MIR), its rows included: a step with `own` rows up to its
    /// backward, a plain update of a copy of the weights, the losses of `candidates` rows under both, and the rows chosen of them.
    pub fn ahead(&self, stage: &StagePlan, own: usize, candidates: usize) -> u64 {
        // The update is plain, whatever the optimiser.
        let looking = Footprint::new(self.network.clone(), true, own);
        let peaks = looking.walk_step(std::slice::from_ref(stage)).first().map_or([0; 3], |at| at.peaks.map(|peak| peak.total()));
        let [forward, backward, update] = peaks;
        let copied = self.weights() + update.max(self.predicted(candidates));
        let chosen = self.input_bytes_of(self.step_rows - own) + self.input_bytes();
        // The rows themselves stay as they are: what is walked begins with a copy of them.
        looking.input_bytes() + forward.max(backward).max(copied).max(chosen)
    }

    /// The most that finding importance holds for one row at a time (MAS), beside what it is added to.
    pub fn one_importance(&self) -> u64 {
        let costs: Vec<Cost> = self.network.layers.iter().map(|layer| layer.cost(1)).collect();
        let mut steps = StepWalk { network: &self.network, costs: &costs, fuses: false, walk: Walk::default(), at: 0 };
        steps.at = steps.walk.allocate(self.input_bytes_of(1), false);
        let left: Vec<Kept> = (0..costs.len()).map(|layer| steps.forward_layer(layer)).collect();
        let gradient = steps.walk.allocate(self.network.outputs as u64 * F32, true);
        steps.walk.release(steps.at);
        steps.at = gradient;
        for (layer, kept) in left.into_iter().enumerate().rev() {
            let mut held = Vec::new();
            steps.backward_layers(layer..layer + 1, vec![kept], &mut held);
            steps.update(held);
        }
        steps.walk.take_peak().total()
    }

    /// The bytes of `rows` rows as the network reads them.
    pub fn input_bytes_of(&self, rows: usize) -> u64 {
        (rows as u64).saturating_mul(self.network.input_shape.iter().product::<usize>() as u64).saturating_mul(F32)
    }

    /// Follows one step through stages.
    pub fn walk(&self, stages: &[StagePlan]) -> Walked {
        let walked = self.walk_step(stages);
        // The most that a step has in hand at any place so far, and that beside what it left on the way.
        let mut in_hand = StepBytes { activations: self.input_bytes(), ..StepBytes::default() };
        let (mut fullest, mut kept) = (in_hand.total(), 0);
        let (mut places, mut transient) = (Vec::with_capacity(walked.len()), StepBytes::default());
        for at in walked {
            let before = fullest - in_hand.total();
            kept += at.kept.total();
            in_hand = in_hand.larger(at.in_hand);
            fullest = fullest.max(kept + at.in_hand.total());
            let kept_more = (fullest - in_hand.total()).saturating_sub(before);
            // What a task takes at most beyond what its step is allowed at its stage.
            let allowed = at.below + at.kept.total() + at.in_hand.total();
            transient = at.peaks.iter().fold(transient, |most, peak| most.larger(peak.beyond(allowed)));
            let waiting = at.waiting.beyond(at.below + at.kept.total());
            places.push(Place { in_hand, kept: StepBytes { activations: kept_more, ..StepBytes::default() }, waiting });
        }
        Walked { places, transient }
    }

    fn input_bytes(&self) -> u64 {
        self.input_bytes_of(self.step_rows)
    }

    /// Follows one step through forward, backward and update of every stage.
    fn walk_step(&self, stages: &[StagePlan]) -> Vec<AtStage> {
        let mut steps = StepWalk { network: &self.network, costs: &self.costs, fuses: self.fuses, walk: Walk::default(), at: 0 };
        steps.at = steps.walk.allocate(self.input_bytes(), false);
        let mut walked: Vec<AtStage> = Vec::with_capacity(stages.len());
        let mut left = Vec::with_capacity(stages.len());
        for (number, stage) in stages.iter().enumerate() {
            let below = walked.last().map_or(0, |below| below.below + below.kept.total());
            steps.walk.take_peak();
            left.push(steps.forward(stage));
            let mut held = steps.walk.now;
            if number + 1 == stages.len() {
                // The loss takes the output and gives its gradient.
                let gradient = steps.walk.allocate(self.step_rows as u64 * self.network.outputs as u64 * F32, true);
                steps.walk.release(steps.at);
                steps.at = gradient;
                held = steps.walk.now;
            }
            let peak = steps.walk.take_peak();
            let storage = &steps.walk.storages[steps.at];
            // What is in hand and held by nobody else.
            let in_hand = if storage.holders > 1 { 0 } else { storage.bytes };
            let kept = held.total() - below - in_hand;
            let in_hand = if storage.gradient {
                StepBytes { gradients: in_hand, ..StepBytes::default() }
            } else {
                StepBytes { activations: in_hand, ..StepBytes::default() }
            };
            let kept = StepBytes { activations: kept, ..StepBytes::default() };
            walked.push(AtStage {
                kept,
                in_hand,
                below,
                peaks: [peak, StepBytes::default(), StepBytes::default()],
                ..AtStage::default()
            });
        }
        for (number, stage) in stages.iter().enumerate().rev() {
            let gradient = &steps.walk.storages[steps.at];
            let in_hand = StepBytes { gradients: gradient.bytes, ..StepBytes::default() };
            walked[number].in_hand = walked[number].in_hand.larger(in_hand);
            steps.walk.take_peak();
            let Some(left) = left.pop() else { continue };
            let until_update = steps.backward(stage, left);
            walked[number].waiting = steps.walk.now;
            walked[number].peaks[1] = steps.walk.take_peak();
            steps.update(until_update);
            walked[number].peaks[2] = steps.walk.take_peak();
        }
        walked
    }
}

/// What one step holds where.
#[derive(Clone, Debug)]
pub struct Walked {
    places: Vec<Place>,
    /// The most that any task takes beyond what its step is allowed already.
    transient: StepBytes,
}

/// A step at one stage, or at any below.
#[derive(Clone, Copy, Debug)]
struct Place {
    in_hand: StepBytes,
    kept: StepBytes,
    waiting: StepBytes,
}

impl Walked {
    /// The most bytes that the steps in flight hold at once under `plan`, whose stages these are, for steps of any number of rows up to
    /// its own.
    pub fn steps(&self, plan: &Plan) -> StepBytes {
        let mut total = StepBytes::default();
        total.add(plan.threads.min(plan.in_flight() as usize) as u64, self.transient);
        for stage in 0..self.places.len() {
            total.add(plan.workers, self.places[stage].in_hand);
            self.add_learned(&mut total, stage, plan.workers, plan.lag(stage).div_ceil(plan.learns_every(stage)));
        }
        total
    }

    /// What the step that was let in last may hold at most, with the task that works on it: what comes before its forward may take that
    /// instead.
    pub fn newest(&self, plan: &Plan) -> u64 {
        let Some(lowest) = self.places.first() else { return 0 };
        // A stage that leaves steps out may leave out this one.
        let kept = if plan.learns_every(0) == 1 { lowest.kept.total() } else { 0 };
        lowest.in_hand.total() + kept + self.transient.total()
    }

    /// Adds what steps hold at `stage` because it learns `learned` of those that are resident there.
    fn add_learned(&self, total: &mut StepBytes, stage: usize, workers: u64, learned: u64) {
        total.add(learned, self.places[stage].kept);
        // Of several workers, all but one may have run ahead of the one whose turn it is.
        total.add(workers.min(learned) - 1, self.places[stage].waiting);
    }
}

/// A walk of one step; `at` is the storage of the activation, or of the gradient, that it has come to.
struct StepWalk<'a> {
    network: &'a Network,
    costs: &'a [Cost],
    fuses: bool,
    walk: Walk,
    at: usize,
}

impl StepWalk<'_> {
    fn forward(&mut self, stage: &StagePlan) -> Left {
        if stage.recompute.is_empty() {
            return Left::Stashes(stage.layers.clone().map(|layer| self.forward_layer(layer)).collect());
        }
        let mut inputs = Vec::with_capacity(stage.recompute.len());
        for segment in stage.segments() {
            inputs.push(self.walk.hold(self.at));
            for layer in segment {
                self.predict_layer(layer);
            }
        }
        Left::Inputs(inputs)
    }

    fn forward_layer(&mut self, layer: usize) -> Kept {
        let cost = self.costs[layer];
        let (walk, at) = (&mut self.walk, self.at);
        let output = if cost.output == 0 { walk.hold(at) } else { walk.allocate(cost.output, false) };
        let stash = walk.allocate(cost.stash, false);
        walk.note(cost.workspace_forward);
        let input = cost.keeps_input.then(|| walk.hold(at));
        let kept = Kept { input, output: cost.keeps_output.then(|| walk.hold(output)), stash };
        walk.release(at);
        self.at = output;
        kept
    }

    /// A forward whose stash nobody wants.
    fn predict_layer(&mut self, layer: usize) {
        let kept = self.forward_layer(layer);
        self.walk.release_all(kept.all());
    }

    /// What is held until the update.
    fn backward(&mut self, stage: &StagePlan, left: Left) -> Vec<(usize, Vec<usize>)> {
        let mut until_update = Vec::with_capacity(stage.layers.len());
        match left {
            Left::Stashes(kept) => self.backward_layers(stage.layers.clone(), kept, &mut until_update),
            Left::Inputs(inputs) => {
                for (segment, input) in stage.segments().rev().zip(inputs.into_iter().rev()) {
                    let gradient = std::mem::replace(&mut self.at, input);
                    let kept = segment.clone().map(|layer| self.forward_layer(layer)).collect();
                    // The recomputed output is known already; only its gradient matters.
                    self.walk.release(self.at);
                    self.at = gradient;
                    self.backward_layers(segment, kept, &mut until_update);
                }
            }
        }
        until_update
    }

    fn backward_layers(&mut self, layers: Range<usize>, kept: Vec<Kept>, until_update: &mut Vec<(usize, Vec<usize>)>) {
        let lowest = self.network.first_learning_layer();
        for (layer, kept) in layers.zip(kept).rev() {
            if layer < lowest {
                self.walk.release_all(kept.all());
                continue;
            }
            let (cost, gradient, walk) = (self.costs[layer], self.at, &mut self.walk);
            let below = match (layer > lowest, cost.input_gradient) {
                (true, 0) => walk.hold(gradient),
                (true, bytes) => walk.allocate(bytes, true),
                (false, _) => walk.allocate(0, true),
            };
            let mut held = vec![walk.allocate(cost.weight_gradient, true)];
            walk.note(if layer > lowest { cost.workspace_backward } else { cost.workspace_backward_alone });
            if cost.keeps_output_gradient {
                held.push(walk.hold(gradient));
                held.extend(kept.input.map(|input| walk.hold(input)));
            }
            until_update.push((layer, held));
            walk.release(gradient);
            walk.release_all(kept.all());
            self.at = below;
        }
    }

    fn update(&mut self, until_update: Vec<(usize, Vec<usize>)>) {
        for (layer, held) in until_update {
            let (cost, walk) = (self.costs[layer], &mut self.walk);
            let dense = walk.allocate(if self.fuses { 0 } else { cost.weight_gradient_dense - cost.weight_gradient }, true);
            walk.note(cost.workspace_update);
            walk.release(dense);
            walk.release_all(held);
        }
    }
}
