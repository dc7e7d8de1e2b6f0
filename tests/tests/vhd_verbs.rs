//! What is done to VHD files as wholes: merged, connected to a parent that moved, converted, flattened, marked. Other
//! programs' files, the content in memory, and a judge that shares no code with ours.

use std::path::{Path, PathBuf};

use cowhand::{Amend, Convert, Flatten, Lock, Merge, Open, Quiet, Reconnect};
use cowhand_tests::{
    BuiltDisk, Layout, Rng, Vhd, for_all, options, samples, temp, vhd_chain_layouts, vhd_content,
    vhd_dynamic_layouts, vhd_fixed_layouts,
};

use crate::vhd_children::{assert_names_its_parent, built};
use crate::vhd_read::assert_content;
use crate::vhd_written::{assert_clean, has_a_way_for_the_judge, history, qemu_agrees};

/// Panics unless the judge and we both find `content`.
fn assert_holds(image: &Path, content: &[u8]) {
    assert!(vhd_content(image) == content, "the judge reads something else in {}", image.display());
    assert_content(&cowhand::open(image, &Open::default()).unwrap(), content);
}

/// Sector by sector, zeros over data too; the parent keeps all that it says of itself.
#[test]
fn merge() {
    let folder = temp();
    let names = ["windows-over-dynamic", "windows-over-fixed", "small-blocks-child", "blktap-0.1-child"];
    for_all(
        &names,
        |name| (*name).to_owned(),
        |name| {
            let built = built(name, folder.path());
            let (top, content) = built.top();
            let parent = &built.files[built.files.len() - 2].0;
            let before = Vhd::open(parent).kept();
            let how = Merge { delete: true, ..Merge::default() };
            let done = cowhand::merge(top, &how, &Quiet).unwrap();
            assert!(done.deleted && !top.exists());
            assert_eq!(Vhd::open(parent).kept(), before);
            assert_holds(parent, content);
            assert_clean(parent);
        },
    );
}

/// The middle of three goes away; the leaf stands on the base.
#[test]
fn merge_with_a_child() {
    let folder = temp();
    let built = built("windows-over-dynamic", folder.path());
    let (middle, content) = built.top();
    let leaf = middle.with_file_name("leaf.vhd");
    let mut mirror = content.to_vec();
    cowhand::child(middle, &leaf, &cowhand::Child::default()).unwrap();
    let disk = cowhand::open(&leaf, &Open { writable: true, ..Open::default() }).unwrap();
    history(&disk, &mut mirror, 2 << 20, 20, &mut Rng::new(7));
    disk.close().unwrap();
    drop(disk);
    let how = Merge { children: vec![leaf.clone()], delete: true, ..Merge::default() };
    cowhand::merge(middle, &how, &Quiet).unwrap();
    assert!(!middle.exists());
    assert_holds(&built.files[0].0, content);
    assert_names_its_parent(&leaf, &built.files[0].0);
    assert_holds(&leaf, &mirror);
    assert_clean(&leaf);
}

/// Moves the parent of the top to another name in another folder; answers where it is.
fn move_parent(built: &BuiltDisk) -> PathBuf {
    let parent = &built.files[built.files.len() - 2].0;
    let moved = parent.with_file_name("old ones").join("checkpoint \u{e4} 2.vhd");
    std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
    std::fs::rename(parent, &moved).unwrap();
    moved
}

