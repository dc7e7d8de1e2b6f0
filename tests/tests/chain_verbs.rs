//! commit, rebase, resize, amend, snapshot, child and dd do to an image what qemu-img's do to a copy of it.

use std::path::{Path, PathBuf};

use cowhand::{Amend, Child, Commit, Dd, DdInput, DdOutput, NewSize, Open, Prealloc, Quiet, Rebase, Resize};
use cowhand_tests::{
    Content, Rng, assert_holds, file_sha256, for_all, options, qemu_img, qemu_io, temp, try_qemu_img,
};
use serde_json::Value;

const K: u64 = 1 << 10;

fn open(path: &Path) -> cowhand::Opened {
    cowhand::open(path, &Open::default()).unwrap()
}

fn words<'a>(fixed: &[&'a str], path: &'a Path) -> Vec<&'a str> {
    fixed.iter().copied().chain([path.to_str().unwrap()]).collect()
}

/// What `qemu-img info` says of one image.
fn info(path: &Path) -> Value {
    serde_json::from_str(&qemu_img(words(&["info", "--output=json"], path))).unwrap()
}

fn check(path: &Path) {
    let ran = try_qemu_img(words(&["check"], path));
    assert!(ran.ok() && !ran.out.contains("eaked"), "{}: {}{}", path.display(), ran.out, ran.err);
}

/// The disk's bytes as qemu-img reads them.
fn raw_of(path: &Path, raw: &Path) {
    qemu_img([Path::new("convert"), "-O".as_ref(), "raw".as_ref(), path, raw]);
}

fn same_disk(path: &Path, raw: &Path) {
    let image = open(path);
    assert_holds(&image, raw);
    drop(image);
    let ran = try_qemu_img([Path::new("compare"), "-f".as_ref(), "raw".as_ref(), raw, path]);
    assert!(ran.ok(), "{}: {}{}", path.display(), ran.out, ran.err);
}

/// One layer of a chain: format, options, size.
type Layer = (&'static str, &'static str, u64);

/// Makes a chain in `folder`, base first, with content in each layer, by qemu's own programs; the names are `0`, the
/// base, `1`, ... A base that is no qcow2 is converted by us from raw.
fn chain(folder: &Path, layers: &[Layer], seed: u64) -> Vec<PathBuf> {
    let mut rng = Rng::new(seed);
    let mut paths: Vec<PathBuf> = Vec::new();
    for (index, (format, how, size)) in layers.iter().enumerate() {
        let path = folder.join(index.to_string());
        let text = path.to_str().unwrap().to_owned();
        let size_text = size.to_string();
        if *format == "qcow2" {
            let mut make = vec!["create", "-q", "-f", "qcow2"];
            if !how.is_empty() {
                make.extend(["-o", how]);
            }
            let parent = index.checked_sub(1).map(|below| below.to_string());
            if let Some(parent) = &parent {
                make.extend(["-b", parent, "-F", layers[index - 1].0]);
            }
            make.extend([text.as_str(), &size_text]);
            qemu_img(make);
            let mut commands = Vec::new();
            for _ in 0..14 {
                let len = (1 + rng.below(160)) * 512;
                let at = rng.below((size - len) / 512 + 1) * 512;
                commands.push(match rng.below(5) {
                    0 => format!("write -z {at} {len}"),
                    1 => format!("write -P 0 {at} {len}"),
                    2 => format!("write -P 7 {at} {len}"),
                    _ => format!("write -P {} {at} {len}", 1 + rng.below(255)),
                });
            }
            qemu_io(["-f", "qcow2"], &path, &commands);
        } else {
            let raw = Content::striped("base", *size, 20 * K, seed).raw_in(folder);
            let made = cowhand::Convert {
                format: Some((*format).to_owned()),
                options: options(how),
                ..cowhand::Convert::new([&raw], &path)
            };
            cowhand::convert(&made, &Quiet).unwrap();
            std::fs::remove_file(raw).unwrap();
        }
        paths.push(path);
    }
    paths
}

