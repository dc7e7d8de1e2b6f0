//! `measure`: `qemu-img`'s own figures, and the very length of the file that `convert` makes.

use std::path::Path;

use cowhand::{Convert, Measure, Open, Quiet, Sizes, convert, measure};
use cowhand_tests::{
    Content, contents, fast_contents, for_all, options, qemu_img, qemu_io, temp, try_qemu_img,
};
use serde_json::Value;

use crate::formats::{WAYS, cells};

fn ours(how: &Measure) -> Sizes {
    measure(how, &Quiet).unwrap_or_else(|error| panic!("{how:?}: {error}"))
}

/// `qemu-img measure` with these words; `None` where it refuses.
fn theirs(format: &str, given: &str, more: &[&str]) -> Option<(u64, u64, Option<u64>)> {
    let mut args = vec!["measure", "--output=json", "-O", format];
    if !given.is_empty() {
        args.extend(["-o", given]);
    }
    args.extend(more);
    let ran = try_qemu_img(args);
    let found: Value = serde_json::from_str(&ran.out).ok().filter(|_| ran.ok())?;
    Some((
        found["required"].as_u64().unwrap(),
        found["fully-allocated"].as_u64().unwrap(),
        found["bitmaps"].as_u64(),
    ))
}

#[test]
fn the_figures_that_others_rely_on() {
    for (size, given, required) in
        [(10 << 30, "cluster_size=64k", 1_900_544), (16 << 40, "cluster_size=2M", 92_274_688)]
    {
        let how = Measure {
            format: "qcow2".into(),
            options: options(given),
            size: Some(size),
            ..Measure::default()
        };
        assert_eq!(ours(&how).required, required);
    }
}

#[test]
fn of_a_size_as_qemu_img_says() {
    let _folder = temp();
    let ways: Vec<&str> = [
        "",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=512",
        "refcount_bits=8,cluster_size=1k",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full,cluster_size=4k",
    ]
    .into();
    let sizes = [0, 1, 511, 65536, 65537, (10 << 20) + 3, 1 << 30, (3 << 40) + 12345, 50 << 40];
    let all: Vec<(&str, u64)> = ways.iter().flat_map(|way| sizes.map(|size| (*way, size))).collect();
    for_all(
        &all,
        |(way, size)| format!("{way} {size}"),
        |(way, size)| {
            for format in ["qcow2", "raw"].into_iter().filter(|format| *format == "qcow2" || way.is_empty()) {
                let how = Measure {
                    format: format.into(),
                    options: options(way),
                    size: Some(*size),
                    ..Measure::default()
                };
                let theirs = theirs(format, way, &["--size", &size.to_string()]);
                let ours = measure(&how, &Quiet).ok();
                let figures = ours.map(|ours| (ours.required, ours.fully_allocated, ours.bitmaps));
                assert_eq!(figures, theirs, "ours left, qemu-img's right");
            }
        },
    );
}

#[test]
fn of_a_source_as_qemu_img_says() {
    let folder = temp();
    let raw = Content::striped("source", (9 << 20) + 1024, 96 << 10, 1).grown(30 << 20).raw_in(folder.path());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (name, given) in [("a", "cluster_size=64k"), ("b", "cluster_size=4k,extended_l2=off")] {
        qemu_img(["convert", "-O", "qcow2", "-o", given, raw.to_str().unwrap(), &at(name)]);
    }
    qemu_io(["-f", "qcow2"], at("a"), ["write -z 1M 128k", "write 20M 70k"]);
    qemu_img(["snapshot", "-c", "then", &at("a")]);
    qemu_io(["-f", "qcow2"], at("a"), ["write 25M 1M"]);
    qemu_img(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &at("a"), &at("over"), "31M"]);
    qemu_io(["-f", "qcow2"], at("over"), ["write 28M 100k"]);
    qemu_img(["convert", "-O", "vpc", "-o", "force_size=on", raw.to_str().unwrap(), &at("vhd")]);
    let targets =
        ["", "cluster_size=4k", "cluster_size=2M", "extended_l2=on", "preallocation=full", "compat=0.10"];
    let sources = [
        ("raw", raw.to_str().unwrap().to_owned(), None),
        ("qcow2", at("a"), None),
        ("qcow2", at("a"), Some("then")),
        ("qcow2", at("b"), None),
        ("qcow2", at("over"), None),
        ("vpc", at("vhd"), None),
    ];
    for (format, source, snapshot) in &sources {
        for target in targets.iter().map(|target| ("qcow2", *target)).chain([("raw", "")]) {
            let mut more = vec!["-f", format, source.as_str()];
            more.extend(snapshot.iter().flat_map(|snapshot| ["-l", *snapshot]));
            let theirs = theirs(target.0, target.1, &more).unwrap();
            let how = Measure {
                format: target.0.into(),
                options: options(target.1),
                source: Some(source.into()),
                open: Open {
                    format: Some((*format).to_owned()),
                    snapshot: snapshot.map(str::to_owned),
                    ..Open::default()
                },
                quick: true,
                ..Measure::default()
            };
            let found = ours(&how);
            assert_eq!(
                (found.required, found.fully_allocated),
                (theirs.0, theirs.1),
                "{source} {snapshot:?} to {target:?}"
            );
            assert_eq!(found.exact, None);
        }
    }
}

