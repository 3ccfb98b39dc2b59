//! Detectors of live networks over HTTP: what they adopt and when, what a kill leaves of it, and which copies of weights are kept.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::bars::{asked, examples, learn, network, spec, teach, version_of_m};
use support::{Client, IN_ORDER, Process, Running, points_model, points_schema, write_new};

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_adopted_by_a_decision_and_learned_anew() {
    let folder = tempfile::tempdir().unwrap();
    let service = Running::start(folder.path(), &[]).await;
    let client = &service.client;
    network(client).await;
    what_cannot_be_watched(client).await;

    let view = client.put("/v1/detectors/d", &spec()).await.expect(201);
    assert_eq!((&view["settings"]["watches"], &view["adopted"]["version"]), (&json!("m"), &version_of_m(client).await));
    assert_eq!(view["settings"]["layers"].as_array().unwrap().len(), 1, "the last hidden layer: {view}");
    let taught = teach(client, 0..90).await;
    assert_eq!(taught["examples"], json!({ "benign": 30, "adversarial": 30, "held_out": 30 }));
    let sent = asked(&[(500, false), (501, true)]);
    let answer = client.post_json("/v1/detectors/d/detect", &sent).await.expect(200);
    assert_eq!((&answer["results"][0]["flagged"], &answer["results"][1]["flagged"]), (&json!(false), &json!(true)), "{answer}");

    learn(client, 64..128).await;
    assert_eq!(
        client.put("/v1/detectors/d", &spec()).await.expect(200)["direction"],
        taught["direction"],
        "it adopts by itself once"
    );
    let adopted = client.post("/v1/detectors/d/adopt", "application/json", "").await.expect(200);
    assert_eq!(adopted["adopted"]["version"], version_of_m(client).await);
    assert_ne!(adopted["adopted"]["weights"], taught["adopted"]["weights"]);
    assert_ne!(adopted["direction"]["hash"], taught["direction"]["hash"], "another network, another direction");
    assert_eq!(adopted["examples"], taught["examples"], "all rows were kept, and are learned once more");
    let again = client.post("/v1/detectors/d/adopt", "application/json", "").await.expect(200);
    assert_eq!(again["direction"], adopted["direction"], "it looks through the newest version already");
    let answer = client.post_json("/v1/detectors/d/detect", &sent).await.expect(200);
    assert_eq!((&answer["results"][0]["flagged"], &answer["results"][1]["flagged"]), (&json!(false), &json!(true)), "{answer}");
    let metrics = service.metrics().await;
    assert!(metrics.contains("mustela_model_decisions_total{decision=\"setting\",model=\"d\"} 1"), "{metrics}");

    one_that_has_adopted_nothing(client).await;
    what_becomes_of_it_without_its_network(client, &spec()).await;
    service.stop().await;
    let service = Running::start(folder.path(), &[]).await;
    let view = service.client.get("/v1/detectors/d").await.expect(200);
    assert_eq!(view["direction"]["hash"], adopted["direction"]["hash"]);
    service.client.delete("/v1/detectors/d").await.expect(204);
    assert_eq!(std::fs::read_dir(folder.path().join("blobs")).unwrap().count(), 0, "its copies go with it");
    service.stop().await;
}

async fn what_cannot_be_watched(client: &Client) {
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/points", &points_model("points")).await.expect(201);
    for (change, code, of) in [
        (json!({ "watches": "nobody" }), "invalid_detector", "nobody"),
        (json!({ "watches": "points" }), "invalid_detector", "reads no pictures"),
        (json!({ "watches": "m", "encoder": "squeezenet1.1" }), "invalid_detector", "encoder or watches"),
        (json!({ "watches": { "model": "m" } }), "invalid_detector", "encoder or watches"),
        (json!({ "watches": "m", "layers": ["99.relu"] }), "invalid_model", "it has 0.conv2d"),
        (json!({ "watches": "m", "layers": [] }), "invalid_model", "one or more"),
        (json!({ "watches": "m", "blocks": ["block5"] }), "invalid_model", "`layers`"),
        (json!({ "watches": "m", "kept_rows": 0 }), "invalid_model", "kept_rows is 0"),
        (json!({ "watches": "m", "stream": "points" }), "invalid_model", "reads pictures of side 12"),
    ] {
        let refused = client.put("/v1/detectors/none", &change).await.expect_problem(422, code);
        assert!(refused["detail"].as_str().unwrap().contains(of), "{refused}");
    }
    let streams = client.get("/v1/streams").await.expect(200);
    assert!(streams["streams"].as_array().unwrap().iter().all(|stream| stream["name"] != "none"), "{streams}");
}

