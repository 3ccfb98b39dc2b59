//! The only code that opens files for writing, behind a trait, so that tests can make any of it fail.
//!
//! What is durable here is durable in full: a file's bytes are synced before its name is, and its name (the folder) before
//! anybody is told. An error is told with the path.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, StorageBackend};

/// File access. The log and the checkpoints know no other.
pub trait Disk: Send + Sync {
    /// Opens or makes the database at `path` with the options of `builder`, over this disk's own storage backend. A second
    /// process gets [`DatabaseError::DatabaseAlreadyOpen`].
    fn open_database(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError>;

    /// Writes a whole file, so that after a crash there is the old one or the new one: temporary file, sync, rename, sync of the
    /// folder. `write` may be called again only by another call of this.
    fn write_atomic(&self, path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()>;

    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The files in a folder, by name; none where there is no folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;

    /// The bytes of a file.
    fn size(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path).map_err(at(path))?.len())
    }

    /// Removes a file; it is no error that there is none.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all that is in it; it is no error that there is none.
    fn remove_dir(&self, folder: &Path) -> io::Result<()>;

    /// Makes a folder and those above it, durably.
    fn create_dir_all(&self, folder: &Path) -> io::Result<()>;

    /// Opens or makes a small file that is written in place and never synced: it is to outlive the process, not the machine.
    fn open_note(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(at(path))
    }
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

/// Says which path an error is about.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder).map_err(at(folder))?.sync_all().map_err(|error| sync_failure(folder, &error))
}

/// A sync that failed: what was written before may be lost, and a second sync would not say so.
#[derive(Debug, thiserror::Error)]
#[error("{path}: it could not be synced: {error}")]
struct SyncFailure {
    path: String,
    error: String,
}

/// What a disk says whose sync of `path` failed.
pub fn sync_failure(path: &Path, error: &io::Error) -> io::Error {
    io::Error::other(SyncFailure { path: path.display().to_string(), error: error.to_string() })
}

/// Whether an error says that the disk may have lost what it was given: the process has to end, and not to try again.
pub fn is_sync_failure(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<SyncFailure>())
}

/// A database's file, held against every other process.
fn backend(path: &Path) -> Result<FileBackend, DatabaseError> {
    let mut options = OpenOptions::new();
    FileBackend::new(options.read(true).write(true).create(true).truncate(false).open(path).map_err(at(path))?)
}

/// Makes a database under another name, and gives it its own once it is whole: what a power cut leaves of one that was being made
/// is no database, and could not be told from one that was damaged.
fn make_database(builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
    let making = path.with_added_extension("new");
    let backend = backend(&making)?;
    // Whoever holds the unfinished file is the only one that makes the database; another may have done so just before.
    if path.exists() {
        return builder.create_with_backend(self::backend(path)?);
    }
    backend.set_len(0)?;
    let database = builder.create_with_backend(backend)?;
    fs::rename(&making, path).map_err(at(path))?;
    Ok(database)
}

impl Disk for FileSystem {
    fn open_database(&self, builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
        let database = if path.exists() { builder.create_with_backend(backend(path)?)? } else { make_database(builder, path)? };
        path.parent().map_or(Ok(()), sync_folder)?;
        Ok(database)
    }

    fn write_atomic(&self, path: &Path, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let temporary = path.with_added_extension("tmp");
        let written = (|| {
            #[expect(clippy::disallowed_methods, reason = "this is where files are made")]
            let mut file = BufWriter::new(File::create(&temporary).map_err(at(&temporary))?);
            write(&mut file)?;
            let file = file.into_inner().map_err(|error| error.into_error())?;
            file.sync_all().map_err(|error| sync_failure(&temporary, &error))?;
            fs::rename(&temporary, path).map_err(at(path))?;
            path.parent().map_or(Ok(()), sync_folder)
        })();
        if written.is_err() {
            absent_is_fine(fs::remove_file(&temporary)).ok();
        }
        written
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path).map_err(at(path))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(folder))?,
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().map_err(at(folder))?;
        paths.sort();
        Ok(paths)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        absent_is_fine(fs::remove_file(path)).map_err(at(path))?;
        path.parent().map_or(Ok(()), sync_folder)
    }

    fn remove_dir(&self, folder: &Path) -> io::Result<()> {
        absent_is_fine(fs::remove_dir_all(folder)).map_err(at(folder))
    }

    fn create_dir_all(&self, folder: &Path) -> io::Result<()> {
        let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let new: Vec<&Path> = folder.ancestors().take_while(is_new).collect();
        fs::create_dir_all(folder).map_err(at(folder))?;
        // A folder is a name in the one above it: were that not synced, the whole data folder could be gone after a power cut.
        let above = |path: &Path| path.parent().filter(|above| !above.as_os_str().is_empty()).map(Path::to_owned);
        new.into_iter().try_for_each(|path| sync_folder(&above(path).unwrap_or_else(|| PathBuf::from("."))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_old_one_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.bin");
        let disk = FileSystem;
        disk.write_atomic(&path, &mut |out| out.write_all(b"old")).unwrap();
        let failed = disk.write_atomic(&path, &mut |out| {
            out.write_all(b"ne")?;
            Err(io::Error::other("power"))
        });
        assert!(failed.is_err());
        assert_eq!(disk.read(&path).unwrap(), b"old");
        disk.write_atomic(&path, &mut |out| out.write_all(b"new")).unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"new");
        assert_eq!(disk.list(folder.path()).unwrap(), std::slice::from_ref(&path));
        disk.remove(&path).unwrap();
        disk.remove(&path).unwrap();
        assert!(disk.list(&folder.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_database_whose_making_was_cut_short_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.redb");
        FileSystem.write_atomic(&path.with_added_extension("new"), &mut |out| out.write_all(&[0; 80_000])).unwrap();
        let open = || FileSystem.open_database(&Builder::new(), &path);
        let database = open().unwrap();
        assert!(matches!(open(), Err(DatabaseError::DatabaseAlreadyOpen)));
        drop(database);
        open().unwrap();
        assert_eq!(FileSystem.list(folder.path()).unwrap(), std::slice::from_ref(&path));
    }
}
