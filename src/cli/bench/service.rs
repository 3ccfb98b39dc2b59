//! Rows a second of the whole service: two clients post to a service in a process of its own on the same cores.

use std::process::{Child, Command, Stdio};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::cli::Failure;
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
