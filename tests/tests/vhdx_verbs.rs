//! What is done to VHDX files as wholes: merged, connected to a parent that moved, converted, flattened. Other programs'
//! files, the content in memory, and a judge that shares no code with ours.

use std::path::{Path, PathBuf};

use cowhand::{Child, Commit, Convert, Flatten, Merge, Open, Quiet, Reconnect};
use cowhand_tests::{
    BuiltVhdx, Mirror, Rng, Vhdx, VhdxLayout, file_sha256, for_all, options, samples, temp,
    vhdx_chain_layouts, vhdx_content, vhdx_dynamic_layouts, vhdx_fixed_layouts,
};

use crate::vhdx_children::{assert_names_its_parent, built};
use crate::vhdx_read::{qemu_agrees, readable};
use crate::vhdx_written::{assert_clean, history, writable};

/// Panics unless the judge and we both find `content`.
fn assert_holds(image: &Path, content: &Mirror) {
    content.assert_same(&vhdx_content(image), "the judge");
    content.assert_disk(&cowhand::open(image, &readable()).unwrap());
    assert_clean(image);
}

fn data_write(image: &Path) -> [u8; 16] {
    Vhdx::open(image).header().data_write
}

const CHAINS: &[&str] = &[
    "windows-child",
    "checkpoint",
    "child-4kn",
    "child-garbage",
    "child-never-full",
    "child-larger",
    "child-every-state",
    "child-chunks",
];

/// The parent gets everything and another identity; the child goes.
#[test]
fn merge() {
    let folder = temp();
    for_all(
        CHAINS,
        |name| (*name).to_owned(),
        |name| {
            let (_, built) = built(name, folder.path());
            let (top, content) = built.top();
            let parent = &built.files[built.files.len() - 2].0;
            let before = Vhdx::open(parent);
            let how = Merge { delete: true, ..Merge::default() };
            let done = cowhand::merge(top, &how, &Quiet).unwrap();
            assert!(done.deleted && !top.exists());
            let now = Vhdx::open(parent);
            now.assert_closed();
            assert_ne!(now.header().data_write, before.header().data_write, "DataWriteGuid");
            if content.size() == before.size {
                assert_eq!(now.kept(), before.kept());
            }
            assert_holds(parent, content);
        },
    );
}

/// The child stays, is empty, and knows its parent again, which has another identity now.
#[test]
fn commit() {
    let folder = temp();
    for_all(
        CHAINS,
        |name| (*name).to_owned(),
        |name| {
            let (_, built) = built(name, folder.path());
            let (top, content) = built.top();
            let parent = &built.files[built.files.len() - 2].0;
            let before = data_write(parent);
            let done = cowhand::commit(top, &Commit::default(), &Quiet).unwrap();
            assert!(done.emptied);
            assert_ne!(data_write(parent), before, "the parent's DataWriteGuid");
            assert_names_its_parent(top, parent);
            assert_holds(top, content);
            assert_holds(parent, content);
            Vhdx::open(top).assert_closed();
            Vhdx::open(parent).assert_closed();
        },
    );
}

/// The middle of three goes away; the leaf stands on the base.
#[test]
fn merge_with_a_child() {
    let folder = temp();
    let (_, built) = built("windows-child", folder.path());
    let (middle, content) = built.top();
    let leaf = middle.with_file_name("leaf.avhdx");
    let mut mirror = content.clone();
    cowhand::child(middle, &leaf, &Child::default()).unwrap();
    let disk = cowhand::open(&leaf, &writable()).unwrap();
    history(&disk, &mut mirror, Some(content), 2 << 20, 20, &mut Rng::new(7));
    disk.close().unwrap();
    drop(disk);
    let how = Merge { children: vec![leaf.clone()], delete: true, ..Merge::default() };
    cowhand::merge(middle, &how, &Quiet).unwrap();
    assert!(!middle.exists());
    assert_holds(&built.files[0].0, content);
    assert_names_its_parent(&leaf, &built.files[0].0);
    assert_holds(&leaf, &mirror);
}

/// Moves the parent of the top to another name in another folder; answers where it is.
fn move_parent(built: &BuiltVhdx) -> PathBuf {
    let parent = &built.files[built.files.len() - 2].0;
    let moved = parent.with_file_name("old ones").join("checkpoint \u{e4} 2.avhdx");
    std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
    std::fs::rename(parent, &moved).unwrap();
    moved
}

