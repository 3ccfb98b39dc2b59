//! One value of a row, whatever format it came in, and the rules by which it finds its place: what JSON, Arrow and tensors agree on.

use super::table::{Slot, Table, short};

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell<'a> {
    /// There is none.
    Missing,
    /// A number with a point.
    Number(f64),
    /// A whole number.
    Whole(i128),
    /// A text.
    Word(&'a str),
    /// Bytes that are no text, as of a picture.
    Blob(&'a [u8]),
    /// True or false.
    Flag(bool),
}

impl Cell<'_> {
    /// Puts the value where the present row has `slot`, or says what is wrong with it.
    pub(super) fn put(self, slot: Slot, table: &mut Table<'_>) {
        match (slot, self) {
            (Slot::Unread, _) => {}
            (_, Cell::Missing) => {
                if !table.put_missing(slot) {
                    self.refuse(slot, table);
                }
            }
            (Slot::Numeric(column), Cell::Number(value)) => table.put_numeric(column, value),
            (Slot::Numeric(column), Cell::Whole(value)) => table.put_numeric(column, value as f64),
            (Slot::Category(column), Cell::Word(word)) => table.put_category(column, word),
            (Slot::Category(column), Cell::Whole(value)) => table.put_category(column, &value.to_string()),
            (Slot::Category(column), Cell::Flag(value)) => table.put_category(column, if value { "true" } else { "false" }),
            (Slot::Tensor, Cell::Word(text)) if table.has_pictures() => {
                table.put_picture(|pictures, to| pictures.append_text(text, to))
            }
            (Slot::Tensor, Cell::Blob(bytes)) if table.has_pictures() => {
                table.put_picture(|pictures, to| pictures.append(bytes, to))
            }
            (Slot::Target, Cell::Number(value)) => table.put_target_number(value),
            (Slot::Target, Cell::Whole(value)) => table.put_target_number(value as f64),
            (Slot::Target, Cell::Word(word)) => table.put_target_word(word),
            (Slot::RowId, Cell::Word(id)) => table.put_id(id),
            (Slot::RowId, Cell::Whole(id)) => table.put_id(&id.to_string()),
            (Slot::RowId, Cell::Number(value)) => {
                table.fault_at(slot, format!("{value} is neither a text nor a whole number"));
            }
            (Slot::EventTime, Cell::Whole(value)) => match i64::try_from(value) {
                Ok(time_ms) => table.put_time(time_ms),
                Err(_) => table.fault_at(slot, format!("{value} is beyond a 64-bit number of milliseconds")),
            },
            (Slot::EventTime, Cell::Number(value)) => {
                table.fault_at(slot, format!("{value} is not a whole number of milliseconds"));
            }
            _ => self.refuse(slot, table),
        }
    }

    /// The next number of the present row's tensor.
    pub(super) fn push_element(self, table: &mut Table<'_>) {
        match self {
            Cell::Whole(value) => match u64::try_from(value) {
                Ok(value) => table.push_whole(value),
                Err(_) => table.push_element(value as f64),
            },
            Cell::Number(value) => table.push_element(value),
            other => {
                table.push_element(0.0);
                other.refuse(Slot::Tensor, table);
            }
        }
    }

    fn refuse(self, slot: Slot, table: &mut Table<'_>) {
        let found = match self {
            Cell::Missing => "null".to_owned(),
            Cell::Number(value) => format!("the number {value}"),
            Cell::Whole(value) => format!("the number {value}"),
            Cell::Word(word) => format!("the text `{}`", short(word)),
            Cell::Blob(_) => "bytes".to_owned(),
            Cell::Flag(value) => value.to_string(),
        };
        unexpected(&found, slot, table);
    }
}

/// Says that something else was expected in `slot` than was found.
pub(super) fn unexpected(found: &str, slot: Slot, table: &mut Table<'_>) {
    let expected = match slot {
        Slot::Tensor if table.has_pictures() => {
            "a picture (PNG, JPEG or WebP, as base64 where it is a text) or a list of numbers"
        }
        Slot::Tensor => "a list of numbers",
        Slot::RowId => "a text or a whole number",
        Slot::Category(_) => "a text, a whole number, true or false",
        Slot::Target if table.schema.class_names().is_some() => "a class's name or number",
        _ => "a number",
    };
    table.fault_at(slot, format!("{found}, expected {expected}"));
}
