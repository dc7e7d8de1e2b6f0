//! The two footers: each alone, against each other, and what their fields say.
//!
//! A corruption is what loses or endangers data: a footer whose checksum is wrong, one that is not there. A note is what
//! other programs may object to (XenServer's vhd-util refuses a creation time in the future; a computer whose clock was
//! wrong has lost no data), and what a power cut between the writes of the two footers leaves: both are good, and the one
//! at the end counts.

use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::IntoBytes;

use super::Disk;
use super::findings::Findings;
use crate::find::{Found, Places};
use crate::footer::{DiskType, FOOTER_LEN, RawFooter, SizeRule};
use crate::geometry::{Geometry, SECTOR};

/// What clocks may differ by, in seconds; as vhd-util has it.
const SLACK: u64 = 1800;

/// What stands where a footer should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Absent,
    BadSum,
    /// At the end, where the copy at the front counts: one of a fixed disk, perhaps a guest's own sector.
    Foreign,
    Good,
}

/// Both footers of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) head: End,
    pub(super) tail: End,
    /// The bytes of the one that counts.
    pub(super) footer: [u8; FOOTER_LEN as usize],
    /// Both are good, and not the same.
    pub(super) differ: bool,
    /// Both are good, have different ids, and do not describe the same disk.
    pub(super) strangers: bool,
    pub(super) tail_at: u64,
    /// The one at the end has 511 bytes.
    pub(super) short: bool,
}

impl Ends {
    pub(super) fn judge(places: &Places, found: &Found) -> Ends {
        let end = |footer: &Option<RawFooter>| match footer {
            None => End::Absent,
            Some(footer) if footer.checksum_is_good() => End::Good,
            Some(_) => End::BadSum,
        };
        let (head, mut tail) = (end(&places.head), end(&places.tail));
        let counts = if found.at == places.tail_at { &places.tail } else { &places.head };
        if tail == End::Good && found.at != places.tail_at {
            tail = End::Foreign;
        }
        let mut footer = [0; FOOTER_LEN as usize];
        if let Some(counts) = counts {
            footer.copy_from_slice(counts.as_bytes());
        }
        let both = places.head.as_ref().zip(places.tail.as_ref());
        let both = both.filter(|_| head == End::Good && tail == End::Good);
        Ends {
            head,
            tail,
            footer,
            differ: both.is_some_and(|(head, tail)| head.as_bytes() != tail.as_bytes()),
            strangers: both.is_some_and(|(head, tail)| match (head.parse(0), tail.parse(0)) {
                (Ok(head), Ok(tail)) => {
                    head.unique_id != tail.unique_id
                        && (head.disk_type, head.header_at, head.current_size)
                            != (tail.disk_type, tail.header_at, tail.current_size)
                }
                _ => true,
            }),
            tail_at: places.tail_at,
            short: places.tail.is_some() && places.file_len - places.tail_at < FOOTER_LEN,
        }
    }
}

/// Judges both footers of a disk, of which one is good.
pub(super) fn judge(found: &Found, ends: &Ends, all: &mut Findings) {
    if ends.short {
        all.note(ends.tail_at, || {
            "the footer at the end has 511 bytes, as in Virtual PC before 2004".to_owned()
        });
    }
    if found.footer.disk_type != DiskType::Fixed {
        match ends.head {
            End::Absent => all.corrupt(0, || "the footer's copy at the front is not there".to_owned()),
            End::BadSum => {
                all.corrupt(64, || "the footer's copy at the front has a wrong checksum".to_owned())
            }
            End::Good | End::Foreign => {}
        }
        match ends.tail {
            _ if all.rules.any_end => {}
            End::BadSum => all.corrupt(ends.tail_at + 64, || {
                "the footer at the end has a wrong checksum; the copy at the front counts".to_owned()
            }),
            End::Foreign => all.corrupt(ends.tail_at + 60, || {
                "what stands at the end is a fixed disk's footer; the copy at the front counts".to_owned()
            }),
            End::Absent | End::Good => {}
        }
        if ends.strangers {
            all.corrupt(0, || {
                "the footers at the front and at the end describe different disks, and nobody can say which is right"
                    .to_owned()
            });
        } else if ends.differ && !all.rules.any_end {
            all.refused(0, || {
                "the footer's copy at the front is not the same as the footer at the end, which counts"
                    .to_owned()
            });
        }
    }
    fields(found, ends, all);
}

/// What the fields of the footer that counts say.
fn fields(found: &Found, ends: &Ends, all: &mut Findings) {
    let (footer, at) = (&found.footer, found.at);
    let Some(raw) = RawFooter::with_cookie(&ends.footer) else { return };
    if raw.features() & 2 == 0 || raw.features() & !3 != 0 {
        all.refused(at + 8, || {
            format!("the features are {:#x}; bit 1 is always set, and only bit 0 with it", raw.features())
        });
    }
    if footer.disk_type == DiskType::Fixed && footer.header_at != u64::MAX {
        all.refused(at + 16, || "the footer of a fixed disk has a data offset".to_owned());
    }
    if is_in_the_future(footer.created()) && !all.rules.any_time {
        all.refused(at + 24, || {
            "the image says that it was made in the future; XenServer refuses that".to_owned()
        });
    }
    if !footer.original_size.is_multiple_of(SECTOR) {
        all.note(at + 40, || {
            format!("the original size is {} bytes, no multiple of 512", footer.original_size)
        });
    }
    // The maximum is what QEMU's force_size and Disk2vhd write whatever the size, and says nothing.
    let said = footer.geometry.bytes();
    if footer.geometry != Geometry::MAX
        && footer.geometry.total_sectors()
            > Geometry::of_sectors(footer.current_size / SECTOR).total_sectors()
    {
        if footer.size(SizeRule::Auto) > footer.current_size {
            all.corrupt(at + 56, || {
                let size = footer.current_size;
                format!("the geometry says {said} bytes and the current size {size}; which is meant depends on the reader")
            });
        } else {
            all.refused(at + 56, || {
                format!("the geometry, {said} bytes, is larger than that of the disk's size; XenServer refuses that")
            });
        }
    }
    if footer.saved_state > 1 {
        all.refused(at + 84, || format!("the saved state is {}, neither 0 nor 1", footer.saved_state));
    }
    if footer.hidden > 2 {
        all.refused(at + 85, || format!("the hidden mark is {}, and not 0, 1 or 2", footer.hidden));
    }
    if footer.unique_id == [0; 16] {
        all.refused(at + 68, || "the disk's unique id is zero".to_owned());
    }
    if raw.reserved_is_used() {
        all.refused(at + 86, || "the footer's reserved bytes are not zero".to_owned());
    }
}

/// Whether that moment, in seconds since 1970, is later than clocks may differ.
pub(super) fn is_in_the_future(moment: u64) -> bool {
    moment > SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()) + SLACK
}

/// Where no footer stands at the end. While the image grows that is so for a moment, and room that nothing uses shows it.
pub(super) fn missing(disk: &Disk, all: &mut Findings) {
    if disk.ends.tail != End::Absent || all.rules.any_end {
        return;
    }
    let at = disk.ends.tail_at;
    let text = || "no footer stands at the end; the copy at the front counts".to_owned();
    if all.tail_is_unused { all.refused(at, text) } else { all.corrupt(at, text) }
}
