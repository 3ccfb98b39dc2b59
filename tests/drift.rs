//! A stream whose labels change their meaning is noticed, by the model's view and by `/metrics`; a restart keeps the count, and a
//! replay of the log comes to the same.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Client, IN_ORDER, Process, points, points_model, points_schema};

const BATCH_ROWS: usize = 160;

/// Rows of [`points`] whose labels say the next class.
fn flipped(first: usize, count: usize) -> Value {
    let mut rows = points(first, count);
    for row in rows["rows"].as_array_mut().unwrap() {
        let next = match row["label"].as_str().unwrap() {
            "north" => "south",
            "south" => "east",
            _ => "north",
        };
        row["label"] = json!(next);
    }
    rows
}

async fn post(client: &Client, batches: std::ops::Range<usize>, rows: fn(usize, usize) -> Value) -> Value {
    for batch in batches {
        client.post_json("/v1/streams/points/batches", &rows(batch * BATCH_ROWS, BATCH_ROWS)).await.expect(202);
    }
    client.settled("m").await
}

/// Makes a model that learns slowly enough to be wrong for a while.
async fn create(client: &Client) {
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut model = points_model("points");
    model["optimiser"] = json!({ "type": "sgd" });
    model["learning_rate"] = json!(0.005);
    client.put("/v1/models/m", &model).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_flip_are_noticed_and_a_restart_keeps_the_count() {
    let folder = tempfile::tempdir().unwrap();
    // No checkpoint but the first and the last: after the kill all of it is replayed.
    let settings = [("checkpoint.interval_rows", "1000000"), ("checkpoint.interval_seconds", "86400"), IN_ORDER];
    let mut process = Process::start(folder.path(), &settings);
    create(&process.client).await;
    let steady = post(&process.client, 0..40, points).await["drift"].clone();
    assert_eq!((&steady["detected"], &steady["last_sequence"]), (&json!(0), &Value::Null), "{steady}");
    assert!(steady["mean_loss"].is_f64(), "{steady}");

    let drift = post(&process.client, 40..60, flipped).await["drift"].clone();
    assert_eq!(drift["detected"], 1, "{drift}");
    let noticed = drift["last_sequence"].as_u64().unwrap();
    let flip = 40 * BATCH_ROWS as u64;
    assert!((flip + 1..=flip + 64 * 16).contains(&noticed), "{drift}");
    let metrics = Client::new(process.metrics.trim_end_matches("/metrics")).get("/metrics").await.body;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("mustela_model_drifts_total{model=\"m\"} 1\n"), "{metrics}");
    assert!(metrics.contains(&format!("mustela_model_drift_sequence{{model=\"m\"}} {noticed}\n")), "{metrics}");

    process.kill();
    process = Process::start(folder.path(), &settings);
    assert_eq!(process.client.settled("m").await["drift"], drift, "replayed");
    assert_eq!(process.terminate(), Some(0));
    process = Process::start(folder.path(), &settings);
    assert_eq!(process.client.settled("m").await["drift"], drift, "from a checkpoint");
    assert_eq!(process.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_is_a_decision_that_ends_and_is_replayed_to_the_bit() {
    for kill in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let settings = [("checkpoint.interval_rows", if kill { "1000" } else { "1000000" }), IN_ORDER];
        let mut process = Process::start(folder.path(), &settings);
        process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
        let mut model = points_model("points");
        model["optimiser"] = json!({ "type": "sgd" });
        model["learning_rate"] = json!(0.005);
        model["on_drift"] = json!({ "learning_rate_factor": 4, "rows": 640 });
        process.client.put("/v1/models/m", &model).await.expect(201);
        assert_eq!(post(&process.client, 0..40, points).await["learning_rate"], 0.005);
        let mut rates = Vec::new();
        for batch in 40..60 {
            if kill && batch == 47 {
                process.kill();
                process = Process::start(folder.path(), &settings);
                process.client.settled("m").await;
            }
            rates.push(post(&process.client, batch..batch + 1, flipped).await["learning_rate"].as_f64().unwrap());
        }
        let faster = rates.iter().filter(|rate| **rate == 0.02).count();
        // What the view says of the end of a batch may be from just before the change.
        assert!((3..=6).contains(&faster) && rates[19] == 0.005, "{rates:?}");
        assert_eq!(process.terminate(), Some(0));
        let process = Process::start(folder.path(), &settings);
        let view = process.client.settled("m").await;
        assert_eq!((&view["drift"]["detected"], &view["learning_rate"]), (&json!(1), &json!(0.005)));
        assert_eq!(process.terminate(), Some(0));
        // At which row a reaction begins is a matter of time; what the log then gives is not.
        let verified = Command::new(env!("CARGO_BIN_EXE_mustela")).arg("verify").arg(folder.path()).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_that_would_do_nothing_or_harm_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[]);
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let put = async |on_drift: Value| {
        let mut model = points_model("points");
        model["on_drift"] = on_drift;
        process.client.put("/v1/models/m", &model).await
    };
    put(json!({ "learning_rate_factor": 0, "rows": 9 })).await.expect_problem(422, "invalid_model");
    put(json!({ "learning_rate_factor": 2, "rows": 0 })).await.expect_problem(422, "invalid_model");
    put(json!({ "factor": 2 })).await.expect_problem(422, "invalid_body");
    put(json!({ "learning_rate_factor": 2, "rows": 9 })).await.expect(201);
    assert_eq!(process.terminate(), Some(0));
}
