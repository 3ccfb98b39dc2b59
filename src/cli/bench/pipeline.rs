//! What pipelines gain: the same network, rows and kernels under several plans, beside the sequential step, which is nothing but
//! those kernels one after the other on one thread, and beside independent replicas of it, which share nothing and so bound what
//! several threads can give.
//!
//! All sides take turns in blocks on the same machine, and every figure is a ratio of rates in one run: if something else keeps a
//! core busy, the replicas suffer with the rest.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use crossbeam::channel::unbounded;
use serde::Serialize;

use super::engine::{LEARNING_RATE, random_rows};
use super::median;
use crate::cli::Failure;
use crate::ferret::executor::Executor;
use crate::ferret::plan::{Plan, Publication};
use crate::ferret::planner::Wish;
use crate::ferret::pool::Pool;
use crate::ferret::trainer::{Recipe, Trainer};
use crate::fold::{Fold, Outcome, Step, Verdict};
use crate::network::{Architecture, Loss, Network};

/// Blocks in which the sides take turns.
const BLOCKS: usize = 12;

/// One network at one batch size, and how it is cut in two.
struct Case {
    name: &'static str,
    architecture: Architecture,
    input: &'static [usize],
    rows: usize,
    /// The first layer of the second stage.
    cut: usize,
    /// What the best plan should gain at least.
    goal: f64,
}

/// What one plan gave.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    network: &'static str,
    batch_rows: usize,
    plan: &'static str,
    /// Bytes that the plan reckons with.
    planned_bytes: u64,
    /// Steps that a forward misses, at the first stage.
    staleness: u64,
    /// Steps a second.
    steps_per_second: f64,
    /// How many times the rate of the sequential step.
    gain: f64,
}

/// What the plans of one network gave beside the bound.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    plans: Vec<Measured>,
    /// How many times the rate of the sequential step, as many independent replicas as threads.
    replicas_gain: f64,
    goal: f64,
    /// Whether the best plan reached the goal, or 0.85 of the replicas.
    met: bool,
    /// Whether the plan that is followed by default, the first, is no slower than 0.98 of the sequential step.
    default_met: bool,
}

/// A side of the comparison.
enum Side {
    Plan(Box<Trainer>),
    /// Each on a compute thread of its own: threads of another kind get their memory elsewhere, and where it lies to the weights can
    /// be worth a tenth of a step.
    Sequential(Vec<Trainer>, Pool),
}

/// Measures every case with `threads` threads.
pub(super) fn measure(quick: bool, threads: usize) -> Result<Vec<Compared>, Failure> {
    cases().iter().map(|case| compare(case, quick, threads)).collect()
}

fn cases() -> Vec<Case> {
    let deep = |rows| Case {
        name: "deep MLP 784-256x7-10",
        architecture: Architecture::Mlp { hidden: vec![256; 7], standardise: Some(false) },
        input: &[784],
        rows,
        cut: 4,
        goal: 1.6,
    };
    let conv = |rows, goal| Case {
        name: "ConvNet 3x32x32",
        architecture: Architecture::ConvNet { standardise: Some(false) },
        input: &[3, 32, 32],
        rows,
        cut: 3,
        goal,
    };
    let resnet = Case {
        name: "ResNet-18 width 16",
        architecture: Architecture::ResNet18 { width: 16, standardise: Some(false) },
        input: &[3, 32, 32],
        rows: 16,
        cut: 8,
        goal: 1.5,
    };
    vec![deep(16), deep(64), conv(16, 1.5), conv(64, 1.6), resnet]
}

