//! What commit, rebase and compact leave when the power is cut, or an input or output fails, at any moment: the disk's content,
//! and a chain on which they can be run again.

use std::sync::Arc;

use cowhand_core::testing::{Failure, Fault, Faults, Io, Journal, Plan, Rng, fault_test};
use cowhand_core::{
    CreateOptions, Erase, Folder, Image, Link, MemoryFolder, NoFiles, OpenOptions, Options, ParentRef, Quiet,
    Result,
};

use crate::commit::{Committed, commit_chain};
use crate::compact::compact_chain;
use crate::kinship::must_be_told;
use crate::rebase::rebase_chain;
use crate::registry;

/// A file of a chain: name, format, options, guest bytes.
type File = (&'static str, &'static str, &'static str, u64);

const K: u64 = 1 << 10;

fn open(folder: &dyn Folder, files: &[File], writable: &[&str]) -> Result<Image> {
    let link = |(name, format, ..): &File| {
        let writable = writable.contains(name);
        let how = OpenOptions { writable, ..OpenOptions::default() };
        let layer = registry::format(format)?.open(folder.open(name, writable)?, &NoFiles, &how)?;
        Ok(Link { layer, name: (*name).to_owned(), format })
    };
    Image::new(files.iter().map(link).collect::<Result<_>>()?)
}

/// What a child has to remember of the first of these files, which stands on the others.
fn remembered(folder: &dyn Folder, below: &[File]) -> Result<Option<ParentRef>> {
    let Some((name, format, ..)) = below.first() else { return Ok(None) };
    let layer = open(folder, below, &[])?.top().layer.clone();
    Ok(Some(ParentRef {
        candidates: vec![(*name).into()],
        format: Some((*format).to_owned()),
        expected: layer.identity().0.into_iter().collect(),
        sector: Some(layer.sector()),
        disk_id: layer.disk_id(),
        ..ParentRef::default()
    }))
}

/// Makes the chain, top first, with something written at random into each layer.
fn chain(files: &[File], seed: u64) -> Arc<MemoryFolder> {
    let folder = Arc::new(MemoryFolder::new());
    let mut rng = Rng::new(seed);
    for (index, (name, format, options, size)) in files.iter().enumerate().rev() {
        let format = registry::format(format).unwrap();
        let parent = remembered(folder.as_ref(), &files[index + 1..]).unwrap();
        let options = Options::check(format.options(), &cowhand_core::parse_option_string(options)).unwrap();
        let how = CreateOptions { size: *size, options, parent, ..CreateOptions::default() };
        format.create(folder.create_new(name).unwrap(), &NoFiles, &how).unwrap().close().unwrap();
        let image = open(folder.as_ref(), &files[index..], &[name]).unwrap();
        for _ in 0..16 {
            let len = (1 + rng.below(24)) * 512;
            let at = rng.below((size - len) / 512 + 1) * 512;
            match rng.below(4) {
                0 => image.erase(at, len, Erase::Free).unwrap(),
                1 => image.write(at, &vec![9; len as usize]).unwrap(),
                _ => image.write(at, &vec![rng.any() as u8; len as usize]).unwrap(),
            }
        }
        image.close().unwrap();
    }
    folder
}

/// Each layer that remembers who its parent is has that one below.
fn is_linked(image: &Image) -> Result<(), Failure> {
    for pair in image.links().windows(2) {
        let named = pair[0].layer.parent().unwrap_or_default();
        let id = pair[1].layer.identity().0;
        if !named.expected.is_empty() && !id.is_some_and(|id| named.expected.contains(&id)) {
            let (child, parent) = (&pair[0].name, &pair[1].name);
            return Err(Failure::new(format!("'{child}' takes '{parent}' for another file")));
        }
    }
    Ok(())
}

fn content(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = vec![0; image.size() as usize];
    image.read(0, &mut bytes)?;
    Ok(bytes)
}

fn expect(image: &Image, wanted: &[u8], what: &str) -> Result<(), Failure> {
    is_linked(image)?;
    let found = content(image)?;
    match found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        None if found.len() >= wanted.len() => Ok(()),
        None => Err(Failure::new(format!("{what} has {} bytes, not {}", found.len(), wanted.len()))),
        Some(at) => {
            Err(Failure::new(format!("{what} differs at {at}: {} and not {}", found[at], wanted[at])))
        }
    }
}

fn slow() -> bool {
    std::env::var_os("COWHAND_SLOW").is_some()
}

