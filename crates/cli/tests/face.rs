//! The program's own face: completions that the shells take, manual pages that `man` takes, and the doctor.
#![allow(clippy::unwrap_used)] // These are tests, helpers included.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn cowhand(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cowhand")).args(words).current_dir(folder).output().unwrap()
}

fn good(folder: &Path, words: &[&str]) -> String {
    let done = cowhand(folder, words);
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()), "{words:?}");
    text(&done.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The verbs of the help page.
fn verbs() -> Vec<String> {
    let page = good(Path::new("."), &["help"]);
    let rows = page.lines().skip(2).filter(|line| !line.starts_with("Sizes"));
    // Never within a character: the page is ASCII.
    let halves =
        rows.flat_map(|row| [row.get(7..42).unwrap_or(row.get(7..).unwrap()), row.get(43..).unwrap_or("")]);
    halves.filter_map(|half| half.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn help_is_one_screen_by_every_way_to_ask_for_it() {
    let here = Path::new(".");
    let page = good(here, &["--help"]);
    assert!(page.lines().count() <= 24 && page.lines().all(|line| line.len() <= 80), "{page}");
    assert_eq!(page, good(here, &["-h"]));
    assert_eq!(page, good(here, &["help"]));
    assert_eq!(page, good(here, &["help", "--help"]));
    assert!(verbs().len() > 30);
    for verb in verbs().iter().filter(|verb| *verb != "help") {
        assert_eq!(good(here, &["help", verb]), good(here, &[verb, "--help"]), "{verb}");
        assert_eq!(good(here, &["help", verb]), good(here, &["help", verb, "-h"]), "{verb}");
    }
    assert!(good(here, &["help", "vma", "create"]).contains("qmrestore"));
}

#[test]
fn shells_take_the_completions() {
    let here = Path::new(".");
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "-n")] {
        for name in ["cowhand", "qemu-img", "qcow2_helper", "vhd-util", "vma"] {
            let script = good(here, &["completions", shell, name]);
            if let Ok(mut child) = Command::new(shell).arg(check).stdin(Stdio::piped()).spawn() {
                child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
                assert!(child.wait().unwrap().success(), "{shell} {name}");
            }
        }
        let script = good(here, &["completions", shell]);
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell}: {verb}");
        }
        for word in ["keep-index", "image-opts", "same-dir", "writethrough", "qcow2", "vhdx", "virtualbox"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(good(here, &["completions", shell, "qemu-img"]).contains("force-share"), "{shell}");
    }
}

/// What bash offers behind these words.
#[test]
fn bash_completes_verbs_flags_and_values() {
    let here = Path::new(".");
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("cowhand.bash");
    let scripts = ["cowhand", "vhd-util"].map(|name| good(here, &["completions", "bash", name]));
    fs::write(&script, scripts.concat()).unwrap();
    let script = script.display();
    let offered = |words: &[&str]| {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let last = words.len() - 1;
        let ask = format!(
            ". {script}\nCOMP_WORDS=({}); COMP_CWORD={last}; {} {} '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            if words[0] == "cowhand" { "_cowhand" } else { "_vhd__util" },
            words[0],
            words[last],
            words[last - 1]
        );
        let done = Command::new("bash").args(["-c", &ask]).output().unwrap();
        text(&done.stdout)
    };
    assert_eq!(offered(&["cowhand", "conv"]).trim(), "convert");
    assert!(offered(&["cowhand", "convert", "--ver"]).contains("--verify"));
    assert_eq!(offered(&["cowhand", "convert", "-O", "vhd"]).trim(), "vhd vhdx");
    assert!(offered(&["cowhand", "info", "--paths", ""]).contains("same-dir"));
    assert!(offered(&["vhd-util", "query", "-"]).contains("-v"));
}

#[test]
fn the_manual_has_a_page_for_everything() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    good(at, &["man", "."]);
    let page = |name: &str| fs::read_to_string(at.join(format!("{name}.1"))).unwrap();
    for verb in verbs().iter().filter(|verb| *verb != "help") {
        let page = page(&format!("cowhand-{verb}"));
        assert!(page.contains("Examples:"), "{verb}");
    }
    assert!(page("cowhand-vma-create").contains("Examples:"));
    let first = page("cowhand");
    for part in ["Look", "Chain", "EXIT STATUS", "ENVIRONMENT", "COWHAND_COMPAT", "130", "reconnect\\-parent"]
    {
        assert!(first.contains(part), "{part}: {first}");
    }
    let others = first.rsplit("SEE ALSO").next().unwrap().replace('\\', "");
    let mut others: Vec<&str> = others.split([',', ' ', '\n']).filter(|name| name.ends_with("(1)")).collect();
    let count = others.len();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), count, "a page is named twice");
    for other in others {
        page(other.strip_suffix("(1)").unwrap());
    }
    assert!(page("cowhand-as-qemu-img").contains("snapshot"));
    assert!(page("cowhand-as-vma").contains("it takes its words"));
    assert!(page("cowhand-vma").contains("cowhand vma list"));
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let Ok(done) =
            Command::new("man").env("MANWIDTH", "80").args(["--warnings", "-l"]).arg(&path).output()
        else {
            continue;
        };
        assert!(done.status.success() && done.stderr.is_empty(), "{path:?}: {}", text(&done.stderr));
    }
}

