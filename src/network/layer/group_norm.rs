//! Group normalisation (Wu and He, 2018).
//!
//! Networks here have it where others have batch normalisation, because batch statistics have no place in a stream: they tie the rows
//! of a step together (at one row a step there is nothing to normalise by), their running averages are state that a forward
//! changes, and in a pipeline they would come from other versions of the weights than the gradients do. A group's statistics are
//! the row's own.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Initial, Layer, Parameter, Stash, bytes, exactly, only, rows, times, with_rows};
use crate::network::element::Element;
use crate::network::kernel::group_norm::{self, Geometry, Normalised};
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to `(x − mean) / √(variance + 1e-5) · weight + bias`: mean and variance of each row's groups of
/// channels, `weight: [channels]` and `bias: [channels]`. It keeps its input and two numbers a group.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    geometry: Geometry,
    shape: [usize; 3],
}

impl GroupNorm {
    /// On rows of `shape` `[channels, height, width]`; none unless the groups divide the channels.
    pub fn new(shape: [usize; 3], groups: usize) -> Option<Self> {
        let [channels, height, width] = shape;
        if groups == 0 || shape.contains(&0) || !channels.is_multiple_of(groups) {
            return None;
        }
        Some(Self { geometry: Geometry { channels, groups, plane: height * width }, shape })
    }

    fn apply<T: Element>(&self, weights: &[Tensor], input: &Tensor) -> Result<Normalised<T>> {
        rows(input, &self.shape)?;
        let [weight, bias] = exactly(weights, "group_norm")?;
        Ok(group_norm::forward(&self.geometry, &read::<T>(weight)?, &read(bias)?, &read(input)?))
    }
}

impl Layer for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let channels = [self.geometry.channels];
        vec![Parameter::new("weight", &channels, Initial::Ones), Parameter::new("bias", &channels, Initial::Zeros)]
    }

    fn output_shape(&self) -> &[usize] {
        &self.shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let Geometry { channels, groups, .. } = self.geometry;
        let (shape, weights) = (with_rows(rows, &self.shape), bytes(&[2, channels]));
        let image = bytes(&shape);
        Cost {
            weights,
            output: image,
            stash: bytes(&[2, rows, groups]),
            keeps_input: true,
            // Backward's sums are two numbers of f64 a channel.
            workspace_backward: weights.saturating_mul(2),
            workspace_backward_alone: weights.saturating_mul(2),
            input_gradient: image,
            weight_gradient: weights,
            weight_gradient_dense: weights,
            flops_forward: times(&shape).saturating_mul(7),
            flops_backward: times(&shape).saturating_mul(9),
            ..Cost::default()
        }
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        by_type!(input, T => {
            let Normalised { y, means, factors } = self.apply::<T>(weights, &input)?;
            let of_groups = [input.dim(0)?, self.geometry.groups];
            let output = tensor(y, input.dims())?;
            Ok((vec![output], vec![input, tensor(means, &of_groups)?, tensor(factors, &of_groups)?].into()))
        })
    }

    fn predict(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let input = only(inputs)?;
        by_type!(input, T => Ok(vec![tensor(self.apply::<T>(weights, &input)?.y, input.dims())?]))
    }

    fn backward(
        &self,
        weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        let [weight, _] = exactly(weights, "group_norm")?;
        let [input, means, factors] = exactly(&stash.tensors, "the stash of group_norm")?;
        let gradient = only(gradients)?;
        rows(&gradient, &self.shape)?;
        by_type!(gradient, T => {
            let (x, means, factors) = (read::<T>(input)?, read::<T>(means)?, read::<T>(factors)?);
            let kept: [&[T]; 3] = [&x, &means, &factors];
            let result = group_norm::backward(&self.geometry, &read(weight)?, kept, &read(&gradient)?, want_input_gradients);
            let mut input_gradients = Vec::new();
            if let Some(input) = result.input {
                input_gradients.push(tensor(input, gradient.dims())?);
            }
            let channels = [self.geometry.channels];
            let of_weights = vec![tensor(result.weight, &channels)?, tensor(result.bias, &channels)?];
            Ok((input_gradients, of_weights.into_iter().map(Gradient::Dense).collect()))
        })
    }
}
