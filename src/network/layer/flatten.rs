//! Rows of any shape as rows of numbers.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Layer, Stash, only, rows, with_rows};

/// `[rows, …]` to `[rows, elements]`, in the same storage.
#[derive(Clone, Debug)]
pub struct Flatten {
    input_shape: Vec<usize>,
    output_shape: [usize; 1],
}

impl Flatten {
    /// For rows of `input_shape`.
    pub fn new(input_shape: &[usize]) -> Self {
        Self { input_shape: input_shape.to_vec(), output_shape: [input_shape.iter().product()] }
    }
}

impl Layer for Flatten {
    fn name(&self) -> &'static str {
        "flatten"
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, _rows: usize) -> Cost {
        Cost::default()
    }

    fn forward(&self, _weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        let rows = rows(&input, &self.input_shape)?;
        Ok((vec![input.reshape((rows, self.output_shape[0]))?], Stash::default()))
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
        Ok((vec![gradient.reshape(with_rows(rows, &self.input_shape))?], Vec::new()))
    }
}
