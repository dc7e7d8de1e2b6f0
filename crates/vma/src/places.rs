//! Where the clusters of an archive's disks stand in it: compact enough for disks of many terabytes, in any order.

use cowhand_core::{Error, Result};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{Header, clusters};
use crate::layout::{BLOCK, BLOCKS, CLUSTER, EXTENT_HEADER, SLOTS};

/// What an index may take, in bytes: 28 million stretches of clusters.
pub(crate) const BUDGET: usize = 256 << 20;

/// A mask of a cluster whose blocks are all there.
pub(crate) const FULL: u16 = u16::MAX;

/// In place of [`Stored::masks`]: every mask is [`FULL`].
const ALL: u32 = u32::MAX;

/// The bits of [`Run::place`] that count slots.
const SLOT_BITS: u32 = 6;

const _: () = assert!(SLOTS < 1 << SLOT_BITS);
// What a place can tell is more than there is room for.
const _: () = assert!(BUDGET / size_of::<Stored>() < 1 << (u32::BITS - SLOT_BITS));

/// An extent that stores something. Its slots are those with a block at least: others take no place in it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Stored {
    /// Where its blocks begin in the archive.
    data: U64,
    /// Which of [`Places::masks`] is its first slot's, or [`ALL`].
    masks: U32,
    /// How many there are.
    slots: u8,
}

/// Clusters in a row, whose blocks follow each other in one extent.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Run {
    /// The first.
    cluster: U32,
    /// The extent's number, and in the low [`SLOT_BITS`] the first cluster's slot.
    place: U32,
    /// How many, at most [`SLOTS`].
    count: u8,
}

/// One cluster that an extent stores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Which disk's, in the archive's list; `None`: its place is not asked for.
    pub(crate) disk: Option<usize>,
    pub(crate) cluster: u32,
    /// Not 0.
    pub(crate) mask: u16,
}

/// Guest bytes that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) len: u64,
    /// Where they stand in the archive; `None`: they are zero.
    pub(crate) at: Option<u64>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Places {
    stored: Vec<Stored>,
    masks: Vec<U16>,
    /// For each disk, ascending by cluster once it is [`Places::sort`]ed.
    runs: Vec<Vec<Run>>,
    room: Room,
}

impl Run {
    fn first(&self) -> u64 {
        u64::from(self.cluster.get())
    }

    fn end(&self) -> u64 {
        self.first() + u64::from(self.count)
    }

    fn slot(&self) -> usize {
        (self.place.get() & ((1 << SLOT_BITS) - 1)) as usize
    }

    fn extent(&self) -> usize {
        (self.place.get() >> SLOT_BITS) as usize
    }
}

/// Adds to a list, whose room grows by a quarter and is counted.
fn push<T>(list: &mut Vec<T>, room: &mut Room, value: T) -> Result<()> {
    if list.len() == list.capacity() {
        let more = (list.len() / 4).max(64);
        room.take(more.saturating_mul(size_of::<T>()))?;
        list.reserve_exact(more);
    }
    list.push(value);
    Ok(())
}

/// The memory that an index may take, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    of: usize,
    taken: usize,
}

impl Room {
    /// So much, and nothing is taken.
    pub(crate) fn of(bytes: usize) -> Room {
        Room { of: bytes, taken: 0 }
    }

    fn take(&mut self, bytes: usize) -> Result<()> {
        self.check(bytes)?;
        self.taken += bytes;
        Ok(())
    }

    /// Whether there is room for so much more. Errors: nothing but one pass is left then.
    pub(crate) fn check(&self, more: usize) -> Result<()> {
        if self.taken.saturating_add(more) <= self.of {
            return Ok(());
        }
        let most = self.of >> 20;
        Err(Error::unsupported(format!("an index of this archive would take more than {most} MiB"))
            .hint("extract it in one pass: cowhand vma extract"))
    }
}

