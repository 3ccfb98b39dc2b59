//! The network's fold: a pipeline with its executor and its planner, driven through [`crate::fold::Fold`].

use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};

use super::executor::{Engine, Executor};
use super::pipeline::Pipeline;
use super::plan::{Plan, Publication};
use super::planner::{Planner, Prospects, Wish};
use super::pool::Pool;
use super::profile::Profile;
use super::rate::Objective;
use super::snapshot::NetworkSnapshot;
use super::work::Rule;
use crate::fold::{
    BelowMinimum, Change, Demand, Fold, FoldError, Outcome, PlanError, ProposalError, Snapshot, State, StateRef, Step,
};
use crate::learner::RowLayout;
use crate::ledger::{Ledger, Part};
use crate::metrics::PlanFigures;
use crate::network::{self, Loss, Network};
use crate::rows::Element;

/// Counts the changes of this module's arithmetic: a state of another number is a state of another fold.
const FOLD_VERSION: u32 = 2;

/// Far above what anything learns with: rows that are scaled badly want small rates, not large ones. Beyond the range of f32 an update
/// would be infinite whatever the gradient.
const LEARNING_RATE_MAX: f64 = 1000.0;

/// Characters of what is said about a plan that cannot be read.
const FAULT_CHARS_MAX: usize = 400;
/// How often the driver looks whether readers have let go of an old snapshot; they hold one for the length of a query.
const READER_WAIT: Duration = Duration::from_micros(50);
/// How much more another plan must bring to be worth a change, and how many looks in a row must find that: times vary.
const WORTH_A_CHANGE: f64 = 1.1;
const LOOKS_BEFORE_A_CHANGE: u32 = 2;
/// Networks of longer steps are not measured again: nothing is learned meanwhile.
const QUICK_STEP_NANOSECONDS: u64 = 30_000_000;

/// What a network's trainer is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What is trained.
    pub network: Arc<Network>,
    /// How.
    pub rule: Rule,
    /// How rows are laid out, for learners that keep some.
    pub layout: RowLayout,
    /// The first learning rate.
    pub learning_rate: f64,
    /// Draws the initial weights.
    pub seed: u64,
    /// Rows of a step, at most.
    pub step_rows: usize,
    /// Bytes of records that the driver holds at most.
    pub queued_bytes: u64,
    /// Compute threads that there are.
    pub threads: usize,
    /// Whether plans may leave steps out: for models under a skip policy alone.
    pub may_omit: bool,
    /// What counts in comparing plans.
    pub objective: Objective,
}

impl Recipe {
    /// Plain SGD in steps of so many rows, on so many threads, with no rows waiting.
    pub fn new(network: Arc<Network>, step_rows: usize, threads: usize) -> Recipe {
        let (rule, objective) = (Rule::default(), Objective::default());
        let (width, classes) = (network.input_shape.iter().product(), network.loss == Loss::SoftmaxCrossEntropy);
        let layout = RowLayout { element: Element::F32, width, classes };
        Recipe {
            network,
            rule,
            layout,
            learning_rate: 0.05,
            seed: 0,
            step_rows,
            queued_bytes: 0,
            threads,
            may_omit: false,
            objective,
        }
    }

    /// The planner for this network.
    pub fn planner(&self) -> Planner {
        Planner::new(self)
    }
}

/// Trains one network.
pub struct Trainer {
    planner: Planner,
    engine: Engine,
    plan: Arc<Plan>,
    learning_rate: f64,
    ledger: Ledger,
    minimum_bytes: u64,
    /// Where plans are tried; none where tasks are run one at a time.
    pool: Option<Pool>,
    /// What plans cost and bring, once it was asked for.
    prospects: Option<Arc<Prospects>>,
    /// Looks whether another plan would be better.
    looks: u32,
    /// Looks in a row that found a much better plan.
    better: u32,
    /// Rows that were given, and consolidations among them.
    lessons: (u64, u64),
    /// Snapshots that readers may still hold.
    issued: Vec<Weak<NetworkSnapshot>>,
}

