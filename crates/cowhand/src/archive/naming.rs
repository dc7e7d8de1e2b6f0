//! What Proxmox goes by when it restores an archive: its file's name, and lines in the machine's configuration that say
//! where each disk belongs.

use std::path::Path;

use cowhand_core::{ConfigFile, Error, Manifest, Result};

/// The configuration that a machine is restored from.
const CONFIG: &str = "qemu-server.conf";
/// That of its firewall.
const FIREWALL: &str = "qemu-server.fw";
/// What a line begins with that says where a disk belongs: `VIRTDEV:DEVICE:STORAGE:FORMAT:` follows.
const MAP: &str = "#qmdump#map:";
/// The archive's file name in front of the machine's number.
const PREFIX: &str = "vzdump-qemu-";
/// What a disk's name has in front of that of the drive.
const DRIVE: &str = "drive-";
/// What the name of a TPM's state has behind: its copy is archived, not the state itself.
const BACKUP: &str = "-backup";
/// Drives that a disk can be restored to; a number follows.
const DRIVES: [&str; 6] = ["ide", "sata", "scsi", "virtio", "efidisk", "tpmstate"];
/// Formats that Proxmox makes disks of.
const FORMATS: [&str; 3] = ["raw", "qcow2", "vmdk"];
/// Numbers that a machine may have.
const NUMBERS: std::ops::RangeInclusive<u32> = 100..=999_999_999;

/// Where a disk is to be restored to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// The drive: `scsi0`.
    pub drive: String,
    /// The storage; empty: what who restores names.
    pub storage: String,
    /// `raw`, `qcow2` or `vmdk`; `None`: what the configuration says, or raw.
    pub format: Option<String>,
}

impl Mapped {
    /// Reads `DRIVE=STORAGE[:FORMAT]`.
    pub fn parse(text: &str) -> Result<Mapped> {
        let wrong = || {
            Error::invalid(format!("'{text}' does not say where a disk belongs"))
                .hint("say DRIVE=STORAGE or DRIVE=STORAGE:FORMAT, as in scsi0=local-lvm:raw")
        };
        let (drive, place) = text.split_once('=').ok_or_else(wrong)?;
        let (storage, format) = match place.split_once(':') {
            Some((storage, format)) => (storage, Some(format)),
            None => (place, None),
        };
        if !is_drive(drive) || !is_word(storage) || format.is_some_and(|format| !FORMATS.contains(&format)) {
            return Err(wrong());
        }
        Ok(Mapped { drive: drive.into(), storage: storage.into(), format: format.map(str::to_owned) })
    }
}

/// A moment as a clock on the wall shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    /// The year, from 1970 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 60.
    pub second: u8,
}

/// The file name that Proxmox gives an archive of machine `vmid` that was begun at `at`, its local time:
/// `vzdump-qemu-100-2026_11_21-20_30_00.vma.zst`. `packing`: a name or an extension; `None`: not packed. Errors: Proxmox
/// has no machine of that number, or knows no archives that are packed so.
pub fn backup_name(vmid: u32, at: WallClock, packing: Option<&str>) -> Result<String> {
    if !NUMBERS.contains(&vmid) {
        return Err(Error::invalid(format!("no machine of Proxmox's has the number {vmid}")).hint(format!(
            "use {} to {}",
            NUMBERS.start(),
            NUMBERS.end()
        )));
    }
    let packing = packing.filter(|name| *name != "none");
    let all = cowhand_packed::packings();
    let known = |name: &str| {
        let found = all.iter().find(|packing| packing.name() == name || packing.extension() == name);
        found
            .map(|packing| packing.extension())
            .ok_or_else(|| Error::invalid(format!("'{name}' is no way of packing")))
    };
    let extension = match packing {
        Some(name) => format!(".{}", known(name)?),
        None => String::new(),
    };
    let WallClock { year, month, day, hour, minute, second } = at;
    Ok(format!(
        "{PREFIX}{vmid}-{year:04}_{month:02}_{day:02}-{hour:02}_{minute:02}_{second:02}.vma{extension}"
    ))
}

/// Looks whether `name` is one that [`backup_name`] can make. Errors: what is wrong with it.
pub fn check_backup_name(name: &str) -> Result<()> {
    let wrong = |what: &str| {
        Err(Error::invalid(format!("'{name}' is no name of an archive that Proxmox restores: {what}"))
            .hint(format!("it is {PREFIX}VMID-YYYY_MM_DD-HH_MM_SS.vma, and .zst, .gz or .lzo behind")))
    };
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return wrong(&format!("it does not begin with {PREFIX}"));
    };
    let Some((vmid, rest)) = rest.split_once('-') else { return wrong("no time follows the number") };
    let number = vmid.parse().ok().filter(|_| vmid.bytes().all(|byte| byte.is_ascii_digit()));
    if !number.is_some_and(|number| NUMBERS.contains(&number)) {
        return wrong("its number is none that a machine has");
    }
    let Some((time, extension)) = rest.split_once('.') else { return wrong("it does not end with .vma") };
    if !is_time(time) {
        return wrong("its time is none");
    }
    let packed = |how: &str| cowhand_packed::packings().iter().any(|packing| packing.extension() == how);
    if extension == "vma" || extension.strip_prefix("vma.").is_some_and(packed) {
        return Ok(());
    }
    wrong("it does not end with .vma, nor with .vma and how it is packed")
}

