//! One cell of the table: a system on a stream at a ratio, from a seed. Cells are kept in a file, a line of JSON each, and none is run
//! that is there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::policies::{Policy, Waiting};
use super::streams::Stream;
use super::systems::{System, UNITS_OF_PLANS, bytes_of, objective};
use super::times::{self, Times};
use crate::cli::Failure;
use crate::ferret::compensation::Compensation;
use crate::ferret::pipeline::Pipeline;
use crate::ferret::plan::Plan;
use crate::ferret::profile::Profile;
use crate::ferret::snapshot::NetworkSnapshot;
use crate::ferret::trainer::Recipe;
use crate::ferret::work::Rule;
use crate::learner::{Learner, RowLayout};
use crate::ledger::Ledger;
use crate::model::checkpoint::state_hash;
use crate::network::{Architecture, Loss, Network};
use crate::rows::{Rows, Target};

/// The width of the networks that have one.
const WIDTH: usize = 16;
/// Rows that are tested on at once.
const TEST_ROWS: usize = 250;

/// What a cell is a function of, beside the kernels. Further axes come with a default, so that old lines stay valid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Key {
    pub(super) stream: String,
    pub(super) network: String,
    pub(super) system: String,
    /// Of the time of one sequential step, how often a step arrives.
    pub(super) ratio: f64,
    /// Tasks at once; 0: as many as the plan has pairs of a worker and a stage.
    pub(super) units: usize,
    /// Rows of an arriving step.
    pub(super) batch: usize,
    /// Steps that wait at most, and how many of them are learned at once, where a system chooses.
    pub(super) window: usize,
    pub(super) select: usize,
    pub(super) learning_rate: f64,
    pub(super) seed: u64,
    /// Rows of the stream, of so many that there are, and rows to test on.
    pub(super) rows: usize,
    pub(super) rows_there: usize,
    pub(super) test_rows: usize,
    /// What one sequential step takes by the profile: cells by another profile are other cells.
    pub(super) step_nanoseconds: u64,
    /// For the updates that gradients missed, and what a step minimises.
    pub(super) compensation: Compensation,
    pub(super) learner: Learner,
}

/// What a cell came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Of all rows that arrived, those that were predicted rightly at that moment.
    pub(super) online_accuracy: f64,
    /// The same of the test rows, at the end.
    pub(super) test_accuracy: f64,
    /// What the plan holds, without readers' copies.
    pub(super) bytes: u64,
    pub(super) plan: String,
    /// Of all rows, those that every stage has learned, and those that only some have.
    pub(super) learned: f64,
    pub(super) learned_in_part: f64,
    /// From arrival to the end of the last update, in times of a sequential step, in the mean.
    pub(super) latency: f64,
    /// Of the last weights.
    pub(super) hash: String,
}

/// A cell that was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) key: Key,
    pub(super) figures: Figures,
}

/// A network by its name, for a stream.
pub(super) fn network(name: &str, stream: &Stream) -> Result<Arc<Network>, Failure> {
    let standardise = Some(stream.tabular);
    let architecture = match name {
        "mnistnet" => Architecture::MnistNet { standardise },
        "convnet" => Architecture::ConvNet { standardise },
        "mlp" => Architecture::Mlp { hidden: vec![256, 256], standardise },
        "resnet18" => Architecture::ResNet18 { width: WIDTH, standardise },
        "mobilenet" => Architecture::MobileNet { width: WIDTH, standardise },
        _ => return Err(format!("no network `{name}`: mnistnet, convnet, mlp, resnet18 or mobilenet").into()),
    };
    Ok(Arc::new(Network::build(&architecture, &stream.input_shape, stream.classes, Loss::SoftmaxCrossEntropy, false)?))
}

