//! What a model's decisions name and are too large for them to hold: files of its own, called by what is in them.
//!
//! A blob is on disk before the decision that names it, and stays as long as replay may come to need it, which begins at a checkpoint or at
//! the model's origin. Only the model's driver writes here and lets go, once there is one; nothing of a blob is ever changed.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decision::{Decision, What};
use super::driver::Driver;
use super::kind::Kind;
use super::live::ChangeError;
use super::recovery::Recovery;
use super::{Ground, ModelError};
use crate::disk::{Disk, is_sync_failure};

/// The name of these bytes: their blake3.
pub fn name_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The blobs of one model.
#[derive(Clone)]
pub struct Blobs {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blobs").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Blobs {
    /// Those of the model with this id in a data folder; the folder need not exist yet.
    pub fn new(disk: Arc<dyn Disk>, data_dir: &Path, model: u32) -> Blobs {
        Blobs { disk, folder: folder(data_dir, model) }
    }

    /// Keeps bytes by their name. They are on disk when this returns.
    ///
    /// # Errors
    /// The disk failed.
    pub fn keep(&self, bytes: &[u8]) -> io::Result<()> {
        self.disk.create_dir_all(&self.folder)?;
        self.disk.write_atomic(&self.folder.join(name_of(bytes)), &mut |out| out.write_all(bytes))
    }

    /// The same for a decision that is to name it: a disk that may have lost what it was given ends the process.
    pub(super) fn keep_or_end(&self, ground: &Ground, bytes: &[u8]) -> Result<(), ChangeError> {
        self.keep(bytes).map_err(|error| {
            if is_sync_failure(&error) {
                ground.end(&error);
            }
            ChangeError::Storage(error.to_string())
        })
    }

    /// The bytes of all of them.
    ///
    /// # Errors
    /// The disk failed.
    fn bytes(&self) -> io::Result<u64> {
        self.disk.list(&self.folder)?.iter().try_fold(0, |sum, path| Ok(sum + self.disk.size(path)?))
    }

    /// Whether all blobs are there that these decisions name.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn have_all(&self, decisions: &[Decision], kind: &dyn Kind) -> io::Result<bool> {
        let paths = self.disk.list(&self.folder)?;
        Ok(needed(decisions, 0, kind).iter().all(|name| paths.contains(&self.folder.join(name))))
    }

    /// Lets go of all but these, those that were never whole and those whose decision was refused included.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn keep_only(&self, names: &BTreeSet<String>) -> io::Result<()> {
        for path in self.disk.list(&self.folder)? {
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name)) {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    /// The bytes of this name.
    ///
    /// # Errors
    /// They are not there, are others than they were, or cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // Names come from decisions, and a hash has no path in it.
        if name.len() != 2 * blake3::OUT_LEN || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no hash")));
        }
        let bytes = self.disk.read(&self.folder.join(name))?;
        if name_of(&bytes) != name {
            let text = format!("{} is altered: its hash is not its name", self.folder.join(name).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }
}

impl Driver {
    /// Lets go of the blobs that no replay can come to need any more, where every checkpoint that is kept holds this many decisions at least.
    /// It is no harm where it cannot: it is tried again.
    ///
    /// As long as the log has all of the model's rows they can be replayed from its origin, which needs every blob; that is kept up while
    /// they take no more bytes than the log keeps beyond what is needed.
    pub(super) fn let_blobs_go(&self, held: u64) -> Result<(), ModelError> {
        let Recovery { blobs, streams, kind, id, record, .. } = &self.recovery;
        let failed = |error: &io::Error| {
            if is_sync_failure(error) {
                self.ground.end(error);
            }
            tracing::warn!(model = self.live.name, %error, "blobs stay that nobody needs");
        };
        // Of most models there are none.
        let bytes = blobs.bytes().inspect_err(failed).unwrap_or(0);
        if bytes == 0 {
            return Ok(());
        }
        let decisions = streams.log().decisions(*id)?;
        let decisions: Vec<Decision> = decisions.iter().map(|bytes| Decision::decode(bytes)).collect::<Result<_, _>>()?;
        let (first_row, _) = self.live.stream.bounds()?;
        let few = first_row <= record.origin + 1 && bytes <= self.ground.settings.retain_bytes;
        let from_origin = few && blobs.have_all(&decisions, kind.as_ref()).inspect_err(failed).unwrap_or(true);
        let held = if from_origin { 0 } else { held as usize };
        blobs.keep_only(&needed(&decisions, held, kind.as_ref())).inspect_err(failed).ok();
        Ok(())
    }
}

