//! Depthwise convolution over images, channels first: each channel by itself.

use candle_core::{Result, Tensor};

use super::conv2d::{output_sides, parameters, returned, weight_and_bias};
use super::{Cost, Gradient, Layer, Parameter, Stash, bytes, only, rows, times, with_rows};
use crate::limits::PARAMETERS_MAX;
use crate::network::element::Element;
use crate::network::kernel::convolution::Wanted;
use crate::network::kernel::depthwise::{self, Geometry};
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to `[rows, channels, output height, output width]`, with
/// `weight: [channels, 1, kernel, kernel]` and, unless it has none, `bias: [channels]`. It keeps its input.
#[derive(Clone, Debug)]
pub struct DepthwiseConv2d {
    geometry: Geometry,
    input_shape: [usize; 3],
    output_shape: [usize; 3],
    bias: bool,
}

impl DepthwiseConv2d {
    /// A layer on rows of `input_shape` `[channels, height, width]` with a square `kernel` for each channel; none if no patch fits,
    /// the stride is 0, the padding is not less than the kernel, or a size overflows.
    pub fn new(input_shape: [usize; 3], kernel: usize, stride: usize, padding: usize) -> Option<Self> {
        let [channels, height, width] = input_shape;
        if input_shape.contains(&0) {
            return None;
        }
        let ([padded_height, padded_width], [output_height, output_width]) =
            output_sides([height, width], kernel, stride, padding)?;
        let output_shape = [channels, output_height, output_width];
        let sizes = [output_shape, [channels, kernel, kernel], [channels, padded_height, padded_width]];
        if sizes.into_iter().any(|size| times(&size) > PARAMETERS_MAX as u64) {
            return None;
        }
        let geometry = Geometry { channels, height, width, kernel, stride, padding, output_height, output_width };
        Some(Self { geometry, input_shape, output_shape, bias: true })
    }

    /// The same without a bias, as before a norm, which would take it away again.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    fn weight_shape(&self) -> [usize; 4] {
        let Geometry { channels, kernel, .. } = self.geometry;
        [channels, 1, kernel, kernel]
    }

    fn apply<T: Element>(&self, weights: &[Tensor], input: &Tensor) -> Result<Tensor> {
        let (weight, bias) = weight_and_bias(weights, self.bias, "depthwise_conv2d")?;
        let rows = rows(input, &self.input_shape)?;
        let bias = bias.map(read::<T>).transpose()?;
        let y = depthwise::forward::<T>(&self.geometry, &read(weight)?, bias.as_deref(), &read(input)?);
        tensor(y, &with_rows(rows, &self.output_shape))
    }
}

impl Layer for DepthwiseConv2d {
    fn name(&self) -> &'static str {
        "depthwise_conv2d"
    }

    fn parameters(&self) -> Vec<Parameter> {
        parameters(&self.weight_shape(), self.geometry.taps(), self.bias)
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let Geometry { channels, kernel, .. } = self.geometry;
        let weights = bytes(&self.weight_shape()).saturating_add(if self.bias { bytes(&[channels]) } else { 0 });
        let flops = times(&[2, rows, channels, self.geometry.plane(), kernel, kernel]);
        Cost {
            weights,
            output: bytes(&with_rows(rows, &self.output_shape)),
            keeps_input: true,
            workspace_forward: bytes(&[self.geometry.scratch_forward()]),
            workspace_backward: bytes(&[self.geometry.scratch_backward(true)]),
            workspace_backward_alone: bytes(&[self.geometry.scratch_backward(false)]),
            input_gradient: bytes(&with_rows(rows, &self.input_shape)),
            weight_gradient: weights,
            weight_gradient_dense: weights,
            flops_forward: flops,
            flops_backward: flops.saturating_mul(2),
            ..Cost::default()
        }
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        let output = by_type!(input, T => self.apply::<T>(weights, &input))?;
        Ok((vec![output], vec![input].into()))
    }

    fn backward(
        &self,
        weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        let (weight, bias) = weight_and_bias(weights, self.bias, "depthwise_conv2d")?;
        let (input, gradient) = (only(stash.tensors)?, only(gradients)?);
        let rows = rows(&gradient, &self.output_shape)?;
        by_type!(gradient, T => {
            let (x, g) = (read::<T>(&input)?, read::<T>(&gradient)?);
            let wanted = Wanted { input: want_input_gradients, bias: bias.is_some() };
            let result = depthwise::backward(&self.geometry, &read::<T>(weight)?, &x, &g, wanted);
            returned(result, &with_rows(rows, &self.input_shape), &self.weight_shape())
        })
    }
}
