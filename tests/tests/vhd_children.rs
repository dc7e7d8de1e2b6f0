//! Differencing disks that we make: what Windows, XenServer and 7-Zip look for in them, and what is written into them.

use std::path::{Path, PathBuf};

use cowhand::{Child, Erase, Lock, Open, Policy};
use cowhand_tests::{BuiltDisk, Layout, Rng, Vhd, for_all, options, temp, vhd_chain_layouts, vhd_content};

use crate::vhd_by_7zip::{by_seven_zip, seven_zip};
use crate::vhd_read::assert_content;
use crate::vhd_written::{assert_clean, history, number};

/// A parent that other programs made, its content, and where the child is to lie.
struct Case {
    parent: &'static str,
    child: &'static str,
    options: &'static str,
    /// Bytes that the child is longer.
    more: u64,
}

const CASES: &[Case] = &[
    Case { parent: "windows-over-dynamic", child: "new.vhd", options: "creator=win", more: 0 },
    Case { parent: "windows-over-fixed", child: "new.vhd", options: "creator=win", more: 4 << 20 },
    Case { parent: "xenserver-three-each-larger", child: "new.vhd", options: "creator=tap", more: 0 },
    Case { parent: "xenserver-on-raw", child: "new.vhd", options: "creator=tap", more: 6 << 20 },
    Case { parent: "windows-over-dynamic", child: "b\u{e4}r %20/new one.vhd", options: "", more: 512 },
    Case { parent: "w2ru-in-a-folder", child: "new.vhd", options: "creator=vbox", more: 0 },
    Case { parent: "small-blocks-child", child: "new.vhd", options: "creator=vpc", more: 0 },
    Case { parent: "blktap-0.1-child", child: "new.vhd", options: "creator=tap,block_size=512k", more: 0 },
];

pub(crate) fn built(name: &str, folder: &Path) -> BuiltDisk {
    let found: Vec<Layout> = vhd_chain_layouts().into_iter().filter(|layout| layout.name == name).collect();
    found[0].build(folder)
}

/// What stands in a child's file so that other programs find its parent and believe it.
pub(crate) fn assert_names_its_parent(child: &Path, parent: &Path) {
    let vhd = Vhd::open(child);
    assert_eq!(vhd.kind, 4, "type");
    assert_eq!(vhd.parent().unwrap(), parent.canonicalize().unwrap(), "the parent by the locators");
    let kept = vhd.kept();
    let (id, _, name) = kept.parent.unwrap();
    let is_vhd = parent.extension().is_some_and(|extension| extension == "vhd");
    let expected = if is_vhd { Vhd::open(parent).kept().id } else { [0; 16] };
    assert_eq!(id, expected, "the parent's id");
    assert_ne!(kept.id, expected, "an id of its own");
    assert_ne!(kept.id, [0; 16], "an id of its own");
    assert!(!name.is_empty(), "the parent's name");
    let text = |code: &str| {
        let found = kept.locators.iter().find(|(found, _)| found == code);
        found.unwrap_or_else(|| panic!("no locator {code} in {:?}", kept.locators)).1.clone()
    };
    // Windows takes a relative path only with its own separators and a dot in front.
    let relative = text("W2ru");
    assert!(relative.starts_with(".\\") || relative.starts_with("..\\"), "W2ru {relative:?}");
    assert!(!relative.contains('/'), "W2ru {relative:?}");
    text("W2ku");
    let url = text("MacX");
    assert!(url.starts_with("file://"), "MacX {url:?}");
}

