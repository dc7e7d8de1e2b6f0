//! Encrypted images: both ways against QEMU, what must be refused, and the benches over them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::crash::parent;
use common::{LUKS, SECRET, bytes, create, disk, file, how, named, open, pattern, qemu, run, secrets, with};
use cowhand_core::testing::{FaultTest, ModelTest, RaceTest, Shape};
use cowhand_core::{
    Access, CreateOptions, Erase, ErrorKind, Format, Kind, Layer, MemoryStorage, NoFiles, OpenOptions,
    Options, Prealloc, Quiet, Result, Storage,
};
use cowhand_qcow2::Qcow2;

const SIZE: u64 = 1 << 20;

fn object(id: &str, secret: &str) -> String {
    format!("secret,id={id},data={secret}")
}

fn image(name: &str) -> String {
    format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}")
}

/// Runs one of QEMU's programs on an encrypted image: `before`, the image, `after`.
fn theirs(folder: &Path, program: &str, before: &[&str], name: &str, after: &[&str]) -> String {
    let (object, image) = (object("s", SECRET), image(name));
    let all = [before, &["--object", &object, "--image-opts", &image], after].concat();
    run(folder, program, &all)
}

fn qemu_bytes(folder: &Path, name: &str) -> Vec<u8> {
    let _ = std::fs::remove_file(folder.join("out.raw"));
    theirs(folder, "qemu-img", &["convert"], name, &["-O", "raw", "out.raw"]);
    std::fs::read(folder.join("out.raw")).unwrap()
}

fn qemu_create(folder: &Path, name: &str, options: &str) {
    let object = object("s", SECRET);
    let options = format!("encrypt.key-secret=s,{options}");
    run(
        folder,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "--object", &object, "-o", &options, name, "1M"],
    );
}

/// Overwrites parts of sectors, whole ones and whole clusters, in place and new.
fn scribble(layer: &Arc<dyn Layer>, expected: &mut [u8], seed: u8) {
    for (at, len) in [
        (3, 7),
        (511, 2),
        (4096, 512),
        (65530, 12),
        (100_000, 70_001),
        (300_000, 1),
        (655_360, 131_072),
        (SIZE - 700, 700),
    ] {
        let new = pattern(at, len as usize, seed);
        layer.write(at, &new).unwrap();
        expected[at as usize..][..len as usize].copy_from_slice(&new);
    }
    for (at, len, how) in [(196_608, 65536, Erase::Free), (262_144, 65536, Erase::Zero)] {
        if layer.erase(at, len, how).unwrap() == len {
            expected[at as usize..][..len as usize].fill(0);
        }
    }
}

const XTS: &str = "encrypt.format=luks,encrypt.iter-time=1";
const AES: &str = "encrypt.format=aes";

#[test]
fn what_we_make_qemu_reads() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for (encryption, rest) in [
        (XTS, ""),
        (XTS, "cluster_size=512"),
        (XTS, "cluster_size=512,refcount_bits=64"),
        (XTS, "cluster_size=2M"),
        (LUKS, "extended_l2=on"),
        (LUKS, "compat=0.10"),
        (LUKS, "preallocation=metadata"),
        (LUKS, "preallocation=full"),
        (LUKS, "data_file=d"),
        ("encrypt.format=luks,encrypt.iter-time=1,encrypt.cipher-alg=serpent-256", "cluster_size=4k"),
        (AES, ""),
        (AES, "extended_l2=on,preallocation=falloc"),
        (AES, "compat=0.10,preallocation=metadata"),
        ("encryption=on", "data_file=d"),
    ] {
        let text = format!("{encryption},{rest}").trim_end_matches(',').to_owned();
        let layer = create(&path, &how(SIZE, &text));
        let mut expected = vec![0; SIZE as usize];
        assert!(bytes(&layer) == expected, "{text}: new");
        scribble(&layer, &mut expected, 1);
        assert!(bytes(&layer) == expected, "{text}");
        layer.close().unwrap();
        drop(layer);
        theirs(folder.path(), "qemu-img", &["check", "-q"], "a.qcow2", &[]);
        assert!(qemu_bytes(folder.path(), "a.qcow2") == expected, "{text}: theirs");
        let layer = open(&path, true).unwrap();
        scribble(&layer, &mut expected, 2);
        layer.resize(SIZE + 131_072, Prealloc::Metadata, 0).unwrap();
        expected.resize((SIZE + 131_072) as usize, 0);
        layer.close().unwrap();
        drop(layer);
        theirs(folder.path(), "qemu-img", &["check", "-q"], "a.qcow2", &[]);
        assert!(qemu_bytes(folder.path(), "a.qcow2") == expected, "{text}: again");
    }
}

