//! Two-dimensional convolution over images, channels first.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Initial, Layer, Parameter, Stash, bytes, exactly, only, rows, times, with_rows};
use crate::limits::PARAMETERS_MAX;
use crate::network::element::Element;
use crate::network::kernel::convolution::{self, Geometry, Gradients, Wanted};
use crate::network::kernel::gemm;
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to `[rows, outputs, output height, output width]`, with
/// `weight: [outputs, channels, kernel, kernel]` and, unless it has none, `bias: [outputs]`.
#[derive(Clone, Debug)]
pub struct Conv2d {
    geometry: Geometry,
    input_shape: [usize; 3],
    output_shape: [usize; 3],
    bias: bool,
}

/// The sides of an image with its padding, and of what the patches of a square kernel make of it; none if no patch fits, the stride is
/// 0, the padding is not less than the kernel, or a side overflows.
pub(super) fn output_sides(sides: [usize; 2], kernel: usize, stride: usize, padding: usize) -> Option<([usize; 2], [usize; 2])> {
    if kernel == 0 || stride == 0 || padding >= kernel {
        return None;
    }
    let padded = |size: usize| size.checked_add(padding.checked_mul(2)?);
    let [height, width] = [padded(sides[0])?, padded(sides[1])?];
    let patches = |size: usize| Some(size.checked_sub(kernel)? / stride + 1);
    Some(([height, width], [patches(height)?, patches(width)?]))
}

/// The weight and, where there is one, the bias, of the tensors that a layer called `of` was given.
pub(super) fn weight_and_bias<'a>(weights: &'a [Tensor], bias: bool, of: &str) -> Result<(&'a Tensor, Option<&'a Tensor>)> {
    if bias {
        let [weight, bias] = exactly(weights, of)?;
        return Ok((weight, Some(bias)));
    }
    let [weight] = exactly(weights, &format!("{of} without bias"))?;
    Ok((weight, None))
}

/// Those tensors as parameters.
pub(super) fn parameters(weight: &[usize; 4], fan_in: usize, bias: bool) -> Vec<Parameter> {
    let initial = Initial::Uniform { fan_in };
    let bias = bias.then(|| Parameter::new("bias", &weight[..1], initial));
    [Parameter::new("weight", weight, initial)].into_iter().chain(bias).collect()
}

/// What a kernel's backward computed as what a layer's returns.
pub(super) fn returned<T: Element>(
    gradients: Gradients<T>,
    input: &[usize],
    weight: &[usize; 4],
) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
    let of_input = gradients.input.map(|values| tensor(values, input)).transpose()?;
    let of_bias = gradients.bias.map(|values| tensor(values, &weight[..1])).transpose()?;
    let of_parameters = [tensor(gradients.weight, weight)?].into_iter().chain(of_bias).map(Gradient::Dense);
    Ok((of_input.into_iter().collect(), of_parameters.collect()))
}

impl Conv2d {
    /// A layer on rows of `input_shape` `[channels, height, width]` with a square `kernel`; none if no patch fits, the stride is 0,
    /// the padding is not less than the kernel, or a size overflows.
    pub fn new(input_shape: [usize; 3], outputs: usize, kernel: usize, stride: usize, padding: usize) -> Option<Self> {
        let [channels, height, width] = input_shape;
        if channels == 0 || outputs == 0 {
            return None;
        }
        let ([padded_height, padded_width], [output_height, output_width]) =
            output_sides([height, width], kernel, stride, padding)?;
        let output_shape = [outputs, output_height, output_width];
        let sizes: [&[usize]; 3] =
            [&output_shape, &[outputs, channels, kernel, kernel], &[channels, padded_height, padded_width]];
        if sizes.into_iter().any(|size| times(size) > PARAMETERS_MAX as u64) {
            return None;
        }
        let geometry = Geometry { channels, height, width, outputs, kernel, stride, padding, output_height, output_width };
        Some(Self { geometry, input_shape, output_shape, bias: true })
    }

    /// The same without a bias, as before a norm, which would take it away again.
    #[must_use]
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    fn weight_shape(&self) -> [usize; 4] {
        let Geometry { outputs, channels, kernel, .. } = self.geometry;
        [outputs, channels, kernel, kernel]
    }

    fn apply<T: Element>(&self, weights: &[Tensor], input: &Tensor) -> Result<Tensor> {
        let (weight, bias) = weight_and_bias(weights, self.bias, "conv2d")?;
        let rows = rows(input, &self.input_shape)?;
        let bias = bias.map(read::<T>).transpose()?;
        let y = convolution::forward::<T>(&self.geometry, &read(weight)?, bias.as_deref(), &read(input)?);
        tensor(y, &with_rows(rows, &self.output_shape))
    }
}

impl Layer for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn parameters(&self) -> Vec<Parameter> {
        parameters(&self.weight_shape(), self.geometry.patch(), self.bias)
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let Geometry { outputs, output_width, .. } = self.geometry;
        let (patch, columns) = (self.geometry.patch(), self.geometry.tile_rows() * output_width);
        let weights = bytes(&self.weight_shape()).saturating_add(if self.bias { bytes(&[outputs]) } else { 0 });
        let patches = bytes(&[patch, columns]);
        let padded = bytes(&[self.geometry.padded_image()]);
        // Backward's products: the weight gradient over the tile's positions, and the patches' gradient over the outputs.
        // What is packed depends on a product's shape, and less is packed of a larger one on some processors: the last tile counts too.
        let tiles = [columns, self.geometry.output_height % self.geometry.tile_rows() * output_width];
        let most = |packing: &dyn Fn(usize) -> u64| tiles.into_iter().filter(|&tile| tile > 0).map(packing).max().unwrap_or(0);
        let of_weights = most(&|columns| gemm::packing_bytes(outputs, patch, columns, false, false));
        let packing = of_weights.max(most(&|columns| gemm::packing_bytes(patch, columns, outputs, true, false)));
        let of_output = most(&|columns| gemm::packing_bytes(outputs, columns, patch, false, false));
        let flops = times(&[2, rows, outputs, self.geometry.plane(), patch]);
        // The weight gradient comes out with its channels last, and is turned into what is returned when all else is freed.
        let workspace_backward =
            patches.saturating_add(padded.saturating_mul(2)).saturating_add(packing).max(bytes(&self.weight_shape()));
        let workspace_backward_alone = patches.saturating_add(padded).saturating_add(of_weights).max(bytes(&self.weight_shape()));
        Cost {
            weights,
            output: bytes(&with_rows(rows, &self.output_shape)),
            keeps_input: true,
            workspace_forward: patches.saturating_add(padded).saturating_add(of_output),
            workspace_backward,
            workspace_backward_alone,
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
        let (weight, bias) = weight_and_bias(weights, self.bias, "conv2d")?;
        let (input, gradient) = (only(stash.tensors)?, only(gradients)?);
        let rows = rows(&gradient, &self.output_shape)?;
        by_type!(gradient, T => {
            let (x, g) = (read::<T>(&input)?, read::<T>(&gradient)?);
            let wanted = Wanted { input: want_input_gradients, bias: bias.is_some() };
            let result = convolution::backward(&self.geometry, &read::<T>(weight)?, &x, &g, wanted);
            returned(result, &with_rows(rows, &self.input_shape), &self.weight_shape())
        })
    }
}
