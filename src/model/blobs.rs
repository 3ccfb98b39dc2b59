//! What a model's decisions name and are too large for them to hold: files of its own, called by what is in them.
//!
//! A blob is on disk before the decision that names it, and stays as long as replay may come to need it: it may begin at any row that the
//! log still has. Only the model's driver writes here and lets go, once there is one; nothing of a blob is ever changed.

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
use crate::fold::Sequence;

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

    /// Whether there is anything.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.disk.list(&self.folder)?.is_empty())
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
    /// Lets go of the blobs that no replay can come to need any more. It is no harm where it cannot: it is tried again.
    pub(super) fn let_blobs_go(&self) -> Result<(), ModelError> {
        let Recovery { blobs, streams, kind, id, .. } = &self.recovery;
        let failed = |error: &io::Error| {
            if is_sync_failure(error) {
                self.ground.end(error);
            }
            tracing::warn!(model = self.live.name, %error, "blobs stay that nobody needs");
        };
        // Of most models there are none.
        if blobs.is_empty().inspect_err(failed).unwrap_or(true) {
            return Ok(());
        }
        let decisions = streams.log().decisions(*id)?;
        let decisions: Vec<Decision> = decisions.iter().map(|bytes| Decision::decode(bytes)).collect::<Result<_, _>>()?;
        let (first_row, _) = self.live.stream.bounds()?;
        blobs.keep_only(&needed(&decisions, first_row, kind.as_ref())).inspect_err(failed).ok();
        Ok(())
    }
}

/// The blobs that replay may come to need, where it begins at the log's first row or later: those of the decisions from there on, and of the
/// one that held there.
pub(super) fn needed(decisions: &[Decision], first_row: Sequence, kind: &dyn Kind) -> BTreeSet<String> {
    let (mut holding, mut needed) = (None, BTreeSet::new());
    for decision in decisions {
        let What::Setting(value) = &decision.what else { continue };
        let Some(name) = kind.blob_of(value) else { continue };
        // A checkpoint at the row before the first one may hold this decision, or not yet.
        if decision.at.sequence + 1 < first_row {
            holding = Some(name);
        } else {
            needed.insert(name);
        }
    }
    needed.extend(holding);
    needed
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
        assert!(blobs.is_empty().unwrap());
        blobs.keep_only(&BTreeSet::new()).unwrap();
        blobs.keep(b"held").unwrap();
        blobs.keep(b"superseded").unwrap();
        let cut_short = folder(data.path(), 3).join("cut short.tmp");
        FileSystem.write_atomic(&cut_short, &mut |out| out.write_all(b"cut")).unwrap();
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
    fn a_blob_is_needed_until_the_log_has_no_row_before_the_next_one() {
        let set = |sequence: Sequence, value: Value| Decision { at: Version { epoch: 0, sequence }, what: What::Setting(value) };
        let decisions = [
            set(0, json!("a")),
            set(10, json!("b")),
            set(10, json!(5)),
            set(20, json!("c")),
            Decision { at: Version { epoch: 0, sequence: 25 }, what: What::LearningRate(0.1) },
            set(30, json!("d")),
        ];
        let needed = |first_row: Sequence| needed(&decisions, first_row, &Named).into_iter().collect::<String>();
        let expected = [(1, "abcd"), (11, "abcd"), (12, "bcd"), (21, "bcd"), (22, "cd"), (31, "cd"), (32, "d"), (900, "d")];
        for (first_row, names) in expected {
            assert_eq!(needed(first_row), names, "from row {first_row} on");
        }
    }
}
