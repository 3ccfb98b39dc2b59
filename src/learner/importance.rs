//! How much the outputs depend on each weight (MAS, equation 5): the mean, over rows, of the magnitude of the gradient of their
//! squared length.

use candle_core::{DType, Device, Result, Tensor};

use crate::ledger::{Ledger, Part};
use crate::network::{Network, Parameter, optimiser};

/// Importance of each layer's parameters before any row: zeros.
pub fn none_yet(network: &Network) -> Result<Vec<Vec<Tensor>>> {
    let zeros = |parameter: Parameter| Tensor::zeros(parameter.shape, DType::F32, &Device::Cpu);
    network.layers.iter().map(|layer| layer.parameters().into_iter().map(zeros).collect()).collect()
}

/// Adds what one row, `[1, …input_shape]`, says, times `share`. `weights` are each layer's; the row's storage must be its own.
pub fn add(
    network: &Network,
    weights: &[&[Tensor]],
    row: Tensor,
    share: f64,
    importance: &[Vec<Tensor>],
    ledger: &Ledger,
) -> Result<()> {
    let (mut at, mut stashes) = (vec![row], Vec::with_capacity(network.layers.len()));
    for (layer, weights) in network.layers.iter().zip(weights) {
        let cost = layer.cost(1);
        let (outputs, stash) = layer.forward(weights, at)?;
        at = outputs;
        stashes.push((stash, ledger.take(Part::Learner, cost.output + cost.stash)));
    }
    // d‖F‖²/dF = 2F.
    let mut gradients = at.iter().map(|output| output * 2.0).collect::<Result<Vec<_>>>()?;
    drop(at);
    let lowest = network.first_learning_layer();
    for (number, (stash, _held)) in stashes.into_iter().enumerate().rev().take_while(|(number, _)| *number >= lowest) {
        let cost = network.layers[number].cost(1);
        let _dense = ledger.take(Part::Learner, cost.weight_gradient_dense + cost.workspace_update);
        let (below, of_weights) = network.layers[number].backward(weights[number], stash, gradients, number > lowest)?;
        for (sum, gradient) in importance[number].iter().zip(of_weights) {
            optimiser::add_magnitude(sum, &gradient.dense()?, share)?;
        }
        gradients = below;
    }
    Ok(())
}
