//! Lazy refcounts: counts that wait in memory while the dirty bit says so, and images that were not closed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;

use common::{bytes, check, create, how, open, pattern, qemu, qemu_bytes, run};
use cowhand_core::{ErrorKind, Prealloc};

const SIZE: u64 = 1 << 20;

fn is_dirty(path: &Path) -> bool {
    open(path, false).unwrap().details().dirty
}

/// All counts that stand in the file, by the first refcount block.
fn counts(path: &Path) -> Vec<u8> {
    let file = std::fs::read(path).unwrap();
    let word = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let block = word(word(48));
    file[block..block + 256].to_vec()
}

#[test]
fn counts_are_written_when_the_image_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in ["lazy_refcounts=on", "lazy_refcounts=on,extended_l2=on", "lazy_refcounts=on,data_file=d"] {
        create(&path, &how(SIZE, text)).close().unwrap();
        assert!(!is_dirty(&path));
        let before = counts(&path);
        let layer = open(&path, true).unwrap();
        layer.flush().unwrap();
        assert!(!is_dirty(&path), "nothing was allocated");
        layer.write(100_000, &pattern(100_000, 200_000, 1)).unwrap();
        assert!(!is_dirty(&path), "nothing is mapped in the file yet");
        layer.flush().unwrap();
        assert!(is_dirty(&path) && layer.details().dirty);
        assert_eq!(counts(&path), before);
        assert_eq!(bytes(&open(&path, false).unwrap())[100_000..300_000], pattern(100_000, 200_000, 1));
        layer.close().unwrap();
        assert!(!is_dirty(&path) && counts(&path) != before);
        if qemu() {
            check(&path);
            assert_eq!(qemu_bytes(&path)[100_000..300_000], pattern(100_000, 200_000, 1));
        }

        // Guest data takes no clusters where it stands in another file.
        let allocates = !text.contains("data_file");
        // What changes the image as a whole finds all counts right.
        let layer = open(&path, true).unwrap();
        layer.write(600_000, &pattern(600_000, 100_000, 2)).unwrap();
        layer.flush().unwrap();
        assert_eq!(is_dirty(&path), allocates);
        layer.resize(2 * SIZE, Prealloc::Off, 0).unwrap();
        assert!(!is_dirty(&path));
        layer.write(SIZE, &pattern(SIZE, 100_000, 2)).unwrap();
        layer.flush().unwrap();
        assert_eq!(is_dirty(&path), allocates);
        layer.close().unwrap();
        assert!(!is_dirty(&path));
        if qemu() {
            check(&path);
        }
    }
}

/// An image that a power cut left with too low counts is counted anew where it is opened for writing.
#[test]
fn what_was_not_closed_is_put_right_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512", "lazy_refcounts=on,data_file=d"] {
        create(&path, &how(SIZE, text)).close().unwrap();
        let layer = open(&path, true).unwrap();
        layer.write(100_000, &pattern(100_000, 400_000, 1)).unwrap();
        layer.flush().unwrap();
        drop(layer);
        assert!(is_dirty(&path));
        let before = std::fs::read(&path).unwrap();
        let want = bytes(&open(&path, false).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), before, "reading changes nothing");

        let layer = open(&path, true).unwrap();
        assert!(!layer.details().dirty);
        layer.write(700_000, &pattern(700_000, 100_000, 1)).unwrap();
        layer.close().unwrap();
        assert!(!is_dirty(&path));
        let found = bytes(&open(&path, false).unwrap());
        assert!(found[..700_000] == want[..700_000]);
        assert_eq!(found[700_000..800_000], pattern(700_000, 100_000, 1));
        if qemu() {
            check(&path);
            assert!(qemu_bytes(&path) == found);
        }
    }
}

/// QEMU leaves such images too, when it is killed.
#[test]
fn what_qemu_did_not_close_is_put_right() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    run(
        folder.path(),
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "a.qcow2", "1M"],
    );
    run(
        folder.path(),
        "sh",
        &["-c", "qemu-io -c 'write -P 7 0 300k' -c flush -c abort a.qcow2 >/dev/null 2>&1; true"],
    );
    assert!(is_dirty(&path));
    let layer = open(&path, true).unwrap();
    layer.write(SIZE - 512, &[8; 512]).unwrap();
    layer.close().unwrap();
    check(&path);
    let found = qemu_bytes(&path);
    assert!(found[..300 << 10].iter().all(|byte| *byte == 7) && found[SIZE as usize - 1] == 8);
}

/// More is wrong than counts: what a repair might give up is not given up unasked.
#[test]
fn what_was_not_closed_and_is_damaged_is_only_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    create(&path, &how(SIZE, "lazy_refcounts=on")).close().unwrap();
    let layer = open(&path, true).unwrap();
    layer.write(0, &pattern(0, 300_000, 1)).unwrap();
    layer.flush().unwrap();
    drop(layer);
    let mut file = std::fs::read(&path).unwrap();
    let word = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let l2 = word(word(40)) & 0xffff_ffff;
    // The third cluster's entry points past the end of the file.
    file[l2 + 16..l2 + 24].copy_from_slice(&(1u64 << 63 | 1 << 40).to_be_bytes());
    std::fs::write(&path, &file).unwrap();
    let error = open(&path, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("more than its refcounts is wrong"), "{error}");
    assert!(is_dirty(&path));
    assert_eq!(std::fs::read(&path).unwrap()[l2..l2 + 64], file[l2..l2 + 64]);
    let layer = open(&path, false).unwrap();
    assert!(layer.read(131_072, &mut [0; 512]).is_err());
    let mut bytes = vec![0; 65536];
    layer.read(65536, &mut bytes).unwrap();
    assert_eq!(bytes, pattern(65536, 65536, 1));
}
