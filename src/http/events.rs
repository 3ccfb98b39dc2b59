//! `GET /v1/events`: what models and streams are, once a second, and what happens to models, as it happens, as server-sent events.
//!
//! A `figures` event has the views that `GET /v1/models/{m}` and `GET /v1/streams/{s}` give. They are written once a second for
//! everybody who watches, and not at all while nobody does. Whoever reads slowly misses some of them, and whoever stops reading is
//! let go; nobody else waits. An `event` has an id, by which a client that was cut off goes on (`Last-Event-ID`).

use std::convert::Infallible;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::problem::Problem;
use super::server::HangUp;
use super::{App, models, streams};
use crate::limits::{LOOK_BYTES_MAX, WATCHED_MAX, WATCHERS_MAX};
use crate::model::events::unix_ms;
use crate::model::live::Live;
use crate::stream::Stream;

/// Between two looks at everything.
const TICK: Duration = Duration::from_secs(1);
/// Something is sent at least so often, so that both ends see whether the other one is there.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a client may take to read what was sent before.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same when the process drains.
const FAREWELL: Duration = Duration::from_millis(500);
/// Begins every answer: a client that was cut off asks again after so many milliseconds.
const GREETING: Bytes = Bytes::from_static(b"retry: 1000\n\n");
/// A comment.
const BEAT: Bytes = Bytes::from_static(b":\n\n");

/// What everybody who watches is shown.
#[derive(Debug)]
pub struct Feed {
    seats: Arc<Semaphore>,
    looks: watch::Sender<Option<Look>>,
    /// Whether somebody takes looks.
    looking: Mutex<bool>,
}

impl Feed {
    /// For doors that take so many connections; half of them are left for others.
    pub fn new(connections_max: usize) -> Feed {
        let seats = Arc::new(Semaphore::new((connections_max / 2).clamp(1, WATCHERS_MAX)));
        Feed { seats, looks: watch::Sender::new(None), looking: Mutex::new(false) }
    }
}

/// What everything was at one moment, for all who watch everything: a frame that only has to be sent. It has no more than
/// [`WATCHED_MAX`] models and streams, and of these as many as come within [`LOOK_BYTES_MAX`].
type Look = Bytes;

/// The views of some models and streams as a frame.
fn figures(app: &App, models: &[Arc<Live>], streams: &[Arc<Stream>]) -> Result<Look, Problem> {
    let unix_ms = unix_ms();
    let mut left = LOOK_BYTES_MAX;
    // What does not fit is left out; whoever wants to see it watches it alone.
    let mut fits = |view: &String| {
        left.checked_sub(view.len()).is_some_and(|rest| {
            left = rest;
            true
        })
    };
    let models = models.iter().map(|live| json(&models::view(live)));
    let models: Vec<String> = models.collect::<Result<Vec<_>, _>>()?.into_iter().filter(&mut fits).collect();
    // One that was deleted a moment ago has no bounds any more.
    let streams = streams.iter().filter_map(|stream| streams::view(app, stream).ok()).map(|view| json(&view));
    let streams: Vec<String> = streams.collect::<Result<Vec<_>, _>>()?.into_iter().filter(&mut fits).collect();
    let (models, streams) = (models.join(","), streams.join(","));
    Ok(frame("figures", None, &format!(r#"{{"unix_ms":{unix_ms},"models":[{models}],"streams":[{streams}]}}"#)))
}

/// One server-sent event. JSON has no line ends of its own, so its data are one line.
fn frame(event: &str, id: Option<u64>, json: &str) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    Bytes::from(format!("{id}event: {event}\ndata: {json}\n\n"))
}

fn json(view: &impl Serialize) -> Result<String, Problem> {
    serde_json::to_string(view).map_err(|_| Problem::internal())
}

/// Looks at everything; it may wait for the log.
fn look(app: &App) -> Result<Look, Problem> {
    let (mut models, mut streams) = (app.models.list(), app.streams.list());
    models.truncate(WATCHED_MAX);
    streams.truncate(WATCHED_MAX);
    figures(app, &models, &streams)
}

/// Looks at one model and its stream; at nothing where it was deleted.
fn look_at(app: &App, model: &str) -> Result<Look, Problem> {
    match app.models.get(model) {
        Ok(live) => figures(app, from_ref(&live), from_ref(&live.stream)),
        Err(_) => figures(app, &[], &[]),
    }
}

impl Feed {
    /// What is seen from now on. Whoever comes first has somebody begin to look.
    fn watch(app: &Arc<App>) -> watch::Receiver<Option<Look>> {
        let mut looking = app.feed.looking.lock();
        let mut seen = app.feed.looks.subscribe();
        // What others have seen is new to this one.
        seen.mark_changed();
        if !std::mem::replace(&mut *looking, true) {
            tokio::spawn(Feed::look_on(app.clone()));
        }
        seen
    }

    /// Looks once a second while somebody watches.
    async fn look_on(app: Arc<App>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = app.shutdown.draining() => return,
            }
            {
                let mut looking = app.feed.looking.lock();
                if app.feed.looks.receiver_count() == 0 {
                    *looking = false;
                    app.feed.looks.send_replace(None);
                    return;
                }
            }
            // Where one fails there is none this time.
            if let Ok(look) = app.blocking(look).await {
                app.feed.looks.send_replace(Some(look));
            }
        }
    }
}

