//! What the bits of a network's arithmetic depend on, beside its inputs.
//!
//! The `gemm` crate chooses its kernels by the processor's features and its blocking by the sizes of its caches, and exponentials come
//! from the system's mathematics library. Naming all of these would miss one; so the identity also holds the hash of a few results,
//! which any of them would change.

use std::fmt::Write;
use std::sync::LazyLock;

use super::element::Element;
use super::kernel::gemm::{Matrix, product};

/// Raised with any change that lets the same inputs give other bits.
const KERNELS: u32 = 1;
/// The version of the `gemm` crate in `Cargo.lock`.
const GEMM: &str = "0.19.0";

static IDENTITY: LazyLock<String> = LazyLock::new(describe);

/// Kernel version, processor features and a hash of probed results. Networks give the same bits where these are equal.
pub fn identity() -> String {
    IDENTITY.clone()
}

fn describe() -> String {
    let mut text = format!("kernels {KERNELS}; gemm {GEMM}; {}", std::env::consts::ARCH);
    #[cfg(target_arch = "x86_64")]
    for (name, present) in [
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ] {
        if present {
            text.push(' ');
            text.push_str(name);
        }
    }
    let probe = probe().to_hex();
    // Writing to a string cannot fail.
    write!(text, "; probe {}", &probe.as_str()[..16]).unwrap_or_default();
    text
}

/// A hash of products whose sums are long enough to show blocking, and of exponentials and logarithms.
fn probe() -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (m, n, k) in [(3, 5, 40), (16, 16, 1500), (70, 75, 5000), (1, 33, 700), (64, 10, 2)] {
        let (left, right) = (numbers(m * k), numbers(k * n));
        for value in product(Matrix::new(&left, m, k), Matrix::new(&right, k, n)) {
            hasher.update(&value.to_le_bytes());
        }
        for value in product(Matrix::new(&left, k, m).transposed(), Matrix::new(&right, n, k).transposed()) {
            hasher.update(&value.to_le_bytes());
        }
    }
    for value in numbers(256) {
        hasher.update(&(10.0 * value).exponential().to_le_bytes());
        hasher.update(&(1.5 + value).logarithm().to_le_bytes());
        // The power that AdamW's correction of its bias takes.
        hasher.update(&(1.0 - f64::from(value).abs()).powf(1234.0).to_le_bytes());
    }
    hasher.finalize()
}

/// Numbers between −1 and 1 from a fixed linear congruence.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_of_gemm_is_the_one_in_use() {
        let locked = format!("name = \"gemm\"\nversion = \"{}\"", super::GEMM);
        assert!(include_str!("../../Cargo.lock").contains(&locked));
    }

    #[test]
    fn the_identity_stays_the_same() {
        assert_eq!(super::describe(), super::describe());
        assert_eq!(super::identity(), super::describe());
    }
}
