//! The parent locator: which file a differencing disk stands on (section 2.6.2.6).

use std::collections::HashSet;
use std::path::PathBuf;

use cowhand_core::{Error, ParentRef, Result};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::guid::Guid;

const VHDX: Guid = Guid::of(0xb04aefb7_d19e_4a81_b789_25b8e9445913);
const MAX_KEYS: usize = 64;

/// The keys that the format knows.
pub(crate) const LINKAGE: &str = "parent_linkage";
pub(crate) const LINKAGE2: &str = "parent_linkage2";
pub(crate) const RELATIVE: &str = "relative_path";
pub(crate) const VOLUME: &str = "volume_path";
pub(crate) const ABSOLUTE: &str = "absolute_win32_path";
const KNOWN: [&str; 5] = [LINKAGE, LINKAGE2, RELATIVE, VOLUME, ABSOLUTE];
/// Those of paths, in the order in which they are tried.
const PATHS: [&str; 3] = [RELATIVE, VOLUME, ABSOLUTE];

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
    pairs: Vec<(Text, Text)>,
    /// The parent's DataWriteGuid.
    linkage: Guid,
    /// The DataWriteGuid that the parent gets when a merge into it has begun.
    linkage2: Option<Guid>,
}

/// UTF-16 as it stands in the file: what is not understood can be written back as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Text(Vec<u16>);

impl Text {
    /// The `length` bytes at `offset`.
    fn read(item: &[u8], offset: u32, length: u16) -> Option<Text> {
        let start = offset as usize;
        let bytes = item.get(start..start.checked_add(length.into())?)?;
        let (units, odd) = bytes.as_chunks();
        odd.is_empty().then(|| Text(units.iter().map(|unit| u16::from_le_bytes(*unit)).collect()))
    }

    fn of(text: &str) -> Text {
        Text(text.encode_utf16().collect())
    }

    /// Bytes in the file; `None`: more than a locator can say.
    fn len(&self) -> Option<u16> {
        u16::try_from(self.0.len().checked_mul(2)?).ok()
    }

    /// Some writers end it with a zero.
    fn to_text(&self) -> String {
        let mut text = String::from_utf16_lossy(&self.0);
        text.truncate(text.trim_end_matches('\0').len());
        text
    }
}

impl Locator {
    /// One with these keys and values. Errors: a `parent_linkage` that is missing, and a linkage that is none.
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Result<Locator> {
        Self::check(pairs.iter().map(|(key, value)| (Text::of(key), Text::of(value))).collect())
    }

    /// Reads an item's bytes.
    pub(crate) fn parse(item: &[u8]) -> Result<Locator> {
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
        let mut pairs = Vec::with_capacity(count);
        for entry in raw {
            let text = |offset: U32, length: U16| {
                Text::read(item, offset.get(), length.get())
                    .ok_or_else(|| wrong(format!("text of {length} bytes at {offset} cannot lie there")))
            };
            let key = text(entry.key_offset, entry.key_length)?;
            pairs.push((key, text(entry.value_offset, entry.value_length)?));
        }
        Self::check(pairs)
    }

    fn check(pairs: Vec<(Text, Text)>) -> Result<Locator> {
        let mut keys = HashSet::new();
        if let Some((twice, _)) = pairs.iter().find(|(key, _)| !keys.insert(key.to_text())) {
            return Err(wrong(format!("has the key '{}' twice", twice.to_text())));
        }
        let guid = |key: &str| match find(&pairs, key) {
            None => Ok(None),
            Some(text) => {
                Guid::parse(&text).map(Some).ok_or_else(|| wrong(format!("{key} is no GUID: '{text}'")))
            }
        };
        let linkage = guid(LINKAGE)?.ok_or_else(|| wrong(format!("has no {LINKAGE}")))?;
        // Windows writes zeros where there is none.
        let linkage2 = guid(LINKAGE2)?.filter(|guid| *guid != Guid::ZERO);
        Ok(Locator { pairs, linkage, linkage2 })
    }

