//! `colibri up --demo`: deploys the examples, calls them from zero and warm, and shows what was measured.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use node::images::pack::{PackConfig, pack};

use crate::bench::coldstart::{self, ColdStarts, Prepared};
use crate::bench::stats::Summary;
use crate::bench::target::{self, Target, Workload};
use crate::bench::{self, http, memory};
use crate::data_dir::{DataDir, KUBECONFIG};
use crate::platform::{Addresses, Platform};

/// Services of each kind that are called from zero.
const COLD_STARTS: usize = 5;
/// Requests on a kept connection.
const WARM_REQUESTS: usize = 1000;
/// Name of the example that the demo leaves running.
fn name(workload: Workload) -> &'static str {
    match workload {
        Workload::Container => "hello",
        Workload::Python => "hello-python",
        Workload::Node => "hello-node",
    }
}

/// Runs the demo to its end; the examples stay.
///
/// # Errors
///
/// When an example cannot be deployed or does not answer.
pub async fn run(platform: &Arc<Platform>, data_dir: &DataDir, addresses: &Addresses, domain: &str) -> Result<()> {
    let target = Target {
        client: platform.client().clone(),
        gateway: addresses.gateway,
        gateway_tls: addresses.gateway_tls,
        domain: domain.to_owned(),
    };
    let hello = bench::hello_program()?;
    load_hello(platform, &hello).await?;
    let examples: Vec<_> = target::usable().into_iter().map(|workload| (name(workload), workload)).collect();

    println!("\ndeploying the examples, and {COLD_STARTS} copies of each to be called from zero ...");
    let mut prepared = Vec::new();
    for (name, workload) in &examples {
        target.deploy(name, *workload).await?;
    }
    for (name, _) in &examples {
        target.ready(name).await?;
    }
    println!("waiting until all have gone to zero: a window of 6 s and the grace period of 30 s ...");
    for waiting in futures::future::join_all(
        examples.iter().map(|(_, workload)| coldstart::prepare(&target, *workload, COLD_STARTS)),
    )
    .await
    {
        prepared.push(waiting?);
    }
    let rest = memory::resident_mib(std::process::id())?;

    for (waiting, (name, _)) in prepared.into_iter().zip(&examples) {
        report(&target, waiting, name, &hello, data_dir).await?;
    }
    println!("\nresident memory of the platform at rest: {rest:.1} MiB");
    print_urls(&examples, data_dir, addresses, domain);
    Ok(())
}

async fn load_hello(platform: &Platform, hello: &std::path::Path) -> Result<()> {
    let program = hello.to_path_buf();
    let config = PackConfig { reference: Some("hello:latest".parse()?), ..PackConfig::default() };
    let archive = tokio::task::spawn_blocking(move || {
        let mut archive = Vec::new();
        pack(&program, &config, &mut archive).map(|_| archive)
    })
    .await?
    .context("packing the example server as an image")?;
    platform.node().images().load(archive.as_slice(), None).await.context("loading the example image")?;
    Ok(())
}

async fn report(
    target: &Target,
    waiting: Prepared,
    name: &str,
    hello: &std::path::Path,
    data_dir: &DataDir,
) -> Result<()> {
    let zero = waiting.back_to_zero;
    let runtimes = functions::runtimes::folder(&data_dir.join("runtimes"));
    let measured = coldstart::measure(target, waiting, hello, &runtimes).await?;
    let warm = warm(target, name).await?;
    print_table(name, &measured, warm, zero);
    Ok(())
}

/// Times of requests on a kept connection.
async fn warm(target: &Target, name: &str) -> Result<Option<Summary>> {
    let mut connection = http::Connection::open(target.gateway, &target.host(name)).await?;
    connection.get("/").await?;
    let mut times = Vec::with_capacity(WARM_REQUESTS);
    for _ in 0..WARM_REQUESTS {
        times.push(connection.get("/").await?.first_byte);
    }
    Ok(Summary::of(&times))
}

fn print_table(name: &str, measured: &ColdStarts, warm: Option<Summary>, zero: Duration) {
    println!("\n{name}");
    let rule = "-".repeat(56);
    println!("{rule}");
    println!("{}", measured.table());
    if let Some(warm) = warm {
        println!("{:<28} {}", "warm, connection kept", warm.short());
    }
    println!("{:<28} {:.1} s", "ready to zero", zero.as_secs_f64());
    println!("{rule}");
}

fn print_urls(examples: &[(&str, Workload)], data_dir: &DataDir, addresses: &Addresses, domain: &str) {
    println!("\ntry them:");
    for (name, _) in examples {
        println!("  curl http://{name}.default.{domain}:{}/", addresses.gateway.port());
    }
    println!("  kubectl --kubeconfig {} get ksvc", data_dir.join(KUBECONFIG).display());
    println!("\nCtrl-C stops the platform; nothing stays behind.");
}
