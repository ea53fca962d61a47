//! What the API server asks of the node that runs a pod.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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
    pub since_time: Option<Timestamp>,
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

/// Time that a node's rates cover, and between two looks at its pods.
pub const USAGE_WINDOW: Duration = Duration::from_secs(5);

/// What a node and its pods use: the part of the kubelet's `/stats/summary` that there is here.
///
/// Source: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The whole machine.
    pub node: NodeStats,
    /// Its pods; one that was not measured twice yet is missing.
    pub pods: Vec<PodStats>,
}

/// What the machine uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStats {
    /// Name of the node.
    pub node_name: String,
    /// Processor and memory.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What a pod uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStats {
    /// Which pod.
    pub pod_ref: PodReference,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReference {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

/// What a container uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Its name.
    pub name: String,
    /// Processor and memory.
    #[serde(flatten)]
    pub usage: Usage,
}

/// Processor and memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
}

/// Use of the processor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuStats {
    /// When it was measured.
    pub time: Timestamp,
    /// Average over the last [`USAGE_WINDOW`], in billionths of a core.
    pub usage_nano_cores: u64,
    /// Since the beginning.
    pub usage_core_nano_seconds: u64,
}

/// Use of memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStats {
    /// When it was measured.
    pub time: Timestamp,
    /// All that is in use.
    pub usage_bytes: u64,
    /// The part of it that cannot be taken back at once.
    pub working_set_bytes: u64,
}

/// The node's own API.
pub trait Kubelet: Send + Sync + 'static {
    /// The log of one container.
    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        options: LogOptions,
    ) -> BoxFuture<'static, Result<LogStream, KubeletError>>;

    /// What the node and its pods use, as it was measured last.
    fn usage(&self) -> Summary;
}
