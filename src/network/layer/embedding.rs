//! Categories as numbers that are learned: each bucket of each categorical column has a few of its own.

use candle_core::{Result, Tensor};

use super::{Cost, Gradient, Initial, Layer, Parameter, Stash, bytes, exactly, only, rows, times};
use crate::limits::{EMBEDDING_DIMENSION_MAX, PARAMETERS_MAX};
use crate::network::columns::Column;
use crate::network::element::Element;
use crate::network::kernel::dispatch;
use crate::network::tensor::{by_type, read, tensor};

/// Rows of columns to rows of numbers: those of the numeric columns as they are, and behind them `dimension` for each categorical
/// column, looked up in `weight: [buckets of all columns, dimension]`, in which the columns' buckets lie one after the other.
///
/// It is drawn in ±1/√dimension, so that what a category brings in is small beside a standardised number.
#[derive(Clone, Debug)]
pub struct Embedding {
    input_shape: [usize; 1],
    output_shape: [usize; 1],
    /// Where a row has numbers that pass.
    numbers: Vec<usize>,
    categories: Vec<Category>,
    dimension: usize,
    /// Of all categorical columns.
    buckets: usize,
}

/// One categorical column.
#[derive(Clone, Copy, Debug)]
struct Category {
    /// Where a row has its bucket.
    at: usize,
    /// The table's row of its bucket 0.
    first: usize,
    buckets: usize,
}

impl Category {
    /// The table's row of a bucket. A number that is no bucket, as a trial's made-up rows have, is taken for the nearest one, so
    /// that no row can make a look-up go astray.
    #[inline(always)]
    fn row<T: Element>(self, bucket: T) -> usize {
        self.first + ((bucket.to_f64() + 0.5) as usize).min(self.buckets - 1)
    }
}

impl Embedding {
    /// For rows of these columns; none where no column is categorical, a column has no bucket, `dimension` is not from 1 to
    /// [`EMBEDDING_DIMENSION_MAX`], or the table would be beyond what any network may have.
    pub fn new(columns: &[Column], dimension: usize) -> Option<Self> {
        let (mut numbers, mut categories, mut buckets_before) = (Vec::new(), Vec::new(), 0usize);
        for (at, column) in Column::places(columns) {
            match column {
                Column::Number | Column::Optional => numbers.extend(at..at + column.width()),
                Column::Category { buckets: 0 } => return None,
                Column::Category { buckets } => {
                    categories.push(Category { at, first: buckets_before, buckets });
                    buckets_before = buckets_before.checked_add(buckets).filter(|&buckets| buckets <= PARAMETERS_MAX)?;
                }
            }
        }
        if categories.is_empty() || !(1..=EMBEDDING_DIMENSION_MAX).contains(&dimension) {
            return None;
        }
        let outputs = numbers.len() + categories.len() * dimension;
        let (input_shape, output_shape) = ([Column::total_width(columns)], [outputs]);
        Some(Self { input_shape, output_shape, numbers, categories, dimension, buckets: buckets_before })
    }

    fn apply<T: Element>(&self, weights: &[Tensor], input: &Tensor) -> Result<Tensor> {
        let [table] = exactly(weights, "embedding")?;
        let rows = rows(input, &self.input_shape)?;
        let (table, x) = (read::<T>(table)?, read::<T>(input)?);
        let mut y = Vec::with_capacity(rows * self.output_shape[0]);
        dispatch(
            #[inline(always)]
            || {
                for row in x.chunks_exact(self.input_shape[0]) {
                    y.extend(self.numbers.iter().map(|&at| row[at]));
                    for category in &self.categories {
                        let start = category.row(row[category.at]) * self.dimension;
                        y.extend_from_slice(&table[start..start + self.dimension]);
                    }
                }
            },
        );
        tensor(y, &[rows, self.output_shape[0]])
    }

    /// The gradient of the table: rows are added first to last, so that its bits do not depend on anything else.
    fn table_gradient<T: Element>(&self, input: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let mut sums = vec![T::zero(); self.buckets * self.dimension];
        let (x, g) = (read::<T>(input)?, read::<T>(gradient)?);
        dispatch(
            #[inline(always)]
            || {
                for (row, g) in x.chunks_exact(self.input_shape[0]).zip(g.chunks_exact(self.output_shape[0])) {
                    let of_categories = g[self.numbers.len()..].chunks_exact(self.dimension);
                    for (category, g) in self.categories.iter().zip(of_categories) {
                        let start = category.row(row[category.at]) * self.dimension;
                        for (sum, &summand) in sums[start..start + self.dimension].iter_mut().zip(g) {
                            *sum += summand;
                        }
                    }
                }
            },
        );
        tensor(sums, &[self.buckets, self.dimension])
    }

