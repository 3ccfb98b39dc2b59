//! Names keep the conventions, figures balance, and what is deleted is gone.

use std::collections::BTreeMap;

use super::*;
use crate::ledger::Part;

/// A model in which every figure is set.
fn figures(model: &str) -> ModelFigures {
    let rows =
        RowFigures { learned: 700, learned_in_part: 60, skipped: 50, held_out: 40, quarantined: 30, expired: 20, waiting: 100 };
    ModelFigures {
        model: model.to_owned(),
        stream: "pixels".to_owned(),
        kind: "network".to_owned(),
        policy: "backpressure",
        statuses: vec![("failed", false), ("learning", true)],
        accepted_rows: rows.total(),
        rows,
        waiting_for_label_rows: 40,
        labels: 7,
        epoch: 2,
        sequence: 900,
        snapshot_age_seconds: 0.02,
        lag_rows: 100,
        lag_rows_max: Some(4096),
        steps: 15,
        whole: ScoreFigures { accuracy_ratio: Some(0.75), loss: Some(0.5) },
        sliding: ScoreFigures { accuracy_ratio: Some(0.8), loss: Some(0.4) },
        drifts: 2,
        drift_sequence: Some(640),
        learning_rate: Some(0.05),
        checkpoint: Some(CheckpointFigures { timestamp_seconds: 1.75e9, sequence: 800 }),
        plan: Some(PlanFigures { stages: 3, workers: 2, in_flight_steps_max: 6, staleness_steps: 3.0 }),
        in_flight_steps: 4,
        ledger_bytes: vec![(Part::Weights, 4096), (Part::Gradients, 1024)],
        ledger_high_water_bytes: 8192,
        minimum_bytes: 5000,
        planned_bytes: 9000,
        planned_part_bytes: vec![(Part::Weights, 400)],
        memory_budget_bytes: Some(10_000),
        memory_allotted_bytes: Some(11_000),
    }
}

/// A scrape of a service with these models, and two streams.
fn scrape(models: Vec<ModelFigures>) -> Figures {
    let service = ServiceFigures { log_stored_bytes: 100, log_max_bytes: 1000, queued_queries: 3, ..Default::default() };
    let stream = |name: &str| StreamFigures { stream: name.to_owned(), first_sequence: 65, sequence: 128 };
    Figures { service, streams: vec![stream("clicks"), stream("pixels")], models }
}

/// Metrics in which every family has a series.
fn used() -> Metrics {
    let metrics = Metrics::new().unwrap();
    metrics.http_answered("/v1/streams/{stream}/batches", "POST", 202, 0.003);
    metrics.http_connections("doors");
    for stream in ["clicks", "pixels"] {
        metrics.stream_rows_total.with_label_values(&[stream]).inc_by(64);
        metrics.stream_records_total.with_label_values(&[stream]).inc();
        metrics.stream_labels_total.with_label_values(&[stream, "matched"]).inc();
        metrics.stream_refused_total.with_label_values(&[stream, "invalid_rows"]).inc();
        metrics.stream_refused_total.with_label_values(&[stream, "too_many_requests"]).inc();
    }
    for model in ["a", "b"] {
        metrics.predict_rows_total.with_label_values(&[model]).inc();
        metrics.guard_rows_total.with_label_values(&[model, "flagged"]).inc();
        metrics.predict_seconds.with_label_values(&[model]).observe(0.001);
        metrics.model_step_seconds.with_label_values(&[model]).observe(0.001);
        metrics.model_checkpoint_seconds.with_label_values(&[model]).observe(0.1);
        metrics.model_checkpoint_failures_total.with_label_values(&[model]).inc();
        metrics.model_decisions_total.with_label_values(&[model, "plan"]).inc();
    }
    metrics
}

/// Series and values of a rendering.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// What the last word of a name may be, beside `total`: a unit, or a thing that is counted.
const UNITS: [&str; 17] = [
    "seconds",
    "bytes",
    "ratio",
    "rows",
    "labels",
    "records",
    "entries",
    "requests",
    "refused",
    "steps",
    "drifts",
    "decisions",
    "failures",
    "connections",
    "queries",
    "stages",
    "workers",
];
/// Names of what has no unit.
const UNITLESS: [&str; 9] = [
    "mustela_build_info",
    "mustela_model_info",
    "mustela_model_status",
    "mustela_model_epoch",
    "mustela_model_rows_waiting",
    "mustela_model_online_loss",
    "mustela_model_learning_rate",
    "process_open_fds",
    "process_max_fds",
];

#[test]
fn names_keep_the_conventions() {
    let text = used().render(&scrape(vec![figures("a")])).unwrap();
    let mut seen = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let ours = name.starts_with("mustela_") && !name.starts_with("mustela_mustela");
        assert!(ours || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| help.len() > 10 && help.ends_with('.')), "{name}: {help:?}");
        assert!(!seen.contains(&name), "{name} twice");
        let unit = name.trim_end_matches("_total").rsplit('_').next().unwrap();
        assert!(UNITS.contains(&unit) || UNITLESS.contains(&name) || name.ends_with("_sequence"), "{name}");
        seen.push(name);
    }
    assert_eq!(seen.len(), 68, "{seen:?}");
}

