//! The list of formats, and which of them a content or a name means.

use std::path::Path;

use cowhand_core::raw::Raw;
use cowhand_core::{Error, ErrorKind, Format, Options, Probe, Result, Storage};

/// All formats. Raw is last: it takes what nothing else claims.
pub fn formats() -> &'static [&'static dyn Format] {
    &[
        &cowhand_qcow2::Qcow2,
        &cowhand_vhd::Vhd,
        &cowhand_vhdx::Vhdx,
        &cowhand_luks::Luks,
        &cowhand_vma::Vma,
        &Raw,
    ]
}

/// The one that takes what nothing else claims.
pub(crate) fn bare() -> &'static dyn Format {
    &Raw
}

/// The driver of plain files.
pub(crate) const FILE: &str = "file";
/// The driver of devices.
pub(crate) const DEVICE: &str = "host_device";

/// The name is that of what bytes are kept on, and of no format: such a file is its bytes as they stand.
pub(crate) fn is_protocol(name: &str) -> bool {
    [FILE, DEVICE].contains(&name)
}

/// A driver of that name: a format, or what bytes are kept on. Errors: [`ErrorKind::Invalid`] for a name nobody bears.
pub fn driver(name: &str) -> Result<&'static dyn Format> {
    format(name).map_err(|_| Error::invalid(format!("Unknown driver '{name}'")))
}

/// Checks the options that an image of `format` is opened with.
pub(crate) fn open_options(format: &dyn Format, given: &[(String, String)]) -> Result<Options> {
    let table = format.open_options();
    match given.iter().find(|(name, _)| table.iter().all(|spec| spec.name != name)) {
        Some((name, _)) => Err(unknown_option(format, name)),
        None => Options::check(table, given),
    }
}

pub(crate) fn unknown_option(format: &dyn Format, option: &str) -> Error {
    let name = format.names()[0]; // never empty: every format has a name
    Error::invalid(format!("Block format '{name}' does not support the option '{option}'"))
}

/// The format of that name, or of the files of a driver of that name. Errors: [`ErrorKind::Invalid`] for a name nobody bears.
pub fn format(name: &str) -> Result<&'static dyn Format> {
    if is_protocol(name) {
        return Ok(&Raw);
    }
    formats().iter().copied().find(|format| format.names().contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = formats().iter().flat_map(|format| format.names()).copied().collect();
        Error::invalid(format!("Unknown file format '{name}'"))
            .hint(format!("known are {}", known.join(", ")))
            .known_as(format!("Unknown driver '{name}'"))
    })
}

/// The format that a target's file name means: by its extension, and raw where that says nothing, as for a device.
/// Errors: an extension that means a format which cannot be written.
pub fn format_for_target(path: &Path) -> Result<&'static dyn Format> {
    if let Some(found) = by_extension(path) {
        return Ok(found);
    }
    match extension_of(path).as_str() {
        extension @ ("vmdk" | "vdi" | "qed" | "dmg" | "hdd" | "iso" | "ova") => {
            Err(Error::unsupported(format!("cannot write a .{extension} file"))
                .hint("name the format it shall have: raw, qcow2, vpc, vhdx or luks")
                .image(path.display()))
        }
        _ => Ok(&Raw),
    }
}

fn extension_of(path: &Path) -> String {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// The format that a file name's extension means, where it means one: the one before it, for a packed file of a format
/// that comes so.
pub(crate) fn by_extension(path: &Path) -> Option<&'static dyn Format> {
    let means = |path: &Path| {
        let extension = extension_of(path);
        formats().iter().copied().find(|format| format.extensions().contains(&extension.as_str()))
    };
    let packed = || {
        cowhand_packed::by_extension(path.file_name()?.to_str()?)?;
        means(Path::new(path.file_stem()?)).filter(|format| format.comes_packed())
    };
    means(path).or_else(packed)
}

/// Which format a content is. Reads its first bytes and, where a format asks, its last.
///
/// Errors: [`ErrorKind::Ambiguous`] where it matches several formats; [`ErrorKind::Unsupported`] where it is a disk
/// image of a kind that is not read here (taking it for raw would hand out its tables as guest data).
pub fn detect(storage: &dyn Storage) -> Result<&'static dyn Format> {
    detect_by(storage, Probing::Whole)
}

/// How a file's format is found by its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probing {
    /// By all that speaks for one: the front, what stands behind the guest's bytes, what is packed in it. Several at once are
    /// an error.
    #[default]
    Whole,
    /// As QEMU does it: by the front alone, and archives are raw. Several at once are an error.
    Front,
    /// As `Front`; of several at once, the one that the front says.
    Trusting,
}

