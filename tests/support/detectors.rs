//! The refusals of detectors, for the test of the OpenAPI document.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stderr, reason = "for tests")]

use std::path::Path;

use axum::http::Method;
use serde_json::{Value, json};

use crate::contract::{Body, Contract, Operation};
use crate::doors::{Doors, JSON};
use crate::refusals::{Refusals, place};

/// A detector's encoder, whose weights are not part of the repository.
pub const ENCODER: &str = "squeezenet1.1";
/// The detector that watches a live network, and so needs no encoder.
const WATCHING: &str = "shapes-watch";
/// What is asked of models, and of what there is, among the doors of detectors.
const OF_ALL: [&str; 4] = ["list_detectors", "get_guard", "set_guard", "delete_guard"];

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

/// Whether only an encoder makes it possible: what the document tells of the doors of detectors, one body of theirs, and models of that kind.
pub fn needs_encoder(operation: &Operation, body: Option<&Body>) -> bool {
    let of_detectors = operation.said["tags"][0] == "detectors" && !OF_ALL.contains(&operation.id());
    match body {
        Some(body) if of_detectors => body.of() != WATCHING,
        Some(body) => serde_json::from_slice::<Value>(&body.bytes).is_ok_and(|spec| spec["kind"] == "detector"),
        None => of_detectors,
    }
}

