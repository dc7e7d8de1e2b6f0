//! Chains of VHD files and of mixed formats: read as one disk, found again when they were moved, reconnected, merged.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cowhand::{Child, ErrorKind, Kind, Merge, Open, Parent, Quiet, Reconnect};
use cowhand_tests::{Rng, file_sha256, for_all, guest_sha256, samples, temp};

use crate::layers::{assert_same, chain, child, content, copied, create, open, scribble, writable};

const K: usize = 1 << 10;
const M: usize = 1 << 20;

#[test]
fn thirty_layers_of_mixed_formats_are_one_disk() {
    let folder = temp();
    for (case, base) in
        [("raw", ""), ("vpc", "force_size=on"), ("vpc", "subformat=fixed,force_size=on"), ("qcow2", "")]
            .into_iter()
            .enumerate()
    {
        let folder = folder.path().join(case.to_string());
        std::fs::create_dir(&folder).unwrap();
        let mut formats = vec![base];
        formats.extend((1..30).map(|n| [("vpc", ""), ("vpc", ""), ("qcow2", "")][n % 3]));
        let (paths, model) = chain(&folder, &formats, 5 * M + 512, case as u64);
        let top = open(&paths[29]);
        assert_eq!(top.links().len(), 30);
        assert_same(&content(&top), &model, "the chain");
        drop(top);
        let limit = Child { limit: Some(30), ..Child::default() };
        let error = cowhand::child(&paths[29], &folder.join("no.vhd"), &limit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChainTooLong, "{error}");
        // What each says of itself.
        let infos = cowhand::info(&paths[29], &Open::default(), true).unwrap();
        for (info, (format, _)) in infos.iter().rev().zip(&formats) {
            assert_eq!((info.format, info.virtual_size), (*format, 5 * M as u64 + 512), "{}", info.filename);
        }
        let [tree] = cowhand::chain(&paths, &Open::default()).try_into().unwrap();
        assert!(tree.is_whole() && tree.children.len() == 1);
    }
}

#[test]
fn a_child_inherits_what_its_parent_is() {
    let folder = temp();
    let parent = folder.path().join("parent.vhd");
    create(&parent, "vpc", "force_size=on,block_size=512k", 3 * M + 512);
    let empty = folder.path().join("empty.avhd");
    let made = cowhand::child(&parent, &empty, &Child::default()).unwrap();
    assert_eq!((made.size, made.format, made.depth), (3 * M as u64 + 512, "vpc", 2));
    assert_eq!(open(&empty).top().layer.details().cluster_size, Some(512 << 10));
    // An empty parent is passed over.
    let top = folder.path().join("top.avhd");
    let made = cowhand::child(&empty, &top, &Child::default()).unwrap();
    assert_eq!((made.depth, made.parent), (2, parent.clone()));
    let stated = open(&top).top().layer.parent().unwrap();
    assert_eq!(stated.candidates[0], Path::new("parent.vhd"), "folders are moved as a whole");
    assert_eq!(stated.expected, [open(&parent).top().layer.identity().0.unwrap()]);
    let whole = std::fs::canonicalize(&parent).unwrap();
    assert!(stated.candidates.contains(&whole), "{stated:?}");
    let modified = std::fs::metadata(&parent).unwrap().mtime();
    let noted = stated.modified.unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(noted.as_secs() as i64, modified);
}

/// Thirty checkpoints in a folder, each under a name that nobody knows.
#[test]
fn stray_checkpoints_are_found_by_their_identity_and_reconnected() {
    let folder = temp();
    let (home, stray) = (folder.path().join("home"), folder.path().join("stray"));
    std::fs::create_dir(&home).unwrap();
    std::fs::create_dir(&stray).unwrap();
    let mut formats = vec![("vpc", "force_size=on")];
    formats.extend([("vpc", ""); 29]);
    let (paths, model) = chain(&home, &formats, 2 * M, 7);
    for (index, path) in paths[..29].iter().enumerate() {
        std::fs::rename(path, stray.join(format!("{}.avhd", index * 7919 % 101))).unwrap();
    }
    std::fs::write(stray.join("notes.txt"), "conectix").unwrap();
    let top = &paths[29];
    let error = cowhand::open(top, &Open::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("--search-dir"), "{error}");
    let search = Open { search: vec![home.clone(), stray.clone()], ..Open::default() };
    let before = file_sha256(top);
    let began = Instant::now();
    let found = cowhand::open(top, &search).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_same(&content(&found), &model, "found by identity");
    drop(found);
    assert_eq!(file_sha256(top), before, "reading wrote something");

    let how = Reconnect { open: search, chain: true, ..Reconnect::default() };
    assert_eq!(cowhand::reconnect_parent(top, &how).unwrap().len(), 29);
    let local = Open { policy: cowhand::Policy::Local, ..Open::default() };
    assert_same(&content(&cowhand::open(top, &local).unwrap()), &model, "reconnected");
    // And back, one at a time: all that is above the base stays where it is.
    let base = stray.join("0.avhd");
    std::fs::rename(&base, stray.join("base.vhd")).unwrap();
    assert_eq!(cowhand::open(top, &local).unwrap_err().kind(), ErrorKind::NotFound);
    let second = stray.join(format!("{}.avhd", 7919 % 101));
    let how = Reconnect { parent: Some(stray.join("base.vhd")), ..Reconnect::default() };
    let done = cowhand::reconnect_parent(&second, &how).unwrap();
    assert_eq!(done[0].parent, Path::new("base.vhd"));
    assert_same(&content(&cowhand::open(top, &local).unwrap()), &model, "reconnected again");
}

