//! The planner behind the doors: the frontier is told, each budget gets a plan that fits, what was measured is kept with the plan, steps
//! are left out only where rows may be given away, and a much better plan is found by what was observed.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use mustela::ferret::executor::Executor;
use mustela::ferret::plan::{Plan, Publication, Reckoned};
use mustela::ferret::pool::Pool;
use mustela::ferret::profile::{LayerTimes, Profile, made_up};
use mustela::ferret::trainer::{Recipe, Trainer};
use mustela::ferret::work::Rule;
use mustela::fold::{Demand, Fold, Step};
use mustela::learner::Learner;
use mustela::network::{Architecture, Loss, Network};
use serde_json::{Value, json};
use support::{Running, points, points_model, points_schema};

fn numbers(points: &[Value], key: &str) -> Vec<f64> {
    points.iter().map(|point| point[key].as_f64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_point_of_the_frontier_is_had_for_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[("compute.threads", "2")]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let said = client.get("/v1/models/m/frontier").await.expect(200);
    let frontier = said["frontier"]["points"].as_array().unwrap();
    let (bytes, rates) = (numbers(frontier, "bytes"), numbers(frontier, "adaptation_rate"));
    assert!(bytes.is_sorted_by(|a, b| a < b) && rates.is_sorted_by(|a, b| a < b), "{said}");
    let memory = client.get("/v1/models/m/memory-budget").await.expect(200);
    assert_eq!(memory["minimum_bytes"], frontier[0]["bytes"]);
    let profile = &said["frontier"]["profile"];
    assert_eq!(profile["layers"].as_array().unwrap().len(), 4);
    for (number, point) in frontier.iter().enumerate() {
        let memory = client.put("/v1/models/m/memory-budget", &json!({ "budget": point["bytes"] })).await.expect(200);
        assert!(memory["planned_bytes"].as_u64() <= point["bytes"].as_u64(), "{memory}");
        client.post_json("/v1/streams/points/batches", &points(number * 40, 40)).await.expect(202);
        client.settled("m").await;
        let memory = client.get("/v1/models/m/memory-budget").await.expect(200);
        assert!(memory["high_water_bytes"].as_u64() <= point["bytes"].as_u64(), "{memory}");
        let plan = client.get("/v1/models/m/plan").await.expect(200)["plan"].clone();
        assert_eq!(&plan["reckoned"]["profile"], profile, "what was measured once is kept");
        assert!(plan["stages"].as_array().unwrap().iter().all(|stage| stage["stride"] == 1), "every row is learned: {plan}");
    }
    assert_eq!(client.settled("m").await["rows"]["learned"], frontier.len() * 40);
    running.stop().await;
    let running = Running::start(folder.path(), &[("compute.threads", "2")]).await;
    let again = running.client.get("/v1/models/m/frontier").await.expect(200);
    assert_eq!(again["frontier"], said["frontier"], "nothing is measured anew");
    running.client.get("/v1/models/none/frontier").await.expect_problem(404, "not_found");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_left_out_only_where_rows_may_be_given_away() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/all", &points_model("points")).await.expect(201);
    let mut model = points_model("points");
    model["overload"] = json!({ "policy": "last_n" });
    client.put("/v1/models/some", &model).await.expect(201);
    let layers = |start: usize, end: usize| json!({ "start": start, "end": end });
    let plan = json!({ "stages": [{ "layers": layers(0, 2), "stride": 2 }, { "layers": layers(2, 4) }] });
    client.put("/v1/models/all/plan", &plan).await.expect_problem(422, "invalid_plan");
    client.put("/v1/models/some/plan", &plan).await.expect(200);
    client.post_json("/v1/streams/points/batches", &points(0, 160)).await.expect(202);
    // Ten steps of 16 rows; the lower stage learns every other one.
    let rows = client.settled("some").await["rows"].clone();
    assert_eq!((&rows["learned"], &rows["learned_in_part"], &rows["accepted"]), (&json!(80), &json!(80), &json!(160)));
    assert_eq!(client.settled("all").await["rows"]["learned"], 160);
    running.stop().await;
}

/// A trainer of a network that keeps two threads busy, under one step after the other, with a profile that was measured long ago.
fn trainer(times: LayerTimes) -> (Trainer, Recipe) {
    let architecture = Architecture::Mlp { hidden: vec![256; 4], standardise: Some(false) };
    let network = Network::build(&architecture, &[256], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
    let recipe = Recipe::new(Arc::new(network), 32, 2);
    let layers = vec![times; recipe.network.layers.len()];
    let profile = Profile { step_rows: 32, threads: 2, slowdown_thousandths: 1_050, layers, ..Profile::default() };
    let plan = recipe.planner().sequential(0, Publication::Continuous);
    let reckoned = Some(Reckoned { step_nanoseconds: 1, value_millionths: 1, profile });
    let trainer = Trainer::new(recipe.clone(), Plan { reckoned, ..plan }, Executor::Threads(Pool::new(2, 0).unwrap())).unwrap();
    (trainer, recipe)
}

fn train(trainer: &mut Trainer, recipe: &Recipe, steps: u64) {
    let rows = made_up(&recipe.network, 32);
    let mut outcomes = Vec::new();
    for step in 0..steps {
        trainer.apply(Step::starting(1 + step * 32, rows.clone()), &mut outcomes).unwrap();
    }
    trainer.drain(&mut outcomes).unwrap();
    assert_eq!(outcomes.len() as u64, steps);
}

#[test]
fn a_much_better_plan_is_proposed_when_two_looks_find_it() {
    let times = LayerTimes { forward: 100, backward: 200, update: 50, copy: 5 };
    let (mut trainer, recipe) = trainer(times);
    train(&mut trainer, &recipe, 40);
    assert_eq!(trainer.reconsider_plan(Demand::default()).unwrap(), None, "one look may be chance");
    let proposed = trainer.reconsider_plan(Demand::default()).unwrap().expect("two threads, and one step after the other");
    let plan: Plan = serde_json::from_value(proposed).unwrap();
    assert!(plan.in_flight() > 1 && plan.start == 40, "{}", plan.outline());
    // It was revised by what the steps took: a forward of 32 rows through 256 x 256 weights takes more than 100 ns.
    let profile = plan.reckoned.unwrap().profile;
    assert!(profile.layers.iter().all(|layer| *layer != times), "{profile:?}");
    assert!(profile.layers[2].forward > 10 * times.forward, "{profile:?}");
}

#[test]
fn where_nothing_better_fits_or_is_needed_the_plan_is_kept() {
    let (mut trainer, recipe) = trainer(LayerTimes { forward: 20_000, backward: 40_000, update: 10_000, copy: 1_000 });
    train(&mut trainer, &recipe, 40);
    let budget_bytes = Some(trainer.planned_bytes());
    let slow = Some(std::time::Duration::from_millis(10));
    for demand in [Demand { budget_bytes, row_interval: None }, Demand { budget_bytes: None, row_interval: slow }] {
        for _ in 0..3 {
            assert_eq!(trainer.reconsider_plan(demand).unwrap(), None, "{demand:?}");
        }
    }
}

/// What a learner does beside a step is in the step that is reckoned: MIR's looks ahead, at three times as many rows, take longer than
/// all the rest. How near reckoned and real times come is for `mustela bench planner --learner NAME` to say, on a quiet machine.
#[test]
fn a_learners_work_is_reckoned_with() {
    let pool = Pool::new(1, 0).unwrap();
    let reckoned = |learner: Learner| {
        let architecture = Architecture::Mlp { hidden: vec![256, 256], standardise: Some(false) };
        let network = Network::build(&architecture, &[256], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
        let rule = Rule { learner, ..Rule::default() };
        let planner = Recipe { rule, ..Recipe::new(Arc::new(network), 16, 1) }.planner();
        let plan = planner.sequential(0, Publication::Continuous);
        planner.reckon(&plan, &planner.measure(&pool, u64::MAX).unwrap()).step_nanoseconds
    };
    let plain = reckoned(Learner::Er { buffer_rows: 400, replay_rows: 16 });
    let looking = reckoned(Learner::Mir { buffer_rows: 400, replay_rows: 16, candidate_rows: 48 });
    assert!(2 * looking > 3 * plain, "a step of MIR is reckoned with {looking} ns, one of ER with {plain}");
}
