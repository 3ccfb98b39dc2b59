//! Categorical columns and missing values, from the door to what is learned of them.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Client, IN_ORDER, Running};

const CARRIERS: [&str; 12] = ["AA", "UA", "DL", "WN", "B6", "AS", "NK", "F9", "HA", "VX", "MQ", "Zürich"];

fn schema() -> Value {
    json!({
        "fields": [
            { "name": "carrier", "type": "categorical" },
            { "name": "delay", "type": "numeric", "optional": true },
            { "name": "miles", "type": "numeric" },
            { "name": "gate", "type": "categorical", "buckets": 8, "optional": true },
        ],
        "target": { "name": "outcome", "type": "classes", "classes": ["early", "late", "cancelled"] },
    })
}

/// A row whose label is its carrier's, unless its delay is missing; its numbers say nothing.
fn row(number: usize) -> Value {
    let mixed = number.wrapping_mul(2_654_435_761) >> 7;
    let carrier = mixed % CARRIERS.len();
    let missing = (mixed / 16).is_multiple_of(4);
    let outcome = if missing { "cancelled" } else { ["late", "early"][carrier * 5 % 7 % 2] };
    let mut row = json!({ "carrier": CARRIERS[carrier], "miles": (mixed % 1000) as f64, "outcome": outcome });
    if !missing {
        // Its mean is 0, so that what stands for a missing one is no value of its own.
        row["delay"] = json!((mixed % 41) as f64 - 20.0);
    }
    if !mixed.is_multiple_of(3) {
        row["gate"] = json!(mixed % 5);
    }
    row
}

fn rows(first: usize, count: usize) -> Value {
    json!({ "rows": (first..first + count).map(row).collect::<Vec<_>>() })
}

fn model(stream: &str) -> Value {
    json!({
        "kind": "network", "stream": stream, "network": { "architecture": "mlp", "hidden": [16] },
        "optimiser": { "type": "sgd", "momentum": 0.9 }, "learning_rate": 0.02, "step_rows": 16,
    })
}

