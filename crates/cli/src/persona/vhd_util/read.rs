//! `vhd-util read`: what stands in an image, as text or as it is.

use std::ffi::OsString;
use std::path::Path;

use cowhand::{Blocks, Error, Kind, Layer, Open, open, open_alone};

use super::headers::{Base, print, structures};
use super::{Call, Done, Failed, Flag, HELP, NAME, SECTOR, Verb, errno, file, look, name_of, needed, number};
use crate::persona::complain;

pub(super) const VERB: Verb = Verb {
    name: "read",
    about: "what stands in an image",
    flags: &[
        NAME,
        Flag::short('p', "headers", "The structures of its metadata"),
        Flag::short('t', "where", "Where a sector of the disk stands in the file").of("SECTOR"),
        Flag::short('b', "entry", "A block's entry in the table").of("BLOCK"),
        Flag::short('B', "blocks", "A bit for each block of the disk that is there, the highest first"),
        Flag::short('m', "bitmap", "A block's bitmap of sectors, as it is").of("BLOCK"),
        Flag::short('i', "bit", "Whether a sector is there").of("SECTOR"),
        Flag::short('e', "extents", "The runs of sectors that are there").of("SECTOR"),
        Flag::short('a', "batmap", "The map of full blocks, as it is"),
        Flag::short('j', "full", "Whether a block is full").of("BLOCK"),
        Flag::short('d', "data", "A block's data, as it is in this file").of("BLOCK"),
        Flag::short('r', "sectors", "The disk's sectors, as its chain has them").of("SECTOR"),
        Flag::short('R', "bytes", "The disk's bytes, as its chain has them").of("BYTE"),
        Flag::short('c', "count", "How many of these (1)").of("COUNT"),
        Flag::short('x', "hex", "Numbers in hexadecimal"),
        Flag::short('C', "cached", "Accepted, and of no consequence"),
        HELP,
    ],
    run,
};

/// In this order, whatever was asked first.
const ORDER: [&str; 12] = [
    "headers", "where", "entry", "blocks", "bitmap", "bit", "extents", "batmap", "full", "data", "sectors",
    "bytes",
];

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut asked, mut count, mut hex) = (None, Vec::new(), 1, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "count" => count = number(&value)?,
            "hex" => hex = true,
            flag => asked.push((flag, at(flag, &value)?)),
        }
    }
    call.end()?;
    let path = needed(name)?;
    let base = Base { hex };
    let image = match open_alone(&path, &look()) {
        Ok(image) => image,
        Err(error) => {
            let failed = Failed::of(format!("Failed to open {}", name_of(&path)), error);
            return dump(call, &path, base).and(Err(failed));
        }
    };
    let layer = image.top().layer.as_ref();
    let Some(blocks) = layer.as_blocks() else {
        // Of a fixed disk nothing is told, its structures neither: the tool wants a table first.
        writeln!(call.out, "Failed to get bat for {}: -{}", name_of(&path), errno::INVALID)?;
        return Err(Failed::says(errno::INVALID, ""));
    };
    let reader = Reader { path: &path, layer, blocks, base, count };
    for what in ORDER {
        if let Some((_, at)) = asked.iter().rev().find(|(flag, _)| *flag == what) {
            reader.read(call, what, *at)?;
        }
    }
    Ok(())
}

/// Where a flag wants to begin; what has no place begins at 0.
fn at(flag: &str, value: &OsString) -> Result<u64, Failed> {
    match flag {
        "headers" | "blocks" | "batmap" | "cached" => Ok(0),
        _ => number(value),
    }
}

/// What can be told of an image that does not open.
fn dump(call: &mut Call<'_>, path: &Path, base: Base) -> Done {
    if let Ok(all) = structures(path) {
        writeln!(call.out, "\n{} appears invalid; dumping headers\n", name_of(path))?;
        print(call.out, &all, base)?;
    }
    Ok(())
}

struct Reader<'a> {
    path: &'a Path,
    layer: &'a dyn Layer,
    blocks: &'a dyn Blocks,
    base: Base,
    count: u64,
}

