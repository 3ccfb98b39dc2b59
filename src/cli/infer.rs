//! A stream's schema from a CSV: what its columns hold, and what is to be learned of them. It goes by the whole file, and what it
//! guesses is said, so that a person can write the schema where the guess is wrong.

use std::collections::BTreeSet;

use super::Failure;
use crate::limits::CATEGORY_BUCKETS_MAX;
use crate::stream::Schema;
use crate::stream::schema::{Classes, Field, Target};

/// A target of whole numbers has classes where it has at most so many different ones, and is a quantity where it has more.
const WHOLE_CLASSES_MAX: usize = 32;
/// From so many rows on words that all differ are names of rows.
const NAMES_MIN: usize = 20;
/// Buckets of a column of few words, as where a schema says nothing.
const BUCKETS_MIN: usize = 256;

/// A schema, and what a person might want to mend in the file.
#[derive(Debug)]
pub(super) struct Inferred {
    pub(super) schema: Schema,
    pub(super) notes: Vec<String>,
}

/// What the cells of one column are.
#[derive(Default)]
struct Column {
    empty: usize,
    numbers: usize,
    /// Among the numbers, whole ones.
    whole: usize,
    /// The first cell that is neither a number nor empty, and its line.
    word: Option<(String, u64)>,
    /// Of a column of numbers that is not to be learned the first few: of many rows all would take much memory.
    distinct: BTreeSet<String>,
    is_target: bool,
}

impl Column {
    fn see(&mut self, cell: &str, line: u64) {
        match cell.parse::<f64>() {
            _ if cell.is_empty() => return self.empty += 1,
            // As the door reads it: words that floats know, such as NaN, are none that can be learned from.
            Ok(number) if (number as f32).is_finite() => {
                self.numbers += 1;
                self.whole += usize::from(number.fract() == 0.0);
            }
            _ if self.word.is_none() => self.word = Some((cell.to_owned(), line)),
            _ => {}
        }
        let is_kept = self.is_target || !self.is_numeric() || self.distinct.len() <= WHOLE_CLASSES_MAX;
        if is_kept && !self.distinct.contains(cell) {
            self.distinct.insert(cell.to_owned());
        }
    }

    fn is_numeric(&self) -> bool {
        self.word.is_none()
    }

    fn field(&self, name: String) -> Field {
        let optional = self.empty > 0;
        if self.is_numeric() {
            return Field::Numeric { name, optional };
        }
        // Twice as many buckets as words, so that few words share one.
        let buckets = (2 * self.distinct.len()).next_power_of_two().clamp(BUCKETS_MIN, CATEGORY_BUCKETS_MAX);
        Field::Categorical { name, buckets, optional }
    }

    /// What is odd about words of which `rows` rows have one each.
    fn note(&self, name: &str, rows: usize) -> Option<String> {
        let (word, line) = self.word.as_ref()?;
        if self.numbers > 0 {
            return Some(format!(
                "column `{name}` is taken for words because of `{word}` in line {line}: where it is a number that is missing, leave \
                 the cell empty"
            ));
        }
        let is_name = self.distinct.len() == rows && rows >= NAMES_MIN;
        is_name.then(|| {
            format!("column `{name}` has another word in each row, and nothing can be learned of it: say --row-id {name}, or take it out")
        })
    }

    fn target(&self, name: String) -> Result<Target, String> {
        if self.empty > 0 {
            return Err(format!("{} rows have no `{name}`, which is to be learned: take them out of the file", self.empty));
        }
        let is_whole = self.is_numeric() && self.whole == self.numbers;
        if self.is_numeric() && !(is_whole && self.distinct.len() <= WHOLE_CLASSES_MAX) {
            return Ok(Target::Regression { name });
        }
        let mut names: Vec<String> = self.distinct.iter().cloned().collect();
        if is_whole {
            let mut numbers: Vec<f64> = names.iter().filter_map(|name| name.parse().ok()).collect();
            numbers.sort_by(f64::total_cmp);
            // 1 and 1.0 are one class, and a whole float is written without its point.
            names = numbers.iter().map(f64::to_string).collect();
            names.dedup();
        }
        Ok(Target::Classes { name, classes: Classes::Names(names) })
    }
}

