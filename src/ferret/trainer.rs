//! The network's fold: steps go to the compute threads one after another, and their ends come back in the order of the log.
//!
//! The driver decodes the next record while a step runs; the step itself waits for nothing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::core::Core;
use super::credits::{Credit, Credits};
use super::plan::{Plan, Planner};
use super::pool::{Pending, Pool};
use super::profile::step_bytes;
use super::snapshot::NetworkSnapshot;
use crate::fold::{BelowMinimum, Change, Fold, FoldError, Outcome, Snapshot, State, StateRef, Step};
use crate::ledger::Ledger;
use crate::network::{self, Network, Optimiser};

/// Counts the changes of this module's arithmetic: a state of another number is a state of another fold.
const FOLD_VERSION: u32 = 1;

/// How often the driver looks whether readers have let go of an old snapshot; they hold one for the length of a query.
const READER_WAIT: Duration = Duration::from_micros(50);

/// What a network's trainer is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What is trained.
    pub network: Arc<Network>,
    /// How.
    pub optimiser: Optimiser,
    /// The first learning rate.
    pub learning_rate: f64,
    /// Draws the initial weights.
    pub seed: u64,
    /// Rows of a step, at most.
    pub step_rows: usize,
    /// Bytes of records that the driver holds at most.
    pub queued_bytes: u64,
}

impl Recipe {
    /// The planner for this network.
    pub fn planner(&self) -> Planner<'_> {
        Planner { network: &self.network, optimiser: &self.optimiser, step_rows: self.step_rows, queued_bytes: self.queued_bytes }
    }
}

/// Where the trainer's state is.
enum Place {
    Here(Box<Core>),
    /// With a step, on a compute thread.
    Away(Pending<(Box<Core>, Result<Outcome, FoldError>)>, Credit),
    /// A step panicked with it.
    Lost,
}

/// Trains one network.
pub struct Trainer {
    recipe: Recipe,
    place: Place,
    plan: Plan,
    credits: Credits,
    pool: Pool,
    ledger: Ledger,
    /// Snapshots that readers may still hold.
    issued: Vec<Weak<NetworkSnapshot>>,
    /// Rows and bytes of the last step.
    last_step: (usize, u64),
}

impl Trainer {
    /// A trainer at the start of its stream, under `plan`.
    pub fn new(recipe: Recipe, plan: Plan, pool: Pool) -> Result<Trainer, FoldError> {
        let ledger = Ledger::default();
        let core =
            Core::new(recipe.network.clone(), recipe.optimiser, recipe.learning_rate, plan.clone(), recipe.seed, ledger.clone())?;
        let credits = Credits::new(plan.bytes.step.total());
        Ok(Trainer {
            recipe,
            place: Place::Here(Box::new(core)),
            plan,
            credits,
            pool,
            ledger,
            issued: Vec::new(),
            last_step: (0, 0),
        })
    }

    /// Waits for the step in flight, if there is one.
    fn finish(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(core) => self.place = Place::Here(core),
            Place::Away(pending, credit) => {
                let (core, outcome) = pending.wait().map_err(|panicked| FoldError::Panicked(panicked.0))?;
                drop(credit);
                self.place = Place::Here(core);
                outcomes.push(outcome?);
            }
            Place::Lost => return Err(lost()),
        }
        Ok(())
    }

    fn core(&self) -> Result<&Core, FoldError> {
        match &self.place {
            Place::Here(core) => Ok(core),
            Place::Away(..) => Err(FoldError::Contract("a step is in flight: drain first".into())),
            Place::Lost => Err(lost()),
        }
    }

    fn core_mut(&mut self) -> Result<&mut Core, FoldError> {
        match &mut self.place {
            Place::Here(core) => Ok(core),
            Place::Away(..) => Err(FoldError::Contract("a step is in flight: drain first".into())),
            Place::Lost => Err(lost()),
        }
    }

    /// What a step of `rows` rows holds at most; most steps have as many rows as the one before.
    fn bytes_of(&mut self, rows: usize) -> u64 {
        if self.last_step.0 != rows {
            let bytes = step_bytes(&self.recipe.network, rows, self.recipe.optimiser.fuses()).total();
            self.last_step = (rows, bytes);
        }
        self.last_step.1
    }

    /// Snapshots that somebody holds.
    fn snapshots_alive(&mut self) -> usize {
        self.issued.retain(|snapshot| snapshot.strong_count() > 0);
        self.issued.len()
    }

    fn set_plan(&mut self, plan: Plan) {
        self.credits = Credits::new(plan.bytes.step.total());
        self.plan = plan;
        self.ledger.reset_high_water();
    }
}

