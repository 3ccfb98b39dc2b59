//! Pictures in every format, beside their own numbers, and those that nobody should be able to make a service decode.

use std::io::Cursor;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, BinaryViewArray, LargeBinaryArray, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use image::{DynamicImage, ImageFormat, RgbImage};
use proptest::prelude::*;

use super::super::{DecodeError, Elements, Fault, Format, Purpose, Tensor, decode, decode_tensors};
use super::*;
use crate::limits::{ERRORS_LISTED_MAX, PICTURE_SIDE_MAX, POST_PICTURES_BYTES_MAX};
use crate::rows::Rows;
use crate::stream::decode::Datatype;

fn schema(side: usize) -> Schema {
    let text = format!(r#"{{"fields":[{{"name":"p","type":"image","side":{side}}}]}}"#);
    let schema: Schema = serde_json::from_str(&text).unwrap();
    schema.validate().unwrap();
    schema
}

fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    DynamicImage::from(picture.clone()).write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

/// A picture on which no two pixels are equal.
fn speckled(side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| image::Rgb([(x * 7 + y * 31) as u8, (x * 13) as u8 ^ y as u8, (x + y * 16) as u8]))
}

/// Its numbers, red first.
fn planes(picture: &RgbImage) -> Vec<u8> {
    (0..3).flat_map(|channel| picture.pixels().map(move |pixel| pixel.0[channel])).collect()
}

fn read(schema: &Schema, format: Format, body: impl Into<Bytes>) -> Result<Rows, DecodeError> {
    decode(schema, format, body.into(), Purpose::Predict)
}

