//! The fold of a detector: hidden states of labelled rows make a direction, held-out benign ones its threshold.
//!
//! A step is watched, scored as the direction was before it, and learned, all before the next one is taken: nothing is in flight between
//! steps. Every so many benign rows one is held out for the threshold. All of that follows from the rows in their order, so the direction
//! after a restart is the same to the bit.

use std::any::Any;
use std::ops::Range;
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::calibration::{self, Kept, Mode, Threshold};
use super::carried::{self, Carried, Origin, Worth};
use super::eye::{self, Eye};
use super::lessons::{self, Lessons};
use super::logistic::{self, Logistic};
use super::moments::{self, Moments, Spread};
use super::parent::{Adoption, Parent};
use super::probe::{self, Probe};
use super::{BENIGN, Direction};
use crate::ferret::pool::Pool;
use crate::ferret::trainer::check_learning_rate;
use crate::fold::{
    BelowMinimum, Change, Demand, Fold, FoldError, Label, Outcome, Predictions, ProposalError, Score, Sequence, Snapshot, State,
    StateRef, Step, Verdict,
};
use crate::ledger::{Guard, Ledger, Part};
use crate::metrics::PlanFigures;
use crate::network::{self, random};
use crate::rows::{Rows, Target};

/// Counts the changes of this module's arithmetic: a state of another number is a state of another fold.
const FOLD_VERSION: u32 = 2;
/// The snapshot that is published, and one that readers have not let go of.
const SNAPSHOTS_MAX: usize = 2;

/// What a detector is made of.
#[derive(Clone)]
pub struct Recipe {
    /// What it watches; of a live network, what it sees before a version is adopted.
    pub eye: Arc<dyn Eye>,
    /// The live network, if it is one.
    pub(super) parent: Option<Parent>,
    /// Rows of each class that are kept to be learned once more with a version that is adopted.
    pub kept_rows: usize,
    /// How the direction is found.
    pub direction: Direction,
    /// Where it comes from, if it is carried over from another encoder; `direction` then means nothing.
    pub origin: Option<Origin>,
    /// Of every so many benign rows one is held out for the threshold; 0: none.
    pub held_out_every: u64,
    /// Held-out rows that are kept, the newest.
    pub calibration_rows: usize,
    /// Where the threshold comes from at first.
    pub mode: Mode,
    /// Of the logistic direction.
    pub learning_rate: f64,
    /// Draws its initial weights.
    pub seed: u64,
    /// Rows of a step, at most.
    pub step_rows: usize,
    /// Bytes of one row's features.
    pub row_bytes: u64,
    /// Bytes of records that the driver holds at most.
    pub queued_bytes: u64,
}

impl Recipe {
    /// Whether a threshold can ever come from there.
    ///
    /// # Errors
    /// It cannot, for the reason given.
    pub(super) fn check(&self, mode: Mode) -> Result<(), String> {
        mode.validate(self.calibration_rows)?;
        match mode {
            Mode::Midpoint if self.origin.is_some() => {
                Err("threshold: a direction that is carried over learns no adversarial rows, so it has no midpoint".into())
            }
            Mode::Conformal { .. } if self.held_out_every == 0 => {
                Err("threshold: a rate needs rows that are held out, and held_out_every is 0".into())
            }
            _ => Ok(()),
        }
    }

    fn spread(&self) -> Spread {
        if self.direction == Direction::Whitened && self.origin.is_none() { Spread::Covariance } else { Spread::Variances }
    }

