//! The access log: a line of JSON for each request, in a form of its own.
//!
//! A line is made where the request ends and is added to an [`Outbox`]; a thread of its own writes what has come together
//! every tenth of a second. Where it cannot keep up, lines are dropped and counted: nobody waits for it.
//!
//! A line is ASCII: whatever a client sends, its bytes are escaped, and none of them ends a line or moves a cursor.

use std::fmt::Debug;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Version;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use crate::metrics::Via;
use crate::outbox::{Added, Batch, Outbox};
use crate::record::Ended;

/// Longest path that a line has, in bytes; the rest is left out.
pub const PATH_LIMIT_BYTES: usize = 1024;
/// Longest of the other texts.
const TEXT_LIMIT_BYTES: usize = 256;
/// Lines that wait to be written, together.
const LIMIT_BYTES: usize = 4 * 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(100);

/// Where lines go.
pub trait Sink: Debug + Send + Sync + 'static {
    /// Writes whole lines; may block.
    fn write(&self, lines: &[u8]) -> io::Result<()>;
}

/// The process's standard output. Whoever else prints there does not wait for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdout;

impl Sink for Stdout {
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        // Not through the library's handle, whose lock would be held for as long as nobody reads.
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        std::fs::File::from(output).write_all(lines)
    }
}

/// The log of one gateway.
pub struct AccessLog {
    lines: Outbox,
    sink: Arc<dyn Sink>,
    dropped: Counter,
    writer: OnceLock<Thread>,
    closed: AtomicBool,
    ended: watch::Sender<bool>,
}

impl AccessLog {
    /// An empty log; nothing runs before its first line.
    pub fn new(sink: Arc<dyn Sink>, dropped: Counter) -> Arc<Self> {
        Arc::new(Self {
            lines: Outbox::new(LIMIT_BYTES),
            sink,
            dropped,
            writer: OnceLock::new(),
            closed: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        })
    }

    /// Adds a line.
    pub fn add(self: &Arc<Self>, line: &[u8]) {
        let added = if self.closed.load(Ordering::Relaxed) { Added::Full } else { self.lines.add(line, 1) };
        match added {
            Added::First => self.wake(),
            Added::More => {}
            Added::Full => {
                self.dropped.inc();
            }
        }
    }

    fn wake(self: &Arc<Self>) {
        let writer = self.writer.get_or_init(|| {
            let log = self.clone();
            let write = move || log.write();
            // Without a thread nothing is written, and what does not fit is counted.
            let spawned = thread::Builder::new().name("access-log".to_owned()).spawn(write);
            spawned.map_or_else(|_| thread::current(), |handle| handle.thread().clone())
        });
        writer.unpark();
    }

    fn write(&self) {
        let mut batch = Batch::default();
        loop {
            let closed = self.closed.load(Ordering::Acquire);
            batch = self.lines.take(batch);
            if batch.items > 0 && self.sink.write(&batch.bytes).is_err() {
                self.dropped.inc_by(batch.items);
            }
            if closed {
                break;
            }
            if batch.items == 0 {
                thread::park();
            } else {
                self.pause();
            }
        }
        self.ended.send_replace(true);
    }

    /// Lets lines come together: the first one wakes the writer, and must not end the pause.
    fn pause(&self) {
        let end = Instant::now() + PAUSE;
        while !self.closed.load(Ordering::Acquire)
            && let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            thread::park_timeout(left);
        }
    }

    /// Waits until all lines are written, as long as the caller likes.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(writer) = self.writer.get() {
            writer.unpark();
            // The sender lives as long as this does.
            let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        }
    }
}

