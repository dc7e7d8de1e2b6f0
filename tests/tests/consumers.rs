//! `--for`: what is made for a consumer, that consumer takes; what it would refuse is named.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use cowhand::{
    Access, Cache, Compact, Convert, Create, FileStorage, Lock, Open, Quiet, compact, consumers, convert,
    create, fitted, hole_at, verdict,
};
use cowhand_tests::{qemu_img, qemu_io, samples, temp};

fn objections(path: &Path, whom: &str) -> Vec<String> {
    let found = verdict(path, &Open::default(), whom).unwrap();
    found.objections.into_iter().map(|objection| objection.what).collect()
}

#[test]
fn what_is_made_for_them_they_take() {
    let folder = temp();
    let source = folder.path().join("source.qcow2");
    for size in [512, 5 << 20, (64 << 20) + 1024, (3 << 30) + 512] {
        qemu_img(["create", "-q", "-f", "qcow2", source.to_str().unwrap(), &size.to_string()]);
        for whom in consumers() {
            let target = folder.path().join(format!("{whom}.vhd"));
            let made = fitted(whom, None, &target, Vec::new()).unwrap();
            assert_eq!(made.format.names()[0], "vpc");
            let job = Convert {
                format: Some("vpc".to_owned()),
                options: made.options,
                solid: made.solid,
                ..Convert::new([&source], &target)
            };
            let done = convert(&job, &Quiet).unwrap();
            assert_eq!(done.source_size, size);
            assert!(done.size >= size);
            assert_eq!(done.file_len, target.metadata().unwrap().len());
            assert_eq!(objections(&target, whom), [""; 0], "{whom}, {size}");
            let theirs = qemu_img(["info", "-f", "vpc", "--output=json", target.to_str().unwrap()]);
            let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
            assert_eq!(theirs["virtual-size"], done.size, "{whom}");
        }
    }
    let azure = folder.path().join("azure.vhd");
    assert_eq!(azure.metadata().unwrap().len(), (3 << 30) + (1 << 20) + 512, "whole MiB and the footer");
}

#[test]
fn what_they_would_refuse_is_named() {
    let folder = temp();
    let path = folder.path().join("x.vhd");
    let made = |size: u64, options: &[(&str, &str)]| {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        create(&path, &Create { options, ..Create::new("vpc", size) }).unwrap();
    };
    let refused = |whom: &str, part: &str| {
        let found = objections(&path, whom);
        assert!(found.iter().any(|what| what.contains(part)), "{whom}: {found:?}");
    };
    made((40 << 20) + 512, &[("force_size", "on"), ("block_size", "4M")]);
    refused("azure", "must be fixed");
    refused("azure", "whole number of MiB");
    refused("xenserver", "must have 2 MiB");
    refused("xenserver", "whole number of blocks");
    refused("hyperv", "must have 512 KiB or 2 MiB");
    refused("virtualpc", "must have 2 MiB");
    refused("virtualpc", "its geometry says");
    made(4 << 20, &[("subformat", "fixed"), ("force_size", "on")]);
    refused("azure", "20 MiB at least");
    refused("xenserver", "must be dynamic");
    made(200 << 30, &[]);
    refused("virtualpc", "127 GiB at most");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    refused("hyperv", "footer at the end of the file");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    refused("azure", "Azure takes vpc, and this is raw");
    let error = verdict(&path, &Open::default(), "nobody").unwrap_err().to_string();
    assert!(error.contains("known are azure"), "{error}");
}

/// Their own images suit those who made them.
#[test]
fn makers_take_their_own() {
    for sample in samples() {
        let whom = match sample.path.as_str() {
            path if path.starts_with("vhd/xen/") => "xenserver",
            path if path.starts_with("vhd/vbox/") => "virtualbox",
            "vhd/iotests/virtualpc-dynamic.vhd" => "virtualpc",
            "vhd/dfvfs/ext2.vhd" => continue,
            path if path.starts_with("vhd/dfvfs/") => "hyperv",
            path if path.starts_with("vhdx/dfvfs/") => "hyperv",
            _ => continue,
        };
        // They were unpacked with holes.
        let folder = temp();
        let whole = folder.path().join("whole");
        let copied = Command::new("cp").arg("--sparse=never").args([&sample.file, &whole]).status().unwrap();
        assert!(copied.success());
        assert_eq!(objections(&whole, whom), [""; 0], "{}", sample.path);
    }
}

/// No hole, by the file system's own word; and room for all of it.
fn is_solid(path: &Path) -> bool {
    let file = FileStorage::open(path, Access::Read, Lock::None, Cache::default()).unwrap();
    let room = path.metadata().unwrap().blocks() * 512;
    hole_at(&file, 0).unwrap().is_none() && room >= path.metadata().unwrap().len()
}