    fn logistic(&self, threads: usize) -> Result<Option<crate::ferret::trainer::Recipe>, FoldError> {
        match self.direction {
            Direction::Logistic if self.origin.is_none() => {
                logistic::recipe(self.eye.width(), self.step_rows, threads, self.learning_rate, self.seed).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The bytes of each part while so many rows are watched at once.
    fn bytes(&self, plan: Plan) -> Result<[u64; Part::ALL.len()], FoldError> {
        let width = self.eye.width() as u64;
        let (moments, kept) =
            (Moments::bytes(self.eye.width(), self.spread()), Kept::bytes(self.calibration_rows, self.eye.width()));
        let mut bytes = [0; Part::ALL.len()];
        bytes[Part::Weights as usize] = self.eye.weight_bytes() + 4 * width;
        // The newest direction with the readers, and the next one.
        bytes[Part::Snapshots as usize] = SNAPSHOTS_MAX as u64 * DetectorSnapshot::bytes(width);
        bytes[Part::Activations as usize] = self.eye.row_bytes() * plan.rows_at_once as u64;
        bytes[Part::Learner as usize] = moments + kept;
        // A step's states as they come from the threads, side by side, and as a regression reads them; and whichever is the larger of what is
        // copied while it changes.
        bytes[Part::Workspace as usize] = 4 * 4 * width * self.step_rows as u64 + (2 * moments).max(kept);
        bytes[Part::QueuedRows as usize] = self.queued_bytes;
        if self.parent.is_some() {
            let lessons = Lessons::bytes(self.kept_rows, self.row_bytes);
            // Snapshots look through the versions that were adopted when they were made.
            bytes[Part::Snapshots as usize] += SNAPSHOTS_MAX as u64 * self.eye.weight_bytes();
            bytes[Part::Learner as usize] += lessons;
            // Rows of a step as they are taken out, or weights that are being adopted, as they are read and as tensors.
            let of_step = self.row_bytes * self.step_rows as u64;
            bytes[Part::Workspace as usize] += of_step.max(2 * self.eye.weight_bytes());
        }
        if let Some(Origin { eye, .. }) = &self.origin {
            let (source, target) = (eye.width(), self.eye.width());
            bytes[Part::Weights as usize] += eye.weight_bytes() + 4 * width;
            bytes[Part::Activations as usize] += eye.row_bytes() * plan.rows_at_once as u64;
            bytes[Part::Learner as usize] += Carried::bytes(source, target);
            // The rows that are looked at by the other encoder are gathered.
            let of_step = self.row_bytes + 2 * 4 * source as u64;
            bytes[Part::Workspace as usize] += Carried::fit_bytes(source, target) + of_step * self.step_rows as u64;
        }
        if let Some(logistic) = self.logistic(1)? {
            bytes[Part::Optimiser as usize] = logistic::plan(&logistic).bytes.total();
        }
        Ok(bytes)
    }

    /// The plan that watches most rows at once, up to the number of threads, within a budget.
    pub(super) fn propose(&self, budget_bytes: Option<u64>, threads: usize) -> Result<Plan, ProposalError> {
        let budget_bytes = budget_bytes.unwrap_or(u64::MAX);
        let total = |rows_at_once: usize| Ok::<u64, FoldError>(self.bytes(Plan { rows_at_once })?.iter().sum());
        let minimum_bytes = total(1)?;
        if budget_bytes < minimum_bytes {
            return Err(BelowMinimum { budget_bytes, minimum_bytes }.into());
        }
        let mut rows_at_once = threads.clamp(1, self.step_rows);
        while total(rows_at_once)? > budget_bytes {
            rows_at_once -= 1;
        }
        Ok(Plan { rows_at_once })
    }
}

/// How a detector is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Rows whose hidden states are found at the same time, each on a thread.
    rows_at_once: usize,
}

/// What a detector remembers beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    ordinal: u64,
    plan: Plan,
    mode: Mode,
    /// Rows that were learned of each class.
    learned: [u64; 2],
    /// Benign rows that were seen.
    benign: u64,
    /// Benign rows that were held out.
    held_out: u64,
    /// Pairs that were seen of a direction that is carried over, and what its map is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    carried: Option<(u64, Worth)>,
    /// Of the logistic regression, if there is one.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    logistic: Value,
    /// The version of a live network that is looked through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adopted: Option<Adoption>,
}

/// What can be set of a detector while it lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Where the threshold comes from.
    Threshold(Mode),
    /// The version of the live network that is looked through from here on.
    Adopt(Adoption),
}

