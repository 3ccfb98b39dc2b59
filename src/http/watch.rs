//! What every request passes: it is counted and timed under its route, ends by its deadline, and is refused while the process
//! drains. No answer of a moment is kept by what is on its way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::field::Empty;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::App;
use super::problem::Problem;

/// Bytes of a client's name for its request.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The label of requests that no route matches; their paths are the clients' and must not become labels.
const UNMATCHED: &str = "unmatched";

pub(super) async fn watch(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let _in_flight = app.metrics.http_in_flight();
    let route = request.extensions().get::<MatchedPath>().map_or(UNMATCHED, |path| path.as_str()).to_owned();
    let health = route.starts_with("/v2/health");
    let span = span_of(&request, &route);
    let mut response = if app.shutdown.is_draining() && !health {
        Problem::draining().into_response()
    } else {
        let deadline = Duration::from_secs(app.request_seconds);
        let answered = tokio::time::timeout(deadline, next.run(request).instrument(span.clone())).await;
        let response = answered.unwrap_or_else(|_| Problem::deadline(app.request_seconds).into_response());
        as_problem(response).await
    };
    // What is answered is of this moment; files say themselves how long they are good.
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let (status, seconds) = (response.status().as_u16(), began.elapsed().as_secs_f64());
    app.metrics.http_answered(&route, method.as_str(), status, seconds);
    span.record("status", status);
    span.in_scope(|| tracing::debug!(seconds, "a request is answered"));
    response
}

/// A request's way, as messages tell it. What is appended by it, or answers it, is named by sequence number.
fn span_of(request: &Request, route: &str) -> Span {
    let span = tracing::debug_span!(
        "request",
        method = %request.method(),
        route,
        request_id = Empty,
        first_sequence = Empty,
        sequence = Empty,
        status = Empty,
    );
    if !span.is_disabled() {
        span.record("request_id", request_id(request));
        #[cfg(feature = "otel")]
        crate::trace::otel::continue_trace(&span, request.headers());
    }
    span
}

/// The client's own name for its request, where it is short and plain; a new one otherwise.
fn request_id(request: &Request) -> String {
    let own = request.headers().get("x-request-id").and_then(|value| value.to_str().ok());
    let own = own.filter(|own| (1..=REQUEST_ID_BYTES_MAX).contains(&own.len()));
    own.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// What the framework refuses itself (a path or a query that cannot be read) it says in plain text; here that gets the one shape
/// of every refusal.
async fn as_problem(response: Response) -> Response {
    /// Longer than any text that the framework has.
    const TEXT_BYTES_MAX: usize = 4096;
    let text = response.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/plain"));
    if !text || !response.status().is_client_error() {
        return response;
    }
    let status = response.status();
    let text = axum::body::to_bytes(response.into_body(), TEXT_BYTES_MAX).await.unwrap_or_default();
    Problem::new(status, "invalid_request", String::from_utf8_lossy(&text)).into_response()
}
