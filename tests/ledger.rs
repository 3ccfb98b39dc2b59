//! Promise 4: what the plan predicts, what the ledger counts and what the allocator sees agree, and the allocator stays under the
//! budget. A file of its own with one test, because the allocator is the process's: each part is one model in a quiet process.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "the table is the test's figures")]

use std::sync::Arc;

use bytes::Bytes;
use mustela::allocator;
use mustela::ferret::compensation::Compensation;
use mustela::ferret::executor::Executor;
use mustela::ferret::plan::Publication;
use mustela::ferret::pool::Pool;
use mustela::ferret::trainer::{Recipe, Trainer};
use mustela::ferret::work::Rule;
use mustela::fold::{Fold, Snapshot, Step, Verdict};
use mustela::learner::{Learner, RowLayout};
use mustela::network::{Architecture, Column, Loss, Network, Optimiser};
use mustela::rows::{Block, Element, Rows, Target};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

const SLACK_BYTES: u64 = 64 << 10;

/// `count` rows of bytes that are always the same ones.
fn rows(width: usize, count: usize) -> Rows {
    let bytes: Vec<u8> = (0..width * count).map(|index| (index * 31 % 251) as u8).collect();
    let target = Some(Target::Classes((0..count as u32).map(|row| row % 10).collect()));
    Rows { count, blocks: vec![Block { element: Element::U8, width, bytes: Bytes::from(bytes) }], target, ..Rows::default() }
}

/// How many numbers a row of [`network`]'s columns has.
const OF_COLUMNS: usize = 302;

/// The network for rows of `input`, or of categorical and optional columns where a row has [`OF_COLUMNS`] numbers.
fn network(architecture: &Architecture, input: &[usize]) -> Network {
    if input != [OF_COLUMNS] {
        return Network::build(architecture, input, 10, Loss::SoftmaxCrossEntropy, false).unwrap();
    }
    let columns = [vec![Column::Optional; 150], vec![Column::Category { buckets: 4096 }, Column::Category { buckets: 300 }]];
    Network::for_columns(architecture, &columns.concat(), 10, Loss::SoftmaxCrossEntropy).unwrap()
}

/// Trains a network on [`rows`].
fn recipe(network: Network, rule: Rule, step_rows: usize) -> Recipe {
    let recipe = Recipe { rule, learning_rate: 0.01, seed: 1, ..Recipe::new(Arc::new(network), step_rows, 1) };
    Recipe { layout: RowLayout { element: Element::U8, ..recipe.layout }, ..recipe }
}

fn agree(what: &str, one: u64, other: u64) {
    let tolerance = SLACK_BYTES.max(one / 20);
    assert!(one.abs_diff(other) <= tolerance, "{what}: {one} and {other} differ by more than {tolerance}");
}

struct Case {
    name: String,
    architecture: Architecture,
    input: Vec<usize>,
    rule: Rule,
    step_rows: usize,
    /// Published at drains, or while steps are in flight.
    constrained: bool,
}

/// Nothing is in flight, so it is there at once.
fn snapshot(trainer: &mut Trainer) -> Option<Arc<dyn Snapshot>> {
    trainer.begin_snapshot(&mut Vec::new()).unwrap();
    trainer.snapshot().unwrap()
}

/// Trains one network with readers coming and going, and holds the three columns to each other.
fn check(case: Case, pool: &Pool) {
    let Case { name, architecture, input, rule, step_rows, constrained } = case;
    let width = input.iter().product();
    let network = network(&architecture, &input);
    let rows = rows(width, step_rows);
    let recipe = recipe(network, rule, step_rows);
    let publication = if constrained { Publication::AtDrain } else { Publication::Continuous };
    let plan = recipe.planner().sequential(0, publication);

    let before = allocator::live_bytes();
    allocator::reset_peak();
    let mut trainer = Trainer::new(recipe, plan.clone(), Executor::Threads(pool.clone())).unwrap();
    let mut outcomes = Vec::with_capacity(1);
    let mut published = snapshot(&mut trainer);
    for step in 0..12u64 {
        let first = 1 + step * step_rows as u64;
        trainer.apply(Step::starting(first, rows.clone()), &mut outcomes).unwrap();
        trainer.drain(&mut outcomes).unwrap();
        assert_eq!(outcomes.pop().unwrap().verdict, Verdict::Learned);
        if step % 3 == 2 {
            // A reader holds the last snapshot for a moment while the next one is made, where the plan has room for it.
            let last = published.take().filter(|_| !constrained);
            published = snapshot(&mut trainer);
            drop(last);
        }
        let live = allocator::live_bytes() - before;
        agree(&format!("{name}: ledger and allocator between steps"), live, trainer.ledger().total());
    }
    let peak = allocator::peak_bytes() - before;
    let high_water = trainer.ledger().high_water();
    let planned = plan.bytes.total();
    println!("{name}: planned {planned}, ledger {high_water}, allocator {peak}");
    agree(&format!("{name}: ledger's and allocator's high-water marks"), peak, high_water);
    assert!(high_water <= planned, "{name}: the ledger's high-water mark {high_water} is over the plan's {planned}");
    assert!(peak <= planned, "{name}: the allocator's high-water mark {peak} is over {planned}");
    // One step after the other misses no update, so nothing is compensated, for which the plan makes gradients dense.
    if constrained && !rule.compensation.compensates() {
        agree(&format!("{name}: planned and measured"), planned, peak);
    }
    drop((trainer, published));
    agree(&format!("{name}: nothing is left"), allocator::live_bytes() - before.min(allocator::live_bytes()), 0);
}

