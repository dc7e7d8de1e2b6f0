//! Judges of formats that are recognised and not read: QED, VDI, LUKS, ISO 9660 and UDF, partition tables.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, Place};
use zerocopy::byteorder::{big_endian as be, little_endian as le};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const SECTOR: u64 = 512;

/// One range that is seen, and the part of it that the file had.
#[derive(Debug, Default)]
struct Window {
    bytes: Option<Vec<u8>>,
}

impl Window {
    fn wants(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.bytes.is_none().then_some(range)
    }

    fn see(&mut self, bytes: &[u8]) {
        self.bytes = Some(bytes.to_vec());
    }

    fn get(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }

    /// A structure at that offset of the window.
    fn read<T: FromBytes>(&self, at: usize) -> Option<T> {
        T::read_from_prefix(self.get().get(at..)?).ok().map(|(value, _)| value)
    }
}

/// QED: QEMU's own former format. Nobody uses it, and it can name a backing file.
#[derive(Debug, Default)]
pub(super) struct Qed {
    header: Window,
}

impl Inspector for Qed {
    fn wants(&self) -> Option<Range<u64>> {
        self.header.wants(0..SECTOR)
    }

    fn see(&mut self, bytes: &[u8]) {
        self.header.see(bytes);
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        if !self.header.get().starts_with(b"QED\0") || (compat == Compat::Oslo && end.len < SECTOR) {
            return None;
        }
        let mut finding = Finding::new(Place::Front);
        finding.virtual_size = match compat {
            Compat::Strict => self.header.read::<le::U64>(48).map(le::U64::get),
            Compat::Oslo => Some(end.len),
        };
        finding
            .problem("banned", "images of this format are not taken: it is out of use and cannot be checked");
        Some(finding)
    }
}

/// VirtualBox's VDI.
#[derive(Debug, Default)]
pub(super) struct Vdi {
    header: Window,
}

impl Inspector for Vdi {
    fn wants(&self) -> Option<Range<u64>> {
        self.header.wants(0..SECTOR)
    }

    fn see(&mut self, bytes: &[u8]) {
        self.header.see(bytes);
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        let signature: le::U32 = self.header.read(0x40)?;
        if signature.get() != 0xbeda_107f || (compat == Compat::Oslo && end.len < SECTOR) {
            return None;
        }
        let mut finding = Finding::new(Place::Front);
        let size = self.header.read::<le::U64>(0x170).map(le::U64::get);
        finding.virtual_size = size;
        if compat == Compat::Strict {
            finding.virtual_size = size.and_then(|size| size.checked_next_multiple_of(SECTOR));
            if end.len < SECTOR {
                finding.problem("header", "the file ends inside its header");
            }
            let version: Option<le::U32> = self.header.read(0x44);
            if version.is_some_and(|version| version.get() >> 16 != 1) {
                finding.problem("header", "this version of the format is not known");
            }
            // Type 3 is undo, 4 is differencing; a link to a parent's UUID means the same.
            let kind: Option<le::U32> = self.header.read(0x4c);
            let parent: Option<[u8; 16]> = self.header.read(0x1b8);
            if kind.is_some_and(|kind| matches!(kind.get(), 3 | 4))
                || parent.is_some_and(|parent| parent != [0; 16])
            {
                finding.problem("backing_file", "a differencing disk: it needs its parent");
            }
        }
        Some(finding)
    }
}

/// LUKS, the encrypted disk.
#[derive(Debug, Default)]
pub(super) struct Luks {
    header: Window,
}

impl Luks {
    const HEADER: u64 = 592;
}

impl Inspector for Luks {
    fn wants(&self) -> Option<Range<u64>> {
        self.header.wants(0..Luks::HEADER)
    }

    fn see(&mut self, bytes: &[u8]) {
        self.header.see(bytes);
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        if !self.header.get().starts_with(b"LUKS\xba\xbe") {
            return None;
        }
        let mut finding = Finding::new(Place::Front);
        if end.len < Luks::HEADER {
            match compat {
                Compat::Strict => finding.problem("header", "the file ends inside its header"),
                Compat::Oslo => finding.incomplete = true,
            }
            return Some(finding);
        }
        let version: be::U16 = self.header.read(6)?;
        let payload: be::U32 = self.header.read(104)?;
        if version.get() == 1 {
            finding.virtual_size = end.len.checked_sub(u64::from(payload.get()) * SECTOR);
            if compat == Compat::Strict && finding.virtual_size.is_none() {
                finding.problem("header", "the payload is said to start past the end of the file");
            }
        } else {
            finding.problem("version", format!("LUKS version {} is not supported", version.get()));
        }
        Some(finding)
    }
}

