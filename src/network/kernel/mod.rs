//! Kernels: pure functions over slices, each on one thread. What they write is a function of what they read, to the bit.
//!
//! Loops run inside [`dispatch`], so that the compiler makes AVX2 and AVX-512 versions of them and the processor's own is taken
//! at run time. Sums are kept in a fixed number of lanes with fused multiply-adds, so their order (and their bits) does not depend on
//! which version runs; only the `gemm` crate's blocking does.

pub(crate) mod compensation;
pub(crate) mod convolution;
pub(crate) mod depthwise;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod group_norm;
pub(crate) mod pool;
pub(crate) mod softmax;
pub(crate) mod vector;

use std::sync::LazyLock;

static PROCESSOR: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `kernel`, which must be inlined, compiled for this processor's vector instructions.
#[inline(always)]
pub(crate) fn dispatch<R>(kernel: impl FnOnce() -> R) -> R {
    PROCESSOR.dispatch(kernel)
}
