//! The kind `network`: a network that Ferret's trainer folds over rows with labels.

use std::sync::Arc;

use serde::Deserialize;

use super::kind::{Given, Kind, SpecError};
use crate::ferret::compensation::Compensation;
use crate::ferret::executor::Executor;
use crate::ferret::pool::Pool;
use crate::ferret::rate::Objective;
use crate::ferret::trainer::{Recipe, Trainer, check_learning_rate};
use crate::ferret::work::Rule;
use crate::fold::{BelowMinimum, Fold};
use crate::json;
use crate::learner::{Learner, RowLayout};
use crate::limits;
use crate::network::{Architecture, Loss, Network, Optimiser};
use crate::stream::Schema;
use crate::stream::schema::Target;

/// What a spec's `kind` says.
pub const KIND: &str = "network";

/// What a spec of this kind says beside the common part. Whatever is null is left out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// What is trained; of columns two hidden layers by default.
    network: Option<Architecture>,
    /// How; plain SGD by default, and AdamW where no network is given.
    optimiser: Option<Optimiser>,
    /// For the updates that the gradients of steps in flight missed; none by default.
    compensation: Option<Compensation>,
    /// What a step minimises beside the loss of its rows; nothing by default, and replayed rows where no network is given.
    learner: Option<Learner>,
    /// The optimiser's own default where none is given.
    learning_rate: Option<f64>,
    /// Rows of a step, at most.
    step_rows: Option<usize>,
    /// Draws the initial weights; 0 by default.
    seed: Option<u64>,
}

/// Makes trainers that share the process's compute threads.
#[derive(Clone, Debug)]
pub struct NetworkKind {
    /// The compute threads.
    pub pool: Pool,
    /// Rows of a step where the spec does not say.
    pub step_rows: usize,
    /// What counts in comparing plans.
    pub objective: Objective,
}

impl NetworkKind {
    /// What a trainer of these settings is made of.
    pub fn recipe(&self, given: Given<'_>) -> Result<Recipe, SpecError> {
        let Given { settings, schema, queued_bytes, may_skip, .. } = given;
        let settings = Settings::read(settings)?;
        let rule = settings.rule()?;
        let network = settings.network(schema)?;
        let loss = network.loss;
        let learning_rate = settings.learning_rate.unwrap_or_else(|| default_learning_rate(&rule.optimiser));
        check_learning_rate(learning_rate).map_err(SpecError::Settings)?;
        let step_rows = settings.step_rows.unwrap_or(self.step_rows);
        if !(1..=limits::STEP_ROWS_MAX).contains(&step_rows) {
            return Err(SpecError::Settings(format!("step_rows is {step_rows}, allowed are 1 to {}", limits::STEP_ROWS_MAX)));
        }
        let (width, classes) = (network.input_shape.iter().product(), loss == Loss::SoftmaxCrossEntropy);
        let network = Arc::new(network);
        let threads = self.pool.threads();
        Ok(Recipe {
            network,
            rule,
            layout: RowLayout { element: schema.element(), width, classes },
            learning_rate,
            seed: settings.seed.unwrap_or(0),
            step_rows,
            queued_bytes,
            threads,
            may_omit: may_skip,
            objective: self.objective,
        })
    }
}

/// The network of a model of this kind with these settings, on a stream of this schema.
///
/// # Errors
/// There can be none.
pub fn network_of(settings: &serde_json::Map<String, serde_json::Value>, schema: &Schema) -> Result<Network, SpecError> {
    Settings::read(settings)?.network(schema)
}

impl Settings {
    fn read(settings: &serde_json::Map<String, serde_json::Value>) -> Result<Settings, SpecError> {
        json::of(settings.clone().into()).map_err(|reason| SpecError::Settings(format!("kind `{KIND}`: {reason}")))
    }

    /// What is trained on rows of this schema.
    fn network(&self, schema: &Schema) -> Result<Network, SpecError> {
        let target = schema.target.as_ref().ok_or_else(|| {
            SpecError::Settings(format!("kind `{KIND}` learns from labels, and this stream's schema has no target"))
        })?;
        let (outputs, loss) = match target {
            Target::Classes { classes, .. } => (classes.count(), Loss::SoftmaxCrossEntropy),
            Target::Regression { .. } => (1, Loss::MeanSquaredError),
        };
        let network = match (&self.network, schema.network_columns()) {
            (Some(network), Some(columns)) => Network::for_columns(network, &columns, outputs, loss),
            (Some(network), None) => Network::build(network, &schema.input_shape(), outputs, loss, false),
            (None, Some(columns)) => Network::for_columns(&default_network(), &columns, outputs, loss),
            (None, None) => {
                return Err(SpecError::Settings("`network` is missing: only streams of columns have one by default".into()));
            }
        };
        network.map_err(|error| SpecError::Settings(error.to_string()))
    }

    /// How a step teaches. With a network of its own a spec begins with the plainest of everything; without, with what did best on
    /// tables (`mustela bench online --peers`).
    fn rule(&self) -> Result<Rule, SpecError> {
        let (optimiser, learner) = match self.network {
            Some(_) => (Optimiser::default(), Learner::default()),
            None => (Optimiser::adamw(), Learner::replay()),
        };
        let (optimiser, learner) = (self.optimiser.unwrap_or(optimiser), self.learner.unwrap_or(learner));
        let compensation = self.compensation.unwrap_or_default();
        optimiser.validate().and(compensation.validate()).and(learner.validate()).map_err(SpecError::Settings)?;
        Ok(Rule { optimiser, compensation, learner })
    }
}

/// What is trained where a spec does not say.
fn default_network() -> Architecture {
    Architecture::Mlp { hidden: vec![64, 64], standardise: None }
}

/// The learning rate where a spec gives none.
fn default_learning_rate(optimiser: &Optimiser) -> f64 {
    match optimiser {
        Optimiser::Sgd { .. } => 0.05,
        Optimiser::AdamW { .. } => 0.003,
    }
}

impl Kind for NetworkKind {
    fn name(&self) -> &'static str {
        KIND
    }

    fn propose_plan(&self, given: Given<'_>, budget_bytes: Option<u64>) -> Result<serde_json::Value, SpecError> {
        let planner = self.recipe(given)?.planner();
        let (budget_bytes, minimum_bytes) = (budget_bytes.unwrap_or(u64::MAX), planner.minimum(0).bytes.total());
        if budget_bytes < minimum_bytes {
            return Err(BelowMinimum { budget_bytes, minimum_bytes }.into());
        }
        let prospects = planner.prospects(planner.measure(&self.pool, budget_bytes)?);
        Ok(serde_json::json!(planner.choose(0, budget_bytes, None, &prospects)?))
    }

    fn build(&self, given: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
        let recipe = self.recipe(given)?;
        let plan = recipe.planner().minimum(0);
        Ok(Box::new(Trainer::new(recipe, plan, Executor::Threads(self.pool.clone()))?))
    }
}
