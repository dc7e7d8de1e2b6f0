//! Encrypted disks through the verbs: in every format that has them, with content of every kind.

use std::path::{Path, PathBuf};

use cowhand::{Convert, Create, ErrorKind, Open, Quiet, Secrets};
use cowhand_tests::{Content, assert_holds, fast_contents, for_all, options, qemu_img, temp, try_qemu_img};

const PASSPHRASE: &str = "correct horse";

/// Little time to make and to open.
const LUKS: &str = "iter-time=1,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha1";

/// (format, options)
const WAYS: [(&str, &str); 7] = [
    ("luks", ""),
    ("qcow2", "format=luks"),
    ("qcow2", "format=luks;extended_l2=on"),
    ("qcow2", "format=luks;cluster_size=512"),
    ("qcow2", "format=luks;preallocation=metadata"),
    ("qcow2", "format=aes"),
    ("qcow2", "format=aes;preallocation=full,compat=0.10"),
];

/// The options of a way, spelt as its format wants them.
fn spelt(format: &str, way: &str) -> Vec<(String, String)> {
    let (kind, rest) = way.split_once(';').unwrap_or((way, ""));
    let prefix = if format == "luks" { "" } else { "encrypt." };
    let mut all = options(rest);
    let own = if kind.ends_with("aes") { "" } else { LUKS };
    for (name, value) in options(kind).into_iter().chain(options(own)) {
        all.push((format!("{prefix}{name}"), value));
    }
    all
}

fn secrets(all: &[&str]) -> Secrets {
    let mut secrets = Secrets::default();
    for (index, secret) in all.iter().enumerate() {
        secrets.add(format!("s{index}"), secret.as_bytes().to_vec()).unwrap();
    }
    secrets
}

fn with(all: &[&str]) -> Open {
    Open { secrets: secrets(all), ..Open::default() }
}

fn opened(path: &Path) -> cowhand::Opened {
    cowhand::open(path, &with(&[PASSPHRASE])).unwrap_or_else(|error| panic!("{error}"))
}

fn to(format: &str, way: &str, source: &Path, target: &Path) -> Convert {
    Convert {
        format: Some(format.to_owned()),
        options: spelt(format, way),
        open: with(&[PASSPHRASE]),
        verify: true,
        ..Convert::new([source], target)
    }
}

/// `qemu-img` finds the same content.
fn assert_qemu_reads(image: &Path, format: &str, raw: &Path) {
    let key = if format == "luks" { "key-secret" } else { "encrypt.key-secret" };
    let object = format!("secret,id=s,data={PASSPHRASE}");
    let opts = format!("driver={format},{key}=s,file.filename={}", image.display());
    let raw = format!("driver=raw,file.filename={}", raw.display());
    let same = try_qemu_img(["compare", "--object", &object, "--image-opts", &raw, &opts]);
    assert_eq!(same.code, Some(0), "qemu-img compare of {}:\n{}{}", image.display(), same.out, same.err);
    if format == "qcow2" {
        let check = try_qemu_img(["check", "--object", &object, "--image-opts", &opts]);
        assert_eq!(check.code, Some(0), "qemu-img check:\n{}{}", check.out, check.err);
    }
}

#[test]
fn every_way_there_and_back() {
    let folder = temp();
    let contents = fast_contents();
    let raws: Vec<PathBuf> = contents.iter().map(|content| content.raw_in(folder.path())).collect();
    let cells: Vec<(usize, usize)> =
        (0..raws.len()).flat_map(|raw| (0..WAYS.len()).map(move |way| (raw, way))).collect();
    let name = |(raw, way): &(usize, usize)| format!("{} as {:?}", raws[*raw].display(), WAYS[*way]);
    for_all(&cells, name, |(n, way)| {
        let (raw, (format, how)) = (&raws[*n], WAYS[*way]);
        let image = raw.with_extension(format!("{way}.{format}"));
        let done = cowhand::convert(&to(format, how, raw, &image), &Quiet).unwrap();
        assert_eq!(done.cloned, 0, "plain bytes were shared with an encrypted image");
        assert_holds(&opened(&image), raw);
        if n % 3 == way % 3 {
            assert_qemu_reads(&image, format, raw);
        }
        // Between two encrypted images nothing is shared either.
        let (format, how) = WAYS[(way + 1) % WAYS.len()];
        let second = raw.with_extension(format!("{way}-again.{format}"));
        let done = cowhand::convert(&to(format, how, &image, &second), &Quiet).unwrap();
        assert_eq!(done.cloned, 0);
        assert_holds(&opened(&second), raw);
        std::fs::remove_file(&image).unwrap();
        std::fs::remove_file(&second).unwrap();
    });
}

