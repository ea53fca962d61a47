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
            kube::Error::Api(status) => {
                let cure = cure_of(status.code, &status.message);
                Self::new(format!("cannot {what}: {}{cure}", status.message))
            }
            kube::Error::Service(_) | kube::Error::HyperError(_) => Self::unreachable(format!(
                "cannot {what}: the API server does not answer ({}). Is the platform running? Start it with: sudo colibri up",
                causes(error)
            )),
            _ => Self::new(format!("cannot {what}: {}", causes(error))),
        }
    }

    /// Adds what to do about it, on a line of its own.
    pub fn cured_by(mut self, cure: &str) -> Self {
        if !cure.is_empty() {
            self.message = format!("{}\n  cure: {cure}", self.message);
        }
        self
    }
}

/// What to do about a refusal of the API server, as a line of its own.
fn cure_of(code: u16, message: &str) -> String {
    let namespace = || message.split('"').nth(1).unwrap_or("NAME").to_owned();
    let cures = match code {
        401 => vec![
            "the credentials are not valid (any more): take the platform's kubeconfig, colibri kubeconfig prints it"
                .to_owned(),
        ],
        403 => vec![
            "use the administrator's kubeconfig, or let an administrator bind a role: kubectl create rolebinding"
                .to_owned(),
        ],
        404 if message.starts_with("namespaces") => {
            vec![format!("make it: kubectl create namespace {}; or choose another with -n", namespace())]
        }
        404 if message.contains("could not find the requested resource") => {
            vec![
                "this API server does not know the kind: is it Colibri's? --context and --kubeconfig choose another"
                    .to_owned(),
            ]
        }
        409 => vec!["somebody else changed it at the same time: try again".to_owned()],
        400 | 422 => super::advice::refusal_cures(message),
        _ => Vec::new(),
    };
    cures.iter().map(|cure| format!("\n  cure: {cure}")).collect()
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
