//! Persistent dirty bitmaps: ours in QEMU's hands and QEMU's in ours, in step with what is written, through power cuts
//! and faults.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use common::stored::*;
use common::*;
use cowhand_core::testing::Rng;
use cowhand_core::{Bitmaps, Erase, ErrorKind, Layer, Prealloc, Result};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A folder in memory where there is one: QEMU syncs a lot.
fn temp() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What `qemu-img info` says of the format.
fn qemu_says(path: &Path) -> serde_json::Value {
    let text = run(path.parent().unwrap(), "qemu-img", &["info", "--output=json", path.to_str().unwrap()]);
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all["format-specific"]["data"].clone()
}

/// QEMU finds nothing wrong, shows the bitmaps that we show, and the file holds what we see.
fn agree(path: &Path, what: &str) -> Vec<Stored> {
    check(path);
    let layer = open(path, false).unwrap();
    let ours = serde_json::Value::Object(layer.details().specific);
    assert_eq!(ours.to_string(), qemu_says(path).to_string(), "{what}");
    let held = stored(&std::fs::read(path).unwrap());
    assert_eq!(seen(&layer), held, "{what}");
    held
}

fn qemu_create(path: &Path, text: &str, size: &str) {
    let _ = std::fs::remove_file(path);
    let arguments = ["create", "-q", "-f", "qcow2", "-o", text, path.to_str().unwrap(), size];
    run(path.parent().unwrap(), "qemu-img", &arguments);
}

fn qemu_bitmap(path: &Path, arguments: &[&str], name: &str) {
    let all = [&["bitmap"], arguments, &[path.to_str().unwrap(), name]].concat();
    run(path.parent().unwrap(), "qemu-img", &all);
}

/// The same writes by QEMU.
fn qemu_io(path: &Path, commands: &[String]) {
    let mut arguments = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| arguments.extend(["-c", command.as_str()]));
    arguments.push(path.to_str().unwrap());
    let out = run(path.parent().unwrap(), "qemu-io", &arguments);
    assert!(!out.contains("failed"), "{out}");
}

const VARIANTS: [&str; 4] = [
    "cluster_size=64k",
    "cluster_size=2k,refcount_bits=1",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=64k,data_file=data.img",
];

