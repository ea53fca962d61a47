//! Finding a platform: its kubeconfig, its gateway, a client.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::Args;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;

use super::error::{CliError, causes};

/// Which platform, and which namespace of it.
#[derive(Args, Clone, Debug, Default)]
pub struct Target {
    /// Kubeconfig of the platform [default: that of --data-dir, else those in $KUBECONFIG, else that of the default data dir, else ~/.kube/config]
    #[arg(long, value_name = "FILE", help_heading = "Platform")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", help_heading = "Platform")]
    pub context: Option<String>,
    /// Data directory of a platform on this machine [default: /var/lib/colibri for root, else the XDG state folder]
    #[arg(long, value_name = "DIR", env = "COLIBRI_DATA_DIR", hide_env_values = true, help_heading = "Platform")]
    pub data_dir: Option<PathBuf>,
    /// Namespace [default: the context's, else default]
    #[arg(long, short, value_name = "NAME", help_heading = "Platform")]
    pub namespace: Option<String>,
}

/// A way to a platform.
#[derive(Clone)]
pub struct Access {
    /// Client of the API server.
    pub client: Client,
    /// Namespace to work in.
    pub namespace: String,
    /// `http://address:port` of the gateway, where the platform's files tell it.
    pub gateway: Option<String>,
    /// URL of the API server.
    pub server: String,
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
    /// A list as in `$KUBECONFIG`: files that are not there are left out, and what stands first counts.
    List(Vec<PathBuf>),
    /// The first file of these that is there.
    First(Vec<PathBuf>),
}

impl Target {
    /// Finds the kubeconfig and makes a client; nothing is asked of the server yet.
    ///
    /// # Errors
    ///
    /// When there is no kubeconfig, or it cannot be used.
    pub async fn open(&self) -> Result<Access, CliError> {
        let found = read(self.place(std::env::var_os("KUBECONFIG").as_deref(), &default_files()))?;
        let context = self.context_of(&found)?;
        let endpoints = found.files.first().and_then(|file| file.parent()).map(read_endpoints).unwrap_or_default();
        let gateway = endpoints.gateway.or_else(|| gateway_of(&found.config));
        let shown = found.shown();
        let unusable = |error: &dyn std::error::Error| {
            CliError::new(format!(
                "context {context:?} of {shown} cannot be used: {}. Choose another with --context, or another file with --kubeconfig",
                causes(error)
            ))
        };
        let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
        let config = kube::Config::from_custom_kubeconfig(found.config, &options).await.map_err(|e| unusable(&e))?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        Ok(Access { client, namespace, gateway, server })
    }

    /// The kubeconfig file of a platform on this machine.
    pub fn kubeconfig_file(&self) -> PathBuf {
        let dir = self.data_dir.clone().unwrap_or_else(default_data_dir);
        self.kubeconfig.clone().unwrap_or_else(|| dir.join("kubeconfig"))
    }

    fn place(&self, variable: Option<&OsStr>, default_files: &[PathBuf]) -> Place {
        let list =
            variable.map(|list| std::env::split_paths(list).filter(|file| !file.as_os_str().is_empty()).collect());
        let list: Vec<PathBuf> = list.unwrap_or_default();
        match (&self.kubeconfig, &self.data_dir) {
            (Some(file), _) => Place::File(file.clone()),
            (None, Some(dir)) => Place::File(dir.join("kubeconfig")),
            (None, None) if !list.is_empty() => Place::List(list),
            (None, None) => Place::First(default_files.to_vec()),
        }
    }

    /// The context to use, which the kubeconfig must have.
    fn context_of(&self, found: &Found) -> Result<String, CliError> {
        let names: Vec<&str> = found.config.contexts.iter().map(|context| context.name.as_str()).collect();
        let current = found.config.current_context.as_deref().filter(|name| !name.is_empty());
        let list = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let Some(wanted) = self.context.as_deref().or(current) else {
            return Err(CliError::new(format!(
                "{} names no current context; choose one with --context. There are: {list}",
                found.shown()
            )));
        };
        if names.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        let meant = base::nearest(wanted, names.iter().copied()).map(|name| format!("; did you mean {name}?"));
        Err(CliError::new(format!(
            "{} has no context {wanted:?}{}. There are: {list}",
            found.shown(),
            meant.unwrap_or_default()
        )))
    }
}

/// A kubeconfig and the files that it is made of.
#[derive(Debug)]
struct Found {
    config: Kubeconfig,
    files: Vec<PathBuf>,
}