/// The status, the answer, and the page.
fn doctor(folder: &Path, words: &[&str]) -> (Option<i32>, String) {
    let done = cowhand(folder, &[&["doctor"], words].concat());
    (done.status.code(), text(&done.stdout) + &text(&done.stderr))
}

#[track_caller]
fn diagnosed(folder: &Path, words: &[&str], status: i32, parts: &[&str]) {
    let (code, page) = doctor(folder, words);
    assert_eq!(code, Some(status), "{page}");
    for part in parts {
        assert!(page.contains(part), "'{part}' is not in:\n{page}");
    }
    assert!(page.lines().count() <= 24, "{page}");
}

#[test]
fn the_doctor_says_what_a_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, more) in [("a.qcow2", "qcow2"), ("a.vhdx", "vhdx"), ("a.vhd", "vpc"), ("a.raw", "raw")] {
        good(at, &["create", "-q", "-f", more, name, "8M"]);
        diagnosed(at, &[name], 0, &[&format!("{name}: WHOLE AND SAFE"), "8 MiB of disk", "cowhand convert"]);
    }
    good(at, &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "top.qcow2"]);
    diagnosed(
        at,
        &["top.qcow2"],
        3,
        &[
            "top.qcow2: LOOK BEFORE YOU USE IT",
            "backing_file",
            "stands on",
            "a.qcow2, which is there",
            "cowhand commit top.qcow2",
        ],
    );
    fs::create_dir(at.join("else where")).unwrap();
    fs::rename(at.join("top.qcow2"), at.join("else where/it's.qcow2")).unwrap();
    diagnosed(
        at,
        &["else where/it's.qcow2"],
        2,
        &["DAMAGED", "parent", "cowhand reconnect-parent --force 'else where/it'\\''s.qcow2' PARENT"],
    );
    good(at, &["vma", "create", "-q", "a.vma.zst", "-d", "drive-a=a.raw"]);
    diagnosed(
        at,
        &["a.vma.zst"],
        0,
        &["backup archive, packed with zstd", "drive-a", "all but its front", "cowhand vma verify a.vma.zst"],
    );
    good(at, &["vma", "create", "-q", "a.vma", "-d", "drive-a=a.raw"]);
    diagnosed(at, &["a.vma"], 0, &["a vma backup archive", "drive-a"]);
    let value: serde_json::Value =
        serde_json::from_str(&good(at, &["doctor", "--output=json", "a.qcow2"])).unwrap();
    assert_eq!(value["verdict"], "whole");
    assert_eq!(value["format"], "qcow2");
    assert_eq!(value["virtual-size"], 8 << 20);
    assert_eq!(value["next"][0]["command"][0], "cowhand");
}

