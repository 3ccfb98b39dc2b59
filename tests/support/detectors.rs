//! The refusals of detectors, for the test of the OpenAPI document.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stderr, reason = "for tests")]

use std::path::Path;

use axum::http::Method;
use serde_json::{Value, json};

use crate::contract::{Contract, Operation};
use crate::doors::{Doors, JSON};
use crate::refusals::{Refusals, place};

/// A detector's encoder, whose weights are not part of the repository.
pub const ENCODER: &str = "squeezenet1.1";

/// The folder of the encoders' weights; none where they are not, and then nothing that needs one is asked.
pub fn models() -> Option<String> {
    let there = |folder: &String| Path::new(folder).join(format!("{ENCODER}.safetensors")).exists();
    let folder = std::env::var("MODELS_DIR").ok().filter(there);
    if folder.is_none() {
        eprintln!("SKIPPED: detectors, because MODELS_DIR has no {ENCODER}.safetensors: see `mustela models pull`");
    }
    folder
}

/// The setting that says where encoders are.
pub fn with_models(folder: Option<&String>) -> Vec<(&'static str, &str)> {
    folder.map(|folder| ("models.dir", folder.as_str())).into_iter().collect()
}

/// Whether only an encoder makes it possible: the doors of detectors, and models of that kind.
pub fn needs_encoder(operation: &Operation, body: &[u8]) -> bool {
    let of_detectors = operation.said["tags"][0] == "detectors" && operation.id() != "list_detectors";
    of_detectors || serde_json::from_slice::<Value>(body).is_ok_and(|spec| spec["kind"] == "detector")
}

/// What is refused before an encoder is wanted.
pub async fn what_is_none(refusals: &mut Refusals<'_>, service: &Doors) {
    let router = &service.router;
    for (name, body, code) in [
        ("new", json!([]), "invalid_body"),
        ("new", json!({ "encoder": "resnet50" }), "invalid_detector"),
        ("new", json!({ "encoder": ENCODER, "kind": "detector" }), "invalid_detector"),
        ("Upper", json!({ "encoder": ENCODER }), "invalid_detector"),
        ("points", json!({ "encoder": ENCODER }), "stream_exists"),
        ("new", json!({ "encoder": ENCODER, "stream": "nowhere" }), "unknown_stream"),
    ] {
        let path = format!("/v1/detectors/{name}");
        refusals.refused(router, "create_detector", &path, &[JSON], body.to_string(), code).await;
    }
    let nobody = json!({ "model": "nobody", "input": [] }).to_string();
    refusals.refused(router, "moderate", "/v1/moderations", &[JSON], nobody, "not_found").await;
}

/// The first body that the document shows for an operation, and where it goes.
pub fn shown(contract: &Contract, id: &str) -> (String, Vec<u8>) {
    let operation = contract.operation(id);
    let body = contract.bodies(operation).into_iter().next().unwrap();
    (place(contract, operation, Some(body.of())), body.bytes)
}

