//! Group commit: one thread makes durable, in one transaction, all that has arrived while it made the last lot durable.
//!
//! Nobody waits for a timer: alone, an entry is committed at once; under load, lots form by themselves. If the storage fails, what
//! was asked for is told so, and the process ends: a sync that failed once may have dropped what it was given, and trying again
//! can then succeed without it. A storage that panics (redb may, over a file that was altered behind its back) has failed too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::{Committed, Entry, Log, LogError};

/// Requests that may wait for the writer.
const QUEUE_MAX: usize = 1024;
/// Bytes after which a transaction takes no further request: redb holds all of it in memory, and everybody in it waits for all.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// What is told to whoever asked.
type Reply = Box<dyn FnOnce(Result<Vec<Committed>, LogError>) + Send>;

struct Request {
    entries: Vec<Entry>,
    reply: Reply,
}

/// Who wants to know of each commit.
pub struct Hooks {
    /// Called after each commit with its seconds and the number of requests in it.
    pub committed: Box<dyn Fn(f64, usize) + Send>,
    /// Called when the storage has failed, after everybody who asked was told.
    pub fatal: Box<dyn Fn(&LogError) + Send>,
}

/// The way into a log. The writer ends when the last of these is dropped.
#[derive(Clone)]
pub struct Committer {
    requests: Sender<Request>,
}

impl Committer {
    /// Starts the writer, which puts at most `group_max` requests into one transaction.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(log: Arc<dyn Log>, group_max: usize, hooks: Hooks) -> std::io::Result<Committer> {
        let (requests, queue) = bounded(QUEUE_MAX);
        let writer = move || write(log.as_ref(), &queue, group_max, &hooks);
        thread::Builder::new().name("mustela-commit".into()).spawn(writer)?;
        Ok(Committer { requests })
    }

    /// Asks for entries to be made durable; `reply` is called on the writer's thread and must not wait for anything. Waits while
    /// the queue is full.
    pub fn submit(&self, entries: Vec<Entry>, reply: impl FnOnce(Result<Vec<Committed>, LogError>) + Send + 'static) {
        let request = Request { entries, reply: Box::new(reply) };
        if let Err(refused) = self.requests.send(request) {
            (refused.0.reply)(Err(LogError::Closed));
        }
    }

    /// Makes entries durable and waits for it.
    ///
    /// # Errors
    /// The storage failed, or a decision was not its model's next; other entries are durable nevertheless.
    pub fn commit(&self, entries: Vec<Entry>) -> Result<Vec<Committed>, LogError> {
        let (done, end) = bounded(1);
        self.submit(entries, move |committed| drop(done.send(committed)));
        let committed = end.recv().unwrap_or(Err(LogError::Closed))?;
        match committed.contains(&Committed::OutOfOrder) {
            true => Err(LogError::OutOfOrder),
            false => Ok(committed),
        }
    }
}

fn write(log: &dyn Log, queue: &Receiver<Request>, group_max: usize, hooks: &Hooks) {
    while let Ok(first) = queue.recv() {
        let (mut entries, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(request) = next {
            bytes += request.entries.iter().map(Entry::bytes).sum::<usize>();
            replies.push((request.entries.len(), request.reply));
            entries.extend(request.entries);
            let has_room = replies.len() < group_max && bytes < GROUP_BYTES_MAX;
            next = has_room.then(|| queue.try_recv().ok()).flatten();
        }
        let began = Instant::now();
        let span = tracing::debug_span!("commit", posts = replies.len(), entries = entries.len(), bytes);
        let committed = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| log.commit(&entries))));
        match committed.unwrap_or_else(|_| Err(LogError::Storage("it panicked; see the log of the process".into()))) {
            Ok(committed) => {
                (hooks.committed)(began.elapsed().as_secs_f64(), replies.len());
                let mut committed = committed.into_iter();
                for (count, reply) in replies {
                    reply(Ok(committed.by_ref().take(count).collect()));
                }
            }
            Err(error) => {
                for (_, reply) in replies {
                    reply(Err(error.clone()));
                }
                (hooks.fatal)(&error);
                // A request that came meanwhile lies in the channel for as long as anybody may send: it must be answered.
                queue.iter().for_each(|late| (late.reply)(Err(LogError::Closed)));
            }
        }
    }
}
