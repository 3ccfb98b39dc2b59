//! Guards: a detector that watches a live network judges every query to it, in the forward that answers the query anyway.
//!
//! What is judged are the hidden states of the version that answers; the direction was found in those of the version that the detector has
//! adopted. The answer names both.

use std::any::Any;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::App;
use super::body;
use super::detectors::{self, waits_for};
use super::problem::{Fault, Problem};
use super::request;
use crate::fold::Version;
use crate::method::nearside::detector::Watching;
use crate::method::nearside::kind::KIND;
use crate::method::nearside::{DetectorSnapshot, Probe, Threshold};
use crate::model::guard::{Action, Guard, VERDICTS};
use crate::model::live::Live;

pub(super) async fn get(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(view(&*app.models.get(&name)?)))
}

fn view(live: &Live) -> Value {
    json!({ "model": live.name, "guard": live.guard().as_deref() })
}

/// Has the model's queries judged from here on.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let (live, body) = body::unless_refused(app.models.get(&name).map_err(Problem::from), body, app.body_limits).await?;
    let guard: Guard = request::json(&headers, body, app.body_limits).await?;
    // Whether it can judge is seen now, and not when the first query comes; what is only flagged may wait for it.
    let unfit = |detail: String| Problem::unprocessable("invalid_guard", detail);
    let judge = app.models.get(&guard.detector).map_err(|error| unfit(format!("detector: {error}")))?;
    if let (Readiness::Waits(reason), Action::Refuse) = (readiness(&live, &judge).map_err(unfit)?, guard.action) {
        let detail = format!("detector `{}` is not ready: {reason}", guard.detector);
        return Err(Problem::conflict("detector_not_ready", detail));
    }
    app.blocking(move |app| {
        app.models.set_guard(&live, Some((&judge, guard.action)))?;
        Ok(Json(view(&live)))
    })
    .await
}

