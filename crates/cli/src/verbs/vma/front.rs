//! What an archive holds, in the lines of Proxmox's tool, which other programs read.

use cowhand::{Manifest, Printable, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::output::Output;

/// Prints the configurations, the disks, and at last when the archive was made.
pub(crate) fn print(out: &mut Output, what: &Manifest) -> Result<()> {
    for config in &what.configs {
        writeln!(out, "CFG: size: {} name: {}", config.data.len(), Printable(&config.name))?;
    }
    for disk in &what.disks {
        if disk.memory {
            writeln!(out, "VMSTATE: dev_id={} memory: {}", disk.number, disk.size)?;
        } else {
            let name = Printable(&disk.name);
            writeln!(out, "DEV: dev_id={} size: {} devname: {name}", disk.number, disk.size)?;
        }
    }
    writeln!(out, "CTIME: {}", ctime(what.made, TimeZone::system()))
}

/// The time as C's `ctime` writes it, or its seconds where it is none.
fn ctime(seconds: i64, zone: TimeZone) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(zone).strftime("%a %b %e %H:%M:%S %Y").to_string(),
        Err(_) => format!("@{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_c_does() {
        let text = |seconds| ctime(seconds, TimeZone::UTC);
        assert_eq!(text(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(text(1_690_305_830), "Tue Jul 25 17:23:50 2023");
        assert_eq!(text(i64::MAX), "@9223372036854775807");
    }
}
