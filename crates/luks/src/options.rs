//! What can be set when a LUKS file is made, opened or amended.

use cowhand_core::{OptionKind, OptionSpec};

use crate::algorithms::{CIPHERS, IVGENS, MODES};
use crate::hash::HASHES;

const KEY_SECRET: OptionSpec = OptionSpec {
    name: "key-secret",
    kind: OptionKind::Text,
    help: "ID of the secret that provides the keyslot passphrase",
};
const ITER_TIME: OptionSpec = OptionSpec {
    name: "iter-time",
    kind: OptionKind::Number,
    help: "Time to spend in PBKDF in milliseconds",
};

pub(crate) const CREATE: &[OptionSpec] = &[
    OptionSpec {
        name: "cipher-alg",
        kind: OptionKind::Choice(CIPHERS),
        help: "Name of encryption cipher algorithm",
    },
    OptionSpec {
        name: "cipher-mode",
        kind: OptionKind::Choice(MODES),
        help: "Name of encryption cipher mode",
    },
    OptionSpec {
        name: "hash-alg",
        kind: OptionKind::Choice(HASHES),
        help: "Name of encryption hash algorithm",
    },
    ITER_TIME,
    OptionSpec {
        name: "ivgen-alg",
        kind: OptionKind::Choice(IVGENS),
        help: "Name of IV generator algorithm",
    },
    OptionSpec {
        name: "ivgen-hash-alg",
        kind: OptionKind::Choice(HASHES),
        help: "Name of IV generator hash algorithm",
    },
    KEY_SECRET,
    OptionSpec {
        name: "preallocation",
        kind: OptionKind::Choice(&["off", "falloc", "full"]),
        help: "Preallocation mode (allowed values: off, falloc, full)",
    },
];

pub(crate) const OPEN: &[OptionSpec] = &[KEY_SECRET];

pub(crate) const AMEND: &[OptionSpec] = &[
    OptionSpec {
        name: "force",
        kind: OptionKind::Flag,
        help: "Overwrite active keyslots, erase the last one",
    },
    ITER_TIME,
    OptionSpec {
        name: "keyslot",
        kind: OptionKind::Number,
        help: "Select a single keyslot to modify explicitly",
    },
    OptionSpec {
        name: "new-secret",
        kind: OptionKind::Text,
        help: "New secret to set in the matching keyslots",
    },
    OptionSpec {
        name: "old-secret",
        kind: OptionKind::Text,
        help: "Select all keyslots that match this password",
    },
    OptionSpec {
        name: "state",
        kind: OptionKind::Choice(&["active", "inactive"]),
        help: "Select new state of affected keyslots (active/inactive)",
    },
];