/// A parent that was moved and renamed is found by its id, or named; then every locator says where it is.
#[test]
fn reconnect() {
    let folder = temp();
    let layouts = vhd_chain_layouts();
    let layouts: Vec<&Layout> = layouts
        .iter()
        .filter(|layout| {
            // A raw parent has no id; a parent that moves away from its own parent takes the way to it along.
            !matches!(layout.name, "xenserver-on-raw" | "xenserver-three-each-larger")
        })
        .collect();
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let before = Vhd::open(top).kept();
            let moved = move_parent(&built);
            assert!(cowhand::open(top, &Open::default()).is_err(), "the parent is gone");
            let by_name = layout.name.len() % 2 == 0;
            let shelf = if by_name { Vec::new() } else { vec![moved.parent().unwrap().to_owned()] };
            let open = Open { search: shelf, ..Open::default() };
            let how = Reconnect { open, parent: by_name.then(|| moved.clone()), ..Reconnect::default() };
            cowhand::reconnect_parent(top, &how).unwrap();
            assert_names_its_parent(top, &moved);
            assert_holds(top, content);
            assert_clean(top);
            let now = Vhd::open(top).kept();
            let of_parent = |kept: &cowhand_tests::Kept| kept.parent.as_ref().unwrap().0;
            assert_eq!(of_parent(&now), of_parent(&before));
            assert_eq!(
                cowhand_tests::Kept { parent: None, locators: Vec::new(), ..now },
                cowhand_tests::Kept { parent: None, locators: Vec::new(), ..before }
            );
        },
    );
}

/// The real chain that Windows made: written into, its parent moved and found again, merged.
#[test]
fn a_real_chain_of_windows() {
    let folder = temp();
    let Some(sample) = samples().into_iter().find(|sample| sample.path.ends_with("fat-differential.vhd"))
    else {
        return;
    };
    let child = folder.path().join("child.vhd");
    let parent = folder.path().join("elsewhere/base of all.vhd");
    std::fs::create_dir(parent.parent().unwrap()).unwrap();
    std::fs::copy(&sample.file, &child).unwrap();
    std::fs::copy(sample.file.with_file_name(&sample.parent), &parent).unwrap();
    let mut mirror = vhd_content(&sample.file);
    let open = Open { search: vec![parent.parent().unwrap().to_owned()], ..Open::default() };
    cowhand::reconnect_parent(&child, &Reconnect { open, ..Reconnect::default() }).unwrap();
    assert_names_its_parent(&child, &parent);
    assert_holds(&child, &mirror);
    let disk = cowhand::open(&child, &Open { writable: true, lock: Lock::None, ..Open::default() }).unwrap();
    history(&disk, &mut mirror, 2 << 20, 30, &mut Rng::new(3));
    disk.close().unwrap();
    drop(disk);
    assert_holds(&child, &mirror);
    assert_clean(&child);
    let kept = Vhd::open(&parent).kept();
    cowhand::merge(&child, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
    assert_eq!(Vhd::open(&parent).kept(), kept);
    assert_holds(&parent, &mirror);
}

/// Any layout becomes a fixed, a dynamic one of every creator, and the judge reads it; so does a whole chain.
#[test]
fn convert() {
    const WAYS: &[&str] = &[
        "creator=win",
        "creator=win,subformat=fixed",
        "creator=tap",
        "creator=vbox,block_size=512k",
        "creator=vpc",
        "creator=vpc,subformat=fixed",
        "",
    ];
    let folder = temp();
    let layouts: Vec<Layout> = [vhd_dynamic_layouts(), vhd_fixed_layouts(), vhd_chain_layouts()]
        .into_iter()
        .flatten()
        .filter(|layout| layout.name != "blocks-256m" && has_a_way_for_the_judge(layout.name))
        .collect();
    let cases: Vec<(&Layout, &str)> =
        layouts.iter().enumerate().map(|(n, layout)| (layout, WAYS[n % WAYS.len()])).collect();
    for_all(
        &cases,
        |(layout, way)| format!("{} to {way}", layout.name),
        |(layout, way)| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let target = top.with_file_name("target.vhd");
            let how = Convert {
                format: Some("vpc".to_owned()),
                options: options(way),
                cache: cowhand::Cache::Unsafe,
                ..Convert::new([top], &target)
            };
            let done = cowhand::convert(&how, &Quiet).unwrap();
            assert_eq!(done.size, content.len() as u64);
            assert_holds(&target, content);
            let vhd = Vhd::open(&target);
            vhd.assert_new_blocks_aligned(&[]);
            assert_eq!(vhd.kind, if way.contains("fixed") { 2 } else { 3 });
            assert_clean(&target);
            qemu_agrees(layout.name, &target, content);
        },
    );
}

