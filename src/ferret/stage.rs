//! A stage: a run of layers whose forward, backward and update are three tasks of a step.
//!
//! A version of a layer's weights is copy-on-write: an update works in place when nobody else holds it, and otherwise in fresh
//! storage behind a new `Arc`; the values are the same either way. Tensors are lent and never cloned out of a version, because a
//! candle clone shares storage behind the `Arc`'s back. Every storage is counted in the ledger by the rules of
//! [`super::footprint`], so that what the walk predicts and what a step holds can be compared byte by byte.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::compensation::{Compensation, Tuner};
use super::footprint::TENSOR_HEADER_BYTES;
use super::plan::StagePlan;
use crate::learner::Anchor;
use crate::ledger::{Guard, Ledger, Part};
use crate::network::compensate::pull;
use crate::network::{Gradient, Network, Optimiser, Stash, deep_copy, optimiser};

/// One version of one layer's weights (or statistics); whoever holds it may read it, nobody may change it.
#[derive(Debug)]
pub struct LayerWeights {
    tensors: Vec<Tensor>,
    guard: Guard,
}

impl LayerWeights {
    /// Counts the storage of `tensors`, which nobody else may hold.
    pub fn new(tensors: Vec<Tensor>, ledger: &Ledger) -> LayerWeights {
        let bytes = tensors.iter().map(held_bytes).sum();
        LayerWeights { tensors, guard: ledger.take(Part::Weights, bytes) }
    }

    /// The layer's tensors, in the order of its parameters.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Says what this version is held for from now on.
    pub fn hold_for(&self, part: Part) {
        self.guard.reclassify(part);
    }
}

/// What the elements of a tensor take.
pub(super) fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// What a tensor that stays takes, its header included: in a network of many small ones they add up.
pub(super) fn held_bytes(tensor: &Tensor) -> u64 {
    tensor_bytes(tensor) + TENSOR_HEADER_BYTES
}

/// What one layer is: its newest weights and the optimiser's tensors, kept by layer whatever stage the plan puts it in.
#[derive(Debug)]
pub struct LayerState {
    weights: Arc<LayerWeights>,
    /// Per parameter, the optimiser's tensors.
    optimiser: Vec<Vec<Tensor>>,
    /// What gradient compensation remembers.
    pub(super) tuner: Tuner,
    /// What its weights are held by.
    pub(super) anchor: Option<Anchor>,
    /// Updates so far.
    updates: u64,
    _optimiser_guard: Guard,
}

impl LayerState {
    /// A layer that begins with `weights` and `optimiser`, which nobody else may hold, after so many `updates`.
    pub fn new(weights: Vec<Tensor>, optimiser: Vec<Vec<Tensor>>, tuner: Tuner, updates: u64, ledger: &Ledger) -> LayerState {
        let bytes = optimiser.iter().flatten().map(held_bytes).sum();
        LayerState {
            weights: Arc::new(LayerWeights::new(weights, ledger)),
            optimiser,
            tuner,
            anchor: None,
            updates,
            _optimiser_guard: ledger.take(Part::Optimiser, bytes),
        }
    }

    /// The newest version.
    pub fn weights(&self) -> &Arc<LayerWeights> {
        &self.weights
    }

    /// The optimiser's tensors of each parameter.
    pub fn optimiser(&self) -> &[Vec<Tensor>] {
        &self.optimiser
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Storage that nobody but this layer holds, with the newest values; the version before is then `superseded`.
    fn make_exclusive(&mut self, superseded: Part, ledger: &Ledger) -> Result<()> {
        if Arc::get_mut(&mut self.weights).is_none() {
            let fresh = self.weights.tensors.iter().map(deep_copy).collect::<Result<_>>()?;
            self.weights.hold_for(superseded);
            self.weights = Arc::new(LayerWeights::new(fresh, ledger));
        }
        Ok(())
    }
}

/// A tensor with the ledger's entry of its storage; tensors that share storage share the entry.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The values.
    pub tensor: Tensor,
    guard: Arc<Guard>,
}

