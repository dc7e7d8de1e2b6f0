//! An archive written from front to back: any sequence of writes in, every cluster of every disk listed once.

mod clusters;
mod extents;
mod front;
mod sink;
mod waiting;

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::time::SystemTime;

use cowhand_core::{Error, Result};

use self::clusters::Clusters;
use self::extents::Extents;
use self::front::Front;
pub(crate) use self::sink::write;
use self::waiting::Waiting;
use crate::layout::{CLUSTER, VMSTATE};

/// What tells one archive from another. With both given, equal calls make equal bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterOptions {
    /// 16 raw bytes, repeated in every extent; `None`: random ones.
    pub uuid: Option<[u8; 16]>,
    /// When it was made, in seconds since 1970, UTC; `None`: now.
    pub time: Option<i64>,
}

/// One disk of an archive that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(usize);

/// Writes an archive into anything that takes bytes in order; it is never gone back in.
///
/// Configurations and streams come first, the writes after. A stream is a disk, or a machine's memory where its name is
/// `vmstate`. What is written is taken in any order and of any alignment. Clusters (64 KiB) that are whole go out at
/// once; parts of clusters wait for the rest, at most 32 MiB of them: then the one that waits longest goes out with zeros
/// for what did not come. What waits may be written over, a cluster that is out cannot. What never came is zero.
///
/// Memory is for readers that take it as it comes: it is written in order, and its zeros are too.
///
/// Beside these 32 MiB it holds 4 KiB for each 2 GiB of a disk of which some clusters are out, and 5 MiB.
pub struct VmaWriter<W: Write> {
    front: Front,
    extents: Extents<W>,
    streams: Vec<Stream>,
    waiting: Waiting,
    begun: bool,
    /// Something could not be written, so what follows would be no archive.
    broken: bool,
}

#[derive(Debug)]
struct Stream {
    dev_id: u8,
    name: String,
    size: u64,
    memory: bool,
    /// Clusters that are out.
    out: Clusters,
    /// Those of them that went before all of them had come.
    early: Clusters,
    /// Guest bytes that are zero, of clusters that are out.
    zeros: u64,
    /// Where the last write ended.
    end: u64,
}

impl Stream {
    fn clusters(&self) -> u64 {
        self.size.div_ceil(CLUSTER)
    }

    /// Guest bytes of that cluster, which there is.
    fn len(&self, cluster: u64) -> usize {
        (self.size - cluster * CLUSTER).min(CLUSTER) as usize
    }
}

impl<W: Write> fmt::Debug for VmaWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VmaWriter { streams, begun, broken, .. } = self;
        write!(f, "VmaWriter {{ streams: {streams:?}, begun: {begun}, broken: {broken} }}")
    }
}

impl<W: Write> VmaWriter<W> {
    /// An archive that goes into `sink`. Nothing is written yet.
    pub fn new(sink: W, options: WriterOptions) -> VmaWriter<W> {
        let uuid = options.uuid.unwrap_or_else(|| uuid::Uuid::new_v4().into_bytes());
        let now = || {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
        };
        VmaWriter {
            front: Front::new(uuid, options.time.unwrap_or_else(now)),
            extents: Extents::new(sink, uuid),
            streams: Vec::new(),
            waiting: Waiting::default(),
            begun: false,
            broken: false,
        }
    }

    /// Puts a file beside the disks: a machine's configuration. Errors: the name is empty, is there already, or cannot be
    /// a file's; the data is longer than 65535 bytes; there are 256; the header would be longer than 512 KiB; something
    /// was written.
    pub fn add_config(&mut self, name: &str, data: &[u8]) -> Result<()> {
        self.not_begun("a configuration")?;
        self.front.add_config(name, data)
    }

    /// Adds a disk of `size` guest bytes, or a machine's memory if it is called `vmstate`. Errors: as with
    /// [`VmaWriter::add_config`]; there are 254; the size is 0 or more than 256 TiB.
    pub fn add_stream(&mut self, name: &str, size: u64) -> Result<StreamId> {
        self.add_numbered(0, name, size)
    }

