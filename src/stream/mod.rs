//! What arrives: streams, each a schema and a durable log of rows.
//!
//! The way of a post is the order of the files: [`schema`] says what a row is, [`decode`] reads bytes into rows ([`category`] turns
//! words into numbers), [`record`] puts rows into the log's form, [`log`] makes them durable, and `late` remembers which of them wait for
//! their labels. [`Streams`] is the registry that the doors use.

mod arrivals;
pub mod category;
pub mod decode;
mod late;
pub mod log;
mod name;
pub mod record;
pub mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tracing::Span;

use crate::fold::Sequence;
use crate::limits;
use crate::rows::{Rows, Target};

use arrivals::Arrivals;
use late::{IdHash, Late, found, id_hash, unlabelled};
use log::{Committed, Committer, Encoded, Entry, Key, Log, LogError};
use record::{Envelope, Label, LabelValue, Record, RecordError};

pub use name::check_name;
pub use schema::Schema;

/// Why a stream did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// No such stream.
    #[error("there is no stream `{0}`")]
    NotFound(String),
    /// Another stream has the name.
    #[error("the stream `{0}` exists with another schema")]
    Conflict(String),
    /// The name or the schema is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The idempotency key stands for another post.
    #[error("the Idempotency-Key was used for another body")]
    KeyReused,
    /// The post with this key has not been answered yet.
    #[error("a post with this Idempotency-Key is under way")]
    KeyInFlight,
    /// The log has all the disk that it may take.
    #[error("the log holds {stored_bytes} bytes, and log.bytes_max is {bytes_max}")]
    Full {
        /// What it holds.
        stored_bytes: u64,
        /// `log.bytes_max`, beyond which labels have a little room of their own.
        bytes_max: u64,
    },
    /// The log failed.
    #[error(transparent)]
    Storage(#[from] LogError),
    /// A record of the log is not whole.
    #[error("stream `{stream}` from row {from}: {error}")]
    Corrupt {
        /// Which stream.
        stream: String,
        /// Where in it.
        from: Sequence,
        /// What is wrong.
        error: RecordError,
    },
}

impl StreamError {
    /// A record of a kind that this version writes for nobody.
    pub(crate) fn reserved(stream: &Stream, from: Sequence) -> StreamError {
        let error = RecordError::unexpected("it is of a kind that this version does not know");
        StreamError::Corrupt { stream: stream.name.clone(), from, error }
    }
}

/// The acknowledgement of a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The sequence number of its first row.
    pub first: Sequence,
    /// The sequence number of its last row.
    pub last: Sequence,
    /// How many rows it had.
    pub rows: u64,
    /// How many records it became.
    pub records: u64,
    /// Whether it had been taken before, under the same key.
    pub replayed: bool,
}

/// A post that is on its way to the disk.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Receipt, StreamError>>);

impl Pending {
    /// Waits until the post is durable.
    ///
    /// # Errors
    /// It was refused, or the log failed.
    pub async fn receipt(self) -> Result<Receipt, StreamError> {
        self.0.await.unwrap_or(Err(LogError::Closed.into()))
    }
}

/// One stream.
pub struct Stream {
    /// The log's id of the stream, never used again.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What a row of it is.
    pub schema: Schema,
    log: Arc<dyn Log>,
    /// The newest durable row.
    head: AtomicU64,
    /// Whoever sleeps until there is another row.
    sleepers: Mutex<Vec<Sender<()>>>,
    /// Keys of posts that are not durable yet.
    in_flight: Mutex<BTreeSet<String>>,
    /// How fast rows come.
    arrivals: Mutex<Arrivals>,
    /// Rows that wait for their labels.
    late: Mutex<Late>,
}

impl Stream {
    /// The sequence number of the newest durable row; 0 before the first.
    pub fn head(&self) -> Sequence {
        self.head.load(Acquire)
    }

    /// Between the arrivals of two rows lately, since `after` (none: ever); none while too few have come.
    pub fn row_interval(&self, after: Option<Instant>) -> Option<Duration> {
        self.arrivals.lock().row_interval(after)
    }

    /// The oldest row that is kept and the newest; `(n + 1, n)` where none is kept.
    ///
    /// # Errors
    /// The log failed.
    pub fn bounds(&self) -> Result<(Sequence, Sequence), StreamError> {
        Ok(self.log.bounds(self.id)?)
    }

    /// Has `waker` sent to (it must hold one message) whenever there are further rows.
    pub fn subscribe(&self, waker: Sender<()>) {
        self.sleepers.lock().push(waker);
    }

