//! Images that we made, judged by `qemu-img`; and every pair of formats there and back.

use std::path::{Path, PathBuf};

use cowhand::{Cache, Convert, Create, Open, Quiet};
use cowhand_tests::{
    assert_holds, assert_qemu_accepts, contents, fast_contents, for_all, options, qemu_img, temp,
};
use serde_json::Value;

use crate::formats::{WAYS, Way, cells};

/// What we take besides, and `qemu-img` does not.
const OURS: &[Way] = &[
    Way { format: "vpc", options: "block_size=512k", compressed: false },
    Way { format: "vpc", options: "subformat=fixed,size_align=1M,force_size=on", compressed: false },
    Way { format: "vpc", options: "subformat=fixed,preallocation=full", compressed: false },
    Way { format: "vhdx", options: "physical_sector_size=512", compressed: false },
    Way { format: "vhdx", options: "subformat=fixed,preallocation=full,block_size=1M", compressed: false },
];

fn by(way: &Way, source: &Path, target: &Path) -> Convert {
    Convert {
        format: Some(way.format.to_owned()),
        options: options(way.options),
        compress: way.compressed,
        // Hundreds of syncs are long; the other tests have them.
        cache: Cache::Unsafe,
        ..Convert::new([source], target)
    }
}

fn open(path: &Path, format: &str) -> cowhand::Opened {
    cowhand::open(path, &Open { format: Some(format.to_owned()), ..Open::default() }).unwrap()
}

/// The size that `qemu-img` finds.
fn qemu_size(path: &Path, format: &str) -> u64 {
    let text = qemu_img(["info", "--output=json", "-f", format, path.to_str().unwrap()]);
    serde_json::from_str::<Value>(&text).unwrap()["virtual-size"].as_u64().unwrap()
}

#[test]
fn every_way_of_convert() {
    let folder = temp();
    let contents = contents();
    let raws: Vec<PathBuf> = contents.iter().map(|content| content.raw_in(folder.path())).collect();
    let ways: Vec<Way> = WAYS.iter().chain(OURS).copied().collect();
    let cells = cells(ways.len(), contents.len());
    let name = |(w, c): &(usize, usize)| format!("{} of {}", ways[*w].name(), contents[*c].name);
    for_all(&cells, name, |(w, c)| {
        let (way, content, raw) = (&ways[*w], &contents[*c], &raws[*c]);
        if content.size == 0 && way.format == "vpc" {
            // There is no geometry for it.
            return;
        }
        let image = folder.path().join(format!("{c}-{}", way.file(*w)));
        let how = Convert { workers: Some([1, 2, 8][(w + c) % 3]), ..by(way, raw, &image) };
        let done = cowhand::convert(&how, &Quiet).unwrap();
        let disk = open(&image, way.format);
        assert_eq!((done.size, done.to), (disk.size(), way.format));
        // A VHDX of size 0 is legal.
        let qemu_refuses = way.format == "vhdx" && content.size == 0;
        if way.format != "vpc" {
            assert_eq!(disk.size(), content.size.next_multiple_of(512), "virtual size");
        }
        if way.options.contains("size_align=1M") {
            assert_eq!(disk.size(), content.size.next_multiple_of(1 << 20));
            assert_eq!(std::fs::metadata(&image).unwrap().len(), disk.size() + 512);
        } else if way.options.contains("force_size") {
            assert_eq!(disk.size(), content.size.next_multiple_of(512));
        }
        assert_holds(&disk, raw);
        if !qemu_refuses {
            assert_eq!(qemu_size(&image, way.format), disk.size(), "virtual size");
            assert_qemu_accepts(&image, way.format, raw);
        }
        drop(disk);
        std::fs::remove_file(&image).unwrap();
    });
}

/// `qemu-img` refuses disks with sectors of 4096 bytes: those only we read back.
#[test]
fn vhdx_with_sectors_of_4096_bytes() {
    let folder = temp();
    for_all(
        &contents(),
        |content| content.name.to_owned(),
        |content| {
            let raw = content.raw_in(folder.path());
            let image = raw.with_extension("vhdx");
            let way =
                Way { format: "vhdx", options: "logical_sector_size=4096,block_size=1M", compressed: false };
            cowhand::convert(&by(&way, &raw, &image), &Quiet).unwrap();
            let disk = open(&image, "vhdx");
            assert_eq!(disk.size(), content.size.next_multiple_of(4096));
            assert_holds(&disk, &raw);
            let back = raw.with_extension("back.raw");
            cowhand::convert(&Convert::new([&image], &back), &Quiet).unwrap();
            assert_qemu_accepts(&back, "raw", &raw);
        },
    );
}

