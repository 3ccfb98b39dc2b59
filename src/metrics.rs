//! All metrics, in one place, so that their names, labels and help texts can be read, and changed, together.
//!
//! Two kinds. What *happens* (a request, a commit, a step) is counted here as it happens, in a registry that belongs to one
//! service, so that a test may run several. What things *are* is not copied here: the service, its streams and its models are rendered
//! from the [`Figures`] of each scrape. The counters of a model are among them, because they are part of its durable state. So the
//! figures of one model in one rendering come from one moment and balance (promise 8): rows accepted = learned + learned in part +
//! skipped + held out + quarantined + expired + waiting.
//!
//! Names: `mustela_`, base units (seconds, bytes, rows, ratio), `_total` for counters; and what the system says of the process, under
//! the names that all exporters have for it (`process_`). Every label has few values: a route is the matched pattern and never a
//! path, a reason is the stable code of a problem, streams and models are bounded by `limits`.

mod families;
mod models;
mod process;
mod service;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

pub use models::{CheckpointFigures, ModelFigures, PlanFigures, RowFigures, ScoreFigures};
pub use service::{ServiceFigures, StreamFigures};

/// The content type of what [`Metrics::render`] gives.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Methods that are label values; a client may send any other word, and all of those are `other`.
const METHODS: [&str; 7] = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// What there is at one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The service.
    pub service: ServiceFigures,
    /// Its streams, no two of one name.
    pub streams: Vec<StreamFigures>,
    /// Its models, likewise, each by one look under one lock.
    pub models: Vec<ModelFigures>,
}

/// The metrics of one service. Whoever does a thing counts it, through the field that is named after it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    http: Http,
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
    /// Rows predicted, by `model`; counted by the threads that predict.
    pub predict_rows_total: IntCounterVec,
    /// Rows that a guard has judged, by `model` and `verdict` (`flagged`, `passed`); counted by the door.
    pub guard_rows_total: IntCounterVec,
    /// From a query's arrival to its answer, in seconds, by `model`; observed by the door.
    pub predict_seconds: HistogramVec,
    /// Rows predicted together; observed by the threads that predict.
    pub predict_batch_rows: Histogram,
    /// From giving a step to the trainer until it takes the next one, in seconds, by `model`; observed by the model's driver.
    pub model_step_seconds: HistogramVec,
    /// Duration of one checkpoint, in seconds, by `model`; observed by the model's driver.
    pub model_checkpoint_seconds: HistogramVec,
    /// Checkpoints that could not be written, by `model`; counted by the model's driver.
    pub model_checkpoint_failures_total: IntCounterVec,
    /// Decisions that were written down, by `model` and `decision` (a word for what was decided); counted by the model's driver.
    pub model_decisions_total: IntCounterVec,
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
        let rows = || powers_of_two(1.0, 12);
        let labels = "Late labels acknowledged, by whether their row waited for one.";
        let refused = "Posts refused, by the code of the problem; nothing of them is in the log.";
        let judged = "Rows of queries that a model's guard has judged.";
        let step = "From giving a step to the trainer until it takes the next one.";
        let checkpoint = "Duration of one checkpoint, until it is durable.";
        let failures = "Checkpoints that could not be written; each is tried again.";
        let decisions = "Decisions written down since the process started, by what was decided.";
        Ok(Self {
            http: Http::new(r)?,
            stream_rows_total: counters(r, "stream_rows_total", "Rows acknowledged.", &["stream"])?,
            stream_labels_total: counters(r, "stream_labels_total", labels, &["stream", "outcome"])?,
            stream_records_total: counters(r, "stream_records_total", "Records appended to the log.", &["stream"])?,
            stream_refused_total: counters(r, "stream_refused_total", refused, &["stream", "reason"])?,
            log_commit_seconds: histogram(r, "log_commit_seconds", "Duration of one group commit, fsync included.", seconds())?,
            log_commit_entries: histogram(r, "log_commit_entries", "Posts that one commit acknowledged.", rows())?,
            predict_rows_total: counters(r, "predict_rows_total", "Rows predicted.", &["model"])?,
            guard_rows_total: counters(r, "guard_rows_total", judged, &["model", "verdict"])?,
            predict_seconds: histograms(r, "predict_seconds", "From a query's arrival to its answer.", "model")?,
            predict_batch_rows: histogram(r, "predict_batch_rows", "Rows predicted together.", rows())?,
            model_step_seconds: histograms(r, "model_step_seconds", step, "model")?,
            model_checkpoint_seconds: histograms(r, "model_checkpoint_seconds", checkpoint, "model")?,
            model_checkpoint_failures_total: counters(r, "model_checkpoint_failures_total", failures, &["model"])?,
            model_decisions_total: counters(r, "model_decisions_total", decisions, &["model", "decision"])?,
            registry,
        })
    }

    /// Counts a request that was answered. `route` is the matched pattern; for none, say so in one constant word.
    pub fn http_answered(&self, route: &str, method: &str, status: u16, seconds: f64) {
        let method = METHODS.iter().find(|known| **known == method).copied().unwrap_or("other");
        self.http.requests_total.with_label_values(&[route, method, &status.to_string()]).inc();
        self.http.request_seconds.with_label_values(&[route]).observe(seconds);
    }

    /// Counts a request as under way for as long as what is returned lives.
    pub fn http_in_flight(&self) -> Counted {
        Counted::of(&self.http.in_flight_requests)
    }

    /// The connections of a listener, which has one of a few names; each holds a [`Counted`] of it.
    pub fn http_connections(&self, listener: &'static str) -> IntGauge {
        self.http.connections.with_label_values(&[listener])
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
        remove(&self.guard_rows_total, "model", name);
        remove(&self.predict_seconds, "model", name);
        remove(&self.model_step_seconds, "model", name);
        remove(&self.model_checkpoint_seconds, "model", name);
        remove(&self.model_checkpoint_failures_total, "model", name);
        remove(&self.model_decisions_total, "model", name);
    }

    /// Everything in Prometheus's text format.
    ///
    /// # Errors
    /// The encoder refuses a family, which a test rules out.
    pub fn render(&self, figures: &Figures) -> prometheus::Result<String> {
        let Figures { service, streams, models } = figures;
        let mut text = String::new();
        let mut made = [service::families(service, streams), models::families(models), process::families()].concat();
        made.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text)?;
        TextEncoder::new().encode_utf8(&made, &mut text)?;
        Ok(text)
    }
}

