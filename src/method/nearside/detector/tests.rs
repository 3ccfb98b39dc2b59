//! The fold of a detector over drawn states: what its directions find, what a restart keeps, and what it holds.

use bytes::Bytes;

use super::*;
use crate::fold::Sequence;
use crate::rows::{Block, Element};

const WIDTH: usize = 6;

/// States whose classes differ by `shift` in two of six features.
fn rows(count: usize, shift: f32, seed: u64) -> Rows {
    let mut generator = random::stream(seed, 0, "states");
    let mut classes = Vec::with_capacity(count);
    let mut states: Vec<f32> = Vec::with_capacity(count * WIDTH);
    for row in 0..count {
        let class = u32::from(row % 3 == 2);
        classes.push(class);
        for feature in 0..WIDTH {
            let noise = (0..4).map(|_| random::uniform(&mut generator)).sum::<f32>() - 2.0;
            states.push(noise + if feature < 2 && class == 1 { shift } else { 0.0 });
        }
    }
    let bytes: Bytes = states.iter().flat_map(|value| value.to_le_bytes()).collect();
    let block = Block { element: Element::F32, width: WIDTH, bytes };
    Rows { count, blocks: vec![block], target: Some(Target::Classes(classes)), ..Rows::default() }
}

fn detector(direction: Direction, mode: Mode) -> Detector {
    let recipe = Recipe {
        held_out_every: 2,
        calibration_rows: 200,
        mode,
        step_rows: 16,
        ..fold_of_states(direction, WIDTH, 0, Pool::new(1, 0).unwrap()).unwrap().recipe
    };
    Detector::new(recipe, Pool::new(2, 0).unwrap()).unwrap()
}

/// A detector whose direction was found in the first four of the six features.
fn carried() -> Detector {
    struct First(usize);
    impl Eye for First {
        fn width(&self) -> usize {
            self.0
        }
        fn states(&self, rows: &Rows) -> Result<Vec<f32>, FoldError> {
            let all = eye::Given { width: WIDTH }.states(rows)?;
            Ok(all.chunks_exact(WIDTH).flat_map(|state| &state[..self.0]).copied().collect())
        }
        fn identity(&self) -> String {
            "the first features".into()
        }
        fn weight_bytes(&self) -> u64 {
            0
        }
        fn row_bytes(&self) -> u64 {
            0
        }
    }
    let origin = Origin { eye: Arc::new(First(4)), difference: vec![1.0, 1.0, 0.0, 0.0] };
    let recipe = detector(Direction::MeanDifference, Mode::Midpoint).recipe;
    let recipe = Recipe { origin: Some(origin), mode: Mode::Conformal { target_fpr: 0.1 }, ..recipe };
    Detector::new(recipe, Pool::new(2, 0).unwrap()).unwrap()
}

/// What a checkpoint has, in storage of its own.
fn copied(fold: &Detector) -> State {
    let state = fold.checkpoint().unwrap();
    let copies = state.tensors.iter().map(|(name, tensor)| (name.clone(), network::deep_copy(tensor).unwrap()));
    State { tensors: copies.collect(), values: state.values.clone() }
}

/// Feeds rows in steps of 16, those from `from` on.
fn feed(fold: &mut Detector, rows: &Rows, from: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for start in (from..rows.count).step_by(16) {
        let step = rows.slice(start..rows.count.min(start + 16));
        fold.apply(Step::starting(start as Sequence + 1, step), &mut outcomes).unwrap();
    }
    outcomes
}

fn snapshot(fold: &mut Detector) -> Arc<DetectorSnapshot> {
    assert!(fold.begin_snapshot(&mut Vec::new()).unwrap());
    let snapshot: Arc<dyn Any + Send + Sync> = fold.snapshot().unwrap().unwrap();
    snapshot.downcast().unwrap()
}

const DIRECTIONS: [Direction; 3] = [Direction::MeanDifference, Direction::Whitened, Direction::Logistic];

