//! Group commit: one thread makes durable, in one transaction, all that has arrived while it made the last lot durable.
//!
//! Nobody waits for a timer: alone, an entry is committed at once; under load, lots form by themselves. If the storage fails, what
//! was asked for is told so, and the process ends: a sync that failed once may have dropped what it was given, and trying again
//! can then succeed without it.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::{Committed, Entry, Log, LogError};

/// Requests that may wait for the writer.
const QUEUE_MAX: usize = 1024;

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
    /// The storage failed.
    pub fn commit(&self, entries: Vec<Entry>) -> Result<Vec<Committed>, LogError> {
        let (done, end) = bounded(1);
        self.submit(entries, move |committed| drop(done.send(committed)));
        end.recv().unwrap_or(Err(LogError::Closed))
    }
}

fn write(log: &dyn Log, queue: &Receiver<Request>, group_max: usize, hooks: &Hooks) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(group_max.saturating_sub(1)));
        let (mut entries, mut replies) = (Vec::new(), Vec::with_capacity(group.len()));
        for request in group {
            replies.push((request.entries.len(), request.reply));
            entries.extend(request.entries);
        }
        let began = Instant::now();
        match log.commit(&entries) {
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
                return;
            }
        }
    }
}
