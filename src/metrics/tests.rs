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
        status: "running",
        accepted_rows: rows.total(),
        rows,
        waiting_for_label_rows: 40,
        labels: 7,
        epoch: 2,
        sequence: 900,
        snapshot_age_seconds: 0.02,
        lag_rows: 100,
        steps: 15,
        whole: ScoreFigures { accuracy_ratio: Some(0.75), loss: Some(0.5) },
        sliding: ScoreFigures { accuracy_ratio: Some(0.8), loss: Some(0.4) },
        drifts: 2,
        drift_sequence: Some(640),
        learning_rate: Some(0.05),
        checkpoint_timestamp_seconds: Some(1.75e9),
        ledger_bytes: vec![(Part::Weights, 4096), (Part::Gradients, 1024)],
        ledger_high_water_bytes: 8192,
        planned_bytes: 9000,
        planned_part_bytes: vec![(Part::Weights, 400)],
        memory_budget_bytes: Some(10_000),
        memory_allotted_bytes: Some(11_000),
    }
}

/// Metrics in which every family has a series.
fn used() -> Metrics {
    let metrics = Metrics::new().unwrap();
    metrics.http_answered("/v1/streams/{stream}/batches", "POST", 202, 0.003);
    for stream in ["clicks", "pixels"] {
        metrics.stream_rows_total.with_label_values(&[stream]).inc_by(64);
        metrics.stream_records_total.with_label_values(&[stream]).inc();
        metrics.stream_refused_total.with_label_values(&[stream, "invalid_rows"]).inc();
        metrics.stream_refused_total.with_label_values(&[stream, "too_many_requests"]).inc();
    }
    for model in ["a", "b"] {
        metrics.predict_rows_total.with_label_values(&[model]).inc();
        metrics.predict_seconds.with_label_values(&[model]).observe(0.001);
        metrics.model_step_seconds.with_label_values(&[model]).observe(0.001);
        metrics.model_checkpoint_seconds.with_label_values(&[model]).observe(0.1);
    }
    metrics
}

/// Series and values of a rendering.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn names_keep_the_conventions() {
    let text = used().render(&[figures("a")]).unwrap();
    let mut seen = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(name.starts_with("mustela_") && !name.starts_with("mustela_mustela"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert!(!seen.contains(&name), "{name} twice");
        let unit = name.trim_end_matches("_total").rsplit('_').next().unwrap();
        let known =
            ["seconds", "bytes", "rows", "ratio", "entries", "requests", "records", "refused", "steps", "drifts", "labels"];
        let unitless = ["info", "waiting", "sequence", "epoch", "loss", "rate", "status"];
        assert!(known.contains(&unit) || unitless.contains(&unit), "{name}");
        seen.push(name);
    }
    assert_eq!(seen.len(), 41);
}

#[test]
fn rows_balance_in_one_rendering() {
    let all = series(&used().render(&[figures("a"), figures("b")]).unwrap());
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
    assert_eq!(all["mustela_model_status{model=\"b\",status=\"running\"}"], 1.0);
}

#[test]
fn what_a_model_lacks_is_absent_and_not_zero() {
    let bare = ModelFigures { model: "bare".to_owned(), status: "starting", ..Default::default() };
    let text = Metrics::new().unwrap().render(&[bare]).unwrap();
    for name in [
        "online_accuracy_ratio",
        "online_loss",
        "drift_sequence",
        "learning_rate",
        "checkpoint_timestamp",
        "memory_budget",
        "memory_allotted",
    ] {
        assert!(!text.contains(name), "{name}");
    }
    assert!(Metrics::new().unwrap().render(&[]).unwrap().contains("mustela_build_info{version="));
}

#[test]
fn what_is_deleted_is_gone_and_the_rest_stays() {
    let metrics = used();
    metrics.remove_stream("clicks");
    metrics.remove_model("a");
    metrics.remove_model("never there");
    let text = metrics.render(&[figures("b")]).unwrap();
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
    let all = series(&metrics.render(&[]).unwrap());
    assert_eq!(all["mustela_http_requests_total{method=\"GET\",route=\"/v2\",status=\"200\"}"], 1.0);
    assert_eq!(all["mustela_http_requests_total{method=\"other\",route=\"/v2\",status=\"405\"}"], 1.0);
    assert_eq!(all["mustela_http_request_seconds_bucket{route=\"/v2\",le=\"0.0001\"}"], 1.0);
    assert_eq!(all["mustela_http_request_seconds_bucket{route=\"/v2\",le=\"13.1072\"}"], 1.0);
    assert_eq!(all["mustela_http_request_seconds_count{route=\"/v2\"}"], 2.0);
}

#[test]
fn services_in_one_process_count_apart() {
    let (one, other) = (used(), Metrics::new().unwrap());
    assert!(one.render(&[]).unwrap().contains("clicks") && !other.render(&[]).unwrap().contains("clicks"));
}

#[test]
fn names_cannot_break_the_format() {
    let text = Metrics::new().unwrap().render(&[figures("a\"b\\c\nd")]).unwrap();
    assert!(text.contains(r#"model="a\"b\\c\nd""#), "{text}");
}