#[test]
fn what_qemu_makes_we_read_and_write_on() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.qcow2");
    for text in [
        // Theirs takes its time to make a key.
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,\
         encrypt.ivgen-alg=essiv,extended_l2=on,cluster_size=16k",
        "encrypt.format=aes",
        "encrypt.format=aes,compat=0.10,cluster_size=1k",
    ] {
        qemu_create(folder.path(), "b.qcow2", text);
        assert_same_info(&path);
        theirs(
            folder.path(),
            "qemu-io",
            &[
                "-c",
                "write -P 0x11 0 200k",
                "-c",
                "write -P 0x22 300k 512",
                "-c",
                "write -c -P 0x33 448k 64k",
            ],
            "b.qcow2",
            &[],
        );
        let mut expected = vec![0; SIZE as usize];
        expected[..200 << 10].fill(0x11);
        expected[300 << 10..][..512].fill(0x22);
        // They store it as it is, compressed and not encrypted.
        expected[448 << 10..][..64 << 10].fill(0x33);
        theirs(folder.path(), "qemu-img", &["snapshot", "-c", "before"], "b.qcow2", &[]);
        let layer = open(&path, true).unwrap();
        assert!(bytes(&layer) == expected, "{text}");
        let before = expected.clone();
        scribble(&layer, &mut expected, 3);
        assert!(bytes(&layer) == expected, "{text}: written");
        assert!(bytes(&layer.as_snapshots().unwrap().open("before").unwrap()) == before, "{text}: before");
        layer.close().unwrap();
        drop(layer);
        theirs(folder.path(), "qemu-img", &["check", "-q"], "b.qcow2", &[]);
        assert!(qemu_bytes(folder.path(), "b.qcow2") == expected, "{text}: theirs");
    }
}

/// What the image says of itself needs no secret.
fn assert_same_info(path: &Path) {
    let text = run(path.parent().unwrap(), "qemu-img", &["info", "--output=json", path.to_str().unwrap()]);
    let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let how = OpenOptions { metadata_only: true, ..OpenOptions::default() };
    let layer = Qcow2.open(file(path, Access::Read), &NoFiles, &how).unwrap();
    let details = layer.details();
    assert!(details.encrypted);
    assert_eq!(
        serde_json::to_string(&details.specific).unwrap(),
        theirs["format-specific"]["data"].to_string()
    );
}

#[test]
fn keys_are_added_and_erased_both_ways() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.qcow2");
    let layer = create(&path, &how(SIZE, LUKS));
    let mut expected = vec![0; SIZE as usize];
    scribble(&layer, &mut expected, 4);
    let amend = |layer: &Arc<dyn Layer>, text: &str, all: &[&str]| {
        let given = cowhand_core::parse_option_string(text);
        let options = Options::check(Qcow2.amend_options(), &given).unwrap();
        layer.amend(&options, &secrets(all), &Quiet)
    };
    amend(&layer, "encrypt.state=active,encrypt.new-secret=s1,encrypt.iter-time=1", &[SECRET, "second"])
        .unwrap();
    drop(layer);
    theirs(
        folder.path(),
        "qemu-img",
        &["amend", "--object", &object("n", "third")],
        "c.qcow2",
        &["-o", "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10"],
    );
    let opened = |secret: &str, writable| {
        let how = OpenOptions { writable, secrets: secrets(&[secret]), ..OpenOptions::default() };
        Qcow2.open(file(&path, Access::Write), &NoFiles, &how)
    };
    for secret in [SECRET, "second", "third"] {
        assert!(bytes(&opened(secret, false).unwrap()) == expected, "{secret}");
    }
    let layer = opened("third", true).unwrap();
    amend(&layer, "encrypt.state=inactive,encrypt.old-secret=s0", &[SECRET]).unwrap();
    drop(layer);
    let error = opened(SECRET, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("Invalid password, cannot unlock any keyslot"), "{error}");
    assert!(bytes(&opened("second", false).unwrap()) == expected);

    let aes = create(&path, &how(SIZE, AES));
    let error = amend(&aes, "encrypt.state=inactive,encrypt.keyslot=0", &[]).unwrap_err();
    assert!(error.to_string().contains("AES"), "{error}");
    let plain = create(&path, &how(SIZE, ""));
    assert!(amend(&plain, "encrypt.state=inactive,encrypt.keyslot=0", &[]).is_err());
}

