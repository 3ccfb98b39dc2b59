//! `mustela bench crash`: the real service under load, killed at random instants and started again over the same folder, round after
//! round, and compared with what its clients were told and with a fold that nothing interrupts.
//!
//! `script` draws a round from its seed. In `lives` the process is started and killed, while `posts`, `labels` and `changes` go
//! on at its `door`, with `rows` that follow from their ids. When it has ended, `check` is the oracle, for which `refold` folds each
//! model's records and decisions once more.

mod arrow;
mod changes;
mod check;
mod door;
mod labels;
mod lives;
mod posts;
mod refold;
mod rows;
mod script;
mod tell;

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::cli::{Failure, serve};
use crate::config::Config;
use crate::model::kind::Kinds;

use door::{Door, Request};
use labels::LabelPost;
use lives::Folder;
use posts::Post;
use rows::Encoding;
use script::{DELAYED, Script};

pub use lives::Killed;
pub use script::Moment;

/// The longest that a kill waits under load, and how long the last life is under load.
const LOAD: Duration = Duration::from_millis(800);
const LOAD_QUICK: Duration = Duration::from_millis(400);
/// How long a round may take, beside the fold at its end.
const ROUND: Duration = Duration::from_secs(120);
/// How long rows may wait once nobody posts.
const SETTLE: Duration = Duration::from_secs(60);
/// Compute threads of the fold at the end of a round.
const THREADS: &str = "1";

/// Flags of `bench crash`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Rounds, from the first on
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Draws all that is asked for in each round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON line for each round; rounds that are there already are not made again
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Kills come sooner, and less is posted
    #[arg(long)]
    quick: bool,
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// What came of a round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    /// What it was drawn from.
    pub seed: u64,
    /// Its number.
    pub round: u64,
    /// How each life but the last ended.
    pub kills: Vec<Killed>,
    /// Posts that were made, those of them that were given up, and rows that were acknowledged.
    pub posts: u64,
    /// See `posts`.
    pub given_up: u64,
    /// See `posts`.
    pub acknowledged_rows: u64,
    /// Rows in the log.
    pub logged_rows: u64,
    /// Models that were compared with an uninterrupted fold, their decisions, and the rows that they skipped.
    pub models: u64,
    /// See `models`.
    pub decisions: u64,
    /// See `models`.
    pub skipped_rows: u64,
    /// Batches of labels that were made.
    #[serde(default)]
    pub label_posts: u64,
    /// What the models that had late labels read of them, and the rows that they learned, that expired, and that wait at the end.
    #[serde(default)]
    pub labels: u64,
    /// See `labels`.
    #[serde(default)]
    pub late_learned: u64,
    /// See `labels`.
    #[serde(default)]
    pub expired: u64,
    /// See `labels`.
    #[serde(default)]
    pub waiting: u64,
    /// Rows that were quarantined, which two processes may bring about that were killed over the same step.
    #[serde(default)]
    pub quarantined: u64,
    /// Changes that were asked for.
    pub changes: u64,
    /// How long it took.
    pub seconds: f64,
    /// All that is wrong.
    pub complaints: Vec<String>,
    /// Where its folder is kept, if anything is wrong.
    pub kept: Option<PathBuf>,
}

impl Round {
    fn note(&mut self, found: check::Found) {
        let check::Found { rows, decisions, skipped, models, late, quarantined } = found;
        (self.logged_rows, self.models, self.decisions) = (rows, models, decisions);
        (self.skipped_rows, self.quarantined) = (skipped, quarantined);
        let check::Late { labels, learned, expired, waiting } = late;
        (self.labels, self.late_learned, self.expired, self.waiting) = (labels, learned, expired, waiting);
    }
}

/// What the clients, the changes and the lives of a round share.
struct Ground {
    program: PathBuf,
    script: Script,
    folder: Folder,
    door: Door,
    /// Where the doors are; none while nobody is there.
    base: watch::Sender<Option<String>>,
    /// Whether streams and models have been made.
    set_up: watch::Sender<bool>,
    /// Whether a change has no answer yet.
    changing: watch::Sender<bool>,
    /// Rows that may come without their labels, and whether they have been acknowledged.
    to_label: Mutex<Vec<(Range<u64>, bool)>>,
    done: AtomicBool,
    acknowledged_rows: AtomicU64,
    changes: AtomicU64,
    complaints: Mutex<Vec<String>>,
}

impl Ground {
    fn new(program: &Path, script: Script, folder: Folder) -> Result<Ground, Failure> {
        let (base, of_door) = watch::channel(None);
        Ok(Ground {
            program: program.to_owned(),
            script,
            folder,
            door: Door::new(of_door)?,
            base,
            set_up: watch::channel(false).0,
            changing: watch::channel(false).0,
            to_label: Mutex::default(),
            done: AtomicBool::new(false),
            acknowledged_rows: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            complaints: Mutex::default(),
        })
    }

