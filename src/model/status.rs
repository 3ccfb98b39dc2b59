//! What a model says about itself: its counters, its prequential scores, and what became of the newest steps.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::decision::Planned;
use super::drift::{Drift, Shift};
use super::queue::Passage;
use crate::fold::{Fold, Outcome, Score, Sequence, Verdict, Version};
use crate::ledger::Part;
use crate::metrics::PlanFigures;

/// Ends of steps that are remembered for a client that waits for its own rows.
const RECENT_OUTCOMES: usize = 512;
/// Runs of skipped rows that are remembered for the same; there may be many between two rows of one step.
const RECENT_SKIPS: usize = 4096;

/// What became of the rows of a model, each in exactly one of these (promise 8). Waiting rows are the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Learned by every stage.
    pub learned: u64,
    /// Learned by some stages only.
    pub learned_in_part: u64,
    /// Given away under a skip policy.
    pub skipped: u64,
    /// Kept for scoring only.
    pub held_out: u64,
    /// Refused by the guard.
    pub quarantined: u64,
    /// Their labels never came.
    pub expired: u64,
    /// Labels that were read, which are no rows but have numbers as they do.
    #[serde(default)]
    pub labels: u64,
}

impl Counters {
    /// Counts the rows of a step that has ended.
    pub fn settle(&mut self, outcome: &Outcome) {
        let (taken, held_out) = match outcome.verdict {
            Verdict::Learned => (&mut self.learned, outcome.held_out),
            Verdict::LearnedInPart => (&mut self.learned_in_part, outcome.held_out),
            Verdict::Quarantined(_) => (&mut self.quarantined, 0),
        };
        *taken += outcome.rows - held_out;
        self.held_out += held_out;
    }

    /// Rows that are decided.
    pub fn decided(&self) -> u64 {
        self.learned + self.learned_in_part + self.skipped + self.held_out + self.quarantined + self.expired
    }
}

/// Scores of the newest rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sliding {
    rows_max: u64,
    sum: Score,
    steps: VecDeque<Score>,
}

impl Sliding {
    /// A window of at least the newest `rows_max` rows, whole steps.
    pub fn new(rows_max: u64) -> Sliding {
        Sliding { rows_max, sum: Score::default(), steps: VecDeque::new() }
    }

    /// The window's sum, made from its steps in order, so that it does not depend on what left the window.
    pub fn score(&self) -> Score {
        self.sum
    }

    fn push(&mut self, score: Score) {
        self.steps.push_back(score);
        self.sum.rows += score.rows;
        while self.steps.front().is_some_and(|oldest| self.sum.rows - oldest.rows >= self.rows_max) {
            self.sum.rows -= self.steps.pop_front().map_or(0, |oldest| oldest.rows);
        }
        self.sum = Score::default();
        for step in &self.steps {
            self.sum.add(*step);
        }
    }
}

/// The scores and counters that a checkpoint keeps beside the fold's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// What became of the rows.
    pub counters: Counters,
    /// Steps, learned or refused.
    pub steps: u64,
    /// Scores since the start.
    pub whole: Score,
    /// Scores of the newest rows.
    pub sliding: Sliding,
    /// Rises of the loss.
    #[serde(default)]
    pub drift: Drift,
}

impl Tally {
    /// Nothing yet; `delta` as in [`Drift::new`].
    pub fn new(sliding_rows: u64, delta: f64) -> Tally {
        let (sliding, drift) = (Sliding::new(sliding_rows), Drift::new(delta));
        Tally { counters: Counters::default(), steps: 0, whole: Score::default(), sliding, drift }
    }
}

/// The last checkpoint that was written or read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointFigures {
    /// The version that it holds.
    pub version: Version,
    /// The oldest checkpoint that is still kept: the log reaches back to there.
    pub oldest_kept: Version,
    /// blake3 of weights, optimiser state and statistics.
    pub state_hash: String,
    /// When it was written, in seconds since 1970.
    pub unix_seconds: u64,
    /// How long the writing took.
    pub seconds: f64,
}

/// How a model is, in one word: the doors and `/metrics` say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It stands still.
    Failed,
    /// It goes on, and its last step was refused.
    Refusing,
    /// Rows wait.
    Learning,
    /// Every row is decided.
    Idle,
}

impl Condition {
    /// All of them.
    pub const ALL: [Condition; 4] = [Condition::Failed, Condition::Refusing, Condition::Learning, Condition::Idle];

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Condition::Failed => "failed",
            Condition::Refusing => "refusing",
            Condition::Learning => "learning",
            Condition::Idle => "idle",
        }
    }
}

