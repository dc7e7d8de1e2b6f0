//! gzip's files read at random, as other programs make them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use common::{Noise, pack, peer, sample, storage};
use cowhand_core::Storage;
use cowhand_packed::{Gzip, How, PackedStorage, Packing, SeekTable};

/// Random reads of `packed`, through a table that was kept, hold what `bytes` has there. Answers the table.
fn reads(packed: &[u8], bytes: &[u8], name: &str) -> SeekTable {
    let file = storage(packed);
    let mut survey = Gzip.survey(file.clone()).unwrap().unwrap();
    let mut found = Vec::new();
    survey.read_to_end(&mut found).unwrap();
    assert!(found == bytes, "{name}");
    let table = survey.finish().unwrap();
    assert_eq!(table.len, bytes.len() as u64);
    let kept = SeekTable::from_bytes(&table.to_bytes()).unwrap();
    assert_eq!(kept, table, "{name}");
    let storage = PackedStorage::new(file, &Gzip, Arc::new(kept)).unwrap();
    let mut noise = Noise::new(8);
    for _ in 0..40 {
        let at = noise.below(bytes.len());
        let most = if noise.below(8) == 0 { 3_000_000 } else { 70_000 };
        let len = noise.below(most).min(bytes.len() - at);
        let mut found = vec![0; len];
        storage.read_at(at as u64, &mut found).unwrap();
        assert!(found == bytes[at..at + len], "{name}: {len} bytes at {at}");
    }
    table
}

#[test]
fn what_the_programs_write_is_read_at_random() {
    let bytes = sample(11, 7_000_007);
    let all: [(&str, &[&str]); 7] = [
        ("gzip", &["-c1"]),
        ("gzip", &["-c"]),
        ("gzip", &["-c", "--rsyncable"]),
        ("pigz", &["-c", "--rsyncable"]),
        ("pigz", &["-c1", "-p", "2"]),
        ("pigz", &["-c9", "-i", "-b", "512"]),
        ("pigz", &["-c0"]),
    ];
    let (mut members, mut times) = (Vec::new(), 0);
    for (program, args) in all {
        let Some(packed) = peer(program, args, &bytes) else { continue };
        let table = reads(&packed, &bytes, &format!("{program} {args:?}"));
        assert!(table.points.len() >= 3, "{program} {args:?}: {}", table.points.len());
        members.extend(packed);
        times += 1;
    }
    if times > 0 {
        reads(&members, &bytes.repeat(times), "all of them");
    }
    let ours = pack(&Gzip, &bytes, How { workers: 2, ..How::default() });
    assert!(reads(&ours, &bytes, "ours").points.len() >= 3);
}

/// A disk of 32 GiB that is zero but for a few places: 32 MiB packed. It takes a minute or more.
#[test]
fn a_long_file_has_a_small_table() {
    if std::env::var_os("COWHAND_SLOW").is_none() {
        return;
    }
    const LEN: u64 = 32 << 30;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut disk = std::fs::File::create(&path).unwrap();
    disk.set_len(LEN).unwrap();
    let mut noise = Noise::new(5);
    let places: Vec<(u64, Vec<u8>)> =
        (0..500).map(|n| (n * (LEN / 500) + noise.below(1 << 20) as u64, sample(n, 60_000))).collect();
    for (at, bytes) in &places {
        disk.seek(SeekFrom::Start(*at)).unwrap();
        disk.write_all(bytes).unwrap();
    }
    let packed = folder.path().join("disk.gz");
    let mut pack = Gzip.pack(Box::new(std::fs::File::create(&packed).unwrap()), How::default()).unwrap();
    std::io::copy(&mut std::fs::File::open(&path).unwrap(), &mut pack).unwrap();
    pack.finish().unwrap();
    let file = storage(&std::fs::read(&packed).unwrap());
    let table = Gzip.survey(file.clone()).unwrap().unwrap().finish().unwrap();
    assert_eq!(table.len, LEN);
    assert!(table.to_bytes().len() < 64 << 20);
    let storage = PackedStorage::new(file, &Gzip, Arc::new(table)).unwrap();
    for (at, bytes) in places {
        let mut found = vec![0; bytes.len()];
        storage.read_at(at, &mut found).unwrap();
        assert!(found == bytes, "{at}");
    }
}
