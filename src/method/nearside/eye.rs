//! What a detector watches: how the features of a row become a hidden state.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use crossbeam::channel::{Sender, bounded};

use crate::encoder::Encoder;
use crate::ferret::pool::Pool;
use crate::fold::FoldError;
use crate::rows::{Element, Rows};

/// Turns rows into hidden states. A row's state is its own: it does not depend on the rows beside it, to the bit.
pub trait Eye: Send + Sync {
    /// Numbers of a state.
    fn width(&self) -> usize;

    /// The states of rows, one after the other.
    ///
    /// # Errors
    /// The rows are not of the form that is read.
    fn states(&self, rows: &Rows) -> Result<Vec<f32>, FoldError>;

    /// What states depend on: those of another identity mean nothing to a direction.
    fn identity(&self) -> String;

    /// Bytes that are held for good.
    fn weight_bytes(&self) -> u64;

    /// Bytes that one row needs while its state is found.
    fn row_bytes(&self) -> u64;
}

/// Finds states on the compute threads, as many rows at once as there are parts. Between two rows a part lets others in who wait for a thread.
///
/// # Errors
/// As [`Eye::states`].
pub fn states_on(pool: &Pool, parts: usize, eye: &Arc<dyn Eye>, rows: &Rows) -> Result<Vec<f32>, FoldError> {
    let size = rows.count.div_ceil(parts.max(1)).max(1);
    let answers: Vec<_> = (0..rows.count)
        .step_by(size)
        .map(|start| {
            let (tell, told) = bounded(1);
            let (eye, rows) = (eye.clone(), rows.slice(start..rows.count.min(start + size)));
            let part = Part { pool: pool.clone(), eye, rows, states: Vec::new(), looked: 0, tell };
            pool.spawn(move || part.look());
            told
        })
        .collect();
    let mut states = Vec::with_capacity(rows.count * eye.width());
    for answer in answers {
        let lost = || FoldError::Panicked("finding hidden states panicked; the process's messages say where".into());
        states.extend(answer.recv().map_err(|_| lost())??);
    }
    Ok(states)
}

/// Rows whose states are being found.
struct Part {
    pool: Pool,
    eye: Arc<dyn Eye>,
    rows: Rows,
    /// Of the rows that were looked at.
    states: Vec<f32>,
    looked: usize,
    tell: Sender<Result<Vec<f32>, FoldError>>,
}

impl Part {
    fn look(mut self) {
        while self.looked < self.rows.count {
            match self.eye.states(&self.rows.slice(self.looked..self.looked + 1)) {
                Ok(states) => self.states.extend(states),
                // Whoever asked waits for this; a job that panicked drops its end.
                Err(error) => return drop(self.tell.send(Err(error))),
            }
            self.looked += 1;
            if self.pool.is_wanted() {
                return self.pool.clone().spawn(move || self.look());
            }
        }
        drop(self.tell.send(Ok(self.states)));
    }
}

/// Some blocks of a frozen encoder, side by side.
pub struct EncoderEye {
    encoder: Arc<Encoder>,
    /// Their places, ascending.
    blocks: Vec<usize>,
    width: usize,
}

impl EncoderEye {
    /// Watches the blocks of these names.
    ///
    /// # Errors
    /// One is not there, or there twice; the text says which there are.
    pub fn new(encoder: Arc<Encoder>, names: &[String]) -> Result<EncoderEye, String> {
        let known = encoder.blocks();
        let mut blocks = Vec::with_capacity(names.len());
        for name in names {
            let place = known.iter().position(|(known, _)| known == name).ok_or_else(|| {
                let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                format!("blocks: `{}` has no `{name}`; it has {}", encoder.name, known.join(", "))
            })?;
            blocks.push(place);
        }
        blocks.sort_unstable();
        if blocks.is_empty() || blocks.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("blocks: one or more, each once".into());
        }
        let width = blocks.iter().map(|&block| known[block].1).sum();
        Ok(EncoderEye { encoder, blocks, width })
    }
}

impl Eye for EncoderEye {
    fn width(&self) -> usize {
        self.width
    }

    fn states(&self, rows: &Rows) -> Result<Vec<f32>, FoldError> {
        let side = self.encoder.side;
        let [block] = rows.blocks.as_slice() else { return Err(misfit(rows)) };
        if block.element != Element::U8 || block.width != 3 * side * side || block.bytes.len() != rows.count * block.width {
            return Err(misfit(rows));
        }
        let mut states = Vec::with_capacity(rows.count * self.width);
        // One at a time: a batch is no faster on one thread, and holds more.
        for row in block.bytes.chunks_exact(block.width) {
            let numbers: Vec<f32> = row.iter().map(|&byte| f32::from(byte)).collect();
            let picture = Tensor::from_vec(numbers, (1, 3, side, side), &Device::Cpu)?;
            for state in self.encoder.states(&picture, &self.blocks)? {
                states.extend(state.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(states)
    }

    fn identity(&self) -> String {
        let names = self.encoder.blocks();
        let blocks: Vec<&str> = self.blocks.iter().map(|&block| names[block].0).collect();
        format!("{} {} {}", self.encoder.name, self.encoder.fingerprint, blocks.join(","))
    }

    fn weight_bytes(&self) -> u64 {
        self.encoder.bytes()
    }

    fn row_bytes(&self) -> u64 {
        self.encoder.forward_bytes()
    }
}

/// Rows that are states already.
pub struct Given {
    /// Numbers of a state.
    pub width: usize,
}

impl Eye for Given {
    fn width(&self) -> usize {
        self.width
    }

    fn states(&self, rows: &Rows) -> Result<Vec<f32>, FoldError> {
        match rows.blocks.as_slice() {
            [block] if block.element == Element::F32 && block.width == self.width => {
                let (words, _) = block.bytes.as_chunks::<4>();
                Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
            }
            _ => Err(misfit(rows)),
        }
    }

    fn identity(&self) -> String {
        format!("states of {}", self.width)
    }

    fn weight_bytes(&self) -> u64 {
        0
    }

    fn row_bytes(&self) -> u64 {
        0
    }
}

pub(super) fn misfit(rows: &Rows) -> FoldError {
    FoldError::Contract(format!("these rows of {} bytes are not what the detector watches", rows.row_bytes()))
}
