//! The footer: its 512 bytes, what they mean, and how large the disk is that they describe.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cowhand_core::{Error, Result, Storage};
use serde_json::{Map, Value};
use uuid::Uuid;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::creator::Creator;
use crate::geometry::Geometry;

pub(crate) const COOKIE: &[u8; 8] = b"conectix";
pub(crate) const FOOTER_LEN: u64 = 512;
/// `data_offset` of a disk that has no dynamic header.
const NO_HEADER: u64 = u64::MAX;
/// 2000-01-01 00:00 UTC in seconds since 1970: where VHD's time begins.
pub(crate) const EPOCH: u64 = 946_684_800;

/// What stands in front of the place in [`Footer::stale_footer`], and where in the reserved area.
const RESIZING: &[u8] = b"cowhand resizing";
const RESIZING_AT: usize = 426 - 16 - 8;

/// The footer as it stands in the file (VHD specification, "Hard Disk Footer Format").
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawFooter {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    data_offset: U64,
    timestamp: U32,
    creator_app: [u8; 4],
    creator_version: U32,
    creator_host_os: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors_per_track: u8,
    disk_type: U32,
    checksum: U32,
    unique_id: [u8; 16],
    saved_state: u8,
    hidden: u8,
    reserved: [u8; 426],
}

/// That moment as VHD's time: 0 before the year 2000, and the last second there is after 2136.
pub(crate) fn timestamp(moment: SystemTime) -> u32 {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(seconds.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// The moment that VHD's time says.
pub(crate) fn moment(timestamp: u32) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(EPOCH + u64::from(timestamp))
}

/// The ones' complement of the sum of all bytes of `bytes` but those of the checksum itself.
pub(crate) fn checksum(bytes: &[u8], own: [u8; 4]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(bytes).wrapping_sub(sum(&own))
}

impl RawFooter {
    /// The footer in `bytes`, if the cookie is there. Shorter than 512 bytes: the rest is zero, as in the 511-byte
    /// footers of the first Virtual PCs.
    pub(crate) fn with_cookie(bytes: &[u8]) -> Option<RawFooter> {
        let mut whole = [0; FOOTER_LEN as usize];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        let footer: RawFooter = zerocopy::transmute!(whole);
        (footer.cookie == *COOKIE).then_some(footer)
    }

    pub(crate) fn checksum_is_good(&self) -> bool {
        checksum(self.as_bytes(), self.checksum.to_bytes()) == self.checksum.get()
    }

    /// The checksum as it is and as it should be.
    pub(crate) fn checksums(&self) -> (u32, u32) {
        (self.checksum.get(), checksum(self.as_bytes(), self.checksum.to_bytes()))
    }

    pub(crate) fn features(&self) -> u32 {
        self.features.get()
    }

    /// Whether something stands where the specification has zeros.
    pub(crate) fn reserved_is_used(&self) -> bool {
        self.reserved != [0; 426]
    }

    pub(crate) fn disk_type(&self) -> Option<DiskType> {
        match self.disk_type.get() {
            2 => Some(DiskType::Fixed),
            3 => Some(DiskType::Dynamic),
            4 => Some(DiskType::Differencing),
            _ => None,
        }
    }

    /// The validated footer; `at` is where it was found. Errors: a version or type that this code does not know.
    pub(crate) fn parse(&self, at: u64) -> Result<Footer> {
        let version = self.version.get();
        if version >> 16 != 1 {
            return Err(Error::unsupported(format!(
                "version {}.{} is not known",
                version >> 16,
                version & 0xffff
            ))
            .field("footer version")
            .at(at + 12));
        }
        let disk_type = self.disk_type().ok_or_else(|| {
            Error::unsupported(format!(
                "type {} is not known; 2 is fixed, 3 dynamic, 4 differencing",
                self.disk_type
            ))
            .field("footer disk type")
            .at(at + 60)
        })?;
        Ok(Footer {
            features: self.features.get(),
            disk_type,
            header_at: self.data_offset.get(),
            timestamp: self.timestamp.get(),
            creator_app: self.creator_app,
            creator_version: self.creator_version.get(),
            creator_host_os: self.creator_host_os,
            original_size: self.original_size.get(),
            current_size: self.current_size.get(),
            geometry: Geometry {
                cylinders: self.cylinders.get(),
                heads: self.heads,
                sectors_per_track: self.sectors_per_track,
            },
            unique_id: self.unique_id,
            saved_state: self.saved_state,
            hidden: self.hidden,
            reserved: self.reserved,
        })
    }
}

/// The fields of the footer at `at`, as they stand there.
pub(crate) fn fields(file: &dyn Storage, at: u64) -> Result<Map<String, Value>> {
    let mut bytes = [0; FOOTER_LEN as usize];
    let len = file.len().unwrap_or(u64::MAX).saturating_sub(at).min(FOOTER_LEN);
    file.read_at(at, bytes.get_mut(..len as usize).unwrap_or_default())
        .map_err(|error| Error::io("cannot read the footer", error).at(at))?;
    let raw: RawFooter = zerocopy::transmute!(bytes);
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
    };
    let (checksum, computed) = raw.checksums();
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("cookie", text(&raw.cookie).into());
    put("features", raw.features.get().into());
    put("version", raw.version.get().into());
    put("data-offset", raw.data_offset.get().into());
    put("timestamp", (EPOCH + u64::from(raw.timestamp.get())).into());
    put("creator", text(&raw.creator_app).into());
    put("creator-version", raw.creator_version.get().into());
    put("creator-host-os", text(&raw.creator_host_os).into());
    put("original-size", raw.original_size.get().into());
    put("current-size", raw.current_size.get().into());
    put("cylinders", raw.cylinders.get().into());
    put("heads", raw.heads.into());
    put("sectors-per-track", raw.sectors_per_track.into());
    put("disk-type", raw.disk_type.get().into());
    put("checksum", checksum.into());
    put("checksum-computed", computed.into());
    put("uuid", Uuid::from_bytes(raw.unique_id).to_string().into());
    put("saved-state", raw.saved_state.into());
    put("hidden", raw.hidden.into());
    Ok(fields)
}

