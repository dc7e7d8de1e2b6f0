//! Encrypted images in twin folders: the keys that a list gives them, and what nobody wrote to them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::command::{Ran, try_qemu_img};

/// The secrets that lists use.
const SECRETS: &[&str] = &["x", "y", "hush"];

/// What `qemu-img info` says that is another for each image: ids, and how fast the machine was when it was made.
pub(crate) fn without_what_is_random(text: &str) -> String {
    let random = |line: &&str| {
        let line = line.trim_start();
        ["uuid: ", "iters: ", "master key iters: "].iter().any(|name| line.starts_with(name))
    };
    text.split_inclusive('\n').filter(|line| !random(line)).collect()
}

/// How two encrypted images differ, whose `about` is what `qemu-img info` says of both; `None`: they are not encrypted.
pub(crate) fn compared(about: &str, paths: &[PathBuf; 2]) -> Option<String> {
    let value = |name: &str| {
        about.lines().find_map(|line| line.trim().strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    value("encrypted: ")?;
    let format = value("file format: ")?;
    // What nobody wrote to a disk that keeps no record of it is noise, which no two have in common.
    let payload = value("payload offset: ").filter(|_| format == "luks").and_then(|at| at.parse().ok());
    if payload.is_some_and(|at| paths.iter().all(|path| is_zero_from(path, at))) {
        return Some(String::new());
    }
    let option = if format == "luks" { "key-secret" } else { "encrypt.key-secret" };
    let [real, ours] = paths.each_ref().map(|path| {
        format!("driver={format},{option}=s,force-share=on,read-only=on,file.filename={}", path.display())
    });
    // Of the secrets the first that opens the real one has to open ours; those that open neither are the lists' to try.
    for secret in SECRETS {
        let object = format!("secret,id=s,data={secret}");
        let ran = |words: &[&str]| -> Ran {
            try_qemu_img([words[0], "--object", &object, "--image-opts"].iter().chain(&words[1..]))
        };
        if ran(&["map", &real]).ok() {
            let compared = ran(&["compare", &real, &ours]);
            let same = compared.code == Some(0);
            return Some(if same { String::new() } else { format!("  {}{}", compared.out, compared.err) });
        }
    }
    Some(String::new())
}

fn is_zero_from(path: &Path, at: u64) -> bool {
    let file = File::open(path).unwrap();
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len().saturating_sub(at)).unwrap()];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter().all(|byte| *byte == 0)
}
