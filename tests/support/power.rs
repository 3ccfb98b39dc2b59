//! A disk in memory that remembers what was synced apart from what was only written, so that a test can cut its power: of what was
//! written since the last sync, a drawn part stays, a part is gone, and a part is torn.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test uses its part of this, and fails by panicking"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mustela::disk::Disk;
use parking_lot::Mutex;
use redb::{Builder, Database, DatabaseError, StorageBackend};

/// Disks write this many bytes whole, and tear between them.
const SECTOR: usize = 512;

/// What fits on the disk.
const DISK_BYTES: usize = 64 << 20;

/// A few numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What a write, a change of the length or a sync does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power is cut: this call and all after it fail, until the disk is opened anew.
    Cut,
    /// It fails, once. A sync that fails has written a part, and what it has not written is seen until the power is cut, and never
    /// reaches the disk: the kernel takes it for clean. (The length of a file is in the file system's journal, and is not lost so.)
    Fail,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

impl Unsynced {
    fn reach(&self, file: &mut Vec<u8>) {
        match self {
            Unsynced::Write { offset, bytes } => write(file, *offset, bytes),
            Unsynced::Length(length) => file.resize(*length, 0),
        }
    }

    /// Reaches the disk whole, not at all, or in part.
    fn reach_in_part(&self, file: &mut Vec<u8>, draw: &mut Draw) {
        match (draw.below(4), self) {
            (0, _) => {}
            (1, Unsynced::Write { offset, bytes }) => {
                let torn = draw.below(bytes.len() + 1);
                let (head, tail) = bytes.split_at(torn);
                if draw.below(2) == 0 { write(file, *offset, head) } else { write(file, offset + torn, tail) }
            }
            (2, Unsynced::Write { offset, bytes }) => {
                for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                    if draw.below(2) == 0 {
                        write(file, offset + number * SECTOR, sector);
                    }
                }
            }
            _ => self.reach(file),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Platter {
    /// What a cut of the power leaves for sure.
    synced: Vec<u8>,
    /// What a process sees.
    seen: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Calls until the fault, the fault, and what draws its part.
    armed: Option<(u64, Fault, Draw)>,
    fired: Option<Fault>,
    is_off: bool,
    /// A sync does nothing, and says that it did.
    lies: bool,
    /// The file has its name; before, whatever ends the process leaves nothing of it.
    has_name: bool,
    /// Counts the openings: whoever opened it before an end of the process can do nothing any more.
    opening: u64,
    calls: u64,
}

impl Platter {
    fn part_reaches(&mut self, draw: &mut Draw) {
        for unsynced in std::mem::take(&mut self.unsynced) {
            unsynced.reach_in_part(&mut self.synced, draw);
        }
    }

    fn end(&mut self) {
        if !self.has_name {
            (self.seen, self.synced, self.unsynced) = Default::default();
        }
        self.opening += 1;
        self.is_off = false;
    }

    fn all_reaches(&mut self) {
        for unsynced in std::mem::take(&mut self.unsynced) {
            unsynced.reach(&mut self.synced);
        }
    }

    /// What is seen, by a process that is still there, while there is power.
    fn reached(&self, opening: u64) -> io::Result<&[u8]> {
        if self.is_off || opening != self.opening { Err(gone()) } else { Ok(&self.seen) }
    }

    /// One call comes: the fault that it has, or an error where there is no power.
    fn strike(&mut self, opening: u64) -> io::Result<Option<(Fault, Draw)>> {
        self.reached(opening)?;
        self.calls += 1;
        match &mut self.armed {
            Some((left, ..)) if *left > 0 => *left -= 1,
            _ => {
                let struck = self.armed.take();
                if let Some((_, fault, draw)) = struck {
                    self.fired = Some(fault);
                    self.is_off = fault == Fault::Cut;
                    return Ok(Some((fault, draw)));
                }
            }
        }
        Ok(None)
    }

    /// A write or a change of the length comes.
    fn take(&mut self, opening: u64, unsynced: Unsynced) -> io::Result<()> {
        if matches!(unsynced, Unsynced::Length(length) if length > DISK_BYTES) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match self.strike(opening)? {
            None => unsynced.reach(&mut self.seen),
            Some((Fault::Fail, _)) => return Err(gone()),
            Some((Fault::Cut, _)) => {
                // It may just have got through.
                self.unsynced.push(unsynced);
                return Err(gone());
            }
        }
        self.unsynced.push(unsynced);
        Ok(())
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct PowerDisk(Arc<Mutex<Platter>>);

fn gone() -> io::Error {
    io::Error::other("the disk has failed, by order of the test")
}

impl PowerDisk {
    /// After `calls` calls that go well, the next one has the fault.
    pub fn arm(&self, calls: u64, fault: Fault, seed: u64) {
        self.0.lock().armed = Some((calls, fault, Draw(seed)));
    }

    /// No fault to come; the one that came since it was armed.
    pub fn disarm(&self) -> Option<Fault> {
        let mut platter = self.0.lock();
        platter.armed = None;
        platter.fired.take()
    }

    /// From now on a sync does nothing, and a cut of the power leaves nothing of what came after.
    pub fn lie(&self) {
        self.0.lock().lies = true;
    }

    /// The process ends without a word: what it wrote is still seen, and it writes no more.
    pub fn kill(&self) {
        self.0.lock().end();
    }

    /// The power is cut, and comes back.
    pub fn cut(&self, seed: u64) {
        let mut platter = self.0.lock();
        if platter.lies {
            platter.unsynced.clear();
        }
        platter.part_reaches(&mut Draw(seed));
        platter.seen = platter.synced.clone();
        platter.end();
    }

    /// Writes, changes of the length and syncs so far.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// What is seen on it.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().seen.clone()
    }

    /// Another disk with what is seen on this one.
    pub fn copy(&self) -> PowerDisk {
        PowerDisk::holding(self.bytes())
    }

    /// A disk with this file.
    pub fn holding(seen: Vec<u8>) -> PowerDisk {
        PowerDisk(Arc::new(Mutex::new(Platter { synced: seen.clone(), seen, has_name: true, ..Platter::default() })))
    }
}

#[derive(Debug)]
struct Handle {
    disk: PowerDisk,
    opening: u64,
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().reached(self.opening)?.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.disk.0.lock();
        let seen = platter.reached(self.opening)?.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(seen.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.0.lock().take(self.opening, Unsynced::Length(length as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.disk.0.lock();
        match platter.strike(self.opening)? {
            Some((Fault::Fail, mut draw)) => {
                for unsynced in std::mem::take(&mut platter.unsynced) {
                    match unsynced {
                        Unsynced::Length(_) => unsynced.reach(&mut platter.synced),
                        Unsynced::Write { .. } => unsynced.reach_in_part(&mut platter.synced, &mut draw),
                    }
                }
                return Err(gone());
            }
            Some((Fault::Cut, mut draw)) => {
                // All of it may be there, and nobody was told.
                if draw.below(3) == 0 && !platter.lies {
                    platter.all_reaches();
                }
                return Err(gone());
            }
            None if platter.lies => {}
            None => platter.all_reaches(),
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.0.lock().take(self.opening, Unsynced::Write { offset: offset as usize, bytes: bytes.to_vec() })
    }
}

impl Disk for PowerDisk {
    fn open_database(&self, builder: &Builder, _: &Path) -> Result<Database, DatabaseError> {
        let opening = self.0.lock().opening;
        let database = builder.create_with_backend(Handle { disk: self.clone(), opening })?;
        self.0.lock().has_name = true;
        Ok(database)
    }
    fn write_atomic(&self, _: &Path, _: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
        Err(gone())
    }
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Err(gone())
    }
    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Err(gone())
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(gone())
    }
    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        Err(gone())
    }
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Err(gone())
    }
}