/// `YYYY_MM_DD-HH_MM_SS`.
fn is_time(text: &str) -> bool {
    let pattern = b"dddd_dd_dd-dd_dd_dd";
    let digits = text.len() == pattern.len()
        && text.bytes().zip(pattern).all(|(is, wanted)| match wanted {
            b'd' => is.is_ascii_digit(),
            other => is == *other,
        });
    let within = |range: std::ops::Range<usize>, values: std::ops::RangeInclusive<u8>| {
        text.get(range).and_then(|text| text.parse().ok()).is_some_and(|value| values.contains(&value))
    };
    digits
        && within(5..7, 1..=12)
        && within(8..10, 1..=31)
        && within(11..13, 0..=23)
        && within(14..16, 0..=59)
        && within(17..19, 0..=60)
}

/// Puts a line for each disk into the machine's configuration, as Proxmox's own backups have them, and leaves out of it
/// what those leave out: such lines of an earlier backup, snapshots and what is pending, disks that are not used, and
/// `lock` and `parent`. A lone configuration that is named after the machine's number becomes the one that is restored.
/// Errors: a disk's name is no drive's; the configuration has no such drive, or does not say on which storage it is.
pub(super) fn add_map(manifest: &mut Manifest, given: &[Mapped]) -> Result<()> {
    let drives = drives(manifest)?;
    for Mapped { drive, .. } in given {
        if !drives.iter().any(|(has, _)| has == drive) {
            return Err(Error::invalid(format!(
                "where {drive} belongs was said, and the archive has no such disk"
            ))
            .hint(format!("name a disk {DRIVE}{drive}")));
        }
    }
    name_after_proxmox(manifest);
    let config = config_mut(manifest)?;
    let text = text(config)?;
    let mut made = String::new();
    for line in kept(text) {
        made.push_str(line);
        made.push('\n');
    }
    for (drive, disk) in &drives {
        let Some(value) = value_of(&made, drive) else { return Err(no_such_drive(drive, disk)) };
        let (storage, format) = place(value);
        let (storage, format) = match given.iter().find(|mapped| mapped.drive == *drive) {
            Some(given) => (given.storage.as_str(), given.format.as_deref().unwrap_or(format)),
            None => (storage, format),
        };
        made.push_str(&format!("{MAP}{drive}:{disk}:{storage}:{format}:\n"));
    }
    config.data = made.into_bytes();
    Ok(())
}

/// Looks whether Proxmox could restore that archive. Errors: what it would stumble over. `path`: its file, where it has one.
pub(super) fn check_restorable(path: Option<&Path>, manifest: &Manifest) -> Result<()> {
    if let Some(path) = path {
        check_backup_name(path.file_name().and_then(|name| name.to_str()).unwrap_or_default())?;
    }
    let drives = drives(manifest)?;
    let config = manifest.configs.iter().find(|config| config.name == CONFIG).ok_or_else(no_config)?;
    let text = text(config)?;
    let mut mapped: Vec<(&str, &str)> = Vec::new();
    for line in text.lines().take_while(|line| !is_section(line)).filter(|line| line.starts_with(MAP)) {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, drive, disk, storage, format, ""] = fields.as_slice() else {
            return Err(wrong_line(line, "it is not of the form VIRTDEV:DEVICE:STORAGE:FORMAT:"));
        };
        if !is_word(drive)
            || !is_word(disk)
            || [storage, format].iter().any(|word| word.contains(char::is_whitespace))
        {
            return Err(wrong_line(line, "it is not of the form VIRTDEV:DEVICE:STORAGE:FORMAT:"));
        }
        if !manifest.disks.iter().any(|has| has.name == **disk) {
            return Err(wrong_line(line, "the archive has no such disk"));
        }
        if mapped.iter().any(|(other, of)| other == drive || of == disk) {
            return Err(wrong_line(line, "another line says where it belongs"));
        }
        mapped.push((drive, disk));
    }
    for (drive, disk) in &drives {
        if !mapped.iter().any(|(_, of)| of == disk) {
            return Err(Error::invalid(format!(
                "{CONFIG} has no line that says where the disk '{disk}' belongs"
            ))
            .hint(format!("it is {MAP}{drive}:{disk}:STORAGE:FORMAT: and --map-lines makes it")));
        }
    }
    for (drive, disk) in mapped {
        if value_of(text, drive).is_none() {
            return Err(no_such_drive(drive, disk));
        }
    }
    Ok(())
}