impl Places {
    /// Of so many disks, nothing is stored.
    pub(crate) fn new(disks: usize, room: Room) -> Places {
        let runs = (0..disks).map(|_| Vec::new()).collect();
        Places { stored: Vec::new(), masks: Vec::new(), runs, room }
    }

    /// Notes an extent whose blocks begin at `data`. Errors: there is no room for more.
    pub(crate) fn add(&mut self, data: u64, slots: &[Slot]) -> Result<()> {
        if slots.iter().all(|slot| slot.disk.is_none()) {
            return Ok(());
        }
        let number = self.stored.len() as u32; // never more: the room ends long before
        let masks = if slots.iter().all(|slot| slot.mask == FULL) {
            ALL
        } else {
            let first = self.masks.len() as u32; // never more: the room ends long before
            for slot in slots {
                push(&mut self.masks, &mut self.room, slot.mask.into())?;
            }
            first
        };
        let count = u8::try_from(slots.len()).unwrap_or(u8::MAX); // never: an extent has 59
        push(
            &mut self.stored,
            &mut self.room,
            Stored { data: data.into(), masks: masks.into(), slots: count },
        )?;
        let mut rest = slots.iter().zip(0_u32..).peekable();
        while let Some((first, slot)) = rest.next() {
            let mut count = 1_u8;
            let follows = |next: &(&Slot, u32), count: u8| {
                next.0.disk == first.disk && first.cluster.checked_add(count.into()) == Some(next.0.cluster)
            };
            while rest.next_if(|next| follows(next, count)).is_some() {
                count += 1;
            }
            let Some(runs) = first.disk.and_then(|disk| self.runs.get_mut(disk)) else { continue };
            let run =
                Run { cluster: first.cluster.into(), place: (number << SLOT_BITS | slot).into(), count };
            push(runs, &mut self.room, run)?;
        }
        Ok(())
    }

    /// Whether there is room for so many bytes beside them.
    pub(crate) fn check_room(&self, more: usize) -> Result<()> {
        self.room.check(more)
    }

    /// Everything was added; nothing of it twice.
    pub(crate) fn sort(&mut self) {
        for runs in &mut self.runs {
            // Most archives are in order already, or nearly so.
            if !runs.is_sorted_by_key(|run| run.cluster.get()) {
                runs.sort_unstable_by_key(|run| run.cluster.get());
            }
            runs.shrink_to_fit();
        }
        self.stored.shrink_to_fit();
        self.masks.shrink_to_fit();
    }

    /// What stands at the disk's guest byte `at`, and how far: to the end of a run, or up to the next one, or `max`.
    pub(crate) fn look(&self, disk: usize, at: u64, max: u64) -> Piece {
        let runs = self.runs.get(disk).map(Vec::as_slice).unwrap_or_default();
        let cluster = at / CLUSTER;
        let (before, behind) = runs.split_at(runs.partition_point(|run| run.first() <= cluster));
        match before.last().filter(|run| cluster < run.end()) {
            Some(run) => self.within(run, at, max),
            None => {
                let next = behind.first().map_or(u64::MAX, |run| run.first() * CLUSTER);
                Piece { len: (next - at).min(max), at: None }
            }
        }
    }

