//! Emptying an image, and cutting off what a file has behind its last cluster in use.

use cowhand_core::{Error, Result};

use crate::draft::Next;
use crate::layer::Qcow2Layer;
use crate::writer::{Writer, lock};

impl Qcow2Layer {
    /// See `Layer::clear`. Snapshots stay as they are.
    pub(crate) fn clear_disk(&self) -> Result<()> {
        let shared = &self.view.shared;
        if shared.rules.raw_data {
            return Err(Error::unsupported(
                "an image whose data file is a raw image of the disk cannot be emptied",
            )
            .hint("write zeros to it"));
        }
        let (writer, _alone) = self.alone()?;
        let size = self.view.size();
        self.record(writer, 0, size)?;
        let empty = || vec![0; shared.geometry().l1_entries(size) as usize];
        self.switch(writer, false, |draft, _| {
            let own = self.view.l1().clone();
            draft.refer(&own.entries, own.at, false)?;
            Ok(Next { l1: empty(), size, snapshots: None })
        })?;
        if shared.rules.data_file {
            // Nothing leads there any more, so this is only a wish.
            let _ = shared.data.len().and_then(|len| shared.data.punch(0, len));
        }
        // Once more, so that what is left of the tables comes to stand in front.
        self.switch(writer, true, |_, _| Ok(Next { l1: empty(), size, snapshots: None }))?;
        self.trim(writer)
    }

    /// Cuts the file off behind the last cluster in use. The caller is alone.
    pub(crate) fn trim(&self, writer: &Writer) -> Result<()> {
        let shared = &self.view.shared;
        let _order = lock(&writer.order);
        let mut alloc = writer.alloc();
        let end = alloc.used_end()? << shared.geometry().cluster_bits();
        let failed = |error| Error::io("cannot make the file shorter", error);
        if shared.file.len().map_err(failed)? <= end {
            return Ok(());
        }
        shared.file.set_len(end).map_err(failed)?;
        // Before anything is written there again, lest what stood there come back in front of it.
        self.barrier(writer)?;
        shared.forget_lengths();
        if shared.file.len().map_err(failed)? <= end {
            alloc.cut_off(end >> shared.geometry().cluster_bits());
        }
        Ok(())
    }
}