async fn accuracy(client: &Client, model: &str) -> f64 {
    client.settled(model).await["sliding"]["accuracy"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn categories_and_missing_values_are_learned_from() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    client.put("/v1/streams/flights", &schema()).await.expect(201);
    client.put("/v1/streams/flights", &schema()).await.expect(200);
    // What was left out is said.
    assert_eq!(client.get("/v1/streams/flights").await.expect(200)["schema"]["fields"][0]["buckets"], 256);
    let numbers = json!({
        "fields": [{ "name": "delay", "type": "numeric" }, { "name": "miles", "type": "numeric" }],
        "target": schema()["target"],
    });
    client.put("/v1/streams/numbers", &numbers).await.expect(201);
    client.put("/v1/models/all", &model("flights")).await.expect(201);
    client.put("/v1/models/numbers", &model("numbers")).await.expect(201);
    let linear = json!({ "kind": "network", "stream": "flights", "network": { "architecture": "linear" }, "learning_rate": 0.1 });
    client.put("/v1/models/linear", &linear).await.expect(201);
    let list = json!([{ "type": "embedding", "dimension": 3 }, { "type": "linear", "outputs": 3 }]);
    let mut listed = linear.clone();
    listed["network"] = json!({ "architecture": "layers", "layers": list });
    listed["optimiser"] = json!({ "type": "adamw" });
    client.put("/v1/models/listed", &listed).await.expect(201);
    for batch in 0..24 {
        let all = rows(batch * 256, 256);
        client.post_json("/v1/streams/flights/batches", &all).await.expect(202);
        let without = all["rows"].as_array().unwrap().iter().map(
            |row| json!({ "delay": row["delay"].as_f64().unwrap_or(0.0), "miles": row["miles"], "outcome": row["outcome"] }),
        );
        client.post_json("/v1/streams/numbers/batches", &json!({ "rows": without.collect::<Vec<_>>() })).await.expect(202);
    }
    let (all, linear, numbers) =
        (accuracy(client, "all").await, accuracy(client, "linear").await, accuracy(client, "numbers").await);
    assert!(all > 0.97 && linear > 0.97 && numbers < 0.75, "all {all}, linear {linear}, numbers alone {numbers}");
    client.settled("listed").await;
    // A carrier that never came is no fault, and neither is a row of which nearly all is missing.
    let query = json!({ "rows": [{ "carrier": "never seen", "miles": 1, "delay": 0 }, { "carrier": "AA", "miles": 500 }] });
    let answer = client.post_json("/v1/models/all/predict", &query).await.expect(200);
    assert_eq!(answer["predictions"][1]["label"], "cancelled", "{answer}");
    let csv = "carrier,miles,delay,gate\nnever seen,1,0,\nAA,500,,\n";
    let of_csv = client.post("/v1/models/all/predict", "text/csv", csv).await.expect(200);
    assert_eq!(of_csv["predictions"], answer["predictions"]);
    client
        .post_json("/v1/streams/flights/batches", &json!({ "rows": [{ "carrier": 17, "miles": 1, "outcome": 0 }] }))
        .await
        .expect(202);
    client.settled("all").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_every_text_format_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    for format in ["json", "csv", "lines"] {
        client.put(&format!("/v1/streams/{format}"), &schema()).await.expect(201);
        client.put(&format!("/v1/models/{format}"), &model(format)).await.expect(201);
    }
    let post = async |client: &Client, first: usize| {
        let batch = rows(first, 160);
        let list = batch["rows"].as_array().unwrap();
        let lines: String = list.iter().map(|row| format!("{row}\n")).collect();
        let columns = ["gate", "carrier", "outcome", "delay", "miles"];
        let line = |row: &Value| columns.map(|column| cell(&row[column])).join(",");
        let csv: Vec<String> = std::iter::once(columns.join(",")).chain(list.iter().map(line)).collect();
        client.post_json("/v1/streams/json/batches?wait=applied", &batch).await.expect(200);
        client.post("/v1/streams/lines/batches?wait=applied", "application/x-ndjson", lines).await.expect(200);
        client.post("/v1/streams/csv/batches?wait=applied", "text/csv", csv.join("\n")).await.expect(200);
    };
    post(client, 0).await;
    post(client, 160).await;
    let query = json!({ "rows": (1000..1040).map(|number| {
        let mut row = row(number);
        row.as_object_mut().unwrap().remove("outcome");
        row
    }).collect::<Vec<_>>() });
    let ask = async |client: &Client, model: &str| {
        client.post_json(&format!("/v1/models/{model}/predict"), &query).await.expect(200)["predictions"].clone()
    };
    let before = ask(client, "json").await;
    assert_eq!(ask(client, "csv").await, before);
    assert_eq!(ask(client, "lines").await, before);
    running.stop().await;

    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    client.settled("json").await;
    assert_eq!(ask(client, "json").await, before);
    post(client, 320).await;
    // This one learns all of it in one life.
    client.put("/v1/models/whole", &model("json")).await.expect(201);
    client.settled("whole").await;
    assert_eq!(ask(client, "whole").await, ask(client, "json").await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_row_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/flights", &schema()).await.expect(201);
    client.put("/v1/models/m", &model("flights")).await.expect(201);
    let (batches, predict) = ("/v1/streams/flights/batches", "/v1/models/m/predict");
    let good = json!({ "carrier": "AA", "miles": 1, "outcome": "late" });
    for (bad, column) in [
        (json!({ "carrier": null, "miles": 1, "outcome": "late" }), "carrier"),
        (json!({ "carrier": "", "miles": 1, "outcome": "late" }), "carrier"),
        (json!({ "carrier": 1.5, "miles": 1, "outcome": "late" }), "carrier"),
        (json!({ "carrier": ["AA"], "miles": 1, "outcome": "late" }), "carrier"),
        (json!({ "carrier": "x".repeat(257), "miles": 1, "outcome": "late" }), "carrier"),
        (json!({ "miles": 1, "outcome": "late" }), "carrier"),
        (json!({ "carrier": "AA", "miles": null, "outcome": "late" }), "miles"),
        (json!({ "carrier": "AA", "outcome": "late" }), "miles"),
        (json!({ "carrier": "AA", "miles": 1, "delay": "soon", "outcome": "late" }), "delay"),
        (json!({ "carrier": "AA", "miles": 1, "gate": {}, "outcome": "late" }), "gate"),
        (json!({ "carrier": "AA", "miles": 1, "outcome": null }), "outcome"),
    ] {
        let body = json!({ "rows": [good, good, bad, good] });
        let problem = client.post_json(batches, &body).await.expect_problem(422, "invalid_rows");
        assert_eq!((&problem["errors"][0]["row"], &problem["errors"][0]["column"]), (&json!(2), &json!(column)), "{problem}");
        if column != "outcome" {
            client.post_json(predict, &body).await.expect_problem(422, "invalid_rows");
        }
    }
    for (csv, column) in
        [("carrier,miles,outcome\nAA,1,late\nAA,,late\n", "miles"), ("carrier,miles,outcome\nAA,1,late\n,1,late\n", "carrier")]
    {
        let problem = client.post(batches, "text/csv", csv).await.expect_problem(422, "invalid_rows");
        assert_eq!((&problem["errors"][0]["row"], &problem["errors"][0]["column"]), (&json!(1), &json!(column)), "{problem}");
    }
    for path in [batches, predict] {
        let problem = client.post(path, "application/octet-stream", vec![0; 120]).await.expect_problem(422, "invalid_rows");
        assert!(problem["detail"].as_str().unwrap().contains("JSON, NDJSON or CSV"), "{problem}");
    }
    let mut reserved = schema();
    reserved["fields"][0]["buckets"] = json!(1);
    client.put("/v1/streams/other", &reserved).await.expect_problem(422, "invalid_stream");
    let mut bare = model("flights");
    bare["network"] = json!({ "architecture": "layers", "layers": [{ "type": "linear", "outputs": 3 }] });
    let problem = client.put("/v1/models/other", &bare).await;
    assert!(problem.status == 422 && problem.body["detail"].as_str().unwrap().contains("embedding"), "{}", problem.body);
    // Nothing of it was kept.
    let answer = client.post_json(batches, &json!({ "rows": [good] })).await.expect(202);
    assert_eq!(answer["first_sequence"], 1);
    client.settled("m").await;
    running.stop().await;
}
