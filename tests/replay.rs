//! Promises 1 and 2, their first tests: what was acknowledged survives kill -9, and a checkpoint with replay gives the bits of an
//! uninterrupted fold, whatever the checkpoint interval, through budget changes. (`tests/crash.rs` makes it hard.)
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{Client, IN_ORDER, Process, points, points_model, points_schema};

const BATCHES: usize = 40;
const BATCH_ROWS: usize = 25;

async fn create(client: &Client, learner: &serde_json::Value) {
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut model = points_model("points");
    model["optimiser"] = json!({ "type": "adamw" });
    model["learner"] = learner.clone();
    model["compensation"] = json!({ "type": "iter_fisher" });
    client.put("/v1/models/m", &model).await.expect(201);
}

async fn post(client: &Client, batches: std::ops::Range<usize>) {
    for batch in batches {
        client.post_json("/v1/streams/points/batches", &points(batch * BATCH_ROWS, BATCH_ROWS)).await.expect(202);
    }
}

/// Sets the budget once `rows` are decided, so that every run decides it at the same version.
async fn set_budget(client: &Client, budget: serde_json::Value) {
    client.settled("m").await;
    client.put("/v1/models/m/memory-budget", &json!({ "budget": budget })).await.expect(200);
}

/// Ends the service as it should end, starts it again, and gives the hash of weights and optimiser state.
async fn hash_of(process: Process, folder: &std::path::Path) -> (String, serde_json::Value) {
    process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &[]);
    let view = process.client.settled("m").await;
    assert_eq!(view["version"], format!("0.{}", BATCHES * BATCH_ROWS));
    assert_eq!(view["rows"]["learned"], BATCHES * BATCH_ROWS);
    let hash = view["checkpoint"]["state_hash"].as_str().unwrap().to_owned();
    assert_eq!(process.terminate(), Some(0));
    (hash, view["online"].clone())
}

async fn run(interval_rows: &str, kill: bool, learner: &serde_json::Value) -> (String, serde_json::Value) {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("checkpoint.interval_rows", interval_rows), IN_ORDER];
    let mut process = Process::start(folder.path(), &settings);
    create(&process.client, learner).await;
    let minimum = process.client.get("/v1/models/m/memory-budget").await.expect(200)["minimum_bytes"].clone();
    post(&process.client, 0..15).await;
    set_budget(&process.client, minimum).await;
    post(&process.client, 15..25).await;
    if kill {
        process.kill();
        process = Process::start(folder.path(), &settings);
    }
    post(&process.client, 25..28).await;
    set_budget(&process.client, serde_json::Value::Null).await;
    // Three workers, whose gradients are compensated.
    let whole = json!({ "stages": [{ "layers": { "start": 0, "end": 4 } }], "workers": 3 });
    process.client.put("/v1/models/m/plan", &whole).await.expect(200);
    post(&process.client, 28..BATCHES).await;
    hash_of(process, folder.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hash_at_two_checkpoint_intervals_after_a_kill() {
    let vanilla = json!({ "type": "vanilla" });
    let whole = run("1000000", false, &vanilla).await;
    // Every 130 rows: the kill comes some rows after a checkpoint, between the two budget changes.
    assert_eq!(run("130", true, &vanilla).await, whole);
    // Only the first checkpoint, before any row: everything is replayed, decisions too.
    assert_eq!(run("1000000", true, &vanilla).await, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_learners_keep_comes_back_after_a_kill() {
    for learner in [
        json!({ "type": "er", "buffer_rows": 300, "replay_rows": 5 }),
        json!({ "type": "mir", "buffer_rows": 300, "replay_rows": 5, "candidate_rows": 12 }),
        json!({ "type": "lwf", "every_rows": 110 }),
        json!({ "type": "mas", "every_rows": 110, "sample_rows": 20 }),
    ] {
        let whole = run("1000000", false, &learner).await;
        assert_eq!(run("130", true, &learner).await, whole, "{learner}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_batch_survives_kill_9_and_counts_once_when_it_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[]);
    create(&process.client, &json!({ "type": "vanilla" })).await;
    let key = [("content-type", "application/json"), ("idempotency-key", "batch-1")];
    let send = async |client: &Client| {
        client.send(reqwest::Method::POST, "/v1/streams/points/batches", &key, points(0, 10).to_string()).await
    };
    let first = send(&process.client).await.expect(202);
    process.kill();
    let process = Process::start(folder.path(), &[]);
    let again = send(&process.client).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.expect(202), first);
    let view = process.client.settled("m").await;
    assert_eq!((&view["rows"]["learned"], &view["version"]), (&json!(10), &json!("0.10")));
    assert_eq!(process.terminate(), Some(0));
}
