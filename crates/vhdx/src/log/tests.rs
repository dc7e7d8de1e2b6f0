//! A small log writer of its own, byte by byte from section 2.3, and what replaying its logs must give.

use super::*;
use crate::bytes::MIB;
use crate::header::{self, HEADERS, Header};
use crate::journal::Journal;
use cowhand_core::testing::{Fault, Faults, Io, Journal as Recorder, Plan, WRITES};
use cowhand_core::{ErrorKind, Folder, MemoryFolder, MemoryStorage};
use proptest::prelude::*;

const LOG: u64 = MIB;
/// Where the logs of these tests put their changes.
const DATA: u64 = 16 * MIB;
const LEN: u64 = 20 * MIB;
const OURS: Guid = Guid::of(1);

#[derive(Clone, Debug)]
enum Do {
    Zero(u64, u64),
    Sector(u64, Box<[u8; 4096]>),
}

fn sector(byte: u8) -> [u8; 4096] {
    let mut sector = [byte; 4096];
    sector[0] = !byte;
    sector[4095] = byte.wrapping_add(1);
    sector
}

/// Writes entries into a ring.
struct Logger {
    file: Arc<MemoryStorage>,
    length: u64,
    guid: Guid,
    at: u64,
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
}

impl Logger {
    fn new(mib: u64, at: u64) -> Self {
        let file = Arc::new(MemoryStorage::new());
        file.set_len(LEN).unwrap();
        for page in 0..1024 {
            file.write_at(DATA + page * 4096, &[0x55; 4096]).unwrap();
        }
        Logger { file, length: mib * MIB, guid: OURS, at, tail: at, sequence: 1, flushed: LEN, last: LEN }
    }

