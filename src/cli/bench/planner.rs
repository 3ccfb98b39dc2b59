//! What the planner promises and what its plans give: ten budgets from the smallest to more than any plan takes, for each network
//! the chosen plan's bytes and rate as reckoned and as measured, and fifty random plans beside them.
//!
//! All plans take turns in blocks on the same machine, each on threads and with weights of its own; a plan's rate is the median of
//! its blocks. Snapshots are published as the service does it. A random plan is judged at every budget that it fits.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use serde::Serialize;
use serde_json::json;

use super::engine::{LEARNING_RATE, random_rows};
use super::median;
use crate::cli::Failure;
use crate::cli::plan::attempt;
use crate::ferret::executor::Executor;
use crate::ferret::plan::{Plan, Publication};
use crate::ferret::planner::{Planner, Prospects, Recompute, StageWish, Wish};
use crate::ferret::pool::Pool;
use crate::ferret::trainer::{Recipe, Trainer};
use crate::ferret::work::Rule;
use crate::fold::{Fold, Snapshot, Step};
use crate::learner::Learner;
use crate::network::{Architecture, Loss, Network, random};

/// Budgets of each network, and random plans beside them.
const BUDGETS: usize = 10;
const RANDOM_PLANS: usize = 50;
/// Blocks in which the plans take turns.
const BLOCKS: usize = 5;
/// Stages and workers of a random plan at most.
const RANDOM_STAGES: u64 = 4;
const RANDOM_WORKERS: u64 = 3;

/// Flags of `bench planner`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shorter blocks, under ten minutes
    #[arg(long)]
    quick: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Only the networks whose names hold this
    #[arg(long, default_value = "")]
    network: String,
    /// What a step minimises: vanilla, er, mir, lwf, mas
    #[arg(long, default_value = "vanilla")]
    learner: String,
}

struct Case {
    name: &'static str,
    architecture: Architecture,
    input: &'static [usize],
    rows: usize,
}

/// What one budget gave.
#[derive(Debug, Serialize)]
struct AtBudget {
    budget_bytes: u64,
    planned_bytes: u64,
    /// The most that a trial of the plan held, by the ledger and by the allocator.
    ledger_bytes: u64,
    allocator_bytes: u64,
    plan: String,
    /// Steps a second, reckoned from the profile and measured.
    reckoned: f64,
    measured: f64,
    /// Of what the plan's own rate was measured to be, the best random plan that fits.
    best_random: Option<f64>,
    /// Of the best plan's adaptation rate, that of the paper's search.
    greedy: Option<f64>,
}

/// What one random plan gave.
#[derive(Debug, Serialize)]
struct Random {
    plan: String,
    planned_bytes: u64,
    /// Steps a second, reckoned from the profile and measured.
    reckoned: f64,
    measured: f64,
}

/// What one network gave.
#[derive(Debug, Serialize)]
struct Measured {
    network: &'static str,
    step_rows: usize,
    layers: usize,
    frontier_points: usize,
    profile_ms: f64,
    frontier_ms: f64,
    budgets: Vec<AtBudget>,
    /// The random plans.
    random: Vec<Random>,
    /// The largest distance of a measured rate from the reckoned one.
    rate_error: f64,
    /// By how much a random plan was better at the worst.
    random_better: f64,
    /// Whether every plan held no more than its budget.
    within_budget: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (pool, learner) = (Pool::new(0, 0)?, super::learner(&arguments.learner)?);
    let mut networks = Vec::new();
    for case in cases().into_iter().filter(|case| case.name.contains(&arguments.network)) {
        networks.push(measure(&case, learner, &pool, arguments.quick)?);
        if let (false, Some(network)) = (arguments.json, networks.last()) {
            print(network);
        }
    }
    if arguments.json {
        println!("{}", json!({ "threads": pool.threads(), "networks": networks }));
    }
    Ok(())
}

fn cases() -> [Case; 3] {
    [
        Case {
            name: "MLP 784-256-256-10",
            architecture: Architecture::Mlp { hidden: vec![256, 256], standardise: Some(false) },
            input: &[784],
            rows: 64,
        },
        Case {
            name: "ConvNet 3x32x32",
            architecture: Architecture::ConvNet { standardise: Some(false) },
            input: &[3, 32, 32],
            rows: 16,
        },
        Case {
            name: "ResNet-18 width 16",
            architecture: Architecture::ResNet18 { width: 16, standardise: Some(false) },
            input: &[3, 32, 32],
            rows: 16,
        },
    ]
}

