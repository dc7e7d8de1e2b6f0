//! The writer against flat vectors: any sequence of writes, every limit, every mistake of the RFC's writer.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, IoSlice, Write};

use common::{CLUSTER, decode, front};
use cowhand_core::testing::Rng;
use cowhand_core::{ArchivedDisk, Body, Chunk, ConfigFile, ErrorKind, Format, Manifest};
use cowhand_vma::{StreamId, Vma, VmaWriter, WriterOptions};

const FIXED: WriterOptions = WriterOptions { uuid: Some(*b"0123456789abcdef"), time: Some(1_700_000_000) };

fn writer() -> VmaWriter<Vec<u8>> {
    VmaWriter::new(Vec::new(), FIXED)
}

/// Bytes of which a part is zero blocks, and a part zero clusters.
fn content(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for block in bytes.chunks_mut(4096) {
        match rng.below(4) {
            0 => {}
            1 => *block.last_mut().unwrap() = 1,
            2 => block[0] = 1,
            _ => block.fill(rng.below(255) as u8 + 1),
        }
    }
    if rng.below(3) == 0 {
        bytes.fill(0);
    }
    bytes
}

#[test]
fn any_sequence_of_writes_reads_as_a_flat_vector() {
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let mut writer = writer();
        let mut disks: Vec<(StreamId, Vec<u8>, Vec<bool>)> = Vec::new();
        for number in 0..=rng.below(3) {
            let sizes = [1, 511, 4096, 4097, 65535, 65536, 65537, 1 << 20, 5 << 20, (9 << 20) + 5000];
            let size = sizes[rng.below(sizes.len() as u64) as usize];
            let id = writer.add_stream(&format!("drive-scsi{number}"), size).unwrap();
            disks.push((id, vec![0; size as usize], vec![false; size as usize]));
        }
        for _ in 0..rng.below(60) {
            let which = rng.below(disks.len() as u64) as usize;
            let (id, flat, came) = &mut disks[which];
            let size = flat.len() as u64;
            let aligned = rng.below(2) == 0;
            let unit = if aligned { CLUSTER as u64 } else { 1 };
            let at = rng.below(size) / unit * unit;
            let most = [3000, 70_000, 300_000, 6 << 20][rng.below(4) as usize];
            let len = (rng.below(most) + 1).next_multiple_of(unit).min(size - at);
            let range = at as usize..(at + len) as usize;
            let cluster =
                |at: usize| at / CLUSTER * CLUSTER..((at / CLUSTER + 1) * CLUSTER).min(size as usize);
            // A cluster is out when all of it has come; a refused write leaves all as it was.
            let first = (range.start / CLUSTER..range.end.div_ceil(CLUSTER))
                .find(|at| came[cluster(at * CLUSTER)].iter().all(|came| *came));
            let zeros = rng.below(3) == 0;
            let bytes = if zeros { vec![0; range.len()] } else { content(&mut rng, range.len()) };
            let done = if zeros { writer.write_zeros(*id, at, len) } else { writer.write(*id, at, &bytes) };
            match first {
                Some(cluster) => {
                    let error = done.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                    assert!(
                        error.to_string().contains(&format!("cluster {cluster} ")),
                        "seed {seed}: {error}"
                    );
                }
                None => {
                    done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    flat[range.clone()].copy_from_slice(&bytes);
                    came[range].fill(true);
                }
            }
        }
        let found = decode(&writer.close().unwrap());
        for (index, (_, flat, _)) in disks.iter().enumerate() {
            assert!(found.disks[index].2 == *flat, "seed {seed}: disk {index}");
        }
    }
}

