//! Archives that we write, judged by the independent reader: whatever the disks are and however it is packed.

use std::path::{Path, PathBuf};

use cowhand_tests::{
    Content, Mirror, Rng, VmaContent, file_sha256, for_all, qemu_img, temp, vma_qemu_server_conf, vma_strict,
};

use crate::vma::{assert_image, cowhand, good, names, refused, shell, text};

const MIB: u64 = 1 << 20;
const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// The ways of packing: extension, what unpacks it, and what tests it.
const PACKINGS: [(&str, &str, &str); 4] = [
    ("vma", "cat", "true"),
    ("vma.zst", "zstd -q -dc", "zstd -q -t"),
    ("vma.gz", "gzip -dc", "gzip -t"),
    ("vma.lzo", "lzop -dc", "lzop -t"),
];

/// Its name with this behind it.
fn beside(path: &Path, extension: &str) -> PathBuf {
    PathBuf::from(format!("{}.{extension}", text(path)))
}

/// What an archive holds once it is unpacked by the packing's own program. Errors: what the reader says.
fn judged(path: &Path, unpack: &str) -> Result<VmaContent, String> {
    let plain = beside(path, "plain");
    let ran = shell(Path::new("/"), &format!("{unpack} <'{}' >'{}'", text(path), text(&plain)));
    assert!(ran.ok(), "{unpack}: {ran:?}");
    let found = vma_strict(&mut std::fs::File::open(&plain).unwrap());
    std::fs::remove_file(&plain).unwrap();
    found
}

/// The content of a raw file as a disk of an archive: of whole sectors.
fn in_archive(raw: &Path) -> Mirror {
    let mut content = Mirror::of_file(raw);
    content.resize(content.size().next_multiple_of(512));
    content
}

fn create(folder: &Path, disks: &[(String, PathBuf)], more: &[&str], target: &Path) -> String {
    let conf = folder.join("qemu-server.conf");
    if !conf.exists() {
        let named: Vec<&str> = disks.iter().map(|(name, _)| name.as_str()).collect();
        std::fs::write(&conf, vma_qemu_server_conf(&named)).unwrap();
    }
    let mut words: Vec<String> = ["vma", "create", "-c"].map(str::to_owned).to_vec();
    words.push(text(&conf));
    words.extend(more.iter().map(|word| (*word).to_owned()));
    for (name, path) in disks {
        words.extend(["-d".to_owned(), format!("{name}={}", text(path))]);
    }
    words.push(text(target));
    good(&words)
}

#[test]
fn every_kind_of_image_packed_in_every_way() {
    let folder = temp();
    let sources = crate::streams::sources(folder.path());
    let disks: Vec<(String, PathBuf)> = sources
        .iter()
        .enumerate()
        .map(|(n, (_, image, _))| (format!("drive-scsi{n}"), image.clone()))
        .collect();
    let cases: Vec<_> = PACKINGS.iter().flat_map(|packing| [(packing, false), (packing, true)]).collect();
    // Once: the configuration is the same for all.
    create(folder.path(), &disks, &[], &folder.path().join("first.vma"));
    let name = |(packing, pipe): &(&(&str, &str, &str), bool)| format!("{}, pipe: {pipe}", packing.0);
    for_all(&cases, name, |((extension, unpack, check), pipe)| {
        let path = folder.path().join(format!("{pipe}.{extension}"));
        if *pipe {
            let conf = text(&folder.path().join("qemu-server.conf"));
            let images: Vec<String> =
                disks.iter().map(|(name, path)| format!("-d '{name}={}'", text(path))).collect();
            let flag = match *extension {
                "vma" => String::new(),
                other => format!("--compress {}", other.trim_start_matches("vma.")),
            };
            let script = format!(
                "\"$0\" vma create {flag} -c '{conf}' {} /dev/stdout | cat >'{}'",
                images.join(" "),
                text(&path)
            );
            let ran = shell(Path::new("/"), &script);
            assert!(ran.ok() && ran.err.is_empty(), "{ran:?}");
        } else {
            create(folder.path(), &disks, &[], &path);
        }
        let ran = shell(Path::new("/"), &format!("{check} '{}'", text(&path)));
        assert!(ran.ok(), "{check}: {ran:?}");
        let found = judged(&path, unpack).unwrap();
        for (n, (kind, _, raw)) in sources.iter().enumerate() {
            in_archive(raw).assert_same(found.disk(&format!("drive-scsi{n}")), kind);
        }
        assert_eq!(found.head.configs.len(), 1);
        good(&["vma", "verify", &text(&path)]);
        // Out again, into every format, from the file and from a pipe.
        for (format, extension) in [("raw", "raw"), ("qcow2", "qcow2"), ("vpc", "vhd"), ("vhdx", "vhdx")] {
            let out = beside(&path, &format!("out-{format}"));
            if *pipe {
                let script = format!("\"$0\" vma extract -O {format} - '{}' <'{}'", text(&out), text(&path));
                let ran = shell(Path::new("/"), &script);
                assert!(ran.ok() && ran.err.is_empty(), "{ran:?}");
            } else {
                good(&["vma", "extract", "-O", format, &text(&path), &text(&out)]);
            }
            for (n, (_, _, raw)) in sources.iter().enumerate() {
                let image = out.join(format!("disk-drive-scsi{n}.{extension}"));
                assert_image(&image, format, &in_archive(raw));
            }
            std::fs::remove_dir_all(&out).unwrap();
        }
        for (n, (_, _, raw)) in sources.iter().enumerate() {
            let target = beside(&path, &format!("{n}.qcow2"));
            let named = format!("{}#drive-scsi{n}", text(&path));
            good(&["convert", "-O", "qcow2", &named, &text(&target)]);
            assert_image(&target, "qcow2", &in_archive(raw));
            std::fs::remove_file(&target).unwrap();
        }
    });
}

