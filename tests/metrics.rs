//! Promise 8: at any scrape the rows of each model balance; and every figure that `/metrics` and the model's own view have is the same
//! in both.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
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

    running.client.settled("m").await;
    let text = running.metrics().await;
    assert_eq!(sample(&text, "mustela_model_accepted_rows_total{model=\"m\"}"), 3000.0);
    assert_eq!(sample(&text, "mustela_model_version_sequence{model=\"m\"}"), 3000.0);
    assert_eq!(sample(&text, "mustela_stream_rows_total{stream=\"points\"}"), 3000.0);
    assert_eq!(sample(&text, "mustela_stream_sequence{stream=\"points\"}"), 3000.0);

    running.client.delete("/v1/models/m").await.expect(204);
    let text = running.metrics().await;
    assert!(!text.contains("model=\"m\""), "a deleted model leaves no series");
    running.stop().await;
}

/// Where the view of a model has a figure, and the series that has it too. What the view has as null is absent there.
const BOTH: [(&str, &str); 32] = [
    ("/rows/accepted", "mustela_model_accepted_rows_total"),
    ("/rows/learned", "mustela_model_rows_total outcome=learned"),
    ("/rows/learned_in_part", "mustela_model_rows_total outcome=learned_in_part"),
    ("/rows/skipped", "mustela_model_rows_total outcome=skipped"),
    ("/rows/held_out", "mustela_model_rows_total outcome=held_out"),
    ("/rows/quarantined", "mustela_model_rows_total outcome=quarantined"),
    ("/rows/expired", "mustela_model_rows_total outcome=expired"),
    ("/rows/waiting", "mustela_model_rows_waiting"),
    ("/rows/waiting_for_label", "mustela_model_unlabelled_rows"),
    ("/labels", "mustela_model_labels_total"),
    ("/lag_rows", "mustela_model_lag_rows"),
    ("/steps", "mustela_model_steps_total"),
    ("/steps_in_flight", "mustela_model_in_flight_steps"),
    ("/online/accuracy", "mustela_model_online_accuracy_ratio window=whole"),
    ("/online/loss", "mustela_model_online_loss window=whole"),
    ("/sliding/accuracy", "mustela_model_online_accuracy_ratio window=sliding"),
    ("/sliding/loss", "mustela_model_online_loss window=sliding"),
    ("/drift/detected", "mustela_model_drifts_total"),
    ("/drift/last_sequence", "mustela_model_drift_sequence"),
    ("/learning_rate", "mustela_model_learning_rate"),
    ("/version/epoch", "mustela_model_epoch"),
    ("/version/sequence", "mustela_model_version_sequence"),
    ("/checkpoint/unix_seconds", "mustela_model_checkpoint_timestamp_seconds"),
    ("/checkpoint/version/sequence", "mustela_model_checkpoint_sequence"),
    ("/memory/budget_bytes", "mustela_memory_budget_bytes"),
    ("/memory/allotted_bytes", "mustela_memory_allotted_bytes"),
    ("/memory/minimum_bytes", "mustela_model_minimum_bytes"),
    ("/memory/planned_bytes", "mustela_planned_bytes"),
    ("/memory/high_water_bytes", "mustela_ledger_high_water_bytes"),
    ("/spec/overload/lag_rows_max", "mustela_model_lag_max_rows"),
    ("/plan/workers", "mustela_plan_workers"),
    ("/plan/stage_count", "mustela_plan_stages"),
];

/// Numbers of the view that are in no series, and series that have nothing in the view, as both begin: how long something took or
/// is ago, which is never the same twice, what can be told from others, and what is of the whole process.
const OF_ONE: [&str; 19] = [
    "/failure",
    "/refusing",
    "/created",
    "/spec/",
    "/rows_per_second",
    "/online/rows",
    "/sliding/rows",
    "/drift/mean_loss",
    "/memory/used_bytes",
    "/memory/process/",
    "/checkpoint/seconds",
    "/checkpoint/version/epoch",
    "/checkpoint/oldest_kept/",
    "/published_version/",
    "/plan/",
    "mustela_model_snapshot_age_seconds",
    "mustela_model_checkpoint_failures_total",
    "mustela_model_decisions_total",
    "mustela_p",
];

