//! Queries as named tensors, as clients of the Open Inference Protocol send them: one tensor for each field, its first dimension the
//! rows.

use std::ops::Range;

use bytes::Bytes;

use super::cell::Cell;
use super::columns::{Cells, Column, Values, fill};
use super::table::Table;
use super::{DecodeError, Purpose};
use crate::rows::Rows;
use crate::stream::Schema;
use crate::stream::schema::Field;

/// The protocol's types of elements that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datatype {
    /// One byte, 0 or 1.
    Bool,
    /// Whole and not negative, of so many bytes.
    Uint(usize),
    /// Whole, of so many bytes.
    Int(usize),
    /// IEEE 754, of 4 or 8 bytes.
    Fp(usize),
    /// A text, or a picture's bytes.
    Bytes,
}

impl Datatype {
    /// The type of this name, such as `FP32`.
    pub fn from_name(name: &str) -> Option<Datatype> {
        Some(match name {
            "BOOL" => Datatype::Bool,
            "UINT8" => Datatype::Uint(1),
            "UINT16" => Datatype::Uint(2),
            "UINT32" => Datatype::Uint(4),
            "UINT64" => Datatype::Uint(8),
            "INT8" => Datatype::Int(1),
            "INT16" => Datatype::Int(2),
            "INT32" => Datatype::Int(4),
            "INT64" => Datatype::Int(8),
            "FP32" => Datatype::Fp(4),
            "FP64" => Datatype::Fp(8),
            "BYTES" => Datatype::Bytes,
            _ => return None,
        })
    }

    /// Bytes of one element; none where they differ.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Datatype::Bool => Some(1),
            Datatype::Uint(bytes) | Datatype::Int(bytes) | Datatype::Fp(bytes) => Some(bytes),
            Datatype::Bytes => None,
        }
    }
}

/// A tensor's elements, row by row.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// Of a type of fixed size, little-endian.
    Fixed(Datatype, Bytes),
    /// Texts.
    Words(Vec<String>),
    /// The bytes of pictures.
    Blobs(Vec<Bytes>),
}

impl Elements {
    /// How many.
    pub fn count(&self) -> usize {
        match self {
            Elements::Fixed(datatype, bytes) => bytes.len() / datatype.bytes().unwrap_or(1),
            Elements::Words(words) => words.len(),
            Elements::Blobs(blobs) => blobs.len(),
        }
    }

    fn cells(&self) -> Cells<'_> {
        /// The element of this number, widened by its sign.
        fn word<const N: usize>(bytes: &[u8], number: usize, fill: u8) -> [u8; 8] {
            let mut word = [fill; 8];
            word[..N].copy_from_slice(&bytes[number * N..(number + 1) * N]);
            word
        }
        match self {
            Elements::Words(words) => Box::new(|number| Cell::Word(&words[number])),
            Elements::Blobs(blobs) => Box::new(|number| Cell::Blob(&blobs[number])),
            Elements::Fixed(Datatype::Bool, bytes) => Box::new(|number| Cell::Flag(bytes[number] != 0)),
            Elements::Fixed(Datatype::Fp(8), bytes) => Box::new(|number| float(f64::from_le_bytes(word::<8>(bytes, number, 0)))),
            Elements::Fixed(Datatype::Fp(_), bytes) => Box::new(|number| {
                let [a, b, c, d, ..] = word::<4>(bytes, number, 0);
                float(f64::from(f32::from_le_bytes([a, b, c, d])))
            }),
            Elements::Fixed(datatype, bytes) => {
                let (size, signed) = (datatype.bytes().unwrap_or(1), matches!(datatype, Datatype::Int(_)));
                Box::new(move |number| {
                    let of = &bytes[number * size..(number + 1) * size];
                    let negative = signed && of.last().is_some_and(|last| last & 0x80 != 0);
                    let mut wide = [if negative { 0xff } else { 0 }; 16];
                    wide[..size].copy_from_slice(of);
                    Cell::Whole(i128::from_le_bytes(wide))
                })
            }
        }
    }
}

/// A tensor has no nulls: NaN is how numpy and pandas write a value that is missing.
fn float(value: f64) -> Cell<'static> {
    if value.is_nan() { Cell::Missing } else { Cell::Number(value) }
}

/// A tensor by its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Of the field.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub elements: Elements,
}

/// Reads the rows of a query; `body_bytes` is how long it was.
///
/// # Errors
/// Anything that is not features of `schema`, by row and column; tensors that have not the same number of rows.
pub fn decode_tensors(schema: &Schema, tensors: &[Tensor], body_bytes: usize) -> Result<Rows, DecodeError> {
    let rows = tensors.first().and_then(|tensor| tensor.shape.first()).copied().unwrap_or(0);
    let mut table = Table::new(schema, Purpose::Predict, body_bytes);
    let mut columns = Vec::with_capacity(tensors.len());
    for Tensor { name, shape, elements } in tensors {
        let field = schema.fields.iter().find(|field| field.name() == name);
        // Pictures that come encoded are one element each.
        let is_single = matches!(elements, Elements::Words(_) | Elements::Blobs(_)) && matches!(field, Some(Field::Image { .. }));
        let tensor = field.filter(|_| !is_single).and_then(Field::tensor).map(|(shape, _)| shape);
        let (of_row, wanted) = (shape.get(1..).unwrap_or_default(), tensor.as_deref().unwrap_or_default());
        let flat: usize = wanted.iter().product();
        if shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) != Some(elements.count()) {
            table.fault_column(name, format!("{} elements, and its shape is {shape:?}", elements.count()));
        } else if shape.first() != Some(&rows) {
            table.fault_column(name, format!("its shape is {shape:?}, and the first input has {rows} rows"));
        } else if !(of_row == wanted || of_row == [flat]) {
            let expected: Vec<usize> = [rows].iter().chain(wanted).copied().collect();
            table.fault_column(name, format!("its shape is {shape:?}, expected {expected:?}"));
        }
        let values = match tensor {
            Some(_) => Values::Lists { elements: elements.cells(), of: Box::new(move |row| Some(of_one(row, flat))) },
            None => Values::Single(elements.cells()),
        };
        columns.push(Column { name, values });
    }
    if !table.is_faulty() {
        fill(&columns, rows, &mut table);
    }
    match table.finish()? {
        rows if rows.count == 0 => Err(DecodeError::whole("there are no rows")),
        rows => Ok(rows),
    }
}

fn of_one(row: usize, width: usize) -> Range<usize> {
    row * width..(row + 1) * width
}