#[test]
fn memory_comes_whole_and_in_order() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut writer = writer();
        let disk = writer.add_stream("drive-virtio0", 300_000).unwrap();
        let size = 1 + rng.below(5 << 20);
        let memory = writer.add_stream("vmstate", size).unwrap();
        let mut flat = vec![0; size as usize];
        let mut at = 0;
        while at < size && rng.below(20) > 0 {
            at += [0, 0, 1, 5000, 200_000][rng.below(5) as usize];
            let len = (rng.below(200_000) + 1).min(size.saturating_sub(at));
            if len == 0 {
                break;
            }
            let bytes = content(&mut rng, len as usize);
            writer.write(memory, at, &bytes).unwrap();
            flat[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            if rng.below(4) == 0 && at > 0 {
                let error = writer.write_zeros(memory, at - 1, 1).unwrap_err().to_string();
                assert!(error.contains("vmstate"), "{error}");
            }
            at += len;
        }
        writer.write(disk, 65536, &[7; 65536]).unwrap();
        let found = decode(&writer.close().unwrap());
        assert!(found.disks[1].2 == flat, "seed {seed}");
        assert!(found.clusters.iter().all(|(id, _, mask)| *id == 1 || *mask == 0xffff));
    }
}

#[test]
fn what_waits_too_long_goes_and_says_so() {
    let mut writer = writer();
    let disk = writer.add_stream("drive-scsi0", 2000 << 16).unwrap();
    // Every second cluster is begun, until the first ones have to go.
    for cluster in 0..600 {
        writer.write(disk, cluster << 17, &[1; 100]).unwrap();
    }
    let error = writer.write(disk, 100, &[2; 100]).unwrap_err().to_string();
    assert!(error.contains("cluster 0 ") && error.contains("out already: it waited"), "{error}");
    // The youngest is still there, and what came of the oldest too; a write over many of them leaves none out.
    writer.write(disk, (599 << 17) + 100, &[2; 100]).unwrap();
    writer.write(disk, 1 << 16, &[3; 1 << 16]).unwrap();
    writer.write(disk, 400 << 17, &vec![4; 199 << 17]).unwrap();
    let error = writer.write(disk, 1 << 16, &[3; 1 << 16]).unwrap_err().to_string();
    assert!(error.contains("was written before"), "{error}");
    let found = decode(&writer.close().unwrap());
    let mut flat = vec![0; 2000 << 16];
    for cluster in 0..600 {
        flat[cluster << 17..][..100].fill(1);
    }
    flat[(599 << 17) + 100..][..100].fill(2);
    flat[1 << 16..2 << 16].fill(3);
    flat[400 << 17..599 << 17].fill(4);
    assert!(found.disks[0].2 == flat);
}

#[test]
fn a_write_finds_its_own_parts_however_full_it_is() {
    let mut writer = writer();
    let disk = writer.add_stream("drive-scsi0", 2000 << 16).unwrap();
    // The one that waits longest is the next to go, and the rest of it comes in the write that begins another.
    for cluster in std::iter::once(501).chain(1..455) {
        writer.write(disk, cluster << 16, &[1; 100]).unwrap();
    }
    writer.write(disk, (500 << 16) + 100, &vec![2; (3 << 16) - 200]).unwrap();
    let error = writer.write(disk, (1 << 16) + 100, &[2]).unwrap_err().to_string();
    assert!(error.contains("cluster 1 ") && error.contains("it waited"), "{error}");
    let found = decode(&writer.close().unwrap());
    let disk = &found.disks[0].2;
    assert_eq!(&disk[(500 << 16) + 99..][..2], [0, 2]);
    assert!(disk[(500 << 16) + 100..(503 << 16) - 100].iter().all(|byte| *byte == 2));
}

