//! A storage that notes what is written over before it is gone, so that all of it can be taken back.
//!
//! The journal: a header (a sector), then records of what stood somewhere before it was first changed, each whole sectors
//! long and behind a sector of its own that says where and how much. Records are durable first, then the header that says
//! how far they reach, and only then what they speak of changes: so what stands behind that place speaks of nothing that
//! happened, and what stands before it must be whole. Bytes behind the old end need none: the file is cut.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Error, ErrorKind, Identity, Result, Storage};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 16] = b"cowhand undo 2\0\0";
/// What a journal begins with that is not needed any more.
const ENDED: &[u8; 16] = b"cowhand undone\0\0";
pub(crate) const SECTOR: u64 = 512;
/// Bytes that one record holds at most.
const PIECE: u64 = 1 << 20;

/// What the journal begins with, and in front of each record: of which only `at` and `len` differ.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 16],
    /// Tells this journal's records from those that an older one left behind them.
    salt: U64,
    /// Where the record's bytes stood; in the header, where the records end that count.
    at: U64,
    /// How many there are; in the header, the file's length.
    len: U64,
    /// The identity of the image, where it has one.
    key: [u8; 16],
    /// Of the record's bytes.
    sum: U32,
    /// Of what stands before.
    own: U32,
    padding: [u8; 448],
}

impl Head {
    fn new(salt: u64, at: u64, len: u64, key: [u8; 16], bytes: &[u8]) -> Head {
        let mut head = Head {
            magic: *MAGIC,
            salt: salt.into(),
            at: at.into(),
            len: len.into(),
            key,
            sum: crc32c::crc32c(bytes).into(),
            own: 0.into(),
            padding: [0; 448],
        };
        head.own = head.sum_of_own().into();
        head
    }

    fn sum_of_own(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c(bytes.get(..60).unwrap_or_default())
    }

    fn read(journal: &dyn Storage, at: u64) -> io::Result<Option<Head>> {
        let mut bytes = [0; SECTOR as usize];
        if at + SECTOR > journal.len()? {
            return Ok(None);
        }
        journal.read_at(at, &mut bytes)?;
        let head: Head = zerocopy::transmute!(bytes);
        Ok(Some(head).filter(|head| head.magic == *MAGIC && head.own.get() == head.sum_of_own()))
    }
}

/// What a journal begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Nothing, or zeros: none was begun, so nothing was changed.
    Blank,
    /// One that is not needed any more.
    Ended,
    /// One that counts, or something that is no journal.
    Other,
}

impl Front {
    pub(crate) fn of(journal: &dyn Storage) -> io::Result<Front> {
        let mut bytes = vec![0; journal.len()?.min(SECTOR) as usize];
        journal.read_at(0, &mut bytes)?;
        Ok(if bytes.starts_with(ENDED) {
            Front::Ended
        } else if bytes.iter().all(|byte| *byte == 0) {
            Front::Blank
        } else {
            Front::Other
        })
    }
}

/// Nothing that the journal notes is wanted back; durable when it returns.
pub(crate) fn end(journal: &dyn Storage) -> io::Result<()> {
    let mut front = [0; SECTOR as usize];
    let (name, _) = front.split_at_mut(ENDED.len());
    name.copy_from_slice(ENDED);
    journal.write_at(0, &front)?;
    journal.sync()
}

/// What was noted so far.
#[derive(Debug)]
struct Noted {
    /// Where the next record goes.
    end: u64,
    /// Ascending, apart from each other.
    ranges: Vec<Range<u64>>,
}

/// The storage. Reads go through; every change of what was there is noted first.
#[derive(Debug)]
pub(crate) struct Undo {
    storage: Arc<dyn Storage>,
    journal: Arc<dyn Storage>,
    salt: u64,
    key: [u8; 16],
    /// The length at the start.
    len: u64,
    noted: Mutex<Noted>,
}

