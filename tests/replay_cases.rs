//! A hundred drawn lives of a model without a service: killed at random rows with steps in flight, restored from the checkpoint before and
//! folded on under the decisions that were made, on one thread or two, with every learner, each ends in the hash of the uninterrupted
//! fold.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use mustela::cli::serve;
use mustela::config::Config;
use mustela::disk::FileSystem;
use mustela::fold::{Change, Demand, Fold, Sequence, Step, Version};
use mustela::model::checkpoint::{Head, Store, state_hash};
use mustela::model::decision::{Decision, Planned, What};
use mustela::model::kind::{Given, Kinds};
use mustela::model::status::Tally;
use mustela::network::random;
use mustela::rows::{Block, Element, Rows, Target};
use mustela::stream::Schema;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use serde_json::{Value, json};

const CASES: u64 = 100;
const SEED: u64 = 1;

/// A number below `most`.
fn below(draws: &mut ChaCha8Rng, most: u64) -> u64 {
    draws.next_u64() % most
}

/// What one case is drawn to be.
struct Case {
    spec: serde_json::Map<String, Value>,
    schema: Schema,
    /// Records, each with the sequence number of its first row.
    records: Vec<(Sequence, Rows)>,
    rows: Sequence,
    checkpoint_rows: u64,
    /// Rows after which the fold is dropped, in order.
    kills: Vec<Sequence>,
    /// Rows after which something is decided, in order.
    changes: Vec<Sequence>,
    may_skip: bool,
}

/// A point of one of three classes, in two numbers.
fn rows(draws: &mut ChaCha8Rng, count: usize) -> Rows {
    let classes: Vec<u32> = (0..count).map(|_| draws.next_u32() % 3).collect();
    let noise = |draws: &mut ChaCha8Rng| (draws.next_u32() % 128) as f32 / 64.0;
    let numbers = classes.iter().flat_map(|&class| [class as f32 * 2.0 + noise(draws), 5.0 - class as f32 - noise(draws)]);
    let bytes: Vec<u8> = numbers.collect::<Vec<f32>>().iter().flat_map(|number| number.to_le_bytes()).collect();
    let blocks = vec![Block { element: Element::F32, width: 2, bytes: bytes.into() }];
    Rows { count, blocks, target: Some(Target::Classes(classes)), ids: None, times_ms: None }
}

impl Case {
    fn new(number: u64) -> Case {
        let draws = &mut random::stream(SEED, number, "replay case");
        let learner = match number % 5 {
            0 => json!({ "type": "vanilla" }),
            1 => json!({ "type": "er", "buffer_rows": 20 + below(draws, 200), "replay_rows": 1 + below(draws, 8) }),
            2 => json!({ "type": "mir", "buffer_rows": 20 + below(draws, 200), "replay_rows": 4, "candidate_rows": 10 }),
            3 => json!({ "type": "lwf", "every_rows": 30 + below(draws, 200) }),
            _ => json!({ "type": "mas", "every_rows": 30 + below(draws, 200), "sample_rows": 16 }),
        };
        let compensation = ["none", "iter_fisher", "gap_aware", "step_aware"][below(draws, 4) as usize];
        let optimiser = [json!({ "type": "adamw" }), json!({ "type": "sgd", "momentum": 0.9 })];
        let spec = json!({
            "network": { "architecture": "mlp", "hidden": [8] },
            "optimiser": optimiser[below(draws, 2) as usize],
            "learner": learner,
            "compensation": { "type": compensation },
            "learning_rate": 0.01,
            "step_rows": 1 + below(draws, 24),
            "seed": number,
        });
        let numeric = |name: &str| json!({ "name": name, "type": "numeric" });
        let target = json!({ "name": "label", "type": "classes", "classes": 3 });
        let schema = json!({ "fields": [numeric("x"), numeric("y")], "target": target });
        let (mut records, mut next) = (Vec::new(), 1);
        while next <= 500 {
            let count = 1 + below(draws, 60);
            records.push((next, rows(draws, count as usize)));
            next += count;
        }
        let rows = next - 1;
        let mut drawn = |count: u64| {
            let mut drawn: Vec<Sequence> = (0..count).map(|_| below(draws, rows)).collect();
            drawn.sort_unstable();
            drawn
        };
        let (kills, changes) = (drawn(1 + number % 4), drawn(6));
        Case {
            spec: spec.as_object().unwrap().clone(),
            schema: serde_json::from_value(schema).unwrap(),
            records,
            rows,
            checkpoint_rows: 10 + below(draws, 200),
            kills,
            changes,
            may_skip: number.is_multiple_of(3),
        }
    }

