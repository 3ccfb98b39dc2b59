//! `mustela demo`: everything at once, on a real stream, through the doors that users have.
//!
//! It starts a service of its own in a child process, posts Fashion-MNIST's test images from several clients at once, queries the
//! model all the while, halves the memory budget (or sets it to the minimum, where that is more) and lifts it again, kills the
//! service and starts it again, and says how it went and what the smaller budget cost.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Failure;
use super::child::Server;
use super::client::{Batch, Service};
use super::idx::Idx;
use super::replay::images;

/// Fashion-MNIST's 10,000 test images and labels (Zalando Research, MIT); `data/fashion-mnist/README.md` has the source.
pub(super) const IMAGES: &[u8] = include_bytes!("../../data/fashion-mnist/t10k-images-idx3-ubyte.gz");
pub(super) const LABELS: &[u8] = include_bytes!("../../data/fashion-mnist/t10k-labels-idx1-ubyte.gz");
const CLASSES: [&str; 10] =
    ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// The name of the demo's stream and of its model.
pub(super) const NAME: &str = "fashion";

/// After so many hundredths of the rows are learned the budget goes down, it is lifted again, and the service is killed.
const LOWERED_AT: u64 = 35;
const LIFTED_AT: u64 = 60;
const KILLED_AT: u64 = 75;

/// Time between two looks at the model.
const LOOK: Duration = Duration::from_millis(25);

const HELP: &str = "\
Examples:
  mustela demo           all of it, then nothing is left
  mustela demo --keep    leave the service up, to look at its live page and its doors";

/// Flags of `demo`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Leave the service up at the end and print its addresses
    #[arg(long)]
    keep: bool,
    /// Keep everything durable here; a temporary folder otherwise
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Rows to post
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(640..=10_000))]
    rows: u32,
    /// Rows of a batch, and of a step
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    batch: u32,
    /// Clients that post at once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    clients: u32,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    super::runtime()?.block_on(demo(&arguments))
}

/// What the clients and the queries have seen so far.
#[derive(Default)]
struct Seen {
    acknowledged: AtomicU64,
    queries: AtomicU64,
    query_failures: AtomicU64,
    query_seconds: Mutex<Vec<f64>>,
    done: AtomicBool,
}

async fn demo(arguments: &Arguments) -> Result<(), Failure> {
    let images_all = Idx::read(IMAGES)?;
    let labels_all = Idx::read(LABELS)?;
    let mut batches = images(&images_all, &labels_all, arguments.batch as usize)?;
    batches.truncate(arguments.rows.div_ceil(arguments.batch) as usize);
    let total: u64 = batches.iter().map(|(_, rows)| rows).sum();

    let temporary = std::env::temp_dir().join(format!("mustela-demo-{}", uuid::Uuid::new_v4()));
    let data_dir = arguments.data_dir.clone().unwrap_or_else(|| temporary.clone());
    if data_dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(format!("{} is not empty: the demo begins with a data folder of its own", data_dir.display()).into());
    }
    let mut server = Server::start(&data_dir, "127.0.0.1:0")?;
    let service = Service::new(&server.doors)?.quietly().eagerly();
    println!("A service runs at {} on {}.", server.doors, data_dir.display());
    println!("Watch it learn in a browser: {}/#{NAME}", server.doors);
    let full = create(&service, arguments.batch).await?;

    let began = Instant::now();
    let seen = Arc::new(Seen::default());
    let mut work = JoinSet::new();
    let queue = Arc::new(Mutex::new(batches));
    for _ in 0..arguments.clients {
        work.spawn(post(service.clone(), queue.clone(), seen.clone()));
    }
    let query = Bytes::copy_from_slice(images_all.items(0, 1));
    let queries = tokio::spawn(ask(service.clone(), query, seen.clone()));
    let story = tokio::select! {
        story = tell(&mut server, &service, &data_dir, &seen, (total, full)) => story?,
        failure = first_failure(&mut work) => return Err(failure),
    };
    let last = settle(&service, total).await?;
    let seconds = began.elapsed().as_secs_f64();
    seen.done.store(true, Relaxed);
    queries.await?;
    report(&last, &story, &seen, total, seconds);
    end(arguments, server, &data_dir)
}

/// Makes the stream and the model that the demo and a benchmark use; gives the bytes of the unconstrained plan.
pub(super) async fn create(service: &Service, step_rows: u32) -> Result<u64, Failure> {
    let field = json!({ "name": "pixels", "type": "tensor", "shape": [1, 28, 28], "element": "u8" });
    let target = json!({ "name": "label", "type": "classes", "classes": CLASSES });
    service.put(&format!("/v1/streams/{NAME}"), &json!({ "fields": [field], "target": target })).await?;
    let model = json!({
        "kind": "network", "stream": NAME, "network": { "architecture": "mnistnet" },
        "optimiser": { "type": "sgd", "momentum": 0.9 }, "learning_rate": 0.02, "step_rows": step_rows,
        "overload": { "policy": "backpressure", "lag_rows_max": 2000 },
    });
    let view = service.put(&format!("/v1/models/{NAME}"), &model).await?;
    Ok(number(&view, "/memory/planned_bytes"))
}

