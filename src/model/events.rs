//! What happened lately to the models of this process, for people who watch: a ring of the newest events, and a way to hear of more.
//!
//! Events are told, not kept: they are gone with the process, while the decisions that many of them tell of are in the log. Noting one
//! waits for nobody but for a moment of somebody who looks at the ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use super::decision::{Decision, What};
use super::live::Live;
use crate::fold::Version;
use crate::limits::EVENTS_KEPT;

/// Between two events of one kind of a model that may come with every step, in milliseconds. Its counters tell how many rows it was.
const PAUSE_MS: u64 = 5_000;

/// Something that happened to a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Grows with each event, over restarts too: the first of a process is its start in milliseconds since 1970.
    pub id: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// To which model.
    pub model: String,
    /// What, for programs.
    pub kind: Kind,
    /// The model's version then.
    pub version: Version,
    /// What, for people.
    pub text: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A model was made.
    ModelCreated,
    /// A model was brought back at the start of the process, or after its fold had panicked.
    ModelRestored,
    /// A model was deleted.
    ModelDeleted,
    /// Its own budget was changed, and with it perhaps its plan.
    Budget,
    /// It follows another plan.
    Plan,
    /// It learns at another rate.
    LearningRate,
    /// Something else of it was set.
    Setting,
    /// It gave rows away, because too many waited.
    Skip,
    /// The loss of new rows has risen.
    Drift,
    /// Rows were refused, and taught nothing.
    Quarantine,
    /// It stands still.
    Failure,
}

impl Kind {
    /// Whether such events may come with every step.
    fn is_frequent(self) -> bool {
        matches!(self, Kind::Skip | Kind::Drift | Kind::Quarantine)
    }
}

#[derive(Debug)]
struct Ring {
    next: u64,
    /// Those that may come with every step, by themselves: a model that skips or refuses all day pushes out no change of a budget.
    frequent: VecDeque<Arc<Event>>,
    others: VecDeque<Arc<Event>>,
}

/// The newest events of all models.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    news: watch::Sender<()>,
}

impl Default for Events {
    fn default() -> Self {
        let ring = Ring { next: unix_ms(), frequent: VecDeque::new(), others: VecDeque::new() };
        Events { ring: Mutex::new(ring), news: watch::Sender::new(()) }
    }
}

impl Events {
    /// Adds an event; the oldest of its sort makes room. Of those that may come with every step only some are taken.
    pub fn note(&self, model: &str, kind: Kind, version: Version, text: String) {
        let unix_ms = unix_ms();
        {
            let mut ring = self.ring.lock();
            let id = ring.next;
            let events = if kind.is_frequent() { &mut ring.frequent } else { &mut ring.others };
            let same = |event: &&Arc<Event>| event.kind == kind && event.model == model;
            let before = if kind.is_frequent() { events.iter().rev().find(same) } else { None };
            if before.is_some_and(|before| unix_ms.abs_diff(before.unix_ms) < PAUSE_MS) {
                return;
            }
            if events.len() == EVENTS_KEPT {
                events.pop_front();
            }
            events.push_back(Arc::new(Event { id, unix_ms, model: model.to_owned(), kind, version, text }));
            ring.next += 1;
        }
        self.news.send_replace(());
    }

    /// Those after this id, oldest first, as far as they are kept. An id that was never given is of another life: all of them.
    pub fn after(&self, id: u64) -> Vec<Arc<Event>> {
        let ring = self.ring.lock();
        let id = if id < ring.next { id } else { 0 };
        let mut events: Vec<_> = ring.frequent.iter().chain(&ring.others).filter(|event| event.id > id).cloned().collect();
        events.sort_unstable_by_key(|event| event.id);
        events
    }

    /// Changes with each further event.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

impl Live {
    /// Notes an event of this model.
    pub(super) fn note(&self, kind: Kind, version: Version, text: String) {
        self.events.note(&self.name, kind, version, text);
    }

    /// Notes a decision that was carried out, where the model's own budget was `budget_before`.
    pub(super) fn note_decision(&self, decision: &Decision, budget_before: Option<u64>) {
        let (kind, text) = match &decision.what {
            What::Plan(planned) => {
                let holds = format!("its plan holds at most {}", iec(self.status_lent().planned_bytes));
                let limit = |budget: Option<u64>| budget.map_or("no limit".to_owned(), iec);
                match planned.budget_bytes {
                    budget if budget != budget_before => {
                        (Kind::Budget, format!("memory budget set from {} to {}; {holds}", limit(budget_before), limit(budget)))
                    }
                    _ if planned.by_hand => (Kind::Plan, format!("a plan written by hand is followed; {holds}")),
                    _ => (Kind::Plan, format!("another plan is followed; {holds}")),
                }
            }
            What::LearningRate(rate) => (Kind::LearningRate, format!("learning rate set to {rate}")),
            What::Setting(value) => (Kind::Setting, format!("set to {value}")),
            What::React { learning_rate, before, through } => {
                let text = format!("learning rate {learning_rate} up to row {through}, because of a drift; it was {before}");
                (Kind::LearningRate, text)
            }
            What::Skip { through, kept } => {
                let skipped = (through - decision.at.sequence) as usize - kept.len();
                (Kind::Skip, format!("{skipped} rows up to {through} are skipped: more waited than its window holds"))
            }
            What::Quarantine { through, reason } => {
                (Kind::Quarantine, format!("rows {} to {through} are quarantined: {reason}", decision.at.sequence + 1))
            }
        };
        self.note(kind, decision.at, text);
    }
}

fn iec(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(events: &Events, model: &str, kind: Kind) {
        events.note(model, kind, Version::default(), "it happened".to_owned());
    }

    #[test]
    fn the_newest_are_kept_and_found_by_id() {
        let events = Events::default();
        let mut news = events.subscribe();
        for _ in 0..EVENTS_KEPT + 3 {
            note(&events, "m", Kind::Budget);
        }
        assert!(news.has_changed().unwrap());
        news.mark_unchanged();
        let all = events.after(0);
        assert_eq!(all.len(), EVENTS_KEPT);
        assert!(all.windows(2).all(|pair| pair[0].id + 1 == pair[1].id));
        let last = all[EVENTS_KEPT - 1].id;
        assert_eq!(events.after(last - 2).iter().map(|event| event.id).collect::<Vec<_>>(), [last - 1, last]);
        assert!(events.after(last).is_empty());
        assert_eq!(events.after(last + 1).len(), EVENTS_KEPT, "an id of a clock that was ahead");
        assert!(!news.has_changed().unwrap());
    }

    #[test]
    fn what_comes_with_every_step_does_not_push_out_the_rest() {
        let events = Events::default();
        note(&events, "m", Kind::Budget);
        for _ in 0..2 * EVENTS_KEPT {
            note(&events, "m", Kind::Skip);
            note(&events, "other", Kind::Skip);
        }
        let kinds: Vec<_> = events.after(0).iter().map(|event| (event.kind, event.model.clone())).collect();
        let expected = [(Kind::Budget, "m"), (Kind::Skip, "m"), (Kind::Skip, "other")];
        assert_eq!(kinds, expected.map(|(kind, model)| (kind, model.to_owned())));
        // However many models do so.
        (0..2 * EVENTS_KEPT).for_each(|model| note(&events, &format!("m{model}"), Kind::Skip));
        assert_eq!(events.after(0)[0].kind, Kind::Budget);
    }
}
