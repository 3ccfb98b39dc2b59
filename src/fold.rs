//! The seam that everything hangs on: a live model is a fold over the records of a stream.
//!
//! `model` drives any [`Fold`]: it feeds steps in the order of the log, writes decisions down before their effect can be seen,
//! hands snapshots to readers, and saves and restores the state. It never knows what is being learned. A fold in turn knows
//! neither log nor clock nor doors, so the same steps and the same decisions always give the same state, to the bit:
//!
//! ```text
//! state(n) = fold(records of the stream up to sequence n, decisions made for this model)
//! ```

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::ledger::{Ledger, Part};
use crate::metrics::PlanFigures;
use crate::rows::Rows;

/// The number of an accepted row (or later label) of a stream, counted from 1; 0 is "before the first".
pub type Sequence = u64;

/// Which state of a model: every row of its stream up to `sequence` is decided; each rollback or rebase opens a new epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    /// Counts the times that the fold was set back or rebased.
    pub epoch: u32,
    /// All rows up to here are decided.
    pub sequence: Sequence,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .split_once('.')
            .and_then(|(epoch, sequence)| Some(Version { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? }));
        parsed.ok_or_else(|| format!("`{text}` is not a version: expected epoch.sequence, such as 0.4096"))
    }
}

/// The next rows to be learned, at most the fold's `step_rows`.
#[derive(Clone, Debug)]
pub struct Step {
    /// The version that the step leads to: after it, every row up to here is decided.
    pub last: Sequence,
    /// The rows, at least one.
    pub rows: Rows,
}

impl Step {
    /// Rows that follow each other in the log, from `first` on.
    pub fn starting(first: Sequence, rows: Rows) -> Step {
        Step { last: first + rows.count as u64 - 1, rows }
    }
}

/// What one row turned out to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// A class.
    Class(u32),
    /// A value.
    Value(f32),
}

/// How the rows of a step were predicted before they were learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Rows that were scored.
    pub rows: u64,
    /// The sum of the rows' losses.
    pub loss: f64,
    /// Rows whose class was predicted; 0 for a regression.
    pub correct: u64,
}

impl Score {
    /// Adds another score to this one.
    pub fn add(&mut self, other: Score) {
        self.rows += other.rows;
        self.loss += other.loss;
        self.correct += other.correct;
    }
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every stage learned it.
    Learned,
    /// Some stages learned it; the others omitted it, or refused its gradient.
    LearnedInPart,
    /// It keeps its ordinal and updated nothing; the text says why.
    Quarantined(String),
}

/// The end of one step, told in the order of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The step's number among those that this fold was given, from 0.
    pub ordinal: u64,
    /// As its [`Step::last`].
    pub last: Sequence,
    /// How many rows it had.
    pub rows: u64,
    /// How many of them the fold keeps for scoring or calibration, and does not learn.
    pub held_out: u64,
    /// What became of it.
    pub verdict: Verdict,
    /// How its rows were predicted before they were learned; empty where it was quarantined.
    pub score: Score,
}

/// A change of how a fold goes on, decided outside it and written down before it takes effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A whole new plan, as [`Fold::propose_plan`] gave it.
    Plan(serde_json::Value),
    /// A new learning rate.
    LearningRate(f64),
    /// Another value of something that the fold's kind knows, such as where a detector's threshold comes from.
    Setting(serde_json::Value),
}

/// What a plan is to be proposed for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    /// The most bytes that it may hold; none: unconstrained.
    pub budget_bytes: Option<u64>,
    /// Between the arrivals of two rows; none: they come faster than they are learned.
    pub row_interval: Option<Duration>,
}

/// All that a fold must remember: with the records and decisions that follow it gives every later state. The tensors are lent,
/// because a copy would not fit the budget and a candle clone would share storage that the next step changes.
#[derive(Debug)]
pub struct StateRef<'a> {
    /// Weights, moments, statistics, by unique name.
    pub tensors: BTreeMap<String, &'a Tensor>,
    /// Counters and the plan.
    pub values: serde_json::Value,
}

/// A state that was read back.
#[derive(Debug)]
pub struct State {
    /// Weights, moments, statistics, by unique name; nobody else holds their storage.
    pub tensors: BTreeMap<String, Tensor>,
    /// Counters and the plan.
    pub values: serde_json::Value,
}

/// A frozen model that answers queries. It never changes, so any number of readers share it.
pub trait Snapshot: Any + Send + Sync {
    /// Predicts each row; `rows` have passed the schema of the model's stream.
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError>;

    /// The same with the hidden states on the way, of the layers at these places: all of a row's one after the other, row by row. What is
    /// predicted has the same bits.
    ///
    /// # Errors
    /// As for `predict`, and where there are no such states to show.
    fn predict_watched(&self, rows: &Rows, places: &[usize]) -> Result<(Predictions, Vec<f32>), FoldError> {
        let predictions = self.predict(rows)?;
        if !places.is_empty() {
            return Err(FoldError::Contract("models of this kind show no hidden states".into()));
        }
        Ok((predictions, Vec::new()))
    }

