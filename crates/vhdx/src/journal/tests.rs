//! What the journal writes is what its own reader finds, whatever fails and wherever the power is cut.

use super::*;
use crate::header;
use crate::header::LogPlace;
use crate::region::{Region, TABLE_LEN};
use cowhand_core::testing::{Fault, Faults, Io, Journal as Recorder, Plan, Rng, WRITES};
use cowhand_core::{Folder, MemoryFolder, MemoryStorage};

const LOG: u64 = MIB;
/// Where the sectors of these tests are.
const DATA: u64 = 2 * MIB;
const SECTORS: u64 = 150;
const PAYLOAD: u64 = 4 * MIB;
const LEN: u64 = 6 * MIB;

/// A file with headers and region tables, and a log of so many MiB.
fn file(log: u64) -> MemoryFolder {
    let folder = MemoryFolder::new();
    let file = folder.create_new("disk").unwrap();
    file.set_len(LEN + log * MIB).unwrap();
    file.write_at(0, &header::identifier()).unwrap();
    let place = LogPlace { guid: Guid::ZERO, offset: if log > 1 { LEN } else { LOG }, length: log * MIB };
    let header =
        Header { sequence_number: 6, file_write_guid: Guid::of(1), data_write_guid: Guid::of(2), log: place };
    file.write_at(HEADERS[0], &header.to_bytes()).unwrap();
    file.write_at(HEADERS[1], &Header { sequence_number: 5, ..header }.to_bytes()).unwrap();
    let region = |mib: u64| Region { offset: mib * MIB, length: MIB };
    for at in TABLES {
        file.write_at(at, &Regions::table(region(3), region(2))).unwrap();
    }
    folder
}

fn open(file: &Arc<dyn Storage>) -> Journal {
    Journal::open(file.clone()).unwrap()
}

fn sector(n: u64, version: u64) -> Sector {
    let mut bytes = Box::new([(version * 7 + n) as u8; 4096]);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes[4088..].copy_from_slice(&version.to_le_bytes());
    Sector { at: DATA + n * 4096, bytes }
}

type Model = Vec<u64>;

/// The versions of the sectors, as reading shows them: with what is pending, in memory.
fn versions(file: &Arc<dyn Storage>) -> Model {
    let header = Header::read(file.as_ref()).unwrap();
    let file =
        if header.log.is_pending() { log::replay(file.clone(), header.log).unwrap() } else { file.clone() };
    let read = |n| {
        let mut bytes = [0; 4096];
        file.read_at(DATA + n * 4096, &mut bytes).unwrap();
        let version = u64::from_le_bytes(bytes[4088..].try_into().unwrap());
        let expected = if version == 0 { [0; 4096] } else { *sector(n, version).bytes };
        assert!(bytes == expected, "sector {n} is torn");
        version
    };
    (0..SECTORS).map(read).collect()
}

fn payload(file: &Arc<dyn Storage>, version: u64) -> bool {
    let mut bytes = [0; 512];
    file.read_at(PAYLOAD + version * 4096, &mut bytes).unwrap();
    bytes == [version as u8; 512]
}

/// Commits random sectors, some after others in the file, at most [`MOST`]; notes what the file is to show after each.
struct Script {
    rng: Rng,
    models: Vec<Model>,
}

impl Script {
    fn new(seed: u64) -> Script {
        Script { rng: Rng::new(seed), models: vec![vec![0; SECTORS as usize]] }
    }

    fn commit(&mut self, file: &Arc<dyn Storage>, journal: &Journal) -> Result<()> {
        let version = self.models.len() as u64;
        file.write_at(PAYLOAD + version * 4096, &[version as u8; 512]).unwrap();
        let wanted = if self.rng.chance(1, 6) { MOST as u64 } else { 1 + self.rng.below(6) };
        let mut model = self.models.last().unwrap().clone();
        let mut sectors = Vec::new();
        let mut n = self.rng.below(SECTORS);
        while (sectors.len() as u64) < wanted {
            if model[n as usize] != version {
                model[n as usize] = version;
                sectors.push(sector(n, version));
            }
            n = if self.rng.chance(2, 3) { n + 1 } else { self.rng.below(SECTORS) } % SECTORS;
        }
        self.models.push(model);
        journal.commit(&sectors, LEN)
    }
}

#[test]
fn a_power_cut_leaves_each_commit_done_or_not_begun() {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let plan = Plan { random: 20, per_epoch: if slow { usize::MAX } else { 8 }, ..Plan::default() };
    let mut states = 0;
    for seed in 0..4 {
        let folder = file(1 + seed % 2 * 3);
        let recorder = Recorder::over(&folder);
        let disk = recorder.folder().open("disk", true).unwrap();
        let journal = open(&disk);
        let mut script = Script::new(seed);
        journal.touch(true).unwrap();
        for _ in 0..8 {
            script.commit(&disk, &journal).unwrap();
            recorder.mark(script.models.len() as u64 - 1);
            if script.rng.chance(1, 4) {
                journal.settle().unwrap();
            }
        }
        journal.settle().unwrap();
        for (number, state) in recorder.states(&Plan { seed, ..plan.clone() }).enumerate() {
            states += 1;
            let file = state.file("disk").unwrap();
            let disk: Arc<dyn Storage> = file.clone();
            let done = state.mark().unwrap_or(0) as usize;
            let shown = versions(&disk);
            let found = (done..=done + 1).find(|n| script.models.get(*n) == Some(&shown));
            let found = found.unwrap_or_else(|| panic!("{done} commits, and now {shown:?}\n{state}"));
            assert!((1..=found as u64).all(|version| payload(&disk, version)), "{state}");
            recovers(&file, &shown, number % 50 == 0);
        }
    }
    assert!(states > 800, "{states}");
}

