//! What every request passes: it is counted and timed under its route, ends by its deadline, and is refused while the process
//! drains.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::problem::Problem;

/// The label of requests that no route matches; their paths are the clients' and must not become labels.
const UNMATCHED: &str = "unmatched";

pub(super) async fn watch(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or(UNMATCHED, |path| path.as_str()).to_owned();
    let health = route.starts_with("/v2/health");
    let response = if app.shutdown.is_draining() && !health {
        Problem::draining().into_response()
    } else {
        let deadline = Duration::from_secs(app.request_seconds);
        let answered = tokio::time::timeout(deadline, next.run(request)).await;
        answered.unwrap_or_else(|_| Problem::deadline(app.request_seconds).into_response())
    };
    let method = known_method(method.as_str());
    app.metrics.http_requests_total.with_label_values(&[route.as_str(), method, response.status().as_str()]).inc();
    app.metrics.http_request_seconds.with_label_values(&[&route]).observe(began.elapsed().as_secs_f64());
    response
}

/// A client may send any word as a method; only those that doors know become labels.
fn known_method(method: &str) -> &'static str {
    match method {
        "GET" => "GET",
        "PUT" => "PUT",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
