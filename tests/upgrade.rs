//! A data folder from before: what an earlier version wrote opens in this one with its rows, decisions and state, and what a later one
//! wrote is refused before anything of it is changed.
//!
//! `tests/fixtures/folder-1` is such a folder, with what has to come of it beside it in `folder-1.json`; the ignored test
//! `write_the_fixture` made both. A fixture is never made anew for a format that has one: a new format gets a new folder.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};

use mustela::disk::{Disk, FileSystem};
use mustela::stream::log::{Log, Options, RedbLog};
use redb::{Database, TableDefinition};
use serde_json::{Value, json};
use support::{IN_ORDER, Process, Refused, copy_folder, newest_checkpoint, overwrite, points, points_model, points_schema};

const BATCHES: &str = "/v1/streams/points/batches";
const SETTINGS: [(&str, &str); 2] = [("checkpoint.interval_rows", "100"), IN_ORDER];
const SEQUENCE: u64 = 280;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A copy of the fixture that a test may change.
fn folder() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join("folder-1"), copy.path());
    copy
}

async fn send(process: &Process, batch: usize) -> support::Answer {
    let key = format!("batch {batch}");
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    process.client.send(reqwest::Method::POST, BATCHES, &headers, points(batch * 20, 20).to_string()).await
}

/// What the log says beside the rows.
fn logged(folder: &Path) -> Value {
    let log = RedbLog::open(&FileSystem, folder, &Options { cache_bytes: 1 << 20, check_bytes_max: u64::MAX }).unwrap();
    let decisions = log.decisions(1).unwrap();
    let texts = decisions.iter().map(|bytes| String::from_utf8_lossy(&bytes[9..]).into_owned());
    json!({ "folder": log.identity(), "decisions": texts.collect::<Vec<_>>(), "bounds": log.bounds(1).unwrap() })
}