impl Reader<'_> {
    fn read(&self, call: &mut Call<'_>, what: &str, at: u64) -> Done {
        match what {
            "headers" => Ok(print(call.out, &self.layer.structures()?, self.base)?),
            "blocks" => self.present(call),
            "batmap" => match self.blocks.full_blocks()? {
                Some(bits) => Ok(call.out.write_all(&bits)?),
                None => {
                    Err(Failed::says(errno::INVALID, format!("failed to read batmap: -{}", errno::INVALID)))
                }
            },
            "where" | "bit" | "extents" => {
                self.within(self.layer.size().div_ceil(SECTOR), at, "sector")?;
                match what {
                    "where" => self.places(call, at),
                    "bit" => self.bits(call, at),
                    _ => self.extents(call, at),
                }
            }
            "sectors" | "bytes" => {
                let unit = if what == "sectors" { SECTOR } else { 1 };
                self.within(self.layer.size() / unit, at, what.trim_end_matches('s'))?;
                self.disk(call, at * unit, self.count * unit)
            }
            _ => {
                self.within(self.blocks.room(), at, "block")?;
                (at..at + self.count).try_for_each(|block| self.block(call, what, block))
            }
        }
    }

    /// All that was asked for is there.
    fn within(&self, there: u64, at: u64, what: &str) -> Done {
        match at.checked_add(self.count) {
            Some(end) if end <= there => Ok(()),
            _ => {
                complain(&format!("{what} {} past end of file", self.base.of(at.saturating_add(self.count))));
                Err(Failed::says(errno::RANGE, ""))
            }
        }
    }

    fn block(&self, call: &mut Call<'_>, what: &str, block: u64) -> Done {
        let shown = self.base.of(block);
        let place = self.blocks.place(block)?;
        match (what, place) {
            ("entry", place) => {
                let place = place.map_or_else(|| "not allocated".to_owned(), |at| self.base.of(at));
                writeln!(call.out, "block: {shown}: offset: {place}")?;
            }
            ("full", _) => {
                let Some(bits) = self.blocks.full_blocks()? else {
                    complain("failed to get batmap");
                    return Err(Failed::says(errno::INVALID, ""));
                };
                complain(&format!("batmap for block {shown}: {}", u8::from(is_set(&bits, block))));
            }
            (_, None) => writeln!(call.out, "block {shown} not allocated")?,
            ("bitmap", _) => call.out.write_all(&self.blocks.bitmap(block)?.unwrap_or_default())?,
            (_, Some(place)) => {
                let start = place + self.blocks.bitmap_len();
                let mut done = 0;
                while done < self.blocks.block_size() {
                    let mut bytes = vec![0; (self.blocks.block_size() - done).min(PIECE) as usize];
                    let read = self.layer.host().read_at(start + done, &mut bytes);
                    read.map_err(|error| Error::io("cannot read", error).at(start + done))?;
                    call.out.write_all(&bytes)?;
                    done += bytes.len() as u64;
                }
            }
        }
        Ok(())
    }

    fn places(&self, call: &mut Call<'_>, first: u64) -> Done {
        let per_block = self.blocks.block_size() / SECTOR;
        for sector in first..first + self.count {
            let (block, within) = (sector / per_block, sector % per_block);
            let place = self.blocks.place(block)?.map(|at| at + self.blocks.bitmap_len() + within * SECTOR);
            let place = place.map_or_else(|| "not allocated".to_owned(), |at| self.base.of(at));
            let [sector, block, within] = [sector, block, within].map(|number| self.base.of(number));
            writeln!(
                call.out,
                "logical sector {sector}: block number: {block}, sector offset: {within}, file offset: {place}"
            )?;
        }
        Ok(())
    }

    /// Tells of each sector whether it is there.
    fn each(&self, first: u64, mut see: impl FnMut(u64, u64, u64, bool) -> Done) -> Done {
        let per_block = self.blocks.block_size() / SECTOR;
        let mut known: Option<(u64, Option<Vec<u8>>)> = None;
        for sector in first..first + self.count {
            let (block, within) = (sector / per_block, sector % per_block);
            let bits = match known.take() {
                Some((of, bits)) if of == block => bits,
                _ => self.blocks.bitmap(block)?,
            };
            see(sector, block, within, bits.as_deref().is_some_and(|bits| is_set(bits, within)))?;
            known = Some((block, bits));
        }
        Ok(())
    }

    fn bits(&self, call: &mut Call<'_>, first: u64) -> Done {
        self.each(first, |_, block, within, is| {
            let (block, within) = (self.base.of(block), self.base.of(within));
            Ok(writeln!(call.out, "block {block}: sec: {within}: {}", u8::from(is))?)
        })
    }

    fn extents(&self, call: &mut Call<'_>, first: u64) -> Done {
        let per_block = self.blocks.block_size() / SECTOR;
        let mut run: Option<(u64, u64)> = None;
        let (mut sector, last) = (first, first + self.count);
        while sector < last {
            let block = sector / per_block;
            let end = ((block + 1) * per_block).min(last);
            let bits = self.blocks.bitmap(block)?;
            let Some(bits) = bits else {
                // With it, all blocks that are not there either.
                self.show(call, run.take())?;
                let found = self.layer.extent(sector * SECTOR, (last - sector) * SECTOR)?;
                let passed = if found.kind == Kind::Data { 0 } else { found.len / SECTOR };
                sector = end.max((sector + passed) / per_block * per_block);
                continue;
            };
            for at in sector..end {
                match (&mut run, is_set(&bits, at % per_block)) {
                    (Some((_, len)), true) => *len += 1,
                    (None, true) => run = Some((at, 1)),
                    (_, false) => self.show(call, run.take())?,
                }
            }
            sector = end;
        }
        self.show(call, run)
    }

    fn show(&self, call: &mut Call<'_>, run: Option<(u64, u64)>) -> Done {
        let Some((start, len)) = run else { return Ok(()) };
        Ok(writeln!(call.out, "{} {}", self.base.of(start), self.base.of(len))?)
    }

    /// A bit for each block of the disk.
    fn present(&self, call: &mut Call<'_>) -> Done {
        let size = self.blocks.block_size();
        let blocks = self.layer.size().div_ceil(size);
        let mut bits = vec![0u8; usize::try_from(blocks.div_ceil(8)).map_err(|_| super::wrong())?];
        self.layer.allocated(&mut |range, _| {
            let block = range.start / size;
            if let Some(byte) = bits.get_mut((block / 8) as usize) {
                *byte |= 0x80 >> (block % 8);
            }
            Ok(())
        })?;
        Ok(call.out.write_all(&bits)?)
    }

    /// What the disk shows.
    fn disk(&self, call: &mut Call<'_>, start: u64, len: u64) -> Done {
        let disk =
            open(self.path, &Open { any_parent: true, ..look() }).map_err(super::opening(self.path))?;
        let mut done = 0;
        while done < len {
            let mut bytes = vec![0; (len - done).min(PIECE) as usize];
            disk.read(start + done, &mut bytes)?;
            call.out.write_all(&bytes)?;
            done += bytes.len() as u64;
        }
        Ok(())
    }
}

/// A bit of a map whose highest bits come first.
fn is_set(bits: &[u8], index: u64) -> bool {
    let byte = usize::try_from(index / 8).ok().and_then(|at| bits.get(at)).copied().unwrap_or(0);
    byte << (index % 8) & 0x80 != 0
}
