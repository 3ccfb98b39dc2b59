//! Whole training steps agree with PyTorch's, number for number: forward, loss, backward and update, three times over.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use candle_core::{DType, Device, Tensor};
use mustela::network::{Architecture, Loss, Network, Optimiser, Targets, loss};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    learning_rate: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    network: String,
    shape: Vec<usize>,
    rows: usize,
    outputs: usize,
    loss: Loss,
    optimiser: Optimiser,
    before: Vec<Vec<f32>>,
    steps: Vec<Step>,
    after: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Step {
    inputs: Vec<f32>,
    targets: Vec<f32>,
    loss: f32,
}

const CONVOLUTION: &str = r#"{"architecture":"layers","layers":[
    {"type":"conv2d","channels":3,"kernel":3,"padding":1},{"type":"relu"},{"type":"max_pool2d","size":2},
    {"type":"conv2d","channels":4,"kernel":3,"stride":2,"padding":1},{"type":"relu"},{"type":"flatten"},
    {"type":"linear","outputs":4}]}"#;

const RESIDUAL: &str = r#"{"architecture":"layers","layers":[
    {"type":"conv2d","channels":4,"kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":2},{"type":"relu"},
    {"type":"residual","layers":[
        {"type":"conv2d","channels":4,"kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":2},{"type":"relu"},
        {"type":"conv2d","channels":4,"kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":2}]},{"type":"relu"},
    {"type":"residual","layers":[
        {"type":"conv2d","channels":6,"kernel":3,"stride":2,"padding":1,"bias":false},{"type":"group_norm","groups":3},
        {"type":"relu"},{"type":"conv2d","channels":6,"kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":3}],
        "shortcut":[{"type":"conv2d","channels":6,"kernel":1,"stride":2,"bias":false},{"type":"group_norm","groups":3}]},
    {"type":"relu"},{"type":"global_avg_pool2d"},{"type":"linear","outputs":4}]}"#;

/// Two blocks as a MobileNet's: each channel by itself, and then a mix of them.
const SEPARABLE: &str = r#"{"architecture":"layers","layers":[
    {"type":"conv2d","channels":4,"kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":2},{"type":"relu"},
    {"type":"depthwise_conv2d","kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":2},{"type":"relu"},
    {"type":"conv2d","channels":6,"kernel":1,"bias":false},{"type":"group_norm","groups":3},{"type":"relu"},
    {"type":"depthwise_conv2d","kernel":3,"stride":2,"padding":1,"bias":false},{"type":"group_norm","groups":3},{"type":"relu"},
    {"type":"conv2d","channels":8,"kernel":1,"bias":false},{"type":"group_norm","groups":4},{"type":"relu"},
    {"type":"global_avg_pool2d"},{"type":"linear","outputs":4}]}"#;

const DEPTHWISE: &str = r#"{"architecture":"layers","layers":[
    {"type":"depthwise_conv2d","kernel":3,"stride":2,"padding":1},{"type":"relu"},
    {"type":"depthwise_conv2d","kernel":3,"padding":1},{"type":"flatten"},{"type":"linear","outputs":4}]}"#;

fn network(case: &Case) -> Network {
    let text = match case.network.as_str() {
        "mlp" => r#"{"architecture":"mlp","hidden":[5]}"#,
        "convolution" => CONVOLUTION,
        "residual" => RESIDUAL,
        "separable" => SEPARABLE,
        "depthwise" => DEPTHWISE,
        other => panic!("no network is called {other}"),
    };
    let architecture: Architecture = serde_json::from_str(text).unwrap();
    Network::build(&architecture, &case.shape, case.outputs, case.loss, false).unwrap()
}

/// The weights of each layer from PyTorch's flat lists, in the type of the test.
fn weights(network: &Network, lists: &[Vec<f32>], dtype: DType) -> Vec<Vec<Tensor>> {
    let mut lists = lists.iter();
    let layers = network.layers.iter();
    layers
        .map(|layer| {
            let of = |shape: Vec<usize>| {
                let tensor = Tensor::from_vec(lists.next().unwrap().clone(), shape, &Device::Cpu).unwrap();
                tensor.to_dtype(dtype).unwrap().force_contiguous().unwrap()
            };
            layer.parameters().into_iter().map(|parameter| parameter.shape).map(of).collect()
        })
        .collect()
}

fn train(case: &Case, learning_rate: f64, dtype: DType) -> (Vec<f64>, f64) {
    let network = network(case);
    let weights = weights(&network, &case.before, dtype);
    let state: Vec<Vec<Vec<Tensor>>> = weights
        .iter()
        .map(|layer| layer.iter().map(|weight| (0..case.optimiser.state_count()).map(|_| weight.zeros_like().unwrap()).collect()))
        .map(Iterator::collect)
        .collect();
    let mut worst_loss = 0f64;
    for (index, step) in case.steps.iter().enumerate() {
        let shape = [&[case.rows], case.shape.as_slice()].concat();
        let input = Tensor::from_vec(step.inputs.clone(), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let predicted = network.predict(weights.iter().map(Vec::as_slice), input.clone()).unwrap();
        let (mut tensors, mut stashes) = (vec![input], Vec::new());
        for (layer, weights) in network.layers.iter().zip(&weights) {
            let (outputs, stash) = layer.forward(weights, tensors).unwrap();
            (tensors, stashes) = (outputs, {
                stashes.push(stash);
                stashes
            });
        }
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(&predicted), values(&tensors[0]), "{}: prediction and training", case.name);
        let targets = match case.loss {
            Loss::SoftmaxCrossEntropy => Targets::Classes(step.targets.iter().map(|&class| class as u32).collect()),
            Loss::MeanSquaredError => Targets::Values(step.targets.clone()),
        };
        let evaluated = loss::loss(case.loss, &tensors[0], &targets, None).unwrap();
        assert!(evaluated.finite);
        let mean = evaluated.losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / case.rows as f64;
        worst_loss = worst_loss.max((mean - f64::from(step.loss)).abs());
        let mut gradients = vec![evaluated.gradient];
        for (number, layer) in network.layers.iter().enumerate().rev() {
            let (inputs, ours) = layer.backward(&weights[number], stashes.pop().unwrap(), gradients, number > 0).unwrap();
            gradients = inputs;
            for ((weight, state), gradient) in weights[number].iter().zip(&state[number]).zip(ours) {
                case.optimiser.update(weight, state, gradient, learning_rate, index as u64 + 1).unwrap();
            }
        }
    }
    let flat = weights
        .iter()
        .flatten()
        .flat_map(|weight| weight.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap());
    (flat.collect(), worst_loss)
}

#[test]
fn three_steps_are_pytorchs() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/pytorch_steps.json")).unwrap();
    assert_eq!(fixture.cases.len(), 13);
    for case in &fixture.cases {
        for dtype in [DType::F32, DType::F64] {
            let (weights, loss_error) = train(case, fixture.learning_rate, dtype);
            let after: Vec<f64> = case.after.iter().flatten().map(|&value| f64::from(value)).collect();
            assert_eq!(weights.len(), after.len());
            let error = weights.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let moved = case.before.iter().flatten().zip(&after).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(moved > 1e-3, "{}: PyTorch learned nothing", case.name);
            assert!(loss_error < 2e-6, "{} in {dtype:?}: losses differ by {loss_error:e}", case.name);
            assert!(error < 5e-6, "{} in {dtype:?}: weights differ by {error:e}", case.name);
        }
    }
}
