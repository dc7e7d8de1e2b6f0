//! Making an image: header, refcount table, refcount block and L1 table in the first clusters, where other programs
//! look for them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use cowhand_core::{CreateOptions, Error, Prealloc, Resolver, Result, Storage};

use crate::alloc::{Allocator, Refused};
use crate::bitmaps::Tracker;
use crate::compress::Deflater;
use crate::crypt::{Crypt, NewCrypt};
use crate::extensions::CryptoAt;
use crate::header::{AUTOCLEAR_DATA_FILE_RAW, Header};
use crate::layer::Qcow2Layer;
use crate::measure::Layout;
use crate::options::Chosen;
use crate::prealloc::zero_out;
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
    let least = how.empty && chosen.prealloc == Prealloc::Off;
    let layout = if least { Layout::least(how.size, &chosen)? } else { Layout::new(how.size, &chosen)? };
    let size = layout.size;
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
    if let Some(crypt) = &chosen.crypt {
        crypt.secret(how)?;
        header.crypt_method = crypt.method();
        // Until the encryption header is there, this one says so and finds none.
        let pointer = crypt.header_len().map(|length| CryptoAt { offset: 0, length });
        header.extensions.set_crypto_header(pointer);
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

    let table_bytes = layout.table << bits;
    let mut alloc = Allocator::fresh(file.clone(), geometry, 1 << bits, (table_bytes / 8) as usize)?;
    let refused = |refused| match refused {
        Refused::Failed(error) => error,
        Refused::TableFull(_) => {
            Error::invalid("the image's tables do not fit: try using a larger cluster size")
        }
    };
    // The header and the refcount table; the first refcount block comes behind them.
    alloc.reserve(1 + layout.table).map_err(refused)?;
    header.refcount_table_offset = 1 << bits;
    header.refcount_table_clusters = layout.table as u32;
    header.l1_entries = geometry.l1_entries(size) as u32;
    if layout.l1 > 0 {
        header.l1_offset = alloc.reserve(layout.l1).map_err(refused)?.0.start << bits;
    }
    let mut crypto_at = 0;
    if layout.crypto > 0 {
        crypto_at = alloc.reserve(layout.crypto).map_err(refused)?.0.start << bits;
    }
    if !file.is_empty().map_err(failed)? {
        // A device keeps what it had.
        zero_out(file.as_ref(), crypto_at, layout.crypto << bits)?;
        zero_out(file.as_ref(), header.refcount_table_offset, table_bytes)?;
        zero_out(file.as_ref(), header.l1_offset, layout.l1 << bits)?;
    }
    if file.len().map_err(failed)? < layout.empty_len() {
        file.set_len(layout.empty_len()).map_err(failed)?;
    }
    file.write_at(0, &header.encode()?).map_err(failed)?;

    let l1 = L1 { at: header.l1_offset, entries: vec![0; header.l1_entries as usize] };
    let crypt = match &chosen.crypt {
        None => None,
        Some(new) => Some(encrypt(&file, crypto_at, &mut header, new, how)?),
    };
    let codec = header.codec;
    let tracker = Tracker::new(&header);
    let shared = Arc::new(Shared::new(file, data, crypt, header, 0, false));
    let view = View::new(shared, size, l1);
    let writer = Writer::new(alloc, Deflater::new(codec, chosen.level), how.fresh, true);
    let layer = Qcow2Layer { view, snapshots: Mutex::default(), writer: Some(writer), tracker };
    if let Some(writer) = layer.writer.as_ref().filter(|_| chosen.prealloc != Prealloc::Off) {
        // Over a parent the space is kept, and the parent shows.
        let data = if how.parent.is_some() { 0 } else { geometry.all_subclusters() };
        layer.preallocate(writer, 0..size, chosen.prealloc, data)?;
    }
    layer.write_first()?;
    Ok(layer)
}

/// Makes the key, and the full disk encryption header in clusters at `at` that read zero; then the image's header finds
/// it.
fn encrypt(
    file: &Arc<dyn Storage>,
    at: u64,
    header: &mut Header,
    new: &NewCrypt,
    how: &CreateOptions,
) -> Result<Crypt> {
    let crypt = new.create(file, at, how)?;
    if let Some(length) = new.header_len() {
        header.extensions.set_crypto_header(Some(CryptoAt { offset: at, length }));
        file.write_at(0, &header.encode()?).map_err(|error| Error::io("cannot make the image", error))?;
    }
    Ok(crypt)
}
