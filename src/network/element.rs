//! The numbers that kernels are written for: `f32` at work, and `f64` so that finite differences are exact in tests.

use std::fmt::Debug;

use candle_core::{CpuStorage, Error, Result, WithDType};

/// A floating-point number that a tensor can hold. Arithmetic comes with [`WithDType`]; here is what it lacks.
pub(crate) trait Element: WithDType + Debug + Default {
    /// `self · factor + summand`, rounded once.
    fn fused(self, factor: Self, summand: Self) -> Self;
    /// e to the power of this.
    fn exponential(self) -> Self;
    /// The natural logarithm.
    fn logarithm(self) -> Self;
    /// The square root.
    fn root(self) -> Self;
    /// Neither infinite nor NaN.
    fn finite(self) -> bool;
    /// The elements of a tensor's storage, to be written; an error for storage of another type.
    fn slice_mut(storage: &mut CpuStorage) -> Result<&mut [Self]>;
}

macro_rules! element {
    ($type:ident, $variant:ident) => {
        impl Element for $type {
            #[inline(always)]
            fn fused(self, factor: Self, summand: Self) -> Self {
                self.mul_add(factor, summand)
            }

            #[inline(always)]
            fn exponential(self) -> Self {
                self.exp()
            }

            #[inline(always)]
            fn logarithm(self) -> Self {
                self.ln()
            }

            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }

            #[inline(always)]
            fn finite(self) -> bool {
                self.is_finite()
            }

            fn slice_mut(storage: &mut CpuStorage) -> Result<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(data) => Ok(data.as_mut_slice()),
                    _ => Err(Error::Msg(format!("storage is not of {}", stringify!($type)))),
                }
            }
        }
    };
}

element!(f32, F32);
element!(f64, F64);
