//! The driver of one model: a thread that pulls records from the log into the fold, at the fold's own pace.
//!
//! It is the only one that touches the fold. In its loop, in this order: answer what doors ask, carry out decisions that are due, the next
//! part of one that takes long and nothing else until it has ended, skip rows where the model's policy says so and too many wait, give the fold its next step, settle the steps that ended,
//! publish, write checkpoints, look whether another plan would be much better. Nobody pushes into it, and after a crash it does the
//! same from the last checkpoint on, with the decisions that it finds instead of new ones.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use crossbeam::select;
use prometheus::Histogram;
use tracing::{Span, debug_span};

use super::asked::stand;
use super::attempt::Attempt;
use super::checkpoint::{self, CheckpointError, Head};
use super::choice::{by_chance, coreset, coreset_bytes};
use super::decision::{Decision, Planned, What};
use super::drift::Shift;
use super::events::Kind;
use super::live::{Command, Live, Published};
use super::overload::{Take, Window};
use super::predict::Pending;
use super::queue::{Passage, Pulled, Queue};
use super::reaction::Reaction;
use super::recovery::{Recovered, Recovery};
use super::status::Status;
use super::suspect::{Fallen, Suspect};
use super::{Ground, ModelError};
use crate::disk::is_sync_failure;
use crate::fold::{Demand, Fold, FoldError, Outcome, ProposalError, Sequence, Step, Verdict, Version};
use crate::ledger::Part;
use crate::metrics::PlanFigures;
use crate::network::random;
use crate::rows::Rows;

/// How often a standing model looks after its checkpoint.
const IDLE_TICK: Duration = Duration::from_millis(500);
/// How long after a failed checkpoint the next one is tried.
const SAVE_AGAIN: Duration = Duration::from_secs(5);
/// Lots of rows without labels that may be predicted at once; the queue's bytes are reckoned with as many.
const ASKED_MAX: usize = 2;
/// Of the time that a decision takes which is not carried out at once, rows have one in so many after it, if they need it.
const ROWS_SHARE: u32 = 4;
/// Steps that may wait for a model that keeps up with its stream.
const BEHIND_STEPS: u64 = 8;

/// What a driver listens to.
pub(super) struct Ears {
    pub(super) commands: Receiver<Command>,
    pub(super) wake: Receiver<()>,
}

/// One model's driver; [`Driver::run`] is its thread.
pub(super) struct Driver {
    pub(super) live: Arc<Live>,
    pub(super) ground: Arc<Ground>,
    /// How the fold is brought back when a step has panicked.
    pub(super) recovery: Recovery,
    pub(super) fold: Box<dyn Fold>,
    pub(super) commands: Receiver<Command>,
    pub(super) wake: Receiver<()>,
    /// Decisions that are written down and not yet carried out.
    pub(super) decisions: VecDeque<Decision>,
    /// When rows are skipped; none for a model that learns every row.
    pub(super) window: Option<Window>,
    /// Rows up to here were in the log at the start. They may have been learned, and seen to be, before: none of them is skipped
    /// that was not skipped then, or replay would come to another state.
    pub(super) known: Sequence,
    /// Changes that were asked for while the fold has to come to where it was, or is in the middle of one.
    pub(super) deferred: VecDeque<Command>,
    /// Decisions that the state holds.
    pub(super) decided: u64,
    /// Where the fold will be when its steps in flight have ended.
    pub(super) cursor: Version,
    pub(super) queue: Queue,
    /// What lies between the model's version and the cursor: the steps in flight, and what is passed over among them.
    pub(super) flight: VecDeque<Passage>,
    /// The spans of the steps in flight, oldest first.
    pub(super) steps: VecDeque<Span>,
    /// Says what is under way to the process after this one.
    pub(super) attempt: Attempt,
    /// Rows over which the fold, or a process, has fallen.
    pub(super) suspect: Option<Suspect>,
    /// Records that were quarantined since a step was learned.
    pub(super) condemned: u32,
    /// A rise of the loss was noticed.
    pub(super) drifted: bool,
    /// What is being done about an earlier one.
    pub(super) reaction: Option<Reaction>,
    /// Rows that wait for their labels and are being predicted.
    pub(super) asked: VecDeque<(Vec<Sequence>, Pending)>,
    /// When the newest snapshot was begun.
    pub(super) published_at: Instant,
    pub(super) publish_now: bool,
    /// The version of the snapshot that the fold is making.
    pub(super) publishing: Option<Version>,
    /// Why it cannot go on, if a change that was asked for has shown so.
    pub(super) broken: Option<ModelError>,
    /// A decision was carried out that readers have not seen.
    pub(super) changed: bool,
    /// The fold has more to do for the last decision.
    pub(super) midway: bool,
    /// A larger share was given meanwhile.
    pub(super) unplanned: bool,
    /// When the last decision began that is not carried out at once.
    pub(super) midway_since: Instant,
    /// Until when rows are seen to before the next change: decisions that take long and follow each other leave room for them.
    pub(super) rows_until: Option<Instant>,
    pub(super) saved_at: Instant,
    /// Version and decisions of the newest checkpoint.
    pub(super) saved: Option<(Version, u64)>,
    /// Not before this moment, because the last attempt failed.
    pub(super) save_again_at: Option<Instant>,
    /// The model's own histogram, so that no step has to look for it.
    pub(super) step_seconds: Histogram,
    /// Whether the last step was refused.
    pub(super) refusing: bool,
    /// Whether a person wrote the plan that is followed: it is not reconsidered.
    pub(super) by_hand: bool,
    /// When the plan was last chosen or looked at.
    pub(super) reviewed_at: Instant,
    /// When more rows waited last than do for a model that keeps up.
    pub(super) behind_at: Option<Instant>,
}

