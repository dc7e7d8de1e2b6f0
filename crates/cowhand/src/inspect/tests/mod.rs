//! The gate against contents made for it, broken ones, and those of real programs.

mod images;
mod peer;
mod verdicts;

use cowhand_core::{Compat, MemoryStorage, Storage};
use proptest::prelude::*;

use super::{Inspection, Report, inspect, inspect_storage};

const BOUND: usize = 3 << 19;

fn judge(image: &[u8], compat: Compat) -> Report {
    inspect(&mut &*image, compat).unwrap()
}

/// Feeds the content in pieces of these lengths, over and over, and watches what is held.
fn in_pieces(image: &[u8], lens: &[usize], compat: Compat) -> Report {
    let mut inspection = Inspection::new();
    let mut rest = image;
    for len in lens.iter().cycle() {
        let (piece, after) = rest.split_at((*len).min(rest.len()));
        inspection.feed(piece);
        assert!(inspection.held() <= BOUND, "{} bytes are held", inspection.held());
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    inspection.finish(compat)
}

fn stored(image: &[u8]) -> MemoryStorage {
    let storage = MemoryStorage::new();
    storage.write_at(0, image).unwrap();
    storage
}

#[test]
fn byte_by_byte_is_the_same() {
    for (name, mut image) in images::every() {
        image.truncate(300_000);
        for compat in [Compat::Strict, Compat::Oslo] {
            let whole = judge(&image, compat);
            assert_eq!(in_pieces(&image, &[1], compat), whole, "{name}");
            assert_eq!(inspect_storage(&stored(&image), compat).unwrap(), whole, "{name}");
        }
    }
}

#[test]
fn nothing_is_held_that_a_hostile_content_asks_for() {
    // The longest descriptor, and a format that is judged to the last byte beside it.
    let mut image = images::vmdk(images::DESCRIPTOR);
    image[36..44].fill(0xff);
    image.resize(2 << 20, b'a');
    in_pieces(&image, &[4000, 1, 70_000], Compat::Strict);
    // Text without an end.
    let text = b"# a line that goes on\n".repeat(100_000);
    let report = in_pieces(&text, &[777], Compat::Strict);
    assert_eq!(report.formats, ["raw"]);
    // As many region entries as fit, each of them wrong.
    let mut vhdx = images::vhdx();
    vhdx[196_616..196_620].copy_from_slice(&2047u32.to_le_bytes());
    vhdx[196_624..262_144].fill(0xa5);
    let report = in_pieces(&vhdx, &[65_537], Compat::Strict);
    assert!(report.failed.len() < 40, "{}", report.failed.len());
    // As many snapshots as there may be, each empty.
    let many = images::qcow2_with_snapshots(65536);
    let report = in_pieces(&many, &[100_000], Compat::Strict);
    assert_eq!(report.failed_checks(), Vec::<&str>::new());
}

#[test]
fn a_storage_is_read_only_where_a_judge_looks() {
    #[derive(Debug)]
    struct Huge(std::sync::atomic::AtomicU64);
    impl Storage for Huge {
        fn len(&self) -> std::io::Result<u64> {
            Ok(1 << 50)
        }
        fn read_at(&self, _at: u64, buf: &mut [u8]) -> std::io::Result<()> {
            self.0.fetch_add(buf.len() as u64, std::sync::atomic::Ordering::Relaxed);
            buf.fill(0);
            Ok(())
        }
        fn write_at(&self, _at: u64, _buf: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
        fn set_len(&self, _len: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
        fn sync(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn identity(&self) -> std::io::Result<cowhand_core::Identity> {
            Ok(cowhand_core::Identity::default())
        }
    }
    let huge = Huge(0.into());
    let report = inspect_storage(&huge, Compat::Strict).unwrap();
    assert_eq!(
        (report.formats.as_slice(), report.virtual_size),
        (["raw".to_owned()].as_slice(), Some(1 << 50))
    );
    assert!(huge.0.into_inner() < 16384);
}

#[test]
fn what_cannot_be_read_is_an_error() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _buf: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }
    let error = inspect(&mut Broken, Compat::Strict).unwrap_err();
    assert_eq!(error.kind(), cowhand_core::ErrorKind::Io);
    assert_eq!(Report::unreadable(error).exit_status(), 4);
}

/// One of the contents, with a few bytes changed where structures stand, perhaps cut short.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    let count = images::every().len();
    let byte = prop_oneof![Just(0u8), Just(0xff), Just(1), any::<u8>()];
    let place = prop_oneof![
        4 => 0usize..700,
        1 => 0usize..2600,
        1 => 65536usize..65616,
        1 => 196_608usize..196_720,
        1 => images::VHDX_METADATA..images::VHDX_METADATA + 140,
        1 => images::VHDX_METADATA + 65536..images::VHDX_METADATA + 65580,
        1 => 262_144usize..262_300,
    ];
    let changes = prop::collection::vec((place, byte), 0..6);
    (
        0..count,
        changes,
        prop_oneof![3 => Just(usize::MAX), 1 => 0usize..5_000_000, 1 => 0usize..3000],
        any::<bool>(),
    )
        .prop_map(|(which, changes, cut, seal)| {
            let mut image = images::every().swap_remove(which).1;
            for (at, byte) in changes {
                if let Some(place) = image.get_mut(at) {
                    *place = byte;
                }
            }
            if seal && image.len() > 1 << 20 {
                images::vhdx_seal(&mut image, 196_608, 65536);
                images::vhdx_seal(&mut image, 65536, 4096);
            }
            image.truncate(cut);
            image
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// However it is broken and cut into chunks: one report, from a stream and from a storage, and no panic.
    #[test]
    fn the_report_depends_on_the_content_alone(image in broken(), lens in prop::collection::vec(1usize..100_000, 1..4)) {
        for compat in [Compat::Strict, Compat::Oslo] {
            let whole = judge(&image, compat);
            prop_assert_eq!(&in_pieces(&image, &lens, compat), &whole);
            prop_assert_eq!(&inspect_storage(&stored(&image), compat).unwrap(), &whole);
            prop_assert_eq!(whole.to_json()["failed"].as_array().unwrap().is_empty(), whole.exit_status() == 0);
        }
    }

    /// Small contents in the smallest pieces.
    #[test]
    fn small_ones_byte_by_byte(image in broken().prop_map(|mut image| { image.truncate(4000); image })) {
        for compat in [Compat::Strict, Compat::Oslo] {
            prop_assert_eq!(in_pieces(&image, &[1], compat), judge(&image, compat));
        }
    }
}
