//! `mustela completions SHELL`: what a shell needs to complete commands and flags.

use std::io::Write;

use clap::Args;
use clap_complete::{Shell, generate};

use super::Failure;

const HELP: &str = "\
Examples:
  mustela completions bash > ~/.local/share/bash-completion/completions/mustela
  mustela completions zsh > \"${fpath[1]}/_mustela\"
  mustela completions fish > ~/.config/fish/completions/mustela.fish";

/// Flags of `completions`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut script = Vec::new();
    generate(arguments.shell, &mut super::command(), "mustela", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
