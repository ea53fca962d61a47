//! `colibri secret`: Secrets, as functions and services take them; their values are never shown.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use super::access::{Access, Target};
use super::error::CliError;
use super::output::{OutputArgs, list_of};
use super::workload::Workload;
use super::{env, table};

/// Who owns the keys that this command wrote.
const FIELD_MANAGER: &str = "colibri-secret";
/// Type of the Secrets that people make; the others belong to the platform.
const OPAQUE: &str = "Opaque";

/// Arguments of `colibri secret`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri secret set s3 USER=me PASSWORD        asks for the password
  colibri secret set tls --from-file key.pem
  colibri secret list
  colibri secret delete s3
  colibri env hello --from-secret s3            a variable for each key")]
pub struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum SecretCommand {
    /// Make a secret, or set keys of it
    Set(SetArgs),
    /// List the secrets with their keys and who uses them
    List(ListArgs),
    /// Delete secrets
    Delete(DeleteArgs),
}

#[derive(Args, Clone, Debug)]
struct SetArgs {
    /// The secret
    name: String,
    /// KEY=VALUE; a KEY alone takes its value from the terminal or from standard input
    #[arg(value_name = "KEY[=VALUE]")]
    pairs: Vec<String>,
    /// File whose content becomes the value of the key of its name, or of KEY in KEY=FILE; may be given several times
    #[arg(long, value_name = "[KEY=]FILE")]
    from_file: Vec<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Clone, Debug)]
struct DeleteArgs {
    /// Secrets
    #[arg(required = true)]
    names: Vec<String>,
    /// Even if a function or a service uses it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

/// Does what the subcommand says.
pub async fn run(args: SecretArgs) -> Result<(), CliError> {
    match args.command {
        SecretCommand::Set(args) => set(args).await,
        SecretCommand::List(args) => list(args).await,
        SecretCommand::Delete(args) => delete(args).await,
    }
}

async fn set(args: SetArgs) -> Result<(), CliError> {
    let data = data(&args.pairs, &args.from_file, ask)?;
    let access = args.target.open().await?;
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let name = &args.name;
    // Keys that are not named stay.
    let patch = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data});
    let present = secrets.get_opt(name).await.map_err(|error| CliError::api(&format!("read secret {name}"), &error))?;
    let written = match present {
        Some(_) => secrets.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await,
        None => secrets.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&patch)).await,
    };
    written.map_err(|error| CliError::api(&format!("write secret {name}"), &error))?;
    let keys: Vec<&String> = data.keys().collect();
    eprintln!("secret {name}: {} set", keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(", "));
    let users = users(&access).await?;
    for user in users.get(name).into_iter().flatten() {
        eprintln!("note: {user} sees that in instances that start from now on");
    }
    Ok(())
}

/// The keys with their values.
fn data(
    pairs: &[String],
    files: &[String],
    ask: impl Fn(&str) -> Result<Vec<u8>, CliError>,
) -> Result<BTreeMap<String, ByteString>, CliError> {
    let mut data = BTreeMap::new();
    for pair in pairs {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, value.as_bytes().to_vec()),
            None => (pair.as_str(), ask(pair)?),
        };
        data.insert(key.to_owned(), ByteString(value));
    }
    for file in files {
        let (key, path) = match file.split_once('=') {
            Some((key, path)) => (key.to_owned(), PathBuf::from(path)),
            None => {
                let path = PathBuf::from(file);
                (path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(), path)
            }
        };
        let content = std::fs::read(&path);
        let content = content.map_err(|error| CliError::new(format!("{} cannot be read: {error}", path.display())))?;
        data.insert(key, ByteString(content));
    }
    if data.is_empty() {
        return Err(CliError::new("nothing to set").cured_by("name keys: KEY=VALUE, KEY, or --from-file FILE"));
    }
    if let Some(key) = data.keys().find(|key| !is_key(key)) {
        return Err(CliError::new(format!("{key:?} cannot be a key"))
            .cured_by("keys are of letters, digits, -, _ and .; as variables they begin with a letter or _"));
    }
    Ok(data)
}

fn is_key(key: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=253).contains(&key.len()) && key.chars().all(fits) && key != "." && !key.starts_with("..")
}

/// A value from the terminal, where it is not echoed, or from standard input.
fn ask(key: &str) -> Result<Vec<u8>, CliError> {
    let failed = |error: std::io::Error| CliError::new(format!("the value of {key} cannot be read: {error}"));
    let mut value = Vec::new();
    if std::io::stdin().is_terminal() {
        eprint!("{key}: ");
        let _silence = Silence::begin();
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(failed)?;
        eprintln!();
        value.extend(line.trim_end_matches(['\n', '\r']).bytes());
    } else {
        std::io::stdin().lock().read_to_end(&mut value).map_err(failed)?;
    }
    Ok(value)
}

