//! The verbs, one module each: its arguments, and what it prints.

pub(crate) mod allocated;
pub(crate) mod amend;
pub(crate) mod bench;
pub(crate) mod bitmap;
pub(crate) mod block_bitmap;
pub(crate) mod chain;
pub(crate) mod check;
pub(crate) mod child;
pub(crate) mod commit;
pub(crate) mod compact;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod doctor;
pub(crate) mod flatten;
pub(crate) mod formats;
pub(crate) mod hidden;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod install_links;
pub(crate) mod kill_data;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod merge;
pub(crate) mod rebase;
pub(crate) mod reconnect_parent;
pub(crate) mod resize;
pub(crate) mod round_size;
pub(crate) mod scan;
pub(crate) mod size_by_file;
pub(crate) mod snapshot;
pub(crate) mod stream;
pub(crate) mod vma;

/// How facts are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people
    Human,
    /// For programs
    Json,
}