fn measure(case: &Case, learner: Learner, pool: &Pool, quick: bool) -> Result<Measured, Failure> {
    let network = Arc::new(Network::build(&case.architecture, case.input, 10, Loss::SoftmaxCrossEntropy, false)?);
    let rule = Rule { learner, ..Rule::default() };
    let recipe = Recipe { rule, learning_rate: LEARNING_RATE, ..Recipe::new(network, case.rows, pool.threads()) };
    let planner = recipe.planner();
    let began = Instant::now();
    let profile = planner.measure(pool, u64::MAX)?;
    let profile_ms = began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    let prospects = planner.prospects(profile);
    let frontier_ms = began.elapsed().as_secs_f64() * 1e3;
    let budgets = budgets(&prospects);
    let mut chosen: Vec<Plan> = Vec::new();
    let mut of_budget = Vec::new();
    for &budget_bytes in &budgets {
        let plan = planner.choose(0, budget_bytes, None, &prospects)?;
        let known = chosen.iter().position(|known| *known == plan);
        of_budget.push(known.unwrap_or(chosen.len()));
        if known.is_none() {
            chosen.push(plan);
        }
    }
    let random = random_plans(&planner)?;
    let all: Vec<Plan> = chosen.iter().chain(&random).cloned().collect();
    // Before other threads come and go: the allocator sees the whole process.
    let tried = chosen.iter().map(|plan| attempt(&recipe, plan, 64)).collect::<Result<Vec<_>, _>>()?;
    let rates = rates(&recipe, &all, case, if quick { 0.15 } else { 0.6 })?;
    let value = |plan: &Plan| planner.rates(&prospects.profile).of(plan).value;
    let mut rows = Vec::with_capacity(BUDGETS);
    for (&budget_bytes, &number) in budgets.iter().zip(&of_budget) {
        let plan = &chosen[number];
        let worth = |side: usize| rates[side] * value(&all[side]);
        let fits = (chosen.len()..all.len()).filter(|&side| all[side].bytes.total() <= budget_bytes);
        let best_random = fits.map(|side| worth(side) / worth(number)).max_by(f64::total_cmp);
        let best = planner.rates(&prospects.profile).of(plan).per_second(None);
        rows.push(AtBudget {
            budget_bytes,
            planned_bytes: plan.bytes.total(),
            ledger_bytes: tried[number].ledger,
            allocator_bytes: tried[number].allocator,
            plan: plan.outline(),
            reckoned: 1e9 / planner.rates(&prospects.profile).of(plan).period,
            measured: rates[number],
            best_random,
            greedy: planner.greedy(&prospects.profile, budget_bytes).map(|point| point.rate.per_second(None) / best),
        });
    }
    let random = random.iter().zip(&rates[chosen.len()..]).map(|(plan, &measured)| Random {
        plan: plan.outline(),
        planned_bytes: plan.bytes.total(),
        reckoned: 1e9 / planner.rates(&prospects.profile).of(plan).period,
        measured,
    });
    let random = random.collect();
    let rate_error = rows.iter().map(|row| (row.measured / row.reckoned - 1.0).abs()).fold(0.0, f64::max);
    let random_better = rows.iter().filter_map(|row| row.best_random).fold(0.0, f64::max) - 1.0;
    let within_budget = rows.iter().all(|row| row.ledger_bytes.max(row.allocator_bytes) <= row.budget_bytes);
    Ok(Measured {
        network: case.name,
        step_rows: case.rows,
        layers: planner.network.layers.len(),
        frontier_points: prospects.frontier.points().len(),
        profile_ms,
        frontier_ms,
        budgets: rows,
        random,
        rate_error,
        random_better,
        within_budget,
    })
}

/// From the smallest plan's bytes to the largest's in equal ratios, and no limit at last.
fn budgets(prospects: &Prospects) -> Vec<u64> {
    let points = prospects.frontier.points();
    let least = points.first().map_or(1, |point| point.bytes) as f64;
    let most = points.last().map_or(1, |point| point.bytes) as f64;
    let at = |number: usize| (least * (most / least).powf(number as f64 / (BUDGETS - 1) as f64)).ceil() as u64;
    (0..BUDGETS - 1).map(at).chain([u64::MAX]).collect()
}

fn random_plans(planner: &Planner) -> Result<Vec<Plan>, Failure> {
    let mut generator = random::stream(1, 0, "random plans");
    let mut plans = Vec::with_capacity(RANDOM_PLANS);
    while plans.len() < RANDOM_PLANS {
        let wish = random_wish(planner, &mut generator);
        // Some cuts leave a stage with nothing to learn.
        if let Ok(plan) = planner.complete(0, &wish, u64::MAX) {
            plans.push(plan);
        }
    }
    Ok(plans)
}

