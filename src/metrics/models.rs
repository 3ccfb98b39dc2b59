//! What models are, as metrics: built anew for each scrape from what the models say of themselves.

use prometheus::proto::{MetricFamily, MetricType};

use super::families::{Named, family, labelled, metric, pair, plain};
use crate::ledger::Part;

/// One model at one moment, given by its driver. Counters are the model's own, part of its durable state: those that end in
/// `_total` below must not fall while the process runs, or Prometheus takes the fall for a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFigures {
    /// Its name.
    pub model: String,
    /// The stream that it learns from.
    pub stream: String,
    /// What it is a model of.
    pub kind: String,
    /// What it does when too many rows come.
    pub policy: &'static str,
    /// Every status that a model may have, and whether it has that one.
    pub statuses: Vec<(&'static str, bool)>,
    /// Rows that its stream has accepted for it.
    pub accepted_rows: u64,
    /// What became of them so far.
    pub rows: RowFigures,
    /// Rows, of those that wait, that it has seen without their labels.
    pub waiting_for_label_rows: u64,
    /// Late labels that it has read.
    pub labels: u64,
    /// The epoch of its version.
    pub epoch: u32,
    /// The sequence of its version.
    pub sequence: u64,
    /// How long ago the state that readers see was the newest, in seconds.
    pub snapshot_age_seconds: f64,
    /// Sequence numbers of the stream that are not decided yet.
    pub lag_rows: u64,
    /// How many of them there may be before posts are refused; none where they never are.
    pub lag_rows_max: Option<u64>,
    /// Steps that were applied.
    pub steps: u64,
    /// Scores since the start of the model.
    pub whole: ScoreFigures,
    /// Scores of the last rows.
    pub sliding: ScoreFigures,
    /// Rises of the loss that were noticed.
    pub drifts: u64,
    /// The row at which the newest was; none before the first.
    pub drift_sequence: Option<u64>,
    /// The learning rate, where it has one.
    pub learning_rate: Option<f64>,
    /// The newest checkpoint; none before the first.
    pub checkpoint: Option<CheckpointFigures>,
    /// The plan; none for a kind without one.
    pub plan: Option<PlanFigures>,
    /// Steps that were given to the trainer, and whose end is not known yet.
    pub in_flight_steps: u64,
    /// Bytes held, by part.
    pub ledger_bytes: Vec<(Part, u64)>,
    /// The most bytes held at once since the last change of the budget.
    pub ledger_high_water_bytes: u64,
    /// The least that a plan of it can hold.
    pub minimum_bytes: u64,
    /// What the plan will hold at most.
    pub planned_bytes: u64,
    /// What it will hold at most, by part.
    pub planned_part_bytes: Vec<(Part, u64)>,
    /// The budget; none where it is unconstrained.
    pub memory_budget_bytes: Option<u64>,
    /// Its share of what the process may hold; none where nobody has shared it yet.
    pub memory_allotted_bytes: Option<u64>,
}

impl Named for ModelFigures {
    const LABEL: &'static str = "model";

    fn name(&self) -> &str {
        &self.model
    }
}

/// A checkpoint that is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CheckpointFigures {
    /// When it became so, in seconds since 1970.
    pub timestamp_seconds: f64,
    /// Every row up to here is in it.
    pub sequence: u64,
}

/// A plan in a few numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PlanFigures {
    /// Into how many stages the network is cut.
    pub stages: u64,
    /// How many workers share them.
    pub workers: u64,
    /// Steps that may be in flight.
    pub in_flight_steps_max: u64,
    /// Steps before its own whose updates a forward does not see yet: the mean over the stages, in a pipeline that is full.
    pub staleness_steps: f64,
}

/// The rows of one model by what became of them. With those that wait they are the rows accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowFigures {
    /// By every stage.
    pub learned: u64,
    /// By some stages only.
    pub learned_in_part: u64,
    /// Given away under a skip policy.
    pub skipped: u64,
    /// Kept for the canary.
    pub held_out: u64,
    /// Refused by the guard.
    pub quarantined: u64,
    /// Their label never came.
    pub expired: u64,
    /// Not decided yet, or waiting for their label.
    pub waiting: u64,
}

impl RowFigures {
    /// The rows accepted, if nothing was lost: the sum of all.
    pub fn total(&self) -> u64 {
        self.outcomes().iter().map(|(_, rows)| rows).sum::<u64>() + self.waiting
    }

