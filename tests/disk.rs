//! Disks that fill up, fail or cannot be written: nothing that was acknowledged is lost, and whoever cannot go on says why, with an exit
//! status of its own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mustela::cli::serve::{self, Service};
use mustela::disk::{Disk, FileSystem, sync_failure};
use mustela::shutdown;
use parking_lot::Mutex;
use redb::{Builder, Database, DatabaseError};
use reqwest::Method;
use support::{
    IN_ORDER, Process, Refused, Running, bars, config, copy_folder, newest_checkpoint, points, points_model, points_schema,
};

const BATCHES: &str = "/v1/streams/points/batches";

/// How a disk is, for everything but the log.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Good,
    /// Nothing more fits.
    Full,
    /// Syncs fail.
    Failing,
}

/// A disk that is as it is told to be.
#[derive(Clone, Debug)]
struct Told(Arc<Mutex<State>>);

impl Told {
    fn new(state: State) -> Told {
        Told(Arc::new(Mutex::new(state)))
    }

    fn set(&self, state: State) {
        *self.0.lock() = state;
    }
}

impl Disk for Told {
    fn open_database(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        FileSystem.open_database(builder, path)
    }
    fn write_atomic(&self, path: &Path, write: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
        match *self.0.lock() {
            State::Good => FileSystem.write_atomic(path, write),
            // Full in the middle of the file: the old one stays.
            State::Full => FileSystem.write_atomic(path, &mut |out| {
                out.write_all(b"a part")?;
                Err(io::ErrorKind::StorageFull.into())
            }),
            State::Failing => Err(sync_failure(path, &io::Error::other("the medium is worn out"))),
        }
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        FileSystem.read(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        FileSystem.list(folder)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }
    fn remove_dir(&self, folder: &Path) -> io::Result<()> {
        FileSystem.remove_dir(folder)
    }
    fn create_dir_all(&self, folder: &Path) -> io::Result<()> {
        FileSystem.create_dir_all(folder)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_a_checkpoint_is_tried_again_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [("checkpoint.interval_rows", "50"), IN_ORDER];
    let disk = Told::new(State::Good);
    let running = Running::on(config(folder.path(), &settings), Arc::new(disk.clone())).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    let post = async |batch: usize| {
        client.post_json(&format!("{BATCHES}?wait=applied"), &points(batch * 20, 20)).await.expect(200);
    };
    for batch in 0..5 {
        post(batch).await;
    }
    client.settled("m").await;
    let before = newest_checkpoint(folder.path());
    disk.set(State::Full);
    for batch in 5..15 {
        post(batch).await;
    }
    let view = client.settled("m").await;
    assert_eq!((&view["version"], &view["failure"]), (&"0.300".into(), &serde_json::Value::Null));
    assert_eq!(newest_checkpoint(folder.path()), before, "what was there is still there");
    // As if the process ended now: the log has it all.
    let copy = tempfile::tempdir().unwrap();
    copy_folder(folder.path(), copy.path());
    disk.set(State::Good);
    let began = Instant::now();
    while newest_checkpoint(folder.path()) == before {
        assert!(began.elapsed() < Duration::from_secs(30), "no checkpoint was tried again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.stop().await;
    let end = newest_checkpoint(folder.path());
    assert_eq!(end.0, "0.300");
    let process = Process::start(copy.path(), &settings);
    assert_eq!(process.client.settled("m").await["rows"]["learned"], 300);
    assert_eq!(process.terminate(), Some(0));
    assert_eq!(newest_checkpoint(copy.path()), end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_an_adoption_decides_nothing_and_is_tried_again_by_whoever_asked() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Told::new(State::Good);
    let running = Running::on(config(folder.path(), &[]), Arc::new(disk.clone())).await;
    let client = &running.client;
    bars::network(client).await;
    disk.set(State::Full);
    client.put("/v1/detectors/d", &bars::spec()).await.expect_problem(503, "storage");
    client.get("/v1/models/d").await.expect_problem(404, "not_found");
    client.get("/v1/streams/d").await.expect_problem(404, "not_found");
    disk.set(State::Good);
    client.put("/v1/detectors/d", &bars::spec()).await.expect(201);
    let taught = bars::teach(client, 0..90).await;
    bars::learn(client, 64..128).await;
    disk.set(State::Full);
    let adopt = async || client.post("/v1/detectors/d/adopt", "application/json", "").await;
    adopt().await.expect_problem(503, "storage");
    let view = client.get("/v1/detectors/d").await.expect(200);
    assert_eq!((&view["direction"], &view["adopted"]), (&taught["direction"], &taught["adopted"]), "the former one goes on");
    client.post_json("/v1/detectors/d/detect", &bars::asked(&[(500, false)])).await.expect(200);
    disk.set(State::Good);
    assert_eq!(adopt().await.expect(200)["adopted"]["version"], bars::version_of_m(client).await);
    running.stop().await;
}

/// The service of the test below, on a disk whose syncs fail once it is told so by a file.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the child process of another test"]
async fn child() {
    let folder = support::child_folder();
    let (_trigger, shutdown) = shutdown::channel();
    let config = config(&folder, &[("checkpoint.interval_rows", "50")]);
    let (disk, kinds) = (Told::new(State::Good), serve::kinds(&config).unwrap());
    let service = Service::start(config, Arc::new(disk.clone()), kinds, shutdown).await.unwrap();
    support::child_is_open(&folder, &support::Client::new(format!("http://{}", service.address)));
    while !folder.join("fail").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    disk.set(State::Failing);
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_synced_ends_the_process_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = support::spawn_test("child", folder.path());
    let client = support::child_client(folder.path(), &mut process).await.unwrap();
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.post_json(BATCHES, &points(0, 120)).await.expect(202);
    client.settled("m").await;
    FileSystem.write_atomic(&folder.path().join("fail"), &mut |_| Ok(())).unwrap();
    let began = Instant::now();
    let (mut acknowledged, mut status) = (120, None);
    while status.is_none() {
        assert!(began.elapsed() < Duration::from_secs(30), "it goes on over a disk that lost what it was given");
        let body = points(acknowledged, 20).to_string();
        let headers = [("content-type", "application/json")];
        if client.try_send(Method::POST, BATCHES, &headers, body).await.is_ok_and(|answer| answer.status == 202) {
            acknowledged += 20;
        }
        status = process.try_wait().unwrap();
    }
    assert_eq!(status.unwrap().code(), Some(74));
    let process = Process::start(folder.path(), &[]);
    let rows = process.client.settled("m").await["rows"].clone();
    assert!(rows["learned"].as_u64().unwrap() >= acknowledged as u64, "{rows} of {acknowledged}");
    assert_eq!(process.terminate(), Some(0));
}

/// The service under a limit of the size of its files, which it meets as it would a full disk.
fn with_little_disk(kib: u32) -> Command {
    let mut command = Command::new("bash");
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_mustela"));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_at_the_log_ends_the_process_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::attempt_by(with_little_disk(700), folder.path(), &[]).unwrap();
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut acknowledged = 0;
    let headers = [("content-type", "application/json")];
    for batch in 0.. {
        let body = points(batch * 500, 500).to_string();
        match process.client.try_send(Method::POST, BATCHES, &headers, body).await {
            Ok(answer) if answer.status == 202 => acknowledged += 500,
            Ok(answer) => {
                answer.expect_problem(503, "storage");
                break;
            }
            // The process has ended before it could answer.
            Err(_) => break,
        }
        assert!(acknowledged < 1_000_000, "the disk is never full");
    }
    assert_eq!(process.child.wait().unwrap().code(), Some(74));
    assert!(acknowledged > 0);
    let process = Process::start(folder.path(), &[]);
    let stream = process.client.get("/v1/streams/points").await.expect(200);
    let kept = stream["sequence"].as_u64().unwrap();
    assert!(kept == acknowledged || kept == acknowledged + 500, "{acknowledged} acknowledged, {kept} kept");
    process.client.post_json(BATCHES, &points(0, 500)).await.expect(202);
    assert_eq!(process.terminate(), Some(0));
}

/// Holds a start to be refused, with this exit status and these words.
#[track_caller]
fn refused(folder: &Path, status: i32, words: &[&str]) {
    match Process::attempt(folder, &[]) {
        Ok(_) => panic!("it started"),
        Err(Refused { status: ended, said }) => {
            assert_eq!(ended, Some(status), "{said}");
            assert!(!said.contains("panicked"), "{said}");
            for word in words {
                assert!(said.contains(word), "`{word}` is not in {said}");
            }
        }
    }
}

#[test]
fn a_folder_that_cannot_be_used_is_named_and_the_exit_status_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    // No folder: a file is in the way.
    let file = folder.path().join("file");
    FileSystem.write_atomic(&file, &mut |out| out.write_all(b"in the way")).unwrap();
    refused(&file.join("data"), 74, &[name, "cannot be used"]);
    // No file: a folder is in the way.
    std::fs::create_dir_all(folder.path().join("other/log.redb")).unwrap();
    refused(&folder.path().join("other"), 74, &["log.redb"]);
    // Nothing can be made in it; to the superuser nothing is read-only that is not mounted so.
    refused(Path::new("/proc/self/fdinfo"), 74, &["/proc/self/fdinfo", "log.redb"]);
    // Another service has it.
    let data = folder.path().join("data");
    let process = Process::start(&data, &[]);
    refused(&data, 75, &["another process", name]);
    assert_eq!(process.terminate(), Some(0));
    // A file of another program.
    support::overwrite(&data.join("log.redb"), |bytes| *bytes = vec![b'x'; 100_000]);
    refused(&data, 65, &["log.redb", "damaged"]);
    // Its help says all of this.
    let help = Command::new(env!("CARGO_BIN_EXE_mustela")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for status in ["  0  ", " 64  ", " 65  ", " 74  ", " 75  ", "  1  "] {
        assert!(help.contains(status), "{status} is not in {help}");
    }
}
