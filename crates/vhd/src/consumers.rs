//! What Azure, XenServer, Hyper-V, VirtualBox and Virtual PC ask of a VHD.

use cowhand_core::{Consumer, Objection, Result, Storage};

use crate::find::{self, CopyState, Found};
use crate::footer::{DiskType, SizeRule};
use crate::geometry::Geometry;
use crate::header::{Header, MAX_DISK};
use crate::locator;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(crate) const ALL: &[Consumer] = &[
    Consumer {
        name: "azure",
        title: "Azure",
        options: &[("subformat", "fixed"), ("size_align", "1M"), ("min_size", "20M"), ("creator", "win")],
        solid: false,
        judge: azure,
    },
    Consumer {
        name: "xenserver",
        title: "XenServer",
        options: &[("size_align", "2M"), ("creator", "tap")],
        solid: false,
        judge: xenserver,
    },
    Consumer { name: "hyperv", title: "Hyper-V", options: &[("creator", "win")], solid: true, judge: hyperv },
    Consumer {
        name: "virtualbox",
        title: "VirtualBox",
        options: &[("creator", "vbox")],
        solid: false,
        judge: virtualbox,
    },
    Consumer {
        name: "virtualpc",
        title: "Virtual PC",
        options: &[("creator", "vpc")],
        solid: false,
        judge: virtualpc,
    },
];

/// An image as its consumers see it, and what they say.
struct Judged<'a> {
    file: &'a dyn Storage,
    found: Found,
    size: u64,
    header: Option<Header>,
    objections: Vec<Objection>,
}

impl Judged<'_> {
    /// What none of them takes: no good footer at the very end.
    fn of(file: &dyn Storage) -> Result<Judged<'_>> {
        let found = find::find(file)?;
        let size = found.footer.size(SizeRule::Auto);
        let header = match found.footer.disk_type {
            DiskType::Fixed => None,
            DiskType::Dynamic | DiskType::Differencing => Some(Header::read(file, &found, size)?),
        };
        let mut judged = Judged { file, found, size, header, objections: Vec::new() };
        judged.footer();
        Ok(judged)
    }

    fn object(&mut self, objection: Objection) {
        self.objections.push(objection);
    }

    fn footer(&mut self) {
        let there = self.found.end == CopyState::Good && !self.found.short;
        if !there {
            self.object(
                Objection::new("the footer at the end of the file is missing, damaged or cut to 511 bytes")
                    .remedy("cowhand check -r all FILE"),
            );
        }
        if self.found.footer.saved_state != 0 {
            self.object(
                Objection::new("the footer says that a virtual machine was suspended with this disk")
                    .remedy("cowhand amend -o saved_state=off FILE"),
            );
        }
    }

    fn at_most(&mut self, most: u64, words: &str) {
        if self.size > most {
            self.object(Objection::new(format!("the disk has {} bytes, and may have {words}", self.size)));
        }
    }

    fn multiple_of(&mut self, unit: u64, words: &str) {
        if !self.size.is_multiple_of(unit) {
            let up = self.size.next_multiple_of(unit);
            self.object(
                Objection::new(format!("the disk's {} bytes are not a whole number of {words}", self.size))
                    .remedy(format!("cowhand resize FILE {up}")),
            );
        }
    }

    fn blocks_of(&mut self, sizes: &[u64], words: &str) {
        if let Some(block_size) = self.header.as_ref().map(|header| header.block_size)
            && !sizes.contains(&block_size)
        {
            self.object(Objection::new(format!("its blocks have {block_size} bytes, and must have {words}")));
        }
    }

    /// The size that the geometry says must not be taken for the disk's.
    fn no_size_by_geometry(&mut self) {
        if self.size != self.found.footer.current_size {
            self.object(Objection::new(format!(
                "its maker means {} bytes by its geometry; it would be taken for a disk of {} bytes",
                self.size, self.found.footer.current_size
            )));
        }
    }

    fn is_differencing(&self) -> bool {
        self.found.footer.disk_type == DiskType::Differencing
    }
}

