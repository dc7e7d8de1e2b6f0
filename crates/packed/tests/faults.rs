//! Where writing fails, reading fails or somebody gives up: an error, no hang, no thread that stays, and no more memory than
//! is right.

#![allow(clippy::unwrap_used, clippy::panic)] // These are tests, helpers included.

mod common;

use std::io::{self, Read, Write};
use std::sync::Arc;

use common::{pack, sample, storage, unpack};
use cowhand_core::{Error, ErrorKind};
use cowhand_packed::{How, Packed, PackedStorage, Packing, Zstd, packings};

const MIB: usize = 1 << 20;

/// Takes so many bytes, and no more.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let n = buf.len().min(self.0);
        self.0 -= n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_at_every_byte() {
    let bytes = sample(1, MIB + 77);
    for packing in packings() {
        let how = How { level: None, workers: 2 };
        let len = pack(*packing, &bytes, how).len();
        for room in (0..12).chain((12..len).step_by(len / 5)).chain(len - 9..len) {
            let write = || {
                let mut pack = packing.pack(Box::new(Full(room)), how)?;
                let written = pack.write_all(&bytes);
                if written.is_err() {
                    // It does not forget.
                    assert!(pack.write_all(b"more").is_err(), "{} with room for {room}", packing.name());
                }
                written.and_then(|()| pack.finish()).map_err(|error| Error::io("cannot write", error))
            };
            assert_eq!(write().unwrap_err().kind(), ErrorKind::NoSpace, "{} with {room}", packing.name());
        }
        let mut pack = packing.pack(Box::new(Full(len)), how).unwrap();
        pack.write_all(&bytes).unwrap();
        pack.finish().unwrap();
    }
}

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn who_gives_up_leaves_no_thread() {
    let bytes = sample(2, 5 * MIB);
    for packing in packings() {
        let how = How { level: None, workers: 4 };
        let packed = pack(*packing, &bytes, how);
        let before = threads();
        for len in [0, 1, MIB, bytes.len()] {
            let mut pack = packing.pack(Box::new(io::sink()), how).unwrap();
            pack.write_all(&bytes[..len]).unwrap();
            drop(pack);
            let mut reader = Packed::new(&bytes[..len], *packing, how).unwrap();
            reader.read_exact(&mut [0; 8]).unwrap();
            drop(reader);
            let mut unpacked = packing.unpack(Box::new(packed.as_slice()));
            unpacked.read_exact(&mut vec![0; len]).unwrap();
            drop(unpacked);
        }
        assert_eq!(threads(), before, "{}", packing.name());
    }
}

/// Gives bytes, then fails.
struct Fails<'a>(&'a [u8]);

impl Read for Fails<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(Error::new(ErrorKind::Locked, "gone").into()),
            n => Ok(n),
        }
    }
}

#[test]
fn an_input_that_fails_says_why() {
    let bytes = sample(3, 3 * MIB);
    for packing in packings() {
        let packed = pack(*packing, &bytes, How::default());
        for len in [0, 5, packed.len() / 2] {
            let mut found = Vec::new();
            let error = packing.unpack(Box::new(Fails(&packed[..len]))).read_to_end(&mut found).unwrap_err();
            assert_eq!(Error::io("reading", error).kind(), ErrorKind::Locked, "{} at {len}", packing.name());
            assert!(bytes.starts_with(&found));
        }
        let mut reader = Packed::new(Fails(&bytes[..MIB]), *packing, How::default()).unwrap();
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(Error::io("reading", error).kind(), ErrorKind::Locked, "{}", packing.name());
    }
}

/// The most memory that this process had, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

/// A frame of zeros that says, or does not say, how many there are.
fn bomb(len: u64, blocks: u64, said: bool) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    // A window of 8 MiB.
    frame.extend([if said { 0xc0 } else { 0 }, 13 << 3]);
    if said {
        frame.extend(len.to_le_bytes());
    }
    for n in 0..blocks {
        let last = u32::from(n + 1 == blocks);
        // A block of one byte 128 Ki times over.
        frame.extend(&((131_072 << 3) | 2 | last).to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// All of it is one test, for memory is the process's.
#[test]
fn bombs_and_pieces_on_their_way_take_bounded_memory() {
    let before = peak();
    // 16 GiB that are packed in half a MiB, in one frame; and as many frames of 8 MiB as they like.
    let frames = bomb(8 << 20, 64, true).repeat(200);
    for bytes in [bomb(16 << 30, 4096, true), bomb(0, 4096, false), frames.clone()] {
        let mut unpacked = Zstd.unpack(Box::new(bytes.as_slice()));
        let mut buf = vec![0; 64 << 10];
        let mut passed = 0;
        while let Ok(n) = unpacked.read(&mut buf) {
            passed += n;
            if n == 0 || passed > 512 << 20 {
                break;
            }
        }
        assert!(passed > 256 << 20, "{passed}");
    }
    // A frame that says less than it holds, and one that says more.
    for said in [(7 << 20) + 1, (8 << 20) - 1] {
        let (_, error) = unpack(&Zstd, &bomb(said, 64, true));
        assert_eq!(error.unwrap().kind(), ErrorKind::Corrupt);
    }
    let file = storage(&frames);
    let table = Zstd.table(file.as_ref()).unwrap().unwrap();
    let file = PackedStorage::new(file, &Zstd, Arc::new(table)).unwrap();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let file = &file;
            scope.spawn(move || {
                let mut buf = vec![1; 4096];
                for at in (0..40).map(|at| (at * 37 + n * 50) % 200 * (8 << 20) + 5) {
                    cowhand_core::Storage::read_at(file, at, &mut buf).unwrap();
                    assert!(buf.iter().all(|byte| *byte == 0));
                }
            });
        }
    });
    for packing in packings() {
        let mut pack = packing.pack(Box::new(io::sink()), How { level: None, workers: 8 }).unwrap();
        let bytes = sample(9, 8 * MIB);
        for _ in 0..6 {
            pack.write_all(&bytes).unwrap();
        }
        pack.finish().unwrap();
    }
    let grown = peak() - before;
    assert!(grown < 200, "{grown} MiB");
}