    /// As [`VmaWriter::add_stream`], with the device number `number`, which is higher than all before; 0: the next.
    fn add_numbered(&mut self, number: u32, name: &str, size: u64) -> Result<StreamId> {
        self.not_begun("a stream")?;
        let dev_id = self.front.add_stream(number, name, size)?;
        self.streams.push(Stream {
            dev_id,
            name: name.to_owned(),
            size,
            memory: name == VMSTATE,
            out: Clusters::default(),
            early: Clusters::default(),
            zeros: 0,
            end: 0,
        });
        Ok(StreamId(self.streams.len() - 1))
    }

    /// Takes guest bytes from `offset` on. Errors: they reach past the stream's end, or into a cluster that is out, or
    /// memory does not come in order: then none of them was taken; or they cannot be written, and then the archive is lost.
    pub fn write(&mut self, stream: StreamId, offset: u64, data: &[u8]) -> Result<()> {
        self.put(stream, offset, data.len() as u64, Some(data))
    }

    /// Takes `len` guest bytes that are zero. A stretch of whole clusters costs next to nothing, however long it is.
    /// Errors: as with [`VmaWriter::write`].
    pub fn write_zeros(&mut self, stream: StreamId, offset: u64, len: u64) -> Result<()> {
        self.put(stream, offset, len, None)
    }

    /// Guest bytes of the stream that are zero and not in the archive, so far.
    pub fn zeros(&self, stream: StreamId) -> u64 {
        self.streams.get(stream.0).map_or(0, |stream| stream.zeros)
    }

    /// Says that what never came is zero, writes what waits, and flushes. Gives the sink back.
    pub fn close(mut self) -> Result<W> {
        self.sound()?;
        self.begin();
        for index in 0..self.streams.len() {
            self.rest(index)?;
        }
        self.extents.finish()
    }

    fn not_begun(&self, what: &str) -> Result<()> {
        if self.begun {
            return Err(Error::invalid(format!(
                "{what} was added after the first write, and the header is written"
            ))
            .hint("add all configurations and streams first"));
        }
        Ok(())
    }

