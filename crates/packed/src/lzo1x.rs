//! LZO1X: blocks of bytes packed by repeating what came before them.
//!
//! A packed block is a row of instructions. Each one copies bytes that stand in it (literals), or bytes that came out
//! before (a match: how many, from how far back), or both: a match carries up to 3 literals behind it. What the lowest
//! instructions mean depends on how many literals came just before. It ends with a match from nowhere.

/// Bytes before which nothing is repeated. Each kind of match has its reach.
const REACH_SHORT: usize = 0x800;
const REACH_MIDDLE: usize = 0x4000;
const REACH_LONG: usize = 0xbfff;

/// What ends a block.
const END: [u8; 3] = [0x11, 0, 0];

/// The last instruction was a run of literals: a match of three bytes may follow.
const AFTER_RUN: usize = 4;

/// Unpacks `packed` into all of `out`. Errors: what is wrong with it; then `out` holds anything.
pub(crate) fn unpack(packed: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    const SHORT: &str = "the packed block ends within an instruction";
    const LONG: &str = "more comes out of the packed block than it says";
    let mut input = Input { bytes: packed, at: 0 };
    let mut at = 0;
    // Literals that came just before, 4 for all that are more.
    let mut before = 0;
    if let Some(first @ 18..) = packed.first() {
        input.at = 1;
        let run = usize::from(first - 17);
        at =
            input.literals(out, at, run).ok_or("the packed block is cut, or unpacks to more than it says")?;
        before = run.min(AFTER_RUN);
    }
    loop {
        let op = usize::from(input.byte().ok_or(SHORT)?);
        let (distance, len, after);
        match op {
            64.. => {
                let far = usize::from(input.byte().ok_or(SHORT)?);
                distance = ((far << 3) | ((op >> 2) & 7)) + 1;
                len = (op >> 5) + 1;
                after = op & 3;
            }
            32.. => {
                len = 2 + input.length(op & 31, 31).ok_or(SHORT)?;
                let far = input.pair().ok_or(SHORT)?;
                distance = (far >> 2) + 1;
                after = far & 3;
            }
            16.. => {
                len = 2 + input.length(op & 7, 7).ok_or(SHORT)?;
                let far = input.pair().ok_or(SHORT)?;
                let beyond = ((op & 8) << 11) | (far >> 2);
                if beyond == 0 {
                    return match (input.at == packed.len(), at == out.len()) {
                        (true, true) => Ok(()),
                        (false, _) => Err("bytes follow the packed block's end"),
                        (_, false) => Err("less comes out of the packed block than it says"),
                    };
                }
                distance = beyond + REACH_MIDDLE;
                after = far & 3;
            }
            _ if before == 0 => {
                let run = 3 + input.length(op, 15).ok_or(SHORT)?;
                at = input
                    .literals(out, at, run)
                    .ok_or("the packed block is cut, or unpacks to more than it says")?;
                before = AFTER_RUN;
                continue;
            }
            _ => {
                let far = (usize::from(input.byte().ok_or(SHORT)?) << 2) | (op >> 2);
                (distance, len) = if before == AFTER_RUN { (far + 1 + REACH_SHORT, 3) } else { (far + 1, 2) };
                after = op & 3;
            }
        }
        if distance > at {
            return Err("the packed block repeats what comes before its beginning");
        }
        at = repeat(out, at, distance, len).ok_or(LONG)?;
        if after > 0 {
            at = input
                .literals(out, at, after)
                .ok_or("the packed block is cut, or unpacks to more than it says")?;
        }
        before = after;
    }
}

