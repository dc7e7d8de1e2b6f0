//! The model test: any operations on a layer, against a flat vector of bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bench::{Failure, Opener, Rng, image, makes, no_panic, opens};
use super::history::{list, read_all, snapshot_name};
use super::script::{Op, SECTOR, Shape, describe, fill};
use crate::{
    Erase, ErrorKind, Folder, Image, Kind, Layer, MemoryFolder, NewSnapshot, Prealloc, Quiet, Result, Storage,
};

/// A random script on a layer (through an [`Image`], over a parent if one is given) against a flat vector:
///
/// - after each operation, what was touched and some more reads as the vector; now and then everything does
/// - `Layer::read` answers a prefix that is not empty and touches the buffer only where it says `Data`
/// - `Layer::extent` covers at least one byte and at most what was asked for; it says `Hole` where `read` does and
///   nowhere else; `Zero` reads zero; where `Data` has a host offset, those very bytes stand in `Layer::host`
/// - revealing shows the parent or changes nothing; with a parent that holds data, freeing never shows it
///
/// A failing script is made shorter before it is shown.
pub struct ModelTest<'a> {
    make: Opener<'a>,
    reopen: Opener<'a>,
    parent: Option<Arc<dyn Layer>>,
    shape: Shape,
    script: Option<Vec<Op>>,
    seed: u64,
}

struct Model {
    bytes: Vec<u8>,
    /// What a revealed byte shows.
    below: Vec<u8>,
    /// The operations that made them, and what the disk held.
    snapshots: Vec<(u64, Vec<u8>)>,
}

impl<'a> ModelTest<'a> {
    /// Tests a format of one file: `make` makes an empty image on an empty storage, `reopen` opens it for writing.
    pub fn new(
        make: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
        reopen: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        Self::boxed(makes(make), opens(reopen))
    }

