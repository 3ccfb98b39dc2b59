//! Promise 5: readers never wait for the trainer, every answer names its version, and asking changes nothing.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mustela::cli::serve::Service;
use mustela::disk::FileSystem;
use mustela::fold::{Change, Demand, Fold, FoldError, Outcome, Predictions, ProposalError, Snapshot, State, StateRef, Step};
use mustela::ledger::Ledger;
use mustela::model::kind::{Given, Kind, Kinds, SpecError};
use mustela::rows::Rows;
use mustela::shutdown;
use serde_json::json;
use support::{Client, IN_ORDER, Running, points, points_model, points_schema};

/// A kind whose trainer never ends its first step: it stands where a real one would be slow.
struct Frozen;

struct Stuck(Ledger);

struct AlwaysSecond;

impl Snapshot for AlwaysSecond {
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError> {
        Ok(Predictions::Classes { classes: 3, probabilities: [0.1, 0.8, 0.1].repeat(rows.count) })
    }
}

impl Kind for Frozen {
    fn name(&self) -> &'static str {
        "frozen"
    }

    fn propose_plan(&self, _: Given<'_>, _: Option<u64>) -> Result<serde_json::Value, SpecError> {
        Ok(json!({}))
    }

    fn build(&self, _: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
        Ok(Box::new(Stuck(Ledger::default())))
    }
}

impl Fold for Stuck {
    fn apply(&mut self, _: Step, _: &mut Vec<Outcome>) -> Result<(), FoldError> {
        loop {
            std::thread::park();
        }
    }
    fn drain(&mut self, _: &mut Vec<Outcome>) -> Result<(), FoldError> {
        Ok(())
    }
    fn propose_plan(&mut self, _: Demand) -> Result<serde_json::Value, ProposalError> {
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
        Ok(Some(Arc::new(AlwaysSecond)))
    }
    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        Ok(StateRef { tensors: Default::default(), values: json!({}) })
    }
    fn restore(&mut self, _: State) -> Result<(), FoldError> {
        Ok(())
    }
    fn step_rows(&self) -> usize {
        1
    }
    fn ledger(&self) -> &Ledger {
        &self.0
    }
    fn planned_bytes(&self) -> u64 {
        0
    }
    fn minimum_bytes(&self) -> u64 {
        0
    }
    fn identity(&self) -> String {
        "frozen".into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_predictions_with_the_trainer_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let config = support::config(folder.path(), &[]);
    let kinds = Kinds::default().with(Frozen);
    let service = Service::start(config, Arc::new(FileSystem), kinds, shutdown).await.unwrap();
    let client = Client::new(format!("http://{}", service.address));
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &json!({ "kind": "frozen", "stream": "points" })).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 10)).await.expect(202);

    let row = json!({ "rows": [{ "x": 1.0, "y": 2.0 }] });
    let mut slowest = Duration::ZERO;
    for _ in 0..1000 {
        let began = Instant::now();
        let answer = client.post_json("/v1/models/m/predict", &row).await.expect(200);
        slowest = slowest.max(began.elapsed());
        assert_eq!((&answer["model_version"], &answer["predictions"][0]["label"]), (&json!("0.0"), &json!("south")));
    }
    assert_eq!(client.get("/v1/models/m").await.expect(200)["rows"]["waiting"], 10);
    assert!(slowest < Duration::from_secs(2), "a prediction took {slowest:?}");
    // The trainer's thread never ends; the process of the test does.
    drop(trigger);
}

#[tokio::test(flavor = "multi_thread")]
async fn predicting_changes_nothing_and_names_the_version() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[("checkpoint.interval_rows", "100"), IN_ORDER]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/asked", &points_model("points")).await.expect(201);
    client.put("/v1/models/alone", &points_model("points")).await.expect(201);
    for batch in 0..10 {
        let wait = "/v1/streams/points/batches?wait=applied&model=asked";
        let applied = client.post_json(wait, &points(batch * 20, 20)).await.expect(200);
        assert_eq!((&applied["applied"], &applied["rows"]), (&json!(true), &json!(20)));
        let question = json!({ "rows": (0..7).map(|row| json!({ "x": row, "y": -row })).collect::<Vec<_>>() });
        let answer = client.post_json("/v1/models/asked/predict", &question).await.expect(200);
        assert_eq!(answer["model_version"], format!("0.{}", (batch + 1) * 20), "a client sees what it waited for");
        let predictions = answer["predictions"].as_array().unwrap();
        assert_eq!(predictions.len(), 7);
        for prediction in predictions {
            let probabilities: Vec<f64> =
                prediction["probabilities"].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect();
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{prediction}");
        }
    }
    client.settled("alone").await;
    running.stop().await;
    let running = Running::start(folder.path(), &[]).await;
    let asked = running.client.get("/v1/models/asked").await.expect(200);
    let alone = running.client.get("/v1/models/alone").await.expect(200);
    assert_eq!(asked["checkpoint"]["state_hash"], alone["checkpoint"]["state_hash"]);
    assert_eq!(asked["online"], alone["online"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_grow_no_older_than_the_interval() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[("model.publish_interval_ms", "500")]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let age = || async {
        let page = running.metrics().await;
        let line = page.lines().find_map(|line| line.strip_prefix("mustela_model_snapshot_age_seconds{model=\"m\"} "));
        line.unwrap().parse::<f64>().unwrap()
    };
    // It stands for longer than the interval: what is newest does not age.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(age().await, 0.0);
    let (began, batch) = (Instant::now(), points(0, 64));
    let mut oldest: f64 = 0.0;
    while began.elapsed() < Duration::from_secs(2) {
        client.post_json("/v1/streams/points/batches", &batch).await.expect(202);
        oldest = oldest.max(age().await);
    }
    assert!(oldest > 0.0, "no look fell between two snapshots");
    assert!(oldest <= 1.5, "a snapshot was {oldest} s old");
    client.settled("m").await;
    running.stop().await;
}
