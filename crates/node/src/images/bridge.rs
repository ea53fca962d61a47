//! Hands an asynchronous stream to blocking code.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::error::{ImagesError, blocking};

/// Bytes that are handed over at once; at most [`CHUNKS`] wait.
const CHUNK_BYTES: usize = 128 * 1024;
const CHUNKS: usize = 4;

enum Message {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// Runs `work` on the blocking pool with what `source` gives. When this future is dropped, the reader fails: a stream
/// that was cut off never looks complete.
pub(crate) async fn with_reader<T: Send + 'static>(
    mut source: impl AsyncRead + Unpin,
    work: impl FnOnce(ChannelReader) -> Result<T, ImagesError> + Send + 'static,
) -> Result<T, ImagesError> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let reader = ChannelReader { receiver, chunk: Bytes::new(), ended: false };
    let pump = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let message = match source.read(&mut buffer).await {
                Ok(0) => Message::End,
                Ok(count) => Message::Data(Bytes::copy_from_slice(&buffer[..count])),
                Err(error) => Message::Failed(error),
            };
            let last = !matches!(message, Message::Data(_));
            if sender.send(message).await.is_err() || last {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = blocking(move || work(reader)) => result,
        () = pump => Err(ImagesError::CutOff("the stream's reader ended".to_owned())),
    }
}

/// The blocking end.
pub(crate) struct ChannelReader {
    receiver: mpsc::Receiver<Message>,
    chunk: Bytes,
    ended: bool,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.receiver.blocking_recv() {
                Some(Message::Data(chunk)) => self.chunk = chunk,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Err(error),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload was cut off")),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_comes_through_whole_and_errors_too() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 253) as u8).collect();
        let read = |mut reader: ChannelReader| {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map_err(ImagesError::Source)?;
            Ok(all)
        };
        assert!(with_reader(&bytes[..], read).await.unwrap() == bytes);
        let broken = tokio_util::io::StreamReader::new(futures::stream::iter([
            Ok(Bytes::from_static(b"start")),
            Err(io::Error::other("cable pulled")),
        ]));
        assert!(matches!(with_reader(broken, read).await, Err(ImagesError::Source(_))));
        // Work that ends early does not wait for the rest.
        let endless = tokio::io::repeat(0);
        assert_eq!(with_reader(endless, |_| Ok(7)).await.unwrap(), 7);
    }
}
