//! Numeric features to mean 0 and variance 1, by the statistics of all rows seen so far.
//!
//! Welford's recurrence (1962), row by row in f64, so that the statistics do not depend on how rows were cut into steps.

mod columns;

use candle_core::{Result, Tensor};

pub use columns::StandardiseColumns;

use super::{Cost, Gradient, Initial, Layer, Parameter, Stash, bytes, exactly, rows, with_rows};
use crate::network::element::Element;
use crate::network::kernel::dispatch;
use crate::network::tensor::{by_type, read, tensor};

/// Keeps the quotient of a feature that hardly varies in range; far below the variance of any feature worth learning from.
const EPSILON: f64 = 1e-12;
/// A query may lie any distance from what was learned; beyond this its feature is as good as this, and stays finite.
const LIMIT: f64 = 1e6;

/// `(x − mean) / √(variance + ε)` of each feature; 0 for a feature that has not varied yet. Only the first layer of a network,
/// because it passes no gradient on. Its statistics `count: [1]`, `mean` and `m2` (the sum of squared deviations) are f64.
#[derive(Clone, Debug)]
pub struct Standardise {
    shape: Vec<usize>,
}

impl Standardise {
    /// For rows of `shape`; each element is a feature of its own.
    pub fn new(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec() }
    }

    fn apply<T: Element>(&self, statistics: &[Tensor], input: &Tensor) -> Result<Tensor> {
        rows(input, &self.shape)?;
        let [count, mean, m2] = exactly(statistics, "standardise")?;
        let (count, mean, m2, x) = (read::<f64>(count)?, read::<f64>(mean)?, read::<f64>(m2)?, read::<T>(input)?);
        let count = count.first().copied().unwrap_or(0.0);
        let factors: Vec<f64> = m2.iter().map(|&m2| factor(m2, count)).collect();
        let mut result = Vec::with_capacity(x.len());
        dispatch(
            #[inline(always)]
            || {
                for row in x.chunks_exact(mean.len().max(1)) {
                    result.extend(
                        row.iter()
                            .zip(mean.iter().zip(&factors))
                            .map(|(&value, (&mean, &factor))| standardised(value, mean, factor)),
                    );
                }
            },
        );
        tensor(result, input.dims())
    }
}

impl Layer for Standardise {
    fn name(&self) -> &'static str {
        "standardise"
    }

    fn statistics(&self) -> Vec<Parameter> {
        let statistic = |name, shape: &[usize]| Parameter::new(name, shape, Initial::Zeros);
        vec![statistic("count", &[1]), statistic("mean", &self.shape), statistic("m2", &self.shape)]
    }

    fn output_shape(&self) -> &[usize] {
        &self.shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let row = bytes(&self.shape);
        Cost {
            weights: row.saturating_mul(4).saturating_add(8),
            output: bytes(&with_rows(rows, &self.shape)),
            workspace_forward: row.saturating_mul(2),
            flops_forward: row.saturating_mul(rows as u64),
            ..Cost::default()
        }
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = super::only(inputs)?;
        let output = by_type!(input, T => self.apply::<T>(weights, &input))?;
        Ok((vec![output], Stash::default()))
    }

    fn backward(
        &self,
        _weights: &[Tensor],
        _stash: Stash,
        _gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        no_gradient(want_input_gradients)
    }

    fn observe(&self, statistics: &[Tensor], input: &Tensor) -> Result<Vec<Tensor>> {
        rows(input, &self.shape)?;
        let [count, mean, m2] = exactly(statistics, "standardise")?;
        let (mut count, mut mean, mut m2) =
            (read::<f64>(count)?.to_vec(), read::<f64>(mean)?.to_vec(), read::<f64>(m2)?.to_vec());
        by_type!(input, T => {
            welford::<T>(&read(input)?, &mut count[0], &mut mean, &mut m2);
            Ok(())
        })?;
        Ok(vec![tensor(count, &[1])?, tensor(mean, &self.shape)?, tensor(m2, &self.shape)?])
    }
}

