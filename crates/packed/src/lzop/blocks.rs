//! What stands around the packed bytes: the headers of parts and of blocks.

use std::io::{self, Read};
use std::ops::Deref;

use cowhand_core::{Error, ErrorKind, Forward, Result, Storage};
use libdeflater::{adler32, crc32};

/// What each part begins with.
pub(super) const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];

/// The first version whose headers are as they are here, and the one that knows all of it.
const OLDEST: u16 = 0x0900;
pub(super) const NEWEST: u16 = 0x1040;

/// The first version that has a level and a time of 64 bits, and says which version is needed to read.
pub(super) const LEVELS: u16 = 0x0940;

// Bits of the flags.
pub(super) const ADLER_OF_DATA: u32 = 0x1;
const ADLER_OF_PACKED: u32 = 0x2;
const CRC_OF_DATA: u32 = 0x100;
const CRC_OF_PACKED: u32 = 0x200;
const EXTRA_FIELD: u32 = 0x40;
const FILTER: u32 = 0x800;
const CRC_OF_HEADER: u32 = 0x1000;

/// Ways of packing that are LZO1X: they differ in how hard they look.
pub(super) const METHODS: std::ops::RangeInclusive<u8> = 1..=3;

/// Unpacked bytes of a block, at most.
const LONGEST: u32 = 64 << 20;

/// Bytes of an extra field, at most: no known program writes one.
const LONGEST_EXTRA: u32 = 1 << 20;

/// A storage's bytes from a place on; what is passed over is not read.
pub(super) struct Steps<S> {
    pub(super) file: S,
    pub(super) at: u64,
}

impl<'s, S: Deref<Target = dyn Storage + 's>> Read for Steps<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.len()?.saturating_sub(self.at).min(buf.len() as u64) as usize;
        self.file.read_at(self.at, &mut buf[..n])?; // never out of bounds: not longer than it
        self.at += n as u64;
        Ok(n)
    }
}

impl<'s, S: Deref<Target = dyn Storage + 's> + Send> Forward for Steps<S> {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        let end = self.at.checked_add(len).filter(|end| self.file.len().is_ok_and(|len| *end <= len));
        self.at = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// The blocks of a file's parts, up to the packed bytes of each.
pub(super) struct Blocks<R> {
    pub(super) from: R,
    /// Bytes of the file that were read.
    pub(super) at: u64,
    /// The flags of the part that is being read.
    pub(super) flags: Option<u32>,
    /// A part was seen: the file may end before another.
    begun: bool,
}

/// What a block's header says.
pub(super) struct Block {
    /// Where the header begins.
    pub(super) at: u64,
    pub(super) flags: u32,
    pub(super) unpacked: usize,
    pub(super) packed: usize,
    pub(super) adler_of_data: Option<u32>,
    pub(super) crc_of_data: Option<u32>,
    pub(super) adler_of_packed: Option<u32>,
    pub(super) crc_of_packed: Option<u32>,
}

impl<R: Read> Blocks<R> {
    pub(super) fn new(from: R) -> Blocks<R> {
        Blocks { from, at: 0, flags: None, begun: false }
    }

    /// From the header of a block on, which stands at `at` in a part with these flags.
    pub(super) fn within_part(from: R, at: u64, flags: u32) -> Blocks<R> {
        Blocks { from, at, flags: Some(flags), begun: true }
    }

    /// What comes next begins a part, or is a block of one, whose flags are taken to be the usual ones if they are not known.
    pub(super) fn begin(&mut self, part: bool) {
        self.begun = true;
        self.flags = if part { None } else { Some(self.flags.unwrap_or(ADLER_OF_DATA)) };
    }

    /// The next block's header, once the bytes of the one before were read or passed over.
    pub(super) fn next(&mut self) -> Result<Option<Block>> {
        loop {
            let flags = match self.flags {
                Some(flags) => flags,
                None => match self.part()? {
                    Some(flags) => *self.flags.insert(flags),
                    None => return Ok(None),
                },
            };
            let at = self.at;
            let unpacked = self.number()?;
            if unpacked == 0 {
                self.flags = None;
                continue;
            }
            let packed = self.number()?;
            if unpacked > LONGEST {
                let message = format!("it unpacks to {unpacked} bytes, more than {LONGEST}");
                return Err(Error::corrupt("block of an lzop file", message).at(at));
            }
            if packed == 0 || packed > unpacked {
                let message = format!("it has {packed} bytes, and unpacks to {unpacked}");
                return Err(Error::corrupt("block of an lzop file", message).at(at));
            }
            let mut sum = |bit| if flags & bit == 0 { Ok(None) } else { self.number().map(Some) };
            let (adler_of_data, crc_of_data) = (sum(ADLER_OF_DATA)?, sum(CRC_OF_DATA)?);
            let (mut adler_of_packed, mut crc_of_packed) = (None, None);
            // What is stored as it is has no sums of its own.
            if packed < unpacked {
                (adler_of_packed, crc_of_packed) = (sum(ADLER_OF_PACKED)?, sum(CRC_OF_PACKED)?);
            }
            let (unpacked, packed) = (unpacked as usize, packed as usize);
            return Ok(Some(Block {
                at,
                flags,
                unpacked,
                packed,
                adler_of_data,
                crc_of_data,
                adler_of_packed,
                crc_of_packed,
            }));
        }
    }

