//! A direction that was found in the states of another encoder, and carried over by what both make of the same benign rows.
//!
//! Only benign rows teach here: pairs of states, of which the newest are kept, and from which the map is fitted anew whenever there is a
//! quarter more of them than at the last fit, or as many as are kept. That follows from the rows alone, so a replay fits at the same places.

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::calibration::Kept;
use super::eye::Eye;
use super::map::{Map, PAIRS_MIN, Pairs};
use crate::fold::FoldError;
use crate::network::tensor::{read, tensor};

/// Pairs that are kept.
const PAIRS_MAX: usize = 1000;

/// What is carried, and from where.
#[derive(Clone)]
pub struct Origin {
    /// What the direction was found in.
    pub eye: Arc<dyn Eye>,
    /// The difference of the classes' means there.
    pub difference: Vec<f64>,
}

/// What the newest fit was worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worth {
    /// Pairs that were seen when the map was fitted; 0: there is none yet.
    pub pairs: u64,
    /// See [`Map`].
    pub held_out_r2: f64,
    /// See [`Map`].
    pub shuffled_r2: f64,
    /// See [`Map`].
    pub ridge: f64,
}

pub(super) const NAMES: [&str; 3] = ["sources", "targets", "carried"];

/// A direction on its way.
pub(super) struct Carried {
    pub(super) origin: Origin,
    sources: Kept,
    targets: Kept,
    /// The direction as it is here, of length 1; zeros before the first fit.
    direction: Tensor,
    pub(super) worth: Worth,
}

impl Carried {
    pub(super) fn new(origin: Origin, width: usize) -> Result<Carried, FoldError> {
        let (sources, targets) = (Kept::new(PAIRS_MAX, origin.eye.width())?, Kept::new(PAIRS_MAX, width)?);
        let direction = tensor(vec![0f32; width], &[width])?;
        Ok(Carried { origin, sources, targets, direction, worth: Worth::default() })
    }

    /// Bytes of the pairs.
    pub(super) fn bytes(source: usize, target: usize) -> u64 {
        Kept::bytes(PAIRS_MAX, source) + Kept::bytes(PAIRS_MAX, target)
    }

    /// Bytes while a map is fitted: pairs in 64 bits, with their centred copies and shuffled targets, and the sums of a regression.
    pub(super) fn fit_bytes(source: usize, target: usize) -> u64 {
        let (source, target) = (source as u64, target as u64);
        Self::bytes(source as usize, target as usize) * 7 + 8 * (4 * source * source + 3 * source * target)
    }

    pub(super) fn take_in<'a>(
        &mut self,
        sources: impl Iterator<Item = &'a [f32]>,
        targets: impl Iterator<Item = &'a [f32]>,
    ) -> Result<(), FoldError> {
        self.sources.push(sources)?;
        self.targets.push(targets)?;
        let (seen, before) = (self.sources.seen, self.worth.pairs);
        let pause = (before / 4).clamp(1, PAIRS_MAX as u64);
        if seen < PAIRS_MIN as u64 || seen < before + pause {
            return Ok(());
        }
        let rows = self.sources.len();
        let (sources, targets) = (self.sources.states()?, self.targets.states()?);
        if let Some(map) = Map::fit(Pairs { rows, sources: &sources, targets: &targets }) {
            let carried = map.carry(&self.origin.difference);
            let length = carried.iter().map(|value| value * value).sum::<f64>().sqrt();
            let unit = carried.iter().map(|value| if length > 0.0 { (value / length) as f32 } else { 0.0 });
            self.direction = tensor(unit.collect(), self.direction.dims())?;
            let Map { ridge, held_out_r2, shuffled_r2, .. } = map;
            self.worth = Worth { pairs: seen, held_out_r2, shuffled_r2, ridge };
        }
        Ok(())
    }

    pub(super) fn direction(&self) -> Result<Vec<f32>, FoldError> {
        Ok(read::<f32>(&self.direction)?.to_vec())
    }

    pub(super) fn tensors(&self) -> [&Tensor; 3] {
        [self.sources.tensor(), self.targets.tensor(), &self.direction]
    }

    pub(super) fn seen(&self) -> u64 {
        self.sources.seen
    }

    pub(super) fn restore(&mut self, seen: u64, worth: Worth, tensors: [Tensor; 3]) -> Result<(), String> {
        let [sources, targets, direction] = tensors;
        if direction.shape() != self.direction.shape() {
            return Err(format!("carried is {:?}, expected {:?}", direction.shape(), self.direction.shape()));
        }
        self.sources.restore(seen, sources)?;
        self.targets.restore(seen, targets)?;
        (self.direction, self.worth) = (direction, worth);
        Ok(())
    }
}
