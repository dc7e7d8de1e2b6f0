//! A qcow2 of ours over a parent of any format, written at random through `Image`: `qemu-img` reads the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowhand::{Convert, Create, Erase, Image, Open, Quiet};
use cowhand_tests::{
    Content, Rng, assert_holds, assert_map_agrees, for_all, options, qemu_img, temp, try_qemu_img,
};

fn writable(path: &Path) -> cowhand::Opened {
    cowhand::open(path, &Open { writable: true, ..Open::default() }).unwrap()
}

/// A random history through `image`, done to the file `raw` as well.
fn history(image: &Image, raw: &Path, seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let file = File::options().write(true).open(raw).unwrap();
    let size = image.size();
    for _ in 0..steps {
        let most = *rng.pick(&[1, 513, 5000, 70_000, 300_000]);
        let len = (1 + rng.below(most)).min(size);
        let mut at = rng.below(size - len + 1);
        if rng.below(2) == 0 {
            at -= at % 4096;
        }
        if rng.below(5) == 0 {
            let how = *rng.pick(&[Erase::Zero, Erase::Free]);
            image.erase(at, len, how).unwrap();
            file.write_all_at(&vec![0; len as usize], at).unwrap();
        } else {
            let bytes = if rng.below(8) == 0 { vec![0; len as usize] } else { rng.bytes(len as usize) };
            image.write(at, &bytes).unwrap();
            file.write_all_at(&bytes, at).unwrap();
        }
        if rng.below(16) == 0 {
            image.flush().unwrap();
        }
    }
}

/// A raw file with the first `size` bytes of another and zeros behind them.
fn copy_of(raw: &Path, size: u64, to: &Path) {
    std::fs::copy(raw, to).unwrap();
    File::options().write(true).open(to).unwrap().set_len(size).unwrap();
}

const BELOW: [(&str, &str); 9] = [
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "cluster_size=4k"),
    ("qcow2", "extended_l2=on"),
    ("vpc", "force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", "block_size=1M"),
    ("vhdx", "subformat=fixed,block_size=1M"),
    ("vhdx", "block_state_zero=off"),
];

const TOPS: [&str; 6] = [
    "",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=64",
    "extended_l2=on",
    "cluster_size=2M",
    "lazy_refcounts=on",
];

#[test]
fn random_writes_over_a_parent_of_another_format() {
    let folder = temp();
    let contents = [
        Content::striped("long", (5 << 20) + 1024, 48 << 10, 1),
        Content::striped("short", (1 << 20) + 512, 4 << 10, 2),
    ];
    let cases: Vec<(usize, usize, usize)> =
        (0..BELOW.len()).flat_map(|b| (0..TOPS.len()).map(move |t| (b, t, (b + t) % 2))).collect();
    let name = |(b, t, c): &(usize, usize, usize)| {
        format!("{} over {:?} ({})", TOPS[*t], BELOW[*b], contents[*c].name)
    };
    for_all(&cases, name, |(b, t, c)| {
        let (format, how) = BELOW[*b];
        let sub = folder.path().join(format!("{b}-{t}"));
        std::fs::create_dir(&sub).unwrap();
        let raw = contents[*c].raw_in(&sub);
        let base = sub.join("base.img");
        let made =
            Convert { format: Some(format.to_owned()), options: options(how), ..Convert::new([&raw], &base) };
        cowhand::convert(&made, &Quiet).unwrap();
        let before = std::fs::read(&base).unwrap();
        let top = sub.join("top.qcow2");
        let size = (3 << 20) + 512;
        let create = Create {
            options: options(TOPS[*t]),
            backing: Some("base.img".into()),
            backing_format: Some(format.to_owned()),
            ..Create::new("qcow2", size)
        };
        cowhand::create(&top, &create).unwrap();
        let model = sub.join("model.raw");
        copy_of(&raw, size, &model);
        assert_holds(&cowhand::open(&top, &Open::default()).unwrap(), &model);

        let image = writable(&top);
        history(&image, &model, (*b * 10 + *t) as u64, 60);
        assert_holds(&image, &model);
        image.close().unwrap();
        drop(image);
        assert_holds(&cowhand::open(&top, &Open::default()).unwrap(), &model);
        let (top_path, model_path) = (top.to_str().unwrap(), model.to_str().unwrap());
        let check = try_qemu_img(["check", top_path]);
        assert_eq!(check.code, Some(0), "{}{}", check.out, check.err);
        assert!(!check.out.contains("eaked"), "{}", check.out);
        qemu_img(["compare", "-f", "raw", "-F", "qcow2", model_path, top_path]);
        assert!(std::fs::read(&base).unwrap() == before, "the parent was written");
        std::fs::remove_dir_all(&sub).unwrap();
    });
}

