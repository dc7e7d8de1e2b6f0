//! Running `cowhand vma` within bounds, and looking at what it extracted.

use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand::Open;
use cowhand_tests::{Mirror, Ran, VmaBuilt, VmaFile, cowhand_program, run};

/// Runs `cowhand` with two seconds of a processor and 256 MiB of memory at most: more ends it by a signal.
pub(crate) fn cowhand<A: AsRef<str>>(words: &[A]) -> Ran {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -d 262144; ulimit -t 2; exec \"$@\"", "sh"]).arg(cowhand_program());
    command.args(words.iter().map(AsRef::as_ref));
    let ran = run(&mut command);
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    assert!(ran.code.is_some(), "cowhand {words:?} ended by a signal: {}", ran.err);
    assert!(!ran.err.contains("panicked"), "cowhand {words:?}: {}", ran.err);
    let clean = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n' && c != '\r');
    assert!(clean(&ran.err) && clean(&ran.out), "control characters from cowhand {words:?}: {ran:?}");
    ran
}

/// A shell's script, in which `$0` is the program; no limits.
pub(crate) fn shell(folder: &Path, script: &str) -> Ran {
    let mut command = Command::new("bash");
    let script = format!("cd \"$1\"; set -o pipefail\n{script}");
    run(command.arg("-c").arg(script).arg(cowhand_program()).arg(folder))
}

/// It succeeds, and says nothing on standard error. Standard output.
pub(crate) fn good<A: AsRef<str>>(words: &[A]) -> String {
    let ran = cowhand(words);
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    assert!(ran.ok() && ran.err.is_empty(), "cowhand {words:?}: {ran:?}");
    ran.out
}

/// It refuses, with this status and one line on standard error, which names the file. That line.
pub(crate) fn refused<A: AsRef<str>>(words: &[A], status: i32) -> String {
    let ran = cowhand(words);
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    assert_eq!(ran.code, Some(status), "cowhand {words:?}: {ran:?}");
    let err = &ran.err;
    let one = err.starts_with("cowhand: ") && err.ends_with('\n') && err.lines().count() == 1;
    assert!(one, "cowhand {words:?}: {err}");
    err.clone()
}

/// The text of a path.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A name for a file, of any text.
pub(crate) fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Builds an archive into a file of its name.
pub(crate) fn save(folder: &Path, file: &VmaFile) -> (VmaBuilt, PathBuf) {
    let built = file.clone().build();
    let path = folder.join(format!("{}.vma", file_name(file.name)));
    std::fs::write(&path, &built.bytes).unwrap();
    (built, path)
}

/// Everything below a folder, sorted; a name that begins with a dot too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    names.sort();
    names
}

/// The folder holds what `vma extract` gets out of this archive, and nothing else.
pub(crate) fn assert_extracted(folder: &Path, file: &VmaFile) {
    let mut expected: Vec<String> = Vec::new();
    for disk in &file.disks {
        let name = String::from_utf8(disk.name.clone()).unwrap();
        let path = match disk.is_memory() {
            true => "vmstate.bin".to_owned(),
            false => format!("disk-{name}.raw"),
        };
        let found = Mirror::of_file(&folder.join(&path));
        disk.content.assert_same(&found, &name);
        expected.push(path);
    }
    for (_, name, data) in &file.configs {
        let name = String::from_utf8(name.clone()).unwrap();
        assert_eq!(std::fs::read(folder.join(&name)).unwrap(), *data, "{name}");
        expected.push(name);
    }
    expected.sort();
    assert_eq!(names(folder), expected);
}

/// The image holds what the disk should, for us and for `qemu-img`. A VHD may be longer: its size is a multiple of its
/// geometry's.
pub(crate) fn assert_image(path: &Path, format: &str, content: &Mirror) {
    let how = Open { format: Some(format.to_owned()), lock: cowhand::Lock::None, ..Open::default() };
    let image = cowhand::open(path, &how).unwrap();
    let mut content = content.clone();
    if format == "vpc" {
        content.resize(image.size().max(content.size()));
    }
    content.assert_disk(&image);
    drop(image);
    let raw = path.with_extension("expected");
    content.save(&raw);
    cowhand_tests::assert_qemu_accepts(path, format, &raw);
    std::fs::remove_file(&raw).unwrap();
}
