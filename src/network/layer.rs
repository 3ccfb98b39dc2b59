//! A layer is a pair of functions, forward and backward, whose bytes and work are known before anything is allocated.
//!
//! There is no tape: what a backward needs is in the [`Stash`] that its forward returned, and nowhere else. Weights are lent,
//! inputs and gradients are given away, so that a layer may work in their storage and may let go of it as early as it can.

mod conv2d;
mod depthwise_conv2d;
mod embedding;
mod flatten;
mod global_avg_pool2d;
mod group_norm;
mod linear;
mod max_pool2d;
mod relu;
mod residual;
mod standardise;
mod zero_pad2d;

use std::fmt::Debug;

use candle_core::{Error, Result, Tensor};

pub use conv2d::Conv2d;
pub use depthwise_conv2d::DepthwiseConv2d;
pub use embedding::Embedding;
pub use flatten::Flatten;
pub use global_avg_pool2d::GlobalAvgPool2d;
pub use group_norm::GroupNorm;
pub use linear::Linear;
pub use max_pool2d::MaxPool2d;
pub use relu::Relu;
pub use residual::Residual;
pub(crate) use standardise::factor;
pub use standardise::{Standardise, StandardiseColumns};
pub use zero_pad2d::ZeroPad2d;

use super::kernel::{elementwise, gemm, vector};
use super::tensor::{by_type, is_finite, read, tensor};

/// Bytes and work of one layer for a step of some rows of f32, known before anything is allocated. The planner walks these
/// numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of parameters and statistics.
    pub weights: u64,
    /// Fresh storage that forward allocates for outputs; 0 where the output lies in the input's storage.
    pub output: u64,
    /// Fresh storage kept until backward beside inputs and outputs, such as arg-max indices.
    pub stash: u64,
    /// The stash keeps the input's storage alive.
    pub keeps_input: bool,
    /// The stash keeps the output's storage alive.
    pub keeps_output: bool,
    /// The most scratch at once in forward; it is freed before forward returns.
    pub workspace_forward: u64,
    /// The most scratch at once in backward, beside the stash, the output gradient and what is returned; it is freed before
    /// backward returns. Where backward lets go of parts of its stash on the way, scratch that takes no more than those does not
    /// count.
    pub workspace_backward: u64,
    /// The same where the input gradient is not asked for.
    pub workspace_backward_alone: u64,
    /// The most scratch at once in an update straight from [`Gradient::Outer`], or in making that dense.
    pub workspace_update: u64,
    /// Fresh storage that backward allocates for the input gradient when it is asked for; 0 where it lies in the output gradient's.
    pub input_gradient: u64,
    /// Fresh storage of the returned dense weight gradients.
    pub weight_gradient: u64,
    /// Bytes of the weight gradients if every one of them is made dense ([`Gradient::dense`]).
    pub weight_gradient_dense: u64,
    /// The returned gradients keep the output gradient (and the input) alive: see [`Gradient::Outer`].
    pub keeps_output_gradient: bool,
    /// Floating-point operations of forward, where a multiply-add counts two.
    pub flops_forward: u64,
    /// Floating-point operations of backward, input gradient included.
    pub flops_backward: u64,
}

impl Cost {
    /// Whether nobody but the next layer needs the output's storage; `before` says so of the input's.
    pub(crate) fn leaves_output_free(&self, before: bool) -> bool {
        !self.keeps_output && (self.output > 0 || before)
    }
}

/// One tensor that a layer learns (or, as a statistic, keeps).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// "weight", "bias"; "count", "mean", "m2" of statistics; "main.0.conv2d.weight" inside another layer.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it begins with.
    pub initial: Initial,
}

/// What a parameter begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Uniform in ±1/√fan_in, as PyTorch's.
    Uniform {
        /// How many inputs one output reads.
        fan_in: usize,
    },
    /// 0.
    Zeros,
    /// 1.
    Ones,
}

impl Parameter {
    pub(crate) fn new(name: &str, shape: &[usize], initial: Initial) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), initial }
    }

    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What a layer keeps from its forward for its backward.
#[derive(Clone, Debug, Default)]
pub struct Stash {
    /// Its own tensors.
    pub tensors: Vec<Tensor>,
    /// What the layers that it is made of keep, in their order; empty for most layers.
    pub inner: Vec<Stash>,
}

impl From<Vec<Tensor>> for Stash {
    fn from(tensors: Vec<Tensor>) -> Self {
        Self { tensors, inner: Vec::new() }
    }
}

/// The gradient of one parameter.
#[derive(Clone, Debug)]
pub enum Gradient {
    /// The gradient itself, in the parameter's shape.
    Dense(Tensor),
    /// The factors of a `[out, in]` gradient `output_gradientᵀ · input`, so that an update can be fused into one product and the
    /// gradient, as large as the weight, never exists.
    Outer {
        /// `[rows, out]`.
        output_gradient: Tensor,
        /// `[rows, in]`.
        input: Tensor,
    },
}

