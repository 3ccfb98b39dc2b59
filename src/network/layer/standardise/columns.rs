//! Standardising where a row has more than plain numbers: values that may be missing, and categories.

use candle_core::{Result, Tensor};

use super::{factor, no_gradient, standardised, take_in};
use crate::network::columns::Column;
use crate::network::element::Element;
use crate::network::kernel::dispatch;
use crate::network::layer::{Cost, Gradient, Initial, Layer, Parameter, Stash, bytes, exactly, only, rows, with_rows};
use crate::network::tensor::{by_type, read, tensor};

/// [`Standardise`](super::Standardise) of the numbers among a row's columns. A missing value takes no part in the statistics and
/// comes out as 0, which is the mean; whether it is missing, and buckets, pass as they are. Each number has a count of its own:
/// `count`, `mean` and `m2` are f64, one for each number.
#[derive(Clone, Debug)]
pub struct StandardiseColumns {
    shape: [usize; 1],
    numbers: Vec<Number>,
}

/// Where a number is in a row.
#[derive(Clone, Copy, Debug)]
struct Number {
    at: usize,
    /// The element behind it says whether it is missing.
    optional: bool,
}

impl Number {
    #[inline(always)]
    fn is_missing<T: Element>(self, row: &[T]) -> bool {
        self.optional && row[self.at + 1] > T::zero()
    }
}

impl StandardiseColumns {
    /// For rows of these columns; none where no column is a number.
    pub fn new(columns: &[Column]) -> Option<Self> {
        let numbers: Vec<Number> = Column::places(columns)
            .filter(|(_, column)| !column.is_category())
            .map(|(at, column)| Number { at, optional: column == Column::Optional })
            .collect();
        (!numbers.is_empty()).then(|| Self { shape: [Column::total_width(columns)], numbers })
    }

    fn apply<T: Element>(&self, statistics: &[Tensor], input: &Tensor) -> Result<Tensor> {
        rows(input, &self.shape)?;
        let [count, mean, m2] = exactly(statistics, "standardise")?;
        let (count, mean, m2, x) = (read::<f64>(count)?, read::<f64>(mean)?, read::<f64>(m2)?, read::<T>(input)?);
        let factors: Vec<f64> = m2.iter().zip(count.iter()).map(|(&m2, &count)| factor(m2, count)).collect();
        let mut result = x.to_vec();
        dispatch(
            #[inline(always)]
            || {
                for row in result.chunks_exact_mut(self.shape[0]) {
                    for (number, (&mean, &factor)) in self.numbers.iter().zip(mean.iter().zip(&factors)) {
                        let value = standardised(row[number.at], mean, factor);
                        row[number.at] = if number.is_missing(row) { T::zero() } else { value };
                    }
                }
            },
        );
        tensor(result, input.dims())
    }

    /// Takes the rows of `x` into the statistics, first to last.
    fn welford<T: Element>(&self, x: &[T], count: &mut [f64], mean: &mut [f64], m2: &mut [f64]) {
        dispatch(
            #[inline(always)]
            || {
                for row in x.chunks_exact(self.shape[0]) {
                    let statistics = count.iter_mut().zip(mean.iter_mut().zip(m2.iter_mut()));
                    for (number, (count, (mean, m2))) in self.numbers.iter().zip(statistics) {
                        if number.is_missing(row) {
                            continue;
                        }
                        *count += 1.0;
                        take_in(row[number.at].to_f64(), *count, mean, m2);
                    }
                }
            },
        );
    }
}

