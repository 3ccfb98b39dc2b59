//! Bytes that were altered behind the service's back: what is damaged is refused by name, or mended from what is whole, and never served.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "support/power.rs"]
mod power;
mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mustela::stream::log::{Committed, Encoded, Entry, Key, Log, LogError, Options, RedbLog};
use power::{Draw, PowerDisk};
use serde_json::Value;
use support::{IN_ORDER, Process, Refused, copy_folder, newest_checkpoint, overwrite, points, points_model, points_schema};

/// Opens what is on a disk in memory, with or without reading all of it first.
fn open(disk: &PowerDisk, check_bytes_max: u64) -> Result<RedbLog, LogError> {
    RedbLog::open(disk, Path::new("in memory"), &Options { cache_bytes: 1 << 20, check_bytes_max })
}

fn append(stream: u32, number: u8, bytes: usize) -> Entry {
    let mut draw = Draw(u64::from(number));
    let bytes = (0..bytes).map(|_| draw.next() as u8).collect();
    let key = Some(Key { key: format!("key {number}"), fingerprint: [number; 32] });
    Entry::Append { stream, records: vec![Encoded { bytes, rows: 1 + u64::from(number % 5) }], key }
}

/// A log with something in every table, closed.
fn a_log() -> Vec<u8> {
    let disk = PowerDisk::default();
    let log = open(&disk, 0).unwrap();
    for id in 1..=3 {
        let (name, bytes) = (format!("name {id}"), format!("what {id} is").into_bytes());
        log.commit(&[
            Entry::PutStream { stream: id, name: name.clone(), bytes: bytes.clone() },
            Entry::PutModel { model: id, name, bytes: bytes.clone() },
            Entry::PutSetting { key: format!("setting {id}"), bytes },
        ])
        .unwrap();
        for number in 0..12 {
            let decision = Entry::Decision { model: id, index: u64::from(number), bytes: vec![number; 100] };
            log.commit(&[append(id, number, 40 * usize::from(number) * usize::from(number)), decision]).unwrap();
        }
    }
    log.commit(&[Entry::DeleteStream { stream: 3 }, Entry::DeleteModel { model: 3 }]).unwrap();
    log.sweep().unwrap();
    log.trim(2, 6, 0).unwrap();
    drop(log);
    disk.bytes()
}

/// All that a log says, its keys included: those are asked for by posting under them again.
fn dump(log: &RedbLog) -> Result<String, LogError> {
    let mut said = log.identity().to_owned();
    write!(said, "{:?}{:?}", log.streams()?, log.models()?).unwrap();
    write!(said, "{:?}{:?}{}", log.next_stream_id()?, log.next_model_id()?, log.stored_bytes()).unwrap();
    for id in 1..4 {
        write!(said, "{:?}{:?}{:?}", log.decisions(id)?, log.setting(&format!("setting {id}"))?, log.bounds(id)?).unwrap();
        let mut at = 0;
        while let Some(stored) = log.read(id, at)? {
            at = stored.first + stored.rows;
            write!(said, "{stored:?}").unwrap();
        }
    }
    let again: Vec<Entry> = (1..4).flat_map(|id| (0..12).map(move |number| append(id, number, 1))).collect();
    let committed: Vec<Committed> = log.commit(&again)?;
    write!(said, "{committed:?}").unwrap();
    Ok(said)
}

/// An altered file, and what was done to it.
fn alter(bytes: &[u8], draw: &mut Draw) -> (String, Vec<u8>) {
    let mut altered = bytes.to_vec();
    let at = draw.below(bytes.len());
    let what = match draw.below(5) {
        0 => {
            let until = (at + 1 + draw.below(600)).min(bytes.len());
            altered[at..until].fill(0);
            format!("{at}..{until} is 0")
        }
        1 => {
            altered[at] = draw.next() as u8;
            format!("{at} is {}", altered[at])
        }
        2 => {
            altered.truncate(at);
            format!("cut at {at}")
        }
        _ => {
            let bit = draw.below(8);
            altered[at] ^= 1 << bit;
            format!("bit {bit} of {at}")
        }
    };
    (what, altered)
}

/// Whether the log in an altered file is refused; where it is not, it says what the whole one says.
fn is_refused(what: &str, bytes: Vec<u8>, whole: &str) -> bool {
    match open(&PowerDisk::holding(bytes), u64::MAX) {
        Ok(log) => {
            assert_eq!(dump(&log).unwrap(), whole, "{what}");
            false
        }
        Err(error) => {
            let said = error.to_string();
            assert!(matches!(error, LogError::Format(_)) && said.contains("log.redb"), "{what}: {said}");
            true
        }
    }
}

#[test]
fn an_altered_log_is_refused_or_says_the_same() {
    let bytes = a_log();
    let whole = dump(&open(&PowerDisk::holding(bytes.clone()), 0).unwrap()).unwrap();
    let (mut refused, mut same) = (0, 0);
    // All of redb's own head, which has both of its commits.
    let head = (0..320 * 8).map(|bit| {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        (format!("bit {bit}"), altered)
    });
    let mut draw = Draw(7);
    let anywhere = (0..800).map(|_| alter(&bytes, &mut draw)).collect::<Vec<_>>();
    for (what, altered) in head.chain(anywhere) {
        *(if is_refused(&what, altered, &whole) { &mut refused } else { &mut same }) += 1;
    }
    // What means nothing is a free page, or a part of one.
    assert!(refused > 1000 && same > 0, "{refused} refused, {same} the same");
}

