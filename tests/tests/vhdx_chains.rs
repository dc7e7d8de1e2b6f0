//! Chains of VHDX files and of mixed formats: read as one disk, found again when they were moved, committed, merged.

use std::path::{Path, PathBuf};

use cowhand::{
    Child, Commit, Convert, Create, Dd, DdInput, DdOutput, ErrorKind, Flatten, Lock, Merge, Open, Parent,
    ParentState, Quiet, Rebase, Reconnect, Sectors,
};
use cowhand_tests::{Rng, file_sha256, for_all, guest_sha256, options, qemu_img, samples, temp};

use crate::layers::{assert_same, chain, child, content, copied, create, open, scribble, writable};

const M: usize = 1 << 20;

/// The file alone, though somebody writes to it.
fn alone(path: &Path) -> cowhand::Opened {
    let how = Open { parent: Parent::Ignored, lock: Lock::None, ..Open::default() };
    cowhand::open(path, &how).unwrap()
}

/// What the image remembers of its parent.
fn expected(path: &Path) -> Vec<[u8; 16]> {
    alone(path).top().layer.parent().unwrap().expected
}

fn names(path: &Path) -> Vec<PathBuf> {
    alone(path).top().layer.parent().unwrap().candidates
}

fn id(path: &Path) -> [u8; 16] {
    alone(path).top().layer.identity().0.unwrap()
}

#[test]
fn thirty_layers_are_one_disk() {
    let folder = temp();
    let cases: [(&str, &[&str]); 3] = [
        ("block_size=2m", &["block_size=1m", "block_size=4m", "block_size=32m", ""]),
        ("subformat=fixed", &["block_size=1m"]),
        ("logical_sector_size=4096", &["block_size=1m", "block_size=8m"]),
    ];
    for (case, (base, children)) in cases.into_iter().enumerate() {
        let folder = folder.path().join(case.to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut layers = vec![("vhdx", base)];
        layers.extend((1..30).map(|n| ("vhdx", children[n % children.len()])));
        let (paths, model) = chain(&folder, &layers, 5 * M, case as u64);
        let top = open(&paths[29]);
        assert_eq!(top.links().len(), 30);
        assert_same(&content(&top), &model, base);
        let sectors: Vec<u32> = top.links().iter().map(|link| link.layer.sector()).collect();
        assert!(sectors.iter().all(|sector| *sector == if case == 2 { 4096 } else { 512 }), "{sectors:?}");
        drop(top);
        let flat = folder.join("flat.vhdx");
        let how = Flatten { target: Some(flat.clone()), ..Flatten::default() };
        cowhand::flatten(&paths[29], &how, &Quiet).unwrap();
        assert_same(&content(&open(&flat)), &model, "flat");
        if case < 2 {
            qemu_img(["check", flat.to_str().unwrap()]);
        }
        let [tree] = cowhand::chain(&paths, &Open::default()).try_into().unwrap();
        assert!(tree.is_whole() && tree.children.len() == 1);
    }
}

#[test]
fn other_formats_stand_on_a_vhdx() {
    let folder = temp();
    let layers =
        [("vhdx", ""), ("qcow2", ""), ("vpc", ""), ("qcow2", "cluster_size=4k"), ("vpc", "block_size=512k")];
    let (paths, model) = chain(folder.path(), &layers, 3 * M, 5);
    assert_same(&content(&open(&paths[4])), &model, "mixed");
    // A VHDX names a VHDX, and nothing else.
    let how = Child { format: Some("vhdx".to_owned()), keep_empty: true, ..Child::default() };
    for parent in [&paths[1], &paths[2]] {
        let no = folder.path().join("no.vhdx");
        let error = cowhand::child(parent, &no, &how).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(!no.exists(), "{error}");
    }
}

/// The parent's bytes in a file of another format, named by the caller, are as good as the parent.
#[test]
fn a_child_reads_over_a_parent_of_any_format_that_is_named() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vhdx", ""), ("vhdx", "")], 3 * M, 6);
    let [base, top] = paths.as_slice() else { panic!() };
    for format in ["raw", "qcow2"] {
        let copy = folder.path().join(format!("copy.{format}"));
        cowhand::convert(&Convert::new([base], &copy), &Quiet).unwrap();
        let given = Open { parent: Parent::Given(copy.clone()), ..Open::default() };
        assert_same(&content(&cowhand::open(top, &given).unwrap()), &model, format);
        let how = Reconnect { parent: Some(copy.clone()), ..Reconnect::default() };
        let error = cowhand::reconnect_parent(top, &how).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        // It takes what the child holds, as the parent would.
        let down = Commit { open: given.clone(), keep: true, ..Commit::default() };
        cowhand::commit(top, &down, &Quiet).unwrap();
        assert_same(&content(&open(&copy)), &model, format);
    }
    // One that has an identity must have the right one.
    let copy = folder.path().join("copy.vhdx");
    cowhand::convert(&Convert::new([base], &copy), &Quiet).unwrap();
    let given = Open { parent: Parent::Given(copy.clone()), ..Open::default() };
    let error = cowhand::open(top, &given).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.to_string().contains("--any-parent"), "{error}");
    let trusting = Open { any_parent: true, ..given };
    assert_same(&content(&cowhand::open(top, &trusting).unwrap()), &model, "whatever its identity");
}

