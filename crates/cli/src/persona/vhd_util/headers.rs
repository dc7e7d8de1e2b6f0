//! An image's structures as `vhd-util read -p` lists them.

use std::path::Path;

use cowhand::{Open, Printable, Result, Structure, open_alone};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value};

use super::look;
use crate::output::Output;

/// The structures of an image, damaged or not.
pub(super) fn structures(path: &Path) -> Result<Vec<Structure>> {
    let how = Open { ignore_checksums: true, ..look() };
    open_alone(path, &how)?.top().layer.structures()
}

/// How numbers are printed.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub(super) hex: bool,
}

impl Base {
    pub(super) fn of(self, number: u64) -> String {
        match (self.hex, number) {
            (true, 1..) => format!("{number:#x}"),
            _ => number.to_string(),
        }
    }
}

/// One structure's fields.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn number(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// Text, as it may be shown.
    fn shown(&self, name: &str) -> Printable<'_> {
        Printable(self.text(name))
    }

    /// `IS|SHOULD (Good!)`.
    fn checksum(&self) -> String {
        let (is, should) = (self.number("checksum"), self.number("checksum-computed"));
        format!("{is:#x}|{should:#x} ({})", if is == should { "Good!" } else { "Bad!" })
    }

    fn time(&self, name: &str) -> String {
        local_time(self.number(name))
    }
}

