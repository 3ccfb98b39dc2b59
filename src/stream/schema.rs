//! The schema of a stream: what a row of it is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::limits::{
    CATEGORY_BUCKETS_MAX, CLASSES_MAX, FIELDS_MAX, IMAGE_SIDE_MAX, IMAGE_SIDE_MIN, LABEL_BYTES_MAX, LABEL_WINDOW_ROWS_MAX,
    RECORD_BYTES_MAX, RECORD_ROWS_MAX, ROW_BYTES_MAX,
};
use crate::network::Column;
use crate::rows::Element;

/// Dimensions of a tensor.
const DIMENSIONS_MAX: usize = 4;

/// The body of `PUT /v1/streams/{s}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// The features: numeric and categorical columns, or one tensor or image.
    pub fields: Vec<Field>,
    /// What is to be learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The column with each row's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_id: Option<String>,
    /// The column with each row's event time in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
    /// Whether rows may come without their label, and have it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_labels: Option<LateLabels>,
}

/// How late a label may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateLabels {
    /// A row expires with the window-th further row or label that is accepted, if none before was its label.
    pub window_rows: u64,
}

/// One feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Field {
    /// A number.
    Numeric {
        /// Its column.
        name: String,
        /// Whether it may be missing. A row then has two numbers of it: the value (0 where it is missing), and 1 where it is missing
        /// or else 0.
        #[serde(default, skip_serializing_if = "is_false")]
        optional: bool,
    },
    /// An array of numbers, always of the same shape.
    Tensor {
        /// Its column.
        name: String,
        /// Of one row, such as `[channels, height, width]`.
        shape: Vec<usize>,
        /// Of each number.
        element: Element,
    },
    /// A word. A row has its bucket as a number: see [`category`](crate::stream::category).
    Categorical {
        /// Its column.
        name: String,
        /// How many buckets words are hashed to, beside the one of missing values. Always written, so that a data folder means the
        /// same under another default.
        #[serde(default = "buckets")]
        buckets: usize,
        /// Whether it may be missing.
        #[serde(default, skip_serializing_if = "is_false")]
        optional: bool,
    },
    /// Words; reserved.
    Text {
        /// Its column.
        name: String,
    },
    /// A picture that comes encoded. A row has it decoded, as a tensor `[3, side, side]` of bytes, red first: its largest square, from
    /// the middle.
    Image {
        /// Its column.
        name: String,
        /// Pixels on a side.
        side: usize,
    },
}

fn buckets() -> usize {
    256
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Field {
    /// The field's column.
    pub fn name(&self) -> &str {
        match self {
            Field::Numeric { name, .. }
            | Field::Tensor { name, .. }
            | Field::Categorical { name, .. }
            | Field::Text { name }
            | Field::Image { name, .. } => name,
        }
    }

    /// What a row's numbers of it mean; none for a field that is not a column.
    pub fn column(&self) -> Option<Column> {
        match *self {
            Field::Numeric { optional: false, .. } => Some(Column::Number),
            Field::Numeric { optional: true, .. } => Some(Column::Optional),
            Field::Categorical { buckets, .. } => Some(Column::Category { buckets: buckets.saturating_add(1) }),
            Field::Tensor { .. } | Field::Text { .. } | Field::Image { .. } => None,
        }
    }

    /// The shape and the elements of a field that is a row's only one and no column.
    pub fn tensor(&self) -> Option<(Vec<usize>, Element)> {
        match self {
            Field::Tensor { shape, element, .. } => Some((shape.clone(), *element)),
            Field::Image { side, .. } => Some((vec![3, *side, *side], Element::U8)),
            Field::Numeric { .. } | Field::Categorical { .. } | Field::Text { .. } => None,
        }
    }

    /// Whether a row may come without it.
    pub fn is_optional(&self) -> bool {
        matches!(self, Field::Numeric { optional: true, .. } | Field::Categorical { optional: true, .. })
    }
}

/// What is to be learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// One of some classes.
    Classes {
        /// Its column.
        name: String,
        /// How many, or their names.
        classes: Classes,
    },
    /// A number.
    Regression {
        /// Its column.
        name: String,
    },
}

