//! Rows that are kept: a reservoir of all that came, each row with the same chance (Vitter 1985), or the newest ones.
//!
//! Its storage is taken at once and whole, so its bytes are those of its capacity from the first row on. It lies in chunks, so that a
//! buffer which shrinks or grows never has the old and the new one at once. Draws are keyed by the seed and by counters of rows and
//! steps, so they replay.

use bytes::Bytes;
use candle_core::{CpuStorage, DType, Device, Error, InplaceOp1, Layout, Result, Tensor};
use rand_chacha::rand_core::RngCore;

use crate::ledger::{Guard, Ledger, Part};
use crate::network::random;
use crate::rows::{Block, Element, Rows, Target};

/// How a row of a stream is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Of its features.
    pub element: Element,
    /// How many.
    pub width: usize,
    /// Its label is a class, and not a value.
    pub classes: bool,
}

impl RowLayout {
    /// That of some rows with labels.
    pub fn of(rows: &Rows) -> Option<RowLayout> {
        let ([block], Some(target)) = (rows.blocks.as_slice(), &rows.target) else { return None };
        Some(RowLayout { element: block.element, width: block.width, classes: matches!(target, Target::Classes(_)) })
    }

    fn row_bytes(self) -> usize {
        self.width * self.element.bytes()
    }
}

/// Which rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Any of all that came.
    Reservoir,
    /// The last that came.
    Newest,
}

/// Rows that are kept.
#[derive(Debug)]
pub struct Buffer {
    keeps: Keeps,
    capacity: u64,
    seed: u64,
    /// Rows that came.
    seen: u64,
    layout: RowLayout,
    /// Each has [`RowLayout::chunk_rows`] rows, but the last, which has the rest.
    chunks: Vec<Chunk>,
}

/// Some rows of a buffer, one after the other.
#[derive(Debug)]
struct Chunk {
    /// Bytes.
    features: Tensor,
    /// As many labels, by their bits.
    labels: Tensor,
    _guard: Guard,
}

/// Bytes of a label.
const LABEL_BYTES: u64 = 4;
/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 1 << 20;

impl RowLayout {
    /// Rows of a chunk.
    fn chunk_rows(self) -> u64 {
        (CHUNK_BYTES / (self.row_bytes() + LABEL_BYTES as usize)).max(1) as u64
    }
}

impl Chunk {
    fn new(features: Tensor, labels: Tensor, ledger: &Ledger) -> Chunk {
        let bytes = features.elem_count() as u64 + labels.elem_count() as u64 * LABEL_BYTES;
        Chunk { features, labels, _guard: ledger.take(Part::Learner, bytes) }
    }

    fn zero(rows: u64, layout: RowLayout, ledger: &Ledger) -> Result<Chunk> {
        let features = Tensor::zeros(rows as usize * layout.row_bytes(), DType::U8, &Device::Cpu)?;
        Ok(Chunk::new(features, Tensor::zeros(rows as usize, DType::U32, &Device::Cpu)?, ledger))
    }

    fn rows(&self) -> u64 {
        self.labels.elem_count() as u64
    }
}

impl Buffer {
    /// One that has seen nothing.
    pub fn new(keeps: Keeps, capacity: u64, seed: u64, layout: RowLayout, ledger: &Ledger) -> Result<Buffer> {
        let mut buffer = Buffer { keeps, capacity, seed, seen: 0, layout, chunks: Vec::new() };
        buffer.fit(ledger)?;
        Ok(buffer)
    }

    /// Rows of each chunk.
    fn chunk_sizes(&self) -> Vec<u64> {
        let each = self.layout.chunk_rows();
        (0..self.capacity.div_ceil(each)).map(|chunk| each.min(self.capacity - chunk * each)).collect()
    }