/// Learns to tell adversarial rows from benign ones.
pub struct Detector {
    recipe: Recipe,
    pool: Pool,
    plan: Plan,
    bytes: [u64; Part::ALL.len()],
    minimum_bytes: u64,
    moments: Moments,
    logistic: Option<Logistic>,
    carried: Option<Carried>,
    /// Of a detector that watches a live network.
    lessons: Option<Lessons>,
    adopted: Option<Adoption>,
    /// Which of the rows that are kept, in their order, it has yet to learn with the adopted version.
    unlearned: Range<usize>,
    kept: Kept,
    mode: Mode,
    benign: u64,
    ordinal: u64,
    /// Of all that was learned so far.
    probe: Probe,
    /// A snapshot was asked for.
    asked: bool,
    /// Those that readers may still hold.
    issued: Vec<Weak<DetectorSnapshot>>,
    ledger: Ledger,
    _held: Vec<Guard>,
}

impl Detector {
    /// A detector at the start of its stream, under its smallest plan.
    ///
    /// # Errors
    /// The arithmetic failed.
    pub fn new(recipe: Recipe, pool: Pool) -> Result<Detector, FoldError> {
        let (width, ledger, plan) = (recipe.eye.width(), Ledger::default(), Plan { rows_at_once: 1 });
        let bytes = recipe.bytes(plan)?;
        let logistic = match recipe.logistic(pool.threads())? {
            Some(logistic) => Some(Logistic::new(logistic, pool.clone())?),
            None => None,
        };
        let hold = |part: Part| ledger.take(part, bytes[part as usize]);
        let held = [Part::Weights, Part::Learner, Part::Optimiser].map(hold).into();
        Ok(Detector {
            pool,
            plan,
            bytes,
            minimum_bytes: bytes.iter().sum(),
            moments: Moments::new(width, recipe.spread())?,
            logistic,
            carried: recipe.origin.clone().map(|origin| Carried::new(origin, width)).transpose()?,
            lessons: match &recipe.parent {
                Some(_) => Some(Lessons::new(recipe.kept_rows, recipe.row_bytes as usize)?),
                None => None,
            },
            adopted: None,
            unlearned: 0..0,
            kept: Kept::new(recipe.calibration_rows, width)?,
            mode: recipe.mode,
            benign: 0,
            ordinal: 0,
            probe: Probe::new(width),
            asked: false,
            issued: Vec::new(),
            ledger,
            _held: held,
            recipe,
        })
    }

    fn follow(&mut self, plan: Plan) -> Result<(), FoldError> {
        (self.plan, self.bytes) = (plan, self.recipe.bytes(plan)?);
        self.ledger.reset_high_water();
        Ok(())
    }

    fn direct(&mut self) -> Result<(), FoldError> {
        self.probe = match (&self.logistic, &self.carried) {
            (Some(logistic), _) => logistic.probe()?,
            (None, Some(carried)) => self.moments.distance_along(&carried.direction()?)?,
            (None, None) => self.moments.discriminant()?,
        };
        Ok(())
    }

    /// Which rows of a step are learned, and which are held out, by their classes. A direction that is carried over learns from benign
    /// rows alone: adversarial ones are only scored.
    fn divide(&mut self, classes: &[u32]) -> (Vec<usize>, Vec<usize>) {
        (0..classes.len()).partition(|&row| {
            if classes[row] != BENIGN {
                return self.carried.is_none();
            }
            self.benign += 1;
            !is_held_out(self.benign - 1, self.recipe.held_out_every, self.recipe.seed)
        })
    }

    /// Whether nothing can be seen yet: the live network that is watched has not been adopted at any version.
    fn is_blind(&self) -> bool {
        self.recipe.parent.is_some() && self.adopted.is_none()
    }

    /// Looks at rows, scores them as the direction is, and learns them; also how many were held out.
    fn study(&mut self, last: Sequence, rows: &Rows, classes: &[u32]) -> Result<(Verdict, u64, Score), FoldError> {
        let width = self.recipe.eye.width();
        let states = eye::states_on(&self.pool, self.plan.rows_at_once, &self.recipe.eye, rows)?;
        let before = probe::predictions(&self.probe.scores(&states));
        let mut score = Score::default();
        for (row, &class) in classes.iter().enumerate() {
            score.add(before.score(row, Label::Class(class)));
        }
        let state = |row: usize| &states[row * width..(row + 1) * width];
        let (learned, held_out) = self.divide(classes);
        let mut verdict = Verdict::Learned;
        if let Some(logistic) = &mut self.logistic {
            let learned_states: Vec<f32> = learned.iter().flat_map(|&row| state(row)).copied().collect();
            let learned_classes = learned.iter().map(|&row| classes[row]).collect();
            verdict = logistic.learn(last, &learned_states, learned_classes)?.unwrap_or(verdict);
        }
        if matches!(verdict, Verdict::Quarantined(_)) {
            return Ok((verdict, 0, Score::default()));
        }
        self.moments.take_in(learned.iter().map(|&row| (state(row), classes[row])))?;
        self.kept.push(held_out.iter().filter(|&&row| classes[row] == BENIGN).map(|&row| state(row)))?;
        if let Some(carried) = &mut self.carried {
            let sources = eye::states_on(&self.pool, self.plan.rows_at_once, &carried.origin.eye, &rows.gather(&learned))?;
            let source_width = carried.origin.eye.width().max(1);
            carried.take_in(sources.chunks_exact(source_width), learned.iter().map(|&row| state(row)))?;
        }
        Ok((verdict, held_out.len() as u64, score))
    }

