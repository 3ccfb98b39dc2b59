//! The adaptation rate of a plan (Ferret, definition 4.1 and equation 3): how much of what arrives is learned, and how fresh.
//!
//! A row that is learned r seconds after it came is worth e^(−c·r) of a row that is learned at once; the half-life of the
//! configuration gives c. A stage that learns has its share of that, by its number of parameters:
//!
//! ```text
//! R = teaches/period · Σ share(j) / (every(j) · accumulation(j)) · mean over i < accumulation(j) of e^(−c · (latency(j) + i · every(j) · period))
//! ```
//!
//! The paper does not divide by the accumulation. Here an update by the mean of k gradients moves the weights about as far as one of
//! them would have: k steps that share an update teach like one, and the mean is over what waits for it.
//!
//! Nor does the paper count that gradients from stale weights teach less. Here they do: `teaches = 1 / (1 + 0.04 · m²)` for m updates
//! missed, in the mean over the layers that learn. That is about what online accuracy had left of that of one step after the other,
//! on Fashion-MNIST with MNISTNet and MLPs, in the mean over learning rates and momenta: 0.96 for 1 update missed, 0.87 for 2, 0.7 for
//! 3, 0.5 for 5. High learning rates lose more, up to divergence, and low ones nothing.
//!
//! The paper's period is the slowest stage's forward and backward, as if every stage of every worker had a processor of its own.
//! Here a few threads run whatever is ready, so the period is the largest of what bounds it:
//!
//! * all work of a step, divided by the threads;
//! * each way round that a version goes, divided by the steps that may be on it: stage j's version is read by a forward, which
//!   has to come up to the loss and down again before it becomes part of the version that lag(j) steps later reads;
//! * the whole way of a step, divided by the steps in flight;
//! * the backwards and updates of one stage, of which each worker has one at a time, and its updates, which come one after the other.
//!
//! While several threads work, each is slower by what the profile has measured, and where there are no steps in flight to spare, they
//! also wait for each other. A plan that publishes with nothing in flight lets its pipeline become empty once each publication;
//! threads then wait for the last steps where there were none to spare.

use std::time::Duration;

use super::footprint::Footprint;
use super::plan::{Plan, Publication, StagePlan};
use super::profile::{LayerTimes, Observed, Profile};

/// How rates are reckoned for one network.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// In this time a row loses half of its worth.
    pub half_life: Duration,
    /// Between two publications.
    pub publish_interval: Duration,
    /// Steps in flight that a plan may have; none: as many as can keep the threads busy.
    pub in_flight_max: Option<u64>,
}

impl Default for Objective {
    fn default() -> Self {
        Objective { half_life: Duration::from_secs(10), publish_interval: Duration::from_millis(10), in_flight_max: None }
    }
}

/// What a plan brings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Between the ends of two steps while there are always more, in nanoseconds.
    pub period: f64,
    /// What a step is worth when it is learned, of what it was worth when it arrived.
    pub value: f64,
}

impl Rate {
    /// The adaptation rate in steps a second, where steps arrive every `interval` nanoseconds; none: faster than they are learned.
    pub fn per_second(&self, interval: Option<f64>) -> f64 {
        1e9 / self.period.max(interval.unwrap_or(0.0)) * self.value
    }
}

/// What rates are reckoned from.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    /// Times.
    pub profile: &'a Profile,
    /// Sizes.
    pub footprint: &'a Footprint,
    /// What counts.
    pub objective: Objective,
}

/// Of a period, how long threads wait on average while a pipeline empties that had no steps to spare.
const EMPTYING: f64 = 0.5;
/// How far observed times may be from the profile's before it is revised.
const DRIFT: f64 = 0.1;
/// How much less a step teaches, for the square of the updates that its forwards missed.
const STALENESS: f64 = 0.04;

/// Where all threads are as busy as the steps in flight allow, neither one bounds the period alone: whatever takes a little longer
/// makes a thread wait. It was a tenth in pipelines that were measured (`mustela bench planner`).
const WAITING: f64 = 0.1;