#[test]
fn rows_balance_in_one_rendering() {
    let all = series(&used().render(&scrape(vec![figures("a"), figures("b")])).unwrap());
    for model in ["a", "b"] {
        let own = format!("{{model=\"{model}\"");
        let sum = |name: &str| -> f64 {
            all.iter().filter(|(series, _)| series.starts_with(&format!("{name}{own}"))).map(|(_, value)| value).sum()
        };
        assert_eq!(sum("mustela_model_accepted_rows_total"), 1000.0);
        assert_eq!(sum("mustela_model_rows_total") + sum("mustela_model_rows_waiting"), 1000.0);
    }
    assert_eq!(all["mustela_model_rows_total{model=\"a\",outcome=\"learned_in_part\"}"], 60.0);
    assert_eq!(all["mustela_ledger_bytes{model=\"a\",part=\"weights\"}"], 4096.0);
    assert_eq!(all["mustela_model_online_loss{model=\"b\",window=\"sliding\"}"], 0.4);
    assert_eq!(all["mustela_model_drifts_total{model=\"a\"}"], 2.0);
    assert_eq!(all["mustela_model_status{model=\"b\",status=\"learning\"}"], 1.0);
    assert_eq!(all["mustela_model_status{model=\"b\",status=\"failed\"}"], 0.0);
    assert_eq!(all["mustela_model_info{model=\"a\",stream=\"pixels\",kind=\"network\",policy=\"backpressure\"}"], 1.0);
    assert_eq!(all["mustela_stream_first_sequence{stream=\"clicks\"}"], 65.0);
    assert_eq!(all["mustela_predict_queued_queries"], 3.0);
}

#[test]
fn what_a_model_lacks_is_absent_and_not_zero() {
    let bare = ModelFigures { model: "bare".to_owned(), ..Default::default() };
    let text = Metrics::new().unwrap().render(&Figures { models: vec![bare], ..Default::default() }).unwrap();
    for name in [
        "online_accuracy_ratio",
        "online_loss",
        "drift_sequence",
        "learning_rate",
        "checkpoint_timestamp",
        "checkpoint_sequence",
        "plan_stages",
        "lag_max_rows",
        "memory_budget",
        "memory_allotted",
    ] {
        assert!(!text.contains(name), "{name}");
    }
    assert!(Metrics::new().unwrap().render(&Figures::default()).unwrap().contains("mustela_build_info{version="));
}

#[test]
fn what_is_deleted_is_gone_and_the_rest_stays() {
    let metrics = used();
    metrics.remove_stream("clicks");
    metrics.remove_model("a");
    metrics.remove_model("never there");
    let text = metrics.render(&Figures { models: vec![figures("b")], ..Default::default() }).unwrap();
    assert!(!text.contains("\"clicks\"") && !text.contains("model=\"a\""), "{text}");
    let all = series(&text);
    assert_eq!(all["mustela_stream_rows_total{stream=\"pixels\"}"], 64.0);
    assert_eq!(all["mustela_stream_refused_total{reason=\"too_many_requests\",stream=\"pixels\"}"], 1.0);
    assert_eq!(all["mustela_predict_seconds_count{model=\"b\"}"], 1.0);
}

#[test]
fn requests_are_counted_by_route_with_bounded_labels() {
    let metrics = Metrics::new().unwrap();
    metrics.http_answered("/v2", "GET", 200, 0.0001);
    metrics.http_answered("/v2", "BREW", 405, 20.0);
    let all = series(&metrics.render(&Figures::default()).unwrap());
    assert_eq!(all["mustela_http_requests_total{method=\"GET\",route=\"/v2\",status=\"200\"}"], 1.0);
    assert_eq!(all["mustela_http_requests_total{method=\"other\",route=\"/v2\",status=\"405\"}"], 1.0);
    assert_eq!(all["mustela_http_request_seconds_bucket{route=\"/v2\",le=\"0.0001\"}"], 1.0);
    assert_eq!(all["mustela_http_request_seconds_bucket{route=\"/v2\",le=\"13.1072\"}"], 1.0);
    assert_eq!(all["mustela_http_request_seconds_count{route=\"/v2\"}"], 2.0);
}

#[test]
fn what_is_open_is_counted_until_it_is_dropped() {
    let metrics = Metrics::new().unwrap();
    let told = |name: &str| series(&metrics.render(&Figures::default()).unwrap())[name];
    let connections = metrics.http_connections("doors");
    let open = [Counted::of(&connections), Counted::of(&connections)];
    let request = metrics.http_in_flight();
    assert_eq!(told("mustela_http_connections{listener=\"doors\"}"), 2.0);
    assert_eq!(told("mustela_http_in_flight_requests"), 1.0);
    drop((open, request));
    assert_eq!(told("mustela_http_connections{listener=\"doors\"}"), 0.0);
    assert_eq!(told("mustela_http_in_flight_requests"), 0.0);
}

#[test]
fn services_in_one_process_count_apart() {
    let (one, other) = (used(), Metrics::new().unwrap());
    assert!(
        one.render(&Figures::default()).unwrap().contains("clicks")
            && !other.render(&Figures::default()).unwrap().contains("clicks")
    );
}

#[test]
fn names_cannot_break_the_format() {
    let text = Metrics::new().unwrap().render(&scrape(vec![figures("a\"b\\c\nd")])).unwrap();
    assert!(text.contains(r#"model="a\"b\\c\nd""#), "{text}");
}
