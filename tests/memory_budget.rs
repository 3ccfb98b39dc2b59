//! What models hold together is bounded by one budget, which they share by weight, and which changes while they learn.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mustela::cli::serve::Service;
use mustela::disk::FileSystem;
use mustela::fold::{
    BelowMinimum, Change, Demand, Fold, FoldError, Outcome, Predictions, ProposalError, Snapshot, State, StateRef, Step,
};
use mustela::ledger::Ledger;
use mustela::model::kind::{Given, Kind, Kinds, SpecError};
use mustela::rows::Rows;
use mustela::shutdown;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{Answer, Client, IN_ORDER, Running, points, points_model, points_schema};

const DOOR: &str = "/v1/memory-budget";
/// What the default configuration keeps back.
const RESERVED: u64 = 128 << 20;

async fn memory(client: &Client) -> Value {
    client.get(DOOR).await.expect(200)
}

async fn budget(client: &Client, budget: impl Into<Value>) -> Answer {
    client.put(DOOR, &json!({ "budget": budget.into() })).await
}

/// A figure of a model, in bytes.
fn bytes(memory: &Value, model: &str, figure: &str) -> u64 {
    memory["models"][model][figure].as_u64().unwrap_or_else(|| panic!("{figure} of {model} in {memory}"))
}

/// A service with a stream and two models of one recipe.
async fn two(folder: &tempfile::TempDir, settings: &[(&str, &str)]) -> Running {
    let running = Running::start(folder.path(), settings).await;
    running.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    running.client.put("/v1/models/a", &points_model("points")).await.expect(201);
    running.client.put("/v1/models/b", &points_model("points")).await.expect(201);
    running
}

async fn post(client: &Client, batches: std::ops::Range<usize>) {
    for batch in batches {
        client.post_json("/v1/streams/points/batches", &points(batch * 30, 30)).await.expect(202);
    }
}

