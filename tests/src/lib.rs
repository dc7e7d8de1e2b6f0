//! What every test against foreign programs needs: running them, content to put into disks, looking at disks.
//!
//! The tests themselves are in `tests/`, one file per idea. All need `qemu-img` and `qemu-io` (7.2 or later).

// This library is tests that share code: it panics where a test would.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod command;
mod content;
mod disk;
mod drop_in;
mod drop_in_keys;
mod guid;
mod loop_device;
mod mirror;
mod patch;
mod probe;
mod samples;
mod vhd_builder;
mod vhd_layouts;
mod vhd_reader;
mod vhdx_builder;
mod vhdx_layouts;
mod vhdx_log;
mod vhdx_logs;
mod vhdx_reader;
mod vma_builder;
mod vma_damage;
mod vma_reader;
mod vma_shapes;
mod watch;

pub use command::{
    Background, Ran, cowhand_program, probe_program, qemu_img, qemu_io, qemu_version, run, serve,
    try_qemu_img,
};
pub use content::{Content, Rng, contents, fast_contents};
pub use disk::{
    assert_holds, assert_map_agrees, assert_qemu_accepts, assert_same, file_sha256, guest_sha256, options,
    qemu_raw,
};
pub use drop_in::{Tally, drop_in, drop_in_lists};
pub use guid::{guid, guid_text};
pub use loop_device::Loop;
pub use mirror::Mirror;
pub use patch::Patch;
pub use probe::{Probed, probe};
pub use samples::{Sample, samples};
pub use vhd_builder::{Batmap, Geometry, LocatorText, ParentText, Part, Run, VhdFile};
pub use vhd_layouts::{BuiltDisk, Layout, Piece, vhd_chain_layouts, vhd_dynamic_layouts, vhd_fixed_layouts};
pub use vhd_reader::{Kept, Locator, Vhd, vhd_content, vhd_geometry};
pub use vhdx_builder::{
    ExtraItem, StateOf, VhdxFile, VhdxHeaders, VhdxParent, VhdxPart, VhdxPlaces, vhdx_set_log,
};
pub use vhdx_layouts::{BuiltVhdx, VhdxLayout, vhdx_chain_layouts, vhdx_dynamic_layouts, vhdx_fixed_layouts};
pub use vhdx_log::{LogChange, LogRing};
pub use vhdx_logs::{ByQemu, LogCase, Pending, vhdx_log_cases, vhdx_pend};
pub use vhdx_reader::{Vhdx, VhdxBlock, VhdxHeader, VhdxItem, VhdxKept, VhdxRegion, vhdx_content};
pub use vma_builder::{
    VmaBlobs, VmaBuilt, VmaDisk, VmaExtent, VmaFile, VmaOrder, VmaRescue, VmaSlot, vma_disk_content,
    vma_fix_extent, vma_fix_header,
};
pub use vma_damage::{
    VmaDamaged, vma_bad_extents, vma_bad_headers, vma_bad_memory, vma_broken_files, vma_flipped_headers,
    vma_passed_over, vma_sound,
};
pub use vma_reader::{
    VmaContent, VmaDevice, VmaHead, vma_ctime, vma_extract, vma_head, vma_strict, vma_verify,
};
pub use vma_shapes::{vma_qemu_server_conf, vma_shapes};
pub use watch::Watch;

/// A folder that goes away with the test. Every test begins with it.
pub fn temp() -> tempfile::TempDir {
    command::start_helpers();
    tempfile::Builder::new().prefix("cowhand-tests-").tempdir().expect("a temporary folder")
}

/// Runs `each` for every item on two threads, and then panics with every failure at once.
pub fn for_all<T: Sync>(items: &[T], name: impl Fn(&T) -> String + Sync, each: impl Fn(&T) + Sync) {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| each(item)));
                    if let Err(panic) = done {
                        let text = panic
                            .downcast_ref::<String>()
                            .cloned()
                            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                            .unwrap_or_default();
                        failures.lock().unwrap().push(format!("{}: {text}", name(item)));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} cases failed:\n- {}",
        failures.len(),
        items.len(),
        failures.join("\n- ")
    );
    assert!(!items.is_empty(), "a table without cases proves nothing");
}
