//! The newest rows of each class, as they came: what a detector learns once more when it looks through other weights.

use bytes::Bytes;
use candle_core::{DType, Device, Result, Tensor};

use crate::rows::{Block, Element, Rows, Target};

pub(super) const NAMES: [&str; 2] = ["lesson_rows", "lesson_order"];

/// Rows of bytes, each class in places of its own.
#[derive(Debug)]
pub(super) struct Lessons {
    /// Of each class.
    capacity: usize,
    width: usize,
    /// `[2 · capacity, width]`
    rows: Tensor,
    /// `[2 · capacity]`: how many rows had come when this one did, itself included; 0 where there is none yet.
    order: Tensor,
}

impl Lessons {
    pub(super) fn new(capacity: usize, width: usize) -> Result<Lessons> {
        let places = 2 * capacity;
        let rows = Tensor::zeros((places, width), DType::U8, &Device::Cpu)?;
        Ok(Lessons { capacity, width, rows, order: Tensor::zeros(places, DType::F64, &Device::Cpu)? })
    }

    /// Bytes of the tensors.
    pub(super) fn bytes(capacity: usize, width: u64) -> u64 {
        2 * capacity as u64 * (width + size_of::<f64>() as u64)
    }

    pub(super) fn tensors(&self) -> [&Tensor; 2] {
        [&self.rows, &self.order]
    }

    pub(super) fn restore(&mut self, tensors: [Tensor; 2]) -> std::result::Result<(), String> {
        for ((name, like), tensor) in NAMES.iter().zip(self.tensors()).zip(&tensors) {
            if tensor.shape() != like.shape() || tensor.dtype() != like.dtype() {
                return Err(format!("{name} is {:?}, expected {:?}", tensor.shape(), like.shape()));
            }
        }
        [self.rows, self.order] = tensors;
        Ok(())
    }

    /// Keeps rows; where there are enough of a class, its oldest ones go.
    pub(super) fn push(&mut self, rows: &Rows, classes: &[u32]) -> Result<()> {
        let Some(block) = rows.blocks.first() else { return Ok(()) };
        let mut order = self.order.to_vec1::<f64>()?;
        let mut come = order.iter().copied().fold(0.0, f64::max);
        for (row, &class) in block.bytes.chunks_exact(self.width.max(1)).zip(classes) {
            let first = class as usize * self.capacity;
            let of_class = first..(first + self.capacity).min(order.len());
            let Some(oldest) = of_class.min_by(|&one, &other| order[one].total_cmp(&order[other])) else { continue };
            come += 1.0;
            order[oldest] = come;
            self.rows.slice_set(&Tensor::from_slice(row, (1, self.width), &Device::Cpu)?, 0, oldest)?;
        }
        self.order = Tensor::from_vec(order, 2 * self.capacity, &Device::Cpu)?;
        Ok(())
    }

    /// The places that have rows, in the order in which they came.
    pub(super) fn places(&self) -> Result<Vec<usize>> {
        let order = self.order.to_vec1::<f64>()?;
        let mut places: Vec<usize> = (0..order.len()).filter(|&place| order[place] > 0.0).collect();
        places.sort_by(|&one, &other| order[one].total_cmp(&order[other]));
        Ok(places)
    }

    /// The rows at these places.
    pub(super) fn rows(&self, places: &[usize]) -> Result<(Rows, Vec<u32>)> {
        let classes: Vec<u32> = places.iter().map(|place| (place / self.capacity.max(1)) as u32).collect();
        let mut bytes = Vec::with_capacity(places.len() * self.width);
        // One after the other: all at once would be held twice.
        for &place in places {
            bytes.extend(self.rows.get(place)?.to_vec1::<u8>()?);
        }
        let block = Block { element: Element::U8, width: self.width, bytes: Bytes::from(bytes) };
        let target = Some(Target::Classes(classes.clone()));
        Ok((Rows { count: places.len(), blocks: vec![block], target, ..Rows::default() }, classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lessons: &mut Lessons, bytes: &'static [u8], classes: &[u32]) {
        let block = Block { element: Element::U8, width: 1, bytes: Bytes::from_static(bytes) };
        lessons.push(&Rows { count: bytes.len(), blocks: vec![block], ..Rows::default() }, classes).unwrap();
    }

    fn all(lessons: &Lessons) -> (Vec<u8>, Vec<u32>) {
        let (rows, classes) = lessons.rows(&lessons.places().unwrap()).unwrap();
        (rows.blocks[0].bytes.to_vec(), classes)
    }

    #[test]
    fn the_newest_of_each_class_are_kept_in_their_order() {
        let mut lessons = Lessons::new(2, 1).unwrap();
        assert!(lessons.places().unwrap().is_empty());
        push(&mut lessons, &[1, 2, 3], &[0, 1, 0]);
        assert_eq!(all(&lessons), (vec![1, 2, 3], vec![0, 1, 0]));
        push(&mut lessons, &[4, 5, 6], &[0, 0, 1]);
        assert_eq!(all(&lessons), (vec![2, 4, 5, 6], vec![1, 0, 0, 1]));
        push(&mut lessons, &[7], &[1]);
        assert_eq!(all(&lessons), (vec![4, 5, 6, 7], vec![0, 0, 1, 1]));

        let mut other = Lessons::new(2, 1).unwrap();
        let copies = lessons.tensors().map(|tensor| tensor.copy().unwrap());
        other.restore(copies).unwrap();
        push(&mut other, &[8], &[0]);
        assert_eq!(all(&other), (vec![5, 6, 7, 8], vec![0, 1, 1, 0]), "it goes on where the other stood");
        assert_eq!(all(&lessons), (vec![4, 5, 6, 7], vec![0, 0, 1, 1]));
        assert!(Lessons::new(3, 1).unwrap().restore(other.tensors().map(Tensor::clone)).is_err());
    }
}
