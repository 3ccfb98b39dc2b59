//! `mustela bench sweep`: the memory budget of a live model goes down to the smallest and up again in ten changes, while four clients
//! post all they can.
//!
//! Every change is made under that load. At the end of its time the clients are made to wait until all rows are learned; then the
//! change is taken back and made again, and one query before, between and after shows whether a bit of the weights has changed.

mod tell;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use parking_lot::Mutex;
use rand_chacha::rand_core::RngCore;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::cli::Failure;
use crate::cli::child::Server;
use crate::cli::client::{Batch, Service};
use crate::cli::demo::{self, IMAGES, LABELS, NAME, number};
use crate::cli::idx::Idx;
use crate::network::random;

/// Clients that post at once, and the rows of a batch and of a step.
const CLIENTS: usize = 4;
const BATCH_ROWS: usize = 16;
/// Rows of the query whose answers are compared.
const QUERY_ROWS: usize = 64;
/// Changes on the way down, and as many on the way up.
const CHANGES: i32 = 5;
/// Time between two looks at the model.
const LOOK: Duration = Duration::from_millis(50);
/// Between the end of a rest and the next change, so that the load is there again.
const LOAD: Duration = Duration::from_millis(500);
/// How long rows may wait once nobody posts.
const PATIENCE: Duration = Duration::from_secs(60);
const SEED: u64 = 1;

/// Flags of `bench sweep`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Three seconds for each budget instead of ten
    #[arg(long)]
    quick: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Draw bytes, rows a second and accuracy over time to this file, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// One look at the model.
#[derive(Clone, Copy, Debug, Serialize)]
struct Look {
    seconds: f64,
    budget_bytes: Option<u64>,
    planned_bytes: u64,
    used_bytes: u64,
    /// Since the plan is followed.
    high_water_bytes: u64,
    learned: u64,
    waiting: u64,
    sliding_accuracy: f64,
    /// Rows that were scored since the start, and those that were right.
    scored: f64,
    correct: f64,
}

/// The time of one budget.
#[derive(Clone, Debug, Serialize)]
struct Segment {
    /// None: no limit.
    budget_bytes: Option<u64>,
    /// When it was set, in seconds since the start, and how many rows waited then.
    set_at_seconds: f64,
    waiting_rows: u64,
    /// None: it was there from the start.
    answered_ms: Option<f64>,
    until_seconds: f64,
    plan: String,
    /// What was seen at rest, where a change came before.
    rest: Option<Rest>,
}

/// A change that is taken back and made again with nothing waiting.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rest {
    answered_ms: [f64; 2],
    /// Whether the plan had steps that waited to share an update: taking it back applies those.
    open_sums: bool,
    same_bits: bool,
}

/// What the service said of budgets that cannot be and can.
#[derive(Clone, Debug, Serialize)]
struct Refusal {
    asked_bytes: u64,
    status: u16,
    code: String,
    minimum_bytes: u64,
}

/// All that was seen.
#[derive(Debug, Serialize)]
struct Swept {
    seconds_each: f64,
    unconstrained_bytes: u64,
    minimum_bytes: u64,
    segments: Vec<Segment>,
    refusal: Refusal,
    acknowledged: u64,
    /// The model's `rows` at the end.
    rows: Value,
    same_process: bool,
    #[serde(skip)]
    looks: Vec<Look>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let length = Duration::from_secs(if arguments.quick { 3 } else { 10 });
    let data_dir = std::env::temp_dir().join(format!("mustela-sweep-{}", Uuid::new_v4()));
    let swept = crate::cli::runtime()?.block_on(async {
        let server = Server::start(&data_dir, "127.0.0.1:0")?;
        sweep(server, length).await
    });
    let removed = std::fs::remove_dir_all(&data_dir);
    // Why the sweep failed, if it did, says more.
    let swept = swept?;
    removed?;
    tell::tell(&swept, arguments.json, arguments.plot.as_deref())
}

/// What the clients, the looks and the changes share.
struct Ground {
    service: Service,
    began: Instant,
    feed: Mutex<Feed>,
    /// Clients hold it while they post; who holds it alone has them wait.
    gate: RwLock<()>,
    /// No looks now: changes are made twice.
    unseen: AtomicBool,
    done: AtomicBool,
    acknowledged: AtomicU64,
    looks: Mutex<Vec<Look>>,
}

