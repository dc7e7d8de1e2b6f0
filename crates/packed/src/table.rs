//! Where in a packed file unpacking can begin.

/// A place where unpacking can begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Offset in the packed file, in bytes.
    pub packed: u64,
    /// Offset of the bytes that come out there.
    pub unpacked: u64,
    /// What else the packing has to know to begin there: nothing, or the bytes that went before.
    pub state: Vec<u8>,
}

/// All of them, ascending; the first is where the unpacked bytes begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeekTable {
    /// Unpacked bytes of the whole file.
    pub len: u64,
    /// The places.
    pub points: Vec<Point>,
}