/// Chains whose files log what they change make many times the states, and each takes longer to look at; so fewer are
/// looked at where nobody asks for the long run.
fn is_logged(files: &[File]) -> bool {
    !slow() && files.iter().any(|(_, format, ..)| *format == "vhdx")
}

fn seeds(files: &[File]) -> std::ops::Range<u64> {
    0..if is_logged(files) { 1 } else { 2 }
}

fn states(seed: u64, files: &[File]) -> Plan {
    let max_states = match (slow(), is_logged(files)) {
        (true, _) => 20_000,
        (false, true) => 40,
        (false, false) => 500,
    };
    Plan { seed, unit: 512, per_epoch: 24, max_states, ..Plan::default() }
}

fn faults(files: &[File]) -> &'static [Fault] {
    const ALL: [Fault; 3] =
        [Fault::EIO.forever(), Fault::EIO.only(&[Io::Write]).torn().forever(), Fault::ENOSPC.forever()];
    if is_logged(files) { &[] } else { &ALL }
}

const COMMITS: [(&[File], usize, bool); 14] = [
    (&[("top", "vpc", "block_size=512k", 700 * K), ("base", "raw", "", 600 * K)], 1, false),
    (
        &[
            ("top", "vpc", "block_size=512k", 600 * K + 512),
            ("base", "vpc", "block_size=512k", 700 * K),
            ("root", "vpc", "subformat=fixed,force_size=on", 700 * K),
        ],
        1,
        false,
    ),
    (
        &[
            ("top", "qcow2", "cluster_size=4k", 600 * K),
            ("middle", "vpc", "block_size=512k", 600 * K),
            ("base", "vpc", "block_size=512k,force_size=on", 600 * K),
        ],
        2,
        false,
    ),
    (&[("top", "qcow2", "cluster_size=4k", 200 * K), ("base", "raw", "", 200 * K)], 1, true),
    (
        &[
            ("top", "qcow2", "cluster_size=4k", 300 * K + 512),
            ("base", "qcow2", "cluster_size=8k", 100 * K),
            ("root", "raw", "", 250 * K),
        ],
        1,
        true,
    ),
    (
        &[
            ("top", "qcow2", "cluster_size=16k,extended_l2=on", 220 * K),
            ("middle", "qcow2", "cluster_size=4k", 130 * K),
            ("base", "qcow2", "cluster_size=512", 90 * K),
        ],
        2,
        false,
    ),
    (
        &[
            ("top", "qcow2", "cluster_size=4k", 120 * K),
            ("middle", "qcow2", "cluster_size=4k", 120 * K),
            ("base", "raw", "", 60 * K),
        ],
        2,
        false,
    ),
    (
        &[
            ("top", "qcow2", "compat=0.10,cluster_size=4k", 90 * K),
            ("base", "qcow2", "cluster_size=4k", 200 * K),
        ],
        1,
        true,
    ),
    // A parent whose identity changes with its content, and children that remember it, or cannot.
    (
        &[
            ("top", "vhdx", "block_size=1m,log_size=1m", 1300 * K),
            ("base", "vhdx", "block_size=1m,log_size=1m", 1300 * K),
        ],
        1,
        false,
    ),
    (
        &[
            ("top", "vhdx", "block_size=1m,log_size=1m", 1200 * K),
            ("base", "vhdx", "block_size=2m,log_size=1m", 1300 * K),
            ("root", "vhdx", "block_size=1m,log_size=1m", 1400 * K),
        ],
        1,
        true,
    ),
    (
        &[
            ("top", "qcow2", "cluster_size=4k", 900 * K),
            ("middle", "vhdx", "block_size=1m,log_size=1m", 1100 * K),
            ("base", "vhdx", "block_size=1m,log_size=1m", 1000 * K),
        ],
        2,
        false,
    ),
    (
        &[
            ("top", "vhdx", "block_size=1m,log_size=1m,logical_sector_size=4096", 1200 * K),
            ("base", "vhdx", "block_size=1m,log_size=1m,logical_sector_size=4096", 1200 * K),
        ],
        1,
        false,
    ),
    (
        &[("top", "vpc", "block_size=512k", 700 * K), ("base", "vhdx", "block_size=1m,log_size=1m", 700 * K)],
        1,
        false,
    ),
    (
        &[
            ("top", "qcow2", "cluster_size=4k", 700 * K),
            ("base", "vhdx", "block_size=1m,log_size=1m", 600 * K),
        ],
        1,
        true,
    ),
];

