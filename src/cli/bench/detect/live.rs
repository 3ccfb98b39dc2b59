//! A live network to attack: a `convnet` that the pipelined trainer has followed a stream of CIFAR pictures with.

use std::sync::Arc;

use bytes::Bytes;

use super::pictures::Record;
use super::victim::Live;
use crate::cli::Failure;
use crate::ferret::executor::Executor;
use crate::ferret::pool::Pool;
use crate::ferret::trainer::{Recipe, Trainer};
use crate::ferret::work::Rule;
use crate::fold::{Fold, Score, Step};
use crate::network::{Architecture, Loss, Network, Optimiser, deep_copy};
use crate::rows::{Block, Element, Rows, Target};

pub(super) const NAME: &str = "convnet (live)";

const STEP_ROWS: usize = 16;
const LEARNING_RATE: f64 = 0.001;
const CLASSES: usize = 10;
/// How many pictures it learns, and how many times over.
pub(super) const ROWS: usize = 10_000;
const PASSES: usize = 5;

/// A network after all records, some times over, and which share of the last time's rows it predicted before it learned them.
pub(super) fn train(records: &[Record], pool: &Pool) -> Result<(Live, f64), Failure> {
    let side = records.first().map_or(0, |record| record.picture.width() as usize);
    let architecture = Architecture::ConvNet { standardise: Some(false) };
    let network = Network::build(&architecture, &[3, side, side], CLASSES, Loss::SoftmaxCrossEntropy, false)?;
    let network = Arc::new(network);
    let rule = Rule { optimiser: Optimiser::adamw(), ..Rule::default() };
    let recipe = Recipe { rule, learning_rate: LEARNING_RATE, ..Recipe::new(network.clone(), STEP_ROWS, pool.threads()) };
    // The smallest plan: it is the same on every machine, and so are the weights.
    let plan = recipe.planner().minimum(0);
    let mut trainer = Trainer::new(recipe, plan, Executor::Threads(pool.clone()))?;
    let (mut outcomes, mut first, mut score) = (Vec::new(), 1, Score::default());
    for _ in 0..PASSES {
        outcomes.clear();
        for records in records.chunks(STEP_ROWS) {
            let step = Step::starting(first, rows(records, side));
            first = step.last + 1;
            trainer.apply(step, &mut outcomes)?;
        }
        trainer.drain(&mut outcomes)?;
        score = Score::default();
        outcomes.iter().for_each(|outcome| score.add(outcome.score));
    }
    let state = trainer.checkpoint()?;
    let named = |name: &String| {
        let tensor = state.tensors.get(name).ok_or_else(|| format!("a network has no {name}"))?;
        Ok::<_, Failure>(deep_copy(tensor)?)
    };
    let layers = network.parameter_names();
    let weights = layers.iter().map(|names| names.iter().map(named).collect()).collect::<Result<_, Failure>>()?;
    Ok((Live::new(NAME, network.clone(), weights), score.correct as f64 / score.rows.max(1) as f64))
}

fn rows(records: &[Record], side: usize) -> Rows {
    let mut bytes = Vec::with_capacity(records.len() * 3 * side * side);
    for record in records {
        for channel in 0..3 {
            bytes.extend(record.picture.pixels().map(|pixel| pixel.0[channel]));
        }
    }
    Rows {
        count: records.len(),
        blocks: vec![Block { element: Element::U8, width: 3 * side * side, bytes: Bytes::from(bytes) }],
        target: Some(Target::Classes(records.iter().map(|record| u32::from(record.label)).collect())),
        ..Rows::default()
    }
}
