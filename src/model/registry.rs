//! All models of the process: making them, finding them again after a restart, and letting them go.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::checkpoint::{self, Loaded};
use super::decision::{Decision, What};
use super::driver::Driver;
use super::kind::{Kinds, SpecError};
use super::live::{Command, Live, Progress, Published};
use super::queue::{Queue, queued_bytes_max};
use super::spec::{ModelSpec, Overload, Start};
use super::status::{CheckpointFigures, Status, Tally};
use super::{Ground, ModelError};
use crate::fold::{BelowMinimum, Fold, Sequence, Version};
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
    /// The name, or a number of models, is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The stream is not there.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The kind refuses the spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No plan fits the budget.
    #[error(transparent)]
    BelowMinimum(#[from] BelowMinimum),
    /// The log could not store it; the process is ending.
    #[error(transparent)]
    Storage(#[from] LogError),
    /// Anything else that stops a driver.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What the log keeps of a model.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Record {
    spec: ModelSpec,
    /// The row after which the model begins.
    origin: Sequence,
    /// When it was made, in seconds since 1970.
    created: u64,
}

/// A model and its thread.
struct Running {
    live: Arc<Live>,
    thread: JoinHandle<()>,
}

/// All models.
pub struct Models {
    ground: Arc<Ground>,
    streams: Arc<Streams>,
    kinds: Kinds,
    running: RwLock<BTreeMap<String, Running>>,
    /// Held while a model is made or deleted, so that two requests cannot both make it.
    changing: Mutex<()>,
}

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
        let models = Models { ground, streams, kinds, running: RwLock::default(), changing: Mutex::default() };
        for (id, (name, bytes)) in models.streams.log().models()? {
            let record: Record = serde_json::from_slice(&bytes)
                .map_err(|error| ModelError::Inconsistent(format!("model `{name}` cannot be read from the log: {error}")))?;
            models.resume(id, name, record)?;
        }
        Ok(models)
    }

    /// Makes a model; `false` where it was there already, as asked for.
    pub fn create(&self, name: &str, spec: ModelSpec) -> Result<(Arc<Live>, bool), RegistryError> {
        check_name(name).map_err(RegistryError::Invalid)?;
        let _changing = self.changing.lock();
        if let Ok(live) = self.get(name) {
            return if live.spec == spec { Ok((live, false)) } else { Err(RegistryError::Conflict(name.to_owned())) };
        }
        if self.running.read().len() >= limits::MODELS_MAX {
            return Err(RegistryError::Invalid(format!("{} models are the most", limits::MODELS_MAX)));
        }
        let stream = self.streams.get(&spec.stream)?;
        let fold = self.kinds.get(&spec.kind)?.build(&spec.settings, &stream.schema, queued_bytes_max(&stream.schema))?;
        let origin = origin(&spec, &stream)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let at = Version { epoch: 0, sequence: origin };
        let budget_bytes = spec.memory_budget.map(|budget| budget.as_u64());
        let plan = fold.propose_plan(budget_bytes)?;
        let first = Decision { at, what: What::Plan { budget_bytes, plan } };
        let record = serde_json::to_vec(&Record { spec: spec.clone(), origin, created })
            .map_err(|error| ModelError::Inconsistent(error.to_string()))?;
        let id = self.streams.log().next_model_id()?;
        let put = Entry::PutModel { model: id, name: name.to_owned(), bytes: record };
        let decided = Entry::Decision { model: id, index: 0, bytes: first.encode().map_err(ModelError::from)? };
        self.ground.committer.commit(vec![put, decided])?;
        let name = name.to_owned();
        let begin = Begin { id, name, spec, stream, origin, created, fold, loaded: None, followed: None, decisions: vec![first] };
        let live = self.start(begin)?;
        Ok((live, true))
    }

    /// Brings one model back from its newest whole checkpoint.
    fn resume(&self, id: u32, name: String, record: Record) -> Result<(), RegistryError> {
        let Record { spec, origin, created } = record;
        let stream = self.streams.get(&spec.stream)?;
        let mut fold = self.kinds.get(&spec.kind)?.build(&spec.settings, &stream.schema, queued_bytes_max(&stream.schema))?;
        let loaded = self.restore(id, &name, fold.as_mut())?;
        let mut decisions = Vec::new();
        for bytes in self.streams.log().decisions(id)? {
            decisions.push(Decision::decode(&bytes).map_err(ModelError::from)?);
        }
        let held = loaded.as_ref().map_or(0, |(head, _)| head.decisions as usize);
        let pending = decisions.split_off(held.min(decisions.len()));
        // The state follows a plan already; which budget it answers stands in the decision.
        let followed = decisions.into_iter().rev().find_map(|decision| match decision.what {
            What::Plan { budget_bytes, plan } => Some((budget_bytes, plan)),
            What::LearningRate(_) => None,
        });
        self.start(Begin { id, name, spec, stream, origin, created, fold, loaded, followed, decisions: pending })?;
        Ok(())
    }

    /// Puts the newest whole checkpoint into a fresh fold, if there is one.
    fn restore(
        &self,
        id: u32,
        name: &str,
        fold: &mut dyn Fold,
    ) -> Result<Option<(checkpoint::Head, checkpoint::Entry)>, ModelError> {
        let folder = checkpoint::folder(&self.ground.data_dir, id);
        let (loaded, faults) = checkpoint::Store::new(self.ground.disk.as_ref(), folder).load_newest()?;
        for fault in faults {
            tracing::warn!(model = name, %fault, "an older checkpoint and the log take over");
        }
        let Some(Loaded { head, state, entry }) = loaded else { return Ok(None) };
        if head.folder != self.ground.folder_identity {
            let text = format!("the checkpoint of model `{name}` belongs to data folder {}", head.folder);
            return Err(ModelError::Inconsistent(text));
        }
        let identity = fold.identity();
        if head.identity != identity {
            let then = &head.identity;
            let text = format!("model `{name}` was folded by [{then}], this process is [{identity}]: its bits would differ");
            return Err(ModelError::Inconsistent(text));
        }
        fold.restore(state)?;
        Ok(Some((head, entry)))
    }

    /// Starts a model's driver where its state stands.
    fn start(&self, begin: Begin) -> Result<Arc<Live>, RegistryError> {
        let (commands, asked) = unbounded();
        let (waker, wake) = bounded(1);
        begin.stream.subscribe(waker);
        let (live, mut driver) = self.assemble(begin, commands, asked, wake)?;
        // What was decided at this very version holds from the first look on.
        driver.execute_due()?;
        let oldest =
            driver.live.status.lock().checkpoint.as_ref().map_or(driver.cursor.sequence, |kept| kept.oldest_kept.sequence);
        self.ground.need(&live.stream, live.id, oldest);
        let thread = thread::Builder::new().name(format!("mustela-{}", live.name)).spawn(move || driver.live_through());
        let thread = thread.map_err(|error| ModelError::Inconsistent(format!("no thread for model `{}`: {error}", live.name)))?;
        self.running.write().insert(live.name.clone(), Running { live: live.clone(), thread });
        Ok(live)
    }

    fn assemble(
        &self,
        begin: Begin,
        commands: Sender<Command>,
        asked: Receiver<Command>,
        wake: Receiver<()>,
    ) -> Result<(Arc<Live>, Driver), RegistryError> {
        let Begin { id, name, spec, stream, origin, created, mut fold, loaded, followed, decisions } = begin;
        let tally = loaded.as_ref().map_or_else(|| Tally::new(self.ground.settings.sliding_rows), |(head, _)| head.tally.clone());
        let version = loaded.as_ref().map_or(Version { epoch: 0, sequence: origin }, |(head, _)| head.version);
        let mut status = Status::new(version, origin, tally);
        if let Some((budget_bytes, plan)) = followed {
            (status.budget_bytes, status.plan) = (budget_bytes, plan);
        }
        status.planned_bytes = fold.planned_bytes();
        status.minimum_bytes = fold.minimum_bytes();
        status.learning_rate = fold.learning_rate();
        status.checkpoint = loaded.as_ref().map(|(head, entry)| CheckpointFigures {
            version: head.version,
            oldest_kept: head.version,
            state_hash: entry.state_hash.clone(),
            unix_seconds: entry.unix_seconds,
            seconds: 0.0,
        });
        let snapshot = fold.snapshot().map_err(ModelError::from)?;
        let snapshot = snapshot.ok_or_else(|| ModelError::Inconsistent("a new fold has no snapshot".into()))?;
        let live = Arc::new(Live {
            id,
            name,
            created_unix_seconds: created,
            spec,
            stream,
            ledger: fold.ledger().clone(),
            published: ArcSwap::from_pointee(Published { version, snapshot }),
            status: Mutex::new(status),
            commands,
            progress: watch::Sender::new(Progress { version, ended: false }),
        });
        let driver = Driver {
            live: live.clone(),
            ground: self.ground.clone(),
            fold,
            commands: asked,
            wake,
            decisions: VecDeque::from(decisions),
            deferred: VecDeque::new(),
            decided: loaded.as_ref().map_or(0, |(head, _)| head.decisions),
            cursor: version,
            queue: Queue::default(),
            published_at: Instant::now(),
            publish_now: false,
            saved_at: Instant::now(),
            saved_version: loaded.as_ref().map(|(head, _)| head.version),
            step_seconds: self.ground.metrics.model_step_seconds.with_label_values(&[&live.name]),
            refusing: false,
        };
        Ok((live, driver))
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

    /// Ends a model and forgets its state, its decisions and its checkpoints.
    pub fn delete(&self, name: &str) -> Result<(), RegistryError> {
        let _changing = self.changing.lock();
        let running = self.running.write().remove(name);
        let Running { live, thread } = running.ok_or_else(|| RegistryError::NotFound(name.to_owned()))?;
        drop(live.commands.send(Command::Abandon));
        drop(thread.join());
        self.ground.release(&live.stream, live.id);
        self.ground.committer.commit(vec![Entry::DeleteModel { model: live.id }])?;
        let folder = checkpoint::folder(&self.ground.data_dir, live.id);
        self.ground.disk.remove_dir(&folder).map_err(|error| ModelError::Checkpoint(error.into()))?;
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
            let Overload::Backpressure { lag_rows_max } = live.spec.overload;
            let lag_rows_max = lag_rows_max.unwrap_or(self.ground.settings.lag_rows_max);
            let lag_rows = live.lag_rows();
            if lag_rows <= lag_rows_max || live.status_lent().failure.is_some() {
                return None;
            }
            let seconds = (lag_rows - lag_rows_max) as f64 / live.rows_per_second().max(1.0);
            let retry_after_seconds = seconds.ceil().clamp(1.0, 60.0) as u32;
            Some(Behind { model: live.name.clone(), lag_rows, retry_after_seconds })
        });
        behind.max_by_key(|behind| behind.lag_rows)
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

/// What a driver begins with.
struct Begin {
    id: u32,
    name: String,
    spec: ModelSpec,
    stream: Arc<Stream>,
    origin: Sequence,
    created: u64,
    fold: Box<dyn Fold>,
    loaded: Option<(checkpoint::Head, checkpoint::Entry)>,
    /// The budget and the plan that the state follows, where it follows one.
    followed: Option<(Option<u64>, serde_json::Value)>,
    /// Decisions that the state does not hold yet.
    decisions: Vec<Decision>,
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
