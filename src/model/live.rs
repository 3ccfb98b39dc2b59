//! A live model as everybody but its driver sees it: the newest snapshot, the status, and a way to ask for changes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::channel::Sender;
use parking_lot::{Mutex, MutexGuard};
use prometheus::{Histogram, IntCounter};
use tokio::sync::{oneshot, watch};
use tokio::time;

use super::events::Events;
use super::guard::Guard;
use super::reply::Reply;
use super::spec::ModelSpec;
use super::status::{Condition, Learned, Status};
use crate::fold::{BelowMinimum, PlanError, ProposalError, Score, Sequence, Snapshot, Version};
use crate::ledger::{Ledger, Part};
use crate::metrics::{CheckpointFigures, ModelFigures, RowFigures, ScoreFigures};
use crate::stream::Stream;

/// A snapshot with the version that it is of.
pub struct Published {
    /// The version that answers name.
    pub version: Version,
    /// When the driver began it.
    pub begun: Instant,
    /// What answers.
    pub snapshot: Arc<dyn Snapshot>,
}

/// What a door may ask of a model's driver.
pub enum Command {
    /// Other limits of memory; answered when a plan within them is followed. Whoever has given up waiting wants it no more.
    Limits(Limits, Reply),
    /// A plan that a person wrote; answered when it is followed.
    Plan(serde_json::Value, Reply),
    /// Another learning rate; answered when it holds.
    LearningRate(f64, Reply),
    /// Another value of something that its kind knows; answered when it is decided.
    Setting(Wish, Reply),
    /// The frontier of the model's plans.
    Frontier(oneshot::Sender<Result<serde_json::Value, ChangeError>>),
    /// Publish as soon as may be: somebody waits to see its own rows.
    Publish,
    /// Write a checkpoint and end.
    Stop,
    /// End at once: the model is deleted.
    Abandon,
}

impl Command {
    /// Where the answer to a change goes.
    pub(super) fn reply(&self) -> Option<&Reply> {
        match self {
            Command::Limits(_, reply)
            | Command::Plan(_, reply)
            | Command::LearningRate(_, reply)
            | Command::Setting(_, reply) => Some(reply),
            Command::Frontier(_) | Command::Publish | Command::Stop | Command::Abandon => None,
        }
    }

    /// Whether whoever asked for a change waits for it no more, and so may have asked again.
    pub(super) fn is_given_up(&self) -> bool {
        self.reply().is_some_and(Reply::is_given_up)
    }
}

/// A setting that is asked for. It is made when it is its turn to be decided, because it may be large and may have to wait: none, where all
/// is as it was asked for by then. Where it cannot be made the text says why.
pub type Wish = Box<dyn FnOnce() -> Result<Option<Wished>, String> + Send>;

/// A setting, and what it names.
#[derive(Debug)]
pub struct Wished {
    /// As the model's kind knows it.
    pub value: serde_json::Value,
    /// The blob that it names, if it names one.
    pub blob: Option<Vec<u8>>,
}

/// What a model may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Its own budget in bytes; none: unconstrained.
    pub budget_bytes: Option<u64>,
    /// Its share of what the process may hold, in bytes.
    pub allotted_bytes: u64,
    /// Whether the plan is to be chosen anew even where the present one fits.
    pub anew: bool,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The fold does not take such a change.
    #[error("{0}")]
    Refused(String),
    /// No plan fits.
    #[error(transparent)]
    BelowMinimum(#[from] BelowMinimum),
    /// The plan is not one of this model, or does not fit its budget.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The model stands still.
    #[error("the model has failed: {0}")]
    Failed(String),
    /// The model is gone, or going.
    #[error("there is no model `{0}` any more")]
    Gone(String),
    /// The model has not come to it in time.
    #[error("model `{0}` is busy and has not followed in time: ask again")]
    Busy(String),
    /// The decision, or what it names, could not be written down; where the disk may have lost something, the process is ending.
    #[error("the decision could not be stored: {0}")]
    Storage(String),
}

impl From<ProposalError> for ChangeError {
    fn from(error: ProposalError) -> Self {
        match error {
            ProposalError::BelowMinimum(error) => ChangeError::BelowMinimum(error),
            ProposalError::Fold(error) => ChangeError::Failed(error.to_string()),
        }
    }
}