fn random_wish(planner: &Planner, generator: &mut ChaCha8Rng) -> Wish {
    let mut below = |bound: u64| generator.next_u64() % bound;
    let layers = planner.network.layers.len();
    let mut cuts: Vec<usize> = (0..below(RANDOM_STAGES)).map(|_| 1 + below(layers as u64 - 1) as usize).collect();
    cuts.push(layers);
    cuts.sort_unstable();
    cuts.dedup();
    let mut first = 0;
    let stages = cuts.into_iter().map(|end| {
        let recompute = Recompute::Whether(below(2) == 1);
        let stage = StageWish { layers: first..end, recompute, accumulation: 1 + below(2) * below(3), stride: 1 };
        first = end;
        stage
    });
    let stages = stages.collect();
    let publication = if below(2) == 0 { Publication::Continuous } else { Publication::AtDrain };
    Wish { stages, workers: 1 + below(RANDOM_WORKERS), publication }
}

/// Steps a second of each plan.
fn rates(recipe: &Recipe, plans: &[Plan], case: &Case, seconds: f64) -> Result<Vec<f64>, Failure> {
    let step = Step::starting(1, random_rows(case.input.iter().product(), case.rows));
    let mut rates = vec![Vec::with_capacity(BLOCKS); plans.len()];
    for block in 0..BLOCKS {
        for turn in 0..plans.len() {
            let side = if block % 2 == 0 { turn } else { plans.len() - 1 - turn };
            rates[side].push(rate(recipe, &plans[side], &step, seconds)?);
        }
    }
    Ok(rates.into_iter().map(median).collect())
}

/// Steps a second of a fresh trainer, once it is warm.
fn rate(recipe: &Recipe, plan: &Plan, step: &Step, seconds: f64) -> Result<f64, Failure> {
    let executor = Executor::Threads(Pool::new(recipe.threads, 0)?);
    let mut trainer = Trainer::new(recipe.clone(), plan.clone(), executor)?;
    let interval = recipe.objective.publish_interval;
    let warm = plan.in_flight() + 3;
    let (mut began, mut published, mut begun) = (Instant::now(), Instant::now(), false);
    let mut held: Option<Arc<dyn Snapshot>> = None;
    let (mut outcomes, mut steps) = (Vec::new(), 0);
    loop {
        trainer.apply(step.clone(), &mut outcomes)?;
        steps += 1;
        if steps == warm {
            trainer.drain(&mut outcomes)?;
            began = Instant::now();
        }
        if !begun && published.elapsed() >= interval {
            begun = trainer.begin_snapshot(&mut outcomes)?;
            published = Instant::now();
        }
        if begun && let Some(snapshot) = trainer.snapshot()? {
            held.replace(snapshot);
            begun = false;
        }
        // So many that the filling and the emptying of the pipeline do not count.
        if steps >= warm + 8 * plan.in_flight() && began.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    trainer.drain(&mut outcomes)?;
    Ok((steps - warm) as f64 / began.elapsed().as_secs_f64())
}

fn print(network: &Measured) {
    println!(
        "{}, steps of {} rows: {} layers profiled in {:.0} ms, {} plans on the frontier after {:.1} ms",
        network.network, network.step_rows, network.layers, network.profile_ms, network.frontier_points, network.frontier_ms
    );
    println!(
        "  {:>12} {:>12} {:>12} {:>12} {:>9} {:>9} {:>6} {:>7} {:>7}  plan",
        "budget", "planned", "ledger", "allocator", "reckoned", "measured", "", "random", "greedy"
    );
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    for row in &network.budgets {
        let budget = if row.budget_bytes == u64::MAX { "none".to_owned() } else { row.budget_bytes.to_string() };
        println!(
            "  {budget:>12} {:>12} {:>12} {:>12} {:>9.1} {:>9.1} {:>6.2} {:>7} {:>7}  {}",
            row.planned_bytes,
            row.ledger_bytes,
            row.allocator_bytes,
            row.reckoned,
            row.measured,
            row.measured / row.reckoned,
            ratio(row.best_random),
            ratio(row.greedy),
            row.plan
        );
    }
    let distances = network.random.iter().map(|random| (random.measured / random.reckoned - 1.0).abs()).collect();
    println!("  random plans: measured rates within {:.1} % of the reckoned ones in the median", median(distances) * 100.0);
    println!(
        "  within the budget: {}; measured rates within {:.1} % of the reckoned ones; the best random plan {:+.1} %",
        if network.within_budget { "always" } else { "NOT always" },
        network.rate_error * 100.0,
        network.random_better * 100.0
    );
}