#[test]
fn equal_calls_make_equal_bytes_however_the_sink_takes_them() {
    /// Takes a few bytes at a time, and is interrupted in between.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = buf.len().min(self.1 * 7919 % 50_000 + 1);
            self.0.extend(&buf[..n]);
            Ok(n)
        }

        fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
            assert!(!bufs[0].is_empty());
            if self.1.is_multiple_of(2) {
                // All of the first, and a part of the second.
                let first = bufs[0].len();
                self.0.extend(&*bufs[0]);
                self.1 += 1;
                let second = bufs.get(1).map_or(0, |buf| buf.len() / 2);
                self.0.extend(&bufs.get(1).map_or(&[][..], |buf| buf)[..second]);
                return Ok(first + second);
            }
            self.write(&bufs[0])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn fill<W: Write>(mut writer: VmaWriter<W>) -> W {
        let mut rng = Rng::new(3);
        writer.add_config("qemu-server.conf", b"cores: 2\n").unwrap();
        let a = writer.add_stream("drive-scsi0", 20 << 20).unwrap();
        let b = writer.add_stream("drive-scsi1", (8 << 20) + 12345).unwrap();
        let bytes = content(&mut rng, 20 << 20);
        writer.write(b, 65000, &bytes[..7 << 20]).unwrap();
        writer.write(a, 0, &bytes[..16 << 20]).unwrap();
        writer.write(b, 65000 + (7 << 20), &bytes[..10_000]).unwrap();
        writer.close().unwrap()
    }
    let whole = fill(writer());
    assert_eq!(fill(writer()), whole);
    assert_eq!(fill(VmaWriter::new(Slow(Vec::new(), 0), FIXED)).0, whole);
    let found = decode(&whole);
    assert_eq!((found.uuid, found.time), (*b"0123456789abcdef", 1_700_000_000));
    // Without, each archive is another.
    let other = front(&VmaWriter::new(Vec::new(), WriterOptions::default()).close().unwrap()).1;
    let another = front(&VmaWriter::new(Vec::new(), WriterOptions::default()).close().unwrap()).1;
    assert_ne!(other.uuid, another.uuid);
    assert!(other.time > 1_700_000_000);
}

#[test]
fn the_faults_of_the_rfc_are_not_here() {
    // The configuration's data is its own blob, and not its name's; the header is padded; the blobs stand in order.
    let mut archive = writer();
    archive.add_config("qemu-server.conf", b"memory: 512\n").unwrap();
    let disk = archive.add_stream("drive-scsi0", 200_000).unwrap();
    archive.add_config("qemu-server.fw", b"").unwrap();
    // A cluster with one byte has one block; those never written are listed; nothing is floored.
    archive.write(disk, 65536 + 4096 * 3 + 17, &[9]).unwrap();
    let file = archive.close().unwrap();
    let found = decode(&file);
    assert_eq!(
        found.configs,
        [("qemu-server.conf".to_owned(), b"memory: 512\n".to_vec()), ("qemu-server.fw".to_owned(), vec![])]
    );
    let mut clusters = found.clusters.clone();
    clusters.sort_unstable();
    assert_eq!(clusters, [(1, 0, 0), (1, 1, 1 << 3), (1, 2, 0), (1, 3, 0)]);
    assert_eq!(found.extents, [(4, 1)]);
    assert_eq!(found.disks[0].2.iter().position(|byte| *byte == 9), Some(65536 + 4096 * 3 + 17));
    // The time is UTC, whatever the timezone is: the number itself.
    assert_eq!(file[24..32], 1_700_000_000_i64.to_be_bytes());
    // No write at all is an archive, with all clusters; no disk at all is one with an empty extent.
    let mut archive = writer();
    archive.add_stream("drive-scsi0", 60 << 16).unwrap();
    assert_eq!(decode(&archive.close().unwrap()).extents, [(59, 0), (1, 0)]);
    let mut archive = writer();
    archive.add_config("qemu-server.conf", b"x").unwrap();
    assert_eq!(decode(&archive.close().unwrap()).extents, [(0, 0)]);
    assert_eq!(writer().close().unwrap().len(), 12288 + 512 + 512);
}

