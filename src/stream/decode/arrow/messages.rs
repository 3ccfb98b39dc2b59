//! The messages of an Arrow IPC stream, one after the other, each held to what reading it may cost before it is read.
//!
//! The library checks that a message is whole, not what it takes: buffers may lie over each other, each of a million views may be of the
//! same long text, and a dictionary may grow with every batch, all of which multiply a body that is under its cap. So of a message the
//! buffers together are no longer than its body, a text behind a view is no longer than any that a schema takes, dictionaries do not
//! grow, and one batch at a time is in memory.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{Message, MessageHeader, RecordBatch as Header, root_as_message};
use arrow_schema::{DataType, Schema, SchemaRef};

use crate::limits::{LABEL_BYTES_MAX, POST_ROWS_MAX};

/// What comes before a message's length, in streams of this format's later versions.
const CONTINUATION: u32 = u32::MAX;
/// Bytes of a view: a text's length, and the text itself where it is of no more than [`INLINE_BYTES`].
const VIEW_BYTES: usize = 16;
const INLINE_BYTES: u32 = 12;

/// A stream that is being read.
pub(super) struct Messages {
    left: Buffer,
    schema: Option<SchemaRef>,
    #[expect(clippy::disallowed_types, reason = "the library's type; it is only looked up")]
    dictionaries: std::collections::HashMap<i64, ArrayRef>,
}

/// What a message brought.
pub(super) enum Brought {
    /// The columns that all batches have.
    Schema(SchemaRef),
    /// Some rows.
    Batch(RecordBatch),
}

impl Messages {
    pub(super) fn new(body: Buffer) -> Messages {
        Messages { left: body, schema: None, dictionaries: Default::default() }
    }

    /// The next schema or batch; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Brought>, String> {
        while let Some((head, body)) = self.take()? {
            let message = root_as_message(&head).map_err(|error| error.to_string())?;
            match message.header_type() {
                MessageHeader::Schema if self.schema.is_none() => {
                    let header = message.header_as_schema().ok_or("a message is not what it says")?;
                    let schema = Arc::new(try_fb_to_schema(header).map_err(|error| error.to_string())?);
                    self.schema = Some(schema.clone());
                    return Ok(Some(Brought::Schema(schema)));
                }
                MessageHeader::Schema => return Err("it has two schemas".to_owned()),
                MessageHeader::DictionaryBatch => self.dictionary(&message, &body)?,
                MessageHeader::RecordBatch => return Ok(Some(Brought::Batch(self.batch(&message, &body)?))),
                other => return Err(format!("it has a message of the type {other:?}")),
            }
        }
        if self.schema.is_none() { Err("it has no schema".to_owned()) } else { Ok(None) }
    }

    /// The head and the body of the next message; none at the end, which a mark may tell.
    fn take(&mut self) -> Result<Option<(Buffer, Buffer)>, String> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let mut length = self.word()?;
        if length == CONTINUATION {
            length = self.word()?;
        }
        if length == 0 {
            return if self.left.is_empty() { Ok(None) } else { Err("there are bytes behind its end".to_owned()) };
        }
        let head = self.run(length as usize)?;
        let message = root_as_message(&head).map_err(|error| error.to_string())?;
        let length = usize::try_from(message.bodyLength()).map_err(|_| "a message has a length below 0")?;
        let body = self.run(length)?;
        Ok(Some((head, body)))
    }

    fn word(&mut self) -> Result<u32, String> {
        let bytes = self.run(size_of::<u32>())?;
        Ok(bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))
    }

    fn run(&mut self, length: usize) -> Result<Buffer, String> {
        if length > self.left.len() {
            return Err(format!("it is cut off: {length} bytes were to come, {} are left", self.left.len()));
        }
        let run = self.left.slice_with_length(0, length);
        self.left.advance(length);
        Ok(run)
    }

    fn dictionary(&mut self, message: &Message<'_>, body: &Buffer) -> Result<(), String> {
        let header = message.header_as_dictionary_batch().ok_or("a message is not what it says")?;
        let schema = self.schema.as_ref().ok_or("a dictionary comes before its schema")?;
        if header.isDelta() {
            return Err("a dictionary grows from batch to batch: write the whole of it, or none".to_owned());
        }
        let data = header.data().ok_or("a dictionary has no values")?;
        let mut values = schema.flattened_fields().into_iter().filter_map(|field| match field.data_type() {
            DataType::Dictionary(_, value) => Some((field, value.as_ref())),
            _ => None,
        });
        #[expect(deprecated, reason = "the library reads dictionaries by it")]
        let of = values.find(|(field, _)| field.dict_id() == Some(header.id()));
        let (_, of) = of.ok_or("a dictionary is of no column")?;
        check(&data, body, &[of])?;
        read_dictionary(body, header, schema, &mut self.dictionaries, &message.version()).map_err(|error| error.to_string())
    }

    fn batch(&self, message: &Message<'_>, body: &Buffer) -> Result<RecordBatch, String> {
        let header = message.header_as_record_batch().ok_or("a message is not what it says")?;
        let schema: &Arc<Schema> = self.schema.as_ref().ok_or("a batch comes before its schema")?;
        let types: Vec<&DataType> = schema.fields().iter().map(|field| field.data_type()).collect();
        check(&header, body, &types)?;
        let read = read_record_batch(body, header, schema.clone(), &self.dictionaries, None, &message.version());
        read.map_err(|error| error.to_string())
    }
}

