//! The API server alone: `serve [DATA_DIR] [PORT]`. Prints the address and the token; writes `kubeconfig` into the folder.

use std::path::PathBuf;

use apiserver::{Access, ApiServer, Config};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let data_dir = arguments.next().filter(|dir| dir != "-").map(PathBuf::from);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    let config = Config { data_dir: data_dir.clone(), advertised: address.to_string(), ..Config::default() };
    let server = ApiServer::open(config).await?;
    let url = format!("https://{address}");
    let folder = data_dir.unwrap_or_else(std::env::temp_dir);
    std::fs::write(folder.join("kubeconfig"), server.pki().kubeconfig(&url))?;
    println!("{url} {}", server.pki().admin_token);
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        signal.cancel();
    });
    server.serve(listener, Access::Full, stop).await?;
    server.close();
    Ok(())
}
