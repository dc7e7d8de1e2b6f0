//! Secrets on the command line: what opens encrypted images.

use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine};
use clap::Args;
use cowhand::{Error, Result, Secrets, parse_option_string};

/// What opens encrypted images, and what new ones are encrypted with.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Keys {
    /// A secret: secret,id=ID,file=PATH or secret,id=ID,data=TEXT, and format=base64 (repeatable)
    ///
    /// Options like encrypt.key-secret=ID name it; where none is named, each is tried. The file's bytes count as they
    /// stand, a line's end too. What stands on a command line others may see: file= is safer than data=.
    #[arg(long, value_name = "OBJECT", value_parser = Object::parse, hide_possible_values = true)]
    object: Vec<Object>,

    /// The file with the secret of encrypted images: its bytes as they stand, a line's end too
    #[arg(long, value_name = "PATH")]
    key_file: Option<PathBuf>,
}

impl Keys {
    /// All that were given. Errors: a file cannot be read, an id is given twice.
    pub(crate) fn secrets(&self) -> Result<Secrets> {
        let mut secrets = Secrets::default();
        for Object { id, from, base64 } in &self.object {
            let bytes = from.read()?;
            let bytes = if *base64 { decode(id, &bytes)? } else { bytes };
            secrets.add(id, bytes)?;
        }
        if let Some(path) = &self.key_file {
            secrets.add("key-file", From::File(path.clone()).read()?)?;
        }
        Ok(secrets)
    }
}

/// `secret,id=ID,...`.
#[derive(Clone)]
struct Object {
    id: String,
    from: From,
    base64: bool,
}

#[derive(Clone)]
enum From {
    Data(String),
    File(PathBuf),
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "secret {}", self.id)
    }
}

impl Object {
    fn parse(text: &str) -> Result<Object> {
        let (mut kind, mut id, mut from, mut base64) = (None, None, None, false);
        for (index, (name, value)) in parse_option_string(text).into_iter().enumerate() {
            match name.as_str() {
                "qom-type" => kind = Some(value),
                _ if index == 0 && value == "on" => kind = Some(name),
                "id" => id = Some(value),
                "data" if from.is_none() => from = Some(From::Data(value)),
                "file" if from.is_none() => from = Some(From::File(value.into())),
                "data" | "file" => {
                    return Err(Error::invalid("'file' and 'data' are mutually exclusive"));
                }
                "format" if value == "raw" || value == "base64" => base64 = value == "base64",
                "format" => return Err(Error::invalid(format!("Invalid parameter '{value}'"))),
                _ => {
                    return Err(Error::unsupported(format!("a secret's '{name}' is not known here"))
                        .hint("known are id, data, file and format"));
                }
            }
        }
        match kind.as_deref() {
            Some("secret") => {}
            Some(other) => {
                return Err(Error::unsupported(format!("objects of type '{other}' are not known here"))
                    .hint("known are secrets: secret,id=ID,file=PATH"));
            }
            None => return Err(Error::invalid("Parameter 'qom-type' is missing")),
        }
        Ok(Object {
            id: id.ok_or_else(|| Error::invalid("Parameter 'id' is missing"))?,
            from: from.ok_or_else(|| Error::invalid("Must provide 'file' or 'data'"))?,
            base64,
        })
    }
}

impl From {
    fn read(&self) -> Result<Vec<u8>> {
        match self {
            From::Data(text) => Ok(text.clone().into_bytes()),
            From::File(path) => std::fs::read(path)
                .map_err(|error| Error::io("cannot read the secret", error).image(path.display())),
        }
    }
}

fn decode(id: &str, text: &[u8]) -> Result<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64_STANDARD
        .decode(text)
        .map_err(|error| Error::invalid(format!("the secret '{id}' is not valid base64: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_text_or_base64() {
        let keys = |texts: &[&str]| Keys {
            object: texts.iter().map(|text| Object::parse(text).unwrap()).collect(),
            key_file: None,
        };
        let found =
            keys(&["secret,id=a,data=x,,y", "secret,id=b,format=base64,data=aGk="]).secrets().unwrap();
        assert_eq!((found.get("a").unwrap(), found.get("b").unwrap()), (&b"x,y"[..], &b"hi"[..]));
        assert!(keys(&["secret,id=a,data=x", "secret,id=a,data=y"]).secrets().is_err());
        assert!(keys(&["secret,id=b,format=base64,data=??"]).secrets().is_err());
        assert!(keys(&["secret,id=b,file=/nowhere/at/all"]).secrets().is_err());
        assert!(!format!("{:?}", keys(&["secret,id=a,data=hush"])).contains("hush"));
    }

    #[test]
    fn other_objects_are_refused_by_name() {
        for (text, said) in [
            ("throttle-group,id=t", "throttle-group"),
            ("secret,data=x", "'id' is missing"),
            ("secret,id=a", "'file' or 'data'"),
            ("secret,id=a,data=x,file=y", "mutually exclusive"),
            ("secret,id=a,data=x,keyid=b", "keyid"),
            ("id=a,data=x", "qom-type"),
        ] {
            let error = Object::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
