//! Rows a second of the whole service: two clients post to a service in a process of its own on the same cores.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::cli::Failure;
use crate::cli::child::Server;
use crate::cli::client::{Batch, Service};

const BATCH_ROWS: usize = 64;
pub(super) const PIXELS: usize = 784;
const CONNECTIONS: usize = 2;

/// What one body format gave.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) format: &'static str,
    /// Rows acknowledged a second.
    pub(super) acknowledged: f64,
    /// Rows learned a second, until the last one was.
    pub(super) learned: f64,
}

/// Measures each body format in turn.
pub(super) fn measure(quick: bool) -> Result<Vec<Measured>, Failure> {
    let seconds = if quick { 3.0 } else { 10.0 };
    crate::cli::runtime()?.block_on(async {
        let mut measured = Vec::new();
        for format in ["json", "raw"] {
            measured.push(one(format, Duration::from_secs_f64(seconds)).await?);
        }
        Ok(measured)
    })
}

/// A fresh service with the stream `bench` and the model `bench`.
pub(super) struct Fresh {
    data_dir: PathBuf,
    server: Server,
    /// Its doors.
    pub(super) service: Service,
    /// Its metrics, at the very address.
    pub(super) metrics: Service,
}

impl Fresh {
    pub(super) async fn start() -> Result<Fresh, Failure> {
        let data_dir = std::env::temp_dir().join(format!("mustela-bench-{}", Uuid::new_v4()));
        let server = Server::start(&data_dir, "127.0.0.1:0")?;
        let (service, metrics) = (Service::new(&server.doors)?, Service::new(&server.metrics)?);
        let field = json!({ "name": "pixels", "type": "tensor", "shape": [PIXELS], "element": "u8" });
        let target = json!({ "name": "label", "type": "classes", "classes": 10 });
        service.put("/v1/streams/bench", &json!({ "fields": [field], "target": target })).await?;
        let network = json!({ "architecture": "mlp", "hidden": [256, 256] });
        let model = json!({ "kind": "network", "stream": "bench", "network": network, "learning_rate": 0.01 });
        service.put("/v1/models/bench", &model).await?;
        Ok(Fresh { data_dir, server, service, metrics })
    }

    /// Waits until `rows` are learned.
    pub(super) async fn learned(&self, rows: usize) -> Result<(), Failure> {
        loop {
            let view = self.service.get("/v1/models/bench").await?;
            if view.pointer("/rows/learned").and_then(Value::as_u64) == Some(rows as u64) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn end(self) -> Result<(), Failure> {
        self.server.terminate()?;
        Ok(std::fs::remove_dir_all(&self.data_dir)?)
    }
}

/// Posts to `service` until `until`, one batch after the other; gives the rows that were acknowledged.
pub(super) async fn post(service: Service, format: &'static str, until: Instant) -> Result<usize, Failure> {
    let (content_type, body) = body(format);
    let mut rows = 0;
    while Instant::now() < until {
        let batch = Batch { content_type, body: body.clone(), key: Uuid::new_v4().to_string() };
        service.post_batch("bench", &batch).await?;
        rows += BATCH_ROWS;
    }
    Ok(rows)
}

/// Posts to a fresh service for `length`, then waits until every row is learned.
async fn one(format: &'static str, length: Duration) -> Result<Measured, Failure> {
    let fresh = Fresh::start().await?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        clients.spawn(post(fresh.service.clone(), format, began + length));
    }
    let mut rows = 0;
    while let Some(client) = clients.join_next().await {
        rows += client??;
    }
    let acknowledged = rows as f64 / began.elapsed().as_secs_f64();
    fresh.learned(rows).await?;
    let learned = rows as f64 / began.elapsed().as_secs_f64();
    fresh.end()?;
    Ok(Measured { format, acknowledged, learned })
}

/// A batch of pixels that are always the same.
fn body(format: &str) -> (&'static str, Bytes) {
    let pixel = |row: usize, column: usize| ((row * 131 + column * 7) % 256) as u8;
    if format == "json" {
        let rows: Vec<Value> = (0..BATCH_ROWS)
            .map(|row| json!({ "pixels": (0..PIXELS).map(|column| pixel(row, column)).collect::<Vec<_>>(), "label": row % 10 }))
            .collect();
        return ("application/json", json!({ "rows": rows }).to_string().into());
    }
    let mut body: Vec<u8> = (0..BATCH_ROWS).flat_map(|row| (0..PIXELS).map(move |column| pixel(row, column))).collect();
    body.extend((0..BATCH_ROWS as u32).flat_map(|row| (row % 10).to_le_bytes()));
    ("application/octet-stream", body.into())
}
