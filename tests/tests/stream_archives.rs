//! Chains in `tar.gz` archives: ours read by tar and gzip, theirs read by us, and those that nobody should have made.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand::stream::{From, Stream};
use cowhand::{ErrorKind, Open};
use cowhand_tests::{Content, assert_holds, assert_same, qemu_img, qemu_io, run, temp};

use crate::streams::{as_format, bytes, names, to_bytes, to_file};

fn shell(script: &str, folder: &Path) -> String {
    let ran = run(Command::new("sh").arg("-c").arg(format!("cd '{}' && {script}", folder.display())));
    assert!(ran.ok(), "{script}: {}", ran.err);
    ran.out
}

/// A file `0.vhd`, and what it holds.
fn vhd(folder: &Path) -> PathBuf {
    let raw = Content::striped("disk", 5 << 20, 200 << 10, 5).raw_in(folder);
    let words = ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"].map(Path::new);
    qemu_img(words.into_iter().chain([raw.as_path(), &folder.join("0.vhd")]));
    raw
}

#[test]
fn tar_and_gzip_read_what_we_pack() {
    let folder = temp();
    let raw = vhd(folder.path());
    let archive = folder.path().join("a.tar.gz");
    for workers in [1, 2, 5] {
        let how = Stream { workers: Some(workers), ..as_format("vpc", "force_size=on") };
        to_file(From::File(&raw), &archive, &how).unwrap();
        shell("gzip -t a.tar.gz && mkdir x && tar xzf a.tar.gz -C x", folder.path());
        assert_eq!(names(&folder.path().join("x")), ["0.vhd"]);
        assert_holds(&cowhand::open(&folder.path().join("x/0.vhd"), &Open::default()).unwrap(), &raw);
        // As XenServer's programs read it: from front to back, and gzip's first member alone.
        let python = "python3 -c \"import tarfile; t = tarfile.open('a.tar.gz', 'r|gz'); \
                      print([(m.name, m.size, m.isreg()) for m in t])\"";
        let size = std::fs::metadata(folder.path().join("x/0.vhd")).unwrap().len();
        assert_eq!(shell(python, folder.path()).trim(), format!("[('0.vhd', {size}, True)]"));
        shell("rm -r x", folder.path());
    }
}

#[test]
fn archives_of_other_programs_are_read() {
    let folder = temp();
    let raw = vhd(folder.path());
    for make in [
        "tar czf a.tgz 0.vhd",
        "tar czf a.tgz ./0.vhd",
        "tar --format=posix -czf a.tgz 0.vhd",
        "tar --format=posix --pax-option=comment=hello,globexthdr.name=x -czf a.tgz 0.vhd",
        "tar --format=ustar -czf a.tgz 0.vhd",
        "tar --format=v7 -czf a.tgz 0.vhd",
        "mkdir -p in && cp 0.vhd in && tar czf a.tgz -C in . && rm -r in",
        "tar -b 1 -cf - 0.vhd | gzip -1 >a.tgz",
        // As gzip's own manual has it: members one behind the other are one file.
        "tar cf a.tar 0.vhd && { head -c 70000 a.tar | gzip; tail -c +70001 a.tar | gzip; } >a.tgz && rm a.tar",
        "python3 -c \"import tarfile; t = tarfile.open('a.tgz', 'w:gz'); t.add('0.vhd'); t.close()\"",
    ] {
        shell(make, folder.path());
        let archive = folder.path().join("a.tgz");
        let target = folder.path().join("target.raw");
        to_file(From::File(&archive), &target, &Stream::default())
            .unwrap_or_else(|error| panic!("{make}: {error}"));
        assert_holds(&cowhand::open(&target, &Open::default()).unwrap(), &raw);
        let unpacked = folder.path().join("unpacked");
        to_file(From::File(&archive), &unpacked.join(""), &Stream::default()).unwrap();
        shell("cmp 0.vhd unpacked/0.vhd && rm -r unpacked target.raw", folder.path());
    }
    // Sparse ones are none of bytes alone.
    shell("truncate -s 64M big && cat 0.vhd >>big && mv big 0.vhd", folder.path());
    for form in ["gnu", "posix"] {
        shell(&format!("tar --format={form} -Sczf a.tgz 0.vhd"), folder.path());
        let error = to_file(
            From::File(&folder.path().join("a.tgz")),
            &folder.path().join("t.raw"),
            &Stream::default(),
        );
        let error = error.unwrap_err();
        assert!(
            error.kind() == ErrorKind::Unsupported && error.to_string().contains("without tar's -S"),
            "{error}"
        );
    }
}