impl Gradient {
    /// The gradient in the parameter's shape.
    pub fn dense(self) -> Result<Tensor> {
        match self {
            Gradient::Dense(gradient) => Ok(gradient),
            Gradient::Outer { output_gradient, input } => {
                by_type!(output_gradient, T => {
                    let ((rows, outputs), inputs) = (output_gradient.dims2()?, input.dim(1)?);
                    let (g, x) = (read::<T>(&output_gradient)?, read::<T>(&input)?);
                    let product = if rows == 1 {
                        vector::outer(&g, &x)
                    } else {
                        gemm::product(gemm::Matrix::new(&g, rows, outputs).transposed(), gemm::Matrix::new(&x, rows, inputs))
                    };
                    tensor(product, &[outputs, inputs])
                })
            }
        }
    }

    /// Whether every number of the gradient is finite; of factors, whether their product is sure to be.
    pub fn is_finite(&self) -> Result<bool> {
        match self {
            Gradient::Dense(gradient) => is_finite(gradient),
            Gradient::Outer { output_gradient, input } => {
                let (rows, most) = (output_gradient.dim(0)? as f64, largest(output_gradient)? * largest(input)?);
                Ok(rows * most <= f64::from(f32::MAX))
            }
        }
    }
}

/// The largest magnitude of a tensor's elements; infinite if one is not a number.
fn largest(tensor: &Tensor) -> Result<f64> {
    by_type!(tensor, T => Ok(elementwise::largest::<T>(&read(tensor)?)))
}

/// One layer of a network, without its weights. Tensors have the row as their first dimension.
pub trait Layer: Debug + Send + Sync {
    /// The layer's kind, as users write it: "linear", "conv2d", …
    fn name(&self) -> &'static str;

    /// What it learns, in the order of `weights`; empty for most layers.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// What it keeps of the inputs it has seen: f64 tensors that come where weights do, and that [`Layer::observe`] replaces. A
    /// layer has parameters or statistics, never both.
    fn statistics(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// The shape of one row of the output.
    fn output_shape(&self) -> &[usize];

    /// Bytes and work for a step of `rows` rows.
    fn cost(&self, rows: usize) -> Cost;

    /// Outputs, and what backward will need. It may work in the storage of `inputs`.
    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)>;

    /// Outputs alone; the same bits as forward's.
    fn predict(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        self.forward(weights, inputs).map(|(outputs, _)| outputs)
    }

    /// From the gradients of the outputs: those of the inputs (none unless asked for), and of each parameter. `weights` are those
    /// that forward read. A layer whose input gradient takes no fresh storage ([`Cost::input_gradient`]) may work in the storage of
    /// `gradients`; others leave it as it is.
    fn backward(
        &self,
        weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)>;

    /// The statistics after the rows of `input`, in fresh storage.
    fn observe(&self, statistics: &[Tensor], _input: &Tensor) -> Result<Vec<Tensor>> {
        Ok(statistics.to_vec())
    }
}

/// The only tensor of a list; an error for more or fewer.
fn only(tensors: Vec<Tensor>) -> Result<Tensor> {
    <[Tensor; 1]>::try_from(tensors)
        .map(|[tensor]| tensor)
        .map_err(|tensors| Error::Msg(format!("the layer takes one tensor and was given {}", tensors.len())))
}

/// The rows of a tensor whose rows have `shape`; an error if they do not.
fn rows(tensor: &Tensor, shape: &[usize]) -> Result<usize> {
    match tensor.dims() {
        [rows, row @ ..] if row == shape => Ok(*rows),
        dims => Err(Error::Msg(format!("expected rows of shape {shape:?}, got a tensor of shape {dims:?}"))),
    }
}

/// The tensors that a layer lends or keeps, checked for their number.
fn exactly<'a, const N: usize>(tensors: &'a [Tensor], of: &str) -> Result<&'a [Tensor; N]> {
    tensors.try_into().map_err(|_| Error::Msg(format!("{of} has {N} tensors and was given {}", tensors.len())))
}

/// A shape with the number of rows in front.
fn with_rows(rows: usize, shape: &[usize]) -> Vec<usize> {
    [&[rows], shape].concat()
}

/// The most bytes that one row's predictions hold at once in layers that follow each other: what a layer reads, what it makes and keeps for a
/// backward, and its scratch.
pub(crate) fn forward_bytes<'a>(layers: impl Iterator<Item = &'a dyn Layer>, input_shape: &[usize]) -> u64 {
    let mut input = bytes(input_shape);
    let of_layer = layers.map(|layer| {
        let (cost, output) = (layer.cost(1), bytes(layer.output_shape()));
        std::mem::replace(&mut input, output) + output.max(cost.output) + cost.stash + cost.workspace_forward
    });
    of_layer.max().unwrap_or_else(|| bytes(input_shape))
}

/// The product of sizes, at most `u64::MAX`: costs of networks that no plan will fit must not overflow.
fn times(sizes: &[usize]) -> u64 {
    sizes.iter().fold(1, |product: u64, &size| product.saturating_mul(size as u64))
}

/// Bytes of f32 numbers of these sizes.
fn bytes(sizes: &[usize]) -> u64 {
    times(sizes).saturating_mul(4)
}
