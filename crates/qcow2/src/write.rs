//! Writing guest bytes: in place where a cluster is this image's own, else to new clusters that are published after
//! their data is written.

use cowhand_core::{Error, Result, Storage};

use crate::alloc::Run;
use crate::entry::{Entry, Packed, Plain, Words};
use crate::layer::Qcow2Layer;
use crate::writer::{Freed, Writer};

/// What a write does with one cluster.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Guest cluster.
    cluster: u64,
    /// The bytes of it that are written.
    from: u64,
    to: u64,
    old: Entry,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// All subclusters touched hold data in a host cluster that is this image's own: the mapping stays.
    Over(u64),
    /// The host cluster is this image's own, the mapping changes.
    Into(u64),
    /// A new host cluster.
    New,
}

impl Part {
    fn host(&self) -> Option<u64> {
        match self.place {
            Place::Over(host) | Place::Into(host) => Some(host),
            Place::New => None,
        }
    }
}

impl Qcow2Layer {
    /// See `Layer::write`.
    pub(crate) fn write_at(&self, at: u64, buf: &[u8]) -> Result<()> {
        let writer = self.begin()?;
        self.check_range(at, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let bits = self.view.shared.geometry().cluster_bits();
        let clusters = at >> bits..=(at + buf.len() as u64 - 1) >> bits;
        {
            let _claim = writer.claims.take(clusters.clone(), false);
            self.check_range(at, buf.len() as u64)?;
            let _operation = writer.epochs.enter();
            self.record(writer, at, buf.len() as u64)?;
            let parts = self.parts(at, buf.len() as u64)?;
            if parts.iter().all(|part| matches!(part.place, Place::Over(_))) {
                return self.write_parts(writer, at, buf, &parts);
            }
        }
        let _claim = writer.claims.take(clusters, true);
        self.check_range(at, buf.len() as u64)?;
        let _operation = writer.epochs.enter();
        self.record(writer, at, buf.len() as u64)?;
        self.write_claimed(writer, at, buf)
    }

    /// Writes to clusters that the caller has claimed alone.
    pub(crate) fn write_claimed(&self, writer: &Writer, at: u64, buf: &[u8]) -> Result<()> {
        let bits = self.view.shared.geometry().cluster_bits();
        self.own_tables(writer, at >> bits, (at + buf.len() as u64 - 1) >> bits)?;
        let parts = self.parts(at, buf.len() as u64)?;
        self.write_parts(writer, at, buf, &parts)
    }

    /// What stands in the entries of guest clusters `first..=last`.
    pub(crate) fn entries(&self, first: u64, last: u64) -> Result<Vec<Entry>> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let words = geometry.entry_words();
        let mut entries = Vec::with_capacity((last - first + 1) as usize);
        let mut cluster = first;
        while cluster <= last {
            let left = (last - cluster + 1) as usize;
            match self.view.slice_of(cluster << geometry.cluster_bits())? {
                None => {
                    let n = left.min((geometry.l2_entries() - cluster % geometry.l2_entries()) as usize);
                    entries.extend(std::iter::repeat_n(Entry::Plain(Plain::default()), n));
                    cluster += n as u64;
                }
                Some((slice, index)) => {
                    let n = left.min(geometry.slice_entries() as usize - index);
                    shared.slices.look(shared.file.as_ref(), slice, |body| {
                        for index in index..index + n {
                            entries.push(
                                shared.entry(body.get(index, words), slice + (index * words * 8) as u64)?,
                            );
                        }
                        Ok::<_, Error>(())
                    })??;
                    cluster += n as u64;
                }
            }
        }
        Ok(entries)
    }

    fn parts(&self, at: u64, len: u64) -> Result<Vec<Part>> {
        let geometry = self.view.shared.geometry();
        let (bits, size) = (geometry.cluster_bits(), geometry.cluster_size());
        let (first, end) = (at >> bits, at + len);
        let entries = self.entries(first, (end - 1) >> bits)?;
        let part = |(cluster, old): (u64, Entry)| {
            let start = cluster << bits;
            let (from, to) = (at.max(start) - start, (end - start).min(size));
            let place = match old {
                Entry::Plain(Plain { host: Some(host), copied, data, .. })
                    if copied || self.view.shared.rules.data_file =>
                {
                    let touched = self.touched(from, to);
                    if data & touched == touched { Place::Over(host) } else { Place::Into(host) }
                }
                _ => Place::New,
            };
            Part { cluster, from, to, old, place }
        };
        Ok((first..).zip(entries).map(part).collect())
    }

    /// The subclusters that `from..to` of a cluster touches.
    fn touched(&self, from: u64, to: u64) -> u32 {
        let size = self.view.shared.geometry().subcluster_size();
        let (first, last) = (from / size, (to - 1) / size);
        ((1u64 << (last + 1)) - (1u64 << first)) as u32
    }

