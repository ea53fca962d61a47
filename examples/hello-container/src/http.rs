//! As much of HTTP/1.1 as this server needs: heads up to 16 KiB, bodies with a length or in chunks up to 1 MiB,
//! keep-alive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

const HEAD_LIMIT_BYTES: u64 = 16 << 10;
const BODY_LIMIT_BYTES: u64 = 1 << 20;

/// One request.
pub struct Request {
    method: String,
    target: String,
    /// The whole body.
    pub body: Vec<u8>,
    /// Whether the connection goes on after the answer.
    pub keep_alive: bool,
}

impl Request {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A number in the query.
    pub fn number(&self, name: &str) -> Option<u64> {
        let (_, query) = self.target.split_once('?')?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name)?.1.parse().ok()
    }
}

/// One answer.
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// A text.
    pub fn text(status: u16, text: String) -> Self {
        Self { status, body: text.into_bytes() }
    }
}

/// One client's connection.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Takes over an accepted stream.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The next request, or `None` at the end of the connection.
    pub fn next_request(&mut self) -> io::Result<Option<Request>> {
        let mut head = Head::default();
        let mut left = HEAD_LIMIT_BYTES;
        loop {
            let mut line = String::new();
            let read = (&mut self.reader).take(left).read_line(&mut line)?;
            left -= read as u64;
            if read == 0 {
                return if left == HEAD_LIMIT_BYTES { Ok(None) } else { Err(invalid("the head does not end")) };
            }
            match line.trim_end() {
                "" if head.first.is_empty() => {}
                "" => break,
                line => head.take(line)?,
            }
        }
        if head.expects_continue {
            self.reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = self.body(&head)?;
        let mut words = head.first.split(' ');
        let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(invalid("the request line has not three words"));
        };
        let keep_alive = version == "HTTP/1.1" && !head.close;
        Ok(Some(Request { method: method.to_owned(), target: target.to_owned(), body, keep_alive }))
    }

    /// Writes an answer with some numbers as headers.
    pub fn respond(&mut self, request: &Request, response: &Response, headers: &[(&str, usize)]) -> io::Result<()> {
        let reason = if response.status == 200 { "OK" } else { "Not Found" };
        let mut bytes = Vec::with_capacity(256 + response.body.len());
        write!(bytes, "HTTP/1.1 {} {reason}\r\ncontent-type: text/plain; charset=utf-8\r\n", response.status)?;
        write!(bytes, "content-length: {}\r\n", response.body.len())?;
        for (name, value) in headers {
            write!(bytes, "{name}: {value}\r\n")?;
        }
        if !request.keep_alive {
            bytes.extend_from_slice(b"connection: close\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        if request.method != "HEAD" {
            bytes.extend_from_slice(&response.body);
        }
        self.reader.get_mut().write_all(&bytes)
    }

    fn body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        if !head.chunked {
            return self.exactly(head.length);
        }
        let mut body = Vec::new();
        loop {
            let size = self.line()?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| invalid("a chunk has no size"))?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            if body.len() as u64 + size > BODY_LIMIT_BYTES {
                return Err(invalid("the body is too long"));
            }
            body.append(&mut self.exactly(size)?);
            self.line()?;
        }
    }

    fn exactly(&mut self, length: u64) -> io::Result<Vec<u8>> {
        if length > BODY_LIMIT_BYTES {
            return Err(invalid("the body is too long"));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| invalid("the body is too long"))?];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if (&mut self.reader).take(1024).read_line(&mut line)? == 0 {
            return Err(invalid("the body does not end"));
        }
        Ok(line.trim_end().to_owned())
    }
}

#[derive(Default)]
struct Head {
    first: String,
    length: u64,
    chunked: bool,
    close: bool,
    expects_continue: bool,
}

impl Head {
    fn take(&mut self, line: &str) -> io::Result<()> {
        if self.first.is_empty() {
            self.first = line.to_owned();
            return Ok(());
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header has no colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => self.length = value.parse().map_err(|_| invalid("content-length is no number"))?,
            "transfer-encoding" => self.chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => self.close = value.eq_ignore_ascii_case("close"),
            "expect" => self.expects_continue = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
        Ok(())
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
