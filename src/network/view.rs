//! What of a layer's output is a hidden state, for whoever watches a network from outside.

use candle_core::{Error, Result, Tensor};

use super::Network;
use super::layer::{GlobalAvgPool2d, Layer, Stash};
use super::tensor::deep_copy;

/// How a layer's output becomes a state of one row of numbers.
#[derive(Debug)]
pub enum View {
    /// The mean of each channel.
    Means(GlobalAvgPool2d),
    /// Itself, where it has no positions.
    Whole,
}

impl View {
    /// None for a layer that only lays numbers out anew.
    pub fn of(layer: &dyn Layer) -> Option<View> {
        match *layer.output_shape() {
            [channels, height, width] => GlobalAvgPool2d::new([channels, height, width]).map(View::Means),
            [_] if layer.name() != "flatten" => Some(View::Whole),
            _ => None,
        }
    }

    /// The state of an output, `[rows, width]`, in storage of its own: the next layer may work in the output's.
    ///
    /// # Errors
    /// The output is not of the layer's shape.
    pub fn state(&self, output: &Tensor) -> Result<Tensor> {
        match self {
            View::Means(pool) => only(pool.predict(&[], vec![output.clone()])?),
            View::Whole => deep_copy(output),
        }
    }

    /// The gradient by the output, from that by the state.
    ///
    /// # Errors
    /// The gradient is not of the state's shape.
    pub fn backward(&self, by_state: Tensor) -> Result<Tensor> {
        match self {
            View::Means(pool) => only(pool.backward(&[], Stash::default(), vec![by_state], true)?.0),
            View::Whole => Ok(by_state),
        }
    }
}

/// A layer whose output has a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watchable {
    /// Its place among the network's layers.
    pub place: usize,
    /// Its place and its kind, such as `3.relu`.
    pub name: String,
    /// Numbers of its state.
    pub width: usize,
}

impl Network {
    /// The layers that can be watched, first to last.
    pub fn watchable(&self) -> Vec<Watchable> {
        let layers = self.layers.iter().enumerate().filter(|(_, layer)| View::of(layer.as_ref()).is_some());
        layers
            .map(|(place, layer)| Watchable { place, name: format!("{place}.{}", layer.name()), width: layer.output_shape()[0] })
            .collect()
    }

    /// [`Network::predict`] with the states of some layers, by their places, in their order: `[rows, width]` each. The outputs have the
    /// same bits.
    ///
    /// # Errors
    /// A layer has no state, or the weights or the input are not the network's.
    pub fn predict_watched<'a>(
        &self,
        weights: impl IntoIterator<Item = &'a [Tensor]>,
        input: Tensor,
        places: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut weights = weights.into_iter();
        let (mut tensors, mut states) = (vec![input], Vec::with_capacity(places.len()));
        for (place, layer) in self.layers.iter().enumerate() {
            let weights = weights.next().ok_or_else(|| Error::Msg("there are fewer weights than layers".into()))?;
            tensors = layer.predict(weights, tensors)?;
            if places.contains(&place) {
                let (view, [output]) = (View::of(layer.as_ref()), tensors.as_slice()) else {
                    return Err(Error::Msg("a layer that is watched gave more than one tensor".into()));
                };
                let view = view.ok_or_else(|| Error::Msg(format!("layer {place} has no state")))?;
                states.push(view.state(output)?);
            }
        }
        Ok((only(tensors)?, states))
    }
}

fn only(mut tensors: Vec<Tensor>) -> Result<Tensor> {
    tensors.pop().ok_or_else(|| Error::Msg("a layer gave nothing".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::tensor::{read, tensor};
    use crate::network::{Architecture, Loss};

    #[test]
    fn who_watches_changes_no_bit_of_what_is_predicted() {
        let architecture = Architecture::ConvNet { standardise: Some(false) };
        let network = Network::build(&architecture, &[3, 8, 8], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
        let weights = network.initial_weights(3).unwrap();
        let weights = || weights.iter().map(Vec::as_slice);
        let input = || tensor((0..2 * 192).map(|at| (at % 7) as f32 / 7.0).collect::<Vec<f32>>(), &[2, 3, 8, 8]).unwrap();
        let watchable = network.watchable();
        assert!(watchable.len() > 3 && watchable.iter().all(|layer| !layer.name.ends_with("flatten")), "{watchable:?}");
        let places: Vec<usize> = watchable.iter().map(|layer| layer.place).collect();
        let (watched, states) = network.predict_watched(weights(), input(), &places).unwrap();
        let plain = network.predict(weights(), input()).unwrap();
        assert_eq!(*read::<f32>(&watched).unwrap(), *read::<f32>(&plain).unwrap());
        for (layer, state) in watchable.iter().zip(&states) {
            assert_eq!(state.dims(), [2, layer.width], "{}", layer.name);
        }
        let last = states.last().unwrap();
        assert_eq!(*read::<f32>(last).unwrap(), *read::<f32>(&plain).unwrap(), "the last layer's state is the output");
    }
}
