//! The way to a service that comes and goes: one request, or one that is made until it is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cli::Failure;

/// How long one answer may take: more is taken for a lost one.
const ANSWER: Duration = Duration::from_secs(20);
/// How long one request is made again and again.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest wait before a request is made again.
const AGAIN: Duration = Duration::from_millis(20);

/// A request that can be made any number of times.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Request {
    pub(super) fn get(path: String) -> Request {
        Request { method: Method::GET, path, headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn json(method: Method, path: String, body: &Value) -> Request {
        let headers = vec![("content-type", "application/json".to_owned())];
        Request { method, path, headers, body: body.to_string().into() }
    }
}

/// What a service said.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Whether it says that the post was taken before.
    pub(super) is_replayed: bool,
    pub(super) body: Value,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the same request makes sense again: the service is full, ending, or busy with this very request.
    fn asks_again(&self) -> bool {
        matches!(self.status, 429 | 503) || (self.status == 409 && self.body["code"] == "idempotency_key_in_flight")
    }
}

/// Where the service is now; none while it is away.
#[derive(Clone)]
pub(super) struct Door {
    client: reqwest::Client,
    base: watch::Receiver<Option<String>>,
    /// Requests that have not been answered.
    pub(super) under_way: Arc<AtomicU64>,
}

impl Door {
    pub(super) fn new(base: watch::Receiver<Option<String>>) -> Result<Door, Failure> {
        let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).timeout(ANSWER).build()?;
        Ok(Door { client, base, under_way: Arc::default() })
    }

    /// Makes a request once; none where the answer is lost, or nobody is there.
    pub(super) async fn ask(&self, request: &Request) -> Option<Answer> {
        let base = self.base.borrow().clone()?;
        self.under_way.fetch_add(1, Relaxed);
        let answer = self.answer(&base, request).await;
        self.under_way.fetch_sub(1, Relaxed);
        answer.ok()
    }

    async fn answer(&self, base: &str, request: &Request) -> reqwest::Result<Answer> {
        let mut asked = self.client.request(request.method.clone(), format!("{base}{}", request.path)).body(request.body.clone());
        for (name, value) in &request.headers {
            asked = asked.header(*name, value);
        }
        let response = asked.send().await?;
        let (status, is_replayed) = (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"));
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, is_replayed, body })
    }

    /// Makes a request until it is answered by anything but "again": the answer, and how often it was made. With `gives_up` it is left
    /// at the first answer that is lost.
    pub(super) async fn insist(&self, request: &Request, gives_up: bool) -> Result<(Option<Answer>, u64), Failure> {
        let until = Instant::now() + PATIENCE;
        let (mut made, mut base) = (0, self.base.clone());
        while Instant::now() < until {
            if base.borrow_and_update().is_none() {
                // An error says that the round is over; the time is up then, too.
                drop(tokio::time::timeout(AGAIN, base.changed()).await);
                continue;
            }
            made += 1;
            match self.ask(request).await {
                Some(answer) if !answer.asks_again() => return Ok((Some(answer), made)),
                None if gives_up => return Ok((None, made)),
                Some(_) | None => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(format!("{} {} was not answered in {} s", request.method, request.path, PATIENCE.as_secs()).into())
    }

    /// The same for a request that has to succeed.
    pub(super) async fn must(&self, request: &Request) -> Result<Value, Failure> {
        match self.insist(request, false).await?.0 {
            Some(answer) if answer.is_success() => Ok(answer.body),
            answer => Err(format!("{} {}: {answer:?}", request.method, request.path).into()),
        }
    }
}
