//! Clusters of which a part has come: they wait for the rest, in bounded memory.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::layout::CLUSTER;

const LEN: usize = CLUSTER as usize;
/// Bytes of a cluster's bits, of which each says that a byte has come.
const BITS: usize = LEN / 8;
/// Bytes that wait at most.
const MEMORY: usize = 32 << 20;
/// Clusters that do.
pub(super) const MOST: usize = MEMORY / (LEN + BITS);

#[derive(Debug)]
struct Part {
    bytes: Vec<u8>,
    came: Box<[u64; LEN / 64]>,
    /// Bytes that did not.
    left: usize,
    /// Which was begun first.
    age: u64,
}

/// Clusters by stream and number.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    parts: BTreeMap<(usize, u64), Part>,
    begun: u64,
}

impl Waiting {
    /// That cluster waits.
    pub(super) fn has(&self, stream: usize, cluster: u64) -> bool {
        self.parts.contains_key(&(stream, cluster))
    }

    /// The first of those clusters that waits.
    pub(super) fn next_in(&self, stream: usize, clusters: Range<u64>) -> Option<u64> {
        if clusters.is_empty() {
            return None;
        }
        let mut found = self.parts.range((stream, clusters.start)..(stream, clusters.end));
        found.next().map(|((_, cluster), _)| *cluster)
    }

    /// There is no room for another.
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= MOST
    }

    /// The one that waits longest, of those that `may` go.
    pub(super) fn oldest(&self, may: impl Fn(usize, u64) -> bool) -> Option<(usize, u64)> {
        let parts = self.parts.iter().filter(|((stream, cluster), _)| may(*stream, *cluster));
        parts.min_by_key(|(_, part)| part.age).map(|(which, _)| *which)
    }

    /// Adds the bytes `within` a cluster of `len`; without `data`, zeros. Answers whether all of it has come now.
    pub(super) fn add(
        &mut self,
        stream: usize,
        cluster: u64,
        len: usize,
        within: Range<usize>,
        data: Option<&[u8]>,
    ) -> bool {
        let part = self.parts.entry((stream, cluster)).or_insert_with(|| {
            self.begun += 1;
            Part { bytes: vec![0; LEN], came: Box::new([0; LEN / 64]), left: len, age: self.begun }
        });
        if let Some(bytes) = part.bytes.get_mut(within.clone()) {
            match data {
                Some(data) => bytes.copy_from_slice(data),
                None => bytes.fill(0),
            }
        }
        let mut at = within.start;
        while at < within.end {
            let end = (at / 64 * 64 + 64).min(within.end);
            let mask = (!0_u64 >> (64 - (end - at))) << (at % 64);
            if let Some(word) = part.came.get_mut(at / 64) {
                part.left -= (mask & !*word).count_ones() as usize;
                *word |= mask;
            }
            at = end;
        }
        part.left == 0
    }

    /// Takes that cluster out: 64 KiB, with zeros for what did not come.
    pub(super) fn take(&mut self, stream: usize, cluster: u64) -> Option<Vec<u8>> {
        self.parts.remove(&(stream, cluster)).map(|part| part.bytes)
    }
}
