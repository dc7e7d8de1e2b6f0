//! Header extensions: the backing file's format, the data file's name, feature names, bitmaps, and those that mean
//! nothing here. All are kept, in their order, whoever wrote them.

use cowhand_core::{Error, Result};

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;
/// The mark that hides an image from lists of disks: 8 bytes, of which the first is 0 or 1.
const HIDDEN: u32 = 0x7661_7465;
/// Says nothing: it bridges the bytes up to the next extension while the header is being rewritten.
const FILLER: u32 = 0x4357_4650;

const FEATURE_ENTRY: usize = 48;
/// An extension's type and length, and the mark that ends them all.
pub(crate) const PREFIX: usize = 8;

/// Which of the three feature fields a name is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FeatureKind {
    Incompatible,
    Compatible,
    Autoclear,
}

/// A row of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    pub(crate) kind: FeatureKind,
    pub(crate) bit: u8,
    pub(crate) name: String,
}

/// Where the bitmap directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapsAt {
    pub(crate) count: u32,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) offset: u64,
}

/// Where the full disk encryption header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CryptoAt {
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// One extension.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Extension {
    BackingFormat(String),
    DataFile(Vec<u8>),
    CryptoHeader(CryptoAt),
    /// The table as it stands.
    FeatureNames(Vec<u8>),
    Bitmaps(BitmapsAt),
    /// Its data: the first byte is the mark.
    Hidden([u8; 8]),
    Unknown {
        kind: u32,
        data: Vec<u8>,
    },
}

/// All extensions, in the file's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions(Vec<Extension>);

/// The names QEMU 10 writes: (field, bit, name).
const OUR_FEATURES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Reads `area` front to back: calls `see` with each extension's offset in it, its type and its data. Answers where the
/// mark that ends them ends. Errors: an extension that does not fit.
pub(crate) fn walk<'a>(
    area: &'a [u8],
    base: u64,
    mut see: impl FnMut(usize, u32, &'a [u8]) -> Result<()>,
) -> Result<usize> {
    let mut at = 0;
    while let (Some(kind), Some(len)) = (be32(area, at), be32(area, at + 4)) {
        if kind == 0 {
            return Ok(at + PREFIX);
        }
        let start = at + PREFIX;
        let end = start.checked_add(len as usize).filter(|end| *end <= area.len());
        let data = end.and_then(|end| area.get(start..end)).ok_or_else(|| {
            Error::corrupt(
                "header extension",
                format!("type {kind:#010x} is said to have {len} bytes, and does not fit"),
            )
            .at(base + at as u64)
            .known_as("Header extension too large")
        })?;
        see(at, kind, data)?;
        at = start + (len as usize).next_multiple_of(8);
    }
    Ok(area.len())
}

/// Whether an extension of this type says nothing.
pub(crate) fn is_filler(kind: u32) -> bool {
    kind == FILLER
}

/// The beginning of an extension that says nothing and has `len` bytes of data.
pub(crate) fn filler(len: u32) -> [u8; PREFIX] {
    (u64::from(FILLER) << 32 | u64::from(len)).to_be_bytes()
}

impl Extension {
    /// What is not as it should be is kept as it is and means nothing, unless the disk cannot be read without it.
    fn parse(kind: u32, data: &[u8], at: u64) -> Result<Extension> {
        let unknown = || Extension::Unknown { kind, data: data.to_vec() };
        Ok(match kind {
            BACKING_FORMAT => {
                let name = String::from_utf8(data.to_vec())
                    .map_err(|_| Error::corrupt("backing format", "is not text").at(at))?;
                Extension::BackingFormat(name)
            }
            DATA_FILE => {
                if data.contains(&0) {
                    return Err(Error::corrupt("data file name", "has a NUL byte in it").at(at));
                }
                Extension::DataFile(data.to_vec())
            }
            CRYPTO_HEADER => {
                let pointer = be64(data, 0).zip(be64(data, 8)).filter(|_| data.len() == 16);
                let (offset, length) = pointer.ok_or_else(|| {
                    Error::corrupt(
                        "full disk encryption header pointer",
                        format!("has {} bytes; it must have 16", data.len()),
                    )
                    .at(at)
                })?;
                Extension::CryptoHeader(CryptoAt { offset, length })
            }
            FEATURE_NAMES => Extension::FeatureNames(data.to_vec()),
            // A directory that cannot be found only means that the bitmaps are lost, not the disk.
            BITMAPS => match (data.len(), be32(data, 0), be64(data, 8), be64(data, 16)) {
                (24, Some(count), Some(size), Some(offset)) => {
                    Extension::Bitmaps(BitmapsAt { count, size, offset })
                }
                _ => unknown(),
            },
            HIDDEN => data.try_into().map_or_else(|_| unknown(), Extension::Hidden),
            _ => unknown(),
        })
    }

