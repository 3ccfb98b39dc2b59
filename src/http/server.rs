//! The listener: connections up to a number, heads within a time, and an end that lets requests under way finish.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use prometheus::IntGauge;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::metrics::Counted;
use crate::shutdown::Shutdown;

/// How long to wait after a connection could not be accepted, as when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the doors still answer, that nothing more is taken on, after the end has begun.
const LAME_DUCK: Duration = Duration::from_millis(250);

/// In each request: ends its connection at once, for an answer that has no end and a client that has stopped reading it.
#[derive(Clone, Debug, Default)]
pub struct HangUp(Arc<Notify>);

impl HangUp {
    /// Ends the connection, whatever of the answer is under way.
    pub fn now(&self) {
        self.0.notify_one();
    }
}

/// How a listener treats its clients.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Connections at once; further ones wait in the system's queue.
    pub connections_max: usize,
    /// For a request's head to arrive, and for an idle connection to send its next one.
    pub header: Duration,
    /// For requests under way at the end.
    pub shutdown: Duration,
}

/// Serves until `shutdown` drains, then lets requests under way finish. Connections are counted in `open`.
pub async fn serve(listener: TcpListener, router: Router, patience: Patience, shutdown: Shutdown, open: IntGauge) {
    let slots = Arc::new(Semaphore::new(patience.connections_max));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience.header);
    let over = async {
        shutdown.draining().await;
        tokio::time::sleep(LAME_DUCK).await;
    };
    tokio::pin!(over);
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut over => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "answers of this connection may be delayed");
        }
        let router = router.clone();
        let hang_up = HangUp::default();
        let hung_up = hang_up.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let router = router.clone();
            request.extensions_mut().insert(hang_up.clone());
            async move { Ok::<_, Infallible>(answer(router, request.map(Body::new)).await) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
        let counted = Counted::of(&open);
        connections.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                },
                () = hung_up.0.notified() => tracing::debug!("a connection was ended, because its client has stopped reading"),
            }
            drop((slot, counted));
        });
    }
    drop(listener);
    if tokio::time::timeout(patience.shutdown, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the time for the shutdown ended");
    }
    connections.shutdown().await;
}

async fn answer(router: Router, request: Request<Body>) -> axum::response::Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
