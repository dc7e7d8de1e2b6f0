//! One disk of a backup archive, straight out of it, wherever an image is read: plain archives, and archives packed by us
//! and by others.

use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand::archive::{Indexing, listed};
use cowhand::stream::{From, Stream};
use cowhand::{
    Access, Cache, Convert, Dd, DdInput, DdOutput, ErrorKind, FileStorage, Lock, Measure, Open, Parent,
    Quiet, compare,
};
use cowhand_tests::{
    VmaBuilt, VmaFile, VmaOrder, assert_holds, for_all, guest_sha256, options, qemu_img, run, samples, temp,
    vma_qemu_server_conf,
};

use crate::streams::{as_format, names, to_bytes};

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    /// In frames, with a table.
    OurZstd,
    /// In one frame.
    Zstd,
    OurGzip,
    Gzip,
    OurLzo,
    Lzop,
}

impl Form {
    const ALL: [Form; 7] =
        [Form::Plain, Form::OurZstd, Form::Zstd, Form::OurGzip, Form::Gzip, Form::OurLzo, Form::Lzop];

    fn extension(self) -> &'static str {
        match self {
            Form::Plain => "vma",
            Form::OurZstd | Form::Zstd => "vma.zst",
            Form::OurGzip | Form::Gzip => "vma.gz",
            Form::OurLzo | Form::Lzop => "vma.lzo",
        }
    }

    /// It cannot be read at random, but from a copy.
    fn one_piece(self) -> bool {
        self == Form::Zstd
    }

    /// The archive in a file in `folder`. `None`: the program that packs so is not there.
    fn save(self, bytes: &[u8], folder: &Path) -> Option<PathBuf> {
        let path = folder.join("b.").with_extension(self.extension());
        let program: &[&str] = match self {
            Form::Plain => {
                std::fs::write(&path, bytes).unwrap();
                return Some(path);
            }
            Form::OurZstd | Form::OurGzip | Form::OurLzo => {
                let packing = cowhand_packed::by_extension(self.extension()).unwrap();
                let file = std::fs::File::create(&path).unwrap();
                let mut pack = packing.pack(Box::new(file), cowhand_packed::How::default()).unwrap();
                pack.write_all(bytes).unwrap();
                pack.finish().unwrap();
                return Some(path);
            }
            Form::Zstd => &["zstd", "-q", "-T2"],
            Form::Gzip => &["gzip", "--rsyncable"],
            Form::Lzop => &["lzop"],
        };
        let plain = folder.join("plain");
        std::fs::write(&plain, bytes).unwrap();
        let script = format!(
            "command -v {0} >/dev/null || exit 7; {1} <plain >{2}",
            program[0],
            program.join(" "),
            path.display()
        );
        let ran =
            run(Command::new("sh").arg("-c").arg(format!("cd '{}' && {{ {script}; }}", folder.display())));
        std::fs::remove_file(&plain).unwrap();
        if ran.code == Some(7) {
            std::fs::remove_file(&path).ok();
            eprintln!("SKIPPED: {} is not there", program[0]);
            return None;
        }
        assert!(ran.ok(), "{script}: {}", ran.err);
        Some(path)
    }
}

const MIB: u64 = 1 << 20;

/// Two disks, the clusters here and there.
fn archive() -> VmaBuilt {
    VmaFile { order: VmaOrder::Jumps, slots: 20, ..VmaFile::new("parts") }
        .config("qemu-server.conf", vma_qemu_server_conf(&["drive-scsi0", "drive-virtio1"]))
        .disk("drive-scsi0", 9 * MIB + 512)
        .disk("drive-virtio1", 3 * MIB)
        .build()
}

fn part(archive: &Path, disk: &str) -> PathBuf {
    let mut name = archive.as_os_str().to_owned();
    name.push("#");
    name.push(disk);
    name.into()
}

fn forms(each: impl Fn(Form) + Sync) {
    for_all(&Form::ALL, |form| format!("{form:?}"), |form| each(*form));
}

