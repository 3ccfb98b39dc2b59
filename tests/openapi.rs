//! The OpenAPI document is true: it describes every door and no other, a running service takes each of its examples, and whatever is
//! answered, to them or to nonsense, is what it tells of.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/contract.rs"]
mod contract;
#[path = "support/detectors.rs"]
mod detectors;
#[path = "support/doors.rs"]
mod doors;
#[path = "support/refusals.rs"]
mod refusals;
mod support;

use std::collections::BTreeSet;
use std::io::Write;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Method;
use contract::{Contract, Operation, is_code, media_type, members, path, references};
use detectors::{ENCODER, models, needs_encoder, watches, with_models};
use doors::{BODY_BYTES_MAX, Doors, JSON, ask, doors_of, send};
use flate2::Compression;
use flate2::write::GzEncoder;
use mustela::limits::WATCHERS_MAX;
use mustela::shutdown;
use refusals::{Refusals, place};
use serde_json::{Value, json};
use support::{copy_folder, points, points_model, points_schema};

#[tokio::test(flavor = "multi_thread")]
async fn every_door_is_described_and_no_other() {
    let contract = Contract::read();
    let folder = tempfile::tempdir().unwrap();
    let service = Doors::open(folder.path(), &[]).await;
    let there: BTreeSet<String> = mustela::http::doors().into_iter().map(|(path, _)| path.replace("{*", "{")).collect();
    let described: BTreeSet<String> = members(&contract.document["paths"]).map(|(path, _)| path.clone()).collect();
    assert_eq!(there, described);
    for template in &described {
        let answer = service.ask(&Method::from_bytes(b"BREW").unwrap(), &path(template, &[]), &[], "").await;
        let allow = answer.headers["allow"].to_str().unwrap().to_owned();
        answer.expect_problem(405, "method_not_allowed");
        // The framework answers HEAD wherever it answers GET.
        let there: BTreeSet<&str> = allow.split(',').map(str::trim).filter(|method| *method != "HEAD").collect();
        let operations = contract.operations.iter().filter(|operation| operation.path == *template);
        assert_eq!(there, operations.map(|operation| operation.method.as_str()).collect(), "{template}");
    }
    let answer = service.ask(&Method::GET, "/openapi.json", &[], "").await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(answer.expect(200) == contract.document, "the document is the file");
    service.close().await;
}

#[test]
fn the_document_is_whole() {
    let contract = Contract::read();
    let document = &contract.document;
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut found = Vec::new();
    references(document, &mut found);
    let referred: BTreeSet<&str> = found.into_iter().map(|reference| reference.as_str().unwrap()).collect();
    for reference in &referred {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "nothing is at {reference}");
    }
    // Discriminators refer to schemas by a text alone.
    let text = document.to_string();
    for (kind, components) in members(&document["components"]) {
        for (name, _) in members(components) {
            assert!(text.contains(&format!("\"#/components/{kind}/{name}\"")), "nobody refers to {kind}/{name}");
        }
    }
    let tags: Vec<&Value> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    let used: BTreeSet<String> = contract.operations.iter().map(|operation| operation.said["tags"][0].to_string()).collect();
    assert_eq!(used, tags.iter().map(|tag| tag.to_string()).collect());
    let mut ids = BTreeSet::new();
    for operation in &contract.operations {
        assert!(ids.insert(operation.id()), "two operations are {}", operation.id());
        assert!(operation.said["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{}", operation.id());
        let parameters = contract.parameters(operation);
        assert!(parameters.values().all(|parameter| parameter["description"].is_string()), "{}", operation.id());
        let named = parameters.keys().filter(|(place, _)| place == "path").map(|(_, name)| format!("{{{name}}}"));
        let in_path = operation.path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned);
        assert_eq!(named.collect::<BTreeSet<_>>(), in_path.collect(), "{}", operation.id());
        the_bodies_are_whole(&contract, operation);
    }
}

