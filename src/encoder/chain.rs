//! What encoders are made of: frozen layers one after the other, and SqueezeNet's fire modules, with gradients by the input.

use candle_core::{Error, Result, Tensor};

use crate::network::layer::{Layer, Stash, forward_bytes};

/// A part of an encoder.
pub(super) trait Module: Send + Sync {
    /// The shape of one row of the output.
    fn output_shape(&self) -> &[usize];

    /// Bytes of its weights.
    fn bytes(&self) -> u64;

    /// The most bytes that one row's [`Module::predict`] holds at once: what a layer reads, what it makes, and its scratch.
    fn forward_bytes(&self) -> u64;

    /// The output alone.
    fn predict(&self, input: Tensor) -> Result<Tensor>;

    /// The output, and what backward will need.
    fn forward(&self, input: Tensor) -> Result<(Tensor, Kept)>;

    /// The gradient by the input, from that by the output.
    fn backward(&self, kept: Kept, gradient: Tensor) -> Result<Tensor>;
}

/// What a part keeps from its forward: the stash of each of its layers, in their order.
pub(super) type Kept = Vec<Stash>;

/// Layers with their weights, first to last.
pub(super) struct Chain {
    layers: Vec<(Box<dyn Layer>, Vec<Tensor>)>,
    input_shape: Vec<usize>,
    output_shape: Vec<usize>,
}

impl Chain {
    /// Layers whose shapes fit each other; those without any are the identity on rows of `input_shape`.
    pub(super) fn new(input_shape: &[usize], layers: Vec<(Box<dyn Layer>, Vec<Tensor>)>) -> Chain {
        let output_shape = layers.last().map_or(input_shape, |(layer, _)| layer.output_shape()).to_vec();
        Chain { layers, input_shape: input_shape.to_vec(), output_shape }
    }
}

impl Module for Chain {
    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn bytes(&self) -> u64 {
        let weights = self.layers.iter().flat_map(|(_, weights)| weights);
        weights.map(|weight| (weight.elem_count() * size_of::<f32>()) as u64).sum()
    }

    fn forward_bytes(&self) -> u64 {
        forward_bytes(self.layers.iter().map(|(layer, _)| layer.as_ref()), &self.input_shape)
    }

    fn predict(&self, input: Tensor) -> Result<Tensor> {
        self.layers.iter().try_fold(input, |at, (layer, weights)| only(layer.predict(weights, vec![at])?))
    }

    fn forward(&self, input: Tensor) -> Result<(Tensor, Kept)> {
        let (mut at, mut kept) = (input, Vec::with_capacity(self.layers.len()));
        for (layer, weights) in &self.layers {
            let (outputs, stash) = layer.forward(weights, vec![at])?;
            at = only(outputs)?;
            kept.push(stash);
        }
        Ok((at, kept))
    }

    fn backward(&self, kept: Kept, gradient: Tensor) -> Result<Tensor> {
        let layers = self.layers.iter().zip(kept).rev();
        layers.into_iter().try_fold(gradient, |at, ((layer, weights), stash)| {
            // The weights are frozen: their gradients come with the input's, and are let go.
            only(layer.backward(weights, stash, vec![at], true)?.0)
        })
    }
}

/// `concat(left(squeeze(x)), right(squeeze(x)))` along channels (Iandola et al., 2016, section 3.2).
pub(super) struct Fire {
    pub(super) squeeze: Chain,
    pub(super) expand: [Chain; 2],
    pub(super) output_shape: Vec<usize>,
}

impl Fire {
    pub(super) fn new(squeeze: Chain, expand: [Chain; 2]) -> Fire {
        let channels = expand.iter().map(|chain| chain.output_shape()[0]).sum();
        let output_shape = [&[channels], &expand[0].output_shape()[1..]].concat();
        Fire { squeeze, expand, output_shape }
    }
}

impl Module for Fire {
    fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    fn bytes(&self) -> u64 {
        self.squeeze.bytes() + self.expand.iter().map(Chain::bytes).sum::<u64>()
    }

    fn forward_bytes(&self) -> u64 {
        // Both halves, and the two side by side.
        self.squeeze.forward_bytes() + self.expand.iter().map(Chain::forward_bytes).sum::<u64>() + bytes_of(&self.output_shape)
    }

    fn predict(&self, input: Tensor) -> Result<Tensor> {
        let squeezed = self.squeeze.predict(input)?;
        let [left, right] = &self.expand;
        Tensor::cat(&[left.predict(squeezed.clone())?, right.predict(squeezed)?], 1)
    }

    fn forward(&self, input: Tensor) -> Result<(Tensor, Kept)> {
        let (squeezed, mut kept) = self.squeeze.forward(input)?;
        let [left, right] = &self.expand;
        let (left, of_left) = left.forward(squeezed.clone())?;
        let (right, of_right) = right.forward(squeezed)?;
        kept.extend(of_left.into_iter().chain(of_right));
        Ok((Tensor::cat(&[left, right], 1)?, kept))
    }

    fn backward(&self, mut kept: Kept, gradient: Tensor) -> Result<Tensor> {
        let [left, right] = &self.expand;
        let of_right = kept.split_off(self.squeeze.layers.len() + left.layers.len());
        let of_left = kept.split_off(self.squeeze.layers.len());
        let (channels, others) = (left.output_shape[0], right.output_shape[0]);
        // Layers may work in the storage of a gradient that they are given, and read it in one run.
        let part = |from, length| gradient.narrow(1, from, length)?.force_contiguous();
        let by_left = left.backward(of_left, part(0, channels)?)?;
        let by_right = right.backward(of_right, part(channels, others)?)?;
        self.squeeze.backward(kept, (by_left + by_right)?)
    }
}

/// Bytes of one row.
fn bytes_of(shape: &[usize]) -> u64 {
    (shape.iter().product::<usize>() * size_of::<f32>()) as u64
}

/// The only tensor of a list; an error for more or fewer.
fn only(tensors: Vec<Tensor>) -> Result<Tensor> {
    <[Tensor; 1]>::try_from(tensors)
        .map(|[tensor]| tensor)
        .map_err(|tensors| Error::Msg(format!("a layer gave {} tensors where one was expected", tensors.len())))
}
