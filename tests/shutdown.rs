//! Promise 7: readiness goes false, doors refuse with 503, acknowledgements finish, a checkpoint is written, exit 0.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::time::Duration;

use reqwest::Method;
use support::{Process, points, points_model, points_schema};

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing_and_ends_with_zero() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[("checkpoint.interval_rows", "1000000")]);
    let client = process.client.clone();
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.get("/v2/health/ready").await.expect(200);

    let mut posting = tokio::task::JoinSet::new();
    for poster in 0..4 {
        let client = client.clone();
        posting.spawn(async move {
            let (mut acknowledged, mut refused) = (0, 0);
            for batch in 0.. {
                let body = points(poster * 1000 + batch * 10, 10).to_string();
                let headers = [("content-type", "application/json")];
                match client.try_send(Method::POST, "/v1/streams/points/batches", &headers, body).await {
                    Ok(answer) if answer.status == 202 => acknowledged += 10,
                    Ok(answer) => {
                        answer.expect_problem(503, "draining");
                        refused += 1;
                    }
                    // The listener is closed.
                    Err(_) => return (acknowledged, refused),
                }
            }
            unreachable!()
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ended = tokio::task::spawn_blocking(|| process.terminate());
    let mut ready = 200;
    while let Ok(answer) = client.try_send(Method::GET, "/v2/health/ready", &[], "").await {
        ready = answer.status;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ready, 503, "readiness goes false before the door closes");
    let (mut acknowledged, mut refused) = (0, 0);
    while let Some(posted) = posting.join_next().await {
        let (taken, turned_away) = posted.unwrap();
        acknowledged += taken;
        refused += turned_away;
    }
    assert_eq!(ended.await.unwrap(), Some(0));
    assert!(refused > 0, "doors answer 503 while they drain");

    let process = Process::start(folder.path(), &[]);
    let view = process.client.get("/v1/models/m").await.expect(200);
    let checkpoint: u64 = view["checkpoint"]["version"].as_str().unwrap().strip_prefix("0.").unwrap().parse().unwrap();
    assert!(checkpoint > 0, "a checkpoint was written at the end: {view}");
    let view = process.client.settled("m").await;
    // Whoever was cut off without an answer may have been taken all the same; whoever got an answer was.
    let learned = view["rows"]["learned"].as_u64().unwrap();
    assert!(learned >= acknowledged && learned <= acknowledged + 40, "{learned} learned, {acknowledged} acknowledged");
}
