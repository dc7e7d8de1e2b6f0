//! How many command lines give the same as the real `qemu-img`'s: `cargo run -p cowhand-tests --bin drop-in [LIST...]`.

// Part of the tests.
#![allow(clippy::print_stdout)]

use cowhand_tests::{Tally, drop_in, drop_in_lists};

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let names = if asked.is_empty() { drop_in_lists() } else { asked };
    let mut all = Tally::default();
    let mut failed = false;
    for name in names {
        match drop_in(&name) {
            Ok(Tally { same, intended, open }) => {
                println!("{name:<12} {same:>4} the same, {intended:>3} differ as intended, {open:>3} open");
                all.open += open;
                all.same += same;
                all.intended += intended;
            }
            Err(failures) => {
                println!("{name}:\n{failures}");
                failed = true;
            }
        }
    }
    let Tally { same, intended, open } = all;
    println!("{:<12} {same:>4} the same, {intended:>3} differ as intended, {open:>3} open", "in all");
    std::process::exit(i32::from(failed));
}
