//! Inference requests: a JSON head, and behind it, where the head says so, the bytes of tensors.

use std::fmt;

use axum::http::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::super::problem::Problem;
use super::super::request::read_json;
use super::outputs::{Asked, Wanted};
use crate::limits::{FIELDS_MAX, LABEL_BYTES_MAX, PREDICT_ROWS_MAX};
use crate::stream::Schema;
use crate::stream::decode::{Datatype, Elements, Tensor};
use crate::stream::schema::Field;

/// The header that says how long the JSON head is; bytes of tensors follow it.
pub(super) const HEAD_BYTES: &str = "inference-header-content-length";

/// Dimensions of an input: the rows' and a field's.
const DIMENSIONS_MAX: usize = 8;
/// Outputs that may be asked for: more than any model has.
const OUTPUTS_MAX: usize = 16;
/// Bytes of the id that a client gives its request.
const ID_BYTES_MAX: usize = 1024;

/// What was asked, about which tensors.
pub(super) struct Request {
    pub(super) inputs: Vec<Tensor>,
    pub(super) asked: Asked,
}

/// The JSON head. Members that it does not know are passed over, as the protocol has it.
#[derive(Deserialize)]
struct Head<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow)]
    inputs: AtMost<Input<'a>, FIELDS_MAX>,
    outputs: Option<AtMost<Output, OUTPUTS_MAX>>,
}

#[derive(Default, Deserialize)]
struct Parameters {
    /// Of an input: how many bytes of the body's end are its elements.
    binary_data_size: Option<usize>,
    /// Of a request: whether outputs are to come as bytes.
    binary_data_output: Option<bool>,
    /// Of an output: the same for it.
    binary_data: Option<bool>,
    /// Of an output: an extension that this server lacks.
    classification: Option<u64>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: String,
    shape: AtMost<usize, DIMENSIONS_MAX>,
    datatype: String,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

/// How long the head is; none where it is the whole body.
pub(super) fn head_bytes(headers: &HeaderMap) -> Result<Option<usize>, Problem> {
    let Some(value) = headers.get(HEAD_BYTES) else { return Ok(None) };
    let bytes = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || Problem::bad_request("invalid_header", format!("{HEAD_BYTES} is not a number of bytes"));
    bytes.map(Some).ok_or_else(wrong)
}

/// Reads a request to a model of a stream with `schema`.
pub(super) fn read(body: &Bytes, head_bytes: Option<usize>, schema: &Schema) -> Result<Request, Problem> {
    let head_bytes = head_bytes.unwrap_or(body.len());
    let Some(head) = body.get(..head_bytes) else {
        let detail = format!("{HEAD_BYTES} is {head_bytes}, and the body has {} bytes", body.len());
        return Err(Problem::bad_request("invalid_header", detail));
    };
    let head: Head<'_> = read_json(head)?;
    if head.id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Err(Problem::unprocessable("invalid_body", format!("the id has more than {ID_BYTES_MAX} bytes")));
    }
    let mut tail = body.slice(head_bytes..);
    let mut inputs = Vec::with_capacity(head.inputs.0.len());
    for input in head.inputs.0 {
        // Looked at before its elements are: no more are read than the rows of one query have of this field.
        let Some(field) = schema.fields.iter().find(|field| field.name() == input.name) else {
            return Err(wrong(&input.name, "the model has no such input"));
        };
        let rows = input.shape.0.first().copied().unwrap_or(0);
        if rows > PREDICT_ROWS_MAX {
            let detail = format!("{rows} rows, {PREDICT_ROWS_MAX} are the most of one query");
            return Err(Problem::unprocessable("too_many_rows", detail));
        }
        let of_row = field.tensor().map_or(1, |(shape, _)| shape.iter().product());
        inputs.push(tensor(input, field, rows.saturating_mul(of_row), &mut tail)?);
    }
    if !tail.is_empty() {
        let detail = format!("{} bytes at the end of the body belong to no input", tail.len());
        return Err(Problem::unprocessable("invalid_inputs", detail));
    }
    let as_bytes = head.parameters.and_then(|of| of.binary_data_output).unwrap_or(false);
    let wanted = |Output { name, parameters }: Output| {
        let Parameters { classification, binary_data, .. } = parameters.unwrap_or_default();
        match classification {
            Some(_) => Err(wrong(&name, "the classification extension is not there: ask for `class` and `label`")),
            None => Ok(Wanted { name, as_bytes: binary_data.unwrap_or(as_bytes) }),
        }
    };
    let outputs = head.outputs.map_or(Vec::new(), |outputs| outputs.0).into_iter().map(wanted).collect::<Result<Vec<_>, _>>()?;
    Ok(Request { inputs, asked: Asked { id: head.id, outputs, as_bytes } })
}

fn wrong(input: &str, reason: impl fmt::Display) -> Problem {
    let name: String = input.chars().take(LABEL_BYTES_MAX).collect();
    Problem::unprocessable("invalid_inputs", format!("`{name}`: {reason}")).with("name", name)
}

