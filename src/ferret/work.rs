//! The tasks of a step with all that they read, so that they run without looking at anything shared.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::compensation::Compensation;
use super::input;
use super::plan::Plan;
use super::profile::timed;
use super::schedule::Task;
use super::stage::{Accumulated, Counted, How, Kept, LayerState, LayerWeights, Stage, StageGradients, Trail};
use crate::fold::{FoldError, Score, Sequence, Step};
use crate::learner::{Learner, Lesson, Memory, Teacher, distil, most_interfered};
use crate::ledger::{Ledger, Part};
use crate::network::loss::loss;
use crate::network::{Network, Optimiser, Targets, deep_copy};
use crate::rows::Rows;

/// How a step teaches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rule {
    /// From gradients to weights.
    pub optimiser: Optimiser,
    /// For the updates that gradients missed.
    pub compensation: Compensation,
    /// What it minimises.
    pub learner: Learner,
}

impl Rule {
    /// How a stage is updated under this rule.
    pub(super) fn how(&self, learning_rate: f64, superseded: Part) -> How<'_> {
        let Rule { optimiser, compensation, learner } = self;
        How { optimiser, compensation, anchoring: learner.anchoring(), learning_rate, superseded }
    }
}

/// What all tasks under one plan read.
#[derive(Debug)]
pub struct Context {
    /// What is trained.
    pub network: Arc<Network>,
    /// How.
    pub rule: Rule,
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
        /// What the learner keeps.
        memory: Option<Box<Memory>>,
        ordinal: u64,
    },
    Forward {
        versions: Vec<Arc<LayerWeights>>,
        input: Counted,
        /// For the last stage, which knows the loss.
        goal: Option<Goal>,
        learns: bool,
        /// Of a step that may be replayed further rows.
        candidates: Option<Candidates>,
        learning_rate: f64,
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
        memory: Option<Box<Memory>>,
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
    pub(super) goal: Goal,
    pub(super) candidates: Option<Candidates>,
}

/// What a step's outputs are held to.
pub(super) struct Goal {
    targets: Targets,
    /// So many rows, the first, are the step's own.
    own: usize,
    /// What a teacher makes of them.
    taught: Option<Counted>,
}

