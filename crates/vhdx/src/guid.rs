//! GUIDs as the file holds them: the first three groups little-endian, the rest as written.

use std::fmt;

use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The 16 bytes of a GUID in file order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(crate) struct Guid([u8; 16]);

impl Guid {
    /// "None": no log, no linkage.
    pub(crate) const ZERO: Guid = Guid([0; 16]);

    /// The GUID whose written form, without hyphens, is this hexadecimal number.
    pub(crate) const fn of(written: u128) -> Guid {
        Guid(Uuid::from_u128(written).to_bytes_le())
    }

    /// One that nobody has had.
    pub(crate) fn random() -> Guid {
        Guid(Uuid::new_v4().to_bytes_le())
    }

    /// Reads the written form, with or without braces, in any case.
    pub(crate) fn parse(text: &str) -> Option<Guid> {
        Uuid::try_parse(text.trim()).ok().map(|uuid| Guid(uuid.to_bytes_le()))
    }

    /// The GUID that these bytes of a file are.
    pub(crate) const fn from_raw(bytes: [u8; 16]) -> Guid {
        Guid(bytes)
    }

    /// The bytes in file order.
    pub(crate) fn raw(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes_le(self.0).fmt(f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_groups_are_little_endian() {
        let guid = Guid::parse("{2DC27766-F623-4200-9D64-115E9BFD4A08}").unwrap();
        assert_eq!(guid.raw()[..8], [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42]);
        assert_eq!(guid.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(guid, Guid::of(0x2dc27766_f623_4200_9d64_115e9bfd4a08));
        assert_eq!(Guid::parse("2dc27766"), None);
    }
}
