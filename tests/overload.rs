//! The policies that skip: too many rows that wait are skipped by decisions, counted, and skipped again by every replay.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use mustela::cli::serve::Service;
use mustela::disk::FileSystem;
use mustela::fold::{
    Change, Demand, Fold, FoldError, Outcome, Predictions, ProposalError, Score, Sequence, Snapshot, State, StateRef, Step,
    Verdict,
};
use mustela::ledger::Ledger;
use mustela::model::kind::{Given, Kind, Kinds, SpecError};
use mustela::rows::Rows;
use mustela::shutdown;
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use support::{Client, IN_ORDER, Process, Running, points, points_model, points_schema};

/// A points model that holds at most 100 waiting rows, and keeps 40 of more.
fn skipping(stream: &str, policy: &str) -> Value {
    let mut model = points_model(stream);
    model["overload"] = json!({ "policy": policy, "window_rows": 100, "keep_rows": 40 });
    model
}

/// Posts rows in one go once all others are decided, so that every run sees the same backlog at the same version.
async fn post(client: &Client, stream: &str, model: &str, first: usize, count: usize) {
    client.post_json(&format!("/v1/streams/{stream}/batches"), &points(first, count)).await.expect(202);
    client.settled(model).await;
}

/// Posts: rows in all, and how many are kept, by `last_n` the newest. Those after the last skip before the kill are more together than the
/// window, and were learned: replay must not skip them.
const POSTS: [(usize, usize); 8] = [(60, 60), (200, 40), (30, 30), (150, 40), (90, 90), (80, 80), (101, 40), (100, 100)];
/// The post before which the process is killed.
const KILL: usize = 6;

