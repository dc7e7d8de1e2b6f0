//! Repair, step by step: each puts one kind of fault right, is durable before the next, and everything is looked at anew
//! in between. So a power cut leaves an image that is no worse than before, and running it again finishes.
//!
//! The order: the footers first, for the copy at the front stands in for the one at the end while the file's length
//! changes; then entries that lead nowhere; blocks that share bytes get places of their own; the batmap; and only where
//! nothing is wrong any more is space given back. The header stands in the file once, so nothing of it is put right, and
//! while it cannot be believed nothing else is but the footers.

use std::collections::HashSet;
use std::ops::Range;

use cowhand_core::{Error, Fault, MAX_FAULTS, Report, Result, Severity};

use super::footers::End;
use super::places::{BadEntries, Why};
use super::{Disk, Image, Looked, guest_text};
use crate::bat::FREE;
use crate::footer::FOOTER_LEN;
use crate::geometry::SECTOR;

/// Blocks that one repair copies at most: who shares more is not damaged but made so.
const MAX_COPIES: usize = 4096;
/// Entries that one repair makes free at most; the largest disk in blocks of 512 KiB has a quarter.
const MAX_FREED: u64 = 1 << 24;
/// Payload of new places stands on these boundaries.
const ALIGNMENT: u64 = 4096;
/// What is copied or written at once.
const PIECE: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The copy at the front, from the footer at the end.
    Head,
    /// The footer at the end, from the copy at the front, in its place.
    Tail,
    /// The file is made so long that all blocks of which a part is there are in it, and a footer stands behind them.
    Grow,
    /// Entries that lead where no block can stand become free.
    Entries,
    /// Blocks that share bytes get places of their own.
    Apart,
    Batmap,
    /// Entries past the disk's blocks become free.
    Beyond,
    /// The footer moves behind the last block, and the file ends there.
    Cut,
}

impl Image<'_> {
    /// Repairs `all` that can be, but for what loses data where that is to be kept, or only gives back space. The report is of
    /// a look afterwards.
    pub(super) fn repair(&self, all: bool, keep: bool) -> Result<Report> {
        let mut looked = self.look()?;
        let first = looked.found.report.clone();
        let mut lost = Vec::new();
        let mut done = Vec::new();
        while let Some(step) = next(&looked, all, keep, &done) {
            let Some(disk) = &looked.disk else { break };
            self.step(step, disk, &mut lost)?;
            done.push(step);
            looked = self.look()?;
        }
        Ok(settle(first, lost, looked.found.report))
    }

    fn step(&self, step: Step, disk: &Disk, lost: &mut Vec<Fault>) -> Result<()> {
        match step {
            Step::Head => {
                self.write("the footer's copy", 0, &disk.ends.footer)?;
                self.sync()
            }
            Step::Tail => {
                self.write("the footer", disk.ends.tail_at, &disk.ends.footer)?;
                self.sync()
            }
            Step::Grow => self.grow(disk, lost),
            Step::Entries => {
                let gone = || disk.bad.iter().filter(|bad| bad.why != Why::Cut);
                for bad in gone().take(MAX_FAULTS) {
                    let (at, guest) = (disk.entry_at(bad), disk.guest(&bad.blocks));
                    let what = disk.places.text(bad, &disk.found);
                    lose(lost, at, format!("{guest} are lost: BAT entry at offset {at} {what}"));
                }
                self.free(disk, gone())
            }
            Step::Apart => self.apart(disk),
            Step::Batmap => self.mend_batmap(disk),
            Step::Beyond => self.free(disk, disk.beyond.iter()),
            Step::Cut => {
                let at = disk.places.end().next_multiple_of(SECTOR);
                self.write("the footer", at, &disk.ends.footer)?;
                self.sync()?;
                let end = at + FOOTER_LEN;
                self.file
                    .set_len(end)
                    .map_err(|error| Error::io(format!("cannot make it {end} bytes long"), error))?;
                self.sync()
            }
        }
    }

    /// What a cut file still has of its last blocks is kept; the rest of them reads zero.
    fn grow(&self, disk: &Disk, lost: &mut Vec<Fault>) -> Result<()> {
        let room = disk.found.data_end;
        let mut end = disk.places.end();
        for bad in &disk.bad {
            if bad.why != Why::Cut {
                continue;
            }
            let place = disk.places.range(bad.blocks.start, bad.entry);
            end = end.max(place.end);
            let payload = place.start + disk.header.bitmap_len();
            for block in bad.blocks.clone() {
                let from = block * disk.header.block_size;
                let to = (from + disk.header.block_size).min(disk.size);
                let guest = guest_text(from + room.saturating_sub(payload), to);
                lose(lost, disk.entry_at(bad), format!("{guest} are lost: the file was cut at {room}"));
            }
        }
        let last = disk.found.file_len.next_multiple_of(SECTOR).saturating_sub(FOOTER_LEN);
        let at = end.next_multiple_of(SECTOR).max(last);
        if disk.ends.tail == End::Good && !disk.ends.differ && at > disk.ends.tail_at {
            // It stands within a block now, whose guest never wrote it.
            let len = (disk.found.file_len - disk.ends.tail_at).min(FOOTER_LEN);
            let zeros = [0; FOOTER_LEN as usize];
            self.write("zeros", disk.ends.tail_at, zeros.get(..len as usize).unwrap_or(&zeros))?;
            self.sync()?;
        }
        self.write("the footer", at, &disk.ends.footer)?;
        self.sync()
    }

    /// Makes entries free.
    fn free<'b>(&self, disk: &Disk, entries: impl Iterator<Item = &'b BadEntries>) -> Result<()> {
        let ones = vec![0xff; PIECE as usize];
        for bad in entries {
            let mut at = disk.entry_at(bad);
            let end = at + 4 * (bad.blocks.end - bad.blocks.start);
            while at < end {
                let len = (end - at).min(PIECE);
                self.write("the table", at, ones.get(..len as usize).unwrap_or(&ones))?;
                at += len;
            }
        }
        self.sync()
    }

    /// Copies what begins within something else behind everything, and lets the table say so. What the disk reads does not
    /// change by that; but writing to one block does not change the other any more.
    fn apart(&self, disk: &Disk) -> Result<()> {
        let (bitmap, size) = (disk.header.bitmap_len(), disk.header.block_size);
        let mut payload = disk.places.end();
        let mut moves = Vec::new();
        for (block, from) in disk.places.in_the_way().into_iter().take(MAX_COPIES) {
            payload = (payload + bitmap).next_multiple_of(ALIGNMENT);
            let Some(entry) = u32::try_from((payload - bitmap) / SECTOR).ok().filter(|to| *to != FREE) else {
                break;
            };
            moves.push((block, from, entry));
            payload += size;
        }
        // First, so that a footer stands at the end whenever the power goes.
        let at = payload.max(disk.found.file_len.next_multiple_of(SECTOR) - FOOTER_LEN);
        self.write("the footer", at, &disk.ends.footer)?;
        self.sync()?;
        for (_, from, entry) in &moves {
            self.copy(from, u64::from(*entry) * SECTOR)?;
        }
        self.sync()?;
        for (block, _, entry) in &moves {
            let at = disk.header.bat_at + 4 * u64::from(*block);
            self.write("the table", at, &entry.to_be_bytes())?;
        }
        self.sync()
    }

    /// Copies bytes of the file; what is a hole on both sides stays one.
    fn copy(&self, from: &Range<u64>, to: u64) -> Result<()> {
        let failed = |at| move |error| Error::io("cannot read a block", error).at(at);
        let mut bytes = vec![0; PIECE.min(from.end - from.start) as usize];
        let mut at = from.start;
        while at < from.end {
            self.go_on(0, 1)?;
            let target = to + (at - from.start);
            let mut len = (from.end - at).min(PIECE);
            let data = self.file.data_at(at).map_err(failed(at))?.map_or(from.end, |data| data.start);
            if data > at {
                // A hole, and where it goes perhaps another; past the file's old end it is one.
                let next = self.file.data_at(target).map_err(failed(target))?;
                let same = next.map_or(u64::MAX, |next| next.start.saturating_sub(target));
                if same > 0 {
                    at += same.min(data - at);
                    continue;
                }
                len = len.min(data - at);
            }
            let piece = bytes.get_mut(..len as usize).unwrap_or_default();
            self.file.read_at(at, piece).map_err(failed(at))?;
            self.write("a block", target, piece)?;
            at += len;
        }
        Ok(())
    }

    fn write(&self, what: &str, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(at, bytes).map_err(|error| Error::io(format!("cannot write {what}"), error).at(at))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io("cannot make the repair durable", error))
    }
}

