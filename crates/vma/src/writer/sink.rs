//! The writer as a sink of the facade's: disks by their place in the manifest.

use std::io::Write;

use cowhand_core::{Body, Chunk, Error, Manifest, Result, Sink};

use super::{StreamId, VmaWriter, WriterOptions};
use crate::layout::{CLUSTER, SLOTS, VMSTATE};

/// The archive that `what` tells of.
pub(crate) fn write<'a>(output: Box<dyn Write + Send + 'a>, what: &Manifest) -> Result<Box<dyn Sink + 'a>> {
    let uuid = Some(what.id).filter(|id| *id != [0; 16]);
    let mut writer = VmaWriter::new(output, WriterOptions { uuid, time: Some(what.made) });
    for config in &what.configs {
        writer.add_config(&config.name, &config.data)?;
    }
    let mut streams = Vec::with_capacity(what.disks.len());
    for disk in &what.disks {
        if disk.memory && disk.name != VMSTATE {
            return Err(Error::unsupported(format!(
                "a machine's memory is called {VMSTATE} in a VMA, and not '{}'",
                disk.name
            )));
        }
        streams.push(writer.add_numbered(disk.number, &disk.name, disk.size)?);
    }
    Ok(Box::new(Archive { writer, streams }))
}

#[derive(Debug)]
struct Archive<'a> {
    writer: VmaWriter<Box<dyn Write + Send + 'a>>,
    streams: Vec<StreamId>,
}

impl Archive<'_> {
    fn stream(&self, disk: u32) -> Result<StreamId> {
        let found = self.streams.get(disk as usize).copied();
        found.ok_or_else(|| Error::invalid(format!("the archive has no disk number {disk}")))
    }
}

impl Sink for Archive<'_> {
    fn granule(&self) -> u64 {
        CLUSTER
    }

    fn batch(&self) -> u64 {
        CLUSTER * SLOTS as u64
    }

    fn put(&mut self, chunk: Chunk<'_>) -> Result<()> {
        let stream = self.stream(chunk.disk)?;
        match chunk.body {
            Body::Bytes(bytes) => self.writer.write(stream, chunk.at, bytes),
            Body::Zero(len) => self.writer.write_zeros(stream, chunk.at, len),
        }
    }

    fn zeros(&self, disk: u32) -> u64 {
        self.stream(disk).map_or(0, |stream| self.writer.zeros(stream))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.writer.close().map(drop)
    }
}
