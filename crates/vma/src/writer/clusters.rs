//! Which clusters of a stream are out: a bit for each, in pages that are there only where some are and others are not.

use std::ops::Range;

/// Clusters of a page: 2 GiB of a disk.
const PAGE: u64 = 32768;
const WORDS: usize = PAGE as usize / 64;

/// A set of cluster numbers.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    pages: Vec<Page>,
}

#[derive(Clone, Debug, Default)]
enum Page {
    #[default]
    Empty,
    Full,
    Some {
        bits: Box<[u64; WORDS]>,
        count: u64,
    },
}

impl Clusters {
    /// Adds all of `range`.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let (page, first) = ((at / PAGE) as usize, at % PAGE);
            let end = (first + range.end - at).min(PAGE);
            if self.pages.len() <= page {
                self.pages.resize(page + 1, Page::Empty);
            }
            if let Some(page) = self.pages.get_mut(page) {
                page.insert(first..end);
            }
            at += end - first;
        }
    }

    /// The first of `range` that is in the set.
    pub(super) fn first_in(&self, range: Range<u64>) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let (is_in, end) = self.run(at);
            if is_in {
                return Some(at);
            }
            at = end;
        }
        None
    }

    /// The first stretch of `range` that is not in the set, or its front.
    pub(super) fn absent(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            let (is_in, end) = self.run(at);
            if !is_in {
                return Some(at..end.min(range.end));
            }
            at = end;
        }
        None
    }

    /// Whether `at` is in the set, and where that changes, or may.
    fn run(&self, at: u64) -> (bool, u64) {
        let start = at / PAGE * PAGE;
        match self.pages.get((at / PAGE) as usize) {
            // Behind the last page there is nothing.
            None => (false, u64::MAX),
            Some(Page::Empty) => (false, start + PAGE),
            Some(Page::Full) => (true, start + PAGE),
            Some(Page::Some { bits, .. }) => {
                let first = (at - start) as usize;
                let is_in = bits.get(first / 64).is_some_and(|word| word >> (first % 64) & 1 == 1);
                let mut keep = !0_u64 << (first % 64);
                for (index, word) in bits.iter().enumerate().skip(first / 64) {
                    let other = if is_in { !word } else { *word } & keep;
                    if other != 0 {
                        return (is_in, start + index as u64 * 64 + u64::from(other.trailing_zeros()));
                    }
                    keep = !0;
                }
                (is_in, start + PAGE)
            }
        }
    }
}

impl Page {
    fn insert(&mut self, range: Range<u64>) {
        if range == (0..PAGE) {
            *self = Page::Full;
            return;
        }
        if let Page::Empty = self {
            *self = Page::Some { bits: Box::new([0; WORDS]), count: 0 };
        }
        let Page::Some { bits, count } = self else { return };
        let mut at = range.start;
        while at < range.end {
            let end = (at / 64 * 64 + 64).min(range.end);
            let mask = (!0_u64 >> (64 - (end - at))) << (at % 64);
            if let Some(word) = bits.get_mut(at as usize / 64) {
                *count += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
            at = end;
        }
        if *count == PAGE {
            *self = Page::Full;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_set() {
        let mut state = 7_u64;
        let mut below = move |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % most
        };
        let size = 3 * PAGE + 100;
        let mut flat = vec![false; size as usize];
        let mut set = Clusters::default();
        for round in 0..400 {
            let start = below(size);
            let most = if round % 10 == 0 { PAGE + 300 } else { 200 };
            let end = (start + 1 + below(most)).min(size);
            set.insert(start..end);
            flat[start as usize..end as usize].fill(true);
            let from = below(size);
            let to = from + below(size - from) + 1;
            let found = (from..to.min(size)).find(|at| flat[*at as usize]);
            assert_eq!(set.first_in(from..to.min(size)), found);
            let absent = set.absent(from..to.min(size));
            assert_eq!(
                absent.as_ref().map(|range| range.start),
                (from..to.min(size)).find(|at| !flat[*at as usize])
            );
            assert!(absent.is_none_or(|mut range| range.all(|at| !flat[at as usize])));
        }
    }

    #[test]
    fn full_pages_cost_nothing() {
        let mut set = Clusters::default();
        set.insert(0..1 << 32);
        assert!(set.pages.iter().all(|page| matches!(page, Page::Full)));
        let mut set = Clusters::default();
        (0..PAGE).for_each(|at| set.insert(at..at + 1));
        assert!(matches!(set.pages.as_slice(), [Page::Full]));
    }
}
