//! Gradient compensation (Ferret, section 4.2): a gradient that was taken at a stage's older version is carried on to the newest one
//! before it is applied.
//!
//! Between the version that a step's forward read and the one that its update meets lie the updates of the steps ahead of it. With
//! the Hessian taken for λ times the diagonal of the Fisher matrix, `g + λ·g²·Δθ` is what the gradient would be one version later
//! (equation 8), and Iter-Fisher applies that once for every version in between (equation 9). The window of a stage holds exactly
//! these versions until the step's update, so nothing is kept for it; where steps share an update there are fewer of them. λ is found
//! by layer, from running means of the gradient and of `g²·Δθ` (equations 10 to 12), which take two tensors for each parameter.
//!
//! What is the paper's and what is not: the paper gives equations 5 to 12 and finds λ by gradient descent; the ridge solution of the
//! same equation, the end-point form, which solves dg/dθ = λ·g² exactly, and the clamps are ours. The penalty is relative to the means'
//! own size, because they are of the order of a learning rate times the cube of a gradient.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::stage::{LayerWeights, held_bytes};
use crate::ledger::{Guard, Ledger, Part};
use crate::network::compensate::{Along, Means, carry, squared_distance};
use crate::network::{Parameter, optimiser};

/// How a gradient is compensated for the updates that its forward missed.
// Braces where there are no fields: serde would take any field of a variant without them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Compensation {
    /// It is applied as it is.
    None {},
    /// One step of equation 8 from the version that was read to the newest, with a fixed λ (DC-ASGD, Zheng et al. 2017).
    Fisher {
        /// λ.
        #[serde(default = "default_lambda")]
        lambda: f64,
    },
    /// A step for every version in between (equation 9).
    IterFisher {
        /// How λ is found.
        #[serde(default)]
        tuning: Tuning,
        /// λ, or what it begins with.
        #[serde(default = "default_lambda")]
        lambda: f64,
        /// Version by version, or from the end points.
        #[serde(default)]
        form: Form,
        /// What the running means keep at each update (the paper's α), 0.9 by default; not of a fixed λ, which has no means.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        decay: Option<f64>,
        /// What λ costs (the paper's ν), relative to the means, 1 by default; not of a fixed λ.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        penalty: Option<f64>,
        /// The learning rate of λ (the paper's η_λ), 0.01 by default; under `gradient` alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<f64>,
    },
    /// Divided by the number of versions missed (staleness-aware SGD, Zhang et al. 2016).
    StepAware {},
    /// Each element divided by one and the distance that its weight has moved, in updates of the mean size of those missed (gap-aware, Barkai et al. 2020).
    GapAware {},
}

impl Default for Compensation {
    fn default() -> Self {
        Compensation::None {}
    }
}

/// How λ is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tuning {
    /// It stays what it is.
    Fixed,
    /// The solution of the penalised least squares of equation 10.
    #[default]
    Ridge,
    /// One step of gradient descent on it for each update, as in the paper.
    Gradient,
}

impl Tuning {
    /// As users write it.
    fn name(self) -> &'static str {
        match self {
            Tuning::Fixed => "fixed",
            Tuning::Ridge => "ridge",
            Tuning::Gradient => "gradient",
        }
    }
}

/// From which weights the change of a gradient is reckoned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// From each version to the next.
    #[default]
    Iterated,
    /// From the one that was read and the newest.
    EndPoints,
}

/// The largest λ: a Hessian's diagonal is not negative, and beyond this the clamps of each element decide everything.
const LAMBDA_MAX: f64 = 1e6;

fn default_lambda() -> f64 {
    0.2
}

const DECAY: f64 = 0.9;
const PENALTY: f64 = 1.0;
const RATE: f64 = 1e-2;

impl Compensation {
    /// Whether every number is in its range and means something under this tuning; the text says which does not.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let within = |name: &str, value: f64, range: std::ops::RangeInclusive<f64>| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(format!("compensation's `{name}` is {value}, but must be from {} to {}", range.start(), range.end()))
            }
        };
        match *self {
            Compensation::Fisher { lambda } => within("lambda", lambda, 0.0..=LAMBDA_MAX),
            Compensation::IterFisher { tuning, lambda, decay, penalty, rate, .. } => {
                within("lambda", lambda, 0.0..=LAMBDA_MAX)?;
                let (tuned, descends) = (tuning != Tuning::Fixed, tuning == Tuning::Gradient);
                for (name, value, most, has) in
                    [("decay", decay, 0.999_999, tuned), ("penalty", penalty, 1e9, tuned), ("rate", rate, 1e9, descends)]
                {
                    let Some(value) = value else { continue };
                    if !has {
                        return Err(format!("compensation `iter_fisher` has no `{name}` with tuning `{}`", tuning.name()));
                    }
                    within(name, value, 0.0..=most)?;
                }
                Ok(())
            }
            Compensation::None {} | Compensation::StepAware {} | Compensation::GapAware {} => Ok(()),
        }
    }

    /// Whether it changes any gradient, which must be dense for it.
    pub fn compensates(&self) -> bool {
        *self != Compensation::None {}
    }

    /// How many tensors in the shape of each parameter it keeps.
    pub fn state_count(&self) -> usize {
        self.state_names().len()
    }

    /// Their names.
    pub fn state_names(&self) -> &'static [&'static str] {
        match self {
            Compensation::IterFisher { tuning: Tuning::Ridge | Tuning::Gradient, .. } => &["mean_gradient", "mean_fisher"],
            _ => &[],
        }
    }

    /// λ of a layer before its first update.
    pub fn initial_lambda(&self) -> f64 {
        match *self {
            Compensation::Fisher { lambda } | Compensation::IterFisher { lambda, .. } => lambda,
            _ => 0.0,
        }
    }
}

