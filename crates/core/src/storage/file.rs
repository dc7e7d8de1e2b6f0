//! A file or a block device: positioned calls, holes, shared blocks, and the locks QEMU keeps too.
//!
//! The only module with `unsafe`: open-file-description locks have no safe wrapper.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom};

use super::{Identity, Storage};
use crate::{Error, ErrorKind, Result};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    #[default]
    Read,
    /// Read and written.
    Write,
    /// Made new, read and written; an error if it is there.
    CreateNew,
}

/// Which of QEMU's lock bytes are taken, so that QEMU and this program exclude each other on one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// What the access needs: a writer's for writing, a reader's for reading.
    #[default]
    Default,
    /// Only "I read this": nobody is kept from writing. Enough for looking at a raw image's size.
    Shared,
    /// None (`--force-share`).
    None,
}

/// What a write or a sync promises, in QEMU's names of cache modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Syncs are skipped.
    Unsafe,
    /// Written to the page cache, durable after a sync.
    #[default]
    Writeback,
    /// Durable after every write.
    Writethrough,
    /// As `Writeback`, and nothing stays in the page cache.
    None,
    /// As `Writethrough`, and nothing stays in the page cache.
    DirectSync,
}

impl Cache {
    /// The mode of that name (`none`, `writeback`, `unsafe`, `directsync`, `writethrough`).
    pub fn by_name(name: &str) -> Option<Cache> {
        Some(match name {
            "unsafe" => Cache::Unsafe,
            "writeback" => Cache::Writeback,
            "writethrough" => Cache::Writethrough,
            "none" | "off" => Cache::None,
            "directsync" => Cache::DirectSync,
            _ => return None,
        })
    }

    fn leaves_nothing(self) -> bool {
        matches!(self, Cache::None | Cache::DirectSync)
    }
}

/// A regular file or a block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    /// A block device's length; a file's is asked for each time.
    device_len: Option<u64>,
    cache: Cache,
    sync_failed: AtomicBool,
    /// What a file system keeps of the file beside its bytes, mode and owner, was made durable too.
    attributes_synced: AtomicBool,
}

impl FileStorage {
    /// Asks a file system that copies blocks when they are written to write those of this file, which is empty, in place.
    /// Others do not know the wish.
    pub fn avoid_copies(&self) {
        if let Ok(flags) = rustix::fs::ioctl_getflags(&self.file) {
            let _ = rustix::fs::ioctl_setflags(&self.file, flags | rustix::fs::IFlags::NOCOW);
        }
    }

    /// Opens `path`, which must be a regular file or a block device, and takes its locks.
    ///
    /// Never waits on a FIFO. Errors: what the system says; [`ErrorKind::Unsupported`] for other kinds of file;
    /// [`ErrorKind::Locked`] where another program holds the image, naming it where it can be found.
    pub fn open(path: &Path, access: Access, lock: Lock, cache: Cache) -> Result<FileStorage> {
        let mut options = File::options();
        // A disk is nobody else's to write to, whatever the umask leaves.
        options.read(true).write(access != Access::Read).create_new(access == Access::CreateNew).mode(0o644);
        let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        if matches!(cache, Cache::Writethrough | Cache::DirectSync) {
            flags |= libc::O_DSYNC;
        }
        let named = |error: Error| error.image(path.display());
        let file = options.custom_flags(flags).open(path).map_err(|error| {
            named(Error::io(if access == Access::CreateNew { "cannot create" } else { "cannot open" }, error))
        })?;
        Self::from_file(file, access, lock, cache).map_err(|error| match error.kind() {
            ErrorKind::Unsupported => {
                let name = path.display();
                named(error).known_as(format!("'file' driver requires '{name}' to be a regular file"))
            }
            _ => named(error),
        })
    }