/// While a merge goes on, a child takes its parent for the one it was and for the one it will be.
#[test]
fn both_linkages_count() {
    let folder = temp();
    let (paths, mut model) = chain(folder.path(), &[("vhdx", ""), ("vhdx", "")], 2 * M, 8);
    let [base, top] = paths.as_slice() else { panic!() };
    let alone = Open { writable: true, parent: Parent::Ignored, ..Open::default() };
    let before = id(base);
    let image = writable(base);
    let next = image.top().layer.next_identity().unwrap().unwrap();
    assert_eq!(image.top().layer.identity().0, Some(before));
    let told = cowhand::open(top, &alone).unwrap();
    told.top().layer.expect_parent(next).unwrap();
    told.close().unwrap();
    drop(told);
    assert_eq!(expected(top), [before, next]);
    image.close().unwrap();
    drop(image);
    assert_same(&content(&open(top)), &model, "the parent is as it was");
    // Another session takes another identity, which nobody was told of.
    scribble(base, &mut model, &mut Rng::new(1), 1);
    let error = cowhand::open(top, &Open::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    let image = writable(base);
    let (now, next) = (id(base), image.top().layer.next_identity().unwrap().unwrap());
    for (linkage, second) in [(now, [9; 16]), ([9; 16], now), (now, next)] {
        let told = cowhand::open(top, &alone).unwrap();
        let parent = told.top().layer.parent().unwrap();
        told.top().layer.set_parent(Some(&cowhand::ParentRef { expected: vec![linkage], ..parent })).unwrap();
        told.top().layer.expect_parent(second).unwrap();
        told.close().unwrap();
        drop(told);
        assert_eq!(expected(top), [linkage, second]);
        let how = Open { lock: Lock::None, ..Open::default() };
        assert_eq!(cowhand::open(top, &how).unwrap().links().len(), 2);
    }
    image.write(0, &[1; 4096]).unwrap();
    image.close().unwrap();
    drop(image);
    assert_eq!(id(base), next);
    assert_eq!(open(top).links().len(), 2);
}

#[test]
fn a_commit_tells_the_child_what_becomes_of_its_parent() {
    for keep in [false, true] {
        let folder = temp();
        let layers = [("vhdx", "block_size=1m"), ("vhdx", "block_size=2m")];
        let (paths, model) = chain(folder.path(), &layers, 4 * M, 11);
        let [base, top] = paths.as_slice() else { panic!() };
        let sibling = folder.path().join("sibling.avhdx");
        child(base, &sibling, "vhdx", "");
        let before = id(base);
        let how = Commit { keep, ..Commit::default() };
        let done = cowhand::commit(top, &how, &Quiet).unwrap();
        assert!(done.moved > 0 && done.emptied != keep, "{done:?}");
        let others: Vec<_> = done.others.iter().map(|other| (other.image.as_path(), &other.parent)).collect();
        assert_eq!(others, [(sibling.as_path(), base)]);
        assert_ne!(id(base), before);
        assert_eq!(expected(top), [id(base)]);
        assert_same(&content(&open(base)), &model, "the base");
        assert_same(&content(&open(top)), &model, "the top");
        assert_eq!(cowhand::open(&sibling, &Open::default()).unwrap_err().kind(), ErrorKind::Mismatch);
        let again = cowhand::commit(top, &how, &Quiet).unwrap();
        assert_eq!((again.moved, again.others.len()), (0, 0), "{again:?}");
        assert_same(&content(&open(top)), &model, "again");
    }
}

/// A child that knows its parent by its name alone is not written to.
#[test]
fn a_child_that_goes_by_the_name_stays_byte_for_byte() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vhdx", ""), ("qcow2", "")], 3 * M, 12);
    let [base, top] = paths.as_slice() else { panic!() };
    let before = file_sha256(top);
    cowhand::commit(top, &Commit { keep: true, ..Commit::default() }, &Quiet).unwrap();
    assert_eq!(file_sha256(top), before);
    assert_same(&content(&open(base)), &model, "the base");
    // One that remembers a single identity is told the new one.
    let (paths, model) = {
        let other = folder.path().join("other");
        std::fs::create_dir(&other).unwrap();
        chain(&other, &[("vhdx", ""), ("vpc", "")], 3 * M, 13)
    };
    let [base, top] = paths.as_slice() else { panic!() };
    cowhand::commit(top, &Commit { keep: true, ..Commit::default() }, &Quiet).unwrap();
    assert_eq!(expected(top), [id(base)]);
    assert_same(&content(&open(top)), &model, "the top");
}

