//! Which clusters of a disk came: as much memory as what came takes, whatever the disk's size.

use std::collections::BTreeMap;
use std::ops::Range;

use cowhand_core::Result;

/// Clusters of a page, and bits that tell one of them.
const PAGE: u32 = 1 << 16;
/// A page of more runs than this is smaller as bits.
const MAX_RUNS: usize = 1024;
/// Bytes that a page takes beside its runs, as a map keeps it.
const OVERHEAD: usize = 64;

/// A set of cluster numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pages: BTreeMap<u16, Page>,
    bytes: usize,
    /// One more than the highest; 0: none.
    end: u64,
}

#[derive(Clone, Debug)]
enum Page {
    /// The first and the last of each run; ascending, with gaps between them.
    Runs(Vec<[u16; 2]>),
    /// A bit for each, and how many are set.
    Bits(Box<[u64; 1024]>, u32),
}

impl Seen {
    /// Puts it into the set. Answers whether it was not there.
    pub(crate) fn insert(&mut self, cluster: u32) -> bool {
        let (page, low) = ((cluster / PAGE) as u16, (cluster % PAGE) as u16);
        let pages = self.pages.len();
        let page = self.pages.entry(page).or_insert_with(|| Page::Runs(Vec::new()));
        let before = page.bytes();
        let new = page.insert(low);
        self.bytes = (self.bytes + page.bytes()).saturating_sub(before);
        self.bytes += (self.pages.len() - pages) * OVERHEAD;
        self.end = self.end.max(u64::from(cluster) + 1);
        new
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// One more than the highest; 0: none.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Calls `see` with each run of numbers below `end` that are not in it, ascending.
    pub(crate) fn gaps(&self, end: u64, see: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let mut at = 0;
        let mut done = Ok(());
        for (page, runs) in &self.pages {
            runs.each(&mut |[first, last]| {
                let first = (from(*page) + u64::from(first)).min(end);
                if done.is_ok() && at < first {
                    done = see(at..first);
                }
                at = from(*page) + u64::from(last) + 1;
            });
        }
        done?;
        if at < end { see(at..end) } else { Ok(()) }
    }
}

/// The first cluster of a page.
fn from(page: u16) -> u64 {
    u64::from(page) * u64::from(PAGE)
}

impl Page {
    fn insert(&mut self, low: u16) -> bool {
        match self {
            Page::Runs(runs) => {
                let new = insert(runs, low);
                if runs.len() > MAX_RUNS {
                    *self = bits(runs);
                }
                new
            }
            Page::Bits(words, count) => {
                let bit = 1 << (low % 64);
                let word = &mut words[usize::from(low / 64)]; // never out of bounds: 2^16 / 64
                let new = *word & bit == 0;
                *word |= bit;
                *count += u32::from(new);
                if *count == PAGE {
                    *self = Page::Runs(vec![[0, u16::MAX]]);
                }
                new
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Page::Runs(runs) => runs.capacity() * size_of::<[u16; 2]>(),
            Page::Bits(words, _) => size_of_val(&**words),
        }
    }

    /// Calls `see` with the first and the last of each run, ascending.
    fn each(&self, see: &mut dyn FnMut([u16; 2])) {
        match self {
            Page::Runs(runs) => runs.iter().for_each(|run| see(*run)),
            Page::Bits(words, _) => {
                let mut open = None;
                for low in 0..=u16::MAX {
                    // Never out of bounds: 2^16 / 64.
                    let set = words[usize::from(low / 64)] >> (low % 64) & 1 == 1;
                    match (set, open) {
                        (true, None) => open = Some(low),
                        (false, Some(first)) => {
                            see([first, low - 1]);
                            open = None;
                        }
                        _ => {}
                    }
                }
                if let Some(first) = open {
                    see([first, u16::MAX]);
                }
            }
        }
    }
}

fn insert(runs: &mut Vec<[u16; 2]>, low: u16) -> bool {
    let at = runs.partition_point(|run| run[0] <= low); // never out of bounds: it has two
    let joins_next = runs.get(at).is_some_and(|next| low.checked_add(1) == Some(next[0]));
    let before = at.checked_sub(1);
    match before.and_then(|before| runs.get(before).copied()) {
        Some([_, last]) if last >= low => return false,
        Some([first, last]) if last + 1 == low => {
            let end = if joins_next { runs.remove(at)[1] } else { low }; // never out of bounds: it joins
            if let Some(run) = runs.get_mut(at - 1) {
                *run = [first, end];
            }
        }
        _ if joins_next => {
            if let Some(next) = runs.get_mut(at) {
                next[0] = low;
            }
        }
        _ => runs.insert(at, [low, low]),
    }
    true
}

fn bits(runs: &[[u16; 2]]) -> Page {
    let mut words = Box::new([0; 1024]);
    let mut count = 0;
    for low in runs.iter().flat_map(|[first, last]| *first..=*last) {
        words[usize::from(low / 64)] |= 1 << (low % 64); // never out of bounds: 2^16 / 64
        count += 1;
    }
    Page::Bits(words, count)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // One run is what is meant.
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn gaps(seen: &Seen, end: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        seen.gaps(end, &mut |gap| {
            gaps.push(gap);
            Ok(())
        })
        .unwrap();
        gaps
    }

    #[test]
    fn order_does_not_matter_and_whole_pages_take_nothing() {
        let (mut up, mut down, mut odd) = (Seen::default(), Seen::default(), Seen::default());
        for cluster in 0..3 * PAGE {
            assert!(up.insert(cluster));
            assert!(down.insert(3 * PAGE - 1 - cluster));
            assert!(odd.insert((cluster * 2) % (3 * PAGE) + cluster / (3 * PAGE / 2)));
        }
        for seen in [&mut up, &mut down, &mut odd] {
            assert_eq!(gaps(seen, 3 * u64::from(PAGE) + 5), [196_608..196_613]);
            assert_eq!((seen.end(), seen.insert(70_000)), (196_608, false));
            assert!(seen.bytes() < 1000, "{}", seen.bytes());
        }
        assert_eq!(gaps(&Seen::default(), 1 << 32), [0..1 << 32]);
        let mut last = Seen::default();
        assert!(last.insert(u32::MAX) && !last.insert(u32::MAX));
        assert_eq!((gaps(&last, 1 << 32), last.end()), (vec![0..(1 << 32) - 1], 1 << 32));
    }

    #[test]
    fn a_page_never_takes_more_than_its_bits() {
        let mut seen = Seen::default();
        for cluster in (0..PAGE).step_by(2) {
            seen.insert(cluster);
            assert!(seen.bytes() <= 8192 + OVERHEAD, "{}", seen.bytes());
        }
        assert_eq!(gaps(&seen, 6), [1..2, 3..4, 5..6]);
    }

    #[test]
    fn asking_for_the_end_costs_the_same_however_much_came() {
        let since = std::time::Instant::now();
        let mut seen = Seen::default();
        for cluster in (0..1 << 18).step_by(2) {
            assert!(seen.end() <= u64::from(cluster));
            seen.insert(cluster);
        }
        assert_eq!(seen.end(), (1 << 18) - 1);
        // Looking through a page each time takes minutes.
        assert!(since.elapsed().as_secs() < 10, "{:?}", since.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_is_a_set(numbers in prop::collection::vec((0_u32..3, 0_u32..5000), 0..4000), end in 0_u64..200_000) {
            let (mut seen, mut set) = (Seen::default(), BTreeSet::new());
            for (page, low) in numbers {
                let cluster = page * (PAGE - 1) + low * 3 % 5000;
                prop_assert_eq!(seen.insert(cluster), set.insert(cluster));
            }
            let absent: Vec<u64> = gaps(&seen, end).into_iter().flatten().collect();
            let model: Vec<u64> = (0..end).filter(|at| !set.contains(&(*at as u32))).collect();
            prop_assert_eq!(absent, model);
            prop_assert_eq!(seen.end(), set.last().map_or(0, |last| u64::from(*last) + 1));
        }
    }
}