impl Trainer {
    /// A trainer at the start of its stream, under `plan`.
    pub fn new(recipe: Recipe, plan: Plan, executor: Executor) -> Result<Trainer, FoldError> {
        let (ledger, planner) = (Ledger::default(), recipe.planner());
        plan.check(&recipe.network).map_err(FoldError::Contract)?;
        let Recipe { network, rule, layout, learning_rate, seed, .. } = recipe;
        let pipeline = Pipeline::new(network, rule, layout, learning_rate, plan, seed, ledger.clone())?;
        let (plan, minimum_bytes) = (pipeline.plan().clone(), planner.minimum(0).bytes.total());
        let pool = if let Executor::Threads(pool) = &executor { Some(pool.clone()) } else { None };
        let engine = Engine::new(pipeline, executor);
        let (prospects, looks, better, lessons, issued) = (None, 0, 0, (0, 0), Vec::new());
        Ok(Trainer {
            planner,
            engine,
            plan,
            learning_rate,
            ledger,
            minimum_bytes,
            pool,
            prospects,
            looks,
            better,
            lessons,
            issued,
        })
    }

    /// Steps that were given so far; the fold is drained.
    pub fn ordinal(&self) -> Result<u64, FoldError> {
        Ok(self.engine.at_rest()?.ordinal())
    }

    /// Snapshots that somebody holds.
    fn snapshots_alive(&mut self) -> usize {
        self.issued.retain(|snapshot| snapshot.strong_count() > 0);
        self.issued.len()
    }

    /// What plans cost and bring: by the profile of the plan that is followed, if it has one that was measured here.
    fn prospects(&mut self, budget_bytes: u64) -> Result<Arc<Prospects>, FoldError> {
        if let Some(prospects) = &self.prospects {
            return Ok(prospects.clone());
        }
        let layers = self.planner.network.layers.len();
        let known = self.plan.reckoned.as_ref().map(|reckoned| &reckoned.profile).filter(|known| {
            let (threads, step_rows) = (self.planner.threads, self.planner.learned_rows());
            known.threads == threads && known.step_rows == step_rows && known.layers.len() == layers
        });
        let profile = match (known, &self.pool) {
            (Some(profile), _) => profile.clone(),
            (None, Some(pool)) => self.planner.measure(pool, budget_bytes.saturating_sub(self.plan.bytes.total()))?,
            (None, None) => return Err(FoldError::Contract("plans are compared on compute threads, and there are none".into())),
        };
        let prospects = Arc::new(self.planner.prospects(profile));
        self.prospects = Some(prospects.clone());
        Ok(prospects)
    }

    /// A profile that tells more of the present than `known`, if there is any. At the first look, the second, the fourth, the eighth
    /// and so on what the budget leaves free is used to measure again: what threads do to each other does not show in plans that use
    /// only one, and it may have been measured while something else needed them. The least of it is believed.
    fn revised(&self, known: &Profile, budget_bytes: u64) -> Result<Option<Profile>, FoldError> {
        let free_bytes = budget_bytes.saturating_sub(self.plan.bytes.total());
        let quick = known.step() <= QUICK_STEP_NANOSECONDS;
        let may = quick && self.looks.is_power_of_two() && free_bytes >= self.planner.trial_bytes();
        if let Some(pool) = self.pool.as_ref().filter(|_| may) {
            let measured = self.planner.measure(pool, free_bytes)?;
            return Ok(Some(Profile {
                slowdown_thousandths: measured.slowdown_thousandths.min(known.slowdown_thousandths),
                ..measured
            }));
        }
        Ok(self.planner.rates(known).revised(&self.plan, self.engine.at_rest()?.observed()))
    }

    fn set_plan(&mut self, plan: Arc<Plan>) {
        self.plan = plan;
        self.ledger.reset_high_water();
    }
}

