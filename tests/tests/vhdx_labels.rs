//! What VHDX files say of themselves and of their parents, changed by us: Windows' own files and new ones, under the eyes
//! of qemu-img and of the judge.

use std::path::{Path, PathBuf};

use cowhand::{
    Amend, Child, Convert, Create, ErrorKind, Open, Policy, Quiet, Rebase, Reconnect, amend, convert, create,
    rebase, reconnect_parent,
};
use cowhand_tests::{
    Vhdx, assert_qemu_accepts, guest_sha256, options, qemu_img, samples, temp, vhdx_content,
};

use crate::vhdx_read::readable;

/// Copies of the pair that Windows made, in `folder`: parent and child; and the hash of what the child shows.
fn windows_pair(folder: &Path) -> Option<(PathBuf, PathBuf, String)> {
    let all = samples();
    let child = all.iter().find(|sample| sample.path.ends_with("vhdx/dfvfs/fat-differential.vhdx"))?;
    let copy = |name: &str| {
        let to = folder.join(name);
        std::fs::copy(child.file.with_file_name(name), &to).unwrap();
        to
    };
    let pair = (copy("fat-parent.vhdx"), copy("fat-differential.vhdx"));
    let sum = guest_sha256(&cowhand::open(&pair.1, &readable()).unwrap()).unwrap();
    assert!(child.sha256_guest.is_empty() || child.sha256_guest == sum);
    Some((pair.0, pair.1, sum))
}

fn sum(path: &Path) -> String {
    guest_sha256(&cowhand::open(path, &Open { policy: Policy::Local, ..readable() }).unwrap()).unwrap()
}

fn raw_of(path: &Path) -> PathBuf {
    let raw = path.with_extension("raw");
    convert(&Convert::new([path], &raw), &Quiet).unwrap();
    raw
}

#[test]
fn a_child_over_windows_files_is_found_wherever_its_folder_goes() {
    let folder = temp();
    let first = folder.path().join("first");
    std::fs::create_dir_all(first.join("sn\u{e4}p")).unwrap();
    let Some((base, parent, content)) = windows_pair(&first) else { return };
    let child = first.join("sn\u{e4}p/new one.vhdx");
    let how = Child { options: options("block_size=1M"), ..Child::default() };
    let made = cowhand::child(&parent, &child, &how).unwrap();
    assert_eq!((made.depth, made.format), (3, "vhdx"));
    let judge = Vhdx::open(&child);
    judge.assert_ours();
    assert_eq!(judge.parent().unwrap(), parent.canonicalize().unwrap());
    assert_eq!(judge.disk_id(), Vhdx::open(&base).disk_id());
    assert_eq!((judge.block, judge.logical, judge.physical), (1 << 20, 512, 4096));
    assert_eq!(judge.says("relative_path"), Some(r"..\fat-differential.vhdx"));
    let absolute = judge.says("absolute_win32_path").unwrap();
    assert!(absolute.starts_with('\\') && absolute.ends_with(r"first\fat-differential.vhdx"), "{absolute}");
    assert_eq!(sum(&child), content);
    vhdx_content(&child).assert_same(&vhdx_content(&parent), "the judge");

    let second = folder.path().join("second");
    std::fs::rename(&first, &second).unwrap();
    let child = second.join("sn\u{e4}p/new one.vhdx");
    assert_eq!(sum(&child), content);

    // The parent goes elsewhere, and the child is told.
    let elsewhere = second.join("fat-moved.vhdx");
    std::fs::rename(second.join("fat-differential.vhdx"), &elsewhere).unwrap();
    assert_eq!(cowhand::open(&child, &readable()).unwrap_err().kind(), ErrorKind::NotFound);
    let how = Reconnect {
        open: Open { policy: Policy::Local, ..Open::default() },
        parent: Some(elsewhere.clone()),
        ..Reconnect::default()
    };
    let before = Vhdx::open(&child).header().data_write;
    reconnect_parent(&child, &how).unwrap();
    let judge = Vhdx::open(&child);
    judge.assert_ours();
    assert_eq!(judge.header().data_write, before, "what stands on it knows it still");
    assert_eq!(judge.parent().unwrap(), elsewhere.canonicalize().unwrap());
    assert_eq!(sum(&child), content);
}

