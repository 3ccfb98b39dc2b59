//! What is attacked: networks that tell classes of pictures, show hidden states, and give gradients by the pixels.

use std::sync::Arc;

use candle_core::Tensor;
use image::RgbImage;

use crate::cli::Failure;
use crate::encoder::{Encoded, Encoder, picture};
use crate::network::{Network, Stash, View};

/// What pictures' bytes are divided by before a live network reads them.
const BYTES: f64 = 255.0;

/// What an attack pulls at: from states and logits, the gradients by the logits and by the states (none where nothing depends on one).
pub(super) type Pull<'a> = &'a dyn Fn(&Seen) -> (Vec<f32>, Vec<Option<Vec<f32>>>);

/// What a network made of one picture.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// By block that was asked for: the mean of each channel.
    pub(super) states: Vec<Vec<f32>>,
    pub(super) logits: Vec<f32>,
}

impl Seen {
    fn of(encoded: &Encoded) -> Result<Seen, Failure> {
        let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let states = encoded.states.iter().map(flat).collect::<candle_core::Result<_>>()?;
        Ok(Seen { states, logits: flat(&encoded.logits)? })
    }

    /// The class with the largest logit, the first of equal ones.
    pub(super) fn class(&self) -> usize {
        let logits = self.logits.iter().enumerate().rev();
        logits.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class)
    }

    /// The logits as probabilities.
    pub(super) fn probabilities(&self) -> Vec<f32> {
        let most = self.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let odds: Vec<f32> = self.logits.iter().map(|logit| (logit - most).exp()).collect();
        let sum: f32 = odds.iter().sum();
        odds.iter().map(|odds| odds / sum).collect()
    }
}

/// A network that is attacked. Pictures come one at a time: a batch is no faster on one thread.
pub(super) trait Victim: Send + Sync {
    fn name(&self) -> String;

    /// Side of the square pictures that it reads.
    fn side(&self) -> usize;

    fn classes(&self) -> usize;

    /// Names of its blocks, and how many channels each has.
    fn blocks(&self) -> Vec<(String, usize)>;

    /// One forward, with the states of some blocks.
    fn encode(&self, pixels: &Tensor, blocks: &[usize]) -> candle_core::Result<Encoded>;

    /// The gradient by pixels, `[1, 3, side, side]` of numbers from 0 to 255, of whatever it is that `pull` pulls at.
    fn slope(&self, pixels: &Tensor, pull: Pull<'_>) -> Result<Tensor, Failure>;

    /// What it makes of a picture, all blocks' states included.
    fn look(&self, picture: &RgbImage) -> Result<Seen, Failure> {
        let all: Vec<usize> = (0..self.blocks().len()).collect();
        Seen::of(&self.encode(&picture::tensor(std::slice::from_ref(picture))?, &all)?)
    }

    /// The probabilities of its classes alone.
    fn answer(&self, picture: &RgbImage) -> Result<Vec<f32>, Failure> {
        Ok(Seen::of(&self.encode(&picture::tensor(std::slice::from_ref(picture))?, &[])?)?.probabilities())
    }
}

fn rows(values: Vec<f32>) -> candle_core::Result<Tensor> {
    let width = values.len();
    Tensor::from_vec(values, (1, width), &candle_core::Device::Cpu)
}

/// What [`Pull`] says of one picture, as tensors.
fn pulled(pull: Pull<'_>, encoded: &Encoded) -> Result<(Tensor, Vec<Option<Tensor>>), Failure> {
    let (by_logits, by_states) = pull(&Seen::of(encoded)?);
    let by_states = by_states.into_iter().map(|state| state.map(rows).transpose()).collect::<candle_core::Result<_>>()?;
    Ok((rows(by_logits)?, by_states))
}

/// A frozen encoder with its classes.
pub(super) struct Frozen {
    pub(super) encoder: Encoder,
    pub(super) classes: usize,
}

impl Victim for Frozen {
    fn name(&self) -> String {
        self.encoder.name.to_owned()
    }

    fn side(&self) -> usize {
        self.encoder.side
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn blocks(&self) -> Vec<(String, usize)> {
        self.encoder.blocks().into_iter().map(|(name, width)| (name.to_owned(), width)).collect()
    }

    fn encode(&self, pixels: &Tensor, blocks: &[usize]) -> candle_core::Result<Encoded> {
        self.encoder.encode_with(pixels, blocks)
    }

    fn slope(&self, pixels: &Tensor, pull: Pull<'_>) -> Result<Tensor, Failure> {
        let (encoded, pass) = self.encoder.forward(pixels)?;
        let (by_logits, by_states) = pulled(pull, &encoded)?;
        Ok(self.encoder.gradient(pass, by_logits, by_states)?)
    }
}

fn only(mut tensors: Vec<Tensor>) -> candle_core::Result<Tensor> {
    tensors.pop().ok_or_else(|| candle_core::Error::Msg("a layer gave nothing".to_owned()))
}

/// A live model of kind `network` at one version: its blocks are its layers.
pub(super) struct Live {
    name: String,
    network: Arc<Network>,
    weights: Vec<Vec<Tensor>>,
    /// By layer.
    views: Vec<Option<View>>,
}

impl Live {
    pub(super) fn new(name: &str, network: Arc<Network>, weights: Vec<Vec<Tensor>>) -> Live {
        let views = network.layers.iter().map(|layer| View::of(layer.as_ref())).collect();
        Live { name: name.to_owned(), network, weights, views }
    }

    fn forward(&self, pixels: &Tensor, blocks: Option<&[usize]>) -> candle_core::Result<(Encoded, Vec<Stash>)> {
        let mut at = (pixels / BYTES)?;
        let (mut states, mut stashes, mut place) = (Vec::new(), Vec::new(), 0);
        for ((layer, weights), view) in self.network.layers.iter().zip(&self.weights).zip(&self.views) {
            let (outputs, stash) = layer.forward(weights, vec![at])?;
            at = only(outputs)?;
            stashes.push(stash);
            if let Some(view) = view {
                if blocks.is_none_or(|blocks| blocks.contains(&place)) {
                    states.push(view.state(&at)?);
                }
                place += 1;
            }
        }
        Ok((Encoded { states, logits: at }, stashes))
    }
}

impl Victim for Live {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn side(&self) -> usize {
        self.network.input_shape.last().copied().unwrap_or(0)
    }

    fn classes(&self) -> usize {
        self.network.outputs
    }

    fn blocks(&self) -> Vec<(String, usize)> {
        self.network.watchable().into_iter().map(|layer| (layer.name, layer.width)).collect()
    }

    fn encode(&self, pixels: &Tensor, blocks: &[usize]) -> candle_core::Result<Encoded> {
        Ok(self.forward(pixels, Some(blocks))?.0)
    }

    fn slope(&self, pixels: &Tensor, pull: Pull<'_>) -> Result<Tensor, Failure> {
        let (encoded, stashes) = self.forward(pixels, None)?;
        let (by_logits, mut by_states) = pulled(pull, &encoded)?;
        drop(encoded);
        let mut at = by_logits;
        let layers = self.network.layers.iter().zip(&self.weights).zip(&self.views).zip(stashes).rev();
        for (((layer, weights), view), stash) in layers {
            if let Some(view) = view
                && let Some(by_state) = by_states.pop().flatten()
            {
                at = (at + view.backward(by_state)?)?;
            }
            at = only(layer.backward(weights, stash, vec![at], true)?.0)?;
        }
        Ok((at / BYTES)?)
    }
}
