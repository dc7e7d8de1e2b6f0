//! What must hold of a check and a repair of any bytes: a check changes nothing; a repair makes nothing worse, loses
//! nothing that could be read but what it names, and what is clean afterwards can be read whole.

use std::sync::Arc;

use cowhand::{CheckOptions, Format, Layer, NoFiles, OpenOptions, Quiet, Repair, Report, Storage};

use crate::layer::refused;
use crate::mutate::Random;
use crate::printable;
use crate::writing::{Window, content, watch};

/// Checks what `storage` holds and repairs `copy`, which is the same. False where it cannot be checked.
pub(crate) fn check(
    format: &dyn Format,
    storage: &Arc<dyn Storage>,
    copy: &Arc<dyn Storage>,
    random: &mut Random,
) -> bool {
    let checker = format.checker().expect("the format has a checker");
    let run = |storage: &Arc<dyn Storage>, repair| {
        let how = CheckOptions { repair, workers: 1, ..CheckOptions::default() };
        let report = checker.check(Arc::clone(storage), &NoFiles, &how, &Quiet)?;
        report.faults.iter().for_each(|fault| printable(&cowhand::Printable(&fault.message).to_string()));
        Ok(report)
    };
    let before = storage.identity().expect("memory has an identity");
    let first = match run(storage, Repair::Nothing) {
        Ok(report) => report,
        Err(error) => {
            refused(&error);
            return false;
        }
    };
    assert_eq!(storage.identity().expect("memory has an identity"), before, "a check has written");
    let open =
        |storage: &Arc<dyn Storage>| format.open(Arc::clone(storage), &NoFiles, &OpenOptions::default());
    let windows = open(storage).map_or_else(|_| Vec::new(), |layer| watch(&*layer, random));
    let repaired = match run(copy, Repair::All) {
        Ok(report) => report,
        Err(error) => {
            refused(&error);
            return true;
        }
    };
    let again = run(copy, Repair::Nothing).expect("what was repaired can be checked");
    let counts = |report: &Report| (report.corruptions, report.leaks, report.check_errors);
    assert_eq!(
        counts(&again),
        counts(&repaired),
        "a second check sees something else: {first:?} {repaired:?}"
    );
    assert!(
        again.corruptions <= first.corruptions && again.check_errors <= first.check_errors,
        "it is worse: {first:?} {again:?}"
    );
    if !windows.is_empty() {
        let layer = open(copy).unwrap_or_else(|error| panic!("it does not open any more: {error}"));
        compare(&*layer, &windows, &repaired);
        if again.is_clean() {
            for window in &windows {
                content(&*layer, window.at, window.len).expect("what is clean can be read");
            }
        }
    }
    true
}

/// What could be read reads the same, but for what is said to be lost; a report that is full may not name all.
fn compare(layer: &dyn Layer, windows: &[Window], report: &Report) {
    let range = |message: &str| {
        let (range, _) = message.strip_prefix("guest bytes ")?.split_once(" are lost")?;
        let (from, to) = range.split_once(" to ")?;
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?))
    };
    let lost: Vec<_> = report.faults.iter().filter_map(|fault| range(&fault.message)).collect();
    for window in windows {
        let end = window.at + window.len;
        let named = lost.iter().any(|(from, to)| *from < end && window.at <= *to);
        let Some(held) = window.holds.as_ref().filter(|_| !named && report.faults.len() < 1000) else {
            continue;
        };
        let now = content(layer, window.at, window.len).expect("what could be read can be");
        assert!(*held == now, "the guest's bytes at {} changed: {report:?}", window.at);
    }
}
