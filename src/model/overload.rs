//! What a model does when rows come faster than it learns.

use serde::{Deserialize, Serialize};

use crate::limits::{CORESET_WINDOW_ROWS, CORESET_WINDOW_ROWS_MAX, DRAWN_WINDOW_ROWS, DRAWN_WINDOW_ROWS_MAX};

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
    /// The door never answers 429: where more rows wait than the window holds, the newest are kept (the Last-N B-Skip of the Ferret
    /// paper).
    LastN(Keeping),
    /// As `last_n`, but those that are kept are drawn from the window (Random-N B-Skip).
    RandomN(Keeping),
    /// As `last_n`, but those that are kept stand for the whole window: see [`coreset`](super::choice::coreset) (Camel).
    Coreset(Keeping),
}

/// How many rows a policy that skips lets wait, and how many it keeps of more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keeping {
    /// B, rows that may wait; none: the configuration's `model.lag_rows_max`, for a coreset at most [`CORESET_WINDOW_ROWS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_rows: Option<u64>,
    /// N, rows of the window that are kept; none: half of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_rows: Option<u64>,
}

/// When a model skips rows, how many it keeps, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// More rows than these wait before any is skipped.
    pub rows: u64,
    /// Of the newest so many, these are kept; 1 to `rows`.
    pub keep: u64,
    /// Which.
    pub take: Take,
}

/// Which rows of a window are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The newest.
    Newest,
    /// By chance.
    Random,
    /// Those that stand for the others.
    Coreset,
}

impl Overload {
    /// The window of a policy that skips, where `rows_default` is that of a spec that names none. Were the default lowered below
    /// what a spec keeps, the spec's word would stand.
    pub fn window(&self, rows_default: u64) -> Option<Window> {
        let (take, Keeping { window_rows, keep_rows }, rows_default) = self.keeping(rows_default)?;
        let rows = window_rows.unwrap_or(rows_default);
        let keep = keep_rows.unwrap_or(rows / 2).max(1);
        Some(Window { rows: rows.max(keep), keep, take })
    }

    /// Rows that the model may be behind before posts are refused, where `rows_default` is that of a spec that says nothing; none
    /// where they never are.
    pub fn lag_rows_max(&self, rows_default: u64) -> Option<u64> {
        match self {
            Overload::Backpressure { lag_rows_max } => Some(lag_rows_max.unwrap_or(rows_default)),
            Overload::LastN(_) | Overload::RandomN(_) | Overload::Coreset(_) => None,
        }
    }

    /// The policy's word in a spec.
    pub fn word(&self) -> &'static str {
        match self {
            Overload::Backpressure { .. } => "backpressure",
            Overload::LastN(_) => "last_n",
            Overload::RandomN(_) => "random_n",
            Overload::Coreset(_) => "coreset",
        }
    }

    /// Whether rows of the model may be given away.
    pub fn may_skip(&self) -> bool {
        !matches!(self, Overload::Backpressure { .. })
    }

    fn keeping(&self, rows_default: u64) -> Option<(Take, Keeping, u64)> {
        match *self {
            Overload::Backpressure { .. } => None,
            Overload::LastN(keeping) => Some((Take::Newest, keeping, rows_default)),
            Overload::RandomN(keeping) => Some((Take::Random, keeping, rows_default.min(DRAWN_WINDOW_ROWS))),
            Overload::Coreset(keeping) => Some((Take::Coreset, keeping, rows_default.min(CORESET_WINDOW_ROWS))),
        }
    }

    /// Whether a new model may have this policy; the reason where it may not.
    pub fn check(&self, rows_default: u64) -> Result<(), String> {
        let Some((take, Keeping { window_rows, keep_rows }, rows_default)) = self.keeping(rows_default) else { return Ok(()) };
        let rows = window_rows.unwrap_or(rows_default);
        match keep_rows {
            _ if rows == 0 => Err("overload: window_rows is 0, the least is 1".into()),
            _ if take == Take::Random && rows > DRAWN_WINDOW_ROWS_MAX => {
                Err(format!("overload: window_rows is {rows}, {DRAWN_WINDOW_ROWS_MAX} are the most of random_n"))
            }
            _ if take == Take::Coreset && rows > CORESET_WINDOW_ROWS_MAX => Err(format!(
                "overload: window_rows is {rows}, {CORESET_WINDOW_ROWS_MAX} are the most of a coreset, which compares each row with each"
            )),
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
    fn a_window_keeps_half_of_itself_unless_the_spec_says_otherwise() {
        let read = |text: &str| serde_json::from_str::<Overload>(text).unwrap();
        for (text, rows, keep, take) in [
            (r#"{"policy":"last_n"}"#, 100, 50, Take::Newest),
            (r#"{"policy":"last_n","window_rows":1}"#, 1, 1, Take::Newest),
            (r#"{"policy":"random_n","window_rows":64,"keep_rows":16}"#, 64, 16, Take::Random),
            (r#"{"policy":"last_n","keep_rows":100}"#, 100, 100, Take::Newest),
            (r#"{"policy":"coreset"}"#, 100, 50, Take::Coreset),
        ] {
            assert_eq!(read(text).window(100), Some(Window { rows, keep, take }), "{text}");
            assert_eq!(read(text).check(100), Ok(()), "{text}");
            let again = serde_json::to_string(&read(text)).unwrap();
            assert_eq!(read(&again), read(text), "{again}");
        }
        let small = read(r#"{"policy":"last_n","keep_rows":100}"#).window(10);
        assert_eq!(small, Some(Window { rows: 100, keep: 100, take: Take::Newest }));
        assert_eq!(read(r#"{"policy":"coreset"}"#).window(1 << 20).map(|window| window.rows), Some(CORESET_WINDOW_ROWS));
        assert_eq!(Overload::default().window(100), None);
        for (text, word) in [
            (r#"{"policy":"last_n","window_rows":0}"#, "window_rows is 0"),
            (r#"{"policy":"random_n","keep_rows":0}"#, "1 to 100"),
            (r#"{"policy":"last_n","window_rows":64,"keep_rows":65}"#, "1 to 64"),
            (r#"{"policy":"coreset","window_rows":1025}"#, "1024 are the most"),
        ] {
            assert!(read(text).check(100).unwrap_err().contains(word), "{text}");
        }
        for text in [r#"{"policy":"last_n","rows":3}"#, r#"{"policy":"backpressure","keep_rows":3}"#, r#"{"policy":"first_n"}"#] {
            assert!(serde_json::from_str::<Overload>(text).is_err(), "{text}");
        }
    }
}
