//! `check` of VHD files that other programs made: nothing is wrong with them; and what a repair leaves QEMU reads as
//! before.

use std::path::Path;

use cowhand::{Check, Open, Quiet, Repair, Report, check};
use cowhand_tests::{Content, Patch, for_all, qemu_img, qemu_raw, samples, temp};

fn ours(image: &Path, repair: Repair) -> Report {
    let open = Open { format: Some("vpc".to_owned()), ..Open::default() };
    check(image, &Check { open, repair, workers: 0 }, &Quiet).unwrap().report.unwrap()
}

#[test]
fn what_other_software_made_is_clean() {
    let images: Vec<_> = samples().into_iter().filter(|sample| sample.format == "vhd").collect();
    for_all(
        &images,
        |sample| sample.path.clone(),
        |sample| {
            let report = ours(&sample.file, Repair::Nothing);
            assert!(report.is_clean() && report.faults.is_empty(), "{:#?}", report.faults);
        },
    );
}

#[test]
fn what_qemu_and_we_make_is_clean() {
    let folder = temp();
    let raw = Content::text("text", 9 << 20).raw_in(folder.path());
    for options in ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on"] {
        let image = folder.path().join(format!("{options}.vhd"));
        qemu_img(
            ["convert", "-f", "raw", "-O", "vpc", "-o", options]
                .iter()
                .map(Path::new)
                .chain([raw.as_path(), &image]),
        );
        let report = ours(&image, Repair::Nothing);
        assert!(report.is_clean() && report.faults.is_empty(), "{options}: {:#?}", report.faults);
    }
}

/// Where QEMU read the disk it reads the same after a repair, and where it did not it does.
#[test]
fn what_is_repaired_reads_in_qemu_as_before() {
    let folder = temp();
    let raw = Content::text("text", 9 << 20).raw_in(folder.path());
    let image = folder.path().join("made.vhd");
    qemu_img(
        ["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"]
            .iter()
            .map(Path::new)
            .chain([raw.as_path(), &image]),
    );
    let good = Patch::of(&image);
    let table = good.read_be64(512 + 16) as usize;
    type Spoil<'a> = &'a dyn Fn(&mut Patch);
    let cases: [(&str, Spoil); 4] = [
        ("the end's checksum", &|p| drop_unit(p.put(p.len() - 100, &[7]))),
        ("two blocks in one place", &|p| {
            let first = p.read_be32(table);
            p.be32(table + 4, first);
        }),
        ("blocks that overlap", &|p| {
            let first = p.read_be32(table);
            p.be32(table + 8, first + 100);
        }),
        ("an entry past the end", &|p| drop_unit(p.be32(table + 12, 0x7fff_0000))),
    ];
    for (name, spoil) in cases {
        let mut patch = Patch::of(&image);
        spoil(&mut patch);
        let damaged = folder.path().join("damaged.vhd");
        patch.save(&damaged);
        let lost = name == "an entry past the end";
        // Of an entry past the end QEMU says that the image was truncated, and does not open it.
        let before = if lost { Vec::new() } else { std::fs::read(qemu_raw(&damaged, "vpc")).unwrap() };
        let first = ours(&damaged, Repair::Nothing);
        assert!(first.corruptions > 0, "{name}");
        let repaired = ours(&damaged, Repair::All);
        assert_eq!(repaired.corruptions, 0, "{name}: {:#?}", repaired.faults);
        // A second look finds only the gaps that the repair left.
        assert_eq!(ours(&damaged, Repair::Nothing).corruptions, 0, "{name}");
        let after = std::fs::read(qemu_raw(&damaged, "vpc")).unwrap();
        if lost {
            let said =
                repaired.faults.iter().any(|fault| fault.message.contains("6291456 to 8388607 are lost"));
            assert!(said, "{name}: {:#?}", repaired.faults);
        } else {
            assert!(before == after, "{name}: QEMU reads something else");
        }
    }
}

fn drop_unit(_: &mut Patch) {}
