//! Archives that Proxmox's own tool made, by the hashes of what they hold.

use std::path::Path;

use cowhand_tests::{Sample, file_sha256, samples, temp, vma_extract};

use crate::vma::{good, names, refused, shell, text};

fn sample(name: &str) -> Option<Sample> {
    samples().into_iter().find(|sample| sample.path == format!("vma/{name}"))
}

/// The hash that the manifest gives for a thing, by the words before it.
fn hash(sample: &Sample, of: &str) -> String {
    let at = sample.notes.find(of).unwrap_or_else(|| panic!("no hash of {of}"));
    sample.notes[at + of.len()..].trim_start().chars().take_while(char::is_ascii_hexdigit).collect()
}

fn hashes(sample: &Sample) -> [(&'static str, String); 4] {
    ["disk A", "disk B", "qemu-server.conf", "qemu-server.fw"].map(|of| (of, hash(sample, of)))
}

#[test]
fn two_disks_and_two_configurations() {
    let Some(sample) = sample("two.vma.zst") else { return };
    let folder = temp();
    let path = text(&sample.file);
    let list = good(&["vma", "list", &path]);
    assert!(
        list.contains("CFG: size: ") && list.contains("DEV: dev_id=1 size: ") && list.contains("CTIME: "),
        "{list}"
    );
    let devices: Vec<String> = list
        .lines()
        .filter(|line| line.starts_with("DEV:"))
        .map(|line| line.rsplit(' ').next().unwrap().to_owned())
        .collect();
    let [a, b] = &devices[..] else { panic!("{list}") };
    // All of it from the file, and one disk from a pipe.
    let place = folder.path().join("from a file");
    good(&["vma", "extract", &path, &text(&place)]);
    let pipe = folder.path().join("from a pipe");
    let script = format!("zstd -q -d -c '{path}' | \"$0\" vma extract -d '{b}' - '{}'", text(&pipe));
    assert!(shell(Path::new("/"), &script).ok());
    let [disk_a, disk_b, conf, fw] = hashes(&sample);
    let files = [
        format!("disk-{a}.raw"),
        format!("disk-{b}.raw"),
        "qemu-server.conf".into(),
        "qemu-server.fw".into(),
    ];
    for (file, (of, right)) in files.iter().zip([&disk_a, &disk_b, &conf, &fw]) {
        assert_eq!(file_sha256(&place.join(file)), *right, "{of}");
    }
    assert_eq!((names(&place), names(&pipe)), (files.to_vec(), files[1..].to_vec()));
    assert_eq!(file_sha256(&pipe.join(&files[1])), disk_b.1);
    // One of them, from what is packed, and unpacked.
    let unpacked = folder.path().join("two.vma");
    assert!(shell(folder.path(), &format!("zstd -q -d '{path}' -o two.vma")).ok());
    for archive in [path, text(&unpacked)] {
        good(&["vma", "verify", &archive]);
        // What is packed in one piece is read from a copy.
        let (names, copy) = match archive.ends_with(".zst") {
            true => (&[b][..], &["--unpack-to", folder.path().to_str().unwrap()][..]),
            false => (&[a, b][..], &[][..]),
        };
        for name in names {
            let (named, raw) = (format!("{archive}#{name}"), text(&place.join(format!("disk-{name}.raw"))));
            let compared = good(&[&["compare", "-F", "raw"], copy, &[&named, &raw]].concat());
            assert!(compared.contains("identical"), "{name}: {compared}");
        }
    }
    // The independent reader thinks so too.
    let found = vma_extract(&mut std::fs::File::open(&unpacked).unwrap(), None).unwrap();
    assert!(found.faults.is_empty(), "{:?}", found.faults);
}

#[test]
fn small_ones() {
    let folder = temp();
    if let Some(sample) = sample("t32.vma") {
        let place = folder.path().join("t32");
        good(&["vma", "extract", &text(&sample.file), &text(&place)]);
        assert_eq!(names(&place), ["disk-drive-scsi0.raw", "qemu-server.conf"]);
        assert_eq!(std::fs::read(place.join("disk-drive-scsi0.raw")).unwrap(), [b'T'; 32 << 10]);
        good(&["vma", "verify", &text(&sample.file)]);
    }
    if let Some(sample) = sample("empty.vma") {
        let place = folder.path().join("empty");
        good(&["vma", "extract", &text(&sample.file), &text(&place)]);
        assert_eq!(names(&place), ["qemu-server.conf"]);
        good(&["vma", "verify", &text(&sample.file)]);
    }
    if let Some(sample) = sample("none.vma") {
        let said = refused(&["vma", "extract", &text(&sample.file), &text(&folder.path().join("none"))], 1);
        assert!(said.contains("header"), "{said}");
    }
}