/// A packed block, and how far it was read.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    #[inline(always)]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn pair(&mut self) -> Option<usize> {
        let pair = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 2;
        Some(usize::from(u16::from_le_bytes(*pair)))
    }

    /// The length that stands in an instruction, or, where that is 0, in bytes behind it: each one of 0 counts 255, and
    /// the first other one ends it.
    #[inline(always)]
    fn length(&mut self, short: usize, base: usize) -> Option<usize> {
        if short != 0 {
            return Some(short);
        }
        let mut len = base;
        loop {
            match self.byte()? {
                0 => len += 255, // never overflows: 255 times a slice's length
                last => return Some(len + usize::from(last)),
            }
        }
    }

    /// Copies `len` bytes to `at` of `out`, and says where they end. Nothing: they are not there, or have no room.
    #[inline(always)]
    fn literals(&mut self, out: &mut [u8], at: usize, len: usize) -> Option<usize> {
        const STEP: usize = 16;
        let rest = self.bytes.get(self.at..)?;
        let room = out.get_mut(at..)?;
        match (rest.first_chunk::<STEP>(), room.first_chunk_mut::<STEP>()) {
            // What is copied too much is written over by what comes next.
            (Some(from), Some(to)) if len <= STEP => *to = *from,
            _ => room.get_mut(..len)?.copy_from_slice(rest.get(..len)?),
        }
        self.at += len;
        Some(at + len)
    }
}

/// Repeats at `at` the `len` bytes `distance` before, which is at most `at`, and says where they end. Nothing: they have no
/// room.
#[inline(always)]
fn repeat(out: &mut [u8], at: usize, distance: usize, len: usize) -> Option<usize> {
    const STEP: usize = 16;
    let end = at.checked_add(len)?;
    let from = at - distance;
    // What is copied too much is written over by what comes next.
    if distance >= STEP && len <= 4 * STEP && end + STEP <= out.len() {
        let mut done = 0;
        while done < len {
            let step: [u8; STEP] = *out.get(from + done..)?.first_chunk()?;
            *out.get_mut(at + done..)?.first_chunk_mut()? = step;
            done += STEP;
        }
        return Some(end);
    }
    if end > out.len() {
        return None;
    }
    match distance {
        1 => {
            let byte = *out.get(from)?;
            out.get_mut(at..end)?.fill(byte);
        }
        2..16 if len < 32 => {
            for to in at..end {
                let byte = *out.get(to - distance)?;
                *out.get_mut(to)? = byte;
            }
        }
        _ => {
            // What stands behind `from` becomes longer with each step, so each may copy more.
            let mut to = at;
            while to < end {
                let step = (to - from).min(end - to);
                out.copy_within(from..from + step, to);
                to += step;
            }
        }
    }
    Some(end)
}

/// Packs blocks as LZO1X-1 does: fast, with a table of where four bytes were seen last.
#[derive(Debug)]
pub(crate) struct Packer {
    /// Places, of which the lower 16 bits are told: none of interest is further away.
    seen: Box<[u16; 1 << SEEN_BITS]>,
}

/// log2 of the table's entries.
const SEEN_BITS: u32 = 14;

/// Bytes that are compared at a time. Within so many of a block's end nothing is looked for.
const WORD: usize = 8;

impl Packer {
    pub(crate) fn new() -> Packer {
        Packer { seen: Box::new([0; 1 << SEEN_BITS]) }
    }

    /// Appends `bytes`, packed, to `packed`. The same bytes give the same, whatever was packed before.
    pub(crate) fn pack(&mut self, bytes: &[u8], packed: &mut Vec<u8>) {
        self.seen.fill(0);
        let begin = packed.len();
        // More than the worst becomes: one byte for each 255 of a run, and an end.
        packed.resize(begin + bytes.len() + bytes.len() / 128 + 64, 0);
        let len = self.fill(bytes, packed.get_mut(begin..).unwrap_or_default());
        packed.truncate(begin + len);
    }

