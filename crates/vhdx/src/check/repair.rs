//! Repairing: one step puts one kind of fault right, is durable before the next, and everything is looked at anew
//! in between. So a power cut leaves an image that is no worse than before, and running it again finishes.
//!
//! The order: what leads to all else first, the headers, the log, the region tables; then entries that lead nowhere;
//! blocks that share bytes get places of their own; and only where nothing is wrong any more is space given back. The
//! metadata stands in the file once, so nothing of it is put right. Nothing that can be read reads otherwise afterwards,
//! so the DataWriteGuid stays, by which children know the disk.

use std::collections::HashSet;

use cowhand_core::{Error, Fault, MAX_FAULTS, Report, Result, Severity, Storage};

use super::head::{Log, Other};
use super::places::{Disk, Owner, Seen, Why, guest_text};
use super::regions::{self, Found};
use super::{Image, Looked, Table};
use crate::bytes::{self, MIB};
use crate::draft::Draft;
use crate::header::{HEADERS, Header, SIGNATURE};
use crate::journal::{self, Journal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The file type identifier.
    Identifier,
    /// The header that does not count, from the one that does.
    Header,
    /// Both headers, with sequence numbers from the beginning.
    Count,
    /// What the log holds is put in place.
    Replay,
    /// A log that cannot be replayed is emptied.
    Drop,
    /// A region table, from the other one.
    Regions,
    /// Entries that can be put right alone.
    Entries,
    /// The file is made so long that all blocks of which a part is there are in it.
    Grow,
    /// Partly present blocks without a sector bitmap get one.
    Bitmaps,
    /// What shares bytes gets places of its own.
    Apart,
    /// Entries that nobody needs become zero.
    Stray,
    /// The file ends behind what is in use.
    Cut,
}

/// A step's changes of metadata, and what it has to say.
pub(super) struct Change<'a> {
    pub(super) file: &'a dyn Storage,
    pub(super) disk: Disk<'a>,
    journal: Journal,
    draft: Draft<'a>,
    /// Where that ends which is in use of the file.
    pub(super) end: u64,
    pub(super) said: Vec<Fault>,
}

impl Change<'_> {
    /// Says that something is lost, or what became of it.
    pub(super) fn say(&mut self, severity: Severity, number: u64, message: String) {
        say(&mut self.said, severity, self.disk.entry_at(number), message);
    }

    /// Changes an entry of the BAT.
    pub(super) fn set(&mut self, number: u64, raw: u64) -> Result<()> {
        if self.draft.len() == journal::MOST {
            self.commit()?;
        }
        self.draft.write("BAT", self.disk.entry_at(number), &raw.to_le_bytes())
    }

    /// Makes what was changed so far durable; all that was written before is so first.
    pub(super) fn commit(&mut self) -> Result<()> {
        let draft = std::mem::replace(&mut self.draft, Draft::of(self.file));
        self.journal.commit(&draft.into_sectors(), self.end)
    }

    /// Makes the file so long, in whole MiB; it is durable with the next commit.
    pub(super) fn grow(&mut self, end: u64) -> Result<()> {
        self.end = self.end.max(end);
        let len = self.file.len().map_err(|error| Error::io("cannot find the size", error))?;
        match self.end > len {
            true => set_len(self.file, self.end),
            false => Ok(()),
        }
    }
}

fn set_len(file: &dyn Storage, len: u64) -> Result<()> {
    file.set_len(len).map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))
}