/// A header of tar's, as its manual has it.
fn header(name: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    if size < 1 << 33 {
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn member(name: &str, kind: u8, body: &[u8], link: &str) -> Vec<u8> {
    let mut member = header(name, kind, body.len() as u64, link);
    member.extend(body);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

fn packed(folder: &Path, tar: &[u8]) -> Vec<u8> {
    let mut file = File::create(folder.join("made.tar")).unwrap();
    file.write_all(tar).unwrap();
    shell("gzip -1 -n -f made.tar", folder);
    std::fs::read(folder.join("made.tar.gz")).unwrap()
}

#[test]
fn archives_that_nobody_should_have_made() {
    let folder = temp();
    vhd(folder.path());
    let image = std::fs::read(folder.path().join("0.vhd")).unwrap();
    let file = |name: &str| member(name, b'0', &image, "");
    let pax = |text: &str| member("pax", b'x', format!("{} {text}\n", text.len() + 4).as_bytes(), "");
    let long = |name: &str| [member("././@LongLink", b'L', name.as_bytes(), ""), file("0.vhd")].concat();
    let end = vec![0; 1024];
    let cases: Vec<(&str, Vec<u8>, ErrorKind, &str)> = vec![
        ("outside", file("../0.vhd"), ErrorKind::Unsupported, "'../0.vhd'"),
        ("absolute", file("/0.vhd"), ErrorKind::Unsupported, "'/0.vhd'"),
        ("in a folder", file("x/0.vhd"), ErrorKind::Unsupported, "'x/0.vhd'"),
        ("another name", file("readme"), ErrorKind::Unsupported, "'readme'"),
        ("escape", file("0.vhd\u{1b}[2J"), ErrorKind::Unsupported, "\\u{1b}"),
        ("symbolic link", member("0.vhd", b'2', b"", "/etc/passwd"), ErrorKind::Unsupported, "no plain file"),
        ("hard link", member("0.vhd", b'1', b"", "/etc/passwd"), ErrorKind::Unsupported, "no plain file"),
        ("device", member("0.vhd", b'3', b"", ""), ErrorKind::Unsupported, "no plain file"),
        ("pipe", member("0.vhd", b'6', b"", ""), ErrorKind::Unsupported, "no plain file"),
        ("folder", member("0.vhd/", b'5', b"", ""), ErrorKind::Unsupported, "no plain file"),
        ("name from pax", [pax("path=../x"), file("0.vhd")].concat(), ErrorKind::Unsupported, "'../x'"),
        ("long name", long("../../0.vhd"), ErrorKind::Unsupported, "'../../0.vhd'"),
        (
            "absurd name",
            [header("l", b'L', 1 << 40, ""), end.clone()].concat(),
            ErrorKind::Corrupt,
            "absurdly long",
        ),
        ("huge", header("0.vhd", b'0', u64::MAX, ""), ErrorKind::Corrupt, "absurd"),
        (
            "large",
            [header("0.vhd", b'0', 1 << 60, ""), image.clone()].concat(),
            ErrorKind::Mismatch,
            "are to come",
        ),
        ("size from pax", [pax("size=99999999"), file("0.vhd")].concat(), ErrorKind::Mismatch, "are to come"),
        ("empty", Vec::new(), ErrorKind::NotFound, "empty"),
        ("no image", member("0.vhd", b'0', &[1; 4096], ""), ErrorKind::Corrupt, "footer"),
        ("unknown format", file("0.abc"), ErrorKind::Unsupported, "'0.abc'"),
        ("not from front to back", file("0.qcow2"), ErrorKind::Unsupported, "qcow2"),
        ("without its leaf", file("1.vhd"), ErrorKind::Unsupported, ""),
        ("behind the base", [file("0.vhd"), file("1.vhd")].concat(), ErrorKind::Corrupt, "base"),
        ("twice", [file("0.vhd"), file("0.vhd")].concat(), ErrorKind::Corrupt, ""),
    ];
    let outside = temp();
    for (name, tar, kind, part) in cases {
        let tar = if name == "large" || name == "huge" { tar } else { [tar, end.clone()].concat() };
        let archive = packed(folder.path(), &tar);
        for place in ["target.raw", "target/"] {
            let error = to_file(bytes(archive.clone()), &outside.path().join(place), &Stream::default());
            let error = error.err().unwrap_or_else(|| panic!("{name} was taken into {place}"));
            let other = match name {
                // What is said first depends on which way it goes.
                "without its leaf" => ErrorKind::NotFound,
                "twice" => ErrorKind::Unsupported,
                _ => kind,
            };
            assert!(error.kind() == kind || error.kind() == other, "{name}: {error:?}");
            assert!(
                error.to_string().contains(part) && !error.to_string().contains('\u{1b}'),
                "{name}: {error}"
            );
            assert!(names(outside.path()).is_empty(), "{name}: {:?}", names(outside.path()));
        }
    }
    // A good one, cut anywhere; and with a byte that fell over.
    let archive = packed(folder.path(), &[file("0.vhd"), end].concat());
    for cut in [1, 2, 10, 30, archive.len() / 2, archive.len() - 9, archive.len() - 1] {
        for place in ["target.raw", "target/"] {
            let error =
                to_file(bytes(&archive[..cut]), &outside.path().join(place), &Stream::default()).unwrap_err();
            assert!(cut < 3 || error.kind() == ErrorKind::Changed, "cut at {cut}: {error:?}");
            assert!(names(outside.path()).is_empty(), "{:?}", names(outside.path()));
        }
    }
    let mut broken = archive.clone();
    let last = broken.len() - 6;
    broken[last] ^= 1;
    let error = to_file(bytes(broken), &outside.path().join("t.raw"), &Stream::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(names(outside.path()).is_empty());
    // What is there already is no place to unpack into.
    std::fs::create_dir(outside.path().join("full")).unwrap();
    std::fs::write(outside.path().join("full/x"), "mine").unwrap();
    let error = to_file(bytes(archive), &outside.path().join("full"), &Stream::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(names(&outside.path().join("full")), ["x"]);
    assert_eq!(names(outside.path()), ["full"]);
}

/// A chain of three qcow2 files, of growing size; the leaf.
fn chain(folder: &Path) -> PathBuf {
    let raw = Content::striped("base", 6 << 20, 100 << 10, 5).raw_in(folder);
    let words = ["convert", "-f", "raw", "-O", "qcow2"].map(Path::new);
    qemu_img(words.into_iter().chain([raw.as_path(), &folder.join("base.qcow2")]));
    for (name, below, size, commands) in [
        ("mid", "base", "7M", ["write -P 1 50k 1k", "write -z 1M 300k", "write -P 2 6300k 8k"]),
        ("leaf", "mid", "9M", ["write -P 3 51k 3k", "write -P 4 8M 64k", "write -z 6304k 4k"]),
    ] {
        let (file, below) = (folder.join(format!("{name}.qcow2")), format!("{below}.qcow2"));
        let words =
            ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, file.to_str().unwrap(), size];
        qemu_img(words);
        qemu_io(["-f", "qcow2"], &file, commands);
    }
    folder.join("leaf.qcow2")
}

#[test]
fn a_chain_goes_into_an_archive_and_comes_out_whole() {
    let folder = temp();
    let leaf = chain(folder.path());
    let disk = cowhand::open(&leaf, &Open::default()).unwrap();
    let archive = folder.path().join("chain.tar.gz");
    let done = to_file(From::File(&leaf), &archive, &as_format("vpc", "force_size=on")).unwrap();
    assert_eq!((done.from, done.to, done.layers), ("qcow2", "vpc", 3));
    // Into a folder, where the leaf finds what it stands on.
    let unpacked = folder.path().join("disks");
    let done = to_file(From::File(&archive), &unpacked.join(""), &Stream::default()).unwrap();
    assert_eq!((done.layers, done.size), (3, Some(disk.size())));
    assert_eq!(names(&unpacked), ["0.vhd", "1.vhd", "2.vhd"]);
    let again = cowhand::open(&unpacked.join("0.vhd"), &Open::default()).unwrap();
    assert_eq!(again.links().len(), 3);
    assert_same(&disk, &again);
    drop(again);
    // Flattened on its way into every format.
    for (target, format) in [("a.raw", "raw"), ("a.qcow2", "qcow2"), ("a.vhdx", "vhdx")] {
        let target = folder.path().join(target);
        let done = to_file(From::File(&archive), &target, &as_format(format, "")).unwrap();
        assert_eq!((done.layers, done.size), (3, Some(disk.size())));
        assert_same(&disk, &cowhand::open(&target, &Open::default()).unwrap());
    }
    // One image is not the chain.
    let error = to_bytes(From::File(&archive), &Stream::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let flat = folder.path().join("flat.tgz");
    let done = to_file(From::File(&leaf), &flat, &Stream { flat: true, ..as_format("vpc", "force_size=on") });
    assert_eq!(done.unwrap().layers, 1);
    // Members that are missing, in another order, or another's.
    shell("mkdir m && tar xzf chain.tar.gz -C m && cp m/2.vhd base.vhd", folder.path());
    for (make, into_image, into_folder) in [
        ("tar czf ../b.tgz 0.vhd 1.vhd", Some(ErrorKind::NotFound), Some(ErrorKind::NotFound)),
        ("tar czf ../b.tgz 0.vhd 2.vhd", Some(ErrorKind::Unsupported), Some(ErrorKind::NotFound)),
        ("tar czf ../b.tgz 2.vhd 1.vhd 0.vhd", Some(ErrorKind::Unsupported), None),
        (
            "cp 1.vhd 2.vhd && tar czf ../b.tgz 0.vhd 1.vhd 2.vhd",
            Some(ErrorKind::Mismatch),
            Some(ErrorKind::Mismatch),
        ),
    ] {
        shell(&format!("cd m && {make}"), folder.path());
        let broken = folder.path().join("b.tgz");
        let place = temp();
        let kind = |place: &Path| {
            to_file(From::File(&broken), place, &Stream::default()).err().map(|error| error.kind())
        };
        assert_eq!(kind(&place.path().join("t.raw")), into_image, "{make}");
        assert_eq!(kind(&place.path().join("t/")), into_folder, "{make}");
        assert_eq!(names(place.path()), into_folder.map_or(vec!["t"], |_| vec![]), "{make}");
    }
}

#[test]
fn members_that_name_each_other_otherwise_are_connected() {
    let folder = temp();
    let leaf = chain(folder.path());
    // As XenServer has them: named by their ids, and numbered only in the archive.
    for (source, target, backing) in [("mid.qcow2", "5a.vhd", None), ("leaf.qcow2", "c7.vhd", Some("5a.vhd"))]
    {
        let how = cowhand::Convert {
            // The base's id stands at its end alone.
            options: cowhand_tests::options(match backing {
                None => "force_size=on,subformat=fixed",
                Some(_) => "force_size=on",
            }),
            backing: backing.map(PathBuf::from),
            backing_format: backing.map(|_| "vpc".to_owned()),
            ..cowhand::Convert::new([folder.path().join(source)], folder.path().join(target))
        };
        cowhand::convert(&how, &cowhand::Quiet).unwrap();
    }
    shell("mv c7.vhd 0.vhd && mv 5a.vhd 1.vhd && tar czf c.tgz 0.vhd 1.vhd", folder.path());
    let unpacked = folder.path().join("disks");
    to_file(From::File(&folder.path().join("c.tgz")), &unpacked.join(""), &Stream::default()).unwrap();
    let found = cowhand::open(&unpacked.join("0.vhd"), &Open::default()).unwrap();
    assert_eq!(found.links().len(), 2);
    assert_same(&cowhand::open(&leaf, &Open::default()).unwrap(), &found);
    let flat = folder.path().join("flat.qcow2");
    let done = to_file(From::File(&folder.path().join("c.tgz")), &flat, &Stream::default()).unwrap();
    assert_eq!(done.layers, 2);
    assert_same(&found, &cowhand::open(&flat, &Open::default()).unwrap());
}
