//! The kind `network`: a network that Ferret's trainer folds over rows with labels.

use std::sync::Arc;

use serde::Deserialize;

use super::kind::{Kind, SpecError};
use crate::ferret::executor::Executor;
use crate::ferret::pool::Pool;
use crate::ferret::trainer::{Recipe, Trainer, check_learning_rate};
use crate::fold::Fold;
use crate::limits;
use crate::network::{Architecture, Loss, Network, Optimiser};
use crate::stream::Schema;
use crate::stream::schema::Target;

/// What a spec of this kind says beside the common part.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// What is trained.
    network: Architecture,
    /// How; plain SGD by default.
    #[serde(default)]
    optimiser: Optimiser,
    /// The optimiser's own default where none is given.
    learning_rate: Option<f64>,
    /// Rows of a step, at most.
    step_rows: Option<usize>,
    /// Draws the initial weights.
    #[serde(default)]
    seed: u64,
}

/// Makes trainers that share the process's compute threads.
#[derive(Clone, Debug)]
pub struct NetworkKind {
    /// The compute threads.
    pub pool: Pool,
    /// Rows of a step where the spec does not say.
    pub step_rows: usize,
}

impl NetworkKind {
    /// What a trainer of these settings is made of.
    pub fn recipe(
        &self,
        settings: &serde_json::Map<String, serde_json::Value>,
        schema: &Schema,
        queued_bytes: u64,
    ) -> Result<Recipe, SpecError> {
        let settings: Settings = serde_json::from_value(settings.clone().into())
            .map_err(|error| SpecError::Settings(format!("kind `network`: {error}")))?;
        let target = schema.target.as_ref().ok_or_else(|| {
            SpecError::Settings("kind `network` learns from labels, and this stream's schema has no target".into())
        })?;
        let (outputs, loss) = match target {
            Target::Classes { classes, .. } => (classes.count(), Loss::SoftmaxCrossEntropy),
            Target::Regression { .. } => (1, Loss::MeanSquaredError),
        };
        let network = Network::build(&settings.network, &schema.input_shape(), outputs, loss, schema.is_numeric())
            .map_err(|error| SpecError::Settings(error.to_string()))?;
        settings.optimiser.validate().map_err(SpecError::Settings)?;
        let learning_rate = settings.learning_rate.unwrap_or_else(|| default_learning_rate(&settings.optimiser));
        check_learning_rate(learning_rate).map_err(SpecError::Settings)?;
        let step_rows = settings.step_rows.unwrap_or(self.step_rows);
        if !(1..=limits::STEP_ROWS_MAX).contains(&step_rows) {
            return Err(SpecError::Settings(format!("step_rows is {step_rows}, allowed are 1 to {}", limits::STEP_ROWS_MAX)));
        }
        let network = Arc::new(network);
        let threads = self.pool.threads();
        Ok(Recipe {
            network,
            optimiser: settings.optimiser,
            learning_rate,
            seed: settings.seed,
            step_rows,
            queued_bytes,
            threads,
        })
    }
}

/// The learning rate where a spec gives none.
fn default_learning_rate(optimiser: &Optimiser) -> f64 {
    match optimiser {
        Optimiser::Sgd { .. } => 0.05,
        Optimiser::AdamW { .. } => 0.001,
    }
}

impl Kind for NetworkKind {
    fn name(&self) -> &'static str {
        "network"
    }

    fn propose_plan(
        &self,
        settings: &serde_json::Map<String, serde_json::Value>,
        schema: &Schema,
        queued_bytes: u64,
        budget_bytes: Option<u64>,
    ) -> Result<serde_json::Value, SpecError> {
        let recipe = self.recipe(settings, schema, queued_bytes)?;
        Ok(serde_json::json!(recipe.planner().choose(0, budget_bytes)?))
    }

    fn build(
        &self,
        settings: &serde_json::Map<String, serde_json::Value>,
        schema: &Schema,
        queued_bytes: u64,
    ) -> Result<Box<dyn Fold>, SpecError> {
        let recipe = self.recipe(settings, schema, queued_bytes)?;
        let plan = recipe.planner().minimum(0);
        Ok(Box::new(Trainer::new(recipe, plan, Executor::Threads(self.pool.clone()))?))
    }
}
