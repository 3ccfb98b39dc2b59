//! Learners are their formulas: LwF and MAS beside numpy (`tests/fixtures/learners.py`), MIR's choice beside brute force, and what each
//! of them keeps within the plan and through a change of the budget.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use mustela::ferret::executor::Executor;
use mustela::ferret::plan::{Plan, Publication, StagePlan};
use mustela::ferret::trainer::{Recipe, Trainer};
use mustela::ferret::work::Rule;
use mustela::fold::{Change, Demand, Fold, Outcome, State, Step};
use mustela::learner::{Buffer, Learner};
use mustela::network::loss::{Targets, loss};
use mustela::network::{Architecture, Loss, Network, Optimiser, deep_copy};
use mustela::rows::{Block, Element, Rows, Target};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    initial: Vec<Vec<f32>>,
    features: Vec<f32>,
    classes: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    learner: Learner,
    losses: Vec<f64>,
    last: Vec<Vec<f64>>,
    importance: Vec<Vec<f64>>,
}

const INPUTS: usize = 4;
const NAMES: [&str; 4] = ["0.linear.weight", "0.linear.bias", "2.linear.weight", "2.linear.bias"];

fn recipe(learner: Learner, step_rows: usize) -> Recipe {
    let architecture = Architecture::Mlp { hidden: vec![5], standardise: Some(false) };
    let network = Network::build(&architecture, &[INPUTS], 3, Loss::SoftmaxCrossEntropy, false).unwrap();
    let rule = Rule { learner, ..Rule::default() };
    Recipe { rule, learning_rate: 0.1, ..Recipe::new(Arc::new(network), step_rows, 2) }
}

fn sequential(recipe: &Recipe) -> Trainer {
    let plan = recipe.planner().sequential(0, Publication::Continuous);
    Trainer::new(recipe.clone(), plan, Executor::Filling).unwrap()
}

fn rows(features: &[f32], classes: &[u32]) -> Rows {
    let bytes: Bytes = features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let block = Block { element: Element::F32, width: INPUTS, bytes };
    Rows { count: classes.len(), blocks: vec![block], target: Some(Target::Classes(classes.to_vec())), ..Rows::default() }
}

/// Rows of made-up numbers, and their classes.
fn made_up(count: usize, salt: usize) -> (Vec<f32>, Vec<u32>) {
    let number = |index: usize| ((index * 7919 + salt * 104_729) % 2003) as f32 / 1000.0 - 1.0;
    ((0..count * INPUTS).map(number).collect(), (0..count).map(|row| ((row * 31 + salt) % 3) as u32).collect())
}

fn apply(trainer: &mut Trainer, first: u64, rows: Rows) -> Outcome {
    let mut outcomes = Vec::new();
    trainer.apply(Step::starting(first, rows), &mut outcomes).unwrap();
    trainer.drain(&mut outcomes).unwrap();
    outcomes.pop().unwrap()
}

fn numbers(trainer: &Trainer, name: &str) -> Vec<f32> {
    trainer.checkpoint().unwrap().tensors[name].flatten_all().unwrap().to_vec1().unwrap()
}

fn begin(trainer: &mut Trainer, initial: &[Vec<f32>]) {
    let state = trainer.checkpoint().unwrap();
    let values = state.values.clone();
    let mut tensors: BTreeMap<_, _> =
        state.tensors.iter().map(|(name, tensor)| (name.clone(), deep_copy(tensor).unwrap())).collect();
    for (name, values) in NAMES.iter().zip(initial) {
        let shape = tensors[*name].shape().clone();
        tensors.insert((*name).to_owned(), Tensor::from_slice(values, shape, &Device::Cpu).unwrap());
    }
    trainer.restore(State { tensors, values }).unwrap();
}

#[test]
fn lwf_and_mas_are_numpys() {
    let reference: Reference = serde_json::from_str(include_str!("fixtures/learners.json")).unwrap();
    for case in &reference.cases {
        let mut trainer = sequential(&recipe(case.learner, 2));
        begin(&mut trainer, &reference.initial);
        for (step, expected) in case.losses.iter().enumerate() {
            let at = step * 2..step * 2 + 2;
            let features = &reference.features[at.start * INPUTS..at.end * INPUTS];
            let outcome = apply(&mut trainer, 1 + at.start as u64, rows(features, &reference.classes[at]));
            assert!((outcome.score.loss - expected).abs() < 1e-4, "{:?}, step {step}: {}", case.learner, outcome.score.loss);
        }
        let close = |name: &str, expected: &[f64]| {
            for (ours, theirs) in numbers(&trainer, name).iter().zip(expected) {
                assert!((f64::from(*ours) - theirs).abs() < 1e-4, "{:?}, {name}: {ours}, numpy has {theirs}", case.learner);
            }
        };
        for (index, name) in NAMES.iter().enumerate() {
            close(name, &case.last[index]);
            if matches!(case.learner, Learner::Mas { .. }) {
                close(&format!("{name}.importance"), &case.importance[index]);
            }
        }
    }
}

