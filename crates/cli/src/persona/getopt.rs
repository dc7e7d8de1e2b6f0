//! Words taken apart as getopt_long does it: flags before and behind other words, long ones cut short, one table for all.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One flag of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flag {
    /// What the program calls it, and its long form where it has one.
    pub(crate) name: &'static str,
    /// Its letter.
    pub(crate) short: Option<char>,
    /// `--name` means it too.
    pub(crate) long: bool,
    /// What its value is called in help, where it takes one.
    pub(crate) value: Option<&'static str>,
    /// One line for help.
    pub(crate) help: &'static str,
    /// The long form cannot be cut short.
    pub(crate) whole: bool,
}

impl Flag {
    /// `-s` and `--name`.
    pub(crate) const fn both(short: char, name: &'static str, help: &'static str) -> Flag {
        Flag { name, short: Some(short), long: true, value: None, help, whole: false }
    }

    /// `--name` alone.
    pub(crate) const fn long(name: &'static str, help: &'static str) -> Flag {
        Flag { name, short: None, long: true, value: None, help, whole: false }
    }

    /// `-s` alone, which the program knows as `name`.
    pub(crate) const fn short(short: char, name: &'static str, help: &'static str) -> Flag {
        Flag { name, short: Some(short), long: false, value: None, help, whole: false }
    }

    /// The same with a value.
    pub(crate) const fn of(self, value: &'static str) -> Flag {
        Flag { value: Some(value), ..self }
    }

    /// The same, whose long form cannot be cut short: one that the tool does not have, or calls otherwise.
    pub(crate) const fn whole(self) -> Flag {
        Flag { whole: true, ..self }
    }
}

/// A command's words, taken one flag at a time, so that what is wrong is found in the order in which it stands there.
#[derive(Debug)]
pub(crate) struct Words {
    /// Stands before each complaint.
    caller: String,
    flags: &'static [Flag],
    left: VecDeque<OsString>,
    /// What is left of a group of letters.
    group: VecDeque<u8>,
    others: Vec<OsString>,
    /// The first word that is no flag ends the flags.
    strict: bool,
    /// Right behind the first word that is no flag, `-5` is none either.
    negative: bool,
}

impl Words {
    /// The words behind the command's name; `caller` begins each complaint.
    pub(crate) fn new(caller: impl Into<String>, flags: &'static [Flag], words: &[OsString]) -> Words {
        Words {
            caller: caller.into(),
            flags,
            left: words.iter().cloned().collect(),
            group: VecDeque::new(),
            others: Vec::new(),
            strict: false,
            negative: false,
        }
    }

    /// Flags stand before the first word that is none; what is behind it is left alone.
    pub(crate) fn strict(self) -> Words {
        Words { strict: true, ..self }
    }

    /// A negative number behind the first word that is no flag is no flag.
    pub(crate) fn take_negative_numbers(&mut self) {
        self.negative = true;
    }

    /// The next flag's name and value. Errors: what getopt_long says, a line.
    pub(crate) fn next(&mut self) -> Result<Option<(&'static str, OsString)>, String> {
        loop {
            if let Some(letter) = self.group.pop_front() {
                return self.letter(letter).map(Some);
            }
            let Some(word) = self.left.pop_front() else { return Ok(None) };
            match word.as_bytes() {
                b"--" => {
                    self.others.extend(self.left.drain(..));
                    return Ok(None);
                }
                // Where there is no long one at all, each byte is a letter.
                [b'-', b'-', name @ ..] if self.flags.iter().any(|flag| flag.long) => {
                    return self.word(name).map(Some);
                }
                [b'-', letters @ ..] if !letters.is_empty() => self.group = letters.iter().copied().collect(),
                _ if self.strict => {
                    self.others.push(word);
                    self.others.extend(self.left.drain(..));
                    return Ok(None);
                }
                _ => {
                    self.others.push(word);
                    let number = |word: &OsString| matches!(word.as_bytes(), [b'-', digit, ..] if digit.is_ascii_digit());
                    if self.negative && self.others.len() == 1 && self.left.front().is_some_and(number) {
                        self.others.extend(self.left.pop_front());
                    }
                }
            }
        }
    }

    /// The words that are no flags, once [`next`](Words::next) has come to the end.
    pub(crate) fn others(&mut self) -> Vec<OsString> {
        std::mem::take(&mut self.others)
    }

