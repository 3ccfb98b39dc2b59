//! All metrics, in one place, so that their names, labels and help texts can be read, and changed, together.
//!
//! Two kinds. What *happens* (a request, a commit, a step) is counted here as it happens, in a registry that belongs to one
//! service, so that a test may run several. What models *are* is not copied here: their own counters, which are part of their
//! durable state, are rendered from the [`ModelFigures`] of each scrape. So the figures of one model in one rendering come from
//! one moment and balance (promise 8): rows accepted = learned + learned in part + skipped + held out + quarantined + expired +
//! waiting.
//!
//! Names: `mustela_`, base units (seconds, bytes, rows, ratio), `_total` for counters. Every label has few values: a route is
//! the matched pattern and never a path, a reason is the stable code of a problem, streams and models are bounded by `limits`.

mod models;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::allocator;

pub use models::{ModelFigures, RowFigures, ScoreFigures};

/// The content type of what [`Metrics::render`] gives.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Methods that are label values; a client may send any other word, and all of those are `other`.
const METHODS: [&str; 7] = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// The metrics of one service. Whoever does a thing counts it, through the field that is named after it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    http_requests_total: IntCounterVec,
    http_request_seconds: HistogramVec,
    /// Rows acknowledged, by `stream`; counted by the door after the commit.
    pub stream_rows_total: IntCounterVec,
    /// Late labels acknowledged, by `stream` and `outcome` (`matched`, `unmatched`); counted by the door after the commit.
    pub stream_labels_total: IntCounterVec,
    /// Records appended, by `stream`; counted beside the rows.
    pub stream_records_total: IntCounterVec,
    /// Posts refused, by `stream` and `reason` (a problem's code); counted by the door.
    pub stream_refused_total: IntCounterVec,
    /// Duration of one group commit, in seconds; observed by the log's writer.
    pub log_commit_seconds: Histogram,
    /// Posts that one commit acknowledged; observed by the log's writer.
    pub log_commit_entries: Histogram,
    /// Bytes of the records that the log keeps; set at each scrape.
    pub log_stored_bytes: IntGauge,
    /// Rows predicted, by `model`; counted by the threads that predict.
    pub predict_rows_total: IntCounterVec,
    /// From a query's arrival to its answer, in seconds, by `model`; observed by the door.
    pub predict_seconds: HistogramVec,
    /// Rows predicted together; observed by the threads that predict.
    pub predict_batch_rows: Histogram,
    /// From giving a step to the trainer until it takes the next one, in seconds, by `model`; observed by the model's driver.
    pub model_step_seconds: HistogramVec,
    /// Duration of one checkpoint, in seconds, by `model`; observed by the model's driver.
    pub model_checkpoint_seconds: HistogramVec,
    /// What the process may hold; set at each scrape.
    pub memory_ceiling_bytes: IntGauge,
    /// What of it models share; set at each scrape.
    pub memory_shared_bytes: IntGauge,
    process_allocated_bytes: IntGauge,
    process_allocated_peak_bytes: IntGauge,
}

