//! JSON and NDJSON: serde visitors that write each value to its place as it is read, with no tree between.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::cell::{Cell, unexpected};
use super::table::{Slot, Table, short};

/// Reads `{"rows": [{…}, …]}`.
pub(super) fn rows(body: &[u8], table: &mut Table<'_>) {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = Document { table }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    if let Err(error) = read
        && !table.is_ended()
    {
        table.fault_here(format!("this is not JSON of rows: {error}"));
    }
}

/// Reads one object a line.
pub(super) fn lines(body: &[u8], table: &mut Table<'_>) {
    for (number, line) in (1..).zip(body.split(|&byte| byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let mut deserializer = serde_json::Deserializer::from_slice(line);
        let read = Row { table }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
        if let Err(error) = read {
            if !table.is_ended() {
                // To its reader each line is line 1.
                let (place, told) = (format!(" at line {} column {}", error.line(), error.column()), error.to_string());
                let told = told.strip_suffix(&place).unwrap_or(&told);
                let column = error.column();
                table.fault_here(format!("this is not a row as a JSON object: {told} at line {number} column {column}"));
            }
            return;
        }
    }
}

struct Document<'t, 'a> {
    table: &'t mut Table<'a>,
}

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object {\"rows\": [...]}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut had = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "rows" || had {
                return Err(A::Error::custom(format!("member `{}`, expected `rows`, once", short(&key))));
            }
            had = true;
            map.next_value_seed(AllRows { table: self.table })?;
        }
        if had { Ok(()) } else { Err(A::Error::custom("member `rows` is missing")) }
    }
}

struct AllRows<'t, 'a> {
    table: &'t mut Table<'a>,
}

impl<'de> DeserializeSeed<'de> for AllRows<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AllRows<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while rows.next_element_seed(Row { table: self.table })?.is_some() {}
        Ok(())
    }
}

/// One row.
struct Row<'t, 'a> {
    table: &'t mut Table<'a>,
}

impl<'de> DeserializeSeed<'de> for Row<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row as an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let table = self.table;
        if !table.begin() {
            return Err(A::Error::custom("the reading has ended"));
        }
        while let Some(place) = map.next_key_seed(Column { table: &mut *table })? {
            let slot = place.filter(|&place| table.see(place)).map(|place| table.slot(place));
            match slot {
                Some(slot) if slot != Slot::Unread => map.next_value_seed(Value { table: &mut *table, slot, depth: 0 })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            table.leave();
        }
        table.end();
        Ok(())
    }
}

/// A key, looked up without being copied; none for a column that the schema lacks.
struct Column<'t, 'a> {
    table: &'t mut Table<'a>,
}

impl<'de> DeserializeSeed<'de> for Column<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Column<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<usize>, E> {
        let place = self.table.find(name);
        if place.is_none() {
            self.table.fault(Some(&short(name)), "the schema has no such column");
        }
        Ok(place)
    }
}

/// A value, or an element of a tensor `depth` lists deep.
struct Value<'t, 'a> {
    table: &'t mut Table<'a>,
    slot: Slot,
    depth: usize,
}

impl Value<'_, '_> {
    /// A value that is no list: the whole of a column, or an element of a tensor.
    fn put(self, cell: Cell<'_>) {
        match (self.slot, self.depth) {
            (Slot::Tensor, 1..) => cell.push_element(self.table),
            (slot, _) => cell.put(slot, self.table),
        }
    }

    fn unexpected(self, found: &str) {
        unexpected(found, self.slot, self.table);
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.put(Cell::Whole(i128::from(value)));
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.put(Cell::Whole(i128::from(value)));
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.put(Cell::Number(value));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.put(Cell::Word(text));
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.put(Cell::Missing);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.put(Cell::Flag(value));
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.unexpected("an object");
        Ok(())
    }

    /// A tensor may be flat, or nested as its shape says.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Value { table, slot, depth } = self;
        if slot != Slot::Tensor || depth >= table.schema.input_shape().len() {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Value { table, slot, depth }.unexpected("a list");
            return Ok(());
        }
        let (before, mut members) = (table.elements(), 0);
        while list.next_element_seed(Value { table: &mut *table, slot, depth: depth + 1 })?.is_some() {
            members += 1;
        }
        let got = table.elements() - before;
        let shape = table.schema.input_shape();
        let wanted: usize = shape[depth..].iter().product();
        let flat = depth == 0 && members == got;
        if got != wanted || !(flat || members == shape[depth]) {
            let shape = &shape[depth..];
            table.fault_at(Slot::Tensor, format!("a list of {members} with {got} numbers, expected the shape {shape:?}"));
        }
        Ok(())
    }
}
