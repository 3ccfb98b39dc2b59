//! Raw little-endian sections: the features are the body itself and are not copied.

use bytes::Bytes;

use super::{DecodeError, Fault, Faults, Purpose};
use crate::limits::POST_ROWS_MAX;
use crate::rows::{Block, Element, NO_CLASS, Rows, Target as Labels};
use crate::stream::schema::{Field, Schema, Target};

pub(super) fn decode(schema: &Schema, body: Bytes, purpose: Purpose) -> Result<Rows, DecodeError> {
    // A client would have to know how words are hashed, and each bucket and mark would have to be looked at: text says it better.
    if let Some(field) = schema.fields.iter().find(|field| field.is_optional() || matches!(field, Field::Categorical { .. })) {
        let (column, reason) =
            (Some(field.name().to_owned()), "rows with categorical or optional columns come as JSON, NDJSON or CSV");
        return Err(DecodeError { faults: vec![Fault { row: None, column, reason: reason.into() }], total: 1 });
    }
    let learns = purpose == Purpose::Learn;
    let target = schema.target.as_ref().filter(|_| learns);
    let (has_id, has_time) = (learns && schema.row_id.is_some(), learns && schema.event_time.is_some());
    let row_bytes = schema.row_bytes();
    let beside = target.map_or(0, |_| 4) + if has_id { 8 } else { 0 } + if has_time { 8 } else { 0 };
    if body.is_empty() || !body.len().is_multiple_of(row_bytes + beside) {
        let has = if learns { "features, target, id and time as the schema has them" } else { "features only" };
        let (length, each) = (body.len(), row_bytes + beside);
        return Err(DecodeError::whole(format!("{length} bytes are no whole number of rows of {each} bytes ({has})")));
    }
    let count = body.len() / (row_bytes + beside);
    if count > POST_ROWS_MAX {
        return Err(DecodeError::whole(format!("{count} rows, {POST_ROWS_MAX} are the most")));
    }
    let mut sections = Sections { body, at: 0 };
    let features = sections.take(count * row_bytes);
    let mut faults = Faults::default();
    if schema.element() == Element::F32 {
        check_finite(schema, &features, &mut faults);
    }
    let late = schema.late_labels.is_some();
    let target = target.map(|target| labels(target, late, &sections.take(count * 4), &mut faults));
    let ids = has_id.then(|| words(&sections.take(count * 8)).map(|word| u64::from_le_bytes(word).to_string()).collect());
    let times_ms = has_time.then(|| words(&sections.take(count * 8)).map(i64::from_le_bytes).collect());
    if faults.total > 0 {
        return Err(DecodeError { faults: faults.listed, total: faults.total });
    }
    let block = Block { element: schema.element(), width: schema.width(), bytes: features };
    Ok(Rows { count, blocks: vec![block], target, ids, times_ms })
}

/// The body, section after section.
struct Sections {
    body: Bytes,
    at: usize,
}

impl Sections {
    fn take(&mut self, length: usize) -> Bytes {
        let section = self.body.slice(self.at..self.at + length);
        self.at += length;
        section
    }
}

fn words<const N: usize>(section: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    section.as_chunks::<N>().0.iter().copied()
}

fn check_finite(schema: &Schema, features: &[u8], faults: &mut Faults) {
    let width = schema.width();
    for (index, word) in words::<4>(features).enumerate() {
        let value = f32::from_le_bytes(word);
        if !value.is_finite() {
            let field = schema.fields.get(index % width).or(schema.fields.first());
            faults.add(Some((index / width) as u64), field.map(|field| field.name()), format!("{value} is not a finite number"));
        }
    }
}

/// The labels; where they may come late, one that has yet to come is 2³² − 1 as a class and NaN as a value.
fn labels(target: &Target, late: bool, section: &[u8], faults: &mut Faults) -> Labels {
    let column = Some(target.name());
    match target {
        Target::Classes { classes, .. } => {
            let labels: Vec<u32> = words(section).map(u32::from_le_bytes).collect();
            let is_wrong = |class: u32| class as usize >= classes.count() && !(late && class == NO_CLASS);
            for (row, &class) in labels.iter().enumerate().filter(|(_, class)| is_wrong(**class)) {
                faults.add(Some(row as u64), column, format!("{class} is not a class from 0 to {}", classes.count() - 1));
            }
            Labels::Classes(labels)
        }
        Target::Regression { .. } => {
            let labels: Vec<f32> = words(section).map(f32::from_le_bytes).collect();
            let is_wrong = |value: f32| !(value.is_finite() || late && value.is_nan());
            for (row, &value) in labels.iter().enumerate().filter(|(_, value)| is_wrong(**value)) {
                faults.add(Some(row as u64), column, format!("{value} is not a finite number"));
            }
            Labels::Values(labels)
        }
    }
}