fn of_json(schema: &Schema, pictures: &[String]) -> Result<Rows, DecodeError> {
    let rows: Vec<String> = pictures.iter().map(|picture| format!(r#"{{"p":"{picture}"}}"#)).collect();
    read(schema, Format::Json, format!(r#"{{"rows":[{}]}}"#, rows.join(",")))
}

fn stream(column: ArrayRef) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter([("p", column)]).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn fault(read: Result<Rows, DecodeError>) -> Fault {
    read.unwrap_err().faults.remove(0)
}

#[test]
fn a_picture_of_the_side_comes_through_every_format_to_the_byte() {
    let (schema, picture) = (schema(16), speckled(16));
    let (numbers, png) = (planes(&picture), encoded(&picture, ImageFormat::Png));
    let raw = read(&schema, Format::Raw, numbers.clone()).unwrap();
    assert_eq!((raw.count, raw.blocks[0].width, &raw.blocks[0].bytes[..]), (1, 768, &numbers[..]));
    let text = BASE64.encode(&png);
    let url = format!("data:image/png;base64,{text}");
    for text in [text.as_str(), text.trim_end_matches('='), &url] {
        assert_eq!(of_json(&schema, &[text.to_owned()]).unwrap(), raw);
        assert_eq!(read(&schema, Format::Ndjson, format!(r#"{{"p":"{text}"}}"#)).unwrap(), raw);
        assert_eq!(read(&schema, Format::Csv, format!("p\n\"{text}\"\n")).unwrap(), raw);
        assert_eq!(read(&schema, Format::Arrow, stream(Arc::new(StringArray::from(vec![text])))).unwrap(), raw);
    }
    assert_eq!(read(&schema, Format::Csv, format!("p\n {text}\n")).unwrap(), raw);
    assert_eq!(read(&schema, Format::Json, format!(r#"{{"rows":[{{"p":{numbers:?}}}]}}"#)).unwrap(), raw);
    let blobs: [ArrayRef; 2] = [Arc::new(BinaryArray::from(vec![&png[..]])), Arc::new(LargeBinaryArray::from(vec![&png[..]]))];
    for column in blobs {
        assert_eq!(read(&schema, Format::Arrow, stream(column)).unwrap(), raw);
    }
    let tensors = [
        (vec![1, 3, 16, 16], Elements::Fixed(Datatype::Uint(1), numbers.into())),
        (vec![1], Elements::Blobs(vec![png.clone().into()])),
        (vec![1, 1], Elements::Words(vec![url])),
    ];
    for (shape, elements) in tensors {
        let tensor = Tensor { name: "p".to_owned(), shape, elements };
        assert_eq!(decode_tensors(&schema, &[tensor], 0).unwrap(), raw);
    }
    let webp = BASE64.encode(encoded(&picture, ImageFormat::WebP));
    assert_eq!(of_json(&schema, &[webp]).unwrap(), raw);
}

#[test]
fn another_side_is_made_of_the_middle() {
    let schema = schema(8);
    let wide = RgbImage::from_fn(96, 32, |x, _| image::Rgb(if (32..64).contains(&x) { [250, 100, 20] } else { [0; 3] }));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Jpeg] {
        let rows = of_json(&schema, &[BASE64.encode(encoded(&wide, format))]).unwrap();
        for (plane, value) in rows.blocks[0].bytes.chunks(64).zip([250u8, 100, 20]) {
            assert!(plane.iter().all(|&got| got.abs_diff(value) < 6), "{format:?}: {plane:?}");
        }
    }
}

#[test]
fn what_is_no_picture_is_told_by_row_and_column() {
    let schema = schema(8);
    let png = encoded(&speckled(8), ImageFormat::Png);
    let (good, cut) = (BASE64.encode(&png), BASE64.encode(&png[..png.len() - 40]));
    let coded = |picture: RgbImage, format| BASE64.encode(encoded(&picture, format));
    let mut false_sum = png.clone();
    false_sum[30] ^= 1;
    let cases = [
        (String::new(), "it is empty"),
        ("data:image/png;base64,".to_owned(), "it is empty"),
        (cut, "cannot be decoded"),
        (BASE64.encode(false_sum), "cannot be decoded"),
        ("?".repeat(400), "no base64"),
        (format!("{good}="), "no base64"),
        (format!("data:text/plain;base64,{good}"), "a data URL of a picture begins with"),
        (BASE64.encode(b"GIF89a\x08\0\x08\0\0\0\0;"), "no PNG, JPEG or WebP"),
        (BASE64.encode(b"BM\0\0\0\0\0\0\0\0\0\0\0\0"), "no PNG, JPEG or WebP"),
        (coded(RgbImage::new(1, 1), ImageFormat::Png), "1 x 1 pixels, 8 on a side are the least"),
        (coded(RgbImage::new(8, 20_000), ImageFormat::Png), "8 x 20000 pixels, 8192 on a side are the most"),
    ];
    for (text, reason) in &cases {
        for csv in [false, true] {
            let read = match csv {
                false => of_json(&schema, &[good.clone(), text.clone()]),
                true => read(&schema, Format::Csv, format!("p\n{good}\n\"{text}\"\n")),
            };
            let fault = fault(read);
            assert_eq!((fault.row, fault.column.as_deref()), (Some(1), Some("p")), "{reason}: {fault:?}");
            assert!(fault.reason.contains(reason), "{reason}: {fault:?}");
        }
    }
    // All of them at once, and the good ones among them are none.
    let texts: Vec<String> = cases.iter().map(|(text, _)| text.clone()).collect();
    assert_eq!(of_json(&schema, &texts).unwrap_err().total, cases.len() as u64);
}

#[test]
fn what_is_no_picture_at_all_is_told_by_row_and_column() {
    let schema = schema(8);
    for value in ["7", "null", "true", "{}", "[1,2]"] {
        let fault = fault(read(&schema, Format::Json, format!(r#"{{"rows":[{{"p":{value}}}]}}"#)));
        assert_eq!((fault.row, fault.column.as_deref()), (Some(0), Some("p")), "{value}: {fault:?}");
    }
    let blobs = BinaryArray::from_opt_vec(vec![Some(b"no picture"), None]);
    let error = read(&schema, Format::Arrow, stream(Arc::new(blobs))).unwrap_err();
    assert_eq!((error.total, error.faults[1].row), (2, Some(1)), "{error:?}");
    assert!(fault(read(&schema, Format::Arrow, stream(Arc::new(BinaryViewArray::from(vec![&b""[..]]))))).row.is_none());
    let tensor = Tensor { name: "p".to_owned(), shape: vec![1, 2], elements: Elements::Blobs(vec![Bytes::new(), Bytes::new()]) };
    assert!(fault(decode_tensors(&schema, &[tensor], 0)).reason.contains("its shape is [1, 2], expected [1]"));
}

#[test]
fn a_small_post_of_large_pictures_is_refused_before_they_are_made() {
    let most = POST_PICTURES_BYTES_MAX / (3 * 512 * 512);
    let small = BASE64.encode(encoded(&RgbImage::new(8, 8), ImageFormat::Png));
    assert_eq!(of_json(&schema(512), &vec![small.clone(); most]).unwrap().count, most);
    let error = of_json(&schema(512), &vec![small; most + 20]).unwrap_err();
    assert_eq!((error.total, error.faults[0].row), (1, None), "{error:?}");
    assert!(error.faults[0].reason.contains("decoded, the pictures take more than"), "{error}");
}

#[test]
fn pixels_are_counted_before_they_are_decoded() {
    // Two million each.
    let bytes = encoded(&RgbImage::new(PICTURE_SIDE_MAX, 256), ImageFormat::Png);
    let (vast, most) = (BASE64.encode(bytes), (POST_PIXELS_MAX / u64::from(PICTURE_SIDE_MAX * 256)) as usize);
    let mut pictures = Pictures { side: 8, pixels_left: 3 * u64::from(PICTURE_SIDE_MAX * 256) };
    let mut features = Vec::new();
    for _ in 0..3 {
        pictures.append_text(&vast, &mut features).unwrap();
    }
    for _ in 0..most {
        assert!(pictures.append_text(&vast, &mut features).unwrap_err().contains("post fewer at once"));
    }
    assert_eq!(features.len(), 3 * 3 * 64);
    let long = "A".repeat(PICTURE_ENCODED_BYTES_MAX / 3 * 4 + 8);
    assert!(pictures.append_text(&long, &mut features).unwrap_err().contains("16777216 are the most"));
}

#[test]
fn faults_of_pictures_are_listed_up_to_a_number() {
    let error = of_json(&schema(8), &vec!["AAAA".to_owned(); 40]).unwrap_err();
    assert_eq!((error.faults.len(), error.total), (ERRORS_LISTED_MAX, 40));
}

proptest! {
    #[test]
    fn no_altered_picture_is_more_than_a_refusal(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let mut bytes = encoded(&speckled(12), format);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            for end in [bytes.len(), cut.index(bytes.len())] {
                if let Ok(rows) = of_json(&schema(8), &[BASE64.encode(&bytes[..end])]) {
                    prop_assert_eq!(rows.blocks[0].bytes.len(), 192);
                }
            }
        }
    }
}
