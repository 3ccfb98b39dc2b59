//! `mustela verify`: says that checkpoints are what the log gives, and says it when they are not.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{IN_ORDER, Process, points, points_model, points_schema};

/// Exit status and what was printed.
fn verify(folder: &Path, flags: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mustela")).arg("verify").arg(folder).args(flags).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

/// A folder in which two models have learned, skipped, followed other plans, and have two checkpoints each.
async fn lived(folder: &Path, retain_bytes: &str) {
    let settings = [("checkpoint.interval_rows", "100"), ("log.retain_bytes", retain_bytes), IN_ORDER];
    let process = Process::start(folder, &settings);
    let client = &process.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    let mut schema = points_schema();
    schema["row_id"] = json!("id");
    schema["late_labels"] = json!({ "window_rows": 90 });
    client.put("/v1/streams/late", &schema).await.expect(201);
    let mut skipping = points_model("points");
    skipping["overload"] = json!({ "policy": "random_n", "window_rows": 60, "keep_rows": 25 });
    let mut other = points_model("points");
    other["seed"] = json!(7);
    for (name, model) in [("one", points_model("points")), ("other", other), ("skips", skipping), ("late", points_model("late"))]
    {
        client.put(&format!("/v1/models/{name}"), &model).await.expect(201);
    }
    for number in 0..8 {
        client.post_json("/v1/streams/points/batches", &points(number * 70, 70)).await.expect(202);
        let mut rows = points(number * 30, 30);
        for (place, row) in rows["rows"].as_array_mut().unwrap().iter_mut().enumerate() {
            row["id"] = json!(number * 30 + place);
            row.as_object_mut().unwrap().remove("label");
        }
        client.post_json("/v1/streams/late/batches", &rows).await.expect(202);
        let labels: Vec<Value> = (0..number * 30).step_by(4).map(|id| json!({ "id": id, "label": "south" })).collect();
        if !labels.is_empty() {
            client.post_json("/v1/streams/late/labels", &json!({ "rows": labels })).await.expect(202);
        }
        for model in ["one", "other", "skips", "late"] {
            client.caught_up(model).await;
        }
        let rate = json!({ "learning_rate": 0.01 + 0.01 * number as f64 });
        client.patch("/v1/models/one", &rate).await.expect(200);
    }
    assert_eq!(process.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_what_the_log_gives() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path(), "1000000000").await;
    let (status, said) = verify(folder.path(), &[]);
    assert_eq!(status, 0, "{said}");
    for line in ["model one of stream points: folded from 0.0 to 0.560, with 9 decisions", "model late of stream late: folded"] {
        assert!(said.contains(line), "{said}");
    }
    assert_eq!(said.matches("is what the log gives").count(), 8, "{said}");
    let (status, said) = verify(folder.path(), &["--model", "skips", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, &said["models"][0]["found"]["checkpoints"][1]["finding"]), (0, &json!("same")), "{said}");
    assert_eq!(said["models"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_log_has_forgotten_rows_it_begins_at_the_older_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path(), "0").await;
    let (status, said) = verify(folder.path(), &[]);
    assert_eq!(status, 0, "{said}");
    assert_eq!(said.matches("is where the fold began").count(), 4, "{said}");
    assert_eq!(said.matches("is what the log gives").count(), 4, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_checkpoint_of_another_state_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    lived(folder.path(), "1000000000").await;
    // Models one and other are alike but for their seeds, and each file is what its manifest says.
    let at = |name: &str| folder.path().join("models").join(name);
    for (from, to) in [("1", "x"), ("2", "1"), ("x", "2")] {
        std::fs::rename(at(from), at(to)).unwrap();
    }
    let (status, said) = verify(folder.path(), &[]);
    assert_eq!(status, 65, "{said}");
    // That of the third model is as it was, and so are those of the fourth.
    assert!(said.contains("DIFFERS: it holds") || said.contains("to which the log does not come"), "{said}");
    assert_eq!(said.matches("is what the log gives").count(), 4, "{said}");
    // A file that is altered is broken, and the others are compared all the same.
    let file = std::fs::read_dir(at("3"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|of| of == "safetensors"));
    let file = file.unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&file).unwrap();
    std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
        .unwrap();
    let (status, said) = verify(folder.path(), &["--model", "skips"]);
    assert_eq!(status, 65, "{said}");
    assert_eq!((said.matches("is BROKEN").count(), said.matches("is what the log gives").count()), (1, 1), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_verified_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (status, said) = verify(folder.path(), &[]);
    assert!(status == 1 && said.contains("is no data folder"), "{said}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made");
    let process = Process::start(folder.path(), &[]);
    let (status, said) = verify(folder.path(), &[]);
    assert!(status == 1 && said.contains("another process"), "{said}");
    assert_eq!(process.terminate(), Some(0));
    let (status, said) = verify(folder.path(), &["--model", "none"]);
    assert!(status == 1 && said.contains("there is no model `none`"), "{said}");
    assert_eq!(verify(folder.path(), &[]).0, 0);
}
