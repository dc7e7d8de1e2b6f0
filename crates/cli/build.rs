//! Links the released program without shared libraries where this machine can: `qemu-img info` is called thousands of
//! times a day, and loading them is half of what a start takes.
//!
//! rustc's own `+crt-static` cannot be asked for here: given for all of a build it hinders the procedural macros, and
//! given for a target it moves the program to another folder. So the names under which rustc asks for the system's
//! libraries lead to the static ones. `COWHAND_LINK=dynamic` leaves everything as rustc does it, and so does a machine on
//! which a small program cannot be made and run that way.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// Each library by the name that rustc knows, and what it is made of.
const LIBRARIES: [(&str, &str); 3] = [
    ("gcc_s", "GROUP(-l:libgcc_eh.a -l:libgcc.a -l:libc.a)"),
    ("m", "GROUP(-l:libm.a -l:libc.a)"),
    ("c", "GROUP(-l:libc.a -l:libgcc_eh.a -l:libgcc.a)"),
];

/// Uses what the program uses: threads, unwinding's library, a function of libm.
const TRIAL: &str = "
#include <math.h>
#include <pthread.h>
static void *work(void *given) { *(double *)given = pow(*(double *)given, 0.5); return given; }
int main(int argc, char **argv) {
    pthread_t thread;
    double number = 4.0 * argc * argc;
    if (pthread_create(&thread, 0, work, &number) || pthread_join(thread, 0)) return 1;
    return number == 2.0 * argc ? 0 : 1;
}
";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=COWHAND_LINK");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let native = env::var("HOST").ok() == env::var("TARGET").ok();
    let released =
        is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if !released || !native || is("COWHAND_LINK", "dynamic") {
        return;
    }
    let Ok(folder) = env::var("OUT_DIR") else { return };
    if works(Path::new(&folder)) {
        println!("cargo::rustc-link-arg-bins=-L{folder}");
        println!("cargo::rustc-link-arg-bins=-static-pie");
    }
}

/// Makes the folder that leads to the static libraries, and tries it.
fn works(folder: &Path) -> bool {
    let written = LIBRARIES
        .iter()
        .map(|(name, made_of)| (format!("lib{name}.so"), *made_of))
        .chain([("trial.c".to_owned(), TRIAL)])
        .all(|(name, text)| std::fs::write(folder.join(name), text).is_ok());
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let trial = folder.join("trial");
    let succeeds = |command: &mut Command| {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    written
        && succeeds(
            Command::new(linker)
                .arg("-fPIE")
                .arg(folder.join("trial.c"))
                .args(["-Wl,-Bdynamic", "-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"])
                .arg("-L")
                .arg(folder)
                .args(["-pie", "-nodefaultlibs", "-static-pie", "-o"])
                .arg(&trial),
        )
        && succeeds(&mut Command::new(trial))
}
