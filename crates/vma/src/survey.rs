//! What an archive holds whose header is damaged: as its extents say.

use std::io::Read;

use cowhand_core::{ArchiveSource, ArchivedDisk, Error, Manifest, Result, Source};

use crate::header::{Header, clusters};
use crate::layout::{CLUSTER, LAST_DEVICE, MAX_CLUSTERS};
use crate::reader::{Reader, front};
use crate::window::Window;

/// Names, sizes and configurations are the header's where it tells them and the extents agree. A disk that the header does
/// not tell is `disk-N` after its device, and ends with the last cluster that is in the archive.
pub(crate) fn survey(input: &mut (dyn Read + Send)) -> Result<Manifest> {
    let mut window = Window::new(Box::new(input), 0);
    let (own, wrong) = front(&mut window)?;
    if let (Some(own), true) = (&own, wrong.is_empty()) {
        return Ok(own.manifest.clone());
    }
    let first = wrong.first().cloned();
    let own = own.unwrap_or_default();

    // Every device there can be, as large as it can be: what comes tells the rest.
    let mut all = Header { size: own.size, manifest: own.manifest.clone() };
    all.manifest.disks = (1..=LAST_DEVICE as u32).map(|number| device(&own.manifest, number)).collect();
    let mut reader = Reader::salvage(window, all, wrong)?;
    let before = reader.faults().count;
    while reader.next()?.is_some() {}
    let sound = reader.faults().count == before;

    let mut found = Manifest { id: reader.manifest().id, disks: Vec::new(), ..own.manifest.clone() };
    for (disk, seen) in reader.manifest().disks.iter().zip(reader.seen()) {
        let told = own.manifest.disks.iter().find(|told| told.number == disk.number);
        let end = seen.end();
        let mut whole = true;
        seen.gaps(end, &mut |_| {
            whole = false;
            Ok(())
        })?;
        let size = match told {
            // What is missing at its end cannot be told from a size that is damaged, but where nothing else is.
            Some(told) if clusters(told) == end || clusters(told) > end && !(sound && whole && end > 0) => {
                told.size
            }
            Some(told) if told.memory => told.size,
            _ => end * CLUSTER,
        };
        if size > 0 {
            found.disks.push(ArchivedDisk { size, ..disk.clone() });
        }
    }
    if found.disks.is_empty() && found.configs.is_empty() {
        let nothing = || Error::corrupt("archive", "nothing in it makes sense");
        return Err(first.map_or_else(nothing, Error::from).hint("and nothing behind it is an extent"));
    }
    Ok(found)
}

fn device(own: &Manifest, number: u32) -> ArchivedDisk {
    let size = MAX_CLUSTERS * CLUSTER;
    match own.disks.iter().find(|disk| disk.number == number) {
        Some(told) => ArchivedDisk { size, ..told.clone() },
        None => ArchivedDisk { number, name: format!("disk-{number}"), size, memory: false },
    }
}
