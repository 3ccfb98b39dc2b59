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
    },
    /// The largest of each window; the windows do not overlap.
    MaxPool2d {
        /// Side of the window, at most 16.
        size: usize,
    },
    /// Rows of any shape as rows of numbers.
    Flatten {},
    /// Features to mean 0 and variance 1, by what was seen so far; only as the first layer.
    Standardise {},
}

fn one() -> usize {
    1
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
            | Architecture::ConvNet { standardise } => standardise.unwrap_or(standardise_default),
        };
        if standardise {
            layers.push(LayerSpec::Standardise {});
        }
        let hidden: &[usize] = match self {
            Architecture::Mlp { hidden, .. } => hidden,
            Architecture::MnistNet { .. } => &[128],
            _ => &[],
        };
        if matches!(self, Architecture::MnistNet { .. } | Architecture::ConvNet { .. }) {
            for channels in [32, 64] {
                layers.push(LayerSpec::Conv2d { channels, kernel: 3, stride: 1, padding: 1 });
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
        ] {
            assert!(serde_json::from_str::<Architecture>(text).is_err(), "{text}");
        }
    }
}
