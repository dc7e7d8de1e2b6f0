//! A check lists everything that is wrong, and changes nothing.

use cowhand_core::testing::Rng;
use cowhand_core::{CheckOptions, Checker, ErrorKind, NoFiles, Quiet, Repair, Report};

use super::build::{Archive, Order};
use super::index::storage;
use crate::Vma;

fn check(bytes: &[u8]) -> Report {
    Vma.check(storage(bytes), &NoFiles, &CheckOptions::default(), &Quiet).unwrap()
}

fn said(bytes: &[u8]) -> Vec<String> {
    let report = check(bytes);
    assert_eq!(report.corruptions, report.faults.len() as u64);
    report.faults.into_iter().map(|fault| fault.message).collect()
}

#[test]
fn everything_that_is_wrong_is_listed() {
    let rng = &mut Rng::new(1);
    let archive = Archive { disks: vec![("disk".to_owned(), vec![1; 200 * 65536])], configs: Vec::new() };
    let good = archive.build(Order::Straight, rng);
    let report = check(&good);
    assert!(report.is_clean() && report.faults.is_empty());
    assert_eq!(report.image_end, Some(good.len() as u64));

    // The second extent's checksum, and a cut in the last one.
    let mut bad = good.clone();
    let extent = 12800 + 512 + 58 * 65536;
    bad[extent + 100] ^= 1;
    bad.truncate(good.len() - 4096);
    let said = said(&bad);
    assert_eq!(said.len(), 4, "{said:#?}");
    assert!(said[0].starts_with("extent: the checksum is not that of its header"), "{said:#?}");
    assert!(said[1].starts_with("extent: the archive ends within it"), "{said:#?}");
    assert_eq!(said[2], "bytes 3801088 to 7602175 of disk are missing");
    assert_eq!(said[3], "bytes 13103104 to 13107199 of disk are missing");
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    assert_eq!(
        said(b"VMA\0"),
        ["header at offset 4: the archive ends there, within the header of 12288 bytes"]
    );
    assert_eq!(check(&[]).corruptions, 1);
}

#[test]
fn nothing_is_repaired() {
    let bytes = Archive::of(&[4096], &mut Rng::new(1)).build(Order::Straight, &mut Rng::new(1));
    for repair in [Repair::Leaks, Repair::All] {
        let how = CheckOptions { repair, ..CheckOptions::default() };
        let error = Vma.check(storage(&bytes), &NoFiles, &how, &Quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
