//! Both ways with the real peer: what is written here is what qemu-img reads, and the other way round.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use common::{MIB, chain, noise, sealed};
use cowhand_core::testing::{Journal as Recorder, Plan};
use cowhand_core::{
    Access, Cache, Erase, FileStorage, Folder as _, Format, Kind, Lock, MemoryFolder, NoFiles, Storage,
    is_zero,
};
use cowhand_vhdx::Vhdx;

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

/// Without locks: a program that another test starts holds them, too, for a moment.
fn storage(path: &str, access: Access) -> Arc<FileStorage> {
    Arc::new(FileStorage::open(Path::new(path), access, Lock::None, Cache::Unsafe).unwrap())
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

const SIZES: [u64; 3] = [512, 12 * MIB + 512, 33 * MIB];

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
            run("qemu-io", &["-t", "unsafe", "-f", "vhdx", "-c", "write -P 0x5a 0 512", &path]);
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
            run(
                "qemu-img",
                &["convert", "-t", "unsafe", "-f", "raw", "-O", "vhdx", "-o", options, &raw, &path],
            );
            assert!(content(&path) == bytes, "{size} {options}");
        }
    }
}

/// Makes the file's log pending, with one entry that puts these sectors in place.
fn leave_in_log(file: &dyn Storage, changes: &[(u64, Vec<u8>)]) {
    let sequence = 5u64.to_le_bytes();
    let mut head = b"loge\0\0\0\0".to_vec();
    let mut data = Vec::new();
    head.extend((4096 * (1 + changes.len() as u32)).to_le_bytes());
    head.extend(0u32.to_le_bytes());
    head.extend(sequence);
    head.extend((changes.len() as u64).to_le_bytes());
    head.extend([0x11; 16]);
    let len = file.len().unwrap().to_le_bytes();
    head.extend([len, len].concat());
    for (at, sector) in changes {
        head.extend(b"desc");
        head.extend(&sector[4092..]);
        head.extend(&sector[..8]);
        head.extend(at.to_le_bytes());
        head.extend(sequence);
        data.extend(b"data\0\0\0\0");
        data.extend(&sector[8..4092]);
        data.extend(5u32.to_le_bytes());
    }
    head.resize(4096, 0);
    head.extend(data);
    file.write_at(MIB, &sealed(head)).unwrap();
    for at in [64 << 10, 128 << 10] {
        let mut header = vec![0; 4096];
        file.read_at(at, &mut header).unwrap();
        header[48..64].fill(0x11);
        file.write_at(at, &sealed(header)).unwrap();
    }
}

#[test]
fn a_pending_log_is_replayed_as_qemu_does_it() {
    let Some(folder) = Folder::with_qemu("dirty") else { return };
    let path = folder.path("dirty.vhdx");
    let file = storage(&path, Access::CreateNew);
    let layer = common::create(file.clone(), 2048 * MIB, &[("block_size", "1M")]).unwrap();
    layer.write(100, &noise(MIB as usize, 1)).unwrap();
    layer.flush().unwrap();
    let mut before = vec![0; 24 << 10];
    file.read_at(3 * MIB, &mut before).unwrap();
    // Blocks whose entries lie in four sectors of the BAT; then these go into the log, and the old ones back.
    for at in [5, 700, 1500, 2000] {
        layer.write(at * MIB, &noise(MIB as usize, at)).unwrap();
    }
    layer.close().unwrap();
    drop(layer);
    let whole = content(&path);
    let mut after = vec![0; 24 << 10];
    file.read_at(3 * MIB, &mut after).unwrap();
    let changed = before
        .chunks(4096)
        .zip(after.chunks(4096))
        .enumerate()
        .filter(|(_, (before, after))| before != after);
    let changes: Vec<_> =
        changed.map(|(n, (_, after))| (3 * MIB + n as u64 * 4096, after.to_vec())).collect();
    assert_eq!(changes.len(), 4);
    file.write_at(3 * MIB, &before).unwrap();
    assert!(content(&path) != whole);
    leave_in_log(file.as_ref(), &changes);
    drop(file);

    let bytes = std::fs::read(&path).unwrap();
    let layer = common::open(storage(&path, Access::Read)).unwrap();
    assert!(layer.details().dirty && layer.details().specific["log-dirty"] == true);
    assert!(content(&path) == whole);
    assert!(std::fs::read(&path).unwrap() == bytes);
    drop(layer);
    run("qemu-img", &["check", "-r", "all", "-f", "vhdx", &path]);
    assert!(!common::open(storage(&path, Access::Read)).unwrap().details().dirty);
    assert!(content(&path) == whole);
}