#[test]
fn every_content() {
    let folder = temp();
    let contents: Vec<Content> =
        cowhand_tests::contents().into_iter().filter(|content| content.size > 0).collect();
    for_all(
        &contents,
        |content| content.name.to_owned(),
        |content| {
            let raw = content.raw_in(folder.path());
            let path = raw.with_extension("vma");
            create(folder.path(), &[("drive-scsi0".to_owned(), raw.clone())], &[], &path);
            let found = judged(&path, "cat").unwrap();
            in_archive(&raw).assert_same(found.disk("drive-scsi0"), content.name);
            let out = raw.with_extension("out");
            good(&["vma", "extract", &text(&path), &text(&out)]);
            in_archive(&raw).assert_same(&Mirror::of_file(&out.join("disk-drive-scsi0.raw")), content.name);
        },
    );
}

/// The same bytes whatever the number of threads, and again.
#[test]
fn the_same_bytes_every_time() {
    let folder = temp();
    let raw = Content::striped("disk", 24 * MIB, 96 << 10, 4).raw_in(folder.path());
    let other = Content::random("other", 3 * MIB, 5).raw_in(folder.path());
    let disks = [("drive-scsi0".to_owned(), raw), ("drive-scsi1".to_owned(), other)];
    let fixed = ["--uuid", UUID, "--time", "1700000000"];
    for (extension, unpack, _) in PACKINGS {
        let mut sums = Vec::new();
        for (n, threads) in ["1", "2", "7", "16", "2"].into_iter().enumerate() {
            let path = folder.path().join(format!("{n}.{extension}"));
            create(folder.path(), &disks, &[&fixed[..], &["-m", threads]].concat(), &path);
            sums.push(file_sha256(&path));
            if n == 0 {
                let found = judged(&path, unpack).unwrap();
                assert_eq!(found.head.ctime, 1_700_000_000);
                let hex: String = found.head.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hex, UUID.replace('-', ""));
            }
        }
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{extension}: {sums:?}");
    }
    let (one, two) = (folder.path().join("one.vma"), folder.path().join("two.vma"));
    create(folder.path(), &disks, &[], &one);
    create(folder.path(), &disks, &[], &two);
    let uuid = |path: &Path| judged(path, "cat").unwrap().head.uuid;
    assert_ne!(uuid(&one), uuid(&two), "an identity is nobody else's");
    assert_ne!(uuid(&one), [0; 16]);
}

