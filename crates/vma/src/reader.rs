//! An archive read from front to back.

use std::io::Read;
use std::ops::Range;

use cowhand_core::{
    ArchiveFaults, ArchiveSource, Body, Chunk, DiskInfo, Error, ErrorKind, Fault, LayerId, Manifest, Reading,
    Result, Severity, Source,
};

use crate::came::{Admitted, Came};
use crate::extent::{self, Slot};
use crate::header::{self, Header, clusters};
use crate::layout::{BLOCK, BLOCKS, CLUSTER, EXTENT_HEADER, HEADER};
use crate::resync::{self, REACH, Verdict, going_on};
use crate::runs::{Run, Runs};
use crate::seen::Seen;
use crate::window::Window;
use crate::wrong::Wrong;

/// Memory for telling which clusters came, in bytes: 16 TiB in an order that was made to be bad.
const MAX_SEEN: usize = 192 << 20;

pub(crate) fn read<'a>(
    mut input: Box<dyn Read + Send + 'a>,
    how: Reading,
) -> Result<Box<dyn ArchiveSource + 'a>> {
    match how {
        Reading::Strict => {
            let header = header::read(&mut input)?;
            Ok(Box::new(Reader::new(Window::new(input, header.size), header, how)))
        }
        Reading::Salvage => {
            let mut window = Window::new(input, 0);
            let (header, wrong) = front(&mut window)?;
            let header = header.ok_or_else(|| {
                let first = wrong.first().cloned().unwrap_or_else(|| Wrong::new("header", 0, "is not there"));
                Error::from(first)
            })?;
            Ok(Box::new(Reader::salvage(window, header, wrong)?))
        }
    }
}

/// As [`Reading::Salvage`], of an archive that holds what `manifest` says, whatever its own header does.
pub(crate) fn read_as<'a>(
    input: Box<dyn Read + Send + 'a>,
    manifest: &Manifest,
) -> Result<Box<dyn ArchiveSource + 'a>> {
    let mut window = Window::new(input, 0);
    let (own, wrong) = front(&mut window)?;
    let header = Header { manifest: manifest.clone(), size: own.map_or(0, |own| own.size) };
    Ok(Box::new(Reader::salvage(window, header, wrong)?))
}

/// The header that the archive begins with, as far as it makes sense, and the rules that it breaks.
pub(crate) fn front(window: &mut Window<'_>) -> Result<(Option<Header>, Vec<Wrong>)> {
    window.fill(HEADER)?;
    let len = header::claimed(window.bytes());
    window.fill(len)?;
    Ok(header::rescue(window.bytes()))
}

/// A cluster of which blocks are missing.
#[derive(Clone, Copy, Debug)]
struct Torn {
    disk: u32,
    cluster: u32,
    missing: u16,
}

/// The source.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    window: Window<'a>,
    header: Header,
    how: Reading,
    disks: Vec<DiskInfo>,
    came: Came,
    /// Where the archive ends too early, and where bytes of it are lost.
    torn: Vec<Torn>,
    faults: ArchiveFaults,
    /// Clusters with data that may be wrong: the disk, and which.
    doubtful: Vec<(u32, Range<u32>)>,
    /// The extent that the window begins with holds such.
    in_doubt: bool,
    /// Of the extent that the window begins with.
    runs: Runs,
    next: usize,
    len: usize,
    /// Zeros that may go on.
    zeros: Option<Run>,
    ended: bool,
    /// The window ends where bytes could not be read: others may come behind them. And where that was the last time.
    broken: bool,
    broken_at: Option<u64>,
}

