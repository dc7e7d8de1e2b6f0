//! What is kept beside an archive: the index, by which a disk is found at once, and the digests, by which flipped bits
//! are; and disks read out of what other programs packed.

use std::path::{Path, PathBuf};

use cowhand_tests::{VmaBuilt, VmaFile, file_sha256, for_all, temp, vma_shapes};

use crate::vma::{assert_image, cowhand, file_name, good, names, refused, save, shell, text};

const MIB: u64 = 1 << 20;

fn interleaved(folder: &Path) -> (VmaBuilt, PathBuf) {
    save(folder, &vma_shapes()[2])
}

#[test]
fn a_disk_out_of_what_others_packed() {
    let folder = temp();
    let file = VmaFile { slots: 20, ..VmaFile::new("packed") }
        .config("qemu-server.conf", "x")
        .disk("drive-scsi0", 6 * MIB)
        .disk("drive-scsi1", 2 * MIB + 512);
    let (built, path) = save(folder.path(), &file);
    let cases = [
        ("one frame of zstd", "zstd -q -c"),
        ("zstd with long distances", "zstd -q --long=27 -c"),
        ("many frames of zstd", "split -b 300000 --filter='zstd -q -c'"),
        ("gzip", "gzip -1 -c"),
        ("pigz", "pigz -p 2 -b 128 -1 -c"),
        ("pigz, rsyncable", "pigz --rsyncable -1 -c"),
        ("many members of gzip", "split -b 300000 --filter='gzip -c'"),
        ("lzop", "lzop -1 -c"),
        ("lzop with all checksums", "lzop -3 --crc32 -c"),
        ("lzop -9", "lzop -9 -c"),
    ];
    for_all(
        &cases,
        |(name, _)| (*name).to_owned(),
        |(name, pack)| {
            let packed = folder.path().join(format!("{}.vma.packed", file_name(name)));
            let ran = shell(folder.path(), &format!("{pack} <'{}' >'{}'", text(&path), text(&packed)));
            assert!(ran.ok(), "{ran:?}");
            let before = file_sha256(&packed);
            for disk in ["drive-scsi1", "drive-scsi0"] {
                let target = packed.with_extension(format!("{disk}.qcow2"));
                // What is packed in one piece is streamed, and no index is kept of it.
                for keep in [&[][..], &["--keep-index"][..], &[][..]] {
                    let named = format!("{}#{disk}", text(&packed));
                    good(&[&["convert", "-O", "qcow2"], keep, &[&named, &text(&target)]].concat());
                    assert_image(&target, "qcow2", built.content(disk));
                    std::fs::remove_file(&target).unwrap();
                }
            }
            assert_eq!(file_sha256(&packed), before);
            let place = packed.with_extension("out");
            good(&["vma", "extract", &text(&packed), &text(&place)]);
            crate::vma::assert_extracted(&place, &built.file);
            good(&["vma", "verify", &text(&packed)]);
        },
    );
}

/// An index that is old, cut, another archive's or made to do harm says nothing wrong of the disks.
#[test]
fn an_index_is_looked_at_as_the_archive_is() {
    let folder = temp();
    let (built, path) = interleaved(folder.path());
    let named = format!("{}#drive-virtio1", text(&path));
    let target = folder.path().join("t.raw");
    let convert = |archive: &str| {
        let ran = cowhand(&["convert", "-O", "raw", archive, &text(&target)]);
        if ran.ok() {
            assert_image(&target, "raw", built.content("drive-virtio1"));
            std::fs::remove_file(&target).unwrap();
        }
        ran
    };
    good(&["map", "--keep-index", &named]);
    let kept: Vec<String> = names(folder.path()).into_iter().filter(|name| name.contains("index")).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    let kept = folder.path().join(kept);
    let index = std::fs::read(&kept).unwrap();
    assert!(convert(&named).ok());
    assert_eq!(std::fs::read(&kept).unwrap(), index, "it is kept, and left alone");
    // Every byte of it: what is wrong is seen, or does no harm. The disk is right or the reading fails.
    let step = if std::env::var_os("COWHAND_SLOW").is_some() { 1 } else { index.len() / 60 + 1 };
    for at in (0..index.len()).step_by(step) {
        let mut other = index.clone();
        other[at] ^= 0x41;
        std::fs::write(&kept, &other).unwrap();
        convert(&named);
    }
    for cut in [0, 1, 8, index.len() / 2, index.len() - 1] {
        std::fs::write(&kept, &index[..cut]).unwrap();
        convert(&named);
    }
    std::fs::write(&kept, [&index[..], b"more"].concat()).unwrap();
    convert(&named);
    // The archive was made anew since: same name, same length, other content and another identity.
    std::fs::write(&kept, &index).unwrap();
    let mut other = VmaFile::new("made anew");
    other.configs.clone_from(&built.file.configs);
    other.disks.clone_from(&built.file.disks);
    other.disks.reverse();
    other.slots = 4;
    std::fs::write(&path, other.build().bytes).unwrap();
    let ran = convert(&named);
    assert!(ran.ok(), "{ran:?}");
}

