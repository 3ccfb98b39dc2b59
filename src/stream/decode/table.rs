//! Rows in the making: the column buffers that the text formats write into, and the rules that values are held to.
//!
//! The buffers never hold more than the body itself brought: a row takes its place with the values that it has, and from the
//! first fault on (the post will be refused) no row is kept. So a million empty rows of a large schema cost nothing. Where columns
//! are optional such rows are good ones, and what they may take is bounded by the body's length and a fixed number. Pictures, which
//! have many more numbers than bytes, are bounded by a number of their own.

use std::collections::BTreeMap;

use super::picture::Pictures;
use super::{DecodeError, Faults, Purpose};
use crate::limits::{
    CATEGORY_BYTES_MAX, FAULTS_COUNTED_MAX, LABEL_BYTES_MAX, MISSING_BYTES_MAX, POST_PICTURES_BYTES_MAX, POST_ROWS_MAX,
};
use crate::network::Column;
use crate::rows::{Block, Element, NO_CLASS, NO_VALUE, Rows, Target as Labels};
use crate::stream::category::{Hash, MISSING};
use crate::stream::schema::{Classes, Field, Schema, Target};

/// Where a column's values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// The numeric column that is the field of this number.
    Numeric(usize),
    /// The categorical column that is the field of this number.
    Category(usize),
    /// The tensor, or the picture.
    Tensor,
    /// The label.
    Target,
    /// The row's id.
    RowId,
    /// The row's event time.
    EventTime,
    /// Known, but not read for this purpose.
    Unread,
}

/// Where a field's numbers are in a row, and what else its values need.
struct Place {
    /// Bytes before its first number.
    at: usize,
    optional: bool,
    /// Of a categorical column.
    hash: Option<Hash>,
}

/// Rows in the making.
pub(super) struct Table<'a> {
    pub(super) schema: &'a Schema,
    /// The schema's, looked up once: each number that is read asks for them. Places are there for columns only.
    places: Vec<Place>,
    element: Element,
    width: usize,
    row_bytes: usize,
    /// The most that the features may take; tensors of numbers take no more than the body.
    bytes_max: Option<usize>,
    pictures: Option<Pictures>,
    purpose: Purpose,
    faults: Faults,
    features: Vec<u8>,
    /// Where the present row's features begin.
    row_start: usize,
    classes: Vec<u32>,
    values: Vec<f32>,
    ids: Vec<String>,
    times_ms: Vec<i64>,
    /// Rows that have ended.
    rows: usize,
    is_ended: bool,
    /// Which columns the present row has had, in the order of [`Table::columns`].
    seen: Vec<bool>,
    columns: Vec<(&'a str, Slot)>,
    /// The column that is likely to come next, as rows mostly have the same order.
    likely: usize,
    /// The columns by name, made when a column comes that was not the likely one.
    by_name: Option<BTreeMap<&'a str, usize>>,
    /// The column whose value is being read, for errors of the syntax.
    reading: Option<usize>,
    /// The classes by name, made when the first label comes.
    class_names: Option<ClassNames<'a>>,
}

/// The names of classes, for looking up labels.
struct ClassNames<'a> {
    by_name: BTreeMap<&'a str, u32>,
    /// Whether any class is named with an integer. Then an integer is a name and never a place in the list, so that in
    /// `["1", "2", "3"]` the label 1 means the same class in every format.
    numerals: bool,
}

