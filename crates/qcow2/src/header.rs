//! The header: what stands in the first bytes of the file, and the same once it is known to make sense.

use std::ops::Range;

use cowhand_core::{Error, ParentRef, Result, Storage};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::compress::Codec;
use crate::crypt::{AES, LUKS};
use crate::extensions::{self, CryptoAt, Extensions, Feature, FeatureKind};
use crate::geometry::Geometry;

/// `QFI\xfb`.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

const V2_LENGTH: u32 = 72;
const V3_LENGTH: u32 = 104;
/// What QEMU writes today: the compression type and its padding are in.
const NEW_LENGTH: u32 = 112;
/// Where the compression type stands.
const AT_COMPRESSION: usize = 104;

pub(crate) const MAX_L1_BYTES: u64 = 32 << 20;
pub(crate) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
pub(crate) const MAX_SNAPSHOTS: u32 = 65536;
/// Bytes that are read first.
const FRONT: u64 = 4096;
const MAX_BACKING_NAME: u32 = 1023;

pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(crate) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
pub(crate) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(crate) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = (1 << 5) - 1;
pub(crate) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
pub(crate) const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
pub(crate) const AUTOCLEAR_DATA_FILE_RAW: u64 = 1 << 1;
pub(crate) const AUTOCLEAR_KNOWN: u64 = AUTOCLEAR_BITMAPS | AUTOCLEAR_DATA_FILE_RAW;

/// Offset in the file of the fields that change while an image is used.
pub(crate) const AT_REFCOUNT_TABLE: u64 = 48;
pub(crate) const AT_INCOMPATIBLE: u64 = 72;
pub(crate) const AT_AUTOCLEAR: u64 = 88;

/// The fields as they stand in the file, version 3 (version 2 has the first 72 bytes).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDisk {
    magic: [u8; 4],
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
}

/// Takes what is wrong; the answer says whether to stop there.
pub(crate) type Wrong<'a> = dyn FnMut(Error) -> Result<()> + 'a;

/// A header that makes sense.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// 2 or 3.
    pub(crate) version: u32,
    pub(crate) geometry: Geometry,
    /// Guest bytes.
    pub(crate) size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) dirty: bool,
    pub(crate) corrupt: bool,
    pub(crate) lazy_refcounts: bool,
    /// Compatible features that mean nothing here.
    other_compatible: u64,
    pub(crate) has_data_file: bool,
    pub(crate) autoclear: u64,
    /// 0: not encrypted.
    pub(crate) crypt_method: u32,
    pub(crate) codec: Codec,
    /// Bytes of the header behind the fields of [`OnDisk`], as they stand; the first is the compression type.
    rest: Vec<u8>,
    /// The backing file's name as it stands.
    pub(crate) backing: Option<Vec<u8>>,
    pub(crate) extensions: Extensions,
}

impl Header {
    /// The data file is a valid raw image of the disk.
    pub(crate) fn data_file_raw(&self) -> bool {
        self.has_data_file && self.autoclear & AUTOCLEAR_DATA_FILE_RAW != 0
    }

    /// The mark that hides the image from lists of disks.
    pub(crate) fn hidden(&self) -> bool {
        self.extensions.hidden().unwrap_or(false)
    }

    /// Where the full disk encryption header is; nowhere where the image has none.
    pub(crate) fn crypto_header(&self) -> CryptoAt {
        let found = self.extensions.crypto_header().filter(|_| self.crypt_method == LUKS);
        found.unwrap_or(CryptoAt { offset: 0, length: 0 })
    }

