//! Archives that somebody made to do harm: nothing outside the folder, bounded time and memory, no crash. The bounds are
//! in [`crate::vma::cowhand`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowhand_tests::{
    Mirror, Rng, VmaDisk, VmaFile, for_all, run, temp, vma_disk_content, vma_fix_extent, vma_fix_header,
};

use crate::vma::{cowhand, good, names, text};

const K: u64 = 1 << 10;
const MIB: usize = 1 << 20;

/// How much there is to be searched: more where there is time.
fn much() -> usize {
    if std::env::var_os("COWHAND_SLOW").is_some() { 48 * MIB } else { 12 * MIB }
}

/// Everything that reads, once; each ends by itself, within bounds, and with a status that means something.
fn everything(path: &Path, disk: &str) {
    let place = path.with_extension("out");
    let (archive, out) = (text(path), text(&place));
    let named = format!("{archive}#{disk}");
    for words in [
        vec!["vma", "list", &archive],
        vec!["vma", "config", &archive],
        vec!["vma", "verify", &archive],
        vec!["vma", "verify", "--output", "json", &archive],
        vec!["vma", "extract", &archive, &out],
        vec!["vma", "extract", "--salvage", &archive, &out],
        vec!["info", &named],
        vec!["map", &named],
        vec!["inspect", &archive],
    ] {
        let ran = cowhand(&words);
        assert!(matches!(ran.code, Some(0..=4)), "{words:?}: {ran:?}");
        let said = ran.code == Some(0) || !ran.err.is_empty() || !ran.out.is_empty();
        assert!(said, "{words:?} says nothing");
        if place.exists() {
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
}

/// Everything below a folder, by its path in it.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path.clone());
            }
            found.push(text(path.strip_prefix(folder).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn names_never_leave_the_folder() {
    let folder = temp();
    let absolute = text(&folder.path().join("absolute"));
    let long = "n".repeat(60_000);
    let deep = "a/".repeat(2000) + "b";
    let mut bad: Vec<&str> = vec![
        "..",
        ".",
        "",
        "/",
        "//",
        "../escaped",
        "../../escaped",
        "a/../../../escaped",
        "sub/name",
        "./name",
        "a/",
        "\u{1b}[2J",
        "a\nDEV: dev_id=9 size: 1 devname: b",
        "a\rb",
        "a\tb",
        "nul\u{1}",
        &absolute,
        &long,
        &deep,
        "\u{202e}gnp",
        "\u{85}",
    ];
    bad.dedup();
    let cases: Vec<(usize, &str, &str)> =
        bad.iter().enumerate().flat_map(|(n, name)| [(n, "disk", *name), (n, "config", *name)]).collect();
    let show = |(_, what, name): &(usize, &str, &str)| format!("{what} {:?}", &name[..name.len().min(40)]);
    for_all(&cases, show, |(n, what, name)| {
        let file = VmaFile::new("names");
        let file = match *what {
            "disk" => file.disk(name, 64 * K).config("qemu-server.conf", "x").disk("drive-good", 64 * K),
            _ => file.config(name, "evil").config("qemu-server.conf", "x").disk("drive-good", 64 * K),
        };
        let sub = folder.path().join(format!("{what}-{n}")).join("below").join("here");
        std::fs::create_dir_all(&sub).unwrap();
        let path = sub.join("a.vma");
        std::fs::write(&path, file.clone().build().bytes).unwrap();
        let top = folder.path().join(format!("{what}-{n}"));
        let before = tree(&top);
        for salvage in [false, true] {
            let out = sub.join("out");
            let (path, out_text) = (text(&path), text(&out));
            let mut words = vec!["vma", "extract", &path, &out_text];
            if salvage {
                words.push("--salvage");
            }
            let ran = cowhand(&words);
            assert!(ran.ok() || !ran.err.is_empty(), "{ran:?}");
            if out.exists() {
                for name in tree(&out) {
                    assert!(!name.contains('/') || name.starts_with("disk-"), "{name}");
                }
                if ran.ok() {
                    let good = Mirror::of_file(&out.join("disk-drive-good.raw"));
                    file.disks.last().unwrap().content.assert_same(&good, "the good disk");
                }
                std::fs::remove_dir_all(&out).unwrap();
            } else {
                assert!(!ran.ok());
            }
            assert_eq!(tree(&top), before, "{ran:?}");
            assert!(!Path::new(&absolute).exists());
        }
        everything(&path, name_for_a_word(name));
        assert!(!folder.path().join("escaped").exists());
        assert!(!Path::new(&absolute).exists());
    });
}

/// A name that can be a word of a command line.
fn name_for_a_word(name: &str) -> &str {
    if name.len() > 1000 { "drive-good" } else { name }
}

/// What would be one file, and bytes that are no text.
#[test]
fn names_that_collide() {
    let folder = temp();
    let disk = |name: &[u8], id: u8| VmaDisk {
        id,
        name: name.to_vec(),
        content: vma_disk_content(100 * K, id.into()),
    };
    let with = |disks: Vec<VmaDisk>, configs: &[(&[u8], &str)]| {
        let configs = configs.iter().enumerate();
        let configs = configs.map(|(n, (name, data))| (n, name.to_vec(), data.as_bytes().to_vec())).collect();
        VmaFile { disks, configs, ..VmaFile::new("collisions") }
    };
    let cases = vec![
        ("two disks of one name", with(vec![disk(b"a", 1), disk(b"a", 2)], &[])),
        ("two memories", with(vec![disk(b"vmstate", 1), disk(b"vmstate", 2)], &[])),
        ("two configurations of one name", with(vec![], &[(b"a.conf", "1"), (b"a.conf", "2")])),
        ("a configuration as a disk's file", with(vec![disk(b"a", 1)], &[(b"disk-a.raw", "evil")])),
        ("a configuration as the memory", with(vec![disk(b"vmstate", 1)], &[(b"vmstate.bin", "evil")])),
        ("a configuration as a partial file", with(vec![disk(b"a", 1)], &[(b"tmp-disk-a.raw", "evil")])),
        ("no UTF-8 in a disk's name", with(vec![disk(b"a\xff\xfe", 1), disk(b"b", 2)], &[])),
        ("names alike but for what is no UTF-8", with(vec![disk(b"a\xff", 1), disk(b"a\xfe", 2)], &[])),
        ("no UTF-8 in a configuration's name", with(vec![disk(b"b", 1)], &[(b"\xff.conf", "1")])),
        ("a NUL in a name", with(vec![disk(b"a\0b", 1), disk(b"a\0c", 2)], &[])),
        ("names alike in upper case", with(vec![disk(b"a", 1), disk(b"A", 2)], &[])),
    ];
    for_all(
        &cases,
        |(name, _)| (*name).to_owned(),
        |(name, file)| {
            let path = folder.path().join(format!("{}.vma", crate::vma::file_name(name)));
            std::fs::write(&path, file.clone().build().bytes).unwrap();
            let out = path.with_extension("out");
            let ran = cowhand(&["vma", "extract", &text(&path), &text(&out)]);
            if ran.ok() {
                // Nothing is lost: as many files as the archive has, each with its content.
                let found = names(&out);
                assert_eq!(found.len(), file.disks.len() + file.configs.len(), "{found:?}");
                let mut contents: Vec<Vec<u8>> =
                    found.iter().map(|name| std::fs::read(out.join(name)).unwrap()).collect();
                for disk in &file.disks {
                    let bytes = disk.content.bytes(0, disk.content.size() as usize);
                    let at = contents
                        .iter()
                        .position(|found| *found == bytes)
                        .expect("the disk in one of the files");
                    contents.remove(at);
                }
                for (_, _, data) in &file.configs {
                    assert!(contents.contains(data), "a configuration is lost");
                }
            } else {
                assert!(!ran.err.is_empty() && !out.exists(), "{ran:?}");
            }
            everything(&path, "a");
        },
    );
}

struct Claim {
    name: &'static str,
    bytes: Vec<u8>,
}

fn claims() -> Vec<Claim> {
    let mut claims = Vec::new();
    let mut add = |name, bytes| claims.push(Claim { name, bytes });
    let small =
        || VmaFile { slots: 3, ..VmaFile::new("claims") }.config("qemu-server.conf", "x").disk("a", 300 * K);
    // Disks that say they are enormous.
    for size in [1 << 40, 1 << 48, (1 << 48) + 1, i64::MAX as u64 & !511, i64::MAX as u64, !511, u64::MAX] {
        let built = small().build();
        let mut bytes = built.bytes;
        bytes[4096 + 32 + 8..4096 + 32 + 16].copy_from_slice(&size.to_be_bytes());
        vma_fix_header(&mut bytes);
        add("a disk that says it is enormous", bytes);
    }
    let mut many = VmaFile::new("many");
    for id in 1..=254 {
        many.disks.push(VmaDisk::new(id, &format!("d{id}"), Mirror::new(!511)));
    }
    let mut bytes = many.header();
    bytes.extend(many.extent_bytes(&[]));
    add("254 enormous disks", bytes);
    // Clusters strewn over an enormous disk: bitmaps must not be as large as what is claimed.
    let mut strewn = VmaFile::new("strewn");
    strewn.disks.push(VmaDisk::new(1, "a", Mirror::new((1 << 48) & !511)));
    let mut bytes = strewn.header();
    let mut rng = Rng::new(8);
    for _ in 0..8000 {
        let slot =
            || cowhand_tests::VmaSlot { mask: 0, device: 1, cluster: rng.any() as u32, blocks: Vec::new() };
        let slots: Vec<_> = std::iter::repeat_with(slot).take(59).collect();
        bytes.extend(strewn.extent_bytes(&slots));
    }
    add("472000 clusters strewn over 256 TiB", bytes);
    // Headers.
    let header = |blobs: Vec<u8>, total: usize| {
        let mut bytes = small().header();
        bytes.truncate(12_288);
        bytes[2044..4096].fill(0);
        bytes[52..56].copy_from_slice(&(blobs.len() as u32).to_be_bytes());
        bytes[56..60].copy_from_slice(&(total as u32).to_be_bytes());
        bytes.extend(blobs);
        bytes.resize(total, 0);
        vma_fix_header(&mut bytes);
        bytes.extend(small().extent_bytes(&[]));
        bytes
    };
    add("a header of 15 MiB full of empty blobs", header(vec![0; 15 * MIB], 15 * MIB + 12_288));
    add("a header of 60 MiB", header(vec![0; 60 * MIB], 60 * MIB + 12_288));
    let mut overlapping = vec![0_u8; 65_535];
    overlapping[1..3].copy_from_slice(&65_000_u16.to_le_bytes());
    add("a blob almost as long as all", header(overlapping, 80 * K as usize));
    // All pointers at one blob of 64 KiB: 256 configurations of it.
    let mut file = small();
    for n in 0..256 {
        file.configs.push((n, format!("{n}").into_bytes(), vec![b'c'; 65_000]));
    }
    file.configs.remove(0);
    file.blobs = cowhand_tests::VmaBlobs::Shared;
    add("256 configurations that share 64 KiB", file.build().bytes);
    claims
}

#[test]
fn claims_cost_nothing() {
    let folder = temp();
    let claims: Vec<(usize, Claim)> = claims().into_iter().enumerate().collect();
    for_all(
        &claims,
        |(n, claim)| format!("{} ({n})", claim.name),
        |(n, claim)| {
            let path = folder.path().join(format!("{n}.vma"));
            std::fs::write(&path, &claim.bytes).unwrap();
            everything(&path, "a");
        },
    );
}

fn searches() -> Vec<Claim> {
    let file =
        VmaFile { slots: 3, ..VmaFile::new("search") }.config("qemu-server.conf", "x").disk("a", 300 * K);
    let header = file.header();
    let with = |body: Vec<u8>| [header.clone(), body].concat();
    let mut claims = Vec::new();
    let mut almost = b"VMAE\0\0\x03\xb0".to_vec();
    almost.extend(file.uuid);
    let repeat = |piece: &[u8], len: usize| piece.iter().copied().cycle().take(len).collect::<Vec<u8>>();
    claims.push(Claim { name: "magic after magic", bytes: with(repeat(b"VMAE", much())) });
    claims.push(Claim { name: "V after V", bytes: with(vec![b'V'; much()]) });
    claims.push(Claim {
        name: "magic and identity, again and again",
        bytes: with(repeat(&almost, much() / 3)),
    });
    claims.push(Claim { name: "empty extents", bytes: with(repeat(&file.extent_bytes(&[]), much())) });
    // Headers whose sums are right, each of which claims all that follows as its data.
    for blocks in [1_u16, 944, 945, 65_535] {
        let mut greedy = file.extent_bytes(&[]);
        greedy[6..8].copy_from_slice(&blocks.to_be_bytes());
        vma_fix_extent(&mut greedy, 0);
        claims.push(Claim { name: "empty masks and many blocks", bytes: with(repeat(&greedy, much() / 3)) });
        for slot in 0..59 {
            greedy[40 + 8 * slot..48 + 8 * slot].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 0, slot as u8]);
        }
        vma_fix_extent(&mut greedy, 0);
        claims.push(Claim {
            name: "full masks in headers that follow each other",
            bytes: with(repeat(&greedy, much() / 3)),
        });
    }
    claims
}

#[test]
fn searching_is_bounded() {
    let folder = temp();
    let claims: Vec<(usize, Claim)> = searches().into_iter().enumerate().collect();
    for_all(
        &claims,
        |(n, claim)| format!("{} ({n})", claim.name),
        |(n, claim)| {
            let path = folder.path().join(format!("{n}.vma"));
            std::fs::write(&path, &claim.bytes).unwrap();
            everything(&path, "a");
            std::fs::remove_file(&path).unwrap();
        },
    );
}

/// Packed files that unpack to much, or ask for much memory.
#[test]
fn packed_bombs() {
    let folder = temp();
    let archive = folder.path().join("a.vma");
    let built = VmaFile::new("bomb").config("qemu-server.conf", "x").disk("a", 300 * K).build();
    std::fs::write(&archive, &built.bytes).unwrap();
    let pack = |name: &str, script: &str| -> PathBuf {
        let ran = run(std::process::Command::new("bash").args([
            "-c",
            &format!("cd \"$0\"; {script}"),
            &text(folder.path()),
        ]));
        assert!(ran.ok(), "{script}: {ran:?}");
        folder.path().join(name)
    };
    let zeros = format!("(cat a.vma; head -c {} /dev/zero)", 12 * much());
    let cases = vec![
        pack("b.vma.zst", &format!("{zeros} | zstd -q -1 -T2 -o b.vma.zst")),
        pack("b.vma.gz", &format!("{zeros} | head -c 100M | gzip -1 >b.vma.gz")),
        pack("b.vma.lzo", &format!("{zeros} | lzop -1 >b.vma.lzo")),
        pack("w.vma.zst", "(cat a.vma; head -c 1M /dev/urandom) | zstd -q --ultra --long=30 -o w.vma.zst"),
        pack("v.vma.zst", "(cat a.vma; head -c 1M /dev/urandom) | zstd -q --ultra --long=31 -o v.vma.zst"),
        pack(
            "e.vma.gz",
            "(for n in $(seq 20000); do printf '\\x1f\\x8b\\x08\\0\\0\\0\\0\\0\\0\\x03\\x03\\0\\0\\0\\0\\0\\0\\0\\0\\0'; done; gzip -c a.vma) >e.vma.gz",
        ),
        pack(
            "e.vma.zst",
            "(for n in $(seq 20000); do printf '\\x28\\xb5\\x2f\\xfd\\x24\\0\\x01\\0\\0\\x99\\xe9\\xd8\\x51'; done; zstd -q -c a.vma) >e.vma.zst",
        ),
        pack("t.vma.zst", "zstd -q -c a.vma | head -c -5 >t.vma.zst"),
        pack("t.vma.gz", "gzip -c a.vma | head -c -5 >t.vma.gz"),
        pack("t.vma.lzo", "lzop -c a.vma | head -c -5 >t.vma.lzo"),
        pack("j.vma.zst", "(zstd -q -c a.vma; echo junk) >j.vma.zst"),
    ];
    for_all(&cases, |path| text(path), |path| everything(path, "a"));
    // A file that is cut, or has junk behind, is no sound archive, although all clusters are there.
    for name in ["t.vma.zst", "t.vma.gz", "t.vma.lzo", "j.vma.zst", "b.vma.zst"] {
        let ran = cowhand(&["vma", "verify", &text(&folder.path().join(name))]);
        assert!(matches!(ran.code, Some(1 | 2)), "{name}: {ran:?}");
    }
}

/// No file at all, folders, devices, pipes that never say anything.
#[test]
fn things_that_are_no_archive() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("empty"), "").unwrap();
    std::fs::create_dir(at("folder")).unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    let file = File::create(at("sparse")).unwrap();
    file.write_all_at(b"VMA\0\0\0\0\x01", 0).unwrap();
    // All of it is searched for extents.
    file.set_len(64 << 20).unwrap();
    for name in ["empty", "folder", "loop", "gone", "sparse"] {
        for verb in ["list", "config", "verify"] {
            let ran = cowhand(&["vma", verb, &text(&at(name))]);
            let said = match ran.code {
                Some(1) => ran.err.starts_with("cowhand: "),
                Some(2) => verb == "verify" && !ran.out.is_empty(),
                _ => false,
            };
            assert!(said, "{verb} {name}: {ran:?}");
        }
        let ran = cowhand(&["vma", "extract", &text(&at(name)), &text(&at("out"))]);
        assert_eq!(ran.code, Some(1), "{name}: {ran:?}");
        assert!(!at("out").exists());
    }
    // The folder to be made is there already: nothing in it is touched.
    let path = at("a.vma");
    std::fs::write(&path, VmaFile::new("sound").disk("a", 64 * K).build().bytes).unwrap();
    std::fs::write(at("folder").join("mine"), "mine").unwrap();
    assert_eq!(cowhand(&["vma", "extract", &text(&path), &text(&at("folder"))]).code, Some(1));
    assert_eq!(names(&at("folder")), ["mine"]);
    good(&["vma", "extract", &text(&path), &text(&at("out"))]);
}
