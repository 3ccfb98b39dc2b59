//! Loops of gradient compensation: what a gradient would be at weights that have moved on.

use super::dispatch;
use crate::network::element::Element;

/// How far one displacement may change a gradient, as a part of it: beyond, the first order says nothing.
const CHANGE_MAX: f64 = 0.5;

fn clamp<T: Element>(value: T, least: T, most: T) -> T {
    if value < least {
        least
    } else if value > most {
        most
    } else {
        value
    }
}

/// `g := g · (1 + λ·g·(to − from))`, the change clamped.
pub(crate) fn first_order<T: Element>(gradient: &mut [T], from: &[T], to: &[T], lambda: T) {
    let (least, most) = (T::from_f64(-CHANGE_MAX), T::from_f64(CHANGE_MAX));
    dispatch(
        #[inline(always)]
        || {
            for (g, (&from, &to)) in gradient.iter_mut().zip(from.iter().zip(to)) {
                *g += *g * clamp(lambda * *g * (to - from), least, most);
            }
        },
    );
}

/// `g := g / (1 − λ·g·(to − from))`, what is taken from 1 clamped to [−1, 0.5]: at most twice the gradient, at least half of it.
pub(crate) fn exact<T: Element>(gradient: &mut [T], from: &[T], to: &[T], lambda: T) {
    let (least, most) = (T::from_f64(-1.0), T::from_f64(CHANGE_MAX));
    dispatch(
        #[inline(always)]
        || {
            for (g, (&from, &to)) in gradient.iter_mut().zip(from.iter().zip(to)) {
                let change = clamp(lambda * *g * (to - from), least, most);
                *g /= T::one() - change;
            }
        },
    );
}

/// `g := g / (1 + |to − from| · scale)`.
pub(crate) fn gap<T: Element>(gradient: &mut [T], from: &[T], to: &[T], scale: T) {
    dispatch(
        #[inline(always)]
        || {
            for (g, (&from, &to)) in gradient.iter_mut().zip(from.iter().zip(to)) {
                let moved = to - from;
                let moved = if moved < T::zero() { T::zero() - moved } else { moved };
                *g /= T::one() + moved * scale;
            }
        },
    );
}

/// `fisher := decay · fisher + (1 − decay) · g² · (to − from)`.
pub(crate) fn mean_fisher<T: Element>(fisher: &mut [T], gradient: &[T], from: &[T], to: &[T], decay: T) {
    let new = T::one() - decay;
    dispatch(
        #[inline(always)]
        || {
            for ((mean, &g), (&from, &to)) in fisher.iter_mut().zip(gradient).zip(from.iter().zip(to)) {
                *mean = decay * *mean + new * g * g * (to - from);
            }
        },
    );
}

/// `g := g + firmness · importance · (weight − centre)`.
pub(crate) fn pull<T: Element>(gradient: &mut [T], importance: &[T], weight: &[T], centre: &[T], firmness: T) {
    dispatch(
        #[inline(always)]
        || {
            for ((g, &importance), (&weight, &centre)) in gradient.iter_mut().zip(importance).zip(weight.iter().zip(centre)) {
                *g += firmness * importance * (weight - centre);
            }
        },
    );
}

/// Of an inner product, partial sums in f64: their order is fixed whatever the vectors' width.
const LANES: usize = 8;

/// `Σ f(i)` in a fixed number of lanes.
#[inline(always)]
fn sums<const N: usize>(count: usize, mut each: impl FnMut(usize) -> [f64; N]) -> [f64; N] {
    let mut lanes = [[0.0; N]; LANES];
    let mut add = |lane: usize, index: usize| {
        let values = each(index);
        for (sum, value) in lanes[lane].iter_mut().zip(values) {
            *sum += value;
        }
    };
    for chunk in 0..count / LANES {
        for lane in 0..LANES {
            add(lane, chunk * LANES + lane);
        }
    }
    for index in count / LANES * LANES..count {
        add(index % LANES, index);
    }
    lanes.iter().fold([0.0; N], |mut total, lane| {
        for (sum, value) in total.iter_mut().zip(lane) {
            *sum += value;
        }
        total
    })
}

/// `⟨fisher, gradient − mean⟩` and `⟨fisher, fisher⟩`.
pub(crate) fn products<T: Element>(fisher: &[T], mean: &[T], gradient: &[T]) -> (f64, f64) {
    let [of_change, of_itself] = dispatch(
        #[inline(always)]
        || {
            let (count, mean, gradient) = (fisher.len(), &mean[..fisher.len()], &gradient[..fisher.len()]);
            sums(count, |index| {
                let fisher = fisher[index].to_f64();
                [fisher * (gradient[index] - mean[index]).to_f64(), fisher * fisher]
            })
        },
    );
    (of_change, of_itself)
}

/// `Σ (to − from)²`.
pub(crate) fn squared_distance<T: Element>(from: &[T], to: &[T]) -> f64 {
    let [sum] = dispatch(
        #[inline(always)]
        || {
            let to = &to[..from.len()];
            sums(from.len(), |index| {
                let moved = (to[index] - from[index]).to_f64();
                [moved * moved]
            })
        },
    );
    sum
}