/// `photos` is asked before and after it has learned.
pub async fn what_contradicts_one(refusals: &mut Refusals<'_>, service: &Doors) {
    let (contract, router) = (refusals.contract, &service.router);
    for id in ["detect", "evaluate", "moderate", "transfer"] {
        let (path, body) = shown(contract, id);
        refusals.refused(router, id, &path, &[JSON], body, "detector_not_ready").await;
    }
    let (examples, body) = shown(contract, "post_examples");
    let waiting = format!("{examples}?wait=applied");
    service.ask(&Method::POST, &waiting, &[JSON], body).await.expect(200);
    let picture = serde_json::from_slice::<Value>(&shown(contract, "moderate").1).unwrap()["input"][1].clone();
    let many = json!({ "rows": vec![json!({}); 65] });
    let ask = |input: Value| json!({ "model": "photos", "input": input });
    let rate = |target_fpr: f64| json!({ "mode": "conformal", "target_fpr": target_fpr });
    for (id, path, body, code) in [
        ("post_examples", format!("{waiting}&colour=1").as_str(), json!({}), "invalid_request"),
        ("post_examples", &format!("{waiting}&model=nobody"), json!({}), "not_found"),
        ("post_examples", &format!("{waiting}&model=strict"), json!({}), "model_of_another_stream"),
        ("calibrate", &shown(contract, "calibrate").0, rate(0.01), "invalid_change"),
        ("calibrate", &shown(contract, "calibrate").0, rate(1e-300), "invalid_change"),
        ("calibrate", &shown(contract, "calibrate").0, json!({ "mode": "midpoint", "target_fpr": 0.01 }), "invalid_body"),
        ("detect", &shown(contract, "detect").0, many.clone(), "invalid_pictures"),
        ("evaluate", &shown(contract, "evaluate").0, json!({ "rows": [{}] }), "invalid_rows"),
        ("evaluate", &shown(contract, "evaluate").0, many, "invalid_pictures"),
        ("moderate", "/v1/moderations", ask(json!([])), "invalid_input"),
        ("moderate", "/v1/moderations", ask(json!("a text")), "invalid_input"),
        ("moderate", "/v1/moderations", ask(json!(vec![picture; 65])), "invalid_pictures"),
    ] {
        refusals.refused(router, id, path, &[JSON], body.to_string(), code).await;
    }
    let form = [("content-type", "multipart/form-data")];
    refusals.refused(router, "detect", &shown(contract, "detect").0, &form, "", "invalid_multipart").await;
    what_makes_none(refusals, service).await;
}

/// Specs and transfers that make no detector.
async fn what_makes_none(refusals: &mut Refusals<'_>, service: &Doors) {
    let transfer = shown(refusals.contract, "transfer").0;
    for (more, name, code) in [
        (json!({ "blocks": ["fire99"] }), "new", "invalid_model"),
        (json!({ "blocks": ["fire3"], "threshold": { "mode": "conformal", "target_fpr": 1e-4 } }), "new", "invalid_model"),
        (json!({ "blocks": ["fire3"] }), "photos", "model_exists"),
    ] {
        let mut spec = json!({ "encoder": ENCODER });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = format!("/v1/detectors/{name}");
        refusals.refused(&service.router, "create_detector", &path, &[JSON], spec.to_string(), code).await;
        spec["name"] = json!(name);
        refusals.refused(&service.router, "transfer", &transfer, &[JSON], spec.to_string(), code).await;
    }
    let poor = json!({ "encoder": ENCODER, "memory_budget": 1 }).to_string();
    let path = "/v1/detectors/new";
    refusals.refused(&service.router, "create_detector", path, &[JSON], poor, "budget_below_minimum").await;
    let unknown = json!({ "name": "new", "encoder": "resnet50" }).to_string();
    refusals.refused(&service.router, "transfer", &transfer, &[JSON], unknown, "invalid_detector").await;
}

/// What is kept of a detector is nothing without its encoder; other models go on.
pub async fn one_that_stands_still(refusals: &mut Refusals<'_>, folder: &Path, models: &str) {
    let contract = refusals.contract;
    let elsewhere = folder.join("nothing").display().to_string();
    let service = Doors::open(folder, &[("models.dir", &elsewhere)]).await;
    let view = service.ask(&Method::GET, "/v1/detectors/photos", &[], "").await;
    contract.hold(contract.operation("get_detector"), &view);
    let view = view.expect(200);
    assert_eq!((&view["direction"], &view["model"]["status"]), (&Value::Null, &json!("failed")), "{view}");
    assert!(view["model"]["failure"].as_str().unwrap().contains("mustela models pull"), "{view}");
    service.post("/v1/models/distance/predict", &json!({ "rows": [{ "x": 1, "y": 2 }] })).await.expect(200);
    for id in ["detect", "evaluate", "moderate", "transfer", "calibrate"] {
        let (path, body) = shown(contract, id);
        refusals.refused(&service.router, id, &path, &[JSON], body, "model_failed").await;
    }
    service.close().await;
    let service = Doors::open(folder, &[("models.dir", models)]).await;
    let view = service.ask(&Method::GET, "/v1/detectors/photos", &[], "").await.expect(200);
    assert_eq!(view["examples"], json!({ "benign": 2, "adversarial": 2, "held_out": 1 }), "with it all is as it was");
    service.close().await;
}
