//! What readers get: all layers after the same step, frozen.

use std::sync::Arc;

use candle_core::Tensor;

use super::input;
use super::stage::LayerWeights;
use crate::fold::{FoldError, Predictions, Snapshot};
use crate::network::loss::probabilities;
use crate::network::{Loss, Network};
use crate::rows::Rows;

/// One version of a network, shared by any number of readers.
#[derive(Debug)]
pub struct NetworkSnapshot {
    network: Arc<Network>,
    weights: Vec<Arc<LayerWeights>>,
}

impl NetworkSnapshot {
    /// Freezes `weights`, one version for each layer of `network`.
    pub fn new(network: Arc<Network>, weights: Vec<Arc<LayerWeights>>) -> NetworkSnapshot {
        NetworkSnapshot { network, weights }
    }

    /// The weights by name, as [`Network::parameter_names`] has them.
    pub fn named_weights(&self) -> Vec<(String, &Tensor)> {
        let names = self.network.parameter_names().into_iter().flatten();
        names.zip(self.weights.iter().flat_map(|layer| layer.tensors())).collect()
    }

    /// The network's raw outputs, `[rows, outputs]`, before any softmax.
    pub fn outputs(&self, rows: &Rows) -> Result<Tensor, FoldError> {
        Ok(self.outputs_watched(rows, &[])?.0)
    }

    /// The same with the hidden states of some layers, by their places.
    fn outputs_watched(&self, rows: &Rows, places: &[usize]) -> Result<(Tensor, Vec<Tensor>), FoldError> {
        let input = input::features(rows, &self.network.input_shape)?;
        Ok(self.network.predict_watched(self.weights.iter().map(|layer| layer.tensors()), input, places)?)
    }
}

impl Snapshot for NetworkSnapshot {
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError> {
        Ok(self.predict_watched(rows, &[])?.0)
    }

    fn predict_watched(&self, rows: &Rows, places: &[usize]) -> Result<(Predictions, Vec<f32>), FoldError> {
        let (outputs, states) = self.outputs_watched(rows, places)?;
        let predictions = match self.network.loss {
            Loss::SoftmaxCrossEntropy => {
                Predictions::Classes { classes: self.network.outputs, probabilities: probabilities(&outputs)? }
            }
            Loss::MeanSquaredError => Predictions::Values(outputs.flatten_all()?.to_vec1()?),
        };
        let states = match states.as_slice() {
            [] => Vec::new(),
            states => Tensor::cat(states, 1)?.flatten_all()?.to_vec1()?,
        };
        Ok((predictions, states))
    }
}
