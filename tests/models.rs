//! Making models, looking at them, and changing them.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{IN_ORDER, Running, points, points_model, points_schema};

async fn running(folder: &tempfile::TempDir) -> Running {
    let running = Running::start(folder.path(), &[]).await;
    running.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_learns_what_is_posted() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    for batch in 0..40 {
        client.post_json("/v1/streams/points/batches", &points(batch * 30, 30)).await.expect(202);
    }
    let view = client.settled("m").await;
    assert_eq!(view["version"], "0.1200");
    assert_eq!(view["rows"]["accepted"], 1200);
    assert_eq!(view["rows"]["learned"], 1200);
    // 30 rows a record, 16 a step: a step ends with its record.
    assert_eq!(view["steps"], 80);
    assert!(view["sliding"]["accuracy"].as_f64().unwrap() > 0.95, "{view}");
    assert!(view["online"]["accuracy"].as_f64().unwrap() < view["sliding"]["accuracy"].as_f64().unwrap());
    assert!(view["online"]["loss"].as_f64().unwrap() > view["sliding"]["loss"].as_f64().unwrap());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_is_idempotent_and_a_change_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(200);
    let mut other = points_model("points");
    other["learning_rate"] = json!(0.5);
    client.put("/v1/models/m", &other).await.expect_problem(409, "model_exists");
    client.delete("/v1/models/m").await.expect(204);
    client.get("/v1/models/m").await.expect_problem(404, "not_found");
    client.put("/v1/models/m", &other).await.expect(201);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_models_learn_from_one_stream_each_from_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    client.put("/v1/models/first", &points_model("points")).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 100)).await.expect(202);
    let with_start = |start: serde_json::Value| {
        let mut model = points_model("points");
        model["start"] = start;
        model
    };
    client.put("/v1/models/now", &with_start(json!("now"))).await.expect(201);
    client.put("/v1/models/earliest", &with_start(json!("earliest"))).await.expect(201);
    client.put("/v1/models/middle", &with_start(json!(51))).await.expect(201);
    client.put("/v1/models/beyond", &with_start(json!(102))).await.expect_problem(422, "invalid_model");
    client.post_json("/v1/streams/points/batches", &points(100, 20)).await.expect(202);
    for (model, learned) in [("first", 120), ("now", 20), ("earliest", 120), ("middle", 70)] {
        let view = client.settled(model).await;
        assert_eq!((&view["rows"]["learned"], &view["version"]), (&json!(learned), &json!("0.120")), "{model}");
    }
    client.delete("/v1/streams/points").await.expect_problem(409, "stream_in_use");
    let list = client.get("/v1/models").await.expect(200);
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, ["earliest", "first", "middle", "now"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn specs_that_cannot_be_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut model = points_model("points");
        change(&mut model);
        model
    };
    for (spec, word) in [
        (change(&|model| model["kind"] = json!("oracle")), "network"),
        (change(&|model| model["network"] = json!({ "architecture": "cathedral" })), "cathedral"),
        (change(&|model| model["colour"] = json!("red")), "colour"),
        (change(&|model| model["step_rows"] = json!(0)), "step_rows"),
        (change(&|model| model["learning_rate"] = json!(-1)), "learning_rate"),
        (change(&|model| model["learning_rate"] = json!(1e308)), "learning_rate is 1e308, allowed are 0 to 1000"),
        (change(&|model| model["learner"] = json!({ "type": "er", "buffer_rows": 1 })), "`buffer_rows` is 1"),
        (change(&|model| model["compensation"] = json!({ "type": "iter_fisher", "rate": 0.1 })), "no `rate` with tuning `ridge`"),
        (
            change(&|model| model["compensation"] = json!({ "type": "iter_fisher", "tuning": "fixed", "decay": 0.9 })),
            "no `decay`",
        ),
        (change(&|model| model["network"] = json!({ "architecture": "mlp", "hidden": [1_000_000_000_000_u64] })), ""),
        (change(&|model| model["network"] = json!({ "architecture": "convnet" })), ""),
    ] {
        let problem = client.put("/v1/models/m", &spec).await.expect_problem(422, "invalid_model");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    let unknown = change(&|model| model["stream"] = json!("nowhere"));
    client.put("/v1/models/m", &unknown).await.expect_problem(422, "unknown_stream");
    let policy = change(&|model| model["overload"] = json!({ "policy": "shrug" }));
    client.put("/v1/models/m", &policy).await.expect_problem(422, "invalid_body");
    client.put("/v1/models/Not%20a%20name", &points_model("points")).await.expect_problem(422, "invalid_model");
    assert_eq!(client.get("/v1/models").await.expect(200)["data"], json!([]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_is_null_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    // Two models that are measured one after the other may follow different plans, and so come to different losses.
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/bare", &points_model("points")).await.expect(201);
    let mut nulls = points_model("points");
    for setting in ["compensation", "learner", "seed", "optimiser", "learning_rate", "step_rows"] {
        if nulls.get(setting).is_none() {
            nulls[setting] = json!(null);
        }
    }
    assert!(nulls["compensation"].is_null() && nulls["learner"].is_null(), "{nulls}");
    client.put("/v1/models/nulls", &nulls).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 64)).await.expect(202);
    let [bare, nulls] = [client.settled("bare").await, client.settled("nulls").await];
    for part in ["rows", "learning_rate", "sliding"] {
        assert_eq!(bare[part], nulls[part]);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_learning_rate_changes_by_a_decision() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 64)).await.expect(202);
    client.settled("m").await;
    let view = client.patch("/v1/models/m", &json!({ "learning_rate": 0.0 })).await.expect(200);
    assert_eq!(view["learning_rate"], 0.0);
    client.patch("/v1/models/m", &json!({ "learning_rate": -0.1 })).await.expect_problem(422, "invalid_change");
    let problem = client.patch("/v1/models/m", &json!({ "learning_rate": 1e308 })).await.expect_problem(422, "invalid_change");
    assert!(problem["detail"].as_str().unwrap().contains("1e308"), "{problem}");
    client.patch("/v1/models/m", &json!({ "stream": "x" })).await.expect_problem(422, "invalid_body");
    // At a rate of zero nothing is learned any more, but rows are scored and counted.
    let row = json!({ "rows": [{ "x": 3.0, "y": 1.0 }] });
    let before = client.post_json("/v1/models/m/predict", &row).await.expect(200);
    client.post_json("/v1/streams/points/batches?wait=applied", &points(0, 1)).await.expect(200);
    let view = client.settled("m").await;
    assert_eq!(view["rows"]["learned"], 65);
    let after = client.post_json("/v1/models/m/predict", &row).await.expect(200);
    assert_eq!(after["model_version"], "0.65");
    assert_ne!(before["prediction_id"], after["prediction_id"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_diverges_refuses_steps_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let mut model = points_model("points");
    // Each step takes the weights a billion times as far, to the other side of zero.
    model["optimiser"] = json!({ "type": "sgd", "weight_decay": 1e6 });
    model["learning_rate"] = json!(1000);
    client.put("/v1/models/wild", &model).await.expect(201);
    client.put("/v1/models/tame", &points_model("points")).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 320)).await.expect(202);
    let view = client.settled("wild").await;
    let rows = |outcome: &str| view["rows"][outcome].as_u64().unwrap();
    assert!(rows("quarantined") > 0, "{view}");
    assert_eq!(view["status"], "refusing");
    assert_eq!((rows("learned") + rows("quarantined"), &view["steps"]), (320, &json!(20)));
    let row = json!({ "rows": [{ "x": 3.0, "y": 1.0 }] });
    client.post_json("/v1/models/wild/predict", &row).await.expect_problem(409, "model_diverged");
    client.post_json("/v1/models/tame/predict", &row).await.expect(200);
    assert_eq!(client.settled("tame").await["rows"]["learned"], 320);
    running.stop().await;
    // Replay comes to the same verdicts.
    let running = Running::start(folder.path(), &[]).await;
    assert_eq!(running.client.settled("wild").await["rows"], view["rows"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_beyond_all_bounds_moves_no_weight() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    let schema = json!({
        "fields": [{ "name": "t", "type": "tensor", "shape": [2], "element": "f32" }],
        "target": { "name": "label", "type": "classes", "classes": 2 },
    });
    client.put("/v1/streams/s", &schema).await.expect(201);
    let model = json!({
        "kind": "network", "stream": "s", "network": { "architecture": "mlp", "hidden": [8] },
        "optimiser": { "type": "sgd", "momentum": 0.9 }, "step_rows": 4,
    });
    client.put("/v1/models/m", &model).await.expect(201);
    let batches = "/v1/streams/s/batches?wait=applied";
    let good = json!({ "rows": [{ "t": [1.0, 0.0], "label": 0 }, { "t": [0.0, 1.0], "label": 1 }] });
    for _ in 0..40 {
        client.post_json(batches, &good).await.expect(200);
    }
    let question = json!({ "rows": [{ "t": [1.0, 0.0] }] });
    let before = client.post_json("/v1/models/m/predict", &question).await.expect(200);
    let wild = json!({ "rows": [{ "t": [3e38, -3e38], "label": 1 }] });
    let answer = client.post_json(batches, &wild).await.expect(200);
    assert_eq!((&answer["applied"], &answer["quarantined_rows"]), (&json!(true), &json!(1)));
    let after = client.post_json("/v1/models/m/predict", &question).await.expect(200);
    assert_eq!(before["predictions"], after["predictions"]);
    client.post_json(batches, &good).await.expect(200);
    let rows = client.settled("m").await["rows"].clone();
    assert_eq!((&rows["learned"], &rows["quarantined"], &rows["accepted"]), (&json!(82), &json!(1), &json!(83)));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_columns_needs_no_network_and_another_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &json!({ "kind": "network", "stream": "points" })).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 200)).await.expect(202);
    let view = client.settled("m").await;
    assert_eq!((&view["rows"]["learned"], &view["learning_rate"]), (&json!(200), &json!(0.003)));
    let pixels = json!({ "name": "pixels", "type": "tensor", "shape": [1, 8, 8], "element": "u8" });
    let target = json!({ "name": "label", "type": "classes", "classes": 3 });
    client.put("/v1/streams/pictures", &json!({ "fields": [pixels], "target": target })).await.expect(201);
    let refused = client.put("/v1/models/p", &json!({ "kind": "network", "stream": "pictures" })).await;
    assert!(refused.expect(422)["detail"].as_str().unwrap().contains("`network` is missing"));
    running.stop().await;
}

/// As a kill between the deletion and the removal of its checkpoints leaves it.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_deleted_models_go_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    for model in ["gone", "kept"] {
        running.client.put(&format!("/v1/models/{model}"), &points_model("points")).await.expect(201);
        running.client.settled(model).await;
    }
    running.client.delete("/v1/models/gone").await.expect(204);
    running.stop().await;
    let of_models = folder.path().join("models");
    // Ids that were never given away may be another log's.
    for name in ["1", "7", "other"] {
        std::fs::create_dir(of_models.join(name)).unwrap();
    }
    Running::start(folder.path(), &[]).await.stop().await;
    let left = ["1", "2", "7", "other"].map(|name| of_models.join(name).exists());
    assert_eq!(left, [false, true, true, true]);
}
