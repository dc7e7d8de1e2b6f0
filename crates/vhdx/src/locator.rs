//! The parent locator: which file a differencing disk stands on (section 2.6.2.6).

use std::path::PathBuf;

use cowhand_core::{Error, ParentRef, Result};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

const VHDX: Guid = Guid::of(0xb04aefb7_d19e_4a81_b789_25b8e9445913);
const MAX_KEYS: usize = 64;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLocator {
    locator_type: Guid,
    reserved: U16,
    key_value_count: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    key_offset: U32,
    value_offset: U32,
    key_length: U16,
    value_length: U16,
}

/// A locator of the VHDX type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locator {
    /// Keys and values in file order; every key once.
    pub(crate) entries: Vec<(String, String)>,
    /// The parent's DataWriteGuid.
    linkage: Guid,
    /// The DataWriteGuid that the parent gets when a merge into it has begun.
    linkage2: Option<Guid>,
}

impl Locator {
    /// Reads an item's bytes.
    pub(crate) fn parse(item: &[u8]) -> Result<Locator> {
        let wrong = |message: String| Error::corrupt("parent locator", message);
        let (head, rest) = RawLocator::ref_from_prefix(item).map_err(|_| wrong("is cut short".to_owned()))?;
        if head.locator_type != VHDX {
            return Err(Error::unsupported(format!(
                "parent locator type {} is not known",
                head.locator_type
            ))
            .field("parent locator"));
        }
        let count = usize::from(head.key_value_count.get());
        let (raw, _) = <[RawEntry]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| wrong(format!("has no room for {count} entries")))?;
        // The format knows five keys. Values may overlap, so many entries could ask for far more memory than the file has.
        if count > MAX_KEYS {
            return Err(wrong(format!("has {count} entries, more than {MAX_KEYS}")));
        }
        let mut entries: Vec<(String, String)> = Vec::with_capacity(count);
        for entry in raw {
            let text = |offset: U32, length: U16| {
                text(item, offset.get(), length.get())
                    .ok_or_else(|| wrong(format!("text of {length} bytes at {offset} cannot lie there")))
            };
            let key = text(entry.key_offset, entry.key_length)?;
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(wrong(format!("has the key '{key}' twice")));
            }
            entries.push((key, text(entry.value_offset, entry.value_length)?));
        }
        let guid = |key: &str| match find(&entries, key) {
            None => Ok(None),
            Some(text) => {
                Guid::parse(text).map(Some).ok_or_else(|| wrong(format!("{key} is no GUID: '{text}'")))
            }
        };
        let linkage = guid("parent_linkage")?.ok_or_else(|| wrong("has no parent_linkage".to_owned()))?;
        // Windows writes zeros where there is none.
        let linkage2 = guid("parent_linkage2")?.filter(|guid| *guid != Guid::ZERO);
        Ok(Locator { entries, linkage, linkage2 })
    }

    /// The parent as the chain looks for it.
    pub(crate) fn parent(&self) -> ParentRef {
        let keys = ["relative_path", "volume_path", "absolute_win32_path"];
        ParentRef {
            candidates: keys.iter().filter_map(|key| find(&self.entries, key)).map(here).collect(),
            format: Some("vhdx".to_owned()),
            any_case: true,
            expected: [Some(self.linkage), self.linkage2].into_iter().flatten().map(Guid::raw).collect(),
            ..ParentRef::default()
        }
    }
}

fn find<'a>(entries: &'a [(String, String)], key: &str) -> Option<&'a str> {
    entries.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// UTF-16LE text of `length` bytes.
fn text(item: &[u8], offset: u32, length: u16) -> Option<String> {
    let start = offset as usize;
    let bytes = item.get(start..start.checked_add(length.into())?)?;
    let (units, odd) = bytes.as_chunks();
    let text: String = char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit)))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    odd.is_empty().then(|| text.trim_end_matches('\0').to_owned())
}

