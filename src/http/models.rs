//! The doors of models: making them, looking at them, and their memory budget.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytesize::ByteSize;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::problem::Problem;
use super::request;
use crate::allocator;
use crate::fold::Score;
use crate::ledger::{Ledger, Part};
use crate::model::live::Live;
use crate::model::registry::RegistryError;
use crate::model::spec::ModelSpec;
use crate::model::status::Status;
use crate::stream::StreamError;

pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let spec: ModelSpec = request::json(&headers, body, app.body_limits).await?;
    let (live, created) = app
        .blocking(move |app| match app.models.create(&name, spec, None) {
            // The path is the model's: that the body names no stream makes the body wrong, and not the path.
            Err(RegistryError::Stream(StreamError::NotFound(stream))) => {
                Err(Problem::unprocessable("unknown_stream", format!("there is no stream `{stream}`")))
            }
            created => Ok(created?),
        })
        .await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(view(&live))).into_response())
}

pub(super) async fn get(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(view(&*app.models.get(&name)?)))
}

/// The list that OpenAI's clients read, with our own fields beside theirs.
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app.models.list().iter().map(|live| view(live)).collect();
    Json(json!({ "object": "list", "data": data }))
}

pub(super) async fn delete(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.blocking(move |app| {
        app.models.delete(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// What may change while a model lives; each change is a decision.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    learning_rate: f64,
}

pub(super) async fn patch(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let live = app.models.get(&name)?;
    let Patch { learning_rate } = request::json(&headers, body, app.body_limits).await?;
    live.set_learning_rate(learning_rate).await?;
    Ok(Json(view(&live)))
}

pub(super) async fn get_plan(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(plan(&*app.models.get(&name)?)))
}

/// A plan that a person wrote, followed by a decision like any other; the next change of the budget chooses anew.
pub(super) async fn put_plan(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let live = app.models.get(&name)?;
    let wish: Value = request::json(&headers, body, app.body_limits).await?;
    live.set_plan(wish).await?;
    Ok(Json(plan(&live)))
}

/// Every plan that no other one beats in both bytes and what it brings; null for a kind with only one.
pub(super) async fn get_frontier(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let live = app.models.get(&name)?;
    let frontier = live.frontier().await?;
    Ok(Json(json!({ "model": live.name, "frontier": frontier })))
}

/// The plan that is followed, what it was written for, and its bytes.
fn plan(live: &Live) -> Value {
    let (plan, outline) = {
        let status = live.status_lent();
        (status.plan.clone(), status.outline.clone())
    };
    json!({ "model": live.name, "plan": plan, "outline": outline, "memory": memory(live) })
}

pub(super) async fn get_budget(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(memory(&*app.models.get(&name)?)))
}

/// The body of `PUT …/memory-budget`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// Bytes, or a text such as `"64MiB"`; null lifts the limit, and has to be said.
    #[serde(deserialize_with = "Option::deserialize")]
    budget: Option<ByteSize>,
}

pub(super) async fn put_budget(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    app.models.get(&name)?;
    let Budget { budget } = request::json(&headers, body, app.body_limits).await?;
    app.blocking(move |app| {
        let live = app.models.set_budget(&name, budget.map(|budget| budget.as_u64()))?;
        Ok(Json(memory(&live)))
    })
    .await
}

/// What `GET /v1/models/{m}` says.
pub(super) fn view(live: &Live) -> Value {
    // From what comes last to what comes first, because all of them only grow.
    let published_version = live.published().version;
    let status = live.status();
    // The status first: the head only grows, so the difference is never negative.
    let head = live.stream.head();
    let lag_rows = head.saturating_sub(status.version.sequence);
    let (counters, waiting) = (status.tally.counters, status.waiting(head));
    let classified = live.stream.schema.is_classified();
    json!({
        "id": live.name,
        "object": "model",
        "owned_by": "mustela",
        "created": live.created_unix_seconds,
        "kind": live.spec.kind,
        "stream": live.spec.stream,
        "spec": live.spec,
        "status": status.condition(lag_rows).word(),
        "failure": status.failure,
        "refusing": status.refusing,
        "version": status.version,
        "published_version": published_version,
        "learning_rate": status.learning_rate,
        "rows": {
            "accepted": waiting.accepted,
            "learned": counters.learned,
            "learned_in_part": counters.learned_in_part,
            "skipped": counters.skipped,
            "held_out": counters.held_out,
            "quarantined": counters.quarantined,
            "expired": counters.expired,
            "waiting": waiting.rows,
            "waiting_for_label": waiting.for_label,
        },
        "labels": counters.labels,
        "lag_rows": lag_rows,
        "rows_per_second": status.rows_per_second(Instant::now()),
        "steps": status.tally.steps,
        "steps_in_flight": status.steps_in_flight,
        "online": scores(status.tally.whole, classified),
        "sliding": scores(status.tally.sliding.score(), classified),
        "drift": {
            "detected": status.tally.drift.detected(),
            "last_sequence": status.tally.drift.last_sequence(),
            "mean_loss": status.tally.drift.mean_loss(),
        },
        "memory": memory_of(&status, &live.ledger()),
        "checkpoint": status.checkpoint,
    })
}

/// Prequential scores: each row was predicted before it was learned.
fn scores(score: Score, classified: bool) -> Value {
    let share = |sum: f64| (score.rows > 0).then(|| sum / score.rows as f64);
    let accuracy = if classified { share(score.correct as f64) } else { None };
    json!({ "rows": score.rows, "accuracy": accuracy, "loss": share(score.loss) })
}

/// Bytes of a model: what it may hold, and by part what its plan reckons with at most, what it holds now and what it held at most.
/// The allocator's are the whole process's.
fn memory(live: &Live) -> Value {
    memory_of(&live.status(), &live.ledger())
}

fn memory_of(status: &Status, ledger: &Ledger) -> Value {
    let part = |(part, planned): (Part, &u64)| {
        let bytes = json!({
            "planned_bytes": planned,
            "used_bytes": ledger.used(part),
            "high_water_bytes": ledger.part_high_water(part),
        });
        (part.name().to_owned(), bytes)
    };
    json!({
        "budget_bytes": status.budget_bytes,
        "allotted_bytes": status.allotted_bytes,
        "minimum_bytes": status.minimum_bytes,
        "planned_bytes": status.planned_bytes,
        "used_bytes": ledger.total(),
        "high_water_bytes": ledger.high_water(),
        "parts": Part::ALL.into_iter().zip(&status.planned_parts).map(part).collect::<serde_json::Map<_, _>>(),
        "process": { "allocated_bytes": allocator::live_bytes(), "allocated_high_water_bytes": allocator::peak_bytes() },
    })
}
