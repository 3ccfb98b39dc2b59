//! Optimisers: from gradients to weights, in place.
//!
//! Their state is tensors in the shape of each parameter, owned by the trainer, so that it can be saved. Formulas are PyTorch's, step
//! for step, and tests hold them to it.

use candle_core::{CpuStorage, DType, Device, Error, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::element::Element;
use super::kernel::{elementwise, gemm, vector};
use super::layer::{Gradient, Parameter};
use super::tensor::{source, target};

/// How gradients become updates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimiser {
    /// Stochastic gradient descent: `buffer := momentum · buffer + gradient + weight_decay · weight; weight −= rate · buffer`.
    Sgd {
        /// In [0, 1); 0 keeps no state.
        #[serde(default)]
        momentum: f64,
        /// An L2 penalty, 0 or more.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the mean of gradients, in [0, 1).
        #[serde(default = "default_beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients, in [0, 1).
        #[serde(default = "default_beta2")]
        beta2: f64,
        /// Added to the root of the mean square; more than 0.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
        /// Weights shrink by `rate · weight_decay` a step; 0 or more.
        #[serde(default = "default_weight_decay")]
        weight_decay: f64,
    },
}

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.999
}

fn default_epsilon() -> f64 {
    1e-8
}

fn default_weight_decay() -> f64 {
    0.01
}

impl Default for Optimiser {
    /// Plain stochastic gradient descent.
    fn default() -> Self {
        Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 }
    }
}

impl Optimiser {
    /// AdamW as PyTorch has it by default.
    pub fn adamw() -> Optimiser {
        let (beta1, beta2) = (default_beta1(), default_beta2());
        Optimiser::AdamW { beta1, beta2, epsilon: default_epsilon(), weight_decay: default_weight_decay() }
    }

    /// Whether every number is in its range; the text says which is not.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let fraction = |name: &str, value: f64| {
            if (0.0..1.0).contains(&value) {
                Ok(())
            } else {
                Err(format!("`{name}` is {value}, but must be at least 0 and less than 1"))
            }
        };
        let decay = |value: f64| {
            if (0.0..=1e6).contains(&value) {
                Ok(())
            } else {
                Err(format!("`weight_decay` is {value}, but must be from 0 to 1e6"))
            }
        };
        match *self {
            Optimiser::Sgd { momentum, weight_decay } => fraction("momentum", momentum).and(decay(weight_decay)),
            Optimiser::AdamW { beta1, beta2, epsilon, weight_decay } => {
                fraction("beta1", beta1)?;
                fraction("beta2", beta2)?;
                decay(weight_decay)?;
                // The update is computed in f32, where a smaller number could vanish and let a quotient become infinite.
                if (1e-30..=1.0).contains(&epsilon) {
                    Ok(())
                } else {
                    Err(format!("`epsilon` is {epsilon}, but must be from 1e-30 to 1"))
                }
            }
        }
    }

    /// How many tensors in the shape of each parameter it keeps: none, one (momentum), or two (means of gradients and of squares).
    pub fn state_count(&self) -> usize {
        match self {
            Optimiser::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
            Optimiser::AdamW { .. } => 2,
        }
    }

    /// Those tensors of one parameter before the first update.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn initial_moments(&self, parameter: &Parameter) -> Result<Vec<Tensor>> {
        (0..self.state_count()).map(|_| Tensor::zeros(parameter.shape.as_slice(), DType::F32, &Device::Cpu)).collect()
    }

    /// The names of those tensors.
    pub fn state_names(&self) -> &'static [&'static str] {
        match self {
            Optimiser::Sgd { momentum: 0.0, .. } => &[],
            Optimiser::Sgd { .. } => &["momentum"],
            Optimiser::AdamW { .. } => &["mean", "square"],
        }
    }

    /// Whether [`Gradient::Outer`] is applied by one product, without ever making it dense.
    pub fn fuses(&self) -> bool {
        matches!(self, Optimiser::Sgd { .. })
    }

    /// Updates `weight` and `state` in place: nobody else may hold their storage. `step` counts from 1.
    pub fn update(&self, weight: &Tensor, state: &[Tensor], gradient: Gradient, learning_rate: f64, step: u64) -> Result<()> {
        match (*self, state) {
            (Optimiser::Sgd { momentum: 0.0, weight_decay }, []) => {
                add_gradient(weight, 1.0 - learning_rate * weight_decay, -learning_rate, &gradient)
            }
            (Optimiser::Sgd { momentum, weight_decay }, [buffer]) => {
                add_gradient(buffer, momentum, 1.0, &gradient)?;
                if weight_decay != 0.0 {
                    buffer.inplace_op2(weight, &Add { keep: 1.0, scale: weight_decay, power: Power::One })?;
                }
                weight.inplace_op2(buffer, &Add { keep: 1.0, scale: -learning_rate, power: Power::One })
            }
            (Optimiser::AdamW { beta1, beta2, epsilon, weight_decay }, [mean, square]) => {
                let gradient = gradient.dense()?;
                mean.inplace_op2(&gradient, &Add { keep: beta1, scale: 1.0 - beta1, power: Power::One })?;
                square.inplace_op2(&gradient, &Add { keep: beta2, scale: 1.0 - beta2, power: Power::Two })?;
                let corrected = |beta: f64| 1.0 - beta.powf(step as f64);
                weight.inplace_op3(
                    mean,
                    square,
                    &Adam {
                        keep: 1.0 - learning_rate * weight_decay,
                        rate: learning_rate / corrected(beta1),
                        root_scale: 1.0 / corrected(beta2).sqrt(),
                        epsilon,
                    },
                )
            }
            _ => Err(Error::Msg(format!("{self:?} keeps {} tensors and was given {}", self.state_count(), state.len()))),
        }
    }
}

