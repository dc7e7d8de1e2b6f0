//! What the file's metadata says as it stands there, the table and the bitmaps among it, and where the file may end.

use std::sync::PoisonError;

use cowhand_core::{Blocks, Error, Result, Storage, Structure};
use serde_json::{Map, Value};

use crate::bat::Bat;
use crate::batmap::{Batmap, Map as FullMap};
use crate::bitmap::BitOrder;
use crate::dynamic::Dynamic;
use crate::find::find_anyway;
use crate::fixed::Fixed;
use crate::footer::{self, FOOTER_LEN};
use crate::geometry::SECTOR;
use crate::header::{self, RawLocator};
use crate::locator::Locator;

/// The structures of a file, damaged or not: the footer that counts, and for a disk with a table its header, the
/// locators in use and the batmap's header.
pub(crate) fn structures(
    file: &dyn Storage,
    locators: &[Locator],
    batmap: Option<Batmap>,
) -> Result<Vec<Structure>> {
    let found = find_anyway(file)?;
    let mut all = vec![Structure { name: "footer", fields: footer::fields(file, found.at)? }];
    if found.footer.disk_type == footer::DiskType::Fixed {
        return Ok(all);
    }
    let (fields, raw) = header::fields(file, found.footer.header_at)?;
    all.push(Structure { name: "header", fields });
    let used = (0..).zip(raw).filter(|(_, raw)| raw.code != [0; 4]);
    all.extend(
        used.map(|(index, raw)| Structure { name: "locator", fields: locator(index, &raw, locators) }),
    );
    if let Some(batmap) = batmap {
        let map = FullMap::read(file, batmap, found.data_end);
        let sum = map.map(|map| map.checksum()).unwrap_or_default();
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("offset", batmap.map_at.into());
        put("size", batmap.sectors.into());
        put("version", batmap.version.into());
        put("checksum", batmap.checksum.into());
        put("checksum-computed", sum.into());
        all.push(Structure { name: "batmap", fields });
    }
    Ok(all)
}

fn locator(index: u64, raw: &RawLocator, locators: &[Locator]) -> Map<String, Value> {
    let text =
        locators.iter().find(|locator| locator.at == raw.data_offset.get() && locator.code == raw.code);
    let name = text.and_then(|locator| match &locator.code {
        b"MacX" => locator.text.strip_prefix("file://").map(str::to_owned),
        b"W2ru" | b"W2ku" => Some(header::without_drive(&locator.text)),
        _ => None,
    });
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("index", index.into());
    put("code", String::from_utf8_lossy(&raw.code).into_owned().into());
    put("data-space", raw.data_space.get().into());
    put("data-length", raw.data_length.get().into());
    put("data-offset", raw.data_offset.get().into());
    put("name", name.into());
    fields
}

impl Dynamic {
    /// See `Layer::used_len`.
    pub(crate) fn used(&self) -> Result<u64> {
        let state = self.state();
        let header = &state.header;
        let mut end = (header.at + header::HEADER_LEN).max(header.bat_end());
        if let Some(batmap) = self.batmap_head() {
            end = end.max(batmap.header().end).max(batmap.map().end);
        }
        let named = header.locators.iter().filter(|raw| raw.code != [0; 4]);
        end = named.fold(end, |end, raw| end.max(raw.place().end)).next_multiple_of(SECTOR);
        let blocks = state.size.div_ceil(self.block_size);
        let mut block = 0;
        while block < blocks {
            match state.bat.get(self.file.as_ref(), block)? {
                None => block += state.bat.free_run(self.file.as_ref(), block, blocks)?.max(1),
                Some(sector) => {
                    end = end.max(u64::from(sector) * SECTOR + self.bitmap_len + self.block_size);
                    block += 1;
                }
            }
        }
        Ok(end + FOOTER_LEN)
    }

    /// See `Layer::set_file_len`.
    pub(crate) fn end_file_at(&self, len: u64) -> Result<()> {
        let alone = self.alone()?;
        let used = self.used()?;
        if len < used || !len.is_multiple_of(SECTOR) {
            return Err(Error::invalid(format!(
                "the file cannot end at {len}: it needs {used} bytes, and whole sectors"
            )));
        }
        if (self.data_end() + FOOTER_LEN, self.file_len()) != (len, len) {
            let footer = self.state().footer.to_bytes();
            let mut space = alone.ready.space();
            let done = space.end_file_at(self.file.as_ref(), len, &footer, &|| self.barrier(alone.writer));
            self.set_end(space.data_end(), space.file_len());
            done?;
        }
        self.sync(alone.writer)
    }

    /// The table with all its entries, as it stands in the file.
    fn whole_table(&self) -> Bat {
        let header = &self.state().header;
        Bat::new(header, u64::from(header.max_entries))
    }
}

impl Blocks for Dynamic {
    fn block_size(&self) -> u64 {
        self.block_size
    }

    fn room(&self) -> u64 {
        self.state().header.max_entries.into()
    }

    fn bitmap_len(&self) -> u64 {
        self.bitmap_len
    }

    fn place(&self, block: u64) -> Result<Option<u64>> {
        if block >= self.room() {
            return Err(Error::invalid(format!("the table has no block {block}")));
        }
        let Some(sector) = self.whole_table().get(self.file.as_ref(), block)? else { return Ok(None) };
        let at = u64::from(sector) * SECTOR;
        let end = at + self.bitmap_len;
        if end > self.file_len() {
            let what = format!("puts block {block} at {at}, past the file's end at {}", self.file_len());
            return Err(Error::corrupt("BAT entry", what).at(self.whole_table().entry_at(block)));
        }
        Ok(Some(at))
    }

    fn bitmap(&self, block: u64) -> Result<Option<Vec<u8>>> {
        let Some(at) = self.place(block)? else { return Ok(None) };
        let mut bits = vec![0; self.bitmap_len as usize];
        self.file
            .read_at(at, &mut bits)
            .map_err(|error| Error::io("cannot read a sector bitmap", error).at(at))?;
        if self.order == BitOrder::Lsb {
            bits.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
        Ok(Some(bits))
    }

    fn full_blocks(&self) -> Result<Option<Vec<u8>>> {
        let Some(batmap) = self.batmap_head() else { return Ok(None) };
        FullMap::read(self.file.as_ref(), batmap, self.data_end()).map(|map| Some(map.bits().to_vec()))
    }
}

impl Fixed {
    /// See `Layer::set_file_len`.
    pub(crate) fn end_file_at(&self, len: u64) -> Result<()> {
        self.check_writable()?;
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let is = now.footer_at + FOOTER_LEN;
        match len {
            _ if len == is => self.file.sync().map_err(|error| Error::io("cannot sync", error)),
            _ if len < is => {
                Err(Error::invalid(format!("the file cannot end at {len}: it needs {is} bytes")))
            }
            _ => Err(Error::unsupported("a fixed VHD's file is as long as its disk")),
        }
    }
}