    fn fill(&mut self, bytes: &[u8], packed: &mut [u8]) -> usize {
        let mut out = Output { bytes: packed, at: 0 };
        let mut literals = 0;
        // A block's first run has more than 3 literals, so that there is always a match to carry fewer.
        let mut at = 4;
        while let Some(next) = word(bytes, at) {
            let slot = (next as u32).wrapping_mul(0x9e37_79b1) >> (u32::BITS - SEEN_BITS);
            let seen = &mut self.seen[slot as usize]; // never out of bounds: as many bits as it has entries
            let distance = usize::from((at as u16).wrapping_sub(*seen));
            *seen = at as u16;
            let before = at.checked_sub(distance).and_then(|from| word(bytes, from));
            let same = before.map_or(0, |before| (before ^ next).trailing_zeros() as usize / 8);
            if same < 4 || !(1..=REACH_LONG).contains(&distance) {
                // The longer nothing is found, the fewer places are looked at.
                at += 1 + ((at - literals) >> 5);
                continue;
            }
            let len = if same < WORD { same } else { WORD + alike(bytes, at - distance + WORD, at + WORD) };
            out.literals(bytes, literals, at);
            out.repeat(distance, len);
            at += len;
            literals = at;
        }
        out.literals(bytes, literals, bytes.len());
        out.put(END);
        out.at
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes from `from` on that are the same as those from `at` on, which is behind it.
fn alike(bytes: &[u8], from: usize, at: usize) -> usize {
    let mut len = 0;
    while let (Some(before), Some(now)) = (word(bytes, from + len), word(bytes, at + len)) {
        if before != now {
            return len + (before ^ now).trailing_zeros() as usize / 8;
        }
        len += WORD;
    }
    let (before, now) = (bytes.iter().skip(from + len), bytes.iter().skip(at + len));
    len + before.zip(now).take_while(|(before, now)| before == now).count()
}

/// Where a packed block is made. It has room for the worst.
struct Output<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Output<'_> {
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some(to) = self.bytes.get_mut(self.at..).and_then(|rest| rest.first_chunk_mut()) {
            *to = bytes;
        }
        self.at += N;
    }

    /// The bytes that repeat nothing.
    #[inline(always)]
    fn literals(&mut self, bytes: &[u8], from: usize, to: usize) {
        const STEP: usize = 16;
        let len = to - from;
        match len {
            0 => return,
            // At a block's beginning, the one place where any number of them stands alone.
            _ if from == 0 && len <= 238 => self.put([17 + len as u8]),
            1..4 => {
                // Into the match before: its last byte but one has two bits for them.
                if let Some(byte) = self.at.checked_sub(2).and_then(|carrier| self.bytes.get_mut(carrier)) {
                    *byte |= len as u8;
                }
            }
            4..=18 => self.put([len as u8 - 3]),
            _ => {
                self.put([0]);
                self.length(len - 18);
            }
        }
        let (rest, room) =
            (bytes.get(from..).unwrap_or_default(), self.bytes.get_mut(self.at..).unwrap_or_default());
        match (rest.first_chunk::<STEP>(), room.first_chunk_mut::<STEP>()) {
            // What is copied too much is written over by what comes next.
            (Some(from), Some(to)) if len <= STEP => *to = *from,
            _ => {
                if let (Some(from), Some(to)) = (rest.get(..len), room.get_mut(..len)) {
                    to.copy_from_slice(from);
                }
            }
        }
        self.at += len;
    }

    #[inline(always)]
    fn repeat(&mut self, distance: usize, len: usize) {
        if len <= 8 && distance <= REACH_SHORT {
            let far = distance - 1;
            self.put([(((len - 1) << 5) | ((far & 7) << 2)) as u8, (far >> 3) as u8]);
            return;
        }
        let (op, most, far) = if distance <= REACH_MIDDLE {
            (32, 33, distance - 1)
        } else {
            let beyond = distance - REACH_MIDDLE;
            (16 | ((beyond >> 11) & 8), 9, beyond & 0x3fff)
        };
        if len <= most {
            self.put([(op | (len - 2)) as u8]);
        } else {
            self.put([op as u8]);
            self.length(len - most);
        }
        self.put(((far << 2) as u16).to_le_bytes());
    }

