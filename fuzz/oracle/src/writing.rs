//! What must hold of every layer that opens for writing, whatever its bytes: a write changes what it names and nothing
//! else, and does not make the image worse.

use std::sync::Arc;

use cowhand::{Erase, Error, Format, Kind, Layer, NoFiles, OpenOptions, Storage};

use crate::layer::refused;
use crate::mutate::Random;

/// Bytes of a window: what is watched, and written at most, at one place.
const WINDOW: u64 = 4096;
/// Windows that are watched.
const WINDOWS: usize = 24;
const STEPS: usize = 30;
/// Extents looked at in search of places that hold something.
const EXTENTS: usize = 200;

/// A place on the disk and what it must hold; `None`: it could not be read, or a failed change left it open.
pub(crate) struct Window {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) holds: Option<Vec<u8>>,
}

/// Opens what `storage` holds for writing, changes some of it, and looks whether all else stayed. False where it does
/// not open, or refuses the first change.
pub(crate) fn change(format: &dyn Format, storage: &Arc<dyn Storage>, random: &mut Random) -> bool {
    let how = OpenOptions { writable: true, ..OpenOptions::default() };
    let layer = match format.open(Arc::clone(storage), &NoFiles, &how) {
        Ok(layer) => layer,
        Err(error) => {
            refused(&error);
            return false;
        }
    };
    let mut windows = watch(&*layer, random);
    if windows.is_empty() {
        return false;
    }
    let mut changed = false;
    for step in 0..STEPS {
        let which = random.below(windows.len() as u64) as usize;
        match step_at(&*layer, &mut windows[which], step as u8 + 1, random) {
            Ok(done) => changed |= done,
            Err(error) => {
                refused(&error);
                windows[which].holds = None;
            }
        }
        if !changed && step > 4 {
            return false;
        }
    }
    compare(&*layer, &windows, "while it is open");
    let closed = layer.close();
    drop(layer);
    if let Err(error) = closed {
        refused(&error);
        return false;
    }
    let again = format
        .open(Arc::clone(storage), &NoFiles, &OpenOptions::default())
        .unwrap_or_else(|error| panic!("what was written and closed does not open: {error}"));
    compare(&*again, &windows, "opened again");
    changed
}

/// Chooses windows: where something is stored, and anywhere.
pub(crate) fn watch(layer: &dyn Layer, random: &mut Random) -> Vec<Window> {
    let size = layer.size();
    let mut places = Vec::new();
    let (mut at, mut looks) = (0, 0);
    while at < size && looks < EXTENTS {
        looks += 1;
        match layer.extent(at, size - at) {
            Ok(extent) => {
                if extent.kind != Kind::Hole {
                    places.push(at + random.below(extent.len));
                }
                at += extent.len;
            }
            Err(_) => at = (at / layer.granule() + 1).saturating_mul(layer.granule()),
        }
    }
    for _ in 0..WINDOWS / 4 {
        places.push(random.below(size.max(1)));
    }
    let mut starts: Vec<u64> =
        places.into_iter().map(|at| at / WINDOW * WINDOW).filter(|at| *at < size).collect();
    starts.sort_unstable();
    starts.dedup();
    while starts.len() > WINDOWS {
        starts.swap_remove(random.below(starts.len() as u64) as usize);
    }
    let window = |at| {
        let len = WINDOW.min(size - at);
        Window { at, len, holds: content(layer, at, len).ok() }
    };
    starts.into_iter().map(window).collect()
}

/// The disk's bytes, with nothing below.
pub(crate) fn content(layer: &dyn Layer, at: u64, len: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; len as usize];
    let mut done = 0;
    while done < len {
        done += layer.read(at + done, &mut bytes[done as usize..])?.len;
    }
    Ok(bytes)
}

/// One change within a window. False where the layer says that it cannot do it.
fn step_at(layer: &dyn Layer, window: &mut Window, value: u8, random: &mut Random) -> Result<bool, Error> {
    let from = random.below(window.len);
    let len = 1 + random.below(window.len - from);
    match random.below(8) {
        0 => {
            layer.flush()?;
            Ok(false)
        }
        1..=2 => {
            let how = [Erase::Zero, Erase::Free, Erase::Reveal][random.below(3) as usize];
            // Whole windows are granules of most images; an image with larger ones answers 0.
            let done = layer.erase(window.at, window.len, how)?;
            assert!(done <= window.len, "{done} of {} bytes were erased", window.len);
            if let Some(holds) = &mut window.holds {
                holds[..done as usize].fill(0);
            }
            Ok(done > 0)
        }
        _ => {
            layer.write(window.at + from, &vec![value; len as usize])?;
            if let Some(holds) = &mut window.holds {
                holds[from as usize..(from + len) as usize].fill(value);
            }
            Ok(true)
        }
    }
}

fn compare(layer: &dyn Layer, windows: &[Window], when: &str) {
    for window in windows {
        let Some(holds) = &window.holds else { continue };
        match content(layer, window.at, window.len) {
            Err(error) => panic!("{when}, {} could be read before: {error}", window.at),
            Ok(found) => {
                let differs = found.iter().zip(holds).position(|(a, b)| a != b);
                assert!(
                    differs.is_none(),
                    "{when}, byte {differs:?} of the window at {} is another",
                    window.at
                );
            }
        }
    }
}
