//! The OpenAPI document as a test reads it: operations, examples, and whether an answer is one that it tells of.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "for tests")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use axum::http::Method;
use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};

use crate::support::Answer;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/openapi.json");
/// Where the document is to be while its schemas are compiled.
const PLACE: &str = "http://mustela/openapi.json";

/// A path with a method.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: Method,
    /// As the document has it, with parameters in braces.
    pub path: String,
    /// What it says, references and all.
    pub said: Value,
}

impl Operation {
    pub fn id(&self) -> &str {
        self.said["operationId"].as_str().unwrap()
    }

    /// Whether refusals have this type: problems everywhere, and at OpenAI's door what its clients read, too.
    fn refuses_as(&self, media_type: &str) -> bool {
        media_type == "application/problem+json" || self.id() == "moderate" && media_type == "application/json"
    }
}

/// The code of a refusal, in either shape.
pub fn code(refusal: &Value) -> &str {
    refusal.get("code").unwrap_or(&refusal["error"]["code"]).as_str().unwrap()
}

/// A body that a request may have.
#[derive(Clone, Debug)]
pub struct Body {
    pub media_type: String,
    /// The example's name: the stream, the model or the detector that it is for, up to the first dot.
    pub name: String,
    /// How it is compressed.
    pub encoding: Option<String>,
    pub bytes: Vec<u8>,
}

impl Body {
    pub fn of(&self) -> &str {
        self.name.split('.').next().unwrap()
    }
}

pub struct Contract {
    pub document: Value,
    pub operations: Vec<Operation>,
    /// The document's schemas, with nothing allowed that they do not name.
    strict: Value,
    /// Schemas that were asked for before, by their text.
    compiled: RefCell<BTreeMap<String, (Schemas, SchemaIndex)>>,
}

impl Contract {
    pub fn read() -> Contract {
        let document: Value = serde_json::from_str(&std::fs::read_to_string(DOCUMENT).unwrap()).unwrap();
        let mut operations = Vec::new();
        for (path, item) in members(&document["paths"]) {
            for (method, said) in members(item) {
                let method = method.to_uppercase().parse().unwrap();
                operations.push(Operation { method, path: path.clone(), said: said.clone() });
            }
        }
        let mut strict = document["components"].clone();
        for schema in strict["schemas"].as_object_mut().unwrap().values_mut() {
            close(schema);
        }
        Contract { document, operations, strict, compiled: RefCell::default() }
    }

