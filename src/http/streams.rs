//! The doors of streams: making them, looking at them, and posting batches of rows, or of labels that come later.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::App;
use super::body;
use super::problem::Problem;
use super::request;
use crate::fold::{Score, Version};
use crate::limits::UNMATCHED_LISTED_MAX;
use crate::model::live::Live;
use crate::model::status::Learned;
use crate::stream::decode::{Format, Purpose, decode};
use crate::stream::{Receipt, Schema, Stream};

/// What `GET /v1/streams/{s}` says.
#[derive(Debug, Serialize)]
pub(super) struct StreamView {
    name: String,
    schema: Schema,
    /// The oldest row that the log still has.
    first_sequence: u64,
    /// The newest row; 0 before the first.
    sequence: u64,
    /// The models that learn from it.
    models: Vec<String>,
}

pub(super) fn view(app: &App, stream: &Stream) -> Result<StreamView, Problem> {
    let (first_sequence, sequence) = stream.bounds()?;
    let models = app.models.of_stream(&stream.name);
    Ok(StreamView { name: stream.name.clone(), schema: stream.schema.clone(), first_sequence, sequence, models })
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let schema: Schema = request::json(&headers, body, app.body_limits).await?;
    app.blocking(move |app| {
        let (stream, created) = app.streams.create(&name, schema)?;
        let status = if created { StatusCode::CREATED } else { StatusCode::OK };
        Ok((status, Json(view(app, &stream)?)).into_response())
    })
    .await
}