#[test]
fn no_ciphertext_is_handed_out_and_nothing_is_stored_unencrypted() {
    for text in [AES, LUKS] {
        let storage = Arc::new(MemoryStorage::default());
        let layer = Qcow2.create(storage.clone(), &NoFiles, &how(SIZE, text)).unwrap();
        let secret = b"this must not stand in the file, in no cluster and in no sector of it".repeat(2000);
        layer.write(65536, &secret).unwrap();
        let error = layer.write_compressed(0, &[]).unwrap_err();
        assert!(error.to_string().contains("Compression and encryption"), "{error}");
        let source = MemoryStorage::from_bytes(&secret);
        assert_eq!(layer.write_from(0, &source, 0, 65536).unwrap(), 0);
        let found = layer.extent(65536, 65536).unwrap();
        assert_eq!((found.kind, found.host), (Kind::Data, None));
        layer.close().unwrap();
        let stored = storage.to_vec();
        assert!(!stored.windows(24).any(|window| secret.starts_with(window)), "{text}");

        let open = |how: &OpenOptions| Qcow2.open(storage.clone(), &NoFiles, how);
        let error = open(&OpenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(
            error.to_string().contains("encrypted") && error.to_string().contains("--key-file"),
            "{error}"
        );
        let looked_at = open(&OpenOptions { metadata_only: true, ..OpenOptions::default() }).unwrap();
        assert!(looked_at.details().encrypted);
        assert_eq!(looked_at.read(65536, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Denied);
        let named = |id: &str| OpenOptions {
            options: Options::check(Qcow2.open_options(), &[("encrypt.key-secret".into(), id.into())])
                .unwrap(),
            secrets: secrets(&["wrong", SECRET]),
            ..OpenOptions::default()
        };
        assert_eq!(open(&named("s7")).unwrap_err().kind(), ErrorKind::NotFound);
        let mut read = vec![0; secret.len()];
        disk(open(&named("s1")).unwrap()).read(65536, &mut read).unwrap();
        assert!(read == secret);
        // AES has nothing to tell a wrong passphrase by.
        match open(&named("s0")) {
            Ok(layer) => {
                disk(layer).read(65536, &mut read).unwrap();
                assert!(text == AES && read != secret);
            }
            Err(error) => assert!(text == LUKS && error.kind() == ErrorKind::Denied),
        }
    }
}

#[test]
fn an_emptied_image_keeps_its_keys() {
    for text in [AES, LUKS] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let layer = Qcow2.create(storage.clone(), &NoFiles, &how(SIZE, text)).unwrap();
        scribble(&layer, &mut vec![0; SIZE as usize], 6);
        layer.clear().unwrap();
        assert!(bytes(&layer) == vec![0; SIZE as usize]);
        drop(layer);
        let layer = Qcow2.open(storage, &NoFiles, &with(true)).unwrap();
        let mut expected = vec![0; SIZE as usize];
        scribble(&layer, &mut expected, 7);
        assert!(bytes(&layer) == expected, "{text}");
    }
}

#[test]
fn an_overlay_shows_its_parent_and_is_encrypted_itself() {
    for text in [AES, LUKS] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let over = CreateOptions { parent: named("base", "raw"), ..how(SIZE, text) };
        let layer = Qcow2.create(storage, &NoFiles, &over).unwrap();
        let link = |layer, name: &str, format| cowhand_core::Link { layer, name: name.into(), format };
        let below = parent(SIZE);
        let chain = vec![link(layer, "top", "qcow2"), link(below.clone(), "base", "raw")];
        let image = cowhand_core::Image::new(chain).unwrap();
        let mut expected = bytes(&below);
        for (at, len) in [(5, 1), (70_000, 200_001), (SIZE - 3, 3)] {
            let new = pattern(at, len as usize, 9);
            image.write(at, &new).unwrap();
            expected[at as usize..][..len as usize].copy_from_slice(&new);
        }
        let mut found = vec![0; SIZE as usize];
        image.read(0, &mut found).unwrap();
        assert!(found == expected, "{text}");
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let storage = || Arc::new(MemoryStorage::default());
    for (text, said) in [
        ("encrypt.cipher-alg=aes-128", "'encrypt.format' is missing"),
        ("encrypt.key-secret=s0", "'encrypt.format' is missing"),
        ("encrypt.format=aes,encrypt.iter-time=5", "encrypt.format=luks"),
        ("encrypt.format=luks,encryption=on", "can't be used at the same time"),
        ("encrypt.format=luks,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1", "20 bytes"),
        ("encrypt.format=luks,encrypt.key-secret=nobody", "nobody"),
        ("encrypt.format=luks,data_file=d,data_file_raw=on", "no raw image"),
    ] {
        let error = Qcow2.create(storage(), &NoFiles, &how(SIZE, text)).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    let none = CreateOptions { secrets: secrets(&[]), ..how(SIZE, LUKS) };
    let error = Qcow2.create(storage(), &NoFiles, &none).unwrap_err().to_string();
    assert!(error.contains("encrypt.key-secret"), "{error}");
    let two = CreateOptions { secrets: secrets(&["a", "b"]), ..how(SIZE, AES) };
    assert!(Qcow2.create(storage(), &NoFiles, &two).is_err());
}

#[test]
fn hostile_pointers_to_the_encryption_header_are_told() {
    let storage = Arc::new(MemoryStorage::default());
    Qcow2.create(storage.clone(), &NoFiles, &how(SIZE, LUKS)).unwrap().close().unwrap();
    let good = storage.to_vec();
    let pointer = 120;
    assert_eq!(good[112..120], [0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16]);
    let offset = u64::from_be_bytes(good[pointer..pointer + 8].try_into().unwrap());
    for (name, at, new, said) in [
        ("offset 0", pointer, 0, "no cluster's start"),
        ("unaligned", pointer, offset + 512, "no cluster's start"),
        ("past the end", pointer, 1 << 40, "past the end"),
        ("overflowing", pointer, u64::MAX - 65535, "past the end"),
        ("too long", pointer + 8, 1 << 40, "past the end"),
        ("too short", pointer + 8, 591, "LUKS header"),
        ("no room for keys", pointer + 8, 4096, "key material"),
        ("into the L1 table", pointer, offset - 65536, "magic"),
    ] {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&u64::to_be_bytes(new));
        for metadata_only in [false, true] {
            let how = OpenOptions { metadata_only, ..with(false) };
            let error = Qcow2.open(Arc::new(MemoryStorage::from_bytes(&bad)), &NoFiles, &how).unwrap_err();
            assert!(error.to_string().contains(said), "{name}: {error}");
        }
    }
    // Data that is said to stand in the encryption header would be overwritten there, and with it all keys.
    let mut bad = good.clone();
    let l1 = u64::from_be_bytes(good[40..48].try_into().unwrap()) as usize;
    bad[l1..l1 + 8].copy_from_slice(&(offset | 1 << 63).to_be_bytes());
    let layer = Qcow2.open(Arc::new(MemoryStorage::from_bytes(&bad)), &NoFiles, &with(true)).unwrap();
    let told = layer.write(0, &[1; 512]).unwrap_err().to_string();
    assert!(told.contains("cannot be written safely"), "{told}");
}

type Make = Box<dyn Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync>;

fn maker(size: u64, text: &str, parent: bool) -> Make {
    let how = CreateOptions { parent: if parent { named("base", "raw") } else { None }, ..how(size, text) };
    Box::new(move |file| Qcow2.create(file, &NoFiles, &how))
}

fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &with(true))
}