/// A moment as C's `ctime` has it.
fn local_time(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    at.unwrap_or_default().to_zoned(TimeZone::system()).strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// Prints all of them.
pub(super) fn print(out: &mut Output, all: &[Structure], base: Base) -> Result<()> {
    let has_parent = all.iter().any(|structure| {
        structure.name == "footer" && Fields(&structure.fields).number("disk-type") == DIFFERENCING
    });
    for Structure { name, fields } in all {
        let fields = Fields(fields);
        match *name {
            "footer" => footer(out, &fields, base)?,
            "header" => {
                header(out, &fields, base)?;
                if has_parent {
                    heading(out, "VHD Parent Locators:", "--------------------")?;
                }
            }
            "locator" if has_parent => {
                locator(out, &fields, base)?;
            }
            "batmap" => batmap(out, &fields, base)?,
            _ => {}
        }
    }
    Ok(())
}

const DIFFERENCING: u64 = 4;
const KINDS: [&str; 7] = [
    "None",
    "Reserved (deprecated)",
    "Fixed hard disk",
    "Dynamic hard disk",
    "Differencing hard disk",
    "Reserved (deprecated)",
    "Reserved (deprecated)",
];

fn heading(out: &mut Output, text: &str, line: &str) -> Result<()> {
    writeln!(out, "{text}\n{line}")
}

/// A name, padded to the column where values begin.
fn line(out: &mut Output, name: &str, value: impl std::fmt::Display) -> Result<()> {
    writeln!(out, "{name:<20}: {value}")
}

fn footer(out: &mut Output, fields: &Fields<'_>, base: Base) -> Result<()> {
    let size = |name: &str| {
        let bytes = fields.number(name);
        format!("{} MB ({} Bytes)", base.of(bytes >> 20), base.of(bytes))
    };
    heading(out, "VHD Footer Summary:", "-------------------")?;
    line(out, "Cookie", fields.shown("cookie"))?;
    let features = fields.number("features");
    let (temporary, reserved) = (features & 1 != 0, features & 2 != 0);
    let marks = [(temporary, "<TEMP>"), (reserved, "<RESV>")];
    let marks: String = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
    line(out, "Features", format!("({features:#010x}) {marks}"))?;
    let version = |name: &str| {
        let version = fields.number(name);
        format!("Major: {}, Minor: {}", version >> 16, version & 0xffff)
    };
    line(out, "File format version", version("version"))?;
    line(out, "Data offset", base.of(fields.number("data-offset")))?;
    line(out, "Timestamp", fields.time("timestamp"))?;
    line(out, "Creator Application", format!("'{}'", fields.shown("creator")))?;
    line(out, "Creator version", version("creator-version"))?;
    let system = match fields.text("creator-host-os") {
        "Wi2k" => "Windows",
        "Mac " => "Macintosh",
        _ => "Unknown!",
    };
    line(out, "Creator OS", system)?;
    line(out, "Original disk size", size("original-size"))?;
    line(out, "Current disk size", size("current-size"))?;
    let [cylinders, heads, sectors] =
        ["cylinders", "heads", "sectors-per-track"].map(|name| fields.number(name));
    let shown = format!("Cyl: {}, Hds: {}, Sctrs: {}", base.of(cylinders), base.of(heads), base.of(sectors));
    line(out, "Geometry", shown)?;
    let sectors = cylinders * heads * sectors;
    line(out, "", format!("= {} MB ({} Bytes)", base.of(sectors >> 11), base.of(sectors << 9)))?;
    let kind = usize::try_from(fields.number("disk-type")).ok().and_then(|kind| KINDS.get(kind));
    line(out, "Disk type", kind.unwrap_or(&"Unknown type!"))?;
    line(out, "Checksum", fields.checksum())?;
    line(out, "UUID", fields.shown("uuid"))?;
    line(out, "Saved state", if fields.number("saved-state") == 0 { "No" } else { "Yes" })?;
    line(out, "Hidden", fields.number("hidden"))?;
    writeln!(out)
}

fn header(out: &mut Output, fields: &Fields<'_>, base: Base) -> Result<()> {
    heading(out, "VHD Header Summary:", "-------------------")?;
    line(out, "Cookie", fields.shown("cookie"))?;
    line(out, "Data offset (unusd)", base.of(fields.number("data-offset")))?;
    line(out, "Table offset", base.of(fields.number("table-offset")))?;
    line(out, "Header version", format!("{:#010x}", fields.number("version")))?;
    line(out, "Max BAT size", base.of(fields.number("max-table-entries")))?;
    let block = fields.number("block-size");
    line(out, "Block size", format!("{} ({} MB)", base.of(block), base.of(block >> 20)))?;
    line(out, "Parent name", fields.shown("parent-name"))?;
    line(out, "Parent UUID", fields.shown("parent-uuid"))?;
    line(out, "Parent timestamp", fields.time("parent-timestamp"))?;
    line(out, "Checksum", fields.checksum())?;
    writeln!(out)
}

fn locator(out: &mut Output, fields: &Fields<'_>, base: Base) -> Result<()> {
    let code = match fields.text("code") {
        "Wi2r" => "PLAT_CODE_WI2R",
        "Wi2k" => "PLAT_CODE_WI2K",
        "W2ru" => "PLAT_CODE_W2RU",
        "W2ku" => "PLAT_CODE_W2KU",
        "Mac " => "PLAT_CODE_MAC",
        "MacX" => "PLAT_CODE_MACX",
        _ => "UNKOWN",
    };
    line(out, "locator:", fields.number("index"))?;
    line(out, "       code", code)?;
    line(out, "       data_space", base.of(fields.number("data-space")))?;
    line(out, "       data_length", base.of(fields.number("data-length")))?;
    line(out, "       data_offset", base.of(fields.number("data-offset")))?;
    match fields.0.get("name").and_then(Value::as_str) {
        Some(name) => line(out, "       decoded name", Printable(name))?,
        None => writeln!(out, "failed to read parent name")?,
    }
    writeln!(out)
}

fn batmap(out: &mut Output, fields: &Fields<'_>, base: Base) -> Result<()> {
    heading(out, "VHD Batmap Summary:", "-------------------")?;
    line(out, "Batmap offset", base.of(fields.number("offset")))?;
    line(out, "Batmap size (secs)", base.of(fields.number("size")))?;
    line(out, "Batmap version", format!("{:#010x}", fields.number("version")))?;
    line(out, "Checksum", fields.checksum())?;
    writeln!(out)
}
