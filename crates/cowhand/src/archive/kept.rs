//! The index of an archive, kept in a file beside it: `ARCHIVE.index`.
//!
//! It says of which archive it is (length, time of change, checksum of the front), and is used for no other. It came from
//! outside as the archive did: what is in it is looked at as the archive is.

use std::path::Path;
use std::sync::Arc;

use cowhand_core::{Access, Cache, Error, ErrorKind, FileStorage, Identity, Lock, Result, Storage};
use cowhand_packed::{Packing, SeekTable};
use zerocopy::byteorder::little_endian::{I128, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::target::Target;

/// What is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Of a packed archive, where unpacking can begin.
    pub(crate) table: Option<Arc<SeekTable>>,
    /// As [`ArchiveIndex::to_bytes`](cowhand_core::ArchiveIndex::to_bytes) gave it.
    pub(crate) index: Vec<u8>,
}

const MAGIC: [u8; 8] = *b"COWHDIDX";
const VERSION: u32 = 1;
/// Bytes of the archive's front that are summed.
const HEAD: u64 = 64 << 10;
/// A longer one is not read.
const MOST: u64 = 256 << 20;

/// The front of the file; the table's bytes and the index's follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    /// CRC-32C of all that follows this field.
    sum: U32,
    of: Of,
    table_len: U64,
    index_len: U64,
}

/// Which archive, in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Of {
    len: U64,
    mtime_ns: I128,
    /// CRC-32C of its first 64 KiB.
    head: U32,
    /// The name of how it is packed, filled up with zeros.
    packing: [u8; 8],
}

impl Of {
    fn archive(file: &dyn Storage, identity: Identity, packing: Option<&dyn Packing>) -> Result<Of> {
        let mut head = vec![0; identity.len.min(HEAD) as usize];
        file.read_at(0, &mut head).map_err(|error| Error::io("cannot read its head", error))?;
        let mut name = [0; 8];
        let shown = packing.map_or("", |packing| packing.name());
        name.iter_mut().zip(shown.bytes()).for_each(|(to, from)| *to = from);
        Ok(Of {
            len: identity.len.into(),
            mtime_ns: identity.mtime_ns.into(),
            head: crc32c::crc32c(&head).into(),
            packing: name,
        })
    }
}

/// Bytes in front of those that are summed.
const BEFORE_SUM: usize = std::mem::offset_of!(Raw, of);

impl Kept {
    /// What is kept at `path` for the archive `file`. `None`: nothing that is of use.
    pub(crate) fn load(
        path: &Path,
        file: &dyn Storage,
        identity: Identity,
        packing: Option<&dyn Packing>,
    ) -> Option<Kept> {
        let kept = FileStorage::open(path, Access::Read, Lock::None, Cache::Writeback).ok()?;
        let len = kept.len().ok().filter(|len| *len <= MOST)?;
        let mut raw = Raw::new_zeroed();
        kept.read_at(0, raw.as_mut_bytes()).ok()?;
        // Of what is about something else no more is read.
        if (raw.magic, raw.version.get()) != (MAGIC, VERSION)
            || raw.of != Of::archive(file, identity, packing).ok()?
        {
            return None;
        }
        let mut bytes = vec![0; len as usize];
        kept.read_at(0, &mut bytes).ok()?;
        let rest = bytes.get(size_of::<Raw>()..)?;
        if raw.sum.get() != crc32c::crc32c(bytes.get(BEFORE_SUM..)?) {
            return None;
        }
        let (table, index) = rest.split_at_checked(usize::try_from(raw.table_len.get()).ok()?)?;
        if index.len() as u64 != raw.index_len.get() {
            return None;
        }
        let table = match packing {
            Some(_) => Some(Arc::new(SeekTable::from_bytes(table).ok()?)),
            None => None,
        };
        Some(Kept { table, index: index.to_vec() })
    }

    /// Keeps it at `path`, whole or not at all. Nothing is kept of an archive that changed meanwhile. Errors: another file
    /// bears the name; it cannot be written.
    pub(crate) fn save(
        &self,
        path: &Path,
        file: &dyn Storage,
        identity: Identity,
        packing: Option<&dyn Packing>,
    ) -> Result<()> {
        let named = |error: Error| error.image(path.display());
        let now = file.identity().map_err(|error| Error::io("cannot look at", error))?;
        if now != identity {
            return Ok(());
        }
        refuse_another(path)?;
        let table = self.table.as_ref().map(|table| table.to_bytes()).unwrap_or_default();
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            sum: 0.into(),
            of: Of::archive(file, identity, packing)?,
            table_len: (table.len() as u64).into(),
            index_len: (self.index.len() as u64).into(),
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.extend_from_slice(&table);
        bytes.extend_from_slice(&self.index);
        raw.sum = crc32c::crc32c(bytes.get(BEFORE_SUM..).unwrap_or_default()).into();
        let (front, _) = bytes.split_at_mut(size_of::<Raw>());
        front.copy_from_slice(raw.as_bytes());
        let target = Target::begin(path, Cache::Writeback)?;
        let written = target.storage().write_at(0, &bytes);
        written.map_err(|error| named(Error::io("cannot write", error)))?;
        target.finish()
    }
}

/// What is no index is not replaced by one.
fn refuse_another(path: &Path) -> Result<()> {
    // Who may put a link beside the archive must not choose which file is written.
    if path.is_symlink() {
        return Err(Error::new(ErrorKind::Exists, "is a symbolic link, and no index is written through one")
            .hint("remove it, or leave out --keep-index")
            .image(path.display()));
    }
    let Ok(there) = FileStorage::open(path, Access::Read, Lock::None, Cache::Writeback) else {
        return Ok(());
    };
    let mut magic = [0; MAGIC.len()];
    if there.is_empty().unwrap_or(false) || there.read_at(0, &mut magic).is_ok() && magic == MAGIC {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Exists, "is there already, and is no index of an archive")
        .hint("give it another name, or leave out --keep-index")
        .image(path.display()))
}
