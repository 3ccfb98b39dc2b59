//! A detector's plan is what it holds at most, as the allocator sees it, adoptions and readers included. A file of its own with one test, because
//! the allocator is the process's.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "the table is the test's figures")]

use std::sync::Arc;

use bytes::Bytes;
use mustela::allocator;
use mustela::disk::FileSystem;
use mustela::encoder::shelf::Shelf;
use mustela::ferret::pool::Pool;
use mustela::ferret::snapshot::NetworkSnapshot;
use mustela::ferret::stage::LayerWeights;
use mustela::fold::{Change, Fold, Snapshot, Step, Version};
use mustela::ledger::Ledger;
use mustela::method::nearside::kind::DetectorKind;
use mustela::method::nearside::parent::freeze;
use mustela::model::blobs::{Blobs, name_of};
use mustela::model::kind::{Given, Kind};
use mustela::model::network::network_of;
use mustela::rows::{Block, Element, Rows, Target};
use mustela::stream::Schema;
use serde_json::{Map, Value, json};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

const SLACK_BYTES: u64 = 64 << 10;
const SIDE: usize = 32;
const STEP_ROWS: usize = 16;
const DIRECTIONS: [&str; 3] = ["mean_difference", "whitened", "logistic"];

fn schema(classes: &Value) -> Schema {
    let fields = json!([{ "name": "picture", "type": "image", "side": SIDE }]);
    serde_json::from_value(json!({ "fields": fields, "target": { "name": "label", "type": "classes", "classes": classes } }))
        .unwrap()
}

/// Weights of a network that has learned nothing, drawn by a seed, as a detector adopts them.
fn adoption(blobs: &Blobs, settings: &Map<String, Value>, seed: u64) -> Change {
    let network = Arc::new(network_of(settings, &schema(&json!(10))).unwrap());
    let weights = network.initial_weights(seed).unwrap().into_iter();
    let weights = weights.map(|tensors| Arc::new(LayerWeights::new(tensors, &Ledger::default()))).collect();
    let bytes = freeze(&NetworkSnapshot::new(network, weights)).unwrap();
    blobs.keep(&bytes).unwrap();
    let weights = name_of(&bytes);
    Change::Setting(json!({ "adopt": { "model_id": 1, "version": Version { epoch: 0, sequence: seed }, "weights": weights } }))
}

/// Pictures of two kinds.
fn step(number: usize) -> Step {
    let width = 3 * SIDE * SIDE;
    let bytes: Vec<u8> = (0..STEP_ROWS * width).map(|at| ((at * 31 + number) % 251 / (1 + at / width % 2)) as u8).collect();
    let rows = Rows {
        count: STEP_ROWS,
        blocks: vec![Block { element: Element::U8, width, bytes: Bytes::from(bytes) }],
        target: Some(Target::Classes((0..STEP_ROWS as u32).map(|row| row % 2).collect())),
        ..Rows::default()
    };
    Step::starting((number * STEP_ROWS) as u64 + 1, rows)
}

fn snapshot(fold: &mut dyn Fold) -> Option<Arc<dyn Snapshot>> {
    fold.begin_snapshot(&mut Vec::new()).unwrap();
    fold.snapshot().unwrap()
}

#[test]
fn plan_and_allocator_agree_over_adoptions() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::new(Arc::new(FileSystem), folder.path(), 1);
    let of_network: Map<String, Value> = serde_json::from_value(json!({ "network": { "architecture": "convnet" } })).unwrap();
    let changes = [1, 2, 3].map(|seed| adoption(&blobs, &of_network, seed));
    let kind = DetectorKind { shelf: Arc::new(Shelf::new(folder.path())), pool: Pool::new(1, 0).unwrap() };
    let schema_of_detector = schema(&json!(["benign", "adversarial"]));
    // The first of each is not held to anything: threads get the packing space of their products once, and keep it.
    for (direction, warm) in DIRECTIONS.into_iter().flat_map(|direction| [(direction, false), (direction, true)]) {
        let watches = json!({ "model": "m", "settings": of_network, "schema": schema(&json!(10)) });
        let settings = json!({ "watches": watches, "direction": direction, "kept_rows": 64, "calibration_rows": 100 });
        let settings: Map<String, Value> = serde_json::from_value(settings).unwrap();
        let given =
            Given { settings: &settings, schema: &schema_of_detector, queued_bytes: 0, may_skip: false, blobs: Some(&blobs) };
        let before = allocator::live_bytes();
        allocator::reset_peak();
        let mut fold = kind.build(given).unwrap();
        let (mut outcomes, mut held) = (Vec::with_capacity(64), Vec::new());
        for number in 0..30 {
            if number % 10 == 0 {
                fold.check(&changes[number / 10]).unwrap();
                fold.carry_out(&changes[number / 10]).unwrap();
            }
            fold.apply(step(number), &mut outcomes).unwrap();
            // A reader keeps the one before, through which it looks at a version that may have been superseded.
            held.extend(snapshot(fold.as_mut()));
            if held.len() > 1 {
                held.remove(0);
            }
        }
        let (peak, planned, high_water) = (allocator::peak_bytes() - before, fold.planned_bytes(), fold.ledger().high_water());
        println!("{direction}: planned {planned}, ledger {high_water}, allocator {peak}");
        drop((fold, held, outcomes));
        if !warm {
            continue;
        }
        assert!(peak <= planned + SLACK_BYTES, "{direction}: the allocator's {peak} is over the plan's {planned}");
        assert!(planned <= 2 * peak, "{direction}: the plan's {planned} is more than twice the allocator's {peak}");
        // A compute thread lets go of its last job a moment after it has told its answer.
        let left = || allocator::live_bytes().saturating_sub(before);
        let patience = (0..500).find(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            left() <= SLACK_BYTES
        });
        assert!(patience.is_some(), "{direction}: {} bytes are left", left());
    }
}
