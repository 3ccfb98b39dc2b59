//! The oracle sees what it is there to see.

use serde_json::json;

use super::*;
use crate::cli::bench::crash::labels::{Said, Taken};
use crate::cli::bench::crash::posts::Place;
use crate::fold::Version;
use crate::model::status::Counters;
use crate::rows::Rows;
use crate::stream::record::{Label, LabelValue};

/// Two acknowledged posts, one that was given up, and a log that is as it should be.
fn posts() -> Vec<Post> {
    vec![
        Post::of(100..103, Some(Place { first: 3, last: 5 })),
        Post::of(200..202, Some(Place { first: 1, last: 2 })),
        Post::of(300..302, None),
    ]
}

const LOG: [u64; 7] = [200, 201, 100, 101, 102, 300, 301];

fn complaints(log: &[u64]) -> Vec<String> {
    let posts = posts();
    rows(&posts.iter().collect::<Vec<_>>(), &(1..).zip(log.iter().copied()).collect::<Vec<_>>())
}

#[track_caller]
fn complains(log: &[u64], word: &str) {
    let complaints = complaints(log);
    assert!(complaints.iter().any(|complaint| complaint.contains(word)), "{log:?}: {complaints:?}");
}

#[test]
fn a_log_with_all_that_was_acknowledged_is_whole() {
    assert_eq!(complaints(&LOG), [""; 0]);
    assert_eq!(complaints(&LOG[..5]), [""; 0], "what was given up need not be there");
}

#[test]
fn rows_that_are_lost_doubled_moved_or_foreign_are_seen() {
    complains(&LOG[..4], "key-100");
    complains(&[200, 201], "0 of its rows are there");
    complains(&[200, 201, 100, 101, 102, 102], "row 102 is there 2 times");
    complains(&[200, 201, 100, 101, 102, 100, 101, 102], "row 100 is there 2 times");
    complains(&[100, 101, 102, 200, 201], "key-200");
    complains(&[200, 201, 101, 100, 102], "key-100");
    complains(&[200, 201, 100, 101, 102, 999], "row 999 was never sent");
    complains(&[200, 201, 100, 101, 102, 301], "key-300");
    complains(&[200, 201, 100, 101, 102, 300, 301, 300, 301], "row 300 is there 2 times");
}

#[test]
fn rows_that_are_not_what_was_sent_are_seen() {
    let schema: Schema = serde_json::from_value(Shape::Points.schema()).unwrap();
    let read = |ids| decode(&schema, Format::Json, Shape::Points.body(Format::Json, ids).unwrap(), Purpose::Learn).unwrap();
    let contents = |rows: Rows| contents(Shape::Points, &schema, &[(1, Record::Rows(rows))]).unwrap().len();
    assert_eq!(contents(read(5..9)), 0);
    let mut other = read(5..9);
    other.blocks = read(6..10).blocks;
    assert_eq!(contents(other), 1);
}

fn folded() -> Folded {
    let counters = Counters { learned: 60, skipped: 40, ..Counters::default() };
    Folded { version: Version { epoch: 0, sequence: 100 }, decisions: 3, counters, waiting: 0, state_hash: "cafe".into() }
}

#[test]
fn another_hash_another_version_and_another_count_are_seen() {
    assert_eq!(differs(&folded(), &folded()), [""; 0]);
    for other in [
        Folded { state_hash: "caff".into(), ..folded() },
        Folded { version: Version { epoch: 0, sequence: 99 }, ..folded() },
        Folded { decisions: 4, ..folded() },
        Folded { counters: Counters { learned: 61, ..folded().counters }, ..folded() },
    ] {
        assert_eq!(differs(&other, &folded()).len(), 1, "{other:?}");
    }
    assert_eq!(state(None, &folded()).len(), 1);
}

#[test]
fn counters_that_do_not_add_up_are_seen() {
    let view = |learned: u64, waiting: u64| {
        let rows = json!({
            "accepted": 100, "learned": learned, "learned_in_part": 0, "skipped": 40, "held_out": 0, "quarantined": 0,
            "expired": 0, "waiting": waiting, "waiting_for_label": 0,
        });
        json!({ "rows": rows, "labels": 0 })
    };
    assert_eq!(counters(Some(&view(60, 0)), &folded(), 100), [""; 0]);
    assert_eq!(counters(Some(&view(59, 1)), &folded(), 100).len(), 2);
    // A row of the log that nobody decided.
    assert_eq!(counters(Some(&view(60, 0)), &folded(), 101).len(), 2);
    assert_eq!(counters(None, &folded(), 100).len(), 1);
    let mut late = folded();
    (late.counters.labels, late.waiting) = (5, 2);
    // Rows and labels that it does not speak of.
    assert_eq!(counters(Some(&view(60, 0)), &late, 102).len(), 4);
}