/// How much of that applies where the longest way round takes so many times what the work of all threads does: all of it at 1, none of
/// it from two thirds down, where other steps fill every gap, and from one and a half up, where threads have nothing to wait with.
fn tightness(ratio: f64) -> f64 {
    if ratio <= 1.0 { (3.0 * ratio - 2.0).max(0.0) } else { (3.0 - 2.0 * ratio).max(0.0) }
}

/// When a plan's steps are where, in nanoseconds, whatever its stages accumulate.
#[derive(Clone, Debug)]
pub struct Timing {
    /// While nothing is published.
    pub period: f64,
    /// With the stops for publications.
    pub published_period: f64,
    /// Of each stage, from a step's arrival to its update there, if it never waits.
    pub latencies: Vec<f64>,
}

/// The times of one stage, in nanoseconds.
struct StageTimes {
    forward: f64,
    backward: f64,
    update: f64,
    /// Of so many steps it learns one.
    every: f64,
}

impl Rates<'_> {
    /// The rate of a plan.
    pub fn of(&self, plan: &Plan) -> Rate {
        let timing = self.timing(plan);
        let values = plan.stages.iter().enumerate().map(|(number, stage)| {
            let every = plan.learns_every(number);
            self.value(stage, every, stage.accumulation, timing.period, timing.latencies[number])
        });
        Rate { period: timing.published_period, value: self.teaches(plan) * values.sum::<f64>() }
    }

    /// What steps teach for the updates that their forwards miss, of what they would if they missed none.
    pub fn teaches(&self, plan: &Plan) -> f64 {
        let (mut missed, mut learning) = (0, 0);
        for (number, stage) in plan.stages.iter().enumerate() {
            let layers = stage.layers.clone().filter(|&layer| self.footprint.parameters(layer..layer + 1) > 0).count() as u64;
            missed += layers * (plan.lag(number) - 1).div_ceil(plan.learns_every(number));
            learning += layers;
        }
        let mean = missed as f64 / learning.max(1) as f64;
        1.0 / (1.0 + STALENESS * mean * mean)
    }

    /// What a stage adds to the value of a step, if it missed no update.
    pub fn value(&self, stage: &StagePlan, every: u64, accumulation: u64, period: f64, latency: f64) -> f64 {
        let footprint = self.footprint;
        let all = footprint.parameters(0..self.profile.layers.len()).max(1);
        let share = footprint.parameters(stage.layers.clone()) as f64 / all as f64;
        let decay = std::f64::consts::LN_2 / self.objective.half_life.as_nanos().max(1) as f64;
        // A geometric series: each of the steps that share an update waits for those after it.
        let (each, count) = ((-decay * every as f64 * period).exp(), accumulation as f64);
        let mean = if each < 1.0 { (1.0 - each.powf(count)) / ((1.0 - each) * count) } else { 1.0 };
        share / (every as f64 * count) * (-decay * latency).exp() * mean
    }

    /// When steps are where under a plan.
    pub fn timing(&self, plan: &Plan) -> Timing {
        let profile = self.profile;
        let (handover, admission) = (profile.handover as f64, (profile.admission + profile.handover) as f64);
        let stages: Vec<StageTimes> = (0..plan.stages.len()).map(|number| self.stage(plan, number)).collect();
        let work = stages.iter().map(|stage| stage.forward + (stage.backward + stage.update) / stage.every).sum::<f64>();
        let busy = (admission + work) / self.threads(plan);
        let (mut way, mut latencies) = (admission, vec![0.0; stages.len()]);
        let (up, mut round, mut down) = (stages.iter().map(|stage| stage.forward).sum::<f64>(), 0.0, 0.0);
        for (number, stage) in stages.iter().enumerate().rev() {
            down += stage.backward;
            round += stage.forward + stage.backward / stage.every;
            let (lag, update) = (plan.lag(number) as f64, stage.update / stage.every);
            // A backward waits for the update by the step that many workers before it.
            let turn = (stage.backward / stage.every + update) / plan.workers as f64;
            way = way.max((round + update) / lag).max(turn).max(update);
            latencies[number] = admission + up + down + stage.update;
        }
        let whole = admission + round + stages.first().map_or(0.0, |lowest| lowest.update / lowest.every);
        way = way.max(whole / plan.in_flight() as f64);
        // One thread has nobody to wait for.
        let tight = if self.threads(plan) > 1.0 { tightness(way / busy) } else { 0.0 };
        let slowdown = self.slowdown(plan);
        // The pipeline is at rest for consolidations.
        let period = way.max(busy) * slowdown * (1.0 + WAITING * tight) + profile.consolidation as f64;
        latencies.iter_mut().for_each(|latency| *latency *= slowdown);
        let published_period = match plan.publication {
            Publication::Continuous => period,
            Publication::AtDrain => {
                // The steps between two publications, at least those that are let in at once after one.
                let interval = self.objective.publish_interval.as_nanos() as f64;
                let steps = (interval / period).max(plan.in_flight() as f64);
                period + (period * EMPTYING * tight + handover) / steps
            }
        };
        Timing { period, published_period, latencies }
    }

    /// The profile as the tasks that ran under `plan` correct it: each layer's times by the factor that its stage's are off. None
    /// while too few have run, or while none is further off than times vary.
    pub fn revised(&self, plan: &Plan, observed: &Observed) -> Option<Profile> {
        let mut profile = self.profile.clone();
        let mut drifted = false;
        let slowdown = self.slowdown(plan);
        for (number, stage) in plan.stages.iter().enumerate() {
            let times = self.stage(plan, number);
            let handover = self.profile.handover as f64;
            let expected = [times.forward, times.backward, times.update].map(|time| (time - handover).max(1.0) * slowdown);
            let observed = observed.medians(number)?;
            let factor = |task: usize| observed[task] as f64 / expected[task];
            drifted |= (0..3).any(|task| expected[task] > handover && !(1.0 - DRIFT..1.0 + DRIFT).contains(&factor(task)));
            for layer in &mut profile.layers[stage.layers.clone()] {
                let scaled = |time: u64, task: usize| (time as f64 * factor(task)) as u64;
                layer.forward = scaled(layer.forward, 0);
                layer.backward = scaled(layer.backward, 1);
                (layer.update, layer.copy) = (scaled(layer.update, 2), scaled(layer.copy, 2));
            }
        }
        drifted.then_some(profile)
    }

    /// How many times as long tasks take while as many threads as the plan can use have one.
    fn slowdown(&self, plan: &Plan) -> f64 {
        let profile = self.profile;
        // Linear between one thread, which nobody slows down, and all of them.
        let others = (self.threads(plan) - 1.0) / (profile.threads.max(2) - 1) as f64;
        1.0 + (profile.slowdown_thousandths.max(1000) - 1000) as f64 / 1000.0 * others
    }

    fn threads(&self, plan: &Plan) -> f64 {
        plan.in_flight().min(self.profile.threads.max(1) as u64) as f64
    }

    fn stage(&self, plan: &Plan, number: usize) -> StageTimes {
        let (stage, profile) = (&plan.stages[number], self.profile);
        let layers = &profile.layers[stage.layers.clone()];
        let handover = profile.handover as f64;
        let sum = |of: fn(&LayerTimes) -> u64| layers.iter().map(of).sum::<u64>() as f64;
        let again = if stage.recompute.is_empty() { 0.0 } else { sum(|layer| layer.forward) };
        // Versions that steps in flight read are left alone.
        let copy = if plan.lag(number) > 1 { sum(|layer| layer.copy) } else { 0.0 };
        let loss = if number + 1 == plan.stages.len() { profile.loss as f64 } else { 0.0 };
        StageTimes {
            forward: sum(|layer| layer.forward) + loss + handover,
            backward: again + sum(|layer| layer.backward) + handover,
            update: sum(|layer| layer.update) + copy + handover,
            every: plan.learns_every(number) as f64,
        }
    }
}