#[test]
fn what_a_key_is_needed_for() {
    let folder = temp();
    let raw = Content::random("a", 1 << 20, 7).raw_in(folder.path());
    for (format, way) in [WAYS[0], WAYS[1], WAYS[5]] {
        let image = folder.path().join(format!("image.{format}"));
        cowhand::convert(&to(format, way, &raw, &image), &Quiet).unwrap();
        let denied = |error: cowhand::Error| assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        denied(cowhand::open(&image, &Open::default()).unwrap_err());
        let found = cowhand::info(&image, &Open::default(), true).unwrap();
        assert!(found[0].details.encrypted && found[0].virtual_size == 1 << 20);
        let looked_at = cowhand::open_alone(&image, &Open::default()).unwrap();
        denied(looked_at.read(0, &mut [0; 512]).unwrap_err());
        // A target of which nothing could be written is not there.
        let target = folder.path().join("out.raw");
        let how = Convert { open: Open::default(), ..Convert::new([&image], &target) };
        denied(cowhand::convert(&how, &Quiet).unwrap_err().error);
        assert!(!target.exists());
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_chain_of_different_keys() {
    let folder = temp();
    let raw = Content::striped("a", (1 << 20) + 512, 32 << 10, 3).raw_in(folder.path());
    let base = folder.path().join("base.luks");
    let how = Convert { open: with(&["of the base"]), ..to("luks", "", &raw, &base) };
    cowhand::convert(&how, &Quiet).unwrap();
    let top = folder.path().join("top.qcow2");
    let mut create = Create {
        options: spelt("qcow2", "format=luks"),
        backing: Some("base.luks".into()),
        backing_format: Some("luks".to_owned()),
        secrets: secrets(&["of the base", "of the top"]),
        ..Create::default()
    };
    create.format = "qcow2".to_owned();
    // Which of several it is must be said.
    assert!(cowhand::create(&top, &create).is_err());
    create.options.push(("encrypt.key-secret".to_owned(), "s1".to_owned()));
    cowhand::create(&top, &create).unwrap();
    let both = with(&["of the base", "of the top"]);
    assert_holds(&cowhand::open(&top, &both).unwrap(), &raw);
    assert_eq!(cowhand::open(&top, &with(&["of the top"])).unwrap_err().kind(), ErrorKind::Denied);

    // Written, and committed into the base.
    let change = Content::random("b", 300 << 10, 5).raw_in(folder.path());
    let into = Convert {
        no_create: true,
        format: None,
        options: Vec::new(),
        open: both.clone(),
        ..to("qcow2", "", &change, &top)
    };
    cowhand::convert(&into, &Quiet).unwrap();
    let mut expected = std::fs::read(&raw).unwrap();
    let new = std::fs::read(&change).unwrap();
    expected[..new.len()].copy_from_slice(&new);
    let whole = folder.path().join("expected.raw");
    std::fs::write(&whole, &expected).unwrap();
    assert_holds(&cowhand::open(&top, &both).unwrap(), &whole);
    cowhand::commit(
        &top,
        &cowhand::Commit { open: both.clone(), keep: true, ..cowhand::Commit::default() },
        &Quiet,
    )
    .unwrap();
    assert_holds(&cowhand::open(&base, &both).unwrap(), &whole);
    assert_holds(&cowhand::open(&top, &both).unwrap(), &whole);
}

#[test]
fn luks2_is_refused_by_name() {
    let folder = temp();
    let image = folder.path().join("a.img");
    let mut bytes = vec![0; 1 << 20];
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    std::fs::write(&image, bytes).unwrap();
    let error = cowhand::open(&image, &with(&[PASSPHRASE])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("LUKS2"), "{error}");
}

#[test]
fn an_image_that_qemu_made_grows_and_is_measured() {
    let folder = temp();
    let image = folder.path().join("a.luks");
    let object = format!("secret,id=s,data={PASSPHRASE}");
    let path = image.to_str().unwrap();
    qemu_img([
        "create",
        "-q",
        "-f",
        "luks",
        "--object",
        &object,
        "-o",
        "key-secret=s,iter-time=10",
        path,
        "64k",
    ]);
    let zeros = Content::random("zeros", 64 << 10, 1).raw_in(folder.path());
    let how = Convert { no_create: true, options: Vec::new(), ..to("luks", "", &zeros, &image) };
    cowhand::convert(&how, &Quiet).unwrap();
    let how = cowhand::Resize {
        open: with(&[PASSPHRASE]),
        size: cowhand::NewSize::To(200 << 10),
        shrink: false,
        force: false,
        prealloc: cowhand::Prealloc::Off,
    };
    cowhand::resize(&image, &how).unwrap();
    let mut expected = std::fs::read(&zeros).unwrap();
    expected.resize(200 << 10, 0);
    let whole = folder.path().join("expected.raw");
    std::fs::write(&whole, &expected).unwrap();
    assert_holds(&opened(&image), &whole);
    assert_qemu_reads(&image, "luks", &whole);
}
