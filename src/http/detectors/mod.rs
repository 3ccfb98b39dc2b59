//! The doors of detectors: a stream of labelled pictures and a model of the kind `detector` under one name.
//!
//! What is not done here is done by the doors of streams and models: examples are a batch of rows, and a detector is in the list of models
//! with its budget, its checkpoints and its events. [`pictures`] reads what is to be looked at, [`detect`] looks.

pub(super) mod detect;
mod evaluate;
pub(super) mod moderations;
mod pictures;
mod watching;

pub(super) use detect::detect;
pub(super) use evaluate::evaluate;
pub(super) use watching::{adopt, watched_model};

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::App;
use super::models;
use super::problem::Problem;
use super::request;
use super::streams::{self, BatchQuery};
use crate::encoder::shelf::Source;
use crate::fold::{Snapshot, Version};
use crate::json::{self, Members};
use crate::method::nearside::calibration::Mode;
use crate::method::nearside::kind::{CarriedFrom, KIND, complete, complete_watching};
use crate::method::nearside::map::PAIRS_MIN;
use crate::method::nearside::{DetectorSnapshot, Judging, Setting};
use crate::model::live::{ChangeError, Live, Wish, Wished};
use crate::model::registry::RegistryError;
use crate::model::spec::ModelSpec;
use crate::stream::schema::{Classes, Field, Target};
use crate::stream::{Schema, StreamError};

/// The classes of a detector's stream, benign first.
const CLASSES: [&str; 2] = ["benign", "adversarial"];

/// The body of `PUT /v1/detectors/{d}`: a model's spec without its kind, and with a stream only where it is not the detector's own.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Members(body) = request::json(&headers, body, app.body_limits).await?;
    made(&app, name, body).await
}

/// Makes a detector. One of a live network begins with the newest version of it.
async fn made(app: &Arc<App>, name: String, body: Map<String, Value>) -> Result<Response, Problem> {
    let (live, created) = app.blocking(move |app| created(app, &name, body)).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(view(&live))).into_response())
}

fn invalid(detail: String) -> Problem {
    Problem::unprocessable("invalid_detector", detail)
}

/// The picture that is looked at, and, of a new detector, the version of a live network that it begins with; completes the body by what it
/// leaves out.
fn sight(app: &App, name: &str, body: &mut Map<String, Value>) -> Result<(Field, Option<Wish>), Problem> {
    match (body.get("encoder"), body.get("watches")) {
        (Some(Value::String(encoder)), None) => {
            let encoder = Source::find(encoder).map_err(|error| invalid(error.to_string()))?;
            complete(body, encoder);
            Ok((Field::Image { name: "image".into(), side: encoder.side }, None))
        }
        (None, Some(Value::String(parent))) => {
            let (watched, parent) = watching::watched(app, name, parent)?;
            let column = watched.schema.fields.first().map(|field| field.name().to_owned()).unwrap_or_default();
            let field = Field::Image { name: column, side: watched.side().map_err(invalid)? };
            complete_watching(body, &watched).map_err(invalid)?;
            body.insert("watches".into(), json!(watched));
            Ok((field, parent.map(watching::to_begin_with).transpose()?))
        }
        _ => Err(invalid("encoder or watches: the name of what is looked at, an encoder or a live network".into())),
    }
}

/// A detector that is made, or was there; `true` where it is new.
fn created(app: &App, name: &str, mut body: Map<String, Value>) -> Result<(Arc<Live>, bool), Problem> {
    if body.contains_key("kind") {
        return Err(invalid("kind: a detector's is `detector`, and not to be said".into()));
    }
    let (field, first) = sight(app, name, &mut body)?;
    body.insert("kind".into(), KIND.into());
    let own = !body.contains_key("stream");
    if own {
        body.insert("stream".into(), name.into());
    }
    let spec: ModelSpec = json::of(Value::Object(body)).map_err(invalid)?;
    let stream_is_new = own
        && match app.streams.create(name, schema(field)) {
            Ok((_, created)) => created,
            Err(StreamError::Invalid(reason)) => return Err(invalid(reason)),
            Err(error) => return Err(error.into()),
        };
    let made = app.models.create(name, spec, first);
    if made.is_err() && stream_is_new {
        // Nobody has posted to it in this instant, or it stays.
        app.models.delete_stream(name).ok();
        app.metrics.remove_stream(name);
    }
    made.map_err(|error| match error {
        RegistryError::Stream(StreamError::NotFound(stream)) => {
            Problem::unprocessable("unknown_stream", format!("there is no stream `{stream}`"))
        }
        RegistryError::Change(ChangeError::Refused(reason)) => invalid(format!("watches: {reason}")),
        error => error.into(),
    })
}

