//! What a file keeps of its disk: our count and bitmap against a small model that reads the tables' bytes itself.

use std::path::Path;

use cowhand::{Open, allocated, block_bitmap, open_alone};
use cowhand_tests::{Content, qemu_img, qemu_io, temp};

/// Bytes kept, and the clusters of which something is, as XCP-ng's `qcow2_helper` defines them.
fn model(path: &Path) -> (u64, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let number = |at: usize, len: usize| bytes[at..at + len].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    let word = |at: u64| if (at as usize) < bytes.len() { number(at as usize, 8) } else { 0 };
    let (bits, size) = (number(20, 4), number(24, 8));
    let cluster = 1u64 << bits;
    let extended = number(4, 4) > 2 && number(72, 8) & 1 << 4 != 0;
    let per_table = if extended { cluster / 16 } else { cluster / 8 };
    let clusters = size.div_ceil(cluster);
    let (mut sum, mut bitmap) = (0, vec![0u8; clusters.div_ceil(8) as usize]);
    for n in 0..clusters {
        let table = word(number(40, 8) + n / per_table * 8) & 0x00ff_ffff_ffff_fe00;
        if table == 0 {
            continue;
        }
        let at = table + n % per_table * if extended { 16 } else { 8 };
        let entry = word(at);
        let kept = if entry >> 62 & 1 == 1 {
            let shift = 62 - (bits - 8);
            let (offset, sectors) = (entry & ((1 << shift) - 1), entry << 2 >> 2 >> shift);
            (sectors + 1) * 512 - offset % 512
        } else if extended {
            u64::from((word(at + 8) as u32).count_ones()) * (cluster / 32)
        } else if entry & 0x80ff_ffff_ffff_fe00 != 0 {
            cluster
        } else {
            0
        };
        sum += kept;
        bitmap[(n / 8) as usize] |= u8::from(kept > 0) << (n % 8);
    }
    (sum, bitmap)
}

fn ours(path: &Path) -> (u64, Vec<u8>) {
    let image = open_alone(path, &Open::default()).unwrap();
    let mut bitmap = Vec::new();
    block_bitmap(&image, |bytes| {
        bitmap.extend_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    (allocated(&image).unwrap(), bitmap)
}

#[test]
fn what_a_qcow2_keeps() {
    let folder = temp();
    let raw = Content::striped("source", (6 << 20) + 1536, 96 << 10, 1).raw_in(folder.path());
    let text = Content::text("text", 3 << 20).grown(9 << 20).raw_in(folder.path());
    for (n, (options, compressed)) in [
        ("cluster_size=64k", false),
        ("cluster_size=512", false),
        ("cluster_size=2M", false),
        ("compat=0.10", false),
        ("extended_l2=on", false),
        ("extended_l2=on,cluster_size=16k", false),
        ("preallocation=metadata", false),
        ("preallocation=metadata,extended_l2=on", false),
        ("cluster_size=64k", true),
        ("cluster_size=4k,compression_type=zstd", true),
    ]
    .into_iter()
    .enumerate()
    {
        let image = folder.path().join(format!("{n}.qcow2"));
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend(compressed.then_some("-c"));
        let source = if compressed { &text } else { &raw };
        qemu_img(args.into_iter().map(Path::new).chain([source.as_path(), &image]));
        let zeros: &[&str] = if options.contains("0.10") {
            &["write 0 100k"]
        } else {
            &["write -z 256k 128k", "write -z -u 1M 64k", "discard 2M 100k", "write 3M 5k"]
        };
        qemu_io(["-d", "unmap", "-f", "qcow2"], &image, zeros);
        let (found, wanted) = (ours(&image), model(&image));
        assert_eq!(found.0, wanted.0, "{options}");
        assert!(found.1 == wanted.1, "{options}: the bitmaps differ");
        assert!(wanted.0 > 0 && wanted.1.iter().any(|byte| *byte > 0), "{options}");
    }
}

#[test]
fn what_a_block_format_keeps_is_whole_blocks() {
    let folder = temp();
    let content = Content::empty("two", 9 << 20).with(0, vec![7; 10]).with(5 << 20, vec![7; 4096]);
    let raw = content.raw_in(folder.path());
    for (format, options) in [("vpc", "force_size=on"), ("vhdx", "block_size=2M")] {
        let image = folder.path().join(format);
        let args = ["convert", "-f", "raw", "-O", format, "-o", options].map(Path::new);
        qemu_img(args.into_iter().chain([raw.as_path(), &image]));
        let open = Open { format: Some(format.to_owned()), ..Open::default() };
        assert_eq!(allocated(&open_alone(&image, &open).unwrap()).unwrap(), 4 << 20, "{format}");
    }
    assert_eq!(ours(&raw).1.len(), (9usize << 20).div_ceil(65536 * 8));
}

/// 4096 L1 entries that name one table would be counted 4096 times.
#[test]
fn a_table_with_two_owners_is_an_error() {
    let folder = temp();
    let image = folder.path().join("shared.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "2G"]);
    qemu_io(["-f", "qcow2"], &image, ["write 0 64k", "write 1G 64k"]);
    let mut bytes = std::fs::read(&image).unwrap();
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let first = bytes[l1..l1 + 8].to_vec();
    bytes[l1 + 16..l1 + 24].copy_from_slice(&first);
    std::fs::write(&image, &bytes).unwrap();
    let error = allocated(&open_alone(&image, &Open::default()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("L1 entry") && error.contains("another entry has"), "{error}");
}