/// What may be a learning rate, at the start and later.
pub fn check_learning_rate(learning_rate: f64) -> Result<(), String> {
    if (0.0..=LEARNING_RATE_MAX).contains(&learning_rate) {
        return Ok(());
    }
    // Written out, it may have 309 digits.
    let given = if learning_rate.abs() < 1e6 { learning_rate.to_string() } else { format!("{learning_rate:e}") };
    Err(format!("learning_rate is {given}, allowed are 0 to {LEARNING_RATE_MAX}"))
}

impl Fold for Trainer {
    fn apply(&mut self, step: Step, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        if step.rows.count == 0 || step.rows.count > self.plan.step_rows {
            return Err(FoldError::Contract(format!(
                "a step of {} rows under a plan of {}",
                step.rows.count, self.plan.step_rows
            )));
        }
        while self.snapshots_alive() > self.plan.publication.copies() {
            std::thread::sleep(READER_WAIT);
        }
        let (rows, consolidations) = &mut self.lessons;
        if let Some(every) = self.planner.rule.learner.every_rows()
            && *rows / every > *consolidations
        {
            *consolidations = *rows / every;
            self.engine.drain(outcomes)?;
            self.engine.work(Pipeline::consolidate)?;
        }
        *rows += step.rows.count as u64;
        self.engine.apply(step, outcomes)
    }

    fn drain(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FoldError> {
        self.engine.drain(outcomes)
    }

    fn propose_plan(&mut self, demand: Demand) -> Result<Value, ProposalError> {
        let (start, budget_bytes) = (self.ordinal()?, demand.budget_bytes.unwrap_or(u64::MAX));
        let minimum_bytes = self.minimum_bytes;
        if budget_bytes < minimum_bytes {
            return Err(BelowMinimum { budget_bytes, minimum_bytes }.into());
        }
        let prospects = self.prospects(budget_bytes)?;
        Ok(json!(self.planner.choose(start, budget_bytes, demand.row_interval, &prospects)?))
    }

    fn reconsider_plan(&mut self, demand: Demand) -> Result<Option<Value>, ProposalError> {
        let (start, budget_bytes) = (self.ordinal()?, demand.budget_bytes.unwrap_or(u64::MAX));
        let mut prospects = self.prospects(budget_bytes)?;
        self.looks += 1;
        if let Some(profile) = self.revised(&prospects.profile, budget_bytes)? {
            prospects = Arc::new(self.planner.prospects(profile));
            self.prospects = Some(prospects.clone());
        }
        let best = self.planner.choose(start, budget_bytes, demand.row_interval, &prospects)?;
        let interval = self.planner.step_interval(demand.row_interval);
        let rates = self.planner.rates(&prospects.profile);
        let [present, best_rate] = [&*self.plan, &best].map(|plan| rates.of(plan).per_second(interval));
        self.better = if best_rate > present * WORTH_A_CHANGE { self.better + 1 } else { 0 };
        if self.better < LOOKS_BEFORE_A_CHANGE {
            return Ok(None);
        }
        self.better = 0;
        Ok(Some(json!(best)))
    }

    fn frontier(&mut self) -> Result<Value, ProposalError> {
        let prospects = self.prospects(self.minimum_bytes)?;
        Ok(self.planner.describe(&prospects))
    }

    fn complete_plan(&self, wish: &Value, budget_bytes: u64) -> Result<Value, PlanError> {
        // What is wrong may be as long as what was sent.
        let refused = |error: serde_json::Error| PlanError::Refused(error.to_string().chars().take(FAULT_CHARS_MAX).collect());
        let wish: Wish = serde_json::from_value(wish.clone()).map_err(refused)?;
        let start = self.ordinal().unwrap_or(self.plan.start);
        let plan = self.planner.complete(start, &wish, budget_bytes)?;
        let known = self.prospects.as_ref().map(|prospects| &prospects.profile);
        let known = known.or(self.plan.reckoned.as_ref().map(|reckoned| &reckoned.profile));
        let known = known.filter(|known| known.layers.len() == self.planner.network.layers.len());
        let reckoned = known.map(|profile| self.planner.reckon(&plan, profile));
        Ok(json!(Plan { reckoned, ..plan }))
    }

    fn check(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::Plan(_) => Ok(()),
            Change::LearningRate(learning_rate) => check_learning_rate(*learning_rate),
            Change::Setting(_) => Err("a network has a plan and a learning rate, and nothing else to be set".into()),
        }
    }

