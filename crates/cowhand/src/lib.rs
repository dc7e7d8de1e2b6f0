//! Virtual disks: open, create, convert, compare, map and inspect qcow2, VHD, VHDX and raw images, and the
//! disks of VMA archives.
//!
//! ```no_run
//! use cowhand::{Convert, Open, Quiet};
//!
//! # fn main() -> cowhand::Result<()> {
//! // One disk, whatever chain of files it is made of.
//! let disk = cowhand::open("vm.vhdx".as_ref(), &Open::default())?;
//! let mut sector = [0; 512];
//! disk.read(0, &mut sector)?;
//!
//! // A whole target or none.
//! cowhand::convert(&Convert::new(["vm.vhdx"], "vm.qcow2"), &Quiet)?;
//! # Ok(())
//! # }
//! ```
//!
//! A verb knows no format: what it needs of one it asks through [`Format`] and [`Layer`]. The formats are listed in
//! [`formats`], and nowhere else.

#![forbid(unsafe_code)]

mod allocated;
mod amend;
pub mod archive;
mod bench;
mod bitmap;
mod buffer;
mod chain;
mod check;
mod child;
mod commit;
mod compact;
mod compare;
mod consumer;
mod convert;
mod create;
mod dd;
mod doctor;
mod failed;
mod fill;
mod flatten;
mod gate;
mod hidden;
mod info;
pub mod inspect;
mod journal;
mod kinship;
mod map;
mod measure;
mod merge;
mod node;
mod open;
mod parent;
mod plan;
mod populate;
#[cfg(test)]
mod power_cuts;
mod rebase;
mod reconnect;
mod registry;
mod resize;
mod resolve;
mod resume;
mod round;
mod runs;
mod salvage;
mod scan;
mod sectors;
mod shelf;
mod siblings;
mod size_by_file;
mod snapshots;
pub mod stream;
mod target;
mod target_folder;
mod undo;

pub use allocated::{allocated, bitmap_unit, block_bitmap};
pub use amend::{Amend, amend};
pub use bench::{Bench, bench};
pub use bitmap::{BitmapAction, BitmapStep, MergeSource, bitmap};
pub use chain::{Layered, Tree, chain};
pub use check::{ChainChecked, ChainFile, Check, Checked, check, check_by, check_chain};
pub use child::{Child, ChildMade, child, child_with, depth_over};
pub use commit::{Commit, CommitStep, Committed, Other, commit};
pub use compact::{Compact, Compacted, Taken, compact};
pub use compare::{CompareError, Comparison, Difference, compare};
pub use consumer::{Fitted, Verdict, consumers, fitted, verdict};
pub use convert::{Convert, ConvertStep, Converted, convert};
pub use cowhand_core::*;
pub use cowhand_luks::unwrap_secret;
pub use create::{Create, Created, NewImage, create, create_with, new_image};
pub use dd::{Copied, Dd, DdInput, DdOutput, DdStep, dd};
pub use doctor::{Advice, Diagnosis, Finding, Level, doctor};
pub use failed::Failed;
pub use flatten::{Flatten, flatten};
pub use hidden::{hidden, kill_data, set_file_len, set_hidden};
pub use info::{Info, ParentState, info, info_with_parent, snapshot_json};
pub use journal::{JOURNAL_END, resize_with_journal, revert};
pub use map::{MapEntry, map, map_as_qemu};
pub use measure::{Measure, Sizes, measure};
pub use merge::{Merge, Merged, merge};
pub use node::{ImageOptions, Name, Node, ReadNode, file_name, image_name, parse_json};
pub use open::{Open, Opened, Parent, guess, open, open_alone};
pub use populate::populate;
pub use rebase::{Rebase, RebaseStep, Rebased, rebase};
pub use reconnect::{Reconnect, Reconnected, reconnect_parent};
pub use registry::{Probing, detect, detect_by, driver, format, format_for_target, formats};
pub use resize::{NewSize, Resize, Resized, resize, resize_opened};
pub use resolve::{Policy, folder_to_allow};
pub use round::{SizeRule, round_size};
pub use scan::{Place, Scanned, files_in, scan};
pub use sectors::Sectors;
pub use size_by_file::size_by_file;
pub use snapshots::{Snapshotted, apply_snapshot, create_snapshot, delete_snapshot, list_snapshots};
pub use target::Replace;
