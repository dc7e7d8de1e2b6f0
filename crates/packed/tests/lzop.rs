//! lzop's files, against lzop.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::Read;
use std::process::{Command, Stdio};

use common::{Noise, pack, peer, sample, storage, unpack};
use cowhand_core::Storage;
use cowhand_packed::{How, Lzop, Packing};

const BLOCK: usize = 256 << 10;

/// lzop's checksum of headers.
fn adler(bytes: &[u8]) -> [u8; 4] {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    (b << 16 | a).to_be_bytes()
}

#[test]
fn lzop_reads_what_is_written() {
    for (seed, len) in [0, 1, 3, 4, 17, BLOCK - 1, BLOCK, BLOCK + 1, 5_004_711].into_iter().enumerate() {
        let bytes = sample(seed as u64, len);
        let packed = pack(&Lzop, &bytes, How { workers: 2, ..How::default() });
        assert_eq!(packed, pack(&Lzop, &bytes, How { workers: 1, ..How::default() }));
        let Some(theirs) = peer("lzop", &["-dc"], &packed) else { return };
        assert!(theirs == bytes, "{len}");
        peer("lzop", &["-tq"], &packed);
        // As small as lzop makes it, or nearly.
        let theirs = peer("lzop", &["-c"], &bytes).unwrap();
        assert!(packed.len() <= theirs.len() + theirs.len() / 20, "{len}: {} {}", packed.len(), theirs.len());
    }
}

#[test]
fn what_lzop_writes_is_read_in_order_and_at_random() {
    let bytes = sample(7, 3_000_017);
    let mut noise = Noise::new(3);
    let parts: [&[&str]; 7] =
        [&["-1"], &["-3"], &["-6", "--crc32"], &["-7"], &["-9"], &["-3", "-F"], &["-9", "-CC"]];
    let Some(packed) = parts
        .iter()
        .map(|args| peer("lzop", &[args, &["-c"][..]].concat(), &bytes))
        .collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let all = (packed.concat(), bytes.repeat(packed.len()));
    for (packed, bytes) in packed.into_iter().map(|packed| (packed, bytes.clone())).chain([all]) {
        assert!(Lzop.probe(&packed[..16]));
        let (found, error) = unpack(&Lzop, &packed);
        assert!(error.is_none() && found == bytes, "{error:?}");
        let file = storage(&packed);
        let table = Lzop.table(&*file).unwrap().unwrap();
        table.check(file.len().unwrap()).unwrap();
        for _ in 0..20 {
            let at = noise.below(bytes.len());
            let span = table.span(table.find(at as u64).unwrap()).unwrap();
            let from = span.from.unpacked as usize;
            let mut found = Vec::new();
            Lzop.unpack_from(file.clone(), span).unwrap().read_to_end(&mut found).unwrap();
            assert!(found == bytes[from..from + span.len as usize], "{span:?}");
        }
    }
    let filtered = peer("lzop", &["-c", "--filter=2"], &bytes).unwrap();
    let (_, error) = unpack(&Lzop, &filtered);
    assert!(error.unwrap().to_string().contains("filter 2"));
}

/// A block without checksums whose packed bytes were changed unpacks to the same bytes by lzop, or by neither.
#[test]
fn broken_blocks_are_broken_for_lzop_too() {
    let rounds = if std::env::var_os("COWHAND_SLOW").is_some() { 20_000 } else { 300 };
    let mut noise = Noise::new(4);
    let (mut both, mut neither) = (0, 0);
    for round in 0..rounds {
        let bytes = sample(round, 200 + noise.below(if round % 8 == 0 { 60_000 } else { 3000 }));
        let level = ["-1", "-3", "-9"][noise.below(3)];
        let Some(packed) = peer("lzop", &["-c", "-F", level], &bytes) else { return };
        let header = 9 + 25; // what comes before the checksum, with no name
        let (head, rest) = packed.split_at(header + 4);
        // No checksum of any kind, whatever the level.
        let mut fields = head[9..header].to_vec();
        fields[8..12].copy_from_slice(&[3, 0, 0, 0]);
        let sums = if head[20] & 1 == 0 { 0 } else { 4 };
        let (lengths, block) = rest.split_at(8);
        let mut block = block[sums..block.len() - 4].to_vec();
        for _ in 0..1 + noise.below(3) {
            let at = noise.below(block.len());
            match noise.below(4) {
                0 => block[at] ^= 1 << noise.below(8),
                1 => block[at] = noise.below(32) as u8,
                2 => block[at] = noise.below(256) as u8,
                _ => {
                    // A short piece comes twice; the block keeps its length.
                    let from = noise.below(block.len());
                    let n = (1 + noise.below(6)).min(block.len() - at.max(from));
                    block.copy_within(from..from + n, at);
                }
            }
        }
        let head = [&head[..9], &fields, &adler(&fields)].concat();
        let file = [&head[..], lengths, &block, &[0; 4]].concat();
        let (found, error) = unpack(&Lzop, &file);
        match (lzop(&file), error) {
            (Some(theirs), None) => {
                assert!(theirs == found, "round {round}");
                both += 1;
            }
            (None, Some(_)) => neither += 1,
            (theirs, error) => panic!("round {round}: lzop reads it: {}, {error:?}", theirs.is_some()),
        }
    }
    assert!(both > rounds / 10 && neither > rounds / 10, "{both} {neither}");
}

