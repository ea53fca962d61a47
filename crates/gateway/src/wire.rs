//! Where the requests of a client connection begin and end, read as strictly as RFC 9112 allows. Pure.
//!
//! The HTTP codec behind it is lenient in places and keeps some of what it drops to itself. Whatever two parsers on a
//! request's way could read differently is refused here, before the codec sees it: what passes has one framing only.
//!
//! | state     | what comes                  | next                                                     |
//! |-----------|-----------------------------|----------------------------------------------------------|
//! | Start     | HTTP/2's preface            | Http2                                                    |
//! | Start     | anything else               | Head                                                     |
//! | Head      | a whole head                | Body, Chunks; without a body Undecided or Head           |
//! | Body      | the last byte               | Undecided or Head                                        |
//! | Chunks    | the end of the trailers     | Undecided or Head                                        |
//! | Undecided | the answer                  | Tunnel for 101, else Head                                |
//! | Tunnel    | anything                    | Tunnel                                                   |
//! | Http2     | frames                      | Http2                                                    |
//!
//! `Undecided` is a request for another protocol: what follows it is the new protocol's or the next request's, and only
//! the answer says which.

use crate::answer::Failure;

/// Client preface of HTTP/2. Source: RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most bytes of all chunk extensions of a body, and of its trailers; the codec's own limits.
const CHUNK_EXTRA_LIMIT_BYTES: usize = 16 * 1024;
const LONG_LINE_BYTES: usize = 512;
/// Digits of the longest chunk size: less than 2^60 bytes.
const CHUNK_SIZE_DIGITS: u8 = 15;

/// What a client connection may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a head.
    pub head_bytes: usize,
    /// Most lines of a head.
    pub fields: usize,
    /// Most bytes of a request's target.
    pub target_bytes: usize,
    /// So many HTTP/2 streams may be reset, and half of all beyond that.
    pub resets: u64,
    /// So many bytes of HTTP/2 frames may carry nothing, beyond as many as carry something.
    pub overhead_bytes: u64,
}

/// What may be done with the bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// So many may be handed on.
    pub pass: usize,
    /// What the rest is.
    pub stop: Stop,
}

/// What the bytes are that may not be handed on.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// There are none.
    Nothing,
    /// The beginning of a head: to be shown again once there is more of it.
    Partial,
    /// Bytes after a request for another protocol: to be shown again once it is answered.
    Held,
    /// A head that is refused; nothing after it means anything.
    Refused(Failure),
    /// A body, or frames, that are refused.
    Broken(Failure),
}

/// What comes next on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A request, of which no byte is there.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// Frames of HTTP/2.
    Frames,
    /// Nothing that could be said.
    Anything,
}

/// Follows one connection.
#[derive(Debug)]
pub struct Framing {
    limits: Limits,
    state: State,
    head: Head,
    /// Start of the line that is read, from the start of the head.
    line: usize,
    /// Bytes of the head that hold no end of that line.
    searched: usize,
    heads: u64,
}

#[derive(Debug)]
enum State {
    Start,
    Head,
    Body { left: u64 },
    Chunks(Chunks),
    Undecided,
    Tunnel,
    Http2(Frames),
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    http_11: bool,
    fields: usize,
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Framing {
    /// A connection of which nothing was read.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: State::Start, head: Head::default(), line: 0, searched: 0, heads: 0 }
    }

    /// Requests that were passed on.
    pub fn requests(&self) -> u64 {
        if let State::Http2(frames) = &self.state { frames.streams } else { self.heads }
    }

