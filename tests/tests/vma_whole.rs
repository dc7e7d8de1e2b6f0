//! What `create` and `extract` make is whole or not there: after a kill, on a full disk, from a source that ends early.

use std::path::{Path, PathBuf};

use cowhand_tests::{Content, Mirror, VmaFile, temp, vma_strict};

use crate::vma::{cowhand, good, names, save, shell, text};

const MIB: u64 = 1 << 20;

fn disks(folder: &Path) -> [PathBuf; 2] {
    [
        Content::random("a", 20 * MIB, 1).raw_in(folder),
        Content::striped("b", 30 * MIB, 64 << 10, 2).raw_in(folder),
    ]
}

/// Kills it after so many milliseconds, or lets it end.
fn killed(folder: &Path, after: f64, command: &str) -> bool {
    let script = format!("\"$0\" {command} & pid=$!; sleep {after}; kill -9 $pid 2>/dev/null; wait $pid");
    !shell(folder, &script).ok()
}

#[test]
fn killed_at_any_moment() {
    let (folder, place) = (temp(), temp());
    let [a, b] = disks(folder.path());
    let conf = folder.path().join("qemu-server.conf");
    std::fs::write(&conf, "memory: 512\n").unwrap();
    let sound = folder.path().join("sound.vma");
    let create = |target: &str| {
        format!("vma create -c '{}' -d 'a={}' -d 'b={}' {target}", text(&conf), text(&a), text(&b))
    };
    assert!(shell(folder.path(), &format!("\"$0\" {}", create("sound.vma"))).ok());
    let (mut kills, mut ends) = (0, 0);
    for n in 0..14 {
        let after = f64::from(n) * 0.006;
        for target in ["t.vma", "t.vma.zst"] {
            let was = killed(place.path(), after, &create(target));
            let path = place.path().join(target);
            if path.exists() {
                good(&["vma", "verify", &text(&path)]);
                if target == "t.vma" {
                    vma_strict(&mut std::fs::File::open(&path).unwrap()).unwrap();
                }
                std::fs::remove_file(&path).unwrap();
            } else {
                assert!(was, "it ended, and there is no archive");
            }
            (kills, ends) = if was { (kills + 1, ends) } else { (kills, ends + 1) };
            // Nothing but a name that nobody takes for an archive, and that is in nobody's way.
            for left in names(place.path()) {
                assert!(left.starts_with('.') && left.contains("partial"), "{left}");
                std::fs::remove_file(place.path().join(left)).unwrap();
            }
        }
        let was = killed(place.path(), after, &format!("vma extract '{}' out", text(&sound)));
        let out = place.path().join("out");
        for (name, raw) in [("disk-a.raw", &a), ("disk-b.raw", &b)] {
            let path = out.join(name);
            if path.exists() {
                Mirror::of_file(raw).assert_same(&Mirror::of_file(&path), name);
            } else {
                assert!(was, "it ended, and there is no disk");
            }
        }
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        for left in names(place.path()) {
            assert!(left.starts_with('.') && left.contains("partial"), "{left}");
            std::fs::remove_dir_all(place.path().join(left)).unwrap();
        }
    }
    assert!(kills > 2, "{kills} were killed, {ends} ended");
}

/// Files may have so many bytes and no more: what a full disk does to whoever writes.
#[test]
fn no_room() {
    let (folder, place) = (temp(), temp());
    let [a, b] = disks(folder.path());
    let sound = folder.path().join("sound.vma");
    good(&[
        "vma",
        "create",
        "-d",
        &format!("a={}", text(&a)),
        "-d",
        &format!("b={}", text(&b)),
        &text(&sound),
    ]);
    for blocks in [0, 1, 100, 20_000, 60_000] {
        let limited = |command: &str| {
            let script = format!("trap '' XFSZ; ulimit -f {}; \"$0\" {command}", blocks / 2);
            shell(place.path(), &script)
        };
        let images = format!("-d 'a={}' -d 'b={}'", text(&a), text(&b));
        for command in [
            format!("vma create {images} t.vma"),
            format!("vma create {images} t.vma.zst"),
            format!("vma extract '{}' out", text(&sound)),
            format!("vma extract -O qcow2 '{}' out", text(&sound)),
        ] {
            let ran = limited(&command);
            if ran.ok() {
                // The small one of two fits.
                assert!(blocks >= 60_000 && !command.ends_with("t.vma"), "{blocks}: {command}");
            } else {
                assert_eq!(ran.code, Some(1), "{ran:?}");
                assert!(ran.err.starts_with("cowhand: ") && ran.err.lines().count() == 1, "{}", ran.err);
                assert!(names(place.path()).is_empty(), "{command}: {:?}", names(place.path()));
            }
            for left in names(place.path()) {
                let left = place.path().join(left);
                let _ = std::fs::remove_dir_all(&left).or_else(|_| std::fs::remove_file(&left));
            }
        }
    }
    for command in ["vma create -d a=a.raw /dev/stdout >/dev/full", "vma list sound.vma >/dev/full"] {
        let ran = shell(folder.path(), &format!("\"$0\" {command}"));
        assert_eq!(ran.code, Some(1), "{command}: {ran:?}");
        assert!(ran.err.contains("No space left"), "{command}: {ran:?}");
    }
}

/// What reads the archive ends early; what the archive is made of changes or ends early.
#[test]
fn ends_that_come_early() {
    let folder = temp();
    let [a, _] = disks(folder.path());
    let ran = shell(folder.path(), "\"$0\" vma create -d a=a.raw /dev/stdout | head -c 100000 | wc -c");
    assert!(ran.out.contains("100000") && !ran.err.contains("panicked"), "{ran:?}");
    // An image that is shorter than it says.
    let image = folder.path().join("cut.qcow2");
    cowhand_tests::qemu_img([
        "convert",
        "-O",
        "qcow2",
        "-f",
        "raw",
        a.to_str().unwrap(),
        image.to_str().unwrap(),
    ]);
    std::fs::File::options().write(true).open(&image).unwrap().set_len(8 << 20).unwrap();
    for target in ["t.vma", "t.vma.zst"] {
        let target = folder.path().join(target);
        let ran = cowhand(&["vma", "create", "-d", &format!("a={}", text(&image)), &text(&target)]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(!target.exists());
    }
    // An archive that ends in the middle of the pipe.
    let (built, path) = save(folder.path(), &VmaFile::new("whole").disk("a", 3 * MIB));
    for cut in [1000, 12_800, 13_000, built.bytes.len() - 1] {
        let script = format!("head -c {cut} '{}' | \"$0\" vma extract - out", text(&path));
        let ran = shell(folder.path(), &script);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(!folder.path().join("out").exists(), "cut at {cut}: {:?}", names(&folder.path().join("out")));
    }
}