    /// The gradient of the numbers that pass; a bucket has none.
    fn input_gradient<T: Element>(&self, rows: usize, gradient: &Tensor) -> Result<Tensor> {
        let mut below = vec![T::zero(); rows * self.input_shape[0]];
        let g = read::<T>(gradient)?;
        for (row, g) in below.chunks_exact_mut(self.input_shape[0]).zip(g.chunks_exact(self.output_shape[0])) {
            for (&at, &value) in self.numbers.iter().zip(g) {
                row[at] = value;
            }
        }
        tensor(below, &[rows, self.input_shape[0]])
    }
}

impl Layer for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("weight", &[self.buckets, self.dimension], Initial::Uniform { fan_in: self.dimension })]
    }

    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn cost(&self, rows: usize) -> Cost {
        let table = bytes(&[self.buckets, self.dimension]);
        let looked_up = times(&[rows, self.categories.len(), self.dimension]);
        Cost {
            weights: table,
            output: bytes(&[rows, self.output_shape[0]]),
            keeps_input: true,
            input_gradient: bytes(&[rows, self.input_shape[0]]),
            weight_gradient: table,
            weight_gradient_dense: table,
            flops_forward: looked_up,
            flops_backward: looked_up,
            ..Cost::default()
        }
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let input = only(inputs)?;
        let output = by_type!(input, T => self.apply::<T>(weights, &input))?;
        Ok((vec![output], vec![input].into()))
    }

    fn backward(
        &self,
        _weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        let (input, gradient) = (only(stash.tensors)?, only(gradients)?);
        let rows = rows(&gradient, &self.output_shape)?;
        by_type!(gradient, T => {
            let table = self.table_gradient::<T>(&input, &gradient)?;
            let mut input_gradients = Vec::new();
            if want_input_gradients {
                input_gradients.push(self.input_gradient::<T>(rows, &gradient)?);
            }
            Ok((input_gradients, vec![Gradient::Dense(table)]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::Category { buckets: 3 }, Column::Number, Column::Category { buckets: 2 }, Column::Optional];

    #[test]
    fn numbers_come_first_and_each_column_has_its_part_of_the_table() {
        let layer = Embedding::new(&COLUMNS, 2).unwrap();
        assert_eq!((layer.output_shape(), layer.parameters()[0].shape.as_slice()), (&[7][..], &[5, 2][..]));
        let table = tensor((0..10).map(|value| value as f32).collect(), &[5, 2]).unwrap();
        let input = tensor(vec![2f32, 0.5, 0., -1., 0., 0., 9., 1., 0., 1.], &[2, 5]).unwrap();
        let output = layer.predict(&[table], vec![input]).unwrap().remove(0);
        let expected = [0.5f32, -1., 0., 4., 5., 6., 7., 9., 0., 1., 0., 1., 8., 9.];
        assert_eq!(*read::<f32>(&output).unwrap(), expected);
    }

    #[test]
    fn what_is_no_bucket_is_taken_for_the_nearest() {
        let category = Category { at: 0, first: 10, buckets: 4 };
        let given = [-1.0f32, f32::NEG_INFINITY, f32::NAN, 0.4, 0.6, 2.9, 4.0, 1e38];
        assert_eq!(given.map(|bucket| category.row(bucket)), [10, 10, 10, 10, 11, 13, 13, 13]);
        assert_eq!(Category { at: 0, first: 0, buckets: 65_537 }.row(65_536f32), 65_536);
    }

    #[test]
    fn hostile_columns_are_refused() {
        assert!(Embedding::new(&[Column::Number], 8).is_none());
        assert!(Embedding::new(&[Column::Category { buckets: 0 }], 8).is_none());
        assert!(Embedding::new(&[Column::Category { buckets: usize::MAX }; 2], 8).is_none());
        for dimension in [0, EMBEDDING_DIMENSION_MAX + 1, usize::MAX] {
            assert!(Embedding::new(&COLUMNS, dimension).is_none());
        }
        assert!(Embedding::new(&COLUMNS, EMBEDDING_DIMENSION_MAX).is_some());
    }
}
