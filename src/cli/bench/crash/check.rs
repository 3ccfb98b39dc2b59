//! The oracle: what a log, its models and their checkpoints have to be after all that the clients did and were told.
//!
//! It knows the clients' side from the clients, and the service's side from its folder, read by the library when the service has ended.
//! Every check gives complaints, so that a round tells all that is wrong with it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::changes::Rate;
use super::posts::Post;
use super::refold::{Folded, Kept, refold};
use super::rows::Shape;
use super::script::Script;
use crate::cli::Failure;
use crate::disk::FileSystem;
use crate::fold::Sequence;
use crate::model::checkpoint::{self, Loaded, Store};
use crate::model::decision::{Decision, What};
use crate::model::kind::Kinds;
use crate::rows::Rows;
use crate::stream::Schema;
use crate::stream::decode::{Format, Purpose, decode};
use crate::stream::log::{Log, Options, RedbLog};
use crate::stream::record::{Envelope, Record};

/// Memory for the log's pages.
const CACHE_BYTES: usize = 16 << 20;

/// What the clients did and were told.
pub(super) struct Told {
    pub(super) posts: Vec<Post>,
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
        found.rows += records.iter().map(|(_, rows)| rows.count as u64).sum::<u64>();
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
        let head = records.last().map_or(0, |(first, rows)| first + rows.count as u64 - 1);
        let mut said: Vec<String> = faults.iter().map(|fault| format!("a checkpoint is broken: {fault}")).collect();
        said.extend(state(newest.as_ref(), &folded));
        said.extend(counters(told.views.get(name), &folded, head - kept.origin));
        said.extend(rates(told.rates.iter().filter(|rate| rate.model == *name), &decisions));
        complaints.extend(said.into_iter().map(|complaint| format!("model {name}: {complaint}")));
        found.decisions += folded.decisions;
        found.skipped += folded.counters.skipped;
        found.models += 1;
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

/// All records of a stream, each with the sequence number of its first row.
fn records(log: &dyn Log, stream: u32) -> Result<Vec<(Sequence, Rows)>, Failure> {
    let mut records = Vec::new();
    let mut next = 1;
    while let Some(stored) = log.read(stream, next)? {
        let Record::Rows(rows) = Envelope::decode(&stored.bytes)?.record else {
            return Err(format!("the record at {next} holds no rows").into());
        };
        if (stored.first, stored.rows) != (next, rows.count as u64) {
            return Err(format!("the record at {} has {} rows; row {next} was to come", stored.first, rows.count).into());
        }
        next += stored.rows;
        records.push((stored.first, rows));
    }
    Ok(records)
}

/// The ids in a stream, in order.
fn ids(records: &[(Sequence, Rows)]) -> Vec<u64> {
    let all = records.iter().flat_map(|(_, rows)| rows.ids.iter().flatten());
    all.map(|id| id.parse().unwrap_or(u64::MAX)).collect()
}

/// Whether the rows are those of their ids, to the bit.
fn contents(shape: Shape, schema: &Schema, records: &[(Sequence, Rows)]) -> Result<Vec<String>, Failure> {
    let mut complaints = Vec::new();
    for (first, rows) in records {
        let ids = ids(&[(*first, rows.clone())]);
        let start = ids.first().copied().unwrap_or_default();
        let sent = decode(schema, Format::Json, shape.body(Format::Json, start..start + ids.len() as u64), Purpose::Learn)?;
        if sent != *rows {
            complaints.push(format!("the record at {first} with the ids from {start} on is not what was sent"));
        }
    }
    Ok(complaints)
}

/// Every row of an acknowledged post is where its acknowledgement said, and nowhere else; one that was given up is there once or not at
/// all, and whole; nothing else is there. `log` is the ids in order.
pub(super) fn rows(posts: &[&Post], log: &[u64]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (sequence, &id) in (1..).zip(log) {
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
        state_hash: entry.state_hash.clone(),
    };
    differs(&kept, folded)
}

fn differs(kept: &Folded, folded: &Folded) -> Vec<String> {
    if kept == folded { Vec::new() } else { vec![format!("its checkpoint is {kept:?}, and an uninterrupted fold {folded:?}")] }
}

/// What a model says of its rows is what came of them, and they are all.
fn counters(view: Option<&Value>, folded: &Folded, accepted: u64) -> Vec<String> {
    let Some(rows) = view.map(|view| &view["rows"]) else { return vec!["it was not there at the end".into()] };
    let counters = &folded.counters;
    let expected = [
        ("accepted", accepted),
        ("learned", counters.learned),
        ("learned_in_part", counters.learned_in_part),
        ("skipped", counters.skipped),
        ("held_out", counters.held_out),
        ("quarantined", counters.quarantined),
        ("expired", counters.expired),
        ("waiting", 0),
    ];
    let mut complaints: Vec<String> = expected
        .iter()
        .filter(|(name, count)| rows[name] != *count)
        .map(|(name, count)| format!("{name} rows are {count}, and it says {rows}"))
        .collect();
    if counters.decided() != accepted {
        complaints.push(format!("{accepted} rows were accepted, and {counters:?} are decided"));
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

/// What the service said of itself that it should not have.
pub(super) fn messages(text: &str) -> Vec<String> {
    let is_bad = |line: &&str| line.contains("panicked at") || line.contains("\"level\":\"ERROR\"");
    text.lines().filter(is_bad).take(5).map(|line| format!("the service said: {line}")).collect()
}

#[cfg(test)]
mod tests;
