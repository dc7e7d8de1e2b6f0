//! Flags' values: sizes and cache modes, with the complaints that callers know.

use std::ffi::OsStr;
use std::ops::RangeInclusive;

use cowhand::{Cache, parse_option_string, parse_size};

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

/// A plain number: decimal, hexadecimal behind `0x`, octal behind `0`.
pub(super) fn number(what: &str, word: &OsStr, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let word = text(word);
    let out_of_range = || {
        let (least, most) = (range.start(), range.end());
        says(format!("Invalid {what} specified. Must be between {least} and {most}."))
    };
    let signed = word.trim_start();
    let number = signed.strip_prefix(['-', '+']).unwrap_or(signed);
    let (digits, radix) = match number.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&number[2..], 16),
        [b'0', _, ..] => (&number[1..], 8),
        _ => (number, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(says(format!("Invalid {what} specified: '{word}'.")));
    }
    match u64::from_str_radix(digits, radix) {
        Ok(0) if range.contains(&0) => Ok(0),
        Ok(value) if range.contains(&value) && !signed.starts_with('-') => Ok(value),
        _ => Err(out_of_range()),
    }
}

/// One list of `-o`. Errors: it begins or ends in the middle of one.
pub(super) fn option_list(word: &OsStr) -> Result<Vec<(String, String)>, Failure> {
    let word = text(word);
    let commas_at_the_end = word.len() - word.trim_end_matches(',').len();
    let cut = commas_at_the_end % 2 == 1;
    let starts_whole = !word.starts_with(',') || word.starts_with(",,");
    if word.is_empty() || !starts_whole || cut {
        return Err(says(format!("Invalid option list: {word}")));
    }
    Ok(parse_option_string(&word))
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
    fn lists_of_options_are_whole() {
        let taken =
            |word: &str| option_list(OsStr::new(word)).map(|options| options.len()).map_err(|f| f.text);
        for (word, len) in [("a", 1), ("a=1,b", 2), ("a=1,,2,b=3", 2), ("a=1,,", 1)] {
            assert_eq!(taken(word), Ok(len), "{word}");
        }
        for word in ["", ",", ",a", "a,", "a,,,"] {
            assert_eq!(taken(word), Err(format!("qemu-img: Invalid option list: {word}")));
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
