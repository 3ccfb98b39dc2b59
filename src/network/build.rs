//! From what a user wrote to layers whose shapes fit. Whatever was written, this ends in a network or an error, never in an
//! overflow or an allocation: sizes are checked before anything is made of them.

use super::Network;
use super::architecture::{Architecture, LayerSpec};
use super::layer::{Conv2d, Flatten, Layer, Linear, MaxPool2d, Relu, Standardise};
use super::loss::Loss;
use crate::limits::{LAYERS_MAX, PARAMETERS_MAX};

/// An architecture that makes no network for its stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureError {
    /// There is nothing to learn.
    #[error("the network has no layers")]
    Empty,
    /// See [`LAYERS_MAX`].
    #[error("the network has {layers} layers, more than {LAYERS_MAX}")]
    TooManyLayers {
        /// How many were asked for.
        layers: usize,
    },
    /// See [`PARAMETERS_MAX`].
    #[error("with layer {layer} the network has more than {PARAMETERS_MAX} parameters")]
    TooManyParameters {
        /// The layer that is too many, from 0.
        layer: usize,
    },
    /// Rows without elements, or with too many.
    #[error("a network cannot read rows of shape {shape:?}")]
    Input {
        /// The shape of a row.
        shape: Vec<usize>,
    },
    /// A layer that does not fit what comes before it.
    #[error("layer {layer} ({name}) cannot take rows of shape {shape:?}: {reason}")]
    Layer {
        /// Which, from 0.
        layer: usize,
        /// Its kind.
        name: &'static str,
        /// The shape of a row that it is given.
        shape: Vec<usize>,
        /// What it wants.
        reason: &'static str,
    },
    /// The last layer's output is not what the stream's target needs.
    #[error("the last layer gives rows of shape {got:?}, but the target needs {wanted:?}")]
    Outputs {
        /// What the target needs.
        wanted: Vec<usize>,
        /// What the layer gives.
        got: Vec<usize>,
    },
}

/// The number of elements of a shape; none if it is 0 or above what any network may have.
fn elements(shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
    (1..=PARAMETERS_MAX).contains(&elements).then_some(elements)
}

impl Network {
    /// The network for rows of `input_shape` (`[features]` or `[channels, height, width]`) and `outputs` numbers a row: one for each
    /// class, or 1 for a regression. Named architectures standardise their input if they say so, or else if `standardise_default`.
    pub fn build(
        architecture: &Architecture,
        input_shape: &[usize],
        outputs: usize,
        loss: Loss,
        standardise_default: bool,
    ) -> Result<Network, ArchitectureError> {
        if elements(input_shape).is_none() || input_shape.is_empty() {
            return Err(ArchitectureError::Input { shape: input_shape.to_vec() });
        }
        let specs = architecture.layers(input_shape, outputs, standardise_default);
        if specs.len() > LAYERS_MAX {
            return Err(ArchitectureError::TooManyLayers { layers: specs.len() });
        }
        let mut builder = Builder { shape: input_shape.to_vec(), parameters: 0, free: false };
        let layers = specs.iter().enumerate().map(|(index, spec)| builder.next(index, spec)).collect::<Result<Vec<_>, _>>()?;
        if layers.is_empty() {
            return Err(ArchitectureError::Empty);
        }
        let wanted = if loss == Loss::MeanSquaredError { vec![1] } else { vec![outputs] };
        if builder.shape != wanted {
            return Err(ArchitectureError::Outputs { wanted, got: builder.shape });
        }
        Ok(Network { layers, input_shape: input_shape.to_vec(), loss, outputs })
    }
}

/// What is known between two layers.
struct Builder {
    /// The shape of a row here.
    shape: Vec<usize>,
    /// Parameters so far.
    parameters: usize,
    /// Nobody needs the present activations but the next layer, so that it may overwrite them: they are not the network's input,
    /// and no earlier layer keeps their storage for its backward.
    free: bool,
}