/// As a form has to be opened that everything may be asked of.
fn opened(form: Form, folder: &Path) -> Open {
    let mut indexing = Indexing::default();
    indexing.unpack_to = form.one_piece().then(|| folder.to_owned());
    Open { indexing, ..Open::default() }
}

#[test]
fn every_verb_reads_a_disk_of_an_archive() {
    let built = archive();
    forms(|form| {
        let folder = temp();
        let Some(path) = form.save(&built.bytes, folder.path()) else { return };
        let open = opened(form, folder.path());
        for disk in &built.file.disks {
            let name = std::str::from_utf8(&disk.name).unwrap();
            let (part, size) = (part(&path, name), disk.content.size());
            let raw = folder.path().join("raw");
            disk.content.save(&raw);
            let image = cowhand::open(&part, &open).unwrap();
            assert_eq!((image.size(), image.name()), (size, part.to_str().unwrap()));
            disk.content.assert_disk(&image);
            let plain = cowhand::open(&raw, &Open::default()).unwrap();
            assert_eq!(compare(&image, &plain, false, &Quiet).unwrap().difference, None);

            // What stands in the file as it is, stands where the map says.
            let bytes = std::fs::read(&path).unwrap();
            let mut covered = 0;
            cowhand::map(&image, 0, u64::MAX, |entry| {
                assert_eq!(entry.start, covered);
                covered += entry.length;
                assert_eq!(entry.compressed, entry.data && form != Form::Plain);
                assert_eq!(entry.offset.is_some(), entry.data && form == Form::Plain, "{entry:?}");
                if let Some(offset) = entry.offset {
                    let there = &bytes[offset as usize..][..entry.length as usize];
                    assert!(there == disk.content.bytes(entry.start, entry.length as usize), "{entry:?}");
                }
                Ok(())
            })
            .unwrap();
            assert_eq!(covered, size);
            image.check_unchanged().unwrap();

            let found = cowhand::info(&part, &Open::default(), false).unwrap();
            assert_eq!((found[0].format, found[0].virtual_size), ("vma", size));
            let json = found[0].to_json();
            assert_eq!(json["filename"], part.to_str().unwrap());
            assert_eq!(json["format-specific"]["data"]["disk"], name);

            let measure = Measure {
                format: "qcow2".to_owned(),
                source: Some(part.clone()),
                open: open.clone(),
                ..Measure::default()
            };
            let sizes = cowhand::measure(&measure, &Quiet).unwrap();
            let target = folder.path().join("t.qcow2");
            let how = Convert { open: open.clone(), verify: true, ..Convert::new([&part], &target) };
            let done = cowhand::convert(&how, &Quiet).unwrap();
            assert_eq!(Some(done.file_len), sizes.exact);
            assert_eq!((done.from.as_slice(), done.size), (["vma"].as_slice(), size));
            qemu_img(["check", "-q"].map(Path::new).into_iter().chain([target.as_path()]));
            qemu_img(
                ["compare", "-f", "qcow2", "-F", "raw"].map(Path::new).into_iter().chain([&*target, &*raw]),
            );

            let target = folder.path().join("dd.raw");
            let how = Dd { open: open.clone(), block_size: 4096, skip: 3, ..Dd::default() };
            cowhand::dd(DdInput::Image(&part), DdOutput::Image(&target), &how, &Quiet).unwrap();
            let copied = std::fs::read(&target).unwrap();
            assert!(copied == disk.content.bytes(3 * 4096, (size - 3 * 4096) as usize));

            let how = Stream { open: open.clone(), ..as_format("vpc", "force_size=on") };
            let streamed = folder.path().join("s.vhd");
            std::fs::write(&streamed, to_bytes(From::File(&part), &how).unwrap().0).unwrap();
            assert_holds(&cowhand::open(&streamed, &Open::default()).unwrap(), &raw);

            // By the options alone.
            let how = Open {
                format: Some("vma".into()),
                options: options(&format!("disk={name}")),
                ..open.clone()
            };
            disk.content.assert_disk(&cowhand::open(&path, &how).unwrap());
        }
        // Both, one behind the other.
        let target = folder.path().join("both.raw");
        let sources =
            [part(&path, "drive-virtio1"), part(&path, "drive-virtio1"), part(&path, "drive-scsi0")];
        cowhand::convert(&Convert { open, ..Convert::new(sources, &target) }, &Quiet).unwrap();
        let found = std::fs::read(&target).unwrap();
        let [first, second] = built.file.disks.as_slice() else { unreachable!() };
        let mut expected = second.content.bytes(0, 3 << 20).repeat(2);
        expected.extend(first.content.bytes(0, first.content.size() as usize));
        assert!(found == expected);
        let mut left = names(folder.path());
        left.retain(|name| !["raw", "t.qcow2", "dd.raw", "s.vhd", "both.raw"].contains(&name.as_str()));
        assert_eq!(left, [path.file_name().unwrap().to_str().unwrap()], "nothing is left");
    });
}

