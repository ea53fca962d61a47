//! A client's connection as the HTTP codec sees it: only what [`crate::wire`] passes, and only in time.
//!
//! A head that is refused, or that does not come in time, is replaced by a plain request of our own, which the service
//! answers with the reason; so the answers to what came before it keep their order. A body that is refused breaks with
//! an error that carries the reason. Either way the connection then ends, and what the client still sends is read and
//! dropped for a moment, so that it gets to see the answer.
//!
//! | waiting for | longest time | then |
//! |---|---|---|
//! | a request, on HTTP/2 with none in flight | `idle-timeout` | the connection is closed |
//! | the rest of a head | `header-timeout` | 408 |
//! | the rest of an HTTP/1 body that an instance waits for | `body-timeout` for `min-body-bytes` | 408 |
//!
//! There is one timer for each connection; it is set when it fires, not when something comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use api::config::Gateway as ClientLimits;
use futures::FutureExt;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::Failure;
use crate::transport::Duplex;
use crate::wire::{Expected, Framing, Limits, Scan, Stop};

/// Takes the place of a head that is refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// What is read into at once while a head is not complete.
const READ_BYTES: usize = 4096;
/// What is read at once of what comes first on a connection; it is held while the request waits.
const OPENING_BYTES: usize = 2048;
/// How often it is looked whether a client is gone whose request waits and whose body is not read.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long, and how much of what the client still sends, is dropped before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// What a connection and the service on it tell each other.
#[derive(Default)]
pub struct Dialogue {
    told: Mutex<Told>,
    /// Requests that wait for a slot.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Told {
    /// The number of the request that is answered with a failure.
    refused: Option<(u64, Failure)>,
    /// Requests that the service was called for.
    called: u64,
    /// Requests whose responses have not ended.
    open: u64,
    /// Requests that were answered.
    answered: u64,
    /// Whether the last answer left HTTP.
    tunnel: bool,
    waker: Option<Waker>,
}

impl Dialogue {
    /// A request comes out of the codec; why it is refused, if it is.
    pub fn begin(self: &Arc<Self>) -> (Open, Option<Failure>) {
        let mut told = self.told.lock();
        let number = told.called;
        told.called += 1;
        told.open += 1;
        let refused = told.refused.take_if(|(refused, _)| *refused == number);
        (Open(self.clone()), refused.map(|(_, failure)| failure))
    }

    /// The request is answered: whether the connection leaves HTTP.
    pub fn answered(&self, tunnel: bool) {
        let mut told = self.told.lock();
        told.answered += 1;
        told.tunnel = tunnel;
        if let Some(waker) = told.waker.take() {
            drop(told);
            waker.wake();
        }
    }

    /// A request waits for a slot until what is returned is dropped: the client is watched.
    pub fn wait(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }
}

/// A request that waits for a slot.
pub struct Waits<'d>(&'d Dialogue);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request whose response has not ended.
pub struct Open(Arc<Dialogue>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.told.lock().open -= 1;
    }
}

/// A response's body that holds its request open.
pub struct Held<B> {
    body: B,
    _open: Open,
}