/// A folder beside it with the same files.
fn copy_of(folder: &Path) -> tempfile::TempDir {
    let copy = temp();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

const COMMITS: [&[Layer]; 8] = [
    &[("raw", "", 1024 * K), ("qcow2", "", 1024 * K)],
    &[("raw", "", 600 * K), ("qcow2", "cluster_size=4k", 900 * K + 512)],
    &[("qcow2", "", 1024 * K), ("qcow2", "", 1024 * K)],
    &[("qcow2", "cluster_size=512", 500 * K), ("qcow2", "", 1400 * K)],
    &[("qcow2", "extended_l2=on", 1400 * K), ("qcow2", "cluster_size=4k", 700 * K)],
    &[("raw", "", 1300 * K), ("qcow2", "", 600 * K), ("qcow2", "cluster_size=8k", 1024 * K)],
    &[
        ("vhdx", "block_size=1M", 1024 * K),
        ("qcow2", "compat=0.10", 900 * K),
        ("qcow2", "extended_l2=on", 900 * K),
    ],
    &[("vpc", "force_size=on", 1024 * K), ("qcow2", "cluster_size=2M", 2048 * K), ("qcow2", "", 2048 * K)],
];

#[test]
fn commit_leaves_what_qemu_img_commit_leaves() {
    let cases: Vec<(usize, bool)> =
        (0..COMMITS.len()).flat_map(|case| [(case, false), (case, true)]).collect();
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |(case, keep)| {
            let ours = temp();
            let paths = chain(ours.path(), COMMITS[*case], *case as u64);
            let [.., base, top] = paths.as_slice() else { panic!() };
            let theirs = copy_of(ours.path());
            let wanted = ours.path().join("wanted.raw");
            raw_of(top, &wanted);
            let before = file_sha256(top);

            let how = Commit { keep: *keep, ..Commit::default() };
            let done = cowhand::commit(top, &how, &Quiet).unwrap();
            assert!(done.moved > 0 && done.moved <= done.held && done.emptied != *keep, "{done:?}");
            same_disk(top, &wanted);
            check(top);
            assert_eq!(file_sha256(top) == before, *keep, "the top is changed exactly where it is emptied");
            if COMMITS[*case][COMMITS[*case].len() - 2].0 == "qcow2" {
                check(base);
            }
            let their_top = theirs.path().join(top.file_name().unwrap());
            qemu_img(words(if *keep { &["commit", "-q", "-d"] } else { &["commit", "-q"] }, &their_top));
            let their_base = theirs.path().join(base.file_name().unwrap());
            let their_raw = theirs.path().join("base.raw");
            raw_of(&their_base, &their_raw);
            // Theirs keeps a longer base's rest, and so does ours.
            same_disk(base, &their_raw);
            let again = cowhand::commit(top, &Commit { keep: true, ..Commit::default() }, &Quiet).unwrap();
            assert_eq!(again.moved, 0, "all is there already");
        },
    );
}

/// `-b`: several layers go down at once, and the top is left alone.
#[test]
fn commit_into_a_base_further_down() {
    let cases: [&[Layer]; 4] = [
        &[("raw", "", 800 * K), ("qcow2", "", 1024 * K), ("qcow2", "cluster_size=4k", 1024 * K)],
        &[("qcow2", "cluster_size=4k", 1024 * K), ("qcow2", "", 500 * K), ("qcow2", "", 900 * K)],
        &[
            ("qcow2", "", 700 * K),
            ("qcow2", "", 300 * K),
            ("qcow2", "extended_l2=on", 500 * K),
            ("qcow2", "", 1024 * K),
        ],
        &[("qcow2", "", 1024 * K), ("qcow2", "", 800 * K), ("qcow2", "", 800 * K)],
    ];
    for (case, layers) in cases.into_iter().enumerate() {
        let folder = temp();
        let paths = chain(folder.path(), layers, 30 + case as u64);
        let (base, top) = (&paths[0], paths.last().unwrap());
        let wanted = folder.path().join("wanted.raw");
        raw_of(top, &wanted);
        let before = file_sha256(top);
        // By a name that is relative to the images, as they name it.
        let how = Commit { base: Some("0".into()), ..Commit::default() };
        let done = cowhand::commit(top, &how, &Quiet).unwrap();
        assert!(!done.emptied && done.moved > 0);
        assert_eq!(file_sha256(top), before);
        same_disk(top, &wanted);
        same_disk(base, &wanted);
    }
}