    /// The item's bytes. Errors: more or longer texts than a locator can hold.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let count = u16::try_from(self.pairs.len()).ok().filter(|count| usize::from(*count) <= MAX_KEYS);
        let too_many = || Error::invalid(format!("a parent locator holds at most {MAX_KEYS} keys"));
        let key_value_count = count.ok_or_else(too_many)?.into();
        let head = RawLocator { locator_type: VHDX, reserved: 0.into(), key_value_count };
        let mut bytes = head.as_bytes().to_vec();
        let start = bytes.len() + self.pairs.len() * size_of::<RawEntry>();
        let mut texts: Vec<u8> = Vec::new();
        let mut add = |text: &Text| {
            let offset = (start + texts.len()) as u32; // never cut: at most 64 keys and values of 64 KiB
            texts.extend(text.0.iter().flat_map(|unit| unit.to_le_bytes()));
            let too_long = || Error::invalid("the parent's path is longer than a parent locator can say");
            Ok::<_, Error>((U32::from(offset), U16::from(text.len().ok_or_else(too_long)?)))
        };
        for (key, value) in &self.pairs {
            let ((key_offset, key_length), (value_offset, value_length)) = (add(key)?, add(value)?);
            let entry = RawEntry { key_offset, value_offset, key_length, value_length };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.extend_from_slice(&texts);
        Ok(bytes)
    }

    /// Keys and values as text, in file order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (String, String)> {
        self.pairs.iter().map(|(key, value)| (key.to_text(), value.to_text()))
    }

    /// With these keys and values in place of all that the format knows, in front of those that it does not.
    pub(crate) fn with_known(&self, known: &[(&str, &str)]) -> Result<Locator> {
        let mut pairs: Vec<_> = known.iter().map(|(key, value)| (Text::of(key), Text::of(value))).collect();
        let unknown = |(key, _): &&(Text, Text)| !KNOWN.contains(&key.to_text().as_str());
        pairs.extend(self.pairs.iter().filter(unknown).cloned());
        Self::check(pairs)
    }

    /// With `id` as the DataWriteGuid that the parent may have too.
    pub(crate) fn expecting(&self, id: Guid) -> Locator {
        let mut pairs = self.pairs.clone();
        let value = Text::of(&braced(id));
        match pairs.iter_mut().find(|(key, _)| key.to_text() == LINKAGE2) {
            Some((_, old)) => *old = value,
            None => pairs.push((Text::of(LINKAGE2), value)),
        }
        Locator { pairs, linkage2: Some(id), ..*self }
    }

    /// A parent of this DataWriteGuid is the one.
    pub(crate) fn expects(&self, id: Guid) -> bool {
        self.linkage == id || self.linkage2 == Some(id)
    }

    /// The DataWriteGuid by which the disk knows its parent.
    pub(crate) fn linkage(&self) -> Guid {
        self.linkage
    }

    /// The one that its parent gets, where a merge into it has begun.
    pub(crate) fn linkage2(&self) -> Option<Guid> {
        self.linkage2
    }

    /// The parent as the chain looks for it.
    pub(crate) fn parent(&self) -> ParentRef {
        let mut candidates = Vec::new();
        for path in PATHS.iter().filter_map(|key| find(&self.pairs, key)).map(|path| here(&path)) {
            if !path.as_os_str().is_empty() && !candidates.contains(&path) {
                candidates.push(path);
            }
        }
        ParentRef {
            candidates,
            format: Some("vhdx".to_owned()),
            any_case: true,
            // The text asks whoever opens for writing to bring stale paths up to date.
            kept_current: true,
            expected: [Some(self.linkage), self.linkage2].into_iter().flatten().map(Guid::raw).collect(),
            ..ParentRef::default()
        }
    }
}

/// A GUID as Windows writes it here.
pub(crate) fn braced(guid: Guid) -> String {
    format!("{{{guid}}}")
}

fn wrong(message: String) -> Error {
    Error::corrupt("parent locator", message)
}

fn find(pairs: &[(Text, Text)], key: &str) -> Option<String> {
    pairs.iter().find(|(name, _)| name.to_text() == key).map(|(_, value)| value.to_text())
}

/// A Windows path in this system's spelling. `.\` is how Windows begins every relative path.
fn here(path: &str) -> PathBuf {
    let path = path.strip_prefix(r"\\?\").unwrap_or(path).replace('\\', "/");
    PathBuf::from(path.strip_prefix("./").unwrap_or(&path))
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
        let paths = ["dir/parent.vhdx", "Volume{26a21bda}/parent.vhdx", "C:/disks/parent.vhdx"];
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
