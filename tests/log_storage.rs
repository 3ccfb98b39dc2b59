//! The log over a disk that keeps of unsynced writes what it likes, against a model of plain maps: what was acknowledged is there after
//! any cut of the power, what was under way is there whole or not at all.
//!
//! A few hundred cases by default; `PROPTEST_CASES=10000` for a night's worth.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "support/power.rs"]
mod power;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mustela::stream::log::{Committed, Encoded, Entry, Key, Log, LogError, Options, RedbLog, Registered};
use power::{Draw, Fault, PowerDisk};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

/// Records, or keys, that one transaction of a trim forgets.
const TRIM_RECORDS: usize = 256;
const SETTINGS: [&str; 2] = ["memory", "other"];

/// Of a key: first and last row, fingerprint, and where the last record begins.
type Kept = (u64, u64, [u8; 32], u64);

/// What a log is: the same as its head says, without a disk.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    streams: Registered,
    models: Registered,
    /// The last sequence number of each stream, and the bytes of disk that its records take.
    heads: BTreeMap<u32, (u64, u64)>,
    records: BTreeMap<(u32, u64), (u64, Vec<u8>)>,
    keys: BTreeMap<(u32, String), Kept>,
    decisions: BTreeMap<u32, Vec<Vec<u8>>>,
    settings: BTreeMap<String, Vec<u8>>,
    newest_stream: u32,
    newest_model: u32,
}

/// Bytes of disk that a record takes.
fn occupied(bytes: usize) -> u64 {
    let bytes = bytes + 64;
    (if bytes > 2048 { bytes.next_power_of_two().max(4096) } else { bytes }) as u64
}

impl Model {
    fn put(&mut self, entry: &Entry) -> Committed {
        match entry.clone() {
            Entry::Append { stream, records, key } => return self.append(stream, records, key),
            Entry::PutStream { stream, name, bytes } => {
                self.streams.insert(stream, (name, bytes));
                self.heads.insert(stream, (0, 0));
                self.newest_stream = stream;
            }
            Entry::DeleteStream { stream } => {
                self.streams.remove(&stream);
                self.heads.remove(&stream);
                self.records.retain(|&(of, _), _| of != stream);
                self.keys.retain(|&(of, _), _| of != stream);
            }
            Entry::PutModel { model, name, bytes } => {
                self.models.insert(model, (name, bytes));
                self.newest_model = model;
            }
            Entry::DeleteModel { model } => {
                self.models.remove(&model);
                self.decisions.remove(&model);
            }
            Entry::PutSetting { key, bytes } => {
                self.settings.insert(key, bytes);
            }
            Entry::Decision { model, index, bytes } => {
                let decisions = self.decisions.entry(model).or_default();
                if decisions.len() as u64 != index {
                    return Committed::OutOfOrder;
                }
                decisions.push(bytes);
            }
        }
        Committed::Done
    }

    fn append(&mut self, stream: u32, records: Vec<Encoded>, key: Option<Key>) -> Committed {
        let Some((head, bytes)) = self.heads.get_mut(&stream) else { return Committed::NoStream };
        if let Some(key) = &key
            && let Some(&(first, last, fingerprint, _)) = self.keys.get(&(stream, key.key.clone()))
        {
            let same = fingerprint == key.fingerprint;
            return if same { Committed::Appended { first, last, replayed: true } } else { Committed::KeyReused };
        }
        let (first, mut last_record) = (*head + 1, *head + 1);
        for record in records {
            last_record = *head + 1;
            *head += record.rows;
            *bytes += occupied(record.bytes.len());
            self.records.insert((stream, last_record), (record.rows, record.bytes));
        }
        let last = *head;
        if let Some(Key { key, fingerprint }) = key {
            self.keys.insert((stream, key), (first, last, fingerprint, last_record));
        }
        Committed::Appended { first, last, replayed: false }
    }

