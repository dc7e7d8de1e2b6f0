//! Images of qemu-img's whose header changes afterwards, by us and by qemu-img: both say the same of them then, and
//! neither has harmed the content.

use std::path::Path;

use cowhand::{Amend, Convert, Open, Policy, Quiet, Rebase, amend, convert, hidden, rebase, set_hidden};
use cowhand_tests::{Content, for_all, options, qemu_img, qemu_io, temp, try_qemu_img};
use serde_json::Value;

const MB: u64 = 1 << 20;

fn near() -> Open {
    Open { policy: Policy::Any, ..Open::default() }
}

/// What `qemu-img info` says of one file, without what differs between copies of it.
fn info(path: &Path) -> Value {
    let mut info: Value =
        serde_json::from_str(&qemu_img(["info", "--output=json", path.to_str().unwrap()])).unwrap();
    let all = info.as_object_mut().unwrap();
    for name in ["filename", "actual-size", "children", "full-backing-filename"] {
        all.remove(name);
    }
    info
}

/// A qcow2 with data, compressed data, zeros and holes, made by qemu-img.
fn made(folder: &Path, name: &str, how: &str, backing: bool) -> std::path::PathBuf {
    let path = folder.join(name);
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    if !how.is_empty() {
        arguments.extend(["-o", how]);
    }
    if backing {
        arguments.extend(["-b", "base.raw", "-F", "raw"]);
    }
    arguments.extend([path.to_str().unwrap(), "8M"]);
    qemu_img(arguments);
    qemu_io(
        ["-f", "qcow2"],
        &path,
        [
            "write -P 1 0 300k",
            "write -c -P 2 2M 128k",
            "write -P 3 4M 64k",
            "write -z 100k 64k",
            "write -z 3M 1M",
            "write -zu 4M 64k",
        ],
    );
    path
}

#[test]
fn amended_by_us_and_by_qemu_img() {
    let cases = [
        ("", false, "lazy_refcounts=on"),
        ("compat=0.10", false, "compat=1.1,lazy_refcounts=on"),
        ("compat=0.10", false, "compat=1.1,size=16M"),
        ("", true, "compat=0.10"),
        ("cluster_size=4k", true, "compat=v2,size=9M"),
        ("cluster_size=4k", false, "refcount_bits=64"),
        ("cluster_size=4k,refcount_bits=64", true, "refcount_bits=8"),
        ("refcount_bits=32,cluster_size=1k", false, "compat=0.10,refcount_bits=16"),
    ];
    for_all(
        &cases,
        |case| format!("{case:?}"),
        |(how, backing, change)| {
            let folder = temp();
            let base = Content::random("base", 8 * MB, 5).raw_in(folder.path());
            std::fs::rename(base, folder.path().join("base.raw")).unwrap();
            let ours = made(folder.path(), "ours.qcow2", how, *backing);
            let theirs = folder.path().join("theirs.qcow2");
            std::fs::copy(&ours, &theirs).unwrap();
            amend(&ours, &Amend { open: near(), options: options(change), ..Amend::default() }, &Quiet)
                .unwrap();
            qemu_img(["amend", "-f", "qcow2", "-t", "unsafe", "-o", change, theirs.to_str().unwrap()]);
            assert_eq!(info(&ours), info(&theirs));
            qemu_img(["compare", ours.to_str().unwrap(), theirs.to_str().unwrap()]);
            assert_eq!(try_qemu_img(["check", "-q", ours.to_str().unwrap()]).code, Some(0));
        },
    );
}

/// An unsafe rebase and the hidden mark, over and over, on an image that also has a snapshot and a bitmap.
#[test]
fn another_parent_and_the_hidden_mark_leave_everything_else() {
    let folder = temp();
    for how in ["", "compat=0.10", "cluster_size=512"] {
        let ours = made(folder.path(), "ours.qcow2", how, false);
        let text = ours.to_str().unwrap();
        qemu_img(["snapshot", "-c", "before", text]);
        if how != "compat=0.10" {
            qemu_img(["bitmap", "--add", text, "bits"]);
        }
        let theirs = folder.path().join("theirs.qcow2");
        std::fs::copy(&ours, &theirs).unwrap();
        assert_eq!(hidden(&ours, &near()).unwrap(), Some(false));
        set_hidden(&ours, true, &near()).unwrap();
        for (parent, format) in
            [("gone.raw", "raw"), ("other/base.qcow2", "qcow2"), ("", ""), ("gone.raw", "raw")]
        {
            let backing = (!parent.is_empty()).then(|| parent.into());
            let backing_format = (!format.is_empty()).then(|| format.to_owned());
            let change =
                Rebase { open: near(), backing, backing_format, unchecked: true, ..Rebase::default() };
            rebase(&ours, &change, &Quiet).unwrap();
            let mut arguments = vec!["rebase", "-u", "-f", "qcow2", "-b", parent];
            if !format.is_empty() {
                arguments.extend(["-F", format]);
            }
            arguments.push(theirs.to_str().unwrap());
            qemu_img(arguments);
            assert_eq!(info(&ours), info(&theirs), "{how} {parent}");
            assert_eq!(hidden(&ours, &near()).unwrap(), Some(true));
        }
        qemu_img(["rebase", "-u", "-f", "qcow2", "-b", "", text]);
        assert_eq!(hidden(&ours, &near()).unwrap(), Some(true), "qemu-img keeps it");
        assert_eq!(try_qemu_img(["check", "-q", text]).code, Some(0));
        let raw = folder.path().join("copy.raw");
        let sources = vec![ours.clone()];
        let copy = Convert { sources, target: raw.clone(), format: Some("raw".into()), ..Convert::default() };
        convert(&copy, &Quiet).unwrap();
        qemu_img(["rebase", "-u", "-f", "qcow2", "-b", "", theirs.to_str().unwrap()]);
        qemu_img(["compare", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap(), theirs.to_str().unwrap()]);
    }
}