impl Undo {
    /// Begins a journal, durably, over whatever stood in it. `key`: the image's identity.
    pub(crate) fn begin(
        storage: Arc<dyn Storage>,
        journal: Arc<dyn Storage>,
        key: Option<[u8; 16]>,
    ) -> io::Result<Undo> {
        let (salt, key, len) =
            (RandomState::new().build_hasher().finish(), key.unwrap_or_default(), storage.len()?);
        let noted = Mutex::new(Noted { end: SECTOR, ranges: Vec::new() });
        let undo = Undo { storage, journal, salt, key, len, noted };
        undo.publish(SECTOR)?;
        Ok(undo)
    }

    /// The records up to `end` count from here on.
    fn publish(&self, end: u64) -> io::Result<()> {
        self.journal.write_at(0, Head::new(self.salt, end, self.len, self.key, &[]).as_bytes())?;
        self.journal.sync()
    }

    /// Notes what stands in `range`, as far as that was not done; durable when it returns.
    fn note(&self, range: Range<u64>) -> io::Result<()> {
        let range = range.start..range.end.min(self.len);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = missing(&noted.ranges, &range);
        if missing.is_empty() {
            return Ok(());
        }
        for part in missing {
            let mut at = part.start;
            while at < part.end {
                let len = (part.end - at).min(PIECE);
                self.record(&mut noted, at, len)?;
                at += len;
            }
        }
        self.journal.sync()?;
        self.publish(noted.end)?;
        add(&mut noted.ranges, range);
        Ok(())
    }

    fn record(&self, noted: &mut MutexGuard<'_, Noted>, at: u64, len: u64) -> io::Result<()> {
        let room = len.next_multiple_of(SECTOR);
        let mut bytes = vec![0; (SECTOR + room) as usize];
        let (head, rest) = bytes.split_at_mut(SECTOR as usize);
        let kept = rest.get_mut(..len as usize).unwrap_or_default();
        self.storage.read_at(at, kept)?;
        head.copy_from_slice(Head::new(self.salt, at, len, self.key, kept).as_bytes());
        self.journal.write_at(noted.end, &bytes)?;
        noted.end += SECTOR + room;
        Ok(())
    }
}

/// What of `range` is in none of `ranges`.
fn missing(ranges: &[Range<u64>], range: &Range<u64>) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut at = range.start;
    for known in ranges.iter().filter(|known| known.end > range.start && known.start < range.end) {
        if known.start > at {
            found.push(at..known.start);
        }
        at = at.max(known.end);
    }
    if at < range.end {
        found.push(at..range.end);
    }
    found
}

fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    let mut whole = range;
    ranges.retain(|known| {
        let apart = known.end < whole.start || known.start > whole.end;
        if !apart {
            whole = whole.start.min(known.start)..whole.end.max(known.end);
        }
        apart
    });
    let at = ranges.partition_point(|known| known.start < whole.start);
    ranges.insert(at, whole);
}

impl Storage for Undo {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.storage.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.note(at..at.saturating_add(buf.len() as u64))?;
        self.storage.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(len..self.storage.len()?)?;
        self.storage.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.sync()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.note(at..at.saturating_add(len))?;
        self.storage.punch(at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.note(at..at.saturating_add(len))?;
        self.storage.zero(at, len)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        self.storage.allocate(at, len)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.storage.data_at(at)
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.storage.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.storage.identity()
    }
}