impl Target {
    /// The target's column.
    pub fn name(&self) -> &str {
        match self {
            Target::Classes { name, .. } | Target::Regression { name } => name,
        }
    }
}

/// The classes of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Classes {
    /// So many, numbered from 0.
    Count(usize),
    /// These; a label may be a name, or its place in the list unless names are integers themselves.
    Names(Vec<String>),
}

impl Classes {
    /// How many.
    pub fn count(&self) -> usize {
        match self {
            Classes::Count(count) => *count,
            Classes::Names(names) => names.len(),
        }
    }
}

impl Schema {
    /// Whether rows of this schema can be served; what is wrong with it where they cannot.
    pub fn validate(&self) -> Result<(), String> {
        if self.fields.is_empty() || self.fields.len() > FIELDS_MAX {
            return Err(format!("fields: {} of them, allowed are 1 to {FIELDS_MAX}", self.fields.len()));
        }
        for field in &self.fields {
            match field {
                Field::Numeric { .. } => {}
                Field::Tensor { name, shape, .. } => check_shape(name, shape)?,
                Field::Categorical { name, buckets, .. } if !(2..=CATEGORY_BUCKETS_MAX).contains(buckets) => {
                    return Err(format!("field `{name}`: {buckets} buckets, allowed are 2 to {CATEGORY_BUCKETS_MAX}"));
                }
                Field::Categorical { .. } => {}
                Field::Image { name, side } if !(IMAGE_SIDE_MIN..=IMAGE_SIDE_MAX).contains(side) => {
                    return Err(format!("field `{name}`: side {side}, allowed are {IMAGE_SIDE_MIN} to {IMAGE_SIDE_MAX}"));
                }
                Field::Image { .. } => {}
                Field::Text { name } => {
                    return Err(format!("field `{name}`: its type is reserved and not served by this version"));
                }
            }
        }
        if self.network_columns().is_none() && self.fields.len() > 1 {
            return Err("fields: either numeric and categorical columns only, or exactly one tensor or image".into());
        }
        let mut names = BTreeSet::new();
        for name in self.columns() {
            if name.is_empty() || name.len() > LABEL_BYTES_MAX {
                return Err(format!("`{name}`: a column's name has 1 to {LABEL_BYTES_MAX} bytes"));
            }
            if !names.insert(name) {
                return Err(format!("`{name}`: two columns have this name"));
            }
        }
        if let [Field::Tensor { name: tensor, .. }] = self.fields.as_slice()
            && let Some(name) = self.columns().find(|name| is_element_column(tensor, name))
        {
            return Err(format!("`{name}`: in CSV this is the column of an element of `{tensor}`; choose another name"));
        }
        if self.row_bytes() > ROW_BYTES_MAX {
            return Err(format!("a row has {} bytes, {ROW_BYTES_MAX} are the most", self.row_bytes()));
        }
        if let Some(LateLabels { window_rows }) = self.late_labels {
            if !(2..=LABEL_WINDOW_ROWS_MAX).contains(&window_rows) {
                return Err(format!("late_labels: window_rows is {window_rows}, allowed are 2 to {LABEL_WINDOW_ROWS_MAX}"));
            }
            if self.target.is_none() || self.row_id.is_none() {
                return Err("late_labels: the schema needs a target, and a row_id by which labels name their rows".into());
            }
        }
        match &self.target {
            Some(Target::Classes { name, classes }) => check_classes(name, classes),
            _ => Ok(()),
        }
    }

    /// What a post of late labels has: rows of an id and a target, and nothing else.
    pub fn of_labels(&self) -> Schema {
        let (target, row_id) = (self.target.clone(), self.row_id.clone());
        Schema { fields: Vec::new(), target, row_id, event_time: None, late_labels: None }
    }

    /// How many further rows and labels a row waits for its label; 0 where labels come with their rows.
    pub fn label_window(&self) -> u64 {
        self.late_labels.map_or(0, |late| late.window_rows)
    }

