//! What a service says of a batch's way: one flat object a line, and the numbers of its rows from the door to the checkpoint.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{Read, Seek};
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};
use support::{IN_ORDER, Process, points, points_model, points_schema};

/// The messages of a service, in the order in which they were written.
struct Lines(Vec<Value>);

impl Lines {
    /// The places of those with this message and these fields.
    fn places(&self, message: &str, fields: &Value) -> Vec<usize> {
        let has = |line: &Value| fields.as_object().unwrap().iter().all(|(name, value)| line[name] == *value);
        let lines = self.0.iter().enumerate().filter(|(_, line)| line["message"] == message && has(line));
        lines.map(|(place, _)| place).collect()
    }

    /// The place of the only one.
    #[track_caller]
    fn place(&self, message: &str, fields: &Value) -> usize {
        let places = self.places(message, fields);
        assert_eq!(places.len(), 1, "{message} {fields}, of\n{:#?}", self.0);
        places[0]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_found_by_its_numbers_from_the_door_to_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut messages = tempfile::tempfile().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mustela"));
    command.env("MUSTELA_LOG", "mustela=debug").stderr(messages.try_clone().unwrap());
    let process = Process::start_by(command, folder.path(), &[IN_ORDER, ("checkpoint.interval_seconds", "3600")]);
    let client = process.client.clone();
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.post_json("/v1/streams/points/batches", &points(0, 40)).await.expect(202);
    let headers = [("content-type", "application/json"), ("x-request-id", "the batch")];
    let batch = points(40, 64).to_string();
    client.send(Method::POST, "/v1/streams/points/batches", &headers, batch).await.expect(202);
    client.settled("m").await;
    client.patch("/v1/models/m", &json!({ "learning_rate": 0.01 })).await.expect(200);
    client.put("/v1/models/m/memory-budget", &json!({ "budget": "4MiB" })).await.expect(200);
    client.post_json("/v1/models/m/predict", &json!({ "rows": [{ "x": 1, "y": 2 }] })).await.expect(200);
    assert_eq!(process.terminate(), Some(0));

    let mut text = String::new();
    messages.rewind().unwrap();
    messages.read_to_string(&mut text).unwrap();
    for line in text.lines() {
        assert!(line.starts_with(r#"{"timestamp":"#) && line.contains(r#","level":""#), "{line}");
        assert!(line.contains(r#","target":"mustela"#), "{line}");
    }
    let lines = Lines(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());

    let rows = json!({ "first_sequence": 41, "sequence": 104 });
    let with = |more: Value| {
        let mut fields = rows.clone();
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    let read = lines.place("a post is read", &json!({ "request_id": "the batch", "rows": 64, "stream": "points" }));
    let durable = lines.place("a post is durable", &with(json!({ "request_id": "the batch", "replayed": false })));
    let route = "/v1/streams/{stream}/batches";
    let answered = lines.place(
        "a request is answered",
        &with(json!({ "request_id": "the batch", "method": "POST", "route": route, "status": 202, "span": "request" })),
    );
    assert!(read < durable && durable < answered);

    // Steps end with their records: those of the batch are of no other.
    let steps: Vec<usize> = lines.places("a step has ended", &json!({ "model": "m", "verdict": "learned" }));
    let steps: Vec<(usize, &Value)> = steps.into_iter().map(|place| (place, &lines.0[place])).collect();
    let mut next = 1;
    for (ordinal, (_, step)) in steps.iter().enumerate() {
        assert_eq!((&step["ordinal"], &step["first_sequence"]), (&json!(ordinal), &json!(next)), "{step}");
        assert!(step["loss"].as_f64().is_some_and(|loss| loss > 0.0), "{step}");
        next = step["sequence"].as_u64().unwrap() + 1;
    }
    assert_eq!(next, 105, "every row is in one step");
    let of_batch: Vec<usize> = steps.iter().filter(|(_, step)| step["sequence"].as_u64() > Some(40)).map(|step| step.0).collect();
    let last = of_batch.last().copied().unwrap();
    assert!(durable < of_batch[0] && lines.0[last]["sequence"] == 104);

    let kept = lines.places("a checkpoint is durable", &json!({ "model": "m", "sequence": 104, "span": "checkpoint" }));
    assert!(kept.first().is_some_and(|&kept| last < kept), "{kept:?}");
    let decided = lines.place("a decision is followed", &json!({ "decision": "learning_rate", "sequence": 104 }));
    assert!(last < decided);
    let planned = lines.places("another plan is followed", &json!({ "level": "INFO", "sequence": 104, "span": "decision" }));
    assert!(planned.last().is_some_and(|&planned| decided < planned), "{planned:?}");
    lines.place("a request is answered", &json!({ "route": "/v1/models/{model}/predict", "sequence": 104, "status": 200 }));
}
