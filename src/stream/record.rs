//! Records: what the log stores, in an envelope {kind, schema version, payload}.
//!
//! On disk, all little-endian:
//!
//! ```text
//! u8 format | u8 codec | u32 payload length, unpacked | 8 bytes blake3 of format, codec, length and what follows | payload
//! payload, unpacked: u32 head length | head (postcard) | the features, block after block
//! ```
//!
//! The features lie outside the head, so that decoding shares them instead of copying. Whoever accepts a post encodes and
//! compresses it on its own thread; the log's writer only ever moves bytes. A record whose checksum is wrong is never used.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::fold::Sequence;
use crate::limits::{RECORD_BYTES_MAX, ROW_BYTES_MAX};
use crate::rows::{Block, Element, Rows, Target};

const FORMAT: u8 = 1;
const CODEC_PLAIN: u8 = 0;
const CODEC_LZ4: u8 = 1;
const HEADER_BYTES: usize = 14;
const CHECKSUM_AT: usize = 6;
/// The most that a record may unpack to: its features, and labels and ids beside them.
const UNPACKED_BYTES_MAX: usize = 4 * (RECORD_BYTES_MAX + ROW_BYTES_MAX);

/// What came from outside, as one entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Rows, with their labels where they came with them.
    Rows(Rows),
    /// Labels of rows that came before.
    Labels(Vec<Label>),
    /// Rows that shall not have been.
    Revocation(Vec<String>),
}

impl Record {
    /// How many sequence numbers it spans.
    pub fn span(&self) -> u64 {
        let count = match self {
            Record::Rows(rows) => rows.count,
            Record::Labels(labels) => labels.len(),
            Record::Revocation(rows) => rows.len(),
        };
        count as u64
    }
}

/// The label of a row that came before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// The row's id.
    pub row: String,
    /// The row's sequence number; none where no row with the id waited when the label came.
    pub at: Option<Sequence>,
    /// What it is.
    pub value: LabelValue,
    /// Who says so.
    pub source: Option<String>,
    /// How much it counts.
    pub weight: f32,
    /// The label that it takes the place of.
    pub supersedes: Option<Sequence>,
}

/// What a label says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum LabelValue {
    /// A class.
    Class(u32),
    /// How probable each class is.
    Distribution(Vec<f32>),
    /// A value.
    Value(f32),
}

/// A record with what the log must know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Counts the changes of the stream's schema.
    pub schema_version: u32,
    /// What came.
    pub record: Record,
}

/// The head of a payload.
#[derive(Serialize, Deserialize)]
struct Head {
    schema_version: u32,
    kind: Kind,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Rows {
        count: usize,
        blocks: Vec<(Element, usize)>,
        target: Option<Target>,
        ids: Option<Vec<String>>,
        times_ms: Option<Vec<i64>>,
    },
    Labels(Vec<Label>),
    Revocation(Vec<String>),
}

/// Bytes that are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record cannot be read: {0}")]
pub struct RecordError(String);

impl RecordError {
    /// A record that is whole, but not what was looked for.
    pub(super) fn unexpected(reason: &str) -> RecordError {
        RecordError(reason.to_owned())
    }
}

fn error(reason: impl Into<String>) -> RecordError {
    RecordError(reason.into())
}

impl Envelope {
    /// The record as the log stores it.
    ///
    /// # Errors
    /// The head cannot be written, which no record that a door accepts can bring about.
    pub fn encode(self) -> Result<Vec<u8>, RecordError> {
        let mut features = Vec::new();
        let kind = match self.record {
            Record::Rows(Rows { count, blocks, target, ids, times_ms }) => {
                let shapes = blocks.iter().map(|block| (block.element, block.width)).collect();
                features = blocks;
                Kind::Rows { count, blocks: shapes, target, ids, times_ms }
            }
            Record::Labels(labels) => Kind::Labels(labels),
            Record::Revocation(rows) => Kind::Revocation(rows),
        };
        let head = Head { schema_version: self.schema_version, kind };
        let head = postcard::to_stdvec(&head).map_err(|fault| error(fault.to_string()))?;
        let length = 4 + head.len() + features.iter().map(|block| block.bytes.len()).sum::<usize>();
        let mut payload = Vec::with_capacity(length);
        payload.extend_from_slice(&(head.len() as u32).to_le_bytes());
        payload.extend_from_slice(&head);
        for block in features {
            payload.extend_from_slice(&block.bytes);
        }
        Ok(pack(&payload))
    }

    /// Reads what [`Envelope::encode`] gave. The features share one buffer.
    ///
    /// # Errors
    /// The bytes are of another format, cut, or altered.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, RecordError> {
        let payload = Bytes::from(unpack(bytes)?);
        let (head_length, rest) = payload.split_first_chunk::<4>().ok_or_else(|| error("it has no head"))?;
        let head_length = u32::from_le_bytes(*head_length) as usize;
        let head = rest.get(..head_length).ok_or_else(|| error("its head is cut short"))?;
        let Head { schema_version, kind } = postcard::from_bytes(head).map_err(|fault| error(fault.to_string()))?;
        let record = match kind {
            Kind::Rows { count, blocks, target, ids, times_ms } => {
                let blocks = share(&payload, 4 + head_length, count, blocks)?;
                let labels = target.as_ref().map(|target| match target {
                    Target::Classes(classes) => classes.len(),
                    Target::Values(values) => values.len(),
                });
                let lengths = [labels, ids.as_ref().map(Vec::len), times_ms.as_ref().map(Vec::len)];
                if lengths.into_iter().flatten().any(|length| length != count) {
                    return Err(error("it has not one label, id and time for each row"));
                }
                Record::Rows(Rows { count, blocks, target, ids, times_ms })
            }
            Kind::Labels(labels) => Record::Labels(labels),
            Kind::Revocation(rows) => Record::Revocation(rows),
        };
        Ok(Envelope { schema_version, record })
    }
}

