//! What an earlier platform of the same data directory left: sandboxes of pods, which are taken over, and remains,
//! which are removed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use supervisor::{CgroupBase, Event, PROTOCOL, Request, State};
use tokio::time::timeout;
use tracing::warn;

use super::pool::{END_LIMIT, remove_folder};
use super::process::Process;
use super::{Link, Sandbox, cgroups};

/// Time for a supervisor to say what it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A pod's sandbox that outlived its platform.
#[derive(Debug)]
pub struct Found {
    /// The uid of its pod.
    pub uid: String,
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What became of its containers.
    pub state: State,
}

/// The sandboxes below `dir` that belong to a pod and speak this platform's protocol.
pub async fn find(dir: &Path) -> Vec<Found> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let asked = entries.map(|entry| async move {
        let dir = entry.path();
        match timeout(ANSWER_LIMIT, ask(&dir)).await {
            Ok(found) => found,
            Err(_) => {
                warn!(dir = %dir.display(), "a supervisor does not answer");
                None
            }
        }
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

async fn ask(dir: &Path) -> Option<Found> {
    let name = dir.file_name()?.to_str()?.to_owned();
    let mut link = Link::connect(dir).await.ok()?;
    let process = Process::adopt(link.peer()?).ok()?;
    let Ok(Some(Event::State(state))) = link.next().await else { return None };
    let binding = state.binding.clone()?;
    if state.protocol != PROTOCOL {
        warn!(name, protocol = state.protocol, "a sandbox of another version is removed; its pod starts anew");
        return None;
    }
    let sandbox = Sandbox { name, address: binding.address, dir: dir.to_path_buf(), link, process };
    Some(Found { uid: binding.uid, sandbox, state })
}

/// Ends what runs in sandboxes that are not to be kept, and removes their folders and cgroups.
pub async fn remove_stale(dir: &Path, cgroups: &CgroupBase, keep: &BTreeSet<String>) {
    let mut stale = cgroups::names(cgroups);
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    stale.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let removals = stale.difference(keep).map(|name| async move {
        let path = dir.join(name);
        let ended = timeout(END_LIMIT, quit(&path)).await;
        if ended != Ok(true) {
            kill_supervisor(&path).await;
        }
        cgroups::sweep(cgroups, Some(name)).await;
        remove_folder(&path);
    });
    futures::future::join_all(removals).await;
}

/// Asks a supervisor to end and waits until it has; false when there is none to ask.
async fn quit(dir: &Path) -> bool {
    let Ok(mut link) = Link::connect(dir).await else { return false };
    let process = link.peer().and_then(|pid| Process::adopt(pid).ok());
    if link.send(&Request::Quit).await.is_err() {
        return false;
    }
    if let Some(mut process) = process {
        process.ended().await;
    }
    true
}

/// Kills the supervisor of the folder, which has no socket (yet), does not answer, or is gone already.
async fn kill_supervisor(dir: &Path) {
    // As its set-up is on its command line.
    let marker = format!("\"dir\":{}", serde_json::Value::from(dir.to_string_lossy()));
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_supervisor = words.next().is_some_and(|program| program == b"colibri-supervisor");
        if is_supervisor
            && words.next().is_some_and(|setup| String::from_utf8_lossy(setup).contains(&marker))
            && let Ok(mut process) = Process::adopt(pid)
        {
            process.kill().await;
        }
    }
}
