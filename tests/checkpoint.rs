//! Promise 6, its first tests: a checkpoint whose bytes are wrong is never served; the one before it and the log take over.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::{Process, points, points_model, points_schema};

/// Every 100 rows, so that two are kept.
const SETTINGS: [(&str, &str); 1] = [("checkpoint.interval_rows", "100")];

/// A data folder with 500 learned rows and two checkpoints; and the hash of the state.
async fn learned(folder: &Path) -> String {
    let process = Process::start(folder, &SETTINGS);
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    process.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    for batch in 0..25 {
        process.client.post_json("/v1/streams/points/batches", &points(batch * 20, 20)).await.expect(202);
    }
    process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &SETTINGS);
    let view = process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    view["checkpoint"]["state_hash"].as_str().unwrap().to_owned()
}

/// The kept checkpoints, oldest first.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("models/1")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    // Named by version and decisions: 0.400-1.
    let rows = |path: &PathBuf| path.file_stem()?.to_str()?.split_once('.')?.1.split_once('-')?.0.parse::<u64>().ok();
    files.sort_by_key(|path| rows(path).unwrap());
    files
}

fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    #[allow(clippy::disallowed_methods)]
    std::fs::write(path, bytes).unwrap();
}

/// Starts the service on what is left, and gives the hash of the state that it ends with.
async fn recovered(folder: &Path) -> String {
    let process = Process::start(folder, &[]);
    let view = process.client.settled("m").await;
    assert_eq!((&view["version"], &view["rows"]["learned"]), (&"0.500".into(), &500.into()));
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &[]);
    let view = process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    view["checkpoint"]["state_hash"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_before_and_the_log_take_over() {
    let folder = tempfile::tempdir().unwrap();
    let hash = learned(folder.path()).await;
    let kept = files(folder.path());
    assert_eq!(kept.len(), 2, "{kept:?}");
    overwrite(&kept[1], |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    assert_eq!(recovered(folder.path()).await, hash);
    // Both gone: the log still has everything.
    for (number, file) in files(folder.path()).iter().enumerate() {
        if number == 0 { overwrite(file, |bytes| bytes.truncate(100)) } else { std::fs::remove_file(file).unwrap() }
    }
    assert_eq!(recovered(folder.path()).await, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_in_a_checkpoint_in_time_though_no_row_comes() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[("checkpoint.interval_seconds", "1")]);
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    process.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    process.client.post_json("/v1/streams/points/batches?wait=applied", &points(0, 20)).await.expect(200);
    process.client.patch("/v1/models/m", &json!({ "learning_rate": 0.01 })).await.expect(200);
    let is_there = || files(folder.path()).iter().any(|file| file.ends_with("0.20-2.safetensors"));
    for _ in 0..3000 {
        if is_there() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(is_there(), "the plan and the learning rate: {:?}", files(folder.path()));
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_manifest_is_read_from_its_copy() {
    let folder = tempfile::tempdir().unwrap();
    let hash = learned(folder.path()).await;
    overwrite(&folder.path().join("models/1/manifest.json"), |bytes| bytes[30] ^= 1);
    assert_eq!(recovered(folder.path()).await, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_come_back_stands_still_and_the_others_do_not() {
    let folder = tempfile::tempdir().unwrap();
    learned(folder.path()).await;
    let process = Process::start(folder.path(), &SETTINGS);
    process.client.put("/v1/models/other", &points_model("points")).await.expect(201);
    process.client.settled("other").await;
    assert_eq!(process.terminate(), Some(0));
    // A checkpoint of another data folder: whole, and not this model's.
    let log = folder.path().join("log.redb");
    let elsewhere = tempfile::tempdir().unwrap();
    learned(elsewhere.path()).await;
    for file in std::fs::read_dir(elsewhere.path().join("models/1")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join("models/1").join(file.file_name())).unwrap();
    }
    assert!(log.exists());
    let process = Process::start(folder.path(), &[]);
    let view = process.client.get("/v1/models/m").await.expect(200);
    assert_eq!(view["status"], "failed");
    assert!(view["failure"].as_str().unwrap().contains("data folder"), "{view}");
    let row = serde_json::json!({ "rows": [{ "x": 1, "y": 2 }] });
    process.client.post_json("/v1/models/m/predict", &row).await.expect_problem(503, "model_failed");
    let budget = serde_json::json!({ "budget": null });
    process.client.put("/v1/models/m/memory-budget", &budget).await.expect_problem(409, "model_failed");
    process.client.post_json("/v1/models/other/predict", &row).await.expect(200);
    let wait = "/v1/streams/points/batches?wait=applied&model=";
    let answer = process.client.post_json(&format!("{wait}m"), &points(0, 10)).await.expect(202);
    assert_eq!(answer["applied"], false);
    process.client.post_json(&format!("{wait}other"), &points(0, 10)).await.expect(200);
    process.client.delete("/v1/models/m").await.expect(204);
    process.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    assert_eq!(process.client.settled("m").await["rows"]["learned"], 520);
    assert_eq!(process.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_says_what_is_whole_and_what_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let hash = learned(folder.path()).await;
    let inspect = || {
        let of = folder.path().join("models/1");
        let output =
            Command::new(env!("CARGO_BIN_EXE_mustela")).args(["checkpoint", "inspect", "--tensors"]).arg(of).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (whole, said) = inspect();
    assert!(whole, "{said}");
    for word in [hash.as_str(), "0.500", "1.linear.weight", "0.standardise.mean", "1.linear.bias.momentum"] {
        assert!(said.contains(word), "{word} is not in\n{said}");
    }
    overwrite(&files(folder.path())[1], |bytes| bytes[20] ^= 1);
    let (whole, said) = inspect();
    assert!(!whole && said.contains("BROKEN"), "{said}");
}
