//! What a step holds, known before anything is allocated: a walk of the layers' costs in the order of a real step.
//!
//! The walk keeps account of every storage as the step itself does, with the same rules of sharing (a layer in place hands its
//! input's storage on, a stash keeps an input alive, a factored gradient keeps its output gradient), so the peak that it finds
//! is the step's own peak and not a bound with a safety factor.

use serde::{Deserialize, Serialize};

use crate::network::{Cost, Network};

/// Bytes of one element of every tensor that is trained.
const F32: u64 = 4;

/// The bytes of a step at the moment when they are most, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepBytes {
    /// Inputs, outputs and stashes.
    pub activations: u64,
    /// Gradients of weights and of activations.
    pub gradients: u64,
    /// Scratch of the kernel that runs then.
    pub workspace: u64,
}

impl StepBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.activations + self.gradients + self.workspace
    }
}

/// One buffer that the walk follows.
struct Storage {
    bytes: u64,
    holders: u32,
    gradient: bool,
}

#[derive(Default)]
struct Walk {
    storages: Vec<Storage>,
    now: StepBytes,
    peak: StepBytes,
}

impl Walk {
    fn allocate(&mut self, bytes: u64, gradient: bool) -> usize {
        self.storages.push(Storage { bytes, holders: 1, gradient });
        if gradient {
            self.now.gradients += bytes
        } else {
            self.now.activations += bytes
        }
        self.note(0);
        self.storages.len() - 1
    }

    fn hold(&mut self, storage: usize) -> usize {
        self.storages[storage].holders += 1;
        storage
    }

    fn release(&mut self, storage: usize) {
        let storage = &mut self.storages[storage];
        storage.holders -= 1;
        if storage.holders == 0 {
            if storage.gradient { self.now.gradients -= storage.bytes } else { self.now.activations -= storage.bytes }
        }
    }

    /// Notes the moment at which a kernel uses `workspace` bytes beside all that is held.
    fn note(&mut self, workspace: u64) {
        let moment = StepBytes { workspace, ..self.now };
        if moment.total() > self.peak.total() {
            self.peak = moment;
        }
    }
}

/// What the stash of a layer holds on to.
struct Kept {
    input: Option<usize>,
    output: Option<usize>,
    stash: usize,
}

/// The bytes of all that the layers of `network` keep: parameters, and statistics of a standardising layer.
pub fn weight_bytes(network: &Network) -> u64 {
    network.layers.iter().map(|layer| layer.cost(1).weights).sum()
}

/// The bytes of the parameters alone, which an optimiser keeps moments of.
pub fn parameter_bytes(network: &Network) -> u64 {
    let parameters = network.layers.iter().flat_map(|layer| layer.parameters());
    parameters.map(|parameter| parameter.elements() as u64 * F32).sum()
}

/// The most bytes that any step of 1 to `rows_max` rows holds at once. Fewer rows do not always take less: how the gemm packs its
/// operands depends on their sizes in steps.
pub fn step_bytes_max(network: &Network, rows_max: usize, fuses: bool) -> StepBytes {
    (1..=rows_max).map(|rows| step_bytes(network, rows, fuses)).max_by_key(StepBytes::total).unwrap_or_default()
}

/// The most bytes that one step of `rows` rows holds at once; `fuses` says that the optimiser takes factored gradients as they
/// are ([`crate::network::Optimiser::fuses`]).
pub fn step_bytes(network: &Network, rows: usize, fuses: bool) -> StepBytes {
    let costs: Vec<Cost> = network.layers.iter().map(|layer| layer.cost(rows)).collect();
    let mut walk = Walk::default();
    let input_bytes = rows as u64 * network.input_shape.iter().product::<usize>() as u64 * F32;
    let mut at = walk.allocate(input_bytes, false);
    let mut kept = Vec::with_capacity(costs.len());
    for cost in &costs {
        let output = if cost.output == 0 { walk.hold(at) } else { walk.allocate(cost.output, false) };
        let stash = walk.allocate(cost.stash, false);
        walk.note(cost.workspace_forward);
        let input = cost.keeps_input.then(|| walk.hold(at));
        kept.push(Kept { input, output: cost.keeps_output.then(|| walk.hold(output)), stash });
        walk.release(at);
        at = output;
    }
    let mut gradient = walk.allocate(rows as u64 * network.outputs as u64 * F32, true);
    walk.release(at);

    let mut held_for_update = Vec::new();
    let lowest = network.first_learning_layer();
    for (layer, (cost, kept)) in costs.iter().zip(kept).enumerate().rev() {
        if layer < lowest {
            release_all(&mut walk, [kept.input, kept.output, Some(kept.stash)]);
            continue;
        }
        let wanted = layer > lowest;
        let below = match (wanted, cost.input_gradient) {
            (true, 0) => walk.hold(gradient),
            (true, bytes) => walk.allocate(bytes, true),
            (false, _) => walk.allocate(0, true),
        };
        let mut until_update = vec![walk.allocate(cost.weight_gradient, true)];
        walk.note(cost.workspace_backward);
        if cost.keeps_output_gradient {
            until_update.push(walk.hold(gradient));
            until_update.extend(kept.input.map(|input| walk.hold(input)));
        }
        held_for_update.push((layer, until_update));
        walk.release(gradient);
        release_all(&mut walk, [kept.input, kept.output, Some(kept.stash)]);
        gradient = below;
    }
    walk.release(gradient);
    for (layer, until_update) in held_for_update {
        let made_dense = if fuses { 0 } else { costs[layer].weight_gradient_dense - costs[layer].weight_gradient };
        let dense = walk.allocate(made_dense, true);
        walk.note(costs[layer].workspace_update);
        walk.release(dense);
        release_all(&mut walk, until_update.into_iter().map(Some));
    }
    walk.peak
}

fn release_all(walk: &mut Walk, storages: impl IntoIterator<Item = Option<usize>>) {
    for storage in storages.into_iter().flatten() {
        walk.release(storage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Architecture, Loss};

    #[test]
    fn no_step_needs_more_than_the_plan_of_its_rows() {
        for (inputs, hidden, rows_max) in [(784, vec![], 66), (1000, vec![], 512), (784, vec![256, 256], 70), (30, vec![8], 100)]
        {
            let architecture = Architecture::Mlp { hidden, standardise: Some(false) };
            let network = Network::build(&architecture, &[inputs], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
            for fuses in [true, false] {
                let planned = step_bytes_max(&network, rows_max, fuses).total();
                for rows in 1..=rows_max {
                    assert!(step_bytes(&network, rows, fuses).total() <= planned, "{inputs} inputs, {rows} of {rows_max} rows");
                }
            }
        }
    }
}