    fn sound(&self) -> Result<()> {
        if self.broken {
            return Err(Error::new(
                cowhand_core::ErrorKind::Io,
                "an earlier write failed, so this archive cannot be ended",
            ));
        }
        Ok(())
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.extents.raw(&self.front.to_bytes());
        }
    }

    fn stream(&self, index: usize) -> Result<&Stream> {
        self.streams.get(index).ok_or_else(|| Error::invalid("the stream is another archive's"))
    }

    fn put(&mut self, stream: StreamId, offset: u64, len: u64, data: Option<&[u8]>) -> Result<()> {
        self.sound()?;
        let StreamId(index) = stream;
        let found = self.stream(index)?;
        let end = offset.checked_add(len).filter(|end| *end <= found.size).ok_or_else(|| {
            Error::invalid(format!(
                "{len} bytes at {offset} reach past the end of stream '{}', which has {}",
                found.name, found.size
            ))
        })?;
        if len == 0 {
            return Ok(());
        }
        if let Some(cluster) = found.out.first_in(offset / CLUSTER..end.div_ceil(CLUSTER)) {
            return Err(written_before(found, cluster));
        }
        let gap = found.end..offset;
        if found.memory && offset < gap.start {
            return Err(Error::invalid(format!(
                "stream '{VMSTATE}' comes in order: {offset} is before {}, where the last write ended",
                gap.start
            )));
        }
        let in_between = found.memory && !gap.is_empty();
        self.begin();
        let mut done = Ok(());
        if in_between {
            done = self.take(index, gap, None);
        }
        done = done.and_then(|()| self.take(index, offset..end, data));
        self.broken = done.is_err();
        done
    }

    /// Takes what was found to be in order.
    fn take(&mut self, index: usize, guest: Range<u64>, data: Option<&[u8]>) -> Result<()> {
        let part = |from: u64, to: u64| {
            // Never out of bounds: both lie within `guest`, which is as long as the data.
            data.map(|data| &data[(from - guest.start) as usize..(to - guest.start) as usize])
        };
        let size = self.stream(index)?.size;
        // Where the last cluster that came whole ends; the last of all may be short.
        let whole = if guest.end == size { size.div_ceil(CLUSTER) } else { guest.end / CLUSTER };
        let mut at = guest.start;
        while at < guest.end {
            let cluster = at / CLUSTER;
            let until = self.waiting.next_in(index, cluster..whole).unwrap_or(whole);
            let end = if at.is_multiple_of(CLUSTER) && until > cluster {
                let end = (until * CLUSTER).min(guest.end);
                self.out(index, cluster..until, part(at, end))?;
                end
            } else {
                let end = ((cluster + 1) * CLUSTER).min(guest.end);
                self.make_room(index, cluster, &guest)?;
                let (start, len) = (cluster * CLUSTER, self.stream(index)?.len(cluster));
                let within = (at - start) as usize..(end - start) as usize;
                if self.waiting.add(index, cluster, len, within, part(at, end)) {
                    self.as_it_is(index, cluster)?;
                }
                end
            };
            at = end;
        }
        if let Some(stream) = self.streams.get_mut(index) {
            stream.end = guest.end;
        }
        Ok(())
    }

    /// Makes room for one more cluster that waits, if it does not yet: by none of `guest`, whose rest may be coming just
    /// now, and by none of memory, which could not go on behind it.
    fn make_room(&mut self, index: usize, cluster: u64, guest: &Range<u64>) -> Result<()> {
        if !self.waiting.is_full() || self.waiting.has(index, cluster) {
            return Ok(());
        }
        let own = guest.start / CLUSTER..guest.end.div_ceil(CLUSTER);
        let oldest = self.waiting.oldest(|stream, cluster| {
            let memory = self.streams.get(stream).is_some_and(|stream| stream.memory);
            !memory && (stream != index || !own.contains(&cluster))
        });
        if let Some((index, cluster)) = oldest {
            self.as_it_is(index, cluster)?;
            if let Some(stream) = self.streams.get_mut(index) {
                stream.early.insert(cluster..cluster + 1);
            }
        }
        Ok(())
    }

    /// Writes a cluster of which nothing more will come.
    fn as_it_is(&mut self, index: usize, cluster: u64) -> Result<()> {
        let len = self.stream(index)?.len(cluster);
        match self.waiting.take(index, cluster) {
            Some(bytes) => self.out(index, cluster..cluster + 1, Some(bytes.get(..len).unwrap_or(&bytes))),
            None => self.out(index, cluster..cluster + 1, None),
        }
    }

    /// Writes all that is not out.
    fn rest(&mut self, index: usize) -> Result<()> {
        let Stream { memory, end, size, .. } = *self.stream(index)?;
        if memory {
            return self.take(index, end..size, None);
        }
        let mut at = 0;
        loop {
            let stream = self.stream(index)?;
            let end = stream.clusters();
            let Some(absent) = stream.out.absent(at..end) else { return Ok(()) };
            let waits = self.waiting.next_in(index, absent.clone());
            let until = waits.unwrap_or(absent.end);
            if until > absent.start {
                self.out(index, absent.start..until, None)?;
            }
            if let Some(cluster) = waits {
                self.as_it_is(index, cluster)?;
            }
            at = absent.start;
        }
    }

    /// Writes whole clusters.
    fn out(&mut self, index: usize, clusters: Range<u64>, data: Option<&[u8]>) -> Result<()> {
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) }; // never: it was found before
        let dev_id = stream.dev_id;
        let zeros = match (stream.memory, data) {
            (true, data) => {
                self.extents.full(dev_id, clusters.clone(), data.unwrap_or_default())?;
                0
            }
            (false, Some(data)) => self.extents.clusters(dev_id, clusters.start, data)?,
            (false, None) => {
                self.extents.zeros(dev_id, clusters.clone())?;
                (clusters.end * CLUSTER).min(stream.size) - clusters.start * CLUSTER
            }
        };
        stream.zeros += zeros;
        stream.out.insert(clusters);
        Ok(())
    }
}

fn written_before(stream: &Stream, cluster: u64) -> Error {
    let what = format!("cluster {cluster} (offset {}) of stream '{}'", cluster * CLUSTER, stream.name);
    if stream.early.first_in(cluster..cluster + 1).is_some() {
        Error::invalid(format!(
            "{what} is out already: it waited for its rest, and made room when too many others did"
        ))
        .hint("write clusters whole, or their parts close together")
    } else {
        Error::invalid(format!("{what} was written before, and is out"))
    }
}
