//! The program. [`server`] is the loop; [`child`] is what runs in the forked container before its program.

mod cgroup;
mod child;
mod identity;
mod log;
mod rootfs;
mod sandbox;
mod seccomp;
mod server;
mod sys;
mod volumes;

use std::io::Write;

use supervisor::{Hello, Setup};

/// A failed step, for the user's eyes: which step and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {cause}")]
pub struct Failure {
    /// What was being done.
    pub step: String,
    /// What the kernel said.
    pub cause: String,
    /// Whether the pod's configuration is at fault.
    pub config: bool,
}

impl Failure {
    /// A failure whose cause is the pod's configuration.
    pub fn config(step: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { step: step.into(), cause: cause.into(), config: true }
    }
}

/// Names the step of an error.
pub trait Step<T> {
    /// The step is `name`.
    fn step(self, name: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, name: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: name.into(), cause: error.to_string(), config: false })
    }
}

/// Runs until the pod is gone; the exit code of the process.
pub fn main() -> i32 {
    let setup = match std::env::args().nth(1).as_deref().map(serde_json::from_str::<Setup>) {
        Some(Ok(setup)) => setup,
        Some(Err(error)) => return refuse(&format!("the set-up is not readable: {error}")),
        None => return refuse("the set-up is missing: this program is started by the platform only"),
    };
    match sandbox::Sandbox::make(setup).and_then(server::Server::new) {
        Ok(server) => server.run(say(&Hello::Ready)),
        Err(failure) => refuse(&failure.to_string()),
    }
}

fn refuse(why: &str) -> i32 {
    say(&Hello::Failed(why.to_string()));
    1
}

/// One line of JSON on the standard output, which is then closed; whether the node is there to read it.
fn say(hello: &Hello) -> bool {
    let mut out = std::io::stdout();
    let said =
        serde_json::to_vec(hello).map(|text| out.write_all(&[&text[..], b"\n"].concat()).and_then(|()| out.flush()));
    sys::redirect_to_null(&[0, 1, 2]);
    matches!(said, Ok(Ok(())))
}
