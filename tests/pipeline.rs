//! Promise 2, at the heart of it: whatever the order in which the pipeline's tasks run, on however many threads, drained or not,
//! killed and restarted or not, the weights are the same to the bit.
//!
//! 200 random cases; `PROPTEST_CASES=5000 cargo test --release --test pipeline` runs as many as are asked for.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mustela::ferret::compensation::Compensation;
use mustela::ferret::executor::Executor;
use mustela::ferret::plan::{Plan, Publication, Reads, StagePlan};
use mustela::ferret::pool::Pool;
use mustela::ferret::trainer::{Recipe, Trainer};
use mustela::ferret::work::Rule;
use mustela::fold::{Change, Fold, Outcome, Predictions, State, Step, Verdict};
use mustela::learner::Learner;
use mustela::ledger::Part;
use mustela::model::checkpoint::state_hash;
use mustela::network::{Architecture, Column, Loss, Network, Optimiser, deep_copy};
use mustela::rows::{Block, Element, Rows, Target};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

const INPUTS: usize = 12;
const CLASSES: usize = 4;
const STEPS: u64 = 24;

/// A network with as many layers as the deepest plan has stages, and its input.
fn architectures() -> Vec<(Architecture, Vec<usize>)> {
    let mlp = |hidden: &[usize], standardise| Architecture::Mlp { hidden: hidden.to_vec(), standardise: Some(standardise) };
    let layers = r#"{"architecture":"layers","layers":[
        {"type":"conv2d","channels":4,"kernel":3,"padding":1},{"type":"group_norm","groups":2},{"type":"relu"},
        {"type":"residual","layers":[{"type":"conv2d","channels":4,"kernel":3,"padding":1},{"type":"relu"}]},
        {"type":"relu"},{"type":"max_pool2d","size":2},{"type":"flatten"},{"type":"linear","outputs":4}]}"#;
    vec![
        (mlp(&[8, 8, 8], false), vec![INPUTS]),
        (mlp(&[8, 6], true), vec![INPUTS]),
        (mlp(&[], true), vec![INPUTS]),
        (serde_json::from_str(layers).unwrap(), vec![1, 3, 4]),
        (mlp(&[8, 6], true), vec![INPUTS]),
    ]
}

/// The architecture whose inputs are columns that are not all plain numbers.
const OF_COLUMNS: usize = 4;

fn columns() -> Vec<Column> {
    let (number, optional, category) = (Column::Number, Column::Optional, Column::Category { buckets: 3 });
    vec![number, category, optional, number, category, optional, category, number, category, number]
}

fn optimisers() -> [Optimiser; 3] {
    [
        Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 },
        Optimiser::Sgd { momentum: 0.9, weight_decay: 0.01 },
        Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
    ]
}

/// Rows that follow from their number; one step in a while has a feature that no arithmetic survives.
fn step(number: u64, step_rows: usize, poison: bool) -> Step {
    let count = 1 + (number as usize * 7) % step_rows;
    let value = |index: usize| ((index as u64 * 2654435761 + number * 40503) % 1000) as f32 / 500.0 - 1.0;
    let mut features: Vec<f32> = (0..count * INPUTS).map(value).collect();
    if poison {
        features[0] = 3e38;
        features[1] = -3e38;
    }
    let bytes: Bytes = features.iter().flat_map(|value| value.to_le_bytes()).collect();
    let target = Some(Target::Classes((0..count as u32).map(|row| (row + number as u32) % CLASSES as u32).collect()));
    let blocks = vec![Block { element: Element::F32, width: INPUTS, bytes }];
    Step::starting(1 + number * step_rows as u64, Rows { count, blocks, target, ..Rows::default() })
}

