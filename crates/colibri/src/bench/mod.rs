//! `colibri bench`: figures of a running platform, beside bare processes and nginx in the same run.

pub mod bare;
pub mod coldstart;
pub mod http;
pub mod memory;
pub mod stats;
pub mod target;
pub mod warm;

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
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// Cold starts by stage, beside the same program as a plain process
    Coldstart {
        /// What is started; both by default
        #[arg(long)]
        workload: Option<Workload>,
        /// Services that are called from zero
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
    /// Added latency and requests a second, beside nginx in front of the same instance
    Warm {
        /// Rounds for each of the two
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds of each round
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// Connections of the load generator
        #[arg(long, default_value_t = 32)]
        connections: usize,
    },
    /// Memory and CPU of the platform at rest
    Idle {
        /// Seconds over which CPU is measured
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

/// Runs `colibri bench`.
///
/// # Errors
///
/// When no platform runs, or a step fails.
pub async fn run(args: BenchArgs) -> Result<()> {
    let data_dir = args.data_dir.clone().unwrap_or_else(crate::data_dir::default_path);
    let target = target::open(&data_dir).await?;
    let all = vec![
        What::Idle { seconds: 20 },
        What::Coldstart { workload: None, count: 20 },
        What::Warm { rounds: 5, seconds: 4, connections: 32 },
    ];
    let mut report = serde_json::Map::new();
    for what in args.what.map_or(all, |what| vec![what]) {
        measure(&target, &data_dir, what, args.json, &mut report).await?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

async fn measure(
    target: &target::Target,
    data_dir: &Path,
    what: What,
    quiet: bool,
    report: &mut serde_json::Map<String, Value>,
) -> Result<()> {
    let mut show = |name: &str, table: String, value: Value| {
        if !quiet {
            println!("{name}\n{table}\n");
        }
        report.insert(name.to_owned(), value);
    };
    match what {
        What::Coldstart { workload, count } => {
            let both = vec![Workload::Container, Workload::Python];
            for workload in workload.map_or(both, |one| vec![one]) {
                let hello = hello_program()?;
                let prepared = coldstart::prepare(target, workload, count).await?;
                let measured = coldstart::measure(target, prepared, &hello, &data_dir.join("runtimes")).await?;
                show(&format!("coldstart {workload:?}"), measured.table(), json!(measured));
            }
        }
        What::Warm { rounds, seconds, connections } => {
            let measured = warm::run(target, rounds, seconds, connections).await?;
            show("warm", measured.table(), json!(measured));
        }
        What::Idle { seconds } => {
            let measured = memory::idle(data_dir, seconds).await?;
            show("idle", measured.table(), json!(measured));
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
