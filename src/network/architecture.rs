//! What a user writes to say which network is to learn: a named architecture, or a list of layers.

use serde::{Deserialize, Serialize};

/// A network up to the sizes that follow from its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "snake_case", deny_unknown_fields)]
pub enum Architecture {
    /// One linear layer: logistic, softmax or linear regression.
    Linear {
        /// Standardise the features first; by default where they are numeric columns.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standardise: Option<bool>,
    },
    /// Linear layers with ReLU between them.
    Mlp {
        /// The widths of the hidden layers.
        hidden: Vec<usize>,
        /// See [`Architecture::Linear`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standardise: Option<bool>,
    },
    /// Two convolutions with pooling, and two linear layers, with 128 units between them: 421,642 parameters for 28 × 28 digits.
    #[serde(rename = "mnistnet")]
    MnistNet {
        /// See [`Architecture::Linear`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standardise: Option<bool>,
    },
    /// Two convolutions with pooling, and one linear layer: 60,362 parameters for ten classes of 3 × 32 × 32 pictures.
    #[serde(rename = "convnet")]
    ConvNet {
        /// See [`Architecture::Linear`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standardise: Option<bool>,
    },
    /// A residual network of 18 learning layers (He et al., 2016) in its form for small images: the first convolution is 3 × 3
    /// and keeps the size. It has group normalisation where the original has batch normalisation, which ties the rows of a step
    /// together and cannot be had at one row a step. 11,173,962 parameters for ten classes of 3 × 32 × 32 pictures, and 701,466 at
    /// width 16.
    #[serde(rename = "resnet18")]
    ResNet18 {
        /// Channels of the first of four stages; each other stage has twice as many as the one before. At most
        /// [`WIDTH_MAX`](crate::limits::WIDTH_MAX).
        #[serde(default = "resnet_width")]
        width: usize,
        /// See [`Architecture::Linear`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standardise: Option<bool>,
    },
    /// A chain of depthwise separable convolutions (Howard et al., 2017, the first MobileNet): 13 times a 3 × 3 convolution of each
    /// channel by itself, and then one of 1 × 1 that mixes channels. Strides and proportions are the paper's but for the first
    /// convolution, which keeps the size, so that 32 × 32 pictures end as 2 × 2; norms are over groups, as in
    /// [`Architecture::ResNet18`]. The paper's other multiplier, of the resolution, is the stream's affair. 3,217,226 parameters for
    /// ten classes of 3 × 32 × 32 pictures, and 823,722 at width 16.
    #[serde(rename = "mobilenet")]
    MobileNet {
        /// Channels of the first convolution; the last has 32 times as many. At most [`WIDTH_MAX`](crate::limits::WIDTH_MAX).
        #[serde(default = "mobilenet_width")]
        width: usize,
        /// See [`Architecture::Linear`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standardise: Option<bool>,
    },
    /// Any list of layers; the last one's output must be the network's.
    Layers {
        /// First to last.
        layers: Vec<LayerSpec>,
    },
}

/// One layer of [`Architecture::Layers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerSpec {
    /// Fully connected.
    Linear {
        /// Numbers of an output row.
        outputs: usize,
    },
    /// `max(x, 0)`.
    Relu {},
    /// A square convolution.
    Conv2d {
        /// Output channels.
        channels: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Distance between patches.
        #[serde(default = "one")]
        stride: usize,
        /// Zeros on each side of the image; less than the kernel.
        #[serde(default)]
        padding: usize,
        /// Whether each output channel has a number added. Before a norm it would be taken away again.
        #[serde(default = "yes", skip_serializing_if = "is_true")]
        bias: bool,
    },
    /// A square convolution of each channel by itself, with a kernel of its own; as many channels come out.
    DepthwiseConv2d {
        /// Side of the kernel.
        kernel: usize,
        /// See [`LayerSpec::Conv2d`].
        #[serde(default = "one")]
        stride: usize,
        /// See [`LayerSpec::Conv2d`].
        #[serde(default)]
        padding: usize,
        /// See [`LayerSpec::Conv2d`].
        #[serde(default = "yes", skip_serializing_if = "is_true")]
        bias: bool,
    },
    /// The largest of each window; the windows do not overlap.
    MaxPool2d {
        /// Side of the window, at most 16.
        size: usize,
    },
    /// The mean of each channel of an image.
    GlobalAvgPool2d {},
    /// Groups of an image's channels to mean 0 and variance 1, by each row's own numbers.
    GroupNorm {
        /// How many; they must divide the channels.
        groups: usize,
    },
    /// What layers make of their input, plus that input or what a shortcut makes of it. No layer in it may standardise.
    Residual {
        /// First to last; at least one. They may be residual again, [`LAYERS_DEPTH_MAX`](crate::limits::LAYERS_DEPTH_MAX) deep.
        layers: Vec<LayerSpec>,
        /// First to last; none for the input itself.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        shortcut: Vec<LayerSpec>,
    },
    /// Rows of any shape as rows of numbers.
    Flatten {},
    /// Features to mean 0 and variance 1, by what was seen so far; only as the first layer. Of columns it takes the numbers alone.
    Standardise {},
    /// The buckets of categorical columns to numbers that are learned, behind the numeric columns. Only as the first layer or behind
    /// a standardise that is; lists for streams with such columns need it.
    Embedding {
        /// Numbers of each category.
        #[serde(default = "embedding_dimension")]
        dimension: usize,
    },
}

