//! Why requests fail: one fixed set of words for metrics, the access log and traces.

use std::io::ErrorKind;

use crate::answer::Failure;
use crate::stage::Stage;
use crate::upstream::ConnectError;

/// What went wrong with a request, or with one try of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The instance refuses connections.
    ConnectRefused,
    /// No connection came to be in time.
    ConnectTimeout,
    /// No connection came to be, for another reason.
    ConnectFailed,
    /// The instance is connected and does not speak HTTP.
    Handshake,
    /// The instance broke the connection before its answer was complete.
    Reset,
    /// The instance's answer is no HTTP, or none to this request.
    Protocol,
    /// The instance did not answer in time, or not to the end.
    ResponseTimeout,
    /// No instance was ready in time.
    NoReadyInstance,
    /// All instances had as many requests as they may have until the time was over.
    InstancesBusy,
    /// Too many requests wait.
    QueueFull,
    /// The Route has no target that takes requests.
    NoRevision,
    /// No Route claims the host.
    NoRoute,
    /// The host is served over HTTPS only.
    HttpsOnly,
    /// The gateway is stopping.
    Stopping,
    /// The client went before it had the whole answer.
    ClientGone,
    /// The request is none, or one that could be read in two ways.
    Malformed,
    /// Head, target or body are longer than allowed.
    TooLarge,
    /// The client did not send on.
    ClientTimeout,
    /// A version, coding or method that is not served.
    Unsupported,
}

impl Cause {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::Handshake,
        Self::Reset,
        Self::Protocol,
        Self::ResponseTimeout,
        Self::NoReadyInstance,
        Self::InstancesBusy,
        Self::QueueFull,
        Self::NoRevision,
        Self::NoRoute,
        Self::HttpsOnly,
        Self::Stopping,
        Self::ClientGone,
        Self::Malformed,
        Self::TooLarge,
        Self::ClientTimeout,
        Self::Unsupported,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed => "connect_failed",
            Self::Handshake => "handshake_failed",
            Self::Reset => "reset",
            Self::Protocol => "protocol_error",
            Self::ResponseTimeout => "response_timeout",
            Self::NoReadyInstance => "no_ready_instance",
            Self::InstancesBusy => "instances_busy",
            Self::QueueFull => "queue_full",
            Self::NoRevision => "no_revision",
            Self::NoRoute => "no_route",
            Self::HttpsOnly => "https_only",
            Self::Stopping => "stopping",
            Self::ClientGone => "client_gone",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::ClientTimeout => "client_timeout",
            Self::Unsupported => "unsupported",
        }
    }

    /// Why an instance was not reached.
    pub fn of_connect(error: &ConnectError) -> Self {
        match error {
            ConnectError::Io { source, .. } if source.kind() == ErrorKind::ConnectionRefused => Self::ConnectRefused,
            ConnectError::Io { source, .. } if source.kind() == ErrorKind::TimedOut => Self::ConnectTimeout,
            ConnectError::Timeout { .. } => Self::ConnectTimeout,
            ConnectError::Io { .. } | ConnectError::NoAddress => Self::ConnectFailed,
            ConnectError::Handshake { .. } => Self::Handshake,
        }
    }

    /// Why an exchange with an instance broke.
    pub fn of_exchange(error: &hyper::Error) -> Self {
        if error.is_parse() || error.is_parse_too_large() { Self::Protocol } else { Self::Reset }
    }

    /// What an answer of the gateway's own stands for; `None` where what went wrong has been named before.
    pub fn of_failure(failure: &Failure) -> Option<Self> {
        Some(match failure {
            Failure::Unreachable | Failure::Broken => return None,
            Failure::NoHost | Failure::Malformed { .. } => Self::Malformed,
            Failure::Version | Failure::Coding | Failure::Connect => Self::Unsupported,
            Failure::HeadTooLarge { .. }
            | Failure::TooManyFields { .. }
            | Failure::TargetTooLong { .. }
            | Failure::BodyTooLong { .. } => Self::TooLarge,
            Failure::HeadTimeout { .. } | Failure::BodyTimeout { .. } => Self::ClientTimeout,
            Failure::NoRoute => Self::NoRoute,
            Failure::Insecure => Self::HttpsOnly,
            Failure::NoRevision => Self::NoRevision,
            Failure::QueueFull => Self::QueueFull,
            Failure::QueueTimeout { stage: Stage::Busy, .. } => Self::InstancesBusy,
            Failure::QueueTimeout { .. } => Self::NoReadyInstance,
            Failure::NotSwitched => Self::Protocol,
            Failure::Timeout { .. } => Self::ResponseTimeout,
            Failure::Stopping => Self::Stopping,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_has_its_place_and_a_word_of_its_own() {
        let words: std::collections::BTreeSet<&str> = Cause::ALL.into_iter().map(Cause::name).collect();
        assert_eq!(words.len(), Cause::ALL.len());
        assert!(Cause::ALL.into_iter().enumerate().all(|(place, cause)| cause as usize == place));
    }

    #[test]
    fn errors_of_connecting_by_what_the_system_says() {
        let address = ([127, 0, 0, 1], 1).into();
        let io = |kind: ErrorKind| ConnectError::Io { address, source: io::Error::from(kind) };
        let rows = [
            (io(ErrorKind::ConnectionRefused), "connect_refused"),
            (io(ErrorKind::TimedOut), "connect_timeout"),
            (io(ErrorKind::HostUnreachable), "connect_failed"),
            (ConnectError::NoAddress, "connect_failed"),
            (ConnectError::Timeout { address, limit: Duration::ZERO }, "connect_timeout"),
        ];
        for (error, word) in rows {
            assert_eq!(Cause::of_connect(&error).name(), word, "{error}");
        }
    }
}
