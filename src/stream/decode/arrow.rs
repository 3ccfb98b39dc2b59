//! Arrow IPC streams: what pyarrow, polars, DuckDB and the like write. Columns are found by name, in any order; a null is a missing
//! value; dictionaries stand for their values.
//!
//! A tensor is a fixed-size list (or lists of lists) of its numbers, or one flat list a row; a picture is the bytes of its file. Compressed buffers are not read: compress the
//! body instead (`Content-Encoding`), which is held to a cap.

mod messages;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowDictionaryKeyType, ArrowPrimitiveType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_buffer::{ArrowNativeType, Buffer};
use arrow_schema::{DataType, TimeUnit};
use bytes::Bytes;

use super::cell::Cell;
use super::columns::{Cells, Column, Values, fill};
use super::table::{Table, short};
use crate::limits::ROW_BYTES_MAX;
use messages::{Brought, Messages};

/// Reads the batches of a stream.
pub(super) fn rows(body: Bytes, table: &mut Table<'_>) {
    // Bodies are anybody's, and the library has asserted where it could have refused: what panics is no Arrow stream either.
    let read = catch_unwind(AssertUnwindSafe(|| read(body, table)));
    let read = read.unwrap_or_else(|_| Err("its parts do not fit each other".to_owned()));
    if let Err(reason) = read {
        table.fault_whole(format!("this is not an Arrow IPC stream of rows: {reason}"));
    }
}

