//! A plan written by hand: followed by a decision, kept through kill -9, refused with the reason where it cannot be.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Client, Process, Running, points, points_model, points_schema};

/// Three stages of the points' network (standardise, linear, relu, linear), with two workers.
fn pipelined() -> Value {
    json!({
        "stages": [
            { "layers": { "start": 0, "end": 2 }, "recompute": true },
            { "layers": { "start": 2, "end": 3 } },
            { "layers": { "start": 3, "end": 4 }, "accumulation": 2 },
        ],
        "workers": 2,
    })
}

async fn create(client: &Client) {
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut model = points_model("points");
    model["optimiser"] = json!({ "type": "adamw" });
    client.put("/v1/models/m", &model).await.expect(201);
    // What the planner chooses depends on the threads and on what it measured.
    client.put("/v1/models/m/plan", &json!({ "stages": [{ "layers": { "start": 0, "end": 4 } }] })).await.expect(200);
}

async fn post(client: &Client, batches: std::ops::Range<usize>) {
    for batch in batches {
        client.post_json("/v1/streams/points/batches", &points(batch * 40, 40)).await.expect(202);
    }
}

/// Runs 30 batches under a plan by hand from the tenth on; `kill`: with a kill -9 in between, while steps are in flight.
async fn run(folder: &Path, interval_rows: &str, threads: &str, kill: bool) -> (Value, Value) {
    let settings = [("checkpoint.interval_rows", interval_rows), ("compute.threads", threads)];
    let mut process = Process::start(folder, &settings);
    create(&process.client).await;
    post(&process.client, 0..10).await;
    process.client.settled("m").await;
    process.client.put("/v1/models/m/plan", &pipelined()).await.expect(200);
    post(&process.client, 10..20).await;
    if kill {
        process.kill();
        process = Process::start(folder, &settings);
    }
    post(&process.client, 20..30).await;
    process.client.settled("m").await;
    let plan = process.client.get("/v1/models/m/plan").await.expect(200);
    assert_eq!(plan["plan"]["stages"].as_array().unwrap().len(), 3, "{plan}");
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &settings);
    let view = process.client.settled("m").await;
    assert_eq!((&view["version"], &view["rows"]["learned"]), (&json!("0.1200"), &json!(1200)));
    assert_eq!(process.terminate(), Some(0));
    (view["checkpoint"]["state_hash"].clone(), view["online"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hash_whatever_the_threads_the_checkpoints_and_the_kill() {
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let whole = run(folders[0].path(), "1000000", "2", false).await;
    assert!(whole.0.is_string());
    assert_eq!(run(folders[1].path(), "1000000", "1", false).await, whole, "one compute thread");
    assert_eq!(run(folders[2].path(), "70", "2", true).await, whole, "killed, with a checkpoint every 70 rows");
    assert_eq!(run(folders[3].path(), "1000000", "1", true).await, whole, "killed, and all replayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_followed_shown_and_given_up_for_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    create(client).await;
    let before = client.get("/v1/models/m/plan").await.expect(200);
    assert_eq!(before["plan"]["stages"].as_array().unwrap().len(), 1);
    let names: Vec<_> = before["outline"]["layers"].as_array().unwrap().iter().map(|layer| layer["name"].clone()).collect();
    assert_eq!(names, ["standardise", "linear", "relu", "linear"]);

    let said = client.put("/v1/models/m/plan", &pipelined()).await.expect(200);
    assert_eq!((&said["plan"]["workers"], &said["plan"]["stages"][2]["accumulation"]), (&json!(2), &json!(2)));
    let memory = &said["memory"];
    let parts = memory["parts"].as_object().unwrap();
    let planned: u64 = parts.values().map(|part| part["planned_bytes"].as_u64().unwrap()).sum();
    assert_eq!(planned + said["plan"]["bytes"]["overhead"].as_u64().unwrap(), memory["planned_bytes"].as_u64().unwrap());
    let applied = client.post_json("/v1/streams/points/batches?wait=applied&model=m", &points(0, 300)).await.expect(200);
    assert_eq!((&applied["applied"], &applied["rows"]), (&json!(true), &json!(300)));
    let view = client.settled("m").await;
    assert_eq!(view["published_version"], "0.300");
    let memory = &view["memory"];
    assert!(memory["high_water_bytes"].as_u64() <= memory["planned_bytes"].as_u64(), "{memory}");
    assert!(memory["parts"]["weight_versions"]["used_bytes"].as_u64().unwrap() > 0, "the window is held: {memory}");

    // The budget is the user's word on memory, and the planner's plan answers it.
    let minimum = view["memory"]["minimum_bytes"].clone();
    client.put("/v1/models/m/memory-budget", &json!({ "budget": minimum })).await.expect(200);
    let after = client.get("/v1/models/m/plan").await.expect(200);
    assert_eq!(after["plan"]["stages"].as_array().unwrap().len(), 1);
    let problem = client.put("/v1/models/m/plan", &pipelined()).await.expect_problem(422, "plan_over_budget");
    assert_eq!(problem["budget_bytes"], minimum);
    assert!(problem["planned_bytes"].as_u64() > minimum.as_u64());
    post(client, 8..12).await;
    assert_eq!(client.settled("m").await["rows"]["learned"], 460);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_cannot_be_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    create(client).await;
    let whole = json!({ "start": 0, "end": 4 });
    for (wish, word) in [
        (json!({}), "stages"),
        (json!({ "stages": [{ "layers": whole, "recompute": "yes" }] }), "a list of layers"),
        (json!({ "stages": [] }), "0 stages"),
        (json!({ "stages": [{ "layers": { "start": 0, "end": 3 } }] }), "layer 3"),
        (json!({ "stages": [{ "layers": { "start": 0, "end": 99 } }] }), "4 layers"),
        (json!({ "stages": [{ "layers": { "start": 3, "end": 0 } }] }), "begin at layer 0"),
        (json!({ "stages": [{ "layers": whole }], "workers": 65 }), "65 workers"),
        (json!({ "stages": [{ "layers": whole, "stride": 2 }] }), "omit"),
        (json!({ "stages": [{ "layers": whole, "recompute": [0, 2] }] }), "storage of its input"),
        (json!({ "stages": [{ "layers": whole, "accumulation": 5000 }] }), "accumulation 5000"),
        (json!({ "stages": [{ "layers": { "start": 0, "end": 1 } }, { "layers": { "start": 1, "end": 4 } }] }), "learn nothing"),
        (json!({ "stages": [{ "layers": whole }], "bytes": 3 }), "bytes"),
        (json!({ "stages": [{ "layers": whole }], "workers": 18446744073709551615u64 }), "workers"),
    ] {
        let problem = client.put("/v1/models/m/plan", &wish).await.expect_problem(422, "invalid_plan");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{wish}: {problem}");
    }
    let problem = client.put("/v1/models/m/plan", &json!([])).await.expect_problem(422, "invalid_body");
    assert!(problem["detail"].as_str().unwrap().contains("expected an object"), "{problem}");
    client.put("/v1/models/none/plan", &json!({})).await.expect_problem(404, "not_found");
    client.put("/v1/models/m/plan", &json!({ "stages": [{ "layers": whole }] })).await.expect(200);
    running.stop().await;
}

/// `mustela plan` reckons and tries a plan, the smallest one too, and says why where there is none.
#[test]
fn the_command_reckons_and_tries() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, body: &Value| {
        let path = folder.path().join(name);
        std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(&path).unwrap();
        serde_json::to_writer(std::fs::OpenOptions::new().write(true).open(&path).unwrap(), body).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (stream, model) = (file("stream.json", &points_schema()), file("model.json", &points_model("points")));
    let plan = file("plan.json", &pipelined());
    let run = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mustela"));
        command.args(["plan", &stream, &model, "--json"]).args(flags).output().unwrap()
    };
    let said = |flags: &[&str]| -> Value {
        let output = run(flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(said["ledger_high_water_bytes"].as_u64() <= said["planned_bytes"].as_u64(), "{said}");
        said
    };
    let best = said(&[]);
    let minimum = best["minimum_bytes"].as_u64().unwrap();
    let smallest = said(&["--budget", &minimum.to_string()]);
    assert_eq!((&smallest["planned_bytes"], &smallest["plan"]["publication"]), (&json!(minimum), &json!("at_drain")));
    assert_eq!(said(&["--plan", &plan])["stages"][0]["staleness"], 5);
    let refused = run(&["--budget", &(minimum - 1).to_string()]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(&minimum.to_string()));
}
