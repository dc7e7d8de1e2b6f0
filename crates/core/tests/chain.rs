//! A chain of layers as one disk: parents of other sizes, edges, stripes, what is taken away, changes of size.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cowhand_core::raw::RawLayer;
use cowhand_core::testing::{ModelTest, RaceTest, Shape, fill};
use cowhand_core::{
    Erase, ErrorKind, Extent, Image, Kind, Layer, Link, Mapped, MemoryStorage, Prealloc, Result, Storage,
};

/// A layer in memory with any granule: what a granule has is nothing, zeros or bytes.
#[derive(Debug)]
struct Granules {
    granule: u64,
    host: Arc<dyn Storage>,
    disk: Mutex<Disk>,
}

#[derive(Debug, Default)]
struct Disk {
    size: u64,
    /// `None`: zeros.
    granules: BTreeMap<u64, Option<Vec<u8>>>,
}

impl Granules {
    fn new(size: u64, granule: u64) -> Arc<Granules> {
        let disk = Mutex::new(Disk { size, granules: BTreeMap::new() });
        Arc::new(Granules { granule, host: Arc::new(MemoryStorage::new()), disk })
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Layer for Granules {
    fn size(&self) -> u64 {
        self.disk().size
    }

    fn granule(&self) -> u64 {
        self.granule
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.host
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let disk = self.disk();
        let len = (self.granule - at % self.granule).min(max).min(disk.size - at);
        let found = match disk.granules.get(&(at / self.granule)) {
            None => Extent::hole(len),
            Some(None) => Extent::zero(len),
            Some(Some(_)) => Extent::data(len, None),
        };
        drop(disk);
        // Before the answer is used, others may come.
        std::thread::yield_now();
        Ok(found)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let disk = self.disk();
        let len = (self.granule - at % self.granule).min(buf.len() as u64).min(disk.size - at);
        Ok(match disk.granules.get(&(at / self.granule)) {
            None => Extent::hole(len),
            Some(None) => Extent::zero(len),
            Some(Some(bytes)) => {
                let offset = (at % self.granule) as usize;
                buf[..len as usize].copy_from_slice(&bytes[offset..offset + len as usize]);
                Extent::data(len, None)
            }
        })
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let offset = (here % self.granule) as usize;
            let n = (self.granule as usize - offset).min(buf.len() - done);
            let mut disk = self.disk();
            let held = disk.granules.entry(here / self.granule).or_default();
            let bytes = held.get_or_insert_with(|| vec![0; self.granule as usize]);
            bytes[offset..offset + n].copy_from_slice(&buf[done..done + n]);
            drop(disk);
            // Between the pieces others may come.
            std::thread::yield_now();
            done += n;
        }
        Ok(())
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let mut disk = self.disk();
        let whole = if at + len == disk.size { len.div_ceil(self.granule) } else { len / self.granule };
        if !at.is_multiple_of(self.granule) || whole == 0 {
            return Ok(0);
        }
        for granule in at / self.granule..at / self.granule + whole {
            match how {
                Erase::Reveal => drop(disk.granules.remove(&granule)),
                Erase::Zero | Erase::Free => drop(disk.granules.insert(granule, None)),
            }
        }
        Ok((whole * self.granule).min(len))
    }

    fn resize(&self, size: u64, _prealloc: Prealloc, below: u64) -> Result<()> {
        let mut disk = self.disk();
        for granule in disk.size.div_ceil(self.granule)..below.min(size).div_ceil(self.granule) {
            disk.granules.insert(granule, None);
        }
        if size < disk.size {
            disk.granules.split_off(&size.div_ceil(self.granule));
            // What is cut off inside a granule reads zero when the disk grows again.
            if let Some(Some(bytes)) = disk.granules.get_mut(&(size / self.granule)) {
                bytes[(size % self.granule) as usize..].fill(0);
            }
        }
        disk.size = size;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

fn stamped(size: u64) -> Arc<dyn Layer> {
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1 << 40);
    Arc::new(RawLayer::over(Arc::new(MemoryStorage::from_bytes(&bytes)), false).unwrap())
}

/// Stamps with zeros here and there, by whole `granule`s.
fn spotted(size: u64, granule: u64) -> Arc<dyn Layer> {
    let layer = Granules::new(size, granule);
    for at in (0..size).step_by(granule as usize) {
        let mut bytes = vec![0; granule.min(size - at) as usize];
        fill(&mut bytes, at, 1 << 41);
        match at / granule % 5 {
            0 => {}
            1 => drop(layer.erase(at, bytes.len() as u64, Erase::Zero).unwrap()),
            _ => layer.write(at, &bytes).unwrap(),
        }
    }
    layer
}

fn chain(layers: Vec<Arc<dyn Layer>>) -> Image {
    let link = |(depth, layer)| Link { layer, name: format!("layer{depth}"), format: "test" };
    Image::new(layers.into_iter().enumerate().map(link).collect()).unwrap()
}

fn read(image: &Image, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0x5a; len];
    image.read(at, &mut buf).unwrap();
    buf
}

const SIZE: u64 = 300 * 512;

/// The layer lives in memory, so "opening" it again finds the same one.
fn model(granule: u64, parent: Option<Arc<dyn Layer>>, seed: u64) {
    let layer: Mutex<Option<Arc<dyn Layer>>> = Mutex::new(None);
    let make = |_| {
        let new = Granules::new(SIZE, granule);
        *layer.lock().unwrap() = Some(new.clone());
        Ok(new as Arc<dyn Layer>)
    };
    let reopen = |_| Ok(layer.lock().unwrap().clone().unwrap());
    let shape = Shape { resize: true, reopen: false, ..Shape::new(SIZE, granule.max(2048)) };
    let mut test = ModelTest::in_folder(|_| make(()), |_| reopen(())).shape(shape).seed(seed);
    if let Some(parent) = parent {
        test = test.parent(parent);
    }
    test.run().unwrap();
}

#[test]
fn a_disk_over_any_parent_is_a_flat_vector() {
    for granule in [512, 4096, 65536] {
        for seed in 0..3 {
            model(granule, None, seed);
            for size in [SIZE / 3 / 512 * 512, SIZE, SIZE * 2] {
                model(granule, Some(stamped(size)), seed);
                model(granule, Some(spotted(size, 1024)), seed);
            }
        }
    }
}

#[test]
fn threads_over_a_parent_keep_their_neighbours() {
    let layer: Mutex<Option<Arc<dyn Layer>>> = Mutex::new(None);
    for granule in [512, 4096, 16384] {
        let made = || {
            let new: Arc<dyn Layer> = Granules::new(SIZE, granule);
            *layer.lock().unwrap() = Some(new.clone());
            Ok(new)
        };
        RaceTest::new(|_| made(), |_| Ok(layer.lock().unwrap().clone().unwrap()))
            .parent(spotted(SIZE - 4096, 1024))
            .unit(granule)
            .time(Duration::from_millis(300))
            .run()
            .unwrap();
    }
}

#[test]
fn past_the_end_of_a_shorter_parent_it_is_zero() {
    let image = chain(vec![Granules::new(8192, 4096), stamped(1024)]);
    let bytes = read(&image, 0, 8192);
    assert!(bytes[..1024].iter().any(|byte| *byte != 0) && bytes[1024..].iter().all(|byte| *byte == 0));
    assert_eq!(image.extent(0, 8192).unwrap().len, 1024);
    let end = image.extent(1024, 8192).unwrap();
    assert_eq!((end.kind, end.depth), (Kind::Hole, 0), "the layer that ends is not asked");
    // The middle of three is the shortest: what is beyond it is not looked for below it.
    let image = chain(vec![Granules::new(8192, 4096), Granules::new(1024, 512), stamped(8192)]);
    let bytes = read(&image, 0, 8192);
    assert!(bytes[1000] != 0 && bytes[1024..].iter().all(|byte| *byte == 0));
    assert_eq!(image.extent(1024, 1).unwrap().kind, Kind::Hole);
}

#[test]
fn part_of_a_granule_is_filled_from_below() {
    let top = Granules::new(SIZE, 4096);
    let image = chain(vec![top.clone(), stamped(SIZE)]);
    let mut wanted = read(&image, 0, SIZE as usize);
    image.write(5000, &[1, 2, 3]).unwrap();
    wanted[5000..5003].copy_from_slice(&[1, 2, 3]);
    assert_eq!(read(&image, 0, SIZE as usize), wanted);
    assert_eq!(top.disk().granules.keys().copied().collect::<Vec<_>>(), [1]);
    // Over zeros and over nothing, there is nothing to fill from.
    let top = Granules::new(SIZE, 4096);
    let image = chain(vec![top, Granules::new(SIZE, 4096)]);
    image.write(5000, &[1]).unwrap();
    assert_eq!(read(&image, 4999, 3), [0, 1, 0]);
}

#[test]
fn each_way_of_erasing_is_what_it_says() {
    let top = Granules::new(SIZE, 4096);
    let image = chain(vec![top.clone(), stamped(SIZE)]);
    let below = read(&image, 0, SIZE as usize);
    let zeros = |at: usize, len: usize| read(&image, at as u64, len).iter().all(|byte| *byte == 0);
    // Granules 1 and 2 wholly, 0 and 3 in part.
    image.erase(4000, 8500, Erase::Free).unwrap();
    assert!(zeros(4000, 8500));
    assert_eq!(read(&image, 0, 4000), below[..4000]);
    assert_eq!(read(&image, 12500, 100), below[12500..12600]);
    assert_eq!(
        image.extent(4096, 8192).unwrap(),
        Mapped { len: 4096, kind: Kind::Zero, depth: 0, compressed: false, host: None }
    );
    // What is part of a granule is not revealed.
    image.erase(4100, 8000, Erase::Reveal).unwrap();
    assert_eq!(read(&image, 8192, 3908), vec![0; 3908]);
    image.erase(0, SIZE, Erase::Reveal).unwrap();
    assert_eq!(read(&image, 0, SIZE as usize), below);
    assert!(top.disk().granules.is_empty());
    image.erase(SIZE - 100, 100, Erase::Zero).unwrap();
    assert!(zeros(SIZE as usize - 100, 100) && !zeros(SIZE as usize - 101, 1));
    image.erase(7, 0, Erase::Zero).unwrap();
    assert!(image.erase(SIZE, 1, Erase::Zero).is_err());
}

#[test]
fn a_granule_is_not_revealed_under_a_writer() {
    let below = stamped(8192);
    for _ in 0..2000 {
        let image = chain(vec![Granules::new(8192, 4096), below.clone()]);
        let shown = read(&image, 0, 8192);
        image.write(0, &shown[..4096]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| image.write(512, &[1; 512]).unwrap());
            scope.spawn(|| image.erase(0, 4096, Erase::Reveal).unwrap());
        });
        let now = read(&image, 0, 4096);
        assert!(
            now[..512] == shown[..512] && now[1024..] == shown[1024..4096],
            "the writer's neighbours are lost"
        );
    }
}