#[test]
fn writes_into_images_that_qemu_made() {
    let cases = [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "preallocation=metadata",
        "preallocation=metadata,extended_l2=on",
        "lazy_refcounts=on",
        "data_file=DATA",
        "data_file=DATA,data_file_raw=on",
        "refcount_bits=64",
        "compression_type=zstd",
    ];
    let folder = temp();
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    for_all(
        &numbered,
        |(_, options)| (**options).to_owned(),
        |(n, options)| {
            let raw = Content::striped("base", (2 << 20) + 512, 20 << 10, *n as u64);
            let sub = folder.path().join(n.to_string());
            std::fs::create_dir(&sub).unwrap();
            let raw = raw.raw_in(&sub);
            let image = sub.join("image.qcow2");
            let data = sub.join("data.raw");
            let options = options.replace("DATA", data.to_str().unwrap());
            let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
            if options.is_empty() || options.contains("zstd") {
                args.push("-c");
            }
            if !options.is_empty() {
                args.extend(["-o", &options]);
            }
            qemu_img(args.into_iter().map(Path::new).chain([raw.as_path(), &image]));
            let disk = writable(&image);
            history(&disk, &raw, 7 + *n as u64, 80);
            disk.close().unwrap();
            drop(disk);
            assert_holds(&cowhand::open(&image, &Open::default()).unwrap(), &raw);
            let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
            let check = try_qemu_img(["check", image]);
            assert_eq!(check.code, Some(0), "{}{}", check.out, check.err);
            qemu_img(["compare", "-f", "raw", "-F", "qcow2", raw, image]);
            if options.contains("data_file_raw") {
                qemu_img(["compare", "-f", "raw", "-F", "raw", raw, data.to_str().unwrap()]);
            }
        },
    );
}

/// Clusters that a snapshot shares are left to it.
#[test]
fn writes_into_images_with_snapshots() {
    let folder = temp();
    for options in ["", "cluster_size=4k", "extended_l2=on", "refcount_bits=4", "compression_type=zstd"] {
        let content = Content::striped("base", 3 << 20, 24 << 10, 5).raw_in(folder.path());
        let image = folder.path().join("image.qcow2");
        let path = image.to_str().unwrap();
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        if options.contains("zstd") {
            args.push("-c");
        }
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        qemu_img(args.into_iter().map(Path::new).chain([content.as_path(), &image]));
        qemu_img(["snapshot", "-c", "then", path]);
        let model = folder.path().join("model.raw");
        std::fs::copy(&content, &model).unwrap();
        let disk = writable(&image);
        history(&disk, &model, 3, 60);
        disk.close().unwrap();
        drop(disk);
        let check = try_qemu_img(["check", path]);
        assert_eq!(check.code, Some(0), "{options}: {}{}", check.out, check.err);
        qemu_img(["compare", "-f", "raw", "-F", "qcow2", model.to_str().unwrap(), path]);
        let then = Open { snapshot: Some("then".to_owned()), ..Open::default() };
        assert_holds(&cowhand::open(&image, &then).unwrap(), &content);
        let old = folder.path().join("then.raw");
        qemu_img(["convert", "-l", "snapshot.name=then", "-O", "raw", path, old.to_str().unwrap()]);
        qemu_img(["compare", "-f", "raw", "-F", "raw", content.to_str().unwrap(), old.to_str().unwrap()]);
    }
}

