//! What a learner keeps between steps, and what it makes of one.

use candle_core::{Result, Tensor};

use super::Learner;
use super::buffer::{Buffer, Keeps, RowLayout};
use crate::ledger::{Guard, Ledger, Part};
use crate::network::deep_copy;
use crate::rows::{Block, Rows, Target};

/// What a step learns.
#[derive(Debug)]
pub struct Lesson {
    /// Its own rows, and those that are replayed after them.
    pub rows: Rows,
    /// How many are its own: those are scored.
    pub own: usize,
    /// Rows of which the forward chooses some more.
    pub candidates: Option<Rows>,
}

/// A frozen copy of the network.
#[derive(Debug)]
pub struct Teacher {
    /// By layer.
    pub weights: Vec<Vec<Tensor>>,
    _guard: Guard,
}

impl Teacher {
    /// One with these weights, which nobody else may hold.
    pub fn new(weights: Vec<Vec<Tensor>>, ledger: &Ledger) -> Teacher {
        let bytes = held(weights.iter().flatten());
        Teacher { weights, _guard: ledger.take(Part::Learner, bytes) }
    }

    /// A copy of weights.
    pub fn of<'a>(weights: impl Iterator<Item = &'a [Tensor]>, ledger: &Ledger) -> Result<Teacher> {
        let copied = weights.map(|layer| layer.iter().map(deep_copy).collect::<Result<_>>());
        Ok(Teacher::new(copied.collect::<Result<_>>()?, ledger))
    }
}

/// Where the parameters of one layer are held, and how firmly.
#[derive(Debug)]
pub struct Anchor {
    /// Of each parameter's elements, the mean over all consolidations.
    pub importance: Vec<Tensor>,
    /// What they were at the last one.
    pub centre: Vec<Tensor>,
    _guard: Guard,
}

impl Anchor {
    /// One of these tensors, which nobody else may hold.
    pub fn new(importance: Vec<Tensor>, centre: Vec<Tensor>, ledger: &Ledger) -> Anchor {
        let bytes = held(importance.iter().chain(&centre));
        Anchor { importance, centre, _guard: ledger.take(Part::Learner, bytes) }
    }
}

fn held<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
    tensors.map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
}

/// What a learner keeps, beside the anchors that the layers have.
#[derive(Debug)]
pub struct Memory {
    learner: Learner,
    /// Rows that it may replay, or the newest ones.
    pub buffer: Option<Buffer>,
    /// What outputs are held to; none before the first consolidation.
    pub teacher: Option<Teacher>,
    /// Rows that came.
    pub rows: u64,
    /// Consolidations so far.
    pub consolidations: u64,
}

impl Memory {
    /// One that has seen nothing; `capacity` rows are kept at most.
    pub fn new(learner: Learner, capacity: u64, seed: u64, layout: RowLayout, ledger: &Ledger) -> Result<Memory> {
        let buffer = match learner.buffer_rows() {
            0 => None,
            _ => Some(Buffer::new(Memory::keeps(&learner), capacity, seed, layout, ledger)?),
        };
        Ok(Memory { learner, buffer, teacher: None, rows: 0, consolidations: 0 })
    }

    /// One that was saved.
    pub fn restored(
        learner: Learner,
        buffer: Option<Buffer>,
        teacher: Option<Teacher>,
        (rows, consolidations): (u64, u64),
    ) -> Memory {
        Memory { learner, buffer, teacher, rows, consolidations }
    }

    /// Which rows a learner's buffer keeps.
    pub fn keeps(learner: &Learner) -> Keeps {
        if matches!(learner, Learner::Mas { .. }) { Keeps::Newest } else { Keeps::Reservoir }
    }

    /// Whether the network must be consolidated before the next step.
    pub fn is_due(&self) -> bool {
        self.learner.every_rows().is_some_and(|every| self.rows / every > self.consolidations)
    }

    /// The network was consolidated.
    pub fn consolidated(&mut self) {
        self.consolidations = self.learner.every_rows().map_or(0, |every| self.rows / every);
    }

    /// What the step `ordinal` with these rows learns. Rows are drawn from those that came before it.
    pub fn admit(&mut self, rows: &Rows, ordinal: u64) -> Result<Lesson> {
        let own = rows.count;
        self.rows += own as u64;
        let mut lesson = Lesson { rows: rows.clone(), own, candidates: None };
        if let Some(buffer) = &self.buffer {
            let (candidates, replayed) = (self.learner.candidate_rows(), self.learner.replay_rows());
            let drawn = buffer.draw(candidates.max(replayed), ordinal);
            if !drawn.is_empty() && replayed > 0 {
                let drawn = buffer.rows(&drawn)?;
                if candidates > 0 {
                    lesson.candidates = Some(drawn);
                } else {
                    lesson.rows = together(rows, &drawn);
                }
            }
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.insert(rows)?;
        }
        Ok(lesson)
    }
}

/// Rows of one layout, one after the other, with their labels.
fn together(first: &Rows, second: &Rows) -> Rows {
    let blocks = first
        .blocks
        .iter()
        .zip(&second.blocks)
        .map(|(first, second)| Block { bytes: [first.bytes.as_ref(), second.bytes.as_ref()].concat().into(), ..*first });
    let target = match (&first.target, &second.target) {
        (Some(Target::Classes(first)), Some(Target::Classes(second))) => {
            Some(Target::Classes([first.as_slice(), second.as_slice()].concat()))
        }
        (Some(Target::Values(first)), Some(Target::Values(second))) => {
            Some(Target::Values([first.as_slice(), second.as_slice()].concat()))
        }
        _ => None,
    };
    Rows { count: first.count + second.count, blocks: blocks.collect(), target, ..Rows::default() }
}
