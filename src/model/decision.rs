//! Decisions: what was decided for a model beside its records. Each is durable before its effect can be seen, and replay carries
//! them out at the same versions without making any.

use serde::{Deserialize, Serialize};

use crate::fold::{Change, Sequence, Version};

/// The format of an encoded decision.
const FORMAT: u8 = 1;
/// Bytes of the checksum: blake3, cut.
const CHECKSUM_BYTES: usize = 8;

/// One entry of a model's decision log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Takes effect when the model has just reached this version.
    pub at: Version,
    /// What was decided.
    pub what: What,
}

/// What can be decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// A whole new plan, and the budget that it answers.
    Plan(Planned),
    /// A new learning rate.
    LearningRate(f64),
    /// Another value of something that the model's kind knows.
    Setting(serde_json::Value),
    /// Rows that the model gives away, because too many wait: those after the decision's version, up to and with `through`, but for
    /// those that are kept. It takes the place of an earlier one that has not come to its end.
    Skip {
        /// The last of them.
        through: Sequence,
        /// Rows before that one which are learned, in their order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        kept: Vec<Sequence>,
    },
    /// Another learning rate for a while, because of a drift. Afterwards the former one is decided again.
    React {
        /// The one that holds from here on.
        learning_rate: f64,
        /// The one that held.
        before: f64,
        /// The last row for which it does, unless a decision comes between.
        through: Sequence,
    },
    /// Rows that teach nothing, because a step of them panicked, or ended the process, each time: those after the decision's version,
    /// up to and with `through`.
    Quarantine {
        /// The last of them.
        through: Sequence,
        /// What the step did.
        reason: String,
    },
}

impl What {
    /// Of all rows up to `head`, only `kept` ones are learned. Those at the end need no mention: they are behind the decision.
    pub fn keeping(mut kept: Vec<Sequence>, head: Sequence) -> What {
        let mut through = head;
        while kept.last() == Some(&through) {
            kept.pop();
            through -= 1;
        }
        What::Skip { through, kept }
    }

    /// What [`What::word`] may say.
    pub const WORDS: [&'static str; 6] = ["plan", "learning_rate", "setting", "skip", "react", "quarantine"];

    /// What was decided, in one word.
    pub fn word(&self) -> &'static str {
        let [plan, learning_rate, setting, skip, react, quarantine] = What::WORDS;
        match self {
            What::Plan(_) => plan,
            What::LearningRate(_) => learning_rate,
            What::Setting(_) => setting,
            What::Skip { .. } => skip,
            What::React { .. } => react,
            What::Quarantine { .. } => quarantine,
        }
    }

    /// What the fold has to carry out; none where it is not concerned.
    pub fn change(&self) -> Option<Change> {
        match self {
            What::Plan(planned) => Some(Change::Plan(planned.plan.clone())),
            What::LearningRate(learning_rate) | What::React { learning_rate, .. } => Some(Change::LearningRate(*learning_rate)),
            What::Setting(value) => Some(Change::Setting(value.clone())),
            What::Skip { .. } | What::Quarantine { .. } => None,
        }
    }
}

/// A plan, and what it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// The model's own budget in bytes; none: unconstrained.
    pub budget_bytes: Option<u64>,
    /// The model's share of what the process may hold, in bytes; none where nobody shared it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allotted_bytes: Option<u64>,
    /// A person wrote it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hand: bool,
    /// As the fold proposed it, or completed it.
    pub plan: serde_json::Value,
}

/// Whether two plans say the same, wherever each begins and whatever it was chosen for ([`crate::fold::Fold::propose_plan`]).
pub fn same_plan(one: &serde_json::Value, other: &serde_json::Value) -> bool {
    let said = |key: &String| key != "start" && key != "reckoned";
    match (one.as_object(), other.as_object()) {
        (Some(one), Some(other)) => {
            let count = |plan: &serde_json::Map<String, serde_json::Value>| plan.keys().filter(|key| said(key)).count();
            count(one) == count(other) && one.iter().all(|(key, value)| !said(key) || other.get(key) == Some(value))
        }
        _ => one == other,
    }
}

