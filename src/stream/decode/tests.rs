//! Every format against every other, and what no decoder may be made to do.

use proptest::prelude::*;

use super::*;
use crate::limits::{CATEGORY_BYTES_MAX, FAULTS_COUNTED_MAX, POST_ROWS_MAX};
use crate::rows::{Element, Target};
use crate::stream::category::Hash;

fn schema(text: &str) -> Schema {
    let schema: Schema = serde_json::from_str(text).unwrap();
    schema.validate().unwrap();
    schema
}

fn points() -> Schema {
    schema(
        r#"{"fields":[{"name":"x","type":"numeric"},{"name":"y","type":"numeric"}],
            "target":{"name":"label","type":"classes","classes":["no","yes"]},"row_id":"id","event_time":"at"}"#,
    )
}

fn pixels() -> Schema {
    schema(
        r#"{"fields":[{"name":"p","type":"tensor","shape":[2,2],"element":"u8"}],
            "target":{"name":"v","type":"regression"}}"#,
    )
}

fn flights() -> Schema {
    schema(
        r#"{"fields":[{"name":"carrier","type":"categorical"},{"name":"delay","type":"numeric","optional":true},
            {"name":"miles","type":"numeric"},{"name":"gate","type":"categorical","buckets":5,"optional":true}],
            "target":{"name":"late","type":"classes","classes":2}}"#,
    )
}

fn learn(schema: &Schema, format: Format, body: impl Into<Bytes>) -> Result<Rows, DecodeError> {
    decode(schema, format, body.into(), Purpose::Learn)
}

fn first_fault(result: Result<Rows, DecodeError>) -> Fault {
    result.unwrap_err().faults.remove(0)
}

#[test]
fn all_formats_give_the_same_rows() {
    let schema = points();
    let json = learn(
        &schema,
        Format::Json,
        r#"{"rows":[{"x":1.5,"y":-2,"label":"yes","id":"7","at":1000},{"label":0,"at":-5,"id":8,"y":0.25,"x":3}]}"#,
    )
    .unwrap();
    assert_eq!((json.count, json.blocks[0].element, json.blocks[0].width), (2, Element::F32, 2));
    assert_eq!(json.target, Some(Target::Classes(vec![1, 0])));
    assert_eq!(json.ids, Some(vec!["7".into(), "8".into()]));
    assert_eq!(json.times_ms, Some(vec![1000, -5]));
    let lines =
        "{\"x\":1.5,\"y\":-2,\"label\":1,\"id\":7,\"at\":1000}\n\n {\"x\":3,\"y\":0.25,\"label\":\"no\",\"id\":8,\"at\":-5}";
    assert_eq!(learn(&schema, Format::Ndjson, lines).unwrap(), json);
    let csv = "at,label, id,y,x\n1000,yes,7,-2,1.5\n-5,0,8,0.25,3\n";
    assert_eq!(learn(&schema, Format::Csv, csv).unwrap(), json);
    let mut raw: Vec<u8> = [1.5f32, -2.0, 3.0, 0.25].iter().flat_map(|value| value.to_le_bytes()).collect();
    raw.extend([1u32, 0].iter().flat_map(|class| class.to_le_bytes()));
    raw.extend([7u64, 8].iter().flat_map(|id| id.to_le_bytes()));
    raw.extend([1000i64, -5].iter().flat_map(|at| at.to_le_bytes()));
    assert_eq!(learn(&schema, Format::Raw, raw).unwrap(), json);
}