    /// What `value` is or refers to.
    pub fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref") else { return value };
        let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).unwrap();
        self.document.pointer(pointer).unwrap_or_else(|| panic!("nothing is at {reference}"))
    }

    pub fn operation(&self, id: &str) -> &Operation {
        self.operations.iter().find(|operation| operation.id() == id).unwrap_or_else(|| panic!("there is no operation {id}"))
    }

    /// The parameters of an operation, by where they are and their name.
    pub fn parameters(&self, operation: &Operation) -> BTreeMap<(String, String), Value> {
        let parameters = operation.said.get("parameters").and_then(Value::as_array).into_iter().flatten();
        let parameters = parameters.map(|parameter| self.resolve(parameter));
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        parameters.map(|parameter| ((word(&parameter["in"]), word(&parameter["name"])), parameter.clone())).collect()
    }

    /// What the body of a request may be, by media type.
    pub fn content<'a>(&'a self, operation: &'a Operation) -> &'a Value {
        &self.resolve(&operation.said["requestBody"])["content"]
    }

    /// The bodies that the document shows for an operation.
    pub fn bodies(&self, operation: &Operation) -> Vec<Body> {
        let mut bodies = Vec::new();
        for (media_type, content) in members(self.content(operation)) {
            for (name, example) in members(&content["examples"]) {
                let example = self.resolve(example);
                let encoding = example["x-content-encoding"].as_str().map(str::to_owned);
                let (media_type, bytes) = match &example["value"] {
                    Value::Object(parts) if media_type == "multipart/form-data" => multipart(parts),
                    Value::String(text) if example["x-base64"] == true => (media_type.clone(), base64(text)),
                    Value::String(text) if media_type != "application/json" => (media_type.clone(), text.clone().into_bytes()),
                    value => (media_type.clone(), value.to_string().into_bytes()),
                };
                bodies.push(Body { media_type, name: name.clone(), encoding, bytes });
            }
        }
        bodies
    }

    /// The values that the document shows for a parameter.
    pub fn shown(parameter: &Value) -> Vec<&str> {
        let one = parameter.get("example").into_iter();
        let values = one.chain(members(&parameter["examples"]).map(|(_, example)| &example["value"]));
        values.map(|value| value.as_str().unwrap()).collect()
    }

    /// Whether an operation may refuse with this code.
    pub fn tells(&self, operation: &Operation, code: &str) -> bool {
        members(&operation.said["responses"])
            .any(|(status, _)| self.problems(operation, status).keys().any(|name| is_code(name, code)))
    }

    /// The examples of refusals that an operation answers with a status, by their names.
    pub fn problems<'a>(&'a self, operation: &'a Operation, status: &str) -> BTreeMap<&'a str, &'a Value> {
        let content = &self.resolve(&operation.said["responses"][status])["content"];
        let refusals = members(content).filter(|(media_type, _)| status >= "400" && operation.refuses_as(media_type));
        let examples = refusals.flat_map(|(_, content)| members(&content["examples"]));
        examples.map(|(name, example)| (name.as_str(), &self.resolve(example)["value"])).collect()
    }

    /// What is wrong with `value` by `schema`; nothing beyond its members is allowed.
    pub fn faults(&self, schema: &Value, value: &Value) -> Option<String> {
        let mut compiled = self.compiled.borrow_mut();
        let (schemas, index) = compiled.entry(schema.to_string()).or_insert_with(|| {
            let mut schema = schema.clone();
            close(&mut schema);
            let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
            compiler.add_resource(PLACE, json!({ "components": self.strict, "schema": schema })).unwrap();
            let index = compiler.compile(&format!("{PLACE}#/schema"), &mut schemas).unwrap();
            (schemas, index)
        });
        schemas.validate(value, *index).err().map(|error| error.to_string())
    }

    /// Holds an answer to what the document says of the operation: a status, media type and headers that it has, and a body by the
    /// schema. A problem must be like one of the examples; its code is given back.
    #[track_caller]
    pub fn hold(&self, operation: &Operation, answer: &Answer) -> Option<String> {
        let place = format!("{} {} {}: {:.2000}", operation.method, operation.path, answer.status, answer.body);
        let response = operation.said["responses"].get(answer.status.to_string());
        let response = self.resolve(response.unwrap_or_else(|| panic!("a status that is not told: {place}")));
        self.hold_headers(&response["headers"], answer, &place);
        let Some(content) = response.get("content") else {
            assert_eq!(answer.body, "", "{place}");
            return None;
        };
        let media_type = media_type(answer).unwrap();
        let content = content.get(media_type).unwrap_or_else(|| panic!("{media_type} is not told: {place}"));
        if let Some(faults) = self.faults(&content["schema"], &answer.body) {
            panic!("{faults}\n{place}");
        }
        self.hold_events(&content["x-events"], &answer.body);
        if let Some(schema) = content.get("x-head") {
            let length: usize = answer.headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
            let head = serde_json::from_str(&answer.body.as_str().unwrap()[..length]).unwrap();
            assert_eq!(self.faults(schema, &head), None, "{place}");
        }
        if answer.status < 400 || !operation.refuses_as(media_type) {
            return None;
        }
        let code = code(&answer.body);
        let names = |value: &Value| members(value).map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
        let shown = self.problems(operation, &answer.status.to_string());
        let alike = |(name, example): (&&str, &&Value)| is_code(name, code) && names(example) == names(&answer.body);
        assert!(shown.iter().any(alike), "no example is like it: {place}");
        Some(code.to_owned())
    }

    /// Holds the headers of an answer to those that the document tells of: none beside them, and all that are always there.
    #[track_caller]
    fn hold_headers(&self, told: &Value, answer: &Answer, place: &str) {
        let told: BTreeMap<String, &Value> =
            members(told).map(|(name, header)| (name.to_lowercase(), self.resolve(header))).collect();
        // What is said once for all answers.
        let of_the_moment = !told.contains_key("cache-control");
        assert!(!of_the_moment || answer.headers["cache-control"] == "no-store", "it may be kept: {place}");
        for (name, _) in &answer.headers {
            let said_once =
                matches!(name.as_str(), "content-type" | "content-length") || name == "cache-control" && of_the_moment;
            assert!(said_once || told.contains_key(name.as_str()), "{name} is not told: {place}");
        }
        for (name, header) in told {
            let Some(value) = answer.headers.get(&name) else {
                assert_ne!(header["required"], true, "{name} is not there: {place}");
                continue;
            };
            let text = value.to_str().unwrap();
            let value = text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number));
            assert_eq!(self.faults(&header["schema"], &value), None, "{name}: {place}");
        }
    }

    /// Holds the data of server-sent events to the schema of each.
    #[track_caller]
    pub fn hold_events(&self, schemas: &Value, body: &Value) {
        let blocks = body.as_str().filter(|_| schemas.is_object()).into_iter().flat_map(|text| text.split("\n\n"));
        for block in blocks {
            let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            let Some(event) = line("event: ") else { continue };
            let data = serde_json::from_str(line("data: ").unwrap()).unwrap();
            let schema = schemas.get(event).unwrap_or_else(|| panic!("the event {event} is not told"));
            assert_eq!(self.faults(schema, &data), None, "{event}: {data}");
        }
    }
}

