//! The door that looks at pictures: each one's score, and whether it lies above the threshold.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::pictures::{Posted, Sent};
use super::{failed, find, not_ready, waits_for};
use crate::fold::{Predictions, Version};
use crate::http::guard::Inspection;
use crate::http::problem::Problem;
use crate::http::{App, body, predict};
use crate::method::nearside::probe::{predictions, score_of};
use crate::method::nearside::{Judging, Threshold};
use crate::model::live::Live;
use crate::rows::Rows;
use crate::stream::schema::Schema;

pub(in crate::http) async fn detect(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let began = Instant::now();
    let (live, body) = body::unless_refused(find(&app, &name), body, app.body_limits).await?;
    let bytes = body::read(&headers, body, app.body_limits).await?;
    let posted = Posted::new(&headers, bytes).await?;
    let (field, side) = reads(&live.stream.schema);
    let sent = app.blocking(move |_| posted.decode(&field, side)).await?;
    let seen = look(&app, &live, sent.rows.clone(), began).await?;
    Ok(Json(json!({
        "detector": live.name,
        "model_version": seen.version,
        "threshold": seen.threshold,
        "results": results(&sent, &seen),
    })))
}

/// The column of a detector's pictures, and their side.
pub(super) fn reads(schema: &Schema) -> (String, usize) {
    let name = schema.fields.first().map(|field| field.name().to_owned()).unwrap_or_default();
    (name, schema.input_shape().last().copied().unwrap_or_default())
}

/// What a detector says of some pictures.
pub(super) struct Seen {
    pub(super) version: Version,
    pub(super) threshold: Threshold,
    /// Of each picture.
    pub(super) scores: Vec<f64>,
}

impl Seen {
    /// One picture's score in words that programs read.
    pub(super) fn verdict(&self, row: usize) -> Value {
        let score = self.scores[row];
        json!({
            "flagged": score > self.threshold.score,
            "score": score,
            "margin": score - self.threshold.score,
            "probability": 1.0 / (1.0 + (-score).exp()),
        })
    }
}

/// Asks the detector.
///
/// # Errors
/// It has no threshold yet, has failed, or too many ask.
pub(super) async fn look(app: &App, live: &Arc<Live>, rows: Rows, began: Instant) -> Result<Seen, Problem> {
    let answer = predict::ask(app, live, (rows, &Inspection::default()), began).await?;
    let judging: Arc<Judging> = answer.told.and_then(|told| told.downcast().ok()).ok_or_else(|| failed(live))?;
    let threshold = judging.threshold.ok_or_else(|| not_ready(live, &waits_for(&judging)))?;
    let scores = scores(&answer.predictions).ok_or_else(|| failed(live))?;
    Ok(Seen { version: answer.version, threshold: as_told(threshold), scores })
}

/// The scores that predictions were made from.
fn scores(predictions: &Predictions) -> Option<Vec<f64>> {
    let Predictions::Classes { probabilities, .. } = predictions else { return None };
    let (pairs, _) = probabilities.as_chunks::<2>();
    Some(pairs.iter().map(|&pair| score_of(pair)).collect())
}

/// A threshold on the way that scores come: probabilities in 32 bits round them, and end at ±87. Beyond that, or as close to it as the last
/// held-out picture, a score would else lie above a threshold that it does not reach.
fn as_told(threshold: Threshold) -> Threshold {
    let score = scores(&predictions(&[threshold.score])).and_then(|scores| scores.first().copied());
    Threshold { score: score.unwrap_or(threshold.score), ..threshold }
}

/// In the order of what was sent.
fn results(sent: &Sent, seen: &Seen) -> Vec<Value> {
    let result = |place: &Result<usize, String>| match place {
        Ok(row) => seen.verdict(*row),
        Err(reason) => json!({ "error": reason }),
    };
    sent.places.iter().map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_score_lies_above_a_threshold_that_it_does_not_reach() {
        for score in [-16_237.4, -87.4, -12.345_678_9, -0.1, 0.0, 3.3, 88.0, 1e6] {
            let threshold = Threshold::conformal(vec![score], 0.5).unwrap();
            let seen = |score: f64| scores(&predictions(&[score])).unwrap()[0];
            let told = as_told(threshold).score;
            assert!(seen(score) <= told && seen(score - 1.0) <= told, "{score}: {told}");
            assert!(!(-87.0..=86.0).contains(&score) || seen(score + 1.0) > told, "{score}: {told}");
        }
    }
}
