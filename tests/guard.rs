//! Guards over HTTP: a detector of a live network judges every query to it.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::Cursor;

use arrow_array::cast::AsArray;
use arrow_ipc::reader::StreamReader;
use reqwest::Method;
use serde_json::{Value, json};
use support::bars::{SIDE, asked, learn, network, picture, spec, teach, version_of_m};
use support::{Client, Running, overwrite};

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_judges_in_the_forward_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let service = Running::start(folder.path(), &[]).await;
    let client = &service.client;
    network(client).await;
    let (path, guard) = ("/v1/models/m/guard", |action: &str| json!({ "detector": "d", "action": action }));
    client.put(path, &guard("flag")).await.expect_problem(422, "invalid_guard");
    client.put("/v1/detectors/d", &spec()).await.expect(201);
    client.put(path, &guard("refuse")).await.expect_problem(409, "detector_not_ready");
    client.put(path, &guard("flag")).await.expect(200);
    let answer = client.post_json("/v1/models/m/predict", &asked(&[(500, false)])).await.expect(200);
    assert!(answer["guard"]["waits_for"].as_str().unwrap().contains("examples of both classes"), "{answer}");
    client.delete(path).await.expect(204);
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
    let passed = client.post_json("/v1/models/m/predict", &asked(&[(500, false)])).await.expect(200);
    assert_eq!(passed["predictions"][0]["guard"], json!({ "flagged": false }), "nor how near it is");
    assert!(passed["guard"].get("threshold").is_none() && passed["guard"].get("adopted_version").is_some(), "{passed}");
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

/// What it would say of any query is not known: one that refuses lets none through.
#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_stands_still_lets_nothing_through() {
    let folder = tempfile::tempdir().unwrap();
    let service = Running::start(folder.path(), &[]).await;
    network(&service.client).await;
    service.client.put("/v1/detectors/d", &spec()).await.expect(201);
    teach(&service.client, 0..90).await;
    let guard = |action: &str| json!({ "detector": "d", "action": action });
    service.client.put("/v1/models/m/guard", &guard("refuse")).await.expect(200);
    service.stop().await;
    let blobs = std::fs::read_dir(folder.path().join("blobs").join("2")).unwrap();
    for blob in blobs {
        overwrite(&blob.unwrap().path(), |bytes| *bytes.last_mut().unwrap() ^= 1);
    }

    let service = Running::start(folder.path(), &[]).await;
    let client = &service.client;
    let view = client.failed("d").await;
    assert!(view["failure"].as_str().unwrap().contains("is altered"), "{view}");
    let sent = asked(&[(500, false)]);
    let refused = client.post_json("/v1/models/m/predict", &sent).await.expect_problem(409, "detector_not_ready");
    assert!(refused["detail"].as_str().unwrap().contains("stands still"), "{refused}");
    client.put("/v1/models/d/guard", &guard("flag")).await.expect_problem(422, "invalid_guard");
    client.put("/v1/models/m/guard", &guard("flag")).await.expect(200);
    let answer = client.post_json("/v1/models/m/predict", &sent).await.expect(200);
    assert!(answer["guard"]["waits_for"].as_str().unwrap().contains("stands still"), "{answer}");
    client.post("/v1/detectors/d/adopt", "application/json", "").await.expect_problem(409, "model_failed");
    client.delete("/v1/models/m/guard").await.expect(204);
    client.delete("/v1/detectors/d").await.expect(204);
    service.stop().await;
}
