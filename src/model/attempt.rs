//! What a driver is about to do, told in a file before it does it, so that a step that ends the whole process is known afterwards.
//!
//! A few bytes, written in place and not synced: they are to outlive the process, not the machine, and cost a microsecond.
//!
//! ```text
//! u64 after | u64 through | u64 deaths | u64 done | 8 bytes blake3 of those
//! ```
//!
//! Rows after `after` up to `through` are in steps that have not ended; none where both are equal. `deaths` counts the processes before
//! that ended over these rows, when the driver already gave them one step at a time. Steps up to `done` have ended in some process:
//! what ends a process over such rows in a replay is not they, and they may have been seen to be learned.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::fold::Sequence;

const NUMBERS: usize = 4;
const LENGTH: usize = 8 * NUMBERS + 8;

/// The file of one model.
pub(super) struct Attempt {
    file: Option<File>,
    /// What it said when it was opened, if a process ended over some rows.
    before: Option<Unended>,
    done: Sequence,
}

/// Rows whose steps had not ended when the process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unended {
    /// They come after this one.
    pub(super) after: Sequence,
    /// The last of them.
    pub(super) through: Sequence,
    /// How many processes have ended over them, this one included.
    pub(super) deaths: u64,
}

/// Where the files of all models are.
fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("attempts")
}

impl Attempt {
    /// The file of the model with this id. Where it cannot be had a model goes on without.
    pub(super) fn open(disk: &dyn Disk, data_dir: &Path, model: u32) -> Attempt {
        let path = folder(data_dir).join(model.to_string());
        let opened = disk.create_dir_all(&folder(data_dir)).and_then(|()| disk.open_note(&path));
        let opened =
            opened.inspect_err(|error| tracing::warn!(%error, "a step that ends the process would not be known afterwards"));
        let file = opened.ok();
        let (before, done) = file.as_ref().and_then(read).unzip();
        let done = done.unwrap_or_default();
        let before = before.filter(|before| before.after.max(done) < before.through);
        let before = before.map(|before| Unended { after: before.after.max(done), ..before });
        Attempt { file, before, done }
    }

    /// Removes the files of all models, before the process ends itself: whatever is under way is not to blame.
    pub(super) fn forget_all(disk: &dyn Disk, data_dir: &Path) {
        // A disk that refuses even this has other worries.
        drop(disk.remove_dir(&folder(data_dir)));
    }

    /// Removes the files of models that are not `known`.
    pub(super) fn sweep(disk: &dyn Disk, data_dir: &Path, known: impl Fn(u32) -> bool) -> std::io::Result<()> {
        for path in disk.list(&folder(data_dir))? {
            let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            if !id.is_some_and(&known) {
                disk.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the file of a model that is deleted.
    pub(super) fn remove(disk: &dyn Disk, data_dir: &Path, model: u32) -> std::io::Result<()> {
        disk.remove(&folder(data_dir).join(model.to_string()))
    }

    /// The rows over which the process before this one ended.
    pub(super) fn before(&self) -> Option<Unended> {
        self.before
    }

    /// Says that the rows after `after` up to `through` are in steps. `alone`: in one step, and nothing else is under way.
    pub(super) fn begin(&mut self, after: Sequence, through: Sequence, alone: bool) {
        let within = |before: &Unended| before.after <= after && through <= before.through;
        let deaths = self.before.filter(|before| alone && within(before)).map_or(0, |before| before.deaths);
        self.done = self.done.max(after);
        self.write([after, through, deaths, self.done]);
    }

    /// Says that every step up to `at` has ended.
    pub(super) fn rest(&mut self, at: Sequence) {
        self.done = self.done.max(at);
        self.write([at, at, 0, self.done]);
    }

    fn write(&mut self, numbers: [u64; NUMBERS]) {
        let mut bytes = [0; LENGTH];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let (said, checksum) = bytes.split_at_mut(8 * NUMBERS);
        checksum.copy_from_slice(&blake3::hash(said).as_bytes()[..8]);
        if self.file.as_ref().is_some_and(|file| file.write_all_at(&bytes, 0).is_err()) {
            self.file = None;
        }
    }
}

/// What the file says: rows, and up to where steps have ended.
fn read(file: &File) -> Option<(Unended, Sequence)> {
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (said, checksum) = bytes.split_at(8 * NUMBERS);
    if blake3::hash(said).as_bytes()[..8] != *checksum {
        return None;
    }
    let [after, through, deaths, done] = *said.as_chunks::<8>().0 else { return None };
    let [after, through, deaths, done] = [after, through, deaths, done].map(u64::from_le_bytes);
    Some((Unended { after, through, deaths: deaths + 1 }, done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileSystem;

    #[test]
    fn what_was_under_way_is_known_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Attempt::open(&FileSystem, folder.path(), 7);
        let mut attempt = open();
        assert_eq!(attempt.before(), None);
        attempt.begin(10, 40, false);
        let mut attempt = open();
        assert_eq!(attempt.before(), Some(Unended { after: 10, through: 40, deaths: 1 }));
        // Steps before, which have ended once, are not to blame; then one of those, alone.
        attempt.begin(0, 10, false);
        assert_eq!(open().before(), None);
        attempt.begin(20, 30, true);
        let mut attempt = open();
        assert_eq!(attempt.before(), Some(Unended { after: 20, through: 30, deaths: 2 }));
        attempt.begin(30, 40, true);
        assert_eq!(open().before().map(|before| before.deaths), Some(1), "other rows");
        attempt.rest(40);
        assert_eq!(open().before(), None);
        attempt.begin(30, 45, false);
        assert_eq!(open().before(), Some(Unended { after: 40, through: 45, deaths: 1 }), "a replay of rows that were done");
        Attempt::remove(&FileSystem, folder.path(), 7).unwrap();
        assert_eq!(open().before(), None);
    }

    #[test]
    fn an_altered_file_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        Attempt::open(&FileSystem, folder.path(), 1).begin(1, 2, false);
        let path = folder.path().join("attempts/1");
        let whole = std::fs::read(&path).unwrap();
        for index in 0..whole.len() {
            let mut altered = whole.clone();
            altered[index] ^= 1;
            FileSystem.write_atomic(&path, &mut |out| out.write_all(&altered)).unwrap();
            assert_eq!(Attempt::open(&FileSystem, folder.path(), 1).before(), None, "byte {index}");
        }
    }
}