impl Image<'_> {
    /// Repairs `all` that can be, but for what loses data where that is to be kept, or only gives back space. The report is of
    /// a look afterwards.
    pub(super) fn repair(&self, all: bool, keep: bool) -> Result<Report> {
        let mut looked = self.look()?;
        let first = looked.found.report.clone();
        let mut said = Vec::new();
        let mut done = Vec::new();
        while let Some(step) = next(&looked, all, keep, &done) {
            self.step(step, &looked, &mut said)?;
            done.push(step);
            looked = self.look()?;
        }
        Ok(settle(first, said, looked.found.report))
    }

    fn step(&self, step: Step, looked: &Looked, said: &mut Vec<Fault>) -> Result<()> {
        let Some(head) = &looked.head else { return Ok(()) };
        let header = head.header;
        match step {
            Step::Identifier => {
                bytes::write(self.file.as_ref(), "file type identifier", 0, SIGNATURE)?;
                return self.sync();
            }
            Step::Header => {
                // The one that counts goes on counting, so that this can be done again; or both are the same.
                let number = header.sequence_number;
                let sequence_number = number.checked_sub(1).unwrap_or(number + 1);
                return self.write_header(1 - head.slot, Header { sequence_number, ..header });
            }
            Step::Count => {
                // While the one that counts has the higher number, the other one is the same.
                self.write_header(1 - head.slot, Header { sequence_number: 1, ..header })?;
                return self.write_header(head.slot, Header { sequence_number: 2, ..header });
            }
            Step::Drop => {
                let what = "what the log held is lost: changes that the last writer made to the metadata, of which \
                            some may be in place";
                say(said, Severity::Corruption, header.log.offset, what.to_owned());
                return Journal::new(self.file.clone(), header, head.slot).settle();
            }
            Step::Replay => return Journal::open(self.file.clone())?.settle(),
            _ => {}
        }
        let Some(regions) = &looked.regions else { return Ok(()) };
        let journal = Journal::open(self.file.clone())?;
        journal.touch(false)?;
        if let (Step::Regions, Some(over)) = (step, regions.over) {
            return regions::write_over(self.file.as_ref(), over);
        }
        let Some(table) = &looked.table else { return Ok(()) };
        let mut change = Change {
            file: self.file.as_ref(),
            disk: table.disk(regions),
            journal,
            draft: Draft::of(self.file.as_ref()),
            end: table.places.end(),
            said: std::mem::take(said),
        };
        let result = self.change(step, table, regions, &mut change).and_then(|()| {
            change.commit()?;
            change.journal.settle()
        });
        *said = change.said;
        result?;
        if step == Step::Cut {
            set_len(self.file.as_ref(), table.places.end())?;
            return self.sync();
        }
        Ok(())
    }

    fn change(&self, step: Step, table: &Table, regions: &Found, change: &mut Change) -> Result<()> {
        let disk = table.disk(regions);
        match step {
            Step::Entries => disk.walk(&mut |seen| {
                let Seen::Wrong(entry, why) = seen else { return Ok(()) };
                let Some((raw, gone)) = disk.mended(&entry, &why, table.fixed) else { return Ok(()) };
                if gone {
                    let (guest, at) = (disk.guest_text(entry.owner), disk.entry_at(entry.number));
                    let what = match entry.owner {
                        Owner::Block(_) => format!("{guest} are lost"),
                        _ => format!("which sectors of {guest} the disk has of its own is lost"),
                    };
                    let why = disk.text(&entry, &why);
                    change.say(
                        Severity::Corruption,
                        entry.number,
                        format!("{what}: BAT entry at offset {at} {why}"),
                    );
                }
                change.set(entry.number, raw)?;
                self.go_on(0, 1)
            }),
            Step::Grow => disk.walk(&mut |seen| {
                let Seen::Wrong(entry, Why::Cut) = seen else { return Ok(()) };
                let offset = crate::bat::offset(entry.raw);
                let guest = disk.guest(entry.owner);
                let lost = guest_text(&(guest.start + (disk.len - offset)..guest.end));
                let len = disk.len;
                change.say(
                    Severity::Corruption,
                    entry.number,
                    format!("{lost} are lost: the file was cut at {len}"),
                );
                change.grow(offset.saturating_add(disk.room(entry.owner).0))
            }),
            Step::Bitmaps | Step::Apart => {
                // Behind the file's end it is a hole, and the disk's last block need not be in the file whole.
                change.end = change.end.max(disk.len.next_multiple_of(MIB));
                match step {
                    Step::Bitmaps => self.bitmaps(&disk, change),
                    _ => self.apart(&table.shared, change),
                }
            }
            Step::Stray => disk.walk(&mut |seen| match seen {
                Seen::Other(entry) if entry.owner == Owner::Nobody => change.set(entry.number, 0),
                _ => Ok(()),
            }),
            _ => Ok(()),
        }
    }

    fn write_header(&self, slot: usize, header: Header) -> Result<()> {
        // Never out of bounds: there are two.
        bytes::write(self.file.as_ref(), "header", HEADERS[slot], &header.to_bytes())?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io("cannot make the repair durable", error))
    }
}

