//! The header (LUKS1 specification, figures 1 and 2): 592 bytes, big-endian, and the same once it makes sense.

use cowhand_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::algorithms::{Algorithms, IvGen};
use crate::area::Area;

/// What LUKS images of every version begin with.
pub const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";

/// Key slots of a header.
pub(crate) const SLOTS: usize = 8;
/// Stripes that a key is spread over: the specification leaves it open, and everybody has this number.
pub(crate) const STRIPES: u32 = 4000;
/// Bytes of the header.
pub(crate) const HEADER: u64 = 592;
/// Offset of the first key slot's entry in the header, and bytes of an entry.
const SLOTS_AT: u64 = 208;
const ENTRY: u64 = 48;
/// Key material starts at multiples of this.
const ALIGN: u64 = 4096;
const UNIT: u64 = 512;

/// QEMU's sentence.
const NOT_LUKS: &str = "Volume is not in LUKS format";

const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SlotOnDisk {
    active: U32,
    iterations: U32,
    salt: [u8; 32],
    key_material_offset: U32,
    stripes: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDisk {
    magic: [u8; 6],
    version: U16,
    cipher_name: [u8; 32],
    cipher_mode: [u8; 32],
    hash_spec: [u8; 32],
    payload_offset: U32,
    key_bytes: U32,
    mk_digest: [u8; 20],
    mk_digest_salt: [u8; 32],
    mk_digest_iter: U32,
    uuid: [u8; 40],
    slots: [SlotOnDisk; SLOTS],
}

/// A key slot.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) active: bool,
    pub(crate) iterations: u32,
    pub(crate) salt: [u8; 32],
    /// Where its key material starts, in bytes from the header's front.
    pub(crate) material: u64,
}

/// A header that makes sense.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) algorithms: Algorithms,
    /// Where the disk's own bytes start, from the header's front.
    pub(crate) payload: u64,
    /// What tells the volume's key from a wrong one.
    pub(crate) digest: [u8; 20],
    pub(crate) salt: [u8; 32],
    pub(crate) iterations: u32,
    pub(crate) uuid: String,
    pub(crate) slots: [Slot; SLOTS],
}

impl Header {
    /// Reads and judges the header; reads no key material.
    pub(crate) fn read(area: &Area) -> Result<Header> {
        let mut bytes = [0; HEADER as usize];
        area.read(0, &mut bytes, "LUKS header").map_err(|error| match error.kind() {
            ErrorKind::Corrupt => error.known_as(NOT_LUKS),
            _ => error,
        })?;
        let at = |error: Error, offset: u64| error.at(area.base.saturating_add(offset));
        let (raw, _) = OnDisk::read_from_prefix(&bytes)
            .map_err(|_| at(Error::corrupt("LUKS header", "is cut off").known_as(NOT_LUKS), 0))?;
        if raw.magic != MAGIC {
            return Err(at(Error::corrupt("magic", "is not that of a LUKS header").known_as(NOT_LUKS), 0));
        }
        match raw.version.get() {
            1 => {}
            2 => return Err(at(version_2(), 6)),
            other => {
                let error = Error::unsupported(format!("unknown version {other} of LUKS"));
                return Err(at(error.known_as(format!("LUKS version {other} is not supported")), 6));
            }
        }
        raw.judge(area)
    }

    /// A header for a new volume, as QEMU lays it out; no slot is active.
    pub(crate) fn new(algorithms: Algorithms, uuid: String) -> Header {
        let material = material_len(&algorithms).next_multiple_of(ALIGN);
        let slot = |index: usize| Slot {
            active: false,
            iterations: 0,
            salt: [0; 32],
            material: ALIGN + index as u64 * material,
        };
        Header {
            algorithms,
            payload: ALIGN + SLOTS as u64 * material,
            digest: [0; 20],
            salt: [0; 32],
            iterations: 0,
            uuid,
            slots: std::array::from_fn(slot),
        }
    }

    /// Writes the whole header.
    pub(crate) fn write(&self, area: &Area) -> Result<()> {
        let how = &self.algorithms;
        let raw = OnDisk {
            magic: MAGIC,
            version: 1.into(),
            cipher_name: text(how.cipher_name()),
            cipher_mode: text(&how.cipher_mode()),
            hash_spec: text(how.hash.name()),
            payload_offset: units(self.payload).into(),
            key_bytes: (how.key_bytes() as u32).into(),
            mk_digest: self.digest,
            mk_digest_salt: self.salt,
            mk_digest_iter: self.iterations.into(),
            uuid: text(&self.uuid),
            slots: std::array::from_fn(|index| self.slots[index].encode()), // never out of bounds: both have SLOTS
        };
        area.write(0, raw.as_bytes(), "LUKS header")
    }

    /// Writes one slot's entry and nothing else.
    pub(crate) fn write_slot(area: &Area, index: usize, slot: &Slot) -> Result<()> {
        area.write(SLOTS_AT + index as u64 * ENTRY, slot.encode().as_bytes(), "key slot")
    }

    /// Writes whether a slot is active: one word, which no power cut tears.
    pub(crate) fn write_active(area: &Area, index: usize, active: bool) -> Result<()> {
        let word = U32::new(if active { ACTIVE } else { INACTIVE });
        area.write(SLOTS_AT + index as u64 * ENTRY, word.as_bytes(), "key slot")
    }

    /// Bytes of a slot's key material.
    pub(crate) fn material_len(&self) -> u64 {
        material_len(&self.algorithms)
    }