/// What a model's driver tells everybody else.
#[derive(Clone, Debug)]
pub struct Status {
    /// Every row up to here is decided.
    pub version: Version,
    /// The row after which the model began.
    pub origin: Sequence,
    /// Scores and counters.
    pub tally: Tally,
    /// Steps that were begun and have not ended.
    pub steps_in_flight: u64,
    /// The memory budget in bytes; none: unconstrained.
    pub budget_bytes: Option<u64>,
    /// The model's share of what the process may hold, in bytes; none where nobody has shared it yet.
    pub allotted_bytes: Option<u64>,
    /// The plan that is followed.
    pub plan: serde_json::Value,
    /// What a person who writes a plan has to know of what is learned.
    pub outline: serde_json::Value,
    /// The plan in a few numbers; none for a kind without one.
    pub plan_figures: Option<PlanFigures>,
    /// What the plan holds at most.
    pub planned_bytes: u64,
    /// What it holds at most for each part, in their order.
    pub planned_parts: Vec<u64>,
    /// The smallest budget.
    pub minimum_bytes: u64,
    /// The learning rate that holds; none for a kind without one.
    pub learning_rate: Option<f64>,
    /// A setting that is being carried out, where that takes longer than a step.
    pub under_way: Option<serde_json::Value>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointFigures>,
    /// Why the model stands still, where it does.
    pub failure: Option<String>,
    /// Why the last step was refused, where it was: a model that has diverged refuses every one.
    pub refusing: Option<String>,
    /// When the last step ended before which readers saw the newest state.
    pub(super) unseen_since: Instant,
    recent: VecDeque<Recent>,
    /// Apart from the steps, of which there may be many between two skips, or one with many.
    skips: VecDeque<RangeInclusive<Sequence>>,
    rate: Rate,
}

impl Status {
    /// A model that has decided every row up to `version`.
    pub fn new(version: Version, origin: Sequence, tally: Tally) -> Status {
        Status {
            version,
            origin,
            tally,
            steps_in_flight: 0,
            budget_bytes: None,
            allotted_bytes: None,
            plan: serde_json::Value::Null,
            outline: serde_json::Value::Null,
            plan_figures: None,
            planned_bytes: 0,
            planned_parts: vec![0; Part::ALL.len()],
            minimum_bytes: 0,
            learning_rate: None,
            under_way: None,
            checkpoint: None,
            failure: None,
            refusing: None,
            unseen_since: Instant::now(),
            recent: VecDeque::with_capacity(RECENT_OUTCOMES),
            skips: VecDeque::new(),
            rate: Rate::default(),
        }
    }

    /// Notes what a fold says of its present plan and settings.
    pub fn note(&mut self, fold: &dyn Fold) {
        self.plan_figures = fold.plan_figures();
        self.planned_bytes = fold.planned_bytes();
        self.planned_parts = Part::ALL.into_iter().map(|part| fold.planned_part_bytes(part)).collect();
        self.minimum_bytes = fold.minimum_bytes();
        self.learning_rate = fold.learning_rate();
    }

    /// How the model is, in one word, while so many rows of its stream wait.
    pub fn condition(&self, lag_rows: u64) -> Condition {
        match &self.failure {
            Some(_) => Condition::Failed,
            None if self.refusing.is_some() => Condition::Refusing,
            None if lag_rows > 0 => Condition::Learning,
            None => Condition::Idle,
        }
    }

    /// Notes the plan that is followed, and what it answers.
    pub fn follow(&mut self, planned: &Planned) {
        self.budget_bytes = planned.budget_bytes;
        self.allotted_bytes = planned.allotted_bytes;
        self.plan = planned.plan.clone();
    }

    /// Rows of a stream with `head` that are not decided, those among them that only wait for their labels, and rows that were
    /// accepted for the model. A label that has not been read yet counts as a row.
    pub fn waiting(&self, head: Sequence) -> Waiting {
        let Counters { labels, .. } = self.tally.counters;
        let decided = self.tally.counters.decided();
        let for_label = (self.version.sequence - self.origin).saturating_sub(decided + labels);
        let rows = head.saturating_sub(self.version.sequence) + for_label;
        Waiting { rows, for_label, accepted: decided + rows }
    }

