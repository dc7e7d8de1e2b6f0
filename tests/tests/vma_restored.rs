//! The way Proxmox restores: a pipe in, the list read line by line, the map handed over through a FIFO.

use std::path::Path;

use cowhand_tests::{Mirror, VmaFile, temp, vma_shapes};

use crate::vma::{save, shell, text};

/// Begins to restore, waits for the line with the time as `qmrestore` does, and gives it the map.
fn restore(folder: &Path, pack: &str, map: &str, more: &str) -> cowhand_tests::Ran {
    let script = format!(
        r#"rm -rf dir fifo out err; mkfifo fifo
{pack} | "$0" vma extract -v -r fifo {more} - dir >out 2>err &
pid=$!
exec 9>fifo
for n in $(seq 500); do grep -q '^CTIME: ' out && break; sleep 0.01; done
grep -q '^CTIME: ' out || {{ echo "no time came" >&2; kill $pid; exit 99; }}
[ -f dir/qemu-server.conf ] || {{ echo "no configuration was there yet" >&2; exit 98; }}
sed -n -E 's/^DEV:\sdev_id=([0-9]+)\ssize:\s([0-9]+)\sdevname:\s(\S+)$/\1 \2 \3/p' out >devices
printf '{map}' >&9
exec 9>&-
wait $pid"#
    );
    shell(folder, &script)
}

fn archive(folder: &Path) -> (VmaFile, String) {
    let file = vma_shapes().swap_remove(2);
    let (built, path) = save(folder, &file);
    (built.file, text(&path))
}

fn targets(folder: &Path, file: &VmaFile, fill: u8) {
    for (n, disk) in file.disks.iter().enumerate() {
        let size = disk.content.size() as usize;
        std::fs::write(folder.join(format!("{n}.img")), vec![fill; size]).unwrap();
    }
}

#[test]
fn as_qmrestore_does_it() {
    let folder = temp();
    let (file, path) = archive(folder.path());
    for (pack, end) in [
        (format!("cat '{path}'"), "done\\n"),
        (format!("zstd -q -c '{path}' | zstd -q -d -c"), "\\n"),
        (format!("zstd -q -c '{path}'"), ""),
        (format!("lzop -c '{path}'"), "done\\n"),
    ] {
        // 1: what is zero is written; 0: it is zero already.
        targets(folder.path(), &file, 0xee);
        std::fs::write(folder.path().join("1.img"), "").unwrap();
        std::fs::File::options()
            .write(true)
            .open(folder.path().join("1.img"))
            .unwrap()
            .set_len(file.disks[1].content.size())
            .unwrap();
        let map = format!(
            "format=raw:1:drive-scsi0={0}/0.img\\n0:drive-virtio1={0}/1.img\\nskip=drive-efidisk0\\n{end}",
            text(folder.path())
        );
        let ran = restore(folder.path(), &pack, &map, "");
        let err = std::fs::read_to_string(folder.path().join("err")).unwrap();
        assert!(ran.ok() && ran.err.is_empty(), "{pack}: {ran:?} {err}");
        assert!(err.is_empty(), "{err}");
        for (n, disk) in file.disks.iter().enumerate().take(2) {
            let found = Mirror::of_file(&folder.path().join(format!("{n}.img")));
            disk.content.assert_same(&found, &format!("{pack}: disk {n}"));
        }
        let skipped = std::fs::read(folder.path().join("2.img")).unwrap();
        assert!(skipped.iter().all(|byte| *byte == 0xee), "a disk that was to be skipped");
        let devices = std::fs::read_to_string(folder.path().join("devices")).unwrap();
        let right: String = file
            .disks
            .iter()
            .map(|disk| {
                format!("{} {} {}\n", disk.id, disk.content.size(), String::from_utf8_lossy(&disk.name))
            })
            .collect();
        assert_eq!(devices, right);
        let out = std::fs::read_to_string(folder.path().join("out")).unwrap();
        assert!(out.lines().any(|line| line.starts_with("progress 100% (read ")), "{out}");
        assert!(
            out.contains("total bytes read ") && out.contains("space reduction due to 4K zero blocks"),
            "{out}"
        );
    }
}