/// Every body of an operation has examples, and these are of its schema.
fn the_bodies_are_whole(contract: &Contract, operation: &Operation) {
    let check = |place: &str, content: &Value| {
        for (media_type, body) in members(content) {
            let mut examples = members(&body["examples"]).peekable();
            assert!(examples.peek().is_some(), "{place}: {media_type} has no example");
            for (name, example) in examples {
                let faults = contract.faults(&body["schema"], &contract.resolve(example)["value"]);
                assert_eq!(faults, None, "{place}: {name}");
                contract.hold_events(&body["x-events"], &contract.resolve(example)["value"]);
            }
        }
    };
    check(operation.id(), contract.content(operation));
    for (status, response) in members(&operation.said["responses"]) {
        let place = format!("{} {status}", operation.id());
        let response = contract.resolve(response);
        assert!(response["description"].is_string(), "{place}");
        check(&place, &response["content"]);
        for (name, problem) in contract.problems(operation, status) {
            assert!(is_code(name, contract::code(problem)), "{place}: {name} is another code's");
            if problem.get("code").is_none() {
                continue;
            }
            let code: u16 = status.parse().unwrap();
            let title = axum::http::StatusCode::from_u16(code).unwrap().canonical_reason();
            assert_eq!((&problem["status"], &problem["title"]), (&json!(code), &json!(title)), "{place}: {name}");
            assert_eq!(problem["detail"], problem["error"], "{place}: {name}");
        }
    }
}