    /// Takes over a file that is open already, and takes its locks.
    pub fn from_file(file: File, access: Access, lock: Lock, cache: Cache) -> Result<FileStorage> {
        let metadata = file.metadata().map_err(|error| Error::io("cannot look at", error))?;
        let kind = metadata.file_type();
        let device_len = if kind.is_block_device() {
            let end = rustix::fs::seek(&file, SeekFrom::End(0))
                .map_err(|error| Error::io("cannot find the device's size", error.into()))?;
            Some(end)
        } else if kind.is_file() {
            None
        } else {
            let what = if kind.is_dir() {
                "a directory"
            } else if kind.is_fifo() {
                "a pipe"
            } else {
                "no file"
            };
            return Err(Error::unsupported(format!(
                "is {what}; an image is a regular file or a block device"
            )));
        };
        take_locks(&file, access, lock)?;
        Ok(FileStorage {
            file,
            device_len,
            cache,
            sync_failed: AtomicBool::new(false),
            attributes_synced: AtomicBool::new(false),
        })
    }

    /// The file itself: its mode, owner and attributes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// True for a block device, which cannot be renamed or cut.
    pub fn is_device(&self) -> bool {
        self.device_len.is_some()
    }

    fn fallocate(&self, flags: FallocateFlags, at: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        match rustix::fs::fallocate(&self.file, flags, at, len) {
            Ok(()) => Ok(true),
            Err(
                rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::NODEV,
            ) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn forget(&self, at: u64, len: usize) {
        if let (true, Some(len)) = (self.cache.leaves_nothing(), std::num::NonZeroU64::new(len as u64)) {
            // Only a wish: a page that stays is no error.
            let _ = rustix::fs::fadvise(&self.file, at, Some(len), Advice::DontNeed);
        }
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        match self.device_len {
            Some(len) => Ok(len),
            None => Ok(self.file.metadata()?.len()),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, at)?;
        self.forget(at, buf.len());
        Ok(())
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.device_len {
            // ext4 takes cutting a file to nothing, even an empty one, for the start of a rewrite, and then writes all of
            // it to disk when it is closed.
            None if self.file.metadata()?.len() == len => Ok(()),
            None => self.file.set_len(len),
            Some(device) if len <= device => Ok(()),
            Some(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.cache == Cache::Unsafe {
            return Ok(());
        }
        // After a failed sync the kernel may have dropped the very pages that could not be written: a later success
        // would be a lie.
        if self.sync_failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier sync failed, so what was written before may be lost"));
        }
        // From the second time on without the time of the last change, which would cost a write of its own each time.
        let done = if self.attributes_synced.swap(true, Ordering::Relaxed) {
            self.file.sync_data()
        } else {
            self.file.sync_all()
        };
        match &done {
            Ok(()) => self.forget(0, usize::MAX >> 1),
            Err(_) => self.sync_failed.store(true, Ordering::Relaxed),
        }
        done
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.fallocate(FallocateFlags::ZERO_RANGE, at, len)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        self.fallocate(FallocateFlags::empty(), at, len)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        if at >= len {
            return Ok(None);
        }
        if self.device_len.is_some() {
            return Ok(Some(at..len));
        }
        // Seeking moves the file's offset, which nothing here uses.
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(Some(at..len)),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
        Ok((start < len).then_some(start..end.min(len).max(start + 1)))
    }

    fn copy_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> io::Result<u64> {
        use rustix::io::Errno;
        let Some(from) = src.as_fd() else { return Ok(0) };
        if len == 0 || self.device_len.is_some() {
            return Ok(0);
        }
        match clone_range(self.file.as_fd(), at, from, src_at, len) {
            Ok(()) => Ok(len),
            Err(
                Errno::OPNOTSUPP
                | Errno::INVAL
                | Errno::XDEV
                | Errno::NOTTY
                | Errno::NOSYS
                | Errno::PERM
                | Errno::TXTBSY
                | Errno::ISDIR
                | Errno::BADF,
            ) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn physical_size(&self) -> io::Result<u64> {
        match self.device_len {
            Some(_) => Ok(0),
            None => Ok(self.file.metadata()?.blocks() * 512),
        }
    }

    fn identity(&self) -> io::Result<Identity> {
        let metadata = self.file.metadata()?;
        Ok(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: self.len()?,
            mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        })
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// `FICLONERANGE`: `len` bytes of `from` stand in `to` as well, sharing blocks.
#[allow(unsafe_code)]
fn clone_range(
    to: BorrowedFd<'_>,
    at: u64,
    from: BorrowedFd<'_>,
    src_at: u64,
    len: u64,
) -> rustix::io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: src_at,
        src_length: len,
        dest_offset: at,
    };
    // SAFETY: FICLONERANGE reads one `file_clone_range` through the pointer, which is valid for the call; both
    // descriptors are borrowed and so open.
    let done = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &range) };
    if done == 0 {
        Ok(())
    } else {
        Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO))
    }
}