/// (options, allocation unit, disk size)
fn variants() -> [(String, u64, u64); 5] {
    [
        (format!("{AES},cluster_size=64k"), 65536, 1 << 20),
        (format!("{AES},cluster_size=4k,compat=0.10"), 4096, 1 << 18),
        (format!("{LUKS},cluster_size=512,refcount_bits=1"), 512, 1 << 17),
        (format!("{LUKS},cluster_size=16k,extended_l2=on"), 16384, 1 << 19),
        (format!("{LUKS},cluster_size=64k,extended_l2=on,preallocation=metadata"), 65536, 1 << 20),
    ]
}

#[test]
fn every_variant_is_a_flat_vector() {
    for (text, unit, size) in &variants() {
        for seed in 0..2 {
            let size = size + 512 * (seed % 2);
            let shape = Shape { resize: true, snapshots: true, header: true, ..Shape::new(size, *unit) };
            let alone = ModelTest::new(maker(size, text, false), reopen).shape(shape).seed(seed);
            alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
            if seed > 0 {
                continue;
            }
            let over = ModelTest::new(maker(size, text, true), reopen).shape(shape).seed(seed + 100);
            let over = over.parent(parent(size / 1024 * 512));
            over.run().unwrap_or_else(|failure| panic!("{text} over a parent: {failure}"));
        }
    }
}

#[test]
fn threads_leave_each_other_alone() {
    let time = Duration::from_millis(150);
    for (text, unit, _) in &variants() {
        let alone = RaceTest::new(maker(1 << 20, text, false), reopen).unit(*unit).time(time);
        alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
    }
}

#[test]
fn a_failing_input_or_output_loses_nothing() {
    for (text, unit, size) in &variants()[1..4] {
        let shape = Shape { ops: 30, ..Shape::new(*size, *unit) };
        let test = FaultTest::new(maker(*size, text, false), reopen).shape(shape).seed(3).every(17);
        let counts = test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        assert!(counts.errors > 5, "{text}: {counts:?}");
    }
}