    fn write_parts(&self, writer: &Writer, at: u64, buf: &[u8], parts: &[Part]) -> Result<()> {
        let size = self.view.shared.geometry().cluster_size();
        // Runs that go to one place in the file: in place, or reserved together.
        let follows = |a: &Part, b: &Part| match (a.place, b.place) {
            (Place::New, Place::New) => true,
            (Place::Over(a), Place::Over(b)) | (Place::Into(a), Place::Into(b)) => a + size == b,
            _ => false,
        };
        for run in parts.chunk_by(follows) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let bits = self.view.shared.geometry().cluster_bits();
            let start = (first.cluster << bits) + first.from;
            let end = (last.cluster << bits) + last.to;
            let bytes = buf.get((start - at) as usize..(end - at) as usize).unwrap_or_default();
            match first.place {
                Place::Over(host) => self.view.shared.write_data(start, host + first.from, bytes)?,
                Place::Into(host) => {
                    self.write_run(host, false, run, bytes)?;
                    self.publish_run(writer, run, host)?;
                }
                Place::New if self.view.shared.rules.data_file => {
                    let host = first.cluster << bits;
                    self.write_run(host, false, run, bytes)?;
                    self.publish_run(writer, run, host)?;
                }
                Place::New => {
                    let (clusters, zero) = self.reserve(writer, run.len() as u64)?;
                    // What reads zero there is noise once it is decrypted.
                    let zero = zero && self.view.shared.crypt.is_none();
                    let host = clusters.start << bits;
                    if let Err(error) = self.write_run(host, zero, run, bytes) {
                        self.release(writer, clusters);
                        return Err(error);
                    }
                    // From here on an entry may refer to them: if this fails, they are lost rather than given out again.
                    self.publish_run(writer, run, host)?;
                }
            }
        }
        Ok(())
    }

    /// Writes `bytes` of a run of clusters to the host clusters from `host` on, which read zero if `zero`; and around
    /// them what the clusters must hold there.
    fn write_run(&self, host: u64, zero: bool, run: &[Part], bytes: &[u8]) -> Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let size = self.view.shared.geometry().cluster_size();
        let head = self.around(first, zero)?;
        let tail = if run.len() > 1 { self.around(last, zero)? } else { None };
        let shared = &self.view.shared;
        let guest = first.cluster << shared.geometry().cluster_bits();
        // `at`: from the run's start.
        let put = |at: u64, bytes: &[u8]| shared.write_data(guest + at, host + at, bytes);
        let last_at = (run.len() as u64 - 1) * size;
        if head.is_none() && tail.is_none() {
            return put(first.from, bytes);
        }
        let first_len = if head.is_some() { (first.to - first.from) as usize } else { 0 };
        let last_len = if tail.is_some() { (last.to - last.from) as usize } else { 0 };
        if let Some((start, mut cluster)) = head {
            let offset = (first.from - start) as usize;
            overlay(&mut cluster, offset, bytes.get(..first_len).unwrap_or_default());
            put(start, &cluster)?;
        }
        let middle = bytes.get(first_len..bytes.len() - last_len).unwrap_or_default();
        if !middle.is_empty() {
            put(if first_len > 0 { size } else { first.from }, middle)?;
        }
        if let Some((start, mut cluster)) = tail {
            let offset = (last.from - start) as usize;
            overlay(&mut cluster, offset, bytes.get(bytes.len() - last_len..).unwrap_or_default());
            put(last_at + start, &cluster)?;
        }
        Ok(())
    }

    /// What must be written around a part's bytes: where in the cluster it starts, and the bytes. `None`: nothing.
    fn around(&self, part: &Part, zero: bool) -> Result<Option<(u64, Vec<u8>)>> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let (size, sub) = (geometry.cluster_size(), geometry.subcluster_size());
        if part.from == 0 && part.to == size {
            return Ok(None);
        }
        match (part.old, part.host()) {
            (Entry::Compressed(packed), _) => {
                let mut cluster = vec![0; size as usize];
                shared.unpack(packed, &mut cluster)?;
                Ok(Some((0, cluster)))
            }
            // The old cluster stays with another; all it holds goes to the new one.
            (Entry::Plain(Plain { host: Some(old), data: data @ 1.., .. }), None) => {
                let mut cluster = vec![0; size as usize];
                let guest = part.cluster << geometry.cluster_bits();
                for (at, target) in (0u64..).step_by(sub as usize).zip(cluster.chunks_exact_mut(sub as usize))
                {
                    if data >> (at / sub) & 1 != 0 {
                        shared.read_data(guest + at, old + at, target)?;
                    }
                }
                Ok(Some((0, cluster)))
            }
            (Entry::Plain(plain), host) => {
                // Subclusters that are new are filled up with zeros, those with data are left.
                let kept = if host.is_some() { plain.data } else { 0 };
                let has = |at: u64| kept >> (at / sub) & 1 != 0;
                let start = if zero || has(part.from) { part.from } else { part.from / sub * sub };
                let end = if zero || has(part.to - 1) { part.to } else { part.to.next_multiple_of(sub) };
                if start == part.from && end == part.to {
                    return Ok(None);
                }
                Ok(Some((start, vec![0; (end - start) as usize])))
            }
        }
    }

    /// Makes the host clusters from `host` on those of a run.
    fn publish_run(&self, writer: &Writer, run: &[Part], host: u64) -> Result<()> {
        let Some(first) = run.first() else { return Ok(()) };
        let rules = self.view.shared.rules;
        let size = rules.geometry.cluster_size();
        let freed = run
            .iter()
            .filter(|part| part.place == Place::New)
            .filter_map(|part| self.freed_by(part.old))
            .collect();
        self.publish(writer, first.cluster, run.len() as u64, freed, |index, words| {
            let Some(part) = run.get(index as usize) else { return words };
            let touched = self.touched(part.from, part.to);
            let (data, zero) = match part.old {
                Entry::Compressed(_) => (rules.geometry.all_subclusters(), 0),
                Entry::Plain(plain) => (plain.data | touched, plain.zero & !touched),
            };
            rules.encode(Plain { host: Some(host + index * size), copied: true, data, zero })
        })
    }

    /// The host clusters that nothing refers to once an entry is gone.
    pub(crate) fn freed_by(&self, old: Entry) -> Option<Freed> {
        let bits = self.view.shared.geometry().cluster_bits();
        let run = match old {
            Entry::Compressed(Packed { at, len }) => at >> bits..((at + len - 1) >> bits) + 1,
            Entry::Plain(Plain { host: Some(host), .. }) if !self.view.shared.rules.data_file => {
                host >> bits..(host >> bits) + 1
            }
            Entry::Plain(_) => return None,
        };
        Some(Freed { run, punch: true })
    }

    /// See `Layer::write_from`.
    pub(crate) fn clone_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        let writer = self.begin()?;
        self.check_range(at, len)?;
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let (bits, size) = (geometry.cluster_bits(), geometry.cluster_size());
        let whole = if at + len == self.view.size() { len } else { len - len % size };
        if !at.is_multiple_of(size) || whole == 0 || shared.rules.data_file || shared.crypt.is_some() {
            return Ok(0);
        }
        let (first, last) = (at >> bits, (at + whole - 1) >> bits);
        let _claim = writer.claims.take(first..=last, true);
        self.check_range(at, len)?;
        let _operation = writer.epochs.enter();
        self.record(writer, at, whole)?;
        self.own_tables(writer, first, last)?;
        let old = self.entries(first, last)?;
        let (run, _) = self.reserve(writer, last - first + 1)?;
        let host = run.start << bits;
        let cloned = shared
            .data
            .copy_from(host, src, src_at, whole)
            .map_err(|error| Error::io("cannot share blocks", error).at(host));
        let done = match cloned {
            Ok(done) => done.min(whole),
            Err(error) => {
                self.release(writer, run);
                return Err(error);
            }
        };
        let clusters = if done == whole { last - first + 1 } else { done / size };
        self.release(writer, run.start + clusters..run.end);
        if clusters == 0 {
            return Ok(0);
        }
        self.publish_new(writer, first, &old, run.start..run.start + clusters)?;
        Ok((clusters * size).min(whole))
    }

    /// Makes reserved clusters those of the guest clusters from `first` on, whole.
    pub(crate) fn publish_new(&self, writer: &Writer, first: u64, old: &[Entry], run: Run) -> Result<()> {
        let rules = self.view.shared.rules;
        let bits = rules.geometry.cluster_bits();
        let count = run.end - run.start;
        let freed = old.iter().take(count as usize).filter_map(|old| self.freed_by(*old)).collect();
        let data = rules.geometry.all_subclusters();
        self.publish(writer, first, count, freed, |index, _| {
            rules.encode(Plain { host: Some((run.start + index) << bits), copied: true, data, zero: 0 })
        })
    }

    /// See `Layer::write_compressed`.
    pub(crate) fn write_packed(&self, at: u64, buf: &[u8]) -> Result<()> {
        let writer = self.begin()?;
        self.check_range(at, buf.len() as u64)?;
        let shared = &self.view.shared;
        if shared.crypt.is_some() {
            // It would stand there for all to read.
            return Err(Error::unsupported("Compression and encryption not supported at the same time")
                .hint("leave out -c"));
        }
        if shared.rules.data_file {
            return Err(Error::unsupported(
                "an image with an external data file cannot hold compressed data",
            )
            .hint("leave out -c"));
        }
        let geometry = shared.geometry();
        let (bits, size) = (geometry.cluster_bits(), geometry.cluster_size());
        let end = at + buf.len() as u64;
        if !at.is_multiple_of(size) || (!end.is_multiple_of(size) && end != self.view.size()) {
            return Err(Error::invalid(format!(
                "{} bytes at {at} are not whole clusters of {size}, which compressing needs",
                buf.len()
            )));
        }
        if buf.is_empty() {
            return Ok(());
        }
        let mut out = Vec::with_capacity(buf.len() / 2);
        // For each cluster where its compressed bytes are in `out`; `None`: it does not shrink.
        let mut pieces = Vec::with_capacity(buf.len().div_ceil(size as usize));
        for cluster in buf.chunks(size as usize) {
            let start = out.len();
            let smaller = if cluster.len() == size as usize {
                writer.deflater.deflate(cluster, &mut out)?
            } else {
                let mut padded = cluster.to_vec();
                padded.resize(size as usize, 0);
                writer.deflater.deflate(&padded, &mut out)?
            };
            pieces.push(smaller.then_some(start..out.len()));
        }
        let first = at >> bits;
        let last = (end - 1) >> bits;
        let _claim = writer.claims.take(first..=last, true);
        self.check_range(at, buf.len() as u64)?;
        let _operation = writer.epochs.enter();
        self.record(writer, at, buf.len() as u64)?;
        self.own_tables(writer, first, last)?;
        let packed: Vec<_> =
            (first..).zip(&pieces).filter_map(|(cluster, piece)| Some((cluster, piece.clone()?))).collect();
        self.put_packed(writer, &packed, &out)?;
        let mut index = 0;
        for run in pieces.chunk_by(|a, b| a.is_none() == b.is_none()) {
            let start = index * size as usize;
            index += run.len();
            if run.first().is_some_and(Option::is_none) {
                let bytes = buf.get(start..buf.len().min(index * size as usize)).unwrap_or_default();
                self.write_claimed(writer, at + start as u64, bytes)?;
            }
        }
        Ok(())
    }

    /// Stores compressed clusters: `packed` says which guest cluster stands where in `bytes`.
    fn put_packed(
        &self,
        writer: &Writer,
        packed: &[(u64, std::ops::Range<usize>)],
        bytes: &[u8],
    ) -> Result<()> {
        if packed.is_empty() {
            return Ok(());
        }
        let shared = &self.view.shared;
        let bits = shared.geometry().cluster_bits();
        let sizes: Vec<u64> = packed.iter().map(|(_, piece)| piece.len() as u64).collect();
        let places = self.reserve_packed(writer, &sizes)?.places;
        let release = || {
            for (place, size) in places.iter().zip(&sizes) {
                self.release(writer, place >> bits..((place + size - 1) >> bits) + 1);
            }
        };
        // Pieces stand without a gap, but where a counter is full: then a new cluster was begun.
        let all: Vec<_> = packed.iter().zip(&places).collect();
        let joined =
            |((_, a), at): &(&(u64, std::ops::Range<usize>), &u64),
             (_, b): &(&(u64, std::ops::Range<usize>), &u64)| *at + a.len() as u64 == **b;
        let written = all.chunk_by(joined).try_for_each(|run| {
            let (Some(((_, first), at)), Some(((_, last), _))) = (run.first(), run.last()) else {
                return Ok(());
            };
            let bytes = bytes.get(first.start..last.end).unwrap_or_default();
            shared
                .file
                .write_at(**at, bytes)
                .map_err(|error| Error::io("cannot write compressed data", error).at(**at))
        });
        let entries: Option<Vec<Words>> = places
            .iter()
            .zip(&sizes)
            .map(|(place, size)| shared.rules.encode_packed(*place, *size))
            .collect();
        let entries = written.and_then(|()| {
            entries.ok_or_else(|| {
                Error::unsupported("the image file is too large for more compressed clusters of this size")
            })
        });
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                release();
                return Err(error);
            }
        };
        let mut index = 0;
        for run in packed.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let (first, count) = (run.first().map_or(0, |(cluster, _)| *cluster), run.len());
            let old = self.entries(first, first + count as u64 - 1)?;
            let freed = old.into_iter().filter_map(|old| self.freed_by(old)).collect();
            let words = entries.get(index..index + count).unwrap_or_default();
            self.publish(writer, first, count as u64, freed, |at, old| {
                words.get(at as usize).copied().unwrap_or(old)
            })?;
            index += count;
        }
        Ok(())
    }
}

fn overlay(cluster: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(place) = cluster.get_mut(offset..offset + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
