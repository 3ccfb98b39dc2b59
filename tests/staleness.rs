//! The pipeline's rule of what a forward reads, held to an independent model of it: stages of one weight each under random plans,
//! with accumulation, omission and changes of the plan, come to the losses and weights of `tests/fixtures/lag_reference.py`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use candle_core::{DType, Device, Result, Tensor};
use mustela::ferret::compensation::{Compensation, Tuning};
use mustela::ferret::executor::Executor;
use mustela::ferret::plan::{Plan, Publication, StagePlan};
use mustela::ferret::pool::Pool;
use mustela::ferret::trainer::{Recipe, Trainer};
use mustela::ferret::work::Rule;
use mustela::fold::{Change, Fold, State, Step, Verdict};
use mustela::network::layer::Initial;
use mustela::network::{Cost, Gradient, Layer, Loss, Network, Optimiser, Parameter, Stash, deep_copy};
use mustela::rows::{Block, Element, Rows, Target};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    compensation: Compensation,
    data: Vec<f64>,
    weights: Vec<f64>,
    plans: Vec<ReferencePlan>,
    losses: Vec<f64>,
    last: Vec<f64>,
}

#[derive(Deserialize)]
struct ReferencePlan {
    start: u64,
    workers: u64,
    accumulation: Vec<u64>,
    stride: Vec<u64>,
}

/// `y = tanh(w · x)` of one number.
#[derive(Debug)]
struct OneWeight;

impl Layer for OneWeight {
    fn name(&self) -> &'static str {
        "one_weight"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter { name: "weight".into(), shape: vec![1], initial: Initial::Ones }]
    }

    fn output_shape(&self) -> &[usize] {
        &[1]
    }

    fn cost(&self, _rows: usize) -> Cost {
        Cost {
            weights: 4,
            output: 4,
            keeps_input: true,
            input_gradient: 4,
            weight_gradient: 4,
            weight_gradient_dense: 4,
            ..Cost::default()
        }
    }

    fn forward(&self, weights: &[Tensor], inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Stash)> {
        let output = inputs[0].broadcast_mul(&weights[0])?.tanh()?;
        Ok((vec![output], inputs.into()))
    }

    fn backward(
        &self,
        weights: &[Tensor],
        stash: Stash,
        gradients: Vec<Tensor>,
        want_input_gradients: bool,
    ) -> Result<(Vec<Tensor>, Vec<Gradient>)> {
        let input = &stash.tensors[0];
        let output = input.broadcast_mul(&weights[0])?.tanh()?;
        let at_product = (&gradients[0] * (1.0 - output.sqr()?)?)?;
        let of_weight = (&at_product * input)?.flatten_all()?;
        let of_input = at_product.broadcast_mul(&weights[0])?;
        Ok((if want_input_gradients { vec![of_input] } else { Vec::new() }, vec![Gradient::Dense(of_weight)]))
    }
}

fn recipe(stages: usize) -> Recipe {
    let layers = (0..stages).map(|_| Box::new(OneWeight) as Box<dyn Layer>).collect();
    let network = Network { layers, input_shape: vec![1], loss: Loss::MeanSquaredError, outputs: 1 };
    let optimiser = Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 };
    Recipe { rule: Rule { optimiser, ..Rule::default() }, learning_rate: 0.1, ..Recipe::new(Arc::new(network), 1, 2) }
}

fn plan(recipe: &Recipe, of: &ReferencePlan) -> Plan {
    let stages = of.accumulation.iter().zip(&of.stride).enumerate().map(|(stage, (&accumulation, &stride))| StagePlan {
        accumulation,
        stride,
        ..StagePlan::whole(stage..stage + 1)
    });
    recipe.planner().plan(of.start, stages.collect(), of.workers, Publication::Continuous)
}

fn step(number: usize, value: f64) -> Step {
    let bytes = Bytes::from((value as f32).to_le_bytes().to_vec());
    let blocks = vec![Block { element: Element::F32, width: 1, bytes }];
    let target = Some(Target::Values(vec![0.3]));
    Step::starting(1 + number as u64, Rows { count: 1, blocks, target, ..Rows::default() })
}

/// Gives the trainer the reference's first weights.
fn begin(trainer: &mut Trainer, weights: &[f64]) {
    let state = trainer.checkpoint().unwrap();
    let values = state.values.clone();
    let mut tensors: BTreeMap<_, _> =
        state.tensors.iter().map(|(name, tensor)| (name.clone(), deep_copy(tensor).unwrap())).collect();
    for (stage, weight) in weights.iter().enumerate() {
        let weight = Tensor::from_vec(vec![*weight as f32], 1, &Device::Cpu).unwrap();
        tensors.insert(format!("{stage}.one_weight.weight"), weight);
    }
    trainer.restore(State { tensors, values }).unwrap();
}

/// Where a compensation divides by differences of weights, f32 keeps fewer digits of them.
fn tolerance(case: &Reference) -> f64 {
    match case.compensation {
        Compensation::IterFisher { tuning: Tuning::Ridge | Tuning::Gradient, .. } => 5e-4,
        _ => 2e-5,
    }
}

fn close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() < tolerance, "{what}: {ours}, the reference has {theirs}");
}