#[test]
fn commit_says_what_is_wrong() {
    let folder = temp();
    let paths = chain(folder.path(), &[("raw", "", 100 * K), ("qcow2", "", 100 * K)], 1);
    let fails = |path: &Path, how: Commit| cowhand::commit(path, &how, &Quiet).unwrap_err().to_string();
    let said = fails(&paths[0], Commit::default());
    assert!(said.contains("Image does not have a backing file"), "{said}");
    let said = fails(&paths[1], Commit { base: Some("nope".into()), ..Commit::default() });
    assert!(said.contains("Did not find 'nope' in the backing chain"), "{said}");
    // Somebody reads the parent: it is not written.
    let reader = open(&paths[0]);
    let said = fails(&paths[1], Commit::default());
    assert!(said.contains("0: "), "{said}");
    drop(reader);
    cowhand::commit(&paths[1], &Commit::default(), &Quiet).unwrap();
}

/// Top and its old parents, base first; the new parents, base first.
const REBASES: [(&[Layer], &[Layer]); 9] = [
    (&[("raw", "", 1024 * K), ("qcow2", "", 1024 * K)], &[("raw", "", 1024 * K)]),
    (&[("qcow2", "", 700 * K), ("qcow2", "cluster_size=4k", 1024 * K)], &[("raw", "", 500 * K)]),
    (&[("qcow2", "", 1500 * K), ("qcow2", "extended_l2=on", 1024 * K)], &[("qcow2", "", 2000 * K)]),
    (
        &[("qcow2", "", 1024 * K), ("qcow2", "compat=0.10", 1024 * K)],
        &[("qcow2", "", 300 * K), ("qcow2", "", 800 * K)],
    ),
    (&[("raw", "", 1024 * K), ("qcow2", "", 1200 * K), ("qcow2", "", 1300 * K)], &[]),
    (&[("raw", "", 1024 * K), ("qcow2", "cluster_size=512", 1024 * K)], &[]),
    (&[("qcow2", "", 1024 * K)], &[("raw", "", 1024 * K)]),
    (&[("vhdx", "block_size=1M", 1024 * K), ("qcow2", "", 1024 * K)], &[("vpc", "force_size=on", 900 * K)]),
    (
        &[("qcow2", "", 64 << 20), ("qcow2", "cluster_size=2M", 64 << 20)],
        &[("qcow2", "cluster_size=4k", 1024 * K)],
    ),
];

#[test]
fn rebase_keeps_the_content_as_qemu_img_rebase_does() {
    let cases: Vec<(usize, bool)> =
        (0..REBASES.len()).flat_map(|case| [(case, false), (case, true)]).collect();
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |(case, compress)| {
            let (old, new) = REBASES[*case];
            // Some formats cannot compress beside qcow2's own; the tops here all can.
            let ours = temp();
            let top = chain(ours.path(), old, 50 + *case as u64).pop().unwrap();
            let below = temp();
            let backing = chain(below.path(), new, 90 + *case as u64).last().cloned();
            for (index, layer) in new.iter().enumerate() {
                // The new chain lies beside the old one under other names.
                let (from, to) =
                    (below.path().join(index.to_string()), ours.path().join(format!("new{index}")));
                std::fs::rename(&from, &to).unwrap();
                if index > 0 {
                    let parent = format!("new{}", index - 1);
                    qemu_img(words(&["rebase", "-u", "-b", &parent, "-F", new[index - 1].0], &to));
                }
                assert!(layer.2 > 0);
            }
            let theirs = copy_of(ours.path());
            let wanted = ours.path().join("wanted.raw");
            raw_of(&top, &wanted);

            let name = backing.map(|_| format!("new{}", new.len() - 1));
            let format = new.last().map(|(format, ..)| (*format).to_owned());
            let how = Rebase {
                backing: name.clone().map(PathBuf::from),
                backing_format: format.clone(),
                compress: *compress,
                ..Rebase::default()
            };
            let done = cowhand::rebase(&top, &how, &Quiet).unwrap();
            assert!(done.written > 0);
            same_disk(&top, &wanted);
            check(&top);
            let said = info(&top);
            assert_eq!(said["backing-filename"].as_str(), name.as_deref());
            assert_eq!(said["backing-filename-format"].as_str(), format.as_deref());

            let their_top = theirs.path().join(top.file_name().unwrap());
            let (name, format) = (name.unwrap_or_default(), format.unwrap_or_else(|| "raw".to_owned()));
            qemu_img(words(&["rebase", "-b", &name, "-F", &format], &their_top));
            same_disk(&their_top, &wanted);
            if !compress {
                let stored = |path: &Path| info(path)["actual-size"].as_u64().unwrap();
                let (ours, theirs) = (stored(&top), stored(&their_top));
                assert!(ours <= theirs + 128 * K, "ours takes {ours} bytes, theirs {theirs}");
            }
        },
    );
}