#[test]
fn every_operation_is_as_qemu_does_it() {
    if !qemu() {
        return;
    }
    let folder = temp();
    for text in VARIANTS {
        let (theirs, ours) = (folder.path().join("theirs.qcow2"), folder.path().join("ours.qcow2"));
        let ours_text = text.replace("data.img", "data-of-ours.img");
        qemu_create(&theirs, text, "9M");
        create(&ours, &how(9 * MIB, &ours_text)).close().unwrap();
        let change = |how: &dyn Fn(&dyn Bitmaps) -> Result<()>| {
            let layer = open(&ours, true).unwrap();
            how(bitmaps(&layer)).unwrap();
            layer.close().unwrap();
        };
        let same = |what: &str| {
            let (theirs, ours) = (agree(&theirs, what), agree(&ours, what));
            assert_eq!(theirs, ours, "{text}: {what}");
        };
        qemu_bitmap(&theirs, &["--add"], "one");
        change(&|all| all.add("one", None, true));
        same("the default granularity");
        qemu_bitmap(&theirs, &["--add", "--disable", "-g", "512"], "two, not enabled");
        change(&|all| all.add("two, not enabled", Some(512), false));
        qemu_bitmap(&theirs, &["--add", "-g", "1M"], "three");
        change(&|all| all.add("three", Some(MIB), true));
        same("three of them");
        qemu_io(&theirs, &["write 1M 1536".to_owned(), "write -z 3M 192k".to_owned()]);
        let layer = open(&ours, true).unwrap();
        disk(layer.clone()).write(MIB, &[1; 1536]).unwrap();
        disk(layer.clone()).write(3 * MIB, &vec![0; 192 << 10]).unwrap();
        layer.close().unwrap();
        same("written");
        qemu_bitmap(&theirs, &["--disable"], "one");
        change(&|all| all.enable("one", false));
        qemu_bitmap(&theirs, &["--enable"], "two, not enabled");
        change(&|all| all.enable("two, not enabled", true));
        same("the other is enabled");
        // Merged: finer into coarser, coarser into finer.
        for (from, to) in [("one", "two, not enabled"), ("two, not enabled", "three"), ("three", "one")] {
            qemu_bitmap(&theirs, &["--merge", from], to);
            change(&|all| all.mark(to, &mut |see| all.dirty(from, see)));
        }
        same("merged");
        qemu_bitmap(&theirs, &["--clear"], "three");
        change(&|all| all.clear("three"));
        same("cleared");
        qemu_bitmap(&theirs, &["--remove"], "one");
        change(&|all| all.remove("one"));
        same("removed");
        for size in [20 * MIB, 2 * MIB + 512, 9 * MIB] {
            let words = ["resize", "-q", "-f", "qcow2", "--shrink", "theirs.qcow2", &size.to_string()];
            run(folder.path(), "qemu-img", &words);
            let layer = open(&ours, true).unwrap();
            layer.resize(size, Prealloc::Off, 0).unwrap();
            // The new size is what is recorded from here on.
            let last = size - 512..size;
            disk(layer.clone()).write(last.start, &[3; 512]).unwrap();
            layer.close().unwrap();
            qemu_io(&theirs, &[format!("write -P 3 {} 512", last.start)]);
            same("another size");
        }
        for name in ["two, not enabled", "three"] {
            qemu_bitmap(&theirs, &["--remove"], name);
            change(&|all| all.remove(name));
        }
        same("none");
        assert_eq!(extension(&std::fs::read(&ours).unwrap()), None);
    }
}

/// One operation of both: a command for QEMU, and the same here.
#[derive(Clone, Copy, Debug)]
struct Write {
    at: u64,
    len: u64,
    what: u64,
}

impl Write {
    fn random(rng: &mut Rng, size: u64, cluster: u64) -> Write {
        let what = rng.below(5);
        // Compressed writes and discards take whole clusters.
        let unit = if what >= 2 { cluster } else { 512 };
        let at = rng.below(size / unit) * unit;
        let len = ((1 + rng.below(40)) * unit).min(size - at);
        Write { at, len: if what == 4 { len.min(2 * cluster) } else { len }, what }
    }

    fn command(self) -> String {
        let word = ["write -P 7", "write -P 9", "write -z", "discard", "write -c -P 5"][self.what as usize];
        format!("{word} {} {}", self.at, self.len)
    }

    fn run(self, layer: &Arc<dyn Layer>) {
        match self.what {
            0 | 1 => disk(layer.clone()).write(self.at, &vec![7; self.len as usize]).unwrap(),
            4 => layer.write_compressed(self.at, &vec![5; self.len as usize]).unwrap(),
            what => {
                let how = if what == 2 { Erase::Zero } else { Erase::Free };
                assert_eq!(layer.erase(self.at, self.len, how).unwrap(), self.len);
            }
        }
    }
}

