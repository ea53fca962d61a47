//! What happened, line by line, and a hash of all of it: two runs of a seed are equal if their hashes are.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lines that are kept for the report of a failure.
const KEPT: usize = 400;

/// The trace of one run.
pub struct Trace {
    start: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    hash: u64,
    count: u64,
    last: VecDeque<String>,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// An empty trace, also written to `file` if there is one.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn new(file: Option<&Path>) -> std::io::Result<Self> {
        let file = file.map(File::create).transpose()?.map(BufWriter::new);
        let inner = Inner { hash: FNV_START, count: 0, last: VecDeque::with_capacity(KEPT), file };
        Ok(Self { start: Instant::now(), inner: Mutex::new(inner) })
    }

    /// When the run began.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// Adds a line.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:12.6} {what}", self.start.elapsed().as_secs_f64());
        let mut inner = self.inner.lock();
        inner.hash = fnv_on(inner.hash, line.as_bytes());
        inner.count += 1;
        if let Some(file) = &mut inner.file {
            // The file is a help for reading only.
            let _ = writeln!(file, "{line}");
        }
        if inner.last.len() == KEPT {
            inner.last.pop_front();
        }
        inner.last.push_back(line);
    }

    /// Hash of all lines, and their number.
    pub fn hash(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.hash, inner.count)
    }

    /// Writes what is buffered to the file.
    pub fn flush(&self) {
        if let Some(file) = &mut self.inner.lock().file {
            let _ = file.flush();
        }
    }

    /// The last lines.
    pub fn last(&self) -> Vec<String> {
        self.inner.lock().last.iter().cloned().collect()
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// FNV-1a, 64 bits.
pub fn fnv(bytes: &[u8]) -> u64 {
    fnv_on(FNV_START, bytes)
}

/// Adds a formatted line to a [`Trace`].
#[macro_export]
macro_rules! note {
    ($trace:expr, $($what:tt)*) => { $trace.note(format_args!($($what)*)) };
}
