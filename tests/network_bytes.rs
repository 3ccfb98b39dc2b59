//! What a layer says of its bytes beforehand is what it takes: storage exactly, and the allocator's peak no more than that with
//! the workspace. One test, because the allocator is the process's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use candle_core::{DType, Device, Tensor};
use mustela::allocator::{Counting, live_bytes, peak_bytes, reset_peak};
use mustela::network::layer::Linear;
use mustela::network::{Architecture, Column, Gradient, Layer, Loss, Network, Optimiser, Stash};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Shapes, strides and reference counts of the few tensors at hand, which are not counted as storage.
const SMALL: u64 = 4096;

fn input(network: &Network, rows: usize) -> Tensor {
    let shape = [&[rows], network.input_shape.as_slice()].concat();
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|index| ((index * 31) % 17) as f32 - 8.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn storage(tensors: &[Tensor]) -> u64 {
    tensors.iter().map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
}

fn near(what: &str, measured: u64, said: u64) {
    assert!(measured.abs_diff(said) <= SMALL, "{what}: {measured} bytes, said to be {said}");
}

fn at_most(what: &str, measured: u64, said: u64) {
    assert!(measured <= said + SMALL, "{what}: {measured} bytes at the peak, said to be at most {said}");
}

/// Of a layer made of layers, whose scratch is reckoned and not known: said is hardly more than measured.
fn close(what: &str, measured: u64, said: u64) {
    assert!(measured + SMALL + said / 50 >= said, "{what}: {measured} bytes at the peak, said to be {said}");
}

fn forward(layer: &dyn Layer, weights: &[Tensor], rows: usize, inputs: Vec<Tensor>) -> (Vec<Tensor>, Stash) {
    let (cost, what) = (layer.cost(rows), format!("forward of {layer:?} on {rows} rows"));
    near(&format!("weights of {layer:?}"), storage(weights), cost.weights);
    let given = inputs.clone();
    let before = live_bytes();
    reset_peak();
    let (outputs, stash) = layer.forward(weights, inputs).unwrap();
    near(&what, live_bytes().saturating_sub(before), cost.output + cost.stash);
    at_most(&what, peak_bytes() - before, cost.output + cost.stash + cost.workspace_forward);
    if !stash.inner.is_empty() {
        close(&what, peak_bytes() - before, cost.output + cost.stash + cost.workspace_forward);
    }
    if cost.output > 0 {
        assert_eq!(storage(&outputs), cost.output, "{what}");
    }
    drop(given);
    (outputs, stash)
}

/// Backward without the input gradient, for a layer that lets go of its stash on the way.
fn without_input(layer: &dyn Layer, weights: &[Tensor], rows: usize, input: Tensor, gradients: Vec<Tensor>) {
    let (cost, what) = (layer.cost(rows), format!("backward of {layer:?} on {rows} rows, without the input gradient"));
    let (outputs, stash) = layer.forward(weights, vec![input.clone()]).unwrap();
    drop(outputs);
    let before = live_bytes();
    reset_peak();
    let returned = layer.backward(weights, stash, gradients.clone(), false).unwrap();
    near(&what, (live_bytes() + cost.stash).saturating_sub(before), cost.weight_gradient);
    at_most(&what, peak_bytes() - before, cost.weight_gradient + cost.workspace_backward_alone);
    drop(returned);
}

/// `held` keeps the input and the output alive, so that only the layer's own stash is freed.
fn backward(
    layer: &dyn Layer,
    weights: &[Tensor],
    rows: usize,
    (held, stash): ([Tensor; 2], Stash),
    gradients: Vec<Tensor>,
) -> Vec<Tensor> {
    let (cost, what) = (layer.cost(rows), format!("backward of {layer:?} on {rows} rows"));
    if layer.name() == "standardise" {
        return Vec::new();
    }
    let composite = !stash.inner.is_empty();
    if composite {
        without_input(layer, weights, rows, held[0].clone(), gradients.clone());
    }
    let kept = gradients.clone();
    let before = live_bytes();
    reset_peak();
    let (inputs, gradients) = layer.backward(weights, stash, gradients, true).unwrap();
    let fresh = cost.input_gradient + cost.weight_gradient;
    near(&what, (live_bytes() + cost.stash).saturating_sub(before), fresh);
    at_most(&what, peak_bytes() - before, fresh + cost.workspace_backward);
    // Without scratch the peak lies below what is returned and the whole stash, which was let go of on the way.
    if composite && cost.workspace_backward > 0 {
        close(&what, peak_bytes() + cost.stash - before, cost.stash + fresh + cost.workspace_backward);
    }
    drop((kept, held));
    let optimiser = Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 };
    // Before the measuring: the text itself takes bytes.
    let updating = format!("update of {layer:?} on {rows} rows");
    let before = live_bytes();
    reset_peak();
    for (weight, gradient) in weights.iter().zip(&gradients) {
        optimiser.update(weight, &[], gradient.clone(), 1e-3, 1).unwrap();
    }
    at_most(&updating, peak_bytes() - before, cost.workspace_update);
    let dense: Vec<Tensor> = gradients.into_iter().map(|gradient| gradient.dense().unwrap()).collect();
    assert_eq!(storage(&dense), cost.weight_gradient_dense, "{what}");
    inputs
}

