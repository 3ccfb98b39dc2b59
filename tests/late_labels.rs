//! Labels that come later than their rows: by id, in every format, in time or not, and the same in every replay.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Client, IN_ORDER, Process, Running, points, points_model, points_schema};

fn late_schema(window_rows: u64) -> Value {
    let mut schema = points_schema();
    schema["row_id"] = json!("id");
    schema["late_labels"] = json!({ "window_rows": window_rows });
    schema
}

/// Rows `first` to `first + count` of [`points`], with ids, and their labels where `labelled` says so.
fn rows(first: usize, count: usize, labelled: impl Fn(usize) -> bool) -> Value {
    let mut body = points(first, count);
    for (row, value) in (first..).zip(body["rows"].as_array_mut().unwrap()) {
        value["id"] = json!(format!("r{row}"));
        if !labelled(row) {
            value.as_object_mut().unwrap().remove("label");
        }
    }
    body
}

fn label(row: usize) -> Value {
    points(row, 1)["rows"][0]["label"].clone()
}

/// The labels of these rows.
fn labels(numbers: impl IntoIterator<Item = usize>) -> Value {
    let rows: Vec<Value> = numbers.into_iter().map(|row| json!({ "id": format!("r{row}"), "label": label(row) })).collect();
    json!({ "rows": rows })
}

/// The numbers from 0 on, in an order that is none.
fn shuffled(count: usize) -> Vec<usize> {
    (0..count).map(|number| number * 37 % count).collect()
}

async fn make(client: &Client, window_rows: u64) {
    client.put("/v1/streams/late", &late_schema(window_rows)).await.expect(201);
    client.put("/v1/models/m", &points_model("late")).await.expect(201);
}

