//! New differencing disks, and what a file says of itself and its parent.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cowhand_core::{CreateOptions, Format, Layer, MemoryStorage, NoFiles, Options, ParentRef, Result};
use serde_json::{Value, json};

use super::{create, open, open_bytes, pairs};
use crate::Vhd;

/// A parent as the verbs name one: the name to write, the same from the root, its id.
fn parent(format: &str, id: Option<[u8; 16]>) -> ParentRef {
    ParentRef {
        candidates: vec!["base.vhd".into(), "/srv/disks/base.vhd".into()],
        format: Some(format.to_owned()),
        expected: id.into_iter().collect(),
        modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        ..ParentRef::default()
    }
}

fn child(
    file: &Arc<MemoryStorage>,
    size: u64,
    parent: ParentRef,
    options: &[(&str, &str)],
) -> Result<Arc<dyn Layer>> {
    let options = Options::check(Vhd.options(), &pairs(options))?;
    let how = CreateOptions { size, options, parent: Some(parent), fresh: true, ..CreateOptions::default() };
    Vhd.create(file.clone(), &NoFiles, &how)
}

fn says(layer: &Arc<dyn Layer>, key: &str) -> Value {
    layer.details().specific.get(key).cloned().unwrap_or_default()
}

#[test]
fn a_child_is_as_large_as_it_was_asked_to_be_and_names_its_parent() {
    // No geometry says the first; one says the second.
    for size in [1 << 30, 34816, 3 << 20, (2 << 20) + 512] {
        let file = Arc::new(MemoryStorage::new());
        child(&file, size, parent("vpc", Some([7; 16])), &[]).unwrap().close().unwrap();
        let layer = open(file).unwrap();
        assert_eq!(layer.size(), size);
        let found = layer.parent().unwrap();
        let names = ["base.vhd", "/srv/disks/base.vhd"].map(std::path::PathBuf::from);
        assert_eq!(
            found,
            ParentRef { candidates: names.to_vec(), any_case: true, ..parent("vpc", Some([7; 16])) }
        );
        assert_eq!(says(&layer, "subformat"), "differencing");
        assert_eq!(says(&layer, "parent-name"), "base.vhd");
        assert_eq!(says(&layer, "parent-time"), 1_700_000_000);
        let locators = json!([
            { "code": "MacX", "path": "file://./base.vhd", "offset": 4096, "length": 17, "space": 4096 },
            { "code": "W2ku", "path": "\\srv\\disks\\base.vhd", "offset": 8192, "length": 38, "space": 4096 },
            { "code": "W2ru", "path": ".\\base.vhd", "offset": 12288, "length": 20, "space": 4096 },
        ]);
        assert_eq!(says(&layer, "parent-locators"), locators);
        assert_eq!(says(&layer, "table-offset"), 16384);
    }
}

#[test]
fn the_table_may_be_larger_than_the_disk_and_be_followed_by_a_batmap() {
    let file = Arc::new(MemoryStorage::new());
    let options =
        [("max_size", "1T"), ("batmap", "on"), ("unique_id", "67e55044-10b1-426f-9247-bb680e5fe0c8")];
    let layer = create(file.clone(), 1 << 30, &options).unwrap();
    layer.write(5 << 20, &[1; 512]).unwrap();
    layer.close().unwrap();
    let layer = open(file).unwrap();
    // XenServer's size, not one that a geometry can say.
    assert_eq!(layer.size(), 1 << 30);
    for (key, value) in [
        ("uuid", json!("67e55044-10b1-426f-9247-bb680e5fe0c8")),
        ("uuid-in-windows", json!("4450e567-b110-6f42-9247-bb680e5fe0c8")),
        ("table-entries", json!(1 << 19)),
        ("creator", json!("tap")),
        ("creator-version", json!("1.3")),
        ("batmap", json!(true)),
        ("batmap-marker", json!(0)),
        ("footer-at-end", json!("good")),
        ("footer-copy", json!("good")),
    ] {
        assert_eq!(says(&layer, key), value, "{key}");
    }
    let mut bytes = [0; 512];
    layer.read(5 << 20, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 512]);

    let both = Arc::new(MemoryStorage::new());
    child(&both, 1 << 30, parent("raw", None), &options).unwrap().close().unwrap();
    let layer = open(both).unwrap();
    // blktap tells a raw parent by an id of zeros; a note of its format would fail its check.
    assert_eq!((says(&layer, "batmap"), layer.parent().unwrap().format), (json!(true), None));
}

#[test]
fn options_that_do_not_fit_together_are_refused() {
    let refused = |size, options: &[(&str, &str)]| {
        create(Arc::new(MemoryStorage::new()), size, options).unwrap_err().to_string()
    };
    for option in [("max_size", "1T"), ("batmap", "on"), ("block_size", "2M")] {
        let error = refused(1 << 20, &[("subformat", "fixed"), option]);
        assert!(error.contains("a fixed VHD has no blocks"), "{error}");
    }
    assert!(refused(1 << 30, &[("max_size", "1M")]).contains("less than the disk's size"));
    assert!(refused(1 << 30, &[("max_size", "3T")]).contains("too large for file format 'vpc'"));
    assert!(refused(1 << 30, &[("batmap", "on"), ("creator", "win")]).contains("creator=tap"));
    assert!(refused(1 << 30, &[("batmap", "off"), ("creator", "tap")]).contains("leave out batmap=off"));
    assert!(refused(1 << 30, &[("unique_id", "x")]).contains("not a UUID"));
    let zeros = "00000000-0000-0000-0000-000000000000";
    assert!(refused(1 << 30, &[("unique_id", zeros)]).contains("no id"));
    let file = Arc::new(MemoryStorage::new());
    let error = child(&file, 1 << 20, parent("raw", None), &[("subformat", "fixed")]).unwrap_err();
    assert!(error.to_string().contains("a fixed VHD has no parent"), "{error}");
    let error = child(&file, 1 << 20, parent("vpc", None), &[]).unwrap_err().to_string();
    assert!(error.contains("no unique id"), "{error}");
}

#[test]
fn a_footer_that_is_lost_is_reported() {
    let file = Arc::new(MemoryStorage::new());
    create(file.clone(), 1 << 20, &[]).unwrap().close().unwrap();
    let mut bytes = file.to_vec();
    let end = bytes.len() - 512;
    bytes[end + 100] ^= 1;
    let layer = open_bytes(&bytes).unwrap();
    assert_eq!((says(&layer, "footer-at-end"), says(&layer, "footer-copy")), (json!("bad"), json!("good")));
    bytes[end] ^= 1;
    assert_eq!(says(&open_bytes(&bytes).unwrap(), "footer-at-end"), "missing");

    let file = Arc::new(MemoryStorage::new());
    create(file.clone(), 1 << 20, &[("subformat", "fixed")]).unwrap().close().unwrap();
    let mut bytes = file.to_vec();
    bytes.pop();
    assert_eq!(says(&open_bytes(&bytes).unwrap(), "footer-length"), 511);
}