#[test]
fn learning_rates_that_are_forgotten_or_invented_are_seen() {
    let rate = |rate, sent, is_acknowledged| Rate { model: "m".into(), rate, sent, is_acknowledged };
    let asked = [rate(0.1, 1, true), rate(0.2, 2, true), rate(0.3, 1, false)];
    let complaints = |decided: &[f64]| {
        let at = Version::default();
        let decided: Vec<_> = decided.iter().map(|&rate| Decision { at, what: What::LearningRate(rate) }).collect();
        rates(asked.iter(), &decided).len()
    };
    for whole in [&[0.1, 0.2][..], &[0.1, 0.2, 0.2], &[0.1, 0.2, 0.3]] {
        assert_eq!(complaints(whole), 0, "{whole:?}");
    }
    for broken in [&[0.1][..], &[0.2, 0.1], &[0.1, 0.1, 0.2], &[0.1, 0.2, 0.4], &[0.1, 0.2, 0.2, 0.2]] {
        assert!(complaints(broken) > 0, "{broken:?}");
    }
}

/// A row that came with its label, two without, labels of these, and a batch that was given up.
fn late() -> (Vec<LabelPost>, Vec<Numbered>) {
    let schema: Schema = serde_json::from_value(LATE.schema()).unwrap();
    let read = |ids| Record::Rows(decode(&schema, Format::Json, LATE.body(Format::Json, ids).unwrap(), Purpose::Learn).unwrap());
    let label = |id: u64, class, at| Label {
        row: id.to_string(),
        at,
        value: LabelValue::Class(class),
        source: None,
        weight: 1.0,
        supersedes: None,
    };
    let labels = vec![label(64, 1, Some(2)), label(63, 0, None), label(64, 0, None), label(900, 2, None), label(65, 2, Some(3))];
    let said = |id, class, is_known| Said { id, class, is_known };
    let taken = Taken { place: Place { first: 4, last: 6 }, unmatched_count: 2, unmatched: vec![(1, 63), (2, 64)] };
    let first = LabelPost::of(&[said(64, 1, true), said(63, 0, true), said(64, 0, true)], Some(taken));
    let given_up = LabelPost::of(&[said(900, 2, false), said(65, 2, false)], None);
    let posts = vec![first, given_up, LabelPost::of(&[said(901, 0, false)], None)];
    (posts, vec![(1, read(63..66)), (4, Record::Labels(labels))])
}

const LATE: Shape = Shape::Late { window: 10 };

#[track_caller]
fn label_complaint(word: &str, alter: impl FnOnce(&mut Vec<LabelPost>, &mut Vec<Label>)) {
    let (mut posts, mut records) = late();
    let Record::Labels(labels) = &mut records[1].1 else { unreachable!() };
    alter(&mut posts, labels);
    let complaints = labels::labels(&posts, 10, &records).unwrap();
    assert!(complaints.iter().any(|complaint| complaint.contains(word)), "{word}: {complaints:?}");
}

#[test]
fn labels_that_are_lost_doubled_altered_or_of_other_rows_are_seen() {
    let (posts, records) = late();
    assert_eq!(labels::labels(&posts, 10, &records).unwrap(), [""; 0]);
    label_complaint("are not at 4", |_, labels| drop(labels.remove(0)));
    label_complaint("are not at 4", |_, labels| labels[1].value = LabelValue::Class(1));
    label_complaint("nobody sent", |posts, _| drop(posts.remove(1)));
    label_complaint("nobody sent", |_, labels| labels.extend_from_within(3..));
    label_complaint("are not at 7", |_, labels| drop(labels.pop()));
    label_complaint("are where others are", |posts, _| posts.push(posts[0].clone()));
    label_complaint("were answered with", |posts, _| posts[0].taken.as_mut().unwrap().unmatched_count = 1);
    label_complaint("were answered with", |posts, _| posts[0].taken.as_mut().unwrap().unmatched[0] = (1, 62));
    label_complaint("is not of its row", |_, labels| labels[0].at = Some(3));
    label_complaint("is not of its row", |_, labels| labels[1].at = Some(1));
    label_complaint("is of no row", |_, labels| labels[3].at = Some(3));
    label_complaint("has not found its row", |posts, labels| {
        labels[0].at = None;
        posts[0].taken.as_mut().unwrap().unmatched_count = 3;
    });
}

#[test]
fn panics_and_errors_are_seen() {
    assert_eq!(messages("{\"level\":\"WARN\"}\n"), [""; 0]);
    assert_eq!(messages("thread 'x' panicked at src/a.rs\n{\"timestamp\":\"\",\"level\":\"ERROR\"}\n").len(), 2);
}
