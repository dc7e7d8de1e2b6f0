//! Storages and folders whose Nth input or output fails.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{Error, Folder, Identity, Result, Storage};

/// A kind of input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Each is the method of that name.
pub enum Io {
    Read,
    Write,
    SetLen,
    Sync,
    Punch,
    Zero,
    Allocate,
    CopyFrom,
    Open,
    Create,
    Rename,
    Remove,
    SyncFolder,
}

const ALL: &[Io] = &[
    Io::Read,
    Io::Write,
    Io::SetLen,
    Io::Sync,
    Io::Punch,
    Io::Zero,
    Io::Allocate,
    Io::CopyFrom,
    Io::Open,
    Io::Create,
    Io::Rename,
    Io::Remove,
    Io::SyncFolder,
];

/// What a full disk fails.
pub const WRITES: &[Io] = &[Io::Write, Io::SetLen, Io::Zero, Io::Allocate, Io::CopyFrom, Io::Create];

/// What ends in durability.
pub const SYNCS: &[Io] = &[Io::Sync, Io::SyncFolder];

/// Which input or output fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The operating system's code.
    pub code: i32,
    /// What counts.
    pub of: &'static [Io],
    /// Every later one fails as well.
    pub forever: bool,
    /// A write that fails has written its first half, in whole sectors.
    pub torn: bool,
}

impl Fault {
    /// EIO from anything.
    pub const EIO: Fault = Fault { code: libc::EIO, of: ALL, forever: false, torn: false };
    /// ENOSPC from all that takes space.
    pub const ENOSPC: Fault = Fault { code: libc::ENOSPC, of: WRITES, forever: false, torn: false };

    /// Only these count.
    #[must_use]
    pub const fn only(mut self, of: &'static [Io]) -> Fault {
        self.of = of;
        self
    }

    /// Every later one fails as well.
    #[must_use]
    pub const fn forever(mut self) -> Fault {
        self.forever = true;
        self
    }

    /// A write that fails has written its first half.
    #[must_use]
    pub const fn torn(mut self) -> Fault {
        self.torn = true;
        self
    }
}

#[derive(Debug, Default)]
struct Counter {
    fault: Option<(Fault, u64)>,
    seen: u64,
    fired: Vec<Io>,
    sync_failed: bool,
}

/// Counts inputs and outputs, of any number of storages and folders, and lets one fail.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Counter>);

impl Faults {
    /// Nothing fails.
    pub fn none() -> Arc<Faults> {
        Arc::default()
    }

    /// The `nth` fails, from 1.
    pub fn at(fault: Fault, nth: u64) -> Arc<Faults> {
        let faults = Faults::none();
        faults.arm(fault, nth);
        faults
    }

    /// From now on the `nth` fails, from 1.
    pub fn arm(&self, fault: Fault, nth: u64) {
        *self.counter() = Counter { fault: Some((fault, nth)), ..Counter::default() };
    }

    /// Nothing fails any more (but a sync that failed stays failed).
    pub fn disarm(&self) {
        self.counter().fault = None;
    }

    /// How many counted since it was armed.
    pub fn seen(&self) -> u64 {
        self.counter().seen
    }

    /// What failed.
    pub fn fired(&self) -> Vec<Io> {
        self.counter().fired.clone()
    }

    /// This storage, with faults.
    pub fn storage(self: &Arc<Self>, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(FaultStorage { inner, faults: self.clone() })
    }

    /// This folder, with faults, in it and in its files.
    pub fn folder(self: &Arc<Self>, inner: Arc<dyn Folder>) -> Arc<dyn Folder> {
        Arc::new(FaultFolder { inner, faults: self.clone() })
    }

    fn counter(&self) -> MutexGuard<'_, Counter> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The fault that this one meets.
    fn meet(&self, io: Io) -> Option<Fault> {
        let mut counter = self.counter();
        if io == Io::Sync && counter.sync_failed {
            return Some(Fault::EIO);
        }
        let (fault, nth) = counter.fault?;
        if !fault.of.contains(&io) {
            return None;
        }
        counter.seen += 1;
        let fires = counter.seen == nth || (fault.forever && counter.seen > nth);
        if fires {
            counter.fired.push(io);
            counter.sync_failed |= io == Io::Sync;
        }
        fires.then_some(fault)
    }

    fn pass(&self, io: Io) -> io::Result<()> {
        self.meet(io).map_or(Ok(()), |fault| Err(io::Error::from_raw_os_error(fault.code)))
    }

    fn pass_named(&self, io: Io, name: &str) -> Result<()> {
        self.pass(io).map_err(|error| Error::io(format!("cannot do {io:?}"), error).image(name))
    }
}

/// A storage that fails as its [`Faults`] say.
#[derive(Debug)]
pub struct FaultStorage {
    inner: Arc<dyn Storage>,
    faults: Arc<Faults>,
}

impl Storage for FaultStorage {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.faults.pass(Io::Read)?;
        self.inner.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        if let Some(fault) = self.faults.meet(Io::Write) {
            if fault.torn {
                let half = (at + buf.len() as u64 / 2) / 512 * 512;
                self.inner.write_at(at, &buf[..half.saturating_sub(at) as usize])?;
            }
            return Err(io::Error::from_raw_os_error(fault.code));
        }
        self.inner.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.pass(Io::SetLen)?;
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.pass(Io::Sync)?;
        self.inner.sync()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.faults.pass(Io::Punch)?;
        self.inner.punch(at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.faults.pass(Io::Zero)?;
        self.inner.zero(at, len)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        self.faults.pass(Io::Allocate)?;
        self.inner.allocate(at, len)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.data_at(at)
    }

    fn copy_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> io::Result<u64> {
        self.faults.pass(Io::CopyFrom)?;
        self.inner.copy_from(at, src, src_at, len)
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.inner.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.as_fd()
    }
}

/// A folder that fails as its [`Faults`] say, and whose files do.
#[derive(Debug)]
pub struct FaultFolder {
    inner: Arc<dyn Folder>,
    faults: Arc<Faults>,
}

impl Folder for FaultFolder {
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn Storage>> {
        self.faults.pass_named(Io::Open, name)?;
        Ok(self.faults.storage(self.inner.open(name, write)?))
    }

    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>> {
        self.faults.pass_named(Io::Create, name)?;
        Ok(self.faults.storage(self.inner.create_new(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.faults.pass_named(Io::Rename, to)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.faults.pass_named(Io::Remove, name)?;
        self.inner.remove(name)
    }

    fn sync(&self) -> Result<()> {
        self.faults.pass_named(Io::SyncFolder, ".")?;
        self.inner.sync()
    }
}
