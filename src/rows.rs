//! Rows: what one step learns from and what one query asks about, in typed column buffers.
//!
//! A door decodes straight into these buffers, the log stores them, a fold reads them: nobody in between knows their meaning.
//! Bytes are little-endian, and `u8` stays `u8` (four times smaller than `f32` for pictures) until a fold widens it. A value that
//! is missing is never a NaN: its column has a second number that says so, or a bucket for it.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The type of a feature's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Element {
    /// Unsigned bytes, as pictures have them; a network reads them divided by 255.
    U8,
    /// 32-bit floats; never NaN or infinite.
    F32,
}

impl Element {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Element::U8 => 1,
            Element::F32 => 4,
        }
    }
}

/// One run of features of all the rows: `rows × width` elements, row by row.
///
/// All columns of a stream form one block in the order of the schema: a numeric column as its number, an optional one as two (the
/// value, and 1 where it is missing), a categorical one as its bucket. Each tensor field is a block of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The type of the elements.
    pub element: Element,
    /// Elements of one row.
    pub width: usize,
    /// `rows × width` elements, little-endian.
    pub bytes: Bytes,
}

impl Block {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.width * self.element.bytes()
    }
}

/// What is to be learned about each row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// The number of each row's class.
    Classes(Vec<u32>),
    /// Each row's value.
    Values(Vec<f32>),
}

/// The class of a row that has none yet.
pub const NO_CLASS: u32 = u32::MAX;
/// The value of a row that has none yet; no label is this.
pub const NO_VALUE: f32 = f32::NAN;

impl Target {
    /// Whether a row has its label: in a stream of late labels it may come without.
    pub fn is_known(&self, row: usize) -> bool {
        match self {
            Target::Classes(classes) => classes[row] != NO_CLASS,
            Target::Values(values) => !values[row].is_nan(),
        }
    }

    fn slice(&self, range: Range<usize>) -> Target {
        match self {
            Target::Classes(classes) => Target::Classes(classes[range].to_vec()),
            Target::Values(values) => Target::Values(values[range].to_vec()),
        }
    }

    fn gather(&self, numbers: &[usize]) -> Target {
        match self {
            Target::Classes(classes) => Target::Classes(numbers.iter().map(|&number| classes[number]).collect()),
            Target::Values(values) => Target::Values(numbers.iter().map(|&number| values[number]).collect()),
        }
    }

    /// All of them, one after the other; none where they are not of one form.
    fn concatenate(parts: &[&Target]) -> Option<Target> {
        let mut all = Target::slice(parts.first()?, 0..0);
        for part in parts {
            match (&mut all, part) {
                (Target::Classes(classes), Target::Classes(more)) => classes.extend(more),
                (Target::Values(values), Target::Values(more)) => values.extend(more),
                _ => return None,
            }
        }
        Some(all)
    }
}

/// Some rows of one stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// How many.
    pub count: usize,
    /// The features.
    pub blocks: Vec<Block>,
    /// The labels; none in a query and in a stream without a target.
    pub target: Option<Target>,
    /// Each row's id, where the stream's schema has one.
    pub ids: Option<Vec<String>>,
    /// Each row's event time in milliseconds since 1970, where the stream's schema has one.
    pub times_ms: Option<Vec<i64>>,
}

impl Rows {
    /// Rows `range` of these; features are shared, not copied.
    pub fn slice(&self, range: Range<usize>) -> Rows {
        assert!(range.start <= range.end && range.end <= self.count, "rows {range:?} of {}", self.count);
        Rows {
            count: range.len(),
            blocks: self
                .blocks
                .iter()
                .map(|block| Block {
                    bytes: block.bytes.slice(range.start * block.row_bytes()..range.end * block.row_bytes()),
                    ..*block
                })
                .collect(),
            target: self.target.as_ref().map(|target| target.slice(range.clone())),
            ids: self.ids.as_ref().map(|ids| ids[range.clone()].to_vec()),
            times_ms: self.times_ms.as_ref().map(|times| times[range].to_vec()),
        }
    }

