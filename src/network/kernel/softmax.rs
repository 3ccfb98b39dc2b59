//! Softmax with cross-entropy, and squared error: losses of rows and their gradients.

use crate::network::element::Element;

/// One row of softmax cross-entropy: writes `weight · (softmax(outputs) · Σ targets − targets)` to `gradient` and returns the
/// loss `−Σ targets · ln softmax(outputs)`. `target` gives the probability of each class.
pub(crate) fn cross_entropy<T: Element>(outputs: &[T], gradient: &mut [T], weight: T, target: impl Fn(usize) -> T) -> T {
    let largest = maximum(outputs);
    let mut total = T::zero();
    for (slot, &output) in gradient.iter_mut().zip(outputs) {
        *slot = (output - largest).exponential();
        total += *slot;
    }
    let logarithm = total.logarithm();
    let (mut loss, mut mass) = (T::zero(), T::zero());
    for (class, &output) in outputs.iter().enumerate() {
        let target = target(class);
        if target != T::zero() {
            loss += target * (logarithm - (output - largest));
            mass += target;
        }
    }
    for (class, slot) in gradient.iter_mut().enumerate() {
        *slot = weight * (*slot / total * mass - target(class));
    }
    loss
}

/// Probabilities of each row of `classes` outputs, in place.
pub(crate) fn softmax<T: Element>(outputs: &mut [T], classes: usize) {
    for row in outputs.chunks_exact_mut(classes.max(1)) {
        let largest = maximum(row);
        let mut total = T::zero();
        for value in row.iter_mut() {
            *value = (*value - largest).exponential();
            total += *value;
        }
        for value in row {
            *value /= total;
        }
    }
}

/// The index of the largest element, the first of equals.
pub(crate) fn arg_max<T: Element>(values: &[T]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

fn maximum<T: Element>(values: &[T]) -> T {
    values.iter().fold(T::from_f64(f64::NEG_INFINITY), |largest, &value| if value > largest { value } else { largest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_outputs_do_not_overflow() {
        let mut gradient = [0f32; 3];
        let loss = cross_entropy(&[1000.0, 0.0, -1000.0], &mut gradient, 1.0, |class| if class == 0 { 1.0 } else { 0.0 });
        assert_eq!((loss, gradient), (0.0, [0.0, 0.0, 0.0]));
        let mut outputs = [1000f32, 1000.0, 0.0, 0.0];
        softmax(&mut outputs, 2);
        assert_eq!(outputs, [0.5; 4]);
    }

    #[test]
    fn the_first_of_equals_is_the_largest() {
        assert_eq!(arg_max(&[1.0, 3.0, 3.0]), 1);
    }
}
