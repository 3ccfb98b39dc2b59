//! The log on one machine: one redb file.
//!
//! Tables, all in `log.redb`:
//!
//! ```text
//! header     name                 -> text      format, version, identity
//! streams    stream               -> (name, schema)
//! heads      stream               -> (last sequence, bytes of disk that its records take)
//! records    (stream, first)      -> rows | record
//! keys       (stream, key)        -> (first, last, fingerprint)
//! key_of     (stream, first)      -> key       of a post's last record, so that forgetting the post finds its key
//! models     model                -> (name, what it is)
//! decisions  (model, index)       -> decision
//! settings   name                 -> what was set while the service ran
//! next       "stream" or "model"  -> the next id
//! ```
//!
//! Commits are synced before they return, and with quick repair a file that was not closed needs no repair. Freed pages are used again;
//! the file does not shrink.
//!
//! redb has a checksum of every page, and looks at them when it is asked to check the file: its own opening believes what it reads,
//! and what has no checksum of ours (all but records and decisions) would be served as the disk gives it. So a file is checked before it
//! is used, unless that takes too long; then what is read is held to what it can be held to, and a redb that stumbles over a page is
//! a failed storage.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    WriteTransaction,
};
use uuid::Uuid;

use super::{Committed, Encoded, Entry, Key, Log, LogError, Registered, Stored};
use crate::disk::Disk;
use crate::fold::Sequence;

const HEADER: TableDefinition<&str, &str> = TableDefinition::new("header");
const STREAMS: TableDefinition<u32, (&str, &[u8])> = TableDefinition::new("streams");
const HEADS: TableDefinition<u32, (u64, u64)> = TableDefinition::new("heads");
const RECORDS: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("records");
const KEYS: TableDefinition<(u32, &str), (u64, u64, &[u8; 32])> = TableDefinition::new("keys");
const KEY_OF: TableDefinition<(u32, u64), &str> = TableDefinition::new("key_of");
const MODELS: TableDefinition<u32, (&str, &[u8])> = TableDefinition::new("models");
const DECISIONS: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("decisions");
const SETTINGS: TableDefinition<&str, &[u8]> = TableDefinition::new("settings");
const NEXT: TableDefinition<&str, u32> = TableDefinition::new("next");

/// The log's file in its data folder.
pub const FILE: &str = "log.redb";
const FORMAT: &str = "mustela log";
const FORMAT_VERSION: &str = "1";
/// Bytes before a record: how many rows it has.
const ROWS_BYTES: usize = 8;
/// Records, or keys, that one transaction of a trim or a sweep forgets.
const TRIM_RECORDS: usize = 256;
/// redb's page, and about what it and its tree need beside a record.
const PAGE_BYTES: usize = 4096;
const RECORD_OVERHEAD_BYTES: usize = 64;

/// How the file is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory of the page cache.
    pub cache_bytes: usize,
    /// Up to this size the file is read whole, and all of it held to its checksums, before it is used.
    pub check_bytes_max: u64,
}

/// The log in a redb file.
#[derive(Debug)]
pub struct RedbLog {
    database: Database,
    identity: String,
    stored_bytes: AtomicU64,
}

/// redb has an error type for each call; to us they all say that the storage failed.
fn storage(error: impl Into<redb::Error>) -> LogError {
    LogError::Storage(error.into().to_string())
}

fn damaged(path: &Path, reason: &str) -> LogError {
    LogError::Format(format!(
        "{} is damaged: {reason}; nothing of it is served. Put back a copy of the whole data folder, or begin with an empty one",
        path.display()
    ))
}

impl RedbLog {
    /// Opens or makes the log in `folder`.
    ///
    /// # Errors
    /// Another process has it, it is damaged or of another version, or the storage fails.
    pub fn open(disk: &dyn Disk, folder: &Path, options: &Options) -> Result<RedbLog, LogError> {
        let path = folder.join(FILE);
        let opened = catch_unwind(AssertUnwindSafe(|| RedbLog::open_file(disk, &path, options)));
        opened.unwrap_or_else(|_| Err(damaged(&path, "its pages make no sense; the process's messages say where")))
    }

