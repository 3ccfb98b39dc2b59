//! Two-dimensional convolution over images, channels first.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Layer, Parameter, Stash, bytes, exactly, only, rows, times, with_rows};
use crate::limits::PARAMETERS_MAX;
use crate::network::element::Element;
use crate::network::kernel::convolution::{self, Geometry};
use crate::network::kernel::gemm;
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to `[rows, outputs, output height, output width]`, with
/// `weight: [outputs, channels, kernel, kernel]` and `bias: [outputs]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    geometry: Geometry,
    input_shape: [usize; 3],
    output_shape: [usize; 3],
}

impl Conv2d {
    /// A layer on rows of `input_shape` `[channels, height, width]` with a square `kernel`; none if no patch fits, the stride is 0,
    /// the padding is not less than the kernel, or a size overflows.
    pub fn new(input_shape: [usize; 3], outputs: usize, kernel: usize, stride: usize, padding: usize) -> Option<Self> {
        let [channels, height, width] = input_shape;
        if channels == 0 || outputs == 0 || kernel == 0 || stride == 0 || padding >= kernel {
            return None;
        }
        let padded = |size: usize| size.checked_add(padding.checked_mul(2)?);
        let side = |size: usize| Some(padded(size)?.checked_sub(kernel)? / stride + 1);
        let (output_height, output_width) = (side(height)?, side(width)?);
        let output_shape = [outputs, output_height, output_width];
        let sizes: [&[usize]; 3] =
            [&output_shape, &[outputs, channels, kernel, kernel], &[channels, padded(height)?, padded(width)?]];
        if sizes.into_iter().any(|size| times(size) > PARAMETERS_MAX as u64) {
            return None;
        }
        let geometry = Geometry { channels, height, width, outputs, kernel, stride, padding, output_height, output_width };
        Some(Self { geometry, input_shape, output_shape })
    }

    fn weight_shape(&self) -> [usize; 4] {
        let Geometry { outputs, channels, kernel, .. } = self.geometry;
        [outputs, channels, kernel, kernel]
    }

    fn apply<T: Element>(&self, weights: &[Tensor], input: &Tensor) -> Result<Tensor> {
        let [weight, bias] = exactly(weights, "conv2d")?;
        let rows = rows(input, &self.input_shape)?;
        let y = convolution::forward::<T>(&self.geometry, &read(weight)?, &read(bias)?, &read(input)?);
        tensor(y, &with_rows(rows, &self.output_shape))
    }
}

impl Layer for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let fan_in = self.geometry.patch();
        vec![Parameter::new("weight", &self.weight_shape(), fan_in), Parameter::new("bias", &[self.geometry.outputs], fan_in)]
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let Geometry { outputs, output_width, .. } = self.geometry;
        let (patch, columns) = (self.geometry.patch(), self.geometry.tile_rows() * output_width);
        let weights = bytes(&self.weight_shape()).saturating_add(bytes(&[outputs]));
        let patches = bytes(&[patch, columns]);
        // Backward's products: the weight gradient over the tile's positions, and the patches' gradient over the outputs.
        let of_weights = gemm::packing_bytes(outputs, patch, columns, false, false);
        let packing = of_weights.max(gemm::packing_bytes(patch, columns, outputs, true, false));
        let flops = times(&[2, rows, outputs, self.geometry.plane(), patch]);
        Cost {
            weights,
            output: bytes(&with_rows(rows, &self.output_shape)),
            keeps_input: true,
            workspace_forward: patches.saturating_add(gemm::packing_bytes(outputs, columns, patch, false, false)),
            workspace_backward: patches
                .saturating_add(bytes(&[self.geometry.padded_image()]))
                .saturating_add(packing)
                .saturating_add(bytes(&self.weight_shape())),
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
        Ok((vec![output], Stash(vec![input])))
    }

    fn backward(
        &self,
        weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        let [weight, _] = exactly(weights, "conv2d")?;
        let (input, gradient) = (only(stash.0)?, only(gradients)?);
        let rows = rows(&gradient, &self.output_shape)?;
        by_type!(gradient, T => {
            let (x, g) = (read::<T>(&input)?, read::<T>(&gradient)?);
            let result = convolution::backward(&self.geometry, &read::<T>(weight)?, &x, &g, want_input_gradients);
            let mut input_gradients = Vec::new();
            if let Some(input) = result.input {
                input_gradients.push(tensor(input, &with_rows(rows, &self.input_shape))?);
            }
            let weight = Gradient::Dense(tensor(result.weight, &self.weight_shape())?);
            Ok((input_gradients, vec![weight, Gradient::Dense(tensor(result.bias, &[self.geometry.outputs])?)]))
        })
    }
}