/// The schema of a CSV whose column `target` is to be learned, and whose column `row_id` names the rows.
///
/// # Errors
/// It is no CSV with a header, lacks one of the two columns, or rows lack the target.
pub(super) fn schema(file: &[u8], target: &str, row_id: Option<&str>) -> Result<Inferred, Failure> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let names: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    if let Some(at) = names.iter().position(String::is_empty) {
        return Err(format!("column {} has no name in the first line of the file: give it one, or take it out", at + 1).into());
    }
    for wanted in [Some(target), row_id].into_iter().flatten() {
        if !names.iter().any(|name| name == wanted) {
            return Err(format!("the file has no column `{wanted}`, but {}", names.join(", ")).into());
        }
    }
    let mut columns: Vec<Column> = names.iter().map(|name| Column { is_target: name == target, ..Column::default() }).collect();
    let mut record = csv::StringRecord::new();
    let mut rows = 0;
    while reader.read_record(&mut record)? {
        rows += 1;
        let line = record.position().map_or(0, csv::Position::line);
        for (column, cell) in columns.iter_mut().zip(&record) {
            column.see(cell, line);
        }
    }
    let mut schema =
        Schema { fields: Vec::new(), target: None, row_id: row_id.map(str::to_owned), event_time: None, late_labels: None };
    let mut notes = Vec::new();
    for (name, column) in names.into_iter().zip(columns) {
        if row_id == Some(name.as_str()) {
            continue;
        }
        notes.extend(column.note(&name, rows));
        match name == target {
            true => schema.target = Some(column.target(name)?),
            false => schema.fields.push(column.field(name)),
        }
    }
    Ok(Inferred { schema, notes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inferred(file: &str, target: &str) -> Inferred {
        schema(file.as_bytes(), target, None).unwrap()
    }

    fn refused(file: &str, target: &str) -> String {
        schema(file.as_bytes(), target, Some("id")).unwrap_err().to_string()
    }

    #[test]
    fn columns_are_numbers_or_words_and_optional_where_cells_are_empty() {
        let file = "id,a,b,c,d,late\n1,1.5,x,,7,yes\n2, -2e3 ,\"y, z\",4,,no\n3,0,,5,w,yes\n";
        let found = schema(file.as_bytes(), "late", Some("id")).unwrap();
        assert_eq!(
            serde_json::to_value(&found.schema).unwrap(),
            json!({
                "fields": [
                    { "name": "a", "type": "numeric" },
                    { "name": "b", "type": "categorical", "buckets": 256, "optional": true },
                    { "name": "c", "type": "numeric", "optional": true },
                    { "name": "d", "type": "categorical", "buckets": 256, "optional": true },
                ],
                "target": { "name": "late", "type": "classes", "classes": ["no", "yes"] },
                "row_id": "id",
            })
        );
        found.schema.validate().unwrap();
        assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
        assert!(found.notes[0].contains("`d`") && found.notes[0].contains("`w` in line 4"), "{:?}", found.notes);
    }

    #[test]
    fn what_spreadsheets_write_is_read() {
        let found = inferred("\u{feff}\"x\",y\r\n1,2.5\r\n", "y");
        assert_eq!(found.schema.columns().collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn what_floats_know_as_words_are_words() {
        for word in ["NaN", "inf", "1e39", "NA"] {
            let found = inferred(&format!("x,y\n1,0\n{word},1\n"), "y");
            assert!(matches!(found.schema.fields[0], Field::Categorical { .. }), "{word}");
        }
    }

    #[test]
    fn a_target_is_classes_or_a_value() {
        let target = |values: &[&str]| {
            let rows: String = values.iter().map(|value| format!("1,{value}\n")).collect();
            serde_json::to_value(inferred(&format!("x,y\n{rows}"), "y").schema.target).unwrap()
        };
        assert_eq!(target(&["10", "9", "9.0"])["classes"], json!(["9", "10"]));
        assert_eq!(target(&["b", "a", "b"])["classes"], json!(["a", "b"]));
        assert_eq!(target(&["1", "2.5"])["type"], "regression");
        let many: Vec<String> = (0..=WHOLE_CLASSES_MAX).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(target(&many)["type"], "regression");
        assert_eq!(target(&many[1..])["type"], "classes");
    }

    #[test]
    fn many_words_get_many_buckets() {
        let rows: String = (0..1000).map(|row| format!("w{row},{}\n", row % 2)).collect();
        let found = inferred(&format!("x,y\n{rows}"), "y");
        assert!(matches!(found.schema.fields[0], Field::Categorical { buckets: 2048, .. }), "{:?}", found.schema);
    }

    #[test]
    fn names_of_rows_are_noticed() {
        let file = |rows: usize, same: usize| -> String {
            (0..rows).map(|row| format!("w{},{}\n", row / same, row % 2)).collect::<Vec<_>>().concat()
        };
        let notes = |rows, same| inferred(&format!("x,y\n{}", file(rows, same)), "y").notes;
        assert!(notes(NAMES_MIN, 1)[0].contains("--row-id x"));
        assert!(notes(NAMES_MIN - 1, 1).is_empty() && notes(NAMES_MIN, 2).is_empty());
    }

    #[test]
    fn what_cannot_be_a_stream_is_said() {
        assert!(refused("x,id\n1,1\n", "y").contains("no column `y`, but x, id"));
        assert!(refused("x,y\n1,1\n", "y").contains("no column `id`"));
        assert!(refused(",id,y\n1,1,1\n", "y").contains("column 1 has no name"));
        assert!(refused("id,y\n1,\n2,\n", "y").contains("2 rows have no `y`"));
        assert!(refused("id,x,y\n1,2\n", "y").contains("line: 2"));
    }
}
