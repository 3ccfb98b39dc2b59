//! Whether the process lives, and whether it takes work. Bodies are JSON, because clients of the Open Inference Protocol read
//! them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::App;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v2/health/live", get(live)).route("/v2/health/ready", get(ready))
}

async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// False as soon as draining begins, so that a load balancer sends nothing more.
async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let ready = !app.shutdown.is_draining();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready })))
}
