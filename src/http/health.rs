//! Whether the process lives, and whether it takes work. Bodies are JSON, because clients of the Open Inference Protocol read
//! them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::App;

pub(super) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// False as soon as draining begins, so that a load balancer sends nothing more.
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let ready = !app.shutdown.is_draining();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready })))
}
