//! Making an image: header, refcount table, refcount block and L1 table in the first clusters, where other programs
//! look for them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use cowhand_core::{CreateOptions, Error, Prealloc, Resolver, Result, Storage};

use crate::alloc::{Allocator, Refused};
use crate::compress::Deflater;
use crate::header::{AUTOCLEAR_DATA_FILE_RAW, Header};
use crate::layer::Qcow2Layer;
use crate::options::Chosen;
use crate::prealloc::zero_out;
use crate::resize::check_l1;
use crate::view::{L1, Shared, View};
use crate::writer::Writer;

pub(crate) fn create(
    file: Arc<dyn Storage>,
    files: &dyn Resolver,
    how: &CreateOptions,
) -> Result<Qcow2Layer> {
    let chosen = Chosen::from(how)?;
    let geometry = chosen.geometry;
    let bits = geometry.cluster_bits();
    // As QEMU: a disk is whole sectors.
    let size = how.size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
    check_l1(geometry, size)?;
    let mut header = Header::new(size, geometry, chosen.version, chosen.codec);
    header.lazy_refcounts = chosen.lazy_refcounts;
    header.name_parent(how.parent.as_ref())?;
    if let Some(name) = &chosen.data_file {
        header.has_data_file = true;
        header.extensions.set_data_file(Some(name.as_bytes()));
        if chosen.data_file_raw {
            header.autoclear |= AUTOCLEAR_DATA_FILE_RAW;
        }
    }
    // Whatever does not fit is found before a file is touched.
    header.encode()?;
    let failed = |error| Error::io("cannot make the image", error);
    let data = match &chosen.data_file {
        None => file.clone(),
        Some(name) => {
            let data = files.create(Path::new(name))?;
            data.set_len(size).map_err(failed)?;
            data
        }
    };
    if !file.is_empty().map_err(failed)? {
        file.set_len(0).map_err(failed)?;
    }

    let entries = geometry.cluster_size() as usize / 8;
    let mut alloc = Allocator::fresh(file.clone(), geometry, 1 << bits, entries)?;
    let refused = |refused| match refused {
        Refused::Failed(error) => error,
        Refused::TableFull(_) => {
            Error::invalid("the image's tables do not fit: try using a larger cluster size")
        }
    };
    // The header and the refcount table; the first refcount block comes behind them.
    alloc.reserve(2).map_err(refused)?;
    header.refcount_table_offset = 1 << bits;
    header.refcount_table_clusters = 1;
    header.l1_entries = geometry.l1_entries(size) as u32;
    let l1_bytes = u64::from(header.l1_entries) * 8;
    let l1_clusters = l1_bytes.div_ceil(geometry.cluster_size());
    let mut late_l1 = false;
    if l1_clusters > 0 {
        match alloc.reserve(l1_clusters) {
            Ok((run, _)) => header.l1_offset = run.start << bits,
            Err(Refused::TableFull(_)) => late_l1 = true,
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
    if late_l1 {
        // Tiny clusters: the first refcount table does not even cover the L1 table.
        file.write_at(0, &header.encode()?).map_err(failed)?;
        alloc.grow(l1_clusters, &|| Ok(()))?;
        header.l1_offset = alloc.reserve(l1_clusters).map_err(refused)?.0.start << bits;
        header.refcount_table_offset = alloc.table_at();
        let table = alloc.table_run();
        header.refcount_table_clusters = (table.end - table.start) as u32;
    }
    let l1_end = (header.l1_offset + l1_bytes).max(3 << bits);
    if file.len().map_err(failed)? < l1_end {
        file.set_len(l1_end).map_err(failed)?;
    }
    if file.len().map_err(failed)? > l1_end && !late_l1 {
        // A device keeps what it had.
        zero_out(file.as_ref(), header.l1_offset, l1_bytes)?;
    }
    file.write_at(0, &header.encode()?).map_err(failed)?;
    if !late_l1 {
        zero_out(file.as_ref(), header.refcount_table_offset, geometry.cluster_size())?;
    }

    let l1 = L1 { at: header.l1_offset, entries: vec![0; header.l1_entries as usize] };
    let codec = header.codec;
    let shared = Arc::new(Shared::new(file, data, header, 0, false));
    let view = View::new(shared, size, l1);
    let writer = Writer::new(alloc, Deflater::new(codec, chosen.level), how.fresh, true);
    let layer = Qcow2Layer { view, snapshots: Mutex::default(), writer: Some(writer) };
    if let Some(writer) = layer.writer.as_ref().filter(|_| chosen.prealloc != Prealloc::Off) {
        // Over a parent the space is kept, and the parent shows.
        let data = if how.parent.is_some() { 0 } else { geometry.all_subclusters() };
        layer.preallocate(writer, 0..size, chosen.prealloc, data)?;
    }
    layer.write_first()?;
    Ok(layer)
}