    fn letter(&mut self, letter: u8) -> Result<(&'static str, OsString), String> {
        let Some(flag) = self.flags.iter().find(|flag| flag.short == Some(char::from(letter))) else {
            let letter = String::from_utf8_lossy(&[letter]).into_owned();
            return Err(format!("{}: invalid option -- '{letter}'", self.caller));
        };
        if flag.value.is_none() {
            return Ok((flag.name, OsString::new()));
        }
        let attached: Vec<u8> = self.group.drain(..).collect();
        let value =
            if attached.is_empty() { self.left.pop_front() } else { Some(OsString::from_vec(attached)) };
        match value {
            Some(value) => Ok((flag.name, value)),
            None => Err(format!("{}: option requires an argument -- '{}'", self.caller, char::from(letter))),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(&'static str, OsString), String> {
        let (name, value) = match word.iter().position(|&byte| byte == b'=') {
            Some(at) => (&word[..at], word.get(at + 1..)),
            None => (word, None),
        };
        let shown = String::from_utf8_lossy(word);
        let flags = self.flags;
        let long = || flags.iter().filter(|flag| flag.long);
        let exact = long().find(|flag| flag.name.as_bytes() == name);
        let flag = match exact {
            Some(flag) => flag,
            None => {
                let begins = |flag: &&Flag| !flag.whole && flag.name.as_bytes().starts_with(name);
                let meant: Vec<&'static Flag> = long().filter(begins).collect();
                match meant.as_slice() {
                    [] => return Err(format!("{}: unrecognized option '--{shown}'", self.caller)),
                    [flag] => *flag,
                    several => {
                        let all: String = several.iter().map(|flag| format!(" '--{}'", flag.name)).collect();
                        return Err(format!(
                            "{}: option '--{shown}' is ambiguous; possibilities:{all}",
                            self.caller
                        ));
                    }
                }
            }
        };
        match (flag.value, value) {
            (None, Some(_)) => {
                Err(format!("{}: option '--{}' doesn't allow an argument", self.caller, flag.name))
            }
            (None, None) => Ok((flag.name, OsString::new())),
            (Some(_), Some(value)) => Ok((flag.name, OsStr::from_bytes(value).to_owned())),
            (Some(_), None) => match self.left.pop_front() {
                Some(value) => Ok((flag.name, value)),
                None => Err(format!("{}: option '--{}' requires an argument", self.caller, flag.name)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::both('q', "quiet", ""),
        Flag::both('f', "format", "").of("FORMAT"),
        Flag::long("output", "").of("FORM"),
        Flag::long("object", "").of("OBJECT"),
        Flag::short('n', "name", "").of("NAME"),
        Flag::long("outside", "").whole(),
    ];

    fn taken(words: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let mut words = Words::new("tool verb", FLAGS, &words);
        let mut flags = Vec::new();
        while let Some((name, value)) = words.next()? {
            flags.push(format!("{name}={}", value.display()));
        }
        Ok((flags, words.others().iter().map(|word| word.display().to_string()).collect()))
    }

    #[test]
    fn flags_stand_anywhere_and_in_any_form() {
        let (flags, others) = taken(&[
            "a",
            "-qfraw",
            "--format=x=y",
            "b",
            "--ou",
            "json",
            "-n",
            "-q",
            "--outside",
            "-",
            "--",
            "-q",
        ])
        .unwrap();
        assert_eq!(flags, ["quiet=", "format=raw", "format=x=y", "output=json", "name=-q", "outside="]);
        assert_eq!(others, ["a", "b", "-", "-q"]);
    }

    #[test]
    fn without_long_flags_a_dash_is_a_letter() {
        const SHORT: &[Flag] = &[Flag::short('v', "verbose", "")];
        let mut words = Words::new("tool", SHORT, &["-v".into(), "--verbose".into()]);
        assert_eq!(words.next().unwrap(), Some(("verbose", OsString::new())));
        assert_eq!(words.next().unwrap_err(), "tool: invalid option -- '-'");
    }

    #[test]
    fn a_negative_number_stands_behind_the_first_word() {
        let taken = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let mut words = Words::new("tool", FLAGS, &words);
            words.take_negative_numbers();
            while words.next()?.is_some() {}
            Ok::<_, String>(words.others())
        };
        assert_eq!(taken(&["-q", "a", "-5M"]).unwrap(), ["a", "-5M"]);
        assert_eq!(taken(&["a", "-q", "-5M"]).unwrap_err(), "tool: invalid option -- '5'");
    }

    #[test]
    fn complaints_are_those_of_the_c_library() {
        for (words, said) in [
            (&["-x"][..], "tool verb: invalid option -- 'x'"),
            (&["-f"], "tool verb: option requires an argument -- 'f'"),
            (&["--form"], "tool verb: option '--format' requires an argument"),
            (&["--nope=1"], "tool verb: unrecognized option '--nope=1'"),
            (&["--name"], "tool verb: unrecognized option '--name'"),
            (&["--quiet=1"], "tool verb: option '--quiet' doesn't allow an argument"),
            (
                &["--o=json"],
                "tool verb: option '--o=json' is ambiguous; possibilities: '--output' '--object'",
            ),
        ] {
            assert_eq!(taken(words).unwrap_err(), said);
        }
    }
}