    fn kind(&self) -> u32 {
        match self {
            Extension::BackingFormat(_) => BACKING_FORMAT,
            Extension::DataFile(_) => DATA_FILE,
            Extension::CryptoHeader(_) => CRYPTO_HEADER,
            Extension::FeatureNames(_) => FEATURE_NAMES,
            Extension::Bitmaps(_) => BITMAPS,
            Extension::Hidden(_) => HIDDEN,
            Extension::Unknown { kind, .. } => *kind,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Extension::BackingFormat(name) => name.clone().into_bytes(),
            Extension::DataFile(name) => name.clone(),
            Extension::CryptoHeader(at) => [at.offset, at.length].map(u64::to_be_bytes).concat(),
            Extension::FeatureNames(table) => table.clone(),
            Extension::Bitmaps(at) => {
                [u64::from(at.count) << 32, at.size, at.offset].map(u64::to_be_bytes).concat()
            }
            Extension::Hidden(data) => data.to_vec(),
            Extension::Unknown { data, .. } => data.clone(),
        }
    }

    /// Where QEMU puts it among the others.
    fn rank(&self) -> u8 {
        match self {
            Extension::BackingFormat(_) => 0,
            Extension::DataFile(_) => 1,
            Extension::CryptoHeader(_) => 2,
            Extension::FeatureNames(_) => 3,
            Extension::Bitmaps(_) => 4,
            Extension::Hidden(_) | Extension::Unknown { .. } => 5,
        }
    }
}

impl Extensions {
    /// Reads `area`, which starts at `base` in the file and ends with the first cluster or where the backing file's
    /// name starts.
    pub(crate) fn parse(area: &[u8], base: u64) -> Result<Extensions> {
        let mut found = Vec::new();
        walk(area, base, |at, kind, data| {
            if !is_filler(kind) {
                found.push(Extension::parse(kind, data, base + at as u64)?);
            }
            Ok(())
        })?;
        Ok(Extensions(found))
    }

    /// The bytes of all extensions and the end mark.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for extension in &self.0 {
            let data = extension.data();
            bytes.extend_from_slice(&extension.kind().to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.resize(bytes.len() + PREFIX, 0);
        bytes
    }

    /// What `pick` takes of one of them; the last counts where there are several.
    fn find<'a, T>(&'a self, pick: impl FnMut(&'a Extension) -> Option<T>) -> Option<T> {
        self.0.iter().rev().find_map(pick)
    }

    /// Puts `new` where the one of its type stands, or where QEMU would put it.
    fn put(&mut self, kind: u32, new: Option<Extension>) {
        let old = self.0.iter().position(|extension| extension.kind() == kind);
        self.0.retain(|extension| extension.kind() != kind);
        if let Some(new) = new {
            let behind = || self.0.iter().position(|extension| extension.rank() > new.rank());
            let at = old.or_else(behind).unwrap_or(self.0.len()).min(self.0.len());
            self.0.insert(at, new);
        }
    }

    pub(crate) fn backing_format(&self) -> Option<&str> {
        self.find(|extension| match extension {
            Extension::BackingFormat(name) => Some(name.as_str()),
            _ => None,
        })
    }

    pub(crate) fn set_backing_format(&mut self, name: Option<&str>) {
        self.put(BACKING_FORMAT, name.map(|name| Extension::BackingFormat(name.to_owned())));
    }

    /// The data file's name as it stands.
    pub(crate) fn data_file(&self) -> Option<&[u8]> {
        self.find(|extension| match extension {
            Extension::DataFile(name) => Some(name.as_slice()),
            _ => None,
        })
    }

    pub(crate) fn set_data_file(&mut self, name: Option<&[u8]>) {
        self.put(DATA_FILE, name.map(|name| Extension::DataFile(name.to_vec())));
    }

    pub(crate) fn crypto_header(&self) -> Option<CryptoAt> {
        self.find(|extension| match extension {
            Extension::CryptoHeader(at) => Some(*at),
            _ => None,
        })
    }

    pub(crate) fn set_crypto_header(&mut self, at: Option<CryptoAt>) {
        self.put(CRYPTO_HEADER, at.map(Extension::CryptoHeader));
    }

    pub(crate) fn bitmaps(&self) -> Option<BitmapsAt> {
        self.find(|extension| match extension {
            Extension::Bitmaps(at) => Some(*at),
            _ => None,
        })
    }

    pub(crate) fn set_bitmaps(&mut self, at: Option<BitmapsAt>) {
        self.put(BITMAPS, at.map(Extension::Bitmaps));
    }

    pub(crate) fn hidden(&self) -> Option<bool> {
        self.find(|extension| match extension {
            Extension::Hidden([mark, ..]) => Some(*mark != 0),
            _ => None,
        })
    }

