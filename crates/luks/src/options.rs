//! What can be set when a LUKS file is made, opened or amended.

use cowhand_core::{OptionKind, OptionSpec};

use crate::algorithms::{CIPHERS, IVGENS, MODES};
use crate::hash::HASHES;

const KEY_SECRET: OptionSpec =
    OptionSpec::new("key-secret", OptionKind::Text, "ID of the secret that provides the keyslot passphrase");
const ITER_TIME: OptionSpec =
    OptionSpec::new("iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds");

/// In QEMU only `on` is taken, and makes a header alone.
pub(crate) const DETACHED_HEADER: &str = "detached-header";

pub(crate) const CREATE: &[OptionSpec] = &[
    OptionSpec::SIZE,
    KEY_SECRET,
    OptionSpec::new("cipher-alg", OptionKind::Choice(CIPHERS), "Name of encryption cipher algorithm"),
    OptionSpec::new("cipher-mode", OptionKind::Choice(MODES), "Name of encryption cipher mode"),
    OptionSpec::new("ivgen-alg", OptionKind::Choice(IVGENS), "Name of IV generator algorithm"),
    OptionSpec::new("ivgen-hash-alg", OptionKind::Choice(HASHES), "Name of IV generator hash algorithm"),
    OptionSpec::new("hash-alg", OptionKind::Choice(HASHES), "Name of encryption hash algorithm"),
    ITER_TIME,
    OptionSpec::new(
        DETACHED_HEADER,
        OptionKind::Flag,
        "The header in a file of its own, which is not made here",
    ),
    OptionSpec::new(
        "preallocation",
        OptionKind::Choice(&["off", "falloc", "full"]),
        "Preallocation mode (allowed values: off, falloc, full)",
    )
    .of_file(),
];

pub(crate) const OPEN: &[OptionSpec] = &[KEY_SECRET];

pub(crate) const AMEND: &[OptionSpec] = &[
    OptionSpec::new("force", OptionKind::Flag, "Overwrite active keyslots, erase the last one").own(),
    ITER_TIME,
    OptionSpec::new("keyslot", OptionKind::Number, "Select a single keyslot to modify explicitly"),
    OptionSpec::new("new-secret", OptionKind::Text, "New secret to set in the matching keyslots"),
    OptionSpec::new("old-secret", OptionKind::Text, "Select all keyslots that match this password"),
    OptionSpec::new(
        "state",
        OptionKind::Choice(&["active", "inactive"]),
        "Select new state of affected keyslots (active/inactive)",
    ),
];