    /// The sectors of an entry.
    fn sectors(&self, changes: &[Do]) -> Vec<[u8; 4096]> {
        let mut head = vec![0; 64];
        let mut data = Vec::new();
        for change in changes {
            let mut put = |signature: &[u8; 4], trailing: &[u8], leading: &[u8], at: u64| {
                head.extend_from_slice(signature);
                head.extend_from_slice(trailing);
                head.extend_from_slice(leading);
                head.extend_from_slice(&at.to_le_bytes());
                head.extend_from_slice(&self.sequence.to_le_bytes());
            };
            match change {
                Do::Zero(at, length) => put(b"zero", &[0; 4], &length.to_le_bytes(), *at),
                Do::Sector(at, bytes) => {
                    put(b"desc", &bytes[4092..], &bytes[..8], *at);
                    let mut sector = **bytes;
                    sector[..4].copy_from_slice(b"data");
                    sector[4..8].copy_from_slice(&((self.sequence >> 32) as u32).to_le_bytes());
                    sector[4092..].copy_from_slice(&(self.sequence as u32).to_le_bytes());
                    data.push(sector);
                }
            }
        }
        head.resize(head.len().next_multiple_of(4096), 0);
        let mut sectors: Vec<[u8; 4096]> =
            head.chunks(4096).map(|sector| sector.try_into().unwrap()).collect();
        sectors.extend(data);
        let length = sectors.len() as u32 * 4096;
        let first = &mut sectors[0];
        first[..4].copy_from_slice(b"loge");
        first[8..12].copy_from_slice(&length.to_le_bytes());
        first[12..16].copy_from_slice(&(self.tail as u32).to_le_bytes());
        first[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        first[24..28].copy_from_slice(&(changes.len() as u32).to_le_bytes());
        first[32..48].copy_from_slice(&self.guid.raw());
        first[48..56].copy_from_slice(&self.flushed.to_le_bytes());
        first[56..64].copy_from_slice(&self.last.to_le_bytes());
        seal(&mut sectors);
        sectors
    }

    fn put(&mut self, sectors: &[[u8; 4096]]) {
        for sector in sectors {
            self.file.write_at(LOG + self.at, sector).unwrap();
            self.at = (self.at + 4096) % self.length;
        }
        self.sequence += 1;
    }

    /// Writes an entry; answers where it begins.
    fn entry(&mut self, changes: &[Do]) -> u64 {
        let at = self.at;
        let sectors = self.sectors(changes);
        self.put(&sectors);
        at
    }

    fn replay(&self) -> Result<Arc<dyn Storage>> {
        replay(self.file.clone(), LogPlace { guid: OURS, offset: LOG, length: self.length })
    }

    /// First bytes of the data's first pages after replaying.
    fn pages(&self, count: u64) -> Vec<u8> {
        let file = self.replay().unwrap();
        (0..count)
            .map(|page| {
                let mut all = [0; 4096];
                file.read_at(DATA + page * 4096, &mut all).unwrap();
                assert!(all[1..4095].iter().all(|byte| *byte == all[1]));
                all[1]
            })
            .collect()
    }
}

/// Sets the checksum.
fn seal(sectors: &mut [[u8; 4096]]) {
    sectors[0][4..8].fill(0);
    let crc = crc32c::crc32c(&sectors.concat());
    sectors[0][4..8].copy_from_slice(&crc.to_le_bytes());
}

fn page(n: u64, byte: u8) -> Do {
    Do::Sector(DATA + n * 4096, Box::new(sector(byte)))
}

#[test]
fn entries_are_replayed_in_order_and_the_file_stays() {
    let mut log = Logger::new(1, 0);
    log.entry(&[page(0, 1), page(1, 2), Do::Zero(DATA + 2 * 4096, 8192)]);
    log.entry(&[page(1, 3), page(3, 4)]);
    let before = log.file.to_vec();
    assert_eq!(log.pages(5), [1, 3, 0, 4, 0x55]);
    let mut all = [0; 4096];
    log.replay().unwrap().read_at(DATA, &mut all).unwrap();
    assert_eq!(all, sector(1));
    assert!(log.file.to_vec() == before);
}

#[test]
fn the_ring_wraps_between_entries_and_within_one() {
    for back in 1..6 {
        let mut log = Logger::new(1, MIB - back * 4096);
        log.entry(&[page(0, 1), page(1, 2)]);
        log.entry(&[page(1, 3), page(2, 4)]);
        assert_eq!(log.pages(4), [1, 3, 4, 0x55], "{back} sectors before the end");
    }
}

#[test]
fn an_entry_has_as_many_descriptors_as_it_needs() {
    for count in [126, 127, 254, 255, 400] {
        let mut log = Logger::new(2, 2 * MIB - 100 * 4096);
        let changes: Vec<Do> = (0..count)
            .map(|n| if n % 5 == 4 { Do::Zero(DATA + n * 4096, 4096) } else { page(n, n as u8) })
            .collect();
        log.entry(&changes);
        let expected: Vec<u8> = (0..count).map(|n| if n % 5 == 4 { 0 } else { n as u8 }).collect();
        assert_eq!(log.pages(count), expected);
    }
}

#[test]
fn a_length_that_no_file_has_is_refused() {
    for last in [1 << 63, u64::MAX] {
        let mut log = Logger::new(1, 0);
        log.last = last;
        log.entry(&[page(0, 1)]);
        assert_eq!(log.replay().unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let mut log = Logger::new(1, 0);
    log.entry(&[Do::Zero(1 << 62, 1 << 62)]);
    assert_eq!(log.replay().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_lies_before_the_heads_tail_is_not_replayed() {
    let mut log = Logger::new(1, 4096);
    log.entry(&[page(0, 1)]);
    log.entry(&[page(1, 2)]);
    log.tail = log.entry(&[page(2, 3)]);
    log.entry(&[page(3, 4)]);
    assert_eq!(log.pages(5), [0x55, 0x55, 3, 4, 0x55]);
}

#[test]
fn torn_entries_do_not_count() {
    // Each way in which the last entry may be torn, and that the one before is the head then.
    type Tear = fn(&mut Vec<[u8; 4096]>);
    let tears: [Tear; 8] = [
        |sectors| sectors[2] = [0; 4096],
        |sectors| sectors[1] = sector(9),
        |sectors| sectors[1][4095] ^= 1,
        |sectors| sectors[0][64 + 24] ^= 1,
        |sectors| sectors[0][100] ^= 1,
        |sectors| sectors[2][50] ^= 1,
        |sectors| {
            // A right checksum over wrong sequence numbers is no better.
            sectors[2][4] ^= 1;
            seal(sectors);
        },
        |sectors| {
            sectors[0][64] = b'x';
            seal(sectors);
        },
    ];
    for (n, tear) in tears.into_iter().enumerate() {
        let mut log = Logger::new(1, MIB - 3 * 4096);
        log.entry(&[page(0, 1)]);
        let mut torn = log.sectors(&[page(0, 2), page(1, 3)]);
        tear(&mut torn);
        log.put(&torn);
        assert_eq!(log.pages(2), [1, 0x55], "tear {n}");
    }
}

#[test]
fn of_two_sequences_the_one_with_the_higher_head_counts() {
    let mut log = Logger::new(1, 400 * 4096 % MIB);
    log.sequence = 10;
    log.entry(&[page(0, 1)]);
    log.entry(&[page(0, 2)]);
    // Behind a gap in the sequence numbers, an older one that is longer.
    log.sequence = 3;
    log.tail = log.at;
    for n in 0..4 {
        log.entry(&[page(n, 9)]);
    }
    assert_eq!(log.pages(2), [2, 0x55]);
}

#[test]
fn a_head_whose_tail_is_elsewhere_does_not_count() {
    let mut log = Logger::new(1, 0);
    log.entry(&[page(0, 1)]);
    log.at = 64 * 4096;
    log.sequence = 20;
    log.tail = 80 * 4096;
    log.entry(&[page(0, 2)]);
    assert_eq!(log.pages(1), [1]);
    // A tail that is a whole entry, but of a run that does not lead to this head.
    let mut log = Logger::new(1, 0);
    log.entry(&[page(0, 1)]);
    log.at = 64 * 4096;
    log.sequence = 20;
    log.entry(&[page(0, 2)]);
    assert_eq!(log.pages(1), [1]);
}

#[test]
fn entries_of_an_older_log_do_not_count() {
    let mut log = Logger::new(1, 0);
    log.guid = Guid::of(2);
    log.sequence = 100;
    for n in 0..20 {
        log.entry(&[page(n, 9)]);
    }
    log.guid = OURS;
    log.at = 4 * 4096;
    log.tail = log.at;
    log.sequence = 1;
    log.entry(&[page(1, 1)]);
    assert_eq!(log.pages(3), [0x55, 1, 0x55]);
}

#[test]
fn the_file_grows_as_the_log_says() {
    let mut log = Logger::new(1, 0);
    log.entry(&[Do::Sector(LEN + 8 * 4096, Box::new(sector(7)))]);
    assert_eq!(log.replay().unwrap().len().unwrap(), LEN + 9 * 4096);
    log.last = LEN + 3 * MIB;
    log.entry(&[Do::Zero(DATA, 4096)]);
    let file = log.replay().unwrap();
    assert_eq!(file.len().unwrap(), LEN + 3 * MIB);
    let mut two = [9; 8192];
    file.read_at(LEN + 7 * 4096, &mut two).unwrap();
    assert!(two[..4096].iter().all(|byte| *byte == 0) && two[4096..] == sector(7));
}

#[test]
fn logs_that_cannot_be_replayed_are_refused() {
    let kind = |log: &Logger| {
        let error = log.replay().unwrap_err();
        (error.kind(), error.to_string())
    };
    let (wrong, text) = kind(&Logger::new(1, 0));
    assert!(wrong == ErrorKind::Corrupt && text.contains("nothing in it is whole"), "{text}");

    let mut short = Logger::new(1, 0);
    short.flushed = LEN + 1;
    short.entry(&[]);
    let (wrong, text) = kind(&short);
    assert!(wrong == ErrorKind::Corrupt && text.contains("for granted"), "{text}");

    for change in [
        Do::Zero(DATA + 512, 4096),
        Do::Zero(DATA, 512),
        Do::Zero(u64::MAX - 4095, 8192),
        Do::Sector(DATA + 1, Box::new(sector(0))),
    ] {
        let mut odd = Logger::new(1, 0);
        odd.entry(&[change]);
        let (wrong, text) = kind(&odd);
        assert!(wrong == ErrorKind::Corrupt && text.contains("whole sectors"), "{text}");
    }

    let cut = Logger::new(1, 0);
    cut.file.set_len(LOG + 4096).unwrap();
    assert!(kind(&cut).1.contains("past the end"));
}

#[test]
fn hostile_logs_cost_little() {
    // 2^32 - 1 descriptors, and lengths beyond the ring.
    let mut log = Logger::new(1, 0);
    for (at, value) in [(24, u32::MAX), (8, u32::MAX - 4095), (8, 4095), (8, 0), (12, 4095), (12, MIB as u32)]
    {
        let mut sectors = log.sectors(&[page(0, 1)]);
        sectors[0][at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(&mut sectors);
        log.put(&sectors);
    }
    assert_eq!(log.replay().unwrap_err().kind(), ErrorKind::Corrupt);

    // Zeros over 2^40 bytes.
    let mut log = Logger::new(1, 0);
    log.entry(&[Do::Zero(DATA, 1 << 40), page(1, 3)]);
    assert_eq!(log.pages(3), [0, 3, 0]);
    assert_eq!(log.replay().unwrap().len().unwrap(), DATA + (1 << 40));

    // Every sector begins an entry that reaches around the ring.
    let mut log = Logger::new(16, 0);
    log.file.set_len(64 * MIB).unwrap();
    let mut first = log.sectors(&[])[0];
    first[8..12].copy_from_slice(&(16 * MIB as u32).to_le_bytes());
    for _ in 0..4096 {
        log.put(&[first]);
    }
    assert!(log.replay().unwrap_err().to_string().contains("again and again"));
}

impl Logger {
    /// Gives the file headers that call the log pending, and puts it in a folder.
    fn folder(&self) -> MemoryFolder {
        self.file.write_at(0, &header::identifier()).unwrap();
        let log = LogPlace { guid: OURS, offset: LOG, length: self.length };
        let header =
            Header { sequence_number: 3, file_write_guid: Guid::of(8), data_write_guid: Guid::of(9), log };
        for (at, sequence_number) in HEADERS.into_iter().zip([4, 3]) {
            let mut bytes = Header { sequence_number, ..header }.to_bytes();
            // What is reserved may hold something: a header that is replaced by half is none.
            bytes[3000] = 9;
            let crc = bytes::checksum(&bytes);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            self.file.write_at(at, &bytes).unwrap();
        }
        let folder = MemoryFolder::new();
        folder.insert("disk", self.file.clone());
        folder
    }
}

/// The data of a file, as reading shows it.
fn shown(file: &Arc<dyn Storage>) -> Vec<u8> {
    let header = Header::read(file.as_ref()).unwrap();
    let file = if header.log.is_pending() { replay(file.clone(), header.log).unwrap() } else { file.clone() };
    let mut all = vec![0; (file.len().unwrap() - DATA) as usize];
    file.read_at(DATA, &mut all).unwrap();
    all
}

#[test]
fn a_log_put_in_place_shows_what_it_showed_at_every_power_cut() {
    // Wrapped within an entry, over an older log's entries, with more descriptors than one sector holds, and longer than
    // the file.
    let mut log = Logger::new(1, 40 * 4096);
    log.guid = Guid::of(2);
    for n in 0..60 {
        log.entry(&[page(n, 0xee), page(n + 1, 0xee)]);
    }
    log.guid = OURS;
    log.at = MIB - 20 * 4096;
    log.tail = log.at;
    log.entry(&[page(900, 5), page(2, 0xcc)]);
    log.tail = log.at;
    let many: Vec<Do> = (0..140).map(|n| page(3 * n, n as u8)).collect();
    log.entry(&many);
    log.entry(&[Do::Zero(DATA + 30 * 4096, 40 * 4096), page(35, 77)]);
    log.last = LEN + 2 * MIB;
    log.entry(&[Do::Sector(LEN + 8192, Box::new(sector(7))), page(1, 9), Do::Zero(LEN + 4096, MIB)]);
    let folder = log.folder();
    let recorder = Recorder::over(&folder);
    let disk = recorder.folder().open("disk", true).unwrap();
    let before = shown(&disk);
    assert_eq!(before.len() as u64, LEN + 2 * MIB - DATA);
    let header = Journal::open(disk.clone()).unwrap().header();
    assert!(!header.log.is_pending() && header.file_write_guid != Guid::of(8));
    assert_eq!(header.data_write_guid, Guid::of(9));
    assert_eq!(Header::current(disk.as_ref()).unwrap(), (header, 0));
    assert!(shown(&disk) == before);
    let mut states = 0;
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let per_epoch = if slow { usize::MAX } else { 40 };
    for state in recorder.states(&Plan { per_epoch, random: 150, ..Plan::default() }) {
        let cut: Arc<dyn Storage> = state.file("disk").unwrap();
        assert!(shown(&cut) == before, "{state}");
        Journal::open(cut.clone()).unwrap();
        assert!(shown(&cut) == before, "put in place: {state}");
        states += 1;
    }
    assert!(states > 70, "{states}");
    recorder.settle();
    Journal::open(disk).unwrap();
    assert!(recorder.is_empty(), "opening again writes");
}

#[test]
fn a_replay_that_fails_can_be_begun_again() {
    let torn = Fault::EIO.only(&[Io::Write]).torn();
    for fault in [Fault::EIO, torn, Fault::EIO.only(&[Io::Sync]), Fault::ENOSPC.only(WRITES).forever()] {
        for nth in 1.. {
            let mut log = Logger::new(1, MIB - 8192);
            log.entry(&[page(0, 1), page(5, 2), Do::Zero(DATA + 8 * 4096, 8192)]);
            log.last = LEN + MIB;
            log.entry(&[page(5, 3), page(1023, 4)]);
            log.folder();
            let disk: Arc<dyn Storage> = log.file.clone();
            let before = shown(&disk);
            let faults = Faults::at(fault, nth);
            let opened = Journal::open(faults.storage(disk.clone()));
            let fired = !faults.fired().is_empty();
            assert_eq!(opened.is_err(), fired, "{fault:?}, number {nth}");
            assert!(shown(&disk) == before, "{fault:?}, number {nth}");
            let journal = Journal::open(disk.clone()).unwrap();
            assert!(!journal.header().log.is_pending() && shown(&disk) == before);
            if !fired {
                break;
            }
        }
    }
}

#[test]
fn every_barrier_of_a_replay_is_needed() {
    /// Forgets the nth barrier.
    #[derive(Debug)]
    struct Careless(Arc<dyn Storage>, std::sync::atomic::AtomicUsize);
    impl Storage for Careless {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
            self.0.read_at(at, buf)
        }
        fn write_at(&self, at: u64, buf: &[u8]) -> std::io::Result<()> {
            self.0.write_at(at, buf)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync(&self) -> std::io::Result<()> {
            match self.1.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) {
                1 => Ok(()),
                _ => self.0.sync(),
            }
        }
        fn identity(&self) -> std::io::Result<cowhand_core::Identity> {
            self.0.identity()
        }
    }
    let lost = |nth: usize| {
        let mut log = Logger::new(1, 0);
        log.entry(&(0..6).map(|n| page(2 * n, n as u8)).collect::<Vec<_>>());
        let recorder = Recorder::over(&log.folder());
        let disk = recorder.folder().open("disk", true).unwrap();
        let before = shown(&disk);
        Journal::open(Arc::new(Careless(disk, nth.into()))).unwrap();
        recorder.states(&Plan { per_epoch: 60, ..Plan::default() }).any(|state| {
            let cut: Arc<dyn Storage> = state.file("disk").unwrap();
            Header::read(cut.as_ref()).is_err() || shown(&cut) != before
        })
    };
    // Behind the first header, the second (whose is the next one's), what was put in place. Then a header is replaced by
    // one of ours, in which only the first sector differs, so that it cannot be torn.
    assert_eq!([1, 2, 3, 4, 99].map(lost), [true, false, true, false, false]);
}

#[test]
fn a_log_that_would_change_itself_or_the_headers_is_not_put_in_place() {
    for (at, named) in [(HEADERS[1], "the headers"), (0, "the headers"), (LOG + 16 * 4096, "itself")] {
        let mut log = Logger::new(1, 0);
        log.entry(&[page(0, 1), Do::Zero(at, 4096)]);
        let recorder = Recorder::over(&log.folder());
        let disk = recorder.folder().open("disk", true).unwrap();
        let error = Journal::open(disk).unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(named), "{error}");
        assert!(recorder.is_empty());
    }
}

#[test]
fn zeros_over_what_is_no_data_are_not_written() {
    let mut log = Logger::new(1, 0);
    log.entry(&[Do::Zero(DATA, 1 << 40), page(1, 3), Do::Zero(1 << 45, 1 << 45)]);
    log.folder();
    Journal::open(log.file.clone()).unwrap();
    assert_eq!(log.file.len().unwrap(), 1 << 46);
    assert_eq!(log.file.data_at(DATA).unwrap(), Some(DATA + 4096..DATA + 8192));
    // What lies behind is as it was: the log's own MiB, before it the header section.
    assert!(log.file.physical_size().unwrap() < 2 * MIB);
}

#[test]
fn the_entries_made_here_are_those_of_the_specification() {
    let log = Logger::new(1, 8192);
    let pages = [page(3, 1), page(900, 2), page(4, 3)];
    for sequence in [1, 0xffff_ffff, 0x1_0000_0000, 0x1234_5678_9abc_def0] {
        let log = Logger { file: log.file.clone(), sequence, ..log };
        let label = Label {
            log_guid: OURS,
            sequence_number: sequence,
            at: log.tail as u32,
            flushed_file_offset: log.flushed,
            last_file_offset: log.last,
        };
        let sectors: Vec<_> = pages
            .iter()
            .map(|change| match change {
                Do::Sector(at, bytes) => (*at, &**bytes),
                Do::Zero(..) => unreachable!(),
            })
            .collect();
        assert!(entry(&label, sectors.into_iter()) == log.sectors(&pages).concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Any entries, anywhere in the ring, over what an older turn left there: the file is as a flat vector says.
    #[test]
    fn replays_as_a_flat_vector(
        start in 0u64..256,
        older in 0usize..3,
        entries in prop::collection::vec(prop::collection::vec((0u64..60, 1u64..20, any::<u8>(), 0..3), 0..20), 1..9),
        drop in 0usize..8,
        torn in any::<bool>(),
    ) {
        let mut log = Logger::new(1, start * 4096);
        log.guid = Guid::of(2);
        for n in 0..older as u64 {
            log.entry(&[page(n, 0xee), page(n + 1, 0xee)]);
        }
        log.guid = OURS;
        log.at = start * 4096;
        log.tail = log.at;
        log.sequence = 0xffff_fffe;
        let mut model = vec![0x55u8; 100 * 4096];
        let dropped = drop.min(entries.len() - 1);
        for (n, changes) in entries.iter().enumerate() {
            if n == dropped {
                log.tail = log.at;
            }
            let changes: Vec<Do> = changes
                .iter()
                .map(|(at, sectors, byte, kind)| match kind {
                    0 => Do::Zero(DATA + at * 4096, sectors * 4096),
                    _ => page(*at, *byte),
                })
                .collect();
            if n >= dropped {
                for change in &changes {
                    let (at, bytes) = match change {
                        Do::Zero(at, length) => (*at, vec![0; *length as usize]),
                        Do::Sector(at, bytes) => (*at, bytes.to_vec()),
                    };
                    let at = (at - DATA) as usize;
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            log.entry(&changes);
        }
        if torn {
            let mut sectors = log.sectors(&[page(0, 0xdd), page(1, 0xdd)]);
            sectors[1][9] ^= 1;
            log.put(&sectors);
        }
        let mut all = vec![0; model.len()];
        log.replay().unwrap().read_at(DATA, &mut all).unwrap();
        prop_assert!(all == model);
        log.folder();
        Journal::open(log.file.clone()).unwrap();
        log.file.read_at(DATA, &mut all).unwrap();
        prop_assert!(all == model);
    }
}

#[test]
fn a_long_entry_of_nothing_is_not_read() {
    const RING: u64 = 64 * MIB;
    for (at, length) in [(0, RING), (5 * MIB + 8192, RING), (RING - 8192, 7 * MIB + 4096)] {
        let mut log = Logger::new(RING / MIB, at);
        log.file.set_len(0).unwrap();
        log.file.set_len(RING + LEN).unwrap();
        let mut sectors = log.sectors(&[Do::Sector(DATA + RING, Box::new(sector(1)))]);
        sectors[0][8..12].copy_from_slice(&(length as u32).to_le_bytes());
        // In the midst of the zeros, something that no descriptor speaks of.
        let odd = 3 * MIB + 100 * 4096;
        sectors[0][4..8].fill(0);
        let mut whole = sectors.concat();
        whole.resize(length as usize, 0);
        whole[odd as usize] = 7;
        log.file.write_at(LOG + (at + odd) % RING, &[7]).unwrap();
        sectors[0][4..8].copy_from_slice(&crc32c::crc32c(&whole).to_le_bytes());
        log.put(&sectors);
        let data = Arc::new(Counted(log.file.clone(), 0.into()));
        let place = LogPlace { guid: OURS, offset: LOG, length: RING };
        let file = replay(data.clone(), place).unwrap();
        let mut found = [0; 4096];
        assert!(data.1.load(std::sync::atomic::Ordering::Relaxed) < 4 * MIB as usize);
        file.read_at(DATA + RING, &mut found).unwrap();
        assert_eq!(found, sector(1));
        // One byte more, and it is no entry.
        log.file.write_at(LOG + (at + 2 * MIB) % RING, &[1]).unwrap();
        assert!(replay(log.file.clone(), place).is_err());
    }
}

/// Counts the bytes that are read.
#[derive(Debug)]
struct Counted(Arc<MemoryStorage>, std::sync::atomic::AtomicUsize);

impl Storage for Counted {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(buf.len(), std::sync::atomic::Ordering::Relaxed);
        self.0.read_at(at, buf)
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> std::io::Result<()> {
        self.0.write_at(at, buf)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync()
    }
    fn data_at(&self, at: u64) -> std::io::Result<Option<Range<u64>>> {
        self.0.data_at(at)
    }
    fn identity(&self) -> std::io::Result<cowhand_core::Identity> {
        self.0.identity()
    }
}
