//! What the clients send: rows that follow from their ids alone, written in any format that the door takes.
//!
//! An id says to whom a row belongs and is never given twice, so the log tells which rows are in it, and how often; and whoever has the
//! id has the row, so it tells whether they are the rows that were sent.

use std::io::Write;
use std::ops::Range;

use arrow_schema::ArrowError;
use bytes::Bytes;
use rand_chacha::rand_core::RngCore;
use serde_json::{Map, Value, json};

use super::arrow;
use crate::cli::Failure;
use crate::network::random;
use crate::stream::decode::Format;

/// Elements of a tensor, and its classes.
const PIXELS: usize = 16;
const CLASSES: u32 = 3;
const NAMES: [&str; CLASSES as usize] = ["north", "south", "east"];
const WORDS: [&str; 4] = ["ash", "beech", "elm", "oak"];

/// What the rows of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Two numbers, and a class with a name.
    Points,
    /// A number, another one that may be missing, a word, and a class with a name.
    Mixed,
    /// Sixteen bytes, and the number of a class.
    Pixels,
    /// As `Points`, but many come without their class and have it later, if it is no later than so many numbers.
    Late {
        /// Numbers.
        window: u64,
    },
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// One row.
struct Row {
    id: u64,
    class: u32,
    /// Multiples of 1/64, which every format says exactly.
    x: f32,
    y: f32,
    is_missing: bool,
    word: &'static str,
    pixels: [u8; PIXELS],
}

/// The row of an id: its class, and features that tell it, with noise.
fn row(id: u64) -> Row {
    let mut generator = random::stream(0, id, "crash row");
    let class = generator.next_u32() % CLASSES;
    let mut noise = || (generator.next_u32() % 128) as f32 / 64.0;
    let (x, y) = (class as f32 * 2.0 + noise(), 5.0 - class as f32 - noise());
    let is_missing = noise() < 0.3;
    let word = WORDS[(class as usize + usize::from(noise() < 0.2)) % WORDS.len()];
    let mut pixels = [0; PIXELS];
    for (at, pixel) in pixels.iter_mut().enumerate() {
        let lit = if at % CLASSES as usize == class as usize { 120 } else { 0 };
        *pixel = lit + (noise() * 60.0) as u8;
    }
    Row { id, class, x, y, is_missing, word, pixels }
}

/// Whether the row of an id comes with its class even where it need not: whole batches do, others do not, and many are mixed.
pub(super) fn comes_labelled(id: u64) -> bool {
    match id / 64 % 8 {
        0 => true,
        1 | 2 => false,
        _ => id.is_multiple_of(3),
    }
}

/// What a label says of the row of an id; the first time it is right.
pub(super) fn class(id: u64, time: u32) -> u32 {
    (row(id).class + time) % CLASSES
}

impl Shape {
    /// The body of `PUT /v1/streams/{s}`.
    pub(super) fn schema(self) -> Value {
        let numeric = |name: &str| json!({ "name": name, "type": "numeric" });
        let named = json!({ "name": "label", "type": "classes", "classes": NAMES });
        let (fields, target) = match self {
            Shape::Points | Shape::Late { .. } => (json!([numeric("x"), numeric("y")]), named),
            Shape::Mixed => {
                let optional = json!({ "name": "y", "type": "numeric", "optional": true });
                (json!([numeric("x"), optional, { "name": "word", "type": "categorical", "buckets": 8 }]), named)
            }
            Shape::Pixels => (
                json!([{ "name": "pixels", "type": "tensor", "shape": [PIXELS], "element": "u8" }]),
                json!({ "name": "label", "type": "classes", "classes": CLASSES }),
            ),
        };
        let mut schema = json!({ "fields": fields, "target": target, "row_id": "id" });
        if let Shape::Late { window } = self {
            schema["late_labels"] = json!({ "window_rows": window });
        }
        schema
    }

    /// The class with which a row comes; none where it comes without.
    fn class(self, row: &Row) -> Option<u32> {
        (!matches!(self, Shape::Late { .. }) || comes_labelled(row.id)).then_some(row.class)
    }