#[test]
fn a_disk_packed_in_one_piece_is_taken_out_as_it_comes() {
    let built = archive();
    let folder = temp();
    let path = Form::Zstd.save(&built.bytes, folder.path()).unwrap();
    let part = part(&path, "drive-scsi0");
    let disk = &built.file.disks[0].content;
    let raw = folder.path().join("raw");
    disk.save(&raw);
    for (format, text) in [
        ("raw", ""),
        ("qcow2", ""),
        ("vpc", "force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vhdx", ""),
    ] {
        let ways: &[Option<u64>] = if format == "qcow2" { &[None, Some(0), Some(64 << 10)] } else { &[None] };
        for sparse in ways.iter().copied() {
            let target = folder.path().join("target");
            let how = Convert {
                format: Some(format.into()),
                options: options(text),
                sparse,
                verify: true,
                ..Convert::new([&part], &target)
            };
            let done = cowhand::convert(&how, &Quiet).unwrap();
            assert!(done.verified && (done.from.as_slice(), done.size) == (["vma"].as_slice(), disk.size()));
            if sparse == Some(0) {
                assert_eq!(done.written, disk.size());
            }
            let how = Open { format: Some(format.into()), ..Open::default() };
            disk.assert_disk(&cowhand::open(&target, &how).unwrap());
            qemu_img(
                ["compare", "-f", format, "-F", "raw"].map(Path::new).into_iter().chain([&*target, &*raw]),
            );
        }
    }
    // A smaller target is none, a larger one is zero behind.
    let how = Convert {
        options: options("size=12M"),
        verify: true,
        ..Convert::new([&part], folder.path().join("t.qcow2"))
    };
    assert_eq!(cowhand::convert(&how, &Quiet).unwrap().size, 12 * MIB);
    let how = Convert { options: options("size=1M"), ..how };
    assert_eq!(cowhand::convert(&how, &Quiet).unwrap_err().kind(), ErrorKind::Invalid);

    // What needs it at random says what to do.
    let target = folder.path().join("other");
    let image = cowhand::open(&part, &Open::default()).unwrap();
    for error in [
        image.read(0, &mut [0; 512]).unwrap_err(),
        cowhand::map(&image, 0, 512, |_| Ok(())).unwrap_err(),
        image.prepare(&Quiet).unwrap_err(),
        cowhand::convert(
            &Convert { compress: true, format: Some("qcow2".into()), ..Convert::new([&part], &target) },
            &Quiet,
        )
        .unwrap_err()
        .error,
        cowhand::convert(&Convert::new([&part, &part], &target), &Quiet).unwrap_err().error,
        cowhand::dd(DdInput::Image(&part), DdOutput::Image(&target), &Dd::default(), &Quiet)
            .unwrap_err()
            .error,
        to_bytes(From::File(&part), &Stream::default()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains("--unpack-to") && text.contains("b.vma.zst#drive-scsi0"), "{text}");
    }
    let mut indexing = Indexing::default();
    indexing.unpack_to = Some(folder.path().join("missing"));
    let how = Open { indexing, ..Open::default() };
    let error = cowhand::open(&part, &how).unwrap().prepare(&Quiet).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("missing"), "{error}");
    assert_eq!(names(folder.path()), ["b.vma.zst", "raw", "t.qcow2", "target"]);
}

