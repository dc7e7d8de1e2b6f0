//! Damaged archives: what is intact comes out, and nothing that is wrong does unless it is said to be in doubt.

#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init)] // Tests panic where they must.

mod made;

use std::io::{self, Read};
use std::ops::Range;

use cowhand_core::{Archives, Body, Reading};
use cowhand_vma::Vma;
use made::*;

const SIZE: u64 = 5 * CLUSTER as u64 + 6000;

/// Two disks in four extents, in no order. Where each extent begins comes with it.
struct Sample {
    bytes: Vec<u8>,
    extents: Vec<(Range<usize>, Vec<Slot>)>,
    disks: Vec<Vec<u8>>,
}

fn sample() -> Sample {
    let mut bytes = header(
        &[("qemu-server.conf", b"memory: 512\n")],
        &[(1, "drive-scsi0", SIZE), (3, "drive-scsi1", SIZE)],
    );
    let groups = [
        vec![slot(1, 0, 0x0007), slot(3, 2, 0), slot(1, 4, 0x8000)],
        vec![slot(3, 0, 0xffff)],
        vec![slot(1, 1, 0), slot(1, 2, 0), slot(3, 1, 0)],
        vec![slot(1, 3, 0x0180), slot(3, 5, 0x0003), slot(3, 3, 0x0100), slot(1, 5, 0), slot(3, 4, 0x4002)],
    ];
    let mut extents = Vec::new();
    let mut disks = vec![vec![0; SIZE as usize + CLUSTER]; 2];
    for slots in groups {
        let extent = extent(&slots);
        let from = bytes.len();
        bytes.extend_from_slice(&extent);
        for slot in &slots {
            for bit in (0..16).filter(|bit| slot.mask >> bit & 1 == 1) {
                let at = slot.cluster as usize * CLUSTER + bit as usize * BLOCK;
                let disk = &mut disks[usize::from(slot.dev / 2)];
                disk[at..at + BLOCK].copy_from_slice(&pattern(slot.dev, slot.cluster, bit));
            }
        }
        extents.push((from..bytes.len(), slots));
    }
    disks.iter_mut().for_each(|disk| disk.truncate(SIZE as usize));
    Sample { bytes, extents, disks }
}

/// Takes what there is, sees that nothing is wrong but what is said to be in doubt, and answers how many bytes came of each
/// disk.
fn right(sample: &Sample, bytes: &[u8], what: &str) -> Vec<u64> {
    right_of(sample, Box::new(bytes), what)
}

fn right_of(sample: &Sample, bytes: Box<dyn Read + Send + '_>, what: &str) -> Vec<u64> {
    let mut source = Vma.read(bytes, Reading::Salvage).unwrap();
    let mut came = vec![0; sample.disks.len()];
    let mut wrong: Vec<(u32, u64)> = Vec::new();
    while let Some(chunk) = source.next().unwrap() {
        let disk = &sample.disks[chunk.disk as usize];
        let at = chunk.at as usize;
        let (len, bytes) = match chunk.body {
            Body::Bytes(bytes) => (bytes.len(), bytes.to_vec()),
            Body::Zero(len) => (len as usize, vec![0; len as usize]),
        };
        came[chunk.disk as usize] += len as u64;
        let blocks = bytes.chunks(BLOCK).zip(disk[at..at + len].chunks(BLOCK));
        let differs = blocks.enumerate().filter(|(_, (came, right))| came != right);
        wrong.extend(differs.map(|(block, _)| (chunk.disk, (at + block * BLOCK) as u64)));
    }
    for (disk, at) in wrong {
        let mut said = false;
        source
            .doubtful(disk, &mut |range| {
                said |= range.contains(&at);
                Ok(())
            })
            .unwrap();
        assert!(said, "{what}: wrong bytes at {at} of disk {disk}, and nothing says so");
    }
    for (disk, came) in came.iter().enumerate() {
        let mut missing = 0;
        source
            .missing(disk as u32, &mut |range| {
                missing += range.end - range.start;
                Ok(())
            })
            .unwrap();
        assert_eq!(came + missing, SIZE, "{what}: disk {disk}");
    }
    came
}

