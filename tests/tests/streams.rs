//! Streams: every kind of image through pipes, archives and a web server into every format; by content the same.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cowhand::stream::{Deliver, From, Incoming, Stream, Streamed, To, front, stream};
use cowhand::{ErrorKind, Open, Progress, Quiet, Result};
use cowhand_tests::{
    Content, assert_holds, assert_qemu_accepts, for_all, options, probe, qemu_img, qemu_io, temp,
};

use crate::stream_http::Server;

const M: u64 = 1 << 20;

/// Keeps what it is given, and what it was told of the length.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) bytes: Vec<u8>,
    pub(crate) len: Option<u64>,
}

impl Deliver for Kept {
    fn name(&self) -> &str {
        "a test"
    }

    fn deliver(&mut self, body: &mut dyn Read, len: Option<u64>) -> Result<()> {
        self.len = len;
        body.read_to_end(&mut self.bytes).map(|_| ()).map_err(|error| cowhand::Error::io("reading", error))
    }
}

/// Bytes that come in order, in pieces of an odd size.
pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> From<'static> {
    struct Pieces(std::io::Cursor<Vec<u8>>);
    impl Read for Pieces {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let most = buf.len().min(30_011);
            self.0.read(&mut buf[..most])
        }
    }
    let bytes = Box::new(Pieces(std::io::Cursor::new(bytes.into())));
    From::Bytes(Incoming { name: "bytes".to_owned(), len: None, bytes })
}

pub(crate) fn to_bytes(from: From<'_>, how: &Stream) -> Result<(Vec<u8>, Streamed)> {
    let mut kept = Kept::default();
    let done = stream(from, To::Bytes(&mut kept), how, &Quiet)?;
    if !how.archive {
        assert_eq!(kept.len, Some(kept.bytes.len() as u64));
    }
    Ok((kept.bytes, done))
}

pub(crate) fn to_file(from: From<'_>, path: &Path, how: &Stream) -> Result<Streamed> {
    stream(from, To::File(path), how, &Quiet)
}

/// Names in a folder, those that begin with a dot too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn as_format(name: &str, text: &str) -> Stream {
    Stream { format: Some(name.to_owned()), options: options(text), ..Stream::default() }
}

pub(crate) fn of_format(name: &str, len: u64) -> Stream {
    Stream {
        open: Open { format: Some(name.to_owned()), ..Open::default() },
        len: Some(len),
        ..Stream::default()
    }
}

/// An image of each kind with what it holds: (name, image, how to open it, raw).
pub(crate) fn sources(folder: &Path) -> Vec<(&'static str, PathBuf, PathBuf)> {
    let content = Content::empty("disk", 12 * M)
        .with(0, vec![1; 512])
        .with(3 * M - 300, cowhand_tests::Rng::new(9).bytes(700_000))
        .with(12 * M - 513, cowhand_tests::Rng::new(3).bytes(513));
    let raw = content.raw_in(folder);
    let mut sources = vec![("raw", raw.clone(), raw.clone())];
    for (name, format, how) in [
        ("qcow2", "qcow2", "cluster_size=4k"),
        ("vhdx", "vhdx", "block_size=1M"),
        ("vhd", "vpc", "force_size=on"),
        ("vhd fixed", "vpc", "subformat=fixed,force_size=on"),
    ] {
        let path = folder.join(format!("{}.{format}", name.replace(' ', "-")));
        let words = ["convert", "-f", "raw", "-O", format, "-o", how].map(Path::new);
        qemu_img(words.into_iter().chain([raw.as_path(), &path]));
        sources.push((name, path, raw.clone()));
    }
    // A chain: what the top hides must not show, and it is longer than its base.
    let (base, top) = (folder.join("base.qcow2"), folder.join("top.qcow2"));
    let words = ["convert", "-f", "raw", "-O", "qcow2"].map(Path::new);
    qemu_img(words.into_iter().chain([raw.as_path(), &base]));
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2"].map(Path::new);
    qemu_img(words.into_iter().chain([top.as_path(), Path::new("15M")]));
    qemu_io(["-f", "qcow2"], &top, ["write -P 7 3200k 100k", "write -z 3500k 64k", "write -P 9 14M 4k"]);
    let merged = folder.join("merged.raw");
    let words = ["convert", "-f", "qcow2", "-O", "raw"].map(Path::new);
    qemu_img(words.into_iter().chain([top.as_path(), &merged]));
    sources.push(("chain", top, merged));
    sources
}

const TARGETS: [(&str, &str); 5] = [
    ("raw", ""),
    ("qcow2", ""),
    ("vpc", "force_size=on"),
    ("vpc", "force_size=on,subformat=fixed"),
    ("vhdx", ""),
];

