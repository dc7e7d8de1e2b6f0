//! Where in a gzip file inflating can begin: at a member's front, and between two deflate blocks for who has the bytes
//! that came out before.
//!
//! A point's state is a CRC-32 of all that comes out up to the next point, for what is read at random is to be verified
//! too. Between two blocks there follow how many bits of the byte before were not used, those bits, and the window, packed.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Forward, Result, Storage};
use flate2::Crc;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress, inflate_flags};

use crate::gzip::follows;
use crate::part::Part;
use crate::table::Points;
use crate::{Point, SeekTable, Span, Survey};

/// How far back a deflate block may repeat.
const WINDOW: usize = 32 << 10;

/// Bytes that are held: the window, and what is inflated behind it before it moves on.
const HELD: usize = 8 * WINDOW;

/// Bytes of the file that are read at a time.
const AHEAD: usize = 128 << 10;

/// Unpacked bytes between two points, at least: what has to be inflated before a byte is reached, on average twice.
const SPACING: u64 = 2 << 20;

/// Bytes of a checksum.
const SUM: usize = 4;

/// How hard a window is packed.
const STATE_LEVEL: i32 = 1;

/// Goes through a gzip file once, and collects points on the way.
pub(crate) fn survey(file: Arc<dyn Storage>) -> Box<dyn Survey> {
    let inflate = Inflate::new(Input::new(Part::new(file, 0, None), 0, AHEAD));
    Box::new(Surveyed { inflate, points: Points::new(SPACING), sums: Vec::new() })
}

/// Inflates `span` of a table that came of [`survey`], and verifies it.
pub(crate) fn unpack_from(file: Arc<dyn Storage>, span: Span<'_>) -> Result<Box<dyn Read + Send>> {
    let Point { packed, state, .. } = span.from;
    let input = Input::new(Part::new(file, *packed, None), *packed, AHEAD);
    let (sum, state) = state.split_first_chunk().ok_or_else(|| wrong("its state is cut"))?;
    let inflate = if state.is_empty() { Inflate::new(input) } else { Inflate::within(input, state)? };
    Ok(Box::new(Spanned { inflate, left: span.len, sum: Crc::new(), stored: u32::from_le_bytes(*sum) }))
}

fn wrong(what: &str) -> Error {
    Error::corrupt("point in a gzip file", what)
}

/// The bytes from a point to the next.
struct Spanned {
    inflate: Inflate,
    left: u64,
    sum: Crc,
    stored: u32,
}

impl Read for Spanned {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buf.len() as u64) as usize;
        let buf = &mut buf[..most]; // never out of bounds: at most its length
        let n = self.inflate.read(buf)?;
        self.sum.update(&buf[..n]); // never out of bounds: it was read into
        self.left -= n as u64;
        if n > 0 && self.left == 0 && self.sum.sum() != self.stored {
            let at = self.inflate.input.at;
            return Err(Error::corrupt("gzip file", "the bytes before do not have their checksum")
                .at(at)
                .into());
        }
        Ok(n)
    }
}

/// What is in a gzip file, and how far it was followed.
struct Inflate {
    input: Input,
    stage: Stage,
    deflate: Box<DecompressorOxide>,
    /// The member's last bytes, and those of them that were not given out yet: `given..end`.
    held: Box<[u8]>,
    given: usize,
    end: usize,
    /// Of the member's bytes so far; `None` where it did not begin here.
    crc: Option<Crc>,
    /// Unpacked bytes so far.
    unpacked: u64,
}

/// What comes next in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A member.
    Member,
    /// A deflate block.
    Block,
    /// More of a deflate block.
    Within,
    /// Nothing.
    End,
}

impl Inflate {
    fn new(input: Input) -> Inflate {
        Inflate {
            input,
            stage: Stage::Member,
            deflate: Box::default(),
            held: vec![0; HELD].into_boxed_slice(),
            given: 0,
            end: 0,
            crc: None,
            unpacked: 0,
        }
    }