fn commit(folder: &dyn Folder, files: &[File], depth: usize, empty: bool) -> Result<Committed> {
    let mut writable = if empty { vec!["top", "base"] } else { vec!["base"] };
    let (child, ..) = files[depth - 1];
    if must_be_told(&open(folder, files, &writable)?, depth)? && !writable.contains(&child) {
        writable.push(child);
    }
    let names = remembered(folder, &files[depth..])?.unwrap_or_default();
    commit_chain(&open(folder, files, &writable)?, depth, empty, &names, 1, &Quiet)
}

/// The chain reads as before; a commit that is run (again) ends, and then the base reads so too.
fn check_commit(folder: &Arc<MemoryFolder>, case: usize, wanted: &[u8]) -> Result<(), Failure> {
    let (files, depth, empty) = COMMITS[case];
    expect(&open(folder.as_ref(), files, &[])?, wanted, "the chain")?;
    commit(folder.as_ref(), files, depth, empty)?;
    expect(&open(folder.as_ref(), files, &[])?, wanted, "the chain, committed again")?;
    expect(&open(folder.as_ref(), &files[depth..], &[])?, wanted, "the base, committed again")
}

#[test]
fn a_power_cut_during_commit_changes_nothing_that_is_read() {
    for (case, (files, depth, empty)) in COMMITS.into_iter().enumerate() {
        for seed in seeds(files) {
            let folder = chain(files, seed);
            let wanted = content(&open(folder.as_ref(), files, &[]).unwrap()).unwrap();
            let journal = Journal::over(&folder);
            let done = commit(journal.folder().as_ref(), files, depth, empty).unwrap();
            assert!(done.moved > 0 && done.moved <= done.held && done.emptied == empty, "{done:?}");
            let mut count = 0;
            for state in journal.states(&states(seed, files)) {
                count += 1;
                if let Err(failure) = check_commit(&state.folder(), case, &wanted) {
                    panic!("case {case}, seed {seed}: {failure}\n{state}");
                }
            }
            assert!(count > 20, "case {case}: {count} states");
            let done = commit(journal.live().as_ref(), files, depth, empty).unwrap();
            assert_eq!(done.moved, 0, "case {case}: all is there already");
        }
    }
}

#[test]
fn a_failure_during_commit_is_an_error_and_changes_nothing_that_is_read() {
    for (case, (files, depth, empty)) in COMMITS.into_iter().enumerate() {
        let folder = chain(files, 7);
        let wanted = content(&open(folder.as_ref(), files, &[]).unwrap()).unwrap();
        for fault in faults(files) {
            fault_test(
                *fault,
                || Journal::over(&folder).live(),
                |world, faults: &Arc<Faults>| {
                    commit(faults.folder(world.clone()).as_ref(), files, depth, empty).map(drop)
                },
                |world, _| check_commit(world, case, &wanted),
            )
            .unwrap_or_else(|failure| panic!("case {case}: {failure}"));
        }
    }
}

/// The old chain, the new one's parents, and how many of the files at the end are the same.
const REBASES: [(&[File], &[File], usize); 9] = [
    (
        &[("top", "vpc", "block_size=512k", 600 * K + 512), ("old", "raw", "", 600 * K)],
        &[("new", "vpc", "block_size=512k,force_size=on", 700 * K)],
        0,
    ),
    (
        &[
            ("top", "vpc", "block_size=512k", 600 * K),
            ("middle", "vpc", "block_size=512k", 600 * K),
            ("base", "qcow2", "cluster_size=4k", 500 * K),
        ],
        &[("base", "qcow2", "cluster_size=4k", 500 * K)],
        1,
    ),
    (
        &[("top", "qcow2", "cluster_size=4k", 200 * K), ("old", "raw", "", 150 * K)],
        &[("new", "raw", "", 100 * K)],
        0,
    ),
    (
        &[("top", "qcow2", "cluster_size=8k", 130 * K + 512), ("old", "qcow2", "cluster_size=4k", 130 * K)],
        &[],
        0,
    ),
    (&[("top", "qcow2", "cluster_size=4k", 100 * K)], &[("new", "qcow2", "cluster_size=4k", 200 * K)], 0),
    (
        &[
            ("top", "qcow2", "cluster_size=16k,extended_l2=on", 150 * K),
            ("middle", "qcow2", "cluster_size=4k", 90 * K),
            ("base", "qcow2", "cluster_size=4k", 140 * K),
        ],
        &[("base", "qcow2", "cluster_size=4k", 140 * K)],
        1,
    ),
    (
        &[
            ("top", "qcow2", "compat=0.10,cluster_size=4k", 150 * K),
            ("base", "qcow2", "cluster_size=4k", 140 * K),
        ],
        &[("other", "qcow2", "cluster_size=512", 160 * K), ("base", "qcow2", "cluster_size=4k", 140 * K)],
        1,
    ),
    (
        &[
            ("top", "vhdx", "block_size=1m,log_size=1m", 900 * K),
            ("old", "vhdx", "block_size=1m,log_size=1m", 800 * K),
        ],
        &[("new", "vhdx", "block_size=2m,log_size=1m", 1000 * K)],
        0,
    ),
    (
        &[
            ("top", "vhdx", "block_size=1m,log_size=1m", 900 * K),
            ("middle", "vhdx", "block_size=1m,log_size=1m", 800 * K),
            ("base", "vhdx", "block_size=1m,log_size=1m", 700 * K),
        ],
        &[("base", "vhdx", "block_size=1m,log_size=1m", 700 * K)],
        1,
    ),
];