    /// The flags of the part that begins here; nothing where the file ends.
    fn part(&mut self) -> Result<Option<u32>> {
        let at = self.at;
        let mut magic = Vec::with_capacity(MAGIC.len());
        self.from.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(reading)?;
        self.at += magic.len() as u64;
        // Zeros to the end are what a tape was filled up with.
        if self.begun && magic.iter().all(|byte| *byte == 0) && self.only_zeros()? {
            return Ok(None);
        }
        if magic != MAGIC {
            return Err(match (self.begun, MAGIC.starts_with(&magic)) {
                (_, true) => cut(self.at),
                (true, _) => Error::corrupt("lzop file", "something else follows its end").at(at),
                (false, _) => Error::corrupt("lzop file", "it does not begin as one").at(at),
            });
        }
        self.begun = true;

        let mut head = Head { blocks: self, bytes: Vec::with_capacity(64) };
        let version = head.u16()?;
        if version < OLDEST {
            return Err(Error::unsupported(format!(
                "lzop's version {version:#06x} wrote the file, which is too old"
            ))
            .field("header of an lzop file")
            .at(at));
        }
        let _library = head.u16()?;
        let newer = version >= LEVELS;
        let needed = if newer { head.u16()? } else { 0 };
        let method = head.u8()?;
        let _level = if newer { head.u8()? } else { 0 };
        let flags = head.u32()?;
        let filter = if flags & FILTER != 0 { head.u32()? } else { 0 };
        let _mode = head.u32()?;
        let _time = (head.u32()?, if newer { head.u32()? } else { 0 });
        let name = head.u8()?;
        head.take(usize::from(name))?;
        head.sum(flags, "header of an lzop file", at)?;

        let unsupported = |what: String| Err(Error::unsupported(what).field("header of an lzop file").at(at));
        if needed > NEWEST {
            return unsupported(format!(
                "it needs version {needed:#06x} of lzop, and {NEWEST:#06x} is known"
            ));
        }
        if !METHODS.contains(&method) {
            return unsupported(format!("the blocks are packed by method {method}, not LZO1X"));
        }
        if filter != 0 {
            return unsupported(format!("the bytes went through filter {filter}"));
        }
        if flags & EXTRA_FIELD != 0 {
            let at = self.at;
            let mut extra = Head { blocks: self, bytes: Vec::new() };
            let len = extra.u32()?;
            if len > LONGEST_EXTRA {
                let message = format!("it has {len} bytes, more than {LONGEST_EXTRA}");
                return Err(Error::corrupt("extra field of an lzop file", message).at(at));
            }
            extra.take(len as usize)?;
            extra.sum(flags, "extra field of an lzop file", at)?;
        }
        Ok(Some(flags))
    }

    /// Whether nothing but zeros is left.
    fn only_zeros(&mut self) -> Result<bool> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            match self.from.read(&mut bytes) {
                Ok(0) => return Ok(true),
                Ok(n) if bytes.iter().take(n).all(|byte| *byte == 0) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(reading(error)),
            }
        }
    }

    /// Appends a block's packed bytes to `packed`.
    pub(super) fn take(&mut self, len: usize, packed: &mut Vec<u8>) -> Result<()> {
        let n = self.from.by_ref().take(len as u64).read_to_end(packed).map_err(reading)?;
        self.at += n as u64;
        if n < len { Err(cut(self.at)) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<u32> {
        let mut number = [0; 4];
        self.exact(&mut number)?;
        Ok(u32::from_be_bytes(number))
    }

    fn exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.from.read_exact(bytes).map_err(|error| match error.get_ref() {
            None if error.kind() == io::ErrorKind::UnexpectedEof => cut(self.at),
            _ => reading(error),
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl<R: Forward> Blocks<R> {
    /// Passes over a block's packed bytes.
    pub(super) fn pass(&mut self, len: usize) -> Result<()> {
        self.from.skip(len as u64).map_err(|error| match error.get_ref() {
            None if error.kind() == io::ErrorKind::UnexpectedEof => cut(self.at),
            _ => reading(error),
        })?;
        self.at += len as u64;
        Ok(())
    }
}

/// Whether `head` may begin the header of a block, that has at most `longest` bytes and can be verified.
pub(super) fn may_be_block(head: &[u8], flags: Option<u32>, longest: usize) -> bool {
    let number =
        |at| head.get(at..).and_then(|rest| rest.first_chunk()).map(|number| u32::from_be_bytes(*number));
    let (Some(unpacked), Some(packed)) = (number(0), number(4)) else { return false };
    let summed = flags.is_none_or(|flags| flags & (ADLER_OF_DATA | CRC_OF_DATA) != 0);
    packed > 0 && packed <= unpacked && unpacked as usize <= longest && (summed || packed < unpacked)
}

fn reading(error: io::Error) -> Error {
    Error::io("reading an lzop file", error)
}

fn cut(at: u64) -> Error {
    Error::new(ErrorKind::Changed, "the lzop file ends before its end").at(at)
}

/// A header that is read field by field, and has a checksum of them behind it.
struct Head<'a, R> {
    blocks: &'a mut Blocks<R>,
    bytes: Vec<u8>,
}

impl<R: Read> Head<'_, R> {
    fn field<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut field = [0; N];
        self.blocks.exact(&mut field)?;
        self.bytes.extend(field);
        Ok(field)
    }

    fn u8(&mut self) -> Result<u8> {
        self.field().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.field().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.field().map(u32::from_be_bytes)
    }

    fn take(&mut self, len: usize) -> Result<()> {
        self.blocks.take(len, &mut self.bytes)
    }

    /// Holds the checksum that follows against the fields of what begins at `at`.
    fn sum(self, flags: u32, what: &str, at: u64) -> Result<()> {
        let stored = self.blocks.number()?;
        let found = if flags & CRC_OF_HEADER != 0 { crc32(&self.bytes) } else { adler32(&self.bytes) };
        if stored != found {
            let message = format!("its checksum is {found:#010x}, and {stored:#010x} is stored");
            return Err(Error::corrupt(what, message).at(at));
        }
        Ok(())
    }
}
