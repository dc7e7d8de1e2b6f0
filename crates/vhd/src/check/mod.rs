//! Checking and repairing an image, starting from its file: nothing in it is believed before it was looked at.
//!
//! Read are both footers, the header, the table, the batmap, and the bitmaps of blocks that the batmap calls full: all
//! that a VHD says twice, or that can lead astray. Guest data is not read; so what stands beneath a bit that is 0 in a
//! dynamic disk is nobody's concern here, although QEMU, which looks at no bit, would show it.
//!
//! In memory: 8 bytes for each block in the file, at most 64 MiB (`places`); 32 for each stretch of wrong entries, at most
//! 64 MiB; and pieces of 1 MiB.

mod batmap;
mod findings;
mod footers;
mod parent;
pub(crate) mod places;
mod repair;
mod strays;
mod table;

use std::sync::Arc;

use cowhand_core::{
    CheckOptions, Checker, Error, ErrorKind, Progress, Repair, Report, Resolver, Result, Rules, Storage,
};

use crate::Vhd;
use crate::bat::FREE;
use crate::find::{self, Found};
use crate::footer::{DiskType, FOOTER_LEN, SizeRule};
use crate::geometry::SECTOR;
use crate::header::Header;
use findings::Findings;
use footers::Ends;
use places::{BadEntries, Owner, Places, Why};

/// As much as this aligns the next block's payload to 4 KiB.
const PADDING: u64 = 4096 - SECTOR;

/// An image that is looked at.
struct Image<'a> {
    file: &'a dyn Storage,
    progress: &'a dyn Progress,
    rules: Rules,
}

/// What was found by looking at all of it.
#[derive(Debug)]
struct Looked {
    found: Findings,
    /// Of a disk with a table, where its header can be believed.
    disk: Option<Disk>,
}

/// A dynamic or differencing disk that could be looked at.
#[derive(Debug)]
struct Disk {
    ends: Ends,
    found: Found,
    header: Header,
    size: u64,
    places: Places,
    /// Entries of the disk's blocks that lead where no block can stand.
    bad: Vec<BadEntries>,
    /// Entries past the disk's blocks that are not free.
    beyond: Vec<BadEntries>,
}

impl Disk {
    fn differencing(&self) -> bool {
        self.found.footer.disk_type == DiskType::Differencing
    }

    /// Blocks of the disk; the table may have more entries.
    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.header.block_size)
    }

    /// Where the first of these entries stands in the file.
    fn entry_at(&self, bad: &BadEntries) -> u64 {
        self.header.bat_at + 4 * bad.blocks.start
    }

    /// "guest bytes 0 to 2097151", of blocks that the disk has.
    fn guest(&self, blocks: &std::ops::Range<u64>) -> String {
        let size = self.header.block_size;
        guest_text(blocks.start * size, (blocks.end * size).min(self.size))
    }
}

/// The guest bytes from `start` on, before `end`.
fn guest_text(start: u64, end: u64) -> String {
    format!("guest bytes {start} to {}", end.max(start + 1) - 1)
}

impl Checker for Vhd {
    fn check(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CheckOptions,
        progress: &dyn Progress,
    ) -> Result<Report> {
        // What is put right is what is wrong by the usual rules.
        let rules = if how.repair == Repair::Nothing { how.rules } else { Rules::default() };
        let image = Image { file: file.as_ref(), progress, rules };
        match how.repair {
            Repair::Nothing => Ok(image.look()?.found.report),
            Repair::Leaks | Repair::All => image.repair(how.repair == Repair::All, how.rules.keep),
        }
    }
}

