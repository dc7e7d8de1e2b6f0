//! Where in a packed file unpacking can begin.

use cowhand_core::{Error, Result};
use flate2::Crc;

/// A place where unpacking can begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Offset in the packed file, in bytes.
    pub packed: u64,
    /// Offset of the bytes that come out there.
    pub unpacked: u64,
    /// What else the packing has to know to begin there: nothing, or the bytes that went before, made small. At most
    /// 1 MiB.
    pub state: Vec<u8>,
}

/// All of them, ascending; the first is where the unpacked bytes begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeekTable {
    /// Unpacked bytes of the whole file.
    pub len: u64,
    /// The places.
    pub points: Vec<Point>,
}

/// What lies between a point and the next one, or the end.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Where it begins.
    pub from: &'a Point,
    /// Unpacked bytes.
    pub len: u64,
    /// Where the next point stands in the packed file. `None`: there is no other.
    pub next: Option<u64>,
}

/// What the kept bytes begin with; the last one is their version.
const MAGIC: [u8; 8] = *b"CWSEEK\0\x01";
/// Longest state of one point.
const LONGEST_STATE: u64 = 1 << 20;
/// Bytes that the points of one table may take in memory.
const MOST: usize = 64 << 20;

impl SeekTable {
    /// The span that the unpacked byte `at` lies in, by its number. `None`: it lies behind the end.
    pub fn find(&self, at: u64) -> Option<usize> {
        let behind = self.points.partition_point(|point| point.unpacked <= at);
        if at < self.len { behind.checked_sub(1) } else { None }
    }

    /// The span of that number.
    pub fn span(&self, number: usize) -> Option<Span<'_>> {
        let from = self.points.get(number)?;
        let next = self.points.get(number + 1);
        let end = next.map_or(self.len, |next| next.unpacked);
        Some(Span { from, len: end.checked_sub(from.unpacked)?, next: next.map(|next| next.packed) })
    }

    /// Looks whether it can be one of a packed file of `file_len` bytes.
    pub fn check(&self, file_len: u64) -> Result<()> {
        let bad = |what: &str| Err(Error::corrupt("seek table", what));
        if self.points.first().map_or(self.len, |first| first.unpacked) != 0 {
            return bad("it does not begin with the first byte");
        }
        let mut ends = self.points.iter().skip(1).map(|next| (next.packed, next.unpacked));
        for point in &self.points {
            let (packed, unpacked) = ends.next().unwrap_or((file_len, self.len));
            if packed <= point.packed || unpacked <= point.unpacked {
                return bad("its places do not ascend, or lie behind the end");
            }
        }
        Ok(())
    }

    /// To be kept, for [`SeekTable::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, self.len);
        put(&mut bytes, self.points.len() as u64);
        let (mut packed, mut unpacked) = (0_u64, 0_u64);
        for point in &self.points {
            put(&mut bytes, point.packed.wrapping_sub(packed));
            put(&mut bytes, point.unpacked.wrapping_sub(unpacked));
            put(&mut bytes, point.state.len() as u64);
            bytes.extend(&point.state);
            (packed, unpacked) = (point.packed, point.unpacked);
        }
        bytes.extend(sum(&bytes));
        bytes
    }

    /// One that was kept. It came from outside: all it says is looked at, but for what [`SeekTable::check`] needs the
    /// file's length for.
    pub fn from_bytes(bytes: &[u8]) -> Result<SeekTable> {
        let bad = |what: &str| Error::corrupt("seek table", what);
        let (body, stored) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("it is cut"))?;
        let mut rest = body.strip_prefix(&MAGIC).ok_or_else(|| bad("it is none, or of another version"))?;
        if sum(body) != *stored {
            return Err(bad("its checksum is wrong"));
        }
        let mut number = || take(&mut rest).ok_or_else(|| bad("it is cut"));
        let len = number()?;
        let count = number()?;
        // Each takes three bytes at the least, so that no more are made room for than there can be.
        let count = usize::try_from(count).ok().filter(|count| *count <= rest.len() / 3);
        let count = count.ok_or_else(|| bad("it is cut"))?;
        // A place takes more memory than it may take here.
        if count > MOST / size_of::<Point>() {
            return Err(bad("it has more places than are ever kept"));
        }
        let mut points = Vec::with_capacity(count);
        let (mut packed, mut unpacked) = (0_u64, 0_u64);
        for _ in 0..count {
            let mut number = || take(&mut rest).ok_or_else(|| bad("it is cut"));
            let far = || bad("a place lies behind all files");
            packed = packed.checked_add(number()?).ok_or_else(far)?;
            unpacked = unpacked.checked_add(number()?).ok_or_else(far)?;
            let state = number()?;
            if state > LONGEST_STATE {
                return Err(bad("a state is absurdly long"));
            }
            let (state, behind) = rest.split_at_checked(state as usize).ok_or_else(|| bad("it is cut"))?;
            rest = behind;
            points.push(Point { packed, unpacked, state: state.to_vec() });
        }
        if !rest.is_empty() {
            return Err(bad("something follows it"));
        }
        let table = SeekTable { len, points };
        table.check(u64::MAX)?;
        Ok(table)
    }
}

