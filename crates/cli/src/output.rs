//! Standard output, which somebody may close while we write.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Stdout, Write};
use std::os::fd::AsFd;

use cowhand::{Error, Result};

/// Text for standard output. A pipe whose reader has gone takes no more and is no error: who closed it has seen enough.
pub(crate) struct Output {
    to: BufWriter<Stdout>,
    closed: bool,
    /// What cannot be written is lost, and nobody is told.
    lossy: bool,
}

impl Output {
    pub(crate) fn new() -> Output {
        Output { to: BufWriter::new(io::stdout()), closed: false, lossy: false }
    }

    /// Whatever becomes of it is no error.
    pub(crate) fn lossy(self) -> Output {
        Output { lossy: true, ..self }
    }

    /// What `write!` and `writeln!` call.
    pub(crate) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        let done = if self.closed { Ok(()) } else { self.to.write_fmt(text) };
        self.settle(done)
    }

    /// As it stands.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let done = if self.closed { Ok(()) } else { self.to.write_all(bytes) };
        self.settle(done)
    }

    /// Everything is out.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let done = if self.closed { Ok(()) } else { self.to.flush() };
        self.settle(done)
    }

    fn settle(&mut self, done: io::Result<()>) -> Result<()> {
        match done {
            Err(error) if self.lossy || error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.map_err(|error| Error::io("cannot write to standard output", error)),
        }
    }
}

/// Standard output for bytes that are no text. Errors: a person would see them.
pub(crate) fn standard_output() -> Result<File> {
    if io::stdout().is_terminal() {
        return Err(Error::invalid("an image is nothing for a terminal")
            .hint("redirect standard output into a file or a pipe"));
    }
    unbuffered_output()
}

/// Standard output, not through the standard handle: that one looks for lines, and is locked by who waits for it.
pub(crate) fn unbuffered_output() -> Result<File> {
    let to = io::stdout().as_fd().try_clone_to_owned();
    Ok(to.map_err(|error| Error::io("cannot write to standard output", error))?.into())
}

/// JSON as QEMU indents it: by four. What could steer a terminal is escaped, as it is in what people read.
pub(crate) fn json(value: &serde_json::Value) -> String {
    // A line's leading spaces are never part of a string: there a newline is written `\n`.
    let two = format!("{value:#}");
    let mut four = String::with_capacity(two.len() * 2);
    for line in two.lines() {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        four.extend(std::iter::repeat_n(' ', spaces));
        for c in line.chars() {
            // Such characters stand in strings alone. What comes before the space is escaped already.
            match c {
                '\u{7f}'..='\u{9f}' => four.push_str(&format!("\\u{:04x}", u32::from(c))),
                _ => four.push(c),
            }
        }
        four.push('\n');
    }
    four
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn json_is_indented_by_four() {
        let value = json!([{ "a": { "b": "  x\n  y" } }]);
        assert_eq!(
            super::json(&value),
            "[\n    {\n        \"a\": {\n            \"b\": \"  x\\n  y\"\n        }\n    }\n]\n"
        );
    }
}
