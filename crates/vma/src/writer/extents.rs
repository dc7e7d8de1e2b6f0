//! Extents that are written: clusters are listed as they come, their blocks follow the list, and zero blocks are left out.

use std::io::{ErrorKind, IoSlice, Write};
use std::ops::Range;

use cowhand_core::{Error, Result, is_zero};
use md5::{Digest, Md5};
use zerocopy::{FromZeros, IntoBytes};

use crate::layout::{BLOCK, CLUSTER, EXTENT_HEADER, EXTENT_MAGIC, RawExtent, RawSlot, SLOTS};

const BLOCK_LEN: usize = BLOCK as usize;
const CLUSTER_LEN: usize = CLUSTER as usize;
/// Whole extents are collected up to so many bytes: one of zeros has 512.
const COLLECT: usize = 1 << 20;
/// Runs of blocks from so many bytes on are not copied, where the extent is complete before the caller wants them back.
const LEND: usize = 32 << 10;

/// Extents on their way into `to`.
pub(super) struct Extents<W> {
    to: W,
    uuid: [u8; 16],
    /// Bytes that were not written yet; the last of them are those of an extent that is being made.
    out: Vec<u8>,
    /// Where in `out` that one's header stands.
    open: Option<usize>,
    slots: [RawSlot; SLOTS],
    used: usize,
    blocks: u16,
    /// There was one.
    any: bool,
}

/// Guest bytes that are written from where they are: before the byte of `out` at this offset come these.
type Lent<'a> = Vec<(usize, &'a [u8])>;

impl<W: Write> Extents<W> {
    pub(super) fn new(to: W, uuid: [u8; 16]) -> Extents<W> {
        Extents {
            to,
            uuid,
            out: Vec::new(),
            open: None,
            slots: [RawSlot::default(); SLOTS],
            used: 0,
            blocks: 0,
            any: false,
        }
    }

