//! The oracle: what a log, its models and their checkpoints have to be after all that the clients did and were told.
//!
//! It knows the clients' side from the clients, and the service's side from its folder, read by the library when the service has ended.
//! Every check gives complaints, so that a round tells all that is wrong with it.

mod labels;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::changes::Rate;
use super::labels::LabelPost;
use super::posts::Post;
use super::refold::{Folded, Kept, Numbered, refold};
use super::rows::Shape;
use super::script::Script;
use crate::cli::Failure;
use crate::disk::FileSystem;
use crate::fold::Sequence;
use crate::model::checkpoint::{self, Loaded, Store};
use crate::model::decision::{Decision, What};
use crate::model::kind::Kinds;
use crate::stream::Schema;
use crate::stream::decode::{Format, Purpose, decode};
use crate::stream::log::{Log, Options, RedbLog};
use crate::stream::record::{Envelope, Record};

/// Memory for the log's pages.
const CACHE_BYTES: usize = 16 << 20;

/// What the clients did and were told.
pub(super) struct Told {
    pub(super) posts: Vec<Post>,
    pub(super) labels: Vec<LabelPost>,
    pub(super) rates: Vec<Rate>,
    /// What each model said of itself when nothing waited, by name.
    pub(super) views: BTreeMap<String, Value>,
}

/// What was found, beside complaints.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    pub(super) rows: u64,
    pub(super) decisions: u64,
    pub(super) skipped: u64,
    pub(super) models: u64,
    /// Rows of streams with late labels that were learned, that expired, and that wait for their labels; and labels that were read.
    pub(super) late: Late,
    pub(super) quarantined: u64,
}

/// What became of the rows of models whose labels come late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Late {
    pub(super) labels: u64,
    pub(super) learned: u64,
    pub(super) expired: u64,
    pub(super) waiting: u64,
}

impl Found {
    fn count(&mut self, folded: &Folded) {
        self.decisions += folded.decisions;
        self.skipped += folded.counters.skipped;
        self.quarantined += folded.counters.quarantined;
        self.models += 1;
        if folded.counters.labels > 0 {
            self.late.labels += folded.counters.labels;
            self.late.learned += folded.counters.learned + folded.counters.learned_in_part;
            self.late.expired += folded.counters.expired;
            self.late.waiting += folded.waiting;
        }
    }
}

/// Compares a folder, whose service has ended, with what the clients were told.
pub(super) fn folder(
    data: &Path,
    script: &Script,
    told: &Told,
    kinds: &Kinds,
    complaints: &mut Vec<String>,
) -> Result<Found, Failure> {
    let log = RedbLog::open(&FileSystem, data, &Options { cache_bytes: CACHE_BYTES, check_bytes_max: 0 })?;
    let mut found = Found::default();
    let mut streams = BTreeMap::new();
    for (id, (name, bytes)) in log.streams()? {
        let schema: Schema = serde_json::from_slice(&bytes)?;
        let records = records(&log, id)?;
        let shape = script.shape(&name).ok_or_else(|| format!("nobody made the stream {name}"))?;
        complaints.extend(contents(shape, &schema, &records)?);
        let posts: Vec<&Post> = told.posts.iter().filter(|post| post.stream == name).collect();
        complaints.extend(rows(&posts, &ids(&records)).into_iter().map(|complaint| format!("stream {name}: {complaint}")));
        if let Shape::Late { window } = shape {
            complaints.extend(labels::labels(&told.labels, window, &records)?);
        }
        found.rows += ids(&records).len() as u64;
        streams.insert(name, (schema, records));
    }
    let models = log.models()?;
    for (&id, (name, bytes)) in &models {
        let kept: Kept = serde_json::from_slice(bytes)?;
        let (schema, records) = streams.get(&kept.spec.stream).ok_or_else(|| format!("model {name} has no stream"))?;
        let decisions = log.decisions(id)?;
        let decisions: Vec<Decision> = decisions.iter().map(|bytes| Decision::decode(bytes)).collect::<Result<_, _>>()?;
        let folded = refold(kinds, &kept, schema, records, &decisions)?;
        let (newest, faults) = Store::new(&FileSystem, checkpoint::folder(data, id)).load_newest()?;
        let head = records.last().map_or(0, |(first, record)| first + record.span() - 1);
        let mut said: Vec<String> = faults.iter().map(|fault| format!("a checkpoint is broken: {fault}")).collect();
        said.extend(state(newest.as_ref(), &folded));
        said.extend(counters(told.views.get(name), &folded, head.saturating_sub(kept.origin + folded.counters.labels)));
        said.extend(rates(told.rates.iter().filter(|rate| rate.model == *name), &decisions));
        complaints.extend(said.into_iter().map(|complaint| format!("model {name}: {complaint}")));
        found.count(&folded);
    }
    let expected =
        script.models.iter().chain([&script.late]).filter(|model| !models.values().any(|(name, _)| *name == model.name));
    complaints.extend(expected.map(|model| format!("the model {} was made and is not there", model.name)));
    for folder in std::fs::read_dir(data.join("models"))? {
        let name = folder?.file_name().to_string_lossy().into_owned();
        if !models.keys().any(|id| id.to_string() == name) {
            complaints.push(format!("the folder models/{name} is of no model"));
        }
    }
    Ok(found)
}