    fn open_file(disk: &dyn Disk, path: &Path, options: &Options) -> Result<RedbLog, LogError> {
        let mut builder = Builder::new();
        builder.set_cache_size(options.cache_bytes);
        let bytes = match std::fs::metadata(path) {
            // A log is made whole, or not at all; redb would take this for a new one.
            Ok(metadata) if metadata.len() == 0 => return Err(damaged(path, "it is empty")),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
        let is_checked = bytes <= options.check_bytes_max;
        builder.set_check_integrity_on_open(is_checked);
        if !is_checked {
            tracing::info!(bytes, "the log is opened without reading it all: it is larger than log.check_bytes_max");
        }
        let database = disk.open_database(&builder, path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => LogError::Held(path.display().to_string()),
            DatabaseError::Storage(StorageError::Corrupted(reason)) => damaged(path, &reason),
            // It does not begin as redb's files do, or ends before it should.
            DatabaseError::Storage(StorageError::Io(error))
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                damaged(path, &error.to_string())
            }
            DatabaseError::UpgradeRequired(version) => {
                damaged(path, &format!("it is of version {version} of redb's format, which this binary does not read"))
            }
            error => LogError::Storage(format!("{}: {error}", path.display())),
        })?;
        let mut log = RedbLog { database, identity: String::new(), stored_bytes: AtomicU64::new(0) };
        log.identity = log.check_header(path)?;
        log.stored_bytes = AtomicU64::new(log.sum_bytes()?);
        log.sweep()?;
        Ok(log)
    }

    /// Makes the tables and the header of a new file, or holds those of an old one to what this version reads.
    fn check_header(&self, path: &Path) -> Result<String, LogError> {
        let write = self.begin()?;
        let identity = {
            let mut header = write.open_table(HEADER).map_err(storage)?;
            let text = |name: &str| -> Result<Option<String>, LogError> {
                Ok(header.get(name).map_err(storage)?.map(|value| value.value().to_owned()))
            };
            match (text("format")?, text("version")?, text("identity")?) {
                (Some(format), Some(version), Some(identity)) if format == FORMAT && version == FORMAT_VERSION => identity,
                (None, None, None) => {
                    let identity = Uuid::new_v4().to_string();
                    for (name, value) in [("format", FORMAT), ("version", FORMAT_VERSION), ("identity", &identity)] {
                        header.insert(name, value).map_err(storage)?;
                    }
                    identity
                }
                (format, version, _) => {
                    return Err(LogError::Format(format!(
                        "{} is {} version {}; this binary reads {FORMAT} version {FORMAT_VERSION}: open it with the binary that wrote it",
                        path.display(),
                        format.as_deref().unwrap_or("of an unknown kind,"),
                        version.as_deref().unwrap_or("unknown"),
                    )));
                }
            }
        };
        open_all(&write)?;
        write.commit().map_err(storage)?;
        Ok(identity)
    }

    fn begin(&self) -> Result<WriteTransaction, LogError> {
        let mut write = self.database.begin_write().map_err(storage)?;
        write.set_durability(Durability::Immediate).map_err(storage)?;
        write.set_quick_repair(true);
        Ok(write)
    }

    fn sum_bytes(&self) -> Result<u64, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let heads = read.open_table(HEADS).map_err(storage)?;
        let mut sum = 0;
        for head in heads.iter().map_err(storage)? {
            sum += head.map_err(storage)?.1.value().1;
        }
        Ok(sum)
    }

    /// Carries out one entry; the change of the stored bytes is added to `bytes`.
    fn put(&self, write: &WriteTransaction, entry: &Entry, bytes: &mut i64) -> Result<Committed, LogError> {
        match entry {
            Entry::Append { stream, records, key } => return append(write, *stream, records, key.as_ref(), bytes),
            Entry::PutStream { stream, name, bytes } => {
                let row = (name.as_str(), bytes.as_slice());
                write.open_table(STREAMS).map_err(storage)?.insert(stream, row).map_err(storage)?;
                write.open_table(HEADS).map_err(storage)?.insert(stream, (0, 0)).map_err(storage)?;
                write.open_table(NEXT).map_err(storage)?.insert("stream", stream + 1).map_err(storage)?;
            }
            Entry::DeleteStream { stream } => {
                let of = *stream;
                write.open_table(STREAMS).map_err(storage)?.remove(of).map_err(storage)?;
                if let Some(head) = write.open_table(HEADS).map_err(storage)?.remove(of).map_err(storage)? {
                    *bytes -= head.value().1 as i64;
                }
            }
            Entry::PutModel { model, name, bytes } => {
                let row = (name.as_str(), bytes.as_slice());
                write.open_table(MODELS).map_err(storage)?.insert(model, row).map_err(storage)?;
                write.open_table(NEXT).map_err(storage)?.insert("model", model + 1).map_err(storage)?;
            }
            Entry::DeleteModel { model } => {
                write.open_table(MODELS).map_err(storage)?.remove(model).map_err(storage)?;
                let all = (*model, 0)..=(*model, u64::MAX);
                write.open_table(DECISIONS).map_err(storage)?.retain_in(all, |_, _| false).map_err(storage)?;
            }
            Entry::PutSetting { key, bytes } => {
                write.open_table(SETTINGS).map_err(storage)?.insert(key.as_str(), bytes.as_slice()).map_err(storage)?;
            }
            Entry::Decision { model, index, bytes } => {
                let mut decisions = write.open_table(DECISIONS).map_err(storage)?;
                if *index != next_decision(&decisions, *model)? {
                    return Ok(Committed::OutOfOrder);
                }
                decisions.insert((*model, *index), bytes.as_slice()).map_err(storage)?;
            }
        }
        Ok(Committed::Done)
    }

    fn registered(&self, table: TableDefinition<u32, (&str, &[u8])>) -> Result<Registered, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let table = read.open_table(table).map_err(storage)?;
        let mut registered = Registered::new();
        for row in table.iter().map_err(storage)? {
            let (id, row) = row.map_err(storage)?;
            let (name, bytes) = row.value();
            registered.insert(id.value(), (name.to_owned(), bytes.to_vec()));
        }
        Ok(registered)
    }

    fn next(&self, what: &str) -> Result<u32, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let next = read.open_table(NEXT).map_err(storage)?;
        Ok(next.get(what).map_err(storage)?.map_or(1, |next| next.value()))
    }

    /// A stream that was deleted and has left something.
    fn deleted_stream(&self) -> Result<Option<u32>, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let streams = read.open_table(STREAMS).map_err(storage)?;
        let mut left = ids_in(&read.open_table(RECORDS).map_err(storage)?)?;
        left.extend(ids_in(&read.open_table(KEY_OF).map_err(storage)?)?);
        for id in left {
            if streams.get(id).map_err(storage)?.is_none() {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Removes a little of what a deleted stream has left; false where nothing is left.
    fn sweep_some(&self) -> Result<bool, LogError> {
        let Some(stream) = self.deleted_stream()? else { return Ok(false) };
        let write = self.begin()?;
        {
            let of = || (stream, 0)..=(stream, u64::MAX);
            let mut records = write.open_table(RECORDS).map_err(storage)?;
            let some = records.range(of()).map_err(storage)?.take(TRIM_RECORDS);
            let some = some.map(|record| Ok(record.map_err(storage)?.0.value())).collect::<Result<Vec<_>, LogError>>()?;
            for at in some {
                records.remove(at).map_err(storage)?;
            }
            let mut key_of = write.open_table(KEY_OF).map_err(storage)?;
            let mut keys = write.open_table(KEYS).map_err(storage)?;
            let some = key_of.range(of()).map_err(storage)?.take(TRIM_RECORDS);
            let some = some.map(|key| Ok(key.map_err(storage)?.0.value())).collect::<Result<Vec<_>, LogError>>()?;
            for at in some {
                if let Some(key) = key_of.remove(at).map_err(storage)? {
                    keys.remove((stream, key.value())).map_err(storage)?;
                }
            }
        }
        write.commit().map_err(storage)?;
        Ok(true)
    }

    /// Forgets a few records; true where there may be more to forget.
    fn trim_some(&self, stream: u32, before: Sequence, retain_bytes: u64) -> Result<bool, LogError> {
        let write = self.begin()?;
        let mut forgotten_bytes = 0;
        let mut more = false;
        {
            let mut heads = write.open_table(HEADS).map_err(storage)?;
            let Some((last, kept_bytes)) = heads.get(stream).map_err(storage)?.map(|head| head.value()) else { return Ok(false) };
            let mut records = write.open_table(RECORDS).map_err(storage)?;
            let mut doomed = Vec::new();
            for record in records.range((stream, 0)..(stream, before)).map_err(storage)? {
                let (at, record) = record.map_err(storage)?;
                let (first, (rows, bytes)) = (at.value().1, split(record.value())?);
                if first + rows > before || kept_bytes - forgotten_bytes <= retain_bytes {
                    break;
                }
                if doomed.len() == TRIM_RECORDS {
                    more = true;
                    break;
                }
                doomed.push(first);
                forgotten_bytes += occupied(bytes.len());
            }
            let mut key_of = write.open_table(KEY_OF).map_err(storage)?;
            let mut keys = write.open_table(KEYS).map_err(storage)?;
            for &first in &doomed {
                records.remove((stream, first)).map_err(storage)?;
                if let Some(key) = key_of.remove((stream, first)).map_err(storage)? {
                    keys.remove((stream, key.value())).map_err(storage)?;
                }
            }
            if doomed.is_empty() {
                return Ok(false);
            }
            heads.insert(stream, (last, kept_bytes - forgotten_bytes)).map_err(storage)?;
        }
        write.commit().map_err(storage)?;
        self.stored_bytes.fetch_sub(forgotten_bytes, Relaxed);
        Ok(more)
    }
}

/// The index of a model's next decision.
fn next_decision(decisions: &impl ReadableTable<(u32, u64), &'static [u8]>, model: u32) -> Result<u64, LogError> {
    let newest = decisions.range((model, 0)..=(model, u64::MAX)).map_err(storage)?.next_back();
    Ok(newest.transpose().map_err(storage)?.map_or(0, |(at, _)| at.value().1 + 1))
}

/// The ids, in order, that have rows in a table with keys `(id, …)` of fixed width.
fn ids_in<V: redb::Value + 'static>(table: &impl ReadableTable<(u32, u64), V>) -> Result<Vec<u32>, LogError> {
    let mut ids = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let found = table.range((from, 0)..).map_err(storage)?.next().transpose().map_err(storage)?;
        let id = found.map(|(key, _)| key.value().0);
        ids.extend(id);
        next = id.and_then(|id| id.checked_add(1));
    }
    Ok(ids)
}

