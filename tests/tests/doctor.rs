//! The doctor looks at real images, at damaged ones and at foreign ones: quickly, and without a change.

use std::time::{Duration, Instant};

use cowhand::{Level, Open, Quiet, doctor};
use cowhand_tests::{file_sha256, qemu_img, samples, temp};

/// What it may take of one file, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn real_images_are_whole() {
    for sample in samples() {
        let before = Instant::now();
        let found = doctor(&sample.file, &Open::default(), &Quiet).unwrap();
        assert!(before.elapsed() < PATIENCE, "{}", sample.path);
        assert!(found.format.is_some() && !found.next.is_empty(), "{}: {found:?}", sample.path);
        // The one archive without disks and with a front that is too short.
        let damaged = sample.path.ends_with("none.vma");
        assert_eq!(found.worst() == Some(Level::Damaged), damaged, "{}: {:?}", sample.path, found.findings);
        assert_eq!(file_sha256(&sample.file), sample.sha256_file, "{}", sample.path);
    }
}

/// Every byte of a small image's tables is changed in turn: the doctor tells of it or not, and never panics or writes.
#[test]
fn damage_is_looked_at() {
    let folder = temp();
    let whole = folder.path().join("whole.qcow2");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    qemu_img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512,preallocation=metadata",
        &text(&whole),
        "64k",
    ]);
    let bytes = std::fs::read(&whole).unwrap();
    let damaged = folder.path().join("damaged.qcow2");
    let mut told = 0;
    for at in (0..bytes.len().min(8192)).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 0xa5;
        std::fs::write(&damaged, &changed).unwrap();
        if let Ok(found) = doctor(&damaged, &Open::default(), &Quiet) {
            told += usize::from(found.worst().is_some());
            let json = found.to_json();
            assert_eq!(json["findings"].as_array().map(Vec::len), Some(found.findings.len()));
        }
        assert!(std::fs::read(&damaged).unwrap() == changed, "{at}");
    }
    assert!(told > 100, "{told}");
}

#[test]
fn images_of_other_programs_are_named() {
    let folder = temp();
    for format in ["vmdk", "vdi", "qed", "qcow", "parallels"] {
        let path = folder.path().join(format);
        qemu_img(["create", "-q", "-f", format, path.to_str().unwrap(), "8M"]);
        let found = doctor(&path, &Open::default(), &Quiet).unwrap();
        assert_eq!(found.worst(), Some(Level::Attention), "{format}: {found:?}");
        assert_eq!(found.format, None, "{format}");
    }
}