    /// Forgets up to so many records that end before `before`; false where there are no more.
    fn trim_some(&mut self, stream: u32, before: u64, retain_bytes: u64) -> bool {
        let of = self.records.range((stream, 0)..(stream, before)).map(|(&at, (rows, bytes))| (at, *rows, bytes.len()));
        let mut kept = self.heads.get(&stream).map_or(0, |head| head.1);
        let mut doomed = Vec::new();
        for (at, rows, length) in of {
            if at.1 + rows > before || kept <= retain_bytes || doomed.len() == TRIM_RECORDS {
                break;
            }
            kept -= occupied(length);
            doomed.push(at);
        }
        for at in &doomed {
            self.records.remove(at);
            self.keys.retain(|&(of, _), &mut (.., last_record)| (of, last_record) != *at);
        }
        self.heads.entry(stream).and_modify(|head| head.1 = kept);
        !doomed.is_empty()
    }

    /// A stream that was made at some time, or will be next.
    fn stream(&self, pick: u8) -> u32 {
        1 + u32::from(pick) % (self.newest_stream + 1)
    }

    /// One that is there, where there is any.
    fn live_stream(&self, pick: u8) -> u32 {
        let live = self.streams.keys().nth(usize::from(pick) % self.streams.len().max(1));
        live.copied().unwrap_or_else(|| self.stream(pick))
    }

    fn model(&self, pick: u8) -> u32 {
        1 + u32::from(pick) % (self.newest_model + 1)
    }
}

/// Something to be committed, said so that it fits any model.
#[derive(Clone, Debug)]
enum Wish {
    Append {
        pick: u8,
        records: Vec<(u32, u8)>,
        key: Option<(u8, u8)>,
        seed: u64,
    },
    PutStream,
    DeleteStream {
        pick: u8,
    },
    PutModel,
    DeleteModel {
        pick: u8,
    },
    Setting {
        pick: u8,
        bytes: u8,
    },
    /// `skew` is 1 for the model's next decision.
    Decision {
        pick: u8,
        skew: u8,
        bytes: u16,
    },
}