impl Image<'_> {
    /// Looks at everything. Errors: this is no VHD, or one of a version that is not known; the check was stopped.
    fn look(&self) -> Result<Looked> {
        let mut all = Findings { rules: self.rules, ..Findings::default() };
        self.go_on(0, 1)?;
        let ends = find::Places::read(self.file)?;
        let (found, ends) = match self.find(&ends, &mut all)? {
            Some(found) => {
                let ends = Ends::judge(&ends, &found);
                (found, ends)
            }
            None => return Ok(Looked { found: all, disk: None }),
        };
        footers::judge(&found, &ends, &mut all);
        let size = found.footer.size(SizeRule::Auto);
        if !size.is_multiple_of(SECTOR) {
            all.corrupt(found.at + 48, || format!("the disk's size is {size} bytes, no multiple of 512"));
            return Ok(Looked { found: all, disk: None });
        }
        if found.footer.disk_type == DiskType::Fixed {
            self.fixed(&found, size, &mut all);
            return Ok(Looked { found: all, disk: None });
        }
        let disk = self.disk(found, ends, size, &mut all)?;
        Ok(Looked { found: all, disk })
    }

    /// The footer that counts. `None`: there is none, and it was said why.
    fn find(&self, ends: &find::Places, all: &mut Findings) -> Result<Option<Found>> {
        let error = match ends.found() {
            Ok(found) => return Ok(Some(found)),
            Err(error) => error,
        };
        // Without its copy at the front a footer is perhaps a guest's; not so where it leads to a good header.
        if let (Some(tail), None) = (&ends.tail, &ends.head)
            && tail.checksum_is_good()
            && let Ok(footer) = tail.parse(ends.tail_at)
            && footer.disk_type != DiskType::Fixed
        {
            let found = ends.with(footer, ends.tail_at);
            match Header::read(self.file, &found, found.footer.size(SizeRule::Auto)) {
                Ok(_) => return Ok(Some(found)),
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {}
                Err(error) => return Err(error),
            }
        }
        if error.kind() != ErrorKind::Corrupt || ends.tail.is_none() && ends.head.is_none() {
            return Err(error);
        }
        all.corrupt_if_at(error.offset(), || error.to_string());
        Ok(None)
    }

    fn fixed(&self, found: &Found, size: u64, all: &mut Findings) {
        all.report.image_end = Some(found.file_len);
        let room = found.data_end;
        if size > room {
            all.corrupt(found.at + 56, || {
                format!("the geometry says {size} bytes, and only {room} stand before the footer")
            });
        }
        let largest = size.max(found.footer.current_size);
        if largest < room {
            all.note(largest, || format!("{} bytes before the footer belong to no disk", room - largest));
        }
    }

    /// Everything behind the footers of a disk with a table.
    fn disk(&self, found: Found, ends: Ends, size: u64, all: &mut Findings) -> Result<Option<Disk>> {
        let mut bad_sum = None;
        let header = Header::read_with(self.file, &found, size, &mut |error| {
            bad_sum = Some(error);
            Ok(())
        });
        if let Some(error) = &bad_sum {
            let plausible = match &header {
                Ok(_) => {
                    "; its fields are possible, but which byte of it changed nobody can say, so it is not put right"
                }
                Err(_) => "",
            };
            all.blind = true;
            all.corrupt_if_at(error.offset(), || format!("{error}{plausible}"));
        }
        let header = match header {
            Ok(header) => header,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                all.corrupt_if_at(error.offset(), || error.to_string());
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !header.bat_at.is_multiple_of(SECTOR) {
            all.refused(header.at + 16, || format!("the table begins at {}, inside a sector", header.bat_at));
        }
        let count = size.div_ceil(header.block_size);
        let (mut bad, mut beyond) = (Vec::new(), Vec::new());
        let places = Places::read(self.file, &found, &header, size, &mut |_, entries| {
            if entries.blocks.start < count { &mut bad } else { &mut beyond }.push(entries);
            if bad.len() + beyond.len() > findings::MAX_RUNS {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "more entries of the table are wrong than are counted",
                ));
            }
            self.go_on(0, 1)
        });
        let places = match places {
            Ok(places) => places,
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                all.unread(header.bat_at, || error.to_string());
                return Ok(None);
            }
        };
        let mut disk = Disk { ends, found, header, size, places, bad, beyond };
        self.table(&mut disk, all)?;
        parent::judge(self.file, &disk, all)?;
        self.batmap(&disk, all)?;
        if self.rules.data {
            strays::judge(self, &disk, all)?;
        }
        self.go_on(1, 1)?;
        Ok(Some(disk))
    }

    /// Entries, overlaps, and space that nothing uses.
    fn table(&self, disk: &mut Disk, all: &mut Findings) -> Result<()> {
        for bad in &disk.bad {
            let (at, count) = (disk.entry_at(bad), bad.blocks.end - bad.blocks.start);
            let more =
                if count > 1 { format!(", and so do the {} after it", count - 1) } else { String::new() };
            all.corrupt_many(at, count, || {
                let (guest, what) = (disk.guest(&bad.blocks), disk.places.text(bad, &disk.found));
                format!("BAT entry at offset {at} ({guest}) {what}{more}")
            });
        }
        let blocks = disk.blocks();
        for (block, _) in disk.places.blocks().filter(|(block, _)| !disk.places.has(*block)) {
            let block = u64::from(block);
            disk.beyond.push(BadEntries { blocks: block..block + 1, entry: FREE, why: Why::Beyond });
        }
        for entries in &disk.beyond {
            let (first, count) = (entries.blocks.start, entries.blocks.end - entries.blocks.start);
            all.leak(disk.entry_at(entries), count, || {
                let from = if count > 1 { format!(" and the {} after it", count - 1) } else { String::new() };
                format!("the table gives room to block {first}{from}; the disk has {blocks} blocks")
            });
        }
        let mut say = |one: &places::Place, other: &places::Place| {
            let whose = |owner: &Owner| match owner {
                Owner::Block(block) => {
                    let block = u64::from(*block);
                    format!("{owner} ({})", disk.guest(&(block..block + 1)))
                }
                _ => owner.to_string(),
            };
            all.corrupt(other.range.start, || {
                let at = other.range.start;
                format!("{} and {} share bytes at {at}", whose(&one.owner), whose(&other.owner))
            });
            match (&one.owner, &other.owner) {
                (Owner::Block(_), _) | (_, Owner::Block(_)) => all.shared = true,
                _ => all.tangled = true,
            }
            Ok(())
        };
        if !self.rules.no_overlaps {
            disk.places.overlaps(&mut say)?;
        }
        let end = disk.found.data_end;
        let unit = disk.header.bitmap_len() + disk.header.block_size;
        // Padding is never taken for a block, however small that is.
        let padding = if unit > PADDING { 0 } else { PADDING };
        for gap in disk.places.gaps(end) {
            let (at, len) = (gap.start, gap.end - gap.start);
            let units = len.saturating_sub(padding) / unit;
            if units > 0 {
                let last = gap.end == end;
                let how = if last { "" } else { "; only making the image compact gives them back" };
                all.leak(at, units, || format!("{len} bytes at {at} are used by nothing{how}"));
                all.tail_is_unused |= last;
            }
        }
        footers::missing(disk, all);
        let stored = disk.places.blocks().filter(|(block, _)| disk.places.has(*block)).count();
        all.report.total_units = Some(blocks);
        all.report.allocated_units = Some(stored as u64);
        all.report.fragmented_units = Some(disk.places.fragmented);
        all.report.image_end = Some(match disk.ends.tail {
            footers::End::Absent => disk.places.end(),
            _ => end + FOOTER_LEN.min(disk.found.file_len - end),
        });
        Ok(())
    }

    fn go_on(&self, done: u64, total: u64) -> Result<()> {
        match self.progress.at(done, total) {
            std::ops::ControlFlow::Continue(()) => Ok(()),
            std::ops::ControlFlow::Break(()) => {
                Err(Error::new(ErrorKind::Cancelled, "the check was stopped"))
            }
        }
    }
}
