//! The further ways of `convert` and `compare`: into an existing image, over a backing file, several sources, snapshots.

use std::path::{Path, PathBuf};

use cowhand::{Convert, Create, Difference, Open, Quiet};
use cowhand_tests::{
    Content, assert_holds, assert_qemu_accepts, for_all, guest_sha256, options, qemu_img, qemu_io, qemu_raw,
    temp, try_qemu_img,
};
use serde_json::Value;

fn open(path: &Path) -> cowhand::Opened {
    cowhand::open(path, &Open::default()).unwrap()
}

fn to(format: &str, source: &Path, target: &Path) -> Convert {
    Convert { format: Some(format.to_owned()), ..Convert::new([source], target) }
}

fn quietly(how: &Convert) -> cowhand::Converted {
    cowhand::convert(how, &Quiet).unwrap()
}

#[test]
fn into_an_existing_image() {
    let folder = temp();
    let old = Content::random("old", 3 << 20, 1).raw_in(folder.path());
    let new = Content::striped("new", (2 << 20) + 512, 32 << 10, 2).raw_in(folder.path());
    // What the target has past the source's end stays: qemu-img does the same.
    let theirs = folder.path().join("theirs.raw");
    std::fs::copy(&old, &theirs).unwrap();
    let args = ["convert", "-n", "-f", "raw", "-O", "raw"].map(Path::new);
    qemu_img(args.into_iter().chain([new.as_path(), &theirs]));
    for (n, how) in
        ["", "cluster_size=4k", "extended_l2=on", "preallocation=metadata"].into_iter().enumerate()
    {
        let target = folder.path().join(format!("{n}.qcow2"));
        quietly(&Convert { options: options(how), ..to("qcow2", &old, &target) });
        let done = quietly(&Convert {
            no_create: true,
            workers: Some(2),
            verify: true,
            ..to("qcow2", &new, &target)
        });
        assert!(done.in_place && done.verified);
        assert_eq!(open(&target).size(), 3 << 20, "it keeps its size");
        assert_holds(&open(&target), &theirs);
        assert_qemu_accepts(&target, "qcow2", &theirs);
    }
    let raw = folder.path().join("target.raw");
    std::fs::copy(&old, &raw).unwrap();
    quietly(&Convert { no_create: true, ..to("raw", &new, &raw) });
    assert_eq!(open(&raw).size(), 3 << 20);
    assert_holds(&open(&raw), &theirs);
    // Too small.
    let error = cowhand::convert(&Convert { no_create: true, ..to("raw", &old, &new) }, &Quiet).unwrap_err();
    assert!(error.to_string().contains("too small"), "{error}");
}

#[test]
fn into_an_existing_image_that_is_zero() {
    let folder = temp();
    let new = Content::striped("new", 2 << 20, 64 << 10, 2).raw_in(folder.path());
    let target = folder.path().join("target.qcow2");
    cowhand::create(&target, &Create::new("qcow2", 2 << 20)).unwrap();
    quietly(&Convert { no_create: true, target_is_zero: true, ..to("qcow2", &new, &target) });
    assert_qemu_accepts(&target, "qcow2", &new);
    let physical = std::fs::metadata(&target).unwrap().len();
    assert!(physical < (3 << 19) + (1 << 19), "zeros were written: {physical} bytes");
}

