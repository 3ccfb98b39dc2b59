//! Detectors over HTTP: taught by labelled pictures, calibrated, asked in every format, measured, carried over to another encoder, and the
//! same to the bit after a kill.
//!
//! The encoders' weights are not part of the repository: without them (`MODELS_DIR`, made by `mustela models pull`) most of this says so and
//! passes.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use serde_json::{Value, json};
use support::{Client, Process, Running, png};

const SIDE: u32 = 224;
/// The smaller of the encoders: a test is not the place to wait for the better one.
const ENCODER: &str = "squeezenet1.1";

/// The setting that says where the weights are; none where they are not.
fn models() -> Option<String> {
    let folder =
        std::env::var("MODELS_DIR").ok().filter(|folder| std::path::Path::new(folder).join("squeezenet1.1.safetensors").exists());
    if folder.is_none() {
        eprintln!("SKIPPED: MODELS_DIR has no squeezenet1.1.safetensors: see `mustela models pull`");
    }
    folder
}

/// Smooth colours, another each time; an adversarial one also has a faint chequered pattern, as an attack on an edge detector might.
fn picture(number: u32, adversarial: bool) -> RgbImage {
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let wave = |by: u32, at: u32| 100.0 + 60.0 * (f64::from(at * by + number * 37) / 50.0).sin();
        let sign = if adversarial && (x + y) % 2 == 0 { 12.0 } else { 0.0 };
        image::Rgb([wave(1, x) + sign, wave(2, y) - sign, wave(1 + number / 3 % 3, x + y) + sign].map(|value| value as u8))
    })
}

fn row(number: u32, adversarial: bool) -> Value {
    let label = if adversarial { "adversarial" } else { "benign" };
    json!({ "image": STANDARD.encode(png(&picture(number, adversarial))), "label": label })
}

/// Two benign pictures for each adversarial one.
fn rows(numbers: std::ops::Range<u32>) -> Value {
    json!({ "rows": numbers.map(|number| row(number, number % 3 == 2)).collect::<Vec<_>>() })
}

async fn made(client: &Client, name: &str, body: Value) -> Value {
    client.put(&format!("/v1/detectors/{name}"), &body).await.expect(201)
}