#[test]
fn names_that_hold_marks_mean_the_file_first() {
    let built = archive();
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    for name in ["a#b.vma", "#", "a#b.vma#drive-virtio1"] {
        std::fs::write(at(name), &built.bytes).unwrap();
    }
    let [first, second] = built.file.disks.as_slice() else { unreachable!() };
    first.content.assert_disk(&cowhand::open(&at("a#b.vma#drive-scsi0"), &Open::default()).unwrap());
    first.content.assert_disk(&cowhand::open(&at("##drive-scsi0"), &Open::default()).unwrap());
    second
        .content
        .assert_disk(&cowhand::open(&at("a#b.vma#drive-virtio1#drive-virtio1"), &Open::default()).unwrap());
    let error = cowhand::open(&at("a#b.vma#drive-virtio1"), &Open::default()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("drive-scsi0") && text.contains("drive-virtio1") && text.contains("several"),
        "{text}"
    );
    let error = cowhand::open(&at("a#b.vma#no\u{1b}"), &Open::default()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(text.contains("drive-scsi0") && !text.contains('\u{1b}'), "{text}");
    assert_eq!(cowhand::open(&at("none.vma#x"), &Open::default()).unwrap_err().kind(), ErrorKind::NotFound);
    // What is no archive has no disks to name.
    cowhand::create(&at("i.qcow2"), &cowhand::Create::new("qcow2", MIB)).unwrap();
    let error = cowhand::open(&at("i.qcow2#x"), &Open::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("qcow2"), "{error}");
    let how = Open { options: options("disk=drive-scsi0"), ..Open::default() };
    let error = cowhand::open(&at("a#b.vma#drive-virtio1#drive-virtio1"), &how).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn an_archive_without_a_name_of_a_disk_is_listed_or_is_its_only_disk() {
    let folder = temp();
    let path = folder.path().join("b.vma");
    let built = archive();
    std::fs::write(&path, &built.bytes).unwrap();
    let found = listed(&path, &Open::default()).unwrap().unwrap();
    let json = found.to_json();
    assert_eq!(json["format"], "vma");
    assert_eq!(json["disks"][1]["filename"], format!("{}#drive-virtio1", path.display()));
    assert_eq!(json["disks"][1]["virtual-size"], 3 * MIB);
    assert_eq!(json["format-specific"]["data"]["configs"][0]["name"], "qemu-server.conf");
    assert!(json.get("virtual-size").is_none());
    assert!(listed(&part(&path, "drive-scsi0"), &Open::default()).unwrap().is_none());
    let how = Open { options: options("disk=drive-scsi0"), ..Open::default() };
    assert!(listed(&path, &how).unwrap().is_none());

    let one = VmaFile::new("one").disk("drive-scsi0", MIB).build();
    std::fs::write(&path, &one.bytes).unwrap();
    assert!(listed(&path, &Open::default()).unwrap().is_none());
    one.file.disks[0].content.assert_disk(&cowhand::open(&path, &Open::default()).unwrap());
    let none = VmaFile::new("none").config("a", "b").build();
    std::fs::write(&path, &none.bytes).unwrap();
    assert_eq!(listed(&path, &Open::default()).unwrap().unwrap().disks, []);
    assert_eq!(cowhand::open(&path, &Open::default()).unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::write(folder.path().join("raw"), [0; 512]).unwrap();
    assert!(listed(&folder.path().join("raw"), &Open::default()).unwrap().is_none());
}

#[test]
fn nobody_writes_to_a_disk_of_an_archive() {
    let folder = temp();
    let built = VmaFile::new("one").disk("drive-scsi0", MIB).build();
    for form in [Form::Plain, Form::OurZstd, Form::Zstd] {
        let Some(path) = form.save(&built.bytes, folder.path()) else { continue };
        let before = std::fs::read(&path).unwrap();
        let raw = folder.path().join("raw");
        built.file.disks[0].content.save(&raw);
        for name in [path.clone(), part(&path, "drive-scsi0")] {
            let writable = Open { writable: true, ..Open::default() };
            for error in [
                cowhand::open(&name, &writable).unwrap_err(),
                cowhand::convert(&Convert { no_create: true, ..Convert::new([&raw], &name) }, &Quiet)
                    .unwrap_err()
                    .error,
            ] {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains("archive"), "{error}");
            }
        }
        // The archive is no target of its own disk.
        let error = cowhand::convert(&Convert::new([part(&path, "drive-scsi0")], &path), &Quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(std::fs::read(&path).unwrap() == before);
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&raw).unwrap();
        assert_eq!(names(folder.path()).len(), 0);
    }
}

#[test]
fn names_found_in_images_are_not_taken_apart() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let built = VmaFile::new("one").disk("drive-scsi0", MIB).build();
    std::fs::write(at("b.vma"), &built.bytes).unwrap();
    let child = at("child.qcow2");
    for format in ["vma", "raw"] {
        qemu_img([
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "b.vma#drive-scsi0",
            "-F",
            "raw",
            child.to_str().unwrap(),
            "1M",
        ]);
        if format == "vma" {
            // qemu-img knows no such format; the name is as long.
            let bytes = std::fs::read(&child).unwrap();
            let at_format = bytes.windows(3).position(|three| three == b"raw").unwrap();
            let mut bytes = bytes;
            bytes[at_format..at_format + 3].copy_from_slice(b"vma");
            std::fs::write(&child, bytes).unwrap();
        }
        let error = cowhand::open(&child, &Open::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    // Nor is such a name put into one.
    let mut how = cowhand::Create::new("qcow2", MIB);
    how.backing = Some("b.vma#drive-scsi0".into());
    how.backing_format = Some("vma".into());
    let error = cowhand::create(&at("new.qcow2"), &how).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("parent"), "{error}");
    // Who calls may say so.
    let parent = Parent::Given(at("b.vma#drive-scsi0"));
    let image = cowhand::open(&child, &Open { parent, ..Open::default() }).unwrap();
    built.file.disks[0].content.assert_disk(&image);
}

#[test]
fn an_archive_is_held_as_an_image_that_is_read() {
    let folder = temp();
    let built = archive();
    let path = folder.path().join("b.vma");
    std::fs::write(&path, &built.bytes).unwrap();
    let part = part(&path, "drive-scsi0");
    let image = cowhand::open(&part, &Open::default()).unwrap();
    let taken = |access| FileStorage::open(&path, access, Lock::Default, Cache::Writeback).map(|_| ());
    assert_eq!(taken(Access::Write).unwrap_err().kind(), ErrorKind::Locked);
    taken(Access::Read).unwrap();
    drop(image);
    let writer = FileStorage::open(&path, Access::Write, Lock::Default, Cache::Writeback).unwrap();
    assert_eq!(cowhand::open(&part, &Open::default()).unwrap_err().kind(), ErrorKind::Locked);
    let shared = Open { lock: Lock::None, ..Open::default() };
    let image = cowhand::open(&part, &shared).unwrap();
    drop(writer);
    image.check_unchanged().unwrap();
    use std::io::Write;
    std::fs::File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
    assert_eq!(image.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
}

#[test]
fn a_broken_archive_leaves_no_target() {
    let built = archive();
    forms(|form| {
        let folder = temp();
        let cut = &built.bytes[..built.bytes.len() - 5000];
        let Some(path) = form.save(cut, folder.path()) else { return };
        let how = Convert::new([part(&path, "drive-scsi0")], folder.path().join("t.qcow2"));
        let error = cowhand::convert(&how, &Quiet).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Changed), "{error}");
        assert_eq!(names(folder.path()).len(), 1);
        if form == Form::Plain {
            return;
        }
        // What is packed ends before its end.
        let whole = form.save(&built.bytes, folder.path()).unwrap();
        let bytes = std::fs::read(&whole).unwrap();
        std::fs::write(&whole, &bytes[..bytes.len() / 2]).unwrap();
        let error = cowhand::convert(&how, &Quiet).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Changed | ErrorKind::Io), "{error}");
        assert_eq!(names(folder.path()).len(), 1);
    });
}

