//! The fold of a model once more, without a crash, a checkpoint or a service: its records and its decisions, in order, from the first.
//!
//! What it does with labels that come later is written from the rules, and shares nothing with the service but the fold itself.

use std::collections::{BTreeSet, VecDeque};

use serde::Deserialize;

use crate::cli::Failure;
use crate::fold::{Fold, Outcome, Sequence, Step, Version};
use crate::model::checkpoint::state_hash;
use crate::model::decision::{Decision, What};
use crate::model::kind::{Given, Kinds};
use crate::model::queued_bytes_max;
use crate::model::spec::ModelSpec;
use crate::model::status::Counters;
use crate::rows::{Rows, Target};
use crate::stream::Schema;
use crate::stream::record::{Label, LabelValue, Record};

/// What the log keeps of a model, as far as it says what is folded.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Kept {
    pub(super) spec: ModelSpec,
    /// The row after which the model begins.
    pub(super) origin: Sequence,
}

/// What a fold came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Folded {
    pub(super) version: Version,
    pub(super) decisions: u64,
    pub(super) counters: Counters,
    /// Rows whose labels may still come.
    pub(super) waiting: u64,
    pub(super) state_hash: String,
}

/// A record with its first number.
pub(super) type Numbered = (Sequence, Record);

/// What is left of the newest skip: its end, and the rows before it that are learned.
type Selection = (Sequence, VecDeque<Sequence>);

/// A fold on its way.
struct Run<'a> {
    records: &'a [Numbered],
    fold: Box<dyn Fold>,
    /// The number up to which everything is decided.
    cursor: Sequence,
    /// How many numbers a row waits for its label; none: it comes with it.
    window: Option<u64>,
    /// Rows without their labels.
    waiting: BTreeSet<Sequence>,
    /// Steps that begin up to here are quarantined.
    quarantine: Sequence,
    counters: Counters,
    outcomes: Vec<Outcome>,
}

/// Folds all records of a stream with the decisions made for the model.
pub(super) fn refold(
    kinds: &Kinds,
    kept: &Kept,
    schema: &Schema,
    records: &[Numbered],
    decisions: &[Decision],
) -> Result<Folded, Failure> {
    let spec = &kept.spec;
    let fold = kinds.get(&spec.kind)?.build(Given {
        settings: &spec.settings,
        schema,
        queued_bytes: queued_bytes_max(schema, None),
        may_skip: spec.overload.may_skip(),
        blobs: None,
    })?;
    let mut run = Run {
        records,
        fold,
        cursor: kept.origin,
        window: schema.late_labels.as_ref().map(|late| late.window_rows),
        waiting: BTreeSet::new(),
        quarantine: 0,
        counters: Counters::default(),
        outcomes: Vec::new(),
    };
    let mut pending = decisions.iter().peekable();
    let mut selection: Option<Selection> = None;
    loop {
        while let Some(decision) = pending.next_if(|decision| decision.at.sequence == run.cursor) {
            run.fold.drain(&mut run.outcomes)?;
            match (&decision.what, decision.what.change()) {
                (What::Skip { through, kept }, _) => selection = Some((*through, kept.iter().copied().collect())),
                (What::Quarantine { through, .. }, _) => run.quarantine = *through,
                (_, Some(change)) => run.fold.carry_out(&change)?,
                (what, None) => return Err(format!("nothing is known of the decision {what:?}").into()),
            }
        }
        if let Some(selected) = selection.take() {
            selection = run.kept(selected)?;
        } else if !run.next()? {
            break;
        }
    }
    if let Some(decision) = pending.next() {
        return Err(format!("the decision at {} is of no version on the way to {}", decision.at, run.cursor).into());
    }
    run.end(decisions.len() as u64)
}

