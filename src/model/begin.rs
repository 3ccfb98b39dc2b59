//! How a model begins: fresh, from its newest whole checkpoint, or, where neither can be, standing still with the reason.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::channel::{Sender, bounded, unbounded};
use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter};
use tokio::sync::watch;

use super::ModelError;
use super::asked::stand;
use super::attempt::Attempt;
use super::blobs;
use super::checkpoint::{self, CheckpointError};
use super::decision::What;
use super::driver::{Driver, Ears};
use super::events::Kind;
use super::live::{Command, Live, Progress, Published};
use super::recovery::{Recovered, Recovery, newest_plan};
use super::registry::{Models, Record, RegistryError, Running};
use super::status::Status;
use crate::fold::{FoldError, Predictions, Sequence, Snapshot, Version};
use crate::rows::Rows;
use crate::stream::Stream;

/// The snapshot of a model that has none to show: what is corrupt is never served.
struct Absent(String);

impl Snapshot for Absent {
    fn predict(&self, _: &Rows) -> Result<Predictions, FoldError> {
        Err(FoldError::Unavailable(self.0.clone()))
    }
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

    /// Removes the checkpoints and blobs of models that were deleted: a crash may have come between the deletion and this. Ids that this log never
    /// gave away are left alone, as the folder may have another log's checkpoints.
    fn sweep(&self) -> Result<(), RegistryError> {
        let (known, next) = (self.streams.log().models()?, self.streams.log().next_model_id()?);
        let failed = |error: std::io::Error| ModelError::Checkpoint(error.into());
        let [checkpoints, blobs] = [checkpoint::folders, blobs::folders]
            .map(|folders| self.ground.disk.list(&folders(&self.ground.folder.path)).map_err(failed));
        for path in checkpoints?.into_iter().chain(blobs?) {
            let id = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
            if id.is_some_and(|id| id < next && !known.contains_key(&id)) {
                self.ground.disk.remove_dir(&path).map_err(failed)?;
            }
        }
        let swept = Attempt::sweep(self.ground.disk.as_ref(), &self.ground.folder.path, |id| known.contains_key(&id));
        Ok(swept.map_err(failed)?)
    }

    /// Brings one model back from its newest whole checkpoint.
    fn resume(&self, id: u32, name: &str, record: &Record, stream: &Arc<Stream>) -> Result<(), RegistryError> {
        let recovery = self.recovery(id, name, record, stream)?;
        let recovered = recovery.bring_back()?;
        let version = recovered.version;
        let live = self.start(recovery, recovered, stream.head())?;
        live.note(Kind::ModelRestored, version, "brought back, as the service started".to_owned());
        Ok(())
    }

    /// How a model is brought back.
    pub(super) fn recovery(&self, id: u32, name: &str, record: &Record, stream: &Arc<Stream>) -> Result<Recovery, RegistryError> {
        Ok(Recovery {
            ground: self.ground.clone(),
            streams: self.streams.clone(),
            kind: self.kinds.get(&record.spec.kind)?.clone(),
            id,
            name: name.to_owned(),
            record: record.clone(),
            stream: stream.clone(),
            blobs: self.blobs(id),
        })
    }

    /// Starts a model's driver where its state stands. Rows up to `known` may have been learned, and seen to be, before.
    pub(super) fn start(&self, recovery: Recovery, mut recovered: Recovered, known: Sequence) -> Result<Arc<Live>, ModelError> {
        let (commands, asked) = unbounded();
        let (waker, wake) = bounded(1);
        recovery.stream.subscribe(waker);
        let live = self.introduce(&recovery, &mut recovered, commands)?;
        let mut driver = Driver::new(live.clone(), recovery, recovered, Ears { commands: asked, wake }, known);
        // What was decided at this very version holds from the first look on.
        driver.execute_due()?;
        driver.publish_if_due(true)?;
        let oldest = live.status_lent().checkpoint.as_ref().map_or(driver.cursor.sequence, |kept| kept.oldest_kept.sequence);
        self.ground.need(&live.stream, live.id, oldest);
        self.run(live.clone(), move || driver.live_through())?;
        Ok(live)
    }

    /// A model as the doors see it, before its driver runs.
    fn introduce(
        &self,
        recovery: &Recovery,
        recovered: &mut Recovered,
        commands: Sender<Command>,
    ) -> Result<Arc<Live>, ModelError> {
        let Recovery { id, name, record, stream, .. } = recovery;
        let Recovered { fold, loaded, version, followed, decisions, .. } = recovered;
        let (version, (head, figures)) = (*version, loaded.as_ref().map(|(head, figures)| (head, figures.clone())).unzip());
        let tally = head.map_or_else(|| self.ground.settings.tally(), |head| head.tally.clone());
        let mut status = Status::new(version, record.origin, tally);
        if let Some(planned) = &followed {
            status.follow(planned);
        }
        let budget_bytes = newest_plan(decisions).or(followed.as_ref()).and_then(|planned| planned.budget_bytes);
        status.note(fold.as_ref());
        status.outline = fold.outline();
        status.checkpoint = figures;
        // Nothing is in flight, so it is there at once.
        fold.begin_snapshot(&mut Vec::new())?;
        let snapshot = fold.snapshot()?.ok_or_else(|| ModelError::Inconsistent("a new fold has no snapshot".into()))?;
        let (predict_rows, predict_seconds) = self.series(name);
        let lag_rows_max = record.spec.overload.lag_rows_max(self.ground.settings.lag_rows_max);
        Ok(Arc::new(Live {
            id: *id,
            name: name.clone(),
            created_unix_seconds: record.created,
            spec: record.spec.clone(),
            stream: stream.clone(),
            ledger: Mutex::new(fold.ledger().clone()),
            predict_rows,
            predict_seconds,
            lag_rows_max,
            caught_up: AtomicBool::new(false),
            budget_bytes: Mutex::new(budget_bytes),
            published: ArcSwap::from_pointee(Published { version, begun: Instant::now(), snapshot }),
            guard: ArcSwapOption::empty(),
            status: Mutex::new(status),
            commands,
            events: self.ground.events.clone(),
            progress: watch::Sender::new(Progress { version, replayed: false, ended: false }),
        }))
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
        let lag_rows_max = record.spec.overload.lag_rows_max(self.ground.settings.lag_rows_max);
        let live = Arc::new(Live {
            id,
            name,
            created_unix_seconds: record.created,
            spec: record.spec,
            stream,
            ledger: Mutex::default(),
            predict_rows,
            predict_seconds,
            lag_rows_max,
            caught_up: AtomicBool::new(false),
            budget_bytes: Mutex::new(None),
            published: ArcSwap::from_pointee(Published {
                version,
                begun: Instant::now(),
                snapshot: Arc::new(Absent(failure.clone())),
            }),
            guard: ArcSwapOption::empty(),
            status: Mutex::new(status),
            commands,
            events: self.ground.events.clone(),
            progress: watch::Sender::new(Progress { version, replayed: false, ended: true }),
        });
        live.note(Kind::Failure, version, format!("it stands still: {failure}"));
        let standing = live.clone();
        Ok(self.run(live, move || stand(&standing, asked.iter()))?)
    }

    /// The series that count a model's queries. What its driver counts begins here too, at zero: a first failure that a scrape cannot
    /// compare with anything would be none.
    fn series(&self, name: &str) -> (IntCounter, Histogram) {
        let metrics = &self.ground.metrics;
        metrics.model_checkpoint_failures_total.with_label_values(&[name]);
        for decision in What::WORDS {
            metrics.model_decisions_total.with_label_values(&[name, decision]);
        }
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