/// Bytes that this thread has read from files.
fn read_so_far() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn an_index_that_is_kept_spares_the_next_its_look() {
    let small = VmaFile::new("kept").disk("drive-scsi0", 16 * MIB).disk("drive-efidisk0", 528 << 10).build();
    for form in Form::ALL.into_iter().filter(|form| !form.one_piece()) {
        let folder = temp();
        let Some(path) = form.save(&small.bytes, folder.path()) else { continue };
        let len = std::fs::metadata(&path).unwrap().len();
        let target = folder.path().join("t.raw");
        let convert = |keep: bool, disk: &str| {
            let mut open = Open::default();
            open.indexing.keep = keep;
            let how = Convert { open, workers: Some(1), ..Convert::new([part(&path, disk)], &target) };
            let before = read_so_far();
            cowhand::convert(&how, &Quiet).unwrap();
            read_so_far() - before
        };
        convert(true, "drive-scsi0");
        let sidecar = format!("{}.index", path.file_name().unwrap().to_str().unwrap());
        assert_eq!(names(folder.path()), [path.file_name().unwrap().to_str().unwrap(), &sidecar, "t.raw"]);
        let kept = std::fs::metadata(folder.path().join(&sidecar)).unwrap().len();
        // The small disk, the index, the head that tells whose index it is, and what stands in one piece with the disk.
        let read = convert(false, "drive-efidisk0");
        assert!(read < len / 2 + kept, "{form:?}: {read} of {len}");
        let found = std::fs::read(&target).unwrap();
        assert!(found == small.file.disks[1].content.bytes(0, 528 << 10), "{form:?}");

        // Another archive of the same name: the index is none of its.
        let other = VmaFile { uuid: [9; 16], ..small.file.clone() }.build();
        let Some(path) = form.save(&other.bytes, folder.path()) else { continue };
        let image = cowhand::open(&part(&path, "drive-scsi0"), &Open::default()).unwrap();
        other.file.disks[0].content.assert_disk(&image);
    }
}

