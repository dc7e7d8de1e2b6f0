//! Archives of every legal shape, read in every way: what comes out is what the builder put in.

use std::path::Path;

use cowhand::Open;
use cowhand_tests::{Mirror, VmaBuilt, for_all, temp, vma_extract, vma_head, vma_shapes};

use crate::vma::{assert_extracted, assert_image, cowhand, file_name, good, names, save, shell, text};

/// The shapes whose names are all in UTF-8 and good for files.
fn shapes(folder: &Path) -> Vec<(VmaBuilt, std::path::PathBuf)> {
    vma_shapes().iter().map(|file| save(folder, file)).collect()
}

type Shape = (VmaBuilt, std::path::PathBuf);

fn each(check: impl Fn(&Shape, &Path) + Sync) {
    let folder = temp();
    let check = |shape: &Shape| {
        let place = folder.path().join(format!("out-{}", file_name(shape.0.file.name)));
        check(shape, &place);
    };
    for_all(&shapes(folder.path()), |(built, _)| built.file.name.to_owned(), check);
}

#[test]
fn list_config_and_verify() {
    each(|(built, path), _| {
        let path = text(path);
        let head = vma_head(&mut built.bytes.as_slice()).unwrap();
        assert_eq!(good(&["vma", "list", &path]), head.list());
        for (name, data) in &head.configs {
            let name = String::from_utf8(name.clone()).unwrap();
            let ran = cowhand_bytes(&format!("\"$0\" vma config -c '{name}' '{path}'"));
            assert_eq!(ran, *data, "{name}");
        }
        if head.configs.iter().any(|(name, _)| name == b"qemu-server.conf") {
            let ran = cowhand_bytes(&format!("\"$0\" vma config '{path}'"));
            assert_eq!(ran, head.configs.iter().find(|(name, _)| name == b"qemu-server.conf").unwrap().1);
        }
        // 255: what Proxmox's tool ends with where there is no such configuration. Ours has one status for what failed.
        assert_eq!(cowhand(&["vma", "config", "-c", "nobody's", &path]).code, Some(1));
        let ran = cowhand(&["vma", "verify", &path]);
        assert!(ran.ok() && ran.err.is_empty(), "{ran:?}");
    });
}

/// What a shell's command prints, as bytes.
fn cowhand_bytes(script: &str) -> Vec<u8> {
    let folder = temp();
    let ran = shell(folder.path(), &format!("{script} >out"));
    assert!(ran.ok() && ran.err.is_empty(), "{script}: {ran:?}");
    std::fs::read(folder.path().join("out")).unwrap()
}

#[test]
fn extract_into_raw_files() {
    each(|(built, path), place| {
        let out = good(&["vma", "extract", &text(path), &text(place)]);
        assert_extracted(place, &built.file);
        // What Proxmox's tool prints, and `qmrestore` of old reads.
        for disk in built.file.disks.iter().filter(|disk| !disk.is_memory()) {
            let name = String::from_utf8(disk.name.clone()).unwrap();
            assert!(out.contains(&format!("disk-{name}.raw {}\n", disk.content.size())), "{out}");
            let found = std::fs::metadata(place.join(format!("disk-{name}.raw"))).unwrap();
            let stored: u64 = std::os::unix::fs::MetadataExt::blocks(&found) * 512;
            let most = data_bytes(&disk.content);
            assert!(stored <= most, "{name} takes {stored} bytes, and has {most} of data");
        }
    });
}

/// Bytes of the 4 KiB blocks that are not zero, and of what else a file system may take.
fn data_bytes(content: &Mirror) -> u64 {
    let blocks = (0..content.size().div_ceil(4096))
        .filter(|n| !content.is_zero(n * 4096, (content.size() - n * 4096).min(4096)));
    blocks.count() as u64 * 4096 + 8192
}

#[test]
fn extract_from_a_pipe_packed_in_every_way() {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    each(|(built, path), place| {
        let path = text(path);
        // The shapes take turns.
        let turn = built.file.name.len() % 5;
        let packs = ["cat", "zstd -q -1 -c", "gzip -1 -c", "pigz -1 -c", "lzop -1 -c"];
        for (n, pack) in packs.into_iter().enumerate().filter(|(n, _)| slow || *n == turn) {
            let place = place.with_extension(format!("{n}"));
            let script = format!("{pack} <'{path}' | \"$0\" vma extract - '{}'", text(&place));
            let ran = shell(Path::new("/"), &script);
            assert!(ran.ok() && ran.err.is_empty(), "{pack}: {ran:?}");
            assert_extracted(&place, &built.file);
            std::fs::remove_dir_all(&place).unwrap();
        }
    });
}