/// Into an image of any format, in place; with `-d` only some disks need a line.
#[test]
fn into_images_and_only_some() {
    let folder = temp();
    let (file, path) = archive(folder.path());
    for (format, words) in [("qcow2", "-f qcow2"), ("vhdx", "-f vhdx")] {
        let image = folder.path().join("a.img");
        let size = file.disks[0].content.size().to_string();
        let _ = std::fs::remove_file(&image);
        cowhand_tests::qemu_img(
            words
                .split(' ')
                .fold(vec!["create", "-q"], |all, word| [all, vec![word]].concat())
                .into_iter()
                .chain([image.to_str().unwrap(), &size]),
        );
        let map = format!("format={format}:0:drive-scsi0={}\\ndone\\n", text(&image));
        let ran = restore(folder.path(), &format!("cat '{path}'"), &map, "-d drive-scsi0");
        let err = std::fs::read_to_string(folder.path().join("err")).unwrap();
        assert!(ran.ok() && err.is_empty(), "{ran:?} {err}");
        crate::vma::assert_image(&image, format, &grown(&file.disks[0].content, &image, format));
    }
}

/// A format may round a size up.
fn grown(content: &Mirror, image: &Path, format: &str) -> Mirror {
    let how = cowhand::Open {
        format: Some(format.to_owned()),
        lock: cowhand::Lock::None,
        ..cowhand::Open::default()
    };
    let mut content = content.clone();
    content.resize(cowhand::open(image, &how).unwrap().size());
    content
}

#[test]
fn maps_that_make_no_sense() {
    let folder = temp();
    let (file, path) = archive(folder.path());
    let at = text(folder.path());
    let rest = format!("0:drive-virtio1={at}/1.img\\nskip=drive-efidisk0\\n");
    for line in [
        String::new(),
        "nonsense\\n".to_owned(),
        format!("2:drive-scsi0={at}/0.img\\n"),
        format!("1:drive-scsi0={at}/gone.img\\n"),
        format!("1:drive-scsi0={at}/short.img\\n"),
        format!("1:drive-scsi0={at}/long.img\\n"),
        format!("1:drive-scsi9={at}/0.img\\n"),
        format!("1:drive-scsi0={at}/0.img\\n1:drive-scsi0={at}/0.img\\n"),
        format!("1:drive-scsi0={at}/0.img\\n1:drive-scsi0={at}/1.img\\n"),
        format!("format=raw:format=raw:1:drive-scsi0={at}/0.img\\n"),
        format!("format=nobodys:1:drive-scsi0={at}/0.img\\n"),
        format!("1:drive-scsi0={at}/1.img\\n"),
        "1:drive-scsi0=\\n".to_owned(),
        "skip=\\n".to_owned(),
        format!("1:=drive-scsi0{at}/0.img\\n"),
    ] {
        targets(folder.path(), &file, 0xee);
        std::fs::write(folder.path().join("short.img"), [0xee; 512]).unwrap();
        let long = std::fs::File::create(folder.path().join("long.img")).unwrap();
        long.set_len(file.disks[0].content.size() + (4 << 20) + 512).unwrap();
        let ran = restore(folder.path(), &format!("cat '{path}'"), &format!("{line}{rest}"), "");
        let err = std::fs::read_to_string(folder.path().join("err")).unwrap();
        assert_eq!(ran.code, Some(1), "{line}: {ran:?} {err}");
        assert!(err.starts_with("cowhand: ") && err.lines().count() == 1, "{line}: {err}");
        // Nothing was written before all of the map was understood.
        for name in ["0.img", "1.img", "short.img"] {
            let found = std::fs::read(folder.path().join(name)).unwrap();
            assert!(found.iter().all(|byte| *byte == 0xee), "{line}: {name} was written");
        }
    }
}

/// The archive itself is no target, under none of its names: it would be lost.
#[test]
fn an_archive_is_not_restored_into_itself() {
    let folder = temp();
    let (_, path) = archive(folder.path());
    std::fs::hard_link(&path, folder.path().join("other.vma")).unwrap();
    std::os::unix::fs::symlink(&path, folder.path().join("link.vma")).unwrap();
    let before = cowhand_tests::file_sha256(Path::new(&path));
    for target in [path.as_str(), "other.vma", "link.vma"] {
        let map = format!("1:drive-efidisk0={target}\\nskip=drive-scsi0\\nskip=drive-virtio1\\n");
        let script = format!("rm -rf dir; printf '{map}' >map; \"$0\" vma extract -r map '{path}' dir");
        let ran = shell(folder.path(), &script);
        assert_eq!(ran.code, Some(1), "{target}: {ran:?}");
        assert_eq!(cowhand_tests::file_sha256(Path::new(&path)), before, "{target}");
    }
}
