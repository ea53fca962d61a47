//! Bodies as they pass through.
//!
//! Neither is ever held as a whole. The response's body owns the request's slot and the connection to the instance:
//! when it ends, the connection is kept for the next request and the slot is given back; when it is dropped before
//! its end, because the client is gone, the connection is closed, which cancels the work on the instance.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::answer::{self, Failure};
use crate::cause::Cause;
use crate::record::Record;
use crate::revision::Slot;
use crate::upstream::Http1;

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a body was broken off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent more than the gateway takes.
    #[error("the request's body is longer than {limit_bytes} bytes")]
    TooLong {
        /// The limit.
        limit_bytes: u64,
    },
    /// The response, whose length was announced, did not come in time.
    #[error("request timeout")]
    Timeout,
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
}

/// Why the client is to blame for an exchange that broke, if it is: what it sent of the body was refused.
pub fn broken_by_client(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.into_iter().find_map(|cause| {
        if let Some(BodyError::TooLong { limit_bytes }) = cause.downcast_ref() {
            return Some(Failure::BodyTooLong { limit_bytes: *limit_bytes });
        }
        cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref().cloned()
    })
}

/// A request's body on its way to the instance.
pub struct RequestBody {
    inner: Option<Incoming>,
    left: Option<u64>,
    limit_bytes: u64,
    /// Counts what comes, where somebody wants to know.
    received: Option<Arc<AtomicU64>>,
}

impl RequestBody {
    /// No body.
    pub fn empty() -> Self {
        Self { inner: None, left: None, limit_bytes: 0, received: None }
    }

    /// The client's body, with a limit, counted into `received`.
    pub fn new(inner: Incoming, limit_bytes: Option<u64>, received: Option<Arc<AtomicU64>>) -> Self {
        Self { inner: Some(inner), left: limit_bytes, limit_bytes: limit_bytes.unwrap_or_default(), received }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = match std::task::ready!(Pin::new(inner).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Broken(error)))),
            None => return Poll::Ready(None),
        };
        if let (Some(received), Some(data)) = (&self.received, frame.data_ref()) {
            received.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        if let (Some(left), Some(data)) = (self.left, frame.data_ref()) {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => self.left = Some(rest),
                None => {
                    return Poll::Ready(Some(Err(BodyError::TooLong { limit_bytes: self.limit_bytes })));
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A response's body on its way to the client.
pub enum ResponseBody {
    /// A text of the gateway's own.
    Text(Option<Bytes>),
    /// The instance's.
    Flow(Box<Flow>),
    /// Whatever a handler of an extra host makes.
    Other(http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>),
}

impl ResponseBody {
    /// A text.
    pub fn text(text: Bytes) -> Self {
        Self::Text(Some(text))
    }

    /// No body.
    pub fn empty() -> Self {
        Self::Text(None)
    }

    /// Any body.
    pub fn other(body: impl Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static) -> Self {
        use http_body_util::BodyExt;
        Self::Other(body.map_err(Into::into).boxed_unsync())
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Flow(flow) => flow.poll(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Flow(flow) => flow.ended || flow.incoming.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Flow(flow) => flow.incoming.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
    }
}

/// The body of an instance's response, with all that must end with it.
pub struct Flow {
    incoming: Incoming,
    // In this order: the connection is kept and the request is told of before the slot is given back.
    connection: Option<Box<Http1>>,
    record: Record,
    slot: Slot,
    end: End,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
    /// Whether the client gets it.
    wanted: bool,
}

/// When and how a response ends that takes too long.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// When it must be complete.
    pub deadline: Instant,
    /// Longest time between two frames.
    pub idle_timeout: Option<Duration>,
    /// Whether it is a gRPC response, which ends with a status.
    pub grpc: bool,
}

impl Flow {
    /// The body of a response.
    pub fn new(incoming: Incoming, connection: Option<Box<Http1>>, slot: Slot, record: Record, end: End) -> Self {
        Self { incoming, connection, record, slot, end, timer: None, ended: false, wanted: true }
    }

    /// The client gets the head only.
    pub fn discard(&mut self) {
        self.wanted = false;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(connection) = &mut self.connection
        {
            connection.drive(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(timer), Some(idle)) = (&mut self.timer, self.end.idle_timeout) {
                    timer.as_mut().reset(self.end.deadline.min(Instant::now() + idle));
                }
                match frame.data_ref() {
                    Some(data) => self.record.sent(data.len()),
                    // Nothing comes behind trailers, and not everyone asks.
                    None => self.ended = true,
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.ended = true;
                self.connection = None;
                self.record.error(Cause::of_exchange(&error));
                self.slot.served = Some(false);
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_timer(cx),
        }
    }

    /// Too late for another status: a body of unknown length ends, cleanly, with the text `request timeout`, and a gRPC
    /// response with a status; one whose length was announced is broken off.
    ///
    /// Source: Knative Serving, `pkg/http/handler/timeout.go`.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let End { deadline, idle_timeout: idle, grpc } = self.end;
        let timer = self.timer.get_or_insert_with(|| {
            let first = idle.map_or(deadline, |idle| deadline.min(Instant::now() + idle));
            Box::pin(sleep_until(first))
        });
        std::task::ready!(timer.as_mut().poll(cx));
        self.ended = true;
        self.connection = None;
        self.record.error(Cause::ResponseTimeout);
        if self.incoming.size_hint().exact().is_some() {
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        }
        let timeout = "request timeout";
        Poll::Ready(Some(Ok(if grpc {
            Frame::trailers(answer::grpc_trailers(answer::DEADLINE_EXCEEDED, timeout))
        } else {
            Frame::data(Bytes::from_static(timeout.as_bytes()))
        })))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        let complete = self.ended || self.incoming.is_end_stream();
        if complete && self.slot.served.is_none() {
            self.slot.served = Some(true);
        }
        if !complete && self.wanted && self.record.has_body() {
            self.record.error(Cause::ClientGone);
        }
        if let Some(connection) = self.connection.take().filter(|_| complete) {
            self.slot.upstream.keep(connection, &self.record.shared().pool);
        }
    }
}