/// Cuts the features into their blocks.
fn share(payload: &Bytes, start: usize, count: usize, shapes: Vec<(Element, usize)>) -> Result<Vec<Block>, RecordError> {
    let mut at = start;
    let mut blocks = Vec::with_capacity(shapes.len());
    for (element, width) in shapes {
        let length = count.checked_mul(width).and_then(|elements| elements.checked_mul(element.bytes()));
        let end = length.and_then(|length| at.checked_add(length)).filter(|&end| end <= payload.len());
        let end = end.ok_or_else(|| error("its features are cut short"))?;
        blocks.push(Block { element, width, bytes: payload.slice(at..end) });
        at = end;
    }
    if at == payload.len() { Ok(blocks) } else { Err(error("bytes follow its features")) }
}

fn checksum(header: &[u8], stored: &[u8]) -> [u8; 8] {
    let hash = blake3::Hasher::new().update(header).update(stored).finalize();
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&hash.as_bytes()[..8]);
    checksum
}

fn pack(payload: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; HEADER_BYTES + lz4_flex::block::get_maximum_output_size(payload.len())];
    let squeezed = lz4_flex::block::compress_into(payload, &mut packed[HEADER_BYTES..]).ok();
    // Unpacking costs the trainer time: it has to be worth a sixth.
    let codec = match squeezed.filter(|squeezed| squeezed * 6 / 5 < payload.len()) {
        Some(squeezed) => {
            packed.truncate(HEADER_BYTES + squeezed);
            CODEC_LZ4
        }
        None => {
            packed.truncate(HEADER_BYTES);
            packed.extend_from_slice(payload);
            CODEC_PLAIN
        }
    };
    packed[0] = FORMAT;
    packed[1] = codec;
    packed[2..CHECKSUM_AT].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let checksum = checksum(&packed[..CHECKSUM_AT], &packed[HEADER_BYTES..]);
    packed[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum);
    packed
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>, RecordError> {
    let (header, stored) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| error("it is cut short"))?;
    if header[0] != FORMAT {
        return Err(error(format!("format {}, this version reads {FORMAT}", header[0])));
    }
    if checksum(&header[..CHECKSUM_AT], stored) != header[CHECKSUM_AT..] {
        return Err(error("its checksum is wrong"));
    }
    let length = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
    if length > UNPACKED_BYTES_MAX {
        return Err(error(format!("it unpacks to {length} bytes")));
    }
    match header[1] {
        CODEC_PLAIN if stored.len() == length => Ok(stored.to_vec()),
        CODEC_LZ4 => lz4_flex::block::decompress(stored, length).map_err(|fault| error(fault.to_string())),
        codec => Err(error(format!("codec {codec} with {} bytes of {length}", stored.len()))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Rows> {
        (1usize..20, 1usize..9, any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(count, width, seed, bytes, ids)| {
            let element = if bytes { Element::U8 } else { Element::F32 };
            let mut features = vec![0; count * width * element.bytes()];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut features);
            if seed % 2 == 0 {
                features.fill(7);
            }
            Rows {
                count,
                blocks: vec![Block { element, width, bytes: features.into() }],
                target: Some(if bytes { Target::Classes((0..count as u32).collect()) } else { Target::Values(vec![0.5; count]) }),
                ids: ids.then(|| (0..count).map(|row| format!("row {row}")).collect()),
                times_ms: (!ids).then(|| (0..count as i64).map(|row| row - 5).collect()),
            }
        })
    }

    proptest! {
        #[test]
        fn a_record_reads_back_and_an_altered_one_does_not(rows in rows(), at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
            let envelope = Envelope { schema_version: 1, record: Record::Rows(rows) };
            let bytes = envelope.clone().encode().unwrap();
            prop_assert_eq!(Envelope::decode(&bytes).unwrap(), envelope);
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 0x10;
            prop_assert!(Envelope::decode(&flipped).is_err());
            prop_assert!(Envelope::decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), codec in 0u8..3) {
            prop_assert!(Envelope::decode(&bytes).is_err());
            // With a right checksum the payload itself is reached.
            if bytes.len() > HEADER_BYTES {
                (bytes[0], bytes[1]) = (FORMAT, codec);
                let length = (bytes.len() - HEADER_BYTES) as u32;
                bytes[2..CHECKSUM_AT].copy_from_slice(&length.to_le_bytes());
                let right = checksum(&bytes[..CHECKSUM_AT], &bytes[HEADER_BYTES..]);
                bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&right);
                drop(Envelope::decode(&bytes));
            }
        }
    }

    #[test]
    fn labels_read_back() {
        let label = Label {
            row: "r1".into(),
            at: Some(7),
            value: LabelValue::Distribution(vec![0.25, 0.75]),
            source: Some("desk".into()),
            weight: 0.5,
            supersedes: Some(12),
        };
        let envelope = Envelope { schema_version: 3, record: Record::Labels(vec![label]) };
        assert_eq!(Envelope::decode(&envelope.clone().encode().unwrap()).unwrap(), envelope);
    }
}
