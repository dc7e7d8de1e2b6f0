//! Called `vhd-util`: real images of XenServer's, and images on devices, as its storage managers on LVM keep them.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use cowhand_tests::{Loop, cowhand_program, run, samples};

/// Runs the tool in a folder, and answers its status and what it printed.
fn tool(dir: &Path, line: &str) -> (i32, String) {
    let link = dir.join("vhd-util");
    if !link.exists() {
        symlink(cowhand_program(), &link).unwrap();
    }
    // No pattern is the shell's.
    let line = format!("set -f; cd '{}' && TZ=UTC ./vhd-util {line}", dir.display());
    let ran = run(Command::new("sh").args(["-c", &line]));
    assert!(ran.err.is_empty(), "{line}: {}", ran.err);
    (ran.code.unwrap(), ran.out)
}

fn says(dir: &Path, line: &str) -> String {
    let (status, out) = tool(dir, line);
    assert_eq!(status, 0, "{line}: {out}");
    out
}

#[test]
fn xenserver_s_own_images() {
    let all = samples();
    let of = |name: &str| all.iter().find(|sample| sample.path.ends_with(name));
    let (Some(base), Some(snap)) = (of("xs-base.vhd"), of("xs-snap1.vhd")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = std::fs::canonicalize(dir.path()).unwrap();
    for sample in [base, snap] {
        std::fs::copy(&sample.file, folder.join(sample.file.file_name().unwrap())).unwrap();
    }
    let len = |name: &str| std::fs::metadata(folder.join(name)).unwrap().len();
    let (base_len, snap_len) = (len("xs-base.vhd"), len("xs-snap1.vhd"));
    assert_eq!(
        says(&folder, "query --debug -vsfSp -n xs-base.vhd"),
        format!("512\n{base_len}\nxs-base.vhd has no parent\nhidden: 1\n2048\n")
    );
    assert_eq!(
        says(&folder, "query --debug -vsfdp -n xs-snap1.vhd"),
        format!("512\n{snap_len}\n{}\nhidden: 0\nchain depth: 2\n", folder.join("xs-base.vhd").display())
    );
    assert_eq!(
        says(&folder, "scan -f -m xs-*.vhd"),
        format!(
            "vhd=xs-base.vhd capacity=536870912 size={base_len} hidden=1 parent=none\n\
             vhd=xs-snap1.vhd capacity=536870912 size={snap_len} hidden=0 parent=xs-base.vhd\n"
        )
    );
    assert_eq!(says(&folder, "check -p -n xs-snap1.vhd"), "xs-snap1.vhd is valid\nxs-base.vhd is valid\n");
    let told = says(&folder, "read --debug -p -n xs-snap1.vhd");
    for line in [
        "Disk type           : Differencing hard disk",
        "       decoded name : ./xs-base.vhd",
        "Creator Application : 'tap'",
    ] {
        assert!(told.lines().any(|is| is == line), "{line}\n{told}");
    }
    assert!(!told.contains("(Bad!)"), "{told}");
    // What the child holds goes down, and the base shows what the child did.
    let held = says(&folder, "coalesce --debug -n xs-snap1.vhd");
    assert!(
        held.starts_with("Coalesced ") && held.ends_with(" sectors") && held != "Coalesced 0 sectors",
        "{held}"
    );
    let (image, raw) = (folder.join("xs-base.vhd"), folder.join("disk.raw"));
    let words = ["convert", "-f", "vpc", "-O", "raw"];
    assert!(run(Command::new(cowhand_program()).args(words).args([&image, &raw])).ok());
    let sum = run(Command::new("sha256sum").arg(&raw));
    assert_eq!(sum.out.split(' ').next(), Some(&*snap.sha256_guest));
    assert_eq!(says(&folder, "check -n xs-base.vhd"), "xs-base.vhd is valid\n");
    assert_eq!(says(&folder, "resize -n xs-base.vhd -s 700 -f"), "");
    assert_eq!(says(&folder, "resize -n xs-base.vhd -s 3001 -j journal"), "");
    assert_eq!(says(&folder, "query -vS -n xs-base.vhd"), "3002\n3002\n");
    assert_eq!(says(&folder, "check -n xs-base.vhd"), "xs-base.vhd is valid\n");
}

#[test]
fn images_on_devices() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, len: u64| {
        let path = dir.path().join(name);
        // What a device holds is whatever it held before.
        std::fs::write(&path, vec![0xa5; len as usize]).unwrap();
        path
    };
    let (one, two, three) = (file("one", 24 << 20), file("two", 24 << 20), file("three", 6 << 20));
    let (Some(one), Some(two), Some(journal)) = (Loop::over(&one), Loop::over(&two), Loop::over(&three))
    else {
        return;
    };
    let [a, b, j] = [&one, &two, &journal].map(|device| device.0.display().to_string());
    let dir = dir.path();
    assert_eq!(says(dir, &format!("create --debug -n {a} -s 8")), "");
    assert_eq!(says(dir, &format!("query -vfp -n {a}")), format!("8\n{a} has no parent\nhidden: 0\n"));
    assert_eq!(says(dir, &format!("check -n {a}")), format!("{a} is valid\n"));
    says(dir, &format!("fill -n {a}"));
    assert_eq!(says(dir, &format!("query -a -n {a}")), "4\n");
    assert_eq!(says(dir, &format!("snapshot --debug -n {b} -p {a}")), "");
    assert_eq!(says(dir, &format!("query -pd -n {b}")), format!("{a}\nchain depth: 2\n"));
    // The footer moves where the volume is to end, and the journal is a volume too.
    let used: u64 = says(dir, &format!("query -s -n {b}")).trim().parse().unwrap();
    assert!(used < 1 << 20, "{used}");
    assert_eq!(says(dir, &format!("modify --debug -s {} -n {b}", 8 << 20)), "");
    assert_eq!(says(dir, &format!("resize --debug -s 12 -n {b} -j {j}")), "");
    assert_eq!(says(dir, &format!("query -v -n {b}")), "12\n");
    // What has ended is not taken back.
    assert_eq!(tool(dir, &format!("revert -n {b} -j {j}")), (0, String::new()));
    assert_eq!(says(dir, &format!("query -v -n {b}")), "12\n");
    assert_eq!(says(dir, &format!("check -p -n {b}")), format!("{b} is valid\n{a} is valid\n"));
}
