//! What is done as QEMU does it where somebody asks for that: damaged images, the formats that nobody names, targets in place.

use std::fs;
use std::path::Path;

use cowhand::{
    Access, Cache, Convert, Create, ErrorKind, FileStorage, Lock, Open, Policy, Probing, Quiet, Replace,
    Result, convert, create, detect_by, open,
};
use cowhand_tests::{Patch, qemu_img, qemu_io, temp};

/// Where an image of qemu-img's of 4 MiB has its header's end, its refcount block, its L1 table and its one L2 table.
const HEADER: usize = 112;
const BLOCK: u64 = 0x2_0000;
const L1: usize = 0x3_0000;
const L2: usize = 0x4_0000;
/// What the entries have beside an offset: the cluster is this one's alone.
const COPIED: u64 = 1 << 63;

fn lenient() -> Open {
    Open {
        lenient: true,
        probing: Probing::Trusting,
        policy: Policy::Any,
        lock: Lock::None,
        ..Open::default()
    }
}

/// An image whose first MiB is not zero.
fn image(folder: &Path) -> Patch {
    let path = folder.join("good.qcow2");
    qemu_img([Path::new("create"), "-q".as_ref(), "-fqcow2".as_ref(), &path, "4M".as_ref()]);
    qemu_io(["-fqcow2"], &path, ["write -P 7 0 1M"]);
    Patch::of(&path)
}

fn content(path: &Path, how: &Open) -> Result<Vec<u8>> {
    let disk = open(path, how)?;
    let mut bytes = vec![0xaa; disk.size() as usize];
    disk.read(0, &mut bytes).map(|()| bytes)
}

/// Why it is not read where nobody asks for QEMU's ways.
fn refused(path: &Path) -> Option<ErrorKind> {
    content(path, &Open::default()).err().map(|error| error.kind())
}

