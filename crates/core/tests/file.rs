//! Files of this machine: holes, space, what is no image, and locks that QEMU keeps too.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cowhand_core::raw::{Raw, RawLayer};
use cowhand_core::testing::{ModelTest, RaceTest, Shape};
use cowhand_core::{
    Access, Cache, CreateOptions, DirFolder, ErrorKind, FileStorage, Folder, Format, Layer, Lock, NoFiles,
    Options, Result, Solid, Storage, hole_at,
};
use tempfile::TempDir;

/// An empty folder, for one test at a time: a process that another test starts holds for a moment, between fork and
/// exec, every file that is open here, and so its locks.
struct Place {
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn folder() -> Place {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Place { dir: TempDir::new().unwrap(), _alone: alone }
}

fn open(path: &Path, access: Access) -> Result<FileStorage> {
    FileStorage::open(path, access, Lock::Default, Cache::Writeback)
}

fn new_file(folder: &Place) -> (PathBuf, FileStorage) {
    let path = folder.path().join("image");
    let file = open(&path, Access::CreateNew).unwrap();
    (path, file)
}

fn bytes(file: &FileStorage, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0x5a; len];
    file.read_at(at, &mut buf).unwrap();
    buf
}

const MIB: u64 = 1 << 20;

#[test]
fn holes_are_found() {
    let folder = folder();
    let (_, file) = new_file(&folder);
    assert_eq!(file.data_at(0).unwrap(), None);
    assert!(file.is_empty().unwrap());
    file.set_len(16 * MIB + 100).unwrap();
    if file.data_at(0).unwrap().is_some() {
        eprintln!("skipped: this file system has no holes");
        return;
    }
    file.write_at(4 * MIB, &[1; 4096]).unwrap();
    file.write_at(8 * MIB, &[2; 65536]).unwrap();
    let first = file.data_at(0).unwrap().unwrap();
    assert!(first.contains(&(4 * MIB)) && first.start > MIB && first.end < 8 * MIB, "{first:?}");
    // Asked in the middle, it starts there.
    assert_eq!(file.data_at(4 * MIB + 10).unwrap().unwrap(), 4 * MIB + 10..first.end);
    let second = file.data_at(first.end).unwrap().unwrap();
    assert!(second.contains(&(8 * MIB)) && second.end < 16 * MIB, "{second:?}");
    assert_eq!(file.data_at(second.end).unwrap(), None);
    assert_eq!(file.data_at(1 << 40).unwrap(), None);
    assert!(file.physical_size().unwrap() < MIB);
}

#[test]
fn punched_and_zeroed_ranges_read_zero() {
    let folder = folder();
    let (_, file) = new_file(&folder);
    file.write_at(0, &vec![7; MIB as usize]).unwrap();
    if file.punch(65536, 65536).unwrap() {
        assert!(bytes(&file, 65536, 65536).iter().all(|byte| *byte == 0));
        assert_eq!(bytes(&file, 65535, 1), [7]);
        assert_eq!(bytes(&file, 131072, 1), [7]);
        // What is past the end stays past the end.
        file.punch(MIB - 4096, 1 << 30).unwrap();
        assert_eq!(file.len().unwrap(), MIB);
    } else {
        eprintln!("skipped: this file system cannot punch holes");
    }
    if file.zero(4096, 100).unwrap() {
        assert_eq!(bytes(&file, 4095, 102), [&[7][..], &[0; 100], &[7]].concat());
        assert!(file.zero(MIB, 4096).unwrap());
        assert_eq!(file.len().unwrap(), MIB + 4096);
    } else {
        eprintln!("skipped: this file system cannot zero ranges");
    }
    assert!(file.punch(0, 0).unwrap() && file.zero(0, 0).unwrap());
}

#[test]
fn allocated_space_keeps_its_content() {
    let folder = folder();
    let (_, file) = new_file(&folder);
    file.write_at(0, &[7; 4096]).unwrap();
    if !file.allocate(0, 2 * MIB).unwrap() {
        eprintln!("skipped: this file system cannot reserve space");
        return;
    }
    assert_eq!(file.len().unwrap(), 2 * MIB);
    assert!(file.physical_size().unwrap() >= 2 * MIB);
    assert_eq!(bytes(&file, 4095, 2), [7, 0]);
}

