//! What is attacked: networks that tell classes of pictures, show hidden states, and give gradients by the pixels.

use std::sync::Arc;

use candle_core::Tensor;
use image::RgbImage;

use crate::cli::Failure;
use crate::encoder::{Encoded, Encoder, picture};
use crate::network::layer::{GlobalAvgPool2d, Layer};
use crate::network::{Network, Stash};

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

/// A live model of kind `network` at one version: its blocks are the layers whose output has channels.
pub(super) struct Live {
    name: String,
    network: Arc<Network>,
    weights: Vec<Vec<Tensor>>,
    /// By layer: the mean of each channel of its output, where it has channels.
    pools: Vec<Option<GlobalAvgPool2d>>,
}

impl Live {
    pub(super) fn new(name: &str, network: Arc<Network>, weights: Vec<Vec<Tensor>>) -> Live {
        let pool = |layer: &dyn Layer| GlobalAvgPool2d::new(<[usize; 3]>::try_from(layer.output_shape()).ok()?);
        let pools = network.layers.iter().map(|layer| pool(layer.as_ref())).collect();
        Live { name: name.to_owned(), network, weights, pools }
    }

    fn forward(&self, pixels: &Tensor, blocks: Option<&[usize]>) -> candle_core::Result<(Encoded, Vec<Stash>)> {
        let mut at = vec![(pixels / BYTES)?];
        let (mut states, mut stashes, mut place) = (Vec::new(), Vec::new(), 0);
        for ((layer, weights), pool) in self.network.layers.iter().zip(&self.weights).zip(&self.pools) {
            let stash;
            (at, stash) = layer.forward(weights, at)?;
            stashes.push(stash);
            if let Some(pool) = pool {
                if blocks.is_none_or(|blocks| blocks.contains(&place)) {
                    states.extend(pool.predict(&[], at.clone())?);
                }
                place += 1;
            }
        }
        let logits = at.pop().ok_or_else(|| candle_core::Error::Msg("the last layer gave nothing".to_owned()))?;
        Ok((Encoded { states, logits }, stashes))
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
        let layers = self.network.layers.iter().zip(&self.pools).enumerate();
        let pooled = layers.filter(|(_, (_, pool))| pool.is_some());
        pooled.map(|(place, (layer, _))| (format!("{place}.{}", layer.name()), layer.output_shape()[0])).collect()
    }

    fn encode(&self, pixels: &Tensor, blocks: &[usize]) -> candle_core::Result<Encoded> {
        Ok(self.forward(pixels, Some(blocks))?.0)
    }

    fn slope(&self, pixels: &Tensor, pull: Pull<'_>) -> Result<Tensor, Failure> {
        let (encoded, stashes) = self.forward(pixels, None)?;
        let (by_logits, mut by_states) = pulled(pull, &encoded)?;
        drop(encoded);
        let mut at = vec![by_logits];
        let layers = self.network.layers.iter().zip(&self.weights).zip(&self.pools).zip(stashes).rev();
        for (((layer, weights), pool), stash) in layers {
            if let Some(pool) = pool
                && let Some(by_state) = by_states.pop().flatten()
            {
                let (spread, _) = pool.backward(&[], Stash::default(), vec![by_state], true)?;
                at = at.iter().zip(&spread).map(|(at, spread)| at + spread).collect::<candle_core::Result<_>>()?;
            }
            at = layer.backward(weights, stash, at, true)?.0;
        }
        let gradient = at.pop().ok_or("the first layer gave no gradient")?;
        Ok((gradient / BYTES)?)
    }
}
