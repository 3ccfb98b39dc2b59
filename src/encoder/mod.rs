//! Frozen pretrained models, and what they make of an input block by block: hidden states for detectors, outputs, and gradients by the
//! input, for attacks that test the detectors.
//!
//! They are made of the layers of [`network`](crate::network), so that gradients come with them. Nothing here trains.

mod chain;
mod efficientnet;
pub mod picture;
pub mod shelf;
mod squeezenet;
mod weights;

use candle_core::{Result, Tensor};

use crate::network::layer::{GlobalAvgPool2d, Layer};
use chain::{Chain, Kept, Module};
use picture::Preprocessing;
pub use weights::{Weights, WeightsError};

/// A frozen network that reads pictures.
pub struct Encoder {
    /// Its name, such as `efficientnet-lite0`.
    pub name: &'static str,
    /// blake3 of its weights and of what it does with a picture first: states of other ones mean nothing to it.
    pub fingerprint: String,
    /// Side of the square pictures that it reads.
    pub side: usize,
    preprocessing: Preprocessing,
    blocks: Vec<Block>,
    /// From the last block to the classes.
    head: Chain,
}

/// One block, whose output is a hidden state.
struct Block {
    name: String,
    module: Box<dyn Module>,
    /// The mean of each channel: the state.
    pool: GlobalAvgPool2d,
}

impl Block {
    fn new(name: impl Into<String>, module: Box<dyn Module>) -> Option<Block> {
        let shape = <[usize; 3]>::try_from(module.output_shape()).ok()?;
        Some(Block { name: name.into(), module, pool: GlobalAvgPool2d::new(shape)? })
    }
}

/// What an encoder makes of some pictures.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// By block, `[rows, channels]`: the mean of each channel of the block's output.
    pub states: Vec<Tensor>,
    /// `[rows, classes]`.
    pub logits: Tensor,
}

/// What a forward keeps for its backward.
pub struct Pass {
    blocks: Vec<Kept>,
    head: Kept,
}

impl Encoder {
    /// The encoder of this name from its weights; none for a name that is not known.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape.
    pub fn load(name: &str, weights: &Weights) -> Option<std::result::Result<Encoder, WeightsError>> {
        match name {
            efficientnet::NAME => Some(efficientnet::load(weights)),
            squeezenet::NAME => Some(squeezenet::load(weights)),
            _ => None,
        }
    }

    /// The blocks' names with how many channels their states have.
    pub fn blocks(&self) -> Vec<(&str, usize)> {
        self.blocks.iter().map(|block| (block.name.as_str(), block.module.output_shape()[0])).collect()
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|block| block.module.bytes()).sum::<u64>() + self.head.bytes()
    }

    /// The most bytes that the forward of one picture holds at once beside the weights.
    pub fn forward_bytes(&self) -> u64 {
        let picture = (3 * self.side * self.side * size_of::<f32>()) as u64;
        let most = self.blocks.iter().map(|block| block.module.forward_bytes()).max().unwrap_or(0);
        // The picture as it came, preprocessed, and as a block reads it.
        2 * picture + most.max(self.head.forward_bytes())
    }

    /// The states of some blocks alone, by their places, ascending; nothing behind the last of them is run.
    ///
    /// # Errors
    /// As for [`Encoder::encode`].
    pub fn states(&self, pictures: &Tensor, blocks: &[usize]) -> Result<Vec<Tensor>> {
        let mut at = self.preprocessing.apply(pictures)?;
        let mut states = Vec::with_capacity(blocks.len());
        for (place, block) in self.blocks.iter().enumerate().take(blocks.last().map_or(0, |last| last + 1)) {
            at = block.module.predict(at)?;
            if blocks.contains(&place) {
                states.push(pooled(block, &at)?);
            }
        }
        Ok(states)
    }

    /// States and logits of pictures, `[rows, 3, side, side]` of numbers from 0 to 255.
    ///
    /// # Errors
    /// The pictures have another shape.
    pub fn encode(&self, pictures: &Tensor) -> Result<Encoded> {
        let all: Vec<usize> = (0..self.blocks.len()).collect();
        self.encode_with(pictures, &all)
    }

    /// The same with the states of some blocks alone, by their places; logits of no blocks are a plain forward.
    ///
    /// # Errors
    /// As above.
    pub fn encode_with(&self, pictures: &Tensor, blocks: &[usize]) -> Result<Encoded> {
        let mut at = self.preprocessing.apply(pictures)?;
        let mut states = Vec::with_capacity(blocks.len());
        for (place, block) in self.blocks.iter().enumerate() {
            at = block.module.predict(at)?;
            if blocks.contains(&place) {
                states.push(pooled(block, &at)?);
            }
        }
        Ok(Encoded { states, logits: self.head.predict(at)? })
    }

    /// The same, with what [`Encoder::gradient`] needs.
    ///
    /// # Errors
    /// As above.
    pub fn forward(&self, pictures: &Tensor) -> Result<(Encoded, Pass)> {
        let mut at = self.preprocessing.apply(pictures)?;
        let (mut states, mut blocks) = (Vec::with_capacity(self.blocks.len()), Vec::with_capacity(self.blocks.len()));
        for block in &self.blocks {
            let (output, kept) = block.module.forward(at)?;
            states.push(pooled(block, &output)?);
            blocks.push(kept);
            at = output;
        }
        let (logits, head) = self.head.forward(at)?;
        Ok((Encoded { states, logits }, Pass { blocks, head }))
    }

    /// The gradient by the pictures' numbers, from those by the logits and by states (none where nothing depends on a state).
    ///
    /// # Errors
    /// A gradient has another shape than what it is by.
    pub fn gradient(&self, pass: Pass, by_logits: Tensor, by_states: Vec<Option<Tensor>>) -> Result<Tensor> {
        if by_states.len() != self.blocks.len() {
            candle_core::bail!("gradients by {} states of {} blocks", by_states.len(), self.blocks.len());
        }
        let mut at = self.head.backward(pass.head, by_logits)?;
        for ((block, kept), by_state) in self.blocks.iter().zip(pass.blocks).zip(by_states).rev() {
            if let Some(by_state) = by_state {
                let (mut spread, _) = block.pool.backward(&[], crate::network::Stash::default(), vec![by_state], true)?;
                if let Some(spread) = spread.pop() {
                    at = (at + spread)?;
                }
            }
            at = block.module.backward(kept, at)?;
        }
        self.preprocessing.backward(&at)
    }
}

fn pooled(block: &Block, output: &Tensor) -> Result<Tensor> {
    let mut pooled = block.pool.predict(&[], vec![output.clone()])?;
    pooled.pop().ok_or_else(|| candle_core::Error::Msg("pooling gave nothing".to_owned()))
}
