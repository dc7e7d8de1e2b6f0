//! What must hold whatever bytes an image is made of. Each fuzz target calls one function here, and an ordinary test
//! replays the corpus through the same ones. They panic where something does not hold.
//!
//! An input is an image in the coding of [`sparse`].

// An oracle objects by panicking.
#![allow(clippy::expect_used, clippy::panic)]

mod archive;
mod checking;
mod layer;
pub mod mend;
pub mod mutate;
mod packed;
pub mod sparse;
mod stream;
mod writing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowhand::inspect::{Inspection, inspect_storage};
use cowhand::{Compat, MemoryStorage, Storage};

use mutate::Random;

/// What may be opened and looked through in this time, however slow the machine: a guard against endless work.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one input is put through; true where it was an image that opens, or content that the gate calls safe.
pub type Oracle = fn(&[u8]) -> bool;

/// The targets by name, as the corpus' folders are called.
pub const TARGETS: [(&str, Oracle); 12] = [
    ("qcow2", qcow2),
    ("qcow2-write", qcow2_write),
    ("vhd", vhd),
    ("vhd-stream", vhd_stream),
    ("vhd-check", vhd_check),
    ("vhdx", vhdx),
    ("vhdx-check", vhdx_check),
    ("vhdx-write", vhdx_write),
    ("vma", vma),
    ("vma-index", vma_index),
    ("packed", packed),
    ("inspect", inspect),
];

/// The parser of qcow2.
pub fn qcow2(input: &[u8]) -> bool {
    format("qcow2", input)
}

/// The writer of qcow2.
pub fn qcow2_write(input: &[u8]) -> bool {
    written("qcow2", input)
}

/// The parser of VHD.
pub fn vhd(input: &[u8]) -> bool {
    format("vpc", input)
}

/// VHD in a stream: what comes out of one pass is what a file of the same bytes holds.
pub fn vhd_stream(input: &[u8]) -> bool {
    let began = Instant::now();
    let whole = stream::take("vpc", input);
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    whole
}

/// VHD's check and repair.
pub fn vhd_check(input: &[u8]) -> bool {
    checked("vpc", input)
}

/// The parser of VHDX, its log included.
pub fn vhdx(input: &[u8]) -> bool {
    format("vhdx", input)
}

/// VHDX's check and repair.
pub fn vhdx_check(input: &[u8]) -> bool {
    checked("vhdx", input)
}

/// The writer of VHDX.
pub fn vhdx_write(input: &[u8]) -> bool {
    written("vhdx", input)
}

/// VMA, read strictly, salvaged, checked and through its index.
pub fn vma(input: &[u8]) -> bool {
    let began = Instant::now();
    let sense = archive::examine(input);
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    sense
}

/// The kept index of a VMA archive.
pub fn vma_index(input: &[u8]) -> bool {
    let began = Instant::now();
    let believed = archive::kept(input);
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    believed
}

/// Packed files, whatever they are packed in.
pub fn packed(input: &[u8]) -> bool {
    const LONGEST: u64 = 4 << 20;
    let began = Instant::now();
    let storage = sparse::unpack(input, LONGEST);
    let whole = packed::examine(&storage, &mut Random::new(input));
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    whole
}

/// The safety gate: the report depends on the content alone, not on the pieces it comes in, and little is held.
pub fn inspect(input: &[u8]) -> bool {
    const LONGEST: u64 = 8 << 20;
    const HELD: usize = 3 << 19;
    let began = Instant::now();
    let storage = sparse::unpack(input, LONGEST);
    let bytes = storage.to_vec();
    let random = &mut Random::new(input);
    let mut safe = false;
    for compat in [Compat::Strict, Compat::Oslo] {
        let mut whole = Inspection::new();
        whole.feed(&bytes);
        let whole = whole.finish(compat);

        let mut pieces = Inspection::new();
        let mut rest = bytes.as_slice();
        // Mostly pieces of some size, so that 8 MiB do not take millions of them; now and then tiny ones.
        while !rest.is_empty() {
            let most = if random.one_in(4) { 9 } else { 1 + rest.len() as u64 / 8 };
            let (piece, after) = rest.split_at(random.below(most.max(600)) as usize % (rest.len() + 1));
            pieces.feed(piece);
            assert!(pieces.held() <= HELD, "{} bytes are held", pieces.held());
            rest = after;
        }
        assert_eq!(pieces.finish(compat), whole, "the report depends on the pieces");

        let stored = inspect_storage(&storage, compat).expect("memory can be read");
        assert_eq!(stored, whole, "a storage and a stream are judged differently");
        assert!(!whole.formats.is_empty(), "every content is something, raw at least");
        assert_eq!(whole.exit_status() == 0, whole.failed.is_empty(), "a failed check and a safe verdict");
        printable(&whole.to_string().replace('\n', ""));
        safe = whole.exit_status() == 0;
    }
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    safe
}

fn format(name: &str, input: &[u8]) -> bool {
    let began = Instant::now();
    let storage = Arc::new(sparse::unpack(input, u64::MAX));
    let before = storage.identity().expect("memory has an identity");
    let format = cowhand::format(name).expect("the format is registered");
    let opened = layer::examine(format, &(Arc::clone(&storage) as Arc<dyn Storage>), &mut Random::new(input));
    assert_eq!(storage.identity().expect("memory has an identity"), before, "reading has written");
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    opened
}

fn written(name: &str, input: &[u8]) -> bool {
    let began = Instant::now();
    let storage: Arc<dyn Storage> = Arc::new(sparse::unpack(input, u64::MAX));
    let format = cowhand::format(name).expect("the format is registered");
    let changed = writing::change(format, &storage, &mut Random::new(input));
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    changed
}

fn checked(name: &str, input: &[u8]) -> bool {
    let began = Instant::now();
    let storage = || Arc::new(sparse::unpack(input, u64::MAX)) as Arc<dyn Storage>;
    let format = cowhand::format(name).expect("the format is registered");
    let checked = checking::check(format, &storage(), &storage(), &mut Random::new(input));
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    checked
}

/// What is shown to a person holds nothing that could steer a terminal.
fn printable(text: &str) {
    assert!(!text.trim().is_empty(), "an error says nothing");
    assert!(!text.chars().any(char::is_control), "a control character is printed: {text:?}");
}

/// The storage of an input, for programs that write it to a file.
pub fn storage_of(input: &[u8]) -> MemoryStorage {
    sparse::unpack(input, u64::MAX)
}