/// What the doors count.
#[derive(Debug)]
struct Http {
    requests_total: IntCounterVec,
    request_seconds: HistogramVec,
    in_flight_requests: IntGauge,
    connections: IntGaugeVec,
}

impl Http {
    fn new(r: &Registry) -> prometheus::Result<Http> {
        let requests = "Requests answered, by matched route, method and status.";
        let duration = "From a request's head to the head of its answer, by matched route.";
        let connections = Opts::new("http_connections", "Connections that are open, by listener.");
        Ok(Http {
            requests_total: counters(r, "http_requests_total", requests, &["route", "method", "status"])?,
            request_seconds: histograms(r, "http_request_seconds", duration, "route")?,
            in_flight_requests: keep(r, IntGauge::new("http_in_flight_requests", "Requests that have no answer yet.")?)?,
            connections: keep(r, IntGaugeVec::new(connections, &["listener"])?)?,
        })
    }
}

/// Something that is there, counted in a gauge until it is dropped.
#[derive(Debug)]
pub struct Counted(IntGauge);

impl Counted {
    /// One more in `gauge`.
    pub fn of(gauge: &IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// From 100 µs to 13 s.
fn seconds() -> Vec<f64> {
    powers_of_two(0.0001, 18)
}

/// Geometric buckets: `count` of them, each twice the one before.
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

fn histogram(registry: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> prometheus::Result<Histogram> {
    keep(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?)
}

/// Durations, by one label.
fn histograms(registry: &Registry, name: &str, help: &str, label: &str) -> prometheus::Result<HistogramVec> {
    keep(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(seconds()), &[label])?)
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