    /// What stands in front of the first extent.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
    }

    /// The clusters from `first` on, whose bytes are `data`; the last may be short, and is filled with zeros. Answers how
    /// many bytes of it are in blocks of zeros, which are left out.
    pub(super) fn clusters(&mut self, dev_id: u8, first: u64, data: &[u8]) -> Result<u64> {
        let mut zeros = 0;
        let mut lent = Lent::new();
        let mut run = 0..0;
        let count = data.len().div_ceil(CLUSTER_LEN);
        for ((index, bytes), cluster) in data.chunks(CLUSTER_LEN).enumerate().zip(first..) {
            self.open();
            // The same for all clusters of an extent.
            let lends = self.used + (count - index) >= SLOTS;
            let mut mask = 0;
            for (bit, block) in bytes.chunks(BLOCK_LEN).enumerate() {
                if is_zero(block) {
                    zeros += block.len() as u64;
                    continue;
                }
                mask |= 1 << bit;
                let start = index * CLUSTER_LEN + bit * BLOCK_LEN;
                if run.end != start {
                    self.take_run(data, std::mem::replace(&mut run, start..start), lends, &mut lent);
                }
                run.end = start + block.len();
            }
            self.slot(dev_id, cluster, mask);
            if self.used == SLOTS {
                self.take_run(data, std::mem::take(&mut run), lends, &mut lent);
                self.seal();
                self.send(&mut lent)?;
            }
        }
        self.take_run(data, run, false, &mut lent);
        Ok(zeros)
    }

    /// Clusters that are zero.
    pub(super) fn zeros(&mut self, dev_id: u8, clusters: Range<u64>) -> Result<()> {
        for cluster in clusters {
            self.open();
            self.slot(dev_id, cluster, 0);
            if self.used == SLOTS {
                self.seal();
                self.send(&mut Lent::new())?;
            }
        }
        Ok(())
    }

    /// Clusters that are written as a whole, whatever is in them; what `data` lacks is zero.
    pub(super) fn full(&mut self, dev_id: u8, clusters: Range<u64>, data: &[u8]) -> Result<()> {
        let mut chunks = data.chunks(CLUSTER_LEN);
        for cluster in clusters {
            self.open();
            let end = self.out.len() + CLUSTER_LEN;
            self.out.extend(chunks.next().unwrap_or_default());
            self.out.resize(end, 0);
            self.slot(dev_id, cluster, !0);
            if self.used == SLOTS {
                self.seal();
                self.send(&mut Lent::new())?;
            }
        }
        Ok(())
    }

    /// Writes all there is, and flushes. An archive without any extent gets an empty one, as Proxmox's programs write it.
    pub(super) fn finish(mut self) -> Result<W> {
        if !self.any {
            self.open();
        }
        if self.open.is_some() {
            self.seal();
        }
        self.write(&Lent::new())?;
        self.to.flush().map_err(failed)?;
        Ok(self.to)
    }

    /// Makes room for the header, if no extent is being made.
    fn open(&mut self) {
        self.any = true;
        if self.open.is_none() {
            self.open = Some(self.out.len());
            self.out.resize(self.out.len() + EXTENT_HEADER, 0);
        }
    }

    /// Takes blocks that stand one behind the other in `data`: copied, or lent.
    fn take_run<'a>(&mut self, data: &'a [u8], run: Range<usize>, lends: bool, lent: &mut Lent<'a>) {
        let padding = run.end.next_multiple_of(BLOCK_LEN) - run.end;
        let bytes = data.get(run).unwrap_or_default();
        if lends && bytes.len() >= LEND {
            lent.push((self.out.len(), bytes));
        } else {
            self.out.extend(bytes);
        }
        self.out.resize(self.out.len() + padding, 0);
    }

    fn slot(&mut self, dev_id: u8, cluster: u64, mask: u16) {
        if let Some(slot) = self.slots.get_mut(self.used) {
            slot.mask.set(mask);
            slot.dev_id = dev_id;
            slot.cluster.set(cluster as u32); // never cut: a stream has at most 2^32 of them
        }
        self.used += 1;
        self.blocks += mask.count_ones() as u16; // never cut, nor too many: 59 times 16
    }

    /// Writes the header of the extent that is being made: it is complete.
    fn seal(&mut self) {
        let Some(at) = self.open.take() else { return };
        let mut header = RawExtent::new_zeroed();
        header.magic = EXTENT_MAGIC;
        header.uuid = self.uuid;
        header.block_count.set(self.blocks);
        for (to, slot) in header.blockinfo.iter_mut().zip(&self.slots).take(self.used) {
            *to = *slot;
        }
        header.md5sum = Md5::digest(header.as_bytes()).into();
        if let Some(to) = self.out.get_mut(at..at + EXTENT_HEADER) {
            to.copy_from_slice(header.as_bytes());
        }
        self.used = 0;
        self.blocks = 0;
    }

    /// Writes what is complete, unless so little of it is collected that more can be.
    fn send(&mut self, lent: &mut Lent<'_>) -> Result<()> {
        if lent.is_empty() && self.out.len() < COLLECT {
            return Ok(());
        }
        self.write(lent)?;
        lent.clear();
        Ok(())
    }

    fn write(&mut self, lent: &Lent<'_>) -> Result<()> {
        let mut slices = Vec::with_capacity(2 * lent.len() + 1);
        let mut done = 0;
        for (before, bytes) in lent {
            slices.push(IoSlice::new(self.out.get(done..*before).unwrap_or_default()));
            slices.push(IoSlice::new(bytes));
            done = *before;
        }
        slices.push(IoSlice::new(self.out.get(done..).unwrap_or_default()));
        let mut rest = slices.as_mut_slice();
        // What is empty goes without being written.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.to.write_vectored(rest) {
                Ok(0) => return Err(failed(ErrorKind::WriteZero.into())),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.out.clear();
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("cannot write the archive", error)
}