/// What may be a learning rate, at the start and later.
pub fn check_learning_rate(learning_rate: f64) -> Result<(), String> {
    if learning_rate.is_finite() && learning_rate >= 0.0 {
        Ok(())
    } else {
        Err(format!("learning_rate is {learning_rate}, expected a finite number from 0 on"))
    }
}

fn lost() -> FoldError {
    FoldError::Contract("the state was lost with a step that panicked".into())
}

impl Fold for Trainer {
    fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        if step.rows.count == 0 || step.rows.count > self.plan.step_rows {
            return Err(FoldError::Contract(format!(
                "a step of {} rows under a plan of {}",
                step.rows.count, self.plan.step_rows
            )));
        }
        self.finish(outcomes)?;
        while self.snapshots_alive() > self.plan.publication.copies() {
            std::thread::sleep(READER_WAIT);
        }
        let bytes = self.bytes_of(step.rows.count);
        let Some(credit) = self.credits.reserve(bytes) else {
            return Err(FoldError::Contract(format!("a step of {bytes} bytes does not fit the plan")));
        };
        match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(mut core) => {
                let pending = self.pool.spawn(move || {
                    let outcome = core.step(&step);
                    (core, outcome)
                });
                self.place = Place::Away(pending, credit);
                Ok(())
            }
            Place::Away(..) | Place::Lost => Err(lost()),
        }
    }

    fn drain(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        self.finish(outcomes)
    }

    fn propose_plan(&self, budget_bytes: Option<u64>) -> Result<serde_json::Value, BelowMinimum> {
        let start = self.core().map_or(self.plan.start, Core::ordinal);
        let plan = self.recipe.planner().choose(start, budget_bytes)?;
        Ok(serde_json::json!(plan))
    }

    fn check(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::Plan(_) => Ok(()),
            Change::LearningRate(learning_rate) => check_learning_rate(*learning_rate),
        }
    }

    fn execute(&mut self, change: &Change) -> Result<(), FoldError> {
        match change {
            Change::Plan(plan) => {
                let plan: Plan = serde_json::from_value(plan.clone())
                    .map_err(|error| FoldError::Contract(format!("the decision's plan is not a network's: {error}")))?;
                self.core_mut()?.follow(plan.clone())?;
                self.set_plan(plan);
            }
            Change::LearningRate(learning_rate) => self.core_mut()?.set_learning_rate(*learning_rate),
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, FoldError> {
        // One is with the readers and one more may be: a third would be a copy that no plan counts.
        if self.snapshots_alive() > 1 {
            return Ok(None);
        }
        let core = self.core()?;
        let weights = core.layers().iter().map(|layer| layer.weights().clone()).collect();
        let snapshot = Arc::new(NetworkSnapshot::new(core.network().clone(), weights));
        self.issued.push(Arc::downgrade(&snapshot));
        Ok(Some(snapshot))
    }

    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        self.core()?.state()
    }

    fn restore(&mut self, state: State) -> Result<(), FoldError> {
        self.core_mut()?.restore(state)?;
        let plan = self.core()?.plan().clone();
        self.set_plan(plan);
        Ok(())
    }

    fn step_rows(&self) -> usize {
        self.plan.step_rows
    }

    fn learning_rate(&self) -> Option<f64> {
        self.core().map(Core::learning_rate).ok()
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn planned_bytes(&self) -> u64 {
        self.plan.bytes.total()
    }

    fn minimum_bytes(&self) -> u64 {
        self.recipe.planner().minimum(0).bytes.total()
    }

    fn identity(&self) -> String {
        format!("ferret {FOLD_VERSION}; {}", network::identity())
    }
}
