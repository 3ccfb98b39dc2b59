//! Promise 3 at the door: whatever is posted, a clear 4xx as problem+json, nothing learned, nothing lost.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};
use support::{Client, Running, points, points_model, points_schema};

const BATCHES: &str = "/v1/streams/points/batches";
const JSON: (&str, &str) = ("content-type", "application/json");

async fn running(folder: &tempfile::TempDir) -> Running {
    let settings = [("http.body_bytes_max", "1MiB"), ("http.decoded_bytes_max", "4MiB")];
    let running = Running::start(folder.path(), &settings).await;
    running.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    running.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    running
}

/// After all refusals: a good batch is learned, and it is the first one.
async fn nothing_happened(client: &Client) {
    let answer = client.post_json(BATCHES, &points(0, 10)).await.expect(202);
    assert_eq!((&answer["first_sequence"], &answer["sequence"]), (&json!(1), &json!(10)));
    let view = client.settled("m").await;
    assert_eq!((&view["rows"]["learned"], &view["rows"]["accepted"]), (&json!(10), &json!(10)));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_cannot_be_are_named_by_row_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let good = json!({ "x": 1.0, "y": 2.0, "label": "south" });
    for (bad, column) in [
        (json!({ "x": "tall", "y": 2.0, "label": "south" }), "x"),
        (json!({ "x": 1.0, "y": null, "label": "south" }), "y"),
        (json!({ "x": 1e300, "y": 2.0, "label": "south" }), "x"),
        (json!({ "x": 1.0, "label": "south" }), "y"),
        (json!({ "x": 1.0, "y": 2.0 }), "label"),
        (json!({ "x": 1.0, "y": 2.0, "label": "west" }), "label"),
        (json!({ "x": 1.0, "y": 2.0, "label": 3 }), "label"),
        (json!({ "x": 1.0, "y": 2.0, "label": -1 }), "label"),
        (json!({ "x": 1.0, "y": 2.0, "label": "south", "z": 1 }), "z"),
    ] {
        let body = json!({ "rows": [good, good, bad, good] });
        let problem = client.post_json(BATCHES, &body).await.expect_problem(422, "invalid_rows");
        assert_eq!((&problem["errors"][0]["row"], &problem["errors"][0]["column"]), (&json!(2), &json!(column)), "{problem}");
    }
    for (content_type, body) in [
        ("application/x-ndjson", "{\"x\":1,\"y\":2,\"label\":\"south\"}\n{\"x\":NaN,\"y\":2,\"label\":\"south\"}\n"),
        ("text/csv", "x,y,label\n1,2,south\n1,NaN,south\n"),
        ("text/csv", "x,y,label\n1,2,south\n1,inf,south\n"),
        ("text/csv", "x,y,label\n1,2,south\n1,2\n"),
        ("text/csv", "x,y,z,label\n1,2,3,south\n"),
        ("text/csv", "x,label\n1,south\n"),
        ("text/csv", ""),
        ("text/csv", "x,y,label\n1,2,\"south"),
        ("application/json", "{\"rows\":[]}"),
        ("application/json", "{\"rows\":[{\"x\":1,\"x\":1,\"y\":2,\"label\":\"south\"}]}"),
        ("application/json", "{\"rows\":[{\"x\":1e999,\"y\":2,\"label\":\"south\"}]}"),
        ("application/json", "{\"rows\":["),
        ("application/json", "[[[[["),
        ("application/json", "\u{feff}{}"),
    ] {
        let problem = client.post(BATCHES, content_type, body).await.expect_problem(422, "invalid_rows");
        assert!(!problem["errors"].as_array().unwrap().is_empty(), "{problem}");
    }
    // Tensors of another shape, in a post and in a query.
    let tensor = json!({ "fields": [{ "name": "t", "type": "tensor", "shape": [2, 3], "element": "u8" }] });
    client.put("/v1/streams/tensors", &tensor).await.expect(201);
    for shape in
        [json!([1, 2, 3]), json!([[1, 2], [3, 4], [5, 6]]), json!([[[1, 2, 3], [4, 5, 6]]]), json!([[1, 2, 3], [4, 5, 256]])]
    {
        let body = json!({ "rows": [{ "t": [[1, 2, 3], [4, 5, 6]] }, { "t": shape }] });
        let problem = client.post_json("/v1/streams/tensors/batches", &body).await.expect_problem(422, "invalid_rows");
        assert_eq!((&problem["errors"][0]["row"], &problem["errors"][0]["column"]), (&json!(1), &json!("t")), "{problem}");
    }
    assert_eq!(client.get("/v1/streams/tensors").await.expect(200)["sequence"], 0);
    // Raw: NaN, a class beyond the last, and a length that is no number of rows.
    let raw = |x: f32, class: u32| [x.to_le_bytes(), 2f32.to_le_bytes(), class.to_le_bytes()].concat();
    for body in [raw(f32::NAN, 1), raw(f32::INFINITY, 1), raw(1.0, 3), raw(1.0, 1)[..11].to_vec(), Vec::new()] {
        client.post(BATCHES, "application/octet-stream", body).await.expect_problem(422, "invalid_rows");
    }
    client.post(BATCHES, "application/json", "[".repeat(500_000)).await.expect_problem(422, "invalid_rows");
    nothing_happened(client).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_much_are_refused_before_they_cost() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let encoded = |encoding: &'static str| [JSON, ("content-encoding", encoding)];
    let post = async |encoding: &'static str, body: Vec<u8>| client.send(Method::POST, BATCHES, &encoded(encoding), body).await;

    // A bomb: 64 MiB of blanks in 64 kB.
    let bomb = gzip(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < 1 << 20);
    post("gzip", bomb).await.expect_problem(413, "decoded_too_large");
    let whole = gzip(points(0, 50).to_string().as_bytes());
    post("gzip", whole[..whole.len() / 2].to_vec()).await.expect_problem(422, "truncated_body");
    post("gzip", b"not gzip at all".to_vec()).await.expect_problem(422, "corrupt_body");
    post("zstd", b"not zstd at all".to_vec()).await.expect_problem(422, "corrupt_body");
    post("br", b"anything".to_vec()).await.expect_problem(415, "unsupported_encoding");
    post("gzip, gzip", gzip(&whole)).await.expect_problem(415, "unsupported_encoding");
    client.post(BATCHES, "application/json", vec![b' '; (1 << 20) + 1]).await.expect_problem(413, "body_too_large");
    client.post(BATCHES, "application/x-pickle", "x").await.expect_problem(415, "unsupported_content_type");
    client.post(BATCHES, "", "x").await.expect_problem(415, "unsupported_content_type");
    nothing_happened(client).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_that_is_only_announced_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let address = running.service.address;
    let answer = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let head = "POST /v1/streams/points/batches HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n";
        socket.write_all(head.as_bytes()).unwrap();
        let mut answer = vec![0; 4096];
        let read = socket.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    })
    .await
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    nothing_happened(&running.client).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_404_and_keys_are_held_to_their_bodies() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let row = json!({ "rows": [{ "x": 1, "y": 2 }] });
    client.post_json("/v1/models/nobody/predict", &row).await.expect_problem(404, "not_found");
    client.get("/v1/models/nobody").await.expect_problem(404, "not_found");
    client.post_json("/v1/streams/nowhere/batches", &points(0, 1)).await.expect_problem(404, "not_found");
    client.get("/v1/nothing").await.expect_problem(404, "no_such_route");
    client.delete(BATCHES).await.expect_problem(405, "method_not_allowed");
    client
        .post_json("/v1/streams/points/batches?wait=applied&model=nobody", &points(0, 1))
        .await
        .expect_problem(404, "not_found");
    client.post_json("/v1/streams/points/batches?wait=never", &points(0, 1)).await.expect_problem(400, "invalid_request");
    client.post("/v1/models/m/predict", "application/json", "{\"rows\":[{\"x\":1}]}").await.expect_problem(422, "invalid_rows");

    let keyed = |key: &'static str| [JSON, ("idempotency-key", key)];
    let send = async |key: &'static str, body: Value| client.send(Method::POST, BATCHES, &keyed(key), body.to_string()).await;
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    client.send(Method::POST, BATCHES, &twice, "{}").await.expect_problem(400, "invalid_idempotency_key");
    send("", points(0, 10)).await.expect_problem(400, "invalid_idempotency_key");
    let first = send("a", points(0, 10)).await.expect(202);
    assert_eq!(send("a", points(0, 10)).await.expect(202), first);
    send("a", points(1, 10)).await.expect_problem(422, "idempotency_key_reused");
    let second = send("b", points(1, 10)).await.expect(202);
    assert_eq!(second["first_sequence"], 11);
    assert_eq!(client.settled("m").await["rows"]["learned"], 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_take_all_memory_is_refused_before_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("model.memory_bytes_max", "8MiB")];
    let running = Running::start(folder.path(), &settings).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut model = points_model("points");
    model["network"] = json!({ "architecture": "mlp", "hidden": [100_000_000] });
    let problem = client.put("/v1/models/m", &model).await.expect_problem(422, "budget_below_minimum");
    assert_eq!(problem["budget_bytes"], 8 << 20);
    assert!(problem["minimum_bytes"].as_u64().unwrap() > 1 << 30, "{problem}");
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let lifted = client.put("/v1/models/m/memory-budget", &json!({ "budget": null })).await.expect(200);
    assert!(lifted["planned_bytes"].as_u64().unwrap() <= 8 << 20);

    let schema = json!({
        "fields": [{ "name": "x", "type": "numeric" }], "target": { "name": "y", "type": "classes", "classes": 65_536 },
    });
    client.put("/v1/streams/many", &schema).await.expect(201);
    let linear = json!({ "kind": "network", "stream": "many", "network": { "architecture": "linear" }, "step_rows": 1 });
    client.put("/v1/models/many", &linear).await.expect(201);
    let rows = |count: usize| format!("x\n{}", "1\n".repeat(count));
    client.post("/v1/models/many/predict", "text/csv", rows(17)).await.expect_problem(422, "too_many_rows");
    client.post("/v1/models/many/predict", "text/csv", rows(2)).await.expect(200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let numeric = |name: &str| json!({ "name": name, "type": "numeric" });
    let tensor = |shape: Value| json!({ "fields": [{ "name": "t", "type": "tensor", "shape": shape, "element": "f32" }] });
    for schema in [
        json!({ "fields": [] }),
        json!({ "fields": [numeric("a"), numeric("a")] }),
        json!({ "fields": [numeric("")] }),
        json!({ "fields": [numeric("a")], "target": { "name": "a", "type": "regression" } }),
        json!({ "fields": [numeric("a")], "target": { "name": "b", "type": "classes", "classes": 1 } }),
        json!({ "fields": [numeric("a")], "target": { "name": "b", "type": "classes", "classes": ["x", "x"] } }),
        json!({ "fields": [{ "name": "a", "type": "image", "side": 4 }] }),
        tensor(json!([])),
        tensor(json!([0, 3])),
        tensor(json!([4_294_967_296_u64, 4_294_967_296_u64])),
    ] {
        client.put("/v1/streams/bad", &schema).await.expect_problem(422, "invalid_stream");
    }
    let in_order = "[[{\"name\":\"a\",\"type\":\"numeric\"}],null]";
    for body in ["{\"fields\":[{\"name\":\"a\",\"type\":\"numeric\"}],\"colour\":1}", "{\"fields\":7}", "{}", in_order] {
        client.send(Method::PUT, "/v1/streams/bad", &[JSON], body).await.expect_problem(422, "invalid_body");
    }
    client.send(Method::PUT, "/v1/streams/bad", &[JSON], "{").await.expect_problem(400, "invalid_json");
    for name in ["Upper", "-dash", "a.b", "a%2Fb", &"n".repeat(65)] {
        client.put(&format!("/v1/streams/{name}"), &points_schema()).await.expect_problem(422, "invalid_stream");
    }
    client.put("/v1/streams/points", &points_schema()).await.expect(200);
    client.put("/v1/streams/points", &json!({ "fields": [numeric("a")] })).await.expect_problem(409, "stream_exists");
    client.get("/v1/streams/bad").await.expect_problem(404, "not_found");
    nothing_happened(client).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_while_still_sending_hears_why() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    // More than sockets hold, so that the refusal comes while it is being sent.
    let body = vec![b' '; 20 << 20];
    for path in ["/v1/streams/nowhere/batches", "/v1/models/nobody/predict"] {
        running.client.post(path, "application/json", body.clone()).await.expect_problem(404, "not_found");
    }
    running.stop().await;
}
