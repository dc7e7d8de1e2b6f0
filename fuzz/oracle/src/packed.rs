//! Packed files: what unpacks, unpacks to the same bytes as it comes, on a survey, and at random; what does not, does not
//! in any way.

use std::io::{Read, Write};
use std::sync::Arc;

use cowhand::{Error, ErrorKind, MemoryStorage, Storage};
use cowhand_packed::{How, PackedStorage, Packing, Point, SeekTable, Span, detect};

use crate::mutate::Random;
use crate::printable;

/// Unpacked bytes that are looked at, at most: a few bytes may unpack to many.
const MOST: u64 = 24 << 20;

/// What came out, and whether all of it did.
struct Outcome {
    bytes: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
    /// There is more than is looked at.
    Longer,
}

/// True where the file is one, and whole.
pub(crate) fn examine(storage: &MemoryStorage, random: &mut Random) -> bool {
    let file = storage.to_vec();
    let Some(packing) = detect(&file[..file.len().min(16)]) else { return false };
    let whole = outcome(packing.unpack(Box::new(file.as_slice())));
    go_on(packing, &file, &whole);
    let shared: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&file));

    let table = told(packing.table(&*shared)).flatten();
    let surveyed = surveyed(packing, &shared, &whole, random);
    // What a file says of itself in a place of its own may be a lie; else it is what a survey finds.
    let honest = |table: &SeekTable| {
        whole.end != End::Whole
            || table.len == whole.bytes.len() as u64 && surveyed.as_ref().is_none_or(|found| found == table)
    };
    let lies = table.as_ref().is_some_and(|table| !honest(table));
    assert!(!lies || packing.name() == "zstd", "what the file tells and what a survey finds differ");
    for table in table.filter(|_| !lies).iter().chain(&surveyed) {
        at_random(packing, &shared, table, &whole, random);
        hostile(packing, &shared, table, random);
    }
    if whole.end == End::Whole && random.one_in(8) {
        again(packing, &whole.bytes, random);
    }
    whole.end == End::Whole
}

fn outcome(mut reader: Box<dyn Read + Send + '_>) -> Outcome {
    let mut bytes = Vec::new();
    let read = reader.by_ref().take(MOST + 1).read_to_end(&mut bytes);
    let end = match read {
        Ok(_) if bytes.len() as u64 > MOST => End::Longer,
        Ok(_) => End::Whole,
        Err(error) => {
            check(&Error::io("unpacking", error));
            End::Broken
        }
    };
    Outcome { bytes, end }
}

/// Who reads on behind an error comes to an end, and has got first what comes before it: how much of that, in bytes that are
/// verified later or never, depends on how much is read at a time.
fn go_on(packing: &dyn Packing, file: &[u8], whole: &Outcome) {
    let mut reader = packing.unpack(Box::new(file));
    let (mut bytes, mut failed, mut buf) = (Vec::<u8>::new(), false, vec![0; 50_000]);
    let mut before = None;
    while bytes.len() as u64 <= MOST {
        match reader.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => {
                failed = false;
                bytes.extend(&buf[..n]);
            }
            Err(_) if failed => break,
            Err(_) => {
                failed = true;
                let before = before.get_or_insert(bytes.len());
                assert!(
                    bytes.iter().zip(&whole.bytes).take(*before).all(|(a, b)| a == b),
                    "other bytes come first"
                );
            }
        }
    }
    assert_eq!(before.is_some(), whole.end == End::Broken, "an error depends on how much is read at a time");
}

/// An error is one of the file, and can be shown to a person.
fn check(error: &Error) {
    printable(&error.to_string());
    let kinds = [ErrorKind::Corrupt, ErrorKind::Changed, ErrorKind::Unsupported];
    assert!(kinds.contains(&error.kind()), "{:?}: {error}", error.kind());
}

fn told<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(check).ok()
}

/// Two surveys: one that reads everything, and one that passes over some of it. The table of the first one, where it was
/// read to the end.
fn surveyed(
    packing: &dyn Packing,
    file: &Arc<dyn Storage>,
    whole: &Outcome,
    random: &mut Random,
) -> Option<SeekTable> {
    let mut survey = told(packing.survey(Arc::clone(file)))??;
    let read = outcome(Box::new(&mut survey));
    assert_eq!(read.end, whole.end, "a survey ends in another way than unpacking");
    if whole.end == End::Broken {
        // How much comes before what is broken depends on how much is unpacked at a time.
        assert!(read.bytes.iter().zip(&whole.bytes).all(|(a, b)| a == b), "a survey finds other bytes");
    } else {
        assert!(read.bytes == whole.bytes, "a survey finds other bytes");
    }
    if whole.end != End::Whole {
        return None;
    }
    let table = told(survey.finish()).expect("all of it was read");

    let mut survey = told(packing.survey(Arc::clone(file)))??;
    let mut at = 0;
    while at < whole.bytes.len() {
        let most = if random.one_in(2) { 600 } else { whole.bytes.len() as u64 };
        let len = (1 + random.below(most) as usize).min(whole.bytes.len() - at);
        if random.one_in(3) {
            survey.skip(len as u64).expect("there are as many bytes");
        } else {
            let mut found = vec![0; len];
            survey.read_exact(&mut found).expect("there are as many bytes");
            assert!(found == whole.bytes[at..at + len], "a survey finds other bytes at {at}");
        }
        at += len;
        if random.one_in(6) {
            break;
        }
    }
    assert_eq!(told(survey.finish()).as_ref(), Some(&table), "what is passed over changes the table");
    Some(table)
}

