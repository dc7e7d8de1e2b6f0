//! The table of formats, subformats and options that both ways of the matrix go through.

/// A format with options that `qemu-img` and we both take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) format: &'static str,
    pub(crate) options: &'static str,
    /// Data is written compressed.
    pub(crate) compressed: bool,
}

const fn way(format: &'static str, options: &'static str) -> Way {
    Way { format, options, compressed: false }
}

const fn compressed(options: &'static str) -> Way {
    Way { format: "qcow2", options, compressed: true }
}

/// Every format, subformat and option that changes the bytes.
pub(crate) const WAYS: &[Way] = &[
    way("raw", ""),
    way("raw", "preallocation=falloc"),
    way("raw", "preallocation=full"),
    way("qcow2", ""),
    way("qcow2", "compat=1.1"),
    way("qcow2", "cluster_size=512"),
    way("qcow2", "cluster_size=1k"),
    way("qcow2", "cluster_size=4k"),
    way("qcow2", "cluster_size=32k"),
    way("qcow2", "cluster_size=256k"),
    way("qcow2", "cluster_size=2M"),
    way("qcow2", "refcount_bits=1"),
    way("qcow2", "refcount_bits=2"),
    way("qcow2", "refcount_bits=4,cluster_size=1k"),
    way("qcow2", "refcount_bits=8"),
    way("qcow2", "refcount_bits=32"),
    way("qcow2", "refcount_bits=64,cluster_size=512"),
    way("qcow2", "lazy_refcounts=on"),
    way("qcow2", "preallocation=metadata"),
    way("qcow2", "preallocation=falloc"),
    way("qcow2", "preallocation=full"),
    way("qcow2", "preallocation=metadata,cluster_size=4k"),
    way("qcow2", "preallocation=metadata,extended_l2=on"),
    way("qcow2", "extended_l2=on"),
    way("qcow2", "extended_l2=on,cluster_size=16k"),
    way("qcow2", "extended_l2=on,cluster_size=2M"),
    compressed(""),
    compressed("cluster_size=512"),
    compressed("cluster_size=4k"),
    compressed("cluster_size=2M"),
    compressed("compression_type=zstd"),
    compressed("compression_type=zstd,cluster_size=8k"),
    compressed("extended_l2=on"),
    compressed("compression_type=zlib,refcount_bits=1"),
    way("vpc", ""),
    way("vpc", "subformat=fixed"),
    way("vpc", "force_size=on"),
    way("vpc", "subformat=fixed,force_size=on"),
    way("vhdx", ""),
    way("vhdx", "subformat=fixed"),
    way("vhdx", "block_size=1M"),
    way("vhdx", "block_size=2M,log_size=2M"),
    way("vhdx", "block_size=64M"),
    way("vhdx", "block_size=256M,log_size=4M"),
    way("vhdx", "block_state_zero=off"),
    way("vhdx", "block_state_zero=on,subformat=fixed,block_size=1M"),
];

impl Way {
    /// What it is called in messages.
    pub(crate) fn name(&self) -> String {
        format!("{} {}{}", self.format, self.options, if self.compressed { " compressed" } else { "" })
    }

    /// A file name for it in a folder where others are too.
    pub(crate) fn file(&self, number: usize) -> String {
        format!("{number}.{}", if self.format == "vpc" { "vhd" } else { self.format })
    }
}

/// One of the matrix's cells: a format and a content, both by their numbers.
pub(crate) fn cells(ways: usize, contents: usize) -> Vec<(usize, usize)> {
    (0..ways).flat_map(|way| (0..contents).map(move |content| (way, content))).collect()
}
