//! Frames are unpacked as they come: small ones whole, on several threads where there are any; others as a stream.

use std::fmt;
use std::io::{self, Read};

use cowhand_core::{Error, ErrorKind, Result};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::frame::{BLOCK_HEAD, Head, LONGEST, MAGIC, SKIP_HEAD, block};
use crate::ordered::Ordered;
use crate::pieces::AHEAD;
use crate::storage::WHOLE;
use crate::table::{Point, Points, SeekTable};

/// Bytes of frames and their content that are on their way at once; one frame may be, however large.
const ON_THE_WAY: u64 = 24 << 20;
/// Bytes that are read at a time.
const CHUNK: usize = 128 << 10;
/// Least content from one place in a table to the next.
pub(super) const APART: u64 = 256 << 10;

/// A frame that is unpacked whole.
struct Whole {
    at: u64,
    packed: Vec<u8>,
    /// The content's bytes, then the content.
    len: usize,
    content: Vec<u8>,
}

enum State {
    /// A frame ends here, or the file begins.
    Between,
    /// Within one that is unpacked as a stream.
    Within,
    /// What is here makes no sense. Something may, behind it.
    Lost,
    /// There is nothing more.
    Ended,
}

/// The next frame.
enum Next {
    Whole(Whole),
    Large,
    Skipped,
    /// It is none, though it began as one.
    Wrong(Error),
    None,
}

/// What is packed in frames.
pub(crate) struct Unpack<'a> {
    from: Box<dyn Read + Send + 'a>,
    chunk: Vec<u8>,
    held: Vec<u8>,
    /// What of `held` was used, and where in the file the next byte stands.
    used: usize,
    at: u64,
    /// Bytes before that which are held still: the last frame, as long as nobody has seen that another follows it.
    kept: usize,
    state: State,
    /// Some frame was there.
    any: bool,
    /// Something that makes sense is looked for, and was not found yet.
    lost: bool,
    /// Told once all that came before it is out.
    failure: Option<Error>,
    /// One was, and nothing came since.
    told: bool,
    decoder: Decoder,
    threads: usize,
    running: Option<Ordered<Whole, Result<Whole>>>,
    /// Bytes on their way, in order.
    on_the_way: std::collections::VecDeque<u64>,
    out: Vec<u8>,
    out_at: usize,
    /// Buffers that were used, for what is packed and for content: new ones cost as much as unpacking into them.
    spare: (Vec<Vec<u8>>, Vec<Vec<u8>>),
    /// Content of all frames that were begun.
    unpacked: u64,
    points: Points,
}

impl fmt::Debug for Unpack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpack").field("at", &self.at).field("unpacked", &self.unpacked).finish()
    }
}

impl<'a> Unpack<'a> {
    /// Unpacks on that many threads besides the one that reads.
    pub(super) fn new(from: Box<dyn Read + Send + 'a>, threads: usize) -> Unpack<'a> {
        Unpack {
            from,
            chunk: Vec::new(),
            held: Vec::new(),
            used: 0,
            at: 0,
            kept: 0,
            state: State::Between,
            any: false,
            lost: false,
            failure: None,
            told: false,
            decoder: Decoder(None),
            threads,
            running: None,
            on_the_way: std::collections::VecDeque::new(),
            out: Vec::new(),
            out_at: 0,
            spare: (Vec::new(), Vec::new()),
            unpacked: 0,
            points: Points::new(APART),
        }
    }

    /// Unpacks on the thread that reads; the first byte stands at `at` in the file.
    pub(super) fn at(from: Box<dyn Read + Send + 'a>, at: u64) -> Unpack<'a> {
        Unpack { at, ..Unpack::new(from, 0) }
    }

    /// The frames that went by.
    pub(super) fn table(self) -> SeekTable {
        self.points.table(self.unpacked)
    }

    fn rest(&self) -> &[u8] {
        self.held.get(self.used..).unwrap_or_default()
    }

    fn used(&mut self, len: usize) {
        self.used += len;
        self.at += len as u64;
    }

    /// Reads more. False: there is no more.
    fn more(&mut self) -> Result<bool> {
        let gone = self.used - self.kept.min(self.used);
        self.held.drain(..gone);
        self.used -= gone;
        self.chunk.resize(CHUNK, 0);
        loop {
            match self.from.read(&mut self.chunk) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.held.extend_from_slice(&self.chunk[..n]); // never out of bounds: at most its length
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("cannot read", error)),
            }
        }
    }

