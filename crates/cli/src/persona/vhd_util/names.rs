//! Names of images: what a parent's name leads to, and what logical volumes are called.

use std::path::{Path, PathBuf};

use cowhand::Info;

/// Where device nodes of logical volumes stand: `/dev/GROUP/VOLUME`, and under the device mapper's names.
const DEVICES: &str = "/dev";
const MAPPER: &str = "/dev/mapper";

/// The name that is written into images and printed: absolute, with links resolved, but for logical volumes, which keep
/// the device mapper's name.
pub(super) fn canonical(path: &Path) -> PathBuf {
    mapper_name(path)
        .map(|name| Path::new(MAPPER).join(name))
        .filter(|mapped| mapped.exists())
        .or_else(|| path.starts_with(MAPPER).then(|| path.to_owned()))
        .or_else(|| std::fs::canonicalize(path).ok())
        .unwrap_or_else(|| path.to_owned())
}

/// What the device mapper calls `/dev/GROUP/VOLUME`: dashes are doubled, and one stands between the two.
fn mapper_name(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(DEVICES).ok()?;
    let mut parts = inside.iter().map(|part| part.to_str());
    let (group, volume) = (parts.next()??, parts.next()??);
    let double = |name: &str| name.replace('-', "--");
    (parts.next().is_none() && group != "mapper").then(|| format!("{}-{}", double(group), double(volume)))
}

/// The logical volume that a parent's name means: the last part of a device mapper's name, or of a path.
pub(super) fn volume(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    if !name.contains("--") {
        return name.to_owned();
    }
    // Marked apart from the single dash between group and volume.
    let marked = name.replace("--", "\0");
    marked.rsplit('-').next().unwrap_or_default().replace('\0', "-")
}

/// The file that an image's parent is: the first of the names it gives that is there. `None`: none is.
pub(super) fn parent_of(image: &Path, info: &Info) -> Option<PathBuf> {
    let image = canonical(image);
    let folder = image.parent()?;
    let names = &info.parent.as_ref()?.candidates;
    names.iter().map(|name| folder.join(name)).find(|path| path.exists()).map(|path| canonical(&path))
}

/// A fact of the format's that is text.
pub(super) fn fact(info: &Info, name: &str) -> Option<String> {
    info.details.specific.get(name)?.as_str().map(str::to_owned)
}

/// A fact of the format's that is a number.
pub(super) fn count(info: &Info, name: &str) -> Option<u64> {
    info.details.specific.get(name)?.as_u64()
}

/// The mark that hides it from lists, which is a number here.
pub(super) fn hidden(info: &Info) -> u64 {
    count(info, "hidden").unwrap_or(u64::from(info.hidden == Some(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_volumes_have_two_names() {
        let group = "VG_XenStorage-0a-1b";
        assert_eq!(
            mapper_name(Path::new(&format!("/dev/{group}/VHD-2c-3d"))).as_deref(),
            Some("VG_XenStorage--0a--1b-VHD--2c--3d")
        );
        assert_eq!(mapper_name(Path::new("/dev/sda")), None);
        assert_eq!(mapper_name(Path::new("/dev/mapper/a-b")), None);
        for (name, wanted) in [
            ("VG_XenStorage--0a--1b-VHD--2c--3d", "VHD-2c-3d"),
            ("./VG_XenStorage--0a--1b-VHD--2c--3d", "VHD-2c-3d"),
            ("/dev/VG/VHD-2c-3d", "VHD-2c-3d"),
            ("VHD-2c-3d-4e", "VHD-2c-3d-4e"),
            ("base.vhd", "base.vhd"),
        ] {
            assert_eq!(volume(name), wanted);
        }
    }
}
