//! Reading guest bytes through a view.

use std::sync::Arc;

use cowhand_core::{Extent, Kind, Result};

use crate::entry::Packed;
use crate::view::{Found, Stretch, View};

/// Compressed bytes that are read from the file at once.
const SPAN: u64 = 1 << 20;

impl View {
    /// See `Layer::extent`.
    pub(crate) fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let stretch = self.stretch(at, max)?;
        self.within_file(extent(stretch))
    }

    /// See `Layer::read`.
    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        loop {
            let stretch = self.stretch(at, buf.len() as u64)?;
            match stretch.found {
                Found::Hole | Found::Zero(_) => {}
                Found::Data(host) => {
                    let found = buf.get_mut(..stretch.len as usize).unwrap_or_default();
                    self.shared.read_data(at, host, found)?;
                }
                Found::Compressed => {
                    let len =
                        self.read_compressed(at, buf.get_mut(..stretch.len as usize).unwrap_or_default())?;
                    if len == 0 {
                        // Somebody overwrote it between the two looks.
                        continue;
                    }
                    return Ok(extent(Stretch { len, ..stretch }));
                }
            }
            return self.within_file(extent(stretch));
        }
    }

    /// Names no host offset of bytes that the file does not have: it may end inside its last cluster. Nor of encrypted
    /// ones: what stands there are not the guest's.
    fn within_file(&self, extent: Extent) -> Result<Extent> {
        if self.shared.crypt.is_some() {
            return Ok(Extent { host: None, ..extent });
        }
        let Some(host) = extent.host else { return Ok(extent) };
        let there = self.shared.data_there(host, extent.len)?;
        Ok(match extent.kind {
            _ if there == extent.len => extent,
            Kind::Data if there > 0 => Extent { len: there, ..extent },
            _ => Extent { host: None, ..extent },
        })
    }

    /// Fills a prefix of `buf` from compressed clusters, and answers its length; 0 where none is compressed.
    fn read_compressed(&self, at: u64, buf: &mut [u8]) -> Result<u64> {
        let cluster = self.shared.geometry().cluster_size();
        let all = self.packed(at, at + buf.len() as u64)?;
        let span = together(&all);
        let Some(first) = all.first().copied() else { return Ok(0) };
        let skip = (at % cluster) as usize;
        if all.len() == 1 || skip != 0 || buf.len() < cluster as usize {
            // At the disk's end a cluster is longer than what is asked for, but nobody asks for the rest.
            let len = buf.len().min(cluster as usize - skip);
            let target = buf.get_mut(..len).unwrap_or_default();
            if len == cluster as usize {
                self.shared.unpack(first, target)?;
            } else {
                let whole = self.unpacked(first)?;
                target.copy_from_slice(whole.get(skip..skip + len).unwrap_or_default());
            }
            return Ok(len as u64);
        }
        let mut bytes = vec![0; (span.1 - first.at) as usize];
        self.shared.read_packed(first.at, &mut bytes)?;
        let mut done = 0;
        for (packed, target) in all.iter().take(span.0).zip(buf.chunks_exact_mut(cluster as usize)) {
            let start = (packed.at - first.at) as usize;
            let stored = bytes.get(start..start + packed.len as usize).unwrap_or_default();
            self.shared.inflater.inflate(stored, target).map_err(|error| error.at(packed.at))?;
            done += cluster;
        }
        Ok(done)
    }

    /// A whole inflated cluster.
    pub(crate) fn unpacked(&self, packed: Packed) -> Result<Arc<[u8]>> {
        if let Some(cluster) = self.shared.unpacked.get(packed) {
            return Ok(cluster);
        }
        let mut cluster = vec![0; self.shared.geometry().cluster_size() as usize];
        self.shared.unpack(packed, &mut cluster)?;
        let cluster: Arc<[u8]> = cluster.into();
        self.shared.unpacked.put(packed, cluster.clone());
        Ok(cluster)
    }
}

/// How many of the first clusters stand near each other, in order, and where the last of them ends.
fn together(all: &[Packed]) -> (usize, u64) {
    let Some(first) = all.first() else { return (0, 0) };
    let (mut count, mut end) = (1, first.at + first.len);
    for packed in all.iter().skip(1) {
        let near = packed.at >= first.at && packed.at <= end + 65536;
        if !near || packed.at + packed.len > first.at + SPAN {
            break;
        }
        count += 1;
        end = end.max(packed.at + packed.len);
    }
    (count, end)
}

fn extent(stretch: Stretch) -> Extent {
    let Stretch { len, found } = stretch;
    match found {
        Found::Hole => Extent::hole(len),
        Found::Zero(host) => Extent { host, ..Extent::zero(len) },
        Found::Data(host) => Extent::data(len, Some(host)),
        Found::Compressed => Extent { len, kind: Kind::Data, compressed: true, host: None },
    }
}
