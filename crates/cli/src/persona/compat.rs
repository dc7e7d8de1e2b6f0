//! `COWHAND_COMPAT=qemu`, under qemu-img's name: everything as QEMU does it, the reading of hostile images too, but what would harm this program.

use std::sync::LazyLock;

use cowhand::Replace;

/// The variable says so. It is read once.
static AS_QEMU: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("COWHAND_COMPAT").is_some_and(|value| value == "qemu"));

/// What `docs/compatibility.md` lists as different is to be as it is there.
pub(crate) fn as_qemu() -> bool {
    *AS_QEMU
}

/// How a target takes the place of a file that is there.
pub(crate) fn replace() -> Replace {
    if as_qemu() { Replace::InPlace } else { Replace::WholeIfPossible }
}