/// The hashes of both states, from the checkpoints that the end of a service wrote.
async fn hashes(folder: &tempfile::TempDir) -> (Value, Value) {
    let running = Running::start(folder.path(), &[]).await;
    let hash = async |model: &str| {
        let view = running.client.get(&format!("/v1/models/{model}")).await.expect(200);
        assert_eq!((&view["version"], &view["rows"]["learned"]), (&json!("0.600"), &json!(600)));
        view["checkpoint"]["state_hash"].clone()
    };
    let both = (hash("a").await, hash("b").await);
    running.stop().await;
    both
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_models_shift_bytes_and_no_weight_of_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let running = two(&folder, &[IN_ORDER]).await;
    let client = &running.client;
    let at_first = memory(client).await;
    let (minimum, best) = (bytes(&at_first, "a", "minimum_bytes"), bytes(&at_first, "a", "planned_bytes"));
    assert!(minimum < best, "{at_first}");
    assert_eq!((&at_first["budget"], &at_first["budget_bytes"]), (&Value::Null, &Value::Null));
    assert_eq!(at_first["minimum_bytes"], 2 * minimum);
    assert_eq!(at_first["planned_bytes"], 2 * best);
    post(client, 0..4).await;

    // The sum of what both need is enough, and one byte less is not.
    let problem = budget(client, 2 * minimum - 1).await.expect_problem(422, "process_budget_below_minimum");
    assert_eq!((&problem["minimum_bytes"], &problem["budget_bytes"]), (&json!(2 * minimum), &json!(2 * minimum - 1)));
    assert_eq!(memory(client).await["models"]["a"]["planned_bytes"], best, "nothing is changed");
    let said = budget(client, 2 * minimum).await.expect(200);
    assert_eq!((&said["planned_bytes"], &said["budget_bytes"]), (&json!(2 * minimum), &json!(2 * minimum)));
    post(client, 4..8).await;

    // Bytes for one better plan: who gets them is a question of weight.
    let spare = 2 * minimum + (best - minimum);
    let said = budget(client, spare).await.expect(200);
    assert!(said["planned_bytes"].as_u64().unwrap() <= spare, "{said}");
    assert_eq!(bytes(&said, "a", "planned_bytes"), bytes(&said, "b", "planned_bytes"));
    for (heavy, light) in [("a", "b"), ("b", "a")] {
        let said = client.put(DOOR, &json!({ "budget": spare, "weights": { heavy: 1000.0, light: 1 } })).await.expect(200);
        assert_eq!((bytes(&said, heavy, "planned_bytes"), bytes(&said, light, "planned_bytes")), (best, minimum), "{said}");
        assert_eq!((bytes(&said, heavy, "allotted_bytes"), bytes(&said, light, "allotted_bytes")), (best, minimum));
        assert_eq!(said["models"][heavy]["weight"], 1000.0);
        post(client, if heavy == "a" { 8..12 } else { 12..16 }).await;
    }
    let own = client.get("/v1/models/b/memory-budget").await.expect(200);
    assert_eq!((&own["allotted_bytes"], &own["budget_bytes"]), (&json!(best), &Value::Null));
    // A budget of its own leaves the rest to the other.
    client.put("/v1/models/b/memory-budget", &json!({ "budget": minimum })).await.expect(200);
    let said = memory(client).await;
    assert_eq!((bytes(&said, "a", "planned_bytes"), bytes(&said, "b", "planned_bytes")), (best, minimum), "{said}");
    client.put("/v1/models/b/memory-budget", &json!({ "budget": minimum - 1 })).await.expect_problem(422, "budget_below_minimum");
    client.put("/v1/models/b/memory-budget", &json!({ "budget": null })).await.expect(200);
    let said = memory(client).await;
    assert_eq!((bytes(&said, "a", "planned_bytes"), bytes(&said, "b", "planned_bytes")), (minimum, best), "{said}");
    post(client, 16..20).await;
    for model in ["a", "b"] {
        assert_eq!(client.settled(model).await["rows"]["learned"], 600);
    }

    let page = running.metrics().await;
    for line in [format!("mustela_memory_shared_bytes {spare}"), format!("mustela_memory_allotted_bytes{{model=\"b\"}} {best}")] {
        assert!(page.lines().any(|found| found == line), "no `{line}`");
    }
    running.stop().await;
    let (a, b) = hashes(&folder).await;
    assert_eq!(a, b);
    let other = tempfile::tempdir().unwrap();
    let undisturbed = two(&other, &[IN_ORDER]).await;
    post(&undisturbed.client, 0..20).await;
    undisturbed.client.settled("a").await;
    undisturbed.client.settled("b").await;
    undisturbed.stop().await;
    assert_eq!(hashes(&other).await, (a, b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_fit_is_refused_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let running = two(&folder, &[]).await;
    let client = &running.client;
    let minimum = bytes(&memory(client).await, "a", "minimum_bytes");
    budget(client, 2 * minimum).await.expect(200);
    let c = client.put("/v1/models/c", &points_model("points")).await;
    let problem = c.expect_problem(422, "process_budget_below_minimum");
    assert_eq!((&problem["minimum_bytes"], &problem["budget_bytes"]), (&json!(3 * minimum), &json!(2 * minimum)));
    client.get("/v1/models/c").await.expect_problem(404, "not_found");

    // What the others have beyond their minimum makes room.
    budget(client, 3 * minimum).await.expect(200);
    let wide = client.put(DOOR, &json!({ "budget": 3 * minimum, "weights": { "a": 2.5 } })).await.expect(200);
    assert!(bytes(&wide, "a", "allotted_bytes") > minimum, "{wide}");
    client.put("/v1/models/c", &points_model("points")).await.expect(201);
    let said = memory(client).await;
    for model in ["a", "b", "c"] {
        assert_eq!((bytes(&said, model, "allotted_bytes"), bytes(&said, model, "planned_bytes")), (minimum, minimum), "{said}");
    }
    running.stop().await;

    // All of it is kept; and who goes leaves its share to the others, and its weight to nobody.
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    let again = memory(client).await;
    assert_eq!((&again["budget"], &again["models"]["a"]["weight"]), (&json!(3 * minimum), &json!(2.5)));
    assert_eq!(again["planned_bytes"], 3 * minimum);
    client.delete("/v1/models/a").await.expect(204);
    let said = memory(client).await;
    assert!(bytes(&said, "b", "allotted_bytes") > minimum && bytes(&said, "c", "allotted_bytes") > minimum, "{said}");
    client.put("/v1/models/a", &points_model("points")).await.expect(201);
    assert_eq!(memory(client).await["models"]["a"]["weight"], 1.0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let running = two(&folder, &[("memory.ceiling", "1GiB")]).await;
    let client = &running.client;
    let most = (1 << 30) - RESERVED;
    let before = memory(client).await;
    assert_eq!((&before["ceiling_bytes"], &before["reserved_bytes"]), (&json!(1 << 30), &json!(RESERVED)));
    assert_eq!((&before["shared_bytes"], bytes(&before, "a", "allotted_bytes")), (&json!(most), most / 2));
    for body in [
        json!({}),
        json!({ "budget": "plenty" }),
        json!({ "budget": "0%" }),
        json!({ "budget": "101%" }),
        json!({ "budget": -1 }),
        json!({ "budget": 1.5 }),
        json!({ "budget": [] }),
        json!({ "budget": null, "weights": { "a": "heavy" } }),
        json!({ "budget": null, "weights": [1, 2] }),
        json!({ "budget": null, "colour": "red" }),
    ] {
        client.put(DOOR, &body).await.expect_problem(422, "invalid_body");
    }
    for weights in [json!({ "nobody": 1 }), json!({ "a": 0 }), json!({ "a": -1 }), json!({ "a": 1e300 }), json!({ "a": 1e-300 })]
    {
        let body = json!({ "budget": null, "weights": weights });
        client.put(DOOR, &body).await.expect_problem(422, "invalid_weight");
    }
    let problem = budget(client, most + 1).await.expect_problem(422, "budget_above_ceiling");
    assert_eq!((&problem["most_bytes"], &problem["budget_bytes"]), (&json!(most), &json!(most + 1)));
    let after = memory(client).await;
    assert_eq!((&after["budget"], &after["shared_bytes"]), (&Value::Null, &json!(most)));

    for (asked, total) in [(json!("50%"), most / 2), (json!("300MiB"), 300 << 20), (json!(most), most), (Value::Null, most)] {
        let said = budget(client, asked.clone()).await.expect(200);
        assert_eq!(said["shared_bytes"], total);
        assert_eq!(bytes(&said, "a", "allotted_bytes") + bytes(&said, "b", "allotted_bytes"), total);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ceiling_that_came_down_is_followed_after_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let running = two(&folder, &[]).await;
    let (minimum, best) = {
        let said = memory(&running.client).await;
        (bytes(&said, "a", "minimum_bytes"), bytes(&said, "a", "planned_bytes"))
    };
    post(&running.client, 0..2).await;
    running.stop().await;

    // No room for both: they go on as they were, and the service says so.
    let ceiling = (RESERVED + 2 * minimum - 1).to_string();
    let running = Running::start(folder.path(), &[("memory.ceiling", &ceiling)]).await;
    post(&running.client, 2..4).await;
    assert_eq!(running.client.settled("a").await["memory"]["planned_bytes"], best);
    running.stop().await;

    let ceiling = (RESERVED + 2 * minimum).to_string();
    let running = Running::start(folder.path(), &[("memory.ceiling", &ceiling)]).await;
    while memory(&running.client).await["planned_bytes"] != 2 * minimum {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    running.stop().await;

    let refused = Command::new(env!("CARGO_BIN_EXE_mustela"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--metrics-listen",
            "127.0.0.1:0",
            "--set",
            "memory.ceiling=128MiB",
            "--data-dir",
        ])
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("nothing is left for models"), "{said}");
}

/// A kind that holds whatever it may, from 100 to 1000 bytes, and whose every row is its end. It notes what all plans hold together.
#[derive(Clone, Default)]
struct Elastic(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    by_model: BTreeMap<String, u64>,
    most_together: u64,
}

struct Stretched {
    kind: Elastic,
    tag: String,
    bytes: u64,
    ledger: Ledger,
}

struct Silent;

impl Snapshot for Silent {
    fn predict(&self, _: &Rows) -> Result<Predictions, FoldError> {
        Err(FoldError::Unavailable("it says nothing".into()))
    }
}

fn stretch(budget_bytes: Option<u64>) -> Result<Value, BelowMinimum> {
    let budget_bytes = budget_bytes.unwrap_or(u64::MAX);
    if budget_bytes < 100 { Err(BelowMinimum { budget_bytes, minimum_bytes: 100 }) } else { Ok(json!(budget_bytes.min(1000))) }
}

impl Kind for Elastic {
    fn name(&self) -> &'static str {
        "elastic"
    }
    fn propose_plan(&self, _: Given<'_>, budget_bytes: Option<u64>) -> Result<Value, SpecError> {
        Ok(stretch(budget_bytes)?)
    }
    fn build(&self, given: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
        let tag = given.settings["tag"].as_str().unwrap().to_owned();
        Ok(Box::new(Stretched { kind: self.clone(), tag, bytes: 100, ledger: Ledger::default() }))
    }
}

impl Fold for Stretched {
    fn apply(&mut self, _: Step, _: &mut Vec<Outcome>) -> Result<(), FoldError> {
        Err(FoldError::Unavailable("it takes no rows".into()))
    }
    fn drain(&mut self, _: &mut Vec<Outcome>) -> Result<(), FoldError> {
        Ok(())
    }
    fn propose_plan(&mut self, demand: Demand) -> Result<Value, ProposalError> {
        Ok(stretch(demand.budget_bytes)?)
    }
    fn check(&self, _: &Change) -> Result<(), String> {
        Ok(())
    }
    fn execute(&mut self, change: &Change) -> Result<(), FoldError> {
        let Change::Plan(plan) = change else { return Ok(()) };
        self.bytes = plan.as_u64().unwrap();
        let mut held = self.kind.0.lock();
        held.by_model.insert(self.tag.clone(), self.bytes);
        held.most_together = held.most_together.max(held.by_model.values().sum());
        Ok(())
    }
    fn begin_snapshot(&mut self, _: &mut Vec<Outcome>) -> Result<bool, FoldError> {
        Ok(true)
    }
    fn snapshot(&mut self) -> Result<Option<Arc<dyn Snapshot>>, FoldError> {
        Ok(Some(Arc::new(Silent)))
    }
    fn checkpoint(&self) -> Result<StateRef<'_>, FoldError> {
        Ok(StateRef { tensors: Default::default(), values: json!(self.bytes) })
    }
    fn restore(&mut self, state: State) -> Result<(), FoldError> {
        self.bytes = state.values.as_u64().unwrap();
        Ok(())
    }
    fn step_rows(&self) -> usize {
        1
    }
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }
    fn planned_bytes(&self) -> u64 {
        self.bytes
    }
    fn minimum_bytes(&self) -> u64 {
        100
    }
    fn identity(&self) -> String {
        "elastic".into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_less_comes_first_and_who_stands_still_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let config = support::config(folder.path(), &[("memory.ceiling", &(RESERVED + 2000).to_string())]);
    let elastic = Elastic::default();
    let service = Service::start(config, Arc::new(FileSystem), Kinds::default().with(elastic.clone()), shutdown).await.unwrap();
    let client = Client::new(format!("http://{}", service.address));
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/streams/others", &points_schema()).await.expect(201);
    let plans = async || {
        let said = memory(&client).await;
        ["a", "b", "c"].map(|model| said["models"][model]["planned_bytes"].as_u64().unwrap_or_default())
    };
    let weights = async |a: u64, b: u64, c: u64| {
        client.put(DOOR, &json!({ "budget": null, "weights": { "a": a, "b": b, "c": c } })).await.expect(200);
    };
    let put = async |model: &str, stream: &str| {
        let spec = json!({ "kind": "elastic", "stream": stream, "tag": model });
        client.put(&format!("/v1/models/{model}"), &spec).await.expect(201);
    };
    put("a", "points").await;
    assert_eq!(plans().await, [1000, 0, 0]);
    put("b", "points").await;
    put("c", "others").await;
    assert_eq!(plans().await, [666, 666, 666]);
    weights(1, 1, 8).await;
    assert_eq!(plans().await, [200, 200, 1000]);
    weights(8, 1, 1).await;
    assert_eq!(plans().await, [1000, 200, 200]);
    budget(&client, "50%").await.expect(200);
    assert_eq!(plans().await, [800, 100, 100]);
    weights(1, 1, 2).await;
    assert_eq!(plans().await, [500, 500, 1000]);
    assert_eq!(elastic.0.lock().most_together, 2000, "at no moment more");

    client.post_json("/v1/streams/others/batches", &points(0, 1)).await.expect(202);
    while client.get("/v1/models/c").await.expect(200)["failure"].is_null() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.put("/v1/models/c/memory-budget", &json!({ "budget": 100 })).await.expect_problem(409, "model_failed");
    let problem = budget(&client, 1199).await.expect_problem(422, "process_budget_below_minimum");
    assert_eq!(problem["minimum_bytes"], 1200);
    budget(&client, 1200).await.expect(200);
    assert_eq!(plans().await, [100, 100, 1000]);
    client.delete("/v1/models/c").await.expect(204);
    assert_eq!(plans().await, [600, 600, 0]);
    trigger.drain();
    service.stop(Duration::from_secs(20)).await;
}