#[test]
fn name_their_parents_and_hold_what_is_written() {
    let folder = temp();
    let first = number("COWHAND_SEED", 1);
    let seeds = first..first + number("COWHAND_VHD_ROUNDS", 1);
    let cases: Vec<(u64, &Case)> =
        seeds.flat_map(|seed| CASES.iter().map(move |case| (seed, case))).collect();
    for_all(
        &cases,
        |(seed, case)| format!("{} and {} with COWHAND_SEED={seed}", case.parent, case.options),
        |(seed, case)| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let built = built(case.parent, own.path());
            let (parent, content) = built.top();
            let child = parent.parent().unwrap().join(case.child);
            std::fs::create_dir_all(child.parent().unwrap()).unwrap();
            let size = content.len() as u64 + case.more;
            let how = Child {
                format: Some("vpc".to_owned()),
                options: options(case.options),
                size: Some(size),
                ..Child::default()
            };
            let made = cowhand::child(parent, &child, &how).unwrap();
            let mut mirror = content.to_vec();
            mirror.resize(made.size as usize, 0);
            assert!(made.size >= size && made.size < size + (1 << 20), "{} bytes for {size}", made.size);
            assert_eq!(made.depth, built.files.len() + 1);
            assert_names_its_parent(&child, parent);
            assert!(vhd_content(&child) == mirror, "a new child reads otherwise");

            let before = Vhd::open(&child).kept();
            let policy = Policy::Local; // one child lies in a folder of its own
            let how = Open { writable: true, lock: Lock::None, policy, ..Open::default() };
            let disk = cowhand::open(&child, &how).unwrap();
            history(&disk, &mut mirror, 2 << 20, 30, &mut Rng::new(*seed));
            disk.close().unwrap();
            drop(disk);
            let now = Vhd::open(&child);
            assert_eq!(now.kept(), before);
            now.assert_new_blocks_aligned(&[]);
            assert!(vhd_content(&child) == mirror, "the judge reads something else");
            assert_clean(&child);
            let found: Vec<PathBuf> = built.files.iter().map(|(path, _)| path.clone()).collect();
            for ((_, content), path) in built.files.iter().zip(&found) {
                let disk = cowhand::open(path, &Open::default()).unwrap();
                assert_content(&disk, content);
            }
        },
    );
}

/// A child's blocks are as large as its parent's, whatever else is said of it.
#[test]
fn blocks_as_large_as_the_parents() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    for (made, given, expected) in [
        ("block_size=512k", "", 512 << 10),
        ("block_size=8M", "creator=win", 8 << 20),
        ("block_size=8M", "block_size=1M", 1 << 20),
        ("subformat=fixed", "", 2 << 20),
        ("", "", 2 << 20),
    ] {
        let how = cowhand::Create { options: options(made), ..cowhand::Create::new("vpc", 40 << 20) };
        cowhand::create(&at("parent.vhd"), &how).unwrap();
        let how = Child { options: options(given), keep_empty: true, ..Child::default() };
        cowhand::child(&at("parent.vhd"), &at("child.vhd"), &how).unwrap();
        let child = cowhand::open(&at("child.vhd"), &Open::default()).unwrap();
        assert_eq!(child.top().layer.details().cluster_size, Some(expected), "{made} {given}");
    }
}

/// Children of three generations, by every creator, over what each of them can stand on, read by 7-Zip.
#[test]
fn seven_zip_reads_them() {
    let Some(program) = seven_zip() else { return };
    let folder = temp();
    let creators = ["win", "vbox", "cowh"];
    for_all(
        &creators,
        |creator| (*creator).to_owned(),
        |creator| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let built = built("windows-over-fixed", own.path());
            let (parent, content) = built.top();
            let (mut parent, mut mirror) = (parent.to_owned(), content.to_vec());
            let mut rng = Rng::new(number("COWHAND_SEED", 1));
            for generation in 0..3 {
                let child = parent.with_file_name(format!("child{generation}.vhd"));
                let how = Child {
                    format: Some("vpc".to_owned()),
                    options: options(&format!("creator={creator}")),
                    ..Child::default()
                };
                let made = cowhand::child(&parent, &child, &how).unwrap();
                mirror.resize(made.size as usize, 0);
                let disk = cowhand::open(&child, &Open { writable: true, ..Open::default() }).unwrap();
                // What the first test of a block's every alignment finds: whole, in part, zero over data.
                history(&disk, &mut mirror, 2 << 20, 12, &mut rng);
                disk.write(3 << 20, &[7; 1000]).unwrap();
                mirror[3 << 20..(3 << 20) + 1000].fill(7);
                disk.erase(512, 512 * 21, Erase::Zero).unwrap();
                mirror[512..512 * 22].fill(0);
                disk.close().unwrap();
                drop(disk);
                assert!(vhd_content(&child) == mirror, "the judge, generation {generation}");
                assert!(by_seven_zip(program, &child) == mirror, "7-Zip, generation {generation}");
                parent = child;
            }
        },
    );
}
