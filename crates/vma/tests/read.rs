//! Whole archives are read, and each rule that an archive breaks has its own error.

#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init)] // Tests panic where they must.

mod made;

use cowhand_core::{Archives, ErrorKind, Reading};
use cowhand_vma::Vma;
use made::*;

const SIZE: u64 = 3 * CLUSTER as u64 + 6000;

fn small_header() -> Vec<u8> {
    header(&[("qemu-server.conf", b"memory: 512\n")], &[(1, "drive-scsi0", SIZE)])
}

fn clusters() -> Vec<Slot> {
    vec![slot(1, 1, 0x8001), slot(1, 0, 0xffff), slot(1, 3, 0x0003), slot(1, 2, 0)]
}

fn archive(header: &[u8], extents: &[Vec<u8>]) -> Vec<u8> {
    [header, &extents.concat()].concat()
}

fn small() -> Vec<u8> {
    archive(&small_header(), &[extent(&clusters()[..2]), extent(&clusters()[2..])])
}

/// What the disk of `clusters` holds.
fn disk(dev: u8, size: u64, slots: &[Slot]) -> Vec<Option<u8>> {
    let mut bytes = vec![0; size.next_multiple_of(CLUSTER as u64) as usize];
    for slot in slots.iter().filter(|slot| slot.dev == dev) {
        for bit in (0..16).filter(|bit| slot.mask >> bit & 1 == 1) {
            let at = slot.cluster as usize * CLUSTER + bit as usize * BLOCK;
            bytes[at..at + BLOCK].copy_from_slice(&pattern(dev, slot.cluster, bit));
        }
    }
    bytes.truncate(size as usize);
    bytes.into_iter().map(Some).collect()
}

#[test]
fn a_whole_archive_is_read() {
    for how in [Reading::Strict, Reading::Salvage] {
        let taken = read(&small(), how).unwrap();
        assert_eq!(taken.disks, [disk(1, SIZE, &clusters())]);
        assert_eq!((taken.missing, taken.faults), (vec![vec![]], vec![]));
        let manifest = taken.manifest;
        assert_eq!((manifest.id, manifest.made), (UUID, 1_700_000_000));
        assert_eq!(manifest.configs[0].name, "qemu-server.conf");
        assert_eq!(manifest.configs[0].data, b"memory: 512\n");
        let first = &manifest.disks[0];
        assert_eq!(
            (first.number, first.name.as_str(), first.size, first.memory),
            (1, "drive-scsi0", SIZE, false)
        );
    }
}

#[test]
fn a_pipe_that_gives_little_at_a_time_is_read_alike() {
    struct Drops<'a>(&'a [u8], usize);
    impl std::io::Read for Drops<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1 * 7 % 1009 + 1;
            let n = self.0.len().min(buf.len()).min(self.1);
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }
    let bytes = small();
    for how in [Reading::Strict, Reading::Salvage] {
        let taken = take(Vma.read(Box::new(Drops(&bytes, 1)), how).unwrap()).unwrap();
        assert_eq!(taken.disks, [disk(1, SIZE, &clusters())]);
    }
}

#[test]
fn what_is_adjacent_is_one_chunk() {
    let size = 200 * CLUSTER as u64;
    let slots: Vec<Slot> =
        (0..200).map(|cluster| slot(1, cluster, if cluster < 20 { 0xffff } else { 0 })).collect();
    let extents: Vec<Vec<u8>> = slots.chunks(59).map(extent).collect();
    let taken = read(&archive(&header(&[], &[(1, "a", size)]), &extents), Reading::Strict).unwrap();
    assert_eq!((taken.chunks, &taken.disks[0]), (2, &disk(1, size, &slots)));
}

