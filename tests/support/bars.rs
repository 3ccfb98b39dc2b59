//! A live network of pictures and a detector of it: bars that lie or stand, and a chequered pattern over them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use serde_json::{Value, json};

use super::{Client, png};

pub const SIDE: u32 = 12;

/// A bar that lies or stands on noise; an adversarial one has a chequered pattern over it.
pub fn picture(number: u32, adversarial: bool) -> RgbImage {
    let mixed = |of: u32| of.wrapping_add(1).wrapping_mul(2_654_435_761) >> 9;
    let place = mixed(number) % (SIDE - 2) + 1;
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let noise = (mixed(number * 4096 + x * 64 + y) % 60) as u8;
        let on = if number.is_multiple_of(2) { x == place } else { y == place };
        let chequered = if adversarial && (x + y) % 2 == 0 { 40 } else { 0 };
        image::Rgb(if on { [200 - noise, 180 - noise, 160] } else { [noise + chequered, 40 + chequered, noise / 2] })
    })
}

pub fn text(number: u32, adversarial: bool) -> String {
    STANDARD.encode(png(&picture(number, adversarial)))
}

/// Rows of the network's stream.
pub fn lessons(numbers: std::ops::Range<u32>) -> Value {
    let row = |number: u32| json!({ "picture": text(number, false), "kind": number % 2 });
    json!({ "rows": numbers.map(row).collect::<Vec<_>>() })
}

/// Rows of the detector's stream: every third one adversarial.
pub fn examples(numbers: std::ops::Range<u32>) -> Value {
    let row = |number: u32| {
        let adversarial = number % 3 == 2;
        json!({ "picture": text(number, adversarial), "label": if adversarial { "adversarial" } else { "benign" } })
    };
    json!({ "rows": numbers.map(row).collect::<Vec<_>>() })
}

pub fn asked(rows: &[(u32, bool)]) -> Value {
    json!({ "rows": rows.iter().map(|&(number, adversarial)| json!({ "picture": text(number, adversarial) })).collect::<Vec<_>>() })
}

pub async fn network(client: &Client) {
    let schema = json!({
        "fields": [{ "name": "picture", "type": "image", "side": SIDE }],
        "target": { "name": "kind", "type": "classes", "classes": 2 },
    });
    client.put("/v1/streams/bars", &schema).await.expect(201);
    let model = json!({
        "kind": "network", "stream": "bars", "network": { "architecture": "convnet" }, "step_rows": 16, "learning_rate": 0.05,
    });
    client.put("/v1/models/m", &model).await.expect(201);
    learn(client, 0..64).await;
}

pub async fn learn(client: &Client, numbers: std::ops::Range<u32>) {
    client.post_json("/v1/streams/bars/batches?wait=applied", &lessons(numbers)).await.expect(200);
}

pub fn spec() -> Value {
    json!({ "watches": "m", "direction": "whitened", "kept_rows": 100 })
}

pub async fn teach(client: &Client, numbers: std::ops::Range<u32>) -> Value {
    let answer = client.post_json("/v1/detectors/d/examples", &examples(numbers)).await.expect(202);
    client.detector_at("d", answer["sequence"].as_u64().unwrap()).await
}

pub async fn version_of_m(client: &Client) -> Value {
    client.get("/v1/models/m").await.expect(200)["published_version"].clone()
}
