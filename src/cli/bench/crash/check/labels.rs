//! The labels of a log: which are there, of which rows they are, and what was told of them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::labels::{LabelPost, Said, Taken};
use super::super::posts::Place;
use super::super::refold::Numbered;
use crate::cli::Failure;
use crate::fold::Sequence;
use crate::limits::UNMATCHED_LISTED_MAX;
use crate::stream::record::{LabelValue, Record};

/// Complaints of one kind that are told.
const TOLD: usize = 5;

/// A label of the log.
#[derive(Clone, Copy, Debug)]
struct Stored {
    id: u64,
    class: Option<u32>,
    at: Option<Sequence>,
}

/// What a log says of its rows and labels.
struct Read {
    /// The number of each row by id, and whether it came with its label.
    rows: BTreeMap<u64, (Sequence, bool)>,
    labels: BTreeMap<Sequence, Stored>,
}

fn read(records: &[Numbered]) -> Result<Read, Failure> {
    let mut read = Read { rows: BTreeMap::new(), labels: BTreeMap::new() };
    for (first, record) in records {
        match record {
            Record::Rows(rows) => {
                for ((number, place), id) in (*first..).zip(0..).zip(rows.ids.iter().flatten()) {
                    let is_labelled = rows.target.as_ref().is_none_or(|target| target.is_known(place));
                    read.rows.insert(id.parse()?, (number, is_labelled));
                }
            }
            Record::Labels(labels) => {
                for (number, label) in (*first..).zip(labels) {
                    let class = if let LabelValue::Class(class) = label.value { Some(class) } else { None };
                    read.labels.insert(number, Stored { id: label.row.parse()?, class, at: label.at });
                }
            }
            Record::Revocation(_) => {}
        }
    }
    Ok(read)
}

/// The labels of a log are those of the acknowledged posts, each where its acknowledgement said, and of posts that were given up, whole
/// and once; each names the row that it is of, if that waited; and what was answered is what is there.
pub(super) fn labels(posts: &[LabelPost], window: u64, records: &[Numbered]) -> Result<Vec<String>, Failure> {
    let Read { rows, labels } = read(records)?;
    let mut complaints = Vec::new();
    let mut claimed: BTreeMap<Sequence, Said> = BTreeMap::new();
    for post in posts {
        let first = match &post.taken {
            Some(taken) => taken.place.first,
            // The first label of what may be given up is of no other batch.
            None => match labels.iter().find(|(_, stored)| stored.id == post.labels[0].id) {
                Some((&first, _)) => first,
                None => continue,
            },
        };
        let there: Vec<Option<&Stored>> = (first..).take(post.labels.len()).map(|number| labels.get(&number)).collect();
        let is = |(said, stored): (&Said, &Option<&Stored>)| {
            stored.is_some_and(|stored| (stored.id, stored.class) == (said.id, Some(said.class)))
        };
        if !post.labels.iter().zip(&there).all(is) {
            complaints.push(format!("the labels {}, acknowledged as {:?}, are not at {first}", post.key, post.taken));
            continue;
        }
        if (first..).zip(&post.labels).any(|(number, &said)| claimed.insert(number, said).is_some()) {
            complaints.push(format!("the labels {} are where others are, at {first}", post.key));
        }
        complaints.extend(post.taken.as_ref().and_then(|taken| answer(post, taken, &there)));
    }
    let foreign = labels.iter().filter(|(number, _)| !claimed.contains_key(number));
    complaints.extend(foreign.take(TOLD).map(|(number, stored)| format!("nobody sent {stored:?} at {number}, or not so often")));
    complaints.extend(places(&rows, &labels, &claimed, window).into_iter().take(TOLD));
    Ok(complaints)
}

/// What was answered is what the log has.
fn answer(post: &LabelPost, taken: &Taken, there: &[Option<&Stored>]) -> Option<String> {
    let without = there.iter().zip(0..).filter(|(stored, _)| stored.is_some_and(|stored| stored.at.is_none()));
    let unmatched: Vec<(u64, u64)> = without.map(|(_, place)| (place, post.labels[place as usize].id)).collect();
    let place = Place { first: taken.place.first, last: taken.place.first + post.labels.len() as u64 - 1 };
    let listed = unmatched.iter().copied().take(UNMATCHED_LISTED_MAX).collect();
    let right = Taken { place, unmatched_count: unmatched.len() as u64, unmatched: listed };
    (*taken != right).then(|| format!("the labels {} were answered with {taken:?}, and are {right:?}", post.key))
}

/// Each label has the number of its row, and has none only where its row had not been acknowledged, has its label, or is too old.
fn places(
    rows: &BTreeMap<u64, (Sequence, bool)>,
    labels: &BTreeMap<Sequence, Stored>,
    claimed: &BTreeMap<Sequence, Said>,
    window: u64,
) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut labelled = BTreeSet::new();
    for (&number, stored) in labels {
        let row = rows.get(&stored.id).filter(|(row, _)| *row < number);
        let is_known = claimed.get(&number).is_some_and(|said| said.is_known);
        let fault = match (stored.at, row) {
            (Some(at), Some(&(row, came_labelled))) => (at != row || came_labelled).then_some("is not of its row"),
            (Some(_), None) => Some("is of no row"),
            (None, Some(&(row, came_labelled))) => {
                let waits = !came_labelled && !labelled.contains(&row) && number - row < window;
                (waits && is_known).then_some("has not found its row, which waits")
            }
            (None, None) => is_known.then_some("is of a row that was acknowledged and is not there"),
        };
        complaints.extend(fault.map(|fault| format!("the label at {number}, {stored:?}, {fault}: {row:?}")));
        // Whether the row waited for it or not: it waits no longer.
        labelled.extend(stored.at);
    }
    complaints
}
