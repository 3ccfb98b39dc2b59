//! What a learner does with a whole network at rest: LwF takes a copy of it as its teacher, MAS finds which weights matter and holds
//! them where they are.

use candle_core::{Result, Tensor};

use super::input;
use super::pipeline::Pipeline;
use super::stage::tensor_bytes;
use crate::fold::FoldError;
use crate::learner::{Anchor, Learner, Teacher, importance};
use crate::ledger::{Guard, Part};
use crate::network::{Gradient, deep_copy, optimiser};

impl Pipeline {
    /// Rows that came, and consolidations so far.
    pub(super) fn remembered(&self) -> (u64, u64) {
        self.memory.as_ref().map_or((0, 0), |memory| (memory.rows, memory.consolidations))
    }

    /// Whether the newest weights must be consolidated before the next step; never while one is admitted.
    pub fn is_due(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.is_due())
    }

    /// Consolidates the newest weights. Nothing is in flight.
    pub fn consolidate(&mut self) -> std::result::Result<(), FoldError> {
        let ledger = self.context.ledger.clone();
        match self.context.rule.learner {
            Learner::Lwf { .. } => {
                // The one before is let go of first: there is room for one.
                if let Some(memory) = &mut self.memory {
                    memory.teacher = None;
                }
                let teacher = Teacher::of(self.newest_weights().into_iter(), &ledger)?;
                if let Some(memory) = &mut self.memory {
                    memory.teacher = Some(teacher);
                }
            }
            Learner::Mas { .. } => self.anchor()?,
            Learner::Vanilla {} | Learner::Er { .. } | Learner::Mir { .. } => {}
        }
        if let Some(memory) = &mut self.memory {
            memory.consolidated();
        }
        Ok(())
    }

    /// The newest weights by layer, and the statistics of a standardising layer.
    fn newest_weights(&self) -> Vec<&[Tensor]> {
        let layers = self.stages.iter().flat_map(|stage| &stage.layers);
        let mut weights: Vec<&[Tensor]> = layers.map(|layer| layer.weights().tensors()).collect();
        if let Some(statistics) = &self.statistics {
            weights[0] = statistics.tensors();
        }
        weights
    }

    /// Holds every weight where it is, by its importance for the rows that the buffer has.
    fn anchor(&mut self) -> std::result::Result<(), FoldError> {
        let context = self.context.clone();
        let (network, ledger) = (&*context.network, &context.ledger);
        let found = importance::none_yet(network)?;
        let guards: Vec<Guard> =
            found.iter().map(|layer| ledger.take(Part::Learner, layer.iter().map(tensor_bytes).sum())).collect();
        let consolidations = self.remembered().1;
        if let Some(buffer) = self.memory.as_ref().and_then(|memory| memory.buffer.as_ref()) {
            let (weights, count) = (self.newest_weights(), buffer.len());
            for place in 0..count {
                let row = input::features(&buffer.rows(&[place])?, &network.input_shape)?;
                importance::add(network, &weights, row, 1.0 / count as f64, &found, ledger)?;
            }
        }
        // Numbers that are not finite would hold weights nowhere.
        let finite = found.iter().flatten().map(crate::network::is_finite).collect::<Result<Vec<_>>>()?;
        if finite.contains(&false) {
            return Ok(());
        }
        let layers = self.stages.iter_mut().flat_map(|stage| &mut stage.layers);
        for ((layer, new), guard) in layers.zip(found).zip(guards).filter(|((_, new), _)| !new.is_empty()) {
            let importance = match layer.anchor.take() {
                None => new,
                Some(Anchor { importance, .. }) => {
                    for (mean, new) in importance.iter().zip(new) {
                        // The mean over all consolidations, this one included.
                        let count = (consolidations + 1) as f64;
                        optimiser::scale(mean, (count - 1.0) / count)?;
                        optimiser::scale(&new, 1.0 / count)?;
                        optimiser::add(mean, &Gradient::Dense(new))?;
                    }
                    importance
                }
            };
            // What stays of it is the anchor's from here on.
            drop(guard);
            let centre = layer.weights().tensors().iter().map(deep_copy).collect::<Result<_>>()?;
            layer.anchor = Some(Anchor::new(importance, centre, ledger));
        }
        Ok(())
    }
}
