//! VHD and what it stands beside: parents of other formats, parents that are shorter, nested images, consumers, archives.
//! Judged by a reader that shares no code with ours.

use std::path::{Path, PathBuf};

use cowhand::stream::{From, Stream};
use cowhand::{
    Child, Convert, Create, ErrorKind, Lock, Merge, Open, Quiet, Reconnect, fitted, reconnect_parent,
};
use cowhand_tests::{Content, Kept, Rng, Vhd, VhdFile, for_all, options, temp, vhd_content, vhd_geometry};

use crate::streams::{as_format, to_file};
use crate::vhd_children::{assert_names_its_parent, built};
use crate::vhd_read::assert_content;
use crate::vhd_written::{assert_clean, history, qemu_agrees};

const MIB: u64 = 1 << 20;

fn writes(path: &Path, mirror: &mut [u8], steps: u64, seed: u64) {
    let disk = cowhand::open(path, &Open { writable: true, lock: Lock::None, ..Open::default() }).unwrap();
    history(&disk, mirror, 2 * MIB, steps, &mut Rng::new(seed));
    disk.close().unwrap();
}

fn assert_reads(path: &Path, content: &[u8]) {
    assert_content(&cowhand::open(path, &Open::default()).unwrap(), content);
}

/// A parent that is shorter than its child grows, and keeps all it says of itself but its size.
#[test]
fn parents_that_merging_makes_longer() {
    let folder = temp();
    let cases = [
        ("xenserver-three-each-larger", 0),
        ("windows-over-dynamic", 5 * MIB + 512),
        ("windows-over-fixed", 3 * MIB + 1024),
        ("small-blocks-child", 70 * MIB),
        ("blktap-0.1-child", 4 * MIB),
        ("xenserver-on-raw", 0),
    ];
    for_all(
        &cases,
        |(name, _)| (*name).to_owned(),
        |(name, more)| {
            let built = built(name, folder.path());
            let (mut top, content) = (built.top().0.to_owned(), built.top().1);
            let mut mirror = content.to_vec();
            let mut parent = built.files[built.files.len() - 2].0.clone();
            if *more > 0 {
                parent = built.files[0].0.clone();
                mirror = built.files[0].1.clone();
                top = parent.with_file_name("longer.vhd");
                let size = Some(mirror.len() as u64 + more);
                let how = Child { format: Some("vpc".to_owned()), size, ..Child::default() };
                let made = cowhand::child(&parent, &top, &how).unwrap();
                mirror.resize(made.size as usize, 0);
                Vhd::open(&top).assert_table_padded();
                assert!(vhd_content(&top) == mirror, "a longer child");
                writes(&top, &mut mirror, 20, *more);
            }
            let is_vhd = parent.extension().is_some_and(|extension| extension == "vhd");
            let before = is_vhd.then(|| Vhd::open(&parent).kept());
            // Others in the folder stand on the parent too.
            let how = Merge { delete: true, force: true, ..Merge::default() };
            cowhand::merge(&top, &how, &Quiet).unwrap();
            assert_reads(&parent, &mirror);
            let Some(before) = before else {
                assert!(std::fs::read(&parent).unwrap() == mirror, "the raw parent");
                return;
            };
            assert!(vhd_content(&parent) == mirror, "the judge reads something else");
            assert_clean(&parent);
            let others = |kept: Kept| Kept { sizes: (0, 0), geometry: (0, 0, 0), table: None, ..kept };
            assert_eq!(others(Vhd::open(&parent).kept()), others(before));
            Vhd::open(&parent).assert_table_padded();
        },
    );
}