    /// Notes that the rows of `passage` are decided, the step of it as its outcome says; a rise of the loss, where one is noticed by
    /// it.
    pub fn settle(&mut self, passage: &Passage, outcome: Option<&Outcome>, now: Instant) -> Option<Shift> {
        assert_eq!(passage.first, self.version.sequence + 1, "rows are decided in the order of the log");
        self.version.sequence = passage.last;
        for range in &passage.skipped {
            self.tally.counters.skipped += range.end() + 1 - range.start();
            if self.skips.len() == RECENT_SKIPS {
                self.skips.pop_front();
            }
            self.skips.push_back(range.clone());
        }
        self.tally.counters.labels += passage.labels;
        self.tally.counters.expired += passage.expired;
        if passage.refused > 0 {
            self.tally.counters.quarantined += passage.refused;
            self.remember(passage, passage.refused, Score::default());
        }
        let outcome = outcome?;
        let tally = &mut self.tally;
        tally.steps += 1;
        tally.counters.settle(outcome);
        self.refusing = match &outcome.verdict {
            Verdict::Learned | Verdict::LearnedInPart => None,
            Verdict::Quarantined(reason) => Some(reason.clone()),
        };
        // A row whose label came late is scored by what was predicted when it came itself. Drifts go by what replay finds again.
        let score = passage.scored.unwrap_or(outcome.score);
        if score.rows > 0 {
            tally.whole.add(score);
            tally.sliding.push(score);
        }
        let mut rise = None;
        if outcome.score.rows > 0 {
            rise = tally.drift.push(outcome.score.loss / outcome.score.rows as f64, outcome.last);
        }
        let quarantined = if matches!(outcome.verdict, Verdict::Quarantined(_)) { outcome.rows } else { 0 };
        self.remember(passage, quarantined, score);
        // Rows that are skipped took no time.
        self.rate.add(outcome.rows, now);
        rise
    }

    fn remember(&mut self, passage: &Passage, quarantined: u64, score: Score) {
        if self.recent.len() == RECENT_OUTCOMES {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { first: passage.first, last: passage.last, quarantined, score });
    }

    /// What became of rows `first` to `last`, as far as the newest steps tell. Steps end with their records, so none reaches beyond
    /// a post, unless it was gathered from rows of many: it is told as a whole then.
    pub fn learned(&self, first: Sequence, last: Sequence) -> Learned {
        let mut learned = Learned::default();
        for step in self.recent.iter().filter(|step| step.first <= last && step.last >= first) {
            learned.score.add(step.score);
            learned.quarantined += step.quarantined;
        }
        for skip in &self.skips {
            learned.skipped += (last.min(*skip.end()) + 1).saturating_sub(first.max(*skip.start()));
        }
        learned
    }

    /// Rows a second whose steps ended lately.
    pub fn rows_per_second(&self, now: Instant) -> f64 {
        self.rate.per_second(now)
    }
}

/// The end of one of the newest steps.
#[derive(Clone, Copy, Debug)]
struct Recent {
    first: Sequence,
    last: Sequence,
    quarantined: u64,
    score: Score,
}

/// Rows of a model that are not decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// All of them.
    pub rows: u64,
    /// Those that the model has seen, and whose labels it waits for.
    pub for_label: u64,
    /// They and all that are decided.
    pub accepted: u64,
}

/// What became of a client's own rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learned {
    /// How they were predicted before they were learned.
    pub score: Score,
    /// Rows that were refused.
    pub quarantined: u64,
    /// Rows that were skipped.
    pub skipped: u64,
}

/// Rows a second over the last second or two, in two buckets.
#[derive(Clone, Debug, Default)]
struct Rate {
    since: Option<Instant>,
    rows: u64,
    before: f64,
}

impl Rate {
    fn add(&mut self, rows: u64, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let seconds = now.duration_since(since).as_secs_f64();
        self.rows += rows;
        if seconds >= 1.0 {
            self.before = self.rows as f64 / seconds;
            self.rows = 0;
            self.since = Some(now);
        }
    }

