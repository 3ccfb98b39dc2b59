//! The log by itself: what a commit promises, what survives a restart, and what happens when the storage fails.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use mustela::disk::{Disk, FileSystem};
use mustela::stream::log::{Committed, Committer, Encoded, Entry, Hooks, Key, Log, LogError, Options, RedbLog, Stored};
use redb::{Builder, Database, DatabaseError, StorageBackend};

/// Disk that a record of 100 bytes takes, with what the log keeps beside it.
const RECORD_BYTES: u64 = 164;
const OPTIONS: Options = Options { cache_bytes: 1 << 20 };

fn open(folder: &Path) -> RedbLog {
    RedbLog::open(&FileSystem, folder, &OPTIONS).unwrap()
}

fn put_stream(stream: u32) -> Entry {
    Entry::PutStream { stream, name: format!("s{stream}"), bytes: b"{}".to_vec() }
}

fn append(stream: u32, rows: &[u64], key: Option<(&str, u8)>) -> Entry {
    let records = rows.iter().map(|&rows| Encoded { bytes: vec![rows as u8; 100], rows }).collect();
    let key = key.map(|(key, fingerprint)| Key { key: key.to_owned(), fingerprint: [fingerprint; 32] });
    Entry::Append { stream, records, key }
}

fn appended(first: u64, last: u64, replayed: bool) -> Committed {
    Committed::Appended { first, last, replayed }
}

#[test]
fn sequences_have_no_gap_and_streams_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let (one, two) = (log.next_stream_id().unwrap(), log.next_stream_id().unwrap() + 1);
    let entries =
        [put_stream(one), put_stream(two), append(one, &[10, 5], None), append(two, &[7], None), append(one, &[1], None)];
    let committed = log.commit(&entries).unwrap();
    assert_eq!(committed[2..], [appended(1, 15, false), appended(1, 7, false), appended(16, 16, false)]);
    assert_eq!(log.commit(&[append(9, &[1], None)]).unwrap(), [Committed::NoStream]);
    let identity = log.identity().to_owned();
    drop(log);

    let log = open(folder.path());
    assert_eq!(log.identity(), identity);
    assert_eq!((log.bounds(one).unwrap(), log.bounds(two).unwrap()), ((1, 16), (1, 7)));
    for (from, first, rows) in [(1, 1, 10), (10, 1, 10), (11, 11, 5), (15, 11, 5), (16, 16, 1)] {
        assert_eq!(log.read(one, from).unwrap(), Some(Stored { first, rows, bytes: vec![rows as u8; 100] }), "from {from}");
    }
    assert_eq!((log.read(one, 17).unwrap(), log.read(9, 1).unwrap()), (None, None));
    assert_eq!(log.stored_bytes(), 4 * RECORD_BYTES);
    assert_eq!(log.next_stream_id().unwrap(), two + 1);
}

#[test]
fn a_key_stands_for_one_post_as_long_as_its_records_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    log.commit(&[put_stream(1), put_stream(2)]).unwrap();
    let both = [append(1, &[3, 4], Some(("k", 1))), append(1, &[3, 4], Some(("k", 1))), append(1, &[9], Some(("k", 2)))];
    assert_eq!(log.commit(&both).unwrap(), [appended(1, 7, false), appended(1, 7, true), Committed::KeyReused]);
    // Another stream's keys are its own.
    assert_eq!(log.commit(&[append(2, &[1], Some(("k", 2)))]).unwrap(), [appended(1, 1, false)]);
    drop(log);
    let log = open(folder.path());
    assert_eq!(log.commit(&[append(1, &[3, 4], Some(("k", 1)))]).unwrap(), [appended(1, 7, true)]);
    log.commit(&[append(1, &[5], None)]).unwrap();
    log.trim(1, 8, 0).unwrap();
    assert_eq!(log.bounds(1).unwrap(), (8, 12));
    assert_eq!(log.commit(&[append(1, &[1], Some(("k", 2)))]).unwrap(), [appended(13, 13, false)]);
}