/// Rows of which the forward chooses those that the step would harm the most.
pub(super) struct Candidates {
    input: Counted,
    targets: Targets,
    /// How many it chooses.
    count: usize,
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
        (Given::Step { step, statistics, superseded, memory, ordinal }, _) => {
            admit(context, &step, (statistics, superseded), (memory, ordinal))
        }
        (Given::Forward { versions, input, goal, learns, candidates, learning_rate }, Task::Forward { stage, .. }) => {
            let (input, goal) = match (candidates, goal) {
                (Some(candidates), Some(goal)) => {
                    let how = Ahead { learning_rate, predicting_bytes: context.plan.teaching_bytes };
                    let (input, goal) = context.stage(stage).with_interfered(&versions, (input, goal), candidates, how)?;
                    (input, Some(goal))
                }
                (_, goal) => (input, goal),
            };
            forward(context, stage, versions, input, goal, learns)
        }
        (Given::Backward { kept, gradient, below }, Task::Backward { stage, .. }) => {
            backward(context.stage(stage), kept, gradient, below)
        }
        (
            Given::Update { layers, accumulated, gradients, trail, applies, learning_rate, superseded },
            Task::Update { stage, .. },
        ) => {
            let how = context.rule.how(learning_rate, superseded);
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

/// Turns rows into the network's input, and advances what goes by ordinal, never by time: the statistics of a standardising layer,
/// and what the learner keeps.
fn admit(
    context: &Context,
    step: &Step,
    (statistics, superseded): (Option<Arc<LayerWeights>>, Part),
    (mut memory, ordinal): (Option<Box<Memory>>, u64),
) -> Result<Gave, FoldError> {
    let (network, ledger) = (&context.network, &context.ledger);
    let lesson = match &mut memory {
        Some(memory) => memory.admit(&step.rows, ordinal)?,
        None => Lesson { own: step.rows.count, rows: step.rows.clone(), candidates: None },
    };
    let counted = |rows: &Rows| -> Result<(Counted, Targets), FoldError> {
        let features = input::features(rows, &network.input_shape)?;
        Ok((Counted::new(features, Part::Activations, ledger), input::targets(rows)?))
    };
    let (input, targets) = counted(&lesson.rows)?;
    let statistics = statistics.map(|before| {
        let mut advanced = before.tensors().to_vec();
        // What is replayed was counted when it came.
        network.observe(&mut advanced, &input.tensor.narrow(0, 0, lesson.own)?)?;
        before.hold_for(superseded);
        Ok::<_, FoldError>(Arc::new(LayerWeights::new(advanced, ledger)))
    });
    let teacher = memory.as_ref().and_then(|memory| memory.teacher.as_ref());
    let taught = teacher.map(|teacher| {
        let _scratch = ledger.take(Part::Learner, context.plan.teaching_bytes);
        let outputs = network.predict(teacher.weights.iter().map(Vec::as_slice), input.tensor.clone())?;
        Ok::<_, FoldError>(Counted::new(outputs, Part::Learner, ledger))
    });
    let candidates = lesson.candidates.map(|rows| {
        let (input, targets) = counted(&rows)?;
        Ok::<_, FoldError>(Candidates { input, targets, count: context.rule.learner.replay_rows() })
    });
    let goal = Goal { targets, own: lesson.own, taught: taught.transpose()? };
    let flight = Admitted { last: step.last, rows: step.rows.count as u64, input, goal, candidates: candidates.transpose()? };
    Ok(Gave::Step { flight, statistics: statistics.transpose()?, memory })
}

fn forward(
    context: &Context,
    stage: usize,
    versions: Vec<Arc<LayerWeights>>,
    input: Counted,
    goal: Option<Goal>,
    learns: bool,
) -> Result<Gave, FoldError> {
    let (output, kept) = context.stage(stage).forward(versions, input, learns)?;
    let Some(Goal { targets, own, taught }) = goal else { return Ok(Gave::Forward { output, kept }) };
    let kind = context.network.loss;
    let evaluated = loss(kind, &output.tensor, &targets, None)?;
    if !evaluated.finite {
        return Ok(Gave::Refused("the loss or its gradient is not finite"));
    }
    let score = Score {
        rows: own as u64,
        loss: evaluated.losses[..own].iter().map(|&loss| f64::from(loss)).sum(),
        correct: evaluated.correct[..own].iter().map(|&correct| u64::from(correct)).sum(),
    };
    if let (Some(taught), Learner::Lwf { weight, temperature, .. }) = (taught, context.rule.learner)
        && !distil(kind, &output.tensor, &taught.tensor, (weight, temperature), &evaluated.gradient)?
    {
        return Ok(Gave::Refused("the distance to the teacher's outputs is not finite"));
    }
    Ok(Gave::Loss { gradient: Counted::new(evaluated.gradient, Part::Gradients, &context.ledger), kept, score })
}

/// How a step is tried before it is made.
#[derive(Clone, Copy)]
struct Ahead {
    learning_rate: f64,
    /// What the forward of candidates takes for a moment.
    predicting_bytes: u64,
}

impl Stage<'_> {
    /// Adds to a step those of the candidates whose loss would rise the most by a plain update with the step's own rows (MIR). The
    /// stage is the whole network.
    fn with_interfered(
        &self,
        versions: &[Arc<LayerWeights>],
        (input, goal): (Counted, Goal),
        candidates: Candidates,
        Ahead { learning_rate, predicting_bytes }: Ahead,
    ) -> Result<(Counted, Goal), FoldError> {
        let (network, ledger) = (self.network, self.ledger);
        // Layers may work in the storage that they are given.
        let own = Counted::new(deep_copy(&input.tensor)?, Part::Learner, ledger);
        let (output, kept) = self.forward(versions.to_vec(), own, true)?;
        let evaluated = loss(network.loss, &output.tensor, &goal.targets, None)?;
        drop(output);
        let gradient = Counted::new(evaluated.gradient, Part::Gradients, ledger);
        let weights = || versions.iter().map(|layer| layer.tensors());
        let losses = |weights: &mut dyn Iterator<Item = &[Tensor]>| -> Result<Vec<f32>, FoldError> {
            let _scratch = ledger.take(Part::Learner, predicting_bytes);
            let outputs = network.predict(weights, candidates.input.tensor.clone())?;
            Ok(loss(network.loss, &outputs, &candidates.targets, None)?.losses)
        };
        let places = match kept.filter(|_| evaluated.finite) {
            Some(kept) => {
                let (_, gradients) = self.backward(kept, gradient, false)?;
                let ahead = Teacher::of(weights(), ledger)?;
                gradients.descend(self.plan.layers.clone(), &ahead.weights, learning_rate, ledger)?;
                let before = losses(&mut weights())?;
                let after = losses(&mut ahead.weights.iter().map(Vec::as_slice))?;
                most_interfered(&before, &after, candidates.count)
            }
            // The step will be refused whatever is added to it.
            None => (0..candidates.count.min(candidates.input.tensor.dim(0)?)).collect(),
        };
        let chosen = Counted::new(candidates.input.tensor.index_select(&index(&places)?, 0)?, Part::Learner, ledger);
        let together = Tensor::cat(&[&input.tensor, &chosen.tensor], 0)?;
        let targets = goal.targets.with(&candidates.targets, &places)?;
        Ok((Counted::new(together, Part::Activations, ledger), Goal { targets, ..goal }))
    }
}

impl Stage<'_> {
    /// Chooses rows as [`Stage::with_interfered`] does, and learns nothing: a trial of what that costs.
    pub(super) fn look_ahead(
        &self,
        versions: &[Arc<LayerWeights>],
        [own, candidates]: [&Rows; 2],
        count: usize,
        learning_rate: f64,
    ) -> Result<(), FoldError> {
        let counted = |rows: &Rows| -> Result<(Counted, Targets), FoldError> {
            let features = input::features(rows, &self.network.input_shape)?;
            Ok((Counted::new(features, Part::Activations, self.ledger), input::targets(rows)?))
        };
        let ((input, targets), (of_candidates, their_targets)) = (counted(own)?, counted(candidates)?);
        let goal = Goal { targets, own: own.count, taught: None };
        let candidates = Candidates { input: of_candidates, targets: their_targets, count };
        self.with_interfered(versions, (input, goal), candidates, Ahead { learning_rate, predicting_bytes: 0 })?;
        Ok(())
    }
}

fn index(places: &[usize]) -> candle_core::Result<Tensor> {
    let places: Vec<u32> = places.iter().map(|&place| place as u32).collect();
    Tensor::from_slice(&places, places.len(), &Device::Cpu)
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
