//! `--object secret,id=ID,...`: secrets as QEMU's programs are given them, and what those say where one makes no sense.

use std::fmt;
use std::fs::File;
use std::io::Read;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cowhand::{Error, ErrorKind, Result, Secrets, parse_json, parse_option_words, unwrap_secret};
use serde_json::Value;

/// A secret as it was given; nothing was read yet. Printing it shows its id alone.
#[derive(Clone, Default)]
pub(crate) struct SecretObject {
    id: String,
    data: Option<String>,
    file: Option<String>,
    base64: bool,
    keyid: Option<String>,
    iv: Option<String>,
}

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret {}", self.id)
    }
}

const KIND: &str = "qom-type";

impl SecretObject {
    /// `secret,id=ID,data=TEXT`, or the same as JSON.
    pub(crate) fn parse(text: &str) -> Result<SecretObject> {
        let mut given = if text.starts_with('{') { from_json(text)? } else { from_words(text)? };
        let mut take = |name: &str| -> Result<Option<String>> {
            let Some(at) = given.iter().position(|(given, _)| given == name) else { return Ok(None) };
            match given.remove(at).1 {
                Value::String(text) => Ok(Some(text)),
                _ => Err(Error::invalid(format!("Invalid parameter type for '{name}', expected: string"))),
            }
        };
        let missing = |name: &str| Error::invalid(format!("Parameter '{name}' is missing"));
        let unknown = |name: &str, value: &str| {
            Error::invalid(format!("Parameter '{name}' does not accept value '{value}'"))
        };
        let kind = take(KIND)?.ok_or_else(|| missing(KIND))?;
        if kind != "secret" {
            return Err(unknown(KIND, &kind).hint("known are secrets: secret,id=ID,file=PATH"));
        }
        let id = take("id")?.ok_or_else(|| missing("id"))?;
        let base64 = match take("format")?.as_deref() {
            None | Some("raw") => false,
            Some("base64") => true,
            Some(other) => return Err(unknown("format", other)),
        };
        let [data, file, keyid, iv] = ["data", "file", "keyid", "iv"].map(&mut take);
        let secret = SecretObject { id, data: data?, file: file?, base64, keyid: keyid?, iv: iv? };
        match given
            .first()
            .map(|(name, _)| name.split_once('.').map_or((name.as_str(), false), |(root, _)| (root, true)))
        {
            Some((root, true)) => Err(Error::invalid(format!("Parameters '{root}.*' are unexpected"))),
            Some((name, false)) => Err(Error::invalid(format!("Parameter '{name}' is unexpected"))),
            None if !is_identifier(&secret.id) => Err(Error::invalid(
                "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting \
                 with a letter.",
            )),
            None => Ok(secret),
        }
    }

