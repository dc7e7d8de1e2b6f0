//! The header that is written: what goes into it is checked when it is added.

use cowhand_core::{ArchivedDisk, ConfigFile, Error, Manifest, Result};
use md5::{Digest, Md5};
use zerocopy::{FromZeros, IntoBytes};

use crate::layout::{
    CLUSTER, CONFIGS, HEADER, LAST_DEVICE, MAGIC, MAX_BLOB, MAX_CLUSTERS, MAX_HEADER_WRITTEN, RawHeader,
    VMSTATE,
};

/// The header is a multiple of this long, as Proxmox's are.
const STEP: usize = 512;
/// Bytes in front of a blob: its length.
const LEN: usize = 2;
/// The blob buffer's first byte, which is there so that no blob begins at 0.
const DUMMY: usize = 1;

/// What the header will say.
#[derive(Debug)]
pub(super) struct Front {
    what: Manifest,
    /// Bytes of the blob buffer.
    blobs: usize,
}

impl Front {
    pub(super) fn new(id: [u8; 16], made: i64) -> Front {
        Front { what: Manifest { id, made, ..Manifest::default() }, blobs: DUMMY }
    }

    pub(super) fn add_config(&mut self, name: &str, data: &[u8]) -> Result<()> {
        check_name("a configuration", name)?;
        let shown = || format!("the configuration '{name}'");
        if self.what.configs.iter().any(|config| config.name == name) {
            return Err(Error::invalid(format!("{} is in the archive already", shown())));
        }
        if data.len() > MAX_BLOB {
            return Err(Error::unsupported(format!(
                "{} has {} bytes, and a VMA holds at most {MAX_BLOB} of one",
                shown(),
                data.len()
            ))
            .known_as(format!("Unable to append config data {name} (len = {})", data.len())));
        }
        if self.what.configs.len() == CONFIGS {
            return Err(Error::unsupported(format!(
                "{} would be one too many: a VMA holds {CONFIGS} configurations",
                shown()
            )));
        }
        self.room_for(&shown(), 2 * LEN + name.len() + 1 + data.len())?;
        self.what.configs.push(ConfigFile { name: name.to_owned(), data: data.to_owned() });
        Ok(())
    }

    /// Answers the dev_id. `number` 0: the next one.
    pub(super) fn add_stream(&mut self, number: u32, name: &str, size: u64) -> Result<u8> {
        check_name("a disk", name)?;
        let shown = || format!("the disk '{name}'");
        let refused = || format!("vma_writer_register_stream '{name}' failed");
        if self.what.disks.iter().any(|disk| disk.name == name) {
            return Err(Error::invalid(format!("{} is in the archive already", shown())));
        }
        if size == 0 {
            return Err(Error::invalid(format!("{} has no bytes, and a VMA takes no such disk", shown()))
                .known_as(refused()));
        }
        if size.div_ceil(CLUSTER) > MAX_CLUSTERS {
            return Err(Error::unsupported(format!(
                "{} has {size} bytes, and a VMA holds at most 256 TiB of one",
                shown()
            )));
        }
        let last = self.what.disks.last().map_or(0, |disk| disk.number);
        let number = if number == 0 { last + 1 } else { number };
        if number as usize > LAST_DEVICE {
            return Err(Error::unsupported(format!(
                "{} would be device {number}: a VMA holds {LAST_DEVICE} disks",
                shown()
            ))
            .known_as(refused()));
        }
        if number <= last {
            return Err(Error::invalid(format!(
                "{} is device {number}, and comes behind device {last}",
                shown()
            )));
        }
        self.room_for(&shown(), LEN + name.len() + 1)?;
        let memory = name == VMSTATE;
        self.what.disks.push(ArchivedDisk { number, name: name.to_owned(), size, memory });
        Ok(number as u8) // never cut: at most 254
    }

    /// Counts `more` bytes of blobs, if the header stays as short as Proxmox's programs write it.
    fn room_for(&mut self, what: &str, more: usize) -> Result<()> {
        let len = header_len(self.blobs + more);
        if len > MAX_HEADER_WRITTEN {
            return Err(Error::unsupported(format!(
                "with {what} the header would have {len} bytes, and a VMA's has at most {MAX_HEADER_WRITTEN}"
            )));
        }
        self.blobs += more;
        Ok(())
    }

    /// All bytes in front of the first extent.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut header = RawHeader::new_zeroed();
        let mut blobs = Vec::with_capacity(self.blobs);
        blobs.push(0);
        // Never cut: all blobs together are shorter than the header may be, and each is shorter than 64 KiB.
        let mut blob = |bytes: &[u8], end: &[u8]| {
            let at = blobs.len() as u32;
            blobs.extend(((bytes.len() + end.len()) as u16).to_le_bytes());
            blobs.extend(bytes);
            blobs.extend(end);
            at
        };
        let slots = header.config_names.iter_mut().zip(&mut header.config_data);
        for (config, (name, data)) in self.what.configs.iter().zip(slots) {
            name.set(blob(config.name.as_bytes(), &[0]));
            data.set(blob(&config.data, &[]));
        }
        for disk in &self.what.disks {
            if let Some(device) = header.dev_info.get_mut(disk.number as usize) {
                device.name.set(blob(disk.name.as_bytes(), &[0]));
                device.size.set(disk.size);
            }
        }
        header.magic = MAGIC;
        header.version.set(1);
        header.uuid = self.what.id;
        header.ctime.set(self.what.made);
        header.blob_buffer_offset.set(HEADER as u32);
        header.blob_buffer_size.set(blobs.len() as u32);
        header.header_size.set(header_len(blobs.len()) as u32);
        let mut sum = Md5::new();
        blobs.resize(header_len(blobs.len()) - HEADER, 0);
        sum.update(header.as_bytes());
        sum.update(&blobs);
        header.md5sum = sum.finalize().into();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(blobs);
        bytes
    }
}

fn header_len(blobs: usize) -> usize {
    HEADER + blobs.next_multiple_of(STEP)
}

/// A name that every reader takes, and can make a file's name of.
fn check_name(what: &str, name: &str) -> Result<()> {
    let wrong = if name.is_empty() {
        format!("{what} has an empty name")
    } else if name.contains('\0') {
        format!("{what}'s name '{name}' holds a byte 0, which ends it")
    } else if name.contains('/') || name == "." || name == ".." {
        format!("{what}'s name '{name}' is a path, and would be no file's name where it is extracted")
    } else if name.len() + 1 > MAX_BLOB {
        return Err(Error::unsupported(format!(
            "{what}'s name has {} bytes, and a VMA holds at most {}",
            name.len(),
            MAX_BLOB - 1
        )));
    } else {
        return Ok(());
    };
    Err(Error::invalid(wrong))
}
