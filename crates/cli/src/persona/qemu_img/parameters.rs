//! `-o`: a format's options, read, checked and told as QEMU does.

use std::ffi::OsStr;

use cowhand::{FILE_OPTIONS, Format, OptionKind, OptionSpec, Owner, Result as Done};

use super::numbers::{self, Wrong, not_a_size};
use super::{Failure, says, utf8};
use crate::output::Output;
use crate::verbs::formats;

/// What `-o` gave, each time it stood there.
#[derive(Debug, Default)]
pub(super) struct Lists(Vec<String>);

impl Lists {
    /// Another list. Errors: it has an empty part.
    pub(super) fn add(&mut self, word: &OsStr) -> Result<(), Failure> {
        let list = utf8(word)?;
        let parts = parts(&list);
        if parts.iter().any(|part| part.is_empty() || part.starts_with(',')) {
            return Err(says(format!("Invalid option list: {list}")));
        }
        self.0.extend(parts);
        Ok(())
    }

    /// Nothing was given.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Somebody wants to see what there is.
    pub(super) fn ask_for_help(&self) -> bool {
        self.0.iter().any(|part| part == "help" || part == "?")
    }

    /// Looks each of them up in `table`. Errors: the first that is not there, or has a value that is none.
    pub(super) fn read(&self, table: Vec<&'static OptionSpec>) -> Result<Parameters, String> {
        let mut read = Parameters { table, given: Vec::new() };
        for part in &self.0 {
            let (name, value) = match (part.split_once('='), part.strip_prefix("no")) {
                (Some((name, value)), _) => (name, value),
                (None, Some(name)) => (name, "off"),
                (None, None) => (part.as_str(), "on"),
            };
            read.set(name, value)?;
        }
        Ok(read)
    }
}

/// Splits at commas; two of them are one within a part.
fn parts(list: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match parts.last_mut() {
            Some(part) if c != ',' || chars.next_if_eq(&',').is_some() => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

/// Options that a table has, with values of the right kind.
#[derive(Debug)]
pub(super) struct Parameters {
    table: Vec<&'static OptionSpec>,
    /// Names, and values as they are printed.
    given: Vec<(&'static str, String)>,
}

impl Parameters {
    /// Sets one; what was set before counts no more. Errors: there is none of that name; the value is none.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let spec = self.table.iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| format!("Invalid parameter '{name}'"))?;
        let value = match spec.kind {
            OptionKind::Size => {
                numbers::size(value).map_err(|wrong| not_a_size(name, value, wrong))?.to_string()
            }
            OptionKind::Number => numbers::number(value)
                .map_err(|wrong| match wrong {
                    Wrong::Form => format!("Parameter '{name}' expects a number"),
                    Wrong::Range => format!("Value '{value}' is too large for parameter '{name}'"),
                })?
                .to_string(),
            OptionKind::Flag => match value {
                "on" | "yes" | "true" | "y" | "off" | "no" | "false" | "n" => value.to_owned(),
                _ => return Err(format!("Parameter '{name}' expects 'on' or 'off'")),
            },
            OptionKind::Choice(_) | OptionKind::Text => value.to_owned(),
        };
        self.given.retain(|(given, _)| *given != spec.name);
        self.given.push((spec.name, value));
        Ok(())
    }

    /// What was given for it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// All that were given but those of these names.
    pub(super) fn given_but(&self, names: &[&str]) -> Vec<(String, String)> {
        let others = self.given.iter().filter(|(name, _)| !names.contains(name));
        others.map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    /// ` name=value` for each that was given or has a value that is shown always, in the table's order.
    pub(super) fn shown(&self) -> String {
        let shown = self.table.iter().filter_map(|spec| {
            let value = self.get(spec.name);
            let value = match (value, spec.kind) {
                (None, _) => spec.shown?.to_owned(),
                // Printed as numbers with a sign.
                (Some(value), OptionKind::Size | OptionKind::Number) => value
                    .parse::<u64>()
                    .map_or_else(|_| value.to_owned(), |number| number.cast_signed().to_string()),
                (Some(value), OptionKind::Flag) => value.to_owned(),
                (Some(value), OptionKind::Choice(_) | OptionKind::Text) => value.replace(',', ",,"),
            };
            Some(format!(" {}={value}", spec.name))
        });
        shown.collect()
    }

    /// Whether each value that must be one of some words is. Errors: what is said of the first that is not.
    pub(super) fn check_choices(&self) -> Result<(), String> {
        let wrong = self.table.iter().find_map(|spec| match (self.get(spec.name), spec.kind) {
            (Some(value), OptionKind::Choice(words)) if !words.contains(&value) => Some((spec, value)),
            _ => None,
        });
        match wrong {
            None => Ok(()),
            Some((spec, value)) if spec.owner == Owner::Driver => {
                Err(format!("Parameter '{}' does not accept value '{value}'", spec.called))
            }
            // A mode that formats know, and files do not.
            Some((_, value @ "metadata")) => Err(format!("Unsupported preallocation mode: {value}")),
            Some((_, value)) => Err(format!("invalid parameter value: {value}")),
        }
    }
}

/// The format that QEMU knows by that name.
pub(super) fn format(name: &str) -> Option<&'static dyn Format> {
    cowhand::formats()
        .iter()
        .copied()
        .find(|format| format.names().first() == Some(&name) && format.qemu().is_some())
}

/// What can be said of a new image of `format`, in the order in which it is printed.
pub(super) fn of_new(format: &dyn Format) -> Vec<&'static OptionSpec> {
    let mut table = of_driver(format.options());
    for spec in FILE_OPTIONS {
        if table.iter().all(|known| known.name != spec.name) {
            table.push(spec);
        }
    }
    table
}

/// Those of `table` that QEMU's driver of the format has.
pub(super) fn of_driver(table: &'static [OptionSpec]) -> Vec<&'static OptionSpec> {
    table.iter().filter(|spec| spec.owner == Owner::Driver).collect()
}

/// What `-o help` lists.
pub(super) fn list(out: &mut Output, mut table: Vec<&'static OptionSpec>) -> Done<()> {
    table.sort_by_key(|spec| spec.name);
    formats::list(out, "  ", table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_no_empty_parts() {
        for list in ["", ",", "a=b,", ",a", ",,a"] {
            assert_eq!(
                Lists::default().add(OsStr::new(list)).unwrap_err().text,
                format!("qemu-img: Invalid option list: {list}")
            );
        }
        assert_eq!(parts("a=b,,c,d"), ["a=b,c", "d"]);
    }
}
