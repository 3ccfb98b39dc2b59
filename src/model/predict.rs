//! Queries: a few threads take them in the order they came, those that wait together for the same model in one batch.
//!
//! Nothing is held back to fill a batch: a query that finds a free thread runs at once, and batches form by themselves while
//! the threads are busy. Only snapshots are read, so no query ever waits for a trainer.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;
use tracing::{Span, debug_span};

use super::live::{Live, Published};
use crate::fold::{FoldError, Predictions, Version};
use crate::metrics::Metrics;
use crate::rows::Rows;

/// One client's rows.
struct Query {
    model: Arc<Live>,
    rows: Rows,
    /// The layers whose hidden states are wanted.
    watched: Arc<[usize]>,
    /// Whether a client asks, and not the model's own driver.
    counts: bool,
    /// What asks.
    span: Span,
    reply: oneshot::Sender<Result<Answer, PredictError>>,
}

/// What a snapshot said, and which one.
pub struct Answer {
    /// The version that answered.
    pub version: Version,
    /// What the snapshot had to say beside, for doors that know its kind ([`crate::fold::Snapshot::told`]).
    pub told: Option<Arc<dyn Any + Send + Sync>>,
    /// In the order of the query's rows.
    pub predictions: Predictions,
    /// The hidden states that were wanted, row by row.
    pub states: Vec<f32>,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// Too many queries wait already.
    #[error("{0} queries wait already")]
    Busy(usize),
    /// The process is ending.
    #[error("the service is stopping")]
    Stopping,
    /// There is nothing to answer from.
    #[error("{0}")]
    Unavailable(String),
    /// The snapshot could not answer.
    #[error("{0}")]
    Refused(String),
}

/// An answer that is being found.
pub(super) type Pending = oneshot::Receiver<Result<Answer, PredictError>>;

/// The door to the predicting threads.
#[derive(Clone, Debug)]
pub struct Predictor {
    queue: Sender<Query>,
    queue_max: usize,
}

impl Predictor {
    /// Starts `threads` threads that put at most `batch_rows_max` rows into one forward; at most `queue_max` queries wait.
    pub fn new(threads: usize, batch_rows_max: usize, queue_max: usize, metrics: Arc<Metrics>) -> std::io::Result<Predictor> {
        let (queue, waiting) = bounded(queue_max);
        for number in 0..threads {
            let waiting = waiting.clone();
            let metrics = metrics.clone();
            let name = format!("mustela-predict-{number}");
            thread::Builder::new().name(name).spawn(move || serve(&waiting, batch_rows_max, &metrics))?;
        }
        Ok(Predictor { queue, queue_max })
    }

    /// Asks `model` about `rows`, for one of its clients or (not `counts`) for itself; the answer comes later.
    pub(super) fn ask(&self, model: Arc<Live>, rows: Rows, counts: bool) -> Result<Pending, PredictError> {
        self.queue_up(model, rows, Arc::default(), counts)
    }

    fn queue_up(&self, model: Arc<Live>, rows: Rows, watched: Arc<[usize]>, counts: bool) -> Result<Pending, PredictError> {
        let (reply, answer) = oneshot::channel();
        let span = Span::current();
        self.queue.try_send(Query { model, rows, watched, counts, span, reply }).map_err(|error| match error {
            TrySendError::Full(_) => PredictError::Busy(self.queue_max),
            TrySendError::Disconnected(_) => PredictError::Stopping,
        })?;
        Ok(answer)
    }

    /// Queries that wait for a thread, and how many may.
    pub fn queued(&self) -> (usize, usize) {
        (self.queue.len(), self.queue_max)
    }

    /// Asks `model` about `rows` for a client, with the hidden states of the `watched` layers.
    pub async fn predict(&self, model: Arc<Live>, rows: Rows, watched: Arc<[usize]>) -> Result<Answer, PredictError> {
        let answer = self.queue_up(model, rows, watched, true)?;
        let lost = || PredictError::Unavailable("the query was given up; the service's messages say why".into());
        let answer = answer.await.unwrap_or_else(|_| Err(lost()))?;
        Span::current().record("sequence", answer.version.sequence);
        Ok(answer)
    }
}

fn serve(waiting: &Receiver<Query>, batch_rows_max: usize, metrics: &Metrics) {
    while let Ok(first) = waiting.recv() {
        let mut rows = first.rows.count;
        let mut batch = vec![first];
        while rows < batch_rows_max {
            let Ok(query) = waiting.try_recv() else { break };
            rows += query.rows.count;
            batch.push(query);
        }
        while let Some(query) = batch.first() {
            let (model, watched) = (query.model.clone(), query.watched.clone());
            let (mine, others) =
                batch.into_iter().partition(|query| Arc::ptr_eq(&query.model, &model) && query.watched == watched);
            batch = others;
            // A panic is the fault of these queries' model; the next ones find the thread as it was.
            if catch_unwind(AssertUnwindSafe(|| answer(&model, mine, &watched, (batch_rows_max, metrics)))).is_err() {
                tracing::error!(model = model.name, "predicting panicked");
            }
        }
    }
}

/// Answers queries for one model from one snapshot.
fn answer(model: &Live, queries: Vec<Query>, watched: &[usize], (batch_rows_max, metrics): (usize, &Metrics)) {
    let published = model.published();
    // Clients that went away need no answer.
    let queries: Vec<Query> = queries.into_iter().filter(|query| !query.reply.is_closed()).collect();
    let all: Vec<&Rows> = queries.iter().map(|query| &query.rows).collect();
    let Some(rows) = Rows::concatenate(&all) else { return };
    metrics.predict_batch_rows.observe(rows.count as f64);
    let sequence = published.version.sequence;
    let span = debug_span!("predict", model = model.name, sequence, rows = rows.count, queries = queries.len()).entered();
    for query in &queries {
        span.follows_from(&query.span);
    }
    match predict_in_chunks(&published, &rows, watched, batch_rows_max) {
        Ok((predictions, states)) => {
            let asked: usize = queries.iter().filter(|query| query.counts).map(|query| query.rows.count).sum();
            let (told, mut start) = (published.snapshot.told(), 0);
            let width = states.len() / rows.count.max(1);
            for query in queries {
                let end = start + query.rows.count;
                let (predictions, states) = (predictions.slice(start..end), states[start * width..end * width].to_vec());
                drop(query.reply.send(Ok(Answer { version: published.version, told: told.clone(), predictions, states })));
                start = end;
            }
            model.predict_rows.inc_by(asked as u64);
        }
        Err(error) => {
            let text = error.to_string();
            let unavailable = matches!(error, FoldError::Unavailable(_));
            for query in queries {
                let text = text.clone();
                let error = if unavailable { PredictError::Unavailable(text) } else { PredictError::Refused(text) };
                drop(query.reply.send(Err(error)));
            }
        }
    }
}

/// One forward holds at most `batch_rows_max` rows, whatever a client posts.
fn predict_in_chunks(
    published: &Published,
    rows: &Rows,
    watched: &[usize],
    batch_rows_max: usize,
) -> Result<(Predictions, Vec<f32>), FoldError> {
    let mut starts = (0..rows.count).step_by(batch_rows_max.max(1));
    let chunk = |start: usize| rows.slice(start..rows.count.min(start + batch_rows_max.max(1)));
    let (mut predictions, mut states) = published.snapshot.predict_watched(&chunk(starts.next().unwrap_or(0)), watched)?;
    for start in starts {
        let (further, more) = published.snapshot.predict_watched(&chunk(start), watched)?;
        predictions.append(further);
        states.extend(more);
    }
    Ok((predictions, states))
}