    fn outcomes(&self) -> [(&'static str, u64); 6] {
        [
            ("learned", self.learned),
            ("learned_in_part", self.learned_in_part),
            ("skipped", self.skipped),
            ("held_out", self.held_out),
            ("quarantined", self.quarantined),
            ("expired", self.expired),
        ]
    }
}

/// Predict-then-learn scores of some rows; none before the first scored row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreFigures {
    /// The part of the rows whose class was predicted, 0 to 1; none for a regression.
    pub accuracy_ratio: Option<f64>,
    /// The mean loss.
    pub loss: Option<f64>,
}

/// The families of all models.
pub(super) fn families(models: &[ModelFigures]) -> Vec<MetricFamily> {
    let all =
        [vec![info(models)], counters(models), versions_and_scores(models), checkpoints(models), plans(models), memory(models)];
    all.into_iter().flatten().collect()
}

fn info(models: &[ModelFigures]) -> MetricFamily {
    let of = |m: &ModelFigures| {
        let labels = [("model", m.model.as_str()), ("stream", &m.stream), ("kind", &m.kind), ("policy", m.policy)];
        metric(MetricType::GAUGE, labels.map(|(label, value)| pair(label, value)).to_vec(), 1.0)
    };
    let help = "Always 1; the labels say what the model is and learns from.";
    family(MetricType::GAUGE, "mustela_model_info", help, models.iter().map(of).collect())
}

fn counters(models: &[ModelFigures]) -> Vec<MetricFamily> {
    use MetricType::{COUNTER, GAUGE};
    vec![
        plain(COUNTER, "mustela_model_accepted_rows_total", "Rows that the stream accepted for the model.", models, |m| {
            Some(m.accepted_rows as f64)
        }),
        labelled(COUNTER, "mustela_model_rows_total", "Rows decided, by what became of them.", "outcome", models, |m| {
            m.rows.outcomes().into_iter().map(|(outcome, rows)| (outcome, rows as f64)).collect()
        }),
        plain(GAUGE, "mustela_model_rows_waiting", "Rows accepted and not decided, or waiting for their label.", models, |m| {
            Some(m.rows.waiting as f64)
        }),
        plain(
            GAUGE,
            "mustela_model_unlabelled_rows",
            "Rows seen whose label may yet come; they are among those waiting.",
            models,
            |m| Some(m.waiting_for_label_rows as f64),
        ),
        plain(COUNTER, "mustela_model_labels_total", "Late labels read.", models, |m| Some(m.labels as f64)),
        plain(COUNTER, "mustela_model_steps_total", "Training steps applied.", models, |m| Some(m.steps as f64)),
        plain(COUNTER, "mustela_model_drifts_total", "Times that the loss of new rows was found to have risen.", models, |m| {
            Some(m.drifts as f64)
        }),
        plain(GAUGE, "mustela_model_lag_rows", "Sequence numbers of the stream that are not decided.", models, |m| {
            Some(m.lag_rows as f64)
        }),
        plain(
            GAUGE,
            "mustela_model_lag_max_rows",
            "Lag beyond which posts to the stream are refused; absent under a policy that skips rows.",
            models,
            |m| m.lag_rows_max.map(|rows| rows as f64),
        ),
    ]
}

fn versions_and_scores(models: &[ModelFigures]) -> Vec<MetricFamily> {
    use MetricType::GAUGE;
    let windows = |m: &ModelFigures| [("whole", m.whole), ("sliding", m.sliding)];
    vec![
        labelled(
            GAUGE,
            "mustela_model_status",
            "1 for the status that the model has, 0 for the others.",
            "status",
            models,
            |m| m.statuses.iter().map(|&(status, has)| (status, f64::from(u8::from(has)))).collect(),
        ),
        plain(GAUGE, "mustela_model_version_sequence", "Every row up to this sequence is decided.", models, |m| {
            Some(m.sequence as f64)
        }),
        plain(
            GAUGE,
            "mustela_model_snapshot_age_seconds",
            "How long ago the state that readers see was the newest.",
            models,
            |m| Some(m.snapshot_age_seconds),
        ),
        plain(GAUGE, "mustela_model_epoch", "Rollbacks and rebases so far.", models, |m| Some(f64::from(m.epoch))),
        labelled(
            GAUGE,
            "mustela_model_online_accuracy_ratio",
            "Rows whose class was predicted before they were learned, 0 to 1.",
            "window",
            models,
            |m| windows(m).into_iter().filter_map(|(window, score)| Some((window, score.accuracy_ratio?))).collect(),
        ),
        labelled(GAUGE, "mustela_model_online_loss", "Mean loss of rows before they were learned.", "window", models, |m| {
            windows(m).into_iter().filter_map(|(window, score)| Some((window, score.loss?))).collect()
        }),
        plain(
            GAUGE,
            "mustela_model_drift_sequence",
            "The row at which the loss was last found to have risen; absent before.",
            models,
            |m| m.drift_sequence.map(|sequence| sequence as f64),
        ),
        plain(GAUGE, "mustela_model_learning_rate", "The learning rate.", models, |m| m.learning_rate),
    ]
}

