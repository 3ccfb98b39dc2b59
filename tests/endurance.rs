//! A pipeline goes on for ever in the memory that it has. A file of its own with one test, because the allocator is the process's.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "the figures are the test's")]

use std::sync::Arc;

use bytes::Bytes;
use mustela::allocator;
use mustela::ferret::executor::Executor;
use mustela::ferret::plan::{Publication, StagePlan};
use mustela::ferret::pool::Pool;
use mustela::ferret::trainer::{Recipe, Trainer};
use mustela::fold::{Fold, Step, Verdict};
use mustela::network::{Architecture, Loss, Network};
use mustela::rows::{Block, Element, Rows, Target};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// A million small steps through six stages: no deadlock, and no more memory at the end than at the beginning.
#[test]
fn a_million_steps_neither_stand_still_nor_grow() {
    let (tell, told) = std::sync::mpsc::channel();
    let trained = std::thread::spawn(move || {
        a_million_steps();
        tell.send(()).unwrap();
    });
    // Half a minute on a quiet machine. A pipeline that stands still would never end.
    if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = told.recv_timeout(std::time::Duration::from_secs(600)) {
        panic!("a million steps take longer than ten minutes");
    }
    trained.join().unwrap();
}

fn a_million_steps() {
    let network = Network::build(
        &Architecture::Mlp { hidden: vec![2; 5], standardise: Some(false) },
        &[2],
        2,
        Loss::SoftmaxCrossEntropy,
        false,
    );
    let recipe = Recipe { learning_rate: 0.01, seed: 1, ..Recipe::new(Arc::new(network.unwrap()), 1, 2) };
    // Linear and ReLU each, and the last linear layer.
    let stages = (0..6).map(|stage| StagePlan::whole(2 * stage..(2 * stage + 2).min(11))).collect();
    let plan = recipe.planner().plan(0, stages, 1, Publication::Continuous);
    let mut trainer = Trainer::new(recipe, plan, Executor::Threads(Pool::new(2, 0).unwrap())).unwrap();
    let bytes = Bytes::from([0.5f32, -0.25].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    let mut outcomes = Vec::new();
    let mut levels = Vec::new();
    let began = std::time::Instant::now();
    for number in 0..1_000_000u64 {
        let blocks = vec![Block { element: Element::F32, width: 2, bytes: bytes.clone() }];
        let target = Some(Target::Classes(vec![(number % 2) as u32]));
        let step = Step::starting(1 + number, Rows { count: 1, blocks, target, ..Rows::default() });
        trainer.apply(step, &mut outcomes).unwrap();
        if number % 250_000 == 249_999 {
            trainer.drain(&mut outcomes).unwrap();
            assert_eq!(outcomes.len(), 250_000);
            assert!(outcomes.drain(..).all(|outcome| outcome.verdict == Verdict::Learned));
            levels.push((allocator::live_bytes(), trainer.ledger().total()));
        }
    }
    println!("a million steps in {:?}; allocator's and ledger's bytes: {levels:?}", began.elapsed());
    let (first, last) = (levels[0], levels[levels.len() - 1]);
    assert!(last.0 <= first.0 + (64 << 10), "{levels:?}");
    assert_eq!(first.1, last.1, "{levels:?}");
    assert!(trainer.ledger().high_water() <= trainer.planned_bytes());
}