/// All records of a stream.
fn records(log: &dyn Log, stream: u32) -> Result<Vec<Numbered>, Failure> {
    let mut records = Vec::new();
    let mut next = 1;
    while let Some(stored) = log.read(stream, next)? {
        let record = Envelope::decode(&stored.bytes)?.record;
        if (stored.first, stored.rows) != (next, record.span()) {
            return Err(format!("the record at {} spans {} numbers; {next} was to come", stored.first, record.span()).into());
        }
        next += stored.rows;
        records.push((stored.first, record));
    }
    Ok(records)
}

/// The ids of the rows in a stream, in order, with their sequence numbers.
fn ids(records: &[Numbered]) -> Vec<(Sequence, u64)> {
    let of = |(first, record): &Numbered| {
        let ids = if let Record::Rows(rows) = record { rows.ids.as_ref() } else { None };
        let ids = ids.into_iter().flatten().map(|id| id.parse().unwrap_or(u64::MAX));
        (*first..).zip(ids).collect::<Vec<_>>()
    };
    records.iter().flat_map(of).collect()
}

/// Whether the rows are those of their ids, to the bit.
fn contents(shape: Shape, schema: &Schema, records: &[Numbered]) -> Result<Vec<String>, Failure> {
    let mut complaints = Vec::new();
    for (first, record) in records {
        let rows = match record {
            Record::Rows(rows) => rows,
            Record::Labels(_) if matches!(shape, Shape::Late { .. }) => continue,
            Record::Labels(_) | Record::Revocation(_) => {
                complaints.push(format!("the record at {first} holds no rows"));
                continue;
            }
        };
        let start = rows.ids.iter().flatten().next().and_then(|id| id.parse().ok()).unwrap_or(0);
        let sent = decode(schema, Format::Json, shape.body(Format::Json, start..start + rows.count as u64)?, Purpose::Learn)?;
        if sent != *rows {
            complaints.push(format!("the record at {first} with the ids from {start} on is not what was sent"));
        }
    }
    Ok(complaints)
}

/// Every row of an acknowledged post is where its acknowledgement said, and nowhere else; one that was given up is there once or not at
/// all, and whole; nothing else is there. `log` is the ids in order, with their sequence numbers.
pub(super) fn rows(posts: &[&Post], log: &[(Sequence, u64)]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for &(sequence, id) in log {
        places.entry(id).or_default().push(sequence);
    }
    for (id, places) in places.iter().filter(|(_, places)| places.len() > 1) {
        complaints.push(format!("row {id} is there {} times, at {places:?}", places.len()));
    }
    for post in posts {
        let found: Vec<u64> = post.ids.clone().filter_map(|id| places.remove(&id)?.first().copied()).collect();
        let expected: Vec<u64> = match (post.place, found.first()) {
            (Some(place), _) => (place.first..=place.last).collect(),
            (None, None) => Vec::new(),
            (None, Some(&first)) => (first..first + post.ids.end - post.ids.start).collect(),
        };
        if found != expected {
            let (ids, place) = (&post.ids, post.place);
            let (most, least) = (found.iter().max(), found.iter().min());
            complaints.push(format!(
                "the post {} of the rows {ids:?} was acknowledged at {place:?}; {} of its rows are there, at {least:?} to {most:?}",
                post.key,
                found.len()
            ));
        }
    }
    complaints.extend(places.keys().map(|id| format!("row {id} was never sent")));
    complaints
}