/// Opening for writing puts in place what reading shows; a second time it changes nothing; and so where it is cut off.
fn recovers(disk: &MemoryStorage, shown: &Model, deep: bool) {
    let folder = MemoryFolder::new();
    folder.insert("disk", Arc::new(disk.snapshot()));
    let recorder = Recorder::over(&folder);
    let live = recorder.folder().open("disk", true).unwrap();
    assert!(!open(&live).header().log.is_pending());
    assert!(!Header::read(live.as_ref()).unwrap().log.is_pending());
    assert_eq!(&versions(&live), shown);
    if deep {
        for state in recorder.states(&Plan { per_epoch: 10, ..Plan::default() }) {
            let cut = state.file("disk").unwrap();
            assert_eq!(&versions(&(cut.clone() as Arc<dyn Storage>)), shown, "{state}");
            recovers(&cut, shown, false);
        }
    }
    recorder.settle();
    open(&live);
    assert!(recorder.is_empty(), "opening again writes");
}

#[test]
fn each_failure_is_an_error_and_nothing_done_is_lost() {
    let torn = Fault::EIO.only(&[Io::Write]).torn();
    for fault in [Fault::EIO, Fault::EIO.only(&[Io::Sync]), torn, torn.forever(), Fault::ENOSPC.only(WRITES)]
    {
        for nth in 1.. {
            let folder = file(1);
            let disk = folder.open("disk", true).unwrap();
            let faults = Faults::none();
            let journal = open(&faults.storage(disk.clone()));
            let mut script = Script::new(nth);
            faults.arm(fault, nth);
            let (mut done, mut synced) = (0, true);
            let touched = journal.touch(true).is_ok();
            for _ in 0..5 {
                let result = if touched { script.commit(&disk, &journal) } else { break };
                assert!(synced || result.is_err(), "went well after a failed sync");
                synced &= !faults.fired().contains(&Io::Sync);
                if result.is_ok() {
                    done = script.models.len() - 1;
                } else if !fault.forever && synced {
                    // The caller still has it all, and tries again with more.
                    let all: Vec<Sector> = (0..MOST as u64).map(|n| sector(n, 90)).collect();
                    let next = journal.commit(&all, LEN);
                    let mut model = script.models.last().unwrap().clone();
                    let whole = model.clone();
                    model[..MOST].fill(90);
                    if next.is_ok() {
                        // What the failed one changed beside these may be done or not.
                        let shown = versions(&disk);
                        assert_eq!(shown[..MOST], model[..MOST]);
                        let old = &script.models[script.models.len() - 2];
                        assert!(shown[MOST..] == old[MOST..] || shown[MOST..] == whole[MOST..]);
                        script.models.push(shown);
                        done = script.models.len() - 1;
                    }
                }
            }
            let settled = journal.settle().is_ok();
            let shown = versions(&disk);
            if synced && (settled || !faults.fired().is_empty()) {
                assert!(script.models[done..].contains(&shown), "{fault:?}, number {nth}: {shown:?}");
            }
            open(&disk);
            assert_eq!(versions(&disk), shown);
            if faults.fired().is_empty() {
                assert!(settled && done == 5);
                break;
            }
        }
    }
}

#[test]
fn the_guids_change_once_a_session_and_before_anything_else() {
    let folder = file(1);
    let recorder = Recorder::over(&folder);
    let disk = recorder.folder().open("disk", true).unwrap();
    let journal = open(&disk);
    assert!(recorder.is_empty());
    journal.touch(false).unwrap();
    let first = Header::current(disk.as_ref()).unwrap();
    assert_eq!(first, (journal.header(), 0));
    assert!(first.0.sequence_number == 8 && first.0.data_write_guid == Guid::of(2));
    assert!(first.0.file_write_guid != Guid::of(1));
    recorder.settle();
    journal.touch(false).unwrap();
    assert!(recorder.is_empty());
    journal.touch(true).unwrap();
    let second = journal.header();
    assert_eq!(second.file_write_guid, first.0.file_write_guid);
    assert_eq!(second.data_write_guid, journal.next_identity());
    recorder.settle();
    journal.touch(true).unwrap();
    journal.touch(false).unwrap();
    assert!(recorder.is_empty() && journal.next_identity() == second.data_write_guid);

    // One that is given stays.
    let journal = open(&disk);
    assert!(journal.next_identity() != second.data_write_guid);
    journal.identify(Guid::of(7)).unwrap();
    journal.touch(true).unwrap();
    assert_eq!((journal.header().data_write_guid, journal.next_identity()), (Guid::of(7), Guid::of(7)));

    // Both at once, and every power cut leaves the old ones or the new ones.
    let recorder = Recorder::over(&file(1));
    let disk = recorder.folder().open("disk", true).unwrap();
    let journal = open(&disk);
    journal.touch(true).unwrap();
    let new = journal.header();
    for state in recorder.states(&Plan::default()) {
        let found = Header::read(state.file("disk").unwrap().as_ref()).unwrap();
        let old = (found.file_write_guid, found.data_write_guid) == (Guid::of(1), Guid::of(2));
        assert!(old || found.file_write_guid == new.file_write_guid, "{state}");
        assert!(old || found.data_write_guid == new.data_write_guid, "{state}");
    }
}