    /// The rows of these numbers, in this order, copied: nothing of the others stays in memory for them.
    pub fn gather(&self, numbers: &[usize]) -> Rows {
        let block = |block: &Block| {
            let row = |&number: &usize| &block.bytes[number * block.row_bytes()..(number + 1) * block.row_bytes()];
            let bytes: Vec<&[u8]> = numbers.iter().map(row).collect();
            Block { bytes: bytes.concat().into(), ..*block }
        };
        Rows {
            count: numbers.len(),
            blocks: self.blocks.iter().map(block).collect(),
            target: self.target.as_ref().map(|target| target.gather(numbers)),
            ids: self.ids.as_ref().map(|ids| numbers.iter().map(|&number| ids[number].clone()).collect()),
            times_ms: self.times_ms.as_ref().map(|times| numbers.iter().map(|&number| times[number]).collect()),
        }
    }

    /// All rows of `parts`, one after the other, with their labels where all parts have some; ids and times are left out. None
    /// where there are no parts.
    pub fn concatenate(parts: &[&Rows]) -> Option<Rows> {
        let (first, others) = parts.split_first()?;
        if others.is_empty() {
            return Some((*first).clone());
        }
        let blocks = first.blocks.iter().enumerate().map(|(index, block)| {
            let bytes: Vec<&[u8]> = parts.iter().map(|part| part.blocks[index].bytes.as_ref()).collect();
            Block { bytes: bytes.concat().into(), ..*block }
        });
        let targets: Option<Vec<&Target>> = parts.iter().map(|part| part.target.as_ref()).collect();
        let target = targets.and_then(|targets| Target::concatenate(&targets));
        Some(Rows { count: parts.iter().map(|part| part.count).sum(), blocks: blocks.collect(), target, ..Rows::default() })
    }

    /// Decoded bytes of the features of one row.
    pub fn row_bytes(&self) -> usize {
        self.blocks.iter().map(Block::row_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_shares_the_features() {
        let rows = Rows {
            count: 3,
            blocks: vec![Block { element: Element::U8, width: 2, bytes: Bytes::from_static(&[1, 2, 3, 4, 5, 6]) }],
            target: Some(Target::Classes(vec![7, 8, 9])),
            ids: Some(vec!["a".into(), "b".into(), "c".into()]),
            times_ms: None,
        };
        let tail = rows.slice(1..3);
        assert_eq!(tail.count, 2);
        assert_eq!(&tail.blocks[0].bytes[..], &[3, 4, 5, 6]);
        assert_eq!(tail.blocks[0].bytes.as_ptr(), rows.blocks[0].bytes[2..].as_ptr());
        assert_eq!(tail.target, Some(Target::Classes(vec![8, 9])));
        assert_eq!(tail.ids, Some(vec!["b".into(), "c".into()]));
    }

    #[test]
    fn rows_are_gathered_and_joined_with_their_labels() {
        let block = |bytes: &'static [u8]| Block { element: Element::U8, width: 2, bytes: Bytes::from_static(bytes) };
        let rows = |bytes: &'static [u8], classes: &[u32]| Rows {
            count: classes.len(),
            blocks: vec![block(bytes)],
            target: Some(Target::Classes(classes.to_vec())),
            ..Rows::default()
        };
        let (first, second) = (rows(&[1, 2, 3, 4, 5, 6], &[7, 8, 9]), rows(&[10, 11], &[12]));
        let some = first.gather(&[2, 0]);
        assert_eq!(some, rows(&[5, 6, 1, 2], &[9, 7]));
        assert_eq!(Rows::concatenate(&[&some, &second]), Some(rows(&[5, 6, 1, 2, 10, 11], &[9, 7, 12])));
        let unlabelled = Rows { target: None, ..second };
        assert_eq!(Rows::concatenate(&[&some, &unlabelled]).unwrap().target, None);
        assert_eq!(Rows::concatenate(&[]), None);
    }
}
