//! What descriptions mean, and what is wrong with those that mean nothing.

use std::path::{Path, PathBuf};

use cowhand_core::{Error, Lock};

use super::{ImageOptions, Name, Node, image_name};
use crate::open::{Open, open};
use crate::{Create, Policy, create};

fn described(text: &str) -> Result<Node, Error> {
    Ok(ImageOptions::parse(text)?.node()?.node)
}

fn named(name: &str, format: Option<&str>) -> Result<Name, Error> {
    Name::of(Path::new(name), format)
}

fn node(name: &str) -> Node {
    match named(name, None).unwrap() {
        Name::Node(read) => read.node,
        Name::Path(path) => panic!("{} is a path", path.display()),
    }
}

#[test]
fn options_and_json_describe_the_same() {
    let by_options = described("driver=qcow2,lazy-refcounts=on,file.driver=file,file.filename=a,,b").unwrap();
    for name in [
        "json:{'driver':'qcow2','lazy-refcounts':'on','file':{'driver':'file','filename':'a,b'}}",
        "json:{\"driver\":\"qcow2\",\"lazy-refcounts\":\"on\",\"file.driver\":\"file\",\"file.filename\":\"a,b\"}",
    ] {
        assert_eq!(node(name), by_options);
    }
    let open = by_options.clone().open(Open::default());
    assert_eq!((by_options.path(), open.format.as_deref()), (Path::new("a,b"), Some("qcow2")));
    assert_eq!(open.options, [("lazy-refcounts".to_owned(), "on".to_owned())]);
    let open = described("driver=raw,file.filename=x,force-share=on").unwrap().open(Open::default());
    assert_eq!(open.lock, Lock::None);
}

#[test]
fn names_with_a_colon() {
    let path = |name: &str| match named(name, None).unwrap() {
        Name::Path(path) => path,
        Name::Node(_) => panic!("{name} describes something"),
    };
    assert_eq!(path("file:a"), PathBuf::from("a"));
    assert_eq!(path("file:a:b"), PathBuf::from("./a:b"));
    assert_eq!(path("./a:b"), PathBuf::from("./a:b"));
    assert_eq!(path("d/a:b"), PathBuf::from("d/a:b"));
    for (name, said) in [
        ("nbd:localhost:1", "Unknown protocol 'nbd'"),
        (":a", "Unknown protocol ''"),
        ("", "The 'file' block driver requires a file name"),
        ("json:[", "Could not parse the JSON options: JSON parse error, premature EOI"),
        ("json:[]", "Invalid JSON object given"),
    ] {
        assert_eq!(named(name, None).unwrap_err().message(), said, "{name}");
    }
    assert!(Name::of_target(Path::new("json:{}")).is_err());
    assert_eq!(Name::of_target(Path::new("file:x")).unwrap(), PathBuf::from("x"));
}

#[test]
fn what_the_caller_says_beside_is_the_driver() {
    let Name::Node(read) = named("json:{'driver':'qcow2','file.filename':'x'}", Some("raw")).unwrap() else {
        panic!("is a path");
    };
    assert_eq!(read.node.open(Open::default()).format.as_deref(), Some("raw"));
}

#[test]
fn what_means_nothing_is_said_in_qemus_words() {
    for (text, said) in [
        ("", "Must specify either driver or file"),
        ("driver=qcow2", "A block device must be specified for \"file\""),
        ("driver=nope,file.filename=x", "Unknown driver 'nope'"),
        ("x.qcow2", "Cannot find device='x.qcow2' nor node-name='x.qcow2'"),
        ("driver=file,filename=x,y=z", "Block protocol 'file' doesn't support the option 'y'"),
        ("driver=raw,file.filename=x,read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"),
        ("driver=raw,file.filename=x,node-name=a,file.node-name=a", "Duplicate nodes with node-name='a'"),
    ] {
        assert_eq!(described(text).unwrap_err().message(), said, "{text}");
    }
    let deep = format!("driver=raw,{}filename=x", "file.".repeat(100));
    assert!(described(&deep).is_err());
}

#[test]
fn the_name_is_plain_where_that_says_all() {
    let shown = |name: &str, format: &str| {
        let node = node(name);
        let path = node.path().to_owned();
        image_name(&path, &node.open(Open::default()), format)
    };
    assert_eq!(shown("json:{'driver':'qcow2','cache-size':1,'file.filename':'x'}", "qcow2"), "x");
    assert_eq!(
        shown("json:{'size':'1k','offset':512,'driver':'raw','file':{'filename':'é'}}", "raw"),
        "json:{\"offset\": 512, \"driver\": \"raw\", \"size\": \"1k\", \"file\": {\"driver\": \"file\", \"filename\": \"\\u00E9\"}}"
    );
    assert_eq!(
        shown("json:{'driver':'qcow2','file.driver':'raw','file.file.filename':'x'}", "qcow2"),
        "json:{\"driver\": \"qcow2\", \"file\": {\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": \"x\"}}}"
    );
}

#[test]
fn an_image_within_a_part_of_a_file() {
    let temp = tempfile::tempdir().unwrap();
    let (inner, outer) = (temp.path().join("inner"), temp.path().join("outer"));
    create(&inner, &Create::new("qcow2", 1 << 20)).unwrap();
    let mut bytes = vec![7; 4096];
    bytes.extend(std::fs::read(&inner).unwrap());
    bytes.resize(4096 + (1 << 20), 0);
    bytes.extend([9; 512]);
    std::fs::write(&outer, &bytes).unwrap();
    let text = format!(
        "driver=qcow2,file.driver=raw,file.offset=4096,file.size=1M,file.file.filename={}",
        outer.display()
    );
    let how = described(&text).unwrap().open(Open { writable: true, ..Open::default() });
    let disk = open(&outer, &how).unwrap();
    disk.write(70_000, b"hello").unwrap();
    disk.close().unwrap();
    drop(disk);
    let after = std::fs::read(&outer).unwrap();
    assert_eq!(
        (after.len(), &after[..4096], &after[after.len() - 512..]),
        (bytes.len(), &bytes[..4096], &[9; 512][..])
    );
    let read = open(&outer, &Open { writable: false, ..how }).unwrap();
    let mut buf = [0; 5];
    read.read(70_000, &mut buf).unwrap();
    assert_eq!(&buf, b"hello");
}

#[test]
fn a_description_within_an_image_needs_a_policy_that_trusts_it() {
    let temp = tempfile::tempdir().unwrap();
    let (base, top) = (temp.path().join("base"), temp.path().join("top.qcow2"));
    std::fs::write(&base, [5; 65536]).unwrap();
    let name = format!("json:{{'driver':'raw','offset':512,'file':{{'filename':'{}'}}}}", base.display());
    create(
        &top,
        &Create {
            backing: Some(name.into()),
            backing_format: Some("raw".into()),
            unchecked: true,
            ..Create::new("qcow2", 65024)
        },
    )
    .unwrap();
    assert!(open(&top, &Open { policy: Policy::Local, ..Open::default() }).is_err());
    let disk = open(&top, &Open { policy: Policy::Any, ..Open::default() }).unwrap();
    assert_eq!(disk.links()[1].layer.size(), 65024);
    let mut buf = [0; 512];
    disk.read(0, &mut buf).unwrap();
    assert_eq!(buf, [5; 512]);
}