impl Counted {
    /// Counts fresh storage.
    pub fn new(tensor: Tensor, part: Part, ledger: &Ledger) -> Counted {
        let guard = Arc::new(ledger.take(part, tensor_bytes(&tensor)));
        Counted { tensor, guard }
    }
}

/// What the forward of one layer leaves for its backward.
struct LayerStash {
    stash: Stash,
    _held: Vec<Arc<Guard>>,
    input: Option<Arc<Guard>>,
}

/// The gradients of one layer, and the ledger's entries of all that they keep alive.
struct LayerGradients {
    layer: usize,
    gradients: Vec<Gradient>,
    /// What the update takes for a moment: scratch, and gradients made dense.
    scratch: u64,
    dense: u64,
    _held: Vec<Arc<Guard>>,
}

/// What a forward leaves for the backward of the same step.
pub struct Kept {
    versions: Vec<Arc<LayerWeights>>,
    left: Left,
}

enum Left {
    /// Of each layer.
    Stashes(Vec<LayerStash>),
    /// The inputs of segments that backward recomputes.
    Inputs(Vec<Counted>),
}

/// What a backward leaves for the update of the same step.
pub struct StageGradients(Vec<LayerGradients>);

impl StageGradients {
    /// Takes a plain step along these from `weights`, which are each layer's of a stage and nobody else's.
    pub fn descend(self, stage: Range<usize>, weights: &[Vec<Tensor>], learning_rate: f64, ledger: &Ledger) -> Result<()> {
        for LayerGradients { layer, gradients, scratch, _held, .. } in self.0 {
            let _scratch = ledger.take(Part::Workspace, scratch);
            for (weight, gradient) in weights[layer - stage.start].iter().zip(gradients) {
                Optimiser::default().update(weight, &[], gradient, learning_rate, 1)?;
            }
        }
        Ok(())
    }

    /// Whether no update by these can leave the finite numbers for that reason.
    pub fn are_finite(&self) -> Result<bool> {
        for gradient in self.0.iter().flat_map(|layer| &layer.gradients) {
            if !gradient.is_finite()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Sums of the gradients of a stage's parameters, which wait for further steps (Ferret's T2).
#[derive(Debug)]
pub struct Accumulated {
    /// Steps in the sums.
    pub steps: u64,
    /// By layer of the stage, then by parameter.
    pub sums: Vec<Vec<Tensor>>,
    _guard: Guard,
}

impl Accumulated {
    /// Sums that were read back, or that begin at zero.
    pub fn new(steps: u64, sums: Vec<Vec<Tensor>>, ledger: &Ledger) -> Accumulated {
        let bytes = sums.iter().flatten().map(held_bytes).sum();
        Accumulated { steps, sums, _guard: ledger.take(Part::Gradients, bytes) }
    }

    fn zero(network: &Network, layers: Range<usize>, ledger: &Ledger) -> Result<Accumulated> {
        let of_layer = |layer: usize| {
            let parameters = network.layers[layer].parameters();
            parameters.iter().map(|parameter| Tensor::zeros(parameter.shape.as_slice(), DType::F32, &Device::Cpu)).collect()
        };
        Ok(Accumulated::new(0, layers.map(of_layer).collect::<Result<_>>()?, ledger))
    }
}

/// One stage of a plan over a network; all state is the caller's.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    /// What is trained.
    pub network: &'a Network,
    /// Which of its layers, and what is given up to save memory.
    pub plan: &'a StagePlan,
    /// Where bytes are counted.
    pub ledger: &'a Ledger,
}

/// The versions of a stage's layers from the one that a step's forward read to the newest; empty where nothing is compensated.
#[derive(Debug, Default)]
pub struct Trail(Vec<Vec<Arc<LayerWeights>>>);

impl Trail {
    /// From versions, oldest first, each of all layers of the stage.
    pub fn new<'a>(versions: impl Iterator<Item = &'a [Arc<LayerWeights>]>) -> Trail {
        let mut layers = Vec::new();
        for version in versions {
            layers.resize_with(version.len(), Vec::new);
            for (trail, layer) in layers.iter_mut().zip(version) {
                trail.push(layer.clone());
            }
        }
        // One version is no way.
        layers.retain(|trail: &Vec<_>| trail.len() > 1);
        Trail(layers)
    }

