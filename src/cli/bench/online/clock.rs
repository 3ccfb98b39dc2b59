//! The virtual clock: a pipeline whose tasks are run for real, in the order in which a discrete-event simulation releases them.
//!
//! A task is taken at its virtual start, with all that it reads, and brought back at its virtual end, so who reads what is as it
//! would be on a machine whose tasks take the profile's times. No time is ever taken from a clock, and ties are broken by what the
//! tasks are: the same input gives the same bits everywhere that the kernels do.
//!
//! At one instant what ends comes first, then what arrives, then what starts: updates before backwards before forwards (1F1B), older
//! steps first, and admission last.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::policies::Waiting;
use super::times::Times;
use crate::cli::Failure;
use crate::ferret::pipeline::Pipeline;
use crate::ferret::schedule::Task;
use crate::ferret::snapshot::NetworkSnapshot;
use crate::ferret::stage::LayerWeights;
use crate::ferret::work::Done;
use crate::fold::{Outcome, Step, Verdict};

/// The order of tasks that may start, or that end, at one instant.
type Rank = (u8, u64, usize);

fn rank(task: Task) -> Rank {
    match task {
        Task::Update { ordinal, stage } => (0, ordinal, stage),
        Task::Backward { ordinal, stage } => (1, ordinal, stage),
        Task::Forward { ordinal, stage } => (2, ordinal, stage),
        Task::Admit => (3, 0, 0),
    }
}

/// What became of the steps that were admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Learned {
    /// Rows of steps that every stage has learned.
    pub(super) rows: u64,
    /// Rows of steps that some stages have learned.
    pub(super) rows_in_part: u64,
    /// Steps that have ended.
    pub(super) steps: u64,
    /// From their arrival to their end, all of them, in nanoseconds.
    pub(super) latency: u64,
}

/// A pipeline on the virtual clock.
pub(super) struct Clock {
    pipeline: Pipeline,
    times: Times,
    /// Tasks that may run at once.
    units: usize,
    now: u64,
    /// By when they end.
    running: BTreeMap<(u64, Rank), (Task, Done)>,
    /// The newest version of each stage that is there for readers.
    published: Vec<Vec<Arc<LayerWeights>>>,
    /// When each step in flight arrived, oldest first.
    arrivals: VecDeque<u64>,
    /// Rows admitted so far.
    sequence: u64,
    learned: Learned,
    /// Starts and ends of tasks, for tests.
    #[cfg(test)]
    pub(super) trace: Vec<(u64, Task)>,
}

impl Clock {
    /// A pipeline at rest, at the time 0.
    pub(super) fn new(pipeline: Pipeline, times: Times, units: usize) -> Clock {
        let stages = pipeline.plan().stages.len();
        let published = (0..stages).map(|stage| pipeline.newest(stage).unwrap_or_default()).collect();
        Clock {
            pipeline,
            times,
            units: units.max(1),
            now: 0,
            running: BTreeMap::new(),
            published,
            arrivals: VecDeque::new(),
            sequence: 0,
            learned: Learned::default(),
            #[cfg(test)]
            trace: Vec::new(),
        }
    }

    /// The pipeline, for its state once nothing is in flight.
    pub(super) fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// What was learned so far.
    pub(super) fn learned(&self) -> Learned {
        self.learned
    }

    /// What a reader sees now: of each stage the newest version whose update has ended.
    pub(super) fn newest(&self) -> NetworkSnapshot {
        let network = self.pipeline.network().clone();
        NetworkSnapshot::new(network, self.published.iter().flatten().cloned().collect())
    }

    /// Goes on until `until`; what starts at that instant is left for after the arrivals of it.
    pub(super) fn advance(&mut self, until: u64, waiting: &mut Waiting) -> Result<(), Failure> {
        self.start(waiting)?;
        while let Some(end) = self.next_end().filter(|end| *end < until) {
            self.end(end)?;
            self.start(waiting)?;
        }
        self.end(until)
    }

    /// Goes on until nothing waits and nothing runs.
    pub(super) fn finish(&mut self, waiting: &mut Waiting) -> Result<(), Failure> {
        self.start(waiting)?;
        while let Some(end) = self.next_end() {
            self.end(end)?;
            self.start(waiting)?;
        }
        Ok(())
    }

    fn next_end(&self) -> Option<u64> {
        self.running.keys().next().map(|(end, _)| *end)
    }

    /// Starts what may start now.
    fn start(&mut self, waiting: &mut Waiting) -> Result<(), Failure> {
        while self.running.len() < self.units {
            let task = match self.pipeline.ready().min_by_key(|task| rank(*task)) {
                Some(task) => task,
                None if self.offer(waiting)? => Task::Admit,
                None => break,
            };
            #[cfg(test)]
            self.trace.push((self.now, task));
            let done = self.pipeline.take(task)?.run();
            self.running.insert((self.now + self.times.of(task), rank(task)), (task, done));
        }
        Ok(())
    }

    /// Gives the pipeline what the policy chooses of what waits, if it takes a step now.
    fn offer(&mut self, waiting: &mut Waiting) -> Result<bool, Failure> {
        let (admitted, plan) = (self.pipeline.ordinal(), self.pipeline.plan());
        if !self.pipeline.has_room() || !plan.admits(admitted, self.learned.steps) {
            return Ok(false);
        }
        if self.pipeline.is_due() {
            // A consolidation needs the network at rest.
            if !self.pipeline.is_idle() || !self.running.is_empty() {
                return Ok(false);
            }
            self.pipeline.consolidate()?;
        }
        let Some((rows, arrived)) = waiting.take() else { return Ok(false) };
        let first = self.sequence + 1;
        self.sequence += rows.count as u64;
        self.arrivals.push_back(arrived);
        self.pipeline.offer(Step::starting(first, rows));
        Ok(true)
    }

    /// Moves on to `now` and ends what ends by then.
    fn end(&mut self, now: u64) -> Result<(), Failure> {
        self.now = now;
        let mut outcomes: Vec<Outcome> = Vec::new();
        while let Some(entry) = self.running.first_entry().filter(|entry| entry.key().0 <= now) {
            let (task, done) = entry.remove();
            self.pipeline.complete(done);
            self.pipeline.check()?;
            let stage = match task {
                Task::Update { stage, .. } => stage,
                // Statistics of the input advance with admission.
                _ => 0,
            };
            if matches!(task, Task::Update { .. } | Task::Admit)
                && let Some(newest) = self.pipeline.newest(stage)
            {
                self.published[stage] = newest;
            }
            self.pipeline.take_outcomes(&mut outcomes);
        }
        for outcome in outcomes {
            self.learned.steps += 1;
            self.learned.latency += now - self.arrivals.pop_front().unwrap_or(now);
            match outcome.verdict {
                Verdict::Learned => self.learned.rows += outcome.rows,
                Verdict::LearnedInPart => self.learned.rows_in_part += outcome.rows,
                Verdict::Quarantined(_) => {}
            }
        }
        Ok(())
    }
}
