//! Us against QEMU: volumes of every algorithm, both ways.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;

use common::{PASSPHRASE, amend, bytes, create, file, open, pattern, qemu, run, secrets, with};
use cowhand_core::{Access, ErrorKind, Format, NoFiles, OpenOptions};
use cowhand_luks::Luks;

/// What QEMU writes and we must read, and the other way round.
const ALGORITHMS: [&str; 17] = [
    "",
    "cipher-alg=aes-128,hash-alg=sha1",
    "cipher-alg=aes-192,hash-alg=sha512",
    "cipher-alg=serpent-256,hash-alg=sha384",
    "cipher-alg=twofish-256,hash-alg=sha224",
    "cipher-mode=cbc,ivgen-alg=plain",
    "cipher-mode=cbc,ivgen-alg=plain64,hash-alg=ripemd160",
    "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
    "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,cipher-alg=aes-128",
    "cipher-mode=xts,ivgen-alg=essiv",
    "cipher-mode=xts,ivgen-alg=plain64,ivgen-hash-alg=sha256,hash-alg=sha256,cipher-alg=aes-256",
    "cipher-mode=ctr",
    "cipher-mode=ecb,hash-alg=md5",
    "cipher-alg=serpent-128,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=twofish-128,cipher-mode=cbc,ivgen-alg=essiv",
    "cipher-alg=twofish-192",
    "cipher-alg=serpent-192",
];

const SIZE: u64 = 300 << 10;

fn object(id: &str, secret: &[u8]) -> String {
    format!("secret,id={id},data={}", String::from_utf8_lossy(secret))
}

fn image(name: &str) -> String {
    format!("driver=luks,key-secret=s,file.filename={name}")
}

/// What QEMU reads.
fn qemu_bytes(folder: &Path, name: &str) -> Vec<u8> {
    let _ = std::fs::remove_file(folder.join("out.raw"));
    let object = object("s", PASSPHRASE);
    run(
        folder,
        "qemu-img",
        &["convert", "--object", &object, "--image-opts", &image(name), "-O", "raw", "out.raw"],
    );
    std::fs::read(folder.join("out.raw")).unwrap()
}

fn qemu_create(folder: &Path, name: &str, options: &str, size: &str) {
    let options = format!("key-secret=s,iter-time=10,{options}").trim_end_matches(',').to_owned();
    let object = object("s", PASSPHRASE);
    run(folder, "qemu-img", &["create", "-q", "-f", "luks", "--object", &object, "-o", &options, name, size]);
}

#[test]
fn what_qemu_writes_we_read_and_write_on() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Theirs takes its time to make each.
    for options in [ALGORITHMS[8], ALGORITHMS[10]] {
        qemu_create(folder.path(), "a.luks", options, "300k");
        assert_same_info(folder.path(), "a.luks");
        run(
            folder.path(),
            "qemu-io",
            &[
                "-c",
                "write -P 0 0 300k",
                "-c",
                "write -P 0x11 0 100k",
                "-c",
                "write -P 0x22 150k 512",
                "--object",
                &object("s", PASSPHRASE),
                "--image-opts",
                &image("a.luks"),
            ],
        );
        let mut expected = vec![0; SIZE as usize];
        expected[..100 << 10].fill(0x11);
        expected[150 << 10..][..512].fill(0x22);
        let path = folder.path().join("a.luks");
        let layer = open(file(&path, Access::Write), true).unwrap();
        assert_eq!(layer.size(), SIZE);
        assert!(bytes(&layer) == expected, "{options}");
        // Parts of sectors, whole ones, and more than one is done at a time.
        for (at, len) in [(3, 7), (511, 2), (1000, 5000), (150 << 10, 512), ((299 << 10) + 1, 1023)] {
            let new = pattern(at, len, 9);
            layer.write(at, &new).unwrap();
            expected[at as usize..][..len].copy_from_slice(&new);
        }
        layer.close().unwrap();
        assert!(bytes(&layer) == expected, "{options}");
        assert!(qemu_bytes(folder.path(), "a.luks") == expected, "{options}");
    }
}

#[test]
fn what_we_make_qemu_reads() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.luks");
    for options in ALGORITHMS {
        let _ = std::fs::remove_file(&path);
        let layer = create(file(&path, Access::CreateNew), SIZE, options);
        let content = pattern(0, SIZE as usize, 3);
        layer.write(0, &content).unwrap();
        layer.close().unwrap();
        assert!(qemu_bytes(folder.path(), "b.luks") == content, "{options}");
    }
}

/// And what the header says needs no secret.
fn assert_same_info(folder: &Path, name: &str) {
    let text = run(folder, "qemu-img", &["info", "--output=json", name]);
    let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let how = OpenOptions { metadata_only: true, ..OpenOptions::default() };
    let layer = Luks.open(file(&folder.join(name), Access::Read), &NoFiles, &how).unwrap();
    let ours = serde_json::to_string(&layer.details().specific).unwrap();
    assert_eq!(ours, theirs["format-specific"]["data"].to_string());
    assert!(layer.details().encrypted);
    let mut sector = [0; 512];
    assert_eq!(layer.read(0, &mut sector).unwrap_err().kind(), ErrorKind::Denied);
}

#[test]
fn keys_are_added_and_erased_both_ways() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.luks");
    let (first, second, third) = (PASSPHRASE, &b"second"[..], &b"third"[..]);
    let layer = create(file(&path, Access::CreateNew), SIZE, "");
    let content = pattern(0, SIZE as usize, 5);
    layer.write(0, &content).unwrap();
    amend(&layer, "state=active,new-secret=s1,iter-time=1", &[first, second]).unwrap();
    layer.close().unwrap();
    drop(layer);

    // Theirs opens with the key that we added, adds a third, and erases the first.
    let amend_theirs = |secret: &[u8], options: &str| {
        let objects = [object("s", secret), object("n", third), object("o", first)];
        let [s, n, o] = &objects;
        let image = image("c.luks");
        run(
            folder.path(),
            "qemu-img",
            &["amend", "--object", s, "--object", n, "--object", o, "--image-opts", &image, "-o", options],
        );
    };
    amend_theirs(second, "state=active,new-secret=n,iter-time=10");
    amend_theirs(second, "state=inactive,old-secret=o");
    let opened = |secret: &[u8]| Luks.open(file(&path, Access::Write), &NoFiles, &with(true, &[secret]));
    assert_eq!(opened(first).unwrap_err().kind(), ErrorKind::Denied);
    assert!(bytes(&opened(second).unwrap()) == content);
    let layer = opened(third).unwrap();
    assert!(bytes(&layer) == content);

    // Ours erases the second; they can then open with the third alone.
    amend(&layer, "state=inactive,keyslot=1", &[]).unwrap();
    assert!(opened(second).is_err());
    amend(&layer, "state=active,new-secret=s0,keyslot=7,iter-time=1", &[first]).unwrap();
    layer.close().unwrap();
    drop(layer);
    assert!(qemu_bytes(folder.path(), "c.luks") == content);
    let both = OpenOptions { secrets: secrets(&[b"wrong", third]), ..OpenOptions::default() };
    assert!(bytes(&Luks.open(file(&path, Access::Read), &NoFiles, &both).unwrap()) == content);
}