fn wrong_line(line: &str, what: &str) -> Error {
    Error::invalid(format!("{CONFIG} has the line '{line}', and {what}"))
}

fn no_config() -> Error {
    Error::invalid(format!("Proxmox restores no archive without a {CONFIG}"))
        .hint(format!("add the machine's configuration, as a file of the name {CONFIG}"))
}

fn no_such_drive(drive: &str, disk: &str) -> Error {
    Error::invalid(format!(
        "{CONFIG} has no line '{drive}: ...', so the disk '{disk}' would be attached to nothing"
    ))
    .hint(format!("add the line, such as '{drive}: local-lvm:vm-100-disk-0'"))
}

/// Of each disk the drive it is restored to, and its name.
fn drives(manifest: &Manifest) -> Result<Vec<(String, String)>> {
    let drive = |disk: &cowhand_core::ArchivedDisk| {
        let drive = disk.name.strip_prefix(DRIVE).unwrap_or_default();
        let drive = drive.strip_suffix(BACKUP).filter(|drive| drive.starts_with("tpmstate")).unwrap_or(drive);
        if !is_drive(drive) {
            return Err(Error::invalid(format!("the disk '{}' is named after no drive of Proxmox's", disk.name))
                .hint("name it drive-scsi0, drive-virtio0, drive-sata0, drive-ide0, drive-efidisk0 or drive-tpmstate0-backup"));
        }
        Ok((drive.to_owned(), disk.name.clone()))
    };
    manifest.disks.iter().map(drive).collect()
}

fn is_drive(text: &str) -> bool {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let kind = text.strip_suffix(digits).unwrap_or_default();
    DRIVES.contains(&kind)
        && (1..=2).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':')
}

/// `/etc/pve/qemu-server/100.conf` is the same file under another name.
fn name_after_proxmox(manifest: &mut Manifest) {
    for (ending, name) in [(".conf", CONFIG), (".fw", FIREWALL)] {
        let numbered = |config: &ConfigFile| {
            let number = config.name.strip_suffix(ending).unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        let there = manifest.configs.iter().any(|config| config.name == name);
        let mut numbered = manifest.configs.iter_mut().filter(|config| numbered(config));
        if let (false, Some(config), None) = (there, numbered.next(), numbered.next()) {
            config.name = name.to_owned();
        }
    }
}

fn config_mut(manifest: &mut Manifest) -> Result<&mut ConfigFile> {
    manifest.configs.iter_mut().find(|config| config.name == CONFIG).ok_or_else(no_config)
}

fn text(config: &ConfigFile) -> Result<&str> {
    std::str::from_utf8(&config.data)
        .map_err(|_| Error::corrupt(CONFIG, "this is no text").hint("it is to be in UTF-8"))
}

/// The lines that go into a backup.
fn kept(text: &str) -> impl Iterator<Item = &str> {
    let left_out = |line: &&str| {
        line.starts_with("#vzdump#")
            || line.starts_with("#qmdump#")
            || line.starts_with("lock:")
            || line.starts_with("parent:")
            || line.strip_prefix("unused").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    text.lines().take_while(|line| !is_section(line)).filter(move |line| !left_out(line))
}

/// What follows is a snapshot, or pending.
fn is_section(line: &str) -> bool {
    line.starts_with('[') && line.trim_end().ends_with(']')
}

/// What the configuration says of a drive.
fn value_of<'a>(text: &'a str, drive: &str) -> Option<&'a str> {
    let lines = text.lines().take_while(|line| !is_section(line));
    lines.filter_map(|line| line.strip_prefix(drive)?.strip_prefix(':')).map(str::trim).next()
}

/// On which storage a drive is, where that is said, and in which format: `local:100/vm-100-disk-0.qcow2,size=32G`.
fn place(value: &str) -> (&str, &str) {
    let mut parts = value.split(',');
    let volume = parts.next().unwrap_or_default();
    let volume = volume.strip_prefix("file=").unwrap_or(volume);
    let storage = match volume.split_once(':') {
        Some((storage, _)) if !volume.starts_with('/') && is_word(storage) => storage,
        _ => "",
    };
    let known = |format: &str| FORMATS.iter().copied().find(|known| *known == format);
    let said = parts.find_map(|part| known(part.strip_prefix("format=")?));
    let by_name = || known(volume.rsplit_once('.')?.1);
    (storage, said.or_else(by_name).unwrap_or("raw"))
}

#[cfg(test)]
mod tests;
