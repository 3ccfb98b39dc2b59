//! Checkpoints: a model's whole state in one safetensors file, and a manifest that says which files are whole.
//!
//! Invariants:
//! 1. A checkpoint is written to a temporary file, synced, renamed, and its folder synced; only then does the manifest name it,
//!    by the same steps, with the file's blake3. A crash between leaves a file that no manifest names, which is removed later.
//! 2. The newest two are kept. A file whose hash is not the manifest's is never restored: the one before it takes over.
//! 3. Writing copies no tensor: bytes go from the fold's storage through the hash to the file.
//!
//! The file's safetensors metadata holds `format`, `format_version`, the data folder's and the fold's identity, the version, how
//! many decisions are in it, and the values and scores as JSON. The manifest is two lines: JSON, which names the
//! format, its version and the data folder too, and the blake3 of that line; it is kept twice.

use std::collections::BTreeMap;
#[expect(clippy::disallowed_types, reason = "safetensors' metadata is one; it is read by name and hashed as bytes")]
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::{Deserialize, Serialize};

use super::status::{CheckpointFigures, Tally};
use crate::disk::Disk;
use crate::fold::{State, StateRef, Version};

const FORMAT: &str = "mustela checkpoint";
const FORMAT_VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// The manifest once more: when the first is altered, the second still says which files are whole.
const MANIFEST_COPY: &str = "manifest.copy.json";
/// Checkpoints that are kept.
const KEPT: usize = 2;

/// What a checkpoint says beside the state's tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The data folder that it belongs to.
    pub folder: String,
    /// The model's name.
    pub model: String,
    /// What bits depend on beside records and decisions.
    pub identity: String,
    /// Every row up to here is in it.
    pub version: Version,
    /// Decisions that are in it.
    pub decisions: u64,
    /// Scores and counters.
    pub tally: Tally,
    /// The fold's own values.
    pub values: serde_json::Value,
}

/// One line of the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The file's name in the same folder.
    pub file: String,
    /// What it holds.
    pub version: Version,
    /// The file's bytes.
    pub bytes: u64,
    /// The file's hash.
    pub blake3: String,
    /// The hash of the state's tensors alone.
    pub state_hash: String,
    /// When it was written.
    pub unix_seconds: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    format_version: u32,
    /// The data folder that it belongs to.
    folder: String,
    checkpoints: Vec<Entry>,
}

/// What a manifest of any version says.
#[derive(Deserialize)]
struct Versioned {
    format_version: u32,
}

/// A checkpoint that was read back.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub head: Head,
    /// The fold's state.
    pub state: State,
    /// Its line in the manifest.
    pub entry: Entry,
    /// The oldest version that is still kept beside it.
    pub oldest_kept: Version,
}

/// Why there is no checkpoint to be had or made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("checkpoint: {0}")]
    Io(#[from] io::Error),
    /// A file is not what it should be.
    #[error("checkpoint {file}: {reason}")]
    Corrupt {
        /// Which.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is whole, and another version's: whoever reads it anew from the log would remove it.
    #[error("{file} is of format version {found}, this binary reads {FORMAT_VERSION}: open it with the binary that wrote it")]
    Version {
        /// Which, with its folder.
        file: String,
        /// What it says.
        found: String,
    },
}

/// The checkpoints of one model.
pub struct Store<'a> {
    disk: &'a dyn Disk,
    folder: PathBuf,
}

impl<'a> Store<'a> {
    /// The store in `folder`, which need not exist yet.
    pub fn new(disk: &'a dyn Disk, folder: impl Into<PathBuf>) -> Store<'a> {
        Store { disk, folder: folder.into() }
    }

    /// Writes a checkpoint, names it in the manifest, and removes what is no longer kept.
    pub fn save(&self, head: &Head, state: &StateRef<'_>) -> Result<CheckpointFigures, CheckpointError> {
        let began = Instant::now();
        self.disk.create_dir_all(&self.folder)?;
        // Two checkpoints of one version differ by their decisions; neither is written over the other.
        let file = format!("{}-{}.safetensors", head.version, head.decisions);
        let state_hash = state_hash(state.tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)))?;
        let header = header(head, state)?;
        let mut hash = blake3::Hasher::new();
        let mut bytes = 0;
        self.disk.write_atomic(&self.folder.join(&file), &mut |out| {
            hash.reset();
            bytes = 0;
            let mut out = Hashing { out, hash: &mut hash, bytes: &mut bytes };
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(&header)?;
            state.tensors.values().try_for_each(|tensor| with_bytes(tensor, |bytes| out.write_all(bytes))?)
        })?;
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let blake3 = hash.finalize().to_hex().to_string();
        let entry = Entry { file, version: head.version, bytes, blake3, state_hash: state_hash.clone(), unix_seconds };

