//! What a residual block costs: a walk of its layers' costs in the order of its own forward and backward.
//!
//! The walk follows each storage with its holders, as the planner's does for a whole step, so that the block's stash and its
//! scratch are those that it takes and not sums with something to spare.

use super::super::{Cost, bytes, times, with_rows};
use super::{Branch, Residual};

/// One buffer.
#[derive(Clone)]
struct Storage {
    bytes: u64,
    holders: u32,
}

/// What the stash of a layer holds on to.
#[derive(Clone, Copy)]
struct Kept {
    input: Option<usize>,
    output: Option<usize>,
    stash: usize,
}

/// Sums are of twice the width: what was too large for its own layer's numbers must not vanish when it is released.
#[derive(Clone, Default)]
struct Walk {
    storages: Vec<Storage>,
    now: u128,
    peak: u128,
}

impl Walk {
    fn allocate(&mut self, bytes: u64) -> usize {
        self.storages.push(Storage { bytes, holders: 1 });
        self.now += u128::from(bytes);
        self.note(0);
        self.storages.len() - 1
    }

    fn hold(&mut self, storage: usize) -> usize {
        self.storages[storage].holders += 1;
        storage
    }

    fn release(&mut self, storage: usize) {
        let Storage { bytes, holders } = &mut self.storages[storage];
        *holders -= 1;
        if *holders == 0 {
            self.now -= u128::from(*bytes);
        }
    }

    /// Notes the moment at which a kernel uses `workspace` bytes beside all that is held.
    fn note(&mut self, workspace: u64) {
        self.peak = self.peak.max(self.now + u128::from(workspace));
    }

    /// Goes through [`Branch::forward`] from the storage `at`, which it releases.
    fn forward(&mut self, costs: &[Cost], mut at: usize) -> (usize, Vec<Kept>) {
        let mut kept = Vec::with_capacity(costs.len());
        for cost in costs {
            let output = if cost.output == 0 { self.hold(at) } else { self.allocate(cost.output) };
            let stash = self.allocate(cost.stash);
            self.note(cost.workspace_forward);
            let input = cost.keeps_input.then(|| self.hold(at));
            kept.push(Kept { input, output: cost.keeps_output.then(|| self.hold(output)), stash });
            self.release(at);
            at = output;
        }
        (at, kept)
    }

    /// Goes through [`Branch::backward`] from the gradient in `given`, which it releases.
    fn backward(&mut self, of: &Reckoned<'_>, output_bytes: u64, given: usize, want_input: bool) -> usize {
        let mut gradient = given;
        if of.branch.overwrites() {
            gradient = self.allocate(output_bytes);
            self.release(given);
        }
        let lowest = of.branch.lowest();
        for (index, (cost, kept)) in of.costs.iter().zip(&of.kept).enumerate().rev() {
            if index >= lowest || want_input {
                let wanted = index > lowest || want_input;
                let below = match cost.input_gradient {
                    0 => self.hold(gradient),
                    bytes => self.allocate(if wanted { bytes } else { 0 }),
                };
                self.allocate(cost.weight_gradient);
                self.note(if wanted { cost.workspace_backward } else { cost.workspace_backward_alone });
                // Factors are made dense at once.
                self.allocate(cost.weight_gradient_dense.saturating_sub(cost.weight_gradient));
                self.note(cost.workspace_update);
                self.release(gradient);
                gradient = below;
            }
            for storage in [kept.input, kept.output, Some(kept.stash)].into_iter().flatten() {
                self.release(storage);
            }
        }
        gradient
    }
}

/// One branch in the walk.
struct Reckoned<'a> {
    branch: &'a Branch,
    costs: Vec<Cost>,
    kept: Vec<Kept>,
}

/// Forward and backward of the whole block.
pub(super) fn cost(block: &Residual, rows: usize) -> Cost {
    let (input, output) = (with_rows(rows, &block.input_shape), with_rows(rows, &block.output_shape));
    let [mut main, mut shortcut] = [&block.main, &block.shortcut].map(|branch| {
        let costs = branch.layers().iter().map(|layer| layer.cost(rows)).collect();
        Reckoned { branch, costs, kept: Vec::new() }
    });
    let sum = |of: fn(&Cost) -> u64| main.costs.iter().chain(&shortcut.costs).map(of).fold(0, u64::saturating_add);
    let (weights, weight_gradient) = (sum(|cost| cost.weights), sum(|cost| cost.weight_gradient_dense));
    let flops_forward = sum(|cost| cost.flops_forward).saturating_add(times(&output));
    let flops_backward = sum(|cost| cost.flops_backward).saturating_add(times(&input));

    let mut walk = Walk::default();
    // The input and the output gradient are the caller's: they are followed, but take no bytes here.
    let given = walk.allocate(0);
    let for_main = walk.hold(given);
    let (mut end, kept) = walk.forward(&main.costs, for_main);
    main.kept = kept;
    let (beside, kept) = walk.forward(&shortcut.costs, given);
    shortcut.kept = kept;
    if !block.main.ends_free() {
        let fresh = walk.allocate(bytes(&output));
        walk.release(std::mem::replace(&mut end, fresh));
    }
    walk.release(beside);
    let workspace_forward = narrow(walk.peak - walk.now);
    let keeps_input = walk.storages[given].holders > 0;
    walk.release(end);
    let stash = walk.now;

    let [workspace_backward, workspace_backward_alone] = [true, false].map(|want_input| {
        let mut walk = Walk { storages: walk.storages.clone(), now: stash, peak: stash };
        let gradient = walk.allocate(0);
        let for_main = walk.hold(gradient);
        walk.backward(&main, bytes(&output), for_main, want_input);
        walk.backward(&shortcut, bytes(&output), gradient, want_input);
        let returned = u128::from(if want_input { bytes(&input) } else { 0 }) + u128::from(weight_gradient);
        narrow(walk.peak.saturating_sub(stash + returned))
    });
    Cost {
        weights,
        output: bytes(&output),
        stash: narrow(stash),
        keeps_input,
        workspace_forward,
        workspace_backward,
        workspace_backward_alone,
        input_gradient: bytes(&input),
        weight_gradient,
        weight_gradient_dense: weight_gradient,
        flops_forward,
        flops_backward,
        ..Cost::default()
    }
}

/// The number itself, or the largest there is.
fn narrow(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
