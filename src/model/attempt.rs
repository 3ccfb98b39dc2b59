//! What a driver is about to do, told in a file before it does it, so that a step that ends the whole process is known afterwards.
//!
//! A few bytes, written in place and not synced: they are to outlive the process, not the machine, and cost a microsecond. What they
//! say of a machine that lost power is old, or nothing, and does no harm: rows before the state's version are not looked at.
//!
//! ```text
//! u64 after | u64 through | u64 deaths | 8 bytes blake3 of those
//! ```
//!
//! Rows after `after` up to `through` are in steps that have not ended; none where both are equal. `deaths` counts the processes before
//! that ended over these rows, when the driver already gave them one step at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::fold::Sequence;

const NUMBERS: usize = 3;
const LENGTH: usize = 8 * NUMBERS + 8;

/// The file of one model.
pub(super) struct Attempt {
    file: Option<File>,
    /// What it said when it was opened, if a process ended over some rows.
    before: Option<Unended>,
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
        let before = file.as_ref().and_then(read).filter(|before| before.after < before.through);
        Attempt { file, before }
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
        self.write([after, through, deaths]);
    }

    /// Says that every step up to `at` has ended.
    pub(super) fn rest(&mut self, at: Sequence) {
        self.write([at, at, 0]);
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

fn read(file: &File) -> Option<Unended> {
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (said, checksum) = bytes.split_at(8 * NUMBERS);
    if blake3::hash(said).as_bytes()[..8] != *checksum {
        return None;
    }
    let [after, through, deaths] = *said.as_chunks::<8>().0 else { return None };
    let [after, through, deaths] = [after, through, deaths].map(u64::from_le_bytes);
    Some(Unended { after, through, deaths: deaths + 1 })
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
        // Steps before, then one of those, alone.
        attempt.begin(0, 10, false);
        attempt.begin(20, 30, true);
        let mut attempt = open();
        assert_eq!(attempt.before(), Some(Unended { after: 20, through: 30, deaths: 2 }));
        attempt.begin(30, 40, true);
        assert_eq!(open().before().map(|before| before.deaths), Some(1), "other rows");
        attempt.rest(40);
        assert_eq!(open().before(), None);
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
