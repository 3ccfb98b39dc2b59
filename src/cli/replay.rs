//! `mustela replay`: posts a file of rows to a running service, at a rate. Of a CSV it can also make the stream, and a model with all
//! defaults, so that it is one command from a file to a live model.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::client::{Batch, Service};
use super::idx::Idx;
use super::infer::{self, Inferred};
use super::{Failure, complain};

const HELP: &str = "\
Examples:
  mustela replay mine.csv --stream mine --target label --model mine
                                       make a stream of the CSV's columns and a model that learns `label`
  mustela replay mine.csv --stream mine --rate 1000
                                       post to a stream that is there, 1,000 rows a second
  mustela replay t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz --stream fashion

Rows are sent again where the service is full or away, and count once.";

/// Between two looks whether the model has learned all that was posted, and the longest to look.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(600);

/// Flags of `replay`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// The rows: CSV with a header, NDJSON, or IDX images (the last may be gzipped)
    file: PathBuf,
    /// The stream to post to; it must exist, unless --target makes it
    #[arg(long, value_name = "NAME")]
    stream: String,
    /// Make the stream first, with a schema that is read off the columns of the CSV; this one is to be learned
    #[arg(long, value_name = "COLUMN")]
    target: Option<String>,
    /// The column that names the rows, which nothing is learned from
    #[arg(long, value_name = "COLUMN", requires = "target")]
    row_id: Option<String>,
    /// Make a model of the stream first, with all defaults and one row a step, and say at the end how well it predicted
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Rows a second; 0 posts as fast as they are taken
    #[arg(long, value_name = "ROWS_A_SECOND", default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Rows of a batch
    #[arg(long, value_name = "ROWS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Batches under way at once; more than one may change their order
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// The labels of IDX images
    #[arg(long, value_name = "FILE")]
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
    let file = open(&arguments.file)?;
    let batches = read(&arguments, &file, format)?;
    if batches.is_empty() {
        return Err(format!("{} has no rows", arguments.file.display()).into());
    }
    let inferred = match &arguments.target {
        Some(_) if format != FileFormat::Csv => return Err("a schema can be read off a CSV only: make the stream by PUT".into()),
        Some(target) => Some(infer::schema(&file, target, arguments.row_id.as_deref())?),
        None => None,
    };
    super::runtime()?.block_on(async {
        let service = Service::new(&arguments.url)?;
        make(&arguments, &service, inferred).await?;
        post(&arguments, &service, batches).await?;
        match &arguments.model {
            Some(model) => tell(&service, model).await,
            None => Ok(()),
        }
    })
}

/// Makes what was asked for: the stream, the model.
async fn make(arguments: &Arguments, service: &Service, inferred: Option<Inferred>) -> Result<(), Failure> {
    let stream = &arguments.stream;
    if let Some(Inferred { schema, notes }) = inferred {
        notes.iter().for_each(|note| complain(note));
        let schema = serde_json::to_value(schema)?;
        service.put(&format!("/v1/streams/{stream}"), &schema).await?;
        println!("stream {stream}: {schema}");
    }
    if let Some(model) = &arguments.model {
        // A file has few rows beside a stream: of steps of 64 it would have so few that little is learned of it.
        let spec = json!({ "kind": "network", "stream": stream, "step_rows": 1 });
        service.put(&format!("/v1/models/{model}"), &spec).await?;
        println!("model {model} learns from it");
    }
    Ok(())
}