impl Layer for StandardiseColumns {
    fn name(&self) -> &'static str {
        "standardise"
    }

    fn statistics(&self) -> Vec<Parameter> {
        ["count", "mean", "m2"].map(|name| Parameter::new(name, &[self.numbers.len()], Initial::Zeros)).to_vec()
    }

    fn output_shape(&self) -> &[usize] {
        &self.shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let numbers = bytes(&[self.numbers.len()]);
        Cost {
            weights: numbers.saturating_mul(6),
            output: bytes(&with_rows(rows, &self.shape)),
            workspace_forward: numbers.saturating_mul(2),
            flops_forward: numbers.saturating_mul(rows as u64),
            ..Cost::default()
        }
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
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
            self.welford::<T>(&read(input)?, &mut count, &mut mean, &mut m2);
            Ok(())
        })?;
        [count, mean, m2].into_iter().map(|values| tensor(values, &[self.numbers.len()])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Standardise;
    use super::*;

    fn fresh(numbers: usize) -> Vec<Tensor> {
        (0..3).map(|_| tensor(vec![0f64; numbers], &[numbers]).unwrap()).collect()
    }

    #[test]
    fn missing_values_are_the_mean_and_take_no_part_in_it() {
        let columns = [Column::Category { buckets: 9 }, Column::Optional, Column::Number];
        let layer = StandardiseColumns::new(&columns).unwrap();
        let seen = vec![7f32, 1., 0., 5., 3., 0., 1., 6., 2., 3., 0., 7., 8., 0., 1., 9.];
        let seen = tensor(seen, &[4, 4]).unwrap();
        let statistics = layer.observe(&fresh(2), &seen).unwrap();
        assert_eq!(*read::<f64>(&statistics[0]).unwrap(), [2.0, 4.0]);
        assert_eq!(*read::<f64>(&statistics[1]).unwrap(), [2.0, 6.75]);
        let output = layer.predict(&statistics, vec![seen]).unwrap().remove(0);
        let output = read::<f32>(&output).unwrap();
        let column = |at: usize| -> Vec<f32> { output.iter().skip(at).step_by(4).copied().collect() };
        assert_eq!(column(0), [7.0, 3.0, 2.0, 8.0], "buckets pass");
        assert_eq!(column(1), [-1.0, 0.0, 1.0, 0.0]);
        assert_eq!(column(2), [0.0, 1.0, 0.0, 1.0], "and so does what is missing");
        assert!(column(3).iter().sum::<f32>().abs() < 1e-6);
    }

    #[test]
    fn a_column_of_missing_values_alone_is_zero_and_stays_finite() {
        let layer = StandardiseColumns::new(&[Column::Optional]).unwrap();
        let seen = tensor(vec![0f32, 1., 0., 1.], &[2, 2]).unwrap();
        let statistics = layer.observe(&fresh(1), &seen).unwrap();
        let query = tensor(vec![1e38f32, 0., 0., 1.], &[2, 2]).unwrap();
        let output = layer.predict(&statistics, vec![query]).unwrap().remove(0);
        assert_eq!(*read::<f32>(&output).unwrap(), [0.0, 0.0, 0.0, 1.0]);
        assert!(StandardiseColumns::new(&[Column::Category { buckets: 2 }]).is_none());
    }

    #[test]
    fn numbers_that_are_all_there_give_the_bits_of_the_plain_layer() {
        let data: Vec<f32> = (0..40).map(|i| 1e3 + ((i * 7) % 13) as f32 * 0.3).collect();
        let (plain, columns) = (Standardise::new(&[2]), StandardiseColumns::new(&[Column::Optional; 2]).unwrap());
        let with_flags: Vec<f32> = data.iter().flat_map(|&value| [value, 0.0]).collect();
        let (input, with_flags) = (tensor(data, &[20, 2]).unwrap(), tensor(with_flags, &[20, 4]).unwrap());
        let mut start = fresh(2);
        start[0] = tensor(vec![0f64], &[1]).unwrap();
        let expected = plain.observe(&start, &input).unwrap();
        let got = columns.observe(&fresh(2), &with_flags).unwrap();
        assert_eq!(*read::<f64>(&expected[2]).unwrap(), *read::<f64>(&got[2]).unwrap());
        let expected = plain.predict(&expected, vec![input]).unwrap().remove(0);
        let got = columns.predict(&got, vec![with_flags]).unwrap().remove(0);
        let got: Vec<f32> = read::<f32>(&got).unwrap().iter().step_by(2).copied().collect();
        assert_eq!(*read::<f32>(&expected).unwrap(), got);
    }
}