    pub(crate) fn set_hidden(&mut self, hidden: bool) {
        self.put(HIDDEN, Some(Extension::Hidden([u8::from(hidden), 0, 0, 0, 0, 0, 0, 0])));
    }

    /// The rows of the feature name table.
    pub(crate) fn features(&self) -> Vec<Feature> {
        let table = self.find(|extension| match extension {
            Extension::FeatureNames(table) => Some(table.as_slice()),
            _ => None,
        });
        table.unwrap_or_default().chunks_exact(FEATURE_ENTRY).filter_map(Feature::parse).collect()
    }

    /// With the feature name table that QEMU writes, or without one.
    pub(crate) fn set_features(&mut self, on: bool) {
        let table = || {
            let mut table = Vec::with_capacity(OUR_FEATURES.len() * FEATURE_ENTRY);
            for (kind, bit, name) in OUR_FEATURES {
                table.extend_from_slice(&[kind, bit]);
                table.extend_from_slice(name.as_bytes());
                table.resize(table.len().next_multiple_of(FEATURE_ENTRY), 0);
            }
            Extension::FeatureNames(table)
        };
        self.put(FEATURE_NAMES, on.then(table));
    }
}

impl Feature {
    fn parse(row: &[u8]) -> Option<Feature> {
        let (kind, bit, name) = (*row.first()?, *row.get(1)?, row.get(2..)?);
        let kind = match kind {
            0 => FeatureKind::Incompatible,
            1 => FeatureKind::Compatible,
            2 => FeatureKind::Autoclear,
            _ => return None,
        };
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Some(Feature { kind, bit, name: String::from_utf8_lossy(name.get(..end)?).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_parsed() {
        let mut ours = Extensions::default();
        ours.set_hidden(true);
        ours.set_features(true);
        ours.set_bitmaps(Some(BitmapsAt { count: 3, size: 99, offset: 1 << 40 }));
        ours.set_crypto_header(Some(CryptoAt { offset: 65536, length: 2 << 20 }));
        ours.set_data_file(Some(b"data.img"));
        ours.set_backing_format(Some("raw"));
        let bytes = ours.encode();
        let read = Extensions::parse(&bytes, 112).unwrap();
        assert_eq!(read, ours);
        let kinds: Vec<u32> = ours.0.iter().map(Extension::kind).collect();
        assert_eq!(kinds, [BACKING_FORMAT, DATA_FILE, CRYPTO_HEADER, FEATURE_NAMES, BITMAPS, HIDDEN]);
        assert_eq!((read.backing_format(), read.data_file()), (Some("raw"), Some(&b"data.img"[..])));
        assert_eq!(read.features().len(), 8);
        assert_eq!(read.features()[4].name, "extended L2 entries");
        assert_eq!((read.hidden(), read.bitmaps()), (Some(true), ours.bitmaps()));
        ours.set_features(false);
        assert_eq!(ours.encode().len(), 16 + 16 + 24 + 32 + 16 + 8);
    }

    /// Unknown ones, ones that are not as they should be, and the order are kept; only what is set changes.
    #[test]
    fn everything_is_kept_in_its_order() {
        let mut bytes = Vec::new();
        for (kind, data) in [
            (0x1234_5678, &b"whatever"[..]),
            (BITMAPS, b"too short"),
            (FEATURE_NAMES, &[0; 49]),
            (HIDDEN, b"\x01.."),
            (BACKING_FORMAT, b"qcow2"),
            (0x1234_5678, b"again"),
        ] {
            bytes.extend_from_slice(&u32::to_be_bytes(kind));
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend_from_slice(&[0; 8]);
        let mut read = Extensions::parse(&bytes, 112).unwrap();
        assert_eq!(read.encode(), bytes);
        assert_eq!((read.bitmaps(), read.hidden(), read.features().len()), (None, None, 1));
        read.set_backing_format(Some("raw"));
        let kinds: Vec<u32> = read.0.iter().map(Extension::kind).collect();
        assert_eq!(kinds[4..], [BACKING_FORMAT, 0x1234_5678]);
        read.set_backing_format(None);
        assert_eq!(read.0.len(), 5);
        read.set_hidden(true);
        assert_eq!(read.hidden(), Some(true));
        assert_eq!(read.0.len(), 5);
    }

    #[test]
    fn an_extension_longer_than_its_place_is_refused() {
        let mut bytes = 0xe279_2acau32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&100u32.to_be_bytes());
        bytes.resize(64, 1);
        let error = Extensions::parse(&bytes, 112).unwrap_err();
        assert!(error.to_string().contains("does not fit"), "{error}");
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(Extensions::parse(&bytes, 112).is_err());
    }
}