/// An input as a tensor that has as many elements as its shape says, and `most` at most.
fn tensor(input: Input<'_>, field: &Field, most: usize, tail: &mut Bytes) -> Result<Tensor, Problem> {
    let Input { name, shape: AtMost(shape), datatype, parameters, data } = input;
    let of = Datatype::from_name(&datatype).ok_or_else(|| {
        let datatype: String = datatype.chars().take(LABEL_BYTES_MAX).collect();
        wrong(&name, format!("elements of type `{datatype}` are not read"))
    })?;
    let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let Some(count) = count.filter(|&count| count <= most) else {
        return Err(wrong(&name, format!("its shape is {shape:?}, and so many rows have {most} elements of it")));
    };
    let are_blobs = of == Datatype::Bytes && matches!(field, Field::Image { .. });
    let elements = match (parameters.and_then(|of| of.binary_data_size), data) {
        (Some(size), None) if size > tail.len() => {
            return Err(wrong(&name, format!("binary_data_size is {size}, and {} bytes of the body are left", tail.len())));
        }
        (Some(size), None) if are_blobs => {
            Elements::Blobs(runs(tail.split_to(size), count).map_err(|reason| wrong(&name, reason))?)
        }
        (Some(size), None) => binary(of, tail.split_to(size), count).map_err(|reason| wrong(&name, reason))?,
        (None, Some(data)) => listed(of, data, count).map_err(|reason| wrong(&name, reason))?,
        _ => return Err(wrong(&name, "either `data` or `parameters.binary_data_size` has to be there")),
    };
    if elements.count() != count {
        return Err(wrong(&name, format!("{} elements, and the shape {shape:?} has {count}", elements.count())));
    }
    Ok(Tensor { name, shape, elements })
}

/// Elements as bytes; texts are no more than `count`.
fn binary(of: Datatype, bytes: Bytes, count: usize) -> Result<Elements, String> {
    if let Some(size) = of.bytes() {
        if !bytes.len().is_multiple_of(size) {
            return Err(format!("{} bytes are no whole number of elements of {size} bytes", bytes.len()));
        }
        return Ok(Elements::Fixed(of, bytes));
    }
    let word =
        |(number, run): (usize, Bytes)| String::from_utf8(run.into()).map_err(|_| format!("element {number} is not UTF-8"));
    Ok(Elements::Words(runs(bytes, count)?.into_iter().enumerate().map(word).collect::<Result<_, _>>()?))
}

/// Runs of bytes, each behind its length; no more than `count`.
fn runs(mut bytes: Bytes, count: usize) -> Result<Vec<Bytes>, String> {
    let mut runs = Vec::new();
    while !bytes.is_empty() {
        let number = runs.len();
        if number == count {
            return Err("more elements than the shape has".to_owned());
        }
        let length = bytes.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
        let Some(length) = length.filter(|&length| length <= bytes.len() - 4) else {
            return Err(format!("element {number} is longer than the bytes that are left"));
        };
        runs.push(bytes.split_to(4 + length).split_off(4));
    }
    Ok(runs)
}

/// Elements as JSON, flat or nested as the shape is; no more than `count`.
fn listed(of: Datatype, data: &RawValue, count: usize) -> Result<Elements, String> {
    let mut list = List { of, bytes: Vec::new(), words: Vec::new(), left: count };
    let mut deserializer = serde_json::Deserializer::from_str(data.get());
    (&mut list).deserialize(&mut deserializer).map_err(|error| format!("data: {error}"))?;
    Ok(if of == Datatype::Bytes { Elements::Words(list.words) } else { Elements::Fixed(of, list.bytes.into()) })
}

/// A list that ends the reading where it has more than `MOST` members.
#[derive(Debug)]
struct AtMost<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T, const MOST: usize>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Members<T, MOST> {
            type Value = AtMost<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = list.next_element()? {
                    if members.len() == MOST {
                        return Err(serde::de::Error::invalid_length(MOST + 1, &self));
                    }
                    members.push(member);
                }
                Ok(AtMost(members))
            }
        }

        deserializer.deserialize_seq(Members(std::marker::PhantomData))
    }
}

struct List {
    of: Datatype,
    bytes: Vec<u8>,
    words: Vec<String>,
    left: usize,
}

impl List {
    fn whole<E: serde::de::Error>(&mut self, value: i128) -> Result<(), E> {
        let fits = |bytes: usize, signed: bool| {
            let bits = bytes * 8;
            let (least, most) =
                if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
            (least..=most).contains(&value)
        };
        let size = match self.of {
            Datatype::Bool if fits(1, false) && value <= 1 => 1,
            Datatype::Uint(size) if fits(size, false) => size,
            Datatype::Int(size) if fits(size, true) => size,
            Datatype::Fp(_) => return self.number(value as f64),
            _ => return Err(E::custom(format!("{value} is not of the input's datatype"))),
        };
        self.push(&value.to_le_bytes()[..size])
    }

    fn number<E: serde::de::Error>(&mut self, value: f64) -> Result<(), E> {
        match self.of {
            Datatype::Fp(4) => self.push(&(value as f32).to_le_bytes()),
            Datatype::Fp(_) => self.push(&value.to_le_bytes()),
            _ => Err(E::custom(format!("{value} is not of the input's datatype"))),
        }
    }

    fn count<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.left = self.left.checked_sub(1).ok_or_else(|| E::custom("more elements than the shape has"))?;
        Ok(())
    }

    fn push<E: serde::de::Error>(&mut self, element: &[u8]) -> Result<(), E> {
        self.count()?;
        self.bytes.extend_from_slice(element);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut List {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut List {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("elements of the input's datatype")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.whole(i128::from(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.whole(i128::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        match self.of {
            Datatype::Bool => self.push(&[u8::from(value)]),
            _ => Err(E::custom(format!("{value} is not of the input's datatype"))),
        }
    }

    /// A number that is missing: what NaN says among bytes.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.number(f64::NAN)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.of != Datatype::Bytes {
            return Err(E::custom("a text is not of the input's datatype"));
        }
        self.count()?;
        self.words.push(text.to_owned());
        Ok(())
    }
}
