//! Numbers as QEMU reads them.

/// Why a word is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It does not read as one.
    Form,
    /// It is one that does not fit.
    Range,
}

/// Bytes: decimal, with a fraction of a unit and one letter for the unit, or hexadecimal without either.
pub(super) fn size(word: &str) -> Result<u64, Wrong> {
    let (negative, digits) = signed(word);
    match hexadecimal(digits) {
        Some(_) if negative => Err(Wrong::Form),
        Some(digits) => whole(digits, 16),
        // Of a negative one only that is said which has no unit and no units before a fraction.
        None if negative => match digits.strip_prefix('.').unwrap_or(digits) {
            plain if whole(plain, 10) == Err(Wrong::Form) => Err(Wrong::Form),
            _ => Err(Wrong::Range),
        },
        None => decimal(digits),
    }
}

/// A whole number: decimal, hexadecimal or octal. A negative one counts from the top, as in C.
pub(super) fn number(word: &str) -> Result<u64, Wrong> {
    let (negative, digits) = signed(word);
    let number = match (hexadecimal(digits), digits.strip_prefix('0')) {
        (Some(digits), _) => whole(digits, 16)?,
        (None, Some(digits)) if !digits.is_empty() => whole(digits, 8)?,
        _ => whole(digits, 10)?,
    };
    Ok(if negative { number.wrapping_neg() } else { number })
}

/// What is said of an option's value that is no size.
pub(super) fn not_a_size(name: &str, word: &str, wrong: Wrong) -> String {
    match wrong {
        Wrong::Range => format!("Value '{word}' is out of range for parameter '{name}'"),
        Wrong::Form => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ),
    }
}

fn signed(word: &str) -> (bool, &str) {
    let word = word.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    }
}

fn hexadecimal(word: &str) -> Option<&str> {
    word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"))
}

fn whole(digits: &str, radix: u32) -> Result<u64, Wrong> {
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(Wrong::Form);
    }
    u64::from_str_radix(digits, radix).map_err(|_| Wrong::Range)
}

fn decimal(word: &str) -> Result<u64, Wrong> {
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    let (number, unit) = word.split_at(end);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(Wrong::Form),
    };
    let (units, fraction) = number.split_once('.').unwrap_or((number, ""));
    if units.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(Wrong::Form);
    }
    let part = format!("0.{fraction}0").parse::<f64>().map_err(|_| Wrong::Form)?;
    if shift == 0 && part > 0.0 {
        return Err(Wrong::Form);
    }
    let units = if units.is_empty() { 0 } else { whole(units, 10)? };
    let part = (part * (1_u64 << shift) as f64).round() as u64;
    units.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(part)).ok_or(Wrong::Range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (word, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1b", 1),
            ("1.5G", 3 << 29),
            (" +1m", 1 << 20),
            ("1.k", 1024),
            (".5k", 512),
            ("1.0", 1),
            ("0.9999k", 1024),
            ("0.0005k", 1),
            ("0.0004k", 0),
            ("0.1G", 107_374_182),
            ("0X10", 16),
            ("010", 10),
            ("1e", 1 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(word), Ok(bytes), "{word}");
        }
        for word in [
            "", ".", ".k", "x", "1.5", "1.5b", "1..k", "1e3", "1MB", "1 M", "0x", "0x1k", "+-1", "++1",
            "-1k", "-0.0", "-1.",
        ] {
            assert_eq!(size(word), Err(Wrong::Form), "{word}");
        }
        for word in ["-1", "-0", "-.5", "16E", "18446744073709551616", "99999999999999999999k"] {
            assert_eq!(size(word), Err(Wrong::Range), "{word}");
        }
    }

    #[test]
    fn numbers() {
        for (word, value) in [("8", 8), ("0x8", 8), ("010", 8), ("0", 0), (" 5", 5), ("-1", u64::MAX)] {
            assert_eq!(number(word), Ok(value), "{word}");
        }
        for word in ["", "x", "08", "5b", "0b1", "1.0"] {
            assert_eq!(number(word), Err(Wrong::Form), "{word}");
        }
        assert_eq!(number("18446744073709551616"), Err(Wrong::Range));
    }
}