impl Run<'_> {
    /// The record with a number; none at the end.
    fn record(&self, number: Sequence) -> Option<&Numbered> {
        self.records.get(self.records.partition_point(|(first, record)| first + record.span() <= number))
    }

    /// The rows with these numbers, one after the other, with the labels that are given with them.
    fn rows(&self, numbers: impl Iterator<Item = (Sequence, Option<Target>)>) -> Result<Option<Rows>, Failure> {
        let mut parts = Vec::new();
        for (number, label) in numbers {
            let Some((first, Record::Rows(rows))) = self.record(number) else {
                return Err(format!("row {number} is not there").into());
            };
            let at = (number - first) as usize;
            let row = rows.slice(at..at + 1);
            parts.push(Rows { ids: None, times_ms: None, target: label.or_else(|| row.target.clone()), ..row });
        }
        Ok(Rows::concatenate(&parts.iter().collect::<Vec<_>>()))
    }

    /// What lies between the cursor and `last` is decided, with the rows that it teaches.
    fn teach(&mut self, last: Sequence, rows: Option<Rows>) -> Result<(), Failure> {
        let first = self.cursor + 1;
        self.cursor = last;
        match rows {
            Some(rows) if first <= self.quarantine => self.counters.quarantined += rows.count as u64,
            Some(rows) => self.fold.apply(Step { last, rows }, &mut self.outcomes)?,
            None => {}
        }
        Ok(())
    }

    /// The step of the next rows that a skip keeps; gives the rows that it keeps after those, if there are any.
    fn kept(&mut self, (through, mut kept): Selection) -> Result<Option<Selection>, Failure> {
        let rest = kept.split_off(kept.len().min(self.fold.step_rows()));
        let last = if rest.is_empty() { through } else { kept.back().copied().unwrap_or(through) };
        let numbers = last.checked_sub(self.cursor + kept.len() as u64);
        self.counters.skipped += numbers.ok_or("a skip goes backwards")?;
        let rows = self.rows(kept.into_iter().map(|number| (number, None)))?;
        self.teach(last, rows)?;
        Ok((!rest.is_empty()).then_some((through, rest)))
    }

    /// What comes after the cursor, up to a step and of one record; false at the end.
    fn next(&mut self) -> Result<bool, Failure> {
        let (wanted, records) = (self.cursor + 1, self.records);
        let of = records.partition_point(|(first, record)| first + record.span() <= wanted);
        let Some((first, record)) = records.get(of) else { return Ok(false) };
        let start = (wanted - first) as usize;
        match record {
            Record::Rows(rows) => {
                let end = rows.count.min(start + self.fold.step_rows());
                self.next_rows(wanted, &rows.slice(start..end))?;
            }
            Record::Labels(labels) => self.next_labels(wanted, &labels[start..])?,
            Record::Revocation(_) => return Err(format!("the record at {first} is of a kind that nobody writes").into()),
        }
        Ok(true)
    }

    /// Rows: those with labels are a step, the others wait.
    fn next_rows(&mut self, first: Sequence, rows: &Rows) -> Result<(), Failure> {
        let mut labelled = Vec::new();
        for (number, place) in (first..).zip(0..rows.count) {
            self.expire(number);
            match &rows.target {
                Some(target) if !target.is_known(place) => drop(self.waiting.insert(number)),
                _ => labelled.push((number, None)),
            }
        }
        let step = self.rows(labelled.into_iter())?;
        self.teach(first + rows.count as u64 - 1, step)
    }

    /// Labels: up to so many as a step has rows teach the rows that wait for them; the others teach nothing.
    fn next_labels(&mut self, first: Sequence, labels: &[Label]) -> Result<(), Failure> {
        let (mut last, mut taught) = (first, Vec::new());
        for (number, label) in (first..).zip(labels) {
            last = number;
            self.counters.labels += 1;
            self.expire(number);
            if let Some(row) = label.at.filter(|row| self.waiting.remove(row)) {
                let target = match label.value {
                    LabelValue::Class(class) => Target::Classes(vec![class]),
                    LabelValue::Value(value) => Target::Values(vec![value]),
                    LabelValue::Distribution(_) => return Err(format!("the label at {number} is a distribution").into()),
                };
                taught.push((row, Some(target)));
            }
            if taught.len() == self.fold.step_rows() {
                break;
            }
        }
        let step = self.rows(taught.into_iter())?;
        self.teach(last, step)
    }

    /// The log has come to a number: rows of a window before have waited for too long.
    fn expire(&mut self, number: Sequence) {
        let Some(window) = self.window else { return };
        let (before, left) = (self.waiting.len(), self.waiting.split_off(&(number + 1).saturating_sub(window)));
        self.counters.expired += (before - left.len()) as u64;
        self.waiting = left;
    }

    fn end(mut self, decisions: u64) -> Result<Folded, Failure> {
        self.fold.drain(&mut self.outcomes)?;
        self.outcomes.iter().for_each(|outcome| self.counters.settle(outcome));
        let state = self.fold.checkpoint()?;
        let state_hash = state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)))?;
        let (version, waiting) = (Version { epoch: 0, sequence: self.cursor }, self.waiting.len() as u64);
        Ok(Folded { version, decisions, counters: self.counters, waiting, state_hash })
    }
}

#[cfg(test)]
mod tests;