    /// Names a parent, or none.
    pub(crate) fn name_parent(&mut self, parent: Option<&ParentRef>) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let Some(parent) = parent else {
            self.backing = None;
            self.extensions.set_backing_format(None);
            return Ok(());
        };
        if self.data_file_raw() {
            return Err(Error::invalid("Backing file and data-file-raw cannot be used at the same time"));
        }
        let name = parent.candidates.first().ok_or_else(|| Error::invalid("the backing file has no name"))?;
        let name = name.as_os_str().as_bytes();
        if name.is_empty() || name.len() > MAX_BACKING_NAME as usize || name.contains(&0) {
            return Err(Error::invalid("the backing file's name must have 1 to 1023 bytes, and no NUL"));
        }
        self.backing = Some(name.to_vec());
        self.extensions.set_backing_format(parent.format.as_deref());
        Ok(())
    }

    /// Reads and judges the header. Reads the first cluster and nothing else.
    pub(crate) fn read(file: &dyn Storage) -> Result<Header> {
        Header::read_with(file, &mut |wrong| Err(wrong))
    }

    /// As [`Header::read`] for who looks at broken images: what does not hinder reading on (where tables stand, names,
    /// extensions) goes to `wrong`, and the header then says what the file says.
    pub(crate) fn read_with(file: &dyn Storage, wrong: &mut Wrong<'_>) -> Result<Header> {
        let failed = |error| Error::io("cannot read the header", error).at(0);
        let len = file.len().map_err(failed)?;
        // As much as nearly all headers need; the whole cluster is read where this one says more.
        let mut first = vec![0; len.min(FRONT) as usize];
        file.read_at(0, &mut first).map_err(failed)?;
        let version = first.get(4..8).and_then(|bytes| U32::read_from_bytes(bytes).ok()).map(U32::get);
        if first.get(..4) != Some(&MAGIC[..]) {
            return Err(Error::corrupt("magic", "is not QFI\\xfb: this is no qcow2 image")
                .at(0)
                .known_as("Image is not in qcow2 format"));
        }
        match version {
            Some(2 | 3) => {}
            Some(1) => {
                return Err(Error::unsupported("qcow version 1 cannot be read")
                    .at(4)
                    .hint("convert it with qemu-img")
                    .known_as("Unsupported qcow2 version 1"));
            }
            Some(other) => {
                return Err(Error::unsupported(format!("unknown version {other} of qcow2"))
                    .at(4)
                    .known_as(format!("Unsupported qcow2 version {other}")));
            }
            None => return Err(short(len)),
        }
        let needed = if version == Some(2) { V2_LENGTH } else { V3_LENGTH };
        if first.len() < needed as usize {
            return Err(short(len));
        }
        first.resize(FRONT as usize, 0);
        let (raw, _) = OnDisk::ref_from_prefix(&first).map_err(|_| short(len))?;
        let mut raw = *raw;
        if version == Some(2) {
            raw.incompatible_features = 0.into();
            raw.compatible_features = 0.into();
            raw.autoclear_features = 0.into();
            raw.refcount_order = 4.into();
            raw.header_length = V2_LENGTH.into();
        }
        let bits = raw.cluster_bits.get();
        if !(9..=21).contains(&bits) {
            return Err(Error::corrupt(
                "cluster_bits",
                format!("is {bits}; it must be 9 to 21 (512 bytes to 2 MiB)"),
            )
            .at(20)
            .known_as(format!("Unsupported cluster size: 2^{bits}")));
        }
        let cluster = 1u64 << bits;
        first.truncate(cluster as usize);
        if cluster > FRONT && !raw.ends_within(&first) {
            first.resize(cluster as usize, 0);
            let there = len.min(cluster) as usize;
            file.read_at(0, first.get_mut(..there).unwrap_or_default()).map_err(failed)?;
        }
        raw.judge(&first, cluster, len, wrong)
    }

    /// The first cluster's bytes, as QEMU lays them out: the fields, the extensions, the backing file's name. Errors:
    /// they do not fit.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        Ok(self.lay_out(self.header_length())?.bytes)
    }

    /// As [`Header::encode`], with the extensions and the name from `at` on: the end of the fields, or further behind
    /// (a multiple of 8 bytes, and at least 8) where an extension that says nothing bridges the way.
    pub(crate) fn lay_out(&self, at: usize) -> Result<Laid> {
        let cluster = self.geometry.cluster_size() as usize;
        let header_length = self.header_length();
        let mut raw = OnDisk {
            magic: MAGIC,
            version: self.version.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: self.geometry.cluster_bits().into(),
            size: self.size.into(),
            crypt_method: self.crypt_method.into(),
            l1_size: self.l1_entries.into(),
            l1_table_offset: self.l1_offset.into(),
            refcount_table_offset: self.refcount_table_offset.into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            nb_snapshots: self.snapshots.into(),
            snapshots_offset: self.snapshots_offset.into(),
            incompatible_features: self.incompatible().into(),
            compatible_features: self.compatible().into(),
            autoclear_features: self.autoclear.into(),
            refcount_order: self.geometry.refcount_order().into(),
            header_length: (header_length as u32).into(),
        };
        let extensions = self.extensions.encode();
        let name_at = at + extensions.len();
        let backing = self.backing.as_deref().unwrap_or_default();
        let end = name_at + backing.len();
        if end > cluster {
            let what = if backing.is_empty() { "header's extensions do" } else { "backing file's name does" };
            return Err(Error::invalid(format!("the {what} not fit into the first cluster"))
                .hint("use a shorter name or a larger cluster_size"));
        }
        if !backing.is_empty() {
            raw.backing_file_offset = (name_at as u64).into();
            raw.backing_file_size = (backing.len() as u32).into();
        }
        let mut bytes = Vec::with_capacity(cluster);
        bytes.extend_from_slice(&raw.as_bytes()[..self.fixed_len()]); // never out of bounds: at most all of it
        bytes.extend_from_slice(&self.rest);
        if let Some(place) = bytes.get_mut(AT_COMPRESSION) {
            *place = self.codec.number();
        }
        if let Some(bridged) = at.checked_sub(header_length + extensions::PREFIX) {
            bytes.extend_from_slice(&extensions::filler(bridged as u32));
        }
        let fields = bytes.len();
        bytes.resize(at, 0);
        bytes.extend_from_slice(&extensions);
        bytes.extend_from_slice(backing);
        bytes.resize(cluster, 0);
        Ok(Laid { bytes, used: vec![0..fields, at..end] })
    }

    /// Bytes of the fields; the extensions come behind them.
    pub(crate) fn header_length(&self) -> usize {
        self.fixed_len() + self.rest.len()
    }

    /// Puts the fixed fields in which this header differs from `old` into `bytes`, which are the file's first ones
    /// ([`Header::fixed_len`]); all others stay as they are.
    pub(crate) fn patch(&self, old: &Header, bytes: &mut [u8]) -> Result<()> {
        let mut whole = [0; V3_LENGTH as usize];
        let there = bytes.len().min(whole.len());
        whole[..there].copy_from_slice(&bytes[..there]); // never out of bounds: the smaller of both
        let raw = OnDisk::mut_from_bytes(&mut whole)
            .map_err(|_| Error::corrupt("header", "is not as long as it was").at(0))?;
        let differs = |get: fn(&Header) -> u64| (get(self) != get(old)).then(|| get(self));
        if let Some(size) = differs(|header| header.size) {
            raw.size = size.into();
        }
        if self.l1_offset != old.l1_offset || self.l1_entries != old.l1_entries {
            raw.l1_table_offset = self.l1_offset.into();
            raw.l1_size = self.l1_entries.into();
        }
        if self.refcount_table_offset != old.refcount_table_offset {
            raw.refcount_table_offset = self.refcount_table_offset.into();
            raw.refcount_table_clusters = self.refcount_table_clusters.into();
        }
        if self.snapshots_offset != old.snapshots_offset || self.snapshots != old.snapshots {
            raw.snapshots_offset = self.snapshots_offset.into();
            raw.nb_snapshots = self.snapshots.into();
        }
        if let Some(bits) = differs(Header::incompatible) {
            raw.incompatible_features = (raw.incompatible_features.get() & !INCOMPATIBLE_KNOWN | bits).into();
        }
        if let Some(bits) = differs(Header::compatible) {
            raw.compatible_features = bits.into();
        }
        if let Some(bits) = differs(|header| header.autoclear) {
            raw.autoclear_features = bits.into();
        }
        bytes[..there].copy_from_slice(&whole[..there]); // never out of bounds: as above
        Ok(())
    }

    /// Bytes of the fixed fields at the front of the file, all within one sector.
    pub(crate) fn fixed_len(&self) -> usize {
        if self.version == 2 { V2_LENGTH as usize } else { V3_LENGTH as usize }
    }

    /// The incompatible features that are in use.
    pub(crate) fn incompatible(&self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(self.dirty, INCOMPATIBLE_DIRTY)
            | bit(self.corrupt, INCOMPATIBLE_CORRUPT)
            | bit(self.has_data_file, INCOMPATIBLE_DATA_FILE)
            | bit(self.codec != Codec::Zlib, INCOMPATIBLE_COMPRESSION)
            | bit(self.geometry.extended(), INCOMPATIBLE_EXTENDED_L2)
    }

    fn compatible(&self) -> u64 {
        self.other_compatible | if self.lazy_refcounts { COMPATIBLE_LAZY_REFCOUNTS } else { 0 }
    }

    /// The header of an image to be made; where its tables stand is filled in later.
    pub(crate) fn new(size: u64, geometry: Geometry, version: u32, codec: Codec) -> Header {
        let mut header = Header {
            version,
            geometry,
            size,
            l1_offset: 0,
            l1_entries: 0,
            refcount_table_offset: 0,
            refcount_table_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            dirty: false,
            corrupt: false,
            lazy_refcounts: false,
            other_compatible: 0,
            has_data_file: false,
            autoclear: 0,
            crypt_method: 0,
            codec,
            rest: Vec::new(),
            backing: None,
            extensions: Extensions::default(),
        };
        header.set_version(version);
        header
    }

    /// Makes it one of version 2 or 3, with the fields and the feature names that QEMU gives to such a one.
    pub(crate) fn set_version(&mut self, version: u32) {
        self.version = version;
        self.rest = vec![0; if version == 2 { 0 } else { (NEW_LENGTH - V3_LENGTH) as usize }];
        self.extensions.set_features(version == 3 && self.geometry.cluster_size() > 4096);
    }
}

