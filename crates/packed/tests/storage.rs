//! Reading at random is reading a slice of what is packed: whatever is packed how, by one reader or several.

#![allow(clippy::unwrap_used, clippy::panic)] // These are tests, helpers included.

mod common;

use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Noise, pack, peer, sample, storage, unpack};
use cowhand_core::{Error, ErrorKind, Result, Storage};
use cowhand_packed::{How, Pack, PackedStorage, Packing, Point, SeekTable, Span, Survey, Zstd};

const MIB: usize = 1 << 20;

fn reads_slices(storage: &dyn Storage, bytes: &[u8], seed: u64, rounds: usize) {
    let mut noise = Noise::new(seed);
    assert_eq!(storage.len().unwrap(), bytes.len() as u64);
    let mut buf = Vec::new();
    let mut at = 0;
    for _ in 0..rounds {
        // Forward mostly, as people read, and with jumps.
        at = if noise.below(4) == 0 { noise.below(bytes.len()) } else { at + noise.below(200_000) };
        at = at.min(bytes.len());
        let most = if noise.below(20) == 0 { 3 * MIB } else { 150_000 };
        let len = noise.below(most).min(bytes.len() - at);
        buf.clear();
        buf.resize(len, 0xa5);
        storage.read_at(at as u64, &mut buf).unwrap();
        assert!(buf == bytes[at..at + len], "{len} bytes at {at}");
        at += len;
    }
    let error = storage.read_at(bytes.len() as u64, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    storage.read_at(bytes.len() as u64, &mut []).unwrap();
}

fn by_several(storage: &PackedStorage, bytes: &[u8]) {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || reads_slices(storage, bytes, seed, 30));
        }
    });
}

#[test]
fn our_own_files_have_a_table() {
    for (seed, len) in [0, 1, MIB, 9 * MIB + 17].into_iter().enumerate() {
        let bytes = sample(seed as u64, len);
        let packed = pack(&Zstd, &bytes, How::default());
        let file = storage(&packed);
        let table = Zstd.table(file.as_ref()).unwrap().unwrap();
        assert_eq!((table.len, table.points.len()), (len as u64, len.div_ceil(MIB)));
        let table = SeekTable::from_bytes(&table.to_bytes()).unwrap();
        let unpacked = PackedStorage::new(file.clone(), &Zstd, Arc::new(table)).unwrap();
        assert_eq!(unpacked.identity().unwrap(), file.identity().unwrap());
        assert!(unpacked.write_at(0, &[1]).is_err() && unpacked.set_len(0).is_err());
        if len > 0 {
            reads_slices(&unpacked, &bytes, 1, 100);
            by_several(&unpacked, &bytes);
        }
    }
}

#[test]
fn foreign_files_of_small_frames_are_walked() {
    let bytes = sample(5, 30 * MIB);
    let mut packed = Vec::new();
    for part in bytes.chunks(5 * MIB) {
        let Some(frame) = peer("zstd", &["-cq", "-1", &format!("--stream-size={}", part.len())], part) else {
            return;
        };
        packed.extend(frame);
    }
    let table = Zstd.table(storage(&packed).as_ref()).unwrap().unwrap();
    assert_eq!((table.len, table.points.len()), (bytes.len() as u64, 6));
    let unpacked = PackedStorage::new(storage(&packed), &Zstd, Arc::new(table)).unwrap();
    by_several(&unpacked, &bytes);
    if let Some(packed) = peer("pzstd", &["-cq", "-p", "2", "-1"], &bytes) {
        // It says how much a frame holds, or it does not: either way there is a table in the end.
        let file = storage(&packed);
        let table = match Zstd.table(file.as_ref()).unwrap() {
            Some(table) => table,
            None => Zstd.survey(file.clone()).unwrap().unwrap().finish().unwrap(),
        };
        assert!(table.len == bytes.len() as u64 && table.points.len() > 1);
        by_several(&PackedStorage::new(file, &Zstd, Arc::new(table)).unwrap(), &bytes);
    }
}

