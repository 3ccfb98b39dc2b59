//! Spans reach a collector of OpenTelemetry, with the numbers of the rows, as part of the client's trace; and where there is no
//! collector nobody waits for one.
#![cfg(feature = "otel")]
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use parking_lot::Mutex;
use reqwest::Method;
use support::{Process, points, points_model, points_schema};

/// What was posted to the collector.
type Posted = Arc<Mutex<Vec<u8>>>;

/// A collector that keeps what it is sent.
async fn collector() -> (String, Posted) {
    let posted = Posted::default();
    let take = async |State(posted): State<Posted>, body: Bytes| posted.lock().extend(body);
    let router = Router::new().route("/v1/traces", post(take)).with_state(posted.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let patience = mustela::http::server::Patience {
        connections_max: 16,
        header: Duration::from_secs(60),
        shutdown: Duration::from_secs(1),
    };
    let (trigger, shutdown) = mustela::shutdown::channel();
    let open = prometheus::IntGauge::new("open", "Not shown.").unwrap();
    tokio::spawn(async move {
        mustela::http::server::serve(listener, router, patience, shutdown, open).await;
        drop(trigger);
    });
    (format!("http://{address}"), posted)
}

fn service(endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mustela"));
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "100");
    command
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A field of protobuf that is text or bytes: its tag, its length, and itself.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// An attribute as OTLP writes it: KeyValue { key = 1, value = 2: AnyValue { string_value = 1 } }.
fn attribute(key: &str, value: &str) -> Vec<u8> {
    [field(0x0a, key.as_bytes()), field(0x12, &field(0x0a, value.as_bytes()))].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_reach_a_collector_with_the_numbers_of_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, posted) = collector().await;
    let process = Process::start_by(service(&endpoint), folder.path(), &[]);
    let client = process.client.clone();
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    for (parent, first) in [(parent.as_str(), 0), ("00-none-b7ad6b7169203331-01", 64)] {
        let headers = [("content-type", "application/json"), ("traceparent", parent)];
        let rows = points(first, 64).to_string();
        client.send(Method::POST, "/v1/streams/points/batches", &headers, rows).await.expect(202);
        client.settled("m").await;
    }
    assert_eq!(process.terminate(), Some(0));

    let bytes = posted.lock().clone();
    // Span { name = 5 }.
    for name in ["request", "decode", "commit", "step", "checkpoint"] {
        assert!(contains(&bytes, &field(0x2a, name.as_bytes())), "no span {name}");
    }
    for (key, value) in [("service.name", "mustela"), ("first_sequence", "1"), ("sequence", "64"), ("sequence", "128")] {
        assert!(contains(&bytes, &attribute(key, value)), "no {key} {value}");
    }
    let trace = u128::from_str_radix(trace, 16).unwrap().to_be_bytes();
    let parent = 0xb7ad_6b71_6920_3331_u64.to_be_bytes();
    // Span { trace_id = 1, parent_span_id = 4 }.
    assert!(contains(&bytes, &field(0x0a, &trace)), "the client's trace is not gone on with");
    assert_eq!(bytes.windows(10).filter(|window| *window == field(0x22, &parent)).count(), 1, "one valid traceparent was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_collector_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    // It accepts, and never answers.
    let process = Process::start_by(service(&endpoint), folder.path(), &[]);
    let client = process.client.clone();
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    for batch in 0..20 {
        client.post_json("/v1/streams/points/batches", &points(batch * 64, 64)).await.expect(202);
    }
    client.settled("m").await;
    let began = Instant::now();
    assert_eq!(process.terminate(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
