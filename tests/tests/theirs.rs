//! Images that `qemu-img` and `qemu-io` made, read by us.

use std::path::{Path, PathBuf};

use cowhand::Open;
use cowhand_tests::{
    Content, Rng, assert_holds, contents, for_all, options, qemu_img, qemu_io, qemu_raw, temp,
};

use crate::formats::{WAYS, Way, cells};

fn open(path: &Path, format: &str) -> cowhand::Opened {
    cowhand::open(path, &Open { format: Some(format.to_owned()), ..Open::default() }).unwrap()
}

/// `qemu-img convert` by this way, from the raw file.
fn convert(way: &Way, raw: &Path, image: &Path) {
    let mut args = vec!["convert", "-f", "raw", "-O", way.format];
    if way.compressed {
        args.push("-c");
    }
    if !way.options.is_empty() {
        args.extend(["-o", way.options]);
    }
    qemu_img(args.iter().map(Path::new).chain([raw, image]));
}

#[test]
fn every_way_of_qemu_img_convert() {
    let folder = temp();
    let contents = contents();
    let raws: Vec<PathBuf> = contents.iter().map(|content| content.raw_in(folder.path())).collect();
    let compat = [
        Way { format: "qcow2", options: "compat=0.10", compressed: false },
        Way { format: "qcow2", options: "compat=0.10,cluster_size=4k", compressed: true },
    ];
    let ways: Vec<Way> = WAYS.iter().chain(&compat).copied().collect();
    let cells = cells(ways.len(), contents.len());
    let name = |(w, c): &(usize, usize)| format!("{} of {}", ways[*w].name(), contents[*c].name);
    for_all(&cells, name, |(w, c)| {
        let (way, content) = (&ways[*w], &contents[*c]);
        if content.size == 0
            && (matches!(way.format, "vpc" | "vhdx") || way.options.contains("preallocation"))
        {
            // qemu-img cannot make these.
            return;
        }
        let image = folder.path().join(format!("{w}-{c}-{}", way.file(*w)));
        convert(way, &raws[*c], &image);
        let disk = open(&image, way.format);
        if !way.options.contains("force_size") && way.format != "vpc" {
            assert_eq!(disk.size(), content.size.next_multiple_of(512), "virtual size");
        }
        assert_holds(&disk, &raws[*c]);
        if way.format != "raw" && !way.options.contains("fixed") {
            let found = cowhand::open(&image, &Open::default()).unwrap();
            assert_eq!(found.links()[0].format, way.format, "found by content");
        }
        drop(disk);
        std::fs::remove_file(&image).unwrap();
    });
}

/// Sizes at which VHD's geometry steps, as `qemu-img` rounds them.
#[test]
fn sizes_of_vpc_are_rounded_alike() {
    let folder = temp();
    // A set: two steps may meet, and each size has its own file.
    let sizes: std::collections::BTreeSet<u64> = [
        1,
        17 * 4,
        1000,
        2048,
        69_632,
        69_633,
        139_264,
        532_480,
        1_040_000,
        16_514_064,
        66_060_288,
        200_000_000,
    ]
    .iter()
    .flat_map(|sectors| [sectors * 512, sectors * 512 + 512])
    .collect();
    for_all(
        &Vec::from_iter(sizes),
        |size| format!("{size} bytes"),
        |size| {
            for subformat in ["dynamic", "fixed"] {
                let option = format!("subformat={subformat}");
                if subformat == "fixed" && *size > 1 << 32 {
                    continue;
                }
                let theirs = folder.path().join(format!("t{size}{subformat}.vhd"));
                let ours = folder.path().join(format!("o{size}{subformat}.vhd"));
                let args =
                    ["create", "-f", "vpc", "-o", &option, theirs.to_str().unwrap(), &size.to_string()]
                        .map(str::to_owned);
                qemu_img(&args);
                let made = cowhand::create(
                    &ours,
                    &cowhand::Create { options: options(&option), ..cowhand::Create::new("vpc", *size) },
                )
                .unwrap();
                let theirs = open(&theirs, "vpc");
                assert_eq!(
                    (made.size, open(&ours, "vpc").size()),
                    (theirs.size(), theirs.size()),
                    "{subformat}"
                );
            }
        },
    );
}

