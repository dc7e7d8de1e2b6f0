//! Which files an image may make us open.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cowhand::{Convert, ErrorKind, Open, Policy, Quiet};
use cowhand_tests::{Content, Patch, Watch, assert_holds, for_all, probe, qemu_img, run, temp};

/// An image in `folder` that names `backing`, whatever that is: the name is patched into the header.
fn naming(folder: &Path, image: &str, backing: &str, format: Option<&str>) -> PathBuf {
    let path = folder.join(image);
    qemu_img(["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    let mut patch = Patch::of(&path);
    // The name goes to the middle of the first cluster; the format is an extension before all others.
    patch.put(4096, backing.as_bytes()).be64(8, 4096).be32(16, backing.len() as u32);
    if let Some(format) = format {
        let mut extension = 0xe279_2aca_u32.to_be_bytes().to_vec();
        extension.extend((format.len() as u32).to_be_bytes());
        extension.extend(format.as_bytes());
        extension.resize(extension.len().next_multiple_of(8), 0);
        extension.extend([0; 8]);
        let header = patch.read_be32(100) as usize;
        patch.put(header, &extension);
    }
    patch.save(&path);
    path
}

fn with(policy: &Policy) -> Open {
    Open { policy: policy.clone(), ..Open::default() }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Opens,
    Denied,
    NotFound,
    Unsupported,
    Invalid,
}

/// What each policy says to each spelling.
#[test]
fn policies_and_spellings() {
    let folder = temp();
    let images = folder.path().join("images");
    let inside = images.join("inside");
    let outside = folder.path().join("outside");
    for dir in [&images, &inside, &outside] {
        std::fs::create_dir(dir).unwrap();
    }
    for dir in [&images, &inside, &outside] {
        Content::random("base", 1 << 20, 1).raw_in(dir);
    }
    symlink(outside.join("base.raw"), images.join("link-out.raw")).unwrap();
    symlink(&outside, images.join("folder-out")).unwrap();
    symlink("base.raw", images.join("link-in.raw")).unwrap();
    symlink("inside/../base.raw", images.join("link-round.raw")).unwrap();
    let absolute = |path: &Path| path.to_str().unwrap().to_owned();
    use Says::{Denied, Invalid, NotFound, Opens, Unsupported};
    // (name; same-dir, allow=outside, local, any). Under deny none opens.
    let cases: Vec<(String, [Says; 4])> = vec![
        ("base.raw".into(), [Opens; 4]),
        ("./base.raw".into(), [Opens; 4]),
        ("inside/base.raw".into(), [Opens; 4]),
        ("inside/../base.raw".into(), [Opens; 4]),
        ("../images/base.raw".into(), [Opens; 4]),
        (absolute(&images.join("base.raw")), [Opens; 4]),
        ("link-in.raw".into(), [Opens; 4]),
        ("link-round.raw".into(), [Opens; 4]),
        ("../outside/base.raw".into(), [Denied, Opens, Opens, Opens]),
        ("inside/../../outside/base.raw".into(), [Denied, Opens, Opens, Opens]),
        (absolute(&outside.join("base.raw")), [Denied, Opens, Opens, Opens]),
        ("link-out.raw".into(), [Denied, Opens, Opens, Opens]),
        ("folder-out/base.raw".into(), [Denied, Opens, Opens, Opens]),
        ("/etc/passwd".into(), [Denied, Denied, Opens, Opens]),
        ("../../../../../../../../../etc/passwd".into(), [Denied, Denied, Opens, Opens]),
        ("/proc/self/environ".into(), [Denied, Denied, Opens, Opens]),
        ("absent.raw".into(), [NotFound; 4]),
        ("/dev/zero".into(), [Denied, Denied, Unsupported, Unsupported]),
        ("json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}".into(), [Denied, Denied, Denied, Invalid]),
        (
            "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}}".into(),
            [Denied, Denied, Denied, Opens],
        ),
        ("nbd://localhost/x".into(), [Denied, Denied, Denied, Invalid]),
        ("nbd:unix:/tmp/x".into(), [Denied, Denied, Denied, Invalid]),
        ("http://localhost/x".into(), [Denied, Denied, Denied, Invalid]),
        ("file:base.raw".into(), [Denied, Denied, Denied, Opens]),
        (format!("file:{}", absolute(&outside.join("base.raw"))), [Denied, Denied, Denied, Opens]),
        ("fat:rw:/".into(), [Denied, Denied, Denied, Invalid]),
        ("ssh://a@b/c".into(), [Denied, Denied, Denied, Invalid]),
        (".".into(), [NotFound, NotFound, Unsupported, Unsupported]),
        ("inside".into(), [Unsupported; 4]),
    ];
    let policies = [Policy::SameDir, Policy::Allow(vec![outside.clone()]), Policy::Local, Policy::Any];
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    for_all(
        &numbered,
        |(_, (name, _))| name.clone(),
        |(n, (name, says))| {
            let image = naming(&images, &format!("{n}.qcow2"), name, Some("raw"));
            let before = cowhand_tests::file_sha256(&image);
            let verdict = |policy: &Policy| match cowhand::open(&image, &with(policy)) {
                Ok(_) => Says::Opens,
                Err(error) => match error.kind() {
                    ErrorKind::Denied => Says::Denied,
                    ErrorKind::NotFound => Says::NotFound,
                    ErrorKind::Unsupported => Says::Unsupported,
                    ErrorKind::Invalid => Says::Invalid,
                    other => panic!("{other:?}: {error}"),
                },
            };
            let found: Vec<Says> = policies.iter().map(verdict).collect();
            assert_eq!(found, says);
            assert_eq!(verdict(&Policy::Deny), Says::Denied, "under deny");
            if found[0] == Says::Denied {
                let text = cowhand::open(&image, &Open::default()).unwrap_err().to_string();
                assert!(text.contains("--p"), "names the flag to pass: {text}");
            }
            // What only looks at an image follows nothing.
            let infos = cowhand::info(&image, &Open::default(), false).unwrap();
            assert_eq!(infos[0].backing_filename().as_deref(), Some(name.as_str()));
            assert_eq!(cowhand_tests::file_sha256(&image), before);
        },
    );
}

/// What is refused is not even opened; what only looks opens nothing else.
#[test]
fn what_is_refused_is_not_touched() {
    let folder = temp();
    let images = folder.path().join("images");
    let outside = folder.path().join("outside");
    std::fs::create_dir(&images).unwrap();
    std::fs::create_dir(&outside).unwrap();
    let base = Content::random("base", 1 << 20, 1).raw_in(&outside);
    let near = Content::random("near", 1 << 20, 1).raw_in(&images);
    symlink(&base, images.join("link.raw")).unwrap();
    let far = [base.to_str().unwrap(), "../outside/base.raw", "link.raw"];
    let images: Vec<PathBuf> = far
        .iter()
        .enumerate()
        .map(|(n, name)| naming(&images, &format!("{n}.qcow2"), name, Some("raw")))
        .collect();
    let data_file = folder.path().join("images/data.qcow2");
    let options = format!("data_file={}", outside.join("data").display());
    qemu_img(["create", "-q", "-f", "qcow2", "-o", &options, data_file.to_str().unwrap(), "1M"]);
    let watch = Watch::on(&outside);
    for image in images.iter().chain([&data_file]) {
        assert_eq!(cowhand::open(image, &Open::default()).unwrap_err().kind(), ErrorKind::Denied);
        cowhand::info(image, &Open::default(), false).unwrap();
        let mut file = std::fs::File::open(image).unwrap();
        let report = cowhand::inspect::inspect(&mut file, cowhand::Compat::Strict).unwrap();
        assert_eq!(report.verdict, cowhand::inspect::Verdict::Unsafe, "{report}");
    }
    assert!(!watch.opened(), "a file outside was opened");
    // The watch would have told.
    cowhand::open(&images[0], &with(&Policy::Local)).unwrap();
    assert!(watch.opened());
    // A parent that may be opened is left alone as well by what only looks.
    let image = naming(folder.path().join("images").as_path(), "near.qcow2", "near.raw", Some("raw"));
    let watch = Watch::on(&near);
    cowhand::info(&image, &Open::default(), false).unwrap();
    assert!(!watch.opened(), "info followed");
    cowhand::info(&image, &Open::default(), true).unwrap();
    assert!(watch.opened());
}

#[test]
fn a_pipe_for_a_parent_does_not_hang() {
    let folder = temp();
    assert!(run(std::process::Command::new("mkfifo").arg(folder.path().join("pipe"))).ok());
    let image = naming(folder.path(), "image.qcow2", "pipe", Some("raw"));
    for paths in ["same-dir", "local", "any"] {
        let found = probe(["read", image.to_str().unwrap(), &format!("paths={paths}")]);
        assert_eq!(found.kind, "Unsupported", "{}", found.message);
        assert!(found.cpu_ms < 2000 && found.ms < 20_000);
    }
    let found = probe(["read", folder.path().join("pipe").to_str().unwrap()]);
    assert_eq!(found.kind, "Unsupported", "{}", found.message);
}

#[test]
fn chains_without_an_end() {
    let folder = temp();
    let own = naming(folder.path(), "own.qcow2", "own.qcow2", Some("qcow2"));
    let a = naming(folder.path(), "a.qcow2", "b.qcow2", Some("qcow2"));
    naming(folder.path(), "b.qcow2", "a.qcow2", Some("qcow2"));
    std::fs::hard_link(&a, folder.path().join("c.qcow2")).unwrap();
    symlink("own-link.qcow2", folder.path().join("dangling.qcow2")).unwrap();
    let through = naming(folder.path(), "through.qcow2", "through-link.qcow2", Some("qcow2"));
    symlink("through.qcow2", folder.path().join("through-link.qcow2")).unwrap();
    for image in [own, a, folder.path().join("c.qcow2"), through] {
        let found = probe(["read", image.to_str().unwrap()]);
        assert_eq!(found.kind, "Corrupt", "{}", found.message);
        assert!(found.message.contains("own chain") && found.cpu_ms < 2000, "{}", found.message);
    }
}

#[test]
fn depth() {
    let folder = temp();
    // A file per layer, made once by qemu-img; only the name in it differs.
    let first = naming(folder.path(), "l000.qcow2", "l001.qcow2", Some("qcow2"));
    let pattern = Patch::of(&first);
    for n in 1..300 {
        let mut layer = pattern.clone();
        layer.put(4096, format!("l{:03}.qcow2", n + 1).as_bytes());
        layer.save(&folder.path().join(format!("l{n:03}.qcow2")));
    }
    qemu_img(["create", "-q", "-f", "qcow2", folder.path().join("l300.qcow2").to_str().unwrap(), "1M"]);
    let probed = |from: usize| {
        let path = folder.path().join(format!("l{from:03}.qcow2"));
        probe(["read", path.to_str().unwrap()])
    };
    let whole = probed(101);
    assert!(whole.ok.is_some(), "200 layers: {}", whole.message);
    for from in [100, 0] {
        let found = probed(from);
        assert_eq!(found.kind, "ChainTooLong", "{}", found.message);
        assert!(found.message.contains("200"), "{}", found.message);
        assert!(found.cpu_ms < 2000 && found.peak_kib < 256 << 10, "{found:?}");
    }
}

/// A parent whose format is not stated is raw; one that looks like something else is not guessed at.
#[test]
fn a_parent_of_unstated_format() {
    let folder = temp();
    let raw = Content::random("base", 1 << 20, 1).raw_in(folder.path());
    let image = naming(folder.path(), "over-raw.qcow2", "base.raw", None);
    assert_holds(&cowhand::open(&image, &Open::default()).unwrap(), &raw);
    let base = folder.path().join("base.qcow2");
    cowhand::convert(&Convert::new([&raw], &base), &Quiet).unwrap();
    let image = naming(folder.path(), "over-qcow2.qcow2", "base.qcow2", None);
    let error = cowhand::open(&image, &Open::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous);
    assert!(error.to_string().contains("--parent-format qcow2"), "{error}");
    let trusting = Open { parent_format: Some("qcow2".to_owned()), ..Open::default() };
    assert_holds(&cowhand::open(&image, &trusting).unwrap(), &raw);
    let as_raw = Open { parent_format: Some("raw".to_owned()), ..Open::default() };
    assert_eq!(cowhand::open(&image, &as_raw).unwrap().links()[1].format, "raw");
    // What is there may also be nothing we know.
    std::fs::write(folder.path().join("base.vmdk"), [b"KDMV".as_slice(), &[0; 4096]].concat()).unwrap();
    let image = naming(folder.path(), "over-vmdk.qcow2", "base.vmdk", None);
    assert_eq!(cowhand::open(&image, &Open::default()).unwrap_err().kind(), ErrorKind::Ambiguous);
    let image = naming(folder.path(), "over-stated.qcow2", "base.vmdk", Some("vmdk"));
    let error = cowhand::open(&image, &Open::default()).unwrap_err();
    assert!(error.to_string().contains("vmdk"), "{error}");
    let image = naming(folder.path(), "over-raw-stated.qcow2", "base.qcow2", Some("raw"));
    assert_eq!(cowhand::open(&image, &Open::default()).unwrap().links()[1].format, "raw");
}

/// Names from an image cannot steer a terminal.
#[test]
fn names_are_printed_escaped() {
    let folder = temp();
    for name in ["\u{1b}[2Jgone", "a\nb", "\u{202e}txt.raw", "tab\there\r"] {
        let image = naming(folder.path(), "image.qcow2", name, Some("raw"));
        let text = cowhand::open(&image, &Open::default()).unwrap_err().to_string();
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text:?}");
    }
    // A NUL ends no name silently.
    let image = naming(folder.path(), "image.qcow2", "base.raw\0/../../etc/passwd", Some("raw"));
    Content::random("base", 1 << 20, 1).raw_in(folder.path());
    cowhand::open(&image, &Open::default()).unwrap_err();
}
