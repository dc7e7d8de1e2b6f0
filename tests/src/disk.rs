//! Looking at a disk: its bytes, its hash, and what `qemu-img` says of it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowhand::{Image, Kind};
use sha2::{Digest, Sha256};

use crate::command::{qemu_img, try_qemu_img};

/// `a=b,c=d` as pairs.
pub fn options(text: &str) -> Vec<(String, String)> {
    cowhand::parse_option_string(text)
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of all guest bytes; every one is read.
pub fn guest_sha256(image: &Image) -> cowhand::Result<String> {
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < image.size() {
        let n = (image.size() - at).min(buf.len() as u64) as usize;
        image.read(at, &mut buf[..n])?;
        hash.update(&buf[..n]);
        at += n as u64;
    }
    Ok(hex(hash.finalize()))
}

/// The hash of a file's bytes.
pub fn file_sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buf).unwrap();
        if n == 0 {
            return hex(hash.finalize());
        }
        hash.update(&buf[..n]);
    }
}

/// Panics unless the disk begins with the bytes of the file `raw` and is zero behind them, both read in pieces of an
/// odd size; and unless what `extent` calls zero is zero.
pub fn assert_holds(image: &Image, raw: &Path) {
    let file = File::open(raw).unwrap();
    let len = file.metadata().unwrap().len();
    assert!(image.size() >= len, "the disk has {} bytes, less than {len}", image.size());
    let mut found = vec![0; (1 << 20) - 513];
    let mut expected = vec![0; found.len()];
    let mut at = 0;
    while at < image.size() {
        let n = (image.size() - at).min(found.len() as u64) as usize;
        let there = len.saturating_sub(at).min(n as u64) as usize;
        found[..n].fill(0xee);
        image.read(at, &mut found[..n]).unwrap_or_else(|error| panic!("reading at {at}: {error}"));
        file.read_exact_at(&mut expected[..there], at).unwrap();
        expected[there..n].fill(0);
        if let Some(first) = (0..n).find(|i| found[*i] != expected[*i]) {
            panic!("differs at {}: {:#04x}, not {:#04x}", at + first as u64, found[first], expected[first]);
        }
        at += n as u64;
    }
    let mut at = 0;
    while at < image.size() {
        let found = image.extent(at, image.size() - at).unwrap();
        assert!(found.len > 0 && found.len <= image.size() - at, "an extent of {} bytes at {at}", found.len);
        if found.kind != Kind::Data {
            let mut here = at;
            while here < (at + found.len).min(len) {
                let n = (len - here).min(at + found.len - here).min(expected.len() as u64) as usize;
                file.read_exact_at(&mut expected[..n], here).unwrap();
                assert!(expected[..n].iter().all(|byte| *byte == 0), "{:?} at {at} holds data", found.kind);
                here += n as u64;
            }
        }
        at += found.len;
    }
}

/// Panics unless two disks are the same byte for byte.
pub fn assert_same(a: &Image, b: &Image) {
    let found =
        cowhand::compare(a, b, false, &cowhand::Quiet).unwrap_or_else(|failed| panic!("{}", failed.error));
    assert_eq!(found.difference, None, "{} and {}", a.name(), b.name());
}

/// What `qemu-img` reads from an image, as a raw file beside it.
pub fn qemu_raw(image: &Path, format: &str) -> PathBuf {
    let raw = image.with_extension("by-qemu.raw");
    let args = ["convert", "-f", format, "-O", "raw"].map(Path::new);
    qemu_img(args.into_iter().chain([image, &raw]));
    raw
}

/// Panics unless `qemu-img` finds the image clean (where it has a check), and with the content of the file `raw`.
pub fn assert_qemu_accepts(image: &Path, format: &str, raw: &Path) {
    let path = image.to_str().unwrap();
    let check = try_qemu_img(["check", "-f", format, path]);
    let has_check = !matches!(format, "raw" | "vpc");
    assert_eq!(
        check.code,
        Some(if has_check { 0 } else { 63 }),
        "qemu-img check of {path}:\n{}{}",
        check.out,
        check.err
    );
    let same = try_qemu_img(["compare", "-f", "raw", "-F", format, raw.to_str().unwrap(), path]);
    assert_eq!(same.code, Some(0), "qemu-img compare with {path}:\n{}{}", same.out, same.err);
}

/// Panics unless our `map` and `qemu-img map` say the same of an image, once put in the same words.
///
/// Known differences, which are taken away before comparing:
/// - how runs are cut: neighbours that are alike are joined in both;
/// - `qemu-img` looks for holes of the file below a qcow2's data clusters, and says both `data` and `zero` of them;
/// - the `offset` of a subcluster that is not there, in a cluster that is.
pub fn assert_map_agrees(image: &Image, path: &Path, format: &str) {
    let theirs = qemu_img(["map", "--output=json", "-f", format, path.to_str().unwrap()]);
    let theirs: Vec<serde_json::Value> = serde_json::from_str(&theirs).unwrap();
    let mut ours = Vec::new();
    cowhand::map(image, 0, image.size(), |entry| {
        ours.push(entry.to_json());
        Ok(())
    })
    .unwrap();
    let ours = joined(&ours);
    let theirs = joined(&theirs);
    assert_eq!(ours, theirs, "map of {} (ours left, qemu-img's right)", path.display());
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    length: u64,
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

fn joined(entries: &[serde_json::Value]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for entry in entries {
        let number = |key: &str| entry[key].as_u64().unwrap_or_else(|| panic!("no {key} in {entry}"));
        let flag = |key: &str, other| entry.get(key).map_or(other, |value| value.as_bool().unwrap());
        let next = Run {
            start: number("start"),
            length: number("length"),
            depth: number("depth"),
            present: flag("present", true),
            zero: flag("zero", false) && !flag("data", false),
            data: flag("data", false),
            compressed: flag("compressed", false),
            offset: entry.get("offset").and_then(serde_json::Value::as_u64).filter(|_| flag("present", true)),
        };
        if let Some(last) = runs.last_mut() {
            let moved = |run: &Run, by: u64| run.offset.map(|offset| offset + by);
            let continues = last.start + last.length == next.start
                && Run { start: last.start, length: last.length, offset: moved(last, 0), ..next.clone() }
                    == *last
                && moved(last, last.length) == next.offset;
            if continues {
                last.length += next.length;
                continue;
            }
        }
        runs.push(next);
    }
    runs
}
