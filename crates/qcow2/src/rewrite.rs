//! Rewriting the header and its extensions while they count. The first cluster is longer than what a disk writes whole,
//! so the change takes place with one write of its first sector; everything that sector leads to, before and after,
//! stands meanwhile in the others.

use std::sync::atomic::Ordering;

use cowhand_core::{Error, ParentRef, Result};

use crate::cache::read_to_end;
use crate::extensions::PREFIX;
use crate::header::{AUTOCLEAR_KNOWN, Header, Laid};
use crate::layer::Qcow2Layer;
use crate::writer::{Writer, lock};

/// What a disk writes whole, in bytes.
const SECTOR: usize = 512;

/// What the first cluster holds after each step from `old` to `new`, with a barrier behind each. Every step changes the
/// first sector alone, or others; whichever sectors of a step arrive, it is the old header or the new one. Errors: the
/// new header does not fit, or there is no room to change it safely.
fn steps(old: &Laid, new: &Header) -> Result<Vec<Vec<u8>>> {
    let last = new.lay_out(new.header_length())?;
    let sectors = old.bytes.chunks(SECTOR).zip(last.bytes.chunks(SECTOR));
    if sectors.filter(|(old, new)| old != new).count() <= 1 {
        return Ok(vec![last.bytes]);
    }
    if let Some(steps) = shift(old, &last) {
        return Ok(steps);
    }
    // Both use the same bytes, so the new one goes round over bytes that neither uses.
    let ends = old.used.iter().chain(&last.used).map(|range| range.end);
    let free = ends.max().unwrap_or(0).max(SECTOR).next_multiple_of(8);
    let no_room = || {
        Error::unsupported(
            "the first cluster has no room to change the header so that a power cut cannot harm it",
        )
        .hint("convert the image to one with a larger cluster_size")
    };
    if new.header_length() + PREFIX > SECTOR {
        return Err(no_room());
    }
    let round = new.lay_out(free).map_err(|_| no_room())?;
    let (Some(mut steps), Some(back)) = (shift(old, &round), shift(&round, &last)) else {
        return Err(no_room());
    };
    steps.extend(back);
    Ok(steps)
}

/// The steps from one layout to another whose bytes behind the first sector do not get into each other's way.
fn shift(old: &Laid, new: &Laid) -> Option<Vec<Vec<u8>>> {
    let mut both = new.bytes.clone();
    let mut taken = vec![false; both.len()];
    for range in &new.used {
        taken.get_mut(range.clone())?.fill(true);
    }
    for at in old.used.iter().cloned().flatten().filter(|at| *at >= SECTOR) {
        let (place, was) = (both.get_mut(at)?, *old.bytes.get(at)?);
        if taken.get(at).copied()? && *place != was {
            return None;
        }
        *place = was;
    }
    let mut before = both.clone();
    before.get_mut(..SECTOR)?.copy_from_slice(old.bytes.get(..SECTOR)?);
    Some(vec![before, both, new.bytes.clone()])
}

/// The runs of sectors in which both differ: where each starts, and what it holds in `new`.
fn differences<'a>(old: &[u8], new: &'a [u8]) -> Vec<(usize, &'a [u8])> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, (a, b)) in old.chunks(SECTOR).zip(new.chunks(SECTOR)).enumerate() {
        let at = index * SECTOR;
        match runs.last_mut() {
            _ if a == b => {}
            Some(run) if run.end == at => run.end += b.len(),
            _ => runs.push(at..at + b.len()),
        }
    }
    runs.into_iter().filter_map(|run| Some((run.start, new.get(run)?))).collect()
}