/// The table's sectors as they stand in the file: where the images of [`common::create`] have it.
fn table(file: &dyn Storage) -> Vec<u8> {
    let mut table = vec![0; 12 << 10];
    file.read_at(3 * MIB, &mut table).unwrap();
    table
}

#[test]
fn what_a_power_cut_leaves_in_the_log_is_replayed_by_qemu() {
    const BLOCKS: [u64; 6] = [0, 1, 511, 512, 1100, 1535];
    let Some(folder) = Folder::with_qemu("cut") else { return };
    let mut options = common::create_options(1536 * MIB, &[("block_size", "1M")]);
    options.fresh = false;
    let images = MemoryFolder::new();
    let image = images.create_new("disk").unwrap();
    Vhdx.create(image, &NoFiles, &options).unwrap().close().unwrap();
    let recorder = Recorder::over(&images);
    let layer = common::reopen(recorder.folder().open("disk", true).unwrap()).unwrap();
    for (turn, at) in (1..).zip([0, 2, 4, 1, 3, 5, 0, 3]) {
        // Blocks in one, two and three sectors of the table, written, and taken away again.
        layer.write(BLOCKS[at] * MIB + 4096, &noise(8192, turn)).unwrap();
        layer.write(BLOCKS[(at + turn as usize) % 6] * MIB, &noise(512, turn)).unwrap();
        if turn > 3 {
            layer.erase(BLOCKS[(at + 3) % 6] * MIB, MIB, Erase::Free).unwrap();
        }
        layer.flush().unwrap();
    }
    let shown = |file: Arc<dyn Storage>| {
        let image = chain(vec![common::open(file).unwrap()]);
        let mut all = vec![0; BLOCKS.len() * MIB as usize];
        for (block, piece) in BLOCKS.iter().zip(all.chunks_mut(MIB as usize)) {
            image.read(block * MIB, piece).unwrap();
        }
        all
    };
    let path = folder.path("cut.vhdx");
    let mut tried = 0;
    for (number, state) in recorder.states(&Plan { per_epoch: 12, ..Plan::default() }).enumerate() {
        let file = state.file("disk").unwrap();
        let dirty = common::open(file.clone()).unwrap().details().dirty;
        let ours = file.snapshot();
        let before = table(&ours);
        let ours: Arc<dyn Storage> = Arc::new(ours);
        common::reopen(ours.clone()).unwrap();
        // Those in which something is missing, and some of the others.
        let missing = table(ours.as_ref()) != before;
        assert!(dirty || !missing);
        if number % (if missing { 4 } else { 40 }) > 0 {
            continue;
        }
        tried += usize::from(missing);
        let expected = shown(file.clone());
        assert!(shown(ours) == expected, "{state}");
        let copy = storage(&path, Access::CreateNew);
        copy.set_len(file.len().unwrap()).unwrap();
        let mut at = 0;
        while let Some(data) = file.data_at(at).unwrap() {
            let mut bytes = vec![0; (data.end - data.start) as usize];
            file.read_at(data.start, &mut bytes).unwrap();
            copy.write_at(data.start, &bytes).unwrap();
            at = data.end;
        }
        drop(copy);
        run("qemu-img", &["check", "-r", "all", "-f", "vhdx", &path]);
        let theirs = storage(&path, Access::Read);
        assert!(!common::open(theirs.clone()).unwrap().details().dirty, "{state}");
        assert!(shown(theirs) == expected, "{state}");
        std::fs::remove_file(&path).unwrap();
    }
    assert!(tried >= 10, "{tried}");
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
