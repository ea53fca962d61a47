//! The `colibri` binary: the platform's roles and the commands that talk to it.

mod admin;
mod admission;
mod bench;
mod cli;
mod cluster_names;
mod data_dir;
mod extensions;
mod fetch;
mod link;
mod memory;
mod platform;
mod role;
mod seed;
mod signals;
mod tls;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A serverless platform for Kubernetes in one binary.
#[derive(Parser)]
#[command(
    name = "colibri",
    version,
    about,
    after_help = "Examples:
  sudo colibri up                       start the platform on this machine
  colibri deploy examples/hello-python  a folder becomes a function with a URL
  colibri invoke hello-python           call it; colibri logs, describe and list show it
  colibri doctor                        what this machine lacks, with the cure"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the platform on this machine
    #[command(after_help = "Examples:
  sudo colibri up --demo
  sudo colibri up --gateway-port 80 --data-dir /srv/colibri
  sudo colibri up --api-port 0 --gateway-port 0 --gateway-tls-port 0 --metrics-port 0   beside another one")]
    Up(up::UpArgs),
    /// Start the API server alone
    #[command(after_help = "Examples:
  colibri apiserver --data-dir ./state --api-port 7443
  kubectl --kubeconfig ./state/kubeconfig get namespaces")]
    Apiserver(role::ApiserverArgs),
    /// Start the controllers alone: Knative Serving, functions, the autoscaler
    #[command(after_help = "Examples:
  colibri controller --kubeconfig admin.yml --data-dir ./controller")]
    Controller(role::ControllerArgs),
    /// Start the gateway alone
    #[command(after_help = "Examples:
  colibri gateway --kubeconfig admin.yml")]
    Gateway(role::GatewayArgs),
    /// Start a node alone: it runs the pods that are bound to it
    #[command(after_help = "Examples:
  sudo colibri node --kubeconfig admin.yml --data-dir /srv/colibri-node")]
    Node(role::NodeArgs),
    /// Print what a Kubernetes cluster needs for Colibri
    #[command(after_help = "Examples:
  colibri install --crds --rbac | kubectl apply --server-side -f -
  colibri install --webhooks --ca ca.crt | kubectl apply -f -")]
    Install(role::InstallArgs),
    /// Measure a running platform
    #[command(after_help = "Examples:
  sudo colibri bench coldstart --count 50
  sudo colibri bench gateway --json     beside nginx and haproxy in front of the same instances
  sudo colibri bench burst              100 services from zero at once
  sudo colibri bench control-plane
  colibri bench scale --services 1000   no platform need run
  sudo colibri bench idle")]
    Bench(bench::BenchArgs),
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.spawn(memory::give_back());
    // A provider that is installed already is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match arguments.command {
        Command::Up(args) => {
            start_logging(&args.log);
            finish(runtime.block_on(up::run(args)))
        }
        Command::Apiserver(args) => {
            start_logging(&args.log);
            finish(runtime.block_on(role::apiserver(args)))
        }
        Command::Controller(args) => {
            start_logging(&args.log);
            finish(runtime.block_on(role::controller(args)))
        }
        Command::Gateway(args) => {
            start_logging(&args.log);
            finish(runtime.block_on(role::gateway(args)))
        }
        Command::Node(args) => {
            start_logging(&args.log);
            finish(runtime.block_on(role::node(args)))
        }
        Command::Install(args) => finish(role::install(&args)),
        Command::Bench(args) => finish(runtime.block_on(bench::run(args))),
        Command::Client(command) => runtime.block_on(cli::run(command)),
    }
}

fn start_logging(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("--log {filter:?} is not a valid filter ({error}); logging warnings and errors");
        tracing_subscriber::EnvFilter::new("warn")
    });
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_writer(std::io::stderr).init();
}

/// One clear error: what failed, and each cause once.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            for cause in error.chain().skip(1).map(ToString::to_string) {
                if !text.contains(&cause) {
                    text = format!("{text}: {cause}");
                }
            }
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}
