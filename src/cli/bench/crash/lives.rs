//! The lives of the service in one round: each is started over the same folder, and all but the last are killed.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::Ground;
use super::script::{Kill, Moment};
use crate::cli::Failure;
use crate::cli::child::{Server, Starting};

/// How long a kill waits for the moment that it is meant for.
const MOMENT: Duration = Duration::from_secs(1);
/// How often it looks whether the moment has come.
const LOOK: Duration = Duration::from_micros(200);
/// How long a service may take to open its doors.
const START: Duration = Duration::from_secs(30);
/// How long a service may take to end by itself.
const END: Duration = Duration::from_secs(30);

/// How one life ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Killed {
    /// What the kill waited for.
    pub moment: Moment,
    /// Seconds from the start of the process.
    pub seconds: f64,
    /// Whether the moment came; otherwise the kill came after a while without it.
    pub came: bool,
    /// Whether the doors were open.
    pub open: bool,
    /// Whether the process had ended by itself before, as it was asked to.
    pub ended_before: bool,
    /// Requests that had no answer.
    pub under_way: u64,
    /// Whether streams and models were still being made.
    pub setting_up: bool,
    /// Whether a change had no answer.
    pub in_change: bool,
    /// Whether a checkpoint's temporary file was left.
    pub in_checkpoint: bool,
}

/// Everything of a round on disk: the data folder, and what the service said on stderr.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(folder: PathBuf) -> Result<Folder, Failure> {
        std::fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    pub(super) fn messages(&self) -> PathBuf {
        self.0.join("messages.log")
    }

    /// Whether a checkpoint is being written, or was when the process ended.
    fn has_unfinished_checkpoint(&self) -> bool {
        let files = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut of_models = files(&self.data().join("models")).flat_map(|folder| files(&folder).collect::<Vec<_>>());
        of_models.any(|file| file.extension().is_some_and(|extension| extension == "tmp"))
    }
}

/// Starts a life.
fn start(ground: &Ground, life: usize) -> Result<Starting, Failure> {
    let messages = OpenOptions::new().create(true).append(true).open(ground.folder.messages())?;
    let (data, settings) = (ground.folder.data(), ground.script.settings(life));
    Starting::new(&ground.program, &data, "127.0.0.1:0", &settings, Stdio::from(messages))
}

/// Opens the doors of a life to the clients.
async fn open(ground: &Arc<Ground>, life: usize) -> Result<Server, Failure> {
    let starting = start(ground, life)?;
    let id = starting.id();
    let waiting = tokio::task::spawn_blocking(move || starting.wait());
    let Ok(server) = tokio::time::timeout(START, waiting).await else {
        // Whoever waits for it sees that it has ended.
        kill_process(id, Signal::KILL)?;
        return Err(format!("life {life} did not open its doors in {} s", START.as_secs()).into());
    };
    let server = server??;
    ground.base.send_replace(Some(server.doors.clone()));
    Ok(server)
}

/// One life that ends by a kill.
pub(super) async fn killed(ground: &Arc<Ground>, life: usize, kill: Kill) -> Result<Killed, Failure> {
    let began = Instant::now();
    let (mut open_doors, mut came, mut ended_before) = (true, true, false);
    let (under_way, in_change);
    if kill.moment == Moment::Start {
        let starting = start(ground, life)?;
        tokio::time::sleep(kill.delay).await;
        (under_way, in_change) = (0, false);
        open_doors = starting.kill()?;
    } else {
        let mut server = open(ground, life).await?;
        came = wait_for(ground, kill.moment, &server).await?;
        tokio::time::sleep(kill.delay).await;
        (under_way, in_change) = (ground.door.under_way.load(Relaxed), *ground.changing.borrow());
        if let Some(status) = server.ended()? {
            ended_before = true;
            if !status.success() {
                ground.complain(format!("life {life} ended by itself with {status}"));
            }
        }
        server.kill()?;
        ground.base.send_replace(None);
    }
    Ok(Killed {
        moment: kill.moment,
        seconds: began.elapsed().as_secs_f64(),
        came,
        open: open_doors,
        ended_before,
        under_way,
        setting_up: !*ground.set_up.borrow(),
        in_change,
        in_checkpoint: ground.folder.has_unfinished_checkpoint(),
    })
}

/// Waits for the moment of a kill; false where it did not come.
async fn wait_for(ground: &Arc<Ground>, moment: Moment, server: &Server) -> Result<bool, Failure> {
    match moment {
        Moment::Start | Moment::Load => Ok(true),
        Moment::Shutdown => {
            // Under load, if it can be had.
            tokio::time::sleep(MOMENT / 8).await;
            server.ask_to_end()?;
            Ok(true)
        }
        Moment::Change => {
            let mut changing = ground.changing.subscribe();
            // A change that is under way already, from the life before, is as good.
            Ok(matches!(tokio::time::timeout(MOMENT, changing.wait_for(|changing| *changing)).await, Ok(Ok(_))))
        }
        Moment::Checkpoint => {
            let ground = ground.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let until = Instant::now() + MOMENT;
                while !ground.folder.has_unfinished_checkpoint() {
                    if Instant::now() > until {
                        return false;
                    }
                    std::thread::sleep(LOOK);
                }
                true
            });
            Ok(looked.await?)
        }
    }
}

/// The last life: its doors stay open until the clients are done.
pub(super) async fn last(ground: &Arc<Ground>) -> Result<Server, Failure> {
    open(ground, ground.script.kills.len()).await
}

/// Ends the last life as a supervisor would, and holds it to exit status 0.
pub(super) async fn end(ground: &Ground, mut server: Server) -> Result<(), Failure> {
    server.ask_to_end()?;
    ground.base.send_replace(None);
    let until = Instant::now() + END;
    while Instant::now() < until {
        match server.ended()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("the service ended with {status}").into()),
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    Err(format!("the service did not end in {} s", END.as_secs()).into())
}