#[test]
fn a_survey_finds_what_is_not_said() {
    let bytes = sample(6, 24 * MIB);
    let mut packed = Vec::new();
    // The second is long.
    for part in [&bytes[..3 * MIB], &bytes[3 * MIB..20 * MIB], &[], &bytes[20 * MIB..]] {
        packed.extend(zstd::stream::encode_all(part, 1).unwrap());
    }
    let file = storage(&packed);
    assert_eq!(Zstd.table(file.as_ref()).unwrap(), None);
    let mut survey = Zstd.survey(file.clone()).unwrap().unwrap();
    let mut front = vec![0; MIB];
    survey.skip(MIB as u64).unwrap();
    survey.read_exact(&mut front).unwrap();
    assert!(front == bytes[MIB..2 * MIB]);
    let table = survey.finish().unwrap();
    let places: Vec<u64> = table.points.iter().map(|point| point.unpacked).collect();
    assert_eq!((table.len, places), (24 << 20, vec![0, 3 << 20, 20 << 20]));
    by_several(&PackedStorage::new(file, &Zstd, Arc::new(table)).unwrap(), &bytes);
    // One frame alone has no other place.
    let one = zstd::stream::encode_all(bytes.as_slice(), 1).unwrap();
    assert_eq!(Zstd.table(storage(&one).as_ref()).unwrap(), None);
    assert!(Zstd.survey(storage(&one)).unwrap().is_none());
    // What is broken is no survey's to hide.
    for cut in [packed.len() - 1, packed.len() / 2] {
        let survey = Zstd.survey(storage(&packed[..cut])).unwrap().unwrap();
        assert_eq!(survey.finish().unwrap_err().kind(), ErrorKind::Changed);
    }
}

/// Nothing is packed, and how much is unpacked is counted.
#[derive(Debug)]
struct Plain {
    unpacked: AtomicU64,
}

static PLAIN: Plain = Plain { unpacked: AtomicU64::new(0) };

struct Counting(io::Cursor<Vec<u8>>);

impl Read for Counting {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        PLAIN.unpacked.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Packing for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }
    fn extension(&self) -> &'static str {
        "plain"
    }
    fn probe(&self, _head: &[u8]) -> bool {
        false
    }
    fn levels(&self) -> RangeInclusive<i32> {
        1..=1
    }
    fn unpack<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a> {
        input
    }
    fn pack<'a>(&self, _output: Box<dyn io::Write + Send + 'a>, _how: How) -> Result<Box<dyn Pack + 'a>> {
        Err(Error::unsupported("plain"))
    }
    fn table(&self, _file: &dyn Storage) -> Result<Option<SeekTable>> {
        Ok(None)
    }
    fn survey(&self, _file: Arc<dyn Storage>) -> Result<Option<Box<dyn Survey>>> {
        Ok(None)
    }
    fn unpack_from(&self, file: Arc<dyn Storage>, span: Span<'_>) -> Result<Box<dyn Read + Send>> {
        let mut bytes = vec![0; span.len as usize];
        file.read_at(span.from.packed, &mut bytes).unwrap();
        Ok(Box::new(Counting(io::Cursor::new(bytes))))
    }
}

#[test]
fn reading_forward_unpacks_nothing_twice() {
    let bytes = sample(8, 48 * MIB);
    let point = |mib: u64| Point { packed: mib << 20, unpacked: mib << 20, state: Vec::new() };
    for points in
        [vec![point(0)], (0..24).map(|n| point(2 * n)).collect(), vec![point(0), point(1), point(40)]]
    {
        let table = Arc::new(SeekTable { len: bytes.len() as u64, points });
        let of = |table: &Arc<SeekTable>| PackedStorage::new(storage(&bytes), &PLAIN, table.clone()).unwrap();
        let file = of(&table);
        PLAIN.unpacked.store(0, Ordering::Relaxed);
        // Pieces of 1 MiB in turn, as a copy's threads read them, by 128 KiB.
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut buf = vec![0; MIB / 8];
                    loop {
                        let piece = next.fetch_add(1, Ordering::Relaxed);
                        if piece >= 48 {
                            return;
                        }
                        for eighth in 0..8 {
                            let at = ((piece * 8 + eighth) * buf.len() as u64) as usize;
                            file.read_at(at as u64, &mut buf).unwrap();
                            assert!(buf == bytes[at..at + buf.len()]);
                        }
                    }
                });
            }
        });
        assert_eq!(PLAIN.unpacked.load(Ordering::Relaxed), bytes.len() as u64);
        by_several(&of(&table), &bytes);
    }
}