impl<'a> Reader<'a> {
    /// Of an archive of which the window holds what follows the header.
    fn new(window: Window<'a>, header: Header, how: Reading) -> Reader<'a> {
        let disks = header.manifest.disks.iter();
        let disks = disks.map(|disk| DiskInfo {
            name: disk.name.clone(),
            size: disk.size,
            parent: None,
            identity: LayerId(None),
        });
        Reader {
            window,
            how,
            disks: disks.collect(),
            came: Came::new(&header),
            header,
            torn: Vec::new(),
            faults: ArchiveFaults::default(),
            doubtful: Vec::new(),
            in_doubt: false,
            runs: Runs::default(),
            next: 0,
            len: 0,
            zeros: None,
            ended: false,
            broken: false,
            broken_at: None,
        }
    }

    /// Of an archive whose header, which the window begins with, breaks those rules. Which uuid its extents bear, and where
    /// they begin, they say themselves, where the header does not say so rightly.
    pub(crate) fn salvage(window: Window<'a>, header: Header, wrong: Vec<Wrong>) -> Result<Reader<'a>> {
        let mut reader = Reader::new(window, header, Reading::Salvage);
        let begin = usize::try_from(reader.header.size).unwrap_or(HEADER);
        if wrong.is_empty() {
            reader.window.pass(begin);
            return Ok(reader);
        }
        wrong.into_iter().for_each(|wrong| reader.faults.add(wrong.fault()));
        reader.fill(begin + REACH)?;
        let uuid = reader.header.manifest.id;
        let bytes = reader.window.bytes();
        let mut first = resync::stands(bytes, begin, Some(&uuid)).then_some(begin);
        first = first.or_else(|| resync::find(bytes, 0, Some(&uuid)));
        first = first.or_else(|| resync::find(bytes, 0, None));
        if first.is_none() {
            first = reader.search(None)?;
        }
        reader.window.pass(first.unwrap_or(usize::MAX));
        if let Ok(extent) = extent::parse(reader.window.bytes(), 0, None) {
            reader.header.manifest.id = extent.uuid;
        }
        Ok(reader)
    }

    /// Passes over what is no extent, until one stands in the window: there.
    fn search(&mut self, uuid: Option<&[u8; 16]>) -> Result<Option<usize>> {
        loop {
            let held = self.window.bytes().len();
            // The last bytes may be the front of one.
            self.window.pass(held.saturating_sub(EXTENT_HEADER));
            self.window.leap();
            self.fill(REACH)?;
            let found = resync::find(self.window.bytes(), 0, uuid);
            if found.is_some() || self.window.bytes().len() < REACH {
                return Ok(found);
            }
        }
    }

    /// Which clusters came, of each disk.
    pub(crate) fn seen(&self) -> &[Seen] {
        self.came.seen()
    }

    /// Notes what is wrong, or fails.
    fn wrong(&mut self, wrong: Wrong) -> Result<()> {
        match self.how {
            Reading::Strict => Err(wrong.into()),
            Reading::Salvage => {
                self.faults.add(wrong.fault());
                Ok(())
            }
        }
    }

    /// The window holds `len` bytes, or all there are. Who salvages takes what cannot be read for the archive's end, for now.
    fn fill(&mut self, len: usize) -> Result<()> {
        let filled = self.window.fill(len);
        for (at, error) in self.window.news() {
            if self.how == Reading::Strict {
                return Err(error);
            }
            let message = format!("{error}; what stands there is lost");
            self.faults.add(Fault::new(Severity::Error, Some(at), message));
        }
        match filled {
            Err(error) if self.how == Reading::Salvage && error.kind() != ErrorKind::Cancelled => {
                let at = self.window.offset() + self.window.bytes().len() as u64;
                self.window.end();
                // Where nothing came since the last time, nothing will.
                self.broken = self.broken_at != Some(at);
                self.broken_at = Some(at);
                if self.broken {
                    let message = error.to_string();
                    self.faults.add(Fault::new(Severity::Error, Some(at), message));
                }
                Ok(())
            }
            done => done,
        }
    }

    /// Goes on to the first extent behind what could not be read. Offsets count what came, and so not what is lost there.
    fn resume(&mut self) -> Result<()> {
        self.broken = false;
        self.window.resume();
        let uuid = self.header.manifest.id;
        let next = self.search(Some(&uuid))?;
        self.window.pass(next.unwrap_or(usize::MAX));
        Ok(())
    }

    /// Goes on to the next extent. `false`: there is none.
    fn advance(&mut self) -> Result<bool> {
        self.window.pass(self.len);
        self.len = 0;
        self.next = 0;
        self.runs.begin(Vec::new());
        self.fill(EXTENT_HEADER)?;
        if self.window.bytes().is_empty() {
            if self.broken {
                self.resume()?;
                return Ok(true);
            }
            return Ok(false);
        }
        let at = self.window.offset();
        let uuid = self.header.manifest.id;
        let (blocks, slots) = match extent::parse(self.window.bytes(), at, Some(&uuid)) {
            Ok(extent) => {
                let slots: Vec<Slot> = extent::slots(extent, at).collect();
                (usize::from(extent.block_count.get()), slots)
            }
            Err(wrong) => {
                self.resynchronize(wrong)?;
                return Ok(true);
            }
        };
        let len = EXTENT_HEADER + blocks * BLOCK as usize;
        // Read with the header of the next one.
        self.fill(len + EXTENT_HEADER)?;
        let Some(held) = self.whole(len, at, &uuid)? else {
            return Ok(true);
        };
        let mut lost = self.window.lost(EXTENT_HEADER, BLOCK, blocks);
        if held < blocks {
            lost.push(held..blocks);
        }
        self.runs.begin(lost);
        for slot in slots {
            self.place(slot)?;
        }
        self.len = len.min(self.window.bytes().len());
        Ok(true)
    }

    /// How many blocks the extent that the window begins with has, which shall be `len` bytes long. `None`: bytes of it
    /// are lost, so that nobody knows which the others are, and the window begins with the next one.
    fn whole(&mut self, len: usize, at: u64, uuid: &[u8; 16]) -> Result<Option<usize>> {
        let held = self.window.bytes().len();
        let strict = self.how == Reading::Strict;
        self.in_doubt = false;
        let next = if strict || held == len || resync::in_place(self.window.bytes(), len, uuid) {
            None
        } else if held < len {
            resync::find(self.window.bytes(), EXTENT_HEADER, Some(uuid))
        } else {
            self.fill(len + REACH)?;
            match resync::judge(self.window.bytes(), len, uuid) {
                Verdict::Whole => None,
                Verdict::Doubtful(next) => {
                    self.in_doubt = true;
                    // What stands at the archive's end, and is no extent, is a fault of its own.
                    if next.is_some() {
                        let message = "none stands behind it: where bytes of it are lost or came in between, what it holds is wrong";
                        self.wrong(Wrong::new("extent", at, message))?;
                    }
                    None
                }
                Verdict::Shifted(next) => Some(next),
            }
        };
        if let Some(next) = next {
            let message = "bytes of it are lost or came in between, and nobody knows which";
            let wrong = Wrong::new("extent", at, message);
            self.wrong(going_on(wrong, Some(at + next as u64)))?;
            self.window.pass(next);
            return Ok(None);
        }
        if held < len {
            let message = format!("the archive ends within it: {held} bytes of {len}");
            let wrong = Wrong::new("extent", at, message);
            self.wrong(wrong.known_as(format!("short vma extent ({held} < {len})")))?;
        }
        let data = held.min(len).saturating_sub(EXTENT_HEADER);
        Ok(Some(data / BLOCK as usize))
    }

    /// Goes on behind an extent whose header is wrong.
    fn resynchronize(&mut self, wrong: Wrong) -> Result<()> {
        if self.how == Reading::Strict {
            return Err(wrong.into());
        }
        let uuid = self.header.manifest.id;
        self.fill(REACH)?;
        let mut next = resync::following(self.window.bytes(), &uuid);
        if next.is_none() {
            next = self.search(Some(&uuid))?;
        }
        let at = next.map(|next| self.window.offset() + next as u64);
        self.window.pass(next.unwrap_or(usize::MAX));
        self.wrong(going_on(wrong, at))
    }

    /// Takes a cluster of the extent.
    fn place(&mut self, slot: Slot) -> Result<()> {
        let Slot { cluster, mask, at, .. } = slot;
        let before = self.came.bytes();
        let admitted = match self.came.admit(&self.header, slot) {
            Ok(Some(Admitted { odd: Some(wrong), .. })) if self.how == Reading::Strict => Err(wrong),
            other => other,
        };
        let Admitted { disk, end, odd } = match admitted {
            Ok(Some(admitted)) => admitted,
            Ok(None) => return Ok(()),
            Err(wrong) => {
                self.runs.skip(mask);
                return self.wrong(wrong);
            }
        };
        if let Some(wrong) = odd {
            self.wrong(wrong)?;
        }
        if self.in_doubt && mask != 0 {
            match self.doubtful.last_mut() {
                Some((of, clusters)) if *of == disk && clusters.end == cluster => clusters.end += 1,
                _ => self.doubtful.push((disk, cluster..cluster.saturating_add(1))),
            }
        }
        let seen = self.came.bytes()
            + self.torn.len() * size_of::<Torn>()
            + self.doubtful.len() * size_of::<(u32, Range<u32>)>();
        if seen > before && seen > MAX_SEEN {
            return Err(Error::unsupported(format!(
                "the archive's clusters are so scattered that {} MiB do not hold which of them came",
                MAX_SEEN >> 20
            ))
            .at(at));
        }
        let missing = self.runs.cluster(disk, cluster, mask, end);
        if missing != 0 {
            self.torn.push(Torn { disk, cluster, missing });
        }
        Ok(())
    }

    /// The next run to hand out.
    fn run(&mut self) -> Result<Option<Run>> {
        while !self.ended {
            let Some(run) = self.runs.get(self.next) else {
                if !self.advance()? {
                    self.ended = true;
                    if self.how == Reading::Strict {
                        self.came.complete(&self.header)?;
                    }
                }
                continue;
            };
            match &mut self.zeros {
                Some(zeros) if zeros.joins(&run) => zeros.len += run.len,
                // What was put off comes first.
                Some(_) => return Ok(self.zeros.take()),
                None if run.data.is_none() => self.zeros = Some(run),
                None => {
                    self.next += 1;
                    return Ok(Some(run));
                }
            }
            self.next += 1;
        }
        Ok(self.zeros.take())
    }
}

impl Source for Reader<'_> {
    fn disks(&self) -> &[DiskInfo] {
        &self.disks
    }

    fn next(&mut self) -> Result<Option<Chunk<'_>>> {
        let Some(run) = self.run()? else {
            return Ok(None);
        };
        let body = match run.data {
            None => Body::Zero(run.len),
            Some(data) => {
                let bytes = self.window.bytes().get(data..).and_then(|rest| rest.get(..run.len as usize));
                // Never without them: the runs are of blocks that the window holds.
                Body::Bytes(
                    bytes.ok_or_else(|| Error::corrupt("extent", "has not the blocks that it lists"))?,
                )
            }
        };
        Ok(Some(Chunk { disk: run.disk, at: run.at, body }))
    }
}