/// A VHD of a VHD has its size, whether or not a geometry can say it, and `measure` knows the file's length; other sizes
/// are rounded as QEMU rounds them.
#[test]
fn the_size_stays() {
    let folder = temp();
    let mut sources = Vec::new();
    for (name, size, given) in [
        ("windows", 4_194_304, "creator=win"),
        ("forced", (3 << 20) + 512, "force_size=on"),
        ("rounded", 10 << 20, ""),
        ("fixed", 100 << 20, "subformat=fixed"),
    ] {
        let path = folder.path().join(name).with_extension("vhd");
        let how = cowhand::Create { options: options(given), ..cowhand::Create::new("vpc", size) };
        cowhand::create(&path, &how).unwrap();
        sources.push(path);
    }
    let names = ["ntfs-dynamic.vhd", "fat-parent.vhd", "fat-differential.vhd", "dfvfs/ext2.vhd"];
    let real = samples().into_iter().filter(|sample| names.iter().any(|name| sample.path.ends_with(name)));
    sources.extend(real.map(|sample| sample.file));
    for source in sources {
        let size = cowhand::open(&source, &Open::default()).unwrap().size();
        for given in ["subformat=fixed", "", "creator=vpc", "block_size=512k,force_size=off"] {
            let target = folder.path().join("target.vhd");
            let what = format!("{} to {given}", source.display());
            let mut how = Convert {
                format: Some("vpc".to_owned()),
                options: options(given),
                verify: true,
                sparse: Some(4096),
                ..Convert::new([&source], &target)
            };
            let done = cowhand::convert(&how, &Quiet).unwrap();
            let measured = cowhand::Measure {
                format: "vpc".to_owned(),
                options: options(given),
                source: Some(source.clone()),
                ..cowhand::Measure::default()
            };
            let measured = cowhand::measure(&measured, &Quiet).unwrap();
            assert_eq!(measured.exact, Some(target.metadata().unwrap().len()), "{what}");
            let raw = folder.path().join("source.raw");
            how.sources = vec![raw.clone()];
            cowhand::convert(&Convert::new([&source], &raw), &Quiet).unwrap();
            let as_qemu = cowhand::convert(&how, &Quiet).unwrap().size;
            assert_eq!(done.size, if given.contains("off") { as_qemu } else { size }, "{what}");
        }
    }
}

#[test]
fn flatten_in_place() {
    let folder = temp();
    for name in ["windows-over-fixed", "xenserver-three-each-larger", "xenserver-on-raw"] {
        let built = built(name, folder.path());
        let (top, content) = built.top();
        cowhand::flatten(top, &Flatten::default(), &Quiet).unwrap();
        let vhd = Vhd::open(top);
        assert_eq!(vhd.kind, 3, "{name}");
        assert_holds(top, content);
        assert_clean(top);
    }
}

/// Marks are written into both footers and beside the batmap, and nothing else changes.
#[test]
fn amend() {
    let folder = temp();
    let nonce: String = "0123456789abcdef".repeat(4);
    let hash: String = "fedcba9876543210".repeat(4);
    let layouts: Vec<Layout> =
        vhd_dynamic_layouts().into_iter().filter(|layout| layout.name.starts_with("xenserver")).collect();
    assert!(layouts.len() > 1);
    for layout in layouts {
        let built = layout.build(folder.path());
        let (top, content) = built.top();
        let before = Vhd::open(top).kept();
        let key = format!("hidden=2,saved_state=on,marker=7,key_hash={nonce}:{hash}");
        cowhand::amend(top, &Amend { options: options(&key), ..Amend::default() }, &Quiet).unwrap();
        let now = Vhd::open(top).kept();
        assert_eq!(now.flags, (1, 2));
        let (marker, written) = now.batmap.clone().unwrap();
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        assert_eq!(marker, 7);
        assert_eq!(written, [vec![1], bytes(&nonce), bytes(&hash)].concat());
        let unmarked =
            |kept: cowhand_tests::Kept| cowhand_tests::Kept { flags: (0, 0), batmap: None, ..kept };
        assert_eq!(unmarked(now), unmarked(before));
        assert_holds(top, content);
        cowhand::set_hidden(top, false, &Open::default()).unwrap();
        assert_eq!(Vhd::open(top).kept().flags, (1, 0));
    }
}