impl<'a> Table<'a> {
    /// For a body of so many bytes.
    pub(super) fn new(schema: &'a Schema, purpose: Purpose, body_bytes: usize) -> Table<'a> {
        let learns = purpose == Purpose::Learn;
        let beside = |slot: Slot| if learns { slot } else { Slot::Unread };
        let fields = schema.fields.iter().enumerate().map(|(number, field)| {
            let slot = match field {
                Field::Tensor { .. } | Field::Image { .. } => Slot::Tensor,
                Field::Categorical { .. } => Slot::Category(number),
                _ => Slot::Numeric(number),
            };
            (field.name(), slot)
        });
        let target = schema.target.as_ref().map(|target| (target.name(), beside(Slot::Target)));
        let id = schema.row_id.as_deref().map(|name| (name, beside(Slot::RowId)));
        let time = schema.event_time.as_deref().map(|name| (name, beside(Slot::EventTime)));
        let columns: Vec<_> = fields.chain(target).chain(id).chain(time).collect();
        let (places, pictures) = (places(schema), Pictures::of(schema));
        let of_columns = (!places.is_empty()).then_some(body_bytes.saturating_mul(2).saturating_add(MISSING_BYTES_MAX));
        Table {
            schema,
            bytes_max: pictures.as_ref().map(|_| POST_PICTURES_BYTES_MAX).or(of_columns),
            pictures,
            places,
            element: schema.element(),
            width: schema.width(),
            row_bytes: schema.row_bytes(),
            purpose,
            faults: Faults::default(),
            features: Vec::new(),
            row_start: 0,
            classes: Vec::new(),
            values: Vec::new(),
            ids: Vec::new(),
            times_ms: Vec::new(),
            rows: 0,
            is_ended: false,
            seen: vec![false; columns.len()],
            columns,
            likely: 0,
            by_name: None,
            reading: None,
            class_names: None,
        }
    }

    /// The place of a column, by name.
    pub(super) fn find(&mut self, name: &str) -> Option<usize> {
        let found = match self.columns.get(self.likely) {
            Some((likely, _)) if *likely == name => Some(self.likely),
            _ => {
                let columns = &self.columns;
                let index = || columns.iter().enumerate().map(|(place, (column, _))| (*column, place)).collect();
                self.by_name.get_or_insert_with(index).get(name).copied()
            }
        };
        self.likely = found.map_or(self.likely, |place| (place + 1) % self.columns.len());
        found
    }

    pub(super) fn slot(&self, place: usize) -> Slot {
        self.columns[place].1
    }

    fn name(&self, slot: Slot) -> Option<&'a str> {
        let place = match slot {
            Slot::Numeric(column) | Slot::Category(column) => Some(column),
            slot => self.columns.iter().position(|(_, other)| *other == slot),
        };
        place.map(|place| self.columns[place].0)
    }

    /// Notes a fault in the present row.
    pub(super) fn fault(&mut self, column: Option<&str>, reason: impl Into<String>) {
        self.faults.add(Some(self.rows as u64), column, reason);
    }

    /// Notes a fault of the value that belongs into `slot`.
    pub(super) fn fault_at(&mut self, slot: Slot, reason: impl Into<String>) {
        let name = self.name(slot);
        self.fault(name, reason);
    }

    /// Notes a fault of the syntax, in the column whose value was being read.
    pub(super) fn fault_here(&mut self, reason: impl Into<String>) {
        let name = self.reading.map(|place| self.columns[place].0);
        self.fault(name, reason);
    }

    /// Notes a fault of a column in every row.
    pub(super) fn fault_column(&mut self, column: &str, reason: impl Into<String>) {
        self.faults.add(None, Some(column), reason);
    }

    /// Notes a fault of the whole.
    pub(super) fn fault_whole(&mut self, reason: impl Into<String>) {
        self.faults.add(None, None, reason);
    }

    /// Whether anything is wrong so far.
    pub(super) fn is_faulty(&self) -> bool {
        self.faults.total > 0
    }

    /// Numbers in one row's features.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Whether [`Table::begin`] has ended the reading.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Begins a row. False where there are too many rows, or too many faults, which ends the reading.
    pub(super) fn begin(&mut self) -> bool {
        if self.rows >= POST_ROWS_MAX {
            self.fault_whole(format!("more than {POST_ROWS_MAX} rows"));
        }
        let vast = self.bytes_max.filter(|&most| self.features.len() + self.row_bytes > most);
        if let Some(most) = vast {
            let what = if self.has_pictures() { "decoded, the pictures" } else { "with what is missing, the rows" };
            self.fault_whole(format!("{what} take more than {most} bytes: post fewer at once"));
        }
        self.is_ended = vast.is_some() || self.rows >= POST_ROWS_MAX || self.faults.total >= FAULTS_COUNTED_MAX;
        if self.is_ended {
            return false;
        }
        self.seen.fill(false);
        self.likely = 0;
        self.row_start = self.features.len();
        if !self.places.is_empty() {
            self.features.resize(self.row_start + self.row_bytes, 0);
        }
        true
    }

    /// Marks a column as had; false where the row has had it before.
    pub(super) fn see(&mut self, place: usize) -> bool {
        let new = !self.seen[place];
        if !new {
            let name = self.columns[place].0;
            self.fault(Some(name), "the column is there twice");
        }
        self.seen[place] = true;
        self.reading = Some(place);
        new
    }

    /// The value of the column that was seen last has been read.
    pub(super) fn leave(&mut self) {
        self.reading = None;
    }

    /// Ends a row that has a fault as a whole.
    pub(super) fn skip(&mut self) {
        self.seen.fill(true);
        self.end();
    }

