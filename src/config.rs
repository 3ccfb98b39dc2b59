//! The configuration: what `config/mustela.toml` says, with an optional file, the environment and flags over it.
//!
//! The annotated default is built into the binary and doubles as the schema: a key that it lacks is refused, and the kind of its
//! value (text, whole number, size) is the kind that is expected. What is wrong is said with key, value, where it came from, and
//! what was expected, before anything is opened.

pub mod document;
mod sources;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits::STEP_ROWS_MAX;
use crate::memory::Amount;

/// The annotated default, as it stands in the repository.
pub const DEFAULT: &str = include_str!("../config/mustela.toml");

/// What a variable of the environment that sets a key begins with.
pub const ENVIRONMENT_PREFIX: &str = "MUSTELA_";

const GIB: u64 = 1 << 30;

/// The whole configuration. Every key is explained in `config/mustela.toml`; the unit is the last word of its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the doors; read by `serve`.
    pub listen: SocketAddr,
    /// Address of `/metrics`; read by `serve`.
    pub metrics_listen: SocketAddr,
    /// Folder of everything durable.
    pub data_dir: PathBuf,
    /// Form of the process's messages.
    pub log_format: LogFormat,
    /// What the process may hold.
    pub memory: Memory,
    /// The log of streams.
    pub log: Log,
    /// The doors.
    pub http: Http,
    /// Defaults of models.
    pub model: Model,
    /// Pretrained encoders.
    pub models: Models,
    /// When a stream counts as changed.
    pub drift: Drift,
    /// When checkpoints are written.
    pub checkpoint: Checkpoint,
    /// How plans are chosen.
    pub planner: Planner,
    /// The threads that train.
    pub compute: Compute,
    /// The threads that predict.
    pub predict: Predict,
}

/// Form of the process's messages on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum LogFormat {
    /// Human on a terminal, JSON elsewhere.
    Auto,
    /// Lines for people.
    Human,
    /// One object a line.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("one of auto, human, json"),
        }
    }
}

/// What the process may hold; read by `serve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// In all; a percentage is of the machine's memory.
    pub ceiling: Amount,
    /// What of it is no model's, beside the log's page cache.
    pub reserve_bytes: u64,
}

/// The log of streams; read by `stream`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Memory of the page cache.
    pub cache_bytes: u64,
    /// Disk of all streams, beyond which posts get 507.
    pub bytes_max: u64,
    /// Disk of each stream kept beyond what its models need.
    pub retain_bytes: u64,
    /// Posts that one fsync may acknowledge.
    pub commit_entries_max: usize,
    /// Largest file that is held to its checksums whole at each start.
    pub check_bytes_max: u64,
}

/// The doors; read by `http`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Largest body as sent.
    pub body_bytes_max: u64,
    /// Largest body after decompression.
    pub decoded_bytes_max: u64,
    /// From a request's head to its answer.
    pub request_seconds: u64,
    /// Longest `?wait=applied`.
    pub wait_seconds_max: u64,
    /// Grace of a shutdown.
    pub shutdown_seconds: u64,
    /// Connections at once.
    pub connections_max: usize,
    /// For a request's head to arrive.
    pub header_seconds: u64,
}

/// Defaults of models; read by `model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Rows of one step at most.
    pub step_rows: usize,
    /// Between two snapshots for readers at least.
    pub publish_interval_ms: u64,
    /// Rows behind before `backpressure` refuses posts, or `last_n` skips rows.
    pub lag_rows_max: u64,
    /// Largest memory budget of one model.
    pub memory_bytes_max: u64,
    /// Window of the sliding scores.
    pub sliding_window_rows: usize,
}

/// Pretrained encoders; read by `serve` and `models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Their folder.
    pub dir: PathBuf,
}

/// When a stream counts as changed; read by `model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drift {
    /// ADWIN's delta.
    pub delta_millionths: u64,
}

/// When checkpoints are written: by rows or by time, whichever comes first; read by `model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Between two checkpoints of a model at most.
    pub interval_rows: u64,
    /// Between two checkpoints of a model at most.
    pub interval_seconds: u64,
}

/// How plans are chosen; read by `ferret` and `model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planner {
    /// Time in which a row that waits loses half of its worth.
    pub half_life_ms: u64,
    /// Between two looks whether another plan would be better.
    pub review_seconds: u64,
    /// Steps in flight that a plan may have; 0 for as many as can keep the threads busy.
    pub in_flight_max: u64,
}

/// The threads that train; read by `ferret`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// How many; 0 for one each core.
    pub threads: usize,
    /// Their niceness.
    pub nice: u8,
}

/// The threads that predict; read by `model`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    /// How many.
    pub threads: usize,
    /// Rows predicted together at most.
    pub batch_rows_max: usize,
    /// Queries that wait at most, for all models together.
    pub queue_max: usize,
}

/// Why there is no configuration. Nothing was opened or bound yet.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read or is not TOML, with what is wrong.
    #[error("{0}")]
    Source(String),
    /// One key is wrong.
    #[error("`{key}`{} {origin}: expected {expected}", .value.as_ref().map(|value| format!(" is `{value}`")).unwrap_or_default())]
    Key {
        /// The key with its section, such as `http.request_seconds`.
        key: String,
        /// What it was given; none where the key is unknown.
        value: Option<String>,
        /// Who gave it, beginning with "in" or "by".
        origin: String,
        /// What would have been right.
        expected: String,
    },
}

