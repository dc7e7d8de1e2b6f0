//! The header changed in place: another parent, the hidden mark; what QEMU makes of it, and power cuts and faults on
//! the way.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{create, how, named, open, pattern, qemu, run};
use cowhand_core::testing::{Fault, Journal, Plan, fault_test};
use cowhand_core::{
    CreateOptions, ErrorKind, Folder, Format, Layer, MemoryFolder, MemoryStorage, NoFiles, OpenOptions,
    Result, Storage,
};
use cowhand_qcow2::Qcow2;

const UNKNOWN: u32 = 0x0badf00d;

/// Puts another extension behind the last one, as a stranger might.
fn add_unknown(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = if word(&bytes, 4) == 2 { 72 } else { word(&bytes, 100) };
    while word(&bytes, at) != 0 {
        at += 8 + word(&bytes, at + 4).next_multiple_of(8);
    }
    assert_eq!(word(&bytes, 16), 0, "it has a backing file");
    bytes[at..at + 4].copy_from_slice(&UNKNOWN.to_be_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&5u32.to_be_bytes());
    bytes[at + 8..at + 16].copy_from_slice(b"hello\0\0\0");
    std::fs::write(path, bytes).unwrap();
}

fn has_unknown(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes[..4096.min(bytes.len())].windows(13).any(|all| all == b"\x0b\xad\xf0\x0d\0\0\0\x05hello")
}

/// What `qemu-img info` says, without the file's own name and times.
fn info(path: &Path) -> String {
    let folder = path.parent().unwrap();
    let text = run(folder, "qemu-img", &["info", "-f", "qcow2", path.to_str().unwrap()]);
    let kept = |line: &&str| {
        !line.starts_with("image:") && !line.contains("filename") && !line.contains("disk size")
    };
    text.lines().filter(kept).collect::<Vec<_>>().join("\n")
}

#[test]
fn another_parent_as_qemu_names_it() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    create(&path("one.qcow2"), &how(1 << 20, "")).close().unwrap();
    run(folder.path(), "qemu-img", &["create", "-q", "-f", "raw", "two", "1M"]);
    for text in ["", "compat=0.10", "cluster_size=512", "cluster_size=4k", "extended_l2=on"] {
        let (ours, theirs) = (path("ours.qcow2"), path("theirs.qcow2"));
        for (parent, format) in [
            ("one.qcow2", "qcow2"),
            ("two", "raw"),
            ("./one.qcow2", "qcow2"),
            ("not-there.raw", "raw"),
            ("", ""),
        ] {
            let with = CreateOptions { parent: named("one.qcow2", "qcow2"), ..how(1 << 20, text) };
            for image in [&ours, &theirs] {
                let layer = create(image, &with);
                layer.write(70_000, &pattern(70_000, 5000, 1)).unwrap();
                layer.close().unwrap();
            }
            let layer = open(&ours, true).unwrap();
            layer.set_parent(named(parent, format).filter(|_| !parent.is_empty()).as_ref()).unwrap();
            let named = layer.parent().map(|parent| parent.candidates[0].clone());
            assert_eq!(named.as_deref(), (!parent.is_empty()).then(|| Path::new(parent)));
            layer.close().unwrap();
            let mut arguments = vec!["rebase", "-q", "-u", "-f", "qcow2", "-b", parent];
            if !parent.is_empty() {
                arguments.extend(["-F", format]);
            }
            arguments.push("theirs.qcow2");
            run(folder.path(), "qemu-img", &arguments);
            assert_eq!(info(&ours), info(&theirs), "{text} {parent}");
            if parent != "not-there.raw" {
                common::check(&ours);
            }
            // Every byte of the header too.
            let first = |path: &Path| std::fs::read(path).unwrap()[..512].to_vec();
            assert_eq!(first(&ours), first(&theirs), "{text} {parent}");
        }
    }
}

