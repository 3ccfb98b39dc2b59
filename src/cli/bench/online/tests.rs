//! The clock by hand-made times, and cells held to plain loops.

use std::path::Path;

use serde_json::json;

use super::super::times::Times;
use super::*;
use crate::disk::{Disk, FileSystem};
use crate::ferret::executor::Executor;
use crate::ferret::plan::{Publication, Reads, StagePlan};
use crate::ferret::schedule::Task;
use crate::ferret::trainer::Trainer;
use crate::fold::{Change, Fold, Step};

/// Two layers that learn, for small pictures.
fn recipe() -> Recipe {
    let architecture = Architecture::Mlp { hidden: vec![12], standardise: Some(false) };
    let network = Network::build(&architecture, &[1, 28, 28], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
    Recipe { learning_rate: 0.1, seed: 3, ..Recipe::new(Arc::new(network), 16, 2) }
}

fn stages() -> Vec<StagePlan> {
    // Flatten and linear, ReLU and linear.
    vec![StagePlan::whole(0..2), StagePlan::whole(2..4)]
}

fn stream(rows: usize) -> Stream {
    Stream::read("fashion-mnist", Path::new("/nowhere")).unwrap().ordered("fashion-mnist", 1, Some(rows))
}

fn hash(clock: &Clock) -> String {
    let state = clock.pipeline().state().unwrap();
    state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor))).unwrap()
}

/// The hash of a trainer that learns every step of the stream in turn; what it accumulates is applied by groups alone.
fn trained(recipe: &Recipe, plan: Plan, stream: &Stream) -> String {
    let mut trainer = Trainer::new(recipe.clone(), plan, Executor::Filling).unwrap();
    let mut outcomes = Vec::new();
    for first in (0..stream.rows.count).step_by(16) {
        let rows = stream.rows.slice(first..stream.rows.count.min(first + 16));
        trainer.apply(Step::starting(first as u64 + 1, rows), &mut outcomes).unwrap();
    }
    trainer.drain(&mut outcomes).unwrap();
    let state = trainer.checkpoint().unwrap();
    state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor))).unwrap()
}

/// A pipeline of two stages and one worker: admission takes 1, forwards 2 and 3, backwards 4 and 5, updates 1 and 2.
fn by_hand(units: usize, interval: f64, steps: usize) -> Clock {
    let recipe = recipe();
    let plan = recipe.planner().plan(0, stages(), 1, Publication::AtDrain);
    let times = Times::by_hand(1, vec![[2, 4, 1], [3, 5, 2]]);
    let mut clock = clock(&recipe, &plan, times, units).unwrap();
    let waiting = Waiting::new(Policy::Newest, 1, 0);
    follow(&mut clock, &stream(16 * steps), 16, interval, waiting, false).unwrap();
    clock
}

#[test]
fn tasks_start_when_they_are_reckoned_to_by_hand() {
    let forward = |ordinal, stage| Task::Forward { ordinal, stage };
    let backward = |ordinal, stage| Task::Backward { ordinal, stage };
    let update = |ordinal, stage| Task::Update { ordinal, stage };
    let clock = by_hand(2, 4.0, 2);
    let expected = [
        (0, Task::Admit),
        (1, forward(0, 0)),
        (3, forward(0, 1)),
        // The second step arrives while the first one is at stage 1, whose second forward waits for the first update.
        (4, Task::Admit),
        (5, forward(1, 0)),
        (6, backward(0, 1)),
        (11, update(0, 1)),
        (11, backward(0, 0)),
        (13, forward(1, 1)),
        (15, update(0, 0)),
        (16, backward(1, 1)),
        (21, update(1, 1)),
        (21, backward(1, 0)),
        (25, update(1, 0)),
    ];
    assert_eq!(clock.trace, expected);
    let learned = clock.learned();
    assert_eq!((learned.steps, learned.rows, learned.latency), (2, 32, 16 + (26 - 4)));
}

#[test]
fn one_unit_runs_updates_first_and_learns_the_newest() {
    let clock = by_hand(1, 5.0, 6);
    // A step takes 18, and nothing is let in before it is learned. At 18 the newest is the one of 15, at 36 the one of 25.
    let forward = |ordinal, stage| Task::Forward { ordinal, stage };
    let backward = |ordinal, stage| Task::Backward { ordinal, stage };
    let update = |ordinal, stage| Task::Update { ordinal, stage };
    let step = |at: u64, ordinal: u64| {
        let passes = [(0, Task::Admit), (1, forward(ordinal, 0)), (3, forward(ordinal, 1)), (6, backward(ordinal, 1))];
        let ends = [(11, update(ordinal, 1)), (13, backward(ordinal, 0)), (17, update(ordinal, 0))];
        passes.into_iter().chain(ends).map(move |(after, task)| (at + after, task))
    };
    assert_eq!(
        clock.trace,
        [(0, 0), (18, 1), (36, 2)].into_iter().flat_map(|(at, ordinal)| step(at, ordinal)).collect::<Vec<_>>()
    );
    let learned = clock.learned();
    assert_eq!((learned.steps, learned.latency), (3, 18 + (36 - 15) + (54 - 25)));
}

