//! Differencing disks that we make: what Windows looks for in them, and what is written into them.

use std::path::Path;

use cowhand::{Child, Erase, Open, Policy};
use cowhand_tests::{
    BuiltVhdx, Mirror, Rng, Vhdx, VhdxBlock, VhdxLayout, for_all, guid, options, temp, vhdx_chain_layouts,
    vhdx_content, vhdx_dynamic_layouts, vhdx_fixed_layouts,
};

use crate::vhd_by_7zip::seven_zip;
use crate::vhd_written::number;
use crate::vhdx_by_7zip::assert_seven_zip;
use crate::vhdx_read::readable;
use crate::vhdx_written::{assert_clean, history, writable};

const MIB: u64 = 1 << 20;

/// A parent that other programs made, and where the child is to lie.
struct Case {
    parent: &'static str,
    child: &'static str,
    options: &'static str,
    /// Bytes that the child is longer.
    more: u64,
}

const CASES: &[Case] = &[
    Case { parent: "openvmm", child: "new.avhdx", options: "", more: 0 },
    Case { parent: "openvmm", child: "new.avhdx", options: "block_size=1M", more: 0 },
    Case { parent: "openvmm", child: "new.avhdx", options: "block_size=32M", more: 5 << 20 },
    Case { parent: "fixed-disk2vhd", child: "new.avhdx", options: "block_size=4M", more: 512 },
    Case { parent: "every-state", child: "new.avhdx", options: "block_size=2M", more: 0 },
    Case { parent: "hyper-v", child: "new.avhdx", options: "block_size=1M", more: 0 },
    Case { parent: "hyper-v-4kn", child: "new.avhdx", options: "block_size=2M", more: 4096 },
    Case { parent: "openvmm-4kn", child: "new.avhdx", options: "block_size=1M", more: 0 },
    Case { parent: "windows-child", child: "b\u{e4}r %20/new one.vhdx", options: "", more: MIB },
    Case { parent: "three-each-larger", child: "new.avhdx", options: "block_size=8M", more: 0 },
    Case { parent: "in-a-folder", child: "new.avhdx", options: "physical_sector_size=512", more: 0 },
    Case { parent: "chunks", child: "new.avhdx", options: "block_size=4M", more: 1 << 30 },
];

pub(crate) fn built(name: &str, folder: &Path) -> (VhdxLayout, BuiltVhdx) {
    let all = [vhdx_dynamic_layouts(), vhdx_fixed_layouts(), vhdx_chain_layouts()].into_iter().flatten();
    let found: Vec<VhdxLayout> = all.filter(|layout| layout.name == name).collect();
    let built = found[0].build(folder);
    (found[0].clone(), built)
}

/// What stands in a child's file so that other programs find its parent and believe it.
pub(crate) fn assert_names_its_parent(child: &Path, parent: &Path) {
    let (vhdx, below) = (Vhdx::open(child), Vhdx::open(parent));
    assert_eq!(vhdx.parent().unwrap(), parent.canonicalize().unwrap(), "the parent by the relative path");
    assert_eq!(guid(vhdx.says("parent_linkage").unwrap()), below.header().data_write, "parent_linkage");
    // Windows writes zeros.
    assert!(vhdx.says("parent_linkage2").is_none_or(|text| guid(text) == [0; 16]), "parent_linkage2");
    assert_ne!(vhdx.header().data_write, below.header().data_write, "an identity of its own");
    assert_eq!(vhdx.disk_id(), below.disk_id(), "VirtualDiskId");
    assert_eq!(vhdx.logical, below.logical, "the logical sector");
    // Windows takes a relative path only with its own separators and a dot in front.
    let relative = vhdx.says("relative_path").unwrap();
    assert!(relative.starts_with(".\\") || relative.starts_with("..\\"), "relative_path {relative:?}");
    assert!(!relative.contains('/'), "relative_path {relative:?}");
    let name = parent.file_name().unwrap().to_str().unwrap();
    let absolute = vhdx.says("absolute_win32_path").unwrap();
    assert!(absolute.ends_with(&format!("\\{name}")) && !absolute.contains('/'), "{absolute:?}");
}

fn child_of(parent: &Path, child: &Path, given: &str, size: u64) {
    let how = Child {
        format: Some("vhdx".to_owned()),
        options: options(given),
        size: Some(size),
        ..Child::default()
    };
    let made = cowhand::child(parent, child, &how).unwrap();
    assert_eq!(made.size, size);
}

