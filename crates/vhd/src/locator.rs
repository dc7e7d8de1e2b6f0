//! Parent locators: every way in which a differencing disk says where its parent lies, as paths to try in order.

use std::path::PathBuf;

use cowhand_core::{Error, ParentRef, Result, Storage};

use crate::footer::moment;
use crate::header::Header;
use crate::naming;

/// The longest path that Windows knows, in UTF-16: no locator is longer.
const MAX_DATA: u32 = 65536;

/// A locator that could be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Locator {
    /// Where its text stands in the file.
    pub(crate) at: u64,
    /// The platform code: `W2ru`, `W2ku`, `MacX`, `Wi2r` or `Wi2k`.
    pub(crate) code: [u8; 4],
    /// The text as it stands in the file.
    pub(crate) text: String,
    /// It stands there in UTF-16; otherwise in bytes.
    pub(crate) wide: bool,
}

/// Reads the locators that hold text (a `Mac ` alias does not). Errors: one that lies outside the file, or is longer
/// than any path.
pub(crate) fn read(file: &dyn Storage, header: &Header, file_len: u64) -> Result<Vec<Locator>> {
    let mut locators = Vec::new();
    for (index, raw) in header.locators.iter().enumerate() {
        let len = raw.data_length.get();
        if !matches!(&raw.code, b"W2ru" | b"W2ku" | b"MacX" | b"Wi2r" | b"Wi2k") || len == 0 {
            continue;
        }
        let entry_at = header.at + 576 + 24 * index as u64;
        let wrong =
            |what: String| Err(Error::corrupt(format!("parent locator {}", index + 1), what).at(entry_at));
        let at = raw.data_offset.get();
        if len > MAX_DATA {
            return wrong(format!("is {len} bytes long; no path is longer than {MAX_DATA}"));
        }
        if at.checked_add(u64::from(len)).is_none_or(|end| end > file_len) {
            return wrong(format!("has its {len} bytes at {at}, past the file's end at {file_len}"));
        }
        let mut data = vec![0; len as usize];
        file.read_at(at, &mut data)
            .map_err(|error| Error::io("cannot read a parent locator", error).at(at))?;
        locators.push(Locator::decode(raw.code, at, &data));
    }
    Ok(locators)
}

impl Locator {
    fn decode(code: [u8; 4], at: u64, data: &[u8]) -> Locator {
        let wide = match &code {
            b"W2ru" | b"W2ku" => true,
            // The deprecated codes do not say their encoding: UTF-16 of a path has a zero in its second byte.
            b"Wi2r" | b"Wi2k" => data.get(1) == Some(&0),
            _ => false,
        };
        let text = if wide {
            utf16(data, u16::from_le_bytes)
        } else {
            let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
            String::from_utf8_lossy(data.get(..end).unwrap_or(data)).into_owned()
        };
        Locator { at, code, text, wide }
    }
}

