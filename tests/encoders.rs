//! Pretrained encoders beside numpy (tests/fixtures/encoders.py): hidden states, classes, and gradients by the pixels.
//!
//! The weights are not part of the repository: without them (`MODELS_DIR`, a folder that `mustela models pull` filled) these tests say so
//! and pass.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use candle_core::{Device, Tensor};
use mustela::encoder::{Encoder, Weights};
use serde_json::Value;

const SIDE: usize = 224;

/// The encoder of this name; none where its weights are not here.
fn encoder(name: &str) -> Option<Encoder> {
    let folder = std::env::var_os("MODELS_DIR").map(std::path::PathBuf::from);
    let Some(bytes) = folder.and_then(|folder| std::fs::read(folder.join(format!("{name}.safetensors"))).ok()) else {
        eprintln!("SKIPPED: MODELS_DIR has no {name}.safetensors");
        return None;
    };
    Some(Encoder::load(name, &Weights::from_safetensors(&bytes).unwrap()).unwrap().unwrap())
}

/// As the script's.
fn picture(number: usize) -> Vec<f32> {
    let at =
        |channel: usize, y: usize, x: usize| (x * (3 + number) + y * (5 + 2 * channel) + (x * y) / (7 + channel + number)) % 256;
    let planes = (0..3).flat_map(|channel| (0..SIDE).flat_map(move |y| (0..SIDE).map(move |x| at(channel, y, x) as f32)));
    planes.collect()
}

fn pictures(numbers: &[usize]) -> Tensor {
    let values: Vec<f32> = numbers.iter().flat_map(|&number| picture(number)).collect();
    Tensor::from_vec(values, (numbers.len(), 3, SIDE, SIDE), &Device::Cpu).unwrap()
}

fn row(tensor: &Tensor, row: usize) -> Vec<f64> {
    tensor.get(row).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn close(ours: f64, theirs: &Value, scale: f64, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= 1e-4 * scale.max(1.0), "{what}: {ours}, numpy has {theirs}");
}

#[test]
fn states_and_classes_are_numpys() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/encoders.json")).unwrap();
    for (name, of_pictures) in fixture.as_object().unwrap() {
        let Some(encoder) = encoder(name) else { continue };
        let encoded = encoder.encode(&pictures(&[0, 1])).unwrap();
        for (number, expected) in of_pictures.as_array().unwrap().iter().enumerate() {
            let states = expected["states"].as_array().unwrap();
            assert_eq!(states.len(), encoder.blocks().len(), "{name}");
            for (block, (state, expected_state)) in encoded.states.iter().zip(states).enumerate() {
                let (state, what) = (row(state, number), format!("{name} {}", encoder.blocks()[block].0));
                let norm = state.iter().map(|value| value * value).sum::<f64>().sqrt();
                close(norm, &expected["norms"][block], norm, &what);
                for (ours, theirs) in state.iter().zip(expected_state.as_array().unwrap()) {
                    close(*ours, theirs, norm, &what);
                }
            }
            let logits = row(&encoded.logits, number);
            for (ours, theirs) in logits.iter().step_by(50).zip(expected["logits"].as_array().unwrap()) {
                close(*ours, theirs, 10.0, name);
            }
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(best, expected["class"], "{name}");
        }
    }
}

#[test]
fn forward_is_predict_and_a_picture_does_not_depend_on_its_neighbours() {
    for name in ["efficientnet-lite0", "squeezenet1.1"] {
        let Some(encoder) = encoder(name) else { continue };
        let (alone, (both, _)) = (encoder.encode(&pictures(&[1])).unwrap(), encoder.forward(&pictures(&[0, 1])).unwrap());
        for (alone, both) in alone.states.iter().zip(&both.states) {
            assert_eq!(row(alone, 0), row(both, 1), "{name}");
        }
        let (alone, both) = (row(&alone.logits, 0), row(&both.logits, 1));
        assert!(alone.iter().zip(both).all(|(alone, both)| (alone - both).abs() < 1e-3), "{name}");
    }
}

/// The derivative along a direction, of a sum of logits and of a hidden state, beside differences.
#[test]
fn gradients_by_the_pixels_are_those_of_differences() {
    for name in ["efficientnet-lite0", "squeezenet1.1"] {
        let Some(encoder) = encoder(name) else { continue };
        let blocks = encoder.blocks();
        let (logits, state) = (7usize, blocks.len() / 2);
        let x = pictures(&[0]);
        let direction: Vec<f32> = picture(1).iter().map(|value| value / 255.0 - 0.5).collect();
        let direction = Tensor::from_vec(direction, (1, 3, SIDE, SIDE), &Device::Cpu).unwrap();
        let value = |step: f64| {
            let encoded = encoder.encode(&(&x + (&direction * step).unwrap()).unwrap()).unwrap();
            row(&encoded.logits, 0)[logits] + row(&encoded.states[state], 0)[3]
        };
        let (_, pass) = encoder.forward(&x).unwrap();
        let one = |at: usize, of: usize| {
            let values: Vec<f32> = (0..of).map(|index| f32::from(u8::from(index == at))).collect();
            Tensor::from_vec(values, (1, of), &Device::Cpu).unwrap()
        };
        let by_states = (0..blocks.len()).map(|block| (block == state).then(|| one(3, blocks[block].1))).collect();
        let gradient = encoder.gradient(pass, one(logits, 1000), by_states).unwrap();
        let along: f64 = row(&gradient, 0).iter().zip(row(&direction, 0)).map(|(g, d)| g * d).sum();
        let differences = (value(0.5) - value(-0.5)) / 1.0;
        assert!((along - differences).abs() < 0.05 * differences.abs().max(0.05), "{name}: {along} and {differences}");
    }
}