/// What somebody wants to watch.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    /// One model and its stream; everything where it is left out.
    model: Option<String>,
}

pub(super) async fn watch(
    State(app): State<Arc<App>>,
    Query(wish): Query<Wish>,
    Extension(hang_up): Extension<HangUp>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if let Some(model) = &wish.model {
        app.models.get(model)?;
    }
    let after = last_event_id(&headers)?;
    let seat = app.feed.seats.clone().try_acquire_owned().map_err(|_| {
        let detail = "as many clients watch already as may at once";
        Problem::too_many_requests("too_many_watchers", detail, 5)
    })?;
    let (sender, receiver) = mpsc::channel(1);
    let seen = Feed::watch(&app);
    tokio::spawn(Watcher { app, model: wish.model, after, seen, sender, hang_up, _seat: seat }.serve());
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>));
    Ok(([(CONTENT_TYPE, "text/event-stream")], body).into_response())
}

/// The newest event that a client has seen before; 0 where it begins.
fn last_event_id(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get(HeaderName::from_static("last-event-id")) else { return Ok(0) };
    value.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
        Problem::bad_request("invalid_last_event_id", "Last-Event-ID has to be the id of an event that was sent before")
    })
}

/// One client.
struct Watcher {
    app: Arc<App>,
    model: Option<String>,
    /// The newest event that it has.
    after: u64,
    seen: watch::Receiver<Option<Look>>,
    sender: mpsc::Sender<Bytes>,
    hang_up: HangUp,
    _seat: OwnedSemaphorePermit,
}

/// Why a client is shown nothing more.
enum Gone {
    /// It has gone, or wants the head alone (`HEAD`).
    Left,
    /// It does not read.
    Stuck,
}

impl Watcher {
    /// Shows it everything until it goes or the process drains.
    async fn serve(mut self) {
        let shutdown = self.app.shutdown.clone();
        let stuck = tokio::select! {
            gone = self.show() => matches!(gone, Gone::Stuck),
            () = shutdown.draining() => tokio::time::timeout(FAREWELL, self.sender.reserve()).await.is_err(),
        };
        // Who has left needs none, and the head of an answer without a body may still be on its way.
        if stuck {
            self.hang_up.now();
        }
    }

    async fn show(&mut self) -> Gone {
        let mut news = self.app.models.events().subscribe();
        let mut next = Some(GREETING);
        loop {
            if let Some(frame) = next.take()
                && let Err(gone) = self.send(frame).await
            {
                return gone;
            }
            if let Err(gone) = self.send_events().await {
                return gone;
            }
            let sender = self.sender.clone();
            next = tokio::select! {
                () = sender.closed() => return Gone::Left,
                _ = news.changed() => None,
                _ = self.seen.changed() => self.look().await,
                () = tokio::time::sleep(HEARTBEAT) => Some(BEAT),
            };
        }
    }

    /// What it is shown now.
    async fn look(&mut self) -> Option<Look> {
        let look = self.seen.borrow_and_update().clone();
        match self.model.clone() {
            None => look,
            Some(model) => self.app.blocking(move |app| look_at(app, &model)).await.ok(),
        }
    }

    /// The events that it does not have yet.
    async fn send_events(&mut self) -> Result<(), Gone> {
        for event in self.app.models.events().after(self.after) {
            self.after = event.id;
            if self.model.as_ref().is_none_or(|model| *model == event.model) {
                let Ok(json) = json(&*event) else { continue };
                self.send(frame("event", Some(event.id), &json)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, frame: Bytes) -> Result<(), Gone> {
        match tokio::time::timeout(PATIENCE, self.sender.send(frame)).await {
            Ok(sent) => sent.map_err(|_| Gone::Left),
            Err(_) => Err(Gone::Stuck),
        }
    }
}