/// What sort of disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

impl DiskType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        }
    }
}

/// Which field of the footer tells the disk's size (QEMU's option `force_size_calc`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SizeRule {
    /// What the program that made the image meant.
    #[default]
    Auto,
    CurrentSize,
    Chs,
}

/// A footer whose type and version are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// Bit 1 is reserved and always set; bit 0 marks a temporary disk.
    pub(crate) features: u32,
    pub(crate) disk_type: DiskType,
    /// Where the dynamic header stands; of no meaning in a fixed disk.
    pub(crate) header_at: u64,
    /// Seconds since 2000-01-01 UTC.
    pub(crate) timestamp: u32,
    pub(crate) creator_app: [u8; 4],
    pub(crate) creator_version: u32,
    pub(crate) creator_host_os: [u8; 4],
    pub(crate) original_size: u64,
    pub(crate) current_size: u64,
    pub(crate) geometry: Geometry,
    pub(crate) unique_id: [u8; 16],
    pub(crate) saved_state: u8,
    /// XenServer's mark on a disk that is only a parent.
    pub(crate) hidden: u8,
    /// What is not known here goes back into the file as it was.
    pub(crate) reserved: [u8; 426],
}

impl Footer {
    /// The footer of a new disk with its own unique id, made here; `header_at` is `None` for a fixed disk.
    pub(crate) fn new(size: u64, geometry: Geometry, header_at: Option<u64>) -> Footer {
        let creator = Creator::default();
        Footer {
            features: 2,
            disk_type: if header_at.is_some() { DiskType::Dynamic } else { DiskType::Fixed },
            header_at: header_at.unwrap_or(NO_HEADER),
            timestamp: timestamp(SystemTime::now()),
            creator_app: creator.app,
            creator_version: creator.version,
            creator_host_os: creator.host_os,
            original_size: size,
            current_size: size,
            geometry,
            unique_id: Footer::new_id(),
            saved_state: 0,
            hidden: 0,
            reserved: [0; 426],
        }
    }

    /// The same, as if another program had made the disk.
    pub(crate) fn by(self, creator: Creator) -> Footer {
        Footer {
            creator_app: creator.app,
            creator_version: creator.version,
            creator_host_os: creator.host_os,
            ..self
        }
    }

    /// A unique id that no other disk has.
    pub(crate) fn new_id() -> [u8; 16] {
        *uuid::Uuid::new_v4().as_bytes()
    }

    /// The 512 bytes, with their checksum.
    pub(crate) fn to_bytes(&self) -> [u8; FOOTER_LEN as usize] {
        let mut raw = RawFooter {
            cookie: *COOKIE,
            features: self.features.into(),
            version: 0x0001_0000.into(),
            data_offset: self.header_at.into(),
            timestamp: self.timestamp.into(),
            creator_app: self.creator_app,
            creator_version: self.creator_version.into(),
            creator_host_os: self.creator_host_os,
            original_size: self.original_size.into(),
            current_size: self.current_size.into(),
            cylinders: self.geometry.cylinders.into(),
            heads: self.geometry.heads,
            sectors_per_track: self.geometry.sectors_per_track,
            disk_type: match self.disk_type {
                DiskType::Fixed => 2.into(),
                DiskType::Dynamic => 3.into(),
                DiskType::Differencing => 4.into(),
            },
            checksum: 0.into(),
            unique_id: self.unique_id,
            saved_state: self.saved_state,
            hidden: self.hidden,
            reserved: self.reserved,
        };
        raw.checksum = checksum(raw.as_bytes(), [0; 4]).into();
        zerocopy::transmute!(raw)
    }