/// As [`detect`], in the way that `probing` says.
pub fn detect_by(storage: &dyn Storage, probing: Probing) -> Result<&'static dyn Format> {
    let failed = |error| Error::io("cannot read its head", error);
    let len = storage.len().map_err(failed)?;
    let mut head = vec![0; len.min(4096) as usize];
    storage.read_at(0, &mut head).map_err(failed)?;

    let matches: Vec<(Probe, &'static dyn Format)> = formats()
        .iter()
        .map(|format| (format.probe(&head, storage), *format))
        .filter(|(probe, format)| match probing {
            Probing::Whole => *probe > Probe::Possible,
            Probing::Front | Probing::Trusting => *probe == Probe::Sure && format.archives().is_none(),
        })
        .collect();
    let Some(&(probe, found)) = matches.first() else {
        return match foreign(&head) {
            Some(what) => Err(Error::unsupported(format!("is {what}, which is not read here"))
                .hint("pass -f raw to take its bytes as they stand")),
            None => Ok(&Raw),
        };
    };
    if probing == Probing::Trusting {
        return Ok(found);
    }
    let mut names: Vec<&str> = matches.iter().map(|(_, format)| format.names()[0]).collect(); // never empty: every format has a name
    if probe == Probe::Sure {
        names.extend(guest_signatures(&head, storage, len)?);
    }
    match names.as_slice() {
        [_] => Ok(found),
        several => Err(Error::new(
            ErrorKind::Ambiguous,
            format!("matches several formats at once: {}", several.join(", ")),
        )
        .hint("pass -f with the one it is")),
    }
}

/// The identity that a content has, and whose it is: what a child of it remembers. Contents that match several formats
/// have that of the first which knows one.
pub(crate) fn identity(storage: &dyn Storage) -> Option<(&'static dyn Format, [u8; 16])> {
    let mut head = vec![0; storage.len().ok()?.min(4096) as usize];
    storage.read_at(0, &mut head).ok()?;
    let claims = formats().iter().copied().filter(|format| format.probe(&head, storage) > Probe::Possible);
    claims.filter_map(|format| Some((format, format.identity(storage).ok()?.0?))).next()
}

/// Disk images of other kinds, by the signature at their front.
fn foreign(head: &[u8]) -> Option<&'static str> {
    let at =
        |offset: usize, signature: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(signature));
    if at(0, b"KDMV") || at(0, b"COWD") || at(0, b"# Disk DescriptorFile") {
        Some("a VMDK image")
    } else if at(0, b"QFI\xfb\0\0\0\x01") {
        Some("a QCOW (version 1) image")
    } else if at(0, b"QED\0") {
        Some("a QED image")
    } else if at(0x40, &[0x7f, 0x10, 0xda, 0xbe]) {
        Some("a VDI image")
    } else if at(0, b"WithoutFreeSpace") || at(0, b"WithouFreSpacExt") {
        Some("a Parallels image")
    } else {
        None
    }
}

/// Files that are no disks, by the signature at their front: what is packed in a way that is not read here, archives,
/// programs.
pub(crate) fn no_disk(head: &[u8]) -> Option<&'static str> {
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (0, b"\xfd7zXZ\0", "an xz file"),
        (0, b"BZh", "a bzip2 file"),
        (0, b"\x04\x22\x4d\x18", "an lz4 file"),
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"PK\x05\x06", "an empty zip archive"),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (0, b"Rar!\x1a\x07", "a rar archive"),
        (257, b"ustar", "a tar archive"),
        (0, b"!<arch>\n", "an ar archive or a Debian package"),
        (0, b"\xed\xab\xee\xdb", "an RPM package"),
        (0, b"\x7fELF", "a program or library (ELF)"),
    ];
    let at =
        |offset: usize, signature: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(signature));
    let known = SIGNATURES.iter().find(|(offset, signature, _)| at(*offset, signature));
    known.map(|(_, _, what)| *what).or_else(|| {
        // Windows' programs tell by their first two bytes that they may be one, and where the proof stands.
        let place = head.get(0x3c..0x40).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)?;
        let program = at(0, b"MZ") && at(usize::try_from(place).ok()?, b"PE\0\0");
        program.then_some("a program of Windows")
    })
}

/// What a guest's disk begins with, found in a file whose front belongs to a container format.
fn guest_signatures(head: &[u8], storage: &dyn Storage, len: u64) -> Result<Vec<&'static str>> {
    let mut found = Vec::new();
    let mut iso = [0; 5];
    if len > 32774 {
        storage.read_at(32769, &mut iso).map_err(|error| Error::io("cannot read its head", error))?;
    }
    if &iso == b"CD001" {
        found.push("iso");
    }
    if head.get(510..512) == Some(&[0x55, 0xaa]) {
        found.push("mbr");
    }
    Ok(found)
}