#[test]
fn the_doctor_is_shown_strange_things() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("empty"), "").unwrap();
    diagnosed(at, &["empty"], 3, &["an empty file", "nothing in it"]);
    fs::write(at.join("notes.txt"), "Buy milk.\n".repeat(100)).unwrap();
    diagnosed(at, &["notes.txt"], 3, &["text"]);
    fs::write(at.join("x.vmdk"), [b"KDMV".as_slice(), &[0; 2000]].concat()).unwrap();
    diagnosed(at, &["x.vmdk"], 3, &["vmdk", "VMDK"]);
    diagnosed(at, &["."], 1, &["is a folder", "cowhand scan"]);
    diagnosed(at, &["nowhere"], 1, &["nowhere: ", "No such file"]);
    diagnosed(at, &["/dev/null"], 1, &["/dev/null"]);
    assert!(Command::new("mkfifo").arg(at.join("pipe")).status().unwrap().success());
    diagnosed(at, &["pipe"], 1, &["pipe"]);
    symlink("nowhere", at.join("link")).unwrap();
    diagnosed(at, &["link"], 1, &["link"]);

    // Damage: refcounts that are gone, a header that makes no sense, an archive without its end.
    good(at, &["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "bad.qcow2", "8M"]);
    let mut bytes = fs::read(at.join("bad.qcow2")).unwrap();
    bytes[0x20000..0x20010].fill(0);
    fs::write(at.join("bad.qcow2"), &bytes).unwrap();
    let before = fs::read(at.join("bad.qcow2")).unwrap();
    diagnosed(at, &["bad.qcow2"], 2, &["bad.qcow2: DAMAGED", "cowhand check -r all bad.qcow2", "COPY"]);
    assert!(fs::read(at.join("bad.qcow2")).unwrap() == before);
    bytes[20..24].copy_from_slice(&[0, 0, 0, 99]);
    fs::write(at.join("worse.qcow2"), &bytes).unwrap();
    diagnosed(at, &["worse.qcow2"], 2, &["cluster_bits"]);
    good(at, &["create", "-q", "a.raw", "1M"]);
    good(at, &["vma", "create", "-q", "a.vma", "-d", "a=a.raw"]);
    let archive = fs::read(at.join("a.vma")).unwrap();
    fs::write(at.join("cut.vma"), &archive[..9000]).unwrap();
    diagnosed(at, &["cut.vma"], 2, &["--salvage cut.vma NEWDIR"]);

    // What nothing else claims is raw, and some of it is hardly a disk.
    let mut packed = Command::new("gzip").arg("-k").arg(at.join("bad.qcow2")).spawn().unwrap();
    assert!(packed.wait().unwrap().success());
    diagnosed(at, &["bad.qcow2.gz"], 3, &["LOOK", "packed with gzip", "gzip -dk -- bad.qcow2.gz"]);
    good(at, &["vma", "create", "-q", "a.vma.zst", "-d", "a=a.raw"]);
    let zst = fs::read(at.join("a.vma.zst")).unwrap();
    fs::write(at.join("cut.vma.zst"), &zst[..20]).unwrap();
    diagnosed(at, &["cut.vma.zst"], 3, &["LOOK", "packed with zstd", "cut off, or damaged"]);
    for (signature, what) in
        [("PK\x03\x04\x14\0", "zip"), ("\x7fELF\x02\x01\0", "program"), ("BZh91", "bzip2")]
    {
        fs::write(at.join("thing"), [signature.as_bytes(), &[1; 2000]].concat()).unwrap();
        diagnosed(at, &["thing"], 3, &["LOOK", what, "hardly a disk"]);
    }
    // An archive whose disks cannot be files here.
    good(at, &["vma", "create", "-q", "long.vma", "-d", &format!("{}=a.raw", "x".repeat(250))]);
    diagnosed(
        at,
        &["long.vma"],
        3,
        &["LOOK", "its name is longer than 255 bytes", "--salvage long.vma NEWDIR"],
    );
    good(at, &["vma", "extract", "-q", "--salvage", "long.vma", "NEWDIR"]);

    // What was left behind beside it, and terminal escapes in what a stranger wrote.
    fs::write(at.join(".a.raw.partial-12ab"), [0; 77]).unwrap();
    diagnosed(at, &["a.raw"], 3, &[".a.raw.partial-12ab (77 bytes)", "rm -r -- "]);
    good(at, &["create", "-q", "-u", "-f", "qcow2", "-b", "\u{1b}[2Jx", "-F", "raw", "esc.qcow2", "1M"]);
    let (_, page) = doctor(at, &["esc.qcow2"]);
    assert!(!page.contains('\u{1b}'), "{page}");
}

/// What it advises can be typed as it stands.
#[test]
fn the_doctors_advice_works() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    good(at, &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    fs::copy(at.join("base.qcow2"), at.join("-x.qcow2")).unwrap();
    diagnosed(at, &["--", "-x.qcow2"], 0, &["cowhand convert ./-x.qcow2 NEW.raw"]);

    let names = |name: &str, parent: &str| {
        good(at, &["create", "-q", "-u", "-f", "qcow2", "-b", parent, "-F", "qcow2", name, "1M"]);
    };
    names(
        "json.qcow2",
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"base.qcow2\"}}",
    );
    let (_, page) = doctor(at, &["json.qcow2"]);
    assert!(page.contains("LOOK") && !page.contains("--paths="), "{page}");
    // As QEMU leaves it there.
    names("file.qcow2", "file=base.qcow2");
    let mut bytes = fs::read(at.join("file.qcow2")).unwrap();
    let name = bytes.windows(15).position(|bytes| bytes == b"file=base.qcow2").unwrap();
    bytes[name + 4] = b':';
    fs::write(at.join("file.qcow2"), bytes).unwrap();
    diagnosed(at, &["file.qcow2"], 3, &["cowhand doctor '--paths=any' file.qcow2"]);
    diagnosed(at, &["--paths=any", "file.qcow2"], 3, &["stands on", "which is there"]);

    // A qcow2 does not remember which one its parent was.
    names("lost.qcow2", "gone.qcow2");
    diagnosed(at, &["lost.qcow2"], 2, &["cowhand reconnect-parent --force lost.qcow2 PARENT"]);
    good(at, &["reconnect-parent", "--force", "lost.qcow2", "base.qcow2"]);

    fs::write(at.join("secret"), "abc").unwrap();
    good(
        at,
        &[
            "create",
            "-q",
            "--key-file",
            "secret",
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.iter-time=10",
            "vault.qcow2",
            "1M",
        ],
    );
    diagnosed(at, &["vault.qcow2"], 0, &["cowhand convert --key-file SECRETFILE vault.qcow2 NEW.raw"]);
    good(at, &["convert", "--key-file", "secret", "vault.qcow2", "NEW.raw"]);
    // What it stands on is no secret.
    assert!(good(at, &["chain", "vault.qcow2"]).contains("vault.qcow2  qcow2, 1 MiB disk"));
    assert_eq!(good(at, &["allocated", "vault.qcow2"]), "0\n");
}

#[test]
fn the_doctor_opens_nothing_that_the_policy_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    good(at, &["create", "-q", "-u", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", "spy.qcow2", "1M"]);
    diagnosed(at, &["spy.qcow2"], 3, &["LOOK BEFORE", "/etc/hostname", "--paths"]);
}
