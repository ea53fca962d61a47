//! How a role reaches the API server, and which certificates it shows to other roles.

use std::path::PathBuf;
use std::time::Duration;

use ::apiserver::Authority;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use client::https::{self, Identity};
use http::{HeaderName, HeaderValue};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::RootCertStore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a role waits at its start for an API server that does not answer.
const REACH_LIMIT: Duration = Duration::from_secs(20);
/// How long a refusal may last: an API server that has just started knows no roles yet and refuses everybody.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Which API server, and as whom.
#[derive(Args, Clone, Debug)]
pub struct ApiArgs {
    /// Kubeconfig with the API server's address and the role's credentials [default: $KUBECONFIG, else the service
    /// account of the pod]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// An API server that answers.
pub struct Api {
    /// The client.
    pub client: Client,
    /// `host:port` of the server.
    pub address: String,
    /// The server's authority, PEM.
    pub ca_pem: String,
    /// Version that the server tells.
    pub version: String,
}

impl ApiArgs {
    /// Reads the kubeconfig and waits until the server answers.
    ///
    /// # Errors
    ///
    /// What is wrong with the kubeconfig, the server or the credentials.
    pub async fn open(&self) -> Result<Api> {
        let source = self.source();
        let mut config = self.config().await?;
        let without = HeaderName::from_static(client::WITHOUT_MANAGED_FIELDS);
        config.headers.push((without, HeaderValue::from_static("true")));
        let url = config.cluster_url.clone();
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let address = format!("{}:{port}", url.host().unwrap_or_default());
        let ca_pem = config.root_cert.iter().flatten().map(|der| pem(der)).collect();
        let client = Client::try_from(config).with_context(|| format!("the credentials in {source} cannot be used"))?;
        let version = reach(&client, &url.to_string(), &source).await?;
        Ok(Api { client, address, ca_pem, version })
    }

    fn source(&self) -> String {
        match &self.kubeconfig {
            Some(file) => format!("the kubeconfig {}", file.display()),
            None => "$KUBECONFIG or the pod's service account".to_owned(),
        }
    }

    async fn config(&self) -> Result<kube::Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let kubeconfig = match &self.kubeconfig {
            Some(file) => {
                std::fs::metadata(file).with_context(|| {
                    format!("the kubeconfig {} is not there; name another with --kubeconfig", file.display())
                })?;
                Some(Kubeconfig::read_from(file).with_context(|| format!("{} cannot be read", self.source()))?)
            }
            None => Kubeconfig::from_env().context("the kubeconfig that $KUBECONFIG names cannot be read")?,
        };
        match kubeconfig {
            Some(kubeconfig) => kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .with_context(|| format!("{} cannot be used", self.source())),
            None => kube::Config::incluster()
                .context("there is no API server to talk to: name a kubeconfig with --kubeconfig"),
        }
    }
}