/// The new parent is one of the old chain: what both have in common is not read, and what only the layers between had
/// comes up.
#[test]
fn rebase_within_the_chain() {
    let layers: &[Layer] = &[("raw", "", 64 << 20), ("qcow2", "", 64 << 20), ("qcow2", "", 64 << 20)];
    let folder = temp();
    let paths = chain(folder.path(), layers, 5);
    let wanted = folder.path().join("wanted.raw");
    raw_of(&paths[2], &wanted);
    let to = |backing: &str, format: &str| Rebase {
        backing: Some(backing.into()),
        backing_format: Some(format.to_owned()),
        ..Rebase::default()
    };
    let done = cowhand::rebase(&paths[2], &to("0", "raw"), &Quiet).unwrap();
    assert!(done.written > 0 && done.written < 8 << 20, "{done:?}");
    same_disk(&paths[2], &wanted);
    // Nothing differs any more.
    let done = cowhand::rebase(&paths[2], &to("0", "raw"), &Quiet).unwrap();
    assert_eq!(done.written, 0);
    let done = cowhand::rebase(&paths[2], &to("1", "qcow2"), &Quiet).unwrap();
    same_disk(&paths[2], &wanted);
    check(&paths[2]);
    assert!(done.written < 4 << 20, "{done:?}");
    let error = cowhand::rebase(&paths[1], &to("2", "qcow2"), &Quiet).unwrap_err().to_string();
    assert!(error.contains("its own chain"), "{error}");
    let error = cowhand::rebase(&paths[1], &to("1", "qcow2"), &Quiet).unwrap_err().to_string();
    assert!(error.contains("its own backing file"), "{error}");
}

#[test]
fn rebase_of_the_name_alone() {
    let folder = temp();
    let paths = chain(folder.path(), &[("raw", "", 300 * K), ("qcow2", "", 400 * K)], 8);
    let top = &paths[1];
    let wanted = folder.path().join("wanted.raw");
    raw_of(top, &wanted);
    let unchecked = Rebase { unchecked: true, ..Rebase::default() };
    let to = |backing: &str| Rebase {
        backing: Some(backing.into()),
        backing_format: Some("raw".to_owned()),
        ..unchecked.clone()
    };
    let deep = format!("/nowhere/{}", "x".repeat(900));
    for name in ["nowhere", "a folder/with spaces", &deep, "0"] {
        cowhand::rebase(top, &to(name), &Quiet).unwrap();
        let ran = try_qemu_img(words(&["info", "--output=json"], top));
        let said: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(said["backing-filename"].as_str(), Some(name));
    }
    same_disk(top, &wanted);
    cowhand::rebase(top, &unchecked, &Quiet).unwrap();
    assert!(info(top)["backing-filename"].is_null());
    check(top);
    let without = Rebase { backing: Some("0".into()), ..unchecked.clone() };
    let error = cowhand::rebase(top, &without, &Quiet).unwrap_err().to_string();
    assert!(
        error.contains("Could not change the backing file to '0': backing format must be specified"),
        "{error}"
    );
}