/// How the loop goes on.
enum Next {
    /// There may be more to do.
    Again,
    /// Every row is decided.
    Idle,
}

impl Driver {
    /// A driver of a fold that stands where it was brought back to. Rows up to `known` may have been learned, and seen to be, before.
    pub(super) fn new(live: Arc<Live>, recovery: Recovery, recovered: Recovered, ears: Ears, known: Sequence) -> Driver {
        let Recovered { fold, queue, loaded, version, followed, reaction, decisions } = recovered;
        let ground = recovery.ground.clone();
        let attempt = Attempt::open(ground.disk.as_ref(), &ground.folder.path, live.id);
        Driver {
            window: live.spec.overload.window(ground.settings.lag_rows_max),
            step_seconds: ground.metrics.model_step_seconds.with_label_values(&[&live.name]),
            suspect: Suspect::of_attempt(&attempt, version.sequence),
            live,
            ground,
            recovery,
            fold,
            commands: ears.commands,
            wake: ears.wake,
            decisions: VecDeque::from(decisions),
            known,
            deferred: VecDeque::new(),
            decided: loaded.as_ref().map_or(0, |(head, _)| head.decisions),
            cursor: version,
            queue,
            flight: VecDeque::new(),
            steps: VecDeque::new(),
            attempt,
            condemned: 0,
            drifted: false,
            reaction,
            asked: VecDeque::new(),
            published_at: Instant::now(),
            publish_now: false,
            publishing: None,
            broken: None,
            changed: false,
            midway: false,
            unplanned: false,
            midway_since: Instant::now(),
            rows_until: None,
            saved_at: Instant::now(),
            saved: loaded.map(|(head, _)| (head.version, head.decisions)),
            save_again_at: None,
            refusing: false,
            by_hand: followed.is_some_and(|planned| planned.by_hand),
            reviewed_at: Instant::now(),
            behind_at: None,
        }
    }

    /// Runs until the model is stopped or deleted. A panic is this model's failure and nobody else's.
    pub(super) fn live_through(self) {
        let live = self.live.clone();
        let lived = || {
            let mut driver = self;
            while let Some(fallen) = driver.run() {
                match fallen.revive() {
                    Ok(revived) => driver = revived,
                    Err(lost) => {
                        let (error, deferred, ears) = *lost;
                        fail(&live, &error);
                        return stand(&live, deferred.into_iter().chain(ears.commands));
                    }
                }
            }
        };
        if catch_unwind(AssertUnwindSafe(lived)).is_err() {
            fail(&live, &ModelError::Inconsistent("its driver panicked; the process's messages say where".into()));
        }
        live.end();
    }