/// A live model; everybody holds it behind an `Arc`.
pub struct Live {
    /// The log's id of the model, never used again.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created_unix_seconds: u64,
    /// As it was asked for.
    pub spec: ModelSpec,
    /// What it learns from.
    pub stream: Arc<Stream>,
    /// Its bytes by part: of another ledger where the fold had to be brought back.
    pub(super) ledger: Mutex<Ledger>,
    /// Its own series, so that a query that outlives the model does not bring them back.
    pub predict_rows: IntCounter,
    /// See [`Live::predict_rows`].
    pub predict_seconds: Histogram,
    /// Rows that it may be behind before posts are refused; none where they never are.
    pub lag_rows_max: Option<u64>,
    /// Whether the model has once been as near to the head of its stream as its overload policy asks.
    pub(super) caught_up: AtomicBool,
    /// The model's own budget as the log has it, where the driver may have yet to come; changed by the registry alone.
    pub(super) budget_bytes: Mutex<Option<u64>>,
    pub(super) published: ArcSwap<Published>,
    /// By which model its queries are judged; changed by the registry alone.
    pub(super) guard: ArcSwapOption<Guard>,
    pub(super) status: Mutex<Status>,
    pub(super) commands: Sender<Command>,
    /// Where it tells what happens to it.
    pub(super) events: Arc<Events>,
    /// For whoever waits for a version.
    pub(super) progress: watch::Sender<Progress>,
}

/// How far a model is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Every row up to here is decided.
    pub(super) version: Version,
    /// Every decision that was there at the start is carried out.
    pub(super) replayed: bool,
    /// It will get no further: it was deleted, or stands still.
    pub(super) ended: bool,
}

impl Live {
    /// Its bytes by part.
    pub fn ledger(&self) -> Ledger {
        self.ledger.lock().clone()
    }

