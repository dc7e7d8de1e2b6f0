//! Chains that a test makes: layers with content at random, and the model of what the top shows.

use std::path::{Path, PathBuf};

use cowhand::{Child, Create, Erase, Image, Open};
use cowhand_tests::{Rng, Sample, options};

pub(crate) fn open(path: &Path) -> cowhand::Opened {
    cowhand::open(path, &Open::default()).unwrap()
}

pub(crate) fn writable(path: &Path) -> cowhand::Opened {
    cowhand::open(path, &Open { writable: true, ..Open::default() }).unwrap()
}

pub(crate) fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(0, &mut bytes).unwrap();
    bytes
}

pub(crate) fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}: size");
    let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
    assert_eq!(differs, None, "{what}: differs there");
}

pub(crate) fn create(path: &Path, format: &str, how: &str, size: usize) {
    let create = Create { options: options(how), ..Create::new(format, size as u64) };
    assert_eq!(cowhand::create(path, &create).unwrap().size, size as u64, "{}", path.display());
}

pub(crate) fn child(parent: &Path, path: &Path, format: &str, how: &str) {
    let how = Child {
        format: Some(format.to_owned()),
        options: options(how),
        keep_empty: true,
        ..Child::default()
    };
    cowhand::child(parent, path, &how).unwrap();
}

/// Writes at random, in sectors, into the top and into the model of the disk.
pub(crate) fn scribble(path: &Path, model: &mut [u8], rng: &mut Rng, count: u64) {
    let image = writable(path);
    for _ in 0..count {
        let most = if rng.below(4) == 0 { 400 } else { 9 };
        let len = (1 + rng.below(most)) as usize * 512;
        let at = rng.below(((model.len() - len) / 512 + 1) as u64) as usize * 512;
        let there = &mut model[at..at + len];
        match rng.below(4) {
            0 => {
                image.erase(at as u64, len as u64, Erase::Free).unwrap();
                there.fill(0);
            }
            1 => {
                there.fill(0);
                image.write(at as u64, there).unwrap();
            }
            _ => {
                there.fill(1 + rng.below(255) as u8);
                image.write(at as u64, there).unwrap();
            }
        }
    }
    image.close().unwrap();
}

/// A base and children of it, base first, each of a format and with options, with content in each, in `folder`; and what the top shows.
pub(crate) fn chain(
    folder: &Path,
    formats: &[(&str, &str)],
    size: usize,
    seed: u64,
) -> (Vec<PathBuf>, Vec<u8>) {
    let mut rng = Rng::new(seed);
    let mut model = vec![0; size];
    let mut paths: Vec<PathBuf> = Vec::new();
    for (index, (format, how)) in formats.iter().enumerate() {
        let path = folder.join(format!("layer-{index}.{format}"));
        match paths.last() {
            None => create(&path, format, how, size),
            Some(parent) => child(parent, &path, format, how),
        }
        scribble(&path, &mut model, &mut rng, 12);
        paths.push(path);
    }
    (paths, model)
}

/// A sample and its parent, copied into `folder`.
pub(crate) fn copied(sample: &Sample, folder: &Path) -> [PathBuf; 2] {
    let [child, parent] = [sample.file.file_name().unwrap().to_str().unwrap(), &sample.parent]
        .map(|name| (sample.file.parent().unwrap().join(name), folder.join(name)))
        .map(|(from, to)| {
            std::fs::copy(from, &to).unwrap();
            to
        });
    [child, parent]
}
