//! What a user asks for: the body of `PUT /v1/models/{m}`, and where it begins.

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::overload::Overload;
use super::reaction::OnDrift;
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
    /// What is done about a drift; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_drift: Option<OnDrift>,
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
    fn a_start_that_is_none_is_refused() {
        for bad in [r#""yesterday""#, "0", "-1", "1.5", "{}"] {
            assert!(serde_json::from_str::<Start>(bad).is_err(), "{bad}");
        }
    }
}
