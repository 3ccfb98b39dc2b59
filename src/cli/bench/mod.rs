//! `mustela bench NAME`: what this machine gives, as ratios of things measured in turn in one run.

mod autograd;
pub mod crash;
mod detect;
mod engine;
mod online;
mod pipeline;
mod planner;
mod predict;
mod service;
mod sweep;

use std::time::Instant;

use clap::{Args, Subcommand};

use super::Failure;
use crate::learner::Learner;

const HELP: &str = "\
Examples:
  mustela bench engine --quick                         under a minute
  mustela bench crash --state rounds.jsonl --rounds 5  goes on where the file ends
  mustela bench sweep --plot sweep.svg
  mustela bench detect --models ~/.cache/mustela/models --pictures /usr/share/tuxpaint/stamps --quick";

/// Flags of `bench`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the training step beside candle's autograd, pipelines beside replicas, and the whole service
    Engine(engine::Arguments),
    /// Try the planner's plans at ten budgets, reckoned and measured, beside fifty random plans
    Planner(planner::Arguments),
    /// Run Ferret's comparison on a virtual clock: accuracy and memory of systems on streams that do not wait
    Online(Box<online::Arguments>),
    /// Kill a service at random under load and start it again: is all there that was promised, to the bit?
    Crash(crash::Arguments),
    /// Attack networks and tell the attacked pictures: detectors, baselines and controls at fixed rates of false alarms
    Detect(detect::Arguments),
    /// Take a live model's memory budget down to the smallest and up again under full load
    Sweep(sweep::Arguments),
}

/// Runs a benchmark.
pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Engine(arguments) => engine::run(&arguments),
        Command::Planner(arguments) => planner::run(&arguments),
        Command::Online(arguments) => online::run(&arguments),
        Command::Crash(arguments) => crash::run(&arguments),
        Command::Detect(arguments) => detect::run(&arguments),
        Command::Sweep(arguments) => sweep::run(&arguments),
    }
}

/// A learner with its defaults, by its name.
fn learner(name: &str) -> Result<Learner, Failure> {
    serde_json::from_value(serde_json::json!({ "type": name })).map_err(|error| format!("learner `{name}`: {error}").into())
}

/// Seconds that each of `rounds` calls of `step` took.
fn time(rounds: usize, mut step: impl FnMut() -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        step()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
