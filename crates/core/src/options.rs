//! `-o name=value,...`: one table per format makes the parsing, the checks and the help.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// What an option's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// Bytes, with QEMU's suffixes.
    Size,
    /// A whole number.
    Number,
    /// `on` or `off`.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
}

/// Whose an option is in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The format's driver knows it.
    Driver,
    /// The driver of the file that the image stands in knows it.
    File,
    /// QEMU does not have it.
    Nowhere,
}

/// One option of a format. A table of them stands in the order in which `qemu-img create` prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name, as QEMU spells it where QEMU has it.
    pub name: &'static str,
    /// What its value may be.
    pub kind: OptionKind,
    /// One line for `-o help`.
    pub help: &'static str,
    /// Whose it is in QEMU.
    pub owner: Owner,
    /// What `qemu-img create` prints where it was not given; `None`: nothing.
    pub shown: Option<&'static str>,
    /// What QEMU's complaints about its value call it.
    pub called: &'static str,
}

/// Options that were checked against a format's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<&'static str, String>);

impl Options {
    /// Checks names and values against `table`. A name given twice: the last counts.
    pub fn check(table: &[OptionSpec], given: &[(String, String)]) -> Result<Options> {
        let mut checked = BTreeMap::new();
        for (name, value) in given {
            let spec = table.iter().find(|spec| spec.name == name).ok_or_else(|| {
                let said = format!("Invalid parameter '{name}'");
                Error::invalid(said.clone()).known_as(said).hint("'-o help' lists what this format takes")
            })?;
            spec.check(value)?;
            checked.insert(spec.name, value.clone());
        }
        Ok(Options(checked))
    }

    /// True if the option was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The names of those that were given.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// The text of an option.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A size in bytes. `None` if it was not given.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(|text| parse_size(text).ok())
    }

    /// A whole number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).and_then(parse_flag)
    }
}

impl OptionSpec {
    /// The disk's size, which every format has.
    pub const SIZE: OptionSpec = OptionSpec::new("size", OptionKind::Size, "Virtual disk size");
    /// The parent's name, where QEMU's driver has parents.
    pub const BACKING_FILE: OptionSpec =
        OptionSpec::new("backing_file", OptionKind::Text, "File name of a base image");
    /// The parent's format.
    pub const BACKING_FMT: OptionSpec =
        OptionSpec::new("backing_fmt", OptionKind::Text, "Image format of the base image");

    /// One that the format's driver in QEMU has too.
    pub const fn new(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
        OptionSpec { name, kind, help, owner: Owner::Driver, shown: None, called: name }
    }

    /// `qemu-img create` prints `value` where it was not given.
    #[must_use]
    pub const fn shown(self, value: &'static str) -> OptionSpec {
        OptionSpec { shown: Some(value), ..self }
    }

    /// QEMU's complaints about its value call it `name`.
    #[must_use]
    pub const fn called(self, name: &'static str) -> OptionSpec {
        OptionSpec { called: name, ..self }
    }

    /// In QEMU the file's driver has it.
    #[must_use]
    pub const fn of_file(self) -> OptionSpec {
        OptionSpec { owner: Owner::File, ..self }
    }

    /// QEMU does not have it.
    #[must_use]
    pub const fn own(self) -> OptionSpec {
        OptionSpec { owner: Owner::Nowhere, ..self }
    }

    fn check(&self, value: &str) -> Result<()> {
        let called = self.called;
        let wrong = |expected: String| {
            let said = Error::invalid(format!("Parameter '{}' expects {expected}, not '{value}'", self.name));
            Err(said.known_as(match self.kind {
                OptionKind::Size if is_out_of_range(value) => {
                    format!("Value '{value}' is out of range for parameter '{called}'")
                }
                OptionKind::Size => format!(
                    "Parameter '{called}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means \
                     kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
                ),
                OptionKind::Choice(_) => format!("Parameter '{called}' does not accept value '{value}'"),
                _ => format!("Parameter '{called}' expects {expected}"),
            }))
        };
        match self.kind {
            OptionKind::Text => Ok(()),
            OptionKind::Size => match parse_size(value) {
                Ok(_) => Ok(()),
                Err(_) => wrong("a size".to_owned()),
            },
            OptionKind::Number => match value.parse::<u64>() {
                Ok(_) => Ok(()),
                Err(_) => wrong("a number".to_owned()),
            },
            OptionKind::Flag => match parse_flag(value) {
                Some(_) => Ok(()),
                None => wrong("'on' or 'off'".to_owned()),
            },
            OptionKind::Choice(words) => {
                if words.contains(&value) {
                    Ok(())
                } else {
                    wrong(format!("one of {}", words.join(", ")))
                }
            }
        }
    }
}

