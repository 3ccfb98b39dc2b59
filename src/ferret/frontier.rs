//! The frontier of a network: every plan that no other one beats in bytes and in what makes its adaptation rate, the period of steps and
//! the value of one. It is found once, so that a change of the budget, or of how fast rows come, is a look-up.
//!
//! The partitions are the paper's (section 4.3): for each bound on a stage's time that some run of layers has, layers are grouped
//! from the left as long as they stay within it. To each of them come
//!
//! * recomputation (T1) in the first k stages, for every k: the lower a stage, the more steps are resident there;
//! * workers (T4), as long as more steps in flight can keep the threads busier;
//! * omission (T3), where the model may skip: what matters of the strides is of how many steps each stage learns one, and that is
//!   a chain of multiples from the last stage down. The paper's strides, one step for each that is resident, are among them, and so
//!   are nested ones, whose least common multiple is no larger than need be;
//! * accumulation (T2): for each number of versions the fewest steps that lead to it. Its bytes and values add up over the stages,
//!   so the best combinations are merged stage by stage, and what another combination beats goes no further;
//! * publication.
//!
//! The smallest is one step after the other, recomputed. A cut can take some bytes of scratch less than that; it is passed over, so that
//! the minimum of a model does not depend on times.
//!
//! No plan within these is better (a property test holds it to brute force). With more than `FINE_THREADS` threads there are so many
//! that the search is coarser: fewer numbers of workers, of recomputed stages and of versions, strides that are nested as they fit or
//! the paper's, and of more than `THIN` combinations of accumulation those that bring less than a thousandth more are passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::plan::{Plan, Publication, StagePlan, least_common_multiple};
use super::planner::Planner;
use super::profile::Profile;
use super::rate::{Rate, Rates, Timing};
use crate::limits::{ACCUMULATION_MAX, STAGES_MAX, STRIDE_MAX, WORKERS_MAX};

/// Steps in flight for each thread, at most: with more, threads have no more to do.
const IN_FLIGHT_PER_THREAD: u64 = 3;
/// Partitions that are tried at most; networks of many layers have more, next to each other.
const PARTITIONS_MAX: usize = 256;
/// Factors between the strides of neighbouring stages, beside the one that fits the paper's.
const STRIDE_FACTORS: [u64; 3] = [1, 2, 3];
/// Threads up to which every combination is tried.
const FINE_THREADS: usize = 4;
/// Stages up to which every chain of strides is tried: their number grows with each stage.
const FINE_STAGES: usize = 6;
/// Combinations of accumulation that are kept whatever they bring, and what one more of them has to bring beyond the one before.
const THIN: usize = 64;
const A_THOUSANDTH: f64 = 1.001;
/// Plans as good as the best, within what a profile can tell: the one that gives up the least is taken.
const AS_GOOD: f64 = 0.99;

/// A plan on the frontier.
#[derive(Clone, Debug)]
pub struct Point {
    /// Bytes that it holds at most.
    pub bytes: u64,
    /// What it brings.
    pub rate: Rate,
    /// How the network is cut, and what is given up where.
    pub stages: Vec<StagePlan>,
    /// Workers.
    pub workers: u64,
    /// When readers get new weights.
    pub publication: Publication,
}

impl Point {
    /// Steps that share an update or are not learned everywhere, steps whose updates a forward misses, and readers that may make the
    /// trainer wait.
    fn given_up(&self) -> (u64, u64, bool) {
        let left_out = self.stages.iter().map(|stage| stage.accumulation * stage.stride).max().unwrap_or(1);
        (left_out, self.workers * self.stages.len() as u64, self.publication == Publication::AtDrain)
    }
}

/// Every plan that no other one beats in all of bytes, period and value, fewest bytes first: which of them is the best depends on how
/// fast steps come.
#[derive(Clone, Debug, Default)]
pub struct Frontier(Vec<Point>);