#[test]
fn resize_as_qemu_img_resize() {
    let cases: [(&[Layer], &[u64]); 6] = [
        (&[("raw", "", 100 * K)], &[300 * K, 50 * K, 50 * K, 51 * K]),
        (&[("qcow2", "", 1000 * K + 512)], &[3000 * K, 500 * K, 501 * K, 100 << 20]),
        (&[("qcow2", "cluster_size=512", 300 * K)], &[20 << 20, 200 * K]),
        (&[("raw", "", 1500 * K), ("qcow2", "", 700 * K + 512)], &[1000 * K, 2000 * K, 300 * K, 1100 * K]),
        (
            &[("qcow2", "", 1500 * K), ("qcow2", "extended_l2=on", 700 * K)],
            &[1000 * K + 512, 2000 * K, 300 * K],
        ),
        (&[("qcow2", "", 1500 * K), ("qcow2", "cluster_size=4k", 100 * K)], &[4000 * K, 800 * K, 1600 * K]),
    ];
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |(layers, sizes)| {
            let folder = temp();
            let top = chain(folder.path(), layers, 3).pop().unwrap();
            let format = layers.last().unwrap().0;
            let model = folder.path().join("model.raw");
            raw_of(&top, &model);
            let theirs = copy_of(folder.path());
            let their_top = theirs.path().join(top.file_name().unwrap());
            for size in *sizes {
                let how = Resize {
                    open: Open { format: Some(format.to_owned()), ..Open::default() },
                    size: NewSize::To(*size),
                    shrink: true,
                    force: false,
                    prealloc: Prealloc::Off,
                };
                let done = cowhand::resize(&top, &how).unwrap();
                assert_eq!(done.after, *size);
                let file = std::fs::File::options().write(true).open(&model).unwrap();
                file.set_len(*size).unwrap();
                drop(file);
                let image = cowhand::open(&top, &how.open).unwrap();
                assert_eq!(image.size(), *size);
                assert_holds(&image, &model);
                drop(image);
                let text = size.to_string();
                let path = their_top.to_str().unwrap();
                qemu_img(["resize", "-q", "--shrink", "-f", format, path, &text]);
                qemu_img([
                    "compare",
                    "-f",
                    "raw",
                    "-F",
                    format,
                    model.to_str().unwrap(),
                    top.to_str().unwrap(),
                ]);
                qemu_img(["compare", "-f", format, "-F", format, path, top.to_str().unwrap()]);
                if format == "qcow2" {
                    check(&top);
                }
            }
        },
    );
}

