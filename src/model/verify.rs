//! Whether the checkpoints of a model are what its log gives: all of its rows and decisions folded once more, by nobody but this
//! thread, and compared at each checkpoint on the way.

use std::sync::Arc;

use super::ModelError;
use super::blobs::Blobs;
use super::checkpoint::{Entry, Head, Loaded, Store, state_hash};
use super::decision::{Decision, What};
use super::kind::{Given, Kinds};
use super::queue::{Passage, Pulled, queued_bytes_max};
use super::recovery::queue_at;
use super::registry::{Record, RegistryError};
use super::status::Counters;
use crate::fold::{Fold, FoldError, Version};
use crate::stream::Stream;

/// What was found of one model.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verified {
    /// Where the fold began: at the model's origin, or, where the log has forgotten those rows or blobs are gone that they need, at the
    /// oldest whole checkpoint.
    pub from: Version,
    /// Where it ended: at the end of the log.
    pub to: Version,
    /// Decisions that were carried out, those before `from` included.
    pub decisions: u64,
    /// Each kept checkpoint, oldest first.
    pub checkpoints: Vec<Compared>,
}

/// One checkpoint beside the log.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Compared {
    /// Its file.
    pub file: String,
    /// What it says that it holds.
    pub version: Version,
    /// The hash of its state, as its manifest has it.
    pub state_hash: String,
    /// How it compares.
    pub finding: Finding,
}

/// How a checkpoint compares with the log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The log gives the same state and the same counters.
    Same,
    /// The fold began at it, as there is nothing older to begin at.
    Begun,
    /// It is something else than the log gives.
    Differs {
        /// What the log gives.
        state_hash: String,
        /// The counters that the log gives, and those that it says, where they differ.
        counters: Option<Box<(Counters, Counters)>>,
    },
    /// It cannot be read, for the reason given.
    Broken(String),
    /// The fold never came to its version with as many decisions.
    Missed,
}

impl Finding {
    /// Whether nothing speaks against the checkpoint.
    pub fn is_good(&self) -> bool {
        matches!(self, Finding::Same | Finding::Begun)
    }
}

/// A checkpoint that is yet to be compared.
struct Awaited {
    entry: Entry,
    head: Result<Head, String>,
    finding: Option<Finding>,
}

/// Folds the log of the model that `record` describes, with its decisions, and compares its checkpoints in `store`.
///
/// # Errors
/// The log cannot be read or folded.
pub fn verify(
    kinds: &Kinds,
    record: &[u8],
    stream: &Arc<Stream>,
    decisions: &[Decision],
    store: &Store<'_>,
    blobs: &Blobs,
) -> Result<Verified, RegistryError> {
    let record: Record = serde_json::from_slice(record)
        .map_err(|error| ModelError::Inconsistent(format!("the model cannot be read from the log: {error}")))?;
    let (spec, origin) = (&record.spec, record.origin);
    let queued_bytes = queued_bytes_max(&stream.schema, None);
    let given = Given {
        settings: &spec.settings,
        schema: &stream.schema,
        queued_bytes,
        may_skip: spec.overload.may_skip(),
        blobs: Some(blobs),
    };
    let kind = kinds.get(&spec.kind)?;
    let fold = kind.build(given)?;
    let mut folding = Folding { fold, stream, decisions, awaited: awaited(store)?, passed: Passed::default() };
    let (first, _) = stream.bounds()?;
    let has_all =
        first <= origin + 1 && blobs.have_all(decisions, kind.as_ref()).map_err(|error| ModelError::Checkpoint(error.into()))?;
    let from = if has_all { Version { epoch: 0, sequence: origin } } else { folding.begin_at_oldest(store)? };
    let to = folding.fold_the_rest(origin, from)?;
    let compared = |awaited: Awaited| Compared {
        file: awaited.entry.file,
        version: awaited.entry.version,
        state_hash: awaited.entry.state_hash,
        finding: awaited.finding.unwrap_or_else(|| awaited.head.map_or_else(Finding::Broken, |_| Finding::Missed)),
    };
    let (decided, checkpoints) = (folding.passed.decided, folding.awaited.into_iter().map(compared).collect());
    Ok(Verified { from, to, decisions: decided as u64, checkpoints })
}

fn awaited(store: &Store<'_>) -> Result<Vec<Awaited>, ModelError> {
    let awaited = |entry: Entry| {
        let head = store.load(entry.clone()).map(|loaded| loaded.head).map_err(|error| error.to_string());
        Awaited { entry, head, finding: None }
    };
    Ok(store.entries()?.into_iter().map(awaited).collect())
}