/// The gemm crate keeps a slab as large as the second-level cache for each thread from the first large product on.
fn take_slab() {
    let matrix = |rows: usize, columns: usize| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).unwrap();
    let gradient = Gradient::Outer { output_gradient: matrix(500, 500), input: matrix(500, 500) };
    gradient.dense().unwrap();
    let layer = Linear::new(784, 300);
    let weights = [matrix(300, 784), Tensor::ones(300, DType::F32, &Device::Cpu).unwrap()];
    layer.backward(&weights, vec![matrix(5, 784)].into(), vec![matrix(5, 300)], true).unwrap();
}

#[test]
fn layers_take_the_bytes_that_they_say() {
    take_slab();
    for (text, shape) in [
        (r#"{"architecture":"mlp","hidden":[300,100],"standardise":true}"#, vec![784]),
        (r#"{"architecture":"convnet"}"#, vec![3, 32, 32]),
        (r#"{"architecture":"mnistnet"}"#, vec![1, 28, 27]),
        (
            r#"{"architecture":"layers","layers":[{"type":"relu"},{"type":"conv2d","channels":5,"kernel":5,"stride":2,"padding":2},
            {"type":"flatten"},{"type":"relu"},{"type":"linear","outputs":10}]}"#,
            vec![4, 65, 130],
        ),
        (r#"{"architecture":"resnet18","width":16}"#, vec![3, 32, 32]),
        (r#"{"architecture":"mobilenet","width":16}"#, vec![3, 32, 32]),
        (
            r#"{"architecture":"layers","layers":[{"type":"depthwise_conv2d","kernel":5,"stride":2,"padding":2},{"type":"relu"},
            {"type":"residual","layers":[{"type":"depthwise_conv2d","kernel":3,"padding":1},{"type":"relu"}]},
            {"type":"depthwise_conv2d","kernel":2,"stride":3,"bias":false},{"type":"global_avg_pool2d"},
            {"type":"linear","outputs":10}]}"#,
            vec![4, 65, 130],
        ),
        (
            r#"{"architecture":"layers","layers":[{"type":"conv2d","channels":6,"kernel":3,"padding":1},{"type":"relu"},
            {"type":"residual","layers":[{"type":"relu"},{"type":"residual","layers":[{"type":"conv2d","channels":6,"kernel":3,
            "padding":1},{"type":"relu"}]},{"type":"group_norm","groups":2}]},{"type":"relu"},{"type":"flatten"},
            {"type":"residual","layers":[{"type":"linear","outputs":300},{"type":"relu"}],
            "shortcut":[{"type":"relu"},{"type":"linear","outputs":300}]},{"type":"linear","outputs":10}]}"#,
            vec![3, 20, 20],
        ),
    ] {
        let architecture: Architecture = serde_json::from_str(text).unwrap();
        bytes_of(&Network::build(&architecture, &shape, 10, Loss::SoftmaxCrossEntropy, false).unwrap());
    }
    let columns =
        [vec![Column::Optional; 300], vec![Column::Category { buckets: 700 }, Column::Number, Column::Category { buckets: 9 }]];
    for text in [r#"{"architecture":"mlp","hidden":[64]}"#, r#"{"architecture":"linear","standardise":false}"#] {
        let architecture: Architecture = serde_json::from_str(text).unwrap();
        bytes_of(&Network::for_columns(&architecture, &columns.concat(), 10, Loss::SoftmaxCrossEntropy).unwrap());
    }
}

fn bytes_of(network: &Network) {
    let weights = network.initial_weights(1).unwrap();
    for rows in [1, 5, 64] {
        let mut tensors = vec![input(network, rows)];
        let mut stashes = Vec::new();
        for (layer, weights) in network.layers.iter().zip(&weights) {
            let input = tensors[0].clone();
            let (outputs, stash) = forward(layer.as_ref(), weights, rows, tensors);
            stashes.push(([input, outputs[0].clone()], stash));
            tensors = outputs;
        }
        let mut gradients = vec![Tensor::ones((rows, 10), DType::F32, &Device::Cpu).unwrap()];
        for (number, layer) in network.layers.iter().enumerate().rev() {
            gradients = backward(layer.as_ref(), &weights[number], rows, stashes.pop().unwrap(), gradients);
        }
    }
}