impl Ground {
    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Sets the budget; gives the milliseconds until the answer.
    async fn set(&self, budget_bytes: Option<u64>) -> Result<f64, Failure> {
        let began = Instant::now();
        self.service.put(&format!("/v1/models/{NAME}/memory-budget"), &json!({ "budget": budget_bytes })).await?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    async fn view(&self) -> Result<Value, Failure> {
        self.service.get(&format!("/v1/models/{NAME}")).await
    }
}

/// The images in an order that the seed and the pass give, again and again.
struct Feed {
    images: Idx,
    labels: Idx,
    order: Vec<usize>,
    next: usize,
    pass: u64,
}

impl Feed {
    fn batch(&mut self) -> Batch {
        if self.next + BATCH_ROWS > self.order.len() {
            let mut generator = random::stream(SEED, self.pass, "bench sweep");
            self.order = (0..self.images.count).collect();
            for last in (1..self.order.len()).rev() {
                self.order.swap(last, (generator.next_u64() % (last as u64 + 1)) as usize);
            }
            (self.next, self.pass) = (0, self.pass + 1);
        }
        let rows = &self.order[self.next..self.next + BATCH_ROWS];
        self.next += BATCH_ROWS;
        let mut body: Vec<u8> = rows.iter().flat_map(|&row| self.images.items(row, row + 1)).copied().collect();
        body.extend(rows.iter().flat_map(|&row| u32::from(self.labels.items(row, row + 1)[0]).to_le_bytes()));
        Batch { content_type: "application/octet-stream", body: body.into(), key: Uuid::new_v4().to_string() }
    }
}

async fn sweep(mut server: Server, length: Duration) -> Result<Swept, Failure> {
    let service = Service::new(&server.doors)?.eagerly();
    let unconstrained_bytes = demo::create(&service, BATCH_ROWS as u32).await?;
    let feed = Feed { images: Idx::read(IMAGES)?, labels: Idx::read(LABELS)?, order: Vec::new(), next: 0, pass: 0 };
    let query = Bytes::copy_from_slice(feed.images.items(0, QUERY_ROWS));
    let ground = Arc::new(Ground {
        service,
        began: Instant::now(),
        feed: Mutex::new(feed),
        gate: RwLock::new(()),
        unseen: AtomicBool::new(false),
        done: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
        looks: Mutex::new(Vec::new()),
    });
    let minimum_bytes = number(&ground.view().await?, "/memory/minimum_bytes");
    let mut work = JoinSet::new();
    for _ in 0..CLIENTS {
        work.spawn(post(ground.clone()));
    }
    work.spawn(look(ground.clone()));
    let (segments, refusal) = tokio::select! {
        drive = drive(&ground, &query, unconstrained_bytes, minimum_bytes, length) => drive?,
        failure = demo::first_failure(&mut work) => return Err(failure),
    };
    ground.done.store(true, Relaxed);
    while let Some(ended) = work.join_next().await {
        ended??;
    }
    let rows = settle(&ground).await?["rows"].clone();
    let same_process = server.is_running()?;
    server.terminate()?;
    let looks = std::mem::take(&mut *ground.looks.lock());
    let acknowledged = ground.acknowledged.load(Relaxed);
    let seconds_each = length.as_secs_f64();
    Ok(Swept { seconds_each, unconstrained_bytes, minimum_bytes, segments, refusal, acknowledged, rows, same_process, looks })
}

/// One client: posts until it is told to end, and waits while somebody else holds the gate.
async fn post(ground: Arc<Ground>) -> Result<(), Failure> {
    while !ground.done.load(Relaxed) {
        let _open = ground.gate.read().await;
        let batch = ground.feed.lock().batch();
        ground.service.post_batch(NAME, &batch).await?;
        ground.acknowledged.fetch_add(BATCH_ROWS as u64, Relaxed);
    }
    Ok(())
}

/// Looks at the model at its pace.
async fn look(ground: Arc<Ground>) -> Result<(), Failure> {
    let mut due = tokio::time::interval(LOOK);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while !ground.done.load(Relaxed) {
        due.tick().await;
        let (seconds, unseen) = (ground.seconds(), ground.unseen.load(Relaxed));
        let view = ground.view().await?;
        // A look may begin while changes are made that are not to be seen, or still be under way then.
        if unseen || ground.unseen.load(Relaxed) {
            continue;
        }
        let float = |path: &str| view.pointer(path).and_then(Value::as_f64).unwrap_or_default();
        ground.looks.lock().push(Look {
            seconds,
            budget_bytes: view.pointer("/memory/budget_bytes").and_then(Value::as_u64),
            planned_bytes: number(&view, "/memory/planned_bytes"),
            used_bytes: number(&view, "/memory/used_bytes"),
            high_water_bytes: number(&view, "/memory/high_water_bytes"),
            learned: number(&view, "/rows/learned"),
            waiting: number(&view, "/rows/waiting"),
            sliding_accuracy: float("/sliding/accuracy"),
            scored: float("/online/rows"),
            correct: float("/online/rows") * float("/online/accuracy"),
        });
    }
    Ok(())
}

/// The budgets after each change: down to the minimum in equal ratios, and up again until there is no limit.
fn budgets(most: u64, least: u64) -> Vec<Option<u64>> {
    let at = |step: i32| {
        let ratio = (least as f64 / most as f64).powf(f64::from(step) / f64::from(CHANGES));
        ((most as f64 * ratio) as u64).max(least)
    };
    let down = (1..CHANGES).map(|step| Some(at(step))).chain([Some(least)]);
    let up = (1..CHANGES).rev().map(|step| Some(at(step))).chain([None]);
    down.chain(up).collect()
}

/// Makes the changes, each under load and then at rest.
async fn drive(
    ground: &Ground,
    query: &Bytes,
    most: u64,
    least: u64,
    length: Duration,
) -> Result<(Vec<Segment>, Refusal), Failure> {
    let mut segments = vec![segment(ground, None, None, length).await?];
    let mut before = None;
    for budget_bytes in budgets(most, least) {
        let mut segment = segment(ground, budget_bytes, Some(before), length).await?;
        segment.rest = Some(rest(ground, query, before, budget_bytes).await?);
        tokio::time::sleep(LOAD).await;
        segments.push(segment);
        before = budget_bytes;
    }
    let asked_bytes = least - 1;
    let (status, body) =
        ground.service.try_put(&format!("/v1/models/{NAME}/memory-budget"), &json!({ "budget": asked_bytes })).await?;
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    Ok((segments, Refusal { asked_bytes, status, code, minimum_bytes: number(&body, "/minimum_bytes") }))
}

/// Sets a budget under load, where it is another one, and lets it hold.
async fn segment(
    ground: &Ground,
    budget_bytes: Option<u64>,
    before: Option<Option<u64>>,
    length: Duration,
) -> Result<Segment, Failure> {
    let set_at_seconds = ground.seconds();
    let waiting_rows = ground.looks.lock().last().map_or(0, |look| look.waiting);
    let answered_ms = match before {
        Some(_) => Some(ground.set(budget_bytes).await?),
        None => None,
    };
    let plan = ground.service.plan(NAME).await?.outline();
    tokio::time::sleep(length).await;
    let until_seconds = ground.seconds();
    Ok(Segment { budget_bytes, set_at_seconds, waiting_rows, answered_ms, until_seconds, plan, rest: None })
}

/// Has the clients wait until all is learned, takes the change back and makes it again, and asks the query in between.
async fn rest(ground: &Ground, query: &Bytes, before: Option<u64>, now: Option<u64>) -> Result<Rest, Failure> {
    let _alone = ground.gate.write().await;
    settle(ground).await?;
    ground.unseen.store(true, Relaxed);
    let open_sums = ground.service.plan(NAME).await?.stages.iter().any(|stage| stage.accumulation > 1);
    let first = ask(ground, query).await?;
    let back = ground.set(before).await?;
    let between = ask(ground, query).await?;
    let again = ground.set(now).await?;
    let last = ask(ground, query).await?;
    ground.unseen.store(false, Relaxed);
    let same_bits = between == last && (open_sums || first == between);
    Ok(Rest { answered_ms: [back, again], open_sums, same_bits })
}

/// What the model answers to the query, without what names the answer. Numbers are written so that no two of them look alike.
async fn ask(ground: &Ground, query: &Bytes) -> Result<String, Failure> {
    let path = format!("/v1/models/{NAME}/predict");
    let answer = ground.service.post(&path, "application/octet-stream", query.clone()).await?;
    Ok(answer["predictions"].to_string())
}

/// Waits until every row is decided and in what readers see.
async fn settle(ground: &Ground) -> Result<Value, Failure> {
    let began = Instant::now();
    loop {
        let view = ground.view().await?;
        if number(&view, "/rows/waiting") == 0 && view["version"] == view["published_version"] {
            return Ok(view);
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("rows are still waiting: {}", view["rows"]).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_go_down_to_the_least_and_up_to_no_limit() {
        let budgets = budgets(3200, 100);
        let down: Vec<u64> = budgets.iter().filter_map(|&budget| budget).collect();
        assert_eq!(budgets.len(), 10);
        assert_eq!((budgets[4], budgets[9]), (Some(100), None));
        assert!(down[..4].iter().eq(down[5..].iter().rev()), "{down:?}");
        assert!(down[..4].windows(2).all(|pair| pair[0].abs_diff(2 * pair[1]) <= 2), "{down:?}");
    }

    #[test]
    fn every_pass_has_every_image_once() {
        let idx = |shape: &[usize]| Idx { count: 48, shape: shape.to_vec(), bytes: (0..48).collect() };
        let mut feed = Feed { images: idx(&[1]), labels: idx(&[]), order: Vec::new(), next: 0, pass: 0 };
        let mut passes = Vec::new();
        for _ in 0..2 {
            let mut pass: Vec<u8> = (0..3).flat_map(|_| feed.batch().body[..BATCH_ROWS].to_vec()).collect();
            passes.push(pass.clone());
            pass.sort_unstable();
            assert!(pass.into_iter().eq(0..48));
        }
        assert_ne!(passes[0], passes[1]);
    }
}
