//! `--for`: what is made for a consumer, that consumer takes; what it would refuse is named.

use std::path::Path;

use cowhand::{Convert, Create, Open, Quiet, consumers, convert, create, fitted, verdict};
use cowhand_tests::{qemu_img, samples, temp};

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
            _ => continue,
        };
        assert_eq!(objections(&sample.file, whom), [""; 0], "{}", sample.path);
    }
}