    /// The record with the number `from`: the number of its first row or label, and what it is. Where that one is no longer kept it
    /// is the next record that is; none at the end.
    ///
    /// # Errors
    /// The log failed, or the record is not whole.
    pub fn read(&self, from: Sequence) -> Result<Option<(Sequence, Record)>, StreamError> {
        let Some(stored) = self.log.read(self.id, from)? else { return Ok(None) };
        let corrupt = |error| StreamError::Corrupt { stream: self.name.clone(), from: stored.first, error };
        let Envelope { record, .. } = Envelope::decode(&stored.bytes).map_err(corrupt)?;
        if record.span() != stored.rows {
            return Err(corrupt(RecordError::unexpected("it has not as many rows as the log says")));
        }
        Ok(Some((stored.first, record)))
    }

    /// [`Stream::read`], where it is known that rows are there.
    ///
    /// # Errors
    /// As above, or the record is of another kind.
    pub fn read_rows(&self, from: Sequence) -> Result<Option<(Sequence, Rows)>, StreamError> {
        match self.read(from)? {
            None => Ok(None),
            Some((first, Record::Rows(rows))) => Ok(Some((first, rows))),
            Some((from, _)) => {
                let error = RecordError::unexpected("it is not rows");
                Err(StreamError::Corrupt { stream: self.name.clone(), from, error })
            }
        }
    }

    /// The labels among the numbers `first` to `last` for which no row waited, with their places from `first` on.
    ///
    /// # Errors
    /// The log failed, or a record is not whole.
    pub fn unmatched(&self, first: Sequence, last: Sequence) -> Result<Vec<(u64, String)>, StreamError> {
        let mut unmatched = Vec::new();
        let mut next = first;
        while next <= last
            && let Some((from, record)) = self.read(next)?
        {
            let Record::Labels(labels) = record else { break };
            if from > last {
                break;
            }
            next = from + labels.len() as u64;
            let labels = (from..).zip(labels).filter(|(_, label)| label.at.is_none());
            unmatched.extend(labels.map(|(number, label)| (number - first, label.row)));
        }
        Ok(unmatched)
    }

    /// Lets the log forget the rows before `before`, beyond `retain_bytes` that are kept anyway.
    ///
    /// # Errors
    /// The log failed.
    pub fn trim(&self, before: Sequence, retain_bytes: u64) -> Result<(), StreamError> {
        Ok(self.log.trim(self.id, before, retain_bytes)?)
    }

    fn advance(&self, last: Sequence) {
        self.head.fetch_max(last, Release);
        self.late.lock().advance(last);
        self.arrivals.lock().note(self.head(), Instant::now());
        self.sleepers.lock().retain(|sleeper| !matches!(sleeper.try_send(()), Err(TrySendError::Disconnected(()))));
    }
}

/// All streams.
pub struct Streams {
    log: Arc<dyn Log>,
    committer: Committer,
    bytes_max: u64,
    streams: RwLock<BTreeMap<String, Arc<Stream>>>,
    /// Held while a stream is made or deleted.
    changing: Mutex<()>,
}

impl Streams {
    /// All streams of a log, which may hold `bytes_max` bytes of records.
    ///
    /// # Errors
    /// The log failed, or a schema in it cannot be read.
    pub fn open(log: Arc<dyn Log>, committer: Committer, bytes_max: u64) -> Result<Streams, StreamError> {
        let mut streams = BTreeMap::new();
        for (id, (name, bytes)) in log.streams()? {
            let schema: Schema = serde_json::from_slice(&bytes)
                .map_err(|error| LogError::Format(format!("the schema of stream `{name}` cannot be read: {error}")))?;
            streams.insert(name.clone(), Arc::new(stream(id, name, schema, log.clone())?));
        }
        Ok(Streams { log, committer, bytes_max, streams: RwLock::new(streams), changing: Mutex::default() })
    }

    /// The log under the streams.
    pub fn log(&self) -> &dyn Log {
        self.log.as_ref()
    }

    /// Bytes of all records.
    pub fn stored_bytes(&self) -> u64 {
        self.log.stored_bytes()
    }

    /// Bytes of records that the log may hold.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether the log has all the disk that it may take.
    pub fn is_full(&self) -> bool {
        self.stored_bytes() >= self.bytes_max
    }

