//! All models of the process: making them, finding them again after a restart, and letting them go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

use super::attempt::Attempt;
use super::blobs::{self, Blobs};
use super::budget::{Overcommitted, Shared};
use super::checkpoint;
use super::decision::{Decision, Planned, What};
use super::events::{Events, Kind};
use super::kind::{Kinds, SpecError};
use super::live::{ChangeError, Command, Live, Wish, Wished};
use super::share::Claim;
use super::spec::{ModelSpec, Start};
use super::{Ground, ModelError};
use crate::fold::{BelowMinimum, Change, Sequence, Version};
use crate::limits;
use crate::stream::log::{Entry, LogError};
use crate::stream::{Stream, StreamError, Streams, check_name};

/// Why a model was not made or found.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such model.
    #[error("there is no model `{0}`")]
    NotFound(String),
    /// Another model has the name.
    #[error("the model `{0}` exists with other settings; a model is changed by PATCH, or deleted first")]
    Conflict(String),
    /// Models learn from the stream that is to be deleted.
    #[error("models learn from stream `{stream}`: {models}; delete them first")]
    InUse {
        /// The stream.
        stream: String,
        /// Their names.
        models: String,
    },
    /// It judges the queries of others.
    #[error("model `{model}` judges the queries of {guarded}: take it from there first")]
    Guards {
        /// Which.
        model: String,
        /// Their names.
        guarded: String,
    },
    /// The name, or a number of models, is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The stream is not there.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The models need more than they may hold together.
    #[error(transparent)]
    Overcommitted(#[from] Overcommitted),
    /// More than the ceiling leaves.
    #[error("a budget of {budget_bytes} bytes is more than the {most_bytes} bytes that memory.ceiling leaves for models")]
    AboveCeiling {
        /// What was asked for.
        budget_bytes: u64,
        /// What there is.
        most_bytes: u64,
    },
    /// A weight is none, or of no model.
    #[error("{0}")]
    Weight(String),
    /// A model could not follow.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The kind refuses the spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The log could not store it; the process is ending.
    #[error(transparent)]
    Storage(#[from] LogError),
    /// Anything else that stops a driver.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What the log keeps of a model.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Record {
    pub(super) spec: ModelSpec,
    /// The row after which the model begins.
    pub(super) origin: Sequence,
    /// When it was made, in seconds since 1970.
    pub(super) created: u64,
}

/// A model and its thread.
pub(super) struct Running {
    pub(super) live: Arc<Live>,
    pub(super) thread: JoinHandle<()>,
}

/// All models.
pub struct Models {
    pub(super) ground: Arc<Ground>,
    pub(super) streams: Arc<Streams>,
    pub(super) kinds: Kinds,
    pub(super) running: RwLock<BTreeMap<String, Running>>,
    /// What was asked of the memory that models share.
    pub(super) shared: Mutex<Shared>,
    /// Held while a model is made or deleted, so that two requests cannot both make it, and while memory is shared.
    pub(super) changing: Mutex<()>,
}

/// The longest that a client is asked to wait.
const RETRY_SECONDS_MAX: f64 = 2.0;

/// A stream that is too far ahead of a model under backpressure.
#[derive(Clone, Debug)]
pub struct Behind {
    /// Which model.
    pub model: String,
    /// How far.
    pub lag_rows: u64,
    /// After so many seconds it will have caught up enough, at its present rate.
    pub retry_after_seconds: u32,
}

impl Models {
    /// Brings back every model that the log knows, each from its newest whole checkpoint.
    pub fn open(ground: Arc<Ground>, streams: Arc<Streams>, kinds: Kinds) -> Result<Models, RegistryError> {
        let shared = Mutex::new(Shared::read(streams.log())?);
        let models = Models { ground, streams, kinds, running: RwLock::default(), shared, changing: Mutex::default() };
        models.resume_all()?;
        models.recall_guards()?;
        Ok(models)
    }

    /// Makes a model; `false` where it was there already, as asked for. What is given as its first setting holds before its first row.
    pub fn create(&self, name: &str, spec: ModelSpec, first: Option<Wish>) -> Result<(Arc<Live>, bool), RegistryError> {
        check_name(name).map_err(RegistryError::Invalid)?;
        let _changing = self.changing.lock();
        if let Ok(live) = self.get(name) {
            return if live.spec == spec { Ok((live, false)) } else { Err(RegistryError::Conflict(name.to_owned())) };
        }
        if self.running.read().len() >= limits::MODELS_MAX {
            return Err(RegistryError::Invalid(format!("{} models are the most", limits::MODELS_MAX)));
        }
        spec.overload.check(self.ground.settings.lag_rows_max).map_err(RegistryError::Invalid)?;
        spec.on_drift.map_or(Ok(()), |on_drift| on_drift.check()).map_err(RegistryError::Invalid)?;
        let stream = self.streams.get(&spec.stream)?;
        if spec.overload.may_skip() && stream.schema.late_labels.is_some() {
            let reason =
                "overload: a stream with late labels is learned under backpressure; rows that wait for labels are not skipped";
            return Err(RegistryError::Invalid(reason.into()));
        }
        let id = self.streams.log().next_model_id()?;
        // From here on the log keeps what the model will begin with.
        self.ground.need(&stream, id, 0);
        let made = self.make(id, name, spec, stream.clone(), first);
        if made.is_err() {
            self.ground.release(&stream, id);
            // What it was to begin with; the next model may get its id.
            let removed = self.ground.disk.remove_dir(&blobs::folder(&self.ground.folder.path, id));
            removed.unwrap_or_else(|error| tracing::warn!(model = name, %error, "blobs stay that nobody needs"));
            self.share_again();
        }
        Ok((made?, true))
    }

    /// Plans, builds, writes down and starts a new model; the plan comes first, because it says whether the rest fits. The others
    /// make room for it before it takes any.
    fn make(
        &self,
        id: u32,
        name: &str,
        spec: ModelSpec,
        stream: Arc<Stream>,
        first: Option<Wish>,
    ) -> Result<Arc<Live>, RegistryError> {
        let budget_bytes = spec.memory_budget.map(|budget| budget.as_u64());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record = Record { origin: origin(&spec, &stream)?, spec, created };
        let recovery = self.recovery(id, name, &record, &stream)?;
        let (kind, given) = (&recovery.kind, recovery.given());
        let propose = |most_bytes: u64| kind.propose_plan(given, Some(most_bytes));
        let minimum_bytes = match propose(0) {
            Err(SpecError::BelowMinimum(below)) => below.minimum_bytes,
            Err(error) => return Err(error.into()),
            Ok(_) => 0,
        };
        let most_bytes = self.ground.within(budget_bytes);
        if most_bytes < minimum_bytes {
            return Err(SpecError::from(BelowMinimum { budget_bytes: most_bytes, minimum_bytes }).into());
        }
        let shared = self.shared.lock().clone();
        let claim = Claim { weight: 1.0, floor: minimum_bytes, cap: most_bytes };
        let (others, allotted_bytes) = self.divide(&shared, Some(claim))?;
        self.follow(&others, None)?;
        let plan = propose(allotted_bytes)?;
        let fold = kind.build(given)?;
        let at = Version { epoch: 0, sequence: record.origin };
        let planned = Planned { budget_bytes, allotted_bytes: Some(allotted_bytes), by_hand: false, plan };
        let mut decisions = vec![Decision { at, what: What::Plan(planned) }];
        let first = first.map(|wish| wish().map_err(ChangeError::Refused)).transpose()?.flatten();
        if let Some(Wished { value, blob }) = first {
            blob.map_or(Ok(()), |bytes| recovery.blobs.keep_or_end(&self.ground, &bytes))?;
            fold.check(&Change::Setting(value.clone())).map_err(ChangeError::Refused)?;
            decisions.push(Decision { at, what: What::Setting(value) });
        }
        self.write_down(id, name, &record, &decisions)?;
        let begun = recovery.begin(fold, decisions).and_then(|recovered| self.start(recovery, recovered, record.origin));
        if begun.is_err() {
            // It is in the log, and nobody runs it.
            self.ground.committer.commit(vec![Entry::DeleteModel { model: id }])?;
        }
        let live = begun?;
        live.note(Kind::ModelCreated, at, format!("made, to learn from stream `{}`", live.spec.stream));
        Ok(live)
    }

    /// Has the log keep a new model, with what it begins with.
    fn write_down(&self, id: u32, name: &str, record: &Record, decisions: &[Decision]) -> Result<(), RegistryError> {
        let bytes = serde_json::to_vec(record).map_err(|error| ModelError::Inconsistent(error.to_string()))?;
        let mut entries = vec![Entry::PutModel { model: id, name: name.to_owned(), bytes }];
        for (index, decision) in (0..).zip(decisions) {
            entries.push(Entry::Decision { model: id, index, bytes: decision.encode().map_err(ModelError::from)? });
        }
        self.ground.committer.commit(entries)?;
        Ok(())
    }

    /// The blobs of the model with this id.
    pub(super) fn blobs(&self, id: u32) -> Blobs {
        Blobs::new(self.ground.disk.clone(), &self.ground.folder.path, id)
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Result<Arc<Live>, RegistryError> {
        let running = self.running.read();
        running.get(name).map(|running| running.live.clone()).ok_or_else(|| RegistryError::NotFound(name.to_owned()))
    }

    /// All models, by name.
    pub fn list(&self) -> Vec<Arc<Live>> {
        self.running.read().values().map(|running| running.live.clone()).collect()
    }

    /// What happened to them lately.
    pub fn events(&self) -> &Events {
        &self.ground.events
    }

    /// Ends a model and forgets its state, its decisions and its checkpoints.
    pub fn delete(&self, name: &str) -> Result<(), RegistryError> {
        let _changing = self.changing.lock();
        let guarded = self.wards_of(name);
        if !guarded.is_empty() {
            return Err(RegistryError::Guards { model: name.to_owned(), guarded: guarded.join(", ") });
        }
        let running = self.running.write().remove(name);
        let Running { live, thread } = running.ok_or_else(|| RegistryError::NotFound(name.to_owned()))?;
        drop(live.commands.send(Command::Abandon));
        drop(thread.join());
        self.ground.metrics.remove_model(name);
        self.ground.release(&live.stream, live.id);
        let shared = self.shared.lock().clone().without(live.id);
        let mut entries = vec![Entry::DeleteModel { model: live.id }, shared.entry()?];
        if live.guard.load().is_some() {
            entries.push(self.guards_with(&live, None)?);
        }
        self.ground.committer.commit(entries)?;
        *self.shared.lock() = shared;
        let folders = [checkpoint::folder, blobs::folder].map(|folder| folder(&self.ground.folder.path, live.id));
        let removed = folders.iter().try_for_each(|folder| self.ground.disk.remove_dir(folder));
        let removed = removed.and_then(|()| Attempt::remove(self.ground.disk.as_ref(), &self.ground.folder.path, live.id));
        removed.map_err(|error| ModelError::Checkpoint(error.into()))?;
        live.note(Kind::ModelDeleted, live.status_lent().version, "deleted".to_owned());
        self.share_again();
        Ok(())
    }

    /// Deletes a stream that no model learns from. No model can be made on it meanwhile.
    pub fn delete_stream(&self, name: &str) -> Result<(), RegistryError> {
        let _changing = self.changing.lock();
        self.streams.get(name)?;
        let models = self.of_stream(name);
        if !models.is_empty() {
            return Err(RegistryError::InUse { stream: name.to_owned(), models: models.join(", ") });
        }
        Ok(self.streams.delete(name)?)
    }

    /// The names of the models that learn from `stream`.
    pub fn of_stream(&self, stream: &str) -> Vec<String> {
        self.list().into_iter().filter(|live| live.spec.stream == stream).map(|live| live.name.clone()).collect()
    }

    /// The model under backpressure that is furthest behind `stream`, if one is too far behind to take more.
    pub fn behind(&self, stream: &Stream) -> Option<Behind> {
        let models = self.list().into_iter().filter(|live| live.stream.id == stream.id);
        let behind = models.filter_map(|live| {
            let lag_rows_max = live.lag_rows_max?;
            let lag_rows = live.lag_rows();
            if lag_rows <= lag_rows_max {
                live.caught_up.store(true, Relaxed);
                return None;
            }
            // A model that has yet to catch up with a stream that was there before it does not stop that stream; nor does one
            // that stands still.
            if !live.caught_up.load(Relaxed) || live.status_lent().failure.is_some() {
                return None;
            }
            // Just after a start the rate is not known yet: ask again soon, as asking costs little.
            let seconds = (lag_rows - lag_rows_max) as f64 / live.rows_per_second().max(1.0);
            let retry_after_seconds = seconds.ceil().clamp(1.0, RETRY_SECONDS_MAX) as u32;
            Some(Behind { model: live.name.clone(), lag_rows, retry_after_seconds })
        });
        behind.max_by_key(|behind| behind.lag_rows)
    }

    /// Lets the log forget all that no checkpoint needs, whatever is retained otherwise: it is full.
    ///
    /// # Errors
    /// The log failed.
    pub fn make_room(&self) -> Result<(), RegistryError> {
        for stream in self.streams.list() {
            self.ground.trim(&stream, 0)?;
        }
        Ok(())
    }

    /// Ends every driver with a checkpoint, and waits for them.
    pub fn stop(&self) {
        let running = std::mem::take(&mut *self.running.write());
        for running in running.values() {
            drop(running.live.commands.send(Command::Stop));
        }
        for (name, running) in running {
            if running.thread.join().is_err() {
                tracing::error!(model = name, "the driver panicked");
            }
        }
    }
}

/// The row after which a model of this spec begins.
fn origin(spec: &ModelSpec, stream: &Stream) -> Result<Sequence, RegistryError> {
    let (first, last) = stream.bounds()?;
    match spec.start {
        Start::Now => Ok(last),
        Start::Earliest => Ok(first - 1),
        Start::At(sequence) if sequence < first || sequence > last + 1 => Err(RegistryError::Invalid(format!(
            "start {sequence} is not in the log of stream `{}`: it has rows {first} to {last}",
            stream.name
        ))),
        Start::At(sequence) => Ok(sequence - 1),
    }
}