#[test]
fn strange_extensions_and_the_hidden_mark_survive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let qemu = qemu();
    for text in ["", "compat=0.10", "cluster_size=512", "cluster_size=4k"] {
        create(&path, &how(1 << 20, text)).close().unwrap();
        add_unknown(&path);
        let before = std::fs::read(&path).unwrap();
        let layer = open(&path, false).unwrap();
        assert_eq!(layer.hidden(), Some(false));
        assert_eq!(layer.set_hidden(true).unwrap_err().kind(), ErrorKind::Denied);
        layer.close().unwrap();
        let layer = open(&path, true).unwrap();
        layer.set_hidden(false).unwrap();
        layer.close().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before, "what it says already is not written");

        let layer = open(&path, true).unwrap();
        layer.set_parent(named("base.raw", "raw").as_ref()).unwrap();
        layer.set_hidden(true).unwrap();
        layer.write(0, &[7; 4096]).unwrap();
        layer.close().unwrap();
        let layer = open(&path, true).unwrap();
        assert_eq!(layer.hidden(), Some(true));
        layer.set_parent(None).unwrap();
        layer.set_parent(named("base.qcow2", "qcow2").as_ref()).unwrap();
        assert_eq!(layer.hidden(), Some(true));
        layer.close().unwrap();
        assert!(has_unknown(&path), "{text}");
        if qemu {
            // QEMU keeps what it does not know, and so do we what it has rewritten.
            run(
                folder.path(),
                "qemu-img",
                &["rebase", "-u", "-f", "qcow2", "-b", "other.raw", "-F", "raw", "a.qcow2"],
            );
            let layer = open(&path, true).unwrap();
            assert_eq!(layer.hidden(), Some(true), "{text}");
            assert_eq!(layer.parent().unwrap().candidates[0], Path::new("other.raw"));
            layer.set_hidden(false).unwrap();
            layer.set_parent(None).unwrap();
            layer.close().unwrap();
            assert_eq!(open(&path, false).unwrap().hidden(), Some(false));
            assert!(has_unknown(&path), "{text}");
            common::check(&path);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let long = "n".repeat(380);
    let with = CreateOptions { parent: named(&long[..370], "raw"), ..how(1 << 20, "cluster_size=512") };
    create(&path, &with).close().unwrap();
    let before = std::fs::read(&path).unwrap();
    let layer = open(&path, true).unwrap();
    let error = layer.set_parent(named(&long, "raw").as_ref()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("does not fit into the first cluster"), "{error}");
    let error = layer.set_hidden(true).unwrap_err();
    assert!(error.to_string().contains("does not fit into the first cluster"), "{error}");
    for wrong in ["", "a\0b"] {
        assert_eq!(layer.set_parent(named(wrong, "raw").as_ref()).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(
        layer.set_parent(named(&"n".repeat(1024), "raw").as_ref()).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    layer.close().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let layer = create(&path, &how(1 << 20, "data_file=d,data_file_raw=on"));
    let error = layer.set_parent(named("base", "raw").as_ref()).unwrap_err();
    assert_eq!(error.to_string(), "Backing file and data-file-raw cannot be used at the same time");
    layer.close().unwrap();
}

fn memory(how: &CreateOptions) -> MemoryFolder {
    let folder = MemoryFolder::new();
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, how).unwrap();
    layer.write(100_000, &pattern(100_000, 3000, 5)).unwrap();
    layer.close().unwrap();
    folder.insert("disk", file);
    folder
}

fn reopen(file: Arc<dyn Storage>, writable: bool) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions { writable, ..OpenOptions::default() })
}

type Says = (Option<(String, Option<String>)>, bool);

fn says(layer: &dyn Layer) -> Says {
    let parent = layer.parent();
    let named = parent.map(|parent| (parent.candidates[0].to_str().unwrap().to_owned(), parent.format));
    (named, layer.hidden().unwrap())
}