/// What a detector's own stream has: a picture of the side that is looked at, and its class.
fn schema(picture: Field) -> Schema {
    Schema {
        fields: vec![picture],
        target: Some(Target::Classes { name: "label".into(), classes: Classes::Names(CLASSES.map(str::to_owned).into()) }),
        row_id: None,
        event_time: None,
        late_labels: None,
    }
}

/// The detector of this name.
fn find(app: &App, name: &str) -> Result<Arc<Live>, Problem> {
    app.models.get(name).ok().filter(|live| live.spec.kind == KIND).ok_or_else(|| Problem::not_found("detector", name))
}

/// A snapshot as what it is; none of a detector that has never come up.
fn known(snapshot: Arc<dyn Snapshot>) -> Option<Arc<DetectorSnapshot>> {
    let any: Arc<dyn Any + Send + Sync> = snapshot;
    any.downcast().ok()
}

pub(super) async fn get(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(view(&*find(&app, &name)?)))
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let models = app.models.list();
    let detectors: Vec<Value> = models.iter().filter(|live| live.spec.kind == KIND).map(|live| view(live)).collect();
    Json(json!({ "detectors": detectors }))
}

/// Deletes the detector. Its stream stays, with the examples: another detector can be made of them.
pub(super) async fn delete(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.blocking(move |app| {
        find(app, &name)?;
        app.models.delete(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// A batch of rows for the detector's stream, in any of its formats. It is this detector that is waited for, unless another is named.
pub(super) async fn post_examples(
    state: State<Arc<App>>,
    Path(name): Path<String>,
    Query(mut query): Query<BatchQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let found = find(&state, &name);
    let (live, body) = super::body::unless_refused(found, body, state.body_limits).await?;
    query.model.get_or_insert(name);
    streams::post_batch(state, Path(live.stream.name.clone()), Query(query), headers, body).await
}

/// Where the threshold comes from, from here on; answered when it holds.
pub(super) async fn calibrate(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (live, body) = super::body::unless_refused(find(&app, &name), body, app.body_limits).await?;
    let mode: Mode = request::json(&headers, body, app.body_limits).await?;
    live.set(Box::new(move || Ok(Some(Wished { value: json!(Setting::Threshold(mode)), blob: None }))), None).await?;
    Ok(Json(view(&live)))
}

/// The body of `POST …/transfer`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    /// What the new detector is called.
    name: String,
    /// The encoder that it watches.
    encoder: String,
    /// Which of its blocks.
    blocks: Option<Vec<String>>,
    /// Where its threshold comes from; a rate of 5 % by default, because there is no midpoint without adversarial rows.
    threshold: Option<Mode>,
}

/// Makes a detector on another encoder that is told by the difference of this one's means, as it is now: of whatever direction this one answers,
/// that is what a map between states can carry. The map is fitted on the benign rows of the same stream, those that come and, where this one's
/// held-out rows can be told from the others, those that the log has.
pub(super) async fn transfer(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (live, body) = super::body::unless_refused(find(&app, &name), body, app.body_limits).await?;
    let Transfer { name: carried, encoder, blocks, threshold } = request::json(&headers, body, app.body_limits).await?;
    let published = live.published();
    let snapshot = known(published.snapshot.clone()).ok_or_else(|| failed(&live))?;
    if snapshot.worth.is_some() {
        let detail = format!(
            "the direction of `{}` is carried over itself: carry over that of the detector that it comes from",
            live.name
        );
        return Err(Problem::unprocessable("invalid_detector", detail));
    }
    if watching::of(&live).is_some() {
        let detail = format!("`{}` watches a live network: a direction is carried over from an encoder", live.name);
        return Err(Problem::unprocessable("invalid_detector", detail));
    }
    if snapshot.learned.contains(&0) {
        return Err(not_ready(&live, "its direction needs examples of both classes"));
    }
    let mut watched = live.spec.settings.clone();
    if let Some(source) = watched.get("encoder").and_then(Value::as_str).and_then(|name| Source::find(name).ok()) {
        complete(&mut watched, source);
    }
    let from: CarriedFrom = serde_json::from_value(json!({
        "detector": name,
        "version": published.version,
        "encoder": watched["encoder"],
        "blocks": watched["blocks"],
        "difference": snapshot.difference(),
    }))
    .map_err(|error| not_ready(&live, &error.to_string()))?;
    let threshold = threshold.unwrap_or(Mode::Conformal { target_fpr: 0.05 });
    let mut spec = unlearned_rows(&live)?;
    spec.extend([
        ("stream".to_owned(), json!(live.stream.name)),
        ("encoder".to_owned(), json!(encoder)),
        ("threshold".to_owned(), json!(threshold)),
        ("carried".to_owned(), json!(from)),
    ]);
    spec.extend(blocks.map(|blocks| ("blocks".to_owned(), json!(blocks))));
    made(&app, carried, spec).await
}

/// Where a detector has to begin, and which rows it has to hold out, so that its threshold comes of rows that another one of its stream has
/// learned nothing from: it counts the same rows and draws the same of them, or it begins behind them all.
fn unlearned_rows(other: &Live) -> Result<Map<String, Value>, Problem> {
    let (first_row, _) = other.stream.bounds()?;
    let (origin, quarantined) = {
        let status = other.status_lent();
        (status.origin, status.tally.counters.quarantined)
    };
    let settings = &other.spec.settings;
    let drawn = ["held_out_every", "seed"].map(|key| Some((key.to_owned(), settings.get(key)?.clone())));
    let holds_none_out = settings.get("held_out_every").is_some_and(|every| *every == 0);
    let counts_others = other.spec.overload.may_skip() || quarantined > 0;
    if holds_none_out || counts_others || first_row > origin + 1 {
        return Ok(Map::from_iter([("start".to_owned(), json!("now"))]));
    }
    let start = ("start".to_owned(), json!(origin + 1));
    Ok(drawn.into_iter().flatten().chain([start]).collect())
}

/// A detector that has failed before it could answer anything.
fn failed(live: &Live) -> Problem {
    Problem::unavailable("model_failed", format!("detector `{}` stands still: GET it says why", live.name))
}

/// A detector that has yet to learn what it is asked for.
fn not_ready(live: &Live, reason: &str) -> Problem {
    Problem::conflict("detector_not_ready", format!("detector `{}` is not ready: {reason}", live.name))
}

/// What a threshold that is not there yet waits for.
pub(super) fn waits_for(judging: &Judging) -> String {
    match judging.mode {
        _ if judging.blind => "it has adopted no version of the network that it watches: POST its `adopt`".to_owned(),
        _ if judging.of_both && !judging.directed => {
            "both classes look the same in the states that it reads, as in those of a network that has died or diverged"
                .to_owned()
        }
        Mode::Conformal { .. } if !judging.directed => {
            format!(
                "it has no direction yet: that needs examples of both classes, or {PAIRS_MIN} benign ones where it is carried over"
            )
        }
        Mode::Midpoint => "its midpoint needs examples of both classes".to_owned(),
        Mode::Conformal { target_fpr } => {
            let (rows, needed) = (judging.calibration_rows, judging.mode.rows_needed());
            format!("a rate of {target_fpr} needs {needed} benign examples that are held out, and it has {rows}")
        }
    }
}

/// What `GET /v1/detectors/{d}` says.
fn view(live: &Live) -> Value {
    let published = live.published();
    let snapshot = known(published.snapshot.clone());
    let mut settings = live.spec.settings.clone();
    if let Some(carried) = settings.get_mut("carried").and_then(Value::as_object_mut) {
        // As long as the states are wide; the model's spec has it.
        carried.remove("difference");
    }
    if let Some(watches) = settings.get_mut("watches") {
        // Its network and its schema stand there too.
        *watches = watches["model"].take();
    }
    json!({
        "id": live.name,
        "object": "detector",
        "stream": live.stream.name,
        "settings": settings,
        "version": published.version,
        "adopted": snapshot.as_ref().and_then(|snapshot| snapshot.watching.as_ref()).map(|watching| &watching.adopted),
        "adopting": watching::under_way(live),
        "examples": snapshot.as_ref().map(|snapshot| {
            let [benign, adversarial] = snapshot.learned;
            json!({ "benign": benign, "adversarial": adversarial, "held_out": snapshot.judging.calibration_rows })
        }),
        "direction": snapshot.as_ref().map(|snapshot| direction(snapshot, published.version)),
        "threshold": snapshot.as_ref().and_then(|snapshot| snapshot.judging.threshold),
        "waits_for": snapshot.as_ref().filter(|snapshot| snapshot.judging.threshold.is_none()).map(|snapshot| waits_for(&snapshot.judging)),
        "model": models::view(live),
    })
}

fn direction(snapshot: &DetectorSnapshot, version: Version) -> Value {
    let norm = snapshot.probe.weights.iter().map(|&weight| f64::from(weight).powi(2)).sum::<f64>().sqrt();
    let bytes: Vec<u8> = snapshot.probe.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    json!({
        "version": version,
        "width": snapshot.probe.weights.len(),
        "norm": norm,
        "bias": snapshot.probe.bias,
        "hash": blake3::hash(&bytes).to_hex().as_str(),
        "difference_norm": (!snapshot.learned.contains(&0)).then(|| snapshot.magnitude()),
        "map": snapshot.worth,
    })
}
