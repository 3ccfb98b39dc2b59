//! Arrow beside JSON, in each of the types that its writers choose, and streams that nobody should have written.

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, ListBuilder, PrimitiveBuilder};
use arrow_array::{
    ArrayRef, DictionaryArray, Float32Array, Float64Array, Int64Array, LargeStringArray, NullArray, RecordBatch, StringArray,
    StringViewArray, TimestampMicrosecondArray, UInt8Array, UInt32Array,
};
use arrow_ipc::writer::StreamWriter;
use proptest::prelude::*;

use super::super::{DecodeError, Fault, Format, Purpose, decode};
use super::*;
use crate::rows::Rows;
use crate::stream::Schema;

fn schema(text: &str) -> Schema {
    let schema: Schema = serde_json::from_str(text).unwrap();
    schema.validate().unwrap();
    schema
}

fn flights() -> Schema {
    schema(
        r#"{"fields":[{"name":"miles","type":"numeric"},{"name":"delay","type":"numeric","optional":true},
            {"name":"carrier","type":"categorical","buckets":50,"optional":true}],
            "target":{"name":"late","type":"classes","classes":["no","yes"]},"row_id":"id","event_time":"at"}"#,
    )
}

fn pixels() -> Schema {
    schema(
        r#"{"fields":[{"name":"p","type":"tensor","shape":[2,2],"element":"u8"}],
            "target":{"name":"v","type":"regression"}}"#,
    )
}

fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    writer.write(&batch).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn learn(schema: &Schema, body: Vec<u8>) -> Result<Rows, DecodeError> {
    decode(schema, Format::Arrow, body.into(), Purpose::Learn)
}

fn fault(schema: &Schema, columns: Vec<(&str, ArrayRef)>) -> Fault {
    learn(schema, stream(columns)).unwrap_err().faults.remove(0)
}

fn words(words: [Option<&str>; 2]) -> [ArrayRef; 4] {
    let [a, b] = words;
    [
        Arc::new(StringArray::from(vec![a, b])),
        Arc::new(LargeStringArray::from(vec![a, b])),
        Arc::new(StringViewArray::from(vec![a, b])),
        Arc::new(vec![a, b].into_iter().collect::<DictionaryArray<Int8Type>>()),
    ]
}

#[test]
fn every_type_that_says_the_same_is_the_same() {
    let schema = flights();
    let json = r#"{"rows":[{"miles":120,"delay":-2.5,"carrier":"AA","late":"yes","id":7,"at":1000},
        {"miles":7,"delay":null,"carrier":null,"late":"no","id":8,"at":-5}]}"#;
    let once = decode(&schema, Format::Json, json.into(), Purpose::Learn).unwrap();
    let twice = Rows::concatenate(&[&once, &once]).unwrap();
    let miles: [ArrayRef; 3] = [
        Arc::new(Int64Array::from(vec![120, 7])),
        Arc::new(Float64Array::from(vec![120.0, 7.0])),
        Arc::new(UInt8Array::from(vec![120, 7])),
    ];
    let late = words([Some("yes"), Some("no")]);
    let ids: [ArrayRef; 2] = [Arc::new(UInt32Array::from(vec![7, 8])), Arc::new(StringArray::from(vec!["7", "8"]))];
    let times: [ArrayRef; 2] =
        [Arc::new(Int64Array::from(vec![1000, -5])), Arc::new(TimestampMicrosecondArray::from(vec![1_000_999, -4_001]))];
    for (number, carrier) in words([Some("AA"), None]).into_iter().enumerate() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("at", times[number % 2].clone()),
            ("carrier", carrier),
            ("id", ids[number % 2].clone()),
            ("late", late[number].clone()),
            ("delay", Arc::new(Float32Array::from(vec![Some(-2.5), None]))),
            ("miles", miles[number % 3].clone()),
        ];
        let rows = learn(&schema, stream(columns)).unwrap();
        assert_eq!((&rows.blocks, &rows.target), (&twice.blocks, &twice.target), "{number}");
        assert_eq!(rows.ids.unwrap(), ["7", "8", "7", "8"]);
        assert_eq!(rows.times_ms.unwrap(), [1000, -5, 1000, -5]);
    }
}

