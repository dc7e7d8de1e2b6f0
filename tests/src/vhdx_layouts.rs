//! The disks that the tests of VHDX are run on: one for every program that writes them and every rare thing in them.

use std::path::{Path, PathBuf};

use crate::vhdx_builder::{ExtraItem, StateOf, VhdxFile, VhdxHeaders, VhdxParent, VhdxPart, VhdxPlaces};
use crate::{Mirror, Run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A chain of files, the base first.
#[derive(Clone, Debug)]
pub struct VhdxLayout {
    /// For messages.
    pub name: &'static str,
    /// Their names and what they are.
    pub files: Vec<(String, VhdxFile)>,
}

/// A chain that was built.
#[derive(Clone, Debug)]
pub struct BuiltVhdx {
    /// For messages.
    pub name: &'static str,
    /// The files, the base first, and what a guest sees in each.
    pub files: Vec<(PathBuf, Mirror)>,
    /// Where the parts of the last are.
    pub places: VhdxPlaces,
}

impl BuiltVhdx {
    /// The last file of the chain, and its content.
    pub fn top(&self) -> (&Path, &Mirror) {
        let (path, content) = self.files.last().unwrap();
        (path, content)
    }

    /// What its parent shows; nothing where there is none.
    pub fn below(&self) -> Mirror {
        self.files.iter().rev().nth(1).map_or_else(Mirror::default, |(_, content)| content.clone())
    }
}

impl VhdxLayout {
    fn one(file: VhdxFile) -> VhdxLayout {
        VhdxLayout { name: file.name, files: vec![(format!("{}.vhdx", file.name), file)] }
    }

    /// Writes all files into a folder of their own.
    pub fn build(&self, folder: &Path) -> BuiltVhdx {
        let folder = folder.join(self.name);
        let mut built: Vec<(PathBuf, Mirror)> = Vec::new();
        let mut places = VhdxPlaces::default();
        for (name, file) in &self.files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let below = built.last().map_or_else(Mirror::default, |(_, content)| content.clone());
            let (content, at) = file.build(&path, &below);
            places = at;
            built.push((path, content));
        }
        BuiltVhdx { name: self.name, files: built, places }
    }

    /// The file at the top.
    pub fn top(&self) -> &VhdxFile {
        &self.files.last().unwrap().1
    }

    /// A relative path leads to every parent: the judge has no other rule to follow.
    pub fn has_a_way(&self) -> bool {
        let relative = |keys: &VhdxParent| {
            keys.keys.iter().any(|(key, value)| {
                *key == "relative_path" && !value.contains("gone") && !value.contains("BASE")
            })
        };
        self.files.iter().filter_map(|(_, file)| file.parent.as_ref()).all(relative)
    }
}

/// Runs of every alignment, in sectors: whole blocks, single sectors, ends inside a byte of the bitmap, data and zeros.
fn scattered(file: &VhdxFile) -> Vec<Run> {
    let sector = u64::from(file.sectors.0);
    let (sectors, in_block) = (file.size / sector, file.block / sector);
    let mut runs = vec![(0, 1, true), (3, 2, true), (9, 14, true), (100, 7, false)];
    if sectors >= 3 * in_block {
        // A whole block, but not a large one: the tests would be slow.
        let whole = if file.block <= 2 * MIB { in_block } else { 777 };
        runs.push((2 * in_block, whole, true));
        runs.push((in_block - 5, 10, true));
    }
    runs.push((sectors - 3, 3, true));
    runs.retain(|(at, n, _)| at + n <= sectors);
    runs
}

/// What a child has over [`scattered`]: other sectors, some the same, zeros over data, a block that is whole.
fn scattered_on_top(file: &VhdxFile) -> Vec<Run> {
    let sector = u64::from(file.sectors.0);
    let (sectors, in_block) = (file.size / sector, file.block / sector);
    let mut runs = vec![(1, 1, true), (10, 5, false), (20, 43, true), (2 * in_block + 13, 21, false)];
    runs.push((2 * in_block + 50, 9, true));
    if file.block <= 2 * MIB {
        runs.push((4 * in_block, in_block, true));
    }
    runs.push((sectors - 2, 1, false));
    runs.retain(|(at, n, _)| at + n <= sectors);
    runs
}

fn with_content(file: VhdxFile) -> VhdxFile {
    let runs = scattered(&file);
    VhdxFile { runs, ..file }
}

