//! What a volume must hold: hostile headers, keys under power cuts, layers like a flat vector.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PASSPHRASE, amend, bytes, create, how, open, pattern, with};
use cowhand_core::testing::{CrashTest, FaultTest, Journal, ModelTest, Plan, RaceTest, Shape};
use cowhand_core::{
    ErrorKind, Folder, Format, Identity, Layer, MemoryStorage, NoFiles, OpenOptions, Result, Storage,
};
use cowhand_luks::Luks;

fn volume() -> Vec<u8> {
    let file = Arc::new(MemoryStorage::default());
    let layer = create(file.clone(), 4096, "");
    layer.write(0, &pattern(0, 4096, 1)).unwrap();
    file.to_vec()
}

fn opened(bytes: &[u8], secrets: &[&[u8]]) -> Result<Arc<dyn Layer>> {
    Luks.open(Arc::new(MemoryStorage::from_bytes(bytes)), &NoFiles, &with(true, secrets))
}

fn looked_at(bytes: &[u8]) -> Result<Arc<dyn Layer>> {
    let how = OpenOptions { metadata_only: true, ..OpenOptions::default() };
    Luks.open(Arc::new(MemoryStorage::from_bytes(bytes)), &NoFiles, &how)
}

#[test]
fn a_wrong_secret_or_none_is_denied() {
    let volume = volume();
    let error = opened(&volume, &[b"wrong", b""]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("Invalid password, cannot unlock any keyslot"), "{error}");
    let error = opened(&volume, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("--key-file"), "{error}");
    assert!(bytes(&opened(&volume, &[b"wrong", PASSPHRASE]).unwrap()) == pattern(0, 4096, 1));
}

#[test]
fn hostile_headers_are_told_and_quickly() {
    let good = volume();
    let cases: [(&str, usize, &[u8], &str); 21] = [
        ("version 2", 6, &[0, 2], "LUKS2"),
        ("version 9", 6, &[0, 9], "version 9"),
        ("cipher", 8, b"camellia\0", "camellia"),
        ("cipher without end", 8, &[b'a'; 32], "cipher-name"),
        ("mode", 40, b"lrw-plain64\0", "lrw-plain64"),
        ("hash", 72, b"crc32\0", "crc32"),
        ("hash not text", 72, &[0xff, 0], "hash-spec"),
        ("payload 0", 104, &[0, 0, 0, 0], "another file"),
        ("payload in the header", 104, &[0, 0, 0, 1], "payload-offset"),
        ("payload past the end", 104, &[0xff; 4], "payload-offset"),
        ("key bytes 0", 108, &[0, 0, 0, 0], "key-bytes"),
        ("key bytes huge", 108, &[0xff; 4], "key-bytes"),
        ("no iterations", 164, &[0; 4], "mk-digest-iter"),
        ("state", 208, &[1, 2, 3, 4], "key slot 0"),
        ("slot without iterations", 212, &[0; 4], "key slot 0"),
        ("stripes 0", 252, &[0; 4], "stripes"),
        ("stripes huge", 252, &[0xff; 4], "stripes"),
        ("material in the header", 248, &[0, 0, 0, 1], "key material"),
        ("material past the end", 248, &[0xff; 4], "key material"),
        ("material in the data", 248, &[0, 0, 0x0f, 0xc0], "key material"),
        ("slots overlap", 296, &[0, 0, 0, 9], "overlaps"),
    ];
    for (name, at, new, said) in cases {
        let mut bad = good.clone();
        bad[at..at + new.len()].copy_from_slice(new);
        let began = Instant::now();
        let error = looked_at(&bad).unwrap_err();
        assert!(error.to_string().contains(said), "{name}: {error}");
        assert!(began.elapsed() < Duration::from_secs(1), "{name}");
    }
    for len in [0, 6, 100, 591, 592, 4096, 100_000, 2_068_000] {
        assert!(looked_at(&good[..len]).is_err(), "cut at {len}");
    }
    // A disk that is cut is shorter; a cut sector is filled up with zeros before it is decrypted.
    assert_eq!(looked_at(&good[..good.len() - 1024]).unwrap().size(), 3072);
    assert_eq!(bytes(&opened(&good[..good.len() - 100], &[PASSPHRASE]).unwrap()).len(), 4096);
}