/// Waits until the model has learned what there is, and says how well it predicted that before.
async fn tell(service: &Service, model: &str) -> Result<(), Failure> {
    let began = Instant::now();
    let path = format!("/v1/models/{model}");
    let view = loop {
        let view = service.get(&path).await?;
        if !view["failure"].is_null() {
            return Err(format!("model {model} has failed: {}", view["failure"]).into());
        }
        if view["lag_rows"] == 0 || began.elapsed() > LOOK_MAX {
            break view;
        }
        tokio::time::sleep(LOOK).await;
    };
    let online = &view["online"];
    let score = match online["accuracy"].as_f64() {
        Some(accuracy) => format!("{:.1} % of them right", accuracy * 100.0),
        None => format!("with a mean loss of {:.4}", online["loss"].as_f64().unwrap_or(f64::NAN)),
    };
    println!(
        "model {model} is at version {} and predicted {} rows before it learned them, {score}",
        view["version"].as_str().unwrap_or_default(),
        online["rows"]
    );
    if view["lag_rows"] != 0 {
        println!("  {} rows are still to be learned", view["lag_rows"]);
    }
    println!("  {}{path}", service.base());
    Ok(())
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

fn open(path: &Path) -> Result<Vec<u8>, Failure> {
    Ok(std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?)
}

fn read(arguments: &Arguments, file: &[u8], format: FileFormat) -> Result<VecDeque<Sized>, Failure> {
    let rows = arguments.batch as usize;
    match format {
        FileFormat::Csv => records(file, rows),
        FileFormat::Ndjson => lines(file, rows),
        FileFormat::Idx => {
            let labels = arguments.labels.as_deref().ok_or("IDX images need their --labels")?;
            images(&Idx::read(file)?, &Idx::read(&open(labels)?)?, rows)
        }
    }
}

/// Whole records of a CSV, which may be of several lines, `rows` to a batch; the header goes with each.
fn records(file: &[u8], rows: usize) -> Result<VecDeque<Sized>, Failure> {
    // Rows of other lengths are left for the service to name.
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
    reader.byte_headers()?;
    let head = reader.position().byte() as usize;
    let (mut batches, mut start, mut record) = (VecDeque::new(), head, csv::ByteRecord::new());
    loop {
        let mut count = 0;
        while count < rows && reader.read_byte_record(&mut record)? {
            count += 1;
        }
        if count == 0 {
            return Ok(batches);
        }
        let end = reader.position().byte() as usize;
        let body = [&file[..head], &file[start..end]].concat();
        batches.push_back((batch("text/csv", body.into()), count as u64));
        start = end;
    }
}

/// Whole lines, `rows` to a batch.
fn lines(file: &[u8], rows: usize) -> Result<VecDeque<Sized>, Failure> {
    let text = std::str::from_utf8(file).map_err(|_| "the file is not UTF-8")?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let sized = |lines: &[&str]| (batch("application/x-ndjson", (lines.join("\n") + "\n").into()), lines.len() as u64);
    Ok(lines.chunks(rows).map(sized).collect())
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

async fn post(arguments: &Arguments, service: &Service, batches: VecDeque<Sized>) -> Result<(), Failure> {
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

    fn bodies(batches: &VecDeque<Sized>) -> Vec<(&str, u64)> {
        batches.iter().map(|(batch, rows)| (std::str::from_utf8(&batch.body).unwrap(), *rows)).collect()
    }

    #[test]
    fn a_csv_header_goes_with_each_batch() {
        let batches = records(b"a,b\n1,2\n\n3,4\n5,6", 2).unwrap();
        assert_eq!(bodies(&batches), [("a,b\n1,2\n\n3,4\n", 2), ("a,b\n5,6", 1)]);
        assert_eq!(records(b"a,b\r\n\r\n", 2).unwrap().len(), 0);
    }

    #[test]
    fn a_quoted_line_break_ends_no_record() {
        let batches = records(b"a\r\n\"1\r\n2\"\r\n3\r\n", 1).unwrap();
        let rows: Vec<_> = bodies(&batches).iter().map(|(body, rows)| (body.contains("\"1\r\n2\""), *rows)).collect();
        assert_eq!(rows, [(true, 1), (false, 1)]);
    }

    #[test]
    fn a_mark_of_the_byte_order_is_no_part_of_a_name() {
        let batches = records("\u{feff}a\n1\n2\n".as_bytes(), 1).unwrap();
        assert_eq!(bodies(&batches), [("\u{feff}a\n1\n", 1), ("\u{feff}a\n2\n", 1)]);
    }

    #[test]
    fn json_lines_are_batched() {
        assert_eq!(bodies(&lines(b"{}\n\n[]\n1", 2).unwrap()), [("{}\n[]\n", 2), ("1\n", 1)]);
    }

    #[test]
    fn formats_are_told_by_name() {
        assert_eq!(format_of(Path::new("x/rows.CSV")).unwrap(), FileFormat::Csv);
        assert_eq!(format_of(Path::new("rows.jsonl")).unwrap(), FileFormat::Ndjson);
        assert_eq!(format_of(Path::new("t10k-images-idx3-ubyte.gz")).unwrap(), FileFormat::Idx);
        assert!(format_of(Path::new("rows.parquet")).is_err());
    }
}