impl Wish {
    fn entry(&self, model: &Model) -> Entry {
        match self {
            Wish::Append { pick, records, key, seed } => {
                let mut draw = Draw(*seed);
                let mut record = |&(bytes, rows): &(u32, u8)| Encoded {
                    bytes: (0..bytes.div_ceil(8)).flat_map(|_| draw.next().to_le_bytes()).collect(),
                    rows: u64::from(rows),
                };
                let records = records.iter().map(&mut record).collect();
                let key = key.map(|(key, body)| Key { key: format!("key {}", key % 4), fingerprint: [body % 2; 32] });
                // Mostly one that is there.
                let stream = if pick % 8 == 0 { model.stream(*pick) } else { model.live_stream(*pick) };
                Entry::Append { stream, records, key }
            }
            Wish::PutStream => {
                let stream = model.newest_stream + 1;
                Entry::PutStream { stream, name: format!("s{stream}"), bytes: vec![stream as u8; 100] }
            }
            Wish::DeleteStream { pick } => Entry::DeleteStream { stream: model.stream(*pick) },
            Wish::PutModel => {
                let made = model.newest_model + 1;
                Entry::PutModel { model: made, name: format!("m{made}"), bytes: vec![made as u8; 100] }
            }
            Wish::DeleteModel { pick } => Entry::DeleteModel { model: model.model(*pick) },
            Wish::Setting { pick, bytes } => {
                Entry::PutSetting { key: SETTINGS[usize::from(*pick) % 2].into(), bytes: vec![*bytes; usize::from(*bytes)] }
            }
            Wish::Decision { pick, skew, bytes } => {
                let of = model.model(*pick);
                let next = model.decisions.get(&of).map_or(0, Vec::len) as u64;
                let index = (next + u64::from(*skew)).saturating_sub(1);
                Entry::Decision { model: of, index, bytes: vec![*skew; usize::from(*bytes)] }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Commit(Vec<Wish>),
    Trim {
        pick: u8,
        share: u8,
        retain: u8,
    },
    Sweep,
    /// Closed and opened again.
    Restart,
    /// Ends without a word; what was written is seen by the next process.
    Kill,
    /// The power goes while nothing is asked for.
    PowerCut {
        seed: u64,
    },
    /// Another log, from nothing.
    Begin,
}

/// An act, and what happens to the disk after so many of its calls.
#[derive(Clone, Debug)]
struct Transition {
    act: Act,
    fault: Option<(u64, Fault, u64)>,
    /// And once more, while it recovers.
    again: Option<(u64, Fault, u64)>,
}

fn wish() -> impl Strategy<Value = Wish> {
    let sizes = prop_oneof![
        12 => prop::collection::vec((1u32..3000, 1u8..40), 1..4),
        1 => prop::collection::vec((1u32..8, 1u8..3), 250..600),
        1 => prop::collection::vec((20_000u32..80_000, 1u8..40), 1..3),
    ];
    let append = (any::<u8>(), sizes, prop::option::of((any::<u8>(), any::<u8>())), any::<u64>());
    prop_oneof![
        10 => append.prop_map(|(pick, records, key, seed)| Wish::Append { pick, records, key, seed }),
        2 => Just(Wish::PutStream),
        1 => any::<u8>().prop_map(|pick| Wish::DeleteStream { pick }),
        2 => Just(Wish::PutModel),
        1 => any::<u8>().prop_map(|pick| Wish::DeleteModel { pick }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(pick, bytes)| Wish::Setting { pick, bytes }),
        4 => (any::<u8>(), prop_oneof![4 => Just(1u8), 1 => 0u8..4], 0u16..2000)
            .prop_map(|(pick, skew, bytes)| Wish::Decision { pick, skew, bytes }),
    ]
}

fn fault() -> impl Strategy<Value = Option<(u64, Fault, u64)>> {
    let kind = prop_oneof![3 => Just(Fault::Cut), 1 => Just(Fault::Fail)];
    prop::option::of((0u64..24, kind, any::<u64>()))
}

/// What draws the transitions: here a commit that was cut has come to nothing. Only the machine under test knows whether it has.
struct Reference;

impl ReferenceStateMachine for Reference {
    type State = Model;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::default()).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Transition> {
        // A log without a stream is dull.
        let wishes = prop::collection::vec(wish(), 1..5).boxed();
        let commit = if model.streams.is_empty() {
            wishes.prop_map(|wishes| std::iter::once(Wish::PutStream).chain(wishes).collect()).boxed()
        } else {
            wishes
        };
        let act = prop_oneof![
            14 => commit.prop_map(Act::Commit),
            3 => (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(pick, share, retain)| Act::Trim { pick, share, retain }),
            1 => Just(Act::Sweep),
            2 => Just(Act::Restart),
            1 => Just(Act::Kill),
            2 => any::<u64>().prop_map(|seed| Act::PowerCut { seed }),
            1 => Just(Act::Begin),
        ];
        (act, fault(), fault()).prop_map(|(act, fault, again)| Transition { act, fault, again }).boxed()
    }

    fn apply(mut model: Model, transition: &Transition) -> Model {
        match &transition.act {
            Act::Begin => return Model::default(),
            Act::Commit(wishes) if transition.fault.is_none() => {
                for wish in wishes {
                    let entry = wish.entry(&model);
                    model.put(&entry);
                }
            }
            _ => {}
        }
        model
    }
}

/// The log under test with its disk, and the model of what it has to hold.
struct Machine {
    disk: PowerDisk,
    log: Option<RedbLog>,
    model: Model,
    identity: Option<String>,
    /// Faults that came, by what they left of a commit that was not acknowledged.
    nothing: usize,
    whole: usize,
    /// Whether the log reads all of the file when it is opened.
    check_bytes_max: u64,
}

fn open(disk: &PowerDisk, check_bytes_max: u64) -> Result<RedbLog, LogError> {
    RedbLog::open(disk, Path::new("in memory"), &Options { cache_bytes: 1 << 20, check_bytes_max })
}

/// Holds two things to be equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    let cut = |value: &T| format!("{value:?}").chars().take(200).collect::<String>();
    Err(format!("{what}: found {}, wanted {}", cut(&found), cut(&wanted)))
}

/// Holds an open log to a model, by all that it can be asked without changing it.
fn compare(log: &RedbLog, model: &Model) -> Result<(), String> {
    let fault = |error: LogError| error.to_string();
    same("streams", log.streams().map_err(fault)?, model.streams.clone())?;
    same("models", log.models().map_err(fault)?, model.models.clone())?;
    same("next stream", log.next_stream_id().map_err(fault)?, model.newest_stream + 1)?;
    same("next model", log.next_model_id().map_err(fault)?, model.newest_model + 1)?;
    same("bytes", log.stored_bytes(), model.heads.values().map(|head| head.1).sum())?;
    for of in 1..=model.newest_model + 1 {
        let decisions = model.decisions.get(&of).cloned().unwrap_or_default();
        same("decisions", log.decisions(of).map_err(fault)?, decisions)?;
    }
    for name in SETTINGS {
        same("setting", log.setting(name).map_err(fault)?, model.settings.get(name).cloned())?;
    }
    for (&of, &(head, _)) in &model.heads {
        let records = || model.records.range((of, 0)..=(of, u64::MAX));
        let oldest = records().next().map_or(head + 1, |(at, _)| at.1);
        same("bounds", log.bounds(of).map_err(fault)?, (oldest, head))?;
        let mut at = 0;
        for (&(_, first), (rows, bytes)) in records() {
            let stored = log.read(of, at).map_err(fault)?;
            same("record", stored.map(|stored| (stored.first, stored.rows, stored.bytes)), Some((first, *rows, bytes.clone())))?;
            at = first + rows;
        }
        same("end", log.read(of, at).map_err(fault)?, None)?;
    }
    Ok(())
}

/// Holds what nobody can ask for to a model: the keys, and what deleted streams leave.
fn compare_tables(disk: &PowerDisk, model: &Model) -> Result<(), String> {
    const KEYS: TableDefinition<(u32, &str), (u64, u64, &[u8; 32])> = TableDefinition::new("keys");
    const KEY_OF: TableDefinition<(u32, u64), &str> = TableDefinition::new("key_of");
    const RECORDS: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("records");
    let database: Database = mustela::disk::Disk::open_database(&disk.copy(), &Builder::new(), Path::new("")).unwrap();
    let read = database.begin_read().unwrap();
    let (mut keys, mut key_of, mut records) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for row in read.open_table(KEYS).unwrap().iter().unwrap() {
        let (at, value) = row.unwrap();
        let ((stream, key), (first, last, fingerprint)) = (at.value(), value.value());
        keys.insert((stream, key.to_owned()), (first, last, *fingerprint));
    }
    for row in read.open_table(KEY_OF).unwrap().iter().unwrap() {
        let (at, key) = row.unwrap();
        key_of.insert(at.value(), key.value().to_owned());
    }
    for row in read.open_table(RECORDS).unwrap().iter().unwrap() {
        records.push(row.unwrap().0.value());
    }
    let wanted = model.keys.iter().map(|(at, &(first, last, fingerprint, _))| (at.clone(), (first, last, fingerprint)));
    same("keys", keys, wanted.collect())?;
    let wanted = model.keys.iter().map(|((stream, key), value)| ((*stream, value.3), key.clone()));
    same("keys of records", key_of, wanted.collect())?;
    same("places of records", records, model.records.keys().copied().collect())
}

impl Machine {
    fn new() -> Result<Machine, String> {
        let disk = PowerDisk::default();
        let mut machine =
            Machine { disk, log: None, model: Model::default(), identity: None, nothing: 0, whole: 0, check_bytes_max: 0 };
        machine.reopen(None, 0)?;
        Ok(machine)
    }