    fn fold(&self, kinds: &Kinds) -> Box<dyn Fold> {
        let given = Given { settings: &self.spec, schema: &self.schema, queued_bytes: 0, may_skip: self.may_skip, blobs: None };
        kinds.get("network").unwrap().build(given).unwrap()
    }

    /// The step after a row, of one record; none at the end.
    fn step(&self, cursor: Sequence, fold: &dyn Fold) -> Option<Step> {
        let at = self.records.partition_point(|(first, rows)| first + rows.count as u64 <= cursor + 1);
        let (first, rows) = self.records.get(at)?;
        let start = (cursor + 1 - first) as usize;
        let end = rows.count.min(start + fold.step_rows());
        Some(Step::starting(cursor + 1, rows.slice(start..end)))
    }
}

/// A fold on its way through a case.
struct Life<'a> {
    case: &'a Case,
    fold: Box<dyn Fold>,
    cursor: Sequence,
    decided: usize,
}

impl Life<'_> {
    fn begin<'a>(case: &'a Case, kinds: &Kinds) -> Life<'a> {
        Life { case, fold: case.fold(kinds), cursor: 0, decided: 0 }
    }

    /// Carries out what was decided at this row.
    fn execute_due(&mut self, decisions: &[Decision]) {
        while let Some(decision) = decisions.get(self.decided).filter(|decision| decision.at.sequence == self.cursor) {
            self.fold.drain(&mut Vec::new()).unwrap();
            match &decision.what {
                What::Skip { through, .. } => self.cursor = *through,
                what => self.fold.execute(&what.change().unwrap()).unwrap(),
            }
            self.decided += 1;
        }
    }

    /// One step on; false at the end.
    fn go_on(&mut self) -> bool {
        let Some(step) = self.case.step(self.cursor, self.fold.as_ref()) else { return false };
        self.cursor = step.last;
        self.fold.apply(step, &mut Vec::new()).unwrap();
        true
    }

    fn hash(&mut self) -> String {
        self.fold.drain(&mut Vec::new()).unwrap();
        let state = self.fold.checkpoint().unwrap();
        state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor))).unwrap()
    }

    fn save(&mut self, folder: &Path) {
        self.fold.drain(&mut Vec::new()).unwrap();
        let state = self.fold.checkpoint().unwrap();
        let head = Head {
            folder: "case".into(),
            model: "m".into(),
            identity: self.fold.identity(),
            version: Version { epoch: 0, sequence: self.cursor },
            decisions: self.decided as u64,
            tally: Tally::new(100, 0.002),
            values: state.values.clone(),
        };
        Store::new(&FileSystem, folder).save(&head, &state).unwrap();
    }

    /// A fresh fold with the newest checkpoint.
    fn resume<'a>(case: &'a Case, kinds: &Kinds, folder: &Path) -> Life<'a> {
        let mut life = Life::begin(case, kinds);
        let (loaded, faults) = Store::new(&FileSystem, folder).load_newest().unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        if let Some(loaded) = loaded {
            life.fold.restore(loaded.state).unwrap();
            (life.cursor, life.decided) = (loaded.head.version.sequence, loaded.head.decisions as usize);
        }
        life
    }

    /// A change of the plan, the budget, the learning rate, or rows that are skipped.
    fn decide(&mut self, draws: &mut ChaCha8Rng) -> Option<Decision> {
        self.fold.drain(&mut Vec::new()).unwrap();
        let minimum = self.fold.minimum_bytes();
        let what = match below(draws, 8) {
            0 => What::LearningRate(0.001 * (1 + below(draws, 20)) as f64),
            1 if self.case.may_skip => {
                What::Skip { through: (self.cursor + 1 + below(draws, 40)).min(self.case.rows), kept: vec![] }
            }
            // Under a budget: the smallest plan, or the best one, which is measured.
            2 | 3 => {
                let budget_bytes = minimum * [100, 100, 140, 400][below(draws, 4) as usize] / 100;
                let plan = self.fold.propose_plan(Demand { budget_bytes: Some(budget_bytes), row_interval: None }).unwrap();
                What::Plan(Planned { budget_bytes: Some(budget_bytes), allotted_bytes: None, by_hand: false, plan })
            }
            _ => {
                let cut = 2 + below(draws, 2);
                let accumulation = 1 + below(draws, 3);
                let stage = |start, end| json!({ "layers": { "start": start, "end": end }, "accumulation": accumulation, "recompute": cut == 3 });
                let whole = below(draws, 2) == 0;
                let stages = if whole { vec![stage(0, 4)] } else { vec![stage(0, cut), stage(cut, 4)] };
                let wish = json!({ "stages": stages, "workers": 1 + below(draws, 3) });
                // Look-ahead takes one stage.
                let plan = self.fold.complete_plan(&wish, u64::MAX).ok()?;
                What::Plan(Planned { budget_bytes: None, allotted_bytes: None, by_hand: true, plan })
            }
        };
        if let Some(change @ Change::Plan(_)) = what.change() {
            self.fold.check(&change).unwrap();
        }
        Some(Decision { at: Version { epoch: 0, sequence: self.cursor }, what })
    }
}