/// Runs a cell. `stream` is whole and in no order yet.
pub(super) fn run(key: &Key, stream: &Stream, profiles: &Path) -> Result<Figures, Failure> {
    let system: System = key.system.parse()?;
    let network = network(&key.network, stream)?;
    let one = times::read(profiles, &key.network, &network, key.batch)?;
    let interval = one.step() as f64 * key.ratio;
    let stream = stream.ordered(&key.stream, key.seed, Some(key.rows));
    let (policy, step_rows, window) = if system.selects() {
        let rows = key.select * key.batch;
        (system.policy(rows), rows, key.window)
    } else {
        (Policy::Newest, key.batch, 1)
    };
    let units = if key.units == 0 { UNITS_OF_PLANS } else { key.units };
    let recipe = Recipe {
        learning_rate: key.learning_rate,
        seed: key.seed,
        queued_bytes: (window * key.batch * stream.rows.row_bytes()) as u64,
        may_omit: true,
        objective: objective(units),
        rule: Rule { compensation: key.compensation, learner: key.learner, ..Rule::default() },
        layout: RowLayout::of(&stream.rows).ok_or("a stream without labels")?,
        ..Recipe::new(network.clone(), step_rows, units)
    };
    let learned_rows = recipe.planner().learned_rows();
    let read = if learned_rows == key.batch { one.clone() } else { times::read(profiles, &key.network, &network, learned_rows)? };
    // Virtual units do not slow each other down.
    let profile = Profile { threads: units, slowdown_thousandths: 1000, ..read };
    let plan = system.plan(&recipe.planner(), &profile, interval)?;
    let times =
        if system == System::Oracle { Times::none(&plan) } else { Times::new(&plan, &profile).learning(&key.learner, &profile) };
    let units = if key.units == 0 { plan.in_flight() as usize } else { key.units };
    let mut clock = clock(&recipe, &plan, times, units)?;
    let correct =
        follow(&mut clock, &stream, key.batch, interval, Waiting::new(policy, window, key.seed), system == System::Oracle)?;
    let (snapshot, learned) = (clock.newest(), clock.learned());
    let test = stream.test.slice(0..key.test_rows.min(stream.test.count));
    let mut tested = 0;
    for first in (0..test.count).step_by(TEST_ROWS) {
        tested += right(&snapshot, &test.slice(first..test.count.min(first + TEST_ROWS)))?;
    }
    let state = clock.pipeline().state()?;
    let of_rows = |rows: u64, all: usize| rows as f64 / all.max(1) as f64;
    Ok(Figures {
        online_accuracy: of_rows(correct, stream.rows.count),
        test_accuracy: of_rows(tested, test.count),
        bytes: bytes_of(&plan),
        plan: plan.outline(),
        learned: of_rows(learned.rows, stream.rows.count),
        learned_in_part: of_rows(learned.rows_in_part, stream.rows.count),
        latency: learned.latency as f64 / learned.steps.max(1) as f64 / one.step() as f64,
        hash: state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)))?,
    })
}

/// A fresh pipeline on the clock.
pub(super) fn clock(recipe: &Recipe, plan: &Plan, times: Times, units: usize) -> Result<Clock, Failure> {
    let Recipe { network, rule, layout, learning_rate, seed, .. } = recipe.clone();
    let pipeline = Pipeline::new(network, rule, layout, learning_rate, plan.clone(), seed, Ledger::default())?;
    Ok(Clock::new(pipeline, times, units))
}

/// Lets a stream arrive: each row is predicted by the newest weights of that moment, then it waits with others. `stands` says that the
/// clock stands still until all that waits is learned. Tells how many predictions were right.
pub(super) fn follow(
    clock: &mut Clock,
    stream: &Stream,
    batch: usize,
    interval: f64,
    mut waiting: Waiting,
    stands: bool,
) -> Result<u64, Failure> {
    let mut correct = 0;
    for (number, first) in (0..stream.rows.count).step_by(batch).enumerate() {
        let now = (number as f64 * interval).round() as u64;
        let rows = stream.rows.slice(first..stream.rows.count.min(first + batch));
        clock.advance(now, &mut waiting)?;
        correct += right(&clock.newest(), &rows)?;
        waiting.push(rows, now);
        if stands {
            clock.finish(&mut waiting)?;
        }
    }
    clock.finish(&mut waiting)?;
    Ok(correct)
}

/// How many rows are predicted rightly; outputs that are no numbers are wrong.
fn right(snapshot: &NetworkSnapshot, rows: &Rows) -> Result<u64, Failure> {
    let Some(Target::Classes(classes)) = &rows.target else { return Err("accuracy is of classes".into()) };
    let outputs: Vec<Vec<f32>> = snapshot.outputs(rows)?.to_vec2()?;
    let is_right = |(output, class): (&Vec<f32>, &u32)| {
        let at_class = output[*class as usize];
        at_class.is_finite() && output.iter().enumerate().all(|(other, value)| other == *class as usize || *value < at_class)
    };
    Ok(outputs.iter().zip(classes).filter(|pair| is_right(*pair)).count() as u64)
}

/// The file of cells.
pub(super) struct Store {
    known: Vec<Cell>,
    file: Option<Mutex<File>>,
}

impl Store {
    /// Reads what is there; a last line that a kill has cut off is run again.
    pub(super) fn open(path: Option<&PathBuf>) -> Result<Store, Failure> {
        let Some(path) = path else { return Ok(Store { known: Vec::new(), file: None }) };
        let text = if path.exists() { std::fs::read_to_string(path)? } else { String::new() };
        let known = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Store { known, file: Some(Mutex::new(file)) })
    }

    /// What a cell came to, if it is there.
    pub(super) fn find(&self, key: &Key) -> Option<&Figures> {
        self.known.iter().find(|cell| cell.key == *key).map(|cell| &cell.figures)
    }

    /// Keeps a cell that was just run.
    pub(super) fn keep(&self, cell: &Cell) -> Result<(), Failure> {
        if let Some(file) = &self.file {
            file.lock().write_all((serde_json::to_string(cell)? + "\n").as_bytes())?;
        }
        Ok(())
    }
}

/// Streams by name, each read once.
pub(super) type Streams = BTreeMap<String, Stream>;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