    /// Opens the log, with another fault meanwhile, and again until it is open; the file must hold no less than before.
    fn reopen(&mut self, fault: Option<(u64, Fault, u64)>, seed: u64) -> Result<(), String> {
        self.log = None;
        if let Some((calls, fault, seed)) = fault {
            self.disk.arm(calls, fault, seed);
        }
        let opened = open(&self.disk, self.check_bytes_max);
        let fired = self.disk.disarm();
        let log = match (opened, fired) {
            (Ok(log), None) => log,
            (opened, Some(fired)) => {
                drop(opened);
                self.after(fired, seed);
                open(&self.disk, self.check_bytes_max).map_err(|error| format!("after a fault while it was opened: {error}"))?
            }
            (Err(error), None) => return Err(format!("it cannot be opened: {error}")),
        };
        let identity = self.identity.get_or_insert_with(|| log.identity().to_owned());
        same("identity", log.identity(), identity)?;
        self.log = Some(log);
        Ok(())
    }

    /// A fault ends the process; a cut takes what was not synced.
    fn after(&self, fault: Fault, seed: u64) {
        match fault {
            Fault::Cut => self.disk.cut(seed),
            Fault::Fail => self.disk.kill(),
        }
    }

    fn log(&self) -> &RedbLog {
        self.log.as_ref().unwrap()
    }