/// The fold that nothing interrupts makes the decisions; it ends in the hash that all others are held to.
fn uninterrupted(case: &Case, number: u64, kinds: &Kinds) -> (String, Vec<Decision>) {
    let draws = &mut random::stream(SEED, number, "replay decisions");
    let (mut decisions, mut changes) = (Vec::new(), case.changes.iter().peekable());
    let mut life = Life::begin(case, kinds);
    loop {
        while changes.next_if(|&&at| at <= life.cursor).is_some() {
            decisions.extend(life.decide(draws));
            life.execute_due(&decisions);
        }
        if !life.go_on() {
            return (life.hash(), decisions);
        }
    }
}

/// The same with kills and checkpoints.
fn interrupted(case: &Case, decisions: &[Decision], kinds: &[Kinds; 2]) -> (String, usize) {
    let folder = tempfile::tempdir().unwrap();
    let (mut kills, mut saved, mut died) = (case.kills.iter().peekable(), 0, 0);
    let mut life = Life::begin(case, &kinds[0]);
    loop {
        life.execute_due(decisions);
        if life.cursor >= saved + case.checkpoint_rows {
            life.save(folder.path());
            saved = life.cursor;
        }
        if kills.next_if(|&&at| at <= life.cursor).is_some() {
            died += 1;
            // Steps are in flight, and are lost; each life has another number of threads.
            drop(life);
            life = Life::resume(case, &kinds[died % 2], folder.path());
            saved = life.cursor;
            continue;
        }
        if !life.go_on() {
            return (life.hash(), died);
        }
    }
}

#[test]
fn a_hundred_interrupted_lives_end_in_the_hash_of_the_uninterrupted_one() {
    let kinds = ["1", "2"].map(|threads| {
        serve::kinds(&Config::load(None, [], &[("compute.threads".to_owned(), threads.to_owned())]).unwrap()).unwrap()
    });
    let (mut died, mut decided, mut skipped) = (0, 0, 0);
    for number in 0..CASES {
        let case = Case::new(number);
        let (whole, decisions) = uninterrupted(&case, number, &kinds[number as usize % 2]);
        let (hash, deaths) = interrupted(&case, &decisions, &kinds);
        assert_eq!(hash, whole, "case {number}: {:?}, kills {:?}, {decisions:?}", case.spec, case.kills);
        died += deaths;
        decided += decisions.len();
        skipped += decisions.iter().filter(|decision| matches!(decision.what, What::Skip { .. })).count();
    }
    assert!(died >= 200 && decided >= 300 && skipped >= 5, "{died} kills, {decided} decisions, {skipped} skips");
}
