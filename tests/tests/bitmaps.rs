//! `bitmap` and `convert --bitmaps`: what `qemu-img` and `qemu-nbd` find in what we changed, and we in what they did.

use std::path::Path;
use std::process::Command;

use cowhand::{BitmapAction, Convert, MergeSource, Open, Quiet, bitmap, convert, open_alone};
use cowhand_tests::{Background, qemu_img, qemu_io, run, temp};
use serde_json::Value;

use BitmapAction::{Add, Clear, Disable, Enable, Merge, Remove};

/// Names, granularities and flags, as `qemu-img info` prints them.
fn listed(image: &Path) -> Vec<(String, u64, bool)> {
    let info: Value =
        serde_json::from_str(&qemu_img(["info", "--output=json", image.to_str().unwrap()])).unwrap();
    let all = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    let entry = |bitmap: Value| {
        let flags = bitmap["flags"].as_array().unwrap().clone();
        assert!(!flags.contains(&"in-use".into()), "{bitmap}");
        let name = bitmap["name"].as_str().unwrap().to_owned();
        (name, bitmap["granularity"].as_u64().unwrap(), flags.contains(&"auto".into()))
    };
    all.into_iter().map(entry).collect()
}

/// The dirty ranges, as `qemu-nbd` exports them.
fn theirs(image: &Path, name: &str) -> Vec<(u64, u64)> {
    let socket = image.with_extension(format!("{name}.sock"));
    let mut server = Command::new("qemu-nbd");
    server.args(["-r", "-f", "qcow2", "-e", "2", "-t", "-B", name, "-k", socket.to_str().unwrap()]);
    let server = Background::start(server.arg(image), false);
    let url = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        socket.display()
    );
    let mut tries = 0;
    let map = loop {
        let ran = run(Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &url]));
        if ran.ok() {
            break ran.out;
        }
        tries += 1;
        assert!(tries < 200, "{}", ran.err);
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    drop(server);
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let dirty = map.iter().filter(|entry| entry["data"] == false);
    joined(dirty.map(|entry| (entry["start"].as_u64().unwrap(), entry["length"].as_u64().unwrap())))
}

fn ours(image: &Path, name: &str) -> Vec<(u64, u64)> {
    let image = open_alone(image, &Open::default()).unwrap();
    let mut all = Vec::new();
    let bitmaps = image.top().layer.as_bitmaps().unwrap();
    bitmaps
        .dirty(name, &mut |range| {
            all.push((range.start, range.end - range.start));
            Ok(())
        })
        .unwrap();
    joined(all.into_iter())
}

fn joined(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (start, len) in ranges {
        match all.last_mut() {
            Some((first, sum)) if *first + *sum == start => *sum += len,
            _ => all.push((start, len)),
        }
    }
    all
}

fn do_all(image: &Path, name: &str, actions: &[BitmapAction], source: Option<&Path>) -> cowhand::Result<()> {
    let source = source.map(|path| MergeSource { path: path.to_owned(), open: Open::default() });
    Ok(bitmap(image, &Open::default(), name, actions, source.as_ref())?)
}

/// Two images of 20 MiB and a bit, with bitmaps that QEMU filled.
fn made(folder: &Path) -> [std::path::PathBuf; 2] {
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| folder.join(name));
    for (image, granularity, writes) in
        [(&a, "64k", ["write 1M 100k", "write 12M 1"]), (&b, "4k", ["write 900k 200k", "write 20M 512"])]
    {
        let path = image.to_str().unwrap();
        qemu_img(["create", "-q", "-f", "qcow2", path, "20972032"]);
        qemu_img(["bitmap", "--add", "-g", granularity, path, "day"]);
        qemu_img(["bitmap", "--add", "--disable", path, "idle"]);
        qemu_io(["-f", "qcow2"], image, writes);
    }
    [a, b]
}

