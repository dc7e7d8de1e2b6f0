//! Cowhand against foreign programs and foreign images, and the promises of `cowhand` as a whole.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod allocated;
mod amend;
mod bitmaps;
mod chain_verbs;
mod chains;
mod check;
mod check_vhd;
mod check_vhdx;
mod consumers;
mod devices;
mod encryption;
mod formats;
mod hostile;
mod hostile_qcow2;
mod hostile_vhd;
mod hostile_vhdx;
mod layers;
mod listing;
mod locks;
mod map_and_info;
mod measure;
mod ours;
mod paths;
mod real_samples;
mod stream_archives;
mod stream_http;
mod streams;
mod theirs;
mod verbs;
mod vhd_beside_others;
mod vhd_by_7zip;
mod vhd_chains;
mod vhd_children;
mod vhd_read;
mod vhd_resized;
mod vhd_streams;
mod vhd_verbs;
mod vhd_written;
mod vhdx_labels;
mod vhdx_log;
mod vhdx_read;
mod whole_or_none;
