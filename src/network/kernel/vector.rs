//! Products of one matrix and one vector, and rank-one updates: what a linear layer does at batch 1.
//!
//! A general product packs its operands first, which costs more than the arithmetic when there is one row.

use super::dispatch;
use crate::network::element::Element;

/// Partial sums of a dot product: its order is fixed by this number, whatever the processor.
const LANES: usize = 64;

/// `result[i] += matrix[i] · x` for each row of `matrix`.
pub(crate) fn add_matrix_vector<T: Element>(result: &mut [T], matrix: &[T], x: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (sum, row) in result.iter_mut().zip(matrix.chunks_exact(x.len().max(1))) {
                *sum += dot(row, x);
            }
        },
    );
}

/// `result += Σ factors[i] · matrix[i]`, over the rows of `matrix`; rows whose factor is zero (behind a dead ReLU) cost nothing.
pub(crate) fn add_vector_matrix<T: Element>(result: &mut [T], factors: &[T], matrix: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (&factor, row) in factors.iter().zip(matrix.chunks_exact(result.len().max(1))) {
                if factor != T::zero() {
                    add_scaled(result, factor, row);
                }
            }
        },
    );
}

/// `matrix := keep · matrix + scale · column ⊗ row`.
pub(crate) fn update_outer<T: Element>(matrix: &mut [T], keep: T, scale: T, column: &[T], row: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (&factor, target) in column.iter().zip(matrix.chunks_exact_mut(row.len().max(1))) {
                let factor = scale * factor;
                if keep != T::one() {
                    for value in target.iter_mut() {
                        *value *= keep;
                    }
                }
                if factor != T::zero() {
                    add_scaled(target, factor, row);
                }
            }
        },
    );
}

/// `column ⊗ row` in fresh storage.
pub(crate) fn outer<T: Element>(column: &[T], row: &[T]) -> Vec<T> {
    let mut matrix = Vec::with_capacity(column.len() * row.len());
    dispatch(
        #[inline(always)]
        || {
            for &factor in column {
                matrix.extend(row.iter().map(|&value| factor * value));
            }
        },
    );
    matrix
}

#[inline(always)]
fn add_scaled<T: Element>(target: &mut [T], factor: T, source: &[T]) {
    for (value, &summand) in target.iter_mut().zip(source) {
        *value = factor.fused(summand, *value);
    }
}

#[inline(always)]
fn dot<T: Element>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::zero(); LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].fused(b[lane], lanes[lane]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = a.fused(b, *lane);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_agree_with_their_definitions() {
        for width in [1, 7, 64, 200] {
            let row: Vec<f64> = (0..width).map(|i| (i % 13) as f64 - 6.0).collect();
            let matrix: Vec<f64> = (0..3 * width).map(|i| (i % 11) as f64 - 5.0).collect();
            let factors = [2.0, 0.0, -3.0];
            let mut sums = [1.0; 3];
            add_matrix_vector(&mut sums, &matrix, &row);
            let mut combined = vec![1.0; width];
            add_vector_matrix(&mut combined, &factors, &matrix);
            let mut updated = matrix.clone();
            update_outer(&mut updated, 0.5, 2.0, &factors, &row);
            let product = outer(&factors, &row);
            for i in 0..3 {
                let expected: f64 = 1.0 + (0..width).map(|j| matrix[i * width + j] * row[j]).sum::<f64>();
                assert_eq!(sums[i], expected);
                for (j, value) in row.iter().enumerate() {
                    let at = i * width + j;
                    assert_eq!(product[at], factors[i] * value);
                    assert_eq!(updated[at], 0.5 * matrix[at] + 2.0 * factors[i] * value);
                }
            }
            for j in 0..width {
                assert_eq!(combined[j], 1.0 + (0..3).map(|i| factors[i] * matrix[i * width + j]).sum::<f64>());
            }
        }
    }
}
