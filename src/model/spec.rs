//! What a user asks for: the body of `PUT /v1/models/{m}`, and its answer to overload.

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fold::Sequence;

/// A model as it was asked for. It is stored as it is, and never changes: later settings are decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// What is folded: `network`, and whatever other kinds this binary registers.
    pub kind: String,
    /// The stream that it learns from.
    pub stream: String,
    /// Where in the stream it begins.
    #[serde(default)]
    pub start: Start,
    /// The first memory budget; none: as much as the best plan takes.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exactly")]
    pub memory_budget: Option<ByteSize>,
    /// What happens when rows come faster than they are learned.
    #[serde(default)]
    pub overload: Overload,
    /// What the kind reads.
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Writes a size in bytes: as a text it would be rounded.
fn exactly<S: Serializer>(size: &Option<ByteSize>, serializer: S) -> Result<S::Ok, S::Error> {
    size.map(|size| size.as_u64()).serialize(serializer)
}

/// Where in its stream a model begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next row that is accepted.
    Now,
    /// With the oldest row that the log still has.
    #[default]
    Earliest,
    /// With the row of this sequence number.
    At(Sequence),
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Start::Now => serializer.serialize_str("now"),
            Start::Earliest => serializer.serialize_str("earliest"),
            Start::At(sequence) => serializer.serialize_u64(*sequence),
        }
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Start, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Wire {
            Number(u64),
            Text(String),
        }
        let expected = || serde::de::Error::custom("start is \"now\", \"earliest\" or a sequence number from 1 on");
        match Wire::deserialize(deserializer) {
            Ok(Wire::Number(sequence)) if sequence > 0 => Ok(Start::At(sequence)),
            Ok(Wire::Text(text)) if text == "now" => Ok(Start::Now),
            Ok(Wire::Text(text)) if text == "earliest" => Ok(Start::Earliest),
            _ => Err(expected()),
        }
    }
}

/// What happens when rows come faster than they are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "snake_case", deny_unknown_fields)]
pub enum Overload {
    /// Every row is learned: the door answers 429 while this model is more than `lag_rows_max` rows behind.
    Backpressure {
        /// Rows that the model may be behind; none: the configuration's `model.lag_rows_max`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lag_rows_max: Option<u64>,
    },
    /// The door never answers 429: where more than `window_rows` rows wait for the model, it learns the newest `keep_rows` of
    /// them and skips those before (the Last-N B-Skip of the Ferret paper).
    LastN {
        /// B, rows that may wait; none: the configuration's `model.lag_rows_max`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window_rows: Option<u64>,
        /// N, rows that are kept; none: half of the window.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_rows: Option<u64>,
    },
}

/// When a model skips rows, and how many it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// More rows than these wait before any is skipped.
    pub rows: u64,
    /// The newest ones, which are kept; 1 to `rows`.
    pub keep: u64,
}

impl Overload {
    /// The window of a policy that skips, where `rows_default` is that of a spec that names none. Were the default lowered below
    /// what a spec keeps, the spec's word would stand.
    pub fn window(&self, rows_default: u64) -> Option<Window> {
        let Overload::LastN { window_rows, keep_rows } = *self else { return None };
        let rows = window_rows.unwrap_or(rows_default);
        let keep = keep_rows.unwrap_or(rows / 2).max(1);
        Some(Window { rows: rows.max(keep), keep })
    }

    /// Whether rows of the model may be given away.
    pub fn may_skip(&self) -> bool {
        matches!(self, Overload::LastN { .. })
    }

    /// Whether a new model may have this policy; the reason where it may not.
    pub fn check(&self, rows_default: u64) -> Result<(), String> {
        let Overload::LastN { window_rows, keep_rows } = *self else { return Ok(()) };
        let rows = window_rows.unwrap_or(rows_default);
        match keep_rows {
            _ if rows == 0 => Err("overload: window_rows is 0, the least is 1".into()),
            Some(keep) if keep == 0 || keep > rows => {
                Err(format!("overload: keep_rows is {keep}, allowed are 1 to {rows}, the rows of the window"))
            }
            _ => Ok(()),
        }
    }
}

impl Default for Overload {
    fn default() -> Self {
        Overload::Backpressure { lag_rows_max: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_reads_back_as_it_was_written() {
        let text =
            r#"{"kind":"network","stream":"s","start":7,"memory_budget":"1205.633KiB","network":{"architecture":"linear"}}"#;
        let spec: ModelSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.start, Start::At(7));
        assert_eq!(spec.memory_budget.map(|budget| budget.as_u64()), Some(1_234_568));
        assert!(spec.settings.contains_key("network"));
        let again: ModelSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }

    #[test]
    fn a_window_keeps_half_of_itself_unless_the_spec_says_otherwise() {
        let read = |text: &str| serde_json::from_str::<Overload>(text).unwrap();
        for (text, rows, keep) in [
            (r#"{"policy":"last_n"}"#, 100, 50),
            (r#"{"policy":"last_n","window_rows":1}"#, 1, 1),
            (r#"{"policy":"last_n","window_rows":64,"keep_rows":16}"#, 64, 16),
            (r#"{"policy":"last_n","keep_rows":100}"#, 100, 100),
        ] {
            assert_eq!(read(text).window(100), Some(Window { rows, keep }), "{text}");
            assert_eq!(read(text).check(100), Ok(()), "{text}");
        }
        assert_eq!(read(r#"{"policy":"last_n","keep_rows":100}"#).window(10), Some(Window { rows: 100, keep: 100 }));
        assert_eq!(Overload::default().window(100), None);
        for (text, word) in [
            (r#"{"policy":"last_n","window_rows":0}"#, "window_rows is 0"),
            (r#"{"policy":"last_n","keep_rows":0}"#, "1 to 100"),
            (r#"{"policy":"last_n","window_rows":64,"keep_rows":65}"#, "1 to 64"),
        ] {
            assert!(read(text).check(100).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn a_start_that_is_none_is_refused() {
        for bad in [r#""yesterday""#, "0", "-1", "1.5", "{}"] {
            assert!(serde_json::from_str::<Start>(bad).is_err(), "{bad}");
        }
    }
}