#[test]
fn writes_are_recorded_as_qemu_records_them() {
    if !qemu() {
        return;
    }
    let folder = temp();
    for (seed, (text, cluster)) in (1..).zip([
        ("cluster_size=64k", 64 * KIB),
        ("cluster_size=4k", 4 * KIB),
        ("cluster_size=64k,extended_l2=on", 64 * KIB),
        ("cluster_size=1M", MIB),
    ]) {
        let mut rng = Rng::new(seed);
        let (theirs, ours) = (folder.path().join("theirs.qcow2"), folder.path().join("ours.qcow2"));
        let size = 40 * MIB;
        qemu_create(&theirs, text, "40M");
        for (name, granularity) in [("fine", "512"), ("middle", "64k"), ("coarse", "16M")] {
            qemu_bitmap(&theirs, &["--add", "-g", granularity], name);
        }
        qemu_bitmap(&theirs, &["--add", "--disable"], "off");
        std::fs::copy(&theirs, &ours).unwrap();
        let mut touched = BTreeSet::new();
        // QEMU compresses nothing over what is there already; and where it frees clusters and compresses others in one
        // run (10.0.2), it gives out a cluster twice.
        let mut random = |packed: bool| {
            loop {
                let write = Write::random(&mut rng, size, cluster);
                let clusters = granules(&(write.at..write.at + write.len), cluster);
                if (write.what == 4) == packed
                    && !(packed && clusters.clone().any(|cluster| touched.contains(&cluster)))
                {
                    touched.extend(clusters);
                    return write;
                }
            }
        };
        for packed in [true, false, false] {
            let writes: Vec<Write> = (0..if packed { 3 } else { 25 }).map(|_| random(packed)).collect();
            qemu_io(&theirs, &writes.iter().map(|write| write.command()).collect::<Vec<_>>());
            let layer = open(&ours, true).unwrap();
            writes.iter().for_each(|write| write.run(&layer));
            let live = seen(&layer);
            layer.close().unwrap();
            let (theirs, held) = (agree(&theirs, text), agree(&ours, text));
            assert_eq!(theirs, held, "{text}: {writes:?}");
            assert_eq!(live, held, "{text}: before it was closed");
        }
        // And in turn on one file.
        for write in (0..8).map(|_| random(false)) {
            qemu_io(&theirs, &[write.command()]);
            let layer = open(&theirs, true).unwrap();
            write.run(&layer);
            layer.close().unwrap();
        }
        agree(&theirs, "in turn");
    }
}

/// QEMU reads the very bits that we store, and we those of another image.
#[test]
fn bits_go_from_one_image_to_another() {
    if !qemu() {
        return;
    }
    let folder = temp();
    let mut rng = Rng::new(5);
    for (text, size) in [("cluster_size=4k", 40 * MIB), ("cluster_size=64k", 3 * MIB + 1024)] {
        let (theirs, ours) = (folder.path().join("theirs.qcow2"), folder.path().join("ours.qcow2"));
        qemu_create(&theirs, "cluster_size=64k", &size.to_string());
        let layer = create(&ours, &how(size, text));
        for (name, granularity) in [("fine", 512), ("coarse", 65536)] {
            bitmaps(&layer).add(name, Some(granularity), false).unwrap();
            let mut ranges: Vec<Range<u64>> = (0..50)
                .map(|_| (rng.below(size), rng.below(5000)))
                .map(|(start, len)| start..(start + len).min(size))
                .collect();
            // Long enough for words that say that all is set.
            ranges.push(size / 4..size);
            mark(&layer, name, &ranges).unwrap();
        }
        layer.close().unwrap();
        agree(&ours, text);
        for (name, granularity) in [("fine", "512"), ("coarse", "64k")] {
            qemu_bitmap(&theirs, &["--add", "--disable", "-g", granularity], name);
            let ours = ours.to_str().unwrap();
            qemu_bitmap(&theirs, &["--merge", name, "-b", ours, "-F", "qcow2"], name);
        }
        let held = agree(&ours, text);
        assert_eq!(agree(&theirs, text), held);
        // And back, into one of another granularity.
        let (from, layer) = (open(&theirs, false).unwrap(), open(&ours, true).unwrap());
        bitmaps(&layer).add("back", Some(4096), false).unwrap();
        bitmaps(&layer).mark("back", &mut |see| bitmaps(&from).dirty("fine", see)).unwrap();
        layer.close().unwrap();
        let back = held[0].dirty.iter().map(|granule| granule / 8).collect::<BTreeSet<_>>();
        assert_eq!(agree(&ours, text)[2].dirty, back);
    }
}