/// A terminal that does not echo, until this goes.
struct Silence(Option<Termios>);

impl Silence {
    fn begin() -> Self {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut silent = before.clone();
            silent.local_flags.remove(LocalFlags::ECHO);
            // A terminal that echoes is better than none.
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &silent);
        }
        Self(before)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let found = secrets.list(&ListParams::default()).await.map_err(|error| CliError::api("list secrets", &error))?;
    let found: Vec<Secret> =
        found.into_iter().filter(|secret| secret.type_.as_deref().unwrap_or(OPAQUE) == OPAQUE).collect();
    let users = users(&access).await?;
    let all = list_of(found.iter().map(|secret| shown(secret, &users)).collect());
    let names = || found.iter().map(|secret| format!("secret/{}\n", secret.name_any())).collect();
    args.output.show(&all, names, || render(&found, &users, Timestamp::now()));
    Ok(())
}

type Users = BTreeMap<String, Vec<String>>;

async fn users(access: &Access) -> Result<Users, CliError> {
    let mut workloads = Workload::list(&access.client, Some(&access.namespace)).await?;
    Ok(env::users_of_secret(&mut workloads))
}

fn keys(secret: &Secret) -> Vec<&str> {
    secret.data.iter().flatten().map(|(key, _)| key.as_str()).collect()
}

/// For programs, without values.
fn shown(secret: &Secret, users: &Users) -> Value {
    let name = secret.name_any();
    json!({"name": name, "keys": keys(secret), "usedBy": users.get(&name).cloned().unwrap_or_default()})
}

fn render(found: &[Secret], users: &Users, now: Timestamp) -> String {
    let row = |secret: &Secret| {
        let name = secret.name_any();
        let users = users.get(&name).map(|users| users.join(",")).unwrap_or_default();
        let age = table::age(secret.creation_timestamp().map(|time| time.0), now);
        vec![name, keys(secret).join(","), users, age]
    };
    table::render(&["NAME", "KEYS", "USED BY", "AGE"], &found.iter().map(row).collect::<Vec<_>>())
}

async fn delete(args: DeleteArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let users = users(&access).await?;
    for name in &args.names {
        if let Some(users) = users.get(name).filter(|_| !args.force) {
            return Err(CliError::new(format!("secret {name} is used by {}", users.join(", "))).cured_by(&format!(
                "colibri env {} --not-from-secret {name} first, or --force: no instance starts without it",
                users[0]
            )));
        }
        let deleted = secrets.delete(name, &DeleteParams::default()).await;
        deleted.map_err(|error| CliError::api(&format!("delete secret {name}"), &error))?;
        eprintln!("secret {name} deleted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_the_line_from_files_and_from_a_question() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        std::fs::write(&file, b"\0pem").unwrap();
        let file = file.to_str().unwrap();
        let pairs = ["USER=me=you".to_owned(), "PASSWORD".to_owned()];
        let found =
            data(&pairs, &[file.to_owned(), format!("other={file}")], |key| Ok(format!("asked for {key}").into()))
                .unwrap();
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect();
        let pem = b"\0pem".as_slice();
        let expected =
            [("PASSWORD", b"asked for PASSWORD".as_slice()), ("USER", b"me=you"), ("key.pem", pem), ("other", pem)];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_cannot_be_set_is_told() {
        let none = |_: &str| Ok(Vec::new());
        let said = |pairs: &[&str], files: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            data(&owned(pairs), &owned(files), none).unwrap_err().message
        };
        assert!(said(&[], &[]).starts_with("nothing to set"));
        for key in ["=1", "a/b=1", "..=1", "ä=1"] {
            assert!(said(&[key], &[]).contains("cannot be a key"), "{key}");
        }
        assert!(said(&[], &["/nowhere/at/all"]).starts_with("/nowhere/at/all cannot be read"));
    }

    #[test]
    fn values_are_never_shown() {
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s3", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "data": {"PASSWORD": "aGlkZGVu", "USER": "bWU="}}))
            .unwrap();
        let users = BTreeMap::from([("s3".to_owned(), vec!["hello".to_owned(), "web".to_owned()])]);
        assert_eq!(
            shown(&secret, &users),
            json!({"name": "s3", "keys": ["PASSWORD", "USER"], "usedBy": ["hello", "web"]})
        );
        expect_test::expect![[r#"
            NAME   KEYS            USED BY     AGE
            s3     PASSWORD,USER   hello,web   60s
        "#]]
        .assert_eq(&render(&[secret], &users, "2026-01-01T00:01:00Z".parse().unwrap()));
    }
}
