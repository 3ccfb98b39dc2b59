//! Spans for a collector of OpenTelemetry, over HTTP (OTLP, protobuf).
//!
//! The environment says where to and how, by the variables that all of OpenTelemetry's SDKs read: `OTEL_EXPORTER_OTLP_ENDPOINT`, without
//! which nothing is sent, `OTEL_SERVICE_NAME` (`mustela` otherwise), `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`,
//! `OTEL_TRACES_SAMPLER` with its `_ARG`, `OTEL_BSP_*`, and `OTEL_SDK_DISABLED`. Spans wait in a queue of a fixed length for a thread of
//! their own: where no collector takes them they are dropped, with a warning, and nobody waits.

use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{Context, Key};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Ours in the names of spans, and the name of a service that has none.
const NAME: &str = "mustela";
/// How long the end waits for the last spans to be taken.
const GRACE: Duration = Duration::from_secs(2);
/// Variables of which one must say where spans go.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Sends spans until its end.
#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Sends what waits.
    pub(super) fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(GRACE) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// What gives spans to a collector, and what sends them; neither where the environment names none, or where it cannot be: then why.
pub(super) fn layer<S>() -> (Option<Box<dyn Layer<S> + Send + Sync>>, Option<Exporter>, Option<String>)
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    if !is_asked_for() {
        return (None, None, None);
    }
    let exporter = match SpanExporter::builder().with_http().build() {
        Ok(exporter) => exporter,
        Err(error) => return (None, None, Some(error.to_string())),
    };
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(NAME)).with_location(false).with_threads(false);
    // Ours alone: the spans of what sends them would have to be sent too.
    let layer = layer.with_filter(Targets::new().with_target(NAME, Level::DEBUG)).boxed();
    (Some(layer), Some(Exporter(provider)), None)
}

fn is_asked_for() -> bool {
    let told = |name: &str| std::env::var(name).unwrap_or_default();
    !told("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true") && ENDPOINTS.iter().any(|name| !told(name).is_empty())
}

/// Who sends, as the environment says.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let name = told.get(&Key::new("service.name")).map(|name| name.to_string()).unwrap_or_default();
    // What the SDK says where nobody has named the service.
    let is_named = !name.is_empty() && !name.starts_with("unknown_service");
    if is_named { told } else { Resource::builder().with_service_name(NAME).build() }
}

/// Makes a request's span part of the trace that its `traceparent` names, where that is a valid one.
pub(crate) fn continue_trace(span: &Span, headers: &HeaderMap) {
    let theirs = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    if theirs.span().span_context().is_valid() {
        // An error says that no spans are sent.
        span.set_parent(theirs).ok();
    }
}

/// What a client says of the trace that its request is part of.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