    /// Makes a stream; `false` where it was there already, with the same schema.
    ///
    /// # Errors
    /// The name or the schema is not allowed, another stream has the name, or the log failed.
    pub fn create(&self, name: &str, schema: Schema) -> Result<(Arc<Stream>, bool), StreamError> {
        check_name(name).map_err(StreamError::Invalid)?;
        schema.validate().map_err(StreamError::Invalid)?;
        let _changing = self.changing.lock();
        if let Ok(stream) = self.get(name) {
            return if stream.schema == schema { Ok((stream, false)) } else { Err(StreamError::Conflict(name.to_owned())) };
        }
        if self.streams.read().len() >= limits::STREAMS_MAX {
            return Err(StreamError::Invalid(format!("{} streams are the most", limits::STREAMS_MAX)));
        }
        let id = self.log.next_stream_id()?;
        let bytes = serde_json::to_vec(&schema).map_err(|error| StreamError::Invalid(error.to_string()))?;
        self.committer.commit(vec![Entry::PutStream { stream: id, name: name.to_owned(), bytes }])?;
        let stream = Arc::new(stream(id, name.to_owned(), schema, self.log.clone())?);
        self.streams.write().insert(name.to_owned(), stream.clone());
        Ok((stream, true))
    }

    /// The stream of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<Arc<Stream>, StreamError> {
        self.streams.read().get(name).cloned().ok_or_else(|| StreamError::NotFound(name.to_owned()))
    }

    /// All streams, by name.
    pub fn list(&self) -> Vec<Arc<Stream>> {
        self.streams.read().values().cloned().collect()
    }

    /// Deletes a stream with all of its rows. The caller has made sure that nobody learns from it.
    ///
    /// # Errors
    /// There is none, or the log failed.
    pub fn delete(&self, name: &str) -> Result<(), StreamError> {
        let _changing = self.changing.lock();
        let stream = self.streams.write().remove(name).ok_or_else(|| StreamError::NotFound(name.to_owned()))?;
        self.committer.commit(vec![Entry::DeleteStream { stream: stream.id }])?;
        Ok(self.log.sweep()?)
    }

    /// Sends rows that have passed the stream's schema on their way to the disk: cut into records, encoded and compressed here, on
    /// the caller's thread. `key` is the idempotency key with the post's fingerprint.
    ///
    /// # Errors
    /// The log is full, or a post with the key is under way.
    pub fn submit(&self, stream: &Arc<Stream>, rows: Rows, key: Option<(String, [u8; 32])>) -> Result<Pending, StreamError> {
        let most = stream.schema.record_rows();
        let starts = (0..rows.count).step_by(most);
        let records = starts.map(|start| Record::Rows(rows.slice(start..rows.count.min(start + most))));
        let late = if stream.schema.late_labels.is_some() { unlabelled(&rows) } else { Vec::new() };
        let noted = move |of: &Stream, first: Sequence| of.late.lock().arrive(first, late);
        self.append(stream, records.collect(), rows.count as u64, key, noted)
    }

    /// Sends labels that have passed [`Schema::of_labels`] on their way to the disk, each with the number of its row, if that waits.
    ///
    /// # Errors
    /// The stream has no late labels, the log is full, or a post with the key is under way.
    pub fn submit_labels(
        &self,
        stream: &Arc<Stream>,
        labels: Rows,
        key: Option<(String, [u8; 32])>,
    ) -> Result<Pending, StreamError> {
        let (Some(_), Some(ids), Some(target)) = (stream.schema.late_labels, labels.ids, labels.target) else {
            return Err(StreamError::Invalid(format!(
                "rows of stream `{}` come with their labels: its schema has no late_labels",
                stream.name
            )));
        };
        let values: Vec<LabelValue> = match target {
            Target::Classes(classes) => classes.into_iter().map(LabelValue::Class).collect(),
            Target::Values(values) => values.into_iter().map(LabelValue::Value).collect(),
        };
        // Hashed before the lock, which the log's writer waits for.
        let hashes: Vec<IdHash> = ids.iter().map(|id| id_hash(id)).collect();
        let places: Vec<Option<Sequence>> = {
            let (late, mut found) = (stream.late.lock(), BTreeSet::new());
            let (head, window) = (stream.head(), stream.schema.label_window());
            // By the number that each label will have, unless other posts come between; and each row has one label.
            let place = |(id, number): (&IdHash, Sequence)| {
                late.find(id).filter(|row| row + window > number).filter(|row| found.insert(*row))
            };
            hashes.iter().zip(head + 1..).map(place).collect()
        };
        let rows: Vec<(Sequence, IdHash)> = places.iter().zip(hashes).filter_map(|(at, id)| Some(((*at)?, id))).collect();
        let label = |((row, value), at)| Label { row, at, value, source: None, weight: 1.0, supersedes: None };
        let labels: Vec<Label> = ids.into_iter().zip(values).zip(places).map(label).collect();
        let records = labels.chunks(limits::RECORD_ROWS_MAX).map(|labels| Record::Labels(labels.to_vec()));
        let noted = move |of: &Stream, _: Sequence| of.late.lock().label(&rows);
        self.append(stream, records.collect(), labels.len() as u64, key, noted)
    }

    /// Has records made durable; `noted` is told of the first one's number when they are, unless they had been before.
    fn append(
        &self,
        stream: &Arc<Stream>,
        records: Vec<Record>,
        rows: u64,
        key: Option<(String, [u8; 32])>,
        noted: impl FnOnce(&Stream, Sequence) + Send + 'static,
    ) -> Result<Pending, StreamError> {
        // Rows that wait for their labels keep the log full: labels have a little room of their own.
        let is_labels = matches!(records.first(), Some(Record::Labels(_)));
        let own_bytes = if is_labels { self.bytes_max / 8 } else { 0 };
        let stored_bytes = self.stored_bytes();
        if stored_bytes >= self.bytes_max + own_bytes {
            return Err(StreamError::Full { stored_bytes, bytes_max: self.bytes_max });
        }
        let records = records.into_iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        let record_count = records.len() as u64;
        let key = key.map(|(key, fingerprint)| Key { key, fingerprint });
        let word = key.as_ref().map(|key| key.key.clone());
        if let Some(word) = &word
            && !stream.in_flight.lock().insert(word.clone())
        {
            return Err(StreamError::KeyInFlight);
        }
        let (reply, receipt) = oneshot::channel();
        let (of, span) = (stream.clone(), Span::current());
        self.committer.submit(vec![Entry::Append { stream: stream.id, records, key }], move |committed| {
            let told = match committed.map(|mut committed| committed.pop()) {
                Ok(Some(Committed::Appended { first, last, replayed })) => {
                    if !replayed {
                        noted(&of, first);
                    }
                    let stream = &of.name;
                    span.in_scope(|| {
                        tracing::debug!(
                            stream,
                            first_sequence = first,
                            sequence = last,
                            records = record_count,
                            replayed,
                            "a post is durable"
                        );
                    });
                    of.advance(last);
                    Ok(Receipt { first, last, rows, records: record_count, replayed })
                }
                Ok(Some(Committed::KeyReused)) => Err(StreamError::KeyReused),
                Ok(_) => Err(StreamError::NotFound(of.name.clone())),
                Err(error) => Err(error.into()),
            };
            if let Some(word) = word {
                of.in_flight.lock().remove(&word);
            }
            // The client may have gone; its rows are there all the same.
            drop(reply.send(told));
        });
        Ok(Pending(receipt))
    }
}