#[test]
fn name_their_parents_and_hold_what_is_written() {
    let folder = temp();
    let first = number("COWHAND_SEED", 1);
    let seeds = first..first + number("COWHAND_VHDX_ROUNDS", 1);
    let cases: Vec<(u64, &Case)> =
        seeds.flat_map(|seed| CASES.iter().map(move |case| (seed, case))).collect();
    for_all(
        &cases,
        |(seed, case)| format!("{} and {} with COWHAND_SEED={seed}", case.parent, case.options),
        |(seed, case)| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let (_, built) = built(case.parent, own.path());
            let (parent, content) = built.top();
            let child = parent.parent().unwrap().join(case.child);
            std::fs::create_dir_all(child.parent().unwrap()).unwrap();
            let mut mirror = content.clone();
            mirror.resize(content.size() + case.more);
            child_of(parent, &child, case.options, mirror.size());
            assert_names_its_parent(&child, parent);
            let new = Vhdx::open(&child);
            new.assert_ours();
            mirror.assert_same(&vhdx_content(&child), "a new child, by the judge");
            let policy = Policy::Local; // one child lies in a folder of its own
            let how = Open { policy, ..writable() };
            let disk = cowhand::open(&child, &how).unwrap();
            history(&disk, &mut mirror, Some(content), new.block, 30, &mut Rng::new(*seed));
            disk.close().unwrap();
            drop(disk);
            let now = Vhdx::open(&child);
            now.assert_closed();
            assert_eq!(now.kept(), new.kept());
            assert_names_its_parent(&child, parent);
            mirror.assert_same(&vhdx_content(&child), "the judge");
            assert_clean(&child);
            for (path, content) in &built.files {
                content.assert_disk(&cowhand::open(path, &readable()).unwrap());
            }
        },
    );
}

/// What each kind of change makes of a block, and of its bits.
#[test]
fn states_of_blocks() {
    let folder = temp();
    let (_, built) = built("every-state", folder.path());
    let (parent, content) = built.top();
    let child = parent.with_file_name("child.avhdx");
    child_of(parent, &child, "block_size=1M", content.size());
    let mut mirror = content.clone();
    let mut step = |what: &str, change: &dyn Fn(&cowhand::Image, &mut Mirror)| {
        let disk = cowhand::open(&child, &writable()).unwrap();
        change(&disk, &mut mirror);
        disk.close().unwrap();
        drop(disk);
        let now = Vhdx::open(&child);
        now.assert_closed();
        mirror.assert_same(&vhdx_content(&child), what);
        now
    };
    let write = |at: u64, bytes: Vec<u8>| {
        move |disk: &cowhand::Image, mirror: &mut Mirror| {
            mirror.write(at, &bytes);
            disk.write(at, &bytes).unwrap();
        }
    };
    let erase = |at: u64, len: u64, how: Erase| {
        let content = content.clone();
        move |disk: &cowhand::Image, mirror: &mut Mirror| {
            if how == Erase::Reveal {
                mirror.reveal(&content, at, len)
            } else {
                mirror.zero(at, len)
            }
            disk.erase(at, len, how).unwrap();
        }
    };
    let partial = |vhdx: &Vhdx, n: u64| matches!(vhdx.block_at(n), VhdxBlock::Partial(_));
    let full = |vhdx: &Vhdx, n: u64| matches!(vhdx.block_at(n), VhdxBlock::Full(_));
    let zero = |vhdx: &Vhdx, n: u64| matches!(vhdx.block_at(n), VhdxBlock::Zero(2));

    let now = step("a sector over data", &write(4096, vec![5; 512]));
    assert!(partial(&now, 0));
    assert_eq!(now.bits(0).iter().filter(|bit| **bit).count(), 1);
    let now = step("a whole block", &write(2 * MIB, vec![6; MIB as usize]));
    assert!(full(&now, 2));
    let now = step("zeros over all of a block that is partly here", &erase(0, MIB, Erase::Zero));
    assert!(zero(&now, 0));
    let now = step("data over a block of zeros", &write(MIB - 700, vec![7; 700]));
    assert!(full(&now, 0), "zeros around hide the parent");
    let now = step("a whole block uncovered", &erase(2 * MIB, MIB, Erase::Reveal));
    assert_eq!(now.block_at(2), VhdxBlock::NotPresent);
    let now = step("half a block uncovered", &erase(0, MIB / 2, Erase::Reveal));
    assert!(partial(&now, 0));
    let now = step("the other half, too", &erase(MIB / 2, MIB / 2, Erase::Reveal));
    assert!(
        matches!(now.block_at(0), VhdxBlock::NotPresent)
            || (partial(&now, 0) && now.bits(0).iter().all(|bit| !*bit))
    );
    let now = step("zeros over data of the parent", &erase(2 * MIB, MIB, Erase::Free));
    assert!(zero(&now, 2));
    let now = step("zeros over part of what the parent has", &erase(1000, 5000, Erase::Zero));
    assert!(partial(&now, 0));
    assert!(zero(&now, 2));
}

/// Children of three generations, read by 7-Zip.
#[test]
fn seven_zip_reads_them() {
    let Some(program) = seven_zip() else { return };
    let folder = temp();
    let (_, built) = built("shuffled", folder.path());
    let (parent, content) = built.top();
    let (mut parent, mut mirror) = (parent.to_owned(), content.clone());
    let mut rng = Rng::new(number("COWHAND_SEED", 1));
    for (generation, block) in ["1M", "2M", "1M"].into_iter().enumerate() {
        let child = parent.with_file_name(format!("child{generation}.avhdx"));
        child_of(&parent, &child, &format!("block_size={block}"), mirror.size());
        let disk = cowhand::open(&child, &writable()).unwrap();
        let below = mirror.clone();
        history(&disk, &mut mirror, Some(&below), 2 << 20, 12, &mut rng);
        disk.close().unwrap();
        drop(disk);
        mirror.assert_same(&vhdx_content(&child), "the judge");
        assert_seven_zip(program, &child, &mirror);
        parent = child;
    }
}
