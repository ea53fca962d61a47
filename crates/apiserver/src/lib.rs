//! The embedded Kubernetes API server.
//!
//! Invariants: built-in kinds and custom resources take the same path; a write is acknowledged when the store says
//! that it is durable; reads and watches never touch the disk; the server never calls itself over the network.
//!
//! Surprises: `resourceVersion` is the store's one revision; lists of built-in kinds leave `kind` and `apiVersion` out
//! of their items, as the reference does; Namespace finalisation, owner garbage collection and default service accounts
//! are controllers elsewhere, only `/finalize` is here.

mod addresses;
pub mod admission;
pub mod auth;
mod basic;
pub mod body;
mod cleanup;
pub mod crd;
mod discovery;
mod dispatch;
mod error;
mod extension;
mod housekeeping;
mod inprocess;
pub mod kinds;
mod managed;
mod meta;
pub mod names;
mod negotiate;
mod nodes;
mod object;
pub mod openapi;
mod openapi_route;
mod patch;
mod pki;
mod place;
pub mod proto;
pub mod quote;
mod registry;
mod request;
pub mod resource;
mod selector;
mod serve;
mod special;
mod subresources;
mod table;
mod usage;
mod verbs;
mod version;
mod webhooks;
mod wire;

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use serde_json::json;
use store::Store;
use tokio_util::sync::CancellationToken;

pub use admission::{Admission, AdmissionError, AdmissionRequest, Operation};
pub use auth::User;
pub use crd::find_path;
pub use error::{ApiError, ApiResult};
pub use extension::Extension;
pub use pki::{Authority, Pki, PkiError};
pub use registry::{Registry, Served};
pub use resource::{Column, Columns, Durability, FieldError, ListType, NameRule, ResourceDef, Strategy};
pub use selector::{FieldSelector, LabelSelector};
pub use serve::{Access, ServeError};
pub use table::{CREATED as CREATED_DESCRIPTION, NAME as NAME_DESCRIPTION};

use object::Object;

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder for the store (`store/`) and the keys (`pki/`); `None` keeps everything in memory.
    pub data_dir: Option<PathBuf>,
    /// Names and addresses for the server's certificate, besides localhost and the cluster names.
    pub names: Vec<String>,
    /// `host:port` by which discovery says the server is reached.
    pub advertised: String,
    /// First two numbers of the network of service addresses, a /16.
    pub service_network: [u8; 2],
}

impl Default for Config {
    fn default() -> Self {
        Self { data_dir: None, names: Vec::new(), advertised: "127.0.0.1:6443".into(), service_network: [10, 96] }
    }
}

