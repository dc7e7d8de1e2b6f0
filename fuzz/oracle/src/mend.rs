//! Makes checksums right, so that a change behind one is not refused at the door. What is mended is found by its
//! signature in the places where the formats keep it.

use cowhand::{MemoryStorage, Storage};
use flate2::{Crc, Decompress, FlushDecompress, Status};
use md5::{Digest, Md5};

/// The most log that is looked through, in bytes.
const LOG: u64 = 4 << 20;

/// The longest header of an archive that is mended, in bytes, and so many of its extents.
const ARCHIVE: u32 = 64 << 10;
const EXTENTS: usize = 64;

/// Mends VHD footers and headers; VHDX headers, region tables and log entries; VMA headers and extents; lzop's first
/// header; gzip's members.
pub fn checksums(storage: &MemoryStorage) {
    vhd(storage);
    vhdx(storage);
    vma(storage);
    lzop(storage);
    gzip(storage);
}

fn vhd(storage: &MemoryStorage) {
    let len = storage.len().unwrap_or(0);
    let mut headers = Vec::new();
    for at in [0, len.saturating_sub(512), len.saturating_sub(511)] {
        if let Some(mut footer) = read::<512>(storage, at).filter(|footer| footer.starts_with(b"conectix")) {
            mend_sum(&mut footer, 64);
            headers.push(u64_be(&footer, 16));
            write(storage, at, &footer);
        }
    }
    for at in headers {
        if let Some(mut header) = read::<1024>(storage, at).filter(|header| header.starts_with(b"cxsparse")) {
            mend_sum(&mut header, 36);
            write(storage, at, &header);
        }
    }
}

/// VHD's checksum: the complement of the sum of all other bytes.
fn mend_sum(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum = bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn vhdx(storage: &MemoryStorage) {
    for at in [64 << 10, 128 << 10] {
        if let Some(mut header) = read::<4096>(storage, at).filter(|header| header.starts_with(b"head")) {
            mend_crc(&mut header);
            write(storage, at, &header);
            log(storage, u64_le(&header, 72), u64::from(u32_le(&header, 68)));
        }
    }
    for at in [192 << 10, 256 << 10] {
        if let Some(mut table) = read::<65536>(storage, at).filter(|table| table.starts_with(b"regi")) {
            mend_crc(&mut table);
            write(storage, at, &table);
        }
    }
}

fn log(storage: &MemoryStorage, start: u64, len: u64) {
    let mut at = 0;
    while at + 4096 <= len.min(LOG) {
        let place = start.saturating_add(at);
        let Some(head) = read::<4096>(storage, place) else { return };
        let entry_len = u64::from(u32_le(&head, 8));
        let mut step = 4096;
        if head.starts_with(b"loge")
            && entry_len.is_multiple_of(4096)
            && (4096..=LOG).contains(&entry_len)
            && at + entry_len <= len
        {
            let mut entry = vec![0; entry_len as usize];
            if storage.read_at(place, &mut entry).is_ok() {
                mend_crc(&mut entry);
                write(storage, place, &entry);
                step = entry_len;
            }
        }
        at += step;
    }
}

/// VHDX's checksum, a CRC-32C over the structure with the field as zero.
fn mend_crc(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn vma(storage: &MemoryStorage) {
    let Some(mut header) = read::<64>(storage, 0).filter(|header| header.starts_with(b"VMA\0")) else {
        return;
    };
    let len = u32_be(&header, 56);
    if (64..=ARCHIVE).contains(&len) {
        header = vec![0; len as usize];
        if storage.read_at(0, &mut header).is_ok() {
            mend_md5(&mut header, 32);
            write(storage, 0, &header);
        }
    }
    let mut at = u64::from(len);
    for _ in 0..EXTENTS {
        let Some(mut extent) = read::<512>(storage, at).filter(|extent| extent.starts_with(b"VMAE")) else {
            return;
        };
        mend_md5(&mut extent, 24);
        write(storage, at, &extent);
        at += 512 + 4096 * u64::from(u32_be(&extent, 4) & 0xffff);
    }
}

/// VMA's checksum: MD5 over the structure with the field as zero.
fn mend_md5(bytes: &mut [u8], field: usize) {
    bytes[field..field + 16].fill(0);
    let sum = Md5::digest(&*bytes);
    bytes[field..field + 16].copy_from_slice(&sum);
}

fn lzop(storage: &MemoryStorage) {
    const MAGIC: u64 = 9;
    let Some(head) = read::<{ 9 + 29 }>(storage, 0).filter(|head| head.starts_with(b"\x89LZO\0")) else {
        return;
    };
    let flags = u32::from_be_bytes([head[17], head[18], head[19], head[20]]);
    // A filter's number stands before the name's length, if there is one.
    let name = if flags & 0x800 == 0 { 33 } else { 37 };
    let mut fields = vec![0; name + 1 - MAGIC as usize + usize::from(head[name])];
    if storage.read_at(MAGIC, &mut fields).is_ok() {
        let sum = if flags & 0x1000 == 0 { adler(&fields) } else { crc(&fields) };
        write(storage, MAGIC + fields.len() as u64, &sum.to_be_bytes());
    }
}

fn adler(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// gzip's members, as far as they can be inflated; their headers have a name at most.
fn gzip(storage: &MemoryStorage) {
    const MEMBERS: usize = 8;
    let mut at = 0;
    for _ in 0..MEMBERS {
        let Some(head) = read::<10>(storage, at).filter(|head| head.starts_with(&[0x1f, 0x8b])) else {
            return;
        };
        let mut deflated = vec![0; storage.len().unwrap_or(0).saturating_sub(at + 10) as usize];
        if storage.read_at(at + 10, &mut deflated).is_err() {
            return;
        }
        let name =
            if head[3] & 8 == 0 { 0 } else { deflated.iter().take_while(|byte| **byte != 0).count() + 1 };
        let Some(deflated) = deflated.get(name..) else { return };
        let (mut inflate, mut sum, mut out) = (Decompress::new(false), Crc::new(), vec![0; 1 << 20]);
        let end = loop {
            let before = (inflate.total_in(), inflate.total_out());
            let rest = deflated.get(before.0 as usize..).unwrap_or_default();
            let status = inflate.decompress(rest, &mut out, FlushDecompress::None);
            sum.update(&out[..(inflate.total_out() - before.1) as usize]);
            match status {
                Ok(Status::StreamEnd) => break at + 10 + name as u64 + inflate.total_in(),
                Ok(_) if (inflate.total_in(), inflate.total_out()) != before => {}
                _ => return,
            }
        };
        write(storage, end, [sum.sum(), sum.amount()].map(u32::to_le_bytes).as_flattened());
        at = end + 8;
    }
}

fn read<const N: usize>(storage: &MemoryStorage, at: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; N];
    storage.read_at(at, &mut bytes).ok()?;
    Some(bytes)
}

/// Writes what was read there before; only bytes that changed, so that zeros stay unallocated.
fn write(storage: &MemoryStorage, at: u64, bytes: &[u8]) {
    for (index, sector) in bytes.chunks(512).enumerate() {
        let mut old = vec![0; sector.len()];
        let here = at + index as u64 * 512;
        if storage.read_at(here, &mut old).is_ok() && old != sector {
            storage.write_at(here, sector).expect("memory takes it");
        }
    }
}

fn u64_be(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_be(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_le(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_le(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