#[test]
fn amend_changes_size_and_parent() {
    let folder = temp();
    let paths = chain(folder.path(), &[("raw", "", 300 * K), ("qcow2", "", 400 * K)], 9);
    let top = &paths[1];
    let wanted = folder.path().join("wanted.raw");
    raw_of(top, &wanted);
    let amend =
        |text: &str| cowhand::amend(top, &Amend { options: options(text), ..Amend::default() }, &Quiet);
    amend("size=1M").unwrap();
    same_disk(top, &wanted);
    assert_eq!(info(top)["virtual-size"], 1 << 20);
    std::fs::write(folder.path().join("other"), vec![5; 200 << 10]).unwrap();
    amend("backing_file=other,backing_fmt=raw").unwrap();
    assert_eq!(info(top)["backing-filename"], "other");
    same_disk(top, &wanted);
    amend("backing_file=").unwrap();
    assert!(info(top)["backing-filename"].is_null());
    same_disk(top, &wanted);
    check(top);
    for (text, part) in [
        ("size=1k", "smaller"),
        ("frob=1", "frob"),
        ("backing_file=0", "backing format must be specified"),
        ("", "Must specify options (-o)"),
    ] {
        let error = amend(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_child_stands_on_its_parent() {
    let folder = temp();
    let paths = chain(folder.path(), &[("raw", "", 300 * K), ("qcow2", "cluster_size=8k", 400 * K)], 2);
    let wanted = folder.path().join("wanted.raw");
    raw_of(&paths[1], &wanted);
    let make = |parent: &Path, name: &str, how: &Child| {
        let path = folder.path().join(name);
        cowhand::child(parent, &path, how).map(|made| (path, made))
    };
    let (first, made) = make(&paths[1], "first.qcow2", &Child::default()).unwrap();
    assert_eq!((made.size, made.depth), (400 * K, 3));
    same_disk(&first, &wanted);
    assert_eq!(info(&first)["cluster-size"], 8192);
    // The empty one is passed over, unless it must not be.
    let (second, made) = make(&first, "second.qcow2", &Child::default()).unwrap();
    assert_eq!((info(&second)["full-backing-filename"].as_str(), made.depth), (paths[1].to_str(), 3));
    let keep = Child { keep_empty: true, ..Child::default() };
    let (second, made) = make(&first, "second.qcow2", &keep).unwrap();
    assert_eq!((info(&second)["full-backing-filename"].as_str(), made.depth), (first.to_str(), 4));
    same_disk(&second, &wanted);
    // Something that says zero is something.
    qemu_io(["-f", "qcow2"], &first, ["write -z 0 64k"]);
    let (third, made) = make(&first, "third", &Child { mirror: true, ..Child::default() }).unwrap();
    assert_eq!((made.depth, made.format), (4, "qcow2"));
    let said = info(&third);
    assert_eq!(
        (said["cluster-size"].as_u64(), &said["format-specific"]["data"]["extended-l2"]),
        (Some(16384), &Value::Bool(true))
    );
    let error = make(&first, "no.qcow2", &Child { limit: Some(3), ..Child::default() }).unwrap_err();
    assert_eq!(error.kind(), cowhand::ErrorKind::ChainTooLong);
    assert!(!folder.path().join("no.qcow2").exists());
    make(&first, "yes.qcow2", &Child { limit: Some(4), ..Child::default() }).unwrap();
}

#[test]
fn dd_copies_the_blocks_that_qemu_img_dd_copies() {
    let folder = temp();
    let raw = Content::striped("source", 3 << 20, 48 * K, 4).raw_in(folder.path());
    let source = folder.path().join("source.qcow2");
    qemu_img(["convert", "-O", "qcow2", raw.to_str().unwrap(), source.to_str().unwrap()]);
    let mut rng = Rng::new(6);
    for _ in 0..12 {
        let block_size = *rng.pick(&[512, 1000, 4096, 65536, 1 << 20]);
        let blocks = (3 << 20) / block_size;
        let skip = rng.below(blocks);
        let count = (rng.below(2) == 0).then(|| skip + rng.below(blocks - skip + 2));
        let theirs = folder.path().join("theirs");
        let _ = std::fs::remove_file(&theirs);
        let mut words = vec![
            "dd".to_owned(),
            format!("if={}", source.display()),
            format!("of={}", theirs.display()),
            format!("bs={block_size}"),
            format!("skip={skip}"),
        ];
        words.extend(count.map(|count| format!("count={count}")));
        qemu_img(&words);
        let how = Dd { block_size, skip, count, ..Dd::default() };
        let ours = folder.path().join("ours");
        cowhand::dd(DdInput::Image(&source), DdOutput::Image(&ours), &how, &Quiet).unwrap();
        let wanted = std::fs::read(&theirs).unwrap();
        assert!(std::fs::read(&ours).unwrap() == wanted, "{words:?}");
        // Through a stream and back, into another format.
        let mut bytes = Vec::new();
        let done = cowhand::dd(DdInput::Image(&source), DdOutput::Stream(&mut bytes), &how, &Quiet).unwrap();
        assert_eq!(done.bytes, bytes.len() as u64);
        assert!(wanted.starts_with(&bytes) && wanted.len() - bytes.len() < 512, "{words:?}");
        let image = folder.path().join("ours.qcow2");
        let back = Dd {
            format: "qcow2".to_owned(),
            input_size: Some(bytes.len() as u64),
            output_size: Some(4 << 20),
            ..Dd::default()
        };
        cowhand::dd(
            DdInput::Stream(Box::new(std::io::Cursor::new(bytes.clone()))),
            DdOutput::Image(&image),
            &back,
            &Quiet,
        )
        .unwrap();
        same_disk(&image, &ours);
        check(&image);
    }
}

#[test]
fn snapshots_as_qemu_img_makes_them() {
    let folder = temp();
    let paths = chain(folder.path(), &[("raw", "", 300 * K), ("qcow2", "", 400 * K)], 9);
    let top = &paths[1];
    let how = Open::default();
    let then = folder.path().join("then.raw");
    raw_of(top, &then);
    let made = cowhand::create_snapshot(top, &how, "then").unwrap();
    assert_eq!((made.id.as_str(), made.name.as_str()), ("1", "then"));
    qemu_io(["-f", "qcow2"], top, ["write -P 77 0 200k"]);
    let now = folder.path().join("now.raw");
    raw_of(top, &now);
    cowhand::create_snapshot(top, &how, "now").unwrap();
    let listed = qemu_img(words(&["snapshot", "-l"], top));
    assert!(listed.contains("then") && listed.contains("now"), "{listed}");
    cowhand::apply_snapshot(top, &how, "then").unwrap();
    same_disk(top, &then);
    check(top);
    cowhand::delete_snapshot(top, &how, "1").unwrap();
    cowhand::apply_snapshot(top, &how, "now").unwrap();
    same_disk(top, &now);
    check(top);
    let left = cowhand::list_snapshots(top, &how).unwrap();
    assert_eq!(left.len(), 1);
    assert!(cowhand::apply_snapshot(top, &how, "then").is_err());
    assert!(cowhand::create_snapshot(&paths[0], &how, "x").is_err(), "raw has none");
}
