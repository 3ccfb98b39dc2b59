//! Queries of the whole service while it learns beside queries while it stands, and how old the snapshots get that answer them.
//!
//! The client is an open loop: it sends at fixed times, whatever the answers do, and counts from the time at which a query was
//! due, so that a stall of the service counts for every query that it holds up. Blocks with and without training take turns.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::median;
use super::service::{Fresh, PIXELS, post};
use crate::cli::Failure;
use crate::cli::client::Service;
use crate::config::{self, Config};

/// Time between two queries: 200 a second.
const PACE: Duration = Duration::from_millis(5);
/// Blocks of each sort.
const BLOCKS: usize = 3;
/// Before a block counts: connections open, and the trainer gets going.
const WARM: Duration = Duration::from_millis(500);
/// Time between two looks at the age of the snapshot.
const LOOK: Duration = Duration::from_millis(20);
/// How many times its p99 without training that with training should be at most.
const GOAL: f64 = 3.0;

/// Milliseconds within which half and 99 of 100 queries of a block were answered.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50_ms: f64,
    p99_ms: f64,
}

/// What the queries met.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    queries_per_second: f64,
    /// The blocks without training.
    idle: Vec<Latency>,
    /// The blocks with training.
    training: Vec<Latency>,
    /// Rows a second that were acknowledged in those.
    acknowledged: f64,
    /// How many times the p99 without training that with training is, medians of the blocks.
    ratio: f64,
    /// What it should be at most.
    goal: f64,
    /// The largest age of the snapshot that a look found while training.
    oldest_snapshot_ms: f64,
    /// 99 of 100 looks found less.
    p99_snapshot_ms: f64,
    /// What it should be at most: `model.publish_interval_ms`.
    interval_ms: f64,
}

/// Measures a fresh service.
pub(super) fn measure(quick: bool) -> Result<Measured, Failure> {
    let length = Duration::from_secs(if quick { 2 } else { 6 });
    crate::cli::runtime()?.block_on(alternate(length))
}

async fn alternate(length: Duration) -> Result<Measured, Failure> {
    let fresh = Fresh::start().await?;
    let (mut idle, mut training, mut ages) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rows, mut seconds) = (0, 0.0);
    for _ in 0..BLOCKS {
        query(&fresh.service, WARM).await?;
        idle.push(latency(query(&fresh.service, length).await?));

        let began = Instant::now();
        let until = began + WARM + length;
        let posts = tokio::spawn(post(fresh.service.clone(), "raw", until));
        query(&fresh.service, WARM).await?;
        let looks = tokio::spawn(look(fresh.metrics.clone(), until));
        training.push(latency(query(&fresh.service, length).await?));
        ages.extend(looks.await??);
        rows += posts.await??;
        seconds += began.elapsed().as_secs_f64();
        // The next block is idle only when nothing is left to learn.
        fresh.learned(rows).await?;
    }
    fresh.end()?;
    let p99 = |blocks: &[Latency]| median(blocks.iter().map(|block| block.p99_ms).collect());
    let ratio = p99(&training) / p99(&idle);
    ages.sort_by(f64::total_cmp);
    Ok(Measured {
        queries_per_second: 1.0 / PACE.as_secs_f64(),
        idle,
        training,
        acknowledged: rows as f64 / seconds,
        ratio,
        goal: GOAL,
        oldest_snapshot_ms: quantile(&ages, 1.0) * 1e3,
        p99_snapshot_ms: quantile(&ages, 0.99) * 1e3,
        // As the service read it: it has no file, and our environment.
        interval_ms: Config::load(None, config::environment(), &[])?.model.publish_interval_ms as f64,
    })
}

/// Asks at the pace for `length`; gives the seconds from the time at which each query was due to its answer.
async fn query(service: &Service, length: Duration) -> Result<Vec<f64>, Failure> {
    let service = service.clone();
    let runtime = Handle::current();
    // A thread of its own keeps the time: the runtime's timers are no finer than what is measured.
    let pace = move || {
        let began = Instant::now();
        let mut asked: JoinSet<Result<f64, Failure>> = JoinSet::new();
        let mut due = Duration::ZERO;
        while due < length {
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            asked.spawn_on(ask(service.clone(), began + due), &runtime);
            due += PACE;
        }
        asked
    };
    let mut asked = tokio::task::spawn_blocking(pace).await?;
    let mut seconds = Vec::new();
    while let Some(answered) = asked.join_next().await {
        seconds.push(answered??);
    }
    Ok(seconds)
}

async fn ask(service: Service, due: Instant) -> Result<f64, Failure> {
    let row: Vec<u8> = (0..PIXELS).map(|column| (column * 7 % 256) as u8).collect();
    service.post("/v1/models/bench/predict", "application/octet-stream", Bytes::from(row)).await?;
    Ok(due.elapsed().as_secs_f64())
}

/// The ages in seconds that looks until `until` find.
async fn look(metrics: Service, until: Instant) -> Result<Vec<f64>, Failure> {
    let mut ages = Vec::new();
    while Instant::now() < until {
        let page = metrics.get("").await?;
        let page = page.as_str().ok_or("the metrics are no text")?;
        let line = page.lines().find_map(|line| line.strip_prefix("mustela_model_snapshot_age_seconds{model=\"bench\"} "));
        ages.push(line.ok_or("the metrics lack the age of the snapshot")?.parse()?);
        tokio::time::sleep(LOOK).await;
    }
    Ok(ages)
}

fn latency(mut seconds: Vec<f64>) -> Latency {
    seconds.sort_by(f64::total_cmp);
    Latency { p50_ms: quantile(&seconds, 0.5) * 1e3, p99_ms: quantile(&seconds, 0.99) * 1e3 }
}

/// The smallest of `sorted` that at least `share` of them do not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A line for the queries, and one for the age.
pub(super) fn print(measured: &Measured) {
    let word = |met| if met { "met" } else { "MISSED" };
    let middle = |blocks: &[Latency], of: fn(&Latency) -> f64| median(blocks.iter().map(of).collect());
    let both = |blocks: &[Latency]| (middle(blocks, |block| block.p50_ms), middle(blocks, |block| block.p99_ms));
    let ((idle_p50, idle_p99), (training_p50, training_p99)) = (both(&measured.idle), both(&measured.training));
    let Measured { queries_per_second, acknowledged, ratio, goal, oldest_snapshot_ms, p99_snapshot_ms, interval_ms, .. } =
        measured;
    println!(
        "  queries of one raw row, {queries_per_second} a second: p50/p99 {idle_p50:.2}/{idle_p99:.2} ms idle, \
         {training_p50:.2}/{training_p99:.2} ms at {acknowledged:.0} rows/s; p99 {ratio:.2} times idle (goal at most {goal}: {})",
        word(ratio <= goal)
    );
    println!(
        "  snapshots at most {oldest_snapshot_ms:.1} ms old while training, 99 of 100 {p99_snapshot_ms:.1} ms (goal at most \
         {interval_ms}: {})",
        word(oldest_snapshot_ms <= interval_ms)
    );
}