    /// Between two blocks, as [`Inflate::between`] told.
    fn within(input: Input, state: &[u8]) -> Result<Inflate> {
        let Some(([bits, byte], packed)) = state.split_first_chunk() else {
            return Err(wrong("its state is cut"));
        };
        if *bits > 7 {
            return Err(wrong("more than 7 bits of a byte are left"));
        }
        let window = zstd::bulk::decompress(packed, WINDOW)
            .map_err(|_| wrong("what came before cannot be unpacked"))?;
        let mut inflate = Inflate::new(input);
        let to = inflate.held.get_mut(..window.len()).ok_or_else(|| wrong("too much came before"))?;
        to.copy_from_slice(&window);
        inflate.given = window.len();
        inflate.end = window.len();
        inflate.stage = Stage::Block;
        let boundary = BlockBoundaryState {
            num_bits: *bits,
            bit_buf: byte & !(u8::MAX << bits),
            ..BlockBoundaryState::default()
        };
        *inflate.deflate = DecompressorOxide::from_block_boundary_state(&boundary);
        Ok(inflate)
    }

    /// What has to be known to go on from between two blocks. `None`: it does not stand there.
    fn between(&self) -> Result<Option<Vec<u8>>> {
        let Some(boundary) = self.deflate.block_boundary_state() else { return Ok(None) };
        let window = self.held.get(self.end.saturating_sub(WINDOW)..self.end).unwrap_or_default();
        let packed = zstd::bulk::compress(window, STATE_LEVEL)
            .map_err(|error| Error::io("packing a window", error))?;
        Ok(Some([[boundary.num_bits, boundary.bit_buf].as_slice(), &packed].concat()))
    }

    /// Goes one step on, once all that is held was given out: into a member, or to where a block or the room ends.
    fn step(&mut self) -> Result<()> {
        match self.stage {
            Stage::End => {}
            Stage::Member => {
                if self.input.member()? {
                    *self.deflate = DecompressorOxide::default();
                    (self.given, self.end) = (0, 0);
                    self.crc = Some(Crc::new());
                    self.stage = Stage::Block;
                } else {
                    self.stage = Stage::End;
                }
            }
            Stage::Block | Stage::Within => self.inflate()?,
        }
        Ok(())
    }

    fn inflate(&mut self) -> Result<()> {
        const FLAGS: u32 = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF
            | inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
            | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        if self.end == self.held.len() {
            self.held.copy_within(HELD - WINDOW.., 0);
            self.end = WINDOW;
        }
        self.given = self.end;
        let ahead = self.input.ahead()?;
        let ends = ahead.is_empty();
        let (status, used, made) = decompress(&mut self.deflate, ahead, &mut self.held, self.end, FLAGS);
        self.input.pass(used);
        let bytes = self.held.get(self.end..self.end + made).unwrap_or_default();
        if let Some(crc) = &mut self.crc {
            crc.update(bytes);
        }
        self.end += made;
        self.unpacked += made as u64;
        self.stage = match status {
            TINFLStatus::NeedsMoreInput if ends && made == 0 => return Err(cut(self.input.at)),
            TINFLStatus::BlockBoundary => Stage::Block,
            TINFLStatus::HasMoreOutput | TINFLStatus::NeedsMoreInput => Stage::Within,
            TINFLStatus::Done => {
                self.input.trailer(self.crc.take())?;
                Stage::Member
            }
            _ => {
                return Err(Error::corrupt("deflate stream of a gzip file", "it cannot be inflated")
                    .at(self.input.at));
            }
        };
        Ok(())
    }

    /// Held bytes that were not given out yet.
    fn left(&self) -> &[u8] {
        self.held.get(self.given..self.end).unwrap_or_default()
    }

