//! `scan` and `chain`: broken images among good ones, links that lead nowhere, and nothing opened that was not meant.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand::{Open, Place, Policy, Tree, chain, scan};
use cowhand_tests::{file_sha256, qemu_img, qemu_io, run, temp};
use serde_json::Value;

fn create(folder: &Path, name: &str, more: &[&str]) {
    let path = folder.join(name);
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    args.extend(more);
    args.insert(
        args.len() - usize::from(more.iter().any(|word| word.ends_with('M'))),
        path.to_str().unwrap(),
    );
    qemu_img(args);
}

fn names(tree: &Tree) -> Value {
    let name = Path::new(&tree.filename).file_name().unwrap().to_str().unwrap();
    let broken = tree.image.is_err();
    let children: Vec<Value> = tree.children.iter().map(names).collect();
    serde_json::json!([if broken { format!("!{name}") } else { name.to_owned() }, children])
}

fn drawn(folder: &Path, of: &[&str], how: &Open) -> Value {
    let paths: Vec<PathBuf> = of.iter().map(|name| folder.join(name)).collect();
    chain(&paths, how).iter().map(names).collect()
}

#[test]
fn a_folder_with_everything() {
    let folder = temp();
    let at = folder.path();
    create(at, "base.qcow2", &["4M"]);
    create(at, "top.qcow2", &["-b", "base.qcow2", "-F", "qcow2"]);
    create(at, "orphan.qcow2", &["-u", "-b", "/nowhere/at all", "-F", "qcow2", "5M"]);
    qemu_img(["create", "-q", "-f", "vhdx", at.join("a.vhdx").to_str().unwrap(), "6M"]);
    std::fs::write(at.join("broken.qcow2"), [&b"QFI\xfb\0\0\0\x03"[..], &[0xff; 200]].concat()).unwrap();
    std::fs::write(at.join("short.vhdx"), b"vhdxfile").unwrap();
    std::fs::write(at.join("notes.txt"), b"not an image").unwrap();
    std::fs::write(at.join(".top.qcow2.partial-1"), b"QFI\xfb\0\0\0\x03").unwrap();
    std::fs::create_dir(at.join("sub")).unwrap();
    create(&at.join("sub"), "deep.qcow2", &["1M"]);
    symlink("base.qcow2", at.join("link.qcow2")).unwrap();
    symlink("gone", at.join("dangling")).unwrap();
    assert!(run(Command::new("mkfifo").arg(at.join("pipe"))).ok());
    let before: Vec<_> = ["base.qcow2", "top.qcow2", "a.vhdx"].map(|name| file_sha256(&at.join(name))).into();

    let found = |place: &Path, all: bool| {
        let mut found = Vec::new();
        let watch = Open { policy: Policy::Any, ..Open::default() };
        scan(&[Place::Path(place.to_owned())], &watch, all, |image| {
            let name = image.path.file_name().unwrap().to_str().unwrap().to_owned();
            found.push((name, image.image.as_ref().map(|info| info.virtual_size).ok()));
            Ok(())
        })
        .unwrap();
        found
    };
    let all = |list: &[(&str, Option<u64>)]| -> Vec<(String, Option<u64>)> {
        list.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
    };
    const M: u64 = 1 << 20;
    let wanted = all(&[
        ("a.vhdx", Some(6 * M)),
        ("base.qcow2", Some(4 * M)),
        ("broken.qcow2", None),
        ("link.qcow2", Some(4 * M)),
        ("orphan.qcow2", Some(5 * M)),
        ("short.vhdx", None),
        ("top.qcow2", Some(4 * M)),
    ]);
    assert_eq!(found(at, false), wanted);
    let everything = found(at, true);
    assert_eq!(everything.len(), wanted.len() + 2, "{everything:?}");
    assert!(everything.contains(&("notes.txt".to_owned(), Some(512))));
    assert_eq!(found(&at.join("*o?.qcow2"), false), all(&[("top.qcow2", Some(4 * M))]), "a pattern");
    assert_eq!(found(&at.join("*.txt"), false).len(), 1, "by a pattern raw images are meant too");
    assert_eq!(found(&at.join("x*"), false), []);
    let error = scan(&[Place::Path(at.join("gone"))], &Open::default(), false, |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");

    let mut json = Vec::new();
    scan(&[Place::Path(at.to_owned())], &Open::default(), false, |image| {
        json.push(image.to_json());
        Ok(())
    })
    .unwrap();
    assert_eq!(json[6]["parent"], "base.qcow2");
    assert_eq!(json[4]["parent"], "/nowhere/at all");
    assert_eq!(json[1]["physical-size"], std::fs::metadata(at.join("base.qcow2")).unwrap().len());
    assert!(json[2]["scan-error"].as_str().unwrap().contains("broken.qcow2"));
    let after: Vec<_> = ["base.qcow2", "top.qcow2", "a.vhdx"].map(|name| file_sha256(&at.join(name))).into();
    assert_eq!(before, after, "reading never writes");
}

#[test]
fn a_volume_group_that_is_not_there() {
    let _folder = temp();
    for name in ["no-such-group", "..", "-x"] {
        let place = Place::VolumeGroup(name.to_owned(), None);
        let error = scan(&[place], &Open::default(), false, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn forests_and_broken_links() {
    let folder = temp();
    let at = folder.path();
    create(at, "base", &["4M"]);
    qemu_io(["-f", "qcow2"], at.join("base"), ["write 0 1M"]);
    create(at, "a", &["-b", "base", "-F", "qcow2"]);
    qemu_io(["-f", "qcow2"], at.join("a"), ["write 0 65k"]);
    create(at, "a1", &["-b", "a", "-F", "qcow2"]);
    create(at, "b", &["-b", "base", "-F", "qcow2"]);
    create(at, "lone", &["-u", "-b", "gone", "-F", "qcow2", "4M"]);
    create(at, "lone2", &["-u", "-b", "gone", "-F", "qcow2", "4M"]);
    create(at, "out", &["-u", "-b", "/etc/hostname", "-F", "raw", "4M"]);
    create(at, "round", &["-u", "-b", "robin", "-F", "qcow2", "4M"]);
    create(at, "robin", &["-u", "-b", "round", "-F", "qcow2", "4M"]);
    std::fs::write(at.join("junk"), [&b"QFI\xfb\0\0\0\x03"[..], &[0xff; 200]].concat()).unwrap();
    create(at, "on-junk", &["-u", "-b", "junk", "-F", "qcow2", "4M"]);
    let how = Open::default();
    let draw = |of: &[&str]| drawn(at, of, &how);
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();

    assert_eq!(draw(&["a1"]), json(r#"[["base", [["a", [["a1", []]]]]]]"#));
    let forest = r#"[["base", [["a", [["a1", []]]], ["b", []]]]]"#;
    assert_eq!(draw(&["a1", "b"]), json(forest));
    assert_eq!(draw(&["base", "a", "a1", "b"]), json(forest));
    assert_eq!(draw(&["lone", "lone2"]), json(r#"[["!gone", [["lone", []], ["lone2", []]]]]"#));
    assert_eq!(draw(&["out"]), json(r#"[["!hostname", [["out", []]]]]"#));
    assert_eq!(draw(&["on-junk"]), json(r#"[["!junk", [["on-junk", []]]]]"#));
    assert_eq!(draw(&["nowhere", "b"]), json(r#"[["!nowhere", []], ["base", [["b", []]]]]"#));
    let round = draw(&["round", "robin"]);
    assert_eq!(round, json(r#"[["!round", [["robin", [["round", []]]]]]]"#));

    let tree = &chain(&[at.join("a1")], &how)[0];
    assert!(tree.is_whole());
    let said = tree.to_json();
    assert_eq!(said["allocated"], 1 << 20);
    assert_eq!(said["children"][0]["allocated"], 128 << 10);
    assert_eq!(said["children"][0]["children"][0]["allocated"], 0);
    assert!(!chain(&[at.join("lone")], &how)[0].is_whole());
    let refused = &chain(&[at.join("b")], &Open { policy: Policy::Deny, ..Open::default() })[0];
    assert!(refused.image.is_err() && refused.children.len() == 1);
}