    /// The disk's bytes. By default the current size, but for the creators that present the geometry to their guest. The
    /// largest geometry there is says nothing.
    pub(crate) fn size(&self, rule: SizeRule) -> u64 {
        let by_geometry = match rule {
            SizeRule::CurrentSize => false,
            SizeRule::Chs => self.geometry != Geometry::MAX,
            SizeRule::Auto => {
                matches!(&self.creator_app, b"vpc " | b"qemu" | b"vs  ")
                    && self.geometry != Geometry::MAX
                    && self.geometry.bytes() != 0
            }
        };
        if by_geometry { self.geometry.bytes() } else { self.current_size }
    }

    /// Where a footer of another size stands among the disk's sectors, while a fixed disk is resized: that sector reads
    /// zero. Other programs keep nothing at the end of the reserved area.
    pub(crate) fn stale_footer(&self) -> Option<u64> {
        let (mark, at) = self.reserved.get(RESIZING_AT..)?.split_last_chunk::<8>()?;
        (mark == RESIZING).then(|| u64::from_be_bytes(*at))
    }

    /// Says so.
    pub(crate) fn set_stale_footer(&mut self, at: Option<u64>) {
        let note: Vec<u8> = match at {
            Some(at) => RESIZING.iter().copied().chain(at.to_be_bytes()).collect(),
            None => vec![0; RESIZING.len() + 8],
        };
        for (to, from) in self.reserved.iter_mut().skip(RESIZING_AT).zip(note) {
            *to = from;
        }
    }

    /// Whether sector bitmaps have bit 0 first: XenServer's blktap before creator version 1.1.
    pub(crate) fn bitmaps_are_lsb_first(&self) -> bool {
        self.made_by_blktap() && self.creator_version < 0x0001_0001
    }

    pub(crate) fn made_by_blktap(&self) -> bool {
        self.creator_app == *b"tap\0"
    }

    /// Whether its maker writes batmaps: blktap after version 0.1.
    pub(crate) fn may_have_batmap(&self) -> bool {
        self.made_by_blktap() && self.creator_version > 1
    }

    /// Seconds since 1970 at which the image was made.
    pub(crate) fn created(&self) -> u64 {
        EPOCH + u64::from(self.timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut footer = Footer::new(1 << 30, Geometry::MAX, Some(512));
        (footer.features, footer.reserved[425]) = (3, 7);
        let raw = RawFooter::with_cookie(&footer.to_bytes()).unwrap();
        assert!(raw.checksum_is_good());
        assert_eq!(raw.parse(0).unwrap(), footer);
        assert_ne!(Footer::new(512, Geometry::MAX, None).unique_id, footer.unique_id);
    }

    #[test]
    fn every_byte_is_in_the_checksum() {
        let good = Footer::new(1 << 30, Geometry::MAX, None).to_bytes();
        for at in 8..512 {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert!(!RawFooter::with_cookie(&bad).unwrap().checksum_is_good(), "byte {at}");
        }
        // A footer by hand: the cookie alone.
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(COOKIE);
        let sum: u32 = COOKIE.iter().map(|b| u32::from(*b)).sum();
        assert_eq!(checksum(&bytes, [0; 4]), u32::MAX - sum);
    }

    #[test]
    fn the_size_follows_the_creator() {
        let geometry = Geometry::of_sectors(1000);
        let footer = |creator: &[u8; 4], geometry| Footer {
            creator_app: *creator,
            ..Footer::new(1000 * 512, geometry, None)
        };
        for creator in
            [b"win ", b"qem2", b"d2v\0", b"tap\0", b"CTXS", b"wa\0\0", b"vbox", b"xo  ", b"caml", b"cowh"]
        {
            assert_eq!(footer(creator, geometry).size(SizeRule::Auto), 512_000);
            assert_eq!(footer(creator, geometry).size(SizeRule::Chs), geometry.bytes());
        }
        for creator in [b"vpc ", b"qemu", b"vs  "] {
            assert_eq!(footer(creator, geometry).size(SizeRule::Auto), geometry.bytes());
            assert_eq!(footer(creator, geometry).size(SizeRule::CurrentSize), 512_000);
            assert_eq!(footer(creator, Geometry::MAX).size(SizeRule::Auto), 512_000);
        }
    }

    #[test]
    fn time_begins_in_2000() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (seconds, stamp) in [(0, 0), (EPOCH, 0), (EPOCH + 1, 1), (EPOCH + (1 << 32), u32::MAX)] {
            assert_eq!(timestamp(at(seconds)), stamp, "{seconds}");
        }
        assert_eq!(moment(0x3292_d575), at(EPOCH + 0x3292_d575));
    }

    #[test]
    fn unknown_versions_and_types_are_refused_by_name() {
        let mut bytes = Footer::new(512, Geometry::MAX, None).to_bytes();
        bytes[63] = 5;
        let error = RawFooter::with_cookie(&bytes).unwrap().parse(1024).unwrap_err().to_string();
        assert!(error.contains("footer disk type at offset 1084: type 5"), "{error}");
        bytes[13] = 2;
        let error = RawFooter::with_cookie(&bytes).unwrap().parse(0).unwrap_err().to_string();
        assert!(error.contains("footer version at offset 12: version 2.0"), "{error}");
    }
}
