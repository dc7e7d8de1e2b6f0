//! The name that is printed of what a description describes.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::{Node, Under, without_protocol};
use crate::open::Open;
use crate::registry::{self, DEVICE, FILE};

/// The name that QEMU has for an image of `format` that was opened so.
pub fn image_name(path: &Path, how: &Open, format: &str) -> String {
    how.node.as_ref().map_or_else(|| without_protocol(path).display().to_string(), |node| node.name(format))
}

/// The name that QEMU has for what an image stands in that was opened so.
pub fn file_name(path: &Path, how: &Open) -> String {
    match how.node.as_ref().map(|node| &node.under) {
        Some(Under::File(child)) => child.name("raw"),
        Some(Under::Path(path)) => without_protocol(path).display().to_string(),
        None => without_protocol(path).display().to_string(),
    }
}

/// The order in which QEMU prints options.
const ORDER: &[&str] = &[
    "force_size_calc",
    "offset",
    "data-file",
    "header",
    "backing",
    "encrypt.key-secret",
    "driver",
    "filename",
    "size",
    "file",
    "key-secret",
];

impl Node {
    /// As QEMU calls it: the file's name, where opening that would find the same, else `json:{...}`. `format` is that of
    /// the top, where the description leaves it to the content.
    fn name(&self, format: &str) -> String {
        self.plain_name(format).unwrap_or_else(|| format!("json:{}", self.to_json(format)))
    }

    fn plain_name(&self, format: &str) -> Option<String> {
        match &self.under {
            Under::Path(path) => Some(without_protocol(path).display().to_string()),
            Under::File(child) => match &child.under {
                Under::Path(path) if self.strong(format).is_empty() => {
                    Some(without_protocol(path).display().to_string())
                }
                _ => None,
            },
        }
    }

    /// The options without which it would be another disk.
    fn strong(&self, format: &str) -> Vec<(&str, &Value)> {
        let driver = self.driver.as_deref().unwrap_or(format);
        let names = registry::format(driver).map(|format| format.defining_options()).unwrap_or_default();
        self.own.iter().filter(|(name, _)| names.contains(name)).collect()
    }

    fn to_json(&self, format: &str) -> String {
        let driver = self.driver.as_deref().unwrap_or(format);
        let mut members: Vec<(&str, String)> =
            self.strong(format).into_iter().map(|(name, value)| (name, text(value))).collect();
        match &self.under {
            Under::Path(path) => {
                let device = crate::resolve::is_device(path);
                let driver = self.driver.as_deref().unwrap_or(if device { DEVICE } else { FILE });
                members.push(("driver", text(&driver.into())));
                members.push(("filename", text(&path.to_string_lossy().into())));
            }
            Under::File(child) => {
                members.push(("driver", text(&driver.into())));
                members.push(("file", child.to_json("raw")));
            }
        }
        members.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name));
        let all: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", all.join(", "))
    }
}

/// JSON in ASCII alone.
fn text(value: &Value) -> String {
    let mut all = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            all.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(all, "\\u{unit:04X}");
            }
        }
    }
    all
}
