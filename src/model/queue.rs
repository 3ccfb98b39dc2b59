//! The driver's queue: the record that is being folded, cut into steps, counted in the model's ledger.
//!
//! Where every row is learned, a step begins after the last one and ends at `step_rows` rows or with its record. That rule has no
//! memory, so replay from any checkpoint cuts the same steps. Where a decision keeps some rows of many, a step is gathered from them.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use crate::fold::{Fold, Sequence, Step};
use crate::ledger::{Guard, Part};
use crate::limits::LABEL_BYTES_MAX;
use crate::rows::Rows;
use crate::stream::{Schema, Stream};

use super::ModelError;
use super::choice::coreset_bytes;
use super::overload::{Take, Window};

/// What lies between two versions, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The first row.
    pub first: Sequence,
    /// The last row, which makes the version.
    pub last: Sequence,
    /// Rows of it that are given to the fold, as one step; 0 where there is none.
    pub rows: u64,
    /// Rows of it that are given away.
    pub skipped: Vec<RangeInclusive<Sequence>>,
}

/// Rows that were read from the log.
struct Held {
    first: Sequence,
    last: Sequence,
    rows: Rows,
    _guard: Guard,
}

/// Rows that a decision keeps, of all up to `through`.
struct Selection {
    through: Sequence,
    kept: VecDeque<Sequence>,
}

/// What was read from the log and is not decided yet: the present record (or step, where it was gathered), and the one before while
/// its last step runs.
#[derive(Default)]
pub(super) struct Queue {
    present: Option<Held>,
    before: Option<Held>,
    /// The record that a step is being gathered from.
    looked_up: Option<Held>,
    selection: Option<Selection>,
}

/// Bytes that a queue over a stream of `schema` holds at most: the record whose last step runs, the next one, and that one's
/// stored form while it is being decoded; and where rows are chosen, what that takes.
pub fn queued_bytes_max(schema: &Schema, window: Option<Window>) -> u64 {
    let chosen = match window {
        Some(Window { take: Take::Newest, .. }) | None => 0,
        // The record that is gathered from, beside the steps that were.
        Some(Window { take: Take::Random, .. }) => record_bytes_max(schema),
        Some(Window { take: Take::Coreset, rows, .. }) => {
            record_bytes_max(schema) + 2 * held_bytes(schema, rows as usize) + coreset_bytes(rows, schema.width() as u64)
        }
    };
    3 * record_bytes_max(schema) + chosen
}

fn record_bytes_max(schema: &Schema) -> u64 {
    held_bytes(schema, schema.record_rows())
}

/// What `rows` rows of a record take: features, label, and what stands beside them in the record.
fn held_bytes(schema: &Schema, rows: usize) -> u64 {
    const LABEL_BYTES: usize = 16;
    let id_bytes = if schema.row_id.is_some() { LABEL_BYTES_MAX + size_of::<String>() } else { 0 };
    let time_bytes = if schema.event_time.is_some() { 16 } else { 0 };
    (rows * (schema.row_bytes() + LABEL_BYTES + id_bytes + time_bytes)) as u64
}

impl Queue {
    /// Of the rows up to `through`, only `kept` ones are learned from here on, instead of whatever a decision before this one kept.
    pub(super) fn select(&mut self, through: Sequence, kept: &[Sequence]) {
        self.selection = Some(Selection { through, kept: kept.iter().copied().collect() });
    }

    /// Rows after `cursor` that wait to be learned.
    pub(super) fn waiting(&self, cursor: Sequence, head: Sequence) -> u64 {
        let (kept, after) = self.beyond(cursor);
        kept + head.saturating_sub(after)
    }

    /// The newest of those rows, in their order, at most so many.
    pub(super) fn newest_waiting(&self, cursor: Sequence, head: Sequence, most: u64) -> Vec<Sequence> {
        let (_, after) = self.beyond(cursor);
        let kept = self.selection.iter().flat_map(|selection| selection.kept.iter().copied());
        let waiting = self.waiting(cursor, head);
        kept.chain(after + 1..=head).skip(waiting.saturating_sub(most) as usize).collect()
    }

    /// How many rows the selection still has, and after which row all are learned.
    fn beyond(&self, cursor: Sequence) -> (u64, Sequence) {
        self.selection.as_ref().map_or((0, cursor), |of| (of.kept.len() as u64, of.through.max(cursor)))
    }

    /// What comes after `cursor`, with the step of it, if it has one; none where the log ends.
    pub(super) fn next(
        &mut self,
        stream: &Stream,
        cursor: Sequence,
        fold: &dyn Fold,
    ) -> Result<Option<(Passage, Option<Step>)>, ModelError> {
        if self.selection.is_some() {
            return self.next_selected(stream, cursor, fold).map(Some);
        }
        let wanted = cursor + 1;
        if self.present.as_ref().is_none_or(|held| held.last < wanted) {
            self.before = self.present.take();
            self.present = read(stream, wanted, fold)?;
        }
        let Some(held) = &self.present else { return Ok(None) };
        let start = (wanted - held.first) as usize;
        let end = held.rows.count.min(start + fold.step_rows());
        let step = Step::starting(wanted, held.rows.slice(start..end));
        let passage = Passage { first: wanted, last: step.last, rows: step.rows.count as u64, skipped: Vec::new() };
        Ok(Some((passage, Some(step))))
    }

