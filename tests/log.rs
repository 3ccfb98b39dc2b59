//! The log behind the streams: what was acknowledged is there, once, in order, after any end; what failed never was acknowledged.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use mustela::disk::{Disk, FileSystem};
use mustela::rows::{Block, Element, Rows, Target};
use mustela::stream::log::{Committed, Committer, Encoded, Entry, Hooks, Key, Log, LogError, Options, RedbLog};
use mustela::stream::{Receipt, Schema, Stream, StreamError, Streams};
use proptest::prelude::*;
use redb::{Builder, Database, DatabaseError, StorageBackend, backends::FileBackend};

const OPTIONS: Options = Options { cache_bytes: 8 << 20, check_bytes_max: 0 };
/// Bytes of one row; a record holds 256 of them.
const WIDTH: usize = 4096;

fn schema() -> Schema {
    let json = format!(
        r#"{{"fields":[{{"name":"t","type":"tensor","shape":[{WIDTH}],"element":"u8"}}],
            "target":{{"name":"y","type":"classes","classes":10}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

/// So many rows, each filled with its number modulo 251, from `first` on.
fn rows(first: usize, count: usize) -> Rows {
    let bytes: Vec<u8> = (first..first + count).flat_map(|row| [(row % 251) as u8; WIDTH]).collect();
    Rows {
        count,
        blocks: vec![Block { element: Element::U8, width: WIDTH, bytes: Bytes::from(bytes) }],
        target: Some(Target::Classes((first..first + count).map(|row| (row % 10) as u32).collect())),
        ids: None,
        times_ms: None,
    }
}

/// 256 rows that cannot be compressed.
fn noise(seed: usize) -> Rows {
    let mut bytes = vec![0; WIDTH * 256];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Rows { blocks: vec![Block { element: Element::U8, width: WIDTH, bytes: bytes.into() }], ..rows(0, 256) }
}

/// Hooks that count commits and fatal errors.
#[derive(Clone, Default)]
struct Counts {
    groups: Arc<parking_lot::Mutex<Vec<usize>>>,
    fatal: Arc<AtomicUsize>,
}

impl Counts {
    fn hooks(&self) -> Hooks {
        let Counts { groups, fatal } = self.clone();
        Hooks {
            committed: Box::new(move |_, requests| groups.lock().push(requests)),
            fatal: Box::new(move |_| {
                fatal.fetch_add(1, SeqCst);
            }),
        }
    }
}

/// A log with its streams, as the service has them.
struct House {
    log: Arc<RedbLog>,
    committer: Committer,
    streams: Streams,
    counts: Counts,
}

fn open_on(disk: &dyn Disk, folder: &Path) -> Result<House, StreamError> {
    let log = Arc::new(RedbLog::open(disk, folder, &OPTIONS)?);
    let counts = Counts::default();
    let committer = Committer::start(log.clone(), 256, counts.hooks()).unwrap();
    let streams = Streams::open(log.clone(), committer.clone(), u64::MAX)?;
    Ok(House { log, committer, streams, counts })
}

fn open(folder: &Path) -> House {
    open_on(&FileSystem, folder).unwrap()
}

impl House {
    /// Ends it and waits until the file is free.
    fn close(self) {
        let House { log, committer, streams, .. } = self;
        drop((committer, streams));
        while Arc::strong_count(&log) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn append(&self, stream: &Arc<Stream>, rows: Rows, key: Option<(&str, u8)>) -> Result<Receipt, StreamError> {
        let key = key.map(|(key, body)| (key.to_owned(), [body; 32]));
        wait(self.streams.submit(stream, rows, key)?.receipt())
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// All rows that a stream keeps, from `from` on, and the sequence number of the first of them.
fn read_all(stream: &Stream, from: u64) -> (u64, Vec<u8>) {
    let (mut at, mut began, mut seen) = (from, None, Vec::new());
    while let Some((first, rows)) = stream.read_rows(at).unwrap() {
        began.get_or_insert(first);
        assert!(seen.is_empty() || first == at, "records follow one another");
        seen.extend(rows.blocks[0].bytes.iter().step_by(WIDTH));
        at = first + rows.count as u64;
    }
    (began.unwrap_or(stream.head() + 1), seen)
}

fn numbered(from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|row| (row % 251) as u8).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    let (other, _) = house.streams.create("other", schema()).unwrap();
    let mut next = 0;
    for count in [1, 255, 256, 257, 600] {
        let receipt = house.append(&stream, rows(next, count), None).unwrap();
        let (first, last) = (next as u64 + 1, (next + count) as u64);
        let records = count.div_ceil(256) as u64;
        assert_eq!(receipt, Receipt { first, last, rows: count as u64, records, replayed: false });
        next += count;
    }
    assert_eq!(house.append(&other, rows(0, 3), None).unwrap().first, 1, "streams count on their own");
    assert_eq!((stream.head(), other.head()), (next as u64, 3));
    let identity = house.log.identity().to_owned();
    drop((stream, other));
    house.close();

    let house = open(folder.path());
    assert_eq!(house.log.identity(), identity);
    let stream = house.streams.get("s").unwrap();
    assert_eq!((stream.head(), stream.bounds().unwrap()), (next as u64, (1, next as u64)));
    assert_eq!(read_all(&stream, 0), (1, numbered(0, next)));
    let (first, middle) = stream.read_rows(300).unwrap().unwrap();
    assert!(first <= 300 && 300 < first + middle.count as u64, "the record that has the row");
    assert_eq!(house.append(&stream, rows(next, 1), None).unwrap().first, next as u64 + 1);
}

#[test]
fn a_key_stands_for_one_post_and_gives_its_first_receipt_again() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    let (other, _) = house.streams.create("other", schema()).unwrap();
    let receipt = house.append(&stream, rows(0, 600), Some(("k", 1))).unwrap();
    let again = Receipt { replayed: true, ..receipt };
    assert_eq!(house.append(&stream, rows(0, 600), Some(("k", 1))).unwrap(), again);
    assert!(matches!(house.append(&stream, rows(0, 9), Some(("k", 2))), Err(StreamError::KeyReused)));
    assert_eq!(house.append(&other, rows(0, 9), Some(("k", 2))).unwrap().first, 1, "keys are a stream's own");
    drop((stream, other));
    house.close();

    let house = open(folder.path());
    let stream = house.streams.get("s").unwrap();
    assert_eq!(house.append(&stream, rows(0, 600), Some(("k", 1))).unwrap(), again);
    assert!(matches!(house.append(&stream, rows(0, 9), Some(("k", 2))), Err(StreamError::KeyReused)));
    assert_eq!(stream.head(), 600);

    stream.trim(300, 0).unwrap();
    assert_eq!(stream.bounds().unwrap(), (257, 600));
    assert_eq!(house.append(&stream, rows(0, 600), Some(("k", 1))).unwrap(), again, "a key outlives all but its last record");
    stream.trim(601, 0).unwrap();
    assert_eq!(house.append(&stream, rows(0, 5), Some(("k", 2))).unwrap().first, 601, "and goes with that");
}

#[test]
fn forgetting_is_by_whole_records_and_no_number_comes_twice() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    for post in 0..4 {
        house.append(&stream, rows(post * 256, 256), None).unwrap();
    }
    let full = house.streams.stored_bytes();
    stream.trim(600, u64::MAX).unwrap();
    assert_eq!(stream.bounds().unwrap(), (1, 1024), "kept by its bytes");
    stream.trim(600, 0).unwrap();
    assert_eq!(stream.bounds().unwrap(), (513, 1024));
    assert_eq!(read_all(&stream, 1), (513, numbered(512, 1024)));
    assert_eq!(house.streams.stored_bytes(), full / 2);
    stream.trim(u64::MAX, 0).unwrap();
    assert_eq!((stream.bounds().unwrap(), house.streams.stored_bytes()), ((1025, 1024), 0));
    drop(stream);
    house.close();
    let house = open(folder.path());
    let stream = house.streams.get("s").unwrap();
    assert_eq!((stream.head(), stream.bounds().unwrap()), (1024, (1025, 1024)));
    assert_eq!(house.append(&stream, rows(0, 1), None).unwrap().first, 1025);
}

#[test]
fn a_deleted_stream_leaves_nothing_and_its_id_is_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    for post in 0..600 {
        house.append(&stream, rows(post, 1), Some((&format!("key {post}"), 0))).unwrap();
    }
    house.streams.delete("s").unwrap();
    assert!(matches!(house.append(&stream, rows(0, 1), None), Err(StreamError::NotFound(_))));
    assert_eq!((house.log.read(stream.id, 1).unwrap(), house.streams.stored_bytes()), (None, 0));
    let (new, created) = house.streams.create("s", schema()).unwrap();
    assert!(created && new.id > stream.id);
    assert_eq!(house.append(&new, rows(0, 1), Some(("key 0", 9))).unwrap().first, 1);

    // As if the process had died between the deletion and the sweep.
    house.committer.commit(vec![Entry::DeleteStream { stream: new.id }]).unwrap();
    assert!(house.log.read(new.id, 1).unwrap().is_some());
    let id = new.id;
    drop((stream, new));
    house.close();
    let house = open(folder.path());
    assert!(house.streams.list().is_empty());
    assert_eq!(house.log.read(id, 1).unwrap(), None);
    assert!(house.log.next_stream_id().unwrap() > id);
}

#[test]
fn posts_that_arrive_together_are_one_commit_and_each_has_its_own_numbers() {
    const POSTS: usize = 200;
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    let (told, told_to) = mpsc::channel();
    for post in 0..POSTS {
        let told = told.clone();
        let bytes = format!("post {post}").into_bytes();
        let key = Some(Key { key: format!("{}", post % 150), fingerprint: [0; 32] });
        let records = vec![Encoded { bytes, rows: 3 }];
        house.committer.submit(vec![Entry::Append { stream: stream.id, records, key }], move |committed| {
            told.send((post, committed.unwrap())).unwrap();
        });
    }
    let told: Vec<_> = told_to.iter().take(POSTS).collect();
    for (at, (post, committed)) in told.into_iter().enumerate() {
        assert_eq!(at, post, "answers come in the order of the queue");
        let first = (post % 150) as u64 * 3 + 1;
        assert_eq!(committed, [Committed::Appended { first, last: first + 2, replayed: post >= 150 }]);
    }
    let groups = house.counts.groups.lock().clone();
    assert!(groups.len() < POSTS / 2, "{groups:?}");
    assert_eq!(house.log.bounds(stream.id).unwrap(), (1, 450));
}

#[test]
fn decisions_have_no_gap_and_are_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let put = |model, name: &str| Entry::PutModel { model, name: name.to_owned(), bytes: b"what".to_vec() };
    let decide = |model, index, bytes: &str| Entry::Decision { model, index, bytes: bytes.as_bytes().to_vec() };
    let committed = house.committer.commit(vec![put(1, "m"), decide(1, 0, "zero"), decide(1, 1, "one")]);
    assert_eq!(committed.unwrap(), vec![Committed::Done; 3]);
    for (model, index) in [(1, 0), (1, 1), (1, 3), (2, 1)] {
        let refused = house.committer.commit(vec![decide(model, index, "other")]);
        assert!(matches!(refused, Err(LogError::OutOfOrder)), "{model} {index}");
    }
    house.committer.commit(vec![decide(1, 2, "two")]).unwrap();
    house.close();
    let house = open(folder.path());
    assert_eq!(house.log.decisions(1).unwrap(), ["zero", "one", "two"].map(|text| text.as_bytes().to_vec()));
    assert_eq!(house.log.models().unwrap()[&1], ("m".to_owned(), b"what".to_vec()));
    house.committer.commit(vec![Entry::DeleteModel { model: 1 }]).unwrap();
    assert!(house.log.models().unwrap().is_empty() && house.log.decisions(1).unwrap().is_empty());
    assert_eq!(house.log.next_model_id().unwrap(), 2);
}

#[test]
fn a_data_folder_has_one_process_and_one_format() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let error = RedbLog::open(&FileSystem, folder.path(), &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("another process") && error.contains(folder.path().to_str().unwrap()), "{error}");
    house.close();

    let path = folder.path().join("log.redb");
    let header = redb::TableDefinition::<&str, &str>::new("header");
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(header).unwrap().insert("version", "99").unwrap();
    write.commit().unwrap();
    drop(database);
    let error = RedbLog::open(&FileSystem, folder.path(), &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("version 99") && error.contains("open it with the binary that wrote it"), "{error}");
}

