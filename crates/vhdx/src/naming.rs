//! What a differencing disk is made to say of its parent: its linkage, and the paths by which it is looked for.

use std::path::Path;

use cowhand_core::{Error, ParentRef, Result};

use crate::guid::Guid;
use crate::locator::{ABSOLUTE, LINKAGE, LINKAGE2, Locator, RELATIVE, braced};

/// The locator of a child of `parent`. Keys of the `present` one that the format does not know stay; a volume's path,
/// which only Windows can tell, does not, for it would be the old parent's.
///
/// Errors: a parent that is no VHDX, or of which nothing is known; names of which none is Unicode that Windows' way to
/// write paths can say, or none at all.
pub(crate) fn locator(parent: &ParentRef, present: Option<&Locator>) -> Result<Locator> {
    let shown = parent.candidates.first().map(|path| path.display().to_string()).unwrap_or_default();
    if let Some(format) = parent.format.as_deref().filter(|format| *format != "vhdx") {
        return Err(Error::unsupported(format!(
            "a VHDX stands on a VHDX alone: its locator could not name '{shown}', which is {format}"
        ))
        .hint(
            "choose qcow2 for the child, which names parents of any format, or convert the parent to VHDX",
        ));
    }
    let Some(id) = parent.expected.first() else {
        return Err(Error::invalid(format!("the identity of the parent '{shown}' is not known")).hint(
            "a VHDX knows its parent by the DataWriteGuid alone, so the parent must be there, and be looked at",
        ));
    };
    let paths = &parent.candidates;
    let named = paths.first().filter(|path| path.file_name().is_some());
    let named = named.ok_or_else(|| Error::invalid("the parent's name is empty, or names no file"))?;
    // One way to say it is enough.
    let first = |absolute: bool| {
        let mut texts = paths.iter().filter(|path| path.is_absolute() == absolute).map(|path| path.to_str());
        texts.find_map(|text| text.filter(|text| !text.contains('\\')))
    };
    // A path from this system's root is to Windows one from the root of the current drive: it is looked for there, and
    // what is found has the wrong linkage.
    let absolute = first(true).map(windows);
    let relative = first(false).map(|text| windows(&dotted(text)));
    if absolute.is_none() && relative.is_none() {
        if paths.iter().all(|path| path.to_str().is_none()) {
            return Err(not_unicode(named));
        }
        return Err(Error::invalid(format!("Windows' way to write paths cannot say '{shown}'"))
            .hint("rename it: a '\\' stands between folders there"));
    }
    let (linkage, none) = (braced(Guid::from_raw(*id)), braced(Guid::ZERO));
    let mut known = vec![(LINKAGE, linkage.as_str())];
    known.extend(absolute.as_deref().map(|path| (ABSOLUTE, path)));
    known.extend(relative.as_deref().map(|path| (RELATIVE, path)));
    // As Windows has it where no merge has begun.
    known.push((LINKAGE2, none.as_str()));
    match present {
        Some(present) => present.with_known(&known),
        None => Locator::of(&known),
    }
}

fn windows(path: &str) -> String {
    path.replace('/', "\\")
}

/// Windows begins relative paths with a dot.
fn dotted(relative: &str) -> String {
    if relative.starts_with("../") || relative.starts_with("./") {
        relative.to_owned()
    } else {
        format!("./{relative}")
    }
}

fn not_unicode(path: &Path) -> Error {
    Error::invalid(format!(
        "the parent's path '{}' is not Unicode, and a VHDX writes paths in UTF-16",
        path.display()
    ))
    .hint("rename it")
}

#[cfg(test)]
mod tests {
    use cowhand_core::ErrorKind;

    use super::*;

    fn parent(paths: &[&str]) -> ParentRef {
        ParentRef {
            candidates: paths.iter().map(Into::into).collect(),
            format: Some("vhdx".to_owned()),
            expected: vec![[7; 16]],
            ..ParentRef::default()
        }
    }

    fn back(locator: &Locator) -> Locator {
        Locator::parse(&locator.to_bytes().unwrap()).unwrap()
    }

    fn entries(locator: &Locator) -> Vec<(String, String)> {
        back(locator).entries().collect()
    }

    const SEVENS: &str = "{07070707-0707-0707-0707-070707070707}";
    const ZEROS: &str = "{00000000-0000-0000-0000-000000000000}";

