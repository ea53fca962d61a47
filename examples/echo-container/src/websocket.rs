//! WebSockets: each message goes back as it came (RFC 6455).

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::task::TaskTracker;

/// Most bytes of a frame.
const FRAME_LIMIT_BYTES: u64 = 1024 * 1024;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Takes a handshake, of HTTP/1.1 or by HTTP/2's extended CONNECT.
pub fn accept(request: Request<Incoming>, open: &TaskTracker) -> Response<()> {
    let mut response = Response::new(());
    if request.method() != Method::CONNECT {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        };
        let given = [key.as_bytes(), b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
        let answer = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &given));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(answer) = HeaderValue::try_from(answer) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, answer);
        }
    }
    open.spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // A client that breaks off is no news.
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    response
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut frame = Vec::new();
    loop {
        let first = stream.read_u8().await?;
        let second = stream.read_u8().await?;
        let length = match second & 0x7f {
            126 => stream.read_u16().await?.into(),
            127 => stream.read_u64().await?,
            short => short.into(),
        };
        if second & 0x80 == 0 || length > FRAME_LIMIT_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut mask = [0; 4];
        stream.read_exact(&mut mask).await?;
        frame.clear();
        let kind = first & 0x0f;
        frame.push(if kind == PING { first & 0xf0 | PONG } else { first });
        #[expect(clippy::cast_possible_truncation, reason = "the length is in the range that it is matched to")]
        match length {
            0..126 => frame.push(length as u8),
            126..0x1_0000 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(127);
                frame.extend(length.to_be_bytes());
            }
        }
        let start = frame.len();
        frame.resize(start + usize::try_from(length).unwrap_or_default(), 0);
        stream.read_exact(&mut frame[start..]).await?;
        frame[start..].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        stream.write_all(&frame).await?;
        stream.flush().await?;
        if kind == CLOSE {
            return stream.shutdown().await;
        }
    }
}
