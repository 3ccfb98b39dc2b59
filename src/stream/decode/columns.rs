//! Rows that come column by column, as Arrow and tensors have them: each column is found by its name once, then read row by row.

use std::ops::Range;

use super::cell::Cell;
use super::table::{Slot, Table, short};

/// The values of something, by number.
pub(super) type Cells<'a> = Box<dyn Fn(usize) -> Cell<'a> + 'a>;

/// A column's values.
pub(super) enum Values<'a> {
    /// One a row.
    Single(Cells<'a>),
    /// A list a row: where in `elements` that of each row lies, and none where there is none.
    Lists {
        /// Of all rows.
        elements: Cells<'a>,
        /// Those of one row.
        of: Box<dyn Fn(usize) -> Option<Range<usize>> + 'a>,
    },
}

/// A column of some rows.
pub(super) struct Column<'a> {
    pub(super) name: &'a str,
    pub(super) values: Values<'a>,
}

/// Reads `rows` rows. False where no more should be read, as after a column that the schema lacks.
pub(super) fn fill(columns: &[Column<'_>], rows: usize, table: &mut Table<'_>) -> bool {
    let Some(places) = places(columns, table) else { return false };
    for row in 0..rows {
        if !table.begin() {
            return false;
        }
        for (column, &(place, slot)) in columns.iter().zip(&places) {
            table.see(place);
            put(column, row, slot, table);
            table.leave();
        }
        table.end();
    }
    true
}

/// Where each column goes; none where one of them has no place, or two have one.
fn places(columns: &[Column<'_>], table: &mut Table<'_>) -> Option<Vec<(usize, Slot)>> {
    let mut places = Vec::with_capacity(columns.len());
    let (mut seen, mut good) = (std::collections::BTreeSet::new(), true);
    for column in columns {
        let fault = match table.find(column.name) {
            None => "the schema has no such column",
            Some(place) if !seen.insert(place) => "the column is there twice",
            Some(place) => {
                places.push((place, table.slot(place)));
                continue;
            }
        };
        table.fault_column(&short(column.name), fault);
        good = false;
    }
    good.then_some(places)
}

fn put(column: &Column<'_>, row: usize, slot: Slot, table: &mut Table<'_>) {
    match &column.values {
        _ if slot == Slot::Unread => {}
        Values::Single(cells) => cells(row).put(slot, table),
        Values::Lists { elements, of } if slot == Slot::Tensor => {
            let Some(range) = of(row) else { return Cell::Missing.put(slot, table) };
            let (had, width) = (range.len(), table.width());
            if had == width {
                return range.for_each(|element| elements(element).push_element(table));
            }
            let shape = table.schema.input_shape();
            table.fault_at(slot, format!("a list of {had} numbers, expected the shape {shape:?}"));
        }
        Values::Lists { .. } => super::cell::unexpected("a list", slot, table),
    }
}
