//! Foreign programs, each with a time limit and its output caught.
//!
//! They are not started by the test process itself: a process that forks while another of its threads has an image
//! open hands the image's locks to the child for a moment, and who opens that image next finds it locked. So some
//! helper processes (`probe serve`), started before any image is open, start what is to be run.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

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

/// Runs a program to its end, for at most a minute. Of `command` the program and its arguments count.
pub fn run(command: &mut Command) -> Ran {
    let answer = Helper::take().ask(&request(command, false));
    if let Some(error) = answer["failed"].as_str() {
        panic!("{command:?}: {error}");
    }
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let code = answer["code"].as_i64().and_then(|code| code.try_into().ok());
    Ran { code, out: text("out"), err: text("err") }
}

/// A program that runs until this is dropped; then it is killed.
#[derive(Debug)]
pub struct Background {
    helper: Helper,
    id: u32,
    /// The first line it printed.
    pub line: String,
}

impl Background {
    /// Starts it. With `line`, waits until it has printed one.
    pub fn start(command: &mut Command, line: bool) -> Background {
        let mut helper = Helper::take();
        let mut request = request(command, true);
        request["line"] = line.into();
        let answer = helper.ask(&request);
        let id = answer["id"].as_u64().unwrap_or_else(|| panic!("{command:?}: {answer}"));
        let line = answer["line"].as_str().unwrap_or_default().to_owned();
        Background { helper, id: id.try_into().unwrap(), line }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.helper.ask(&Value::Null);
    }
}

fn request(command: &Command, hold: bool) -> Value {
    let text = |text: &OsStr| text.to_str().expect("arguments in UTF-8").to_owned();
    let args: Vec<String> = command.get_args().map(text).collect();
    json!({ "program": text(command.get_program()), "args": args, "hold": hold })
}

/// A helper process, given back when this is dropped.
#[derive(Debug)]
struct Helper(Option<Pipes>);

#[derive(Debug)]
struct Pipes {
    /// It ends by itself when its input ends, which is when this process does.
    _process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

#[derive(Debug)]
struct Pool {
    idle: Mutex<Vec<Pipes>>,
    given_back: Condvar,
}

/// Starts the helpers, once. To be called before an image is opened.
pub(crate) fn start_helpers() {
    pool();
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let helpers = 2 * thread::available_parallelism().map_or(2, usize::from) + 6;
        Pool { idle: Mutex::new((0..helpers).map(|_| Pipes::start()).collect()), given_back: Condvar::new() }
    })
}

/// This package's program, which Cargo puts beside the folder of the test programs.
pub fn probe_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().find(|folder| folder.join("probe").is_file());
    folder.expect("the program 'probe' of this package, built with its tests").join("probe")
}

/// The program `cowhand`, which a build of the whole workspace puts beside [`probe_program`]. Panics where it is not
/// there or older than what it is made of: Cargo builds no program of another package for a test.
pub fn cowhand_program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let program = probe_program().with_file_name("cowhand");
        let made = std::fs::metadata(&program).and_then(|found| found.modified());
        let made = made.unwrap_or_else(|error| panic!("{}: {error}; {BUILD}", program.display()));
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("crates");
        assert!(newest(&crates) <= made, "{} is older than its sources; {BUILD}", program.display());
        program
    };
    PROGRAM.get_or_init(find).clone()
}

const BUILD: &str = "cargo build -p cowhand-cli builds it, and scripts/test does";

/// When a source below this folder was last changed.
fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let dates = entries.filter(|entry| entry.file_name() != "tests").map(|entry| {
        let kind = entry.file_type().unwrap();
        let is_source = entry.path().extension().is_some_and(|extension| extension == "rs");
        match (kind.is_dir(), is_source) {
            (true, _) => newest(&entry.path()),
            (false, true) => entry.metadata().unwrap().modified().unwrap(),
            (false, false) => SystemTime::UNIX_EPOCH,
        }
    });
    dates.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Pipes {
    fn start() -> Pipes {
        let mut command = Command::new(probe_program());
        command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Pipes { _process: child, to, from: BufReader::new(from) }
    }
}

impl Helper {
    fn take() -> Helper {
        let pool = pool();
        let mut idle = pool.idle.lock().unwrap();
        loop {
            match idle.pop() {
                Some(pipes) => return Helper(Some(pipes)),
                None => idle = pool.given_back.wait(idle).unwrap(),
            }
        }
    }

    fn ask(&mut self, request: &Value) -> Value {
        let pipes = self.0.as_mut().unwrap();
        writeln!(pipes.to, "{request}").unwrap();
        let mut line = String::new();
        pipes.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let pool = pool();
        pool.idle.lock().unwrap().extend(self.0.take());
        pool.given_back.notify_one();
    }
}

/// The helper's side: runs what it is asked to, a line of JSON for each, until its input ends.
pub fn serve() {
    let mut held: Option<Child> = None;
    for line in std::io::stdin().lines() {
        let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = if request.is_null() { Ok(json!({})) } else { obey(&request, &mut held) };
        if request.is_null() {
            end(&mut held);
        }
        let answer = answer.unwrap_or_else(|error| json!({ "failed": error.to_string() }));
        let mut out = std::io::stdout();
        writeln!(out, "{answer}").unwrap();
        out.flush().unwrap();
    }
    end(&mut held);
}

fn end(held: &mut Option<Child>) {
    if let Some(mut child) = held.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn obey(request: &Value, held: &mut Option<Child>) -> std::io::Result<Value> {
    let mut command = Command::new(request["program"].as_str().unwrap());
    command.args(request["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()));
    command
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    if request["hold"] == true {
        let mut line = String::new();
        if request["line"] == true {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let id = child.id();
        *held = Some(child);
        return Ok(json!({ "id": id, "line": line }));
    }
    let read_all = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    };
    thread::scope(|scope| {
        let out = scope.spawn(move || read_all(&mut stdout));
        let err = scope.spawn(move || read_all(&mut stderr));
        let code = wait(&mut child)?;
        Ok(json!({ "code": code, "out": out.join().unwrap(), "err": err.join().unwrap() }))
    })
}

fn wait(child: &mut Child) -> std::io::Result<Option<i32>> {
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if began.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(std::io::Error::other(format!("still ran after {LIMIT:?}")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
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
    let mut ran = run(&mut command);
    // Under load it sometimes meets its own lock on a file that it has just made and nobody else knows.
    let makes = command.get_args().next().is_some_and(|verb| verb == "create" || verb == "convert");
    if makes && ran.err.contains("Failed to get \"resize\" lock") {
        ran = run(&mut command);
    }
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
    let failed =
        ["failed", "error", "Error"].iter().any(|word| ran.out.contains(word) || ran.err.contains(word));
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
