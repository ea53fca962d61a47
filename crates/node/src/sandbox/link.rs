//! The connection to one supervisor.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use supervisor::{Event, FrameError, Request, decode, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Both directions of the socket.
#[derive(Debug)]
pub struct Link {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    input: Vec<u8>,
}

impl Link {
    /// Connects to the supervisor whose folder is `dir`.
    ///
    /// # Errors
    ///
    /// When the socket is not there or nobody listens.
    pub async fn connect(dir: &Path) -> io::Result<Self> {
        // By a descriptor: a socket's path has at most 107 bytes.
        let folder = std::fs::File::open(dir)?;
        let path = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
        let (reader, writer) = UnixStream::connect(path).await?.into_split();
        Ok(Self { reader, writer, input: Vec::new() })
    }

    /// Process id of the supervisor, whose network namespace is the pod's.
    pub fn peer(&self) -> Option<i32> {
        self.reader.as_ref().peer_cred().ok()?.pid()
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// When the supervisor is gone or the request is too long.
    pub async fn send(&mut self, request: &Request) -> Result<(), FrameError> {
        self.writer.write_all(&encode(request)?).await?;
        Ok(())
    }

    /// The next event; `None` when the supervisor is gone. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// When the bytes are not understood.
    pub async fn next(&mut self) -> Result<Option<Event>, FrameError> {
        loop {
            if let Some(event) = decode(&mut self.input)? {
                return Ok(Some(event));
            }
            if self.reader.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }
}