#[test]
fn hyperv_gets_no_sparse_files() {
    let folder = temp();
    let source = folder.path().join("source.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", source.to_str().unwrap(), "20M"]);
    qemu_io(["-f", "qcow2"], &source, ["write -P 7 3M 100k", "write -P 9 17M 512"]);
    for (name, options) in [
        ("dynamic.vhdx", &[][..]),
        ("small.vhdx", &[("block_size", "1M"), ("block_state_zero", "off")]),
        ("fixed.vhdx", &[("subformat", "fixed")]),
        ("dynamic.vhd", &[]),
        ("fixed.vhd", &[("subformat", "fixed")]),
    ] {
        let target = folder.path().join(name);
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let made = fitted("hyperv", None, &target, options).unwrap();
        assert!(made.solid);
        let format = made.format.names()[0];
        let job = Convert {
            format: Some(format.to_owned()),
            options: made.options.clone(),
            solid: made.solid,
            verify: true,
            ..Convert::new([&source], &target)
        };
        convert(&job, &Quiet).unwrap();
        assert!(is_solid(&target), "{name}");
        assert_eq!(objections(&target, "hyperv"), [""; 0], "{name}");
        qemu_img(["compare", "-F", format, source.to_str().unwrap(), target.to_str().unwrap()]);

        // Made without, it is refused.
        convert(&Convert { solid: false, ..job }, &Quiet).unwrap();
        if !is_solid(&target) {
            let found = objections(&target, "hyperv");
            assert!(found.iter().any(|what| what.contains("refuses a file that is sparse")), "{found:?}");
        }
        let create_it = Create { options: made.options, solid: true, ..Create::new(format, 30 << 20) };
        create(&target, &create_it).unwrap();
        assert!(is_solid(&target), "{name}, empty");
    }
}

#[test]
fn holes_are_filled_where_that_is_asked_for() {
    let folder = temp();
    let path = folder.path().join("x.vhd");
    create(
        &path,
        &Create {
            options: vec![("subformat".to_owned(), "fixed".to_owned())],
            ..Create::new("vpc", 9 << 20)
        },
    )
    .unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(!is_solid(&path));
    compact(&path, &Compact { open: Open { solid: true, ..Open::default() }, ..Compact::default() }, &Quiet)
        .unwrap();
    assert!(is_solid(&path));
    assert_eq!(objections(&path, "hyperv"), [""; 0]);
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn what_a_vhdx_must_not_be() {
    let folder = temp();
    let path = folder.path().join("x.vhdx");
    let refused = |whom: &str, part: &str| {
        let found = objections(&path, whom);
        assert!(found.iter().any(|what| what.contains(part)), "{whom}: {found:?}");
    };
    let made = fitted("virtualbox", None, &path, Vec::new()).unwrap();
    create(&path, &Create { options: made.options, ..Create::new("vhdx", 5 << 20) }).unwrap();
    assert_eq!(objections(&path, "virtualbox"), [""; 0]);
    refused("azure", "Azure takes vpc, and this is vhdx");
    refused("virtualpc", "Virtual PC takes vpc, and this is vhdx");
    let error = fitted("azure", Some("vhdx"), &path, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("Azure takes vpc, and this is vhdx"), "{error}");
    // The BAT region stands at 3 MiB in our files: a zero block that names a place.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3 << 20..(3 << 20) + 8].copy_from_slice(&(4u64 << 20 | 2).to_le_bytes());
    bytes[(3 << 20) + 8] = 5;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(objections(&path, "hyperv").len(), 1);
    refused("hyperv", "2 entries of the BAT");
    bytes[192 << 10] = 0;
    std::fs::write(&path, &bytes).unwrap();
    refused("virtualbox", "the first region table (at 196608) is damaged");
    qemu_img(["create", "-q", "-f", "vhdx", path.to_str().unwrap(), "5M"]);
    refused("virtualbox", "does not say that its regions are required");
    for sample in samples() {
        match sample.path.rsplit('/').next().unwrap_or_default() {
            "iotest-dirtylog-10G-4M.vhdx" => {
                let found = objections(&sample.file, "virtualbox");
                assert!(found.iter().any(|what| what.contains("its log holds changes")), "{found:?}");
            }
            "fat-differential.vhdx" => {
                let found = objections(&sample.file, "virtualbox");
                assert!(found.iter().any(|what| what.contains("the disk is differencing")), "{found:?}");
            }
            _ => {}
        }
    }
}
