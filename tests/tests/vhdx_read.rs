//! Reading VHDX: files as every program lays them out, built by code that is not ours, and a reader that is not ours.

use std::path::Path;

use cowhand::{ErrorKind, Lock, Open, Parent};
use cowhand_tests::{
    BuiltVhdx, Mirror, Sample, Vhdx, VhdxHeaders, VhdxLayout, file_sha256, for_all, guest_sha256, qemu_img,
    samples, temp, try_qemu_img, vhdx_chain_layouts, vhdx_content, vhdx_dynamic_layouts, vhdx_fixed_layouts,
    vhdx_pend,
};

use crate::vhdx_written::assert_clean;

/// Opens for reading; foreign programs and the judge may look at the same time.
pub(crate) fn readable() -> Open {
    Open { lock: Lock::None, ..Open::default() }
}

fn all_layouts() -> Vec<VhdxLayout> {
    [vhdx_dynamic_layouts(), vhdx_fixed_layouts(), vhdx_chain_layouts()].into_iter().flatten().collect()
}

/// Opens the n-th file. Where its locator leads nowhere, that is said, and the parent is found in its folder.
fn opened(built: &BuiltVhdx, n: usize) -> cowhand::Opened {
    let (path, _) = &built.files[n];
    let found = cowhand::open(path, &readable());
    if ["relative-gone", "absolute-only"].contains(&built.name)
        && let Err(error) = &found
    {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("disks/base.vhdx"), "{error}");
        let folder = path.parent().unwrap().to_owned();
        return cowhand::open(path, &Open { search: vec![folder], ..readable() }).unwrap();
    }
    found.unwrap()
}

#[test]
fn everything_built_is_read() {
    let folder = temp();
    for_all(
        &all_layouts(),
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            for (n, (path, content)) in built.files.iter().enumerate() {
                let before = file_sha256_if_short(path);
                content.assert_disk(&opened(&built, n));
                assert_eq!(file_sha256_if_short(path), before, "reading changed the file");
            }
            let file = layout.top();
            let damaged = file.bad_table.is_some() || matches!(file.headers, VhdxHeaders::Damaged(_));
            if layout.has_a_way() && !damaged {
                assert_clean(built.top().0);
            }
            // The judge reads what the builder wrote: each of the two tests the other.
            let (top, content) = built.top();
            if layout.has_a_way() {
                content.assert_same(&vhdx_content(top), "the judge");
            }
        },
    );
}

/// A file's hash, where that does not take too long; else its length and time.
fn file_sha256_if_short(path: &Path) -> String {
    let metadata = path.metadata().unwrap();
    if metadata.len() < 100 << 20 {
        return file_sha256(path);
    }
    format!("{} bytes, {:?}", metadata.len(), metadata.modified().unwrap())
}

/// `qemu-img` reads the same, of what it can open: no parents, sectors of 512 bytes alone, and never the second region
/// table.
#[test]
fn qemu_reads_what_was_built() {
    let folder = temp();
    let layouts: Vec<VhdxLayout> =
        [vhdx_dynamic_layouts(), vhdx_fixed_layouts()].into_iter().flatten().collect();
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let file = layout.top();
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let info = try_qemu_img(["info", "-f", "vhdx", top.to_str().unwrap()]);
            let refused = file.sectors.0 != 512 || file.bad_table == Some(0) || file.cut || file.size == 0;
            if !info.ok() {
                assert!(refused, "qemu-img: {}", info.err);
                return;
            }
            if refused {
                eprintln!("qemu-img got better: it opens {}", layout.name);
            }
            qemu_agrees(top, content);
        },
    );
}

/// Panics unless `qemu-img` reads the same.
pub(crate) fn qemu_agrees(top: &Path, content: &Mirror) {
    let raw = top.with_extension("mirror");
    content.save(&raw);
    // What is empty of a large disk takes it seconds: it does not know which blocks are.
    if content.size() < 2 << 30 {
        qemu_img(["compare", "-f", "raw", "-F", "vhdx", raw.to_str().unwrap(), top.to_str().unwrap()]);
    }
    std::fs::remove_file(raw).unwrap();
}

/// The parent of a file that says another is the one that was given, whatever its format.
#[test]
fn over_a_parent_of_another_format() {
    let folder = temp();
    let layouts = vhdx_chain_layouts();
    let layout = layouts.iter().find(|layout| layout.name == "windows-child").unwrap();
    let built = layout.build(folder.path());
    let (top, content) = built.top();
    let raw = folder.path().join("base.raw");
    built.files[0].1.save(&raw);
    let how = Open { parent: Parent::Given(raw), any_parent: true, ..readable() };
    content.assert_disk(&cowhand::open(top, &how).unwrap());
}

/// A child whose table and whose sector bitmap are only in its log.
#[test]
fn a_childs_bitmap_comes_from_the_log() {
    let folder = temp();
    let layouts = vhdx_chain_layouts();
    for name in ["windows-child", "child-chunks"] {
        let layout = layouts.iter().find(|layout| layout.name == name).unwrap();
        let built = layout.build(folder.path());
        let (top, content) = built.top();
        vhdx_pend(top, built.places, |p| {
            let right = [p.hide(p.places.bitmap), p.hide(p.bat(0))];
            let wrong = p.wrong(p.places.bitmap);
            let first = p.ring.entry(None, &[wrong]);
            p.ring.entry(Some(first), &right);
        });
        let before = file_sha256_if_short(top);
        content.assert_same(&vhdx_content(top), "the judge");
        content.assert_disk(&cowhand::open(top, &readable()).unwrap());
        assert_eq!(file_sha256_if_short(top), before, "reading changed the file");
    }
}

/// The locators of a file that was never a child's, and a parent of other sectors: what must be refused is.
#[test]
fn wrong_parents_are_refused() {
    let folder = temp();
    let layouts = vhdx_chain_layouts();
    let layout = layouts.iter().find(|layout| layout.name == "windows-child").unwrap();
    let built = layout.build(folder.path());
    let (top, content) = built.top();
    let parent = &built.files[0].0;
    let mut other = layout.files[0].1.clone();
    other.ids[1] = [3; 16];
    other.build(parent, &Mirror::default());
    let error = cowhand::open(top, &readable()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    content.assert_disk(&cowhand::open(top, &Open { any_parent: true, ..readable() }).unwrap());
}

fn real() -> Vec<Sample> {
    samples().into_iter().filter(|sample| sample.format == "vhdx").collect()
}

/// The judge itself, on real files.
#[test]
fn the_judge_reads_real_files() {
    for sample in real() {
        Vhdx::open(&sample.file);
        if sample.virtual_size.is_some_and(|size| size > 2 << 30) || sample.sha256_guest.is_empty() {
            continue;
        }
        if sample.path.contains("dfvfs/fat-differential") {
            // Its relative path is right, and the parent lies beside it.
            assert!(Vhdx::open(&sample.file).parent().is_some());
        }
        let content = vhdx_content(&sample.file);
        let disk = cowhand::open(&sample.file, &readable()).unwrap();
        content.assert_disk(&disk);
        if disk.size() <= 1 << 28 {
            assert_eq!(guest_sha256(&disk).unwrap(), sample.sha256_guest, "{}", sample.path);
        }
    }
}