/// The server's version, once it answers.
async fn reach(client: &Client, url: &str, source: &str) -> Result<String> {
    let start = Instant::now();
    let mut refused = None;
    loop {
        match client.apiserver_version().await {
            Ok(info) => return Ok(info.git_version),
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                if refused.get_or_insert_with(Instant::now).elapsed() >= REFUSAL_LIMIT {
                    bail!("the API server at {url} refuses the credentials in {source}: {}", status.message);
                }
                tracing::debug!(status.message, "the API server refuses the credentials, perhaps because it starts");
            }
            Err(error) if start.elapsed() >= REACH_LIMIT => {
                return Err(anyhow!(error).context(format!(
                    "the API server at {url}, which {source} names, does not answer. Is it running?"
                )));
            }
            Err(error) => {
                refused = None;
                tracing::debug!(%error, "the API server does not answer yet");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

impl Api {
    /// Waits until the kinds of Colibri are installed; says once how that is done. `None` when `stop` comes first.
    pub async fn await_kinds(&self, stop: &CancellationToken) -> Option<()> {
        let mut told = false;
        loop {
            let mut missing = None;
            for group in [
                "serving.knative.dev",
                "autoscaling.internal.knative.dev",
                "networking.internal.knative.dev",
                "functions.colibri.dev",
            ] {
                if self.client.list_api_groups().await.is_ok_and(|list| list.groups.iter().all(|g| g.name != group)) {
                    missing = Some(group);
                }
            }
            let Some(group) = missing else { return Some(()) };
            if !told {
                told = true;
                tracing::warn!(
                    group,
                    "the API server does not know Colibri's kinds yet: colibri install --crds | kubectl apply -f -"
                );
            }
            stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await?;
        }
    }
}

/// The platform's own authority, for roles on the machine of a Colibri API server.
#[derive(Args, Clone, Debug)]
pub struct PkiArgs {
    /// Keys of the Colibri API server of this machine (pki in its data directory): certificates that are not given are
    /// issued from them
    #[arg(long, value_name = "DIR")]
    pub pki: Option<PathBuf>,
}

impl PkiArgs {
    /// The authority, if one is named.
    ///
    /// # Errors
    ///
    /// When its files cannot be read.
    pub fn authority(&self) -> Result<Option<Authority>> {
        let Some(folder) = &self.pki else { return Ok(None) };
        let authority = Authority::read(folder);
        authority.map(Some).with_context(|| format!("--pki {} cannot be used", folder.display()))
    }
}

/// Certificates of the link between gateway and controller.
#[derive(Args, Clone, Debug)]
pub struct LinkArgs {
    /// Certificate of this role for the link, PEM; it carries the DNS name controller.colibri-system.svc or
    /// gateway.colibri-system.svc
    #[arg(long, value_name = "FILE", requires_all = ["link_key", "link_ca"])]
    pub link_cert: Option<PathBuf>,
    /// Key to --link-cert, PEM
    #[arg(long, value_name = "FILE", requires = "link_cert")]
    pub link_key: Option<PathBuf>,
    /// Certificates that the other side's must be signed by, PEM
    #[arg(long, value_name = "FILE", requires = "link_cert")]
    pub link_ca: Option<PathBuf>,
}

impl LinkArgs {
    /// The role's certificate, and whom it trusts.
    ///
    /// # Errors
    ///
    /// When neither files nor an authority are named, or a file cannot be used.
    pub fn identity(&self, name: &str, authority: Option<&Authority>) -> Result<(Identity, RootCertStore)> {
        if let (Some(cert), Some(key), Some(ca)) = (&self.link_cert, &self.link_key, &self.link_ca) {
            let identity = Identity::read(cert, key).context("the link's certificate")?;
            if !identity.chain.first().is_some_and(|certificate| https::carries(certificate, name)) {
                bail!(
                    "the certificate {} does not carry the DNS name {name}, which the other side expects",
                    cert.display()
                );
            }
            return Ok((identity, https::read_roots(ca).context("the link's authority")?));
        }
        let authority = authority.context(
            "the link needs certificates: give --link-cert, --link-key and --link-ca, or --pki with the keys of the \
             Colibri API server of this machine",
        )?;
        Ok((authority.identity(name, None, &[name.to_owned()])?, authority.roots()?))
    }
}

/// A server certificate: from files, else issued for these names.
///
/// # Errors
///
/// When neither is named, or a file cannot be used; `flags` names the flags.
pub fn server_identity(
    files: (&Option<PathBuf>, &Option<PathBuf>),
    authority: Option<&Authority>,
    names: &[String],
    flags: &str,
) -> Result<Identity> {
    if let (Some(cert), Some(key)) = files {
        return Ok(Identity::read(cert, key)?);
    }
    let authority = authority.with_context(|| {
        format!(
            "a certificate is missing: give {flags}, or --pki with the keys of the Colibri API server of this machine"
        )
    })?;
    let common_name = names.first().map(String::as_str).unwrap_or_default();
    Ok(authority.identity(common_name, None, names)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Response, StatusCode};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// A client of an API server that refuses so many requests, and how many came.
    fn refusing(refusals: usize) -> (Client, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let (code, answer) = if counted.fetch_add(1, Ordering::SeqCst) < refusals {
                let status = json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": "no role"});
                (StatusCode::FORBIDDEN, status)
            } else {
                let version = json!({"major": "1", "minor": "32", "gitVersion": "v1.32.0", "gitCommit": "",
                    "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
                (StatusCode::OK, version)
            };
            let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
            async { answer }
        });
        (Client::new(service, "default"), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_has_just_started_may_refuse_for_a_while() {
        let (client, asked) = refusing(3);
        assert_eq!(reach(&client, "https://api", "the kubeconfig").await.unwrap(), "v1.32.0");
        assert_eq!(asked.load(Ordering::SeqCst), 4);
        let error = reach(&refusing(usize::MAX).0, "https://api", "the kubeconfig").await.unwrap_err();
        let expected = "the API server at https://api refuses the credentials in the kubeconfig: no role";
        assert_eq!(error.to_string(), expected);
    }
}