    /// Looks through another version of the live network from here on. States of the former one mean nothing in it, so all begins anew,
    /// with the rows that are kept: [`Fold::proceed`] learns them once more.
    fn adopt(&mut self, adoption: &Adoption) -> Result<(), FoldError> {
        self.look_through(adoption)?;
        let width = self.recipe.eye.width();
        self.moments = Moments::new(width, self.recipe.spread())?;
        self.kept = Kept::new(self.recipe.calibration_rows, width)?;
        self.benign = 0;
        if let Some(logistic) = self.recipe.logistic(self.pool.threads())? {
            let learning_rate = self.learning_rate();
            // The former one goes first: the plan has the bytes of one.
            self.logistic = None;
            let mut fresh = Logistic::new(logistic, self.pool.clone())?;
            if let Some(learning_rate) = learning_rate {
                fresh.trainer().execute(&Change::LearningRate(learning_rate))?;
            }
            self.logistic = Some(fresh);
        }
        self.direct()?;
        self.unlearned = 0..self.lessons.as_ref().map(Lessons::places).transpose()?.map_or(0, |places| places.len());
        Ok(())
    }

    /// What is at work while rows are looked at.
    fn working(&self) -> [Guard; 2] {
        [Part::Activations, Part::Workspace].map(|part| self.ledger.take(part, self.bytes[part as usize]))
    }

    fn look_through(&mut self, adoption: &Adoption) -> Result<(), FoldError> {
        let Some(parent) = &self.recipe.parent else {
            return Err(FoldError::Contract("a detector of a frozen encoder adopts no version".into()));
        };
        self.recipe.eye = Arc::new(parent.adopt(adoption)?);
        self.adopted = Some(adoption.clone());
        Ok(())
    }

    /// None where nothing could be judged by it: without a direction every score is the same, and everything would pass.
    fn threshold(&self) -> Result<Option<Threshold>, FoldError> {
        Ok(match self.mode {
            _ if !self.probe.is_directed() => None,
            Mode::Midpoint if self.moments.counts.contains(&0) => None,
            Mode::Midpoint => Some(Threshold::midpoint(&self.probe, &self.moments.means()?)),
            Mode::Conformal { target_fpr } => Threshold::conformal(self.kept.scores(&self.probe)?, target_fpr),
        })
    }
}

