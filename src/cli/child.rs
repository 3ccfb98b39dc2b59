//! A service in a process of its own, for the commands that show or measure one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Failure;

/// The service. Dropping it kills it.
pub(super) struct Server {
    child: Child,
    /// Where its doors are, as `http://address:port`.
    pub(super) doors: String,
    /// Where its metrics are.
    pub(super) metrics: String,
}

impl Server {
    /// Starts the service on `data_dir`, with its doors at `listen`, and waits for it to say where they are.
    pub(super) fn start(data_dir: &Path, listen: &str) -> Result<Server, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--listen", listen, "--metrics-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .env("MUSTELA_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the service has no stdout")?;
        let mut addresses = Vec::new();
        for line in BufReader::new(stdout).lines() {
            addresses.extend(line?.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned));
            if addresses.len() == 2 {
                break;
            }
        }
        match <[String; 2]>::try_from(addresses) {
            Ok([doors, metrics]) => Ok(Server { child, doors, metrics }),
            Err(_) => Err(format!("the service did not start: {}", child.wait()?).into()),
        }
    }

    /// The number of its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether its process has not ended.
    pub(super) fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Ends it as a crash would.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, as a supervisor would, and holds it to exit status 0.
    pub(super) fn terminate(mut self) -> Result<(), Failure> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }

    /// Lets it run on without us.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors say that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
