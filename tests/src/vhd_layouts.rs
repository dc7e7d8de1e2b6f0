//! The disks that the tests of VHD are run on: one for every program that writes them and every rare thing in them.

use std::path::{Path, PathBuf};

use crate::Rng;
use crate::vhd_builder::{Batmap, Geometry, LocatorText, ParentText, Part, Run, VhdFile};

const MIB: u64 = 1 << 20;

/// One file of a chain.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A raw file of so many bytes, whose odd megabytes hold data.
    Raw(u64),
    /// A VHD.
    Vhd(Box<VhdFile>),
}

/// A chain of files, the base first.
#[derive(Clone, Debug)]
pub struct Layout {
    /// For messages.
    pub name: &'static str,
    /// Their names and what they are.
    pub files: Vec<(String, Piece)>,
}

/// A chain that was built.
#[derive(Clone, Debug)]
pub struct BuiltDisk {
    /// For messages.
    pub name: &'static str,
    /// The files, the base first, and what a guest sees in each.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

impl BuiltDisk {
    /// The last file of the chain, and its content.
    pub fn top(&self) -> (&Path, &[u8]) {
        let (path, content) = self.files.last().unwrap();
        (path, content)
    }
}

impl Layout {
    fn one(file: VhdFile) -> Layout {
        Layout { name: file.name, files: vec![(format!("{}.vhd", file.name), Piece::Vhd(Box::new(file)))] }
    }

    /// A chain of several, the base first.
    fn chain(name: &'static str, files: Vec<(&str, Piece)>) -> Layout {
        Layout { name, files: files.into_iter().map(|(name, piece)| (name.to_owned(), piece)).collect() }
    }

    /// Writes all files into a folder of their own.
    pub fn build(&self, folder: &Path) -> BuiltDisk {
        let folder = folder.join(self.name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut built = Vec::new();
        let mut below = Vec::new();
        for (name, piece) in &self.files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            below = match piece {
                Piece::Vhd(vhd) => vhd.build(&path, below),
                Piece::Raw(size) => {
                    let mut bytes = vec![0; *size as usize];
                    for part in bytes.chunks_mut(MIB as usize).skip(1).step_by(2) {
                        Rng::new(*size).fill(part);
                    }
                    std::fs::write(&path, &bytes).unwrap();
                    bytes
                }
            };
            built.push((path, below.clone()));
        }
        BuiltDisk { name: self.name, files: built }
    }

