//! How long the whole file is, by its front alone.
//!
//! The table says where the last block ends. Where the footer stands behind it, nothing says: XenServer, QEMU,
//! VirtualBox and this code put it there and then; Windows leaves 3584 bytes, Virtual PC 512; a place that was given
//! up may lie between. So there is an answer only where the blocks lie exactly as a program lays them that is known to
//! leave nothing behind them, and where no other program can have put the last block there.

use super::front::Front;
use crate::footer::FOOTER_LEN;
use crate::geometry::SECTOR;

/// On this Windows and XenServer put the payload of every block.
const PAGE: u64 = 4096;

impl Front {
    /// The file's length in bytes; `None`: the layout does not tell.
    pub(super) fn file_len(&self) -> Option<u64> {
        let creator = &self.footer.creator_app;
        // Programs with the footer right behind the last block: QEMU, VirtualBox, XAPI's and Xen Orchestra's exports,
        // this code, and XenServer's blktap.
        if !matches!(creator, b"qemu" | b"qem2" | b"vbox" | b"caml" | b"xo  " | b"cowh" | b"tap\0") {
            return None;
        }
        let blktap = self.footer.made_by_blktap();
        let blocks = self.blocks(u64::from(self.header.max_entries));
        let places = || blocks.iter().map(|(sector, _)| u64::from(*sector) * SECTOR);
        let (Some(first), Some(last)) = (places().next(), places().next_back()) else {
            // Behind an empty table blktap has its batmap, or not.
            return (!blktap).then_some(self.end + FOOTER_LEN);
        };
        let bitmap = self.header.bitmap_len();
        let block = bitmap + self.header.block_size;
        let on_page = |place: u64| (place + bitmap).is_multiple_of(PAGE);
        let evenly = |pitch: u64| places().zip(places().skip(1)).all(|(this, next)| next - this == pitch);
        // A block that a guest wrote later stands behind the others, whatever its number.
        let in_order = blocks.is_sorted_by_key(|(_, number)| *number);
        let known = if first == self.end && evenly(block) {
            // Back to back: Windows, had it gone on writing here, would have left a gap.
            in_order || !on_page(last)
        } else {
            // Windows would go on in just this way; it is not often that it gets a disk of XenServer's.
            first > self.end && on_page(first) && evenly(block.next_multiple_of(PAGE)) && (blktap || in_order)
        };
        // QEMU and the others here do not pad.
        let pads = blktap || creator == b"cowh";
        (known && (pads || first == self.end)).then_some(last + block + FOOTER_LEN)
    }
}
