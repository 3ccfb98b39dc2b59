//! JSON as a type of this crate; where it is not, the error says at which member.

use std::fmt;

use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment, Track};

/// The document as a `T`.
///
/// # Errors
/// It is no JSON, or another document. The text names the member, and where it ends.
pub fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, (serde_json::error::Category, String)> {
    let mut document = serde_json::Deserializer::from_slice(bytes);
    let read = located(&mut document).and_then(|read| document.end().map(|()| read).map_err(|error| (error, String::new())));
    read.map_err(|(error, place)| (error.classify(), format!("{place}{error}")))
}

/// The value as a `T`.
///
/// # Errors
/// It is something else; the text names the member.
pub fn of<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    located(value).map_err(|(error, place)| format!("{place}{error}"))
}

/// The members of an object, of which none is there twice: which one was meant would be a guess.
#[derive(Debug)]
pub struct Members(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        deserializer.deserialize_map(Once)
    }
}

struct Once;

impl<'de> Visitor<'de> for Once {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
        let mut members = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("duplicate field `{name}`")));
            }
            members.insert(name, value);
        }
        Ok(Members(members))
    }
}

/// What went wrong, and what a text about it begins with.
fn located<'de, T: Deserialize<'de>>(
    from: impl Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, (serde_json::Error, String)> {
    let mut track = Track::new();
    T::deserialize(serde_path_to_error::Deserializer::new(from, &mut track)).map_err(|error| {
        let place = place(&track.path(), &error.to_string());
        (error, place)
    })
}

fn place(path: &Path, reason: &str) -> String {
    let mut members: Vec<String> = path.iter().map(Segment::to_string).collect();
    if let Some(unknown) = reason.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
        // That one is named by the reason. Where a tag says what a document is, the path ends before its members.
        members.pop_if(|last| last == unknown);
    }
    // Of the whole document there is nothing to be named.
    if members.is_empty() { String::new() } else { format!("{}: ", members.join(".").replace(".[", "[")) }
}

#[cfg(test)]
mod tests {
    use serde_json::error::Category;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Form {
        widths: Vec<u32>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
    enum Tagged {
        Wide { width: u32 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Listed {
        list: Vec<Tagged>,
    }

    #[test]
    fn a_document_with_a_tag_is_named_as_a_whole() {
        let of = |wide: Value| of::<Listed>(json!({ "list": [{ "type": "wide", "width": 1 }, wide] })).unwrap_err();
        assert_eq!(of(json!({ "type": "wide", "width": "x" })), "list[1]: invalid type: string \"x\", expected u32");
        assert_eq!(of(json!({ "type": "wide", "width": 1, "wide": 2 })), "list[1]: unknown field `wide`, expected `width`");
    }

    #[test]
    fn members_are_there_once() {
        let read = |text: &'static str| read::<Members>(text.as_bytes()).map(|Members(members)| Value::Object(members));
        assert_eq!(read(r#"{"a": {"b": 1}, "b": [2]}"#).unwrap(), json!({ "a": { "b": 1 }, "b": [2] }));
        let (category, text) = read(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap_err();
        assert_eq!(category, Category::Data);
        assert!(text.contains("duplicate field `a`"), "{text}");
        assert!(read("[1]").unwrap_err().1.contains("expected an object"));
    }

    #[test]
    fn an_error_says_where() {
        assert_eq!(of::<Form>(json!({ "widths": [1, 2] })), Ok(Form { widths: vec![1, 2] }));
        assert_eq!(of::<Form>(json!({ "widths": "2" })), Err("widths: invalid type: string \"2\", expected a sequence".into()));
        assert_eq!(of::<Form>(json!({ "widths": [1, -2] })).unwrap_err(), "widths[1]: invalid value: integer `-2`, expected u32");
        assert_eq!(of::<Form>(json!({})).unwrap_err(), "missing field `widths`");
        assert_eq!(of::<Form>(json!({ "width": 1 })).unwrap_err(), "unknown field `width`, expected `widths`");
        let read = |text: &'static str| read::<Form>(text.as_bytes());
        assert_eq!(read(r#"{"widths": [3]}"#), Ok(Form { widths: vec![3] }));
        let (category, text) = read(r#"{"widths": [true]}"#).unwrap_err();
        assert_eq!(
            (category, text.as_str()),
            (Category::Data, "widths[0]: invalid type: boolean `true`, expected u32 at line 1 column 16")
        );
        assert_eq!(read(r#"{"widths": [3"#).unwrap_err().0, Category::Eof);
        assert_eq!(read(r#"{"widths": [3]} x"#).unwrap_err().0, Category::Syntax);
    }
}
