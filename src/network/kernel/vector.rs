//! Products of one matrix and a few vectors, and rank-one updates: what a linear layer does at batch 1 and little above.
//!
//! A general product packs its operands first, which costs more than the arithmetic when there are few rows.

use super::dispatch;
use crate::network::element::Element;

/// Partial sums of a dot product, as wide as the widest vector register: its order is fixed by this, whatever the processor.
const LANES: usize = 16;
/// Vectors of partial sums, so that one need not wait for the other.
const STREAMS: usize = 4;

/// `results[i][j] += matrix[j] · vectors[i]`, for a few vectors of `width` elements each. A sum's bits are the same whatever the
/// number of vectors, and each row of `matrix` is read from memory once.
pub(crate) fn add_matrix_vectors<T: Element>(results: &mut [T], matrix: &[T], vectors: &[T], width: usize) {
    let rows = matrix.len() / width.max(1);
    dispatch(
        #[inline(always)]
        || {
            for (index, row) in matrix.chunks_exact(width.max(1)).enumerate() {
                for (results, vector) in results.chunks_exact_mut(rows).zip(vectors.chunks_exact(width)) {
                    results[index] += dot(row, vector);
                }
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
    let mut sums = [[T::zero(); LANES]; STREAMS];
    let (a_chunks, b_chunks) = (a.chunks_exact(STREAMS * LANES), b.chunks_exact(STREAMS * LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for (stream, sums) in sums.iter_mut().enumerate() {
            let (a, b) = (&a[stream * LANES..][..LANES], &b[stream * LANES..][..LANES]);
            for lane in 0..LANES {
                sums[lane] = a[lane].fused(b[lane], sums[lane]);
            }
        }
    }
    let [mut sum, others @ ..] = sums;
    for (a, b) in a_rest.chunks(LANES).zip(b_rest.chunks(LANES)) {
        for (sum, (&a, &b)) in sum.iter_mut().zip(a.iter().zip(b)) {
            *sum = a.fused(b, *sum);
        }
    }
    for other in others {
        for lane in 0..LANES {
            sum[lane] += other[lane];
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sum[lane] += sum[lane + half];
        }
    }
    sum[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_agree_with_their_definitions() {
        for (width, rows) in [(1, 3), (7, 3), (64, 9), (200, 4)] {
            let row: Vec<f64> = (0..width).map(|i| (i % 13) as f64 - 6.0).collect();
            let matrix: Vec<f64> = (0..rows * width).map(|i| (i % 11) as f64 - 5.0).collect();
            let factors: Vec<f64> = [2.0, 0.0, -3.0].into_iter().cycle().take(rows).collect();
            let mut sums = vec![1.0; rows];
            add_matrix_vectors(&mut sums, &matrix, &row, width);
            let mut combined = vec![1.0; width];
            add_vector_matrix(&mut combined, &factors, &matrix);
            let mut updated = matrix.clone();
            update_outer(&mut updated, 0.5, 2.0, &factors, &row);
            let product = outer(&factors, &row);
            for i in 0..rows {
                let expected: f64 = 1.0 + (0..width).map(|j| matrix[i * width + j] * row[j]).sum::<f64>();
                assert_eq!(sums[i], expected);
                for (j, value) in row.iter().enumerate() {
                    let at = i * width + j;
                    assert_eq!(product[at], factors[i] * value);
                    assert_eq!(updated[at], 0.5 * matrix[at] + 2.0 * factors[i] * value);
                }
            }
            for j in 0..width {
                assert_eq!(combined[j], 1.0 + (0..rows).map(|i| factors[i] * matrix[i * width + j]).sum::<f64>());
            }
        }
    }
}