/// A parent that was moved and renamed is found by its identity, or named; then every path says where it is. Nobody who
/// reads the disk sees a change: its DataWriteGuid stays.
#[test]
fn reconnect() {
    let folder = temp();
    let mut layouts = vhdx_chain_layouts();
    // A parent that moves away from its own parent takes the way to it along; a merge is finished, not moved.
    layouts
        .retain(|layout| !matches!(layout.name, "three-each-larger" | "merging" | "child-chunks-shuffled"));
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let before = Vhdx::open(top);
            let moved = move_parent(&built);
            let parent = file_sha256(&moved);
            assert!(cowhand::open(top, &readable()).is_err(), "the parent is gone");
            let by_name = layout.name.len() % 2 == 0;
            let shelf = if by_name { Vec::new() } else { vec![moved.parent().unwrap().to_owned()] };
            let open = Open { search: shelf, ..Open::default() };
            let how = Reconnect { open, parent: by_name.then(|| moved.clone()), ..Reconnect::default() };
            cowhand::reconnect_parent(top, &how).unwrap();
            assert_names_its_parent(top, &moved);
            let now = Vhdx::open(top);
            now.assert_closed();
            assert_eq!(now.header().data_write, before.header().data_write, "DataWriteGuid");
            assert_ne!(now.header().file_write, before.header().file_write, "FileWriteGuid");
            assert_eq!(file_sha256(&moved), parent, "the parent was written to");
            assert_holds(top, content);
        },
    );
}

/// The real chains that Windows and OpenVMM made: written into, the parent moved and found again, merged.
#[test]
fn real_chains() {
    let folder = temp();
    for sample in samples() {
        if sample.format != "vhdx" || sample.parent.is_empty() {
            continue;
        }
        let own = tempfile::tempdir_in(folder.path()).unwrap();
        let child = own.path().join("child.avhdx");
        let parent = own.path().join("elsewhere/base of all.vhdx");
        std::fs::create_dir(parent.parent().unwrap()).unwrap();
        std::fs::copy(&sample.file, &child).unwrap();
        std::fs::copy(sample.file.with_file_name(&sample.parent), &parent).unwrap();
        let below = vhdx_content(&parent);
        let mut mirror = vhdx_content(&sample.file);
        let open = Open { search: vec![parent.parent().unwrap().to_owned()], ..Open::default() };
        cowhand::reconnect_parent(&child, &Reconnect { open, ..Reconnect::default() }).unwrap();
        assert_holds(&child, &mirror);
        let disk = cowhand::open(&child, &writable()).unwrap();
        history(&disk, &mut mirror, Some(&below), 2 << 20, 30, &mut Rng::new(3));
        disk.close().unwrap();
        drop(disk);
        assert_holds(&child, &mirror);
        let kept = Vhdx::open(&parent).kept();
        cowhand::merge(&child, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
        assert_eq!(Vhdx::open(&parent).kept(), kept);
        assert_holds(&parent, &mirror);
        qemu_agrees(&parent, &mirror);
    }
}

/// Any layout becomes a fixed, a dynamic one, of any block and sector; the judge reads it, and `qemu-img` where it can;
/// so does a whole chain.
#[test]
fn convert() {
    const WAYS: &[&str] = &[
        "",
        "subformat=fixed",
        "block_size=1M,log_size=4M",
        "block_size=32M,physical_sector_size=512",
        "block_state_zero=off",
        "subformat=fixed,block_size=8M",
    ];
    let folder = temp();
    let layouts: Vec<VhdxLayout> = [vhdx_dynamic_layouts(), vhdx_fixed_layouts(), vhdx_chain_layouts()]
        .into_iter()
        .flatten()
        .filter(|layout| layout.top().size < 1 << 30 && layout.has_a_way())
        .collect();
    let cases: Vec<(&VhdxLayout, &str)> =
        layouts.iter().enumerate().map(|(n, layout)| (layout, WAYS[n % WAYS.len()])).collect();
    for_all(
        &cases,
        |(layout, way)| format!("{} to {way}", layout.name),
        |(layout, way)| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let target = top.with_file_name("target.vhdx");
            let mut given = options(way);
            let sector = Vhdx::open(top).logical;
            given.push(("logical_sector_size".to_owned(), sector.to_string()));
            let how = Convert {
                format: Some("vhdx".to_owned()),
                options: given,
                cache: cowhand::Cache::Unsafe,
                ..Convert::new([top], &target)
            };
            let done = cowhand::convert(&how, &Quiet).unwrap();
            assert_eq!(done.size, content.size());
            assert_holds(&target, content);
            let vhdx = Vhdx::open(&target);
            vhdx.assert_ours();
            assert_eq!(vhdx.leave_allocated, way.contains("fixed"));
            if sector == 512 && content.size() > 0 {
                qemu_agrees(&target, content);
            }
        },
    );
}

#[test]
fn flatten_in_place() {
    let folder = temp();
    for name in ["windows-child", "three-each-larger", "child-4kn"] {
        let (_, built) = built(name, folder.path());
        let (top, content) = built.top();
        cowhand::flatten(top, &Flatten::default(), &Quiet).unwrap();
        let vhdx = Vhdx::open(top);
        assert!(vhdx.locator.is_none(), "{name}");
        vhdx.assert_closed();
        assert_holds(top, content);
    }
}