fn holds(path: &Path, format: &str, raw: &Path) {
    let image = cowhand::open(path, &Open { format: Some(format.to_owned()), ..Open::default() }).unwrap();
    assert_holds(&image, raw);
    drop(image);
    assert_qemu_accepts(path, format, raw);
}

/// The ways on which something goes from here to there.
#[derive(Clone, Copy, Debug)]
enum Way {
    Pipe,
    Archive,
    Http,
}

#[test]
fn every_image_comes_through_on_every_way() {
    let folder = temp();
    let sources = sources(folder.path());
    let server = Server::start(folder.path());
    let mut cases = Vec::new();
    for source in 0..sources.len() {
        for way in [Way::Pipe, Way::Archive, Way::Http] {
            cases.push((source, way));
        }
    }
    let name = |(source, way): &(usize, Way)| format!("{} by {way:?}", sources[*source].0);
    for_all(&cases, name, |(number, way)| {
        let (_, source, raw) = &sources[*number];
        // What is sent is a VHD that reads the same, and raw bytes.
        let forms = [("vpc", "force_size=on"), ("vpc", "force_size=on,subformat=fixed"), ("raw", "")];
        for (turn, (format, how)) in forms.into_iter().enumerate() {
            let how = Stream { flat: true, ..as_format(format, how) };
            let sent = folder.path().join(format!("{number}-{way:?}.{format}"));
            let url = server.import(sent.file_name().unwrap().to_str().unwrap(), format);
            let len = match way {
                Way::Pipe => {
                    let (bytes, done) = to_bytes(From::File(source), &how).unwrap();
                    assert_eq!((done.bytes, done.layers), (Some(bytes.len() as u64), 1));
                    std::fs::write(&sent, &bytes).unwrap();
                    bytes.len() as u64
                }
                Way::Archive => {
                    let archive = sent.with_extension("tgz");
                    to_file(From::File(source), &archive, &how).unwrap();
                    let found = front(From::File(&archive), &Stream::default(), &Quiet).unwrap();
                    assert_eq!(found.format, format);
                    let folder = sent.with_extension("unpacked");
                    to_file(From::File(&archive), &folder.join(""), &Stream::default()).unwrap();
                    let [member] = &names(&folder)[..] else { panic!("{:?}", names(&folder)) };
                    std::fs::rename(folder.join(member), &sent).unwrap();
                    std::fs::metadata(&sent).unwrap().len()
                }
                Way::Http => {
                    let mut put = server.http().put(&url).unwrap();
                    stream(From::File(source), To::Bytes(&mut put), &how, &Quiet).unwrap();
                    let len = std::fs::metadata(&sent).unwrap().len();
                    assert_eq!(server.header(&url, "Content-Length"), Some(len.to_string()));
                    len
                }
            };
            holds(&sent, format, raw);
            // And taken into an image: of every format, over all the cases.
            let fixed = how.options.iter().any(|(_, value)| value == "fixed");
            for (target, options) in [0, 1].map(|more| TARGETS[(number + 2 * turn + more) % TARGETS.len()]) {
                let path = sent.with_extension(format!("to-{target}"));
                let taken = Stream {
                    format: Some(target.to_owned()),
                    options: cowhand_tests::options(options),
                    ..of_format(format, len)
                };
                let from = match way {
                    Way::Pipe => bytes(std::fs::read(&sent).unwrap()),
                    Way::Archive => From::File(&sent.with_extension("tgz")),
                    Way::Http => From::Bytes(server.http().get(&server.export(&url)).unwrap()),
                };
                let taken = match way {
                    Way::Archive => Stream { len: None, open: Open::default(), ..taken },
                    // Its front tells what it is, and how long.
                    _ if format == "vpc" && !fixed => Stream { len: None, open: Open::default(), ..taken },
                    _ => taken,
                };
                let done = to_file(from, &path, &taken).unwrap();
                assert_eq!((done.from, done.to, done.layers), (format, target, 1));
                holds(&path, target, raw);
                std::fs::remove_file(&path).unwrap();
            }
        }
    });
}