/// `sum += gradient`, in place: nobody else may hold the storage of `sum`.
pub fn add(sum: &Tensor, gradient: &Gradient) -> Result<()> {
    add_gradient(sum, 1.0, 1.0, gradient)
}

/// `sum += factor · |gradient|`, in place: nobody else may hold the storage of `sum`.
pub fn add_magnitude(sum: &Tensor, gradient: &Tensor, factor: f64) -> Result<()> {
    sum.inplace_op2(gradient, &Add { keep: 1.0, scale: factor, power: Power::Magnitude })
}

/// `tensor *= factor`, in place: nobody else may hold its storage.
pub fn scale(tensor: &Tensor, factor: f64) -> Result<()> {
    tensor.inplace_op1(&Scale(factor))
}

/// `target := keep · target + scale · gradient`.
fn add_gradient(target: &Tensor, keep: f64, scale: f64, gradient: &Gradient) -> Result<()> {
    match gradient {
        Gradient::Dense(gradient) => target.inplace_op2(gradient, &Add { keep, scale, power: Power::One }),
        Gradient::Outer { output_gradient, input } => target.inplace_op3(output_gradient, input, &AddOuter { keep, scale }),
    }
}

/// Runs `$run::<T>` for the type of the storage that is written.
macro_rules! by_storage {
    ($storage:expr, $run:ident($($argument:expr),*)) => {
        match $storage {
            CpuStorage::F64(_) => $run::<f64>($($argument),*),
            _ => $run::<f32>($($argument),*),
        }
    };
}

/// `target := factor · target`.
struct Scale(f64);

impl InplaceOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, layout: &Layout) -> Result<()> {
        fn run<T: Element>(factor: f64, to: &mut CpuStorage, layout: &Layout) -> Result<()> {
            elementwise::scale(target::<T>(to, layout)?, T::from_f64(factor));
            Ok(())
        }
        by_storage!(to, run(self.0, to, layout))
    }
}

enum Power {
    One,
    Two,
    /// The first, without its sign; `keep` is 1.
    Magnitude,
}

/// `target := keep · target + scale · source^power`.
struct Add {
    keep: f64,
    scale: f64,
    power: Power,
}

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "scaled add"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, from: &CpuStorage, from_layout: &Layout) -> Result<()> {
        fn run<T: Element>(
            op: &Add,
            to: &mut CpuStorage,
            to_layout: &Layout,
            from: &CpuStorage,
            from_layout: &Layout,
        ) -> Result<()> {
            let (to, from) = (target::<T>(to, to_layout)?, source::<T>(from, from_layout)?);
            same_length(to.len(), from.len())?;
            let (keep, scale) = (T::from_f64(op.keep), T::from_f64(op.scale));
            match op.power {
                Power::One => elementwise::scale_add(to, keep, scale, from),
                Power::Two => elementwise::scale_add_square(to, keep, scale, from),
                Power::Magnitude => elementwise::add_magnitude(to, scale, from),
            }
            Ok(())
        }
        by_storage!(to, run(self, to, to_layout, from, from_layout))
    }
}

