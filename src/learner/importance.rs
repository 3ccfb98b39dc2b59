//! How much the outputs depend on each weight (MAS, equation 5): the mean, over rows, of the magnitude of the gradient of their
//! squared length.

use candle_core::{DType, Device, Result, Tensor};

use crate::network::{Gradient, Network, Parameter, optimiser};

/// Importance of each layer's parameters before any row: zeros.
pub fn none_yet(network: &Network) -> Result<Vec<Vec<Tensor>>> {
    let zeros = |parameter: Parameter| Tensor::zeros(parameter.shape, DType::F32, &Device::Cpu);
    network.layers.iter().map(|layer| layer.parameters().into_iter().map(zeros).collect()).collect()
}

/// Adds what one row, `[1, …input_shape]`, says, times `share`. `weights` are each layer's; the row's storage must be its own.
pub fn add(network: &Network, weights: &[&[Tensor]], row: Tensor, share: f64, importance: &[Vec<Tensor>]) -> Result<()> {
    let (mut at, mut stashes) = (vec![row], Vec::with_capacity(network.layers.len()));
    for (layer, weights) in network.layers.iter().zip(weights) {
        let (outputs, stash) = layer.forward(weights, at)?;
        at = outputs;
        stashes.push(stash);
    }
    // d‖F‖²/dF = 2F.
    let mut gradients = at.iter().map(|output| output * 2.0).collect::<Result<Vec<_>>>()?;
    drop(at);
    let lowest = network.first_learning_layer();
    for (number, stash) in stashes.into_iter().enumerate().rev().take_while(|(number, _)| *number >= lowest) {
        let (below, of_weights) = network.layers[number].backward(weights[number], stash, gradients, number > lowest)?;
        for (sum, gradient) in importance[number].iter().zip(of_weights) {
            let magnitude = (gradient.dense()?.abs()? * share)?;
            optimiser::add(sum, &Gradient::Dense(magnitude))?;
        }
        gradients = below;
    }
    Ok(())
}