/// A number, and none that a size can be.
fn is_out_of_range(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_flag(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// Splits `a=1,b=x,,y,c` as QEMU does: `,,` is a comma within a value, and a name without a value is `on`.
pub fn parse_option_string(text: &str) -> Vec<(String, String)> {
    let words = parse_option_words(text).into_iter();
    words.map(|(name, value)| (name, value.unwrap_or_else(|| "on".to_owned()))).collect()
}

/// Splits `a=1,b=x,,y,c` as QEMU does: `,,` is a comma within a value, and a name may stand without a value.
pub fn parse_option_words(text: &str) -> Vec<(String, Option<String>)> {
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, words.last_mut()) {
            (',', Some(word)) if chars.peek() == Some(&',') => {
                chars.next();
                word.push(',');
            }
            (',', _) => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words
        .into_iter()
        .filter(|word| !word.is_empty())
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        })
        .collect()
}

/// Bytes by QEMU's rules: a decimal number, whole or with a fraction, and `b`, `k`, `M`, `G`, `T`, `P` or `E` (powers
/// of 1024, any case; none: bytes); or `0x` and a hexadecimal number without a suffix. `KiB` and `KB` style endings
/// that people type are taken as the same powers of 1024.
pub fn parse_size(text: &str) -> Result<u64> {
    let wrong = || {
        Error::invalid(format!("'{text}' is not a size"))
            .hint("sizes look like 1048576, 512k, 20M, 1.5G, 4T or 0x100000")
    };
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).map_err(|_| wrong());
    }
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let suffix = suffix.trim_start().to_ascii_lowercase();
    let suffix = suffix
        .strip_suffix("ib")
        .or_else(|| suffix.strip_suffix('b').filter(|rest| !rest.is_empty()))
        .unwrap_or(&suffix);
    let shift = match suffix {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || fraction.contains('.')
        || (number.ends_with('.') || (shift == 0 && !fraction.is_empty()))
    {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(wrong)?;
    if !fraction.is_empty() {
        let digits = &fraction[..fraction.len().min(18)];
        let scaled: u128 = digits.parse().map_err(|_| wrong())?;
        let part = (scaled << shift) / 10u128.pow(digits.len() as u32);
        bytes = bytes.checked_add(u64::try_from(part).map_err(|_| wrong())?).ok_or_else(wrong)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("1k", 1024),
            ("1K", 1024),
            ("1.5G", 3 << 29),
            ("0x200", 512),
            ("2T", 2 << 40),
            ("7E", 7 << 60),
            ("20 MiB", 20 << 20),
            ("20MB", 20 << 20),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "k", "1x", "-1", "1.5", "16E", "0x1k", "1..2k", "1.k"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn option_strings() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            parse_option_string("cluster_size=64k,backing_file=a,,b.raw,lazy_refcounts"),
            [pair("cluster_size", "64k"), pair("backing_file", "a,b.raw"), pair("lazy_refcounts", "on")]
        );
    }

    #[test]
    fn tables_check() {
        const TABLE: &[OptionSpec] = &[
            OptionSpec::new("n", OptionKind::Number, ""),
            OptionSpec::new("c", OptionKind::Choice(&["a", "b"]), ""),
        ];
        let given = |n: &str, v: &str| Options::check(TABLE, &[(n.to_owned(), v.to_owned())]);
        assert_eq!(given("n", "7").unwrap().number("n"), Some(7));
        assert!(given("n", "x").is_err());
        assert!(given("c", "z").unwrap_err().to_string().contains("one of a, b"));
        assert!(given("q", "").unwrap_err().to_string().contains("Invalid parameter 'q'"));
    }
}