/// Bytes of each disk that these extents tell.
fn told(sample: &Sample, extents: impl Iterator<Item = usize>) -> Vec<u64> {
    let mut told = vec![0; 2];
    for slot in extents.flat_map(|extent| &sample.extents[extent].1) {
        let at = u64::from(slot.cluster) * CLUSTER as u64;
        told[usize::from(slot.dev / 2)] += (SIZE - at).min(CLUSTER as u64);
    }
    told
}

#[test]
fn a_damaged_extent_header_loses_its_own_extent_alone() {
    let sample = sample();
    let all = told(&sample, 0..4);
    assert_eq!(right(&sample, &sample.bytes, "whole"), all);
    for (number, (place, _)) in sample.extents.iter().enumerate() {
        let others = told(&sample, (0..4).filter(|other| *other != number));
        for at in place.start..place.start + 512 {
            for flip in [1, 0x80] {
                let mut bytes = sample.bytes.clone();
                bytes[at] ^= flip;
                assert_eq!(right(&sample, &bytes, &format!("{flip:#x} at {at}")), others);
            }
        }
        // All of it.
        for fill in [0, 0xff] {
            let mut bytes = sample.bytes.clone();
            bytes[place.start..place.start + 512].fill(fill);
            assert_eq!(right(&sample, &bytes, &format!("{fill} in {number}")), others);
        }
    }
}

#[test]
fn all_that_stands_before_a_cut_comes() {
    let sample = sample();
    let header = sample.extents[0].0.start;
    // Every offset of the headers, and others so that each block is cut somewhere.
    let near = |cut: &usize| sample.extents.iter().any(|(place, _)| cut.abs_diff(place.start) < 600);
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let all = (header..=sample.bytes.len()).filter(|cut| slow || near(cut) || cut % 127 == 0);
    for cut in all {
        let came = right(&sample, &sample.bytes[..cut], &format!("cut at {cut}"));
        let whole = told(&sample, (0..4).take_while(|extent| sample.extents[*extent].0.end <= cut));
        assert!(
            came.iter().zip(&whole).all(|(came, whole)| came >= whole),
            "cut at {cut}: {came:?} of {whole:?}"
        );
    }
    // To the block: of the second extent's 16 blocks there are 5, and the rest is missing.
    let place = &sample.extents[1].0;
    let taken = read(&sample.bytes[..place.start + 512 + 5 * BLOCK + 77], Reading::Salvage).unwrap();
    assert_eq!(taken.missing[1], [5 * 4096..2 * 65536, 3 * 65536..SIZE]);
    assert_eq!(taken.faults.len(), 1);
    // Zeros that an extent lists are told, though data in front of them is not there.
    let place = &sample.extents[3].0;
    let taken = read(&sample.bytes[..place.start + 512], Reading::Salvage).unwrap();
    let scsi0 = 3 * 65536;
    assert_eq!(taken.missing[0], [scsi0 + 7 * 4096..scsi0 + 9 * 4096]);
}

#[test]
fn lost_and_inserted_bytes_put_nothing_into_a_wrong_place() {
    let sample = sample();
    for at in (sample.extents[0].0.start..sample.bytes.len() - 5000).step_by(509) {
        for len in [1, 511, 512, 4096, 4097] {
            let what = format!("{len} bytes at {at}");
            let inside = sample.extents.iter().position(|(place, _)| place.contains(&at)).unwrap();
            // The last extent has none behind it that could tell that it is short.
            let last = inside == 3 || sample.extents[3].0.contains(&(at + len));
            let mut bytes = sample.bytes.clone();
            bytes.drain(at..at + len);
            // As many bytes as an extent without data has, lost with its header among them, leave nothing that tells.
            let header = sample.extents.iter().any(|(place, _)| at < place.start && place.start < at + len);
            let tells = !header || len % 512 != 0;
            if !last && tells {
                let came = right(&sample, &bytes, &format!("without {what}"));
                let fewest =
                    told(&sample, (0..4).filter(|extent| sample.extents[*extent].0.start >= at + len));
                assert!(came.iter().zip(&fewest).all(|(came, few)| came >= few), "{what}: {came:?}");
            }
            let mut bytes = sample.bytes.clone();
            bytes.splice(at..at, vec![0x5a; len]);
            if !last {
                right(&sample, &bytes, &format!("with {what} more"));
            }
        }
    }
}

