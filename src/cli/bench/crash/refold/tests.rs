//! Every rule shows in the hash, or in the counters.

use serde_json::json;

use super::*;
use crate::cli::bench::crash::rows::{Shape, class, comes_labelled};
use crate::cli::serve;
use crate::config::Config;
use crate::stream::decode::{Format, Purpose, decode};

fn kinds() -> Kinds {
    serve::kinds(&Config::load(None, [], &[]).unwrap()).unwrap()
}

fn kept(origin: Sequence) -> Kept {
    let spec = json!({
        "kind": "network", "stream": "table", "network": { "architecture": "linear" }, "step_rows": 8,
        "overload": { "policy": "last_n" },
    });
    serde_json::from_value(json!({ "spec": spec, "origin": origin })).unwrap()
}

fn decision(sequence: Sequence, what: What) -> Decision {
    Decision { at: Version { epoch: 0, sequence }, what }
}

fn quarantine(at: Sequence, through: Sequence) -> Decision {
    decision(at, What::Quarantine { through, reason: "it panicked".into() })
}

/// The rows of these ids, in one record.
fn rows(shape: Shape, ids: impl IntoIterator<Item = u64>) -> Record {
    let schema: Schema = serde_json::from_value(shape.schema()).unwrap();
    let one = |id| decode(&schema, Format::Json, shape.body(Format::Json, id..id + 1).unwrap(), Purpose::Learn).unwrap();
    let rows: Vec<Rows> = ids.into_iter().map(one).collect();
    Record::Rows(Rows::concatenate(&rows.iter().collect::<Vec<_>>()).unwrap())
}

/// Labels of the rows with these ids at these numbers, in one record.
fn labels(of: impl IntoIterator<Item = (u64, Option<Sequence>)>) -> Record {
    let label = |(id, at): (u64, _)| {
        let value = LabelValue::Class(class(id, 0));
        Label { row: id.to_string(), at, value, source: None, weight: 1.0, supersedes: None }
    };
    Record::Labels(of.into_iter().map(label).collect())
}

fn fold(shape: Shape, origin: Sequence, records: &[Record], decisions: &[Decision]) -> Folded {
    let schema: Schema = serde_json::from_value(shape.schema()).unwrap();
    let (mut next, mut numbered) = (1, Vec::new());
    for record in records {
        numbered.push((next, record.clone()));
        next += record.span();
    }
    refold(&kinds(), &kept(origin), &schema, &numbered, decisions).unwrap()
}

/// Two records of twenty rows, those of the ids from `second` on in the second one.
fn folded(second: u64, decisions: &[Decision]) -> Folded {
    let read = |id| rows(Shape::Points, id..id + 20);
    fold(Shape::Points, 0, &[read(100), read(second)], decisions)
}

#[test]
fn every_row_and_every_decision_shows_in_the_hash() {
    let whole = folded(200, &[]);
    assert_eq!(folded(200, &[]), whole);
    assert_eq!((whole.version.sequence, whole.counters.learned), (40, 40));
    // One row of another id in the last place, and the first one gone.
    assert_ne!(folded(201, &[]).state_hash, whole.state_hash);
    let slower = folded(200, &[decision(16, What::LearningRate(0.01))]);
    assert_ne!(slower.state_hash, whole.state_hash);
    let later = folded(200, &[decision(20, What::LearningRate(0.01))]);
    assert_ne!(later.state_hash, slower.state_hash);
    let skipped = folded(200, &[decision(16, What::Skip { through: 23, kept: vec![] })]);
    assert_ne!(skipped.state_hash, whole.state_hash);
    assert_eq!((skipped.version, skipped.counters.learned, skipped.counters.skipped), (whole.version, 33, 7));
    // Of rows 17 to 26 the two that are kept are one step, and with it all up to 26 are decided.
    let kept = folded(200, &[decision(16, What::Skip { through: 26, kept: vec![19, 22] })]);
    assert_ne!(kept.state_hash, skipped.state_hash);
    assert_eq!((kept.version, kept.counters.learned, kept.counters.skipped), (whole.version, 32, 8));
}

#[test]
fn quarantined_rows_are_counted_and_teach_nothing() {
    let first = fold(Shape::Points, 0, &[rows(Shape::Points, 100..120)], &[]);
    let rest = folded(200, &[quarantine(20, 40)]);
    assert_eq!((rest.version.sequence, rest.counters.learned, rest.counters.quarantined), (40, 20, 20));
    assert_eq!(rest.state_hash, first.state_hash);
    // Up to the end of a record; what comes after is learned.
    let second = rows(Shape::Points, 200..220);
    let middle = folded(200, &[quarantine(8, 20)]);
    assert_eq!((middle.counters.learned, middle.counters.quarantined), (28, 12));
    let without = fold(Shape::Points, 0, &[rows(Shape::Points, 100..108), second], &[]);
    assert_eq!(middle.state_hash, without.state_hash);
}

const LATE: Shape = Shape::Late { window: 30 };
/// Ids of rows without and with labels.
const WITHOUT: u64 = 64;
const WITH: u64 = 512;

