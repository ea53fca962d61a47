//! What the gateway tells of its requests beyond metrics, as `config-observability` says at the moment: the access log and
//! traces.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use api::config::Observability;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log::{self, AccessLog, Sink};
use crate::export::Exporter;
use crate::metrics::Metrics;
use crate::record::Ended;
use crate::spans;
use crate::trace::Sampling;

/// Time for what is left at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Tells of requests.
pub struct Telemetry {
    /// Of the numbers there are, those below this mean a line; all do for the highest.
    log_bound: AtomicU64,
    tracing: AtomicBool,
    trace_bound: AtomicU64,
    log: Arc<AccessLog>,
    exporter: Arc<Exporter>,
    exports: AtomicBool,
}

impl Telemetry {
    /// Tells nothing yet; lines will go to `sink`.
    pub fn new(sink: Arc<dyn Sink>, metrics: &Metrics) -> Self {
        Self {
            log_bound: AtomicU64::new(0),
            tracing: AtomicBool::new(false),
            trace_bound: AtomicU64::new(0),
            log: AccessLog::new(sink, metrics.lines_dropped.clone()),
            exporter: Exporter::new(metrics.spans_exported.clone(), metrics.spans_dropped.clone()),
            exports: AtomicBool::new(false),
        }
    }

    /// Takes over other settings; what sends traces runs on `tasks` until `abort`.
    pub fn set(&self, settings: &Observability, tasks: &TaskTracker, abort: &CancellationToken) {
        let share = settings.request_log_share;
        // The highest number stands for all: no rounding leaves out one.
        let bound = if share >= 1.0 { u64::MAX } else { (share * u64::MAX as f64) as u64 };
        self.log_bound.store(if settings.request_log { bound } else { 0 }, Ordering::Relaxed);
        let sampling = settings.traces.as_ref().map_or(Sampling::default(), |traces| Sampling::of(traces.share));
        self.exporter.set(settings.traces.clone());
        self.trace_bound.store(sampling.bound, Ordering::Relaxed);
        self.tracing.store(sampling.on, Ordering::Relaxed);
        if sampling.on && !self.exports.swap(true, Ordering::Relaxed) {
            let (exporter, abort) = (self.exporter.clone(), abort.clone());
            tasks.spawn(async move { abort.run_until_cancelled(Box::pin(exporter.run())).await });
        }
    }

    /// Which traces are sent.
    pub fn sampling(&self) -> Sampling {
        if !self.tracing.load(Ordering::Relaxed) {
            return Sampling::default();
        }
        Sampling { on: true, bound: self.trace_bound.load(Ordering::Relaxed) }
    }

    /// Whether the log has a line of the next request.
    pub fn is_logged(&self, random: impl FnOnce() -> u64) -> bool {
        match self.log_bound.load(Ordering::Relaxed) {
            0 => false,
            u64::MAX => true,
            bound => random() < bound,
        }
    }

    /// Tells of a request.
    pub fn tell(&self, request: &Ended<'_>) {
        thread_local! {
            static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let wall = SystemTime::now();
        SCRATCH.with_borrow_mut(|scratch| {
            if request.detail.logged {
                scratch.clear();
                access_log::write_line(scratch, request, wall);
                self.log.add(scratch);
            }
            if request.detail.trace.exported {
                scratch.clear();
                let count = spans::write(scratch, request, wall);
                self.exporter.add(scratch, count);
            }
        });
    }

    /// Writes and sends what is left, for a moment.
    pub async fn close(&self) {
        let _ = timeout(CLOSE_LIMIT, async { tokio::join!(self.log.close(), self.exporter.send(&[])) }).await;
    }
}