#[test]
fn a_merge_of_random_layers_reads_the_same() {
    let cases = [
        ["vhdx", "vhdx", "vhdx"],
        ["vhdx", "vhdx", "qcow2"],
        ["vhdx", "qcow2", "vpc"],
        ["vhdx", "vpc", "qcow2"],
    ];
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |formats| {
            for into in [false, true] {
                let folder = temp();
                let layers = formats.map(|format| (format, ""));
                let (paths, model) = chain(folder.path(), &layers, 3 * M, 21);
                let [base, middle, top] = paths.as_slice() else { panic!() };
                if into {
                    let how = Merge { base: Some(base.clone()), ..Merge::default() };
                    cowhand::merge(top, &how, &Quiet).unwrap();
                    assert_same(&content(&open(top)), &model, "the top");
                    assert_same(&content(&open(base)), &model, "the base");
                    continue;
                }
                let how = Merge { children: vec![top.clone()], delete: true, ..Merge::default() };
                cowhand::merge(middle, &how, &Quiet).unwrap();
                assert!(!middle.exists());
                let disk = open(top);
                assert_eq!(disk.links().len(), 2);
                assert_same(&content(&disk), &model, "the child of the one that is gone");
                drop(disk);
                cowhand::merge(top, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
                assert_same(&content(&open(base)), &model, "the base");
            }
        },
    );
}

/// A run that was stopped between the children's new parent and the image's end is finished by another.
#[test]
fn a_merge_whose_children_came_over_is_finished() {
    for format in ["vhdx", "qcow2"] {
        let folder = temp();
        let (paths, model) = chain(folder.path(), &[(format, ""); 3], 2 * M, 31);
        let [base, middle, top] = paths.as_slice() else { panic!() };
        let stays = Merge { children: vec![top.clone()], ..Merge::default() };
        cowhand::merge(middle, &stays, &Quiet).unwrap();
        assert_eq!(open(top).links().len(), 2);
        let done = cowhand::merge(middle, &Merge { delete: true, ..stays.clone() }, &Quiet).unwrap();
        assert_eq!((done.moved, done.deleted), (0, true), "{format}");
        assert_same(&content(&open(top)), &model, "the top");
        // One that stood on the parent all the time is none of the image's children.
        let other = folder.path().join("other");
        child(base, &other, "qcow2", "");
        let third = folder.path().join("third");
        child(base, &third, "qcow2", "");
        let image = writable(&third);
        image.write(0, &[7; 512]).unwrap();
        image.close().unwrap();
        drop(image);
        let how = Merge { children: vec![other], ..Merge::default() };
        let error = cowhand::merge(&third, &how, &Quiet).unwrap_err();
        assert!(error.to_string().contains("does not stand on"), "{error}");
    }
}

