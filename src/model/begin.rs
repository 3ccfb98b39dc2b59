//! How a model begins: fresh, from its newest whole checkpoint, or, where neither can be, standing still with the reason.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use arc_swap::ArcSwap;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter};
use tokio::sync::watch;

use super::ModelError;
use super::checkpoint::{self, CheckpointError, Loaded};
use super::decision::{Decision, Planned, What};
use super::driver::{Driver, stand};
use super::kind::Given;
use super::live::{Command, Live, Progress, Published};
use super::queue::{Queue, queued_bytes_max};
use super::registry::{Models, Record, RegistryError, Running};
use super::status::{CheckpointFigures, Status};
use crate::disk::is_sync_failure;
use crate::fold::{Fold, FoldError, Predictions, Sequence, Snapshot, Version};
use crate::ledger::Ledger;
use crate::rows::Rows;
use crate::stream::Stream;

/// What a driver begins with.
pub(super) struct Begin {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) record: Record,
    pub(super) stream: Arc<Stream>,
    pub(super) fold: Box<dyn Fold>,
    /// The checkpoint that the fold holds.
    pub(super) loaded: Option<(checkpoint::Head, CheckpointFigures)>,
    /// The plan that the state follows, where it follows one.
    pub(super) followed: Option<Planned>,
    /// The skip that the state is in the middle of, if any.
    pub(super) skip: Option<(Sequence, Vec<Sequence>)>,
    /// Decisions that the state does not hold yet.
    pub(super) decisions: Vec<Decision>,
    /// Rows up to here may have been learned, and seen to be, by an earlier process.
    pub(super) known: Sequence,
}

/// The snapshot of a model that has none to show: what is corrupt is never served.
struct Absent(String);

impl Snapshot for Absent {
    fn predict(&self, _: &Rows) -> Result<Predictions, FoldError> {
        Err(FoldError::Unavailable(self.0.clone()))
    }
}

/// The plan that the last of these decisions followed.
fn newest_plan(decisions: &[Decision]) -> Option<&Planned> {
    decisions.iter().rev().find_map(|decision| match &decision.what {
        What::Plan(planned) => Some(planned),
        What::LearningRate(_) | What::Skip { .. } => None,
    })
}

/// What the last skip of these decisions has not come to yet at `version`: the end of it, and the rows that it keeps.
fn unfinished_skip(decisions: &[Decision], version: Version) -> Option<(Sequence, Vec<Sequence>)> {
    let newest = decisions.iter().rev().find_map(|decision| match &decision.what {
        What::Skip { through, kept } => Some((*through, kept)),
        What::Plan(_) | What::LearningRate(_) => None,
    });
    let (through, kept) = newest.filter(|(through, _)| *through > version.sequence)?;
    Some((through, kept.iter().copied().filter(|&row| row > version.sequence).collect()))
}

impl Models {
    /// Brings back every model that the log knows. One that cannot go on stands still, and the others do not.
    pub(super) fn resume_all(&self) -> Result<(), RegistryError> {
        let mut known = Vec::new();
        for (id, (name, bytes)) in self.streams.log().models()? {
            let record: Record = serde_json::from_slice(&bytes)
                .map_err(|error| ModelError::Inconsistent(format!("model `{name}` cannot be read from the log: {error}")))?;
            let stream = self.streams.get(&record.spec.stream)?;
            // Before any driver runs: the first checkpoint of one must not let go of what another has yet to read.
            self.ground.need(&stream, id, 0);
            known.push((id, name, record, stream));
        }
        for (id, name, record, stream) in known {
            if let Err(error) = self.resume(id, &name, &record, &stream) {
                if let RegistryError::Model(ModelError::Checkpoint(CheckpointError::Version { .. })) = error {
                    // The whole folder is another binary's to go on with.
                    return Err(error);
                }
                tracing::error!(model = name, %error, "the model stands still");
                self.stand_still(id, name, record, stream, error.to_string())?;
            }
        }
        self.sweep()
    }

