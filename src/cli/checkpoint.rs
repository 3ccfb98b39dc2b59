//! `mustela checkpoint inspect`: what the checkpoints of a model hold, and whether they are whole.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Failure;
use crate::disk::FileSystem;
use crate::model::checkpoint::Store;

const HELP: &str = "\
Example:
  mustela checkpoint inspect mustela-data/models/1 --tensors";

/// Flags of `checkpoint`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what each kept checkpoint in a folder holds, and hold it to its hash
    Inspect {
        /// A model's folder, such as mustela-data/models/1
        folder: PathBuf,
        /// Print the tensors too
        #[arg(long)]
        tensors: bool,
    },
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Command::Inspect { folder, tensors } = arguments.command;
    let disk = FileSystem;
    let store = Store::new(&disk, &folder);
    let entries = store.entries()?;
    if entries.is_empty() {
        return Err(format!("{} holds no checkpoints", folder.display()).into());
    }
    let mut broken = 0;
    for entry in entries {
        let file = entry.file.clone();
        match store.load(entry) {
            Ok(loaded) => {
                let head = &loaded.head;
                println!("{file}");
                println!("  model        {} of data folder {}", head.model, head.folder);
                println!("  version      {} with {} decisions", head.version, head.decisions);
                println!("  rows         {}", serde_json::to_string(&head.tally.counters)?);
                println!("  fold         {}", head.identity);
                println!("  state hash   {}", loaded.entry.state_hash);
                println!("  file hash    {} ({} bytes), as the manifest says", loaded.entry.blake3, loaded.entry.bytes);
                for (name, tensor) in loaded.state.tensors.iter().filter(|_| tensors) {
                    println!("  tensor       {name} {:?} {:?}", tensor.dtype(), tensor.dims());
                }
            }
            Err(error) => {
                broken += 1;
                println!("{file}\n  BROKEN       {error}");
            }
        }
    }
    if broken > 0 { Err(format!("{broken} checkpoints are broken").into()) } else { Ok(()) }
}