fn read(body: Bytes, table: &mut Table<'_>) -> Result<(), String> {
    let mut messages = Messages::new(Buffer::from(body));
    while let Some(brought) = messages.next()? {
        let batch = match brought {
            // Before any of its rows are read: what follows reads these types only.
            Brought::Schema(schema) => {
                for field in schema.fields() {
                    if table.find(field.name()).is_none() {
                        table.fault_column(&short(field.name()), "the schema has no such column");
                    } else if !(is_read(field.data_type()) || table.has_pictures() && is_blob(field.data_type())) {
                        let reason = format!("columns of Arrow's type {} are not read", short(&field.data_type().to_string()));
                        table.fault_column(field.name(), reason);
                    }
                }
                if table.is_faulty() {
                    return Ok(());
                }
                continue;
            }
            Brought::Batch(batch) => batch,
        };
        let schema = batch.schema_ref();
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (field, array) in schema.fields().iter().zip(batch.columns()) {
            let name = field.name();
            match values(array.as_ref()) {
                Some(values) => columns.push(Column { name, values }),
                None => {
                    table.fault_column(name, "lists inside its lists are missing");
                    return Ok(());
                }
            }
        }
        if !fill(&columns, batch.num_rows(), table) {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether columns of this type are read.
fn is_read(of: &DataType) -> bool {
    match of {
        DataType::List(child) | DataType::LargeList(child) => is_number(child.data_type()),
        DataType::FixedSizeList(child, size) => {
            let (mut child, mut elements) = (child.data_type(), usize::try_from(*size).ok());
            while let DataType::FixedSizeList(inner, size) = child {
                (child, elements) = (inner.data_type(), elements.and_then(|of| of.checked_mul(usize::try_from(*size).ok()?)));
            }
            is_number(child) && elements.is_some_and(|elements| elements <= ROW_BYTES_MAX)
        }
        DataType::Dictionary(_, value) => is_number(value) || is_word(value),
        DataType::Null | DataType::Boolean | DataType::Timestamp(..) => true,
        other => is_number(other) || is_word(other),
    }
}

fn is_number(of: &DataType) -> bool {
    of.is_integer() || of.is_floating()
}

fn is_word(of: &DataType) -> bool {
    matches!(of, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Bytes, as pictures have them. Not as views, of which a million may be of the same picture.
fn is_blob(of: &DataType) -> bool {
    matches!(of, DataType::Binary | DataType::LargeBinary)
}

/// A column's values; none for a type that no schema has.
fn values(array: &dyn Array) -> Option<Values<'_>> {
    if let Some(cells) = cells(array) {
        return Some(Values::Single(cells));
    }
    let range: Box<dyn Fn(usize) -> Range<usize>>;
    let elements;
    match array.data_type() {
        DataType::FixedSizeList(..) => {
            let (mut child, mut size) = (array, 1usize);
            while let Some(list) = child.as_fixed_size_list_opt() {
                size = size.checked_mul(usize::try_from(list.value_length()).ok()?)?;
                // A list that is missing inside another has no place in a tensor.
                if !std::ptr::eq(child, array) && list.null_count() > 0 {
                    return None;
                }
                child = list.values().as_ref();
            }
            elements = child;
            range = Box::new(move |row| row * size..(row + 1) * size);
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            elements = list.values().as_ref();
            range = Box::new(|row| offsets(list.value_offsets(), row));
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            elements = list.values().as_ref();
            range = Box::new(|row| offsets(list.value_offsets(), row));
        }
        _ => return None,
    }
    let of = Box::new(move |row| array.is_valid(row).then(|| range(row)));
    Some(Values::Lists { elements: cells(elements)?, of })
}

fn offsets<O: ArrowNativeType>(offsets: &[O], row: usize) -> Range<usize> {
    offsets[row].as_usize()..offsets[row + 1].as_usize()
}

/// The values of an array that has one a row.
fn cells(array: &dyn Array) -> Option<Cells<'_>> {
    let cells: Cells<'_> = match array.data_type() {
        DataType::Null => return Some(Box::new(|_| Cell::Missing)),
        DataType::Boolean => {
            let flags = array.as_boolean();
            Box::new(|row| Cell::Flag(flags.value(row)))
        }
        DataType::Int8 => whole::<Int8Type>(array),
        DataType::Int16 => whole::<Int16Type>(array),
        DataType::Int32 => whole::<Int32Type>(array),
        DataType::Int64 => whole::<Int64Type>(array),
        DataType::UInt8 => whole::<UInt8Type>(array),
        DataType::UInt16 => whole::<UInt16Type>(array),
        DataType::UInt32 => whole::<UInt32Type>(array),
        DataType::UInt64 => whole::<UInt64Type>(array),
        DataType::Float16 => numbers::<Float16Type>(array, |value| f64::from(value.to_f32())),
        DataType::Float32 => numbers::<Float32Type>(array, f64::from),
        DataType::Float64 => numbers::<Float64Type>(array, |value| value),
        DataType::Utf8 => {
            let words = array.as_string::<i32>();
            Box::new(|row| Cell::Word(words.value(row)))
        }
        DataType::LargeUtf8 => {
            let words = array.as_string::<i64>();
            Box::new(|row| Cell::Word(words.value(row)))
        }
        DataType::Utf8View => {
            let words = array.as_string_view();
            Box::new(|row| Cell::Word(words.value(row)))
        }
        DataType::Binary => {
            let blobs = array.as_binary::<i32>();
            Box::new(|row| Cell::Blob(blobs.value(row)))
        }
        DataType::LargeBinary => {
            let blobs = array.as_binary::<i64>();
            Box::new(|row| Cell::Blob(blobs.value(row)))
        }
        DataType::Timestamp(unit, _) => times(array, *unit),
        DataType::Dictionary(key, _) => match key.as_ref() {
            DataType::Int8 => dictionary::<Int8Type>(array)?,
            DataType::Int16 => dictionary::<Int16Type>(array)?,
            DataType::Int32 => dictionary::<Int32Type>(array)?,
            DataType::Int64 => dictionary::<Int64Type>(array)?,
            DataType::UInt8 => dictionary::<UInt8Type>(array)?,
            DataType::UInt16 => dictionary::<UInt16Type>(array)?,
            DataType::UInt32 => dictionary::<UInt32Type>(array)?,
            DataType::UInt64 => dictionary::<UInt64Type>(array)?,
            _ => return None,
        },
        _ => return None,
    };
    if array.null_count() == 0 {
        return Some(cells);
    }
    Some(Box::new(move |row| if array.is_null(row) { Cell::Missing } else { cells(row) }))
}

fn whole<'a, T: ArrowPrimitiveType<Native: Into<i128>>>(array: &'a dyn Array) -> Cells<'a> {
    let values: &'a [T::Native] = array.as_primitive::<T>().values();
    Box::new(|row| Cell::Whole(values[row].into()))
}

fn numbers<'a, T: ArrowPrimitiveType>(array: &'a dyn Array, widen: fn(T::Native) -> f64) -> Cells<'a> {
    let values: &'a [T::Native] = array.as_primitive::<T>().values();
    Box::new(move |row| Cell::Number(widen(values[row])))
}

/// Times in milliseconds since 1970, whatever their unit.
fn times(array: &dyn Array, unit: TimeUnit) -> Cells<'_> {
    let (values, up, down) = match unit {
        TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().values(), 1000, 1),
        TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().values(), 1, 1),
        TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().values(), 1, 1000),
        TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().values(), 1, 1_000_000),
    };
    Box::new(move |row| Cell::Whole((i128::from(values[row]) * up).div_euclid(down)))
}

fn dictionary<K: ArrowDictionaryKeyType>(array: &dyn Array) -> Option<Cells<'_>> {
    let dictionary = array.as_dictionary::<K>();
    let (values, keys) = (cells(dictionary.values().as_ref())?, dictionary.keys());
    // The key of a null may be any.
    Some(Box::new(move |row| if keys.is_null(row) { Cell::Missing } else { values(keys.value(row).as_usize()) }))
}

#[cfg(test)]
mod tests;
