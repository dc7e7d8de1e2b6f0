//! 7-Zip reads VHDX too, and follows the parents of differencing disks.

use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand_tests::{
    Mirror, VhdxLayout, for_all, run, temp, vhdx_chain_layouts, vhdx_dynamic_layouts, vhdx_fixed_layouts,
};

use crate::vhd_by_7zip::seven_zip;

/// What 7-Zip (26.02) takes otherwise, and why.
const OTHERWISE: &[(&str, &str)] = &[
    ("nothing", "disks without a byte"),
    ("absolute-only", "parents in other folders"),
    ("relative-gone", "parents in other folders"),
    ("in-a-folder", "parents in other folders"),
    ("other-case", "names in another case"),
    ("merging", "the second linkage"),
    ("first-header-bad", "damaged headers"),
    ("second-header-bad", "damaged headers"),
    ("first-table-bad", "damaged region tables"),
    ("second-table-bad", "damaged region tables"),
    ("cut", "a file that ends inside its last block"),
    ("every-state", "offsets in entries of blocks that are not there"),
    ("child-every-state", "offsets in entries of blocks that are not there"),
    ("child-larger", "a child larger than its parent"),
    ("three-each-larger", "a child larger than its parent"),
];

/// What 7-Zip extracts is `content`.
pub(crate) fn assert_seven_zip(program: &str, image: &Path, content: &Mirror) {
    let into = tempfile::tempdir_in(image.parent().unwrap()).unwrap();
    let mut to = std::ffi::OsString::from("-o");
    to.push(into.path());
    let ran = run(Command::new(program).args(["x", "-y", "-tvhdx"]).arg(to).arg(image));
    assert!(ran.ok(), "7-Zip: {}{}", ran.out, ran.err);
    let files: Vec<PathBuf> =
        std::fs::read_dir(into.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let found = std::fs::read(&files[0]).unwrap();
    let mut mirror = Mirror::new(found.len() as u64);
    mirror.write(0, &found);
    content.assert_same(&mirror, "7-Zip");
}

/// It is a judge: what it reads of other programs' files is what was built.
#[test]
fn reads_what_was_built() {
    let Some(program) = seven_zip() else { return };
    let folder = temp();
    let layouts: Vec<VhdxLayout> = [vhdx_dynamic_layouts(), vhdx_fixed_layouts(), vhdx_chain_layouts()]
        .into_iter()
        .flatten()
        // Only sectors of 512 bytes, and yet only disks of whole 4 KiB.
        .filter(|layout| layout.top().size < 1 << 28 && layout.top().sectors.0 == 512)
        .filter(|layout| OTHERWISE.iter().all(|(name, _)| *name != layout.name))
        .map(|mut layout| {
            for (_, file) in &mut layout.files {
                file.size = file.size.next_multiple_of(4096);
            }
            layout
        })
        .collect();
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            assert_seven_zip(program, top, content);
        },
    );
}