/// The order in which somebody asks who begins with nothing and clears up at the end.
const DAY: [&str; 50] = [
    "is_live",
    "is_ready",
    "get_openapi",
    "find_docs",
    "get_docs",
    "get_docs_file",
    "create_stream",
    "get_stream",
    "list_streams",
    "create_model",
    "post_rows",
    "post_labels",
    "create_detector",
    "list_detectors",
    "post_examples",
    "adopt",
    "set_guard",
    "get_guard",
    "predict",
    "describe_server",
    "list_repository",
    "describe_model",
    "is_model_ready",
    "infer",
    "describe_model_version",
    "is_model_ready_version",
    "infer_version",
    "get_page",
    "get_asset",
    "watch_events",
    "get_model",
    "list_models",
    "change_model",
    "get_plan",
    "set_plan",
    "get_frontier",
    "get_model_budget",
    "set_model_budget",
    "get_process_budget",
    "set_process_budget",
    "calibrate",
    "detect",
    "evaluate",
    "moderate",
    "transfer",
    "get_detector",
    "delete_guard",
    "delete_detector",
    "delete_model",
    "delete_stream",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_follow_the_examples() {
    let contract = Contract::read();
    let told: BTreeSet<&str> = contract.operations.iter().map(Operation::id).collect();
    assert_eq!(told, DAY.into_iter().collect(), "each operation has its hour");
    let (folder, models) = (tempfile::tempdir().unwrap(), models());
    let service = Doors::open(folder.path(), &with_models(models.as_ref())).await;
    let mut seen = BTreeSet::new();
    for id in DAY {
        let operation = contract.operation(id);
        for Asked { path, headers, body, replayed } in hour(&contract, operation, models.is_some()) {
            let path = service.now(&path).await;
            if id == "calibrate" {
                // As many rows as there are going to be, and a transfer that finds the same version twice.
                service.at_rest("photos").await;
            }
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let mut answers = vec![service.ask(&operation.method, &path, &headers, body).await];
            if let Some(tag) = answers[0].headers.get("etag").cloned() {
                let known = [("if-none-match", tag.to_str().unwrap())];
                answers.push(service.ask(&operation.method, &path, &known, "").await);
            }
            for answer in answers {
                assert!(answer.status < 400, "{path} {headers:?}: {answer:?}");
                contract.hold(operation, &answer);
                assert_eq!(answer.headers.contains_key("idempotent-replayed"), replayed, "{path} {headers:?}");
                seen.insert((id, answer.status.to_string(), media_type(&answer).map(str::to_owned)));
            }
        }
    }
    for operation in contract.operations.iter().filter(|operation| models.is_some() || !needs_encoder(operation, None)) {
        let is_seen = |status: &str| !UNSEEN.iter().any(|(id, of, _)| *id == operation.id() && of.to_string() == *status);
        let responses = members(&operation.said["responses"]).filter(|(status, _)| status.as_str() < "400");
        for (status, response) in responses.filter(|(status, _)| is_seen(status)) {
            let told: Vec<_> = members(&contract.resolve(response)["content"]).map(|(name, _)| Some(name.clone())).collect();
            for media_type in if told.is_empty() { vec![None] } else { told } {
                let answer = (operation.id(), status.clone(), media_type);
                assert!(seen.contains(&answer), "{answer:?} never came");
            }
        }
    }
    service.close().await;
}

/// One request of a user's.
struct Asked {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Whether the answer is to say that the post had been taken before.
    replayed: bool,
}

/// What says how a body is to be read, and how it is to be answered, once for each way to answer that `Accept` chooses.
fn headers_of(contract: &Contract, operation: &Operation, body: &contract::Body) -> Vec<Vec<(&'static str, String)>> {
    let mut headers = vec![("content-type", body.media_type.clone())];
    headers.extend(body.encoding.clone().map(|encoding| ("content-encoding", encoding)));
    let head_bytes = ("header".to_owned(), "Inference-Header-Content-Length".to_owned());
    if let Some(parameter) = contract.parameters(operation).get(&head_bytes)
        && body.media_type == "application/octet-stream"
    {
        headers.push(("inference-header-content-length", parameter["example"].to_string()));
    }
    let answered = contract.resolve(&operation.said["responses"]["200"]);
    let types = members(&answered["content"]).filter(|_| answered["headers"].get("Vary").is_some());
    let accepting = types.map(|(name, _)| [headers.clone(), vec![("accept", name.clone())]].concat());
    [headers.clone()].into_iter().chain(accepting).collect()
}

/// All that a user asks of one operation: each body that the document shows, or each stream, model, detector or file that there is.
fn hour(contract: &Contract, operation: &Operation, has_encoder: bool) -> Vec<Asked> {
    let made = |id: &str| {
        let operation = contract.operation(id);
        let bodies = contract.bodies(operation).into_iter();
        bodies.filter(|body| has_encoder || !needs_encoder(operation, Some(body))).collect::<Vec<_>>()
    };
    let names = |id: &str| made(id).into_iter().map(|body| body.name).collect();
    let Some(_) = operation.said.get("requestBody") else {
        let names: Vec<String> = match &operation.path {
            path if path.contains("{stream}") => names("create_stream"),
            path if path.contains("{model}") => names("create_model"),
            _ if operation.id() == "adopt" => {
                made("create_detector").iter().filter(|body| watches(body)).map(|body| body.name.clone()).collect()
            }
            path if path.contains("{detector}") => names("create_detector"),
            path if path.contains("{file}") => {
                let file = &contract.parameters(operation)[&("path".to_owned(), "file".to_owned())];
                Contract::shown(file).into_iter().map(str::to_owned).collect()
            }
            _ => vec![String::new()],
        };
        let asked = |name: &String| Asked {
            path: place(contract, operation, Some(name)),
            headers: Vec::new(),
            body: Vec::new(),
            replayed: false,
        };
        return names.iter().map(asked).collect();
    };
    let takes = |name: &str| contract.parameters(operation).keys().any(|(_, parameter)| parameter == name);
    let mut all = Vec::new();
    for (number, body) in made(operation.id()).into_iter().enumerate() {
        let path = place(contract, operation, Some(body.of()));
        let ways = headers_of(contract, operation, &body);
        let mut ask = |query: &str, key: Option<String>, replayed: bool| {
            let key = key.map(|key| ("idempotency-key", key));
            for headers in &ways {
                let (path, headers) = (format!("{path}{query}"), headers.iter().cloned().chain(key.clone()).collect());
                all.push(Asked { path, headers, body: body.bytes.clone(), replayed });
            }
        };
        // Twice, as what is there already is another answer, or the same.
        ask("", None, false);
        ask("", None, false);
        if takes("Idempotency-Key") {
            ask("", Some(format!("{} {number}", operation.id())), false);
            ask("", Some(format!("{} {number}", operation.id())), true);
        }
        if takes("wait") {
            let learns = |spec: &Value| spec["stream"] == body.of();
            let models = made("create_model").into_iter();
            let mut models = models.filter(|model| learns(&serde_json::from_slice(&model.bytes).unwrap()));
            // A detector waits for itself.
            let model = models.next().map_or_else(String::new, |model| format!("&model={}", model.name));
            ask(&format!("?wait=applied{model}"), None, false);
            ask(&format!("?wait=applied{model}&timeout_seconds=0"), None, false);
        }
    }
    all
}

/// Answers that the next test does not bring about: operation, status, and why.
const UNSEEN: [(&str, u16, &str); 6] = [
    ("post_rows", 409, "two posts with one key have to meet between the door and the disk"),
    ("post_labels", 409, "the same"),
    ("post_examples", 409, "the same"),
    ("post_examples", 507, "examples go through the door of rows, which is seen to answer it"),
    ("set_process_budget", 409, "a model has to fail in the change itself: those that stand still are passed over"),
    ("adopt", 202, "an adoption has to take long: tests/adoption.rs"),
];

/// Codes that it does not bring about.
const UNSEEN_CODES: [(&str, &str); 4] = [
    ("idempotency_key_in_flight", "as above"),
    ("model_busy", "a step has to panic in the change: tests/poison.rs"),
    ("storage", "a disk has to fail, and ends the process: tests/disk.rs"),
    ("model", "arithmetic has to fail where a model is made"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_one_that_the_document_tells_of() {
    let contract = Contract::read();
    let mut refusals = Refusals { contract: &contract, seen: BTreeSet::new() };
    let (folder, models) = (tempfile::tempdir().unwrap(), models());
    let service = Doors::open(folder.path(), &with_models(models.as_ref())).await;
    for id in ["create_stream", "create_model", "create_detector"] {
        let operation = contract.operation(id);
        for body in contract.bodies(operation).iter().filter(|body| models.is_some() || !needs_encoder(operation, Some(body))) {
            let path = place(&contract, operation, Some(body.of()));
            service.ask(&operation.method, &path, &[JSON], body.bytes.clone()).await.expect(201);
        }
    }
    for operation in &contract.operations {
        what_no_path_names(&mut refusals, &service, operation).await;
        if models.is_some() || !needs_encoder(operation, None) || operation.id() == "create_detector" {
            what_no_door_reads(&mut refusals, &service, operation).await;
        }
    }
    what_nobody_watches(&mut refusals, &service.router).await;
    what_contradicts_the_stream(&mut refusals, &service).await;
    what_contradicts_the_model(&mut refusals, &service).await;
    what_contradicts_the_tensors(&mut refusals, &service).await;
    detectors::what_is_none(&mut refusals, &service).await;
    detectors::what_a_guard_refuses(&mut refusals, &service).await;
    detectors::what_a_guard_cannot_judge(&mut refusals, &service).await;
    detectors::what_has_lost_its_network(&mut refusals, &service).await;
    if models.is_some() {
        detectors::what_contradicts_one(&mut refusals, &service).await;
    }
    too_much_at_once(&mut refusals, &service, models.is_some()).await;
    at_the_end_and_too_late(&mut refusals, &service, models.is_some()).await;
    service.close().await;
    a_model_that_stands_still(&mut refusals).await;
    if let Some(models) = &models {
        detectors::one_that_stands_still(&mut refusals, folder.path(), models).await;
    }
    a_full_log(&mut refusals).await;

    let statuses: BTreeSet<(&str, u16)> = refusals.seen.iter().map(|(id, status, _)| (id.as_str(), *status)).collect();
    let codes: BTreeSet<&str> = refusals.seen.iter().map(|(_, _, code)| code.as_str()).collect();
    for operation in contract.operations.iter().filter(|operation| models.is_some() || !needs_encoder(operation, None)) {
        for (text, _) in members(&operation.said["responses"]).filter(|(status, _)| status.as_str() >= "400") {
            let status: u16 = text.parse().unwrap();
            let unseen = UNSEEN.iter().any(|(id, of, _)| (*id, *of) == (operation.id(), status));
            assert_eq!(statuses.contains(&(operation.id(), status)), !unseen, "{} {status}", operation.id());
            for (name, problem) in contract.problems(operation, text) {
                let code = contract::code(problem);
                let unseen = UNSEEN_CODES.iter().any(|(of, _)| *of == code);
                assert_eq!(codes.contains(code), !unseen, "{} {status} {name}", operation.id());
            }
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A path that cannot be read, or that names nothing, at every door with a name in it.
async fn what_no_path_names(refusals: &mut Refusals<'_>, service: &Doors, operation: &Operation) {
    let (id, router) = (operation.id(), &service.router);
    let body = refusals.contract.bodies(operation).into_iter().next();
    let bytes = || body.as_ref().map_or_else(Vec::new, |body| body.bytes.clone());
    let with = |names: [&str; 4]| {
        let [stream, model, detector, file] = names;
        path(&operation.path, &[("stream", stream), ("model", model), ("detector", detector), ("file", file)])
    };
    if !operation.path.contains('{') {
        return;
    }
    refusals.refused(router, id, &with(["%FF"; 4]), &[JSON], bytes(), "invalid_request").await;
    // What makes a detector is not told by its own name that something is missing.
    if operation.said["responses"].get("404").is_some() && id != "create_detector" {
        let code = if operation.path.contains("{file}") { "no_such_route" } else { "not_found" };
        refusals.refused(router, id, &with(["nowhere", "nobody", "nobody", "nothing.js"]), &[JSON], bytes(), code).await;
    }
}

/// A type, an encoding or a body that is none, at every door that takes one.
async fn what_no_door_reads(refusals: &mut Refusals<'_>, service: &Doors, operation: &Operation) {
    let (contract, id, router) = (refusals.contract, operation.id(), &service.router);
    let Some(body) = &contract.bodies(operation).into_iter().next() else { return };
    let bytes = || body.bytes.clone();
    let path = &service.now(&place(contract, operation, Some(body.of()))).await;
    let encoded = |encoding: &'static str| [JSON, ("content-encoding", encoding)];
    if contract.tells(operation, "unsupported_content_type") {
        refusals.refused(router, id, path, &[("content-type", "text/xml")], bytes(), "unsupported_content_type").await;
    }
    refusals.refused(router, id, path, &encoded("br"), bytes(), "unsupported_encoding").await;
    refusals.refused(router, id, path, &[JSON], vec![b' '; BODY_BYTES_MAX + 1], "body_too_large").await;
    let bomb = gzip(&vec![b' '; 2 * BODY_BYTES_MAX + 1]);
    refusals.refused(router, id, path, &encoded("gzip"), bomb.clone(), "decoded_too_large").await;
    refusals.refused(router, id, path, &encoded("gzip"), bomb[..bomb.len() / 2].to_vec(), "truncated_body").await;
    refusals.refused(router, id, path, &encoded("gzip"), gzip(b"").repeat(4097), "too_many_frames").await;
    refusals.refused(router, id, path, &encoded("zstd"), "not zstd at all", "corrupt_body").await;
    let broken = [Ok(Bytes::from_static(b"{\"rows\": [")), Err(std::io::Error::other("gone"))];
    refusals.refused(router, id, path, &[JSON], Body::from_stream(tokio_stream::iter(broken)), "incomplete_body").await;
    if contract.tells(operation, "invalid_json") {
        refusals.refused(router, id, path, &[JSON], "{", "invalid_json").await;
        let code = match id {
            "set_plan" => "invalid_plan",
            "create_detector" => "invalid_detector",
            _ => "invalid_body",
        };
        refusals.refused(router, id, path, &[JSON], "{\"colour\": 1}", code).await;
    } else {
        let wrong = "{\"rows\": [{\"colour\": 1}]}";
        refusals.refused(router, id, path, &[JSON], wrong, "invalid_rows").await;
    }
}

async fn what_contradicts_the_stream(refusals: &mut Refusals<'_>, service: &Doors) {
    let router = &service.router;
    let (points, batches) = ("/v1/streams/points", "/v1/streams/points/batches");
    service.put("/v1/streams/lonely", &points_schema()).await.expect(201);
    let numeric = json!({ "fields": [{ "name": "x", "type": "numeric" }] }).to_string();
    let row = json!({ "rows": [{ "x": 1, "y": 2, "label": "near" }] }).to_string();
    let other = json!({ "rows": [{ "x": 2, "y": 1, "label": "far" }] }).to_string();
    let key = |key: &'static str| [JSON, ("idempotency-key", key)];
    ask(router, &Method::POST, batches, &key("k"), row.clone()).await.expect(202);
    let wait = |stream: &str, model: &str| format!("/v1/streams/{stream}/batches?wait=applied{model}");
    for (id, path, headers, body, code) in [
        ("create_stream", points, &[JSON][..], &numeric, "stream_exists"),
        ("create_stream", "/v1/streams/Upper", &[JSON][..], &numeric, "invalid_stream"),
        ("create_stream", "/v1/streams/bad", &[JSON][..], &"{\"fields\": []}".to_owned(), "invalid_stream"),
        ("delete_stream", points, &[JSON][..], &String::new(), "stream_in_use"),
        ("post_rows", &format!("{batches}?wait=never"), &[JSON][..], &row, "invalid_request"),
        ("post_rows", batches, &key("")[..], &row, "invalid_idempotency_key"),
        ("post_rows", batches, &key("k")[..], &other, "idempotency_key_reused"),
        ("post_rows", &wait("lonely", ""), &[JSON][..], &row, "no_model"),
        ("post_rows", &wait("points", ""), &[JSON][..], &row, "model_wanted"),
        ("post_rows", &wait("points", "&model=delay"), &[JSON][..], &row, "model_of_another_stream"),
        ("post_rows", &wait("points", "&model=nobody"), &[JSON][..], &row, "not_found"),
        ("post_labels", "/v1/streams/points/labels", &[JSON][..], &row, "no_late_labels"),
        ("post_labels", "/v1/streams/clicks/labels?timeout_seconds=-1", &[JSON][..], &row, "invalid_request"),
    ] {
        refusals.refused(router, id, path, headers, body.clone(), code).await;
    }
}

async fn what_contradicts_the_model(refusals: &mut Refusals<'_>, service: &Doors) {
    let router = &service.router;
    let model = "/v1/models/distance";
    let (plan, budget, all) = (format!("{model}/plan"), format!("{model}/memory-budget"), "/v1/memory-budget");
    let memory = ask(router, &Method::GET, &budget, &[], "").await.expect(200);
    let least = memory["minimum_bytes"].as_u64().unwrap();
    service.put(&budget, &json!({ "budget": least })).await.expect(200);
    // Each step takes the weights a billion times as far, to the other side of zero.
    let wild = json!({
        "kind": "network", "stream": "lonely", "network": { "architecture": "mlp", "hidden": [8] }, "step_rows": 16,
        "optimiser": { "type": "sgd", "weight_decay": 1e6 }, "learning_rate": 1000,
    });
    service.put("/v1/models/wild", &wild).await.expect(201);
    service.post("/v1/streams/lonely/batches?wait=applied", &points(0, 320)).await.expect(200);
    let spec = |more: Value| {
        let mut spec = json!({ "kind": "network", "stream": "points" });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let (row, rows) = (json!({ "x": 1, "y": 2 }), json!({ "rows": vec![json!({ "x": 1, "y": 2 }); 8193] }));
    let stage = |end: u64| json!([{ "layers": { "start": 0, "end": end } }]);
    for (id, path, body, code) in [
        ("create_model", model, spec(json!({ "seed": 1 })), "model_exists"),
        ("create_model", "/v1/models/new", spec(json!({ "network": { "architecture": "mpl" } })), "invalid_model"),
        ("create_model", "/v1/models/new", spec(json!({ "kind": "forest" })), "invalid_model"),
        ("create_model", "/v1/models/new", spec(json!({ "stream": "nowhere" })), "unknown_stream"),
        ("create_model", "/v1/models/new", spec(json!({ "memory_budget": 1 })), "budget_below_minimum"),
        ("change_model", model, json!({ "learning_rate": -1 }), "invalid_change"),
        ("set_plan", &plan, json!({ "stages": stage(1) }), "invalid_plan"),
        ("set_plan", &plan, json!({ "stages": stage(4), "workers": 64 }), "plan_over_budget"),
        ("set_model_budget", &budget, json!({ "budget": least - 1 }), "budget_below_minimum"),
        ("set_process_budget", all, json!({ "budget": 1 }), "process_budget_below_minimum"),
        ("set_process_budget", all, json!({ "budget": u64::MAX >> 1 }), "budget_above_ceiling"),
        ("set_process_budget", all, json!({ "budget": null, "weights": { "nobody": 1 } }), "invalid_weight"),
        ("predict", "/v1/models/distance/predict", rows, "too_many_rows"),
        ("predict", "/v1/models/wild/predict", json!({ "rows": [row] }), "model_diverged"),
    ] {
        refusals.refused(router, id, path, &[JSON], body.to_string(), code).await;
    }
}

/// A request of the Open Inference Protocol with an input for each name.
fn tensors(names: &[&str], rows: usize) -> Value {
    let tensor = |name| json!({ "name": name, "datatype": "FP32", "shape": [rows], "data": vec![1.0; rows] });
    json!({ "inputs": names.iter().map(tensor).collect::<Vec<_>>() })
}

async fn what_contradicts_the_tensors(refusals: &mut Refusals<'_>, service: &Doors) {
    let router = &service.router;
    let xy = tensors(&["x", "y"], 1);
    let mut logits = xy.clone();
    logits["outputs"] = json!([{ "name": "logits" }]);
    let (head_bytes, rest) = (xy.to_string().len().to_string(), format!("{xy}rest"));
    let head = |bytes| [JSON, ("inference-header-content-length", bytes)];
    for (id, versions) in [("infer", ""), ("infer_version", "/versions/now")] {
        let path = |model: &str| format!("/v2/models/{model}{versions}/infer");
        let (distance, wild) = (service.now(&path("distance")).await, service.now(&path("wild")).await);
        for (path, headers, body, code) in [
            (&distance, &[JSON][..], tensors(&["x", "z"], 1).to_string(), "invalid_inputs"),
            (&distance, &head(&head_bytes)[..], rest.clone(), "invalid_inputs"),
            (&distance, &[JSON][..], logits.to_string(), "invalid_outputs"),
            (&distance, &[JSON][..], tensors(&["x"], 1).to_string(), "invalid_rows"),
            (&distance, &[JSON][..], tensors(&["x", "y"], 8193).to_string(), "too_many_rows"),
            (&distance, &head("-1")[..], xy.to_string(), "invalid_header"),
            (&wild, &[JSON][..], xy.to_string(), "model_diverged"),
        ] {
            refusals.refused(router, id, path, headers, body, code).await;
        }
    }
    let (before, xy) = ("/v2/models/distance/versions/0.987654321", xy.to_string());
    for (id, door) in [("describe_model_version", ""), ("is_model_ready_version", "/ready"), ("infer_version", "/infer")] {
        refusals.refused(router, id, &format!("{before}{door}"), &[JSON], xy.clone(), "version_not_served").await;
    }
}

async fn what_nobody_watches(refusals: &mut Refusals<'_>, router: &Router) {
    let (id, door) = ("watch_events", "/v1/events");
    for (query, headers, code) in [
        ("?colour=1", &[][..], "invalid_request"),
        ("?model=nobody", &[][..], "not_found"),
        ("", &[("last-event-id", "x")][..], "invalid_last_event_id"),
    ] {
        refusals.refused(router, id, &format!("{door}{query}"), headers, "", code).await;
    }
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS_MAX {
        watchers.push(send(router, &Method::GET, door, &[], "").await);
    }
    refusals.refused(router, id, door, &[], "", "too_many_watchers").await;
}

async fn too_much_at_once(refusals: &mut Refusals<'_>, service: &Doors, has_encoder: bool) {
    let mut schema = points_schema();
    schema["row_id"] = json!("id");
    schema["late_labels"] = json!({ "window_rows": 100_000 });
    service.put("/v1/streams/crowd", &schema).await.expect(201);
    // Single rows through a wide network.
    let mut slow = points_model("crowd");
    slow["step_rows"] = json!(1);
    slow["network"] = json!({ "architecture": "mlp", "hidden": [512, 512] });
    slow["overload"] = json!({ "policy": "backpressure", "lag_rows_max": 0 });
    service.put("/v1/models/slow", &slow).await.expect(201);
    let csv = [("content-type", "text/csv")];
    let rows: String = (0..4000).map(|row| format!("{row},1,2,north\n")).collect();
    let (batches, labels) = ("/v1/streams/crowd/batches", "/v1/streams/crowd/labels");
    service.ask(&Method::POST, batches, &csv, format!("id,x,y,label\n{rows}")).await.expect(202);
    refusals.refused(&service.router, "post_rows", batches, &csv, "id,x,y,label\n0,1,2,north\n", "backpressure").await;
    refusals.refused(&service.router, "post_labels", labels, &csv, "id,label\n0,north\n", "backpressure").await;

    let rows = format!("x,y\n{}", "1,2\n".repeat(200));
    let tensors = tensors(&["x", "y"], 1).to_string();
    // One that is behind serves no version for long; the queue is that of all models.
    let version = service.now("/v2/models/distance/versions/now/infer").await;
    let mut queries = vec![
        ("predict", "/v1/models/slow/predict".to_owned(), csv, rows.into_bytes()),
        ("infer", "/v2/models/distance/infer".to_owned(), csv, tensors.clone().into_bytes()),
        ("infer_version", version, csv, tensors.into_bytes()),
    ];
    let contract = refusals.contract;
    for id in ["detect", "evaluate", "moderate"].into_iter().filter(|_| has_encoder) {
        let (path, body) = detectors::shown(contract, id);
        queries.push((id, path, [JSON], body));
    }
    let mut asking = tokio::task::JoinSet::new();
    for (id, path, headers, body) in std::iter::repeat_n(&queries, 40).flatten().cloned() {
        let router = service.router.clone();
        asking.spawn(async move { (id, ask(&router, &Method::POST, &path, &headers, body).await) });
    }
    let answers = asking.join_all().await;
    for (id, ..) in queries {
        let mut turned_away = answers.iter().filter(|(of, answer)| *of == id && answer.status != 200).peekable();
        assert!(turned_away.peek().is_some(), "{id}: forty queries of each kind, one thread, and one place to wait");
        turned_away.for_each(|(id, answer)| assert_eq!(refusals.note(id, answer), "predict_queue_full"));
    }
    if has_encoder {
        let spec = json!({ "encoder": ENCODER, "overload": { "policy": "backpressure", "lag_rows_max": 0 } });
        service.put("/v1/detectors/behind", &spec).await.expect(201);
        let (_, examples) = detectors::shown(contract, "post_examples");
        let path = "/v1/detectors/behind/examples";
        service.ask(&Method::POST, path, &[JSON], examples.clone()).await.expect(202);
        refusals.refused(&service.router, "post_examples", path, &[JSON], examples, "backpressure").await;
    }
    service.ask(&Method::DELETE, "/v1/models/slow", &[], "").await.expect(204);
}

async fn at_the_end_and_too_late(refusals: &mut Refusals<'_>, service: &Doors, has_encoder: bool) {
    let contract = refusals.contract;
    let (trigger, shutdown) = shutdown::channel();
    let late = doors_of(&service.running, shutdown.clone(), 0);
    for operation in contract.operations.iter().filter(|operation| has_encoder || !needs_encoder(operation, None)) {
        let Some(body) = contract.bodies(operation).into_iter().next() else { continue };
        let (path, headers) = (place(contract, operation, Some(body.of())), [("content-type", body.media_type.as_str())]);
        let endless = tokio_stream::pending::<std::io::Result<Bytes>>();
        refusals.refused(&late, operation.id(), &path, &headers, Body::from_stream(endless), "deadline").await;
    }
    trigger.drain();
    let ending = doors_of(&service.running, shutdown, 30);
    for operation in contract.operations.iter().filter(|operation| operation.said["responses"].get("503").is_some()) {
        let answer = ask(&ending, &operation.method, &place(contract, operation, None), &[JSON], "{}").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        refusals.note(operation.id(), &answer);
    }
    let live = ask(&ending, &Method::GET, "/v2/health/live", &[], "").await;
    contract.hold(contract.operation("is_live"), &live);
}

async fn a_model_that_stands_still(refusals: &mut Refusals<'_>) {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        let service = Doors::open(folder.path(), &[]).await;
        service.put("/v1/streams/points", &points_schema()).await.expect(201);
        service.put("/v1/models/m", &points_model("points")).await.expect(201);
        service.post("/v1/streams/points/batches?wait=applied", &points(0, 10)).await.expect(200);
        service.close().await;
    }
    // Checkpoints of another data folder: whole, and not this model's.
    let [of, elsewhere] = folders.each_ref().map(|folder| folder.path().join("models/1"));
    std::fs::remove_dir_all(&of).unwrap();
    copy_folder(&elsewhere, &of);
    let service = Doors::open(folders[0].path(), &[]).await;
    for (id, door, body) in [
        ("change_model", "", json!({ "learning_rate": 0.1 })),
        ("set_model_budget", "/memory-budget", json!({ "budget": null })),
        ("set_plan", "/plan", json!({ "stages": [] })),
        ("get_frontier", "/frontier", Value::Null),
        ("predict", "/predict", json!({ "rows": [{ "x": 1, "y": 2 }] })),
    ] {
        let path = format!("/v1/models/m{door}");
        refusals.refused(&service.router, id, &path, &[JSON], body.to_string(), "model_failed").await;
    }
    let tensors = tensors(&["x", "y"], 1).to_string();
    refusals.refused(&service.router, "infer", "/v2/models/m/infer", &[JSON], tensors, "model_failed").await;
    let ready = service.ask(&Method::GET, "/v2/models/m/ready", &[], "").await;
    refusals.note("is_model_ready", &ready);
    assert_eq!((ready.status, ready.body), (503, json!({ "name": "m", "ready": false })));
    service.close().await;
}

async fn a_full_log(refusals: &mut Refusals<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let service = Doors::open(folder.path(), &[("log.bytes_max", "16MiB"), ("log.retain_bytes", "16MiB")]).await;
    let schema = json!({
        "fields": [{ "name": "t", "type": "tensor", "shape": [4096], "element": "f32" }],
        "target": { "name": "y", "type": "regression" }, "row_id": "id", "late_labels": { "window_rows": 10 },
    });
    service.put("/v1/streams/wide", &schema).await.expect(201);
    let raw = [("content-type", "application/octet-stream")];
    let (batches, labels) = ("/v1/streams/wide/batches", "/v1/streams/wide/labels");
    let rows: Vec<u8> = (0..8 * 4099u32).flat_map(|word| (word as f32 * 1.37).sin().to_le_bytes()).collect();
    while service.ask(&Method::POST, batches, &raw, rows.clone()).await.status == 202 {}
    refusals.refused(&service.router, "post_rows", batches, &raw, rows, "insufficient_storage").await;
    // Labels have a little room of their own, so these are many, and too long to be pressed together.
    let values = (0..16_000u32).flat_map(|word| (word as f32 * 1.37).sin().to_le_bytes());
    let ids = (1..16_001u64).flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    let late: Vec<u8> = values.chain(ids).collect();
    while service.ask(&Method::POST, labels, &raw, late.clone()).await.status == 202 {}
    let answer = service.ask(&Method::POST, labels, &raw, late).await;
    refusals.note("post_labels", &answer);
    // They were refused beyond it, and what is told is what the configuration says.
    assert!(answer.body["detail"].as_str().unwrap().ends_with(", and log.bytes_max is 16777216"), "{answer:?}");
    service.close().await;
}
