//! The logistic direction: a linear network on standardised states, which the pipelined trainer trains with replayed rows.

use std::sync::Arc;

use bytes::Bytes;

use super::probe::Probe;
use crate::ferret::executor::Executor;
use crate::ferret::plan::{Plan, Publication};
use crate::ferret::pool::Pool;
use crate::ferret::trainer::{Recipe, Trainer};
use crate::ferret::work::Rule;
use crate::fold::{Fold, FoldError, Outcome, State, StateRef, Step, Verdict};
use crate::learner::{Learner, RowLayout};
use crate::network::layer::factor;
use crate::network::tensor::read;
use crate::network::{Architecture, Loss, Network, Optimiser};
use crate::rows::{Block, Element, Rows, Target};

/// What AdamW begins with; a detector's spec may say otherwise. Ten times what networks have: examples are few, and the regression is convex.
pub(super) const LEARNING_RATE: f64 = 0.03;

/// What a logistic regression over states is made of.
pub(super) fn recipe(width: usize, step_rows: usize, threads: usize, learning_rate: f64, seed: u64) -> Result<Recipe, FoldError> {
    let architecture = Architecture::Linear { standardise: Some(true) };
    let network = Network::build(&architecture, &[width], 2, Loss::SoftmaxCrossEntropy, true)
        .map_err(|error| FoldError::Contract(error.to_string()))?;
    let rule = Rule { optimiser: Optimiser::adamw(), learner: Learner::replay(), ..Rule::default() };
    let layout = RowLayout { element: Element::F32, width, classes: true };
    Ok(Recipe { rule, layout, learning_rate, seed, ..Recipe::new(Arc::new(network), step_rows, threads) })
}

/// One step after the other, with all the rows that the learner would like to keep: a detector's budget has no say in it.
pub(super) fn plan(recipe: &Recipe) -> Plan {
    recipe.planner().sequential(0, Publication::AtDrain)
}

/// The regression in training.
pub(super) struct Logistic {
    trainer: Trainer,
    width: usize,
}

impl Logistic {
    pub(super) fn new(recipe: Recipe, pool: Pool) -> Result<Logistic, FoldError> {
        let width = recipe.network.input_shape.iter().product();
        let plan = plan(&recipe);
        Ok(Logistic { trainer: Trainer::new(recipe, plan, Executor::Threads(pool))?, width })
    }

    /// Learns states with their classes, and ends with all of them learned: nothing stays in flight.
    pub(super) fn learn(&mut self, last: u64, states: &[f32], classes: Vec<u32>) -> Result<Option<Verdict>, FoldError> {
        if classes.is_empty() {
            return Ok(None);
        }
        let bytes: Bytes = states.iter().flat_map(|value| value.to_le_bytes()).collect();
        let block = Block { element: Element::F32, width: self.width, bytes };
        let count = classes.len();
        let rows = Rows { count, blocks: vec![block], target: Some(Target::Classes(classes)), ..Rows::default() };
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(1);
        self.trainer.apply(Step { last, rows }, &mut outcomes)?;
        self.trainer.drain(&mut outcomes)?;
        Ok(outcomes.pop().map(|outcome| outcome.verdict))
    }

    /// The score that the network's outputs differ by, as one linear function of the states as they come.
    pub(super) fn probe(&self) -> Result<Probe, FoldError> {
        let state = self.trainer.checkpoint()?;
        let named = |name: &str| {
            let missing = || FoldError::Contract(format!("a logistic regression has no {name}"));
            state.tensors.get(name).copied().ok_or_else(missing)
        };
        let (count, mean, m2) = (named("0.standardise.count")?, named("0.standardise.mean")?, named("0.standardise.m2")?);
        let (weight, bias) = (named("1.linear.weight")?, named("1.linear.bias")?);
        let (count, mean, m2) = (read::<f64>(count)?, read::<f64>(mean)?, read::<f64>(m2)?);
        let (weight, bias) = (read::<f32>(weight)?, read::<f32>(bias)?);
        let rows = count.first().copied().unwrap_or_default();
        if rows == 0.0 {
            // Weights are drawn, and mean nothing before the first lesson.
            return Ok(Probe::new(self.width));
        }
        let (of_benign, of_adversarial) = weight.split_at(self.width);
        let mut probe = Probe { weights: Vec::with_capacity(self.width), bias: f64::from(bias[1]) - f64::from(bias[0]) };
        for (((benign, adversarial), mean), m2) in of_benign.iter().zip(of_adversarial).zip(&*mean).zip(&*m2) {
            let weight = (f64::from(*adversarial) - f64::from(*benign)) * factor(*m2, rows);
            probe.weights.push(weight as f32);
            probe.bias -= f64::from(weight as f32) * mean;
        }
        Ok(probe)
    }

    pub(super) fn state(&self) -> Result<StateRef<'_>, FoldError> {
        self.trainer.checkpoint()
    }

    pub(super) fn restore(&mut self, state: State) -> Result<(), FoldError> {
        self.trainer.restore(state)
    }

    pub(super) fn learning_rate(&self) -> Option<f64> {
        self.trainer.learning_rate()
    }

    pub(super) fn trainer(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    pub(super) fn identity(&self) -> String {
        self.trainer.identity()
    }
}
