//! `mustela replay`: posts a file of rows to a running service, at a rate.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::Failure;
use super::client::{Batch, Service};
use super::idx::Idx;

/// Flags of `replay`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Rows: CSV with a header, NDJSON, or IDX images (the last may be gzipped)
    file: PathBuf,
    /// The stream to post to; it must exist
    #[arg(long)]
    stream: String,
    /// Rows a second; 0 posts as fast as they are taken
    #[arg(long, default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Rows of a batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Batches under way at once; more than one may change their order
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// The labels of IDX images
    #[arg(long)]
    labels: Option<PathBuf>,
    /// What the file is; told by its name where it is left out
    #[arg(long)]
    format: Option<FileFormat>,
    /// The service
    #[arg(long, env = "MUSTELA_URL", default_value = "http://127.0.0.1:7070")]
    url: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FileFormat {
    Csv,
    Ndjson,
    Idx,
}

/// A rate that can be kept.
fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    // Below this a row would take longer than a year.
    if rate == 0.0 || (1e-7..=1e12).contains(&rate) { Ok(rate) } else { Err(format!("{rate} is not a rate: 0, or 1e-7 to 1e12")) }
}

/// A batch and how many rows it has.
type Sized = (Batch, u64);

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let format = match arguments.format {
        Some(format) => format,
        None => format_of(&arguments.file)?,
    };
    let batches = read(&arguments, format)?;
    if batches.is_empty() {
        return Err(format!("{} has no rows", arguments.file.display()).into());
    }
    super::runtime()?.block_on(post(&arguments, batches))
}

fn format_of(file: &Path) -> Result<FileFormat, Failure> {
    let name = file.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.trim_end_matches(".gz");
    match () {
        () if name.ends_with(".csv") => Ok(FileFormat::Csv),
        () if name.ends_with(".ndjson") || name.ends_with(".jsonl") => Ok(FileFormat::Ndjson),
        () if name.contains("idx") && name.ends_with("ubyte") => Ok(FileFormat::Idx),
        () => Err(format!("{name}: say what it is by --format csv, ndjson or idx").into()),
    }
}

fn read(arguments: &Arguments, format: FileFormat) -> Result<VecDeque<Sized>, Failure> {
    let open = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let file = open(&arguments.file)?;
    let rows = arguments.batch as usize;
    match format {
        FileFormat::Csv => lines(&file, rows, true),
        FileFormat::Ndjson => lines(&file, rows, false),
        FileFormat::Idx => {
            let labels = arguments.labels.as_deref().ok_or("IDX images need their --labels")?;
            images(&Idx::read(&file)?, &Idx::read(&open(labels)?)?, rows)
        }
    }
}

/// Whole lines, `rows` to a batch; a CSV's header goes with each.
fn lines(file: &[u8], rows: usize, header: bool) -> Result<VecDeque<Sized>, Failure> {
    let text = std::str::from_utf8(file).map_err(|_| "the file is not UTF-8")?;
    let content_type = if header { "text/csv" } else { "application/x-ndjson" };
    let mut lines = text.lines().filter(|line| !line.trim().is_empty()).peekable();
    let head = if header { lines.next() } else { None };
    let mut batches = VecDeque::new();
    while lines.peek().is_some() {
        let mut body = head.map_or_else(String::new, |head| format!("{head}\n"));
        let mut count = 0;
        for line in lines.by_ref().take(rows) {
            body.push_str(line);
            body.push('\n');
            count += 1;
        }
        batches.push_back((batch(content_type, body.into()), count));
    }
    Ok(batches)
}

/// Raw batches: the pixels of the rows, then their labels as u32.
pub(super) fn images(images: &Idx, labels: &Idx, rows: usize) -> Result<VecDeque<Sized>, Failure> {
    if images.count != labels.count || !labels.shape.is_empty() {
        return Err(format!("{} images, but {} labels of shape {:?}", images.count, labels.count, labels.shape).into());
    }
    let mut batches = VecDeque::new();
    for start in (0..images.count).step_by(rows) {
        let end = images.count.min(start + rows);
        let mut body = images.items(start, end).to_vec();
        for &label in labels.items(start, end) {
            body.extend_from_slice(&u32::from(label).to_le_bytes());
        }
        batches.push_back((batch("application/octet-stream", body.into()), (end - start) as u64));
    }
    Ok(batches)
}

fn batch(content_type: &'static str, body: Bytes) -> Batch {
    Batch { content_type, body, key: Uuid::new_v4().to_string() }
}

async fn post(arguments: &Arguments, batches: VecDeque<Sized>) -> Result<(), Failure> {
    let service = Service::new(&arguments.url)?;
    let total: u64 = batches.iter().map(|(_, rows)| rows).sum();
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
        "{bar:32} {human_pos}/{human_len} rows  {per_sec}  {elapsed} of {duration}  {msg}",
    )?);
    let began = Instant::now();
    let mut sent: u64 = 0;
    let mut under_way = JoinSet::new();
    for (batch, rows) in batches {
        if arguments.rate > 0.0 {
            tokio::time::sleep_until(began + Duration::from_secs_f64(sent as f64 / arguments.rate)).await;
        }
        if under_way.len() >= arguments.connections as usize {
            settle(under_way.join_next().await, &bar)?;
        }
        let service = service.clone();
        let stream = arguments.stream.clone();
        under_way.spawn(async move {
            let posted = service.post_batch(&stream, &batch).await;
            posted.map(|_| rows).map_err(|error| format!("rows {sent} to {} of the file: {error}", sent + rows - 1).into())
        });
        sent += rows;
    }
    while let Some(ended) = under_way.join_next().await {
        settle(Some(ended), &bar)?;
    }
    bar.finish();
    let seconds = began.elapsed().as_secs_f64();
    println!("{total} rows acknowledged in {seconds:.2} s, {:.0} rows/s", total as f64 / seconds);
    Ok(())
}

fn settle(ended: Option<Result<Result<u64, Failure>, tokio::task::JoinError>>, bar: &ProgressBar) -> Result<(), Failure> {
    if let Some(ended) = ended {
        bar.inc(ended??);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_header_goes_with_each_batch() {
        let batches = lines(b"a,b\n1,2\n\n3,4\n5,6\n", 2, true).unwrap();
        let bodies: Vec<_> = batches.iter().map(|(batch, rows)| (batch.body.as_ref(), *rows)).collect();
        assert_eq!(bodies, [(&b"a,b\n1,2\n3,4\n"[..], 2), (&b"a,b\n5,6\n"[..], 1)]);
    }

    #[test]
    fn formats_are_told_by_name() {
        assert_eq!(format_of(Path::new("x/rows.CSV")).unwrap(), FileFormat::Csv);
        assert_eq!(format_of(Path::new("rows.jsonl")).unwrap(), FileFormat::Ndjson);
        assert_eq!(format_of(Path::new("t10k-images-idx3-ubyte.gz")).unwrap(), FileFormat::Idx);
        assert!(format_of(Path::new("rows.parquet")).is_err());
    }
}
