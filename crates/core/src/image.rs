//! A chain of layers, read and written as one disk. The chain is walked here and nowhere else.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{Erase, Error, Extent, Kind, Layer, Prealloc, Result};

/// One layer of a chain, with what people call it.
#[derive(Clone, Debug)]
pub struct Link {
    /// The layer.
    pub layer: Arc<dyn Layer>,
    /// The file's name as it was given or found: for messages.
    pub name: String,
    /// The format's first name.
    pub format: &'static str,
}

/// What the chain has at some guest bytes, and which layer says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Guest bytes, at least 1.
    pub len: u64,
    /// `Hole` where no layer says anything (it reads zero).
    pub kind: Kind,
    /// The layer that decides, 0 being the top; for a `Hole` the last layer that is long enough to be asked.
    pub depth: usize,
    /// The bytes are stored compressed.
    pub compressed: bool,
    /// Where these bytes stand verbatim in that layer's [`Layer::host`].
    pub host: Option<u64>,
}

/// One for each bit of a `u64`.
const STRIPES: u64 = 64;

/// A chain of layers, top first, as one disk of the top's size. Any offset and length; it does the edges of unaligned
/// I/O. Past the end of a shorter parent the disk is zero.
#[derive(Debug)]
pub struct Image {
    links: Vec<Link>,
    /// One lock for every 64th granule. A write that fills a granule from below takes its lock alone, and so does what
    /// reveals a granule; every other write shares it. So no write falls between the filler's reading and writing, and
    /// none that found the granule there finds it gone.
    stripes: Vec<RwLock<()>>,
}