#[test]
fn the_last_cluster_ends_where_the_disk_does() {
    for size in [1, 4095, 4096, 4097, 65536 + 512, 65536 + 8192, 3 * 65536 - 1] {
        let mut writer = writer();
        let disk = writer.add_stream("drive-scsi0", size as u64).unwrap();
        writer.write(disk, 0, &vec![5; size]).unwrap();
        assert_eq!(writer.zeros(disk), 0);
        let found = decode(&writer.close().unwrap());
        assert_eq!(found.disks[0].2, vec![5; size]);
        assert_eq!(found.extents[0].1, size.div_ceil(4096));
    }
}

#[test]
fn every_limit_is_checked_when_it_is_passed() {
    fn refused<T: std::fmt::Debug>(done: cowhand_core::Result<T>, kind: ErrorKind, part: &str) {
        let error = done.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    use ErrorKind::{Invalid, Unsupported};
    let mut archive = writer();
    archive.add_config("a", &[1; 65535]).unwrap();
    refused(archive.add_config("b", &[1; 65536]), Unsupported, "65536 bytes");
    refused(archive.add_config("a", b""), Invalid, "in the archive already");
    for name in ["", "a\0b", "a/b", "/etc/passwd", ".", ".."] {
        refused(archive.add_config(name, b""), Invalid, "name");
        refused(archive.add_stream(name, 512), Invalid, "name");
    }
    archive.add_stream(&"n".repeat(65534), 512).unwrap();
    refused(archive.add_stream(&"m".repeat(65535), 512), Unsupported, "65534");
    refused(archive.add_stream("drive-scsi0", 0), Invalid, "no bytes");
    refused(archive.add_stream("drive-scsi0", (1 << 48) + 1), Unsupported, "256 TiB");
    let disk = archive.add_stream("drive-scsi0", 1 << 48).unwrap();
    refused(archive.add_stream("drive-scsi0", 512), Invalid, "in the archive already");
    refused(archive.write(disk, (1 << 48) - 1, &[0; 2]), Invalid, "past the end");
    refused(archive.write_zeros(disk, u64::MAX, 2), Invalid, "past the end");
    // A refused write is none: more can be added.
    let small = archive.add_stream("drive-scsi1", 65537).unwrap();
    archive.write(small, 65536, &[1]).unwrap();
    refused(archive.add_config("late", b""), Invalid, "after the first write");
    refused(archive.add_stream("late", 512), Invalid, "after the first write");
    refused(archive.write(small, 0, &[1; 65537]), Invalid, "cluster 1 ");
    refused(archive.write_zeros(small, 65536, 1), Invalid, "was written before");
    archive.write(small, 0, &[1; 65536]).unwrap();
    refused(archive.write(small, 65535, &[1]), Invalid, "cluster 0 ");
    archive.write(small, 65537, &[]).unwrap();

    let mut archive = writer();
    (0..256).for_each(|n| archive.add_config(&format!("c{n}"), b"").unwrap());
    refused(archive.add_config("one more", b""), Unsupported, "256 configurations");
    let ids: Vec<StreamId> = (0..254).map(|n| archive.add_stream(&format!("d{n}"), 512).unwrap()).collect();
    refused(archive.add_stream("one more", 512), Unsupported, "254 disks");
    archive.write(ids[253], 0, &[7; 512]).unwrap();
    let found = decode(&archive.close().unwrap());
    assert_eq!((found.configs.len(), found.disks.len()), (256, 254));
    assert_eq!(found.disks[253].0, 254);

    // The header: 12288 and the blob buffer, to the last byte of 512 KiB.
    let mut archive = writer();
    let room = (512 << 10) - 12288 - 1;
    (0..7).for_each(|n| archive.add_config(&n.to_string(), &[1; 65535]).unwrap());
    let rest = room - 7 * (2 + 2 + 2 + 65535);
    refused(archive.add_config("x", &vec![1; rest - 6 + 1]), Unsupported, "at most 524288");
    archive.add_config("x", &vec![1; rest - 6]).unwrap();
    refused(archive.add_stream("d", 512), Unsupported, "at most 524288");
    assert_eq!(decode(&archive.close().unwrap()).configs.len(), 8);
}

#[test]
fn a_hole_of_a_tebibyte_is_a_list() {
    /// Counts.
    struct Count(u64);

    impl Write for Count {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 += buf.len() as u64;
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut archive = VmaWriter::new(Count(0), FIXED);
    let a = archive.add_stream("drive-scsi0", 1 << 40).unwrap();
    archive.add_stream("drive-scsi1", 1 << 36).unwrap();
    archive.write_zeros(a, 0, 1 << 40).unwrap();
    assert_eq!(archive.zeros(a), 1 << 40);
    let clusters = (1_u64 << 24) + (1 << 20);
    assert_eq!(archive.close().unwrap().0, 12288 + 512 + 512 * clusters.div_ceil(59));
}

#[test]
fn each_write_that_fails_ends_it() {
    /// Fails at the nth call.
    struct Failing(usize);

    impl Write for Failing {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.checked_sub(1).map(drop).ok_or_else(|| io::ErrorKind::StorageFull.into())
        }
    }
    let run = |calls: usize| {
        let mut archive = VmaWriter::new(Failing(calls), FIXED);
        let disk = archive.add_stream("drive-scsi0", 20 << 20)?;
        let bytes = vec![1; 4 << 20];
        let mut first = None;
        for n in 0..5 {
            if let Err(error) = archive.write(disk, n << 22, &bytes) {
                first.get_or_insert(error);
                let again = archive.write(disk, n << 22, &bytes).unwrap_err();
                assert!(again.to_string().contains("an earlier write failed"), "{again}");
            }
        }
        let closed = archive.close();
        match first {
            Some(error) => {
                assert!(closed.is_err());
                Err(error)
            }
            None => closed.map(drop),
        }
    };
    let enough = (0..).find(|calls| run(*calls).is_ok()).unwrap();
    assert!(enough > 5, "{enough}");
    for calls in 0..enough {
        let error = run(calls).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    }
}

#[test]
fn the_sink_takes_what_a_manifest_tells() {
    let archives = Vma.archives().unwrap();
    let disk = |number, name: &str, size| ArchivedDisk { number, name: name.to_owned(), size, memory: false };
    let what = Manifest {
        id: [7; 16],
        made: -5,
        configs: vec![ConfigFile { name: "qemu-server.conf".to_owned(), data: b"x".to_vec() }],
        disks: vec![disk(0, "drive-scsi0", 100_000), disk(9, "drive-scsi1", 65536)],
    };
    let mut file = Vec::new();
    let mut sink = archives.write(Box::new(&mut file), &what).unwrap();
    sink.put(Chunk { disk: 1, at: 10, body: Body::Bytes(&[1; 10]) }).unwrap();
    sink.put(Chunk { disk: 0, at: 0, body: Body::Zero(100_000) }).unwrap();
    assert_eq!((sink.zeros(0), sink.zeros(1), sink.granule()), (100_000, 0, 65536));
    let error = sink.put(Chunk { disk: 2, at: 0, body: Body::Zero(1) }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    sink.finish().unwrap();
    let found = decode(&file);
    assert_eq!((found.uuid, found.time), ([7; 16], -5));
    let names: Vec<_> = found.disks.iter().map(|(number, name, _)| (*number, name.as_str())).collect();
    assert_eq!(names, [(1, "drive-scsi0"), (9, "drive-scsi1")]);
    assert_eq!(found.disks[1].2[9..21], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    // Numbers go up, and memory has its name.
    let falling = Manifest { disks: vec![disk(9, "a", 1), disk(9, "b", 1)], ..what.clone() };
    assert!(archives.write(Box::new(io::sink()), &falling).is_err());
    let memory = Manifest { disks: vec![ArchivedDisk { memory: true, ..disk(0, "a", 1) }], ..what };
    assert!(archives.write(Box::new(io::sink()), &memory).is_err());
}
