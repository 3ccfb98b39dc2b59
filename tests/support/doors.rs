//! Doors to the streams and models of a service, asked without a connection: a body that is refused unread resets none.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "for tests")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use axum::response::Response;
use http_body_util::BodyExt;
use mustela::http::body::BodyLimits;
use mustela::http::events::Feed;
use mustela::http::server::HangUp;
use mustela::http::{App, router};
use mustela::metrics::Metrics;
use mustela::model::predict::Predictor;
use mustela::shutdown::{self, Shutdown, Trigger};
use serde_json::Value;
use tower::ServiceExt;

use crate::support::{Answer, Running};

pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// A running service, and its doors.
pub struct Doors {
    pub running: Running,
    pub router: Router,
    /// Pulled or dropped, the doors drain.
    pub trigger: Trigger,
}

impl Doors {
    pub async fn open(folder: &Path, settings: &[(&str, &str)]) -> Doors {
        let running = Running::start(folder, settings).await;
        let (trigger, shutdown) = shutdown::channel();
        let router = doors_of(&running, shutdown, 30);
        Doors { running, router, trigger }
    }

    pub async fn ask(&self, method: &Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        ask(&self.router, method, path, headers, body).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.ask(&Method::PUT, path, &[JSON], body.to_string()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask(&Method::POST, path, &[JSON], body.to_string()).await
    }

    /// A path as it is now: with the version that its model serves when all is learned, where it names one.
    pub async fn now(&self, path: &str) -> String {
        let Some((model, after)) = path.split_once("/versions/") else { return path.to_owned() };
        let door = after.find('/').map_or("", |at| &after[at..]);
        let version = self.at_rest(model.rsplit('/').next().unwrap()).await;
        format!("{model}/versions/{version}{door}")
    }

    /// The version that a model serves when it has learned all.
    pub async fn at_rest(&self, model: &str) -> String {
        let began = Instant::now();
        loop {
            let view = self.running.client.get(&format!("/v1/models/{model}")).await.expect(200);
            let is_moving = view["lag_rows"] != 0 || view["rows"]["waiting"] != view["rows"]["waiting_for_label"];
            if !is_moving && view["published_version"] == view["version"] {
                return view["version"].as_str().unwrap().to_owned();
            }
            assert!(began.elapsed() < Duration::from_secs(60), "it still learns: {view}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn close(self) {
        drop((self.router, self.trigger));
        self.running.stop().await;
    }
}

/// Doors to the streams and models of a service, with limits of their own.
pub fn doors_of(running: &Running, shutdown: Shutdown, request_seconds: u64) -> Router {
    let metrics = Arc::new(Metrics::new().unwrap());
    router(Arc::new(App {
        streams: running.service.streams.clone(),
        models: running.service.models.clone(),
        predictor: Predictor::new(1, 1, 1, metrics.clone()).unwrap(),
        metrics,
        shutdown,
        body_limits: BodyLimits { encoded_bytes_max: BODY_BYTES_MAX, decoded_bytes_max: 2 * BODY_BYTES_MAX },
        request_seconds,
        wait_seconds_max: 25,
        feed: Feed::new(64),
    }))
}

pub async fn send(router: &Router, method: &Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut request = Request::builder().method(method).uri(path).extension(HangUp::default());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
}

/// Asks, and reads the answer whole; one without an end up to its first figures.
pub async fn ask(router: &Router, method: &Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let (head, mut body) = send(router, method, path, headers, body).await.into_parts();
    let is_endless = head.headers.get("content-type").is_some_and(|value| value == "text/event-stream");
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        bytes.extend_from_slice(&data);
        if is_endless && data.starts_with(b"event: figures") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}
