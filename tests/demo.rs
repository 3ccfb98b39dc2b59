//! The demo ends well, and its model is to the bit what a plain loop makes of the same rows in log order: no stages, no threads, no
//! versions, no ledger, no service.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use mustela::disk::FileSystem;
use mustela::model::checkpoint::{Store, folder, state_hash};
use mustela::network::loss::loss;
use mustela::network::{Architecture, Loss, Network, Optimiser, Targets};
use mustela::rows::{Rows, Target};
use mustela::stream::Streams;
use mustela::stream::log::{Committer, Hooks, Options, RedbLog};

const STEP_ROWS: usize = 16;
const LEARNING_RATE: f64 = 0.02;
const MOMENTUM: f64 = 0.9;

/// One network, trained the way a script would.
struct PlainLoop {
    network: Network,
    optimiser: Optimiser,
    weights: Vec<Vec<Tensor>>,
    moments: Vec<Vec<Vec<Tensor>>>,
    steps: u64,
}

impl PlainLoop {
    fn new() -> PlainLoop {
        let architecture = Architecture::MnistNet { standardise: None };
        let network = Network::build(&architecture, &[1, 28, 28], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
        let weights = network.initial_weights(0).unwrap();
        let zeros = |like: &Tensor| vec![Tensor::zeros(like.shape(), DType::F32, &Device::Cpu).unwrap()];
        let moments = weights.iter().map(|layer| layer.iter().map(zeros).collect()).collect();
        let optimiser = Optimiser::Sgd { momentum: MOMENTUM, weight_decay: 0.0 };
        PlainLoop { network, optimiser, weights, moments, steps: 0 }
    }

    fn step(&mut self, rows: &Rows) {
        let pixels: Vec<f32> = rows.blocks[0].bytes.iter().map(|&byte| f32::from(byte) * (1.0 / 255.0)).collect();
        let Some(Target::Classes(classes)) = &rows.target else { panic!("rows without classes") };
        let mut at = vec![Tensor::from_vec(pixels, (rows.count, 1, 28, 28), &Device::Cpu).unwrap()];
        let mut stashes = Vec::new();
        for (layer, weights) in self.network.layers.iter().zip(&self.weights) {
            let (outputs, stash) = layer.forward(weights, at).unwrap();
            stashes.push(stash);
            at = outputs;
        }
        let targets = Targets::Classes(classes.clone());
        let mut gradients = vec![loss(self.network.loss, &at[0], &targets, None).unwrap().gradient];
        self.steps += 1;
        let mut updates = Vec::new();
        for (number, stash) in stashes.into_iter().enumerate().rev() {
            let layer = &self.network.layers[number];
            let (inputs, of_weights) = layer.backward(&self.weights[number], stash, gradients, number > 0).unwrap();
            updates.push((number, of_weights));
            gradients = inputs;
        }
        for (number, of_weights) in updates {
            for ((weight, moments), gradient) in self.weights[number].iter().zip(&self.moments[number]).zip(of_weights) {
                self.optimiser.update(weight, moments, gradient, LEARNING_RATE, self.steps).unwrap();
            }
        }
    }

    fn hash(&self) -> String {
        let mut tensors = BTreeMap::new();
        for ((names, weights), moments) in self.network.parameter_names().iter().zip(&self.weights).zip(&self.moments) {
            for ((name, weight), moments) in names.iter().zip(weights).zip(moments) {
                tensors.insert(name.clone(), weight);
                tensors.insert(format!("{name}.momentum"), &moments[0]);
            }
        }
        state_hash(tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor))).unwrap()
    }
}

#[test]
fn the_demos_model_is_what_a_plain_loop_makes_of_its_log() {
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mustela"))
        .args(["demo", "--rows", "1920", "--data-dir"])
        .arg(data.path())
        // The planner then chooses one step after the other, as the plain loop goes.
        .env("MUSTELA_COMPUTE__THREADS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for line in ["rows learned             1920 (0 quarantined)", "model version            0.1920", "kill -9", "budget change"] {
        assert!(said.contains(line), "{said}");
    }

    let disk = FileSystem;
    let log = Arc::new(RedbLog::open(&disk, data.path(), &Options { cache_bytes: 1 << 20, check_bytes_max: 0 }).unwrap());
    let hooks = Hooks { committed: Box::new(|_, _| {}), fatal: Box::new(|error| panic!("{error}")) };
    let committer = Committer::start(log.clone(), 1, hooks).unwrap();
    let stream = Streams::open(log, committer, u64::MAX).unwrap().get("fashion").unwrap();
    let mut plain = PlainLoop::new();
    let mut next = 1;
    while let Some((first, rows)) = stream.read_rows(next).unwrap() {
        assert_eq!(first, next);
        for start in (0..rows.count).step_by(STEP_ROWS) {
            plain.step(&rows.slice(start..rows.count.min(start + STEP_ROWS)));
        }
        next += rows.count as u64;
    }
    assert_eq!(next, 1921);

    let (loaded, faults) = Store::new(&disk, folder(data.path(), 1)).load_newest().unwrap();
    let loaded = loaded.expect("the demo left no checkpoint");
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(loaded.head.version.sequence, 1920);
    assert!(loaded.head.decisions >= 2, "the budget was changed by a decision");
    assert_eq!(loaded.entry.state_hash, plain.hash());
}