#[test]
fn a_record_that_was_altered_is_never_read_as_rows() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    house.append(&stream, rows(0, 2), None).unwrap();
    let mut bytes = house.log.read(stream.id, 1).unwrap().unwrap().bytes;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let append = |bytes, rows| Entry::Append { stream: stream.id, records: vec![Encoded { bytes, rows }], key: None };
    house.committer.commit(vec![append(bytes, 2)]).unwrap();
    let error = stream.read_rows(3).unwrap_err();
    assert!(matches!(&error, StreamError::Corrupt { from: 3, .. }), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
    // Whole, but not the rows that the log counts.
    let whole = house.log.read(stream.id, 1).unwrap().unwrap().bytes;
    house.committer.commit(vec![append(whole, 5)]).unwrap();
    assert!(matches!(stream.read_rows(5), Err(StreamError::Corrupt { .. })));
}

#[test]
fn a_file_that_was_altered_on_the_disk_is_never_read_as_rows() {
    let folder = tempfile::tempdir().unwrap();
    let house = open(folder.path());
    let (stream, _) = house.streams.create("s", schema()).unwrap();
    house.append(&stream, noise(0), None).unwrap();
    house.append(&stream, noise(1), None).unwrap();
    drop(stream);
    house.close();
    let path = folder.path().join("log.redb");
    let mut bytes = FileSystem.read(&path).unwrap();
    let pattern = noise(1).blocks[0].bytes.slice(WIDTH..WIDTH + 32);
    let at = bytes.windows(32).position(|window| window == &pattern[..]).unwrap();
    bytes[at] ^= 1;
    FileSystem.write_atomic(&path, &mut |out| out.write_all(&bytes)).unwrap();
    // Where the file is read whole, it does not even open.
    let checked = Options { check_bytes_max: u64::MAX, ..OPTIONS };
    let error = RedbLog::open(&FileSystem, folder.path(), &checked).unwrap_err().to_string();
    assert!(error.contains("log.redb is damaged"), "{error}");
    let house = open(folder.path());
    let stream = house.streams.get("s").unwrap();
    assert_eq!(stream.read_rows(1).unwrap().unwrap().1, noise(0));
    assert!(matches!(stream.read_rows(257), Err(StreamError::Corrupt { from: 257, .. })));
}

