//! `map` and `info` say of a file what `qemu-img` says of it.

use std::path::Path;

use cowhand::{Convert, Open, Quiet};
use cowhand_tests::{Content, assert_map_agrees, for_all, options, qemu_img, qemu_io, qemu_version, temp};
use serde_json::Value;

use crate::formats::WAYS;

#[test]
fn map_of_qcow2_and_raw() {
    let folder = temp();
    let raw = Content::striped("source", (3 << 20) + 1024, 96 << 10, 1).raw_in(folder.path());
    let ways: Vec<_> =
        WAYS.iter().enumerate().filter(|(_, way)| matches!(way.format, "raw" | "qcow2")).collect();
    for_all(
        &ways,
        |(_, way)| way.name(),
        |(n, way)| {
            for by_qemu in [true, false] {
                let image = folder.path().join(format!("{by_qemu}-{}", way.file(*n)));
                if by_qemu {
                    let mut args = vec!["convert", "-f", "raw", "-O", way.format];
                    if way.compressed {
                        args.push("-c");
                    }
                    if !way.options.is_empty() {
                        args.extend(["-o", way.options]);
                    }
                    qemu_img(args.into_iter().map(Path::new).chain([raw.as_path(), &image]));
                    if way.format == "qcow2" {
                        qemu_io(
                            ["-d", "unmap", "-f", "qcow2"],
                            &image,
                            ["write -z 256k 128k", "write -z -u 1M 64k", "discard 2M 100k"],
                        );
                    }
                } else {
                    let how = Convert {
                        format: Some(way.format.to_owned()),
                        options: options(way.options),
                        compress: way.compressed,
                        ..Convert::new([&raw], &image)
                    };
                    cowhand::convert(&how, &Quiet).unwrap();
                }
                let disk =
                    cowhand::open(&image, &Open { format: Some(way.format.to_owned()), ..Open::default() })
                        .unwrap();
                assert_map_agrees(&disk, &image, way.format);
            }
        },
    );
}

#[test]
fn map_of_a_part() {
    let folder = temp();
    let raw = Content::striped("source", 2 << 20, 64 << 10, 1).raw_in(folder.path());
    let disk = cowhand::open(&raw, &Open::default()).unwrap();
    for (start, length) in [(0, 1), (512, 1 << 20), ((1 << 20) + 512, 5 << 20), (2 << 20, 1)] {
        let mut at = start;
        cowhand::map(&disk, start, length, |entry| {
            assert_eq!(entry.start, at);
            at += entry.length;
            Ok(())
        })
        .unwrap();
        assert_eq!(at, (start + length).min(2 << 20));
    }
}

/// `info` of one image: every key of `qemu-img` with its value, and none more.
///
/// Known differences, which are taken away before comparing:
/// - `actual-size`, which may change between the two looks;
/// - `format-specific` of VHD and VHDX, of which `qemu-img` says nothing;
/// - `children`, whose order of keys and file node only QEMU 8 and later print.
fn assert_info_agrees(image: &Path, format: &str) {
    let theirs = qemu_img(["info", "--output=json", "-f", format, image.to_str().unwrap()]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let how = Open { format: Some(format.to_owned()), ..Open::default() };
    let ours = cowhand::info(image, &how, false).unwrap()[0].to_json();
    let plain = |mut value: Value| {
        let object = value.as_object_mut().unwrap();
        object.remove("actual-size");
        object.remove("children");
        if format != "qcow2" {
            object.remove("format-specific");
        }
        value
    };
    let (theirs, ours) = (plain(theirs), plain(ours));
    assert_eq!(ours, theirs, "info of {} (ours left, qemu-img's right)", image.display());
}

#[test]
fn info_of_every_way() {
    if qemu_version().0 < 8 {
        eprintln!("SKIPPED: qemu-img {}.{} prints other keys", qemu_version().0, qemu_version().1);
        return;
    }
    let folder = temp();
    let raw = Content::striped("source", 1 << 20, 96 << 10, 1).raw_in(folder.path());
    let ways: Vec<_> = WAYS.iter().enumerate().collect();
    for_all(
        &ways,
        |(_, way)| way.name(),
        |(n, way)| {
            let image = folder.path().join(way.file(*n));
            let mut args = vec!["convert", "-f", "raw", "-O", way.format];
            if !way.options.is_empty() {
                args.extend(["-o", way.options]);
            }
            qemu_img(args.into_iter().map(Path::new).chain([raw.as_path(), &image]));
            assert_info_agrees(&image, way.format);
        },
    );
}

#[test]
fn info_of_special_qcow2() {
    if qemu_version().0 < 8 {
        eprintln!("SKIPPED: qemu-img {}.{} prints other keys", qemu_version().0, qemu_version().1);
        return;
    }
    let folder = temp();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    qemu_img(["create", "-q", "-f", "qcow2", &at("base"), "3M"]);
    qemu_img(["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", &at("top")]);
    qemu_img(["create", "-q", "-f", "qcow2", "-b", &at("base"), "-F", "qcow2", &at("absolute")]);
    qemu_img(["create", "-q", "-f", "qcow2", "-o", "compat=0.10", &at("old"), "3M"]);
    qemu_img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "lazy_refcounts=on,compression_type=zstd",
        &at("lazy"),
        "3M",
    ]);
    qemu_img(["create", "-q", "-f", "qcow2", &at("snapshots"), "3M"]);
    qemu_img(["snapshot", "-c", "eins", &at("snapshots")]);
    qemu_img(["snapshot", "-c", "zwei", &at("snapshots")]);
    qemu_img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={},data_file_raw=on", at("data")),
        &at("external"),
        "3M",
    ]);
    qemu_img(["create", "-q", "-f", "qcow2", &at("bitmaps"), "3M"]);
    qemu_img(["bitmap", "--add", &at("bitmaps"), "b0"]);
    qemu_img(["bitmap", "--add", "--disable", "-g", "32k", &at("bitmaps"), "b1"]);
    for name in ["base", "top", "absolute", "old", "lazy", "snapshots", "external", "bitmaps"] {
        assert_info_agrees(&folder.path().join(name), "qcow2");
    }
    // The chain, top first.
    let theirs = qemu_img(["info", "--backing-chain", "--output=json", &at("top")]);
    let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
    let ours = cowhand::info(&folder.path().join("top"), &Open::default(), true).unwrap();
    let names: Vec<&str> = ours.iter().map(|info| info.filename.as_str()).collect();
    let theirs: Vec<&str> = theirs.iter().map(|info| info["filename"].as_str().unwrap()).collect();
    assert_eq!(names, theirs);
}
