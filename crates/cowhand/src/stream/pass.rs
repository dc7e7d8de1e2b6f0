//! An image file that goes on as it came: not a byte is changed, and its length is known before the first.

use std::io::Read;

use cowhand_core::{Error, Result};

use super::give::packed;
use super::parts::Parts;
use super::pipe::{Exactly, read_full};
use super::tar::{Archive, member_name};
use super::{Deliver, Stream, Streamed, format_name};
use crate::registry;

pub(super) fn pass(parts: &mut Parts<'_>, to: &mut dyn Deliver, how: &Stream) -> Result<Streamed> {
    let mut part = parts.first()?;
    let format = format_name(part.format);
    let other = match &how.format {
        Some(name) => format_name(registry::format(name)?) != format,
        None => false,
    };
    if other || !how.options.is_empty() {
        return Err(Error::unsupported("what comes in order cannot go on in another form")
            .hint("stream it to a file first, and the file from there"));
    }
    if part.has_parent() && part.member.is_some() {
        return Err(parts
            .named(Error::unsupported("the archive holds a chain, and one image is to go on"))
            .hint("stream it to a file or into a folder first"));
    }
    if how.archive && parts.is_archive() {
        return Err(parts.named(Error::invalid("is an archive already")).hint("copy it"));
    }
    if how.archive && part.has_parent() {
        return Err(parts
            .named(Error::unsupported("its parent would not be in the archive"))
            .hint("stream the chain's file, which can be opened with its parents"));
    }
    let (size, len) = (part.front.disk.as_ref().map(|disk| disk.size), part.len);
    let body = parts.body(&mut part);
    let extension = part.format.extensions().first().copied().unwrap_or(format);
    send(body, len, extension, to, how).map_err(|error| parts.named(error))?;
    if parts.next()?.is_some() {
        return Err(parts.named(Error::corrupt("archive", "another member follows the disk that is alone")));
    }
    Ok(Streamed { from: format, to: format, size, layers: 1, written: None, bytes: len, sectors: None })
}

/// Sends all of `body`, and sees that it is at its end.
fn send(
    mut body: impl Read + Send,
    len: Option<u64>,
    extension: &str,
    to: &mut dyn Deliver,
    how: &Stream,
) -> Result<()> {
    let Some(len) = len else {
        if how.archive {
            return Err(Error::unsupported("how long the archive's member will be is not known")
                .hint("say it with --length"));
        }
        return to.deliver(&mut body, None);
    };
    let mut body = Exactly::new(body, len);
    if how.archive {
        let mut archive = Archive::default();
        archive.add(&member_name(0, extension), &mut body, len)?;
        to.deliver(&mut packed(archive.finish(), how)?, None)?;
    } else {
        to.deliver(&mut body, Some(len))?;
    }
    read_full(&mut body, &mut [0]).map(|_| ())
}