impl Fold for Detector {
    fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        let Some(Target::Classes(classes)) = &step.rows.target else {
            return Err(FoldError::Contract("rows without classes cannot be learned".into()));
        };
        let _working = self.working();
        if let Some(lessons) = &mut self.lessons {
            lessons.push(&step.rows, classes)?;
        }
        // What is only kept now is learned when a version is adopted.
        let (verdict, held_out, score) =
            if self.is_blind() { (Verdict::Learned, 0, Score::default()) } else { self.study(step.last, &step.rows, classes)? };
        self.direct()?;
        let (ordinal, rows) = (self.ordinal, step.rows.count as u64);
        self.ordinal += 1;
        outcomes.push(Outcome { ordinal, last: step.last, rows, held_out, verdict, score });
        Ok(())
    }

    fn drain(&mut self, _outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        Ok(())
    }

    fn propose_plan(&mut self, demand: Demand) -> Result<Value, ProposalError> {
        Ok(json!(self.recipe.propose(demand.budget_bytes, self.pool.threads())?))
    }

    fn holds(&self, change: &Change) -> bool {
        // To begin anew with the same version would forget rows that are no longer kept.
        let Change::Setting(value) = change else { return false };
        match (Setting::deserialize(value), &self.adopted) {
            (Ok(Setting::Adopt(adoption)), Some(adopted)) => adopted.covers(adoption.model_id, adoption.version),
            _ => false,
        }
    }

    fn check(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::Plan(_) => Ok(()),
            Change::LearningRate(_) if self.logistic.is_none() => Err("only the logistic direction has a learning rate".into()),
            Change::LearningRate(learning_rate) => check_learning_rate(*learning_rate),
            Change::Setting(value) => {
                match serde_json::from_value(value.clone()).map_err(|error| format!("nothing that can be set: {error}"))? {
                    Setting::Threshold(mode) => {
                        self.recipe.check(mode)?;
                        let (rows, needed) = (self.kept.len(), mode.rows_needed());
                        if rows < needed {
                            return Err(format!(
                                "{rows} benign rows are held out, and this rate needs {needed}: post more benign examples"
                            ));
                        }
                        Ok(())
                    }
                    Setting::Adopt(adoption) => match &self.recipe.parent {
                        Some(parent) => parent.adopt(&adoption).map(drop).map_err(|error| error.to_string()),
                        None => Err("a detector of a frozen encoder adopts no version".into()),
                    },
                }
            }
        }
    }

    fn execute(&mut self, change: &Change) -> Result<(), FoldError> {
        let misread = |error: serde_json::Error| FoldError::Contract(format!("a decision is not of a detector: {error}"));
        match change {
            Change::Plan(plan) => self.follow(serde_json::from_value(plan.clone()).map_err(misread)?)?,
            Change::Setting(value) => match serde_json::from_value(value.clone()).map_err(misread)? {
                Setting::Threshold(mode) => self.mode = mode,
                Setting::Adopt(adoption) => self.adopt(&adoption)?,
            },
            Change::LearningRate(_) => match &mut self.logistic {
                Some(logistic) => logistic.trainer().execute(change)?,
                None => return Err(FoldError::Contract("this direction has no learning rate".into())),
            },
        }
        Ok(())
    }

    fn proceed(&mut self) -> Result<bool, FoldError> {
        let Some(lessons) = self.lessons.as_ref().filter(|_| !self.unlearned.is_empty()) else { return Ok(false) };
        let _working = self.working();
        let Range { start, end } = self.unlearned;
        let next = end.min(start + self.recipe.step_rows);
        let (rows, classes) = lessons.rows(&lessons.places()?[start..next])?;
        self.unlearned.start = next;
        // Of what is refused nothing is learned, as of a step that came just now.
        self.study(next as Sequence, &rows, &classes)?;
        if self.unlearned.is_empty() {
            self.direct()?;
        }
        Ok(!self.unlearned.is_empty())
    }

    fn begin_snapshot(&mut self, _outcomes: &mut Vec<Outcome>) -> Result<bool, FoldError> {
        self.issued.retain(|snapshot| snapshot.strong_count() > 0);
        self.asked = self.issued.len() < SNAPSHOTS_MAX;
        Ok(self.asked)
    }

    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, FoldError> {
        if !std::mem::take(&mut self.asked) {
            return Ok(None);
        }
        let snapshot = DetectorSnapshot {
            eye: self.recipe.eye.clone(),
            probe: self.probe.clone(),
            judging: Arc::new(Judging {
                blind: self.is_blind(),
                of_both: !self.moments.counts.contains(&0),
                directed: self.probe.is_directed(),
                threshold: self.threshold()?,
                mode: self.mode,
                calibration_rows: self.kept.len(),
            }),
            worth: self.carried.as_ref().map(|carried| carried.worth),
            means: self.moments.means()?,
            learned: self.moments.counts,
            watching: self
                .adopted
                .clone()
                .zip(self.recipe.parent.as_ref())
                .map(|(adopted, parent)| Watching { adopted, places: parent.places.clone() }),
            _held: self.ledger.take(Part::Snapshots, self.bytes[Part::Snapshots as usize] / SNAPSHOTS_MAX as u64),
        };
        let snapshot = Arc::new(snapshot);
        self.issued.push(Arc::downgrade(&snapshot));
        Ok(Some(snapshot))
    }

    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        let named = moments::NAMES.map(str::to_owned).into_iter().zip(self.moments.tensors());
        let mut tensors: std::collections::BTreeMap<_, _> = named.collect();
        tensors.insert(calibration::NAME.to_owned(), self.kept.tensor());
        if let Some(carried) = &self.carried {
            tensors.extend(carried::NAMES.map(str::to_owned).into_iter().zip(carried.tensors()));
        }
        if let Some(lessons) = &self.lessons {
            tensors.extend(lessons::NAMES.map(str::to_owned).into_iter().zip(lessons.tensors()));
        }
        let mut of_logistic = Value::Null;
        if let Some(logistic) = &self.logistic {
            let StateRef { tensors: inner, values } = logistic.state()?;
            tensors.extend(inner.into_iter().map(|(name, tensor)| (format!("{LOGISTIC}{name}"), tensor)));
            of_logistic = values;
        }
        let values = Values {
            ordinal: self.ordinal,
            plan: self.plan,
            mode: self.mode,
            learned: self.moments.counts,
            benign: self.benign,
            held_out: self.kept.seen,
            carried: self.carried.as_ref().map(|carried| (carried.seen(), carried.worth)),
            logistic: of_logistic,
            adopted: self.adopted.clone(),
        };
        let values = serde_json::to_value(values).map_err(|error| FoldError::Contract(error.to_string()))?;
        Ok(StateRef { tensors, values })
    }

    fn restore(&mut self, state: State) -> Result<(), FoldError> {
        let State { mut tensors, values } = state;
        let values: Values = serde_json::from_value(values)
            .map_err(|error| FoldError::Contract(format!("the values of this state are not a detector's: {error}")))?;
        let mut take =
            |name: &str| tensors.remove(name).ok_or_else(|| FoldError::Contract(format!("{name} is missing from this state")));
        let [means, scatter] = moments::NAMES.map(&mut take);
        let kept = take(calibration::NAME)?;
        self.moments.restore(values.learned, [means?, scatter?]).map_err(FoldError::Contract)?;
        self.kept.restore(values.held_out, kept).map_err(FoldError::Contract)?;
        if let Some(carried) = &mut self.carried {
            let (seen, worth) = values.carried.unwrap_or_default();
            let [sources, targets, direction] = carried::NAMES.map(&mut take);
            carried.restore(seen, worth, [sources?, targets?, direction?]).map_err(FoldError::Contract)?;
        }
        if let Some(lessons) = &mut self.lessons {
            let [rows, order] = lessons::NAMES.map(&mut take);
            lessons.restore([rows?, order?]).map_err(FoldError::Contract)?;
        }
        if let Some(logistic) = &mut self.logistic {
            let inner = std::mem::take(&mut tensors).into_iter();
            let named = |(name, tensor): (String, _)| (name.strip_prefix(LOGISTIC).unwrap_or(&name).to_owned(), tensor);
            logistic.restore(State { tensors: inner.map(named).collect(), values: values.logistic })?;
        }
        if let Some(name) = tensors.keys().next() {
            return Err(FoldError::Contract(format!("this state has {name}, which a detector of this direction lacks")));
        }
        if let Some(adopted) = &values.adopted {
            self.look_through(adopted)?;
        }
        (self.ordinal, self.mode, self.benign) = (values.ordinal, values.mode, values.benign);
        self.follow(values.plan)?;
        self.direct()
    }

    fn step_rows(&self) -> usize {
        self.recipe.step_rows
    }

    fn learning_rate(&self) -> Option<f64> {
        self.logistic.as_ref().and_then(Logistic::learning_rate)
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn planned_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }

    fn planned_part_bytes(&self, part: Part) -> u64 {
        self.bytes[part as usize]
    }

    fn plan_figures(&self) -> Option<PlanFigures> {
        None
    }

    fn minimum_bytes(&self) -> u64 {
        self.minimum_bytes
    }

    fn outline(&self) -> Value {
        json!({ "watches": self.recipe.eye.identity(), "width": self.recipe.eye.width() })
    }

    fn identity(&self) -> String {
        let of_logistic = self.logistic.as_ref().map_or_else(network::identity, Logistic::identity);
        let origin =
            self.recipe.origin.as_ref().map(|origin| format!("; carried from {}", origin.eye.identity())).unwrap_or_default();
        format!("nearside {FOLD_VERSION}; {}{origin}; {of_logistic}", self.recipe.eye.identity())
    }
}