/// ISO 9660 and UDF.
#[derive(Debug, Default)]
pub(super) struct Iso {
    descriptor: Window,
}

impl Iso {
    const AT: u64 = 32 << 10;
    const LEN: u64 = 2 << 10;
}

impl Inspector for Iso {
    fn wants(&self) -> Option<Range<u64>> {
        self.descriptor.wants(Iso::AT..Iso::AT + Iso::LEN)
    }

    fn see(&mut self, bytes: &[u8]) {
        self.descriptor.see(bytes);
    }

    fn finish(&mut self, _end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        let bytes = self.descriptor.get();
        let known = match bytes.get(1..6)? {
            b"CD001" | b"NSR02" | b"NSR03" => true,
            // UDF alone starts with this one.
            b"BEA01" => compat == Compat::Strict,
            _ => false,
        };
        if !known || (compat == Compat::Oslo && (bytes.len() as u64) < Iso::LEN) {
            return None;
        }
        let mut finding = Finding::new(Place::Guest);
        let blocks: Option<le::U32> = self.descriptor.read(80);
        let block: Option<le::U16> = self.descriptor.read(128);
        // Only the primary volume descriptor tells the size.
        finding.virtual_size = match (bytes.first(), blocks, block) {
            (Some(1), Some(blocks), Some(block)) => Some(u64::from(blocks.get()) * u64::from(block.get())),
            _ => None,
        };
        Some(finding)
    }
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Partition {
    boot: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    first: le::U32,
    sectors: le::U32,
}

/// A partition table: the master boot record, a GPT's protective one too.
#[derive(Debug, Default)]
pub(super) struct Gpt {
    record: Window,
}

impl Gpt {
    const PARTITIONS: usize = 446;
    const PROTECTIVE: u8 = 0xee;

    /// A FAT file system's first sector has the same signature: two tables on a fixed disk give it away.
    fn is_fat(&self) -> bool {
        self.record.get().get(0x10) == Some(&2) && self.record.get().get(0x15) == Some(&0xf8)
    }

    fn check(&self) -> Result<(), String> {
        let table: [Partition; 4] =
            self.record.read(Gpt::PARTITIONS).unwrap_or_else(zerocopy::FromZeros::new_zeroed);
        for (number, partition) in table.iter().enumerate() {
            if !matches!(partition.boot, 0 | 0x80) {
                return Err(format!("partition {number} has the boot flag {:#04x}", partition.boot));
            }
            if partition.kind == Gpt::PROTECTIVE
                && (partition.first_chs != [0, 2, 0] || partition.first.get() != 1)
            {
                return Err("the partition that protects the GPT does not start at sector 1".into());
            }
        }
        let used: Vec<usize> =
            (0..4).filter(|number| table.get(*number).is_some_and(|entry| entry.kind != 0)).collect();
        let protective = table.iter().any(|partition| partition.kind == Gpt::PROTECTIVE);
        if used.is_empty() {
            Err("a boot record without a partition".into())
        } else if protective && used != [0] {
            Err("there are partitions beside the one that protects the GPT".into())
        } else {
            Ok(())
        }
    }
}

impl Inspector for Gpt {
    fn wants(&self) -> Option<Range<u64>> {
        self.record.wants(0..SECTOR)
    }

    fn see(&mut self, bytes: &[u8]) {
        self.record.see(bytes);
    }

    fn finish(&mut self, end: &Ending<'_>, _compat: Compat) -> Option<Finding> {
        if self.record.get().get(510..512)? != [0x55, 0xaa] || self.is_fat() {
            return None;
        }
        let mut finding = Finding::new(Place::Guest);
        finding.virtual_size = Some(end.len);
        if let Err(reason) = self.check() {
            finding.problem("mbr", reason);
        }
        Some(finding)
    }
}