fn checkpoints(models: &[ModelFigures]) -> Vec<MetricFamily> {
    use MetricType::GAUGE;
    vec![
        plain(
            GAUGE,
            "mustela_model_checkpoint_timestamp_seconds",
            "When the newest checkpoint became durable, since 1970.",
            models,
            |m| m.checkpoint.map(|checkpoint| checkpoint.timestamp_seconds),
        ),
        plain(GAUGE, "mustela_model_checkpoint_sequence", "Every row up to here is in the newest checkpoint.", models, |m| {
            m.checkpoint.map(|checkpoint| checkpoint.sequence as f64)
        }),
    ]
}

fn plans(models: &[ModelFigures]) -> Vec<MetricFamily> {
    use MetricType::GAUGE;
    let of_plan =
        |name: &str, help: &str, value: fn(&PlanFigures) -> f64| plain(GAUGE, name, help, models, |m| m.plan.as_ref().map(value));
    vec![
        of_plan("mustela_plan_stages", "Stages that the network is cut into.", |plan| plan.stages as f64),
        of_plan("mustela_plan_workers", "Workers that share the stages.", |plan| plan.workers as f64),
        of_plan("mustela_plan_in_flight_max_steps", "Steps that may be in flight.", |plan| plan.in_flight_steps_max as f64),
        of_plan(
            "mustela_plan_staleness_steps",
            "Steps whose updates a forward does not see yet: the mean over the stages, in a pipeline that is full.",
            |plan| plan.staleness_steps,
        ),
        plain(
            GAUGE,
            "mustela_model_in_flight_steps",
            "Steps that were given to the trainer, and whose end is not known yet.",
            models,
            |m| Some(m.in_flight_steps as f64),
        ),
    ]
}

fn memory(models: &[ModelFigures]) -> Vec<MetricFamily> {
    use MetricType::GAUGE;
    vec![
        labelled(GAUGE, "mustela_ledger_bytes", "Bytes that the model holds, by part.", "part", models, |m| {
            m.ledger_bytes.iter().map(|(part, bytes)| (part.name(), *bytes as f64)).collect()
        }),
        plain(
            GAUGE,
            "mustela_ledger_high_water_bytes",
            "The most bytes held at once since the last change of the budget.",
            models,
            |m| Some(m.ledger_high_water_bytes as f64),
        ),
        plain(GAUGE, "mustela_model_minimum_bytes", "The least that a plan of the model can hold.", models, |m| {
            Some(m.minimum_bytes as f64)
        }),
        plain(GAUGE, "mustela_planned_bytes", "What the present plan will hold at most.", models, |m| {
            Some(m.planned_bytes as f64)
        }),
        labelled(
            GAUGE,
            "mustela_planned_part_bytes",
            "What the present plan holds at the moment when all of it is most, by part; one part alone may hold more.",
            "part",
            models,
            |m| m.planned_part_bytes.iter().map(|(part, bytes)| (part.name(), *bytes as f64)).collect(),
        ),
        plain(GAUGE, "mustela_memory_budget_bytes", "The budget; absent where it is unconstrained.", models, |m| {
            m.memory_budget_bytes.map(|bytes| bytes as f64)
        }),
        plain(GAUGE, "mustela_memory_allotted_bytes", "The model's share of what all models may hold.", models, |m| {
            m.memory_allotted_bytes.map(|bytes| bytes as f64)
        }),
    ]
}