/// What folded the newest checkpoint, by its own words.
fn identity(folder: &Path) -> String {
    let inspect = ["checkpoint", "inspect"];
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mustela"));
    let output = command.args(inspect).arg(folder.join("models/1")).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().filter_map(|line| line.trim().strip_prefix("fold ")).next_back();
    line.unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes tests/fixtures/folder-1 anew"]
async fn write_the_fixture() {
    let folder = fixtures().join("folder-1");
    FileSystem.remove_dir(&folder).unwrap();
    let process = Process::start(&folder, &SETTINGS);
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    process.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    for batch in 0..8 {
        send(&process, batch).await.expect(202);
    }
    process.client.settled("m").await;
    process.client.patch("/v1/models/m", &json!({ "learning_rate": 0.02 })).await.expect(200);
    for batch in 8..11 {
        send(&process, batch).await.expect(202);
    }
    process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    // Rows and a decision after the newest checkpoint.
    let process = Process::start(&folder, &[IN_ORDER]);
    send(&process, 11).await.expect(202);
    process.client.settled("m").await;
    process.client.patch("/v1/models/m", &json!({ "learning_rate": 0.01 })).await.expect(200);
    for batch in 12..14 {
        send(&process, batch).await.expect(202);
    }
    process.kill();

    let copy = tempfile::tempdir().unwrap();
    copy_folder(&folder, copy.path());
    let process = Process::start(copy.path(), &SETTINGS);
    let view = process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    let (version, state_hash) = newest_checkpoint(copy.path());
    let wanted = json!({
        "identity": identity(&folder),
        "log": logged(copy.path()),
        "version": version,
        "rows": view["rows"],
        "learning_rate": view["learning_rate"],
        "state_hash": state_hash,
    });
    let text = serde_json::to_string_pretty(&wanted).unwrap();
    FileSystem.write_atomic(&fixtures().join("folder-1.json"), &mut |out| out.write_all(text.as_bytes())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_format_1_opens_with_all_that_is_in_it() {
    let wanted: Value = serde_json::from_slice(&FileSystem.read(&fixtures().join("folder-1.json")).unwrap()).unwrap();
    let folder = folder();
    let written_by = identity(folder.path());
    assert_eq!(wanted["identity"], written_by);
    let process = Process::start(folder.path(), &SETTINGS);
    // Rows and their keys.
    let stream = process.client.get("/v1/streams/points").await.expect(200);
    assert_eq!((&stream["first_sequence"], &stream["sequence"]), (&json!(1), &json!(SEQUENCE)));
    assert_eq!(stream["schema"]["fields"], points_schema()["fields"]);
    for batch in [0, 13] {
        let again = send(&process, batch).await;
        assert_eq!(again.headers["idempotent-replayed"], "true");
        assert_eq!(again.expect(202)["first_sequence"], batch * 20 + 1);
    }
    let view = process.client.get("/v1/models/m").await.expect(200);
    let Some(failure) = view["failure"].as_str() else {
        // Bits are the same where all that they depend on is.
        let view = process.client.settled("m").await;
        says(&view, &wanted);
        assert_eq!(process.terminate(), Some(0));
        assert_eq!(newest_checkpoint(folder.path()), (wanted["version"].clone(), wanted["state_hash"].as_str().unwrap().into()));
        assert_eq!(identity(folder.path()), written_by, "one that differs is refused");
        assert_eq!(logged(folder.path()), wanted["log"]);
        return;
    };
    // On another machine they would not be: the model says whose they were, and whose they would be.
    assert!(failure.contains(&format!("folded by [{written_by}]")) && failure.contains("this process is ["), "{failure}");
    assert!(!failure.contains(&format!("this process is [{written_by}]")), "{failure}");
    assert_eq!(process.terminate(), Some(0));
    assert_eq!(logged(folder.path()), wanted["log"]);
    // Without the checkpoints the log gives it anew, in this machine's bits.
    FileSystem.remove_dir(&folder.path().join("models/1")).unwrap();
    let process = Process::start(folder.path(), &SETTINGS);
    let view = process.client.settled("m").await;
    says(&view, &wanted);
    assert_eq!(process.terminate(), Some(0));
}

/// Holds a model's view to what the folder's writer saw; a later version may say more.
#[track_caller]
fn says(view: &Value, wanted: &Value) {
    assert_eq!(view["learning_rate"], wanted["learning_rate"]);
    for (name, rows) in wanted["rows"].as_object().unwrap() {
        assert_eq!(&view["rows"][name], rows, "{name}");
    }
}

/// Holds a folder to be refused as a later version's, and left as it is.
#[track_caller]
fn refused_as_later(folder: &Path, words: &[&str]) {
    let files = || {
        let entries = std::fs::read_dir(folder.join("models/1")).unwrap();
        let mut files: Vec<_> =
            entries.map(|entry| entry.unwrap().path()).map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.sort();
        files
    };
    let before = files();
    match Process::attempt(folder, &SETTINGS) {
        Ok(_) => panic!("it started"),
        Err(Refused { status, said }) => {
            assert_eq!(status, Some(65), "{said}");
            for word in words.iter().chain(&["open it with the binary that wrote it"]) {
                assert!(said.contains(word), "`{word}` is not in {said}");
            }
        }
    }
    assert_eq!(files(), before);
}

#[test]
fn a_log_of_a_later_version_is_refused() {
    let folder = folder();
    let database = Database::open(folder.path().join("log.redb")).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(TableDefinition::<&str, &str>::new("header")).unwrap().insert("version", "2").unwrap();
    write.commit().unwrap();
    drop(database);
    refused_as_later(folder.path(), &["log.redb", "version 2", "version 1"]);
}

#[test]
fn a_manifest_of_a_later_version_is_refused() {
    let folder = folder();
    for name in ["manifest.json", "manifest.copy.json"] {
        overwrite(&folder.path().join("models/1").join(name), |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            let body = text.lines().next().unwrap().replace("\"format_version\":1", "\"format_version\":2,\"more\":[]");
            *bytes = format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex()).into_bytes();
        });
    }
    refused_as_later(folder.path(), &["models/1/manifest.json", "version 2", "reads 1"]);
}

#[test]
fn a_checkpoint_of_a_later_version_is_refused() {
    let folder = folder();
    let of = folder.path().join("models/1");
    let text = std::fs::read_to_string(of.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let newest = manifest["checkpoints"].as_array_mut().unwrap().last_mut().unwrap();
    let file = of.join(newest["file"].as_str().unwrap());
    let (old, new) = (br#""format_version":"1""#, br#""format_version":"2""#);
    overwrite(&file, |bytes| {
        let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
        bytes[at..at + new.len()].copy_from_slice(new);
    });
    newest["blake3"] = json!(blake3::hash(&std::fs::read(&file).unwrap()).to_hex().to_string());
    let body = manifest.to_string();
    for name in ["manifest.json", "manifest.copy.json"] {
        overwrite(&of.join(name), |bytes| *bytes = format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex()).into_bytes());
    }
    refused_as_later(folder.path(), &[file.file_name().unwrap().to_str().unwrap(), "version 2", "reads 1"]);
}