#[test]
fn every_direction_tells_the_classes_apart_and_holds_its_rate() {
    for direction in DIRECTIONS {
        let mode = Mode::Conformal { target_fpr: 0.1 };
        let mut fold = detector(direction, mode);
        assert_eq!(snapshot(&mut fold).judging.threshold, None, "nothing is held out yet");
        let outcomes = feed(&mut fold, &rows(600, 2.0, 1), 0);
        assert_eq!(outcomes.iter().map(|outcome| outcome.held_out).sum::<u64>(), 200, "every other one of 400 benign rows");
        assert_eq!(outcomes.iter().map(|outcome| outcome.rows).sum::<u64>(), 600);
        let first = outcomes[0].score;
        assert_eq!((first.rows, first.loss as f32), (16, 16.0 * std::f32::consts::LN_2), "scored before it was learned");
        let snapshot = snapshot(&mut fold);
        let threshold = snapshot.judging.threshold.unwrap();
        assert_eq!((snapshot.learned, snapshot.judging.calibration_rows, threshold.calibration_rows), ([200, 200], 200, 200));
        let fresh = rows(3000, 2.0, 2);
        let Predictions::Classes { probabilities, .. } = snapshot.predict(&fresh).unwrap() else { panic!("classes") };
        let flagged = |class: usize| {
            let of_class = (0..fresh.count).filter(|row| usize::from(row % 3 == 2) == class);
            let scores: Vec<f64> =
                of_class.map(|row| probe::score_of([probabilities[2 * row], probabilities[2 * row + 1]])).collect();
            scores.iter().filter(|&&score| score > threshold.score).count() as f64 / scores.len() as f64
        };
        assert!((0.06..=0.16).contains(&flagged(0)), "{direction:?}: {}", flagged(0));
        assert!(flagged(1) > 0.9, "{direction:?}: {}", flagged(1));
    }
}

#[test]
fn a_restored_state_goes_on_to_the_same_bits() {
    let rows = rows(160, 1.0, 3);
    for direction in DIRECTIONS {
        let mut whole = detector(direction, Mode::Midpoint);
        feed(&mut whole, &rows, 0);
        let mut first = detector(direction, Mode::Midpoint);
        feed(&mut first, &rows.slice(0..80), 0);
        let change = Change::Setting(serde_json::json!({"threshold": {"mode": "conformal", "target_fpr": 0.2}}));
        first.check(&change).unwrap();
        first.execute(&change).unwrap();
        let mut second = detector(direction, Mode::Midpoint);
        second.restore(copied(&first)).unwrap();
        assert_eq!(second.mode, Mode::Conformal { target_fpr: 0.2 });
        feed(&mut second, &rows, 80);
        assert_eq!(second.probe, whole.probe, "{direction:?}");
        assert_eq!(second.checkpoint().unwrap().values["held_out"], whole.checkpoint().unwrap().values["held_out"]);
        let broken = State { tensors: std::collections::BTreeMap::new(), values: serde_json::json!({}) };
        assert!(second.restore(broken).is_err());
    }
}

#[test]
fn a_rate_that_cannot_be_held_is_refused() {
    let mut fold = detector(Direction::MeanDifference, Mode::Midpoint);
    feed(&mut fold, &rows(48, 1.0, 4), 0);
    let check = |fold: &Detector, value: Value| fold.check(&Change::Setting(value));
    let wish = |target_fpr: f64| serde_json::json!({"threshold": {"mode": "conformal", "target_fpr": target_fpr}});
    assert_eq!(check(&fold, wish(0.1)), Ok(()));
    assert!(check(&fold, wish(0.05)).unwrap_err().contains("16 benign rows are held out, and this rate needs 19"));
    assert!(check(&fold, wish(0.001)).unwrap_err().contains("needs 999 held-out rows, and this detector keeps 200"));
    assert!(check(&fold, wish(2.0)).unwrap_err().contains("between 0 and 1"));
    assert!(check(&fold, serde_json::json!({"threshold": {"mode": "magic"}})).unwrap_err().contains("nothing that can be set"));
    assert!(fold.check(&Change::LearningRate(0.1)).unwrap_err().contains("logistic"));
}

