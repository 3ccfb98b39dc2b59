//! `mustela bench engine`: our training step beside candle's autograd, on the same weights and the same rows, one thread each.
//!
//! Ours is the trainer's own step with its ledger, from rows to updated weights; candle's is forward, `backward` and its plain
//! SGD over a tensor that is ready, with the same allocator as ours. The two are timed in turn, in blocks, and the figure is the
//! ratio of the medians. Then come what pipelines gain ([`super::pipeline`]) and the whole service, its queries
//! among it ([`super::predict`]). candle reads its number of threads from the environment only, so the work runs in a child
//! process.

use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::{autograd, median, pipeline, predict, service, time};
use crate::cli::Failure;
use crate::ferret::executor::Executor;
use crate::ferret::plan::Publication;
use crate::ferret::trainer::{Recipe, Trainer};
use crate::fold::{Fold, Outcome, Step, Verdict};
use crate::network::{Architecture, Loss, Network};
use crate::rows::{Block, Element, Rows, Target};

/// What candle reads its number of threads from.
const THREADS: &str = "RAYON_NUM_THREADS";
pub(super) const LEARNING_RATE: f64 = 0.01;
/// Blocks in which the two sides take turns.
const BLOCKS: usize = 7;

/// Flags of `bench engine`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Fewer rounds, under a minute
    #[arg(long)]
    quick: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// One network at one batch size.
struct Case {
    name: &'static str,
    architecture: Architecture,
    input: &'static [usize],
    rows: usize,
    goal: f64,
}

/// What one case gave.
#[derive(Debug, Serialize)]
struct Measured {
    network: &'static str,
    batch_rows: usize,
    mustela_ms: f64,
    candle_ms: f64,
    /// How many times as fast ours is.
    ratio: f64,
    /// What it should be at least.
    goal: f64,
    /// The difference of the two sides' first losses.
    loss_difference: f64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if std::env::var(THREADS).as_deref() != Ok("1") {
        let status = Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(THREADS, "1").status()?;
        return if status.success() { Ok(()) } else { Err(format!("the benchmark ended with {status}").into()) };
    }
    let threads = std::thread::available_parallelism()?.get();
    // First, in a process that has done nothing else: gains of some percent do not show through what others left in the heap.
    let pipelines = pipeline::measure(arguments.quick, threads)?;
    if !arguments.json {
        println!("pipelines on {threads} threads:");
        pipelines.iter().for_each(pipeline::print);
        println!("\nthe sequential step beside candle's autograd, one thread each:");
    }
    let mut steps = Vec::new();
    for case in cases() {
        steps.push(measure(&case, arguments.quick)?);
        if let (false, Some(step)) = (arguments.json, steps.last()) {
            print(step);
        }
    }
    let service = service::measure(arguments.quick)?;
    let predict = predict::measure(arguments.quick)?;
    if arguments.json {
        println!("{}", serde_json::json!({ "steps": steps, "pipelines": pipelines, "service": service, "predict": predict }));
    } else {
        println!(
            "\nwhole service over HTTP, MLP 784-256-256-10, batches of 64 x 784 u8, 2 connections, durable before acknowledged:"
        );
        for row in &service {
            println!("  {:<5} {:>8.0} rows/s acknowledged, {:>8.0} rows/s learned", row.format, row.acknowledged, row.learned);
        }
        predict::print(&predict);
    }
    Ok(())
}

fn cases() -> Vec<Case> {
    let mlp = |rows, goal| Case {
        name: "MLP 784-256-256-10",
        architecture: Architecture::Mlp { hidden: vec![256, 256], standardise: Some(false) },
        input: &[784],
        rows,
        goal,
    };
    let conv = |rows, goal| Case {
        name: "ConvNet 3x32x32",
        architecture: Architecture::ConvNet { standardise: Some(false) },
        input: &[3, 32, 32],
        rows,
        goal,
    };
    vec![mlp(1, 9.0), mlp(16, 2.5), mlp(64, 1.8), conv(16, 3.5), conv(64, 3.5)]
}

fn measure(case: &Case, quick: bool) -> Result<Measured, Failure> {
    let network = Arc::new(Network::build(&case.architecture, case.input, 10, Loss::SoftmaxCrossEntropy, false)?);
    let rows = random_rows(case.input.iter().product(), case.rows);
    let mut peer = autograd::Peer::new(&network, &rows, LEARNING_RATE)?;
    let mut ours = trainer(network, case.rows)?;
    let rows = Step::starting(1, rows);
    let first_loss = step(&mut ours, &rows)?.score.loss / case.rows as f64;
    let loss_difference = (first_loss - peer.step()?).abs();
    let one = median(time(3, || peer.step().map(|_| ()))?);
    let seconds_a_block = if quick { 0.15 } else { 1.0 };
    let rounds = ((seconds_a_block / one) as usize).clamp(3, 2000);
    let (mut mustela, mut candle) = (Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        mustela.extend(time(rounds, || step(&mut ours, &rows).map(|_| ()))?);
        candle.extend(time(rounds, || peer.step().map(|_| ()))?);
    }
    let (mustela_ms, candle_ms) = (median(mustela) * 1e3, median(candle) * 1e3);
    let ratio = candle_ms / mustela_ms;
    Ok(Measured { network: case.name, batch_rows: case.rows, mustela_ms, candle_ms, ratio, goal: case.goal, loss_difference })
}

/// A trainer whose steps run on the caller's thread, one after the other.
fn trainer(network: Arc<Network>, step_rows: usize) -> Result<Trainer, Failure> {
    let recipe = Recipe { learning_rate: LEARNING_RATE, seed: autograd::SEED, ..Recipe::new(network, step_rows, 1) };
    let plan = recipe.planner().sequential(0, Publication::AtDrain);
    Ok(Trainer::new(recipe, plan, Executor::Filling)?)
}

/// One step to its end.
fn step(trainer: &mut Trainer, step: &Step) -> Result<Outcome, Failure> {
    let mut outcomes = Vec::with_capacity(1);
    trainer.apply(step.clone(), &mut outcomes)?;
    trainer.drain(&mut outcomes)?;
    let outcome = outcomes.pop().ok_or("the step did not end")?;
    match outcome.verdict {
        Verdict::Learned => Ok(outcome),
        Verdict::LearnedInPart | Verdict::Quarantined(_) => Err("the step was refused".into()),
    }
}

/// Rows of uniform features in [0, 1) and classes 0 to 9, always the same ones.
pub(super) fn random_rows(width: usize, count: usize) -> Rows {
    let mut hash = blake3::Hasher::new().update(b"bench engine").finalize_xof();
    let mut bytes = vec![0; width * count * 4];
    hash.fill(&mut bytes);
    let (words, _) = bytes.as_chunks::<4>();
    let features: Vec<u8> =
        words.iter().flat_map(|&word| (u32::from_le_bytes(word) as f32 / 4_294_967_296.0).to_le_bytes()).collect();
    Rows {
        count,
        blocks: vec![Block { element: Element::F32, width, bytes: Bytes::from(features) }],
        target: Some(Target::Classes((0..count as u32).map(|row| row % 10).collect())),
        ..Rows::default()
    }
}

fn print(step: &Measured) {
    let Measured { network, batch_rows, mustela_ms, candle_ms, ratio, goal, loss_difference } = step;
    let met = if ratio >= goal { "met" } else { "MISSED" };
    println!(
        "{network:<20} batch {batch_rows:>2}  mustela {mustela_ms:>8.3} ms  candle {candle_ms:>8.3} ms  {ratio:>5.2} times as fast \
         (goal {goal}: {met}; first losses differ by {loss_difference:.1e})"
    );
}
