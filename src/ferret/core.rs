//! The trainer's state and the tasks of a step: admission, forward, backward, update.
//!
//! A [`Core`] is all that a step may read or change, and it moves as one value: to the compute thread that runs a step, and
//! back. Nobody shares it, so there is nothing to lock and no order to depend on.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::input;
use super::plan::Plan;
use super::stage::{Counted, LayerState, Stage};
use crate::fold::{FoldError, Outcome, Score, State, StateRef, Step, Verdict};
use crate::ledger::{Ledger, Part};
use crate::network::loss::loss;
use crate::network::{Network, Optimiser, Parameter};

/// What a network's trainer remembers beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    ordinal: u64,
    updates: u64,
    learning_rate: f64,
    plan: Plan,
}

/// A network, its optimiser, and where they stand in the stream.
#[derive(Debug)]
pub struct Core {
    network: Arc<Network>,
    optimiser: Optimiser,
    layers: Vec<LayerState>,
    learning_rate: f64,
    plan: Plan,
    /// Steps that this fold was given; the next one's ordinal.
    ordinal: u64,
    /// Steps that updated the weights.
    updates: u64,
    ledger: Ledger,
}

impl Core {
    /// A network with the initial weights of `seed`.
    pub fn new(
        network: Arc<Network>,
        optimiser: Optimiser,
        learning_rate: f64,
        plan: Plan,
        seed: u64,
        ledger: Ledger,
    ) -> Result<Core, FoldError> {
        let layers = network
            .initial_weights(seed)?
            .into_iter()
            .zip(&network.layers)
            .map(|(weights, layer)| {
                let moments = layer.parameters().into_iter().map(|parameter| initial_moments(&optimiser, &parameter));
                let moments = moments.collect::<candle_core::Result<_>>()?;
                Ok(LayerState::new(weights, moments, &ledger))
            })
            .collect::<candle_core::Result<_>>()?;
        Ok(Core { network, optimiser, layers, learning_rate, plan, ordinal: 0, updates: 0, ledger })
    }

    /// What is trained.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// The plan that is followed now.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Steps that this fold was given.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// The newest state of each layer.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// Goes on under another plan, from the present ordinal on.
    pub fn follow(&mut self, plan: Plan) -> Result<(), FoldError> {
        if plan.start != self.ordinal {
            return Err(FoldError::Contract(format!("a plan from step {} at step {}", plan.start, self.ordinal)));
        }
        self.plan = plan;
        Ok(())
    }

    /// The learning rate that holds.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Goes on with another learning rate.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    /// Runs one step to its end.
    pub fn step(&mut self, step: &Step) -> Result<Outcome, FoldError> {
        let ordinal = self.ordinal;
        let (verdict, score) = self.learn(step, ordinal)?;
        self.ordinal += 1;
        Ok(Outcome { ordinal, last: step.last(), rows: step.rows.count as u64, verdict, score })
    }

    /// Admission, then the three tasks of the only stage. A refused step updates no weight; what admission noted of its features
    /// (the statistics of a standardising layer) stays, because later steps may have been admitted behind it.
    fn learn(&mut self, step: &Step, ordinal: u64) -> Result<(Verdict, Score), FoldError> {
        let input = self.admit(step)?;
        let targets = input::targets(&step.rows)?;
        let stage = Stage { network: &self.network, layers: &self.plan.stages[0], ledger: &self.ledger };
        assert_eq!(self.plan.read(ordinal, 0), ordinal, "one stage and one worker read the version of the step before");
        let versions: Vec<_> = self.layers.iter().map(|layer| layer.weights().clone()).collect();

        let (output, stash) = stage.forward(&versions, input)?;
        let evaluated = loss(self.network.loss, &output.tensor, &targets, None)?;
        if !evaluated.finite {
            return Ok((Verdict::Quarantined("the loss or its gradient is not finite".into()), Score::default()));
        }
        let rows = step.rows.count as u64;
        let loss = evaluated.losses.iter().map(|&loss| f64::from(loss)).sum();
        let score = Score { rows, loss, correct: evaluated.correct };
        let gradient = Counted::new(evaluated.gradient, Part::Gradients, &self.ledger);
        drop(output);

        let (_, gradients) = stage.backward(&versions, stash, gradient, false)?;
        drop(versions);
        if !gradients.are_finite()? {
            return Ok((Verdict::Quarantined("a gradient is not finite".into()), Score::default()));
        }

        let update = self.updates + 1;
        stage.update(&mut self.layers, gradients, &self.optimiser, self.learning_rate, update)?;
        self.updates = update;
        Ok((Verdict::Learned, score))
    }

