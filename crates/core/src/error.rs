//! The one error: what kind it is, which image and field and offset, what is wrong, what to do.

use std::fmt;
use std::io;

/// The result of everything in Cowhand that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure this is. A program decides by this alone (its exit status, whether to retry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, snapshot or named thing does not exist.
    NotFound,
    /// Something that must be new exists already.
    Exists,
    /// The operating system or the path policy does not allow it.
    Denied,
    /// Another program holds the image.
    Locked,
    /// The bytes break their format's rules.
    Corrupt,
    /// The image or the request is well-formed, and asks for something that cannot be done here.
    Unsupported,
    /// The request itself makes no sense (an option's value, a size).
    Invalid,
    /// The content matches more than one format, so somebody must say which it is.
    Ambiguous,
    /// The source is shorter than it says, or changed while it was read.
    Changed,
    /// Two things that must be the same differ (a parent's identity, a verification).
    Mismatch,
    /// A chain has, or would have, more layers than it may.
    ChainTooLong,
    /// No space is left where the image is written.
    NoSpace,
    /// Reading or writing failed.
    Io,
    /// Somebody asked to stop.
    Cancelled,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    image: Option<String>,
    field: Option<String>,
    at: Option<u64>,
    message: String,
    hint: Option<String>,
    sentence: Option<String>,
    /// A number of errno.h.
    code: Option<i32>,
    /// The layer's place in the chain and its file.
    below: Option<(usize, String)>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A failure a person can act on.
///
/// It prints as one line, `image: field at offset N: what is wrong; what to do`; parts that are not known are left
/// out. Text that came from an image is printed with its control characters escaped.
pub struct Error(Box<Inner>);

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            image: None,
            field: None,
            at: None,
            message: message.into(),
            hint: None,
            sentence: None,
            code: None,
            below: None,
            source: None,
        }))
    }

    /// The bytes of `field` break the format's rules.
    pub fn corrupt(field: impl Into<String>, message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Corrupt, message).field(field)
    }

    /// A thing that this image or request needs and that cannot be done; `message` names it.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// What the operating system said while `doing` something. The kind follows from the code. An error of this type
    /// that went through something that reads stays what it was.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let source = match source.downcast::<Error>() {
            Ok(own) => return own,
            Err(other) => other,
        };
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => ErrorKind::Locked,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            io::ErrorKind::UnexpectedEof => ErrorKind::Changed,
            _ => ErrorKind::Io,
        };
        let mut error = Error::new(kind, doing);
        error.0.source = Some(Box::new(source));
        error
    }

    /// Says which image. The innermost image that was named stays.
    #[must_use]
    pub fn image(mut self, image: impl fmt::Display) -> Self {
        if self.0.image.is_none() {
            self.0.image = Some(image.to_string());
        }
        self
    }

    /// Says which image, whichever was named before: for who knows by what name the caller knows it.
    #[must_use]
    pub fn image_is(mut self, image: impl fmt::Display) -> Self {
        self.0.image = Some(image.to_string());
        self
    }

    /// Says which field or structure, in the specification's words.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Says at which offset of the file, in bytes.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.at = Some(offset);
        self
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says the sentence by which users of QEMU and its like know this failure: programs look for it. The first that was
    /// said stays.
    #[must_use]
    pub fn known_as(mut self, sentence: impl Into<String>) -> Self {
        self.0.sentence.get_or_insert_with(|| sentence.into());
        self
    }

    /// Says the number of errno.h by which users of QEMU know this failure, where it has no sentence for it.
    #[must_use]
    pub fn known_by(mut self, code: i32) -> Self {
        self.0.code.get_or_insert(code);
        self
    }

    /// Says that it is about `file`, which the caller's image stands on, so many layers below it.
    #[must_use]
    pub fn below(mut self, layers: usize, file: impl fmt::Display) -> Self {
        self.0.below = Some((layers, file.to_string()));
        self
    }

    /// Replaces the kind, where a caller knows better what the failure means.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The offset in the file, in bytes, if one was said.
    pub fn offset(&self) -> Option<u64> {
        self.0.at
    }

    /// The image that was named, if one was.
    pub fn image_name(&self) -> Option<&str> {
        self.0.image.as_deref()
    }

    /// What is wrong, without the image, the field, the cause and the advice.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The field or structure that was named, if one was.
    pub fn field_name(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The number of errno.h that was behind this, or that users of QEMU know it by.
    pub fn code(&self) -> Option<i32> {
        let source = || self.0.source.as_deref()?.downcast_ref::<io::Error>()?.raw_os_error();
        self.0.code.or_else(source)
    }

    /// What the operating system says of [`Error::code`] (`No such file or directory`).
    pub fn os_error(&self) -> Option<String> {
        Some(plain(&io::Error::from_raw_os_error(self.code()?)))
    }

    /// What is wrong and where, without the image's name, for who has said that already, and without advice.
    pub fn without_image(&self) -> impl fmt::Display + '_ {
        Told(&self.0)
    }

    /// All that is printed but the advice, for who could not follow it.
    pub fn without_advice(&self) -> impl fmt::Display + '_ {
        Unadvised(&self.0)
    }

    /// The sentence by which users of QEMU know this failure, where it has one.
    pub fn sentence(&self) -> Option<&str> {
        self.0.sentence.as_deref()
    }

    /// Which of the files that the caller's image stands on it is about: how many layers below, and its name.
    pub fn lower(&self) -> Option<(usize, &str)> {
        self.0.below.as_ref().map(|(layers, file)| (*layers, file.as_str()))
    }

    /// The number of what the operating system said (`ENOENT` and the like), if it was behind this.
    pub fn os_code(&self) -> Option<i32> {
        self.0.source.as_deref()?.downcast_ref::<io::Error>()?.raw_os_error()
    }

    /// The advice, if there is one.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// Writes text that came from outside with its control characters escaped, so that it cannot steer a terminal.
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for c in self.0.chars() {
            // Bidirectional overrides reorder what a person reads, as control characters do.
            let hidden = c.is_control()
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if hidden { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Unadvised(&self.0).fmt(f)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "; {}", Printable(hint))?;
        }
        Ok(())
    }
}

