//! A disk that becomes full while an image is written: what was written before stays.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use cowhand_core::{
    CheckOptions, CreateOptions, ErrorKind, Format, Identity, MemoryStorage, NoFiles, OpenOptions, Quiet,
    Storage,
};
use cowhand_qcow2::Qcow2;

const PAGE: u64 = 4096;
const CLUSTER: u64 = 65536;

/// A sparse file on a disk of so many pages.
#[derive(Debug)]
struct Sparse {
    inner: MemoryStorage,
    taken: Mutex<BTreeSet<u64>>,
    most: usize,
}

impl Sparse {
    fn take(&self, at: u64, len: u64) -> io::Result<()> {
        let mut taken = self.taken.lock().unwrap();
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            if !taken.contains(&page) && taken.len() == self.most {
                return Err(io::ErrorKind::StorageFull.into());
            }
            taken.insert(page);
        }
        Ok(())
    }
}

impl Storage for Sparse {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.take(at, buf.len() as u64)?;
        self.inner.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        self.take(at, len)?;
        self.inner.set_len(self.inner.len()?.max(at + len))?;
        Ok(true)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }
}

#[test]
fn what_was_written_before_the_disk_was_full_is_there() {
    for most in 80..150 {
        let file = Arc::new(Sparse { inner: MemoryStorage::default(), taken: Mutex::default(), most });
        let how = CreateOptions { size: 8 << 20, ..CreateOptions::default() };
        let made = Qcow2.create(file.clone(), &NoFiles, &how).and_then(|layer| layer.close());
        made.unwrap();
        let writable = OpenOptions { writable: true, ..OpenOptions::default() };
        let layer = Qcow2.open(file.clone(), &NoFiles, &writable).unwrap();
        let mut written = 0;
        let error = loop {
            match layer.write(written * CLUSTER, &[7; CLUSTER as usize]) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{most}: {error}");
        layer.close().unwrap_or_else(|error| panic!("{most}: {error}"));
        let again = Qcow2.open(file.clone(), &NoFiles, &OpenOptions::default()).unwrap();
        let mut there = vec![0; (written * CLUSTER) as usize];
        if written > 0 {
            again.read(0, &mut there).unwrap();
        }
        assert!(there.iter().all(|byte| *byte == 7), "{most}");
        let report =
            Qcow2.checker().unwrap().check(file, &NoFiles, &CheckOptions::default(), &Quiet).unwrap();
        assert!(report.is_clean(), "{most}: {report:?}");
        assert_eq!(report.allocated_units, Some(written), "{most}");
    }
}
