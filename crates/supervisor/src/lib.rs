//! The protocol between the node and a pod's supervisor.
//!
//! The supervisor is a small program of its own (`colibri-supervisor`, feature `program`): one per pod, single-threaded,
//! static, started ahead in a pool, and it outlives the platform. The node talks to it over a unix socket: frames of a
//! four-byte little-endian length and that many bytes of JSON, at most [`FRAME_LIMIT_BYTES`].
//!
//! Invariants: the library has no sockets and no tasks beyond reading and writing one frame; a supervisor serves one
//! pod for its whole life.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

mod protocol;

pub use protocol::*;

/// Largest frame, requests and events alike.
pub const FRAME_LIMIT_BYTES: usize = 8 * 1024 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than [`FRAME_LIMIT_BYTES`].
    #[error("a frame of {0} bytes is over the limit of {FRAME_LIMIT_BYTES}")]
    TooLong(usize),
    /// The bytes are not what they should be.
    #[error("a frame does not hold the expected JSON")]
    Json(#[from] serde_json::Error),
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
}

/// One frame with its length in front.
///
/// # Errors
///
/// [`FrameError::TooLong`] and [`FrameError::Json`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > FRAME_LIMIT_BYTES {
        return Err(FrameError::TooLong(length));
    }
    frame[..4].copy_from_slice(&u32::try_from(length).map_err(|_| FrameError::TooLong(length))?.to_le_bytes());
    Ok(frame)
}

/// Takes the first whole frame off `buffer`; `None` when more bytes are needed.
///
/// # Errors
///
/// [`FrameError::TooLong`] and [`FrameError::Json`].
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > FRAME_LIMIT_BYTES {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length]);
    buffer.drain(..4 + length);
    Ok(Some(message?))
}

/// Reads one frame from a blocking stream; `None` at its end.
///
/// # Errors
///
/// [`FrameError`].
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let length = u32::from_le_bytes(head) as usize;
    if length > FRAME_LIMIT_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Writes one frame to a blocking stream.
///
/// # Errors
///
/// [`FrameError`].
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_a_half_one_waits() {
        let frame = encode(&Request::Quit).unwrap();
        let mut buffer = frame[..frame.len() - 1].to_vec();
        assert!(decode::<Request>(&mut buffer).unwrap().is_none());
        buffer.push(frame[frame.len() - 1]);
        buffer.extend_from_slice(b"xy");
        assert!(matches!(decode::<Request>(&mut buffer).unwrap(), Some(Request::Quit)));
        assert_eq!(buffer, b"xy");
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_head_alone() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(decode::<Request>(&mut buffer), Err(FrameError::TooLong(_))));
    }
}
