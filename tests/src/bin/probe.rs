//! One operation of the library in a process of its own, so that a test can limit its time, see its memory, and kill it.
//!
//! `probe read|info|check|repair|write PATH [name=value ...]`, `probe inspect PATH`, `probe convert|stream|take SOURCE TARGET`: the answer is
//! one line of JSON. `probe serve` runs other programs for a test.

// Part of the tests.
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cowhand::stream::{self, Deliver, From, Incoming, Stream, To};
use cowhand::{
    Access, Cache, Check, Compat, Convert, FileStorage, Kind, Lock, Open, Policy, Progress, Quiet, Repair,
    Result, inspect,
};
use serde_json::{Value, json};

/// The disk could be opened; what failed was reading it.
static OPENED: AtomicBool = AtomicBool::new(false);

/// Data that is read of one image; a hostile one may claim more than there is time for.
const MOST: u64 = 256 << 20;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args[0] == "serve" {
        return cowhand_tests::serve();
    }
    let path = Path::new(&args[1]);
    let began = Instant::now();
    let done = match args[0].as_str() {
        "read" => read(path, &how(&args[2..])),
        "info" => cowhand::info(path, &how(&args[2..]), true)
            .map(|infos| json!(infos.iter().map(cowhand::Info::to_json).collect::<Vec<_>>())),
        "check" => check(path, how(&args[2..]), Repair::Nothing),
        "repair" => check(path, how(&args[2..]), Repair::All),
        "write" => write(path, how(&args[2..])),
        "inspect" => inspect(path),
        "convert" => convert(path, Path::new(&args[2])),
        "stream" => stream(path, Path::new(&args[2])),
        "take" => take(path, Path::new(&args[2])),
        other => panic!("probe cannot '{other}'"),
    };
    let mut answer = json!({
        "ms": began.elapsed().as_millis() as u64,
        "cpu_ms": cpu_ms(),
        "peak_kib": peak_kib(),
    });
    match done {
        Ok(value) => answer["ok"] = value,
        Err(error) => {
            answer["kind"] = format!("{:?}", error.kind()).into();
            answer["opened"] = OPENED.load(Ordering::Relaxed).into();
            answer["message"] = error.to_string().into();
        }
    }
    println!("{answer}");
}

fn how(words: &[String]) -> Open {
    let mut how = Open::default();
    for word in words {
        let (name, value) = word.split_once('=').unwrap();
        match name {
            "format" => how.format = Some(value.to_owned()),
            "paths" => how.policy = Policy::parse(value).unwrap(),
            "parent_format" => how.parent_format = Some(value.to_owned()),
            "parent" => how.parent = cowhand::Parent::Given(value.into()),
            "snapshot" => how.snapshot = Some(value.to_owned()),
            other => panic!("probe knows no '{other}'"),
        }
    }
    how
}

fn read(path: &Path, how: &Open) -> Result<Value> {
    let disk = cowhand::open(path, how)?;
    OPENED.store(true, Ordering::Relaxed);
    let mut buf = vec![0; 1 << 20];
    let (mut at, mut done, mut extents) = (0, 0, 0_u64);
    while at < disk.size() {
        let found = disk.extent(at, disk.size() - at)?;
        extents += 1;
        let mut here = at;
        while found.kind == Kind::Data && here < at + found.len && done < MOST {
            let n = (at + found.len - here).min(buf.len() as u64);
            disk.read(here, &mut buf[..n as usize])?;
            here += n;
            done += n;
        }
        at += found.len;
    }
    Ok(json!({ "size": disk.size(), "extents": extents, "read": done }))
}

fn check(path: &Path, open: Open, repair: Repair) -> Result<Value> {
    let how = Check { open, repair, workers: 1 };
    let report = cowhand::check(path, &how, &Quiet)?.report.unwrap();
    let messages: Vec<_> = report.faults.iter().map(|fault| fault.message.clone()).collect();
    Ok(json!({
        "corruptions": report.corruptions,
        "leaks": report.leaks,
        "check_errors": report.check_errors,
        "messages": messages,
    }))
}

/// Opens for writing and writes a little.
fn write(path: &Path, open: Open) -> Result<Value> {
    let disk = cowhand::open(path, &Open { writable: true, ..open })?;
    OPENED.store(true, Ordering::Relaxed);
    disk.write(0, &[7; 4096])?;
    disk.close()?;
    Ok(Value::Null)
}

/// Says `half` when half is done, and then waits to be killed.
struct Pause;

impl Progress for Pause {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        if done * 2 >= total {
            println!("half");
            std::io::stdout().flush().unwrap();
            std::thread::sleep(Duration::from_secs(30));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// The report on a file, seen as a stream and as a storage: they must be the same.
fn inspect(path: &Path) -> Result<Value> {
    let failed = |error| cowhand::Error::io("cannot open", error);
    let mut stream = std::fs::File::open(path).map_err(failed)?;
    let streamed = inspect::inspect(&mut stream, Compat::Strict)?.to_json();
    let storage = FileStorage::open(path, Access::Read, Lock::None, Cache::Writeback)?;
    let stored = inspect::inspect_storage(&storage, Compat::Strict)?.to_json();
    assert_eq!(streamed, stored);
    Ok(streamed)
}

fn convert(source: &Path, target: &Path) -> Result<Value> {
    cowhand::convert(&Convert { workers: Some(1), ..Convert::new([source], target) }, &Pause)?;
    Ok(Value::Null)
}

/// An image as a VHD that is made while it is written.
fn stream(source: &Path, target: &Path) -> Result<Value> {
    #[derive(Debug)]
    struct Into(std::fs::File);
    impl Deliver for Into {
        fn name(&self) -> &str {
            "a file"
        }

        fn deliver(&mut self, body: &mut dyn Read, _len: Option<u64>) -> Result<()> {
            let done = std::io::copy(body, &mut self.0);
            done.map(|_| ()).map_err(|error| cowhand::Error::io("copying", error))
        }
    }
    let mut into = Into(std::fs::File::create(target).unwrap());
    let how = Stream {
        format: Some("vpc".to_owned()),
        options: cowhand::parse_option_string("force_size=on"),
        ..Stream::default()
    };
    let done = stream::stream(From::File(source), To::Bytes(&mut into), &how, &Quiet)?;
    Ok(done.to_json())
}

/// An image out of bytes that come in order.
fn take(source: &Path, target: &Path) -> Result<Value> {
    let bytes = Box::new(std::fs::File::open(source).unwrap());
    let from = From::Bytes(Incoming { name: "bytes".to_owned(), len: None, bytes });
    let done = stream::stream(from, To::File(target), &Stream::default(), &Quiet)?;
    Ok(done.to_json())
}

/// What this process took of the processors.
fn cpu_ms() -> u64 {
    // After the name in parentheses: the 12th and 13th word, in hundredths of a second.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let words: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].iter().map(|at| words[*at].parse::<u64>().unwrap() * 10).sum()
}

/// The most memory this process had at a time.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