#[test]
fn every_pair_of_formats_there_and_on() {
    const PAIRS: &[Way] = &[
        Way { format: "raw", options: "", compressed: false },
        Way { format: "qcow2", options: "", compressed: false },
        Way { format: "qcow2", options: "extended_l2=on", compressed: false },
        Way { format: "qcow2", options: "compression_type=zstd", compressed: true },
        Way { format: "vpc", options: "force_size=on", compressed: false },
        Way { format: "vpc", options: "subformat=fixed,force_size=on", compressed: false },
        Way { format: "vhdx", options: "block_size=1M", compressed: false },
        Way { format: "vhdx", options: "subformat=fixed,block_size=1M", compressed: false },
    ];
    let folder = temp();
    let contents = fast_contents();
    let mut firsts = Vec::new();
    for content in &contents {
        let raw = content.raw_in(folder.path());
        for (n, way) in PAIRS.iter().enumerate() {
            let first = raw.with_extension(way.file(n));
            cowhand::convert(&by(way, &raw, &first), &Quiet).unwrap();
            firsts.push((raw.clone(), first));
        }
    }
    let cells = cells(firsts.len(), PAIRS.len());
    let name = |(f, w): &(usize, usize)| format!("{} to {}", firsts[*f].1.display(), PAIRS[*w].name());
    for_all(&cells, name, |(f, w)| {
        let ((raw, first), from, to) = (&firsts[*f], &PAIRS[*f % PAIRS.len()], &PAIRS[*w]);
        let second = first.with_extension(format!("to{}", to.file(*w)));
        let mut how =
            Convert { verify: true, workers: Some([1, 2, 8][(f + w) % 3]), ..by(to, first, &second) };
        how.open.format = Some(from.format.to_owned());
        let done = cowhand::convert(&how, &Quiet).unwrap();
        assert!(done.verified && done.from == [from.format]);
        assert_holds(&open(&second, to.format), raw);
        assert_qemu_accepts(&second, to.format, raw);
        std::fs::remove_file(&second).unwrap();
    });
}

#[test]
fn fresh_images_of_every_kind() {
    let folder = temp();
    let sizes: [u64; 7] = [0, 512, 1 << 20, (1 << 20) + 512, 1 << 30, 3 << 30, 1 << 40];
    let cells = cells(WAYS.len(), sizes.len());
    let name = |(w, s): &(usize, usize)| format!("{} of {} bytes", WAYS[*w].name(), sizes[*s]);
    for_all(&cells, name, |(w, s)| {
        let (way, size) = (&WAYS[*w], sizes[*s]);
        let is_laid_out = way.options.contains("fixed") || way.options.contains("preallocation");
        let small_clusters =
            way.options.contains("=512") || way.options.contains("=1k") || way.options.contains("=4k");
        // qemu-img asks a VHDX block by block: 100 GiB take it seconds.
        let too_slow = size > 3 << 30 && way.format == "vhdx";
        if way.compressed
            || too_slow
            || (size > 2 << 20 && is_laid_out)
            || (size > 1 << 30 && small_clusters)
            || (size == 0 && way.format == "vpc")
        {
            return;
        }
        let image = folder.path().join(format!("{s}-{}", way.file(*w)));
        let how = Create { options: options(way.options), ..Create::new(way.format, size) };
        let made = cowhand::create(&image, &how).unwrap();
        assert_eq!(open(&image, way.format).size(), made.size);
        if size == 0 && way.format == "vhdx" {
            return;
        }
        assert_eq!(qemu_size(&image, way.format), made.size);
        let raw = folder.path().join(format!("{w}-{s}.raw"));
        std::fs::File::create(&raw).unwrap().set_len(size).unwrap();
        assert_qemu_accepts(&image, way.format, &raw);
    });
}
