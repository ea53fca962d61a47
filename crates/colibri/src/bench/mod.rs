//! `colibri bench`: figures of a running platform, beside bare processes, nginx and haproxy in the same run.

pub mod bare;
pub mod burst;
pub mod coldstart;
pub mod control_plane;
pub mod crowd;
pub mod gateway;
pub mod http;
pub mod load;
mod markdown;
pub mod memory;
pub mod pace;
pub mod peers;
pub mod scale;
pub mod stats;
pub mod target;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::target::Workload;

/// Measure a running platform.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What is measured; everything by default
    #[command(subcommand)]
    what: Option<What>,
    /// Data directory of the platform
    #[arg(long, global = true, env = "COLIBRI_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true, conflicts_with = "markdown")]
    json: bool,
    /// Print the page `docs/benchmarks.md`
    #[arg(long, global = true)]
    markdown: bool,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// Cold starts by stage, beside the same program as a plain process
    Coldstart {
        /// What is started; everything whose interpreter is there by default
        #[arg(long)]
        workload: Option<Workload>,
        /// Services that are called from zero
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
    /// One hop beside nginx and haproxy in front of the same instances: latency, requests a second, CPU, memory, overload
    Gateway(gateway::GatewayArgs),
    /// Many services at zero, called at the same moment
    Burst {
        /// What is started
        #[arg(long, default_value = "container")]
        workload: Workload,
        /// Services
        #[arg(long, default_value_t = 100)]
        services: usize,
        /// Requests to each of them
        #[arg(long, default_value_t = 1)]
        requests: usize,
    },
    /// Durable writes a second, and services from creation to Ready
    ControlPlane {
        /// ConfigMaps that are created
        #[arg(long, default_value_t = 5000)]
        writes: usize,
        /// Clients that write at the same time
        #[arg(long, default_value_t = 64)]
        writers: usize,
        /// Services that are created at once
        #[arg(long, default_value_t = 100)]
        services: usize,
    },
    /// Many services on a control plane of its own with simulated pods; no platform need run
    Scale {
        /// Numbers of services, one after the other
        #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000, 10000])]
        services: Vec<usize>,
    },
    /// Memory and CPU of the platform at rest
    Idle {
        /// Services that are deployed first and are at zero
        #[arg(long, default_value_t = 0)]
        services: usize,
        /// Seconds over which CPU is measured
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

/// What was measured, by the name of the command.
#[derive(Default)]
struct Report {
    idle: Vec<memory::Idle>,
    coldstart: Vec<coldstart::ColdStarts>,
    gateway: Option<gateway::Gateway>,
    burst: Vec<burst::Burst>,
    control_plane: Option<control_plane::ControlPlane>,
    scale: Vec<scale::Scale>,
}

impl Report {
    fn json(&self) -> Value {
        let mut report = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "machine": markdown::machine(),
        });
        let parts = [
            ("idle", json!(self.idle)),
            ("coldstart", json!(self.coldstart)),
            ("gateway", json!(self.gateway)),
            ("burst", json!(self.burst)),
            ("controlPlane", json!(self.control_plane)),
            ("scale", json!(self.scale)),
        ];
        for (name, value) in parts {
            if value != Value::Null && value != json!([]) {
                report[name] = value;
            }
        }
        report
    }
}

/// Runs `colibri bench`.
///
/// # Errors
///
/// When no platform runs, or a step fails.
pub async fn run(args: BenchArgs) -> Result<()> {
    let data_dir = args.data_dir.clone().unwrap_or_else(crate::data_dir::default_path);
    // It needs no platform but its own.
    if let Some(What::Scale { services }) = &args.what {
        let mut report = Report::default();
        scale(services, !args.json && !args.markdown, &mut report).await?;
        return print(&args, &report);
    }
    let target = target::open(&data_dir).await?;
    // The memory first: what comes after it leaves its traces.
    let all = vec![
        What::Idle { services: 0, seconds: 20 },
        What::Idle { services: 100, seconds: 20 },
        What::Coldstart { workload: None, count: 20 },
        What::Burst { workload: Workload::Container, services: 100, requests: 1 },
        What::Gateway(gateway::GatewayArgs::default()),
        What::ControlPlane { writes: 5000, writers: 64, services: 100 },
        What::Scale { services: vec![1000, 5000, 10_000] },
    ];
    let mut report = Report::default();
    for what in args.what.clone().map_or(all, |what| vec![what]) {
        measure(&target, &data_dir, what, !args.json && !args.markdown, &mut report).await?;
    }
    print(&args, &report)
}

/// Measures on a control plane of its own.
async fn scale(services: &[usize], talk: bool, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    report.scale = scale::run(dir.path(), services, |row| {
        if talk {
            println!("{} services\n{}\n", row.services, row.table());
        }
    })
    .await?;
    Ok(())
}

fn print(args: &BenchArgs, report: &Report) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else if args.markdown {
        print!("{}", markdown::page(report));
    }
    Ok(())
}

async fn measure(target: &target::Target, data_dir: &Path, what: What, talk: bool, report: &mut Report) -> Result<()> {
    let show = |name: &str, table: String| {
        if talk {
            println!("{name}\n{table}\n");
        }
    };
    match what {
        What::Coldstart { workload, count } => {
            let mut runtimes = functions::runtimes::folder(&data_dir.join("runtimes"));
            let own = tempfile::tempdir()?;
            if !runtimes.is_dir() {
                // The node keeps them elsewhere; its files are the same.
                runtimes = functions::runtimes::install(own.path())?;
                functions::runtimes::compile(runtimes.clone()).await;
            }
            for workload in workload.map_or_else(target::usable, |one| vec![one]) {
                let hello = hello_program()?;
                let prepared = coldstart::prepare(target, workload, count).await?;
                let measured = coldstart::measure(target, prepared, &hello, &runtimes).await?;
                show(&format!("coldstart, {}", workload.name()), measured.table());
                report.coldstart.push(measured);
            }
        }
        What::Gateway(args) => {
            let measured = gateway::run(target, data_dir, &args).await?;
            show("gateway", measured.table());
            report.gateway = Some(measured);
        }
        What::Burst { workload, services, requests } => {
            let measured = burst::run(target, workload, services, requests).await?;
            show("burst", measured.table());
            report.burst.push(measured);
        }
        What::ControlPlane { writes, writers, services } => {
            let pid = memory::platform_pid(data_dir)?;
            let measured = control_plane::run(target, pid, writes, writers, services).await?;
            show("control plane", measured.table());
            report.control_plane = Some(measured);
        }
        What::Scale { services } => scale(&services, talk, report).await?,
        What::Idle { services, seconds } => {
            let measured = memory::idle(target, memory::platform_pid(data_dir)?, services, seconds).await?;
            show("idle", measured.table());
            report.idle.push(measured);
        }
    }
    Ok(())
}

/// The example server, linked statically, where `make static` puts it.
///
/// # Errors
///
/// When it was not built.
pub fn hello_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).unwrap_or(Path::new("."));
    let path = target.join("static/hello-container");
    anyhow::ensure!(path.is_file(), "{} is missing: build it with `make static`", path.display());
    Ok(path)
}
