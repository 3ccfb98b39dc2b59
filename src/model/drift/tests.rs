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

const KINDS: [(&str, Shape); 4] = [
    ("uniform", |drawn| drawn),
    ("a rare coin", |drawn| f64::from(drawn < 0.02)),
    ("exponential", |drawn| -(1.0 - drawn * 0.999_999).ln()),
    ("a heavy tail", |drawn| (1.0 - drawn * 0.999_999).powf(-0.67)),
];

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

/// What the reference's values are given through changes none of them: the same cuts at the same places.
#[test]
fn ordinary_values_are_not_bounded() {
    let reference: Reference = serde_json::from_str(include_str!("../../../tests/fixtures/adwin_reference.json")).unwrap();
    for case in reference.cases {
        let values: Vec<f64> = case.digits.bytes().map(|digit| f64::from(digit - b'0') / 9.0).collect();
        for losses in values.chunks(LOOK_EVERY as usize) {
            assert!(losses.iter().all(|&loss| loss <= bound(losses)), "{}", case.name);
        }
    }
}

#[test]
fn losses_that_are_absurd_hide_no_rise() {
    for first in [0, 5, 31, 32, 1000, 1990] {
        // Of the others a rise to three times as much is itself hard to see.
        for (kind, shape) in [KINDS[0], KINDS[2]] {
            let mut drift = Drift::new(DELTA);
            let mut draw = uniform(first as u64);
            let mut rises = Vec::new();
            for row in 0..3000usize {
                // Twice, in two steps.
                let absurd = row == first || row == first + 3;
                let level = if row < 2000 { 1.0 } else { 3.0 };
                let loss = if absurd { 1e29 } else { level * shape(draw()) };
                rises.extend(drift.push(loss, row as u64).map(|_| row));
            }
            assert!(matches!(rises[..], [found] if (2000..2400).contains(&found)), "{kind}, {first}: {rises:?}");
            assert!(drift.mean_loss().unwrap() < 20.0, "{kind}, {first}");
        }
    }
}

#[test]
fn noise_is_hardly_ever_a_drift() {
    let (mut cuts_of_noise, mut found) = (0, 0);
    for seed in 0..200 {
        let (_, shape) = KINDS[seed as usize % KINDS.len()];
        let (mut window, mut drift, mut draw) = (Adwin::new(DELTA), Drift::new(DELTA), uniform(1000 + seed));
        for row in 0..20_000 {
            let loss = 0.5 + shape(draw());
            cuts_of_noise += u32::from(window.push(loss).is_some());
            found += u32::from(drift.push(loss, row).is_some());
        }
    }
    // 200 streams of 625 looks: delta allows 250.
    assert!(found <= 2, "{found} drifts, {cuts_of_noise} cuts");
}

#[test]
fn a_rise_of_less_than_a_tenth_is_none_and_many_of_them_are_one() {
    let rises = |of: &dyn Fn(u64) -> f64| {
        let (mut drift, mut draw) = (Drift::new(DELTA), uniform(7));
        (0..20_000).filter_map(|row| drift.push(of(row) + 0.02 * draw(), row)).collect::<Vec<_>>()
    };
    let small = rises(&|row| if row < 10_000 { 1.0 } else { 1.05 });
    assert!(small.is_empty(), "{small:?}");
    // A twentieth at a time.
    let slow = rises(&|row| 1.0 + 0.05 * (row / 1000) as f64);
    assert!((4..=10).contains(&slow.len()), "{slow:?}");
    assert!(slow.iter().all(|rise| rise.after > rise.before * 1.1), "{slow:?}");
}

#[test]
fn what_is_steady_gives_no_more_false_alarms_than_delta_allows() {
    for (name, kind) in KINDS {
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