#[test]
fn what_is_held_stays_within_the_plan() {
    for direction in DIRECTIONS {
        let mut fold = detector(direction, Mode::Midpoint);
        feed(&mut fold, &rows(320, 1.0, 5), 0);
        let (first, _second) = (snapshot(&mut fold), snapshot(&mut fold));
        assert!(fold.ledger().high_water() <= fold.planned_bytes(), "{direction:?}");
        drop(first);
        assert!(fold.planned_bytes() <= fold.minimum_bytes());
    }
}

#[test]
fn a_state_from_before_the_first_row_scores_as_a_fresh_one() {
    let rows = rows(48, 1.0, 6);
    for direction in DIRECTIONS {
        let mut fresh = detector(direction, Mode::Midpoint);
        let mut restored = detector(direction, Mode::Midpoint);
        restored.restore(copied(&fresh)).unwrap();
        assert_eq!(restored.probe, fresh.probe, "{direction:?}");
        assert_eq!(feed(&mut restored, &rows, 0), feed(&mut fresh, &rows, 0), "{direction:?}");
    }
}

#[test]
fn a_direction_that_is_carried_over_survives_a_restart_and_tells() {
    let rows = rows(480, 2.0, 7);
    let (mut whole, mut first, mut second) = (carried(), carried(), carried());
    let outcomes = feed(&mut whole, &rows, 0);
    feed(&mut first, &rows.slice(0..160), 0);
    second.restore(copied(&first)).unwrap();
    let after = feed(&mut second, &rows, 160);
    assert_eq!(after, outcomes[10..]);
    assert_eq!(second.probe, whole.probe);
    let (one, other) = (snapshot(&mut second), snapshot(&mut whole));
    assert_eq!((one.judging.threshold, one.worth), (other.judging.threshold, other.worth));
    let worth = one.worth.unwrap();
    assert!(worth.pairs > 100 && worth.held_out_r2 > 0.5 && worth.shuffled_r2 < 0.05, "{worth:?}");
    assert_eq!(one.learned[1], 0, "adversarial rows are scored and not learned");
    let fresh = self::rows(600, 2.0, 8);
    let states = eye::Given { width: WIDTH }.states(&fresh).unwrap();
    let scores = one.probe.scores(&states);
    let of =
        |class: usize| (0..600).filter(move |row| usize::from(row % 3 == 2) == class).map(|row| scores[row]).collect::<Vec<_>>();
    assert!(crate::method::nearside::evaluation::auroc(&of(1), &of(0)).unwrap() > 0.95);
}

#[test]
fn readers_hold_no_more_snapshots_than_are_planned() {
    let mut fold = detector(Direction::MeanDifference, Mode::Midpoint);
    let held: Vec<_> = (0..SNAPSHOTS_MAX).map(|_| snapshot(&mut fold)).collect();
    assert!(!fold.begin_snapshot(&mut Vec::new()).unwrap());
    assert!(fold.snapshot().unwrap().is_none());
    drop(held);
    assert!(fold.begin_snapshot(&mut Vec::new()).unwrap());
}

#[test]
fn nothing_passes_for_want_of_a_direction() {
    let mut fold = detector(Direction::Whitened, Mode::Conformal { target_fpr: 0.2 });
    let all = rows(96, 1.0, 9);
    let benign: Vec<usize> = (0..96).filter(|row| row % 3 != 2).collect();
    feed(&mut fold, &all.gather(&benign), 0);
    let judging = *snapshot(&mut fold).judging;
    assert!(judging.calibration_rows > 4 && judging.threshold.is_none(), "{judging:?}");
}

#[test]
fn one_of_every_so_many_is_held_out_wherever_it_stands() {
    let held_out: Vec<u64> = (0..4000).filter(|&row| is_held_out(row, 4, 7)).collect();
    assert!(held_out.iter().enumerate().all(|(round, row)| row / 4 == round as u64) && held_out.len() == 1000);
    for place in 0..4 {
        let there = held_out.iter().filter(|&&row| row % 4 == place).count();
        assert!((200..300).contains(&there), "{there} of 1000 at place {place}");
    }
    assert!((0..100).all(|row| !is_held_out(row, 0, 7)));
}
