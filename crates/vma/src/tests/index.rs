//! Disks read through an index hold what they held, wherever their clusters stand; what breaks a rule has none.

use std::sync::Arc;

use cowhand_core::testing::Rng;
use cowhand_core::{
    Archives, ErrorKind, Format, Image, Kind, Layer, Link, MemoryStorage, NoFiles, OpenOptions, Options,
    Result, Storage, Walk,
};
use zerocopy::FromZeros;

use super::build::{Archive, Order, extent, extent_header, seal};
use crate::Vma;
use crate::layout::{BLOCK, CLUSTER, RawExtent, RawSlot};
use crate::places::Room;

pub(super) fn storage(bytes: &[u8]) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

fn open(file: &Arc<dyn Storage>, disk: Option<&str>) -> Result<Arc<dyn Layer>> {
    let given: Vec<_> = disk.map(|disk| ("disk".to_owned(), disk.to_owned())).into_iter().collect();
    let options = Options::check(Vma.open_options(), &given)?;
    Vma.open(file.clone(), &NoFiles, &OpenOptions { options, ..OpenOptions::default() })
}

fn index(bytes: &[u8]) -> Result<Arc<dyn cowhand_core::ArchiveIndex>> {
    Vma.index(&mut Walk::new(storage(bytes)))
}

/// The layer says of every byte what the disk held there.
pub(super) fn assert_holds(layer: &Arc<dyn Layer>, disk: &[u8], rng: &mut Rng) {
    assert_eq!(layer.size(), (disk.len() as u64).next_multiple_of(512));
    let byte = |at: u64| disk.get(at as usize).copied().unwrap_or(0);
    let mut at = 0;
    let mut last = None;
    while at < layer.size() {
        let found = layer.extent(at, layer.size() - at).unwrap();
        assert!(found.len >= 1 && at + found.len <= layer.size(), "{found:?} at {at}");
        let zero = (at..at + found.len).all(|at| byte(at) == 0);
        assert_eq!(found.kind, if zero { Kind::Zero } else { Kind::Data }, "{found:?} at {at}");
        assert!(last != Some(Kind::Zero) || !zero, "zeros at {at} in two pieces");
        last = Some(found.kind);
        if let Some(host) = found.host {
            let mut there = vec![0; found.len as usize];
            layer.host().read_at(host, &mut there).unwrap();
            assert_eq!(there, disk[at as usize..][..there.len()], "{found:?} at {at}");
            let part = rng.below(found.len);
            let rest = layer.extent(at + part, 1 + rng.below(100_000)).unwrap();
            assert_eq!(
                (rest.kind, rest.host),
                (Kind::Data, Some(host + part)),
                "{part} bytes into {found:?}"
            );
        }
        at += found.len;
    }
    let image = Image::new(vec![Link { layer: layer.clone(), name: "x".into(), format: "vma" }]).unwrap();
    for _ in 0..20 {
        let from = rng.below(layer.size());
        let len = (1 + rng.below(200_000)).min(layer.size() - from);
        let mut there = vec![0xa5; len as usize];
        image.read(from, &mut there).unwrap();
        assert!((from..).zip(&there).all(|(at, there)| byte(at) == *there), "{len} bytes at {from}");
    }
}

#[test]
fn clusters_are_found_wherever_they_stand() {
    for seed in 0..12 {
        let rng = &mut Rng::new(seed);
        let sizes = [[9 << 20, 65536, 1, 300_000], [3 << 20, 4096, 131_072, 65_537]];
        let archive = Archive::of(&sizes[seed as usize % 2], rng);
        for order in [Order::Straight, Order::Jumps, Order::Shuffled] {
            let file = storage(&archive.build(order, rng));
            let index = Vma.index(&mut Walk::new(file.clone())).unwrap();
            let again = Vma.index_from(&index.to_bytes()).unwrap();
            assert_eq!((again.manifest(), again.to_bytes()), (index.manifest(), index.to_bytes()));
            for (number, (name, disk)) in (0..).zip(&archive.disks) {
                assert_holds(&open(&file, Some(name)).unwrap(), disk, rng);
                assert_holds(&again.clone().layer(file.clone(), number).unwrap(), disk, rng);
            }
        }
    }
}

#[test]
fn data_runs_to_the_end_of_an_extent() {
    let rng = &mut Rng::new(1);
    let archive = Archive { disks: vec![("disk".to_owned(), vec![1; 58 * 3 * 65536])], configs: Vec::new() };
    let layer = open(&storage(&archive.build(Order::Straight, rng)), None).unwrap();
    let len = 58 * CLUSTER;
    for number in 0..3 {
        let found = layer.extent(number * len, u64::MAX).unwrap();
        assert_eq!(found.len, len, "an extent's worth");
    }
    assert_eq!(layer.extent(5 * BLOCK + 7, u64::MAX).unwrap().len, len - 5 * BLOCK - 7);
}