#[test]
fn stray_checkpoints_are_found_by_their_linkage_and_reconnected() {
    let folder = temp();
    let (home, stray) = (folder.path().join("home"), folder.path().join("stray"));
    std::fs::create_dir(&home).unwrap();
    std::fs::create_dir(&stray).unwrap();
    let (paths, model) = chain(&home, &[("vhdx", "block_size=1m"); 12], 2 * M, 7);
    for (index, path) in paths[..11].iter().enumerate() {
        std::fs::rename(path, stray.join(format!("{}.avhdx", index * 7919 % 101))).unwrap();
    }
    let top = &paths[11];
    let error = cowhand::open(top, &Open::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("layer-10.vhdx") && error.to_string().contains("--search-dir"),
        "{error}"
    );
    let search = Open { search: vec![stray.clone()], ..Open::default() };
    let before = file_sha256(top);
    assert_same(&content(&cowhand::open(top, &search).unwrap()), &model, "found by linkage");
    assert_eq!(file_sha256(top), before, "reading wrote something");
    let info = cowhand::info_with_parent(top, &Open::default()).unwrap();
    assert!(
        matches!(&info.parent_state, ParentState::Lost(why) if why.contains("layer-10.vhdx")),
        "{info:?}"
    );
    let info = cowhand::info_with_parent(top, &search).unwrap();
    let found = stray.join(format!("{}.avhdx", 10 * 7919 % 101));
    assert_eq!(info.parent_state, ParentState::Found(found));
    let how = Reconnect { open: search, chain: true, ..Reconnect::default() };
    assert_eq!(cowhand::reconnect_parent(top, &how).unwrap().len(), 11);
    let local = Open { policy: cowhand::Policy::Local, ..Open::default() };
    assert_same(&content(&cowhand::open(top, &local).unwrap()), &model, "reconnected");
}

/// A parent that was found, though not where its child says, is written down by who writes to the child.
#[test]
fn stale_names_are_written_anew() {
    for (format, how) in [("vhdx", ""), ("vpc", "force_size=on")] {
        let folder = temp();
        let (paths, model) = chain(folder.path(), &[(format, how), (format, "")], 2 * M, 9);
        let [base, top] = paths.as_slice() else { panic!() };
        let away = folder.path().join("away");
        std::fs::create_dir(&away).unwrap();
        let moved = away.join("moved.vhdx");
        std::fs::rename(base, &moved).unwrap();
        let search = Open { writable: true, search: vec![away.clone()], ..Open::default() };
        let before = file_sha256(top);
        let stays = |how: &Open| {
            drop(cowhand::open(top, how).unwrap());
            assert_eq!(names(top)[0], base.file_name().unwrap());
        };
        // Not by who only reads, nor where the caller does not care which one it is.
        stays(&Open { writable: false, ..search.clone() });
        stays(&Open { parent: Parent::Given(moved.clone()), ..search.clone() });
        assert_eq!(file_sha256(top), before);
        stays(&Open { any_parent: true, ..search.clone() });
        let disk = cowhand::open(top, &search).unwrap();
        disk.close().unwrap();
        drop(disk);
        if format == "vpc" {
            // No rule of that format wants it, so Windows' names stay until they are reconnected.
            assert_eq!(names(top)[0], base.file_name().unwrap());
            continue;
        }
        assert_eq!(names(top)[0], Path::new("away/moved.vhdx"), "{format}");
        assert_same(&content(&open(top)), &model, format);
        // What may not be opened might be the right one: nothing is known to be stale.
        let outside = temp();
        let far = outside.path().join("far.vhdx");
        std::fs::rename(&moved, &far).unwrap();
        let search = Open { search: vec![outside.path().to_owned()], ..search };
        drop(cowhand::open(top, &search).unwrap());
        let now = names(top);
        assert!(now[0].starts_with(".."), "{now:?}");
        drop(cowhand::open(top, &search).unwrap());
        assert_eq!(names(top), now, "{format}: beyond the policy, and right");
    }
}