#[test]
fn the_first_touch_puts_headers_and_region_tables_right() {
    for (header, table) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let folder = file(1);
        let disk = folder.open("disk", true).unwrap();
        let read_table = |n: usize| {
            let mut table = vec![0; TABLE_LEN];
            disk.read_at(TABLES[n], &mut table).unwrap();
            table
        };
        let good = read_table(0);
        disk.write_at(HEADERS[header] + 20, &[9; 3]).unwrap();
        disk.write_at(TABLES[table] + 70, &[9; 3]).unwrap();
        let recorder = Recorder::over(&folder);
        let live = recorder.folder().open("disk", true).unwrap();
        let journal = open(&live);
        assert!(recorder.is_empty());
        journal.touch(false).unwrap();
        for state in recorder.states(&Plan { random: 10, ..Plan::default() }) {
            let file = state.file("disk").unwrap();
            let log = Header::read(file.as_ref()).unwrap().log;
            Regions::read(file.as_ref(), LEN + MIB, &log).unwrap();
        }
        for (n, at) in HEADERS.into_iter().enumerate() {
            let mut bytes = vec![0; header::HEADER_LEN];
            live.read_at(at, &mut bytes).unwrap();
            assert_eq!(bytes[4..8], bytes::checksum(&bytes).to_le_bytes(), "header {n}");
        }
        for at in TABLES {
            let mut bytes = vec![0; TABLE_LEN];
            live.read_at(at, &mut bytes).unwrap();
            assert!(bytes == good);
        }
    }
}

#[test]
fn two_good_region_tables_that_differ_stay() {
    let folder = file(1);
    let disk = folder.open("disk", true).unwrap();
    let other = Regions::table(Region { offset: 4 * MIB, length: MIB }, Region { offset: DATA, length: MIB });
    disk.write_at(TABLES[1], &other).unwrap();
    open(&disk).touch(true).unwrap();
    let mut table = vec![0; TABLE_LEN];
    disk.read_at(TABLES[1], &mut table).unwrap();
    assert!(table == other);
}

#[test]
fn the_entry_tells_the_files_length() {
    let (disk, expected) = (Arc::new(MemoryStorage::new()), LEN + MIB);
    let folder = file(1);
    let mut bytes = vec![0; expected as usize];
    folder.open("disk", true).unwrap().read_at(0, &mut bytes).unwrap();
    disk.write_at(0, &bytes).unwrap();
    disk.set_len(expected + 5000).unwrap();
    let file: Arc<dyn Storage> = disk.clone();
    let journal = open(&file);
    journal.touch(true).unwrap();
    journal.commit(&[sector(0, 1)], LEN + MIB + 5000).unwrap();
    let mut entry = [0; 64];
    disk.read_at(LOG, &mut entry).unwrap();
    let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
    assert_eq!((number(48), number(56)), (expected, expected + MIB));
    // The file is as long as that once the entry is replayed, and refused where it was cut.
    let pending = journal.header().log;
    assert_eq!(log::replay(file.clone(), pending).unwrap().len().unwrap(), expected + MIB);
    disk.set_len(expected - 1).unwrap();
    assert!(log::replay(file, pending).unwrap_err().to_string().contains("for granted"));
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let folder = file(1);
    let disk = folder.open("disk", true).unwrap();
    let mut header = Header::read(disk.as_ref()).unwrap();
    let all: Vec<Sector> = (0..=MOST as u64).map(|n| sector(n, 1)).collect();
    assert!(open(&disk).commit(&all, LEN).unwrap_err().to_string().contains("127 sectors"));

    header.sequence_number = u64::MAX - 1;
    disk.write_at(HEADERS[0], &header.to_bytes()).unwrap();
    let recorder = Recorder::over(&folder);
    let live = recorder.folder().open("disk", true).unwrap();
    assert!(open(&live).touch(true).unwrap_err().to_string().contains("last sequence number"));

    header.sequence_number = 9;
    header.log = LogPlace { length: 0, ..header.log };
    disk.write_at(HEADERS[0], &header.to_bytes()).unwrap();
    assert!(open(&disk).touch(true).unwrap_err().to_string().contains("has no log"));
    assert!(recorder.is_empty());
}