#[test]
fn what_is_allowed_and_unusual_is_read() {
    // A slot that is not used stands anywhere, whatever else it says; the byte that nobody looks at is set; a mask is
    // full in the last cluster; a cluster beyond the end is listed with nothing in it; an extent is empty.
    let mut unused = slot(0, 77, 0xffff);
    unused.data.clear();
    let last = slot(1, 3, 0xffff);
    let mut bytes = extent(&[unused.clone(), last.clone(), slot(1, 900, 0)]);
    bytes[6..8].copy_from_slice(&16_u16.to_be_bytes());
    bytes[40 + 8 + 2] = 9;
    seal_extent(&mut bytes);
    let rest = [clusters()[0].clone(), clusters()[1].clone(), clusters()[3].clone()];
    let bytes = archive(&small_header(), &[extent(&[]), bytes, extent(&rest), extent(&[])]);
    let taken = read(&bytes, Reading::Strict).unwrap();
    let mut expected = rest.to_vec();
    expected.push(last);
    assert_eq!(taken.disks, [disk(1, SIZE, &expected)]);
    assert_eq!(read(&bytes, Reading::Salvage).unwrap().faults, []);

    // No disk at all.
    let taken = read(&archive(&header(&[("a", b"")], &[]), &[extent(&[])]), Reading::Strict).unwrap();
    assert_eq!((taken.disks.len(), taken.manifest.configs.len()), (0, 1));
}

#[test]
fn devices_that_do_not_exist_are_left_out() {
    // 255 is none that anybody looks at; one without bytes is none; a name must end with NUL, and stand in the buffer.
    let mut bytes =
        header(&[], &[(1, "a", 512), (2, "b", 512), (3, "c", 0), (254, "y", 512), (255, "z", 512)]);
    let name = get32(&bytes, 4096 + 64) as usize;
    bytes[12288 + name + 2 + 1] = b'!';
    seal_header(&mut bytes);
    let disks = |bytes: &[u8]| {
        let source = Vma.read(Box::new(bytes), Reading::Strict).unwrap();
        source.manifest().disks.iter().map(|disk| (disk.number, disk.name.clone())).collect::<Vec<_>>()
    };
    assert_eq!(disks(&bytes), [(1, "a".to_owned()), (254, "y".to_owned())]);
    // Two may share a name's bytes.
    let shared = get32(&bytes, 4096 + 32);
    put32(&mut bytes, 4096 + 64, shared);
    // And a name ends with its first NUL.
    let name = get32(&bytes, 4096 + 32 * 254) as usize;
    bytes[12288 + name + 2] = 0;
    seal_header(&mut bytes);
    assert_eq!(disks(&bytes), [(1, "a".to_owned()), (2, "a".to_owned()), (254, String::new())]);
    // Into the middle of a record is nowhere.
    put32(&mut bytes, 4096 + 64, shared + 1);
    seal_header(&mut bytes);
    assert_eq!(disks(&bytes).len(), 2);
}

#[test]
fn configurations_need_both_or_none() {
    let configs: [(&str, &[u8]); 2] = [("a", b"1"), ("b", b"2")];
    let mut bytes = header(&configs, &[]);
    put32(&mut bytes, 2044, 0);
    seal_header(&mut bytes);
    let source = Vma.read(Box::new(&bytes[..]), Reading::Strict).unwrap();
    assert_eq!(source.manifest().configs.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["b"]);
    drop(source);
    for pointer in [2048, 3072] {
        let mut bytes = bytes.clone();
        let right = get32(&bytes, pointer);
        for wrong in [right + 1, u32::MAX, 4000] {
            put32(&mut bytes, pointer, wrong);
            seal_header(&mut bytes);
            assert_eq!(
                refused(&bytes),
                "config_data at offset 3072: configuration 1 has no name or no data where they shall be"
            );
        }
    }
}