fn lose(lost: &mut Vec<Fault>, at: u64, message: String) {
    if lost.len() < MAX_FAULTS {
        lost.push(Fault::new(Severity::Corruption, Some(at), message));
    }
}

/// The next step, if one helps. None is taken again and again: what it cannot put right stays.
fn next(looked: &Looked, all: bool, keep: bool, done: &[Step]) -> Option<Step> {
    let (found, disk) = (&looked.found, looked.disk.as_ref()?);
    let ends = &disk.ends;
    let sound = !ends.strangers && !found.tangled && found.report.check_errors == 0;
    let entries = |list: &[BadEntries]| {
        !list.is_empty() && list.iter().map(|bad| bad.blocks.end - bad.blocks.start).sum::<u64>() <= MAX_FREED
    };
    let cut = disk.bad.iter().any(|bad| bad.why == Why::Cut);
    let tail_is_wrong = matches!(ends.tail, End::BadSum | End::Foreign);
    let append = ends.tail == End::Absent && !found.tail_is_unused;
    let clean = found.report.corruptions == 0;
    let mend = all && sound && !found.blind;
    let wanted = [
        (Step::Head, all && sound && (ends.head != End::Good || ends.differ)),
        (Step::Tail, all && sound && !cut && (tail_is_wrong || ends.short)),
        (Step::Grow, mend && (append || cut) && !(cut && keep)),
        (Step::Entries, mend && !keep && entries(&disk.bad)),
        (Step::Apart, mend && found.shared && !disk.places.in_the_way().is_empty()),
        (Step::Batmap, mend && found.batmap),
        (Step::Beyond, sound && clean && !found.blind && entries(&disk.beyond)),
        (Step::Cut, sound && clean && !found.blind && found.tail_is_unused),
    ];
    let again = |step: Step| done.iter().filter(|other| **other == step).count() < 2;
    wanted.into_iter().find(|(step, needed)| *needed && again(*step)).map(|(step, _)| step)
}

/// What was found first, as far as it is still there, and what the repair cost.
fn settle(first: Report, lost: Vec<Fault>, last: Report) -> Report {
    let left: HashSet<&str> = last.faults.iter().map(|fault| fault.message.as_str()).collect();
    let fixed = first.faults.into_iter().filter(|fault| !left.contains(fault.message.as_str()));
    let mut faults: Vec<Fault> = fixed.map(|fault| Fault { fixed: true, ..fault }).collect();
    let gone = lost.len() as u64;
    faults.extend(lost);
    faults.extend(last.faults.iter().cloned());
    faults.truncate(MAX_FAULTS);
    Report {
        corruptions_fixed: first.corruptions.saturating_sub(last.corruptions),
        leaks_fixed: first.leaks.saturating_sub(last.leaks),
        lost: gone,
        faults,
        ..last
    }
}
