//! `mustela plan`: what a model would hold under a plan, part by part, beside what a trial of it takes.
//!
//! The trial trains the model on made-up rows in this process, which has nothing else to do, in the order of tasks that holds the
//! most. So the three columns can be compared: what the plan reckons with, what the ledger counted, what the allocator saw.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::serve::objective;
use super::{Failure, frontier};
use crate::allocator;
use crate::config::Config;
use crate::ferret::executor::Executor;
use crate::ferret::plan::{Plan, Publication};
use crate::ferret::planner::Wish;
use crate::ferret::pool::Pool;
use crate::ferret::profile::made_up;
use crate::ferret::trainer::{Recipe, Trainer};
use crate::fold::{Fold, Step};
use crate::ledger::Part;
use crate::model::kind::Given;
use crate::model::network::NetworkKind;
use crate::model::queued_bytes_max;
use crate::model::spec::ModelSpec;
use crate::rows::Rows;
use crate::stream::Schema;

const HELP: &str = "\
Examples:
  mustela plan stream.json model.json                    the best plan, its bytes by part beside those of a trial
  mustela plan stream.json model.json --budget 8MiB      the best plan that fits
  mustela plan stream.json model.json --frontier         every plan worth having
  mustela plan stream.json model.json --frontier --plot frontier.svg";

/// Flags of `plan`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// The stream: a file with the body of PUT /v1/streams/{s}
    stream: PathBuf,
    /// The model: a file with the body of PUT /v1/models/{m}; what it leaves out is as in the built-in configuration
    model: PathBuf,
    /// A plan by hand: a file with the body of PUT /v1/models/{m}/plan; without it, the best that fits the budget
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// The budget, such as 64MiB; without it the model's own, or none
    #[arg(long, value_name = "SIZE")]
    budget: Option<ByteSize>,
    /// Steps of the trial
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: u64,
    /// List every plan that no other beats in both bytes and adaptation rate, instead of one plan and its trial
    #[arg(long, conflicts_with_all = ["plan", "budget", "steps"])]
    frontier: bool,
    /// Draw the frontier to this file, as SVG
    #[arg(long, value_name = "FILE.svg", requires = "frontier")]
    plot: Option<PathBuf>,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let schema: Schema = read(&arguments.stream)?;
    schema.validate().map_err(|fault| format!("{}: {fault}", arguments.stream.display()))?;
    let spec: ModelSpec = read(&arguments.model)?;
    let pool = Pool::new(0, 0)?;
    let config = Config::load(None, [], &[])?;
    let kind = NetworkKind { pool: pool.clone(), step_rows: config.model.step_rows, objective: objective(&config) };
    let queued_bytes = queued_bytes_max(&schema, spec.overload.window(config.model.lag_rows_max));
    let may_skip = spec.overload.may_skip();
    let recipe = kind.recipe(Given { settings: &spec.settings, schema: &schema, queued_bytes, may_skip, blobs: None })?;
    if arguments.frontier {
        return frontier::run(&recipe.planner(), &pool, arguments.json, arguments.plot.as_deref());
    }
    let budget_bytes = arguments.budget.or(spec.memory_budget).map(|budget| budget.as_u64());
    let plan = match &arguments.plan {
        Some(file) => recipe.planner().complete(0, &read::<Wish>(file)?, budget_bytes.unwrap_or(u64::MAX))?,
        None => {
            let (planner, budget_bytes) = (recipe.planner(), budget_bytes.unwrap_or(u64::MAX));
            planner.choose(0, budget_bytes, None, &planner.prospects(planner.measure(&pool, budget_bytes)?))?
        }
    };
    let tried = attempt(&recipe, &plan, arguments.steps)?;
    let said = describe(&recipe, &plan, &tried);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&said)?);
    } else {
        print(&plan, &said);
    }
    Ok(())
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let text = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", file.display()))?)
}

/// What a trial took.
pub(super) struct Tried {
    /// The most of each part, in their order.
    parts: Vec<u64>,
    pub(super) ledger: u64,
    pub(super) allocator: u64,
    outline: Value,
}

