//! Replays the fuzzers' corpus, and a number of small changes to each of its inputs that is the same in every run.
//! `MUTATIONS=100000` tries more of them; an input that fails is written to the folder for temporary files.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cowhand_fuzz_oracle::mutate::{Random, mutate};
use cowhand_fuzz_oracle::{Oracle, TARGETS};

// Refused of the unchanged ones: a data file that may not be opened, and a VHD without its footer's copy in front, which
// a guest could have written into a raw disk.

/// Peak memory of this test in MiB, at most: 256 for the images and what is around them.
const MEMORY: u64 = 320;

#[test]
fn qcow2() {
    replay("qcow2", 400);
}

#[test]
fn qcow2_write() {
    replay("qcow2-write", 400);
}

#[test]
fn vhd() {
    replay("vhd", 800);
}

#[test]
fn vhd_stream() {
    replay("vhd-stream", 150);
}

#[test]
fn vhd_check() {
    replay("vhd-check", 800);
}

#[test]
fn vhdx() {
    replay("vhdx", 400);
}

#[test]
fn vhdx_check() {
    replay("vhdx-check", 300);
}

#[test]
fn vhdx_write() {
    replay("vhdx-write", 300);
}

#[test]
fn vma() {
    replay("vma", 150);
}

#[test]
fn vma_index() {
    replay("vma-index", 100);
}

#[test]
fn packed() {
    replay("packed", 40);
}

#[test]
fn inspect() {
    replay("inspect", 4);
}

fn replay(target: &str, mutations: u64) {
    let (_, oracle) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let mutations = std::env::var("MUTATIONS").map_or(mutations, |text| text.parse().unwrap());
    let seeds = corpus(target);
    assert!(seeds.len() >= 5, "the corpus of {target} has {} inputs", seeds.len());
    let (mut opened, mut tried, mut failed) = (0, 0, 0);
    for seed in &seeds {
        let original = fs::read(seed).unwrap();
        let opens = try_input(seed, 0, &original, oracle).expect("the unchanged input passes");
        let refused = ["data-file", "no-copy"].contains(&name(seed).as_str());
        assert!(
            // What is dirty or marked corrupt opens, and is not written; what does not open may be checked.
            // Of a stream little is forgiven, and of a kept index.
            ["inspect", "qcow2-write", "vhd-stream", "vhd-check", "vhdx-check", "vhdx-write", "vma-index"]
                .contains(&target)
                || name(seed).starts_with("found-")
                || opens != refused,
            "opens: {opens}: {}",
            seed.display()
        );
        for number in 1..=mutations {
            let mut input = original.clone();
            mutate(&mut input, &mut Random::new(format!("{}/{number}", name(seed)).as_bytes()));
            match try_input(seed, number, &input, oracle) {
                Some(opens) => opened += u64::from(opens),
                None => failed += 1,
            }
            tried += 1;
        }
    }
    assert_eq!(failed, 0, "of {tried} changed inputs");
    let peak = peak_memory();
    assert!(peak <= MEMORY, "{peak} MiB of memory were used");
    println!(
        "{target}: {} inputs, {tried} changed ones of which {opened} open or are safe, {peak} MiB",
        seeds.len()
    );
    assert!(
        tried == 0 || opened * if ["vhd-stream", "vma-index"].contains(&target) { 100 } else { 10 } > tried,
        "nearly all changes are refused at the door: nothing is tested"
    );
}

/// Whether the image opens; nothing where the oracle objects.
fn try_input(seed: &Path, number: u64, input: &[u8], oracle: Oracle) -> Option<bool> {
    let result = catch_unwind(AssertUnwindSafe(|| oracle(input))).ok();
    if result.is_none() {
        let file = std::env::temp_dir().join(format!("cowhand-{}-{number}.input", name(seed)));
        fs::write(&file, input).unwrap();
        eprintln!("change {number} of {} fails; the input is {}", seed.display(), file.display());
    }
    result
}

fn corpus(target: &str) -> Vec<PathBuf> {
    // What is written is what is read: one corpus for both.
    let folder = target.split('-').next().unwrap_or(target);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(folder);
    let mut seeds: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    seeds
}

fn name(seed: &Path) -> String {
    seed.file_name().unwrap().to_string_lossy().into_owned()
}

/// The most memory this process has had, in MiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
