//! Loops over elements: ReLU, bias sums, and the updates of the optimisers.

use super::dispatch;
use crate::network::element::Element;

/// `x := max(x, 0)`; NaN stays, so that a step that met one is refused.
pub(crate) fn relu<T: Element>(values: &mut [T]) {
    dispatch(
        #[inline(always)]
        || {
            for value in values {
                *value = if *value < T::zero() { T::zero() } else { *value };
            }
        },
    );
}

/// [`relu`] into fresh storage.
pub(crate) fn relu_copy<T: Element>(values: &[T]) -> Vec<T> {
    dispatch(
        #[inline(always)]
        || values.iter().map(|&value| if value < T::zero() { T::zero() } else { value }).collect(),
    )
}

/// The gradient through [`relu`], from its output: zero where the output is not positive.
pub(crate) fn relu_backward<T: Element>(gradient: &mut [T], output: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (value, &output) in gradient.iter_mut().zip(output) {
                *value = if output > T::zero() { *value } else { T::zero() };
            }
        },
    );
}

/// `x := min(max(x, 0), ceiling)`; NaN stays.
pub(crate) fn clip<T: Element>(values: &mut [T], ceiling: T) {
    dispatch(
        #[inline(always)]
        || {
            for value in values {
                let positive = if *value < T::zero() { T::zero() } else { *value };
                *value = if positive > ceiling { ceiling } else { positive };
            }
        },
    );
}

/// The gradient through [`clip`], from its output: zero where the output is at either end.
pub(crate) fn clip_backward<T: Element>(gradient: &mut [T], output: &[T], ceiling: T) {
    dispatch(
        #[inline(always)]
        || {
            for (value, &output) in gradient.iter_mut().zip(output) {
                *value = if output > T::zero() && output < ceiling { *value } else { T::zero() };
            }
        },
    );
}

/// `target += source`.
pub(crate) fn add<T: Element>(target: &mut [T], source: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (value, &summand) in target.iter_mut().zip(source) {
                *value += summand;
            }
        },
    );
}

/// `a + b` into fresh storage.
pub(crate) fn sum_of<T: Element>(a: &[T], b: &[T]) -> Vec<T> {
    dispatch(
        #[inline(always)]
        || a.iter().zip(b).map(|(&a, &b)| a + b).collect(),
    )
}

/// `values := factor · values`.
pub(crate) fn scale<T: Element>(values: &mut [T], factor: T) {
    dispatch(
        #[inline(always)]
        || {
            for value in values {
                *value *= factor;
            }
        },
    );
}

/// The sum of the rows of a `rows × columns` matrix, first to last.
pub(crate) fn sum_rows<T: Element>(matrix: &[T], columns: usize) -> Vec<T> {
    let mut sums = vec![T::zero(); columns];
    dispatch(
        #[inline(always)]
        || {
            for row in matrix.chunks_exact(columns.max(1)) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
        },
    );
    sums
}

/// The sum of a slice, in a fixed number of lanes.
pub(crate) fn sum<T: Element>(values: &[T]) -> T {
    const LANES: usize = 64;
    dispatch(
        #[inline(always)]
        || {
            let mut lanes = [T::zero(); LANES];
            let chunks = values.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                for lane in 0..LANES {
                    lanes[lane] += chunk[lane];
                }
            }
            for (lane, &value) in lanes.iter_mut().zip(rest) {
                *lane += value;
            }
            lanes.iter().fold(T::zero(), |sum, &lane| sum + lane)
        },
    )
}

/// The largest magnitude; infinite if one element is not finite.
pub(crate) fn largest<T: Element>(values: &[T]) -> f64 {
    /// As many as the widest vectors hold, so that each lane keeps a maximum of its own.
    const LANES: usize = 16;
    if !all_finite(values) {
        return f64::INFINITY;
    }
    let magnitude = |value: T| if value < T::zero() { T::zero() - value } else { value };
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut most = [T::zero(); LANES];
    dispatch(
        #[inline(always)]
        || {
            for chunk in whole {
                for (most, &value) in most.iter_mut().zip(chunk) {
                    let value = magnitude(value);
                    *most = if value > *most { value } else { *most };
                }
            }
        },
    );
    most.iter().chain(rest).fold(0.0, |most, &value| magnitude(value).to_f64().max(most))
}

/// Whether every element is a finite number.
pub(crate) fn all_finite<T: Element>(values: &[T]) -> bool {
    // By chunks without an early exit inside, so that the loop over one can be a vector loop.
    dispatch(
        #[inline(always)]
        || values.chunks(1024).all(|chunk| chunk.iter().fold(true, |finite, &value| finite & value.finite())),
    )
}

/// `target := keep · target + scale · source`.
pub(crate) fn scale_add<T: Element>(target: &mut [T], keep: T, scale: T, source: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (value, &summand) in target.iter_mut().zip(source) {
                *value = scale.fused(summand, keep * *value);
            }
        },
    );
}

/// `target := keep · target + scale · source²`.
pub(crate) fn scale_add_square<T: Element>(target: &mut [T], keep: T, scale: T, source: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (value, &summand) in target.iter_mut().zip(source) {
                *value = (scale * summand).fused(summand, keep * *value);
            }
        },
    );
}

/// `target += factor · |source|`.
pub(crate) fn add_magnitude<T: Element>(target: &mut [T], factor: T, source: &[T]) {
    dispatch(
        #[inline(always)]
        || {
            for (value, &summand) in target.iter_mut().zip(source) {
                let magnitude = if summand < T::zero() { T::zero() - summand } else { summand };
                *value += magnitude * factor;
            }
        },
    );
}

/// `weight := keep · weight − rate · mean / (√square · root_scale + epsilon)`.
pub(crate) fn adam<T: Element>(weight: &mut [T], mean: &[T], square: &[T], [keep, rate, root_scale, epsilon]: [T; 4]) {
    dispatch(
        #[inline(always)]
        || {
            for (value, (&mean, &square)) in weight.iter_mut().zip(mean.iter().zip(square)) {
                *value = keep * *value - rate * mean / (square.root() * root_scale + epsilon);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relu_keeps_what_is_not_a_number() {
        let mut values = [-1.0f32, 0.0, 2.0, f32::NAN, f32::NEG_INFINITY];
        relu(&mut values);
        assert_eq!(&values[..3], &[0.0, 0.0, 2.0]);
        assert!(values[3].is_nan());
        assert_eq!(values[4], 0.0);
        let mut gradient = [1.0f32; 5];
        relu_backward(&mut gradient, &values);
        assert_eq!(gradient, [0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn sums_and_checks() {
        let values: Vec<f64> = (0..1000).map(f64::from).collect();
        assert_eq!(sum(&values), 499_500.0);
        assert_eq!(sum_rows(&values, 500)[..2], [500.0, 502.0]);
        assert!(all_finite(&values));
        assert!(!all_finite(&[1.0, f64::INFINITY]));
    }
}
