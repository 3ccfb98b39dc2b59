//! Streams: every format and encoding, acknowledgements, waiting for what was learned, overload, and a log that forgets what nobody
//! needs.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};
use support::{IN_ORDER, Running, points, points_model, points_schema};

const BATCHES: &str = "/v1/streams/points/batches";

#[tokio::test(flavor = "multi_thread")]
async fn every_format_and_encoding_gives_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    let rows = points(0, 48);
    let list = rows["rows"].as_array().unwrap();
    let number = |row: &Value, column: &str| row[column].as_f64().unwrap();
    let class = |row: &Value| ["north", "south", "east"].iter().position(|name| row["label"] == *name).unwrap() as u32;
    let lines: String = list.iter().map(|row| format!("{row}\n")).collect();
    let csv: String = list.iter().map(|row| format!("{},{},{}\n", row["label"].as_str().unwrap(), row["y"], row["x"])).collect();
    let features = list.iter().flat_map(|row| [number(row, "x") as f32, number(row, "y") as f32]);
    let mut raw: Vec<u8> = features.flat_map(f32::to_le_bytes).collect();
    raw.extend(list.iter().flat_map(|row| class(row).to_le_bytes()));
    let bodies = [
        ("application/json", rows.to_string().into_bytes()),
        ("application/json; charset=utf-8", serde_json::to_vec_pretty(&rows).unwrap()),
        ("application/x-ndjson", lines.into_bytes()),
        ("text/csv", format!("label,y,x\n{csv}").into_bytes()),
        ("application/octet-stream", raw),
    ];
    let mut predictions = Vec::new();
    for (number, (content_type, body)) in bodies.iter().enumerate() {
        for encoding in ["identity", "gzip", "zstd"] {
            let name = format!("s{number}-{encoding}");
            client.put(&format!("/v1/streams/{name}"), &points_schema()).await.expect(201);
            client.put(&format!("/v1/models/{name}"), &points_model(&name)).await.expect(201);
            let encoded = match encoding {
                "gzip" => {
                    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                    encoder.write_all(body).unwrap();
                    encoder.finish().unwrap()
                }
                "zstd" => zstd::bulk::compress(body, 1).unwrap(),
                _ => body.clone(),
            };
            let headers = [("content-type", *content_type), ("content-encoding", encoding)];
            let path = format!("/v1/streams/{name}/batches?wait=applied");
            let applied = client.send(Method::POST, &path, &headers, encoded).await.expect(200);
            assert_eq!((&applied["rows"], &applied["sequence"], &applied["applied"]), (&json!(48), &json!(48), &json!(true)));
            assert!(applied["loss"].as_f64().unwrap() > 0.0 && applied["accuracy"].is_number(), "{applied}");
            let row = json!({ "rows": [{ "x": 3.5, "y": 2.25 }] });
            predictions
                .push(client.post_json(&format!("/v1/models/{name}/predict"), &row).await.expect(200)["predictions"].clone());
        }
    }
    assert!(predictions.windows(2).all(|pair| pair[0] == pair[1]), "{predictions:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_post_is_one_batch_in_several_records() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let answer = client.post_json(BATCHES, &points(0, 2500)).await.expect(202);
    assert_eq!((&answer["first_sequence"], &answer["sequence"]), (&json!(1), &json!(2500)));
    let view = client.settled("m").await;
    assert_eq!(view["rows"]["learned"], 2500);
    // Records of 1024, 1024 and 452 rows, in steps of 16.
    assert_eq!(view["steps"], 64 + 64 + 29);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_too_far_behind_pushes_back_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut model = points_model("points");
    // Slow enough to fall behind: single rows through a wide network.
    model["step_rows"] = json!(1);
    model["network"] = json!({ "architecture": "mlp", "hidden": [512, 512] });
    model["overload"] = json!({ "policy": "backpressure", "lag_rows_max": 1000 });
    client.put("/v1/models/m", &model).await.expect(201);
    let (mut taken, mut refused) = (0, 0);
    for batch in 0..20 {
        let answer = client.post_json(BATCHES, &points(batch * 500, 500)).await;
        if answer.status == 429 {
            assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
            answer.expect_problem(429, "backpressure");
            refused += 1;
        } else {
            answer.expect(202);
            taken += 500;
        }
    }
    assert!(refused > 0 && taken >= 1000, "{taken} rows taken, {refused} batches refused");
    assert_eq!(client.settled("m").await["rows"]["learned"], taken);
    let text = running.metrics().await;
    assert!(
        text.contains(&format!("mustela_stream_refused_total{{reason=\"backpressure\",stream=\"points\"}} {refused}")),
        "{text}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_made_on_a_long_stream_does_not_stop_it() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.post_json(BATCHES, &points(0, 5000)).await.expect(202);
    let mut model = points_model("points");
    model["step_rows"] = json!(1);
    model["network"] = json!({ "architecture": "mlp", "hidden": [512, 512] });
    model["overload"] = json!({ "policy": "backpressure", "lag_rows_max": 100 });
    client.put("/v1/models/m", &model).await.expect(201);
    client.post_json(BATCHES, &points(0, 10)).await.expect(202);
    assert_eq!(client.settled("m").await["rows"]["learned"], 5010);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_refuses_and_lets_go_of_what_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("log.bytes_max", "16MiB"), ("log.retain_bytes", "16MiB"), ("checkpoint.interval_rows", "100")];
    let running = Running::start(folder.path(), &settings).await;
    let client = &running.client;
    let schema = json!({
        "fields": [{ "name": "t", "type": "tensor", "shape": [4096], "element": "f32" }],
        "target": { "name": "y", "type": "regression" },
    });
    client.put("/v1/streams/wide", &schema).await.expect(201);
    let body: Vec<u8> = (0..64 * 4097u32).flat_map(|word| (word as f32 * 1.37).sin().to_le_bytes()).collect();
    let post = async || client.post("/v1/streams/wide/batches", "application/octet-stream", body.clone()).await;
    let mut taken = 0;
    let refused = loop {
        let answer = post().await;
        match answer.status {
            202 => taken += 64,
            _ => break answer,
        }
        assert!(taken < 10_000, "the log is never full");
    };
    refused.expect_problem(507, "insufficient_storage");
    // A model learns it all; what its checkpoints no longer need makes room.
    let model = json!({ "kind": "network", "stream": "wide", "network": { "architecture": "linear" }, "learning_rate": 0.0001 });
    client.put("/v1/models/m", &model).await.expect(201);
    assert_eq!(client.settled("m").await["rows"]["accepted"], taken);
    for _ in 0..4 {
        post().await.expect(202);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_forgets_what_no_checkpoint_needs() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("log.retain_bytes", "0"), ("checkpoint.interval_rows", "100")];
    let running = Running::start(folder.path(), &settings).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    for batch in 0..30 {
        client.post_json(&format!("{BATCHES}?wait=applied"), &points(batch * 50, 50)).await.expect(200);
    }
    let stream = client.get("/v1/streams/points").await.expect(200);
    let first = stream["first_sequence"].as_u64().unwrap();
    assert!(first > 1000 && first <= 1401, "the two kept checkpoints need the rows from there on: {stream}");
    let key = [("content-type", "application/json"), ("idempotency-key", "k")];
    client.send(Method::POST, BATCHES, &key, points(1500, 50).to_string()).await.expect(202);
    client.settled("m").await;
    running.stop().await;
    let running = Running::start(folder.path(), &settings).await;
    let view = running.client.settled("m").await;
    assert_eq!((&view["version"], &view["rows"]["learned"]), (&json!("0.1550"), &json!(1550)));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_at_its_deadline_and_names_a_model_where_there_are_several() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let wait = format!("{BATCHES}?wait=applied");
    client.post_json(&wait, &points(0, 5)).await.expect_problem(422, "no_model");
    let mut slow = points_model("points");
    slow["step_rows"] = json!(1);
    slow["network"] = json!({ "architecture": "mlp", "hidden": [1024, 1024] });
    client.put("/v1/models/slow", &slow).await.expect(201);
    let answer = client.post_json(&format!("{wait}&timeout_seconds=0"), &points(0, 1000)).await.expect(202);
    assert_eq!((&answer["applied"], &answer["rows"], &answer["model"]), (&json!(false), &json!(1000), &json!("slow")));
    client.put("/v1/models/other", &points_model("points")).await.expect(201);
    client.post_json(&wait, &points(0, 5)).await.expect_problem(422, "model_wanted");
    client.put("/v1/streams/elsewhere", &points_schema()).await.expect(201);
    let of_other = "/v1/streams/elsewhere/batches?wait=applied&model=other";
    client.post_json(of_other, &points(0, 5)).await.expect_problem(422, "model_of_another_stream");
    client.delete("/v1/models/slow").await.expect(204);
    client.delete("/v1/models/other").await.expect(204);
    client.delete("/v1/streams/points").await.expect(204);
    client.get("/v1/streams/points").await.expect_problem(404, "not_found");
    // The name may be used again, and begins anew.
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    assert_eq!(client.post_json(BATCHES, &points(0, 5)).await.expect(202)["first_sequence"], 1);
    running.stop().await;
}
