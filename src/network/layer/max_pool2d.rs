//! Max pooling: the largest of each window.

use candle_core::{Device, Result, Tensor};

use super::{Cost, Gradient, Layer, Stash, bytes, only, rows, times, with_rows};
use crate::network::kernel::pool::{self, Geometry, WINDOW_MAX};
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to the largest element of each window of `size × size`, side by side unless a smaller stride makes
/// them overlap; rows and columns that fill no window are left out. It keeps one byte an output: where in its window the largest was.
#[derive(Clone, Debug)]
pub struct MaxPool2d {
    geometry: Geometry,
    input_shape: [usize; 3],
    output_shape: [usize; 3],
}

impl MaxPool2d {
    /// On rows of `input_shape` `[channels, height, width]`; none if no window fits or its side is over 16.
    pub fn new(input_shape: [usize; 3], size: usize) -> Option<Self> {
        Self::overlapping(input_shape, size, size)
    }

    /// The same with windows `stride` apart; none if that is 0, or more than their side.
    pub fn overlapping(input_shape: [usize; 3], size: usize, stride: usize) -> Option<Self> {
        let [channels, height, width] = input_shape;
        if channels == 0 || size > WINDOW_MAX || size > height || size > width || !(1..=size).contains(&stride) {
            return None;
        }
        let geometry = Geometry { height, width, window: size, stride };
        let output_shape = [channels, geometry.output_height(), geometry.output_width()];
        Some(Self { geometry, input_shape, output_shape })
    }
}

impl Layer for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let (input, output) = (with_rows(rows, &self.input_shape), with_rows(rows, &self.output_shape));
        Cost {
            output: bytes(&output),
            stash: times(&output),
            input_gradient: bytes(&input),
            flops_forward: times(&input),
            flops_backward: times(&input),
            ..Cost::default()
        }
    }

    fn forward(&self, _weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        let shape = with_rows(rows(&input, &self.input_shape)?, &self.output_shape);
        by_type!(input, T => {
            let (y, places) = pool::forward::<T>(&self.geometry, &read(&input)?, true);
            let places = Tensor::from_vec(places, shape.as_slice(), &Device::Cpu)?;
            Ok((vec![tensor(y, &shape)?], vec![places].into()))
        })
    }

    fn predict(&self, _weights: &[Tensor], inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let input = only(inputs)?;
        let shape = with_rows(rows(&input, &self.input_shape)?, &self.output_shape);
        by_type!(input, T => Ok(vec![tensor(pool::forward::<T>(&self.geometry, &read(&input)?, false).0, &shape)?]))
    }

    fn backward(
        &self,
        _weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        if !want_input_gradients {
            return Ok((Vec::new(), Vec::new()));
        }
        let (places, gradient) = (only(stash.tensors)?, only(gradients)?);
        let rows = rows(&gradient, &self.output_shape)?;
        let (storage, _) = places.storage_and_layout();
        let candle_core::Storage::Cpu(candle_core::CpuStorage::U8(places)) = &*storage else {
            candle_core::bail!("max_pool2d was given the stash of another layer");
        };
        by_type!(gradient, T => {
            let x = pool::backward::<T>(&self.geometry, &read(&gradient)?, places);
            Ok((vec![tensor(x, &with_rows(rows, &self.input_shape))?], Vec::new()))
        })
    }
}
