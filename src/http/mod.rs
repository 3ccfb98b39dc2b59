//! The doors. They decode, refuse and answer; they never touch a weight or a file.
//!
//! A request's way: [`server`] accepts the connection and bounds the time for its head, `watch` counts it, holds it to its
//! deadline and refuses it while the process drains, `request` and [`body`] read and decompress it under two caps, a door's own file
//! (`streams`, `models`, `memory`, `predict`, `guard`, `detectors`, `inference`, `health`, [`events`], `page`, `openapi`) answers, and whatever goes wrong
//! becomes a [`problem`].

pub mod body;
mod detectors;
pub mod events;
mod guard;
mod health;
mod inference;
mod memory;
mod models;
mod openapi;
mod page;
mod predict;
pub mod problem;
mod request;
pub mod server;
mod streams;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post, put};
use tower_http::catch_panic::CatchPanicLayer;

use crate::fold::PlanError;
use crate::metrics::Metrics;
use crate::model::budget::Overcommitted;
use crate::model::kind::SpecError;
use crate::model::live::ChangeError;
use crate::model::predict::{PredictError, Predictor};
use crate::model::registry::{Models, RegistryError};
use crate::shutdown::Shutdown;
use crate::stream::{StreamError, Streams};
use body::BodyLimits;
use events::Feed;
use problem::{Fault, Problem};

/// What every door may reach.
pub struct App {
    /// The streams.
    pub streams: Arc<Streams>,
    /// The models.
    pub models: Arc<Models>,
    /// Answers queries.
    pub predictor: Predictor,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Says when the process drains.
    pub shutdown: Shutdown,
    /// Shows whoever watches what there is.
    pub feed: Feed,
    /// Caps of bodies.
    pub body_limits: BodyLimits,
    /// The longest that a request may take, in seconds.
    pub request_seconds: u64,
    /// The longest that `?wait=applied` may take, in seconds.
    pub wait_seconds_max: u64,
}

impl App {
    /// Runs work that may wait for a disk, or takes long, beside the threads that serve connections.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (app, span) = (self.clone(), tracing::Span::current());
        tokio::task::spawn_blocking(move || span.in_scope(|| work(&app))).await.unwrap_or_else(|_| Err(Problem::internal()))
    }
}

/// Every door with its path, in groups of what a caller must be allowed to do. A table, so that a test can walk it.
pub fn doors() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    let read = [
        ("/v1/streams", get(streams::list)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{model}/predict", post(predict::predict)),
        ("/v1/detectors", get(detectors::list)),
        ("/v1/detectors/{detector}/detect", post(detectors::detect)),
        ("/v1/detectors/{detector}/evaluate", post(detectors::evaluate)),
        ("/v1/moderations", post(detectors::moderations::moderate)),
        ("/v1/events", get(events::watch)),
        ("/", get(page::page)),
        ("/assets/{file}", get(page::asset)),
    ];
    let ingest = [
        ("/v1/streams/{stream}/batches", post(streams::post_batch)),
        ("/v1/streams/{stream}/labels", post(streams::post_labels)),
        ("/v1/detectors/{detector}/examples", post(detectors::post_examples)),
    ];
    let administer = [
        ("/v1/streams/{stream}", put(streams::put).get(streams::get).delete(streams::delete)),
        ("/v1/models/{model}", put(models::put).get(models::get).patch(models::patch).delete(models::delete)),
        ("/v1/models/{model}/memory-budget", get(models::get_budget).put(models::put_budget)),
        ("/v1/models/{model}/plan", get(models::get_plan).put(models::put_plan)),
        ("/v1/models/{model}/frontier", get(models::get_frontier)),
        ("/v1/models/{model}/guard", get(guard::get).put(guard::put).delete(guard::delete)),
        ("/v1/memory-budget", get(memory::get).put(memory::put)),
        ("/v1/detectors/{detector}", put(detectors::put).get(detectors::get).delete(detectors::delete)),
        ("/v1/detectors/{detector}/calibrate", post(detectors::calibrate)),
        ("/v1/detectors/{detector}/adopt", post(detectors::adopt)),
        ("/v1/detectors/{detector}/transfer", post(detectors::transfer)),
    ];
    // The Open Inference Protocol: it reads only.
    let infer = [
        ("/v2", get(inference::server)),
        ("/v2/health/live", get(health::live)),
        ("/v2/health/ready", get(health::ready)),
        ("/v2/models/{model}", get(inference::model)),
        ("/v2/models/{model}/ready", get(inference::ready)),
        ("/v2/models/{model}/infer", post(inference::infer)),
        ("/v2/models/{model}/versions/{version}", get(inference::model)),
        ("/v2/models/{model}/versions/{version}/ready", get(inference::ready)),
        ("/v2/models/{model}/versions/{version}/infer", post(inference::infer)),
        ("/v2/repository/index", post(inference::index)),
    ];
    let describe = [
        ("/openapi.json", get(openapi::document)),
        ("/docs", get(openapi::docs)),
        ("/docs/", get(openapi::index)),
        ("/docs/{file}", get(openapi::file)),
    ];
    read.into_iter().chain(ingest).chain(administer).chain(infer).chain(describe).collect()
}

