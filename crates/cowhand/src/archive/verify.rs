//! `verify`: everything that is wrong with an archive, found in one pass.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cowhand_core::{
    ArchiveFaults, ErrorKind, Fault, Manifest, Printable, Progress, Reading, Result, Severity,
};
use serde_json::{Value, json};

use super::input::{self, Input};
use super::naming;
use super::ranges::{Ranges, fault_json};
use super::{Digester, Digests, Onlooker, Tally};
use crate::registry;
use crate::stream::From;

/// How an archive is verified.
#[derive(Clone, Debug, Default)]
pub struct VerifyArchive {
    /// The archive's format; `None`: by its content.
    pub archive: Option<String>,
    /// Where the digests stand that its disks are compared with.
    pub digests: Option<PathBuf>,
    /// Also whether Proxmox can restore it: the file's name, and where its configuration says that the disks belong.
    pub restorable: bool,
    /// The first thing that is wrong is an error, and nothing behind it is read.
    pub strict: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifiedArchive {
    /// What people call the file.
    pub name: String,
    /// The archive's format.
    pub format: &'static str,
    /// How the file is packed, where it is.
    pub packing: Option<&'static str>,
    /// The archive's [`Manifest::id`], as its format spells it; empty where it has no front.
    pub uuid: String,
    /// Bytes of the archive, unpacked.
    pub len: u64,
    /// Its configurations.
    pub configs: usize,
    /// Its disks.
    pub disks: Vec<VerifiedDisk>,
    /// What is wrong with it.
    pub faults: ArchiveFaults,
    /// What is unusual, and no fault.
    pub notes: Vec<String>,
    /// Its disks were compared with digests.
    pub digested: bool,
    /// How much went by.
    pub tally: Tally,
}

/// A disk of an archive that was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifiedDisk {
    /// The archive's own number for it.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Guest bytes.
    pub size: u64,
    /// What the archive lacks.
    pub missing: Ranges,
    /// What is not what its digest was made of.
    pub differing: Ranges,
}

impl VerifiedArchive {
    /// Nothing is wrong with it.
    pub fn is_sound(&self) -> bool {
        let whole = |disk: &VerifiedDisk| disk.missing.count == 0 && disk.differing.count == 0;
        self.faults.count == 0 && self.disks.iter().all(whole)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let disk = |disk: &VerifiedDisk| {
            json!({
                "dev-id": disk.number,
                "name": disk.name,
                "size": disk.size,
                "missing": disk.missing.to_json(),
                "differing": disk.differing.to_json(),
            })
        };
        json!({
            "filename": self.name,
            "format": self.format,
            "packing": self.packing,
            "uuid": self.uuid,
            "sound": self.is_sound(),
            "archive-length": self.len,
            "configs": self.configs,
            "disks": self.disks.iter().map(disk).collect::<Vec<_>>(),
            "fault-count": self.faults.count,
            "faults": self.faults.list.iter().map(fault_json).collect::<Vec<_>>(),
            "notes": self.notes,
            "digests": self.digested,
            "bytes-read": self.tally.read,
            "zero-bytes": self.tally.zero + self.tally.partial,
        })
    }

    fn fault(&mut self, message: String) {
        self.faults.add(Fault::new(Severity::Corruption, None, message));
    }
}

/// Reads an archive to its end, and tells everything that is wrong with it. Errors: it cannot be read at all.
pub fn verify_archive(
    from: From<'_>,
    how: &VerifyArchive,
    onlooker: &mut dyn Onlooker,
    progress: &dyn Progress,
) -> Result<VerifiedArchive> {
    let path = match &from {
        From::File(path) => Some(*path),
        From::Bytes(_) => None,
    };
    let named = input::name(&from);
    let reading = if how.strict { Reading::Strict } else { Reading::Salvage };
    let input = match input::open(from, how.archive.as_deref(), reading, progress) {
        Ok(input) => input,
        Err(error) if error.kind() == ErrorKind::Corrupt && !how.strict => {
            // Nothing in it makes sense.
            let mut found = VerifiedArchive { name: named, ..VerifiedArchive::default() };
            let at = error.offset();
            let message = error.to_string();
            let message =
                message.strip_prefix(&format!("{}: ", Printable(&found.name))).unwrap_or(&message).to_owned();
            found.faults.add(Fault::new(Severity::Corruption, at, message));
            return Ok(found);
        }
        Err(error) => return Err(error),
    };
    let Input { name, format, packing, mut source, .. } = input;
    let failed = |error: cowhand_core::Error| error.image(&name);
    let what = source.manifest().clone();
    onlooker.front(&what)?;
    let mut found = VerifiedArchive {
        name: name.clone(),
        format,
        packing,
        uuid: registry::format(format)?.spell(what.id),
        configs: what.configs.len(),
        notes: notes(&what),
        ..VerifiedArchive::default()
    };
    // Digests that cannot be used are a fault as any other: what they say of the archive is not known.
    let mut told = Vec::new();
    let digests = how.digests.as_deref().and_then(|path| {
        let read = Digests::read(path).and_then(|digests| digests.belong_to(&what).map(|()| digests));
        read.map_err(|error| told.push(error.to_string())).ok()
    });
    let digester = digests.as_ref().map(|_| Digester::new(&what));

    let mut tally = Tally::of(what.disks.iter().map(|disk| disk.size));
    let mut shown = 0;
    while let Some(chunk) = source.next().map_err(failed)? {
        let size = what.disks.get(chunk.disk as usize).map_or(0, |disk| disk.size);
        tally.add(size, chunk.at, chunk.body);
        if let Some(digester) = &digester {
            digester.add(chunk.disk, chunk.at, chunk.body)?;
        }
        if tally.percent() != shown {
            shown = tally.percent();
            onlooker.passed(&tally)?;
        }
    }
    found.tally = tally;
    found.len = source.position();
    found.faults = source.faults().clone();
    for (number, disk) in (0..).zip(&what.disks) {
        let mut missing = Ranges::default();
        source.missing(number, &mut |range| {
            if let Some(digester) = &digester {
                digester.lost(number, range.clone())?;
            }
            missing.add(range);
            Ok(())
        })?;
        let (name, size) = (disk.name.clone(), disk.size);
        found.disks.push(VerifiedDisk {
            number: disk.number,
            name,
            size,
            missing,
            differing: Ranges::default(),
        });
    }
    if let (Some(digests), Some(digester)) = (digests, digester) {
        found.digested = true;
        for differing in digests.differing(&digester.finish())? {
            if let Some(disk) = found.disks.get_mut(differing.disk as usize) {
                disk.differing.add(differing.range);
            }
        }
    }
    told.into_iter().for_each(|message| found.fault(message));
    if how.restorable
        && let Err(error) = naming::check_restorable(path, &what)
    {
        found.fault(format!("Proxmox cannot restore it: {error}"));
    }
    Ok(found)
}

/// What is unusual in an archive's front.
fn notes(what: &Manifest) -> Vec<String> {
    let mut notes = Vec::new();
    let mut twice = |of: &str, names: &mut dyn Iterator<Item = &String>| {
        let (mut once, mut again) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            if !once.insert(name) && again.insert(name) {
                notes.push(format!("several {of} bear the name '{}'", Printable(name)));
            }
        }
    };
    twice("disks", &mut what.disks.iter().map(|disk| &disk.name));
    twice("configurations", &mut what.configs.iter().map(|config| &config.name));
    notes
}
