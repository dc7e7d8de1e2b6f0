//! Against qemu-img, where it is installed: it reads what is written here, this reads what it writes, and both make
//! the same sizes.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cowhand_core::testing::Rng;
use cowhand_core::{Access, Cache, Erase, FileStorage, Image, Layer, Link, Lock, Storage};
use tempfile::TempDir;

use super::{content, create, open, open_to_write};

/// Its output, or `None` where it is not installed.
fn qemu_img(dir: &Path, args: &[&str]) -> Option<String> {
    let output = match Command::new("qemu-img").current_dir(dir).args(args).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::io::Write::write_all(&mut std::io::stderr(), b"skipped: qemu-img is not installed\n")
                .unwrap();
            return None;
        }
        output => output.unwrap(),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "qemu-img {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(text(&output.stdout))
}

/// Without locks: a program that another test starts holds this one's open files from its fork to its exec.
fn file(path: &Path, access: Access) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, access, Lock::None, Cache::Unsafe).unwrap())
}

/// The disk's size as qemu-img sees it.
fn size_by_qemu(dir: &Path, name: &str) -> Option<u64> {
    let info = qemu_img(dir, &["info", "-f", "vpc", "--output=json", name])?;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["virtual-size"].as_u64()
}

#[test]
fn sizes_are_those_of_qemu_img() {
    let dir = TempDir::new().unwrap();
    let mut sizes = vec![
        0,
        1,
        512,
        34816,
        34817,
        65536,
        1 << 20,
        3 << 20,
        20 << 20,
        142_606_336,
        142_606_848,
        260_046_848,
        260_047_360,
        1 << 30,
        (1 << 30) + 512,
        10 << 30,
        33_822_350_848,
        33_822_351_360,
        33_822_350_336,
        127 << 30,
        136_899_993_600,
        136_899_993_088,
        136_899_994_112,
        200 << 30,
        2040 << 30,
    ];
    let mut rng = Rng::new(7);
    sizes.extend((0..25).map(|n| rng.below(1 << (20 + n).min(40))));
    for size in sizes {
        for force in ["off", "on"] {
            let force_size = format!("force_size={force}");
            let made = qemu_img(
                dir.path(),
                &["create", "-q", "-f", "vpc", "-o", &force_size, "q.vhd", &size.to_string()],
            );
            if made.is_none() {
                return;
            }
            let path = dir.path().join("us.vhd");
            let ours = create(file(&path, Access::CreateNew), size, &[("force_size", force)]).unwrap();
            ours.close().unwrap();
            let size_here = ours.size();
            let theirs = open(file(&dir.path().join("q.vhd"), Access::Read)).unwrap();
            assert_eq!(size_here, theirs.size(), "{size} {force}");
            assert_eq!(size_by_qemu(dir.path(), "us.vhd"), Some(size_here), "{size} {force}");
            assert_eq!(open(file(&path, Access::Read)).unwrap().size(), size_here);
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// Writes scattered pieces and says what the disk then holds.
fn scribble(layer: &dyn Layer, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; layer.size() as usize];
    let mut rng = Rng::new(seed);
    for n in 0..40 {
        let at = rng.below(layer.size());
        let len = (1 + rng.below(if n % 4 == 0 { 3 << 20 } else { 5000 })).min(layer.size() - at);
        let piece = &mut bytes[at as usize..(at + len) as usize];
        piece.fill(n as u8 + 1);
        layer.write(at, piece).unwrap();
    }
    bytes
}

#[test]
fn each_reads_the_other() {
    let dir = TempDir::new().unwrap();
    let cases: [&[(&str, &str)]; 8] = [
        &[],
        &[("force_size", "on")],
        &[("block_size", "512k")],
        &[("block_size", "32M")],
        &[("size_align", "1M")],
        &[("subformat", "fixed")],
        &[("subformat", "fixed"), ("size_align", "1M"), ("preallocation", "falloc")],
        &[("subformat", "fixed"), ("preallocation", "full"), ("force_size", "on")],
    ];
    for (case, options) in (0..).zip(cases) {
        let path = dir.path().join("us.vhd");
        let layer = create(file(&path, Access::CreateNew), 30_000_001, options).unwrap();
        let bytes = scribble(layer.as_ref(), case);
        layer.close().unwrap();
        drop(layer);
        assert!(content(vec![open(file(&path, Access::Read)).unwrap()]).unwrap() == bytes, "{options:?}");
        std::fs::write(dir.path().join("flat"), &bytes).unwrap();
        if qemu_img(dir.path(), &["compare", "-f", "vpc", "-F", "raw", "us.vhd", "flat"]).is_none() {
            return;
        }

        let mut theirs = vec!["subformat=dynamic".to_owned()];
        theirs.extend(
            options
                .iter()
                .filter(|(name, _)| ["subformat", "force_size"].contains(name))
                .map(|(n, v)| format!("{n}={v}")),
        );
        let theirs = theirs.join(",");
        qemu_img(dir.path(), &["convert", "-f", "raw", "-O", "vpc", "-o", &theirs, "flat", "q.vhd"]).unwrap();
        let mut read = content(vec![open(file(&dir.path().join("q.vhd"), Access::Read)).unwrap()]).unwrap();
        assert!(read.len() >= bytes.len());
        read.truncate(bytes.len());
        assert!(read == bytes, "{options:?}");
        std::fs::remove_file(path).unwrap();
    }
}

/// Writes, erases and flushes here and there, and says what the disk then holds.
fn change(layer: &Arc<dyn Layer>, bytes: &mut [u8], seed: u64) {
    let disk =
        Image::new(vec![Link { layer: layer.clone(), name: "test".to_owned(), format: "vpc" }]).unwrap();
    let mut rng = Rng::new(seed);
    for n in 0..60 {
        let at = rng.below(disk.size());
        let len = (1 + rng.below(if n % 4 == 0 { 5 << 20 } else { 5000 })).min(disk.size() - at);
        let piece = &mut bytes[at as usize..(at + len) as usize];
        if n % 5 == 4 {
            piece.fill(0);
            disk.erase(at, len, if n % 2 == 0 { Erase::Free } else { Erase::Zero }).unwrap();
        } else {
            piece.fill(n as u8 + 1);
            disk.write(at, piece).unwrap();
        }
        if n % 10 == 9 {
            disk.flush().unwrap();
        }
    }
}

#[test]
fn what_is_written_in_place_both_read() {
    let dir = TempDir::new().unwrap();
    let in_dir = |name: &str| dir.path().join(name);
    for (case, options) in
        [(0, "subformat=dynamic"), (1, "subformat=dynamic,force_size=on"), (2, "subformat=fixed")]
    {
        let mut bytes: Vec<u8> = (0..20_000_256u32 / 4).flat_map(|n| (n | 1).to_le_bytes()).collect();
        bytes[3 << 20..9 << 20].fill(0);
        std::fs::write(in_dir("flat"), &bytes).unwrap();
        let made =
            qemu_img(dir.path(), &["convert", "-f", "raw", "-O", "vpc", "-o", options, "flat", "q.vhd"]);
        if made.is_none() {
            return;
        }
        let reopen = || open_to_write(file(&in_dir("q.vhd"), Access::Write)).unwrap();
        let layer = reopen();
        bytes.resize(layer.size() as usize, 0);
        // In two sittings.
        change(&layer, &mut bytes, case);
        layer.close().unwrap();
        let layer = reopen();
        change(&layer, &mut bytes, case + 100);
        layer.close().unwrap();
        drop(layer);
        std::fs::write(in_dir("flat"), &bytes).unwrap();
        qemu_img(dir.path(), &["compare", "-f", "vpc", "-F", "raw", "q.vhd", "flat"]).unwrap();
        assert!(
            content(vec![open(file(&in_dir("q.vhd"), Access::Read)).unwrap()]).unwrap() == bytes,
            "{options}"
        );

        // And the other way round: qemu-io writes what was written here.
        let pattern = ["-f", "vpc", "-c", "write -P 0xa5 4M 3M", "-c", "write -P 0x5a 17M 700k", "q.vhd"];
        let output = Command::new("qemu-io").current_dir(dir.path()).args(pattern).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        bytes[4 << 20..7 << 20].fill(0xa5);
        bytes[17 << 20..(17 << 20) + (700 << 10)].fill(0x5a);
        let layer = reopen();
        assert!(content(vec![layer.clone()]).unwrap() == bytes, "{options}");
        change(&layer, &mut bytes, case + 200);
        layer.close().unwrap();
        assert!(content(vec![reopen()]).unwrap() == bytes, "{options}");
    }
}