/// As a model it is told nothing beside its spec: what it is to adopt is said later.
async fn one_that_has_adopted_nothing(client: &Client) {
    let mut spec = client.get("/v1/detectors/d").await.expect(200)["model"]["spec"].clone();
    spec["stream"] = json!("d");
    client.put("/v1/models/blind", &spec).await.expect(201);
    let view = client.caught_up("blind").await;
    assert_eq!(view["rows"]["learned"], 90, "they wait for the version that they will be learned with");
    let view = client.get("/v1/detectors/blind").await.expect(200);
    assert_eq!((&view["adopted"], &view["threshold"], &view["examples"]["benign"]), (&Value::Null, &Value::Null, &json!(0)));
    assert!(view["waits_for"].as_str().unwrap().contains("adopted no version"), "{view}");
    let view = client.post("/v1/detectors/blind/adopt", "application/json", "").await.expect(200);
    assert_eq!(view["direction"]["hash"], client.get("/v1/detectors/d").await.expect(200)["direction"]["hash"], "the same rows");
    client.delete("/v1/detectors/blind").await.expect(204);
}

async fn what_becomes_of_it_without_its_network(client: &Client, spec: &Value) {
    client
        .post_json("/v1/detectors/d/transfer", &json!({ "name": "e", "encoder": "squeezenet1.1" }))
        .await
        .expect_problem(422, "invalid_detector");
    client.delete("/v1/models/m").await.expect(204);
    client.post("/v1/detectors/d/adopt", "application/json", "").await.expect_problem(404, "not_found");
    client.put("/v1/detectors/d", spec).await.expect(200);
    client.post_json("/v1/detectors/d/detect", &asked(&[(7, false)])).await.expect(200);
    let other = json!({
        "kind": "network", "stream": "bars", "step_rows": 16, "network": { "architecture": "mlp", "hidden": [8] },
    });
    client.put("/v1/models/m", &other).await.expect(201);
    let refused = client.post("/v1/detectors/d/adopt", "application/json", "").await.expect_problem(409, "network_changed");
    assert!(refused["detail"].as_str().unwrap().contains("another network"), "{refused}");
}

/// The same decisions, rows and weights, with kills between them or without.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_changes_no_bit_of_what_was_adopted() {
    let mut ends = Vec::new();
    for kills in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        // Two services that measured other times may follow other plans, and so learn other weights.
        let settings = [("checkpoint.interval_rows", "20"), IN_ORDER];
        let mut process = Process::start(folder.path(), &settings);
        network(&process.client).await;
        process.client.put("/v1/detectors/d", &json!({ "watches": "m", "kept_rows": 20 })).await.expect(201);
        for part in 0..3 {
            teach(&process.client, part * 30..part * 30 + 30).await;
            if part == 1 {
                learn(&process.client, 64..96).await;
                process.client.post("/v1/detectors/d/adopt", "application/json", "").await.expect(200);
            }
            if kills {
                process.kill();
                process = Process::start(folder.path(), &settings);
            }
        }
        let view = process.client.detector_at("d", 90).await;
        ends.push(view["direction"].clone());
        assert_eq!(
            view["examples"],
            json!({ "benign": 20, "adversarial": 30, "held_out": 20 }),
            "the twenty of each class that were kept, and those that came later"
        );
        process.terminate();
        let verified = Command::new(env!("CARGO_BIN_EXE_mustela")).arg("verify").arg(folder.path()).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        if kills {
            std::fs::remove_dir_all(folder.path().join("blobs")).unwrap();
            let process = Process::start(folder.path(), &settings);
            let view = process.client.failed("d").await;
            assert!(view["failure"].as_str().unwrap().contains("the weights of version 0."), "{view}");
            process.client.post_json("/v1/models/m/predict", &asked(&[(1, false)])).await.expect(200);
        }
    }
    assert_eq!(ends[0], ends[1]);
}

