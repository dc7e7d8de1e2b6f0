//! `-r`: where the disks of an archive go, as the lines of a file or a pipe say, in the words of Proxmox's tool.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use cowhand_core::{Cache, Error, Progress, Result};

use crate::stream::pipe::aside;

/// The longest line, in bytes.
const LONGEST: u64 = 64 << 10;
/// More lines than an archive can have disks.
const MOST: usize = 4096;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapLine {
    /// `skip=DEVNAME`: the disk is left out.
    Skip(String),
    /// `[format=F:][throttling.bps=N:][throttling.group=G:][cache=M:]{0|1}:DEVNAME=TARGET`
    Into(MapTarget),
}

/// Where a disk goes: an image or a device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapTarget {
    /// The disk's name.
    pub disk: String,
    /// Where it goes.
    pub target: PathBuf,
    /// The target's format.
    pub format: String,
    /// What writes and syncs of the target promise.
    pub cache: Cache,
    /// The target does not read zero, so zeros are written (`1`).
    pub zeros: bool,
    /// Write at most so many bytes a second.
    pub bps: Option<u64>,
    /// Targets of one group keep to the limit together.
    pub group: Option<String>,
}

impl MapLine {
    /// What `line` says, without its end. Errors: it says nothing that is known here.
    pub fn parse(line: &str) -> Result<MapLine> {
        let unfit = |why: &str| Error::invalid(format!("the map's line '{line}' {why}"));
        // What is wrong, and how Proxmox's tool says it.
        let wrong =
            |why: &str, known_as: String| unfit(why).known_as(format!("read map failed - {known_as}"));
        if let Some(rest) = line.strip_prefix("skip") {
            return match rest.strip_prefix('=') {
                Some(name) if !name.is_empty() => Ok(MapLine::Skip(name.to_owned())),
                _ => Err(wrong("names no disk", format!("option 'skip' has no value ('{line}')"))),
            };
        }
        let [mut format, mut bps, mut group, mut cache] = [const { None::<String> }; 4];
        let mut rest = line;
        while let Some((name, _)) = rest.split_once('=') {
            let place = match name {
                "format" => &mut format,
                "throttling.bps" => &mut bps,
                "throttling.group" => &mut group,
                "cache" => &mut cache,
                _ => break,
            };
            let after = rest.get(name.len() + 1..).unwrap_or_default();
            let Some((value, after)) = after.split_once(':') else {
                let known_as = format!("option '{name}' not terminated ('{line}')");
                return Err(wrong(&format!("has no ':' behind {name}"), known_as));
            };
            if place.replace(value.to_owned()).is_some() {
                let known_as = format!("duplicate value for option '{name}'");
                return Err(wrong(&format!("has {name} twice"), known_as));
            }
            rest = after;
        }
        let (zeros, rest) = match rest.split_once(':') {
            Some(("0", rest)) => (false, rest),
            Some(("1", rest)) => (true, rest),
            _ => {
                let known_as = format!("parse error ('{line}')");
                return Err(wrong("says neither 0: nor 1: in front of the disk's name", known_as));
            }
        };
        let Some((disk, target)) =
            rest.split_once('=').filter(|(disk, to)| !disk.is_empty() && !to.is_empty())
        else {
            return Err(wrong("does not say DISK=TARGET", format!("no dev name specified ('{line}')")));
        };
        let cache = match cache {
            None => Cache::default(),
            Some(name) => Cache::by_name(&name).ok_or_else(|| {
                unfit("has a cache mode that is not known")
                    .known_as(format!("invalid cache option: {name}\n"))
            })?,
        };
        let bps = match bps {
            None => None,
            Some(text) => {
                let known_as = || format!("not a number: {text}");
                let number = number(&text).ok_or_else(|| wrong("limits to what is no number", known_as()))?;
                Some(number).filter(|limit| *limit > 0)
            }
        };
        Ok(MapLine::Into(MapTarget {
            disk: disk.to_owned(),
            target: PathBuf::from(target),
            format: format.unwrap_or_else(|| "raw".to_owned()),
            cache,
            zeros,
            bps,
            group,
        }))
    }

    /// The disk it is about.
    pub fn disk(&self) -> &str {
        match self {
            MapLine::Skip(disk) => disk,
            MapLine::Into(target) => &target.disk,
        }
    }
}

