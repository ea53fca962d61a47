//! Kubernetes' own control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
//!
//! It stands in a network namespace of its own (`make e2e-kubernetes` makes it), one at a time: some ports are fixed, and
//! kube-apiserver calls no node that is on the loopback address.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rcgen::KeyPair;
use serde_json::Value;

use crate::layout::{Process, Roles, free_port};

/// Address of the machine in that namespace.
pub const ADDRESS: &str = "192.0.2.1";
/// Range of Services.
const SERVICES: &str = "10.96.0.0/16";

/// A ConfigMap that the last of our webhooks refuses.
const REFUSED: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: config-gc, namespace: colibri-system }
data: { min-non-active-revisions: none }
"#;

/// Starts the control plane; answers its processes, in the order in which they are stopped, and the API server's URL.
/// Keys and a kubeconfig are where [`Roles`] expect those of our own API server.
///
/// # Errors
///
/// When one of them does not become ready; the text has its log.
pub async fn start(roles: &Roles, limit: Duration) -> Result<(Vec<Process>, Value)> {
    let folder = |name: &str| -> Result<String> {
        let path = roles.data_dir.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path.display().to_string())
    };
    let port = free_port()?;
    let url = format!("https://{ADDRESS}:{port}");
    folder("apiserver")?;
    let keys = Keys::make(roles.file("apiserver", "pki"), &roles.file("apiserver", "kubeconfig"), &url)?;
    let start = |name: &str, flags: Vec<String>| Process::start_other(&roles.home, program(name), flags);

    let (etcd_client, etcd_peer) =
        (format!("http://127.0.0.1:{}", free_port()?), format!("http://127.0.0.1:{}", free_port()?));
    let etcd = start(
        "etcd",
        vec![
            flag("data-dir", folder("etcd")?),
            flag("listen-client-urls", &etcd_client),
            flag("advertise-client-urls", &etcd_client),
            flag("listen-peer-urls", &etcd_peer),
        ],
    )?;
    let mut apiserver = start(
        "kube-apiserver",
        vec![
            flag("etcd-servers", &etcd_client),
            flag("bind-address", ADDRESS),
            flag("advertise-address", ADDRESS),
            flag("secure-port", port),
            flag("cert-dir", folder("apiserver")?),
            flag("tls-cert-file", keys.file("server.crt")),
            flag("tls-private-key-file", keys.file("server.key")),
            flag("client-ca-file", keys.file("ca.crt")),
            flag("kubelet-client-certificate", keys.file("admin.crt")),
            flag("kubelet-client-key", keys.file("admin.key")),
            flag("kubelet-certificate-authority", keys.file("ca.crt")),
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            flag("service-account-key-file", keys.file("tokens.pub")),
            flag("service-account-signing-key-file", keys.file("tokens.key")),
            flag("authorization-mode", "Node,RBAC"),
            flag("service-cluster-ip-range", SERVICES),
        ],
    )?;
    wait_for(&mut apiserver, roles, limit).await?;
    let as_administrator =
        [flag("kubeconfig", roles.file("apiserver", "kubeconfig").display()), flag("leader-elect", false)];
    let manager_flags = [
        flag("root-ca-file", keys.file("ca.crt")),
        flag("service-account-private-key-file", keys.file("tokens.key")),
        flag("cert-dir", folder("manager")?),
    ];
    let manager = start("kube-controller-manager", [as_administrator.as_slice(), &manager_flags].concat())?;
    let scheduler_flags = [flag("cert-dir", folder("scheduler")?)];
    let scheduler = start("kube-scheduler", [as_administrator.as_slice(), &scheduler_flags].concat())?;
    Ok((vec![scheduler, manager, apiserver, etcd], url.into()))
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// A program in the folder that `KUBEBUILDER_ASSETS` names, as it does for other tests against an API server; else of
/// the machine.
fn program(name: &str) -> PathBuf {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(|folder| PathBuf::from(folder).join(name));
    named.filter(|path| path.is_file()).unwrap_or_else(|| PathBuf::from(name))
}

/// Waits until the API server answers that it is ready.
async fn wait_for(apiserver: &mut Process, roles: &Roles, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let ended = apiserver.child.as_mut().context("a running process")?.try_wait()?;
        ensure!(ended.is_none(), "kube-apiserver ended:\n{}", apiserver.log());
        if roles.kubectl(&["get", "--raw", "/readyz"], None).await?.code == 0 {
            return Ok(());
        }
        ensure!(start.elapsed() < limit, "kube-apiserver is not ready after {limit:?}:\n{}", apiserver.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until what the control plane does after a start is done: the default account, the node without taint, webhooks
/// that are asked.
///
/// # Errors
///
/// When it is not done in time.
pub(crate) async fn settled(roles: &Roles, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let account = roles.kubectl(&["get", "serviceaccount", "default"], None).await?;
        let taints = roles.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints}"], None).await?;
        let refused = roles.kubectl(&["apply", "--dry-run=server", "-f", "-"], Some(REFUSED)).await?;
        if account.code == 0 && taints.stdout.is_empty() && refused.code != 0 {
            return Ok(());
        }
        ensure!(start.elapsed() < limit, "after {limit:?}: {account:?} {taints:?} {refused:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Keys of the control plane; the same as our own API server's.
struct Keys(PathBuf);

impl Keys {
    fn make(folder: PathBuf, kubeconfig: &Path, url: &str) -> Result<Self> {
        let pki = apiserver::Pki::open(Some(folder.clone()), &[ADDRESS.to_owned()])?;
        std::fs::write(kubeconfig, pki.kubeconfig(url))?;
        let tokens = KeyPair::from_pem(&std::fs::read_to_string(folder.join("tokens.key"))?)?;
        std::fs::write(folder.join("tokens.pub"), tokens.public_key_pem())?;
        Ok(Self(folder))
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}
