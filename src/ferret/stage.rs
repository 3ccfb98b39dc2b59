//! A stage: a run of layers whose forward, backward and update are the three tasks of a step.
//!
//! A version of a layer's weights is copy-on-write: an update works in place when nobody else holds it, and otherwise in fresh
//! storage behind a new `Arc`; the values are the same either way. Tensors are lent and never cloned out of a version, because a
//! candle clone shares storage behind the `Arc`'s back. Every storage is counted in the ledger by the rules of
//! [`super::profile`], so that what the walk predicts and what a step holds can be compared byte by byte.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::ledger::{Guard, Ledger, Part};
use crate::network::{Gradient, Network, Optimiser, Stash, deep_copy};

/// One version of one layer's weights (or statistics); whoever holds it may read it, nobody may change it.
#[derive(Debug)]
pub struct LayerWeights {
    tensors: Vec<Tensor>,
    guard: Guard,
}

impl LayerWeights {
    fn new(tensors: Vec<Tensor>, ledger: &Ledger) -> LayerWeights {
        let bytes = tensors.iter().map(tensor_bytes).sum();
        LayerWeights { tensors, guard: ledger.take(Part::Weights, bytes) }
    }

    /// The layer's tensors, in the order of its parameters.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
}

fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// What one layer is: its newest weights and the optimiser's tensors, kept by layer and never by stage.
#[derive(Debug)]
pub struct LayerState {
    weights: Arc<LayerWeights>,
    /// Per parameter, the optimiser's tensors.
    optimiser: Vec<Vec<Tensor>>,
    _optimiser_guard: Guard,
}

impl LayerState {
    /// A layer that begins with `weights` and `optimiser`, which nobody else may hold.
    pub fn new(weights: Vec<Tensor>, optimiser: Vec<Vec<Tensor>>, ledger: &Ledger) -> LayerState {
        let bytes = optimiser.iter().flatten().map(tensor_bytes).sum();
        LayerState {
            weights: Arc::new(LayerWeights::new(weights, ledger)),
            optimiser,
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

    /// Puts statistics that were advanced at admission in place of the present ones.
    pub fn replace(&mut self, tensors: Vec<Tensor>, ledger: &Ledger) {
        self.retire();
        self.weights = Arc::new(LayerWeights::new(tensors, ledger));
    }

    /// Storage that nobody but this layer holds, with the newest values.
    fn make_exclusive(&mut self, ledger: &Ledger) -> Result<()> {
        if Arc::get_mut(&mut self.weights).is_none() {
            let fresh = self.weights.tensors.iter().map(deep_copy).collect::<Result<_>>()?;
            self.retire();
            self.weights = Arc::new(LayerWeights::new(fresh, ledger));
        }
        Ok(())
    }

    /// The trainer lets go of the present version: if anybody still holds it, it is a reader.
    fn retire(&self) {
        if Arc::strong_count(&self.weights) > 1 {
            self.weights.guard.reclassify(Part::Snapshots);
        }
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
pub struct StageStash(Vec<LayerStash>);

/// What a backward leaves for the update of the same step.
pub struct StageGradients(Vec<LayerGradients>);

impl StageGradients {
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

/// One stage of a plan over a network; all state is the caller's.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    /// What is trained.
    pub network: &'a Network,
    /// Which of its layers.
    pub layers: &'a Range<usize>,
    /// Where bytes are counted.
    pub ledger: &'a Ledger,
}

impl Stage<'_> {
    /// Forward: reads `versions` (one for each layer of the stage) and gives the stage's output and its stash.
    pub fn forward(&self, versions: &[Arc<LayerWeights>], input: Counted) -> Result<(Counted, StageStash)> {
        let mut at = input;
        let mut stashes = Vec::with_capacity(self.layers.len());
        for (layer, version) in self.network.layers[self.layers.clone()].iter().zip(versions) {
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
        Ok((at, StageStash(stashes)))
    }

    /// Backward: reads the versions that the forward read, and gives the gradient of the stage's input where it is wanted.
    pub fn backward(
        &self,
        versions: &[Arc<LayerWeights>],
        stash: StageStash,
        output_gradient: Counted,
        want_input_gradient: bool,
    ) -> Result<(Option<Counted>, StageGradients)> {
        let mut gradient = output_gradient;
        let mut gathered = Vec::with_capacity(self.layers.len());
        let lowest = self.network.first_learning_layer();
        for ((layer, version), kept) in self.layers.clone().zip(versions).zip(stash.0).rev() {
            if layer < lowest {
                return Ok((None, StageGradients(gathered)));
            }
            let wanted = layer > self.layers.start.max(lowest) || (layer > lowest && want_input_gradient);
            let rows = gradient.tensor.dim(0)?;
            let cost = self.network.layers[layer].cost(rows);
            let _workspace = self.ledger.take(Part::Workspace, cost.workspace_backward);
            let Counted { tensor, guard } = gradient;
            let (inputs, gradients) = self.network.layers[layer].backward(version.tensors(), kept.stash, vec![tensor], wanted)?;
            let mut held = vec![Arc::new(self.ledger.take(Part::Gradients, cost.weight_gradient))];
            if cost.keeps_output_gradient {
                held.push(guard.clone());
                held.extend(kept.input);
            }
            let (scratch, dense) = (cost.workspace_update, cost.weight_gradient_dense - cost.weight_gradient);
            gathered.push(LayerGradients { layer, gradients, scratch, dense, _held: held });
            if !wanted {
                return Ok((None, StageGradients(gathered)));
            }
            let fresh = cost.input_gradient > 0;
            let guard = if fresh { Arc::new(self.ledger.take(Part::Gradients, cost.input_gradient)) } else { guard };
            gradient = Counted { tensor: sole(inputs)?, guard };
        }
        Ok((Some(gradient), StageGradients(gathered)))
    }

    /// Update: applies a step's gradients to the newest weights, in place where nobody else holds them. `update` counts the
    /// updates of this stage from 1.
    pub fn update(
        &self,
        layers: &mut [LayerState],
        gradients: StageGradients,
        optimiser: &Optimiser,
        learning_rate: f64,
        update: u64,
    ) -> Result<()> {
        for LayerGradients { layer, gradients, scratch, dense, _held } in gradients.0 {
            if gradients.is_empty() {
                continue;
            }
            let state = &mut layers[layer];
            state.make_exclusive(self.ledger)?;
            let _scratch = self.ledger.take(Part::Workspace, scratch);
            let _dense = self.ledger.take(Part::Gradients, if optimiser.fuses() { 0 } else { dense });
            for ((weight, moments), gradient) in state.weights.tensors.iter().zip(&state.optimiser).zip(gradients) {
                optimiser.update(weight, moments, gradient, learning_rate, update)?;
            }
        }
        Ok(())
    }
}

fn sole(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    match (tensors.pop(), tensors.is_empty()) {
        (Some(tensor), true) => Ok(tensor),
        _ => candle_core::bail!("a layer of a chain has one input and one output"),
    }
}