    fn execute(&mut self, change: &Change) -> Result<(), FoldError> {
        let pipeline = self.engine.at_rest_mut()?;
        match change {
            Change::Plan(plan) => {
                let plan: Plan = serde_json::from_value(plan.clone())
                    .map_err(|error| FoldError::Contract(format!("the decision's plan is not a network's: {error}")))?;
                pipeline.follow(plan)?;
                let plan = pipeline.plan().clone();
                self.set_plan(plan);
            }
            Change::LearningRate(learning_rate) => {
                pipeline.set_learning_rate(*learning_rate);
                self.learning_rate = *learning_rate;
            }
            Change::Setting(_) => return Err(FoldError::Contract("a network has no such setting".into())),
        }
        Ok(())
    }

    fn begin_snapshot(&mut self, outcomes: &mut Vec<Outcome>) -> Result<bool, FoldError> {
        // One is with the readers and one more may be: a third would be a copy that no plan counts.
        if self.snapshots_alive() > 1 {
            return Ok(false);
        }
        if self.plan.publication == Publication::AtDrain {
            self.engine.drain(outcomes)?;
        }
        self.engine.look(Pipeline::begin_capture)?;
        Ok(true)
    }

    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, FoldError> {
        let Some(snapshot) = self.engine.look(Pipeline::take_capture)? else { return Ok(None) };
        let snapshot = Arc::new(snapshot);
        self.issued.push(Arc::downgrade(&snapshot));
        Ok(Some(snapshot))
    }

    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        self.engine.at_rest()?.state()
    }

    fn restore(&mut self, state: State) -> Result<(), FoldError> {
        let pipeline = self.engine.at_rest_mut()?;
        *pipeline = pipeline.restored(state)?;
        self.learning_rate = pipeline.learning_rate();
        self.lessons = pipeline.remembered();
        let plan = pipeline.plan().clone();
        self.set_plan(plan);
        Ok(())
    }

    fn step_rows(&self) -> usize {
        self.plan.step_rows
    }

    fn learning_rate(&self) -> Option<f64> {
        Some(self.learning_rate)
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn planned_bytes(&self) -> u64 {
        self.plan.bytes.total()
    }

    fn planned_part_bytes(&self, part: Part) -> u64 {
        self.plan.bytes.part(part)
    }

    fn plan_figures(&self) -> Option<PlanFigures> {
        Some(self.plan.figures())
    }

    fn minimum_bytes(&self) -> u64 {
        self.minimum_bytes
    }

    fn outline(&self) -> Value {
        let layers = self.planner.network.layers.iter().enumerate();
        let of_layer = layers.map(|(number, layer)| {
            let parameters: usize = layer.parameters().iter().map(network::Parameter::elements).sum();
            json!({ "layer": number, "name": layer.name(), "output_shape": layer.output_shape(), "parameters": parameters })
        });
        json!({ "layers": of_layer.collect::<Vec<_>>() })
    }

    fn identity(&self) -> String {
        format!("ferret {FOLD_VERSION}; {}", network::identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learning_rate_has_bounds_and_is_never_told_in_hundreds_of_digits() {
        for good in [0.0, 1e-30, 0.05, 1000.0] {
            assert_eq!(check_learning_rate(good), Ok(()));
        }
        for (bad, told) in [
            (-0.1, "is -0.1,"),
            (1000.5, "is 1000.5,"),
            (1e30, "is 1e30,"),
            (1e308, "is 1e308,"),
            (-1e308, "is -1e308,"),
            (f64::NAN, "is NaN,"),
            (f64::INFINITY, "is inf,"),
        ] {
            let text = check_learning_rate(bad).unwrap_err();
            assert!(text.contains(told) && text.ends_with("allowed are 0 to 1000"), "{text}");
        }
    }
}