    /// Ends a row: what is missing, and may not be, is a fault.
    pub(super) fn end(&mut self) {
        self.leave();
        for place in 0..self.columns.len() {
            let (name, slot) = self.columns[place];
            if !self.seen[place] && slot != Slot::Unread && !self.put_missing(slot) {
                self.fault(Some(name), "the column is missing");
            }
        }
        self.rows += 1;
        if self.faults.total > 0 {
            self.features.clear();
            self.classes.clear();
            self.values.clear();
            self.ids.clear();
            self.times_ms.clear();
        } else {
            debug_assert_eq!(self.features.len(), self.rows * self.row_bytes, "a row without a fault is whole");
        }
    }

    /// A number for a numeric column.
    pub(super) fn put_numeric(&mut self, column: usize, value: f64) {
        let narrow = value as f32;
        if !narrow.is_finite() {
            return self.fault_at(Slot::Numeric(column), format!("{value} is not a finite 32-bit number"));
        }
        self.write(self.places[column].at, narrow);
    }

    /// A word for a categorical column; an empty one is a missing one.
    pub(super) fn put_category(&mut self, column: usize, word: &str) {
        let slot = Slot::Category(column);
        if word.len() > CATEGORY_BYTES_MAX {
            return self.fault_at(slot, format!("a text of {} bytes, {CATEGORY_BYTES_MAX} are the most", word.len()));
        }
        if word.is_empty() {
            if !self.put_missing(slot) {
                self.fault_at(slot, "an empty text, and the field is not optional");
            }
            return;
        }
        let place = &self.places[column];
        let bucket = place.hash.map_or(MISSING, |hash| hash.bucket(word));
        self.write(place.at, bucket as f32);
    }

    /// Says in the row that the value of `slot` is missing; false where it may not be.
    pub(super) fn put_missing(&mut self, slot: Slot) -> bool {
        let column = match slot {
            Slot::Numeric(column) | Slot::Category(column) => column,
            Slot::Target => return self.put_no_label(),
            _ => return false,
        };
        let Place { at, optional, ref hash } = self.places[column];
        match hash {
            _ if !optional => return false,
            Some(_) => self.write(at, MISSING as f32),
            None => self.write(at + size_of::<f32>(), 1.0),
        }
        true
    }

    /// Says that the row's label has yet to come; false where it has to be there.
    fn put_no_label(&mut self) -> bool {
        if self.schema.late_labels.is_none() {
            return false;
        }
        match &self.schema.target {
            Some(Target::Classes { .. }) => self.classes.push(NO_CLASS),
            _ => self.values.push(NO_VALUE),
        }
        true
    }

    /// Writes a number of the present row, `at` bytes from its start.
    fn write(&mut self, at: usize, value: f32) {
        let at = self.row_start + at;
        self.features[at..at + size_of::<f32>()].copy_from_slice(&value.to_le_bytes());
    }

    /// The next number of the present row's tensor; numbers beyond its size are counted and not kept.
    pub(super) fn push_element(&mut self, value: f64) {
        if self.elements() > self.width {
            return;
        }
        match self.element {
            Element::U8 if (0.0..=255.0).contains(&value) && value.fract() == 0.0 => self.features.push(value as u8),
            Element::U8 => {
                self.features.push(0);
                self.fault_at(Slot::Tensor, format!("{value} is not a whole number from 0 to 255"));
            }
            Element::F32 => {
                let narrow = value as f32;
                self.features.extend_from_slice(&narrow.to_le_bytes());
                if !narrow.is_finite() {
                    self.fault_at(Slot::Tensor, format!("{value} is not a finite 32-bit number"));
                }
            }
        }
    }

