//! Foreign programs, each with a time limit and its output caught.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// How a program ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit status; `None`: a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Exit status 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs a program to its end, for at most a minute.
pub fn run(command: &mut Command) -> Ran {
    let shown = format!("{command:?}");
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read_all = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    };
    thread::scope(|scope| {
        let out = scope.spawn(move || read_all(&mut stdout));
        let err = scope.spawn(move || read_all(&mut stderr));
        let code = wait(&mut child, &shown);
        Ran { code, out: out.join().unwrap(), err: err.join().unwrap() }
    })
}

fn wait(child: &mut Child, shown: &str) -> Option<i32> {
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if began.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("still ran after {LIMIT:?}: {shown}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts it.
    pub fn start(command: &mut Command) -> Background {
        Background(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `qemu-img`, whatever comes of it.
pub fn try_qemu_img<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ran {
    run(Command::new("qemu-img").args(args))
}

/// Runs `qemu-img`, which must succeed; answers its output.
pub fn qemu_img<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new("qemu-img");
    command.args(args);
    let ran = run(&mut command);
    assert!(ran.ok(), "{command:?} failed:\n{}{}", ran.out, ran.err);
    ran.out
}

/// Runs `qemu-io` with these arguments before the file and these commands; all must succeed.
pub fn qemu_io<A: AsRef<OsStr>, C: AsRef<str>>(
    args: impl IntoIterator<Item = A>,
    file: impl AsRef<OsStr>,
    commands: impl IntoIterator<Item = C>,
) {
    let mut command = Command::new("qemu-io");
    command.args(args);
    for each in commands {
        command.arg("-c").arg(each.as_ref());
    }
    command.arg(file);
    let ran = run(&mut command);
    let failed = ["failed", "error", "Error"].iter().any(|word| ran.out.contains(word) || ran.err.contains(word));
    assert!(ran.ok() && !failed, "{command:?} failed:\n{}{}", ran.out, ran.err);
}

/// The version of the peer's tools, as (major, minor).
pub fn qemu_version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let text = qemu_img(["--version"]);
        let number = text.split_whitespace().nth(2).unwrap_or_default();
        let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    })
}
