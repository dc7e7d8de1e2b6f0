//! Flags' values: sizes and cache modes, with the complaints that callers know.

use std::ffi::OsStr;
use std::ops::RangeInclusive;

use cowhand::Cache;

use super::numbers::{self, Wrong};
use super::{Failure, says, text};

/// A number of bytes. `what` is what the complaint calls it.
pub(super) fn size(what: &str, word: &OsStr, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let word = text(word);
    match numbers::size(&word) {
        Ok(bytes) if range.contains(&bytes) => Ok(bytes),
        Ok(_) | Err(Wrong::Range) => {
            let (least, most) = (range.start(), range.end());
            Err(says(format!("Invalid {what} specified. Must be between {least} and {most}.")))
        }
        Err(Wrong::Form) => Err(says(format!("Invalid {what} specified: '{word}'."))),
    }
}

/// A plain number: decimal, hexadecimal behind `0x`, octal behind `0`.
pub(super) fn number(what: &str, word: &OsStr, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let word = text(word);
    let negative = word.trim_start().starts_with('-');
    match numbers::number(&word) {
        Err(Wrong::Form) => Err(says(format!("Invalid {what} specified: '{word}'."))),
        Ok(value) if range.contains(&value) && (value == 0 || !negative) => Ok(value),
        Ok(_) | Err(Wrong::Range) => {
            let (least, most) = (range.start(), range.end());
            Err(says(format!("Invalid {what} specified. Must be between {least} and {most}.")))
        }
    }
}

/// `-t`, or what another flag says of another image: `what` stands before "cache option" in the complaint.
pub(super) fn cache(what: &str, word: Option<&OsStr>) -> Result<Cache, Failure> {
    let Some(word) = word else { return Ok(Cache::default()) };
    let name = text(word);
    Cache::by_name(&name).ok_or_else(|| says(format!("Invalid {what}cache option: {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_as_qemu_takes_them() {
        let taken = |word: &str| number("count", OsStr::new(word), 0..=9).map_err(|failure| failure.text);
        for (word, value) in [("0", 0), ("-0", 0), ("7", 7), ("+7", 7), (" 7", 7), ("0x9", 9), ("011", 9)] {
            assert_eq!(taken(word), Ok(value), "{word}");
        }
        for word in ["", "x", "1k", "1.5", "08", "0x", "7 ", "-"] {
            assert_eq!(taken(word), Err(format!("qemu-img: Invalid count specified: '{word}'.")));
        }
        for word in ["-1", "10", "0xA", "99999999999999999999"] {
            let said = "qemu-img: Invalid count specified. Must be between 0 and 9.";
            assert_eq!(taken(word), Err(said.to_owned()), "{word}");
        }
    }

    #[test]
    fn sizes_are_taken_as_qemu_takes_them() {
        let taken =
            |word: &str| size("rate", OsStr::new(word), 0..=i64::MAX as u64).map_err(|failure| failure.text);
        for (word, bytes) in
            [("0", 0), ("1.5M", 3 << 19), ("0x10", 16), (" 5", 5), ("+5", 5), ("5B", 5), ("1e", 1 << 60)]
        {
            assert_eq!(taken(word), Ok(bytes), "{word}");
        }
        for word in ["", "x", "1Z", "1.5", "0x1.8k", "1e3", "5x", "-1x", "--5", "1kk", "5MB", "5 ", "nan"] {
            assert_eq!(taken(word), Err(format!("qemu-img: Invalid rate specified: '{word}'.")));
        }
        for word in ["-1", "-0", "9223372036854775808", "10000000E", "16E", "99999999999999999999"] {
            let said = "qemu-img: Invalid rate specified. Must be between 0 and 9223372036854775807.";
            assert_eq!(taken(word), Err(said.to_owned()), "{word}");
        }
    }
}
