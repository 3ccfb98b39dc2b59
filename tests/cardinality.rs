//! The number of series in `/metrics` follows from the streams and models that are there, and from nothing that a client says.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;
use support::{Client, Running, points, points_model, points_schema};

/// Names, paths, methods, media types and keys that clients make up.
const TURNS: usize = 1000;
/// Of these turns, those that make a model too, which takes longer than all else.
const MODEL_TURNS: usize = 40;
/// Clients at once.
const CLIENTS: usize = 4;

/// Every label that there is.
const LABELS: [&str; 15] = [
    "decision", "kind", "le", "listener", "method", "model", "outcome", "part", "policy", "reason", "route", "status", "stream",
    "version", "window",
];

/// Series of a stream of whose rows some were accepted and some refused.
const OF_STREAM: usize = 5;
/// Series of an empty stream.
const OF_EMPTY_STREAM: usize = 2;

/// Lines that are series, but for the one that a model has from its first drift on.
fn count(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("mustela_model_drift_sequence")).count()
}

/// The names of all labels.
fn labels(text: &str) -> BTreeSet<&str> {
    let inside = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('{'));
    // No value that is allowed has a comma or an equals sign in it.
    inside.flat_map(|(_, rest)| rest.split(',').filter_map(|label| Some(label.split_once('=')?.0))).collect()
}

async fn json(client: &Client, method: Method, path: &str, body: &str) -> u16 {
    client.send(method, path, &[("content-type", "application/json")], body.to_owned()).await.status
}

/// One of everything that a client may make up.
async fn turn(client: &Client, number: usize) {
    let made_up = format!("made-up-{number}");
    assert_eq!(client.get(&format!("/{made_up}/{made_up}?{made_up}={made_up}")).await.status, 404);
    let method = Method::from_bytes(format!("MADE{number}").as_bytes()).unwrap();
    assert_eq!(client.send(method, "/v1/streams", &[], "").await.status, 405);
    for of in ["streams", "models"] {
        assert_eq!(client.get(&format!("/v1/{of}/{made_up}")).await.status, 404);
        assert_eq!(client.delete(&format!("/v1/{of}/{made_up}")).await.status, 404);
    }
    let rows = points(number, 1).to_string();
    assert_eq!(json(client, Method::POST, &format!("/v1/streams/{made_up}/batches"), &rows).await, 404);
    assert_eq!(json(client, Method::POST, &format!("/v1/models/{made_up}/predict"), &rows).await, 404);
    let schema = points_schema().to_string();
    assert_eq!(json(client, Method::PUT, &format!("/v1/streams/{made_up}%20no%20name"), &schema).await, 422);
    assert_eq!(json(client, Method::PUT, &format!("/v1/models/{made_up}"), &points_model(&made_up).to_string()).await, 422);
    let batches = "/v1/streams/there/batches";
    let media_type = format!("application/{made_up}");
    assert_eq!(client.post(batches, &media_type, rows.clone()).await.status, 415);
    let headers =
        [("content-type", "application/json"), ("idempotency-key", made_up.as_str()), ("x-request-id", made_up.as_str())];
    assert_eq!(client.send(Method::POST, batches, &headers, rows.clone()).await.status, 202);
    let row = json!({ "rows": [{ made_up.as_str(): 1 }] }).to_string();
    assert_eq!(json(client, Method::POST, batches, &row).await, 422);

    assert_eq!(json(client, Method::PUT, &format!("/v1/streams/{made_up}"), &schema).await, 201);
    assert_eq!(json(client, Method::POST, &format!("/v1/streams/{made_up}/batches"), &rows).await, 202);
    assert_eq!(json(client, Method::POST, &format!("/v1/streams/{made_up}/batches"), &row).await, 422);
    if number.is_multiple_of(TURNS / MODEL_TURNS) {
        let spec = points_model(&made_up).to_string();
        assert_eq!(json(client, Method::PUT, &format!("/v1/models/{made_up}"), &spec).await, 201);
        assert_eq!(json(client, Method::POST, &format!("/v1/models/{made_up}/predict"), &rows).await, 200);
        assert_eq!(client.delete(&format!("/v1/models/{made_up}")).await.status, 204);
    }
    assert_eq!(client.delete(&format!("/v1/streams/{made_up}")).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_make_up_is_no_series() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = running.client.clone();
    client.put("/v1/streams/there", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("there")).await.expect(201);
    // Each door has answered in each way, and the model has done all that it does.
    turn(&client, 0).await;
    client.settled("m").await;
    client.get("/v1/models/m").await.expect(200);
    let before = running.metrics().await;

    let mut clients = tokio::task::JoinSet::new();
    for first in 0..CLIENTS {
        let client = client.clone();
        clients.spawn(async move {
            for number in (first + 1..TURNS).step_by(CLIENTS) {
                turn(&client, number).await;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    client.settled("m").await;
    let after = running.metrics().await;
    assert_eq!(count(&after), count(&before), "{after}");
    assert!(!after.contains("made") && !after.contains("MADE"), "{after}");
    let known = LABELS.into_iter().collect();
    assert!(labels(&after).is_subset(&known), "{:?}", labels(&after));

    // What is there has its series, the same number each.
    for (number, rows) in [(1, 0), (2, 1), (3, 1)] {
        let (was, name) = (count(&running.metrics().await), format!("/v1/streams/more-{number}"));
        client.put(&name, &points_schema()).await.expect(201);
        if rows > 0 {
            client.post_json(&format!("{name}/batches"), &points(0, rows)).await.expect(202);
            client.post_json(&format!("{name}/batches"), &json!({ "rows": [{}] })).await.expect_problem(422, "invalid_rows");
        }
        let of_stream = if rows > 0 { OF_STREAM } else { OF_EMPTY_STREAM };
        assert_eq!(count(&running.metrics().await) - was, of_stream, "of stream {number}");
    }
    running.stop().await;
}
