//! Which models' queries are judged by another model, and what happens to those that it flags.
//!
//! It is a setting of the log and no decision: it changes what is answered, and nothing that is learned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ModelError;
use super::events::Kind;
use super::live::Live;
use super::registry::{Models, RegistryError};
use crate::stream::log::{Entry, Log};

/// The log's name of the setting.
const SETTING: &str = "guards";

/// What a row may be found to be, as `mustela_guard_rows_total` says it.
pub const VERDICTS: [&str; 2] = ["flagged", "passed"];

/// What happens to a query with a row that is flagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is not answered.
    Refuse,
    /// It is answered, and the answer says so.
    Flag,
}

/// By which model the queries of another one are judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// The judge's name.
    pub detector: String,
    /// What happens to what it flags.
    pub action: Action,
}

/// All guards, by the id of the model that is guarded.
type Guards = BTreeMap<u32, Guard>;

fn read(log: &dyn Log) -> Result<Guards, RegistryError> {
    let Some(bytes) = log.setting(SETTING)? else { return Ok(Guards::default()) };
    let unreadable = |error| ModelError::Inconsistent(format!("the setting `{SETTING}` cannot be read from the log: {error}"));
    Ok(serde_json::from_slice(&bytes).map_err(unreadable)?)
}

impl Models {
    /// Gives every model the guard that the log has for it.
    pub(super) fn recall_guards(&self) -> Result<(), RegistryError> {
        let mut guards = read(self.streams.log())?;
        for live in self.list() {
            self.arm(&live, guards.remove(&live.id));
        }
        Ok(())
    }

    fn arm(&self, live: &Live, guard: Option<Guard>) {
        if guard.is_some() {
            // From zero on: a first flagged row that a scrape cannot compare with anything would be none.
            for verdict in VERDICTS {
                self.ground.metrics.guard_rows_total.with_label_values(&[live.name.as_str(), verdict]);
            }
        }
        live.guard.store(guard.map(Into::into));
    }

    /// Guards a model by another one, or (none) no longer.
    ///
    /// # Errors
    /// One of them is not there any more, or the log failed.
    pub fn set_guard(&self, live: &Live, guard: Option<(&Live, Action)>) -> Result<(), RegistryError> {
        let _changing = self.changing.lock();
        self.still_there(live)?;
        guard.map_or(Ok(()), |(judge, _)| self.still_there(judge))?;
        let guard = guard.map(|(judge, action)| Guard { detector: judge.name.clone(), action });
        self.ground.committer.commit(vec![self.guards_with(live, guard.clone())?])?;
        let text = match &guard {
            Some(Guard { detector, action: Action::Refuse }) => format!("queries that `{detector}` flags are refused"),
            Some(Guard { detector, action: Action::Flag }) => format!("queries are judged by `{detector}`"),
            None => "queries are judged by nobody".to_owned(),
        };
        self.arm(live, guard);
        live.note(Kind::Setting, live.status_lent().version, text);
        Ok(())
    }

    /// Whether a model was not deleted meanwhile, and another made in its name.
    fn still_there(&self, live: &Live) -> Result<(), RegistryError> {
        match self.get(&live.name)?.id == live.id {
            true => Ok(()),
            false => Err(RegistryError::NotFound(live.name.clone())),
        }
    }

    /// The guards with another one of a model, as an entry of the log. They are the log's own, and not those of the models that are there:
    /// at the end of the process there are none.
    pub(super) fn guards_with(&self, live: &Live, guard: Option<Guard>) -> Result<Entry, RegistryError> {
        let mut guards = read(self.streams.log())?;
        match guard {
            Some(guard) => guards.insert(live.id, guard),
            None => guards.remove(&live.id),
        };
        let bytes = serde_json::to_vec(&guards).map_err(|error| ModelError::Inconsistent(error.to_string()))?;
        Ok(Entry::PutSetting { key: SETTING.to_owned(), bytes })
    }

    /// The models whose queries this one judges.
    pub(super) fn wards_of(&self, name: &str) -> Vec<String> {
        let guarded = |live: &Live| live.guard.load().as_ref().is_some_and(|guard| guard.detector == name);
        self.list().into_iter().filter(|live| guarded(live)).map(|live| live.name.clone()).collect()
    }
}