    /// Removes the checkpoints of models that were deleted: a crash may have come between the deletion and this. Ids that this log never
    /// gave away are left alone, as the folder may have another log's checkpoints.
    fn sweep(&self) -> Result<(), RegistryError> {
        let (known, next) = (self.streams.log().models()?, self.streams.log().next_model_id()?);
        let failed = |error: std::io::Error| ModelError::Checkpoint(error.into());
        for path in self.ground.disk.list(&checkpoint::folders(&self.ground.data_dir)).map_err(failed)? {
            let id = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
            if id.is_some_and(|id| id < next && !known.contains_key(&id)) {
                self.ground.disk.remove_dir(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Brings one model back from its newest whole checkpoint.
    fn resume(&self, id: u32, name: &str, record: &Record, stream: &Arc<Stream>) -> Result<(), RegistryError> {
        let kind = self.kinds.get(&record.spec.kind)?;
        let given = Given {
            settings: &record.spec.settings,
            schema: &stream.schema,
            queued_bytes: queued_bytes_max(&stream.schema, record.spec.overload.window(self.ground.settings.lag_rows_max)),
            may_skip: record.spec.overload.may_skip(),
        };
        let mut fold = kind.build(given)?;
        let loaded = self.restore(id, name, fold.as_mut())?;
        let mut decisions = Vec::new();
        for bytes in self.streams.log().decisions(id)? {
            decisions.push(Decision::decode(&bytes).map_err(ModelError::from)?);
        }
        let (version, held) = loaded.as_ref().map_or_else(Default::default, |(head, _)| (head.version, head.decisions as usize));
        let head = stream.head();
        if version.sequence > head || held > decisions.len() {
            let (kept, of) = (decisions.len(), &record.spec.stream);
            let text = format!(
                "the checkpoint at {version} with {held} decisions is ahead of the log, which has {kept} decisions and row {head} of \
                 stream `{of}`: they are not of one moment"
            );
            return Err(ModelError::Inconsistent(text).into());
        }
        let pending = decisions.split_off(held);
        // The state follows a plan already; which budget it answers stands in the decision.
        let (followed, skip) = (newest_plan(&decisions).cloned(), unfinished_skip(&decisions, version));
        let (name, record, stream) = (name.to_owned(), record.clone(), stream.clone());
        self.start(Begin { id, name, record, stream, fold, loaded, followed, skip, decisions: pending, known: head })?;
        Ok(())
    }

    /// Puts the newest whole checkpoint into a fresh fold, if there is one.
    fn restore(
        &self,
        id: u32,
        name: &str,
        fold: &mut dyn Fold,
    ) -> Result<Option<(checkpoint::Head, CheckpointFigures)>, ModelError> {
        let folder = checkpoint::folder(&self.ground.data_dir, id);
        let newest = checkpoint::Store::new(self.ground.disk.as_ref(), folder).load_newest();
        if let Err(CheckpointError::Io(error)) = &newest
            && is_sync_failure(error)
        {
            (self.ground.fatal)(error);
        }
        let (loaded, faults) = newest?;
        for fault in faults {
            tracing::warn!(model = name, %fault, "an older checkpoint and the log take over");
        }
        let Some(Loaded { head, state, entry, oldest_kept }) = loaded else { return Ok(None) };
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
        let figures = CheckpointFigures {
            version: head.version,
            oldest_kept,
            state_hash: entry.state_hash,
            unix_seconds: entry.unix_seconds,
            seconds: 0.0,
        };
        Ok(Some((head, figures)))
    }

    /// Starts a model's driver where its state stands.
    pub(super) fn start(&self, begin: Begin) -> Result<Arc<Live>, ModelError> {
        let (commands, asked) = unbounded();
        let (waker, wake) = bounded(1);
        begin.stream.subscribe(waker);
        let (live, mut driver) = self.assemble(begin, commands, asked, wake)?;
        // What was decided at this very version holds from the first look on.
        driver.execute_due()?;
        let oldest = live.status_lent().checkpoint.as_ref().map_or(driver.cursor.sequence, |kept| kept.oldest_kept.sequence);
        self.ground.need(&live.stream, live.id, oldest);
        self.run(live.clone(), move || driver.live_through())?;
        Ok(live)
    }

    fn assemble(
        &self,
        begin: Begin,
        commands: Sender<Command>,
        asked: Receiver<Command>,
        wake: Receiver<()>,
    ) -> Result<(Arc<Live>, Driver), ModelError> {
        let Begin { id, name, record, stream, mut fold, loaded, followed, skip, decisions, known } = begin;
        let (head, figures) = loaded.unzip();
        let tally = head.as_ref().map_or_else(|| self.ground.settings.tally(), |head| head.tally.clone());
        let version = head.as_ref().map_or(Version { epoch: 0, sequence: record.origin }, |head| head.version);
        let mut status = Status::new(version, record.origin, tally);
        if let Some(planned) = &followed {
            status.follow(planned);
        }
        let budget_bytes = newest_plan(&decisions).or(followed.as_ref()).and_then(|planned| planned.budget_bytes);
        let decided_to = decisions.last().map_or(version, |decision| decision.at);
        status.note(fold.as_ref());
        status.outline = fold.outline();
        status.checkpoint = figures;
        // Nothing is in flight, so it is there at once.
        fold.begin_snapshot(&mut Vec::new())?;
        let snapshot = fold.snapshot()?.ok_or_else(|| ModelError::Inconsistent("a new fold has no snapshot".into()))?;
        let (predict_rows, predict_seconds) = self.series(&name);
        let live = Arc::new(Live {
            id,
            name,
            created_unix_seconds: record.created,
            spec: record.spec,
            stream,
            ledger: fold.ledger().clone(),
            predict_rows,
            predict_seconds,
            caught_up: AtomicBool::new(false),
            budget_bytes: Mutex::new(budget_bytes),
            decided_to,
            published: ArcSwap::from_pointee(Published { version, begun: Instant::now(), snapshot }),
            status: Mutex::new(status),
            commands,
            progress: watch::Sender::new(Progress { version, ended: false }),
        });
        let mut queue = Queue::default();
        queue.recall(&live.stream, live.status_lent().origin, version.sequence, fold.as_ref())?;
        if let Some((through, kept)) = skip {
            queue.select(through, &kept);
        }
        let driver = Driver {
            live: live.clone(),
            ground: self.ground.clone(),
            fold,
            commands: asked,
            wake,
            decisions: VecDeque::from(decisions),
            window: live.spec.overload.window(self.ground.settings.lag_rows_max),
            known,
            deferred: VecDeque::new(),
            decided: head.as_ref().map_or(0, |head| head.decisions),
            cursor: version,
            queue,
            flight: VecDeque::new(),
            asked: VecDeque::new(),
            published_at: Instant::now(),
            publish_now: false,
            publishing: None,
            broken: None,
            changed: false,
            saved_at: Instant::now(),
            saved_version: head.as_ref().map(|head| head.version),
            save_again_at: None,
            step_seconds: self.ground.metrics.model_step_seconds.with_label_values(&[&live.name]),
            refusing: false,
            by_hand: followed.is_some_and(|planned| planned.by_hand),
            reviewed_at: Instant::now(),
            behind_at: None,
        };
        Ok((live, driver))
    }

    /// Registers a model that cannot go on: it answers with the reason, keeps its rows in the log, and can be deleted.
    fn stand_still(
        &self,
        id: u32,
        name: String,
        record: Record,
        stream: Arc<Stream>,
        failure: String,
    ) -> Result<(), RegistryError> {
        let (commands, asked) = unbounded();
        let version = Version { epoch: 0, sequence: record.origin };
        let mut status = Status::new(version, record.origin, self.ground.settings.tally());
        status.failure = Some(failure.clone());
        let (predict_rows, predict_seconds) = self.series(&name);
        let live = Arc::new(Live {
            id,
            name,
            created_unix_seconds: record.created,
            spec: record.spec,
            stream,
            ledger: Ledger::default(),
            predict_rows,
            predict_seconds,
            caught_up: AtomicBool::new(false),
            budget_bytes: Mutex::new(None),
            decided_to: version,
            published: ArcSwap::from_pointee(Published { version, begun: Instant::now(), snapshot: Arc::new(Absent(failure)) }),
            status: Mutex::new(status),
            commands,
            progress: watch::Sender::new(Progress { version, ended: true }),
        });
        let standing = live.clone();
        Ok(self.run(live, move || stand(&standing, asked.iter()))?)
    }

    /// The series that count a model's queries.
    fn series(&self, name: &str) -> (IntCounter, Histogram) {
        let metrics = &self.ground.metrics;
        (metrics.predict_rows_total.with_label_values(&[name]), metrics.predict_seconds.with_label_values(&[name]))
    }

    /// Gives a model its thread and a place among the others.
    fn run(&self, live: Arc<Live>, work: impl FnOnce() + Send + 'static) -> Result<(), ModelError> {
        let thread = thread::Builder::new().name(format!("mustela-{}", live.name)).spawn(work);
        let thread = thread.map_err(|error| ModelError::Inconsistent(format!("no thread for model `{}`: {error}", live.name)))?;
        self.running.write().insert(live.name.clone(), Running { live, thread });
        Ok(())
    }
}
