//! `mustela verify`: folds the log of a data folder once more, and says whether the checkpoints are what it gives.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::serve::{self, EX_DATAERR};
use super::{Failure, complain};
use crate::config::{self, Config};
use crate::disk::FileSystem;
use crate::model::blobs::Blobs;
use crate::model::checkpoint::{self, Store};
use crate::model::decision::Decision;
use crate::model::kind::Kinds;
use crate::model::verify::{Finding, Verified, verify};
use crate::stream::Streams;
use crate::stream::log::{self, Committer, Hooks, LogError, Options, RedbLog};

const EXIT_HELP: &str = "\
Examples:
  mustela verify ./mustela-data
  mustela verify ./mustela-data --model flights --json

Exit status:
   0  every checkpoint is what the log gives
  65  one is not, or cannot be read, or a model's log cannot be folded
   1  anything else, such as a folder that is being served";

/// Flags of `verify`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_HELP)]
pub(super) struct Arguments {
    /// The data folder; no service may be running on it
    data_dir: PathBuf,
    /// Configuration file of the service; its MUSTELA_* variables count, too
    #[arg(long, env = "MUSTELA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// One JSON document instead of lines
    #[arg(long)]
    json: bool,
}

/// A model, its stream, and what was found, or why nothing could be.
type Told = (String, String, Result<Verified, String>);

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match all(arguments) {
        Ok(told) => {
            let is_good = |(_, _, found): &Told| {
                found.as_ref().is_ok_and(|found| found.checkpoints.iter().all(|compared| compared.finding.is_good()))
            };
            tell(&told, arguments.json);
            if told.iter().all(is_good) { ExitCode::SUCCESS } else { ExitCode::from(EX_DATAERR) }
        }
        Err(failure) => {
            complain(&failure);
            let is_damaged = matches!(failure.downcast_ref(), Some(LogError::Format(_)));
            if is_damaged { ExitCode::from(EX_DATAERR) } else { ExitCode::FAILURE }
        }
    }
}

fn all(arguments: &Arguments) -> Result<Vec<Told>, Failure> {
    let folder = &arguments.data_dir;
    if !folder.join(log::FILE).is_file() {
        return Err(format!("{} is no data folder: it has no {}", folder.display(), log::FILE).into());
    }
    let config = Config::load(arguments.config.as_deref(), config::environment(), &[])?;
    let kinds = serve::kinds(&config)?;
    let options = Options { cache_bytes: config.log.cache_bytes as usize, check_bytes_max: config.log.check_bytes_max };
    let log = Arc::new(RedbLog::open(&FileSystem, folder, &options)?);
    let silent = Hooks { committed: Box::new(|_, _| {}), fatal: Box::new(|_| {}) };
    let streams = Streams::open(log.clone(), Committer::start(log, 1, silent)?, u64::MAX)?;
    let mut told = Vec::new();
    for (id, (name, record)) in streams.log().models()? {
        if arguments.model.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let stream =
            serde_json::from_slice::<serde_json::Value>(&record)?["spec"]["stream"].as_str().unwrap_or_default().to_owned();
        let found = one(&streams, &kinds, folder, id, &record, &stream).map_err(|failure| failure.to_string());
        told.push((name, stream, found));
    }
    match &arguments.model {
        Some(name) if told.is_empty() => Err(format!("there is no model `{name}` in {}", folder.display()).into()),
        _ => Ok(told),
    }
}

fn one(
    streams: &Streams,
    kinds: &Kinds,
    folder: &std::path::Path,
    id: u32,
    record: &[u8],
    stream: &str,
) -> Result<Verified, Failure> {
    let decisions = streams.log().decisions(id)?;
    let decisions: Vec<Decision> = decisions.iter().map(|bytes| Decision::decode(bytes)).collect::<Result<_, _>>()?;
    let store = Store::new(&FileSystem, checkpoint::folder(folder, id));
    let blobs = Blobs::new(Arc::new(FileSystem), folder, id);
    Ok(verify(kinds, record, &streams.get(stream)?, &decisions, &store, &blobs)?)
}

fn tell(told: &[Told], as_json: bool) {
    if as_json {
        let models = told.iter().map(|(model, stream, found)| match found {
            Ok(found) => json!({ "model": model, "stream": stream, "found": found }),
            Err(error) => json!({ "model": model, "stream": stream, "error": error }),
        });
        println!("{}", json!({ "models": models.collect::<Vec<_>>() }));
        return;
    }
    for (model, stream, found) in told {
        match found {
            Err(error) => println!("model {model} of stream {stream}: NOT FOLDED: {error}"),
            Ok(Verified { from, to, decisions, checkpoints }) => {
                println!("model {model} of stream {stream}: folded from {from} to {to}, with {decisions} decisions");
                for compared in checkpoints {
                    println!("  {}  {}", compared.file, words(&compared.finding, &compared.state_hash));
                }
                if checkpoints.is_empty() {
                    println!("  no checkpoints");
                }
            }
        }
    }
}

fn words(finding: &Finding, holds: &str) -> String {
    match finding {
        Finding::Same => format!("is what the log gives: {holds}"),
        Finding::Begun => format!("is where the fold began, as there is nothing older to begin at: {holds}"),
        Finding::Differs { state_hash, counters: None } => format!("DIFFERS: it holds {holds}, and the log gives {state_hash}"),
        Finding::Differs { state_hash, counters: Some(counters) } => {
            let (gives, says) = counters.as_ref();
            format!("DIFFERS: it holds {holds}, {says:?}, and the log gives {state_hash}, {gives:?}")
        }
        Finding::Broken(reason) => format!("is BROKEN: {reason}"),
        Finding::Missed => "is of a version to which the log does not come".to_owned(),
    }
}
