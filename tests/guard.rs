//! Detectors of live networks over HTTP: what they adopt, what a kill leaves of it, and how they guard the network that they watch.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::Cursor;
use std::process::Command;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_ipc::reader::StreamReader;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, RgbImage};
use mustela::fold::Version;
use reqwest::Method;
use serde_json::{Value, json};
use support::{Client, IN_ORDER, Process, Running, points_model, points_schema};

const SIDE: u32 = 12;

/// A bar that lies or stands on noise; an adversarial one has a chequered pattern over it.
fn picture(number: u32, adversarial: bool) -> RgbImage {
    let mixed = |of: u32| of.wrapping_add(1).wrapping_mul(2_654_435_761) >> 9;
    let place = mixed(number) % (SIDE - 2) + 1;
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let noise = (mixed(number * 4096 + x * 64 + y) % 60) as u8;
        let on = if number.is_multiple_of(2) { x == place } else { y == place };
        let chequered = if adversarial && (x + y) % 2 == 0 { 40 } else { 0 };
        image::Rgb(if on { [200 - noise, 180 - noise, 160] } else { [noise + chequered, 40 + chequered, noise / 2] })
    })
}

fn text(number: u32, adversarial: bool) -> String {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(picture(number, adversarial)).write_to(&mut bytes, ImageFormat::Png).unwrap();
    STANDARD.encode(bytes.into_inner())
}

/// Rows of the network's stream.
fn lessons(numbers: std::ops::Range<u32>) -> Value {
    let row = |number: u32| json!({ "picture": text(number, false), "kind": number % 2 });
    json!({ "rows": numbers.map(row).collect::<Vec<_>>() })
}

/// Rows of the detector's stream: every third one adversarial.
fn examples(numbers: std::ops::Range<u32>) -> Value {
    let row = |number: u32| {
        let adversarial = number % 3 == 2;
        json!({ "picture": text(number, adversarial), "label": if adversarial { "adversarial" } else { "benign" } })
    };
    json!({ "rows": numbers.map(row).collect::<Vec<_>>() })
}

fn asked(rows: &[(u32, bool)]) -> Value {
    json!({ "rows": rows.iter().map(|&(number, adversarial)| json!({ "picture": text(number, adversarial) })).collect::<Vec<_>>() })
}

async fn network(client: &Client) {
    let schema = json!({
        "fields": [{ "name": "picture", "type": "image", "side": SIDE }],
        "target": { "name": "kind", "type": "classes", "classes": 2 },
    });
    client.put("/v1/streams/bars", &schema).await.expect(201);
    let model = json!({
        "kind": "network", "stream": "bars", "network": { "architecture": "convnet" }, "step_rows": 16, "learning_rate": 0.05,
    });
    client.put("/v1/models/m", &model).await.expect(201);
    learn(client, 0..64).await;
}

async fn learn(client: &Client, numbers: std::ops::Range<u32>) {
    client.post_json("/v1/streams/bars/batches?wait=applied", &lessons(numbers)).await.expect(200);
}

fn spec() -> Value {
    json!({ "watches": "m", "direction": "whitened", "kept_rows": 100 })
}

