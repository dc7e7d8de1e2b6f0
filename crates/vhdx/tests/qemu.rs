//! Both ways with the real peer: what is written here is what qemu-img reads, and the other way round.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use common::{MIB, chain, noise};
use cowhand_core::{Access, Cache, FileStorage, Kind, Lock, Storage, is_zero};

/// A folder that goes away in the end.
struct Folder(PathBuf);

impl Folder {
    /// `None`, and a word about it, where there is no QEMU.
    fn with_qemu(name: &str) -> Option<Folder> {
        for program in ["qemu-img", "qemu-io"] {
            if Command::new(program).arg("--version").output().is_err() {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let path = std::env::temp_dir().join(format!("cowhand-vhdx-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Some(Folder(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

fn storage(path: &str, access: Access) -> Arc<FileStorage> {
    Arc::new(FileStorage::open(Path::new(path), access, Lock::Default, Cache::Unsafe).unwrap())
}

fn content(path: &str) -> Vec<u8> {
    common::read_all(storage(path, Access::Read)).unwrap()
}

/// Guest content with holes, zeros and data that crosses blocks.
fn guest(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (n, (at, len)) in [(0, 512), (MIB - 700, 5000), (3 * MIB, 2 * MIB + 4096), (9 * MIB + 4096, 65536)]
        .into_iter()
        .enumerate()
    {
        let end = (at + len).min(size) as usize;
        if let Some(piece) = bytes.get_mut(at as usize..end) {
            piece.copy_from_slice(&noise(end - at as usize, n as u64 + 1));
        }
    }
    if let Some(last) = bytes.last_mut() {
        *last = 0x77;
    }
    bytes
}

const SIZES: [u64; 4] = [512, MIB, 12 * MIB + 512, 33 * MIB];

#[test]
fn qemu_reads_what_is_written_here() {
    let Some(folder) = Folder::with_qemu("to-qemu") else { return };
    let options: [&[(&str, &str)]; 7] = [
        &[],
        &[("block_size", "2M"), ("log_size", "3M")],
        &[("block_size", "32M"), ("block_state_zero", "off")],
        &[("block_size", "256M")],
        &[("subformat", "fixed")],
        &[("subformat", "fixed"), ("block_size", "8M"), ("preallocation", "falloc")],
        &[("physical_sector_size", "512")],
    ];
    for size in SIZES {
        let bytes = guest(size);
        let raw = folder.path("raw");
        std::fs::write(&raw, &bytes).unwrap();
        for (n, given) in options.iter().enumerate() {
            let path = folder.path(&format!("{size}-{n}.vhdx"));
            let layer = common::create(storage(&path, Access::CreateNew), size, given).unwrap();
            // Two writers, 64 KiB at a time, each every other piece; zeros are left out.
            thread::scope(|scope| {
                for thread in 0..2 {
                    let (layer, bytes) = (&layer, &bytes);
                    scope.spawn(move || {
                        for (n, piece) in bytes.chunks(65536).enumerate().skip(thread).step_by(2) {
                            if !is_zero(piece) {
                                layer.write(n as u64 * 65536, piece).unwrap();
                            }
                        }
                    });
                }
            });
            layer.close().unwrap();
            drop(layer);
            assert!(content(&path) == bytes, "{size} {given:?}");
            assert!(std::fs::metadata(&path).unwrap().len().is_multiple_of(MIB));
            let check = run("qemu-img", &["check", "-f", "vhdx", &path]);
            assert!(check.contains("No errors"), "{size} {given:?}: {check}");
            let same = run("qemu-img", &["compare", "-f", "vhdx", "-F", "raw", &path, &raw]);
            assert!(same.contains("identical"), "{size} {given:?}: {same}");
            // QEMU goes on writing into it, and it is still what both say it is.
            run("qemu-io", &["-f", "vhdx", "-c", "write -P 0x5a 0 512", &path]);
            let mut changed = bytes.clone();
            changed[..512].fill(0x5a);
            assert!(content(&path) == changed, "{size} {given:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn what_qemu_writes_is_read_here() {
    let Some(folder) = Folder::with_qemu("from-qemu") else { return };
    for size in SIZES {
        let bytes = guest(size);
        let raw = folder.path("raw");
        std::fs::write(&raw, &bytes).unwrap();
        for options in [
            "subformat=dynamic",
            "subformat=fixed",
            "block_size=1M",
            "block_size=2M,log_size=4M",
            "block_size=256M",
            "block_state_zero=off,block_size=4M",
            "subformat=fixed,block_size=1M",
        ] {
            let path = folder.path("q.vhdx");
            run("qemu-img", &["convert", "-f", "raw", "-O", "vhdx", "-o", options, &raw, &path]);
            assert!(content(&path) == bytes, "{size} {options}");
        }
    }
}

#[test]
fn the_log_that_qemu_leaves_is_replayed() {
    let Some(folder) = Folder::with_qemu("dirty") else { return };
    let path = folder.path("dirty.vhdx");
    run("qemu-img", &["create", "-f", "vhdx", "-o", "block_size=1M", &path, "64M"]);
    // Two dozen new blocks, and then it is killed by its own hand: the log stays pending.
    let mut args = vec!["-f".to_owned(), "vhdx".to_owned()];
    for n in 0..24 {
        args.extend(["-c".to_owned(), format!("write -P {} {}k 64k", n + 1, 5 * n * 512)]);
    }
    args.extend(["-c".to_owned(), "abort".to_owned(), path.clone()]);
    let output = Command::new("qemu-io").args(&args).output().unwrap();
    assert!(!output.status.success());
    let before = std::fs::read(&path).unwrap();
    let layer = common::open(storage(&path, Access::Read)).unwrap();
    assert!(layer.details().dirty);
    assert_eq!(layer.details().specific["log-dirty"], true);
    let ours = content(&path);
    for n in 0..24 {
        assert!(
            ours[5 * n * 512 * 1024..][..65536].iter().all(|byte| usize::from(*byte) == n + 1),
            "write {n}"
        );
    }
    assert!(std::fs::read(&path).unwrap() == before);
    drop(layer);
    run("qemu-img", &["check", "-r", "all", "-f", "vhdx", &path]);
    let layer = common::open(storage(&path, Access::Read)).unwrap();
    assert!(!layer.details().dirty);
    assert!(content(&path) == ours);
}

#[test]
fn empty_images_are_small_both_ways() {
    let Some(folder) = Folder::with_qemu("empty") else { return };
    let path = folder.path("q.vhdx");
    run("qemu-img", &["create", "-f", "vhdx", &path, "1T"]);
    let disk = chain(vec![common::open(storage(&path, Access::Read)).unwrap()]);
    let (mut at, mut calls) = (0, 0);
    while at < disk.size() {
        let found = disk.extent(at, disk.size() - at).unwrap();
        assert!(found.kind != Kind::Data);
        at += found.len;
        calls += 1;
    }
    assert!(calls < 10, "{calls}");
    let path = folder.path("ours.vhdx");
    let file = storage(&path, Access::CreateNew);
    common::create(file.clone(), 1 << 40, &[]).unwrap().close().unwrap();
    assert!(file.physical_size().unwrap() < 3 * MIB);
    drop(file);
    assert!(run("qemu-img", &["info", &path]).contains("virtual size: 1 TiB"));
}
