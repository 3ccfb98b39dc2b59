//! The HTTP client of the commands: a few calls, and patience where a service asks for it.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use crate::ferret::plan::Plan;

/// How long to wait for a service that refuses connections, as while it restarts.
const RECONNECT: Duration = Duration::from_millis(50);
/// How long to go on asking a service that does not answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service at some address.
#[derive(Clone, Debug)]
pub(super) struct Service {
    client: Client,
    base: String,
    /// Says nothing when the service is away: the demo takes it away itself.
    quiet: bool,
    /// Asks a service that is full again at once, whatever it says: for whoever measures it under full load.
    eager: bool,
}

/// One batch, ready to be sent any number of times.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) content_type: &'static str,
    pub(super) body: bytes::Bytes,
    pub(super) key: String,
}

impl Service {
    /// The service whose doors are at `base`, such as `http://127.0.0.1:7070`.
    pub(super) fn new(base: &str) -> Result<Service, Failure> {
        let client = Client::builder().no_proxy().tcp_nodelay(true).timeout(Duration::from_secs(60)).build()?;
        Ok(Service { client, base: base.trim_end_matches('/').to_owned(), quiet: false, eager: false })
    }

    /// The same, for one that will be away for a moment on purpose.
    pub(super) fn quietly(self) -> Service {
        Service { quiet: true, ..self }
    }

    /// The same, for one that is to be full all the while.
    pub(super) fn eagerly(self) -> Service {
        Service { eager: true, ..self }
    }

    /// Where its doors are.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// GET of a JSON document.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        answer(self.request(Method::GET, path)).await
    }

    /// PUT of a JSON document.
    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        answer(self.request(Method::PUT, path).json(body)).await
    }

    /// PUT of a JSON document that may be refused: the status and the body of the answer, whatever they are.
    pub(super) async fn try_put(&self, path: &str, body: &Value) -> Result<(u16, Value), Failure> {
        let response = self.request(Method::PUT, path).json(body).send().await?;
        let status = response.status().as_u16();
        Ok((status, serde_json::from_str(&response.text().await?)?))
    }

    /// The plan that a model follows.
    pub(super) async fn plan(&self, model: &str) -> Result<Plan, Failure> {
        let view = self.get(&format!("/v1/models/{model}/plan")).await?;
        Ok(Plan::deserialize(&view["plan"])?)
    }

    /// POST of bytes.
    pub(super) async fn post(&self, path: &str, content_type: &str, body: bytes::Bytes) -> Result<Value, Failure> {
        answer(self.request(Method::POST, path).header("content-type", content_type).body(body)).await
    }

    /// Posts a batch until it is acknowledged: a service that is full, restarting or away is asked again, and the key makes
    /// sure that the rows count once.
    pub(super) async fn post_batch(&self, stream: &str, batch: &Batch) -> Result<Value, Failure> {
        let mut silent_since = tokio::time::Instant::now();
        let mut told = self.quiet;
        loop {
            let request = self
                .request(Method::POST, &format!("/v1/streams/{stream}/batches"))
                .header("content-type", batch.content_type)
                .header("idempotency-key", &batch.key)
                .body(batch.body.clone());
            let wait = match request.send().await {
                Ok(response) => match retry_after(&response) {
                    Some(wait) => {
                        // It answers: patience is for those that do not.
                        silent_since = tokio::time::Instant::now();
                        if self.eager { wait.min(RECONNECT) } else { wait }
                    }
                    None => return read(response).await,
                },
                Err(error) if error.is_builder() => return Err(error.into()),
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        super::complain(&format!("cannot reach {} ({error}); trying again", self.base));
                    }
                    RECONNECT
                }
            };
            if silent_since.elapsed() > PATIENCE {
                return Err(format!("{} did not answer for {} seconds", self.base, PATIENCE.as_secs()).into());
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// How long the service asks to wait, where sending the same again makes sense.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let again =
        matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT);
    let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    again.then(|| seconds.map_or(RECONNECT, Duration::from_secs))
}

async fn answer(request: RequestBuilder) -> Result<Value, Failure> {
    read(request.send().await?).await
}

async fn read(response: reqwest::Response) -> Result<Value, Failure> {
    let status = response.status();
    let body = response.text().await?;
    let value: Value = serde_json::from_str(&body).unwrap_or(Value::String(body));
    if status.is_success() {
        return Ok(value);
    }
    let detail = value.get("detail").and_then(Value::as_str).map_or_else(|| value.to_string(), str::to_owned);
    let first = value.pointer("/errors/0").map(|fault| format!(" (first: {fault})")).unwrap_or_default();
    Err(format!("{status}: {detail}{first}").into())
}
