//! The power-cut test of VHD in its configurations: a few states of each in the tests, many in `examples/crash_vhd.rs`.

use std::sync::Arc;

use cowhand_core::testing::{CrashCounts, CrashTest, Failure, Shape, State};
use cowhand_core::{CheckOptions, Fault, Format, Layer, NoFiles, Quiet, Severity, Storage};
use cowhand_vhd::Vhd;

use super::{Sort, make, parent, reopen, view};

/// What is cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Configuration {
    pub(crate) name: &'static str,
    pub(crate) sort: Sort,
    /// Bytes of a block.
    pub(crate) unit: u64,
    /// Guest bytes.
    pub(crate) size: u64,
}

const fn of(name: &'static str, sort: Sort, unit: u64, size: u64) -> Configuration {
    Configuration { name, sort, unit, size }
}

pub(crate) const CONFIGURATIONS: &[Configuration] = &[
    of("dynamic, 64 KiB blocks", Sort::Dynamic, 65536, 12 << 16),
    of("dynamic, 4 KiB blocks", Sort::Dynamic, 4096, 1 << 17),
    of("dynamic, 512-byte blocks", Sort::Dynamic, 512, 200 << 9),
    of("dynamic, two blocks of 16 KiB", Sort::Dynamic, 16384, 2 << 14),
    of("dynamic, bits that are 0, 4 KiB", Sort::Partial, 4096, 1 << 17),
    of("dynamic, bits that are 0, 64 KiB", Sort::Partial, 65536, 12 << 16),
    of("differencing, 64 KiB", Sort::Child, 65536, 12 << 16),
    of("differencing, 4 KiB", Sort::Child, 4096, 1 << 17),
    of("differencing, 512 bytes", Sort::Child, 512, 200 << 9),
    of("differencing, first bit lowest, 16 KiB", Sort::Lsb, 16384, 10 << 14),
    of("dynamic, batmap, 4 KiB", Sort::Batmap, 4096, 1 << 17),
    of("fixed", Sort::Fixed, 4096, 1 << 17),
];

/// Runs one seed: alone in a file, on a device full of old bytes, or with several threads, by turns; children over a
/// parent that is longer or shorter. Each state is checked by our own check.
pub(crate) fn cut(
    configuration: &Configuration,
    seed: u64,
    per_epoch: usize,
) -> Result<CrashCounts, Failure> {
    let Configuration { sort, unit, size, .. } = *configuration;
    let turn = if sort == Sort::Fixed { 2 * (seed % 2) } else { seed % 3 };
    // Half of the disks end inside a block.
    let size = size + 512 * (seed / 3 % 2);
    let shape = Shape { ops: 40, ..Shape::new(size, unit) };
    let mut test = CrashTest::new(move |file| make(file, sort, size, unit), reopen)
        .view(view)
        .shape(shape)
        .seed(seed)
        .per_epoch(per_epoch)
        .check(|state, layer| {
            check(state)?;
            batmap_is_true(state, layer)
        });
    if sort.is_child() {
        test = test.parent(parent(if seed.is_multiple_of(2) { size * 3 / 2 } else { size / 1024 * 512 }));
    }
    match turn {
        1 => test = test.device(device(size, unit)),
        2 => test = test.threads(3),
        _ => {}
    }
    test.run().map_err(|failure| failure.during(format!("{}, seed {seed}", configuration.name)))
}

/// Room for each block twice, however it is aligned, and all around.
pub(crate) fn device(size: u64, unit: u64) -> u64 {
    2 * size.div_ceil(unit) * (unit + 512).next_multiple_of(4096) + (1 << 16)
}

/// Our own check finds nothing but lost space.
fn check(state: &State) -> Result<(), Failure> {
    let Some(checker) = Vhd.checker() else { return Err(Failure::new("there is no check")) };
    let Some(file) = state.file("disk") else { return Err(Failure::new("the image is gone")) };
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = checker.check(file, &NoFiles, &how, &Quiet)?;
    let bad = |fault: &Fault| matches!(fault.severity, Severity::Corruption | Severity::Error);
    if report.check_errors == 0 && !report.faults.iter().any(bad) {
        return Ok(());
    }
    Err(Failure::new(format!("the check finds {:?}", report.faults)))
}

/// Where a batmap matches its checksum, a block that it calls full has all its bits.
fn batmap_is_true(state: &State, layer: &Arc<dyn Layer>) -> Result<(), Failure> {
    if !layer.details().specific.contains_key("batmap") {
        return Ok(());
    }
    let Some(file) = state.file("disk") else { return Ok(()) };
    let read = |at: u64, len: u64| -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; len as usize];
        file.read_at(at, &mut bytes)?;
        Ok(bytes)
    };
    let word = |bytes: &[u8], at: usize| {
        u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let header = read(512, 1024)?;
    let entries = u64::from(word(&header, 28));
    let block_size = u64::from(word(&header, 32));
    let at = (1536 + 4 * entries).next_multiple_of(512);
    let head = read(at, 512)?;
    let map = read(at + 512, 512)?;
    let sum = !map.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    if word(&head, 24) != sum {
        return Ok(());
    }
    for block in 0..entries {
        if map[block as usize / 8] & 0x80 >> (block % 8) == 0 {
            continue;
        }
        let entry = word(&read(1536 + 4 * block, 4)?, 0);
        let full = entry != u32::MAX
            && read(u64::from(entry) * 512, block_size / 4096)?.iter().all(|byte| *byte == 0xff);
        if !full {
            return Err(Failure::new(format!("the batmap calls block {block} full, and it is not")));
        }
    }
    Ok(())
}
