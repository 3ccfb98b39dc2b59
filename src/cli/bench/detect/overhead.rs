//! What telling costs beside a forward that runs anyway, measured in turn in one run.

use std::hint::black_box;
use std::time::Instant;

use serde::Serialize;

use super::baselines::{MUTANTS, disagreement};
use super::detectors::Linear;
use super::pictures::Source;
use super::victim::Victim;
use crate::cli::Failure;
use crate::cli::bench::median;
use crate::encoder::picture;
use crate::network::random;

/// Milliseconds on one thread, the median of the rounds, and what follows from them.
#[derive(Debug, Serialize)]
pub(super) struct Overhead {
    pub(super) rounds: usize,
    /// A forward of one picture without states.
    pub(super) forward_ms: f64,
    /// How much longer a forward is that takes the detector's states on the way and scores them, by pairs of runs.
    pub(super) detector_ms: f64,
    /// The upper end of the 95 % interval of that median.
    pub(super) detector_ms_at_most: f64,
    /// How much longer it is with eight mutants.
    pub(super) mutation_ms: f64,
    /// The detector's share of a forward, at most: by the upper end.
    pub(super) share_at_most: f64,
    /// How many times as much the mutants add, at least: by the upper end.
    pub(super) mutation_ratio_at_least: f64,
}

/// Plain, watched and mutated forwards of pictures, in turn.
pub(super) fn measure(victim: &dyn Victim, linear: &Linear, sources: &[Source]) -> Result<Overhead, Failure> {
    let (mut plain, mut watched, mut mutated) = (Vec::new(), Vec::new(), Vec::new());
    for (round, source) in sources.iter().enumerate() {
        let pixels = picture::tensor(std::slice::from_ref(&source.picture))?;
        let forward = || -> Result<f64, Failure> {
            let began = Instant::now();
            black_box(victim.encode(&pixels, &[])?);
            Ok(began.elapsed().as_secs_f64() * 1e3)
        };
        let watch = || -> Result<f64, Failure> {
            let began = Instant::now();
            let encoded = victim.encode(&pixels, &linear.blocks)?;
            let mut state = Vec::with_capacity(linear.probe.weights.len());
            for block in &encoded.states {
                state.extend(block.flatten_all()?.to_vec1::<f32>()?);
            }
            black_box(linear.probe.score(&state));
            Ok(began.elapsed().as_secs_f64() * 1e3)
        };
        // Who comes first finds colder caches, so they take turns.
        let (a, b) = if round % 2 == 0 {
            (forward()?, watch()?)
        } else {
            let b = watch()?;
            (forward()?, b)
        };
        plain.push(a);
        watched.push(b - a);
        if round % MUTANTS == 0 {
            let began = Instant::now();
            black_box(disagreement(victim, &source.picture, &mut random::stream(0, round as u64, "mutants"))?);
            mutated.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (rounds, forward_ms) = (plain.len(), median(plain));
    let (detector_ms_at_most, detector_ms, mutation_ms) = (median_at_most(&mut watched), median(watched), median(mutated));
    Ok(Overhead {
        rounds,
        forward_ms,
        detector_ms,
        detector_ms_at_most,
        mutation_ms,
        share_at_most: detector_ms_at_most / forward_ms,
        mutation_ratio_at_least: mutation_ms / detector_ms_at_most,
    })
}

/// The upper end of a median's 95 % interval: an order statistic, by the normal approximation to the binomial.
fn median_at_most(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let rounds = values.len() as f64;
    let place = (rounds / 2.0 + 0.98 * rounds.sqrt()).ceil() as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
