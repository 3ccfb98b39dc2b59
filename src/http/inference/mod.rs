//! The doors of the Open Inference Protocol V2 (KServe, Triton), so that its clients work unchanged: a model's inputs are one tensor for
//! each field of its stream, its outputs what a prediction says, its version the epoch and sequence of the snapshot that answers.
//!
//! Binary tensors (`Inference-Header-Content-Length`) are the protocol's extension that `tritonclient` uses by default.

mod outputs;
mod request;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::body;
use super::predict::ask_guarded;
use super::problem::Problem;
use crate::model::live::Live;
use crate::rows::Element;
use crate::stream::decode::decode_tensors;
use crate::stream::schema::Field;

/// What the server is.
pub(super) async fn server() -> Json<Value> {
    Json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data", "model_repository"],
    }))
}

/// What each model is, in the shape of the repository extension.
pub(super) async fn index(State(app): State<Arc<App>>) -> Json<Value> {
    let entry = |live: &Arc<Live>| {
        let (version, failure) = (live.published().version, live.status_lent().failure.clone());
        let state = if failure.is_some() { "UNAVAILABLE" } else { "READY" };
        json!({ "name": live.name, "version": version, "state": state, "reason": failure.unwrap_or_default() })
    };
    Json(app.models.list().iter().map(entry).collect())
}

/// What a model takes and gives; 404 for a version that is not the one that is served.
pub(super) async fn model(State(app): State<Arc<App>>, Path(path): Path<ModelPath>) -> Result<Json<Value>, Problem> {
    let live = path.find(&app)?;
    let input = |field: &Field| {
        let (datatype, of_row) = match (field.tensor(), field) {
            (Some((shape, Element::U8)), _) => ("UINT8", shape),
            (Some((shape, Element::F32)), _) => ("FP32", shape),
            (None, Field::Numeric { .. }) => ("FP32", Vec::new()),
            (None, _) => ("BYTES", Vec::new()),
        };
        let shape: Vec<i64> = [-1].into_iter().chain(of_row.iter().map(|&size| size as i64)).collect();
        json!({ "name": field.name(), "datatype": datatype, "shape": shape })
    };
    Ok(Json(json!({
        "name": live.name,
        "versions": [live.published().version],
        "platform": format!("mustela_{}", live.spec.kind),
        "inputs": live.stream.schema.fields.iter().map(input).collect::<Vec<_>>(),
        "outputs": outputs::described(&live.stream.schema),
    })))
}

/// Whether a model learns and answers. One that stands still is not ready, though its last snapshot goes on answering.
pub(super) async fn ready(State(app): State<Arc<App>>, Path(path): Path<ModelPath>) -> Result<Response, Problem> {
    let live = path.find(&app)?;
    let ready = live.status_lent().failure.is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({ "name": live.name, "ready": ready }))).into_response())
}

/// Tensors in, tensors out.
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Path(path): Path<ModelPath>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let began = Instant::now();
    let admitted = path.find(&app).and_then(|live| Ok((live, request::head_bytes(&headers)?)));
    let ((live, head_bytes), body) = body::unless_refused(admitted, body, app.body_limits).await?;
    let bytes = body::read(&headers, body, app.body_limits).await?;
    let stream = live.stream.clone();
    let read = move |_: &App| {
        let request = request::read(&bytes, head_bytes, &stream.schema)?;
        let rows = decode_tensors(&stream.schema, &request.inputs, bytes.len())?;
        Ok((request.asked, rows))
    };
    let (asked, rows) = app.blocking(read).await?;
    let (answer, judged) = ask_guarded(&app, &live, rows, began).await?;
    // A newer snapshot may have come between.
    path.check(&answer.version.to_string())?;
    app.blocking(move |_| outputs::answer(&live, &answer, judged.as_ref(), &asked)).await
}

/// The model that a path names, and its version where it names one.
#[derive(Debug, serde::Deserialize)]
pub(super) struct ModelPath {
    model: String,
    version: Option<String>,
}

impl ModelPath {
    fn find(&self, app: &App) -> Result<Arc<Live>, Problem> {
        let live = app.models.get(&self.model)?;
        self.check(&live.published().version.to_string())?;
        Ok(live)
    }

    /// Live models move on: only the newest version answers, and whoever names another is told which that is.
    fn check(&self, served: &str) -> Result<(), Problem> {
        match &self.version {
            Some(version) if version != served => {
                let detail = format!("model `{}` serves version {served}, not `{version}`", self.model);
                Err(Problem::new(StatusCode::NOT_FOUND, "version_not_served", detail).with("model_version", served))
            }
            _ => Ok(()),
        }
    }
}
