//! What models are, as metrics: built anew for each scrape from what the models say of themselves.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::ledger::Part;

/// One model at one moment, given by its driver. Counters are the model's own, part of its durable state: those that end in
/// `_total` below must not fall while the process runs, or Prometheus takes the fall for a restart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelFigures {
    /// Its name.
    pub model: String,
    /// One word of a fixed set: how it is.
    pub status: &'static str,
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
    /// When the newest checkpoint became durable, in seconds since 1970; none before the first.
    pub checkpoint_timestamp_seconds: Option<f64>,
    /// Bytes held, by part.
    pub ledger_bytes: Vec<(Part, u64)>,
    /// The most bytes held at once since the last change of the budget.
    pub ledger_high_water_bytes: u64,
    /// What the plan will hold at most.
    pub planned_bytes: u64,
    /// What it will hold at most, by part.
    pub planned_part_bytes: Vec<(Part, u64)>,
    /// The budget; none where it is unconstrained.
    pub memory_budget_bytes: Option<u64>,
    /// Its share of what the process may hold; none where nobody has shared it yet.
    pub memory_allotted_bytes: Option<u64>,
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

/// The families of all models, those without a single value left out.
pub(super) fn families(models: &[ModelFigures]) -> Vec<MetricFamily> {
    let all = [counters(models), versions_and_scores(models), memory(models)];
    all.into_iter().flatten().filter(|family| !family.get_metric().is_empty()).collect()
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
    ]
}

fn versions_and_scores(models: &[ModelFigures]) -> Vec<MetricFamily> {
    use MetricType::GAUGE;
    let windows = |m: &ModelFigures| [("whole", m.whole), ("sliding", m.sliding)];
    vec![
        labelled(GAUGE, "mustela_model_status", "1 for the status that the model has.", "status", models, |m| {
            vec![(m.status, 1.0)]
        }),
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
        plain(
            GAUGE,
            "mustela_model_checkpoint_timestamp_seconds",
            "When the newest checkpoint became durable, since 1970.",
            models,
            |m| m.checkpoint_timestamp_seconds,
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

/// A family with one value a model, or none.
fn plain(
    kind: MetricType,
    name: &str,
    help: &str,
    models: &[ModelFigures],
    value: impl Fn(&ModelFigures) -> Option<f64>,
) -> MetricFamily {
    let metrics = models.iter().filter_map(|m| Some(metric(kind, vec![pair("model", &m.model)], value(m)?)));
    family(kind, name, help, metrics.collect())
}

/// A family with a second label.
fn labelled(
    kind: MetricType,
    name: &str,
    help: &str,
    label: &str,
    models: &[ModelFigures],
    values: impl Fn(&ModelFigures) -> Vec<(&'static str, f64)>,
) -> MetricFamily {
    let metrics = models.iter().flat_map(|m| {
        let pairs = values(m).into_iter();
        pairs.map(|(word, value)| metric(kind, vec![pair("model", &m.model), pair(label, word)], value)).collect::<Vec<_>>()
    });
    family(kind, name, help, metrics.collect())
}

fn family(kind: MetricType, name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn metric(kind: MetricType, labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut metric = Metric::from_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
