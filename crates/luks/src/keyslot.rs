//! The volume's key in a slot: locked with a passphrase, spread over the key material, known by its digest.

use std::time::Duration;

use cowhand_core::{Error, Result};
use rustix::time::{ClockId, clock_gettime};
use zeroize::Zeroizing;

use crate::area::Area;
use crate::hash::Hash;
use crate::header::{Header, STRIPES, Slot};
use crate::random;
use crate::sectors::Sectors;
use crate::split::{merge, split};

/// The volume's key. Overwritten when it is dropped.
pub(crate) type Key = Zeroizing<Vec<u8>>;

/// More iterations than this are not tried: at a million a second they take a quarter of an hour.
pub(crate) const MAX_ITERATIONS: u32 = 1 << 30;
/// Fewer are not written.
const MIN_ITERATIONS: u64 = 1000;

/// The volume's key, if `passphrase` unlocks this slot.
pub(crate) fn unlock(area: &Area, header: &Header, slot: &Slot, passphrase: &[u8]) -> Result<Option<Key>> {
    let how = &header.algorithms;
    let bytes = how.key_bytes();
    let mut locked = Zeroizing::new(vec![0; bytes]);
    how.hash.pbkdf2(passphrase, &slot.salt, slot.iterations, &mut locked);
    let mut material = Zeroizing::new(vec![0; header.material_len() as usize]);
    area.read(slot.material, &mut material, "key material")?;
    Sectors::new(how, &locked)?.decrypt(0, &mut material);
    material.truncate(bytes * STRIPES as usize);
    let key = merge(how.hash, &material, bytes);
    Ok((digest(header, &key) == header.digest).then_some(key))
}

/// Locks the volume's key with `passphrase`: answers the slot to be, inactive, whose key material is written.
pub(crate) fn lock(
    area: &Area,
    header: &Header,
    index: usize,
    key: &Key,
    passphrase: &[u8],
    iterations: u32,
) -> Result<Slot> {
    let how = &header.algorithms;
    let old = header.slots.get(index).ok_or_else(|| Error::invalid("there is no such key slot"))?;
    let mut slot = Slot { active: false, iterations, salt: [0; 32], material: old.material };
    random(&mut slot.salt)?;
    let mut locked = Zeroizing::new(vec![0; how.key_bytes()]);
    how.hash.pbkdf2(passphrase, &slot.salt, iterations, &mut locked);
    let mut material = split(how.hash, key, STRIPES as usize)?;
    material.resize(header.material_len() as usize, 0);
    Sectors::new(how, &locked)?.encrypt(0, &mut material);
    area.write(slot.material, &material, "key material")?;
    Ok(slot)
}

/// What tells the volume's key from another.
pub(crate) fn digest(header: &Header, key: &Key) -> [u8; 20] {
    let mut digest = [0; 20];
    header.algorithms.hash.pbkdf2(key, &header.salt, header.iterations, &mut digest);
    digest
}

/// Iterations of PBKDF2 for a key of `bytes` that take `time` on this machine: tried out for a moment.
pub(crate) fn iterations(hash: Hash, bytes: usize, time: Duration) -> u32 {
    /// Processor time of this thread: others that run beside do not count.
    fn now() -> Duration {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
    }
    let mut out = Zeroizing::new(vec![0; bytes]);
    let mut tried: u32 = 1 << 12;
    loop {
        let began = now();
        hash.pbkdf2(b"a passphrase", &[0x5a; 32], tried, &mut out);
        let took = now().saturating_sub(began);
        if took >= Duration::from_millis(20) || tried >= 1 << 26 {
            let found = u128::from(tried) * time.as_nanos() / took.as_nanos().max(1);
            let most = u128::from(MAX_ITERATIONS);
            return found.clamp(u128::from(MIN_ITERATIONS), most) as u32;
        }
        tried *= 2;
    }
}
