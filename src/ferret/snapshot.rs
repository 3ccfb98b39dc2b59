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

    /// The network's raw outputs, `[rows, outputs]`, before any softmax.
    pub fn outputs(&self, rows: &Rows) -> Result<Tensor, FoldError> {
        let input = input::features(rows, &self.network.input_shape)?;
        Ok(self.network.predict(self.weights.iter().map(|layer| layer.tensors()), input)?)
    }
}

impl Snapshot for NetworkSnapshot {
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError> {
        let outputs = self.outputs(rows)?;
        match self.network.loss {
            Loss::SoftmaxCrossEntropy => {
                Ok(Predictions::Classes { classes: self.network.outputs, probabilities: probabilities(&outputs)? })
            }
            Loss::MeanSquaredError => Ok(Predictions::Values(outputs.flatten_all()?.to_vec1()?)),
        }
    }
}
