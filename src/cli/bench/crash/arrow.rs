//! The harness's rows and labels as Arrow IPC streams: a batch each, with nulls where something is missing.

use std::sync::Arc;

use arrow_array::types::{Float32Type, UInt8Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, FixedSizeListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field};

/// A column that is one number, or none, in each row.
pub(super) fn numbers(name: &'static str, values: impl Iterator<Item = Option<f32>>) -> (&'static str, ArrayRef) {
    (name, Arc::new(values.collect::<PrimitiveArray<Float32Type>>()))
}

/// A column of ids.
pub(super) fn ids(name: &'static str, values: impl Iterator<Item = u64>) -> (&'static str, ArrayRef) {
    (name, Arc::new(PrimitiveArray::<UInt64Type>::from_iter_values(values)))
}

/// A column of classes by number, or none.
pub(super) fn classes(name: &'static str, values: impl Iterator<Item = Option<u32>>) -> (&'static str, ArrayRef) {
    (name, Arc::new(values.collect::<PrimitiveArray<UInt32Type>>()))
}

/// A column of texts.
pub(super) fn words<'a>(name: &'static str, values: impl Iterator<Item = &'a str>) -> (&'static str, ArrayRef) {
    (name, Arc::new(StringArray::from_iter_values(values)))
}

/// A column of `size` bytes in each row.
pub(super) fn pixels(name: &'static str, values: Vec<u8>, size: usize) -> Result<(&'static str, ArrayRef), ArrowError> {
    let item = Arc::new(Field::new("item", DataType::UInt8, false));
    let bytes: PrimitiveArray<UInt8Type> = values.into();
    Ok((name, Arc::new(FixedSizeListArray::try_new(item, size as i32, Arc::new(bytes), None)?)))
}

/// The stream of one batch.
pub(super) fn stream(columns: Vec<(&'static str, ArrayRef)>) -> Result<Vec<u8>, ArrowError> {
    let batch = RecordBatch::try_from_iter(columns)?;
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
    writer.write(&batch)?;
    writer.into_inner()
}