/// A disk whose log fails when it is told to: at the next write, or only at the next sync.
#[derive(Clone, Debug, Default)]
struct Failing {
    writes: Arc<AtomicBool>,
    syncs: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FailingBackend {
    file: FileBackend,
    when: Failing,
}

impl StorageBackend for FailingBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        assert!(!self.when.panics.load(SeqCst), "the disk burns");
        if self.when.syncs.load(SeqCst) { Err(io::Error::other("the sync failed")) } else { self.file.sync_data() }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.when.writes.load(SeqCst) { Err(io::Error::other("the write failed")) } else { self.file.write(offset, data) }
    }
}

impl Disk for Failing {
    fn open_database(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        builder.create_with_backend(FailingBackend { file: FileBackend::new(file)?, when: self.clone() })
    }
    fn write_atomic(&self, path: &Path, write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
        FileSystem.write_atomic(path, write)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        FileSystem.read(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        FileSystem.list(folder)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }
    fn remove_dir(&self, folder: &Path) -> io::Result<()> {
        FileSystem.remove_dir(folder)
    }
    fn create_dir_all(&self, folder: &Path) -> io::Result<()> {
        FileSystem.create_dir_all(folder)
    }
}

#[test]
fn a_storage_that_fails_acknowledges_nothing_and_ends_the_writer() {
    for fault in ["write", "sync", "panic"] {
        let folder = tempfile::tempdir().unwrap();
        let disk = Failing::default();
        let house = open_on(&disk, folder.path()).unwrap();
        let (stream, _) = house.streams.create("s", schema()).unwrap();
        house.append(&stream, rows(0, 10), None).unwrap();
        let switch = match fault {
            "write" => &disk.writes,
            "sync" => &disk.syncs,
            _ => &disk.panics,
        };
        switch.store(true, SeqCst);
        let failed = house.append(&stream, rows(10, 10), Some(("k", 1)));
        assert!(matches!(failed, Err(StreamError::Storage(LogError::Storage(_)))), "{fault}: {failed:?}");
        assert_eq!(stream.head(), 10, "{fault}");
        switch.store(false, SeqCst);
        let closed = house.append(&stream, rows(10, 10), None);
        assert!(matches!(closed, Err(StreamError::Storage(LogError::Closed))), "{fault}: never tried again");
        assert_eq!(house.counts.fatal.load(SeqCst), 1, "{fault}");
        drop(stream);
        house.close();

        // Only what was acknowledged has to be there; what was not may be.
        let house = open(folder.path());
        let stream = house.streams.get("s").unwrap();
        let (first, seen) = read_all(&stream, 1);
        assert!(first == 1 && (seen == numbered(0, 10) || seen == numbered(0, 20)), "{fault}: {seen:?}");
        assert_eq!(stream.head(), seen.len() as u64, "{fault}");
    }
}

#[test]
fn a_key_is_refused_while_its_post_is_under_way_and_a_full_log_refuses_all() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(RedbLog::open(&FileSystem, folder.path(), &OPTIONS).unwrap());
    // The hook holds the writer, so that posts stay under way for as long as the test likes.
    let (go, gate) = crossbeam::channel::bounded::<()>(0);
    let hooks = Hooks { committed: Box::new(move |_, _| gate.recv().unwrap_or_default()), fatal: Box::new(|_| {}) };
    let committer = Committer::start(log.clone(), 1, hooks).unwrap();
    let made = { Streams::open(log.clone(), committer.clone(), 2 << 20).unwrap() };
    let (stream, _) = std::thread::scope(|scope| {
        let created = scope.spawn(|| made.create("s", schema()).unwrap());
        go.send(()).unwrap();
        created.join().unwrap()
    });
    let key = || Some(("k".to_owned(), [1; 32]));
    let pending = made.submit(&stream, rows(0, 5), key()).unwrap();
    assert!(matches!(made.submit(&stream, rows(0, 5), key()), Err(StreamError::KeyInFlight)));
    let other = made.submit(&stream, rows(0, 5), None).unwrap();
    drop(go);
    assert_eq!(wait(pending.receipt()).unwrap().last, 5);
    assert_eq!(wait(other.receipt()).unwrap().last, 10);
    assert!(wait(made.submit(&stream, rows(0, 5), key()).unwrap().receipt()).unwrap().replayed);

