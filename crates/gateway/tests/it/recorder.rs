//! A workload that shares no code with the gateway: it reads bytes and writes down what requests they are.

use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The method of what is no request; its target says why.
pub const MALFORMED: &str = "?";

/// A request as the workload got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    /// The values of a field, by a lower-case name.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
    }
}

pub struct Recorder {
    pub ip: Ipv4Addr,
    pub port: u16,
    book: Arc<Mutex<Vec<Seen>>>,
    accepting: JoinHandle<()>,
}

impl Recorder {
    /// Answers each request with 200 and `ok`.
    pub async fn start(ip: u8) -> Self {
        Self::answering(ip, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await
    }

    /// Answers each request with these bytes, without a body where the method has none.
    pub async fn answering(ip: u8, answer: &'static [u8]) -> Self {
        let ip = Ipv4Addr::new(127, 0, 0, ip);
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let book = Arc::<Mutex<Vec<Seen>>>::default();
        let of_connections = book.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(record(stream, of_connections.clone(), answer));
            }
        });
        Self { ip, port, book, accepting }
    }

    /// Takes the requests that came as a whole.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.book.lock())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Why a request has no end.
enum Error {
    /// The connection ended before it.
    Cut,
    Malformed(String),
}

async fn record(mut stream: TcpStream, book: Arc<Mutex<Vec<Seen>>>, answer: &'static [u8]) {
    let mut bytes = Vec::new();
    loop {
        let seen = match read(&mut stream, &mut bytes).await {
            Ok(seen) => seen,
            Err(Error::Cut) => return,
            Err(Error::Malformed(target)) => {
                let method = MALFORMED.to_owned();
                return book.lock().push(Seen { method, target, fields: Vec::new(), body: Vec::new() });
            }
        };
        book.lock().push(seen.clone());
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        let answer = if seen.method == "HEAD" { &answer[..head] } else { answer };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<(), Error> {
    match stream.read_buf(bytes).await {
        Ok(1..) => Ok(()),
        _ => Err(Error::Cut),
    }
}

async fn line(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<String, Error> {
    loop {
        if let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = bytes.drain(..end + 2).collect();
            if line[..end].iter().any(|byte| b"\r\n\0".contains(byte)) {
                return Err(Error::Malformed(format!("a line is {:?}", String::from_utf8_lossy(&line))));
            }
            return Ok(line[..end].iter().map(|byte| char::from(*byte)).collect());
        }
        more(stream, bytes).await?;
    }
}

async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Seen, Error> {
    let first = line(stream, bytes).await?;
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = first.split(' ').collect::<Vec<_>>()[..] else {
        return Err(Error::Malformed(format!("the first line is {first:?}")));
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut seen = Seen { method, target, fields: Vec::new(), body: Vec::new() };
    loop {
        let field = line(stream, bytes).await?;
        if field.is_empty() {
            break;
        }
        match field.split_once(':') {
            Some((name, value)) if !name.is_empty() && !name.contains([' ', '\t']) => {
                seen.fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
            }
            _ => return Err(Error::Malformed(format!("a field is {field:?}"))),
        }
    }
    read_body(stream, bytes, &mut seen).await?;
    Ok(seen)
}

async fn read_body(stream: &mut TcpStream, bytes: &mut Vec<u8>, seen: &mut Seen) -> Result<(), Error> {
    let number = |text: &str, radix| {
        let is_number = text.chars().all(|digit| digit.is_digit(radix));
        let number = usize::from_str_radix(text, radix).ok().filter(|_| is_number);
        number.ok_or_else(|| Error::Malformed(format!("a size is {text:?}")))
    };
    match (&seen.values("content-length")[..], &seen.values("transfer-encoding")[..]) {
        ([], []) => Ok(()),
        ([length], []) => {
            let length = number(length, 10)?;
            take(stream, bytes, length, &mut seen.body).await
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => loop {
            let line_of_size = line(stream, bytes).await?;
            let size = number(line_of_size.split(';').next().unwrap_or_default().trim_end(), 16)?;
            if size == 0 {
                while !line(stream, bytes).await?.is_empty() {}
                return Ok(());
            }
            take(stream, bytes, size, &mut seen.body).await?;
            if !line(stream, bytes).await?.is_empty() {
                return Err(Error::Malformed("a chunk is longer than its size".to_owned()));
            }
        },
        (lengths, codings) => {
            Err(Error::Malformed(format!("the body has lengths {lengths:?} and codings {codings:?}")))
        }
    }
}

async fn take(stream: &mut TcpStream, bytes: &mut Vec<u8>, count: usize, into: &mut Vec<u8>) -> Result<(), Error> {
    while bytes.len() < count {
        more(stream, bytes).await?;
    }
    into.extend(bytes.drain(..count));
    Ok(())
}