#[test]
fn an_oracle_and_a_slow_stream_learn_what_a_sequential_trainer_does() {
    let (recipe, stream) = (recipe(), stream(330));
    let plan = recipe.planner().sequential(0, Publication::AtDrain);
    let expected = trained(&recipe, plan.clone(), &stream);
    let newest = || Waiting::new(Policy::Newest, 1, 0);
    let mut oracle = clock(&recipe, &plan, Times::none(&plan), 1).unwrap();
    let right_of_oracle = follow(&mut oracle, &stream, 16, 1.0, newest(), true).unwrap();
    let mut slow = clock(&recipe, &plan, Times::by_hand(1, vec![[2, 4, 1]]), 1).unwrap();
    let right_of_slow = follow(&mut slow, &stream, 16, 8.0, newest(), false).unwrap();
    assert_eq!((hash(&oracle), hash(&slow), right_of_oracle), (expected.clone(), expected, right_of_slow));
    assert_eq!(slow.learned().rows, 330);
    let mut fast = clock(&recipe, &plan, Times::by_hand(1, vec![[2, 4, 1]]), 1).unwrap();
    follow(&mut fast, &stream, 16, 7.0, newest(), false).unwrap();
    assert!(fast.learned().rows < 330 && hash(&fast) != hash(&slow));
}

/// A flushed pipeline learns what a sequential trainer does that shares updates among as many steps; a two-buffered one does not.
#[test]
fn dapple_is_a_large_batch_and_a_two_buffered_pipeline_is_late() {
    let (recipe, stream) = (recipe(), stream(16 * 12));
    let planner = recipe.planner();
    for group in [2, 3] {
        let shared = |mut stages: Vec<StagePlan>| {
            stages.iter_mut().for_each(|stage| stage.accumulation = group);
            planner.plan(0, stages, 1, Publication::AtDrain)
        };
        let expected = trained(&recipe, shared(vec![StagePlan::whole(0..4)]), &stream);
        let of = |reads: Reads| {
            let plan = planner.reading(shared(stages()), reads);
            let mut clock = clock(&recipe, &plan, Times::by_hand(1, vec![[2, 4, 1], [3, 5, 2]]), 2).unwrap();
            follow(&mut clock, &stream, 16, 40.0, Waiting::new(Policy::Newest, 1, 0), false).unwrap();
            assert_eq!(clock.learned().rows, 16 * 12);
            hash(&clock)
        };
        assert_eq!(of(Reads::Dapple), expected);
        assert_ne!(of(Reads::TwoBuffered), expected);
    }
}

#[test]
fn the_same_key_gives_the_same_bits() {
    let stream = Stream::read("fashion-mnist", Path::new("/nowhere")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for rows in [16, 32] {
        times::measure(folder.path(), "mlp", &network("mlp", &stream).unwrap(), rows).unwrap();
    }
    let of = |system: System, seed| {
        let (network, system) = ("mlp".into(), system.to_string());
        let (rows, test_rows) = (320, 50);
        let key = Key { stream: "fashion-mnist".into(), network, system, ratio: 0.25, seed, rows, test_rows, ..defaults() };
        run(&key, &stream, folder.path()).unwrap()
    };
    for system in System::ALL {
        let one = of(system, 1);
        assert_eq!(one, of(system, 1), "{system}");
        assert_ne!(one.hash, of(system, 2).hash, "{system}");
    }
}

fn defaults() -> Key {
    Key { batch: 16, window: 8, select: 2, learning_rate: 0.05, ..Key::default() }
}

#[test]
fn cells_that_are_there_are_not_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cells");
    let cell = Cell { key: Key { ratio: 0.1, ..defaults() }, figures: Figures { bytes: 7, ..Figures::default() } };
    let store = Store::open(Some(&path)).unwrap();
    assert!(store.find(&cell.key).is_none());
    store.keep(&cell).unwrap();
    // A line that was cut off, and one from before an axis was known.
    let mut text = std::fs::read_to_string(&path).unwrap();
    text += &json!({ "key": { "stream": "old" }, "figures": Figures::default() }).to_string();
    text += "\n{\"key\":{\"stream\":";
    FileSystem.write_atomic(&path, &mut |out| out.write_all(text.as_bytes())).unwrap();
    let store = Store::open(Some(&path)).unwrap();
    assert_eq!(store.find(&cell.key), Some(&cell.figures));
    assert!(store.find(&Key { stream: "old".into(), ..Key::default() }).is_some());
    assert!(store.find(&Key { seed: 1, ..cell.key }).is_none());
}

/// Changes of a plan end a group early, by the mean of what it holds.
#[test]
fn a_group_that_is_open_is_applied_when_the_plan_changes() {
    let (recipe, stream) = (recipe(), stream(16 * 3));
    let planner = recipe.planner();
    let mut stages = stages();
    stages.iter_mut().for_each(|stage| stage.accumulation = 2);
    let plan = planner.reading(planner.plan(0, stages, 1, Publication::AtDrain), Reads::TwoBuffered);
    let mut trainer = Trainer::new(recipe.clone(), plan, Executor::Filling).unwrap();
    let mut outcomes = Vec::new();
    for first in [0, 16, 32] {
        trainer.apply(Step::starting(first as u64 + 1, stream.rows.slice(first..first + 16)), &mut outcomes).unwrap();
    }
    trainer.drain(&mut outcomes).unwrap();
    assert!(trainer.checkpoint().unwrap().tensors.keys().any(|name| name.ends_with(".accumulated")));
    trainer.execute(&Change::Plan(json!(planner.minimum(3)))).unwrap();
    assert!(!trainer.checkpoint().unwrap().tensors.keys().any(|name| name.ends_with(".accumulated")));
}