#[test]
fn actions_in_their_order() {
    let folder = temp();
    let [a, b] = made(folder.path());
    assert_eq!(ours(&a, "day"), theirs(&a, "day"));
    assert_eq!(ours(&b, "day"), theirs(&b, "day"));

    do_all(&a, "week", &[Add(Some(32 << 10)), Disable, Merge("day".into())], None).unwrap();
    assert_eq!(listed(&a).last(), Some(&("week".to_owned(), 32 << 10, false)));
    assert_eq!(theirs(&a, "week"), theirs(&a, "day"));

    // Of another image, with another granularity: what is touched in part is dirty.
    do_all(&a, "week", &[Enable, Merge("day".into())], Some(&b)).unwrap();
    let wanted = [(896 << 10, (1152 - 896) << 10), (12 << 20, 64 << 10), (20 << 20, 512)];
    assert_eq!(theirs(&a, "week"), wanted);
    assert_eq!(listed(&a).last(), Some(&("week".to_owned(), 32 << 10, true)));

    // The same by qemu-img.
    let (pa, pb) = (a.to_str().unwrap(), b.to_str().unwrap());
    qemu_img(["bitmap", "--add", "-g", "32k", "--merge", "day", pa, "judge"]);
    qemu_img(["bitmap", "--merge", "day", "-b", pb, "-F", "qcow2", pa, "judge"]);
    assert_eq!(theirs(&a, "week"), theirs(&a, "judge"));
    assert_eq!(ours(&a, "week"), theirs(&a, "judge"));

    do_all(&a, "week", &[Clear, Merge("idle".into())], None).unwrap();
    assert_eq!(theirs(&a, "week"), []);
    do_all(&a, "week", &[Remove, Add(None)], None).unwrap();
    assert_eq!(listed(&a).last(), Some(&("week".to_owned(), 64 << 10, true)));
    do_all(&a, "week", &[Remove], None).unwrap();
    qemu_img(["check", "-q", pa]);
    assert_eq!(listed(&a).len(), 3);
}

#[test]
fn what_is_refused() {
    let folder = temp();
    let [a, _] = made(folder.path());
    let other = folder.path().join("longer.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", other.to_str().unwrap(), "30M"]);
    qemu_img(["bitmap", "--add", other.to_str().unwrap(), "long"]);
    let raw = folder.path().join("x.raw");
    std::fs::write(&raw, vec![0; 512]).unwrap();
    for (image, name, actions, source, says) in [
        (&a, "day", vec![Add(None)], None, "day"),
        (&a, "none", vec![Clear], None, "none"),
        (&a, "none", vec![Remove], None, "none"),
        (&a, "day", vec![Merge("none".into())], None, "'none' not found"),
        (&a, "none", vec![Merge("day".into())], None, "'none' not found"),
        (&a, "day", vec![Merge("long".into())], Some(other.as_path()), "different sizes"),
        (&a, "day", vec![Merge("x".into())], Some(raw.as_path()), "no persistent dirty bitmaps"),
        (&raw, "x", vec![Add(None)], None, "no persistent dirty bitmaps"),
    ] {
        let error = do_all(image, name, &actions, source).unwrap_err().to_string();
        assert!(error.contains(says), "{actions:?}: {error}");
    }
    // What came before the one that failed is done.
    do_all(&a, "new", &[Add(None), Merge("none".into())], None).unwrap_err();
    assert_eq!(listed(&a).last().unwrap().0, "new");
}

#[test]
fn converting_takes_bitmaps_along() {
    let folder = temp();
    let [a, b] = made(folder.path());
    let target = folder.path().join("target.qcow2");
    let how = Convert { bitmaps: true, ..Convert::new([&a], &target) };
    let resized = [("size".to_owned(), "40M".to_owned()), ("cluster_size".to_owned(), "4k".to_owned())];
    for options in [Vec::new(), resized.to_vec()] {
        convert(&Convert { options, verify: true, ..how.clone() }, &Quiet).unwrap();
        assert_eq!(listed(&target), listed(&a));
        assert_eq!(theirs(&target, "day"), theirs(&a, "day"));
        assert_eq!(theirs(&target, "idle"), []);
        qemu_img(["check", "-q", target.to_str().unwrap()]);
    }

    // One was not saved: it is an error, or left out.
    let mut bytes = std::fs::read(&b).unwrap();
    let entry = bytes.windows(4).rposition(|word| word == b"idle").unwrap() - 24;
    bytes[entry + 15] |= 1;
    std::fs::write(&b, &bytes).unwrap();
    let broken = Convert { sources: vec![b.clone()], ..how.clone() };
    let error = convert(&broken, &Quiet).unwrap_err().to_string();
    assert!(error.contains("inconsistent") && error.contains("--skip-broken-bitmaps"), "{error}");
    assert_eq!(listed(&target).len(), 2, "the old target is there");
    let done = convert(&Convert { skip_broken_bitmaps: true, ..broken }, &Quiet).unwrap();
    assert_eq!(done.warnings, ["Skipping inconsistent bitmap 'idle'"]);
    assert_eq!(listed(&target), [("day".to_owned(), 4 << 10, true)]);
    assert_eq!(theirs(&target, "day"), ours(&b, "day"));

    let raw = folder.path().join("target.raw");
    for (how, says) in [
        (Convert { target: raw.clone(), ..how.clone() }, "does not support"),
        (Convert { sources: vec![a.clone(), b.clone()], ..how.clone() }, "single source"),
        (Convert { bitmaps: false, skip_broken_bitmaps: true, ..how.clone() }, "requires --bitmaps"),
    ] {
        let error = convert(&how, &Quiet).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(!raw.exists());
}
