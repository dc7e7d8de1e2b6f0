//! The gate against images that other programs made.
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::path::Path;
use std::process::Command;

use cowhand_core::Compat;

use super::{in_pieces, judge};
use crate::inspect::{Report, Verdict};

fn qemu_img(folder: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("qemu-img").current_dir(folder).args(args).output().ok()?;
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What qemu-img makes, named by its format and options: the verdict, and the size that it prints.
#[test]
fn of_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no qemu-img");
        return;
    }
    let cases: [(&str, &str, &str, &[&str]); 17] = [
        ("qcow2", "compat=0.10", "qcow2", &[]),
        ("qcow2", "compression_type=zstd", "qcow2", &[]),
        ("qcow2", "extended_l2=on", "qcow2", &[]),
        ("qcow2", "cluster_size=512", "qcow2", &[]),
        ("qcow2", "cluster_size=2M", "qcow2", &[]),
        ("qcow2", "preallocation=metadata", "qcow2", &[]),
        ("qcow2", "data_file=other.raw", "qcow2", &["data_file"]),
        ("qed", "", "qed", &["banned"]),
        ("vpc", "subformat=dynamic", "vhd", &[]),
        ("vpc", "subformat=fixed", "vhd", &[]),
        ("vpc", "subformat=fixed,force_size=on", "vhd", &[]),
        ("vhdx", "subformat=dynamic", "vhdx", &[]),
        ("vhdx", "block_size=1M,log_size=2M", "vhdx", &[]),
        ("vmdk", "subformat=monolithicSparse", "vmdk", &[]),
        ("vmdk", "subformat=streamOptimized", "vmdk", &[]),
        ("vmdk", "subformat=monolithicFlat", "vmdk", &["descriptor"]),
        ("vdi", "", "vdi", &[]),
    ];
    for (number, (format, options, expected, failed)) in cases.into_iter().enumerate() {
        let name = format!("{number}.{format}");
        let mut args = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([name.as_str(), "6M"]);
        qemu_img(folder, &args);
        let report = judge(&std::fs::read(folder.join(&name)).unwrap(), Compat::Strict);
        assert_eq!(
            (report.formats.as_slice(), report.failed_checks().as_slice()),
            ([expected.to_owned()].as_slice(), failed),
            "{name} {options}: {report}"
        );
        let info = qemu_img(folder, &["info", "--output=json", "-f", format, &name]).unwrap();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], report.virtual_size.unwrap(), "{name} {options}");
    }
    // A backing file, and snapshots.
    qemu_img(folder, &["create", "-q", "-f", "qcow2", "-b", "0.qcow2", "-F", "qcow2", "child.qcow2"]);
    let report = judge(&std::fs::read(folder.join("child.qcow2")).unwrap(), Compat::Strict);
    assert_eq!(report.failed[0].reason, "it names a backing file, '0.qcow2'");
    for name in ["one", "two", "three"] {
        qemu_img(folder, &["snapshot", "-c", name, "1.qcow2"]);
    }
    assert_eq!(judge(&std::fs::read(folder.join("1.qcow2")).unwrap(), Compat::Strict).verdict, Verdict::Safe);
}

/// Images of Hyper-V, Virtual PC, VirtualBox, XenServer and others, with the size that each shows.
#[test]
fn of_other_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Unpacked there by the tests that compare their guests' bytes.
    let (folder, manifest) = (root.join("target/samples"), root.join("../shared/samples/MANIFEST.tsv"));
    let Some(manifest) = std::fs::read_to_string(manifest).ok().filter(|_| folder.is_dir()) else {
        eprintln!("SKIPPED: there are no samples at {}", folder.display());
        return;
    };
    let mut seen = 0;
    for line in manifest.lines().skip(1) {
        let mut fields = line.split('\t');
        let (Some(name), Some(format), Some(kind), Some(size)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if format == "vma" {
            continue;
        }
        let image = std::fs::read(folder.join(name)).unwrap();
        let report: Report = judge(&image, Compat::Strict);
        assert_eq!(report.formats[0], format, "{name}");
        if let Ok(size) = size.parse() {
            assert_eq!(report.virtual_size, Some(size), "{name}");
        }
        let child = kind.contains("differencing")
            || name.ends_with("chain-1.qcow2")
            || name.ends_with("chain-2.qcow2");
        let expected: &[&str] = match () {
            () if child => &["backing_file"],
            () if kind.contains("dirty log") => &["log"],
            () => &[],
        };
        assert_eq!(report.failed_checks(), expected, "{name}: {report}");
        assert_eq!(in_pieces(&image, &[1_000_003], Compat::Strict), report);
        seen += 1;
    }
    assert!(seen > 0, "the manifest lists no image");
}
