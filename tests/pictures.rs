//! Pictures over HTTP: posted as files are, learned as tensors are, and those that are none refused by row and column.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, RecordBatch, UInt32Array};
use arrow_ipc::writer::StreamWriter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat, RgbImage};
use reqwest::Method;
use serde_json::{Value, json};
use support::{Client, IN_ORDER, Running};

const SIDE: u32 = 12;

fn schema() -> Value {
    json!({
        "fields": [{ "name": "picture", "type": "image", "side": SIDE }],
        "target": { "name": "kind", "type": "classes", "classes": ["lying", "standing"] },
    })
}

fn model(stream: &str) -> Value {
    json!({
        "kind": "network", "stream": stream, "network": { "architecture": "convnet" }, "step_rows": 16, "learning_rate": 0.05,
        "optimiser": { "type": "sgd", "momentum": 0.9 },
    })
}

/// A bright bar that lies or stands, somewhere, on a ground of noise: no pixel alone says which.
fn picture(number: u32) -> RgbImage {
    let mixed = |of: u32| of.wrapping_add(1).wrapping_mul(2_654_435_761) >> 9;
    let (stands, place) = (class(number) == 1, mixed(number) % (SIDE - 2) + 1);
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let noise = (mixed(number * 4096 + x * 64 + y) % 60) as u8;
        let on = if stands { x == place } else { y == place };
        image::Rgb(if on { [250 - noise, 220 - noise, 200] } else { [noise, 40, noise / 2] })
    })
}

fn class(number: u32) -> u32 {
    (number / 3 + number) % 2
}

fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    DynamicImage::from(picture.clone()).write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

fn png(number: u32) -> Vec<u8> {
    encoded(&picture(number), ImageFormat::Png)
}

fn text(number: u32) -> String {
    STANDARD.encode(png(number))
}

fn planes(number: u32) -> Vec<u8> {
    let picture = picture(number);
    (0..3).flat_map(|channel| picture.pixels().map(|pixel| pixel.0[channel]).collect::<Vec<_>>()).collect()
}

