//! The live page and what it lives by: its files are safe to open, the figures that are sent are those of the doors and of `/metrics`,
//! events are told once and in order, and nobody who watches holds up the service or its end.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mustela::limits::{EVENTS_KEPT, WATCHERS_MAX};
use serde_json::{Value, json};
use support::{Client, Process, Running, points, points_model, points_schema};

/// Somebody who watches.
struct Watching {
    response: reqwest::Response,
    text: String,
}

/// One server-sent event: its name, its id, its data.
type Told = (String, Option<u64>, Value);

impl Watching {
    async fn begin(client: &Client, query: &str, headers: &[(&str, &str)]) -> Watching {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = http.get(format!("{}/v1/events{query}", client.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Watching { response, text: String::new() }
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let lines: BTreeMap<&str, &str> = block.lines().filter_map(|line| line.split_once(": ")).collect();
                let told = lines.get("event").map(|event| {
                    let id = lines.get("id").map(|id| id.parse().unwrap());
                    ((*event).to_owned(), id, serde_json::from_str(lines["data"]).unwrap())
                });
                self.text = rest.to_owned();
                if told.is_some() {
                    return told;
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await.unwrap();
            self.text.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    async fn figures(&mut self) -> Value {
        loop {
            if let (name, None, data) = self.next().await.unwrap()
                && name == "figures"
            {
                return data;
            }
        }
    }

    async fn event(&mut self) -> Value {
        loop {
            if let (name, Some(id), data) = self.next().await.unwrap() {
                assert_eq!((name.as_str(), data["id"].as_u64()), ("event", Some(id)));
                return data;
            }
        }
    }

    async fn event_of(&mut self, kind: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["kind"] == kind {
                return event;
            }
        }
    }
}

async fn with_a_model() -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    running.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    running.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    (folder, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_nothing_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    let page = client.get("/").await;
    let html = page.body.as_str().unwrap().to_owned();
    let mut files = vec![("/".to_owned(), "text/html; charset=utf-8")];
    for (mark, kind) in [("href=\"/assets/", "text/css; charset=utf-8"), ("src=\"/assets/", "text/javascript; charset=utf-8")] {
        let name = html.split(mark).nth(1).unwrap().split('"').next().unwrap();
        files.push((format!("/assets/{name}"), kind));
    }
    let script = client.get("/assets/page.js").await.body.as_str().unwrap().to_owned();
    for part in script.split("from \"./").skip(1) {
        files.push((format!("/assets/{}", part.split('"').next().unwrap()), "text/javascript; charset=utf-8"));
    }
    assert!(files.len() > 6, "{files:?}");
    for (path, content_type) in &files {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (200, *content_type), "{path}");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        for word in
            ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(word), "{word} in {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"));
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        let tag = answer.headers["etag"].to_str().unwrap().to_owned();
        let again = client.send(reqwest::Method::GET, path, &[("if-none-match", &tag)], "").await;
        assert_eq!((again.status, again.body.as_str()), (304, Some("")), "{path}");
        let other = client.send(reqwest::Method::GET, path, &[("if-none-match", "\"other\"")], "").await;
        assert_eq!(other.status, 200);
        // Where a text names a host, it is the namespace of SVG.
        let text = answer.body.as_str().unwrap();
        let named: Vec<&str> = text.split("http").skip(1).filter(|rest| !rest.starts_with("://www.w3.org/2000/svg")).collect();
        assert!(named.iter().all(|rest| !rest.starts_with("://") && !rest.starts_with("s://")), "{path}: {named:?}");
    }
    client.get("/assets/nothing.js").await.expect_problem(404, "no_such_route");
    client.get("/assets/..%2Fpage.rs").await.expect_problem(404, "no_such_route");
    let metrics = running.metrics().await;
    assert!(metrics.contains("route=\"/assets/{file}\"") && !metrics.contains("nothing.js"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_the_doors_and_of_the_metrics() {
    let (_folder, running) = with_a_model().await;
    let client = &running.client;
    client.post_json("/v1/streams/points/batches", &points(0, 500)).await.expect(202);
    client.settled("m").await;
    let mut watching = Watching::begin(client, "", &[]).await;
    // What moves with time while nothing is learned.
    let settled = |mut view: Value| {
        view["memory"].as_object_mut().unwrap().remove("process").unwrap();
        view.as_object_mut().unwrap().remove("rows_per_second").unwrap();
        view
    };
    let (view, figures) = loop {
        let before = settled(client.get("/v1/models/m").await.expect(200));
        let figures = watching.figures().await;
        let after = client.get("/v1/models/m").await.expect(200);
        if before == settled(after.clone()) {
            break (after, figures);
        }
    };
    let seen = &figures["models"][0];
    assert_eq!(settled(seen.clone()), settled(view.clone()));
    let rates = [seen, &view].map(|view| view["rows_per_second"].as_f64().unwrap());
    assert!(rates[1] <= rates[0] && rates[0] < 2.0 * rates[1] + 1.0, "it fades from {rates:?}");
    assert_eq!(figures["streams"], json!([client.get("/v1/streams/points").await.expect(200)]));
    let text = running.metrics().await;
    let sample = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("mustela_{name}"))).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let of = |pointer: &str| view.pointer(pointer).and_then(Value::as_f64).unwrap();
    for (name, pointer) in [
        ("model_accepted_rows_total{model=\"m\"}", "/rows/accepted"),
        ("model_rows_total{model=\"m\",outcome=\"learned\"}", "/rows/learned"),
        ("model_online_accuracy_ratio{model=\"m\",window=\"sliding\"}", "/sliding/accuracy"),
        ("model_online_loss{model=\"m\",window=\"whole\"}", "/online/loss"),
        ("model_steps_total{model=\"m\"}", "/steps"),
        ("ledger_bytes{model=\"m\",part=\"weights\"}", "/memory/parts/weights/used_bytes"),
        ("planned_bytes{model=\"m\"}", "/memory/planned_bytes"),
    ] {
        assert!((sample(name) - of(pointer)).abs() < 1e-9, "{name}: {} and {}", sample(name), of(pointer));
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_once_and_go_on_where_a_client_was() {
    let (_folder, running) = with_a_model().await;
    let client = &running.client;
    client.put("/v1/models/other", &points_model("points")).await.expect(201);
    let minimum = client.get("/v1/models/m/memory-budget").await.expect(200)["minimum_bytes"].clone();
    let mut watching = Watching::begin(client, "?model=m", &[]).await;
    let made = watching.event().await;
    assert_eq!((&made["kind"], &made["model"], &made["version"]), (&json!("model_created"), &json!("m"), &json!("0.0")));
    client.put("/v1/models/m/memory-budget", &json!({ "budget": minimum })).await.expect(200);
    let budget = watching.event_of("budget").await;
    assert_eq!(budget["model"], "m");
    assert!(budget["text"].as_str().unwrap().contains("from no limit to"), "{budget}");
    client.patch("/v1/models/m", &json!({ "learning_rate": 0.01 })).await.expect(200);
    let learning = watching.event_of("learning_rate").await;
    assert!(learning["id"].as_u64() > budget["id"].as_u64() && learning["unix_ms"].as_u64() >= budget["unix_ms"].as_u64());
    drop(watching);

    let after = made["id"].to_string();
    let mut again = Watching::begin(client, "?model=m", &[("last-event-id", &after)]).await;
    let mut told = again.event().await;
    // Making the other one may have changed this one's share, and so its plan.
    while told["kind"] == "plan" {
        told = again.event().await;
    }
    assert_eq!(told, budget);
    assert_eq!(again.event().await, learning);
    drop(again);
    let newest = learning["id"].to_string();
    let mut none = Watching::begin(client, "", &[("last-event-id", &newest)]).await;
    client.delete("/v1/models/other").await.expect(204);
    let next = none.event_of("model_deleted").await;
    assert_eq!(next["model"], "other");
    assert!(next["id"].as_u64() > learning["id"].as_u64());

    let refused = client.send(reqwest::Method::GET, "/v1/events", &[("last-event-id", "the last")], "").await;
    refused.expect_problem(400, "invalid_last_event_id");
    client.get("/v1/events?model=nobody").await.expect_problem(404, "not_found");
    client.get("/v1/events?models=m").await.expect_problem(400, "invalid_request");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_may_go_while_it_is_watched() {
    let (_folder, running) = with_a_model().await;
    let client = &running.client;
    let mut watching = Watching::begin(client, "?model=m", &[]).await;
    assert_eq!(watching.figures().await["models"][0]["id"], "m");
    client.delete("/v1/models/m").await.expect(204);
    assert_eq!(watching.event_of("model_deleted").await["model"], "m");
    loop {
        let figures = watching.figures().await;
        if figures["models"] == json!([]) {
            assert_eq!(figures["streams"], json!([]));
            break;
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_back_with_a_restart_and_budgets_do_not_push_out_more_than_the_ring() {
    let (folder, running) = with_a_model().await;
    let client = &running.client;
    for change in 0..EVENTS_KEPT + 5 {
        let learning_rate = 0.01 + change as f64 / 1e6;
        client.patch("/v1/models/m", &json!({ "learning_rate": learning_rate })).await.expect(200);
    }
    let mut watching = Watching::begin(client, "", &[]).await;
    let first = watching.event().await;
    assert_eq!(first["kind"], "learning_rate", "the oldest made room: {first}");
    let mut last = first;
    for _ in 1..EVENTS_KEPT {
        let next = watching.event().await;
        assert_eq!(next["id"].as_u64(), last["id"].as_u64().map(|id| id + 1));
        last = next;
    }
    running.stop().await;
    let running = Running::start(folder.path(), &[]).await;
    let newest = last["id"].to_string();
    let mut watching = Watching::begin(&running.client, "", &[("last-event-id", &newest)]).await;
    let back = watching.event().await;
    assert_eq!((&back["kind"], back["id"].as_u64() > last["id"].as_u64()), (&json!("model_restored"), true), "{back}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_may_watch_and_no_more() {
    let (_folder, running) = with_a_model().await;
    let mut watching = Vec::new();
    for _ in 0..WATCHERS_MAX {
        watching.push(Watching::begin(&running.client, "", &[]).await);
    }
    let refused = running.client.get("/v1/events").await;
    assert!(refused.headers.contains_key("retry-after"));
    refused.expect_problem(429, "too_many_watchers");
    for one in &mut watching {
        assert_eq!(one.figures().await["models"][0]["id"], "m");
    }
    watching.pop();
    let began = Instant::now();
    while running.client.try_send(reqwest::Method::GET, "/v2/health/ready", &[], "").await.is_ok() {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        if http.get(format!("{}/v1/events", running.client.base)).send().await.unwrap().status() == 200 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the seat of one that went is not free");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.stop().await;
}

/// A client that asks and never reads.
fn deaf(client: &Client) -> TcpStream {
    let mut stream = TcpStream::connect(client.base.trim_start_matches("http://")).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: here\r\n\r\n").unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_watches_holds_up_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &[]);
    let client = process.client.clone();
    // A wide schema makes looks large, so that what the system keeps for a client that does not read is soon full.
    let fields: Vec<Value> =
        (0..4000).map(|number| json!({ "name": format!("column_{number}_of_many"), "type": "numeric" })).collect();
    for stream in 0..20 {
        let schema = json!({ "fields": fields, "target": { "name": "label", "type": "classes", "classes": 2 } });
        client.put(&format!("/v1/streams/wide-{stream}"), &schema).await.expect(201);
    }
    let mut watching = Watching::begin(&client, "", &[]).await;
    let deaf = [deaf(&client), deaf(&client)];
    assert_eq!(watching.figures().await["streams"].as_array().unwrap().len(), 20);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    let ended = tokio::task::spawn_blocking(|| process.terminate());
    while watching.next().await.is_some() {}
    assert_eq!(ended.await.unwrap(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());
    drop(deaf);
}
