//! `check` of VHDX files that other programs made, or that are laid out as theirs: nothing is wrong with them; and what a
//! repair leaves `qemu-img` accepts, and reads as before.

use std::path::Path;

use cowhand::{Check, ErrorKind, Open, Quiet, Repair, Report, check};
use cowhand_tests::{
    Content, Patch, file_sha256, for_all, qemu_img, qemu_raw, samples, temp, try_qemu_img,
    vhdx_chain_layouts, vhdx_content, vhdx_dynamic_layouts, vhdx_fixed_layouts, vhdx_log_cases,
};

const K: usize = 1 << 10;
const M: usize = 1 << 20;

fn ours(image: &Path, repair: Repair) -> Report {
    let open = Open { format: Some("vhdx".to_owned()), ..Open::default() };
    check(image, &Check { open, repair, workers: 0 }, &Quiet).unwrap().report.unwrap()
}

fn has_no_error(report: &Report) {
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:#?}", report.faults);
}

/// OpenVMM's files go on behind what is in use; no other program's do.
#[test]
fn what_other_software_made_is_clean() {
    let images: Vec<_> = samples().into_iter().filter(|sample| sample.format == "vhdx").collect();
    for_all(
        &images,
        |sample| sample.path.clone(),
        |sample| {
            let before = file_sha256(&sample.file);
            let report = ours(&sample.file, Repair::Nothing);
            has_no_error(&report);
            assert!(report.leaks == 0 || sample.path.contains("openvmm"), "{:#?}", report.faults);
            assert_eq!(file_sha256(&sample.file), before, "a check changed it");
        },
    );
}

#[test]
fn what_qemu_and_we_make_is_clean() {
    let folder = temp();
    let raw = Content::text("text", 9 << 20).raw_in(folder.path());
    for (number, options) in
        ["subformat=dynamic", "subformat=fixed", "block_state_zero=off,block_size=1M"].into_iter().enumerate()
    {
        let image = folder.path().join(format!("{number}.vhdx"));
        let args = ["convert", "-f", "raw", "-O", "vhdx", "-o", options];
        qemu_img(args.iter().map(Path::new).chain([raw.as_path(), &image]));
        let report = ours(&image, Repair::Nothing);
        // It marks no region as required, and begins its blocks on whole ones, which is said.
        assert!(report.is_clean(), "{options}: {:#?}", report.faults);
        let image = folder.path().join(format!("{number}-ours.vhdx"));
        let given: Vec<_> = options.split(',').filter_map(|option| option.split_once('=')).collect();
        let options = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut convert = cowhand::Convert { options, ..cowhand::Convert::new([&raw], &image) };
        convert.format = Some("vhdx".to_owned());
        cowhand::convert(&convert, &Quiet).unwrap();
        let report = ours(&image, Repair::Nothing);
        assert!(report.is_clean() && report.faults.is_empty(), "{given:?}: {:#?}", report.faults);
    }
}

/// Every program's layout, and every rare thing in one: no error that was not made, whatever there is to note; and a
/// repair changes nothing that a guest sees.
#[test]
fn every_layout_is_judged_right() {
    let folder = temp();
    let layouts: Vec<_> =
        [vhdx_dynamic_layouts(), vhdx_fixed_layouts(), vhdx_chain_layouts()].into_iter().flatten().collect();
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            for (path, _) in &built.files {
                let report = ours(path, Repair::Nothing);
                // A header or a region table of some is damaged.
                let damaged = u64::from(layout.name.ends_with("-bad"));
                assert_eq!((report.corruptions, report.check_errors), (damaged, 0), "{:#?}", report.faults);
            }
            if built.files.len() == 1 {
                let (path, content) = built.top();
                has_no_error(&ours(path, Repair::All));
                content.assert_same(&vhdx_content(path), "the judge, after a repair");
            }
        },
    );
}

/// A pending log is no fault, and a repair puts in place what it holds. One that cannot be replayed is one, and is emptied.
#[test]
fn pending_logs() {
    let folder = temp();
    for_all(
        &vhdx_log_cases(),
        |case| case.name.to_owned(),
        |case| {
            let path = folder.path().join(format!("{}.vhdx", case.name.replace(' ', "-")));
            let content = case.build(&path);
            let first = ours(&path, Repair::Nothing);
            let said = |report: &Report, what: &str| report.faults.iter().any(|f| f.message.contains(what));
            if case.good {
                has_no_error(&first);
                assert!(said(&first, "the log is pending"), "{:#?}", first.faults);
            } else {
                assert!(first.corruptions > 0, "{:#?}", first.faults);
            }
            let repaired = ours(&path, Repair::All);
            has_no_error(&repaired);
            assert_eq!(said(&repaired, "what the log held is lost"), !case.good, "{:#?}", repaired.faults);
            let path_text = path.to_str().unwrap();
            let found = try_qemu_img(["check", "-f", "vhdx", path_text]);
            let known = found.err.contains("not supported");
            assert!(found.code == Some(0) || known, "{}{}", found.out, found.err);
            if case.good {
                content.assert_same(&vhdx_content(&path), "the judge, after a repair");
            }
        },
    );
}