#[test]
fn damaged_images_read_as_there() {
    let folder = temp();
    let good = image(folder.path());
    let past = COPIED | 1 << 30;
    type Change<'a> = &'a dyn Fn(&mut Patch) -> &mut Patch;
    let cases: [(&str, Change<'_>); 7] = [
        ("L2 entry past the end", &|image| image.be64(L2, past)),
        ("L2 entry into the L1 table", &|image| image.be64(L2 + 16, COPIED | L1 as u64)),
        ("L1 entry past the end", &|image| image.be64(L1, past)),
        ("L1 entry into a refcount block", &|image| image.be64(L1, COPIED | BLOCK)),
        ("cut in its data", &|image| image.resize(600_000)),
        ("cut in its L2 table", &|image| image.resize(L2 + 20)),
        ("cut before its L2 table", &|image| image.resize(L1 + 8)),
    ];
    for (name, change) in cases {
        let mut image = good.clone();
        change(&mut image);
        let (path, raw) = (folder.path().join("bad.qcow2"), folder.path().join("read.raw"));
        image.save(&path);
        qemu_img([Path::new("convert"), "-Oraw".as_ref(), &path, &raw]);
        assert!(content(&path, &lenient()).unwrap() == fs::read(&raw).unwrap(), "{name}");
        assert_eq!(refused(&path), Some(ErrorKind::Corrupt), "{name}");
    }
}

#[test]
fn a_parent_of_no_stated_format_is_what_it_looks_like() {
    let folder = temp();
    image(folder.path());
    let [base, top] = ["good.qcow2", "top.qcow2"].map(|name| folder.path().join(name));
    let words = ["create", "-q", "-fqcow2", "-Fqcow2", "-b", base.to_str().unwrap(), top.to_str().unwrap()];
    qemu_img(words);
    // The header extension that states it comes first, and what nobody knows is passed over.
    Patch::of(&top).be32(HEADER, 1).save(&top);
    assert_eq!(refused(&top), Some(ErrorKind::Ambiguous));
    assert!(content(&top, &lenient()).unwrap() == content(&base, &lenient()).unwrap());
}

/// However it is said: what leads back into itself ends.
#[test]
fn an_image_that_describes_itself_is_refused() {
    let folder = temp();
    for (name, of) in [("a", "b"), ("b", "a")] {
        let path = folder.path().join(name);
        let parent = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
            folder.path().join(of).display()
        );
        let words = ["create", "-q", "-u", "-fqcow2", "-Fqcow2", "-b", &parent, path.to_str().unwrap(), "1M"];
        qemu_img(words);
    }
    let refused = open(&folder.path().join("a"), &lenient()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
}

#[test]
fn the_front_alone_says_the_format() {
    let folder = temp();
    let path = folder.path().join("fixed.vhd");
    qemu_img([
        Path::new("create"),
        "-q".as_ref(),
        "-fvpc".as_ref(),
        "-osubformat=fixed".as_ref(),
        &path,
        "1M".as_ref(),
    ]);
    let found = |probing| {
        let file = FileStorage::open(&path, Access::Read, Lock::None, Cache::Writeback).unwrap();
        detect_by(&file, probing).map(|format| format.names()[0])
    };
    assert_eq!(found(Probing::Whole).unwrap(), "vpc");
    assert_eq!(found(Probing::Front).unwrap(), "raw");
    assert_eq!(
        cowhand::info(&path, &Open { probing: Probing::Front, ..Open::default() }, false).unwrap()[0].format,
        "raw"
    );
    // A guest's first sector in a qcow2's first cluster.
    let mut both = image(folder.path());
    both.put(510, &[0x55, 0xaa]).save(&path);
    assert_eq!(found(Probing::Front).unwrap_err().kind(), ErrorKind::Ambiguous);
    assert_eq!(found(Probing::Trusting).unwrap(), "qcow2");
}

#[test]
fn nobody_looks_before_the_first_write() {
    let folder = temp();
    let path = folder.path().join("low.qcow2");
    let mut image = image(folder.path());
    // A cluster in use that the refcounts call free.
    image.put(BLOCK as usize + 2 * 20, &[0, 0]).save(&path);
    let write = |how: Open| open(&path, &Open { writable: true, ..how })?.write(3 << 20, &[1; 512]);
    assert_eq!(write(Open::default()).unwrap_err().kind(), ErrorKind::Corrupt);
    write(lenient()).unwrap();
}

#[test]
fn a_target_in_place_is_what_came_until_the_error() {
    let folder = temp();
    let [source, target] = ["bad.qcow2", "target.raw"].map(|name| folder.path().join(name));
    // Here QEMU fails as well.
    image(folder.path()).be64(L2, COPIED | 0x200).save(&source);
    fs::write(&target, b"old").unwrap();
    let mut job = Convert { open: lenient(), ..Convert::new([&source], &target) };
    assert!(convert(&job, &Quiet).is_err());
    assert_eq!(fs::read(&target).unwrap(), b"old");
    job.replace = Replace::InPlace;
    assert!(convert(&job, &Quiet).is_err());
    assert_eq!(fs::metadata(&target).unwrap().len(), 4 << 20);
    // What is good becomes good, in the old file.
    job.sources = vec![folder.path().join("good.qcow2")];
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = inode(&target);
    convert(&job, &Quiet).unwrap();
    assert_eq!(inode(&target), before);
    assert!(fs::read(&target).unwrap() == content(&job.sources[0], &Open::default()).unwrap());
    create(&target, &Create { replace: Replace::InPlace, ..Create::new("qcow2", 1 << 20) }).unwrap();
    assert_eq!(inode(&target), before);
    qemu_img([Path::new("check"), "-q".as_ref(), &target]);
    let new = folder.path().join("new.vhdx");
    create(&new, &Create { replace: Replace::InPlace, ..Create::new("vhdx", 1 << 20) }).unwrap();
    qemu_img([Path::new("check"), "-q".as_ref(), &new]);
}