    fn give(&mut self, buf: &mut [u8]) -> usize {
        let left = self.left();
        let n = left.len().min(buf.len());
        buf[..n].copy_from_slice(&left[..n]); // never out of bounds: not longer than either
        self.given += n;
        n
    }
}

impl Read for Inflate {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.left().is_empty() && self.stage != Stage::End {
            self.step()?;
        }
        Ok(self.give(buf))
    }
}

/// The bytes of a gzip file, and the points that were passed.
struct Surveyed {
    inflate: Inflate,
    points: Points,
    /// Of the bytes from each point on, kept or not, to the one after it.
    sums: Vec<(u64, Crc)>,
}

impl Surveyed {
    /// Goes on until there are bytes to give out, or none are left.
    fn fill(&mut self) -> Result<()> {
        while self.inflate.left().is_empty() && self.inflate.stage != Stage::End {
            self.note()?;
            self.inflate.step()?;
            if let Some((_, sum)) = self.sums.last_mut() {
                sum.update(self.inflate.left());
            }
        }
        Ok(())
    }

    fn note(&mut self) -> Result<()> {
        let Inflate { unpacked, stage, .. } = self.inflate;
        if self.points.wants(unpacked) {
            let between = match stage {
                Stage::Member => Some(Vec::new()),
                Stage::Block => self.inflate.between()?,
                Stage::Within | Stage::End => None,
            };
            if let Some(between) = between {
                // The checksum comes at the end.
                let state = [[0; SUM].as_slice(), &between].concat();
                self.points.add(Point { packed: self.inflate.input.at, unpacked, state });
                self.sums.push((unpacked, Crc::new()));
            }
        }
        Ok(())
    }
}

impl Read for Surveyed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        Ok(self.inflate.give(buf))
    }
}

impl Forward for Surveyed {
    /// What is passed over is inflated as well, and verified.
    fn skip(&mut self, mut len: u64) -> io::Result<()> {
        while len > 0 {
            self.fill()?;
            let n = len.min(self.inflate.left().len() as u64);
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.inflate.given += n as usize;
            len -= n;
        }
        Ok(())
    }
}

impl Survey for Surveyed {
    fn finish(mut self: Box<Self>) -> Result<SeekTable> {
        while self.inflate.stage != Stage::End {
            self.inflate.given = self.inflate.end;
            self.fill()?;
        }
        let mut table = self.points.table(self.inflate.unpacked);
        for point in table.points.iter_mut().rev() {
            let mut sum = Crc::new();
            while let Some((from, mut before)) = self.sums.pop() {
                before.combine(&sum);
                sum = before;
                if from == point.unpacked {
                    break;
                }
            }
            if let Some(to) = point.state.first_chunk_mut() {
                *to = sum.sum().to_le_bytes();
            }
        }
        Ok(table)
    }
}

/// The file, and how far it was read.
struct Input {
    from: BufReader<Part>,
    at: u64,
}

// Bits of a member's flags.
const HEADER_SUM: u8 = 0x02;
const EXTRA_FIELD: u8 = 0x04;
const NAME: u8 = 0x08;
const COMMENT: u8 = 0x10;
const RESERVED: u8 = 0xe0;

impl Input {
    fn new(from: Part, at: u64, ahead: usize) -> Input {
        Input { from: BufReader::with_capacity(ahead, from), at }
    }

    /// The bytes that come next; none where the file ends.
    fn ahead(&mut self) -> Result<&[u8]> {
        self.from.fill_buf().map_err(reading)
    }

    fn pass(&mut self, n: usize) {
        self.from.consume(n);
        self.at += n as u64;
    }