    wait(made.submit(&stream, noise(0), None).unwrap().receipt()).unwrap();
    let full = made.submit(&stream, noise(1), None);
    assert!(matches!(full, Err(StreamError::Full { bytes_max, .. }) if bytes_max == 2 << 20), "{full:?}");
    stream.trim(u64::MAX, 0).unwrap();
    wait(made.submit(&stream, noise(1), None).unwrap().receipt()).unwrap();
}

/// One thing that a client, or the service, may do.
#[derive(Clone, Debug)]
enum Act {
    Post { rows: usize, key: Option<u8> },
    Trim { share: u8 },
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        5 => (1usize..600, prop::option::of(0u8..4)).prop_map(|(rows, key)| Act::Post { rows, key }),
        1 => any::<u8>().prop_map(|share| Act::Trim { share }),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Against a model of three lines: rows are what was posted, once for each key, less what was forgotten.
    #[test]
    fn the_log_is_what_was_posted_once(acts in prop::collection::vec(act(), 1..25)) {
        let folder = tempfile::tempdir().unwrap();
        let mut house = open(folder.path());
        house.streams.create("s", schema()).unwrap();
        let (mut next, mut kept, mut keys) = (0, 1, std::collections::BTreeMap::new());
        let mut told = String::new();
        for act in acts {
            write!(told, "{act:?} ").unwrap();
            let stream = house.streams.get("s").unwrap();
            match act {
                Act::Post { rows: count, key } => {
                    let name = key.map(|key| (["a", "b", "c", "d"][usize::from(key)], key));
                    let receipt = house.append(&stream, rows(next, count), name).unwrap();
                    let known = key.and_then(|key| keys.get(&key).copied()).filter(|(_, last)| *last >= kept);
                    let (first, last) = known.unwrap_or((next as u64 + 1, (next + count) as u64));
                    prop_assert_eq!((receipt.first, receipt.last, receipt.replayed), (first, last, known.is_some()), "{}", told);
                    if known.is_none() {
                        next += count;
                        keys.extend(key.map(|key| (key, (first, last))));
                    }
                }
                Act::Trim { share } => {
                    stream.trim(next as u64 * u64::from(share) / 255 + 1, 0).unwrap();
                    let (first, last) = stream.bounds().unwrap();
                    prop_assert!(first >= kept && last == next as u64, "{}", told);
                    kept = first;
                }
                Act::Restart => {
                    drop(stream);
                    house.close();
                    house = open(folder.path());
                }
            }
            let stream = house.streams.get("s").unwrap();
            let (first, seen) = read_all(&stream, 1);
            prop_assert_eq!((first, stream.head()), (kept, next as u64), "{}", told);
            prop_assert_eq!(seen, numbered(kept as usize - 1, next), "{}", told);
        }
    }
}
