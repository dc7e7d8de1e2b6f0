//! The archive of a chain: a tar file with the members `0.vhd` (the leaf) to `n.vhd` (the base), and nothing else.

use std::collections::VecDeque;
use std::io::{self, Cursor, Read};
use std::time::SystemTime;

use cowhand_core::{Error, ErrorKind, Result};
use tar::{EntryType, Header, PaxExtensions};

use super::pipe::read_full;

/// Deeper chains are not opened either.
pub(super) const MOST: usize = 200;
const BLOCK: u64 = 512;
/// Longest name, and longest list of a member's properties, that is taken into memory.
const LONGEST: u64 = 1 << 20;

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its place in the chain.
    pub(super) number: usize,
    /// The file name's end, without the dot.
    pub(super) extension: String,
    /// Bytes.
    pub(super) len: u64,
}

impl Member {
    pub(super) fn name(&self) -> String {
        member_name(self.number, &self.extension)
    }
}

pub(super) fn member_name(number: usize, extension: &str) -> String {
    format!("{number}.{extension}")
}

/// Goes from member to member, and reads the bytes of the one it stands at.
pub(super) struct Members<R> {
    from: R,
    /// Bytes of the member that were not read, and those that fill its last block.
    left: u64,
    fill: u64,
}

impl<R: Read> Members<R> {
    pub(super) fn new(from: R) -> Members<R> {
        Members { from, left: 0, fill: 0 }
    }

