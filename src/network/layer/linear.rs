//! A fully connected layer: `y = x · weightᵀ + bias`.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Initial, Layer, Parameter, Stash, bytes, exactly, only, rows, times};
use crate::network::element::Element;
use crate::network::kernel::{elementwise, gemm, vector};
use crate::network::tensor::{by_type, read, tensor};

/// Up to here rows are multiplied one by one; beyond it a general product is faster (measured at 784 × 256).
const FEW_ROWS: usize = 4;

/// `[rows, inputs]` to `[rows, outputs]`, with `weight: [outputs, inputs]` and `bias: [outputs]`.
#[derive(Clone, Debug)]
pub struct Linear {
    inputs: usize,
    output_shape: [usize; 1],
}

impl Linear {
    /// A layer from `inputs` to `outputs` numbers a row.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, output_shape: [outputs] }
    }

    fn outputs(&self) -> usize {
        self.output_shape[0]
    }

    fn apply<T: Element>(&self, weights: &[Tensor], input: &Tensor) -> Result<Tensor> {
        let [weight, bias] = exactly(weights, "linear")?;
        let (rows, outputs) = (rows(input, &[self.inputs])?, self.outputs());
        let (weight, bias, x) = (read::<T>(weight)?, read::<T>(bias)?, read::<T>(input)?);
        // Every row starts as the bias, to which the product is added: no pass of its own for the bias.
        let mut y = Vec::with_capacity(rows * outputs);
        for _ in 0..rows {
            y.extend_from_slice(&bias);
        }
        if rows <= FEW_ROWS {
            vector::add_matrix_vectors(&mut y, &weight, &x, self.inputs);
        } else {
            let (x, weight) = (gemm::Matrix::new(&x, rows, self.inputs), gemm::Matrix::new(&weight, outputs, self.inputs));
            gemm::accumulate(&mut y, outputs, T::one(), T::one(), x, weight.transposed());
        }
        tensor(y, &[rows, outputs])
    }

    fn input_gradient<T: Element>(&self, weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (rows, outputs) = (rows(gradient, &self.output_shape)?, self.outputs());
        let (weight, g) = (read::<T>(weight)?, read::<T>(gradient)?);
        let x = if rows == 1 {
            let mut x = vec![T::zero(); self.inputs];
            vector::add_vector_matrix(&mut x, &g, &weight);
            x
        } else {
            gemm::product(gemm::Matrix::new(&g, rows, outputs), gemm::Matrix::new(&weight, outputs, self.inputs))
        };
        tensor(x, &[rows, self.inputs])
    }
}

impl Layer for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let initial = Initial::Uniform { fan_in: self.inputs };
        vec![
            Parameter::new("weight", &[self.outputs(), self.inputs], initial),
            Parameter::new("bias", &[self.outputs()], initial),
        ]
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let (inputs, outputs) = (self.inputs, self.outputs());
        let weights = bytes(&[outputs, inputs]).saturating_add(bytes(&[outputs]));
        let flops = times(&[2, rows, inputs, outputs]);
        Cost {
            weights,
            output: bytes(&[rows, outputs]),
            keeps_input: true,
            workspace_forward: if rows <= FEW_ROWS { 0 } else { gemm::packing_bytes(rows, outputs, inputs, false, true) },
            workspace_backward: gemm::packing_bytes(rows, inputs, outputs, false, false),
            workspace_update: gemm::packing_bytes(outputs, inputs, rows, true, false),
            input_gradient: bytes(&[rows, inputs]),
            weight_gradient: bytes(&[outputs]),
            weight_gradient_dense: weights,
            keeps_output_gradient: true,
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
        let [weight, _] = exactly(weights, "linear")?;
        let (input, output_gradient) = (only(stash.tensors)?, only(gradients)?);
        by_type!(output_gradient, T => {
            let sums = elementwise::sum_rows(&read::<T>(&output_gradient)?, self.outputs());
            let bias = tensor(sums, &self.output_shape)?;
            let mut input_gradients = Vec::new();
            if want_input_gradients {
                input_gradients.push(self.input_gradient::<T>(weight, &output_gradient)?);
            }
            Ok((input_gradients, vec![Gradient::Outer { output_gradient, input }, Gradient::Dense(bias)]))
        })
    }
}
