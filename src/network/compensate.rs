//! In-place operations that change a gradient before it is applied: because it was taken at older weights than those (Ferret, section
//! 4.2), or because weights are held to where they were.
//!
//! `gradient` is dense; `from` and `to` are the same parameter before and after some updates. All of them are f32 or f64 alike.

use candle_core::{CpuStorage, Error, InplaceOp1, InplaceOp3, Layout, Result, Tensor, WithDType};

use super::element::Element;
use super::kernel::{compensation, elementwise};
use super::tensor::{by_type, read, source, target};

/// How a gradient is carried on along a displacement `Δ = to − from` of its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Along {
    /// `g := g + λ·g²·Δ` (equation 8), one Euler step of dg/dθ = λ·g².
    FirstOrder(f64),
    /// `g := g / (1 − λ·g·Δ)`, that equation's exact solution, from the end points alone.
    Exact(f64),
    /// `g := g / (1 + |Δ| / unit)` (gap-aware, Barkai et al. 2020).
    Gap(f64),
}

/// Carries `gradient` on.
pub fn carry(gradient: &Tensor, from: &Tensor, to: &Tensor, along: Along) -> Result<()> {
    gradient.inplace_op3(from, to, &Carry(along))
}

struct Carry(Along);

impl InplaceOp3 for Carry {
    fn name(&self) -> &'static str {
        "compensation"
    }

    fn cpu_fwd(
        &self,
        gradient: &mut CpuStorage,
        gradient_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
        to: &CpuStorage,
        to_layout: &Layout,
    ) -> Result<()> {
        fn run<T: Element>(along: Along, gradient: &mut [T], from: &[T], to: &[T]) -> Result<()> {
            same_lengths([gradient.len(), from.len(), to.len()])?;
            match along {
                Along::FirstOrder(lambda) => compensation::first_order(gradient, from, to, T::from_f64(lambda)),
                Along::Exact(lambda) => compensation::exact(gradient, from, to, T::from_f64(lambda)),
                Along::Gap(unit) => compensation::gap(gradient, from, to, T::from_f64(1.0 / unit)),
            }
            Ok(())
        }
        match gradient {
            CpuStorage::F64(_) => {
                run::<f64>(self.0, target(gradient, gradient_layout)?, source(from, from_layout)?, source(to, to_layout)?)
            }
            _ => run::<f32>(self.0, target(gradient, gradient_layout)?, source(from, from_layout)?, source(to, to_layout)?),
        }
    }
}

/// The means that λ is found from (equations 10 to 12), of one parameter.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// Of gradients.
    pub gradient: &'a Tensor,
    /// Of `g²·Δ`, with the displacement of one version.
    pub fisher: &'a Tensor,
}

impl Means<'_> {
    /// `⟨fisher, g − gradient⟩` and `⟨fisher, fisher⟩`.
    pub fn products(&self, gradient: &Tensor) -> Result<(f64, f64)> {
        by_type!(gradient, T => {
            let (fisher, mean, new) = (read::<T>(self.fisher)?, read::<T>(self.gradient)?, read::<T>(gradient)?);
            same_lengths([fisher.len(), mean.len(), new.len()])?;
            Ok(compensation::products(&fisher, &mean, &new))
        })
    }

    /// Takes a gradient and the displacement after it into the means, of which it keeps `decay`.
    pub fn advance(&self, gradient: &Tensor, from: &Tensor, to: &Tensor, decay: f64) -> Result<()> {
        self.fisher.inplace_op1(&Fisher { gradient, from, to, decay })?;
        self.gradient.inplace_op1(&Mean { of: gradient, decay })
    }
}

/// `fisher := decay · fisher + (1 − decay) · g² · (to − from)`.
struct Fisher<'a> {
    gradient: &'a Tensor,
    from: &'a Tensor,
    to: &'a Tensor,
    decay: f64,
}

impl InplaceOp1 for Fisher<'_> {
    fn name(&self) -> &'static str {
        "mean of fisher displacements"
    }

    fn cpu_fwd(&self, fisher: &mut CpuStorage, layout: &Layout) -> Result<()> {
        by_type!(self.gradient, T => {
            let fisher = target::<T>(fisher, layout)?;
            let (gradient, from, to) = (read::<T>(self.gradient)?, read::<T>(self.from)?, read::<T>(self.to)?);
            same_lengths([fisher.len(), gradient.len(), from.len()])?;
            same_lengths([fisher.len(), gradient.len(), to.len()])?;
            compensation::mean_fisher(fisher, &gradient, &from, &to, T::from_f64(self.decay));
            Ok(())
        })
    }
}

/// `mean := decay · mean + (1 − decay) · of`.
struct Mean<'a> {
    of: &'a Tensor,
    decay: f64,
}

impl InplaceOp1 for Mean<'_> {
    fn name(&self) -> &'static str {
        "running mean"
    }

    fn cpu_fwd(&self, mean: &mut CpuStorage, layout: &Layout) -> Result<()> {
        by_type!(self.of, T => {
            let (mean, of) = (target::<T>(mean, layout)?, read::<T>(self.of)?);
            same_lengths([mean.len(), of.len(), of.len()])?;
            elementwise::scale_add(mean, T::from_f64(self.decay), T::from_f64(1.0 - self.decay), &of);
            Ok(())
        })
    }
}

/// Adds to a gradient what pulls a weight back to where it is held: `gradient += firmness · importance · (weight − centre)`.
pub fn pull(gradient: &Tensor, importance: &Tensor, weight: &Tensor, centre: &Tensor, firmness: f64) -> Result<()> {
    gradient.inplace_op1(&Pull { importance, weight, centre, firmness })
}

struct Pull<'a> {
    importance: &'a Tensor,
    weight: &'a Tensor,
    centre: &'a Tensor,
    firmness: f64,
}

impl InplaceOp1 for Pull<'_> {
    fn name(&self) -> &'static str {
        "pull to an anchor"
    }

    fn cpu_fwd(&self, gradient: &mut CpuStorage, layout: &Layout) -> Result<()> {
        by_type!(self.weight, T => {
            let gradient = target::<T>(gradient, layout)?;
            let (importance, weight, centre) = (read::<T>(self.importance)?, read::<T>(self.weight)?, read::<T>(self.centre)?);
            same_lengths([gradient.len(), importance.len(), weight.len()])?;
            same_lengths([gradient.len(), centre.len(), weight.len()])?;
            compensation::pull(gradient, &importance, &weight, &centre, T::from_f64(self.firmness));
            Ok(())
        })
    }
}

/// The sum of the squares of `to − from`.
pub fn squared_distance(from: &Tensor, to: &Tensor) -> Result<f64> {
    by_type!(from, T => {
        let (from, to) = (read::<T>(from)?, read::<T>(to)?);
        same_lengths([from.len(), to.len(), to.len()])?;
        Ok(compensation::squared_distance(&from, &to))
    })
}

fn same_lengths(lengths: [usize; 3]) -> Result<()> {
    if lengths[0] == lengths[1] && lengths[0] == lengths[2] {
        Ok(())
    } else {
        Err(Error::Msg(format!("a gradient and its weights have {lengths:?} numbers")))
    }
}
