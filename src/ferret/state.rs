//! A pipeline at rest as a checkpoint keeps it, and back.
//!
//! Tensors are named by layer and parameter: `1.linear.weight` is the newest, `1.linear.weight@640` the version with the updates of
//! 640 steps that a forward to come may still read, `1.linear.weight.momentum` the optimiser's, `1.linear.weight.accumulated` a sum
//! of gradients that waits for further steps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::pipeline::{Pipeline, StageState, StageVersion};
use super::plan::Plan;
use super::stage::{Accumulated, LayerState, LayerWeights};
use super::work::Context;
use crate::fold::{FoldError, State, StateRef};

/// What a pipeline remembers beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    ordinal: u64,
    learning_rate: f64,
    plan: Plan,
    /// Updates of each layer.
    updates: Vec<u64>,
    stages: Vec<StageValues>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StageValues {
    /// Versions of the window, oldest first; the last is the newest.
    versions: Vec<u64>,
    /// Steps in the open sums.
    accumulated: u64,
}

impl Pipeline {
    /// The whole state, lent. Nothing is in flight.
    pub fn state(&self) -> Result<StateRef<'_>, FoldError> {
        let Context { network, optimiser, plan, .. } = &*self.context;
        let names = network.parameter_names();
        let mut tensors = BTreeMap::new();
        if let Some(statistics) = &self.statistics {
            tensors.extend(names[0].iter().cloned().zip(statistics.tensors()));
        }
        for (stage, state) in plan.stages.iter().zip(&self.stages) {
            for (index, (layer, names)) in state.layers.iter().zip(&names[stage.layers.clone()]).enumerate() {
                tensors.extend(names.iter().cloned().zip(layer.weights().tensors()));
                for (name, moments) in names.iter().zip(layer.optimiser()) {
                    let named = |(which, moment)| (format!("{name}.{which}"), moment);
                    tensors.extend(optimiser.state_names().iter().zip(moments).map(named));
                }
                for version in state.window.iter().rev().skip(1) {
                    let named = |(name, weight)| (format!("{name}@{}", version.number), weight);
                    tensors.extend(names.iter().zip(version.layers[index].tensors()).map(named));
                }
                if let Some(accumulated) = &state.accumulated {
                    let named = |(name, sum)| (format!("{name}.accumulated"), sum);
                    tensors.extend(names.iter().zip(&accumulated.sums[index]).map(named));
                }
            }
        }
        let layers = self.stages.iter().flat_map(|state| &state.layers);
        let stages = self.stages.iter().map(|state| StageValues {
            versions: state.window.iter().map(|version| version.number).collect(),
            accumulated: state.accumulated.as_ref().map_or(0, |accumulated| accumulated.steps),
        });
        let values = Values {
            ordinal: self.ordinal(),
            learning_rate: self.learning_rate,
            plan: (**plan).clone(),
            updates: layers.map(LayerState::updates).collect(),
            stages: stages.collect(),
        };
        let values = serde_json::to_value(values).map_err(|error| FoldError::Contract(error.to_string()))?;
        Ok(StateRef { tensors, values })
    }

    /// The pipeline that goes on from a state that [`Pipeline::state`] gave; `self` has the network and lends the shapes.
    pub fn restored(&self, state: State) -> Result<Pipeline, FoldError> {
        let values: Values = serde_json::from_value(state.values)
            .map_err(|error| FoldError::Contract(format!("the values of this state are not a network's: {error}")))?;
        let Context { network, optimiser, ledger, .. } = &*self.context;
        values
            .plan
            .check(network)
            .map_err(|fault| FoldError::Contract(format!("the plan of this state does not fit: {fault}")))?;
        let (layers, stages) = (network.layers.len(), values.plan.stages.len());
        if values.updates.len() != layers || values.stages.len() != stages {
            return Err(FoldError::Contract(format!("this state is not of {layers} layers in {stages} stages")));
        }
        let context =
            Context { network: network.clone(), optimiser: *optimiser, plan: Arc::new(values.plan), ledger: ledger.clone() };
        let mut taking = Taking { tensors: state.tensors, context: &context, names: network.parameter_names() };
        let like: Vec<&LayerState> = self.stages.iter().flat_map(|state| &state.layers).collect();
        let statistics = match &self.statistics {
            Some(statistics) => Some(Arc::new(LayerWeights::new(taking.tensors_of(0, "", statistics.tensors())?, ledger))),
            None => None,
        };
        let of_stage = |(stage, of_values): (usize, &StageValues)| taking.stage(stage, of_values, &values.updates, &like);
        let stages = values.stages.iter().enumerate().map(of_stage).collect::<Result<Vec<_>, _>>()?;
        if let Some(name) = taking.tensors.keys().next() {
            return Err(FoldError::Contract(format!("this state has {name}, which the network lacks")));
        }
        Ok(Pipeline::at_rest(Arc::new(context), values.ordinal, stages, statistics, values.learning_rate))
    }
}