#[test]
fn an_image_is_not_checked_by_a_name_it_does_not_have() {
    let folder = temp();
    let path = folder.path().join("a.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    let found = cowhand::check(&part(&path, "disk"), &cowhand::Check::default(), &Quiet);
    assert_eq!(found.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn no_index_is_written_through_a_link() {
    let folder = temp();
    let path = Form::Plain.save(&archive().bytes, folder.path()).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    let sidecar = PathBuf::from(format!("{}.index", path.display()));
    std::os::unix::fs::symlink(&elsewhere, &sidecar).unwrap();
    let mut keep = Open::default();
    keep.indexing.keep = true;
    let image = cowhand::open(&part(&path, "drive-scsi0"), &keep).unwrap();
    assert_eq!(image.prepare(&Quiet).unwrap_err().kind(), ErrorKind::Exists);
    assert!(!elsewhere.exists());
}

/// A guest writes what it likes to its disk: here what says that packed bytes follow, again and again, with nothing in them.
#[test]
fn what_says_that_it_is_packed_and_never_begins_is_soon_known_to_be_a_disk() {
    let folder = temp();
    let path = folder.path().join("guest.raw");
    let file = std::fs::File::create(&path).unwrap();
    let len = u64::from(u32::MAX) - 7;
    for at in 0..64 {
        let head = [0x184d_2a50_u32.to_le_bytes(), (len as u32).to_le_bytes()].concat();
        std::os::unix::fs::FileExt::write_all_at(&file, &head, at * (len + 8)).unwrap();
    }
    file.set_len(64 * (len + 8) / 512 * 512).unwrap();
    let since = std::time::Instant::now();
    let image = cowhand::open(&path, &Open::default()).unwrap();
    assert_eq!(image.links()[0].format, "raw");
    assert!(since.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
fn an_index_that_is_damaged_is_none() {
    let folder = temp();
    let built = VmaFile::new("damaged").disk("drive-scsi0", MIB + 512).disk("drive-scsi1", MIB).build();
    for form in [Form::Plain, Form::OurZstd] {
        let path = form.save(&built.bytes, folder.path()).unwrap();
        let part = part(&path, "drive-scsi0");
        let mut keep = Open::default();
        keep.indexing.keep = true;
        cowhand::open(&part, &keep).unwrap().prepare(&Quiet).unwrap();
        let sidecar = PathBuf::from(format!("{}.index", path.display()));
        let sound = std::fs::read(&sidecar).unwrap();
        let step = (sound.len() / 40).max(1);
        for at in (0..sound.len()).step_by(step) {
            for repair in [false, true] {
                let mut bytes = sound.clone();
                bytes[at] ^= 0x55;
                if repair {
                    let sum = crc32c::crc32c(&bytes[16..]).to_le_bytes();
                    bytes[12..16].copy_from_slice(&sum);
                }
                std::fs::write(&sidecar, &bytes).unwrap();
                let image = cowhand::open(&part, &Open::default()).unwrap();
                if !repair {
                    built.file.disks[0].content.assert_disk(&image);
                    continue;
                }
                // Who makes one with a right sum may say where this archive's bytes stand, and no more.
                let mut buf = vec![0; 1 << 16];
                for chunk in 0..16 {
                    let _ = image.read(chunk << 16, &mut buf);
                }
            }
        }
        for cut in [0, 1, 15, 16, 40, sound.len() - 1] {
            std::fs::write(&sidecar, &sound[..cut]).unwrap();
            built.file.disks[0].content.assert_disk(&cowhand::open(&part, &Open::default()).unwrap());
        }
        // A damaged one is written anew where that is asked for; what is no index is left alone.
        cowhand::open(&part, &keep).unwrap().prepare(&Quiet).unwrap();
        assert!(std::fs::read(&sidecar).unwrap() == sound);
        std::fs::write(&sidecar, "my own notes").unwrap();
        let error = cowhand::open(&part, &keep).unwrap().prepare(&Quiet).unwrap_err();
        assert!(error.kind() == ErrorKind::Exists && error.to_string().contains(".index"), "{error}");
        assert_eq!(std::fs::read(&sidecar).unwrap(), b"my own notes");
        built.file.disks[0].content.assert_disk(&cowhand::open(&part, &Open::default()).unwrap());
        std::fs::remove_file(&sidecar).unwrap();
        assert_eq!(names(folder.path()), [path.file_name().unwrap().to_str().unwrap()]);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn proxmox_own_archives_are_read_disk_by_disk() {
    let samples = samples();
    let Some(two) = samples.iter().find(|sample| sample.path == "vma/two.vma.zst") else {
        eprintln!("SKIPPED: there is no sample of Proxmox's");
        return;
    };
    let folder = temp();
    let found = listed(&two.file, &Open::default()).unwrap().unwrap();
    assert_eq!(found.disks.len(), 2);
    // In the manifest's last column the disks' hashes stand as words.
    let manifest = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples/MANIFEST.tsv"),
    )
    .unwrap();
    let line = manifest.lines().find(|line| line.contains("vma/two.vma.zst")).unwrap();
    let words: Vec<&str> = line.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    for (name, _) in &found.disks {
        let target = folder.path().join("t.qcow2");
        cowhand::convert(&Convert { verify: true, ..Convert::new([name], &target) }, &Quiet).unwrap();
        let hash = guest_sha256(&cowhand::open(&target, &Open::default()).unwrap()).unwrap();
        assert!(words.contains(&hash.as_str()), "{name}: {hash}");
        let mut how = Open::default();
        how.indexing.unpack_to = Some(folder.path().to_owned());
        assert_eq!(guest_sha256(&cowhand::open(Path::new(name), &how).unwrap()).unwrap(), hash);
    }
    assert_eq!(names(folder.path()), ["t.qcow2"]);
    let one = samples.iter().find(|sample| sample.path == "vma/t32.vma").unwrap();
    assert_eq!(cowhand::open(&one.file, &Open::default()).unwrap().size(), 32 << 10);
}