/// A plan of several stages or workers over a network.
struct Piped<'a> {
    name: String,
    architecture: Architecture,
    input: Vec<usize>,
    rule: Rule,
    step_rows: usize,
    wish: &'a str,
}

/// Lets a pipeline fill as far as its plan lets it, so that it holds the most that it may, and holds the three columns to each other.
fn check_piped(piped: Piped<'_>) {
    let Piped { name, architecture, input, rule, step_rows, wish } = piped;
    let width = input.iter().product();
    let network = network(&architecture, &input);
    let rows = rows(width, step_rows);
    let recipe = recipe(network, rule, step_rows);
    let plan = recipe.planner().complete(0, &serde_json::from_str(wish).unwrap(), u64::MAX).unwrap();

    let before = allocator::live_bytes();
    allocator::reset_peak();
    let mut trainer = Trainer::new(recipe, plan.clone(), Executor::Filling).unwrap();
    let mut outcomes = Vec::with_capacity(64);
    let mut published = Vec::new();
    for step in 0..60u64 {
        let first = 1 + step * step_rows as u64;
        trainer.apply(Step::starting(first, rows.clone()), &mut outcomes).unwrap();
        // A reader holds the last snapshot while the next one is made, where the plan has room for it.
        published.extend(trainer.snapshot().unwrap());
        let held = if plan.publication == Publication::Continuous { 2 } else { 1 };
        if published.len() > held || (step % 20 == 19 && published.len() == held) {
            published.remove(0);
        }
        if step % 20 == 19 {
            trainer.begin_snapshot(&mut outcomes).unwrap();
        }
    }
    trainer.drain(&mut outcomes).unwrap();
    assert!(outcomes.drain(..).all(|outcome| outcome.verdict == Verdict::Learned), "{name}");
    let (peak, high_water) = (allocator::peak_bytes() - before, trainer.ledger().high_water());
    let planned = plan.bytes.total();
    println!("{name}: planned {planned}, ledger {high_water}, allocator {peak}");
    agree(&format!("{name}: ledger's and allocator's high-water marks"), peak, high_water);
    assert!(high_water <= planned, "{name}: the ledger's high-water mark {high_water} is over the plan's {planned}");
    assert!(peak <= planned, "{name}: the allocator's high-water mark {peak} is over {planned}");
    agree(&format!("{name}: planned and measured"), planned, peak);
    drop((trainer, published));
    agree(&format!("{name}: nothing is left"), allocator::live_bytes() - before.min(allocator::live_bytes()), 0);
}

/// A step that is large enough to touch everything that a thread keeps.
fn warm_up(executor: Executor) {
    let architecture = Architecture::ConvNet { standardise: Some(false) };
    let network = Network::build(&architecture, &[3, 32, 32], 10, Loss::SoftmaxCrossEntropy, false).unwrap();
    let recipe = recipe(network, Rule::default(), 64);
    let plan = recipe.planner().minimum(0);
    let mut trainer = Trainer::new(recipe, plan, executor).unwrap();
    let mut outcomes = Vec::new();
    trainer.apply(Step::starting(1, rows(3 * 32 * 32, 64)), &mut outcomes).unwrap();
    trainer.drain(&mut outcomes).unwrap();
}

