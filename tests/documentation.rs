//! The documentation is held to the source: links lead somewhere, commands, flags, metrics, doors and problem codes exist, the page of the
//! configuration is what the source gives, each alert has its runbook, and the README's tour works as it stands.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use mustela::cli;
use mustela::config::document;
use mustela::http;
use serde_json::json;
use support::{Process, Running, write_new};

/// Metrics that a service has only after something that these tests do not bring about.
const RARE_METRICS: [&str; 2] = ["mustela_model_drift_sequence", "mustela_guard_rows_total"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files under `folder` whose name ends so, by their path from the root.
fn files(folder: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let path = PathBuf::from(folder).join(entry.unwrap().file_name());
        let name = path.to_str().unwrap();
        match root().join(&path).is_dir() {
            true => found.extend(files(name, end)),
            false if name.ends_with(end) => found.push(name.to_owned()),
            false => {}
        }
    }
    found.sort();
    found
}

/// Every page, with its text.
fn pages() -> BTreeMap<String, String> {
    let mut names: Vec<String> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(str::to_owned).into();
    for folder in ["docs", "dashboards", "deploy", "loadtest", "data"] {
        names.extend(files(folder, ".md"));
    }
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// A page taken apart: its lines of prose without code, and its code, whole blocks and spans.
#[derive(Default)]
struct Page {
    prose: Vec<String>,
    /// The language of each block, and its lines.
    blocks: Vec<(String, Vec<String>)>,
    spans: Vec<String>,
}

fn parse(text: &str) -> Page {
    let (mut page, mut in_block) = (Page::default(), false);
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_block = !in_block;
            if in_block {
                page.blocks.push((language.to_owned(), Vec::new()));
            }
        } else if in_block {
            page.blocks.last_mut().unwrap().1.push(line.to_owned());
        } else if line.starts_with("    ") {
            page.blocks.push((String::new(), vec![line.trim().to_owned()]));
        } else {
            let parts: Vec<&str> = line.split('`').collect();
            page.prose.push(parts.iter().step_by(2).copied().collect());
            page.spans.extend(parts.iter().skip(1).step_by(2).map(|span| (*span).to_owned()));
        }
    }
    assert!(!in_block, "a block of code has no end");
    page
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        in_block ^= line.starts_with("```");
        let title = line.trim_start_matches('#');
        if in_block || !line.starts_with('#') || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
            .map(|letter| if letter == ' ' { '-' } else { letter })
            .collect();
        assert!(found.insert(slug.clone()), "two headings of one page have the anchor #{slug}");
    }
    found
}

/// Where the links of a page lead, within this repository.
fn links(page: &Page) -> Vec<String> {
    let prose = page.prose.join("\n");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.contains("://")).collect()
}

#[test]
fn links_lead_to_what_is_there() {
    let pages = pages();
    let mut broken = Vec::new();
    let mut count = 0;
    for (name, text) in &pages {
        for link in links(&parse(text)) {
            count += 1;
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => name.clone(),
                file => {
                    let path = Path::new(name).parent().unwrap().join(file);
                    let whole = root().join(&path);
                    if !whole.exists() {
                        broken.push(format!("{name}: {link}: there is no such file"));
                        continue;
                    }
                    whole.canonicalize().unwrap().strip_prefix(root().canonicalize().unwrap()).unwrap().display().to_string()
                }
            };
            if let Some(anchor) = anchor
                && !pages.get(&target).is_some_and(|text| anchors(text).contains(anchor))
            {
                broken.push(format!("{name}: {link}: {target} has no such heading"));
            }
        }
    }
    assert!(count > 30, "only {count} links were found");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The arguments of every call of `mustela` in code, up to where the shell goes on with something else.
fn calls(page: &Page) -> Vec<Vec<String>> {
    let blocks = page.blocks.iter().map(|(_, lines)| lines.join("\n").replace("\\\n", " "));
    let lines: Vec<String> =
        blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).chain(page.spans.iter().cloned()).collect();
    let mut found = Vec::new();
    for line in lines {
        let line = line.replace("cargo run --release -- ", "mustela ").replace("cargo run -- ", "mustela ");
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "mustela" || first.ends_with("/mustela") {
            found.push(words.take_while(|word| !["|", ">", "&", "&&", ";", "#"].contains(word)).map(str::to_owned).collect());
        }
    }
    found
}

/// Whether a flag is one of the command's.
fn has(command: &clap::Command, flag: &str) -> bool {
    matches!(flag, "help" | "version") || command.get_arguments().any(|argument| argument.get_long() == Some(flag))
}

fn any_has(command: &clap::Command, flag: &str) -> bool {
    has(command, flag) || command.get_subcommands().any(|command| any_has(command, flag))
}

