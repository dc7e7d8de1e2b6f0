//! Header extensions: the backing file's format, the data file's name, feature names, bitmaps.

use cowhand_core::{Error, Result};

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

const FEATURE_ENTRY: usize = 48;

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

/// All extensions that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file: Option<Vec<u8>>,
    pub(crate) features: Vec<Feature>,
    pub(crate) bitmaps: Option<BitmapsAt>,
    /// Where the LUKS header stands.
    pub(crate) crypto_header: Option<CryptoAt>,
}

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

impl Extensions {
    /// Reads `area`, which starts at `base` in the file and ends with the first cluster or where the backing file's
    /// name starts.
    pub(crate) fn parse(area: &[u8], base: u64) -> Result<Extensions> {
        let mut found = Extensions::default();
        let mut at = 0;
        while let (Some(kind), Some(len)) = (be32(area, at), be32(area, at + 4)) {
            if kind == 0 {
                break;
            }
            let here = base + at as u64;
            let start = at + 8;
            let end = start.checked_add(len as usize).filter(|end| *end <= area.len());
            let data = end.and_then(|end| area.get(start..end)).ok_or_else(|| {
                Error::corrupt(
                    "header extension",
                    format!("type {kind:#010x} is said to have {len} bytes, and does not fit"),
                )
                .at(here)
            })?;
            found.take(kind, data, here)?;
            at = start + (len as usize).next_multiple_of(8);
        }
        Ok(found)
    }

    fn take(&mut self, kind: u32, data: &[u8], at: u64) -> Result<()> {
        match kind {
            BACKING_FORMAT => {
                let name = String::from_utf8(data.to_vec())
                    .map_err(|_| Error::corrupt("backing format", "is not text").at(at))?;
                self.backing_format = Some(name);
            }
            DATA_FILE => {
                if data.contains(&0) {
                    return Err(Error::corrupt("data file name", "has a NUL byte in it").at(at));
                }
                self.data_file = Some(data.to_vec());
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
                self.crypto_header = Some(CryptoAt { offset, length });
            }
            FEATURE_NAMES => {
                let rows = data.chunks_exact(FEATURE_ENTRY);
                self.features = rows.filter_map(Feature::parse).collect();
            }
            BITMAPS => {
                let parsed = (data.len() == 24)
                    .then(|| {
                        Some(BitmapsAt {
                            count: be32(data, 0)?,
                            size: be64(data, 8)?,
                            offset: be64(data, 16)?,
                        })
                    })
                    .flatten();
                // A directory that cannot be found only means that the bitmaps are lost, not the disk.
                self.bitmaps = parsed;
            }
            _ => {}
        }
        Ok(())
    }

    /// The bytes of all extensions and the end mark. `names`: with the feature name table.
    pub(crate) fn encode(&self, names: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |kind: u32, data: &[u8]| {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            put(BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(DATA_FILE, name);
        }
        if names {
            let mut table = Vec::with_capacity(OUR_FEATURES.len() * FEATURE_ENTRY);
            for (kind, bit, name) in OUR_FEATURES {
                table.extend_from_slice(&[kind, bit]);
                table.extend_from_slice(name.as_bytes());
                table.resize(table.len().next_multiple_of(FEATURE_ENTRY), 0);
            }
            put(FEATURE_NAMES, &table);
        }
        put(0, &[]);
        bytes
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
        let ours = Extensions {
            backing_format: Some("raw".to_owned()),
            data_file: Some(b"data.img".to_vec()),
            ..Extensions::default()
        };
        let bytes = ours.encode(true);
        let read = Extensions::parse(&bytes, 112).unwrap();
        assert_eq!((&read.backing_format, &read.data_file), (&ours.backing_format, &ours.data_file));
        assert_eq!(read.features.len(), 8);
        assert_eq!(read.features[4].name, "extended L2 entries");
        assert_eq!(ours.encode(false).len(), 16 + 16 + 8);
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