/// Every series of a model, but for histograms, by its name and its other labels.
fn series_of_model(text: &str, model: &str) -> BTreeMap<String, f64> {
    let own = format!("model=\"{model}\"");
    let of_line = |line: &str| {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let others: Vec<String> = labels.split(',').filter(|label| *label != own).map(|label| label.replace('"', "")).collect();
        let is_his = labels.split(',').any(|label| label == own) && !name.contains("_seconds_");
        is_his.then(|| ([&[name.to_owned()], &others[..]].concat().join(" "), value.parse().unwrap()))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(of_line).collect()
}

/// Every number of a document, or null where one may be, by where it stands.
fn numbers_of(at: &str, tree: &Value, into: &mut BTreeMap<String, Option<f64>>) {
    match tree {
        Value::Object(members) => members.iter().for_each(|(name, value)| numbers_of(&format!("{at}/{name}"), value, into)),
        Value::Number(number) => drop(into.insert(at.to_owned(), number.as_f64())),
        Value::Null => drop(into.insert(at.to_owned(), None)),
        // A version, as epoch and sequence.
        Value::String(text) if at.ends_with("version") || at.ends_with("oldest_kept") => {
            let (epoch, sequence) = text.split_once('.').unwrap();
            into.insert(format!("{at}/epoch"), epoch.parse().ok());
            into.insert(format!("{at}/sequence"), sequence.parse().ok());
        }
        Value::Array(_) | Value::String(_) | Value::Bool(_) => {}
    }
}

/// The model's view, with its plan, and what was scraped while neither changed.
async fn at_one_moment(running: &Running, model: &str) -> (Value, String) {
    let look = async || {
        let mut view = running.client.caught_up(model).await;
        let plan = running.client.get(&format!("/v1/models/{model}/plan")).await.expect(200);
        let plan = &plan["plan"];
        view["plan"] = json!({ "workers": plan["workers"], "stage_count": plan["stages"].as_array().unwrap().len() });
        view
    };
    let still = |mut view: Value| {
        (view["rows_per_second"], view["memory"]["process"]) = (Value::Null, Value::Null);
        view
    };
    loop {
        let before = look().await;
        let text = running.metrics().await;
        if still(look().await) == still(before.clone()) {
            return (before, text);
        }
    }
}

/// Rows of which each fifth comes without its label, and labels for half of those.
async fn post_late(running: &Running, batch: usize) {
    let mut rows = points(batch * 50, 50);
    let mut labels = Vec::new();
    for (number, row) in rows["rows"].as_array_mut().unwrap().iter_mut().enumerate() {
        let row = row.as_object_mut().unwrap();
        let id = format!("{batch}-{number}");
        if number % 5 == 0 {
            let label = row.remove("label").unwrap();
            if number % 10 == 0 {
                labels.push(json!({ "id": id, "label": label }));
            }
        }
        row.insert("id".into(), id.into());
    }
    running.client.post_json("/v1/streams/late/batches", &rows).await.expect(202);
    running.client.post_json("/v1/streams/late/labels", &json!({ "rows": labels })).await.expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_figure_of_a_model_is_the_same_in_its_view_and_in_the_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[("checkpoint.interval_rows", "500")]).await;
    let mut schema = points_schema();
    (schema["row_id"], schema["late_labels"]) = (json!("id"), json!({ "window_rows": 200 }));
    running.client.put("/v1/streams/late", &schema).await.expect(201);
    let mut spec = points_model("late");
    spec["overload"] = json!({ "policy": "backpressure", "lag_rows_max": 5000 });
    running.client.put("/v1/models/m", &spec).await.expect(201);
    spec["memory_budget"] = json!("8MiB");
    running.client.put("/v1/models/budgeted", &spec).await.expect(201);
    for batch in 0..40 {
        post_late(&running, batch).await;
    }
    for model in ["m", "budgeted"] {
        let (view, text) = at_one_moment(&running, model).await;
        let (series, mut numbers) = (series_of_model(&text, model), BTreeMap::new());
        numbers_of("", &view, &mut numbers);
        let parts = view["memory"]["parts"].as_object().unwrap();
        let parts = parts.keys().flat_map(|part| {
            [("used_bytes", "ledger_bytes"), ("planned_bytes", "planned_part_bytes")]
                .map(|(member, name)| (format!("/memory/parts/{part}/{member}"), format!("mustela_{name} part={part}")))
        });
        let both = BOTH.into_iter().map(|(at, name)| (at.to_owned(), name.to_owned())).chain(parts);
        let mut of_both = Vec::new();
        for (at, name) in both {
            let (here, there) = (numbers[&at], series.get(&name).copied());
            assert_eq!(here, there, "{at} and {name} of {model}");
            of_both.extend([at, name]);
        }
        for one in numbers.keys().chain(series.keys()) {
            let excused = OF_ONE.iter().any(|begin| one.starts_with(begin)) || one.ends_with("/high_water_bytes");
            let words = one.starts_with("mustela_model_status") || one.starts_with("mustela_model_info");
            assert!(of_both.contains(one) || excused || words, "{one} of {model} is in no table");
        }
        for (name, value) in series.iter().filter(|(name, _)| name.starts_with("mustela_model_status")) {
            assert_eq!(*value == 1.0, name.ends_with(&format!("={}", view["status"].as_str().unwrap())), "{name}");
        }
        assert_eq!(series["mustela_model_info stream=late kind=network policy=backpressure"], 1.0);
        // There is something to compare.
        assert!(view["rows"]["waiting_for_label"].as_u64() > Some(0) && view["labels"].as_u64() > Some(0), "{view}");
        assert!(view["rows"]["expired"].as_u64() > Some(0) && view["checkpoint"]["unix_seconds"].as_u64() > Some(0), "{view}");
        let used: u64 = view["memory"]["used_bytes"].as_u64().unwrap();
        let held: f64 = series.iter().filter(|(name, _)| name.starts_with("mustela_ledger_bytes")).map(|(_, bytes)| bytes).sum();
        assert_eq!(used as f64, held);
    }
    running.stop().await;
}