/// Each span, and ranges of the storage, hold what unpacking gives.
fn at_random(
    packing: &'static dyn Packing,
    file: &Arc<dyn Storage>,
    table: &SeekTable,
    whole: &Outcome,
    random: &mut Random,
) {
    table.check(file.len().expect("memory has a length")).expect("a table that was just made fits its file");
    let kept = SeekTable::from_bytes(&table.to_bytes()).expect("a table that was just made can be kept");
    assert_eq!(&kept, table, "a table is kept as another");
    for _ in 0..4.min(table.points.len()) {
        let span = table.span(random.below(table.points.len() as u64) as usize).expect("it is one of them");
        let found = told(packing.unpack_from(Arc::clone(file), span)).map(outcome);
        if whole.end == End::Whole {
            let from = span.from.unpacked as usize;
            let found = found.expect("unpacking can begin at a point");
            assert_eq!(found.end, End::Whole);
            assert!(found.bytes == whole.bytes[from..from + span.len as usize], "other bytes in {span:?}");
        }
    }
    let storage = PackedStorage::new(Arc::clone(file), packing, Arc::new(kept)).expect("the table is right");
    assert_eq!(storage.len().expect("the table says it"), table.len);
    for _ in 0..6 {
        let most = table.len.min(MOST);
        let at = random.below(most + 1);
        let len = random.below(most - at + 1).min(if random.one_in(3) { 300_000 } else { 4096 });
        let mut found = vec![0xa5; len as usize];
        let read = storage.read_at(at, &mut found);
        if whole.end == End::Whole {
            read.expect("what unpacks can be read");
            assert!(found == whole.bytes[at as usize..(at + len) as usize], "other bytes at {at}");
        } else if read.is_ok() && at + len <= whole.bytes.len() as u64 {
            assert!(found == whole.bytes[at as usize..(at + len) as usize], "other bytes at {at}");
        }
    }
}

/// A table that was kept may say anything: errors, or no more bytes than it says.
fn hostile(packing: &dyn Packing, file: &Arc<dyn Storage>, table: &SeekTable, random: &mut Random) {
    if table.points.is_empty() {
        return;
    }
    for _ in 0..4 {
        let span = table.span(random.below(table.points.len() as u64) as usize).expect("it is one of them");
        let mut from: Point = span.from.clone();
        match random.below(4) {
            0 => from.packed = random.below(file.len().expect("memory has a length") + 2),
            1 => from.state = (0..random.below(40)).map(|_| random.number() as u8).collect(),
            _ if from.state.is_empty() => from.packed += 1,
            2 => from.state.truncate(random.below(from.state.len() as u64) as usize),
            _ => {
                let at = random.below(from.state.len() as u64) as usize;
                from.state[at] ^= 1 << random.below(8);
            }
        }
        let next = span.next.map(|next| if random.one_in(2) { next } else { next / 2 });
        let len = if random.one_in(3) { span.len.wrapping_mul(3) } else { span.len };
        if let Ok(reader) = packing.unpack_from(Arc::clone(file), Span { from: &from, len, next }) {
            let mut bytes = Vec::new();
            let _ = reader.take(MOST).read_to_end(&mut bytes);
            assert!(bytes.len() as u64 <= len, "more comes of a span than it has");
        }
    }
}

/// What was unpacked can be packed again, alike on one thread and on several, and then unpacks.
fn again(packing: &dyn Packing, bytes: &[u8], random: &mut Random) {
    let levels = packing.levels();
    let level = *levels.start() + random.below(4.min((levels.end() - levels.start()) as u64 + 1)) as i32;
    let pack = |workers| {
        let mut packed = Vec::new();
        let mut pack =
            packing.pack(Box::new(&mut packed), How { level: Some(level), workers }).expect("a level it has");
        pack.write_all(bytes).expect("memory takes it");
        pack.finish().expect("memory takes it");
        packed
    };
    let packed = pack(1);
    assert!(packed == pack(3), "what is packed depends on the threads");
    let found = outcome(packing.unpack(Box::new(packed.as_slice())));
    assert!(found.end == End::Whole && found.bytes == bytes, "what was packed unpacks to something else");
}