const SETTINGS: [(&str, &str); 2] = [("checkpoint.interval_rows", "100"), IN_ORDER];

/// A data folder with two checkpoints and 60 rows after the newer one, whose process was killed; and where it must end.
async fn a_folder(folder: &Path) -> (Value, String) {
    let process = Process::start(folder, &SETTINGS);
    process.client.put("/v1/streams/points", &points_schema()).await.expect(201);
    process.client.put("/v1/models/m", &points_model("points")).await.expect(201);
    for batch in 0..15 {
        process.client.post_json("/v1/streams/points/batches?wait=applied", &points(batch * 20, 20)).await.expect(200);
    }
    process.client.settled("m").await;
    assert_eq!(process.terminate(), Some(0));
    let process = Process::start(folder, &[IN_ORDER]);
    for batch in 15..18 {
        process.client.post_json("/v1/streams/points/batches?wait=applied", &points(batch * 20, 20)).await.expect(200);
    }
    process.kill();
    let copy = tempfile::tempdir().unwrap();
    copy_folder(folder, copy.path());
    ended(Process::start(copy.path(), &SETTINGS), copy.path()).await.unwrap()
}

/// Lets a service come to the end of its log and end: its last checkpoint, or why its model stands still.
async fn ended(process: Process, folder: &Path) -> Result<(Value, String), String> {
    let began = Instant::now();
    loop {
        let view = process.client.get("/v1/models/m").await.expect(200);
        if let Some(failure) = view["failure"].as_str() {
            assert_eq!(process.terminate(), Some(0));
            return Err(failure.to_owned());
        }
        if view["rows"]["waiting"] == 0 {
            assert_eq!(process.terminate(), Some(0));
            return Ok(newest_checkpoint(folder));
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{view}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Does `change` to one file of a copy of the folder, and starts the service over it: either it ends where the whole one does, or
/// it says what is wrong with which file.
async fn check(folder: &Path, whole: &(Value, String), file: &Path, what: &str, change: impl FnOnce(&Path)) -> bool {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(folder, copy.path());
    change(&copy.path().join(file));
    let what = format!("{} {what}", file.display());
    match Process::attempt(copy.path(), &SETTINGS) {
        Ok(process) => match ended(process, copy.path()).await {
            Ok(end) => assert_eq!(&end, whole, "{what}"),
            Err(failure) => panic!("{what}: all of it is in the log, and yet {failure}"),
        },
        Err(Refused { status, said }) => {
            assert_eq!(status, Some(65), "{what}: {said}");
            assert!(said.contains("log.redb") && !said.contains("panicked"), "{what}: {said}");
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_file_is_named_or_made_good() {
    let folder = tempfile::tempdir().unwrap();
    let whole = a_folder(folder.path()).await;
    let mut files = vec![PathBuf::from("log.redb")];
    for file in std::fs::read_dir(folder.path().join("models/1")).unwrap() {
        files.push(Path::new("models/1").join(file.unwrap().file_name()));
    }
    files.sort();
    assert_eq!(files.len(), 5, "{files:?}");
    let mut draw = Draw(3);
    let mut refused = Vec::new();
    for file in &files {
        let length = std::fs::metadata(folder.path().join(file)).unwrap().len() as usize;
        for at in [0, draw.below(length), draw.below(length), length - 1] {
            let flip = |path: &Path| overwrite(path, |bytes| bytes[at] ^= 0x10);
            if check(folder.path(), &whole, file, &format!("flipped at {at}"), flip).await {
                refused.push((file.clone(), "flipped"));
            }
        }
        for (what, length) in [("halved", length / 2), ("emptied", 0)] {
            let cut = |path: &Path| overwrite(path, |bytes| bytes.truncate(length));
            if check(folder.path(), &whole, file, what, cut).await {
                refused.push((file.clone(), what));
            }
        }
        if check(folder.path(), &whole, file, "deleted", |path| std::fs::remove_file(path).unwrap()).await {
            refused.push((file.clone(), "deleted"));
        }
    }
    assert!(refused.iter().all(|(file, _)| file == Path::new("log.redb")), "{refused:?}");
    for what in ["flipped", "halved", "emptied", "deleted"] {
        assert!(refused.iter().any(|(_, done)| *done == what), "{what} was not refused: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_manifests_gone_are_made_good_by_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let whole = a_folder(folder.path()).await;
    for bytes in [None, Some(b"{}".as_slice())] {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), copy.path());
        for name in ["manifest.json", "manifest.copy.json"] {
            let path = copy.path().join("models/1").join(name);
            match bytes {
                None => std::fs::remove_file(path).unwrap(),
                Some(bytes) => overwrite(&path, |all| *all = bytes.to_vec()),
            }
        }
        assert_eq!(ended(Process::start(copy.path(), &SETTINGS), copy.path()).await.unwrap(), whole);
    }
}
