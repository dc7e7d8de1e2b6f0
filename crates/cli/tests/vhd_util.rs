//! Called `vhd-util`: the lines and numbers that XenServer's storage managers look for, and what becomes of the images.
#![allow(clippy::print_stderr, clippy::unwrap_used, clippy::panic)] // These are tests, helpers included.

mod common;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{PROGRAM, command, finish, good};
use cowhand::{NewSize, Open, Policy, Prealloc, Resize};

/// A folder with the tool in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        symlink(PROGRAM, dir.path().join("bin/vhd-util")).unwrap();
        Place { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        std::fs::canonicalize(self.path()).unwrap().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let tool = self.path().join("bin/vhd-util");
        let words: Vec<&str> = line.split_whitespace().collect();
        command(tool.to_str().unwrap(), self.path(), &words)
    }

    fn run(&self, line: &str) -> Output {
        finish(self.command(line).spawn().unwrap())
    }

    /// What it prints; it succeeds and complains of nothing.
    fn says(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success() && output.stderr.is_empty(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints; its status is this.
    fn fails(&self, line: &str, status: i32) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(status), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Writes `count` sectors of the byte `fill` at the sector `at` of a disk.
    fn write(&self, image: &str, at: u64, count: u64, fill: u8) {
        let how = Open {
            format: Some("vpc".to_owned()),
            writable: true,
            policy: Policy::Local,
            parent_format: Some("raw".to_owned()),
            ..Open::default()
        };
        let disk = cowhand::open(&self.file(image), &how).unwrap();
        disk.write(at * 512, &vec![fill; count as usize * 512]).unwrap();
        disk.close().unwrap();
    }

    /// The disk's bytes, as its chain has them.
    fn disk(&self, image: &str) -> Vec<u8> {
        good(
            self.path(),
            &[
                "convert",
                "--paths",
                "local",
                "--parent-format",
                "raw",
                "-f",
                "vpc",
                "-O",
                "raw",
                image,
                "disk.raw",
            ],
        );
        self.bytes("disk.raw")
    }

    fn is_valid(&self, image: &str) {
        assert_eq!(self.says(&format!("check --debug -n {image}")), format!("{image} is valid\n"));
    }
}

/// `None`, and says so, where the program is not there.
fn foreign(program: &str, dir: &Path, words: &[&str]) -> Option<Output> {
    let known = Command::new(program).arg("--version").output();
    if known.is_err() {
        eprintln!("SKIPPED: there is no {program}");
        return None;
    }
    Some(common::run(program, dir, words))
}

#[test]
fn a_storage_manager_s_life_of_a_disk() {
    let place = Place::new();
    // Create, and look at it as the manager does.
    assert_eq!(place.says("create --debug -n base.vhd -s 9 -S 64"), "");
    let empty = place.says("query --debug -vsaf -p -n base.vhd");
    assert_eq!(empty, "10\n3584\nbase.vhd has no parent\nhidden: 0\n0\n");
    assert_eq!(place.says("query --debug -S -n base.vhd"), "64\n");
    place.write("base.vhd", 0, 8, 1);
    place.write("base.vhd", 4096 * 3, 5, 2);
    let used = place.bytes("base.vhd").len();
    assert_eq!(place.says("query -sa -n base.vhd"), format!("{used}\n2\n"));
    // Snapshot: the base is hidden, a leaf stands on it.
    assert_eq!(place.says("set --debug -n base.vhd -f hidden -v 1"), "");
    let base = place.file("base.vhd");
    assert_eq!(place.says(&format!("snapshot --debug -n leaf.vhd -p {} -S 64", base.display())), "");
    let leaf = place.bytes("leaf.vhd").len();
    assert_eq!(
        place.says("query --debug -vsafp -n leaf.vhd"),
        format!("10\n{leaf}\n{}\nhidden: 0\n0\n", base.display())
    );
    assert_eq!(place.says("query --debug -vsafpu -n leaf.vhd").lines().nth(2), Some("./base.vhd"));
    assert_eq!(place.says("query --debug -d -n leaf.vhd"), "chain depth: 2\n");
    place.write("leaf.vhd", 2, 3, 3);
    place.write("leaf.vhd", 4096 * 2 + 7, 9, 4);
    for image in ["base.vhd", "leaf.vhd"] {
        place.is_valid(image);
    }
    // Scan.
    let (sizes, name) = ([place.bytes("base.vhd").len(), place.bytes("leaf.vhd").len()], place.file("*.vhd"));
    let lines = format!(
        "vhd=base.vhd capacity=10485760 size={} hidden=1 parent=none\n\
         vhd=leaf.vhd capacity=10485760 size={} hidden=0 parent=base.vhd\n",
        sizes[0], sizes[1]
    );
    assert_eq!(place.says(&format!("scan -f -m {}", name.display())), lines);
    assert_eq!(
        place.says("scan -f -c -m leaf.vhd -a"),
        lines.lines().rev().map(|line| format!("{line}\n")).collect::<String>()
    );
    // Coalesce: as many sectors as the leaf holds, which stays as it is.
    let (child, shown) = (place.bytes("leaf.vhd"), place.disk("leaf.vhd"));
    assert_eq!(place.says("coalesce --debug -n leaf.vhd"), "Coalesced 12 sectors");
    assert!(place.bytes("leaf.vhd") == child, "the child changed");
    assert!(place.disk("leaf.vhd") == shown && place.disk("base.vhd") == shown);
    place.is_valid("base.vhd");
    if let Some(told) =
        foreign("qemu-img", place.path(), &["compare", "-f", "vpc", "-F", "raw", "base.vhd", "disk.raw"])
    {
        assert_eq!(String::from_utf8_lossy(&told.stdout), "Images are identical.\n", "{told:?}");
    }
    // Kill the data, and relink what stood on it.
    assert_eq!(place.says("modify --debug -z -n leaf.vhd"), "");
    assert_eq!(place.says("query -a -n leaf.vhd"), "0\n");
    assert!(place.disk("leaf.vhd") == shown);
    std::fs::rename(place.path().join("base.vhd"), place.path().join("moved.vhd")).unwrap();
    assert_eq!(place.fails("query -p -n leaf.vhd", 2), "query failed\n");
    assert_eq!(
        place.says(&format!("modify --debug -p {} -n leaf.vhd", place.file("moved.vhd").display())),
        ""
    );
    assert_eq!(place.says("query -p -n leaf.vhd"), format!("{}\n", place.file("moved.vhd").display()));
    assert!(place.disk("leaf.vhd") == shown);
    // Resize, with a journal and within the metadata.
    assert_eq!(place.says("resize --debug -s 21 -n leaf.vhd -j journal"), "");
    assert!(!place.path().join("journal").exists());
    assert_eq!(place.says("query -v -n leaf.vhd"), "22\n");
    assert_eq!(place.says("resize --debug -s 64 -n leaf.vhd -f"), "");
    assert_eq!(
        place.fails("resize -s 66 -n leaf.vhd -f", 22),
        "the metadata has no room for a disk that large\n"
    );
    assert_eq!(place.says("query -vf -n leaf.vhd"), "64\nhidden: 0\n");
    place.is_valid("leaf.vhd");
    assert_eq!(place.disk("leaf.vhd").len(), 64 << 20);
}

#[test]
fn what_goes_wrong_has_the_c_library_s_number() {
    let place = Place::new();
    for image in ["a.vhd", "b.vhd"] {
        place.says(&format!("create -n {image} -s 4"));
    }
    std::fs::write(place.path().join("text"), "no image".repeat(1000)).unwrap();
    for (line, status, said) in [
        ("query -n none.vhd -v", 2, "error opening none.vhd: -2\n"),
        ("query -n text -v", 22, "error opening text: -22\n"),
        ("set -n none.vhd -f hidden -v 1", 2, "error opening none.vhd: -2\n"),
        ("repair -n none.vhd", 2, "error opening none.vhd: -2\n"),
        ("modify -n none.vhd -z", 2, "error opening none.vhd: -2\n"),
        ("resize -n none.vhd -s 9 -f", 2, "error opening none.vhd: -2\n"),
        ("check -n none.vhd", 2, "cannot stat none.vhd: 2\n"),
        ("check -n bin", 22, "bin is not a regular file or block device\n"),
        ("read -n none.vhd -p", 2, "Failed to open none.vhd: -2\n"),
        ("coalesce -n none.vhd", 2, "error opening none.vhd: -2\nerror coalescing: -2\n"),
        (
            "coalesce -n a.vhd",
            22,
            "coalescing of non-differencing disks is not supported\nerror coalescing: -22\n",
        ),
        ("snapshot -n new.vhd -p none.vhd", 2, &format!("error opening {}: -2\n", "none.vhd")),
        ("snapshot -n gone/new.vhd -p a.vhd", 2, "error creating gone/new.vhd: -2\n"),
        ("fill -n none.vhd", 2, "error opening none.vhd: -2\n"),
        ("create -n new.vhd -s 4 -S 2", 22, "-S must not be less than -s\n"),
        ("modify -n a.vhd -s 1024", 22, "failed to set physical size to 1024: -22\n"),
        ("resize -n a.vhd -s 2 -f", 22, "a.vhd: size (2097152) < curr size (4194304)\n"),
        ("revert -n a.vhd -j none", 2, "opening journal failed: -2\n"),
        ("revert -n a.vhd -j text", 22, "opening journal failed: -22\n"),
    ] {
        assert_eq!(place.fails(line, status), said, "{line}");
    }
    // Too large for a table of 32 bits; nothing is left.
    assert_eq!(place.fails("create -n new.vhd -s 2088962", 22), "error creating new.vhd: -22\n");
    assert!(!place.path().join("new.vhd").exists());
    assert_eq!(place.says("create -n new.vhd -s 2088960"), "");
    // Words that make no sense: the flags, on standard output.
    for line in [
        "query",
        "create -s 3",
        "create -n c.vhd",
        "resize -n a.vhd -s 4",
        "set -n a.vhd -f hidden",
        "set -n a.vhd -f size -v 1",
        "set -n a.vhd -f hidden -v 256",
        "query -n a.vhd b.vhd",
        "check -n a.vhd -B -s",
        "resize -n a.vhd -s 9 -f -j x",
        "scan -f",
        "key -s -n a.vhd",
    ] {
        let said = place.fails(line, 22);
        assert!(said.contains("\noptions:\n  -") || said.starts_with("vhd-util "), "{line}: {said}");
    }
    let unknown = place.run("query -n a.vhd -Z");
    assert_eq!(String::from_utf8_lossy(&unknown.stderr), "query: invalid option -- 'Z'\n");
    assert_eq!(unknown.status.code(), Some(22));
    // No verb, and one that is none.
    let verbs = "usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := { create | snapshot | query | read | set | repair | \
                 resize | fill | coalesce | modify | scan | check | revert | key | copy }\n";
    assert_eq!(place.says(""), verbs);
    let nonsense = place.run("nonsense");
    assert_eq!(String::from_utf8_lossy(&nonsense.stderr), "invalid COMMAND nonsense\n");
    assert_eq!((nonsense.status.code(), &*String::from_utf8_lossy(&nonsense.stdout)), (Some(0), verbs));
    assert!(place.says("snapshot -h").starts_with("vhd-util snapshot: "));
    // What went wrong is told in full to who asks.
    let told = place.run("query -n text -v --debug");
    assert!(String::from_utf8_lossy(&told.stderr).starts_with("text: "), "{told:?}");
    // A file that may not be read. (Root may.)
    std::fs::set_permissions(place.path().join("b.vhd"), PermissionsExt::from_mode(0o0)).unwrap();
    if std::fs::read(place.path().join("b.vhd")).is_err() {
        assert_eq!(place.fails("query -n b.vhd -v", 13), "error opening b.vhd: -13\n");
    }
}

#[test]
fn chains_are_limited_and_empty_parents_passed_over() {
    let place = Place::new();
    place.says("create -n 1.vhd -s 4");
    place.write("1.vhd", 0, 1, 1);
    place.says("snapshot -n 2.vhd -p 1.vhd");
    // 2 is empty.
    place.says("snapshot -n 3.vhd -p 2.vhd");
    assert_eq!(place.says("query -p -n 3.vhd"), format!("{}\n", place.file("1.vhd").display()));
    place.says("snapshot -n 3.vhd -p 2.vhd -e");
    assert_eq!(place.says("query -p -n 3.vhd"), format!("{}\n", place.file("2.vhd").display()));
    assert_eq!(
        place.fails("snapshot -n 4.vhd -p 3.vhd -e -l 3", 28),
        "snapshot depth exceeded: current depth: 3, limit: 3\n"
    );
    assert!(!place.path().join("4.vhd").exists());
    place.says("snapshot -n 4.vhd -p 3.vhd -e -l 4");
    assert_eq!(place.says("query -d -n 4.vhd"), "chain depth: 4\n");
    // All between are empty.
    place.says("snapshot -n 5.vhd -p 4.vhd -l 2");
    // A raw parent, with the word that names the flag and without.
    std::fs::write(place.path().join("raw"), vec![6; 4 << 20]).unwrap();
    place.says("snapshot -n r1.vhd -p raw -m raw");
    place.says("snapshot -n r2.vhd -p raw -m");
    assert_eq!(
        place.says("query -dpv -n r2.vhd"),
        format!("4\n{}\nchain depth: 2\n", place.file("raw").display())
    );
    assert!(place.disk("r2.vhd") == vec![6; 4 << 20]);
    place.is_valid("r2.vhd");
    place.write("r2.vhd", 100, 2, 7);
    assert_eq!(place.says("coalesce -n r2.vhd"), "Coalesced 2 sectors");
    assert_eq!(place.bytes("raw")[100 * 512..102 * 512], [7; 1024]);
    assert_eq!(
        place.says("scan -f -c -a -m r2.vhd").lines().last(),
        Some("vhd=raw capacity=4194304 size=4194304 hidden=1 parent=none")
    );
    // Another parent, raw.
    place.says("modify -n 3.vhd -p raw -m");
    assert_eq!(place.says("query -p -n 3.vhd"), format!("{}\n", place.file("raw").display()));
    assert_eq!(place.fails("modify -n 3.vhd -p gone.vhd", 2), "failed to set parent to 'gone.vhd': -2\n");
    assert_eq!(place.fails("modify -n 1.vhd -p raw -m", 22).lines().count(), 1);
}

#[test]
fn what_stands_in_an_image_is_read() {
    let place = Place::new();
    place.says("create -n base.vhd -s 40");
    place.says("snapshot -n leaf.vhd -p base.vhd -e");
    for (sector, count) in [(4096 * 3 + 1, 3), (4096 * 3 + 9, 1), (4096 * 17, 1)] {
        place.write("leaf.vhd", sector, count, 5);
    }
    // The highest bit first: blocks 3 and 17 of 20.
    let bits = place.run("read --debug -B -n leaf.vhd");
    assert_eq!((bits.status.code(), bits.stdout), (Some(0), vec![0b0001_0000, 0, 0b0100_0000]));
    let told = place.says("read --debug -p -n leaf.vhd");
    let values: Vec<(&str, &str)> = told
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let value = |name: &str| values.iter().find(|(is, _)| *is == name).map(|(_, value)| *value);
    for (name, wanted) in [
        ("Cookie", "conectix"),
        ("Features", "(0x00000002) <RESV>"),
        ("File format version", "Major: 1, Minor: 0"),
        ("Data offset", "512"),
        ("Creator Application", "'tap'"),
        ("Creator version", "Major: 1, Minor: 3"),
        ("Creator OS", "Unknown!"),
        ("Original disk size", "40 MB (41943040 Bytes)"),
        ("Current disk size", "40 MB (41943040 Bytes)"),
        ("Geometry", "Cyl: 963, Hds: 5, Sctrs: 17"),
        ("Disk type", "Differencing hard disk"),
        ("Saved state", "No"),
        ("Hidden", "0"),
        ("Data offset (unusd)", "18446744073709551615"),
        ("Header version", "0x00010000"),
        ("Max BAT size", "20"),
        ("Block size", "2097152 (2 MB)"),
        ("Parent name", "base.vhd"),
        ("code", "PLAT_CODE_MACX"),
        ("decoded name", "./base.vhd"),
        ("Batmap version", "0x00010002"),
    ] {
        assert_eq!(value(name), Some(wanted), "{name}\n{told}");
    }
    assert!(
        told.starts_with("VHD Footer Summary:\n-------------------\nCookie              : conectix\n"),
        "{told}"
    );
    assert!(told.contains("\nDisk type           : Differencing hard disk\n"), "{told}");
    assert!(
        told.contains("\nVHD Parent Locators:\n--------------------\nlocator:            : 0\n"),
        "{told}"
    );
    assert!(told.contains("\n       decoded name : ./base.vhd\n"), "{told}");
    assert_eq!(told.matches("(Good!)").count(), 3, "{told}");
    let base = place.says("read -p -n base.vhd");
    assert!(
        base.contains("Disk type           : Dynamic hard disk\n") && !base.contains("locator"),
        "{base}"
    );
    assert!(place.says("read -px -n base.vhd").contains("Block size          : 0x200000 (0x2 MB)\n"));
    // The table, and single sectors.
    let entry = place.says("read -b 3 -c 1 -n leaf.vhd");
    let at: u64 = entry.trim().strip_prefix("block: 3: offset: ").unwrap().parse().unwrap();
    assert_eq!(place.says("read -b 4 -n leaf.vhd"), "block: 4: offset: not allocated\n");
    let sector = 4096 * 3 + 1;
    assert_eq!(
        place.says(&format!("read -t {sector} -n leaf.vhd")),
        format!("logical sector {sector}: block number: 3, sector offset: 1, file offset: {}\n", at + 1024)
    );
    assert_eq!(
        place.says(&format!("read -i {} -c 2 -n leaf.vhd", sector + 2)),
        "block 3: sec: 3: 1\nblock 3: sec: 4: 0\n"
    );
    assert_eq!(
        place.says("read -e 0 -c 81920 -n leaf.vhd"),
        format!("{sector} 3\n{} 1\n{} 1\n", sector + 8, 4096 * 17)
    );
    let bitmap = place.run("read -m 3 -n leaf.vhd").stdout;
    assert_eq!((bitmap.len(), &bitmap[..3]), (512, &[0b0111_0000, 0b0100_0000, 0][..]));
    let data = place.command("read -d 3 -n leaf.vhd").output().unwrap().stdout;
    assert_eq!((data.len(), &data[511..514]), (2 << 20, &[0, 5, 5][..]));
    assert_eq!(place.run(&format!("read -r {sector} -c 3 -n leaf.vhd")).stdout, vec![5; 1536]);
    assert_eq!(place.run(&format!("read -R {} -c 2 -n leaf.vhd", sector * 512 - 1)).stdout, [0, 5]);
    assert_eq!(place.run("read -a -n leaf.vhd").stdout, vec![0; 512]);
    for past in ["-b 20", "-t 81920", "-r 81919 -c 2", "-m 20", "-R 41943040"] {
        assert_eq!(place.fails(&format!("read {past} -n leaf.vhd"), 34), "", "{past}");
    }
    place.says("fill -n leaf.vhd");
    assert_eq!(place.says("query -a -n leaf.vhd"), "20\n");
    assert_eq!(place.run("read -B -n leaf.vhd").stdout, [0xff, 0xff, 0xf0]);
    place.is_valid("leaf.vhd");
}

/// Sets bytes of a footer or header, and its checksum right, or not.
fn put(place: &Place, image: &str, structure: (usize, usize), at: usize, bytes: &[u8], sum: bool) {
    let mut all = place.bytes(image);
    let (start, len) = structure;
    all[start + at..start + at + bytes.len()].copy_from_slice(bytes);
    if sum {
        let place = if len == 512 { 64 } else { 36 };
        all[start + place..start + place + 4].fill(0);
        let sum = !all[start..start + len].iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        all[start + place..start + place + 4].copy_from_slice(&sum.to_be_bytes());
    }
    std::fs::write(place.path().join(image), all).unwrap();
}

#[test]
fn check_is_as_strict_as_the_tool() {
    let place = Place::new();
    place.says("create -n base.vhd -s 8");
    place.write("base.vhd", 0, 9, 1);
    place.says("snapshot -n leaf.vhd -p base.vhd");
    place.write("leaf.vhd", 3, 1, 2);
    let good = [place.bytes("base.vhd"), place.bytes("leaf.vhd")];
    let end = good[0].len() - 512;
    let again = || {
        for (name, bytes) in ["base.vhd", "leaf.vhd"].into_iter().zip(&good) {
            std::fs::write(place.path().join(name), bytes).unwrap();
        }
    };
    let both = |at: usize, bytes: &[u8]| {
        for start in [0, end] {
            put(&place, "base.vhd", (start, 512), at, bytes, true);
        }
    };
    // Each fault, and the flag that passes it over.
    let damage: [(&str, &dyn Fn(), &str); 6] = [
        ("the footer at the end", &|| put(&place, "base.vhd", (end, 512), 90, &[1], false), "-i"),
        ("footers that differ", &|| put(&place, "base.vhd", (0, 512), 85, &[1], true), "-i"),
        ("a time to come", &|| both(24, &[0xf0, 0, 0, 0]), "-t"),
        ("a geometry that is too large", &|| both(56, &[0x10, 0, 16, 63]), ""),
        ("reserved bytes", &|| both(200, &[7]), ""),
        ("an id of zeros", &|| both(68, &[0; 16]), ""),
    ];
    for (what, damage, flag) in damage {
        again();
        damage();
        let said = place.fails("check -n base.vhd", 22);
        assert!(
            said.contains("\nbase.vhd appears invalid; dumping metadata\nVHD Footer Summary:\n"),
            "{what}: {said}"
        );
        if !flag.is_empty() {
            assert_eq!(place.says(&format!("check {flag} -n base.vhd")), "base.vhd is valid\n", "{what}");
        }
    }
    // QEMU's force_size and Disk2vhd write this whatever the size.
    again();
    both(56, &[0xff, 0xff, 16, 255]);
    place.is_valid("base.vhd");
    // Data where the bitmap says that there is none.
    again();
    let mut stray = good[1].clone();
    let last = stray.len() - 512 - 100;
    stray[last] = 9;
    std::fs::write(place.path().join("leaf.vhd"), &stray).unwrap();
    place.is_valid("leaf.vhd");
    assert!(place.fails("check -b -n leaf.vhd", 22).starts_with("sector 4095 of block 0 has data"));
    // The parent is gone, and another one took its place.
    again();
    assert_eq!(place.says("check -p -n leaf.vhd"), "leaf.vhd is valid\nbase.vhd is valid\n");
    place.says("create -n base.vhd -s 8");
    assert!(place.fails("check -n leaf.vhd", 22).starts_with("invalid parent: "));
    assert_eq!(place.says("check -I -n leaf.vhd"), "leaf.vhd is valid\n");
    std::fs::remove_file(place.path().join("base.vhd")).unwrap();
    assert!(place.fails("check -n leaf.vhd", 22).starts_with("invalid parent: "));
    again();
    assert_eq!(
        place.says("check -s -p -n leaf.vhd"),
        "leaf.vhd: secs allocated: 0x1000 secs written: 0x1 (0.02%)\n\
         base.vhd: secs allocated: 0x1000 secs written: 0x1000 (100.00%) secs not in parent: 0xfff (99.98%) \
         secs not in ancestors: 0xfff (99.98%)\n"
    );
    // Repair writes both footers anew.
    put(&place, "base.vhd", (end, 512), 90, &[1], false);
    assert_eq!(place.says("repair -n base.vhd"), "");
    assert!(place.bytes("base.vhd") == good[0]);
    put(&place, "base.vhd", (0, 512), 85, &[1], true);
    assert_eq!(place.says("query -f -n base.vhd"), "hidden: 0\n");
    assert_eq!(place.says("query -fb -n base.vhd"), "hidden: 1\n");
    assert_eq!(place.says("repair -b -n base.vhd"), "");
    assert_eq!(place.says("query -f -n base.vhd"), "hidden: 1\n");
    place.is_valid("base.vhd");
}

#[test]
fn the_footer_moves_and_fixed_disks_have_limits() {
    let place = Place::new();
    place.says("create -n a.vhd -s 4");
    place.write("a.vhd", 0, 1, 1);
    let (disk, used) = (place.disk("a.vhd"), place.bytes("a.vhd").len());
    for len in [16 << 20, 8 << 20, used] {
        assert_eq!(place.says(&format!("modify --debug -s {len} -n a.vhd")), "");
        assert_eq!(place.bytes("a.vhd").len(), len);
        assert_eq!(place.says("query -s -n a.vhd"), format!("{used}\n"));
        assert_eq!(
            place.says("scan -f -m a.vhd"),
            format!("vhd=a.vhd capacity=4194304 size={len} hidden=0 parent=none\n")
        );
        place.is_valid("a.vhd");
        assert!(place.disk("a.vhd") == disk);
    }
    let less = used - 512;
    assert_eq!(
        place.fails(&format!("modify -s {less} -n a.vhd"), 22),
        format!("failed to set physical size to {less}: -22\n")
    );
    place.says("create -n f.vhd -s 3 -r");
    assert_eq!(place.bytes("f.vhd").len(), (4 << 20) + 512);
    assert_eq!(place.says("query -vsfm -n f.vhd"), "4\n4194816\nhidden: 0\nmarker: 0\n");
    assert_eq!(place.says("query -S -n f.vhd"), "0\n");
    assert_eq!(place.fails("query -a -n f.vhd", 22), "error reading bat: -22\n");
    assert_eq!(place.fails("modify -z -n f.vhd", 38), "failed to zero VHD: -38\n");
    assert_eq!(place.fails("set -f marker -v 1 -n f.vhd", 38), "error writing it: -38\n");
    place.is_valid("f.vhd");
    assert_eq!(place.says("set -f hidden -v 2 -n f.vhd"), "");
    assert_eq!(place.says("query -f -n f.vhd"), "hidden: 2\n");
    assert_eq!(place.says("resize -n f.vhd -s 5 -j j"), "");
    assert_eq!(place.says("query -v -n f.vhd"), "5\n");
    assert_eq!(place.fails("resize -n f.vhd -s 4 -j j", 38), "resize failed: -38\n");
    // Markers stand beside the batmap; any byte goes.
    assert_eq!(place.says("set -f marker -v 255 -n a.vhd"), "");
    assert_eq!(place.says("set -f hidden -v 1 -n a.vhd"), "");
    assert_eq!(place.says("query -fm -n a.vhd"), "hidden: 1\nmarker: 255\n");
    assert_eq!(
        place.says("scan -M -m a.vhd"),
        format!("vhd=a.vhd capacity=4194304 size={used} hidden=1 marker=255 keyhash= parent=none\n")
    );
}

#[test]
fn scans_go_on_or_end_at_what_is_broken() {
    let place = Place::new();
    place.says("create -n b.vhd -s 4");
    place.says("set -n b.vhd -f hidden -v 1");
    place.write("b.vhd", 0, 1, 1);
    place.says("snapshot -n c.vhd -p b.vhd");
    place.says("snapshot -n d.vhd -p b.vhd");
    std::fs::write(place.path().join("a.vhd"), "broken").unwrap();
    let broken = "vhd=a.vhd scan-error=-22 error-message='opening file'\n";
    assert_eq!(place.fails("scan -f -m *.vhd", 22), broken);
    let size = |name: &str| place.bytes(name).len();
    let line = |name: &str, hidden: u8, parent: &str| {
        format!("vhd={name} capacity=4194304 size={} hidden={hidden} parent={parent}\n", size(name))
    };
    let rest = line("b.vhd", 1, "none") + &line("c.vhd", 0, "b.vhd") + &line("d.vhd", 0, "b.vhd");
    assert_eq!(place.says("scan -f -c -m *.vhd"), broken.to_owned() + &rest);
    assert_eq!(place.says("scan -c -m {b,c,d}.vhd"), rest);
    assert_eq!(place.says("scan -f b.vhd c.vhd d.vhd"), rest);
    assert_eq!(place.says("scan -f -m nothing*.vhd"), "");
    assert_eq!(
        place.fails("scan -f gone.vhd b.vhd", 2),
        "vhd=gone.vhd scan-error=-2 error-message='failure scanning target'\n"
    );
    let tree = place.says("scan -p -m [b-d].vhd");
    assert_eq!(
        tree,
        line("b.vhd", 1, "none") + "   " + &line("c.vhd", 0, "b.vhd") + "   " + &line("d.vhd", 0, "b.vhd")
    );
    assert_eq!(
        place.says("scan -p -m c.vhd"),
        line("c.vhd", 0, "b.vhd").replace("b.vhd\n", "b.vhd (not found in scan)\n")
    );
    let whole = place.says(&format!("scan -v -m {}", place.file("c.vhd").display()));
    assert!(whole.starts_with(&format!("vhd={} ", place.file("c.vhd").display())), "{whole}");
    assert!(whole.ends_with(&format!("parent={}\n", place.file("b.vhd").display())), "{whole}");
    assert_eq!(place.fails("scan -f -l no-such-group -m VHD-*", 2), "");
}

#[test]
fn keys_have_hashes() {
    let place = Place::new();
    place.says("create -n a.vhd -s 4");
    assert_eq!(place.says("key -p -n a.vhd"), "none\n");
    std::fs::write(place.path().join("a,aes-xts-plain,256.key"), [3; 32]).unwrap();
    std::fs::write(place.path().join("a,aes-xts-plain,512.key"), [4; 64]).unwrap();
    let hash = place.says("key -C -k a,aes-xts-plain,256.key");
    assert_eq!(hash.trim().len(), 64);
    if let Some(told) = foreign(
        "sh",
        place.path(),
        &["-c", "(head -c 32 /dev/zero; cat a,aes-xts-plain,256.key) | sha256sum"],
    ) {
        assert_eq!(String::from_utf8_lossy(&told.stdout).split(' ').next(), Some(hash.trim()));
    }
    assert_eq!(place.says("key -s -n a.vhd -k a,aes-xts-plain,256.key"), "");
    let zeros = "0".repeat(64);
    assert_eq!(place.says("key -p -n a.vhd"), format!("{zeros} {hash}"));
    assert_eq!(place.says("key -c -n a.vhd -k a,aes-xts-plain,256.key"), "");
    place.fails("key -c -n a.vhd -k a,aes-xts-plain,512.key", 22);
    // By its hash, as the storage managers give it; a child has its parent's.
    let own = "5a".repeat(32);
    assert_eq!(place.says(&format!("key -s -n a.vhd -H {own} -N {own}")), "");
    place.says("snapshot -n b.vhd -p a.vhd -e");
    assert_eq!(place.says("key -p -n b.vhd"), format!("{own} {own}\n"));
    assert!(place.says("scan -M -m b.vhd").contains(&format!(" keyhash={own} ")));
    // What holds data already is not encrypted.
    place.write("b.vhd", 0, 1, 1);
    place.fails(&format!("key -s -n b.vhd -H {own}"), 22);
    place.fails("key -s -n a.vhd -H 5a", 22);
}

#[test]
fn copies_and_whole_disks_stand_alone() {
    let place = Place::new();
    place.says("create -n a.vhd -s 4");
    place.write("a.vhd", 5, 2, 1);
    place.says("snapshot -n b.vhd -p a.vhd");
    place.write("b.vhd", 6, 2, 2);
    assert_eq!(place.says("coalesce -n b.vhd -o whole.vhd"), "");
    assert!(place.disk("whole.vhd") == place.disk("b.vhd"));
    place.is_valid("whole.vhd");
    assert_eq!(
        place.fails("coalesce -n b.vhd -o whole.vhd", 17),
        "whole.vhd already exists\nerror coalescing: -17\n"
    );
    assert_eq!(place.says("copy -n a.vhd -N c.vhd"), "");
    assert!(place.disk("c.vhd") == place.disk("a.vhd"));
    place.is_valid("c.vhd");
    place.fails("copy -n a.vhd -N c.vhd", 22);
    place.fails("copy -n a.vhd -N d.vhd -k c.vhd", 38);
    // Into an ancestor.
    place.says("snapshot -n t.vhd -p b.vhd");
    place.write("t.vhd", 7, 1, 3);
    assert_eq!(place.says("coalesce -n t.vhd -a a.vhd"), "Coalesced 2 sectors");
    let progress = place.says("coalesce -n t.vhd -p");
    assert!(progress.ends_with("\r100.00%\nCoalesced 1 sectors"), "{progress:?}");
    assert_eq!(place.says("coalesce -n t.vhd -s"), "opening for sparse writes\nCoalesced 1 sectors");
    let both = place.says("coalesce -n t.vhd -s -p");
    assert!(both.starts_with("opening for sparse writes\n\r"), "{both:?}");
}

#[test]
fn a_resize_that_was_killed_is_taken_back() {
    let place = Place::new();
    place.says("create -n a.vhd -s 6");
    place.write("a.vhd", 4096, 700, 1);
    place.write("a.vhd", 0, 1, 2);
    let before = place.bytes("a.vhd");
    // Shrinking is refused before anything is made.
    assert_eq!(place.fails("resize -n a.vhd -s 4 -j journal", 38), "resize failed: -38\n");
    assert!(!place.path().join("journal").exists() && place.bytes("a.vhd") == before);
    std::fs::write(place.path().join("journal"), "somebody's").unwrap();
    assert_eq!(place.fails("resize -n a.vhd -s 64 -j journal", 17), "creating journal failed: -17\n");
    assert!(place.bytes("journal") == b"somebody's" && place.bytes("a.vhd") == before);
    std::fs::remove_file(place.path().join("journal")).unwrap();
    assert_eq!(place.fails("resize -n a.vhd -s 64 -j none/journal", 2), "creating journal failed: -2\n");
    // A journal that was not begun notes nothing; a file that is none is left alone.
    for none in [vec![], vec![0; 512]] {
        std::fs::write(place.path().join("empty"), none).unwrap();
        assert_eq!(place.says("revert -n a.vhd -j empty"), "");
        assert!(!place.path().join("empty").exists() && place.bytes("a.vhd") == before);
    }
    for none in [vec![0; 4096], b"somebody's".repeat(100)] {
        std::fs::write(place.path().join("other"), &none).unwrap();
        assert_eq!(place.fails("revert -n a.vhd -j other", 22), "opening journal failed: -22\n");
        assert!(place.bytes("other") == none && place.bytes("a.vhd") == before);
    }
    let (mut taken_back, mut done) = (0, 0);
    for round in 0..60u32 {
        let mut child = place.command("resize -n a.vhd -s 20480 -j journal").spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 400));
        child.kill().unwrap();
        child.wait().unwrap();
        let size = place.says("query -v -n a.vhd");
        assert!(size == "6\n" || size == "20480\n", "{size}");
        if place.path().join("journal").exists() {
            let reverted = place.run("revert -n a.vhd -j journal");
            assert!(reverted.status.success() && reverted.stdout.is_empty(), "{reverted:?}");
            assert!(!place.path().join("journal").exists());
            if place.says("query -v -n a.vhd") == "20480\n" {
                // Killed after the journal was ended.
                std::fs::write(place.path().join("a.vhd"), &before).unwrap();
            }
            taken_back += 1;
            assert!(place.bytes("a.vhd") == before, "round {round}");
        } else if size == "20480\n" {
            done += 1;
            place.is_valid("a.vhd");
            std::fs::write(place.path().join("a.vhd"), &before).unwrap();
        } else {
            assert!(place.bytes("a.vhd") == before, "round {round}");
        }
    }
    eprintln!("{taken_back} taken back, {done} done");
    // Another image's journal is refused.
    place.says("create -n b.vhd -s 6");
    let other = place.bytes("b.vhd");
    let mut child = place.command("resize -n a.vhd -s 2000000 -j journal").spawn().unwrap();
    common::wait_until(|| {
        std::fs::metadata(place.path().join("journal")).is_ok_and(|there| there.len() > 512)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let counts =
        place.path().join("journal").exists() && place.bytes("journal").starts_with(b"cowhand undo 2");
    if counts {
        assert_eq!(place.fails("revert -n b.vhd -j journal", 22), "opening journal failed: -22\n");
        assert!(place.bytes("b.vhd") == other);
        assert_eq!(place.says("revert -n a.vhd -j journal"), "");
        assert!(place.bytes("a.vhd") == before);
    }
}

#[test]
fn a_damaged_journal_is_refused_and_kept() {
    let place = Place::new();
    place.says("create -n a.vhd -s 6");
    place.write("a.vhd", 0, 3 * 4096, 2);
    let before = place.bytes("a.vhd");
    // As it is when the program dies before it ends the journal.
    let undo = Some(place.file("journal"));
    let open = Open { format: Some("vpc".to_owned()), undo, ..Open::default() };
    let size = NewSize::To(20 << 30);
    let how = Resize { open, size, shrink: false, force: false, prealloc: Prealloc::Off };
    cowhand::resize(&place.file("a.vhd"), &how).unwrap();
    let (half, journal) = (place.bytes("a.vhd"), place.bytes("journal"));
    assert!(half != before && journal.len() > 2048);
    let cuts = [1, 100, 512, 1000, 1536, journal.len() - 1].map(|len| journal[..len].to_vec());
    let flips = [20, 512 + 20, 1024 + 5].map(|at| {
        let mut journal = journal.clone();
        journal[at] ^= 4;
        journal
    });
    for damaged in cuts.into_iter().chain(flips) {
        std::fs::write(place.path().join("journal"), &damaged).unwrap();
        assert_eq!(place.fails("revert -n a.vhd -j journal", 22), "opening journal failed: -22\n");
        assert!(place.bytes("a.vhd") == half && place.bytes("journal") == damaged);
    }
    std::fs::write(place.path().join("journal"), &journal).unwrap();
    assert_eq!(place.says("revert -n a.vhd -j journal"), "");
    assert!(place.bytes("a.vhd") == before && !place.path().join("journal").exists());
}

#[test]
fn what_names_say_stays_in_its_line() {
    let place = Place::new();
    place.says("create -n base.vhd -s 4");
    place.says("snapshot -n leaf.vhd -p base.vhd -e");
    let name = "x\nvhd=EVIL capacity=1\u{1b}[31m";
    let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).chain([0; 2]).collect();
    put(&place, "leaf.vhd", (512, 1024), 64, &utf16, true);
    // The locators go, so that the header's name counts.
    put(&place, "leaf.vhd", (512, 1024), 576, &[0; 192], true);
    std::fs::rename(place.path().join("leaf.vhd"), place.path().join("a\nb\u{1b}[2J.vhd")).unwrap();
    let steers =
        |said: &str| said.contains('\u{1b}') || said.lines().any(|line| line.starts_with("vhd=EVIL"));
    let scanned = place.says("scan -f -m a*.vhd");
    assert_eq!(scanned.lines().count(), 1, "{scanned:?}");
    assert!(scanned.starts_with("vhd=a\\nb\\u{1b}[2J.vhd ") && !steers(&scanned), "{scanned:?}");
    for flags in [&["query", "-pu"][..], &["read", "-p"], &["query", "-p"], &["check"], &["check", "-I"]] {
        let output = place.command("").args(flags).args(["-n", "a\nb\u{1b}[2J.vhd"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.is_empty() && !steers(&said), "{flags:?}: {said:?}");
    }
    // A name need not be text.
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe.vhd");
    std::fs::rename(place.path().join("base.vhd"), place.path().join(odd)).unwrap();
    for pattern in [&b"\xff*.vhd"[..], b"\xff\xfe.vhd", b"{\xff,x}*"] {
        let words = [std::ffi::OsStr::new("scan"), "-m".as_ref(), std::ffi::OsStr::from_bytes(pattern)];
        let output = place.command("").args(words).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.ends_with(" parent=none\n"), "{said:?}");
    }
    let many = format!("scan -m {}", "{a,b}".repeat(24));
    assert_eq!(place.fails(&many, 22), "a pattern stands for too many others\n");
}