#[test]
fn more_iterations_than_any_machine_does_are_not_tried() {
    let mut bad = volume();
    bad[212..216].fill(0xff);
    let began = Instant::now();
    looked_at(&bad).unwrap();
    let error = opened(&bad, &[PASSPHRASE]).unwrap_err();
    assert!(error.to_string().contains("4294967295"), "{error}");
    bad[164..168].fill(0xff);
    let error = opened(&bad, &[PASSPHRASE]).unwrap_err();
    assert!(error.to_string().contains("mk-digest-iter"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn keys_are_refused_as_qemu_refuses_them() {
    let layer = create(Arc::new(MemoryStorage::default()), 4096, "");
    let all: &[&[u8]] = &[PASSPHRASE, b"second", b"\xff\xfe"];
    for (options, said) in [
        ("keyslot=1", "Parameter 'state' is missing"),
        ("state=active", "'new-secret' is required"),
        ("state=active,new-secret=s1,old-secret=s0", "'old-secret' must not be given"),
        ("state=active,new-secret=s1,keyslot=8", "must be between 0 and 7"),
        ("state=active,new-secret=s1,keyslot=0", "Refusing to overwrite active keyslot 0"),
        ("state=active,new-secret=s2", "not text"),
        ("state=active,new-secret=s9", "No secret with id 's9'"),
        ("state=inactive", "must be given"),
        ("state=inactive,keyslot=3", "already erased"),
        ("state=inactive,keyslot=0,new-secret=s1", "'new-secret' must not be given"),
        ("state=inactive,keyslot=0,iter-time=1", "'iter-time' must not be given"),
        ("state=inactive,keyslot=0,old-secret=s1", "doesn't contain the given old password"),
        ("state=inactive,keyslot=0", "only active keyslot 0"),
        ("state=inactive,old-secret=s0", "All the active keyslots match"),
        ("state=inactive,old-secret=s1", "No keyslots match"),
    ] {
        let error = amend(&layer, options, all).unwrap_err().to_string();
        assert!(error.contains(said), "{options}: {error}");
    }
    for _ in 0..7 {
        amend(&layer, "state=active,new-secret=s1,iter-time=1", all).unwrap();
    }
    let error = amend(&layer, "state=active,new-secret=s1", all).unwrap_err().to_string();
    assert!(error.contains("all keyslots are in use"), "{error}");
    amend(&layer, "state=inactive,old-secret=s1", all).unwrap();
    amend(&layer, "state=active,new-secret=s1,keyslot=0,iter-time=1,force=on", all).unwrap();
    assert!(amend(&layer, "state=inactive,old-secret=s0", all).is_err());
    amend(&layer, "state=inactive,keyslot=0,force=on", all).unwrap();
}

type Make = Box<dyn Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync>;

/// A volume of zeros.
fn maker(size: u64, text: &str) -> Make {
    let text = format!("{text},preallocation=full");
    let how = how(size, &text);
    Box::new(move |file| Luks.create(file, &NoFiles, &how))
}

fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    open(file, true)
}

const CBC: &str = "cipher-mode=cbc,ivgen-alg=essiv,cipher-alg=aes-128,hash-alg=sha1";

#[test]
fn a_volume_is_a_flat_vector() {
    for text in ["", CBC] {
        for seed in 0..2 {
            let shape = Shape { erase: false, resize: true, ..Shape::new(64 << 10, 4096) };
            let test = ModelTest::new(maker(64 << 10, text), reopen).shape(shape).seed(seed);
            test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
    }
}

#[test]
fn threads_leave_each_other_alone() {
    for text in ["", CBC] {
        let test = RaceTest::new(maker(64 << 10, text), reopen).unit(512).time(Duration::from_millis(300));
        test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
    }
}

#[test]
fn a_power_cut_or_a_failing_disk_loses_nothing_that_was_flushed() {
    let shape = Shape { erase: false, reopen: false, ops: 20, ..Shape::new(32 << 10, 4096) };
    let test = CrashTest::new(maker(32 << 10, ""), reopen).shape(shape).seed(1).per_epoch(6);
    let counts = test.run().unwrap();
    assert!(counts.states > 10, "{counts:?}");
    let test = FaultTest::new(maker(32 << 10, ""), reopen).shape(shape).seed(1).every(5);
    test.run().unwrap();
}

#[test]
fn a_power_cut_while_keys_change_leaves_one_that_opens() {
    let second = &b"second"[..];
    let both: &[&[u8]] = &[PASSPHRASE, second];
    for steps in [
        &["state=active,new-secret=s1,iter-time=1", "state=inactive,old-secret=s0"][..],
        // The one key there is, overwritten.
        &["state=active,new-secret=s1,keyslot=0,iter-time=1,force=on"],
    ] {
        let journal = Journal::new();
        let file: Arc<dyn Storage> = journal.folder().create_new("disk").unwrap();
        let layer = create(file, 4096, "");
        layer.write(0, &pattern(0, 4096, 8)).unwrap();
        layer.flush().unwrap();
        journal.settle();
        for step in steps {
            amend(&layer, step, both).unwrap();
        }
        let mut seen = 0;
        for state in journal.states(&Plan { per_epoch: 12, random: 4, exhaustive: 3, ..Plan::default() }) {
            let disk = state.file("disk").unwrap().to_vec();
            assert!(bytes(&opened(&disk, both).unwrap()) == pattern(0, 4096, 8));
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
    }
}

/// Takes its time, so that others come in between.
#[derive(Debug, Default)]
struct Slow(MemoryStorage);

impl Storage for Slow {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(at, buf)?;
        std::thread::sleep(Duration::from_micros(100));
        Ok(())
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

/// Each writes its own bytes of a sector that they share, and reads them back.
#[test]
fn writers_of_parts_of_one_sector_lose_nothing() {
    for text in ["", CBC] {
        let layer = create(Arc::new(Slow::default()), 4096, &format!("{text},preallocation=full"));
        std::thread::scope(|scope| {
            for (thread, range) in [0..200, 200..512, 512..700, 700..1024].into_iter().enumerate() {
                let layer = &layer;
                scope.spawn(move || {
                    let (at, len) = (range.start as u64, range.len());
                    let mut found = vec![0; len];
                    for round in 0..100 {
                        let new = vec![(round * 4 + thread) as u8; len];
                        layer.write(at, &new).unwrap();
                        // The second time others have been at work meanwhile.
                        for _ in 0..2 {
                            layer.read(at, &mut found).unwrap();
                            assert!(found == new, "{text}: round {round} of thread {thread}");
                        }
                    }
                });
            }
        });
    }
}
