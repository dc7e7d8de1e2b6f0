//! One change of an image, cut off at every moment or with a failing input or output.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cowhand_core::testing::{Fault, Journal, Plan, fault_test};
use cowhand_core::{
    CheckOptions, CreateOptions, Folder, Format, Layer, MemoryFolder, NoFiles, OpenOptions, Quiet, Result,
    Storage,
};
use cowhand_qcow2::Qcow2;

use super::{how, named, qemu};

fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

/// An image named `disk` in a folder in memory, as `fill` left it.
fn made(
    text: &str,
    size: u64,
    parent: bool,
    fill: &impl Fn(&Arc<dyn Layer>) -> Result<()>,
) -> Arc<MemoryFolder> {
    let folder = Arc::new(MemoryFolder::new());
    let how = CreateOptions { parent: if parent { named("base", "raw") } else { None }, ..how(size, text) };
    let layer = Qcow2.create(folder.create_new("disk").unwrap(), &NoFiles, &how).unwrap();
    fill(&layer).unwrap();
    layer.close().unwrap();
    folder
}

/// Our own check finds leaks at most.
fn checked(file: Arc<dyn Storage>) -> std::result::Result<(), String> {
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = Qcow2.checker().unwrap().check(file, &NoFiles, &how, &Quiet).unwrap();
    let sound = report.corruptions == 0 && report.check_errors == 0;
    sound.then_some(()).ok_or_else(|| format!("{report:?}"))
}

/// Cuts the power in each step of `change`, over an image that `make` left; `judge` gets what is left, and the
/// mark: none before the change returned.
pub(crate) fn cut(
    text: &str,
    size: u64,
    parent: bool,
    fill: impl Fn(&Arc<dyn Layer>) -> Result<()>,
    change: impl Fn(&Arc<dyn Layer>) -> Result<()>,
    judge: impl Fn(&Arc<dyn Layer>, Option<u64>),
) {
    let folder = made(text, size, parent, &fill);
    let journal = Journal::over(&folder);
    let layer = reopen(journal.folder().open("disk", true).unwrap()).unwrap();
    change(&layer).unwrap();
    journal.mark(1);
    layer.close().unwrap();
    let samples = tempfile::tempdir().unwrap();
    let path = samples.path().join("state.qcow2");
    std::fs::write(samples.path().join("base"), [0; 512]).unwrap();
    let qemu = qemu();
    let mut states = 0;
    // A large run sees many more of the states that are chosen at random.
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let plan = if slow {
        Plan { random: 600, ..Plan::default() }
    } else {
        Plan { per_epoch: 50, ..Plan::default() }
    };
    for unit in [512, 4096] {
        for state in journal.states(&Plan { unit, ..plan.clone() }) {
            checked(state.file("disk").unwrap()).unwrap_or_else(|report| panic!("{text}: {report}\n{state}"));
            let layer = reopen(state.file("disk").unwrap())
                .unwrap_or_else(|error| panic!("{text}: does not open: {error}\n{state}"));
            let told = catch_unwind(AssertUnwindSafe(|| judge(&layer, state.mark())));
            assert!(told.is_ok(), "{text}: {state}");
            states += 1;
            if qemu && states % 97 == 7 {
                std::fs::write(&path, state.file("disk").unwrap().to_vec()).unwrap();
                let out = std::process::Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
                assert!(matches!(out.status.code(), Some(0 | 3)), "{text}: {out:?}\n{state}");
            }
        }
    }
    println!("{text}: {states} states");
    assert!(states > 5);
}

/// Lets each input and output of `change` fail in turn, over an image that `fill` left; `judge` gets what is left, opened
/// anew, and whether the change answered an error.
pub(crate) fn faults(
    text: &str,
    size: u64,
    parent: bool,
    fill: impl Fn(&Arc<dyn Layer>) -> Result<()>,
    change: impl Fn(&Arc<dyn Layer>) -> Result<()>,
    judge: impl Fn(&Arc<dyn Layer>, bool),
) {
    let template = made(text, size, parent, &fill);
    let samples = tempfile::tempdir().unwrap();
    let path = samples.path().join("state.qcow2");
    std::fs::write(samples.path().join("base"), [0; 512]).unwrap();
    let (qemu, seen) = (qemu(), RefCell::new(0));
    for fault in [Fault::EIO, Fault::ENOSPC, Fault::EIO.torn().forever()] {
        fault_test(
            fault,
            || {
                let world = MemoryFolder::new();
                for (name, file) in template.entries() {
                    world.insert(&name, Arc::new(file.snapshot()));
                }
                Arc::new(world)
            },
            |world, faults| {
                let folder = faults.folder(world.clone());
                let layer = reopen(folder.open("disk", true)?)?;
                let done = change(&layer);
                // What is in memory is to be right as well, and what it can still write.
                if let Err(error) = done {
                    let _ = layer.close();
                    return Err(error);
                }
                layer.close()
            },
            |world, error| {
                let file = world.open("disk", true)?;
                *seen.borrow_mut() += 1;
                if qemu && *seen.borrow() % 29 == 7 {
                    let mut all = vec![0; file.len().unwrap() as usize];
                    file.read_at(0, &mut all).unwrap();
                    std::fs::write(&path, all).unwrap();
                    let out = std::process::Command::new("qemu-img").arg("check").arg(&path).output()?;
                    assert!(matches!(out.status.code(), Some(0 | 3)), "{text}: {out:?}");
                }
                checked(file.clone()).unwrap_or_else(|report| panic!("{text}: {report}"));
                judge(&reopen(file)?, error.is_some());
                Ok(())
            },
        )
        .unwrap_or_else(|failure| panic!("{text}: {failure}"));
    }
}
