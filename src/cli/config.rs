//! `mustela config`: the annotated default of the configuration, as a file to begin with or as a page to read.

use std::io::Write;

use clap::Args;

use super::Failure;
use crate::config::{DEFAULT, document};

const HELP: &str = "\
Examples:
  mustela config > mustela.toml        a file with every key, its default and what it does
  mustela serve --config mustela.toml  a file needs to hold only the keys that it changes";

/// Flags of `config`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Tables with ranges and variables instead of TOML: docs/configuration.md
    #[arg(long)]
    markdown: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let text = if arguments.markdown { document::markdown()? } else { DEFAULT.to_owned() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