/// The first cluster's bytes, and which of them mean something.
#[derive(Clone, Debug)]
pub(crate) struct Laid {
    pub(crate) bytes: Vec<u8>,
    pub(crate) used: Vec<Range<usize>>,
}

impl Laid {
    /// What stands in a file's first cluster, whose header made sense.
    pub(crate) fn of(bytes: Vec<u8>) -> Result<Laid> {
        let (raw, _) = OnDisk::ref_from_prefix(&bytes).map_err(|_| short(bytes.len() as u64))?;
        let fields = if raw.version.get() == 2 { V2_LENGTH } else { raw.header_length.get() } as usize;
        let name_at = (raw.backing_file_offset.get() as usize).min(bytes.len());
        let name_end = name_at.saturating_add(raw.backing_file_size.get() as usize).min(bytes.len());
        let area_end = if name_at > 0 { name_at } else { bytes.len() };
        let mut used = vec![0..fields, name_at..name_end];
        let area = bytes.get(fields..area_end).unwrap_or_default();
        let end = extensions::walk(area, fields as u64, |at, kind, data| {
            let len = if extensions::is_filler(kind) { 0 } else { data.len() };
            used.push(fields + at..fields + at + extensions::PREFIX + len);
            Ok(())
        })?;
        used.push((fields + end).saturating_sub(extensions::PREFIX)..fields + end);
        Ok(Laid { bytes, used })
    }
}

