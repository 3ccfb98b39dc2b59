//! An affine map from the hidden states of one encoder to those of another, fitted on benign inputs that both have seen, and what it makes of a
//! direction.
//!
//! `y ≈ W ᵀ(x − x̄) + ȳ`, ridge regression; the ridge is chosen on pairs that are held out, whose R² tells what the map is worth. Beside it stands
//! a control: the same with pairs that do not belong together, which must explain nothing.
//!
//! A direction is a difference of states, so only the linear part carries it over: `d ↦ Wᵀ d`. The authors' code sends it through a
//! centred projection, which subtracts the mean of states from it; adding one constant to every state would then turn the direction. Here it
//! does not (a test).

use nalgebra::{DMatrix, DVector};
use rand_chacha::rand_core::RngCore;

use crate::network::random;

/// Every so many pairs one is held out.
const HELD_OUT_EVERY: usize = 5;
/// Pairs that a map is fitted from at least.
pub const PAIRS_MIN: usize = 32;
/// Ridges that are tried, by the mean variance of the source's features.
const RIDGES: [f64; 4] = [0.01, 0.1, 1.0, 10.0];

/// The linear part of a map, with what it is worth.
#[derive(Clone, Debug)]
pub struct Map {
    /// `[source width, target width]`
    weights: DMatrix<f64>,
    /// The ridge that was chosen, by the mean variance of the source's features.
    pub ridge: f64,
    /// Of all that varies in held-out targets, how much the map explains: 1 all, 0 nothing; below, it is worse than their mean. The ridge was
    /// chosen by the same pairs, so it is a little too high.
    pub held_out_r2: f64,
    /// The same for a map of pairs that do not belong together.
    pub shuffled_r2: f64,
}

/// Pairs of states, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// How many.
    pub rows: usize,
    /// `rows × width` of the encoder that the direction is known in.
    pub sources: &'a [f32],
    /// `rows × width` of the encoder that it is carried to.
    pub targets: &'a [f32],
}

impl Map {
    /// The map that explains most of held-out targets; none for fewer than [`PAIRS_MIN`] pairs, or where nothing varies.
    pub fn fit(pairs: Pairs<'_>) -> Option<Map> {
        if pairs.rows < PAIRS_MIN {
            return None;
        }
        let matrix = |values: &[f32]| {
            let width = values.len() / pairs.rows;
            DMatrix::from_row_iterator(pairs.rows, width, values.iter().map(|&value| f64::from(value)))
        };
        let (sources, targets) = (matrix(pairs.sources), matrix(pairs.targets));
        let (ridge, held_out_r2) = choose(&sources, &targets)?;
        let (_, shuffled_r2) = choose(&sources, &shuffled(&targets))?;
        let all: Vec<usize> = (0..pairs.rows).collect();
        let weights = Fit::new(&sources, &targets, &all).solve(ridge)?;
        Some(Map { weights, ridge, held_out_r2, shuffled_r2 })
    }

    /// What a difference of source states is as a difference of target states.
    pub fn carry(&self, difference: &[f64]) -> Vec<f64> {
        self.weights.tr_mul(&DVector::from_column_slice(difference)).as_slice().to_vec()
    }
}

/// Targets in a drawn order, the same for as many.
fn shuffled(targets: &DMatrix<f64>) -> DMatrix<f64> {
    let mut generator = random::stream(0, 0, "shuffled pairs");
    let mut order: Vec<usize> = (0..targets.nrows()).collect();
    for place in (1..order.len()).rev() {
        order.swap(place, (generator.next_u64() % (place as u64 + 1)) as usize);
    }
    targets.select_rows(&order)
}

/// The ridge whose map explains most of the rows that it was not fitted on, and how much.
fn choose(sources: &DMatrix<f64>, targets: &DMatrix<f64>) -> Option<(f64, f64)> {
    let (held_out, fitted): (Vec<usize>, Vec<usize>) = (0..sources.nrows()).partition(|row| row.is_multiple_of(HELD_OUT_EVERY));
    let fit = Fit::new(sources, targets, &fitted);
    let worth = RIDGES.into_iter().filter_map(|ridge| Some((ridge, fit.r2(&fit.solve(ridge)?, sources, targets, &held_out)?)));
    worth.max_by(|(_, a), (_, b)| a.total_cmp(b))
}

/// The sums of a regression over some rows.
struct Fit {
    source_mean: DVector<f64>,
    target_mean: DVector<f64>,
    /// `(x − x̄)ᵀ(x − x̄)`
    square: DMatrix<f64>,
    /// `(x − x̄)ᵀ(y − ȳ)`
    product: DMatrix<f64>,
}

impl Fit {
    fn new(sources: &DMatrix<f64>, targets: &DMatrix<f64>, rows: &[usize]) -> Fit {
        let (mut x, mut y) = (sources.select_rows(rows), targets.select_rows(rows));
        let (source_mean, target_mean) = (x.row_mean().transpose(), y.row_mean().transpose());
        for mut row in x.row_iter_mut() {
            row -= source_mean.transpose();
        }
        for mut row in y.row_iter_mut() {
            row -= target_mean.transpose();
        }
        Fit { square: x.tr_mul(&x), product: x.tr_mul(&y), source_mean, target_mean }
    }