#[test]
fn another_parent_is_taken_by_force_alone() {
    let folder = temp();
    for name in ["windows-over-dynamic", "windows-over-fixed", "macx-escaped", "xenserver-three-each-larger"]
    {
        let built = built(name, folder.path());
        let (top, content) = built.top();
        let parent = &built.files[built.files.len() - 2].0;
        // The same content under another id.
        let other = parent.with_file_name("an other.vhd");
        let how = Convert {
            format: Some("vpc".to_owned()),
            options: options("force_size=on"),
            ..Convert::new([parent], &other)
        };
        cowhand::convert(&how, &Quiet).unwrap();
        assert_ne!(Vhd::open(&other).kept().id, Vhd::open(parent).kept().id);
        let before = std::fs::read(top).unwrap();
        let how = Reconnect { parent: Some(other.clone()), ..Reconnect::default() };
        assert_eq!(reconnect_parent(top, &how).unwrap_err().kind(), ErrorKind::Mismatch, "{name}");
        assert!(std::fs::read(top).unwrap() == before, "{name}: refused, and changed");
        reconnect_parent(top, &Reconnect { force: true, ..how }).unwrap();
        assert_names_its_parent(top, &other);
        assert!(vhd_content(top) == content, "{name}: the judge reads something else");
        assert_reads(top, content);
        assert_clean(top);
    }
}