fn short(len: u64) -> Error {
    Error::corrupt("header", format!("is cut off: the file has only {len} bytes"))
        .at(0)
        .known_as("qcow2 header too short")
}

impl OnDisk {
    /// Whether the extensions and the parent's name end within `front`, as far as they make sense.
    fn ends_within(&self, front: &[u8]) -> bool {
        let name_at = self.backing_file_offset.get();
        let name_ends = name_at.saturating_add(self.backing_file_size.get().into());
        let Some(area) = front.get(self.header_length.get() as usize..) else { return false };
        name_ends <= front.len() as u64
            && (name_at > 0 || extensions::walk(area, 0, |_, _, _| Ok(())).is_ok_and(|end| end < area.len()))
    }

    /// `first` is the first `cluster` bytes, or as many as [`OnDisk::ends_within`] says are enough, zero-filled where the
    /// file is shorter; `len` the file's length.
    fn judge(&self, first: &[u8], cluster: u64, len: u64, wrong: &mut Wrong<'_>) -> Result<Header> {
        let version = self.version.get();
        let header_length = self.header_length.get();
        if version == 3 {
            let name = "header_length";
            if header_length < V3_LENGTH {
                return Err(Error::corrupt(name, format!("is {header_length}, below {V3_LENGTH}"))
                    .at(100)
                    .known_as("qcow2 header too short"));
            }
            if u64::from(header_length) > cluster {
                return Err(Error::corrupt(
                    name,
                    format!("is {header_length}, more than a cluster of {cluster}"),
                )
                .at(100)
                .known_as("qcow2 header exceeds cluster size"));
            }
            if !header_length.is_multiple_of(8) {
                return Err(Error::corrupt(name, format!("is {header_length}, not a multiple of 8")).at(100));
            }
        }
        let order = self.refcount_order.get();
        if order > 6 {
            return Err(Error::corrupt(
                "refcount_order",
                format!("is {order}; at most 6 (64 bits) is allowed"),
            )
            .at(96)
            .known_as("Reference count entry width too large; may not exceed 64 bits"));
        }
        let backing_offset = self.backing_file_offset.get();
        let backing = self.backing(first, cluster).or_else(|error| wrong(error).map(|()| None))?;
        // Extensions end where the backing file's name starts.
        let extensions_end =
            if backing_offset > 0 { backing_offset.min(cluster) as usize } else { first.len() };
        let area = first.get(header_length as usize..extensions_end).unwrap_or_default();
        let extensions = Extensions::parse(area, u64::from(header_length))
            .or_else(|error| wrong(error).map(|()| Extensions::default()))?;

        let incompatible = self.incompatible_features.get();
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(unknown_features(unknown, &extensions));
        }
        match self.crypt_method.get() {
            0 => {}
            AES => {}
            LUKS => judge_crypto_header(extensions.crypto_header(), cluster, len).or_else(&mut *wrong)?,
            other => wrong(
                Error::corrupt("crypt_method", format!("{other} is unknown"))
                    .at(32)
                    .known_as(format!("Unsupported encryption method {other}")),
            )?,
        }
        let codec = codec(first, header_length, incompatible)?;
        let extended = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        let geometry = Geometry::new(self.cluster_bits.get(), extended, order);
        if extended && self.cluster_bits.get() < 14 {
            return Err(Error::corrupt(
                "extended L2",
                format!("needs clusters of at least 16384 bytes; these have {cluster}"),
            )
            .at(20));
        }
        self.judge_size(geometry).or_else(&mut *wrong)?;
        self.judge_l1(geometry, len).or_else(&mut *wrong)?;
        self.judge_refcounts(geometry, len).or_else(&mut *wrong)?;
        self.judge_snapshots(geometry, len).or_else(&mut *wrong)?;
        let has_data_file = incompatible & INCOMPATIBLE_DATA_FILE != 0;
        Ok(Header {
            version,
            geometry,
            size: self.size.get(),
            l1_offset: self.l1_table_offset.get(),
            l1_entries: self.l1_size.get(),
            refcount_table_offset: self.refcount_table_offset.get(),
            refcount_table_clusters: self.refcount_table_clusters.get(),
            snapshots: self.nb_snapshots.get(),
            snapshots_offset: self.snapshots_offset.get(),
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            corrupt: incompatible & INCOMPATIBLE_CORRUPT != 0,
            lazy_refcounts: self.compatible_features.get() & COMPATIBLE_LAZY_REFCOUNTS != 0,
            other_compatible: self.compatible_features.get() & !COMPATIBLE_LAZY_REFCOUNTS,
            has_data_file,
            autoclear: self.autoclear_features.get(),
            crypt_method: self.crypt_method.get(),
            codec,
            rest: first
                .get(V3_LENGTH as usize..header_length as usize)
                .unwrap_or_default() // version 2
                .to_vec(),
            backing,
            extensions,
        })
    }

    fn backing(&self, first: &[u8], cluster: u64) -> Result<Option<Vec<u8>>> {
        let (offset, size) = (self.backing_file_offset.get(), self.backing_file_size.get());
        let outside = |known: &'static str| {
            Error::corrupt(
                "backing_file_offset",
                format!("{offset}: the name lies outside the first cluster"),
            )
            .at(8)
            .known_as(known)
        };
        if offset > cluster {
            return Err(outside("Invalid backing file offset"));
        }
        if offset == 0 || size == 0 {
            return Ok(None);
        }
        if size > MAX_BACKING_NAME {
            return Err(Error::corrupt(
                "backing_file_size",
                format!("is {size}; a name has at most {MAX_BACKING_NAME} bytes"),
            )
            .at(16)
            .known_as("Backing file name too long"));
        }
        let range =
            usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(size as usize)?));
        let name =
            range.and_then(|range| first.get(range)).ok_or_else(|| outside("Backing file name too long"))?;
        if name.contains(&0) {
            return Err(Error::corrupt("backing file name", "has a NUL byte in it").at(offset));
        }
        Ok(Some(name.to_vec()))
    }

    fn judge_size(&self, geometry: Geometry) -> Result<()> {
        let size = self.size.get();
        if size > i64::MAX as u64 {
            return Err(Error::corrupt("size", format!("{size} is above 2^63 - 1"))
                .at(24)
                .known_as("Image is too big"));
        }
        let (entries, needed) = (u64::from(self.l1_size.get()), geometry.l1_entries(size));
        if entries < needed {
            return Err(Error::corrupt(
                "l1_size",
                format!("{entries} entries do not cover the disk's {size} bytes, which need {needed}"),
            )
            .at(36)
            .known_as(if needed > i32::MAX as u64 {
                "Image is too big"
            } else {
                "L1 table is too small"
            }));
        }
        Ok(())
    }

    fn judge_l1(&self, geometry: Geometry, len: u64) -> Result<()> {
        let entries = u64::from(self.l1_size.get());
        if entries * 8 > MAX_L1_BYTES {
            return Err(Error::corrupt("l1_size", format!("{entries} entries are more than 32 MiB"))
                .at(36)
                .known_as("Active L1 table too large"));
        }
        table("L1 table", "Active L1 table", self.l1_table_offset.get(), entries * 8, geometry, len, 40)
    }

    fn judge_refcounts(&self, geometry: Geometry, len: u64) -> Result<()> {
        let clusters = u64::from(self.refcount_table_clusters.get());
        let bytes = clusters << geometry.cluster_bits();
        if bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::corrupt(
                "refcount_table_clusters",
                format!("{clusters}: the table is larger than 8 MiB"),
            )
            .at(56)
            .known_as("Reference count table too large"));
        }
        if clusters == 0 {
            return Err(Error::corrupt("refcount_table_clusters", "is 0: there is no refcount table")
                .at(56)
                .known_as("Image does not contain a reference count table"));
        }
        // Only the start must be in the file: a file may end inside its last cluster.
        table(
            "refcount table",
            "Reference count table",
            self.refcount_table_offset.get(),
            1,
            geometry,
            len,
            48,
        )?;
        if self.refcount_table_offset.get().checked_add(bytes).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Error::corrupt("refcount table", "goes past 2^63").at(48));
        }
        Ok(())
    }

    fn judge_snapshots(&self, geometry: Geometry, len: u64) -> Result<()> {
        let snapshots = self.nb_snapshots.get();
        if snapshots > MAX_SNAPSHOTS {
            return Err(Error::corrupt("nb_snapshots", format!("{snapshots} is more than {MAX_SNAPSHOTS}"))
                .at(60)
                .known_as("Snapshot table too large"));
        }
        // An entry has at least 40 bytes.
        let bytes = u64::from(snapshots) * 40;
        table("snapshot table", "Snapshot table", self.snapshots_offset.get(), bytes, geometry, len, 64)
    }
}