    /// All columns: fields, target, id, time.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        let beside = [self.row_id.as_deref(), self.event_time.as_deref()].into_iter().flatten();
        self.fields.iter().map(Field::name).chain(self.target.as_ref().map(Target::name)).chain(beside)
    }

    /// What the numbers of a row mean, where the features are columns and not a tensor.
    pub fn network_columns(&self) -> Option<Vec<Column>> {
        self.fields.iter().map(Field::column).collect()
    }

    /// Whether the target is a class.
    pub fn is_classified(&self) -> bool {
        matches!(self.target, Some(Target::Classes { .. }))
    }

    /// The shape of one row's features: the tensor's or the image's, or how many numbers the columns have.
    pub fn input_shape(&self) -> Vec<usize> {
        match self.fields.first().and_then(Field::tensor) {
            Some((shape, _)) => shape,
            None => vec![self.fields.iter().filter_map(Field::column).map(Column::width).sum()],
        }
    }

    /// What one row's features are made of.
    pub fn element(&self) -> Element {
        self.fields.first().and_then(Field::tensor).map_or(Element::F32, |(_, element)| element)
    }

    /// Numbers in one row's features.
    pub fn width(&self) -> usize {
        self.input_shape().iter().fold(1, |product: usize, &size| product.saturating_mul(size))
    }

    /// Bytes of one row's features.
    pub fn row_bytes(&self) -> usize {
        self.width().saturating_mul(self.element().bytes())
    }

    /// Rows that one record of the log holds: a power of two, so that steps of 2, 4, 8, … rows fill it.
    pub fn record_rows(&self) -> usize {
        let fitting = (RECORD_BYTES_MAX / self.row_bytes().max(1)).clamp(1, RECORD_ROWS_MAX);
        1 << fitting.ilog2()
    }

    /// How many classes there are; 1 for a value, and for nothing.
    pub fn class_count(&self) -> usize {
        match &self.target {
            Some(Target::Classes { classes, .. }) => classes.count(),
            _ => 1,
        }
    }

    /// The classes' names, where they have names.
    pub fn class_names(&self) -> Option<&[String]> {
        match &self.target {
            Some(Target::Classes { classes: Classes::Names(names), .. }) => Some(names),
            _ => None,
        }
    }
}

fn check_shape(name: &str, shape: &[usize]) -> Result<(), String> {
    let product = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if !(1..=DIMENSIONS_MAX).contains(&shape.len()) || product.is_none_or(|product| product == 0) {
        return Err(format!("field `{name}`: shape {shape:?}, expected 1 to {DIMENSIONS_MAX} sizes from 1 on"));
    }
    Ok(())
}

fn is_element_column(tensor: &str, column: &str) -> bool {
    let index = column.strip_prefix(tensor).and_then(|rest| rest.strip_prefix('_'));
    index.is_some_and(|index| !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()))
}