// QEMU's permission bits (include/block/block-common.h): a byte 100 + bit is held for a permission in use, a byte
// 200 + bit for a permission not shared with others.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const HELD: i64 = 100;
const NOT_SHARED: i64 = 200;

fn take_locks(file: &File, access: Access, lock: Lock) -> Result<()> {
    let (needed, unshared): (&[i64], &[i64]) = match (lock, access) {
        (Lock::None, _) => return Ok(()),
        (Lock::Shared, _) => (&[READ], &[]),
        (Lock::Default, Access::Read) => (&[READ], &[WRITE, RESIZE]),
        (Lock::Default, Access::Write | Access::CreateNew) => (&[READ, WRITE, RESIZE], &[WRITE, RESIZE]),
    };
    let taken = needed.iter().map(|bit| HELD + bit).chain(unshared.iter().map(|bit| NOT_SHARED + bit));
    for byte in taken {
        match ofd_lock(file, libc::F_OFD_SETLK, libc::F_RDLCK as i16, byte) {
            Ok(_) => {}
            // A file system without such locks (some network ones): as QEMU does, go on without.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP)
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(Error::io("cannot lock", error)),
        }
    }
    // Somebody who does not share what is needed here, or who uses what is not shared here.
    let asked = needed.iter().map(|bit| NOT_SHARED + bit).chain(unshared.iter().map(|bit| HELD + bit));
    for byte in asked {
        if let Some(pid) = ofd_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK as i16, byte)
            .map_err(|error| Error::io("cannot lock", error))?
        {
            return Err(held(file, pid, access, byte));
        }
    }
    Ok(())
}

fn held(file: &File, pid: i32, access: Access, byte: i64) -> Error {
    let holder = if pid > 0 { Some(pid) } else { holder_of(file) };
    let who = match holder {
        Some(pid) => {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim_end())
        }
        None => "another process".to_owned(),
    };
    let doing = match (access, byte) {
        (Access::Read, _) | (_, 101 | 103) => "is writing to it",
        _ => "is using it",
    };
    let hint = if access == Access::Read {
        "stop that program first, or pass -U to read it all the same"
    } else {
        "stop that program first"
    };
    // QEMU's words: a byte of what somebody does not share, or one of what somebody does.
    let bit = byte - if byte >= NOT_SHARED { NOT_SHARED } else { HELD };
    let what = match bit {
        READ => "consistent read",
        WRITE => "write",
        RESIZE => "resize",
        _ => "write unchanged",
    };
    let shared = if byte >= NOT_SHARED { "" } else { "shared " };
    Error::new(ErrorKind::Locked, format!("{who} {doing} (failed to get the lock)"))
        .hint(hint)
        .known_as(format!("Failed to get {shared}\"{what}\" lock"))
}

/// Finds another process that has this file open: a lock of an open file description has no process of its own.
fn holder_of(file: &File) -> Option<i32> {
    let wanted = file.metadata().ok()?;
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(name) =
            name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()) && *name != own)
        else {
            continue;
        };
        let Ok(fds) = std::fs::read_dir(format!("/proc/{name}/fd")) else { continue };
        for fd in fds.flatten() {
            if std::fs::metadata(fd.path()).is_ok_and(|m| m.dev() == wanted.dev() && m.ino() == wanted.ino())
            {
                return name.parse().ok();
            }
        }
    }
    None
}

/// One byte's lock taken (`F_OFD_SETLK`), or asked about (`F_OFD_GETLK`: the answer is the holder, -1 if unknown).
#[allow(unsafe_code)]
fn ofd_lock(file: &File, command: i32, kind: i16, byte: i64) -> io::Result<Option<i32>> {
    // SAFETY: `flock` is a plain C struct for which all zeros is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = byte;
    lock.l_len = 1;
    // SAFETY: both commands take one pointer to a `flock`, which lives across the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok((lock.l_type != libc::F_UNLCK as i16 && command == libc::F_OFD_GETLK).then_some(lock.l_pid))
}