/// `known` is what QEMU calls it.
fn table(
    name: &str,
    known: &str,
    offset: u64,
    bytes: u64,
    geometry: Geometry,
    len: u64,
    at: u64,
) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    if geometry.in_cluster(offset) != 0 {
        return Err(Error::corrupt(name, format!("starts at {offset}, which is no cluster's start"))
            .at(at)
            .known_as(format!("{known} offset invalid")));
    }
    match offset.checked_add(bytes) {
        Some(end) if end <= len && offset != 0 => Ok(()),
        Some(_) if offset == 0 => Err(Error::corrupt(name, "is said to stand over the header").at(at)),
        _ => Err(Error::corrupt(
            name,
            format!("{bytes} bytes at {offset} go past the end of the file ({len} bytes)"),
        )
        .at(at)),
    }
}

fn codec(first: &[u8], header_length: u32, incompatible: u64) -> Result<Codec> {
    let number = if header_length > V3_LENGTH { first.get(AT_COMPRESSION).copied().unwrap_or(0) } else { 0 };
    let stated = incompatible & INCOMPATIBLE_COMPRESSION != 0;
    let codec = Codec::by_number(number).ok_or_else(|| {
        Error::unsupported(format!("compression type {number} is unknown"))
            .field("compression_type")
            .at(104)
            .known_as(format!("qcow2: unknown compression type: {number}"))
    })?;
    match (codec, stated) {
        (Codec::Zlib, true) => {
            Err(Error::corrupt("compression_type", "is zlib, and the feature bit says it is another")
                .at(104)
                .known_as("qcow2: Compression type incompatible feature bit must not be set"))
        }
        (Codec::Zstd, false) => {
            Err(Error::corrupt("compression_type", "is not zlib, and the feature bit for that is missing")
                .at(104)
                .known_as("qcow2: Compression type incompatible feature bit must be set"))
        }
        _ => Ok(codec),
    }
}