/// Who writes to a child through a link to it leaves its names as the child's own folder sees them.
#[test]
fn a_link_to_a_child_leaves_its_names() {
    for (format, how) in [("vhdx", ""), ("vpc", "force_size=on")] {
        let folder = temp();
        let own = folder.path().join("own");
        let links = folder.path().join("some/links");
        std::fs::create_dir(&own).unwrap();
        std::fs::create_dir_all(&links).unwrap();
        let (paths, model) = chain(&own, &[(format, how), (format, "")], 2 * M, 14);
        let [base, top] = paths.as_slice() else { panic!() };
        let link = links.join("link");
        std::os::unix::fs::symlink(top, &link).unwrap();
        let any = Open { policy: cowhand::Policy::Local, ..Open::default() };
        let disk = cowhand::open(&link, &Open { writable: true, ..any.clone() }).unwrap();
        disk.close().unwrap();
        drop(disk);
        assert_eq!(names(top)[0], Path::new(base.file_name().unwrap()), "{format}");
        cowhand::commit(&link, &Commit { open: any, ..Commit::default() }, &Quiet).unwrap();
        assert_eq!(names(top)[0], Path::new(base.file_name().unwrap()), "{format}");
        let moved = folder.path().join("moved");
        std::fs::rename(&own, &moved).unwrap();
        assert_same(&content(&open(&moved.join(top.file_name().unwrap()))), &model, format);
    }
}

/// A change of the names is no change of the content: who stands on the image still knows it.
#[test]
fn a_new_name_for_the_parent_keeps_the_identity() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vhdx", ""); 3], 2 * M, 10);
    let [base, middle, top] = paths.as_slice() else { panic!() };
    let before = id(middle);
    let moved = folder.path().join("renamed.vhdx");
    std::fs::rename(base, &moved).unwrap();
    let how = Reconnect { parent: Some(moved.clone()), ..Reconnect::default() };
    cowhand::reconnect_parent(middle, &how).unwrap();
    assert_eq!(id(middle), before);
    assert_same(&content(&open(top)), &model, "the top");
    let over = Rebase {
        backing: Some("renamed.vhdx".into()),
        backing_format: Some("vhdx".to_owned()),
        ..Rebase::default()
    };
    cowhand::rebase(top, &over, &Quiet).unwrap();
    assert_eq!(expected(top), [id(&moved)]);
    assert_same(&content(&open(top)), &model, "rebased");
}

