//! Flags' values: sizes and cache modes, with the complaints that callers know.

use std::ffi::OsStr;
use std::ops::RangeInclusive;

use cowhand::{Cache, parse_size};

use super::{Failure, says, text};

/// A number of bytes. `what` is what the complaint calls it.
pub(super) fn size(what: &str, word: &OsStr, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let word = text(word);
    let wrong = || says(format!("Invalid {what} specified: '{word}'."));
    let out_of_range = || {
        let (least, most) = (range.start(), range.end());
        says(format!("Invalid {what} specified. Must be between {least} and {most}."))
    };
    let number = word.trim_start();
    if number.strip_prefix('-').is_some_and(all_digits) {
        return Err(out_of_range());
    }
    let number = number.strip_prefix('+').unwrap_or(number);
    let bare = number.strip_suffix(|c: char| c.is_ascii_alphabetic()).unwrap_or(number);
    let is_hex = number.starts_with("0x") || number.starts_with("0X");
    // One letter, and not the longer endings that people type.
    if !is_hex && !bare.ends_with(|c: char| c.is_ascii_digit()) || number.ends_with(char::is_whitespace) {
        return Err(wrong());
    }
    match parse_size(number) {
        Ok(bytes) if range.contains(&bytes) => Ok(bytes),
        Ok(_) => Err(out_of_range()),
        Err(_) if all_digits(bare) && parse_size(&number.replace(bare, "1")).is_ok() => Err(out_of_range()),
        Err(_) => Err(wrong()),
    }
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
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
