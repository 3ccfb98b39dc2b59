//! Matrix products by the `gemm` crate: the only unsafe code of this room.
//!
//! Every call checks that all elements that the crate will touch lie inside the slices.
#![allow(unsafe_code)]

use gemm::Parallelism;
use gemm_common::cache::{CACHE_INFO, KernelParams, kernel_params};
use gemm_common::gemm::DEFAULT_RHS_PACKING_THRESHOLD;

use crate::network::element::Element;

/// A matrix that is read: element (i, j) is `data[i · row_stride + j · column_stride]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Element> Matrix<'a, T> {
    /// `rows × columns` elements, row by row.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// As [`Matrix::new`], with rows that begin `row_stride` elements apart.
    pub(crate) fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(reach(rows, columns, row_stride, 1) <= data.len(), "{rows} × {columns} matrix in {} elements", data.len());
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same elements with rows as columns.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `left · right` in fresh storage, row by row.
pub(crate) fn product<T: Element>(left: Matrix<'_, T>, right: Matrix<'_, T>) -> Vec<T> {
    let len = left.rows * right.columns;
    let mut result = Vec::with_capacity(len);
    // SAFETY: the vector has room for `len` elements at unit column stride; they are only written, never read, first.
    unsafe { call(result.as_mut_ptr(), right.columns, None, T::one(), left, right) };
    // SAFETY: `gemm` wrote all `left.rows × right.columns` elements (zeros where the inner dimension is 0).
    unsafe { result.set_len(len) };
    result
}

/// `target := keep · target + scale · left · right`, where the rows of `target` begin `row_stride` elements apart.
pub(crate) fn accumulate<T: Element>(
    target: &mut [T],
    row_stride: usize,
    keep: T,
    scale: T,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert!(reach(left.rows, right.columns, row_stride, 1) <= target.len(), "the product does not fit its target");
    assert!(right.columns <= row_stride || left.rows <= 1, "the rows of the target overlap");
    // SAFETY: the target holds every element of the product, by the assertion above, and is initialised.
    unsafe { call(target.as_mut_ptr(), row_stride, Some(keep), scale, left, right) };
}

/// How the `gemm` crate cuts an f32 product into register blocks on this processor (gemm-f32 0.19, `microkernel`).
struct Blocking {
    lanes: usize,
    rows: usize,
    columns: usize,
}

impl Blocking {
    fn here() -> Blocking {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") {
                return Blocking { lanes: 16, rows: 64, columns: 6 };
            }
            if std::is_x86_feature_detected!("fma") {
                return Blocking { lanes: 8, rows: 16, columns: 6 };
            }
        }
        Blocking { lanes: 1, rows: 2, columns: 4 }
    }
}

/// Bytes that the `gemm` crate takes for packing during an f32 product of `m × k` and `k × n` into rows, beside a slab the size of
/// the second-level cache that each thread keeps. The rules are the crate's own (gemm-common 0.19, `gemm_basic_generic`, one
/// thread); a test holds them to the allocator.
pub(crate) fn packing_bytes(m: usize, n: usize, k: usize, left_transposed: bool, right_transposed: bool) -> u64 {
    /// What aligning the two packed operands to cache lines may add.
    const ALIGNMENT_BYTES: u64 = 512;
    const ELEMENT_BYTES: usize = size_of::<f32>();
    // A target that lies in rows makes the crate compute the transpose: its left is our right.
    let (m, n) = (n, m);
    let dots = right_transposed && !left_transposed && m.saturating_mul(n) <= 256;
    if k <= 2 || m <= 1 || n <= 1 || dots {
        return 0;
    }
    let Blocking { lanes, rows, columns } = Blocking::here();
    let KernelParams { kc, mc, nc } = if m <= 64 && n <= 64 {
        let kc = k.min(512);
        let mc = CACHE_INFO[1].cache_bytes / ELEMENT_BYTES / kc / rows * rows;
        KernelParams { kc, mc, nc: n.next_multiple_of(columns) }
    } else {
        kernel_params(m, n, k, rows, columns, ELEMENT_BYTES)
    };
    let nc = if nc > 0 { nc } else { 128 * columns };
    let packs_right = if left_transposed { m > 2 * rows } else { m > DEFAULT_RHS_PACKING_THRESHOLD * rows };
    let packs_left = m <= 2 * mc && (m % lanes != 0 || right_transposed);
    let right = if packs_right { kc * nc / columns * columns } else { 0 };
    let left = if packs_left { kc * m.next_multiple_of(rows) } else { 0 };
    ((right + left) * ELEMENT_BYTES) as u64 + ALIGNMENT_BYTES
}

/// # Safety
///
/// `target` must be valid for writes of `left.rows × right.columns` elements whose rows begin `row_stride` elements apart, and
/// initialised if `keep` is given.
unsafe fn call<T: Element>(
    target: *mut T,
    row_stride: usize,
    keep: Option<T>,
    scale: T,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions of a product");
    // SAFETY: `left` and `right` were checked against their slices when they were made, and `target` by the caller. Strides of
    // slices fit `isize`. `Element` is implemented for `f32` and `f64` alone, which `gemm` takes.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            target,
            1,
            row_stride as isize,
            keep.is_some(),
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            keep.unwrap_or_else(T::zero),
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// One past the last element that a matrix touches.
fn reach(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f64> {
        (0..count).map(|i| ((i * 37 + 11) % 19) as f64 - 9.0).collect()
    }

    #[test]
    fn products_agree_with_the_definition() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 9, 33), (4, 4, 0), (1, 6, 5), (6, 1, 5)] {
            let (left, right) = (numbers(m * k), numbers(k * n));
            let result = product(Matrix::new(&left, m, k), Matrix::new(&right, k, n));
            let flipped = product(Matrix::new(&right, k, n).transposed(), Matrix::new(&left, m, k).transposed());
            let mut gathered = numbers(m * (n + 2));
            let before = gathered.clone();
            accumulate(&mut gathered, n + 2, 2.0, -1.0, Matrix::new(&left, m, k), Matrix::new(&right, k, n));
            for i in 0..m {
                for j in 0..n {
                    let expected: f64 = (0..k).map(|d| left[i * k + d] * right[d * n + j]).sum();
                    assert_eq!(result[i * n + j], expected);
                    assert_eq!(flipped[j * m + i], expected);
                    assert_eq!(gathered[i * (n + 2) + j], 2.0 * before[i * (n + 2) + j] - expected);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_target_that_is_too_small_is_caught() {
        let data = numbers(4);
        accumulate(&mut [0.0; 3], 2, 1.0, 1.0, Matrix::new(&data, 2, 2), Matrix::new(&data, 2, 2));
    }
}
