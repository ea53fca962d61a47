//! Finding a platform: its kubeconfig, its gateway, a client.

use std::path::{Path, PathBuf};

use clap::Args;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;

use super::error::{CliError, causes};

/// Which platform, and which namespace of it.
#[derive(Args, Clone, Debug, Default)]
pub struct Target {
    /// Kubeconfig of the platform [default: that of --data-dir, else $KUBECONFIG, else that of the default data dir]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Data directory of a platform on this machine [default: /var/lib/colibri for root, else the XDG state folder]
    #[arg(long, value_name = "DIR", env = "COLIBRI_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Namespace [default: the kubeconfig's, else default]
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// A way to a platform.
pub struct Access {
    /// Client of the API server.
    pub client: Client,
    /// Namespace to work in.
    pub namespace: String,
    /// `http://address:port` of the gateway, where the platform's files tell it.
    pub gateway: Option<String>,
}

/// Addresses that a running platform writes down.
#[derive(Debug, Default, Deserialize)]
struct Endpoints {
    gateway: Option<String>,
}

/// Where the kubeconfig comes from.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A file, which must be there.
    File(PathBuf),
    /// `$KUBECONFIG`, which may be a list.
    Environment,
}

impl Target {
    /// Finds the kubeconfig and makes a client; nothing is asked of the server yet.
    ///
    /// # Errors
    ///
    /// When there is no kubeconfig, or it cannot be used.
    pub async fn open(&self) -> Result<Access, CliError> {
        let has_variable = std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
        let place = self.place(has_variable, &default_data_dir());
        let (kubeconfig, file) = read(&place)?;
        let endpoints = file.as_deref().and_then(Path::parent).map(read_endpoints).unwrap_or_default();
        let gateway = endpoints.gateway.or_else(|| gateway_of(&kubeconfig));
        let unusable = |error: &dyn std::error::Error| {
            CliError::new(format!("the kubeconfig cannot be used: {}. Name another with --kubeconfig", causes(error)))
        };
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| unusable(&e))?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        Ok(Access { client, namespace, gateway })
    }

    /// The kubeconfig file of a platform on this machine.
    pub fn kubeconfig_file(&self) -> PathBuf {
        let dir = self.data_dir.clone().unwrap_or_else(default_data_dir);
        self.kubeconfig.clone().unwrap_or_else(|| dir.join("kubeconfig"))
    }

    fn place(&self, has_variable: bool, default_dir: &Path) -> Place {
        match (&self.kubeconfig, &self.data_dir) {
            (Some(file), _) => Place::File(file.clone()),
            (None, Some(dir)) => Place::File(dir.join("kubeconfig")),
            (None, None) if has_variable => Place::Environment,
            (None, None) => Place::File(default_dir.join("kubeconfig")),
        }
    }
}

/// `/var/lib/colibri` for root, else the XDG state folder.
pub fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/colibri");
    }
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
    let state = std::env::var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    state.unwrap_or_else(home).join("colibri")
}

fn read(place: &Place) -> Result<(Kubeconfig, Option<PathBuf>), CliError> {
    match place {
        Place::Environment => {
            let found = Kubeconfig::from_env().map_err(|error| {
                CliError::new(format!("the kubeconfig that $KUBECONFIG names cannot be read: {}", causes(&error)))
            })?;
            let first = std::env::var_os("KUBECONFIG").and_then(|value| std::env::split_paths(&value).next());
            found.map(|config| (config, first)).ok_or_else(|| CliError::unreachable("$KUBECONFIG names no file"))
        }
        Place::File(file) => match std::fs::metadata(file) {
            Ok(_) => {
                let config = Kubeconfig::read_from(file).map_err(|error| {
                    CliError::new(format!("the kubeconfig {} cannot be read: {}", file.display(), causes(&error)))
                })?;
                Ok((config, Some(file.clone())))
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(CliError::new(format!(
                "the kubeconfig {} belongs to another user. Run the command as that user, or name your own with --kubeconfig",
                file.display()
            ))),
            Err(_) => Err(CliError::unreachable(format!(
                "no platform found: {} is not there. Start one with: sudo colibri up. Or name one with --data-dir or --kubeconfig",
                file.display()
            ))),
        },
    }
}

fn read_endpoints(dir: &Path) -> Endpoints {
    let text = std::fs::read_to_string(dir.join("endpoints.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The gateway in a kubeconfig's extension `colibri`, for platforms that are not on this machine.
fn gateway_of(kubeconfig: &Kubeconfig) -> Option<String> {
    let mut extensions = kubeconfig.extensions.iter().flatten();
    let ours = extensions.find(|extension| extension.name == "colibri")?;
    Some(ours.extension.get("gateway")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_is_looked_for_in_order() {
        let (file, dir) = (Some(PathBuf::from("/k")), Some(PathBuf::from("/d")));
        let rows = [
            (file.clone(), dir.clone(), true, Place::File("/k".into())),
            (file, None, false, Place::File("/k".into())),
            (None, dir, true, Place::File("/d/kubeconfig".into())),
            (None, None, true, Place::Environment),
            (None, None, false, Place::File("/default/kubeconfig".into())),
        ];
        for (kubeconfig, data_dir, has_variable, expected) in rows {
            let target = Target { kubeconfig, data_dir, namespace: None };
            assert_eq!(target.place(has_variable, Path::new("/default")), expected, "{target:?}");
        }
    }

    #[test]
    fn a_kubeconfig_may_name_the_gateway() {
        let text = "extensions: [{name: colibri, extension: {gateway: 'http://10.0.0.1:8080'}}]";
        let kubeconfig: Kubeconfig = serde_yaml_ng::from_str(text).unwrap();
        assert_eq!(gateway_of(&kubeconfig).as_deref(), Some("http://10.0.0.1:8080"));
        assert_eq!(gateway_of(&Kubeconfig::default()), None);
    }

    #[test]
    fn no_platform_is_one_sentence_with_the_cure() {
        let Err(error) = read(&Place::File("/nowhere/kubeconfig".into())) else { panic!("there is no such file") };
        assert_eq!(error.code, 3);
        assert!(error.message.contains("/nowhere/kubeconfig") && error.message.contains("colibri up"), "{error}");
    }
}
