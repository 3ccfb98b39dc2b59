//! `mustela health`: whether a service takes work, as an exit status. For probes where there is neither a shell nor a client, as in
//! the image that the Dockerfile makes.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::Failure;
use super::client::Service;

const HELP: &str = "\
Exit status:
   0  the service answers, and takes work (with --live: and lives)
   1  it does not answer in time, or is draining";

/// Flags of `health`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Whether the process lives, though it may be draining
    #[arg(long)]
    live: bool,
    /// The longest to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// The service
    #[arg(long, env = "MUSTELA_URL", default_value = "http://127.0.0.1:7070")]
    url: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (path, word) = if arguments.live { ("/v2/health/live", "live") } else { ("/v2/health/ready", "ready") };
    let asked = async {
        let service = Service::new(&arguments.url)?;
        match tokio::time::timeout(Duration::from_secs(arguments.timeout), service.get(path)).await {
            Ok(answer) => answer.map_err(|failure| format!("{} is not {word}: {failure}", arguments.url).into()),
            Err(_) => Err(Failure::from(format!("{} did not answer for {} seconds", arguments.url, arguments.timeout))),
        }
    };
    let answer = super::runtime()?.block_on(asked)?;
    // Whatever else listens there may answer 200 to anything.
    if answer[word] != Value::Bool(true) {
        return Err(format!("{} is not {word}, or no Mustela: it says {answer}", arguments.url).into());
    }
    println!("{} is {word}", arguments.url);
    Ok(())
}