    /// Reads it, and adds it to those that were given before, one of which may be what it is encrypted with.
    pub(crate) fn add_to(&self, secrets: &mut Secrets) -> Result<()> {
        let id = &self.id;
        if secrets.get(id).is_ok() {
            return Err(Error::invalid(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        let bytes = match (&self.data, &self.file) {
            (Some(_), Some(_)) => return Err(Error::invalid("'file' and 'data' are mutually exclusive")),
            (None, None) => return Err(Error::invalid("Either 'file' or 'data' must be provided")),
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(path)) => read(path)?,
        };
        let bytes = match &self.keyid {
            None if self.base64 => decoded(&bytes)?,
            None => bytes,
            Some(keyid) => {
                let key = secrets.get(keyid)?;
                if key.len() != 32 {
                    return Err(Error::invalid("Key should be 32 bytes in length"));
                }
                let iv =
                    self.iv.as_ref().ok_or_else(|| Error::invalid("IV is required to decrypt secret"))?;
                let iv = decoded(iv.as_bytes())?;
                if iv.len() != 16 {
                    return Err(Error::invalid(format!("IV should be 16 bytes in length not {}", iv.len())));
                }
                let hidden = if self.base64 { decoded(&bytes)? } else { bytes };
                unwrap_secret(key, &iv, &hidden)?
            }
        };
        secrets.add(id, bytes)
    }
}

fn from_json(text: &str) -> Result<Vec<(String, Value)>> {
    match parse_json(text)? {
        Value::Object(all) => Ok(all.into_iter().collect()),
        _ => Err(Error::invalid("Invalid JSON object given")),
    }
}

/// The first word may leave out that it is the kind's name. Of a name given twice the last counts.
fn from_words(text: &str) -> Result<Vec<(String, Value)>> {
    let mut all: Vec<(String, Value)> = Vec::new();
    for (index, (name, value)) in parse_option_words(text).into_iter().enumerate() {
        let (name, value) = match value {
            Some(value) => (name, value),
            None if index == 0 => (KIND.to_owned(), name),
            None => return Err(Error::invalid(format!("Expected '=' after parameter '{name}'"))),
        };
        let fragment = |part: &str| {
            is_identifier(part) || (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        };
        if !name.split('.').all(fragment) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Error::invalid(format!("Invalid parameter '{name}'")));
        }
        all.retain(|(given, _)| *given != name);
        all.push((name, Value::String(value)));
    }
    Ok(all)
}

/// Letters, digits, `-`, `.` and `_`, a letter first.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

fn read(path: &str) -> Result<Vec<u8>> {
    let failed = |doing: &str, error: std::io::Error| {
        let error = Error::io("", error);
        let why = error.os_error().unwrap_or_default();
        Error::new(error.kind(), format!("Unable to read {path}: {doing} file “{path}”: {why}"))
    };
    let mut file = File::open(path).map_err(|error| failed("Failed to open", error))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| failed("Error reading", error))?;
    Ok(bytes)
}

/// Lines may be broken, and what is no whole group of four at the end counts for nothing.
fn decoded(text: &[u8]) -> Result<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(byte);
    let wrong = || Error::new(ErrorKind::Invalid, "Base64 data contains invalid characters");
    if !text.iter().all(known) {
        return Err(wrong());
    }
    let mut digits: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'\n').collect();
    digits.truncate(digits.len() / 4 * 4);
    GeneralPurpose::new(&STANDARD, LENIENT).decode(digits).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(texts: &[&str]) -> Result<Secrets> {
        let mut secrets = Secrets::default();
        for text in texts {
            SecretObject::parse(text)?.add_to(&mut secrets)?;
        }
        Ok(secrets)
    }

    #[test]
    fn secrets_are_text_or_base64_or_json() {
        let found = secrets(&[
            "secret,id=a,data=x,,y",
            "secret,id=b,format=base64,data=aGk=",
            "{'qom-type':'secret','id':'c','data':'z'}",
            "id=d,data=w,qom-type=secret",
        ])
        .unwrap();
        let of = |id: &str| found.get(id).unwrap().to_vec();
        assert_eq!(["a", "b", "c", "d"].map(of), [&b"x,y"[..], b"hi", b"z", b"w"].map(<[u8]>::to_vec));
        assert!(!format!("{:?}", SecretObject::parse("secret,id=a,data=hush").unwrap()).contains("hush"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (texts, said) in [
            (&["throttle-group,id=t"][..], "throttle-group"),
            (&["secret,data=x"], "Parameter 'id' is missing"),
            (&["secret,id=a"], "Either 'file' or 'data' must be provided"),
            (&["secret,id=a,data=x,file=y"], "mutually exclusive"),
            (&["secret,id=a,data=x,keyid=b"], "No secret with id 'b'"),
            (&["id=a,data=x"], "Parameter 'qom-type' is missing"),
            (&["secret,id=a,data=x", "secret,id=a,data=y"], "duplicate property 'a'"),
            (&["secret,id=b,format=base64,data=??"], "Base64 data"),
            (&["secret,id=b,file=/nowhere/at/all"], "No such file"),
            (&["secret,id=b,data"], "Expected '=' after parameter 'data'"),
            (&["secret,id=b,data=x,foo=y"], "Parameter 'foo' is unexpected"),
            (&["secret,id=b,data.x=y"], "Parameters 'data.*' are unexpected"),
        ] {
            let error = secrets(texts).unwrap_err().to_string();
            assert!(error.contains(said), "{texts:?}: {error}");
        }
    }
}