/// Rules that keep something beside the weights, or take something for a moment. Consolidations come every few steps.
fn taught() -> [(&'static str, Rule); 6] {
    let learner = |learner| Rule { learner, ..Rule::default() };
    let iter_fisher: Compensation = serde_json::from_str(r#"{"type":"iter_fisher"}"#).unwrap();
    [
        ("ER", learner(Learner::Er { buffer_rows: 2000, replay_rows: 16 })),
        ("MIR", learner(Learner::Mir { buffer_rows: 2000, replay_rows: 16, candidate_rows: 48 })),
        ("LwF", learner(Learner::Lwf { weight: 1.0, temperature: 2.0, every_rows: 64 })),
        ("MAS", learner(Learner::Mas { weight: 0.01, every_rows: 64, sample_rows: 40 })),
        ("Iter-Fisher", Rule { compensation: iter_fisher, ..Rule::default() }),
        ("ER and Iter-Fisher", Rule { compensation: iter_fisher, ..learner(Learner::Er { buffer_rows: 500, replay_rows: 8 }) }),
    ]
}

/// Each of them, one step after the other.
fn check_taught(pool: &Pool, constrained: bool) {
    for (name, rule) in taught() {
        for (of, architecture, input) in two_networks() {
            let name = format!("{of}, {name}, batch 16");
            check(Case { name, architecture, input, rule, step_rows: 16, constrained }, pool);
        }
    }
}

/// Each of them with two steps in flight, and in two stages.
fn check_taught_piped() {
    for (name, rule) in taught() {
        for (of, architecture, input) in two_networks() {
            let [cut, end] = if input.len() == 1 { [2, 5] } else { [3, 8] };
            let workers = format!(r#"{{"stages":[{{"layers":{{"start":0,"end":{end}}}}}],"workers":2}}"#);
            let stages =
                format!(r#"{{"stages":[{{"layers":{{"start":0,"end":{cut}}}}},{{"layers":{{"start":{cut},"end":{end}}}}}]}}"#);
            let piped = |how: &str, wish: &str| {
                let (name, architecture, input) = (format!("{of}, {name}, {how}"), architecture.clone(), input.clone());
                check_piped(Piped { name, architecture, input, rule, step_rows: 16, wish });
            };
            piped("2 workers", &workers);
            // MIR's plans have one stage.
            if rule.learner.candidate_rows() == 0 {
                piped("2 stages", &stages);
            }
        }
    }
}

/// A network whose weights are most of what it takes, and one whose activations are.
fn two_networks() -> [(&'static str, Architecture, Vec<usize>); 2] {
    let mlp = Architecture::Mlp { hidden: vec![256, 256], standardise: Some(false) };
    [("MLP", mlp, vec![784]), ("ConvNet", Architecture::ConvNet { standardise: Some(false) }, vec![3, 32, 32])]
}

#[test]
fn plan_ledger_and_allocator_agree() {
    let pool = Pool::new(1, 0).unwrap();
    let plain = |optimiser| Rule { optimiser, ..Rule::default() };
    let sgd = plain(Optimiser::Sgd { momentum: 0.0, weight_decay: 0.0 });
    let momentum = plain(Optimiser::Sgd { momentum: 0.9, weight_decay: 0.0 });
    let adamw = plain(Optimiser::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 });
    let mlp = || Architecture::Mlp { hidden: vec![256, 256], standardise: Some(false) };
    let standardised = || Architecture::Mlp { hidden: vec![64], standardise: Some(true) };
    let conv = || Architecture::ConvNet { standardise: Some(false) };
    let resnet = || Architecture::ResNet18 { width: 16, standardise: Some(false) };
    let mnist = || Architecture::MnistNet { standardise: Some(false) };
    let case = |name: &str, architecture, input: &[usize], rule, step_rows, constrained| Case {
        name: name.to_owned(),
        architecture,
        input: input.to_vec(),
        rule,
        step_rows,
        constrained,
    };
    // The gemm's packing space, one for each thread that computes, belongs to the process: here it comes before the first model.
    warm_up(Executor::Threads(pool.clone()));
    warm_up(Executor::Filling);
    for constrained in [false, true] {
        check(case("MLP, batch 1", mlp(), &[784], sgd, 1, constrained), &pool);
        check(case("MLP, batch 64", mlp(), &[784], sgd, 64, constrained), &pool);
        check(case("MLP, momentum, batch 16", mlp(), &[784], momentum, 16, constrained), &pool);
        check(case("MLP, AdamW, batch 64", mlp(), &[784], adamw, 64, constrained), &pool);
        check(case("standardised MLP, batch 32", standardised(), &[100], sgd, 32, constrained), &pool);
        check(case("embedded columns, batch 32", standardised(), &[OF_COLUMNS], sgd, 32, constrained), &pool);
        check(case("embedded columns, AdamW, batch 1", standardised(), &[OF_COLUMNS], adamw, 1, constrained), &pool);
        check(case("ConvNet, batch 16", conv(), &[3, 32, 32], sgd, 16, constrained), &pool);
        check(case("ConvNet, AdamW, batch 64", conv(), &[3, 32, 32], adamw, 64, constrained), &pool);
        check(case("ResNet-18 of width 16, batch 16", resnet(), &[3, 32, 32], sgd, 16, constrained), &pool);
        check(case("ResNet-18 of width 16, momentum, batch 16", resnet(), &[3, 32, 32], momentum, 16, constrained), &pool);
        check(case("MNISTNet, momentum, batch 16", mnist(), &[1, 28, 28], momentum, 16, constrained), &pool);
        check_taught(&pool, constrained);
    }
    let piped = |name: &str, architecture, input: &[usize], rule, step_rows, wish| {
        check_piped(Piped { name: name.to_owned(), architecture, input: input.to_vec(), rule, step_rows, wish });
    };
    let deep = || Architecture::Mlp { hidden: vec![256; 7], standardise: Some(false) };
    let (vector, image) = ([784], [3, 32, 32]);
    let two = r#"{"stages":[{"layers":{"start":0,"end":2}},{"layers":{"start":2,"end":5}}]}"#;
    piped("MLP, 2 stages", mlp(), &vector, sgd, 64, two);
    let drained = r#"{"stages":[{"layers":{"start":0,"end":5}}],"workers":2,"publication":"at_drain"}"#;
    piped("MLP, 2 workers, momentum", mlp(), &vector, momentum, 16, drained);
    let embedded = r#"{"stages":[{"layers":{"start":0,"end":2}},{"layers":{"start":2,"end":5}}]}"#;
    piped("embedded columns, 2 stages", standardised(), &[OF_COLUMNS], momentum, 16, embedded);
    let four = r#"{"stages":[{"layers":{"start":0,"end":4}},{"layers":{"start":4,"end":8}},{"layers":{"start":8,"end":12}},
        {"layers":{"start":12,"end":15}}]}"#;
    piped("deep MLP, 4 stages", deep(), &vector, sgd, 64, four);
    let summed =
        r#"{"stages":[{"layers":{"start":0,"end":4},"accumulation":4},{"layers":{"start":4,"end":15},"accumulation":2}]}"#;
    piped("deep MLP, 2 stages, accumulated, AdamW", deep(), &vector, adamw, 32, summed);
    let conv_two = r#"{"stages":[{"layers":{"start":0,"end":3}},{"layers":{"start":3,"end":8}}]}"#;
    piped("ConvNet, 2 stages", conv(), &image, sgd, 16, conv_two);
    let conv_made_again = r#"{"stages":[{"layers":{"start":0,"end":3},"recompute":true},{"layers":{"start":3,"end":8}}]}"#;
    piped("ConvNet, 2 stages, recomputed", conv(), &image, momentum, 64, conv_made_again);
    piped("ConvNet, 3 workers", conv(), &image, sgd, 16, r#"{"stages":[{"layers":{"start":0,"end":8}}],"workers":3}"#);
    let resnet_three =
        r#"{"stages":[{"layers":{"start":0,"end":5}},{"layers":{"start":5,"end":9}},{"layers":{"start":9,"end":21}}]}"#;
    piped("ResNet-18 of width 16, 3 stages", resnet(), &image, sgd, 16, resnet_three);
    let resnet_segments = r#"{"stages":[{"layers":{"start":0,"end":21},"recompute":true}],"publication":"at_drain"}"#;
    piped("ResNet-18 of width 16, recomputed in segments", resnet(), &image, sgd, 16, resnet_segments);
    let resnet_both =
        r#"{"stages":[{"layers":{"start":0,"end":9},"recompute":true,"accumulation":2},{"layers":{"start":9,"end":21}}]}"#;
    piped("ResNet-18 of width 16, 2 stages, recomputed, AdamW", resnet(), &image, adamw, 8, resnet_both);
    check_taught_piped();
    let small = || Architecture::ResNet18 { width: 5, standardise: Some(false) };
    let whole = r#"{"stages":[{"layers":{"start":0,"end":21}}],"publication":"at_drain"}"#;
    piped("ResNet-18 of width 5, batch 1, AdamW", small(), &image, adamw, 1, whole);
}