    /// To be told once all that came before is out.
    fn fail(&mut self, error: Error, then: State) {
        self.state = then;
        self.failure = Some(error);
    }

    fn cut(&self) -> Error {
        Error::new(ErrorKind::Changed, "the zstd file ends before its end")
    }

    /// What follows the last frame.
    fn next(&mut self) -> Result<Next> {
        let head = loop {
            let rest = self.rest();
            let longest = rest.len().min(LONGEST);
            let head = Head::parse(&rest[..longest]); // never out of bounds: at most its length
            if let Some(head) = head.map_err(|error| self.behind(error))? {
                break head;
            }
            if !self.more()? {
                return if self.rest().is_empty() && self.any { Ok(Next::None) } else { Err(self.cut()) };
            }
        };
        let (head, content, tail) = match head {
            Head::Skippable(len) => {
                self.any = true;
                self.kept = 0;
                let mut left = SKIP_HEAD as u64 + u64::from(len);
                while left > 0 {
                    if self.rest().is_empty() && !self.more()? {
                        return Err(self.cut());
                    }
                    let n = (self.rest().len() as u64).min(left);
                    self.used(n as usize);
                    left -= n;
                }
                return Ok(Next::Skipped);
            }
            Head::Frame { head, content, tail } => (head, content, tail),
        };
        self.any = true;
        self.kept = 0;
        if self.points.wants(self.unpacked) {
            self.points.add(Point { packed: self.at, unpacked: self.unpacked, state: Vec::new() });
        }
        let Some(len) = content.filter(|content| *content <= WHOLE) else { return Ok(Next::Large) };
        // What is cut is a stream too: so all that is there of it comes out. What can be verified never does before it was.
        let wrong = match tail {
            0 => Next::Large,
            _ => Next::Wrong(Error::corrupt("zstd frame", "its blocks make no sense").at(self.at)),
        };
        // The worst there is, with room for blocks of few bytes.
        let most = head + len as usize + (len as usize / 4096 + 16) * BLOCK_HEAD;
        let (mut end, mut odd) = (head, false);
        loop {
            while self.rest().len() < end + BLOCK_HEAD {
                if !self.more()? {
                    return Ok(if odd { wrong } else { Next::Large });
                }
            }
            let header = self.rest().get(end..).and_then(|rest| rest.first_chunk());
            let Some(Ok((last, block))) = header.map(|header| block(*header)) else { return Ok(wrong) };
            // Nobody writes empty blocks but as the last one: a sector that was lost reads so.
            odd |= block == 0 && !last;
            end += BLOCK_HEAD + block;
            if end > most {
                return Ok(wrong);
            }
            if last {
                break;
            }
        }
        end += tail;
        while self.rest().len() < end {
            if !self.more()? {
                return Ok(Next::Large);
            }
        }
        let mut packed = self.spare.0.pop().unwrap_or_default();
        packed.clear();
        packed.extend_from_slice(self.rest().get(..end).unwrap_or_default());
        let content = self.spare.1.pop().unwrap_or_default();
        let whole = Whole { at: self.at, packed, len: len as usize, content };
        self.used(end);
        self.kept = end;
        self.unpacked += len;
        self.lost = false;
        Ok(Next::Whole(whole))
    }

    /// What is wrong where a frame should begin.
    fn behind(&self, error: Error) -> Error {
        if self.any && error.kind() == ErrorKind::Corrupt {
            Error::corrupt("zstd", "something else follows the last frame").at(self.at)
        } else {
            error.at(self.at)
        }
    }

