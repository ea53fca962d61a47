//! Logs of containers: read from the files that the supervisors write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::kubelet::{KubeletError, LogOptions, LogStream};
use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream_shim::stream;

/// Pause between looks at a log that is followed.
const FOLLOW_PAUSE: Duration = Duration::from_millis(50);
/// Pieces that wait for a slow reader.
const PIECES: usize = 16;
/// What is read at once.
const PIECE_BYTES: usize = 64 * 1024;

/// The logs of one pod.
#[derive(Debug)]
pub struct LogDir {
    path: PathBuf,
    runs: Mutex<BTreeMap<String, (u32, bool)>>,
}

impl LogDir {
    /// The logs below `path`, with those of runs that an earlier node started.
    pub fn open(path: PathBuf) -> Arc<Self> {
        let runs = std::fs::read_dir(&path).into_iter().flatten().flatten().filter_map(|entry| {
            let container = entry.file_name().into_string().ok()?;
            Some((container, (last_run(&entry.path())?, false)))
        });
        let runs = Mutex::new(runs.collect());
        Arc::new(Self { path, runs })
    }

    /// The number for the next run of a container.
    pub fn next_run(&self, container: &str) -> u32 {
        self.runs.lock().get(container).map_or(0, |(run, _)| run + 1)
    }

    /// Their folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A run of a container began.
    pub fn began(&self, container: &str, run: u32) {
        self.runs.lock().insert(container.to_string(), (run, true));
    }

    /// The present run of a container ended; its log is complete.
    pub fn ended(&self, container: &str) {
        if let Some((_, running)) = self.runs.lock().get_mut(container) {
            *running = false;
        }
    }

    /// Removes them all.
    pub fn remove(&self) {
        // They may never have been made.
        let _ = std::fs::remove_dir_all(&self.path);
    }

    fn is_complete(&self, container: &str, run: u32) -> bool {
        self.runs.lock().get(container).is_none_or(|(present, running)| *present != run || !*running)
    }

    /// The log of one container.
    ///
    /// # Errors
    ///
    /// [`KubeletError::BadRequest`] when it has not begun, or has no run before.
    pub fn read(self: &Arc<Self>, container: &str, options: &LogOptions) -> Result<LogStream, KubeletError> {
        let present = self.runs.lock().get(container).map(|(run, _)| *run);
        let Some(present) = present else {
            return Err(KubeletError::BadRequest(format!("container {container:?} is waiting to start")));
        };
        let run = match (options.previous, present) {
            (false, run) => run,
            (true, 0) => {
                return Err(KubeletError::BadRequest(format!("previous terminated container {container:?} not found")));
            }
            (true, run) => run - 1,
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let reader = Reader {
            dir: self.clone(),
            container: container.to_string(),
            run,
            file: self.path.join(container).join(format!("{run}.log")),
            follow: options.follow && !options.previous,
            cut: Cut::new(options, Timestamp::now()),
        };
        let tail = options.tail_lines;
        tokio::spawn(async move { reader.run(tail, sender).await });
        Ok(stream(receiver).boxed())
    }
}

/// The latest run that has a log in the folder of a container.
fn last_run(folder: &Path) -> Option<u32> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.strip_suffix(".log")?.parse().ok()).max()
}

/// A channel as a stream.
mod tokio_stream_shim {
    use futures::Stream;
    use tokio::sync::mpsc::Receiver;

    /// Ends when the senders are gone.
    pub fn stream<T>(receiver: Receiver<T>) -> impl Stream<Item = T> {
        futures::stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|item| (item, receiver)) })
    }
}

/// Turns lines of the file into what was asked for.
struct Cut {
    timestamps: bool,
    since: Option<Timestamp>,
    left: Option<u64>,
    partial: bool,
}

impl Cut {
    fn new(options: &LogOptions, now: Timestamp) -> Self {
        let since = options
            .since_seconds
            .and_then(|seconds| now.checked_sub(jiff::SignedDuration::from_secs(i64::try_from(seconds).ok()?)).ok());
        let since = since.or(options.since_time);
        Self { timestamps: options.timestamps, since, left: options.limit_bytes, partial: false }
    }

    /// Adds one line (without its end) to `out`; false when the limit is reached.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_), Some(kind), Some(text)) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return true;
        };
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if at.is_some_and(|at| at < since) {
                return true;
            }
        }
        let before = out.len();
        if self.timestamps && !self.partial {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.partial = kind == b"P";
        if !self.partial {
            out.push(b'\n');
        }
        let added = (out.len() - before) as u64;
        match &mut self.left {
            Some(left) if added >= *left => {
                out.truncate(before + usize::try_from(*left).unwrap_or(0));
                *left = 0;
                false
            }
            Some(left) => {
                *left -= added;
                true
            }
            None => true,
        }
    }
}

struct Reader {
    dir: Arc<LogDir>,
    container: String,
    run: u32,
    file: PathBuf,
    follow: bool,
    cut: Cut,
}

type Pieces = mpsc::Sender<io::Result<Bytes>>;

impl Reader {
    async fn run(mut self, tail: Option<u64>, pieces: Pieces) {
        if let Err(error) = self.all(tail, &pieces).await {
            // Nobody may be listening any more.
            let _ = pieces.send(Err(error)).await;
        }
    }

