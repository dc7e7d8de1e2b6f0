//! The limit that `bench/run` measures against: one thread, one buffer, pread and pwrite over the source's data, nothing
//! looked at. Usage: `cowhand-bench-limit [--sync] SOURCE TARGET`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

const BUFFER: usize = 1 << 20;

fn main() -> io::Result<()> {
    let mut names: Vec<_> = std::env::args_os().skip(1).collect();
    let sync = names.first().is_some_and(|name| name == "--sync");
    if sync {
        names.remove(0);
    }
    let [source, target] = names.as_slice() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: [--sync] SOURCE TARGET"));
    };
    let source = File::open(source)?;
    let target = File::create(target)?;
    let len = source.metadata()?.len();
    target.set_len(len)?;

    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while let Some(start) = next_data(&source, at)? {
        let end = seek(&source, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let piece = (end - at).min(BUFFER as u64) as usize;
            source.read_exact_at(&mut buffer[..piece], at)?;
            target.write_all_at(&buffer[..piece], at)?;
            at += piece as u64;
        }
    }
    if sync {
        target.sync_all()?;
    }
    Ok(())
}

/// Where the data at or after `at` begins.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