impl Frontier {
    /// Those that are worth their bytes where steps come faster than they are learned, fewest bytes first; each brings more than those
    /// before.
    pub fn points(&self) -> Vec<&Point> {
        let mut most = 0.0;
        let mut points: Vec<&Point> = Vec::new();
        for point in &self.0 {
            let rate = point.rate.per_second(None);
            if rate > most {
                if points.last().is_some_and(|last| last.bytes == point.bytes) {
                    points.pop();
                }
                points.push(point);
                most = rate;
            }
        }
        points
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn all(&self) -> &[Point] {
        &self.0
    }

    /// The best for a budget, where steps arrive every `interval` nanoseconds (none: faster than they are learned). Of those that are
    /// as good, within what a profile can tell, the one that gives up the least, and then the smallest.
    pub fn best(&self, budget_bytes: u64, interval: Option<f64>) -> Option<&Point> {
        let fits = &self.0[..self.0.partition_point(|point| point.bytes <= budget_bytes)];
        let rate = |point: &Point| point.rate.per_second(interval);
        let most = fits.iter().map(rate).fold(0.0, f64::max);
        fits.iter().filter(|point| rate(point) >= AS_GOOD * most).min_by_key(|point| (point.given_up(), point.bytes))
    }

    /// Takes a plan in unless one that is there beats it, and lets go of those that it beats.
    pub(super) fn offer(&mut self, bytes: u64, rate: Rate, make: impl FnOnce() -> Point) {
        let beats = |one: Rate, other: Rate| one.period <= other.period && one.value >= other.value;
        let after = self.0.partition_point(|point| point.bytes <= bytes);
        if self.0[..after].iter().any(|point| beats(point.rate, rate)) {
            return;
        }
        let from = self.0.partition_point(|point| point.bytes < bytes);
        let mut number = 0;
        self.0.retain(|point| {
            number += 1;
            number <= from || !beats(rate, point.rate)
        });
        let at = self.0.partition_point(|point| point.bytes <= bytes);
        self.0.insert(at, make());
    }
}

/// What the frontier is searched in; shared with the searches that it is compared with.
pub(super) struct Space<'a> {
    pub(super) planner: &'a Planner,
    pub(super) profile: &'a Profile,
    pub(super) rates: Rates<'a>,
    /// What is recomputed of a run of layers; nothing where it saves nothing.
    segments: BTreeMap<(usize, usize), Vec<usize>>,
}

