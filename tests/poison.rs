//! Poison pills: rows over which a step panics, or the process ends, are quarantined with the rest of their record, by a decision; all
//! other rows are learned, the other models never notice, and every replay comes to the same state.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use candle_core::{Device, Tensor};
use mustela::cli::serve::{self, Service};
use mustela::disk::FileSystem;
use mustela::fold::{
    Change, Demand, Fold, FoldError, Outcome, Predictions, ProposalError, Score, Snapshot, State, StateRef, Step, Verdict,
};
use mustela::ledger::Ledger;
use mustela::model::kind::{Given, Kind, SpecError};
use mustela::rows::Rows;
use mustela::shutdown;
use serde_json::{Value, json};
use support::{Client, child_client, points, points_model, points_schema, spawn_test};

/// The value of `x` that no step can take.
const POISON: f32 = 666.0;
/// Rows of a step.
const STEP_ROWS: usize = 4;

/// What the poison does.
#[derive(Clone, Copy)]
enum Effect {
    /// The step panics, each time.
    Panic,
    /// Only the first time, in all folds together.
    PanicOnce,
    /// The process ends, without a word.
    Abort,
}

/// A fold that sums up what it is given, two steps late, as a pipeline would.
struct Sum {
    effect: Effect,
    falls: Arc<AtomicUsize>,
    sum: Tensor,
    in_flight: Vec<Step>,
    ordinal: u64,
    ledger: Ledger,
}

impl Sum {
    fn end(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        let words = step.rows.blocks[0].bytes.as_chunks::<4>().0;
        let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        if values.contains(&POISON) {
            let before = self.falls.fetch_add(1, SeqCst);
            match self.effect {
                Effect::Panic => panic!("a poison pill"),
                Effect::PanicOnce if before == 0 => panic!("a fluke"),
                Effect::PanicOnce => {}
                Effect::Abort => std::process::abort(),
            }
        }
        // In the order of the log, so that another order shows.
        let sum = values.iter().fold(self.sum.to_scalar::<f32>()?, |sum, value| sum * 0.999 + value);
        self.sum = Tensor::new(sum, &Device::Cpu)?;
        let (last, rows) = (step.last, step.rows.count as u64);
        outcomes.push(Outcome {
            ordinal: self.ordinal,
            last,
            rows,
            held_out: 0,
            verdict: Verdict::Learned,
            score: Score::default(),
        });
        self.ordinal += 1;
        Ok(())
    }
}

struct Nothing;

impl Snapshot for Nothing {
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError> {
        Ok(Predictions::Classes { classes: 3, probabilities: [0.8, 0.1, 0.1].repeat(rows.count) })
    }
}

impl Fold for Sum {
    fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        self.in_flight.push(step);
        if self.in_flight.len() > 2 {
            let step = self.in_flight.remove(0);
            self.end(step, outcomes)?;
        }
        Ok(())
    }
    fn drain(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        while !self.in_flight.is_empty() {
            let step = self.in_flight.remove(0);
            self.end(step, outcomes)?;
        }
        Ok(())
    }
    fn propose_plan(&mut self, _: Demand) -> Result<Value, ProposalError> {
        Ok(json!({}))
    }
    fn check(&self, _: &Change) -> Result<(), String> {
        Ok(())
    }
    fn execute(&mut self, _: &Change) -> Result<(), FoldError> {
        Ok(())
    }
    fn begin_snapshot(&mut self, _: &mut Vec<Outcome>) -> Result<bool, FoldError> {
        Ok(true)
    }
    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, FoldError> {
        Ok(Some(Arc::new(Nothing)))
    }
    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        Ok(StateRef { tensors: [("sum".to_owned(), &self.sum)].into(), values: json!({ "ordinal": self.ordinal }) })
    }
    fn restore(&mut self, mut state: State) -> Result<(), FoldError> {
        self.sum = state.tensors.remove("sum").unwrap();
        self.ordinal = state.values["ordinal"].as_u64().unwrap();
        Ok(())
    }
    fn step_rows(&self) -> usize {
        STEP_ROWS
    }
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    fn planned_bytes(&self) -> u64 {
        0
    }
    fn minimum_bytes(&self) -> u64 {
        0
    }
    fn identity(&self) -> String {
        "sum".into()
    }
}

