//! A freed cluster is not given out again while somebody may still be reading it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::how;
use cowhand_core::{Erase, Format, Identity, MemoryStorage, NoFiles, Storage};
use cowhand_qcow2::Qcow2;

/// A storage that takes its time before it reads.
#[derive(Debug, Default)]
struct Slow(MemoryStorage, AtomicU64);

impl Storage for Slow {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.1.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
            std::thread::sleep(Duration::from_micros(300));
        }
        self.0.read_at(at, buf)
    }
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(at, buf)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.0.punch(at, len)
    }
    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.0.data_at(at)
    }
    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

const CLUSTERS: u64 = 4;

#[test]
fn a_reader_never_sees_another_clusters_bytes() {
    for (text, compressed) in [("cluster_size=4k", false), ("cluster_size=4k", true)] {
        let file = Arc::new(Slow::default());
        let layer = Qcow2.create(file.clone(), &NoFiles, &how(CLUSTERS * 4096, text)).unwrap();
        let done = AtomicBool::new(false);
        let seen = AtomicU64::new(0);
        let mut rounds = 0;
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let (layer, done, seen) = (&layer, &done, &seen);
                scope.spawn(move || {
                    let mut buf = vec![0; 4096];
                    for round in reader.. {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let cluster = round % CLUSTERS;
                        buf.fill(0);
                        layer.read(cluster * 4096, &mut buf).unwrap();
                        // The whole cluster is one write: zeros before it and after it.
                        let first = buf[0];
                        let own = first == 0 || u64::from(first) == cluster + 1;
                        if !own || buf.iter().any(|byte| *byte != first) {
                            done.store(true, Ordering::Relaxed);
                            panic!("{text}: cluster {cluster} reads {first} at its start");
                        }
                        seen.fetch_add(u64::from(first != 0), Ordering::Relaxed);
                    }
                });
            }
            let since = Instant::now();
            let mut round = 0;
            loop {
                if since.elapsed() > Duration::from_millis(400) || done.load(Ordering::Relaxed) {
                    break;
                }
                let cluster = round * 7 % CLUSTERS;
                let bytes = vec![cluster as u8 + 1; 4096];
                let at = cluster * 4096;
                if compressed { layer.write_compressed(at, &bytes) } else { layer.write(at, &bytes) }
                    .unwrap();
                layer.erase((round * 3 + 1) % CLUSTERS * 4096, 4096, Erase::Free).unwrap();
                layer.flush().unwrap();
                round += 1;
            }
            rounds = round;
            done.store(true, Ordering::Relaxed);
        });
        assert!(seen.load(Ordering::Relaxed) > 10);
        layer.close().unwrap();
        // Space was used again: the file did not grow with the rounds, of which each takes a cluster.
        let clusters = file.len().unwrap() / 4096;
        assert!(compressed || clusters < rounds / 2 + 100, "{clusters} clusters after {rounds} rounds");
    }
}