/// Whether the detector of this spec watches a live network.
pub fn watches(spec: &Body) -> bool {
    spec.of() == WATCHING
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
        ("new", json!({ "encoder": ENCODER, "watches": "shapes" }), "invalid_detector"),
        ("new", json!({ "watches": "nobody" }), "invalid_detector"),
        ("new", json!({ "watches": "distance" }), "invalid_detector"),
        ("new", json!({ "watches": "shapes", "layers": ["99.relu"] }), "invalid_model"),
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

/// What goes to an operation under the name of an example.
fn named(contract: &Contract, id: &str, name: &str) -> (String, Vec<u8>) {
    let operation = contract.operation(id);
    let body = contract.bodies(operation).into_iter().find(|body| body.name == name).unwrap();
    (place(contract, operation, Some(body.of())), body.bytes)
}

/// Queries to `shapes` with the pictures that teach its detector: operation, path and body.
async fn queries(contract: &Contract, service: &Doors) -> [(&'static str, String, String); 3] {
    let rows: Value = serde_json::from_slice(&named(contract, "post_examples", WATCHING).1).unwrap();
    let pictures: Vec<&Value> = rows["rows"].as_array().unwrap().iter().map(|row| &row["picture"]).collect();
    let tensor = json!({ "name": "picture", "datatype": "BYTES", "shape": [pictures.len()], "data": pictures });
    let (model, tensors) = ("/v2/models/shapes", json!({ "inputs": [tensor] }).to_string());
    let rows: Vec<Value> = pictures.iter().map(|picture| json!({ "picture": picture })).collect();
    [
        ("predict", "/v1/models/shapes/predict".to_owned(), json!({ "rows": rows }).to_string()),
        ("infer", format!("{model}/infer"), tensors.clone()),
        ("infer_version", service.now(&format!("{model}/versions/now/infer")).await, tensors),
    ]
}

/// `shapes` is guarded by the detector that watches it, before and after that has learned.
pub async fn what_a_guard_refuses(refusals: &mut Refusals<'_>, service: &Doors) {
    let (contract, router) = (refusals.contract, &service.router);
    let (guard, refuse) = named(contract, "set_guard", "shapes");
    refusals.refused(router, "set_guard", &guard, &[JSON], refuse.clone(), "detector_not_ready").await;
    for detector in ["nobody", "distance"] {
        let body = json!({ "detector": detector, "action": "flag" }).to_string();
        refusals.refused(router, "set_guard", &guard, &[JSON], body, "invalid_guard").await;
    }
    let (examples, rows) = named(contract, "post_examples", WATCHING);
    service.ask(&Method::POST, &format!("{examples}?wait=applied"), &[JSON], rows).await.expect(200);
    service.ask(&Method::PUT, &guard, &[JSON], refuse).await.expect(200);
    // The midpoint lies below the mean of the adversarial ones, and so below one of them.
    for (id, path, body) in queries(contract, service).await {
        refusals.refused(router, id, &path, &[JSON], body, "input_flagged").await;
    }
    for (id, kind) in [("delete_detector", "detectors"), ("delete_model", "models")] {
        refusals.refused(router, id, &format!("/v1/{kind}/{WATCHING}"), &[], "", "detector_in_use").await;
    }
}

/// A detector that keeps fewer rows than its rate needs has no threshold once it has adopted anew.
pub async fn what_a_guard_cannot_judge(refusals: &mut Refusals<'_>, service: &Doors) {
    let (contract, router) = (refusals.contract, &service.router);
    let (guard, rows) = ("/v1/models/shapes/guard", named(contract, "post_examples", WATCHING).1);
    let spec = json!({ "watches": "shapes", "kept_rows": 4, "threshold": { "mode": "conformal", "target_fpr": 0.2 } });
    service.put("/v1/detectors/brief", &spec).await.expect(201);
    for action in ["refuse", "flag"] {
        for _ in 0..2 {
            let path = "/v1/detectors/brief/examples?wait=applied";
            service.ask(&Method::POST, path, &[JSON], rows.clone()).await.expect(200);
        }
        service.put(guard, &json!({ "detector": "brief", "action": action })).await.expect(200);
        // The network moves on: it would not adopt the version that it has.
        let (lessons, body) = named(contract, "post_rows", "signs");
        service.ask(&Method::POST, &format!("{lessons}?wait=applied&model=shapes"), &[JSON], body).await.expect(200);
        service.ask(&Method::POST, "/v1/detectors/brief/adopt", &[], "").await.expect(200);
        for (id, path, body) in queries(contract, service).await {
            if action == "refuse" {
                refusals.refused(router, id, &path, &[JSON], body, "detector_not_ready").await;
                continue;
            }
            let answer = service.ask(&Method::POST, &path, &[JSON], body).await;
            contract.hold(contract.operation(id), &answer);
            let answer = answer.expect(200);
            let told = if id == "predict" { &answer["guard"]["detector"] } else { &answer["parameters"]["guard_detector"] };
            assert_eq!(told, "brief", "{answer}");
            assert!(
                answer["predictions"][0]["guard"].is_null() && answer["parameters"]["guard_flagged_rows"].is_null(),
                "{answer}"
            );
        }
    }
    service.ask(&Method::DELETE, guard, &[], "").await.expect(204);
    service.ask(&Method::DELETE, "/v1/detectors/brief", &[], "").await.expect(204);
}

/// What is to adopt when the network is gone or is another one by now.
pub async fn what_has_lost_its_network(refusals: &mut Refusals<'_>, service: &Doors) {
    let (contract, router) = (refusals.contract, &service.router);
    let ask = async |id: &str, path: &str, body: &Value| {
        let operation = contract.operation(id);
        let answer = service.ask(&operation.method, path, &[JSON], body.to_string()).await;
        contract.hold(operation, &answer);
        answer
    };
    let watching = ask("get_detector", &format!("/v1/detectors/{WATCHING}"), &Value::Null).await.expect(200);
    // As a model it is told nothing beside its spec.
    ask("create_model", "/v1/models/blind", &watching["model"]["spec"]).await.expect(201);
    let blind = "/v1/detectors/blind";
    assert_eq!(ask("get_detector", blind, &Value::Null).await.expect(200)["adopted"], Value::Null);
    ask("delete_model", "/v1/models/shapes", &Value::Null).await.expect(204);
    let adopt = format!("/v1/detectors/{WATCHING}/adopt");
    let other = json!({ "kind": "network", "stream": "signs", "network": { "architecture": "linear" } });
    for code in ["not_found", "network_changed"] {
        refusals.refused(router, "adopt", &adopt, &[], "", code).await;
        ask("create_model", "/v1/models/shapes", &other).await;
    }
    let (guard, refuse) = named(contract, "set_guard", "shapes");
    refusals.refused(router, "set_guard", &guard, &[JSON], refuse, "invalid_guard").await;
    ask("delete_detector", blind, &Value::Null).await.expect(204);
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
    refusals.refused(router, "adopt", "/v1/detectors/photos/adopt", &[], "", "invalid_change").await;
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
    assert_eq!(view["examples"], json!({ "benign": 1, "adversarial": 2, "held_out": 2 }), "with it all is as it was");
    service.close().await;
}