#[test]
fn each_rule_of_the_header() {
    let whole = small();
    let len = small_header().len();
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        edit(&mut bytes);
        refused(&bytes)
    };
    let sealed = |at: usize, value: u32| {
        edited(&|bytes| {
            put32(bytes, at, value);
            seal_header(bytes);
        })
    };
    assert_eq!(refused(&[]), "header at offset 0: the archive ends there, within the header of 12288 bytes");
    assert_eq!(
        refused(&whole[..12287]),
        "header at offset 12287: the archive ends there, within the header of 12288 bytes"
    );
    assert_eq!(
        refused(&whole[..len - 1]),
        format!("header at offset {}: the archive ends there, within the header of {len} bytes", len - 1)
    );
    assert_eq!(edited(&|bytes| bytes[3] = 1), "magic at offset 0: is not 'VMA': this is no such archive");
    assert_eq!(edited(&|bytes| bytes[100] = 1), "md5sum at offset 32: is not that of the header");
    assert_eq!(edited(&|bytes| bytes[len - 1] = 1), "md5sum at offset 32: is not that of the header");
    assert_eq!(edited(&|bytes| bytes[32] ^= 1), "md5sum at offset 32: is not that of the header");
    assert_eq!(sealed(4, 2), "version at offset 4: is 2; only version 1 is known");
    for size in [0, 12288, 0x8000_0000, u32::MAX, (16 << 20) + 1] {
        assert_eq!(
            edited(&|bytes| put32(bytes, 56, size)),
            format!("header_size at offset 56: is {size}; it must be more than 12288, and at most 16777216")
        );
    }
    assert_eq!(
        edited(&|bytes| put32(bytes, 56, 16 << 20)),
        format!(
            "header at offset {}: the archive ends there, within the header of 16777216 bytes",
            whole.len()
        )
    );
    assert_eq!(sealed(48, 12287), "blob_buffer_offset at offset 48: is 12287, within the header's fields");
    assert_eq!(sealed(52, 513), "blob_buffer_size at offset 52: is 513 at 12288, beyond the header's end");
    assert_eq!(
        sealed(48, u32::MAX),
        "blob_buffer_size at offset 52: is 48 at 4294967295, beyond the header's end"
    );
    let mut bytes = header(&[], &[(7, "a", (1 << 48) + 1)]);
    assert_eq!(
        refused(&bytes),
        "dev_info at offset 4320: device 7 has 281474976710657 bytes, more than 2^32 clusters"
    );
    bytes[4096 + 7 * 32 + 8..][..8].copy_from_slice(&(1_u64 << 48).to_be_bytes());
    seal_header(&mut bytes);
    let source = Vma.read(Box::new(&bytes[..]), Reading::Strict).unwrap();
    assert_eq!(source.disks()[0].size, 1 << 48);
}

#[test]
fn each_rule_of_an_extent() {
    let header = small_header();
    let at = header.len();
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut first = extent(&clusters());
        edit(&mut first);
        archive(&header, &[first])
    };
    let sealed = |edit: &dyn Fn(&mut Vec<u8>)| {
        refused(&with(&|extent| {
            edit(extent);
            seal_extent(extent);
        }))
    };
    let data = 20 * BLOCK;
    assert_eq!(
        refused(&with(&|extent| extent.truncate(511))),
        format!("extent at offset {at}: the archive ends within its header, of which there are 511 bytes")
    );
    assert_eq!(
        refused(&with(&|extent| extent[0] = b'v')),
        format!("extent at offset {at}: no extent begins there: its magic is not 'VMAE'")
    );
    assert_eq!(
        sealed(&|extent| extent[5] = 1),
        format!("extent at offset {}: what follows its magic is 1, not 0", at + 4)
    );
    assert_eq!(
        refused(&with(&|extent| extent[511] = 1)),
        format!("extent at offset {}: the checksum is not that of its header", at + 24)
    );
    assert_eq!(
        sealed(&|extent| extent[8..24].fill(0)),
        format!(
            "extent at offset {}: it is of another archive, 00000000-0000-0000-0000-000000000000",
            at + 8
        )
    );
    assert_eq!(
        sealed(&|extent| extent[7] = 19),
        format!("extent at offset {}: its clusters have 20 blocks, too many: it says 19", at + 6)
    );
    assert_eq!(
        sealed(&|extent| extent[7] = 21),
        format!("extent at offset {}: its clusters have 20 blocks, too few: it says 21", at + 6)
    );
    for short in [512, 512 + 4095, 511 + data] {
        assert_eq!(
            refused(&with(&|extent| extent.truncate(short))),
            format!("extent at offset {at}: the archive ends within it: {short} bytes of {}", 512 + data)
        );
    }
    let second = at + 40 + 8;
    assert_eq!(
        sealed(&|extent| extent[40 + 8 + 3] = 2),
        format!("blockinfo at offset {second}: there is no device 2")
    );
    assert_eq!(
        sealed(&|extent| extent[40 + 8 + 3] = 255),
        format!("blockinfo at offset {second}: there is no device 255")
    );
    assert_eq!(
        sealed(&|extent| put32(extent, 40 + 8 + 4, 1)),
        format!("blockinfo at offset {second}: cluster 1 of drive-scsi0 comes twice")
    );
    assert_eq!(
        sealed(&|extent| put32(extent, 40 + 8 + 4, 4)),
        format!("blockinfo at offset {second}: cluster 4 lies beyond the end of drive-scsi0")
    );
    assert_eq!(
        sealed(&|extent| extent[40 + 24..40 + 32].fill(0)),
        "blockinfo: cluster 2 of drive-scsi0 is missing"
    );
    assert_eq!(refused(&header), "blockinfo: cluster 0 of drive-scsi0 is missing, with 3 that follow");
    let end = at + 512 + data;
    for (trailing, error) in [
        (
            vec![0; 1],
            format!("extent at offset {end}: the archive ends within its header, of which there are 1 bytes"),
        ),
        (vec![0; 512], format!("extent at offset {end}: no extent begins there: its magic is not 'VMAE'")),
    ] {
        let bytes = [with(&|_| ()), trailing].concat();
        assert_eq!(refused(&bytes), error);
        let salvaged = read(&bytes, Reading::Salvage).unwrap();
        assert_eq!(salvaged.disks, [disk(1, SIZE, &clusters())]);
        assert_eq!(salvaged.faults.len(), 1, "{:?}", salvaged.faults);
        assert_eq!(salvaged.faults[0].0, Some(end as u64));
    }
}