async fn adopt(client: &Client, detector: &str) -> Value {
    client.post(&format!("/v1/detectors/{detector}/adopt"), "application/json", "").await.expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_version_is_adopted_before_the_first_row() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("checkpoint.interval_rows", "1000"), IN_ORDER];
    let process = Process::start(folder.path(), &settings);
    network(&process.client).await;
    process.client.put("/v1/detectors/d", &json!({ "watches": "m", "kept_rows": 20 })).await.expect(201);
    let first = teach(&process.client, 0..90).await;
    // The same rows were there before this one; it keeps fewer than there are, and learns them all.
    let late = json!({ "watches": "m", "kept_rows": 20, "stream": "d", "start": "earliest" });
    process.client.put("/v1/detectors/late", &late).await.expect(201);
    let late = process.client.detector_at("late", 90).await;
    assert_eq!((&late["examples"], &late["direction"]["hash"]), (&first["examples"], &first["direction"]["hash"]));
    assert_eq!(late["examples"], json!({ "benign": 30, "adversarial": 30, "held_out": 30 }));
    process.kill();
    let process = Process::start(folder.path(), &settings);
    let again = process.client.detector_at("late", 90).await;
    assert_eq!((&again["direction"], &again["adopted"]), (&late["direction"], &late["adopted"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn adoptions_at_once_are_decided_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[IN_ORDER]);
    let client = &process.client;
    network(client).await;
    client.put("/v1/detectors/d", &spec()).await.expect(201);
    teach(client, 0..90).await;
    learn(client, 64..96).await;
    let asked = (0..4).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            if number == 2 {
                learn(&client, 96..128).await;
            }
            let before = sequence(&version_of_m(&client).await);
            let adopted = adopt(&client, "d").await;
            assert!(sequence(&adopted["adopted"]["version"]) >= before, "{adopted} after {before}");
        })
    });
    for answer in asked.collect::<Vec<_>>() {
        answer.await.unwrap();
    }
    // It was asked for after all rows were learned, and nobody's older wish came behind it.
    let adopted = client.get("/v1/detectors/d").await.expect(200);
    assert_eq!(adopted["adopted"]["version"], version_of_m(client).await);
    process.kill();
    let process = Process::start(folder.path(), &[IN_ORDER]);
    assert_eq!(adopted_again(&process.client, &adopted).await["direction"]["hash"], adopted["direction"]["hash"]);
}

/// The number of rows in a version.
fn sequence(version: &Value) -> u64 {
    version.as_str().unwrap().strip_prefix("0.").unwrap().parse().unwrap()
}