/// Which image, what is wrong, and where.
struct Unadvised<'a>(&'a Inner);

impl fmt::Display for Unadvised<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(image) = &self.0.image {
            write!(f, "{}: ", Printable(image))?;
        }
        Told(self.0).fmt(f)
    }
}

/// What is wrong, and where.
struct Told<'a>(&'a Inner);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.0;
        match (&inner.field, inner.at) {
            (Some(field), Some(at)) => write!(f, "{} at offset {at}: ", Printable(field))?,
            (Some(field), None) => write!(f, "{}: ", Printable(field))?,
            (None, Some(at)) => write!(f, "offset {at}: ")?,
            (None, None) => {}
        }
        write!(f, "{}", Printable(&inner.message))?;
        if let Some(source) = &inner.source {
            write!(f, ": {}", Printable(&plain(source.as_ref())))?;
        }
        Ok(())
    }
}

/// The system's own words, without the code number that Rust puts behind them.
fn plain(source: &(dyn std::error::Error + 'static)) -> String {
    let text = source.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

/// For what is read or written from front to back; [`Error::io`] takes it out again.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_one_line_with_every_part() {
        let error = Error::corrupt("L2 entry", "points past the end of the file")
            .at(65536)
            .hint("run 'cowhand check'")
            .image("a\u{1b}[2J.qcow2");
        assert_eq!(
            error.to_string(),
            "a\\u{1b}[2J.qcow2: L2 entry at offset 65536: points past the end of the file; run 'cowhand check'"
        );
        assert_eq!(
            error.without_advice().to_string(),
            "a\\u{1b}[2J.qcow2: L2 entry at offset 65536: points past the end of the file"
        );
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn goes_through_a_reader_and_stays_what_it_was() {
        let error = Error::io("reading", Error::corrupt("footer", "is cut").at(7).into());
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Corrupt, "footer at offset 7: is cut")
        );
    }

    #[test]
    fn the_kind_follows_from_the_code() {
        let error = Error::io("writing", io::Error::from_raw_os_error(libc::ENOSPC)).image("x").image("y");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.to_string(), "x: writing: No space left on device");
    }
}
