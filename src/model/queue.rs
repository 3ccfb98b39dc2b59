//! The driver's queue: the record that is being folded, cut into steps, counted in the model's ledger.
//!
//! Where every row is learned, a step begins after the last one and ends at `step_rows` rows or with its record. That rule has no
//! memory, so replay from any checkpoint cuts the same steps. Where a decision keeps some rows of many, a step is gathered from them;
//! and so it is from the rows of late labels, which are read from the log again.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use crate::fold::{Fold, Label, Predictions, Score, Sequence, Step};
use crate::ledger::{Guard, Part};
use crate::limits::{LABEL_BYTES_MAX, RECORD_ROWS_MAX};
use crate::rows::{Rows, Target};
use crate::stream::record::{LabelValue, Record};
use crate::stream::{Schema, Stream, StreamError};

use super::ModelError;
use super::choice::coreset_bytes;
use super::late::{Late, ring_bytes};
use super::overload::{Take, Window};

/// What lies between two versions, and what becomes of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passage {
    /// The first row, or label.
    pub first: Sequence,
    /// The last, which makes the version.
    pub last: Sequence,
    /// Rows that are given to the fold, as one step; 0 where there is none.
    pub rows: u64,
    /// Rows of it that are given away.
    pub skipped: Vec<RangeInclusive<Sequence>>,
    /// Rows that would have been a step, and are quarantined without one.
    pub refused: u64,
    /// Numbers of it that are labels.
    pub labels: u64,
    /// Rows of before that expire by it.
    pub expired: u64,
    /// How the step's rows were predicted when they came, where that was before their labels.
    pub scored: Option<Score>,
}

/// What comes next.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) passage: Passage,
    pub(super) step: Option<Step>,
    /// Rows of it that wait for their labels, to be predicted now.
    pub(super) arrived: Option<(Vec<Sequence>, Rows)>,
}

/// What was read from the log, or gathered.
struct Held {
    first: Sequence,
    last: Sequence,
    content: Content,
    _guard: Guard,
}

enum Content {
    Rows(Rows),
    /// Which row each is of, and what it says; none where no row waited for it.
    Labels(Vec<Option<(Sequence, Label)>>),
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
    /// What comes up to here is no step.
    refused: Sequence,
    late: Option<Waiting>,
}

/// Rows that wait for their labels, counted.
struct Waiting {
    rows: Late,
    _guard: Guard,
}

/// Bytes that a queue over a stream of `schema` holds at most: the record whose last step runs, the next one, and that one's
/// stored form while it is being decoded; and where rows are chosen, what that takes.
pub fn queued_bytes_max(schema: &Schema, window: Option<Window>) -> u64 {
    let chosen = match window {
        Some(Window { take: Take::Newest, .. }) | None => 0,
        // The record that is gathered from, beside the steps that were, and the numbers that are drawn from, drawn and written down.
        Some(Window { take: Take::Random, rows, .. }) => record_bytes_max(schema) + DRAW_BYTES * rows,
        Some(Window { take: Take::Coreset, rows, .. }) => {
            record_bytes_max(schema) + 2 * held_bytes(schema, rows as usize) + coreset_bytes(rows, schema.width() as u64)
        }
    };
    // The record that a row is looked up in, the step that is gathered, and two lots of rows that are being predicted.
    let late = match schema.label_window() {
        0 => 0,
        window => 4 * record_bytes_max(schema) + ring_bytes(window, schema.class_count() as u64),
    };
    3 * record_bytes_max(schema) + chosen + late
}

/// Bytes of a row's number while it is drawn: in the window, in the shuffle, among those kept, and as text.
const DRAW_BYTES: u64 = 40;

fn record_bytes_max(schema: &Schema) -> u64 {
    let labels = if schema.late_labels.is_some() { label_bytes(RECORD_ROWS_MAX as u64) } else { 0 };
    held_bytes(schema, schema.record_rows()).max(labels)
}