enum Held<'a> {
    Shared { _guards: Vec<RwLockReadGuard<'a, ()>> },
    Alone { _guards: Vec<RwLockWriteGuard<'a, ()>> },
}

impl Image {
    /// The disk that `links` make; the first is the top. Errors: no layer at all.
    pub fn new(links: Vec<Link>) -> Result<Image> {
        if links.is_empty() {
            return Err(Error::invalid("a disk needs at least one layer"));
        }
        Ok(Image { links, stripes: (0..STRIPES).map(|_| RwLock::new(())).collect() })
    }

    /// The layers, top first; at least one.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The top layer: what is written goes there.
    pub fn top(&self) -> &Link {
        &self.links[0] // never out of bounds: `new` refuses an empty chain
    }

    /// Guest bytes.
    pub fn size(&self) -> u64 {
        self.top().layer.size()
    }

    /// What people call the top layer's file.
    pub fn name(&self) -> &str {
        &self.top().name
    }

    /// The top layer's granule.
    pub fn granule(&self) -> u64 {
        self.top().layer.granule()
    }

    fn check_range(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {at} go past the end of the disk ({} bytes)",
                self.size()
            ))
            .image(self.name())),
        }
    }

    /// What the chain has at `at`, for at most `max` bytes; both must not be past the end, `max` not 0.
    pub fn extent(&self, at: u64, max: u64) -> Result<Mapped> {
        self.extent_above(at, max, self.links.len())
    }

    /// As [`Image::extent`], looking only at the first `depth` layers.
    pub fn extent_above(&self, at: u64, max: u64, depth: usize) -> Result<Mapped> {
        let mut len = max.min(self.size().saturating_sub(at));
        if len == 0 {
            self.check_range(at, max.max(1))?;
        }
        let links = &self.links[..depth.min(self.links.len())];
        for (depth, link) in links.iter().enumerate() {
            let size = link.layer.size();
            if at >= size {
                let depth = depth.saturating_sub(1);
                return Ok(Mapped { len, kind: Kind::Hole, depth, compressed: false, host: None });
            }
            let found = link.layer.extent(at, len.min(size - at)).map_err(|error| error.image(&link.name))?;
            let Extent { kind, compressed, host, .. } = found;
            len = found.len;
            if kind != Kind::Hole {
                return Ok(Mapped { len, kind, depth, compressed, host });
            }
        }
        Ok(Mapped {
            len,
            kind: Kind::Hole,
            depth: links.len().saturating_sub(1),
            compressed: false,
            host: None,
        })
    }

    /// Fills `buf` with the disk's bytes from `at` on. Errors: past the end; what a layer says.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.check_range(at, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            done += self.read_prefix(at + done as u64, &mut buf[done..])?;
        }
        Ok(())
    }

    fn read_prefix(&self, at: u64, buf: &mut [u8]) -> Result<usize> {
        let mut len = buf.len();
        for link in &self.links {
            let size = link.layer.size();
            if at >= size {
                break;
            }
            len = len.min(usize::try_from(size - at).unwrap_or(usize::MAX));
            let found = link.layer.read(at, &mut buf[..len]).map_err(|error| error.image(&link.name))?;
            len = found.len as usize;
            match found.kind {
                Kind::Data => return Ok(len),
                Kind::Zero => break,
                Kind::Hole => {}
            }
        }
        buf[..len].fill(0);
        Ok(len)
    }

    /// Writes all of `buf`. Part of a granule that the top does not have is filled up from below.
    pub fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_range(at, buf.len() as u64)?;
        if self.links.len() == 1 {
            return self.top().layer.write(at, buf).map_err(|error| error.image(self.name()));
        }
        let granule = self.granule();
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let left = (buf.len() - done) as u64;
            let in_granule = granule - here % granule;
            let whole =
                if here.is_multiple_of(granule) && left >= granule { left - left % granule } else { 0 };
            let n = if whole > 0 { whole } else { in_granule.min(left) };
            let piece = &buf[done..done + n as usize];
            if whole > 0 {
                let _held = self.share(here, n);
                self.top().layer.write(here, piece).map_err(|error| error.image(self.name()))?;
            } else {
                self.write_part(here, piece)?;
            }
            done += n as usize;
        }
        Ok(())
    }

    /// Writes part of one granule.
    fn write_part(&self, at: u64, buf: &[u8]) -> Result<()> {
        let granule = self.granule();
        let start = at - at % granule;
        let end = (start + granule).min(self.size());
        let named = |error: Error| error.image(self.name());
        let mut held = self.share(start, 1);
        if self.must_fill(start, end)? {
            drop(held);
            held = self.alone(start, 1);
            // Another writer may have filled it while no lock was held.
            if self.must_fill(start, end)? {
                let mut whole = vec![0; (end - start) as usize];
                self.read(start, &mut whole)?;
                let offset = (at - start) as usize;
                whole[offset..offset + buf.len()].copy_from_slice(buf);
                return self.top().layer.write(start, &whole).map_err(named);
            }
        }
        let done = self.top().layer.write(at, buf).map_err(named);
        drop(held);
        done
    }

    /// The top has nothing in the granule, and a layer below has data there.
    fn must_fill(&self, start: u64, end: u64) -> Result<bool> {
        let top = self.top();
        let mut at = start;
        while at < end {
            let found = top.layer.extent(at, end - at).map_err(|error| error.image(&top.name))?;
            if found.kind == Kind::Hole {
                let mut below = at;
                while below < at + found.len {
                    let mapped = self.extent(below, at + found.len - below)?;
                    if mapped.kind == Kind::Data {
                        return Ok(true);
                    }
                    below += mapped.len;
                }
            }
            at += found.len;
        }
        Ok(false)
    }

    /// The top says nothing of some of these bytes.
    fn has_hole(&self, start: u64, end: u64) -> Result<bool> {
        let top = self.top();
        let mut at = start;
        while at < end {
            let found = top.layer.extent(at, end - at).map_err(|error| error.image(&top.name))?;
            if found.kind == Kind::Hole {
                return Ok(true);
            }
            at += found.len;
        }
        Ok(false)
    }

    /// Writes whole granules compressed; see [`Layer::write_compressed`].
    pub fn write_compressed(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_range(at, buf.len() as u64)?;
        let _held = self.share(at, buf.len() as u64);
        self.top().layer.write_compressed(at, buf).map_err(|error| error.image(self.name()))
    }

    /// Takes guest bytes away. Where the top cannot say that, zeros are written (`Zero`, `Free`) or the bytes stay
    /// (`Reveal`).
    pub fn erase(&self, at: u64, len: u64, how: Erase) -> Result<()> {
        self.check_range(at, len)?;
        let granule = self.granule();
        let chunk = granule.clamp(65536, 2 << 20);
        let zeros = vec![0; chunk.min(len) as usize];
        let end = at + len;
        let mut here = at;
        while here < end {
            // A writer to part of a granule that the top has does not fill it: it must not become a hole meanwhile.
            let held = if how == Erase::Reveal {
                self.alone(here, end - here)
            } else {
                self.share(here, end - here)
            };
            let done =
                self.top().layer.erase(here, end - here, how).map_err(|error| error.image(self.name()))?;
            drop(held);
            if done > 0 {
                here += done;
            } else if how == Erase::Reveal {
                here += (granule - here % granule).min(end - here);
            } else {
                // Chunks end where chunks start, so that the next one may be what the top can take away whole.
                let found = self.extent(here, (chunk - here % chunk).min(end - here))?;
                if found.kind == Kind::Data {
                    self.write(here, &zeros[..found.len as usize])?;
                }
                here += found.len;
            }
        }
        Ok(())
    }

    /// Shares blocks of `src`; see [`Layer::write_from`]. The range must be whole granules, or the disk's tail.
    pub fn write_from(&self, at: u64, src: &dyn crate::Storage, src_at: u64, len: u64) -> Result<u64> {
        self.check_range(at, len)?;
        let _held = self.share(at, len);
        self.top().layer.write_from(at, src, src_at, len).map_err(|error| error.image(self.name()))
    }

    /// Changes the top's size. Where it grows over a longer parent, what is new reads zero, not the parent.
    pub fn resize(&self, size: u64, prealloc: Prealloc) -> Result<()> {
        let below = self.links[1..].iter().map(|link| link.layer.size()).max().unwrap_or(0);
        let old = self.size();
        let start = old - old % self.granule();
        let _held = self.alone(0, u64::MAX);
        if start < old && size > old && below > old && self.has_hole(start, old)? {
            // The last granule is cut by the old end: a layer cannot hide the parent behind that and show it before.
            // That the parent is zero before says nothing of what it is behind.
            let mut whole = vec![0; (old - start) as usize];
            self.read(start, &mut whole)?;
            self.top().layer.write(start, &whole).map_err(|error| error.image(self.name()))?;
        }
        self.top().layer.resize(size, prealloc, below).map_err(|error| error.image(self.name()))
    }

    /// A durable barrier on the top: all that was written before is there after a power cut.
    pub fn flush(&self) -> Result<()> {
        self.top().layer.flush().map_err(|error| error.image(self.name()))
    }

    /// Flushes and closes the top.
    pub fn close(&self) -> Result<()> {
        self.top().layer.close().map_err(|error| error.image(self.name()))
    }

    /// The stripes of a range's granules, in ascending order, which keeps two that lock several from waiting for each
    /// other. One layer alone is never filled: no lock.
    fn stripes(&self, at: u64, len: u64) -> impl Iterator<Item = &RwLock<()>> {
        let granule = self.granule();
        let (first, last) = (at / granule, at.saturating_add(len.saturating_sub(1)) / granule);
        let wanted = match last - first {
            _ if self.links.len() == 1 || len == 0 => 0,
            more if more >= STRIPES - 1 => u64::MAX,
            _ => (first..=last).fold(0, |bits, granule| bits | 1 << (granule % STRIPES)),
        };
        self.stripes
            .iter()
            .enumerate()
            .filter(move |(stripe, _)| wanted >> stripe & 1 == 1)
            .map(|(_, lock)| lock)
    }

    fn share(&self, at: u64, len: u64) -> Held<'_> {
        let guards =
            self.stripes(at, len).map(|stripe| stripe.read().unwrap_or_else(PoisonError::into_inner));
        Held::Shared { _guards: guards.collect() }
    }

    fn alone(&self, at: u64, len: u64) -> Held<'_> {
        let guards =
            self.stripes(at, len).map(|stripe| stripe.write().unwrap_or_else(PoisonError::into_inner));
        Held::Alone { _guards: guards.collect() }
    }
}