/// One change after the other; after a power cut the file says what it said before the last one, or what that one says.
#[test]
fn a_power_cut_leaves_the_old_words_or_the_new_ones() {
    let long = "long/".repeat(80) + "name";
    for text in
        ["", "compat=0.10", "cluster_size=512", "cluster_size=1k", "cluster_size=4k", "extended_l2=on"]
    {
        let small = text.contains("=512") || text.contains("=1k");
        let long = if small { "rather-long-name" } else { &long };
        let folder = memory(&CreateOptions { parent: named("first", "raw"), ..how(1 << 18, text) });
        let journal = Journal::over(&folder);
        let layer = reopen(journal.folder().open("disk", true).unwrap(), true).unwrap();
        let mut words = vec![says(layer.as_ref())];
        let changes: [&dyn Fn() -> Result<()>; 8] = [
            &|| layer.set_parent(named("second", "qcow2").as_ref()),
            &|| layer.set_hidden(true),
            &|| layer.set_parent(named(long, "vpc").as_ref()),
            &|| layer.set_parent(None),
            &|| layer.set_hidden(false),
            &|| layer.set_parent(named(long, "raw").as_ref()),
            &|| layer.set_parent(named("./base-with-a-name", "raw").as_ref()),
            &|| layer.set_hidden(true),
        ];
        for (number, change) in (1..).zip(changes) {
            change().unwrap_or_else(|error| panic!("{text}: {error}"));
            words.push(says(layer.as_ref()));
            journal.mark(number);
        }
        layer.close().unwrap();
        let mut count = 0;
        for unit in [512, 4096] {
            for state in journal.states(&Plan { unit, ..Plan::default() }) {
                let done = state.mark().unwrap_or(0) as usize;
                let layer = reopen(state.file("disk").unwrap(), false)
                    .unwrap_or_else(|error| panic!("{text}: {error}\n{state}"));
                let found = says(layer.as_ref());
                assert!(
                    words[done..words.len().min(done + 2)].contains(&found),
                    "{text}: {found:?}\n{state}"
                );
                let mut bytes = vec![0; 3000];
                assert_eq!(layer.read(100_000, &mut bytes[..1]).unwrap().kind, cowhand_core::Kind::Data);
                // And it is changed again from there.
                let layer = reopen(state.file("disk").unwrap(), true).unwrap();
                layer
                    .set_parent(named("after", "raw").as_ref())
                    .unwrap_or_else(|error| panic!("{text}: {error}\n{state}"));
                layer.close().unwrap();
                count += 1;
            }
        }
        println!("{text}: {count} states");
        assert!(count > 30, "{text}: {count}");
    }
}

#[test]
fn a_failing_write_leaves_the_old_words_or_the_new_ones() {
    for text in ["", "cluster_size=512", "cluster_size=4k"] {
        for fault in [Fault::EIO, Fault::EIO.torn(), Fault::ENOSPC.forever()] {
            let counts = fault_test(
                fault,
                || memory(&CreateOptions { parent: named("first", "raw"), ..how(1 << 18, text) }),
                |folder, faults| {
                    let layer = reopen(faults.storage(folder.open("disk", true)?), true)?;
                    layer.set_parent(named("a-longer-name-than-before", "qcow2").as_ref())?;
                    layer.set_hidden(true)?;
                    layer.close()
                },
                |folder, error| {
                    let found = says(reopen(folder.open("disk", true)?, false)?.as_ref());
                    let old = Some(("first".to_owned(), Some("raw".to_owned())));
                    let new = Some(("a-longer-name-than-before".to_owned(), Some("qcow2".to_owned())));
                    let all = [(old, false), (new.clone(), false), (new, true)];
                    let right = if error.is_none() { found == all[2] } else { all.contains(&found) };
                    right.then_some(()).ok_or_else(|| format!("{found:?}").into())
                },
            );
            let counts = counts.unwrap_or_else(|failure| panic!("{text}: {failure}"));
            assert!(counts.errors >= 2, "{text}: {counts:?}");
        }
    }
}