#[test]
fn of_several_with_one_identity_the_name_decides() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vpc", "force_size=on"), ("vpc", "")], M, 1);
    let [base, top] = paths.as_slice() else { panic!() };
    let away = folder.path().join("away");
    std::fs::create_dir(&away).unwrap();
    for copy in ["a.vhd", "b.vhd"] {
        std::fs::copy(base, away.join(copy)).unwrap();
    }
    let search = Open { search: vec![away.clone()], ..Open::default() };
    let original = away.join("LAYER-0.vpc");
    std::fs::rename(base, &original).unwrap();
    assert_same(&content(&cowhand::open(top, &search).unwrap()), &model, "the one with the name");
    std::fs::rename(&original, away.join("c.vhd")).unwrap();
    let error = cowhand::open(top, &search).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous);
    for name in ["a.vhd", "b.vhd", "c.vhd", "--parent"] {
        assert!(error.to_string().contains(name), "{error}");
    }
    // Another image lies where the parent was.
    create(base, "vpc", "force_size=on", M);
    assert_eq!(cowhand::open(top, &Open::default()).unwrap_err().kind(), ErrorKind::Mismatch);
    for copy in ["a.vhd", "b.vhd"] {
        std::fs::remove_file(away.join(copy)).unwrap();
    }
    assert_same(&content(&cowhand::open(top, &search).unwrap()), &model, "the only one");
    // Without an identity the name alone counts.
    let raw = folder.path().join("disk.raw");
    create(&raw, "raw", "", M);
    let over = folder.path().join("over.vhd");
    child(&raw, &over, "vpc", "");
    std::fs::rename(&raw, away.join("disk.raw")).unwrap();
    assert_eq!(cowhand::open(&over, &Open::default()).unwrap_err().kind(), ErrorKind::NotFound);
    cowhand::open(&over, &search).unwrap();
}

#[test]
fn reconnecting_refuses_what_is_not_the_parent() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vpc", "force_size=on"), ("vpc", ""), ("vpc", "")], M, 3);
    let [base, middle, top] = paths.as_slice() else { panic!() };
    let fails = |path: &Path, parent: &Path, force| {
        let before = file_sha256(path);
        let how = Reconnect { parent: Some(parent.to_owned()), force, ..Reconnect::default() };
        let error = cowhand::reconnect_parent(path, &how).unwrap_err();
        assert_eq!(file_sha256(path), before, "{error}");
        error
    };
    let error = fails(top, base, false);
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let id = |path: &Path| open(path).top().layer.details().specific["uuid"].as_str().unwrap().to_owned();
    assert!(error.to_string().contains(&id(base)) && error.to_string().contains(&id(middle)), "{error}");
    assert_eq!(fails(base, middle, false).kind(), ErrorKind::Invalid);
    let error = fails(middle, top, true);
    assert!(error.to_string().contains("its own chain"), "{error}");
    assert!(fails(top, top, true).to_string().contains("its own chain"));
    // By force, and back.
    let how = Reconnect { parent: Some(base.clone()), force: true, ..Reconnect::default() };
    cowhand::reconnect_parent(top, &how).unwrap();
    assert_eq!(open(top).links().len(), 2);
    let how = Reconnect { parent: Some(middle.clone()), force: true, ..Reconnect::default() };
    cowhand::reconnect_parent(top, &how).unwrap();
    assert_same(&content(&open(top)), &model, "as it was");
}