    /// What whoever asks has to know beside the predictions, such as a threshold. It is not the snapshot itself: a trainer may wait until
    /// readers have let go of that, and answers wait for whoever asked, who may be the trainer's own driver.
    fn told(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

/// What a snapshot says about rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// `rows × classes` probabilities, row by row.
    Classes {
        /// Probabilities of one row.
        classes: usize,
        /// All of them.
        probabilities: Vec<f32>,
    },
    /// One value a row.
    Values(Vec<f32>),
}

impl Predictions {
    /// Whether every number is finite; those of a model that has diverged are not.
    pub fn is_finite(&self) -> bool {
        let (Predictions::Classes { probabilities: numbers, .. } | Predictions::Values(numbers)) = self;
        numbers.iter().all(|number| number.is_finite())
    }

    /// How the row `row` was predicted, by its label: cross-entropy and whether the likeliest class is right, or the squared error.
    pub fn score(&self, row: usize, label: Label) -> Score {
        match (self, label) {
            (Predictions::Classes { classes, probabilities }, Label::Class(class)) => {
                let probabilities = &probabilities[row * classes..(row + 1) * classes];
                let right = probabilities.get(class as usize).copied().unwrap_or(0.0);
                let likeliest = (0..*classes).rev().max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
                let correct = u64::from(likeliest == Some(class as usize));
                Score { rows: 1, loss: -f64::from(right.max(f32::MIN_POSITIVE)).ln(), correct }
            }
            (Predictions::Values(values), Label::Value(value)) => {
                Score { rows: 1, loss: (f64::from(values[row]) - f64::from(value)).powi(2), correct: 0 }
            }
            _ => Score::default(),
        }
    }

    /// Those of rows `range`.
    pub fn slice(&self, range: Range<usize>) -> Predictions {
        match self {
            Predictions::Classes { classes, probabilities } => {
                let probabilities = probabilities[range.start * classes..range.end * classes].to_vec();
                Predictions::Classes { classes: *classes, probabilities }
            }
            Predictions::Values(values) => Predictions::Values(values[range].to_vec()),
        }
    }

    /// Puts those of further rows behind these; they are of the same snapshot, so of the same form.
    pub fn append(&mut self, further: Predictions) {
        match (self, further) {
            (Predictions::Classes { probabilities, .. }, Predictions::Classes { probabilities: more, .. }) => {
                probabilities.extend(more);
            }
            (Predictions::Values(values), Predictions::Values(more)) => values.extend(more),
            _ => unreachable!("one snapshot gives predictions of one form"),
        }
    }
}

/// A deterministic fold over steps. Everything that may change a weight comes through `apply` and `execute`, in log order.
pub trait Fold: Send {
    /// Takes the next step. It may still be in flight when this returns; ends of steps are appended to `outcomes` in order.
    fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError>;

