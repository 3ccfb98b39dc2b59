//! The configuration: what `config/mustela.toml` says, with an optional file, the environment and flags over it.
//!
//! The annotated default is built into the binary and doubles as the schema: a key that it lacks is refused, and the kind of its
//! value (text, whole number, size) is the kind that is expected. What is wrong is said with key, value, where it came from, and
//! what was expected, before anything is opened.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use config::{Environment, File, FileFormat, Value, ValueKind};
use serde::{Deserialize, Serialize};

use crate::limits::STEP_ROWS_MAX;

/// The annotated default, as it stands in the repository.
pub const DEFAULT: &str = include_str!("../config/mustela.toml");

/// What a variable of the environment that sets a key begins with.
pub const ENVIRONMENT_PREFIX: &str = "MUSTELA_";

/// Variables with the prefix that set no key: the `--config` flag's and the filter of the process's messages.
const ENVIRONMENT_OTHER: [&str; 2] = ["MUSTELA_CONFIG", "MUSTELA_LOG"];

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
    /// The log of streams.
    pub log: Log,
    /// The doors.
    pub http: Http,
    /// Defaults of models.
    pub model: Model,
    /// When checkpoints are written.
    pub checkpoint: Checkpoint,
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
    /// Rows behind before `backpressure` refuses posts.
    pub lag_rows_max: u64,
    /// Window of the sliding scores.
    pub sliding_window_rows: usize,
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
    /// Queries that wait for each model at most.
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
        let merged = merge(file, environment, overrides).map_err(|error| ConfigError::Source(error.to_string()))?;
        let default = merge(None, [], &[]).map_err(|error| ConfigError::Source(error.to_string()))?;
        let checked = check("", merged.clone(), &default)?;
        let config: Self = checked.try_deserialize().map_err(|error| explain(error, &merged))?;
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
                return Err(out_of_range(key, value, format!("{} to {}", range.start(), range.end())));
            }
        }
        let Self { http, log, .. } = self;
        if http.decoded_bytes_max < http.body_bytes_max {
            let expected = format!("no less than `http.body_bytes_max`, which is {}", http.body_bytes_max);
            return Err(out_of_range("http.decoded_bytes_max", http.decoded_bytes_max, expected));
        }
        if http.wait_seconds_max >= http.request_seconds {
            let expected = format!("less than `http.request_seconds`, which is {}", http.request_seconds);
            return Err(out_of_range("http.wait_seconds_max", http.wait_seconds_max, expected));
        }
        if log.retain_bytes > log.bytes_max {
            let expected = format!("no more than `log.bytes_max`, which is {}", log.bytes_max);
            return Err(out_of_range("log.retain_bytes", log.retain_bytes, expected));
        }
        Ok(())
    }

    /// Every number with the range that it may be in.
    fn ranges(&self) -> [(&'static str, u64, RangeInclusive<u64>); 22] {
        let Self { log, http, model, checkpoint, compute, predict, .. } = self;
        [
            ("log.cache_bytes", log.cache_bytes, 1 << 20..=1024 * GIB),
            ("log.bytes_max", log.bytes_max, 16 << 20..=u64::MAX >> 1),
            ("log.retain_bytes", log.retain_bytes, 0..=u64::MAX >> 1),
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
            ("model.sliding_window_rows", model.sliding_window_rows as u64, 1..=1 << 20),
            ("checkpoint.interval_rows", checkpoint.interval_rows, 1..=1 << 40),
            ("checkpoint.interval_seconds", checkpoint.interval_seconds, 1..=86_400),
            ("compute.threads", compute.threads as u64, 0..=1024),
            ("compute.nice", u64::from(compute.nice), 0..=19),
            ("predict.threads", predict.threads as u64, 1..=1024),
            ("predict.batch_rows_max", predict.batch_rows_max as u64, 1..=65_536),
            ("predict.queue_max", predict.queue_max as u64, 1..=1 << 20),
        ]
    }
}

/// Splits the `section.key=value` of a `--set` flag.
///
/// # Errors
/// There is no `=`.
pub fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not a setting: expected section.key=value"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// All sources as one tree; each leaf remembers which source gave it.
fn merge(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<Value, config::ConfigError> {
    let variables = environment.into_iter().filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX) && !is_other(name)).collect();
    let environment = Environment::with_prefix("MUSTELA").prefix_separator("_").separator("__").source(Some(variables));
    let mut builder = config::Config::builder().add_source(File::from_str(DEFAULT, FileFormat::Toml));
    if let Some(path) = file {
        builder = builder.add_source(File::from(path).format(FileFormat::Toml));
    }
    builder = builder.add_source(environment);
    let flag = "a flag".to_owned();
    for (key, value) in overrides {
        builder = builder.set_override(key, Value::new(Some(&flag), value.as_str()))?;
    }
    Ok(builder.build()?.cache)
}