fn compensations() -> Vec<Compensation> {
    let of = |text: &str| serde_json::from_str(text).unwrap();
    vec![
        of(r#"{"type":"iter_fisher"}"#),
        of(r#"{"type":"iter_fisher","tuning":"gradient","form":"end_points"}"#),
        of(r#"{"type":"fisher"}"#),
        of(r#"{"type":"gap_aware"}"#),
    ]
}

fn learners() -> Vec<Learner> {
    let of = |text: &str| serde_json::from_str(text).unwrap();
    vec![
        of(r#"{"type":"er","buffer_rows":9,"replay_rows":2}"#),
        of(r#"{"type":"mir","buffer_rows":9,"replay_rows":2,"candidate_rows":4}"#),
        of(r#"{"type":"lwf","every_rows":7}"#),
        of(r#"{"type":"mas","every_rows":9,"sample_rows":3,"weight":0.1}"#),
    ]
}

/// One of the properties' cases.
#[derive(Clone, Debug)]
struct Case {
    architecture: usize,
    optimiser: usize,
    compensation: usize,
    learner: usize,
    seed: u64,
    step_rows: usize,
    poison: Option<u64>,
    /// Each from the step that its index comes to.
    plans: Vec<(Index, Wish)>,
    learning_rate_at: Index,
}

/// A plan before it is known how many layers it is for.
#[derive(Clone, Debug)]
struct Wish {
    cuts: Vec<Index>,
    recompute: Vec<bool>,
    segments: Vec<Index>,
    accumulation: Vec<u64>,
    workers: u64,
    continuous: bool,
    omits: bool,
    reads: Reads,
}

fn wish() -> impl Strategy<Value = Wish> {
    let stages = 0..6usize;
    stages.prop_flat_map(|cuts| {
        (
            prop::collection::vec(any::<Index>(), cuts),
            prop::collection::vec(any::<bool>(), cuts + 1),
            prop::collection::vec(any::<Index>(), 0..3),
            prop::collection::vec(prop_oneof![3 => Just(1u64), 1 => 2..4u64], cuts + 1),
            1..=4u64,
            any::<bool>(),
            prop::bool::weighted(0.2),
            prop_oneof![3 => Just(Reads::Ferret), 1 => Just(Reads::Dapple), 1 => Just(Reads::TwoBuffered)],
        )
            .prop_map(|(cuts, recompute, segments, accumulation, workers, continuous, omits, reads)| Wish {
                cuts,
                recompute,
                segments,
                accumulation,
                workers,
                continuous,
                omits,
                reads,
            })
    })
}

fn case() -> impl Strategy<Value = Case> {
    (
        0..5usize,
        0..3usize,
        (0..8usize, 0..8usize),
        any::<u64>(),
        1..4usize,
        prop::option::weighted(0.3, 0..STEPS),
        subsequence(vec![0u8, 1], 1..=2).prop_flat_map(|plans| prop::collection::vec((any::<Index>(), wish()), plans.len())),
        any::<Index>(),
    )
        .prop_map(|(architecture, optimiser, (compensation, learner), seed, step_rows, poison, plans, learning_rate_at)| {
            Case { architecture, optimiser, compensation, learner, seed, step_rows, poison, plans, learning_rate_at }
        })
}

impl Wish {
    fn plan(&self, recipe: &Recipe, start: u64) -> Plan {
        let network = &recipe.network;
        let (lowest, layers) = (network.first_learning_layer(), network.layers.len());
        // The first stage must learn something.
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| lowest + 1 + cut.index((layers - lowest - 1).max(1))).collect();
        cuts.retain(|&cut| cut < layers && !recipe.planner().is_whole());
        cuts.sort_unstable();
        cuts.dedup();
        let ends = cuts.iter().copied().chain([layers]);
        let (mut stages, mut first) = (Vec::new(), 0);
        for (number, end) in ends.enumerate() {
            let mut stage = StagePlan { accumulation: self.accumulation[number], ..StagePlan::whole(first..end) };
            let may_begin = |layer: usize| network.layers[layer].cost(1).output > 0;
            if self.recompute[number] && may_begin(first) {
                stage.recompute = self.segments.iter().map(|segment| first + segment.index(end - first)).collect();
                stage.recompute.push(first);
                stage.recompute.retain(|&layer| may_begin(layer));
                stage.recompute.sort_unstable();
                stage.recompute.dedup();
            }
            stages.push(stage);
            first = end;
        }
        let grouped = self.reads != Reads::Ferret;
        if grouped {
            // Groups of one size: as many steps as this, or as there are stages.
            let group = if self.accumulation[0] == 1 { stages.len() as u64 } else { self.accumulation[0] };
            stages.iter_mut().for_each(|stage| stage.accumulation = group);
        } else if self.omits {
            let count = stages.len();
            for (number, stage) in stages.iter_mut().enumerate() {
                (stage.stride, stage.accumulation) = (if number + 1 == count { 1 } else { 1 + (count - number) as u64 % 3 }, 1);
            }
        }
        let publication = if self.continuous { Publication::Continuous } else { Publication::AtDrain };
        let (planner, workers) = (recipe.planner(), if grouped { 1 } else { self.workers });
        planner.reading(planner.plan(start, stages, workers, publication), self.reads)
    }
}

/// How the same steps are run: by whom, drained before which steps, restarted from a checkpoint before which, read in between.
struct Way {
    executor: Executor,
    drains: Vec<u64>,
    restarts: Vec<u64>,
    reads: bool,
}

/// What all ways must agree on.
#[derive(Debug, PartialEq)]
struct End {
    hash: String,
    losses: Vec<(u64, Verdict, u64)>,
}

fn recipe(case: &Case) -> Recipe {
    let recipe = recipe_of(case.architecture, case.optimiser, case.seed, case.step_rows);
    // Half of the cases have none.
    let compensation = compensations().get(case.compensation).copied().unwrap_or_default();
    let learner = learners().get(case.learner).copied().unwrap_or_default();
    Recipe { rule: Rule { compensation, learner, ..recipe.rule }, ..recipe }
}

fn recipe_of(number: usize, optimiser: usize, seed: u64, step_rows: usize) -> Recipe {
    let (architecture, input) = &architectures()[number];
    let network = if number == OF_COLUMNS {
        Network::for_columns(architecture, &columns(), CLASSES, Loss::SoftmaxCrossEntropy).unwrap()
    } else {
        Network::build(architecture, input, CLASSES, Loss::SoftmaxCrossEntropy, false).unwrap()
    };
    let rule = Rule { optimiser: optimisers()[optimiser], ..Rule::default() };
    Recipe { rule, learning_rate: 0.05, seed, ..Recipe::new(Arc::new(network), step_rows, 3) }
}

/// The state as a file would keep it.
fn saved(trainer: &Trainer) -> State {
    let state = trainer.checkpoint().unwrap();
    let tensors: BTreeMap<_, _> = state.tensors.iter().map(|(name, tensor)| (name.clone(), deep_copy(tensor).unwrap())).collect();
    State { tensors, values: state.values.clone() }
}

fn run(case: &Case, way: &Way) -> End {
    let recipe = recipe(case);
    let mut plans: Vec<(u64, &Wish)> = case.plans.iter().map(|(at, wish)| (at.index(STEPS as usize) as u64, wish)).collect();
    plans.sort_by_key(|(at, _)| *at);
    plans[0].0 = 0;
    let first = plans[0].1.plan(&recipe, 0);
    let mut trainer = Trainer::new(recipe.clone(), first, way.executor.clone()).unwrap();
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut held = Vec::new();
    for number in 0..STEPS {
        if let Some((_, wish)) = plans[1..].iter().find(|(at, _)| *at == number) {
            trainer.drain(&mut outcomes).unwrap();
            let plan = wish.plan(&recipe, trainer.ordinal().unwrap());
            held.clear();
            trainer.execute(&Change::Plan(serde_json::json!(plan))).unwrap();
        }
        if case.learning_rate_at.index(STEPS as usize) as u64 == number {
            trainer.drain(&mut outcomes).unwrap();
            trainer.execute(&Change::LearningRate(0.02)).unwrap();
        }
        if way.drains.contains(&number) {
            trainer.drain(&mut outcomes).unwrap();
        }
        if way.restarts.contains(&number) {
            trainer.drain(&mut outcomes).unwrap();
            let state = saved(&trainer);
            held.clear();
            trainer = Trainer::new(recipe.clone(), recipe.planner().minimum(0), way.executor.clone()).unwrap();
            trainer.restore(state).unwrap();
        }
        let poison = case.poison == Some(number);
        trainer.apply(step(number, case.step_rows, poison), &mut outcomes).unwrap();
        if way.reads && number % 3 == 0 {
            held.clear();
            if trainer.begin_snapshot(&mut outcomes).unwrap() {
                held.extend(trainer.snapshot().unwrap());
            }
        }
        if way.reads {
            held.extend(trainer.snapshot().unwrap());
        }
    }
    trainer.drain(&mut outcomes).unwrap();
    if !matches!(way.executor, Executor::Seeded(_)) {
        // The overhead is for what the ledger does not count. A drawn order lets updates wait, as the runners do not.
        let planned: u64 = Part::ALL.into_iter().map(|part| trainer.planned_part_bytes(part)).sum();
        let most = trainer.ledger().high_water();
        assert!(most <= planned, "{most} bytes were held under a plan of {planned}");
    }
    assert_eq!(outcomes.len() as u64, STEPS);
    let losses =
        outcomes.iter().map(|outcome| (outcome.ordinal, outcome.verdict.clone(), outcome.score.loss.to_bits())).collect();
    let state = trainer.checkpoint().unwrap();
    let tensors = state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor));
    // What the plan is reckoned to hold is part of the values; order and weights are what is compared.
    End { hash: state_hash(tensors).unwrap(), losses }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_order_gives_the_same_bits(case in case(), orders in any::<[u64; 3]>(), at in prop::collection::vec(0..STEPS, 4)) {
        let threads = |count: usize| Executor::Threads(Pool::new(count, 0).unwrap());
        let way = |executor| Way { executor, drains: Vec::new(), restarts: Vec::new(), reads: false };
        let one = run(&case, &way(threads(1)));
        let two = run(&case, &Way { reads: true, ..way(threads(2)) });
        prop_assert_eq!(&two, &one, "two threads and readers");
        for seed in orders {
            let other = run(&case, &way(Executor::Seeded(seed)));
            prop_assert_eq!(&other, &one, "the order of seed {}", seed);
        }
        let drained = run(&case, &Way { drains: at[..2].to_vec(), reads: true, ..way(Executor::Seeded(orders[0])) });
        prop_assert_eq!(&drained, &one, "drained before {:?}, with readers", &at[..2]);
        let filled = run(&case, &way(Executor::Filling));
        prop_assert_eq!(&filled, &one, "filled as far as it may be");
        let restarted = run(&case, &Way { restarts: at[2..].to_vec(), ..way(threads(2)) });
        prop_assert_eq!(&restarted, &one, "restarted before {:?}", &at[2..]);
    }
}

/// 200, or as many as the environment asks for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

/// What a trainer that is drained after each step predicts, by the step.
fn predictions_when_drained(recipe: &Recipe, plan: &Plan) -> Vec<Predictions> {
    let mut trainer = Trainer::new(recipe.clone(), plan.clone(), Executor::Filling).unwrap();
    let mut outcomes = Vec::new();
    let of_step = |number| {
        trainer.apply(step(number, recipe.step_rows, false), &mut outcomes).unwrap();
        trainer.drain(&mut outcomes).unwrap();
        assert!(trainer.begin_snapshot(&mut outcomes).unwrap());
        let snapshot = trainer.snapshot().unwrap().unwrap();
        snapshot.predict(&step(99, 3, false).rows).unwrap()
    };
    (0..STEPS).map(of_step).collect()
}

/// A snapshot that is made while steps go on is of the step after which it was begun, in every stage.
#[test]
fn snapshots_are_of_one_step_in_every_stage() {
    for architecture in 0..5 {
        let recipe = recipe_of(architecture, 1, 5, 2);
        let (lowest, layers) = (recipe.network.first_learning_layer(), recipe.network.layers.len());
        let firsts: Vec<usize> = std::iter::once(0).chain((lowest + 1..layers).step_by(2)).collect();
        let ends = firsts[1..].iter().copied().chain([layers]);
        let mut stages: Vec<_> = firsts.iter().zip(ends).map(|(&first, end)| StagePlan::whole(first..end)).collect();
        stages[0].accumulation = 2;
        let plan = recipe.planner().plan(0, stages, 2, Publication::Continuous);
        let expected = predictions_when_drained(&recipe, &plan);
        let pool = Pool::new(2, 0).unwrap();
        for executor in [Executor::Threads(pool), Executor::Seeded(1), Executor::Seeded(2), Executor::Filling] {
            let mut trainer = Trainer::new(recipe.clone(), plan.clone(), executor).unwrap();
            let (mut outcomes, mut begun, mut compared) = (Vec::new(), None, 0);
            for number in 0..STEPS {
                trainer.apply(step(number, recipe.step_rows, false), &mut outcomes).unwrap();
                if begun.is_none() && trainer.begin_snapshot(&mut outcomes).unwrap() {
                    begun = Some(number);
                }
                if let Some(snapshot) = trainer.snapshot().unwrap() {
                    let of = begun.take().unwrap() as usize;
                    let predicted = snapshot.predict(&step(99, 3, false).rows).unwrap();
                    assert_eq!(predicted, expected[of], "architecture {architecture}, after step {of}, taken after {number}");
                    compared += 1;
                }
            }
            trainer.drain(&mut outcomes).unwrap();
            let last = trainer.snapshot().unwrap();
            assert!(compared + usize::from(last.is_some()) > 1, "{compared} snapshots");
        }
    }
}

/// One row whose only feature is `value`.
fn lone(number: u64, value: f32) -> Step {
    let blocks = vec![Block { element: Element::F32, width: 1, bytes: Bytes::from(value.to_le_bytes().to_vec()) }];
    let target = Some(Target::Values(vec![0.5]));
    Step::starting(1 + number, Rows { count: 1, blocks, target, ..Rows::default() })
}

/// The verdict on a large row, whether each of the two stages' weights moved, and the hash after one more row.
fn after_a_large_row(seed: u64, value: f32, executor: Executor) -> (Verdict, [bool; 2], String) {
    let architecture = Architecture::Mlp { hidden: vec![2], standardise: Some(false) };
    let network = Network::build(&architecture, &[1], 1, Loss::MeanSquaredError, false).unwrap();
    let (network, optimiser) = (Arc::new(network), optimisers()[0]);
    let recipe = Recipe { rule: Rule { optimiser, ..Rule::default() }, learning_rate: 1e-30, seed, ..Recipe::new(network, 1, 2) };
    let stages = vec![StagePlan::whole(0..2), StagePlan::whole(2..3)];
    let plan = recipe.planner().plan(0, stages, 1, Publication::Continuous);
    let mut trainer = Trainer::new(recipe, plan, executor).unwrap();
    let weights = |trainer: &Trainer| {
        let state = saved(trainer);
        ["0.linear.weight", "2.linear.weight"].map(|name| state.tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    let before = weights(&trainer);
    let mut outcomes = Vec::new();
    trainer.apply(lone(0, value), &mut outcomes).unwrap();
    trainer.drain(&mut outcomes).unwrap();
    let after = weights(&trainer);
    trainer.apply(lone(1, 0.25), &mut outcomes).unwrap();
    trainer.drain(&mut outcomes).unwrap();
    let state = trainer.checkpoint().unwrap();
    let hash = state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor))).unwrap();
    (outcomes[0].verdict.clone(), [before[0] != after[0], before[1] != after[1]], hash)
}

/// A gradient that may overflow at one stage is refused by that stage and those below; those above have learned the step already.
#[test]
fn a_stage_refuses_a_gradient_and_the_stages_above_keep_what_they_learned() {
    let mut seen = 0;
    for seed in 0..10 {
        for size in 0..30 {
            let value = 1e18 * 1.25f32.powi(size);
            let ended = after_a_large_row(seed, value, Executor::Filling);
            assert_eq!(ended, after_a_large_row(seed, value, Executor::Seeded(seed)), "seed {seed}, {value}");
            match ended {
                (Verdict::LearnedInPart, moved, _) => {
                    assert_eq!(moved, [false, true], "seed {seed}, {value}");
                    seen += 1;
                }
                (Verdict::Quarantined(_), moved, _) => assert_eq!(moved, [false, false], "seed {seed}, {value}"),
                (Verdict::Learned, ..) => {}
            }
        }
    }
    assert!(seen > 0, "no row of these is refused by one stage alone");
}
