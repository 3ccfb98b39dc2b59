//! What holds outputs to a teacher's (LwF, equation 2): cross-entropy between the two, both divided by a temperature.

use candle_core::{Result, Tensor};

use crate::network::loss::{loss, probabilities};
use crate::network::{Gradient, Loss, Targets, optimiser, tensor_of};

/// Adds to `gradient`, the loss's by the outputs, that of `weight · T² · H(softmax(taught / T), softmax(outputs / T))`, in the mean over
/// rows; of a regression `weight · (output − taught)²`. False if it is not finite.
pub fn distil(
    kind: Loss,
    outputs: &Tensor,
    taught: &Tensor,
    (weight, temperature): (f64, f64),
    gradient: &Tensor,
) -> Result<bool> {
    let (evaluated, factor) = match kind {
        Loss::SoftmaxCrossEntropy => {
            let [outputs, taught] = [(outputs / temperature)?, (taught / temperature)?];
            let targets = Targets::Soft(tensor_of(probabilities(&taught)?, taught.dims())?);
            // T² by the definition, and 1/T by the chain rule.
            (loss(kind, &outputs, &targets, None)?, weight * temperature)
        }
        Loss::MeanSquaredError => {
            let targets = Targets::Values(taught.flatten_all()?.to_vec1()?);
            (loss(kind, outputs, &targets, None)?, weight)
        }
    };
    optimiser::add(gradient, &Gradient::Dense((evaluated.gradient * factor)?))?;
    Ok(evaluated.finite)
}
