//! 7-Zip reads VHD and follows the parents of differencing disks by bitmaps, which of Debian's programs it alone does
//! rightly: libvhdi is wrong where a run of sectors ends inside a byte of the bitmap, and QEMU ignores parents.

use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand_tests::{Layout, for_all, run, temp, vhd_chain_layouts, vhd_dynamic_layouts};

/// What 7-Zip (26.02) takes otherwise, and why.
const OTHERWISE: &[(&str, &str)] = &[
    // Sizes are always the footer's current one: not the creator's geometry.
    ("virtual-pc", "size"),
    ("virtual-pc-mac", "size"),
    ("virtual-server", "size"),
    ("blocks-1m", "size"),
    ("qemu", "size"),
    ("virtual-pc-511", "footers of 511 bytes"),
    // In a dynamic disk the bytes of a sector that is not there must be zero.
    ("virtual-pc-garbage", "bytes behind clear bits"),
    ("shuffled", "bytes behind clear bits"),
    ("blktap-0.1", "bitmaps with the least significant bit first"),
    ("blktap-0.1-child", "bitmaps with the least significant bit first"),
    ("xenserver", "blktap's tables"),
    ("xenserver-hidden-2", "blktap's tables"),
    ("xenserver-three-each-larger", "blktap's tables"),
    ("xenserver-on-raw", "raw parents"),
    ("child-smaller", "blktap's tables"),
    ("w2ru-in-a-folder", "parents in other folders"),
    ("small-blocks-child", "a child with other blocks than its parent"),
    ("disk2vhd", "the largest geometry"),
    ("blocks-256m", "too large to be extracted"),
];

/// 7-Zip, where it is.
pub(crate) fn seven_zip() -> Option<&'static str> {
    let found = ["7zz", "7z"].into_iter().find(|name| Command::new(name).arg("i").output().is_ok());
    if found.is_none() {
        eprintln!("SKIPPED: 7-Zip is not there");
    }
    found
}

/// The disk as 7-Zip extracts it.
pub(crate) fn by_seven_zip(program: &str, image: &Path) -> Vec<u8> {
    let into = tempfile::tempdir_in(image.parent().unwrap()).unwrap();
    let mut to = std::ffi::OsString::from("-o");
    to.push(into.path());
    let ran = run(Command::new(program).args(["x", "-y", "-tvhd"]).arg(to).arg(image));
    assert!(ran.ok(), "7-Zip: {}{}", ran.out, ran.err);
    let files: Vec<PathBuf> =
        std::fs::read_dir(into.path()).unwrap().map(|file| file.unwrap().path()).collect();
    std::fs::read(&files[0]).unwrap()
}

/// It is a judge: what it reads of other programs' files is what was built.
#[test]
fn reads_what_was_built() {
    let Some(program) = seven_zip() else { return };
    let folder = temp();
    let layouts: Vec<Layout> = vhd_dynamic_layouts()
        .into_iter()
        .chain(vhd_chain_layouts())
        .filter(|layout| OTHERWISE.iter().all(|(name, _)| *name != layout.name))
        .collect();
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            assert!(by_seven_zip(program, top) == content, "7-Zip reads something else");
        },
    );
}