/// Holds a batch of columns of these types to what it may cost.
fn check(header: &Header<'_>, body: &Buffer, types: &[&DataType]) -> Result<(), String> {
    if !(0..=POST_ROWS_MAX as i64).contains(&header.length()) {
        return Err(format!("a batch has {} rows, {POST_ROWS_MAX} are the most", header.length()));
    }
    if header.compression().is_some() {
        return Err("its buffers are compressed: compress the body instead (Content-Encoding)".to_owned());
    }
    let mut buffers = Vec::new();
    let mut total = 0u64;
    for buffer in header.buffers().into_iter().flatten() {
        let (offset, length) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length()));
        let (Ok(offset), Ok(length)) = (offset, length) else { return Err("a buffer lies outside its message".to_owned()) };
        if offset.checked_add(length).is_none_or(|end| end > body.len()) {
            return Err("a buffer lies outside its message".to_owned());
        }
        total = total.saturating_add(length as u64);
        buffers.push(&body[offset..offset + length]);
    }
    if total > body.len() as u64 {
        return Err("buffers lie over each other".to_owned());
    }
    let mut walk = Walk { buffers: buffers.into_iter(), views: header.variadicBufferCounts().into_iter().flatten() };
    types.iter().try_for_each(|of| walk.column(of))
}

/// The buffers of a batch in the order of its columns.
struct Walk<'a, V> {
    buffers: std::vec::IntoIter<&'a [u8]>,
    /// How many buffers of texts each column of views has.
    views: V,
}

impl<V: Iterator<Item = i64>> Walk<'_, V> {
    fn column(&mut self, of: &DataType) -> Result<(), String> {
        match of {
            DataType::Null => {}
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => self.skip(3),
            DataType::Utf8View => {
                self.skip(1);
                let views = self.buffers.next().unwrap_or_default();
                let lengths =
                    views.as_chunks::<VIEW_BYTES>().0.iter().map(|[a, b, c, d, ..]| u32::from_le_bytes([*a, *b, *c, *d]));
                let longest = lengths.filter(|&length| length > INLINE_BYTES).max().unwrap_or(0) as usize;
                if longest > LABEL_BYTES_MAX {
                    return Err(format!("a text has {longest} bytes, {LABEL_BYTES_MAX} are the most"));
                }
                let texts = self.views.next().and_then(|count| usize::try_from(count).ok());
                self.skip(texts.unwrap_or(0));
            }
            DataType::FixedSizeList(child, _) => {
                self.skip(1);
                self.column(child.data_type())?;
            }
            DataType::List(child) | DataType::LargeList(child) => {
                self.skip(2);
                self.column(child.data_type())?;
            }
            // Bits, numbers, times and the keys of dictionaries; other types have been refused.
            _ => self.skip(2),
        }
        Ok(())
    }

    fn skip(&mut self, buffers: usize) {
        self.buffers.by_ref().take(buffers).for_each(drop);
    }
}