/// Whether a variable with the prefix is not meant as a key. Kubernetes gives every container beside a Service whose name begins
/// with `mustela` a dozen of them (`MUSTELA_SERVICE_HOST`, `MUSTELA_PORT_7070_TCP_ADDR`): those must not stop the start.
fn is_other(name: &str) -> bool {
    ENVIRONMENT_OTHER.contains(&name) || name.split('_').any(|word| word == "SERVICE" || word == "PORT")
}

/// Holds the merged tree to the default's: the same keys, and values of the same kind.
fn check(key: &str, given: Value, default: &Value) -> Result<Value, ConfigError> {
    let origin = given.origin().map(str::to_owned);
    let refuse = |expected: &str| Err(wrong(key, Some(show(&given.kind)), origin.as_deref(), expected.to_owned()));
    let kind = match (&default.kind, &given.kind) {
        (ValueKind::Table(known), ValueKind::Table(table)) => {
            let sorted: BTreeMap<&String, &Value> = table.iter().collect();
            let mut checked = config::Map::new();
            for (name, value) in sorted {
                let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                let Some(default) = known.get(name) else {
                    let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
                    names.sort_unstable();
                    return Err(wrong(&path, None, value.origin(), format!("one of the keys {}", names.join(", "))));
                };
                checked.insert(name.clone(), check(&path, value.clone(), default)?);
            }
            ValueKind::Table(checked)
        }
        (ValueKind::Table(_), _) => return refuse("a section with keys"),
        (ValueKind::String(_) | ValueKind::I64(_), _) if is_size(key) => match size(&given.kind) {
            Some(bytes) => ValueKind::U64(bytes),
            None => return refuse("a size, such as 64MiB, or a number of bytes"),
        },
        (ValueKind::I64(_), _) => match number(&given.kind) {
            Some(number) => ValueKind::U64(number),
            None => return refuse("a whole number, not negative"),
        },
        (_, ValueKind::String(text)) if !text.is_empty() => given.kind.clone(),
        _ => return refuse("text"),
    };
    Ok(Value::new(origin.as_ref(), kind))
}

/// Sizes are known by their names, as units are part of names here.
fn is_size(key: &str) -> bool {
    key.rsplit('.').next().is_some_and(|name| name.split('_').any(|word| word == "bytes"))
}

fn number(kind: &ValueKind) -> Option<u64> {
    match kind {
        ValueKind::I64(number) => u64::try_from(*number).ok(),
        ValueKind::U64(number) => Some(*number),
        ValueKind::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn size(kind: &ValueKind) -> Option<u64> {
    match kind {
        ValueKind::String(text) => text.parse().ok().map(|ByteSize(bytes)| bytes),
        _ => number(kind),
    }
}

fn show(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Table(_) => "a section".to_owned(),
        other => other.to_string(),
    }
}

/// What the merged tree holds at `key`.
fn find<'a>(merged: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(merged, |value, name| match &value.kind {
        ValueKind::Table(table) => table.get(name),
        _ => None,
    })
}

fn wrong(key: &str, value: Option<String>, origin: Option<&str>, expected: String) -> ConfigError {
    let origin = match origin {
        None => "in the built-in default".to_owned(),
        Some("the environment") => format!("in the environment ({ENVIRONMENT_PREFIX}{})", key.to_uppercase().replace('.', "__")),
        Some(flag @ "a flag") => format!("by {flag}"),
        Some(file) => format!("in {file}"),
    };
    ConfigError::Key { key: key.to_owned(), value, origin, expected }
}

fn out_of_range(key: &str, value: u64, expected: String) -> ConfigError {
    wrong(key, Some(value.to_string()), None, expected)
}

/// A value that is of the right kind and still not what its type takes: an address, a format, a number too large.
fn explain(error: config::ConfigError, merged: &Value) -> ConfigError {
    let (key, expected) = match &error {
        config::ConfigError::At { key: Some(key), error, .. } => (key, error.to_string()),
        config::ConfigError::Type { key: Some(key), expected, .. } => (key, (*expected).to_owned()),
        _ => return ConfigError::Source(error.to_string()),
    };
    let expected = if key.ends_with("listen") { "an address and port, such as 127.0.0.1:7070".to_owned() } else { expected };
    let value = find(merged, key);
    wrong(key, value.map(|value| show(&value.kind)), value.and_then(Value::origin), expected)
}

impl ConfigError {
    /// Says of a key out of range where its value came from.
    fn with_origin(self, merged: &Value) -> Self {
        match self {
            Self::Key { key, value, expected, .. } => wrong(&key, value, find(merged, &key).and_then(Value::origin), expected),
            source => source,
        }
    }
}

#[cfg(test)]
mod tests;
