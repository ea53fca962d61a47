//! The commands that talk to a running platform.
//!
//! | Exit code | Meaning                                                     |
//! |-----------|-------------------------------------------------------------|
//! | 0         | done                                                        |
//! | 1         | it failed; one sentence on standard error says why and what cures it |
//! | 2         | the command line is wrong                                   |
//! | 3         | no platform answers                                         |
//! | 4         | `invoke`: the answer's status is 400 or more                |
//!
//! The table stands in `docs/cli.md` too.
//!
//! None of them needs DNS: the gateway's address comes from the platform's own files.

pub mod access;
mod advice;
mod completion;
mod delete;
mod deploy;
mod describe;
mod doctor;
mod domain;
mod env;
pub mod error;
mod http;
mod image;
mod init;
mod invoke;
mod kubeconfig;
mod list;
mod logs;
#[cfg(test)]
mod manual;
mod output;
mod secret;
mod seen;
mod style;
mod table;
mod traffic;
mod uploads;
mod versions;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

/// Commands that talk to a running platform.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Write a function to begin with
    Init(init::InitArgs),
    /// Deploy a function from a folder or a file, and wait until it is ready
    Deploy(deploy::DeployArgs),
    /// Deploy a folder again at each save, with errors and logs in the terminal
    Dev(deploy::dev::DevArgs),
    /// List functions and Knative services
    List(list::ListArgs),
    /// Show everything about a function or a service
    Describe(describe::DescribeArgs),
    /// Call a function or a service
    Invoke(invoke::InvokeArgs),
    /// Show the logs of a function's or a service's instances
    Logs(logs::LogsArgs),
    /// List what was deployed of a function or a service, newest first
    Versions(versions::VersionsArgs),
    /// Show what one version changed against another
    Diff(versions::DiffArgs),
    /// Show or change how traffic is split over versions
    Traffic(traffic::TrafficArgs),
    /// Let an earlier version serve again
    Rollback(traffic::RollbackArgs),
    /// Show or change the environment of a function or a service
    Env(env::EnvArgs),
    /// Set, list and delete secrets
    #[command(visible_alias = "secrets")]
    Secret(secret::SecretArgs),
    /// Delete functions or services
    Delete(delete::DeleteArgs),
    /// Let domains of your own lead to services and functions
    Domain(domain::DomainArgs),
    /// Load, list and pack container images
    Image(image::ImageArgs),
    /// Print the administrator's kubeconfig
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Check this machine and the platform on it
    Doctor(doctor::DoctorArgs),
    /// Print the completion script of a shell
    Completion(completion::CompletionArgs),
    /// Print the version
    Version,
}

/// Runs a command to its end and prints its error.
pub async fn run(command: Command) -> ExitCode {
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match command {
        Command::Init(args) => init::run(&args),
        Command::Deploy(args) => deploy::run(args).await,
        Command::Dev(args) => deploy::dev::run(args).await,
        Command::List(args) => list::run(args).await,
        Command::Describe(args) => describe::run(args).await,
        Command::Invoke(args) => invoke::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Versions(args) => versions::run(args).await,
        Command::Diff(args) => versions::diff(args).await,
        Command::Traffic(args) => traffic::run(args).await,
        Command::Rollback(args) => traffic::rollback(args).await,
        Command::Env(args) => env::run(args).await,
        Command::Secret(args) => secret::run(args).await,
        Command::Delete(args) => delete::run(args).await,
        Command::Domain(args) => domain::run(args).await,
        Command::Image(args) => image::run(args).await,
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Doctor(args) => doctor::run(args).await,
        Command::Completion(args) => {
            completion::run(&args, <crate::Arguments as clap::CommandFactory>::command());
            Ok(())
        }
        Command::Version => {
            error::print(&format!("colibri {}\n", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.message.is_empty() {
                let style = style::Style::stderr();
                eprintln!("{} {}", style.bold(&style.bad("error:")), error.message);
            }
            ExitCode::from(error.code)
        }
    }
}

/// `90s`, `5m`, `1h30m`; a number alone means seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => api::functions::settings::parse_duration(text),
    }
}