fn judge_crypto_header(pointer: Option<CryptoAt>, cluster: u64, len: u64) -> Result<()> {
    let wrong = |message: String| Err(Error::corrupt("full disk encryption header pointer", message));
    let Some(CryptoAt { offset, length }) = pointer else {
        return wrong("is missing, and crypt_method says LUKS".to_owned())
            .map_err(|error| error.known_as(format!("Missing CRYPTO header for crypt method {LUKS}")));
    };
    if offset == 0 || !offset.is_multiple_of(cluster) {
        return wrong(format!("{offset} is no cluster's start, or the header's"));
    }
    match offset.checked_add(length) {
        Some(end) if end <= len => Ok(()),
        _ => wrong(format!("{length} bytes at {offset} go past the end of the file ({len} bytes)")),
    }
}

fn unknown_features(bits: u64, extensions: &Extensions) -> Error {
    let known = extensions.features();
    let name_of = |bit: u8| {
        let named = |feature: &&Feature| feature.kind == FeatureKind::Incompatible && feature.bit == bit;
        known.iter().find(named).map(|feature| feature.name.as_str())
    };
    let mut names = Vec::new();
    // QEMU lists the names, and then all bits that have none as one number.
    let (mut named, mut nameless) = (Vec::new(), bits);
    for bit in (0..64u8).filter(|bit| bits & (1 << bit) != 0) {
        match name_of(bit) {
            Some(name) => {
                names.push(format!("'{name}' (bit {bit})"));
                named.push(name.to_owned());
                nameless &= !(1 << bit);
            }
            None => names.push(format!("bit {bit}")),
        }
    }
    if nameless != 0 {
        named.push(format!("Unknown incompatible feature: {nameless:x}"));
    }
    Error::unsupported(format!("the image uses features that are not known here: {}", names.join(", ")))
        .field("incompatible_features")
        .at(72)
        .hint("read it with the program that wrote it")
        .known_as(format!("Unsupported qcow2 feature(s): {}", named.join(", ")))
}