impl ArchiveSource for Reader<'_> {
    fn manifest(&self) -> &Manifest {
        &self.header.manifest
    }

    fn position(&self) -> u64 {
        self.window.offset()
    }

    fn faults(&self) -> &ArchiveFaults {
        &self.faults
    }

    fn missing(&self, disk: u32, see: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let known = self.header.manifest.disks.get(disk as usize).zip(self.seen().get(disk as usize));
        let (known, seen) = known.ok_or_else(|| Error::invalid("the archive has no such disk"))?;
        let (last, size) = if known.memory { (seen.end(), u64::MAX) } else { (clusters(known), known.size) };

        let mut blocks: Vec<u64> = Vec::new();
        for torn in self.torn.iter().filter(|torn| torn.disk == disk) {
            let bits = (0..BLOCKS).filter(|bit| torn.missing >> bit & 1 == 1);
            blocks.extend(bits.map(|bit| u64::from(torn.cluster) * CLUSTER + u64::from(bit) * BLOCK));
        }
        blocks.sort_unstable();
        let mut blocks = blocks.into_iter().peekable();

        let mut open: Option<Range<u64>> = None;
        let mut join = |next: Range<u64>, see: &mut dyn FnMut(Range<u64>) -> Result<()>| match &mut open {
            Some(range) if range.end == next.start => {
                range.end = next.end;
                Ok(())
            }
            other => match other.replace(next).filter(|range| range.start < size) {
                Some(range) => see(range.start..range.end.min(size)),
                None => Ok(()),
            },
        };
        seen.gaps(last, &mut |gap| {
            while let Some(block) = blocks.next_if(|block| *block < gap.start * CLUSTER) {
                join(block..block + BLOCK, see)?;
            }
            join(gap.start * CLUSTER..gap.end * CLUSTER, see)
        })?;
        for block in blocks {
            join(block..block + BLOCK, see)?;
        }
        // What is open is handed out by what would come next.
        join(u64::MAX..u64::MAX, see)
    }

    fn doubtful(&self, disk: u32, see: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let known = self.header.manifest.disks.get(disk as usize);
        let size = known.filter(|disk| !disk.memory).map_or(u64::MAX, |disk| disk.size);
        let here = self.doubtful.iter().filter(|(of, _)| *of == disk);
        here.map(|(_, clusters)| {
            u64::from(clusters.start) * CLUSTER..(u64::from(clusters.end) * CLUSTER).min(size)
        })
        .try_for_each(see)
    }
}
