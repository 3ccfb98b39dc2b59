//! Where the configuration comes from: the sources merged into one tree, and that tree held to the default's.
//!
//! The `config` crate parses, merges and remembers which source gave each value. It also takes 1.5, true and "yes" for whole
//! numbers, so the tree is checked here first, and errors are made here, all in one form.

use std::collections::BTreeMap;
use std::path::Path;

use bytesize::ByteSize;
use config::{Environment, File, FileFormat, Value, ValueKind};

use super::{ConfigError, DEFAULT, ENVIRONMENT_PREFIX};

/// Variables with the prefix that set no key: those of the flags `--config` and `--url`, and the filter of the process's messages.
const ENVIRONMENT_OTHER: [&str; 3] = ["MUSTELA_CONFIG", "MUSTELA_LOG", "MUSTELA_URL"];

/// All sources as one tree; each leaf remembers which source gave it.
pub(super) fn merge(
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
pub(super) fn is_other(name: &str) -> bool {
    ENVIRONMENT_OTHER.contains(&name) || name.split('_').any(|word| word == "SERVICE" || word == "PORT")
}

/// Holds the merged tree to the default's: the same keys, and values of the same kind.
pub(super) fn check(key: &str, given: Value, default: &Value) -> Result<Value, ConfigError> {
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
pub(super) fn is_size(key: &str) -> bool {
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

pub(super) fn out_of_range(key: &str, value: u64, expected: String) -> ConfigError {
    wrong(key, Some(value.to_string()), None, expected)
}

/// A value that is of the right kind and still not what its type takes: an address, a format, a number too large.
pub(super) fn explain(error: config::ConfigError, merged: &Value) -> ConfigError {
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
    pub(super) fn with_origin(self, merged: &Value) -> Self {
        match self {
            Self::Key { key, value, expected, .. } => wrong(&key, value, find(merged, &key).and_then(Value::origin), expected),
            source => source,
        }
    }
}
