//! Promise 4 and the memory budget: refused below the minimum, changed by a decision, kept.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Client, IN_ORDER, Running, points, points_model, points_schema};

async fn budget(client: &Client, bytes: impl Into<Value>) -> support::Answer {
    client.put("/v1/models/m/memory-budget", &json!({ "budget": bytes.into() })).await
}

/// Posts the same rows to two models, one of which has its budget changed on the way, and compares every bit of their states.
#[tokio::test(flavor = "multi_thread")]
async fn weights_are_the_same_bits_across_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[("checkpoint.interval_rows", "1000000"), IN_ORDER]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.put("/v1/models/same", &points_model("points")).await.expect(201);
    let minimum = client.get("/v1/models/m/memory-budget").await.expect(200)["minimum_bytes"].as_u64().unwrap();
    for batch in 0..20 {
        if batch % 5 == 2 {
            let memory = budget(client, minimum).await.expect(200);
            assert_eq!((&memory["budget_bytes"], &memory["planned_bytes"]), (&json!(minimum), &json!(minimum)));
        }
        if batch % 5 == 4 {
            let memory = budget(client, Value::Null).await.expect(200);
            assert!(memory["budget_bytes"].is_null() && memory["planned_bytes"].as_u64().unwrap() > minimum, "{memory}");
        }
        client.post_json("/v1/streams/points/batches", &points(batch * 50, 50)).await.expect(202);
    }
    client.settled("m").await;
    client.settled("same").await;
    let row = json!({ "rows": [{ "x": 13.25, "y": 1.5 }, { "x": -4.0, "y": 0.0 }] });
    let changed = client.post_json("/v1/models/m/predict", &row).await.expect(200);
    let same = client.post_json("/v1/models/same/predict", &row).await.expect(200);
    assert_eq!(changed["predictions"], same["predictions"]);
    running.stop().await;

    let running = Running::start(folder.path(), &[]).await;
    let hash = async |model: &str| {
        let view = running.client.get(&format!("/v1/models/{model}")).await.expect(200);
        assert_eq!(view["version"], "0.1000");
        view["checkpoint"]["state_hash"].as_str().unwrap().to_owned()
    };
    assert_eq!(hash("m").await, hash("same").await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_below_the_minimum_is_refused_and_the_minimum_works() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let before = client.get("/v1/models/m/memory-budget").await.expect(200);
    let minimum = before["minimum_bytes"].as_u64().unwrap();

    let problem = budget(client, minimum - 1).await.expect_problem(422, "budget_below_minimum");
    assert_eq!((&problem["minimum_bytes"], &problem["budget_bytes"]), (&json!(minimum), &json!(minimum - 1)));
    let unchanged = client.get("/v1/models/m/memory-budget").await.expect(200);
    assert_eq!((&unchanged["budget_bytes"], &unchanged["planned_bytes"]), (&Value::Null, &before["planned_bytes"]));
    client.put("/v1/models/m/memory-budget", &json!({})).await.expect_problem(422, "invalid_body");
    for nonsense in [json!("plenty"), json!(-1), json!([])] {
        budget(client, nonsense).await.expect_problem(422, "invalid_body");
    }

    budget(client, minimum).await.expect(200);
    for batch in 0..10 {
        client.post_json("/v1/streams/points/batches?wait=applied", &points(batch * 40, 40)).await.expect(200);
    }
    let memory = client.get("/v1/models/m/memory-budget").await.expect(200);
    assert!(memory["high_water_bytes"].as_u64().unwrap() <= minimum, "{memory}");
    assert_eq!(client.settled("m").await["rows"]["learned"], 400);

    // A model that is made with a budget is held to it from the start.
    let mut model = points_model("points");
    model["memory_budget"] = json!(minimum - 1);
    client.put("/v1/models/n", &model).await.expect_problem(422, "budget_below_minimum");
    model["memory_budget"] = json!("1234.567KiB");
    let view = client.put("/v1/models/n", &model).await.expect(201);
    assert_eq!(client.settled("n").await["memory"]["budget_bytes"], 1_264_196);
    assert_eq!(view["stream"], "points");
    running.stop().await;
    // What was asked for is kept to the byte: the same request is still the same model.
    let running = Running::start(folder.path(), &[]).await;
    running.client.put("/v1/models/n", &model).await.expect(200);
    assert_eq!(running.client.get("/v1/models/n").await.expect(200)["memory"]["budget_bytes"], 1_264_196);
    running.stop().await;
}