#[test]
fn stretches_of_damage_leave_the_rest() {
    let sample = sample();
    for (first, last) in [(0, 1), (1, 2), (0, 2), (2, 3)] {
        let mut bytes = sample.bytes.clone();
        bytes[sample.extents[first].0.start + 8..sample.extents[last].0.start + 300].fill(0xee);
        let others = told(&sample, (0..4).filter(|extent| !(first..=last).contains(extent)));
        assert_eq!(right(&sample, &bytes, &format!("{first} to {last}")), others);
        let faults = read(&bytes, Reading::Salvage).unwrap().faults;
        assert!(!faults.is_empty() && faults.len() <= 2, "{faults:?}");
    }
}

/// An archive in the guest's disk, at every alignment: its extents are bytes like others, and where the extent that they
/// stand in is damaged they are passed over.
#[test]
fn an_archive_within_an_archive_is_data() {
    let inner = sample();
    for (same, shift) in [(false, 0), (false, 4096 - 512), (false, 100), (true, 0), (true, 3)] {
        let mut data = vec![0; shift];
        data.extend_from_slice(&inner.bytes[inner.extents[0].0.start..]);
        data.resize(4 * CLUSTER, 7);
        let header =
            header(&[], &[(1, "drive-scsi0", 4 * CLUSTER as u64), (3, "drive-scsi1", CLUSTER as u64)]);
        let slots: Vec<Slot> = (0..4)
            .map(|cluster| {
                let bytes = data[cluster as usize * CLUSTER..][..CLUSTER].to_vec();
                Slot { dev: 1, cluster, mask: 0xffff, data: bytes }
            })
            .collect();
        let mut bytes = header;
        if !same {
            bytes[8] ^= 1;
            seal_header(&mut bytes);
        }
        let mut outer = extent(&slots);
        let mut end = extent(&[slot(3, 0, 1)]);
        for extent in [&mut outer, &mut end].into_iter().filter(|_| !same) {
            extent[8] ^= 1;
            seal_extent(extent);
        }
        let at = bytes.len();
        bytes.extend_from_slice(&outer);
        bytes.extend_from_slice(&end);
        let taken = read(&bytes, Reading::Salvage).unwrap();
        assert_eq!(taken.faults, []);
        assert!(taken.disks[0].iter().map(|byte| byte.unwrap()).eq(data.iter().copied()));
        // Damaged anywhere in its header: none of what it holds, all of what follows.
        for damaged in 0..512 {
            let mut bytes = bytes.clone();
            bytes[at + damaged] ^= 0x10;
            let taken = read(&bytes, Reading::Salvage).unwrap();
            assert_eq!(taken.missing, [vec![0..4 * 65536], vec![]], "damaged at {damaged}, {same} {shift}");
            assert_eq!(taken.faults.len(), 1);
        }
    }
}

#[test]
fn what_comes_twice_counts_once() {
    let sample = sample();
    let again = sample.bytes[sample.extents[1].0.clone()].to_vec();
    let bytes = [&sample.bytes[..], &again].concat();
    assert_eq!(right(&sample, &bytes, "twice"), [SIZE, SIZE]);
    let taken = read(&bytes, Reading::Salvage).unwrap();
    assert_eq!(taken.faults.len(), 1);
    assert!(taken.faults[0].1.contains("cluster 0 of drive-scsi1 comes twice"), "{:?}", taken.faults);
}