    async fn all(&mut self, tail: Option<u64>, pieces: &Pieces) -> io::Result<()> {
        let mut open = match self.begin(tail, pieces).await? {
            Some(open) => open,
            None => return Ok(()),
        };
        let mut pending = Vec::new();
        loop {
            // Asked before reading: what was written until the end is read then.
            let complete = self.dir.is_complete(&self.container, self.run);
            if !self.drain(&mut open, &mut pending, pieces).await? {
                return Ok(());
            }
            if let Some(next) = self.rotated(&open)? {
                if !self.drain(&mut open, &mut pending, pieces).await? {
                    return Ok(());
                }
                open = next;
                continue;
            }
            if !self.follow || complete || pieces.is_closed() {
                return Ok(());
            }
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }

    /// The older files, and the present one where reading begins; `None` when the limit is reached.
    async fn begin(&mut self, tail: Option<u64>, pieces: &Pieces) -> io::Result<Option<File>> {
        let older: Vec<PathBuf> =
            (1..3).rev().map(|number| PathBuf::from(format!("{}.{number}", self.file.display()))).collect();
        let mut present = match File::open(&self.file) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.follow => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut older: Vec<File> = older.iter().filter_map(|path| File::open(path).ok()).collect();
        if let Some(mut lines) = tail {
            lines -= seek_tail(&mut present, lines)?;
            for file in older.iter_mut().rev() {
                lines -= seek_tail(file, lines)?;
            }
        }
        for mut file in older {
            let mut pending = Vec::new();
            if !self.drain(&mut file, &mut pending, pieces).await? {
                return Ok(None);
            }
        }
        Ok(Some(present))
    }

    /// Reads to the end; false when enough was read.
    async fn drain(&mut self, file: &mut File, pending: &mut Vec<u8>, pieces: &Pieces) -> io::Result<bool> {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(true);
            }
            pending.extend_from_slice(&buffer[..count]);
            let whole = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let mut out = Vec::new();
            let mut more = true;
            for line in pending[..whole].split_inclusive(|byte| *byte == b'\n') {
                more = self.cut.line(&line[..line.len() - 1], &mut out);
                if !more {
                    break;
                }
            }
            pending.drain(..whole);
            if !out.is_empty() && pieces.send(Ok(out.into())).await.is_err() {
                return Ok(false);
            }
            if !more {
                return Ok(false);
            }
        }
    }

    /// The new file, when the one that is open was put aside.
    fn rotated(&self, open: &File) -> io::Result<Option<File>> {
        match File::open(&self.file) {
            Ok(new) if new.metadata()?.ino() != open.metadata()?.ino() => Ok(Some(new)),
            // Between two renames, or removed with its pod.
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

/// Moves to before the last `lines` lines; how many there are.
fn seek_tail(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let (mut at, mut found) = (length, 0u64);
    let mut buffer = vec![0; PIECE_BYTES];
    while at > 0 {
        let size = at.min(PIECE_BYTES as u64);
        at -= size;
        let piece = &mut buffer[..usize::try_from(size).unwrap_or(PIECE_BYTES)];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(piece)?;
        for (index, byte) in piece.iter().enumerate().rev() {
            let position = at + index as u64;
            if *byte == b'\n' && position + 1 < length {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(position + 1))?;
                    return Ok(lines);
                }
            }
        }
    }
    if lines == 0 {
        file.seek(SeekFrom::End(0))?;
        return Ok(0);
    }
    file.seek(SeekFrom::Start(0))?;
    Ok((found + u64::from(length > 0)).min(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(options: LogOptions, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("c");
        std::fs::create_dir_all(&folder).unwrap();
        let lines = |from: u32, to: u32| -> String {
            (from..to).map(|n| format!("2026-11-25T00:00:0{n}.000000000Z stdout F line {n}\n")).collect()
        };
        std::fs::write(folder.join("1.log.1"), lines(1, 3)).unwrap();
        std::fs::write(
            folder.join("1.log"),
            lines(3, 5) + "2026-11-25T00:00:05.000000000Z stderr P par\n2026-11-25T00:00:06.000000000Z stderr F tial\n",
        )
        .unwrap();
        std::fs::write(folder.join("0.log"), lines(0, 1)).unwrap();
        let logs = LogDir::open(dir.path().to_path_buf());
        assert_eq!(logs.next_run("c"), 2);
        let text = logs.read("c", &options).unwrap();
        let text: Vec<Bytes> = text.map(|piece| piece.unwrap()).collect().await;
        assert_eq!(String::from_utf8(text.concat()).unwrap(), expected, "{options:?}");
    }

    #[tokio::test]
    async fn logs_are_cut_as_asked() {
        let options = LogOptions::default;
        check(options(), "line 1\nline 2\nline 3\nline 4\npartial\n").await;
        check(LogOptions { follow: true, ..options() }, "line 1\nline 2\nline 3\nline 4\npartial\n").await;
        check(LogOptions { previous: true, ..options() }, "line 0\n").await;
        check(LogOptions { tail_lines: Some(3), ..options() }, "line 4\npartial\n").await;
        check(LogOptions { tail_lines: Some(5), ..options() }, "line 2\nline 3\nline 4\npartial\n").await;
        check(LogOptions { tail_lines: Some(0), ..options() }, "").await;
        check(LogOptions { limit_bytes: Some(10), ..options() }, "line 1\nlin").await;
        check(
            LogOptions { tail_lines: Some(3), timestamps: true, limit_bytes: Some(38), ..options() },
            "2026-11-25T00:00:04.000000000Z line 4\n",
        )
        .await;
    }

    #[tokio::test]
    async fn what_has_not_begun_is_a_bad_request() {
        let logs = LogDir::open("/nowhere".into());
        assert!(matches!(logs.read("c", &LogOptions::default()), Err(KubeletError::BadRequest(_))));
    }
}
