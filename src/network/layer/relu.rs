//! The rectifier: `y = max(x, 0)`, or `y = min(max(x, 0), 6)`.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, WithDType};

use super::{Cost, Gradient, Layer, Stash, bytes, only, times, with_rows};
use crate::network::element::Element;
use crate::network::kernel::elementwise;
use crate::network::tensor::{by_type, read, source, target, tensor};

/// `max(x, 0)` of every element, no more than the ceiling where there is one. Its backward needs its output alone.
#[derive(Clone, Debug)]
pub struct Relu {
    shape: Vec<usize>,
    in_place: bool,
    ceiling: Option<f64>,
}

impl Relu {
    /// For rows of `shape`. `in_place`: the output may overwrite the input, because nobody else needs the input any more.
    pub fn new(shape: &[usize], in_place: bool) -> Self {
        Self { shape: shape.to_vec(), in_place, ceiling: None }
    }

    /// The same with a ceiling: ReLU6 has 6 (Howard et al., 2017).
    #[must_use]
    pub fn with_ceiling(self, ceiling: f64) -> Self {
        Self { ceiling: Some(ceiling), ..self }
    }
}

impl Layer for Relu {
    fn name(&self) -> &'static str {
        if self.ceiling.is_some() { "clipped_relu" } else { "relu" }
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
                input.inplace_op1(&Forward(self.ceiling))?;
                Ok(input)
            } else if let Some(ceiling) = self.ceiling {
                let mut values = read::<T>(&input)?.to_vec();
                elementwise::clip(&mut values, T::from_f64(ceiling));
                tensor(values, input.dims())
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
        gradient.inplace_op2(&output, &Backward(self.ceiling))?;
        Ok((vec![gradient], Vec::new()))
    }
}

/// With the ceiling.
struct Forward(Option<f64>);

impl InplaceOp1 for Forward {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        fn run<T: Element>(storage: &mut CpuStorage, layout: &Layout, ceiling: Option<f64>) -> Result<()> {
            let values = target::<T>(storage, layout)?;
            match ceiling {
                Some(ceiling) => elementwise::clip(values, T::from_f64(ceiling)),
                None => elementwise::relu(values),
            }
            Ok(())
        }
        match storage {
            CpuStorage::F64(_) => run::<f64>(storage, layout, self.0),
            _ => run::<f32>(storage, layout, self.0),
        }
    }
}

/// With the ceiling.
struct Backward(Option<f64>);

impl InplaceOp2 for Backward {
    fn name(&self) -> &'static str {
        "relu backward"
    }

    fn cpu_fwd(&self, gradient: &mut CpuStorage, to: &Layout, output: &CpuStorage, from: &Layout) -> Result<()> {
        fn run<T: Element>(gradient: &mut [T], output: &[T], ceiling: Option<f64>) {
            match ceiling {
                Some(ceiling) => elementwise::clip_backward(gradient, output, T::from_f64(ceiling)),
                None => elementwise::relu_backward(gradient, output),
            }
        }
        match gradient {
            CpuStorage::F64(_) => run::<f64>(target(gradient, to)?, source(output, from)?, self.0),
            _ => run::<f32>(target(gradient, to)?, source(output, from)?, self.0),
        }
        Ok(())
    }
}