/// `target := keep · target + scale · output_gradientᵀ · input`.
struct AddOuter {
    keep: f64,
    scale: f64,
}

impl InplaceOp3 for AddOuter {
    fn name(&self) -> &'static str {
        "scaled add of a product"
    }

    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        to_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
        input: &CpuStorage,
        input_layout: &Layout,
    ) -> Result<()> {
        let ((rows, outputs), (input_rows, inputs)) = (gradient_layout.shape().dims2()?, input_layout.shape().dims2()?);
        same_length(rows, input_rows)?;
        same_length(to_layout.shape().elem_count(), outputs * inputs)?;
        fn run<T: Element>(
            op: &AddOuter,
            [rows, outputs, inputs]: [usize; 3],
            to: &mut [T],
            gradient: &[T],
            input: &[T],
        ) -> Result<()> {
            let (keep, scale) = (T::from_f64(op.keep), T::from_f64(op.scale));
            if rows == 1 {
                vector::update_outer(to, keep, scale, gradient, input);
            } else {
                let gradient = gemm::Matrix::new(gradient, rows, outputs).transposed();
                gemm::accumulate(to, inputs, keep, scale, gradient, gemm::Matrix::new(input, rows, inputs));
            }
            Ok(())
        }
        let sizes = [rows, outputs, inputs];
        match to {
            CpuStorage::F64(_) => {
                run::<f64>(self, sizes, target(to, to_layout)?, source(gradient, gradient_layout)?, source(input, input_layout)?)
            }
            _ => {
                run::<f32>(self, sizes, target(to, to_layout)?, source(gradient, gradient_layout)?, source(input, input_layout)?)
            }
        }
    }
}

/// `weight := keep · weight − rate · mean / (√square · root_scale + epsilon)`.
struct Adam {
    keep: f64,
    rate: f64,
    root_scale: f64,
    epsilon: f64,
}

impl InplaceOp3 for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        mean: &CpuStorage,
        mean_layout: &Layout,
        square: &CpuStorage,
        square_layout: &Layout,
    ) -> Result<()> {
        fn run<T: Element>(op: &Adam, weight: &mut [T], mean: &[T], square: &[T]) -> Result<()> {
            same_length(weight.len(), mean.len())?;
            same_length(weight.len(), square.len())?;
            elementwise::adam(weight, mean, square, [op.keep, op.rate, op.root_scale, op.epsilon].map(T::from_f64));
            Ok(())
        }
        match weight {
            CpuStorage::F64(_) => {
                run::<f64>(self, target(weight, weight_layout)?, source(mean, mean_layout)?, source(square, square_layout)?)
            }
            _ => run::<f32>(self, target(weight, weight_layout)?, source(mean, mean_layout)?, source(square, square_layout)?),
        }
    }
}