#[test]
fn a_tensor_is_a_list_of_its_size() {
    let schema = pixels();
    let values: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 1.5]));
    let mut flat = ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
    let mut sized = FixedSizeListBuilder::new(FixedSizeListBuilder::new(PrimitiveBuilder::<UInt8Type>::new(), 2), 2);
    for row in [[1, 2, 3, 4], [250, 251, 252, 253]] {
        row.iter().for_each(|&pixel| flat.values().append_value(pixel));
        flat.append(true);
        for pair in row.chunks(2) {
            pair.iter().for_each(|&pixel| sized.values().values().append_value(pixel as u8));
            sized.values().append(true);
        }
        sized.append(true);
    }
    let (flat, sized): (ArrayRef, ArrayRef) = (Arc::new(flat.finish()), Arc::new(sized.finish()));
    for pixels in [flat.clone(), sized] {
        let rows = learn(&schema, stream(vec![("p", pixels), ("v", values.clone())])).unwrap();
        assert_eq!(&rows.blocks[0].bytes[..8], [1, 2, 3, 4, 250, 251, 252, 253]);
    }
    let short = flat.slice(0, 2);
    let mut other = ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
    other.values().append_slice(&[1, 2, 3]);
    other.append(true);
    other.append(false);
    let fault = fault(&schema, vec![("p", Arc::new(other.finish())), ("v", values.clone())]);
    assert_eq!((fault.row, fault.column.as_deref()), (Some(0), Some("p")));
    assert!(fault.reason.contains("3 numbers"), "{}", fault.reason);
    assert_eq!(learn(&schema, stream(vec![("p", short), ("v", values)])).unwrap().count, 4);
}

#[test]
fn what_is_wrong_is_told_by_row_and_column() {
    let schema = flights();
    let good = || -> Vec<(&str, ArrayRef)> {
        vec![
            ("miles", Arc::new(Float64Array::from(vec![1.0, 2.0]))),
            ("late", Arc::new(UInt32Array::from(vec![1, 0]))),
            ("id", Arc::new(Int64Array::from(vec![1, 2]))),
            ("at", Arc::new(Int64Array::from(vec![1, 2]))),
        ]
    };
    assert_eq!(learn(&schema, stream(good())).unwrap().count, 4);
    let with = |name, array: ArrayRef| {
        let mut columns = good();
        columns.retain(|(other, _)| *other != name);
        columns.push((name, array));
        fault(&schema, columns)
    };
    let told = |fault: Fault| (fault.row, fault.column.unwrap_or_default());
    assert_eq!(told(with("miles", Arc::new(Float64Array::from(vec![1.0, f64::NAN])))), (Some(1), "miles".to_owned()));
    assert_eq!(told(with("miles", Arc::new(Float64Array::from(vec![Some(1.0), None])))), (Some(1), "miles".to_owned()));
    assert_eq!(told(with("miles", Arc::new(StringArray::from(vec!["1", "2"])))), (Some(0), "miles".to_owned()));
    assert_eq!(told(with("late", Arc::new(UInt32Array::from(vec![1, 2])))), (Some(1), "late".to_owned()));
    assert_eq!(told(with("late", Arc::new(NullArray::new(2)))), (Some(0), "late".to_owned()));
    assert_eq!(told(with("id", Arc::new(Float32Array::from(vec![1.5, 2.0])))), (Some(0), "id".to_owned()));
    assert_eq!(told(with("other", Arc::new(Int64Array::from(vec![1, 2])))), (None, "other".to_owned()));
    let interval = arrow_array::IntervalDayTimeArray::new_null(2);
    assert_eq!(told(with("carrier", Arc::new(interval))), (None, "carrier".to_owned()));
    let missing = fault(&schema, good().into_iter().skip(1).collect());
    assert_eq!(told(missing), (Some(0), "miles".to_owned()));
}