/// What the distance of a feature from its mean is multiplied by, after so many values.
pub(crate) fn factor(m2: f64, count: f64) -> f64 {
    if m2 > 0.0 { 1.0 / (m2 / count.max(1.0) + EPSILON).sqrt() } else { 0.0 }
}

/// One feature, standardised.
#[inline(always)]
fn standardised<T: Element>(value: T, mean: f64, factor: f64) -> T {
    T::from_f64(((value.to_f64() - mean) * factor).clamp(-LIMIT, LIMIT))
}

/// Welford's recurrence for the value that makes `count`.
#[inline(always)]
fn take_in(value: f64, count: f64, mean: &mut f64, m2: &mut f64) {
    let before = value - *mean;
    *mean += before / count;
    *m2 += before * (value - *mean);
}

/// A standardising layer is the first, and learns nothing.
fn no_gradient(wanted: bool) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
    if wanted {
        candle_core::bail!("a standardising layer passes no gradient on");
    }
    Ok((Vec::new(), Vec::new()))
}

/// Takes the rows of `x` into count, means and sums of squared deviations, first to last.
fn welford<T: Element>(x: &[T], count: &mut f64, mean: &mut [f64], m2: &mut [f64]) {
    dispatch(
        #[inline(always)]
        || {
            for row in x.chunks_exact(mean.len().max(1)) {
                *count += 1.0;
                for (value, (mean, m2)) in row.iter().zip(mean.iter_mut().zip(m2.iter_mut())) {
                    take_in(value.to_f64(), *count, mean, m2);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(features: usize) -> Vec<Tensor> {
        vec![
            tensor(vec![0f64], &[1]).unwrap(),
            tensor(vec![0f64; features], &[features]).unwrap(),
            tensor(vec![0f64; features], &[features]).unwrap(),
        ]
    }

    #[test]
    fn statistics_do_not_depend_on_how_rows_come() {
        let layer = Standardise::new(&[2]);
        let data: Vec<f32> = (0..40).map(|i| 1e6 + ((i * 7) % 13) as f32).collect();
        let all = tensor(data.clone(), &[20, 2]).unwrap();
        let at_once = layer.observe(&fresh(2), &all).unwrap();
        let mut one_by_one = fresh(2);
        for row in 0..20 {
            let row = tensor(data[row * 2..row * 2 + 2].to_vec(), &[1, 2]).unwrap();
            one_by_one = layer.observe(&one_by_one, &row).unwrap();
        }
        for (a, b) in at_once.iter().zip(&one_by_one) {
            assert_eq!(*read::<f64>(a).unwrap(), *read::<f64>(b).unwrap());
        }
        let output = layer.predict(&at_once, vec![all]).unwrap().remove(0);
        let output = read::<f32>(&output).unwrap();
        let square: f32 = output.iter().step_by(2).map(|value| value * value).sum();
        assert!((square / 20.0 - 1.0).abs() < 1e-5, "{square}");
    }

    #[test]
    fn a_constant_feature_is_zero_and_a_far_query_finite() {
        let layer = Standardise::new(&[2]);
        let seen = tensor(vec![3f32, 0., 3., 1e-30, 3., 0.], &[3, 2]).unwrap();
        let statistics = layer.observe(&fresh(2), &seen).unwrap();
        let query = tensor(vec![4f32, 1e38], &[1, 2]).unwrap();
        let output = layer.predict(&statistics, vec![query.clone()]).unwrap().remove(0);
        assert_eq!(*read::<f32>(&output).unwrap(), [0.0, 1e6]);
        let before_the_first = layer.predict(&fresh(2), vec![query]).unwrap().remove(0);
        assert_eq!(*read::<f32>(&before_the_first).unwrap(), [0.0, 0.0]);
    }
}
