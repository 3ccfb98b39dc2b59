//! What a model may do about a drift: learn faster for a while. Off unless its spec asks for it, and a decision, so that every replay
//! does the same at the same rows.

use serde::{Deserialize, Serialize};

use super::ModelError;
use super::decision::{Decision, What};
use super::driver::Driver;
use crate::fold::{Change, Sequence};

/// The longest reaction.
const ROWS_MAX: u64 = 1 << 40;

/// The key `on_drift` of a spec.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnDrift {
    /// What the learning rate is multiplied with.
    pub learning_rate_factor: f64,
    /// For so many rows.
    pub rows: u64,
}

impl OnDrift {
    /// Whether a new model may have this; the reason where it may not.
    pub fn check(&self) -> Result<(), String> {
        let OnDrift { learning_rate_factor: factor, rows } = *self;
        if !(1e-3..=1e3).contains(&factor) {
            return Err(format!("on_drift: learning_rate_factor is {factor:e}, allowed are 0.001 to 1000"));
        }
        if !(1..=ROWS_MAX).contains(&rows) {
            return Err(format!("on_drift: rows is {rows}, allowed are 1 to {ROWS_MAX}"));
        }
        Ok(())
    }
}

/// A reaction that is under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reaction {
    /// It ends with this row.
    pub(super) through: Sequence,
    /// The learning rate that holds afterwards.
    pub(super) before: f64,
}

impl Reaction {
    /// The one that a state which holds these decisions is in the middle of. Any later word about the learning rate ends it.
    pub(super) fn unfinished(held: &[Decision]) -> Option<Reaction> {
        held.iter().rev().find_map(|decision| Reaction::after(&decision.what)).flatten()
    }

    /// What a decision makes of a reaction: some, none, or (the outer none) nothing.
    pub(super) fn after(what: &What) -> Option<Option<Reaction>> {
        match *what {
            What::React { through, before, .. } => Some(Some(Reaction { through, before })),
            What::LearningRate(_) => Some(None),
            What::Plan(_) | What::Setting(_) | What::Skip { .. } | What::Quarantine { .. } => None,
        }
    }
}

impl Driver {
    /// Ends a reaction that has lasted long enough, and begins one where a drift was noticed and the spec asks for it. In replay neither:
    /// there the decisions are found.
    pub(super) fn react_if_due(&mut self) -> Result<(), ModelError> {
        let drifted = std::mem::take(&mut self.drifted);
        if self.is_behind_itself() {
            return Ok(());
        }
        if let Some(Reaction { through, before }) = self.reaction {
            if self.cursor.sequence >= through {
                self.drain()?;
                self.decide(What::LearningRate(before))?;
            }
            return Ok(());
        }
        let (Some(OnDrift { learning_rate_factor, rows }), Some(before)) = (self.live.spec.on_drift, self.fold.learning_rate())
        else {
            return Ok(());
        };
        let learning_rate = before * learning_rate_factor;
        // Rows that were known at the start may have been learned, and seen to be, at the rate that holds.
        if !drifted || self.cursor.sequence < self.known || self.fold.check(&Change::LearningRate(learning_rate)).is_err() {
            return Ok(());
        }
        self.drain()?;
        tracing::info!(
            model = self.live.name,
            learning_rate,
            rows,
            "it learns at another rate for a while, because of the drift"
        );
        self.decide(What::React { learning_rate, before, through: self.cursor.sequence.saturating_add(rows) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::Version;

    #[test]
    fn the_last_word_about_the_learning_rate_counts() {
        let decision = |what| Decision { at: Version::default(), what };
        let react = || decision(What::React { learning_rate: 0.4, before: 0.1, through: 90 });
        let skip = || decision(What::Skip { through: 50, kept: vec![] });
        assert_eq!(Reaction::unfinished(&[react(), skip()]), Some(Reaction { through: 90, before: 0.1 }));
        assert_eq!(Reaction::unfinished(&[react(), decision(What::LearningRate(0.2)), skip()]), None);
        assert_eq!(Reaction::unfinished(&[skip()]), None);
    }

    #[test]
    fn what_would_do_nothing_or_harm_is_refused() {
        let check = |learning_rate_factor, rows| OnDrift { learning_rate_factor, rows }.check();
        assert_eq!(check(3.0, 1000), Ok(()));
        for (factor, rows, word) in
            [(0.0, 1, "is 0e0"), (-1.0, 1, "0.001 to 1000"), (1e9, 1, "1e9"), (f64::NAN, 1, "NaN"), (2.0, 0, "rows is 0")]
        {
            assert!(check(factor, rows).unwrap_err().contains(word), "{factor} {rows}");
        }
    }
}
