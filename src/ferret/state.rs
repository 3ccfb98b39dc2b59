//! A pipeline at rest as a checkpoint keeps it, and back.
//!
//! Tensors are named by layer and parameter: `1.linear.weight` is the newest, `1.linear.weight@640` the version with the updates of
//! 640 steps that a forward to come may still read, `1.linear.weight.momentum` the optimiser's, `1.linear.weight.mean_fisher` gradient
//! compensation's, `1.linear.weight.accumulated` a sum of gradients that waits for further steps; `buffer.features.0` and
//! `teacher.1.linear.weight` are a learner's, and so is `1.linear.weight.importance`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::compensation::Tuner;
use super::pipeline::{Pipeline, StageState, StageVersion};
use super::plan::Plan;
use super::stage::{Accumulated, LayerState, LayerWeights};
use super::work::{Context, Rule};
use crate::fold::{FoldError, State, StateRef};
use crate::learner::{Anchor, Buffer, Memory, Teacher};

/// What a pipeline remembers beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    ordinal: u64,
    learning_rate: f64,
    plan: Plan,
    /// Updates of each layer.
    updates: Vec<u64>,
    /// λ of each layer's gradient compensation; none where nothing is compensated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lambdas: Vec<f64>,
    stages: Vec<StageValues>,
    /// What the learner keeps; none where it keeps nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryValues>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryValues {
    rows: u64,
    consolidations: u64,
    /// Rows that the buffer has seen; none where there is no buffer.
    seen: Option<u64>,
    /// Whether there is a teacher.
    teaches: bool,
    /// Whether weights are held to anchors.
    anchored: bool,
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
        let Context { network, rule: Rule { optimiser, compensation, .. }, plan, .. } = &*self.context;
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
                for (name, means) in names.iter().zip(&layer.tuner.means) {
                    let named = |(which, mean)| (format!("{name}.{which}"), mean);
                    tensors.extend(compensation.state_names().iter().zip(means).map(named));
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
        let layers = || self.stages.iter().flat_map(|state| &state.layers);
        let lambdas = layers().map(|layer| layer.tuner.lambda).take_while(|_| compensation.compensates()).collect();
        let stages = self.stages.iter().map(|state| StageValues {
            versions: state.window.iter().map(|version| version.number).collect(),
            accumulated: state.accumulated.as_ref().map_or(0, |accumulated| accumulated.steps),
        });
        let memory = self.memory.as_ref().map(|memory| MemoryValues {
            rows: memory.rows,
            consolidations: memory.consolidations,
            seen: memory.buffer.as_ref().map(Buffer::seen),
            teaches: memory.teacher.is_some(),
            anchored: self.is_anchored(),
        });
        self.lend_memory(&names, &mut tensors);
        let values = Values {
            ordinal: self.ordinal(),
            learning_rate: self.learning_rate,
            plan: (**plan).clone(),
            updates: layers().map(LayerState::updates).collect(),
            lambdas,
            stages: stages.collect(),
            memory,
        };
        let values = serde_json::to_value(values).map_err(|error| FoldError::Contract(error.to_string()))?;
        Ok(StateRef { tensors, values })
    }

    fn is_anchored(&self) -> bool {
        self.stages.iter().flat_map(|stage| &stage.layers).any(|layer| layer.anchor.is_some())
    }

    /// Adds the tensors of what the learner keeps.
    fn lend_memory<'a>(&'a self, names: &[Vec<String>], tensors: &mut BTreeMap<String, &'a Tensor>) {
        let layers = self.stages.iter().flat_map(|stage| &stage.layers);
        for (names, anchor) in names.iter().zip(layers.map(|layer| &layer.anchor)) {
            let Some(Anchor { importance, centre, .. }) = anchor else { continue };
            for (which, of_layer) in [("importance", importance), ("centre", centre)] {
                tensors.extend(names.iter().map(|name| format!("{name}.{which}")).zip(of_layer));
            }
        }
        let Some(memory) = &self.memory else { return };
        if let Some(buffer) = &memory.buffer {
            for (number, chunk) in buffer.tensors().enumerate() {
                tensors.extend(BUFFER_NAMES.map(|name| format!("{name}.{number}")).into_iter().zip(chunk));
            }
        }
        if let Some(teacher) = &memory.teacher {
            let named = names.iter().flatten().map(|name| format!("teacher.{name}"));
            tensors.extend(named.zip(teacher.weights.iter().flatten()));
        }
    }

    /// The pipeline that goes on from a state that [`Pipeline::state`] gave; `self` has the network and lends the shapes.
    pub fn restored(&self, state: State) -> Result<Pipeline, FoldError> {
        let values: Values = serde_json::from_value(state.values)
            .map_err(|error| FoldError::Contract(format!("the values of this state are not a network's: {error}")))?;
        let Context { network, rule, ledger, .. } = &*self.context;
        values
            .plan
            .check(network)
            .map_err(|fault| FoldError::Contract(format!("the plan of this state does not fit: {fault}")))?;
        let (layers, stages) = (network.layers.len(), values.plan.stages.len());
        if values.updates.len() != layers || values.stages.len() != stages {
            return Err(FoldError::Contract(format!("this state is not of {layers} layers in {stages} stages")));
        }
        if values.lambdas.len() != if rule.compensation.compensates() { layers } else { 0 } {
            return Err(FoldError::Contract("this state is of another gradient compensation".into()));
        }
        let context = Context { network: network.clone(), rule: *rule, plan: Arc::new(values.plan), ledger: ledger.clone() };
        let anchored = values.memory.as_ref().is_some_and(|memory| memory.anchored);
        let counts = values.updates.iter().copied().enumerate();
        let counts = counts.map(|(layer, updates)| (updates, values.lambdas.get(layer).copied().unwrap_or_default())).collect();
        let mut taking = Taking { tensors: state.tensors, context: &context, names: network.parameter_names(), counts, anchored };
        let like: Vec<&LayerState> = self.stages.iter().flat_map(|state| &state.layers).collect();
        let statistics = match &self.statistics {
            Some(statistics) => Some(Arc::new(LayerWeights::new(taking.tensors_of(0, "", statistics.tensors())?, ledger))),
            None => None,
        };
        let of_stage = |(stage, of_values): (usize, &StageValues)| taking.stage(stage, of_values, &like);
        let stages = values.stages.iter().enumerate().map(of_stage).collect::<Result<Vec<_>, _>>()?;
        let memory = match (&self.memory, values.memory) {
            (Some(like), Some(values)) => Some(Box::new(taking.memory(like, &values)?)),
            (None, None) => None,
            _ => return Err(FoldError::Contract("this state is of another learner".into())),
        };
        if let Some(name) = taking.tensors.keys().next() {
            return Err(FoldError::Contract(format!("this state has {name}, which the network lacks")));
        }
        Ok(Pipeline::at_rest(Arc::new(context), values.ordinal, stages, (statistics, memory), values.learning_rate))
    }
}

