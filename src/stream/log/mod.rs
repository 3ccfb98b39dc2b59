//! The log: every stream's records, every model's decisions, the registry of both, and settings, behind one trait.
//!
//! Invariants, of any implementation:
//! 1. A commit is one transaction: all of its entries are durable when it returns, or none is there at all.
//! 2. A stream's sequence numbers begin at 1 and have no gap; a record spans the numbers of its rows; all records of one post are
//!    consecutive.
//! 3. An idempotency key comes with the records that it stands for, and goes with the last of them.
//! 4. Ids of streams and models are never used again.
//! 5. What was read was written: a record carries its own checksum ([`super::record`]).
//! 6. A model's decisions are numbered from 0 without a gap, and none is ever written over.
//! 7. No transaction grows with the log: what can be long (forgetting, sweeping) is done in many.
//!
//! [`RedbLog`] keeps all of it in one file on one machine. [`commit`] puts what arrives together into one commit.

pub mod commit;
mod redb_log;

use std::collections::BTreeMap;

use crate::fold::Sequence;

pub use commit::{Committer, Hooks};
pub use redb_log::{FILE, Options, RedbLog};

/// One encoded record.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// As [`super::record::Envelope::encode`] gave it.
    pub bytes: Vec<u8>,
    /// How many sequence numbers it spans.
    pub rows: u64,
}

/// An idempotency key with what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The client's word.
    pub key: String,
    /// blake3 of the post.
    pub fingerprint: [u8; 32],
}

/// One thing to be made durable.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The records of one post.
    Append {
        /// The stream's id.
        stream: u32,
        /// In order.
        records: Vec<Encoded>,
        /// The post's key, where it has one.
        key: Option<Key>,
    },
    /// A new stream.
    PutStream {
        /// From [`Log::next_stream_id`].
        stream: u32,
        /// Its name.
        name: String,
        /// Its schema.
        bytes: Vec<u8>,
    },
    /// No such stream any more. Its records and keys are beyond reach; [`Log::sweep`] removes them.
    DeleteStream {
        /// Which.
        stream: u32,
    },
    /// A new model.
    PutModel {
        /// From [`Log::next_model_id`].
        model: u32,
        /// Its name.
        name: String,
        /// What it is.
        bytes: Vec<u8>,
    },
    /// A model with all of its decisions.
    DeleteModel {
        /// Which.
        model: u32,
    },
    /// A setting of the service, in the place of the one before it.
    PutSetting {
        /// Its name.
        key: String,
        /// What it is.
        bytes: Vec<u8>,
    },
    /// The next decision of a model.
    Decision {
        /// Whose.
        model: u32,
        /// How many came before it.
        index: u64,
        /// What was decided.
        bytes: Vec<u8>,
    },
}

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is there.
    Done,
    /// The post is there, with these sequence numbers.
    Appended {
        /// Of its first row.
        first: Sequence,
        /// Of its last row.
        last: Sequence,
        /// Whether it was there before, under the same key.
        replayed: bool,
    },
    /// The key stands for another post; nothing was appended.
    KeyReused,
    /// There is no such stream; nothing was appended.
    NoStream,
    /// The decision is not its model's next; it was not taken.
    OutOfOrder,
}

impl Entry {
    /// Bytes that it brings, about.
    fn bytes(&self) -> usize {
        match self {
            Entry::Append { records, .. } => records.iter().map(|record| record.bytes.len()).sum(),
            Entry::PutStream { bytes, .. } | Entry::PutModel { bytes, .. } => bytes.len(),
            Entry::PutSetting { bytes, .. } | Entry::Decision { bytes, .. } => bytes.len(),
            Entry::DeleteStream { .. } | Entry::DeleteModel { .. } => 0,
        }
    }
}

/// Why the log did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The storage failed. What was asked for may or may not be there after the next start.
    #[error("the log's storage failed: {0}")]
    Storage(String),
    /// Another process has the file.
    #[error("{0} is held by another process: another service runs on this data folder")]
    Held(String),
    /// The file is damaged, not this log's, or of another version.
    #[error("{0}")]
    Format(String),
    /// A decision was not its model's next: two write for one model, or one writes for a model that was deleted.
    #[error("the decision is not its model's next")]
    OutOfOrder,
    /// The log has ended.
    #[error("the log is closed")]
    Closed,
}

/// One stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The sequence number of its first row.
    pub first: Sequence,
    /// How many sequence numbers it spans.
    pub rows: u64,
    /// As it was appended.
    pub bytes: Vec<u8>,
}

/// A stream or a model as the log knows it: its name and what was stored with it.
pub type Registered = BTreeMap<u32, (String, Vec<u8>)>;

/// A durable log. Reading may go on beside one commit at a time.
pub trait Log: Send + Sync {
    /// What this log's data folder is called, for ever.
    fn identity(&self) -> &str;
    /// Makes all entries durable in one transaction, in order.
    fn commit(&self, entries: &[Entry]) -> Result<Vec<Committed>, LogError>;
    /// The record with the row `from`, or the first one after it; none at the end.
    fn read(&self, stream: u32, from: Sequence) -> Result<Option<Stored>, LogError>;
    /// The oldest row that is kept and the newest; `(n + 1, n)` where none is kept.
    fn bounds(&self, stream: u32) -> Result<(Sequence, Sequence), LogError>;
    /// Forgets whole records, and their keys, that end before the row `before`, oldest first, while the stream's records take more
    /// than `retain_bytes` of disk.
    fn trim(&self, stream: u32, before: Sequence, retain_bytes: u64) -> Result<(), LogError>;
    /// All streams.
    fn streams(&self) -> Result<Registered, LogError>;
    /// All models.
    fn models(&self) -> Result<Registered, LogError>;
    /// An id for a new stream.
    fn next_stream_id(&self) -> Result<u32, LogError>;
    /// An id for a new model.
    fn next_model_id(&self) -> Result<u32, LogError>;
    /// A model's decisions, in order.
    fn decisions(&self, model: u32) -> Result<Vec<Vec<u8>>, LogError>;
    /// The setting of this name, where it was ever set.
    fn setting(&self, key: &str) -> Result<Option<Vec<u8>>, LogError>;
    /// Removes what deleted streams have left. A crash between the deletion and this is mended at the next opening.
    fn sweep(&self) -> Result<(), LogError>;
    /// Bytes of disk that all records take.
    fn stored_bytes(&self) -> u64;
}