#[test]
fn memory_comes_in_order_and_ends_where_it_ends() {
    let header = header(&[], &[(1, "vmstate", 100), (2, "a", 100)]);
    let slots = [slot(1, 0, 0xffff), slot(2, 0, 1), slot(1, 1, 0x7fff)];
    let taken = read(&archive(&header, &[extent(&slots)]), Reading::Strict).unwrap();
    assert!(taken.manifest.disks[0].memory);
    assert_eq!(taken.disks[0], disk(1, 2 * CLUSTER as u64, &slots));
    assert_eq!(taken.missing[0], []);
    for wrong in [
        [slot(1, 1, 0xffff), slot(2, 0, 1), slot(1, 0, 0xffff)],
        [slot(1, 0, 1), slot(2, 0, 1), slot(1, 0, 1)],
    ] {
        let bytes = archive(&header, &[extent(&wrong)]);
        assert!(refused(&bytes).contains("of vmstate comes where cluster"), "{}", refused(&bytes));
    }
    let gap = [slot(1, 0, 0xffff), slot(2, 0, 1), slot(1, 3, 0xffff)];
    let taken = read(&archive(&header, &[extent(&gap)]), Reading::Salvage).unwrap();
    assert_eq!(taken.missing[0], [65536..3 * 65536]);
    assert_eq!(taken.faults.len(), 1);
}

#[test]
fn scattered_clusters_of_huge_disks_cost_what_they_are() {
    let devices: Vec<(u8, String)> = (1..=254).map(|dev| (dev, format!("d{dev}"))).collect();
    let devices: Vec<(u8, &str, u64)> =
        devices.iter().map(|(dev, name)| (*dev, name.as_str(), 1 << 48)).collect();
    let mut bytes = header(&[], &devices);
    let before = bytes.len();
    let mut next = (0_u32..).map(|n| slot((n % 254 + 1) as u8, (n / 254) << 16, 0));
    for _ in 0..40 {
        let slots: Vec<Slot> = next.by_ref().take(59).collect();
        bytes.extend_from_slice(&extent(&slots));
    }
    assert_eq!(bytes.len(), before + 40 * 512);
    let mut source = Vma.read(Box::new(&bytes[..]), Reading::Salvage).unwrap();
    while source.next().unwrap().is_some() {}
    let mut ranges = 0;
    source
        .missing(0, &mut |_| {
            ranges += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(ranges, 10);
}

#[test]
fn a_failing_input_is_an_error_and_in_rescue_the_end() {
    struct Fails<'a>(&'a [u8], ErrorKind);
    impl std::io::Read for Fails<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buf) {
                Ok(0) => Err(cowhand_core::Error::new(self.1, "gone").into()),
                done => done,
            }
        }
    }
    let bytes = small();
    let cut = &bytes[..bytes.len() - 5000];
    let failing = |kind| Box::new(Fails(cut, kind));
    let error = take(Vma.read(failing(ErrorKind::Corrupt), Reading::Strict).unwrap()).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Corrupt, "gone"));
    let taken = take(Vma.read(failing(ErrorKind::Corrupt), Reading::Salvage).unwrap()).unwrap();
    assert_eq!(taken.missing[0].len(), 1);
    assert_eq!(taken.faults.len(), 2, "{:?}", taken.faults);
    let error = take(Vma.read(failing(ErrorKind::Cancelled), Reading::Salvage).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}