fn check_classes(name: &str, classes: &Classes) -> Result<(), String> {
    if !(2..=CLASSES_MAX).contains(&classes.count()) {
        return Err(format!("target `{name}`: {} classes, allowed are 2 to {CLASSES_MAX}", classes.count()));
    }
    let Classes::Names(names) = classes else { return Ok(()) };
    let mut seen = BTreeSet::new();
    for class in names {
        if class.is_empty() || class.len() > LABEL_BYTES_MAX || !seen.insert(class) {
            return Err(format!(
                "target `{name}`: class `{class}` is empty, longer than {LABEL_BYTES_MAX} bytes, or there twice"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(json: &str) -> Schema {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn records_hold_a_power_of_two_rows_within_their_bytes() {
        let tensor = |shape: &str, element: &str| {
            schema(&format!(r#"{{"fields":[{{"name":"t","type":"tensor","shape":{shape},"element":"{element}"}}]}}"#))
        };
        assert_eq!(tensor("[1,28,28]", "u8").record_rows(), 1024);
        assert_eq!(tensor("[3,32,32]", "f32").record_rows(), 64);
        assert_eq!(tensor("[3,1000,1000]", "f32").record_rows(), 1);
        assert_eq!(schema(r#"{"fields":[{"name":"x","type":"numeric"}]}"#).record_rows(), 1024);
    }

    #[test]
    fn labels_come_late_where_rows_have_ids_and_a_target() {
        let late = |beside: &str, window: u64| {
            let late = format!(r#""late_labels":{{"window_rows":{window}}}"#);
            schema(&format!(r#"{{"fields":[{{"name":"x","type":"numeric"}}],{beside}{late}}}"#)).validate()
        };
        let whole = r#""target":{"name":"y","type":"regression"},"row_id":"i","#;
        assert!(late("", 9).unwrap_err().contains("needs a target, and a row_id"));
        assert!(late(r#""row_id":"i","#, 9).unwrap_err().contains("needs a target"));
        assert!(late(whole, 1).unwrap_err().contains("window_rows is 1"));
        assert!(late(whole, LABEL_WINDOW_ROWS_MAX + 1).unwrap_err().contains("allowed are 2 to 1048576"));
        assert_eq!(late(whole, LABEL_WINDOW_ROWS_MAX), Ok(()));
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_a_reason() {
        let x = r#"{"name":"x","type":"numeric"}"#;
        let field = |field: &str| format!(r#"{{"fields":[{field}]}}"#);
        let tensor = |shape: &str| field(&format!(r#"{{"name":"t","type":"tensor","shape":{shape},"element":"u8"}}"#));
        let target = |target: &str| format!(r#"{{"fields":[{x}],"target":{target}}}"#);
        let many =
            |count: usize| (0..count).map(|i| format!(r#"{{"name":"c{i}","type":"numeric"}}"#)).collect::<Vec<_>>().join(",");
        let cases = [
            (field(""), "fields: 0"),
            (field(&many(FIELDS_MAX + 1)), "fields: 4097"),
            (field(&format!("{x},{x}")), "two columns have this name"),
            (format!(r#"{{"fields":[{x}],"row_id":"x"}}"#), "two columns have this name"),
            (field(r#"{"name":"","type":"numeric"}"#), "a column's name"),
            (field(r#"{"name":"x","type":"text"}"#), "reserved and not served"),
            (field(r#"{"name":"x","type":"categorical","buckets":1}"#), "1 buckets"),
            (field(r#"{"name":"x","type":"categorical","buckets":65537}"#), "65537 buckets"),
            (
                field(r#"{"name":"c","type":"categorical"},{"name":"t","type":"tensor","shape":[2],"element":"u8"}"#),
                "exactly one tensor",
            ),
            (field(&format!(r#"{x},{{"name":"t","type":"tensor","shape":[2],"element":"u8"}}"#)), "exactly one tensor"),
            (tensor("[]"), "1 to 4 sizes"),
            (tensor("[1,1,1,1,1]"), "1 to 4 sizes"),
            (tensor("[0]"), "1 to 4 sizes"),
            (tensor("[4294967296,4294967296,4294967296]"), "1 to 4 sizes"),
            (tensor(&format!("[{}]", ROW_BYTES_MAX + 1)), "a row has"),
            (target(r#"{"name":"y","type":"classes","classes":1}"#), "1 classes"),
            (target(&format!(r#"{{"name":"y","type":"classes","classes":{}}}"#, CLASSES_MAX + 1)), "65537 classes"),
            (target(r#"{"name":"y","type":"classes","classes":["a","a"]}"#), "there twice"),
            (
                r#"{"fields":[{"name":"t","type":"tensor","shape":[2],"element":"u8"}],"row_id":"t_7"}"#.to_owned(),
                "the column of an element",
            ),
        ];
        for (json, reason) in cases {
            let error = schema(&json).validate().unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        for json in [
            field(&many(FIELDS_MAX)),
            field(r#"{"name":"x","type":"categorical"}"#),
            field(
                r#"{"name":"x","type":"categorical","buckets":65536,"optional":true},{"name":"y","type":"numeric","optional":true}"#,
            ),
            tensor(&format!("[{ROW_BYTES_MAX}]")),
            target(&format!(r#"{{"name":"y","type":"classes","classes":{CLASSES_MAX}}}"#)),
            target(r#"{"name":"y","type":"classes","classes":2}"#),
            target("null"),
        ] {
            assert_eq!(schema(&json).validate(), Ok(()), "{:.80}", json);
        }
        for json in [
            format!(r#"{{"fields":[{x}],"colour":1}}"#),
            field(r#"{"name":"x","type":"numeric","shape":[1]}"#),
            field(r#"{"name":"x","type":"numeric","optional":1}"#),
            field(r#"{"name":"x","type":"numeric","buckets":3}"#),
            field(r#"{"name":"x","type":"categorical","buckets":-1}"#),
            field(r#"{"name":"t","type":"tensor","shape":[2],"element":"u8","optional":true}"#),
            field(r#"{"name":"t","type":"tensor","shape":[2]}"#),
            field(r#"{"name":"t","type":"tensor","element":"u8"}"#),
            field(r#"{"name":"t","type":"tensor","shape":[-1],"element":"u8"}"#),
            target(r#"{"name":"y","type":"classes"}"#),
            target(r#"{"name":"y","type":"regression","classes":3}"#),
        ] {
            assert!(serde_json::from_str::<Schema>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn columns_have_their_numbers_in_a_row() {
        let schema = schema(
            r#"{"fields":[{"name":"x","type":"numeric"},{"name":"c","type":"categorical","buckets":9},
                {"name":"y","type":"numeric","optional":true},{"name":"d","type":"categorical","optional":true}]}"#,
        );
        let expected = [Column::Number, Column::Category { buckets: 10 }, Column::Optional, Column::Category { buckets: 257 }];
        assert_eq!(schema.network_columns().unwrap(), expected);
        assert_eq!((schema.input_shape(), schema.width(), schema.row_bytes()), (vec![5], 5, 20));
    }

    #[test]
    fn a_picture_is_a_tensor_of_bytes_and_alone() {
        let of = |members: &str, more: &str| format!(r#"{{"fields":[{{"name":"p","type":"image"{members}}}{more}]}}"#);
        let picture = schema(&of(r#","side":10"#, ""));
        assert_eq!((picture.input_shape(), picture.element(), picture.row_bytes()), (vec![3, 10, 10], Element::U8, 300));
        assert_eq!((picture.network_columns(), picture.validate()), (None, Ok(())));
        assert_eq!(schema(&of(r#","side":512"#, "")).validate(), Ok(()));
        for (side, more, reason) in [
            (7, "", "side 7, allowed are 8 to 512"),
            (513, "", "side 513"),
            (8, r#",{"name":"x","type":"numeric"}"#, "exactly one tensor or image"),
        ] {
            let error = schema(&of(&format!(r#","side":{side}"#), more)).validate().unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        for members in ["", r#","side":8,"optional":true"#, r#","side":-8"#, r#","side":8,"shape":[3,8,8]"#] {
            assert!(serde_json::from_str::<Schema>(&of(members, "")).is_err(), "{members}");
        }
    }

    #[test]
    fn a_schema_reads_back_as_it_was_written() {
        for text in [
            r#"{"fields":[{"type":"numeric","name":"x"}],"target":{"type":"classes","name":"y","classes":["a","b"]},"row_id":"id"}"#,
            r#"{"fields":[{"type":"tensor","name":"t","shape":[2,3],"element":"u8"}],"target":{"type":"regression","name":"y"}}"#,
            r#"{"fields":[{"type":"image","name":"i","side":32}]}"#,
            r#"{"fields":[{"type":"numeric","name":"x","optional":true},{"type":"categorical","name":"c","buckets":256}]}"#,
        ] {
            let schema = schema(text);
            assert_eq!(schema.validate(), Ok(()));
            assert_eq!(serde_json::to_string(&schema).unwrap(), text);
        }
    }
}