fn say(said: &mut Vec<Fault>, severity: Severity, at: u64, message: String) {
    if said.len() < MAX_FAULTS {
        said.push(Fault::new(severity, Some(at), message));
    }
}

/// The next step, if one helps. None is taken again and again: what it cannot put right stays.
fn next(looked: &Looked, all: bool, keep: bool, done: &[Step]) -> Option<Step> {
    let (found, head) = (&looked.found, looked.head.as_ref()?);
    let readable = found.report.check_errors == 0;
    let counts = head.header.sequence_number <= journal::LAST_SEQUENCE;
    // Where a region table leads to metadata that can be read, it is the right one.
    let regions = looked.regions.as_ref().filter(|_| looked.table.is_some());
    let table = looked.table.as_ref();
    let has_log = head.header.log.length >= MIB && head.log != Log::Unfit;
    let mend = readable && !found.blind && has_log;
    let clean = mend && found.report.corruptions == 0;
    let is = |what: fn(&Table) -> bool| table.is_some_and(what);
    // All that has a place is known by it, and what is behind is nobody's.
    let placed = !is(|table| table.mendable || table.cut);
    let wanted = [
        (Step::Identifier, all && readable && !head.identified),
        (Step::Header, all && readable && head.other != Other::Good),
        (Step::Count, all && readable && !counts),
        (Step::Drop, all && !keep && readable && head.log == Log::Broken),
        (Step::Replay, (all && readable || clean) && table.is_some() && head.log == Log::Pending),
        (Step::Regions, all && mend && regions.is_some_and(|regions| regions.over.is_some())),
        (Step::Entries, all && !keep && mend && is(|table| table.mendable)),
        (Step::Grow, all && !keep && mend && is(|table| table.cut)),
        (Step::Bitmaps, all && !keep && mend && placed && is(|table| table.no_bitmap)),
        (Step::Apart, all && mend && placed && is(|table| !table.shared.is_empty())),
        (Step::Stray, clean && is(|table| table.places.stray > 0)),
        (Step::Cut, clean && is(|table| table.tail() > 0)),
    ];
    let again = |step: Step| done.iter().filter(|other| **other == step).count() < 2;
    wanted.into_iter().find(|(step, needed)| *needed && again(*step)).map(|(step, _)| step)
}

/// What was found first, as far as it is still there, and what the repair did and cost.
fn settle(first: Report, said: Vec<Fault>, last: Report) -> Report {
    let left: HashSet<&str> = last.faults.iter().map(|fault| fault.message.as_str()).collect();
    let fixed = first.faults.into_iter().filter(|fault| !left.contains(fault.message.as_str()));
    let mut faults: Vec<Fault> = fixed.map(|fault| Fault { fixed: true, ..fault }).collect();
    let lost = said.iter().filter(|fault| fault.severity == Severity::Corruption).count() as u64;
    faults.extend(said);
    faults.extend(last.faults.iter().cloned());
    faults.truncate(MAX_FAULTS);
    Report {
        corruptions_fixed: first.corruptions.saturating_sub(last.corruptions),
        leaks_fixed: first.leaks.saturating_sub(last.leaks),
        lost,
        faults,
        ..last
    }
}