    /// Whether the door takes rows of this shape in a format.
    pub(super) fn comes_as(self, format: Format) -> bool {
        self != Shape::Mixed || format != Format::Raw
    }

    fn json(self, row: &Row) -> Value {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
        put("id", row.id.into());
        match self {
            Shape::Pixels => {
                put("pixels", row.pixels.as_slice().into());
                put("label", row.class.into());
            }
            Shape::Points | Shape::Mixed | Shape::Late { .. } => {
                put("x", row.x.into());
                match self.class(row) {
                    Some(class) => put("label", NAMES[class as usize].into()),
                    None if row.id.is_multiple_of(2) => put("label", Value::Null),
                    None => {}
                }
                match (self, row.is_missing) {
                    (Shape::Mixed, true) => put("y", Value::Null),
                    _ => put("y", row.y.into()),
                }
            }
        }
        if self == Shape::Mixed {
            put("word", row.word.into());
        }
        Value::Object(object)
    }

    fn csv(self, rows: &[Row]) -> String {
        let header = match self {
            Shape::Points | Shape::Late { .. } => "label,y,x,id".to_owned(),
            Shape::Mixed => "word,id,y,x,label".to_owned(),
            Shape::Pixels => (0..PIXELS).map(|at| format!("pixels_{at},")).collect::<String>() + "label,id",
        };
        let line = |row: &Row| {
            let Row { id, x, y, .. } = row;
            let name = self.class(row).map_or("", |class| NAMES[class as usize]);
            match self {
                Shape::Points | Shape::Late { .. } => format!("{name},{y},{x},{id}\n"),
                Shape::Mixed => {
                    let y = if row.is_missing { String::new() } else { y.to_string() };
                    format!("{},{id},{y},{x},{name}\n", row.word)
                }
                Shape::Pixels => {
                    let pixels: String = row.pixels.iter().map(|pixel| format!("{pixel},")).collect();
                    format!("{pixels}{},{id}\n", row.class)
                }
            }
        };
        header + "\n" + &rows.iter().map(line).collect::<String>()
    }

    fn raw(self, rows: &[Row]) -> Vec<u8> {
        let features = |row: &Row| match self {
            Shape::Pixels => row.pixels.to_vec(),
            Shape::Points | Shape::Mixed | Shape::Late { .. } => {
                [row.x, row.y].iter().flat_map(|number| number.to_le_bytes()).collect()
            }
        };
        let classes = rows.iter().flat_map(|row| self.class(row).unwrap_or(u32::MAX).to_le_bytes());
        let ids = rows.iter().flat_map(|row| row.id.to_le_bytes());
        rows.iter().flat_map(features).chain(classes).chain(ids).collect()
    }

    /// The rows `ids` in a format; the same bytes whenever it is asked.
    ///
    /// # Errors
    /// A body that cannot be written, which a test rules out.
    pub(super) fn body(self, format: Format, ids: Range<u64>) -> Result<Bytes, ArrowError> {
        let rows: Vec<Row> = ids.map(row).collect();
        let body = match format {
            Format::Json => json!({ "rows": rows.iter().map(|row| self.json(row)).collect::<Vec<_>>() }).to_string().into_bytes(),
            Format::Ndjson => rows.iter().map(|row| self.json(row).to_string() + "\n").collect::<String>().into_bytes(),
            Format::Csv => self.csv(&rows).into_bytes(),
            Format::Raw => self.raw(&rows),
            Format::Arrow => self.arrow(&rows)?,
        };
        Ok(body.into())
    }

    fn arrow(self, rows: &[Row]) -> Result<Vec<u8>, ArrowError> {
        let mut columns = vec![arrow::ids("id", rows.iter().map(|row| row.id))];
        if self == Shape::Pixels {
            let pixels = rows.iter().flat_map(|row| row.pixels).collect();
            columns.push(arrow::pixels("pixels", pixels, PIXELS)?);
        } else {
            let y = |row: &Row| (self != Shape::Mixed || !row.is_missing).then_some(row.y);
            columns.push(arrow::numbers("x", rows.iter().map(|row| Some(row.x))));
            columns.push(arrow::numbers("y", rows.iter().map(y)));
        }
        if self == Shape::Mixed {
            columns.push(arrow::words("word", rows.iter().map(|row| row.word)));
        }
        columns.push(arrow::classes("label", rows.iter().map(|row| self.class(row))));
        arrow::stream(columns)
    }