fn open_all(write: &WriteTransaction) -> Result<(), LogError> {
    write.open_table(STREAMS).map_err(storage)?;
    write.open_table(HEADS).map_err(storage)?;
    write.open_table(RECORDS).map_err(storage)?;
    write.open_table(KEYS).map_err(storage)?;
    write.open_table(KEY_OF).map_err(storage)?;
    write.open_table(MODELS).map_err(storage)?;
    write.open_table(DECISIONS).map_err(storage)?;
    write.open_table(SETTINGS).map_err(storage)?;
    write.open_table(NEXT).map_err(storage)?;
    Ok(())
}

fn append(
    write: &WriteTransaction,
    stream: u32,
    records: &[Encoded],
    key: Option<&Key>,
    bytes: &mut i64,
) -> Result<Committed, LogError> {
    // First of all: the keys of a stream that was deleted may not have been swept yet.
    let mut heads = write.open_table(HEADS).map_err(storage)?;
    let Some((head, kept_bytes)) = heads.get(stream).map_err(storage)?.map(|head| head.value()) else {
        return Ok(Committed::NoStream);
    };
    let mut keys = write.open_table(KEYS).map_err(storage)?;
    if let Some(key) = key
        && let Some(known) = keys.get((stream, key.key.as_str())).map_err(storage)?
    {
        let (first, last, fingerprint) = known.value();
        let same = *fingerprint == key.fingerprint;
        return Ok(if same { Committed::Appended { first, last, replayed: true } } else { Committed::KeyReused });
    }
    let mut table = write.open_table(RECORDS).map_err(storage)?;
    let (mut last, mut added, mut last_record) = (head, 0, head + 1);
    for record in records {
        last_record = last + 1;
        let mut place = table.insert_reserve((stream, last + 1), ROWS_BYTES + record.bytes.len()).map_err(storage)?;
        let place = place.as_mut();
        place[..ROWS_BYTES].copy_from_slice(&record.rows.to_le_bytes());
        place[ROWS_BYTES..].copy_from_slice(&record.bytes);
        last += record.rows;
        added += occupied(record.bytes.len());
    }
    let first = head + 1;
    if let Some(key) = key {
        keys.insert((stream, key.key.as_str()), (first, last, &key.fingerprint)).map_err(storage)?;
        write.open_table(KEY_OF).map_err(storage)?.insert((stream, last_record), key.key.as_str()).map_err(storage)?;
    }
    heads.insert(stream, (last, kept_bytes + added)).map_err(storage)?;
    *bytes += added as i64;
    Ok(Committed::Appended { first, last, replayed: false })
}