#[test]
fn the_front_alone_opens_a_disk() {
    let rng = &mut Rng::new(1);
    let archive = Archive::of(&[1 << 20, 4096], rng);
    let file = storage(&archive.header());
    let layer = open(&file, Some("drive-scsi0")).unwrap();
    assert_eq!(layer.size(), 1 << 20);
    let told = serde_json::to_string(&layer.details().specific).unwrap();
    assert_eq!(
        told,
        r#"{"uuid":"616e2061-7263-6869-7665-27732069642e","creation-time":0,"disk":"drive-scsi0","disks":[{"name":"drive-scsi0","size":1048576},{"name":"drive-scsi1","size":4096}],"configs":[{"name":"qemu-server.conf","size":9}]}"#
    );
    let error = layer.extent(0, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.to_string(), "blockinfo: cluster 0 of drive-scsi0 is missing, with 15 that follow");
    assert_eq!(layer.read(0, &mut [0]).unwrap_err().to_string(), error.to_string(), "the second time too");

    assert!(open(&file, None).unwrap_err().to_string().contains("several disks"));
    assert_eq!(open(&file, Some("x")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_archive_is_not_written() {
    let archive = Archive::of(&[4096], &mut Rng::new(1));
    let file = storage(&archive.build(Order::Straight, &mut Rng::new(1)));
    let error = Vma
        .open(file.clone(), &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let layer = open(&file, None).unwrap();
    assert!(layer.write(0, &[1]).is_err() && layer.resize(0, Default::default(), 0).is_err());
    assert!(layer.clear().is_err() && layer.set_parent(None).is_err());
}

#[test]
fn a_machines_memory_is_no_disk() {
    let rng = &mut Rng::new(1);
    let mut archive = Archive::of(&[1 << 20, 70_000], rng);
    archive.disks[1] = ("vmstate".to_owned(), vec![1; 131_072]);
    let file = storage(&archive.build(Order::Straight, rng));
    assert_holds(&open(&file, None).unwrap(), &archive.disks[0].1, rng);
    let error = open(&file, Some("vmstate")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "'vmstate' is a running machine's memory, and no disk; cowhand vma extract makes a file of it"
    );
}

/// Changes one thing of an archive of two clusters of data.
fn broken(change: impl Fn(&mut Vec<RawSlot>, &mut Vec<u8>)) -> String {
    let archive = Archive { disks: vec![("disk".to_owned(), vec![1; 131_072])], configs: Vec::new() };
    let mut data = Vec::new();
    let mut slots = vec![archive.slot(0, 0, &mut data), archive.slot(0, 1, &mut data)];
    change(&mut slots, &mut data);
    let mut raw = RawExtent::new_zeroed();
    raw.blockinfo[..slots.len()].copy_from_slice(&slots);
    let bytes = [archive.header(), extent(raw, &data)].concat();
    match index(&bytes) {
        Ok(_) => "it is sound".to_owned(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            error.to_string()
        }
    }
}

#[test]
fn what_breaks_a_rule_has_no_index() {
    assert_eq!(broken(|_, _| {}), "it is sound");
    assert_eq!(broken(|slots, _| slots.insert(1, RawSlot::new_zeroed())), "it is sound", "an unused slot");
    let beyond = |mask: u16| RawSlot { mask: mask.into(), reserved: 9, dev_id: 1, cluster: 2.into() };
    assert_eq!(broken(|slots, _| slots.push(beyond(0))), "it is sound", "an empty cluster behind the end");

    let first = broken(|slots, data| {
        slots.push(beyond(1));
        data.extend([1; 4096]);
    });
    assert_eq!(first, "blockinfo at offset 12856: cluster 2 lies beyond the end of disk");
    let twice = broken(|slots, _| slots[1].cluster = 0.into());
    assert_eq!(twice, "blockinfo at offset 12848: cluster 0 of disk comes twice");
    let missing = broken(|slots, data| {
        slots.pop();
        data.truncate(65536);
    });
    assert_eq!(missing, "blockinfo: cluster 1 of disk is missing");
    let device = broken(|slots, _| slots[0].dev_id = 2);
    assert_eq!(device, "blockinfo at offset 12840: there is no device 2");
    let count = broken(|_, data| data.truncate(4096));
    assert!(count.contains("its clusters have 32 blocks, too many: it says 1"), "{count}");
}

#[test]
fn every_cut_is_an_error() {
    let rng = &mut Rng::new(3);
    let archive = Archive::of(&[300_000], rng);
    let bytes = archive.build(Order::Jumps, rng);
    assert!(index(&bytes).is_ok());
    for cut in (0..bytes.len()).step_by(97).chain([12287, 12288, 12799]) {
        let error = index(&bytes[..cut]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "cut to {cut}: {error}");
    }
}

#[test]
fn claims_cost_nothing() {
    // 254 disks of 256 TiB each, and not one cluster.
    let disks = (0..254).map(|number| (format!("disk{number}"), Vec::new())).collect();
    let mut header = Archive { disks, configs: Vec::new() }.header();
    for number in 1..255 {
        header[4096 + 32 * number + 8..][..8].copy_from_slice(&(1_u64 << 48).to_be_bytes());
    }
    seal(&mut header, 32);
    let error = index(&header).unwrap_err();
    assert_eq!(error.to_string(), "blockinfo: cluster 0 of disk0 is missing, with 4294967295 that follow");
}

/// An archive whose extents list what `cluster` makes of their number and the slot's; its data is never read.
struct Endless<F> {
    rest: Vec<u8>,
    extents: u32,
    cluster: F,
}

impl<F: FnMut(u32, u32) -> Option<(u32, u16)> + Send> std::io::Read for Endless<F> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.rest.is_empty() {
            let mut raw = RawExtent::new_zeroed();
            let mut blocks = 0;
            for (number, slot) in (0..).zip(&mut raw.blockinfo[..58]) {
                if let Some((cluster, mask)) = (self.cluster)(self.extents, number) {
                    *slot = RawSlot { mask: mask.into(), reserved: 0, dev_id: 1, cluster: cluster.into() };
                    blocks += mask.count_ones() as u16;
                }
            }
            if raw.blockinfo[0].dev_id == 0 {
                return Ok(0);
            }
            raw.block_count = blocks.into();
            self.rest = extent_header(raw);
            self.extents += 1;
        }
        let n = buf.len().min(self.rest.len());
        buf[..n].copy_from_slice(&self.rest[..n]);
        self.rest.drain(..n);
        Ok(n)
    }
}

impl<F: FnMut(u32, u32) -> Option<(u32, u16)> + Send> cowhand_core::Forward for Endless<F> {
    fn skip(&mut self, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// An archive of one disk of so many clusters.
fn endless<F>(clusters: u64, cluster: F) -> Endless<F> {
    let mut header = Archive { disks: vec![("disk".to_owned(), Vec::new())], configs: Vec::new() }.header();
    header[4096 + 32 + 8..][..8].copy_from_slice(&(clusters * CLUSTER).to_be_bytes());
    seal(&mut header, 32);
    Endless { rest: header, extents: 0, cluster }
}

#[test]
fn an_index_that_would_be_too_large_is_refused() {
    // An odd step: a different cluster each time, and no two in a row.
    let scattered = |extent: u32, slot: u32| Some(((extent * 58 + slot).wrapping_mul(0x9e37_79b1), 1));
    let error = crate::index::index(&mut endless(1 << 32, scattered), Room::of(4 << 20)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an index of this archive would take more than 4 MiB; extract it in one pass: cowhand vma extract"
    );
}

#[test]
fn large_disks_have_small_indexes() {
    // 64 GiB; where there is time, 16 TiB.
    let clusters = if std::env::var_os("COWHAND_SLOW").is_some() { 1 << 28 } else { 1 << 20 };
    // Full; of blocks here and there; empty. The most is of a TiB.
    for (mask, most) in [(0xffff, 7 << 20), (0x7001, 39 << 20), (0, 0)] {
        let straight = |extent: u32, slot: u32| {
            let cluster = u64::from(extent) * 58 + u64::from(slot);
            (cluster < clusters).then_some((cluster as u32, mask))
        };
        let made = Vma.index(&mut endless(clusters, straight));
        if mask == 0x7001 && clusters > 1 << 24 {
            assert!(made.unwrap_err().to_string().contains("more than 256 MiB"));
            continue;
        }
        let len = made.unwrap().to_bytes().len() as u64;
        let most = ((most * clusters) >> 24) + 13 * 1024;
        assert!(len < most, "{len} bytes for the mask {mask:#x}: more than {most}");
    }
}

#[test]
fn an_empty_disk_is_one_hole() {
    let empty =
        |extent: u32, slot: u32| Some((extent * 58 + slot, 0)).filter(|(cluster, _)| *cluster < 1 << 20);
    let file = storage(&{
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut endless(1 << 20, empty), &mut bytes).unwrap();
        bytes
    });
    let layer = open(&file, None).unwrap();
    let found = layer.extent(0, u64::MAX).unwrap();
    assert_eq!((found.kind, found.len), (Kind::Zero, 64 << 30));
}