/// Converts `source` with every number of threads, and holds the lengths against what was measured.
fn assert_exact(folder: &Path, source: &Path, format: &str, given: &str, name: &str, threads: &[usize]) {
    let mut open = Open { format: Some("raw".into()), ..Open::default() };
    open.secrets.add("key", b"open sesame".to_vec()).unwrap();
    let how = Measure {
        format: format.into(),
        options: options(given),
        source: Some(source.to_owned()),
        open,
        ..Measure::default()
    };
    let sizes = ours(&how);
    for &workers in threads {
        let target = folder.join(format!("{name}-{workers}"));
        let made = Convert {
            open: how.open.clone(),
            format: Some(format.to_owned()),
            options: how.options.clone(),
            workers: Some(workers),
            cache: cowhand::Cache::Unsafe,
            ..Convert::new([source], &target)
        };
        // What file systems share is taken unread.
        convert(&Convert { sparse: Some(4096), ..made.clone() }, &Quiet).unwrap();
        let len = std::fs::metadata(&target).unwrap().len();
        assert_eq!(sizes.exact, Some(len), "{workers} threads");
        std::fs::remove_file(&target).unwrap();
    }
    assert!(sizes.exact.unwrap() <= sizes.fully_allocated.next_multiple_of(2 << 20) + (2 << 20), "{sizes:?}");
}

#[test]
fn the_exact_size_is_that_of_the_file() {
    let folder = temp();
    let contents = contents();
    let raws: Vec<_> = contents.iter().map(|content| content.raw_in(folder.path())).collect();
    let ways: Vec<_> = WAYS.iter().filter(|way| !way.compressed).collect();
    let fast = fast_contents();
    let all: Vec<(usize, usize)> = cells(ways.len(), contents.len())
        .into_iter()
        // The big matrix for what allocates, the small one for what is laid out whole.
        .filter(|(way, content)| {
            let whole = ways[*way].options.contains("preallocation") || ways[*way].options.contains("fixed");
            let large = ways[*way].options.contains("256M") || ways[*way].options.contains("64M");
            !(whole || large) || fast.iter().any(|fast| fast.name == contents[*content].name)
        })
        .collect();
    for_all(
        &all,
        |(way, content)| format!("{} of {}", ways[*way].name(), contents[*content].name),
        |(way, content)| {
            let name = format!("{way}-{content}");
            let (format, options) = (ways[*way].format, ways[*way].options);
            assert_exact(folder.path(), &raws[*content], format, options, &name, &[1, 8]);
        },
    );
}

#[test]
fn the_exact_size_where_tables_grow() {
    let folder = temp();
    // More refcount blocks than one cluster of the refcount table names, and an L1 table of many clusters.
    for (size, given) in [
        (10 << 20, "cluster_size=512"),
        (10 << 20, "cluster_size=512,refcount_bits=64"),
        (16 << 20, "cluster_size=512,preallocation=metadata"),
        (3 << 40, "cluster_size=4k"),
        (3 << 40, "cluster_size=64k,refcount_bits=64"),
    ] {
        let data = 6 << 20;
        let content = Content::striped("source", data, 12 << 10, 3).grown(size);
        let raw = content.raw_in(folder.path());
        assert_exact(folder.path(), &raw, "qcow2", given, "grown", &[1, 8]);
        let target = folder.path().join("checked.qcow2");
        let how = Convert {
            format: Some("qcow2".into()),
            options: options(given),
            ..Convert::new([&raw], &target)
        };
        convert(&how, &Quiet).unwrap();
        qemu_img(["check", "-q", "-f", "qcow2", target.to_str().unwrap()]);
    }
}

#[test]
fn the_exact_size_with_a_key() {
    let folder = temp();
    let raw = Content::striped("source", (5 << 20) + 1024, 96 << 10, 3).raw_in(folder.path());
    for (format, given) in [
        ("qcow2", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10,cluster_size=4k"),
        ("qcow2", "encrypt.format=aes,encrypt.key-secret=key"),
        ("luks", "key-secret=key,iter-time=10"),
    ] {
        assert_exact(folder.path(), &raw, format, given, "encrypted", &[8]);
        let secret = ["--object", "secret,id=key,data=open sesame"];
        let given = given.replace(",encrypt.iter-time=10", "").replace(",iter-time=10", "");
        let size = [secret[0], secret[1], "--size", "50M"];
        let Some(theirs) = theirs(format, &given, &size) else {
            assert!(given.contains("aes"), "{given}");
            continue;
        };
        let how = Measure {
            format: format.into(),
            options: options(&given),
            size: Some(50 << 20),
            ..Measure::default()
        };
        let found = ours(&how);
        assert_eq!((found.required, found.fully_allocated), (theirs.0, theirs.1), "{format} {given}");
    }
}

#[test]
fn what_makes_no_sense() {
    let refused = |how: Measure| measure(&how, &Quiet).unwrap_err().to_string();
    let qcow2 = Measure { format: "qcow2".into(), ..Measure::default() };
    assert!(refused(qcow2.clone()).contains("Either --size N or one filename"));
    let both = Measure { size: Some(1), source: Some("x".into()), ..qcow2.clone() };
    assert!(refused(both).contains("cannot be used together"));
    let large = Measure { size: Some(1 << 60), ..qcow2.clone() };
    assert!(refused(large).contains("too large"));
    let odd = Measure { size: Some(1), options: options("cluster_size=3"), ..qcow2 };
    assert!(refused(odd).contains("power of two"));
}