    fn take(&mut self, layer: usize) -> Vec<Arc<LayerWeights>> {
        self.0.get_mut(layer).map(std::mem::take).unwrap_or_default()
    }
}

/// How a stage is updated.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// From gradients to weights.
    pub optimiser: &'a Optimiser,
    /// For the updates that gradients missed.
    pub compensation: &'a Compensation,
    /// What the distance of weights to their anchors weighs.
    pub anchoring: Option<f64>,
    /// The learning rate that holds.
    pub learning_rate: f64,
    /// What the version before is held for from now on, if anybody still holds it: steps in flight, or readers alone.
    pub superseded: Part,
}

impl Stage<'_> {
    /// Forward: reads `versions` (one for each layer of the stage) and gives the stage's output, and what backward needs if there
    /// will be one (`learns`).
    pub fn forward(&self, versions: Vec<Arc<LayerWeights>>, input: Counted, learns: bool) -> Result<(Counted, Option<Kept>)> {
        let layers = self.plan.layers.clone();
        if learns && self.plan.recompute.is_empty() {
            let (output, stashes) = self.forward_layers(layers, &versions, input)?;
            return Ok((output, Some(Kept { versions, left: Left::Stashes(stashes) })));
        }
        if !learns {
            return Ok((self.predict_layers(layers, &versions, input)?, None));
        }
        let (mut at, mut inputs) = (input, Vec::with_capacity(self.plan.recompute.len()));
        for segment in self.plan.segments() {
            inputs.push(at.clone());
            let of_segment = &versions[segment.start - layers.start..segment.end - layers.start];
            at = self.predict_layers(segment, of_segment, at)?;
        }
        Ok((at, Some(Kept { versions, left: Left::Inputs(inputs) })))
    }

    fn forward_layers(
        &self,
        layers: Range<usize>,
        versions: &[Arc<LayerWeights>],
        input: Counted,
    ) -> Result<(Counted, Vec<LayerStash>)> {
        let mut at = input;
        let mut stashes = Vec::with_capacity(layers.len());
        for (layer, version) in self.network.layers[layers].iter().zip(versions) {
            let cost = layer.cost(at.tensor.dim(0)?);
            let _workspace = self.ledger.take(Part::Workspace, cost.workspace_forward);
            let Counted { tensor, guard: input_guard } = at;
            let (outputs, stash) = layer.forward(version.tensors(), vec![tensor])?;
            let output = sole(outputs)?;
            let output_guard =
                if cost.output == 0 { input_guard.clone() } else { Arc::new(self.ledger.take(Part::Activations, cost.output)) };
            let mut held = vec![Arc::new(self.ledger.take(Part::Activations, cost.stash))];
            held.extend(cost.keeps_output.then(|| output_guard.clone()));
            stashes.push(LayerStash { stash, _held: held, input: cost.keeps_input.then_some(input_guard) });
            at = Counted { tensor: output, guard: output_guard };
        }
        Ok((at, stashes))
    }

    /// The outputs alone; the same bits as [`Stage::forward_layers`]'.
    fn predict_layers(&self, layers: Range<usize>, versions: &[Arc<LayerWeights>], input: Counted) -> Result<Counted> {
        let mut at = input;
        for (layer, version) in self.network.layers[layers].iter().zip(versions) {
            let cost = layer.cost(at.tensor.dim(0)?);
            let _workspace = self.ledger.take(Part::Workspace, cost.workspace_forward);
            let Counted { tensor, guard: input_guard } = at;
            let output = sole(layer.predict(version.tensors(), vec![tensor])?)?;
            let guard = if cost.output == 0 { input_guard } else { Arc::new(self.ledger.take(Part::Activations, cost.output)) };
            at = Counted { tensor: output, guard };
        }
        Ok(at)
    }

    /// Backward: reads the versions that the forward read, and gives the gradient of the stage's input if the stages below learn the
    /// step too.
    pub fn backward(&self, kept: Kept, output_gradient: Counted, below: bool) -> Result<(Option<Counted>, StageGradients)> {
        // The lowest layer that need not pass a gradient on.
        let lowest = self.network.first_learning_layer();
        let last = if below { lowest } else { lowest.max(self.plan.layers.start) };
        let Kept { versions, left } = kept;
        let layers = self.plan.layers.clone();
        let mut gathered = Vec::with_capacity(layers.len());
        let mut gradient = Some(output_gradient);
        match left {
            Left::Stashes(stashes) => {
                gradient = self.backward_layers(layers, last, &versions, stashes, gradient, &mut gathered)?
            }
            Left::Inputs(inputs) => {
                for (segment, input) in self.plan.segments().rev().zip(inputs.into_iter().rev()) {
                    let of_segment = &versions[segment.start - layers.start..segment.end - layers.start];
                    let (output, stashes) = self.forward_layers(segment.clone(), of_segment, input)?;
                    drop(output);
                    gradient = self.backward_layers(segment, last, of_segment, stashes, gradient, &mut gathered)?;
                }
            }
        }
        Ok((gradient, StageGradients(gathered)))
    }

    fn backward_layers(
        &self,
        layers: Range<usize>,
        last: usize,
        versions: &[Arc<LayerWeights>],
        stashes: Vec<LayerStash>,
        output_gradient: Option<Counted>,
        gathered: &mut Vec<LayerGradients>,
    ) -> Result<Option<Counted>> {
        let mut at = output_gradient;
        for ((layer, version), kept) in layers.zip(versions).zip(stashes).rev() {
            let Some(Counted { tensor, guard }) = at.take_if(|_| layer >= last) else { return Ok(None) };
            let wanted = layer > last;
            let cost = self.network.layers[layer].cost(tensor.dim(0)?);
            let scratch = if wanted { cost.workspace_backward } else { cost.workspace_backward_alone };
            let _workspace = self.ledger.take(Part::Workspace, scratch);
            let (inputs, gradients) = self.network.layers[layer].backward(version.tensors(), kept.stash, vec![tensor], wanted)?;
            let mut held = vec![Arc::new(self.ledger.take(Part::Gradients, cost.weight_gradient))];
            if cost.keeps_output_gradient {
                held.push(guard.clone());
                held.extend(kept.input);
            }
            let (scratch, dense) = (cost.workspace_update, cost.weight_gradient_dense - cost.weight_gradient);
            gathered.push(LayerGradients { layer, gradients, scratch, dense, _held: held });
            if wanted {
                let fresh = cost.input_gradient > 0;
                let guard = if fresh { Arc::new(self.ledger.take(Part::Gradients, cost.input_gradient)) } else { guard };
                at = Some(Counted { tensor: sole(inputs)?, guard });
            }
        }
        Ok(at)
    }

    /// Update by one step: applies its gradients, compensated along `trail`, to the newest weights, in place where nobody else
    /// holds them.
    pub fn update(&self, states: &mut [LayerState], gradients: StageGradients, mut trail: Trail, how: How<'_>) -> Result<()> {
        for LayerGradients { layer, gradients, scratch, dense, _held } in gradients.0 {
            let state = &mut states[layer - self.plan.layers.start];
            let of_layer = trail.take(layer - self.plan.layers.start);
            let fuses = how.optimiser.fuses() && of_layer.is_empty() && how.anchoring.is_none();
            let _scratch = self.ledger.take(Part::Workspace, scratch);
            let _dense = self.ledger.take(Part::Gradients, if fuses { 0 } else { dense });
            let gradients = compensated(state, gradients, &of_layer, how)?;
            // The oldest version may be this step's alone, and is not counted beside the one that is made now.
            drop(of_layer);
            self.update_layer(state, gradients, how)?;
        }
        Ok(())
    }

    fn update_layer(
        &self,
        state: &mut LayerState,
        gradients: impl IntoIterator<Item = Gradient, IntoIter: ExactSizeIterator>,
        how: How<'_>,
    ) -> Result<()> {
        let gradients = gradients.into_iter();
        if gradients.len() == 0 {
            return Ok(());
        }
        state.make_exclusive(how.superseded, self.ledger)?;
        state.updates += 1;
        for (index, ((weight, moments), gradient)) in
            state.weights.tensors.iter().zip(&state.optimiser).zip(gradients).enumerate()
        {
            let gradient = match (&state.anchor, how.anchoring) {
                (Some(Anchor { importance, centre, .. }), Some(firmness)) => {
                    let dense = gradient.dense()?;
                    // The derivative of firmness · importance · (weight − centre)².
                    pull(&dense, &importance[index], weight, &centre[index], 2.0 * firmness)?;
                    Gradient::Dense(dense)
                }
                _ => gradient,
            };
            how.optimiser.update(weight, moments, gradient, how.learning_rate, state.updates)?;
        }
        Ok(())
    }

    /// Adds a step's gradients, compensated along `trail`, to the sums, which begin where there are none yet.
    pub fn accumulate(
        &self,
        states: &mut [LayerState],
        sums: Option<Accumulated>,
        gradients: StageGradients,
        mut trail: Trail,
        how: How<'_>,
    ) -> Result<Accumulated> {
        let mut accumulated = match sums {
            Some(accumulated) => accumulated,
            None => Accumulated::zero(self.network, self.plan.layers.clone(), self.ledger)?,
        };
        for LayerGradients { layer, gradients, scratch, dense, _held } in gradients.0 {
            let of_layer = trail.take(layer - self.plan.layers.start);
            let _scratch = self.ledger.take(Part::Workspace, scratch);
            let _dense = self.ledger.take(Part::Gradients, if of_layer.is_empty() { 0 } else { dense });
            let gradients = compensated(&mut states[layer - self.plan.layers.start], gradients, &of_layer, how)?;
            for (sum, gradient) in accumulated.sums[layer - self.plan.layers.start].iter().zip(&gradients) {
                optimiser::add(sum, gradient)?;
            }
        }
        accumulated.steps += 1;
        Ok(accumulated)
    }

    /// Update by the mean of the gradients of several steps; `false` if the sums left the finite numbers, and taught nothing.
    pub fn update_by_mean(&self, states: &mut [LayerState], accumulated: Accumulated, how: How<'_>) -> Result<bool> {
        let Accumulated { steps, sums, _guard } = accumulated;
        for sum in sums.iter().flatten() {
            optimiser::scale(sum, 1.0 / steps as f64)?;
            if !crate::network::is_finite(sum)? {
                return Ok(false);
            }
        }
        for (state, sums) in states.iter_mut().zip(sums) {
            self.update_layer(state, sums.into_iter().map(Gradient::Dense), how)?;
        }
        Ok(true)
    }
}

/// The gradients of one layer as they are at its newest version.
fn compensated(
    state: &mut LayerState,
    gradients: Vec<Gradient>,
    trail: &[Arc<LayerWeights>],
    how: How<'_>,
) -> Result<Vec<Gradient>> {
    if trail.len() < 2 {
        return Ok(gradients);
    }
    let dense = gradients.into_iter().map(Gradient::dense).collect::<Result<Vec<_>>>()?;
    state.tuner.compensate(how.compensation, &dense, trail)?;
    Ok(dense.into_iter().map(Gradient::Dense).collect())
}

fn sole(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    match (tensors.pop(), tensors.is_empty()) {
        (Some(tensor), true) => Ok(tensor),
        _ => candle_core::bail!("a layer of a chain has one input and one output"),
    }
}
