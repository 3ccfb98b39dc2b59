//! The peer of `bench engine`: the same networks written the way candle's users write them, trained by its autograd and SGD.

use candle_core::{Device, Tensor, Var};
use candle_nn::{Optimizer, SGD};

use crate::cli::Failure;
use crate::ferret::input;
use crate::network::Network;
use crate::rows::{Rows, Target};

/// Draws the weights of both sides.
pub(super) const SEED: u64 = 7;

/// candle's side: variables with the weights that our network starts with, and a batch.
pub(super) struct Peer {
    variables: Vec<Var>,
    input: Tensor,
    classes: Tensor,
    optimiser: SGD,
}

impl Peer {
    pub(super) fn new(network: &Network, rows: &Rows, learning_rate: f64) -> Result<Peer, Failure> {
        let weights = network.initial_weights(SEED)?;
        let variables = weights.iter().flatten().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let Some(Target::Classes(classes)) = &rows.target else { return Err("the benchmark learns classes".into()) };
        let classes = Tensor::from_slice(classes, classes.len(), &Device::Cpu)?;
        let input = input::features(rows, &network.input_shape)?;
        let optimiser = SGD::new(variables.clone(), learning_rate)?;
        Ok(Peer { variables, input, classes, optimiser })
    }

    /// One step; gives the loss before it.
    pub(super) fn step(&mut self) -> Result<f64, Failure> {
        let logits = if self.input.rank() == 4 { self.convnet()? } else { self.mlp()? };
        let loss = candle_nn::loss::cross_entropy(&logits, &self.classes)?;
        self.optimiser.backward_step(&loss)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn linear(&self, input: &Tensor, first: usize) -> candle_core::Result<Tensor> {
        input.matmul(&self.variables[first].t()?)?.broadcast_add(&self.variables[first + 1])
    }

    fn mlp(&self) -> candle_core::Result<Tensor> {
        let hidden = self.linear(&self.input, 0)?.relu()?;
        let hidden = self.linear(&hidden, 2)?.relu()?;
        self.linear(&hidden, 4)
    }

    fn convolution(&self, input: &Tensor, first: usize) -> candle_core::Result<Tensor> {
        let bias = self.variables[first + 1].reshape((1, (), 1, 1))?;
        input.conv2d(&self.variables[first], 1, 1, 1, 1)?.broadcast_add(&bias)?.relu()?.max_pool2d(2)
    }

    fn convnet(&self) -> candle_core::Result<Tensor> {
        let features = self.convolution(&self.convolution(&self.input, 0)?, 2)?;
        self.linear(&features.flatten_from(1)?, 4)
    }
}
