//! Archives that are broken: refused where all is asked for, judged by `verify`, and rescued.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use cowhand_tests::{
    Mirror, VmaDamaged, VmaDisk, file_sha256, for_all, temp, vma_bad_extents, vma_bad_headers,
    vma_bad_memory, vma_broken_files, vma_flipped_headers, vma_passed_over, vma_sound,
};

use crate::vma::{assert_extracted, cowhand, good, names, refused, text};

const CLUSTER: u64 = 65_536;

fn cases(all: Vec<Vec<VmaDamaged>>, check: impl Fn(&VmaDamaged, &Path, &Path) + Sync) {
    let folder = temp();
    let cases: Vec<(VmaDamaged, PathBuf)> = all
        .concat()
        .into_iter()
        .enumerate()
        .map(|(n, case)| (case, folder.path().join(format!("{n}.vma"))))
        .collect();
    for_all(
        &cases,
        |(case, path)| format!("{} ({})", case.name, path.file_name().unwrap().to_string_lossy()),
        |(case, path)| {
            std::fs::write(path, &case.bytes).unwrap();
            let sum = file_sha256(path);
            check(case, path, &path.with_extension("out"));
            assert_eq!(file_sha256(path), sum, "the archive was changed");
            if std::env::var_os("COWHAND_KEEP").is_none() {
                std::fs::remove_file(path).unwrap();
            }
        },
    );
}

/// Everything that Proxmox's tool refuses is refused, with nothing left behind.
#[test]
fn strict_reading_refuses_what_is_broken() {
    let all = vec![
        vma_bad_headers(),
        vma_flipped_headers(),
        vma_bad_extents(),
        vma_bad_memory(),
        vma_broken_files(),
    ];
    cases(all, |case, path, place| {
        let words = ["vma", "extract", &text(path), &text(place)];
        if case.says.is_none() {
            good(&words);
            assert_extracted(place, &vma_sound().file);
            std::fs::remove_dir_all(place).unwrap();
            return;
        }
        let said = refused(&words, 1);
        assert!(said.contains(&text(path)), "the archive is not named: {said}");
        assert!(!place.exists(), "left behind: {:?}", names(place));
        // One disk by its name: opening it goes through the whole archive.
        let named = format!("{}#drive-scsi0", text(path));
        refused(&["convert", "-f", "vma", "-O", "raw", &named, &text(place)], 1);
        assert!(!place.exists());
    });
}

/// `verify` knows all that is wrong, and says it in words and in JSON.
#[test]
fn verify_finds_it() {
    let all = vec![
        vma_bad_headers(),
        vma_flipped_headers(),
        vma_bad_extents(),
        vma_bad_memory(),
        vma_broken_files(),
    ];
    cases(all, |case, path, _| {
        let ran = cowhand(&["vma", "verify", &text(path)]);
        if case.says.is_none() {
            assert!(ran.ok(), "{ran:?}");
            return;
        }
        // Where the header is of no use, there is nothing to be listed.
        let statuses: &[i32] = if case.rescue.is_some() { &[2] } else { &[1, 2] };
        assert!(statuses.contains(&ran.code.unwrap()), "{ran:?}");
        assert!(!ran.out.is_empty() || !ran.err.is_empty(), "it says nothing");
        if ran.code == Some(2) {
            let json = cowhand(&["vma", "verify", "--output", "json", &text(path)]);
            assert_eq!(json.code, Some(2));
            let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
            let missing = listed(&report, "missing").values().any(|ranges| !ranges.is_empty());
            assert_eq!(report["sound"], false);
            assert!(missing || report["fault-count"].as_u64().unwrap() > 0, "{report}");
            let Some(rescue) = &case.rescue else { return };
            if case.unsure.is_empty() && !rescue.missing.is_empty() {
                let found: Vec<_> =
                    listed(&report, "missing").into_values().filter(|ranges| !ranges.is_empty()).collect();
                assert_eq!(found, rescue.missing.values().cloned().collect::<Vec<_>>(), "what is missing");
            }
        }
    });
}