fn follow(number: usize, case: &Reference, executor: Executor) {
    let recipe = recipe(case.weights.len());
    let recipe = Recipe { rule: Rule { compensation: case.compensation, ..recipe.rule }, ..recipe };
    let mut trainer = Trainer::new(recipe.clone(), plan(&recipe, &case.plans[0]), executor).unwrap();
    begin(&mut trainer, &case.weights);
    let mut outcomes = Vec::new();
    for (at, value) in case.data.iter().enumerate() {
        if let Some(next) = case.plans[1..].iter().find(|next| next.start == at as u64) {
            trainer.drain(&mut outcomes).unwrap();
            trainer.execute(&Change::Plan(serde_json::json!(plan(&recipe, next)))).unwrap();
        }
        trainer.apply(step(at, *value), &mut outcomes).unwrap();
    }
    trainer.drain(&mut outcomes).unwrap();
    assert_eq!(outcomes.len(), case.losses.len(), "case {number}");
    for (outcome, loss) in outcomes.iter().zip(&case.losses) {
        close(&format!("case {number}, loss of step {}", outcome.ordinal), outcome.score.loss, *loss, tolerance(case));
    }
    let omits = case.plans.iter().any(|plan| plan.stride.iter().any(|&stride| stride > 1));
    assert_eq!(omits, outcomes.iter().any(|outcome| outcome.verdict == Verdict::LearnedInPart), "case {number}");
    // A last change of nothing applies what is open, as the reference does at its end.
    let end = trainer.ordinal().unwrap();
    let last = recipe.planner().plan(end, vec![StagePlan::whole(0..case.weights.len())], 1, Publication::AtDrain);
    trainer.execute(&Change::Plan(serde_json::json!(last))).unwrap();
    let state = trainer.checkpoint().unwrap();
    for (stage, weight) in case.last.iter().enumerate() {
        let ours = state.tensors[&format!("{stage}.one_weight.weight")].to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        close(&format!("case {number}, weight of stage {stage}"), ours[0], *weight, tolerance(case));
    }
}

#[test]
fn losses_and_weights_are_the_references() {
    let cases: Vec<Reference> = serde_json::from_str(include_str!("fixtures/lag_reference.json")).unwrap();
    let pool = Pool::new(2, 0).unwrap();
    for (number, case) in cases.iter().enumerate() {
        assert_eq!(case.losses.len(), case.data.len());
        case.compensation.validate().unwrap();
        for executor in [Executor::Threads(pool.clone()), Executor::Seeded(number as u64), Executor::Filling] {
            follow(number, case, executor);
        }
    }
}

/// The versions that a state at rest holds are within the rule's bound, and reach it.
#[test]
fn the_window_is_as_deep_as_the_plan_says() {
    for (stages, workers, accumulation) in [(1, 1, 1), (1, 3, 1), (4, 1, 1), (3, 2, 1), (4, 1, 3)] {
        let recipe = recipe(stages);
        let reference = ReferencePlan { start: 0, workers, accumulation: vec![accumulation; stages], stride: vec![1; stages] };
        let plan = plan(&recipe, &reference);
        let mut trainer = Trainer::new(recipe.clone(), plan.clone(), Executor::Filling).unwrap();
        let mut outcomes = Vec::new();
        let mut most = vec![0; stages];
        for number in 0..30 {
            trainer.apply(step(number, 0.5), &mut outcomes).unwrap();
            trainer.drain(&mut outcomes).unwrap();
            let state = trainer.checkpoint().unwrap();
            for (stage, most) in most.iter_mut().enumerate() {
                let of_stage = format!("{stage}.one_weight.weight@");
                let versions = 1 + state.tensors.keys().filter(|name| name.starts_with(&of_stage)).count() as u64;
                assert!(versions <= plan.versions(stage), "{versions} versions of stage {stage}");
                *most = versions.max(*most);
            }
        }
        let bounds: Vec<u64> = (0..stages).map(|stage| plan.versions(stage)).collect();
        assert_eq!(most, bounds, "{stages} stages, {workers} workers");
    }
}

/// An update between a step's forward and its backward does not reach the gradient: the version that the forward read is kept.
#[test]
fn a_gradient_is_of_the_version_that_the_forward_read() {
    let recipe = recipe(3);
    let reference = ReferencePlan { start: 0, workers: 2, accumulation: vec![1; 3], stride: vec![1; 3] };
    let mut ends = Vec::new();
    // Filling runs every forward that it may before the first backward; one thread by itself runs step after step.
    for executor in [Executor::Filling, Executor::Threads(Pool::new(1, 0).unwrap())] {
        let mut trainer = Trainer::new(recipe.clone(), plan(&recipe, &reference), executor).unwrap();
        let mut outcomes = Vec::new();
        for number in 0..40 {
            trainer.apply(step(number, 1.0 - number as f64 / 20.0), &mut outcomes).unwrap();
        }
        trainer.drain(&mut outcomes).unwrap();
        let losses: Vec<u64> = outcomes.iter().map(|outcome| outcome.score.loss.to_bits()).collect();
        ends.push(losses);
    }
    assert_eq!(ends[0], ends[1]);
}
