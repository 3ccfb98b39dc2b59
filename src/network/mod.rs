//! What is learned: networks as lists of layers, their losses and optimisers, and the kernels under them.
//!
//! Nothing here knows of streams, stages or threads. A [`Network`] has no weights: whoever trains it holds them, layer by layer,
//! and lends them to each call. Tensors are candle's, but its autograd is not used: its convolution and its bookkeeping cost 1.4 to
//! 4.6 times PyTorch's step, some of its gradients are wrong or missing, and its peak of memory cannot be known beforehand. Tests use
//! it, finite differences and PyTorch itself as oracles.

mod architecture;
mod build;
mod columns;
pub mod compensate;
mod element;
mod identity;
mod kernel;
pub mod layer;
pub mod loss;
pub mod optimiser;
pub mod random;
pub(crate) mod tensor;
mod view;

use candle_core::{DType, Device, Result, Tensor};

pub use architecture::{Architecture, LayerSpec};
pub use build::ArchitectureError;
pub use columns::Column;
pub use identity::identity;
pub use layer::{Cost, Gradient, Initial, Layer, Parameter, Stash};
pub use loss::{Evaluated, Loss, Targets};
pub use optimiser::Optimiser;
pub(crate) use tensor::tensor as tensor_of;
pub use tensor::{deep_copy, is_finite};
pub use view::{View, Watchable};

/// A list of layers whose shapes fit each other, and what it is to minimise.
#[derive(Debug)]
pub struct Network {
    /// First to last; at least one.
    pub layers: Vec<Box<dyn Layer>>,
    /// The shape of one row of the input.
    pub input_shape: Vec<usize>,
    /// What it minimises.
    pub loss: Loss,
    /// Numbers of one row of the output: one for each class, or 1.
    pub outputs: usize,
}

impl Network {
    /// Weights to begin with, by layer: parameters as their [`Initial`] says, statistics zero.
    ///
    /// Each parameter that is drawn has a generator of its own, so that a network that grows keeps the weights it had.
    pub fn initial_weights(&self, seed: u64) -> Result<Vec<Vec<Tensor>>> {
        let initial = |layer: usize, index: usize, parameter: &Parameter| {
            let values = match parameter.initial {
                Initial::Zeros => vec![0.0; parameter.elements()],
                Initial::Ones => vec![1.0; parameter.elements()],
                Initial::Uniform { fan_in } => {
                    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
                    let mut generator = random::stream(seed, ((layer as u64) << 32) | index as u64, "initial weights");
                    (0..parameter.elements()).map(|_| (2.0 * random::uniform(&mut generator) - 1.0) * bound).collect()
                }
            };
            Tensor::from_vec::<_, f32>(values, parameter.shape.as_slice(), &Device::Cpu)
        };
        let layers = self.layers.iter().enumerate();
        layers
            .map(|(number, layer)| {
                let parameters = layer.parameters();
                let drawn = parameters.iter().enumerate().map(|(index, parameter)| initial(number, index, parameter));
                let statistics = layer.statistics();
                let zeros =
                    statistics.iter().map(|statistic| Tensor::zeros(statistic.shape.as_slice(), DType::F64, &Device::Cpu));
                drawn.chain(zeros).collect()
            })
            .collect()
    }

    /// The name of each tensor of [`Network::initial_weights`], such as `0.linear.weight`.
    pub fn parameter_names(&self) -> Vec<Vec<String>> {
        let named = |number: usize, layer: &dyn Layer| {
            let tensors = layer.parameters().into_iter().chain(layer.statistics());
            tensors.map(|tensor| format!("{number}.{}.{}", layer.name(), tensor.name)).collect()
        };
        self.layers.iter().enumerate().map(|(number, layer)| named(number, layer.as_ref())).collect()
    }

    /// The first layer that learns. A backward stops here and asks this layer for no input gradient: nobody below needs one.
    pub fn first_learning_layer(&self) -> usize {
        self.layers.iter().position(|layer| !layer.parameters().is_empty()).unwrap_or(self.layers.len())
    }