#[test]
fn what_is_passed_over_is_no_fault_of_reading() {
    cases(vec![vma_passed_over()], |_, path, place| {
        good(&["vma", "extract", &text(path), &text(place)]);
        assert_extracted(place, &vma_sound().file);
        std::fs::remove_dir_all(place).unwrap();
    });
}

/// Everything intact comes out, what is missing is listed, and nothing else is.
#[test]
fn salvage_gets_out_what_is_intact() {
    cases(vec![vma_flipped_headers(), vma_bad_extents(), vma_broken_files()], rescue_one);
}

fn rescue_one(case: &VmaDamaged, path: &Path, place: &Path) {
    let rescue = case.rescue.as_ref().unwrap();
    let ran = cowhand(&["vma", "extract", "--salvage", "--output", "json", &text(path), &text(place)]);
    let report: serde_json::Value =
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let (missing, doubtful) = (listed(&report, "missing"), listed(&report, "doubtful"));
    let file = vma_sound().file;
    for disk in &file.disks {
        let name = String::from_utf8(disk.name.clone()).unwrap();
        let said = &missing[&name];
        let right = rescue.missing.get(&disk.id).cloned().unwrap_or_default();
        let found = Mirror::of_file(&place.join(format!("disk-{name}.raw")));
        let expected = &rescue.disks[&disk.id];
        assert_eq!(found.size(), expected.size(), "{name}");
        check_disk(case, disk, &name, (said, &right), (&found, expected));
        // Wherever it is from: what is not the disk's is called missing, or in doubt.
        for at in (0..disk.content.size()).step_by(4096) {
            let len = (disk.content.size() - at).min(4096) as usize;
            let is_right = found.bytes(at, len) == disk.content.bytes(at, len);
            let said = [said, &doubtful[&name]].iter().any(|ranges| has(ranges, at));
            assert!(is_right || said, "{name}: wrong bytes at {at}, and nothing says so");
        }
    }
    let config = std::fs::read(place.join("qemu-server.conf")).unwrap();
    if !case.name.contains("configuration") {
        assert_eq!(config, file.configs[0].2);
    }
    // What is damaged may have held more than its header tells.
    assert_eq!(ran.code, Some(if case.says.is_some() { 3 } else { 0 }), "{}", ran.out);
    std::fs::remove_dir_all(place).unwrap();
}

/// Block by block, but for clusters of which nobody can tell.
fn check_disk(
    case: &VmaDamaged,
    disk: &VmaDisk,
    name: &str,
    (said, right): (&[Range<u64>], &[Range<u64>]),
    (found, expected): (&Mirror, &Mirror),
) {
    let mut at = 0;
    while at < disk.content.size() {
        let len = (disk.content.size() - at).min(4096);
        if !case.unsure.contains(&(disk.id, (at / CLUSTER) as u32)) {
            assert_eq!(
                has(said, at),
                has(right, at),
                "{name} at {at} (true: missing; left: said, right: so it is)"
            );
            let (found, expected) = (found.bytes(at, len as usize), expected.bytes(at, len as usize));
            assert!(found == expected, "{name}: other bytes at {at}");
        } else if has(said, at) {
            assert!(found.is_zero(at, len), "{name}: bytes at {at}, which is said to be missing");
        }
        at += len;
    }
}

fn has(ranges: &[Range<u64>], at: u64) -> bool {
    ranges.iter().any(|range| range.contains(&at))
}

/// Which ranges of which disk the report calls so.
fn listed(report: &serde_json::Value, what: &str) -> BTreeMap<String, Vec<Range<u64>>> {
    let mut listed = BTreeMap::new();
    for disk in report["disks"].as_array().unwrap() {
        let ranges = disk[what]["ranges"].as_array().map_or(&[][..], Vec::as_slice).iter().map(|range| {
            let start = range["start"].as_u64().unwrap();
            start..start + range["length"].as_u64().unwrap()
        });
        listed.insert(disk["name"].as_str().unwrap().to_owned(), ranges.collect());
    }
    listed
}