/// A Windows path in this system's spelling.
fn here(path: &str) -> PathBuf {
    PathBuf::from(path.strip_prefix(r"\\?\").unwrap_or(path).replace('\\', "/"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A locator item with these keys and values.
    pub(crate) fn item(pairs: &[(&str, &str)]) -> Vec<u8> {
        let head = RawLocator {
            locator_type: VHDX,
            reserved: 0.into(),
            key_value_count: (pairs.len() as u16).into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        let mut texts: Vec<u8> = Vec::new();
        let start = bytes.len() + 12 * pairs.len();
        for (key, value) in pairs {
            let mut add = |text: &str| {
                let encoded: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                let offset = (start + texts.len()) as u32;
                texts.extend_from_slice(&encoded);
                (offset, encoded.len() as u16)
            };
            let ((key_offset, key_length), (value_offset, value_length)) = (add(key), add(value));
            let entry = RawEntry {
                key_offset: key_offset.into(),
                value_offset: value_offset.into(),
                key_length: key_length.into(),
                value_length: value_length.into(),
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.extend_from_slice(&texts);
        bytes
    }

    const LINKAGE: &str = "{83ED0EC3-24C8-49A6-A959-5E4BD1288BBB}";
    const NONE: &str = "{00000000-0000-0000-0000-000000000000}";

    #[test]
    fn paths_come_in_order_and_in_our_spelling() {
        let parent = Locator::parse(&item(&[
            ("absolute_win32_path", r"\\?\C:\disks\parent.vhdx"),
            ("parent_linkage2", NONE),
            ("relative_path", r".\dir\parent.vhdx"),
            ("parent_linkage", LINKAGE),
            ("volume_path", r"\\?\Volume{26a21bda}\parent.vhdx"),
        ]))
        .unwrap()
        .parent();
        let paths = ["./dir/parent.vhdx", "Volume{26a21bda}/parent.vhdx", "C:/disks/parent.vhdx"];
        assert_eq!(parent.candidates, paths.map(PathBuf::from));
        assert_eq!(parent.format.as_deref(), Some("vhdx"));
        let raw =
            [0xc3, 0x0e, 0xed, 0x83, 0xc8, 0x24, 0xa6, 0x49, 0xa9, 0x59, 0x5e, 0x4b, 0xd1, 0x28, 0x8b, 0xbb];
        assert_eq!(parent.expected, [raw]);
    }

    #[test]
    fn a_second_linkage_counts_too() {
        let second = "93ed0ec3-24c8-49a6-a959-5e4bd1288bbb";
        let locator =
            Locator::parse(&item(&[("parent_linkage", LINKAGE), ("parent_linkage2", second)])).unwrap();
        assert_eq!(locator.parent().expected.len(), 2);
        assert_eq!(locator.parent().expected[1][3], 0x93);
        assert!(locator.parent().candidates.is_empty());
    }

    #[test]
    fn refusals() {
        let says = |bytes: &[u8]| Locator::parse(bytes).unwrap_err().to_string();
        let good = item(&[("parent_linkage", LINKAGE)]);
        let changed = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            says(&bytes)
        };
        assert!(says(&good[..19]).contains("cut short"));
        assert!(changed(0, &[0]).contains("type"));
        assert!(changed(18, &[0xff, 0xff]).contains("no room"));
        assert!(says(&item(&[("a", "x"); 65])).contains("65 entries"));
        assert!(changed(20, &u32::MAX.to_le_bytes()).contains("cannot lie there"));
        assert!(changed(28, &27u16.to_le_bytes()).contains("cannot lie there"));
        assert!(says(&item(&[("parent_linkage", "what")])).contains("no GUID"));
        assert!(says(&item(&[("relative_path", "x")])).contains("no parent_linkage"));
        assert!(says(&item(&[("a", "x"), ("a", "y")])).contains("twice"));
    }
}