#[test]
fn many_rows_of_nothing_end_soon() {
    let schema =
        schema(r#"{"fields":[{"name":"a","type":"numeric","optional":true},{"name":"b","type":"numeric","optional":true}]}"#);
    let error = learn(&schema, stream(vec![("a", Arc::new(NullArray::new(1 << 40)))])).unwrap_err();
    assert!(error.faults[0].reason.contains("rows"), "{error}");
}

fn of_words(words: ArrayRef, columns: usize) -> Vec<u8> {
    let names: Vec<String> = (0..columns).map(|number| format!("c{number}")).collect();
    stream(names.iter().map(|name| (name.as_str(), words.clone())).collect())
}

fn words_schema(columns: usize) -> Schema {
    let fields: Vec<String> =
        (0..columns).map(|number| format!(r#"{{"name":"c{number}","type":"categorical","optional":true}}"#)).collect();
    schema(&format!(r#"{{"fields":[{}]}}"#, fields.join(",")))
}

#[test]
fn a_long_text_behind_many_views_is_refused_before_it_is_read() {
    let long = "x".repeat(257);
    let mut views = arrow_array::builder::StringViewBuilder::new();
    let block = views.append_block(long.clone().into_bytes().into());
    (0..1000).for_each(|_| views.try_append_view(block, 0, 257).unwrap());
    let error = learn(&words_schema(1), of_words(Arc::new(views.finish()), 1)).unwrap_err();
    assert!(error.faults[0].reason.contains("257 bytes"), "{error}");
    let short: ArrayRef = Arc::new(StringViewArray::from(vec!["a word of twenty bytes"; 3]));
    assert_eq!(learn(&words_schema(1), of_words(short, 1)).unwrap().count, 6);
}

#[test]
fn dictionaries_do_not_grow() {
    use arrow_ipc::writer::{DictionaryHandling, IpcWriteOptions};
    let batch = |words: Vec<&str>| {
        let words: ArrayRef = Arc::new(words.into_iter().collect::<DictionaryArray<Int32Type>>());
        RecordBatch::try_from_iter([("c0", words)]).unwrap()
    };
    let (first, second) = (batch(vec!["a", "b"]), batch(vec!["a", "b", "c"]));
    for (handling, is_read) in [(DictionaryHandling::Delta, false), (DictionaryHandling::Resend, true)] {
        let options = IpcWriteOptions::default().with_dictionary_handling(handling);
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), first.schema_ref(), options).unwrap();
        [&first, &second].into_iter().for_each(|batch| writer.write(batch).unwrap());
        let rows = learn(&words_schema(1), writer.into_inner().unwrap());
        match rows {
            Ok(rows) => assert_eq!((is_read, rows.count), (true, 5)),
            Err(error) => assert!(!is_read && error.faults[0].reason.contains("grows"), "{error}"),
        }
    }
}

#[test]
fn compressed_and_overlapping_buffers_are_refused() {
    // Buffers are listed as pairs of 64-bit numbers; that of the second column is made that of the first.
    let numbers: ArrayRef = Arc::new(Int64Array::from((0..64).collect::<Vec<i64>>()));
    let schema = schema(r#"{"fields":[{"name":"a","type":"numeric"},{"name":"b","type":"numeric"}]}"#);
    let mut body = stream(vec![("a", numbers.clone()), ("b", numbers)]);
    assert_eq!(learn(&schema, body.clone()).unwrap().count, 128);
    let second = [512u64.to_le_bytes(), 512u64.to_le_bytes()].concat();
    let at = body.windows(16).rposition(|bytes| bytes == second).expect("the second column's buffer");
    body[at..at + 8].copy_from_slice(&0u64.to_le_bytes());
    body[at + 8..at + 16].copy_from_slice(&1024u64.to_le_bytes());
    let error = learn(&schema, body).unwrap_err();
    assert!(error.faults[0].reason.contains("over each other"), "{error}");
}

#[test]
fn lists_of_nothing_do_not_overflow() {
    let mut inner = arrow_array::new_empty_array(&DataType::UInt8);
    for _ in 0..3 {
        let item = Arc::new(arrow_schema::Field::new("item", inner.data_type().clone(), false));
        inner = Arc::new(arrow_array::FixedSizeListArray::try_new(item, i32::MAX, inner, None).unwrap());
    }
    assert!(learn(&pixels(), stream(vec![("p", inner)])).is_err());
}

#[test]
fn a_stream_that_is_cut_off_is_no_stream() {
    let body = stream(vec![("a", Arc::new(Float32Array::from(vec![1.0, 2.0])))]);
    let schema = schema(r#"{"fields":[{"name":"a","type":"numeric"}]}"#);
    assert_eq!(learn(&schema, body.clone()).unwrap().count, 4);
    for end in 0..body.len() {
        // The end mark is optional, and so is the second batch.
        if let Ok(rows) = learn(&schema, body[..end].to_vec()) {
            assert!(rows.count == 2 || end + 8 >= body.len(), "{end} of {}", body.len());
        }
    }
}

proptest! {
    #[test]
    fn no_altered_stream_makes_the_decoder_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut lists = ListBuilder::new(PrimitiveBuilder::<Int64Type>::new());
        (0..2).for_each(|_| { lists.values().append_slice(&[1, 2, 3, 4]); lists.append(true); });
        let [_, _, view, dictionary] = words([Some("a word that is longer than a view holds"), None]);
        let columns: Vec<(&str, ArrayRef)> = vec![("p", Arc::new(lists.finish())), ("v", view), ("d", dictionary)];
        let mut body = stream(columns);
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        drop(learn(&pixels(), body.clone()));
        drop(learn(&flights(), body));
    }
}