/// UTF-16 up to a zero or the end; `order` says which byte is first.
fn utf16(data: &[u8], order: fn([u8; 2]) -> u16) -> String {
    let units = data.as_chunks::<2>().0.iter().map(|unit| order(*unit)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The parent's name in the header.
pub(crate) fn parent_name(header: &Header) -> String {
    utf16(&header.parent_name, u16::from_be_bytes)
}

/// What a differencing disk says of its parent.
pub(crate) fn parent_ref(header: &Header, locators: &[Locator]) -> ParentRef {
    let mut candidates = Vec::new();
    let mut add = |path: String| {
        // `.\` is how Windows and XenServer begin every relative path.
        let path = PathBuf::from(path.strip_prefix("./").unwrap_or(&path));
        if !path.as_os_str().is_empty() && !candidates.contains(&path) {
            candidates.push(path);
        }
    };
    let texts =
        |code: &'static [u8; 4]| locators.iter().filter(move |l| l.code == *code).map(|l| l.text.as_str());
    let urls = || texts(b"MacX").flat_map(url_paths);
    texts(b"W2ru").chain(texts(b"Wi2r")).for_each(|text| add(windows_path(text)));
    urls().filter(|path| !path.starts_with('/')).for_each(&mut add);
    texts(b"W2ku").chain(texts(b"Wi2k")).for_each(|text| add(windows_path(text)));
    urls().for_each(&mut add);
    // Windows writes the whole path as the parent's name: its last part lies beside the child.
    let name = windows_path(&parent_name(header));
    add(name.rsplit('/').next().unwrap_or_default().to_owned());
    // XenServer's blktap marks a raw parent, which has no id, by an id of zeros. That is no word on the format, so it
    // is not taken for one: a parent that looks like something else is nobody's to guess.
    let has_id = header.parent_unique_id != [0; 16];
    ParentRef {
        candidates,
        format: naming::note(&header.tail).or_else(|| has_id.then(|| "vpc".to_owned())),
        any_case: true,
        kept_current: false,
        expected: has_id.then_some(header.parent_unique_id).into_iter().collect(),
        modified: Some(header.parent_timestamp).filter(|time| *time != 0).map(moment),
        ..ParentRef::default()
    }
}

/// `\` to `/`, without the prefix that lifts Windows' limit on a path's length.
fn windows_path(text: &str) -> String {
    let path = text.replace('\\', "/");
    path.strip_prefix("//?/").map(str::to_owned).unwrap_or(path)
}

/// The paths that a file URL may mean: as it stands, which is how XenServer writes it, and with `%20` and the like
/// decoded.
fn url_paths(url: &str) -> impl Iterator<Item = String> {
    let path = url.strip_prefix("file://localhost/").map(|path| format!("/{path}"));
    let path = path.unwrap_or_else(|| url.strip_prefix("file://").unwrap_or(url).to_owned());
    let decoded = percent_decoded(&path);
    let other = (decoded != path).then_some(decoded);
    [path].into_iter().chain(other)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.first_chunk::<2>().filter(|_| first == b'%').and_then(|digits| {
            let digits =
                std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(digits, 16).ok()
        });
        let (byte, used) = code.map_or((first, 1), |byte| (byte, 3));
        bytes.push(byte);
        rest = rest.get(used..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locator(code: &[u8; 4], text: &str) -> Locator {
        Locator { at: 0, code: *code, text: text.to_owned(), wide: false }
    }

    fn header(name: &str, id: u8) -> Header {
        let mut header = Header::new(512, 1536, 1, 2 << 20);
        for (to, unit) in header.parent_name.chunks_exact_mut(2).zip(name.encode_utf16()) {
            to.copy_from_slice(&unit.to_be_bytes());
        }
        header.parent_unique_id = [id; 16];
        header
    }

    #[test]
    fn the_order_is_relative_paths_first_and_the_name_beside_the_child_last() {
        let parent = parent_ref(
            &header("C:\\disks\\parent.vhd", 7),
            &[
                locator(b"W2ku", "\\\\?\\C:\\disks\\base.vhd"),
                locator(b"MacX", "file:///Users/a%20b/base.vhd"),
                locator(b"MacX", "file://./x.vhd"),
                locator(b"Wi2k", "D:\\old.vhd"),
                locator(b"W2ru", ".\\sub\\base.vhd"),
                locator(b"Wi2r", "..\\old.vhd"),
            ],
        );
        let expected = [
            "sub/base.vhd",
            "../old.vhd",
            "x.vhd",
            "C:/disks/base.vhd",
            "D:/old.vhd",
            "/Users/a%20b/base.vhd",
            "/Users/a b/base.vhd",
            "parent.vhd",
        ];
        assert_eq!(parent.candidates, expected.map(PathBuf::from));
        assert_eq!((parent.format.as_deref(), parent.expected), (Some("vpc"), vec![[7; 16]]));
    }

    #[test]
    fn a_parent_without_an_id_has_no_stated_format() {
        let parent = parent_ref(&header("base.img", 0), &[]);
        assert_eq!(parent.candidates, [PathBuf::from("base.img")]);
        assert_eq!((parent.format.as_deref(), parent.expected), (None, vec![]));
    }

    #[test]
    fn decodes_each_code() {
        let decode = |code: &[u8; 4], data: &[u8]| Locator::decode(*code, 0, data).text;
        assert_eq!(decode(b"W2ru", b".\0\\\0\xe4\0\0\0x\0"), ".\\\u{e4}");
        assert_eq!(decode(b"W2ku", b"\x00\xd8a\0b"), "\u{fffd}a");
        assert_eq!(decode(b"Wi2r", b"a\0b\0"), "ab");
        assert_eq!(decode(b"Wi2k", b"ab\0c"), "ab");
        assert_eq!(decode(b"MacX", "file://\u{e4}".as_bytes()), "file://\u{e4}");
        assert_eq!(percent_decoded("a%2Fb%zz%4"), "a/b%zz%4");
    }
}
