//! The names of the files that come out of an archive. What the archive calls things came from outside: it never leads
//! out of the folder, and no file takes another's place.

use std::collections::HashMap;

use cowhand_core::{Error, ErrorKind, Manifest, Result};

/// The longest name that file systems take, in bytes.
const LONGEST: usize = 255;
/// What is missing, beside what was salvaged.
pub(super) const MISSING: &str = "missing.json";

/// A file in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its name.
    pub(crate) file: String,
    /// It is not the one that the archive gives it.
    pub(crate) made_up: bool,
}

/// What the files are called.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Of each of [`Manifest::configs`].
    pub(crate) configs: Vec<Named>,
    /// Of each of [`Manifest::disks`] that becomes a file here.
    pub(crate) disks: Vec<Option<Named>>,
}

/// Names the files of an archive: its configurations as they are called, its disks `disk-NAME.EXTENSION`, a machine's
/// memory `vmstate.bin`. `wanted` says which disks become files. `salvage`: what cannot be a name, or is one already, gets
/// another; else it is an error.
pub(crate) fn names(
    what: &Manifest,
    wanted: impl Fn(usize) -> bool,
    extension: &str,
    salvage: bool,
) -> Result<Names> {
    let mut taken = Taken { by: HashMap::new(), salvage };
    if salvage {
        taken.by.insert(MISSING.to_owned(), "the list of what is missing".to_owned());
    }
    let mut names = Names::default();
    // The disks first: their names follow from a rule, so a configuration gives way.
    for (number, disk) in what.disks.iter().enumerate() {
        if !wanted(number) {
            names.disks.push(None);
            continue;
        }
        let (file, spare) = match disk.memory {
            true => ("vmstate.bin".to_owned(), format!("vmstate-{}.bin", disk.number)),
            false => (format!("disk-{}.{extension}", disk.name), format!("disk-{}.{extension}", disk.number)),
        };
        let whole = !disk.name.is_empty();
        let hint = "-d with the names of other disks leaves it out, --salvage gives it another name";
        names.disks.push(Some(taken.take(
            &format!("the disk '{}'", disk.name),
            file,
            whole,
            &spare,
            hint,
        )?));
    }
    for (number, config) in what.configs.iter().enumerate() {
        let (thing, spare) = (format!("the configuration '{}'", config.name), format!("config-{number}"));
        let hint = "--salvage gives it another name, and 'cowhand vma config' prints it";
        names.configs.push(taken.take(&thing, config.name.clone(), true, &spare, hint)?);
    }
    Ok(names)
}

/// Names that are taken, and by what.
struct Taken {
    by: HashMap<String, String>,
    salvage: bool,
}

impl Taken {
    /// `whole`: the archive gives the thing a name at all.
    fn take(&mut self, thing: &str, file: String, whole: bool, spare: &str, hint: &str) -> Result<Named> {
        let wrong = match why_not(&file) {
            _ if !whole => Some((ErrorKind::Corrupt, "has no name".to_owned())),
            Some(why) => Some((ErrorKind::Corrupt, format!("cannot be a file: {why}"))),
            None => {
                let by = self.by.get(&file);
                by.map(|by| (ErrorKind::Exists, format!("would become the file '{file}', as {by} does")))
            }
        };
        let file = match wrong {
            None => file,
            Some((kind, why)) if !self.salvage => {
                return Err(Error::new(kind, format!("{thing} {why}")).hint(hint));
            }
            Some(_) => return self.make_up(thing, spare),
        };
        self.by.insert(file.clone(), thing.to_owned());
        Ok(Named { file, made_up: false })
    }

    fn make_up(&mut self, thing: &str, spare: &str) -> Result<Named> {
        let spares = std::iter::once(spare.to_owned()).chain((2_u32..).map(|n| format!("{spare}-{n}")));
        for file in spares {
            if !self.by.contains_key(&file) {
                self.by.insert(file.clone(), thing.to_owned());
                return Ok(Named { file, made_up: true });
            }
        }
        Err(Error::corrupt("names", "there are too many of them")) // never: not so many names are taken
    }
}

/// Why a file in a folder cannot be called that.
fn why_not(file: &str) -> Option<&'static str> {
    match file {
        "" => Some("it has no name"),
        "." | ".." => Some("its name is that of a folder"),
        _ if file.contains('/') => Some("its name has a slash"),
        _ if file.contains('\0') => Some("its name has a NUL"),
        _ if file.len() > LONGEST => Some("its name is longer than 255 bytes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{ArchivedDisk, ConfigFile};

    fn manifest(configs: &[&str], disks: &[&str]) -> Manifest {
        let config = |name: &&str| ConfigFile { name: (*name).to_owned(), data: Vec::new() };
        let disk = |(number, name): (u32, &&str)| ArchivedDisk {
            number,
            name: (*name).to_owned(),
            size: 512,
            memory: *name == "vmstate",
        };
        Manifest {
            configs: configs.iter().map(config).collect(),
            disks: (1..).zip(disks).map(disk).collect(),
            ..Manifest::default()
        }
    }

    fn files(names: Names) -> Vec<String> {
        let all = names.configs.into_iter().chain(names.disks.into_iter().flatten());
        all.map(|named| named.file).collect()
    }

    #[test]
    fn files_are_named_as_the_existing_tool_names_them() {
        let what = manifest(&["qemu-server.conf", "qemu-server.fw"], &["drive-scsi0", "vmstate"]);
        let named = names(&what, |_| true, "raw", false).unwrap();
        assert!(named.configs.iter().all(|named| !named.made_up));
        assert_eq!(
            files(named),
            ["qemu-server.conf", "qemu-server.fw", "disk-drive-scsi0.raw", "vmstate.bin"]
        );
        assert_eq!(files(names(&what, |at| at == 1, "raw", false).unwrap()).len(), 3);
    }

    #[test]
    fn names_never_leave_the_folder_nor_meet() {
        let long = "x".repeat(250);
        let cases: [(&[&str], &[&str], &str); 13] = [
            (&["../x"], &[], "slash"),
            (&["/etc/passwd"], &[], "slash"),
            (&[".."], &[], "folder"),
            (&["."], &[], "folder"),
            (&[""], &[], "no name"),
            (&["a\0b"], &[], "NUL"),
            (&["a", "a"], &[], "would become"),
            (&["disk-a.raw"], &["a"], "would become"),
            (&["vmstate.bin"], &["vmstate"], "would become"),
            (&[], &["a", "a"], "would become"),
            (&[], &["../../a"], "slash"),
            (&[], &[""], "no name"),
            (&[], &[&long], "255"),
        ];
        for (configs, disks, part) in cases {
            let what = manifest(configs, disks);
            let error = names(&what, |_| true, "raw", false).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("--salvage"), "{error}");
            let files = files(names(&what, |_| true, "raw", true).unwrap());
            assert_eq!(files.len(), configs.len() + disks.len());
            for (at, file) in files.iter().enumerate() {
                assert_eq!(why_not(file), None);
                assert!(!files[..at].contains(file), "{files:?}");
            }
        }
        // A made-up name is nobody else's.
        let what = manifest(&["config-1", ".."], &[]);
        assert_eq!(files(names(&what, |_| true, "raw", true).unwrap()), ["config-1", "config-1-2"]);
        let what = manifest(&[MISSING], &[]);
        assert_eq!(files(names(&what, |_| true, "raw", true).unwrap()), ["config-0"]);
        assert_eq!(files(names(&what, |_| true, "raw", false).unwrap()), [MISSING]);
    }
}