/// The CRC-32C of the structure at `at` made right.
fn sealed(p: &mut Patch, at: usize, len: usize) {
    p.vhdx_crc(at, len);
}

/// Where QEMU read the disk it reads the same after a repair; and it finds nothing wrong.
#[test]
fn what_is_repaired_is_right_for_qemu() {
    let folder = temp();
    let raw = Content::text("text", 9 << 20).raw_in(folder.path());
    let image = folder.path().join("made.vhdx");
    let args = ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M"];
    qemu_img(args.iter().map(Path::new).chain([raw.as_path(), &image]));
    let bat = {
        let good = Patch::of(&image);
        let at = (0..2).map(|n| 192 * K + 16 + 32 * n);
        let at = at.into_iter().find(|at| good.get(*at, 4) == [0x66, 0x77, 0xc2, 0x2d]).unwrap();
        good.read_le64(at + 16) as usize
    };
    type Spoil<'a> = &'a dyn Fn(&mut Patch);
    let cases: [(&str, Option<&str>, Spoil); 8] = [
        ("the first header", None, &|p| drop_unit(p.put(64 * K + 99, &[7]))),
        ("the second header", None, &|p| drop_unit(p.put(128 * K, &[7]))),
        ("the second region table", None, &|p| drop_unit(p.put(256 * K + 99, &[7]))),
        ("a log that is not there", None, &|p| {
            for at in [64 * K, 128 * K] {
                p.put(at + 48, &[5; 16]);
                sealed(p, at, 4 * K);
            }
        }),
        ("two blocks in one place", None, &|p| {
            let first = p.read_le64(bat);
            p.le64(bat + 8, first);
        }),
        ("an entry past the end", Some("3145728 to 4194303"), &|p| drop_unit(p.le64(bat + 24, 6 | 90 << 20))),
        ("an entry into the log", Some("4194304 to 5242879"), &|p| drop_unit(p.le64(bat + 32, 6 | 1 << 20))),
        ("the file's last MiB and a half", Some("8388608 to 9437183"), &|p| {
            let len = p.len() / M * M - M / 2;
            p.resize(len - M);
        }),
    ];
    for (name, lost, spoil) in cases {
        let mut patch = Patch::of(&image);
        spoil(&mut patch);
        let damaged = folder.path().join("damaged.vhdx");
        patch.save(&damaged);
        let opens = cowhand::open(&damaged, &Open::default()).is_ok();
        let before = (lost.is_none() && opens).then(|| std::fs::read(qemu_raw(&damaged, "vhdx")).unwrap());
        assert!(ours(&damaged, Repair::Nothing).corruptions > 0, "{name}");
        let repaired = ours(&damaged, Repair::All);
        has_no_error(&repaired);
        let found = try_qemu_img(["check", "-f", "vhdx", damaged.to_str().unwrap()]);
        assert_eq!(found.code, Some(0), "{name}: {}{}", found.out, found.err);
        let after = std::fs::read(qemu_raw(&damaged, "vhdx")).unwrap();
        if let Some(before) = before {
            assert!(before == after, "{name}: QEMU reads something else");
        }
        if let Some(lost) = lost {
            let said =
                repaired.faults.iter().any(|fault| fault.message.contains(&format!("{lost} are lost")));
            assert!(said, "{name}: {:#?}", repaired.faults);
        }
    }
}

fn drop_unit(_: &mut Patch) {}

/// What begins otherwise is a VHDX only for who says so.
#[test]
fn a_file_without_its_name_is_mended() {
    let folder = temp();
    let image = folder.path().join("made.vhdx");
    qemu_img(["create", "-f", "vhdx", image.to_str().unwrap(), "4M"]);
    let mut patch = Patch::of(&image);
    patch.put(0, &[0; 8]);
    patch.save(&image);
    let error =
        cowhand::open(&image, &Open { format: Some("vhdx".to_owned()), ..Open::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(ours(&image, Repair::Nothing).corruptions, 1);
    has_no_error(&ours(&image, Repair::All));
    assert_eq!(try_qemu_img(["check", image.to_str().unwrap()]).code, Some(0));
}
