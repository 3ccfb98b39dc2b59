//! A model's outputs: `class` and, where classes have names, `label`, with `probabilities`; or `value`.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::guard::Judged;
use super::super::predict::argmax;
use super::super::problem::Problem;
use super::request::HEAD_BYTES;
use crate::fold::{Predictions, Version};
use crate::model::live::Live;
use crate::model::predict::Answer;
use crate::stream::Schema;

/// What a client wants of an answer.
pub(super) struct Asked {
    /// Given back as it came.
    pub(super) id: Option<String>,
    /// Which outputs; all where none is named.
    pub(super) outputs: Vec<Wanted>,
    /// How outputs come that are not named.
    pub(super) as_bytes: bool,
}

/// One output that is wanted.
pub(super) struct Wanted {
    pub(super) name: String,
    /// As bytes behind the head, and not as JSON.
    pub(super) as_bytes: bool,
}

/// One output.
struct Output<'a> {
    name: &'static str,
    shape: Vec<usize>,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Classes(Vec<u32>),
    Labels(Vec<&'a str>),
    Numbers(&'a [f32]),
}

impl Data<'_> {
    fn datatype(&self) -> &'static str {
        match self {
            Data::Classes(_) => "UINT32",
            Data::Labels(_) => "BYTES",
            Data::Numbers(_) => "FP32",
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Data::Classes(classes) => classes.iter().flat_map(|class| class.to_le_bytes()).collect(),
            Data::Numbers(numbers) => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            Data::Labels(labels) => {
                let behind_length = |label: &&str| [&(label.len() as u32).to_le_bytes(), label.as_bytes()].concat();
                labels.iter().flat_map(behind_length).collect()
            }
        }
    }
}

/// What the models of a stream give.
pub(super) fn described(schema: &Schema) -> Vec<Value> {
    let classes = if schema.is_classified() { schema.class_count() } else { 0 };
    let none = match classes {
        0 => Predictions::Values(Vec::new()),
        _ => Predictions::Classes { classes, probabilities: Vec::new() },
    };
    let describe = |output: Output<'_>| {
        let shape: Vec<i64> = [-1].into_iter().chain(output.shape.iter().skip(1).map(|&size| size as i64)).collect();
        json!({ "name": output.name, "datatype": output.data.datatype(), "shape": shape })
    };
    outputs(&none, schema).into_iter().map(describe).collect()
}

fn outputs<'a>(predictions: &'a Predictions, schema: &'a Schema) -> Vec<Output<'a>> {
    let (classes, probabilities) = match predictions {
        Predictions::Classes { classes, probabilities } => (*classes, probabilities),
        Predictions::Values(values) => {
            return vec![Output { name: "value", shape: vec![values.len()], data: Data::Numbers(values) }];
        }
    };
    let most: Vec<usize> = probabilities.chunks_exact(classes.max(1)).map(argmax).collect();
    let rows = most.len();
    let mut outputs = Vec::new();
    if let Some(names) = schema.class_names() {
        let labels = most.iter().map(|&class| names.get(class).map_or("", String::as_str)).collect();
        outputs.push(Output { name: "label", shape: vec![rows], data: Data::Labels(labels) });
    }
    let most = most.into_iter().map(|class| class as u32).collect();
    outputs.insert(0, Output { name: "class", shape: vec![rows], data: Data::Classes(most) });
    outputs.push(Output { name: "probabilities", shape: vec![rows, classes], data: Data::Numbers(probabilities) });
    outputs
}

/// The JSON head of an answer.
#[derive(Serialize)]
struct Head<'a> {
    model_name: &'a str,
    model_version: Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Flagged<'a>>,
    outputs: Vec<Described<'a>>,
}

/// What the model's guard says; the protocol's parameters are texts, numbers and truths, so rows are listed in a text.
#[derive(Serialize)]
struct Flagged<'a> {
    guard_detector: &'a str,
    /// The numbers of the rows that it flags, such as `0,3`; none where it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    guard_flagged_rows: Option<String>,
}

impl<'a> Flagged<'a> {
    fn new(judged: &'a Judged) -> Flagged<'a> {
        let flagged = judged.rows.iter().enumerate().filter(|(_, row)| row.flagged).map(|(row, _)| row.to_string());
        let guard_flagged_rows = (!judged.rows.is_empty()).then(|| flagged.collect::<Vec<_>>().join(","));
        Flagged { guard_detector: &judged.detector, guard_flagged_rows }
    }
}

#[derive(Serialize)]
struct Described<'a> {
    name: &'static str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Data<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// The answer: a JSON head, and the bytes of those outputs that are wanted so.
pub(super) fn answer(live: &Live, answer: &Answer, judged: Option<&Judged>, asked: &Asked) -> Result<Response, Problem> {
    let all = outputs(&answer.predictions, &live.stream.schema);
    let (mut tail, mut described) = (Vec::new(), Vec::new());
    for (Output { name, shape, data }, as_bytes) in chosen(&all, asked)? {
        let mut parameters = None;
        if as_bytes {
            let bytes = data.bytes();
            parameters = Some(BinarySize { binary_data_size: bytes.len() });
            tail.extend(bytes);
        }
        let data_listed = (!as_bytes).then_some(data);
        described.push(Described { name, datatype: data.datatype(), shape, parameters, data: data_listed });
    }
    let head = Head {
        model_name: &live.name,
        model_version: answer.version,
        id: asked.id.as_deref(),
        parameters: judged.map(Flagged::new),
        outputs: described,
    };
    let mut body = serde_json::to_vec(&head).map_err(|_| Problem::internal())?;
    if tail.is_empty() {
        return Ok(([(CONTENT_TYPE, "application/json")], body).into_response());
    }
    let head_bytes = body.len().to_string();
    body.extend(tail);
    let headers = [(CONTENT_TYPE.as_str(), "application/octet-stream"), (HEAD_BYTES, head_bytes.as_str())];
    Ok((headers, body).into_response())
}

/// The outputs that are wanted, and whether as bytes.
fn chosen<'a>(all: &'a [Output<'a>], asked: &Asked) -> Result<Vec<(&'a Output<'a>, bool)>, Problem> {
    if asked.outputs.is_empty() {
        return Ok(all.iter().map(|output| (output, asked.as_bytes)).collect());
    }
    let mut chosen: Vec<(&Output<'_>, bool)> = Vec::new();
    for wanted in &asked.outputs {
        let found = all.iter().find(|output| output.name == wanted.name);
        match found {
            // An answer is bounded by what the model has, whatever a client lists.
            Some(output) if chosen.iter().all(|(other, _)| other.name != output.name) => chosen.push((output, wanted.as_bytes)),
            Some(output) => {
                let detail = format!("`{}` is asked for twice", output.name);
                return Err(Problem::unprocessable("invalid_outputs", detail));
            }
            None => {
                let names: Vec<&str> = all.iter().map(|output| output.name).collect();
                let detail = format!("an output that the model has not is asked for; it has {}", names.join(", "));
                return Err(Problem::unprocessable("invalid_outputs", detail));
            }
        }
    }
    Ok(chosen)
}