/// Bytes of disk that a record takes, about: redb gives a value beyond half a page pages of its own, a power of two of them.
fn occupied(record_bytes: usize) -> u64 {
    let bytes = record_bytes + RECORD_OVERHEAD_BYTES;
    let bytes = if bytes > PAGE_BYTES / 2 { bytes.next_power_of_two().max(PAGE_BYTES) } else { bytes };
    bytes as u64
}

/// A stored record's rows and its bytes.
fn split(value: &[u8]) -> Result<(u64, &[u8]), LogError> {
    let (rows, bytes) =
        value.split_first_chunk::<ROWS_BYTES>().ok_or_else(|| LogError::Format("a record is cut short".into()))?;
    Ok((u64::from_le_bytes(*rows), bytes))
}

impl Log for RedbLog {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn commit(&self, entries: &[Entry]) -> Result<Vec<Committed>, LogError> {
        let write = self.begin()?;
        let mut bytes = 0;
        let committed = entries.iter().map(|entry| self.put(&write, entry, &mut bytes)).collect::<Result<_, _>>()?;
        write.commit().map_err(storage)?;
        // A fall wraps round, as two's complement has it.
        self.stored_bytes.fetch_add(bytes as u64, Relaxed);
        Ok(committed)
    }

    fn read(&self, stream: u32, from: Sequence) -> Result<Option<Stored>, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let records = read.open_table(RECORDS).map_err(storage)?;
        let before = records.range((stream, 0)..=(stream, from)).map_err(storage)?.next_back().transpose().map_err(storage)?;
        if let Some((at, value)) = before {
            let (first, (rows, bytes)) = (at.value().1, split(value.value())?);
            if first + rows > from {
                return Ok(Some(Stored { first, rows, bytes: bytes.to_vec() }));
            }
        }
        let after = records.range((stream, from)..=(stream, u64::MAX)).map_err(storage)?.next().transpose().map_err(storage)?;
        let Some((at, value)) = after else { return Ok(None) };
        let (first, (rows, bytes)) = (at.value().1, split(value.value())?);
        Ok(Some(Stored { first, rows, bytes: bytes.to_vec() }))
    }

    fn bounds(&self, stream: u32) -> Result<(Sequence, Sequence), LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let last = read.open_table(HEADS).map_err(storage)?.get(stream).map_err(storage)?.map_or(0, |head| head.value().0);
        let records = read.open_table(RECORDS).map_err(storage)?;
        let oldest = records.range((stream, 0)..=(stream, u64::MAX)).map_err(storage)?.next().transpose().map_err(storage)?;
        Ok((oldest.map_or(last + 1, |(at, _)| at.value().1), last))
    }

    fn trim(&self, stream: u32, before: Sequence, retain_bytes: u64) -> Result<(), LogError> {
        // Most of the time there is nothing to forget, and no transaction is needed to see it.
        let read = self.database.begin_read().map_err(storage)?;
        let kept_bytes = read.open_table(HEADS).map_err(storage)?.get(stream).map_err(storage)?.map_or(0, |head| head.value().1);
        drop(read);
        while kept_bytes > retain_bytes && self.trim_some(stream, before, retain_bytes)? {}
        Ok(())
    }

    fn streams(&self) -> Result<Registered, LogError> {
        self.registered(STREAMS)
    }

    fn models(&self) -> Result<Registered, LogError> {
        self.registered(MODELS)
    }

    fn next_stream_id(&self) -> Result<u32, LogError> {
        self.next("stream")
    }

    fn next_model_id(&self) -> Result<u32, LogError> {
        self.next("model")
    }

    fn decisions(&self, model: u32) -> Result<Vec<Vec<u8>>, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let table = read.open_table(DECISIONS).map_err(storage)?;
        let mut decisions = Vec::new();
        for decision in table.range((model, 0)..=(model, u64::MAX)).map_err(storage)? {
            let (at, bytes) = decision.map_err(storage)?;
            if at.value().1 != decisions.len() as u64 {
                return Err(LogError::Format(format!("decision {} of model {model} is missing", decisions.len())));
            }
            decisions.push(bytes.value().to_vec());
        }
        Ok(decisions)
    }

    fn setting(&self, key: &str) -> Result<Option<Vec<u8>>, LogError> {
        let read = self.database.begin_read().map_err(storage)?;
        let settings = read.open_table(SETTINGS).map_err(storage)?;
        Ok(settings.get(key).map_err(storage)?.map(|bytes| bytes.value().to_vec()))
    }

    fn sweep(&self) -> Result<(), LogError> {
        while self.sweep_some()? {}
        Ok(())
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Relaxed)
    }
}
