//! Files whose log is pending, of every kind that the format knows: what the log holds is wrong in the file, and comes
//! right by the log alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Mirror;
use crate::vhdx_builder::{VhdxFile, VhdxPart, VhdxPlaces, vhdx_set_log};
use crate::vhdx_log::{LogChange, LogRing, SECTOR, set, vhdx_crc};

const MIB: u64 = 1 << 20;
const OURS: [u8; 16] = *b"this log is ours";
const OTHER: [u8; 16] = *b"that of a former";

/// What `qemu-img` (10.0.2) makes of it once it may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByQemu {
    /// The same as the format says.
    Right,
    /// It finds no error, and the disk is another one.
    Wrong,
    /// It cannot open the file, or finds errors where there are none.
    Refused,
}

/// A pending log.
#[derive(Clone, Copy, Debug)]
pub struct LogCase {
    /// What there is about it.
    pub name: &'static str,
    /// The disk before.
    pub base: fn() -> VhdxFile,
    /// Writes the log.
    pub make: fn(&mut Pending),
    /// The file can be read; else it must be refused.
    pub good: bool,
    /// QEMU's way.
    pub qemu: ByQemu,
}

impl LogCase {
    /// Builds the file; answers what a guest sees in it once the log is replayed.
    pub fn build(&self, path: &Path) -> Mirror {
        let (disk, places) = (self.base)().build(path, &Mirror::default());
        vhdx_pend(path, places, self.make);
        disk
    }
}

/// Makes the log of a built file pending, with what `make` writes into it.
pub fn vhdx_pend(path: &Path, places: VhdxPlaces, make: impl FnOnce(&mut Pending)) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let ring = LogRing::new(&file, places.log.0, places.log.1, OURS);
    make(&mut Pending { file: &file, places, ring });
    vhdx_set_log(path, OURS);
}

/// A file whose log is being written.
#[derive(Debug)]
pub struct Pending<'a> {
    file: &'a File,
    /// Where its parts are.
    pub places: VhdxPlaces,
    /// The log.
    pub ring: LogRing<'a>,
}

impl Pending<'_> {
    /// The n-th 4 KiB of the BAT.
    pub fn bat(&self, n: u64) -> u64 {
        self.places.bat.0 + n * SECTOR
    }

    /// The metadata table.
    pub fn table(&self) -> u64 {
        self.places.metadata.0
    }

    /// The metadata items.
    pub fn items(&self) -> u64 {
        self.places.metadata.0 + (64 << 10)
    }

    /// The change that puts right what stands there; in the file it becomes wrong.
    pub fn hide(&mut self, at: u64) -> LogChange {
        let mut right = vec![0; SECTOR as usize];
        let there = self.len().saturating_sub(at).min(SECTOR) as usize;
        self.file.read_exact_at(&mut right[..there], at).unwrap();
        self.file.write_all_at(&self.stale(), at).unwrap();
        LogChange::Sector(at, right)
    }

    /// A change that makes it wrong.
    pub fn wrong(&self, at: u64) -> LogChange {
        LogChange::Sector(at, self.stale())
    }

    /// What a table may have said before: nobody who opens the file sees that it is wrong. All blocks are zero but two,
    /// which stand where another is now.
    fn stale(&self) -> Vec<u8> {
        let mut entries: Vec<u64> = vec![2; SECTOR as usize / 8];
        entries[9] = self.places.block | 6;
        entries[60] = self.places.block | 6;
        entries.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn hide_all(&mut self, from: u64, count: u64) -> Vec<LogChange> {
        (0..count).map(|n| self.hide(from + n * SECTOR)).collect()
    }

    /// One entry that puts the table right, and one behind it that would make it wrong, but for what `tear` does to it.
    fn torn(&mut self, tear: fn(&mut Vec<u8>)) {
        let right = self.hide(self.bat(0));
        let first = self.ring.entry(None, &[right]);
        let wrong = [self.wrong(self.bat(0)), self.wrong(self.table())];
        let mut bytes = self.ring.bytes(first, &wrong);
        tear(&mut bytes);
        self.ring.write(self.ring.next, &bytes);
    }
}

fn sign(entry: &mut [u8]) {
    let crc = vhdx_crc(entry);
    set(entry, 4, &crc.to_le_bytes());
}

/// A disk whose last block is zeros that are there.
fn plain() -> VhdxFile {
    let in_block = 2048;
    VhdxFile {
        runs: vec![
            (3 * in_block + 5, 40, true),
            (30 * in_block, in_block, true),
            (66 * in_block + 2000, 48, true),
            (69 * in_block, 8, false),
        ],
        ..VhdxFile::new("pending", 70 * MIB)
    }
}

/// One whose table has two sectors of 4 KiB, the second of them empty.
fn hollow() -> VhdxFile {
    VhdxFile { runs: vec![(3 * 2048 + 5, 40, true)], ..VhdxFile::new("hollow", 600 * MIB) }
}

fn large_log() -> VhdxFile {
    VhdxFile { log: 8 * MIB, ..plain() }
}

