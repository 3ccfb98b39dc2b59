//! From bytes to rows: each format straight into column buffers, with the schema at hand, and every fault by row and column.
//!
//! A post is taken whole or not at all. What is wrong with values is gathered, up to a number, so that a client can mend them all
//! at once; what is wrong with the syntax ends the reading.
//!
//! An integer label means the class of that number; where any class is *named* with an integer it means the class of that name,
//! in every text format (the raw format has numbers only).
//!
//! A value of a categorical column is a text; JSON's whole numbers and booleans stand for theirs, so that all text formats agree. A
//! value is missing where JSON has `null` or no such key, where a CSV cell is empty or the file lacks the column, and, in a
//! categorical column, where a text is empty. What is missing in a column that is not optional is a fault; a label may be missing where
//! the schema has `late_labels`.
//!
//! A picture comes encoded, as base64 where a format has texts only, or as the numbers of the tensor that it becomes. Decoding one takes
//! milliseconds, so [`decode`] is for threads that may take long.

mod arrow;
mod cell;
mod columns;
mod csv;
mod json;
mod picture;
mod raw;
mod table;
mod tensors;

use std::fmt;

use bytes::Bytes;

use super::Schema;
use crate::limits::{ERRORS_LISTED_MAX, PROBLEM_TEXT_BYTES_MAX};
use crate::rows::Rows;
use table::Table;

pub use picture::Pictures;
pub use tensors::{Datatype, Elements, Tensor, decode_tensors};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"rows": [{"x": 1, …}, …]}`
    Json,
    /// One object a line.
    Ndjson,
    /// A header line, then a line for each row; a tensor `t` has the columns `t_0`, `t_1`, …, and a picture `p` the column `p`.
    Csv,
    /// Little-endian sections: all features row by row (numeric columns as f32), then targets (u32 or f32), then row ids (u64),
    /// then event times (i64), each where the schema has it. Not for schemas with categorical or optional columns. A target that has
    /// yet to come is 2³² − 1 as a class and NaN as a value.
    Raw,
    /// An Arrow IPC stream: batches whose columns are named as the schema's, in any order.
    Arrow,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 5] = [Format::Json, Format::Ndjson, Format::Csv, Format::Raw, Format::Arrow];

    /// The media type that means this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Ndjson => "application/x-ndjson",
            Format::Csv => "text/csv",
            Format::Raw => "application/octet-stream",
            Format::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// The format that a media type (lower case, without parameters) means.
    pub fn from_content_type(essence: &str) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.content_type() == essence)
    }
}

/// What the rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be learned: labels, ids and times have to be there, as far as the schema has them.
    Learn,
    /// To be predicted: only features count. Labels, ids and times may be there (but not in the raw format) and are not read.
    Predict,
}

/// What is wrong with one value, or with the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The row in the post, counted from 0.
    pub row: Option<u64>,
    /// The column.
    pub column: Option<String>,
    /// What was found, and what was expected.
    pub reason: String,
}

/// What is wrong with a post.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DecodeError {
    /// The first faults.
    pub faults: Vec<Fault>,
    /// How many there are in all, as far as they were counted: reading ends after
    /// [`FAULTS_COUNTED_MAX`](crate::limits::FAULTS_COUNTED_MAX), and at the first fault of the syntax.
    pub total: u64,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total {
            1 => write!(f, "one fault")?,
            total => write!(f, "{total} faults, the first")?,
        }
        let Some(first) = self.faults.first() else { return Ok(()) };
        if let Some(row) = first.row {
            write!(f, " in row {row}")?;
        }
        if let Some(column) = &first.column {
            write!(f, " in column `{column}`")?;
        }
        write!(f, ": {}", first.reason)
    }
}

impl DecodeError {
    fn whole(reason: impl Into<String>) -> DecodeError {
        DecodeError { faults: vec![Fault { row: None, column: None, reason: reason.into() }], total: 1 }
    }
}

/// Faults as they are found.
#[derive(Debug, Default)]
struct Faults {
    listed: Vec<Fault>,
    total: u64,
}

impl Faults {
    fn add(&mut self, row: Option<u64>, column: Option<&str>, reason: impl Into<String>) {
        self.total += 1;
        if self.listed.len() < ERRORS_LISTED_MAX {
            let mut reason = reason.into();
            reason.truncate(reason.floor_char_boundary(PROBLEM_TEXT_BYTES_MAX));
            self.listed.push(Fault { row, column: column.map(str::to_owned), reason });
        }
    }
}

/// Reads the rows of a post.
///
/// # Errors
/// Anything that is not rows of `schema`, by row and column.
pub fn decode(schema: &Schema, format: Format, body: Bytes, purpose: Purpose) -> Result<Rows, DecodeError> {
    let rows = match format {
        Format::Raw => raw::decode(schema, body, purpose)?,
        Format::Json => read(schema, purpose, &body, json::rows)?,
        Format::Ndjson => read(schema, purpose, &body, json::lines)?,
        Format::Csv => read(schema, purpose, &body, csv::rows)?,
        Format::Arrow => {
            let mut table = Table::new(schema, purpose, body.len());
            arrow::rows(body, &mut table);
            table.finish()?
        }
    };
    match rows.count {
        0 => Err(DecodeError::whole("there are no rows")),
        _ => Ok(rows),
    }
}

fn read(schema: &Schema, purpose: Purpose, body: &[u8], fill: fn(&[u8], &mut Table<'_>)) -> Result<Rows, DecodeError> {
    let mut table = Table::new(schema, purpose, body.len());
    fill(body, &mut table);
    table.finish()
}

#[cfg(test)]
mod tests;