#[derive(Clone)]
struct Summing {
    effect: Effect,
    falls: Arc<AtomicUsize>,
}

impl Kind for Summing {
    fn name(&self) -> &'static str {
        "sum"
    }
    fn propose_plan(&self, _: Given<'_>, _: Option<u64>) -> Result<Value, SpecError> {
        Ok(json!({}))
    }
    fn build(&self, _: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
        let sum = Tensor::new(0f32, &Device::Cpu).map_err(FoldError::from)?;
        let (effect, falls) = (self.effect, self.falls.clone());
        Ok(Box::new(Sum { effect, falls, sum, in_flight: Vec::new(), ordinal: 0, ledger: Ledger::default() }))
    }
}

struct Serving {
    service: Service,
    trigger: shutdown::Trigger,
    client: Client,
    falls: Arc<AtomicUsize>,
}

async fn start(folder: &Path, effect: Effect, interval_rows: &str) -> Serving {
    let (trigger, shutdown) = shutdown::channel();
    let config = support::config(folder, &[("checkpoint.interval_rows", interval_rows)]);
    let falls = Arc::new(AtomicUsize::new(0));
    let kinds = serve::kinds(&config).unwrap().with(Summing { effect, falls: falls.clone() });
    let service = Service::start(config, Arc::new(FileSystem), kinds, shutdown).await.unwrap();
    let client = Client::new(format!("http://{}", service.address));
    Serving { service, trigger, client, falls }
}

impl Serving {
    async fn stop(self) {
        self.trigger.drain();
        self.service.stop(Duration::from_secs(20)).await;
    }
}

async fn make(client: &Client) {
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &json!({ "kind": "sum", "stream": "points" })).await.expect(201);
    client.put("/v1/models/other", &points_model("points")).await.expect(201);
}

