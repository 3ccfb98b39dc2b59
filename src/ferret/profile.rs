//! What steps in flight hold, known before anything is allocated: a walk of the layers' costs in the order of a real step.
//!
//! The walk keeps account of every storage as the step itself does, with the same rules of sharing (a layer in place hands its
//! input's storage on, a stash keeps an input alive, a factored gradient keeps its output gradient), so the peak that it finds
//! is the step's own peak and not a bound with a safety factor.
//!
//! From one step's walk follows what a whole pipeline holds at most ([`steps_bytes`]). A step is *resident* at a stage from the
//! start of its forward there to the end of its update. The plan's rule lets at most lag(j) steps be resident at stage j, and of
//! those at most N are not resident at the stage above too; each of these has one more thing in hand, an activation on its way up
//! or a gradient on its way down. Beside that, as many tasks as there are threads are in the middle of their work. So the bytes
//! are at most
//!
//! ```text
//! Σ lag(j) · kept(j)  +  Σ N · in_hand(j)  +  Σ (N − 1) · waiting(j)  +  threads · transient
//! ```
//!
//! where `kept(j)` is what a resident step leaves at stage j (no less than what it would have in hand instead if it were not there
//! yet), `waiting(j)` is what its gradients take beyond that while an older step's update is due, and `transient` is the most that
//! any task takes beyond what its step is allowed already. A run that lets the pipeline fill comes within 5 % (`tests/ledger.rs`).

use std::ops::{Range, RangeInclusive};

use serde::{Deserialize, Serialize};

use super::plan::{Plan, StagePlan};
use crate::network::{Cost, Network};

/// Bytes of one element of every tensor that is trained.
const F32: u64 = 4;
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

/// The tensors that some layers keep: parameters and statistics.
pub fn tensors(network: &Network, layers: Range<usize>) -> u64 {
    network.layers[layers].iter().map(|layer| layer.parameters().len() + layer.statistics().len()).sum::<usize>() as u64
}

/// The bytes of all that the layers of `network` keep: parameters, and statistics of a standardising layer.
pub fn weight_bytes(network: &Network) -> u64 {
    let data: u64 = network.layers.iter().map(|layer| layer.cost(1).weights).sum();
    data + tensors(network, 0..network.layers.len()) * TENSOR_HEADER_BYTES
}

/// The bytes of the parameters of some layers, which an optimiser keeps moments of.
pub fn parameter_bytes(network: &Network, layers: Range<usize>) -> u64 {
    let parameters = network.layers[layers].iter().flat_map(|layer| layer.parameters());
    parameters.map(|parameter| parameter.elements() as u64 * F32 + TENSOR_HEADER_BYTES).sum()
}

/// The bytes of the statistics of a standardising layer; every step in flight has its own.
pub fn statistics_bytes(network: &Network) -> u64 {
    if network.observes() { network.layers[0].cost(1).weights + tensors(network, 0..1) * TENSOR_HEADER_BYTES } else { 0 }
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

/// The most bytes that the steps in flight hold at once under `plan`, for steps of any number of rows up to its own. Fewer rows do
/// not always take less: how the gemm packs its operands depends on their sizes in steps. `fuses` says that the optimiser takes
/// factored gradients as they are ([`crate::network::Optimiser::fuses`]).
pub fn steps_bytes(network: &Network, plan: &Plan, fuses: bool) -> StepBytes {
    bytes_of(network, plan, fuses, 1..=plan.step_rows)
}

/// The same for steps of as many rows as the plan allows and no fewer; quicker, to compare plans by.
pub fn whole_steps_bytes(network: &Network, plan: &Plan, fuses: bool) -> StepBytes {
    bytes_of(network, plan, fuses, plan.step_rows..=plan.step_rows)
}

fn bytes_of(network: &Network, plan: &Plan, fuses: bool, all_rows: RangeInclusive<usize>) -> StepBytes {
    let largest = walk_step(network, &plan.stages, plan.step_rows, fuses);
    let mut total = StepBytes::default();
    let input = StepBytes { activations: input_bytes(network, plan.step_rows), ..StepBytes::default() };
    let mut from_below = input;
    for (stage, at) in largest.iter().enumerate() {
        total.add(plan.lag(stage), at.kept.larger(from_below));
        total.add(plan.workers, at.in_hand);
        // Of several workers, all but one may have run ahead of the one whose turn it is, at every stage.
        total.add(plan.workers - 1, at.waiting.beyond(at.below + at.kept.total()));
        from_below = at.in_hand;
    }
    // What a task takes at most beyond what its step is allowed at its stage.
    let mut transient = StepBytes::default();
    for rows in all_rows {
        let walked;
        let at_rows = if rows == plan.step_rows {
            &largest
        } else {
            walked = walk_step(network, &plan.stages, rows, fuses);
            &walked
        };
        for (of_rows, allowed) in at_rows.iter().zip(&largest) {
            let allowed = of_rows.below + allowed.kept.total() + allowed.in_hand.total();
            transient = of_rows.peaks.iter().fold(transient, |most, peak| most.larger(peak.beyond(allowed)));
        }
    }
    total.add(plan.threads.min(plan.in_flight() as usize) as u64, transient);
    total
}

fn input_bytes(network: &Network, rows: usize) -> u64 {
    (rows as u64).saturating_mul(network.input_shape.iter().product::<usize>() as u64).saturating_mul(F32)
}

/// Follows one step of `rows` rows through forward, backward and update of every stage.
fn walk_step(network: &Network, stages: &[StagePlan], rows: usize, fuses: bool) -> Vec<AtStage> {
    let costs: Vec<Cost> = network.layers.iter().map(|layer| layer.cost(rows)).collect();
    let mut steps = StepWalk { network, costs, fuses, walk: Walk::default(), at: 0 };
    steps.at = steps.walk.allocate(input_bytes(network, rows), false);
    let mut walked: Vec<AtStage> = Vec::with_capacity(stages.len());
    let mut left = Vec::with_capacity(stages.len());
    for (number, stage) in stages.iter().enumerate() {
        let below = walked.last().map_or(0, |below| below.below + below.kept.total());
        steps.walk.take_peak();
        left.push(steps.forward(stage));
        let mut held = steps.walk.now;
        if number + 1 == stages.len() {
            // The loss takes the output and gives its gradient.
            let gradient = steps.walk.allocate(rows as u64 * network.outputs as u64 * F32, true);
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
        steps.update(stage, until_update);
        walked[number].peaks[2] = steps.walk.take_peak();
    }
    walked
}

/// A walk of one step; `at` is the storage of the activation, or of the gradient, that it has come to.
struct StepWalk<'a> {
    network: &'a Network,
    costs: Vec<Cost>,
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

    fn update(&mut self, stage: &StagePlan, until_update: Vec<(usize, Vec<usize>)>) {
        for (layer, held) in until_update {
            let (cost, walk) = (self.costs[layer], &mut self.walk);
            let fuses = self.fuses || stage.accumulation > 1;
            let dense = walk.allocate(if fuses { 0 } else { cost.weight_gradient_dense - cost.weight_gradient }, true);
            walk.note(cost.workspace_update);
            walk.release(dense);
            walk.release_all(held);
        }
    }
}