/// Whether this benign row, counted from 0, is held out: of every so many that follow each other one is drawn, so that rows which come in
/// turns from several places are held out alike.
fn is_held_out(benign: u64, every: u64, seed: u64) -> bool {
    let Some(round) = benign.checked_div(every) else { return false };
    let place = (random::uniform(&mut random::stream(seed, round, "held-out")) * every as f32) as u64;
    benign % every == place.min(every - 1)
}

/// What the names of a logistic regression's tensors begin with, among a detector's.
const LOGISTIC: &str = "logistic.";

/// How the scores of a detector are judged.
#[derive(Clone, Copy, Debug)]
pub struct Judging {
    /// Whether a live network is watched, and no version of it adopted yet.
    pub blind: bool,
    /// Whether rows of both classes were learned.
    pub of_both: bool,
    /// Whether there is a direction yet.
    pub directed: bool,
    /// Above which inputs are called adversarial; none until it can be had.
    pub threshold: Option<Threshold>,
    /// Where it comes from.
    pub mode: Mode,
    /// Held-out benign rows that are kept.
    pub calibration_rows: usize,
}

/// What a detector of a live network looks at.
#[derive(Clone, Debug)]
pub struct Watching {
    /// The version of the network that it looks through.
    pub adopted: Adoption,
    /// The places of the layers whose states it reads.
    pub places: Arc<[usize]>,
}