async fn teach(client: &Client, name: &str, numbers: std::ops::Range<u32>) {
    let path = format!("/v1/detectors/{name}/examples");
    let answer = client.post_json(&path, &rows(numbers)).await.expect(202);
    client.detector_at(name, answer["sequence"].as_u64().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detector_is_taught_calibrated_and_asked() {
    let Some(models) = models() else { return };
    let folder = tempfile::tempdir().unwrap();
    let service = Running::start(folder.path(), &[("models.dir", &models)]).await;
    let client = &service.client;
    let spec = json!({ "encoder": ENCODER, "direction": "whitened", "blocks": ["fire5"] });
    let view = made(client, "d", spec.clone()).await;
    assert_eq!((&view["object"], &view["threshold"]), (&json!("detector"), &Value::Null));
    assert_eq!(view["waits_for"], "its midpoint needs examples of both classes");
    assert_eq!(client.put("/v1/detectors/d", &spec).await.expect(200)["id"], "d");
    let one = json!({ "rows": [row(900, false)] });
    client.post_json("/v1/detectors/d/detect", &one).await.expect_problem(409, "detector_not_ready");
    client
        .post_json("/v1/detectors/d/transfer", &json!({ "name": "e", "encoder": ENCODER }))
        .await
        .expect_problem(409, "detector_not_ready");
    teach(client, "d", 0..60).await;
    let view = client.get("/v1/detectors/d").await.expect(200);
    assert_eq!(view["examples"], json!({ "benign": 20, "adversarial": 20, "held_out": 20 }));
    assert_eq!(view["model"]["rows"]["held_out"], 20);
    assert_eq!(view["threshold"]["mode"], "midpoint");

    let rate = |target: f64| json!({ "mode": "conformal", "target_fpr": target });
    let refused = client.post_json("/v1/detectors/d/calibrate", &rate(0.01)).await.expect_problem(422, "invalid_change");
    assert!(refused["detail"].as_str().unwrap().contains("20 benign rows are held out, and this rate needs 99"), "{refused}");
    let calibrated = client.post_json("/v1/detectors/d/calibrate", &rate(0.1)).await.expect(200);
    let threshold = &calibrated["threshold"];
    assert_eq!((&threshold["calibration_rows"], &threshold["target_fpr"]), (&json!(20), &json!(0.1)));

    every_format_is_read(client).await;
    measured(client).await;
    moderated(client).await;
    carried_over(client).await;
    client.delete("/v1/detectors/d").await.expect(204);
    client.get("/v1/detectors/d").await.expect_problem(404, "not_found");
    assert_eq!(client.get("/v1/streams/d").await.expect(200)["models"], json!(["e"]), "another detector learns from it");
    client.delete("/v1/detectors/e").await.expect(204);
    client.delete("/v1/streams/d").await.expect(204);
    service.stop().await;
}

async fn every_format_is_read(client: &Client) {
    let (benign, adversarial) = (picture(901, false), picture(902, true));
    let sent = json!({ "rows": [row(901, false), { "image": "@" }, row(902, true), { "picture": "" }] });
    let answer = client.post_json("/v1/detectors/d/detect", &sent).await.expect(200);
    let results = answer["results"].as_array().unwrap();
    assert_eq!((&results[0]["flagged"], &results[2]["flagged"]), (&json!(false), &json!(true)), "{answer}");
    assert!(results[1]["error"].as_str().unwrap().contains("no base64"), "{answer}");
    assert_eq!(results[3]["error"], "the row has no text `image`");
    let margin = results[2]["score"].as_f64().unwrap() - answer["threshold"]["score"].as_f64().unwrap();
    assert_eq!(results[2]["margin"], margin);

    let raw = client.post("/v1/detectors/d/detect", "image/png", png(&adversarial)).await.expect(200);
    assert_eq!(raw["results"], json!([results[2]]), "the same picture has the same score however it comes");
    let mut body = Vec::new();
    for picture in [&benign, &adversarial] {
        body.extend_from_slice(b"--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"p.png\"\r\n\r\n");
        body.extend(png(picture));
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--cut--\r\n");
    let parts = client.post("/v1/detectors/d/detect", "multipart/form-data; boundary=cut", body).await.expect(200);
    assert_eq!(parts["results"], json!([results[0], results[2]]));

    client.post("/v1/detectors/d/detect", "text/plain", "x").await.expect_problem(415, "unsupported_content_type");
    client.post("/v1/detectors/d/detect", "multipart/form-data", "x").await.expect_problem(400, "invalid_multipart");
    client.post_json("/v1/detectors/d/detect", &json!({ "rows": [] })).await.expect_problem(422, "invalid_pictures");
    client.post_json("/v1/detectors/nobody/detect", &sent).await.expect_problem(404, "not_found");
}

async fn measured(client: &Client) {
    let answer = client.post_json("/v1/detectors/d/evaluate", &rows(300..345)).await.expect(200);
    let figures = &answer["figures"];
    assert_eq!(figures["rows"], json!({ "benign": 30, "adversarial": 15 }));
    assert!(figures["auroc"].as_f64().unwrap() > 0.95, "{answer}");
    let interval = &figures["at_threshold"]["fpr_interval"];
    let fpr = figures["at_threshold"]["fpr"].as_f64().unwrap();
    assert!(interval["low"].as_f64().unwrap() <= fpr && fpr <= interval["high"].as_f64().unwrap(), "{answer}");
    let unlabelled = json!({ "rows": [{ "image": row(1, false)["image"] }, row(2, true)] });
    let problem = client.post_json("/v1/detectors/d/evaluate", &unlabelled).await.expect_problem(422, "invalid_rows");
    assert_eq!((&problem["errors"][0]["row"], &problem["errors"][0]["column"]), (&json!(0), &json!("label")));
}

async fn moderated(client: &Client) {
    let url = |number, adversarial| format!("data:image/png;base64,{}", row(number, adversarial)["image"].as_str().unwrap());
    let image = |url: String| json!({ "type": "image_url", "image_url": { "url": url } });
    let asked = |parts: Value| json!({ "model": "d", "input": parts });
    let text = json!({ "type": "text", "text": "what is this?" });
    let judged = asked(json!([text, image(url(903, false)), image(url(904, true))]));
    let answer = client.post_json("/v1/moderations", &judged).await.expect(200);
    assert_eq!(answer["results"].as_array().unwrap().len(), 1);
    assert_eq!(answer["results"][0]["categories"]["adversarial_image"], true, "{answer}");
    let calm = client.post_json("/v1/moderations", &asked(json!([image(url(905, false))]))).await.expect(200);
    assert_eq!(calm["results"][0]["flagged"], false, "{calm}");
    for (parts, of) in [
        (json!("a text"), "list of parts"),
        (json!([text]), "has none"),
        (json!([image("https://example.org/a.png".into())]), "nothing is fetched"),
        (json!([image("data:image/png;base64,AAAA".into())]), "picture 0"),
    ] {
        let refused = client.post_json("/v1/moderations", &asked(parts)).await.expect(422);
        assert!(refused["error"]["message"].as_str().unwrap().contains(of), "{refused}");
        assert_eq!(refused["error"]["type"], "invalid_request_error");
    }
    let unknown = json!({ "model": "omni-moderation-latest", "input": [image(url(1, false))] });
    assert_eq!(client.post_json("/v1/moderations", &unknown).await.expect(404)["error"]["code"], "not_found");
}

async fn carried_over(client: &Client) {
    let wish = json!({ "name": "e", "encoder": ENCODER, "blocks": ["fire3", "fire4"], "threshold": { "mode": "conformal", "target_fpr": 0.2 } });
    let view = client.post_json("/v1/detectors/d/transfer", &wish).await.expect(201);
    assert_eq!(view["settings"]["carried"]["detector"], "d");
    assert_eq!(view["model"]["spec"]["start"], 1, "it counts the same rows, and so holds the same ones out");
    let spec = json!({ "stream": "d", "encoder": ENCODER, "blocks": ["fire2"], "held_out_every": 0 });
    client.put("/v1/detectors/f", &spec).await.expect(201);
    client.caught_up("f").await;
    let wish = json!({ "name": "g", "encoder": ENCODER, "blocks": ["fire3"] });
    let view = client.post_json("/v1/detectors/f/transfer", &wish).await.expect(201);
    assert_eq!(view["model"]["spec"]["start"], "now", "the direction was found with every row that there is");
    for name in ["f", "g"] {
        client.delete(&format!("/v1/detectors/{name}")).await.expect(204);
    }
    // Twenty benign rows are too few for a map.
    teach(client, "d", 60..120).await;
    client.detector_at("e", 120).await;
    let view = client.get("/v1/detectors/e").await.expect(200);
    let map = &view["direction"]["map"];
    assert!(map["pairs"].as_u64().unwrap() >= 32, "{view}");
    assert!(map["held_out_r2"].as_f64().unwrap() > map["shuffled_r2"].as_f64().unwrap(), "{view}");
    assert_eq!(view["examples"]["adversarial"], 0, "it has seen adversarial rows and learned none");
    let sent = json!({ "rows": [row(950, true), row(951, false)] });
    let answer = client.post_json("/v1/detectors/e/detect", &sent).await.expect(200);
    let score = |at: usize| answer["results"][at]["score"].as_f64().unwrap();
    assert!(score(0) > score(1), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_detector_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nothing").display().to_string();
    let service = Running::start(folder.path(), &[("models.dir", &nowhere)]).await;
    let client = &service.client;
    let refused =
        async |body: Value, code: &str| client.put("/v1/detectors/d", &body).await.expect_problem(422, code)["detail"].clone();
    for (body, code, of) in [
        (json!({}), "invalid_detector", "encoder"),
        (json!({ "encoder": "resnet50" }), "invalid_detector", "known are efficientnet-lite0, squeezenet1.1"),
        (json!({ "encoder": ENCODER, "kind": "network" }), "invalid_detector", "kind"),
        (json!({ "encoder": ENCODER, "stream": "nobody" }), "unknown_stream", "nobody"),
        (json!({ "encoder": ENCODER }), "invalid_model", "mustela models pull squeezenet1.1"),
    ] {
        let detail = refused(body, code).await;
        assert!(detail.as_str().unwrap().contains(of), "{detail}");
    }
    assert_eq!(client.get("/v1/detectors").await.expect(200), json!({ "detectors": [] }));
    assert_eq!(client.get("/v1/streams").await.expect(200), json!({ "streams": [] }), "no stream stays behind");
    service.stop().await;
    let Some(models) = models() else { return };
    let service = Running::start(folder.path(), &[("models.dir", &models)]).await;
    let refused = async |body: Value| {
        service.client.put("/v1/detectors/d", &body).await.expect_problem(422, "invalid_model")["detail"].clone()
    };
    for (settings, of) in [
        (json!({ "blocks": ["fire99"] }), "it has conv1, "),
        (json!({ "blocks": [] }), "one or more"),
        (json!({ "blocks": ["fire9", "fire9"] }), "each once"),
        (json!({ "direction": "sideways" }), "sideways"),
        (json!({ "calibration_rows": 0 }), "calibration_rows is 0"),
        (json!({ "threshold": { "mode": "conformal", "target_fpr": 1.5 } }), "between 0 and 1"),
        (
            json!({ "threshold": { "mode": "conformal", "target_fpr": 1e-4 } }),
            "needs 9999 held-out rows, and this detector keeps 1000",
        ),
        (json!({ "threshold": { "mode": "conformal", "target_fpr": 1e-300 } }), "held-out rows"),
        (json!({ "threshold": { "mode": "midpoint", "target_fpr": 0.01 } }), "target_fpr"),
        (json!({ "step_rows": 100_000 }), "step_rows"),
        (json!({ "learning_rate": -1 }), "learning_rate"),
    ] {
        let mut body = json!({ "encoder": ENCODER });
        body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let detail = refused(body).await;
        assert!(detail.as_str().unwrap().contains(of), "{detail}");
    }
    assert_eq!(service.client.get("/v1/streams").await.expect(200), json!({ "streams": [] }));
    service.stop().await;
}

const DIRECTIONS: [&str; 3] = ["mean_difference", "whitened", "logistic"];

/// Promise 2 for a fold that is no network: a kill and a restart give the same direction, and the checkpoint's hash.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_changes_no_bit() {
    let Some(models) = models() else { return };
    let mut ends = Vec::new();
    for kills in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let settings = [("models.dir", models.as_str()), ("checkpoint.interval_rows", "16")];
        let mut process = Process::start(folder.path(), &settings);
        for direction in DIRECTIONS {
            made(&process.client, direction, json!({ "encoder": ENCODER, "direction": direction, "blocks": ["fire4"] })).await;
        }
        for part in 0..3 {
            for direction in DIRECTIONS {
                let path = format!("/v1/detectors/{direction}/examples");
                process.client.post_json(&path, &rows(part * 12..(part + 1) * 12)).await.expect(202);
            }
            if kills && part < 2 {
                // Two kills over one step would have it quarantined, by promise: another one each time.
                for direction in DIRECTIONS {
                    process.client.detector_at(direction, u64::from(part) * 12).await;
                }
                process.kill();
                process = Process::start(folder.path(), &settings);
            }
        }
        let mut directions = Vec::new();
        for direction in DIRECTIONS {
            let view = process.client.detector_at(direction, 36).await;
            assert_eq!(view["model"]["rows"]["quarantined"], 0, "{view}");
            directions.push((view["direction"]["hash"].clone(), view["direction"]["bias"].clone(), view["threshold"].clone()));
        }
        ends.push(directions);
        process.terminate();
    }
    assert_eq!(ends[0], ends[1]);
}