#[test]
fn a_damaged_header_is_used_as_far_as_it_makes_sense() {
    let sample = sample();
    let begin = sample.extents[0].0.start;
    // The reserved bytes and the tables' unused entries are alike.
    let dull =
        |at: usize| (70..2040).contains(&at) || (2100..3060).contains(&at) || (4300..12280).contains(&at);
    for at in (0..begin).filter(|at| !dull(*at) || at % 97 == 0) {
        let mut bytes = sample.bytes.clone();
        bytes[at] ^= 0x41;
        let Ok(mut source) = Vma.read(Box::new(&bytes[..]), Reading::Salvage) else {
            panic!("flipped at {at}: not read");
        };
        assert!(source.faults().count > 0, "flipped at {at}");
        let numbers: Vec<u32> = source.manifest().disks.iter().map(|disk| disk.number).collect();
        let sizes: Vec<u64> = source.manifest().disks.iter().map(|disk| disk.size).collect();
        let mut came = 0;
        while let Some(chunk) = source.next().unwrap() {
            let number = numbers[chunk.disk as usize];
            let disk = &sample.disks[(number / 2) as usize];
            let at = chunk.at as usize;
            match chunk.body {
                Body::Bytes(bytes) => {
                    let known = bytes.len().min(disk.len().saturating_sub(at));
                    assert!(disk[at..at + known] == bytes[..known], "flipped at {at}");
                    came += known as u64;
                }
                Body::Zero(len) => came += len.min(SIZE.saturating_sub(chunk.at)),
            }
        }
        let expected: u64 = sizes.iter().map(|size| SIZE.min(*size)).sum();
        assert_eq!(came, expected, "flipped at {at}");

        // And gone through as a whole, it is known what there is.
        let manifest = Vma.survey(&mut &bytes[..]).unwrap();
        assert_eq!(manifest.id, UUID, "flipped at {at}");
        assert_eq!(
            manifest.disks.iter().map(|disk| disk.number).collect::<Vec<_>>(),
            [1, 3],
            "flipped at {at}"
        );
        let sizes: Vec<u64> = manifest.disks.iter().map(|disk| disk.size).collect();
        assert!(sizes.iter().all(|size| size.div_ceil(65536) == 6), "flipped at {at}: {sizes:?}");
    }
}

#[test]
fn without_any_header_the_extents_tell() {
    let sample = sample();
    for cut in [100, 12288, sample.extents[0].0.start] {
        let mut zeroed = sample.bytes.clone();
        zeroed[..cut].fill(0);
        let short = sample.bytes[cut..].to_vec();
        for bytes in [zeroed, short] {
            let manifest = Vma.survey(&mut &bytes[..]).unwrap();
            assert_eq!(manifest.id, UUID);
            let taken = take(Vma.read_as(Box::new(&bytes[..]), &manifest).unwrap()).unwrap();
            assert_eq!(taken.missing, [[], []]);
            assert!(!taken.faults.is_empty());
            for (disk, right) in taken.disks.iter().zip(&sample.disks) {
                assert!(disk.iter().zip(right).all(|(byte, right)| *byte == Some(*right)));
            }
            if cut > 12288 {
                let names: Vec<&str> = manifest.disks.iter().map(|disk| disk.name.as_str()).collect();
                assert_eq!(names, ["disk-1", "disk-3"]);
            }
        }
    }
    assert!(Vma.survey(&mut &b"nothing"[..]).is_err());
    assert!(Vma.survey(&mut &vec![0; 1 << 20][..]).is_err());
}

#[test]
fn trailing_bytes_of_any_length_are_one_fault() {
    let sample = sample();
    for len in [1, 511, 512, 5000, 1 << 20, 9 << 20] {
        let mut bytes = sample.bytes.clone();
        bytes.resize(bytes.len() + len, 0x56);
        assert_eq!(right(&sample, &bytes, "trailing"), [SIZE, SIZE]);
        let faults = read(&bytes, Reading::Salvage).unwrap().faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].0, Some(sample.bytes.len() as u64));
    }
    // An extent far behind is found.
    let mut bytes = sample.bytes[..sample.extents[3].0.start].to_vec();
    bytes.resize(bytes.len() + (10 << 20) + 77, 0x56);
    bytes.extend_from_slice(&sample.bytes[sample.extents[3].0.clone()]);
    assert_eq!(right(&sample, &bytes, "far"), [SIZE, SIZE]);
}

/// Bytes between which some cannot be read.
struct Gaps<'a>(Vec<&'a [u8]>);

impl Read for Gaps<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.first_mut() {
            None => Ok(0),
            Some([]) => {
                self.0.remove(0);
                if self.0.is_empty() { Ok(0) } else { Err(io::Error::other("is damaged here")) }
            }
            Some(part) => part.read(buf),
        }
    }
}

