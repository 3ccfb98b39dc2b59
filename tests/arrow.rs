//! Arrow IPC streams over HTTP: posted as any format is, learned to the same bits, and given as an answer to whoever asks for them.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use reqwest::Method;
use serde_json::{Value, json};
use support::{IN_ORDER, Running, points, points_model, points_schema};

const ARROW: &str = "application/vnd.apache.arrow.stream";

fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// The rows of `points` as a stream.
fn arrow(rows: &Value) -> Vec<u8> {
    let rows = rows["rows"].as_array().unwrap();
    let numbers = |of: &str| -> ArrayRef { Arc::new(rows.iter().map(|row| row[of].as_f64()).collect::<Float64Array>()) };
    let labels: ArrayRef = Arc::new(rows.iter().map(|row| row["label"].as_str()).collect::<StringArray>());
    stream(vec![("label", labels), ("y", numbers("y")), ("x", numbers("x"))])
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_learned_as_from_json_and_predictions_are_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    for (name, batches) in [("a", "/v1/streams/a/batches"), ("b", "/v1/streams/b/batches")] {
        client.put(&format!("/v1/streams/{name}"), &points_schema()).await.expect(201);
        client.put(&format!("/v1/models/{name}"), &points_model(name)).await.expect(201);
        for first in [0, 200] {
            let rows = points(first, 200);
            match name {
                "a" => client.post_json(batches, &rows).await.expect(202),
                _ => client.post(batches, ARROW, arrow(&rows)).await.expect(202),
            };
        }
        client.settled(name).await;
    }
    let rows = json!({ "rows": [{ "x": 0.5, "y": 4.0 }, { "x": 20.0, "y": 3.0 }] });
    let told = client.post_json("/v1/models/a/predict?", &rows).await.expect(200);
    let columns: Vec<(&str, ArrayRef)> =
        vec![("x", Arc::new(Float64Array::from(vec![0.5, 20.0]))), ("y", Arc::new(Float64Array::from(vec![4.0, 3.0])))];
    let headers = [("content-type", ARROW), ("accept", "application/json;q=0.5, Application/vnd.apache.arrow.stream")];
    let (status, headers, body) =
        client.raw(Method::POST, "/v1/models/b/predict", &headers, stream(columns.clone())).await.unwrap();
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, ARROW));
    let batch = StreamReader::try_new(body.as_slice(), None).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.schema().metadata()["model_version"], told["model_version"].as_str().unwrap());
    let class = batch["class"].as_primitive::<UInt32Type>();
    let label = batch["label"].as_string::<i32>();
    let lists = batch["probabilities"].as_fixed_size_list();
    for (row, prediction) in told["predictions"].as_array().unwrap().iter().enumerate() {
        assert_eq!(u64::from(class.value(row)), prediction["class"]);
        assert_eq!(label.value(row), prediction["label"]);
        let numbers: Vec<f64> = lists.value(row).as_primitive::<Float32Type>().values().iter().map(|&n| f64::from(n)).collect();
        let told: Vec<f64> =
            prediction["probabilities"].as_array().unwrap().iter().map(|n| f64::from(n.as_f64().unwrap() as f32)).collect();
        assert_eq!(numbers, told);
    }
    // Without `Accept` the answer is JSON, whatever was posted.
    let answer = client.post("/v1/models/b/predict", ARROW, stream(columns)).await.expect(200);
    assert_eq!(answer["predictions"], told["predictions"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_stream_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/a", &points_schema()).await.expect(201);
    let mut rows = points(0, 50);
    rows["rows"][33]["x"] = Value::Null;
    let problem = client.post("/v1/streams/a/batches", ARROW, arrow(&rows)).await.expect_problem(422, "invalid_rows");
    assert_eq!((&problem["errors"][0]["row"], &problem["errors"][0]["column"]), (&json!(33), &json!("x")));
    let whole = arrow(&points(0, 50));
    for body in [b"ARROW1\0\0".to_vec(), whole[..whole.len() / 2].to_vec(), Vec::new(), vec![0xff; 1000]] {
        client.post("/v1/streams/a/batches", ARROW, body).await.expect_problem(422, "invalid_rows");
    }
    assert_eq!(client.get("/v1/streams/a").await.expect(200)["sequence"], 0);
    running.stop().await;
}