/// The files of both chains.
fn two_chains(case: usize, seed: u64) -> Arc<MemoryFolder> {
    let (old, new, shared) = REBASES[case];
    let folder = chain(old, seed);
    // What both have is made with the old chain; the new one's own layers are made over a copy of it.
    let own = &new[..new.len() - shared];
    let others = chain(new, seed + 100);
    for (name, file) in others.entries() {
        if own.iter().any(|(of_new, ..)| *of_new == name) {
            folder.insert(&name, file);
        }
    }
    folder
}

fn new_chain(case: usize) -> Vec<File> {
    let (old, new, _) = REBASES[case];
    std::iter::once(old[0]).chain(new.iter().copied()).collect()
}

fn rebase(folder: &dyn Folder, case: usize) -> Result<u64> {
    let (old, new, shared) = REBASES[case];
    let old = open(folder, old, &["top"])?;
    let below = if new.is_empty() { Vec::new() } else { open(folder, new, &[])?.links().to_vec() };
    let parent = remembered(folder, new)?;
    let new = Image::new(old.links()[..1].iter().cloned().chain(below).collect())?;
    Ok(rebase_chain(&old, &new, shared, parent.as_ref(), false, 1, &Quiet)?)
}

/// The top stands on what it names, and the disk reads as before; a rebase that is run (again) ends.
fn check_rebase(folder: &Arc<MemoryFolder>, case: usize, wanted: &[u8]) -> Result<(), Failure> {
    let (old, new, _) = REBASES[case];
    let new_chain = new_chain(case);
    let names = |chain: &[File]| chain.get(1).map(|(name, ..)| (*name).to_owned());
    let stands_on = || -> Result<Option<String>> {
        let top = open(folder.as_ref(), &old[..1], &[])?;
        let parent = top.links()[0].layer.parent();
        Ok(parent.map(|parent| parent.candidates[0].display().to_string()))
    };
    let now = stands_on()?;
    let is_new = now == names(&new_chain);
    if !is_new && now != names(old) {
        return Err(Failure::new(format!("stands on {now:?}")));
    }
    expect(&open(folder.as_ref(), if is_new { &new_chain } else { old }, &[])?, wanted, "the disk")?;
    if is_new {
        return Ok(());
    }
    rebase(folder.as_ref(), case)?;
    if stands_on()? != new.first().map(|(name, ..)| (*name).to_owned()) {
        return Err(Failure::new("has not its new parent after a second rebase"));
    }
    expect(&open(folder.as_ref(), &new_chain, &[])?, wanted, "the disk, rebased again")
}

#[test]
fn a_power_cut_during_rebase_changes_nothing_that_is_read() {
    for (case, (old, ..)) in REBASES.into_iter().enumerate() {
        for seed in seeds(old) {
            let folder = two_chains(case, seed);
            let wanted = content(&open(folder.as_ref(), old, &[]).unwrap()).unwrap();
            let journal = Journal::over(&folder);
            let written = rebase(journal.folder().as_ref(), case).unwrap();
            assert!(written > 0, "case {case}");
            let mut count = 0;
            for state in journal.states(&states(seed, old)) {
                count += 1;
                if let Err(failure) = check_rebase(&state.folder(), case, &wanted) {
                    panic!("case {case}, seed {seed}: {failure}\n{state}");
                }
            }
            assert!(count > 4, "case {case}: {count} states");
        }
    }
}

