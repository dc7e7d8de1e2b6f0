//! `-v` while an archive is made: on standard error, in the lines of Proxmox's tool.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand::archive::DiskArchived;
use cowhand::{Printable, Progress};

use crate::progress::Meter;
use crate::signals::Stop;

/// Progress, and under `-v` a line for each percent.
pub(crate) struct Watch {
    meter: Meter,
    zeros: Arc<AtomicU64>,
    percent: AtomicU64,
    tells: bool,
}

impl Watch {
    /// Shows `meter`, and with `tells` the lines. `zeros` are those of the archive's making.
    pub(crate) fn new(meter: Meter, zeros: Arc<AtomicU64>, tells: bool) -> Watch {
        Watch { meter, zeros, percent: AtomicU64::new(u64::MAX), tells }
    }

    /// The wish to stop, for who waits otherwise.
    pub(crate) fn stop(&self) -> Stop {
        self.meter.stop()
    }

    /// It is done, and these disks are in the archive.
    pub(crate) fn finish(self, disks: &[DiskArchived]) {
        let tells = self.tells;
        self.meter.finish();
        for disk in disks.iter().filter(|_| tells) {
            let (name, size, zeros) = (Printable(&disk.name), disk.size, disk.zeros);
            tell(&format!("image {name}: size={size} zeros={zeros} saved={}", size - zeros));
        }
    }
}

impl Progress for Watch {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        if self.tells {
            let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(100) as u64;
            if self.percent.swap(percent, Ordering::Relaxed) != percent {
                tell(&format!("progress {percent}% {done}/{total} {}", self.zeros.load(Ordering::Relaxed)));
            }
        }
        self.meter.at(done, total)
    }
}

/// A line on standard error. Progress that cannot be shown is no reason to stop.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
