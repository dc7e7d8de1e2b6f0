//! Checking and repairing an image, starting from its file: nothing in it is believed before it was looked at.
//!
//! Read are both headers, the log, both region tables, the metadata and the whole BAT, as they are once the log is
//! replayed. Sector bitmaps are not read: whatever they say is possible, and a block that is fully present does not ask
//! them. Neither is guest data.
//!
//! In memory: what `places` has, at most 76 MiB, and what the log changes, at most as much as opening keeps.

mod apart;
mod bitmaps;
pub(crate) mod bits;
mod findings;
mod head;
mod items;
pub(crate) mod places;
mod regions;
mod repair;
pub(crate) mod table;

use std::sync::Arc;

use cowhand_core::{
    CheckOptions, Checker, Error, ErrorKind, KnownCheck, Progress, Repair, Report, Resolver, Result, Storage,
};

use crate::Vhdx;
use crate::bat::{self, Geometry};
use crate::bytes::MIB;
use crate::metadata::Metadata;
use findings::{Findings, by_number};
use head::{Head, Log};
use places::{Disk, Owner, Place, Places, Why};
use regions::Found;

/// An image that is looked at.
struct Image<'a> {
    file: Arc<dyn Storage>,
    progress: &'a dyn Progress,
}

/// What was found by looking at all of it.
#[derive(Debug)]
struct Looked {
    found: Findings,
    /// Where one header can be believed.
    head: Option<Head>,
    /// Where one region table can be believed.
    regions: Option<Found>,
    /// Where all before the BAT can be believed.
    table: Option<Table>,
}

/// The BAT of an image.
#[derive(Debug)]
struct Table {
    /// The file as it is after its log was replayed.
    file: Arc<dyn Storage>,
    len: u64,
    geometry: Geometry,
    differencing: bool,
    /// Blocks keep their place.
    fixed: bool,
    places: Places,
    /// Entries that are put right by changing them alone.
    mendable: bool,
    /// The file ends within a block.
    cut: bool,
    /// Partly present blocks have no sector bitmap.
    no_bitmap: bool,
    /// The places that meet others.
    shared: Vec<Place>,
}

impl Table {
    fn disk<'a>(&'a self, regions: &'a Found) -> Disk<'a> {
        Disk {
            file: self.file.as_ref(),
            regions: &regions.regions,
            geometry: self.geometry,
            differencing: self.differencing,
            len: self.len,
        }
    }

    /// Bytes at the file's end that nobody has.
    fn tail(&self) -> u64 {
        self.len.saturating_sub(self.places.end())
    }
}

impl Checker for Vhdx {
    fn known(&self) -> KnownCheck {
        KnownCheck::Verdict
    }

    fn check(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CheckOptions,
        progress: &dyn Progress,
    ) -> Result<Report> {
        let image = Image { file, progress };
        match how.repair {
            Repair::Nothing => Ok(image.look()?.found.report),
            Repair::Leaks | Repair::All => image.repair(how.repair == Repair::All, how.rules.keep),
        }
    }
}

