//! Against qemu-img, where it is installed: it reads what is written here, this reads what it writes, and both make
//! the same sizes.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cowhand_core::testing::Rng;
use cowhand_core::{Access, Cache, FileStorage, Layer, Lock, Storage};
use tempfile::TempDir;

use super::{content, create, open};

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