/// What the tensors of a replay buffer are called, before the number of their chunk.
const BUFFER_NAMES: [&str; 2] = ["buffer.features", "buffer.labels"];

/// Takes a state apart.
struct Taking<'a> {
    tensors: BTreeMap<String, Tensor>,
    context: &'a Context,
    names: Vec<Vec<String>>,
    /// Of each layer: updates, and λ of the compensation.
    counts: Vec<(u64, f64)>,
    /// Whether weights are held to anchors.
    anchored: bool,
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

    fn stage(&mut self, stage: usize, values: &StageValues, like: &[&LayerState]) -> Result<StageState, FoldError> {
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
        let states = layers.clone().map(|layer| self.layer(layer, like[layer])).collect::<Result<_, _>>()?;
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

    fn layer(&mut self, layer: usize, like: &LayerState) -> Result<LayerState, FoldError> {
        let weights = self.tensors_of(layer, "", like.weights().tensors())?;
        let optimiser = self.named(layer, self.context.rule.optimiser.state_names(), like.optimiser())?;
        let means = self.named(layer, self.context.rule.compensation.state_names(), &like.tuner.means)?;
        let (updates, lambda) = self.counts[layer];
        let tuner = Tuner::new(lambda, means, &self.context.ledger);
        let mut state = LayerState::new(weights, optimiser, tuner, updates, &self.context.ledger);
        let parameters = self.context.network.layers[layer].parameters().len();
        if self.anchored && parameters > 0 {
            let [importance, centre] =
                [".importance", ".centre"].map(|which| self.tensors_of(layer, which, like.weights().tensors()));
            state.anchor = Some(Anchor::new(importance?, centre?, &self.context.ledger));
        }
        Ok(state)
    }

    /// What the learner keeps; `like` lends the shapes.
    fn memory(&mut self, like: &Memory, values: &MemoryValues) -> Result<Memory, FoldError> {
        let Context { rule, plan, ledger, network } = self.context;
        let buffer = match (&like.buffer, values.seen) {
            (Some(like), Some(seen)) => {
                let mut take = |name: String| {
                    self.tensors.remove(&name).ok_or_else(|| FoldError::Contract(format!("{name} is missing from this state")))
                };
                let chunks = (0..like.chunk_count(plan.buffer_rows)).map(|number| {
                    let [features, labels] = BUFFER_NAMES.map(|name| take(format!("{name}.{number}")));
                    Ok::<_, FoldError>([features?, labels?])
                });
                let tensors = chunks.collect::<Result<Vec<_>, _>>()?;
                Some(like.restored(plan.buffer_rows, seen, tensors, ledger)?)
            }
            (None, None) => None,
            _ => return Err(FoldError::Contract("this state is of another learner".into())),
        };
        let teacher = values.teaches.then(|| {
            let of_layer = |layer: usize| -> Result<Vec<Tensor>, FoldError> {
                let names: Vec<String> = self.names[layer].iter().map(|name| format!("teacher.{name}")).collect();
                names
                    .iter()
                    .map(|name| self.tensors.remove(name).ok_or_else(|| FoldError::Contract(format!("{name} is missing"))))
                    .collect()
            };
            let weights = (0..network.layers.len()).map(of_layer).collect::<Result<Vec<_>, FoldError>>()?;
            Ok::<_, FoldError>(Teacher::new(weights, ledger))
        });
        Ok(Memory::restored(rule.learner, buffer, teacher.transpose()?, (values.rows, values.consolidations)))
    }

    /// The tensors that are kept of each parameter of a layer under these names.
    fn named(&mut self, layer: usize, which: &[&str], like: &[Vec<Tensor>]) -> Result<Vec<Vec<Tensor>>, FoldError> {
        let mut of_layer = Vec::with_capacity(like.len());
        for (index, like) in like.iter().enumerate() {
            let name = self.names[layer][index].clone();
            let of_parameter = which.iter().zip(like).map(|(which, like)| self.tensor(&format!("{name}.{which}"), like));
            of_layer.push(of_parameter.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(of_layer)
    }
}