#[test]
fn a_label_teaches_its_row_where_it_comes() {
    assert!((WITHOUT..WITHOUT + 64).all(|id| !comes_labelled(id)) && (WITH..WITH + 64).all(comes_labelled));
    let order = || (0..20).map(|number| number * 7 % 20);
    let of = labels(order().map(|number| (WITHOUT + number, Some(number + 1))));
    let window = Shape::Late { window: 40 };
    let late = fold(window, 0, &[rows(window, WITHOUT..WITHOUT + 20), of], &[]);
    let plain = fold(Shape::Points, 0, &[rows(Shape::Points, order().map(|number| WITHOUT + number))], &[]);
    assert_eq!((late.counters.labels, late.version.sequence), (20, 40));
    assert_eq!((late.counters.learned, late.counters.expired, late.waiting), (20, 0, 0));
    assert_eq!(late.state_hash, plain.state_hash);
}

#[test]
fn a_step_is_of_the_labels_that_found_their_rows_in_one_record() {
    let come = rows(LATE, WITHOUT..WITHOUT + 8);
    let of = |range: std::ops::Range<u64>| range.map(|number| (WITHOUT + number, Some(number + 1)));
    let one = fold(LATE, 0, &[come.clone(), labels(of(0..8))], &[]);
    let two = fold(LATE, 0, &[come.clone(), labels(of(0..4)), labels(of(4..8))], &[]);
    assert_ne!(two.state_hash, one.state_hash, "two steps");
    // Labels of nobody, and second ones, do not end a step.
    let between = of(0..4).chain([(7, None), (WITHOUT, Some(1))]).chain(of(4..8)).chain([(8, None)]);
    let more = fold(LATE, 0, &[come.clone(), labels(between)], &[]);
    assert_eq!((more.counters.labels, more.counters.learned), (11, 8));
    assert_eq!(more.state_hash, one.state_hash);
    // Its version is that of its eighth label, and the record's rest is another one.
    let slower = |sequence| [decision(sequence, What::LearningRate(0.01))];
    let after = fold(LATE, 0, &[come.clone(), labels(of(0..8)), rows(LATE, WITH..WITH + 8)], &slower(16));
    let with_rest = labels(of(0..8).chain([(7, None), (8, None)]));
    let with_rest = fold(LATE, 0, &[come, with_rest, rows(LATE, WITH..WITH + 8)], &slower(16));
    assert_eq!(with_rest.state_hash, after.state_hash);
    assert_eq!(with_rest.version.sequence, 26);
}

#[test]
fn a_row_expires_a_window_after_it() {
    // Row 1 waits at 30, and no longer at 31.
    for (rows_between, learned) in [(28, 1), (29, 0)] {
        let between = rows(LATE, WITH..WITH + rows_between);
        let records = [rows(LATE, [WITHOUT]), between.clone(), labels([(WITHOUT, Some(1))])];
        let folded = fold(LATE, 0, &records, &[]);
        let counters = folded.counters;
        assert_eq!((counters.learned, counters.expired), (rows_between + learned, 1 - learned), "{rows_between}");
        let untaught = fold(LATE, 0, &[rows(LATE, [WITHOUT]), between], &[]);
        assert_eq!(folded.state_hash != untaught.state_hash, learned == 1);
        assert_eq!(untaught.waiting, 1, "the label's own number is the one at which row 1 expires, or is not");
    }
    let none = fold(LATE, 1, &[rows(LATE, WITHOUT..WITHOUT + 2), labels([(WITHOUT, Some(1))])], &[]);
    assert_eq!((none.counters.learned, none.counters.labels, none.waiting), (0, 1, 1), "row 1 is before the model");
}

#[test]
fn the_labelled_rows_among_a_steps_numbers_are_a_step() {
    let mixed = [WITH, WITHOUT, WITH + 1, WITHOUT + 1, WITH + 2, WITH + 3, WITHOUT + 2, WITH + 4, WITH + 5, WITH + 6];
    let folded = fold(LATE, 0, &[rows(LATE, mixed)], &[]);
    assert_eq!((folded.version.sequence, folded.counters.learned, folded.waiting), (10, 7, 3));
    let parts = [rows(Shape::Points, WITH..WITH + 5), rows(Shape::Points, WITH + 5..WITH + 7)];
    assert_eq!(folded.state_hash, fold(Shape::Points, 0, &parts, &[]).state_hash);
}

#[test]
fn labels_in_quarantine_are_taken_and_teach_nothing() {
    let come = rows(LATE, (WITHOUT..WITHOUT + 8).chain(WITH..WITH + 2));
    let of = labels((0..4).map(|number| (WITHOUT + number, Some(number + 1))));
    let untaught = fold(LATE, 0, std::slice::from_ref(&come), &[]);
    let folded = fold(LATE, 0, &[come.clone(), of.clone(), of.clone()], &[quarantine(10, 14)]);
    assert_eq!((folded.counters.quarantined, folded.counters.labels, folded.waiting), (4, 8, 4));
    assert_eq!(folded.state_hash, untaught.state_hash);
    // Rows without labels are quarantined by nothing: their labels come later.
    let folded = fold(LATE, 0, &[come, of], &[quarantine(0, 10)]);
    assert_eq!((folded.counters.quarantined, folded.counters.learned, folded.waiting), (2, 4, 4));
}
