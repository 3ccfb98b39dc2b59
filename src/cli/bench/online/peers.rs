//! Tables beside other libraries: the same rows in the same order, each predicted and then learned, by a model of this program with
//! its defaults (two hidden layers of 64, AdamW, replay), and what River and Vowpal Wabbit made of them (`loadtest/peers`), each with its own defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cli::Failure;
use crate::ferret::executor::Executor;
use crate::ferret::plan::Publication;
use crate::ferret::pool::Pool;
use crate::ferret::rate::Objective;
use crate::ferret::trainer::Trainer;
use crate::fold::{Fold, Outcome, Step};
use crate::model::kind::Given;
use crate::model::network::NetworkKind;
use crate::rows::Rows;
use crate::stream::Schema;
use crate::stream::decode::{Format, Purpose, decode};

/// Rows that forests were given, and rows of any table.
const FOREST_ROWS: usize = 20_000;
const ROWS_MAX: usize = 50_000;
const SEEDS: u64 = 5;
/// Lines that are decoded at once, as one post.
const LINES: usize = 5000;
/// Methods whose rows are capped.
const FORESTS: [&str; 2] = ["river_arf", "river_srp"];
/// The linear ones.
const LINEAR: [&str; 3] = ["vw_oaa", "river_softmax", "river_logistic_ovr"];

/// What a table says of itself.
#[derive(Deserialize)]
struct Manifest {
    columns: Vec<Value>,
    classes: Vec<String>,
}

/// What one method made of one table from one seed.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Run {
    accuracy: f64,
    rows: usize,
    rows_per_second: f64,
    bytes: u64,
}

#[derive(Deserialize)]
struct Results {
    streams: BTreeMap<String, BTreeMap<String, BTreeMap<String, Run>>>,
}

/// One side of the comparison on one table.
struct Side {
    method: String,
    runs: Vec<Run>,
}

impl Side {
    fn mean(&self, of: fn(&Run) -> f64) -> f64 {
        self.runs.iter().map(of).sum::<f64>() / self.runs.len().max(1) as f64
    }

    fn deviation(&self) -> f64 {
        let (mean, count) = (self.mean(|run| run.accuracy), self.runs.len() as f64);
        let squares: f64 = self.runs.iter().map(|run| (run.accuracy - mean).powi(2)).sum();
        (squares / (count - 1.0).max(1.0)).sqrt()
    }
}

/// Runs this program's side, and shows it beside what the file of peers has.
pub(super) fn run(data: &Path, results: &Path, streams: &[String], threads: usize, as_json: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(results).map_err(|error| format!("{}: {error}", results.display()))?;
    let results: Results = serde_json::from_str(&text)?;
    let mut tables = Vec::new();
    for (name, methods) in results.streams {
        if streams.is_empty() || streams.contains(&name) {
            let theirs = methods.into_iter().map(|(method, runs)| Side { method, runs: runs.into_values().collect() });
            let mut sides = ours(&name, data, threads)?;
            sides.extend(theirs);
            if !as_json {
                print(&name, &sides);
            }
            tables.push((name, sides));
        }
    }
    if as_json {
        println!("{}", document(&tables));
    }
    Ok(())
}

/// What a model of this program is made of, whatever the table: nothing but defaults.
fn settings(seed: u64) -> Map<String, Value> {
    Map::from_iter([("seed".to_owned(), json!(seed))])
}

/// All seeds on all rows, and on as many as forests had.
fn ours(name: &str, data: &Path, threads: usize) -> Result<Vec<Side>, Failure> {
    let manifest: Manifest = serde_json::from_str(&std::fs::read_to_string(data.join(format!("{name}.json")))?)?;
    let schema = schema(&manifest)?;
    let parts = read(&schema, &data.join(format!("{name}.csv")))?;
    let (next, runs) = (Mutex::new(0..SEEDS), Mutex::new(Vec::new()));
    let work = || -> Result<(), Failure> {
        loop {
            let seed = next.lock().next();
            let Some(seed) = seed else { return Ok(()) };
            let of_seed = follow(&schema, &parts, seed)?;
            runs.lock().push((seed, of_seed));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a run has panicked".into())))
    })?;
    let mut runs = runs.into_inner();
    runs.sort_by_key(|(seed, _)| *seed);
    let side = |method: &str, runs: Vec<Run>| Side { method: method.into(), runs };
    let mut sides = vec![side("ours", runs.iter().map(|(_, (all, _))| *all).collect())];
    if runs.iter().any(|(_, (all, _))| all.rows > FOREST_ROWS) {
        sides.push(side("ours, as many rows as forests", runs.iter().map(|(_, (_, first))| *first).collect()));
    }
    Ok(sides)
}