/// Decimal, or hexadecimal with `0x` in front.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The lines of the file or named pipe `path`, to its end, an empty line, or `done`. Waits for them; `progress` is asked
/// meanwhile whether to go on.
pub(super) fn read(path: &Path, progress: &dyn Progress) -> Result<Vec<MapLine>> {
    let file = path.to_owned();
    // Where nobody ever writes to the pipe, opening it waits, too.
    let texts = aside(progress, move || File::open(&file).map_err(failed).and_then(texts))?;
    let texts = texts.map_err(|error| error.image(path.display()))?;
    texts.iter().map(|text| MapLine::parse(text).map_err(|error| error.image(path.display()))).collect()
}

fn failed(error: std::io::Error) -> Error {
    Error::io("cannot read the map", error)
}

fn texts(from: impl Read) -> Result<Vec<String>> {
    let mut from = BufReader::new(from);
    let mut texts = Vec::new();
    loop {
        let mut line = Vec::new();
        from.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(failed)?;
        if line.len() as u64 == LONGEST || texts.len() == MOST {
            return Err(Error::invalid("the map is longer than any that makes sense"));
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        match std::str::from_utf8(text) {
            Ok("" | "done") => return Ok(texts),
            Ok(text) => texts.push(text.to_owned()),
            Err(_) => return Err(Error::invalid("the map is no text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::Quiet;

    #[test]
    fn lines_say_what_proxmox_s_tool_takes_them_to_say() {
        let plain = MapTarget {
            disk: "drive-scsi0".to_owned(),
            target: "/dev/pve/vm-1=0:x".into(),
            format: "raw".to_owned(),
            cache: Cache::Writeback,
            zeros: false,
            bps: None,
            group: None,
        };
        let line = MapLine::parse("0:drive-scsi0=/dev/pve/vm-1=0:x").unwrap();
        assert_eq!(line, MapLine::Into(plain.clone()));
        for line in [
            "format=qcow2:throttling.bps=1048576:throttling.group=local:cache=unsafe:1:drive-scsi0=/dev/pve/vm-1=0:x",
            "cache=unsafe:throttling.group=local:format=qcow2:throttling.bps=0x100000:1:drive-scsi0=/dev/pve/vm-1=0:x",
        ] {
            let all = MapTarget {
                format: "qcow2".to_owned(),
                cache: Cache::Unsafe,
                zeros: true,
                bps: Some(1 << 20),
                group: Some("local".to_owned()),
                ..plain.clone()
            };
            assert_eq!(MapLine::parse(line).unwrap(), MapLine::Into(all));
        }
        assert_eq!(MapLine::parse("skip=drive-a").unwrap(), MapLine::Skip("drive-a".to_owned()));
        for line in [
            "drive-scsi0=/dev/x",
            "2:drive-scsi0=/dev/x",
            "0:drive-scsi0",
            "0:=/dev/x",
            "0:a=",
            "skip=",
            "format=raw:format=raw:0:a=b",
            "format=raw",
            "cache=none",
            "cache=fast:0:a=b",
            "throttling.bps=many:0:a=b",
            "throttling.bps=-1:0:a=b",
            "colour=red:0:a=b",
        ] {
            let error = MapLine::parse(line).unwrap_err();
            assert!(error.to_string().contains(line), "{error}");
        }
    }

    #[test]
    fn the_map_ends_at_its_end_or_where_it_says_so() {
        let read = |text: &str| texts(text.as_bytes()).map_err(|error| error.to_string());
        for text in ["0:a=b\nskip=c\n", "0:a=b\nskip=c", "0:a=b\nskip=c\n\nx\n", "0:a=b\nskip=c\ndone\nx"] {
            assert_eq!(read(text).unwrap(), ["0:a=b", "skip=c"], "{text:?}");
        }
        assert!(read(&"x".repeat(100_000)).is_err());
        assert!(read(&"0:a=b\n".repeat(5000)).is_err());
        assert!(texts(&b"\xff\n"[..]).is_err());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        std::fs::write(&path, "0:a=b\n").unwrap();
        assert_eq!(super::read(&path, &Quiet).unwrap().len(), 1);
    }
}