/// A frozen detector, shared by any number of readers.
pub struct DetectorSnapshot {
    eye: Arc<dyn Eye>,
    /// The score.
    pub probe: Probe,
    /// How scores are judged.
    pub judging: Arc<Judging>,
    /// What the map is worth that carried the direction over; none for a direction that was found here.
    pub worth: Option<Worth>,
    /// The mean states of benign and of adversarial rows.
    pub means: [Vec<f64>; 2],
    /// Rows that were learned of each class.
    pub learned: [u64; 2],
    /// Of a live network; none while no version of it is adopted.
    pub watching: Option<Watching>,
    _held: Guard,
}

impl DetectorSnapshot {
    /// The probe, and two means in 64 bits.
    fn bytes(width: u64) -> u64 {
        (4 + 2 * 8) * width
    }

    /// The difference of the classes' means.
    pub fn difference(&self) -> Vec<f64> {
        let [benign, adversarial] = &self.means;
        adversarial.iter().zip(benign).map(|(adversarial, benign)| adversarial - benign).collect()
    }

    /// Its length.
    pub fn magnitude(&self) -> f64 {
        self.difference().iter().map(|value| value * value).sum::<f64>().sqrt()
    }
}

impl Snapshot for DetectorSnapshot {
    fn predict(&self, rows: &Rows) -> Result<Predictions, FoldError> {
        if !self.probe.is_directed() {
            // Whatever there is to see says nothing yet, and of a live network there may be nothing.
            return Ok(probe::predictions(&vec![self.probe.bias; rows.count]));
        }
        Ok(probe::predictions(&self.probe.scores(&self.eye.states(rows)?)))
    }

    fn told(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.judging.clone())
    }
}

/// A detector of rows that are states already: what benchmarks compare, without an encoder.
///
/// # Errors
/// The arithmetic failed.
pub fn fold_of_states(direction: Direction, width: usize, seed: u64, pool: Pool) -> Result<Detector, FoldError> {
    let recipe = Recipe {
        eye: Arc::new(eye::Given { width }),
        parent: None,
        kept_rows: 0,
        direction,
        origin: None,
        held_out_every: 0,
        calibration_rows: 1,
        mode: Mode::Midpoint,
        learning_rate: logistic::LEARNING_RATE,
        seed,
        step_rows: super::kind::STEP_ROWS,
        row_bytes: 4 * width as u64,
        queued_bytes: 0,
    };
    Detector::new(recipe, pool)
}

#[cfg(test)]
mod tests;