/// The state's hash, the counters and the scores of `m` after all posts, with a kill -9 in between where `kill` says so.
async fn run(folder: &Path, policy: &str, interval_rows: &str, kill: bool) -> (Value, Value, Value) {
    let settings = [("checkpoint.interval_rows", interval_rows), IN_ORDER];
    let mut process = Process::start(folder, &settings);
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    process.client.put("/v1/models/m", &skipping("points", policy)).await.expect(201);
    process.client.put("/v1/models/all", &points_model("points")).await.expect(201);
    let mut first = 0;
    for (number, (rows, _)) in POSTS.into_iter().enumerate() {
        if kill && number == KILL {
            process.kill();
            process = Process::start(folder, &settings);
        }
        post(&process.client, "points", "m", first, rows).await;
        first += rows;
    }
    let all = process.client.settled("all").await;
    assert_eq!((&all["rows"]["learned"], &all["rows"]["skipped"]), (&json!(811), &json!(0)));
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &settings);
    let view = process.client.settled("m").await;
    assert_eq!(view["version"], "0.811");
    assert_eq!(process.terminate(), Some(0));
    (view["checkpoint"]["state_hash"].clone(), view["rows"].clone(), view["online"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn skips_are_replayed_to_the_bit_and_teach_nothing() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let whole = run(folders[0].path(), "last_n", "1000000", false).await;
    let rows = &whole.1;
    assert_eq!(
        (&rows["accepted"], &rows["learned"], &rows["skipped"], &rows["waiting"]),
        (&json!(811), &json!(480), &json!(331), &json!(0))
    );
    assert_eq!(run(folders[1].path(), "last_n", "70", true).await, whole, "killed, with a checkpoint every 70 rows");
    assert_eq!(run(folders[2].path(), "last_n", "1000000", true).await, whole, "killed, and all replayed");

    // A model that is given exactly the rows that were kept, by the same posts, is the same model.
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    running.client.put("/v1/streams/kept", &points_schema()).await.expect(201);
    running.client.put("/v1/models/m", &points_model("kept")).await.expect(201);
    let mut first = 0;
    for (rows, kept) in POSTS {
        post(&running.client, "kept", "m", first + rows - kept, kept).await;
        first += rows;
    }
    running.stop().await;
    let running = Running::start(folder.path(), &[]).await;
    let view = running.client.get("/v1/models/m").await.expect(200);
    assert_eq!((&view["checkpoint"]["state_hash"], &view["online"]), (&whole.0, &whole.2));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_chosen_from_a_window_are_chosen_again_by_every_replay() {
    let mut hashes = Vec::new();
    for policy in ["last_n", "random_n", "coreset"] {
        let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let whole = run(folders[0].path(), policy, "1000000", false).await;
        assert_eq!((&whole.1["learned"], &whole.1["skipped"], &whole.1["waiting"]), (&json!(480), &json!(331), &json!(0)));
        assert_eq!(run(folders[1].path(), policy, "70", true).await, whole, "{policy}, killed");
        hashes.push(whole.0);
    }
    assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2], "they keep different rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_cannot_be_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[("model.lag_rows_max", "50")]).await;
    running.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let put = async |overload: Value| {
        let mut model = points_model("points");
        model["overload"] = overload;
        running.client.put("/v1/models/m", &model).await
    };
    put(json!({ "policy": "first_n" })).await.expect_problem(422, "invalid_body");
    put(json!({ "policy": "last_n", "rows": 3 })).await.expect_problem(422, "invalid_body");
    put(json!({ "policy": "last_n", "keep_rows": -1 })).await.expect_problem(422, "invalid_body");
    for (overload, words) in [
        (json!({ "policy": "last_n", "window_rows": 0 }), "window_rows is 0"),
        (json!({ "policy": "last_n", "keep_rows": 0 }), "keep_rows is 0, allowed are 1 to 50"),
        (json!({ "policy": "last_n", "keep_rows": 51 }), "keep_rows is 51, allowed are 1 to 50"),
        (json!({ "policy": "random_n", "window_rows": 8, "keep_rows": 9 }), "keep_rows is 9, allowed are 1 to 8"),
        (json!({ "policy": "coreset", "window_rows": 2000 }), "window_rows is 2000, 1024 are the most"),
    ] {
        let problem = put(overload).await.expect_problem(422, "invalid_model");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    put(json!({ "policy": "last_n" })).await.expect(201);
    running.stop().await;
}

/// A fold that waits at a gate in each step, and remembers to which version each led, and the bytes of its rows.
#[derive(Clone, Default)]
struct Gate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Steps that may pass.
    open: Mutex<usize>,
    opened: Condvar,
    /// Whether the next step fails.
    fails: AtomicBool,
    given: Mutex<Vec<(Sequence, Vec<u8>)>>,
}

impl Gate {
    fn let_pass(&self, steps: usize) {
        *self.0.open.lock() += steps;
        self.0.opened.notify_all();
    }

    async fn given(&self, steps: usize) {
        while self.0.given.lock().len() < steps {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Gated {
    gate: Gate,
    ledger: Ledger,
    ordinal: u64,
}

struct AlwaysFirst;

impl Snapshot for AlwaysFirst {
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError> {
        Ok(Predictions::Classes { classes: 3, probabilities: [0.8, 0.1, 0.1].repeat(rows.count) })
    }
}

impl Kind for Gate {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn propose_plan(&self, _: Given<'_>, _: Option<u64>) -> Result<Value, SpecError> {
        Ok(json!({}))
    }

    fn build(&self, _: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
        Ok(Box::new(Gated { gate: self.clone(), ledger: Ledger::default(), ordinal: 0 }))
    }
}

impl Fold for Gated {
    fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        self.gate.0.given.lock().push((step.last, step.rows.blocks[0].bytes.to_vec()));
        let mut open = self.gate.0.open.lock();
        self.gate.0.opened.wait_while(&mut open, |open| *open == 0);
        *open -= 1;
        if self.gate.0.fails.swap(false, SeqCst) {
            self.gate.0.given.lock().pop();
            return Err(FoldError::Unavailable("as the test asked".into()));
        }
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
    fn drain(&mut self, _: &mut Vec<Outcome>) -> Result<(), FoldError> {
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
        Ok(Some(Arc::new(AlwaysFirst)))
    }
    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        Ok(StateRef { tensors: Default::default(), values: json!({}) })
    }
    fn restore(&mut self, _: State) -> Result<(), FoldError> {
        Ok(())
    }
    fn step_rows(&self) -> usize {
        4
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
        "gated".into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_model_skips_and_tells_whoever_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let config = support::config(folder.path(), &[("model.lag_rows_max", "20")]);
    let gate = Gate::default();
    let kinds = Kinds::default().with(gate.clone());
    let service = Service::start(config, Arc::new(FileSystem), kinds, shutdown).await.unwrap();
    let client = Client::new(format!("http://{}", service.address));
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let overload = json!({ "policy": "last_n", "window_rows": 50, "keep_rows": 10 });
    let spec = json!({ "kind": "gated", "stream": "points", "overload": overload });
    client.put("/v1/models/m", &spec).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 20)).await.expect(202);
    gate.given(1).await;
    // The first step stands at the gate. Another policy would have the door answer 429 from now on.
    let waiting = client.clone();
    let waiting =
        tokio::spawn(async move { waiting.post_json("/v1/streams/points/batches?wait=applied", &points(20, 90)).await });
    while client.get("/v1/streams/points").await.expect(200)["sequence"] != 110 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.post_json("/v1/streams/points/batches", &points(110, 6)).await.expect(202);
    let rows = client.get("/v1/models/m").await.expect(200)["rows"].clone();
    assert_eq!((&rows["waiting"], &rows["accepted"]), (&json!(116), &json!(116)));

    gate.let_pass(100);
    let answer = waiting.await.unwrap().expect(200);
    assert_eq!((&answer["applied"], &answer["rows"]), (&json!(true), &json!(90)));
    // Rows 5 to 106 are skipped: 86 of those that were posted as 21 to 110.
    assert_eq!((&answer["skipped_rows"], &answer["quarantined_rows"]), (&json!(86), &json!(0)));
    let rows = client.settled("m").await["rows"].clone();
    assert_eq!((&rows["learned"], &rows["skipped"], &rows["accepted"]), (&json!(14), &json!(102), &json!(116)));
    assert_eq!(gate.0.given.lock().iter().map(|(last, _)| *last).collect::<Vec<_>>(), [4, 110, 114, 116]);
    trigger.drain();
    service.stop(Duration::from_secs(20)).await;
}

/// Which steps a model at a gate is given under `random_n`, when 60 rows come while it stands; with `fail`, it fails in the middle of those
/// that were kept, with a checkpoint there, and is started again.
async fn given_steps(fail: bool) -> Vec<(Sequence, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let start = async || {
        let (trigger, shutdown) = shutdown::channel();
        let config = support::config(folder.path(), &[("checkpoint.interval_rows", "1")]);
        let kinds = Kinds::default().with(gate.clone());
        let service = Service::start(config, Arc::new(FileSystem), kinds, shutdown).await.unwrap();
        let client = Client::new(format!("http://{}", service.address));
        (service, client, trigger)
    };
    let (mut service, mut client, mut trigger) = start().await;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let overload = json!({ "policy": "random_n", "window_rows": 40, "keep_rows": 15 });
    client.put("/v1/models/m", &json!({ "kind": "gated", "stream": "points", "overload": overload })).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 4)).await.expect(202);
    gate.given(1).await;
    client.post_json("/v1/streams/points/batches", &points(4, 60)).await.expect(202);
    // The first step ends, 15 rows of the newest 40 are chosen, and the third step of them stands at the gate.
    gate.let_pass(3);
    gate.given(4).await;
    if fail {
        gate.0.fails.store(true, SeqCst);
        gate.let_pass(1);
        while client.get("/v1/models/m").await.expect(200)["status"] != "failed" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        trigger.drain();
        service.stop(Duration::from_secs(20)).await;
        (service, client, trigger) = start().await;
    }
    gate.let_pass(100);
    let rows = client.settled("m").await["rows"].clone();
    assert_eq!((&rows["learned"], &rows["skipped"], &rows["accepted"]), (&json!(19), &json!(45), &json!(64)));
    trigger.drain();
    service.stop(Duration::from_secs(20)).await;
    gate.0.given.lock().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_may_lie_among_rows_that_were_kept() {
    let whole = given_steps(false).await;
    let rows: usize = whole.iter().map(|(_, bytes)| bytes.len() / 8).sum();
    assert_eq!((rows, whole[0].0), (19, 4));
    assert!(whole.iter().skip(1).all(|(_, bytes)| bytes.len() <= 32), "steps of four rows");
    assert_eq!(given_steps(true).await, whole);
}