/// Puts back all that the journal notes of `storage`, durably. Stopped anywhere, it can be run again. `key`: what the
/// image is now. Errors: this is no journal, a damaged one, or one of another image; what it leaves alone then.
pub(crate) fn take_back(storage: &dyn Storage, journal: &dyn Storage, key: Option<[u8; 16]>) -> Result<()> {
    let head = Head::read(journal, 0).map_err(unread)?.ok_or_else(|| {
        Error::corrupt("journal", "no journal begins here, so there is nothing that could be taken back")
    })?;
    if head.key != key.unwrap_or_default() {
        return Err(Error::new(ErrorKind::Mismatch, "the journal is another image's"));
    }
    // All of it is looked at before anything is written.
    let len = head.len.get();
    let mut noted = Vec::new();
    each(journal, &head, |at, bytes| {
        add(&mut noted, at..at + bytes.len() as u64);
        Ok(())
    })?;
    let is = storage.len().map_err(|error| Error::io("cannot find its length", error))?;
    // No image is shorter than its footer or header; and what was cut off was noted.
    if len < SECTOR || i64::try_from(len).is_err() || !missing(&noted, &(is..len)).is_empty() {
        let what =
            format!("it says that the image had {len} bytes, which cannot be, so the image is left alone");
        return Err(Error::corrupt("journal", what));
    }
    each(journal, &head, |at, bytes| {
        let done = storage.write_at(at, bytes);
        done.map_err(|error| Error::io("cannot put back what was there", error).at(at))
    })?;
    storage
        .set_len(len)
        .map_err(|error| Error::io(format!("cannot make it {len} bytes long again"), error))?;
    storage.sync().map_err(|error| Error::io("cannot sync", error))
}

/// Shows each record that counts: where its bytes stood, and the bytes. Errors: one is not whole.
fn each(journal: &dyn Storage, head: &Head, mut see: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let damaged =
        |at| Error::corrupt("journal", "it is damaged here or cut short, so the image is left alone").at(at);
    let (last, mut at) = (head.at.get(), SECTOR);
    if last < SECTOR || last > journal.len().map_err(unread)? {
        return Err(damaged(0));
    }
    let mut bytes = Vec::new();
    while at < last {
        let record = Head::read(journal, at).map_err(unread)?.ok_or_else(|| damaged(at))?;
        let (to, len) = (record.at.get(), record.len.get());
        let end = at + SECTOR + len.min(PIECE).next_multiple_of(SECTOR);
        let fits = to.checked_add(len).is_some_and(|end| end <= head.len.get());
        if record.salt != head.salt || len > PIECE || !fits || end > last {
            return Err(damaged(at));
        }
        bytes.resize(len as usize, 0);
        journal.read_at(at + SECTOR, &mut bytes).map_err(unread)?;
        if crc32c::crc32c(&bytes) != record.sum.get() {
            return Err(damaged(at));
        }
        see(to, &bytes)?;
        at = end;
    }
    Ok(())
}

fn unread(error: io::Error) -> Error {
    Error::io("cannot read the journal", error)
}

#[cfg(test)]
mod tests {
    use cowhand_core::testing::{Failure, Journal, Plan, Rng};
    use cowhand_core::{
        CreateOptions, Erase, Folder, Layer, MemoryFolder, MemoryStorage, NoFiles, OpenOptions, Options,
        Prealloc,
    };

    use super::*;
    use crate::registry;

    fn bytes(storage: &dyn Storage) -> Vec<u8> {
        let mut bytes = vec![0; storage.len().unwrap() as usize];
        storage.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn whatever_is_done_is_taken_back() {
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let before: Vec<u8> = (0..20_000 + rng.below(700)).map(|_| rng.any() as u8).collect();
            let storage = Arc::new(MemoryStorage::from_bytes(&before));
            let journal = Arc::new(MemoryStorage::new());
            // What an older journal left there is none of this one's.
            journal.write_at(0, &vec![7; 100_000]).unwrap();
            let undo = Undo::begin(storage.clone(), journal.clone(), Some([3; 16])).unwrap();
            for _ in 0..rng.below(30) {
                let (at, len) = (rng.below(25_000), rng.below(5000));
                match rng.below(5) {
                    0 => undo.set_len(at).unwrap(),
                    1 => drop(undo.punch(at, len.min(undo.len().unwrap().saturating_sub(at)))),
                    2 => drop(undo.zero(at, len)),
                    _ => undo.write_at(at, &vec![rng.any() as u8; len as usize]).unwrap(),
                }
            }
            assert_eq!(
                take_back(storage.as_ref(), journal.as_ref(), None).unwrap_err().kind(),
                ErrorKind::Mismatch
            );
            for _ in 0..2 {
                take_back(storage.as_ref(), journal.as_ref(), Some([3; 16])).unwrap();
                assert!(bytes(storage.as_ref()) == before, "seed {seed}");
            }
        }
    }