#[test]
fn what_is_sent_on_is_not_changed() {
    let folder = temp();
    let sources = sources(folder.path());
    let (_, vhd, _) = &sources[3];
    let content = std::fs::read(vhd).unwrap();
    let (on, done) = to_bytes(bytes(content.clone()), &Stream::default()).unwrap();
    assert!(on == content && done.to == "vpc");
    // Into an archive, and out of it again.
    let (archive, _) =
        to_bytes(bytes(content.clone()), &Stream { archive: true, ..Stream::default() }).unwrap();
    assert!(to_bytes(bytes(archive), &Stream::default()).unwrap().0 == content);
    // A file that follows another is no part of it.
    let error = to_bytes(bytes([&content[..], b"x"].concat()), &Stream::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let error = to_bytes(bytes(&content[..content.len() - 1]), &Stream::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    // It cannot become something else on its way.
    let error = to_bytes(bytes(content.clone()), &as_format("raw", "")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // Whoever says how long it is must be right.
    let error = to_bytes(bytes(content.clone()), &of_format("vpc", content.len() as u64 + 512)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

#[test]
fn the_front_tells_the_length_or_says_that_it_cannot() {
    let folder = temp();
    let sources = sources(folder.path());
    let at = |name: &str| &sources.iter().find(|source| source.0 == name).unwrap().1;
    let found = front(From::File(at("vhd")), &Stream::default(), &Quiet).unwrap();
    assert_eq!(found.file_len, Some(std::fs::metadata(at("vhd")).unwrap().len()));
    assert_eq!(found.disk.map(|disk| disk.size), Some(12 * M));
    let found = front(From::File(at("vhd fixed")), &of_format("vpc", 12 * M + 512), &Quiet).unwrap();
    assert_eq!((found.file_len, found.disk), (None, None));
    for (name, kind) in [
        ("vhd fixed", ErrorKind::Ambiguous),
        ("raw", ErrorKind::Ambiguous),
        ("qcow2", ErrorKind::Unsupported),
    ] {
        let error = front(From::File(at(name)), &Stream::default(), &Quiet).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
    }
}

#[test]
fn what_breaks_off_leaves_nothing() {
    let folder = temp();
    let sources = sources(folder.path());
    let elsewhere = temp();
    let target = elsewhere.path().join("target");
    for old in [None, Some("what was there")] {
        if let Some(old) = old {
            std::fs::write(&target, old).unwrap();
        }
        for number in [3, 4] {
            let content = std::fs::read(&sources[number].1).unwrap();
            for cut in [0, 1, 511, 1000, 4096, content.len() / 2, content.len() - 512, content.len() - 1] {
                let how =
                    Stream { format: Some("qcow2".to_owned()), ..of_format("vpc", content.len() as u64) };
                let error = to_file(bytes(&content[..cut]), &target, &how).unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Changed | ErrorKind::Corrupt), "{cut}: {error}");
                assert_eq!(names(elsewhere.path()).len(), usize::from(old.is_some()));
            }
        }
        // Somebody asks to stop.
        struct Stop(Mutex<u32>);
        impl Progress for Stop {
            fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
                let mut calls = self.0.lock().unwrap();
                *calls += 1;
                if *calls > 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        }
        let content = std::fs::read(&sources[3].1).unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&content[..5000]).unwrap();
        let from = From::Bytes(Incoming { name: "pipe".to_owned(), len: None, bytes: Box::new(reader) });
        let error =
            stream(from, To::File(&target), &as_format("qcow2", ""), &Stop(Mutex::new(0))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(names(elsewhere.path()).len(), usize::from(old.is_some()));
    }
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "what was there");
}

#[test]
fn a_source_that_changes_is_not_sent_whole() {
    let folder = temp();
    let raw = Content::random("disk", 16 * M, 1).raw_in(folder.path());
    struct Touch(PathBuf, Mutex<bool>);
    impl Progress for Touch {
        fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
            let mut touched = self.1.lock().unwrap();
            if done * 4 > total && !*touched {
                *touched = true;
                File::options().write(true).open(&self.0).unwrap().write_all_at(b"new", 0).unwrap();
            }
            ControlFlow::Continue(())
        }
    }
    let mut kept = Kept::default();
    let touch = Touch(raw.clone(), Mutex::default());
    let error = stream(From::File(&raw), To::Bytes(&mut kept), &as_format("vpc", ""), &touch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert!(kept.len.unwrap() > kept.bytes.len() as u64);
    let path = folder.path().join("x.tgz");
    let touch = Touch(raw.clone(), Mutex::default());
    let error = stream(From::File(&raw), To::File(&path), &Stream::default(), &touch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
    assert_eq!(names(folder.path()), ["disk.raw"]);
}

#[test]
fn large_disks_take_little_memory() {
    let folder = temp();
    let raw = folder.path().join("large.raw");
    let file = File::create(&raw).unwrap();
    file.set_len(100 << 30).unwrap();
    for at in 0..64 {
        file.write_all_at(&[7; 70_000], at * (3 << 29)).unwrap();
    }
    let vhd = folder.path().join("large.vhd");
    let done = probe([Path::new("stream"), &raw, &vhd]);
    assert!(done.ok.is_some() && done.peak_kib < 64 << 10, "{done:?}");
    let again = folder.path().join("again.raw");
    let done = probe([Path::new("take"), &vhd, &again]);
    assert!(done.ok.is_some() && done.peak_kib < 64 << 10, "{done:?}");
    let same = cowhand::compare(
        &cowhand::open(&raw, &Open::default()).unwrap(),
        &cowhand::open(&again, &Open::default()).unwrap(),
        false,
        &Quiet,
    );
    assert_eq!(same.unwrap().difference, None);
}