/// What the fold has come by.
#[derive(Default)]
struct Passed {
    counters: Counters,
    decided: usize,
}

struct Folding<'a> {
    fold: Box<dyn Fold>,
    stream: &'a Stream,
    decisions: &'a [Decision],
    awaited: Vec<Awaited>,
    passed: Passed,
}

impl Folding<'_> {
    /// Begins at the oldest whole checkpoint.
    fn begin_at_oldest(&mut self, store: &Store<'_>) -> Result<Version, ModelError> {
        let oldest = self.awaited.iter_mut().find(|awaited| awaited.head.is_ok());
        let oldest = oldest.ok_or_else(|| {
            ModelError::Inconsistent(
                "the model's first rows, or blobs that they need, are gone, and no whole checkpoint is left to begin at".into(),
            )
        })?;
        let Loaded { head, state, .. } = store.load(oldest.entry.clone())?;
        if head.identity != self.fold.identity() {
            let (then, now) = (&head.identity, self.fold.identity());
            return Err(ModelError::Inconsistent(format!(
                "it was folded by [{then}], this process is [{now}]: its bits would differ"
            )));
        }
        self.fold.restore(state)?;
        oldest.finding = Some(Finding::Begun);
        self.passed = Passed { counters: head.tally.counters, decided: head.decisions as usize };
        Ok(head.version)
    }

    /// Folds all that comes after `from`.
    fn fold_the_rest(&mut self, origin: u64, from: Version) -> Result<Version, ModelError> {
        let held = self.decisions.get(..self.passed.decided);
        let held = held.ok_or_else(|| ModelError::Inconsistent("the checkpoint holds more decisions than the log has".into()))?;
        let mut queue = queue_at(self.stream, origin, held, from, self.fold.as_ref())?;
        let mut at = from;
        loop {
            self.compare(at)?;
            if let Some(decision) = self.decisions.get(self.passed.decided).filter(|decision| decision.at.sequence <= at.sequence)
            {
                if decision.at.sequence < at.sequence {
                    let late = format!("a decision at version {} came up at {at}", decision.at);
                    return Err(ModelError::Inconsistent(late));
                }
                self.drain()?;
                match &decision.what {
                    What::Skip { through, kept } => queue.select(*through, kept),
                    What::Quarantine { through, .. } => queue.refuse(*through),
                    what => what.change().map_or(Ok(()), |change| self.fold.carry_out(&change))?,
                }
                self.passed.decided += 1;
                continue;
            }
            let Some(Pulled { passage, step, .. }) = queue.next(self.stream, at.sequence, self.fold.as_ref())? else { break };
            at.sequence = passage.last;
            self.passed.note(&passage);
            if let Some(step) = step {
                let mut outcomes = Vec::new();
                self.fold.apply(step, &mut outcomes)?;
                outcomes.iter().for_each(|outcome| self.passed.counters.settle(outcome));
            }
        }
        self.drain()?;
        Ok(at)
    }

    /// Compares the checkpoints of this version, with as many decisions.
    fn compare(&mut self, at: Version) -> Result<(), ModelError> {
        let decided = self.passed.decided as u64;
        let is_due = |awaited: &Awaited| {
            awaited.finding.is_none()
                && awaited.head.as_ref().is_ok_and(|head| head.version.sequence == at.sequence && head.decisions == decided)
        };
        if !self.awaited.iter().any(is_due) {
            return Ok(());
        }
        self.drain()?;
        let state = self.fold.checkpoint()?;
        let hash = state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)));
        let hash = hash.map_err(|error| FoldError::Contract(error.to_string()))?;
        for awaited in self.awaited.iter_mut().filter(|awaited| is_due(awaited)) {
            let Ok(head) = &awaited.head else { continue };
            let (mine, theirs) = (self.passed.counters, head.tally.counters);
            let counters = (mine != theirs).then(|| Box::new((mine, theirs)));
            let same = awaited.entry.state_hash == hash && counters.is_none();
            awaited.finding = Some(if same { Finding::Same } else { Finding::Differs { state_hash: hash.clone(), counters } });
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), ModelError> {
        let mut outcomes = Vec::new();
        self.fold.drain(&mut outcomes)?;
        outcomes.iter().for_each(|outcome| self.passed.counters.settle(outcome));
        Ok(())
    }
}

impl Passed {
    fn note(&mut self, passage: &Passage) {
        let counters = &mut self.counters;
        counters.skipped += passage.skipped.iter().map(|run| run.end() + 1 - run.start()).sum::<u64>();
        counters.labels += passage.labels;
        counters.expired += passage.expired;
        counters.quarantined += passage.refused;
    }
}