#[test]
fn windows_child_gets_other_parents_and_none() {
    let folder = temp();
    let Some((base, child, content)) = windows_pair(folder.path()) else { return };
    let raw = raw_of(&child);
    let near = Open { policy: Policy::Local, ..Open::default() };
    let to = |backing: Option<&str>, format: &str| Rebase {
        open: near.clone(),
        backing: backing.map(PathBuf::from),
        backing_format: backing.map(|_| format.to_owned()),
        ..Rebase::default()
    };
    // A parent that it cannot name changes nothing.
    qemu_img(["create", "-q", "-f", "qcow2", folder.path().join("other.qcow2").to_str().unwrap(), "4M"]);
    let error = rebase(&child, &to(Some("other.qcow2"), "qcow2"), &Quiet).unwrap_err();
    assert!(error.to_string().contains("its locator could not name"), "{error}");
    assert_eq!(sum(&child), content);

    // An empty one, so all that its old one showed is written into it.
    let other = folder.path().join("other.vhdx");
    create(&other, &Create::new("vhdx", 4 << 20)).unwrap();
    rebase(&child, &to(Some("other.vhdx"), "vhdx"), &Quiet).unwrap();
    let judge = Vhdx::open(&child);
    judge.assert_closed();
    assert_eq!(judge.parent().unwrap(), other.canonicalize().unwrap());
    assert_eq!(judge.says("volume_path"), None, "that was the old parent's");
    assert_eq!(sum(&child), content);
    // And back, and to none: now qemu-img reads it too.
    rebase(&child, &to(Some("fat-parent.vhdx"), "vhdx"), &Quiet).unwrap();
    assert_eq!(Vhdx::open(&child).parent().unwrap(), base.canonicalize().unwrap());
    assert_eq!(sum(&child), content);
    rebase(&child, &to(None, ""), &Quiet).unwrap();
    let judge = Vhdx::open(&child);
    judge.assert_closed();
    assert_eq!((judge.locator.as_ref(), judge.leave_allocated), (None, false));
    assert_eq!(sum(&child), content);
    assert_qemu_accepts(&child, "vhdx", &raw);
}

#[test]
fn amended_files_are_qemus_still() {
    let folder = temp();
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    for (name, how) in [("a", "subformat=dynamic"), ("b", "subformat=fixed,block_size=1M")] {
        let path = folder.path().join(format!("{name}.vhdx"));
        let file = path.to_str().unwrap();
        qemu_img(["create", "-q", "-f", "vhdx", "-o", how, file, "8M"]);
        cowhand_tests::qemu_io(["-f", "vhdx"], &path, ["write -P 1 0 300k", "write -P 2 7M 64k"]);
        let raw = raw_of(&path);
        let before = Vhdx::open(&path).kept();
        let given = |text: &str| Amend { options: options(text), ..Amend::default() };
        amend(&path, &given(&format!("disk_id={id},physical_sector_size=4096")), &Quiet).unwrap();
        let judge = Vhdx::open(&path);
        judge.assert_closed();
        assert_eq!(judge.physical, 4096);
        assert_eq!(judge.disk_id()[..4], [0x44, 0x50, 0xe5, 0x67]);
        let now = judge.kept();
        assert_eq!(
            (&now.identifier, now.log, &now.regions),
            (&before.identifier, before.log, &before.regions)
        );
        amend(&path, &given(&format!("data_write_guid={id}")), &Quiet).unwrap();
        let judge = Vhdx::open(&path);
        judge.assert_closed();
        assert_eq!(judge.header().data_write[..4], [0x44, 0x50, 0xe5, 0x67]);
        assert_qemu_accepts(&path, "vhdx", &raw);
        let error = amend(&path, &given("block_size=1M"), &Quiet).unwrap_err();
        assert!(error.to_string().contains("Invalid parameter 'block_size'"), "{error}");
    }
}
