//! What `bench/run` sets beside qemu-io: reads or writes at the offsets that come on standard input, one a line, one
//! after the other, and where EVERY is given a flush behind so many. Usage:
//! `cowhand-bench-random read|write LEN DISK [EVERY] < OFFSETS`.

#![forbid(unsafe_code)]

use std::io::Read;

use cowhand::{Error, Open, Policy, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = || Error::invalid("usage: read|write LEN DISK [EVERY] < OFFSETS");
    let [verb, len, disk, every @ ..] = arguments.as_slice() else { return Err(usage()) };
    let len: usize = len.parse().map_err(|_| usage())?;
    let every = match every {
        [] => usize::MAX,
        [every] => every.parse().map_err(|_| usage())?,
        _ => return Err(usage()),
    };
    let mut offsets = String::new();
    std::io::stdin()
        .read_to_string(&mut offsets)
        .map_err(|error| Error::io("cannot read the offsets", error))?;

    let writable = verb == "write";
    let disk = cowhand::open(disk.as_ref(), &Open { writable, policy: Policy::Any, ..Open::default() })?;
    let mut buf = vec![0xab; len];
    for (nth, line) in (1usize..).zip(offsets.lines()) {
        let at = line.parse().map_err(|_| usage())?;
        if writable {
            disk.write(at, &buf)?;
            if nth.is_multiple_of(every) {
                disk.flush()?;
            }
        } else {
            disk.read(at, &mut buf)?;
        }
    }
    if writable { disk.close() } else { Ok(()) }
}
