//! Global average pooling: each channel of an image as the mean of its elements.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Layer, Stash, bytes, only, rows, times, with_rows};
use crate::network::kernel::pool;
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to `[rows, channels]`. It keeps nothing.
#[derive(Clone, Debug)]
pub struct GlobalAvgPool2d {
    input_shape: [usize; 3],
    output_shape: [usize; 1],
}

impl GlobalAvgPool2d {
    /// On rows of `input_shape` `[channels, height, width]`; none if that has no elements.
    pub fn new(input_shape: [usize; 3]) -> Option<Self> {
        (!input_shape.contains(&0)).then_some(Self { input_shape, output_shape: [input_shape[0]] })
    }

    /// Elements of a channel.
    fn plane(&self) -> usize {
        self.input_shape[1] * self.input_shape[2]
    }
}

impl Layer for GlobalAvgPool2d {
    fn name(&self) -> &'static str {
        "global_avg_pool2d"
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let input = with_rows(rows, &self.input_shape);
        Cost {
            output: bytes(&with_rows(rows, &self.output_shape)),
            input_gradient: bytes(&input),
            flops_forward: times(&input),
            flops_backward: times(&input),
            ..Cost::default()
        }
    }

    fn forward(&self, _weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        let rows = rows(&input, &self.input_shape)?;
        let output = by_type!(input, T => {
            tensor(pool::means::<T>(&read(&input)?, self.plane()), &with_rows(rows, &self.output_shape))
        })?;
        Ok((vec![output], Stash::default()))
    }

    fn backward(
        &self,
        _weights: &[Tensor],
        _stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        if !want_input_gradients {
            return Ok((Vec::new(), Vec::new()));
        }
        let gradient = only(gradients)?;
        let rows = rows(&gradient, &self.output_shape)?;
        by_type!(gradient, T => {
            let x = pool::means_backward::<T>(&read(&gradient)?, self.plane());
            Ok((vec![tensor(x, &with_rows(rows, &self.input_shape))?], Vec::new()))
        })
    }
}