/// What the compensation of one layer remembers.
#[derive(Debug)]
pub struct Tuner {
    /// λ.
    pub lambda: f64,
    /// Per parameter, the means.
    pub means: Vec<Vec<Tensor>>,
    _guard: Guard,
}

impl Tuner {
    /// One with these means, which nobody else may hold.
    pub fn new(lambda: f64, means: Vec<Vec<Tensor>>, ledger: &Ledger) -> Tuner {
        let bytes = means.iter().flatten().map(held_bytes).sum();
        Tuner { lambda, means, _guard: ledger.take(Part::Compensation, bytes) }
    }

    /// One of a layer with these parameters that has seen nothing.
    pub fn zero(compensation: &Compensation, parameters: &[Parameter], ledger: &Ledger) -> Result<Tuner> {
        let zero = |parameter: &Parameter| Tensor::zeros(parameter.shape.as_slice(), DType::F32, &Device::Cpu);
        let means = parameters.iter().map(|parameter| (0..compensation.state_count()).map(|_| zero(parameter)).collect());
        Ok(Tuner::new(compensation.initial_lambda(), means.collect::<Result<_>>()?, ledger))
    }

    /// Carries a layer's dense gradients from the first version of `trail`, which its forward read, to the last, the newest.
    pub fn compensate(&mut self, how: &Compensation, gradients: &[Tensor], trail: &[Arc<LayerWeights>]) -> Result<()> {
        let ([read, .., newest], false) = (trail, gradients.is_empty()) else { return Ok(()) };
        let missed = (trail.len() - 1) as f64;
        match *how {
            Compensation::None {} => Ok(()),
            Compensation::Fisher { lambda } => each(gradients, read, newest, Along::FirstOrder(lambda)),
            Compensation::IterFisher { tuning, form, decay, penalty, rate, .. } => {
                if tuning != Tuning::Fixed {
                    let (decay, penalty) = (decay.unwrap_or(DECAY), penalty.unwrap_or(PENALTY));
                    self.tune(gradients, &trail[..2], (tuning, decay, penalty, rate.unwrap_or(RATE)))?;
                }
                match form {
                    Form::EndPoints => each(gradients, read, newest, Along::Exact(self.lambda)),
                    Form::Iterated => {
                        for pair in trail.windows(2) {
                            each(gradients, &pair[0], &pair[1], Along::FirstOrder(self.lambda))?;
                        }
                        Ok(())
                    }
                }
            }
            Compensation::StepAware {} => gradients.iter().try_for_each(|gradient| optimiser::scale(gradient, 1.0 / missed)),
            Compensation::GapAware {} => {
                let unit = distance(read, newest)? / missed;
                if unit > 0.0 { each(gradients, read, newest, Along::Gap(unit)) } else { Ok(()) }
            }
        }
    }

    /// Finds λ by what the means say of this gradient, and takes it into them (equations 10 to 12, all parameters of the layer
    /// together). `trail` is the version that was read and the next one.
    fn tune(
        &mut self,
        gradients: &[Tensor],
        trail: &[Arc<LayerWeights>],
        (tuning, decay, penalty, rate): (Tuning, f64, f64, f64),
    ) -> Result<()> {
        let (mut of_change, mut of_fisher) = (0.0, 0.0);
        for (gradient, means) in gradients.iter().zip(&self.means) {
            if let [mean_gradient, mean_fisher] = &means[..] {
                let means = Means { gradient: mean_gradient, fisher: mean_fisher };
                let (change, fisher) = means.products(gradient)?;
                of_change += change;
                of_fisher += fisher;
            }
        }
        // D − E of equation 12 is the part of the new gradient's distance that its mean moves by.
        let of_change = (1.0 - decay) * of_change;
        if of_fisher > 0.0 {
            let found = match tuning {
                Tuning::Fixed => self.lambda,
                Tuning::Ridge => of_change / (of_fisher * (1.0 + penalty)),
                Tuning::Gradient => self.lambda + 2.0 * rate * (of_change / of_fisher - self.lambda * (1.0 + penalty)),
            };
            if found.is_finite() {
                self.lambda = found.clamp(0.0, LAMBDA_MAX);
            }
        }
        for (index, (gradient, means)) in gradients.iter().zip(&self.means).enumerate() {
            if let [mean_gradient, mean_fisher] = &means[..] {
                let means = Means { gradient: mean_gradient, fisher: mean_fisher };
                means.advance(gradient, &trail[0].tensors()[index], &trail[1].tensors()[index], decay)?;
            }
        }
        Ok(())
    }
}

fn each(gradients: &[Tensor], from: &LayerWeights, to: &LayerWeights, along: Along) -> Result<()> {
    for (gradient, (from, to)) in gradients.iter().zip(from.tensors().iter().zip(to.tensors())) {
        carry(gradient, from, to, along)?;
    }
    Ok(())
}

/// The root mean square of what a weight has moved by.
fn distance(before: &LayerWeights, newest: &LayerWeights) -> Result<f64> {
    let (mut squares, mut count) = (0.0, 0);
    for (before, newest) in before.tensors().iter().zip(newest.tensors()) {
        squares += squared_distance(before, newest)?;
        count += before.elem_count();
    }
    Ok((squares / count.max(1) as f64).sqrt())
}

#[cfg(test)]
mod tests;