    /// Lets go of chunks beyond the capacity, and takes those that are missing. Rows stay where they are.
    fn fit(&mut self, ledger: &Ledger) -> Result<()> {
        let sizes = self.chunk_sizes();
        self.chunks.truncate(sizes.len());
        for (number, &rows) in sizes.iter().enumerate() {
            match self.chunks.get(number).map(Chunk::rows) {
                None => self.chunks.push(Chunk::zero(rows, self.layout, ledger)?),
                Some(there) if there != rows => {
                    // The last one, before or now: one chunk at most is there twice.
                    let fresh = Chunk::zero(rows, self.layout, ledger)?;
                    let first = number as u64 * self.layout.chunk_rows();
                    let stay: Vec<u64> = (first..first + there.min(rows)).collect();
                    let stay = self.rows(&stay)?;
                    self.chunks[number] = fresh;
                    for row in 0..stay.count {
                        self.write(first + row as u64, &stay, row)?;
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What one takes for rows of so many bytes.
    pub fn bytes(capacity: u64, row_bytes: u64) -> u64 {
        capacity.saturating_mul(row_bytes.saturating_add(LABEL_BYTES))
    }

    /// Rows that it has.
    pub fn len(&self) -> u64 {
        self.seen.min(self.capacity)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that it can have.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Rows that came.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How its rows are laid out.
    pub fn layout(&self) -> RowLayout {
        self.layout
    }

    /// Its storage, chunk by chunk: features and labels.
    pub fn tensors(&self) -> impl Iterator<Item = [&Tensor; 2]> {
        self.chunks.iter().map(|chunk| [&chunk.features, &chunk.labels])
    }

    /// Chunks that one of this layout has for so many rows.
    pub fn chunk_count(&self, capacity: u64) -> u64 {
        capacity.div_ceil(self.layout.chunk_rows())
    }

    /// Takes rows in, one after the other.
    pub fn insert(&mut self, rows: &Rows) -> Result<()> {
        if RowLayout::of(rows) != Some(self.layout) {
            return Err(Error::Msg("rows of another layout than the buffer's".into()));
        }
        for row in 0..rows.count {
            let at = match self.keeps {
                _ if self.seen < self.capacity => self.seen,
                Keeps::Newest => self.seen % self.capacity.max(1),
                Keeps::Reservoir => below(&mut random::stream(self.seed, self.seen, "reservoir"), self.seen + 1),
            };
            self.seen += 1;
            if at < self.capacity {
                self.write(at, rows, row)?;
            }
        }
        Ok(())
    }

    /// Puts row `row` of `rows` at a place.
    fn write(&self, place: u64, rows: &Rows, row: usize) -> Result<()> {
        let (Some(block), Some(target)) = (rows.blocks.first(), &rows.target) else {
            return Err(Error::Msg("a buffer keeps rows with features and labels".into()));
        };
        let (each, width) = (self.layout.chunk_rows(), self.layout.row_bytes());
        let (chunk, at) = (&self.chunks[(place / each) as usize], (place % each) as usize);
        chunk.features.inplace_op1(&Write { at: at * width, values: &block.bytes[row * width..][..width] })?;
        let label = match target {
            Target::Classes(classes) => classes[row],
            Target::Values(values) => values[row].to_bits(),
        };
        chunk.labels.inplace_op1(&Label { at, label })
    }

    /// So many different places with rows, each set of them with the same chance; all of them where there are fewer.
    pub fn draw(&self, count: usize, ordinal: u64) -> Vec<u64> {
        let mut generator = random::stream(self.seed, ordinal, "replay");
        choose(&mut generator, self.len(), count as u64)
    }

    /// The rows at some places.
    pub fn rows(&self, places: &[u64]) -> Result<Rows> {
        let (each, width) = (self.layout.chunk_rows(), self.layout.row_bytes());
        let (mut bytes, mut labels) = (Vec::with_capacity(places.len() * width), Vec::with_capacity(places.len()));
        for &place in places {
            let (chunk, at) = (&self.chunks[(place / each) as usize], (place % each) as usize);
            bytes.extend_from_slice(&slice::<u8>(&chunk.features.storage_and_layout().0)?[at * width..][..width]);
            labels.push(slice::<u32>(&chunk.labels.storage_and_layout().0)?[at]);
        }
        let labels = labels.into_iter();
        let target = if self.layout.classes {
            Target::Classes(labels.collect())
        } else {
            Target::Values(labels.map(f32::from_bits).collect())
        };
        let block = Block { element: self.layout.element, width: self.layout.width, bytes: Bytes::from(bytes) };
        Ok(Rows { count: places.len(), blocks: vec![block], target: Some(target), ..Rows::default() })
    }

    /// Goes on with another capacity. Of a reservoir that shrinks any of its rows stay, with the same chance; one that grows takes
    /// every row in until it is full again, so for a while newer rows are more likely to be in it.
    pub fn resize(&mut self, capacity: u64, ledger: &Ledger) -> Result<()> {
        let kept = self.len().min(capacity);
        match self.keeps {
            Keeps::Reservoir if kept < self.len() => {
                let mut places = choose(&mut random::stream(self.seed, self.seen, "resize"), self.len(), kept);
                places.sort_unstable();
                // Each moves down, if at all, to a place that was moved before it or does not stay.
                for (to, from) in places.into_iter().enumerate() {
                    self.write(to as u64, &self.rows(&[from])?, 0)?;
                }
            }
            Keeps::Reservoir => {}
            Keeps::Newest => {
                // Oldest first.
                let places: Vec<u64> = (self.seen - kept..self.seen).map(|row| row % self.capacity.max(1)).collect();
                let rows = self.rows(&places)?;
                (0..rows.count).try_for_each(|row| self.write(row as u64, &rows, row))?;
            }
        }
        self.capacity = capacity;
        self.fit(ledger)?;
        // As if as many had come as fill it: a full one goes on with the law of all that came.
        self.seen = if kept < capacity || self.keeps == Keeps::Newest { kept } else { self.seen };
        Ok(())
    }

    /// One like this that was saved as [`Buffer::tensors`] and [`Buffer::seen`].
    pub fn restored(&self, capacity: u64, seen: u64, tensors: Vec<[Tensor; 2]>, ledger: &Ledger) -> Result<Buffer> {
        let Buffer { keeps, seed, layout, .. } = *self;
        let mut buffer = Buffer { keeps, capacity, seed, seen, layout, chunks: Vec::new() };
        let given = tensors.iter().map(|[features, labels]| (features.elem_count(), labels.elem_count() as u64));
        let wanted = buffer.chunk_sizes().into_iter().map(|rows| (rows as usize * layout.row_bytes(), rows));
        if !given.eq(wanted) {
            return Err(Error::Msg(format!("the chunks of a buffer of {capacity} rows have other sizes")));
        }
        buffer.chunks = tensors.into_iter().map(|[features, labels]| Chunk::new(features, labels, ledger)).collect();
        Ok(buffer)
    }
}

/// A number below `limit`, each with the same chance.
fn below(generator: &mut impl RngCore, limit: u64) -> u64 {
    // The high half of a product of 128 bits: what is not quite even is less than one part in 2⁶⁴ / limit.
    ((u128::from(generator.next_u64()) * u128::from(limit)) >> 64) as u64
}

/// `count` different numbers below `limit` (Floyd), in the order in which they were drawn; all of them where there are fewer.
fn choose(generator: &mut impl RngCore, limit: u64, count: u64) -> Vec<u64> {
    let mut chosen = Vec::with_capacity(count.min(limit) as usize);
    for last in limit - count.min(limit)..limit {
        let drawn = below(generator, last + 1);
        chosen.push(if chosen.contains(&drawn) { last } else { drawn });
    }
    chosen
}

fn slice<T: candle_core::WithDType>(storage: &candle_core::Storage) -> Result<&[T]> {
    match storage {
        candle_core::Storage::Cpu(storage) => T::cpu_storage_as_slice(storage),
        _ => Err(Error::Msg("the buffer is not on the CPU".into())),
    }
}

/// Writes bytes into a tensor of them.
struct Write<'a> {
    at: usize,
    values: &'a [u8],
}

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "keep a row"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let CpuStorage::U8(bytes) = storage else { return Err(Error::Msg("the buffer does not hold bytes".into())) };
        bytes[self.at..][..self.values.len()].copy_from_slice(self.values);
        Ok(())
    }
}

/// Writes a label.
struct Label {
    at: usize,
    label: u32,
}

impl InplaceOp1 for Label {
    fn name(&self) -> &'static str {
        "keep a label"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let CpuStorage::U32(labels) = storage else { return Err(Error::Msg("the buffer does not hold labels".into())) };
        labels[self.at] = self.label;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: RowLayout = RowLayout { element: Element::U8, width: 2, classes: true };

    fn rows(range: std::ops::Range<u32>) -> Rows {
        let bytes: Vec<u8> = range.clone().flat_map(|row| [row as u8, (row >> 8) as u8]).collect();
        let block = Block { element: Element::U8, width: 2, bytes: bytes.into() };
        Rows { count: range.len(), blocks: vec![block], target: Some(Target::Classes(range.collect())), ..Rows::default() }
    }

    fn labels(buffer: &Buffer) -> Vec<u32> {
        let rows = buffer.rows(&(0..buffer.len()).collect::<Vec<_>>()).unwrap();
        let Some(Target::Classes(classes)) = rows.target else { unreachable!("classes went in") };
        for (class, row) in classes.iter().zip(rows.blocks[0].bytes.chunks(2)) {
            assert_eq!(*class as u16, u16::from_le_bytes([row[0], row[1]]), "a row keeps its label");
        }
        classes
    }

    /// Each of 200 rows is in a reservoir of 20 with the same chance: chi-square of 4,000 of them.
    #[test]
    fn a_reservoir_keeps_every_row_with_the_same_chance() {
        let ledger = Ledger::default();
        let (count, capacity, rounds) = (200u32, 20u64, 4000u64);
        let mut kept = vec![0u64; count as usize];
        for seed in 0..rounds {
            let mut buffer = Buffer::new(Keeps::Reservoir, capacity, seed, LAYOUT, &ledger).unwrap();
            // The law does not depend on how rows are cut into steps.
            for first in (0..count).step_by(7) {
                buffer.insert(&rows(first..(first + 7).min(count))).unwrap();
            }
            labels(&buffer).iter().for_each(|&row| kept[row as usize] += 1);
        }
        let expected = (rounds * capacity) as f64 / f64::from(count);
        let chi_square: f64 = kept.iter().map(|&kept| (kept as f64 - expected).powi(2) / expected).sum();
        // Of 199 degrees of freedom less the dependence within a round: 99.9 % are below 267.
        assert!(chi_square < 267.0, "{chi_square}");
        assert!(chi_square > 100.0, "{chi_square}: too even to be chance");
    }

    #[test]
    fn draws_are_different_places_and_every_one_as_likely() {
        let ledger = Ledger::default();
        let mut buffer = Buffer::new(Keeps::Reservoir, 10, 3, LAYOUT, &ledger).unwrap();
        assert!(buffer.draw(4, 0).is_empty());
        buffer.insert(&rows(0..10)).unwrap();
        let mut counts = [0; 10];
        for ordinal in 0..5000 {
            let places = buffer.draw(4, ordinal);
            assert_eq!(places, buffer.draw(4, ordinal), "the same twice");
            let mut sorted = places.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), 4);
            places.iter().for_each(|&place| counts[place as usize] += 1);
        }
        assert!(counts.iter().all(|&count: &i32| (count - 2000).abs() < 200), "{counts:?}");
        assert_eq!(buffer.draw(20, 1).len(), 10, "all there are");
    }

    #[test]
    fn the_newest_are_kept_in_a_ring_and_a_resize_keeps_rows() {
        let ledger = Ledger::default();
        let mut buffer = Buffer::new(Keeps::Newest, 4, 0, LAYOUT, &ledger).unwrap();
        buffer.insert(&rows(0..6)).unwrap();
        assert_eq!(labels(&buffer), [4, 5, 2, 3]);
        assert_eq!(ledger.used(Part::Learner), 4 * 6);
        buffer.resize(2, &ledger).unwrap();
        assert_eq!(labels(&buffer), [4, 5]);
        buffer.insert(&rows(6..7)).unwrap();
        assert_eq!(labels(&buffer), [6, 5]);
        buffer.resize(8, &ledger).unwrap();
        assert_eq!(labels(&buffer), [5, 6]);
        let mut reservoir = Buffer::new(Keeps::Reservoir, 8, 0, LAYOUT, &ledger).unwrap();
        reservoir.insert(&rows(0..100)).unwrap();
        let before = labels(&reservoir);
        reservoir.resize(3, &ledger).unwrap();
        let after = labels(&reservoir);
        assert!(after.len() == 3 && after.iter().all(|row| before.contains(row)));
        let mut sorted = after.clone();
        sorted.dedup();
        assert_eq!(sorted.len(), 3, "no row is there twice");
    }

    /// Of many chunks no more than one is there twice while a buffer shrinks or grows, and every row keeps its label.
    #[test]
    fn a_buffer_of_many_chunks_is_never_there_twice() {
        let ledger = Ledger::default();
        let layout = RowLayout { element: Element::U8, width: 2, classes: true };
        let each = layout.chunk_rows();
        let mut buffer = Buffer::new(Keeps::Reservoir, 5 * each + 7, 1, layout, &ledger).unwrap();
        for first in (0..6 * each as u32).step_by(1 << 16) {
            buffer.insert(&rows(first..(first + (1 << 16)).min(6 * each as u32))).unwrap();
        }
        for capacity in [2 * each + 3, 4 * each, each / 2] {
            let before = ledger.used(Part::Learner);
            ledger.reset_high_water();
            buffer.resize(capacity, &ledger).unwrap();
            let after = ledger.used(Part::Learner);
            assert_eq!(after, Buffer::bytes(capacity, 2));
            assert!(ledger.part_high_water(Part::Learner) <= before.max(after) + CHUNK_BYTES as u64);
            let kept = labels(&buffer);
            assert_eq!(kept.len() as u64, buffer.len());
        }
        assert_eq!(buffer.len(), each / 2);
    }
}