        let mut entries = match self.entries() {
            // Both copies are: what they named is lost, the log has stood in for it, and they are written anew.
            Err(CheckpointError::Corrupt { .. }) => Vec::new(),
            entries => entries?,
        };
        entries.retain(|kept| kept.file != entry.file);
        entries.push(entry);
        let entries = entries.split_off(entries.len().saturating_sub(KEPT));
        self.write_manifest(&head.folder, entries.clone())?;
        self.remove_others(&entries)?;
        let oldest_kept = entries.first().map_or(head.version, |oldest| oldest.version);
        Ok(CheckpointFigures {
            version: head.version,
            oldest_kept,
            state_hash,
            unix_seconds,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// The newest checkpoint that is whole, and what was wrong with newer ones.
    pub fn load_newest(&self) -> Result<(Option<Loaded>, Vec<CheckpointError>), CheckpointError> {
        let mut faults = Vec::new();
        let mut entries = match self.entries() {
            Ok(entries) => entries,
            Err(fault @ CheckpointError::Corrupt { .. }) => {
                faults.push(fault);
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let oldest_kept = entries.first().map(|oldest| oldest.version).unwrap_or_default();
        let mut newest = None;
        while newest.is_none()
            && let Some(entry) = entries.last()
        {
            match self.load(entry.clone()) {
                Ok(loaded) => newest = Some(Loaded { oldest_kept, ..loaded }),
                Err(fault @ CheckpointError::Version { .. }) => return Err(fault),
                Err(fault) => {
                    faults.push(fault);
                    entries.pop();
                }
            }
        }
        if let Some(loaded) = newest.as_ref().filter(|_| !faults.is_empty()) {
            // What is broken does not count as one of the two that are kept.
            self.write_manifest(&loaded.head.folder, entries)?;
        }
        Ok((newest, faults))
    }

    /// The manifest's lines, oldest first; none where there is no manifest yet.
    pub fn entries(&self) -> Result<Vec<Entry>, CheckpointError> {
        match self.manifest(MANIFEST) {
            Ok(Some(entries)) => Ok(entries),
            // The first is lost, or there never was one.
            Ok(None) => Ok(self.manifest(MANIFEST_COPY)?.unwrap_or_default()),
            Err(fault @ CheckpointError::Corrupt { .. }) => match self.manifest(MANIFEST_COPY) {
                Err(other @ CheckpointError::Version { .. }) => Err(other),
                Ok(Some(entries)) if !entries.is_empty() => Ok(entries),
                _ => Err(fault),
            },
            Err(error) => Err(error),
        }
    }

    fn manifest(&self, name: &str) -> Result<Option<Vec<Entry>>, CheckpointError> {
        let corrupt = |reason: String| CheckpointError::Corrupt { file: name.into(), reason };
        let bytes = match self.disk.read(&self.folder.join(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8(bytes).map_err(|_| corrupt("it is not UTF-8".into()))?;
        let mut lines = text.lines();
        let (Some(body), Some(hash), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(corrupt("it has not two lines".into()));
        };
        if blake3::hash(body.as_bytes()).to_hex().as_str() != hash {
            return Err(corrupt("its hash is wrong".into()));
        }
        // Another version may say other things beside it.
        let Versioned { format_version: found } = serde_json::from_str(body).map_err(|error| corrupt(error.to_string()))?;
        if found != FORMAT_VERSION {
            return Err(self.version(name, found.to_string()));
        }
        let manifest: Manifest = serde_json::from_str(body).map_err(|error| corrupt(error.to_string()))?;
        Ok(Some(manifest.checkpoints))
    }

    fn version(&self, file: &str, found: String) -> CheckpointError {
        CheckpointError::Version { file: self.folder.join(file).display().to_string(), found }
    }

    /// Reads one checkpoint and holds it to the manifest's hash.
    pub fn load(&self, entry: Entry) -> Result<Loaded, CheckpointError> {
        let corrupt = |reason: String| CheckpointError::Corrupt { file: entry.file.clone(), reason };
        let bytes = self.disk.read(&self.folder.join(&entry.file))?;
        if blake3::hash(&bytes).to_hex().as_str() != entry.blake3 {
            return Err(corrupt("its hash is not the manifest's".into()));
        }
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| corrupt(error.to_string()))?;
        let metadata = metadata.metadata().as_ref();
        let found = metadata.and_then(|map| map.get("format_version")).cloned().unwrap_or_default();
        if found != FORMAT_VERSION.to_string() {
            return Err(self.version(&entry.file, found));
        }
        let head = read_head(metadata).map_err(corrupt)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| corrupt(error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::U32 => DType::U32,
                Dtype::U8 => DType::U8,
                other => return Err(corrupt(format!("{name} is {other:?}"))),
            };
            let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu);
            tensors.insert(name, tensor.map_err(|error| corrupt(error.to_string()))?);
        }
        let state = State { tensors, values: head.values.clone() };
        let oldest_kept = head.version;
        Ok(Loaded { head, state, entry, oldest_kept })
    }

    fn write_manifest(&self, folder: &str, checkpoints: Vec<Entry>) -> Result<(), CheckpointError> {
        let (format, folder) = (FORMAT.to_owned(), folder.to_owned());
        let manifest = Manifest { format, format_version: FORMAT_VERSION, folder, checkpoints };
        let body = serde_json::to_string(&manifest).map_err(io::Error::other)?;
        let text = format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex());
        for name in [MANIFEST, MANIFEST_COPY] {
            self.disk.write_atomic(&self.folder.join(name), &mut |out| out.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    fn remove_others(&self, kept: &[Entry]) -> Result<(), CheckpointError> {
        for path in self.disk.list(&self.folder)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name != MANIFEST && name != MANIFEST_COPY && kept.iter().all(|entry| entry.file != name) {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Where the folders of all models are.
pub fn folders(data_dir: &Path) -> PathBuf {
    data_dir.join("models")
}

/// Where the checkpoints of the model with this id are.
pub fn folder(data_dir: &Path, model: u32) -> PathBuf {
    folders(data_dir).join(model.to_string())
}

/// blake3 over name, type, shape and bytes of tensors that come in the order of their names.
pub fn state_hash<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> io::Result<String> {
    let mut hash = blake3::Hasher::new();
    for (name, tensor) in tensors {
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(format!("{:?}{:?}", tensor.dtype(), tensor.dims()).as_bytes());
        with_bytes(tensor, |bytes| {
            hash.update(bytes);
        })?;
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// Lends the bytes of a contiguous CPU tensor.
fn with_bytes<T>(tensor: &Tensor, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(io::Error::other("a state's tensor is not contiguous"));
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(read(bytemuck::cast_slice(&values[start..end]))),
        Storage::Cpu(CpuStorage::F64(values)) => Ok(read(bytemuck::cast_slice(&values[start..end]))),
        Storage::Cpu(CpuStorage::U32(values)) => Ok(read(bytemuck::cast_slice(&values[start..end]))),
        Storage::Cpu(CpuStorage::U8(values)) => Ok(read(&values[start..end])),
        _ => Err(io::Error::other("a state's tensor is neither of floats nor of bytes or labels on the CPU")),
    }
}

/// The safetensors header: JSON, padded with spaces to eight bytes.
fn header(head: &Head, state: &StateRef<'_>) -> io::Result<Vec<u8>> {
    let mut at = 0;
    let mut infos = Vec::with_capacity(state.tensors.len());
    for (name, tensor) in &state.tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::U32 => Dtype::U32,
            DType::U8 => Dtype::U8,
            other => return Err(io::Error::other(format!("{name} is {other:?}"))),
        };
        let end = at + tensor.elem_count() * tensor.dtype().size_in_bytes();
        infos.push((name.clone(), TensorInfo { dtype, shape: tensor.dims().to_vec(), data_offsets: (at, end) }));
        at = end;
    }
    let head = serde_json::to_string(head).map_err(io::Error::other)?;
    #[expect(clippy::disallowed_types)]
    let metadata: HashMap<String, String> = [
        ("format".to_owned(), FORMAT.to_owned()),
        ("format_version".to_owned(), FORMAT_VERSION.to_string()),
        ("head".to_owned(), head),
    ]
    .into();
    let metadata = Metadata::new(Some(metadata), infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata).map_err(io::Error::other)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[expect(clippy::disallowed_types)]
fn read_head(metadata: Option<&HashMap<String, String>>) -> Result<Head, String> {
    let field = |name: &str| metadata.and_then(|map| map.get(name)).ok_or_else(|| format!("its metadata lacks `{name}`"));
    if field("format")? != FORMAT {
        return Err("it is another program's file".into());
    }
    serde_json::from_str(field("head")?).map_err(|error| error.to_string())
}

/// Hashes and counts what passes through.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: &'a mut blake3::Hasher,
    bytes: &'a mut u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hash.update(&buffer[..written]);
        *self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