    /// Goes through a member's header. False: the file ends instead.
    fn member(&mut self) -> Result<bool> {
        let at = self.at;
        if at > 0 && !follows(&mut self.from).map_err(reading)? {
            return Ok(false);
        }
        let mut crc = Crc::new();
        let wrong = |message: &str| Err(Error::corrupt("gzip file", message).at(at));
        if self.field(&mut crc)? != [0x1f, 0x8b] {
            return wrong("no member begins here");
        }
        let [method, flags, ..] = self.field::<8>(&mut crc)?;
        if method != 8 {
            return wrong("it is not packed by deflate");
        }
        if flags & RESERVED != 0 {
            return wrong("a member has flags that are not known");
        }
        if flags & EXTRA_FIELD != 0 {
            let len = u16::from_le_bytes(self.field(&mut crc)?);
            for _ in 0..len {
                self.field::<1>(&mut crc)?;
            }
        }
        for text in [NAME, COMMENT] {
            while flags & text != 0 && self.field(&mut crc)? != [0] {}
        }
        if flags & HEADER_SUM != 0 {
            let found = crc.sum() as u16;
            if u16::from_le_bytes(self.field(&mut crc)?) != found {
                return wrong("a member's header does not have its checksum");
            }
        }
        Ok(true)
    }

    /// What stands behind a member, held against the bytes it has, where all are known.
    fn trailer(&mut self, crc: Option<Crc>) -> Result<()> {
        let at = self.at;
        let mut number = || self.field(&mut Crc::new()).map(u32::from_le_bytes);
        let (sum, len) = (number()?, number()?);
        if crc.is_some_and(|crc| crc.sum() != sum || crc.amount() != len) {
            return Err(Error::corrupt(
                "gzip file",
                "a member's bytes do not have its checksum or its length",
            )
            .at(at));
        }
        Ok(())
    }

    fn field<const N: usize>(&mut self, crc: &mut Crc) -> Result<[u8; N]> {
        let mut field = [0; N];
        self.from.read_exact(&mut field).map_err(|error| match error.get_ref() {
            None if error.kind() == io::ErrorKind::UnexpectedEof => cut(self.at),
            _ => reading(error),
        })?;
        crc.update(&field);
        self.at += N as u64;
        Ok(field)
    }
}

fn reading(error: io::Error) -> Error {
    Error::io("reading a gzip file", error)
}