    /// The newest snapshot; never waits.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// By which model its queries are judged; never waits.
    pub fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.load_full()
    }

    /// The status at this moment.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// The status, to read a figure or two; hold it for no longer than that.
    pub fn status_lent(&self) -> MutexGuard<'_, Status> {
        self.status.lock()
    }

    /// Rows of the stream that the model has yet to decide.
    pub fn lag_rows(&self) -> u64 {
        // The version first: the head only grows, so the difference is never negative.
        let version = self.status.lock().version.sequence;
        self.stream.head().saturating_sub(version)
    }

    /// Rows a second that the model learned or refused lately.
    pub fn rows_per_second(&self) -> f64 {
        self.status.lock().rows_per_second(Instant::now())
    }

    /// How long ago the state that readers see was the newest: nothing while they see every row that is decided.
    fn snapshot_age(&self, status: &Status) -> Duration {
        let published = self.published.load();
        if published.version >= status.version {
            return Duration::ZERO;
        }
        // A snapshot that stood for long while nothing was learned was the newest all that time.
        published.begun.max(status.unseen_since).elapsed()
    }

    /// The model at this moment, as `/metrics` shows it: all of it from one look at the status, so that its rows balance.
    pub fn figures(&self) -> ModelFigures {
        let status = self.status.lock();
        // Read within the same look: the head only grows, so no row is decided that it does not count.
        let head = self.stream.head();
        let waiting = status.waiting(head);
        let counters = status.tally.counters;
        let scores = |score: Score| ScoreFigures {
            accuracy_ratio: (self.stream.schema.is_classified() && score.rows > 0)
                .then(|| score.correct as f64 / score.rows as f64),
            loss: (score.rows > 0).then(|| score.loss / score.rows as f64),
        };
        let checkpoint = status.checkpoint.as_ref().map(|checkpoint| CheckpointFigures {
            timestamp_seconds: checkpoint.unix_seconds as f64,
            sequence: checkpoint.version.sequence,
        });
        let lag_rows = head.saturating_sub(status.version.sequence);
        let condition = status.condition(lag_rows);
        let ledger = self.ledger();
        ModelFigures {
            model: self.name.clone(),
            stream: self.spec.stream.clone(),
            kind: self.spec.kind.clone(),
            policy: self.spec.overload.word(),
            statuses: Condition::ALL.into_iter().map(|one| (one.word(), one == condition)).collect(),
            accepted_rows: waiting.accepted,
            rows: RowFigures {
                learned: counters.learned,
                learned_in_part: counters.learned_in_part,
                skipped: counters.skipped,
                held_out: counters.held_out,
                quarantined: counters.quarantined,
                expired: counters.expired,
                waiting: waiting.rows,
            },
            epoch: status.version.epoch,
            sequence: status.version.sequence,
            snapshot_age_seconds: self.snapshot_age(&status).as_secs_f64(),
            waiting_for_label_rows: waiting.for_label,
            labels: counters.labels,
            lag_rows,
            lag_rows_max: self.lag_rows_max,
            steps: status.tally.steps,
            whole: scores(status.tally.whole),
            sliding: scores(status.tally.sliding.score()),
            drifts: status.tally.drift.detected(),
            drift_sequence: status.tally.drift.last_sequence(),
            learning_rate: status.learning_rate,
            checkpoint,
            plan: status.plan_figures,
            in_flight_steps: status.steps_in_flight,
            ledger_bytes: Part::ALL.into_iter().map(|part| (part, ledger.used(part))).collect(),
            ledger_high_water_bytes: ledger.high_water(),
            minimum_bytes: status.minimum_bytes,
            planned_bytes: status.planned_bytes,
            planned_part_bytes: Part::ALL.into_iter().zip(status.planned_parts.iter().copied()).collect(),
            memory_budget_bytes: status.budget_bytes,
            memory_allotted_bytes: status.allotted_bytes,
        }
    }

    /// Holds the model to other limits of memory, where need be by a decision.
    pub(super) async fn limit(&self, limits: Limits, deadline: time::Instant) -> Result<(), ChangeError> {
        self.change(Some(deadline), |reply| Command::Limits(limits, reply)).await
    }

    /// Follows a plan that a person wrote, by a decision.
    pub async fn set_plan(&self, wish: serde_json::Value) -> Result<(), ChangeError> {
        self.change(None, |reply| Command::Plan(wish, reply)).await
    }

    /// Changes the learning rate by a decision.
    pub async fn set_learning_rate(&self, learning_rate: f64) -> Result<(), ChangeError> {
        self.change(None, |reply| Command::LearningRate(learning_rate, reply)).await
    }

    /// Sets something that the model's kind knows, and waits until it is decided; what does not take long holds then. If it is not its turn by
    /// `deadline` it is not decided.
    pub async fn set(&self, wish: Wish, deadline: Option<time::Instant>) -> Result<(), ChangeError> {
        self.change(deadline, |reply| Command::Setting(wish, reply)).await
    }

    /// Waits until what readers see is as asked for; `false` if the model ends before.
    pub async fn shows(&self, is_so: impl Fn(&Published) -> bool) -> bool {
        let mut progress = self.progress.subscribe();
        loop {
            // Marked as seen first: what changes after the look wakes it up.
            let ended = progress.borrow_and_update().ended;
            if is_so(&self.published.load()) {
                return true;
            }
            if ended || progress.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Every plan of the model that no other one beats in both bytes and what it brings.
    pub async fn frontier(&self) -> Result<serde_json::Value, ChangeError> {
        let (reply, answer) = oneshot::channel();
        // One that has ended drops its end.
        drop(self.commands.send(Command::Frontier(reply)));
        answer.await.unwrap_or_else(|_| Err(ChangeError::Gone(self.name.clone())))
    }

    async fn change(&self, deadline: Option<time::Instant>, command: impl FnOnce(Reply) -> Command) -> Result<(), ChangeError> {
        let (reply, asked) = Reply::new();
        drop(self.commands.send(command(reply)));
        asked.by(deadline, &self.name).await
    }

    /// Waits until the model has carried out every decision that was there at the start, or gets no further.
    pub(super) async fn replayed(&self) {
        let mut progress = self.progress.subscribe();
        // An error says that the model is gone, which is the same answer.
        drop(progress.wait_for(|progress| progress.replayed || progress.ended).await);
    }

    /// Waits until rows `first` to `last` are decided and in the published snapshot, and tells how they were predicted; none if
    /// the model ends before.
    pub async fn applied(&self, first: Sequence, last: Sequence) -> Option<(Version, Learned)> {
        let mut progress = self.progress.subscribe();
        progress.wait_for(|progress| progress.version.sequence >= last || progress.ended).await.ok()?;
        // The driver publishes, then marks progress again by the same version; ask it not to wait for its interval.
        drop(self.commands.send(Command::Publish));
        if !self.shows(|published| published.version.sequence >= last).await {
            return None;
        }
        let version = self.published.load().version;
        Some((version, self.status.lock().learned(first, last)))
    }

    /// Tells whoever waits that the model gets no further.
    pub(super) fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }
}