    fn solve(&self, ridge: f64) -> Option<DMatrix<f64>> {
        let width = self.square.nrows();
        let penalty = ridge * self.square.trace() / width as f64;
        let mut square = self.square.clone();
        for at in 0..width {
            square[(at, at)] += penalty;
        }
        Some(square.cholesky()?.solve(&self.product))
    }

    /// How much of what varies in the targets of `rows` is explained; none where nothing varies.
    fn r2(&self, weights: &DMatrix<f64>, sources: &DMatrix<f64>, targets: &DMatrix<f64>, rows: &[usize]) -> Option<f64> {
        let mean = targets.select_rows(rows).row_mean();
        let (mut missed, mut varied) = (0.0, 0.0);
        for &row in rows {
            let x = sources.row(row).transpose() - &self.source_mean;
            let predicted = weights.tr_mul(&x) + &self.target_mean;
            missed += (targets.row(row).transpose() - predicted).norm_squared();
            varied += (targets.row(row) - &mean).norm_squared();
        }
        (varied > 0.0).then(|| 1.0 - missed / varied)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOURCE: usize = 5;
    const TARGET: usize = 3;

    fn noise(count: usize, purpose: &str) -> Vec<f32> {
        let mut generator = random::stream(11, 0, purpose);
        (0..count).map(|_| random::uniform(&mut generator) * 2.0 - 1.0).collect()
    }

    /// Targets that are an affine image of their sources, with a little noise.
    fn planted(rows: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (sources, matrix, error) = (noise(rows * SOURCE, "x"), noise(SOURCE * TARGET, "w"), noise(rows * TARGET, "e"));
        let target = |row: usize, at: usize| {
            let x = &sources[row * SOURCE..(row + 1) * SOURCE];
            let linear: f32 = x.iter().enumerate().map(|(from, x)| x * matrix[from * TARGET + at]).sum();
            linear + 7.0 + 0.01 * error[row * TARGET + at]
        };
        let targets = (0..rows).flat_map(|row| (0..TARGET).map(move |at| (row, at))).map(|(row, at)| target(row, at)).collect();
        (sources, targets, matrix)
    }

    #[test]
    fn a_planted_map_is_found_and_what_does_not_belong_together_explains_nothing() {
        let (sources, targets, matrix) = planted(400);
        let map = Map::fit(Pairs { rows: 400, sources: &sources, targets: &targets }).unwrap();
        assert!(map.held_out_r2 > 0.99 && map.shuffled_r2 < 0.05, "{map:?}");
        let carried = map.carry(&[1.0, 0.0, -2.0, 0.0, 0.5]);
        for (at, carried) in carried.iter().enumerate() {
            let expected = f64::from(matrix[at] - 2.0 * matrix[2 * TARGET + at] + 0.5 * matrix[4 * TARGET + at]);
            assert!((carried - expected).abs() < 0.05, "{carried} and {expected}");
        }
        let strangers = noise(400 * TARGET, "strangers");
        let map = Map::fit(Pairs { rows: 400, sources: &sources, targets: &strangers }).unwrap();
        assert!(map.held_out_r2 < 0.05, "unrelated encoders: {map:?}");
        assert!(Map::fit(Pairs { rows: 31, sources: &sources[..31 * SOURCE], targets: &targets[..31 * TARGET] }).is_none());
        let same = vec![1.0; 40 * SOURCE];
        assert!(Map::fit(Pairs { rows: 40, sources: &same, targets: &same }).is_none(), "nothing varies");
    }

    proptest! {
        /// A constant that is added to all states of an encoder turns no direction: it is no part of a difference.
        #[test]
        fn constants_do_not_show_in_what_is_carried(
            by in prop::collection::vec(-20.0f32..20.0, SOURCE),
            beyond in prop::collection::vec(-20.0f32..20.0, TARGET),
            difference in prop::collection::vec(-3.0f64..3.0, SOURCE),
        ) {
            let (sources, targets, _) = planted(60);
            let moved = |values: &[f32], by: &[f32]| -> Vec<f32> {
                values.iter().enumerate().map(|(at, value)| value + by[at % by.len()]).collect()
            };
            let (moved_sources, moved_targets) = (moved(&sources, &by), moved(&targets, &beyond));
            let before = Map::fit(Pairs { rows: 60, sources: &sources, targets: &targets }).unwrap();
            let after = Map::fit(Pairs { rows: 60, sources: &moved_sources, targets: &moved_targets }).unwrap();
            for (before, after) in before.carry(&difference).iter().zip(after.carry(&difference)) {
                prop_assert!((before - after).abs() < 1e-3, "{before} and {after}");
            }
        }
    }
}