    /// Whether it is a connection of HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self.state, State::Http2(_))
    }

    /// Whether what comes next depends on the answer to the last request.
    pub fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// The last request was answered: whether the connection left HTTP.
    pub fn decide(&mut self, tunnel: bool) {
        if self.is_undecided() {
            self.state = if tunnel { State::Tunnel } else { State::Head };
        }
    }

    /// What comes next, where `held` bytes of it are there.
    pub fn expected(&self, held: usize) -> Expected {
        match self.state {
            State::Start | State::Head if held == 0 => Expected::Request,
            State::Start | State::Head => Expected::Head,
            State::Body { .. } | State::Chunks(_) => Expected::Body,
            State::Http2(_) => Expected::Frames,
            State::Undecided | State::Tunnel => Expected::Anything,
        }
    }

    /// So many bytes were sent to the client.
    pub fn wrote(&mut self, bytes: usize) {
        if let State::Http2(frames) = &mut self.state {
            frames.payload += bytes as u64;
        }
    }

    /// Reads on. Bytes that were not passed must come again, at the start.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut pass = 0;
        while pass < bytes.len() {
            let rest = &bytes[pass..];
            let stop = match &mut self.state {
                State::Start if rest.starts_with(PREFACE) => {
                    pass += PREFACE.len();
                    self.state = State::Http2(Frames::default());
                    continue;
                }
                State::Start if PREFACE.starts_with(rest) => Stop::Partial,
                State::Start => {
                    self.state = State::Head;
                    continue;
                }
                State::Head => match self.read_head(rest) {
                    Ok(Some(end)) => {
                        pass += end;
                        continue;
                    }
                    Ok(None) => Stop::Partial,
                    Err(failure) => Stop::Refused(failure),
                },
                State::Body { left } => {
                    let here = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= here as u64;
                    pass += here;
                    if *left == 0 {
                        self.state = self.after();
                    }
                    continue;
                }
                State::Chunks(chunks) => match chunks.read(rest) {
                    Ok((here, ended)) => {
                        pass += here;
                        if ended {
                            self.state = self.after();
                        }
                        continue;
                    }
                    Err(failure) => Stop::Broken(failure),
                },
                State::Undecided => Stop::Held,
                State::Tunnel => {
                    pass = bytes.len();
                    continue;
                }
                State::Http2(frames) => match frames.read(rest, &self.limits) {
                    Ok(()) => {
                        pass = bytes.len();
                        continue;
                    }
                    Err(failure) => Stop::Broken(failure),
                },
            };
            return Scan { pass, stop };
        }
        Scan { pass, stop: Stop::Nothing }
    }

    /// What follows the request whose head was read last.
    fn after(&self) -> State {
        if self.head.upgrade { State::Undecided } else { State::Head }
    }

    /// Reads lines of a head up to its end; `None` where that is not there yet.
    fn read_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        if self.line == 0 && self.searched == 0 {
            self.head = Head::default();
        }
        let end = match self.read_lines(bytes)? {
            Some(end) if end <= self.limits.head_bytes => end,
            None if bytes.len() <= self.limits.head_bytes => {
                self.searched = bytes.len();
                return Ok(None);
            }
            _ => return Err(Failure::HeadTooLarge { limit_bytes: self.limits.head_bytes }),
        };
        (self.line, self.searched) = (0, 0);
        self.state = self.body()?;
        self.heads += 1;
        Ok(Some(end))
    }

    fn read_lines(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        // A long line that comes byte by byte is not read from its start each time.
        if self.searched > self.line + LONG_LINE_BYTES && !bytes[self.searched..].contains(&b'\n') {
            self.check_target_so_far(bytes)?;
            return Ok(None);
        }
        loop {
            let rest = &bytes[self.line..];
            match rest {
                [] | [b'\r'] => return Ok(None),
                // Source: RFC 9112 section 2.2: empty lines before a request are skipped.
                [b'\r', b'\n', ..] if !self.head.begun => {
                    self.line += 2;
                    continue;
                }
                [b'\r', b'\n', ..] => return Ok(Some(self.line + 2)),
                _ => {}
            }
            let length = if self.head.begun { self.read_field(rest)? } else { self.read_request_line(rest)? };
            let Some(length) = length else {
                self.check_target_so_far(bytes)?;
                return Ok(None);
            };
            self.line += length;
        }
    }

    fn check_target_so_far(&self, bytes: &[u8]) -> Result<(), Failure> {
        // No method is as long as that.
        const METHOD_BYTES: usize = 64;
        let limit_bytes = self.limits.target_bytes;
        if !self.head.begun && bytes.len() - self.line > limit_bytes + METHOD_BYTES {
            return Err(Failure::TargetTooLong { limit_bytes });
        }
        Ok(())
    }

    /// Source: RFC 9112 section 3.
    fn read_request_line(&mut self, line: &[u8]) -> Result<Option<usize>, Failure> {
        let Some(method) = line.iter().position(|byte| !is_token(*byte)) else { return Ok(None) };
        match line[method] {
            b' ' if method > 0 => {}
            b'\n' => return Err(bare_lf()),
            _ => return Err(malformed("its method holds a byte that is not allowed")),
        }
        let after = &line[method + 1..];
        let Some(length) = after.iter().position(|byte| *byte <= b' ' || *byte == 0x7f) else { return Ok(None) };
        let target = &after[..length];
        if length > self.limits.target_bytes {
            return Err(Failure::TargetTooLong { limit_bytes: self.limits.target_bytes });
        }
        match after[length] {
            b' ' if length > 0 => {}
            b'\n' => return Err(bare_lf()),
            b'\r' => return Err(malformed("its first line has no version")),
            _ => return Err(malformed("its target holds a byte that is not allowed")),
        }
        check_target(&line[..method], target)?;
        const VERSION: &[u8] = b"HTTP/1.";
        let version = &after[length + 1..];
        let known = version.len().min(VERSION.len());
        if version[..known] != VERSION[..known] {
            let is_version = version.starts_with(b"HTTP/") && version.get(5).is_some_and(u8::is_ascii_digit);
            return Err(if is_version { Failure::Version } else { malformed("its first line ends in no version") });
        }
        match version[known..] {
            [b'0' | b'1', b'\r', b'\n', ..] => {}
            [] | [b'0'..=b'9'] | [b'0' | b'1', b'\r'] => return Ok(None),
            [b'0' | b'1', b'\n', ..] => return Err(bare_lf()),
            [b'0'..=b'9', b'\r', ..] => return Err(Failure::Version),
            _ => return Err(malformed("its first line ends in no version")),
        }
        self.head.begun = true;
        self.head.http_11 = version[known] == b'1';
        Ok(Some(method + 1 + length + 1 + known + 3))
    }

    /// Source: RFC 9112 section 5.
    fn read_field(&mut self, line: &[u8]) -> Result<Option<usize>, Failure> {
        let Some(colon) = line.iter().position(|byte| !is_token(*byte)) else { return Ok(None) };
        match (colon, line[colon]) {
            (1.., b':') => {}
            (0, b' ' | b'\t') => return Err(malformed("a header field is folded over several lines")),
            (_, b' ' | b'\t') => return Err(malformed("white space stands before the colon of a header field")),
            (_, b'\n') => return Err(bare_lf()),
            (_, b'\r') => return Err(malformed("a line of its head has no colon")),
            _ => return Err(malformed("the name of a header field holds a byte that is not allowed")),
        }
        let Some(length) = value_length(&line[colon + 1..])? else { return Ok(None) };
        self.head.fields += 1;
        if self.head.fields > self.limits.fields {
            return Err(Failure::TooManyFields { limit: self.limits.fields });
        }
        let (name, value) = (&line[..colon], &line[colon + 1..=colon + length]);
        self.note_field(name, value.trim_ascii())?;
        Ok(Some(colon + 1 + length + 2))
    }

    fn note_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Failure> {
        let head = &mut self.head;
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is(b"host") => head.hosts += 1,
            7 if is(b"upgrade") => head.upgrade = true,
            14 if is(b"content-length") => {
                if head.length.is_some() {
                    return Err(malformed("it has more than one Content-Length"));
                }
                head.length = Some(decimal(value).ok_or_else(|| malformed("its Content-Length is no number"))?);
            }
            17 if is(b"transfer-encoding") => {
                if head.chunked {
                    return Err(malformed("it has more than one Transfer-Encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Failure::Coding);
                }
                head.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// What the head says of its body. Source: RFC 9112 sections 3.2 and 6.
    fn body(&mut self) -> Result<State, Failure> {
        let head = &mut self.head;
        // Only HTTP/1.1 can change the protocol.
        head.upgrade &= head.http_11;
        if head.hosts > 1 {
            return Err(malformed("it has more than one Host"));
        }
        if head.http_11 && head.hosts == 0 {
            return Err(malformed("it has no Host"));
        }
        if head.chunked && !head.http_11 {
            return Err(malformed("it has a Transfer-Encoding, which HTTP/1.0 does not know"));
        }
        if head.chunked && head.length.is_some() {
            return Err(malformed("it has both a Content-Length and a Transfer-Encoding"));
        }
        Ok(match head.length {
            _ if head.chunked => State::Chunks(Chunks::default()),
            Some(left @ 1..) => State::Body { left },
            _ => self.after(),
        })
    }
}

/// Source: RFC 9112 section 3.2.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Failure> {
    if method == b"CONNECT" {
        return Err(Failure::Connect);
    }
    if target.contains(&b'#') {
        return Err(malformed("its target has a fragment"));
    }
    let has_scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let known = match target[0] {
        b'/' => true,
        b'*' => method == b"OPTIONS" && target.len() == 1,
        _ => has_scheme(b"http://") || has_scheme(b"https://"),
    };
    if known { Ok(()) } else { Err(malformed("its target is neither a path nor a URL")) }
}

/// Bytes of a field's value up to its line's end; `None` where that is not there yet.
fn value_length(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    let Some(length) = value_end(bytes) else { return Ok(None) };
    match bytes[length..] {
        [b'\r', b'\n', ..] => Ok(Some(length)),
        [b'\r'] => Ok(None),
        [b'\r', ..] => Err(malformed("a line of its head holds a CR without LF")),
        [b'\n', ..] => Err(bare_lf()),
        _ => Err(malformed("a header field holds a control character")),
    }
}

fn malformed(cause: &'static str) -> Failure {
    Failure::Malformed { cause }
}

fn bare_lf() -> Failure {
    malformed("a line of its head ends in LF without CR")
}

/// Which bytes are a token's. Source: RFC 9110 section 5.6.2.
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Which bytes are a value's. Source: RFC 9110 section 5.5.
fn is_value(byte: u8) -> bool {
    (byte >= b' ') & (byte != 0x7f) | (byte == b'\t')
}

/// The first byte that is no value's.
fn value_end(bytes: &[u8]) -> Option<usize> {
    // Without a branch for each byte, many are looked at at once.
    let (blocks, _) = bytes.as_chunks::<16>();
    let whole =
        blocks.iter().take_while(|block| block.iter().fold(true, |all, byte| all & is_value(*byte))).count() * 16;
    bytes[whole..].iter().position(|byte| !is_value(*byte)).map(|at| whole + at)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    // Nineteen digits cannot overflow.
    (1..=19).contains(&digits.len()).then_some(())?;
    digits.iter().try_fold(0, |sum: u64, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
}

/// A chunked body. Source: RFC 9112 section 7.1.
#[derive(Debug, Default)]
struct Chunks {
    at: Chunk,
    /// Bytes of extensions and trailers so far.
    extra: usize,
}

#[derive(Clone, Copy, Debug)]
enum Chunk {
    Size { digits: u8, size: u64 },
    SizeSpace { size: u64 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    End,
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Size { digits: 0, size: 0 }
    }
}

impl Chunks {
    /// Reads on: how many bytes are the body's, and whether it has ended.
    fn read(&mut self, bytes: &[u8]) -> Result<(usize, bool), Failure> {
        let mut at = 0;
        while at < bytes.len() {
            if let Chunk::Data { left } = &mut self.at {
                let here = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= here as u64;
                at += here;
                if *left == 0 {
                    self.at = Chunk::DataCr;
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if matches!(self.at, Chunk::End) {
                return if byte == b'\n' { Ok((at, true)) } else { Err(malformed("its trailers end in no line end")) };
            }
            self.at = self.step(byte)?;
            if self.extra > CHUNK_EXTRA_LIMIT_BYTES {
                return Err(malformed("its chunk extensions and trailers are too long"));
            }
        }
        Ok((at, false))
    }

    fn step(&mut self, byte: u8) -> Result<Chunk, Failure> {
        let size_wrong = || malformed("the size of a chunk is no hexadecimal number");
        let end_wrong = || malformed("a chunk is longer than its size");
        Ok(match (self.at, byte) {
            (Chunk::Size { digits, size }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == CHUNK_SIZE_DIGITS {
                    return Err(size_wrong());
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Chunk::Size { digits: digits + 1, size: size * 16 + u64::from(digit) }
            }
            (Chunk::Size { digits: 0, .. }, _) => return Err(size_wrong()),
            (Chunk::Size { size, .. } | Chunk::SizeSpace { size }, b' ' | b'\t') => {
                self.extra += 1;
                Chunk::SizeSpace { size }
            }
            (Chunk::Size { size, .. } | Chunk::SizeSpace { size }, b';') => Chunk::Extension { size },
            (Chunk::Size { size, .. } | Chunk::Extension { size }, b'\r') => Chunk::SizeEnd { size },
            (Chunk::Extension { size }, byte) if is_value(byte) => {
                self.extra += 1;
                Chunk::Extension { size }
            }
            (Chunk::Extension { .. }, _) => return Err(malformed("a chunk extension holds a control character")),
            (Chunk::Size { .. } | Chunk::SizeSpace { .. }, _) => return Err(size_wrong()),
            (Chunk::SizeEnd { size: 0 }, b'\n') => Chunk::TrailerStart,
            (Chunk::SizeEnd { size }, b'\n') => Chunk::Data { left: size },
            (Chunk::SizeEnd { .. }, _) => return Err(malformed("the size of a chunk ends in CR without LF")),
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::default(),
            (Chunk::DataCr | Chunk::DataLf, _) => return Err(end_wrong()),
            (Chunk::TrailerStart, b'\r') => Chunk::End,
            (Chunk::TrailerStart | Chunk::TrailerName, byte) if is_token(byte) => self.trailer(Chunk::TrailerName),
            (Chunk::TrailerName, b':') => self.trailer(Chunk::TrailerValue),
            (Chunk::TrailerValue, byte) if is_value(byte) => self.trailer(Chunk::TrailerValue),
            (Chunk::TrailerValue, b'\r') => Chunk::TrailerEnd,
            (Chunk::TrailerEnd, b'\n') => Chunk::TrailerStart,
            (Chunk::TrailerStart | Chunk::TrailerName | Chunk::TrailerValue | Chunk::TrailerEnd, _) => {
                return Err(malformed("a trailer field holds a byte that is not allowed"));
            }
            (Chunk::Data { .. } | Chunk::End, _) => unreachable!("both are read elsewhere"),
        })
    }

    fn trailer(&mut self, next: Chunk) -> Chunk {
        self.extra += 1;
        next
    }
}

/// Frames of HTTP/2, counted by what they are good for; the codec reads them.
///
/// Each kind that costs the server work and carries nothing has been a flood: RST_STREAM (CVE-2023-44487), PING and
/// SETTINGS (CVE-2019-9512, CVE-2019-9515), PRIORITY (CVE-2019-9513), empty DATA (CVE-2019-9518), CONTINUATION
/// (CVE-2024-27316), WINDOW_UPDATE (CVE-2025-8671).
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 9],
    have: usize,
    left: usize,
    streams: u64,
    resets: u64,
    overhead: u64,
    payload: u64,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8], limits: &Limits) -> Result<(), Failure> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let here = self.left.min(bytes.len());
                self.left -= here;
                bytes = &bytes[here..];
                continue;
            }
            let here = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + here].copy_from_slice(&bytes[..here]);
            self.have += here;
            bytes = &bytes[here..];
            if self.have == self.head.len() {
                self.have = 0;
                self.count(limits)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, limits: &Limits) -> Result<(), Failure> {
        const END_STREAM: u8 = 1;
        const ACK: u8 = 1;
        let [high, middle, low, kind, flags, ..] = self.head;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let bytes = (self.head.len() + self.left) as u64;
        match kind {
            0 if self.left > 0 || flags & END_STREAM != 0 => self.payload += bytes,
            1 => {
                self.streams += 1;
                self.payload += bytes;
            }
            3 => {
                self.resets += 1;
                self.overhead += bytes;
            }
            // What is sent back for it counts as sent.
            4 | 6 if flags & ACK == 0 => self.overhead += 2 * bytes,
            _ => self.overhead += bytes,
        }
        if self.resets > limits.resets && self.resets > self.streams / 2 {
            return Err(malformed("most of its HTTP/2 streams were reset"));
        }
        if self.overhead > limits.overhead_bytes + self.payload {
            return Err(malformed("most of its HTTP/2 frames carry nothing"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