    /// The facts, named and ordered as QEMU has them; `format` goes where it stands within another format's.
    pub(crate) fn details(&self, format: Option<&str>) -> Map<String, Value> {
        let how = &self.algorithms;
        let slot = |slot: &Slot| {
            if slot.active {
                json!({
                    "active": true,
                    "iters": slot.iterations,
                    "key-offset": slot.material,
                    "stripes": STRIPES,
                })
            } else {
                json!({ "active": false, "key-offset": slot.material })
            }
        };
        let mut all = Map::new();
        let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
        put("ivgen-alg", how.ivgen.name().into());
        put("detached-header", false.into());
        put("hash-alg", how.hash.name().into());
        put("cipher-alg", how.cipher.to_string().into());
        put("uuid", self.uuid.as_str().into());
        if let Some(hash) = how.ivgen_hash.filter(|_| how.ivgen == IvGen::Essiv) {
            put("ivgen-hash-alg", hash.name().into());
        }
        if let Some(format) = format {
            put("format", format.into());
        }
        put("cipher-mode", how.mode.name().into());
        put("slots", self.slots.iter().map(slot).collect());
        put("payload-offset", self.payload.into());
        put("master-key-iters", self.iterations.into());
        all
    }
}

impl Slot {
    fn encode(&self) -> SlotOnDisk {
        SlotOnDisk {
            active: if self.active { ACTIVE } else { INACTIVE }.into(),
            iterations: self.iterations.into(),
            salt: self.salt,
            key_material_offset: units(self.material).into(),
            stripes: STRIPES.into(),
        }
    }
}

/// That LUKS2 is another format than its name says.
pub(crate) fn version_2() -> Error {
    Error::new(ErrorKind::Unsupported, "is a LUKS2 volume, which is not read here; only LUKS1 is")
        .hint("'cryptsetup convert --type luks1' may turn it into one")
        .known_as("LUKS version 2 is not supported")
}

fn material_len(how: &Algorithms) -> u64 {
    (how.key_bytes() as u64 * u64::from(STRIPES)).next_multiple_of(UNIT)
}

/// Sectors of an offset that was made from sectors, or is one of ours.
fn units(bytes: u64) -> u32 {
    (bytes / UNIT) as u32
}

/// NUL-padded text. What is too long is cut; none of ours is.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(text.bytes().take(N - 1)).for_each(|(place, byte)| *place = byte);
    bytes
}

/// What stands before the first NUL.
fn until_nul(field: &str, bytes: &[u8]) -> Result<String> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = end.and_then(|end| std::str::from_utf8(bytes.get(..end)?).ok());
    text.map(str::to_owned).ok_or_else(|| Error::corrupt(field, "is no text with a NUL behind it"))
}

impl OnDisk {
    fn judge(&self, area: &Area) -> Result<Header> {
        let at = |error: Error, offset: u64| error.at(area.base.saturating_add(offset));
        let cipher = until_nul("cipher-name", &self.cipher_name).map_err(|error| at(error, 8))?;
        let mode = until_nul("cipher-mode", &self.cipher_mode).map_err(|error| at(error, 40))?;
        let hash = until_nul("hash-spec", &self.hash_spec).map_err(|error| at(error, 72))?;
        let algorithms = Algorithms::parse(&cipher, &mode, &hash, self.key_bytes.get())?;
        let uuid = until_nul("uuid", &self.uuid).unwrap_or_default();
        let payload = u64::from(self.payload_offset.get()) * UNIT;
        if payload == 0 {
            return Err(at(
                Error::unsupported(
                    "is a LUKS header whose disk stands in another file, which is not read here",
                ),
                104,
            ));
        }
        if payload < HEADER {
            return Err(at(Error::corrupt("payload-offset", "lies within the header"), 104));
        }
        if self.mk_digest_iter.get() == 0 {
            let error = Error::corrupt("mk-digest-iter", "is 0");
            return Err(at(error.known_as("LUKS key iteration count is zero"), 164));
        }
        let len = material_len(&algorithms);
        let mut slots = Vec::with_capacity(SLOTS);
        for (index, slot) in self.slots.iter().enumerate() {
            let here = SLOTS_AT + index as u64 * ENTRY;
            let wrong = |offset: u64, message: String| {
                at(Error::corrupt(format!("key slot {index}"), message), here + offset)
            };
            let active = match slot.active.get() {
                ACTIVE => true,
                INACTIVE => false,
                other => return Err(wrong(0, format!("is neither active nor inactive ({other:#010x})"))),
            };
            if active && slot.iterations.get() == 0 {
                return Err(wrong(4, "says 0 iterations".to_owned()));
            }
            if slot.stripes.get() != STRIPES {
                return Err(wrong(44, format!("says {} stripes, not {STRIPES}", slot.stripes.get())));
            }
            let material = u64::from(slot.key_material_offset.get()) * UNIT;
            if material < HEADER {
                return Err(wrong(40, "has its key material within the header".to_owned()));
            }
            if material + len > payload {
                return Err(wrong(40, "has its key material where the disk's data is".to_owned()));
            }
            if material + len > area.len {
                return Err(wrong(40, "has its key material past the end of the file".to_owned()));
            }
            slots.push(Slot { active, iterations: slot.iterations.get(), salt: slot.salt, material });
        }
        for (a, first) in slots.iter().enumerate() {
            for (b, second) in slots.iter().enumerate().skip(a + 1) {
                if first.material < second.material + len && second.material < first.material + len {
                    return Err(at(
                        Error::corrupt(format!("key slot {b}"), format!("overlaps key slot {a}")),
                        SLOTS_AT + b as u64 * ENTRY + 40,
                    ));
                }
            }
        }
        let slots = slots.try_into().map_err(|_| Error::corrupt("key slots", "are not eight"))?;
        Ok(Header {
            algorithms,
            payload,
            digest: self.mk_digest,
            salt: self.mk_digest_salt,
            iterations: self.mk_digest_iter.get(),
            uuid,
            slots,
        })
    }
}