    #[test]
    fn what_is_no_journal_changes_nothing() {
        let storage = MemoryStorage::from_bytes(&[5; 3000]);
        for journal in [vec![], vec![0; 100], vec![0; 6 << 20], MAGIC.to_vec()] {
            let error = take_back(&storage, &MemoryStorage::from_bytes(&journal), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(storage.to_vec() == [5; 3000]);
        }
    }

    #[test]
    fn a_damaged_journal_changes_nothing() {
        let before: Vec<u8> = (0..40_000u32).map(|at| (at / 100) as u8).collect();
        let storage = Arc::new(MemoryStorage::from_bytes(&before));
        let journal = Arc::new(MemoryStorage::new());
        let undo = Undo::begin(storage.clone(), journal.clone(), None).unwrap();
        for (at, len) in [(300, 700), (9000, 4000), (1 << 12, 1)] {
            undo.write_at(at, &vec![0xee; len]).unwrap();
        }
        undo.set_len(30_000).unwrap();
        let (changed, notes) = (bytes(storage.as_ref()), bytes(journal.as_ref()));
        let refuses = |notes: &[u8], what: &dyn std::fmt::Debug| {
            let storage = MemoryStorage::from_bytes(&changed);
            let error = take_back(&storage, &MemoryStorage::from_bytes(notes), None).unwrap_err();
            assert!([ErrorKind::Corrupt, ErrorKind::Mismatch].contains(&error.kind()), "{what:?}: {error}");
            assert!(storage.to_vec() == changed, "{what:?}");
        };
        // Cut anywhere.
        for len in (0..notes.len()).step_by(100).chain([notes.len() - 1]) {
            refuses(&notes[..len], &len);
        }
        // A bit flipped anywhere that says something: in the header, each record's head, and what it holds.
        let mut at = 0;
        while at < notes.len() {
            let head = Head::read(journal.as_ref(), at as u64).unwrap().unwrap();
            let held = if at == 0 { 0 } else { head.len.get() as usize };
            for byte in (at..at + 64).chain(at + 512..at + 512 + held) {
                let mut bad = notes.clone();
                bad[byte] ^= 1 << (byte % 8);
                refuses(&bad, &byte);
            }
            at += 512 + held.next_multiple_of(512);
        }
        // A header that is whole, and speaks of a file that never was.
        let head = Head::read(journal.as_ref(), 0).unwrap().unwrap();
        for len in [0, 511, 40_001, 1 << 40, u64::MAX] {
            let mut bad = notes.clone();
            bad[..512]
                .copy_from_slice(Head::new(head.salt.get(), head.at.get(), len, head.key, &[]).as_bytes());
            refuses(&bad, &len);
        }
        take_back(storage.as_ref(), journal.as_ref(), None).unwrap();
        assert!(bytes(storage.as_ref()) == before);
    }

    #[test]
    fn a_journal_that_ended_is_told_from_one_that_counts() {
        let journal = Arc::new(MemoryStorage::new());
        assert_eq!(Front::of(journal.as_ref()).unwrap(), Front::Blank);
        let storage = Arc::new(MemoryStorage::from_bytes(&[5; 3000]));
        drop(Undo::begin(storage.clone(), journal.clone(), None).unwrap());
        assert_eq!(Front::of(journal.as_ref()).unwrap(), Front::Other);
        end(journal.as_ref()).unwrap();
        assert_eq!(Front::of(journal.as_ref()).unwrap(), Front::Ended);
        assert_eq!(
            take_back(storage.as_ref(), journal.as_ref(), None).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }

    const SMALL: u64 = 3 << 20;
    const LARGE: u64 = 400 << 20;

    /// A disk with something in it, `name`'s options, in a folder.
    fn image(options: &str) -> (Arc<MemoryFolder>, Vec<u8>) {
        let folder = Arc::new(MemoryFolder::new());
        let format = registry::format("vpc").unwrap();
        let options = Options::check(format.options(), &cowhand_core::parse_option_string(options)).unwrap();
        let how = CreateOptions { size: SMALL, options, ..CreateOptions::default() };
        let layer = format.create(folder.create_new("image").unwrap(), &NoFiles, &how).unwrap();
        layer.write(700 << 10, &[9; 70 << 10]).unwrap();
        layer.write(0, &[8; 512]).unwrap();
        layer.erase(0, 512, Erase::Free).unwrap();
        layer.close().unwrap();
        let before = bytes(folder.open("image", false).unwrap().as_ref());
        (folder, before)
    }

    fn open(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
        let how = OpenOptions { writable: true, ..OpenOptions::default() };
        registry::format("vpc")?.open(file, &NoFiles, &how)
    }

    fn key(file: &dyn Storage) -> Option<[u8; 16]> {
        registry::format("vpc").unwrap().identity(file).unwrap().0
    }

    fn resize(folder: &dyn Folder) -> Result<()> {
        let file = folder.open("image", true)?;
        let key = key(file.as_ref());
        let journal = folder.create_new("journal")?;
        let undo = Undo::begin(file, journal, key).map_err(|error| Error::io("cannot begin", error))?;
        folder.sync()?;
        let layer = open(Arc::new(undo))?;
        layer.resize(LARGE, Prealloc::Off, 0)?;
        layer.close()
    }

    #[test]
    fn a_resize_is_taken_back_after_a_power_cut_at_any_moment() {
        for (seed, options) in [
            "creator=tap,block_size=512k",
            "creator=tap,block_size=512k,max_size=900M",
            "creator=tap,subformat=fixed",
        ]
        .into_iter()
        .enumerate()
        {
            let (folder, before) = image(options);
            let journal = Journal::over(&folder);
            resize(journal.folder().as_ref()).unwrap();
            let after = open(journal.live().open("image", true).unwrap()).unwrap();
            assert_eq!(after.size(), LARGE, "{options}");
            let plan =
                Plan { seed: seed as u64, unit: 512, per_epoch: 24, max_states: 150, ..Plan::default() };
            let mut seen = 0;
            for state in journal.states(&plan) {
                let file = state.file("image").unwrap();
                // It opens without help too.
                let own = open(Arc::new(file.snapshot())).unwrap();
                assert!([SMALL, LARGE].contains(&own.size()), "{options}: {state:?}");
                match state
                    .file("journal")
                    .map(|journal| take_back(file.as_ref(), journal.as_ref(), key(file.as_ref())))
                {
                    Some(Ok(())) => {}
                    // Nothing was changed before there was a journal.
                    None => {}
                    Some(Err(error)) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{options}: {state:?}"),
                }
                assert!(bytes(file.as_ref()) == before, "{options}: {state:?}");
                seen += 1;
            }
            assert!(seen >= 10, "{options}: {seen} states");
        }
    }

    #[test]
    fn taking_back_is_taken_up_again_after_a_power_cut() -> Result<(), Failure> {
        let (folder, before) = image("creator=tap,block_size=512k");
        resize(folder.as_ref()).unwrap();
        let journal = Journal::over(&folder);
        {
            let folder = journal.folder();
            let file = folder.open("image", true).unwrap();
            take_back(file.as_ref(), folder.open("journal", true).unwrap().as_ref(), key(file.as_ref()))
                .unwrap();
        }
        for state in journal.states(&Plan { unit: 512, max_states: 60, ..Plan::default() }) {
            let file = state.file("image").unwrap();
            let notes = state.file("journal").unwrap();
            take_back(file.as_ref(), notes.as_ref(), key(file.as_ref())).unwrap();
            assert!(bytes(file.as_ref()) == before, "{state:?}");
        }
        Ok(())
    }
}