/// One sector, and one of zeros, go down; their neighbours are not touched.
#[test]
fn a_merge_moves_what_the_child_holds_and_nothing_else() {
    for (format, how) in [
        ("differencing", ""),
        ("vpc", "force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("raw", ""),
        ("qcow2", "cluster_size=4k"),
    ] {
        let folder = temp();
        let (base, top) = (folder.path().join("base"), folder.path().join("top.vhd"));
        if format == "differencing" {
            create(&folder.path().join("root"), "qcow2", "", 4 * M);
            child(&folder.path().join("root"), &base, "vpc", "");
        } else {
            create(&base, format, how, 4 * M);
        }
        let mut model = vec![0; 4 * M];
        let image = writable(&base);
        model[M..M + 8 * K].fill(5);
        image.write(M as u64, &model[M..M + 8 * K]).unwrap();
        image.close().unwrap();
        drop(image);
        child(&base, &top, "vpc", "");
        let image = writable(&top);
        for (at, value) in [(M + 512, 0), (M + 2048, 9), (3 * M + 1024, 7)] {
            model[at..at + 512].fill(value);
            image.write(at as u64, &model[at..at + 512]).unwrap();
        }
        image.close().unwrap();
        drop(image);
        assert_same(&content(&open(&top)), &model, "before");
        let done = cowhand::merge(&top, &Merge::default(), &Quiet).unwrap();
        // Of a cluster, as much as one is.
        let bytes = if format == "qcow2" { 8192 } else { 1536 };
        assert_eq!((done.moved, done.held, done.deleted), (bytes, bytes, false), "{format} {how}");
        assert_same(&content(&open(&base)), &model, "the base");
        assert_same(&content(&open(&top)), &model, "the top");
        if format == "differencing" {
            let image = open(&base);
            let kinds = [512, 1024, 1536].map(|sector| {
                let found = image.top().layer.extent(3 * M as u64 + sector, 512).unwrap();
                (found.kind, found.len)
            });
            assert_eq!(kinds, [(Kind::Hole, 512), (Kind::Data, 512), (Kind::Hole, 512)], "neighbours");
        }
        let again = cowhand::merge(&top, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
        assert_eq!((again.moved, again.deleted, top.exists()), (0, true, false), "{format} {how}");
        assert_same(&content(&open(&base)), &model, "the base alone");
    }
}

#[test]
fn a_merge_of_random_layers_reads_the_same() {
    let formats = [
        ("raw", ""),
        ("vpc", "force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("qcow2", "cluster_size=64k"),
        ("qcow2", "cluster_size=512"),
    ];
    let cases: Vec<(usize, &str)> =
        (0..formats.len()).flat_map(|base| [(base, "vpc"), (base, "qcow2")]).collect();
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |(base, top)| {
            let folder = temp();
            let layers = [formats[*base], (*top, ""), ("vpc", "")];
            let (paths, model) = chain(folder.path(), &layers, 3 * M + 512, *base as u64);
            let [base, middle, top] = paths.as_slice() else { panic!() };
            let how = Merge { children: vec![top.clone()], delete: true, ..Merge::default() };
            cowhand::merge(middle, &how, &Quiet).unwrap();
            assert!(!middle.exists());
            let disk = open(top);
            assert_eq!(disk.links().len(), 2);
            assert_same(&content(&disk), &model, "the child of the one that is gone");
            drop(disk);
            cowhand::merge(top, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
            assert_same(&content(&open(base)), &model, "the base");
        },
    );
}

#[test]
fn a_longer_child_makes_its_parent_grow() {
    for (format, how) in [("raw", ""), ("qcow2", "")] {
        let folder = temp();
        let (base, top) = (folder.path().join("base"), folder.path().join("top.vhd"));
        create(&base, format, how, 3 * M);
        let mut rng = Rng::new(9);
        let mut model = vec![0; 3 * M];
        scribble(&base, &mut model, &mut rng, 10);
        let longer = Child { size: Some(9 * M as u64), ..Child::default() };
        cowhand::child(&base, &top, &longer).unwrap();
        model.resize(9 * M, 0);
        assert_same(&content(&open(&top)), &model, "longer");
        scribble(&top, &mut model, &mut rng, 20);
        cowhand::merge(&top, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
        assert_same(&content(&open(&base)), &model, &format!("{format} {how}"));
    }
}

/// A shorter image between two longer ones hides what lies below its end; who stood on it must not see that afterwards.
#[test]
fn a_merge_does_not_uncover_what_a_shorter_image_hid() {
    let folder = temp();
    let [base, middle, top] = ["base.vhd", "middle.vhd", "top.vhd"].map(|name| folder.path().join(name));
    create(&base, "vpc", "force_size=on", 4 * M);
    let image = writable(&base);
    image.write(0, &vec![1; 4 * M]).unwrap();
    image.close().unwrap();
    drop(image);
    let sized = |size: usize| Child { size: Some(size as u64), keep_empty: true, ..Child::default() };
    cowhand::child(&base, &middle, &sized(M)).unwrap();
    cowhand::child(&middle, &top, &sized(4 * M)).unwrap();
    let wanted = content(&open(&top));
    assert!(wanted[..M].iter().all(|byte| *byte == 1) && wanted[M..].iter().all(|byte| *byte == 0));
    let how = Merge { children: vec![top.clone()], delete: true, ..Merge::default() };
    cowhand::merge(&middle, &how, &Quiet).unwrap();
    assert_same(&content(&open(&top)), &wanted, "the top");
}

#[test]
fn a_merge_refuses_to_change_what_others_stand_on() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vpc", "force_size=on"), ("vpc", ""), ("vpc", "")], M, 4);
    let [base, middle, top] = paths.as_slice() else { panic!() };
    let files = || [base, middle, top].map(|path| file_sha256(path));
    let before = files();
    let fails = |how: &Merge, part: &str| {
        let error = cowhand::merge(middle, how, &Quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(files(), before, "{error}");
    };
    fails(&Merge { delete: true, ..Merge::default() }, "layer-2.vpc' would be left without a parent");
    let sibling = folder.path().join("sibling.vhd");
    child(base, &sibling, "vpc", "");
    fails(&Merge::default(), "sibling.vhd' would show something else");
    fails(&Merge { children: vec![sibling.clone()], ..Merge::default() }, "does not stand on");
    cowhand::merge(middle, &Merge { force: true, ..Merge::default() }, &Quiet).unwrap();
    assert_same(&content(&open(top)), &model, "the top");
    std::fs::remove_file(&sibling).unwrap();
    // The orphan that the help tells of.
    cowhand::merge(middle, &Merge { force: true, delete: true, ..Merge::default() }, &Quiet).unwrap();
    let how = Reconnect { parent: Some(base.clone()), force: true, ..Reconnect::default() };
    cowhand::reconnect_parent(top, &how).unwrap();
    assert_same(&content(&open(top)), &model, "the orphan");
}

/// An absolute path of Windows is a name like any other here, and leads nowhere; the case of names does not count.
#[test]
fn windows_names_open_nothing_strange() {
    let folder = temp();
    let (paths, model) = chain(folder.path(), &[("vpc", "force_size=on"), ("vpc", "")], M, 5);
    let [base, top] = paths.as_slice() else { panic!() };
    let shouted = folder.path().join("LAYER-0.VPC");
    std::fs::rename(base, &shouted).unwrap();
    assert_same(&content(&open(top)), &model, "in another case");
    std::fs::remove_file(&shouted).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", base).unwrap();
    let error = cowhand::open(top, &Open::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

/// Real chains: the parent has the chain's hash once its child was merged into it.
#[test]
fn real_chains_are_merged_and_reconnected() {
    for (name, hash) in [
        ("xs-snap1", None),
        ("fat-differential.vhd", Some("f4b61a33ee2f7e8c19f737792a4107e46340026a9a829e4169b751901cc3ef02")),
    ] {
        let all = samples();
        let Some(sample) = all.iter().find(|sample| sample.path.contains(name)) else {
            assert!(all.is_empty(), "no sample {name}");
            return;
        };
        let hash = hash.unwrap_or(&sample.sha256_guest);
        let folder = temp();
        let [child, parent] = copied(sample, folder.path());
        // The parent is moved away and found again.
        let away = folder.path().join("away");
        std::fs::create_dir(&away).unwrap();
        let moved = away.join("moved.vhd");
        std::fs::rename(&parent, &moved).unwrap();
        let search = Open { search: vec![away.clone()], ..Open::default() };
        assert_eq!(guest_sha256(&cowhand::open(&child, &search).unwrap()).unwrap(), hash, "{name}");
        let how = Reconnect { open: search, ..Reconnect::default() };
        cowhand::reconnect_parent(&child, &how).unwrap();
        assert_eq!(guest_sha256(&open(&child)).unwrap(), hash, "{name}, reconnected");
        let given = Open { parent: Parent::Given(moved.clone()), ..Open::default() };
        assert_eq!(guest_sha256(&cowhand::open(&child, &given).unwrap()).unwrap(), hash, "{name}, named");
        cowhand::merge(&child, &Merge { delete: true, ..Merge::default() }, &Quiet).unwrap();
        assert_eq!(guest_sha256(&open(&moved)).unwrap(), hash, "{name}, merged");
    }
}
