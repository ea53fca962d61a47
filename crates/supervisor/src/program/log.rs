//! A container's log, in the format that Kubernetes' tools read: `<time> <stream> <F or P> <text>`, rotated.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Size at which a log file is put aside.
const ROTATE_BYTES: u64 = 10 * 1024 * 1024;
/// Files that are kept, the current one among them.
const FILES: u32 = 3;
/// Longer lines are written in parts.
const LINE_BYTES: usize = 16 * 1024;
/// What a failure's message takes from the log, at most.
const TAIL_BYTES: usize = 2048;
const TAIL_LINES: usize = 80;

/// One of a container's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        if self == Self::Stdout { "stdout" } else { "stderr" }
    }
}

/// Writes the log of one run of a container.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    pending: [Vec<u8>; 2],
    tail: VecDeque<Vec<u8>>,
    tail_bytes: usize,
}

impl Log {
    /// Opens the log at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = create(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_path_buf(),
            file: Some(file),
            written,
            pending: [Vec::new(), Vec::new()],
            tail: VecDeque::new(),
            tail_bytes: 0,
        })
    }

    /// Takes what the container wrote to one of its outputs.
    pub fn take(&mut self, stream: Stream, mut bytes: &[u8], now: jiff::Timestamp) {
        let index = stream as usize;
        let mut out = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let room = LINE_BYTES - self.pending[index].len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.map_or(room.min(bytes.len()), |end| end + 1));
            self.pending[index].extend_from_slice(part);
            bytes = rest;
            let whole = end.is_some();
            if whole {
                self.pending[index].pop();
            }
            if whole || self.pending[index].len() >= LINE_BYTES {
                let line = std::mem::take(&mut self.pending[index]);
                self.line(stream, line, whole, now, &mut out);
            }
        }
        self.write(&out);
    }

    /// Writes what is left without a line end.
    pub fn finish(&mut self, now: jiff::Timestamp) {
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let line = std::mem::take(&mut self.pending[stream as usize]);
            if !line.is_empty() {
                self.line(stream, line, true, now, &mut out);
            }
        }
        self.write(&out);
        self.file = None;
    }

    /// The end of the log: at most 80 lines and 2048 bytes.
    pub fn tail(&self) -> String {
        let all: Vec<u8> = self.tail.iter().flat_map(|line| line.iter().copied().chain([b'\n'])).collect();
        String::from_utf8_lossy(&all[all.len().saturating_sub(TAIL_BYTES)..]).into_owned()
    }

    fn line(&mut self, stream: Stream, line: Vec<u8>, whole: bool, now: jiff::Timestamp, out: &mut Vec<u8>) {
        let _ = write!(out, "{now:.9} {} {} ", stream.name(), if whole { 'F' } else { 'P' }); // to memory
        out.extend_from_slice(&line);
        out.push(b'\n');
        self.tail_bytes += line.len() + 1;
        self.tail.push_back(line);
        while self.tail.len() > TAIL_LINES || self.tail_bytes > TAIL_BYTES + LINE_BYTES {
            self.tail_bytes -= self.tail.pop_front().map_or(0, |line| line.len() + 1);
        }
    }

    /// A log that cannot be written (full disk) loses lines; the container goes on.
    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.written > 0 && self.written + bytes.len() as u64 > ROTATE_BYTES {
            self.rotate();
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.written += bytes.len() as u64;
        }
    }

    fn rotate(&mut self) {
        let aside = |number: u32| PathBuf::from(format!("{}.{number}", self.path.display()));
        for number in (1..FILES - 1).rev() {
            // The older ones may not be there yet.
            let _ = fs::rename(aside(number), aside(number + 1));
        }
        let _ = fs::rename(&self.path, aside(1));
        self.file = create(&self.path).ok();
        self.written = 0;
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> jiff::Timestamp {
        "2026-11-25T01:02:03.5Z".parse().unwrap()
    }

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("supervisor-log-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn lines_are_put_together_and_long_ones_cut() {
        let dir = dir("lines");
        let mut log = Log::open(&dir.join("0.log")).unwrap();
        log.take(Stream::Stdout, b"hel", now());
        log.take(Stream::Stderr, b"oops\n", now());
        log.take(Stream::Stdout, b"lo\nend", now());
        log.finish(now());
        let text = fs::read_to_string(dir.join("0.log")).unwrap();
        let at = "2026-11-25T01:02:03.500000000Z";
        assert_eq!(text, format!("{at} stderr F oops\n{at} stdout F hello\n{at} stdout F end\n"));
        assert_eq!(log.tail(), "oops\nhello\nend\n");
        let mut log = Log::open(&dir.join("1.log")).unwrap();
        log.take(Stream::Stdout, &[b'x'; LINE_BYTES + 1], now());
        log.take(Stream::Stdout, b"\n", now());
        let text = fs::read_to_string(dir.join("1.log")).unwrap();
        let kinds: Vec<&str> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(kinds, ["P", "F"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let dir = dir("rotate");
        let mut log = Log::open(&dir.join("0.log")).unwrap();
        let megabyte: Vec<u8> = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>().repeat(1024);
        for _ in 0..40 {
            log.take(Stream::Stdout, &megabyte, now());
        }
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
