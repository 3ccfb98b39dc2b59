//! A residual block: what its layers make of the input, plus the input itself or what a shortcut makes of it.
//!
//! The block is one layer of a network's list, so that a network stays a list wherever it is one, and a pipeline may cut before
//! and after a block. It is made of two branches, which are lists of layers again.

mod branch;
mod reckon;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::{Cost, Gradient, Layer, Parameter, Stash, only};
use crate::network::element::Element;
use crate::network::kernel::elementwise;
use crate::network::tensor::{by_type, read, source, target, tensor};
use branch::Branch;

/// `main(x) + shortcut(x)`; a shortcut without layers is x itself.
///
/// Its stash is its layers'. The sum lies in the storage that `main` ended in, where nobody else needs that. Weight gradients are made
/// dense inside: a factored one would keep the block's activations until the update.
#[derive(Debug)]
pub struct Residual {
    main: Branch,
    shortcut: Branch,
    input_shape: Vec<usize>,
    output_shape: Vec<usize>,
}

impl Residual {
    /// On rows of `input_shape`, of layers whose shapes fit each other from there on. The first layers of both must not overwrite
    /// their input, which the other branch needs. None if `main` is empty, a layer keeps statistics, or the branches end in
    /// different shapes.
    pub fn new(input_shape: &[usize], main: Vec<Box<dyn Layer>>, shortcut: Vec<Box<dyn Layer>>) -> Option<Self> {
        let output_shape = main.last()?.output_shape().to_vec();
        let beside = shortcut.last().map_or(input_shape, |layer| layer.output_shape());
        if beside != output_shape || main.iter().chain(&shortcut).any(|layer| !layer.statistics().is_empty()) {
            return None;
        }
        let (main, shortcut) = (Branch::new(main), Branch::new(shortcut));
        Some(Self { main, shortcut, input_shape: input_shape.to_vec(), output_shape })
    }

    /// The weights of the two branches.
    fn split<'a>(&self, weights: &'a [Tensor]) -> Result<(&'a [Tensor], &'a [Tensor])> {
        let (main, shortcut) = (self.main.parameters(), self.shortcut.parameters());
        if weights.len() != main + shortcut {
            candle_core::bail!("this residual block has {} tensors and was given {}", main + shortcut, weights.len());
        }
        Ok(weights.split_at(main))
    }

    fn sum(&self, main: Tensor, shortcut: &Tensor) -> Result<Tensor> {
        if self.main.ends_free() {
            main.inplace_op2(shortcut, &Sum)?;
            return Ok(main);
        }
        by_type!(main, T => tensor(elementwise::sum_of::<T>(&read(&main)?, &read(shortcut)?), main.dims()))
    }
}

impl Layer for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let named = |branch: &'static str, layers: &[Box<dyn Layer>]| -> Vec<Parameter> {
            let mut parameters = Vec::new();
            for (number, layer) in layers.iter().enumerate() {
                parameters.extend(layer.parameters().into_iter().map(|parameter| {
                    let name = format!("{branch}.{number}.{}.{}", layer.name(), parameter.name);
                    Parameter { name, ..parameter }
                }));
            }
            parameters
        };
        [named("main", self.main.layers()), named("shortcut", self.shortcut.layers())].concat()
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        reckon::cost(self, rows)
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        super::rows(&input, &self.input_shape)?;
        let (of_main, of_shortcut) = self.split(weights)?;
        let mut inner = Vec::with_capacity(self.main.layers().len() + self.shortcut.layers().len());
        let main = self.main.forward(of_main, input.clone(), &mut inner)?;
        let shortcut = self.shortcut.forward(of_shortcut, input, &mut inner)?;
        Ok((vec![self.sum(main, &shortcut)?], Stash { tensors: Vec::new(), inner }))
    }

    fn predict(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let input = only(inputs)?;
        super::rows(&input, &self.input_shape)?;
        let (of_main, of_shortcut) = self.split(weights)?;
        let main = self.main.predict(of_main, input.clone())?;
        let shortcut = self.shortcut.predict(of_shortcut, input)?;
        Ok(vec![self.sum(main, &shortcut)?])
    }

    fn backward(
        &self,
        weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        let gradient = only(gradients)?;
        super::rows(&gradient, &self.output_shape)?;
        let (of_main, of_shortcut) = self.split(weights)?;
        let Stash { inner: mut stashes, .. } = stash;
        let of_shortcut_stash = stashes.split_off(self.main.layers().len().min(stashes.len()));
        let (main, mut gradients) = self.main.backward(of_main, stashes, gradient.clone(), want_input_gradients)?;
        let (beside, more) = self.shortcut.backward(of_shortcut, of_shortcut_stash, gradient, want_input_gradients)?;
        gradients.extend(more);
        let mut input_gradients = Vec::new();
        if let (true, Some(main), Some(beside)) = (want_input_gradients, main, beside) {
            // The main branch's is in fresh storage: see `Branch::backward`.
            main.inplace_op2(&beside, &Sum)?;
            input_gradients.push(main);
        }
        Ok((input_gradients, gradients))
    }
}

struct Sum;

impl InplaceOp2 for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn cpu_fwd(&self, sum: &mut CpuStorage, to: &Layout, summand: &CpuStorage, from: &Layout) -> Result<()> {
        fn run<T: Element>(sum: &mut CpuStorage, to: &Layout, summand: &CpuStorage, from: &Layout) -> Result<()> {
            elementwise::add::<T>(target(sum, to)?, source(summand, from)?);
            Ok(())
        }
        match sum {
            CpuStorage::F64(_) => run::<f64>(sum, to, summand, from),
            _ => run::<f32>(sum, to, summand, from),
        }
    }
}