    /// The file at the top.
    pub fn top(&self) -> &VhdFile {
        match &self.files.last().unwrap().1 {
            Piece::Vhd(vhd) => vhd,
            Piece::Raw(_) => panic!("a raw top"),
        }
    }
}

/// Runs of every alignment: whole blocks, single sectors, ends inside a byte of the bitmap, data and zeros.
fn scattered(size: u64, block: u64) -> Vec<Run> {
    let sectors = size / 512;
    let in_block = block / 512;
    let mut runs = vec![(0, 1, true), (3, 2, true), (9, 14, true), (100, 7, false)];
    // A whole block where there is one; in each other one something, and two left out.
    if sectors >= 3 * in_block {
        runs.push((2 * in_block, in_block, true));
        runs.push((in_block - 5, 10, true));
    }
    runs.push((sectors - 3, 3, true));
    runs.retain(|(at, n, _)| at + n <= sectors);
    runs
}

/// What a child has over [`scattered`]: other sectors, some the same, zeros over data.
fn scattered_on_top(size: u64, block: u64) -> Vec<Run> {
    let (sectors, in_block) = (size / 512, block / 512);
    let mut runs = vec![(1, 1, true), (10, 5, false), (20, 43, true), (2 * in_block + 13, 21, false)];
    runs.push((2 * in_block + 50, 9, true));
    runs.push((sectors - 2, 1, false));
    runs.retain(|(at, n, _)| at + n <= sectors);
    runs
}

fn with_content(file: VhdFile) -> VhdFile {
    let runs = scattered(file.guest_size(), u64::from(file.block));
    VhdFile { runs, ..file }
}

/// Over `parent`, whose file is `name`: sectors of its own, and the locators given.
fn child_of(file: VhdFile, parent: &VhdFile, name: &str, locators: Vec<LocatorText>) -> VhdFile {
    let runs = scattered_on_top(file.guest_size(), u64::from(file.block));
    let parts = std::iter::once(Part::Bat)
        .chain(file.batmap.map(|_| Part::Batmap))
        .chain((0..locators.len()).map(Part::Locator))
        .collect();
    let parent = ParentText { id: parent.id, time: parent.time, name: name.to_owned(), locators };
    VhdFile { parent: Some(parent), parts, runs, ..file }
}

fn virtual_pc(name: &'static str, size: u64) -> VhdFile {
    VhdFile::new(name, b"vpc ", 0x0005_0003, size)
}

/// Windows 10 as the real samples have it: data at whole 4 KiB, the file too.
fn windows(name: &'static str, size: u64) -> VhdFile {
    VhdFile { align: 4096, gap: None, ..VhdFile::new(name, b"win ", 0x000a_0000, size) }
}

/// The order of a differencing disk's parts in the real sample of Windows 10.
fn windows_child(name: &'static str, size: u64, parent: &VhdFile, file: &str) -> VhdFile {
    let absolute = format!("C:\\Projects\\disks\\{file}");
    let locators = vec![
        LocatorText { space: 4096, ..LocatorText::new("W2ku", &absolute) },
        LocatorText { space: 65536, ..LocatorText::new("W2ru", &format!(".\\{file}")) },
    ];
    let mut child = child_of(windows(name, size), parent, &absolute, locators);
    child.parent.as_mut().unwrap().time = 0;
    let parts = [Part::Align(4096), Part::Locator(0), Part::Align(8192), Part::Bat];
    VhdFile { parts: parts.into_iter().chain([Part::Align(4096), Part::Locator(1)]).collect(), ..child }
}

/// blktap: a batmap behind the BAT, data at whole 4 KiB.
fn xenserver(name: &'static str, size: u64) -> VhdFile {
    VhdFile {
        host: [0; 4],
        align: 4096,
        parts: vec![Part::Bat, Part::Batmap],
        batmap: Some(Batmap { marker: 0, key: false }),
        ..VhdFile::new(name, b"tap\0", 0x0001_0003, size)
    }
}

fn xenserver_child(name: &'static str, size: u64, parent: &VhdFile, file: &str) -> VhdFile {
    let locators = vec![
        LocatorText::new("MacX", &format!("file://./{file}")),
        LocatorText::new("W2ku", &format!("./{file}")),
        LocatorText::new("W2ru", &format!("./{file}")),
    ];
    child_of(xenserver(name, size), parent, file, locators)
}

/// Disks without a parent, each written otherwise.
pub fn vhd_dynamic_layouts() -> Vec<Layout> {
    let odd = 5 * MIB + 7 * 512;
    let mut files = vec![
        VhdFile { saved: 1, ..virtual_pc("virtual-pc", odd) },
        VhdFile { short_footer: true, ..virtual_pc("virtual-pc-511", 9 * MIB) },
        VhdFile { garbage: true, ..virtual_pc("virtual-pc-garbage", 9 * MIB) },
        VhdFile::new("virtual-server", b"vs  ", 0x0001_0000, 9 * MIB),
        windows("windows", 9 * MIB),
        VhdFile { original: 4 * MIB, ..windows("windows-grown", odd) },
        VhdFile { host: *b"Mac ", ..virtual_pc("virtual-pc-mac", 9 * MIB) },
        VhdFile {
            batmap: Some(Batmap { marker: 1, key: true }),
            hidden: 1,
            spare: 2000,
            ..xenserver("xenserver", 10 * MIB)
        },
        VhdFile { hidden: 2, ..xenserver("xenserver-hidden-2", 10 * MIB) },
        VhdFile { host: [0; 4], lsb: true, ..VhdFile::new("blktap-0.1", b"tap\0", 0x0000_0001, 10 * MIB) },
        VhdFile { geometry: Geometry::Maximum, ..VhdFile::new("disk2vhd", b"d2v\0", 0x0001_0000, odd) },
        VhdFile { full_bitmaps: true, ..VhdFile::new("virtualbox", b"vbox", 0x0007_0002, odd) },
        VhdFile { full_bitmaps: true, ..VhdFile::new("qemu", b"qemu", 0x0005_0003, 9 * MIB) },
        VhdFile {
            full_bitmaps: true,
            geometry: Geometry::Maximum,
            ..VhdFile::new("qemu-force-size", b"qemu", 0x0005_0003, odd)
        },
        VhdFile { full_bitmaps: true, ..VhdFile::new("qem2", b"qem2", 0x0005_0003, odd) },
        VhdFile { host: [0; 4], ..VhdFile::new("xen-orchestra", b"xo\0\0", 0x0001_0000, 10 * MIB) },
        VhdFile { host: [0; 4], ..VhdFile::new("caml", b"caml", 0x0000_0001, 10 * MIB) },
        VhdFile { shuffled: true, garbage: true, ..windows("shuffled", 21 * MIB) },
        VhdFile { block: 512 << 10, ..windows("blocks-512k", odd) },
        VhdFile { block: 1 << 20, shuffled: true, ..virtual_pc("blocks-1m", 9 * MIB) },
        VhdFile { block: 16 << 20, ..windows("blocks-16m", 37 * MIB) },
        VhdFile {
            header_at: 4096,
            parts: vec![Part::Align(65536), Part::Bat, Part::Align(1 << 20)],
            ..VhdFile::new("far-tables", b"vbox", 0x0007_0002, odd)
        },
    ];
    files = files.into_iter().map(with_content).collect();
    // Of 256 MiB only a little is written, so that the test stays short.
    let huge = windows("blocks-256m", 260 * MIB);
    files.push(VhdFile { block: 256 << 20, runs: vec![((259 * MIB) / 512, 9, true)], ..huge });
    // Nothing at all.
    files.push(windows("empty", odd));
    files.into_iter().map(Layout::one).collect()
}

/// Fixed disks.
pub fn vhd_fixed_layouts() -> Vec<Layout> {
    let odd = 3 * MIB + 512;
    let files = [
        virtual_pc("fixed-virtual-pc", odd),
        VhdFile { short_footer: true, ..virtual_pc("fixed-511", 3 * MIB) },
        windows("fixed-windows", odd),
        VhdFile { geometry: Geometry::Maximum, ..VhdFile::new("fixed-disk2vhd", b"d2v\0", 0x0001_0000, odd) },
        VhdFile::new("fixed-virtualbox", b"vbox", 0x0007_0002, odd),
        VhdFile { hidden: 1, host: [0; 4], ..VhdFile::new("fixed-blktap", b"tap\0", 0x0001_0003, 4 * MIB) },
    ];
    let fixed = |file: VhdFile| Layout::one(with_content(VhdFile { fixed: true, gap: Some(0), ..file }));
    files.into_iter().map(fixed).collect()
}

fn vhd(file: &VhdFile) -> Piece {
    Piece::Vhd(Box::new(file.clone()))
}

/// Chains.
pub fn vhd_chain_layouts() -> Vec<Layout> {
    let size = 9 * MIB;
    let base = with_content(windows("base", size));
    let fixed = with_content(VhdFile { fixed: true, gap: Some(0), ..windows("fixed-base", size) });
    let tap = with_content(VhdFile { hidden: 1, ..xenserver("tap-base", 10 * MIB) });
    let over = |name: &'static str, locators: Vec<LocatorText>, file: &str| {
        let said = file.rsplit('/').next().unwrap_or(file);
        Layout::chain(
            name,
            vec![
                (file, vhd(&base)),
                ("child.vhd", vhd(&child_of(windows(name, size), &base, said, locators))),
            ],
        )
    };
    let mut layouts = vec![
        Layout::chain(
            "windows-over-dynamic",
            vec![
                ("base.vhd", vhd(&base)),
                ("child.vhd", vhd(&windows_child("windows-child", size, &base, "base.vhd"))),
            ],
        ),
        Layout::chain(
            "windows-over-fixed",
            vec![
                ("parent.vhd", vhd(&fixed)),
                (
                    "child.vhd",
                    vhd(&VhdFile {
                        garbage: true,
                        ..windows_child("windows-child", size, &fixed, "parent.vhd")
                    }),
                ),
            ],
        ),
        over("w2ru-in-sectors", vec![in_sectors(LocatorText::new("W2ru", ".\\base.vhd"))], "base.vhd"),
        over("w2ru-other-case", vec![LocatorText::new("W2ru", ".\\BASE.vhd")], "base.vhd"),
        over(
            "w2ru-in-a-folder",
            vec![LocatorText::new("W2ru", ".\\sub folder\\b\u{e4}se.vhd")],
            "sub folder/b\u{e4}se.vhd",
        ),
        over("macx-only", vec![LocatorText::new("MacX", "file://./base.vhd")], "base.vhd"),
        over("macx-escaped", vec![LocatorText::new("MacX", "file://./b%20%C3%A4.vhd")], "b \u{e4}.vhd"),
        over("wi2r", vec![LocatorText::new("Wi2r", ".\\base.vhd")], "base.vhd"),
        over("wi2k", vec![LocatorText::new("Wi2k", "C:\\disks\\base.vhd")], "base.vhd"),
        over("w2ku-only", vec![LocatorText::new("W2ku", "C:\\disks\\base.vhd")], "base.vhd"),
        over("name-only", Vec::new(), "base.vhd"),
        over(
            "first-is-missing",
            vec![LocatorText::new("W2ru", ".\\gone.vhd"), LocatorText::new("MacX", "file://./base.vhd")],
            "base.vhd",
        ),
    ];
    let leaf = xenserver_child("tap-child", 12 * MIB, &tap, "base.vhd");
    let mut leaf_of_leaf = xenserver_child("tap-leaf", 15 * MIB, &leaf, "middle.vhd");
    leaf_of_leaf.batmap = Some(Batmap { marker: 1, key: true });
    leaf_of_leaf.spare = 1000;
    layouts.push(Layout::chain(
        "xenserver-three-each-larger",
        vec![("base.vhd", vhd(&tap)), ("middle.vhd", vhd(&leaf)), ("leaf.vhd", vhd(&leaf_of_leaf))],
    ));
    let smaller = xenserver_child("tap-smaller", 6 * MIB, &tap, "base.vhd");
    layouts.push(Layout::chain("child-smaller", vec![("base.vhd", vhd(&tap)), ("leaf.vhd", vhd(&smaller))]));
    let old = VhdFile {
        host: [0; 4],
        lsb: true,
        ..child_of(
            VhdFile::new("tap-old", b"tap\0", 0x0000_0001, 10 * MIB),
            &tap,
            "base.vhd",
            vec![LocatorText::new("MacX", "file://./base.vhd")],
        )
    };
    layouts.push(Layout::chain("blktap-0.1-child", vec![("base.vhd", vhd(&tap)), ("leaf.vhd", vhd(&old))]));
    let mut on_raw = xenserver_child("tap-on-raw", 10 * MIB, &tap, "base.img");
    on_raw.parent.as_mut().unwrap().id = [0; 16];
    let raw = Piece::Raw(7 * MIB + 512);
    layouts.push(Layout::chain("xenserver-on-raw", vec![("base.img", raw), ("leaf.vhd", vhd(&on_raw))]));
    let small = VhdFile {
        block: 512 << 10,
        shuffled: true,
        garbage: true,
        ..windows_child("small-blocks", size, &base, "base.vhd")
    };
    let small = VhdFile { runs: scattered_on_top(size, 512 << 10), ..small };
    layouts.push(Layout::chain(
        "small-blocks-child",
        vec![("base.vhd", vhd(&base)), ("child.vhd", vhd(&small))],
    ));
    layouts
}

fn in_sectors(locator: LocatorText) -> LocatorText {
    LocatorText { in_sectors: true, space: 1024, ..locator }
}
