//! What stands in the file: the header and the extents' headers, byte for byte. All numbers are big-endian but the
//! lengths of blobs.

use zerocopy::byteorder::big_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Guest bytes that are listed together.
pub const CLUSTER: u64 = 65536;
/// Guest bytes that are there or zero.
pub const BLOCK: u64 = 4096;
/// Blocks of a cluster: bits of a mask.
pub const BLOCKS: u32 = 16;
/// Clusters that an extent lists at most.
pub const SLOTS: usize = 59;
/// Bytes of an extent's header.
pub const EXTENT_HEADER: usize = 512;
/// Bytes of the header in front of the blob buffer.
pub const HEADER: usize = 12288;
/// Configurations at most.
pub const CONFIGS: usize = 256;
/// Entries of `dev_info`; the first is never used.
pub const DEVICES: usize = 256;
/// The last device that Proxmox's programs look at.
pub const LAST_DEVICE: usize = 254;
/// Clusters that a disk may have: their numbers are 32 bits long.
pub const MAX_CLUSTERS: u64 = 1 << 32;
/// The longest header that is read, in bytes.
pub const MAX_HEADER: u32 = 16 << 20;
/// The longest header that is written: Proxmox's programs write none that is longer.
pub const MAX_HEADER_WRITTEN: usize = 512 << 10;
/// The longest blob.
pub const MAX_BLOB: usize = 65535;
/// The header's first bytes.
pub const MAGIC: [u8; 4] = *b"VMA\0";
/// An extent's.
pub const EXTENT_MAGIC: [u8; 4] = *b"VMAE";
/// The name of a disk that is none, but a running machine's memory.
pub const VMSTATE: &str = "vmstate";

/// An entry of `dev_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDevice {
    /// Offset in the blob buffer; 0: there is no device.
    pub name: U32,
    /// Zero.
    pub reserved: U32,
    /// Guest bytes.
    pub size: U64,
    /// Zero.
    pub reserved2: [U64; 2],
}

/// The header, without the blob buffer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// 1.
    pub version: U32,
    /// Repeated in every extent.
    pub uuid: [u8; 16],
    /// Seconds since 1970, UTC.
    pub ctime: I64,
    /// MD5 of all `header_size` bytes, with zeros in this field.
    pub md5sum: [u8; 16],
    /// Where the blob buffer begins.
    pub blob_buffer_offset: U32,
    /// How long it is.
    pub blob_buffer_size: U32,
    /// The first byte behind the header.
    pub header_size: U32,
    /// Zero.
    pub reserved: [u8; 1984],
    /// Offsets in the blob buffer; 0: none.
    pub config_names: [U32; CONFIGS],
    /// Offsets in the blob buffer, with the same index.
    pub config_data: [U32; CONFIGS],
    /// Zero.
    pub reserved2: U32,
    /// The index is the dev_id.
    pub dev_info: [RawDevice; DEVICES],
}

/// An entry of an extent's `blockinfo`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSlot {
    /// Bit i: block i is in the extent's data; else it is zero.
    pub mask: U16,
    /// Zero; nobody looks.
    pub reserved: u8,
    /// 0: the slot is not used.
    pub dev_id: u8,
    /// Which cluster of the device.
    pub cluster: U32,
}

/// An extent's header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// [`EXTENT_MAGIC`].
    pub magic: [u8; 4],
    /// Zero.
    pub reserved: U16,
    /// Blocks that follow.
    pub block_count: U16,
    /// The header's.
    pub uuid: [u8; 16],
    /// MD5 of these 512 bytes, with zeros in this field.
    pub md5sum: [u8; 16],
    /// The clusters; their blocks follow in this order.
    pub blockinfo: [RawSlot; SLOTS],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER);
const _: () = assert!(size_of::<RawExtent>() == EXTENT_HEADER);
