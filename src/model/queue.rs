//! The driver's queue: the record that is being folded, cut into steps, counted in the model's ledger.
//!
//! A step begins after the last one and ends at `step_rows` rows or with its record. That rule has no memory, so replay from any
//! checkpoint cuts the same steps.

use crate::fold::{Fold, Sequence, Step};
use crate::ledger::{Guard, Part};
use crate::limits::LABEL_BYTES_MAX;
use crate::rows::Rows;
use crate::stream::{Schema, Stream};

use super::ModelError;

/// Rows that were read from the log.
struct Held {
    first: Sequence,
    rows: Rows,
    _guard: Guard,
}

impl Held {
    fn last(&self) -> Sequence {
        self.first + self.rows.count as u64 - 1
    }
}

/// What was read from the log and is not decided yet: the present record, and the one before while its last step runs.
#[derive(Default)]
pub(super) struct Queue {
    present: Option<Held>,
    before: Option<Held>,
}

/// Bytes that a queue over a stream of `schema` holds at most: the record whose last step runs, the next one, and that one's
/// stored form while it is being decoded.
pub fn queued_bytes_max(schema: &Schema) -> u64 {
    3 * record_bytes_max(schema)
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
    /// The step after `cursor`, or none where the log ends.
    pub(super) fn next(&mut self, stream: &Stream, cursor: Sequence, fold: &dyn Fold) -> Result<Option<Step>, ModelError> {
        let wanted = cursor + 1;
        if self.present.as_ref().is_none_or(|held| held.last() < wanted) {
            self.before = self.present.take();
            let decoding = fold.ledger().take(Part::QueuedRows, record_bytes_max(&stream.schema));
            let Some((first, rows)) = stream.read_rows(wanted)? else { return Ok(None) };
            let bytes = held_bytes(&stream.schema, rows.count);
            // A step needs neither: they are not to be copied with each.
            let rows = Rows { ids: None, times_ms: None, ..rows };
            self.present = Some(Held { first, rows, _guard: fold.ledger().take(Part::QueuedRows, bytes) });
            drop(decoding);
        }
        let Some(held) = &self.present else { return Ok(None) };
        if held.first > wanted {
            let gap = format!("rows {wanted} to {} are no longer in the log", held.first - 1);
            return Err(ModelError::Inconsistent(gap));
        }
        let start = (wanted - held.first) as usize;
        let end = held.rows.count.min(start + fold.step_rows());
        Ok(Some(Step { first: wanted, rows: held.rows.slice(start..end) }))
    }

    /// Lets go of what is decided.
    pub(super) fn forget(&mut self, decided: Sequence) {
        if self.before.as_ref().is_some_and(|held| held.last() <= decided) {
            self.before = None;
        }
        if self.present.as_ref().is_some_and(|held| held.last() <= decided) {
            self.present = None;
        }
    }
}
