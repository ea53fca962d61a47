//! Runs seeds of the simulation: one process each, some at a time.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use clap::Parser;
use testkit::world::{Plan, Report, Sabotage, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the control plane and the gateway in a simulated hour for each seed.
#[derive(Parser)]
struct Args {
    /// First seed
    #[arg(long, env = "COLIBRI_SEED", default_value_t = 0)]
    seed: u64,
    /// How many seeds; 1 runs in this process and can write a trace
    #[arg(long, env = "COLIBRI_SEEDS", default_value_t = 1)]
    seeds: u64,
    /// How many run at a time; by default as many as there are processors
    #[arg(long)]
    jobs: Option<usize>,
    /// Services and functions for each seed
    #[arg(long, default_value_t = 20)]
    apps: usize,
    /// No faults: twenty quiet minutes
    #[arg(long)]
    calm: bool,
    /// Break a component, to see whether the invariants notice
    #[arg(long = "break")]
    sabotage: Option<Sabotage>,
    /// File for the trace of a single seed
    #[arg(long)]
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.seeds == 1 { one(&args) } else { many(&args) }
}

fn one(args: &Args) -> ExitCode {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("COLIBRI_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let plan = Plan {
        seed: args.seed,
        apps: args.apps,
        faults: !args.calm,
        sabotage: args.sabotage,
        trace: args.trace.clone(),
        ..Plan::default()
    };
    let start = Instant::now();
    // A thread of its own: its hash maps are seeded from the first on.
    let ran = std::thread::Builder::new().stack_size(64 << 20).spawn(move || run(&plan));
    let report = ran
        .map_err(anyhow::Error::from)
        .and_then(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the run panicked"))));
    match report {
        Ok(report) => {
            print(&report, start);
            if report.breaches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("seed {}: {error:#}", args.seed);
            ExitCode::FAILURE
        }
    }
}

fn print(report: &Report, start: Instant) {
    let Report { seed, trace: (hash, lines), breaches, last, counts, requests: (sent, failed) } = report;
    for line in last {
        eprintln!("{line}");
    }
    for breach in breaches {
        println!("seed {seed}: BREACH: {breach}");
    }
    println!(
        "seed {seed}: trace {hash:016x} of {lines} lines; {} pods, {} at most; {sent} requests, {failed} refused or \
         broken off, {} in pods; {:.2} s",
        counts.pods,
        counts.most_pods,
        counts.served,
        start.elapsed().as_secs_f64()
    );
}

/// Seeds between two lines that tell how far it is.
const PROGRESS: u64 = 500;

fn many(args: &Args) -> ExitCode {
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get()));
    let left: Mutex<VecDeque<u64>> = Mutex::new((args.seed..args.seed + args.seeds).collect());
    let failed = Mutex::new(Vec::new());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let (seed, done) = {
                        let Ok(mut left) = left.lock() else { return };
                        let Some(seed) = left.pop_front() else { return };
                        (seed, seed - args.seed)
                    };
                    if done > 0 && done.is_multiple_of(PROGRESS) {
                        eprintln!("{done} of {} seeds begun in {:.0} s", args.seeds, start.elapsed().as_secs_f64());
                    }
                    if let Some(text) = child(args, seed) {
                        print!("{text}");
                        failed.lock().into_iter().for_each(|mut failed| failed.push(seed));
                    }
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let failed = failed.into_inner().unwrap_or_default();
    println!(
        "{} seeds from {} in {seconds:.1} s, {:.2} seeds/s, {jobs} at a time: {} failed",
        args.seeds,
        args.seed,
        args.seeds as f64 / seconds,
        failed.len()
    );
    for seed in &failed {
        println!("replay: simulate --seed {seed} --trace /tmp/trace-{seed}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one seed in a process of its own; what it printed if it failed.
fn child(args: &Args, seed: u64) -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let mut command = Command::new(program);
    command.args(["--seeds", "1", "--seed", &seed.to_string(), "--apps", &args.apps.to_string()]);
    if args.calm {
        command.arg("--calm");
    }
    if let Some(value) = args.sabotage.and_then(|sabotage| clap::ValueEnum::to_possible_value(&sabotage)) {
        command.args(["--break", value.get_name()]);
    }
    match command.stderr(Stdio::null()).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("{}seed {seed}: {}\n", String::from_utf8_lossy(&output.stdout), output.status)),
        Err(error) => Some(format!("seed {seed}: {error}\n")),
    }
}