/// Every state that a block without data can be in, with and without offset bits.
fn all_states(first: u64) -> Vec<StateOf> {
    let states = [0, 1, 2, 3, 5].into_iter().flat_map(|state| [(state, false), (state, state != 5)]);
    states.enumerate().map(|(n, (state, offset))| (first + n as u64, state, offset)).collect()
}

/// Hyper-V: blocks of 32 MiB, 512e.
fn hyper_v(name: &'static str, size: u64) -> VhdxFile {
    VhdxFile { block: 32 * MIB, ..VhdxFile::new(name, size) }
}

fn qemu(name: &'static str, size: u64) -> VhdxFile {
    VhdxFile {
        creator: "QEMU v10.0.2",
        required: false,
        headers: VhdxHeaders::FirstCounts,
        parts: vec![VhdxPart::Log, VhdxPart::Bat, VhdxPart::Metadata, VhdxPart::Blocks],
        sectors: (512, 512),
        ..VhdxFile::new(name, size)
    }
}

/// Disks without a parent, each written otherwise.
pub fn vhdx_dynamic_layouts() -> Vec<VhdxLayout> {
    let odd = 9 * MIB + 7 * 512;
    let user = |id: u8, len: usize| ExtraItem { id, flags: 1, bytes: vec![id; len] };
    let files = vec![
        hyper_v("hyper-v", 99 * MIB),
        VhdxFile { sectors: (4096, 4096), ..hyper_v("hyper-v-4kn", 99 * MIB + 4096) },
        qemu("qemu", odd),
        VhdxFile { states: vec![(6, 2, false), (7, 2, true), (8, 1, true)], ..qemu("qemu-zero", odd) },
        VhdxFile {
            creator: "Oracle VirtualBox 7.0",
            sectors: (512, 512),
            ..VhdxFile::new("virtualbox", odd)
        },
        VhdxFile { creator: "Microsoft OpenVMM", block: 2 * MIB, ..VhdxFile::new("openvmm", odd) },
        VhdxFile {
            creator: "Microsoft OpenVMM",
            sectors: (4096, 4096),
            ..VhdxFile::new("openvmm-4kn", 9 * MIB + 4096)
        },
        VhdxFile { states: all_states(6), ..VhdxFile::new("every-state", 17 * MIB + 512) },
        VhdxFile {
            parts: vec![VhdxPart::Metadata, VhdxPart::Log, VhdxPart::Blocks, VhdxPart::Bat],
            ..VhdxFile::new("bat-behind-blocks", odd)
        },
        VhdxFile {
            parts: vec![
                VhdxPart::Gap(3),
                VhdxPart::Bat,
                VhdxPart::Unknown(0xa1),
                VhdxPart::Blocks,
                VhdxPart::Gap(2),
                VhdxPart::Log,
                VhdxPart::Unknown(0xa2),
                VhdxPart::Metadata,
            ],
            spare: 2,
            ..VhdxFile::new("unknown-regions", odd)
        },
        VhdxFile { log: 8 * MIB, headers: VhdxHeaders::FirstCounts, ..VhdxFile::new("log-8m", odd) },
        VhdxFile {
            shuffled: true,
            extra: vec![
                user(1, 1),
                user(2, 5000),
                user(3, 0),
                ExtraItem { id: 4, flags: 0, bytes: vec![4; 70_000] },
                ExtraItem { id: 5, flags: 2, bytes: vec![5; 16] },
                ExtraItem { id: 5, flags: 3, bytes: vec![6; 16] },
            ],
            ..VhdxFile::new("shuffled", 21 * MIB)
        },
        VhdxFile { headers: VhdxHeaders::Damaged(0), ..VhdxFile::new("first-header-bad", odd) },
        VhdxFile { headers: VhdxHeaders::Damaged(1), ..VhdxFile::new("second-header-bad", odd) },
        VhdxFile { bad_table: Some(1), ..VhdxFile::new("second-table-bad", odd) },
        VhdxFile { bad_table: Some(0), ..VhdxFile::new("first-table-bad", odd) },
        VhdxFile { block: 8 * MIB, cut: true, ..VhdxFile::new("cut", 19 * MIB + 512) },
        VhdxFile { block: 256 * MIB, ..VhdxFile::new("blocks-256m", 800 * MIB) },
    ];
    let mut files: Vec<VhdxFile> = files.into_iter().map(with_content).collect();
    files.push(VhdxFile::new("empty", odd));
    files.push(VhdxFile::new("nothing", 0));
    // Several chunks, of 4 GiB with sectors of 512 bytes and of 32 GiB with those of 4096: their entries have sector
    // bitmap entries between them.
    let around = |at: u64| [(at - 3, 7, true), (at + 5000, 3, true)];
    let chunk = 1 << 23;
    let runs: Vec<Run> = [(5, 9, true)].into_iter().chain(around(chunk)).chain(around(2 * chunk)).collect();
    files.push(VhdxFile { runs: runs.clone(), ..VhdxFile::new("chunks", 9 * GIB) });
    files.push(VhdxFile { runs: runs.clone(), shuffled: true, ..hyper_v("chunks-32m", 9 * GIB) });
    files.push(VhdxFile {
        sectors: (4096, 4096),
        block: 64 * MIB,
        runs,
        ..VhdxFile::new("chunks-4kn", 65 * GIB)
    });
    files.into_iter().map(VhdxLayout::one).collect()
}