impl Metrics {
    /// A fresh set, all at zero.
    ///
    /// # Errors
    /// A name is malformed or taken, which a test rules out: names are constants.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new_custom(Some("mustela".to_owned()), None)?;
        let r = &registry;
        let build = IntGaugeVec::new(Opts::new("build_info", "Always 1; the label says which build is running."), &["version"])?;
        keep(r, build)?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let seconds = || powers_of_two(0.0001, 18);
        Ok(Self {
            http_requests_total: counters(
                r,
                "http_requests_total",
                "Requests answered, by matched route, method and status.",
                &["route", "method", "status"],
            )?,
            http_request_seconds: histograms(
                r,
                "http_request_seconds",
                "From a request's head to the head of its answer, by matched route.",
                seconds(),
                "route",
            )?,
            stream_rows_total: counters(r, "stream_rows_total", "Rows acknowledged.", &["stream"])?,
            stream_labels_total: counters(
                r,
                "stream_labels_total",
                "Late labels acknowledged, by whether their row waited for one.",
                &["stream", "outcome"],
            )?,
            stream_records_total: counters(r, "stream_records_total", "Records appended to the log.", &["stream"])?,
            stream_refused_total: counters(
                r,
                "stream_refused_total",
                "Posts refused, by the code of the problem; nothing of them is in the log.",
                &["stream", "reason"],
            )?,
            log_commit_seconds: histogram(r, "log_commit_seconds", "Duration of one group commit, fsync included.", seconds())?,
            log_commit_entries: histogram(
                r,
                "log_commit_entries",
                "Posts that one commit acknowledged.",
                powers_of_two(1.0, 12),
            )?,
            log_stored_bytes: gauge(r, "log_stored_bytes", "Bytes of the records that the log keeps.")?,
            predict_rows_total: counters(r, "predict_rows_total", "Rows predicted.", &["model"])?,
            predict_seconds: histograms(r, "predict_seconds", "From a query's arrival to its answer.", seconds(), "model")?,
            predict_batch_rows: histogram(r, "predict_batch_rows", "Rows predicted together.", powers_of_two(1.0, 12))?,
            model_step_seconds: histograms(
                r,
                "model_step_seconds",
                "From giving a step to the trainer until it takes the next one.",
                seconds(),
                "model",
            )?,
            model_checkpoint_seconds: histograms(
                r,
                "model_checkpoint_seconds",
                "Duration of one checkpoint, until it is durable.",
                seconds(),
                "model",
            )?,
            memory_ceiling_bytes: gauge(r, "memory_ceiling_bytes", "What the whole process may hold.")?,
            memory_shared_bytes: gauge(r, "memory_shared_bytes", "What all models together may hold.")?,
            process_allocated_bytes: gauge(r, "process_allocated_bytes", "Bytes allocated now, by the sizes asked for.")?,
            process_allocated_peak_bytes: gauge(
                r,
                "process_allocated_peak_bytes",
                "The most bytes allocated at once since the start.",
            )?,
            registry,
        })
    }

    /// Counts a request that was answered. `route` is the matched pattern; for none, say so in one constant word.
    pub fn http_answered(&self, route: &str, method: &str, status: u16, seconds: f64) {
        let method = METHODS.iter().find(|known| **known == method).copied().unwrap_or("other");
        self.http_requests_total.with_label_values(&[route, method, &status.to_string()]).inc();
        self.http_request_seconds.with_label_values(&[route]).observe(seconds);
    }

    /// Drops the label values of a stream that was deleted.
    pub fn remove_stream(&self, name: &str) {
        remove(&self.stream_rows_total, "stream", name);
        remove(&self.stream_labels_total, "stream", name);
        remove(&self.stream_records_total, "stream", name);
        remove(&self.stream_refused_total, "stream", name);
    }

    /// Drops the label values of a model that was deleted.
    pub fn remove_model(&self, name: &str) {
        remove(&self.predict_rows_total, "model", name);
        remove(&self.predict_seconds, "model", name);
        remove(&self.model_step_seconds, "model", name);
        remove(&self.model_checkpoint_seconds, "model", name);
    }

    /// Everything in Prometheus's text format. Each model's figures must have been taken under one lock of that model, and no
    /// two may have one name.
    ///
    /// # Errors
    /// The encoder refuses a family, which a test rules out.
    pub fn render(&self, figures: &[ModelFigures]) -> prometheus::Result<String> {
        let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.process_allocated_bytes.set(bytes(allocator::live_bytes()));
        self.process_allocated_peak_bytes.set(bytes(allocator::peak_bytes()));
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text)?;
        TextEncoder::new().encode_utf8(&models::families(figures), &mut text)?;
        Ok(text)
    }
}

/// Geometric buckets: `count` of them, each twice the one before. From 100 µs, 18 of them reach 13 s.
fn powers_of_two(first: f64, count: i32) -> Vec<f64> {
    (0..count).map(|power| first * 2f64.powi(power)).collect()
}

fn keep<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    keep(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    keep(registry, IntGauge::new(name, help)?)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
    keep(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>, label: &str) -> prometheus::Result<HistogramVec> {
    keep(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &[label])?)
}

/// Drops every series whose `label` has `value`, whatever its other labels say.
fn remove<B: MetricVecBuilder>(vector: &MetricVec<B>, label: &str, value: &str) {
    for family in vector.collect() {
        for metric in family.get_metric() {
            let pairs: std::collections::BTreeMap<&str, &str> =
                metric.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
            if pairs.get(label) != Some(&value) {
                continue;
            }
            let names = vector.desc().into_iter().flat_map(|description| &description.variable_labels);
            let values: Vec<&str> = names.filter_map(|name| pairs.get(name.as_str()).copied()).collect();
            // An error says that somebody else has removed it already, which is what is wanted.
            vector.remove_label_values(&values).ok();
        }
    }
}

#[cfg(test)]
mod tests;