fn same_length(a: usize, b: usize) -> Result<()> {
    if a == b { Ok(()) } else { Err(Error::Msg(format!("sizes {a} and {b} do not fit each other"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::tensor::{read, tensor};

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| (((index + seed) * 37 + 11) % 23) as f32 / 11.0 - 1.0).collect()
    }

    fn outer(rows: usize, outputs: usize, inputs: usize) -> Gradient {
        Gradient::Outer {
            output_gradient: tensor(numbers(rows * outputs, 3), &[rows, outputs]).unwrap(),
            input: tensor(numbers(rows * inputs, 5), &[rows, inputs]).unwrap(),
        }
    }

    /// Three steps, fused or dense; the weights and state after them.
    fn run(optimiser: Optimiser, rows: usize, fused: bool) -> Vec<f32> {
        let (outputs, inputs) = (7, 19);
        let of = |values| tensor(values, &[outputs, inputs]).unwrap();
        let weight = of(numbers(outputs * inputs, 1));
        let state: Vec<Tensor> = (0..optimiser.state_count()).map(|_| of(vec![0f32; outputs * inputs])).collect();
        for step in 1..=3 {
            let gradient = outer(rows, outputs, inputs);
            let gradient = if fused { gradient } else { Gradient::Dense(gradient.dense().unwrap()) };
            optimiser.update(&weight, &state, gradient, 0.1, step).unwrap();
        }
        let all = std::iter::once(&weight).chain(&state);
        all.flat_map(|tensor| read::<f32>(tensor).unwrap().to_vec()).collect()
    }

    #[test]
    fn a_fused_update_is_the_dense_one() {
        for optimiser in [
            Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 },
            Optimiser::Sgd { momentum: 0.0, weight_decay: 0.1 },
            Optimiser::Sgd { momentum: 0.9, weight_decay: 0.1 },
            Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
        ] {
            for rows in [1, 2, 5, 33] {
                let (fused, dense) = (run(optimiser, rows, true), run(optimiser, rows, false));
                let scale = dense.iter().fold(1f32, |largest, value| largest.max(value.abs()));
                for (fused, dense) in fused.iter().zip(&dense) {
                    assert!((fused - dense).abs() < 2e-6 * scale, "{optimiser:?}, {rows} rows: {fused} and {dense}");
                }
                assert_eq!(fused, run(optimiser, rows, true), "the same twice");
            }
        }
    }

    #[test]
    fn adamw_is_its_formula() {
        let optimiser = Optimiser::AdamW { beta1: 0.8, beta2: 0.9, epsilon: 1e-3, weight_decay: 0.2 };
        let [weight, mean, square] = [2.0f64, 0.0, 0.0].map(|value| tensor(vec![value], &[1]).unwrap());
        let (mut w, mut m, mut v) = (2.0f64, 0.0f64, 0.0f64);
        for (step, g) in [(1u64, 0.5f64), (2, -1.5), (3, 0.25)] {
            let gradient = Gradient::Dense(tensor(vec![g], &[1]).unwrap());
            optimiser.update(&weight, &[mean.clone(), square.clone()], gradient, 0.1, step).unwrap();
            (m, v) = (0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g);
            let (m_hat, v_hat) = (m / (1.0 - 0.8f64.powi(step as i32)), v / (1.0 - 0.9f64.powi(step as i32)));
            w = w * (1.0 - 0.1 * 0.2) - 0.1 * m_hat / (v_hat.sqrt() + 1e-3);
            assert!((read::<f64>(&weight).unwrap()[0] - w).abs() < 1e-12);
        }
    }

    #[test]
    fn settings_are_checked_and_sizes_too() {
        for (text, good) in [
            (r#"{"type":"sgd"}"#, true),
            (r#"{"type":"sgd","momentum":0.9,"weight_decay":0}"#, true),
            (r#"{"type":"adamw"}"#, true),
            (r#"{"type":"sgd","momentum":1}"#, false),
            (r#"{"type":"sgd","weight_decay":-1}"#, false),
            (r#"{"type":"adamw","beta1":-0.1}"#, false),
            (r#"{"type":"adamw","beta2":1.0}"#, false),
            (r#"{"type":"adamw","epsilon":0}"#, false),
        ] {
            let optimiser: Optimiser = serde_json::from_str(text).unwrap();
            assert_eq!(optimiser.validate().is_ok(), good, "{text}");
            assert_eq!(optimiser.state_names().len(), optimiser.state_count());
        }
        assert!(serde_json::from_str::<Optimiser>(r#"{"type":"sgd","nesterov":true}"#).is_err());
        let (weight, sgd) = (tensor(vec![0f32; 6], &[2, 3]).unwrap(), Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 });
        let wrong = Gradient::Dense(tensor(vec![0f32; 5], &[5]).unwrap());
        assert!(sgd.update(&weight, &[], wrong, 0.1, 1).is_err());
        assert!(sgd.update(&weight, &[], outer(2, 3, 3), 0.1, 1).is_err());
        assert!(sgd.update(&weight, std::slice::from_ref(&weight), outer(2, 2, 3), 0.1, 1).is_err());
    }
}
