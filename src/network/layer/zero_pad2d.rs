//! Zeros around images, not necessarily as many on each side: what "same" padding is where the stride is 2.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Layer, Stash, bytes, only, rows, times, with_rows};
use crate::network::element::Element;
use crate::network::tensor::{by_type, read, tensor};

/// `[rows, channels, height, width]` to the same with `before` zeros above and to the left, and `after` below and to the right. It keeps
/// nothing.
#[derive(Clone, Debug)]
pub struct ZeroPad2d {
    before: usize,
    input_shape: [usize; 3],
    output_shape: [usize; 3],
}

impl ZeroPad2d {
    /// On rows of `input_shape` `[channels, height, width]`; none if that has no elements, or a side overflows.
    pub fn new(input_shape: [usize; 3], before: usize, after: usize) -> Option<Self> {
        let [channels, height, width] = input_shape;
        let padded = |side: usize| side.checked_add(before)?.checked_add(after);
        let output_shape = [channels, padded(height)?, padded(width)?];
        (!input_shape.contains(&0)).then_some(Self { before, input_shape, output_shape })
    }

    /// Where each line of the input lies in the output.
    fn places(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let ([channels, height, _], [_, padded_height, padded_width], before) =
            (self.input_shape, self.output_shape, self.before);
        let planes = (0..rows * channels).map(move |plane| plane * padded_height * padded_width);
        planes.flat_map(move |plane| (before..before + height).map(move |line| plane + line * padded_width + before))
    }

    fn pad<T: Element>(&self, x: &[T], rows: usize) -> Vec<T> {
        let width = self.input_shape[2];
        let mut y = vec![T::zero(); rows * self.output_shape.iter().product::<usize>()];
        for (at, line) in self.places(rows).zip(x.chunks_exact(width)) {
            y[at..at + width].copy_from_slice(line);
        }
        y
    }

    fn crop<T: Element>(&self, y: &[T], rows: usize) -> Vec<T> {
        let width = self.input_shape[2];
        let mut x = Vec::with_capacity(rows * self.input_shape.iter().product::<usize>());
        for at in self.places(rows) {
            x.extend_from_slice(&y[at..at + width]);
        }
        x
    }
}

impl Layer for ZeroPad2d {
    fn name(&self) -> &'static str {
        "zero_pad2d"
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let (input, output) = (with_rows(rows, &self.input_shape), with_rows(rows, &self.output_shape));
        Cost {
            output: bytes(&output),
            input_gradient: bytes(&input),
            flops_forward: times(&output),
            flops_backward: times(&input),
            ..Cost::default()
        }
    }

    fn forward(&self, _weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        let rows = rows(&input, &self.input_shape)?;
        let output = by_type!(input, T => tensor(self.pad::<T>(&read(&input)?, rows), &with_rows(rows, &self.output_shape)))?;
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
        let of_input =
            by_type!(gradient, T => tensor(self.crop::<T>(&read(&gradient)?, rows), &with_rows(rows, &self.input_shape)))?;
        Ok((vec![of_input], Vec::new()))
    }
}