    /// Labels of rows that came before, each an id and a class, in a format.
    ///
    /// # Errors
    /// As of [`Shape::body`].
    pub(super) fn labels(self, format: Format, labels: &[(u64, u32)]) -> Result<Bytes, ArrowError> {
        let name = |class: u32| NAMES[class as usize];
        // A class is its name or its number, and an id a number or a text.
        let json = |&(id, class): &(u64, u32)| match id % 2 {
            0 => json!({ "id": id, "label": name(class) }),
            _ => json!({ "label": class, "id": id.to_string() }),
        };
        let body = match format {
            Format::Json => json!({ "rows": labels.iter().map(json).collect::<Vec<_>>() }).to_string().into_bytes(),
            Format::Ndjson => labels.iter().map(|label| json(label).to_string() + "\n").collect::<String>().into_bytes(),
            Format::Csv => {
                let lines = labels.iter().map(|&(id, class)| format!("{},{id}\n", name(class)));
                ("label,id\n".to_owned() + &lines.collect::<String>()).into_bytes()
            }
            Format::Raw => {
                let ids = labels.iter().flat_map(|(id, _)| id.to_le_bytes());
                labels.iter().flat_map(|(_, class)| class.to_le_bytes()).chain(ids).collect()
            }
            Format::Arrow => arrow::stream(vec![
                arrow::words("label", labels.iter().map(|&(_, class)| name(class))),
                arrow::ids("id", labels.iter().map(|&(id, _)| id)),
            ])?,
        };
        Ok(body.into())
    }
}

impl Encoding {
    /// The word of `Content-Encoding`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Zstd => "zstd",
        }
    }

    /// The body compressed so.
    pub(super) fn of(self, body: Bytes) -> Result<Bytes, Failure> {
        Ok(match self {
            Encoding::Identity => body,
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&body)?;
                encoder.finish()?.into()
            }
            Encoding::Zstd => zstd::stream::encode_all(body.as_ref(), 1)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Target;
    use crate::stream::Schema;
    use crate::stream::decode::{Purpose, decode};

    #[test]
    fn every_format_says_the_same_rows() {
        for shape in [Shape::Points, Shape::Mixed, Shape::Pixels, Shape::Late { window: 10 }] {
            let schema: Schema = serde_json::from_value(shape.schema()).unwrap();
            schema.validate().unwrap();
            let read = |format| decode(&schema, format, shape.body(format, 1000..1100).unwrap(), Purpose::Learn).unwrap();
            let first = read(Format::Json);
            assert_eq!(first.ids.as_ref().unwrap()[99], "1099");
            for format in Format::ALL.into_iter().filter(|&format| shape.comes_as(format)) {
                assert_eq!(read(format), first, "{shape:?} as {format:?}");
            }
        }
    }

    #[test]
    fn every_format_says_the_same_labels() {
        let shape = Shape::Late { window: 10 };
        let schema = serde_json::from_value::<Schema>(shape.schema()).unwrap().of_labels();
        let labels: Vec<(u64, u32)> = (1000..1100).map(|id| (id, class(id, id as u32 % 2))).collect();
        let read = |format| decode(&schema, format, shape.labels(format, &labels).unwrap(), Purpose::Learn).unwrap();
        let first = read(Format::Json);
        let classes: Vec<u32> = labels.iter().map(|(_, class)| *class).collect();
        assert_eq!((first.count, &first.target), (100, &Some(Target::Classes(classes))));
        for format in Format::ALL {
            assert_eq!(read(format), first, "{format:?}");
        }
    }

    #[test]
    fn rows_come_with_and_without_labels() {
        let labelled = (1000..1512).filter(|&id| comes_labelled(id)).count();
        assert!((100..400).contains(&labelled), "{labelled}");
    }
}