/// Writes the line of a request that ended at `wall`.
pub fn write_line(line: &mut Vec<u8>, request: &Ended<'_>, wall: SystemTime) {
    let detail = request.detail;
    line.extend_from_slice(b"{\"time\":\"");
    let arrived = wall.checked_sub(request.ended - request.arrived).unwrap_or(UNIX_EPOCH);
    write_time(line, arrived);
    line.extend_from_slice(b"\",\"trace_id\":\"");
    let mut id = [0; 32];
    crate::trace::hex(&mut id, detail.trace.id);
    line.extend_from_slice(&id);
    line.push(b'"');
    text(line, "client", detail.client.as_bytes(), TEXT_LIMIT_BYTES);
    if let (Some(asked), Some((host, path))) = (&detail.asked, request.host_and_path()) {
        text(line, "method", asked.method.as_str().as_bytes(), TEXT_LIMIT_BYTES);
        text(line, "host", host, TEXT_LIMIT_BYTES);
        text(line, "path", path.as_bytes(), PATH_LIMIT_BYTES);
        text(line, "protocol", protocol(asked.version, request.via).as_bytes(), TEXT_LIMIT_BYTES);
    }
    number(line, "status", request.status.into());
    number(line, "bytes_in", request.received());
    if let Some(sent) = detail.sent {
        number(line, "bytes_out", sent);
    }
    milliseconds(line, "duration_ms", request.ended - request.arrived);
    if let Some(routed) = detail.routed {
        let queued = detail.granted.map_or(Duration::ZERO, |granted| granted.saturating_duration_since(routed));
        milliseconds(line, "queue_ms", queued);
    }
    if let Some((revision, settings)) = &detail.revision {
        text(line, "namespace", revision.id.namespace.as_bytes(), TEXT_LIMIT_BYTES);
        if !settings.service.is_empty() {
            text(line, "service", settings.service.as_bytes(), TEXT_LIMIT_BYTES);
        }
        text(line, "revision", revision.id.name.as_bytes(), TEXT_LIMIT_BYTES);
    }
    if let Some(route) = request.route {
        text(line, "route", route.as_bytes(), TEXT_LIMIT_BYTES);
    }
    if let Some(upstream) = &detail.upstream {
        text(line, "pod", upstream.pod.name.as_bytes(), TEXT_LIMIT_BYTES);
        if let (Some(ip), Some((_, settings))) = (upstream.ip(), &detail.revision) {
            let _ = write!(line, ",\"upstream\":\"{}\"", std::net::SocketAddr::new(ip, settings.port));
        }
    }
    if let Some(cause) = request.cause {
        text(line, "error", cause.name().as_bytes(), TEXT_LIMIT_BYTES);
    }
    line.extend_from_slice(if detail.cold.is_some() { b",\"cold\":true}\n" } else { b",\"cold\":false}\n" });
}

fn protocol(version: Version, via: Via) -> &'static str {
    match (via, version) {
        (Via::Grpc, _) => "grpc",
        (_, Version::HTTP_2) => "HTTP/2",
        (_, Version::HTTP_10) => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// As RFC 3339 has it, in microseconds.
fn write_time(line: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    thread_local! {
        // Most lines are of the second of the line before.
        static LAST: std::cell::RefCell<(u64, String)> = const { std::cell::RefCell::new((u64::MAX, String::new())) };
    }
    LAST.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            let time = i64::try_from(since.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok());
            *text = time.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        line.extend_from_slice(text.as_bytes());
    });
    // To memory; so are all below.
    let _ = write!(line, ".{:06}Z", since.subsec_micros());
}

fn name(line: &mut Vec<u8>, name: &str) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
}

fn number(line: &mut Vec<u8>, key: &str, number: u64) {
    name(line, key);
    let _ = write!(line, "{number}");
}

fn milliseconds(line: &mut Vec<u8>, key: &str, duration: Duration) {
    name(line, key);
    let micros = duration.as_micros();
    let _ = write!(line, "{}.{:03}", micros / 1000, micros % 1000);
}

/// A text from outside: of at most `limit` bytes, escaped.
fn text(line: &mut Vec<u8>, key: &str, value: &[u8], limit: usize) {
    name(line, key);
    line.push(b'"');
    escape(line, value, limit);
    line.push(b'"');
}

