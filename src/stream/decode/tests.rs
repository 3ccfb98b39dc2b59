use proptest::prelude::*;

use super::*;
use crate::rows::{Element, Target};

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

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(body in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..4, learns in any::<bool>()) {
        let purpose = if learns { Purpose::Learn } else { Purpose::Predict };
        for schema in [points(), pixels()] {
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
}
