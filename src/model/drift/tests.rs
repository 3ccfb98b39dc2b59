//! ADWIN keeps its promises: few false alarms, changes seen soon, little memory; and it agrees with River's.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Deserialize;

use super::*;

const DELTA: f64 = 0.002;

/// Draws from 0 to 1.
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut drawn = ChaCha8Rng::seed_from_u64(seed);
    move || f64::from(drawn.next_u32()) / f64::from(u32::MAX)
}

/// Makes another distribution of a uniform draw.
type Shape = fn(f64) -> f64;

/// Where the window is cut.
fn cuts(values: impl Iterator<Item = f64>) -> Vec<usize> {
    let mut window = Adwin::new(DELTA);
    values.enumerate().filter_map(|(at, value)| window.push(value).map(|_| at)).collect()
}

#[derive(Deserialize)]
struct Reference {
    delta: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    digits: String,
    cuts: Vec<usize>,
    width: u64,
    mean: f64,
}

#[test]
fn it_agrees_with_river() {
    let reference: Reference = serde_json::from_str(include_str!("../../../tests/fixtures/adwin_reference.json")).unwrap();
    assert_eq!(reference.delta, DELTA);
    for case in reference.cases {
        let mut window = Adwin::new(DELTA);
        let values = case.digits.bytes().map(|digit| f64::from(digit - b'0') / 9.0);
        let cuts: Vec<usize> = values.enumerate().filter_map(|(at, value)| window.push(value).map(|_| at)).collect();
        assert_eq!((cuts, window.width()), (case.cuts, case.width), "{}", case.name);
        assert!((window.mean().unwrap() - case.mean).abs() < 1e-9, "{}", case.name);
    }
}

#[test]
fn what_is_steady_gives_no_more_false_alarms_than_delta_allows() {
    let kinds: [(&str, Shape); 4] = [
        ("uniform", |drawn| drawn),
        ("a rare coin", |drawn| f64::from(drawn < 0.02)),
        ("exponential", |drawn| -(1.0 - drawn * 0.999_999).ln()),
        ("a heavy tail", |drawn| (1.0 - drawn * 0.999_999).powf(-0.67)),
    ];
    for (name, kind) in kinds {
        let mut draw = uniform(11);
        let values = 100_000;
        let alarms = cuts((0..values).map(|_| kind(draw()))).len();
        let looks = values / LOOK_EVERY;
        assert!(alarms as f64 <= DELTA * looks as f64, "{name}: {alarms} in {looks} looks");
    }
}

#[test]
fn a_step_is_seen_soon_in_any_unit() {
    for unit in [1.0, 1e-6, 1e6] {
        for seed in 0..20 {
            let mut draw = uniform(seed);
            let values = (0..3000).map(|at| unit * f64::from(draw() < if at < 2000 { 0.2 } else { 0.6 }));
            let found = cuts(values);
            let first = *found.first().unwrap();
            assert!((2000..2128).contains(&first), "unit {unit}, seed {seed}: {found:?}");
        }
    }
}

#[test]
fn one_rise_counts_once_and_a_fall_never() {
    let mut drift = Drift::new(DELTA);
    let mut draw = uniform(3);
    let mut rises = Vec::new();
    for row in 0..4000u64 {
        let level = if (1000..2000).contains(&row) || row >= 3000 { 0.8 } else { 0.3 };
        rises.extend(drift.push(level + draw() * 0.2, row).map(|rise| (row, rise)));
    }
    assert_eq!((rises.len(), drift.detected()), (2, 2), "{rises:?}");
    assert!((1000..1064).contains(&rises[0].0) && (3000..3064).contains(&rises[1].0), "{rises:?}");
    assert!(rises.iter().all(|(_, rise)| rise.after > rise.before));
    assert_eq!(drift.last_sequence(), Some(rises[1].0));
    assert!((drift.mean_loss().unwrap() - 0.9).abs() < 0.02);
}

#[test]
fn what_is_not_finite_is_passed_over() {
    let mut drift = Drift::new(DELTA);
    for loss in [f64::NAN, f64::INFINITY, 1.0, f64::NEG_INFINITY] {
        assert_eq!(drift.push(loss, 1), None);
    }
    assert_eq!(drift.mean_loss(), Some(1.0));
}

#[test]
fn memory_grows_with_the_logarithm_of_the_window() {
    let mut window = Adwin::new(DELTA);
    let mut draw = uniform(5);
    for _ in 0..1_000_000 {
        window.push(draw());
    }
    assert_eq!(window.width(), 1_000_000);
    let buckets: usize = window.rows.iter().map(VecDeque::len).sum();
    let held: usize = window.rows.iter().map(VecDeque::capacity).sum();
    assert!(window.rows.len() <= 19 && buckets <= 19 * ROW_BUCKETS && held <= 19 * 8, "{buckets} buckets, room for {held}");
}

#[test]
fn it_goes_on_from_a_checkpoint_as_if_there_were_none() {
    let mut whole = Drift::new(DELTA);
    let mut draw = uniform(9);
    let losses: Vec<f64> = (0..3000).map(|row| draw() + f64::from(row >= 1500)).collect();
    let mut resumed = whole.clone();
    for (row, loss) in losses.iter().enumerate() {
        if row % 177 == 0 {
            resumed = serde_json::from_str(&serde_json::to_string(&resumed).unwrap()).unwrap();
        }
        assert_eq!(whole.push(*loss, row as u64), resumed.push(*loss, row as u64));
    }
    assert_eq!((whole.detected(), &whole), (1, &resumed));
}
