//! One branch of a residual block: a list of layers that is run as a whole.

use candle_core::{Error, Result, Tensor};

use super::super::{Cost, Gradient, Layer, Stash, only};
use crate::network::tensor::deep_copy;

/// Layers, first to last; none of them is the identity.
#[derive(Debug)]
pub(super) struct Branch {
    layers: Vec<Box<dyn Layer>>,
    /// How many parameters each has.
    counts: Vec<usize>,
    /// The first layer that learns; the number of layers if none does.
    lowest: usize,
    /// Nobody but the branch's caller needs its output's storage.
    ends_free: bool,
    /// Its backward begins in the storage of the gradient that it is given.
    overwrites: bool,
}

impl Branch {
    pub(super) fn new(layers: Vec<Box<dyn Layer>>) -> Self {
        let counts: Vec<usize> = layers.iter().map(|layer| layer.parameters().len()).collect();
        let lowest = counts.iter().position(|&count| count > 0).unwrap_or(layers.len());
        let costs: Vec<Cost> = layers.iter().map(|layer| layer.cost(1)).collect();
        let ends_free = costs.iter().fold(false, |free, cost| cost.leaves_output_free(free));
        let overwrites = costs.last().is_some_and(|cost| cost.input_gradient == 0);
        Self { layers, counts, lowest, ends_free, overwrites }
    }

    pub(super) fn layers(&self) -> &[Box<dyn Layer>] {
        &self.layers
    }

    /// How many tensors it learns.
    pub(super) fn parameters(&self) -> usize {
        self.counts.iter().sum()
    }

    pub(super) fn lowest(&self) -> usize {
        self.lowest
    }

    pub(super) fn ends_free(&self) -> bool {
        self.ends_free
    }

    pub(super) fn overwrites(&self) -> bool {
        self.overwrites
    }

    /// The output; what each layer keeps is put behind `stashes`. `weights` are all layers', one after the other.
    pub(super) fn forward(&self, weights: &[Tensor], input: Tensor, stashes: &mut Vec<Stash>) -> Result<Tensor> {
        let mut rest = weights;
        let mut at = input;
        for (layer, &count) in self.layers.iter().zip(&self.counts) {
            let (weights, behind) = rest.split_at(count);
            let (outputs, stash) = layer.forward(weights, vec![at])?;
            stashes.push(stash);
            (at, rest) = (only(outputs)?, behind);
        }
        Ok(at)
    }

    /// The output alone.
    pub(super) fn predict(&self, weights: &[Tensor], input: Tensor) -> Result<Tensor> {
        let mut rest = weights;
        let mut at = input;
        for (layer, &count) in self.layers.iter().zip(&self.counts) {
            let (weights, behind) = rest.split_at(count);
            (at, rest) = (only(layer.predict(weights, vec![at])?)?, behind);
        }
        Ok(at)
    }

    /// The gradient of the input if it is wanted, and the dense ones of all parameters. It only reads `gradient`, which the other
    /// branch needs too; what it gives is in other storage, unless there are no layers.
    pub(super) fn backward(
        &self,
        weights: &[Tensor],
        stashes: Vec<Stash>,
        gradient: Tensor,
        want_input_gradient: bool,
    ) -> Result<(Option<Tensor>, Vec<Gradient>)> {
        if stashes.len() != self.layers.len() {
            candle_core::bail!("a branch of {} layers was given the stash of {}", self.layers.len(), stashes.len());
        }
        let mut below = Some(if self.overwrites { deep_copy(&gradient)? } else { gradient });
        let mut rest = weights;
        let mut gathered = Vec::with_capacity(self.layers.len());
        for ((index, layer), stash) in self.layers.iter().enumerate().zip(stashes).rev() {
            if index < self.lowest && !want_input_gradient {
                break;
            }
            let wanted = index > self.lowest || want_input_gradient;
            let (before, weights) = rest.split_at(rest.len() - self.counts[index]);
            let given = below.take().ok_or_else(|| Error::Msg(format!("{} passed no gradient on", layer.name())))?;
            let (mut inputs, gradients) = layer.backward(weights, stash, vec![given], wanted)?;
            gathered.push(gradients.into_iter().map(Gradient::dense).collect::<Result<Vec<_>>>()?);
            (below, rest) = (inputs.pop(), before);
        }
        let gradients = gathered.into_iter().rev().flatten().map(Gradient::Dense).collect();
        Ok((below, gradients))
    }
}