fn compare(case: &Case, quick: bool, threads: usize) -> Result<Compared, Failure> {
    let network = Arc::new(Network::build(&case.architecture, case.input, 10, Loss::SoftmaxCrossEntropy, false)?);
    let layers = network.layers.len();
    let recipe = Recipe { learning_rate: LEARNING_RATE, seed: 7, ..Recipe::new(network, case.rows, threads) };
    let cut = case.cut;
    let plans = [
        ("1 stage, 1 worker", format!(r#"{{"stages":[{{"layers":{{"start":0,"end":{layers}}}}}]}}"#)),
        (
            "2 stages, 1 worker",
            format!(r#"{{"stages":[{{"layers":{{"start":0,"end":{cut}}}}},{{"layers":{{"start":{cut},"end":{layers}}}}}]}}"#),
        ),
        ("1 stage, 2 workers", format!(r#"{{"stages":[{{"layers":{{"start":0,"end":{layers}}}}}],"workers":2}}"#)),
        (
            "2 stages, 2 workers",
            format!(
                r#"{{"stages":[{{"layers":{{"start":0,"end":{cut}}}}},{{"layers":{{"start":{cut},"end":{layers}}}}}],"workers":2}}"#
            ),
        ),
    ];
    let mut planned = Vec::with_capacity(plans.len());
    for (_, wish) in &plans {
        planned.push(recipe.planner().complete(0, &serde_json::from_str::<Wish>(wish)?, u64::MAX)?);
    }
    let step = Step::starting(1, random_rows(case.input.iter().product(), case.rows));
    let sequential = || Trainer::new(recipe.clone(), recipe.planner().sequential(0, Publication::AtDrain), Executor::Filling);
    let make = |side: usize| -> Result<Side, Failure> {
        Ok(match side.checked_sub(1).map(|plan| planned.get(plan)) {
            None => Side::Sequential(vec![sequential()?], Pool::new(threads, 0)?),
            Some(Some(plan)) => {
                let executor = Executor::Threads(Pool::new(threads, 0)?);
                Side::Plan(Box::new(Trainer::new(recipe.clone(), plan.clone(), executor)?))
            }
            Some(None) => Side::Sequential((0..threads).map(|_| sequential()).collect::<Result<_, _>>()?, Pool::new(threads, 0)?),
        })
    };
    let sides = planned.len() + 2;
    let once = 1.0 / rate(&mut make(0)?, &step, 5)?;
    let steps = ((if quick { 0.1 } else { 0.5 } / once) as usize).max(8);
    let mut rates = vec![Vec::with_capacity(BLOCKS); sides];
    for block in 0..BLOCKS {
        for turn in 0..sides {
            // Nobody always comes after the same other, and nobody keeps the same memory.
            let side = (turn * (1 + block % 2 * (sides - 2)) + block) % sides;
            rates[side].push(rate(&mut make(side)?, &step, steps)?);
        }
    }
    // A ratio of each block, so that what slows a block slows both.
    let gain = |side: usize| median(rates[side].iter().zip(&rates[0]).map(|(rate, one)| rate / one).collect());
    let of_plan = |(side, ((name, _), plan)): (usize, (&(&'static str, String), &Plan))| Measured {
        network: case.name,
        batch_rows: case.rows,
        plan: name,
        planned_bytes: plan.bytes.total(),
        staleness: plan.lag(0) - 1,
        steps_per_second: median(rates[side + 1].clone()),
        gain: gain(side + 1),
    };
    let plans: Vec<Measured> = plans.iter().zip(&planned).enumerate().map(of_plan).collect();
    let replicas_gain = gain(sides - 1);
    let best = plans.iter().map(|plan| plan.gain).fold(0.0, f64::max);
    let default_met = plans.first().is_some_and(|plan| plan.gain >= 0.98);
    let met = best >= case.goal || best >= 0.85 * replicas_gain;
    Ok(Compared { plans, replicas_gain, goal: case.goal, met, default_met })
}

/// Steps a second over `steps` of them, the last one ended, after a few that warm up the same threads.
fn rate(side: &mut Side, step: &Step, steps: usize) -> Result<f64, Failure> {
    let warm = steps / 8 + 1;
    let (seconds, done) = match side {
        Side::Plan(trainer) => {
            train(trainer, step, warm)?;
            (train(trainer, step, steps)?, steps)
        }
        Side::Sequential(trainers, pool) => {
            let count = trainers.len();
            let (together, (tell, told)) = (Arc::new(Barrier::new(count)), unbounded());
            for mut trainer in trainers.drain(..) {
                let (together, tell, step) = (together.clone(), tell.clone(), step.clone());
                pool.spawn(move || {
                    let warmed = train(&mut trainer, &step, warm);
                    // Whatever came of it: the others wait here too.
                    together.wait();
                    let ended = warmed.and_then(|_| train(&mut trainer, &step, steps));
                    drop(tell.send((trainer, ended)));
                });
            }
            drop(tell);
            let mut slowest: f64 = 0.0;
            for (trainer, ended) in told {
                trainers.push(trainer);
                slowest = slowest.max(ended?);
            }
            (slowest, count * steps)
        }
    };
    Ok(done as f64 / seconds)
}

/// Seconds from the first step to the end of the last.
fn train(trainer: &mut Trainer, step: &Step, steps: usize) -> Result<f64, Failure> {
    let began = Instant::now();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(steps);
    for _ in 0..steps {
        trainer.apply(step.clone(), &mut outcomes)?;
    }
    trainer.drain(&mut outcomes)?;
    if outcomes.len() != steps || outcomes.iter().any(|outcome| outcome.verdict != Verdict::Learned) {
        return Err("a step was not learned".into());
    }
    Ok(began.elapsed().as_secs_f64())
}

/// One line for each plan, and the bound.
pub(super) fn print(compared: &Compared) {
    for Measured { network, batch_rows, plan, planned_bytes, staleness, steps_per_second, gain } in &compared.plans {
        println!(
            "{network:<22} batch {batch_rows:>2}  {plan:<20} {steps_per_second:>9.1} steps/s  {gain:>5.2} times one, {:>7.2} MB, \
             staleness {staleness}",
            *planned_bytes as f64 / 1e6
        );
    }
    let word = |met| if met { "met" } else { "MISSED" };
    println!(
        "{:>60}replicas {:>5.2} times one; best plan at least {} {}, default at least 0.98 {}",
        "",
        compared.replicas_gain,
        compared.goal,
        word(compared.met),
        word(compared.default_met)
    );
}
