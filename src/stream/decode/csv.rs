//! CSV: a header line that names the columns, in any order, then a line for each row.

use super::table::{Slot, Table, short};
use crate::stream::schema::Field;

/// Where the values of one column of the file go.
#[derive(Clone, Copy)]
enum Place {
    /// To the table's column of this number.
    Column(usize, Slot),
    /// To this element of the tensor.
    Element(usize),
    /// Nowhere: it is known, and not read.
    Unread,
}

pub(super) fn rows(body: &[u8], table: &mut Table<'_>) {
    // The reader takes the end of the body for the end of a quote; here it is the mark of a file that was cut off.
    if body.iter().filter(|&&byte| byte == b'"').count() % 2 == 1 {
        return table.fault_whole("a quoted value has no end");
    }
    let mut reader = csv::ReaderBuilder::new().has_headers(true).flexible(true).trim(csv::Trim::All).from_reader(body);
    let header = match reader.byte_headers() {
        Ok(header) => header.clone(),
        Err(error) => return table.fault_whole(format!("this is not CSV: {error}")),
    };
    let Some(places) = places(&header, table) else { return };
    let Some(tensor_at) = tensor_order(&places, table) else { return };
    let mut record = csv::ByteRecord::new();
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return table.fault(None, format!("this is not CSV: {error}")),
        }
        if !table.begin() {
            return;
        }
        if record.len() != places.len() {
            // Its values may belong to any columns: this is the one fault of the row.
            table.fault(None, format!("{} values, the header has {} columns", record.len(), places.len()));
            table.skip();
            continue;
        }
        for (value, place) in record.iter().zip(&places) {
            if let Place::Column(column, slot) = *place {
                table.see(column);
                put(value, slot, table);
            }
        }
        if let Some((column, order)) = &tensor_at {
            table.see(*column);
            for &at in order {
                let value = record.get(at).unwrap_or_default();
                let number = parse::<f64>(value);
                table.push_element(number.unwrap_or(0.0));
                if number.is_none() {
                    not_a_number(value, Slot::Tensor, table);
                }
            }
        }
        table.end();
    }
}

/// Where each column of the header goes; none where the header is not the schema's.
fn places(header: &csv::ByteRecord, table: &mut Table<'_>) -> Option<Vec<Place>> {
    let tensor = table.schema.fields.iter().find_map(|field| match field {
        Field::Tensor { name, .. } => Some(name.clone()),
        _ => None,
    });
    let width = table.schema.width();
    let mut places = Vec::with_capacity(header.len());
    let mut good = true;
    for name in header {
        let name = String::from_utf8_lossy(name);
        let element = tensor.as_deref().and_then(|tensor| element_of(tensor, &name));
        let column = table.find(&name).map(|column| (column, table.slot(column)));
        places.push(match (element, column) {
            (Some(element), _) if element < width => Place::Element(element),
            (_, Some((_, Slot::Unread))) => Place::Unread,
            (_, Some((column, slot))) if slot != Slot::Tensor || table.has_pictures() => Place::Column(column, slot),
            _ => {
                table.fault_column(&short(&name), "the schema has no such column");
                good = false;
                Place::Unread
            }
        });
    }
    good.then_some(places)
}

/// The element that a column of the file has, by its name: `pixels_17` is element 17 of the tensor `pixels`.
fn element_of(tensor: &str, column: &str) -> Option<usize> {
    let index = column.strip_prefix(tensor)?.strip_prefix('_')?;
    index.bytes().all(|byte| byte.is_ascii_digit()).then(|| index.parse().ok())?
}

/// The tensor's column, and where in a line each of its elements is; an empty answer for a schema of numbers, and none where
/// elements are missing.
fn tensor_order(places: &[Place], table: &mut Table<'_>) -> Option<Option<(usize, Vec<usize>)>> {
    let Some(Field::Tensor { name, .. }) = table.schema.fields.first() else { return Some(None) };
    let elements = || {
        places.iter().enumerate().filter_map(|(at, place)| match place {
            Place::Element(element) => Some((*element, at)),
            _ => None,
        })
    };
    let (width, had) = (table.schema.width(), elements().count());
    // Told before anything as large as the tensor is made: the header may be two bytes long.
    if had < width {
        table.fault_column(name, format!("{had} of its {width} columns `{name}_0`, `{name}_1`, … are there"));
        return None;
    }
    let mut order = vec![None; width];
    for (element, at) in elements() {
        if order[element].replace(at).is_some() {
            table.fault_column(&format!("{name}_{element}"), "the column is there twice");
            return None;
        }
    }
    Some(Some((table.find(name)?, order.into_iter().flatten().collect())))
}

fn put(value: &[u8], slot: Slot, table: &mut Table<'_>) {
    match slot {
        Slot::Numeric(_) if value.is_empty() && table.put_missing(slot) => {}
        Slot::Numeric(column) => match parse(value) {
            Some(number) => table.put_numeric(column, number),
            None => not_a_number(value, slot, table),
        },
        Slot::Category(column) => match std::str::from_utf8(value) {
            Ok(word) => table.put_category(column, word),
            Err(_) => table.fault_at(slot, format!("`{}` is not UTF-8", shown(value))),
        },
        Slot::Target if value.is_empty() && table.put_missing(slot) => {}
        Slot::Target => {
            let text = String::from_utf8_lossy(value);
            match parse(value) {
                Some(number) if !table.is_class(&text) => table.put_target_number(number),
                _ => table.put_target_word(&text),
            }
        }
        Slot::RowId => match std::str::from_utf8(value) {
            Ok(id) => table.put_id(id),
            Err(_) => table.fault_at(slot, format!("`{}` is not UTF-8", shown(value))),
        },
        Slot::EventTime => match parse(value) {
            Some(time_ms) => table.put_time(time_ms),
            None => table.fault_at(slot, format!("`{}` is not a whole number of milliseconds", shown(value))),
        },
        Slot::Tensor => match std::str::from_utf8(value) {
            Ok(text) => table.put_picture(|pictures, to| pictures.append_text(text, to)),
            Err(_) => table.fault_at(slot, "a picture comes as base64 text, and this is not UTF-8"),
        },
        Slot::Unread => {}
    }
}

fn not_a_number(value: &[u8], slot: Slot, table: &mut Table<'_>) {
    table.fault_at(slot, format!("`{}` is not a number", shown(value)));
}

fn parse<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn shown(value: &[u8]) -> String {
    short(&String::from_utf8_lossy(value))
}
