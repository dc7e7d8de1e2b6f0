//! Under the name `qemu-img`, the same words give the same as the real one's. The lists are `drop-in/*.txt`.

use cowhand_tests::{Tally, drop_in, drop_in_lists, qemu_version};

/// One list each, so that they run side by side.
macro_rules! lists {
    ($($name:ident),*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { same(stringify!($name)); })*
    };
}

lists!(
    amend, bench, bitmap, callers, check, commit, compare, compat, convert, create, dd, info, luks, map,
    measure, nodes, rebase, resize, secrets, snapshot, targets
);

fn same(name: &str) {
    // The text is that of one version.
    if qemu_version().0 != 10 {
        eprintln!("skipped: the peer is not qemu-img 10");
        return;
    }
    match drop_in(name) {
        Ok(tally) => {
            assert!(tally.same > 0, "a list without lines proves nothing");
            let Tally { same, intended, open } = tally;
            eprintln!("{name}: {same} the same, {intended} differ as intended, {open} open");
        }
        Err(failures) => panic!("\n{failures}"),
    }
}

#[test]
fn every_list_is_run() {
    assert_eq!(drop_in_lists(), NAMES);
}
