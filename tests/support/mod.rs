//! What the tests of behaviour share: a service in this process or in one of its own, and a client that keeps whole answers.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test uses its part of this"
)]

pub mod bars;

use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::{ImageFormat, RgbImage};
use mustela::cli::serve::{self, Service};
use mustela::config::Config;
use mustela::disk::{Disk, FileSystem};
use mustela::fold::Version;
use mustela::shutdown::{self, Trigger};
use reqwest::Method;
use serde_json::{Value, json};

/// One step after the other, whatever the planner measured, so that two services that are given the same rows come to the same bits.
pub const IN_ORDER: (&str, &str) = ("planner.in_flight_max", "1");

/// An answer: status, headers, and the body as JSON (a string where it is not).
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Holds the answer to a status; says all of it otherwise.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// Holds the answer to be a problem of this status and code, in the one shape that all have.
    #[track_caller]
    pub fn expect_problem(self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert!(self.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", self.body);
        assert_eq!(self.body["error"], self.body["detail"]);
        self.body
    }
}

/// Talks to one service.
#[derive(Clone)]
pub struct Client {
    pub base: String,
    http: reqwest::Client,
}

impl Client {
    pub fn new(base: impl Into<String>) -> Client {
        Client { base: base.into(), http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<Answer> {
        let (status, headers, bytes) = self.raw(method, path, headers, body).await?;
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer { status, headers, body })
    }

    /// The same with the body as it came.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<(u16, reqwest::header::HeaderMap, Vec<u8>)> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok((status, headers, response.bytes().await?.to_vec()))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    pub async fn post(&self, path: &str, content_type: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.send(Method::POST, path, &[("content-type", content_type)], body).await
    }

