//! What telling costs beside a forward that runs anyway, measured in turn in one run.

use std::hint::black_box;
use std::time::Instant;

use candle_core::Tensor;
use serde::Serialize;

use super::baselines::{MUTANTS, disagreement, roughness};
use super::detectors::{HIGH_FREQUENCIES, MUTATION, NAMES, Panel, Reader};
use super::pictures::Source;
use super::victim::Victim;
use crate::cli::Failure;
use crate::cli::bench::median;
use crate::encoder::picture;
use crate::network::random;

/// Milliseconds for a picture on one thread, the median of the rounds, and what follows from them.
#[derive(Debug, Serialize)]
pub(super) struct Overhead {
    pub(super) rounds: usize,
    /// A forward of one picture without states.
    pub(super) forward_ms: f64,
    /// By detector.
    pub(super) added: Vec<Added>,
    /// The default detector's share of a forward, at most: by the upper end.
    pub(super) share_at_most: f64,
    /// How many times as much the mutants add, at least: by the upper end.
    pub(super) mutation_ratio_at_least: f64,
}

/// What a detector adds to a forward: where it reads states, how much longer one is that takes them on the way and scores them, by pairs of
/// runs.
#[derive(Debug, Serialize)]
pub(super) struct Added {
    pub(super) detector: &'static str,
    pub(super) ms: f64,
    /// The upper end of the 95 % interval of that median.
    pub(super) ms_at_most: f64,
}

/// Plain, watched and mutated forwards of pictures, in turn.
pub(super) fn measure(victim: &dyn Victim, panel: &Panel, default: usize, sources: &[Source]) -> Result<Overhead, Failure> {
    let readers = panel.readers();
    let (mut plain, mut added) = (Vec::new(), NAMES.map(|_| Vec::new()));
    for (round, source) in sources.iter().enumerate() {
        let pixels = picture::tensor(std::slice::from_ref(&source.picture))?;
        for (reader, added) in readers.iter().zip(&mut added) {
            // Who comes first finds colder caches, so they take turns.
            let (forward, watched) = if round % 2 == 0 {
                (watch(victim, &pixels, None)?, watch(victim, &pixels, Some(reader))?)
            } else {
                let watched = watch(victim, &pixels, Some(reader))?;
                (watch(victim, &pixels, None)?, watched)
            };
            plain.push(forward);
            added.push(watched - forward);
        }
        let began = Instant::now();
        black_box(roughness(&source.picture));
        // Both come of one look at the pixels.
        HIGH_FREQUENCIES.into_iter().for_each(|detector| added[detector].push(milliseconds(began)));
        if round % MUTANTS == 0 {
            let began = Instant::now();
            black_box(disagreement(victim, &source.picture, &mut random::stream(0, round as u64, "mutants"))?);
            added[MUTATION].push(milliseconds(began));
        }
    }
    let forward_ms = median(plain);
    let added = NAMES.into_iter().zip(added).map(|(detector, mut values)| {
        let ms_at_most = median_at_most(&mut values);
        Added { detector, ms: median(values), ms_at_most }
    });
    let added: Vec<Added> = added.collect();
    let at_most = added[default].ms_at_most;
    let (share_at_most, mutation_ratio_at_least) = (at_most / forward_ms, added[MUTATION].ms / at_most);
    Ok(Overhead { rounds: sources.len(), forward_ms, added, share_at_most, mutation_ratio_at_least })
}

/// How long a forward takes, with what a reader makes of it if there is one.
fn watch(victim: &dyn Victim, pixels: &Tensor, reader: Option<&Reader<'_>>) -> Result<f64, Failure> {
    let began = Instant::now();
    let encoded = victim.encode(pixels, reader.map_or(&[], |reader| reader.blocks))?;
    if let Some(reader) = reader {
        let mut state = Vec::new();
        for block in &encoded.states {
            state.extend(block.flatten_all()?.to_vec1::<f32>()?);
        }
        black_box((reader.score)(&state));
    }
    black_box(encoded);
    Ok(milliseconds(began))
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// The upper end of a median's 95 % interval: an order statistic, by the normal approximation to the binomial.
fn median_at_most(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let rounds = values.len() as f64;
    let place = (rounds / 2.0 + 0.98 * rounds.sqrt()).ceil() as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