/// The view of the detector once readers see it with so many rows.
async fn reached(client: &Client, rows: u64) -> Value {
    loop {
        let view = client.get("/v1/detectors/d").await.expect(200);
        let version: Version = view["version"].as_str().unwrap().parse().unwrap();
        if version.sequence >= rows {
            return view;
        }
        assert!(view["model"]["failure"].is_null(), "{view}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn teach(client: &Client, numbers: std::ops::Range<u32>) -> Value {
    let answer = client.post_json("/v1/detectors/d/examples", &examples(numbers)).await.expect(202);
    reached(client, answer["sequence"].as_u64().unwrap()).await
}

async fn version_of_m(client: &Client) -> Value {
    client.get("/v1/models/m").await.expect(200)["published_version"].clone()
}

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
    assert!(metrics.contains("mustela_model_decisions_total{decision=\"setting\",model=\"d\"} 2"), "{metrics}");

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
        let view = reached(&process.client, 90).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_judges_in_the_forward_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let service = Running::start(folder.path(), &[]).await;
    let client = &service.client;
    network(client).await;
    let (path, guard) = ("/v1/models/m/guard", |action: &str| json!({ "detector": "d", "action": action }));
    client.put(path, &guard("flag")).await.expect_problem(422, "invalid_guard");
    client.put("/v1/detectors/d", &spec()).await.expect(201);
    client.put(path, &guard("flag")).await.expect_problem(409, "detector_not_ready");
    teach(client, 0..90).await;
    client.put(path, &guard("perhaps")).await.expect_problem(422, "invalid_body");
    client.put(path, &json!({ "detector": "m", "action": "flag" })).await.expect_problem(422, "invalid_guard");
    client.put("/v1/models/nobody/guard", &guard("flag")).await.expect_problem(404, "not_found");
    assert_eq!(client.get(path).await.expect(200), json!({ "model": "m", "guard": null }));
    let sent = asked(&[(500, false), (501, true), (502, false)]);
    let plain = client.post_json("/v1/models/m/predict", &sent).await.expect(200);
    assert!(plain.get("guard").is_none() && plain["predictions"][0].get("guard").is_none(), "{plain}");

    assert_eq!(client.put(path, &guard("flag")).await.expect(200), json!({ "model": "m", "guard": guard("flag") }));
    let answer = client.post_json("/v1/models/m/predict", &sent).await.expect(200);
    let seen = client.post_json("/v1/detectors/d/detect", &sent).await.expect(200);
    assert_eq!((&answer["guard"]["detector"], &answer["guard"]["adopted_version"]), (&json!("d"), &version_of_m(client).await));
    let threshold = |answer: &Value| answer.as_f64().unwrap();
    assert!((threshold(&answer["guard"]["threshold"]) - threshold(&seen["threshold"]["score"])).abs() < 1e-6, "{answer}");
    for row in 0..3 {
        let (judged, looked) = (&answer["predictions"][row]["guard"], &seen["results"][row]);
        assert_eq!(judged["flagged"], json!(row == 1), "{answer}");
        assert_eq!(
            answer["predictions"][row]["probabilities"], plain["predictions"][row]["probabilities"],
            "nothing else changes"
        );
        let (judged, looked) = (judged["score"].as_f64().unwrap(), looked["score"].as_f64().unwrap());
        assert!((judged - looked).abs() < 1e-3 * looked.abs().max(1.0), "the model is as it was adopted: {judged} and {looked}");
    }
    other_formats_say_it(client, &sent).await;

    client.put(path, &guard("refuse")).await.expect(200);
    let refused = client.post_json("/v1/models/m/predict", &sent).await.expect_problem(422, "input_flagged");
    assert_eq!((&refused["errors"][0]["row"], &refused["errors"][0]["column"]), (&json!(1), &json!("picture")), "{refused}");
    assert_eq!(refused["errors_total"], 1);
    client.post_json("/v1/models/m/predict", &asked(&[(500, false)])).await.expect(200);
    assert_eq!(
        client.delete("/v1/detectors/d").await.expect_problem(409, "detector_in_use")["detail"],
        "model `d` judges the queries of m: take it from there first"
    );
    // The model learns on, and is judged by what was learned of it before.
    learn(client, 64..96).await;
    client.post_json("/v1/models/m/predict", &sent).await.expect_problem(422, "input_flagged");
    let metrics = service.metrics().await;
    assert!(metrics.contains("mustela_guard_rows_total{model=\"m\",verdict=\"flagged\"}"), "{metrics}");
    service.stop().await;

    let service = Running::start(folder.path(), &[]).await;
    let client = &service.client;
    assert_eq!(client.get(path).await.expect(200)["guard"], guard("refuse"), "it outlives a restart");
    client.post_json("/v1/models/m/predict", &sent).await.expect_problem(422, "input_flagged");
    client.delete(path).await.expect(204);
    client.post_json("/v1/models/m/predict", &sent).await.expect(200);
    client.delete("/v1/detectors/d").await.expect(204);
    service.stop().await;
}

async fn other_formats_say_it(client: &Client, sent: &Value) {
    let arrow = [("content-type", "application/json"), ("accept", "application/vnd.apache.arrow.stream")];
    let (status, _, bytes) = client.raw(Method::POST, "/v1/models/m/predict", &arrow, sent.to_string()).await.unwrap();
    assert_eq!(status, 200);
    let mut reader = StreamReader::try_new(Cursor::new(bytes), None).unwrap();
    assert!(reader.schema().metadata()["guard"].contains("\"detector\":\"d\""));
    let batch = reader.next().unwrap().unwrap();
    let flagged = batch.column_by_name("guard_flagged").unwrap().as_boolean();
    assert_eq!((0..3).map(|row| flagged.value(row)).collect::<Vec<_>>(), [false, true, false]);

    let planes = [(500, false), (501, true)].map(|(number, adversarial)| {
        let picture = picture(number, adversarial);
        (0..3).flat_map(|channel| picture.pixels().map(|pixel| pixel.0[channel]).collect::<Vec<u8>>()).collect::<Vec<u8>>()
    });
    let tensor = json!({ "name": "picture", "shape": [2, 3, SIDE, SIDE], "datatype": "UINT8", "data": planes.concat() });
    let answer = client.post_json("/v2/models/m/infer", &json!({ "inputs": [tensor] })).await.expect(200);
    assert_eq!(answer["parameters"], json!({ "guard_detector": "d", "guard_flagged_rows": "1" }));
}
