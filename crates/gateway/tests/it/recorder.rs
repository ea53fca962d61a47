//! A workload that shares no code with the gateway: it reads bytes and writes down what requests they are.

use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

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

async fn record(mut stream: TcpStream, book: Arc<Mutex<Vec<Seen>>>, answer: &'static [u8]) {
    let mut bytes = Vec::new();
    while let Some(mut seen) = read_head(&mut stream, &mut bytes).await {
        if read_body(&mut stream, &mut bytes, &mut seen).await.is_none() {
            return;
        }
        book.lock().push(seen.clone());
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        let answer = if seen.method == "HEAD" { &answer[..head] } else { answer };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    stream.read_buf(bytes).await.ok().filter(|count| *count > 0).map(drop)
}

async fn line(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") {
            let line: Vec<u8> = bytes.drain(..end + 2).collect();
            return Some(line[..end].iter().map(|byte| char::from(*byte)).collect());
        }
        more(stream, bytes).await?;
    }
}

async fn read_head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Seen> {
    let first = line(stream, bytes).await?;
    let mut parts = first.split(' ');
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut fields = Vec::new();
    loop {
        let field = line(stream, bytes).await?;
        if field.is_empty() {
            return Some(Seen { method, target, fields, body: Vec::new() });
        }
        let (name, value) = field.split_once(':').unwrap_or_else(|| panic!("no field: {field:?}"));
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

async fn read_body(stream: &mut TcpStream, bytes: &mut Vec<u8>, seen: &mut Seen) -> Option<()> {
    let (lengths, codings) = (seen.values("content-length"), seen.values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "a body has one framing: {seen:?}");
    if let [length] = lengths[..] {
        let length: usize = length.parse().unwrap();
        take(stream, bytes, length, &mut seen.body).await
    } else if let [coding] = codings[..] {
        assert_eq!(coding, "chunked");
        loop {
            let size = usize::from_str_radix(&line(stream, bytes).await?, 16).unwrap();
            if size == 0 {
                while !line(stream, bytes).await?.is_empty() {}
                return Some(());
            }
            take(stream, bytes, size, &mut seen.body).await?;
            assert_eq!(line(stream, bytes).await?, "");
        }
    } else {
        Some(())
    }
}

async fn take(stream: &mut TcpStream, bytes: &mut Vec<u8>, count: usize, into: &mut Vec<u8>) -> Option<()> {
    while bytes.len() < count {
        more(stream, bytes).await?;
    }
    into.extend(bytes.drain(..count));
    Some(())
}