/// All doors, and what every request passes on its way to them.
pub fn router(app: Arc<App>) -> Router {
    doors()
        .into_iter()
        .fold(Router::new(), |router, (path, door)| router.route(path, door))
        .fallback(|uri: Uri| async move { Problem::no_route(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move { Problem::method_not_allowed(&method, uri.path()) })
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            axum::response::IntoResponse::into_response(Problem::internal())
        }))
        .layer(from_fn_with_state(app.clone(), watch::watch))
        .with_state(app)
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        let detail = error.to_string();
        match error {
            StreamError::NotFound(name) => Problem::not_found("stream", &name),
            StreamError::Conflict(_) => Problem::conflict("stream_exists", detail),
            StreamError::Invalid(_) => Problem::unprocessable("invalid_stream", detail),
            StreamError::KeyReused => Problem::unprocessable("idempotency_key_reused", detail),
            StreamError::KeyInFlight => Problem::conflict("idempotency_key_in_flight", detail),
            StreamError::Full { .. } => Problem::insufficient_storage(detail),
            StreamError::Storage(_) => Problem::storage(detail),
            // What is in the log stays as it is, however often it is read.
            StreamError::Corrupt { .. } => Problem::unavailable("storage", detail),
        }
    }
}

impl From<crate::stream::decode::DecodeError> for Problem {
    fn from(error: crate::stream::decode::DecodeError) -> Self {
        let faults =
            error.faults.iter().map(|fault| Fault { row: fault.row, column: fault.column.clone(), reason: fault.reason.clone() });
        Problem::unprocessable("invalid_rows", error.to_string()).with_errors(faults).with("errors_total", error.total)
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let detail = error.to_string();
        match error {
            RegistryError::NotFound(name) => Problem::not_found("model", &name),
            RegistryError::Conflict(_) => Problem::conflict("model_exists", detail),
            RegistryError::Invalid(_) => Problem::unprocessable("invalid_model", detail),
            RegistryError::InUse { .. } => Problem::conflict("stream_in_use", detail),
            RegistryError::Guards { .. } => Problem::conflict("detector_in_use", detail),
            RegistryError::Stream(error) => error.into(),
            RegistryError::Change(error) => error.into(),
            RegistryError::Overcommitted(Overcommitted { budget_bytes, minimum_bytes }) => {
                Problem::unprocessable("process_budget_below_minimum", detail)
                    .with("budget_bytes", budget_bytes)
                    .with("minimum_bytes", minimum_bytes)
            }
            RegistryError::AboveCeiling { budget_bytes, most_bytes } => Problem::unprocessable("budget_above_ceiling", detail)
                .with("budget_bytes", budget_bytes)
                .with("most_bytes", most_bytes),
            RegistryError::Weight(_) => Problem::unprocessable("invalid_weight", detail),
            RegistryError::Spec(SpecError::BelowMinimum(below)) => below.into(),
            RegistryError::Spec(SpecError::Fold(_)) | RegistryError::Model(_) => Problem::unavailable("model", detail),
            RegistryError::Spec(_) => Problem::unprocessable("invalid_model", detail),
            RegistryError::Storage(_) => Problem::storage(detail),
        }
    }
}

impl From<crate::fold::BelowMinimum> for Problem {
    fn from(below: crate::fold::BelowMinimum) -> Self {
        Problem::unprocessable("budget_below_minimum", below.to_string())
            .with("budget_bytes", below.budget_bytes)
            .with("minimum_bytes", below.minimum_bytes)
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::BelowMinimum(below) => below.into(),
            ChangeError::Plan(PlanError::OverBudget { planned_bytes, budget_bytes }) => {
                Problem::unprocessable("plan_over_budget", error.to_string())
                    .with("planned_bytes", planned_bytes)
                    .with("budget_bytes", budget_bytes)
            }
            ChangeError::Plan(PlanError::Refused(_)) => Problem::unprocessable("invalid_plan", error.to_string()),
            ChangeError::Refused(_) => Problem::unprocessable("invalid_change", error.to_string()),
            ChangeError::Failed(_) => Problem::conflict("model_failed", error.to_string()),
            ChangeError::Gone(name) => Problem::not_found("model", &name),
            ChangeError::Busy(_) => Problem { retry_after: Some(1), ..Problem::unavailable("model_busy", error.to_string()) },
            ChangeError::Storage(_) => Problem::storage(error.to_string()),
        }
    }
}

impl From<PredictError> for Problem {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Busy(_) => Problem::too_many_requests("predict_queue_full", error.to_string(), 1),
            PredictError::Stopping => Problem::draining(),
            PredictError::Unavailable(_) => Problem::unavailable("model_failed", error.to_string()),
            PredictError::Refused(_) => Problem::unprocessable("invalid_rows", error.to_string()),
        }
    }
}
