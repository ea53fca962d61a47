//! What the API server asks of the node that runs a pod.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// Which part of a container's log is wanted: the query of `pods/log`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Container; `None` when the pod has only one.
    pub container: Option<String>,
    /// Go on with lines to come.
    pub follow: bool,
    /// The container's previous run.
    pub previous: bool,
    /// Put the time before each line (RFC 3339 with nanoseconds).
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines of the last seconds.
    pub since_seconds: Option<u64>,
    /// Only lines since that moment.
    pub since_time: Option<jiff::Timestamp>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

/// The query's parameters besides the container, as `pods/log` and the kubelet's `/containerLogs` both name them.
pub const LOG_OPTIONS: [&str; 7] =
    ["follow", "previous", "timestamps", "tailLines", "sinceSeconds", "sinceTime", "limitBytes"];

/// Why a node could not answer.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The pod is not on this node.
    #[error("pod {0} is not on this node")]
    UnknownPod(String),
    /// The container does not exist or has not started; the text is for the user.
    #[error("{0}")]
    BadRequest(String),
    /// Something else went wrong.
    #[error("{0}")]
    Internal(String),
}

/// A stream of log text, whole lines.
pub type LogStream = BoxStream<'static, std::io::Result<Bytes>>;

/// The node's own API.
pub trait Kubelet: Send + Sync + 'static {
    /// The log of one container.
    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        options: LogOptions,
    ) -> BoxFuture<'static, Result<LogStream, KubeletError>>;
}