/// What so many labels of a record take, once they are read.
fn label_bytes(labels: u64) -> u64 {
    labels * size_of::<Option<(Sequence, Label)>>() as u64
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

    /// What comes up to `through` is read, and taught to nobody.
    pub(super) fn refuse(&mut self, through: Sequence) {
        self.refused = through;
    }

    /// The last number of the record with the number `wanted`.
    pub(super) fn record_end(&mut self, stream: &Stream, wanted: Sequence, fold: &dyn Fold) -> Result<Sequence, ModelError> {
        Ok(read(stream, wanted, fold)?.map_or(wanted, |held| held.last))
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

    /// Begins at `version`, after the rows of `origin` and before: which of the newest wait for their labels is read from the log.
    pub(super) fn recall(
        &mut self,
        stream: &Stream,
        origin: Sequence,
        version: Sequence,
        fold: &dyn Fold,
    ) -> Result<(), ModelError> {
        let window = stream.schema.label_window();
        if window == 0 {
            return Ok(());
        }
        let width = stream.schema.class_count();
        let guard = fold.ledger().take(Part::QueuedRows, ring_bytes(window, width as u64));
        let mut late = Late::new(window, width);
        let mut next = (version + 1).saturating_sub(window).max(origin + 1);
        while next <= version {
            let Some(held) = read(stream, next, fold)? else { break };
            for number in next..=held.last.min(version) {
                late.pass(number);
                match &held.content {
                    Content::Rows(rows) if !is_known(rows, (number - held.first) as usize) => late.arrive(number),
                    Content::Rows(_) => {}
                    Content::Labels(labels) => {
                        if let Some((row, label)) = labels[(number - held.first) as usize] {
                            late.label(row, number, label);
                        }
                    }
                }
            }
            next = held.last + 1;
        }
        self.late = Some(Waiting { rows: late, _guard: guard });
        Ok(())
    }

    /// What was predicted for rows that wait for their labels.
    pub(super) fn predicted(&mut self, rows: &[Sequence], predictions: &Predictions, cursor: Sequence) {
        if let Some(late) = &mut self.late {
            late.rows.predict(rows, predictions, cursor);
        }
    }

    /// What comes after `cursor`; none where the log ends.
    pub(super) fn next(&mut self, stream: &Stream, cursor: Sequence, fold: &dyn Fold) -> Result<Option<Pulled>, ModelError> {
        let mut pulled = self.pull(stream, cursor, fold)?;
        if let Some(Pulled { passage, step, arrived }) = pulled.as_mut().filter(|pulled| pulled.passage.first <= self.refused) {
            (passage.refused, passage.rows, passage.scored) = (passage.rows, 0, None);
            // Whatever is wrong with these rows may be wrong for a prediction too.
            (*step, *arrived) = (None, None);
        }
        Ok(pulled)
    }

    /// [`Queue::next`], without a look at what is quarantined.
    fn pull(&mut self, stream: &Stream, cursor: Sequence, fold: &dyn Fold) -> Result<Option<Pulled>, ModelError> {
        if self.selection.is_some() {
            return self.next_selected(stream, cursor, fold).map(Some);
        }
        self.look(stream, cursor, fold)?;
        let wanted = cursor + 1;
        let Some(held) = &self.present else { return Ok(None) };
        let start = (wanted - held.first) as usize;
        match &held.content {
            Content::Rows(rows) => {
                let rows = rows.slice(start..rows.count.min(start + fold.step_rows()));
                Ok(Some(self.next_rows(wanted, rows)))
            }
            Content::Labels(labels) => {
                let labels = labels[start..].to_vec();
                self.next_labels(stream, wanted, &labels, fold).map(Some)
            }
        }
    }

    /// Reads the record after `cursor`, if it has not been read.
    pub(super) fn look(&mut self, stream: &Stream, cursor: Sequence, fold: &dyn Fold) -> Result<(), ModelError> {
        let wanted = cursor + 1;
        if self.selection.is_none() && self.present.as_ref().is_none_or(|held| held.last < wanted) {
            self.before = self.present.take();
            self.present = read(stream, wanted, fold)?;
        }
        Ok(())
    }

    /// Whether what comes after `cursor` is labels, as far as it has been read.
    pub(super) fn has_labels(&self, cursor: Sequence) -> bool {
        let next = self.present.as_ref().filter(|held| held.last > cursor);
        next.is_some_and(|held| matches!(held.content, Content::Labels(_)))
    }

    /// Rows from the number `first` on: those with labels are a step, and the others wait for theirs.
    fn next_rows(&mut self, first: Sequence, rows: Rows) -> Pulled {
        let last = first + rows.count as u64 - 1;
        let mut passage = Passage { first, last, rows: rows.count as u64, ..Passage::default() };
        let Some(late) = &mut self.late else {
            return Pulled { passage, step: Some(Step { last, rows }), arrived: None };
        };
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for place in 0..rows.count {
            passage.expired += u64::from(late.rows.pass(first + place as u64));
            if is_known(&rows, place) {
                known.push(place);
            } else {
                late.rows.arrive(first + place as u64);
                unknown.push(place);
            }
        }
        passage.rows = known.len() as u64;
        let numbers = || unknown.iter().map(|&place| first + place as u64).collect();
        let arrived = (!unknown.is_empty()).then(|| (numbers(), Rows { target: None, ..rows.gather(&unknown) }));
        let step = (!known.is_empty()).then(|| Step { last, rows: rows.gather(&known) });
        Pulled { passage, step, arrived }
    }

    /// Labels from the number `first` on, up to a step's worth of those whose rows wait for them.
    fn next_labels(
        &mut self,
        stream: &Stream,
        first: Sequence,
        labels: &[Option<(Sequence, Label)>],
        fold: &dyn Fold,
    ) -> Result<Pulled, ModelError> {
        let mut passage = Passage { first, ..Passage::default() };
        let (mut numbers, mut said, mut scored) = (Vec::new(), Vec::new(), Score::default());
        for (number, label) in (first..).zip(labels) {
            passage.last = number;
            passage.labels += 1;
            let Some(late) = &mut self.late else { continue };
            passage.expired += u64::from(late.rows.pass(number));
            if let Some((row, label)) = *label
                && let Some(score) = late.rows.label(row, number, label)
            {
                scored.add(score);
                numbers.push(row);
                said.push(label);
            }
            if numbers.len() == fold.step_rows() {
                break;
            }
        }
        if numbers.is_empty() {
            return Ok(Pulled { passage, step: None, arrived: None });
        }
        (passage.rows, passage.scored) = (numbers.len() as u64, Some(scored));
        let rows = Rows { target: target(&said), ..self.gather(stream, &numbers, fold)? };
        Ok(Pulled { step: Some(Step { last: passage.last, rows }), passage, arrived: None })
    }

    /// The next rows that were kept, as one step, and those given away before them; after the last of them also those behind.
    fn next_selected(&mut self, stream: &Stream, cursor: Sequence, fold: &dyn Fold) -> Result<Pulled, ModelError> {
        let mut chosen = Vec::new();
        let mut last = cursor;
        if let Some(selection) = &mut self.selection {
            chosen.extend(selection.kept.drain(..selection.kept.len().min(fold.step_rows())));
            last = if selection.kept.is_empty() { selection.through } else { chosen.last().copied().unwrap_or(cursor) };
            self.selection = self.selection.take_if(|selection| !selection.kept.is_empty());
        }
        let (first, skipped) = (cursor + 1, gaps(cursor + 1, last, &chosen));
        let passage = Passage { first, last, rows: chosen.len() as u64, skipped, ..Passage::default() };
        if chosen.is_empty() {
            return Ok(Pulled { passage, step: None, arrived: None });
        }
        let rows = self.gather(stream, &chosen, fold)?;
        let guard = fold.ledger().take(Part::QueuedRows, held_bytes(&stream.schema, rows.count));
        self.before = self.present.replace(Held { first, last, content: Content::Rows(rows.clone()), _guard: guard });
        Ok(Pulled { passage, step: Some(Step { last, rows }), arrived: None })
    }

    /// Copies of the rows with these numbers, in this order. Each record is read once.
    pub(super) fn gather(&mut self, stream: &Stream, numbers: &[Sequence], fold: &dyn Fold) -> Result<Rows, ModelError> {
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by_key(|&place| numbers[place]);
        let mut parts = Vec::new();
        let mut rest = order.as_slice();
        while let Some(&next) = rest.first() {
            let next = numbers[next];
            if !self.looked_up.as_ref().is_some_and(|held| (held.first..=held.last).contains(&next)) {
                self.looked_up = None;
                self.looked_up = read(stream, next, fold)?;
            }
            let Some(Held { first, last, content: Content::Rows(rows), .. }) = &self.looked_up else {
                return Err(ModelError::Inconsistent(format!("row {next} is not in the log")));
            };
            let (these, after) = rest.split_at(rest.partition_point(|&place| numbers[place] <= *last));
            let places: Vec<usize> = these.iter().map(|&place| (numbers[place] - first) as usize).collect();
            parts.push(rows.gather(&places));
            rest = after;
        }
        let rows = Rows::concatenate(&parts.iter().collect::<Vec<_>>()).unwrap_or_default();
        if order.is_sorted() {
            return Ok(rows);
        }
        let mut places = vec![0; order.len()];
        order.into_iter().enumerate().for_each(|(at, place)| places[place] = at);
        Ok(rows.gather(&places))
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

/// The record with the number `wanted`, counted; none where the log ends before it.
fn read(stream: &Stream, wanted: Sequence, fold: &dyn Fold) -> Result<Option<Held>, ModelError> {
    let _decoding = fold.ledger().take(Part::QueuedRows, record_bytes_max(&stream.schema));
    let Some((first, record)) = stream.read(wanted)? else { return Ok(None) };
    if first > wanted {
        return Err(ModelError::Inconsistent(format!("rows {wanted} to {} are no longer in the log", first - 1)));
    }
    let span = record.span();
    let bytes = match &record {
        Record::Rows(rows) => held_bytes(&stream.schema, rows.count),
        _ => label_bytes(span),
    };
    let guard = fold.ledger().take(Part::QueuedRows, bytes);
    let content = match record {
        // A step needs neither: they are not to be copied with each.
        Record::Rows(rows) => Content::Rows(Rows { ids: None, times_ms: None, ..rows }),
        Record::Labels(labels) => Content::Labels(labels.iter().map(|label| Some((label.at?, plain(&label.value)?))).collect()),
        Record::Revocation(_) => return Err(StreamError::reserved(stream, first).into()),
    };
    Ok(Some(Held { first, last: first + span - 1, content, _guard: guard }))
}

/// What a label says, where it is of a kind that doors take.
fn plain(value: &LabelValue) -> Option<Label> {
    match *value {
        LabelValue::Class(class) => Some(Label::Class(class)),
        LabelValue::Value(value) => Some(Label::Value(value)),
        LabelValue::Distribution(_) => None,
    }
}

/// Whether a row came with its label, or needs none.
fn is_known(rows: &Rows, place: usize) -> bool {
    rows.target.as_ref().is_none_or(|target| target.is_known(place))
}

/// Labels as a step has them; all are of one kind.
fn target(labels: &[Label]) -> Option<Target> {
    let classes = labels.iter().map(|label| if let Label::Class(class) = label { Some(*class) } else { None });
    let values = labels.iter().map(|label| if let Label::Value(value) = label { Some(*value) } else { None });
    let classes: Option<Vec<u32>> = classes.collect();
    classes.map(Target::Classes).or_else(|| values.collect::<Option<Vec<f32>>>().map(Target::Values))
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