/// Disks that keep all their blocks.
pub fn vhdx_fixed_layouts() -> Vec<VhdxLayout> {
    let odd = 5 * MIB + 7 * 512;
    let files = [
        VhdxFile { block: 32 * MIB, ..VhdxFile::new("fixed-windows", 40 * MIB) },
        VhdxFile {
            creator: "disk2vhd",
            headers: VhdxHeaders::Same,
            block: 2 * MIB,
            ..VhdxFile::new("fixed-disk2vhd", odd)
        },
        VhdxFile { states: vec![(3, 0, false), (4, 2, true)], ..VhdxFile::new("fixed-with-gaps", odd) },
        VhdxFile { sectors: (4096, 4096), cut: true, ..VhdxFile::new("fixed-4kn", 5 * MIB + 4096) },
        VhdxFile { creator: "QEMU v10.0.2", required: false, ..VhdxFile::new("fixed-qemu", odd) },
    ];
    let fixed = |file: VhdxFile| {
        let mut file = with_content(VhdxFile { fixed: true, ..file });
        let in_block = file.block / u64::from(file.sectors.0);
        let gaps: Vec<u64> = file.states.iter().map(|(block, ..)| *block).collect();
        file.runs.retain(|(at, n, _)| {
            !gaps.iter().any(|gap| at / in_block <= *gap && (at + n - 1) / in_block >= *gap)
        });
        VhdxLayout::one(file)
    };
    files.into_iter().map(fixed).collect()
}

/// Over `parent`, whose file is `name`: sectors of its own, and the keys that Windows writes.
fn child_of(file: VhdxFile, parent: &VhdxFile, name: &str) -> VhdxFile {
    let file = VhdxFile { sectors: parent.sectors, ..file };
    let runs = scattered_on_top(&file);
    let keys = vec![
        ("parent_linkage", parent.linkage().to_uppercase()),
        ("parent_linkage2", "{00000000-0000-0000-0000-000000000000}".to_owned()),
        ("relative_path", format!(".\\{name}")),
        ("absolute_win32_path", format!("C:\\disks\\{name}")),
        ("volume_path", format!("\\\\?\\Volume{{26a21bda-a627-11d7-9931-806e6f6e6963}}\\disks\\{name}")),
    ];
    let mut ids = file.ids;
    ids[2] = parent.ids[2];
    VhdxFile { ids, runs, parent: Some(VhdxParent { keys }), ..file }
}

