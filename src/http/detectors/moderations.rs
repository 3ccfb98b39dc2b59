//! OpenAI's moderations door, with a detector as its model, so that clients of that door need no change.
//!
//! An input is a list of parts, and is judged as one: it is flagged where any of its pictures is. Texts are not looked at. Pictures come as
//! data URLs; the service fetches nothing. What is wrong is told in that dialect's own shape.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::detect::{look, reads};
use super::find;
use super::pictures::{Encoded, Sent};
use crate::http::problem::Problem;
use crate::http::{App, body, request};

/// What is asked; members that mean nothing here are let pass, as that dialect grows.
#[derive(Debug, Deserialize)]
struct Asked {
    /// The detector's name.
    model: String,
    /// A list of parts; that dialect has texts, too, which mean nothing here.
    input: Value,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    ImageUrl { image_url: Url },
    Text {},
}

#[derive(Debug, Deserialize)]
struct Url {
    url: String,
}

pub(in crate::http) async fn moderate(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    match moderated(&app, &headers, body).await {
        Ok(answer) => answer.into_response(),
        Err(problem) => refusal(&problem),
    }
}

async fn moderated(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Json<Value>, Problem> {
    let began = Instant::now();
    let is_json = request::is_json(headers);
    let ((), body) = body::unless_refused(is_json, body, app.body_limits).await?;
    let bytes = body::read(headers, body, app.body_limits).await?;
    let asked = app.blocking(move |_| request::read_json::<Asked>(&bytes)).await?;
    let live = find(app, &asked.model)?;
    let (_, side) = reads(&live.stream.schema);
    let sent = app.blocking(move |_| pictures(asked.input, side)).await?;
    let seen = look(app, &live, sent.rows, began).await?;
    let verdicts: Vec<Value> = (0..seen.scores.len()).map(|row| seen.verdict(row)).collect();
    let flagged = seen.scores.iter().any(|&score| score > seen.threshold.score);
    let highest = seen.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Ok(Json(json!({
        "id": format!("modr-{}", Uuid::new_v4()),
        "model": live.name,
        "model_version": seen.version,
        "results": [{
            "flagged": flagged,
            "categories": { "adversarial_image": flagged },
            "category_scores": { "adversarial_image": 1.0 / (1.0 + (-highest).exp()) },
            "category_applied_input_types": { "adversarial_image": ["image"] },
            "images": verdicts,
            "threshold": seen.threshold,
        }],
    })))
}

/// All pictures of an input: one that cannot be looked at could hide what it is, so it is refused.
fn pictures(input: Value, side: usize) -> Result<Sent, Problem> {
    let invalid = |detail: String| Problem::unprocessable("invalid_input", detail);
    let parts: Vec<Part> = serde_json::from_value(input)
        .map_err(|error| invalid(format!("a detector looks at pictures: input has to be a list of parts ({error})")))?;
    let urls: Vec<&str> = parts
        .iter()
        .filter_map(|part| match part {
            Part::ImageUrl { image_url } => Some(image_url.url.as_str()),
            Part::Text {} => None,
        })
        .collect();
    if urls.is_empty() {
        return Err(invalid("a detector looks at pictures, and this input has none".into()));
    }
    if urls.iter().any(|url| !url.starts_with("data:")) {
        return Err(invalid("image_url: pictures come as data URLs; nothing is fetched".into()));
    }
    let sent = Sent::decode(side, urls.into_iter().map(|url| Ok(Encoded::Text(url))))?;
    match sent.places.iter().enumerate().find_map(|(number, place)| Some((number, place.as_ref().err()?))) {
        Some((number, reason)) => Err(invalid(format!("picture {number} of the input: {reason}"))),
        None => Ok(sent),
    }
}

/// A problem as OpenAI's clients read it: its status and headers, and another body.
fn refusal(problem: &Problem) -> Response {
    let kind = if problem.status.is_client_error() { "invalid_request_error" } else { "server_error" };
    let error = json!({ "error": { "message": problem.detail, "type": kind, "param": null, "code": problem.code } });
    let mut response = problem.clone().into_response();
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = Body::from(error.to_string());
    response
}