/// Takes a state apart.
struct Taking<'a> {
    tensors: BTreeMap<String, Tensor>,
    context: &'a Context,
    names: Vec<Vec<String>>,
}

impl Taking<'_> {
    fn tensor(&mut self, name: &str, like: &Tensor) -> Result<Tensor, FoldError> {
        match self.tensors.remove(name) {
            Some(tensor) if tensor.shape() == like.shape() && tensor.dtype() == like.dtype() => Ok(tensor),
            Some(tensor) => Err(FoldError::Contract(format!("{name} is {:?}, expected {:?}", tensor.shape(), like.shape()))),
            None => Err(FoldError::Contract(format!("{name} is missing from this state"))),
        }
    }

    /// The tensors of a layer whose names end in `suffix`.
    fn tensors_of(&mut self, layer: usize, suffix: &str, like: &[Tensor]) -> Result<Vec<Tensor>, FoldError> {
        let names: Vec<String> = self.names[layer].iter().map(|name| format!("{name}{suffix}")).collect();
        names.iter().zip(like).map(|(name, like)| self.tensor(name, like)).collect()
    }

    fn stage(
        &mut self,
        stage: usize,
        values: &StageValues,
        updates: &[u64],
        like: &[&LayerState],
    ) -> Result<StageState, FoldError> {
        let layers = self.context.plan.stages[stage].layers.clone();
        let Some((&newest, older)) = values.versions.split_last() else {
            return Err(FoldError::Contract(format!("stage {stage} of this state has no version")));
        };
        let mut window = VecDeque::with_capacity(values.versions.len());
        for &number in older {
            let suffix = format!("@{number}");
            let of_layer = |layer: usize| {
                let weights =
                    LayerWeights::new(self.tensors_of(layer, &suffix, like[layer].weights().tensors())?, &self.context.ledger);
                weights.hold_for(crate::ledger::Part::WeightVersions);
                Ok(Arc::new(weights))
            };
            let of_version = layers.clone().map(of_layer).collect::<Result<_, FoldError>>()?;
            window.push_back(StageVersion { number, layers: of_version });
        }
        let states = layers.clone().map(|layer| self.layer(layer, updates[layer], like[layer])).collect::<Result<_, _>>()?;
        let accumulated = match values.accumulated {
            0 => None,
            steps => {
                let sums = layers.map(|layer| self.tensors_of(layer, ".accumulated", like[layer].weights().tensors()));
                Some(Accumulated::new(steps, sums.collect::<Result<_, _>>()?, &self.context.ledger))
            }
        };
        let mut state = StageState { layers: states, window, accumulated };
        state.window.push_back(StageVersion { number: newest, layers: state.newest() });
        Ok(state)
    }

    fn layer(&mut self, layer: usize, updates: u64, like: &LayerState) -> Result<LayerState, FoldError> {
        let weights = self.tensors_of(layer, "", like.weights().tensors())?;
        let mut optimiser = Vec::with_capacity(like.optimiser().len());
        for (index, moments) in like.optimiser().iter().enumerate() {
            let name = self.names[layer][index].clone();
            let of_parameter = self.context.optimiser.state_names().iter().zip(moments);
            let of_parameter = of_parameter.map(|(which, like)| self.tensor(&format!("{name}.{which}"), like));
            optimiser.push(of_parameter.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(LayerState::new(weights, optimiser, updates, &self.context.ledger))
    }
}
