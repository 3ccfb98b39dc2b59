//! IDX files, the format that MNIST and its kin come in: a magic number, dimensions, and bytes.

use bytes::Bytes;

use super::Failure;
use crate::http::body::{Encoding, decompress};

/// Bytes that an IDX file may unpack to.
const UNPACKED_BYTES_MAX: usize = 4 << 30;

/// An IDX array of unsigned bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Idx {
    /// Items.
    pub(super) count: usize,
    /// The shape of one item; empty for labels.
    pub(super) shape: Vec<usize>,
    /// All items.
    pub(super) bytes: Vec<u8>,
}

impl Idx {
    /// Reads a file's bytes, gzipped or plain.
    pub(super) fn read(file: &[u8]) -> Result<Idx, Failure> {
        if !file.starts_with(&[0x1f, 0x8b]) {
            return Idx::parse(file);
        }
        let bytes = decompress(Encoding::Gzip, Bytes::copy_from_slice(file), UNPACKED_BYTES_MAX)?;
        Idx::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Idx, Failure> {
        let (Some(&[0, 0, 8, dimensions]), rest) = (bytes.first_chunk::<4>(), bytes.get(4..).unwrap_or_default()) else {
            return Err("not an IDX file of unsigned bytes".into());
        };
        let dimensions = usize::from(dimensions);
        let (Some(sizes), Some(items)) = (rest.get(..dimensions * 4), rest.get(dimensions * 4..)) else {
            return Err("the IDX file ends within its header".into());
        };
        let (words, _) = sizes.as_chunks::<4>();
        let sizes: Vec<usize> = words.iter().map(|&word| u32::from_be_bytes(word) as usize).collect();
        let Some((&count, shape)) = sizes.split_first() else { return Err("the IDX file has no dimension".into()) };
        let wanted = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if wanted != Some(items.len()) {
            return Err(format!("the IDX file's header says {sizes:?}, but {} bytes follow", items.len()).into());
        }
        Ok(Idx { count, shape: shape.to_vec(), bytes: items.to_vec() })
    }

    /// The bytes of items `start` to `end`.
    pub(super) fn items(&self, start: usize, end: usize) -> &[u8] {
        let width: usize = self.shape.iter().product();
        &self.bytes[start * width..end * width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_held_to_their_contents() {
        let file = [0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6];
        let idx = Idx::read(&file).unwrap();
        assert_eq!((idx.count, idx.shape.as_slice(), idx.items(1, 2)), (2, &[3][..], &[4, 5, 6][..]));
        assert!(Idx::read(&file[..17]).is_err());
        assert!(Idx::read(&file[..9]).is_err());
        assert!(Idx::read(&[0, 0, 9, 1, 0, 0, 0, 0]).is_err());
        assert!(Idx::read(&[]).is_err());
    }
}
