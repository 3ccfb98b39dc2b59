//! What a model's decisions name and are too large for them to hold: files of its own, called by what is in them.
//!
//! A blob is on disk before the decision that names it, and stays as long as the model: replay may begin anywhere. Nothing of it is ever
//! changed, so whoever writes it again changes nothing.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;

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

    /// Keeps bytes, and gives the name that they have from now on: their blake3.
    ///
    /// # Errors
    /// The disk failed.
    pub fn keep(&self, bytes: &[u8]) -> io::Result<String> {
        let name = blake3::hash(bytes).to_hex().to_string();
        self.disk.create_dir_all(&self.folder)?;
        self.disk.write_atomic(&self.folder.join(&name), &mut |out| out.write_all(bytes))?;
        Ok(name)
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
        if blake3::hash(&bytes).to_hex().as_str() != name {
            let text = format!("{} is altered: its hash is not its name", self.folder.join(name).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }
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
    use super::*;
    use crate::disk::FileSystem;

    #[test]
    fn what_is_kept_is_read_by_its_hash_and_not_when_it_is_altered() {
        let data = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(Arc::new(FileSystem), data.path(), 3);
        let name = blobs.keep(b"weights").unwrap();
        assert_eq!(blobs.keep(b"weights").unwrap(), name);
        assert_eq!(blobs.read(&name).unwrap(), b"weights");
        assert_eq!(blobs.read("../../log").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let other = blake3::hash(b"other").to_hex().to_string();
        assert_eq!(blobs.read(&other).unwrap_err().kind(), io::ErrorKind::NotFound);
        FileSystem.write_atomic(&folder(data.path(), 3).join(&name), &mut |out| out.write_all(b"Weights")).unwrap();
        assert_eq!(blobs.read(&name).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
