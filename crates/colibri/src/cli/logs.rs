//! `colibri logs`.

use std::collections::HashSet;
use std::time::Duration;

use api::serving::annotations::{REVISION_LABEL, SERVICE_LABEL, USER_CONTAINER};
use clap::Args;
use futures::AsyncReadExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};
use tokio::task::JoinSet;

use super::access::{Access, Target};
use super::error::{CliError, print_bytes};
use super::seen;
use super::workload::Workload;

/// How often new instances are looked for while following.
const LOOK: Duration = Duration::from_millis(300);
/// Longest line that is held back until it is whole.
const LINE_LIMIT_BYTES: usize = 256 << 10;

/// Arguments of `colibri logs`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri logs hello --tail 20
  colibri logs hello -f --since 5m      and what comes, also of new instances
  colibri logs hello --previous         of the run before the last restart")]
pub struct LogsArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    /// Go on with lines to come, also of instances to come
    #[arg(long, short)]
    follow: bool,
    /// Only the last lines of each instance
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(i64).range(0..))]
    tail: Option<i64>,
    /// Only lines of that time until now, such as 30s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", value_parser = super::parse_duration, conflicts_with = "since_time")]
    since: Option<Duration>,
    /// Only lines since that moment, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since_time: Option<Timestamp>,
    /// Only instances of this version
    #[arg(long, value_name = "NAME")]
    version: Option<String>,
    /// The run before a restart
    #[arg(long)]
    previous: bool,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    target: Target,
}

impl LogsArgs {
    /// Everything from a moment on, of whatever instances there will be.
    pub fn following(name: &str, since: Timestamp, target: Target) -> Self {
        Self {
            name: name.to_owned(),
            follow: true,
            tail: None,
            since: None,
            since_time: Some(since),
            version: None,
            previous: false,
            timestamps: false,
            target,
        }
    }
}

/// Prints the logs of all instances; with more than one, each line names its instance.
pub async fn run(args: LogsArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let workload = Workload::find(&access, &args.name).await?;
    let pods: Api<Pod> = Api::namespaced(access.client.clone(), &access.namespace);
    let labels = match &args.version {
        Some(version) => format!("{SERVICE_LABEL}={},{REVISION_LABEL}={version}", workload.name()),
        None => format!("{SERVICE_LABEL}={}", workload.name()),
    };
    let selected = ListParams::default().labels(&labels);
    let list = || async {
        let found = pods.list(&selected).await.map_err(|error| CliError::api("list instances", &error))?;
        Ok::<_, CliError>(found.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
    };
    let mut names = list().await?;
    if let (true, Some(version)) = (names.is_empty(), &args.version) {
        known(&access, &args.name, version).await?;
    }
    if names.is_empty() && !args.follow {
        eprintln!("no instance of {} runs; colibri invoke {} starts one", args.name, args.name);
        return Ok(());
    }
    let prefixed = args.follow || names.len() > 1;
    let mut seen = HashSet::new();
    let mut streams = JoinSet::new();
    loop {
        for name in names.drain(..) {
            if seen.insert(name.clone()) {
                streams.spawn(stream(pods.clone(), name, args.clone(), prefixed));
            }
        }
        if !args.follow {
            break;
        }
        tokio::time::sleep(LOOK).await;
        names = list().await?;
    }
    let mut failure = None;
    while let Some(ended) = streams.join_next().await {
        if let Ok(Err(error)) = ended {
            failure = Some(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Whether there is such a version, if it has no instance now.
async fn known(access: &Access, name: &str, version: &str) -> Result<(), CliError> {
    let versions: Vec<String> = seen::look(access, name).await?.revisions.iter().map(ResourceExt::name_any).collect();
    if versions.iter().any(|known| known == version) {
        return Ok(());
    }
    Err(CliError::new(format!("there is no version {version} of {name}; there are: {}", versions.join(", "))))
}

/// Prints one instance's log to its end.
async fn stream(pods: Api<Pod>, name: String, args: LogsArgs, prefixed: bool) -> Result<(), CliError> {
    let params = LogParams {
        container: Some(USER_CONTAINER.to_owned()),
        follow: args.follow,
        tail_lines: args.tail,
        // Whole seconds, at least one: the API server refuses 0.
        since_seconds: args.since.map(|since| i64::try_from(since.as_secs().max(1)).unwrap_or(i64::MAX)),
        since_time: args.since_time,
        previous: args.previous,
        timestamps: args.timestamps,
        ..LogParams::default()
    };
    let opened = loop {
        match pods.log_stream(&name, &params).await {
            Ok(opened) => break opened,
            // The node does not know the instance yet, or its container has not started.
            Err(kube::Error::Api(status)) if args.follow && (status.code == 400 || status.code >= 404) => {
                let there =
                    pods.get_opt(&name).await.map_err(|error| CliError::api(&format!("read {name}"), &error))?;
                if there.is_none() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return Err(CliError::api(&format!("read the log of {name}"), &error)),
        }
    };
    let mut opened = std::pin::pin!(opened);
    let prefix = if prefixed { format!("{name} ") } else { String::new() };
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = opened.read(&mut buffer).await;
        let read = read.map_err(|error| CliError::unreachable(format!("the log of {name} broke off: {error}")))?;
        if read == 0 {
            print_bytes(&lines.rest(&prefix));
            return Ok(());
        }
        print_bytes(&lines.push(&buffer[..read], &prefix));
    }
}

/// Whole lines out of pieces, so that lines of several instances do not mix.
#[derive(Default)]
struct Lines {
    held: Vec<u8>,
}

impl Lines {
    /// The lines that are whole now, each with its prefix.
    fn push(&mut self, piece: &[u8], prefix: &str) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let end = match self.held.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if self.held.len() >= LINE_LIMIT_BYTES => return self.rest(prefix),
            None => return Vec::new(),
        };
        let rest = self.held.split_off(end);
        let whole = std::mem::replace(&mut self.held, rest);
        prefixed(&whole, prefix)
    }

    /// What is left at the end.
    fn rest(&mut self, prefix: &str) -> Vec<u8> {
        if self.held.is_empty() {
            return Vec::new();
        }
        self.held.push(b'\n');
        prefixed(&std::mem::take(&mut self.held), prefix)
    }
}

fn prefixed(whole: &[u8], prefix: &str) -> Vec<u8> {
    let lines = whole.split_inclusive(|byte| *byte == b'\n');
    lines.flat_map(|line| prefix.as_bytes().iter().chain(line)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_printed() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"on", "p "), b"");
        assert_eq!(lines.push(b"e\ntwo\nth", "p "), b"p one\np two\n");
        assert_eq!(lines.rest("p "), b"p th\n");
        assert_eq!(lines.rest("p "), b"");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&vec![b'x'; LINE_LIMIT_BYTES], "").len(), LINE_LIMIT_BYTES + 1);
    }
}
