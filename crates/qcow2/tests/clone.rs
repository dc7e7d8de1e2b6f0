//! Cloning: whole clusters go in by sharing blocks, where the storage can do that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::how;
use cowhand_core::{Format, Identity, MemoryStorage, NoFiles, OpenOptions, Storage};
use cowhand_qcow2::Qcow2;

/// A storage that shares blocks of 4 KiB: here by copying them.
#[derive(Debug, Default)]
struct Sharing {
    inner: MemoryStorage,
    /// The next call clones no more than this.
    most: AtomicU64,
    shared: AtomicU64,
}

impl Storage for Sharing {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(at, buf)
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_at(at, buf)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.data_at(at)
    }
    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }
    fn copy_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> io::Result<u64> {
        let len = len.min(self.most.load(Ordering::Relaxed));
        if !at.is_multiple_of(4096) || !src_at.is_multiple_of(4096) || len == 0 {
            return Ok(0);
        }
        let mut bytes = vec![0; len as usize];
        src.read_at(src_at, &mut bytes)?;
        self.inner.write_at(at, &bytes)?;
        self.shared.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }
}

#[test]
fn whole_clusters_are_shared_and_the_rest_is_not() {
    let size = (1 << 20) + 4096;
    let content = common::noise(size as usize, 3);
    let source = MemoryStorage::from_bytes(&content);
    for text in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on"] {
        let cluster = if text.contains("4k,") || text == "cluster_size=4k" { 4096 } else { 65536 };
        let file = Arc::new(Sharing::default());
        let layer = Qcow2.create(file.clone(), &NoFiles, &how(size, text)).unwrap();
        assert_eq!(layer.write_from(0, &source, 0, size).unwrap(), 0, "nothing can be shared");
        file.most.store(u64::MAX, Ordering::Relaxed);
        assert_eq!(layer.write_from(512, &source, 512, 65536).unwrap(), 0, "inside a cluster");
        assert_eq!(layer.write_from(0, &source, 0, cluster / 2).unwrap(), 0, "less than a cluster");
        assert_eq!(layer.write_from(0, &source, 512, cluster).unwrap(), 0, "the source is not aligned");
        layer.write(0, &[9; 70_000]).unwrap();
        // A storage that stops early: what is whole counts.
        file.most.store(3 * 65536 + 4096, Ordering::Relaxed);
        let done = layer.write_from(0, &source, 0, size).unwrap();
        assert_eq!(done, (3 * 65536 + 4096) / cluster * cluster);
        file.most.store(u64::MAX, Ordering::Relaxed);
        // The disk's tail is part of a cluster.
        assert_eq!(layer.write_from(done, &source, done, size - done).unwrap(), size - done);
        assert!(common::bytes(&layer) == content);
        layer.close().unwrap();
        let again = Qcow2.open(file.clone(), &NoFiles, &OpenOptions::default()).unwrap();
        assert!(common::bytes(&again) == content, "{text}: opened again");
        assert!(file.shared.load(Ordering::Relaxed) >= size);
        if common::qemu() {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a.qcow2"), file.inner.to_vec()).unwrap();
            common::check(&folder.path().join("a.qcow2"));
        }
    }
}