impl Qcow2Layer {
    /// Changes anything in the header, in memory and in the file, its extensions and the backing file's name too.
    /// Durable when it returns; a power cut leaves the old header or the new one. What else is to be durable before is
    /// the caller's matter, who holds no lock but claims. Errors: what `change` says; what does not fit, and the file
    /// is as it was then.
    pub(crate) fn rewrite_header(
        &self,
        writer: &Writer,
        change: impl FnOnce(&mut Header) -> Result<()>,
    ) -> Result<()> {
        let _order = lock(&writer.order);
        writer.check_failed()?;
        let file = self.view.shared.file.as_ref();
        let mut header = self.view.shared.header_mut();
        let mut new = header.clone();
        change(&mut new)?;
        // Who writes clears what it does not know to keep right.
        new.autoclear &= AUTOCLEAR_KNOWN;
        let mut bytes = vec![0; header.geometry.cluster_size() as usize];
        read_to_end(file, 0, &mut bytes).map_err(|error| Error::io("cannot read the header", error).at(0))?;
        let old = Laid::of(bytes)?;
        let steps = steps(&old, &new)?;
        let mut now = old.bytes;
        for next in steps {
            let runs = differences(&now, &next);
            if runs.is_empty() {
                continue;
            }
            let written = runs.iter().try_for_each(|(at, bytes)| {
                file.write_at(*at as u64, bytes)
                    .map_err(|error| Error::io("cannot write the header", error).at(*at as u64))
            });
            let done = written.and_then(|()| self.barrier(writer));
            if done.is_err() {
                // Which of both the file has is not known.
                writer.failed.store(true, Ordering::Relaxed);
            }
            done?;
            now = next;
        }
        *header = new;
        Ok(())
    }

