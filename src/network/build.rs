//! From what a user wrote to layers whose shapes fit. Whatever was written, this ends in a network or an error, never in an
//! overflow or an allocation: sizes are checked before anything is made of them.

use super::Network;
use super::architecture::{Architecture, LayerSpec, embedding_dimension};
use super::columns::Column;
use super::layer::{
    Conv2d, DepthwiseConv2d, Embedding, Flatten, GlobalAvgPool2d, GroupNorm, Layer, Linear, MaxPool2d, Relu, Residual,
    Standardise, StandardiseColumns,
};
use super::loss::Loss;
use crate::limits::{LAYERS_DEPTH_MAX, LAYERS_MAX, PARAMETERS_MAX, WIDTH_MAX};

/// An architecture that makes no network for its stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchitectureError {
    /// There is nothing to learn.
    #[error("the network has no layers")]
    Empty,
    /// See [`LAYERS_MAX`].
    #[error("the network has more than {LAYERS_MAX} layers, those inside residual blocks included")]
    TooManyLayers,
    /// See [`LAYERS_DEPTH_MAX`].
    #[error("more than {LAYERS_DEPTH_MAX} residual blocks lie inside each other")]
    TooDeep,
    /// See [`WIDTH_MAX`].
    #[error("the width is {width}, but must be from 1 to {WIDTH_MAX}")]
    Width {
        /// What was asked for.
        width: usize,
    },
    /// See [`PARAMETERS_MAX`].
    #[error("with layer {layer} the network has more than {PARAMETERS_MAX} parameters")]
    TooManyParameters {
        /// The layer that is too many: "3", or "3.main.0" inside a residual block.
        layer: String,
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
        /// Which, from 0: "3", or "3.main.0" inside a residual block.
        layer: String,
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

/// How many layers there may still be after `specs`, of `left`; nothing is made of them before this has looked at all.
fn count(specs: &[LayerSpec], left: usize, depth: usize) -> Result<usize, ArchitectureError> {
    let mut left = left.checked_sub(specs.len()).ok_or(ArchitectureError::TooManyLayers)?;
    for spec in specs {
        if let LayerSpec::Residual { layers, shortcut } = spec {
            if depth == LAYERS_DEPTH_MAX {
                return Err(ArchitectureError::TooDeep);
            }
            left = count(shortcut, count(layers, left, depth + 1)?, depth + 1)?;
        }
    }
    Ok(left)
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
        match *architecture {
            Architecture::ResNet18 { width, .. } | Architecture::MobileNet { width, .. } if !(1..=WIDTH_MAX).contains(&width) => {
                return Err(ArchitectureError::Width { width });
            }
            _ => {}
        }
        let specs = architecture.layers(input_shape, outputs, standardise_default);
        Self::of_layers(&specs, input_shape, None, outputs, loss)
    }

    /// The network for rows of `columns`; [`Network::build`] where all of them are plain numbers. Named architectures standardise
    /// the numbers unless they say otherwise, and embed categories.
    pub fn for_columns(
        architecture: &Architecture,
        columns: &[Column],
        outputs: usize,
        loss: Loss,
    ) -> Result<Network, ArchitectureError> {
        let input_shape = [Column::total_width(columns)];
        if input_shape == [0] || columns.iter().all(|&column| column == Column::Number) {
            return Self::build(architecture, &input_shape, outputs, loss, true);
        }
        let mut specs = architecture.layers(&input_shape, outputs, true);
        if !matches!(architecture, Architecture::Layers { .. }) {
            if columns.iter().all(|column| column.is_category()) {
                specs.retain(|spec| !matches!(spec, LayerSpec::Standardise {}));
            }
            if columns.iter().any(|column| column.is_category()) {
                let behind = usize::from(matches!(specs.first(), Some(LayerSpec::Standardise {})));
                specs.insert(behind, LayerSpec::Embedding { dimension: embedding_dimension() });
            }
        }
        Self::of_layers(&specs, &input_shape, Some(columns), outputs, loss)
    }

    fn of_layers(
        specs: &[LayerSpec],
        input_shape: &[usize],
        columns: Option<&[Column]>,
        outputs: usize,
        loss: Loss,
    ) -> Result<Network, ArchitectureError> {
        count(specs, LAYERS_MAX, 0)?;
        let shape = input_shape.to_vec();
        let mut builder = Builder { shape, columns, parameters: 0, free: false, inside: String::new() };
        let layers = builder.list(specs)?;
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
struct Builder<'a> {
    /// The shape of a row here.
    shape: Vec<usize>,
    /// What a row's numbers are, as long as they are still those of the stream's columns and not all plain.
    columns: Option<&'a [Column]>,
    /// Parameters so far, of the whole network.
    parameters: usize,
    /// Nobody needs the present activations but the next layer, so that it may overwrite them: they are not the input of the network
    /// or of a residual block, and no earlier layer keeps their storage for its backward.
    free: bool,
    /// The residual block that this list of layers is in, such as "3.main."; nothing for the network's own list.
    inside: String,
}

impl Builder<'_> {
    fn list(&mut self, specs: &[LayerSpec]) -> Result<Vec<Box<dyn Layer>>, ArchitectureError> {
        specs.iter().enumerate().map(|(index, spec)| self.next(index, spec)).collect()
    }

    fn next(&mut self, index: usize, spec: &LayerSpec) -> Result<Box<dyn Layer>, ArchitectureError> {
        let place = format!("{}{index}", self.inside);
        let layer = match spec {
            LayerSpec::Residual { layers, shortcut } => self.residual(&place, layers, shortcut)?,
            _ => {
                let layer = self.layer(index, spec);
                let layer = layer.map_err(|(name, reason)| self.refuse(&place, name, reason))?;
                for parameter in layer.parameters() {
                    let total = elements(&parameter.shape).and_then(|elements| self.parameters.checked_add(elements));
                    let total = total.filter(|&total| total <= PARAMETERS_MAX);
                    self.parameters = total.ok_or_else(|| ArchitectureError::TooManyParameters { layer: place.clone() })?;
                }
                layer
            }
        };
        self.pass_columns(&place, spec, layer.name())?;
        self.free = layer.cost(1).leaves_output_free(self.free);
        self.shape = layer.output_shape().to_vec();
        Ok(layer)
    }

    /// Buckets reach no layer that would take them for numbers.
    fn pass_columns(&mut self, place: &str, spec: &LayerSpec, name: &'static str) -> Result<(), ArchitectureError> {
        let has_categories = self.columns.is_some_and(|columns| columns.iter().any(|column| column.is_category()));
        match spec {
            LayerSpec::Standardise {} => return Ok(()),
            LayerSpec::Embedding { .. } => {}
            _ if has_categories => {
                return Err(self.refuse(place, name, "the stream has categorical columns; put an embedding before it"));
            }
            _ => {}
        }
        self.columns = None;
        Ok(())
    }

    fn refuse(&self, place: &str, name: &'static str, reason: &'static str) -> ArchitectureError {
        ArchitectureError::Layer { layer: place.to_owned(), name, shape: self.shape.clone(), reason }
    }

    /// Both branches begin with the block's input, which neither may overwrite.
    fn residual(&mut self, place: &str, main: &[LayerSpec], shortcut: &[LayerSpec]) -> Result<Box<dyn Layer>, ArchitectureError> {
        let mut branch = |name: &str, specs: &[LayerSpec]| {
            let inside = format!("{place}.{name}.");
            let mut within =
                Builder { shape: self.shape.clone(), columns: None, parameters: self.parameters, free: false, inside };
            let layers = within.list(specs)?;
            self.parameters = within.parameters;
            Ok(layers)
        };
        let (main, shortcut) = (branch("main", main)?, branch("shortcut", shortcut)?);
        match Residual::new(&self.shape, main, shortcut) {
            Some(layer) => Ok(Box::new(layer)),
            None => {
                Err(self.refuse(place, "residual", "it needs layers, and a shortcut that ends in the shape that they end in"))
            }
        }
    }

    fn layer(&self, index: usize, spec: &LayerSpec) -> Result<Box<dyn Layer>, (&'static str, &'static str)> {
        let image = |name| {
            <[usize; 3]>::try_from(self.shape.as_slice()).map_err(|_| (name, "it takes rows of [channels, height, width]"))
        };
        fn fits<L: Layer + 'static>(
            layer: Option<L>,
            name: &'static str,
            wants: &'static str,
        ) -> Result<Box<dyn Layer>, (&'static str, &'static str)> {
            layer.map(|layer| Box::new(layer) as Box<dyn Layer>).ok_or((name, wants))
        }
        match *spec {
            LayerSpec::Linear { outputs } => match *self.shape.as_slice() {
                _ if outputs == 0 => Err(("linear", "it needs at least one output")),
                // The weights are counted by the caller; here only the output must not be out of all proportion.
                [inputs] if outputs <= PARAMETERS_MAX => Ok(Box::new(Linear::new(inputs, outputs))),
                [_] => Err(("linear", "it has too many outputs")),
                _ => Err(("linear", "it takes rows of numbers; put a flatten before it")),
            },
            LayerSpec::Relu {} => Ok(Box::new(Relu::new(&self.shape, self.free))),
            LayerSpec::Conv2d { channels, kernel, stride, padding, bias } => {
                let layer = Conv2d::new(image("conv2d")?, channels, kernel, stride, padding);
                let layer = layer.map(|layer| if bias { layer } else { layer.without_bias() });
                let wants = "it needs channels, a kernel no larger than the padded image, a stride, less padding than kernel, and \
                             sizes within limits";
                fits(layer, "conv2d", wants)
            }
            LayerSpec::DepthwiseConv2d { kernel, stride, padding, bias } => {
                let layer = DepthwiseConv2d::new(image("depthwise_conv2d")?, kernel, stride, padding);
                let layer = layer.map(|layer| if bias { layer } else { layer.without_bias() });
                let wants = "it needs a kernel no larger than the padded image, a stride, less padding than kernel, and sizes within \
                             limits";
                fits(layer, "depthwise_conv2d", wants)
            }
            LayerSpec::MaxPool2d { size } => {
                let layer = MaxPool2d::new(image("max_pool2d")?, size);
                fits(layer, "max_pool2d", "its size must be from 1 to 16 and no larger than the image")
            }
            LayerSpec::GlobalAvgPool2d {} => {
                fits(GlobalAvgPool2d::new(image("global_avg_pool2d")?), "global_avg_pool2d", "it needs an image")
            }
            LayerSpec::GroupNorm { groups } => {
                fits(GroupNorm::new(image("group_norm")?, groups), "group_norm", "its groups must divide the channels")
            }
            LayerSpec::Flatten {} => Ok(Box::new(Flatten::new(&self.shape))),
            LayerSpec::Standardise {} if index == 0 && self.inside.is_empty() => match self.columns {
                Some(columns) => fits(StandardiseColumns::new(columns), "standardise", "the stream has no numeric column"),
                None => Ok(Box::new(Standardise::new(&self.shape))),
            },
            LayerSpec::Standardise {} => Err(("standardise", "it can only be the first layer, because it passes no gradient on")),
            LayerSpec::Embedding { dimension } => {
                let layer = self.columns.and_then(|columns| Embedding::new(columns, dimension));
                let wants = "it needs a stream with categorical columns, a dimension from 1 to 1024, and a place before all layers but \
                             a standardise";
                fits(layer, "embedding", wants)
            }
            LayerSpec::Residual { .. } => Err(("residual", "it is made of layers")),
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

    fn of_columns(text: &str, columns: &[Column]) -> Result<Network, ArchitectureError> {
        Network::for_columns(&serde_json::from_str(text).unwrap(), columns, 2, Loss::SoftmaxCrossEntropy)
    }

    #[test]
    fn plain_columns_give_the_network_that_they_gave() {
        for text in [r#"{"architecture":"linear"}"#, r#"{"architecture":"mlp","hidden":[4],"standardise":false}"#] {
            let architecture = serde_json::from_str(text).unwrap();
            let before = Network::build(&architecture, &[3], 2, Loss::SoftmaxCrossEntropy, true).unwrap();
            let now = of_columns(text, &[Column::Number; 3]).unwrap();
            assert_eq!(format!("{before:?}"), format!("{now:?}"));
            assert_eq!(before.parameter_names(), now.parameter_names());
        }
        assert!(of_columns(r#"{"architecture":"linear"}"#, &[]).is_err());
    }

    #[test]
    fn categories_are_embedded_behind_the_standardised_numbers() {
        let (number, optional, category) = (Column::Number, Column::Optional, Column::Category { buckets: 5 });
        let (linear, bare) = (r#"{"architecture":"linear"}"#, r#"{"architecture":"mlp","hidden":[4],"standardise":false}"#);
        let layers = |layers: &str| format!(r#"{{"architecture":"layers","layers":[{layers},{{"type":"linear","outputs":2}}]}}"#);
        let embedding = r#"{"type":"embedding","dimension":3}"#;
        let listed = layers(&format!(r#"{{"type":"standardise"}},{embedding}"#));
        for (text, columns, names) in [
            (linear, vec![number, category], vec!["standardise", "embedding", "linear"]),
            (linear, vec![optional], vec!["standardise", "linear"]),
            (linear, vec![category, category], vec!["embedding", "linear"]),
            (bare, vec![number, category, optional], vec!["embedding", "linear", "relu", "linear"]),
            (bare, vec![optional], vec!["linear", "relu", "linear"]),
            (&layers(embedding), vec![category, number], vec!["embedding", "linear"]),
            (&listed, vec![category, number], vec!["standardise", "embedding", "linear"]),
        ] {
            let network = of_columns(text, &columns).unwrap();
            assert_eq!(network.layers.iter().map(|layer| layer.name()).collect::<Vec<_>>(), names, "{columns:?}");
            assert!(network.first_learning_layer() <= 1);
        }
    }

    #[test]
    fn buckets_are_never_taken_for_numbers() {
        let (number, optional, category) = (Column::Number, Column::Optional, Column::Category { buckets: 5 });
        let layers = |layers: &str| format!(r#"{{"architecture":"layers","layers":[{layers},{{"type":"linear","outputs":2}}]}}"#);
        let (relu, embedding) = (r#"{"type":"relu"}"#, r#"{"type":"embedding"}"#);
        for (text, columns, said) in [
            (layers(relu), vec![category], "put an embedding before it"),
            (layers(&format!("{relu},{embedding}")), vec![category], "put an embedding before it"),
            (layers(r#"{"type":"standardise"}"#), vec![category, number], "put an embedding before it"),
            (layers(r#"{"type":"standardise"}"#), vec![category], "no numeric column"),
            (layers(embedding), vec![optional], "a stream with categorical columns"),
            (layers(embedding), vec![number], "a stream with categorical columns"),
            (layers(&format!("{embedding},{embedding}")), vec![category], "a stream with categorical columns"),
            (layers(r#"{"type":"embedding","dimension":0}"#), vec![category], "a dimension"),
            (layers(r#"{"type":"embedding","dimension":18446744073709551615}"#), vec![category], "a dimension"),
            (layers(&format!(r#"{{"type":"residual","layers":[{embedding}]}}"#)), vec![category], "main.0 (embedding)"),
            (r#"{"architecture":"linear"}"#.into(), vec![Column::Category { buckets: usize::MAX }], "embedding"),
            (r#"{"architecture":"linear"}"#.into(), vec![Column::Category { buckets: PARAMETERS_MAX / 2 }], "parameters"),
            (r#"{"architecture":"convnet"}"#.into(), vec![category, number], "[channels, height, width]"),
        ] {
            let error = of_columns(&text, &columns).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn resnets_have_their_sizes_whatever_the_image() {
        for (width, expected) in [(64, 11_173_962), (16, 701_466)] {
            let network = build(&format!(r#"{{"architecture":"resnet18","width":{width}}}"#), &[3, 32, 32], 10).unwrap();
            assert_eq!(parameters(&network), expected);
            let names: Vec<_> = network.layers.iter().map(|layer| layer.name()).collect();
            assert_eq!(names[..5], ["conv2d", "group_norm", "relu", "residual", "relu"]);
            assert_eq!(names.len(), 21);
        }
        for shape in [[1, 1, 1], [3, 7, 5], [1, 28, 28]] {
            assert!(build(r#"{"architecture":"resnet18","width":3,"standardise":true}"#, &shape, 10).is_ok());
        }
    }

    #[test]
    fn mobilenets_have_their_sizes_whatever_the_image_and_the_width() {
        for (width, expected) in [(32, 3_217_226), (16, 823_722)] {
            let network = build(&format!(r#"{{"architecture":"mobilenet","width":{width}}}"#), &[3, 32, 32], 10).unwrap();
            assert_eq!(parameters(&network), expected);
            let names: Vec<_> = network.layers.iter().map(|layer| layer.name()).collect();
            let block = ["depthwise_conv2d", "group_norm", "relu", "conv2d", "group_norm", "relu"];
            let expected = [&block[3..], &block.repeat(13), &["global_avg_pool2d", "linear"]].concat();
            assert_eq!(names, expected);
            assert_eq!(network.layers[80].output_shape(), [32 * width, 2, 2]);
        }
        for shape in [[1, 1, 1], [3, 7, 5], [1, 28, 28]] {
            for width in (1..=40).chain([97, 100, 509, WIDTH_MAX]) {
                let text = format!(r#"{{"architecture":"mobilenet","width":{width},"standardise":true}}"#);
                assert!(build(&text, &shape, 10).is_ok(), "{text} {shape:?}");
            }
        }
    }

    #[test]
    fn hostile_depthwise_convolutions_are_errors() {
        let build_one = |fields: &str, shape: &[usize]| {
            let text = format!(
                r#"{{"architecture":"layers","layers":[{{"type":"depthwise_conv2d",{fields}}},{{"type":"flatten"}},
                {{"type":"linear","outputs":2}}]}}"#
            );
            build(&text, shape, 2)
        };
        assert!(build_one(r#""kernel":3,"padding":1"#, &[3, 8, 8]).is_ok());
        for (fields, shape) in [
            (r#""kernel":0"#, vec![3, 8, 8]),
            (r#""kernel":9"#, vec![3, 8, 8]),
            (r#""kernel":3,"stride":0"#, vec![3, 8, 8]),
            (r#""kernel":3,"padding":3"#, vec![3, 8, 8]),
            (r#""kernel":18446744073709551615,"padding":18446744073709551614"#, vec![3, 8, 8]),
            (r#""kernel":40000,"padding":39999"#, vec![1, 8, 8]),
            (r#""kernel":3"#, vec![192]),
        ] {
            let error = build_one(fields, &shape).unwrap_err().to_string();
            assert!(error.contains("layer 0 (depthwise_conv2d)"), "{error}");
        }
    }

    #[test]
    fn inside_a_residual_block_the_input_is_never_overwritten() {
        let text = r#"{"architecture":"layers","layers":[{"type":"linear","outputs":2},
            {"type":"residual","layers":[{"type":"relu"},{"type":"linear","outputs":2},{"type":"relu"}],"shortcut":[{"type":"relu"}]},
            {"type":"relu"}]}"#;
        let network = build(text, &[3], 2).unwrap();
        let text = format!("{:?}", network.layers[1]);
        let in_place: Vec<bool> =
            text.match_indices("in_place: ").map(|(at, _)| text[at..].starts_with("in_place: true")).collect();
        assert_eq!(in_place, [false, true, false]);
        assert_eq!(network.layers[2].cost(1).output, 0, "the sum is nobody's but the relu's");
    }

    #[test]
    fn hostile_blocks_are_errors_that_say_where() {
        let block = |layers: &str, shortcut: &str| {
            format!(r#"{{"architecture":"layers","layers":[{{"type":"residual","layers":[{layers}],"shortcut":[{shortcut}]}}]}}"#)
        };
        let nested = |depth: usize| {
            let (open, close) = (r#"{"type":"residual","layers":["#.repeat(depth), "]}".repeat(depth));
            format!(r#"{{"architecture":"layers","layers":[{open}{{"type":"linear","outputs":3}}{close}]}}"#)
        };
        assert!(build(&nested(LAYERS_DEPTH_MAX), &[3], 3).is_ok());
        assert_eq!(build(&nested(LAYERS_DEPTH_MAX + 1), &[3], 3).unwrap_err(), ArchitectureError::TooDeep);
        assert_eq!(build(&nested(60), &[3], 3).unwrap_err(), ArchitectureError::TooDeep);
        let many = [r#"{"type":"relu"}"#; LAYERS_MAX / 2].join(",");
        assert_eq!(build(&block(&many, &many), &[3], 3).unwrap_err(), ArchitectureError::TooManyLayers);
        for (layers, shortcut, said) in [
            ("", "", "layer 0 (residual)"),
            (r#"{"type":"linear","outputs":4}"#, "", "layer 0 (residual)"),
            (r#"{"type":"linear","outputs":4}"#, r#"{"type":"linear","outputs":5}"#, "layer 0 (residual)"),
            (r#"{"type":"relu"},{"type":"group_norm","groups":1}"#, "", "layer 0.main.1 (group_norm)"),
            (r#"{"type":"relu"}"#, r#"{"type":"standardise"}"#, "layer 0.shortcut.0 (standardise)"),
            (r#"{"type":"standardise"}"#, "", "layer 0.main.0 (standardise)"),
            (r#"{"type":"linear","outputs":500000000}"#, "", "with layer 0.main.0 the network has more"),
        ] {
            let error = build(&block(layers, shortcut), &[3], 3).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for text in
            [r#"{"type":"group_norm","groups":2}"#, r#"{"type":"group_norm","groups":0}"#, r#"{"type":"linear","outputs":1}"#]
        {
            assert!(build(&block(text, ""), &[3, 4, 4], 3).is_err(), "{text}");
        }
        for width in [0, 513, usize::MAX] {
            for name in ["resnet18", "mobilenet"] {
                let text = format!(r#"{{"architecture":"{name}","width":{width}}}"#);
                assert_eq!(build(&text, &[3, 32, 32], 10).unwrap_err(), ArchitectureError::Width { width });
            }
        }
        assert!(build(r#"{"architecture":"resnet18","width":512}"#, &[3, 32, 32], 10).is_ok());
        assert!(build(r#"{"architecture":"resnet18"}"#, &[3072], 10).is_err());
        assert!(build(r#"{"architecture":"mobilenet"}"#, &[3072], 10).is_err());
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
        let network = build(r#"{"architecture":"mobilenet"}"#, &[3, 1000, 1000], 10).unwrap();
        let cost = network.layers[3].cost(usize::MAX / 2);
        assert_eq!((network.layers[3].name(), cost.output, cost.flops_backward), ("depthwise_conv2d", u64::MAX, u64::MAX));
        let network = build(r#"{"architecture":"resnet18"}"#, &[3, 1000, 1000], 10).unwrap();
        let costs: Vec<_> = network.layers.iter().map(|layer| layer.cost(usize::MAX / 2)).collect();
        assert_eq!((costs[3].stash, costs[3].flops_backward), (u64::MAX, u64::MAX));
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