/// The detector's view once it looks through this version: that may be a moment after the doors are open.
async fn adopted_again(client: &Client, before: &Value) -> Value {
    for _ in 0..5000 {
        let view = client.get("/v1/detectors/d").await.expect(200);
        if view["adopted"] == before["adopted"] {
            return view;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it does not come to {}", before["adopted"]);
}

fn blobs(folder: &Path, model: u32) -> Vec<String> {
    let blobs = std::fs::read_dir(folder.join("blobs").join(model.to_string())).unwrap();
    let mut names: Vec<String> = blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_weights_go_when_no_replay_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        [("checkpoint.interval_rows", "30"), ("checkpoint.interval_seconds", "1"), ("log.retain_bytes", "0"), IN_ORDER];
    let process = Process::start(folder.path(), &settings);
    let client = &process.client;
    network(client).await;
    let first = client.put("/v1/detectors/d", &json!({ "watches": "m", "kept_rows": 20 })).await.expect(201);
    teach(client, 0..30).await;
    // What a process left that was killed before its decision, or in the middle of the file.
    let unnamed = blake3_of("nobody's");
    for name in [unnamed.as_str(), "cut short.tmp"] {
        write_new(&folder.path().join("blobs/2").join(name), "nobody's");
    }
    learn(client, 64..96).await;
    let second = adopt(client, "d").await;
    assert!(blobs(folder.path(), 2).contains(&weights(&second)), "it is there as soon as it is adopted");
    for part in 1..6 {
        teach(client, part * 30..part * 30 + 30).await;
    }
    left(folder.path(), &[&second]).await;
    assert_ne!(weights(&first), weights(&second));
    // Nor when rows come no more, and nothing happens but that versions are adopted.
    let mut adopted = vec![second];
    let mut saved = saved_state(client).await;
    while saved["version"] != "0.180" {
        saved = saved_but(client, &saved).await;
    }
    for part in 3..6 {
        learn(client, part * 32..part * 32 + 32).await;
        let saved = saved_state(client).await;
        adopted.push(adopt(client, "d").await);
        saved_but(client, &saved).await;
        left(folder.path(), &adopted[adopted.len() - 2..].iter().collect::<Vec<_>>()).await;
    }
    let before = client.detector_at("d", 180).await;
    process.kill();
    let process = Process::start(folder.path(), &settings);
    let again = process.client.detector_at("d", 180).await;
    assert_eq!((&again["direction"], &again["adopted"]), (&before["direction"], &before["adopted"]));
    process.terminate();
    let verified = Command::new(env!("CARGO_BIN_EXE_mustela")).arg("verify").arg(folder.path()).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// What the newest checkpoint holds.
async fn saved_state(client: &Client) -> Value {
    client.get("/v1/models/d").await.expect(200)["checkpoint"].clone()
}

/// Waits for a checkpoint with something else than `before`, and gives what it holds.
async fn saved_but(client: &Client, before: &Value) -> Value {
    for _ in 0..1000 {
        let saved = saved_state(client).await;
        if saved["state_hash"] != before["state_hash"] {
            return saved;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no checkpoint came after {before}");
}

/// Waits until the copies of these versions are left, and no other.
async fn left(folder: &Path, views: &[&Value]) {
    let mut named: Vec<String> = views.iter().map(|view| weights(view)).collect();
    named.sort();
    let mut patience = 0..500;
    while blobs(folder, 2) != named && patience.next().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(blobs(folder, 2), named);
}

fn weights(view: &Value) -> String {
    view["adopted"]["weights"].as_str().unwrap().to_owned()
}

fn blake3_of(text: &str) -> String {
    mustela::model::blobs::name_of(text.as_bytes())
}

/// A network that is wide, so that what is kept takes a while to be looked at once more.
async fn slow_network(client: &Client) {
    let schema = json!({
        "fields": [{ "name": "picture", "type": "image", "side": 12 }],
        "target": { "name": "kind", "type": "classes", "classes": 2 },
    });
    client.put("/v1/streams/bars", &schema).await.expect(201);
    let network = json!({ "architecture": "mlp", "hidden": [2048, 2048] });
    let model = json!({ "kind": "network", "stream": "bars", "network": network, "step_rows": 16, "learning_rate": 0.001 });
    client.put("/v1/models/m", &model).await.expect(201);
    learn(client, 0..16).await;
}

/// Has it adopt a version, and comes back as soon as that is decided.
async fn begin_to_adopt(process: &Process, detector: &str) -> tokio::task::JoinHandle<support::Answer> {
    let (client, path) = (process.client.clone(), format!("/v1/detectors/{detector}/adopt"));
    let adopting = tokio::spawn(async move { client.post(&path, "application/json", "").await });
    let metrics = Client::new(process.metrics.trim_end_matches("/metrics"));
    let decided = format!("mustela_model_decisions_total{{decision=\"setting\",model=\"{detector}\"}} 1");
    while !metrics.get("/metrics").await.body.as_str().unwrap().contains(&decided) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!adopting.is_finished(), "this test needs an adoption that takes a while");
    adopting
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adoption_keeps_nobody_waiting_and_a_kill_within_it_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    // A process begins where the one before was: in front of the adoption.
    let settings = [("checkpoint.interval_rows", "1"), IN_ORDER];
    let mut process = Process::start(folder.path(), &settings);
    slow_network(&process.client).await;
    for name in ["d", "deleted"] {
        let made = json!({ "watches": "m", "kept_rows": 1024, "stream": "d", "step_rows": 16 });
        let mut made = if name == "d" { json!({ "watches": "m", "kept_rows": 1024 }) } else { made };
        made["direction"] = json!("mean_difference");
        process.client.put(&format!("/v1/detectors/{name}"), &made).await.expect(201);
    }
    for part in 0..10 {
        process.client.post_json("/v1/detectors/d/examples", &examples(part * 60..part * 60 + 60)).await.expect(202);
    }
    let first = process.client.detector_at("d", 600).await;
    process.client.detector_at("deleted", 600).await;
    learn(&process.client, 16..32).await;

    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    process.client.put("/v1/models/other", &points_model("points")).await.expect(201);
    process.client.put("/v1/memory-budget", &json!({ "budget": "1GiB" })).await.expect(200);
    let before = process.client.get("/v1/models/deleted").await.expect(200);

    let adopting = begin_to_adopt(&process, "deleted").await;
    process.client.post_json("/v1/detectors/deleted/detect", &asked(&[(7, false)])).await.expect(200);
    // What another model leaves is shared among the others, this one included.
    process.client.delete("/v1/models/other").await.expect(204);
    assert!(!adopting.is_finished(), "this test needs an adoption that takes a while");
    let view = process.client.get("/v1/models/deleted").await.expect(200);
    let share = |view: &Value| view["memory"]["allotted_bytes"].as_u64().unwrap();
    assert!(share(&view) > share(&before), "{view}");
    process.client.delete("/v1/detectors/deleted").await.expect(204);
    adopting.await.unwrap().expect_problem(404, "not_found");

    // Decided, and not waited for.
    let view = process.client.post("/v1/detectors/d/adopt?timeout_seconds=0", "application/json", "").await.expect(202);
    assert_eq!((&view["adopted"], &view["direction"]), (&first["adopted"], &first["direction"]), "readers see the former one");
    assert_eq!(view["adopting"]["version"], version_of_m(&process.client).await);
    let again = process.client.post("/v1/detectors/d/adopt?timeout_seconds=0", "application/json", "").await.expect(202);
    assert_eq!(again["adopting"], view["adopting"]);
    assert_eq!(process.terminate(), Some(0));
    process = Process::start(folder.path(), &settings);
    let view = process.client.get("/v1/detectors/d").await.expect(200);
    assert_eq!(
        (&view["version"], &view["adopted"]),
        (&first["version"], &first["adopted"]),
        "the doors are open before it is done"
    );
    process.kill();
    process = Process::start(folder.path(), &settings);
    // The first may be the one that was decided before the kill.
    adopt(&process.client, "d").await;
    let adopted = adopt(&process.client, "d").await;
    assert_eq!(adopted["adopted"]["version"], version_of_m(&process.client).await);
    assert_eq!(adopted["examples"], first["examples"]);

    // Another one that saw the same rows while it was blind adopts the same version in one go.
    let mut spec = adopted["model"]["spec"].clone();
    spec["stream"] = json!("d");
    process.client.put("/v1/models/blind", &spec).await.expect(201);
    process.client.caught_up("blind").await;
    assert_eq!(adopt(&process.client, "blind").await["direction"]["hash"], adopted["direction"]["hash"]);

    learn(&process.client, 32..48).await;
    process.client.post("/v1/detectors/d/adopt?timeout_seconds=0", "application/json", "").await.expect(202);
    // It takes no other plan meanwhile, and holds nobody up.
    let began = Instant::now();
    let answer = process.client.put("/v1/models/d/memory-budget", &json!({ "budget": "1GiB" })).await;
    assert!([200, 503].contains(&answer.status), "{answer:?}");
    process.client.put("/v1/streams/points", &points_schema()).await.expect(200);
    process.client.put("/v1/models/another", &points_model("points")).await.expect(201);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    process.terminate();
    let verified = Command::new(env!("CARGO_BIN_EXE_mustela")).arg("verify").arg(folder.path()).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