impl<B> Held<B> {
    /// Holds `open` until the body has gone.
    pub fn new(body: B, open: Open) -> Self {
        Self { body, _open: open }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's connection that lets pass what is well formed and in time.
pub struct Guarded<S> {
    stream: S,
    socket: fn(&S) -> Option<&TcpStream>,
    limits: Arc<ClientLimits>,
    framing: Framing,
    dialogue: Arc<Dialogue>,
    /// Bytes that were read and not handed on.
    held: Vec<u8>,
    /// So many of them may be.
    ready: usize,
    /// Whether nothing more is read.
    refused: bool,
    /// Why the body breaks, once what came before it is handed on.
    broken: Option<io::Error>,
    ended: bool,
    waiting: Waiting,
    timer: Option<Pin<Box<Sleep>>>,
    lingered: usize,
    /// Whether more was asked for, and an end would be seen.
    reading: bool,
    look: Option<Pin<Box<Sleep>>>,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A request of HTTP/1, or what stands in for one that is refused.
    Http1,
    /// HTTP/2's preface.
    Http2,
    /// Nothing: the client is gone.
    End,
}

/// What the connection waits for, and since when.
#[derive(Clone, Copy)]
struct Waiting {
    expected: Expected,
    since: Instant,
    bytes: u64,
}

impl<S: Duplex> Guarded<S> {
    /// Guards a connection of which nothing was read; `socket` is the client's, if there is one.
    pub fn new(
        stream: S,
        socket: fn(&S) -> Option<&TcpStream>,
        limits: Arc<ClientLimits>,
        dialogue: Arc<Dialogue>,
    ) -> Self {
        let framing = Framing::new(Limits {
            head_bytes: limits.head_bytes,
            fields: limits.header_fields,
            target_bytes: limits.target_bytes,
            resets: limits.http2_resets.into(),
            overhead_bytes: limits.http2_overhead_bytes,
        });
        let waiting = Waiting { expected: Expected::Anything, since: Instant::now(), bytes: 0 };
        Self {
            stream,
            socket,
            limits,
            framing,
            dialogue,
            held: Vec::new(),
            ready: 0,
            refused: false,
            broken: None,
            ended: false,
            waiting,
            timer: None,
            lingered: 0,
            reading: false,
            look: None,
        }
    }

    /// Reads on until it is known what the connection begins with; nothing is handed on.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Opening>> {
        while self.ready == 0 {
            if !ready!(self.read_more::<OPENING_BYTES>(cx))? {
                return Poll::Ready(Ok(Opening::End));
            }
        }
        Poll::Ready(Ok(if self.framing.is_http2() { Opening::Http2 } else { Opening::Http1 }))
    }

    /// What the connection begins with, from the start of the first request; `None` where that is refused.
    pub fn opening(&self) -> Option<&[u8]> {
        (!self.refused).then(|| &self.held[..self.ready])
    }

    /// Resolves when the client's socket has ended, even if not all of what came before has been read; never without a
    /// socket.
    pub async fn hung_up(&self) {
        let ended = match (self.socket)(&self.stream) {
            // Its end makes a socket ready for everything. Source: tokio, `Interest::PRIORITY`.
            Some(socket) => socket.ready(Interest::PRIORITY).await.is_ok_and(|ready| ready.is_read_closed()),
            None => false,
        };
        if !ended {
            std::future::pending().await
        }
    }

    /// Looks from time to time whether a client is gone that would not be missed: its request waits, and nothing is read.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.reading || self.dialogue.waiting.load(Ordering::Relaxed) == 0 || (self.socket)(&self.stream).is_none() {
            self.look = None;
            return Ok(());
        }
        loop {
            if self.hung_up().now_or_never().is_some() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let timer = self.look.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LOOK_INTERVAL)));
            if timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            timer.as_mut().reset(Instant::now() + LOOK_INTERVAL);
        }
    }

    /// Reads what comes into `buf`, or beside it while it cannot be handed on.
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.ready > 0 {
                let count = self.ready.min(buf.remaining());
                buf.put_slice(&self.held[..count]);
                self.held.drain(..count);
                self.ready -= count;
                if self.held.is_empty() {
                    self.held = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(broken) = self.broken.take() {
                return Poll::Ready(Err(broken));
            }
            if self.refused {
                // An end would take back the request that stands in.
                return Poll::Pending;
            }
            if self.framing.is_undecided() && !self.held.is_empty() && self.rescan_undecided(cx).is_pending() {
                return Poll::Pending;
            }
            if self.ready > 0 || self.refused {
                continue;
            }
            let before = buf.filled().len();
            if self.held.is_empty() {
                match Pin::new(&mut self.stream).poll_read(cx, buf) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => ready!(self.wait(cx)),
                }
                let fresh = &buf.filled()[before..];
                if fresh.is_empty() {
                    self.ended = !self.refused;
                    if self.ended {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                self.waiting.bytes += fresh.len() as u64;
                self.decide();
                let Scan { pass, stop } = self.scan(fresh);
                if !matches!(stop, Stop::Nothing) {
                    self.held.extend_from_slice(&fresh[pass..]);
                    buf.set_filled(before + pass);
                    self.stop(stop);
                }
                if pass > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                let more = ready!(self.read_more::<READ_BYTES>(cx))?;
                if !more {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Reads what comes beside what is held, and looks at it; false at the end.
    fn read_more<const BYTES: usize>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut space = [0; BYTES];
        let mut more = ReadBuf::new(&mut space);
        match Pin::new(&mut self.stream).poll_read(cx, &mut more) {
            Poll::Ready(result) => result?,
            Poll::Pending => ready!(self.wait(cx)),
        }
        if more.filled().is_empty() {
            self.ended = !self.refused;
            return Poll::Ready(Ok(!self.ended));
        }
        self.waiting.bytes += more.filled().len() as u64;
        self.held.extend_from_slice(more.filled());
        self.rescan();
        Poll::Ready(Ok(true))
    }

    fn rescan(&mut self) {
        let held = std::mem::take(&mut self.held);
        let Scan { pass, stop } = self.scan(&held);
        self.held = held;
        self.ready = pass;
        self.stop(stop);
    }

    fn scan(&mut self, bytes: &[u8]) -> Scan {
        let requests = self.framing.requests();
        let scan = self.framing.scan(bytes);
        if self.framing.requests() != requests {
            // What is waited for next is another request's.
            self.waiting.expected = Expected::Anything;
        }
        scan
    }

    /// Looks at what follows a request for another protocol again once that is answered.
    fn rescan_undecided(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.decide();
        if self.framing.is_undecided() {
            self.dialogue.told.lock().waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.rescan();
        Poll::Ready(())
    }

    /// Takes over the answer to a request for another protocol, if it is there.
    fn decide(&mut self) {
        if !self.framing.is_undecided() {
            return;
        }
        let told = self.dialogue.told.lock();
        if told.answered == self.framing.requests() {
            self.framing.decide(told.tunnel);
        }
    }

    /// Acts on what may not be handed on.
    fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Nothing | Stop::Partial | Stop::Held => {}
            Stop::Refused(failure) => self.refuse(failure),
            Stop::Broken(failure) => self.break_off(io::ErrorKind::InvalidData, failure),
        }
    }

    fn break_off(&mut self, kind: io::ErrorKind, failure: Failure) {
        self.refused = true;
        self.held.truncate(self.ready);
        self.broken = Some(io::Error::new(kind, failure));
    }

    /// Lets a request of our own take the place of what is held.
    fn refuse(&mut self, failure: Failure) {
        self.dialogue.told.lock().refused = Some((self.framing.requests(), failure));
        self.held.truncate(self.ready);
        self.held.extend_from_slice(STAND_IN);
        self.ready = self.held.len();
        self.refused = true;
    }

    /// What to wait for, and how long.
    fn limit(&self) -> Option<(Expected, Duration)> {
        let expected = self.framing.expected(self.held.len());
        let limit = match expected {
            Expected::Anything => return None,
            Expected::Head => self.limits.header_timeout,
            Expected::Body => self.limits.body_timeout,
            Expected::Request | Expected::Frames if self.dialogue.told.lock().open > 0 => return None,
            Expected::Request | Expected::Frames => self.limits.idle_timeout,
        };
        Some((expected, limit))
    }

    /// Nothing comes now. Ready when that has lasted too long: with nothing read, and [`Self::refused`] set where there
    /// is something to answer.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((expected, limit)) = self.limit() else {
            self.waiting.expected = Expected::Anything;
            return Poll::Pending;
        };
        let now = Instant::now();
        let came_on = expected == Expected::Body && self.waiting.bytes >= self.limits.body_progress_bytes;
        if self.waiting.expected != expected || came_on {
            self.waiting = Waiting { expected, since: now, bytes: 0 };
        }
        let deadline = self.waiting.since + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.expire(expected, limit);
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn expire(&mut self, expected: Expected, limit: Duration) {
        match expected {
            Expected::Head => self.refuse(Failure::HeadTimeout { limit }),
            Expected::Body => {
                let failure = Failure::BodyTimeout { bytes: self.limits.body_progress_bytes, limit };
                self.break_off(io::ErrorKind::TimedOut, failure);
            }
            Expected::Request | Expected::Frames | Expected::Anything => {}
        }
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.framing.wrote(*bytes);
            if self.waiting.expected == Expected::Request {
                // A response that is still being sent is no idle time.
                self.waiting.expected = Expected::Anything;
            }
        }
    }

    /// Reads what the client still sends, for a moment: a connection that is closed with unread bytes takes back what
    /// was sent on it.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let amid = self.framing.expected(self.held.len()) == Expected::Body;
        if self.ended || !(self.refused || amid) {
            return Poll::Ready(());
        }
        let until = Instant::now() + LINGER;
        if self.lingered == 0 {
            self.lingered = 1;
            self.timer = Some(Box::pin(sleep_until(until)));
        }
        let mut space = [0; READ_BYTES];
        loop {
            let mut dropped = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut dropped) {
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() && self.lingered < LINGER_BYTES => {
                    self.lingered += dropped.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    return self.timer.as_mut().map_or(Poll::Ready(()), |timer| timer.as_mut().poll(cx));
                }
            }
        }
    }
}

impl<S: Duplex> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.read(cx, buf);
        self.reading = read.is_pending();
        read
    }
}

impl<S: Duplex> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingered == 0 {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        self.linger(cx).map(Ok)
    }
}
