//! What the service and its streams are, as metrics: built anew for each scrape.

use prometheus::proto::{MetricFamily, MetricType};

use super::families::{Named, plain, single};

/// The service at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceFigures {
    /// Bytes of the records that the log keeps.
    pub log_stored_bytes: u64,
    /// Bytes of records beyond which posts are refused.
    pub log_max_bytes: u64,
    /// What the whole process may hold.
    pub memory_ceiling_bytes: u64,
    /// What of it all models together may hold.
    pub memory_shared_bytes: u64,
    /// Bytes allocated now, by the sizes asked for.
    pub allocated_bytes: u64,
    /// The most of them at once since the start.
    pub allocated_peak_bytes: u64,
    /// Connections that one listener takes at once.
    pub connections_max: usize,
    /// Queries that wait for a thread.
    pub queued_queries: usize,
    /// Queries that may wait.
    pub queued_queries_max: usize,
}

/// One stream at one moment, by what its log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFigures {
    /// Its name.
    pub stream: String,
    /// The oldest number that the log still has; the next one to come where it has none.
    pub first_sequence: u64,
    /// The newest; 0 before the first.
    pub sequence: u64,
}

impl Named for StreamFigures {
    const LABEL: &'static str = "stream";

    fn name(&self) -> &str {
        &self.stream
    }
}

pub(super) fn families(service: &ServiceFigures, streams: &[StreamFigures]) -> Vec<MetricFamily> {
    use MetricType::GAUGE;
    let gauge = |name: &str, help: &str, value: f64| single(GAUGE, name, help, value);
    vec![
        gauge("mustela_log_stored_bytes", "Bytes of the records that the log keeps.", service.log_stored_bytes as f64),
        gauge("mustela_log_max_bytes", "Bytes of records beyond which posts are refused.", service.log_max_bytes as f64),
        gauge("mustela_memory_ceiling_bytes", "What the whole process may hold.", service.memory_ceiling_bytes as f64),
        gauge("mustela_memory_shared_bytes", "What all models together may hold.", service.memory_shared_bytes as f64),
        gauge("mustela_process_allocated_bytes", "Bytes allocated now, by the sizes asked for.", service.allocated_bytes as f64),
        gauge(
            "mustela_process_allocated_peak_bytes",
            "The most bytes allocated at once since the start.",
            service.allocated_peak_bytes as f64,
        ),
        gauge(
            "mustela_http_max_connections",
            "Connections that one listener takes at once; further ones wait.",
            service.connections_max as f64,
        ),
        gauge("mustela_predict_queued_queries", "Queries that wait for a thread.", service.queued_queries as f64),
        gauge(
            "mustela_predict_queued_max_queries",
            "Queries that may wait; further ones are refused.",
            service.queued_queries_max as f64,
        ),
        plain(GAUGE, "mustela_stream_sequence", "The number of the newest row or label.", streams, |s| Some(s.sequence as f64)),
        plain(
            GAUGE,
            "mustela_stream_first_sequence",
            "The oldest number that the log still has; the next one to come where it has none.",
            streams,
            |s| Some(s.first_sequence as f64),
        ),
    ]
}
