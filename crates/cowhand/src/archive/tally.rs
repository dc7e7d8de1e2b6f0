//! How much of an archive's disks came by, as Proxmox's tool counts it.

use cowhand_core::Body;

/// Guest bytes that count together.
const CLUSTER: u64 = 65536;

/// Guest bytes that came by, in whole clusters of 64 KiB: a disk that ends inside one counts with all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there will be.
    pub total: u64,
    /// How many there were.
    pub read: u64,
    /// Those of clusters that are zero as a whole.
    pub zero: u64,
    /// Zeros within the others, which the archive does not hold.
    pub partial: u64,
}

impl Tally {
    /// For disks of these sizes.
    pub fn of(sizes: impl IntoIterator<Item = u64>) -> Tally {
        let whole = |size: u64| size.checked_next_multiple_of(CLUSTER).unwrap_or(size);
        let total = sizes.into_iter().fold(0_u64, |total, size| total.saturating_add(whole(size)));
        Tally { total, ..Tally::default() }
    }

    /// Counts what stands at `at` of a disk of `size` bytes.
    pub fn add(&mut self, size: u64, at: u64, body: Body<'_>) {
        let len = match body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Zero(len) => len,
        };
        let end = at.saturating_add(len);
        // What the last cluster has behind the disk's end is zero.
        let whole_end = if end >= size { end.max(size).next_multiple_of(CLUSTER) } else { end };
        let behind = if at < size { whole_end - end } else { 0 };
        self.read = self.read.saturating_add(len + behind);
        match body {
            Body::Bytes(_) => self.partial += behind / BLOCK * BLOCK,
            Body::Zero(_) => {
                let whole = (whole_end / CLUSTER).saturating_sub(at.div_ceil(CLUSTER)) * CLUSTER;
                self.zero = self.zero.saturating_add(whole);
                self.partial = self.partial.saturating_add((len + behind).saturating_sub(whole));
            }
        }
    }

    /// How far it has come, in whole percent.
    pub fn percent(&self) -> u64 {
        let percent = u128::from(self.read) * 100 / u128::from(self.total.max(1));
        percent.min(100) as u64
    }
}

/// Guest bytes that an archive holds or leaves out.
const BLOCK: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_whole_clusters() {
        const SIZE: u64 = 3 * CLUSTER + 5000;
        let mut tally = Tally::of([SIZE, 0]);
        assert_eq!(tally.total, 4 * CLUSTER);
        tally.add(SIZE, 0, Body::Bytes(&[1; 4096]));
        tally.add(SIZE, 4096, Body::Zero(2 * CLUSTER - 4096));
        assert_eq!((tally.zero, tally.partial, tally.percent()), (CLUSTER, CLUSTER - 4096, 50));
        tally.add(SIZE, 2 * CLUSTER, Body::Bytes(&[1; CLUSTER as usize]));
        tally.add(SIZE, 3 * CLUSTER, Body::Bytes(&[1; 5000]));
        assert_eq!((tally.read, tally.percent()), (4 * CLUSTER, 100));
        assert_eq!((tally.zero, tally.partial), (CLUSTER, CLUSTER - 4096 + CLUSTER - 8192));
    }

    #[test]
    fn an_empty_disk_is_zero_to_the_end_of_its_last_cluster() {
        let mut tally = Tally::of([540_672]);
        tally.add(540_672, 0, Body::Zero(540_672));
        assert_eq!(tally, Tally { total: 589_824, read: 589_824, zero: 589_824, partial: 0 });
    }
}