/// What a test expects of a bitmap.
type Model = Vec<Stored>;

fn soil(model: &mut Model, bytes: &Range<u64>) {
    for bitmap in model.iter_mut().filter(|bitmap| bitmap.auto) {
        bitmap.dirty.extend(granules(bytes, bitmap.granularity));
    }
}

#[test]
fn any_sequence_is_what_a_model_says() {
    let qemu = qemu();
    let folder = temp();
    for (seed, (text, cluster)) in (1..).zip([
        ("cluster_size=64k", 64 * KIB),
        ("cluster_size=2k", 2 * KIB),
        ("cluster_size=4k,extended_l2=off,refcount_bits=1", 4 * KIB),
        ("cluster_size=16k,extended_l2=on", 16 * KIB),
        ("cluster_size=2k", 2 * KIB),
    ]) {
        let mut rng = Rng::new(seed);
        let path = folder.path().join("a.qcow2");
        // The disk ends inside a granule.
        let mut size = 3 * MIB + 1536;
        create(&path, &how(size, text)).close().unwrap();
        let mut layer = open(&path, true).unwrap();
        let mut model = Model::new();
        for step in 0..250 {
            let which = (!model.is_empty()).then(|| rng.below(model.len() as u64) as usize);
            let name = which.map_or_else(|| "nobody".to_owned(), |which| model[which].name.clone());
            let all = bitmaps(&layer);
            match (rng.below(16), which) {
                (0, _) if model.len() < 6 => {
                    let (granularity, auto) = (512 << rng.below(8), rng.chance(2, 3));
                    let name = format!("{step} {}", "x".repeat(rng.below(300) as usize));
                    all.add(&name, Some(granularity), auto).unwrap();
                    model.push(Stored { name, in_use: false, auto, granularity, dirty: BTreeSet::new() });
                }
                (1, Some(which)) if rng.chance(1, 2) => {
                    all.remove(&name).unwrap();
                    model.remove(which);
                }
                (2, Some(which)) => {
                    all.clear(&name).unwrap();
                    model[which].dirty.clear();
                }
                (3, Some(which)) => {
                    let on = rng.chance(1, 2);
                    all.enable(&name, on).unwrap();
                    model[which].auto = on;
                }
                (4, Some(which)) => {
                    let start = rng.below(size);
                    let range = start..start + rng.below(size - start);
                    mark(&layer, &name, &[range.clone(), 0..0]).unwrap();
                    let granularity = model[which].granularity;
                    if !range.is_empty() {
                        model[which].dirty.extend(granules(&range, granularity));
                    }
                }
                (5, Some(_)) => {
                    let error = all.add(&name, None, true).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Exists);
                }
                (6, _) => layer.flush().unwrap(),
                (7, _) => {
                    layer.close().unwrap();
                    if qemu && rng.chance(1, 4) {
                        check(&path);
                    }
                    assert_eq!(stored(&std::fs::read(&path).unwrap()), model, "{text}, step {step}");
                    layer = open(&path, true).unwrap();
                }
                (8, _) => {
                    assert_eq!(seen(&layer), model, "{text}, step {step}");
                }
                (9, _) => {
                    size = 512 * (1 + rng.below(8 << 11));
                    layer.resize(size, Prealloc::Off, 0).unwrap();
                    for bitmap in &mut model {
                        let granularity = bitmap.granularity;
                        bitmap.dirty.retain(|granule| granule * granularity < size);
                    }
                }
                _ if size < cluster => {}
                _ => {
                    let write = Write::random(&mut rng, size / cluster * cluster, cluster);
                    write.run(&layer);
                    soil(&mut model, &(write.at..write.at + write.len));
                }
            }
        }
        layer.close().unwrap();
        assert_eq!(stored(&std::fs::read(&path).unwrap()), model, "{text}");
        if qemu {
            agree(&path, text);
        }
    }
}