pub(super) async fn delete(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.blocking(move |app| {
        app.models.set_guard(&*app.models.get(&name)?, None)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// What a detector looks for in the states of the model that it guards.
struct Lens {
    detector_version: Version,
    watching: Watching,
    probe: Probe,
    threshold: Threshold,
}

/// A detector as a guard.
enum Readiness {
    Ready(Box<Lens>),
    /// It cannot judge yet, for the reason given.
    Waits(String),
}

/// What a detector looks for in a model, if it can judge.
///
/// # Errors
/// It is none, or does not watch this model.
fn readiness(live: &Live, judge: &Live) -> Result<Readiness, String> {
    let detector = judge.name.as_str();
    if judge.spec.kind != KIND {
        return Err(format!("detector: `{detector}` is of kind `{}`, and no detector", judge.spec.kind));
    }
    if detectors::watched_model(judge) != Some(live.name.as_str()) {
        return Err(format!(
            "detector: `{detector}` does not watch model `{}`: a guard judges the states that its own model has anyway",
            live.name
        ));
    }
    let published = judge.published();
    let any: Arc<dyn Any + Send + Sync> = published.snapshot.clone();
    let Ok(snapshot) = any.downcast::<DetectorSnapshot>() else {
        // Why is told to whoever runs the service, and not to everybody who asks the model.
        return Ok(Readiness::Waits("it stands still: GET it says why".to_owned()));
    };
    if snapshot.judging.blind {
        return Ok(Readiness::Waits(waits_for(&snapshot.judging)));
    }
    let watching = snapshot.watching.clone().filter(|watching| watching.adopted.model_id == live.id).ok_or_else(|| {
        format!(
            "detector: `{detector}` looks through a version of another model, which was called `{}` before: POST its `adopt`",
            live.name
        )
    })?;
    Ok(match snapshot.judging.threshold {
        None => Readiness::Waits(waits_for(&snapshot.judging)),
        Some(threshold) => {
            let (detector_version, probe) = (published.version, snapshot.probe.clone());
            Readiness::Ready(Box::new(Lens { detector_version, watching, probe, threshold }))
        }
    })
}

/// What a model's guard looks for in one query; nothing where there is no guard.
#[derive(Default)]
pub(super) struct Inspection(Option<(Arc<Guard>, Readiness)>);

impl Inspection {
    /// # Errors
    /// The guard cannot judge, and what it cannot judge is refused.
    pub(super) fn of(app: &App, live: &Live) -> Result<Inspection, Problem> {
        let Some(guard) = live.guard() else { return Ok(Inspection(None)) };
        // It was fit when it was set: what it lacks now will come, as after a kill, while it learns what it had learned.
        let judge = app.models.get(&guard.detector).map_err(|error| error.to_string());
        let readiness = judge.and_then(|judge| readiness(live, &judge)).unwrap_or_else(Readiness::Waits);
        if let (Readiness::Waits(reason), Action::Refuse) = (&readiness, guard.action) {
            let detail =
                format!("model `{}` is guarded by detector `{}`, which is not ready: {reason}", live.name, guard.detector);
            return Err(Problem::conflict("detector_not_ready", detail));
        }
        Ok(Inspection(Some((guard, readiness))))
    }

    /// The layers whose states are to be had.
    pub(super) fn places(&self) -> Arc<[usize]> {
        match &self.0 {
            Some((_, Readiness::Ready(lens))) => lens.watching.places.clone(),
            _ => Arc::default(),
        }
    }

    /// How many numbers the states of one row have.
    pub(super) fn width(&self) -> usize {
        match &self.0 {
            Some((_, Readiness::Ready(lens))) => lens.probe.weights.len(),
            _ => 0,
        }
    }

    /// What the guard says of rows by their states.
    ///
    /// # Errors
    /// A row is flagged, and such queries are refused.
    pub(super) fn judge(self, app: &App, live: &Live, states: &[f32]) -> Result<Option<Judged>, Problem> {
        let Some((guard, readiness)) = self.0 else { return Ok(None) };
        let lens = match readiness {
            Readiness::Waits(waits_for) => {
                return Ok(Some(Judged { detector: guard.detector.clone(), by: By::Nothing { waits_for }, rows: Vec::new() }));
            }
            Readiness::Ready(lens) => lens,
        };
        let threshold = lens.threshold.score;
        let refuses = guard.action == Action::Refuse;
        let judge = |score: f64| {
            // Where the flagged are refused, not by how much: that would say which way to go on.
            let [score_told, margin] = [score, score - threshold].map(|number| (!refuses).then_some(number));
            // What is no number cannot be judged, and is not let through.
            Verdict { flagged: !score.is_finite() || score > threshold, score: score_told, margin }
        };
        let rows: Vec<Verdict> = lens.probe.scores(states).into_iter().map(judge).collect();
        let flagged = rows.iter().filter(|row| row.flagged).count();
        let is_there = app.models.get(&live.name).is_ok_and(|other| other.id == live.id);
        for (verdict, count) in VERDICTS.into_iter().zip([flagged, rows.len() - flagged]).filter(|_| is_there) {
            app.metrics.guard_rows_total.with_label_values(&[live.name.as_str(), verdict]).inc_by(count as u64);
        }
        if flagged > 0 && refuses {
            let column = live.stream.schema.fields.first().map(|field| field.name().to_owned());
            let faults = rows.iter().enumerate().filter(|(_, row)| row.flagged).map(|(row, _)| Fault {
                row: Some(row as u64),
                column: column.clone(),
                reason: format!("detector `{}` flags it", guard.detector),
            });
            let detail = format!("{flagged} of {} rows look adversarial to detector `{}`", rows.len(), guard.detector);
            return Err(Problem::unprocessable("input_flagged", detail).with_errors(faults).with("errors_total", flagged));
        }
        let (detector_version, adopted_version) = (lens.detector_version, lens.watching.adopted.version);
        let by = By::Direction { detector_version, adopted_version, threshold: (!refuses).then_some(threshold) };
        Ok(Some(Judged { detector: guard.detector.clone(), by, rows }))
    }
}

/// What a guard says of a query that is answered.
#[derive(Debug, Serialize)]
pub(super) struct Judged {
    pub(super) detector: String,
    #[serde(flatten)]
    by: By,
    /// Of each row; empty where the guard cannot judge.
    #[serde(skip)]
    pub(super) rows: Vec<Verdict>,
}

/// What rows are judged by.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum By {
    Direction {
        detector_version: Version,
        /// The version of the guarded model in whose states the direction was found.
        adopted_version: Version,
        #[serde(skip_serializing_if = "Option::is_none")]
        threshold: Option<f64>,
    },
    /// The guard is not ready.
    Nothing { waits_for: String },
}

/// What a guard says of one row; where it refuses, no numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) flagged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f64>,
}