/// Bytes as the inside of a JSON string of ASCII. What is no UTF-8 becomes U+FFFD.
fn escape(line: &mut Vec<u8>, value: &[u8], limit: usize) {
    let (value, cut) = (&value[..value.len().min(limit)], value.len() > limit);
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'"' && *byte != b'\\';
    if value.iter().all(is_plain) {
        line.extend_from_slice(value);
    } else {
        for character in value.utf8_chunks().flat_map(|chunk| {
            chunk.valid().chars().chain((!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER))
        }) {
            match character {
                '"' | '\\' => line.extend_from_slice(&[b'\\', character as u8]),
                ' '..='~' => line.push(character as u8),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(line, "\\u{unit:04x}");
                    }
                }
            }
        }
    }
    if cut {
        line.extend_from_slice(b"...");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert, proptest};

    use super::*;

    fn escaped(value: &[u8], limit: usize) -> String {
        let mut line = Vec::new();
        escape(&mut line, value, limit);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn texts_are_escaped_and_bounded() {
        let rows: [(&[u8], &str); 6] = [
            (b"/a?b=c", "/a?b=c"),
            (b"\"},{\\\r\n\0\x1b[2J\x7f", "\\\"},{\\\\\\u000d\\u000a\\u0000\\u001b[2J\\u007f"),
            ("\u{85}\u{202e}ü😀".as_bytes(), "\\u0085\\u202e\\u00fc\\ud83d\\ude00"),
            (b"a\xffb\xc3", "a\\ufffdb\\ufffd"),
            (&[b'x'; 40], "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."),
            (&[b'x'; 32], "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        ];
        for (value, want) in rows {
            assert_eq!(escaped(value, 32), want);
        }
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        let rows = [
            (Duration::ZERO, "1970-01-01T00:00:00.000000Z"),
            (Duration::from_micros(1_767_225_599_999_999), "2025-12-31T23:59:59.999999Z"),
            (Duration::from_nanos(1_767_225_599_000_000_999), "2025-12-31T23:59:59.000000Z"),
            (Duration::from_secs(1_767_225_600), "2026-01-01T00:00:00.000000Z"),
        ];
        for (since, want) in rows {
            let mut line = Vec::new();
            write_time(&mut line, UNIX_EPOCH + since);
            assert_eq!(String::from_utf8(line).unwrap(), want);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_line_that_reads_back(value in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = escaped(&value, 1000);
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let read: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
            prop_assert!(read == String::from_utf8_lossy(&value));
        }
    }

    #[derive(Debug, Default)]
    struct Stuck(parking_lot::Mutex<Vec<u8>>);

    impl Sink for Stuck {
        fn write(&self, lines: &[u8]) -> io::Result<()> {
            self.0.lock().extend_from_slice(lines);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_sink_that_is_stuck_makes_nobody_wait_and_what_does_not_fit_is_counted() {
        let sink = Arc::new(Stuck::default());
        let dropped = Counter::default();
        let log = AccessLog::new(sink.clone(), dropped.clone());
        let held = sink.0.lock();
        let line = [b'x'; 1024];
        // The writer may have taken one batch before it got stuck.
        let fit = LIMIT_BYTES / line.len();
        for _ in 0..3 * fit {
            log.add(&line);
        }
        let count = dropped.get() as usize;
        assert!((fit..=2 * fit).contains(&count), "{count}");
        drop(held);
        log.close().await;
        assert_eq!(sink.0.lock().len() / line.len(), 3 * fit - count, "all others are written");
    }

    /// Counts writes.
    #[derive(Debug, Default)]
    struct Writes(std::sync::atomic::AtomicUsize);

    impl Sink for Writes {
        fn write(&self, _: &[u8]) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_that_come_one_by_one_are_written_together() {
        let sink = Arc::new(Writes::default());
        let log = AccessLog::new(sink.clone(), Counter::default());
        let start = Instant::now();
        for _ in 0..100 {
            log.add(b"line\n");
            thread::sleep(Duration::from_millis(3));
        }
        log.close().await;
        // One at once, one for each tenth of a second begun, and what is left.
        let most = 3 + (start.elapsed().as_millis() / PAUSE.as_millis()) as usize;
        let writes = sink.0.load(Ordering::Relaxed);
        assert!((1..=most).contains(&writes), "{writes} writes where {most} are enough");
    }

    #[derive(Debug)]
    struct Broken;

    impl Sink for Broken {
        fn write(&self, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[tokio::test]
    async fn what_a_broken_sink_does_not_take_is_counted() {
        let dropped = Counter::default();
        let log = AccessLog::new(Arc::new(Broken), dropped.clone());
        log.add(b"one\n");
        log.close().await;
        assert_eq!(dropped.get(), 1);
    }
}