/// With as many candidates as the buffer has rows, the rows that MIR replays are those whose loss rises the most of all: the step is
/// the one that a vanilla trainer makes with them. Whatever else it would choose teaches something else.
#[test]
fn mir_replays_what_brute_force_finds() {
    let (candidates, replayed, own) = (12usize, 3usize, 2usize);
    let mir = Learner::Mir { buffer_rows: candidates as u64, replay_rows: replayed, candidate_rows: candidates };
    let recipe_mir = recipe(mir, own);
    let mut trainer = sequential(&recipe_mir);
    let (features, classes) = made_up(candidates, 1);
    for first in (0..candidates).step_by(own) {
        let of_step = rows(&features[first * INPUTS..(first + own) * INPUTS], &classes[first..first + own]);
        apply(&mut trainer, 1 + first as u64, of_step);
    }
    let before: Vec<Vec<f32>> = NAMES.iter().map(|name| numbers(&trainer, name)).collect();
    let (new_features, new_classes) = made_up(own, 2);
    apply(&mut trainer, 1 + candidates as u64, rows(&new_features, &new_classes));
    // By hand: one plain step with the new rows, and the losses of all rows before and after it.
    let vanilla = |features: &[f32], classes: &[u32]| {
        let mut trainer = sequential(&recipe(Learner::Vanilla {}, classes.len()));
        begin(&mut trainer, &before);
        apply(&mut trainer, 1, rows(features, classes));
        NAMES.map(|name| numbers(&trainer, name))
    };
    let ahead = vanilla(&new_features, &new_classes);
    let losses = |weights: &[Vec<f32>]| {
        let network = &recipe_mir.network;
        let shapes: Vec<_> =
            network.layers.iter().flat_map(|layer| layer.parameters()).map(|parameter| parameter.shape).collect();
        let tensors: Vec<_> =
            weights.iter().zip(shapes).map(|(values, shape)| Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).collect();
        let by_layer: [&[Tensor]; 3] = [&tensors[..2], &[], &tensors[2..]];
        let input = Tensor::from_slice(&features, (candidates, INPUTS), &Device::Cpu).unwrap();
        let outputs = network.predict(by_layer, input).unwrap();
        loss(network.loss, &outputs, &Targets::Classes(classes.clone()), None).unwrap().losses
    };
    let (now, then) = (losses(&before), losses(&ahead));
    let rise = |row: &usize| then[*row] - now[*row];
    let mut order: Vec<usize> = (0..candidates).collect();
    order.sort_by(|a, b| rise(b).total_cmp(&rise(a)));
    let with = |chosen: &[usize]| {
        let mut all = (new_features.clone(), new_classes.clone());
        for &row in chosen {
            all.0.extend_from_slice(&features[row * INPUTS..(row + 1) * INPUTS]);
            all.1.push(classes[row]);
        }
        vanilla(&all.0, &all.1)
    };
    let distance = |weights: &[Vec<f32>; 4]| -> f32 {
        let ours = NAMES.map(|name| numbers(&trainer, name));
        ours.iter().flatten().zip(weights.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(distance(&with(&order[..replayed])) < 1e-6, "{}", distance(&with(&order[..replayed])));
    assert!(distance(&with(&order[1..=replayed])) > 1e-4, "another choice is another step");
}

#[test]
fn a_buffer_is_part_of_the_plan_and_of_the_budget() {
    let learner = Learner::Er { buffer_rows: 4000, replay_rows: 8 };
    let recipe = recipe(learner, 8);
    let planner = recipe.planner();
    let mut trainer = sequential(&recipe);
    for step in 0..40 {
        let (features, classes) = made_up(8, step);
        let outcome = apply(&mut trainer, 1 + 8 * step as u64, rows(&features, &classes));
        assert_eq!((outcome.rows, outcome.score.rows), (8, 8), "only its own rows are counted");
    }
    let seen = |trainer: &Trainer| trainer.checkpoint().unwrap().values["memory"]["seen"].clone();
    assert_eq!(seen(&trainer), 320);
    let full = planner.sequential(0, Publication::Continuous);
    let minimum = planner.minimum(0);
    assert_eq!((full.buffer_rows, minimum.buffer_rows), (4000, 8));
    assert!(full.bytes.learner - minimum.bytes.learner >= Buffer::bytes(3992, 16));
    // A smaller budget makes a smaller buffer, whose rows are some of those before, and changes no weight.
    let before = NAMES.map(|name| numbers(&trainer, name));
    let start = trainer.ordinal().unwrap();
    let whole = vec![StagePlan::whole(0..recipe.network.layers.len())];
    let smaller = Plan { buffer_rows: 100, ..planner.plan(start, whole, 1, Publication::AtDrain) };
    trainer.execute(&Change::Plan(serde_json::json!(smaller))).unwrap();
    assert_eq!(NAMES.map(|name| numbers(&trainer, name)), before);
    let state = trainer.checkpoint().unwrap();
    assert_eq!(state.tensors["buffer.labels.0"].dims(), [100]);
    // Restored, it goes on as it would have.
    let state = State {
        tensors: state.tensors.iter().map(|(name, tensor)| (name.clone(), deep_copy(tensor).unwrap())).collect(),
        values: state.values.clone(),
    };
    let mut other = sequential(&recipe);
    other.restore(state).unwrap();
    for step in 40..50 {
        let (features, classes) = made_up(8, step);
        for trainer in [&mut trainer, &mut other] {
            apply(trainer, 1 + 8 * step as u64, rows(&features, &classes));
        }
    }
    assert_eq!(NAMES.map(|name| numbers(&trainer, name)), NAMES.map(|name| numbers(&other, name)));
    assert_eq!(seen(&trainer), seen(&other));
}

/// Plans for any budget from the smallest on are within it, buffer included, and a budget that is large enough has all of it.
#[test]
fn every_budget_is_kept() {
    let pool = mustela::ferret::pool::Pool::new(2, 0).unwrap();
    for learner in [
        Learner::Er { buffer_rows: 20_000, replay_rows: 8 },
        Learner::Mir { buffer_rows: 20_000, replay_rows: 8, candidate_rows: 24 },
        Learner::Lwf { weight: 1.0, temperature: 2.0, every_rows: 100 },
        Learner::Mas { weight: 1.0, every_rows: 100, sample_rows: 64 },
    ] {
        let recipe = recipe(learner, 8);
        let minimum = recipe.planner().minimum(0);
        let mut trainer = Trainer::new(recipe, minimum.clone(), Executor::Threads(pool.clone())).unwrap();
        let least = minimum.bytes.total();
        for budget in [least, least + 1000, least * 2, least * 16, u64::MAX] {
            let demand = Demand { budget_bytes: Some(budget), row_interval: None };
            let plan: Plan = serde_json::from_value(trainer.propose_plan(demand).unwrap()).unwrap();
            assert!(plan.bytes.total() <= budget, "{learner:?}: {} of {budget}", plan.bytes.total());
            assert!(plan.buffer_rows >= learner.buffer_rows_min());
            assert!(budget < u64::MAX || plan.buffer_rows == learner.buffer_rows(), "{learner:?}");
            assert!(learner.candidate_rows() == 0 || plan.stages.len() == 1);
        }
        let below = Demand { budget_bytes: Some(least - 1), row_interval: None };
        assert!(trainer.propose_plan(below).is_err());
    }
}

/// Two tasks, one after the other, that share nothing but the network: who replays forgets the first one less.
#[test]
fn replay_remembers_and_mir_is_not_er() {
    let accuracy = |learner: Learner| {
        let recipe = Recipe { rule: Rule { learner, optimiser: Optimiser::default(), ..Rule::default() }, ..recipe(learner, 4) };
        let mut trainer = sequential(&recipe);
        // In the first task the class is the sign of the first number, in the second of the third, and the inputs lie elsewhere.
        let of_task = |task: usize, step: usize| {
            let (mut features, mut classes) = made_up(4, step);
            for (row, class) in features.chunks_mut(INPUTS).zip(&mut classes) {
                *class = u32::from(row[2 * task] > 0.0);
                row[3] = if task == 0 { 1.0 } else { -1.0 };
            }
            rows(&features, &classes)
        };
        let mut first = 1;
        for task in 0..2 {
            for step in 0..300 {
                apply(&mut trainer, first, of_task(task, 1000 * task + step));
                first += 4;
            }
        }
        // The first task again, unseen rows, scored before they are learned.
        let scores = (0..50).map(|step| {
            let mut fresh = sequential(&recipe);
            begin(&mut fresh, &NAMES.map(|name| numbers(&trainer, name)));
            apply(&mut fresh, 1, of_task(0, 5000 + step)).score.correct
        });
        (scores.sum::<u64>() as f64 / 200.0, numbers(&trainer, NAMES[0]))
    };
    let (vanilla, _) = accuracy(Learner::Vanilla {});
    let (er, er_weights) = accuracy(Learner::Er { buffer_rows: 200, replay_rows: 4 });
    let (mir, mir_weights) = accuracy(Learner::Mir { buffer_rows: 200, replay_rows: 4, candidate_rows: 16 });
    assert!(er > vanilla + 0.05 && mir > vanilla + 0.03, "vanilla {vanilla}, ER {er}, MIR {mir}");
    let apart = er_weights.iter().zip(&mir_weights).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart > 1e-2, "MIR and ER learned the same: {apart}");
}