/// What lzop makes of it, if it is content.
fn lzop(file: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut command = Command::new("lzop");
    let command = command.arg("-dcq").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = command.spawn().unwrap();
    let mut to = running.stdin.take().unwrap();
    std::thread::scope(|scope| {
        let mut out = running.stdout.take().unwrap();
        scope.spawn(move || to.write_all(file));
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).unwrap();
        running.wait().unwrap().success().then_some(bytes)
    })
}

/// What comes out of it, in the pieces that errors cut it into.
fn rescued(packed: &[u8]) -> Vec<Vec<u8>> {
    let mut unpacked = Lzop.unpack(Box::new(packed));
    let (mut pieces, mut failed, mut buf) = (vec![Vec::new()], false, vec![0; 100_000]);
    loop {
        match unpacked.read(&mut buf) {
            Ok(0) => return pieces,
            Ok(n) => {
                failed = false;
                pieces.last_mut().unwrap().extend(&buf[..n]);
            }
            Err(_) if failed => return pieces,
            Err(_) => {
                failed = true;
                pieces.push(Vec::new());
            }
        }
    }
}

#[test]
fn who_reads_on_gets_what_is_behind_the_damage() {
    let bytes = sample(21, 9 * BLOCK + 4711);
    let packed = pack(&Lzop, &bytes, How::default());
    // Where each block begins; the last place is the end.
    let mut places = vec![9 + 25 + 4];
    while let Some(header) = packed.get(places[places.len() - 1]..).and_then(|rest| rest.first_chunk::<8>()) {
        let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        places.push(places[places.len() - 1] + 12 + len as usize);
    }
    assert_eq!(places.len(), 11);
    let mut noise = Noise::new(22);
    for round in 0..60 {
        let block = round % 10;
        let mut broken = packed.clone();
        // In its header, or somewhere.
        let len = places[block + 1] - places[block];
        let at = places[block] + if round < 30 { round % 12 } else { noise.below(len) };
        broken[at] ^= 1 << noise.below(8);
        let pieces = rescued(&broken);
        let behind = ((block + 1) * BLOCK).min(bytes.len());
        assert!(pieces.len() == 2, "byte {at} of block {block}: {} pieces", pieces.len());
        assert!(pieces[0] == bytes[..block * BLOCK], "byte {at} of block {block}");
        assert!(pieces[1] == bytes[behind..], "byte {at} of block {block}: {} bytes", pieces[1].len());
    }
    // A damaged front; several blocks in a row; bytes that went missing; an end that did.
    let mut front = packed.clone();
    front[20] ^= 1;
    assert!(rescued(&front) == [vec![], bytes.clone()]);
    let mut row = packed.clone();
    for block in [2, 3, 4] {
        row[places[block] + 40] ^= 1;
    }
    assert!(rescued(&row) == [&bytes[..2 * BLOCK], &bytes[5 * BLOCK..]]);
    let missing = [&packed[..places[3] + 100], &packed[places[5] + 5000..]].concat();
    assert!(rescued(&missing) == [&bytes[..3 * BLOCK], &bytes[6 * BLOCK..]]);
    assert!(rescued(&packed[..places[7] + 9]) == [&bytes[..7 * BLOCK], &[]]);
    // Parts are found too.
    let parts = [&packed[..places[9] + 20], &pack(&Lzop, b"another", How::default())].concat();
    assert!(rescued(&parts) == [&bytes[..9 * BLOCK], b"another"]);
}