#[test]
fn a_failure_during_rebase_is_an_error_and_changes_nothing_that_is_read() {
    for (case, (old, ..)) in REBASES.into_iter().enumerate() {
        let folder = two_chains(case, 3);
        let wanted = content(&open(folder.as_ref(), old, &[]).unwrap()).unwrap();
        for fault in faults(old) {
            fault_test(
                *fault,
                || Journal::over(&folder).live(),
                |world, faults: &Arc<Faults>| rebase(faults.folder(world.clone()).as_ref(), case).map(drop),
                |world, _| check_rebase(world, case, &wanted),
            )
            .unwrap_or_else(|failure| panic!("case {case}: {failure}"));
        }
    }
}

const COMPACTS: [&[File]; 5] = [
    &[("top", "qcow2", "cluster_size=4k", 200 * K)],
    &[("top", "qcow2", "cluster_size=4k", 200 * K + 512), ("base", "raw", "", 120 * K)],
    &[
        ("top", "qcow2", "cluster_size=16k,extended_l2=on", 220 * K),
        ("base", "qcow2", "cluster_size=4k", 300 * K),
    ],
    &[
        ("top", "qcow2", "compat=0.10,cluster_size=4k", 150 * K),
        ("base", "qcow2", "cluster_size=8k", 140 * K),
    ],
    &[("top", "raw", "", 150 * K)],
];

/// A chain whose top holds zeros, over data and over nothing, and copies of what lies below.
fn bloated(files: &[File], seed: u64) -> Arc<MemoryFolder> {
    let folder = chain(files, seed);
    let mut rng = Rng::new(seed + 50);
    let image = open(folder.as_ref(), files, &["top"]).unwrap();
    for step in 0..12 {
        let len = ((1 + rng.below(8)) * 4096).min(image.size() / 4096 * 4096);
        let at = rng.below((image.size() - len) / 4096 + 1) * 4096;
        let mut bytes = vec![0; len as usize];
        if step % 3 == 0 {
            image.read(at, &mut bytes).unwrap();
        }
        image.write(at, &bytes).unwrap();
    }
    image.close().unwrap();
    folder
}

fn compact(folder: &dyn Folder, files: &[File], same: bool) -> Result<u64> {
    let image = open(folder, files, &["top"])?;
    let freed = compact_chain(&image, same, 1, &Quiet)?;
    image.close()?;
    Ok(freed)
}

fn check_compact(folder: &Arc<MemoryFolder>, files: &[File], wanted: &[u8]) -> Result<(), Failure> {
    expect(&open(folder.as_ref(), files, &[])?, wanted, "the chain")?;
    compact(folder.as_ref(), files, false)?;
    expect(&open(folder.as_ref(), files, &[])?, wanted, "the chain, compacted again")
}

#[test]
fn a_power_cut_during_compact_changes_nothing_that_is_read() {
    for (case, files) in COMPACTS.into_iter().enumerate() {
        for seed in 0..4 {
            let folder = bloated(files, seed);
            let wanted = content(&open(folder.as_ref(), files, &[]).unwrap()).unwrap();
            let journal = Journal::over(&folder);
            let freed = compact(journal.folder().as_ref(), files, seed % 2 == 1).unwrap();
            assert!(freed > 0, "case {case}, seed {seed}");
            for state in journal.states(&states(seed, files)) {
                if let Err(failure) = check_compact(&state.folder(), files, &wanted) {
                    panic!("case {case}, seed {seed}: {failure}\n{state}");
                }
            }
            let again = compact(journal.live().as_ref(), files, seed % 2 == 1).unwrap();
            assert_eq!(again, 0, "case {case}, seed {seed}: nothing is left to take away");
        }
    }
}

#[test]
fn a_failure_during_compact_is_an_error_and_changes_nothing_that_is_read() {
    for (case, files) in COMPACTS.into_iter().enumerate() {
        let folder = bloated(files, 5);
        let wanted = content(&open(folder.as_ref(), files, &[]).unwrap()).unwrap();
        for fault in faults(files) {
            fault_test(
                *fault,
                || Journal::over(&folder).live(),
                |world, faults: &Arc<Faults>| {
                    compact(faults.folder(world.clone()).as_ref(), files, true).map(drop)
                },
                |world, _| check_compact(world, files, &wanted),
            )
            .unwrap_or_else(|failure| panic!("case {case}: {failure}"));
        }
    }
}
