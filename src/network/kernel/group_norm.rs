//! Group normalisation: each group of a row's channels to mean 0 and variance 1, and then a scale and a shift for each channel.
//!
//! Statistics come from two passes (the mean first, then deviations from it, with what the first mean lacked corrected), in lanes
//! whose sums end in f64, so that a large mean costs no digits of the deviation.

use super::dispatch;
use crate::network::element::Element;

/// Added to the variance, as PyTorch's default.
const EPSILON: f64 = 1e-5;
/// Partial sums of a run: as many as two of the widest vectors hold, and whatever the processor.
const LANES: usize = 32;

/// The sizes of a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Channels of a row.
    pub(crate) channels: usize,
    /// Groups that they are cut into, one after the other.
    pub(crate) groups: usize,
    /// Elements of a channel.
    pub(crate) plane: usize,
}

impl Geometry {
    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    /// Elements of a group.
    fn group(&self) -> usize {
        self.group_channels() * self.plane
    }
}

/// What [`forward`] computes.
pub(crate) struct Normalised<T> {
    /// In the shape of the input.
    pub(crate) y: Vec<T>,
    /// The mean of each group of each row.
    pub(crate) means: Vec<T>,
    /// One over the standard deviation of each group of each row.
    pub(crate) factors: Vec<T>,
}

/// `(x − mean) / √(variance + ε) · weight + bias`, with the mean and the variance of each row's groups and the weight and the bias
/// of each channel.
pub(crate) fn forward<T: Element>(geometry: &Geometry, weight: &[T], bias: &[T], x: &[T]) -> Normalised<T> {
    let groups = x.len() / geometry.group().max(1);
    let (mut means, mut factors) = (Vec::with_capacity(groups), Vec::with_capacity(groups));
    let mut y = Vec::with_capacity(x.len());
    let of_group = geometry.group_channels();
    dispatch(
        #[inline(always)]
        || {
            for (index, group) in x.chunks_exact(geometry.group().max(1)).enumerate() {
                let (mean, factor) = statistics(group);
                let first = index % geometry.groups * of_group;
                let affine = weight[first..][..of_group].iter().zip(&bias[first..][..of_group]);
                for (plane, (&weight, &bias)) in group.chunks_exact(geometry.plane.max(1)).zip(affine) {
                    let scale = factor * weight;
                    y.extend(plane.iter().map(|&value| (value - mean).fused(scale, bias)));
                }
                means.push(mean);
                factors.push(factor);
            }
        },
    );
    Normalised { y, means, factors }
}

/// What [`backward`] computes.
pub(crate) struct Gradients<T> {
    /// `[channels]`.
    pub(crate) weight: Vec<T>,
    /// `[channels]`.
    pub(crate) bias: Vec<T>,
    /// In the shape of the input, where it is wanted.
    pub(crate) input: Option<Vec<T>>,
}

/// The gradients of [`forward`] from that of its result; `means` and `factors` are those that it gave for the same `x`.
pub(crate) fn backward<T: Element>(
    geometry: &Geometry,
    weight: &[T],
    [x, means, factors]: [&[T]; 3],
    gradient: &[T],
    want_input: bool,
) -> Gradients<T> {
    let Geometry { channels, groups, plane } = *geometry;
    let mut sums = vec![[0f64; 2]; channels];
    let mut input = want_input.then(|| Vec::with_capacity(x.len()));
    let of_group = geometry.group_channels();
    let elements = geometry.group().max(1);
    dispatch(
        #[inline(always)]
        || {
            for (index, (x, gradient)) in x.chunks_exact(elements).zip(gradient.chunks_exact(elements)).enumerate() {
                let (mean, factor) = (means[index], factors[index]);
                let channels = index % groups * of_group..(index % groups + 1) * of_group;
                let weight = &weight[channels.clone()];
                // The sums of the gradient, and of the gradient times the normalised input, weighted as the input sees them.
                let (mut plain, mut product) = (0.0, 0.0);
                let planes = x.chunks_exact(plane).zip(gradient.chunks_exact(plane));
                for ((x, gradient), (&weight, sums)) in planes.clone().zip(weight.iter().zip(&mut sums[channels])) {
                    let [of_gradient, of_product] = gradient_sums(x, gradient, mean);
                    let of_product = of_product * factor.to_f64();
                    sums[0] += of_product;
                    sums[1] += of_gradient;
                    plain += weight.to_f64() * of_gradient;
                    product += weight.to_f64() * of_product;
                }
                let Some(input) = &mut input else { continue };
                let over = factor.to_f64() / elements as f64;
                let (shift, slope) = (T::from_f64(-plain * over), T::from_f64(-product * over * factor.to_f64()));
                for ((x, gradient), &weight) in planes.zip(weight) {
                    let scale = factor * weight;
                    input.extend(x.iter().zip(gradient).map(|(&x, &g)| g.fused(scale, (x - mean).fused(slope, shift))));
                }
            }
        },
    );
    let column = |of: usize| sums.iter().map(|sums| T::from_f64(sums[of])).collect();
    Gradients { weight: column(0), bias: column(1), input }
}

