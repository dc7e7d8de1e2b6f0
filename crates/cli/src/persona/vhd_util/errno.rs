//! What went wrong, as the numbers that callers know from the C library.

use cowhand::{Error, ErrorKind};

use crate::exit::STOPPED;

pub(super) const NO_SUCH_FILE: u8 = 2;
const IO: u8 = 5;
const ACCESS: u8 = 13;
const BUSY: u8 = 16;
pub(super) const EXISTS: u8 = 17;
pub(super) const INVALID: u8 = 22;
pub(super) const NO_SPACE: u8 = 28;
pub(super) const RANGE: u8 = 34;
pub(super) const UNSUPPORTED: u8 = 38;

/// The number of an error. Callers try again after 5 (EIO) and 11 (EAGAIN), so these are what the system itself said.
pub(super) fn of(error: &Error) -> u8 {
    let by_system = error.os_code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    match (error.kind(), by_system) {
        (ErrorKind::Cancelled, _) => STOPPED,
        (ErrorKind::Locked, None | Some(11)) => BUSY,
        (_, Some(code)) => code,
        (ErrorKind::NotFound, None) => NO_SUCH_FILE,
        (ErrorKind::Exists, None) => EXISTS,
        (ErrorKind::Denied, None) => ACCESS,
        (ErrorKind::ChainTooLong | ErrorKind::NoSpace, None) => NO_SPACE,
        (ErrorKind::Unsupported, None) => UNSUPPORTED,
        (ErrorKind::Io, None) => IO,
        _ => INVALID,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn only_the_system_itself_says_try_again() {
        let system = |code| Error::io("reading", io::Error::from_raw_os_error(code));
        for code in [2, 5, 13, 17, 22, 28] {
            assert_eq!(of(&system(code)), code as u8);
        }
        assert_eq!(of(&system(11)), BUSY);
        assert_eq!(of(&Error::new(ErrorKind::Locked, "held")), BUSY);
        assert_eq!(of(&Error::io("reading", io::ErrorKind::UnexpectedEof.into())), INVALID);
        assert_eq!(of(&Error::corrupt("footer", "bad")), INVALID);
        assert_eq!(of(&Error::unsupported("shrinking")), UNSUPPORTED);
        assert_eq!(of(&Error::new(ErrorKind::ChainTooLong, "200")), NO_SPACE);
    }
}