    /// Does what is asked: what may be there after it, of which the last is what was acknowledged, and whether it was.
    fn act(&mut self, act: &Act) -> Result<(Vec<Model>, bool), String> {
        let mut states = vec![self.model.clone()];
        let done = match act {
            Act::Commit(wishes) => {
                let mut model = self.model.clone();
                let (mut entries, mut wanted) = (Vec::new(), Vec::new());
                for wish in wishes {
                    let entry = wish.entry(&model);
                    wanted.push(model.put(&entry));
                    entries.push(entry);
                }
                states.push(model);
                match self.log().commit(&entries) {
                    Ok(committed) => {
                        same("answers", committed, wanted)?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Act::Trim { pick, share, retain } => {
                let stream = self.model.live_stream(*pick);
                let (head, bytes) = self.model.heads.get(&stream).copied().unwrap_or_default();
                let (before, retain_bytes) = (head * u64::from(*share) / 200 + 1, bytes * u64::from(*retain / 2) / 255);
                let mut model = self.model.clone();
                while model.trim_some(stream, before, retain_bytes) {
                    states.push(model.clone());
                }
                self.log().trim(stream, before, retain_bytes)
            }
            Act::Sweep => self.log().sweep(),
            Act::Restart | Act::Kill | Act::PowerCut { .. } | Act::Begin => Ok(()),
        };
        match done {
            Ok(()) => Ok((states, true)),
            Err(LogError::Storage(_)) => Ok((states, false)),
            Err(error) => Err(format!("{error}")),
        }
    }

    fn step(&mut self, transition: &Transition) -> Result<(), String> {
        let Transition { act, fault, again } = transition;
        if matches!(act, Act::Begin) {
            (self.disk, self.log, self.model, self.identity) = Default::default();
        }
        if let Some((calls, fault, seed)) = *fault {
            self.disk.arm(calls, fault, seed);
        }
        let seed = fault.map_or(0, |fault| fault.2);
        self.check_bytes_max = if seed % 2 == 0 { 0 } else { u64::MAX };
        let (states, acknowledged) = if self.log.is_some() { self.act(act)? } else { (vec![self.model.clone()], true) };
        let mut failed = false;
        match act {
            Act::Restart | Act::Begin => {
                self.log = None;
                match open(&self.disk, self.check_bytes_max) {
                    Ok(log) => self.log = Some(log),
                    Err(_) => failed = true,
                }
            }
            Act::Kill => {
                self.disk.kill();
                self.reopen(*again, seed)?;
            }
            Act::PowerCut { seed } => {
                self.disk.cut(*seed);
                self.reopen(*again, *seed)?;
            }
            Act::Commit(_) | Act::Trim { .. } | Act::Sweep => {}
        }
        let fired = self.disk.disarm();
        if let Some(fired) = fired {
            self.after(fired, seed);
            self.reopen(*again, !seed)?;
        } else if failed || !acknowledged {
            return Err("it failed, and the disk did not".into());
        }
        if let Some(log) = &self.log
            && self.identity.is_none()
        {
            self.identity = Some(log.identity().to_owned());
        }
        // What was acknowledged is the last of the states; a fault may have left any of them.
        let possible = if acknowledged { &states[states.len() - 1..] } else { &states[..] };
        let mut faults = Vec::new();
        for state in possible.iter().rev() {
            match compare(self.log(), state) {
                Ok(()) => {
                    if !acknowledged {
                        let counted = if *state == self.model { &mut self.nothing } else { &mut self.whole };
                        *counted += 1;
                    }
                    self.model = state.clone();
                    faults.clear();
                    break;
                }
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(format!("{act:?} (acknowledged: {acknowledged}, {fired:?}) left neither all nor nothing: {faults:?}"));
        }
        if fired.is_some() || matches!(act, Act::Restart | Act::Kill | Act::PowerCut { .. } | Act::Sweep) {
            compare_tables(&self.disk, &self.model)?;
        }
        Ok(())
    }
}

struct LogTest;

impl StateMachineTest for LogTest {
    type SystemUnderTest = Machine;
    type Reference = Reference;

    fn init_test(_: &Model) -> Machine {
        Machine::new().unwrap()
    }

    fn apply(mut machine: Machine, _: &Model, transition: Transition) -> Machine {
        match catch_unwind(AssertUnwindSafe(|| machine.step(&transition))) {
            Ok(Ok(())) => machine,
            stepped => {
                // What is broken is not closed: that might end the whole process.
                std::mem::forget(machine);
                panic!("{stepped:?}");
            }
        }
    }
}

/// As many cases as the environment asks for, or a few.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

prop_state_machine! {
    #![proptest_config(config(150))]

    #[test]
    fn the_log_survives_any_cut_of_the_power(sequential 1..30 => LogTest);
}

/// The same cases every time.
fn runner(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let found = runner(200).run(&Reference::sequential_strategy(1..30), |(_, transitions, _)| {
        let mut machine = Machine::new().unwrap();
        machine.disk.lie();
        for transition in transitions.iter().filter(|transition| !matches!(transition.act, Act::Begin)) {
            machine.step(transition).map_err(TestCaseError::fail)?;
        }
        Ok(())
    });
    let Err(TestError::Fail(reason, _)) = found else { panic!("nothing was lost: {found:?}") };
    assert!(reason.message().contains("left neither all nor nothing"), "{reason}");
}

#[test]
fn faults_strike_on_either_side_of_the_moment_that_counts() {
    let (nothing, whole) = (Cell::new(0), Cell::new(0));
    let held = runner(60).run(&Reference::sequential_strategy(10..30), |(_, transitions, _)| {
        let mut machine = Machine::new().unwrap();
        for transition in &transitions {
            machine.step(transition).map_err(TestCaseError::fail)?;
        }
        nothing.set(nothing.get() + machine.nothing);
        whole.set(whole.get() + machine.whole);
        Ok(())
    });
    held.unwrap();
    assert!(nothing.get() > 50 && whole.get() > 5, "{nothing:?} left nothing, {whole:?} left all");
}
