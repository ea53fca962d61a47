//! `colibri up`: the whole platform in one process.

mod args;
mod demo;
mod listeners;
pub mod preflight;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

pub use args::UpArgs;
pub use listeners::{Listeners, listen, listen_for_pods, owner as owner_of_port};

use crate::data_dir::{self, DataDir, ENDPOINTS, KUBECONFIG};
use crate::platform::{Addresses, Platform};
use crate::signals::StopSignals;

/// Runs the platform until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What keeps it from starting, with the flag or command that cures it.
pub async fn run(args: UpArgs) -> Result<()> {
    let begin = Instant::now();
    preflight::check()?;
    let mut signals = StopSignals::new()?;
    if let Some(files) = preflight::raise_open_files() {
        tracing::warn!(files, "the limit of open files is below 65,536; raise it with `ulimit -n` or LimitNOFILE");
    }
    let listeners = Listeners::bind(&args)?;
    let path = args.data_dir.clone().unwrap_or_else(data_dir::default_path);
    let data_dir = DataDir::open(&path)?;
    let addresses = Addresses::of(&listeners)?;
    let starting = Platform::start(&args, data_dir.path(), listeners);
    tokio::pin!(starting);
    let started = tokio::select! {
        started = &mut starting => started?,
        () = signals.next() => {
            // What is half made can be taken down only once it is made; a second signal leaves it to the next start.
            tokio::select! {
                started = &mut starting => stop(started?, args.keep_pods, signals).await,
                () = signals.next() => {}
            }
            anyhow::bail!("stopped before the platform was ready");
        }
    };
    publish(&data_dir, &started, &addresses, &args.domain)?;
    tracing::info!(took = ?begin.elapsed(), "ready");
    print_ready(&data_dir, &addresses);

    let platform = started.clone();
    let demo = async {
        if args.demo {
            demo::run(&platform, &data_dir, &addresses, &args.domain).await?;
        }
        std::future::pending::<Result<()>>().await
    };
    let result = tokio::select! {
        result = demo => result,
        () = signals.next() => Ok(()),
    };
    data_dir.remove(ENDPOINTS);
    stop(started, args.keep_pods, signals).await;
    result
}

/// Drains and stops; a second signal stops at once.
async fn stop(platform: Arc<Platform>, keep_pods: bool, mut signals: StopSignals) {
    println!("stopping: requests in flight are answered first; Ctrl-C again stops at once");
    if keep_pods {
        println!("pods go on; the next `colibri up` on this data directory takes them over");
    }
    let impatient = platform.clone();
    let orderly = platform.stop(keep_pods);
    tokio::pin!(orderly);
    tokio::select! {
        () = &mut orderly => return,
        () = signals.next() => impatient.stop_now(),
    }
    orderly.await;
}

/// Writes the files that tell others where the platform is.
fn publish(data_dir: &DataDir, platform: &Platform, addresses: &Addresses, domain: &str) -> Result<()> {
    let api = format!("https://{}", addresses.api);
    data_dir.write(KUBECONFIG, platform.kubeconfig(&api).as_bytes())?;
    let gateway = format!("http://{}", addresses.gateway);
    let endpoints = json!({
        "api": api,
        "gateway": gateway,
        "gateway_tls": format!("https://{}", addresses.gateway_tls),
        "metrics": format!("http://{}", addresses.metrics),
        "domain": domain,
    });
    let text = serde_json::to_vec_pretty(&endpoints).context("writing the addresses")?;
    Ok(data_dir.write(ENDPOINTS, &text)?)
}

fn print_ready(data_dir: &DataDir, addresses: &Addresses) {
    println!("Colibri is ready.");
    println!("  API         https://{}", addresses.api);
    println!("  gateway     http://{}  https://{}", addresses.gateway, addresses.gateway_tls);
    println!("  metrics     http://{}/metrics", addresses.metrics);
    println!("  kubeconfig  {}", data_dir.join(KUBECONFIG).display());
}