    /// See `Layer::set_parent`.
    pub(crate) fn name_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        let (writer, _claim) = self.still()?;
        // What was written while the old parent lay below must not be lost after the name has changed.
        self.flush_all()?;
        self.rewrite_header(writer, |header| header.name_parent(parent))
    }

    /// See `Layer::set_hidden`.
    pub(crate) fn mark_hidden(&self, hidden: bool) -> Result<()> {
        let (writer, _claim) = self.still()?;
        if self.view.shared.header().hidden() == hidden {
            return Ok(());
        }
        self.rewrite_header(writer, |header| {
            header.extensions.set_hidden(hidden);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use cowhand_core::testing::Rng;
    use cowhand_core::{ErrorKind, MemoryStorage};

    use super::*;
    use crate::compress::Codec;
    use crate::extensions::BitmapsAt;
    use crate::geometry::Geometry;

    fn plain(bits: u32, version: u32) -> Header {
        let mut header = Header::new(0, Geometry::new(bits, false, 4), version, Codec::Zlib);
        header.refcount_table_offset = 1 << bits;
        header.refcount_table_clusters = 1;
        header
    }

    fn random(rng: &mut Rng, header: &mut Header) {
        let text = |rng: &mut Rng, most: u64| -> Vec<u8> {
            let len = 1 + rng.below(most);
            (0..len).map(|_| b'a' + rng.below(26) as u8).collect()
        };
        if rng.chance(1, 2) {
            let most = *rng.pick(&[10, 300, 1023]);
            header.backing = rng.chance(3, 4).then(|| text(rng, most));
        }
        if rng.chance(1, 2) {
            let name = String::from_utf8(text(rng, 8)).unwrap();
            header.extensions.set_backing_format(rng.chance(3, 4).then_some(name.as_str()));
        }
        if rng.chance(1, 3) {
            let bitmaps = BitmapsAt { count: 1, size: rng.any(), offset: rng.any() };
            header.extensions.set_bitmaps(rng.chance(1, 2).then_some(bitmaps));
        }
        if rng.chance(1, 3) {
            header.extensions.set_hidden(rng.chance(1, 2));
        }
        if rng.chance(1, 6) {
            let name = text(rng, 500);
            header.extensions.set_data_file(rng.chance(1, 2).then_some(&name));
        }
        if rng.chance(1, 6) {
            header.set_version(5 - header.version);
        }
    }

    fn read(bytes: &[u8]) -> Header {
        let mut file = bytes.to_vec();
        file.resize(2 * bytes.len(), 0);
        Header::read(&MemoryStorage::from_bytes(&file)).unwrap()
    }

    fn same(a: &Header, b: &Header) -> bool {
        format!("{a:?}") == format!("{b:?}")
    }

    /// Whichever sectors of a step arrive, the header is the old one or the new one, and the new one in the end.
    #[test]
    fn a_power_cut_leaves_one_header_or_the_other() {
        let mut rng = Rng::new(1);
        let (mut states, mut round, mut refused) = (0, 0, 0);
        for case in 0..1500 {
            let bits = *rng.pick(&[9, 10, 11, 12, 12, 13, 16]);
            let mut old = plain(bits, 2 + (case % 4).min(1));
            random(&mut rng, &mut old);
            let mut new = old.clone();
            random(&mut rng, &mut new);
            let Ok(mut file) = old.encode() else { continue };
            let steps = match steps(&Laid::of(file.clone()).unwrap(), &new) {
                Ok(steps) => steps,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported), "{error}");
                    refused += usize::from(error.kind() == ErrorKind::Unsupported);
                    continue;
                }
            };
            round += usize::from(steps.len() > 3);
            for next in &steps {
                let sectors: Vec<usize> = (0..file.len() / SECTOR)
                    .filter(|at| file[at * SECTOR..][..SECTOR] != next[at * SECTOR..][..SECTOR])
                    .collect();
                assert!(sectors.len() <= 12, "{sectors:?}");
                assert!(!sectors.contains(&0) || sectors.len() == 1);
                for kept in 0..1u32 << sectors.len() {
                    let mut torn = file.clone();
                    let arrived = sectors.iter().enumerate().filter(|(number, _)| kept >> number & 1 != 0);
                    for (_, at) in arrived {
                        let range = at * SECTOR..(at + 1) * SECTOR;
                        torn[range.clone()].copy_from_slice(&next[range]);
                    }
                    let found = read(&torn);
                    assert!(
                        same(&found, &old) || same(&found, &new),
                        "{found:?}\nis not\n{old:?}\nnor\n{new:?}"
                    );
                    states += 1;
                }
                file.clone_from(next);
            }
            assert_eq!(file, new.encode().unwrap());
        }
        assert!(
            states > 3000 && round > 100 && refused > 5,
            "{states} states, {round} went round, {refused} refused"
        );
    }

    /// After a power cut on the way round, the next change finds its way too.
    #[test]
    fn a_header_that_went_half_way_round_is_changed_as_any() {
        let mut old = plain(12, 3);
        old.backing = Some(vec![b'a'; 500]);
        let mut new = old.clone();
        new.backing = Some(vec![b'b'; 400]);
        let steps = steps(&Laid::of(old.encode().unwrap()).unwrap(), &new).unwrap();
        assert!(steps.len() > 3);
        for half in &steps {
            let mut last = read(half);
            assert!(same(&last, &old) || same(&last, &new));
            last.extensions.set_hidden(true);
            let steps = super::steps(&Laid::of(half.clone()).unwrap(), &last).unwrap();
            assert_eq!(steps.last().unwrap(), &last.encode().unwrap());
        }
    }

    #[test]
    fn fields_that_mean_nothing_here_are_kept() {
        let mut bytes = plain(16, 3).encode().unwrap();
        // A longer header, and an unknown compatible feature.
        let extensions = bytes[112..].to_vec();
        bytes[103] = 128;
        bytes[112..128].copy_from_slice(b"sixteen more....");
        bytes[80] = 0x80;
        bytes.splice(128.., extensions);
        bytes.truncate(65536);
        let mut header = read(&bytes);
        assert_eq!(header.encode().unwrap(), bytes);
        header.extensions.set_hidden(true);
        let changed = header.encode().unwrap();
        assert_eq!(changed[..128], bytes[..128]);
        assert!(read(&changed).hidden());
    }
}