fn schema(manifest: &Manifest) -> Result<Schema, Failure> {
    let fields = manifest.columns.iter().map(|column| {
        let mut field = column.as_object().cloned().unwrap_or_default();
        // How many words there are is nothing that a stream would know.
        field.remove("values");
        Value::Object(field)
    });
    let target = json!({ "name": "label", "type": "classes", "classes": manifest.classes });
    let schema: Schema = serde_json::from_value(json!({ "fields": fields.collect::<Vec<_>>(), "target": target }))?;
    schema.validate()?;
    Ok(schema)
}

/// The rows as the doors would read them, in posts.
fn read(schema: &Schema, path: &PathBuf) -> Result<Vec<Rows>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (header, rest) = text.split_once('\n').ok_or("an empty table")?;
    let lines: Vec<&str> = rest.lines().take(ROWS_MAX).collect();
    let post = |lines: &[&str]| -> Result<Rows, Failure> {
        let body = [&[header], lines].concat().join("\n");
        Ok(decode(schema, Format::Csv, Bytes::from(body), Purpose::Learn)?)
    };
    lines.chunks(LINES).map(post).collect()
}

/// One seed: what all rows came to, and as many as forests had.
fn follow(schema: &Schema, posts: &[Rows], seed: u64) -> Result<(Run, Run), Failure> {
    let kind = NetworkKind { pool: Pool::new(1, 0)?, step_rows: 1, objective: Objective::default() };
    let settings = settings(seed);
    let recipe = kind.recipe(Given { settings: &settings, schema, queued_bytes: 0, may_skip: false, blobs: None })?;
    let plan = recipe.planner().sequential(0, Publication::AtDrain);
    let bytes = plan.bytes.total() - plan.bytes.snapshots;
    let mut trainer = Trainer::new(recipe, plan, Executor::Filling)?;
    let (mut outcomes, mut rows, mut correct): (Vec<Outcome>, usize, u64) = (Vec::new(), 0, 0);
    let began = Instant::now();
    let mut first = None;
    let run = |rows: usize, correct: u64| Run {
        accuracy: correct as f64 / rows.max(1) as f64,
        rows,
        rows_per_second: rows as f64 / began.elapsed().as_secs_f64(),
        bytes,
    };
    for post in posts {
        for row in 0..post.count {
            rows += 1;
            trainer.apply(Step::starting(rows as u64, post.slice(row..row + 1)), &mut outcomes)?;
            correct += outcomes.drain(..).map(|outcome| outcome.score.correct).sum::<u64>();
            if rows == FOREST_ROWS {
                first = Some(run(rows, correct));
            }
        }
    }
    trainer.drain(&mut outcomes)?;
    correct += outcomes.drain(..).map(|outcome| outcome.score.correct).sum::<u64>();
    let all = run(rows, correct);
    Ok((all, first.unwrap_or(all)))
}

/// The best of some methods, by name.
fn best(sides: &[Side], of: impl Fn(&str) -> bool) -> Option<&Side> {
    let among = sides.iter().filter(|side| of(&side.method));
    among.max_by(|a, b| a.mean(|run| run.accuracy).total_cmp(&b.mean(|run| run.accuracy)))
}

fn print(name: &str, sides: &[Side]) {
    println!("{name}");
    println!("  {:<30} {:>10} {:>6} {:>6} {:>8} {:>12} {:>10}", "method", "accuracy %", "±", "seeds", "rows", "rows/s", "KiB");
    for side in sides {
        println!(
            "  {:<30} {:>10.2} {:>6.2} {:>6} {:>8} {:>12.0} {:>10.0}",
            side.method,
            100.0 * side.mean(|run| run.accuracy),
            100.0 * side.deviation(),
            side.runs.len(),
            side.runs.first().map_or(0, |run| run.rows),
            side.mean(|run| run.rows_per_second),
            side.mean(|run| run.bytes as f64) / 1024.0
        );
    }
    let accuracy = |side: Option<&Side>| side.map_or(f64::NAN, |side| 100.0 * side.mean(|run| run.accuracy));
    let mine = accuracy(sides.first());
    let on_forests = accuracy(sides.iter().rfind(|side| side.method.starts_with("ours")));
    let linear = accuracy(best(sides, |method| LINEAR.contains(&method)));
    let forest = accuracy(best(sides, |method| FORESTS.contains(&method)));
    println!("  beside the best linear one {:+.2} points, beside the best forest {:+.2}", mine - linear, on_forests - forest);
}

fn document(tables: &[(String, Vec<Side>)]) -> Value {
    let of_side = |side: &Side| {
        json!({
            "method": side.method,
            "accuracy": side.mean(|run| run.accuracy),
            "deviation": side.deviation(),
            "seeds": side.runs.len(),
            "rows": side.runs.first().map(|run| run.rows),
            "rows_per_second": side.mean(|run| run.rows_per_second),
            "bytes": side.mean(|run| run.bytes as f64),
        })
    };
    let of_table = |(name, sides): &(String, Vec<Side>)| (name.clone(), sides.iter().map(of_side).collect::<Value>());
    Value::Object(tables.iter().map(of_table).collect())
}
