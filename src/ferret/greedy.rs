//! The Ferret paper's own search (section 4.3, algorithms 2 and 3), beside the exact frontier: from the best configuration of each
//! partition it gives up, again and again, what costs the least rate for the bytes that it frees. The appendix with its selection
//! rule was not to be had; this is the reconstruction that the frontier is compared with, and nothing is planned by it.

use super::frontier::{Point, Space};
use super::plan::{Plan, Publication, StagePlan};
use super::planner::Planner;
use super::profile::Profile;

impl Planner {
    /// The plan that the paper's search comes to within a budget; none where it finds none.
    pub fn greedy(&self, profile: &Profile, budget_bytes: u64) -> Option<Point> {
        let mut space = Space::new(self, profile);
        let mut best: Option<Point> = None;
        for ends in space.partitions() {
            for recomputed in [0, ends.len()] {
                let stages = space.stages(&ends, recomputed);
                for publication in [Publication::Continuous, Publication::AtDrain] {
                    let found = space.descend(&stages, publication, budget_bytes);
                    let better =
                        |point: &Point| best.as_ref().is_none_or(|best| point.rate.per_second(None) > best.rate.per_second(None));
                    if let Some(point) = found.filter(better) {
                        best = Some(point);
                    }
                }
            }
        }
        best
    }
}

impl Space<'_> {
    /// Gives up rate for bytes from the most workers on, until the plan fits.
    fn descend(&self, stages: &[StagePlan], publication: Publication, budget_bytes: u64) -> Option<Point> {
        let workers = self.workers(stages.len()).last().copied().unwrap_or(1);
        let mut at = self.planner.plan(0, stages.to_vec(), workers, publication);
        loop {
            let (bytes, rate) = (at.bytes.total(), self.rates.of(&at));
            if bytes <= budget_bytes {
                return Some(Point { bytes, rate, stages: at.stages, workers: at.workers, publication });
            }
            let cost = |next: &Plan| {
                let freed = bytes.saturating_sub(next.bytes.total()) as f64;
                (rate.per_second(None) - self.rates.of(next).per_second(None)) / freed
            };
            let steps = self.concessions(&at).into_iter().filter(|next| next.bytes.total() < bytes);
            at = steps.min_by(|one, other| cost(one).total_cmp(&cost(other)))?;
        }
    }

    /// The plans that are one concession away: one more step for an update of a stage (S2), a stage that learns one of the steps that
    /// are resident there (S3), a worker less (S4).
    fn concessions(&self, plan: &Plan) -> Vec<Plan> {
        let with = |stages: Vec<StagePlan>, workers: u64| self.planner.plan(0, stages, workers, plan.publication);
        let mut next = Vec::new();
        for (number, stage) in plan.stages.iter().enumerate() {
            let mut stages = plan.stages.clone();
            let more = self.accumulations(plan.lag(number), 1).into_iter().find(|&more| more > stage.accumulation);
            if let Some(accumulation) = more.filter(|_| stage.stride == 1) {
                stages[number].accumulation = accumulation;
                next.push(with(stages, plan.workers));
            } else if self.planner.may_omit && stage.stride == 1 && number + 1 < plan.stages.len() {
                (stages[number].accumulation, stages[number].stride) = (1, plan.lag(number));
                next.push(with(stages, plan.workers));
            }
        }
        if plan.workers > 1 {
            next.push(with(plan.stages.clone(), plan.workers - 1));
        }
        next
    }
}