/// The same archive but for its order, so that all that stands in its header is the same.
#[test]
fn an_index_of_a_twin_is_not_taken() {
    let folder = temp();
    let (built, path) = interleaved(folder.path());
    let named = format!("{}#drive-virtio1", text(&path));
    good(&["map", "--keep-index", &named]);
    let mut twin = built.file.clone();
    twin.order = cowhand_tests::VmaOrder::Backwards;
    let twin = twin.build();
    assert_eq!(twin.bytes.len(), built.bytes.len());
    assert_eq!(twin.bytes[..twin.header], built.bytes[..built.header]);
    std::fs::write(&path, &twin.bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(7)).unwrap();
    let target = folder.path().join("t.raw");
    let ran = cowhand(&["convert", "-O", "raw", &named, &text(&target)]);
    if ran.ok() {
        assert_image(&target, "raw", built.content("drive-virtio1"));
    }
}

#[test]
fn digests_find_every_flipped_bit() {
    let folder = temp();
    let raw = cowhand_tests::Content::striped("disk", 3 * MIB, 40 << 10, 7).raw_in(folder.path());
    for extension in ["vma", "vma.zst"] {
        let path = folder.path().join(format!("a.{extension}"));
        good(&["vma", "create", "--digest", "-d", &format!("drive-scsi0={}", text(&raw)), &text(&path)]);
        assert!(folder.path().join(format!("a.{extension}.digest")).exists(), "{:?}", names(folder.path()));
        good(&["vma", "verify", &text(&path)]);
    }
    let path = folder.path().join("a.vma");
    let sound = std::fs::read(&path).unwrap();
    let header = 12_800 + 512;
    for at in [header, header + 4095, header + 70_000, sound.len() - 1] {
        let mut flipped = sound.clone();
        flipped[at] ^= 0x80;
        std::fs::write(&path, &flipped).unwrap();
        let ran = cowhand(&["vma", "verify", "--output", "json", &text(&path)]);
        assert_eq!(ran.code, Some(2), "a bit at {at}: {ran:?}");
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let disk = &report["disks"][0];
        assert_eq!(disk["name"], "drive-scsi0");
        assert_eq!(disk["differing"]["count"], 1, "{report}");
        assert!(disk["differing"]["bytes"].as_u64().unwrap() <= 65_536, "{report}");
    }
    // Digests of another archive, cut ones, garbage: said, and not passed over.
    let digests = folder.path().join("a.vma.digest");
    let good_digests = std::fs::read(&digests).unwrap();
    std::fs::write(&path, &sound).unwrap();
    for bad in [&b"garbage"[..], b"", &good_digests[..good_digests.len() - 1]] {
        std::fs::write(&digests, bad).unwrap();
        let ran = cowhand(&["vma", "verify", &text(&path)]);
        assert!(matches!(ran.code, Some(1 | 2)), "{ran:?}");
    }
    std::fs::copy(folder.path().join("a.vma.zst.digest"), &digests).unwrap();
    let said = refused(&["vma", "extract", "--digest", &text(&path), &text(&folder.path().join("out"))], 1);
    assert!(said.contains("digest"), "{said}");
    assert!(!folder.path().join("out").exists());
}