pub(super) fn attempt(recipe: &Recipe, plan: &Plan, steps: u64) -> Result<Tried, Failure> {
    let rows = made_up(&recipe.network, recipe.step_rows);
    // The packing space that a thread keeps for good comes before the measurement: it belongs to the process.
    let small = recipe.planner().minimum(0);
    train(&mut Trainer::new(recipe.clone(), small, Executor::Filling)?, &rows, 1, Publication::AtDrain)?;
    let before = allocator::live_bytes();
    allocator::reset_peak();
    let mut trainer = Trainer::new(recipe.clone(), plan.clone(), Executor::Filling)?;
    train(&mut trainer, &rows, steps, plan.publication)?;
    let allocator = allocator::peak_bytes() - before;
    let parts = Part::ALL.into_iter().map(|part| trainer.ledger().part_high_water(part)).collect();
    Ok(Tried { parts, ledger: trainer.ledger().high_water(), allocator, outline: trainer.outline() })
}

/// Trains on made-up rows, with a reader that holds as many snapshots as the plan lets it.
fn train(trainer: &mut Trainer, rows: &Rows, steps: u64, publication: Publication) -> Result<(), Failure> {
    let (mut outcomes, mut held) = (Vec::new(), Vec::new());
    // Far enough apart that a snapshot's versions have left the window.
    let between = (steps / 4).max(1);
    for number in 0..steps {
        trainer.apply(Step::starting(1 + number * rows.count as u64, rows.clone()), &mut outcomes)?;
        held.extend(trainer.snapshot()?);
        if number % between == between - 1 {
            if held.len() >= publication.copies() {
                held.remove(0);
            }
            trainer.begin_snapshot(&mut outcomes)?;
        }
        outcomes.clear();
    }
    trainer.drain(&mut outcomes)?;
    Ok(())
}

fn describe(recipe: &Recipe, plan: &Plan, tried: &Tried) -> Value {
    let parts = Part::ALL
        .into_iter()
        .zip(&tried.parts)
        .map(|(part, used)| json!({ "part": part.name(), "planned_bytes": plan.bytes.part(part), "high_water_bytes": used }));
    let stages = plan.stages.iter().enumerate().map(|(number, stage)| {
        json!({
            "layers": stage.layers,
            "recompute": stage.recompute,
            "accumulation": stage.accumulation,
            "staleness": plan.lag(number) - 1,
            "versions": plan.versions(number),
        })
    });
    json!({
        "stages": stages.collect::<Vec<_>>(),
        "plan": plan,
        "outline": tried.outline,
        "parts": parts.collect::<Vec<_>>(),
        "overhead_bytes": plan.bytes.overhead,
        "planned_bytes": plan.bytes.total(),
        "ledger_high_water_bytes": tried.ledger,
        "allocator_high_water_bytes": tried.allocator,
        "minimum_bytes": recipe.planner().minimum(0).bytes.total(),
    })
}

fn print(plan: &Plan, said: &Value) {
    println!(
        "{} stages, {} workers, {} steps in flight at most, {} tasks at once:",
        plan.stages.len(),
        plan.workers,
        plan.in_flight(),
        plan.threads
    );
    for (number, stage) in plan.stages.iter().enumerate() {
        let names: Vec<&str> = said["outline"]["layers"].as_array().map_or(&[][..], Vec::as_slice)[stage.layers.clone()]
            .iter()
            .filter_map(|layer| layer["name"].as_str())
            .collect();
        println!(
            "  stage {number}: layers {} to {} ({}); staleness {}, {} versions, an update every {} steps, {}",
            stage.layers.start,
            stage.layers.end - 1,
            names.join(", "),
            plan.lag(number) - 1,
            plan.versions(number),
            stage.accumulation * plan.learns_every(number),
            if stage.recompute.is_empty() { "activations kept".into() } else { format!("recomputed from {:?}", stage.recompute) }
        );
    }
    println!("\n{:<18} {:>14} {:>14}", "bytes", "planned", "used at most");
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    for part in said["parts"].as_array().map_or(&[][..], Vec::as_slice) {
        let name = part["part"].as_str().unwrap_or_default();
        println!("{name:<18} {:>14} {:>14}", number(&part["planned_bytes"]), number(&part["high_water_bytes"]));
    }
    println!("{:<18} {:>14}", "overhead", number(&said["overhead_bytes"]));
    println!("{:<18} {:>14} {:>14}", "in all, at once", number(&said["planned_bytes"]), number(&said["ledger_high_water_bytes"]));
    println!("{:<18} {:>14} {:>14}", "allocator", "", number(&said["allocator_high_water_bytes"]));
    println!(
        "\nthe trial reads no log, so its queued rows are none, and runs one task at a time, where the plan reckons with {}; the \
         smallest budget is {} bytes",
        plan.threads,
        number(&said["minimum_bytes"])
    );
}
