//! The rectifier: `y = max(x, 0)`.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor};

use super::{Cost, Gradient, Layer, Stash, bytes, only, times, with_rows};
use crate::network::element::Element;
use crate::network::kernel::elementwise;
use crate::network::tensor::{by_type, read, source, target, tensor};

/// `max(x, 0)` of every element. Its backward needs its output alone.
#[derive(Clone, Debug)]
pub struct Relu {
    shape: Vec<usize>,
    in_place: bool,
}

impl Relu {
    /// For rows of `shape`. `in_place`: the output may overwrite the input, because nobody else needs the input any more.
    pub fn new(shape: &[usize], in_place: bool) -> Self {
        Self { shape: shape.to_vec(), in_place }
    }
}

impl Layer for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn output_shape(&self) -> &[usize] {
        &self.shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let shape = with_rows(rows, &self.shape);
        Cost {
            output: if self.in_place { 0 } else { bytes(&shape) },
            keeps_output: true,
            flops_forward: times(&shape),
            flops_backward: times(&shape),
            ..Cost::default()
        }
    }

    fn forward(&self, _weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        super::rows(&input, &self.shape)?;
        let output = by_type!(input, T => {
            if self.in_place {
                input.inplace_op1(&Forward)?;
                Ok(input)
            } else {
                tensor(elementwise::relu_copy(&read::<T>(&input)?), input.dims())
            }
        })?;
        Ok((vec![output.clone()], vec![output].into()))
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
        let (output, gradient) = (only(stash.tensors)?, only(gradients)?);
        super::rows(&gradient, &self.shape)?;
        gradient.inplace_op2(&output, &Backward)?;
        Ok((vec![gradient], Vec::new()))
    }
}

struct Forward;

impl InplaceOp1 for Forward {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        fn run<T: Element>(storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            elementwise::relu::<T>(target(storage, layout)?);
            Ok(())
        }
        match storage {
            CpuStorage::F64(_) => run::<f64>(storage, layout),
            _ => run::<f32>(storage, layout),
        }
    }
}

struct Backward;

impl InplaceOp2 for Backward {
    fn name(&self) -> &'static str {
        "relu backward"
    }

    fn cpu_fwd(&self, gradient: &mut CpuStorage, to: &Layout, output: &CpuStorage, from: &Layout) -> Result<()> {
        fn run<T: Element>(gradient: &mut CpuStorage, to: &Layout, output: &CpuStorage, from: &Layout) -> Result<()> {
            elementwise::relu_backward::<T>(target(gradient, to)?, source(output, from)?);
            Ok(())
        }
        match gradient {
            CpuStorage::F64(_) => run::<f64>(gradient, to, output, from),
            _ => run::<f32>(gradient, to, output, from),
        }
    }
}