    /// Drives until the end, or until the fold has panicked over a step.
    fn run(mut self) -> Option<Fallen> {
        loop {
            self.tell_if_replayed();
            self.plan_as_noted();
            while let Some(command) = self.next_command() {
                if self.answer(command).is_break() {
                    self.attempt.rest(self.cursor.sequence);
                    return None;
                }
            }
            let went = match self.broken.take() {
                Some(error) => Err(error),
                None => self.advance(),
            };
            match went {
                Ok(Next::Again) => self.rows_until = self.rows_until.filter(|until| self.midway || Instant::now() < *until),
                Ok(Next::Idle) => {
                    self.rows_until = None;
                    self.attempt.rest(self.cursor.sequence);
                    if self.deferred.is_empty() && self.sleep().is_break() {
                        return None;
                    }
                }
                Err(ModelError::Fold(FoldError::Panicked(reason))) => match self.fall(&reason) {
                    Ok(fallen) => return Some(fallen),
                    Err(driver) => return driver.end_by(&FoldError::Panicked(reason).into()),
                },
                Err(error) => return self.end_by(&error),
            }
        }
    }

    /// Tells whoever waits for it, once, that the decisions of the log are carried out.
    fn tell_if_replayed(&self) {
        if !self.is_behind_itself() {
            self.live.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.replayed, true));
        }
    }

    /// Stands still for this reason, until it is stopped or deleted.
    fn end_by(mut self, error: &ModelError) -> Option<Fallen> {
        self.attempt.rest(self.cursor.sequence);
        fail(&self.live, error);
        stand(&self.live, self.deferred.into_iter().chain(self.commands));
        None
    }

    /// Whether the fold has yet to come to where it was before: to decisions of the log, to the end of one, or to rows that were decided
    /// when it fell. New decisions have to wait until then.
    pub(super) fn is_behind_itself(&self) -> bool {
        self.midway || !self.decisions.is_empty() || self.cursor < self.version()
    }

    /// One round of the loop's work.
    fn advance(&mut self) -> Result<Next, ModelError> {
        self.execute_due()?;
        if self.midway {
            self.proceed()?;
            if !self.midway {
                self.rows_until = Some(Instant::now() + self.midway_since.elapsed() / ROWS_SHARE);
                // Whoever asked for it waits to see it.
                self.publish_if_due(true)?;
                self.live.status.lock().under_way = None;
            }
            return Ok(Next::Again);
        }
        if self.condemn_if_proven()? {
            return Ok(Next::Again);
        }
        self.skip_if_over()?;
        self.react_if_due()?;
        self.queue.look(&self.live.stream, self.cursor.sequence, self.fold.as_ref())?;
        let most = if self.queue.has_labels(self.cursor.sequence) { 0 } else { ASKED_MAX - 1 };
        self.note_predictions(most);
        let next = self.queue.next(&self.live.stream, self.cursor.sequence, self.fold.as_ref())?;
        let Some(Pulled { passage, step, arrived }) = next else {
            self.note_predictions(0);
            self.drain()?;
            self.publish_if_due(true)?;
            self.checkpoint_if_due()?;
            return Ok(Next::Idle);
        };
        self.cursor.sequence = passage.last;
        self.flight.push_back(passage);
        if let Some((rows, features)) = arrived {
            self.ask(rows, features);
        }
        self.note_if_behind();
        if let Some(step) = step {
            self.give(step)?;
        } else {
            self.settle(Vec::new());
        }
        self.publish_if_due(false)?;
        self.checkpoint_if_due()?;
        self.review_if_due()?;
        Ok(Next::Again)
    }

    /// Gives the fold a step; one of suspected rows alone, and to its end.
    fn give(&mut self, step: Step) -> Result<(), ModelError> {
        let (through, suspected) = (step.last, self.is_suspected());
        let ground = self.ground.clone();
        let _suspicion = suspected.then(|| ground.suspicion.lock());
        if suspected {
            self.drain()?;
        }
        let after = self.flight.front().map_or(through, |passage| passage.first - 1);
        self.attempt.begin(after, through, suspected);
        let span = self.step_span(&step);
        self.steps.push_back(span.clone());
        let mut outcomes = Vec::new();
        let began = Instant::now();
        let applied = span.in_scope(|| guarded(|| self.fold.apply(step, &mut outcomes)));
        self.step_seconds.observe(began.elapsed().as_secs_f64());
        self.settle(outcomes);
        applied?;
        if suspected {
            self.drain()?;
            // The process may be ended by somebody while it waits for a disk or a query: that is not to be put down to this step.
            self.attempt.rest(through);
        }
        Ok(())
    }

    /// A step's way through the trainer, from here until its end is known. What ties it to the request that brought its rows are their
    /// numbers.
    fn step_span(&self, step: &Step) -> Span {
        let first_sequence = self.flight.back().map_or(step.last, |passage| passage.first);
        let (model, rows) = (&self.live.name, step.rows.count);
        debug_span!("step", model, first_sequence, sequence = step.last, rows, ordinal = tracing::field::Empty)
    }

    /// Has rows that came before their labels predicted by the newest snapshot. Where too many queries wait they are not scored.
    fn ask(&mut self, rows: Vec<Sequence>, features: Rows) {
        // A snapshot that is newer than they knows what came after them.
        if self.live.published.load().version > self.cursor {
            return;
        }
        if let Ok(pending) = self.ground.predictor.ask(self.live.clone(), features, false) {
            self.asked.push_back((rows, pending));
        }
    }

    /// Takes predictions, oldest first, until at most so many lots are outstanding: all where labels come next, which are to find them.
    fn note_predictions(&mut self, most: usize) {
        while self.asked.len() > most
            && let Some((rows, pending)) = self.asked.pop_front()
        {
            // Rows whose query was refused or given up stay without a prediction.
            if let Ok(Ok(answer)) = pending.blocking_recv() {
                self.queue.predicted(&rows, &answer.predictions, self.cursor.sequence);
            }
        }
    }

    /// Carries out the decisions that were made at this version, up to one that takes long.
    pub(super) fn execute_due(&mut self) -> Result<(), ModelError> {
        while let Some(decision) = self.decisions.front().filter(|_| !self.midway) {
            if decision.at.sequence > self.cursor.sequence {
                break;
            }
            if decision.at.sequence < self.cursor.sequence {
                let late = format!("a decision at version {} came up at {}", decision.at, self.cursor);
                return Err(ModelError::Inconsistent(late));
            }
            self.drain()?;
            if let Some(decision) = self.decisions.pop_front() {
                self.execute(&decision.what)?;
            }
        }
        Ok(())
    }

    /// Gives rows away where more wait than the model's window takes. Beyond the rows that were known at the start no decision of
    /// the log is pending, so this one is the log's next.
    fn skip_if_over(&mut self) -> Result<(), ModelError> {
        let Some(window) = self.window.filter(|_| self.cursor.sequence >= self.known) else { return Ok(()) };
        let (cursor, head) = (self.cursor.sequence, self.live.stream.head());
        if self.queue.waiting(cursor, head) <= window.rows {
            return Ok(());
        }
        self.drain()?;
        let of = if window.take == Take::Newest { window.keep } else { window.rows };
        let kept = self.choose(window, self.queue.newest_waiting(cursor, head, of))?;
        self.decide(What::keeping(kept, head))
    }

    /// The rows of `waiting` that the policy keeps.
    fn choose(&mut self, window: Window, waiting: Vec<Sequence>) -> Result<Vec<Sequence>, ModelError> {
        let keep = window.keep as usize;
        let places = match window.take {
            Take::Newest => return Ok(waiting),
            Take::Random => {
                // Replay finds the choice in the decision; the key is only for two runs to be alike.
                let mut generator = random::stream(u64::from(self.live.id), self.cursor.sequence, "random-n");
                by_chance(waiting.len(), keep, &mut generator)
            }
            Take::Coreset => {
                let bytes = coreset_bytes(waiting.len() as u64, self.live.stream.schema.width() as u64);
                let rows = self.queue.gather(&self.live.stream, &waiting, self.fold.as_ref())?;
                let _guard = self.fold.ledger().take(Part::QueuedRows, bytes + (rows.count * rows.row_bytes()) as u64);
                coreset(&rows, keep)
            }
        };
        Ok(places.into_iter().map(|place| waiting[place]).collect())
    }

    pub(super) fn execute(&mut self, what: &What) -> Result<(), ModelError> {
        self.decided += 1;
        match what {
            What::Skip { through, kept } => return self.skip(*through, kept),
            What::Quarantine { through, .. } => {
                self.queue.refuse(*through);
                return Ok(());
            }
            What::Plan(_) | What::LearningRate(_) | What::Setting(_) | What::React { .. } => {}
        }
        self.reaction = Reaction::after(what).unwrap_or(self.reaction);
        if let Some(change) = what.change() {
            self.midway_since = Instant::now();
            guarded(|| self.fold.execute(&change))?;
            self.proceed()?;
        }
        // A change of the plan may apply gradients that waited for further steps, so readers are to see it, whatever the version.
        self.changed = true;
        let mut status = self.live.status.lock();
        if let What::Plan(planned) = what {
            // A share may have been lowered since without a decision.
            let allotted_bytes = status.allotted_bytes;
            let is_told = self.cursor < status.version;
            status.follow(planned);
            if is_told {
                status.allotted_bytes = allotted_bytes;
            }
            self.by_hand = planned.by_hand;
            self.reviewed_at = Instant::now();
        }
        status.under_way = match what {
            What::Setting(value) if self.midway => Some(value.clone()),
            _ => None,
        };
        status.note(self.fold.as_ref());
        drop(status);
        // Whoever waits may wait for this.
        self.live.progress.send_modify(|_| {});
        Ok(())
    }

    /// Has the fold do a little more for the last decision. Commands are heard in between: a decision may take as long as many steps.
    fn proceed(&mut self) -> Result<(), ModelError> {
        self.midway = guarded(|| self.fold.proceed())?;
        Ok(())
    }

    /// Gives the rows up to `through` away, but for `kept` ones; the fold never hears of them.
    fn skip(&mut self, through: Sequence, kept: &[Sequence]) -> Result<(), ModelError> {
        let within = |row: &Sequence| (self.cursor.sequence + 1..=through).contains(row);
        if !within(&through) || !kept.iter().all(within) || !kept.is_sorted() {
            let text =
                format!("rows up to {through}, but for {} of them, were to be skipped at version {}", kept.len(), self.cursor);
            return Err(ModelError::Inconsistent(text));
        }
        self.queue.select(through, kept);
        Ok(())
    }

    /// Writes a decision down at the present version, durably, and carries it out.
    pub(super) fn decide(&mut self, what: What) -> Result<(), ModelError> {
        let decision = Decision { at: self.cursor, what };
        let (model, sequence, word) = (self.live.name.clone(), self.cursor.sequence, decision.what.word());
        let _span = debug_span!("decision", model, sequence, decision = word).entered();
        let budget_before = self.live.status_lent().budget_bytes;
        self.ground.record_decision(self.live.id, self.decided, &decision)?;
        self.ground.metrics.model_decisions_total.with_label_values(&[&model, word]).inc();
        self.execute(&decision.what)?;
        self.live.note_decision(&decision, budget_before);
        if let What::Plan(Planned { by_hand, .. }) = decision.what {
            let planned_bytes = self.fold.planned_bytes();
            let PlanFigures { stages, workers, .. } = self.fold.plan_figures().unwrap_or_default();
            tracing::info!(model, sequence, stages, workers, planned_bytes, by_hand, "another plan is followed");
        } else {
            tracing::debug!("a decision is followed");
        }
        Ok(())
    }

    /// Notes that the model does not keep up.
    fn note_if_behind(&mut self) {
        // A row can be read from the log an instant before the stream's head says so.
        if self.live.stream.head().saturating_sub(self.cursor.sequence) > BEHIND_STEPS * self.fold.step_rows() as u64 {
            self.behind_at = Some(Instant::now());
        }
    }

    /// What a plan is to be proposed for. How fast rows come is known only from the time since the model was last behind: before, it
    /// was the model that held up the posts.
    pub(super) fn demand(&self, most_bytes: u64) -> Demand {
        Demand { budget_bytes: Some(most_bytes), row_interval: self.live.stream.row_interval(self.behind_at) }
    }

    /// What a plan may hold at present.
    pub(super) fn most_bytes(&self) -> u64 {
        let status = self.live.status.lock();
        self.ground.within(status.budget_bytes).min(status.allotted_bytes.unwrap_or(u64::MAX))
    }

    /// A plan within the limits that hold.
    pub(super) fn planned(&self, by_hand: bool, plan: serde_json::Value) -> What {
        let status = self.live.status.lock();
        What::Plan(Planned { budget_bytes: status.budget_bytes, allotted_bytes: status.allotted_bytes, by_hand, plan })
    }

    /// Follows a much better plan, where what was observed of the present one says that there is one.
    fn review_if_due(&mut self) -> Result<(), ModelError> {
        let interval = self.ground.settings.review_interval;
        // Rows that were known at the start may have been learned, and seen to be, under the present plan.
        let replays = !self.decisions.is_empty() || self.cursor.sequence < self.known;
        if interval.is_zero() || self.reviewed_at.elapsed() < interval || replays || self.by_hand {
            return Ok(());
        }
        self.reviewed_at = Instant::now();
        self.drain()?;
        // Readers have the newest while it is measured.
        self.publish_if_due(true)?;
        let demand = self.demand(self.most_bytes());
        match self.fold.reconsider_plan(demand) {
            Ok(None) | Err(ProposalError::BelowMinimum(_)) => Ok(()),
            Ok(Some(plan)) => {
                tracing::info!(
                    model = self.live.name,
                    "another plan brings much more than the present one, by what was observed"
                );
                self.decide(self.planned(false, plan))
            }
            Err(ProposalError::Fold(error)) => Err(error.into()),
        }
    }

    pub(super) fn drain(&mut self) -> Result<(), ModelError> {
        let mut outcomes = Vec::new();
        let drained = guarded(|| self.fold.drain(&mut outcomes));
        self.settle(outcomes);
        Ok(drained?)
    }

    fn settle(&mut self, outcomes: Vec<Outcome>) {
        let mut ended = self.ended(outcomes);
        let now = Instant::now();
        let rises: Vec<Option<Shift>> = {
            let mut status = self.live.status.lock();
            status.steps_in_flight = self.steps.len() as u64;
            // What was told before a fold was brought back is not told again.
            ended.retain(|(passage, _)| passage.last > status.version.sequence);
            if ended.is_empty() {
                return;
            }
            self.note_unseen(&mut status, now);
            ended.iter().map(|(passage, outcome)| status.settle(passage, outcome.as_ref(), now)).collect()
        };
        for ((passage, outcome), rise) in ended.iter().zip(rises) {
            if let Some(outcome) = outcome {
                self.condemned = 0;
                self.tell_of_refusal(passage, outcome);
            }
            if let Some(Shift { before, after }) = rise {
                self.drifted = true;
                let (model, sequence) = (&self.live.name, passage.last);
                tracing::warn!(model, sequence, before, after, "the loss of new rows has risen: the stream may have drifted");
                let text = format!("the loss of new rows has risen from {before:.3} to {after:.3}: the stream may have drifted");
                self.live.note(Kind::Drift, Version { sequence, ..self.cursor }, text);
            }
        }
        self.moved();
    }

    /// What is decided by the end of these steps: they, what was passed over before them, and what comes directly after.
    fn ended(&mut self, outcomes: Vec<Outcome>) -> Vec<(Passage, Option<Outcome>)> {
        let mut ended = Vec::with_capacity(outcomes.len());
        let mut outcomes = outcomes.into_iter();
        while let Some(passage) = self.flight.front() {
            let outcome = if passage.rows > 0 { outcomes.next() } else { None };
            if passage.rows > 0 && outcome.is_none() {
                break;
            }
            if let Some(outcome) = &outcome
                && let Some(span) = self.steps.pop_front()
            {
                tell_of_end(&span, outcome);
            }
            ended.extend(self.flight.pop_front().map(|passage| (passage, outcome)));
        }
        ended
    }

    /// Notes, before the version moves on, since when readers do not see the newest state.
    fn note_unseen(&self, status: &mut Status, now: Instant) {
        if self.live.published.load().version >= status.version {
            status.unseen_since = now;
        }
    }

    /// Lets go of the rows that are decided now, and tells whoever waits for them.
    fn moved(&mut self) {
        let version = self.version();
        self.queue.forget(version.sequence);
        self.live.progress.send_modify(|progress| progress.version = version);
    }

    /// Says that a step was refused, once for each run of them: a model that diverges would say it at every step.
    fn tell_of_refusal(&mut self, passage: &Passage, outcome: &Outcome) {
        let Verdict::Quarantined(reason) = &outcome.verdict else {
            self.refusing = false;
            return;
        };
        if !std::mem::replace(&mut self.refusing, true) {
            let (model, Passage { first, last, .. }) = (&self.live.name, passage);
            tracing::warn!(model, first_sequence = first, sequence = last, reason, "rows were refused and taught nothing");
            let text = format!("rows {first} to {last} were refused and taught nothing: {reason}");
            self.live.note(Kind::Quarantine, Version { sequence: *last, ..self.cursor }, text);
        }
    }

    fn version(&self) -> Version {
        self.live.status.lock().version
    }

    /// Hands readers a newer snapshot when it is time. It is begun at half the interval, so that the one that readers see is no
    /// older than the interval when the next has come through the pipeline.
    pub(super) fn publish_if_due(&mut self, idle: bool) -> Result<(), ModelError> {
        if self.midway {
            // Half a change is no version.
            return Ok(());
        }
        let seen = self.live.published.load().version;
        let behind = seen < self.cursor || (self.changed && seen == self.cursor);
        let due = idle || self.publish_now || self.published_at.elapsed() >= self.ground.settings.publish_interval / 2;
        if self.publishing.is_none() && behind && due {
            let mut outcomes = Vec::new();
            let now = Instant::now();
            let begun = self.fold.begin_snapshot(&mut outcomes);
            self.settle(outcomes);
            if begun? {
                (self.publishing, self.publish_now, self.changed) = (Some(self.cursor), false, false);
                self.published_at = now;
            }
        }
        let Some(version) = self.publishing else { return Ok(()) };
        if let Some(snapshot) = self.fold.snapshot()? {
            self.publishing = None;
            self.live.published.store(Arc::new(Published { version, begun: self.published_at, snapshot }));
            // Whoever waits looks again.
            self.live.progress.send_modify(|_| {});
            if idle && version < self.cursor {
                // That one was begun before the last steps came in.
                return self.publish_if_due(idle);
            }
        }
        Ok(())
    }

    /// Writes a checkpoint when it is time. A disk that refuses it is tried again later: the log has it all. A disk that may have
    /// lost what it was given ends the process.
    fn checkpoint_if_due(&mut self) -> Result<(), ModelError> {
        if !self.checkpoint_is_due() || self.save_again_at.is_some_and(|again| Instant::now() < again) {
            return Ok(());
        }
        self.save_again_at = None;
        match self.checkpoint() {
            Err(ModelError::Checkpoint(CheckpointError::Io(error))) => {
                if is_sync_failure(&error) {
                    self.ground.end(&error);
                }
                tracing::error!(model = self.live.name, %error, "no checkpoint could be written; it will be tried again");
                self.ground.metrics.model_checkpoint_failures_total.with_label_values(&[&self.live.name]).inc();
                self.save_again_at = Some(Instant::now() + SAVE_AGAIN);
                Ok(())
            }
            other => other,
        }
    }

    fn checkpoint_is_due(&self) -> bool {
        if self.cursor < self.version() {
            return false;
        }
        let settings = &self.ground.settings;
        let Some((saved, decided)) = self.saved else { return true };
        let rows = self.cursor.sequence - saved.sequence;
        let is_newer = rows > 0 || self.decided > decided;
        is_newer && (rows >= settings.checkpoint_rows || self.saved_at.elapsed() >= settings.checkpoint_interval)
    }

    /// Writes the state at the present version, and lets the log forget what no checkpoint needs.
    pub(super) fn checkpoint(&mut self) -> Result<(), ModelError> {
        self.drain()?;
        // Readers have the newest while the disk is waited for.
        self.publish_if_due(true)?;
        let version = self.version();
        if self.midway || self.cursor < version {
            // The state is none of a version, or the counters are of a later one, to which the fold has yet to come again.
            return Ok(());
        }
        let _span = debug_span!("checkpoint", model = self.live.name, sequence = version.sequence).entered();
        let head = Head {
            folder: self.ground.folder.identity.clone(),
            model: self.live.name.clone(),
            identity: self.fold.identity(),
            version,
            decisions: self.decided,
            tally: self.live.status.lock().tally.clone(),
            values: serde_json::Value::Null,
        };
        let state = self.fold.checkpoint()?;
        let head = Head { values: state.values.clone(), ..head };
        let folder = checkpoint::folder(&self.ground.folder.path, self.live.id);
        let figures = checkpoint::Store::new(self.ground.disk.as_ref(), folder).save(&head, &state)?;
        self.saved_at = Instant::now();
        let before = self.saved.replace((version, head.decisions));
        self.ground.metrics.model_checkpoint_seconds.with_label_values(&[&self.live.name]).observe(figures.seconds);
        tracing::debug!(seconds = figures.seconds, decisions = head.decisions, "a checkpoint is durable");
        let oldest_kept = figures.oldest_kept;
        self.ground.need(&self.live.stream, self.live.id, oldest_kept.sequence);
        self.live.status.lock().checkpoint = Some(figures);
        self.ground.trim(&self.live.stream, self.ground.settings.retain_bytes)?;
        // Two checkpoints are kept, and the one before this is known to be the older of them unless this took its place.
        let older = before.filter(|before| before.0 == oldest_kept && *before != (version, head.decisions));
        self.let_blobs_go(older.map_or(0, |(_, decisions)| decisions))
    }

    /// Waits for a row, a command, or the time to look after the checkpoint.
    fn sleep(&mut self) -> std::ops::ControlFlow<()> {
        let command = select! {
            recv(self.commands) -> command => command.ok(),
            recv(self.wake) -> _ => return std::ops::ControlFlow::Continue(()),
            default(IDLE_TICK) => return std::ops::ControlFlow::Continue(()),
        };
        match command {
            Some(command) => self.answer(command),
            None => std::ops::ControlFlow::Break(()),
        }
    }
}

/// Ends the span of a step.
fn tell_of_end(span: &Span, outcome: &Outcome) {
    let Outcome { ordinal, rows, ref verdict, ref score, .. } = *outcome;
    span.record("ordinal", ordinal);
    let verdict = match verdict {
        Verdict::Learned => "learned",
        Verdict::LearnedInPart => "learned_in_part",
        Verdict::Quarantined(_) => "quarantined",
    };
    span.in_scope(|| tracing::debug!(verdict, loss = score.loss / rows.max(1) as f64, "a step has ended"));
}

fn fail(live: &Live, error: &ModelError) {
    tracing::error!(model = live.name, %error, "the model stands still; its last snapshot goes on answering");
    let version = {
        let mut status = live.status.lock();
        status.failure = Some(error.to_string());
        status.under_way = None;
        status.steps_in_flight = 0;
        status.version
    };
    live.note(Kind::Failure, version, format!("it stands still: {error}"));
    live.end();
}

/// Calls a fold. One that panics has failed in its step, wherever it was in it.
fn guarded<T>(call: impl FnOnce() -> Result<T, FoldError>) -> Result<T, FoldError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| Err(FoldError::of_panic(payload.as_ref())))
}