    /// Tests a format of several files, which it makes and opens in a folder.
    pub fn in_folder(
        make: impl Fn(&Arc<dyn Folder>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
        reopen: impl Fn(&Arc<dyn Folder>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        Self::boxed(Box::new(make), Box::new(reopen))
    }

    fn boxed(make: Opener<'a>, reopen: Opener<'a>) -> Self {
        ModelTest { make, reopen, parent: None, shape: Shape::new(1 << 20, 65536), script: None, seed: 1 }
    }

    /// Puts the layer over this one.
    #[must_use]
    pub fn parent(mut self, parent: Arc<dyn Layer>) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The shape of the random script.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// These operations instead of random ones.
    #[must_use]
    pub fn script(mut self, script: Vec<Op>) -> Self {
        self.script = Some(script);
        self
    }

    /// The seed of the script.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Runs it.
    pub fn run(&self) -> Result<(), Failure> {
        let mut script = self.script.clone().unwrap_or_else(|| self.shape.script(self.seed));
        let Err(mut failure) = no_panic(|| self.run_script(&script)) else { return Ok(()) };
        let since = Instant::now();
        let mut piece = script.len() / 2;
        while piece > 0 {
            let mut at = 0;
            while at < script.len() && since.elapsed() < Duration::from_secs(5) {
                let mut shorter = script.clone();
                shorter.drain(at..(at + piece).min(script.len()));
                match no_panic(|| self.run_script(&shorter)) {
                    Err(same) => (script, failure) = (shorter, same),
                    Ok(()) => at += piece,
                }
            }
            piece /= 2;
        }
        Err(failure.with(format!("seed {}, made shorter:\n{}", self.seed, list(&script))))
    }

    fn run_script(&self, script: &[Op]) -> Result<(), Failure> {
        let folder: Arc<dyn Folder> = Arc::new(MemoryFolder::new());
        let mut disk = image((self.make)(&folder)?, self.parent.as_ref())?;
        // Room for a disk that grows.
        let mut below = vec![0; 2 * disk.size() as usize];
        if let Some(parent) = &self.parent {
            below = read_all(parent, below.len() as u64)?;
        }
        let mut model = Model { bytes: below[..disk.size() as usize].to_vec(), below, snapshots: Vec::new() };
        let mut rng = Rng::new(self.seed);
        model.compare_all(&disk, &mut rng)?;
        for (number, op) in (1..).zip(script) {
            if *op == Op::Reopen {
                disk.close()?;
                drop(disk);
                disk = image((self.reopen)(&folder)?, self.parent.as_ref())?;
            } else {
                model
                    .step(&disk, number, *op)
                    .map_err(|failure| failure.during(format!("operation {number}")))?;
            }
            let whole = number % 8 == 0 || *op == Op::Reopen;
            let same = if whole {
                model.compare_all(&disk, &mut rng)
            } else {
                model.compare_some(&disk, *op, &mut rng)
            };
            same.map_err(|failure| failure.during(format!("after operation {number}")))?;
        }
        model.compare_all(&disk, &mut rng)?;
        disk.close()?;
        drop(disk);
        let disk = image((self.reopen)(&folder)?, self.parent.as_ref())?;
        model.compare_all(&disk, &mut rng).map_err(|failure| failure.during("closed and opened again"))?;
        disk.close()?;
        Ok(())
    }
}

impl Model {
    fn step(&mut self, disk: &Image, number: u64, op: Op) -> Result<(), Failure> {
        // A script that was made shorter may have lost a change of size.
        let fits = |at: u64, len: u64| at + len <= disk.size();
        match op {
            Op::Write { at, len } | Op::Compressed { at, len } if fits(at, len) => {
                let mut buf = vec![0; len as usize];
                fill(&mut buf, at, number);
                let compressed = matches!(op, Op::Compressed { .. });
                match if compressed { disk.write_compressed(at, &buf) } else { disk.write(at, &buf) } {
                    Err(error) if compressed && error.kind() == ErrorKind::Unsupported => {}
                    done => {
                        done?;
                        self.bytes[at as usize..(at + len) as usize].copy_from_slice(&buf);
                    }
                }
            }
            Op::Erase { at, len, how } if fits(at, len) => {
                disk.erase(at, len, how)?;
                if how == Erase::Reveal {
                    self.revealed(disk, at, len)?;
                } else {
                    self.bytes[at as usize..(at + len) as usize].fill(0);
                }
            }
            Op::Resize { size } if size as usize <= self.below.len() => {
                match disk.resize(size, Prealloc::Off) {
                    // A format may have no place for a snapshot of another size, and may cut off no data.
                    Err(error)
                        if error.kind() == ErrorKind::Unsupported
                            && (!self.snapshots.is_empty() || (size as usize) < self.bytes.len()) => {}
                    done => {
                        done?;
                        self.bytes.resize(size as usize, 0);
                    }
                }
            }
            Op::Flush => disk.flush()?,
            Op::Snapshot | Op::Apply { .. } | Op::Delete { .. } => self.snapshot(disk, number, op)?,
            Op::Hide { hidden } => {
                let layer = &disk.links()[0].layer;
                match layer.set_hidden(hidden) {
                    Err(error) if error.kind() == ErrorKind::Unsupported => {}
                    done => {
                        done?;
                        if layer.hidden() != Some(hidden) {
                            return Err(Failure::new(format!("hidden is {:?}", layer.hidden())));
                        }
                    }
                }
            }
            Op::Compact => disk.links()[0].layer.compact(&Quiet)?,
            Op::Clear if self.snapshots.is_empty() => match disk.links()[0].layer.clear() {
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                done => {
                    done?;
                    let size = self.bytes.len();
                    self.bytes.copy_from_slice(&self.below[..size]);
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn snapshot(&mut self, disk: &Image, number: u64, op: Op) -> Result<(), Failure> {
        let layer = disk.links()[0].layer.clone();
        let Some(snapshots) = layer.as_snapshots() else { return Ok(()) };
        let which = |nth: usize| nth % self.snapshots.len().max(1);
        match op {
            Op::Snapshot if self.snapshots.len() < 3 => {
                let name = snapshot_name(number);
                match snapshots.create(&NewSnapshot { name, ..NewSnapshot::default() }) {
                    Err(error) if error.kind() == ErrorKind::Unsupported => {}
                    done => {
                        done?;
                        self.snapshots.push((number, self.bytes.clone()));
                    }
                }
            }
            Op::Apply { nth } if !self.snapshots.is_empty() => {
                let (of, bytes) = self.snapshots[which(nth)].clone();
                snapshots.apply(&snapshot_name(of))?;
                self.bytes = bytes;
            }
            Op::Delete { nth } if !self.snapshots.is_empty() => {
                let (of, _) = self.snapshots.remove(which(nth));
                snapshots.delete(&snapshot_name(of))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Each snapshot is listed, and holds what the disk held then.
    fn compare_snapshots(&self, disk: &Image) -> Result<(), Failure> {
        let Some(snapshots) = disk.links()[0].layer.as_snapshots() else { return Ok(()) };
        let list: Vec<String> = snapshots.list()?.into_iter().map(|snapshot| snapshot.name).collect();
        let names: Vec<String> = self.snapshots.iter().map(|(of, _)| snapshot_name(*of)).collect();
        if list != names {
            return Err(Failure::new(format!("the snapshots are {list:?}, not {names:?}")));
        }
        for ((_, bytes), name) in self.snapshots.iter().zip(&names) {
            let mut links = disk.links().to_vec();
            links[0].layer = snapshots.open(name)?;
            let then = Image::new(links)?;
            let mut read = vec![0x5a; then.size() as usize];
            then.read(0, &mut read)?;
            if read != *bytes {
                let byte = read.iter().zip(bytes).position(|(a, b)| a != b);
                return Err(Failure::new(format!(
                    "'{name}' of {} bytes is not what the disk of {} was (first at byte {byte:?})",
                    read.len(),
                    bytes.len()
                )));
            }
        }
        Ok(())
    }

    /// Each sector shows what lies below, or what it held; the model learns which.
    fn revealed(&mut self, disk: &Image, at: u64, len: u64) -> Result<(), Failure> {
        let mut now = vec![0; len as usize];
        disk.read(at, &mut now)?;
        let mut done = 0;
        while done < now.len() {
            let here = at as usize + done;
            let n = (SECTOR as usize - here % SECTOR as usize).min(now.len() - done);
            let (held, range) = (&now[done..done + n], here..here + n);
            if *held != self.bytes[range.clone()] {
                if *held != self.below[range.clone()] {
                    return Err(Failure::new(format!(
                        "byte {here}: revealed, it holds {}, which is neither what it held nor what lies below",
                        describe(held)
                    )));
                }
                self.bytes[range].copy_from_slice(held);
            }
            done += n;
        }
        Ok(())
    }

    fn compare_some(&self, disk: &Image, op: Op, rng: &mut Rng) -> Result<(), Failure> {
        if let Op::Write { at, len } | Op::Compressed { at, len } | Op::Erase { at, len, .. } = op {
            // What lies around it, too.
            let at = at.saturating_sub(rng.below(5000)).min(disk.size());
            self.compare(disk, at, (len + rng.below(10000)).min(disk.size() - at), rng)?;
        }
        let at = rng.below(disk.size());
        self.compare(disk, at, (1 + rng.below(5000)).min(disk.size() - at), rng)
    }

    fn compare_all(&self, disk: &Image, rng: &mut Rng) -> Result<(), Failure> {
        if disk.size() != self.bytes.len() as u64 {
            return Err(Failure::new(format!(
                "the disk has {} bytes, not {}",
                disk.size(),
                self.bytes.len()
            )));
        }
        self.compare_snapshots(disk)?;
        self.compare(disk, 0, disk.size(), rng)
    }

    fn compare(&self, disk: &Image, at: u64, len: u64, rng: &mut Rng) -> Result<(), Failure> {
        let mut read = vec![0x5a; len as usize];
        disk.read(at, &mut read)?;
        let wanted = &self.bytes[at as usize..(at + len) as usize];
        if let Some(wrong) = (0..read.len()).find(|i| read[*i] != wanted[*i]) {
            let from = wrong - wrong % 16;
            let sample = |bytes: &[u8]| describe(&bytes[from..(from + 16).min(bytes.len())]);
            let byte = at + wrong as u64;
            return Err(Failure::new(format!(
                "byte {byte} (sector {}) of {at}..{}: read {}, wanted {}",
                byte / SECTOR,
                at + len,
                sample(&read),
                sample(wanted)
            )));
        }
        self.walk(disk, at, at + len, rng)?;
        top_contract(disk.links()[0].layer.as_ref(), at, at + len, rng)
    }

    /// The chain's extents say what the bytes are.
    fn walk(&self, disk: &Image, mut at: u64, end: u64, rng: &mut Rng) -> Result<(), Failure> {
        while at < end {
            let max = if rng.chance(1, 2) { end - at } else { 1 + rng.below(end - at) };
            let found = disk.extent(at, max)?;
            let wrong = |what: &str| {
                Err(Failure::new(format!("extent at {at} for at most {max}, {found:?}: {what}")))
            };
            if found.len == 0 || found.len > max {
                return wrong("has a wrong length");
            }
            let bytes = &self.bytes[at as usize..(at + found.len) as usize];
            match found.kind {
                Kind::Zero | Kind::Hole if !crate::is_zero(bytes) => return wrong("does not read zero"),
                Kind::Data if !found.compressed => {
                    if let Some(host) = found.host {
                        let mut stored = vec![0; bytes.len()];
                        let storage = disk.links()[found.depth].layer.host();
                        storage.read_at(host, &mut stored).map_err(|error| {
                            Failure::from(error).during(format!("the host bytes of {found:?}"))
                        })?;
                        if stored != bytes {
                            return wrong("other bytes stand at its host offset");
                        }
                    }
                }
                Kind::Data if found.host.is_some() => return wrong("compressed bytes cannot stand verbatim"),
                _ => {}
            }
            at += found.len;
        }
        Ok(())
    }
}

/// `read` and `extent` of one layer agree and keep to what their documentation says.
fn top_contract(layer: &dyn Layer, mut at: u64, end: u64, rng: &mut Rng) -> Result<(), Failure> {
    const UNTOUCHED: u8 = 0xa5;
    while at < end {
        let max = if rng.chance(1, 2) { end - at } else { 1 + rng.below((end - at).min(9000)) };
        let mut buf = vec![UNTOUCHED; max as usize];
        let read = layer.read(at, &mut buf)?;
        let said = layer.extent(at, max)?;
        let wrong = |what: &str| {
            Err(Failure::new(format!("at {at}, {max} bytes: read says {read:?}, extent {said:?}: {what}")))
        };
        if read.len == 0 || read.len > max || said.len == 0 || said.len > max {
            return wrong("wrong length");
        }
        if (read.kind == Kind::Hole) != (said.kind == Kind::Hole) {
            return wrong("only one of them sees a hole");
        }
        if read.kind != Kind::Data && buf.iter().any(|byte| *byte != UNTOUCHED) {
            return wrong("read touched the buffer");
        }
        if said.kind == Kind::Zero
            && read.kind == Kind::Data
            && !crate::is_zero(&buf[..read.len.min(said.len) as usize])
        {
            return wrong("it is not zero");
        }
        at += read.len.min(said.len);
    }
    Ok(())
}