    /// Finishes every step in flight. It changes no value: a drained fold goes on as one that was not.
    fn drain(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError>;

    /// The best plan for what is asked for, without following it; the fold is drained. Never called in replay. Members of
    /// it may be `start`, with which step it begins, and `reckoned`, what it was chosen for; all else is the plan itself.
    fn propose_plan(&mut self, demand: Demand) -> Result<serde_json::Value, ProposalError>;

    /// A plan that is so much better than the one that is followed, by what has been observed of it since this was last asked, that
    /// it is worth a change; the fold is drained. Never called in replay.
    fn reconsider_plan(&mut self, _demand: Demand) -> Result<Option<serde_json::Value>, ProposalError> {
        Ok(None)
    }

    /// Every plan that no other one beats in both bytes and what it brings; null where there is only one.
    fn frontier(&mut self) -> Result<serde_json::Value, ProposalError> {
        Ok(serde_json::Value::Null)
    }

    /// The plan that a person wrote by hand, completed, without following it; it must fit the budget. The fold is drained.
    fn complete_plan(&self, _wish: &serde_json::Value, _budget_bytes: u64) -> Result<serde_json::Value, PlanError> {
        Err(PlanError::Refused("models of this kind have no plan to be written by hand".into()))
    }

    /// What a person who writes a plan has to know of what is learned, such as its layers.
    fn outline(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Whether things are as a change would have them, so that there is nothing to decide.
    fn holds(&self, _change: &Change) -> bool {
        false
    }

    /// Whether a change may be decided; the reason where it may not.
    fn check(&self, change: &Change) -> Result<(), String>;

    /// Carries out a change at the present version; the fold is drained. What would take longer than a step is left to
    /// [`Fold::proceed`].
    fn execute(&mut self, change: &Change) -> Result<(), FoldError>;

    /// Goes on with what `execute` has begun, for about as long as a step takes; `true` while there is more. Until then no step, no other
    /// change, no snapshot and no checkpoint comes between.
    fn proceed(&mut self) -> Result<bool, FoldError> {
        Ok(false)
    }

    /// Carries out a change to its end.
    fn carry_out(&mut self, change: &Change) -> Result<(), FoldError> {
        self.execute(change)?;
        while self.proceed()? {}
        Ok(())
    }

    /// Begins a snapshot of the state after the last step that was given, all of it after that step and no other; `false` while
    /// the plan has no bytes for another one. It may have to drain, and so end steps.
    fn begin_snapshot(&mut self, outcomes: &mut Vec<Outcome>) -> Result<bool, FoldError>;

    /// The snapshot that was begun, once the steps before it have ended.
    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, FoldError>;

    /// The whole state; the fold is drained.
    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError>;

    /// Goes on from a state that `checkpoint` gave.
    fn restore(&mut self, state: State) -> Result<(), FoldError>;

    /// Rows that a step may have at most, under the present plan.
    fn step_rows(&self) -> usize;

    /// The learning rate that holds; none for a fold without one.
    fn learning_rate(&self) -> Option<f64> {
        None
    }

    /// The bytes of this fold by part; the driver counts queued rows here too.
    fn ledger(&self) -> &Ledger;

    /// What the present plan will hold at most, in bytes.
    fn planned_bytes(&self) -> u64;

    /// What it will hold at most for one part, in bytes; what is in no part is the rest.
    fn planned_part_bytes(&self, _part: Part) -> u64 {
        0
    }

    /// The present plan in a few numbers, for whoever watches it; none for a fold without one.
    fn plan_figures(&self) -> Option<PlanFigures> {
        None
    }

    /// The smallest budget, in bytes, that [`Fold::propose_plan`] accepts.
    fn minimum_bytes(&self) -> u64;

    /// What bits depend on beside records and decisions: the fold's code version, kernels and processor features.
    fn identity(&self) -> String;
}

/// A budget that no plan fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a budget of {budget_bytes} bytes is below the minimum of {minimum_bytes} bytes")]
pub struct BelowMinimum {
    /// What was asked for.
    pub budget_bytes: u64,
    /// What the smallest plan needs.
    pub minimum_bytes: u64,
}

/// Why no plan could be proposed.
#[derive(Debug, thiserror::Error)]
pub enum ProposalError {
    /// None fits.
    #[error(transparent)]
    BelowMinimum(#[from] BelowMinimum),
    /// What plans are compared by could not be measured.
    #[error(transparent)]
    Fold(#[from] FoldError),
}

/// Why a plan that a person wrote is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// It is not a plan of this model, for the reason given.
    #[error("{0}")]
    Refused(String),
    /// It needs more than the budget.
    #[error("this plan holds up to {planned_bytes} bytes, the budget is {budget_bytes} bytes")]
    OverBudget {
        /// What it needs.
        planned_bytes: u64,
        /// What there is.
        budget_bytes: u64,
    },
}

/// A fold that cannot go on, or was given what it cannot take.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// An arithmetic kernel failed.
    #[error("arithmetic failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// There is nothing to answer from, for the reason given.
    #[error("{0}")]
    Unavailable(String),
    /// A step panicked; the fold in memory is lost, the last checkpoint and the log are not.
    #[error("the step panicked: {0}")]
    Panicked(String),
    /// The caller broke the fold's contract: rows of another schema, a state of another network.
    #[error("{0}")]
    Contract(String),
}

impl FoldError {
    /// What a panic left.
    pub(crate) fn of_panic(payload: &(dyn Any + Send)) -> FoldError {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        FoldError::Panicked(text.unwrap_or_else(|| "no message".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_scored_by_labels() {
        let classes = Predictions::Classes { classes: 2, probabilities: vec![0.75, 0.25, 0.5, 0.5] };
        let score = |row, class| classes.score(row, Label::Class(class));
        assert_eq!((score(0, 0).correct, score(0, 1).correct, score(1, 0).correct, score(1, 1).correct), (1, 0, 1, 0));
        assert!((score(0, 1).loss - 4f64.ln()).abs() < 1e-6);
        assert_eq!(Predictions::Values(vec![1.0, 3.0]).score(1, Label::Value(1.5)), Score { rows: 1, loss: 2.25, correct: 0 });
        assert_eq!(classes.score(0, Label::Value(1.0)), Score::default());
    }

    #[test]
    fn versions_are_text_both_ways() {
        let version = Version { epoch: 2, sequence: 4096 };
        assert_eq!(version.to_string(), "2.4096");
        assert_eq!("2.4096".parse(), Ok(version));
        for bad in ["", "2", "2.", ".4", "a.b", "1.2.3", "-1.2"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