fn stream(id: u32, name: String, schema: Schema, log: Arc<dyn Log>) -> Result<Stream, StreamError> {
    let head = log.bounds(id)?.1;
    let window = schema.label_window();
    let stream = Stream {
        id,
        name,
        schema,
        log,
        head: AtomicU64::new(head),
        sleepers: Mutex::default(),
        in_flight: Mutex::default(),
        arrivals: Mutex::default(),
        late: Mutex::new(Late::new(window)),
    };
    *stream.late.lock() = still_late(&stream, head, window)?;
    Ok(stream)
}

/// The rows at the end of the log that wait for their labels.
fn still_late(stream: &Stream, head: Sequence, window: u64) -> Result<Late, StreamError> {
    let mut late = Late::new(window);
    let mut next = if window > 0 { (head + 1).saturating_sub(window).max(1) } else { head + 1 };
    while next <= head {
        let (first, record) = match stream.read(next) {
            Ok(Some(read)) => read,
            Ok(None) => break,
            Err(error @ StreamError::Corrupt { .. }) => {
                tracing::error!(stream = stream.name, %error, "labels of rows from there on will not find them");
                break;
            }
            Err(error) => return Err(error),
        };
        next = first + record.span();
        match record {
            Record::Rows(rows) => late.arrive(first, unlabelled(&rows)),
            Record::Labels(labels) => late.label(&found(&labels)),
            Record::Revocation(_) => {}
        }
    }
    late.advance(head);
    Ok(late)
}

fn encode(record: Record) -> Result<Encoded, StreamError> {
    let rows = record.span();
    let bytes = Envelope { schema_version: 1, record }.encode();
    let bytes = bytes.map_err(|error| StreamError::Invalid(error.to_string()))?;
    Ok(Encoded { bytes, rows })
}