/// Rows with the poison at these places.
fn poisoned(first: usize, count: usize, at: &[usize]) -> Value {
    let mut body = points(first, count);
    for &at in at {
        body["rows"][at]["x"] = json!(POISON);
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_panics_a_step_is_quarantined_and_the_rest_goes_on() {
    let mut hashes = Vec::new();
    for interval_rows in ["1000000", "24"] {
        let folder = tempfile::tempdir().unwrap();
        let serving = start(folder.path(), Effect::Panic, interval_rows).await;
        make(&serving.client).await;
        let batches = "/v1/streams/points/batches";
        serving.client.post_json(batches, &points(0, 50)).await.expect(202);
        serving.client.settled("m").await;
        // Rows 51 to 70 are one record, whose third step has the poison: its first eight rows are learned.
        serving.client.post_json(batches, &poisoned(50, 20, &[9])).await.expect(202);
        serving.client.post_json(batches, &points(70, 60)).await.expect(202);
        let view = serving.client.settled("m").await;
        let rows = &view["rows"];
        assert_eq!((&rows["learned"], &rows["quarantined"], &rows["accepted"]), (&json!(118), &json!(12), &json!(130)));
        assert!(view["failure"].is_null() && view["status"] != "failed", "{view}");
        assert_eq!(serving.falls.load(SeqCst), 2, "once with others in flight, once alone");
        let answer =
            serving.client.post_json(&format!("{batches}?wait=applied&model=m"), &poisoned(130, 3, &[1])).await.expect(200);
        assert_eq!(answer["quarantined_rows"], 3);
        let other = serving.client.settled("other").await;
        assert_eq!((&other["rows"]["learned"], &other["failure"]), (&json!(133), &json!(null)));
        serving.stop().await;

        // A replay finds the decisions, and nothing falls.
        let serving = start(folder.path(), Effect::Panic, interval_rows).await;
        let again = serving.client.settled("m").await;
        assert_eq!((&again["rows"]["quarantined"], serving.falls.load(SeqCst)), (&json!(15), 0));
        serving.client.post_json(batches, &points(133, 10)).await.expect(202);
        serving.client.settled("m").await;
        serving.stop().await;
        let serving = start(folder.path(), Effect::Panic, interval_rows).await;
        hashes.push(serving.client.settled("m").await["checkpoint"]["state_hash"].clone());
        serving.stop().await;
    }
    assert_eq!(hashes[0], hashes[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_that_fails_whatever_its_rows_are_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let serving = start(folder.path(), Effect::Panic, "1000000").await;
    make(&serving.client).await;
    for first in [0, 10, 20, 30] {
        serving.client.post_json("/v1/streams/points/batches", &poisoned(first, 10, &[0])).await.expect(202);
    }
    let view = serving.client.failed("m").await;
    assert!(view["failure"].as_str().unwrap().contains("whatever their rows are"), "{view}");
    assert_eq!(view["rows"]["quarantined"], 30);
    assert_eq!(serving.client.settled("other").await["rows"]["learned"], 40);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_may_meet_the_panic() {
    let folder = tempfile::tempdir().unwrap();
    let serving = start(folder.path(), Effect::Panic, "1000000").await;
    make(&serving.client).await;
    // Changes come all the time, so that one of them drains the poison; whoever asked is told to ask again.
    let (client, done) = (serving.client.clone(), Arc::new(AtomicUsize::new(0)));
    let of_changes = done.clone();
    let changes = tokio::spawn(async move {
        while of_changes.load(SeqCst) == 0 {
            let answer = client.get("/v1/models/m/frontier").await;
            assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
        }
    });
    for post in 0..20 {
        let body = poisoned(post * 10, 10, if post % 4 == 1 { &[2] } else { &[] });
        serving.client.post_json("/v1/streams/points/batches", &body).await.expect(202);
    }
    let rows = serving.client.settled("m").await["rows"].clone();
    done.store(1, SeqCst);
    changes.await.unwrap();
    assert_eq!((&rows["learned"], &rows["quarantined"]), (&json!(150), &json!(50)));
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_panics_but_once_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let serving = start(folder.path(), Effect::PanicOnce, "1000000").await;
    make(&serving.client).await;
    serving.client.post_json("/v1/streams/points/batches", &poisoned(0, 40, &[9])).await.expect(202);
    let rows = serving.client.settled("m").await["rows"].clone();
    assert_eq!((&rows["learned"], &rows["quarantined"]), (&json!(40), &json!(0)));
    serving.stop().await;
}

/// The service of the test below, in a process of its own that may end at any time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the child process of another test"]
async fn child() {
    let folder = support::child_folder();
    let serving = start(&folder, Effect::Abort, "1000000").await;
    support::child_is_open(&folder, &serving.client);
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_kills_the_process_twice_is_quarantined() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = spawn_test("child", folder.path());
    let doors = child_client(folder.path(), &mut process).await.unwrap();
    make(&doors).await;
    doors.post_json("/v1/streams/points/batches", &points(0, 50)).await.expect(202);
    doors.settled("m").await;
    doors.settled("other").await;
    // It is acknowledged, and then it kills; or it kills before the answer is out, and is in the log all the same.
    drop(
        doors
            .try_send(
                reqwest::Method::POST,
                "/v1/streams/points/batches",
                &[("content-type", "application/json")],
                poisoned(50, 20, &[9]).to_string(),
            )
            .await,
    );
    let mut deaths = 0;
    let view = loop {
        let ended = tokio::time::timeout(Duration::from_secs(3), async {
            while process.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if ended.await.is_ok() {
            deaths += 1;
            assert!(deaths <= 3, "it ends again and again");
            process = spawn_test("child", folder.path());
            continue;
        }
        let Some(doors) = child_client(folder.path(), &mut process).await else { continue };
        break doors.settled("m").await;
    };
    assert_eq!(deaths, 2);
    let rows = &view["rows"];
    assert_eq!((&rows["learned"], &rows["quarantined"], &rows["accepted"]), (&json!(58), &json!(12), &json!(70)));
    let doors = child_client(folder.path(), &mut process).await.unwrap();
    doors.post_json("/v1/streams/points/batches", &points(70, 30)).await.expect(202);
    assert_eq!(doors.settled("m").await["rows"]["learned"], 88);
    assert_eq!(doors.settled("other").await["rows"]["learned"], 100, "an innocent model loses nothing");
    process.kill().unwrap();
    process.wait().unwrap();
}