#[test]
fn full_output_and_advice_are_this_tool_s_own() {
    let place = Place::new();
    place.says("create -n a.vhd -s 4");
    let full = |line: &str, status: i32| {
        let to = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = finish(place.command(line).stdout(to).env("COWHAND_COMPAT", "qemu").spawn().unwrap());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}: {said}");
        assert!(said.starts_with("vhd-util: ") && said.lines().count() == 1, "{line}: {said}");
    };
    full("query -n a.vhd -v", 28);
    full("query -n gone -v", 2);
    full("coalesce -n a.vhd", 22);
    full("query", 22);
    full("query -h", 28);
    // What is no file is no image.
    for odd in [".", "/dev/null"] {
        assert_eq!(place.fails(&format!("query -n {odd} -v"), 22), format!("error opening {odd}: -22\n"));
    }
    // Advice is cowhand's, whose flags this tool has not.
    place.says("snapshot -n b.vhd -p a.vhd -e");
    std::fs::remove_file(place.path().join("a.vhd")).unwrap();
    let said = place.fails("check -n b.vhd", 22);
    assert!(said.starts_with("invalid parent: ") && !said.contains(" --"), "{said}");
}

#[test]
fn every_image_is_scanned_once() {
    let place = Place::new();
    place.says("create -n 0.vhd -s 4");
    for n in 1..8 {
        place.says(&format!("snapshot -n {n}.vhd -p {}.vhd -e", n - 1));
    }
    for line in ["scan -a -m *.vhd", "scan -f -a -m *.vhd", "scan -a -m 7.vhd", "scan -p -a -m {3,7}.vhd"] {
        assert_eq!(place.says(line).lines().count(), 8, "{line}");
    }
}

#[test]
fn an_empty_disk_is_looked_through_at_once() {
    let place = Place::new();
    place.says("create -n a.vhd -s 2000000");
    place.write("a.vhd", 3_000_000_000, 5, 1);
    let began = std::time::Instant::now();
    assert_eq!(
        place.says("check -s -n a.vhd"),
        "a.vhd: secs allocated: 0x1000 secs written: 0x1000 (100.00%)\n"
    );
    assert_eq!(place.says("read -e 0 -c 4096000000 -n a.vhd"), "2999996416 4096\n");
    // Sector by sector it would be minutes.
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}