    /// Turns rows into the network's input, and advances the statistics of a standardising layer: by ordinal, never by time.
    fn admit(&mut self, step: &Step) -> Result<Counted, FoldError> {
        let input = input::features(&step.rows, &self.network.input_shape)?;
        if let Some(first) = self.layers.first_mut().filter(|_| self.network.observes()) {
            let mut advanced = first.weights().tensors().to_vec();
            self.network.observe(&mut advanced, &input)?;
            first.replace(advanced, &self.ledger);
        }
        Ok(Counted::new(input, Part::Activations, &self.ledger))
    }

    /// The whole state, lent.
    pub fn state(&self) -> Result<StateRef<'_>, FoldError> {
        let mut tensors = BTreeMap::new();
        for (layer, names) in self.layers.iter().zip(self.network.parameter_names()) {
            for (name, weight) in names.iter().zip(layer.weights().tensors()) {
                tensors.insert(name.clone(), weight);
            }
            for (name, moments) in names.iter().zip(layer.optimiser()) {
                for (which, moment) in self.optimiser.state_names().iter().zip(moments) {
                    tensors.insert(format!("{name}.{which}"), moment);
                }
            }
        }
        let values =
            Values { ordinal: self.ordinal, updates: self.updates, learning_rate: self.learning_rate, plan: self.plan.clone() };
        let values = serde_json::to_value(values).map_err(|error| FoldError::Contract(error.to_string()))?;
        Ok(StateRef { tensors, values })
    }

    /// Goes on from a state that [`Core::state`] gave.
    pub fn restore(&mut self, mut state: State) -> Result<(), FoldError> {
        let values: Values = serde_json::from_value(state.values)
            .map_err(|error| FoldError::Contract(format!("the values of this state are not a network's: {error}")))?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (layer, names) in self.layers.iter().zip(self.network.parameter_names()) {
            let mut take = |name: &str, like: &Tensor| match state.tensors.remove(name) {
                Some(tensor) if tensor.shape() == like.shape() && tensor.dtype() == like.dtype() => Ok(tensor),
                Some(tensor) => Err(FoldError::Contract(format!("{name} is {:?}, expected {:?}", tensor.shape(), like.shape()))),
                None => Err(FoldError::Contract(format!("{name} is missing from this state"))),
            };
            let weights = layer.weights().tensors();
            let restored = names.iter().zip(weights).map(|(name, like)| take(name, like)).collect::<Result<Vec<_>, _>>()?;
            let mut optimiser = Vec::with_capacity(layer.optimiser().len());
            for (name, moments) in names.iter().zip(layer.optimiser()) {
                let of_parameter = self.optimiser.state_names().iter().zip(moments);
                let of_parameter = of_parameter.map(|(which, like)| take(&format!("{name}.{which}"), like));
                optimiser.push(of_parameter.collect::<Result<Vec<_>, _>>()?);
            }
            layers.push(LayerState::new(restored, optimiser, &self.ledger));
        }
        if let Some(name) = state.tensors.keys().next() {
            return Err(FoldError::Contract(format!("this state has {name}, which the network lacks")));
        }
        self.layers = layers;
        (self.ordinal, self.updates) = (values.ordinal, values.updates);
        (self.learning_rate, self.plan) = (values.learning_rate, values.plan);
        Ok(())
    }
}

/// The optimiser's tensors of one parameter, before the first update.
fn initial_moments(optimiser: &Optimiser, parameter: &Parameter) -> candle_core::Result<Vec<Tensor>> {
    (0..optimiser.state_count()).map(|_| Tensor::zeros(parameter.shape.as_slice(), DType::F32, &Device::Cpu)).collect()
}