pub(super) async fn get(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<StreamView>, Problem> {
    app.blocking(move |app| Ok(Json(view(app, &*app.streams.get(&name)?)?))).await
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<serde_json::Value>, Problem> {
    app.blocking(|app| {
        let streams: Result<Vec<_>, Problem> = app.streams.list().iter().map(|stream| view(app, stream)).collect();
        Ok(Json(serde_json::json!({ "streams": streams? })))
    })
    .await
}

pub(super) async fn delete(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.blocking(move |app| {
        app.models.delete_stream(&name)?;
        app.metrics.remove_stream(&name);
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// How a client wants its batch acknowledged.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchQuery {
    /// `applied`: answer when the rows are learned.
    wait: Option<Wait>,
    /// Whose learning to wait for; may be left out where one model learns from the stream.
    pub(super) model: Option<String>,
    /// The longest to wait, in seconds.
    timeout_seconds: Option<u64>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wait {
    /// The acknowledgement's usual moment: the rows are in the log.
    Durable,
    /// The rows are learned and served.
    Applied,
}

/// The acknowledgement of a batch.
#[derive(Debug, Serialize)]
struct Acknowledged {
    /// The sequence number of the batch's first row or label.
    first_sequence: u64,
    /// The sequence number of its last one.
    sequence: u64,
    #[serde(flatten)]
    count: Count,
    #[serde(flatten)]
    applied: Option<Applied>,
}

/// How much was acknowledged.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Count {
    /// Of a batch of rows.
    Rows {
        /// How many.
        rows: u64,
    },
    /// Of a batch of labels.
    Labels {
        /// How many.
        labels: u64,
        /// How many of them are of no row that waited when they were looked up: it never came, has its label, or is too old. They are
        /// in the log and teach nothing; nor does one that turns out to be the second, or too late, by its place in the log.
        unmatched_labels: u64,
        /// The first of those.
        unmatched: Vec<Unmatched>,
    },
}

/// A label that found no row.
#[derive(Debug, Serialize)]
struct Unmatched {
    /// Its place in the batch, from 0.
    row: u64,
    /// The id that it names.
    id: String,
}

/// What `?wait=applied` adds.
#[derive(Debug, Serialize)]
struct Applied {
    /// Whether every row was decided before the deadline.
    applied: bool,
    model: String,
    model_version: Version,
    /// Mean loss of the steps with these rows, before they were learned; absent where the steps are long past.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    /// Share of these rows whose class was predicted before they were learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    /// Rows of it that the guard refused: they are decided, and taught nothing.
    quarantined_rows: u64,
    /// Rows of it that were skipped, because too many waited.
    skipped_rows: u64,
}

/// What a batch is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batch {
    Rows,
    Labels,
}

pub(super) async fn post_batch(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<BatchQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    post(&app, &name, Batch::Rows, &query, &headers, body).await
}

pub(super) async fn post_labels(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<BatchQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    post(&app, &name, Batch::Labels, &query, &headers, body).await
}

async fn post(
    app: &Arc<App>,
    name: &str,
    batch: Batch,
    query: &BatchQuery,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let admitted = admit(app, name, batch, query, headers);
    let ((stream, waits_for, format, key), body) = body::unless_refused(admitted, body, app.body_limits).await?;
    let posted = take(app, &stream, batch, (format, key), headers, body).await;
    // One that was deleted meanwhile must not come back as series of the metrics.
    if app.streams.get(name).is_err() {
        app.metrics.remove_stream(name);
    }
    let (receipt, acknowledged) = posted?;
    let mut response = match waits_for {
        None => (StatusCode::ACCEPTED, Json(acknowledged)).into_response(),
        Some(model) => {
            let seconds = query.timeout_seconds.unwrap_or(app.wait_seconds_max).min(app.wait_seconds_max);
            wait_applied(&model, acknowledged, Duration::from_secs(seconds)).await
        }
    };
    if receipt.replayed {
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Takes a batch that was admitted, until it is durable.
async fn take(
    app: &Arc<App>,
    stream: &Arc<Stream>,
    batch: Batch,
    (format, key): (Format, Option<String>),
    headers: &HeaderMap,
    body: Body,
) -> Result<(Receipt, Acknowledged), Problem> {
    let bytes = body::read(headers, body, app.body_limits).await?;
    let receipt = append(app, stream, batch, format, bytes, key).await.inspect_err(|problem| {
        app.metrics.stream_refused_total.with_label_values(&[stream.name.as_str(), problem.code]).inc();
    })?;
    Ok((receipt, acknowledge(app, stream, batch, receipt).await?))
}

/// Counts a batch that is durable, unless it was counted before, and says what has become of it.
async fn acknowledge(app: &Arc<App>, stream: &Arc<Stream>, batch: Batch, receipt: Receipt) -> Result<Acknowledged, Problem> {
    let Receipt { first, last, rows, records, replayed } = receipt;
    let name = &stream.name;
    if !replayed {
        app.metrics.stream_records_total.with_label_values(&[name]).inc_by(records);
    }
    let count = match batch {
        Batch::Rows => {
            if !replayed {
                app.metrics.stream_rows_total.with_label_values(&[name]).inc_by(rows);
            }
            Count::Rows { rows }
        }
        Batch::Labels => {
            // From the log, so that who asks again is told the same.
            let of = stream.clone();
            let unmatched = app.blocking(move |_| Ok(of.unmatched(first, last)?)).await?;
            let unmatched_labels = unmatched.len() as u64;
            if !replayed {
                for (outcome, labels) in [("matched", rows.saturating_sub(unmatched_labels)), ("unmatched", unmatched_labels)] {
                    app.metrics.stream_labels_total.with_label_values(&[name.as_str(), outcome]).inc_by(labels);
                }
            }
            let unmatched = unmatched.into_iter().take(UNMATCHED_LISTED_MAX).map(|(row, id)| Unmatched { row, id });
            Count::Labels { labels: rows, unmatched_labels, unmatched: unmatched.collect() }
        }
    };
    Ok(Acknowledged { first_sequence: first, sequence: last, count, applied: None })
}

/// Whom a batch is for, and how it is to be read.
type Admitted = (Arc<Stream>, Option<Arc<Live>>, Format, Option<String>);

/// All that can be refused before the body is read.
fn admit(app: &App, name: &str, batch: Batch, query: &BatchQuery, headers: &HeaderMap) -> Result<Admitted, Problem> {
    let stream = app.streams.get(name)?;
    if batch == Batch::Labels && stream.schema.late_labels.is_none() {
        let detail = format!("rows of stream `{name}` come with their labels: its schema has no late_labels");
        return Err(Problem::unprocessable("no_late_labels", detail));
    }
    let waits_for = if query.wait == Some(Wait::Applied) { Some(model_to_wait_for(app, &stream, query)?) } else { None };
    let format = request::format(headers)?;
    let key = request::idempotency_key(headers)?;
    if let Some(behind) = app.models.behind(&stream) {
        app.metrics.stream_refused_total.with_label_values(&[name, "backpressure"]).inc();
        let detail = format!("model `{}` is {} rows behind stream `{name}`", behind.model, behind.lag_rows);
        return Err(Problem::too_many_requests("backpressure", detail, behind.retry_after_seconds));
    }
    Ok((stream, waits_for, format, key))
}

fn model_to_wait_for(app: &App, stream: &Stream, query: &BatchQuery) -> Result<Arc<Live>, Problem> {
    let mut models = app.models.of_stream(&stream.name);
    let name = match (&query.model, models.len()) {
        (Some(name), _) => name.clone(),
        (None, 1) => models.remove(0),
        (None, 0) => return Err(Problem::unprocessable("no_model", format!("no model learns from stream `{}`", stream.name))),
        (None, _) => {
            let detail = format!("several models learn from stream `{}`: name one by ?model=", stream.name);
            return Err(Problem::unprocessable("model_wanted", detail));
        }
    };
    let model = app.models.get(&name)?;
    if model.stream.id != stream.id {
        let detail = format!("model `{name}` learns from stream `{}`, not from `{}`", model.stream.name, stream.name);
        return Err(Problem::unprocessable("model_of_another_stream", detail));
    }
    Ok(model)
}

/// Decodes, encodes and compresses on a thread of its own, then waits for the group commit.
async fn append(
    app: &Arc<App>,
    stream: &Arc<Stream>,
    batch: Batch,
    format: Format,
    bytes: Bytes,
    key: Option<String>,
) -> Result<Receipt, Problem> {
    let of = stream.clone();
    let prepare = move |app: &App| {
        let labels = (batch == Batch::Labels).then(|| of.schema.of_labels());
        let schema = labels.as_ref().unwrap_or(&of.schema);
        let span = tracing::debug_span!("decode", format = format.content_type(), bytes = bytes.len());
        let rows = span.in_scope(|| decode(schema, format, bytes.clone(), Purpose::Learn))?;
        tracing::debug!(stream = of.name, rows = rows.count, "a post is read");
        let key = key.map(|key| (key, fingerprint(batch, format, &bytes)));
        if app.streams.is_full() {
            app.models.make_room()?;
        }
        let submitted = match batch {
            Batch::Rows => app.streams.submit(&of, rows, key),
            Batch::Labels => app.streams.submit_labels(&of, rows, key),
        };
        Ok(submitted?)
    };
    let pending = app.blocking(prepare).await?;
    let receipt = pending.receipt().await?;
    // By these its steps are found, which no request waits for.
    tracing::Span::current().record("first_sequence", receipt.first).record("sequence", receipt.last);
    Ok(receipt)
}

/// What makes two bodies the same to an idempotency key.
fn fingerprint(batch: Batch, format: Format, decoded: &[u8]) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    if batch == Batch::Labels {
        hash.update(b"labels ");
    }
    hash.update(format.content_type().as_bytes());
    hash.update(decoded);
    *hash.finalize().as_bytes()
}

async fn wait_applied(model: &Live, acknowledged: Acknowledged, longest: Duration) -> Response {
    let (first, last) = (acknowledged.first_sequence, acknowledged.sequence);
    let waited = tokio::time::timeout(longest, model.applied(first, last)).await;
    let (status, applied) = match waited {
        Ok(Some((model_version, Learned { score, quarantined, skipped }))) => {
            let Score { rows, loss, correct } = score;
            let share = |sum: f64| (rows > 0).then(|| sum / rows as f64);
            let accuracy = if model.stream.schema.is_classified() { share(correct as f64) } else { None };
            let applied = Applied {
                applied: true,
                model: model.name.clone(),
                model_version,
                loss: share(loss),
                accuracy,
                quarantined_rows: quarantined,
                skipped_rows: skipped,
            };
            (StatusCode::OK, applied)
        }
        Ok(None) | Err(_) => {
            let model_version = model.status_lent().version;
            let applied = Applied {
                applied: false,
                model: model.name.clone(),
                model_version,
                loss: None,
                accuracy: None,
                quarantined_rows: 0,
                skipped_rows: 0,
            };
            (StatusCode::ACCEPTED, applied)
        }
    };
    (status, Json(Acknowledged { applied: Some(applied), ..acknowledged })).into_response()
}