impl<'a> Space<'a> {
    pub(super) fn new(planner: &'a Planner, profile: &'a Profile) -> Space<'a> {
        let rates = planner.rates(profile);
        Space { planner, profile, rates, segments: BTreeMap::new() }
    }

    /// Steps in flight that a plan may have.
    pub(super) fn in_flight_max(&self) -> u64 {
        let busy = IN_FLIGHT_PER_THREAD * self.planner.threads as u64;
        self.planner.objective.in_flight_max.map_or(busy, |most| busy.min(most.max(1)))
    }

    /// Whether every combination is tried.
    fn is_fine(&self) -> bool {
        self.planner.threads <= FINE_THREADS
    }

    /// Workers that a plan of so many stages may have.
    pub(super) fn workers(&self, stages: usize) -> Vec<u64> {
        let most = (self.in_flight_max() / stages as u64).clamp(1, WORKERS_MAX);
        if self.is_fine() {
            return (1..=most).collect();
        }
        // Just enough for all threads, some to spare, and fewer and fewer below that.
        let (stages, threads) = (stages as u64, self.planner.threads as u64);
        let halves = std::iter::successors(Some(most), |workers| (*workers > 1).then_some(workers / 2));
        let busy = [threads.div_ceil(stages), (3 * threads).div_ceil(2 * stages)].into_iter().filter(|workers| *workers <= most);
        halves.chain(busy).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// How many of so many stages may be recomputed.
    fn recomputed(&self, stages: usize) -> BTreeSet<usize> {
        if self.is_fine() { (0..=stages).collect() } else { BTreeSet::from([0, stages / 2, stages]) }
    }

    /// The paper's partitions, as the ends of their stages.
    pub(super) fn partitions(&self) -> BTreeSet<Vec<usize>> {
        let times: Vec<u64> = self.profile.layers.iter().map(|layer| layer.forward + layer.backward).collect();
        let mut bounds = BTreeSet::new();
        for first in 0..times.len() {
            let mut sum = 0;
            for time in &times[first..] {
                sum += time;
                bounds.insert(sum);
            }
        }
        let learning = self.planner.network.first_learning_layer();
        let stages_max = if self.planner.is_whole() { 1 } else { STAGES_MAX.min(self.in_flight_max() as usize) };
        let partitions: BTreeSet<Vec<usize>> = bounds
            .into_iter()
            .filter_map(|bound| group(&times, bound))
            // Stages below the first layer that learns would have nothing to do.
            .map(|ends| ends.iter().copied().filter(|&end| end > learning || end == times.len()).collect::<Vec<_>>())
            .filter(|ends| ends.len() <= stages_max)
            .collect();
        let thinned = partitions.len().div_ceil(PARTITIONS_MAX);
        // The uncut network is always among them: nothing takes less.
        partitions.into_iter().step_by(thinned.max(1)).chain([vec![times.len()]]).collect()
    }

    /// The stages of a partition, of which the first `recomputed` keep their inputs only.
    pub(super) fn stages(&mut self, ends: &[usize], recomputed: usize) -> Vec<StagePlan> {
        let mut first = 0;
        let mut stages = Vec::with_capacity(ends.len());
        for (number, &end) in ends.iter().enumerate() {
            let recompute = if number < recomputed { self.segments(first..end) } else { Vec::new() };
            stages.push(StagePlan { recompute, ..StagePlan::whole(first..end) });
            first = end;
        }
        stages
    }

    fn segments(&mut self, layers: Range<usize>) -> Vec<usize> {
        let planner = self.planner;
        let found = self.segments.entry((layers.start, layers.end));
        found.or_insert_with(|| planner.best_segments(layers)).clone()
    }

    /// Of how many steps each stage learns one, in every combination that is searched, from the lowest stage on.
    pub(super) fn chains(&self, stages: usize, workers: u64) -> Vec<Vec<u64>> {
        // The fewest steps of which one resident step is learned, and the paper's number.
        let nested = |above: u64, resident: u64| -> u64 { above * resident.div_ceil(above) };
        let papers = least_common_multiple;
        if !self.planner.may_omit {
            return chains(stages, workers, |_, _| vec![1]);
        }
        if self.is_fine() && stages <= FINE_STAGES {
            return chains(stages, workers, |above, resident| {
                let factors = STRIDE_FACTORS.map(|factor| factor * above).into_iter();
                factors.filter(|&every| every <= nested(above, resident)).chain([papers(above, resident)]).collect()
            });
        }
        let one = |next: fn(u64, u64) -> u64| chains(stages, workers, move |above, resident| vec![next(above, resident)]);
        [one(|_, _| 1), one(nested), one(papers)].concat()
    }

    /// Numbers of steps that may share an update: for each number of versions the fewest.
    pub(super) fn accumulations(&self, lag: u64, every: u64) -> Vec<u64> {
        let mut accumulations = vec![1];
        let most = 1 + (lag - 1).div_ceil(every);
        for versions in 2..if self.is_fine() { most } else { most.min(3) } {
            accumulations.push((lag - 1).div_ceil(every * (versions - 1)).min(ACCUMULATION_MAX));
        }
        accumulations.sort_unstable();
        accumulations.dedup();
        accumulations
    }
}

/// Chains of multiples from the last stage, which learns every step, down: `next` gives the numbers that a stage may have below one
/// with the number `above`, where so many steps are resident at it.
fn chains(stages: usize, workers: u64, next: impl Fn(u64, u64) -> Vec<u64>) -> Vec<Vec<u64>> {
    let mut chains = vec![vec![1]];
    for above in 1..stages as u64 {
        let longer = chains.iter().flat_map(|chain: &Vec<u64>| {
            let last = chain.first().copied().unwrap_or(1);
            let every: BTreeSet<u64> =
                next(last, workers * (above + 1)).into_iter().filter(|&every| every <= STRIDE_MAX).collect();
            every.into_iter().map(move |every| [&[every], chain.as_slice()].concat())
        });
        chains = longer.collect();
    }
    chains
}

/// Layers grouped from the left, each group within `bound`; none where a single layer is beyond it.
fn group(times: &[u64], bound: u64) -> Option<Vec<usize>> {
    let (mut ends, mut sum) = (Vec::new(), 0);
    for (layer, &time) in times.iter().enumerate() {
        if time > bound {
            return None;
        }
        if sum + time > bound {
            ends.push(layer);
            sum = 0;
        }
        sum += time;
    }
    ends.push(times.len());
    Some(ends)
}

impl Planner {
    /// How the rates of its plans are reckoned.
    pub fn rates<'a>(&'a self, profile: &'a Profile) -> Rates<'a> {
        Rates { profile, footprint: self.footprint(), objective: self.objective }
    }