/// An entry of the decision log that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a decision cannot be read: {0}")]
pub struct DecisionError(String);

impl Decision {
    /// The entry as the log stores it: format, checksum, JSON.
    pub fn encode(&self) -> Result<Vec<u8>, DecisionError> {
        let body = serde_json::to_vec(self).map_err(|error| DecisionError(error.to_string()))?;
        let mut bytes = vec![FORMAT];
        bytes.extend_from_slice(&blake3::hash(&body).as_bytes()[..CHECKSUM_BYTES]);
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// Reads what [`Decision::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Decision, DecisionError> {
        let Some((&[format, ..], _)) = bytes.split_first_chunk::<1>() else {
            return Err(DecisionError("it is empty".into()));
        };
        if format != FORMAT {
            return Err(DecisionError(format!("format {format}, this version reads {FORMAT}")));
        }
        let Some((checksum, body)) = bytes[1..].split_first_chunk::<CHECKSUM_BYTES>() else {
            return Err(DecisionError("it is cut short".into()));
        };
        if blake3::hash(body).as_bytes()[..CHECKSUM_BYTES] != checksum[..] {
            return Err(DecisionError("its checksum is wrong".into()));
        }
        serde_json::from_slice(body).map_err(|error| DecisionError(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_from_before_there_were_shares_are_read() {
        let read = serde_json::from_str::<What>(r#"{"plan":{"budget_bytes":null,"plan":{"start":3}}}"#).unwrap();
        let plan = serde_json::json!({"start": 3});
        assert_eq!(read, What::Plan(Planned { budget_bytes: None, allotted_bytes: None, by_hand: false, plan }));
    }

    #[test]
    fn skips_name_only_what_is_kept_in_between() {
        assert_eq!(What::keeping(vec![3, 5, 8, 9], 9), What::Skip { through: 7, kept: vec![3, 5] });
        assert_eq!(What::keeping(vec![8, 9], 9), What::Skip { through: 7, kept: vec![] });
        assert_eq!(What::keeping(vec![3], 9), What::Skip { through: 9, kept: vec![3] });
        let before = serde_json::from_str::<What>(r#"{"skip":{"through":7}}"#).unwrap();
        assert_eq!(before, What::keeping(vec![8, 9], 9), "as it was written before rows could be kept");
    }

    #[test]
    fn plans_are_the_same_wherever_they_begin() {
        let plan = |start: u64, workers: u64| serde_json::json!({"start": start, "workers": workers});
        assert!(same_plan(&plan(0, 2), &plan(7, 2)));
        assert!(!same_plan(&plan(0, 2), &plan(0, 1)));
        assert!(same_plan(&plan(0, 2), &serde_json::json!({"workers": 2})));
        assert!(!same_plan(&plan(0, 2), &serde_json::json!({"stages": 2})));
        assert!(!same_plan(&plan(0, 2), &serde_json::Value::Null));
    }

    #[test]
    fn a_decision_reads_back_and_a_flipped_bit_does_not() {
        let at = Version { epoch: 0, sequence: 640 };
        let plan = serde_json::json!({"stages": [[0, 3]]});
        let reaction = What::React { learning_rate: 0.4, before: 0.1, through: 90 };
        let condemned = What::Quarantine { through: 650, reason: "it panicked".into() };
        let planned = Planned { budget_bytes: Some(1 << 20), allotted_bytes: Some(1 << 21), by_hand: true, plan };
        for what in [
            What::Plan(planned),
            What::LearningRate(0.025),
            What::Setting(serde_json::json!({"mode": "midpoint"})),
            What::Skip { through: 700, kept: vec![641, 650] },
            condemned,
            reaction,
        ] {
            let decision = Decision { at, what };
            let bytes = decision.encode().unwrap();
            assert_eq!(Decision::decode(&bytes).unwrap(), decision);
            for index in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[index] ^= 4;
                assert!(Decision::decode(&flipped).is_err(), "byte {index}");
                assert!(Decision::decode(&bytes[..index]).is_err(), "cut at {index}");
            }
        }
    }
}
