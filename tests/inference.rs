//! The Open Inference Protocol: what its doors say of a model, that tensors are answered as rows are, and that bad ones are refused.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::{Client, Running, points, points_model, points_schema};

const INFER: &str = "/v2/models/m/infer";

async fn running(folder: &tempfile::TempDir) -> Running {
    let running = Running::start(folder.path(), &[("http.decoded_bytes_max", "32MiB")]).await;
    let client = &running.client;
    client.put("/v1/streams/points", &points_schema()).await.expect(201);
    client.put("/v1/models/m", &points_model("points")).await.expect(201);
    client.post_json("/v1/streams/points/batches?wait=applied", &points(0, 300)).await.expect(200);
    running
}

fn fp32(name: &str, data: Value) -> Value {
    let rows = data.as_array().unwrap().len();
    json!({ "name": name, "datatype": "FP32", "shape": [rows], "data": data })
}

/// The input `y`, well made or not.
fn of(shape: Value, datatype: &str, data: Value) -> Value {
    json!({ "name": "y", "shape": shape, "datatype": datatype, "data": data })
}

/// The bytes of a request with a binary tail, and the length of its head.
fn binary(head: &Value, tail: &[u8]) -> (Vec<u8>, String) {
    let head = head.to_string();
    (([head.as_bytes(), tail].concat()), head.len().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn models_say_what_they_take_and_give() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    assert_eq!(client.get("/v2").await.expect(200)["name"], "mustela");
    let version = client.get("/v1/models/m").await.expect(200)["published_version"].clone();
    let model = client.get("/v2/models/m").await.expect(200);
    assert_eq!(
        model,
        json!({
            "name": "m", "versions": [version], "platform": "mustela_network",
            "inputs": [
                { "name": "x", "datatype": "FP32", "shape": [-1] },
                { "name": "y", "datatype": "FP32", "shape": [-1] },
            ],
            "outputs": [
                { "name": "class", "datatype": "UINT32", "shape": [-1] },
                { "name": "label", "datatype": "BYTES", "shape": [-1] },
                { "name": "probabilities", "datatype": "FP32", "shape": [-1, 3] },
            ],
        })
    );
    let version = version.as_str().unwrap();
    assert_eq!(client.get("/v2/models/m/ready").await.expect(200), json!({ "name": "m", "ready": true }));
    assert_eq!(client.get(&format!("/v2/models/m/versions/{version}")).await.expect(200), model);
    client.get(&format!("/v2/models/m/versions/{version}/ready")).await.expect(200);
    let problem = client.get("/v2/models/m/versions/0.1").await.expect_problem(404, "version_not_served");
    assert_eq!(problem["model_version"], version);
    client.get("/v2/models/other").await.expect_problem(404, "not_found");
    client.get("/v2/models/other/ready").await.expect_problem(404, "not_found");
    let index = client.post_json("/v2/repository/index", &json!({})).await.expect(200);
    assert_eq!(index, json!([{ "name": "m", "version": version, "state": "READY", "reason": "" }]));

    let pictures = json!({
        "fields": [{ "name": "p", "type": "tensor", "shape": [1, 2, 3], "element": "u8" }],
        "target": { "name": "v", "type": "regression" },
    });
    client.put("/v1/streams/pictures", &pictures).await.expect(201);
    let spec = json!({ "kind": "network", "stream": "pictures", "network": { "architecture": "linear" } });
    client.put("/v1/models/r", &spec).await.expect(201);
    let model = client.get("/v2/models/r").await.expect(200);
    assert_eq!(model["inputs"], json!([{ "name": "p", "datatype": "UINT8", "shape": [-1, 1, 2, 3] }]));
    assert_eq!(model["outputs"], json!([{ "name": "value", "datatype": "FP32", "shape": [-1] }]));
    let data = json!([[[[1, 2, 3], [4, 5, 6]]], [[[7, 8, 9], [10, 11, 255]]]]);
    let input = json!({ "name": "p", "datatype": "INT64", "shape": [2, 1, 2, 3], "data": data });
    let answer = client.post_json("/v2/models/r/infer", &json!({ "inputs": [input] })).await.expect(200);
    let rows = json!({ "rows": [{ "p": [1, 2, 3, 4, 5, 6] }, { "p": [7, 8, 9, 10, 11, 255] }] });
    let predictions = client.post_json("/v1/models/r/predict", &rows).await.expect(200)["predictions"].clone();
    assert_eq!(answer["outputs"][0]["data"], json!([predictions[0]["value"], predictions[1]["value"]]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_are_answered_as_rows_are() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let rows = json!({ "rows": [{ "x": 0.5, "y": 4.0 }, { "x": 20.0, "y": 3.0 }] });
    let told = client.post_json("/v1/models/m/predict", &rows).await.expect(200);
    let (x, y) = (fp32("x", json!([0.5, 20.0])), fp32("y", json!([4.0, 3.0])));
    let answer = client.post_json(INFER, &json!({ "id": "7", "inputs": [y, x] })).await.expect(200);
    assert_eq!((&answer["model_name"], &answer["id"]), (&json!("m"), &json!("7")));
    assert_eq!(answer["model_version"], told["model_version"]);
    let by_row = |of: &str| -> Vec<Value> {
        told["predictions"].as_array().unwrap().iter().map(|prediction| prediction[of].clone()).collect()
    };
    let [class, label, probabilities] = [0, 1, 2].map(|output| &answer["outputs"][output]);
    assert_eq!(class["data"], json!(by_row("class")));
    assert_eq!(label["data"], json!(by_row("label")));
    assert_eq!(probabilities["shape"], json!([2, 3]));
    let flat: Vec<Value> = by_row("probabilities").iter().flat_map(|row| row.as_array().unwrap().clone()).collect();
    assert_eq!(probabilities["data"], json!(flat));

    // The same as bytes: one input as 64-bit numbers, of one number a row; two outputs of which one is JSON.
    let head = json!({
        "inputs": [
            { "name": "x", "datatype": "FP64", "shape": [2, 1], "parameters": { "binary_data_size": 16 } },
            { "name": "y", "datatype": "FP32", "shape": [2], "parameters": { "binary_data_size": 8 } },
        ],
        "outputs": [
            { "name": "probabilities", "parameters": { "binary_data": true } },
            { "name": "class" },
        ],
    });
    let mut tail: Vec<u8> = [0.5f64, 20.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    tail.extend([4.0f32, 3.0].iter().flat_map(|number| number.to_le_bytes()));
    let (body, length) = binary(&head, &tail);
    let problem = client.post(INFER, "application/octet-stream", body.clone()).await;
    problem.expect_problem(400, "invalid_json");
    let (status, headers, body) =
        client.raw(Method::POST, INFER, &[("inference-header-content-length", &length)], body).await.unwrap();
    assert_eq!(status, 200);
    let (answer, tail) = body.split_at(headers["inference-header-content-length"].to_str().unwrap().parse().unwrap());
    let answer: Value = serde_json::from_slice(answer).unwrap();
    assert_eq!(answer["outputs"][0]["parameters"]["binary_data_size"], 24);
    assert_eq!(answer["outputs"][1]["data"], class["data"]);
    let numbers: Vec<f32> = tail.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let flat: Vec<f32> = flat.iter().map(|number| number.as_f64().unwrap() as f32).collect();
    assert_eq!(numbers, flat);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn words_and_what_is_missing_have_a_tensor_too() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let schema = json!({
        "fields": [
            { "name": "carrier", "type": "categorical" },
            { "name": "delay", "type": "numeric", "optional": true },
        ],
        "target": { "name": "late", "type": "classes", "classes": 2 },
    });
    client.put("/v1/streams/flights", &schema).await.expect(201);
    client.put("/v1/models/f", &json!({ "kind": "network", "stream": "flights" })).await.expect(201);
    let rows = json!({ "rows": [{ "carrier": "AA", "delay": 1.5 }, { "carrier": "7" }] });
    let told = client.post_json("/v1/models/f/predict", &rows).await.expect(200)["predictions"].clone();
    let carrier = json!({ "name": "carrier", "datatype": "BYTES", "shape": [2], "data": ["AA", "7"] });
    let answer = json!({ "inputs": [carrier, fp32("delay", json!([1.5, null]))], "outputs": [{ "name": "probabilities" }] });
    let answer = client.post_json("/v2/models/f/infer", &answer).await.expect(200);
    let flat: Vec<Value> =
        told.as_array().unwrap().iter().flat_map(|row| row["probabilities"].as_array().unwrap().clone()).collect();
    assert_eq!(answer["outputs"][0]["data"], json!(flat));

    let head = json!({
        "inputs": [
            { "name": "carrier", "datatype": "BYTES", "shape": [2], "parameters": { "binary_data_size": 11 } },
            { "name": "delay", "datatype": "FP32", "shape": [2], "parameters": { "binary_data_size": 8 } },
        ],
        "outputs": [{ "name": "probabilities" }],
    });
    let words: Vec<u8> =
        ["AA", "7"].iter().flat_map(|word| [&(word.len() as u32).to_le_bytes(), word.as_bytes()].concat()).collect();
    let delays: Vec<u8> = [1.5, f32::NAN].iter().flat_map(|number| number.to_le_bytes()).collect();
    let (body, length) = binary(&head, &[words, delays].concat());
    let headers = [("inference-header-content-length", length.as_str())];
    let answer = client.send(Method::POST, "/v2/models/f/infer", &headers, body).await.expect(200);
    assert_eq!(answer["outputs"][0]["data"], json!(flat));
    running.stop().await;
}

async fn refused(client: &Client, body: &Value, code: &str) -> String {
    let problem = client.post_json(INFER, body).await.expect_problem(422, code);
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tensors_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let (x, y) = (fp32("x", json!([1.0])), fp32("y", json!([2.0])));
    for (bad, told) in [
        (fp32("z", json!([1.0])), "no such input"),
        (of(json!([2]), "FP32", json!([1.0])), "1 elements, and the shape [2] has 2"),
        (of(json!([1]), "FP32", json!([1.0, 2.0])), "more elements"),
        (of(json!([2, 9223372036854775808u64]), "FP32", json!([1.0])), "so many rows have 2 elements"),
        (of(json!([1, 2]), "FP32", json!([1.0, 2.0])), "so many rows have 1 elements"),
        (of(json!([]), "FP32", json!(1.0)), "so many rows have 0 elements"),
        (of(json!([1]), "FP16", json!([1.0])), "`FP16`"),
        (of(json!([1]), "UINT8", json!([300])), "300"),
        (of(json!([1]), "INT8", json!([1.5])), "1.5"),
        (of(json!([1]), "FP32", json!(["a"])), "a text"),
        (of(json!([1]), "BOOL", json!([2])), "2 is not"),
        (json!({ "name": "y", "shape": [1], "datatype": "FP32" }), "either `data`"),
        (json!({ "name": "y", "shape": [1], "datatype": "FP32", "parameters": { "binary_data_size": 4 } }), "are left"),
    ] {
        let detail = refused(client, &json!({ "inputs": [x, bad] }), "invalid_inputs").await;
        assert!(detail.contains(told), "{detail}");
    }
    for (inputs, told) in [
        (json!([x]), "`y`: the column is missing"),
        (json!([x, y, y]), "there twice"),
        (json!([x, of(json!([2]), "FP32", json!([1.0, 2.0]))]), "the first input has 1 rows"),
        (json!([x, of(json!([1]), "BYTES", json!(["a"]))]), "the text `a`"),
        (json!([x, of(json!([1]), "FP32", json!([null]))]), "null"),
        (json!([x, of(json!([1]), "FP64", json!([1e300]))]), "not a finite"),
        (json!([fp32("x", json!([])), fp32("y", json!([]))]), "no rows"),
        (json!([]), "no rows"),
    ] {
        let detail = refused(client, &json!({ "inputs": inputs }), "invalid_rows").await;
        assert!(detail.contains(told.split(": ").last().unwrap()), "{detail}, not {told}");
    }
    for (outputs, told) in [
        (json!([{ "name": "logits" }]), "class, label, probabilities"),
        (json!([{ "name": "class" }, { "name": "class" }]), "twice"),
    ] {
        let detail = refused(client, &json!({ "inputs": [x, y], "outputs": outputs }), "invalid_outputs").await;
        assert!(detail.contains(told), "{detail}");
    }
    let classified = json!({ "inputs": [x, y], "outputs": [{ "name": "class", "parameters": { "classification": 2 } }] });
    refused(client, &classified, "invalid_inputs").await;
    refused(client, &json!({ "inputs": 7 }), "invalid_body").await;
    refused(client, &json!({}), "invalid_body").await;
    client.post_json("/v2/models/other/infer", &json!({ "inputs": [x, y] })).await.expect_problem(404, "not_found");
    let versioned = "/v2/models/m/versions/0.7/infer";
    client.post_json(versioned, &json!({ "inputs": [x, y] })).await.expect_problem(404, "version_not_served");

    client.post_json(INFER, &json!({ "inputs": [x, y] })).await.expect(200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_or_says_a_wrong_length_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let running = running(&folder).await;
    let client = &running.client;
    let (x, y) = (fp32("x", json!([1.0])), fp32("y", json!([2.0])));
    let good = json!({ "inputs": [x, y] }).to_string();
    for (length, code, status) in [("-1", "invalid_header", 400), ("9999", "invalid_header", 400), ("4", "invalid_json", 400)] {
        let headers = [("inference-header-content-length", length)];
        client.send(Method::POST, INFER, &headers, good.clone()).await.expect_problem(status, code);
    }
    let (body, length) = binary(&json!({ "inputs": [x, y] }), b"rest");
    let headers = [("inference-header-content-length", length.as_str())];
    client.send(Method::POST, INFER, &headers, body).await.expect_problem(422, "invalid_inputs");
    let word =
        json!({ "inputs": [x, { "name": "y", "shape": [1], "datatype": "BYTES", "parameters": { "binary_data_size": 6 } }] });
    let (body, length) = binary(&word, &[200, 0, 0, 0, 65, 66]);
    let headers = [("inference-header-content-length", length.as_str())];
    client.send(Method::POST, INFER, &headers, body).await.expect_problem(422, "invalid_inputs");

    let many = vec![0.0; 8193];
    let all = json!({ "inputs": [fp32("x", json!(many)), fp32("y", json!(many))] });
    refused(client, &all, "too_many_rows").await;
    let many = json!({ "inputs": [x, of(json!([u64::MAX, 2]), "FP32", json!([1.0]))] });
    refused(client, &many, "too_many_rows").await;
    // What is listed is counted while it is read.
    let many = json!({ "inputs": [x, of(json!([1, 1, 1, 1, 1, 1, 1, 1, 1]), "FP32", json!([1.0]))] });
    refused(client, &many, "invalid_body").await;
    let outputs: Vec<Value> = (0..17).map(|_| json!({ "name": "class" })).collect();
    refused(client, &json!({ "inputs": [x, y], "outputs": outputs }), "invalid_body").await;
    let long = client.post_json(INFER, &json!({ "inputs": "A".repeat(1 << 20) })).await;
    assert!(long.expect(422)["detail"].as_str().unwrap().len() < 4096);
    client.post_json(INFER, &json!({ "inputs": [x, y] })).await.expect(200);
    running.stop().await;
}
