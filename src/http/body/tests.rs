//! Bombs, floods, truncation, corruption, and bodies at the cap and one past it.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::channel::Channel;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const LIMITS: BodyLimits = BodyLimits { encoded_bytes_max: 64 << 10, decoded_bytes_max: 1 << 20 };

type Encode = fn(&[u8]) -> Vec<u8>;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

async fn post(encoding: &str, bytes: Vec<u8>) -> Result<Bytes, Problem> {
    let length = bytes.len().to_string();
    read(&headers(&[("content-encoding", encoding), ("content-length", &length)]), Body::from(bytes), LIMITS).await
}

/// Status and code of a refusal.
fn refusal(result: Result<Bytes, Problem>) -> (u16, &'static str) {
    let problem = result.unwrap_err();
    (problem.status.as_u16(), problem.code)
}

#[tokio::test]
async fn every_encoding_is_read() {
    let text = b"a,b\n1,2\n".repeat(100);
    for (encoding, bytes) in [
        ("identity", text.clone()),
        ("gzip", gzip(&text)),
        ("X-GZIP", gzip(&text)),
        ("zstd", zstd(&text)),
        ("identity, ZSTD", zstd(&text)),
    ] {
        assert_eq!(post(encoding, bytes).await.unwrap(), text, "{encoding}");
    }
    assert_eq!(read(&HeaderMap::new(), Body::from(text.clone()), LIMITS).await.unwrap(), text);
    assert!(read(&HeaderMap::new(), Body::empty(), LIMITS).await.unwrap().is_empty());
}

#[tokio::test]
async fn members_and_frames_follow_each_other() {
    let (a, b) = (b"first".as_slice(), b"second".as_slice());
    assert_eq!(post("gzip", [gzip(a), gzip(b)].concat()).await.unwrap(), [a, b].concat());
    assert_eq!(post("zstd", [zstd(a), skippable(100), zstd(b), skippable(0)].concat()).await.unwrap(), [a, b].concat());
}

/// A zstd frame that holds `bytes` bytes for somebody else.
fn skippable(bytes: u32) -> Vec<u8> {
    [&0x184D_2A50u32.to_le_bytes()[..], &bytes.to_le_bytes(), &vec![7; bytes as usize]].concat()
}

#[tokio::test]
async fn the_encoded_cap_holds_at_the_limit_and_one_past_it() {
    let max = LIMITS.encoded_bytes_max;
    assert_eq!(post("identity", vec![1; max]).await.unwrap().len(), max);
    assert_eq!(refusal(post("identity", vec![1; max + 1]).await), (413, "body_too_large"));
    // Without a length the cap holds while the body streams in.
    assert_eq!(read(&HeaderMap::new(), Body::from(vec![1; max]), LIMITS).await.unwrap().len(), max);
    assert_eq!(refusal(read(&HeaderMap::new(), Body::from(vec![1; max + 1]), LIMITS).await), (413, "body_too_large"));
}

#[tokio::test]
async fn a_gigabyte_is_refused_before_it_is_read() {
    // A body that never comes: reading it would wait for ever.
    let (_sender, body) = Channel::<Bytes, io::Error>::new(1);
    let refused = read(&headers(&[("content-length", "1073741824")]), Body::new(body), LIMITS).await;
    assert_eq!(refusal(refused), (413, "body_too_large"));
}

#[tokio::test]
async fn a_body_in_pieces_is_put_together_under_the_cap() {
    for (piece, pieces, fits) in [(1 << 10, 64, true), (1 << 10, 65, false), (1, 100, true)] {
        let (mut sender, body) = Channel::<Bytes, io::Error>::new(1);
        let sending = tokio::spawn(async move {
            for _ in 0..pieces {
                if sender.send_data(Bytes::from(vec![1; piece])).await.is_err() {
                    return;
                }
            }
        });
        let result = read(&HeaderMap::new(), Body::new(body), LIMITS).await;
        assert_eq!(result.is_ok(), fits);
        assert_eq!(result.map_or(0, |bytes| bytes.len()), if fits { piece * pieces } else { 0 });
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_stops_early_is_told_so() {
    let short = read(&headers(&[("content-length", "10")]), Body::from("12345"), LIMITS).await;
    assert_eq!(refusal(short), (400, "incomplete_body"));
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(2);
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    sender.abort(io::Error::from(io::ErrorKind::ConnectionReset));
    let problem = read(&HeaderMap::new(), Body::new(body), LIMITS).await.unwrap_err();
    assert_eq!(problem.code, "incomplete_body");
    assert!(problem.detail.contains("4 bytes"), "{}", problem.detail);
}

#[tokio::test]
async fn bombs_stop_at_the_decoded_cap() {
    let max = LIMITS.decoded_bytes_max;
    for (encoding, encode) in [("gzip", gzip as Encode), ("zstd", zstd)] {
        assert_eq!(post(encoding, encode(&vec![0; max])).await.unwrap().len(), max, "{encoding}");
        assert_eq!(refusal(post(encoding, encode(&vec![0; max + 1])).await), (413, "decoded_too_large"), "{encoding}");
        let bomb = encode(&vec![0; 32 << 20]);
        assert_eq!(refusal(post(encoding, bomb).await), (413, "decoded_too_large"), "{encoding}");
    }
}

#[tokio::test]
async fn floods_of_empty_frames_stop_at_their_cap() {
    let limits = BodyLimits { encoded_bytes_max: 1 << 20, ..LIMITS };
    for (encoding, frame) in [("gzip", gzip(b"")), ("zstd", zstd(b"")), ("zstd", skippable(0))] {
        let flood = |count: usize| read_owned(encoding, frame.repeat(count), limits);
        assert!(flood(BODY_FRAMES_MAX).await.unwrap().is_empty(), "{encoding}");
        assert_eq!(refusal(flood(BODY_FRAMES_MAX + 1).await), (422, "too_many_frames"), "{encoding}");
    }
}

async fn read_owned(encoding: &str, bytes: Vec<u8>, limits: BodyLimits) -> Result<Bytes, Problem> {
    read(&headers(&[("content-encoding", encoding)]), Body::from(bytes), limits).await
}

#[tokio::test]
async fn a_zstd_window_beyond_eight_mebibytes_is_refused() {
    let window = |log: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(log)).unwrap();
        encoder.write_all(b"short").unwrap();
        encoder.finish().unwrap()
    };
    assert_eq!(post("zstd", window(23)).await.unwrap(), "short");
    assert_eq!(refusal(post("zstd", window(24)).await), (422, "corrupt_body"));
}