fn table_at_the_end() -> VhdxFile {
    let mut file = plain();
    file.runs.pop();
    VhdxFile { parts: vec![VhdxPart::Log, VhdxPart::Metadata, VhdxPart::Blocks, VhdxPart::Bat], ..file }
}

/// All of them.
pub fn vhdx_log_cases() -> Vec<LogCase> {
    let case = |name, make| LogCase { name, base: plain, make, good: true, qemu: ByQemu::Right };
    let wrong = |name, make| LogCase { qemu: ByQemu::Wrong, ..case(name, make) };
    let refused = |name, make| LogCase { qemu: ByQemu::Refused, ..case(name, make) };
    let bad = |name, make, qemu| LogCase { good: false, qemu, ..case(name, make) };
    vec![
        case("one entry", |p| {
            let right = p.hide(p.bat(0));
            p.ring.entry(None, &[right]);
        }),
        case("several entries", |p| {
            let right = [p.hide(p.bat(0)), p.hide(p.table()), p.hide(p.items())];
            let (a, b) = (p.wrong(p.bat(0)), p.wrong(p.table()));
            let first = p.ring.entry(None, &[a, right[2].clone()]);
            p.ring.entry(Some(first), &[b.clone(), right[0].clone()]);
            p.ring.entry(Some(first), &[b]);
            p.ring.entry(Some(first), &[right[1].clone()]);
        }),
        wrong("a wrapped ring", |p| {
            let (a, b) = (p.hide(p.bat(0)), p.hide(p.table()));
            p.ring.next = p.ring.room() - 2 * SECTOR;
            let first = p.ring.entry(None, &[a]);
            p.ring.entry(Some(first), &[b]);
        }),
        case("an entry wrapped inside", |p| {
            let right = p.hide_all(p.bat(0), 4);
            p.ring.next = p.ring.room() - 2 * SECTOR;
            p.ring.entry(None, &right);
        }),
        refused("an entry whose descriptors wrap", |p| {
            let right = p.hide_all(p.bat(0), 200);
            p.ring.next = p.ring.room() - SECTOR;
            p.ring.entry(None, &right);
        }),
        case("126 descriptors", |p| {
            let right = p.hide_all(p.bat(0), 126);
            p.ring.entry(None, &right);
        }),
        refused("127 descriptors", |p| {
            let right = p.hide_all(p.bat(0), 127);
            p.ring.entry(None, &right);
        }),
        refused("254 descriptors", |p| {
            let mut right = p.hide_all(p.bat(0), 100);
            right.extend((100..254).map(|n| LogChange::Zero(p.bat(n), SECTOR)));
            p.ring.entry(None, &right);
        }),
        LogCase {
            base: large_log,
            ..refused("600 descriptors in a log of 8 MiB", |p| {
                let mut right: Vec<LogChange> = p.hide_all(p.bat(0), 256);
                right.extend((0..344).map(|n| LogChange::Zero(p.bat(n % 20 + 4), SECTOR)));
                p.ring.next = 5 * MIB;
                p.ring.entry(None, &right);
            })
        },
        case("a last entry that was not written to its end", |p| {
            p.torn(|entry| {
                let last = entry.len() - SECTOR as usize;
                entry[last..].fill(0);
            });
        }),
        case("a last entry with a wrong sum", |p| p.torn(|entry| entry[4] ^= 1)),
        refused("a last entry with an older data sector", |p| {
            p.torn(|entry| {
                let last = entry.len() - 4;
                entry[last] ^= 1;
                sign(entry);
            });
        }),
        refused("a last entry with a data sector of an older start", |p| {
            p.torn(|entry| {
                let last = entry.len() - SECTOR as usize + 4;
                entry[last] ^= 1;
                sign(entry);
            });
        }),
        refused("a last entry with an older descriptor", |p| {
            p.torn(|entry| {
                entry[64 + 32 + 24] ^= 1;
                sign(entry);
            });
        }),
        case("a last entry of which only the head was written", |p| {
            p.torn(|entry| entry.truncate(SECTOR as usize));
        }),
        case("entries of a former log with higher numbers", |p| {
            p.ring.guid = OTHER;
            p.ring.sequence = 1000;
            let wrong = p.wrong(p.bat(0));
            for _ in 0..5 {
                p.ring.entry(None, std::slice::from_ref(&wrong));
            }
            (p.ring.guid, p.ring.sequence) = (OURS, 3);
            let right = p.hide(p.bat(0));
            p.ring.entry(None, std::slice::from_ref(&right));
            // Behind it, as if it went on.
            p.ring.guid = OTHER;
            p.ring.entry(None, &[wrong]);
        }),
        LogCase {
            base: hollow,
            ..case("zero descriptors", |p| {
                p.hide_all(p.bat(1), 1);
                p.hide_all(p.bat(10), 5);
                let right = p.hide(p.bat(0));
                let zeros = [LogChange::Zero(p.bat(1), SECTOR), LogChange::Zero(p.bat(10), 5 * SECTOR)];
                p.ring.entry(None, &[zeros[0].clone(), right, zeros[1].clone()]);
            })
        },
        LogCase {
            base: hollow,
            ..case("a zero descriptor before and behind a sector of the same place", |p| {
                let right = p.hide(p.bat(0));
                let wrong = [p.hide(p.bat(1)), p.wrong(p.bat(1))];
                let zeros = [LogChange::Zero(p.bat(0), SECTOR), LogChange::Zero(p.bat(1), SECTOR)];
                p.ring.entry(None, &[zeros[0].clone(), right, wrong[1].clone(), zeros[1].clone()]);
            })
        },
        case("a head without descriptors", |p| {
            let right = p.hide(p.bat(0));
            let first = p.ring.entry(None, &[right]);
            p.ring.entry(Some(first), &[]);
        }),
        case("nothing but an entry without descriptors", |p| {
            p.ring.entry(None, &[]);
        }),
        refused("a file that grows", |p| {
            let right = p.hide(p.items());
            let len = p.len();
            p.file.set_len(len - MIB).unwrap();
            p.ring.offsets = (len - MIB, len);
            p.ring.entry(None, &[right]);
        }),
        LogCase {
            base: table_at_the_end,
            ..case("changes behind the file's end", |p| {
                let right = [p.hide(p.bat(0)), LogChange::Zero(p.bat(1), MIB - SECTOR)];
                p.file.set_len(p.places.bat.0).unwrap();
                p.ring.offsets = (p.places.bat.0, p.places.bat.0 + MIB);
                p.ring.entry(None, &right);
            })
        },
        wrong("a tail behind what was applied", |p| {
            let wrong = p.wrong(p.bat(0));
            p.ring.entry(None, &[wrong]);
            let right = p.hide(p.table());
            p.ring.entry(None, &[right]);
        }),
        wrong("a higher number without its tail", |p| {
            let right = p.hide(p.bat(0));
            p.ring.sequence = 5;
            p.ring.entry(None, &[right]);
            let wrong = p.wrong(p.bat(0));
            (p.ring.next, p.ring.sequence) = (8 * SECTOR, 9);
            p.ring.entry(Some(40 * SECTOR), &[wrong]);
        }),
        case("two sequences that are whole", |p| {
            let wrong = p.wrong(p.bat(0));
            p.ring.sequence = 5;
            let first = p.ring.entry(None, std::slice::from_ref(&wrong));
            p.ring.entry(Some(first), &[wrong]);
            (p.ring.next, p.ring.sequence) = (100 * SECTOR, 9);
            let right = p.hide(p.bat(0));
            p.ring.entry(None, &[right]);
        }),
        case("numbers past 32 bits", |p| {
            let right = [p.hide(p.bat(0)), p.hide(p.table())];
            p.ring.sequence = u64::from(u32::MAX);
            let first = p.ring.entry(None, &[right[0].clone()]);
            p.ring.entry(Some(first), &[right[1].clone()]);
        }),
        case("the metadata", |p| {
            let right = [p.hide(p.table()), p.hide(p.items())];
            p.ring.entry(None, &right);
        }),
        case("both region tables", |p| {
            let right = [p.hide(192 << 10), p.hide(256 << 10)];
            p.ring.entry(None, &right);
        }),
        case("a ring that went round, each entry its own tail", |p| {
            let right = p.hide(p.bat(0));
            p.ring.next = 7 * SECTOR;
            for n in 0..300 {
                let change = if n == 299 { right.clone() } else { p.wrong(p.bat(0)) };
                p.ring.entry(None, &[change]);
            }
        }),
        wrong("a ring that is full", |p| {
            let right = [p.hide(p.bat(0)), p.hide(p.table()), p.hide(p.items())];
            p.ring.next = p.ring.room() / 2;
            let first = p.ring.next;
            p.ring.entry(None, &right);
            while (p.ring.next + 2 * SECTOR) % p.ring.room() != first {
                let n = p.ring.sequence as usize % 2 * 2;
                p.ring.entry(Some(first), &[right[n].clone()]);
            }
        }),
        bad(
            "a file shorter than its log takes for granted",
            |p| {
                let right = p.hide(p.bat(0));
                let len = p.len();
                p.ring.offsets = (len + MIB, len + MIB);
                p.ring.entry(None, &[right]);
            },
            ByQemu::Refused,
        ),
        bad(
            "a log without an entry",
            |p| {
                p.hide(p.bat(0));
            },
            ByQemu::Wrong,
        ),
        bad(
            "a log with another's entries",
            |p| {
                let right = p.hide(p.bat(0));
                p.ring.guid = OTHER;
                p.ring.entry(None, &[right]);
            },
            ByQemu::Wrong,
        ),
        bad(
            "a log whose only entry is torn",
            |p| {
                let right = p.hide(p.bat(0));
                let mut bytes = p.ring.bytes(0, &[right]);
                bytes[5000] ^= 1;
                p.ring.write(0, &bytes);
            },
            ByQemu::Wrong,
        ),
        bad(
            "a log whose only entry has lost its tail",
            |p| {
                let right = p.hide(p.bat(0));
                p.ring.entry(Some(20 * SECTOR), &[right]);
            },
            ByQemu::Right,
        ),
    ]
}