/// The blobs that replay may come to need, where it begins with the first `held` of these decisions carried out, or with more: that of the
/// last of those, and those of all that follow.
pub(super) fn needed(decisions: &[Decision], held: usize, kind: &dyn Kind) -> BTreeSet<String> {
    let blob = |decision: &Decision| match &decision.what {
        What::Setting(value) => kind.blob_of(value),
        _ => None,
    };
    let (held, to_come) = decisions.split_at(held.min(decisions.len()));
    held.iter().rev().find_map(blob).into_iter().chain(to_come.iter().filter_map(blob)).collect()
}

/// Where the folders of all models' blobs are.
pub(super) fn folders(data_dir: &Path) -> PathBuf {
    data_dir.join("blobs")
}

/// Where the blobs of the model with this id are.
pub(super) fn folder(data_dir: &Path, model: u32) -> PathBuf {
    folders(data_dir).join(model.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::disk::FileSystem;
    use crate::fold::{Fold, Version};
    use crate::model::kind::{Given, SpecError};

    #[test]
    fn what_is_kept_is_read_by_its_hash_and_not_when_it_is_altered() {
        let data = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(Arc::new(FileSystem), data.path(), 3);
        let name = name_of(b"weights");
        for _ in 0..2 {
            blobs.keep(b"weights").unwrap();
            assert_eq!(blobs.read(&name).unwrap(), b"weights");
        }
        assert_eq!(blobs.read("../../log").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(blobs.read(&name_of(b"other")).unwrap_err().kind(), io::ErrorKind::NotFound);
        FileSystem.write_atomic(&folder(data.path(), 3).join(&name), &mut |out| out.write_all(b"Weights")).unwrap();
        assert_eq!(blobs.read(&name).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn all_but_what_is_named_goes() {
        let data = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(Arc::new(FileSystem), data.path(), 3);
        assert_eq!(blobs.bytes().unwrap(), 0);
        blobs.keep_only(&BTreeSet::new()).unwrap();
        blobs.keep(b"held").unwrap();
        blobs.keep(b"superseded").unwrap();
        let cut_short = folder(data.path(), 3).join("cut short.tmp");
        FileSystem.write_atomic(&cut_short, &mut |out| out.write_all(b"cut")).unwrap();
        assert_eq!(blobs.bytes().unwrap(), 4 + 10 + 3);
        blobs.keep_only(&BTreeSet::from([name_of(b"held")])).unwrap();
        let left: Vec<_> = std::fs::read_dir(folder(data.path(), 3)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [name_of(b"held").as_str()]);
    }

    /// Its settings are names of blobs, or numbers.
    struct Named;

    impl Kind for Named {
        fn name(&self) -> &'static str {
            "named"
        }

        fn propose_plan(&self, _: Given<'_>, _: Option<u64>) -> Result<Value, SpecError> {
            Ok(Value::Null)
        }

        fn build(&self, _: Given<'_>) -> Result<Box<dyn Fold>, SpecError> {
            Err(SpecError::Settings("there is none".into()))
        }

        fn blob_of(&self, setting: &Value) -> Option<String> {
            setting.as_str().map(str::to_owned)
        }
    }

    #[test]
    fn a_blob_is_needed_until_every_checkpoint_holds_the_next_one() {
        let set = |value: Value| Decision { at: Version { epoch: 0, sequence: 7 }, what: What::Setting(value) };
        let rate = Decision { at: Version { epoch: 0, sequence: 7 }, what: What::LearningRate(0.1) };
        let decisions = [set(json!("a")), set(json!("b")), set(json!(5)), rate, set(json!("c"))];
        let needed = |held: usize| needed(&decisions, held, &Named).into_iter().collect::<String>();
        for (held, names) in [(0, "abc"), (1, "abc"), (2, "bc"), (3, "bc"), (4, "bc"), (5, "c"), (9, "c")] {
            assert_eq!(needed(held), names, "with {held} decisions");
        }
    }
}