/// The media type of an answer, without its parameters.
pub fn media_type(answer: &Answer) -> Option<&str> {
    answer.headers.get("content-type")?.to_str().unwrap().split(';').next()
}

/// Files in base64 as the parts of a form.
fn multipart(parts: &serde_json::Map<String, Value>) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, files) in parts {
        for file in files.as_array().unwrap() {
            let head = format!("--part\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n");
            body.extend([head.as_bytes(), &base64(file.as_str().unwrap()), b"\r\n"].concat());
        }
    }
    body.extend_from_slice(b"--part--\r\n");
    ("multipart/form-data; boundary=part".to_owned(), body)
}

/// The bytes of an example that is written in base64.
fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let value = |digit: &u8| DIGITS.iter().position(|known| known == digit).expect("a digit of base64") as u32;
        let bits = (0..4).fold(0, |bits, place| bits << 6 | group.get(place).map_or(0, value));
        bits.to_be_bytes()[1..=group.len() * 6 / 8].to_vec()
    };
    text.trim_end_matches('=').as_bytes().chunks(4).flat_map(group).collect()
}

/// Whether an example of this name shows this code.
pub fn is_code(name: &str, code: &str) -> bool {
    name.split('.').next() == Some(code)
}

/// The members of an object; none of anything else.
pub fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Every `$ref` below `value`.
pub fn references<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref"));
            object.values().for_each(|member| references(member, found));
        }
        Value::Array(list) => list.iter().for_each(|member| references(member, found)),
        _ => {}
    }
}

/// Allows nothing that a schema does not name, so that an answer has no member that nobody was told of.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let named = object.get("properties").is_some_and(Value::is_object);
            object.values_mut().for_each(close);
            if named {
                object.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

/// The path with its parameters put in; those that are not given are `x`.
pub fn path(template: &str, values: &[(&str, &str)]) -> String {
    let part = |part: &str| match part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(name) => values.iter().find(|(of, _)| *of == name).map_or("x", |(_, value)| value).to_owned(),
        None => part.to_owned(),
    };
    template.split('/').map(part).collect::<Vec<_>>().join("/")
}