/// Why the server could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store could not be opened.
    #[error("the API server's store cannot be opened")]
    Store(#[from] store::OpenError),
    /// Keys and certificates could not be read or made.
    #[error("the API server's keys cannot be used")]
    Pki(#[from] PkiError),
    /// A folder could not be made.
    #[error("the folder {path} cannot be created")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The namespaces that always exist could not be written.
    #[error("the first objects cannot be written: {0}")]
    Bootstrap(String),
}

/// The server. Cheap to share; all methods take `&self`.
pub struct ApiServer {
    pub(crate) config: Config,
    pub(crate) store: Arc<Store<Object>>,
    pub(crate) recent: object::Recent,
    pub(crate) registry: Registry,
    pub(crate) admissions: RwLock<Vec<Arc<dyn Admission>>>,
    pub(crate) extensions: RwLock<Vec<(String, Arc<dyn Extension>)>>,
    pub(crate) kubelet: RwLock<Option<Arc<dyn client::kubelet::Kubelet>>>,
    pub(crate) kubelet_tls: Arc<rustls::ClientConfig>,
    pub(crate) webhook_clients: webhooks::Clients,
    pub(crate) addresses: addresses::Addresses,
    pub(crate) stop: CancellationToken,
    pub(crate) pki: Pki,
    pub(crate) signer: auth::tokens::Signer,
    pub(crate) me: Weak<ApiServer>,
}

impl ApiServer {
    /// Opens the store and the keys, serves the custom resources that are stored, and makes sure that the namespaces
    /// `default`, `kube-system`, `kube-public` and `kube-node-lease` exist.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names what could not be opened.
    pub async fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        if let Some(path) = &config.data_dir {
            std::fs::create_dir_all(path).map_err(|source| OpenError::Folder { path: path.clone(), source })?;
        }
        let pki = Pki::open(config.data_dir.as_ref().map(|dir| dir.join("pki")), &config.names)?;
        let path = config.data_dir.as_ref().map(|dir| dir.join("store"));
        let opening = move || Store::open(store::Config { path, ..store::Config::default() });
        let store = opening()?;
        let registry = Registry::default();
        let mut builtin = kinds::builtin();
        builtin.extend(basic::missing(&builtin));
        registry.add_builtin(builtin);
        let signer = auth::tokens::Signer::new(&pki.token_key).ok_or(PkiError::TokenKey)?;
        let kubelet_tls = nodes::tls(pki.authority())?;
        let addresses = addresses::Addresses::new(config.service_network);
        let server = Arc::new_cyclic(|me| Self {
            config,
            store,
            recent: object::Recent::default(),
            registry,
            admissions: RwLock::default(),
            extensions: RwLock::default(),
            kubelet: RwLock::default(),
            kubelet_tls,
            webhook_clients: webhooks::Clients::default(),
            addresses,
            stop: CancellationToken::new(),
            pki,
            signer,
            me: me.clone(),
        });
        // Tables begin to remember changes when they are made: make them now.
        for served in server.registry.all().values() {
            server.table(served);
        }
        server.serve_stored_definitions();
        server.bootstrap().await?;
        server.start_housekeeping();
        Ok(server)
    }

    fn serve_stored_definitions(&self) {
        let table = self.store.table(&format!("{}/{}", crd::GROUP, crd::PLURAL));
        for (name, entry) in table.list("", None, usize::MAX, |_| true).entries {
            let value = entry.record.value();
            self.registry.set_custom(&name, crd::served(&value));
            if object::is_deleting(&value) {
                self.start_cleanup(name.to_string());
            }
        }
    }

    async fn bootstrap(self: &Arc<Self>) -> Result<(), OpenError> {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            if self.store.table("namespaces").get(name).is_some() {
                continue;
            }
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            let request = http::Request::post("/api/v1/namespaces").body(body::full(body.to_string()));
            let request = request.map_err(|error| OpenError::Bootstrap(error.to_string()))?;
            let response = self.handle(User::master("system:apiserver"), request).await;
            // A server without built-in kinds (tests of the engine) has no namespaces.
            if response.status().is_client_error() && response.status() != http::StatusCode::NOT_FOUND {
                return Err(OpenError::Bootstrap(format!("namespace {name}: {}", response.status())));
            }
        }
        Ok(())
    }

    /// Adds defaults and checks that run on every write, in the order of adding.
    pub fn add_admission(&self, admission: Arc<dyn Admission>) {
        self.admissions.write().push(admission);
    }

    /// Hands requests whose path begins with `prefix` to an extension, after authentication.
    pub fn add_extension(&self, prefix: impl Into<String>, extension: Arc<dyn Extension>) {
        self.extensions.write().push((prefix.into(), extension));
    }

    /// Sets the node of this process, which answers for the logs of its pods and for what they use.
    pub fn set_kubelet(&self, kubelet: Arc<dyn client::kubelet::Kubelet>) {
        *self.kubelet.write() = Some(kubelet);
    }

    /// Keys, certificates, tokens.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Ends all watches and closes the store; nothing that was acknowledged is lost without it either.
    pub fn close(&self) {
        self.stop.cancel();
        self.store.close();
    }

    pub(crate) fn extension(&self, path: &str) -> Option<Arc<dyn Extension>> {
        let extensions = self.extensions.read();
        extensions.iter().find(|(prefix, _)| path.starts_with(prefix.as_str())).map(|(_, e)| e.clone())
    }
}