    fn is_done(&self) -> bool {
        self.done.load(Relaxed)
    }

    fn acknowledged(&self, rows: u64) {
        self.acknowledged_rows.fetch_add(rows, Relaxed);
    }

    fn complain(&self, complaint: String) {
        self.complaints.lock().push(complaint);
    }
}

/// Makes rounds with one program.
pub struct Harness {
    program: PathBuf,
    kinds: Kinds,
    load: Duration,
}

impl Harness {
    /// `program` is the binary that is started and killed.
    ///
    /// # Errors
    /// The compute threads cannot be started.
    pub fn new(program: &Path, quick: bool) -> Result<Harness, Failure> {
        let config = Config::load(None, [], &[("compute.threads".to_owned(), THREADS.to_owned())])?;
        let load = if quick { LOAD_QUICK } else { LOAD };
        Ok(Harness { program: program.to_owned(), kinds: serve::kinds(&config)?, load })
    }

    /// Makes one round. What goes wrong in it is among its complaints.
    ///
    /// # Errors
    /// Nothing could be begun.
    pub fn round(&self, seed: u64, number: u64) -> Result<Round, Failure> {
        let began = Instant::now();
        let folder = std::env::temp_dir().join(format!("mustela-crash-{seed}-{number}-{}", Uuid::new_v4()));
        let script = Script::new(seed, number, self.load);
        let ground = Arc::new(Ground::new(&self.program, script, Folder::new(folder.clone())?)?);
        let mut round = Round { seed, round: number, ..Round::default() };
        let lived = crate::cli::runtime()?.block_on(async {
            let lived = live(&ground, self.load, &mut round.kills);
            tokio::time::timeout(ROUND, lived).await.unwrap_or_else(|_| Err("the round did not end".into()))
        });
        let checked = lived.and_then(|told| {
            round.posts = told.posts.len() as u64;
            round.given_up = told.posts.iter().filter(|post| post.place.is_none()).count() as u64;
            round.label_posts = told.labels.len() as u64;
            check::folder(&ground.folder.data(), &ground.script, &told, &self.kinds, &mut round.complaints)
        });
        match checked {
            Ok(found) => round.note(found),
            Err(failure) => round.complaints.push(failure.to_string()),
        }
        (round.acknowledged_rows, round.changes) = (ground.acknowledged_rows.load(Relaxed), ground.changes.load(Relaxed));
        round.complaints.append(&mut ground.complaints.lock());
        round.complaints.extend(check::messages(&std::fs::read_to_string(ground.folder.messages()).unwrap_or_default()));
        if round.complaints.is_empty() {
            std::fs::remove_dir_all(ground.folder.path())?;
        } else {
            round.kept = Some(folder);
        }
        round.seconds = began.elapsed().as_secs_f64();
        Ok(round)
    }
}

/// Runs the clients and the lives of the service; gives what the clients were told when the service has ended.
async fn live(ground: &Arc<Ground>, load: Duration, kills: &mut Vec<Killed>) -> Result<check::Told, Failure> {
    let mut posting = clients(ground, ground.script.clients, posts::client);
    let mut labelling = clients(ground, ground.script.labellers, labels::client);
    let of_changes = ground.clone();
    let mut changing = tokio::spawn(async move {
        changes::set_up(&of_changes).await?;
        of_changes.set_up.send_replace(true);
        changes::client(of_changes).await
    });
    for (life, kill) in ground.script.kills.iter().enumerate() {
        kills.push(lives::killed(ground, life, *kill).await?);
    }
    let server = lives::last(ground).await?;
    let mut set_up = ground.set_up.subscribe();
    tokio::select! {
        _ = set_up.wait_for(|set_up| *set_up) => {}
        ended = &mut changing => {
            ended??;
            return Err("streams and models were not made".into());
        }
    }
    tokio::time::sleep(load / 2).await;
    ground.done.store(true, Relaxed);
    let rates = changing.await??;
    let (posts, mut labels) = (all(&mut posting).await?, all(&mut labelling).await?);
    let posts = post_again(ground, posts).await?;
    label_again(ground, &mut labels).await?;
    let views = settle(ground).await?;
    lives::end(ground, server).await?;
    Ok(check::Told { posts, labels, rates, views })
}

/// Starts clients, which wait for the set-up.
fn clients<T: Send + 'static, C: Future<Output = Result<Vec<T>, Failure>> + Send + 'static>(
    ground: &Arc<Ground>,
    count: u64,
    client: fn(Arc<Ground>, u64) -> C,
) -> JoinSet<Result<Vec<T>, Failure>> {
    let mut clients = JoinSet::new();
    for number in 1..=count {
        let ground = ground.clone();
        clients.spawn(async move {
            // An error says that the set-up failed, which is told elsewhere.
            drop(ground.set_up.subscribe().wait_for(|set_up| *set_up).await);
            client(ground, number).await
        });
    }
    clients
}