    /// The next member. `None`: the archive is at its end, and was read to there.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        // What GNU tar and pax put before the member that it is about.
        let (mut long_name, mut pax_size) = (None, None);
        loop {
            self.skip(self.left + self.fill)?;
            (self.left, self.fill) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let bad = |what: &str| Error::corrupt("tar header", what.to_owned());
            let stated = header.entry_size().map_err(|_| bad("the size is no number"))?;
            let kind = header.entry_type();
            let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
            self.left = if is_file { pax_size.take().unwrap_or(stated) } else { stated };
            let whole = self.left.checked_next_multiple_of(BLOCK).ok_or_else(|| bad("the size is absurd"))?;
            self.fill = whole - self.left;
            match kind {
                EntryType::XHeader => {
                    let text = self.small()?;
                    for property in PaxExtensions::new(&text) {
                        let property =
                            property.map_err(|_| bad("a member's properties are no pax records"))?;
                        match property.key_bytes() {
                            b"path" => long_name = Some(property.value_bytes().to_vec()),
                            b"size" => {
                                let size = property.value().ok().and_then(|text| text.parse().ok());
                                pax_size = Some(size.ok_or_else(|| bad("the size is no number"))?);
                            }
                            key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                            _ => {}
                        }
                    }
                }
                EntryType::XGlobalHeader => drop(self.small()?),
                EntryType::GNULongName => {
                    let mut name = self.small()?;
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    long_name = Some(name);
                }
                EntryType::GNUSparse => return Err(sparse()),
                kind => {
                    let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    let name = String::from_utf8_lossy(&name).into_owned();
                    if kind.is_dir() && matches!(name.as_str(), "." | "./") {
                        continue;
                    }
                    let refused = |what: &str| {
                        Err(Error::unsupported(format!("the archive holds '{name}', {what}"))
                            .hint("only the files 0.vhd, 1.vhd and so on may be in it"))
                    };
                    if !is_file {
                        return refused("which is no plain file");
                    }
                    let Some((number, extension)) = parse(name.strip_prefix("./").unwrap_or(&name)) else {
                        return refused("which is no member of a chain");
                    };
                    return Ok(Some(Member { number, extension, len: self.left }));
                }
            }
        }
    }

    /// The next header; `None`: the end mark, and all that follows it was read.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let n = read_full(&mut self.from, bytes)?;
        if n < bytes.len() {
            return Err(Error::new(ErrorKind::Changed, "the archive ends before its end mark"));
        }
        if bytes.iter().all(|byte| *byte == 0) {
            // What is packed is whole only where its last byte is.
            io::copy(&mut self.from, &mut io::sink())
                .map_err(|error| Error::io("cannot read the stream", error))?;
            return Ok(None);
        }
        let sum: u32 = bytes
            .iter()
            .zip(0..)
            .map(|(byte, at)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(Error::corrupt("tar header", "the checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// All of a member that is about the next one.
    fn small(&mut self) -> Result<Vec<u8>> {
        if self.left > LONGEST {
            return Err(Error::corrupt("tar header", "a name is absurdly long"));
        }
        let mut bytes = vec![0; self.left as usize];
        self.read_exact(&mut bytes).map_err(|error| Error::io("cannot read the stream", error))?;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = io::copy(&mut self.from.by_ref().take(len), &mut io::sink())
            .map_err(|error| Error::io("cannot read the stream", error))?;
        if skipped < len { Err(short()) } else { Ok(()) }
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.from.read(&mut buf[..most])?; // never out of bounds: at most its length
        if n == 0 && most > 0 {
            return Err(short().into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn short() -> Error {
    Error::new(ErrorKind::Changed, "the archive ends in the middle of a member")
}

fn sparse() -> Error {
    Error::unsupported("the archive holds a file in tar's sparse form").hint("make it without tar's -S")
}

/// `12.vhd` is (12, vhd).
fn parse(name: &str) -> Option<(usize, String)> {
    let (number, extension) = name.split_once('.')?;
    let digits =
        number.bytes().all(|byte| byte.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
    let plain = !extension.is_empty() && extension.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let number = number.parse().ok().filter(|number| *number < MOST)?;
    (digits && plain).then(|| (number, extension.to_ascii_lowercase()))
}

/// An archive that is made while it is read: the members in this order, each of exactly so many bytes.
#[derive(Default)]
pub(super) struct Archive<'a> {
    parts: VecDeque<Box<dyn Read + Send + 'a>>,
}

impl<'a> Archive<'a> {
    /// Adds a member.
    pub(super) fn add(&mut self, name: &str, body: impl Read + Send + 'a, len: u64) -> Result<()> {
        let mut header = Header::new_gnu();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        header.set_path(name).map_err(|error| Error::io("cannot name a member", error))?;
        header.set_size(len);
        header.set_mode(0o644);
        header.set_mtime(now);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        self.parts.push_back(Box::new(Cursor::new(header.as_bytes().to_vec())));
        self.parts.push_back(Box::new(body));
        self.zeros(len.next_multiple_of(BLOCK) - len);
        Ok(())
    }

    /// The bytes.
    pub(super) fn finish(mut self) -> impl Read + Send + 'a {
        self.zeros(2 * BLOCK);
        self
    }

    fn zeros(&mut self, len: u64) {
        self.parts.push_back(Box::new(io::repeat(0).take(len)));
    }
}

impl Read for Archive<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(part) = self.parts.front_mut() {
            let n = part.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            self.parts.pop_front();
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_a_chain_have_names_here() {
        assert_eq!(parse("0.vhd"), Some((0, "vhd".to_owned())));
        assert_eq!(parse("12.VHD"), Some((12, "vhd".to_owned())));
        for bad in [
            "",
            ".vhd",
            "00.vhd",
            "01.vhd",
            "+1.vhd",
            "1.",
            "1",
            "../0.vhd",
            "/0.vhd",
            "0.vhd/x",
            "200.vhd",
            "0.v.d",
            "99999999999999999999.vhd",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut archive = Archive::default();
        let large = 9_u64 << 30;
        archive.add("0.vhd", &b"leaf"[..], 4).unwrap();
        archive.add("1.vhd", &[5; 1024][..], 1024).unwrap();
        let mut bytes = Vec::new();
        archive.finish().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 512 + 512 + 512 + 1024 + 1024);
        let mut members = Members::new(bytes.as_slice());
        let first = members.next().unwrap().unwrap();
        assert_eq!((first.name().as_str(), first.len), ("0.vhd", 4));
        let mut body = Vec::new();
        members.read_to_end(&mut body).unwrap();
        assert_eq!(body, b"leaf");
        // Nobody need read a member.
        assert_eq!(members.next().unwrap().unwrap().number, 1);
        assert_eq!(members.next().unwrap(), None);
        for cut in [0, 511, 600, 1025, 2000, 2560] {
            let mut members = Members::new(&bytes[..cut]);
            let error = loop {
                match members.next() {
                    Ok(next) => assert!(next.is_some(), "cut at {cut}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::Changed, "cut at {cut}: {error}");
        }
        // Sizes that octal digits cannot say.
        let mut archive = Archive::default();
        archive.add("0.vhd", io::empty(), large).unwrap();
        let mut members = Members::new(archive.finish());
        assert_eq!(members.next().unwrap().unwrap().len, large);
    }
}
