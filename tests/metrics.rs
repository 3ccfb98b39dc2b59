//! Promise 8: at any scrape the rows of each model balance; and the figures of `/metrics` are those of the model's own view.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use support::{Running, points, points_model, points_schema};

/// The value of one sample.
fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_balance_at_any_scrape() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = running.client.clone();
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let posting = tokio::spawn(async move {
        for batch in 0..60 {
            client.post_json("/v1/streams/points/batches", &points(batch * 50, 50)).await.expect(202);
        }
    });
    let outcomes = ["learned", "learned_in_part", "skipped", "held_out", "quarantined", "expired"];
    let mut accepted = 0.0;
    while !posting.is_finished() {
        let text = running.metrics().await;
        let decided: f64 = outcomes
            .iter()
            .map(|outcome| sample(&text, &format!("mustela_model_rows_total{{model=\"m\",outcome=\"{outcome}\"}}")))
            .sum();
        let waiting = sample(&text, "mustela_model_rows_waiting{model=\"m\"}");
        let now = sample(&text, "mustela_model_accepted_rows_total{model=\"m\"}");
        assert!((decided + waiting - now).abs() < 0.5, "{decided} decided, {waiting} waiting, {now} accepted");
        assert!(now >= accepted);
        accepted = now;
    }
    posting.await.unwrap();

    let view = running.client.settled("m").await;
    let text = running.metrics().await;
    let of_model = |name: &str| sample(&text, &format!("mustela_{name}{{model=\"m\"}}"));
    assert_eq!(of_model("model_accepted_rows_total"), 3000.0);
    assert_eq!(of_model("model_version_sequence"), 3000.0);
    assert_eq!(of_model("model_steps_total"), view["steps"].as_f64().unwrap());
    assert_eq!(sample(&text, "mustela_stream_rows_total{stream=\"points\"}"), 3000.0);
    let accuracy = sample(&text, "mustela_model_online_accuracy_ratio{model=\"m\",window=\"sliding\"}");
    assert!((accuracy - view["sliding"]["accuracy"].as_f64().unwrap()).abs() < 1e-9);
    let weights = sample(&text, "mustela_ledger_bytes{model=\"m\",part=\"weights\"}");
    assert_eq!(weights, view["memory"]["parts"]["weights"]["used_bytes"].as_f64().unwrap());
    let planned = sample(&text, "mustela_planned_part_bytes{model=\"m\",part=\"weights\"}");
    assert_eq!(planned, view["memory"]["parts"]["weights"]["planned_bytes"].as_f64().unwrap());

    running.client.delete("/v1/models/m").await.expect(204);
    let text = running.metrics().await;
    assert!(!text.contains("model=\"m\""), "a deleted model leaves no series");
    running.stop().await;
}
