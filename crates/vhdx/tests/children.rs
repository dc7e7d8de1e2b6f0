//! Differencing images that are made here, and what one of each kind says of itself.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{MIB, create, create_options, open};
use cowhand_core::{CreateOptions, ErrorKind, Format, Layer, MemoryStorage, NoFiles, ParentRef, Result};
use cowhand_vhdx::Vhdx;
use serde_json::{Value, json};

const PARENT: [u8; 16] = [7; 16];
const DISK: [u8; 16] = [9; 16];

/// A parent as the verbs name one.
fn parent(sector: u32) -> ParentRef {
    ParentRef {
        candidates: vec!["base.vhdx".into(), "/srv/disks/base.vhdx".into()],
        format: Some("vhdx".to_owned()),
        expected: vec![PARENT],
        sector: Some(sector),
        disk_id: Some(DISK),
        ..ParentRef::default()
    }
}

fn child(
    size: u64,
    parent: ParentRef,
    given: &[(&str, &str)],
) -> Result<(Arc<MemoryStorage>, Arc<dyn Layer>)> {
    let file = Arc::new(MemoryStorage::new());
    let how = CreateOptions { parent: Some(parent), ..create_options(size, given) };
    let layer = Vhdx.create(file.clone(), &NoFiles, &how)?;
    Ok((file, layer))
}

fn says(layer: &Arc<dyn Layer>, key: &str) -> Value {
    layer.details().specific.get(key).cloned().unwrap_or_default()
}

#[test]
fn a_child_has_its_parents_sectors_and_disk_id() {
    for (sector, given, block_size) in [
        (512, &[][..], MIB),
        (4096, &[("block_size", "256M"), ("logical_sector_size", "4096")], 256 * MIB),
        (4096, &[("block_size", "2M"), ("physical_sector_size", "512"), ("log_size", "3M")], 2 * MIB),
    ] {
        let (file, made) = child(10 * MIB + 512, parent(sector), given).unwrap();
        made.close().unwrap();
        let layer = open(file.clone()).unwrap();
        assert_eq!(layer.size(), (10 * MIB + 512).next_multiple_of(sector.into()));
        assert_eq!((layer.sector(), layer.granule()), (sector, u64::from(sector)));
        assert_eq!(layer.disk_id(), Some(DISK));
        assert_eq!(layer.identity(), made.identity());
        assert_ne!(layer.identity().0, Some(PARENT));
        assert_eq!(says(&layer, "subformat"), json!("differencing"));
        assert_eq!(says(&layer, "block-size"), json!(block_size));
        let found = layer.parent().unwrap();
        assert_eq!(found.candidates, parent(512).candidates);
        assert_eq!((found.format.as_deref(), found.expected), (Some("vhdx"), vec![PARENT]));
        // All of it shows the parent, and the file has no block.
        let all = layer.extent(0, u64::MAX).unwrap();
        assert_eq!((all.kind, all.len), (cowhand_core::Kind::Hole, layer.size()));
        let log = if given.len() == 3 { 3 } else { 1 };
        assert_eq!(file.to_vec().len() as u64, (3 + log) * MIB);
        // What replaces it has no parent.
        let like = layer.made_with(true);
        assert!(like.contains(&("subformat", "dynamic".to_owned())), "{like:?}");
        assert!(like.contains(&("logical_sector_size", sector.to_string())), "{like:?}");
    }
}

#[test]
fn the_table_of_a_child_has_room_for_whole_chunks() {
    // 16 blocks of 256 MiB are a chunk; a BAT of exactly a MiB holds 7710 of those with their bitmaps.
    let chunk = 16 * (256 * MIB);
    for (chunks, mibs) in [(1, 1), (7710, 1), (7711, 2)] {
        let (file, _) = child(chunks * chunk - chunk + 512, parent(512), &[("block_size", "256M")]).unwrap();
        assert_eq!(file.to_vec().len() as u64, (3 + mibs) * MIB, "{chunks} chunks");
        open(file).unwrap();
    }
}

#[test]
fn children_that_cannot_be_made() {
    let refused = |parent: ParentRef, given: &[(&str, &str)]| child(MIB, parent, given).unwrap_err();
    let error = refused(ParentRef { format: Some("raw".to_owned()), ..parent(512) }, &[]);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("its locator could not name 'base.vhdx', which is raw"), "{error}");
    let error = refused(ParentRef { expected: Vec::new(), ..parent(512) }, &[]);
    assert!(error.to_string().contains("identity of the parent"), "{error}");
    let error = refused(ParentRef { sector: None, ..parent(512) }, &[]);
    assert!(error.to_string().contains("sector of the parent is not known"), "{error}");
    let error = refused(parent(4096), &[("logical_sector_size", "512")]);
    assert!(error.to_string().contains("which is 4096 bytes here"), "{error}");
    let error = refused(parent(512), &[("subformat", "fixed")]);
    assert!(error.to_string().contains("a fixed VHDX has no parent"), "{error}");
    let error = refused(parent(512), &[("block_state_zero", "on")]);
    assert!(error.to_string().contains("would hide the parent"), "{error}");
}