impl Image<'_> {
    /// Looks at everything. Errors: the image is of a version that is not known, or needs what is not known; the check was
    /// stopped; reading failed.
    fn look(&self) -> Result<Looked> {
        self.go_on(0, 1)?;
        let mut looked = Looked { found: Findings::default(), head: None, regions: None, table: None };
        match self.look_through(&mut looked) {
            // What is cut short is damaged, and a report says so.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                looked.found.blind = true;
                looked.found.corrupt(error.offset(), || error.to_string());
            }
            result => result?,
        }
        self.go_on(1, 1)?;
        Ok(looked)
    }

    fn look_through(&self, looked: &mut Looked) -> Result<()> {
        let all = &mut looked.found;
        let Some(head) = head::look(self.file.as_ref(), all)? else { return Ok(()) };
        let head = looked.head.insert(head);
        let file = head::replayed(&self.file, head, all)?;
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let Some(regions) = regions::look(file.as_ref(), len, &head.header.log, all)? else { return Ok(()) };
        let regions = looked.regions.insert(regions);
        let region = regions.regions.metadata;
        let metadata = Metadata::read(file.as_ref(), region)?;
        items::look(file.as_ref(), region, &metadata, &head.header, all)?;
        let geometry = Geometry {
            size: metadata.size,
            block_size: metadata.block_size,
            sector: metadata.logical_sector.into(),
        };
        let differencing = metadata.parent.is_some();
        let (bat, entries) = (regions.regions.bat, geometry.entries(differencing));
        if entries * bat::ENTRY > bat.length {
            all.corrupt(bat.offset, || {
                format!("the BAT region has {} bytes, too few for the disk's {entries} entries", bat.length)
            });
            return Ok(());
        }
        let fixed = metadata.leave_blocks_allocated && !differencing;
        let mut table = Table {
            file,
            len,
            geometry,
            differencing,
            fixed,
            places: Places::default(),
            mendable: false,
            cut: false,
            no_bitmap: false,
            shared: Vec::new(),
        };
        match self.table(&mut table, regions, all) {
            Ok(()) => looked.table = Some(table),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => all.unread(bat.offset, || error.to_string()),
        }
        if head.log == Log::Broken {
            all.blind = true;
        }
        Ok(())
    }

    /// Entries, overlaps, and space that nothing uses.
    fn table(&self, table: &mut Table, regions: &Found, all: &mut Findings) -> Result<()> {
        let (mut mendable, mut cut, mut no_bitmap) = (false, false, false);
        let disk = table.disk(regions);
        let places = Places::read(&disk, &mut |entry, why| {
            let kind = match why {
                Why::Cut => &mut cut,
                Why::NoBitmap => &mut no_bitmap,
                _ => &mut mendable,
            };
            *kind = true;
            let at = disk.entry_at(entry.number);
            all.corrupt(at, || format!("BAT entry at offset {at} {}", disk.text(&entry, &why)));
            self.go_on(0, 1)
        })?;
        let shared = if places.are_shared() { places.shared(&disk)? } else { Vec::new() };
        places::overlaps(&shared, &mut |one, other| {
            let whose = |owner: Owner| format!("{owner} ({})", disk.guest_text(owner));
            let at = other.range.start;
            all.corrupt(at, || {
                let (one, other) = (whose(one.entry.owner), whose(other.entry.owner));
                format!("{one} and {other} share bytes at {at}")
            });
            self.go_on(0, 1)
        })?;
        if let Some(first) = places.first_stray {
            all.note(disk.entry_at(first), || {
                let of = |one, more| by_number(places.stray, one, more);
                let (entries, are) = (of("entry", "entries"), of("is", "are"));
                format!(
                    "{} {entries} of the BAT, which no block of the disk needs, {are} not zero",
                    places.stray
                )
            });
        }
        if table.fixed && places.not_present > 0 {
            all.note(regions.regions.bat.offset, || {
                let of = |one, more| by_number(places.not_present, one, more);
                let are = of(
                    "block of a fixed disk is not present; it reads",
                    "blocks of a fixed disk are not present; they read",
                );
                format!("{} {are} zero", places.not_present)
            });
        }
        if places.drafts > 0 {
            all.note(regions.regions.bat.offset, || {
                format!(
                    "{} {} the state 5, as drafts of the format had it for unmapped blocks",
                    places.drafts,
                    by_number(places.drafts, "entry has", "entries have")
                )
            });
        }
        let free: u64 = places.gaps().map(|gap| gap.end - gap.start).sum();
        if let Some(first) = places.gaps().next() {
            all.note(first.start, || {
                format!(
                    "{free} bytes within the file are free, from {} on; later writes take them, and making the \
                     image compact (cowhand compact) gives them back",
                    first.start
                )
            });
        }
        (table.mendable, table.cut, table.no_bitmap) = (mendable, cut, no_bitmap);
        (table.places, table.shared) = (places, shared);
        let (len, end, tail) = (table.len, table.places.end(), table.tail());
        if tail > 0 && !cut {
            all.leak(end, tail.div_ceil(MIB), || format!("{tail} bytes at {end} are used by nothing"));
        } else if len % MIB != 0 {
            all.note(len, || format!("the file is {len} bytes long, no whole number of MiB"));
        }
        all.report.total_units = Some(table.geometry.blocks());
        all.report.allocated_units = Some(table.places.stored);
        all.report.fragmented_units = Some(table.places.fragmented);
        all.report.image_end = Some(end.min(len));
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