/// What clients did, when they have ended.
async fn all<T: 'static>(clients: &mut JoinSet<Result<Vec<T>, Failure>>) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    while let Some(done) = clients.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}

/// Posts everything that was acknowledged once more, after the last crash.
async fn post_again(ground: &Arc<Ground>, posts: Vec<Post>) -> Result<Vec<Post>, Failure> {
    let share = posts.len().div_ceil(ground.script.clients as usize).max(1);
    let mut again = JoinSet::new();
    for posts in posts.chunks(share) {
        let (ground, mut posts) = (ground.clone(), posts.to_vec());
        again.spawn(async move {
            for post in posts.iter_mut().filter(|post| post.place.is_some()) {
                posts::again(&ground, post, Encoding::Identity).await?;
            }
            Ok::<_, Failure>(posts)
        });
    }
    all(&mut again).await
}

/// The same with labels.
async fn label_again(ground: &Ground, posts: &mut [LabelPost]) -> Result<(), Failure> {
    let shape = ground.script.shape(DELAYED).ok_or("there is no stream of late labels")?;
    for post in posts.iter_mut().filter(|post| post.taken.is_some()) {
        labels::again(ground, shape, post, Encoding::Identity).await?;
    }
    Ok(())
}

/// Waits until no model has a row to learn but for those whose labels are yet to come; gives what each says of itself.
async fn settle(ground: &Ground) -> Result<std::collections::BTreeMap<String, Value>, Failure> {
    let until = Instant::now() + SETTLE;
    loop {
        let listed = ground.door.must(&Request::get("/v1/models".into())).await?;
        let models = listed["data"].as_array().ok_or("no list of models")?;
        let waits = |model: &&Value| {
            model["lag_rows"] != 0
                || model["rows"]["waiting"] != model["rows"]["waiting_for_label"]
                || !model["failure"].is_null()
        };
        match models.iter().find(waits) {
            None => {
                let named = |model: &Value| Some((model["id"].as_str()?.to_owned(), model.clone()));
                return Ok(models.iter().filter_map(named).collect());
            }
            Some(model) if !model["failure"].is_null() => {
                return Err(format!("model {} stands still: {}", model["id"], model["failure"]).into());
            }
            Some(model) if Instant::now() > until => return Err(format!("rows still wait: {model}").into()),
            Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut rounds = read(&arguments.state, arguments.seed)?;
    let harness = Harness::new(&std::env::current_exe()?, arguments.quick)?;
    let mut state = std::fs::OpenOptions::new().create(true).append(true).open(&arguments.state)?;
    for number in (0..arguments.rounds).filter(|number| !rounds.iter().any(|round| round.round == *number)).collect::<Vec<_>>() {
        let round = harness.round(arguments.seed, number)?;
        state.write_all(format!("{}\n", serde_json::to_string(&round)?).as_bytes())?;
        if !arguments.json {
            tell::round(&round);
        }
        rounds.push(round);
    }
    rounds.retain(|round| round.round < arguments.rounds);
    tell::all(&rounds, arguments.json)
}

/// The rounds of a state file; none where there is no file. A last line that was cut short is taken off it.
fn read(state: &Path, seed: u64) -> Result<Vec<Round>, Failure> {
    let text = match std::fs::read_to_string(state) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        std::fs::OpenOptions::new().write(true).open(state)?.set_len(whole as u64)?;
    }
    let rounds: Vec<Round> = text[..whole].lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    match rounds.iter().find(|round| round.seed != seed) {
        Some(other) => Err(format!("{} holds rounds of seed {}", state.display(), other.seed).into()),
        None => Ok(rounds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_was_cut_short_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.jsonl");
        assert!(read(&state, 1).unwrap().is_empty());
        let line = r#"{"seed":1,"round":7,"kills":[],"posts":1,"given_up":0,"acknowledged_rows":2,"logged_rows":2,"models":1,
            "decisions":1,"skipped_rows":0,"changes":0,"seconds":1.5,"complaints":[],"kept":null}"#;
        let text = format!("{}\n{{\"seed\":1,", line.replace('\n', ""));
        std::fs::OpenOptions::new().create_new(true).write(true).open(&state).unwrap().write_all(text.as_bytes()).unwrap();
        for _ in 0..2 {
            assert_eq!(read(&state, 1).unwrap().iter().map(|round| round.round).collect::<Vec<_>>(), [7]);
        }
        assert!(read(&state, 2).unwrap_err().to_string().contains("seed 1"));
    }
}