/// A random history of writes, zeros, discards and compressed writes, by `qemu-io`; `qemu-img` says what it amounts to.
fn history(image: &Path, format: &str, size: u64, seed: u64, can: &[&str]) {
    let mut rng = Rng::new(seed);
    let mut commands = Vec::new();
    // A compressed cluster can only be written where there is none.
    for n in 0..if can.contains(&"compress") { size / 65536 } else { 0 } {
        if rng.below(3) == 0 {
            commands.push(format!("write -c -P {} {} 65536", 1 + rng.below(255), n * 65536));
        }
    }
    let can: Vec<&str> = can.iter().copied().filter(|each| *each != "compress").collect();
    for _ in 0..40 {
        let unit = *rng.pick(&[512, 4096, 65536]);
        let at = rng.below(size / unit) * unit;
        let len = ((1 + rng.below(5)) * unit).min(size - at);
        let byte = 1 + rng.below(255);
        commands.push(match *rng.pick(&can) {
            "write" => format!("write -P {byte} {at} {len}"),
            "zero" => format!("write -z {at} {len}"),
            "unmap" => format!("write -z -u {at} {len}"),
            "discard" => format!("discard {at} {len}"),
            other => panic!("no {other}"),
        });
    }
    qemu_io(["-d", "unmap", "-f", format], image, &commands);
}

#[test]
fn random_histories_of_qemu_io() {
    const QCOW2: &[&str] = &["write", "zero", "unmap", "discard"];
    let cases: Vec<(&str, &str, &[&str])> = vec![
        ("raw", "", &["write", "zero", "discard"]),
        ("qcow2", "", &["write", "zero", "unmap", "discard", "compress"]),
        ("qcow2", "compat=0.10", &["write", "zero", "discard", "compress"]),
        ("qcow2", "cluster_size=512", QCOW2),
        ("qcow2", "cluster_size=2M", QCOW2),
        ("qcow2", "extended_l2=on", &["write", "zero", "unmap", "discard", "compress"]),
        ("qcow2", "extended_l2=on,cluster_size=16k", QCOW2),
        ("qcow2", "extended_l2=on,cluster_size=128k,preallocation=metadata", QCOW2),
        ("qcow2", "refcount_bits=1,cluster_size=4k", QCOW2),
        ("qcow2", "refcount_bits=64,lazy_refcounts=on", QCOW2),
        ("qcow2", "preallocation=metadata", QCOW2),
        ("qcow2", "preallocation=full,cluster_size=32k", QCOW2),
        ("qcow2", "compression_type=zstd", &["write", "compress", "unmap"]),
        ("qcow2", "data_file=DATA", QCOW2),
        ("qcow2", "data_file=DATA,data_file_raw=on", QCOW2),
        ("qcow2", "data_file=DATA,extended_l2=on", QCOW2),
        ("vpc", "", &["write", "zero"]),
        ("vpc", "subformat=fixed,force_size=on", &["write", "zero"]),
        ("vhdx", "", &["write"]),
        ("vhdx", "block_size=1M", &["write"]),
        ("vhdx", "subformat=fixed,block_size=1M", &["write"]),
    ];
    let folder = temp();
    let cases: Vec<_> = (0..3).flat_map(|seed| cases.iter().map(move |case| (seed, *case))).collect();
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    for_all(
        &numbered,
        |(_, (seed, (format, options, _)))| format!("{format} {options}, seed {seed}"),
        |(n, (seed, (format, options, can)))| {
            let image = folder.path().join(format!("{n}.{format}"));
            let data = folder.path().join(format!("{n}.data"));
            // An odd number of clusters, and for VHDX more than one block.
            let size = if *format == "vhdx" { 20 << 20 } else { (5 << 20) + 512 * 7 };
            let options = options.replace("DATA", data.to_str().unwrap());
            let size_text = size.to_string();
            let mut args = vec!["create", "-q", "-f", format];
            if !options.is_empty() {
                args.extend(["-o", &options]);
            }
            args.extend([image.to_str().unwrap(), &size_text]);
            qemu_img(&args);
            let size = if *format == "vpc" { open(&image, format).size() } else { size };
            history(&image, format, size, seed * 100 + *n as u64, can);
            let raw = qemu_raw(&image, format);
            assert_holds(&open(&image, format), &raw);
            for file in [image, raw, data] {
                let _ = std::fs::remove_file(file);
            }
        },
    );
}

