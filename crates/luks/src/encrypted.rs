//! Guest bytes at any offset, kept as whole encrypted sectors.

use std::sync::{RwLock, RwLockReadGuard};

use cowhand_core::Result;

use crate::sectors::{SECTOR, Sectors};

const UNIT: u64 = SECTOR as u64;
/// How much is encrypted and written at a time, in bytes: it is still in the cache when it is written.
const PIECE: usize = 256 << 10;

/// Reads and writes the bytes that [`Sectors`] encrypt. Offsets count from the sector with number 0; where a sector is
/// kept is the caller's matter.
#[derive(Debug)]
pub struct Encrypted {
    sectors: Sectors,
    /// Held alone by who writes part of a sector, since he reads the rest of it and writes it again; shared by all
    /// others.
    partly: RwLock<()>,
}

impl Encrypted {
    /// What `sectors` encrypts.
    pub fn new(sectors: Sectors) -> Encrypted {
        Encrypted { sectors, partly: RwLock::default() }
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.partly.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Fills `buf` with the bytes from `at` on. `get` is asked for whole sectors, as they are kept.
    pub fn read(
        &self,
        at: u64,
        buf: &mut [u8],
        get: impl FnOnce(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let (from, to) = around(at, buf.len());
        let _shared = self.shared();
        if to - from == buf.len() as u64 {
            get(from, buf)?;
            self.sectors.decrypt(from / UNIT, buf);
            return Ok(());
        }
        let mut whole = vec![0; (to - from) as usize];
        get(from, &mut whole)?;
        self.sectors.decrypt(from / UNIT, &mut whole);
        let inside = whole.get((at - from) as usize..).unwrap_or_default();
        buf.iter_mut().zip(inside).for_each(|(place, byte)| *place = *byte);
        Ok(())
    }

    /// Writes `buf` at `at`. `get` and `put` are asked for whole sectors, as they are kept: `get` for those of which
    /// only a part is written.
    pub fn write(
        &self,
        at: u64,
        buf: &[u8],
        get: impl Fn(u64, &mut [u8]) -> Result<()>,
        put: impl Fn(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (from, to) = around(at, buf.len());
        let end = at + buf.len() as u64;
        if (from, to) != (at, end) {
            let _alone = self.partly.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mut whole = vec![0; (to - from) as usize];
            let old = |sector: &mut [u8], number: u64| {
                get(number * UNIT, sector)?;
                self.sectors.decrypt(number, sector);
                Ok(())
            };
            if from < at {
                old(whole.get_mut(..SECTOR).unwrap_or_default(), from / UNIT)?;
            }
            if end < to && (from == at || to - from > UNIT) {
                let last = whole.len() - SECTOR;
                old(whole.get_mut(last..).unwrap_or_default(), to / UNIT - 1)?;
            }
            let inside = whole.get_mut((at - from) as usize..).unwrap_or_default();
            inside.iter_mut().zip(buf).for_each(|(place, byte)| *place = *byte);
            self.sectors.encrypt(from / UNIT, &mut whole);
            return put(from, &whole);
        }
        let _shared = self.shared();
        let mut piece = Vec::with_capacity(buf.len().min(PIECE));
        for (index, bytes) in buf.chunks(PIECE).enumerate() {
            let here = at + (index * PIECE) as u64;
            piece.clear();
            piece.extend_from_slice(bytes);
            self.sectors.encrypt(here / UNIT, &mut piece);
            put(here, &piece)?;
        }
        Ok(())
    }
}

/// The whole sectors that `len` bytes from `at` on touch.
fn around(at: u64, len: usize) -> (u64, u64) {
    (at / UNIT * UNIT, (at + len as u64).next_multiple_of(UNIT))
}