    /// Looks for a frame that can be verified behind what makes no sense. False: there is none.
    fn find(&mut self) -> Result<bool> {
        // What the last frame said of its length need not be so: it may have passed over another's front.
        self.used -= self.kept;
        self.at -= self.kept as u64;
        self.kept = 0;
        self.used(self.rest().len().min(1));
        loop {
            let rest = self.rest();
            match rest.windows(4).position(|bytes| bytes == MAGIC.to_le_bytes()) {
                Some(passed) => {
                    self.used(passed);
                    while self.rest().len() < LONGEST && self.more()? {}
                    let longest = self.rest().len().min(LONGEST);
                    // Never out of bounds: at most its length.
                    if let Ok(Some(Head::Frame { content: Some(len), tail: 1.., .. })) =
                        Head::parse(&self.rest()[..longest])
                        && len <= WHOLE
                    {
                        return Ok(true);
                    }
                    self.used(1);
                }
                None => {
                    self.used((rest.len() + 1).saturating_sub(4));
                    if !self.more()? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Whether another frame may be on its way.
    fn room(&self) -> bool {
        let on_the_way: u64 = self.on_the_way.iter().sum();
        let most = self.threads + AHEAD;
        self.on_the_way.is_empty() || self.on_the_way.len() < most && on_the_way < ON_THE_WAY
    }

    /// Sends a frame off. Without threads it is unpacked here.
    fn send(&mut self, whole: Whole) -> Result<()> {
        if self.threads == 0 {
            let whole = self.decoder.whole(whole)?;
            self.came(whole);
            return Ok(());
        }
        let failed = |error| Error::io("cannot start a thread", error);
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(
                Ordered::new(self.threads, || {
                    let mut decoder = Decoder(None);
                    move |whole| decoder.whole(whole)
                })
                .map_err(failed)?,
            ),
        };
        self.on_the_way.push_back((whole.packed.len() + whole.len) as u64);
        running.put(whole).map_err(failed)
    }

    /// Takes what comes back next. False: nothing is on its way.
    fn take(&mut self) -> Result<bool> {
        let Some(done) = self.running.as_mut().and_then(Ordered::next) else { return Ok(false) };
        self.on_the_way.pop_front();
        let whole = done.map_err(|error| Error::io("cannot unpack", error))??;
        self.came(whole);
        Ok(true)
    }

    fn came(&mut self, whole: Whole) {
        self.spare.0.push(whole.packed);
        self.spare.1.push(std::mem::replace(&mut self.out, whole.content));
        self.out_at = 0;
    }

    /// Some bytes of the frame that is unpacked as a stream; all that there are room for, unless it ends.
    fn stream(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut n = 0;
        loop {
            if self.rest().is_empty() {
                match self.more() {
                    Ok(true) => {}
                    Ok(false) => {
                        self.fail(self.cut(), State::Ended);
                        return Ok(n);
                    }
                    Err(error) => {
                        self.fail(error, State::Ended);
                        return Ok(n);
                    }
                }
            }
            let full = n == buf.len();
            let rest = self.held.get(self.used..).unwrap_or_default();
            let (read, made, done) = self.decoder.stream(rest, buf.get_mut(n..).unwrap_or_default());
            self.used(read);
            n += made;
            self.unpacked += made as u64;
            match done {
                Ok(true) => {
                    self.state = State::Between;
                    return Ok(n);
                }
                // A full buffer does not go out before the decoder has had a look at what follows: it may be the
                // checksum.
                Ok(false) if full && read == 0 => return Ok(n),
                Ok(false) => {}
                // These bytes are not what was packed.
                Err(error) if error.kind() == ErrorKind::Mismatch => {
                    self.state = State::Lost;
                    return Err(error.with_kind(ErrorKind::Corrupt).at(self.at));
                }
                Err(error) => {
                    let at = self.at;
                    self.fail(error.at(at), State::Lost);
                    return Ok(n);
                }
            }
        }
    }

    fn step(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            let rest = self.out.get(self.out_at..).unwrap_or_default();
            if !rest.is_empty() {
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]); // never out of bounds: not longer than either
                self.out_at += n;
                return Ok(n);
            }
            if self.failure.is_none() && matches!(self.state, State::Lost) && self.on_the_way.is_empty() {
                self.lost = self.find()?;
                self.state = if self.lost { State::Between } else { State::Ended };
            }
            let go_on = self.failure.is_none() && matches!(self.state, State::Between) && self.room();
            if !go_on {
                if self.take()? {
                    continue;
                }
                // Nothing is on its way.
                if self.failure.is_none() && matches!(self.state, State::Within) {
                    let n = self.stream(buf)?;
                    if n > 0 {
                        return Ok(n);
                    }
                    continue;
                }
                return self.failure.take().map_or(Ok(0), Err);
            }
            match self.next() {
                Ok(Next::Whole(whole)) if self.threads == 0 && whole.len <= buf.len() => {
                    // Never out of bounds: it was compared.
                    let n = self.decoder.fill(&whole, &mut buf[..whole.len])?;
                    if n > 0 {
                        return Ok(n);
                    }
                }
                Ok(Next::Whole(whole)) => self.send(whole)?,
                Ok(Next::Large) if self.lost => self.state = State::Lost,
                Ok(Next::Large) => self.state = State::Within,
                Ok(Next::Skipped) => {}
                Ok(Next::Wrong(error)) => self.fail(error, State::Lost),
                Ok(Next::None) => self.state = State::Ended,
                Err(error) => {
                    let lost = error.kind() == ErrorKind::Corrupt;
                    self.fail(error, if lost { State::Lost } else { State::Ended });
                }
            }
        }
    }
}