/// A bitmap learns of what is written here, and says so where the image was not closed.
#[test]
fn bitmaps_are_kept_in_step() {
    let folder = temp();
    let image = folder.path().join("image.qcow2");
    let path = image.to_str().unwrap();
    qemu_img(["create", "-q", "-f", "qcow2", path, "3M"]);
    qemu_img(["bitmap", "--add", path, "changes"]);
    let bitmap = || {
        let info = qemu_img(["info", "--output=json", path]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info["format-specific"]["data"]["bitmaps"][0]["flags"].to_string()
    };
    // Reading leaves it alone.
    drop(cowhand::open(&image, &Open::default()).unwrap());
    assert_eq!(bitmap(), r#"["auto"]"#);
    let disk = writable(&image);
    disk.write(1000, &[7; 100_000]).unwrap();
    disk.close().unwrap();
    drop(disk);
    assert_eq!(bitmap(), r#"["auto"]"#);
    qemu_img(["check", path]);
    let disk = writable(&image);
    disk.write(1000, &[8; 1000]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    assert_eq!(bitmap(), r#"["in-use","auto"]"#);
    qemu_img(["check", path]);
}

#[test]
fn several_writers_at_once() {
    let folder = temp();
    let raw = Content::random("base", 4 << 20, 3).raw_in(folder.path());
    for options_of_top in ["", "cluster_size=4k", "extended_l2=on"] {
        let top = folder.path().join("top.qcow2");
        let create = Create {
            options: options(options_of_top),
            backing: Some("base.raw".into()),
            backing_format: Some("raw".to_owned()),
            ..Create::new("qcow2", 4 << 20)
        };
        cowhand::create(&top, &create).unwrap();
        let image = writable(&top);
        // Each thread has every fourth stretch of 700 bytes: neighbours share clusters.
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let image = &image;
                scope.spawn(move || {
                    for n in (thread..2000).step_by(4) {
                        image.write(n * 700, &[thread as u8 + 1; 700]).unwrap();
                    }
                });
            }
        });
        image.close().unwrap();
        drop(image);
        let model = folder.path().join("model.raw");
        std::fs::copy(&raw, &model).unwrap();
        let file = File::options().write(true).open(&model).unwrap();
        for n in 0..2000_u64 {
            file.write_all_at(&[(n % 4) as u8 + 1; 700], n * 700).unwrap();
        }
        assert_holds(&cowhand::open(&top, &Open::default()).unwrap(), &model);
        qemu_img(["compare", "-f", "raw", "-F", "qcow2", model.to_str().unwrap(), top.to_str().unwrap()]);
        qemu_img(["check", top.to_str().unwrap()]);
    }
}

/// Three layers of ours; `map` says the same as `qemu-img map` of where everything is.
#[test]
fn chains_of_three() {
    let folder = temp();
    for (n, (format, how)) in BELOW.iter().enumerate() {
        let sub: PathBuf = folder.path().join(n.to_string());
        std::fs::create_dir(&sub).unwrap();
        let raw = Content::striped("base", (1 << 20) + 512, 64 << 10, 2).raw_in(&sub);
        let base = sub.join("base.img");
        let made = Convert {
            format: Some((*format).to_owned()),
            options: options(how),
            ..Convert::new([&raw], &base)
        };
        cowhand::convert(&made, &Quiet).unwrap();
        let model = sub.join("model.raw");
        copy_of(&raw, 2 << 20, &model);
        for (name, below, below_format) in
            [("middle.qcow2", "base.img", *format), ("top.qcow2", "middle.qcow2", "qcow2")]
        {
            let create = Create {
                backing: Some(below.into()),
                backing_format: Some(below_format.to_owned()),
                ..Create::new("qcow2", 2 << 20)
            };
            cowhand::create(&sub.join(name), &create).unwrap();
            let image = writable(&sub.join(name));
            history(&image, &model, n as u64, 12);
            image.close().unwrap();
        }
        let top = sub.join("top.qcow2");
        let disk = cowhand::open(&top, &Open::default()).unwrap();
        assert_eq!(disk.links().len(), 3);
        assert_holds(&disk, &model);
        qemu_img(["compare", "-f", "raw", "-F", "qcow2", model.to_str().unwrap(), top.to_str().unwrap()]);
        // qemu-img knows no block status of VHDX, and none of the holes in a VHD's file.
        if matches!(*format, "raw" | "qcow2") {
            assert_map_agrees(&disk, &top, "qcow2");
        }
    }
}