    /// The next rows that were kept, as one step, and those given away before them; after the last of them also those behind.
    fn next_selected(
        &mut self,
        stream: &Stream,
        cursor: Sequence,
        fold: &dyn Fold,
    ) -> Result<(Passage, Option<Step>), ModelError> {
        let mut chosen = Vec::new();
        let mut last = cursor;
        if let Some(selection) = &mut self.selection {
            chosen.extend(selection.kept.drain(..selection.kept.len().min(fold.step_rows())));
            last = if selection.kept.is_empty() { selection.through } else { chosen.last().copied().unwrap_or(cursor) };
            self.selection = self.selection.take_if(|selection| !selection.kept.is_empty());
        }
        let passage = Passage { first: cursor + 1, last, rows: chosen.len() as u64, skipped: gaps(cursor + 1, last, &chosen) };
        if chosen.is_empty() {
            return Ok((passage, None));
        }
        let rows = self.gather(stream, &chosen, fold)?;
        let guard = fold.ledger().take(Part::QueuedRows, held_bytes(&stream.schema, rows.count));
        self.before = self.present.replace(Held { first: cursor + 1, last, rows: rows.clone(), _guard: guard });
        Ok((passage, Some(Step { last, rows })))
    }

    /// Copies of the rows with these numbers, in this order.
    pub(super) fn gather(&mut self, stream: &Stream, numbers: &[Sequence], fold: &dyn Fold) -> Result<Rows, ModelError> {
        let mut parts = Vec::new();
        let mut rest = numbers;
        while let Some(&next) = rest.first() {
            if !self.looked_up.as_ref().is_some_and(|held| (held.first..=held.last).contains(&next)) {
                self.looked_up = None;
                self.looked_up = read(stream, next, fold)?;
            }
            let held = self.looked_up.as_ref().filter(|held| held.first <= next);
            let held = held.ok_or_else(|| ModelError::Inconsistent(format!("row {next} is not in the log")))?;
            let inside = rest.iter().take_while(|number| (held.first..=held.last).contains(number)).count();
            let (these, after) = rest.split_at(inside);
            let places: Vec<usize> = these.iter().map(|number| (number - held.first) as usize).collect();
            parts.push(held.rows.gather(&places));
            rest = after;
        }
        let parts: Vec<&Rows> = parts.iter().collect();
        Ok(Rows::concatenate(&parts).unwrap_or_default())
    }

    /// Lets go of what is decided.
    pub(super) fn forget(&mut self, decided: Sequence) {
        for held in [&mut self.before, &mut self.present, &mut self.looked_up] {
            if held.as_ref().is_some_and(|held| held.last <= decided) {
                *held = None;
            }
        }
    }
}

/// The record with the row `wanted`, counted; none where the log ends before it.
fn read(stream: &Stream, wanted: Sequence, fold: &dyn Fold) -> Result<Option<Held>, ModelError> {
    let _decoding = fold.ledger().take(Part::QueuedRows, record_bytes_max(&stream.schema));
    let Some((first, rows)) = stream.read_rows(wanted)? else { return Ok(None) };
    if first > wanted {
        return Err(ModelError::Inconsistent(format!("rows {wanted} to {} are no longer in the log", first - 1)));
    }
    let guard = fold.ledger().take(Part::QueuedRows, held_bytes(&stream.schema, rows.count));
    // A step needs neither: they are not to be copied with each.
    let rows = Rows { ids: None, times_ms: None, ..rows };
    Ok(Some(Held { first, last: first + rows.count as u64 - 1, rows, _guard: guard }))
}

/// The runs of `first` to `last` without `kept`, which lie among them in their order.
fn gaps(first: Sequence, last: Sequence, kept: &[Sequence]) -> Vec<RangeInclusive<Sequence>> {
    let mut gaps = Vec::new();
    let mut from = first;
    for &row in kept.iter().chain(&[last + 1]) {
        if row > from {
            gaps.push(from..=row - 1);
        }
        from = row + 1;
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_given_away() {
        assert_eq!(gaps(3, 9, &[]), [3..=9]);
        assert_eq!(gaps(3, 9, &[3, 5, 6]), [4..=4, 7..=9]);
        assert_eq!(gaps(3, 9, &[4, 9]), [3..=3, 5..=8]);
        assert_eq!(gaps(3, 4, &[3, 4]), []);
    }

    #[test]
    fn rows_that_wait_are_those_kept_and_those_behind() {
        let mut queue = Queue::default();
        assert_eq!((queue.waiting(10, 15), queue.newest_waiting(10, 15, 3)), (5, vec![13, 14, 15]));
        queue.select(14, &[11, 13]);
        assert_eq!((queue.waiting(10, 16), queue.newest_waiting(10, 16, 9)), (4, vec![11, 13, 15, 16]));
        assert_eq!(queue.newest_waiting(10, 16, 3), [13, 15, 16]);
        queue.select(16, &[]);
        assert_eq!((queue.waiting(10, 16), queue.newest_waiting(10, 16, 9)), (0, vec![]));
    }
}