    /// Whether the first layer keeps statistics of its input, which [`Network::observe`] brings up to date.
    pub fn observes(&self) -> bool {
        self.layers.first().is_some_and(|layer| !layer.statistics().is_empty())
    }

    /// Takes the rows of `input` into the statistics of the first layer, which come where its weights do. The tensors are
    /// replaced by fresh ones, so whoever holds the old ones keeps what they were. Nothing happens where there are no statistics.
    pub fn observe(&self, statistics: &mut Vec<Tensor>, input: &Tensor) -> Result<()> {
        if let Some(layer) = self.layers.first().filter(|_| self.observes()) {
            *statistics = layer.observe(statistics, input)?;
        }
        Ok(())
    }

    /// The outputs for `input`, `[rows, outputs]`: with as many rows, the bits that forwards in training give. `weights` are each layer's.
    /// The caller may keep `input`: its storage is only read.
    pub fn predict<'a>(&self, weights: impl IntoIterator<Item = &'a [Tensor]>, input: Tensor) -> Result<Tensor> {
        Ok(self.predict_watched(weights, input, &[])?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_weights_follow_from_the_seed() {
        let architecture = Architecture::Mlp { hidden: vec![5], standardise: Some(true) };
        let network = Network::build(&architecture, &[4], 3, Loss::SoftmaxCrossEntropy, false).unwrap();
        let names = network.parameter_names();
        assert_eq!(names[0], ["0.standardise.count", "0.standardise.mean", "0.standardise.m2"]);
        assert_eq!(names[1], ["1.linear.weight", "1.linear.bias"]);
        assert!(names[2].is_empty());
        assert_eq!(network.first_learning_layer(), 1);
        let flat = |seed| -> Vec<f32> {
            let weights = network.initial_weights(seed).unwrap();
            weights[1].iter().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
        };
        assert_eq!(flat(1), flat(1));
        assert_ne!(flat(1), flat(2));
        assert!(flat(1).iter().all(|value| value.abs() <= 0.5));
    }

    #[test]
    fn drawn_weights_depend_on_their_place_alone_and_norms_begin_with_ones_and_zeros() {
        let architecture = Architecture::ResNet18 { width: 2, standardise: None };
        let network = Network::build(&architecture, &[1, 8, 8], 3, Loss::SoftmaxCrossEntropy, false).unwrap();
        let weights = network.initial_weights(5).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let drawn = |layer: u64, index: u64, fan_in: usize, count: usize| -> Vec<f32> {
            let mut generator = random::stream(5, (layer << 32) | index, "initial weights");
            let bound = 1.0 / (fan_in as f32).sqrt();
            (0..count).map(|_| (2.0 * random::uniform(&mut generator) - 1.0) * bound).collect()
        };
        assert_eq!(values(&weights[0][0]), drawn(0, 0, 9, 18));
        assert_eq!((values(&weights[1][0]), values(&weights[1][1])), (vec![1.0; 2], vec![0.0; 2]));
        assert_eq!(values(&weights[20][1]), drawn(20, 1, 16, 3));
        let names = network.parameter_names();
        // The first block with a shortcut: main's convolutions and norms, and then the shortcut's.
        let expected = [
            "7.residual.main.0.conv2d.weight",
            "7.residual.main.1.group_norm.weight",
            "7.residual.main.1.group_norm.bias",
            "7.residual.main.3.conv2d.weight",
            "7.residual.main.4.group_norm.weight",
            "7.residual.main.4.group_norm.bias",
            "7.residual.shortcut.0.conv2d.weight",
            "7.residual.shortcut.1.group_norm.weight",
            "7.residual.shortcut.1.group_norm.bias",
        ];
        assert_eq!(names[7], expected);
        assert_eq!(values(&weights[7][6]), drawn(7, 6, 2, 8));
        assert_eq!(values(&weights[7][7]), [1.0; 4]);
    }
}