    pub async fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.post(path, "application/json", body.to_string()).await
    }

    /// The model's view once it has seen all of its stream; rows may wait for their labels.
    pub async fn caught_up(&self, model: &str) -> Value {
        let began = Instant::now();
        loop {
            let view = self.get(&format!("/v1/models/{model}")).await.expect(200);
            if view["lag_rows"] == 0 {
                return view;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{model} has not caught up: {view}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The model's view once it stands still.
    pub async fn failed(&self, model: &str) -> Value {
        let began = Instant::now();
        loop {
            let view = self.get(&format!("/v1/models/{model}")).await.expect(200);
            if view["status"] == "failed" {
                return view;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{model} goes on: {view}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The detector's view once readers see it with so many rows decided.
    pub async fn detector_at(&self, detector: &str, rows: u64) -> Value {
        let began = Instant::now();
        loop {
            let view = self.get(&format!("/v1/detectors/{detector}")).await.expect(200);
            let version: Version = view["version"].as_str().unwrap().parse().unwrap();
            if version.sequence >= rows {
                return view;
            }
            assert!(view["model"]["failure"].is_null(), "{view}");
            assert!(began.elapsed() < Duration::from_secs(60), "{detector} has not come to row {rows}: {view}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The model's view once every row is decided.
    pub async fn settled(&self, model: &str) -> Value {
        let began = Instant::now();
        loop {
            let view = self.get(&format!("/v1/models/{model}")).await.expect(200);
            if view["rows"]["waiting"] == 0 {
                return view;
            }
            assert!(view["failure"].is_null(), "{view}");
            assert!(began.elapsed() < Duration::from_secs(60), "rows still wait: {view}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A picture's file.
pub fn png(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The configuration of a test's service on `data_dir`, with free ports.
pub fn config(data_dir: &Path, settings: &[(&str, &str)]) -> Config {
    let mut overrides = vec![
        ("listen".to_owned(), "127.0.0.1:0".to_owned()),
        ("metrics_listen".to_owned(), "127.0.0.1:0".to_owned()),
        ("data_dir".to_owned(), data_dir.to_str().unwrap().to_owned()),
    ];
    overrides.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Config::load(None, [], &overrides).unwrap()
}

/// A service in this process.
pub struct Running {
    pub service: Service,
    pub client: Client,
    trigger: Trigger,
}

impl Running {
    pub async fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Running {
        Running::with(config(data_dir, settings)).await
    }

    pub async fn with(config: Config) -> Running {
        Running::on(config, Arc::new(FileSystem)).await
    }

    pub async fn on(config: Config, disk: Arc<dyn Disk>) -> Running {
        let (trigger, shutdown) = shutdown::channel();
        let service = Service::start(config.clone(), disk, serve::kinds(&config).unwrap(), shutdown).await.unwrap();
        let client = Client::new(format!("http://{}", service.address));
        Running { service, client, trigger }
    }

    pub async fn metrics(&self) -> String {
        let client = Client::new(format!("http://{}", self.service.metrics_address));
        let answer = client.get("/metrics").await;
        assert_eq!(answer.status, 200);
        answer.body.as_str().unwrap().to_owned()
    }

    pub async fn stop(self) {
        self.trigger.drain();
        self.service.stop(Duration::from_secs(20)).await;
    }
}

/// A service in a process of its own, which can be killed.
pub struct Process {
    pub child: Child,
    pub client: Client,
    pub metrics: String,
}

/// A service that ended before its doors were open.
#[derive(Debug)]
pub struct Refused {
    pub status: Option<i32>,
    pub said: String,
}

impl Process {
    pub fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Process {
        let command = Process::command(Command::new(env!("CARGO_BIN_EXE_mustela")), data_dir, settings);
        Process::spawn(command).expect("the service said nothing")
    }

    /// Starts a service by another command, which takes the service's arguments, and says how much is told and where.
    pub fn start_by(command: Command, data_dir: &Path, settings: &[(&str, &str)]) -> Process {
        Process::spawn(Process::command(command, data_dir, settings)).expect("the service said nothing")
    }

    /// Starts a service that may refuse to: then its exit status, and what it said.
    pub fn attempt(data_dir: &Path, settings: &[(&str, &str)]) -> Result<Process, Refused> {
        Process::attempt_by(Command::new(env!("CARGO_BIN_EXE_mustela")), data_dir, settings)
    }

    /// The same by another command, which takes the service's arguments.
    pub fn attempt_by(command: Command, data_dir: &Path, settings: &[(&str, &str)]) -> Result<Process, Refused> {
        let mut said = tempfile::tempfile().unwrap();
        let mut command = Process::command(command, data_dir, settings);
        command.stderr(said.try_clone().unwrap());
        Process::spawn(command).map_err(|status| {
            let mut text = String::new();
            said.seek(std::io::SeekFrom::Start(0)).unwrap();
            said.read_to_string(&mut text).unwrap();
            Refused { status, said: text }
        })
    }

    fn command(mut command: Command, data_dir: &Path, settings: &[(&str, &str)]) -> Command {
        command.args(["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        if command.get_envs().all(|(name, _)| name != "MUSTELA_LOG") {
            command.env("MUSTELA_LOG", "warn");
        }
        command.stdout(Stdio::piped());
        command
    }

    /// Waits for the doors, or for the exit status.
    fn spawn(mut command: Command) -> Result<Process, Option<i32>> {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = || {
            let line = lines.next()?.unwrap();
            Some(line.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned())
        };
        match (address(), address()) {
            (Some(doors), Some(metrics)) => Ok(Process { child, client: Client::new(doors), metrics }),
            _ => Err(child.wait().unwrap().code()),
        }
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(mut self) -> Option<i32> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => assert_ne!(std::fs::copy(entry.path(), to).unwrap(), 0, "an empty file has nothing to test"),
        }
    }
}

/// Writes a new file of a test's folder.
#[allow(clippy::disallowed_methods)]
pub fn write_new(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// Writes a file of a test's folder anew.
#[allow(clippy::disallowed_methods)]
pub fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// The newest checkpoint of model 1 by its manifest: version and hash of the state.
pub fn newest_checkpoint(folder: &Path) -> (Value, String) {
    let text = std::fs::read_to_string(folder.join("models/1/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let newest = manifest["checkpoints"].as_array().unwrap().last().unwrap().clone();
    (newest["version"].clone(), newest["state_hash"].as_str().unwrap().to_owned())
}

/// Two numeric columns and three classes.
pub fn points_schema() -> Value {
    json!({
        "fields": [{ "name": "x", "type": "numeric" }, { "name": "y", "type": "numeric" }],
        "target": { "name": "label", "type": "classes", "classes": ["north", "south", "east"] },
    })
}

/// `count` learnable rows of [`points_schema`], from number `first` on.
pub fn points(first: usize, count: usize) -> Value {
    let names = ["north", "south", "east"];
    let rows: Vec<Value> = (first..first + count)
        .map(|row| {
            let class = row * 7 % 3;
            let wobble = (row * 37 % 100) as f64 / 100.0;
            json!({ "x": class as f64 * 10.0 + wobble, "y": 5.0 - class as f64 - wobble, "label": names[class] })
        })
        .collect();
    json!({ "rows": rows })
}

/// A small network over [`points_schema`].
pub fn points_model(stream: &str) -> Value {
    json!({
        "kind": "network", "stream": stream,
        "network": { "architecture": "mlp", "hidden": [8] },
        "optimiser": { "type": "sgd", "momentum": 0.9 }, "learning_rate": 0.05, "step_rows": 16,
    })
}

/// Runs one ignored test of this binary in a process of its own: a service that no command of the product makes.
pub fn spawn_test(name: &str, folder: &Path) -> Child {
    std::fs::remove_file(folder.join("address")).ok();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", name]).env(CHILD_FOLDER, folder);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Where such a test finds its data folder.
const CHILD_FOLDER: &str = "MUSTELA_TEST_FOLDER";

/// The data folder of such a test.
pub fn child_folder() -> std::path::PathBuf {
    std::env::var_os(CHILD_FOLDER).expect("this is run by another test").into()
}

/// Tells whoever runs this test where its doors are.
pub fn child_is_open(folder: &Path, client: &Client) {
    let write = |out: &mut dyn std::io::Write| out.write_all(client.base.as_bytes());
    FileSystem.write_atomic(&folder.join("address"), &mut |out| write(out)).unwrap();
}

/// Waits for the doors of such a test; none where it has ended before.
pub async fn child_client(folder: &Path, child: &mut Child) -> Option<Client> {
    loop {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if let Ok(base) = std::fs::read_to_string(folder.join("address")) {
            return Some(Client::new(base));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
