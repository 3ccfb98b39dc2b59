//! The tasks of a step with all that they read, so that they run without looking at anything shared.

use std::sync::Arc;

use super::compensation::Compensation;
use super::input;
use super::plan::Plan;
use super::profile::timed;
use super::schedule::Task;
use super::stage::{Accumulated, Counted, How, Kept, LayerState, LayerWeights, Stage, StageGradients, Trail};
use crate::fold::{FoldError, Score, Sequence, Step};
use crate::ledger::{Ledger, Part};
use crate::network::loss::loss;
use crate::network::{Network, Optimiser, Targets};

/// What all tasks under one plan read.
#[derive(Debug)]
pub struct Context {
    /// What is trained.
    pub network: Arc<Network>,
    /// How.
    pub optimiser: Optimiser,
    /// For the updates that gradients missed.
    pub compensation: Compensation,
    /// Under which plan.
    pub plan: Arc<Plan>,
    /// Where bytes are counted.
    pub ledger: Ledger,
}

impl Context {
    /// A stage of the plan.
    pub fn stage(&self, number: usize) -> Stage<'_> {
        Stage { network: &self.network, plan: &self.plan.stages[number], ledger: &self.ledger }
    }
}

/// A task that was taken, with what it works on.
pub struct Work {
    pub(super) context: Arc<Context>,
    pub(super) task: Task,
    pub(super) given: Given,
}

/// What a task is given.
pub(super) enum Given {
    Step {
        step: Step,
        /// Of the rows before.
        statistics: Option<Arc<LayerWeights>>,
        /// What those are held for from now on, if anybody still holds them.
        superseded: Part,
    },
    Forward {
        versions: Vec<Arc<LayerWeights>>,
        input: Counted,
        /// For the last stage, which knows the loss.
        targets: Option<Targets>,
        learns: bool,
    },
    Backward {
        kept: Kept,
        gradient: Counted,
        /// The stages below learn the step too.
        below: bool,
    },
    Update {
        layers: Vec<LayerState>,
        accumulated: Option<Accumulated>,
        gradients: StageGradients,
        /// What they are compensated along.
        trail: Trail,
        /// The weights change, and not only the sums.
        applies: bool,
        learning_rate: f64,
        superseded: Part,
    },
}

/// What a task gives.
pub(super) enum Gave {
    Step {
        flight: Admitted,
        /// Of the rows up to its own.
        statistics: Option<Arc<LayerWeights>>,
    },
    Forward {
        output: Counted,
        kept: Option<Kept>,
    },
    /// The last stage's forward with the loss after it.
    Loss {
        /// The gradient of the output.
        gradient: Counted,
        kept: Option<Kept>,
        score: Score,
    },
    Backward {
        /// Of the stage's input.
        gradient: Option<Counted>,
        gradients: StageGradients,
    },
    Update {
        layers: Vec<LayerState>,
        /// Sums that wait for further steps.
        accumulated: Option<Accumulated>,
        /// The weights have changed.
        applied: bool,
    },
    /// The step teaches nothing, here and below, for this reason.
    Refused(&'static str),
}

/// A step as it enters the pipeline.
pub(super) struct Admitted {
    pub(super) last: Sequence,
    pub(super) rows: u64,
    pub(super) input: Counted,
    pub(super) targets: Targets,
}

impl Work {
    /// Does it.
    pub fn run(self) -> Done {
        let Work { context, task, given } = self;
        let (gave, nanoseconds) = timed(|| carry_out(&context, task, given));
        Done { task, gave, nanoseconds }
    }
}

fn carry_out(context: &Context, task: Task, given: Given) -> Result<Gave, FoldError> {
    match (given, task) {
        (Given::Step { step, statistics, superseded }, _) => admit(context, &step, statistics, superseded),
        (Given::Forward { versions, input, targets, learns }, Task::Forward { stage, .. }) => {
            forward(context, stage, versions, input, targets, learns)
        }
        (Given::Backward { kept, gradient, below }, Task::Backward { stage, .. }) => {
            backward(context.stage(stage), kept, gradient, below)
        }
        (
            Given::Update { layers, accumulated, gradients, trail, applies, learning_rate, superseded },
            Task::Update { stage, .. },
        ) => {
            let how = How { optimiser: &context.optimiser, compensation: &context.compensation, learning_rate, superseded };
            update(context.stage(stage), layers, accumulated, (gradients, trail), applies, how)
        }
        _ => Err(FoldError::Contract("a task was given what another one works on".into())),
    }
}

/// A task that has ended.
pub struct Done {
    pub(super) task: Task,
    pub(super) gave: Result<Gave, FoldError>,
    /// How long it took.
    pub(super) nanoseconds: u64,
}

/// Turns rows into the network's input, and advances the statistics of a standardising layer: by ordinal, never by time.
fn admit(context: &Context, step: &Step, statistics: Option<Arc<LayerWeights>>, superseded: Part) -> Result<Gave, FoldError> {
    let (network, ledger) = (&context.network, &context.ledger);
    let targets = input::targets(&step.rows)?;
    let input = Counted::new(input::features(&step.rows, &network.input_shape)?, Part::Activations, ledger);
    let statistics = statistics.map(|before| {
        let mut advanced = before.tensors().to_vec();
        network.observe(&mut advanced, &input.tensor)?;
        before.hold_for(superseded);
        Ok::<_, FoldError>(Arc::new(LayerWeights::new(advanced, ledger)))
    });
    let flight = Admitted { last: step.last(), rows: step.rows.count as u64, input, targets };
    Ok(Gave::Step { flight, statistics: statistics.transpose()? })
}

fn forward(
    context: &Context,
    stage: usize,
    versions: Vec<Arc<LayerWeights>>,
    input: Counted,
    targets: Option<Targets>,
    learns: bool,
) -> Result<Gave, FoldError> {
    let (output, kept) = context.stage(stage).forward(versions, input, learns)?;
    let Some(targets) = targets else { return Ok(Gave::Forward { output, kept }) };
    let evaluated = loss(context.network.loss, &output.tensor, &targets, None)?;
    if !evaluated.finite {
        return Ok(Gave::Refused("the loss or its gradient is not finite"));
    }
    let score = Score {
        rows: evaluated.losses.len() as u64,
        loss: evaluated.losses.iter().map(|&loss| f64::from(loss)).sum(),
        correct: evaluated.correct,
    };
    Ok(Gave::Loss { gradient: Counted::new(evaluated.gradient, Part::Gradients, &context.ledger), kept, score })
}

fn backward(stage: Stage<'_>, kept: Kept, gradient: Counted, below: bool) -> Result<Gave, FoldError> {
    let (gradient, gradients) = stage.backward(kept, gradient, below)?;
    if !gradients.are_finite()? {
        return Ok(Gave::Refused("a gradient is not finite"));
    }
    Ok(Gave::Backward { gradient, gradients })
}

fn update(
    stage: Stage<'_>,
    mut layers: Vec<LayerState>,
    accumulated: Option<Accumulated>,
    (gradients, trail): (StageGradients, Trail),
    applies: bool,
    how: How<'_>,
) -> Result<Gave, FoldError> {
    let mut applied = true;
    if stage.plan.accumulation == 1 {
        stage.update(&mut layers, gradients, trail, how)?;
    } else {
        let sums = stage.accumulate(&mut layers, accumulated, gradients, trail, how)?;
        if !applies {
            return Ok(Gave::Update { layers, accumulated: Some(sums), applied: false });
        }
        applied = stage.update_by_mean(&mut layers, sums, how)?;
    }
    Ok(Gave::Update { layers, accumulated: None, applied })
}