fn cut(at: u64) -> Error {
    Error::new(ErrorKind::Changed, "the gzip file ends before its end").at(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use cowhand_core::MemoryStorage;
    use cowhand_core::testing::Rng;
    use flate2::{Compression, GzBuilder, write::GzEncoder};

    fn stored(bytes: &[u8]) -> Arc<dyn Storage> {
        let storage = MemoryStorage::new();
        storage.write_at(0, bytes).unwrap();
        Arc::new(storage)
    }

    /// Of all sorts: noise, text, what was there before.
    fn bytes(len: usize) -> Vec<u8> {
        let mut random = Rng::new(len as u64);
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let n = (1 + random.below(9000) as usize).min(len - bytes.len());
            match random.below(4) {
                0 => bytes.extend((0..n).map(|_| random.below(256) as u8)),
                1 => bytes.extend((0..n).map(|_| b"etaoin shrdlu"[random.below(13) as usize])),
                2 => bytes.extend(std::iter::repeat_n(0, n)),
                _ => {
                    let back = 1 + random.below(bytes.len().min(WINDOW) as u64) as usize;
                    for _ in 0..n {
                        bytes.push(bytes.len().checked_sub(back).map_or(1, |at| bytes[at]));
                    }
                }
            }
        }
        bytes
    }

    fn member(bytes: &[u8], level: u32) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(level));
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    /// What the survey of `file` gives, that reads `ahead` bytes at a time, and the table.
    fn surveyed(file: &[u8], spacing: u64, ahead: usize) -> Result<(Vec<u8>, SeekTable)> {
        let inflate = Inflate::new(Input::new(Part::new(stored(file), 0, None), 0, ahead));
        let mut survey = Box::new(Surveyed { inflate, points: Points::new(spacing), sums: Vec::new() });
        let mut bytes = Vec::new();
        survey.read_to_end(&mut bytes).map_err(|error| Error::io("reading", error))?;
        Ok((bytes, survey.finish()?))
    }

    /// Every span of the table unpacks to what stands there.
    fn holds(file: &[u8], table: &SeekTable, whole: &[u8]) {
        assert_eq!(table.len, whole.len() as u64);
        table.check(file.len() as u64).unwrap();
        for number in 0..table.points.len() {
            let span = table.span(number).unwrap();
            let from = span.from.unpacked as usize;
            let mut found = Vec::new();
            unpack_from(stored(file), span).unwrap().read_to_end(&mut found).unwrap();
            assert!(found == whole[from..from + span.len as usize], "point {number}");
        }
    }

    #[test]
    fn unpacking_begins_at_any_point() {
        for level in [0, 1, 6, 9] {
            for len in [0, 1, 40_000, 600_000] {
                let whole = bytes(len);
                let file = member(&whole, level);
                for ahead in [AHEAD, 1, 2, 7, 100] {
                    let (found, table) = surveyed(&file, 15_000, ahead).unwrap();
                    assert!(found == whole, "level {level}, {len} bytes, {ahead} at a time");
                    // At level 1 blocks are as long as they like.
                    assert!(level == 1 || len < 600_000 || table.points.len() > 5);
                    if ahead > 1 {
                        holds(&file, &table, &whole);
                    }
                }
            }
        }
    }

    #[test]
    fn members_follow_each_other() {
        let whole = bytes(900_000);
        let mut file = Vec::new();
        for (number, part) in whole.chunks(130_000).enumerate() {
            file.extend(member(part, number as u32));
            let named = GzBuilder::new().filename("a name").comment("words").extra([7; 300]).mtime(5);
            let mut named = named.write(Vec::new(), Compression::fast());
            named.flush().unwrap();
            file.extend(named.finish().unwrap());
        }
        for spacing in [1, 10_000, 200_000] {
            let (found, table) = surveyed(&file, spacing, AHEAD).unwrap();
            assert!(found == whole);
            assert!(table.points.len() as u64 >= 400_000 / spacing.max(40_000));
            holds(&file, &table, &whole);
        }
        let mut survey = survey(stored(&file));
        survey.skip(500_000).unwrap();
        let mut found = [0; 1000];
        survey.read_exact(&mut found).unwrap();
        assert!(found == whole[500_000..501_000]);
        assert_eq!(survey.finish().unwrap().len, 900_000);
    }

    #[test]
    fn one_long_block_has_one_point() {
        // Fixed codes, all of it the byte 0 and repetitions of it: what no program does for so long.
        let mut bits = Bits::default();
        bits.push(0b011, 3);
        bits.code(0x30, 8);
        for _ in 0..20_000 {
            bits.code(0xc5, 8); // length 258
            bits.code(0, 5); // distance 1
        }
        bits.code(0, 7);
        let whole = vec![0; 1 + 20_000 * 258];
        let mut file = member(b"", 1)[..10].to_vec();
        file.extend(bits.bytes);
        let mut crc = Crc::new();
        crc.update(&whole);
        file.extend([crc.sum(), crc.amount()].map(u32::to_le_bytes).as_flattened());
        let (found, table) = surveyed(&file, 1000, AHEAD).unwrap();
        assert!(found == whole);
        assert_eq!(table.points.len(), 1);
        holds(&file, &table, &whole);
    }

    #[derive(Default)]
    struct Bits {
        bytes: Vec<u8>,
        used: u32,
    }

    impl Bits {
        fn push(&mut self, bits: u32, count: u32) {
            for bit in 0..count {
                if self.used.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                *self.bytes.last_mut().unwrap() |= ((bits >> bit & 1) as u8) << (self.used % 8);
                self.used += 1;
            }
        }

        /// A code, whose highest bit comes first.
        fn code(&mut self, code: u32, count: u32) {
            self.push(code.reverse_bits() >> (32 - count), count);
        }
    }

    #[test]
    fn what_is_broken_is_told() {
        let whole = bytes(15_000);
        let file = [member(&whole[..10_000], 6), member(&whole[10_000..], 1)].concat();
        let kind = |file: &[u8]| surveyed(file, 1000, 64).unwrap_err().kind();
        for cut in (0..file.len() - 1).step_by(7) {
            let parts = surveyed(&file[..cut], 1000, 64);
            let ends_between = matches!(&parts, Ok((found, _)) if *found == whole[..10_000]);
            assert!(ends_between || parts.unwrap_err().kind() == ErrorKind::Changed, "cut to {cut}");
        }
        for at in 0..file.len() {
            let mut broken = file.clone();
            broken[at] ^= 1 << (at % 8);
            // Times, names of systems and the like are nobody's; all else has a checksum.
            assert!(
                surveyed(&broken, 1000, 64).is_err_and(|_| true)
                    || surveyed(&broken, 1000, 64).unwrap().0 == whole
            );
        }
        assert_eq!(surveyed(&[&file[..], &[0; 70]].concat(), 1000, 64).unwrap().0, whole);
        assert_eq!(kind(&[&file[..], &[0; 70], b"more"].concat()), ErrorKind::Corrupt);
        assert_eq!(kind(&[&file[..], b"more"].concat()), ErrorKind::Corrupt);
        assert_eq!(kind(b"no gzip file"), ErrorKind::Corrupt);
        assert_eq!(kind(b""), ErrorKind::Changed);
        // The second member repeats what only the first one has.
        let mut bits = Bits::default();
        bits.push(0b011, 3);
        bits.code(0xc5, 8);
        bits.code(0, 5);
        bits.code(0, 7);
        let far = [&member(b"some bytes", 1), &file[..10], &bits.bytes, &[0; 8]].concat();
        assert_eq!(kind(&far), ErrorKind::Corrupt);
    }

    #[test]
    fn a_flipped_bit_is_never_silent_at_random() {
        let whole = bytes(100_000);
        let file = [member(&whole[..60_000], 6), member(&whole[60_000..], 9)].concat();
        let (_, table) = surveyed(&file, 10_000, AHEAD).unwrap();
        for at in (0..file.len()).step_by(211) {
            let mut broken = file.clone();
            broken[at] ^= 1 << (at % 8);
            for number in 0..table.points.len() {
                let span = table.span(number).unwrap();
                let mut found = Vec::new();
                let read = unpack_from(stored(&broken), span).unwrap().read_to_end(&mut found);
                let from = span.from.unpacked as usize;
                assert!(read.is_err() || found == whole[from..from + span.len as usize], "{at}");
            }
        }
    }

    #[test]
    fn a_wrong_state_is_an_error() {
        let whole = bytes(400_000);
        let file = member(&whole, 6);
        let (_, table) = surveyed(&file, 50_000, AHEAD).unwrap();
        let mut random = Rng::new(9);
        for round in 0..2000 {
            let span = table.span(1 + round % (table.points.len() - 1)).unwrap();
            let mut from = span.from.clone();
            for _ in 0..=random.below(3) {
                let most = if random.chance(1, 2) { 3 } else { usize::MAX };
                let at = random.below(from.state.len().min(most) as u64);
                match random.below(4) {
                    0 => from.state.truncate(at as usize + 1),
                    1 => from.packed = random.below(file.len() as u64 + 10),
                    _ => from.state[at as usize] = random.below(256) as u8,
                }
            }
            let Ok(reader) = unpack_from(stored(&file), Span { from: &from, ..span }) else { continue };
            let mut found = Vec::new();
            let read = { reader }.read_to_end(&mut found);
            assert!(found.len() as u64 <= span.len);
            let right = span.from.unpacked as usize..(span.from.unpacked + span.len) as usize;
            assert!(read.is_err() || (found.len() as u64) < span.len || found == whole[right]);
        }
    }
}