    /// A length that does not fit its instruction; at least 1.
    fn length(&mut self, len: usize) {
        let zeros = (len - 1) / 255;
        for _ in 0..zeros {
            self.put([0]);
        }
        self.put([(len - 255 * zeros) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::testing::Rng;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        Packer::new().pack(bytes, &mut packed);
        packed
    }

    /// Bytes that repeat now and then, from near and far, shortly and for long.
    fn bytes(random: &mut Rng, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(len);
        while bytes.len() < len {
            let most = len - bytes.len();
            let n = most.min(
                1 + {
                    let most = *random.pick(&[3, 20, 300, 5000]);
                    random.below(most) as usize
                },
            );
            if bytes.is_empty() || random.below(3) == 0 {
                bytes.extend((0..n).map(|_| random.below(256) as u8));
            } else {
                let reach = *random.pick(&[1, 8, 20, REACH_SHORT, REACH_MIDDLE, REACH_LONG + 2]);
                let distance = 1 + random.below(reach.min(bytes.len()) as u64) as usize;
                for _ in 0..n {
                    bytes.push(bytes[bytes.len() - distance]);
                }
            }
        }
        bytes
    }

    #[test]
    fn what_is_packed_unpacks() {
        let mut random = Rng::new(1);
        let mut packer = Packer::new();
        for round in 0..3000 {
            let most = if round % 50 == 0 { 300_000 } else { 700 };
            let len = if round < 300 { round } else { random.below(most) as usize };
            let bytes = bytes(&mut random, len);
            let mut found = b"before".to_vec();
            packer.pack(&bytes, &mut found);
            assert_eq!(
                found.get(6..),
                Some(packed(&bytes).as_slice()),
                "it depends on what was packed before"
            );
            assert!(found.len() <= 6 + len + len / 128 + 16, "{len} became {}", found.len());
            let mut out = vec![0xee; len];
            assert_eq!(unpack(&found[6..], &mut out), Ok(()), "round {round}");
            assert!(out == bytes, "round {round}");
            // Of another length than it says.
            unpack(&found[6..], &mut vec![0; len + 1]).unwrap_err();
            if let Some(less) = len.checked_sub(1) {
                unpack(&found[6..], &mut vec![0; less]).unwrap_err();
            }
        }
    }

    #[test]
    fn what_is_alike_gets_small() {
        assert!(packed(&[0; 256 << 10]).len() < 1100);
        let mut random = Rng::new(2);
        let noise: Vec<u8> = (0..20_000).map(|_| random.below(256) as u8).collect();
        assert!(packed(&[noise.clone(), noise].concat()).len() < 20_400);
    }

    #[test]
    fn what_is_never_packed_here_unpacks_too() {
        // A literal, two bytes from one before, two literals.
        let near = [&[18, 7, 2, 0, 8, 9][..], &END].concat();
        let mut out = [0; 5];
        assert_eq!(unpack(&near, &mut out), Ok(()));
        assert_eq!(out, [7, 7, 7, 8, 9]);
        // A run of 2100 literals, three bytes from 2062 before, a literal.
        let run: Vec<u8> = (0..2100).map(|n| (n % 251) as u8).collect();
        let far = [&[0; 9][..], &[42], &run, &[0b0101, 3, 0xaa], &END].concat();
        let mut out = [0; 2104];
        assert_eq!(unpack(&far, &mut out), Ok(()));
        assert_eq!(out[..2100], run);
        assert_eq!(out[2100..], [run[38], run[39], run[40], 0xaa]);
        // There is nothing at a distance of 2101.
        let far = [&[0; 9][..], &[42], &run, &[0b0000, 13, 0xaa], &END].concat();
        unpack(&far, &mut out).unwrap_err();
    }

    #[test]
    fn broken_blocks_are_errors() {
        let mut random = Rng::new(3);
        for round in 0..20_000 {
            let len = 1 + random.below(2000) as usize;
            let bytes = bytes(&mut random, len);
            let mut broken = packed(&bytes);
            for _ in 0..1 + random.below(4) {
                let at = random.below(broken.len() as u64) as usize;
                match random.below(4) {
                    0 => broken.truncate(at.max(1)),
                    1 => broken.insert(at, 0),
                    2 => broken[at] = random.below(32) as u8,
                    _ => broken[at] = random.below(256) as u8,
                }
            }
            // An error or other bytes, and no panic.
            let _ = unpack(&broken, &mut vec![0; len]);
            let noise: Vec<u8> = (0..random.below(60)).map(|_| random.below(256) as u8).collect();
            assert!(
                unpack(&noise, &mut vec![0; len]).is_err() || noise.ends_with(&END[1..]),
                "round {round}"
            );
        }
        for _ in 0..64 {
            let whole = packed(&bytes(&mut random, 5000));
            let cut = random.below(whole.len() as u64) as usize;
            unpack(&whole[..cut], &mut vec![0; 5000]).unwrap_err();
            unpack(&[whole.as_slice(), &[0]].concat(), &mut vec![0; 5000]).unwrap_err();
        }
    }
}