    #[test]
    fn a_name_reads_back_as_it_was_given() {
        for (given, expected) in [
            (vec!["base.vhdx", "/srv/d\u{e4}/base.vhdx"], vec!["base.vhdx", "/srv/d\u{e4}/base.vhdx"]),
            (vec!["./base.vhdx"], vec!["base.vhdx"]),
            (
                vec!["/up/\u{1f40e}.vhdx", "../up/\u{1f40e}.vhdx"],
                vec!["../up/\u{1f40e}.vhdx", "/up/\u{1f40e}.vhdx"],
            ),
            (vec!["/srv/base.vhdx"], vec!["/srv/base.vhdx"]),
            // One way to say it is enough.
            (vec!["base.vhdx", "/a\\b/base.vhdx"], vec!["base.vhdx"]),
        ] {
            let read = back(&locator(&parent(&given), None).unwrap()).parent();
            assert_eq!(read.candidates, expected.iter().map(std::path::PathBuf::from).collect::<Vec<_>>());
            assert_eq!((read.format.as_deref(), read.expected), (Some("vhdx"), vec![[7; 16]]));
        }
    }

    #[test]
    fn windows_finds_what_it_writes_itself() {
        let said = entries(&locator(&parent(&["d/base.vhdx", "/srv/d/base.vhdx"]), None).unwrap());
        let expected = [
            ("parent_linkage", SEVENS),
            ("absolute_win32_path", r"\srv\d\base.vhdx"),
            ("relative_path", r".\d\base.vhdx"),
            ("parent_linkage2", ZEROS),
        ];
        assert_eq!(said, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn another_name_leaves_what_is_not_known_and_nothing_else() {
        let old = Locator::of(&[
            ("volume_path", r"\\?\Volume{1}\old.vhdx"),
            ("parent_linkage2", "{83ED0EC3-24C8-49A6-A959-5E4BD1288BBB}"),
            ("note", "kept\0"),
            ("parent_linkage", SEVENS),
            ("absolute_win32_path", r"C:\old.vhdx"),
        ]);
        let new = locator(&parent(&["new.vhdx"]), Some(&old.unwrap())).unwrap();
        let said = entries(&new);
        let keys: Vec<_> = said.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["parent_linkage", "relative_path", "parent_linkage2", "note"]);
        assert_eq!((said[2].1.as_str(), said[3].1.as_str()), (ZEROS, "kept"));
        assert!(new.to_bytes().unwrap().ends_with(b"k\0e\0p\0t\0\0\0"), "to the unit");
        assert_eq!(new.parent().expected, [[7; 16]]);
        let expecting = back(&new.expecting(Guid::from_raw([8; 16])));
        assert_eq!(expecting.parent().expected, [[7; 16], [8; 16]]);
        let bare = Locator::of(&[("parent_linkage", SEVENS)]).unwrap().expecting(Guid::from_raw([9; 16]));
        assert_eq!(back(&bare).parent().expected, [[7; 16], [9; 16]]);
    }

    #[test]
    fn parents_that_cannot_be_named() {
        let says = |parent: &ParentRef| locator(parent, None).unwrap_err();
        let qcow2 = says(&ParentRef { format: Some("qcow2".to_owned()), ..parent(&["base"]) });
        assert_eq!(qcow2.kind(), ErrorKind::Unsupported);
        assert!(qcow2.to_string().contains("its locator could not name 'base', which is qcow2"), "{qcow2}");
        let unknown = says(&ParentRef { expected: Vec::new(), ..parent(&["base"]) });
        assert!(unknown.to_string().contains("identity of the parent 'base' is not known"));
        for path in ["", "..", "/"] {
            assert!(says(&parent(&[path])).to_string().contains("names no file"), "{path}");
        }
        assert!(says(&parent(&[])).to_string().contains("names no file"));
        assert!(says(&parent(&["a\\b.vhdx"])).to_string().contains("cannot say"));
        use std::os::unix::ffi::OsStrExt;
        let bytes = std::ffi::OsStr::from_bytes(b"b\xff.vhdx");
        let not_text = ParentRef { candidates: vec![bytes.into()], ..parent(&[]) };
        assert!(says(&not_text).to_string().contains("not Unicode"));
        // The folder has such a name, and its files know each other without it.
        let bytes = std::ffi::OsStr::from_bytes(b"/d\xff/b.vhdx");
        let folder = ParentRef { candidates: vec!["b.vhdx".into(), bytes.into()], ..parent(&[]) };
        let said = back(&locator(&folder, None).unwrap()).parent().candidates;
        assert_eq!(said, [std::path::PathBuf::from("b.vhdx")]);
        let long = format!("{}/b", "d".repeat(40_000));
        let long = locator(&parent(&[&long]), None).unwrap().to_bytes().unwrap_err();
        assert!(long.to_string().contains("longer than a parent locator can say"), "{long}");
    }
}
