//! Live models: each a fold over a stream, with its decisions, its checkpoints, a snapshot for readers and a memory budget.
//!
//! [`spec`] is what a user asks for ([`overload`]: and what is given up, by [`choice`], when too much comes; [`reaction`]: and what is
//! done about drifts), [`kind`] turns it into a fold ([`network`] is the first), `recovery` brings its state back and `begin` starts it.
//! `driver` is the thread that feeds the fold from the log by way of its `queue` (`late`: with the rows that wait for labels) and
//! writes down [`decision`]s and [`checkpoint`]s (`asked`: and answers the doors; [`blobs`] hold what decisions only name); `attempt` and `suspect` find the rows over which a fold or the process falls.
//! [`live`] is the model as the doors see it with its [`status`] and [`drift`]s, [`events`] tell what happened lately, [`predict`] answers queries, [`guard`] says who judges them, [`registry`] holds them
//! all, [`budget`] has them [`share`] what the process may hold, and [`verify`] folds a log once more.

mod asked;
mod attempt;
mod begin;
pub mod blobs;
pub mod budget;
pub mod checkpoint;
pub mod choice;
pub mod decision;
pub mod drift;
mod driver;
pub mod events;
pub mod guard;
pub mod kind;
mod late;
pub mod live;
pub mod network;
pub mod overload;
pub mod predict;
mod queue;
pub mod reaction;
mod recovery;
pub mod registry;
pub mod reply;
pub mod share;
pub mod spec;
pub mod status;
mod suspect;
pub mod verify;

pub use queue::{Passage, queued_bytes_max};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::fold::{FoldError, Sequence};
use crate::memory::Room;
use crate::metrics::Metrics;
use crate::stream::log::{Committer, Entry, LogError};
use crate::stream::{Stream, StreamError};

use checkpoint::CheckpointError;
use decision::{Decision, DecisionError};
use events::Events;
use predict::Predictor;
use status::Tally;

/// What stops a driver.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The fold could not go on.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The stream could not be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A decision could not be written down.
    #[error(transparent)]
    Storage(#[from] LogError),
    /// A checkpoint could not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A decision could not be encoded or read.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// Log, decisions and checkpoint do not fit together.
    #[error("{0}")]
    Inconsistent(String),
}

/// How models are driven, from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often a plan is looked at again; zero: never.
    pub review_interval: Duration,
    /// The longest that readers see the same snapshot while rows are learned.
    pub publish_interval: Duration,
    /// Rows behind that a model may be before its overload policy acts, where its spec does not say.
    pub lag_rows_max: u64,
    /// The largest budget of one model, in bytes.
    pub memory_bytes_max: u64,
    /// What the process may hold.
    pub room: Room,
    /// Rows of the sliding scores.
    pub sliding_rows: u64,
    /// How surely the loss must have risen to count as a drift: see [`drift::Adwin::new`].
    pub drift_delta: f64,
    /// Rows after which a checkpoint is written.
    pub checkpoint_rows: u64,
    /// Time after which a checkpoint is written.
    pub checkpoint_interval: Duration,
    /// Bytes of each stream that the log keeps beyond what its models need.
    pub retain_bytes: u64,
}

impl Settings {
    /// The scores and counters of a new model.
    fn tally(&self) -> Tally {
        Tally::new(self.sliding_rows, self.drift_delta)
    }
}

/// The data folder.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// What its log calls it, for ever.
    pub identity: String,
}

/// Before the process ends itself: no step that is under way is to blame for it.
pub fn forget_attempts(disk: &dyn Disk, data_dir: &std::path::Path) {
    attempt::Attempt::forget_all(disk, data_dir);
}

/// What all drivers stand on.
pub struct Ground {
    /// Where checkpoints are written.
    pub disk: Arc<dyn Disk>,
    /// Where all that is durable is.
    pub folder: Folder,
    /// The way into the log.
    pub committer: Committer,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// How models are driven.
    pub settings: Settings,
    /// Answers how rows are predicted that come before their labels.
    pub predictor: Predictor,
    /// What happened lately.
    pub events: Arc<Events>,
    /// Called where the disk has failed to keep what it was given: the process has to end.
    pub fatal: fn(&dyn std::fmt::Display),
    /// Held by the one model that gives its fold a step over which a process has ended: were two to do so, it would not be known whose
    /// step it was if it ended again.
    suspicion: Mutex<()>,
    /// Of each stream, how far back each model's checkpoints need it.
    needed: Mutex<BTreeMap<u32, BTreeMap<u32, Sequence>>>,
}

impl Ground {
    /// The ground of one process.
    pub fn new(
        disk: Arc<dyn Disk>,
        folder: Folder,
        committer: Committer,
        metrics: Arc<Metrics>,
        settings: Settings,
        predictor: Predictor,
        fatal: fn(&dyn std::fmt::Display),
    ) -> Ground {
        Ground {
            disk,
            folder,
            committer,
            metrics,
            settings,
            predictor,
            events: Arc::default(),
            fatal,
            suspicion: Mutex::default(),
            needed: Mutex::default(),
        }
    }

    /// Ends the process, because the disk may have lost what it was given. Whatever steps are under way are not to blame.
    fn end(&self, error: &dyn std::fmt::Display) {
        forget_attempts(self.disk.as_ref(), &self.folder.path);
        (self.fatal)(error);
    }

    /// Makes a decision durable.
    fn record_decision(&self, model: u32, index: u64, decision: &Decision) -> Result<(), ModelError> {
        let entry = Entry::Decision { model, index, bytes: decision.encode()? };
        self.committer.commit(vec![entry])?;
        Ok(())
    }

    /// What a plan may take for a budget that was asked for; none: as much as any model may have.
    fn within(&self, budget_bytes: Option<u64>) -> u64 {
        let most = self.settings.memory_bytes_max;
        budget_bytes.map_or(most, |budget| budget.min(most))
    }

    /// Notes that `model` needs the rows of `stream` after `sequence`, and those before whose labels may come yet.
    fn need(&self, stream: &Stream, model: u32, sequence: Sequence) {
        let sequence = sequence.saturating_sub(stream.schema.label_window());
        self.needed.lock().entry(stream.id).or_default().insert(model, sequence);
    }

    /// Notes that `model` needs nothing any more.
    fn release(&self, stream: &Stream, model: u32) {
        if let Some(models) = self.needed.lock().get_mut(&stream.id) {
            models.remove(&model);
        }
    }

    /// Lets the log forget what no kept checkpoint needs, beyond `retain_bytes` that are kept anyway. A stream that nobody learns
    /// from keeps all of its rows: its model may be yet to come.
    fn trim(&self, stream: &Stream, retain_bytes: u64) -> Result<(), ModelError> {
        let needed = self.needed.lock().get(&stream.id).and_then(|models| models.values().min().copied());
        if let Some(needed) = needed {
            let trimmed = stream.trim(needed + 1, retain_bytes);
            if let Err(error @ StreamError::Storage(LogError::Storage(_))) = &trimmed {
                // The log's writer would find out with the next post; nothing more is to be promised before that.
                self.end(error);
            }
            trimmed?;
        }
        Ok(())
    }
}