    /// What stands at `at`, which lies in `run`.
    fn within(&self, run: &Run, at: u64, max: u64) -> Piece {
        let to_end = run.end() * CLUSTER - at;
        let Some(stored) = self.stored.get(run.extent()) else { return Piece { len: max, at: None } }; // never: it was added
        let into = (at / CLUSTER - run.first()) as usize;
        let slot = run.slot() + into;
        let data = stored.data.get();
        let Some(masks) = self.masks_of(stored) else {
            return Piece { len: to_end.min(max), at: Some(data + slot as u64 * CLUSTER + at % CLUSTER) };
        };
        let mut masks = masks.iter().map(|mask| mask.get());
        let before: u32 = masks.by_ref().take(slot).map(u16::count_ones).sum();
        let here = masks.next().unwrap_or(0);
        let block = (at % CLUSTER / BLOCK) as u32;
        let is_there = here >> block & 1 == 1;
        let mut rest = masks.take(usize::from(run.count).saturating_sub(into + 1));
        // The blocks from this one on that are there as it is, or are not.
        let (mut bits, mut left, mut blocks) = (here >> block, BLOCKS - block, 0);
        loop {
            let alike = if is_there { bits.trailing_ones() } else { bits.trailing_zeros() }.min(left);
            blocks += alike;
            match rest.next().filter(|_| alike == left) {
                Some(mask) => (bits, left) = (mask, BLOCKS),
                None => break,
            }
        }
        let len = (u64::from(blocks) * BLOCK - at % BLOCK).min(to_end).min(max);
        let own = (u32::from(here) & ((1 << block) - 1)).count_ones();
        let host = data + u64::from(before + own) * BLOCK + at % BLOCK;
        Piece { len, at: is_there.then_some(host) }
    }

    /// The masks of an extent's slots; `None`: all are full.
    fn masks_of(&self, stored: &Stored) -> Option<&[U16]> {
        let first = Some(stored.masks.get()).filter(|first| *first != ALL)? as usize;
        Some(self.masks.get(first..).and_then(|rest| rest.get(..stored.slots.into())).unwrap_or_default())
    }

    /// The extents, the masks, the runs of each disk: to be kept.
    pub(crate) fn parts(&self) -> (&[Stored], &[U16], &[Vec<Run>]) {
        (&self.stored, &self.masks, &self.runs)
    }

    /// What was kept; it may contradict itself until it was [`Places::check`]ed.
    pub(crate) fn of_parts(stored: Vec<Stored>, masks: Vec<U16>, runs: Vec<Vec<Run>>) -> Places {
        Places { stored, masks, runs, room: Room::of(BUDGET) }
    }

    /// Whether these can be the places of an archive of `len` bytes that begins with `header`. Errors: why not.
    pub(crate) fn check(&self, header: &Header, len: u64) -> Result<(), &'static str> {
        let mut end = header.size;
        for stored in &self.stored {
            let slots = u64::from(stored.slots);
            if slots == 0 || slots > SLOTS as u64 {
                return Err("an extent has no slots, or too many");
            }
            let blocks = match self.masks_of(stored) {
                None => slots * u64::from(BLOCKS),
                Some(masks) if masks.len() as u64 == slots && masks.iter().all(|mask| mask.get() != 0) => {
                    masks.iter().map(|mask| u64::from(mask.get().count_ones())).sum()
                }
                Some(_) => return Err("an extent's masks are not there, or empty"),
            };
            let data = stored.data.get();
            if end.checked_add(EXTENT_HEADER as u64).is_none_or(|least| data < least) {
                return Err("an extent stands where another is");
            }
            end = data.checked_add(blocks * BLOCK).ok_or("an extent stands beyond the archive's end")?;
        }
        if end > len {
            return Err("an extent stands beyond the archive's end");
        }
        let mut used = vec![0_u64; self.stored.len()];
        for (disk, runs) in header.manifest.disks.iter().zip(&self.runs) {
            let mut next = 0;
            for run in runs {
                if run.first() < next || run.count == 0 {
                    return Err("clusters are not in order");
                }
                next = run.end();
                let extent = self.stored.get(run.extent()).zip(used.get_mut(run.extent()));
                let (stored, used) = extent.ok_or("an extent is not there")?;
                let end = run.slot() + usize::from(run.count);
                if end > stored.slots.into() {
                    return Err("an extent has fewer clusters");
                }
                let slots = (1_u64 << end) - (1 << run.slot());
                if *used & slots != 0 {
                    return Err("two clusters stand in one place");
                }
                *used |= slots;
            }
            if next > clusters(disk) || (disk.memory && !runs.is_empty()) {
                return Err("a disk has more clusters than it can");
            }
        }
        Ok(())
    }
}
