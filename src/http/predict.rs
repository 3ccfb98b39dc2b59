//! The door of queries: rows without labels in, predictions with the version that made them out, as JSON or as an Arrow IPC stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::types::{Float32Type, Float64Type, UInt32Type};
use arrow_array::{ArrayRef, BooleanArray, FixedSizeListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema as ArrowSchema};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uuid::Uuid;

use super::App;
use super::body;
use super::guard::{Inspection, Judged, Verdict};
use super::problem::Problem;
use super::request;
use crate::fold::{Predictions, Version};
use crate::limits::{PREDICT_NUMBERS_MAX, PREDICT_ROWS_MAX};
use crate::model::live::Live;
use crate::model::predict::Answer;
use crate::rows::Rows;
use crate::stream::Schema;
use crate::stream::decode::{Format, Purpose, decode};

pub(super) async fn predict(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let began = Instant::now();
    let admitted = app.models.get(&name).map_err(Problem::from).and_then(|live| Ok((live, request::format(&headers)?)));
    let ((live, format), body) = body::unless_refused(admitted, body, app.body_limits).await?;
    let as_arrow = wants_arrow(&headers);
    let bytes = body::read(&headers, body, app.body_limits).await?;
    let stream = live.stream.clone();
    let rows = app.blocking(move |_| Ok(decode(&stream.schema, format, bytes, Purpose::Predict)?)).await?;
    let (answer, judged) = ask_guarded(&app, &live, rows, began).await?;
    app.blocking(move |_| {
        let said = Predicted {
            model: &live.name,
            model_version: answer.version,
            prediction_id: Uuid::new_v4().to_string(),
            guard: judged.as_ref(),
            predictions: predictions(&answer.predictions, judged.as_ref(), &live.stream.schema),
        };
        let (content_type, body) = if as_arrow {
            let batch = arrow(&said, &answer.predictions, live.stream.schema.class_names());
            (Format::Arrow, batch.and_then(|batch| written(&batch)).map_err(|_| Problem::internal())?)
        } else {
            (Format::Json, serde_json::to_vec(&said).map_err(|_| Problem::internal())?)
        };
        Ok((with_type(content_type), body).into_response())
    })
    .await
}

fn with_type(format: Format) -> [(HeaderName, &'static str); 2] {
    [(CONTENT_TYPE, format.content_type()), (VARY, "accept")]
}

/// Whether the client names Arrow among what it takes; JSON is for all others.
fn wants_arrow(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(Format::Arrow.content_type()));
        // A quality of 0 is "not this" (RFC 9110, section 12.4.2).
        let refused = parts.filter_map(|part| part.strip_prefix("q=")).any(|quality| quality.parse() == Ok(0.0));
        named && !refused
    })
}

/// Asks a model about rows, and its guard, where it has one, about what the model makes of them.
///
/// # Errors
/// As for [`ask`], and where the guard refuses.
pub(super) async fn ask_guarded(
    app: &App,
    live: &Arc<Live>,
    rows: Rows,
    began: Instant,
) -> Result<(Answer, Option<Judged>), Problem> {
    let inspection = Inspection::of(app, live)?;
    let answer = ask(app, live, (rows, &inspection), began).await?;
    let judged = inspection.judge(app, live, &answer.states)?;
    Ok((answer, judged))
}

/// Asks a model about rows, as many as one query may have, with the hidden states that a guard watches; the time since `began` is counted as the
/// query's.
pub(super) async fn ask(
    app: &App,
    live: &Arc<Live>,
    (rows, inspection): (Rows, &Inspection),
    began: Instant,
) -> Result<Answer, Problem> {
    let most = PREDICT_ROWS_MAX.min(PREDICT_NUMBERS_MAX / (live.stream.schema.class_count() + inspection.width()).max(1));
    if rows.count > most {
        let detail = format!("{} rows, {most} are the most of one query to this model", rows.count);
        return Err(Problem::unprocessable("too_many_rows", detail));
    }
    let answer = app.predictor.predict(live.clone(), rows, inspection.places()).await?;
    if !answer.predictions.is_finite() {
        let detail =
            format!("model `{}` has diverged: at version {} it predicts what is not a number", live.name, answer.version);
        return Err(Problem::conflict("model_diverged", detail));
    }
    live.predict_seconds.observe(began.elapsed().as_secs_f64());
    Ok(answer)
}