    /// [`Table::push_element`] for the commonest of elements, which needs no float.
    pub(super) fn push_whole(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(byte) if self.element == Element::U8 && self.elements() <= self.width => self.features.push(byte),
            _ => self.push_element(value as f64),
        }
    }

    /// Whether the tensor is a picture.
    pub(super) fn has_pictures(&self) -> bool {
        self.pictures.is_some()
    }

    /// The present row's picture, as `append` gives it.
    pub(super) fn put_picture(&mut self, append: impl FnOnce(&mut Pictures, &mut Vec<u8>) -> Result<(), String>) {
        let Some(pictures) = &mut self.pictures else { return };
        if let Err(reason) = append(pictures, &mut self.features) {
            self.fault_at(Slot::Tensor, reason);
        }
    }

    /// Numbers that the present row's tensor has so far.
    pub(super) fn elements(&self) -> usize {
        (self.features.len() - self.row_start) / self.element.bytes()
    }

    /// A label as a number.
    pub(super) fn put_target_number(&mut self, value: f64) {
        match &self.schema.target {
            Some(Target::Classes { classes, .. }) => {
                let count = classes.count();
                let named = self.class_names().filter(|names| names.numerals);
                let class = match named {
                    // A whole float is written without its point.
                    Some(names) => names.by_name.get(value.to_string().as_str()).copied(),
                    None => (value.fract() == 0.0 && value >= 0.0 && value < count as f64).then_some(value as u32),
                };
                let named = named.is_some();
                match class {
                    Some(class) => self.classes.push(class),
                    None if named => self.fault_class(&value.to_string()),
                    None => self.fault_at(Slot::Target, format!("{value} is not a class from 0 to {}", count - 1)),
                }
            }
            Some(Target::Regression { .. }) => {
                let narrow = value as f32;
                self.values.push(if narrow.is_finite() { narrow } else { 0.0 });
                if !narrow.is_finite() {
                    self.fault_at(Slot::Target, format!("{value} is not a finite 32-bit number"));
                }
            }
            None => {}
        }
    }

    /// A label as a word.
    pub(super) fn put_target_word(&mut self, word: &str) {
        match self.class_names().map(|names| names.by_name.get(word).copied()) {
            Some(Some(class)) => self.classes.push(class),
            Some(None) => self.fault_class(word),
            None => self.fault_at(Slot::Target, format!("`{}` is not a number", short(word))),
        }
    }

    /// Whether a word names a class.
    pub(super) fn is_class(&mut self, word: &str) -> bool {
        self.class_names().is_some_and(|names| names.by_name.contains_key(word))
    }

    fn class_names(&mut self) -> Option<&ClassNames<'a>> {
        let Some(Target::Classes { classes: Classes::Names(names), .. }) = &self.schema.target else { return None };
        Some(self.class_names.get_or_insert_with(|| ClassNames {
            by_name: names.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect(),
            numerals: names.iter().any(|name| name.parse::<i64>().is_ok()),
        }))
    }

    fn fault_class(&mut self, word: &str) {
        const SHOWN: usize = 8;
        let names = self.schema.class_names().unwrap_or_default();
        let some = names[..names.len().min(SHOWN)].join(", ");
        self.fault_at(Slot::Target, format!("`{}` is none of the {} classes {}", short(word), names.len(), short(&some)));
    }

    /// A row's id.
    pub(super) fn put_id(&mut self, id: &str) {
        if id.is_empty() || id.len() > LABEL_BYTES_MAX {
            return self.fault_at(Slot::RowId, format!("an id has 1 to {LABEL_BYTES_MAX} bytes"));
        }
        self.ids.push(id.to_owned());
    }

    /// A row's event time.
    pub(super) fn put_time(&mut self, time_ms: i64) {
        self.times_ms.push(time_ms);
    }

    /// The rows, if nothing is wrong with them.
    pub(super) fn finish(self) -> Result<Rows, DecodeError> {
        if self.faults.total > 0 {
            return Err(DecodeError { faults: self.faults.listed, total: self.faults.total });
        }
        let block = Block { element: self.element, width: self.width, bytes: self.features.into() };
        let learns = self.purpose == Purpose::Learn;
        let target = match self.schema.target.as_ref().filter(|_| learns) {
            Some(Target::Classes { .. }) => Some(Labels::Classes(self.classes)),
            Some(Target::Regression { .. }) => Some(Labels::Values(self.values)),
            None => None,
        };
        Ok(Rows {
            count: self.rows,
            blocks: vec![block],
            target,
            ids: self.schema.row_id.as_ref().filter(|_| learns).map(|_| self.ids),
            times_ms: self.schema.event_time.as_ref().filter(|_| learns).map(|_| self.times_ms),
        })
    }
}

/// Where each column has its numbers; empty for a tensor.
fn places(schema: &Schema) -> Vec<Place> {
    let Some(columns) = schema.network_columns() else { return Vec::new() };
    let place = |(field, (at, _)): (&Field, (usize, Column))| {
        let hash = match field {
            Field::Categorical { name, buckets, .. } => Some(Hash::new(name, *buckets)),
            _ => None,
        };
        Place { at: at * size_of::<f32>(), optional: field.is_optional(), hash }
    };
    schema.fields.iter().zip(Column::places(&columns)).map(place).collect()
}

/// The beginning of a client's text, for a message.
pub(super) fn short(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
