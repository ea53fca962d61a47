//! `colibri apiserver`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use ::apiserver::{Access, ApiServer, Config, User};
use anyhow::Result;
use clap::{Args, ValueEnum};
use client::{Caches, Live};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::data_dir::{DataDir, KUBECONFIG};
use crate::signals::StopSignals;
use crate::up::listen;

/// Start the API server alone: no controllers, no node. It needs no root.
#[derive(Args, Clone, Debug)]
pub struct ApiserverArgs {
    /// Where state and the kubeconfig are kept; by default nothing is kept, and the kubeconfig is printed
    #[arg(long, env = "COLIBRI_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address that the port is opened on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Port of the API server; 0 picks a free one
    #[arg(long, default_value_t = 6443)]
    api_port: u16,
    /// Who defaults and checks Colibri's own kinds: this server, or only admission webhooks, as on any other API server
    #[arg(long, value_enum, default_value_t = Admission::BuiltIn)]
    admission: Admission,
    /// What is logged, in the syntax of tracing's EnvFilter
    #[arg(long, env = "COLIBRI_LOG", default_value = "warn,colibri=info")]
    pub log: String,
}

/// Who defaults and checks Colibri's own kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Admission {
    /// The API server itself
    BuiltIn,
    /// Admission webhooks, where they are configured
    None,
}

/// Runs the API server until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// When the port is taken or the store cannot be opened.
pub async fn apiserver(args: ApiserverArgs) -> Result<()> {
    let mut signals = StopSignals::new()?;
    let listener = listen(args.bind, args.api_port, "API server", "--api-port")?;
    let address = listener.local_addr()?;
    let data_dir = args.data_dir.as_deref().map(DataDir::open).transpose()?;
    let config = Config {
        data_dir: data_dir.as_ref().map(|dir| dir.path().to_path_buf()),
        advertised: address.to_string(),
        names: vec![address.ip().to_string()],
        ..Config::default()
    };
    let server = ApiServer::open(config).await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    if args.admission == Admission::BuiltIn {
        let live = Arc::new(Live::default());
        live.follow(&Caches::new(server.client(User::master("system:colibri")), tasks.clone(), stop.clone()));
        server.add_admission(Arc::new(crate::admission::BuiltIn(live)));
    }
    let kubeconfig = server.pki().kubeconfig(&format!("https://{address}"));
    match &data_dir {
        Some(dir) => {
            dir.write(KUBECONFIG, kubeconfig.as_bytes())?;
            super::announce("API server", Some(dir), &[("api", "https", address)])?;
            eprintln!("the API server listens on https://{address}; kubeconfig: {}", dir.join(KUBECONFIG).display());
        }
        None => println!("{kubeconfig}"),
    }
    let serving = server.serve(listener, Access::Full, stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => result?,
        () = signals.next() => {
            stop.cancel();
            serving.await?;
        }
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    server.close();
    Ok(())
}