/// The answer to a query.
#[derive(Debug, Serialize)]
struct Predicted<'a> {
    model: &'a str,
    /// The version that answered: every row up to its sequence was learned.
    model_version: Version,
    /// Names this answer.
    prediction_id: String,
    /// By what the model's guard judges, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<&'a Judged>,
    /// In the order of the rows.
    predictions: Vec<Prediction<'a>>,
}

/// One row's prediction, and what the model's guard says of the row.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Prediction<'a> {
    Class {
        class: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        label: Option<&'a str>,
        probabilities: &'a [f32],
        #[serde(skip_serializing_if = "Option::is_none")]
        guard: Option<Verdict>,
    },
    Value {
        value: f32,
        #[serde(skip_serializing_if = "Option::is_none")]
        guard: Option<Verdict>,
    },
}

fn predictions<'a>(predictions: &'a Predictions, judged: Option<&Judged>, schema: &'a Schema) -> Vec<Prediction<'a>> {
    let verdict = |row: usize| judged.and_then(|judged| judged.rows.get(row)).copied();
    match predictions {
        Predictions::Classes { classes, probabilities } => probabilities
            .chunks_exact((*classes).max(1))
            .enumerate()
            .map(|(row, probabilities)| {
                let class = argmax(probabilities);
                let label = schema.class_names().and_then(|names| names.get(class)).map(String::as_str);
                Prediction::Class { class, label, probabilities, guard: verdict(row) }
            })
            .collect(),
        Predictions::Values(values) => {
            values.iter().enumerate().map(|(row, &value)| Prediction::Value { value, guard: verdict(row) }).collect()
        }
    }
}

/// The most probable class; the first of equals, as the trainer scores.
pub(super) fn argmax(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (class, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = class;
        }
    }
    best
}

/// The answer as one batch: `class`, `label` where classes have names, and `probabilities`, or `value`; and what a guard says of each row. What
/// is said once is in the schema's metadata.
fn arrow(said: &Predicted<'_>, predictions: &Predictions, names: Option<&[String]>) -> Result<RecordBatch, ArrowError> {
    let mut columns: Vec<(Field, ArrayRef)> = Vec::new();
    match predictions {
        Predictions::Classes { classes, probabilities } => {
            let most: Vec<usize> = probabilities.chunks_exact((*classes).max(1)).map(argmax).collect();
            let numbers: PrimitiveArray<UInt32Type> = most.iter().map(|&class| class as u32).collect::<Vec<_>>().into();
            columns.push((Field::new("class", DataType::UInt32, false), Arc::new(numbers)));
            if let Some(names) = names {
                let labels = most.iter().map(|&class| names.get(class).map_or("", String::as_str));
                columns.push((Field::new("label", DataType::Utf8, false), Arc::new(StringArray::from_iter_values(labels))));
            }
            let (item, size) = (Arc::new(Field::new("item", DataType::Float32, false)), *classes as i32);
            let numbers: PrimitiveArray<Float32Type> = probabilities.clone().into();
            let lists = FixedSizeListArray::try_new(item.clone(), size, Arc::new(numbers), None)?;
            columns.push((Field::new("probabilities", DataType::FixedSizeList(item, size), false), Arc::new(lists)));
        }
        Predictions::Values(values) => {
            let values: PrimitiveArray<Float32Type> = values.clone().into();
            columns.push((Field::new("value", DataType::Float32, false), Arc::new(values)));
        }
    }
    let mut metadata = BTreeMap::from([
        ("model".to_owned(), said.model.to_owned()),
        ("model_version".to_owned(), said.model_version.to_string()),
        ("prediction_id".to_owned(), said.prediction_id.clone()),
    ]);
    if let Some(judged) = said.guard {
        let as_json = serde_json::to_string(judged).map_err(|error| ArrowError::JsonError(error.to_string()))?;
        metadata.insert("guard".to_owned(), as_json);
        if !judged.rows.is_empty() {
            let flagged: BooleanArray = judged.rows.iter().map(|row| Some(row.flagged)).collect();
            columns.push((Field::new("guard_flagged", DataType::Boolean, false), Arc::new(flagged)));
            if let Some(scores) = judged.rows.iter().map(|row| row.score).collect::<Option<Vec<f64>>>() {
                let scores: PrimitiveArray<Float64Type> = scores.into();
                columns.push((Field::new("guard_score", DataType::Float64, false), Arc::new(scores)));
            }
        }
    }
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = columns.into_iter().unzip();
    let schema = ArrowSchema::new(fields).with_metadata(metadata);
    RecordBatch::try_new(Arc::new(schema), arrays)
}

fn written(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
    writer.write(batch)?;
    writer.into_inner()
}