#[test]
fn tensors_are_flat_or_nested_as_their_shape_says() {
    let schema = pixels();
    let flat = learn(&schema, Format::Json, r#"{"rows":[{"p":[1,2,3,4],"v":0.5}]}"#).unwrap();
    assert_eq!(&flat.blocks[0].bytes[..], &[1, 2, 3, 4]);
    assert_eq!(learn(&schema, Format::Json, r#"{"rows":[{"p":[[1,2],[3,4]],"v":0.5}]}"#).unwrap(), flat);
    assert_eq!(learn(&schema, Format::Csv, "v,p_3,p_1,p_0,p_2\n0.5,4,2,1,3\n").unwrap(), flat);
    for bad in ["[1,2,3]", "[1,2,3,4,5]", "[[1,2,3],[4]]", "[[1],[2],[3],[4]]", "[[[1,2],[3,4]]]", "7", "[]", "[1,2,[3],4]"] {
        let fault = first_fault(learn(&schema, Format::Json, format!(r#"{{"rows":[{{"p":{bad},"v":0}}]}}"#)));
        assert_eq!((fault.row, fault.column.as_deref()), (Some(0), Some("p")), "{bad}");
    }
    for bad in ["-1", "256", "1.5", "null", "\"1\""] {
        let fault = first_fault(learn(&schema, Format::Json, format!(r#"{{"rows":[{{"p":[1,2,3,{bad}],"v":0}}]}}"#)));
        assert_eq!(fault.column.as_deref(), Some("p"), "{bad}");
    }
}

/// The numbers of rows that are made of floats.
fn numbers(rows: &Rows) -> Vec<f32> {
    rows.blocks[0].bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect()
}

#[test]
fn words_become_buckets_and_what_is_missing_is_marked_in_every_format() {
    let schema = flights();
    let bucket = |name: &str, buckets, word: &str| Hash::new(name, buckets).bucket(word) as f32;
    let (aa, seven, gate) = (bucket("carrier", 256, "AA"), bucket("carrier", 256, "7"), bucket("gate", 5, "true"));
    let expected = [aa, 0.0, 1.0, 300.0, 0.0, seven, -4.5, 0.0, 0.0, gate, aa, 0.0, 0.0, 1.0, 0.0];
    let json = r#"{"rows":[{"carrier":"AA","delay":null,"miles":300,"late":0},
        {"carrier":7,"delay":-4.5,"miles":0,"gate":true,"late":1},{"carrier":"AA","delay":0,"miles":1,"gate":null,"late":0}]}"#;
    let rows = learn(&schema, Format::Json, json).unwrap();
    assert_eq!((rows.blocks[0].width, numbers(&rows)), (5, expected.to_vec()));
    let lines = r#"{"miles":300,"carrier":"AA","late":0,"gate":""}
        {"carrier":"7","delay":-4.5,"miles":0,"gate":"true","late":1}
        {"carrier":"AA","delay":0,"miles":1,"late":0}"#;
    assert_eq!(learn(&schema, Format::Ndjson, lines).unwrap(), rows);
    let csv = "late,gate,miles,delay,carrier\n0,,300,,AA\n1,true,0,-4.5,7\n0, ,1,0,AA\n";
    assert_eq!(learn(&schema, Format::Csv, csv).unwrap(), rows);
    // A query, and a file that lacks columns altogether.
    let query = decode(&schema, Format::Csv, "miles,carrier\n300,AA\n".into(), Purpose::Predict).unwrap();
    assert_eq!(numbers(&query), expected[..5]);
}

#[test]
fn what_may_not_be_missing_is_told_by_row_and_column() {
    let row = |members: &str| format!(r#"{{"rows":[{{"carrier":"AA","miles":1,"late":0}},{{{members},"late":0}}]}}"#);
    let long = "x".repeat(CATEGORY_BYTES_MAX + 1);
    for (format, body, column, reason) in [
        (Format::Json, row(r#""carrier":"AA","miles":null"#), "miles", "null, expected a number"),
        (Format::Json, row(r#""carrier":"AA","delay":"","miles":1"#), "delay", "expected a number"),
        (Format::Json, row(r#""carrier":"AA""#), "miles", "missing"),
        (Format::Json, row(r#""miles":1"#), "carrier", "missing"),
        (Format::Json, row(r#""miles":1,"carrier":null"#), "carrier", "null, expected a text"),
        (Format::Json, row(r#""carrier":"","miles":1"#), "carrier", "not optional"),
        (Format::Json, row(r#""miles":1,"carrier":1.5"#), "carrier", "the number 1.5, expected a text"),
        (Format::Json, row(r#""miles":1,"carrier":["AA"]"#), "carrier", "a list, expected a text"),
        (Format::Json, row(r#""miles":1,"carrier":{}"#), "carrier", "an object, expected a text"),
        (Format::Json, row(&format!(r#""miles":1,"carrier":"{long}""#)), "carrier", "a text of 257 bytes"),
        (Format::Json, row(r#""miles":1,"carrier":"AA","delay":1e300"#), "delay", "not a finite"),
        (Format::Csv, "carrier,miles,late\nAA,1,0\nAA,,0\n".into(), "miles", "`` is not a number"),
        (Format::Csv, "carrier,miles,late\nAA,1,0\n,1,0\n".into(), "carrier", "not optional"),
        (Format::Csv, "carrier,miles,late,delay\nAA,1,0,\nAA,1,0,none\n".into(), "delay", "`none` is not a number"),
        (Format::Csv, format!("carrier,miles,late\nAA,1,0\n{long},1,0\n"), "carrier", "a text of 257 bytes"),
    ] {
        let fault = first_fault(learn(&flights(), format, body.clone()));
        assert_eq!((fault.row, fault.column.as_deref()), (Some(1), Some(column)), "{body}: {fault:?}");
        assert!(fault.reason.contains(reason), "{body}: {fault:?}");
    }
    let bytes = b"carrier,miles,late\n\xff,1,0\n".to_vec();
    assert!(first_fault(learn(&flights(), Format::Csv, bytes)).reason.contains("UTF-8"));
    let fault = first_fault(learn(&flights(), Format::Raw, vec![0; 24]));
    assert_eq!((fault.row, fault.column.as_deref()), (None, Some("carrier")));
    assert!(fault.reason.contains("JSON, NDJSON or CSV"), "{fault:?}");
}

#[test]
fn queries_need_features_only() {
    let rows =
        decode(&points(), Format::Json, r#"{"rows":[{"x":1,"y":2},{"y":1,"x":2,"label":"none"}]}"#.into(), Purpose::Predict);
    let rows = rows.unwrap();
    assert_eq!((rows.count, rows.target, rows.ids), (2, None, None));
    let rows = decode(&pixels(), Format::Raw, Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]), Purpose::Predict).unwrap();
    assert_eq!(rows.count, 2);
    assert!(decode(&pixels(), Format::Raw, Bytes::from_static(&[1, 2, 3, 4, 5]), Purpose::Predict).is_err());
    assert!(decode(&points(), Format::Csv, "x,y,label\n1,2,none\n".into(), Purpose::Predict).is_ok());
}

#[test]
fn faults_are_listed_up_to_a_number_and_counted() {
    let rows: Vec<String> =
        (0..40).map(|row| format!(r#"{{"p":[0,0,0,{}],"v":0}}"#, if row % 2 == 0 { 999 } else { 9 })).collect();
    let error = learn(&pixels(), Format::Json, format!(r#"{{"rows":[{}]}}"#, rows.join(","))).unwrap_err();
    assert_eq!((error.faults.len(), error.total), (ERRORS_LISTED_MAX, 20));
    assert_eq!(error.faults[3].row, Some(6));
    assert!(error.to_string().contains("row 0 in column `p`"), "{error}");
}

#[test]
fn an_integer_is_a_name_where_names_are_integers_in_every_text_format() {
    let text = r#"{"fields":[{"name":"x","type":"numeric"}],"target":{"name":"y","type":"classes","classes":["1","2","-1"]}}"#;
    let schema = schema(text);
    let json = r#"{"rows":[{"x":0,"y":1},{"x":0,"y":"2"},{"x":0,"y":-1},{"x":0,"y":1.0}]}"#;
    let expected = Some(Target::Classes(vec![0, 1, 2, 0]));
    assert_eq!(learn(&schema, Format::Json, json).unwrap().target, expected);
    assert_eq!(learn(&schema, Format::Csv, "x,y\n0,1\n0,2\n0,-1\n0,1.0\n").unwrap().target, expected);
    let fault = first_fault(learn(&schema, Format::Json, r#"{"rows":[{"x":0,"y":0}]}"#));
    assert!(fault.reason.contains("none of the 3 classes 1, 2, -1"), "{}", fault.reason);
}

#[test]
fn a_small_body_of_faults_stays_small() {
    // 16 MiB for each row that is kept, were any kept.
    let vast = schema(r#"{"fields":[{"name":"t","type":"tensor","shape":[16777216],"element":"u8"}]}"#);
    let body = format!(r#"{{"rows":[{}{{}}]}}"#, "{},".repeat(20_000));
    let error = learn(&vast, Format::Json, body).unwrap_err();
    assert_eq!((error.faults.len(), error.total), (ERRORS_LISTED_MAX, FAULTS_COUNTED_MAX));
    assert_eq!(first_fault(learn(&vast, Format::Csv, "t_0\n1\n")).column.as_deref(), Some("t"));
    let lines = format!("p_0,p_1,p_2,p_3,v\n{}", "1\n".repeat(50));
    assert_eq!(learn(&pixels(), Format::Csv, lines).unwrap_err().total, 50);
}

#[test]
fn a_small_body_of_rows_without_columns_stays_small() {
    let field = |number: usize| format!(r#"{{"name":"c{number}","type":"numeric","optional":true}}"#);
    let vast = schema(&format!(r#"{{"fields":[{}]}}"#, (0..4096).map(field).collect::<Vec<_>>().join(",")));
    let of_rows = |count: usize| format!(r#"{{"rows":[{}{{}}]}}"#, "{},".repeat(count - 1));
    // 32 KiB each.
    assert_eq!(learn(&vast, Format::Json, of_rows(500)).unwrap().count, 500);
    let lines = "{}\n".repeat(POST_ROWS_MAX);
    let csv = format!("c7\n{}", "1\n".repeat(100_000));
    for (format, body) in [(Format::Json, of_rows(100_000)), (Format::Ndjson, lines), (Format::Csv, csv)] {
        let error = learn(&vast, format, body).unwrap_err();
        assert_eq!(error.total, 1, "{error}");
        assert!(error.faults[0].reason.contains("post fewer"), "{error}");
    }
    // Cells that are empty cost a byte each.
    let header: Vec<String> = (0..4096).map(|number| format!("c{number}")).collect();
    let body = format!("{}\n{}", header.join(","), format!("{}\n", ",".repeat(4095)).repeat(500));
    assert_eq!(learn(&vast, Format::Csv, body).unwrap().count, 500);
}

#[test]
fn rows_are_taken_at_their_limit_and_not_one_past_it() {
    let byte = schema(r#"{"fields":[{"name":"t","type":"tensor","shape":[1],"element":"u8"}]}"#);
    for (rows, good) in [(POST_ROWS_MAX, true), (POST_ROWS_MAX + 1, false)] {
        for (format, body) in [(Format::Raw, vec![1; rows]), (Format::Csv, format!("t_0\n{}", "1\n".repeat(rows)).into_bytes())] {
            match learn(&byte, format, body) {
                Ok(taken) => assert!(good && taken.count == rows),
                Err(error) => assert!(!good && error.total == 1, "{error}"),
            }
        }
    }
    let fault = first_fault(learn(&byte, Format::Json, format!("[{}", "[".repeat(100_000))));
    assert!(fault.reason.contains("not JSON"), "{}", fault.reason);
}

#[test]
fn faults_of_the_syntax_say_where_they_are() {
    let cases = [
        (Format::Json, r#"{"rows":[{"x":1,"y":2,"label":0,"id":1,"at":1},{"x":1e999"#, Some(1), Some("x"), "number out of range"),
        (Format::Json, r#"{"rows":[{"x":1,"y":"#, Some(0), Some("y"), "EOF"),
        (Format::Json, r#"{"rows":[{"x":1,"x":2,"y":0,"label":0,"id":1,"at":1}]}"#, Some(0), Some("x"), "twice"),
        (Format::Json, r#"{"rows":[]}"#, None, None, "no rows"),
        (Format::Json, r#"{"rows":[],"more":1}"#, Some(0), None, "`more`"),
        (Format::Ndjson, "\n{\"x\":1,\"y\":2,\"label\":0,\"id\":1,\"at\":1}\n{\"x\":}", Some(1), Some("x"), "at line 3 column 6"),
        (Format::Csv, "x,y,label,id\n", None, None, "no rows"),
        (Format::Csv, "x,y,label,id\n1,2,0,1\n", Some(0), Some("at"), "missing"),
        (Format::Csv, "", None, None, "no rows"),
        (Format::Csv, "x,y,label,id,at,z\n1,2,0,1,1,1\n", None, Some("z"), "no such column"),
        (Format::Csv, "x,y,label,id,at\nnan,2,0,1,1\n", Some(0), Some("x"), "not a finite"),
        (Format::Raw, "123", None, None, "no whole number of rows"),
    ];
    for (format, body, row, column, reason) in cases {
        let error = learn(&points(), format, body).unwrap_err();
        let fault = &error.faults[0];
        assert_eq!((fault.row, fault.column.as_deref()), (row, column), "{body}: {fault:?}");
        assert!(fault.reason.contains(reason), "{body}: {fault:?}");
    }
    let bytes = b"x,y,label,id,at\n1,2,0,\xff,1\n".to_vec();
    assert_eq!(first_fault(learn(&points(), Format::Csv, bytes)).column.as_deref(), Some("id"));
}

/// Any rows of [`points`], as text that each format reads back to the bit.
fn any_points() -> impl Strategy<Value = Vec<(f32, f32, u32, u64, i64)>> {
    let number = || -1e6f32..1e6;
    prop::collection::vec((number(), number(), 0u32..2, any::<u64>(), any::<i64>()), 1..20)
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(body in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..4, learns in any::<bool>()) {
        let purpose = if learns { Purpose::Learn } else { Purpose::Predict };
        for schema in [points(), pixels(), flights()] {
            drop(decode(&schema, Format::ALL[at], body.clone().into(), purpose));
        }
    }

    #[test]
    fn no_altered_post_makes_a_decoder_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let json = r#"{"rows":[{"x":1.5,"y":-2,"label":"yes","id":"7","at":1000},{"label":0,"at":-5,"id":8,"y":0.25,"x":3}]}"#;
        let csv = "at,label,id,y,x\n1000,yes,7,-2,1.5\n-5,0,8,0.25,3\n";
        for (format, text) in [(Format::Json, json), (Format::Ndjson, &json[9..60]), (Format::Csv, csv)] {
            let mut body = text.as_bytes().to_vec();
            let place = at.index(body.len());
            body[place] = byte;
            drop(learn(&points(), format, body.clone()));
            body.truncate(cut.index(body.len()));
            drop(learn(&points(), format, body));
        }
    }

    #[test]
    fn no_altered_post_of_columns_makes_a_number_that_is_not_finite(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let json = r#"{"rows":[{"carrier":"AA","delay":null,"miles":300,"late":0},{"carrier":7,"miles":1,"gate":true,"late":1}]}"#;
        let csv = "late,gate,miles,delay,carrier\n0,,300,,AA\n1,true,0,-4.5,7\n";
        for (format, text) in [(Format::Json, json), (Format::Ndjson, &json[9..58]), (Format::Csv, csv)] {
            let mut body = text.as_bytes().to_vec();
            let place = at.index(body.len());
            body[place] = byte;
            if let Ok(rows) = learn(&flights(), format, body) {
                for row in numbers(&rows).chunks(5) {
                    prop_assert!(row.iter().all(|value| value.is_finite()), "{row:?}");
                    prop_assert!((1.0..=256.0).contains(&row[0]) && (0.0..=5.0).contains(&row[4]), "{row:?}");
                    prop_assert!(row[2] == 0.0 || (row[1], row[2]) == (0.0, 1.0), "{row:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read_in_each_format(points_of in any_points(), pixel_rows in prop::collection::vec(any::<[u8; 4]>(), 1..20)) {
        let names = ["no", "yes"];
        let object = |(x, y, label, id, at): &(f32, f32, u32, u64, i64)| {
            format!(r#"{{"id":{id},"label":"{}","y":{y:?},"at":{at},"x":{x:?}}}"#, names[*label as usize])
        };
        let objects: Vec<_> = points_of.iter().map(object).collect();
        let mut raw: Vec<u8> = points_of.iter().flat_map(|(x, y, ..)| [x.to_le_bytes(), y.to_le_bytes()]).flatten().collect();
        raw.extend(points_of.iter().flat_map(|point| point.2.to_le_bytes()));
        raw.extend(points_of.iter().flat_map(|point| point.3.to_le_bytes()));
        raw.extend(points_of.iter().flat_map(|point| point.4.to_le_bytes()));
        let lines = points_of.iter().map(|(x, y, label, id, at)| format!("{at},{x:?},{label},{id},{y:?}\n"));
        let rows = learn(&points(), Format::Raw, raw).unwrap();
        prop_assert_eq!(rows.count, points_of.len());
        prop_assert_eq!(&learn(&points(), Format::Json, format!(r#"{{"rows":[{}]}}"#, objects.join(","))).unwrap(), &rows);
        prop_assert_eq!(&learn(&points(), Format::Ndjson, objects.join("\n")).unwrap(), &rows);
        prop_assert_eq!(&learn(&points(), Format::Csv, format!("at,x,label,id,y\n{}", lines.collect::<String>())).unwrap(), &rows);

        let nested = pixel_rows.iter().map(|[a, b, c, d]| format!(r#"{{"v":0.5,"p":[[{a},{b}],[{c},{d}]]}}"#));
        let lines = pixel_rows.iter().map(|[a, b, c, d]| format!("{d},{c},{b},{a},0.5\n"));
        let json = learn(&pixels(), Format::Ndjson, nested.collect::<Vec<_>>().join("\n")).unwrap();
        prop_assert_eq!(&json.blocks[0].bytes[..], &pixel_rows.concat()[..]);
        prop_assert_eq!(learn(&pixels(), Format::Csv, format!("p_3,p_2,p_1,p_0,v\n{}", lines.collect::<String>())).unwrap(), json);
    }
}
