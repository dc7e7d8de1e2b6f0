//! A storage that notes what is written over before it is gone, so that all of it can be taken back.
//!
//! The journal: a header (a sector), then records of what stood somewhere before it was first changed, each whole sectors
//! long and behind a sector of its own that says where and how much. A record is durable before what it speaks of changes,
//! so one that is not whole speaks of nothing that happened. Bytes behind the old end need none: the file is cut.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Error, ErrorKind, Identity, Result, Storage};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 16] = b"cowhand undo 1\0\0";
const SECTOR: u64 = 512;
/// Bytes that one record holds at most.
const PIECE: u64 = 1 << 20;

/// What the journal begins with, and in front of each record: of which only `at` and `len` differ.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 16],
    /// Tells this journal's records from those that an older one left behind them.
    salt: U64,
    /// Where the record's bytes stood.
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
        journal.write_at(0, Head::new(salt, 0, len, key, &[]).as_bytes())?;
        journal.sync()?;
        let noted = Mutex::new(Noted { end: SECTOR, ranges: Vec::new() });
        Ok(Undo { storage, journal, salt, key, len, noted })
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
/// image is now. Errors: this is no journal, or one of another image; what it leaves alone then.
pub(crate) fn take_back(storage: &dyn Storage, journal: &dyn Storage, key: Option<[u8; 16]>) -> Result<()> {
    let unread = |error| Error::io("cannot read the journal", error);
    let head = Head::read(journal, 0).map_err(unread)?.ok_or_else(|| {
        Error::corrupt("journal", "no journal begins here, so there is nothing that could be taken back")
    })?;
    if head.key != key.unwrap_or_default() {
        return Err(Error::new(ErrorKind::Mismatch, "the journal is another image's"));
    }
    let mut at = SECTOR;
    let mut bytes = Vec::new();
    while let Some(record) = Head::read(journal, at).map_err(unread)? {
        let (to, len) = (record.at.get(), record.len.get());
        let end = at + SECTOR + len.min(PIECE).next_multiple_of(SECTOR);
        let fits = to.checked_add(len).is_some_and(|end| end <= head.len.get());
        if record.salt != head.salt || len > PIECE || !fits || end > journal.len().map_err(unread)? {
            break;
        }
        bytes.resize(len as usize, 0);
        journal.read_at(at + SECTOR, &mut bytes).map_err(unread)?;
        if crc32c::crc32c(&bytes) != record.sum.get() {
            break;
        }
        storage
            .write_at(to, &bytes)
            .map_err(|error| Error::io("cannot put back what was there", error).at(to))?;
        at = end;
    }
    let len = head.len.get();
    storage
        .set_len(len)
        .map_err(|error| Error::io(format!("cannot make it {len} bytes long again"), error))?;
    storage.sync().map_err(|error| Error::io("cannot sync", error))
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