/// Some pictures with their labels in each of the formats.
fn bodies(numbers: std::ops::Range<u32>) -> [(&'static str, Vec<u8>); 5] {
    let name = |number: u32| ["lying", "standing"][class(number) as usize];
    let object = |number: u32| json!({ "picture": text(number), "kind": name(number) });
    let lines: String = numbers.clone().map(|number| format!("{}\n", object(number))).collect();
    let csv: String =
        numbers.clone().map(|number| format!("{},\"data:image/png;base64,{}\"\n", name(number), text(number))).collect();
    let files: Vec<Vec<u8>> = numbers.clone().map(png).collect();
    let columns: [(&str, ArrayRef); 2] = [
        ("picture", Arc::new(BinaryArray::from_iter_values(&files))),
        ("kind", Arc::new(UInt32Array::from_iter_values(numbers.clone().map(class)))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut arrow = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    arrow.write(&batch).unwrap();
    let mut raw: Vec<u8> = numbers.clone().flat_map(planes).collect();
    raw.extend(numbers.clone().flat_map(|number| class(number).to_le_bytes()));
    [
        ("application/json", json!({ "rows": numbers.map(object).collect::<Vec<_>>() }).to_string().into_bytes()),
        ("application/x-ndjson", lines.into_bytes()),
        ("text/csv", format!("kind,picture\n{csv}").into_bytes()),
        ("application/vnd.apache.arrow.stream", arrow.into_inner().unwrap()),
        ("application/octet-stream", raw),
    ]
}

async fn made(client: &Client, name: &str) {
    client.put(&format!("/v1/streams/{name}"), &schema()).await.expect(201);
    client.put(&format!("/v1/models/{name}"), &model(name)).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_learns_from_pictures_in_any_format() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[IN_ORDER]).await;
    let client = &running.client;
    let asked = json!({ "rows": (5000..5040).map(|number| json!({ "picture": text(number) })).collect::<Vec<_>>() });
    let mut answers = Vec::new();
    for (at, (content_type, body)) in bodies(0..64).into_iter().enumerate() {
        let name = format!("s{at}");
        made(client, &name).await;
        let applied = client.post(&format!("/v1/streams/{name}/batches?wait=applied"), content_type, body).await.expect(200);
        assert_eq!((&applied["rows"], &applied["applied"]), (&json!(64), &json!(true)), "{content_type}");
        answers.push(client.post_json(&format!("/v1/models/{name}/predict"), &asked).await.expect(200)["predictions"].clone());
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    for first in (64..2032).step_by(328) {
        let [(content_type, body), ..] = bodies(first..first + 328);
        client.post("/v1/streams/s0/batches?wait=applied", content_type, body).await.expect(200);
    }
    let accuracy = client.settled("s0").await["sliding"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
    // A picture that says more than its middle, in another format, is asked about as well.
    let wide = RgbImage::from_fn(96, 48, |x, y| *picture(1).get_pixel(x % 48 / 4, y / 4));
    let row = json!({ "rows": [{ "picture": STANDARD.encode(encoded(&wide, ImageFormat::Jpeg)) }] });
    client.post_json("/v1/models/s0/predict", &row).await.expect(200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_tensors_send_files_or_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    made(client, "s").await;
    let model = client.get("/v2/models/s").await.expect(200);
    assert_eq!(model["inputs"], json!([{ "name": "picture", "datatype": "UINT8", "shape": [-1, 3, SIDE, SIDE] }]));
    let files: Vec<u8> = (0..2).map(png).flat_map(|png| [&(png.len() as u32).to_le_bytes()[..], &png].concat()).collect();
    let numbers: Vec<u8> = (0..2).flat_map(planes).collect();
    let rows = json!({ "rows": [{ "picture": text(0) }, { "picture": text(1) }] });
    let told = client.post_json("/v1/models/s/predict", &rows).await.expect(200);
    let input = |shape: Value, datatype: &str, tail: usize| json!({ "inputs": [{ "name": "picture", "shape": shape, "datatype": datatype, "parameters": { "binary_data_size": tail } }] });
    let requests = [
        (input(json!([2, 3, SIDE, SIDE]), "UINT8", numbers.len()), numbers),
        (input(json!([2]), "BYTES", files.len()), files.clone()),
        (input(json!([2, 1]), "BYTES", files.len()), files.clone()),
        (json!({ "inputs": [{ "name": "picture", "shape": [2], "datatype": "BYTES", "data": [text(0), text(1)] }] }), Vec::new()),
    ];
    for (head, tail) in requests {
        let head = head.to_string();
        let body = [head.as_bytes(), &tail].concat();
        let headers = [("inference-header-content-length", head.len().to_string())].map(|(name, value)| (name, value));
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = client.send(Method::POST, "/v2/models/s/infer", &headers, body).await.expect(200);
        let output = |name: &str| {
            let outputs = answer["outputs"].as_array().unwrap();
            outputs.iter().find(|output| output["name"] == name).unwrap()["data"].clone()
        };
        let classes: Vec<Value> = told["predictions"].as_array().unwrap().iter().map(|row| row["class"].clone()).collect();
        assert_eq!(output("class"), json!(classes), "{head}");
    }
    let head = input(json!([2]), "BYTES", files.len() - 30).to_string();
    let (length, body) = (head.len().to_string(), [head.as_bytes(), &files[..files.len() - 30]].concat());
    let headers = [("inference-header-content-length", length.as_str())];
    client.send(Method::POST, "/v2/models/s/infer", &headers, body).await.expect_problem(422, "invalid_inputs");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_picture_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(folder.path(), &[]).await;
    let client = &running.client;
    made(client, "s").await;
    let cut = STANDARD.encode(&png(0)[..60]);
    let long = STANDARD.encode(encoded(&RgbImage::new(8, 20_000), ImageFormat::Png));
    for bad in ["", "no base64", "AAAA", &cut, &long] {
        let rows = json!({ "rows": [
            { "picture": text(0), "kind": 0 }, { "picture": bad, "kind": 0 }, { "picture": text(1), "kind": 1 }
        ] });
        let problem = client.post_json("/v1/streams/s/batches", &rows).await.expect_problem(422, "invalid_rows");
        assert_eq!(problem["errors_total"], 1, "{problem}");
        let error = &problem["errors"][0];
        assert_eq!((&error["row"], &error["column"]), (&json!(1), &json!("picture")), "{problem}");
        let asked = json!({ "rows": [{ "picture": text(0) }, { "picture": bad }] });
        client.post_json("/v1/models/s/predict", &asked).await.expect_problem(422, "invalid_rows");
    }
    assert_eq!(client.get("/v1/streams/s").await.expect(200)["sequence"], 0);
    let [(content_type, body), ..] = bodies(0..3);
    let answer = client.post("/v1/streams/s/batches", content_type, body).await.expect(202);
    assert_eq!((&answer["first_sequence"], &answer["sequence"]), (&json!(1), &json!(3)));
    let wrong = json!({ "fields": [{ "name": "picture", "type": "image", "side": 4 }] });
    client.put("/v1/streams/t", &wrong).await.expect_problem(422, "invalid_stream");
    running.stop().await;
}
