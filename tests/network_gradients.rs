//! Every gradient is the one that finite differences (in f64) and, where it is right, candle's autograd give.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{GroupNorm as TheirGroupNorm, Module};
use mustela::network::layer::{
    Conv2d, DepthwiseConv2d, Embedding, Flatten, GlobalAvgPool2d, GroupNorm, Linear, MaxPool2d, Relu, Residual, ZeroPad2d,
};
use mustela::network::{Architecture, Column, Layer, Loss, Network, Targets, loss, random};

fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut generator = random::stream(seed, 0, "gradient test");
    (0..count).map(|_| 2.0 * f64::from(random::uniform(&mut generator)) - 1.0).collect()
}

fn tensor(values: Vec<f64>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn random_tensor(seed: u64, shape: &[usize]) -> Tensor {
    tensor(numbers(seed, shape.iter().product()), shape)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn weights(layer: &dyn Layer) -> Vec<Tensor> {
    let parameters = layer.parameters();
    parameters.iter().enumerate().map(|(index, parameter)| random_tensor(50 + index as u64, &parameter.shape)).collect()
}

/// `Σ factors · outputs`, a scalar whose gradient by the outputs is `factors`.
fn scalar(layer: &dyn Layer, weights: &[Tensor], input: &Tensor, factors: &[f64]) -> f64 {
    let output = layer.predict(weights, vec![input.force_contiguous().unwrap()]).unwrap().remove(0);
    values(&output).iter().zip(factors).map(|(output, factor)| output * factor).sum()
}

/// The gradient of `function` by each element of `at`, by central differences.
fn differences(at: &Tensor, function: impl Fn(&Tensor) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let centre = values(at);
    (0..centre.len())
        .map(|index| {
            let moved = |by: f64| {
                let mut values = centre.clone();
                values[index] += by;
                function(&tensor(values, at.dims()))
            };
            (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
        })
        .collect()
}

fn assert_close(what: &str, ours: &[f64], theirs: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!((ours - theirs).abs() < tolerance, "{what}, element {index}: {ours} and {theirs}");
    }
}

/// Runs forward and backward; returns output, input gradient and weight gradients.
fn run(layer: &dyn Layer, weights: &[Tensor], input: &Tensor, gradient: &[f64]) -> (Tensor, Tensor, Vec<Tensor>) {
    let (mut outputs, stash) = layer.forward(weights, vec![input.force_contiguous().unwrap()]).unwrap();
    let output = outputs.remove(0);
    let gradient = tensor(gradient.to_vec(), output.dims());
    let (mut inputs, gradients) = layer.backward(weights, stash, vec![gradient], true).unwrap();
    (output, inputs.remove(0), gradients.into_iter().map(|gradient| gradient.dense().unwrap()).collect())
}

fn check(layer: &dyn Layer, input_shape: &[usize], rows: usize) {
    check_at(layer, &random_tensor(3, &[&[rows], input_shape].concat()));
}

fn check_at(layer: &dyn Layer, input: &Tensor) {
    let rows = input.dims()[0];
    let what = format!("{layer:?}, {rows} rows");
    let weights = weights(layer);
    let factors = numbers(4, rows * layer.output_shape().iter().product::<usize>());
    let (output, input_gradient, gradients) = run(layer, &weights, input, &factors);
    assert_eq!(output.dims()[1..], *layer.output_shape(), "{what}");
    assert_eq!(input_gradient.dims(), input.dims(), "{what}");
    let expected = differences(input, |input| scalar(layer, &weights, input, &factors));
    assert_close(&format!("{what}: input"), &values(&input_gradient), &expected, 1e-7);
    assert_eq!(gradients.len(), weights.len(), "{what}");
    for (index, gradient) in gradients.iter().enumerate() {
        let expected = differences(&weights[index], |weight| {
            let mut weights = weights.clone();
            weights[index] = weight.clone();
            scalar(layer, &weights, input, &factors)
        });
        assert_close(&format!("{what}: parameter {index}"), &values(gradient), &expected, 1e-7);
    }
    let again = run(layer, &weights, input, &factors);
    assert_eq!(values(&again.1), values(&input_gradient), "{what}: the same twice");
}

#[test]
fn linear() {
    for (inputs, outputs, rows) in [(1, 1, 1), (7, 5, 1), (70, 3, 1), (6, 4, 2), (13, 9, 5), (65, 17, 20), (5, 1, 17)] {
        check(&Linear::new(inputs, outputs), &[inputs], rows);
    }
}

#[test]
fn relu() {
    for in_place in [false, true] {
        check(&Relu::new(&[37], in_place), &[37], 3);
    }
}

#[test]
fn embedding() {
    let (number, optional) = (Column::Number, Column::Optional);
    let category = |buckets| Column::Category { buckets };
    for (columns, dimension) in [
        (vec![category(3)], 1),
        (vec![number, category(4), optional, category(2)], 3),
        (vec![category(1), category(9), number], 8),
    ] {
        let layer = Embedding::new(&columns, dimension).unwrap();
        for rows in [1, 5, 20] {
            // Some buckets come up twice in a step, some not at all.
            let row = (0..rows).flat_map(|row| {
                let drawn = numbers(row as u64, columns.len());
                columns.iter().zip(drawn).flat_map(move |(column, drawn)| match *column {
                    Column::Number => vec![drawn],
                    Column::Optional => vec![drawn, (row % 2) as f64],
                    Column::Category { buckets } => vec![(row * 7 % buckets) as f64],
                })
            });
            check_at(&layer, &tensor(row.collect(), &[rows, Column::total_width(&columns)]));
        }
    }
}

#[test]
fn flatten() {
    check(&Flatten::new(&[2, 3, 4]), &[2, 3, 4], 2);
}

#[test]
fn conv2d() {
    for (shape, outputs, kernel, stride, padding) in [
        ([1, 5, 5], 1, 3, 1, 0),
        ([2, 6, 7], 3, 3, 1, 1),
        ([3, 7, 5], 2, 3, 2, 1),
        ([2, 8, 9], 2, 3, 2, 0),
        ([2, 5, 6], 4, 1, 1, 0),
        ([2, 9, 9], 2, 5, 3, 2),
        ([1, 2, 2], 2, 3, 1, 1),
        ([1, 1, 9], 1, 2, 2, 1),
        ([2, 4, 4], 1, 4, 1, 3),
    ] {
        for rows in [1, 3] {
            check(&Conv2d::new(shape, outputs, kernel, stride, padding).unwrap(), &shape, rows);
        }
    }
}

#[test]
fn conv2d_without_bias() {
    for (shape, outputs, kernel, stride, padding) in [([2, 6, 7], 3, 3, 1, 1), ([3, 7, 5], 2, 1, 2, 0)] {
        check(&Conv2d::new(shape, outputs, kernel, stride, padding).unwrap().without_bias(), &shape, 2);
    }
}

/// Sizes of depthwise convolutions: shape, kernel, stride and padding. Odd ones, and those that leave columns over.
const DEPTHWISE: [([usize; 3], usize, usize, usize); 12] = [
    ([1, 5, 5], 3, 1, 0),
    ([2, 6, 7], 3, 1, 1),
    ([3, 7, 5], 3, 2, 1),
    ([2, 8, 9], 3, 2, 0),
    ([2, 8, 6], 3, 2, 1),
    ([4, 5, 6], 1, 1, 0),
    ([2, 9, 9], 5, 3, 2),
    ([2, 2, 2], 3, 1, 1),
    ([1, 1, 9], 2, 2, 1),
    ([2, 4, 4], 4, 1, 3),
    ([2, 7, 8], 2, 3, 0),
    ([3, 5, 19], 4, 2, 1),
];

#[test]
fn depthwise_conv2d() {
    for (shape, kernel, stride, padding) in DEPTHWISE {
        for rows in [1, 3] {
            check(&DepthwiseConv2d::new(shape, kernel, stride, padding).unwrap(), &shape, rows);
        }
    }
    for (shape, kernel, stride, padding) in [([2, 6, 7], 3, 1, 1), ([3, 7, 5], 1, 2, 0)] {
        check(&DepthwiseConv2d::new(shape, kernel, stride, padding).unwrap().without_bias(), &shape, 2);
    }
}

#[test]
fn depthwise_conv2d_is_candles_grouped_convolution() {
    let larger = [([32, 33, 31], 3, 1, 1), ([5, 32, 32], 3, 2, 1), ([7, 16, 40], 5, 2, 2)];
    for (shape, kernel, stride, padding) in DEPTHWISE.into_iter().chain(larger) {
        let layer = DepthwiseConv2d::new(shape, kernel, stride, padding).unwrap();
        let (weights, input) = (weights(&layer), random_tensor(3, &[&[2], shape.as_slice()].concat()));
        let factors = numbers(4, 2 * layer.output_shape().iter().product::<usize>());
        let (output, input_gradient, gradients) = run(&layer, &weights, &input, &factors);
        let what = format!("{layer:?}");
        let (x, w) = (Var::from_tensor(&input).unwrap(), Var::from_tensor(&weights[0]).unwrap());
        let theirs = x.conv2d(&w, padding, stride, 1, shape[0]).unwrap();
        let theirs = theirs.broadcast_add(&weights[1].reshape((1, (), 1, 1)).unwrap()).unwrap();
        assert_close(&what, &values(&output), &values(&theirs), 1e-12);
        // candle 0.11.1 cannot differentiate a convolution that leaves columns over.
        let whole = |side: usize| (side + 2 * padding - kernel).is_multiple_of(stride);
        if !whole(shape[1]) || !whole(shape[2]) {
            continue;
        }
        let store = (theirs * tensor(factors, output.dims())).unwrap().sum_all().unwrap().backward().unwrap();
        assert_close(&format!("{what}: input"), &values(&input_gradient), &values(store.get(&x).unwrap()), 1e-11);
        assert_close(&format!("{what}: weight"), &values(&gradients[0]), &values(store.get(&w).unwrap()), 1e-11);
    }
}

#[test]
fn group_norm() {
    for (shape, groups) in [([1, 3, 4], 1), ([4, 3, 2], 2), ([4, 5, 7], 4), ([6, 1, 1], 3), ([6, 4, 4], 1), ([2, 9, 11], 2)] {
        for rows in [1, 3] {
            check(&GroupNorm::new(shape, groups).unwrap(), &shape, rows);
        }
    }
}

#[test]
fn global_avg_pool2d() {
    for shape in [[1, 1, 1], [3, 4, 5], [2, 9, 11]] {
        check(&GlobalAvgPool2d::new(shape).unwrap(), &shape, 3);
    }
}

/// The only layer of a list of one, as `build` makes it.
fn built(text: &str, shape: &[usize], outputs: usize) -> Box<dyn Layer> {
    let text = format!(r#"{{"architecture":"layers","layers":[{text},{{"type":"flatten"}},{{"type":"linear","outputs":2}}]}}"#);
    let architecture: Architecture = serde_json::from_str(&text).unwrap();
    let layer = Network::build(&architecture, shape, 2, Loss::SoftmaxCrossEntropy, false).unwrap().layers.remove(0);
    assert_eq!(layer.output_shape().iter().product::<usize>(), outputs);
    layer
}

#[test]
fn residual() {
    let normed = |channels: usize, stride: usize, groups: usize| {
        format!(
            r#"{{"type":"conv2d","channels":{channels},"kernel":3,"stride":{stride},"padding":1,"bias":false}},
            {{"type":"group_norm","groups":{groups}}}"#
        )
    };
    let basic = |channels, stride| format!(r#"{},{{"type":"relu"}},{}"#, normed(channels, stride, 2), normed(channels, 1, 1));
    let block = |main: &str, shortcut: &str| format!(r#"{{"type":"residual","layers":[{main}],"shortcut":[{shortcut}]}}"#);
    let shortcut = r#"{"type":"conv2d","channels":4,"kernel":1,"stride":2,"bias":false},{"type":"group_norm","groups":2}"#;
    let relu = r#"{"type":"relu"}"#;
    let nested = block(&format!("{},{relu},{}", block(&basic(2, 1), ""), normed(4, 2, 4)), shortcut);
    let flat = block(r#"{"type":"linear","outputs":5},{"type":"relu"}"#, r#"{"type":"relu"},{"type":"linear","outputs":5}"#);
    for (text, shape, outputs) in [
        (block(&basic(2, 1), ""), vec![2, 5, 4], 40),
        (block(&basic(4, 2), shortcut), vec![2, 5, 4], 24),
        (nested, vec![2, 5, 4], 24),
        (flat, vec![7], 5),
        // Layers that work in their input's storage, on both sides of the sum.
        (block(relu, ""), vec![2, 3], 6),
        (block(relu, relu), vec![2, 3], 6),
        (block(r#"{"type":"flatten"}"#, r#"{"type":"flatten"},{"type":"relu"}"#), vec![2, 3], 6),
        (block(r#"{"type":"flatten"},{"type":"linear","outputs":6},{"type":"flatten"}"#, r#"{"type":"flatten"}"#), vec![2, 3], 6),
        (block(r#"{"type":"linear","outputs":6}"#, ""), vec![6], 6),
        (block(r#"{"type":"linear","outputs":6}"#, &block(relu, "")), vec![6], 6),
        (block(&block(relu, r#"{"type":"linear","outputs":6}"#), r#"{"type":"linear","outputs":6}"#), vec![6], 6),
    ] {
        for rows in [1, 3] {
            check(built(&text, &shape, outputs).as_ref(), &shape, rows);
        }
    }
}

#[test]
fn a_block_whose_input_gradient_nobody_wants_gives_the_same_for_its_weights() {
    let convolution = |from: usize, stride| Box::new(Conv2d::new([from, 5, 5], 4, 3, stride, 1).unwrap());
    let main: Vec<Box<dyn Layer>> = vec![Box::new(Relu::new(&[2, 5, 5], false)), convolution(2, 2)];
    let shortcut: Vec<Box<dyn Layer>> = vec![Box::new(Relu::new(&[2, 5, 5], false)), convolution(2, 2)];
    let layer = Residual::new(&[2, 5, 5], main, shortcut).unwrap();
    let (weights, input) = (weights(&layer), random_tensor(3, &[2, 2, 5, 5]));
    let factors = numbers(4, 2 * 4 * 9);
    let (_, _, expected) = run(&layer, &weights, &input, &factors);
    let (_, stash) = layer.forward(&weights, vec![input]).unwrap();
    let (inputs, gradients) = layer.backward(&weights, stash, vec![tensor(factors, &[2, 4, 3, 3])], false).unwrap();
    assert!(inputs.is_empty());
    assert_eq!(gradients.len(), 4);
    for (expected, gradient) in expected.iter().zip(gradients) {
        assert_eq!(values(expected), values(&gradient.dense().unwrap()));
    }
}

#[test]
fn conv2d_in_several_tiles() {
    // 64 · 9 · 300 elements a row of outputs: each tile is one row.
    let layer = Conv2d::new([64, 4, 300], 2, 3, 1, 1).unwrap();
    let weights = weights(&layer);
    let input = random_tensor(3, &[1, 64, 4, 300]);
    let factors = numbers(4, 2 * 4 * 300);
    let (output, input_gradient, gradients) = run(&layer, &weights, &input, &factors);
    let (x, w) = (Var::from_tensor(&input).unwrap(), Var::from_tensor(&weights[0]).unwrap());
    let theirs = x.conv2d(&w, 1, 1, 1, 1).unwrap().broadcast_add(&weights[1].reshape((1, 2, 1, 1)).unwrap()).unwrap();
    assert_close("output", &values(&output), &values(&theirs), 1e-10);
    let store = (theirs * tensor(factors, &[1, 2, 4, 300])).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("input", &values(&input_gradient), &values(store.get(&x).unwrap()), 1e-10);
    assert_close("weight", &values(&gradients[0]), &values(store.get(&w).unwrap()), 1e-9);
}

#[test]
fn max_pool2d() {
    for (shape, size) in [([1, 2, 2], 2), ([2, 7, 7], 2), ([2, 6, 5], 2), ([1, 9, 11], 3), ([1, 5, 4], 1), ([1, 17, 16], 16)] {
        check(&MaxPool2d::new(shape, size).unwrap(), &shape, 2);
    }
}

#[test]
fn max_pool2d_of_windows_that_overlap() {
    for (shape, size, stride) in [([2, 7, 7], 3, 2), ([1, 8, 9], 3, 2), ([2, 6, 5], 3, 1), ([1, 17, 16], 16, 1)] {
        check(&MaxPool2d::overlapping(shape, size, stride).unwrap(), &shape, 2);
    }
    let windows = MaxPool2d::overlapping([1, 3, 5], 3, 2).unwrap();
    let x: Vec<f64> = [1, 2, 9, 4, 5, 6, 7, 8, 3, 2, 0, 1, 4, 6, 5].map(f64::from).into();
    let (output, gradient, _) = run(&windows, &[], &tensor(x, &[1, 1, 3, 5]), &[1.0, 10.0]);
    assert_eq!(values(&output), [9.0, 9.0]);
    assert_eq!(values(&gradient)[2], 11.0);
    assert!(MaxPool2d::overlapping([1, 4, 4], 2, 3).is_none() && MaxPool2d::overlapping([1, 4, 4], 2, 0).is_none());
}

#[test]
fn zero_pad2d() {
    for (before, after) in [(0, 1), (1, 2), (0, 0), (3, 0)] {
        check(&ZeroPad2d::new([2, 3, 4], before, after).unwrap(), &[2, 3, 4], 2);
    }
    let padded = ZeroPad2d::new([1, 1, 2], 0, 1).unwrap();
    let output = padded.predict(&[], vec![tensor(vec![1.0, 2.0], &[1, 1, 1, 2])]).unwrap();
    assert_eq!(values(&output[0]), [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    assert!(ZeroPad2d::new([1, 0, 2], 1, 1).is_none() && ZeroPad2d::new([1, 2, 2], usize::MAX, 1).is_none());
}

#[test]
fn relu_with_a_ceiling() {
    for in_place in [true, false] {
        let layer = Relu::new(&[5], in_place).with_ceiling(0.5);
        check(&layer, &[5], 3);
        let (output, gradient, _) = run(&layer, &[], &tensor(vec![-1.0, 0.25, 0.5, 0.75, f64::NAN], &[1, 5]), &[1.0; 5]);
        assert_eq!(values(&output)[..4], [0.0, 0.25, 0.5, 0.5]);
        assert!(values(&output)[4].is_nan());
        assert_eq!(values(&gradient)[..4], [0.0, 1.0, 0.0, 0.0]);
    }
}

#[test]
fn candles_autograd_agrees() {
    // 7 × 7 at stride 2 leaves no column over: candle 0.11.1 cannot differentiate a convolution that does.
    let (x, w) = (random_tensor(1, &[5, 2, 7, 7]), random_tensor(2, &[3, 2, 3, 3]));
    let (x, w) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
    let convolved = x.conv2d(&w, 1, 2, 1, 1).unwrap().relu().unwrap();
    let v = Var::from_tensor(&random_tensor(3, &[4, 3 * 4 * 4])).unwrap();
    let theirs = convolved.flatten_from(1).unwrap().matmul(&v.t().unwrap()).unwrap();
    let factors = numbers(9, 20);
    let store = (&theirs * tensor(factors.clone(), &[5, 4])).unwrap().sum_all().unwrap().backward().unwrap();

    let zeros = |count: usize| tensor(vec![0.0; count], &[count]);
    let layers: [(Box<dyn Layer>, Vec<Tensor>); 4] = [
        (Box::new(Conv2d::new([2, 7, 7], 3, 3, 2, 1).unwrap()), vec![w.as_tensor().clone(), zeros(3)]),
        (Box::new(Relu::new(&[3, 4, 4], true)), vec![]),
        (Box::new(Flatten::new(&[3, 4, 4])), vec![]),
        (Box::new(Linear::new(48, 4)), vec![v.as_tensor().clone(), zeros(4)]),
    ];
    let (mut tensors, mut stashes) = (vec![x.as_tensor().clone()], Vec::new());
    for (layer, weights) in &layers {
        let (outputs, stash) = layer.forward(weights, tensors).unwrap();
        tensors = outputs;
        stashes.push(stash);
    }
    assert_close("output", &values(&tensors[0]), &values(&theirs), 1e-12);
    let mut gradients = vec![tensor(factors, &[5, 4])];
    let mut of_weights = Vec::new();
    for ((layer, weights), stash) in layers.iter().zip(stashes).rev() {
        let (inputs, ours) = layer.backward(weights, stash, gradients, true).unwrap();
        gradients = inputs;
        of_weights.extend(ours.into_iter().next().map(|gradient| values(&gradient.dense().unwrap())));
    }
    assert_close("linear", &of_weights[0], &values(store.get(&v).unwrap()), 1e-12);
    assert_close("conv2d", &of_weights[1], &values(store.get(&w).unwrap()), 1e-12);
    assert_close("input", &values(&gradients[0]), &values(store.get(&x).unwrap()), 1e-12);
}

#[test]
fn candles_autograd_agrees_on_a_residual_network() {
    // Odd sides: see above.
    let text = r#"{"architecture":"layers","layers":[
        {"type":"conv2d","channels":4,"kernel":3,"padding":1,"bias":false},{"type":"group_norm","groups":2},{"type":"relu"},
        {"type":"residual","layers":[{"type":"conv2d","channels":6,"kernel":3,"stride":2,"padding":1,"bias":false},
            {"type":"group_norm","groups":3},{"type":"relu"},{"type":"conv2d","channels":6,"kernel":3,"padding":1,"bias":false},
            {"type":"group_norm","groups":3}],
         "shortcut":[{"type":"conv2d","channels":6,"kernel":1,"stride":2,"bias":false},{"type":"group_norm","groups":3}]},
        {"type":"relu"},{"type":"global_avg_pool2d"},{"type":"linear","outputs":3}]}"#;
    let architecture: Architecture = serde_json::from_str(text).unwrap();
    let network = Network::build(&architecture, &[2, 7, 7], 3, Loss::SoftmaxCrossEntropy, false).unwrap();
    let ours: Vec<Vec<Tensor>> = network.layers.iter().map(|layer| weights(layer.as_ref())).collect();
    let input = random_tensor(1, &[5, 2, 7, 7]);
    let variables: Vec<Var> = ours.iter().flatten().map(|weight| Var::from_tensor(weight).unwrap()).collect();
    let v = |index: usize| variables[index].as_tensor();
    let norm = |x: Tensor, first: usize, groups: usize| {
        TheirGroupNorm::new(v(first).clone(), v(first + 1).clone(), v(first).elem_count(), groups, 1e-5)
            .unwrap()
            .forward(&x)
            .unwrap()
    };
    let convolution = |x: &Tensor, at: usize, padding, stride| x.conv2d(v(at), padding, stride, 1, 1).unwrap();
    let stem = norm(convolution(&input, 0, 1, 1), 1, 2).relu().unwrap();
    let main = norm(convolution(&stem, 3, 1, 2), 4, 3).relu().unwrap();
    let main = norm(convolution(&main, 6, 1, 1), 7, 3);
    let sum = (main + norm(convolution(&stem, 9, 0, 2), 10, 3)).unwrap().relu().unwrap();
    let pooled = sum.flatten_from(2).unwrap().mean(2).unwrap();
    let theirs = pooled.matmul(&v(12).t().unwrap()).unwrap().broadcast_add(v(13)).unwrap();
    let factors = numbers(9, 15);
    let store = (&theirs * tensor(factors.clone(), &[5, 3])).unwrap().sum_all().unwrap().backward().unwrap();

    let (mut tensors, mut stashes) = (vec![input.force_contiguous().unwrap()], Vec::new());
    for (layer, weights) in network.layers.iter().zip(&ours) {
        let (outputs, stash) = layer.forward(weights, tensors).unwrap();
        tensors = outputs;
        stashes.push(stash);
    }
    assert_close("output", &values(&tensors[0]), &values(&theirs), 1e-12);
    let mut gradients = vec![tensor(factors, &[5, 3])];
    let mut by_layer = Vec::new();
    for ((number, layer), stash) in network.layers.iter().enumerate().zip(stashes).rev() {
        let (inputs, of_layer) = layer.backward(&ours[number], stash, gradients, number > 0).unwrap();
        gradients = inputs;
        by_layer.push(of_layer);
    }
    for (index, gradient) in by_layer.into_iter().rev().flatten().enumerate() {
        let theirs = values(store.get(v(index)).unwrap());
        assert_close(&format!("parameter {index}"), &values(&gradient.dense().unwrap()), &theirs, 1e-11);
    }
}

fn total(kind: Loss, outputs: &Tensor, targets: &Targets, weights: Option<&[f32]>) -> f64 {
    let evaluated = loss::loss(kind, outputs, targets, weights).unwrap();
    let rows = evaluated.losses.len();
    (0..rows).map(|row| f64::from(evaluated.losses[row]) * f64::from(weights.map_or(1.0, |w| w[row])) / rows as f64).sum()
}

#[test]
fn losses() {
    let outputs = random_tensor(1, &[4, 3]);
    let soft: Vec<f64> = numbers(2, 12).into_iter().map(f64::abs).collect();
    let (one, weights) = (random_tensor(5, &[4, 1]), [0.5f32, 2.0, 0.0, 1.0]);
    for (kind, outputs, targets) in [
        (Loss::SoftmaxCrossEntropy, &outputs, Targets::Classes(vec![0, 2, 1, 2])),
        (Loss::SoftmaxCrossEntropy, &outputs, Targets::Soft(tensor(soft, &[4, 3]))),
        (Loss::MeanSquaredError, &one, Targets::Values(vec![0.3, -2.0, 0.0, 1.5])),
    ] {
        for weights in [None, Some(weights.as_slice())] {
            let evaluated = loss::loss(kind, outputs, &targets, weights).unwrap();
            assert!(evaluated.finite);
            // Losses are rounded to f32, so the differences are coarse: a larger step and a wider tolerance.
            let centre = values(outputs);
            let expected: Vec<f64> = (0..centre.len())
                .map(|index| {
                    let moved = |by: f64| {
                        let mut values = centre.clone();
                        values[index] += by;
                        total(kind, &tensor(values, outputs.dims()), &targets, weights)
                    };
                    (moved(1e-2) - moved(-1e-2)) / 2e-2
                })
                .collect();
            assert_close(&format!("{kind:?}"), &values(&evaluated.gradient), &expected, 1e-4);
        }
    }
}
