//! A service in a process of its own, for the commands that show or measure one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::Failure;

/// A process that is killed when nobody holds it any more.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Errors say that it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A service whose process has been started and has not said where its doors are. Dropping it kills it.
pub(super) struct Starting(Killed);

impl Starting {
    /// Starts `program` as a service on `data_dir`, with its doors at `listen` and keys of the configuration in `settings`; what it
    /// says of itself goes to `messages`.
    pub(super) fn new(
        program: &Path,
        data_dir: &Path,
        listen: &str,
        settings: &[(String, String)],
        messages: Stdio,
    ) -> Result<Starting, Failure> {
        let mut command = Command::new(program);
        command.args(["serve", "--listen", listen, "--metrics-listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let child = command.env("MUSTELA_LOG", "warn").stdout(Stdio::piped()).stderr(messages).spawn()?;
        Ok(Starting(Killed(child)))
    }

    /// Its process.
    pub(super) fn id(&self) -> Pid {
        Pid::from_child(&self.0.0)
    }

    /// Waits for it to say where its doors are.
    pub(super) fn wait(mut self) -> Result<Server, Failure> {
        let stdout = self.0.0.stdout.take().ok_or("the service has no stdout")?;
        let mut addresses = Vec::new();
        for line in BufReader::new(stdout).lines() {
            addresses.extend(line?.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned));
            if addresses.len() == 2 {
                break;
            }
        }
        match <[String; 2]>::try_from(addresses) {
            Ok([doors, metrics]) => Ok(Server { process: self.0, doors, metrics }),
            Err(_) => Err(format!("the service did not start: {}", self.0.0.wait()?).into()),
        }
    }

    /// Ends it as a crash would; whether its doors had been open by then.
    pub(super) fn kill(mut self) -> Result<bool, Failure> {
        self.0.0.kill()?;
        self.0.0.wait()?;
        let mut said = String::new();
        self.0.0.stdout.take().ok_or("the service has no stdout")?.read_to_string(&mut said)?;
        Ok(said.contains("http://"))
    }
}

/// The service. Dropping it kills it.
pub(super) struct Server {
    process: Killed,
    /// Where its doors are, as `http://address:port`.
    pub(super) doors: String,
    /// Where its metrics are.
    pub(super) metrics: String,
}

impl Server {
    /// Starts the service on `data_dir`, with its doors at `listen`, and waits for it to say where they are.
    pub(super) fn start(data_dir: &Path, listen: &str) -> Result<Server, Failure> {
        Starting::new(&std::env::current_exe()?, data_dir, listen, &[], Stdio::inherit())?.wait()
    }

    /// The number of its process.
    pub(super) fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Whether its process has not ended.
    pub(super) fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.ended()?.is_none())
    }

    /// How its process has ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.process.0.try_wait()?)
    }

    /// Ends it as a crash would.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.process.0.kill()?;
        self.process.0.wait()?;
        Ok(())
    }

    /// Asks it to end, as a supervisor would.
    pub(super) fn ask_to_end(&self) -> Result<(), Failure> {
        Ok(kill_process(Pid::from_child(&self.process.0), Signal::TERM)?)
    }

    /// Asks it to end, and holds it to exit status 0.
    pub(super) fn terminate(mut self) -> Result<(), Failure> {
        self.ask_to_end()?;
        let status = self.process.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }

    /// Lets it run on without us.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}