#[tokio::test]
async fn other_and_nested_encodings_are_refused() {
    let twice = gzip(&gzip(b"x"));
    for encoding in ["br", "deflate", "gzip, gzip", "gzip,zstd", "aws-chunked", "gzip;q=1"] {
        assert_eq!(refusal(post(encoding, twice.clone()).await), (415, UNSUPPORTED_ENCODING), "{encoding}");
    }
    let two = headers(&[("content-encoding", "gzip"), ("content-encoding", "gzip")]);
    assert_eq!(refusal(read(&two, Body::from(twice), LIMITS).await), (415, UNSUPPORTED_ENCODING));
}

#[tokio::test]
async fn truncated_and_corrupt_bodies_name_encoding_and_place() {
    let text = b"a,b\n1,2\n".repeat(1000);
    for (encoding, whole) in [("gzip", gzip(&text)), ("zstd", zstd(&text))] {
        assert_eq!(refusal(post(encoding, Vec::new()).await), (422, "truncated_body"), "{encoding}");
        let problem = post(encoding, whole[..whole.len() - 1].to_vec()).await.unwrap_err();
        assert_eq!(problem.code, "truncated_body");
        assert!(problem.detail.contains(encoding) && problem.detail.contains(&format!("{} bytes", whole.len() - 1)));
        let problem = post(encoding, [&whole[..], b"trailing garbage"].concat()).await.unwrap_err();
        assert_eq!(problem.code, "corrupt_body", "{}", problem.detail);
        assert!(problem.detail.contains(encoding) && problem.detail.contains("at byte"), "{}", problem.detail);
        assert_eq!(refusal(post(encoding, text.clone()).await), (422, "corrupt_body"), "{encoding}");
    }
    let mut wrong_sum = gzip(&text);
    let last = wrong_sum.len() - 5;
    wrong_sum[last] ^= 1;
    assert_eq!(refusal(post("gzip", wrong_sum).await), (422, "corrupt_body"));
}

fn encodings() -> impl Strategy<Value = (Encoding, Encode)> {
    prop_oneof![Just((Encoding::Gzip, gzip as Encode)), Just((Encoding::Zstd, zstd as Encode))]
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..5000)
}

proptest! {
    #[test]
    fn any_parts_come_back_whole(
        (encoding, encode) in encodings(),
        parts in prop::collection::vec(some_bytes(), 1..5),
    ) {
        let encoded: Vec<u8> = parts.iter().flat_map(|part| encode(part)).collect();
        let whole = parts.concat();
        prop_assert_eq!(&decompress(encoding, encoded.clone().into(), whole.len()).unwrap(), &whole);
        if let Some(under) = whole.len().checked_sub(1) {
            prop_assert_eq!(decompress(encoding, encoded.into(), under), Err(DecodeError::TooLarge { limit_bytes: under }));
        }
    }

    #[test]
    fn any_cut_is_noticed((encoding, encode) in encodings(), bytes in some_bytes(), at in any::<Index>()) {
        let whole = encode(&bytes);
        let cut = whole[..at.index(whole.len())].to_vec();
        let truncated = matches!(decompress(encoding, cut.into(), 1 << 20), Err(DecodeError::Truncated { .. }));
        prop_assert!(truncated);
    }

    #[test]
    fn any_bytes_end_under_the_cap(
        (encoding, encode) in encodings(),
        bytes in some_bytes(),
        flips in prop::collection::vec((any::<Index>(), 1u8..), 0..4),
        raw in any::<bool>(),
    ) {
        let mut encoded = if raw { bytes } else { encode(&bytes) };
        for (at, bits) in flips {
            if !encoded.is_empty() {
                let at = at.index(encoded.len());
                encoded[at] ^= bits;
            }
        }
        if let Ok(decoded) = decompress(encoding, encoded.into(), 4096) {
            prop_assert!(decoded.len() <= 4096);
        }
    }
}
