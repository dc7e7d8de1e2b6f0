//! Laying out part of a disk before it is used: the mapping, and the space where that is asked for.

use std::ops::Range;

use cowhand_core::{Error, Prealloc, Result, Storage};

use crate::entry::Plain;
use crate::layer::Qcow2Layer;
use crate::writer::Writer;

/// Clusters laid out in one step.
const BATCH: u64 = 4096;

impl Qcow2Layer {
    /// Maps guest bytes `disk`, which start with a cluster and of which nothing is mapped, to clusters that read zero (a
    /// data file does so there already). `data`: the subclusters of each that the entries say hold data; where data is
    /// encrypted they say zero, and version 2, which cannot say so, gets zeros encrypted. Nobody else is writing.
    pub(crate) fn preallocate(
        &self,
        writer: &Writer,
        disk: Range<u64>,
        prealloc: Prealloc,
        data: u32,
    ) -> Result<()> {
        let rules = self.view.shared.rules;
        let bits = rules.geometry.cluster_bits();
        let encrypted = self.view.shared.crypt.is_some();
        let (data, says_zero) = if encrypted && rules.version >= 3 { (0, data) } else { (data, 0) };
        let (mut first, end) = (disk.start >> bits, disk.end.div_ceil(1 << bits));
        while first < end {
            let count = (end - first)
                .min(BATCH)
                .min(rules.geometry.l2_entries() - first % rules.geometry.l2_entries());
            self.own_tables(writer, first, first + count - 1)?;
            let (host, zero) = if rules.data_file {
                (first, true)
            } else {
                let (run, zero) = self.reserve(writer, count)?;
                (run.start, zero)
            };
            let (at, len) = (host << bits, count << bits);
            let len = if rules.data_file { len.min(disk.end - at) } else { len };
            let file = self.view.shared.data.as_ref();
            let there = file.len().map_err(|error| Error::io("cannot find the size", error))?;
            lay_out(file, at, len, prealloc, zero).map_err(|error| {
                // A full disk is not left full: what was laid out leads nowhere yet. If that fails, the first error is told.
                let _ = file.set_len(there);
                match error.os_error() {
                    Some(system) => {
                        let what = prealloc.known_failure();
                        error.known_as(format!("Failed to resize underlying file: {what}: {system}"))
                    }
                    None => error,
                }
            })?;
            if encrypted && data != 0 {
                self.write_zeros(first << bits, at, len)?;
            }
            self.publish(writer, first, count, Vec::new(), |index, _| {
                let host = Some((host + index) << bits);
                rules.encode(Plain { host, copied: true, data, zero: says_zero })
            })?;
            first += count;
            self.begin()?;
        }
        Ok(())
    }

    /// Writes zeros as guest data to clusters.
    fn write_zeros(&self, guest: u64, host: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            let piece = zeros.get(..n as usize).unwrap_or_default();
            self.view.shared.write_data(guest + done, host + done, piece)?;
            done += n;
        }
        Ok(())
    }
}

/// Gives `len` bytes from `at` on their space, as far as `prealloc` asks for it; they read zero then. `zero`: they do
/// so already.
fn lay_out(file: &dyn Storage, at: u64, len: u64, prealloc: Prealloc, zero: bool) -> Result<()> {
    let failed = |error| Error::io("cannot reserve the space", error).at(at);
    if prealloc == Prealloc::Full {
        return zero_out(file, at, len);
    }
    let there = file.len().map_err(failed)?;
    if !zero && at < there {
        let len = len.min(there - at);
        if !file.punch(at, len).map_err(failed)? {
            zero_out(file, at, len)?;
        }
    }
    if prealloc == Prealloc::Falloc && !file.allocate(at, len).map_err(failed)? {
        return Err(
            Error::unsupported("this file system cannot reserve space").hint("use preallocation=full or off")
        );
    }
    if file.len().map_err(failed)? < at + len {
        file.set_len(at + len).map_err(failed)?;
    }
    Ok(())
}

/// Writes zeros.
pub(crate) fn zero_out(file: &dyn Storage, at: u64, len: u64) -> Result<()> {
    let zeros = vec![0; len.min(1 << 20) as usize];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(zeros.len() as u64);
        let piece = zeros.get(..n as usize).unwrap_or_default();
        file.write_at(at + done, piece)
            .map_err(|error| Error::io("cannot write zeros", error).at(at + done))?;
        done += n;
    }
    Ok(())
}