/// `-B`: only what differs from the backing file is written.
#[test]
fn over_a_backing_file() {
    let folder = temp();
    let base_raw = Content::striped("base", 4 << 20, 64 << 10, 1).raw_in(folder.path());
    let base = folder.path().join("base.qcow2");
    quietly(&to("qcow2", &base_raw, &base));
    let middle = folder.path().join("middle.qcow2");
    let path = middle.to_str().unwrap();
    qemu_img(["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path]);
    qemu_io(["-f", "qcow2"], &middle, ["write -P 7 100k 300k", "write -z 1M 256k"]);
    let wanted = qemu_raw(&middle, "qcow2");
    for (n, (compress, workers)) in [(false, 1), (false, 8), (true, 2)].into_iter().enumerate() {
        let top = folder.path().join(format!("top{n}.qcow2"));
        let how = Convert {
            backing: Some("base.qcow2".into()),
            backing_format: Some("qcow2".to_owned()),
            compress,
            workers: Some(workers),
            verify: true,
            ..to("qcow2", &middle, &top)
        };
        quietly(&how);
        assert_holds(&open(&top), &wanted);
        assert_qemu_accepts(&top, "qcow2", &wanted);
        let info = qemu_img(["info", "--output=json", top.to_str().unwrap()]);
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename"], "base.qcow2");
        assert_eq!(info["backing-filename-format"], "qcow2");
        let len = std::fs::metadata(&top).unwrap().len();
        assert!(len < 1 << 20, "only what differs is written, and not {len} bytes");
    }
    // A source that does not stand on that file: everything is compared with nothing, and still right.
    let other = Content::striped("other", 4 << 20, 32 << 10, 5).raw_in(folder.path());
    let top = folder.path().join("other.qcow2");
    let how = Convert {
        backing: Some("base.qcow2".into()),
        backing_format: Some("qcow2".to_owned()),
        ..to("qcow2", &other, &top)
    };
    quietly(&how);
    let disk = open(&top);
    let raw = qemu_raw(&top, "qcow2");
    assert_holds(&disk, &raw);
    assert_holds(&disk, &other);
}

#[test]
fn everything_written_with_sparse_0() {
    let folder = temp();
    let raw = Content::striped("source", 2 << 20, 64 << 10, 1).raw_in(folder.path());
    for (format, how, written) in [
        ("raw", "", 2 << 20),
        ("qcow2", "", 2 << 20),
        ("vpc", "force_size=on", 2 << 20),
        ("vhdx", "block_size=1M", 2 << 20),
    ] {
        let target = folder.path().join(format!("target.{format}"));
        let done = quietly(&Convert { sparse: Some(0), options: options(how), ..to(format, &raw, &target) });
        assert_eq!(done.written, written, "{format}");
        assert!(done.physical >= written, "{format}: takes {} bytes", done.physical);
        assert_qemu_accepts(&target, format, &raw);
    }
    // A whole cluster of zeros is left out by default, however it stands in the source.
    let zeros = Content::empty("zeros", 2 << 20).with(0, vec![0; 2 << 20]).raw_in(folder.path());
    let target = folder.path().join("sparse.raw");
    let done = quietly(&Convert { sparse: Some(4096), ..to("raw", &zeros, &target) });
    assert_eq!((done.written, done.physical), (0, 0));
}

#[test]
fn one_behind_the_other() {
    let folder = temp();
    let parts = [
        Content::striped("a", (1 << 20) + 512, 12 << 10, 1),
        Content::random("b", 700 * 512, 2),
        Content::empty("c", 1 << 20),
        Content::random("d", 513, 3),
    ];
    let raws: Vec<PathBuf> = parts.iter().map(|part| part.raw_in(folder.path())).collect();
    let vhdx = folder.path().join("b.vhdx");
    quietly(&to("vhdx", &raws[1], &vhdx));
    let sources = [&raws[0], &vhdx, &raws[2], &raws[3]];
    let theirs = folder.path().join("theirs.raw");
    let args = ["convert", "-O", "raw"].map(Path::new);
    qemu_img(args.into_iter().chain(raws.iter().map(PathBuf::as_path)).chain([theirs.as_path()]));
    for (format, workers) in [("raw", 1), ("qcow2", 2), ("vhdx", 8), ("qcow2", 8)] {
        let ours = folder.path().join(format!("ours{workers}.{format}"));
        let how = Convert {
            format: Some(format.to_owned()),
            workers: Some(workers),
            verify: true,
            ..Convert::new(sources, &ours)
        };
        assert_eq!(quietly(&how).size, std::fs::metadata(&theirs).unwrap().len());
        assert_qemu_accepts(&ours, format, &theirs);
    }
}

#[test]
fn a_snapshot_of_the_source() {
    let folder = temp();
    let image = folder.path().join("image.qcow2");
    let path = image.to_str().unwrap();
    qemu_img(["create", "-q", "-f", "qcow2", path, "3M"]);
    qemu_io(["-f", "qcow2"], &image, ["write -P 7 100k 300k"]);
    qemu_img(["snapshot", "-c", "then", path]);
    qemu_io(["-f", "qcow2"], &image, ["write -P 9 0 1M", "write -P 9 2M 1M"]);
    let theirs = folder.path().join("theirs.raw");
    qemu_img(["convert", "-l", "snapshot.name=then", "-O", "raw", path, theirs.to_str().unwrap()]);
    let ours = folder.path().join("ours.vhdx");
    let how = Convert {
        open: Open { snapshot: Some("then".to_owned()), ..Open::default() },
        ..to("vhdx", &image, &ours)
    };
    quietly(&how);
    assert_qemu_accepts(&ours, "vhdx", &theirs);
}

/// The content does not depend on how many work on it.
#[test]
fn workers_make_no_difference() {
    let folder = temp();
    let raw = Content::striped("source", (24 << 20) + 512, 100 << 10, 4).raw_in(folder.path());
    let cases: Vec<(&str, &str, bool, usize)> = [
        ("qcow2", "", false),
        ("qcow2", "", true),
        ("qcow2", "compression_type=zstd", true),
        ("qcow2", "extended_l2=on", false),
        ("qcow2", "data_file=DATA,data_file_raw=on", false),
        ("vpc", "force_size=on", false),
        ("vhdx", "", false),
        ("raw", "", false),
    ]
    .into_iter()
    .flat_map(|(format, how, compress)| [1, 2, 8].map(|workers| (format, how, compress, workers)))
    .collect();
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |(format, how, compress, workers)| {
            let sub = temp();
            let target = sub.path().join("target");
            let data = sub.path().join("data.raw");
            let how = Convert {
                options: options(&how.replace("DATA", data.to_str().unwrap())),
                compress: *compress,
                workers: Some(*workers),
                ..to(format, &raw, &target)
            };
            quietly(&how);
            let disk =
                cowhand::open(&target, &Open { format: Some((*format).to_owned()), ..Open::default() })
                    .unwrap();
            assert_holds(&disk, &raw);
            assert_qemu_accepts(&target, format, &raw);
        },
    );
}

#[test]
fn the_format_follows_from_the_name() {
    let folder = temp();
    let raw = Content::striped("source", 1 << 20, 64 << 10, 1).raw_in(folder.path());
    for (name, format) in [
        ("a.qcow2", "qcow2"),
        ("a.vhd", "vpc"),
        ("a.vhdx", "vhdx"),
        ("a.img", "raw"),
        ("a", "raw"),
        ("a.VHDX", "vhdx"),
    ] {
        let target = folder.path().join(name);
        let done = quietly(&Convert::new([&raw], &target));
        assert_eq!(done.to, format, "{name}");
        assert_qemu_accepts(&target, format, &raw);
    }
    let error = cowhand::convert(&Convert::new([&raw], folder.path().join("a.vmdk")), &Quiet).unwrap_err();
    assert_eq!(error.kind(), cowhand::ErrorKind::Unsupported);
}

#[test]
fn an_external_data_file() {
    let folder = temp();
    let raw = Content::striped("source", (2 << 20) + 512, 64 << 10, 1).raw_in(folder.path());
    for how in ["", ",data_file_raw=on", ",cluster_size=4k", ",extended_l2=on"] {
        let target = folder.path().join("target.qcow2");
        // qemu-img takes a relative name from its own folder, and not the image's.
        let how = format!("data_file={}{how}", folder.path().join("the.data").display());
        let how = Convert { options: options(&how), verify: true, ..to("qcow2", &raw, &target) };
        quietly(&how);
        assert_holds(&open(&target), &raw);
        let ran = try_qemu_img(["info", target.to_str().unwrap()]);
        assert!(ran.out.contains("data file: ") && ran.out.contains("the.data"), "{}{}", ran.out, ran.err);
        assert_qemu_accepts(&target, "qcow2", &raw);
        if how.options.iter().any(|(name, _)| name == "data_file_raw") {
            let data = folder.path().join("the.data");
            qemu_img(["compare", "-f", "raw", "-F", "raw", raw.to_str().unwrap(), data.to_str().unwrap()]);
        }
    }
}

#[test]
fn compare_says_what_qemu_img_compare_says() {
    let folder = temp();
    let base = Content::striped("base", 2 << 20, 64 << 10, 1);
    let raw = base.raw_in(folder.path());
    let variants = [
        (base.clone().named("changed").with(1_234_567, vec![0x55]), Some(1_234_567 / 512 * 512)),
        (base.clone().named("same"), None),
        (base.clone().named("longer").grown(3 << 20), None),
        (base.named("more").grown(3 << 20).with((3 << 20) - 1, vec![1]), Some((3 << 20) - 512)),
    ];
    for (variant, wanted) in variants {
        let other_raw = variant.raw_in(folder.path());
        for format in ["raw", "qcow2", "vhdx"] {
            let other = other_raw.with_extension(format);
            if format != "raw" {
                quietly(&to(format, &other_raw, &other));
            }
            for (a, b) in [(&raw, &other), (&other, &raw)] {
                let found = cowhand::compare(&open(a), &open(b), false, &Quiet).unwrap();
                assert_eq!(
                    found.difference,
                    wanted.map(Difference::Content),
                    "{} {}",
                    a.display(),
                    b.display()
                );
                let theirs = try_qemu_img(["compare", a.to_str().unwrap(), b.to_str().unwrap()]);
                assert_eq!(theirs.code, Some(i32::from(wanted.is_some())), "{}", theirs.out);
                assert_eq!(theirs.out.contains("size mismatch"), found.sizes_differ);
            }
        }
    }
}

/// What is converted has the hash of its source.
#[test]
fn hashes() {
    let folder = temp();
    let raw = Content::striped("source", 2 << 20, 64 << 10, 1).raw_in(folder.path());
    let target = folder.path().join("target.qcow2");
    quietly(&to("qcow2", &raw, &target));
    assert_eq!(guest_sha256(&open(&target)).unwrap(), cowhand_tests::file_sha256(&raw));
}