fn one() -> usize {
    1
}

/// Numbers of each category where nothing is said.
pub(super) fn embedding_dimension() -> usize {
    8
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

fn resnet_width() -> usize {
    64
}

fn mobilenet_width() -> usize {
    32
}

impl Architecture {
    /// The layers, first to last, for rows of `input_shape`.
    pub(crate) fn layers(&self, input_shape: &[usize], outputs: usize, standardise_default: bool) -> Vec<LayerSpec> {
        let mut layers = Vec::new();
        let standardise = match self {
            Architecture::Layers { layers } => return layers.clone(),
            Architecture::Linear { standardise }
            | Architecture::Mlp { standardise, .. }
            | Architecture::MnistNet { standardise }
            | Architecture::ConvNet { standardise }
            | Architecture::ResNet18 { standardise, .. }
            | Architecture::MobileNet { standardise, .. } => standardise.unwrap_or(standardise_default),
        };
        if standardise {
            layers.push(LayerSpec::Standardise {});
        }
        match *self {
            Architecture::ResNet18 { width, .. } => {
                resnet18(width, outputs, &mut layers);
                return layers;
            }
            Architecture::MobileNet { width, .. } => {
                mobilenet(width, outputs, &mut layers);
                return layers;
            }
            _ => {}
        }
        let hidden: &[usize] = match self {
            Architecture::Mlp { hidden, .. } => hidden,
            Architecture::MnistNet { .. } => &[128],
            _ => &[],
        };
        if matches!(self, Architecture::MnistNet { .. } | Architecture::ConvNet { .. }) {
            for channels in [32, 64] {
                layers.push(LayerSpec::Conv2d { channels, kernel: 3, stride: 1, padding: 1, bias: true });
                layers.push(LayerSpec::Relu {});
                layers.push(LayerSpec::MaxPool2d { size: 2 });
            }
            layers.push(LayerSpec::Flatten {});
        } else if input_shape.len() != 1 {
            layers.push(LayerSpec::Flatten {});
        }
        for &outputs in hidden {
            layers.push(LayerSpec::Linear { outputs });
            layers.push(LayerSpec::Relu {});
        }
        layers.push(LayerSpec::Linear { outputs });
        layers
    }
}

/// The groups of a norm in [`Architecture::ResNet18`] and [`Architecture::MobileNet`]: 32, or else the most that divide the channels and leave each group two of
/// them. A group of one would forget its channel's level, and where an image has shrunk to one element it would be zero.
fn groups(channels: usize) -> usize {
    (1..=(channels / 2).clamp(1, 32)).rev().find(|&groups| channels.is_multiple_of(groups)).unwrap_or(1)
}

/// The layers of [`Architecture::ResNet18`], behind those that are there.
fn resnet18(width: usize, outputs: usize, layers: &mut Vec<LayerSpec>) {
    let normed = |channels, kernel, stride| {
        let convolution = LayerSpec::Conv2d { channels, kernel, stride, padding: kernel / 2, bias: false };
        [convolution, LayerSpec::GroupNorm { groups: groups(channels) }]
    };
    layers.extend(normed(width, 3, 1));
    layers.push(LayerSpec::Relu {});
    for (stage, factor) in [1, 2, 4, 8].into_iter().enumerate() {
        let channels = width.saturating_mul(factor);
        for block in 0..2 {
            let shrinks = stage > 0 && block == 0;
            let stride = if shrinks { 2 } else { 1 };
            let mut main = normed(channels, 3, stride).to_vec();
            main.push(LayerSpec::Relu {});
            main.extend(normed(channels, 3, 1));
            let shortcut = if shrinks { normed(channels, 1, stride).to_vec() } else { Vec::new() };
            layers.push(LayerSpec::Residual { layers: main, shortcut });
            layers.push(LayerSpec::Relu {});
        }
    }
    layers.extend([LayerSpec::GlobalAvgPool2d {}, LayerSpec::Linear { outputs }]);
}

/// The layers of [`Architecture::MobileNet`], behind those that are there.
fn mobilenet(width: usize, outputs: usize, layers: &mut Vec<LayerSpec>) {
    /// Channels of each block's output, as times the width, and the stride of its depthwise convolution. The last one's is 1: the
    /// paper's table says 2, but neither its sizes nor its counts of operations do.
    const BLOCKS: [(usize, usize); 13] =
        [(2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1), (16, 1), (16, 1), (16, 1), (16, 1), (32, 2), (32, 1)];
    let mut normed = |convolution: LayerSpec, channels: usize| {
        layers.extend([convolution, LayerSpec::GroupNorm { groups: groups(channels) }, LayerSpec::Relu {}]);
    };
    let mut channels = width;
    normed(LayerSpec::Conv2d { channels, kernel: 3, stride: 1, padding: 1, bias: false }, channels);
    for (factor, stride) in BLOCKS {
        normed(LayerSpec::DepthwiseConv2d { kernel: 3, stride, padding: 1, bias: false }, channels);
        channels = width.saturating_mul(factor);
        normed(LayerSpec::Conv2d { channels, kernel: 1, stride: 1, padding: 0, bias: false }, channels);
    }
    layers.extend([LayerSpec::GlobalAvgPool2d {}, LayerSpec::Linear { outputs }]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_as_users_write_them() {
        for text in [
            r#"{"architecture":"linear"}"#,
            r#"{"architecture":"mlp","hidden":[256,256],"standardise":false}"#,
            r#"{"architecture":"mnistnet"}"#,
            r#"{"architecture":"convnet","standardise":true}"#,
            r#"{"architecture":"resnet18","width":16}"#,
            r#"{"architecture":"mobilenet","width":16,"standardise":false}"#,
            r#"{"architecture":"layers","layers":[{"type":"depthwise_conv2d","kernel":3,"stride":2,"padding":1,"bias":false},{"type":"depthwise_conv2d","kernel":1,"stride":1,"padding":0}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"residual","layers":[{"type":"conv2d","channels":8,"kernel":3,"stride":1,"padding":1,"bias":false},{"type":"group_norm","groups":4}],"shortcut":[{"type":"relu"}]},{"type":"global_avg_pool2d"},{"type":"residual","layers":[{"type":"linear","outputs":8}]}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"embedding","dimension":3},{"type":"linear","outputs":2}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"standardise"},{"type":"conv2d","channels":32,"kernel":3,"stride":1,"padding":1},{"type":"relu"},{"type":"max_pool2d","size":2},{"type":"flatten"},{"type":"linear","outputs":64}]}"#,
        ] {
            let architecture: Architecture = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&architecture).unwrap(), text);
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            r#"{"architecture":"resnet"}"#,
            r#"{"architecture":"linear","hidden":[3]}"#,
            r#"{"architecture":"mlp"}"#,
            r#"{"architecture":"mlp","hidden":[-1]}"#,
            r#"{"architecture":"layers","layers":[{"type":"relu","slope":1}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"conv2d","channels":1}]}"#,
            r#"{"architecture":"resnet18","width":-1}"#,
            r#"{"architecture":"mobilenet","width":-1}"#,
            r#"{"architecture":"layers","layers":[{"type":"depthwise_conv2d"}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"depthwise_conv2d","kernel":3,"channels":8}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"group_norm"}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"residual"}]}"#,
            r#"{"architecture":"layers","layers":[{"type":"residual","layers":[{"type":"dropout"}]}]}"#,
        ] {
            assert!(serde_json::from_str::<Architecture>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_resnet_is_64_channels_wide_and_a_mobilenet_32_unless_they_say() {
        let architecture: Architecture = serde_json::from_str(r#"{"architecture":"resnet18"}"#).unwrap();
        assert_eq!(architecture, Architecture::ResNet18 { width: 64, standardise: None });
        let architecture: Architecture = serde_json::from_str(r#"{"architecture":"mobilenet"}"#).unwrap();
        assert_eq!(architecture, Architecture::MobileNet { width: 32, standardise: None });
    }

    #[test]
    fn groups_divide_and_have_two_channels_where_that_can_be() {
        let given = [1, 2, 3, 4, 7, 9, 12, 16, 32, 48, 64, 96, 100, 128, 512];
        assert_eq!(given.map(groups), [1, 1, 1, 2, 1, 3, 6, 8, 16, 24, 32, 32, 25, 32, 32]);
    }

    #[test]
    fn nested_documents_end_in_an_error_and_not_in_the_stack() {
        for depth in [20, 60, 100, 100_000] {
            let (open, close) = (r#"{"type":"residual","layers":["#.repeat(depth), "]}".repeat(depth));
            let text = format!(r#"{{"architecture":"layers","layers":[{open}{{"type":"relu"}}{close}]}}"#);
            assert_eq!(serde_json::from_str::<Architecture>(&text).is_ok(), depth <= 60, "{depth}");
        }
    }
}