#[test]
fn a_table_that_lies_is_found_out() {
    let bytes = sample(9, 3 * MIB);
    let packed = pack(&Zstd, &bytes, How::default());
    let right = Zstd.table(storage(&packed).as_ref()).unwrap().unwrap();
    let mut noise = Noise::new(10);
    for round in 0..40 {
        let mut table = right.clone();
        let at = 1 + noise.below(table.points.len() - 1);
        match round % 4 {
            0 => table.points[at].unpacked += 1 + noise.below(1000) as u64,
            1 => table.points[at].unpacked -= 1 + noise.below(1000) as u64,
            2 => table.points[at].packed += 1 + noise.below(1000) as u64,
            _ => table.len += 1 + noise.below(1000) as u64,
        }
        let Ok(file) = PackedStorage::new(storage(&packed), &Zstd, Arc::new(table)) else { continue };
        let mut failed = 0;
        for span in 0..3 {
            let mut buf = vec![0; 1000];
            let at = span * MIB + 4000;
            match file.read_at(at as u64, &mut buf) {
                Ok(()) => assert!(buf == bytes[at..at + 1000]),
                Err(_) => failed += 1,
            }
        }
        assert!(failed > 0);
    }
    // So is a stored one: it is passed over where it cannot be right, and the frames are walked.
    for at in packed.len() - 3 * 8 - 17..packed.len() {
        let mut packed = packed.clone();
        packed[at] ^= 1 << (at % 8);
        let Ok(Some(table)) = Zstd.table(storage(&packed).as_ref()) else { continue };
        let Ok(file) = PackedStorage::new(storage(&packed), &Zstd, Arc::new(table)) else { continue };
        let mut buf = vec![0; bytes.len()];
        if file.read_at(0, &mut buf[..(file.len().unwrap() as usize).min(bytes.len())]).is_ok() {
            assert!(buf == bytes);
        }
    }
}

#[test]
fn a_flipped_bit_is_never_silent_at_random_either() {
    let bytes = sample(11, 3 * MIB);
    let packed = pack(&Zstd, &bytes, How::default());
    let mut noise = Noise::new(12);
    for _ in 0..80 {
        let mut packed = packed.clone();
        let at = noise.below(packed.len());
        packed[at] ^= 1 << noise.below(8);
        let Ok(Some(table)) = Zstd.table(storage(&packed).as_ref()) else { continue };
        let Ok(file) = PackedStorage::new(storage(&packed), &Zstd, Arc::new(table)) else { continue };
        for _ in 0..3 {
            let at = noise.below(bytes.len() - 100);
            let mut buf = [0; 100];
            if file.read_at(at as u64, &mut buf).is_ok() {
                assert!(buf == bytes[at..at + 100]);
            }
        }
    }
    let (_, error) = unpack(&Zstd, &packed);
    assert!(error.is_none());
}

#[test]
fn a_seek_table_that_shifts_what_follows_is_not_taken() {
    let bytes = sample(11, 4 * MIB);
    let packed = pack(&Zstd, &bytes, How::default());
    // Entries of 8 bytes stand before the footer: the second half of each is how much its frame holds.
    let footer = packed.len() - 9;
    for (from_end, bit) in [(1, 0), (2, 12), (4, 19)] {
        let mut lies = packed.clone();
        let entry = footer - 8 * from_end + 4;
        lies[entry + bit / 8] ^= 1 << (bit % 8);
        let file = storage(&lies);
        let table = Zstd.table(&*file).unwrap().unwrap();
        let random = PackedStorage::new(file, &Zstd, Arc::new(table)).unwrap();
        reads_slices(&random, &bytes, 12, 40);
    }
}