/// On QCOW2 and VHDX no other program's VHD stands; ours says where they are, and holds its own sectors.
#[test]
fn children_over_other_formats() {
    let folder = temp();
    for (format, seed) in [("qcow2", 1), ("vhdx", 2), ("raw", 3)] {
        let parent = folder.path().join(format!("base.{format}"));
        let size = 9 * MIB;
        let raw = folder.path().join("source.img");
        cowhand::create(&raw, &Create::new("raw", size)).unwrap();
        let mut below = vec![0; size as usize];
        writes(&raw, &mut below, 15, seed);
        let how = Convert { format: Some(format.to_owned()), ..Convert::new([&raw], &parent) };
        cowhand::convert(&how, &Quiet).unwrap();
        let child = folder.path().join(format!("over {format}.vhd"));
        let how = Child { size: Some(size + 512), ..Child::default() };
        cowhand::child(&parent, &child, &how).unwrap();
        let mut mirror = below.clone();
        mirror.resize(size as usize + 512, 0);
        assert_reads(&child, &mirror);
        writes(&child, &mut mirror, 30, seed + 10);
        let vhd = Vhd::open(&child);
        assert_eq!(vhd.parent().unwrap(), parent.canonicalize().unwrap());
        vhd.assert_table_padded();
        vhd.assert_new_blocks_aligned(&[]);
        assert!(vhd.over(below) == mirror, "{format}: the judge reads something else");
        assert_reads(&child, &mirror);
        assert_clean(&child);
        if format != "vhdx" {
            cowhand::merge(&child, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
            assert_reads(&parent, &mirror);
        }
    }
}

/// A disk whose guest's first sectors are a dynamic VHD is what the file is, not what the guest holds.
#[test]
fn a_nested_vhd_is_content() {
    let folder = temp();
    let nested = folder.path().join("nested.vhd");
    let inner =
        VhdFile { runs: vec![(0, 300, true)], ..VhdFile::new("nested", b"win ", 0x000a_0000, 3 * MIB) };
    inner.build(&nested, Vec::new());
    let mut guest = std::fs::read(&nested).unwrap();
    guest.resize(5 << 20, 0);
    Rng::new(1).fill(&mut guest[4 << 20..]);
    for (name, creator) in [("win", b"win "), ("tap", b"tap\0"), ("vbox", b"vbox")] {
        let path = folder.path().join(format!("{name}.vhd"));
        let outer = VhdFile { fixed: true, ..VhdFile::new("outer", creator, 0x000a_0000, 5 * MIB) };
        outer.build(&path, guest.clone());
        let disk = cowhand::open(&path, &Open::default()).unwrap();
        assert_eq!(disk.top().format, "vpc");
        assert_content(&disk, &guest);
        drop(disk);
        assert!(vhd_content(&path) == guest);
        let mut mirror = guest.clone();
        writes(&path, &mut mirror, 10, 5);
        assert!(vhd_content(&path) == mirror);
    }
    let raw = folder.path().join("nested.raw");
    std::fs::write(&raw, &guest).unwrap();
    let how = Open { format: Some("raw".to_owned()), ..Open::default() };
    assert_content(&cowhand::open(&raw, &how).unwrap(), &guest);
    // A child says that its parent is raw, so what the guest wrote there does not matter.
    let child = folder.path().join("child.vhd");
    cowhand::child(&raw, &child, &Child { open: how, ..Child::default() }).unwrap();
    assert_content(&cowhand::open(&child, &Open::default()).unwrap(), &guest);
    assert!(Vhd::open(&child).over(guest.clone()) == guest);
}

/// What `--for` makes: by the judge, who knows each consumer's marks.
#[test]
fn made_for_consumers() {
    let folder = temp();
    let source = Content::striped("source", 21 * MIB + 1024, 700 << 10, 3).raw_in(folder.path());
    let bytes = std::fs::read(&source).unwrap();
    let of = |whom: &str, given: &str| -> (PathBuf, Vhd) {
        let target = folder.path().join(format!("{whom}-{}.vhd", given.len()));
        let made = fitted(whom, None, &target, options(given)).unwrap();
        let how = Convert {
            format: Some(made.format.names()[0].to_owned()),
            options: made.options,
            ..Convert::new([&source], &target)
        };
        let done = cowhand::convert(&how, &Quiet).unwrap();
        let mut content = bytes.clone();
        assert!(done.size >= content.len() as u64, "{whom}");
        content.resize(done.size as usize, 0);
        assert!(vhd_content(&target) == content, "{whom}: the judge reads something else");
        assert_reads(&target, &content);
        assert_clean(&target);
        qemu_agrees(whom, &target, &content);
        let vhd = Vhd::open(&target);
        vhd.assert_table_padded();
        vhd.assert_new_blocks_aligned(&[]);
        let kept = vhd.kept();
        assert_eq!(kept.sizes.0, kept.sizes.1, "{whom}: original and current size");
        assert_eq!(kept.geometry, vhd_geometry(kept.sizes.1), "{whom}: the geometry");
        assert_eq!(kept.sizes.1, vhd.size, "{whom}: one size by every rule");
        (target, vhd)
    };
    for (whom, given, creator, fixed) in [
        ("azure", "", b"win ", true),
        ("xenserver", "", b"tap\0", false),
        ("hyperv", "", b"win ", false),
        ("hyperv", "subformat=fixed", b"win ", true),
        ("virtualpc", "", b"vpc ", false),
        ("virtualpc", "subformat=fixed", b"vpc ", true),
        ("virtualbox", "", b"vbox", false),
    ] {
        let (file, vhd) = of(whom, given);
        let kept = vhd.kept();
        assert_eq!(&kept.creator, creator, "{whom}");
        assert_eq!(kept.flags, (0, 0), "{whom}");
        assert_eq!(vhd.kind, if fixed { 2 } else { 3 }, "{whom}");
        assert_eq!(kept.batmap.is_some(), whom == "xenserver", "{whom}: the batmap");
        if fixed {
            assert_eq!(file.metadata().unwrap().len(), vhd.size + 512, "{whom}");
        }
        match whom {
            "azure" => assert!(vhd.size.is_multiple_of(MIB)),
            "xenserver" => {
                assert!(vhd.size.is_multiple_of(2 * MIB));
                assert_eq!(kept.table.unwrap(), ((vhd.size / (2 * MIB)) as u32, 2 << 20));
            }
            _ => {}
        }
    }
}

/// XenServer's archives: the chain that comes out of one, and the disk that it is flattened to.
#[test]
fn archives_of_chains() {
    let folder = temp();
    for name in ["xenserver-three-each-larger", "windows-over-fixed"] {
        let built = built(name, folder.path());
        let (top, content) = built.top();
        let archive = top.with_file_name("chain.tar.gz");
        to_file(From::File(top), &archive, &as_format("vpc", "force_size=on")).unwrap();
        let unpacked = top.with_file_name("unpacked");
        to_file(From::File(&archive), &unpacked.join(""), &Stream::default()).unwrap();
        // The leaf comes first.
        for (n, (_, content)) in built.files.iter().rev().enumerate() {
            let file = unpacked.join(format!("{n}.vhd"));
            assert!(vhd_content(&file) == *content, "{name}, {n}: the judge reads something else");
            Vhd::open(&file).assert_table_padded();
            assert_clean(&file);
        }
        for how in ["force_size=on", "force_size=on,subformat=fixed", "creator=tap"] {
            let flat = top.with_file_name("flat.vhd");
            to_file(From::File(&archive), &flat, &as_format("vpc", how)).unwrap();
            assert!(vhd_content(&flat) == content, "{name} as {how}: the judge reads something else");
            assert_clean(&flat);
            std::fs::remove_file(flat).unwrap();
        }
    }
}
