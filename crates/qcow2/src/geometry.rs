//! The few numbers that place everything in a qcow2 file: cluster size, entry sizes, refcount width.

/// Cluster size, L2 entry size and refcount width of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    cluster_bits: u32,
    extended: bool,
    refcount_order: u32,
}

/// L2 tables are cached in pieces of at most this many bytes.
const MAX_SLICE: u64 = 64 << 10;

impl Geometry {
    /// `cluster_bits` in 9..=21, `refcount_order` in 0..=6: the header was judged.
    pub(crate) fn new(cluster_bits: u32, extended: bool, refcount_order: u32) -> Geometry {
        Geometry { cluster_bits, extended, refcount_order }
    }

    pub(crate) fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    pub(crate) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Offset within a cluster.
    pub(crate) fn in_cluster(self, at: u64) -> u64 {
        at & (self.cluster_size() - 1)
    }

    /// Entries of 16 bytes, with 32 subclusters each.
    pub(crate) fn extended(self) -> bool {
        self.extended
    }

    pub(crate) fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    pub(crate) fn with_refcount_order(self, refcount_order: u32) -> Geometry {
        Geometry { refcount_order, ..self }
    }

    /// 64-bit words of an L2 entry.
    pub(crate) fn entry_words(self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// Subclusters of a cluster: 1 without extended L2.
    pub(crate) fn subclusters(self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    /// The least unit whose presence can be recorded.
    pub(crate) fn subcluster_size(self) -> u64 {
        self.cluster_size() / u64::from(self.subclusters())
    }

    /// The mask of all subclusters.
    pub(crate) fn all_subclusters(self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }

    /// Entries of an L2 table.
    pub(crate) fn l2_entries(self) -> u64 {
        self.cluster_size() / 8 / self.entry_words() as u64
    }

    /// Guest bytes that an L2 table maps, as a shift.
    pub(crate) fn l2_bits(self) -> u32 {
        self.cluster_bits + self.l2_entries().trailing_zeros()
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub(crate) fn l1_entries(self, size: u64) -> u64 {
        size.div_ceil(1 << self.l2_bits())
    }

    /// Bytes of an L2 slice: what is cached as one.
    pub(crate) fn slice_bytes(self) -> u64 {
        self.cluster_size().min(MAX_SLICE)
    }

    /// Entries of an L2 slice.
    pub(crate) fn slice_entries(self) -> u64 {
        self.slice_bytes() / 8 / self.entry_words() as u64
    }

    /// Clusters that one refcount block counts.
    pub(crate) fn block_entries(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The largest refcount that can be said.
    pub(crate) fn refcount_max(self) -> u64 {
        match self.refcount_order {
            6 => u64::MAX,
            order => (1 << (1 << order)) - 1,
        }
    }

    /// Bits of a compressed cluster's descriptor that hold its offset.
    pub(crate) fn compressed_offset_bits(self) -> u32 {
        62 - (self.cluster_bits - 8)
    }
}