impl Read for Unpack<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.step(buf) {
                // One error for all that makes no sense between two frames that do.
                Err(error) if self.told && error.kind() == ErrorKind::Corrupt => {}
                done => {
                    self.told = done.is_err();
                    return Ok(done?);
                }
            }
        }
    }
}

/// zstd's own decoder, made by the thread that needs it.
struct Decoder(Option<DCtx<'static>>);

impl Decoder {
    fn context(&mut self) -> Result<&mut DCtx<'static>> {
        match &mut self.0 {
            Some(context) => Ok(context),
            none => {
                let memory = || Error::io("cannot unpack", io::ErrorKind::OutOfMemory.into());
                Ok(none.insert(DCtx::try_create().ok_or_else(memory)?))
            }
        }
    }

    /// Fills `content`, which is as long as the frame says, or fails. How many bytes it is.
    fn fill(&mut self, whole: &Whole, content: &mut [u8]) -> Result<usize> {
        let n = self.context()?.decompress(content, &whole.packed);
        let n = n.map_err(|code| bad(code).with_kind(ErrorKind::Corrupt).at(whole.at))?;
        if n != content.len() {
            return Err(Error::corrupt("zstd frame", "it does not hold what it says").at(whole.at));
        }
        Ok(n)
    }

    fn whole(&mut self, mut whole: Whole) -> Result<Whole> {
        let mut content = std::mem::take(&mut whole.content);
        content.resize(whole.len, 0);
        self.fill(&whole, &mut content)?;
        Ok(Whole { content, ..whole })
    }

    /// How many bytes were used and made, and whether the frame is at its end. A wrong checksum is a
    /// [`ErrorKind::Mismatch`].
    fn stream(&mut self, from: &[u8], to: &mut [u8]) -> (usize, usize, Result<bool>) {
        let context = match self.context() {
            Ok(context) => context,
            Err(error) => return (0, 0, Err(error)),
        };
        let mut input = InBuffer::around(from);
        let mut output = OutBuffer::around(to);
        let done = context.decompress_stream(&mut output, &mut input);
        let (used, made) = (input.pos(), output.pos());
        let done = done.map(|left| left == 0).map_err(|code| {
            let _ = context.reset(ResetDirective::SessionOnly);
            bad(code)
        });
        (used, made, done)
    }
}

/// Says what zstd found.
fn bad(code: usize) -> Error {
    /// zstd's number for a wrong checksum.
    const CHECKSUM: usize = 22;
    if code == CHECKSUM.wrapping_neg() {
        return Error::new(ErrorKind::Mismatch, "the checksum is wrong").field("zstd frame");
    }
    Error::corrupt("zstd frame", get_error_name(code).to_lowercase())
}