impl Config {
    /// Reads the configuration: the built-in default, then `file`, then `environment` (all variables; those without the prefix
    /// are passed over), then `overrides` (key and value, from flags).
    ///
    /// # Errors
    /// The first wrong key or value, or a file that cannot be read.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let merged = sources::merge(file, environment, overrides).map_err(|error| ConfigError::Source(error.to_string()))?;
        let default = sources::merge(None, [], &[]).map_err(|error| ConfigError::Source(error.to_string()))?;
        let checked = sources::check("", merged.clone(), &default)?;
        let config: Self = checked.try_deserialize().map_err(|error| sources::explain(error, &merged))?;
        config.validate().map_err(|error| error.with_origin(&merged))?;
        Ok(config)
    }

    /// Checks the ranges of all numbers and what they must be to each other.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (key, value, range) in self.ranges() {
            if !range.contains(&value) {
                return Err(sources::out_of_range(key, value, format!("{} to {}", range.start(), range.end())));
            }
        }
        let Self { http, log, .. } = self;
        if http.decoded_bytes_max < http.body_bytes_max {
            let expected = format!("no less than `http.body_bytes_max`, which is {}", http.body_bytes_max);
            return Err(sources::out_of_range("http.decoded_bytes_max", http.decoded_bytes_max, expected));
        }
        if http.wait_seconds_max >= http.request_seconds {
            let expected = format!("less than `http.request_seconds`, which is {}", http.request_seconds);
            return Err(sources::out_of_range("http.wait_seconds_max", http.wait_seconds_max, expected));
        }
        if log.retain_bytes > log.bytes_max {
            let expected = format!("no more than `log.bytes_max`, which is {}", log.bytes_max);
            return Err(sources::out_of_range("log.retain_bytes", log.retain_bytes, expected));
        }
        Ok(())
    }

    /// Every number with the range that it may be in.
    fn ranges(&self) -> [(&'static str, u64, RangeInclusive<u64>); 29] {
        let Self { memory, log, http, model, drift, checkpoint, planner, compute, predict, .. } = self;
        [
            ("memory.reserve_bytes", memory.reserve_bytes, 0..=1024 * GIB),
            ("log.cache_bytes", log.cache_bytes, 1 << 20..=1024 * GIB),
            ("log.bytes_max", log.bytes_max, 16 << 20..=u64::MAX >> 1),
            ("log.retain_bytes", log.retain_bytes, 0..=u64::MAX >> 1),
            ("log.check_bytes_max", log.check_bytes_max, 0..=u64::MAX >> 1),
            ("log.commit_entries_max", log.commit_entries_max as u64, 1..=65_536),
            ("http.body_bytes_max", http.body_bytes_max, 1024..=4 * GIB),
            ("http.decoded_bytes_max", http.decoded_bytes_max, 1024..=16 * GIB),
            ("http.request_seconds", http.request_seconds, 1..=3600),
            ("http.wait_seconds_max", http.wait_seconds_max, 0..=3600),
            ("http.shutdown_seconds", http.shutdown_seconds, 1..=3600),
            ("http.connections_max", http.connections_max as u64, 1..=65_536),
            ("http.header_seconds", http.header_seconds, 1..=3600),
            ("model.step_rows", model.step_rows as u64, 1..=STEP_ROWS_MAX as u64),
            ("model.publish_interval_ms", model.publish_interval_ms, 0..=3_600_000),
            ("model.lag_rows_max", model.lag_rows_max, 1..=1 << 40),
            ("model.memory_bytes_max", model.memory_bytes_max, 1 << 20..=u64::MAX >> 1),
            ("model.sliding_window_rows", model.sliding_window_rows as u64, 1..=1 << 16),
            ("drift.delta_millionths", drift.delta_millionths, 1..=500_000),
            ("checkpoint.interval_rows", checkpoint.interval_rows, 1..=1 << 40),
            ("checkpoint.interval_seconds", checkpoint.interval_seconds, 1..=86_400),
            ("planner.half_life_ms", planner.half_life_ms, 1..=86_400_000),
            ("planner.review_seconds", planner.review_seconds, 0..=86_400),
            ("planner.in_flight_max", planner.in_flight_max, 0..=1 << 16),
            ("compute.threads", compute.threads as u64, 0..=1024),
            ("compute.nice", u64::from(compute.nice), 0..=19),
            ("predict.threads", predict.threads as u64, 1..=1024),
            ("predict.batch_rows_max", predict.batch_rows_max as u64, 1..=65_536),
            ("predict.queue_max", predict.queue_max as u64, 1..=1 << 20),
        ]
    }
}

/// The variables of this process, for [`Config::load`]. What is not UTF-8 in them shows as replacement characters.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |word: std::ffi::OsString| word.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// Splits the `section.key=value` of a `--set` flag.
///
/// # Errors
/// There is no `=`.
pub fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not a setting: expected section.key=value"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests;
