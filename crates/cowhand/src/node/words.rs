//! The options that describe an image, flat: `file.filename` is the option `filename` of the child `file`.

use std::collections::BTreeMap;

use cowhand_core::{Error, Result, parse_option_words};
use serde_json::{Map, Value};

use super::json;

/// Options by their names, those of children with the child's name and a dot before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words(BTreeMap<String, Value>);

impl Words {
    /// What stands behind `json:`.
    pub(crate) fn from_json(text: &str) -> Result<Words> {
        let parsed = json::parse(text).map_err(|error| {
            Error::invalid(format!("Could not parse the JSON options: {}", error.message()))
        })?;
        match parsed {
            Value::Object(members) => {
                let mut words = Words::default();
                words.flatten("", members);
                Ok(words)
            }
            _ => Err(Error::invalid("Invalid JSON object given")),
        }
    }

    /// `driver=qcow2,file.filename=PATH`. Of a name given twice the last counts. The other answer: what should be said of it.
    pub(crate) fn from_options(text: &str) -> Result<(Words, Vec<String>)> {
        let mut words = Words::default();
        let mut warnings = Vec::new();
        for (index, (name, value)) in parse_option_words(text).into_iter().enumerate() {
            let (name, value) = match value {
                Some(value) => (name, value),
                None if index == 0 => ("file".to_owned(), name),
                None => {
                    let (plain, value) = match name.strip_prefix("no") {
                        Some(plain) => (plain.to_owned(), "off"),
                        None => (name.clone(), "on"),
                    };
                    warnings.push(format!(
                        "short-form boolean option '{name}' deprecated\nPlease use {plain}={value} instead"
                    ));
                    (plain, value.to_owned())
                }
            };
            if name == "id" && !is_identifier(&value) {
                return Err(not_an_identifier("id"));
            }
            words.put(name, Value::String(value));
        }
        Ok((words, warnings))
    }

    /// Adds the members of an object, whose names stand behind `prefix`. What is said twice counts as it stands deeper.
    fn flatten(&mut self, prefix: &str, members: Map<String, Value>) {
        let mut deep = Vec::new();
        for (name, value) in members {
            let name = format!("{prefix}{name}");
            match value {
                Value::Object(members) if !members.is_empty() => deep.push((name, members)),
                Value::Array(members) if !members.is_empty() => {
                    let numbered = members.into_iter().enumerate();
                    deep.push((name, numbered.map(|(index, value)| (index.to_string(), value)).collect()));
                }
                value => self.put(name, value),
            }
        }
        deep.into_iter().for_each(|(name, members)| self.flatten(&format!("{name}."), members));
    }

    pub(crate) fn put(&mut self, name: impl Into<String>, value: Value) {
        self.0.insert(name.into(), value);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// Takes an option that is text; one that is something else is not it, and goes.
    pub(crate) fn take_text(&mut self, name: &str) -> Option<String> {
        match self.0.remove(name)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Takes the options of a child, without its name.
    pub(crate) fn take_child(&mut self, name: &str) -> Words {
        let prefix = format!("{name}.");
        let (child, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key.starts_with(&prefix));
        self.0 = rest;
        let bare =
            |(key, value): (String, Value)| (key.get(prefix.len()..).unwrap_or_default().to_owned(), value);
        Words(child.into_iter().map(bare).collect())
    }

    /// The first of them, in the order of their names.
    pub(crate) fn first(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

/// A value as it is written in `-o`.
pub(crate) fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "on".to_owned(),
        Value::Bool(false) => "off".to_owned(),
        other => other.to_string(),
    }
}

/// Letters, digits, `-`, `.` and `_`, a letter first.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

pub(crate) fn not_an_identifier(name: &str) -> Error {
    Error::invalid(format!(
        "Parameter '{name}' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with \
         a letter."
    ))
}