#[test]
fn trimming_keeps_what_is_needed_and_what_is_retained() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    log.commit(&[put_stream(1)]).unwrap();
    for _ in 0..1000 {
        log.commit(&[append(1, &[10], None)]).unwrap();
    }
    log.trim(1, 5_005, 0).unwrap();
    assert_eq!(log.bounds(1).unwrap(), (5_001, 10_000), "a record that reaches beyond is kept whole");
    assert_eq!(log.stored_bytes(), 500 * RECORD_BYTES);
    log.trim(1, 10_001, 200 * RECORD_BYTES).unwrap();
    assert_eq!(log.bounds(1).unwrap(), (8_001, 10_000));
    log.trim(1, 10_001, 0).unwrap();
    assert_eq!((log.bounds(1).unwrap(), log.read(1, 1).unwrap()), ((10_001, 10_000), None));
    assert_eq!(log.commit(&[append(1, &[2], None)]).unwrap(), [appended(10_001, 10_002, false)]);
    log.commit(&[Entry::DeleteStream { stream: 1 }]).unwrap();
    assert_eq!((log.stored_bytes(), log.streams().unwrap().len(), log.next_stream_id().unwrap()), (0, 0, 2));
}

#[test]
fn decisions_come_back_in_order_and_go_with_their_model() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let put = |model: u32| Entry::PutModel { model, name: format!("m{model}"), bytes: b"{}".to_vec() };
    let decision = |model: u32, index: u64| Entry::Decision { model, index, bytes: vec![model as u8, index as u8] };
    log.commit(&[put(1), decision(1, 0), put(2), decision(2, 0), decision(1, 1)]).unwrap();
    assert_eq!(log.decisions(1).unwrap(), [vec![1, 0], vec![1, 1]]);
    log.commit(&[Entry::DeleteModel { model: 1 }]).unwrap();
    assert_eq!((log.decisions(1).unwrap().len(), log.decisions(2).unwrap().len()), (0, 1));
    assert_eq!((log.models().unwrap().len(), log.next_model_id().unwrap()), (1, 3));
    for index in [0, 5] {
        assert_eq!(log.commit(&[decision(2, index)]).unwrap(), [Committed::OutOfOrder], "neither over another nor past a gap");
    }
    assert_eq!(log.decisions(2).unwrap(), [vec![2, 0]]);
}

#[test]
fn a_second_process_and_another_version_are_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let second = RedbLog::open(&FileSystem, folder.path(), &OPTIONS).unwrap_err().to_string();
    assert!(second.contains("another process"), "{second}");
    drop(log);
    let table = redb::TableDefinition::<&str, &str>::new("header");
    let database = Database::open(folder.path().join("log.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(table).unwrap().insert("version", "99").unwrap();
    write.commit().unwrap();
    drop(database);
    let told = RedbLog::open(&FileSystem, folder.path(), &OPTIONS).unwrap_err().to_string();
    assert!(told.contains("version 99") && told.contains("open it with"), "{told}");
}

/// A disk whose syncs fail from some moment on.
struct Failing(Arc<AtomicBool>);

#[derive(Debug)]
struct FailingBackend(redb::backends::FileBackend, Arc<AtomicBool>);

impl StorageBackend for FailingBackend {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        if self.1.load(SeqCst) { Err(io::Error::other("the disk is gone")) } else { self.0.sync_data() }
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }
}

impl Disk for Failing {
    fn open_database(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        builder.create_with_backend(FailingBackend(redb::backends::FileBackend::new(file)?, self.0.clone()))
    }
    fn write_atomic(&self, path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
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
fn after_a_failed_sync_nothing_is_acknowledged_and_the_end_is_called_for() {
    let folder = tempfile::tempdir().unwrap();
    let (broken, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let log = Arc::new(RedbLog::open(&Failing(broken.clone()), folder.path(), &OPTIONS).unwrap());
    let end = ended.clone();
    let hooks = Hooks { committed: Box::new(|_, _| {}), fatal: Box::new(move |_| end.store(true, SeqCst)) };
    let committer = Committer::start(log, 16, hooks).unwrap();
    committer.commit(vec![put_stream(1), append(1, &[5], None)]).unwrap();
    broken.store(true, SeqCst);
    assert!(matches!(committer.commit(vec![append(1, &[5], None)]), Err(LogError::Storage(_))));
    // A sync that failed is not tried again, even if it would now succeed.
    broken.store(false, SeqCst);
    assert!(committer.commit(vec![append(1, &[5], None)]).is_err());
    assert!(ended.load(SeqCst));
}