/// The newest checkpoint is of the end, and holds what the fold comes to without an interruption.
fn state(newest: Option<&Loaded>, folded: &Folded) -> Vec<String> {
    let Some(Loaded { head, entry, .. }) = newest else { return vec!["it has no checkpoint".into()] };
    let kept = Folded {
        version: head.version,
        decisions: head.decisions,
        counters: head.tally.counters,
        // They follow from the log, and no checkpoint has them.
        waiting: folded.waiting,
        state_hash: entry.state_hash.clone(),
    };
    differs(&kept, folded)
}

fn differs(kept: &Folded, folded: &Folded) -> Vec<String> {
    if kept == folded { Vec::new() } else { vec![format!("its checkpoint is {kept:?}, and an uninterrupted fold {folded:?}")] }
}

/// What a model says of its rows is what came of them, and they are all.
fn counters(view: Option<&Value>, folded: &Folded, accepted: u64) -> Vec<String> {
    let Some(view) = view else { return vec!["it was not there at the end".into()] };
    let rows = &view["rows"];
    let counters = &folded.counters;
    let expected = [
        ("accepted", accepted),
        ("learned", counters.learned),
        ("learned_in_part", counters.learned_in_part),
        ("skipped", counters.skipped),
        ("held_out", counters.held_out),
        ("quarantined", counters.quarantined),
        ("expired", counters.expired),
        ("waiting", folded.waiting),
        ("waiting_for_label", folded.waiting),
    ];
    let mut complaints: Vec<String> = expected
        .iter()
        .filter(|(name, count)| rows[name] != *count)
        .map(|(name, count)| format!("{name} rows are {count}, and it says {rows}"))
        .collect();
    if view["labels"] != counters.labels {
        complaints.push(format!("labels are {}, and it says {}", counters.labels, view["labels"]));
    }
    if counters.decided() + folded.waiting != accepted {
        complaints.push(format!("{accepted} rows were accepted, {counters:?} are decided, and {} wait", folded.waiting));
    }
    complaints
}

/// Learning rates that were acknowledged were decided, in their order; and none was decided more often than it was asked for.
fn rates<'a>(rates: impl Iterator<Item = &'a Rate>, decisions: &[Decision]) -> Vec<String> {
    let decided: Vec<f64> = decisions
        .iter()
        .filter_map(|decision| if let What::LearningRate(rate) = decision.what { Some(rate) } else { None })
        .collect();
    let (mut complaints, mut at, mut known) = (Vec::new(), 0, 0);
    for rate in rates {
        let times = decided[at..].iter().take_while(|&&decided| decided == rate.rate).count();
        at += times;
        known += times;
        if times as u64 > rate.sent || (rate.is_acknowledged && times == 0) {
            complaints.push(format!("{rate:?} was decided {times} times, among {decided:?}"));
        }
    }
    if known != decided.len() {
        complaints.push(format!("of the learning rates {decided:?} only {known} were asked for in that order"));
    }
    complaints
}

/// What the service said of itself that it should not have. That two processes ended over the same rows is no fault of it.
pub(super) fn messages(text: &str) -> Vec<String> {
    let is_error = |line: &str| line.contains("\"level\":\"ERROR\"") && !line.contains("processes ended over a step");
    let is_bad = |line: &&str| line.contains("panicked at") || is_error(line);
    text.lines().filter(is_bad).take(5).map(|line| format!("the service said: {line}")).collect()
}

#[cfg(test)]
mod tests;