#[test]
fn ids_can_be_given_and_are_kept_by_what_replaces_an_image() {
    let file = Arc::new(MemoryStorage::new());
    let id = "12345678-9abc-def0-1122-334455667788";
    let made = create(
        file.clone(),
        MIB,
        &[("disk_id", id), ("data_write_guid", &format!("{{{id}}}").to_uppercase())],
    );
    let made = made.unwrap();
    let raw =
        [0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xf0, 0xde, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    assert_eq!((made.disk_id(), made.identity().0), (Some(raw), Some(raw)));
    made.close().unwrap();
    assert_eq!(Vhdx.identity(file.as_ref()).unwrap().0, Some(raw));
    let like = |layer: &Arc<dyn Layer>, replacing| -> Arc<dyn Layer> {
        let options = layer.made_with(replacing);
        let given: Vec<_> = options.iter().map(|(name, value)| (*name, value.as_str())).collect();
        create(Arc::new(MemoryStorage::new()), MIB, &given).unwrap()
    };
    let (same, copy) = (like(&made, true), like(&made, false));
    assert_eq!((same.disk_id(), same.identity()), (made.disk_id(), made.identity()));
    assert!(copy.disk_id() != made.disk_id() && copy.identity() != made.identity());
}

#[test]
fn every_kind_makes_its_like() {
    for given in [
        &[("subformat", "fixed"), ("block_size", "4M"), ("log_size", "2M")][..],
        &[("subformat", "dynamic"), ("block_size", "256M"), ("physical_sector_size", "512")],
        &[("logical_sector_size", "4096"), ("block_size", "1M")],
    ] {
        let layer = create(Arc::new(MemoryStorage::new()), 9 * MIB, given).unwrap();
        let like = layer.made_with(false);
        for (name, value) in given {
            let wanted = value
                .strip_suffix('M')
                .map_or((*value).to_owned(), |mib| (mib.parse::<u64>().unwrap() * MIB).to_string());
            assert!(like.contains(&(*name, wanted.clone())), "{name}={wanted}: {like:?}");
        }
    }
}

#[test]
fn fragmentation_is_of_blocks_that_do_not_follow_in_the_file() {
    let mut disk = common::Build::new(12 * MIB, MIB, 512, None);
    assert_eq!(says(&disk.open().unwrap(), "fragmentation-percentage"), json!(0));
    let places: Vec<u64> = (0..5).map(|_| disk.room(MIB)).collect();
    for (block, place) in [(0, 0), (1, 1), (3, 2), (7, 4), (11, 3)] {
        disk.set(block, places[place] | common::FULL);
    }
    // Two of four do not follow.
    assert_eq!(says(&disk.open().unwrap(), "fragmentation-percentage"), json!(50));
    // Not found out where it would take long.
    let file = Arc::new(MemoryStorage::new());
    create(file.clone(), 64 << 40, &[("block_size", "1M"), ("block_state_zero", "off")]).unwrap();
    assert_eq!(says(&open(file).unwrap(), "fragmentation-percentage"), Value::Null);
}

#[test]
fn details_are_those_of_the_file() {
    let disk = common::Build::new(4 * MIB, 2 * MIB, 512, Some(&[("parent_linkage", common::LINKAGE)]));
    let found = disk.open().unwrap().details();
    assert_eq!((found.cluster_size, found.dirty), (Some(2 * MIB), false));
    let expected = json!({
        "subformat": "differencing",
        "block-size": 2 * MIB,
        "logical-sector-size": 512,
        "physical-sector-size": 4096,
        "virtual-disk-id": "05050505-0505-0505-0505-050505050505",
        "data-write-guid": "07070707-0707-0707-0707-070707070707",
        "file-write-guid": "06060606-0606-0606-0606-060606060606",
        "creator": "by hand",
        "header-sequence-number": 4,
        "log-size": MIB,
        "log-offset": MIB,
        "log-dirty": false,
        "fragmentation-percentage": 0,
        "parent-locator": { "parent_linkage": common::LINKAGE },
    });
    assert_eq!(Value::Object(found.specific), expected);
}