#[test]
fn growing_over_a_longer_parent_does_not_show_it() {
    for (size, grown) in [(4096, 16384), (5120, 16384), (512, 1024), (5120, 6144)] {
        let image = chain(vec![Granules::new(size, 4096), stamped(12288)]);
        let before = read(&image, 0, size as usize);
        image.resize(grown, Prealloc::Off).unwrap();
        let after = read(&image, 0, grown as usize);
        assert_eq!(after[..size as usize], before);
        assert!(after[size as usize..].iter().all(|byte| *byte == 0), "{size} to {grown}");
    }
}

#[test]
fn growing_hides_the_parent_behind_the_old_end_where_it_is_empty_before() {
    let parent = Granules::new(12288, 1024);
    parent.write(2048, &[7; 10240]).unwrap();
    for size in [512, 1024, 2048, 4608] {
        let image = chain(vec![Granules::new(size, 4096), parent.clone()]);
        let before = read(&image, 0, size as usize);
        image.resize(16384, Prealloc::Off).unwrap();
        assert_eq!(read(&image, 0, size as usize), before);
        assert!(read(&image, size, 16384 - size as usize).iter().all(|byte| *byte == 0), "{size}");
    }
}

#[test]
fn more_granules_than_stripes() {
    let image = chain(vec![Granules::new(1 << 20, 512), stamped(1 << 20)]);
    let mut wanted = vec![0; (1 << 20) - 1400];
    fill(&mut wanted, 700, 9);
    image.write(700, &wanted).unwrap();
    assert_eq!(read(&image, 700, wanted.len()), wanted);
    image.erase(100, (1 << 20) - 200, Erase::Zero).unwrap();
    assert!(read(&image, 100, (1 << 20) - 200).iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_past_the_end_is_refused() {
    let image = chain(vec![Granules::new(4096, 512)]);
    for (at, len) in [(4096, 1), (0, 4097), (u64::MAX, 2), (4095, 2)] {
        assert_eq!(image.read(at, &mut vec![0; len]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(image.write(at, &vec![0; len]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(image.erase(at, len as u64, Erase::Zero).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert!(image.extent(4096, 1).is_err());
    image.read(4096, &mut []).unwrap();
    image.write(4096, &[]).unwrap();
    assert!(Image::new(Vec::new()).is_err());
}

#[test]
fn an_error_names_the_layer_and_is_one_line() {
    let parent = Arc::new(MemoryStorage::from_bytes(&[1; 8192]));
    let raw: Arc<dyn Layer> = Arc::new(RawLayer::over(parent.clone(), false).unwrap());
    let links = vec![
        Link { layer: Granules::new(8192, 512), name: "top".into(), format: "test" },
        Link { layer: raw, name: "par\nent\u{1b}[1m".into(), format: "raw" },
    ];
    let image = Image::new(links).unwrap();
    parent.set_len(100).unwrap();
    let error = image.read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    assert_eq!(error.image_name(), Some("par\nent\u{1b}[1m"));
    let text = error.to_string();
    assert!(text.starts_with("par\\nent\\u{1b}[1m: "), "{text}");
    assert!(!text.contains(['\n', '\u{1b}']), "{text}");
}