/// The name of a word that is a flag.
fn flag(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--")?;
    Some(name.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').next().unwrap_or(name))
}

/// What is wrong with one call.
fn fault(root: &clap::Command, call: &[String]) -> Option<String> {
    let mut command = root;
    for word in call {
        if let Some(flag) = flag(word) {
            if !has(command, flag) {
                return Some(format!("{} has no flag --{flag}", command.get_name()));
            }
        } else if command.has_subcommands() {
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None => return Some(format!("{} has no command {word}", command.get_name())),
            }
        }
    }
    None
}

#[test]
fn commands_and_flags_exist() {
    let command = cli::command();
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (name, text) in pages() {
        let page = parse(&text);
        for call in calls(&page) {
            faults.extend(fault(&command, &call).map(|fault| format!("{name}: mustela {}: {fault}", call.join(" "))));
            seen.extend(call.first().cloned());
        }
        let ours = name == "README.md" || name.starts_with("docs/");
        for flag in page.spans.iter().filter_map(|span| flag(span)).filter(|_| ours) {
            if !any_has(&command, flag) {
                faults.push(format!("{name}: no command has a flag --{flag}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for wanted in ["serve", "demo", "replay", "plan", "verify", "bench", "checkpoint", "health", "config"] {
        assert!(seen.contains(wanted), "no page calls `mustela {wanted}`");
    }
    assert_eq!(fault(&command, &["serve".to_owned(), "--nope".to_owned()]).as_deref(), Some("serve has no flag --nope"));
    assert!(fault(&command, &["bench".to_owned(), "nope".to_owned()]).is_some());
}

/// The words of a text that begin with `mustela_`; those that end with a stroke are part of a pattern.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && !"_:".contains(letter));
    let names = words.filter(|word| word.starts_with("mustela_") && !word.ends_with('_') && !word.contains(':'));
    let plain =
        |name: &str| ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned();
    names.map(plain).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_pages_name_are_scraped() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = running.client.clone();
    let schema = json!({
        "fields": [{ "name": "x", "type": "numeric" }], "row_id": "id", "late_labels": { "window_rows": 10 },
        "target": { "name": "y", "type": "classes", "classes": 2 },
    });
    client.put("/v1/streams/s", &schema).await.expect(201);
    let model = json!({ "kind": "network", "stream": "s", "memory_budget": "64MiB" });
    client.put("/v1/models/m", &model).await.expect(201);
    let rows = json!({ "rows": [{ "id": "a", "x": 1, "y": 0 }, { "id": "b", "x": 1 }, { "id": "c", "x": 2, "y": 1 }] });
    client.post_json("/v1/streams/s/batches", &rows).await.expect(202);
    client.post_json("/v1/streams/s/labels", &json!({ "rows": [{ "id": "b", "y": 1 }] })).await.expect(202);
    client.post_json("/v1/streams/s/batches", &json!({ "rows": [{}] })).await.expect_problem(422, "invalid_rows");
    client.post_json("/v1/models/m/predict", &json!({ "rows": [{ "x": 1 }] })).await.expect(200);
    client.settled("m").await;
    let scrape = running.metrics().await;
    running.stop().await;
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let there: BTreeSet<&str> = types.chain(RARE_METRICS).collect();
    let mut named = BTreeSet::new();
    for (page, text) in pages() {
        for name in metric_names(&text) {
            assert!(there.contains(name.as_str()), "{page} names {name}, which a scrape does not have");
            named.insert(name);
        }
    }
    assert!(named.len() > 3, "{named:?}");
    let source = read("src/metrics.rs") + &read("src/metrics/models.rs");
    assert!(
        RARE_METRICS.iter().all(|name| source.contains(name.trim_start_matches("mustela_"))),
        "a metric that is said to be rare is gone"
    );
}

#[test]
fn the_page_of_the_configuration_is_what_the_source_gives() {
    let page = document::markdown().unwrap();
    assert!(read("docs/configuration.md") == page, "docs/configuration.md is out of date; renew it by: {}", document::RENEW);
}

/// A path with its names taken out.
fn bare(path: &str) -> String {
    let mut bare = String::new();
    let mut inside = false;
    for letter in path.chars() {
        inside &= letter != '}';
        if !inside {
            bare.push(letter);
        }
        inside |= letter == '{';
    }
    bare
}

#[test]
fn every_door_is_on_its_page() {
    let spans: BTreeSet<String> = parse(&read("docs/http.md")).spans.iter().map(|span| bare(span)).collect();
    for (path, _) in http::doors() {
        let said = spans.iter().any(|span| span.split_whitespace().next_back() == Some(bare(path).as_str()));
        assert!(said, "docs/http.md does not name {path}");
    }
}

#[test]
fn every_problem_code_on_its_page_is_one() {
    let text = read("docs/http.md");
    let table = text.split("\n## ").find(|section| section.starts_with("Problems")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5")).collect::<Vec<_>>().join("\n");
    let source: String = files("src/http", ".rs").iter().map(|file| read(file)).collect();
    let members = ["minimum_bytes", "most_bytes", "limit_bytes", "model_version"];
    let codes: Vec<String> = parse(&rows).spans.into_iter().filter(|span| !members.contains(&span.as_str())).collect();
    assert!(codes.len() > 30, "{codes:?}");
    for code in codes {
        assert!(source.contains(&format!("\"{code}\"")), "no door answers with the code {code}");
    }
}

#[test]
fn every_alert_has_a_runbook() {
    let alerts: BTreeSet<String> = read("dashboards/prometheus/rules/alerts.yml")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned))
        .collect();
    let text = read("docs/operations.md");
    let section = text.split("\n## ").find(|section| section.starts_with("Alerts")).unwrap();
    let headings: BTreeSet<String> = section.lines().filter_map(|line| line.strip_prefix("### ").map(str::to_owned)).collect();
    assert!(alerts.len() > 20);
    assert_eq!(headings, alerts);
}

/// The service of the tour, and where its blocks run.
struct Tour {
    folder: tempfile::TempDir,
    service: Option<Process>,
}

impl Tour {
    /// Runs a block of the README, in which starting and killing the service are done by the test.
    fn run(&mut self, block: &[String]) -> String {
        let (mut script, mut outside) = (String::new(), 0);
        for line in block {
            match line.as_str() {
                "cargo build --release" => {}
                "./target/release/mustela serve" => {
                    self.service = Some(Process::start(&self.folder.path().join("mustela-data"), &[]));
                }
                "kill -9 $(pgrep -x mustela)" => self.service.take().expect("a service to kill").kill(),
                line => {
                    script += &format!("{line}\n");
                    continue;
                }
            }
            outside += 1;
        }
        assert!(outside == 0 || script.is_empty(), "a block of the tour does two things: {block:?}");
        self.shell(&script)
    }

    fn shell(&self, script: &str) -> String {
        let Some(service) = &self.service else { return String::new() };
        let strip = |url: &str| url.trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
        let script = script
            .replace("localhost:7070", &strip(&service.client.base))
            .replace("localhost:9464", &strip(&service.metrics))
            .replace("./target/release/mustela", env!("CARGO_BIN_EXE_mustela"));
        // What the doors refuse fails here too.
        let script = format!("curl() {{ command curl --fail-with-body -sS \"$@\"; }}\n{script}");
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &script]).current_dir(self.folder.path());
        let output = command.env("MUSTELA_URL", &service.client.base).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

/// A model's view, where what a block said begins with one.
fn view(said: &str) -> Option<serde_json::Value> {
    let first = serde_json::Deserializer::from_str(said).into_iter::<serde_json::Value>().next()?.ok()?;
    (first["object"] == "model").then_some(first)
}

#[test]
fn the_tour_works_as_it_stands() {
    let readme = read("README.md");
    let sections: Vec<&str> = readme.split("\n## ").collect();
    let section = |title: &str| parse(sections.iter().find(|section| section.starts_with(title)).expect("a section"));
    let mut tour = Tour { folder: tempfile::tempdir().unwrap(), service: None };
    let mut versions = Vec::new();
    let mut said = String::new();
    for (language, block) in section("Five minutes with curl").blocks {
        assert_eq!(language, "sh");
        let mut answer = tour.run(&block);
        if let Some(mut view) = view(&answer) {
            // After a kill it takes a moment, as the text says.
            let began = std::time::Instant::now();
            while view["lag_rows"] != 0 && began.elapsed().as_secs() < 60 {
                answer = tour.run(&block);
                view = self::view(&answer).expect("the same answer again");
            }
            versions.push((view["version"].clone(), view["rows"]["learned"].clone()));
        }
        said += &answer;
    }
    assert_eq!(versions, vec![(json!("0.4"), json!(4)); 2], "the model's version before and after kill -9");
    for wanted in ["\"applied\":true", "\"model_version\":\"0.4\"", "mustela_model_online_loss", "\"points\":["] {
        assert!(said.contains(wanted), "{wanted} is not in what the tour gave:\n{said}");
    }

    let rows: String = (0..300).map(|row| format!("{},c{},{}\n", row % 7, row % 3, i32::from(row % 3 == 0))).collect();
    write_new(&tour.folder.path().join("flights.csv"), &format!("distance,carrier,delayed\n{rows}"));
    let said: String = section("Your own CSV").blocks.iter().map(|(_, block)| tour.run(block)).collect();
    for wanted in ["\"categorical\"", "is at version 0.300 and predicted 300 rows", "\"model_version\":\"0.300\""] {
        assert!(said.contains(wanted), "{wanted} is not in what the CSV gave:\n{said}");
    }
}
