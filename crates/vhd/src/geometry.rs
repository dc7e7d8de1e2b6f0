//! Cylinders, heads, sectors: the geometry of a footer, and the disk sizes that it can say exactly.

/// Bytes of a sector, the unit of everything in a VHD.
pub(crate) const SECTOR: u64 = 512;

/// A disk geometry (VHD specification, "Disk Geometry" and the appendix on its calculation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) cylinders: u16,
    pub(crate) heads: u8,
    pub(crate) sectors_per_track: u8,
}

impl Geometry {
    /// The largest geometry. It says "as large as this or larger": a reader then takes the current size.
    pub(crate) const MAX: Geometry = Geometry { cylinders: 65535, heads: 16, sectors_per_track: 255 };

    /// The geometry of a disk of `total` sectors by the specification's algorithm, which rounds down.
    pub(crate) fn of_sectors(total: u64) -> Geometry {
        let total = total.min(Geometry::MAX.total_sectors());
        let (mut per_track, mut heads, mut tracks);
        if total >= 65535 * 16 * 63 {
            (per_track, heads, tracks) = (255, 16, total / 255);
        } else {
            (per_track, tracks) = (17, total / 17);
            heads = tracks.div_ceil(1024).max(4);
            if tracks >= heads * 1024 || heads > 16 {
                (per_track, heads, tracks) = (31, 16, total / 31);
            }
            if tracks >= heads * 1024 {
                (per_track, heads, tracks) = (63, 16, total / 63);
            }
        }
        // Every field fits: `total` is capped, and the branches keep heads and sectors at their own limits.
        Geometry {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: heads as u8,
            sectors_per_track: per_track,
        }
    }

    /// The geometry of the smallest disk that holds `total` sectors and has exactly the size its geometry says; the
    /// maximum for larger disks. This is the rounding of `qemu-img create`: a few thousand steps at most.
    pub(crate) fn holding(total: u64) -> Geometry {
        let total = total.min(Geometry::MAX.total_sectors());
        let mut asked = total;
        loop {
            let geometry = Geometry::of_sectors(asked);
            if geometry.total_sectors() >= total {
                return geometry;
            }
            asked += 1;
        }
    }

    /// The product of the three.
    pub(crate) fn total_sectors(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track)
    }

    /// The product of the three, in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.total_sectors() * SECTOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chs(total: u64) -> (u16, u8, u8) {
        let g = Geometry::of_sectors(total);
        (g.cylinders, g.heads, g.sectors_per_track)
    }

    #[test]
    fn follows_the_specification() {
        for (bytes, expected) in [
            (0, (0, 4, 17)),
            // As Windows, XenServer and VirtualBox wrote them.
            (4 << 20, (120, 4, 17)),
            (512 << 20, (1040, 16, 63)),
            (104859136 + 512, (1003, 12, 17)),
            (127 << 30, (65278, 16, 255)),
            (u64::MAX, (65535, 16, 255)),
        ] {
            assert_eq!(chs(bytes / SECTOR), expected, "{bytes}");
        }
        // The edges between the branches.
        assert_eq!(chs(65535 * 16 * 63 - 1), (65534, 16, 63));
        assert_eq!(chs(65535 * 16 * 63), (16191, 16, 255));
        assert_eq!(chs(17 * 16 * 1024 - 1), (1023, 16, 17));
        assert_eq!(chs(17 * 16 * 1024), (561, 16, 31));
        assert_eq!(chs(31 * 16 * 1024), (503, 16, 63));
    }

    #[test]
    fn rounding_up_is_exact_and_never_short() {
        for total in (0..1u64 << 22).step_by(997).chain([65535 * 16 * 63 - 1, 65535 * 16 * 63, 1 << 27]) {
            let up = Geometry::holding(total);
            assert!(up.total_sectors() >= total, "{total}");
            assert!(up.total_sectors() < total + 4080 * 2, "{total}");
            assert_eq!(Geometry::holding(up.total_sectors()), up, "{total}: rounding twice changes it");
        }
        assert_eq!(Geometry::holding(1 << 40), Geometry::MAX);
    }
}
