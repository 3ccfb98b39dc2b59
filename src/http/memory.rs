//! The door of the process's memory: what models may hold together, and how they share it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Deserialize;

use super::App;
use super::problem::Problem;
use super::request;
use crate::memory::Amount;
use crate::model::budget::ProcessMemory;

pub(super) async fn get(State(app): State<Arc<App>>) -> Json<ProcessMemory> {
    Json(app.models.memory())
}

/// The body of `PUT /v1/memory-budget`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// Bytes, a text such as `"1GiB"`, or a percentage of what the ceiling leaves; null lifts the limit, and has to be said.
    #[serde(deserialize_with = "Option::deserialize")]
    budget: Option<Amount>,
    /// By model; those that are not named keep theirs.
    #[serde(default)]
    weights: BTreeMap<String, f64>,
}

pub(super) async fn put(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Json<ProcessMemory>, Problem> {
    let Budget { budget, weights } = request::json(&headers, body, app.body_limits).await?;
    app.blocking(move |app| {
        app.models.set_process_budget(budget, &weights)?;
        Ok(Json(app.models.memory()))
    })
    .await
}