/// One client: posts what is left until nothing is.
async fn post(service: Service, queue: Arc<Mutex<VecDeque<(Batch, u64)>>>, seen: Arc<Seen>) -> Result<(), Failure> {
    loop {
        let next = queue.lock().pop_front();
        let Some((batch, rows)) = next else { return Ok(()) };
        service.post_batch(NAME, &batch).await?;
        seen.acknowledged.fetch_add(rows, Relaxed);
    }
}

/// Queries the model a hundred times a second, whatever happens.
async fn ask(service: Service, query: Bytes, seen: Arc<Seen>) {
    while !seen.done.load(Relaxed) {
        let began = Instant::now();
        let path = format!("/v1/models/{NAME}/predict");
        match service.post(&path, "application/octet-stream", query.clone()).await {
            Ok(_) => {
                seen.queries.fetch_add(1, Relaxed);
                seen.query_seconds.lock().push(began.elapsed().as_secs_f64());
            }
            Err(_) => {
                seen.query_failures.fetch_add(1, Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The first client that fails; clients that have posted all that there was are no failure.
pub(super) async fn first_failure(work: &mut JoinSet<Result<(), Failure>>) -> Failure {
    while let Some(ended) = work.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return failure,
            Err(panicked) => return panicked.into(),
        }
    }
    std::future::pending().await
}

/// What happened to the service on the way.
#[derive(Default)]
struct Story {
    /// The times of the budgets that are over.
    periods: Vec<Period>,
    /// The plan of the present one, when it began, and the rows that were learned then.
    present: Option<(String, Instant, u64)>,
    changes_ms: Vec<f64>,
    killed_at_rows: u64,
    back_seconds: f64,
}

/// The time of one budget.
struct Period {
    budget_bytes: Option<u64>,
    plan: String,
    rows_per_second: f64,
    /// Of the newest 1,000 rows at its end.
    accuracy: f64,
    high_water_bytes: u64,
}

impl Story {
    /// A new budget holds, or the first one.
    async fn begin(&mut self, service: &Service) -> Result<(), Failure> {
        let plan = service.plan(NAME).await?.outline();
        let view = service.get(&format!("/v1/models/{NAME}")).await?;
        self.present = Some((plan, Instant::now(), number(&view, "/rows/learned")));
        Ok(())
    }

    /// The budget that holds has held until this `view`.
    fn end(&mut self, view: &Value) {
        let Some((plan, began, learned)) = self.present.take() else { return };
        self.periods.push(Period {
            budget_bytes: view.pointer("/memory/budget_bytes").and_then(Value::as_u64),
            plan,
            rows_per_second: (number(view, "/rows/learned") - learned) as f64 / began.elapsed().as_secs_f64(),
            accuracy: view.pointer("/sliding/accuracy").and_then(Value::as_f64).unwrap_or_default(),
            high_water_bytes: number(view, "/memory/high_water_bytes"),
        });
    }

    async fn change(&mut self, service: &Service, view: &Value, budget_bytes: Option<u64>) -> Result<(), Failure> {
        self.end(view);
        let began = Instant::now();
        service.put(&format!("/v1/models/{NAME}/memory-budget"), &json!({ "budget": budget_bytes })).await?;
        self.changes_ms.push(began.elapsed().as_secs_f64() * 1e3);
        self.begin(service).await
    }
}

/// Watches the stream of `total` rows pass: the budget goes down to half of the `full` plan, or to the
/// minimum, and up again, and the service is killed and started again.
async fn tell(
    server: &mut Server,
    service: &Service,
    data_dir: &Path,
    seen: &Seen,
    (total, full): (u64, u64),
) -> Result<Story, Failure> {
    let style = ProgressStyle::with_template("{bar:28} {human_pos}/{human_len} rows  {per_sec}  {msg}")?;
    let bar = ProgressBar::new(total).with_style(style);
    let mut story = Story::default();
    let doors = server.doors.trim_start_matches("http://").to_owned();
    loop {
        let acknowledged = seen.acknowledged.load(Relaxed);
        let view = service.get(&format!("/v1/models/{NAME}")).await?;
        let learned = number(&view, "/rows/learned");
        let past = |hundredths: u64| learned >= total * hundredths / 100;
        bar.set_position(learned);
        bar.set_message(progress(&view));
        match (story.periods.len(), &story.present) {
            (0, None) if learned > 0 => story.begin(service).await?,
            (0, Some(_)) if past(LOWERED_AT) => {
                let half = (full / 2).max(number(&view, "/memory/minimum_bytes"));
                story.change(service, &view, Some(half)).await?;
                let least = if half > full / 2 { ", the smallest that works," } else { "" };
                bar.println(format!("memory budget set from {} to {}{least} while it learns", iec(full), iec(half)));
            }
            (1, _) if past(LIFTED_AT) => {
                story.change(service, &view, None).await?;
                bar.println("memory budget lifted again while it learns");
            }
            (2, _) if past(KILLED_AT) => {
                story.end(&view);
                story.killed_at_rows = seen.acknowledged.load(Relaxed);
                server.kill()?;
                let began = Instant::now();
                *server = Server::start(data_dir, &doors)?;
                story.back_seconds = began.elapsed().as_secs_f64();
                bar.println(format!("service killed (SIGKILL) and started again in {:.2} s", story.back_seconds));
            }
            (3, _) if acknowledged >= total => {
                bar.finish();
                return Ok(story);
            }
            _ => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn progress(view: &Value) -> String {
    let accuracy = view.pointer("/sliding/accuracy").and_then(Value::as_f64).unwrap_or_default();
    let used = iec(number(view, "/memory/used_bytes"));
    let limit = match view.pointer("/memory/budget_bytes").and_then(Value::as_u64) {
        Some(budget) => iec(budget),
        None => "no limit".to_owned(),
    };
    format!("online accuracy {:.1} %  {used} of {limit}", accuracy * 100.0)
}

/// Waits until every row is decided.
async fn settle(service: &Service, total: u64) -> Result<Value, Failure> {
    let began = Instant::now();
    loop {
        let view = service.get(&format!("/v1/models/{NAME}")).await?;
        if number(&view, "/rows/waiting") == 0 && number(&view, "/rows/accepted") == total {
            return Ok(view);
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err(format!("rows are still waiting: {}", view["rows"]).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn report(view: &Value, story: &Story, seen: &Seen, total: u64, seconds: f64) {
    let mut latencies = std::mem::take(&mut *seen.query_seconds.lock());
    latencies.sort_by(f64::total_cmp);
    let quantile = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).map_or(0.0, |seconds| seconds * 1e3);
    let percent = |path: &str| view.pointer(path).and_then(Value::as_f64).unwrap_or_default() * 100.0;
    println!();
    println!("  rows acknowledged        {total}");
    println!("  rows learned             {} ({} quarantined)", number(view, "/rows/learned"), number(view, "/rows/quarantined"));
    println!("  rows a second            {:.0}", total as f64 / seconds);
    println!(
        "  online accuracy          {:.1} % of all, {:.1} % of the newest 1,000",
        percent("/online/accuracy"),
        percent("/sliding/accuracy")
    );
    let changes: Vec<String> = story.changes_ms.iter().map(|ms| format!("{ms:.0} ms")).collect();
    println!("  budget change            down and up in {}", changes.join(" and "));
    println!(
        "  kill -9                  after {} acknowledged rows; back in {:.2} s, none lost",
        story.killed_at_rows, story.back_seconds
    );
    println!(
        "  queries                  {} answered, p50 {:.1} ms, p99 {:.1} ms; {} while the service was down",
        latencies.len(),
        quantile(0.5),
        quantile(0.99),
        seen.query_failures.load(Relaxed)
    );
    println!("  model version            {}", text(view, "/version"));
    costs(&story.periods);
}

/// What the smaller budget cost, beside the time before and the time after.
fn costs(periods: &[Period]) {
    println!("\n  {:<24} {:>8} {:>9} {:>12}  plan", "memory budget", "rows/s", "accuracy", "high water");
    for period in periods {
        println!(
            "  {:<24} {:>8.0} {:>7.1} % {:>12}  {}",
            period.budget_bytes.map_or_else(|| "no limit".to_owned(), iec),
            period.rows_per_second,
            period.accuracy * 100.0,
            iec(period.high_water_bytes),
            period.plan
        );
    }
    println!("  (accuracy is that of the newest 1,000 rows at the end of each, high water the most bytes since its beginning)\n");
}

pub(super) fn iec(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

fn end(arguments: &Arguments, server: Server, data_dir: &Path) -> Result<(), Failure> {
    if arguments.keep {
        println!(
            "The service stays up: live page and doors at {}, metrics at {}, data in {}.",
            server.doors,
            server.metrics,
            data_dir.display()
        );
        println!("  curl {}/v1/models/{NAME}", server.doors);
        println!("  kill {}", server.id());
        server.leave();
        return Ok(());
    }
    server.terminate()?;
    if arguments.data_dir.is_none() {
        std::fs::remove_dir_all(data_dir)?;
    }
    Ok(())
}

pub(super) fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_default()
}

fn text(value: &Value, path: &str) -> String {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}
