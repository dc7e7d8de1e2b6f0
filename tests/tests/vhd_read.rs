//! Reading VHD: files as every program lays them out, built by code that is not ours, and a reader that is not ours.

use cowhand::Open;
use cowhand_tests::{
    BuiltDisk, Layout, Vhd, for_all, samples, temp, vhd_chain_layouts, vhd_content, vhd_dynamic_layouts,
    vhd_fixed_layouts,
};

use crate::vhd_written::has_a_way_for_the_judge;

/// Panics unless the disk holds `content`, and what `extent` calls zero is zero.
pub(crate) fn assert_content(disk: &cowhand::Image, content: &[u8]) {
    assert_eq!(disk.size(), content.len() as u64, "virtual size");
    let mut found = vec![0; (1 << 20) - 513];
    for (n, expected) in content.chunks(found.len()).enumerate() {
        let at = n * found.len();
        let found = &mut found[..expected.len()];
        disk.read(at as u64, found).unwrap_or_else(|error| panic!("reading at {at}: {error}"));
        if found != expected {
            let first = (0..expected.len()).find(|i| found[*i] != expected[*i]).unwrap();
            panic!("differs at {} (sector {})", at + first, (at + first) / 512);
        }
    }
    let mut at = 0;
    while at < disk.size() {
        let found = disk.extent(at, disk.size() - at).unwrap();
        if found.kind != cowhand::Kind::Data {
            let there = &content[at as usize..(at + found.len) as usize];
            assert!(there.iter().all(|byte| *byte == 0), "{:?} at {at} holds data", found.kind);
        }
        at += found.len;
    }
}

fn read_by_all(built: &BuiltDisk) {
    for (path, content) in &built.files {
        let disk = cowhand::open(path, &Open::default()).unwrap();
        assert_content(&disk, content);
    }
}

#[test]
fn everything_built_is_read() {
    let folder = temp();
    let all: Vec<Layout> =
        [vhd_dynamic_layouts(), vhd_fixed_layouts(), vhd_chain_layouts()].into_iter().flatten().collect();
    for_all(
        &all,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            read_by_all(&built);
            // The judge reads what the builder wrote: each of the two tests the other. Where no relative locator leads
            // to the parent, it has no rule to follow.
            let (top, content) = built.top();
            if has_a_way_for_the_judge(layout.name) {
                assert!(vhd_content(top) == content, "the judge reads otherwise");
            }
        },
    );
}

/// The judge itself, on real files.
#[test]
fn the_judge_reads_real_files() {
    for sample in samples() {
        if sample.format != "vhd" || sample.virtual_size.is_none_or(|size| size > 1 << 30) {
            continue;
        }
        let disk = cowhand::open(&sample.file, &Open::default()).unwrap();
        assert_content(&disk, &vhd_content(&sample.file));
        Vhd::open(&sample.file).assert_new_blocks_aligned(&Vhd::open(&sample.file).blocks());
    }
}