/// Real chains: the parent has the chain's hash once its child was merged into it.
#[test]
fn real_checkpoints_are_merged_and_reconnected() {
    for name in ["fat-differential.vhdx", "ovm-diff1-512.avhdx"] {
        let all = samples();
        let Some(sample) = all.iter().find(|sample| sample.path.ends_with(name)) else {
            assert!(all.is_empty(), "no sample {name}");
            return;
        };
        let hash = &sample.sha256_guest;
        let folder = temp();
        let [child, parent] = copied(sample, folder.path());
        let away = folder.path().join("away");
        std::fs::create_dir(&away).unwrap();
        let moved = away.join("moved.vhdx");
        std::fs::rename(&parent, &moved).unwrap();
        let error = cowhand::open(&child, &Open::default()).unwrap_err();
        assert!(error.to_string().contains(&sample.parent), "{error}");
        let search = Open { search: vec![away.clone()], ..Open::default() };
        assert_eq!(cowhand::open(&child, &search).unwrap().links().len(), 2, "{name}");
        let how = Reconnect { open: search, ..Reconnect::default() };
        cowhand::reconnect_parent(&child, &how).unwrap();
        let same = |a: &Path, b: &Path| {
            let found = cowhand::compare(&open(a), &open(b), false, &Quiet).unwrap();
            assert_eq!(found.difference, None, "{name}: {} and {}", a.display(), b.display());
        };
        let before = folder.path().join("before.qcow2");
        cowhand::convert(&Convert::new([&child], &before), &Quiet).unwrap();
        let kept = cowhand::merge(&child, &Merge::default(), &Quiet).unwrap();
        assert!(kept.moved > 0 && kept.sectors.is_none(), "{kept:?}");
        same(&child, &before);
        assert_eq!(&guest_sha256(&open(&moved)).unwrap(), hash, "{name}, merged");
        cowhand::merge(&child, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
        assert!(!child.exists());
        qemu_img(["check", moved.to_str().unwrap()]);
        qemu_img(["compare", moved.to_str().unwrap(), before.to_str().unwrap()]);
    }
}

#[test]
fn a_longer_child_reads_zero_behind_its_parents_end() {
    let folder = temp();
    let (base, top) = (folder.path().join("base.vhdx"), folder.path().join("top.vhdx"));
    create(&base, "vhdx", "block_size=2m", 3 * M);
    let mut rng = Rng::new(9);
    let mut model = vec![0; 3 * M];
    scribble(&base, &mut model, &mut rng, 10);
    let longer = Child { size: Some(9 * M as u64), ..Child::default() };
    cowhand::child(&base, &top, &longer).unwrap();
    model.resize(9 * M, 0);
    assert_same(&content(&open(&top)), &model, "longer");
    scribble(&top, &mut model, &mut rng, 20);
    assert_same(&content(&open(&top)), &model, "written");
    // Down into one of another format, and into its own: each becomes longer.
    let flat = folder.path().join("flat.qcow2");
    cowhand::convert(&Convert::new([&base], &flat), &Quiet).unwrap();
    let given = Open { parent: Parent::Given(flat.clone()), ..Open::default() };
    cowhand::merge(&top, &Merge { open: given, ..Merge::default() }, &Quiet).unwrap();
    assert_same(&content(&open(&flat)), &model, "grown");
    cowhand::merge(&top, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
    assert_same(&content(&open(&base)), &model, "grown too");
}

#[test]
fn other_sectors_are_said() {
    let folder = temp();
    let path = |name: &str| folder.path().join(name);
    let (base, told) = (path("base.vhdx"), Some(Sectors { from: 4096, to: 512 }));
    create(&base, "vhdx", "logical_sector_size=4096", 2 * M);
    let mut model = vec![0; 2 * M];
    scribble(&base, &mut model, &mut Rng::new(2), 5);
    let convert = |to: &str, how: &str| {
        let how = Convert { options: options(how), ..Convert::new([&base], path(to)) };
        cowhand::convert(&how, &Quiet).unwrap().sectors
    };
    assert_eq!(convert("a.raw", ""), told);
    assert_eq!(convert("a.vhdx", ""), None, "they are taken over");
    assert_eq!(open(&path("a.vhdx")).top().layer.sector(), 4096);
    assert_eq!(convert("b.vhdx", "logical_sector_size=512"), told);
    assert_eq!(open(&path("b.vhdx")).top().layer.sector(), 512);
    let text = told.unwrap().to_string();
    assert!(text.contains("4096") && text.contains("partition"), "{text}");
    // Over a parent, and down into one.
    let over = path("over.qcow2");
    let made = cowhand::child(&base, &over, &Child::default()).unwrap();
    assert_eq!(made.sectors, told);
    let own = cowhand::child(&base, &path("own.vhdx"), &Child::default()).unwrap();
    assert_eq!(own.sectors, None);
    let alone = Create { options: options("logical_sector_size=512"), size: None, ..Create::new("vhdx", 0) };
    let wrong = Create { backing: Some(base.clone()), backing_format: Some("vhdx".to_owned()), ..alone };
    let error = cowhand::create(&path("wrong.vhdx"), &wrong).unwrap_err();
    assert!(error.to_string().contains("sector"), "{error}");
    let image = writable(&over);
    image.write(0, &[5; 512]).unwrap();
    image.close().unwrap();
    drop(image);
    let done = cowhand::commit(&over, &Commit { keep: true, ..Commit::default() }, &Quiet).unwrap();
    assert_eq!(done.sectors, Some(Sectors { from: 512, to: 4096 }));
    let rebase = Rebase {
        backing: Some(path("b.vhdx")),
        backing_format: Some("vhdx".to_owned()),
        ..Rebase::default()
    };
    assert_eq!(cowhand::rebase(&over, &rebase, &Quiet).unwrap().sectors, None);
    let rebase = Rebase { backing: Some(path("a.vhdx")), ..rebase };
    assert_eq!(cowhand::rebase(&over, &rebase, &Quiet).unwrap().sectors, told);
    let dd = |to: &str, format: &str| {
        let (to, how) = (path(to), Dd { format: format.to_owned(), ..Dd::default() });
        cowhand::dd(DdInput::Image(&base), DdOutput::Image(&to), &how, &Quiet).unwrap().sectors
    };
    assert_eq!([dd("d.raw", "raw"), dd("d.vhdx", "vhdx")], [told, None]);
}