#[test]
fn internal_snapshots() {
    let folder = temp();
    for options in ["", "cluster_size=4k", "extended_l2=on", "refcount_bits=4"] {
        let image = folder.path().join("snap.qcow2");
        let path = image.to_str().unwrap();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        qemu_img(args.into_iter().chain([path, "4M"]));
        for name in ["first", "second", "a third"] {
            history(&image, "qcow2", 4 << 20, name.len() as u64, &["write", "zero"]);
            qemu_img(["snapshot", "-c", name, path]);
        }
        history(&image, "qcow2", 4 << 20, 99, &["write", "discard"]);
        assert_holds(&open(&image, "qcow2"), &qemu_raw(&image, "qcow2"));
        for (id, name) in [("1", "first"), ("2", "second"), ("3", "a third")] {
            let raw = folder.path().join(format!("{id}.raw"));
            let selector = format!("snapshot.name={name}");
            qemu_img(["convert", "-f", "qcow2", "-l", &selector, "-O", "raw", path, raw.to_str().unwrap()]);
            for which in [id, name] {
                let how = Open { snapshot: Some(which.to_owned()), ..Open::default() };
                assert_holds(&cowhand::open(&image, &how).unwrap(), &raw);
            }
        }
        let none = Open { snapshot: Some("fourth".to_owned()), ..Open::default() };
        assert_eq!(cowhand::open(&image, &none).unwrap_err().kind(), cowhand::ErrorKind::NotFound);
    }
}

/// Chains that `qemu-img` made over every format that can stand below.
#[test]
fn backing_chains() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let below = ["raw", "qcow2", "vpc", "vhdx"];
    let contents = [
        Content::striped("long-parent", (6 << 20) + 512, 64 << 10, 1),
        Content::striped("short-parent", (1 << 20) + 512, 4 << 10, 2),
    ];
    let cells = cells(below.len() * contents.len(), 4);
    for_all(
        &cells,
        |(b, o)| format!("over {} ({}), options {o}", below[b / 2], contents[b % 2].name),
        |(b, o)| {
            let options = ["cluster_size=64k", "cluster_size=4k", "extended_l2=on", "compat=0.10"][*o];
            let format = below[b / 2];
            let sub = at(&format!("{b}-{o}"));
            std::fs::create_dir(&sub).unwrap();
            let raw = contents[b % 2].raw_in(&sub);
            let base = sub.join(format!("base.{format}"));
            qemu_img(
                ["convert", "-f", "raw", "-O", format].iter().map(Path::new).chain([raw.as_path(), &base]),
            );
            let name = format!("base.{format}");
            let middle = sub.join("middle.qcow2");
            let top = sub.join("top.qcow2");
            let make = |path: &Path, backing: &str, backing_format: &str, size: &str| {
                let path = path.to_str().unwrap();
                qemu_img([
                    "create",
                    "-q",
                    "-f",
                    "qcow2",
                    "-o",
                    options,
                    "-b",
                    backing,
                    "-F",
                    backing_format,
                    path,
                    size,
                ]);
            };
            make(&middle, &name, format, "3M");
            history(&middle, "qcow2", 3 << 20, 5, &["write", "zero", "discard"]);
            make(&top, "middle.qcow2", "qcow2", "4M");
            history(&top, "qcow2", 4 << 20, 6, &["write", "zero", "unmap", "discard"]);
            for image in [&middle, &top] {
                assert_holds(&open(image, "qcow2"), &qemu_raw(image, "qcow2"));
            }
            std::fs::remove_dir_all(&sub).unwrap();
        },
    );
}
