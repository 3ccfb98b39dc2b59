//! What systems are compared under beside budgets and ratios, by name.

use serde_json::{Value, json};

use crate::cli::Failure;
use crate::ferret::compensation::Compensation;
use crate::learner::Learner;

/// Compensations by their names.
pub(super) fn compensations(names: &[String]) -> Result<Vec<Compensation>, Failure> {
    let of = |name: &String| -> Result<Compensation, Failure> {
        let value = match name.as_str() {
            "iter-fisher-descent" => json!({ "type": "iter_fisher", "tuning": "gradient" }),
            "end-points" => json!({ "type": "iter_fisher", "form": "end_points" }),
            name => json!({ "type": name.replace('-', "_") }),
        };
        serde_json::from_value(value).map_err(|error| format!("compensation `{name}`: {error}").into())
    };
    names.iter().map(of).collect()
}

/// Learners by their names.
pub(super) fn learners(names: &[String]) -> Result<Vec<Learner>, Failure> {
    names.iter().map(|name| super::super::learner(name)).collect()
}

/// A word for both in a table; nothing for what is there by default.
pub(super) fn words(compensation: &Compensation, learner: &Learner) -> String {
    let of = |value: Value, default: &str| {
        let name = value["type"].as_str().unwrap_or_default().replace('_', "-");
        let variant = match (value["tuning"].as_str(), value["form"].as_str()) {
            (Some("gradient"), _) => "-descent",
            (_, Some("end_points")) => "-end-points",
            _ => "",
        };
        if name == default { String::new() } else { format!(" +{name}{variant}") }
    };
    of(json!(learner), "vanilla") + &of(json!(compensation), "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_told() {
        let names = ["none", "fisher", "iter-fisher", "iter-fisher-descent", "end-points", "step-aware", "gap-aware"];
        let all = compensations(&names.map(str::to_owned)).unwrap();
        let told: Vec<String> = all.iter().map(|compensation| words(compensation, &Learner::Vanilla {})).collect();
        let expected =
            ["", " +fisher", " +iter-fisher", " +iter-fisher-descent", " +iter-fisher-end-points", " +step-aware", " +gap-aware"];
        assert_eq!(told, expected);
        let mir = learners(&["mir".to_owned()]).unwrap();
        assert_eq!(words(&Compensation::None {}, &mir[0]), " +mir");
        assert!(compensations(&["magic".to_owned()]).is_err() && learners(&["a-gem".to_owned()]).is_err());
    }
}
