//! The life of one instance as the gateway sees it.
//!
//! | state    | ProbeSucceeded | ConnectFailed | Eject    | Readmit  | Drain    | Gone    | Taken      | Finished    |
//! |----------|----------------|---------------|----------|----------|----------|---------|------------|-------------|
//! | Starting | Ready          | Starting      | Starting | Starting | Draining | Stopped | (never)    | Starting -1 |
//! | Ready    | Ready          | Starting      | Ejected  | Ready    | Draining | Stopped | Ready +1   | Ready -1    |
//! | Ejected  | Ejected        | Starting      | Ejected  | Ready    | Draining | Stopped | (never)    | Ejected -1  |
//! | Draining | Draining       | Draining      | Draining | Draining | Draining | Stopped | (never)    | Draining -1 |
//! | Stopped  | Stopped        | Stopped       | Stopped  | Stopped  | Stopped  | Stopped | (never)    | Stopped -1  |
//!
//! Ties: a probe that succeeds while the instance drains changes nothing: drain wins. Requests in flight survive
//! every change of state; each ends with exactly one `Finished`. A cold start is `Starting` (the pod has no address,
//! or nothing listens yet) until the first probe succeeds.

/// State of an instance; each variant counts the requests that it still has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    /// Not in rotation yet, or not any more until a probe succeeds.
    Starting {
        /// Requests sent to it.
        in_flight: u32,
    },
    /// In rotation.
    Ready {
        /// Requests sent to it.
        in_flight: u32,
    },
    /// Out of rotation for a time, because its requests failed one after the other.
    Ejected {
        /// Requests sent to it.
        in_flight: u32,
    },
    /// Out of rotation for good.
    Draining {
        /// Requests sent to it.
        in_flight: u32,
    },
    /// Its pod is gone; kept only until its requests have ended.
    Stopped {
        /// Requests sent to it.
        in_flight: u32,
    },
}

/// What can happen to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The readiness probe was answered.
    ProbeSucceeded,
    /// A request could not be handed over: refused, unreachable.
    ConnectFailed,
    /// Its requests failed one after the other.
    Eject,
    /// It has been out of rotation for long enough.
    Readmit,
    /// Retired, or its pod is being deleted.
    Drain,
    /// Its pod is gone or has ended.
    Gone,
    /// A request takes a slot.
    Taken,
    /// A request gave its slot back.
    Finished,
}

impl Instance {
    /// The state after `event`.
    pub fn step(self, event: Event) -> Self {
        use Event as E;
        use Instance::{Draining, Ejected, Ready, Starting, Stopped};
        match (self, event) {
            (Starting { in_flight }, E::ProbeSucceeded) => Ready { in_flight },
            (Ready { in_flight } | Ejected { in_flight }, E::ConnectFailed) => Starting { in_flight },
            (Ready { in_flight }, E::Eject) => Ejected { in_flight },
            (Ejected { in_flight }, E::Readmit) => Ready { in_flight },
            (Starting { in_flight } | Ready { in_flight } | Ejected { in_flight }, E::Drain) => Draining { in_flight },
            (state, E::Gone) => Stopped { in_flight: state.in_flight() },
            (Ready { in_flight }, E::Taken) => Ready { in_flight: in_flight + 1 },
            (state, E::Finished) => state.with_in_flight(state.in_flight().saturating_sub(1)),
            (state, _) => state,
        }
    }

    /// Requests sent to it that have not ended.
    pub fn in_flight(self) -> u32 {
        match self {
            Self::Starting { in_flight }
            | Self::Ready { in_flight }
            | Self::Ejected { in_flight }
            | Self::Draining { in_flight }
            | Self::Stopped { in_flight } => in_flight,
        }
    }

    /// Whether it may be given requests.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    /// Whether it is to be probed.
    pub fn is_starting(self) -> bool {
        matches!(self, Self::Starting { .. })
    }

    /// Whether it is out of rotation for a time.
    pub fn is_ejected(self) -> bool {
        matches!(self, Self::Ejected { .. })
    }

    /// Whether it takes requests, or will.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Ready { .. } | Self::Ejected { .. })
    }

    fn with_in_flight(self, in_flight: u32) -> Self {
        match self {
            Self::Starting { .. } => Self::Starting { in_flight },
            Self::Ready { .. } => Self::Ready { in_flight },
            Self::Ejected { .. } => Self::Ejected { in_flight },
            Self::Draining { .. } => Self::Draining { in_flight },
            Self::Stopped { .. } => Self::Stopped { in_flight },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds() {
        use Event::{ConnectFailed, Drain, Eject, Finished, Gone, ProbeSucceeded, Readmit, Taken};
        use Instance::{Draining, Ejected, Ready, Starting, Stopped};
        let n = 2;
        let (starting, ready, ejected) = (Starting { in_flight: n }, Ready { in_flight: n }, Ejected { in_flight: n });
        let (draining, stopped) = (Draining { in_flight: n }, Stopped { in_flight: n });
        let rows = [
            (starting, [ready, starting, starting, starting, draining, stopped, starting, Starting { in_flight: 1 }]),
            (
                ready,
                [ready, starting, ejected, ready, draining, stopped, Ready { in_flight: 3 }, Ready { in_flight: 1 }],
            ),
            (ejected, [ejected, starting, ejected, ready, draining, stopped, ejected, Ejected { in_flight: 1 }]),
            (
                draining,
                [draining, draining, draining, draining, draining, stopped, draining, Draining { in_flight: 1 }],
            ),
            (stopped, [stopped, stopped, stopped, stopped, stopped, stopped, stopped, Stopped { in_flight: 1 }]),
        ];
        for (from, to) in rows {
            let events = [ProbeSucceeded, ConnectFailed, Eject, Readmit, Drain, Gone, Taken, Finished];
            for (event, want) in events.into_iter().zip(to) {
                assert_eq!(from.step(event), want, "{from:?} after {event:?}");
            }
        }
    }
}
