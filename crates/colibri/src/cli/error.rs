//! Errors as the person at the terminal reads them.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

/// Something failed: one sentence with its cure, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// The sentence; empty when all is said already.
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl CliError {
    /// A failure, exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// No platform answers, exit code 3.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 3 }
    }

    /// A failure of the API server or on the way to it.
    pub fn api(what: &str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::new(format!("cannot {what}: {}", status.message)),
            kube::Error::Service(_) | kube::Error::HyperError(_) => Self::unreachable(format!(
                "cannot {what}: the API server does not answer ({}). Is the platform running? Start it with: sudo colibri up",
                causes(error)
            )),
            _ => Self::new(format!("cannot {what}: {}", causes(error))),
        }
    }
}

/// An error's text and the innermost cause that adds something.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        next = cause.source();
    }
    text
}

/// Writes to standard output; a reader that went away, as `head` does, ends the process quietly.
pub fn print(text: &str) {
    print_bytes(text.as_bytes());
}

/// As [`print`].
pub fn print_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