impl Found {
    fn shown(&self) -> String {
        let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        format!("the kubeconfig {}", names.join(" with "))
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

/// A platform on this machine, else kubectl's own default.
fn default_files() -> Vec<PathBuf> {
    let kubectl = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    [default_data_dir().join("kubeconfig")].into_iter().chain(kubectl).collect()
}

fn read(place: Place) -> Result<Found, CliError> {
    match place {
        Place::File(file) if is_there(&file)? => Ok(Found { config: parse(&file)?, files: vec![file] }),
        Place::File(file) => Err(missing(&[file])),
        Place::First(files) => {
            for file in &files {
                if is_there(file)? {
                    return Ok(Found { config: parse(file)?, files: vec![file.clone()] });
                }
            }
            Err(missing(&files[..1]))
        }
        Place::List(files) => {
            let mut found: Option<Found> = None;
            for file in &files {
                if !is_there(file)? {
                    continue;
                }
                let next = parse(file)?;
                found = Some(match found {
                    None => Found { config: next, files: vec![file.clone()] },
                    Some(Found { config, files }) => Found {
                        config: config.merge(next).map_err(|error| unreadable(file, &error))?,
                        files: [files, vec![file.clone()]].concat(),
                    },
                });
            }
            found.ok_or_else(|| missing(&files))
        }
    }
}

fn parse(file: &Path) -> Result<Kubeconfig, CliError> {
    Kubeconfig::read_from(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &dyn std::error::Error) -> CliError {
    CliError::new(format!(
        "the kubeconfig {} cannot be read: {}. Correct it, or name another with --kubeconfig",
        file.display(),
        causes(error)
    ))
}

fn is_there(file: &Path) -> Result<bool, CliError> {
    match std::fs::metadata(file) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(CliError::new(format!(
            "the kubeconfig {} belongs to another user. Run the command as that user, or name your own with --kubeconfig",
            file.display()
        ))),
        Err(_) => Ok(false),
    }
}

fn missing(files: &[PathBuf]) -> CliError {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    CliError::unreachable(format!(
        "no platform found: {} is not there. Start one with: sudo colibri up. Or name one with --data-dir or --kubeconfig",
        names.join(", ")
    ))
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
        let list = || Some(OsStr::new("/a::/b"));
        let rows = [
            (file.clone(), dir.clone(), list(), Place::File("/k".into())),
            (file, None, None, Place::File("/k".into())),
            (None, dir, list(), Place::File("/d/kubeconfig".into())),
            (None, None, list(), Place::List(vec!["/a".into(), "/b".into()])),
            (None, None, Some(OsStr::new("")), Place::First(vec!["/default".into()])),
            (None, None, None, Place::First(vec!["/default".into()])),
        ];
        for (kubeconfig, data_dir, variable, expected) in rows {
            let target = Target { kubeconfig, data_dir, ..Target::default() };
            assert_eq!(target.place(variable, &["/default".into()]), expected, "{target:?}");
        }
    }

    fn kubeconfig(current: &str, names: &[&str]) -> String {
        let entries = |kind: &str, field: &str| {
            let each =
                names.iter().map(|name| format!("- name: {name}\n  {kind}: {{{}}}\n", field.replace("NAME", name)));
            each.collect::<String>()
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {current}\nclusters:\n{}users:\n{}contexts:\n{}",
            entries("cluster", "server: 'https://NAME.example:6443'"),
            entries("user", "token: NAME"),
            entries("context", "cluster: NAME, user: NAME, namespace: of-NAME"),
        )
    }

    /// As kubectl does: <https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/>.
    #[tokio::test]
    async fn several_files_are_merged_and_missing_ones_left_out() {
        // Installed already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let first = file("first", &kubeconfig("one", &["one"]));
        let second = file("second", &kubeconfig("two", &["two", "three"]));
        let list = || Place::List(vec![dir.path().join("missing"), first.clone(), second.clone()]);
        let found = read(list()).unwrap();
        assert_eq!(found.files, [first.clone(), second.clone()]);
        assert_eq!(Target::default().context_of(&found).unwrap(), "one", "what stands first counts");

        let target = |context: &str| Target { context: Some(context.to_owned()), ..Target::default() };
        assert_eq!(target("three").context_of(&found).unwrap(), "three");
        let error = target("tree").context_of(&found).unwrap_err().message;
        for word in ["first with", "no context \"tree\"", "did you mean three?", "There are: one, two, three"] {
            assert!(error.contains(word), "{error}");
        }
        let nobody = read(Place::List(vec!["/nowhere/a".into(), "/nowhere/b".into()])).unwrap_err();
        assert!(nobody.message.contains("/nowhere/a, /nowhere/b is not there"), "{nobody}");
        let named = Target { kubeconfig: Some(second), ..target("three") };
        assert_eq!(named.open().await.map(|access| access.namespace).unwrap(), "of-three");
        let named = Target { namespace: Some("mine".into()), ..named };
        assert_eq!(named.open().await.map(|access| access.namespace).unwrap(), "mine");
    }

    #[test]
    fn a_kubeconfig_without_a_context_says_so() {
        let config = serde_yaml_ng::from_str(&kubeconfig("''", &["one"])).unwrap();
        let found = Found { config, files: vec!["/k".into()] };
        let error = Target::default().context_of(&found).unwrap_err().message;
        assert!(error.contains("/k names no current context") && error.contains("There are: one"), "{error}");
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
        let error = read(Place::File("/nowhere/kubeconfig".into())).unwrap_err();
        assert_eq!(error.code, 3);
        assert!(error.message.contains("/nowhere/kubeconfig") && error.message.contains("colibri up"), "{error}");
    }
}