async fn counts(client: &Client) -> [u64; 6] {
    let view = client.caught_up("m").await;
    let rows = &view["rows"];
    let number = |name: &str| rows[name].as_u64().unwrap();
    let balance = number("learned") + number("quarantined") + number("expired") + number("waiting");
    assert_eq!(number("accepted"), balance, "{rows}");
    let of = ["accepted", "learned", "expired", "waiting", "waiting_for_label"].map(number);
    [of[0], of[1], of[2], of[3], of[4], view["labels"].as_u64().unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_learned_when_their_labels_come() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    make(client, 1000).await;
    client.post_json("/v1/streams/late/batches", &rows(0, 50, |row| row % 5 == 0)).await.expect(202);
    assert_eq!(counts(client).await, [50, 10, 0, 40, 40, 0]);
    client.post_json("/v1/models/m/predict", &rows(3, 1, |_| false)).await.expect(200);

    let answer = client.post_json("/v1/streams/late/labels?wait=applied", &labels([1, 7, 5, 3])).await.expect(200);
    assert_eq!((&answer["labels"], &answer["applied"], &answer["first_sequence"]), (&json!(4), &json!(true), &json!(51)));
    // Row 5 came with its label.
    assert_eq!((&answer["unmatched_labels"], &answer["unmatched"]), (&json!(1), &json!([{ "row": 2, "id": "r5" }])));
    assert!(answer["loss"].as_f64().unwrap() > 0.0);
    assert_eq!(counts(client).await, [50, 13, 0, 37, 37, 4]);
    // A second label, a row that never came, and one that waits, with two.
    let twice = client.post_json("/v1/streams/late/labels", &labels([1, 999, 2, 2])).await.expect(202);
    assert_eq!((&twice["unmatched_labels"], &twice["unmatched"][1]["id"]), (&json!(3), &json!("r999")));
    assert_eq!(counts(client).await, [50, 14, 0, 36, 36, 8]);

    let scores = client.get("/v1/models/m").await.expect(200)["online"].clone();
    assert_eq!(scores["rows"], 14, "each learned row was scored when it came");
    let metrics = running.metrics().await;
    for line in [
        r#"mustela_stream_labels_total{outcome="matched",stream="late"} 4"#,
        r#"mustela_stream_labels_total{outcome="unmatched",stream="late"} 4"#,
        r#"mustela_model_unlabelled_rows{model="m"} 36"#,
        r#"mustela_model_labels_total{model="m"} 8"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_scored_whose_label_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    make(client, 10).await;
    for row in 0..5 {
        client.post_json("/v1/streams/late/batches", &rows(row, 1, |_| false)).await.expect(202);
        if row % 2 == 0 {
            client.caught_up("m").await;
        }
        let answer = client.post_json("/v1/streams/late/labels?wait=applied", &labels([row])).await.expect(200);
        assert!(answer["loss"].is_f64(), "row {row}: {answer}");
    }
    assert_eq!(client.get("/v1/models/m").await.expect(200)["online"]["rows"], 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_brings_rows_without_labels_and_labels_without_rows() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    make(client, 1000).await;
    let (rows_at, labels_at) = ("/v1/streams/late/batches", "/v1/streams/late/labels");
    client.post(rows_at, "text/csv", "x,y,id,label\n1,2,a,\n1,2,b,north\n").await.expect(202);
    client.post(rows_at, "application/x-ndjson", "{\"x\":1,\"y\":2,\"id\":\"c\",\"label\":null}\n").await.expect(202);
    client.post_json(rows_at, &json!({ "rows": [{ "x": 1, "y": 2, "id": 7 }] })).await.expect(202);
    let mut raw: Vec<u8> = [1f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    raw.extend(u32::MAX.to_le_bytes());
    raw.extend(8u64.to_le_bytes());
    client.post(rows_at, "application/octet-stream", raw).await.expect(202);
    assert_eq!(counts(client).await, [5, 1, 0, 4, 4, 0]);
    client.post(labels_at, "text/csv", "label,id\nsouth,a\n").await.expect(202);
    client.post(labels_at, "application/x-ndjson", "{\"id\":\"c\",\"label\":1}\n").await.expect(202);
    client.post_json(labels_at, &json!({ "rows": [{ "id": "7", "label": "east" }] })).await.expect(202);
    let raw: Vec<u8> = 2u32.to_le_bytes().into_iter().chain(8u64.to_le_bytes()).collect();
    client.post(labels_at, "application/octet-stream", raw).await.expect(202);
    assert_eq!(counts(client).await, [5, 5, 0, 0, 0, 4]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_expire_where_the_log_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    make(client, 20).await;
    client.post_json("/v1/streams/late/batches", &rows(0, 30, |_| false)).await.expect(202);
    // Number 30 is the newest: rows 11 to 30 wait, and row n is the one with the number n + 1.
    assert_eq!(counts(client).await, [30, 0, 10, 20, 20, 0]);
    let answer = client.post_json("/v1/streams/late/labels", &labels([9, 10, 13])).await.expect(202);
    // r9 and r10 are too old, and r13 is not: its label has the last number that is in time.
    assert_eq!((&answer["unmatched_labels"], &answer["unmatched"][1]["id"]), (&json!(2), &json!("r10")));
    assert_eq!(counts(client).await, [30, 1, 13, 16, 16, 3]);
    client.post_json("/v1/streams/late/batches", &rows(30, 20, |_| true)).await.expect(202);
    assert_eq!(counts(client).await, [50, 21, 29, 0, 0, 3]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    make(client, 100).await;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.post_json("/v1/streams/points/labels", &labels([1])).await.expect_problem(422, "no_late_labels");
    client.post_json("/v1/streams/none/labels", &labels([1])).await.expect_problem(404, "not_found");
    let mut schema = points_schema();
    schema["late_labels"] = json!({ "window_rows": 10 });
    let problem = client.put("/v1/streams/other", &schema).await.expect_problem(422, "invalid_stream");
    assert!(problem["detail"].as_str().unwrap().contains("row_id"), "{problem}");
    let at = "/v1/streams/late/labels";
    for (body, column) in [
        (json!({ "rows": [{ "id": "r1" }] }), "label"),
        (json!({ "rows": [{ "label": "north" }] }), "id"),
        (json!({ "rows": [{ "id": "r1", "label": "west" }] }), "label"),
        (json!({ "rows": [{ "id": "r1", "label": null }] }), "label"),
        (json!({ "rows": [{ "id": "r1", "label": "north", "x": 1 }] }), "x"),
    ] {
        let problem = client.post_json(at, &body).await.expect_problem(422, "invalid_rows");
        assert_eq!(problem["errors"][0]["column"], column, "{problem}");
    }
    // Where labels may not be late, a row without one is refused as before.
    let row = json!({ "rows": [{ "x": 1, "y": 2 }] });
    client.post_json("/v1/streams/points/batches", &row).await.expect_problem(422, "invalid_rows");
    let mut model = points_model("late");
    model["overload"] = json!({ "policy": "last_n" });
    let problem = client.put("/v1/models/other", &model).await.expect_problem(422, "invalid_model");
    assert!(problem["detail"].as_str().unwrap().contains("late labels"), "{problem}");
    running.stop().await;
}

/// The hash and the counters of `m` after rows and labels in turn, with kills where `kills` says so, before the posts of these numbers.
async fn run(folder: &Path, interval_rows: &str, kills: &[usize]) -> (Value, Value) {
    let settings = [("checkpoint.interval_rows", interval_rows), IN_ORDER];
    let mut process = Process::start(folder, &settings);
    make(&process.client, 150).await;
    let order = shuffled(400);
    for number in 0..20 {
        if kills.contains(&number) {
            process.kill();
            process = Process::start(folder, &settings);
        }
        let (first, client) = (number * 20, &process.client);
        let body = rows(first, 20, |row| row % 7 == 0);
        client.post_json("/v1/streams/late/batches", &body).await.expect(202);
        // Labels of rows of long ago, of lately, and of those to come, in a post that is sent twice.
        let some = labels(order[first..first + 20].iter().copied());
        let key = [("content-type", "application/json"), ("idempotency-key", &*format!("labels {number}"))];
        let once = client.send(reqwest::Method::POST, "/v1/streams/late/labels", &key, some.to_string()).await.expect(202);
        let again = client.send(reqwest::Method::POST, "/v1/streams/late/labels", &key, some.to_string()).await;
        assert_eq!(again.headers["idempotent-replayed"], "true");
        assert_eq!(again.expect(202), once, "the first answer, with what found no row");
    }
    process.client.caught_up("m").await;
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &settings);
    let view = process.client.caught_up("m").await;
    assert_eq!(process.terminate(), Some(0));
    (view["checkpoint"]["state_hash"].clone(), view["rows"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn late_labels_are_replayed_to_the_bit() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let whole = run(folders[0].path(), "1000000", &[]).await;
    for outcome in ["learned", "expired", "waiting"] {
        assert!(whole.1[outcome].as_u64().unwrap() > 20, "{}", whole.1);
    }
    assert_eq!(run(folders[1].path(), "30", &[3, 11, 12, 18]).await, whole, "killed, with a checkpoint every 30 numbers");
    assert_eq!(run(folders[2].path(), "1000000", &[15]).await, whole, "killed, and all replayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_labels_teach_what_the_rows_would_have_taught_in_the_order_of_the_labels() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    make(&running.client, 1000).await;
    running.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    running.client.put("/v1/models/prompt", &points_model("points")).await.expect(201);
    running.client.post_json("/v1/streams/late/batches", &rows(0, 96, |_| false)).await.expect(202);
    let order = shuffled(96);
    running.client.post_json("/v1/streams/late/labels", &labels(order.iter().copied())).await.expect(202);
    let prompt: Vec<Value> = order.iter().map(|&row| points(row, 1)["rows"][0].clone()).collect();
    running.client.post_json("/v1/streams/points/batches", &json!({ "rows": prompt })).await.expect(202);
    running.client.caught_up("m").await;
    running.client.settled("prompt").await;
    running.stop().await;
    let running = Running::start(folder.path(), &[]).await;
    let hash = async |model: &str| {
        running.client.get(&format!("/v1/models/{model}")).await.expect(200)["checkpoint"]["state_hash"].clone()
    };
    assert_eq!(hash("m").await, hash("prompt").await);
    running.stop().await;
}