#[test]
fn extract_into_images() {
    let formats = [("qcow2", "qcow2"), ("vpc", "vhd"), ("vhdx", "vhdx")];
    each(|(built, path), place| {
        if built.file.disks.len() > 20 {
            return;
        }
        let many = built.file.disks.len() > 4;
        for (format, extension) in formats.into_iter().take(if many { 1 } else { 3 }) {
            let place = place.with_extension(extension);
            good(&["vma", "extract", "-O", format, &text(path), &text(&place)]);
            for disk in built.file.disks.iter().filter(|disk| !disk.is_memory()) {
                let name = String::from_utf8(disk.name.clone()).unwrap();
                let image = place.join(format!("disk-{name}.{extension}"));
                assert_image(&image, format, &disk.content);
            }
        }
    });
}

#[test]
fn extract_some() {
    let folder = temp();
    let (built, path) = save(folder.path(), &vma_shapes()[2]);
    let names_of = |which: &str, more: &[&str]| {
        let place = folder.path().join("place");
        let (path, place_text) = (text(&path), text(&place));
        let ran = cowhand(&[&["vma", "extract", "-d", which], more, &[&path, &place_text]].concat());
        let found = if place.exists() { names(&place) } else { Vec::new() };
        for name in found.iter().filter(|name| name.starts_with("disk-")) {
            let disk = name.trim_start_matches("disk-").trim_end_matches(".raw");
            built.content(disk).assert_same(&Mirror::of_file(&place.join(name)), name);
        }
        let _ = std::fs::remove_dir_all(&place);
        (ran.code, found)
    };
    let config = "qemu-server.conf";
    assert_eq!(
        names_of("drive-virtio1", &[]),
        (Some(0), vec!["disk-drive-virtio1.raw".to_owned(), config.to_owned()])
    );
    let two = ["disk-drive-efidisk0.raw", "disk-drive-scsi0.raw", config].map(str::to_owned).to_vec();
    assert_eq!(names_of("drive-scsi0,drive-efidisk0", &[]), (Some(0), two));
    let only = vma_extract(&mut built.bytes.as_slice(), Some(&["drive-virtio1"])).unwrap();
    built.content("drive-virtio1").assert_same(only.disk("drive-virtio1"), "the reader");
}

#[test]
fn a_disk_by_its_name() {
    each(|(built, path), place| {
        if built.file.disks.len() > 20 {
            return;
        }
        for (n, disk) in built.file.disks.iter().enumerate().filter(|(_, disk)| !disk.is_memory()) {
            let name = String::from_utf8(disk.name.clone()).unwrap();
            let named = format!("{}#{name}", text(path));
            let how = Open { lock: cowhand::Lock::None, ..Open::default() };
            let image = cowhand::open(Path::new(&named), &how).unwrap();
            disk.content.assert_disk(&image);
            drop(image);
            let raw = place.with_extension("raw");
            disk.content.save(&raw);
            let compared = good(&["compare", "-f", "vma", "-F", "raw", &named, &text(&raw)]);
            assert!(compared.contains("identical"), "{compared}");
            if n < 2 {
                let target = place.with_extension("qcow2");
                good(&["convert", "-O", "qcow2", &named, &text(&target)]);
                assert_image(&target, "qcow2", &disk.content);
                std::fs::remove_file(&target).unwrap();
            }
            let info = good(&["info", "--output", "json", &named]);
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["format"], "vma");
            assert_eq!(info["virtual-size"], disk.content.size());
            let map = good(&["map", "--output", "json", &named]);
            let map: serde_json::Value = serde_json::from_str(&map).unwrap();
            assert_map(&map, &disk.content, &built.bytes);
        }
    });
}

/// The map covers the disk, and where it says that data stand in the archive, they do.
fn assert_map(map: &serde_json::Value, content: &Mirror, archive: &[u8]) {
    let mut at = 0;
    for entry in map.as_array().unwrap() {
        let number = |key: &str| entry[key].as_u64();
        let (start, len) = (number("start").unwrap(), number("length").unwrap());
        assert_eq!(start, at, "the map has a gap");
        at += len;
        if entry["data"] != true {
            assert!(content.is_zero(start, len), "the map calls {start} and {len} bytes on zero");
        } else if let Some(offset) = number("offset") {
            let there = &archive[offset as usize..(offset + len) as usize];
            assert!(content.bytes(start, len as usize) == there, "the map's offset of {start} is wrong");
        }
    }
    assert_eq!(at, content.size(), "the map's end");
}