/// The same with other keys.
fn with_keys(child: VhdxFile, keys: Vec<(&'static str, String)>) -> VhdxFile {
    VhdxFile { parent: Some(VhdxParent { keys }), ..child }
}

/// Chains.
pub fn vhdx_chain_layouts() -> Vec<VhdxLayout> {
    let size = 9 * MIB;
    let chain = |name: &'static str, files: Vec<(&str, VhdxFile)>| VhdxLayout {
        name,
        files: files.into_iter().map(|(name, file)| (name.to_owned(), file)).collect(),
    };
    let base = with_content(VhdxFile::new("base", size));
    let fixed = with_content(VhdxFile { fixed: true, ..VhdxFile::new("fixed-base", size) });
    let sectors_4k = with_content(VhdxFile { sectors: (4096, 4096), ..VhdxFile::new("base-4kn", size) });
    let over = |name: &'static str, block: u64, parent: &VhdxFile| {
        let child = VhdxFile { block, ..VhdxFile::new(name, parent.size) };
        child_of(child, parent, "base.vhdx")
    };
    let two = |name: &'static str, parent: &VhdxFile, child: VhdxFile| {
        chain(name, vec![("base.vhdx", parent.clone()), ("child.avhdx", child)])
    };
    let named = |name: &'static str, file: &str, keys: &[(&'static str, &str)]| {
        let keys = keys.iter().map(|(key, value)| (*key, (*value).to_owned()));
        let linkage = std::iter::once(("parent_linkage", base.linkage()));
        let child = with_keys(over(name, MIB, &base), linkage.chain(keys).collect());
        chain(name, vec![(file, base.clone()), ("child.avhdx", child)])
    };
    let grown = over("grown", 2 * MIB, &base);
    let mut larger = VhdxFile { size: 13 * MIB + 512, ..grown.clone() };
    larger.runs.push((13 * MIB / 512, 1, true));
    let smaller =
        VhdxFile { size: 4 * MIB + 512, runs: vec![(7, 9, true), (4097, 3, true)], ..grown.clone() };
    let leaf = child_of(VhdxFile::new("leaf", larger.size + MIB), &larger, "middle.avhdx");
    let mut layouts = vec![
        two("windows-child", &fixed, over("windows-child", 2 * MIB, &fixed)),
        two("checkpoint", &base, over("checkpoint", 32 * MIB, &base)),
        two("child-4kn", &sectors_4k, over("child-4kn", 2 * MIB, &sectors_4k)),
        two(
            "child-garbage",
            &base,
            VhdxFile { garbage: true, shuffled: true, ..over("child-garbage", 2 * MIB, &base) },
        ),
        two("child-never-full", &base, VhdxFile { never_full: true, ..over("child-never-full", MIB, &base) }),
        two("child-larger", &base, larger.clone()),
        two("child-smaller", &base, smaller),
        two("child-empty", &base, VhdxFile { runs: Vec::new(), ..over("child-empty", MIB, &base) }),
        chain(
            "three-each-larger",
            vec![("base.vhdx", base.clone()), ("middle.avhdx", larger), ("leaf.avhdx", leaf)],
        ),
        named("absolute-only", "base.vhdx", &[("absolute_win32_path", "\\\\?\\C:\\disks\\base.vhdx")]),
        named("other-case", "base.vhdx", &[("relative_path", ".\\BASE.vhdx")]),
        named(
            "relative-gone",
            "base.vhdx",
            &[("relative_path", "..\\gone\\gone.vhdx"), ("absolute_win32_path", "C:\\disks\\base.vhdx")],
        ),
        named(
            "in-a-folder",
            "sub folder/b\u{e4}se.vhdx",
            &[("relative_path", ".\\sub folder\\b\u{e4}se.vhdx")],
        ),
    ];
    // Zeros and nothing over data: every state in a child.
    let tall = VhdxFile::new("tall-base", 17 * MIB + 512);
    let mut full = with_content(tall);
    full.runs.extend((4..17).map(|block| (block * 2048 + 9, 300, true)));
    let mut states = over("child-every-state", MIB, &full);
    states.states = all_states(6);
    states.runs.retain(|(at, ..)| at / 2048 < 6);
    layouts.push(two("child-every-state", &full, states));
    // A merge that was broken off: the parent has the second linkage's identity.
    let mut keys = over("merging", MIB, &base).parent.unwrap().keys;
    keys[0].1 = format!("{{{}}}", crate::guid_text(&[7; 16]));
    keys[1].1 = base.linkage();
    layouts.push(two("merging", &base, with_keys(over("merging", MIB, &base), keys)));
    // Partial blocks that two sector bitmaps serve, one of them only for the blocks behind the chunk's end.
    let chunk = 1 << 23;
    let mut large = VhdxFile::new("large-base", 9 * GIB);
    large.runs = vec![(3, 9, true), (chunk - 20, 40, true), (2 * chunk + 7, 100, true)];
    let mut top = over("child-chunks", 4 * MIB, &large);
    top.runs = vec![(5, 2, true), (chunk - 3, 7, true), (chunk + 9, 3, false), (2 * chunk + 70, 9, true)];
    layouts.push(two("child-chunks", &large, top.clone()));
    let shuffled = VhdxFile { block: MIB, shuffled: true, garbage: true, ..top };
    layouts.push(two("child-chunks-shuffled", &large, shuffled));
    layouts
}