impl Builder {
    fn next(&mut self, index: usize, spec: &LayerSpec) -> Result<Box<dyn Layer>, ArchitectureError> {
        let layer = self.layer(index, spec).map_err(|(name, reason)| ArchitectureError::Layer {
            layer: index,
            name,
            shape: self.shape.clone(),
            reason,
        })?;
        for parameter in layer.parameters() {
            let total = elements(&parameter.shape).and_then(|elements| self.parameters.checked_add(elements));
            let total = total.filter(|&total| total <= PARAMETERS_MAX);
            self.parameters = total.ok_or(ArchitectureError::TooManyParameters { layer: index })?;
        }
        let cost = layer.cost(1);
        self.free = !cost.keeps_output && (cost.output > 0 || self.free);
        self.shape = layer.output_shape().to_vec();
        Ok(layer)
    }

    fn layer(&self, index: usize, spec: &LayerSpec) -> Result<Box<dyn Layer>, (&'static str, &'static str)> {
        let image = || <[usize; 3]>::try_from(self.shape.as_slice());
        match *spec {
            LayerSpec::Linear { outputs } => match *self.shape.as_slice() {
                _ if outputs == 0 => Err(("linear", "it needs at least one output")),
                // The weights are counted by the caller; here only the output must not be out of all proportion.
                [inputs] if outputs <= PARAMETERS_MAX => Ok(Box::new(Linear::new(inputs, outputs))),
                [_] => Err(("linear", "it has too many outputs")),
                _ => Err(("linear", "it takes rows of numbers; put a flatten before it")),
            },
            LayerSpec::Relu {} => Ok(Box::new(Relu::new(&self.shape, self.free))),
            LayerSpec::Conv2d { channels, kernel, stride, padding } => {
                let image = image().map_err(|_| ("conv2d", "it takes rows of [channels, height, width]"))?;
                match Conv2d::new(image, channels, kernel, stride, padding) {
                    Some(layer) => Ok(Box::new(layer)),
                    None => Err((
                        "conv2d",
                        "it needs channels, a kernel no larger than the padded image, a stride, less padding than kernel, \
                         and sizes within limits",
                    )),
                }
            }
            LayerSpec::MaxPool2d { size } => {
                let image = image().map_err(|_| ("max_pool2d", "it takes rows of [channels, height, width]"))?;
                match MaxPool2d::new(image, size) {
                    Some(layer) => Ok(Box::new(layer)),
                    None => Err(("max_pool2d", "its size must be from 1 to 16 and no larger than the image")),
                }
            }
            LayerSpec::Flatten {} => Ok(Box::new(Flatten::new(&self.shape))),
            LayerSpec::Standardise {} if index == 0 => Ok(Box::new(Standardise::new(&self.shape))),
            LayerSpec::Standardise {} => Err(("standardise", "it can only be the first layer, because it passes no gradient on")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str, shape: &[usize], outputs: usize) -> Result<Network, ArchitectureError> {
        Network::build(&serde_json::from_str(text).unwrap(), shape, outputs, Loss::SoftmaxCrossEntropy, false)
    }

    fn parameters(network: &Network) -> usize {
        network.layers.iter().flat_map(|layer| layer.parameters()).map(|parameter| parameter.elements()).sum()
    }

    #[test]
    fn the_named_architectures_have_their_sizes() {
        let convnet = build(r#"{"architecture":"convnet"}"#, &[3, 32, 32], 10).unwrap();
        assert_eq!(parameters(&convnet), 60_362);
        let mnistnet = build(r#"{"architecture":"mnistnet"}"#, &[1, 28, 28], 10).unwrap();
        assert_eq!(parameters(&mnistnet), 421_642);
        let mlp = build(r#"{"architecture":"mlp","hidden":[256,256],"standardise":true}"#, &[1, 28, 28], 10).unwrap();
        let names: Vec<_> = mlp.layers.iter().map(|layer| layer.name()).collect();
        assert_eq!(names, ["standardise", "flatten", "linear", "relu", "linear", "relu", "linear"]);
        assert!(build(r#"{"architecture":"convnet"}"#, &[1, 5, 7], 3).is_ok());
    }

    #[test]
    fn a_relu_overwrites_only_what_nobody_needs() {
        let text = r#"{"architecture":"layers","layers":[{"type":"flatten"},{"type":"relu"},{"type":"relu"},
            {"type":"linear","outputs":4},{"type":"relu"},{"type":"flatten"},{"type":"relu"},{"type":"linear","outputs":2}]}"#;
        let network = build(text, &[2, 3], 2).unwrap();
        let fresh: Vec<bool> =
            network.layers.iter().filter(|layer| layer.name() == "relu").map(|layer| layer.cost(1).output > 0).collect();
        assert_eq!(fresh, [true, true, false, true]);
    }

    #[test]
    fn a_cost_never_overflows() {
        let network = build(r#"{"architecture":"mnistnet","standardise":true}"#, &[3, 1000, 1000], 10).unwrap();
        let costs: Vec<_> = network.layers.iter().map(|layer| layer.cost(usize::MAX / 2)).collect();
        assert_eq!(costs[1].flops_backward, u64::MAX);
    }

    #[test]
    fn hostile_architectures_are_errors() {
        let layers = |layers: &str| format!(r#"{{"architecture":"layers","layers":[{layers}]}}"#);
        let flat = r#"{"type":"flatten"},{"type":"linear","outputs":2}"#;
        for (text, shape) in [
            (layers(""), vec![3]),
            (layers(r#"{"type":"linear","outputs":0}"#), vec![3]),
            (layers(r#"{"type":"linear","outputs":3}"#), vec![3]),
            (layers(r#"{"type":"linear","outputs":1000000000000}"#), vec![3]),
            (layers(r#"{"type":"linear","outputs":18446744073709551615}"#), vec![3]),
            (layers(r#"{"type":"linear","outputs":1000000000},{"type":"linear","outputs":2}"#), vec![3]),
            (layers(r#"{"type":"linear","outputs":2}"#), vec![3, 4]),
            (layers(r#"{"type":"linear","outputs":2},{"type":"standardise"}"#), vec![3]),
            (layers(&format!(r#"{{"type":"conv2d","channels":1,"kernel":9}},{flat}"#)), vec![1, 8, 8]),
            (layers(&format!(r#"{{"type":"conv2d","channels":1,"kernel":0}},{flat}"#)), vec![1, 8, 8]),
            (layers(&format!(r#"{{"type":"conv2d","channels":1,"kernel":3,"stride":0}},{flat}"#)), vec![1, 8, 8]),
            (layers(&format!(r#"{{"type":"conv2d","channels":1,"kernel":3,"padding":3}},{flat}"#)), vec![1, 8, 8]),
            (
                layers(&format!(
                    r#"{{"type":"conv2d","channels":1,"kernel":18446744073709551615,"padding":18446744073709551614}},{flat}"#
                )),
                vec![1, 8, 8],
            ),
            (layers(&format!(r#"{{"type":"conv2d","channels":4000000000,"kernel":8}},{flat}"#)), vec![1, 8, 8]),
            (layers(&format!(r#"{{"type":"conv2d","channels":1000000,"kernel":1}},{flat}"#)), vec![1, 1000, 1000]),
            (layers(&format!(r#"{{"type":"max_pool2d","size":0}},{flat}"#)), vec![1, 8, 8]),
            (layers(&format!(r#"{{"type":"max_pool2d","size":9}},{flat}"#)), vec![1, 8, 8]),
            (layers(&format!(r#"{{"type":"max_pool2d","size":17}},{flat}"#)), vec![1, 80, 80]),
            (layers(&format!(r#"{{"type":"max_pool2d","size":2}},{flat}"#)), vec![8, 8]),
            (layers(&[r#"{"type":"relu"}"#; LAYERS_MAX + 1].join(",")), vec![2]),
            (r#"{"architecture":"mlp","hidden":[0]}"#.into(), vec![3]),
            (r#"{"architecture":"convnet"}"#.into(), vec![3, 3, 3]),
            (r#"{"architecture":"convnet"}"#.into(), vec![784]),
            (r#"{"architecture":"linear"}"#.into(), vec![0]),
            (r#"{"architecture":"linear"}"#.into(), vec![]),
            (r#"{"architecture":"linear"}"#.into(), vec![usize::MAX, 2]),
        ] {
            let error = build(&text, &shape, 2).unwrap_err();
            assert!(!error.to_string().is_empty(), "{text} {shape:?}");
        }
        assert!(build(&layers(&[r#"{"type":"relu"}"#; LAYERS_MAX].join(",")), &[2], 2).is_ok());
        assert!(build(r#"{"architecture":"linear"}"#, &[3], 0).is_err());
        let linear = Architecture::Linear { standardise: None };
        assert!(Network::build(&linear, &[3], 2, Loss::MeanSquaredError, true).is_err());
    }
}