/// The mean of a group, and one over its standard deviation.
#[inline(always)]
fn statistics<T: Element>(group: &[T]) -> (T, T) {
    let elements = group.len().max(1) as f64;
    let [total] = lanes(group, group, |value, _| [value]);
    let near = T::from_f64(total / elements);
    let [rest, squares] = lanes(group, group, |value, _| {
        let deviation = value - near;
        [deviation, deviation * deviation]
    });
    // `near` was rounded: `rest` is what it lacks, and the squares hold as much too much.
    let variance = (squares - rest * rest / elements).max(0.0) / elements;
    (T::from_f64(near.to_f64() + rest / elements), T::from_f64(1.0 / (variance + EPSILON).sqrt()))
}

/// The sums of a channel's gradient, and of its product with the input's deviation from `mean`.
#[inline(always)]
fn gradient_sums<T: Element>(x: &[T], gradient: &[T], mean: T) -> [f64; 2] {
    lanes(x, gradient, |x, gradient| [gradient, gradient * (x - mean)])
}

/// Sums of `terms` over pairs of elements, in [`LANES`] lanes that are folded in halves and at last in f64.
#[inline(always)]
fn lanes<T: Element, const N: usize>(a: &[T], b: &[T], terms: impl Fn(T, T) -> [T; N]) -> [f64; N] {
    let mut sums = [[T::zero(); LANES]; N];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            let terms = terms(a[lane], b[lane]);
            for (sums, term) in sums.iter_mut().zip(terms) {
                sums[lane] += term;
            }
        }
    }
    for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        for (sums, term) in sums.iter_mut().zip(terms(a, b)) {
            sums[lane] += term;
        }
    }
    let mut folded = [0.0; N];
    for (folded, lanes) in folded.iter_mut().zip(&mut sums) {
        for half in [16, 8, 4] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        for lane in &lanes[..4] {
            *folded += lane.to_f64();
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_mean_zero_and_variance_one() {
        let geometry = Geometry { channels: 4, groups: 2, plane: 35 };
        let x: Vec<f64> = (0..2 * 140).map(|i| ((i * 37 + 11) % 101) as f64).collect();
        let (weight, bias) = ([1.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 3.0]);
        let result = forward(&geometry, &weight, &bias, &x);
        for (group, values) in result.y.chunks_exact(70).enumerate() {
            let values: Vec<f64> = match group % 2 {
                0 => values.to_vec(),
                _ => values[..35].iter().map(|value| value / 2.0).chain(values[35..].iter().map(|value| value - 3.0)).collect(),
            };
            let mean = values.iter().sum::<f64>() / 70.0;
            let square = values.iter().map(|value| value * value).sum::<f64>() / 70.0;
            assert!(mean.abs() < 1e-12 && (square - 1.0).abs() < 1e-6, "{mean} {square}");
        }
    }

    #[test]
    fn a_large_mean_costs_no_digits() {
        let geometry = Geometry { channels: 1, groups: 1, plane: 10_000 };
        // Multiples of 1/64 below 2¹⁷ are exact in f32, so both inputs have the same deviations.
        let small: Vec<f32> = (0..10_000).map(|i| ((i * 37) % 101) as f32 / 64.0).collect();
        let far: Vec<f32> = small.iter().map(|value| value + 100_000.0).collect();
        let (near, far) = (forward(&geometry, &[1.0], &[0.0], &small), forward(&geometry, &[1.0], &[0.0], &far));
        assert!((near.factors[0] / far.factors[0] - 1.0).abs() < 1e-5, "{:?} {:?}", near.factors, far.factors);
        // The mean itself can be no better than the half of a unit in its last place, 1/256.
        let worst = near.y.iter().zip(&far.y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < near.factors[0] / 200.0, "{worst}");
    }

    #[test]
    fn a_constant_group_is_its_bias_and_what_is_not_a_number_stays() {
        let geometry = Geometry { channels: 2, groups: 2, plane: 3 };
        let result = forward(&geometry, &[5.0, 1.0], &[0.5, 0.0], &[7f32, 7., 7., 1., f32::NAN, 2.]);
        assert_eq!(result.y[..3], [0.5; 3]);
        assert!(result.y[3..].iter().all(|value| value.is_nan()));
    }
}
