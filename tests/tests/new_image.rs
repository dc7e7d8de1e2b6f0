//! A new image has QEMU's layout: tools and tests poke fixed offsets.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use cowhand_tests::{cowhand_program, qemu_img, run, temp};

/// Both files made with the same words, by the real program and by ours under its name: `real` and `ours`.
fn twins(folder: &Path, words: &[&str], size: &str) {
    let name = folder.join("qemu-img");
    if !name.exists() {
        symlink(cowhand_program(), &name).unwrap();
    }
    let words = |file: &'static str| {
        let mut all = vec!["create", "-q", "-f"];
        all.extend(words);
        all.push(file);
        all.extend((!size.is_empty()).then_some(size));
        all
    };
    for file in ["real", "ours"] {
        let _ = fs::remove_file(folder.join(file));
        let program = if file == "real" { Path::new("qemu-img") } else { &name };
        let ran = run(Command::new("env").arg("-C").arg(folder).arg(program).args(words(file)));
        assert!(ran.ok(), "{:?}: {}", words(file), ran.err);
    }
}

fn bytes(folder: &Path, file: &str) -> Vec<u8> {
    fs::read(folder.join(file)).unwrap()
}

#[test]
fn a_new_qcow2_is_equal_byte_for_byte() {
    let folder = temp();
    let folder = folder.path();
    qemu_img(["create", "-q", "-f", "raw", folder.join("base").to_str().unwrap(), "5M"]);
    let options: [&[&str]; 24] = [
        &[],
        &["compat=0.10"],
        &["cluster_size=512"],
        &["cluster_size=1k,compat=0.10"],
        &["cluster_size=4k"],
        &["cluster_size=2M"],
        &["refcount_bits=1"],
        &["refcount_bits=2,cluster_size=512"],
        &["refcount_bits=8"],
        &["refcount_bits=64"],
        &["extended_l2=on"],
        &["extended_l2=on,cluster_size=16k,refcount_bits=32"],
        &["lazy_refcounts=on"],
        &["compression_type=zstd"],
        &["compression_type=zstd,lazy_refcounts=on,extended_l2=on,cluster_size=1M"],
        &["data_file=data"],
        &["data_file=data,data_file_raw=on"],
        &["preallocation=metadata"],
        &["preallocation=metadata,cluster_size=4k"],
        &["preallocation=metadata,compat=0.10"],
        &["backing_file=base,backing_fmt=raw"],
        &["backing_file=base,backing_fmt=raw,compat=0.10"],
        &["backing_file=base,backing_fmt=raw,cluster_size=512"],
        &["backing_file=base,backing_fmt=raw,extended_l2=on,lazy_refcounts=on,cluster_size=32k"],
    ];
    for options in options {
        for size in ["0", "1", "512", "1001", "1M", "5000000", "64M"] {
            let mut words = vec!["qcow2"];
            options.iter().for_each(|option| words.extend(["-o", option]));
            twins(folder, &words, size);
            assert!(bytes(folder, "real") == bytes(folder, "ours"), "{options:?} {size}");
        }
    }
}

#[test]
fn so_is_a_large_one() {
    let folder = temp();
    let folder = folder.path();
    for (options, size) in [
        ("cluster_size=64k", "100T"),
        ("cluster_size=4k", "1T"),
        ("cluster_size=512", "1G"),
        ("cluster_size=2M", "1P"),
        ("refcount_bits=64", "16T"),
        ("extended_l2=on", "20T"),
        ("backing_file=nope,backing_fmt=raw", "100T"),
    ] {
        twins(folder, &["qcow2", "-u", "-o", options], size);
        assert!(bytes(folder, "real") == bytes(folder, "ours"), "{options} {size}");
    }
}

#[test]
fn a_new_vhd_or_vhdx_is_as_long_and_stands_in_the_same_places() {
    let folder = temp();
    let folder = folder.path();
    let vhd: &[&str] = &["", "force_size=on", "subformat=fixed", "subformat=fixed,force_size=on"];
    let vhdx: &[&str] = &["", "log_size=3M", "block_size=1M", "block_state_zero=off", "subformat=fixed"];
    for (format, options) in [("vpc", vhd), ("vhdx", vhdx)] {
        for option in options {
            for size in ["1", "1001", "3M", "2G", "200G", "2040G"] {
                if option.contains("fixed") && size.ends_with('G') {
                    continue;
                }
                let mut words = vec![format];
                words.extend((!option.is_empty()).then_some(["-o", option]).into_iter().flatten());
                twins(folder, &words, size);
                let lengths = ["real", "ours"].map(|file| fs::metadata(folder.join(file)).unwrap().len());
                assert_eq!(lengths[0], lengths[1], "{words:?} {size}");
                if format == "vhdx" {
                    let places = ["real", "ours"].map(|file| regions(&folder.join(file)));
                    assert_eq!(places[0], places[1], "{words:?} {size}");
                }
            }
        }
    }
}

/// Each region's GUID, offset and length.
fn regions(path: &Path) -> Vec<Vec<u8>> {
    let mut table = [0; 16 + 2 * 32];
    fs::File::open(path).unwrap().read_exact_at(&mut table, 3 << 16).unwrap();
    table[16..].chunks(32).map(|entry| entry[..28].to_vec()).collect()
}

#[test]
fn help_names_the_same_options() {
    let folder = temp();
    let folder = folder.path();
    let name = folder.join("qemu-img");
    symlink(cowhand_program(), &name).unwrap();
    for words in [
        &["create", "-f", "qcow2", "-o", "help"][..],
        &["create", "-f", "qcow2", "-o", "help", "x"],
        &["create", "-f", "raw", "-o", "help"],
        &["create", "-f", "raw", "-o", "help", "x"],
        &["create", "-f", "vpc", "-o", "help", "x"],
        &["create", "-f", "vhdx", "-o", "help", "x"],
        &["create", "-f", "luks", "-o", "help", "x"],
        &["amend", "-f", "qcow2", "-o", "help"],
        &["amend", "-f", "luks", "-o", "help"],
    ] {
        let names = |program: &Path| {
            let ran = run(Command::new(program).args(words));
            let lines: Vec<String> =
                ran.out.lines().map(|line| line.split(" - ").next().unwrap().to_owned()).collect();
            (ran.code, lines)
        };
        assert_eq!(names(Path::new("qemu-img")), names(&name), "{words:?}");
    }
}
