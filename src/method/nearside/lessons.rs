//! The newest rows of each class, as they came: what a detector learns once more when it looks through other weights.

use bytes::Bytes;
use candle_core::{DType, Device, Result, Tensor};

use crate::rows::{Block, Element, Rows, Target};

pub(super) const NAMES: [&str; 2] = ["lesson_rows", "lesson_classes"];
/// The class of a place where there is no row yet.
const NONE: u8 = u8::MAX;

/// Rows of bytes in the order in which they came.
#[derive(Debug)]
pub(super) struct Lessons {
    /// Of each class.
    capacity: usize,
    width: usize,
    /// `[2 · capacity, width]`
    rows: Tensor,
    /// `[2 · capacity]`
    classes: Tensor,
}

impl Lessons {
    pub(super) fn new(capacity: usize, width: usize) -> Result<Lessons> {
        let rows = Tensor::zeros((2 * capacity, width), DType::U8, &Device::Cpu)?;
        let classes = Tensor::from_vec(vec![NONE; 2 * capacity], 2 * capacity, &Device::Cpu)?;
        Ok(Lessons { capacity, width, rows, classes })
    }

    /// Bytes of the tensors; while rows are kept or taken out there are twice as many.
    pub(super) fn bytes(capacity: usize, width: u64) -> u64 {
        2 * capacity as u64 * (width + 1)
    }

    pub(super) fn tensors(&self) -> [&Tensor; 2] {
        [&self.rows, &self.classes]
    }

    pub(super) fn restore(&mut self, tensors: [Tensor; 2]) -> std::result::Result<(), String> {
        for ((name, like), tensor) in NAMES.iter().zip(self.tensors()).zip(&tensors) {
            if tensor.shape() != like.shape() || tensor.dtype() != DType::U8 {
                return Err(format!("{name} is {:?}, expected {:?}", tensor.shape(), like.shape()));
            }
        }
        [self.rows, self.classes] = tensors;
        Ok(())
    }

    /// Keeps rows; where there are enough of a class, its oldest ones go.
    pub(super) fn push(&mut self, rows: &Rows, classes: &[u32]) -> Result<()> {
        let (mut kept, mut kept_classes) = self.kept()?;
        let Some(block) = rows.blocks.first() else { return Ok(()) };
        for (row, &class) in block.bytes.chunks_exact(self.width.max(1)).zip(classes) {
            let class = class as u8;
            let of_class = kept_classes.iter().filter(|&&kept| kept == class).count();
            if of_class >= self.capacity
                && let Some(oldest) = kept_classes.iter().position(|&kept| kept == class)
            {
                kept_classes.remove(oldest);
                kept.drain(oldest * self.width..(oldest + 1) * self.width);
            }
            kept_classes.push(class);
            kept.extend_from_slice(row);
        }
        let places = 2 * self.capacity;
        kept.resize(places * self.width, 0);
        kept_classes.resize(places, NONE);
        self.rows = Tensor::from_vec(kept, (places, self.width), &Device::Cpu)?;
        self.classes = Tensor::from_vec(kept_classes, places, &Device::Cpu)?;
        Ok(())
    }

    fn kept(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let (mut rows, mut classes) = (self.rows.flatten_all()?.to_vec1::<u8>()?, self.classes.to_vec1::<u8>()?);
        classes.retain(|&class| class != NONE);
        rows.truncate(classes.len() * self.width);
        Ok((rows, classes))
    }

    /// Those that are kept, in the order in which they came.
    pub(super) fn rows(&self) -> Result<Rows> {
        let (rows, classes) = self.kept()?;
        let block = Block { element: Element::U8, width: self.width, bytes: Bytes::from(rows) };
        let target = Some(Target::Classes(classes.iter().map(|&class| u32::from(class)).collect()));
        Ok(Rows { count: classes.len(), blocks: vec![block], target, ..Rows::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_class_are_kept_in_their_order() {
        let mut lessons = Lessons::new(2, 1).unwrap();
        assert_eq!(lessons.rows().unwrap().count, 0);
        let push = |lessons: &mut Lessons, bytes: &'static [u8], classes: &[u32]| {
            let block = Block { element: Element::U8, width: 1, bytes: Bytes::from_static(bytes) };
            lessons.push(&Rows { count: bytes.len(), blocks: vec![block], ..Rows::default() }, classes).unwrap();
        };
        push(&mut lessons, &[1, 2, 3], &[0, 1, 0]);
        push(&mut lessons, &[4, 5, 6], &[0, 0, 1]);
        let kept = lessons.rows().unwrap();
        assert_eq!((&kept.blocks[0].bytes[..], kept.target.unwrap()), (&[2, 4, 5, 6][..], Target::Classes(vec![1, 0, 0, 1])));

        let mut other = Lessons::new(2, 1).unwrap();
        let copies = lessons.tensors().map(|tensor| tensor.copy().unwrap());
        other.restore(copies).unwrap();
        assert_eq!(other.rows().unwrap().blocks, lessons.rows().unwrap().blocks);
        assert!(Lessons::new(3, 1).unwrap().restore(other.tensors().map(Tensor::clone)).is_err());
    }
}