#[test]
fn what_is_no_disk_and_no_configuration() {
    let folder = temp();
    let at = |name: &str| text(&folder.path().join(name));
    // Nothing at all: Proxmox's tool makes one that its own reader refuses.
    let ran = cowhand(&["vma", "create", &at("nothing.vma")]);
    if ran.ok() {
        judged(&folder.path().join("nothing.vma"), "cat").unwrap();
        good(&["vma", "verify", &at("nothing.vma")]);
    } else {
        assert!(!folder.path().join("nothing.vma").exists());
    }
    std::fs::write(at("qemu-server.conf"), "memory: 512\n").unwrap();
    std::fs::write(at("qemu-server.fw"), "").unwrap();
    std::fs::write(at("large.conf"), vec![b'#'; 65_535]).unwrap();
    std::fs::write(at("larger.conf"), vec![b'#'; 65_536]).unwrap();
    let confs = ["-c", &at("qemu-server.conf"), "-c", &at("qemu-server.fw"), "-c", &at("large.conf")];
    good(&[&["vma", "create"], &confs[..], &[&at("c.vma")]].concat());
    let found = judged(Path::new(&at("c.vma")), "cat").unwrap();
    let sizes: Vec<usize> = found.head.configs.iter().map(|(_, data)| data.len()).collect();
    assert_eq!(sizes, [12, 0, 65_535]);
    good(&["vma", "extract", &at("c.vma"), &at("out")]);
    assert_eq!(names(Path::new(&at("out"))), ["large.conf", "qemu-server.conf", "qemu-server.fw"]);
    // More than the format can hold.
    let said = refused(&["vma", "create", "-c", &at("larger.conf"), &at("d.vma")], 1);
    assert!(said.contains("larger.conf") && said.contains("6553"), "{said}");
    // What would make a bad archive.
    std::fs::write(at("a.raw"), vec![1; 4096]).unwrap();
    for words in [
        vec!["-d", &format!("a={}", at("a.raw")), "-d", &format!("a={}", at("a.raw"))],
        vec!["-c", &at("qemu-server.conf"), "-c", &at("qemu-server.conf")],
        vec!["-d", &format!("a={}", at("gone.raw"))],
        vec!["-d", &format!("={}", at("a.raw"))],
        vec!["-d", &format!("a/b={}", at("a.raw"))],
        vec!["-d", &format!("{}={}", "n".repeat(70_000), at("a.raw"))],
        vec!["-c", &at("gone.conf")],
        vec!["-c", &text(folder.path())],
        vec!["--uuid", "no"],
        vec!["--time", "yesterday-ish"],
    ] {
        refused(&[&["vma", "create"], &words[..], &[&at("d.vma")]].concat(), 1);
        assert!(!folder.path().join("d.vma").exists(), "{words:?}");
    }
    // What is there is not replaced.
    let before = file_sha256(Path::new(&at("c.vma")));
    refused(&["vma", "create", "-c", &at("qemu-server.conf"), &at("c.vma")], 1);
    assert_eq!(file_sha256(Path::new(&at("c.vma"))), before);
    assert!(names(folder.path()).iter().all(|name| !name.starts_with('.')), "{:?}", names(folder.path()));
}

#[test]
fn as_many_disks_as_there_can_be() {
    let folder = temp();
    let mut disks = Vec::new();
    for n in 0..254 {
        let path = folder.path().join(format!("{n}.raw"));
        std::fs::write(&path, Rng::new(n).bytes(512 * (1 + n as usize % 9))).unwrap();
        disks.push((format!("d{n}"), path));
    }
    let path = folder.path().join("many.vma");
    create(folder.path(), &disks, &[], &path);
    let found = judged(&path, "cat").unwrap();
    assert_eq!(found.disks.len(), 254);
    for (name, raw) in &disks {
        in_archive(raw).assert_same(found.disk(name), name);
    }
    disks.push(("d254".to_owned(), disks[0].1.clone()));
    let more = folder.path().join("more.vma");
    let mut words = vec!["vma".to_owned(), "create".to_owned()];
    for (name, path) in &disks {
        words.extend(["-d".to_owned(), format!("{name}={}", text(path))]);
    }
    words.push(text(&more));
    let said = refused(&words, 1);
    assert!(said.contains("254"), "{said}");
    assert!(!more.exists());
}

/// A memory stream has every block, zeros too: the extractor appends what is there.
#[test]
fn a_machines_memory() {
    let folder = temp();
    let mut memory = Rng::new(4).bytes(400_000);
    memory[70_000..200_000].fill(0);
    let path = folder.path().join("vmstate.raw");
    std::fs::write(&path, &memory).unwrap();
    let disk = Content::random("disk", MIB, 2).raw_in(folder.path());
    let target = folder.path().join("m.vma");
    create(folder.path(), &[("drive-scsi0".to_owned(), disk), ("vmstate".to_owned(), path)], &[], &target);
    let found = judged(&target, "cat").unwrap();
    let found = found.memory.unwrap();
    assert_eq!(found.len(), memory.len().next_multiple_of(65_536));
    assert!(found.starts_with(&memory) && found[memory.len()..].iter().all(|byte| *byte == 0));
    let out = folder.path().join("out");
    good(&["vma", "extract", &text(&target), &text(&out)]);
    let found = std::fs::read(out.join("vmstate.bin")).unwrap();
    assert!(found.starts_with(&memory) && found.len() < memory.len() + 65_536);
}

