//! Rows a second of the whole service: two clients post to a service in a process of its own on the same cores.

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
const PIXELS: usize = 784;
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

/// Posts to a fresh service for `length`, then waits until every row is learned.
async fn one(format: &'static str, length: Duration) -> Result<Measured, Failure> {
    let data_dir = std::env::temp_dir().join(format!("mustela-bench-{}", Uuid::new_v4()));
    let server = Server::start(&data_dir, "127.0.0.1:0")?;
    let service = Service::new(&server.doors)?;
    let field = json!({ "name": "pixels", "type": "tensor", "shape": [PIXELS], "element": "u8" });
    let target = json!({ "name": "label", "type": "classes", "classes": 10 });
    service.put("/v1/streams/bench", &json!({ "fields": [field], "target": target })).await?;
    let network = json!({ "architecture": "mlp", "hidden": [256, 256] });
    let model = json!({ "kind": "network", "stream": "bench", "network": network, "learning_rate": 0.01 });
    service.put("/v1/models/bench", &model).await?;

    let (content_type, body) = body(format);
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (service, body) = (service.clone(), body.clone());
        clients.spawn(async move {
            let mut rows = 0;
            while began.elapsed() < length {
                let batch = Batch { content_type, body: body.clone(), key: Uuid::new_v4().to_string() };
                service.post_batch("bench", &batch).await?;
                rows += BATCH_ROWS;
            }
            Ok::<_, Failure>(rows)
        });
    }
    let mut rows = 0;
    while let Some(client) = clients.join_next().await {
        rows += client??;
    }
    let acknowledged = rows as f64 / began.elapsed().as_secs_f64();
    loop {
        let view = service.get("/v1/models/bench").await?;
        if view.pointer("/rows/learned").and_then(Value::as_u64) == Some(rows as u64) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let learned = rows as f64 / began.elapsed().as_secs_f64();
    server.terminate()?;
    std::fs::remove_dir_all(&data_dir)?;
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