#[test]
fn what_cannot_be_read_is_a_gap_and_no_end() {
    let sample = sample();
    let front = sample.extents[0].0.start;
    let whole = |lost: &Range<usize>| {
        let apart = |place: &Range<usize>| place.end <= lost.start || lost.end <= place.start;
        told(&sample, (0..4).filter(|extent| apart(&sample.extents[*extent].0)))
    };
    let mut at = front;
    while at < sample.bytes.len() {
        for len in [0, 1, 512, 4096, 60_000] {
            let lost = at..(at + len).min(sample.bytes.len());
            let parts = vec![&sample.bytes[..lost.start], &sample.bytes[lost.end..]];
            let what = format!("without {lost:?}");
            let came = right_of(&sample, Box::new(Gaps(parts)), &what);
            for (came, whole) in came.iter().zip(whole(&lost)) {
                assert!(*came >= whole, "{what}: {came} of {whole}");
            }
        }
        at += 1777;
    }
    // It can be so more than once.
    let cuts: Vec<usize> = sample.extents.iter().map(|(range, _)| range.start + 600).collect();
    let parts =
        vec![&sample.bytes[..cuts[0]], &sample.bytes[cuts[0] + 9..cuts[2]], &sample.bytes[cuts[2] + 9..]];
    let came = right_of(&sample, Box::new(Gaps(parts)), "two gaps");
    // The third extent is a header alone, so that the second gap is in the fourth.
    let whole = told(&sample, [1, 2].into_iter());
    assert!(came.iter().zip(&whole).all(|(came, whole)| came >= whole));
}

/// Bytes of which some cannot be read.
struct Holes<'a> {
    bytes: &'a [u8],
    at: usize,
    hole: Range<usize>,
}

impl std::io::Read for Holes<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.hole.contains(&self.at) {
            let len = self.hole.end - self.at;
            self.at = self.hole.end;
            let error = cowhand_core::Error::corrupt("sector", "cannot be read");
            return Err(cowhand_core::Gap { len: len as u64, error }.into());
        }
        let end = if self.at < self.hole.start { self.hole.start } else { self.bytes.len() };
        let n = buf.len().min(end - self.at);
        buf[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[test]
fn bytes_that_cannot_be_read_lose_the_blocks_they_are_of() {
    let sample = sample();
    for at in (0..sample.bytes.len() - 5000).step_by(1021) {
        for len in [1, 4096, 5000] {
            let hole = at..at + len;
            let what = format!("{len} bytes at {at}");
            let input = Holes { bytes: &sample.bytes, at: 0, hole: hole.clone() };
            let Ok(source) = Vma.read(Box::new(input), Reading::Salvage) else {
                assert!(at < sample.extents[0].0.start, "{what}");
                continue;
            };
            let taken = take(source).unwrap();
            assert!(!taken.faults.is_empty(), "{what}");
            for (disk, right) in taken.disks.iter().zip(&sample.disks) {
                let wrong =
                    disk.iter().zip(right).position(|(byte, right)| byte.is_some_and(|byte| byte != *right));
                assert_eq!(wrong, None, "{what}");
            }
            if at < sample.extents[0].0.start {
                continue;
            }
            let whole = |place: &Range<usize>| {
                let front = place.start..place.start + 512;
                hole.end <= front.start || hole.start >= front.end
            };
            let mut lost = 0;
            for (place, slots) in &sample.extents {
                if !whole(place) {
                    lost += told(
                        &sample,
                        sample.extents.iter().position(|(other, _)| other == place).into_iter(),
                    )
                    .iter()
                    .sum::<u64>();
                } else if hole.start < place.end && hole.end > place.start {
                    let blocks: usize = slots.iter().map(|slot| slot.data.len() / BLOCK).sum();
                    let first = hole.start.max(place.start + 512) - place.start - 512;
                    let last = hole.end.min(place.end) - place.start - 512;
                    lost += (last.div_ceil(BLOCK).min(blocks) - first / BLOCK) as u64 * BLOCK as u64;
                }
            }
            let missing: u64 = taken.missing.iter().flatten().map(|range| range.end - range.start).sum();
            // A block at a disk's end is shorter, and a header may have zeros where it cannot be read.
            let headers = sample.extents.iter().all(|(place, _)| whole(place));
            assert!(
                missing <= lost && (!headers || missing + 2 * 4096 > lost),
                "{what}: {missing} of {lost}"
            );
        }
    }
}