/// Holes cost nothing but their place in the lists of clusters.
#[test]
fn a_hole_of_a_tebibyte() {
    let folder = temp();
    let raw = folder.path().join("hole.raw");
    std::fs::File::create(&raw).unwrap().set_len(1 << 40).unwrap();
    let script = format!("\"$0\" vma create -d 'drive-scsi0={}' /dev/stdout | wc -c", text(&raw));
    let began = std::time::Instant::now();
    let ran = shell(folder.path(), &script);
    assert!(ran.ok() && ran.err.is_empty(), "{ran:?}");
    let bytes: u64 = ran.out.trim().parse().unwrap();
    assert!((134_217_728..160_000_000).contains(&bytes), "{bytes} bytes");
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    // And what is 16 GiB comes out as a hole again.
    std::fs::File::create(&raw).unwrap().set_len(16 << 30).unwrap();
    let path = folder.path().join("hole.vma");
    create(folder.path(), &[("drive-scsi0".to_owned(), raw)], &[], &path);
    let out = folder.path().join("out");
    good(&["vma", "extract", &text(&path), &text(&out)]);
    let found = std::fs::metadata(out.join("disk-drive-scsi0.raw")).unwrap();
    assert_eq!(found.len(), 16 << 30);
    assert!(std::os::unix::fs::MetadataExt::blocks(&found) < 100);
}

/// `convert` of `qemu-img` made the images; what is in an encrypted or a compressed one is the disk's content.
#[test]
fn images_of_other_makers_and_kinds() {
    let folder = temp();
    let raw = Content::text("text", 2 * MIB + 512).raw_in(folder.path());
    let image = folder.path().join("compressed.qcow2");
    let words = ["convert", "-c", "-f", "raw", "-O", "qcow2"].map(Path::new);
    qemu_img(words.into_iter().chain([raw.as_path(), &image]));
    let path = folder.path().join("c.vma");
    create(folder.path(), &[("drive-scsi0".to_owned(), image.clone())], &[], &path);
    in_archive(&raw).assert_same(judged(&path, "cat").unwrap().disk("drive-scsi0"), "compressed");
    // An image's format may be said, and a raw disk that holds an image is one only if it is said to be.
    let said = format!("format=raw:drive-scsi0={}", text(&image));
    let as_raw = folder.path().join("raw.vma");
    good(&["vma", "create", "-d", &said, &text(&as_raw)]);
    in_archive(&image).assert_same(judged(&as_raw, "cat").unwrap().disk("drive-scsi0"), "as raw");
    // A disk of an archive goes into another archive.
    let again = folder.path().join("again.vma");
    let named = PathBuf::from(format!("{}#drive-scsi0", text(&path)));
    create(folder.path(), &[("drive-virtio0".to_owned(), named)], &[], &again);
    in_archive(&raw).assert_same(judged(&again, "cat").unwrap().disk("drive-virtio0"), "again");
}

/// Words of the existing tool: disks behind the archive's name, a pipe or a command in its place.
#[test]
fn words_of_the_existing_tool() {
    let folder = temp();
    let raw = Content::random("a=b:c", MIB, 3).raw_in(folder.path());
    let check = |name: &str, disk: &str| {
        let path = folder.path().join(name);
        in_archive(&raw).assert_same(judged(&path, "cat").unwrap().disk(disk), name);
        std::fs::remove_file(&path).unwrap();
    };
    let image = raw.file_name().unwrap().to_str().unwrap();
    for (script, disk) in [
        (format!("\"$0\" vma create t.vma drive-scsi0='{image}'"), "drive-scsi0"),
        (format!("\"$0\" vma create t.vma './{image}'"), "disk0"),
        (format!("\"$0\" vma create -d 'format=raw:x=./{image}' t.vma"), "x"),
        (
            format!("mkfifo pipe; cat pipe >t.vma & \"$0\" vma create -d 'x=./{image}' pipe; wait; rm pipe"),
            "x",
        ),
        (format!("\"$0\" vma create -d 'x=./{image}' 'exec:cat >t.vma'"), "x"),
        (format!("\"$0\" vma create -d 'x=./{image}' - >t.vma"), "x"),
        (
            format!(
                "\"$0\" vma create -v -d 'x=./{image}' t.vma 2>err && grep -q 'progress 100% ' err && grep -q '^image x: ' err"
            ),
            "x",
        ),
    ] {
        let ran = shell(folder.path(), &script);
        assert!(ran.ok() && ran.err.is_empty(), "{script}: {ran:?}");
        check("t.vma", disk);
    }
    for script in [
        format!("\"$0\" vma create -d 'x=./{image}' 'exec:cat >t.vma; false'"),
        format!("\"$0\" vma create -d 'x=./{image}' 'exec:head -c 1000 >t.vma'"),
        // The disk would be lost.
        format!("\"$0\" vma create -d 'x=./{image}' './{image}'"),
        format!("\"$0\" vma create --force -d 'x=./{image}' './{image}'"),
        format!("ln '{image}' other; \"$0\" vma create --force -d 'x=./{image}' other"),
        format!("ln -s '{image}' link; \"$0\" vma create --force -d 'x=./{image}' link"),
    ] {
        let before = file_sha256(&raw);
        let ran = shell(folder.path(), &script);
        assert_eq!(ran.code, Some(1), "{script}: {ran:?}");
        assert_eq!(file_sha256(&raw), before, "{script}");
    }
}