/// A fixed disk of whole MiB, the footer behind it, nothing else.
fn azure(file: &dyn Storage) -> Result<Vec<Objection>> {
    let mut judged = Judged::of(file)?;
    if judged.found.footer.disk_type != DiskType::Fixed {
        let is = judged.found.footer.disk_type.name();
        judged.object(Objection::new(format!("the disk is {is}, and must be fixed")));
    }
    judged.no_size_by_geometry();
    if judged.size >= 20 * MIB {
        judged.multiple_of(MIB, "MiB");
    } else {
        judged.object(
            Objection::new(format!("the disk has {} bytes, and must have 20 MiB at least", judged.size))
                .remedy("cowhand resize FILE 20M"),
        );
    }
    judged.at_most(32 << 40, "32 TiB at most");
    let before = judged.found.data_end;
    if judged.header.is_none() && before != judged.found.footer.current_size {
        judged.object(Objection::new(format!(
            "{before} bytes stand before the footer, which says {}",
            judged.found.footer.current_size
        )));
    }
    Ok(judged.objections)
}

fn xenserver(file: &dyn Storage) -> Result<Vec<Objection>> {
    let mut judged = Judged::of(file)?;
    if judged.header.is_none() {
        judged.object(Objection::new("the disk is fixed, and must be dynamic"));
    }
    judged.no_size_by_geometry();
    judged.blocks_of(&[2 * MIB], "2 MiB");
    judged.multiple_of(2 * MIB, "blocks of 2 MiB");
    judged.at_most(MAX_DISK, "2040 GiB at most");
    Ok(judged.objections)
}

fn hyperv(file: &dyn Storage) -> Result<Vec<Objection>> {
    let mut judged = Judged::of(file)?;
    judged.no_size_by_geometry();
    judged.blocks_of(&[512 << 10, 2 * MIB], "512 KiB or 2 MiB");
    judged.at_most(MAX_DISK, "2040 GiB at most");
    windows_parent(&mut judged)?;
    Ok(judged.objections)
}

fn virtualbox(file: &dyn Storage) -> Result<Vec<Objection>> {
    let mut judged = Judged::of(file)?;
    judged.no_size_by_geometry();
    judged.at_most(MAX_DISK, "2040 GiB at most");
    windows_parent(&mut judged)?;
    Ok(judged.objections)
}

fn virtualpc(file: &dyn Storage) -> Result<Vec<Objection>> {
    let mut judged = Judged::of(file)?;
    judged.blocks_of(&[2 * MIB], "2 MiB");
    let most = Geometry::MAX.bytes();
    judged.at_most(most, &format!("{} GiB at most ({most} bytes)", most / GIB));
    let shown = judged.found.footer.geometry.bytes();
    if shown != judged.size && judged.size <= most {
        judged.object(Objection::new(format!(
            "its geometry says {shown} bytes, which is what a guest would see of the disk's {}",
            judged.size
        )));
    }
    windows_parent(&mut judged)?;
    Ok(judged.objections)
}

/// A parent that Windows' programs find: a VHD, named by a locator of theirs.
fn windows_parent(judged: &mut Judged<'_>) -> Result<()> {
    let Some(header) = judged.header.as_ref().filter(|_| judged.is_differencing()) else { return Ok(()) };
    let locators = locator::read(judged.file, header, judged.found.file_len)?;
    let raw = header.parent_unique_id == [0; 16];
    if raw {
        judged.object(Objection::new("its parent is no VHD: it has no unique id"));
    } else if !locators.iter().any(|locator| matches!(&locator.code, b"W2ru" | b"W2ku")) {
        judged.object(
            Objection::new("its parent is not named in a way that Windows knows (W2ru or W2ku)")
                .remedy("cowhand reconnect-parent FILE"),
        );
    }
    Ok(())
}