    /// The frontier of this network.
    pub fn frontier(&self, profile: &Profile) -> Frontier {
        let mut space = Space::new(self, profile);
        let (mut frontier, minimum_bytes) = (Frontier::default(), self.smallest().bytes.total());
        for ends in space.partitions() {
            let mut before = None;
            for recomputed in space.recomputed(ends.len()) {
                let stages = space.stages(&ends, recomputed);
                if before.as_ref() == Some(&stages) {
                    continue;
                }
                let walked = self.footprint().walk(&stages);
                for workers in space.workers(ends.len()) {
                    for chain in space.chains(ends.len(), workers) {
                        let mut plan = self.bare(stages.clone(), workers);
                        for (stage, every) in plan.stages.iter_mut().zip(chain) {
                            stage.stride = every;
                        }
                        plan.bytes = self.bytes(&plan, &walked);
                        space.offer_accumulated(&plan, minimum_bytes, &mut frontier);
                    }
                }
                before = Some(stages);
            }
        }
        frontier
    }
}

/// Accumulation in the stages so far, what it changes in bytes, and what those stages add to a step's value.
struct Merged {
    accumulations: Vec<u64>,
    bytes: i64,
    value: f64,
}

impl Space<'_> {
    /// Offers a plan with every accumulation that may be worth it, under both publications.
    fn offer_accumulated(&self, plan: &Plan, minimum_bytes: u64, frontier: &mut Frontier) {
        let continuous = Plan { publication: Publication::Continuous, ..plan.clone() };
        let drained = Plan { publication: Publication::AtDrain, ..plan.clone() };
        let teaches = self.rates.teaches(plan);
        let timings = [(&continuous, self.rates.timing(&continuous)), (&drained, self.rates.timing(&drained))];
        for merged in self.merge(plan, &timings[0].1) {
            for (published, timing) in &timings {
                let copies = published.publication.copies() as u64 * plan.bytes.weights;
                let bytes = (plan.bytes.total() - plan.bytes.snapshots + copies).saturating_add_signed(merged.bytes);
                if bytes < minimum_bytes {
                    continue;
                }
                let rate = Rate { period: timing.published_period, value: teaches * merged.value };
                frontier.offer(bytes, rate, || {
                    let mut stages = plan.stages.clone();
                    for (stage, accumulation) in stages.iter_mut().zip(&merged.accumulations) {
                        stage.accumulation = *accumulation;
                    }
                    Point { bytes, rate, stages, workers: plan.workers, publication: published.publication }
                });
            }
        }
    }

    fn merge(&self, plan: &Plan, timing: &Timing) -> Vec<Merged> {
        let mut merged = vec![Merged { accumulations: Vec::new(), bytes: 0, value: 0.0 }];
        for (number, stage) in plan.stages.iter().enumerate() {
            let parameters = self.planner.footprint().parameters(stage.layers.clone()) as i64;
            let (lag, every) = (plan.lag(number), plan.learns_every(number));
            let versions = |accumulation: u64| (lag - 1).div_ceil(every * accumulation) as i64;
            let options = self.accumulations(lag, every).into_iter().map(|accumulation| {
                let sums = i64::from(accumulation > 1);
                let bytes = (versions(accumulation) - versions(1) + sums) * parameters;
                (accumulation, bytes, self.rates.value(stage, every, accumulation, timing.period, timing.latencies[number]))
            });
            let mut longer = Vec::new();
            for (accumulation, bytes, value) in options {
                for so_far in &merged {
                    let accumulations = so_far.accumulations.iter().copied().chain([accumulation]).collect();
                    longer.push(Merged { accumulations, bytes: so_far.bytes + bytes, value: so_far.value + value });
                }
            }
            longer.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(b.value.total_cmp(&a.value)));
            merged = beyond(longer, 1.0);
            if merged.len() > THIN {
                merged = beyond(merged, A_THOUSANDTH);
            }
        }
        merged
    }
}

/// Of combinations with the fewest bytes first, those whose value is more than `factor` times the one before.
fn beyond(mut merged: Vec<Merged>, factor: f64) -> Vec<Merged> {
    let mut best = f64::NEG_INFINITY;
    merged.retain(|option| {
        let better = option.value > best * factor;
        best = if better { option.value } else { best };
        better
    });
    merged
}

#[cfg(test)]
mod tests;