/// Puts a number in as many groups of seven bits as it needs, the lowest first.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes one off. `None`: there is none whole.
fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let group = u64::from(byte & 0x7f);
        if (group << shift) >> shift != group {
            return None;
        }
        number |= group << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn sum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Collects points, and keeps so few of them that the table stays small however long the file is.
#[derive(Debug)]
pub(crate) struct Points {
    list: Vec<Point>,
    /// Least unpacked bytes from one to the next.
    apart: u64,
    /// Bytes of memory.
    size: usize,
}

impl Points {
    /// `apart`: the least unpacked bytes from one to the next, at first.
    pub(crate) fn new(apart: u64) -> Points {
        Points { list: Vec::new(), apart, size: 0 }
    }

    /// Whether one for the unpacked byte `at` would be kept.
    pub(crate) fn wants(&self, at: u64) -> bool {
        self.list.last().is_none_or(|last| at.saturating_sub(last.unpacked) >= self.apart)
    }

    /// Keeps it, if it is wanted.
    pub(crate) fn add(&mut self, point: Point) {
        if !self.wants(point.unpacked) {
            return;
        }
        let size = |point: &Point| size_of::<Point>() + point.state.len();
        self.size += size(&point);
        self.list.push(point);
        if self.size > MOST {
            self.apart = self.apart.saturating_mul(2);
            let mut last = None;
            let apart = self.apart;
            self.list.retain(|point| {
                let keep = last.is_none_or(|last| point.unpacked - last >= apart);
                last = if keep { Some(point.unpacked) } else { last };
                keep
            });
            self.size = self.list.iter().map(size).sum();
        }
    }

    /// The table of a file of `len` unpacked bytes.
    pub(crate) fn table(mut self, len: u64) -> SeekTable {
        while self.list.last().is_some_and(|last| last.unpacked >= len) {
            self.list.pop();
        }
        SeekTable { len, points: self.list }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(packed: u64, unpacked: u64, state: &[u8]) -> Point {
        Point { packed, unpacked, state: state.to_vec() }
    }

    fn table() -> SeekTable {
        let points = vec![point(0, 0, b""), point(77, 1 << 20, b"abc"), point(1 << 40, 1 << 41, b"")];
        SeekTable { len: 1 << 50, points }
    }

    #[test]
    fn what_is_kept_is_what_was_there() {
        for table in [SeekTable::default(), table()] {
            let bytes = table.to_bytes();
            assert_eq!(SeekTable::from_bytes(&bytes).unwrap(), table);
            for cut in 0..bytes.len() {
                SeekTable::from_bytes(&bytes[..cut]).unwrap_err();
            }
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x10;
                SeekTable::from_bytes(&bytes).unwrap_err();
            }
        }
        // Whoever makes one also makes its checksum right.
        let mut state = 7_u64;
        for _ in 0..20_000 {
            let mut bytes = table().to_bytes();
            bytes.truncate(bytes.len() - 4);
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = 8 + (state >> 33) as usize % (bytes.len() - 8);
                bytes[at] = (state >> 25) as u8;
            }
            bytes.extend(sum(&bytes));
            if let Ok(table) = SeekTable::from_bytes(&bytes) {
                table.check(u64::MAX).unwrap();
            }
        }
    }

    #[test]
    fn spans_follow_each_other() {
        let table = table();
        table.check((1 << 40) + 1).unwrap();
        table.check(1 << 40).unwrap_err();
        assert_eq!(
            (table.find(0), table.find((1 << 20) - 1), table.find(1 << 20)),
            (Some(0), Some(0), Some(1))
        );
        assert_eq!((table.find((1 << 50) - 1), table.find(1 << 50)), (Some(2), None));
        let span = table.span(1).unwrap();
        assert_eq!((span.from.packed, span.len, span.next), (77, (1 << 41) - (1 << 20), Some(1 << 40)));
        let span = table.span(2).unwrap();
        assert_eq!((span.len, span.next), ((1 << 50) - (1 << 41), None));
        assert!(table.span(3).is_none());
        assert_eq!(SeekTable::default().find(0), None);
    }

    #[test]
    fn more_places_than_are_ever_kept_are_refused() {
        let most = MOST / size_of::<Point>();
        for count in [most, most + 1] {
            let points: Vec<Point> = (0..count as u64).map(|at| point(at, at, b"")).collect();
            let bytes = SeekTable { len: count as u64, points }.to_bytes();
            assert_eq!(SeekTable::from_bytes(&bytes).is_ok(), count == most);
        }
    }

    #[test]
    fn a_table_stays_small() {
        let mut points = Points::new(1);
        let most = MOST / size_of::<Point>();
        for at in 0..3 * most as u64 {
            points.add(point(at, at, b""));
        }
        assert!(points.list.len() <= most && points.list.len() > most / 4);
        let table = points.table(3 * most as u64);
        table.check(u64::MAX).unwrap();
        assert_eq!(table.points[0].unpacked, 0);
    }
}