#[test]
fn short_reads_are_errors() {
    let folder = folder();
    let (path, file) = new_file(&folder);
    file.write_at(0, &[1; 1000]).unwrap();
    assert_eq!(file.read_at(999, &mut [0; 2]).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    let before = file.identity().unwrap();
    assert_eq!(
        FileStorage::open(&path, Access::Read, Lock::None, Cache::Writeback).unwrap().identity().unwrap(),
        before
    );
    file.set_len(500).unwrap();
    assert_ne!(file.identity().unwrap(), before);
}

#[test]
fn only_files_and_devices_are_images() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let since = Instant::now();
    for access in [Access::Read, Access::Write] {
        let error = open(&fifo, access).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("pipe"), "{error}");
    }
    assert!(since.elapsed() < Duration::from_secs(2), "it waited for a writer");
    let error = open(folder.path(), Access::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("directory"), "{error}");
    let error = open(folder.path(), Access::Write).unwrap_err();
    assert!(error.to_string().contains("irectory"), "{error}");
    assert!(open(Path::new("/dev/zero"), Access::Read).is_err());
    let error = open(&folder.path().join("none"), Access::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn an_error_is_one_line_whatever_the_name() {
    let folder = folder();
    let path = folder.path().join("a\n\u{1b}[2Jb\u{202e}c");
    let text = open(&path, Access::Read).unwrap_err().to_string();
    assert!(!text.contains(['\n', '\u{1b}', '\u{202e}']), "{text:?}");
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn new_is_new() {
    let folder = folder();
    let (path, file) = new_file(&folder);
    drop(file);
    assert_eq!(open(&path, Access::CreateNew).unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn every_cache_mode_reads_what_it_wrote() {
    let folder = folder();
    for name in ["unsafe", "writeback", "writethrough", "none", "directsync"] {
        let path = folder.path().join(name);
        let file = FileStorage::open(&path, Access::CreateNew, Lock::Default, Cache::by_name(name).unwrap())
            .unwrap();
        file.write_at(3, &[5; 10000]).unwrap();
        file.sync().unwrap();
        assert_eq!(bytes(&file, 0, 4), [0, 0, 0, 5], "{name}");
    }
    assert_eq!(Cache::by_name("fast"), None);
}

#[test]
fn a_directory_is_a_folder() {
    let temp = folder();
    let folder = DirFolder::new(temp.path(), Cache::Writeback);
    folder.create_new("b").unwrap().write_at(0, b"new").unwrap();
    folder.create_new("a").unwrap().write_at(0, b"old").unwrap();
    assert_eq!(folder.create_new("a").unwrap_err().kind(), ErrorKind::Exists);
    folder.rename("b", "a").unwrap();
    folder.sync().unwrap();
    let mut held = [0; 3];
    folder.open("a", false).unwrap().read_at(0, &mut held).unwrap();
    assert_eq!(&held, b"new");
    assert_eq!(folder.open("b", false).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(folder.rename("b", "c").unwrap_err().kind(), ErrorKind::NotFound);
    folder.remove("a").unwrap();
    assert_eq!(folder.remove("a").unwrap_err().kind(), ErrorKind::NotFound);
}

// Locks.

fn image(folder: &Place) -> PathBuf {
    let (path, file) = new_file(folder);
    file.set_len(MIB).unwrap();
    path
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let folder = folder();
    let path = image(&folder);
    let one = open(&path, Access::Read).unwrap();
    let two = open(&path, Access::Read).unwrap();
    let error = open(&path, Access::Write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    let forced = FileStorage::open(&path, Access::Write, Lock::None, Cache::Writeback).unwrap();
    drop((one, two, forced));
    let writer = open(&path, Access::Write).unwrap();
    assert_eq!(open(&path, Access::Read).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(open(&path, Access::Write).unwrap_err().kind(), ErrorKind::Locked);
    let looked = FileStorage::open(&path, Access::Read, Lock::Shared, Cache::Writeback);
    assert!(looked.is_ok(), "who only looks takes nothing from a writer: {looked:?}");
    drop((writer, looked));
    open(&path, Access::Write).unwrap();
}

#[test]
fn a_failed_open_leaves_no_lock() {
    let folder = folder();
    let path = image(&folder);
    let reader = open(&path, Access::Read).unwrap();
    assert!(open(&path, Access::Write).is_err());
    let other = open(&path, Access::Read).unwrap();
    drop((reader, other));
    open(&path, Access::Write).unwrap();
}

/// qemu-io with the image open, until it is dropped.
struct QemuIo {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl QemuIo {
    /// `None` where it is not installed.
    fn holding(path: &Path, format: &str, read_only: bool) -> Option<QemuIo> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]).args(read_only.then_some("-r")).arg(path);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: qemu-io is not installed");
            return None;
        };
        let mut stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        // Its answer to a command tells that the image is open.
        stdin.write_all(b"length\n").unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.contains("1 MiB"), "qemu-io says {line:?}");
        Some(QemuIo { child, stdin: Some(stdin) })
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_writing_keeps_us_out() {
    let folder = folder();
    let path = image(&folder);
    let Some(writer) = QemuIo::holding(&path, "raw", false) else { return };
    for access in [Access::Read, Access::Write] {
        let error = open(&path, access).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("process {} (qemu-io)", writer.child.id())), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
    assert!(FileStorage::open(&path, Access::Read, Lock::None, Cache::Writeback).is_ok());
    drop(writer);
    open(&path, Access::Write).unwrap();
}

#[test]
fn qemu_reading_keeps_our_writer_out_and_no_reader() {
    let folder = folder();
    // A raw image that QEMU only reads it lets others write: there is no metadata that could change under it.
    let Some(path) = qcow2(&folder) else { return };
    let Some(_reader) = QemuIo::holding(&path, "qcow2", true) else { return };
    open(&path, Access::Read).unwrap();
    assert_eq!(open(&path, Access::Write).unwrap_err().kind(), ErrorKind::Locked);
}

/// A small qcow2; `None` where qemu-img is not installed.
fn qcow2(folder: &Place) -> Option<PathBuf> {
    let path = folder.path().join("image");
    let Ok(made) =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("1M").status()
    else {
        eprintln!("skipped: qemu-img is not installed");
        return None;
    };
    assert!(made.success());
    Some(path)
}

fn qemu_img(args: &[&str], path: &Path) -> (bool, String) {
    let done = Command::new("qemu-img").args(args).arg(path).output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn we_keep_qemu_out() {
    let folder = folder();
    let Some(path) = qcow2(&folder) else { return };
    let writer = open(&path, Access::Write).unwrap();
    let (ok, text) = qemu_img(&["info"], &path);
    assert!(!ok && text.contains("Failed to get") && text.contains("lock"), "{text}");
    let (ok, text) = qemu_img(&["info", "-U"], &path);
    assert!(ok, "{text}");
    drop(writer);
    let reader = open(&path, Access::Read).unwrap();
    let (ok, text) = qemu_img(&["info"], &path);
    assert!(ok, "two readers: {text}");
    let (ok, text) = qemu_img(&["check", "-q", "-r", "all"], &path);
    assert!(!ok && text.contains("lock"), "{text}");
    drop(reader);
    let free = FileStorage::open(&path, Access::Write, Lock::None, Cache::Writeback).unwrap();
    let (ok, text) = qemu_img(&["check", "-q", "-r", "all"], &path);
    assert!(ok, "{text}");
    drop(free);
}

#[test]
fn a_file_that_is_open_already_can_be_taken_over() {
    let folder = folder();
    let path = image(&folder);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let storage = FileStorage::from_file(file, Access::Write, Lock::Default, Cache::Writeback).unwrap();
    assert!(!storage.is_device());
    assert_eq!(storage.len().unwrap(), MIB);
    assert_eq!(open(&path, Access::Read).unwrap_err().kind(), ErrorKind::Locked);
}

// Raw on a real file, under the benches.

fn raw(file: FileStorage) -> Result<Arc<dyn Layer>> {
    Ok(Arc::new(RawLayer::over(Arc::new(file), true)?))
}

#[test]
fn a_raw_file_is_a_flat_vector() {
    let folder = folder();
    // 1000 bytes past a sector's border: the guest sees zeros up to the next.
    const LEN: u64 = 200 * 4096 + 1000;
    for (seed, cache) in
        [Cache::Unsafe, Cache::Writeback, Cache::None, Cache::Writeback].into_iter().enumerate()
    {
        let path = folder.path().join("raw");
        let fresh = || {
            // A failing script is made shorter, and so runs many times.
            let _ = std::fs::remove_file(&path);
            let file = FileStorage::open(&path, Access::CreateNew, Lock::Default, cache)?;
            file.set_len(LEN).unwrap();
            raw(file)
        };
        let again = || raw(FileStorage::open(&path, Access::Write, Lock::Default, cache)?);
        let shape = Shape { resize: true, ..Shape::new(LEN.next_multiple_of(512), 4096) };
        ModelTest::in_folder(|_| fresh(), |_| again()).shape(shape).seed(seed as u64).run().unwrap();
    }
}

#[test]
fn a_file_without_holes_is_a_flat_vector_and_has_none() {
    let folder = folder();
    const LEN: u64 = 200 * 4096;
    let path = folder.path().join("raw");
    let solid = |access| -> Result<Arc<dyn Storage>> {
        let file = FileStorage::open(&path, access, Lock::Default, Cache::Writeback)?;
        Ok(Arc::new(Solid::over(Arc::new(file)).unwrap()))
    };
    let fresh = || {
        let _ = std::fs::remove_file(&path);
        let file = solid(Access::CreateNew)?;
        file.set_len(LEN).unwrap();
        Ok(Arc::new(RawLayer::over(file, true)?) as Arc<dyn Layer>)
    };
    let again = || Ok(Arc::new(RawLayer::over(solid(Access::Write)?, true)?) as Arc<dyn Layer>);
    let shape = Shape { resize: true, ..Shape::new(LEN, 4096) };
    for seed in 0..2 {
        ModelTest::in_folder(|_| fresh(), |_| again()).shape(shape).seed(seed).run().unwrap();
        assert_eq!(hole_at(&open(&path, Access::Read).unwrap(), 0).unwrap(), None);
    }
}

#[test]
fn threads_on_a_raw_file_keep_apart() {
    let folder = folder();
    let path = folder.path().join("raw");
    let fresh = || {
        let _ = std::fs::remove_file(&path);
        let file = open(&path, Access::CreateNew)?;
        file.set_len(MIB).unwrap();
        raw(file)
    };
    RaceTest::in_folder(|_| fresh(), |_| raw(open(&path, Access::Write)?))
        .unit(4096)
        .torn()
        .time(Duration::from_millis(300))
        .run()
        .unwrap();
}

#[test]
fn a_raw_disk_is_laid_out_as_asked() {
    let folder = folder();
    for (how, space) in [("off", 0), ("falloc", MIB), ("full", MIB)] {
        let path = folder.path().join(how);
        let file = Arc::new(open(&path, Access::CreateNew).unwrap());
        let options = Options::check(Raw.options(), &[("preallocation".into(), how.into())]).unwrap();
        let how = CreateOptions { size: MIB - 100, options, ..Default::default() };
        let layer = match Raw.create(file.clone(), &NoFiles, &how) {
            Err(error) if error.kind() == ErrorKind::Unsupported => continue,
            made => made.unwrap(),
        };
        assert_eq!((layer.size(), file.len().unwrap()), (MIB, MIB));
        assert!(file.physical_size().unwrap() >= space && (space > 0 || file.physical_size().unwrap() < MIB));
        let mut buf = vec![1; MIB as usize];
        assert_eq!(layer.read(0, &mut buf).unwrap().len, MIB);
        assert!(buf.iter().all(|byte| *byte == 0));
    }
}
