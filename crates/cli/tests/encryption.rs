//! Encrypted images on the command line: secrets, options of the driver, keys; against qemu-img where it is there.
#![allow(clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use common::{bad, good, has, has_qemu_img_10, names, noise, run};
use serde_json::Value;

const QUICK: &str = "encrypt.format=luks,encrypt.iter-time=1";

#[test]
fn secrets_open_and_make_images() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = noise(300 << 10);
    std::fs::write(dir.join("a.raw"), &content).unwrap();
    std::fs::write(dir.join("key"), "a passphrase\n").unwrap();
    std::fs::write(dir.join("other"), "b3RoZXI=\n").unwrap();
    good(dir, &["convert", "-q", "--key-file", "key", "-o", QUICK, "a.raw", "a.qcow2"]);
    good(dir, &["convert", "-q", "--key-file", "key", "--verify", "-o", "iter-time=1", "a.raw", "a.luks"]);

    for image in ["a.qcow2", "a.luks"] {
        let said = bad(dir, &["convert", image, "out.raw"], 1);
        assert!(said.contains("is encrypted, and no secret was given; pass --key-file"), "{said}");
        let said = bad(dir, &["convert", "--key-file", "other", image, "out.raw"], 1);
        assert!(said.contains("Invalid password, cannot unlock any keyslot"), "{said}");
        assert!(!dir.join("out.raw").exists());
        // Which of several secrets it is need not be said; and a wrong one can be named.
        let wrong = "secret,id=wrong,data=no";
        let key = "secret,id=right,file=key";
        good(dir, &["convert", "-q", "--object", wrong, "--object", key, image, "out.raw"]);
        assert!(std::fs::read(dir.join("out.raw")).unwrap() == content);
        std::fs::remove_file(dir.join("out.raw")).unwrap();
        let option = if image == "a.luks" { "key-secret" } else { "encrypt.format=luks,encrypt.key-secret" };
        const RAW: &str = "driver=raw,file.filename=a.raw";
        for (id, status) in [("wrong", 2), ("right", 0), ("nobody", 2)] {
            let driver = image.split_once('.').unwrap().1;
            let opts = format!("driver={driver},{option}={id},file.filename={image}");
            let words = ["compare", "--object", wrong, "--object", key, "--image-opts", &opts, RAW];
            assert_eq!(common::cowhand(dir, &words).status.code(), Some(status), "{opts}");
        }
        let mapped = good(dir, &["map", "--output=json", "--key-file", "key", image]);
        assert!(mapped.contains("\"data\": true") && !mapped.contains("offset"), "{mapped}");
    }
    let said = bad(dir, &["convert", "-c", "-O", "qcow2", "--key-file", "key", "-o", QUICK, "a.raw", "x"], 1);
    assert!(said.contains("Compression and encryption not supported at the same time"), "{said}");
    let said = bad(dir, &["create", "-o", QUICK, "x.qcow2", "1M"], 1);
    assert!(said.contains("Parameter 'encrypt.key-secret' is required"), "{said}");
    assert_eq!(names(dir), ["a.luks", "a.qcow2", "a.raw", "key", "other"]);

    // Keys come and go; the last one only by force.
    let old = ["--object", "secret,id=old,file=key"];
    let new = ["--object", "secret,id=new,file=other,format=base64"];
    let amend = |options: &str, more: &[&str], image: &str| {
        let words = [&["amend"], &old[..], &new, more, &["-o", options, image]].concat();
        common::cowhand(dir, &words).status.code()
    };
    for (image, prefix) in [("a.qcow2", "encrypt."), ("a.luks", "")] {
        let option = |text: &str| {
            text.split(',').map(|option| format!("{prefix}{option}")).collect::<Vec<_>>().join(",")
        };
        assert_eq!(amend(&option("state=active,new-secret=new,iter-time=1"), &[], image), Some(0));
        assert_eq!(amend(&option("state=inactive,old-secret=old"), &[], image), Some(0));
        assert_eq!(amend(&option("state=inactive,keyslot=1"), &[], image), Some(1));
        bad(dir, &["compare", "--key-file", "key", image, "a.raw"], 2);
        good(dir, &["compare", "-q", new[0], new[1], image, "a.raw"]);
        assert_eq!(amend(&option("state=inactive,keyslot=1"), &["--force"], image), Some(0));
        bad(dir, &["compare", new[0], new[1], image, "a.raw"], 2);
    }
}

#[test]
fn qemu_img_and_we_say_and_read_the_same() {
    if !has_qemu_img_10() || !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let content = noise(200 << 10);
    std::fs::write(dir.join("a.raw"), &content).unwrap();
    let secret = "secret,id=s,data=open sesame";
    let qemu = |words: &[&str]| {
        let output = run("qemu-img", dir, words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let object = ["--object", secret];
    for (image, options, opts) in [
        ("q.qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1", "encrypt.key-secret=s"),
        ("e.qcow2", "encrypt.format=aes,encrypt.key-secret=s", "encrypt.key-secret=s"),
        ("l.luks", "key-secret=s,iter-time=1,cipher-mode=cbc,ivgen-alg=essiv", "key-secret=s"),
    ] {
        let format = image.split_once('.').unwrap().1;
        good(dir, &["convert", "-q", object[0], object[1], "-o", options, "a.raw", image]);
        assert_eq!(good(dir, &["info", image]), qemu(&["info", image]));
        let ours: Value = serde_json::from_str(&good(dir, &["info", "--output=json", image])).unwrap();
        let theirs: Value = serde_json::from_str(&qemu(&["info", "--output=json", image])).unwrap();
        assert_eq!(ours, theirs);
        let opts = format!("driver={format},{opts},file.filename={image}");
        let words =
            ["compare", object[0], object[1], "--image-opts", &opts, "driver=raw,file.filename=a.raw"];
        assert_eq!(good(dir, &words), qemu(&words));
        let words = ["map", "--output=json", object[0], object[1], "--image-opts", &opts];
        assert_eq!(good(dir, &words), qemu(&words));
        if image != "q.qcow2" {
            continue;
        }
        let measured = ["measure", "--output=json", "-O", format, object[0], object[1], "-o", options];
        let measured = [&measured[..], &["--size", "5G"]].concat();
        let ours: Value = serde_json::from_str(&good(dir, &measured)).unwrap();
        let theirs: Value = serde_json::from_str(&qemu(&measured)).unwrap();
        for figure in ["required", "fully-allocated"] {
            assert_eq!(ours[figure], theirs[figure], "{figure} of {image}");
        }
    }
}
