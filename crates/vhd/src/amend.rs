//! `amend`: marks, ids and times of a file that is there.

use std::time::SystemTime;

use cowhand_core::{Error, OptionKind, OptionSpec, Options, Result};

use crate::batmap::KeyHash;
use crate::create::unique_id;
use crate::footer::{EPOCH, Footer, timestamp};

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "hidden",
        OptionKind::Number,
        "XenServer's mark on a disk that is only a parent, 0 to 255 (0: not hidden)",
    )
    .own(),
    OptionSpec::new(
        "saved_state",
        OptionKind::Flag,
        "The mark of a disk whose machine's state was saved",
    )
    .own(),
    OptionSpec::new(
        "marker",
        OptionKind::Number,
        "The marker byte beside XenServer's batmap, 0 to 255",
    )
    .own(),
    OptionSpec::new(
        "key_hash",
        OptionKind::Text,
        "The key's hash beside XenServer's batmap: the nonce and the SHA-256 of nonce and key, NONCE:HASH, each 64 hexadecimal digits; 'none' takes it away",
    )
    .own(),
    OptionSpec::new(
        "unique_id",
        OptionKind::Text,
        "The disk's unique id: a UUID, or 'new'; its children know it by the one it had",
    )
    .own(),
    OptionSpec::new(
        "timestamp",
        OptionKind::Text,
        "When the disk was made: seconds since 1970, or 'now'",
    )
    .own(),
];

/// What is to be changed, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amend {
    hidden: Option<u8>,
    saved_state: Option<u8>,
    marker: Option<u8>,
    key: Option<Option<KeyHash>>,
    unique_id: Option<[u8; 16]>,
    timestamp: Option<u32>,
}

impl Amend {
    /// Errors: a value that is none; one that stands in a batmap, where the file has none.
    pub(crate) fn of(options: &Options, has_batmap: bool) -> Result<Amend> {
        let byte = |name: &str| {
            let number = options.number(name);
            let byte = |number| {
                u8::try_from(number)
                    .map_err(|_| Error::invalid(format!("{name}={number} is not a number from 0 to 255")))
            };
            number.map(byte).transpose()
        };
        let amend = Amend {
            hidden: byte("hidden")?,
            saved_state: options.flag("saved_state").map(u8::from),
            marker: byte("marker")?,
            key: options.text("key_hash").map(key_hash).transpose()?,
            unique_id: match options.text("unique_id") {
                Some("new") => Some(Footer::new_id()),
                text => text.map(unique_id).transpose()?,
            },
            timestamp: options.text("timestamp").map(seconds).transpose()?,
        };
        if amend.is_of_batmap() && !has_batmap {
            return Err(Error::unsupported(
                "marker and key_hash stand beside XenServer's batmap, which this image has not",
            )
            .hint("make an image that has one with -o batmap=on"));
        }
        Ok(amend)
    }

    /// Something beside the batmap changes.
    pub(crate) fn is_of_batmap(&self) -> bool {
        self.marker.is_some() || self.key.is_some()
    }

    /// Something in the footer changes.
    pub(crate) fn is_of_footer(&self) -> bool {
        self.hidden.is_some()
            || self.saved_state.is_some()
            || self.unique_id.is_some()
            || self.timestamp.is_some()
    }

    pub(crate) fn change_footer(&self, footer: &mut Footer) {
        footer.hidden = self.hidden.unwrap_or(footer.hidden);
        footer.saved_state = self.saved_state.unwrap_or(footer.saved_state);
        footer.unique_id = self.unique_id.unwrap_or(footer.unique_id);
        footer.timestamp = self.timestamp.unwrap_or(footer.timestamp);
    }

    pub(crate) fn change_batmap(&self, marker: &mut u8, key: &mut Option<KeyHash>) {
        *marker = self.marker.unwrap_or(*marker);
        *key = self.key.unwrap_or(*key);
    }
}

fn key_hash(text: &str) -> Result<Option<KeyHash>> {
    if text == "none" {
        return Ok(None);
    }
    let parts = text.split_once(':').and_then(|(nonce, hash)| Some((digits(nonce)?, digits(hash)?)));
    match parts {
        Some((nonce, hash)) => Ok(Some(KeyHash { nonce, hash })),
        None => Err(Error::invalid(format!("key_hash={text} is not two numbers of 64 hexadecimal digits"))
            .hint("give the nonce, a colon, and the SHA-256 of nonce and key; or 'none'")),
    }
}

fn digits(text: &str) -> Option<[u8; 32]> {
    let pairs = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; 32];
    if pairs.0.len() != bytes.len() || !pairs.1.is_empty() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs.0) {
        let digit = |at: u8| char::from(at).to_digit(16);
        let [high, low] = *pair;
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    Some(bytes)
}

fn seconds(text: &str) -> Result<u32> {
    if text == "now" {
        return Ok(timestamp(SystemTime::now()));
    }
    let since_2000 = text.parse::<u64>().ok().and_then(|seconds| seconds.checked_sub(EPOCH));
    since_2000.and_then(|seconds| u32::try_from(seconds).ok()).ok_or_else(|| {
        Error::invalid(format!("timestamp={text} is no time that a VHD can say")).hint(format!(
            "give seconds since 1970, from {EPOCH} (the year 2000) to {}, or 'now'",
            EPOCH + u64::from(u32::MAX)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amend(given: &[(&str, &str)], has_batmap: bool) -> Result<Amend> {
        let given: Vec<_> = given.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Amend::of(&Options::check(OPTIONS, &given).unwrap(), has_batmap)
    }

    #[test]
    fn values_are_checked() {
        let wrong = |name, value| amend(&[(name, value)], true).unwrap_err().to_string();
        assert!(wrong("marker", "256").contains("from 0 to 255"));
        let (letters, long) = (format!("{}:{}", "0".repeat(64), "g".repeat(64)), "0".repeat(129));
        for key in ["", "0:0", "none:none", &long, &letters] {
            assert!(wrong("key_hash", key).contains("64 hexadecimal digits"), "{key}");
        }
        for time in ["0", "946684799", "5241652096", "soon"] {
            assert!(wrong("timestamp", time).contains("no time"), "{time}");
        }
        assert!(wrong("unique_id", "old").contains("not a UUID"));
        for of_batmap in [("marker", "1"), ("key_hash", "none")] {
            assert!(amend(&[of_batmap], false).unwrap_err().to_string().contains("batmap"));
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut footer = Footer::new(1 << 20, crate::geometry::Geometry::MAX, None);
        footer.hidden = 2;
        let before = footer.clone();
        amend(&[("saved_state", "on"), ("timestamp", "946684801")], false)
            .unwrap()
            .change_footer(&mut footer);
        assert_eq!(footer, Footer { saved_state: 1, timestamp: 1, ..before });
        let text = format!("{}:{}", "0a".repeat(32), "F1".repeat(32));
        let changed = amend(&[("key_hash", &text)], true).unwrap();
        assert!(changed.is_of_batmap() && !changed.is_of_footer());
        let (mut marker, mut key) = (3, None);
        changed.change_batmap(&mut marker, &mut key);
        assert_eq!((marker, key), (3, Some(KeyHash { nonce: [0x0a; 32], hash: [0xf1; 32] })));
        amend(&[("key_hash", "none")], true).unwrap().change_batmap(&mut marker, &mut key);
        assert_eq!(key, None);
    }
}