    fn per_second(&self, now: Instant) -> f64 {
        let Some(since) = self.since else { return 0.0 };
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds > 2.0 { self.rows as f64 / seconds } else { self.before.max(self.rows as f64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a step of rows that follow each other.
    fn settle(status: &mut Status, last: u64, rows: u64, verdict: Verdict, score: Score) {
        let passage = Passage { first: last + 1 - rows, last, rows, ..Passage::default() };
        status.settle(&passage, Some(&Outcome { ordinal: 0, last, rows, held_out: 0, verdict, score }), Instant::now());
    }

    fn score(rows: u64, correct: u64) -> Score {
        Score { rows, loss: 1.0, correct }
    }

    #[test]
    fn scores_slide_and_counters_add_up() {
        let mut status = Status::new(Version::default(), 0, Tally::new(4, 0.002));
        for step in 0..5u64 {
            settle(&mut status, (step + 1) * 2, 2, Verdict::Learned, score(2, step % 2));
        }
        assert_eq!(status.version.sequence, 10);
        assert_eq!(status.tally.counters.decided(), 10);
        assert_eq!((status.tally.whole.rows, status.tally.whole.correct), (10, 2));
        assert_eq!((status.tally.sliding.score().rows, status.tally.sliding.score().correct), (4, 1));
        assert_eq!(status.learned(3, 4).score.rows, 2);
        assert_eq!(status.learned(3, 7).score.rows, 6);
    }

    #[test]
    fn a_refused_step_is_counted_and_not_scored() {
        let mut status = Status::new(Version::default(), 0, Tally::new(4, 0.002));
        settle(&mut status, 3, 3, Verdict::Quarantined("not finite".into()), Score::default());
        assert_eq!(status.tally.counters.quarantined, 3);
        assert_eq!(status.tally.whole, Score::default());
        assert_eq!(status.learned(1, 3), Learned { quarantined: 3, ..Learned::default() });
        assert_eq!(status.condition(0), Condition::Refusing);
        settle(&mut status, 4, 1, Verdict::Learned, score(1, 1));
        assert_eq!((status.condition(0), status.condition(1)), (Condition::Idle, Condition::Learning));
        status.failure = Some("over".into());
        assert_eq!(status.condition(1), Condition::Failed);
    }

    #[test]
    fn rows_wait_until_their_labels_come_or_they_expire() {
        let mut status = Status::new(Version { epoch: 0, sequence: 100 }, 100, Tally::new(4, 0.002));
        assert_eq!(status.waiting(105), Waiting { rows: 5, for_label: 0, accepted: 5 });
        status.settle(&Passage { first: 101, last: 105, ..Passage::default() }, None, Instant::now());
        assert_eq!(status.waiting(108), Waiting { rows: 8, for_label: 5, accepted: 8 });
        let passage =
            Passage { first: 106, last: 108, rows: 2, labels: 3, expired: 1, scored: Some(score(1, 1)), ..Passage::default() };
        let outcome = Outcome { ordinal: 0, last: 108, rows: 2, held_out: 0, verdict: Verdict::Learned, score: score(2, 0) };
        status.settle(&passage, Some(&outcome), Instant::now());
        assert_eq!(status.waiting(108), Waiting { rows: 2, for_label: 2, accepted: 5 });
        assert_eq!(status.tally.whole, score(1, 1), "by what was predicted when the rows came");
    }

    #[test]
    fn skipped_rows_are_counted_and_told_to_whoever_posted_them() {
        let mut status = Status::new(Version::default(), 0, Tally::new(4, 0.002));
        settle(&mut status, 2, 2, Verdict::Learned, score(2, 1));
        let skipped = std::iter::once(3..=10).collect();
        status.settle(&Passage { first: 3, last: 10, skipped, ..Passage::default() }, None, Instant::now());
        settle(&mut status, 12, 2, Verdict::Learned, score(2, 1));
        assert_eq!((status.version.sequence, status.tally.counters.skipped, status.tally.counters.decided()), (12, 8, 12));
        for (first, last, skipped) in [(1, 2, 0), (1, 3, 1), (3, 10, 8), (5, 6, 2), (9, 12, 2), (11, 12, 0), (1, 12, 8)] {
            assert_eq!(status.learned(first, last).skipped, skipped, "{first} to {last}");
        }
        // A step of rows 14 and 16, and what lay around them.
        let outcome = Outcome { ordinal: 2, last: 17, rows: 2, held_out: 0, verdict: Verdict::Learned, score: score(2, 2) };
        let passage = Passage { first: 13, last: 17, rows: 2, skipped: vec![13..=13, 15..=15, 17..=17], ..Passage::default() };
        status.settle(&passage, Some(&outcome), Instant::now());
        assert_eq!((status.tally.counters.skipped, status.tally.counters.decided()), (11, 17));
        assert_eq!((status.learned(13, 14).skipped, status.learned(13, 17).skipped), (1, 3));
        assert_eq!(status.learned(13, 17).score, score(2, 2));
    }
}
